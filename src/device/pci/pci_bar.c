/*
 * Base address registers: sizing, enabling and moving (PCI 3.0 section 6.2.5.1). What the guest
 * wants and what the buses hold may differ: a BAR laid over another range stays unmapped until the
 * other leaves. vCPU threads; each function's device lock guards its registers, the host's map lock
 * the mappings of all functions.
 */
#include "device/pci/pci.h"

#include <errno.h>

#include "device/pci/pci_int.h"
#include "vm/machine.h"

/* Physical addresses have at most 52 bits; a BAR beyond cannot be reached. */
#define ADDRESS_LIMIT (1ull << 52)

static uint32_t bar_flags(enum pci_bar_kind kind)
{
    switch (kind) {
    case PCI_BAR_IO:
        return PCI_BAR_IS_IO;
    case PCI_BAR_MEM64:
        return PCI_BAR_IS_64;
    default:
        return 0;
    }
}

int pci_function_add_bar(struct pci_function *function, unsigned index, enum pci_bar_kind kind,
                         uint64_t size, const struct bus_ops *ops, void *context)
{
    bool wide = kind == PCI_BAR_MEM64;
    if (index + wide >= PCI_BARS || function->bar[index].kind != PCI_BAR_NONE || size < 16 ||
        size & (size - 1) || (!wide && size > 1u << 31))
        return -EINVAL;
    uint64_t base = pci_host_reserve(function->host, kind, size);
    if (!base)
        return -ENOSPC;
    function->bar[index] = (struct pci_bar) {
        .kind = kind, .size = size, .reset_base = base, .ops = ops, .context = context};
    unsigned at = PCI_BAR0 + index * 4;
    store_le32(function->reset_config + at, (uint32_t)base | bar_flags(kind));
    store_le32(function->write_mask + at, (uint32_t) ~(size - 1));
    if (wide) {
        store_le32(function->reset_config + at + 4, (uint32_t)(base >> 32));
        store_le32(function->write_mask + at + 4, (uint32_t)(~(size - 1) >> 32));
    }
    return 0;
}

/* Where the guest wants the BAR; false: nowhere. */
static bool bar_wanted(const struct pci_function *function, unsigned index, uint64_t *base)
{
    const struct pci_bar *bar = &function->bar[index];
    const uint8_t *at = function->config + PCI_BAR0 + index * 4;
    uint16_t command = load_le16(function->config + PCI_COMMAND);
    uint64_t limit = ADDRESS_LIMIT;
    if (bar->kind == PCI_BAR_IO) {
        *base = load_le32(at) & ~PCI_BAR_IO_BITS;
        limit = 0x10000;
    } else {
        *base = load_le32(at) & ~PCI_BAR_MEM_BITS;
        if (bar->kind == PCI_BAR_MEM64)
            *base |= (uint64_t)load_le32(at + 4) << 32;
    }
    unsigned enable = bar->kind == PCI_BAR_IO ? PCI_COMMAND_IO : PCI_COMMAND_MEMORY;
    return command & enable && *base && range_fits(*base, bar->size, limit);
}

static struct bus *bar_bus(const struct pci_function *function, const struct pci_bar *bar)
{
    struct machine *machine = function->device->machine;
    return bar->kind == PCI_BAR_IO ? machine->pio : machine->mmio;
}

void pci_function_set_doorbells(struct pci_function *function, unsigned bar,
                                const struct pci_doorbell *doorbells, unsigned count)
{
    function->bar[bar].doorbells = doorbells;
    function->bar[bar].doorbell_count = count;
}

/* Map lock held. One that the engine has no room for is written to as any other register. */
static void hang_doorbells(struct pci_function *function, const struct pci_bar *bar, bool add)
{
    const struct machine *machine = function->device->machine;
    const struct engine_ops *engine = machine->engine;
    for (unsigned i = 0; i < bar->doorbell_count; i++) {
        const struct pci_doorbell *bell = &bar->doorbells[i];
        gpa_t at = gpa(bar->mapped_base + bell->offset);
        (void)(add ? engine->doorbell_add : engine->doorbell_remove)(machine->engine_vm, at,
                                                                     bell->size, bell->fd);
    }
}

/* Map lock held. */
static void unmap(struct pci_function *function, struct pci_bar *bar)
{
    if (bar->mapped) {
        hang_doorbells(function, bar, false);
        bus_remove(bar_bus(function, bar), bar->mapped_base);
    }
    bar->mapped = false;
}

/* Map lock held. */
static void try_map(struct pci_function *function, struct pci_bar *bar)
{
    struct bus_range range = {.start = bar->base,
                              .size = bar->size,
                              .ops = bar->ops,
                              .context = bar->context,
                              .device = function->device};
    if (!bar->wanted || bar->mapped || bus_add(bar_bus(function, bar), &range) != 0)
        return;
    bar->mapped = true;
    bar->mapped_base = bar->base;
    hang_doorbells(function, bar, true);
}

/* Map lock held. After a range became free, BARs of any function may fit. */
static void try_map_all(struct pci_host *host)
{
    for (unsigned slot = 0; slot < PCI_SLOTS; slot++)
        for (unsigned i = 0; host->slot[slot] && i < PCI_BARS; i++)
            try_map(host->slot[slot], &host->slot[slot]->bar[i]);
}

void pci_bar_update(struct pci_function *function)
{
    bool changed = false, blocked = false;
    pthread_mutex_lock(&function->host->map_lock);
    for (unsigned i = 0; i < PCI_BARS; i++) {
        struct pci_bar *bar = &function->bar[i];
        uint64_t base = 0;
        bool wanted = bar->kind != PCI_BAR_NONE && bar_wanted(function, i, &base);
        if (wanted == bar->wanted && (!wanted || base == bar->base))
            continue;
        unmap(function, bar);
        bar->wanted = wanted;
        bar->base = base;
        changed = true;
    }
    if (changed)
        try_map_all(function->host);
    for (unsigned i = 0; changed && i < PCI_BARS; i++)
        blocked |= function->bar[i].wanted && !function->bar[i].mapped;
    pthread_mutex_unlock(&function->host->map_lock);
    if (blocked)
        device_guest_error(function->device, "a BAR lies over something else");
}

void pci_bar_unmap_all(struct pci_function *function)
{
    pthread_mutex_lock(&function->host->map_lock);
    for (unsigned i = 0; i < PCI_BARS; i++) {
        unmap(function, &function->bar[i]);
        function->bar[i].wanted = false;
    }
    pthread_mutex_unlock(&function->host->map_lock);
}

static const struct pci_bar *reachable(struct pci_function *function, unsigned index,
                                       uint64_t offset, unsigned size)
{
    if (index >= PCI_BARS)
        return NULL;
    const struct pci_bar *bar = &function->bar[index];
    return bar->kind != PCI_BAR_NONE && range_fits(offset, size, bar->size) ? bar : NULL;
}

uint64_t pci_bar_read(struct pci_function *function, unsigned index, uint64_t offset, unsigned size)
{
    const struct pci_bar *bar = reachable(function, index, offset, size);
    if (!bar || !bar->ops->read)
        return size_mask(size);
    return bar->ops->read(bar->context, offset, size) & size_mask(size);
}

void pci_bar_write(struct pci_function *function, unsigned index, uint64_t offset, unsigned size,
                   uint64_t value)
{
    const struct pci_bar *bar = reachable(function, index, offset, size);
    if (bar && bar->ops->write)
        bar->ops->write(bar->context, offset, size, value & size_mask(size));
}
