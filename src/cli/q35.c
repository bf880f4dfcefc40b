/*
 * Machine q35-1. A newer parat must not change it under an old VM: order, slots and paths below are
 * what saved VMs and guests' device names hang on. What changes gets a new model.
 */
#include "cli/q35.h"

#include <stdio.h>
#include <string.h>

#include "cli/compose.h"
#include "device/legacy/acpi_pm.h"
#include "device/legacy/debug_exit.h"
#include "device/legacy/fw_cfg.h"
#include "device/legacy/i8042.h"
#include "device/legacy/ioapic.h"
#include "device/legacy/pic.h"
#include "device/legacy/pit.h"
#include "device/legacy/rtc.h"
#include "device/legacy/serial.h"
#include "device/legacy/system_port.h"
#include "device/pci/pci.h"
#include "device/virtio/virtio_blk.h"
#include "device/virtio/virtio_console.h"
#include "device/virtio/virtio_net.h"
#include "device/virtio/virtio_pci.h"
#include "device/virtio/virtio_rng.h"

/* Slots of PCI bus 0. The host bridge has 0, the ISA bridge 31. */
enum {
    SLOT_RNG = 1,
    SLOT_CONSOLE = 2,
    SLOT_NET = 3,
    SLOT_DISK = SLOT_NET + RUN_NETS_MAX,
    SLOT_END = SLOT_DISK + RUN_DISKS_MAX,
};
_Static_assert(SLOT_END <= PCI_SLOT_LPC, "the slots do not fit");

static int add(struct composition *c, const struct device_class *class, const char *path,
               const void *config, struct err *err)
{
    return machine_add_device(c->machine, class, path, config, NULL, err);
}

/* Chips first: the others' lines end there. */
static int add_chips(struct composition *c, struct err *err)
{
    static const struct {
        const struct device_class *class;
        const char *path;
    } chips[] = {
        {&ioapic_class, "legacy/ioapic"},
        {&pic_class, "legacy/pic"},
        {&pit_class, "legacy/pit"},
        {&rtc_class, "legacy/rtc"},
        {&system_port_class, "legacy/system-port"},
        {&i8042_class, "legacy/i8042"},
        {&acpi_pm_class, "legacy/acpi-pm"},
        {&fw_cfg_class, "legacy/fw-cfg"},
    };
    int error = 0;
    for (size_t i = 0; i < ARRAY_COUNT(chips) && !error; i++)
        error = add(c, chips[i].class, chips[i].path, NULL, err);
    return error;
}

static int add_serial(struct composition *c, struct err *err)
{
    struct serial_config config = {
        .port = SERIAL_COM1_PORT, .irq = SERIAL_COM1_IRQ, .console = c->console};
    return add(c, &serial_class, "legacy/serial0", &config, err);
}

static int add_debug_exit(struct composition *c, struct err *err)
{
    if (!c->options->has_debug_exit)
        return 0;
    struct debug_exit_config config = {.port = c->options->debug_exit_port};
    int error = add(c, &debug_exit_class, "legacy/debug-exit", &config, err);
    return error ? err_prefix(err, error, "--debug-exit 0x%x", config.port) : 0;
}

/* PCI */

static struct pci_host *host_of(struct composition *c)
{
    return pci_host_of(machine_find_device(c->machine, "pci/00:00.0/host"));
}

static int add_bridges(struct composition *c, struct err *err)
{
    int error = add(c, &pci_host_class, "pci/00:00.0/host", NULL, err);
    if (error)
        return error;
    struct pci_lpc_config lpc = {.host = host_of(c)};
    return add(c, &pci_lpc_class, "pci/00:1f.0/lpc", &lpc, err);
}

/* config begins with its struct virtio_attach. */
static int add_virtio(struct composition *c, const struct device_class *class, unsigned slot,
                      struct virtio_attach *config, struct err *err)
{
    struct virtio_pci_config pci = {.host = host_of(c), .slot = slot};
    *config = (struct virtio_attach) {.attach = virtio_pci_attach, .config = &pci};
    char path[64];
    snprintf(path, sizeof path, "pci/00:%02x.0/%s", slot, class->name);
    return add(c, class, path, config, err);
}

static int add_rng(struct composition *c, struct err *err)
{
    struct virtio_rng_config config = {0};
    return add_virtio(c, &virtio_rng_class, SLOT_RNG, &config.transport, err);
}

static int add_virtio_console(struct composition *c, struct err *err)
{
    struct virtio_console_config config = {.console = c->virtio_console};
    if (!c->virtio_console)
        return 0;
    return add_virtio(c, &virtio_console_class, SLOT_CONSOLE, &config.transport, err);
}

static int add_nets(struct composition *c, struct err *err)
{
    /* Locally administered; cards of different VMs meet on no wire. */
    static const uint8_t default_mac[VIRTIO_NET_MAC_SIZE] = {0x52, 0x70, 0x61, 0x72, 0x61, 0};
    int error = 0;
    for (unsigned i = 0; i < c->options->net_count && !error; i++) {
        const struct run_net *net = &c->options->nets[i];
        struct virtio_net_config config = {.net = c->nets[i]};
        memcpy(config.mac, net->has_mac ? net->mac : default_mac, sizeof config.mac);
        if (!net->has_mac)
            config.mac[5] = (uint8_t)i;
        if (!net->none)
            error = add_virtio(c, &virtio_net_class, SLOT_NET + i, &config.transport, err);
    }
    return error;
}

static int add_disks(struct composition *c, struct err *err)
{
    int error = 0;
    for (unsigned i = 0; i < c->options->disk_count && !error; i++) {
        const char *serial = c->options->disks[i].serial;
        struct virtio_blk_config config = {.disk = c->disks[i],
                                           .serial = *serial ? serial : NULL,
                                           .queue_count = c->options->cpus};
        error = add_virtio(c, &virtio_blk_class, SLOT_DISK + i, &config.transport, err);
    }
    return error;
}

int q35_add_devices(struct composition *c, struct err *err)
{
    static int (*const steps[])(struct composition * c, struct err * err) = {
        add_chips,          add_serial, add_bridges, add_rng,
        add_virtio_console, add_nets,   add_disks,   add_debug_exit,
    };
    int error = 0;
    for (size_t i = 0; i < ARRAY_COUNT(steps) && !error; i++)
        error = steps[i](c, err);
    return error;
}
