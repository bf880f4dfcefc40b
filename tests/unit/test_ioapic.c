/* device/ioapic: registers, edges, levels with remote IRR and EOI, messages, state, garbage. */
#include "rig.h"

#include "device/legacy/ioapic.h"

#define BASE MACHINE_IOAPIC_BASE

struct fixture {
    struct machine *machine;
    struct device *device;
    struct irq_source source[IRQ_LINE_COUNT];
    struct irq_eoi_notifier notifier;
    unsigned eoi_count;
};

/* As a resampling notifier does: the device's level falls at the end of interrupt. */
static void on_eoi(struct irq_eoi_notifier *notifier, unsigned line)
{
    struct fixture *f = container_of(notifier, struct fixture, notifier);
    assert_int_equal(line, 18);
    f->eoi_count++;
    irq_source_set(&f->source[18], false);
}

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);
    f->machine = rig_create(1 << 20, 1);
    f->device = rig_add(f->machine, &ioapic_class, NULL);
    for (unsigned i = 0; i < IRQ_LINE_COUNT; i++)
        irq_source_init(&f->source[i], f->machine->irq, i);
    f->notifier = (struct irq_eoi_notifier) {.eoi = on_eoi, .line = 18};
    irq_lines_add_eoi_notifier(f->machine->irq, &f->notifier);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    rig_destroy(f->machine);
    free(f);
    return 0;
}

static uint32_t get(struct fixture *f, unsigned index)
{
    bus_write(f->machine->mmio, BASE, 4, index);
    return (uint32_t)bus_read(f->machine->mmio, BASE + 0x10, 4);
}

static void set(struct fixture *f, unsigned index, uint32_t value)
{
    bus_write(f->machine->mmio, BASE, 4, index);
    bus_write(f->machine->mmio, BASE + 0x10, 4, value);
}

static void set_entry(struct fixture *f, unsigned pin, uint64_t entry)
{
    set(f, 0x11 + pin * 2, (uint32_t)(entry >> 32));
    set(f, 0x10 + pin * 2, (uint32_t)entry);
}

static struct engine_fake_log sent(struct fixture *f)
{
    struct engine_fake_log log;
    engine_fake_read_log(f->machine->engine_vm, &log);
    return log;
}

static void eoi(struct fixture *f, uint8_t vector)
{
    f->machine->chip_eoi(f->machine->chip_eoi_context, vector);
}

static void test_registers(void **state)
{
    struct fixture *f = *state;
    assert_int_equal(get(f, 1), 0x00170020);
    set(f, 0, 0xff000000);
    assert_int_equal(get(f, 0), 0x0f000000);
    assert_int_equal(get(f, 0x10), 0x00010000);
    set_entry(f, 5, ~0ull);
    assert_int_equal(get(f, 0x1a), 0x0001afff); /* status and remote IRR are read-only */
    assert_int_equal(get(f, 0x1b), 0xff000000);
    assert_int_equal(get(f, 0x40), 0xffffffff); /* behind the table */
}

static void test_edge(void **state)
{
    struct fixture *f = *state;
    irq_source_pulse(&f->source[4]); /* masked: lost */
    set_entry(f, 4, 0x0300000000000831);
    assert_int_equal(sent(f).msi_count, 0);
    irq_source_set(&f->source[4], true);
    irq_source_set(&f->source[4], true);
    assert_int_equal(sent(f).msi_count, 1);
    assert_int_equal(sent(f).msi[0].address, 0xfee03004); /* logical destination 3 */
    assert_int_equal(sent(f).msi[0].data, 0x31);
    irq_source_set(&f->source[4], false);
    irq_source_pulse(&f->source[4]);
    assert_int_equal(sent(f).msi_count, 2);
}

static void test_timer_is_at_pin_2(void **state)
{
    struct fixture *f = *state;
    set_entry(f, 2, 0x30);
    set_entry(f, 0, 0x99);
    irq_source_pulse(&f->source[0]);
    irq_source_pulse(&f->source[2]);
    assert_int_equal(sent(f).msi_count, 1);
    assert_int_equal(sent(f).msi[0].data, 0x30);
}

