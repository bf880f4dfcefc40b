/* device/pci: config mechanisms, BAR sizing and moving, MSI-X, INTx, with a small function of its
 * own. */
#include "virtio_guest.h"

#include <errno.h>

struct probe {
    struct device device;
    struct pci_function function;
    uint64_t last_write;
    unsigned master_changes;
};

struct probe_config {
    struct pci_host *host;
    unsigned slot;
};

static uint64_t probe_read(void *context, uint64_t offset, unsigned size)
{
    return 0x1122334455667788ull + offset;
}

static void probe_write(void *context, uint64_t offset, unsigned size, uint64_t value)
{
    struct probe *p = context;
    p->last_write = value;
}

static const struct bus_ops probe_bus_ops = {probe_read, probe_write};

static void probe_master(struct pci_function *function, bool on)
{
    container_of(function, struct probe, function)->master_changes++;
}

static const struct pci_function_ops probe_ops = {.bus_master_changed = probe_master};

/* BAR 0: 64-bit, 64 KiB; BAR 2: MSI-X with 4 vectors; BAR 4: 32-bit, 4 KiB; BAR 5: 32 ports. */
static int probe_create(struct device *device, const void *config, struct err *err)
{
    static const struct pci_id id = {
        .vendor = 0x1234, .device = 0x5678, .class_code = 0xff0000, .has_intx = true};
    const struct probe_config *c = config;
    struct probe *p = container_of(device, struct probe, device);
    int error = pci_function_init(&p->function, device, c->host, c->slot, &id, err);
    if (error)
        return error;
    p->function.ops = &probe_ops;
    struct pci_function *f = &p->function;
    assert_int_equal(pci_function_add_bar(f, 0, PCI_BAR_MEM64, 0x10000, &probe_bus_ops, p), 0);
    assert_int_equal(pci_function_add_msix(f, 2, 4), 0);
    assert_int_equal(pci_function_add_bar(f, 4, PCI_BAR_MEM32, 0x1000, &probe_bus_ops, p), 0);
    assert_int_equal(pci_function_add_bar(f, 5, PCI_BAR_IO, 32, &probe_bus_ops, p), 0);
    return 0;
}

static struct pci_function *function_of(struct device *device)
{
    return &container_of(device, struct probe, device)->function;
}

static void probe_reset(struct device *device)
{
    pci_function_reset(function_of(device));
}

static void probe_save(struct device *device, struct state_writer *w)
{
    pci_function_save(function_of(device), w);
}

static int probe_load(struct device *device, struct state_reader *r, struct err *err)
{
    return pci_function_load(function_of(device), r, err);
}

static void probe_destroy(struct device *device)
{
    pci_function_destroy(function_of(device));
}

static const struct device_class probe_class = {
    .name = "probe",
    .size = sizeof(struct probe),
    .create = probe_create,
    .reset = probe_reset,
    .save = probe_save,
    .load = probe_load,
    .destroy = probe_destroy,
};

static struct device *add_probe(struct guest *g, unsigned slot)
{
    return rig_add(g->machine, &probe_class, &(struct probe_config) {g->host, slot});
}

static int setup(void **state)
{
    struct guest *g = calloc(1, sizeof *g);
    guest_create(g, 2);
    g->device = add_probe(g, 2);
    *state = g;
    return 0;
}

static int teardown(void **state)
{
    guest_destroy(*state);
    free(*state);
    return 0;
}

static void enable(struct guest *g)
{
    guest_config_write(g, PCI_COMMAND, 2,
                       PCI_COMMAND_IO | PCI_COMMAND_MEMORY | PCI_COMMAND_BUS_MASTER);
    g->bar = guest_bar(g, 0);
    g->msix_bar = guest_bar(g, 2);
}

static uint32_t port_config(struct guest *g, unsigned slot, unsigned offset, unsigned size)
{
    rig_out(g->machine, 0xcf8, 4, 0x80000000u | slot << 11 | (offset & 0xfc));
    return rig_in(g->machine, (uint16_t)(0xcfc + (offset & 3)), size);
}

