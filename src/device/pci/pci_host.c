/*
 * The host bridge (Intel 82G33 "Q35" MCH, 00:00.0): configuration mechanism #1 at ports 0xcf8 and
 * 0xcfc (PCI 3.0 section 3.2.2.3.2), memory-mapped configuration (PCI Express Base, section 7.2.2)
 * and, because it shares the ports, the reset control register 0xcf9 (ICH9 section 13.7.5).
 *
 * vCPU threads. The ports and the ECAM are registered without a device: their handlers take the
 * lock of the function that is addressed, and only that.
 */
#include "device/pci/pci.h"

#include <errno.h>
#include <stdatomic.h>

#include "device/pci/pci_int.h"
#include "vm/machine.h"
#include "vm/state.h"

#define ADDRESS_ENABLE 0x80000000u

/* Q35 PCIEXBAR: where the ECAM lies; bits 2:1 zero: 256 MiB; bit 0: enabled. */
#define PCIEXBAR 0x60

#define RESET_CONTROL_RST_CPU  0x04
#define RESET_CONTROL_WRITABLE 0x0e

#define IO_BASE 0xc000u
#define IO_END  0x10000u
/* A 64-bit BAR up to this size still goes below 4 GiB, where every guest reaches it. */
#define SMALL_BAR (1u << 20)

static struct pci_function *function_at(struct pci_host *host, unsigned bus, unsigned device,
                                        unsigned number)
{
    return bus == 0 && number == 0 && device < PCI_SLOTS ? host->slot[device] : NULL;
}

/* One access of 1, 2 or 4 bytes inside a dword; all ones where there is no function. */
static uint32_t locked_read(struct pci_function *function, unsigned offset, unsigned size)
{
    if (!function)
        return (uint32_t)size_mask(size);
    pthread_mutex_lock(&function->device->lock);
    uint32_t value = pci_config_read(function, offset, size);
    pthread_mutex_unlock(&function->device->lock);
    return value;
}

static void locked_write(struct pci_function *function, unsigned offset, unsigned size,
                         uint32_t value)
{
    if (!function)
        return;
    pthread_mutex_lock(&function->device->lock);
    pci_config_write(function, offset, size, value);
    pthread_mutex_unlock(&function->device->lock);
}

/* --- ports 0xcf8 to 0xcfb --- */

static uint64_t address_read(void *context, uint64_t offset, unsigned size)
{
    struct pci_host *host = context;
    if (size == 1 && offset == 1)
        return atomic_load(&host->reset_control);
    return size == 4 ? atomic_load(&host->address) : ~0ull;
}

static void address_write(void *context, uint64_t offset, unsigned size, uint64_t value)
{
    struct pci_host *host = context;
    if (size == 4)
        atomic_store(&host->address, (uint32_t)value & (ADDRESS_ENABLE | 0xfffffc));
    if (size != 1 || offset != 1)
        return;
    uint8_t bits = (uint8_t)value & RESET_CONTROL_WRITABLE;
    uint8_t before = atomic_exchange(&host->reset_control, bits);
    if (bits & ~before & RESET_CONTROL_RST_CPU)
        machine_request_reset(host->device.machine);
}

static const struct bus_ops address_ops = {.read = address_read, .write = address_write};

/* --- ports 0xcfc to 0xcff --- */

static struct pci_function *addressed(struct pci_host *host, uint64_t offset, unsigned *reg)
{
    uint32_t address = atomic_load(&host->address);
    *reg = (address & 0xfc) + (unsigned)offset;
    if (!(address & ADDRESS_ENABLE))
        return NULL;
    return function_at(host, address >> 16 & 0xff, address >> 11 & 0x1f, address >> 8 & 7);
}

static uint64_t data_read(void *context, uint64_t offset, unsigned size)
{
    unsigned reg;
    struct pci_function *function = addressed(context, offset, &reg);
    return locked_read(function, reg, size);
}

static void data_write(void *context, uint64_t offset, unsigned size, uint64_t value)
{
    unsigned reg;
    struct pci_function *function = addressed(context, offset, &reg);
    locked_write(function, reg, size, (uint32_t)value);
}

static const struct bus_ops data_ops = {.read = data_read, .write = data_write};

/* --- ECAM: bus 27:20, device 19:15, function 14:12, register 11:0 --- */

static struct pci_function *ecam_function(struct pci_host *host, uint64_t offset)
{
    return function_at(host, (unsigned)(offset >> 20), offset >> 15 & 0x1f, offset >> 12 & 7);
}

/* The bus may hand over any size at any offset; registers are at most a dword. */
static uint64_t ecam_read(void *context, uint64_t offset, unsigned size)
{
    uint64_t value = 0;
    for (unsigned done = 0, part; done < size; done += part) {
        uint64_t at = offset + done;
        part = MIN(size - done, 4 - (unsigned)(at & 3));
        if (part == 3)
            part = 1;
        value |= (uint64_t)locked_read(ecam_function(context, at), at & 0xfff, part) << (done * 8);
    }
    return value;
}