static void test_level_and_remote_irr(void **state)
{
    struct fixture *f = *state;
    set_entry(f, 16, 0x8041);
    irq_source_set(&f->source[16], true);
    assert_int_equal(sent(f).msi_count, 1);
    assert_int_equal(sent(f).msi[0].data, 0xc041);
    assert_int_equal(get(f, 0x30), 0xc041); /* remote IRR */
    irq_source_set(&f->source[16], false);
    irq_source_set(&f->source[16], true);
    assert_int_equal(sent(f).msi_count, 1); /* not before the end of interrupt */
    eoi(f, 0x42);
    assert_int_equal(sent(f).msi_count, 1);
    eoi(f, 0x41);
    assert_int_equal(sent(f).msi_count, 2); /* still high: again */
    irq_source_set(&f->source[16], false);
    bus_write(f->machine->mmio, BASE + 0x40, 4, 0x41); /* the EOI register */
    assert_int_equal(get(f, 0x30), 0x8041);
    assert_int_equal(sent(f).msi_count, 2);
}

static void test_eoi_notifier_lowers_the_line(void **state)
{
    struct fixture *f = *state;
    set_entry(f, 18, 0x8050);
    irq_source_set(&f->source[18], true);
    eoi(f, 0x50);
    assert_int_equal(f->eoi_count, 1);
    assert_int_equal(sent(f).msi_count, 1); /* not sent again: the notifier came first */
    eoi(f, 0x50);
    assert_int_equal(f->eoi_count, 1);
}

static void test_unmasking_a_level(void **state)
{
    struct fixture *f = *state;
    irq_source_set(&f->source[17], true);
    set_entry(f, 17, 0x18055);
    assert_int_equal(sent(f).msi_count, 0);
    set(f, 0x32, 0x8055);
    assert_int_equal(sent(f).msi_count, 1);
    set(f, 0x32, 0x10055); /* edge: remote IRR goes */
    assert_int_equal(get(f, 0x32), 0x10055);
}

static void test_state_round_trip(void **state)
{
    struct fixture *f = *state;
    set_entry(f, 16, 0x0100000000008041);
    irq_source_set(&f->source[16], true);
    set(f, 0, 0x05000000);
    struct machine *other = rig_create(1 << 20, 1);
    struct device *copy = rig_add(other, &ioapic_class, NULL);
    rig_assert_round_trip(f->device, copy);
    struct engine_fake_log log;
    other->chip_eoi(other->chip_eoi_context, 0x41); /* the restored line is high */
    engine_fake_read_log(other->engine_vm, &log);
    assert_int_equal(log.msi_count, 1);
    rig_destroy(other);
}

static void test_garbage(void **state)
{
    struct fixture *f = *state;
    uint64_t seed = 3;
    for (unsigned i = 0; i < 5000; i++) {
        set(f, (unsigned)(rig_random(&seed) % 0x50), (uint32_t)rig_random(&seed));
        rig_fuzz(f->machine, f->machine->mmio, BASE + (i % 2 ? 0 : 0xff0), 0x10, 20);
        irq_source_set(&f->source[rig_random(&seed) % IRQ_LINE_COUNT], rig_random(&seed) & 1);
        eoi(f, (uint8_t)rig_random(&seed));
    }
    f->device->class->reset(f->device);
    assert_int_equal(get(f, 0x3e), 0x00010000);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_registers),
        TEST(test_edge),
        TEST(test_timer_is_at_pin_2),
        TEST(test_level_and_remote_irr),
        TEST(test_eoi_notifier_lowers_the_line),
        TEST(test_unmasking_a_level),
        TEST(test_state_round_trip),
        TEST(test_garbage),
    };
    return cmocka_run_group_tests_name("ioapic", tests, NULL, NULL);
}