static void test_both_mechanisms_see_the_same(void **state)
{
    struct guest *g = *state;
    assert_int_equal(port_config(g, 2, 0, 4), 0x56781234);
    assert_int_equal(port_config(g, 2, 2, 2), 0x5678);
    assert_int_equal(port_config(g, 2, 3, 1), 0x56);
    assert_int_equal(guest_config_read(g, 0, 4), 0x56781234);
    assert_int_equal(port_config(g, 0, 0, 4), 0x29c08086);
    assert_int_equal(port_config(g, 9, 0, 4), 0xffffffff); /* nobody */
    rig_out(g->machine, 0xcf8, 4, 0x1000);                 /* not enabled */
    assert_int_equal(rig_in(g->machine, 0xcfc, 4), 0xffffffff);
    g->slot = 9;
    assert_int_equal(guest_config_read(g, 0, 2), 0xffff);
    g->slot = 2;
    assert_int_equal(guest_config_read(g, 0x100, 4), 0); /* no extended capabilities */
    assert_int_equal(bus_read(g->machine->mmio, guest_ecam(g, 0) + (1 << 20), 4), 0xffffffff);
}

static void test_port_writes_with_byte_enables(void **state)
{
    struct guest *g = *state;
    port_config(g, 2, PCI_INTERRUPT_LINE, 1);
    rig_outb(g->machine, 0xcfc, 0x5a);
    assert_int_equal(guest_config_read(g, PCI_INTERRUPT_LINE, 4), 0x0000015a); /* pin stays */
    rig_out(g->machine, 0xcfc, 4, 0xffffffff);
    assert_int_equal(guest_config_read(g, PCI_INTERRUPT_LINE, 4), 0x000001ff);
    port_config(g, 2, 0, 4);
    rig_out(g->machine, 0xcfc, 4, 0);
    assert_int_equal(guest_config_read(g, 0, 4), 0x56781234); /* read-only */
}

static void test_reset_control_register(void **state)
{
    struct guest *g = *state;
    rig_outb(g->machine, 0xcf9, 0x02);
    assert_int_equal(rig_take_request(g->machine), REQUEST_NONE);
    rig_outb(g->machine, 0xcf9, 0x06);
    assert_int_equal(rig_take_request(g->machine), REQUEST_RESET);
    assert_int_equal(rig_inb(g->machine, 0xcf9), 0x06);
}

static void test_isa_bridge_keeps_routing(void **state)
{
    struct guest *g = *state;
    rig_add(g->machine, &pci_lpc_class, &(struct pci_lpc_config) {g->host});
    assert_int_equal(port_config(g, 31, 0, 4), 0x29188086);
    assert_int_equal(port_config(g, 31, 0x60, 4), 0x80808080);
    rig_out(g->machine, 0xcfc, 4, 0x0a0b0c0d);
    assert_int_equal(port_config(g, 31, 0x60, 4), 0x0a0b0c0d);
}

static void test_bar_sizing(void **state)
{
    struct guest *g = *state;
    uint32_t low = guest_config_read(g, PCI_BAR0, 4);
    assert_int_equal(low & 0xf, 4);
    guest_config_write(g, PCI_BAR0, 4, 0xffffffff);
    guest_config_write(g, PCI_BAR0 + 4, 4, 0xffffffff);
    assert_int_equal(guest_config_read(g, PCI_BAR0, 4), 0xffff0004);
    assert_int_equal(guest_config_read(g, PCI_BAR0 + 4, 4), 0xffffffff);
    guest_config_write(g, PCI_BAR0 + 16, 4, 0xffffffff);
    assert_int_equal(guest_config_read(g, PCI_BAR0 + 16, 4), 0xfffff000);
    guest_config_write(g, PCI_BAR0 + 20, 4, 0xffffffff);
    assert_int_equal(guest_config_read(g, PCI_BAR0 + 20, 4), 0xffffffe1);
    assert_int_not_equal(low & ~0xfu, 0); /* was assigned at reset */
}

static void test_bars_decode_only_when_enabled(void **state)
{
    struct guest *g = *state;
    uint64_t bar = guest_bar(g, 0);
    uint16_t port = guest_config_read(g, PCI_BAR0 + 20, 4) & 0xfffc;
    assert_int_equal(bus_read(g->machine->mmio, bar, 4), 0xffffffff);
    assert_int_equal(rig_in(g->machine, port, 4), 0xffffffff);
    enable(g);
    assert_int_equal(bus_read(g->machine->mmio, bar, 8), 0x1122334455667788ull);
    assert_int_equal(rig_in(g->machine, port, 4), 0x55667788);
    guest_config_write(g, PCI_COMMAND, 2, PCI_COMMAND_IO);
    assert_int_equal(bus_read(g->machine->mmio, bar, 4), 0xffffffff);
    assert_int_equal(rig_in(g->machine, port, 4), 0x55667788);
}