static void ecam_write(void *context, uint64_t offset, unsigned size, uint64_t value)
{
    for (unsigned done = 0, part; done < size; done += part) {
        uint64_t at = offset + done;
        part = MIN(size - done, 4 - (unsigned)(at & 3));
        if (part == 3)
            part = 1;
        locked_write(ecam_function(context, at), at & 0xfff, part, (uint32_t)(value >> (done * 8)));
    }
}

static const struct bus_ops ecam_ops = {.read = ecam_read, .write = ecam_write};

/* --- address windows --- */

static uint64_t reserve(uint64_t *next, uint64_t end, uint64_t size)
{
    uint64_t base = align_up(*next, size);
    if (base < *next || !range_fits(base, size, end))
        return 0;
    *next = base + size;
    return base;
}

uint64_t pci_host_reserve(struct pci_host *host, enum pci_bar_kind kind, uint64_t size)
{
    uint64_t page = MAX(size, (uint64_t)4096); /* no two memory BARs in one page */
    switch (kind) {
    case PCI_BAR_IO:
        return reserve(&host->next_io, IO_END, size);
    case PCI_BAR_MEM64:
        if (size > SMALL_BAR)
            return reserve(&host->next_mem64, host->device.machine->pci64_base + MACHINE_PCI64_SIZE,
                           page);
        return reserve(&host->next_mem32, MACHINE_PCI32_END, page);
    case PCI_BAR_MEM32:
        return reserve(&host->next_mem32, MACHINE_PCI32_END, page);
    default:
        return 0;
    }
}

/* --- the device --- */

struct pci_host *pci_host_of(struct device *device)
{
    return container_of(device, struct pci_host, device);
}

static int add_ranges(struct pci_host *host)
{
    struct machine *machine = host->device.machine;
    const struct bus_range address = {0xcf8, 4, &address_ops, host, NULL};
    const struct bus_range data = {0xcfc, 4, &data_ops, host, NULL};
    const struct bus_range ecam = {MACHINE_ECAM_BASE, MACHINE_ECAM_SIZE, &ecam_ops, host, NULL};
    int error = bus_add(machine->pio, &address);
    if (error)
        return error;
    error = bus_add(machine->pio, &data);
    if (error)
        goto remove_address;
    error = bus_add(machine->mmio, &ecam);
    if (error)
        goto remove_data;
    return 0;

remove_data:
    bus_remove(machine->pio, data.start);
remove_address:
    bus_remove(machine->pio, address.start);
    return error;
}

static int host_create(struct device *device, const void *config, struct err *err)
{
    static const struct pci_id id = {
        .vendor = 0x8086, .device = 0x29c0, .class_code = 0x060000, .revision = 2};
    struct pci_host *host = pci_host_of(device);
    host->next_io = IO_BASE;
    host->next_mem32 = MACHINE_PCI32_BASE;
    host->next_mem64 = device->machine->pci64_base;
    int error = pci_function_init(&host->function, device, host, 0, &id, err);
    if (error)
        return error;
    store_le64(host->function.reset_config + PCIEXBAR, MACHINE_ECAM_BASE | 1);
    error = add_ranges(host);
    if (error)
        return err_set(err, -error, "%s: its ports or addresses are taken", device->path);
    pthread_mutex_init(&host->map_lock, NULL);
    return 0;
}

static void host_reset(struct device *device)
{
    struct pci_host *host = pci_host_of(device);
    atomic_store(&host->address, 0);
    atomic_store(&host->reset_control, 0);
    pci_function_reset(&host->function);
}

static void host_save(struct device *device, struct state_writer *w)
{
    struct pci_host *host = pci_host_of(device);
    state_put_u64(w, "address", atomic_load(&host->address));
    state_put_u64(w, "reset_control", atomic_load(&host->reset_control));
    pci_function_save(&host->function, w);
}

static int host_load(struct device *device, struct state_reader *r, struct err *err)
{
    struct pci_host *host = pci_host_of(device);
    uint64_t address = 0, reset_control = 0;
    state_get_u64(r, "address", &address);
    state_get_u64(r, "reset_control", &reset_control);
    atomic_store(&host->address, (uint32_t)address & (ADDRESS_ENABLE | 0xfffffc));
    atomic_store(&host->reset_control, (uint8_t)reset_control & RESET_CONTROL_WRITABLE);
    return pci_function_load(&host->function, r, err);
}

static void host_destroy(struct device *device)
{
    struct pci_host *host = pci_host_of(device);
    bus_remove(device->machine->mmio, MACHINE_ECAM_BASE);
    bus_remove(device->machine->pio, 0xcfc);
    bus_remove(device->machine->pio, 0xcf8);
    pci_function_destroy(&host->function);
    pthread_mutex_destroy(&host->map_lock);
}

const struct device_class pci_host_class = {
    .name = "pci-host",
    .size = sizeof(struct pci_host),
    .create = host_create,
    .reset = host_reset,
    .save = host_save,
    .load = host_load,
    .destroy = host_destroy,
};