static void test_bar_moves(void **state)
{
    struct guest *g = *state;
    uint64_t from = guest_bar(g, 0), to = g->machine->pci64_base + 0x30000000;
    enable(g);
    guest_config_write(g, PCI_BAR0 + 4, 4, (uint32_t)(to >> 32));
    guest_config_write(g, PCI_BAR0, 4, (uint32_t)to);
    assert_int_equal(bus_read(g->machine->mmio, from, 4), 0xffffffff);
    assert_int_equal(bus_read(g->machine->mmio, to + 8, 4), 0x55667790);
}

static void test_overlapping_bar_waits_until_the_other_leaves(void **state)
{
    struct guest *g = *state;
    struct guest other = *g;
    struct probe *p = container_of(g->device, struct probe, device);
    other.slot = 5;
    other.device = add_probe(g, 5);
    enable(g);
    enable(&other);
    uint64_t place = guest_bar(g, 0), errors = other.device->guest_errors;
    guest_config_write(&other, PCI_BAR0, 4, (uint32_t)place);
    assert_true(other.device->guest_errors > errors);
    bus_write(g->machine->mmio, place, 4, 77);
    assert_int_equal(p->last_write, 77); /* the first one keeps it */
    guest_config_write(g, PCI_COMMAND, 2, 0);
    bus_write(g->machine->mmio, place, 4, 88);
    assert_int_equal(p->last_write, 77);
    assert_int_equal(container_of(other.device, struct probe, device)->last_write, 88);
    /* Over the ECAM it stays unreachable, and so does nobody harm. */
    guest_config_write(&other, PCI_BAR0, 4, (uint32_t)MACHINE_ECAM_BASE);
    assert_int_equal(guest_config_read(&other, 0, 4), 0x56781234);
}

static void test_slots_are_exclusive(void **state)
{
    struct guest *g = *state;
    struct err err = {{0}};
    const struct probe_config taken = {g->host, 2}, beyond = {g->host, 32};
    assert_int_equal(machine_add_device(g->machine, &probe_class, "x", &taken, NULL, &err),
                     -EEXIST);
    assert_non_null(strstr(err.text, "slot 2"));
    assert_int_equal(machine_add_device(g->machine, &probe_class, "x", &beyond, NULL, &err),
                     -EINVAL);
}

static void set_entry(struct guest *g, unsigned vector, bool masked)
{
    struct bus *mmio = g->machine->mmio;
    bus_write(mmio, g->msix_bar + vector * 16, 8, 0xfee01000);
    bus_write(mmio, g->msix_bar + vector * 16 + 8, 4, 0x30 + vector);
    bus_write(mmio, g->msix_bar + vector * 16 + 12, 4, masked);
}

static uint64_t pending(struct guest *g)
{
    return bus_read(g->machine->mmio, g->msix_bar + PCI_MSIX_PBA_OFFSET, 8);
}

static void test_msix_masks_and_pending_bits(void **state)
{
    struct guest *g = *state;
    struct pci_function *f = function_of(g->device);
    enable(g);
    unsigned cap = guest_find_capability(g, PCI_CAPABILITY_MSIX, -1);
    assert_int_equal(guest_config_read(g, cap + 2, 2), 3);
    assert_int_equal(bus_read(g->machine->mmio, g->msix_bar + 12, 4), 1); /* masked at reset */
    for (unsigned i = 0; i < 4; i++)
        set_entry(g, i, i == 1);
    pci_msix_notify(f, 0);
    assert_int_equal(guest_msi_count(g), 0); /* not enabled */
    guest_config_write(g, cap + 2, 2, PCI_MSIX_CONTROL_ENABLE);
    pci_msix_notify(f, 0);
    assert_int_equal(guest_msi_count(g), 1);
    struct engine_fake_log log;
    engine_fake_read_log(g->machine->engine_vm, &log);
    assert_int_equal(log.msi[0].address, 0xfee01000);
    assert_int_equal(log.msi[0].data, 0x30);
    pci_msix_notify(f, 1); /* masked: pending until unmasked, then once */
    assert_int_equal(pending(g), 2);
    set_entry(g, 1, false);
    assert_int_equal(guest_msi_count(g), 2);
    assert_int_equal(pending(g), 0);
    guest_config_write(g, cap + 2, 2, PCI_MSIX_CONTROL_ENABLE | PCI_MSIX_CONTROL_MASK);
    pci_msix_notify(f, 2);
    pci_msix_notify(f, 2);
    assert_int_equal(pending(g), 4);
    guest_config_write(g, cap + 2, 2, PCI_MSIX_CONTROL_ENABLE);
    assert_int_equal(guest_msi_count(g), 3);
    guest_config_write(g, PCI_COMMAND, 2, PCI_COMMAND_MEMORY); /* bus mastering off */
    pci_msix_notify(f, 3);
    assert_int_equal(guest_msi_count(g), 3);
    guest_config_write(g, PCI_COMMAND, 2, PCI_COMMAND_MEMORY | PCI_COMMAND_BUS_MASTER);
    assert_int_equal(guest_msi_count(g), 4);
    pci_msix_notify(f, 4); /* no such vector */
    pci_msix_notify(f, 0xffff);
    assert_int_equal(guest_msi_count(g), 4);
    assert_int_equal(container_of(g->device, struct probe, device)->master_changes, 3);
}

static void test_intx_follows_command_and_msix(void **state)
{
    struct guest *g = *state;
    struct pci_function *f = function_of(g->device);
    unsigned line = pci_irq_gsi(2, 0), cap = guest_find_capability(g, PCI_CAPABILITY_MSIX, -1);
    pci_set_intx(f, true);
    assert_true(rig_line(g->machine, line));
    assert_true(guest_config_read(g, PCI_STATUS, 2) & PCI_STATUS_INTERRUPT);
    guest_config_write(g, PCI_COMMAND, 2, PCI_COMMAND_INTX_DISABLE);
    assert_false(rig_line(g->machine, line));
    assert_true(guest_config_read(g, PCI_STATUS, 2) & PCI_STATUS_INTERRUPT);
    guest_config_write(g, PCI_COMMAND, 2, 0);
    assert_true(rig_line(g->machine, line));
    guest_config_write(g, cap + 2, 2, PCI_MSIX_CONTROL_ENABLE);
    assert_false(rig_line(g->machine, line));
    guest_config_write(g, cap + 2, 2, 0);
    pci_set_intx(f, false);
    assert_false(rig_line(g->machine, line));
}

static void test_state_survives_a_round_trip(void **state)
{
    struct guest *g = *state;
    void *other_state;
    enable(g);
    set_entry(g, 0, false);
    set_entry(g, 3, true);
    guest_config_write(g, guest_find_capability(g, PCI_CAPABILITY_MSIX, -1) + 2, 2,
                       PCI_MSIX_CONTROL_ENABLE);
    pci_msix_notify(function_of(g->device), 3);
    guest_config_write(g, PCI_BAR0, 4, 0xd0000000);
    setup(&other_state);
    struct guest *other = other_state;
    rig_assert_round_trip(g->device, other->device);
    assert_int_equal(bus_read(other->machine->mmio, 0xd0000000, 4), 0x55667788);
    other->msix_bar = g->msix_bar;
    assert_int_equal(pending(other), 8);
    set_entry(other, 3, false);
    assert_int_equal(guest_msi_count(other), 1);
    teardown(&other_state);
}

static void test_state_of_another_device_is_refused(void **state)
{
    struct guest *g = *state;
    struct state_writer w;
    struct device *host = machine_find_device(g->machine, "pci-host");
    rig_save(host, &w);
    assert_int_equal(rig_load(g->device, w.data, w.size), -EINVAL);
    state_writer_free(&w);
}

static void test_garbage(void **state)
{
    struct guest *g = *state;
    enable(g);
    rig_fuzz(g->machine, g->machine->mmio, MACHINE_ECAM_BASE, 32u << 15, 100000);
    rig_fuzz(g->machine, g->machine->pio, 0xcf8, 8, 100000);
    rig_fuzz(g->machine, g->machine->mmio, guest_ecam(g, 0), 256, 100000);
    g->device->class->reset(g->device);
    enable(g);
    assert_int_equal(bus_read(g->machine->mmio, g->bar, 4), 0x55667788);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_both_mechanisms_see_the_same),
        TEST(test_port_writes_with_byte_enables),
        TEST(test_reset_control_register),
        TEST(test_isa_bridge_keeps_routing),
        TEST(test_bar_sizing),
        TEST(test_bars_decode_only_when_enabled),
        TEST(test_bar_moves),
        TEST(test_overlapping_bar_waits_until_the_other_leaves),
        TEST(test_slots_are_exclusive),
        TEST(test_msix_masks_and_pending_bits),
        TEST(test_intx_follows_command_and_msix),
        TEST(test_state_survives_a_round_trip),
        TEST(test_state_of_another_device_is_refused),
        TEST(test_garbage),
    };
    return cmocka_run_group_tests_name("pci", tests, NULL, NULL);
}
