/*
 * MSI-X (PCI 3.0 section 6.8.2): table and pending bits in a BAR of their own, per-vector and
 * function mask. A message that may not go out now (masked, bus mastering off) stays pending.
 * Any thread, device lock held.
 */
#include "device/pci/pci.h"

#include <errno.h>
#include <string.h>

#include "device/pci/pci_int.h"
#include "vm/machine.h"
#include "vm/state.h"

static uint16_t control(const struct pci_function *function)
{
    return load_le16(function->config + function->msix.capability + PCI_MSIX_CONTROL);
}

bool pci_msix_enabled(const struct pci_function *function)
{
    return function->msix.count && control(function) & PCI_MSIX_CONTROL_ENABLE;
}

static void set_pending(struct pci_msix *msix, unsigned vector, bool pending)
{
    if (pending)
        msix->pending[vector / 64] |= BIT(vector % 64);
    else
        msix->pending[vector / 64] &= ~BIT(vector % 64);
}

static bool is_pending(const struct pci_msix *msix, unsigned vector)
{
    return msix->pending[vector / 64] >> (vector % 64) & 1;
}

static bool may_send(const struct pci_function *function, unsigned vector)
{
    return !(control(function) & PCI_MSIX_CONTROL_MASK) && pci_bus_master(function) &&
           !(function->msix.table[vector][3] & PCI_MSIX_ENTRY_MASKED);
}

void pci_msix_notify(struct pci_function *function, unsigned vector)
{
    struct pci_msix *msix = &function->msix;
    if (vector >= msix->count || !pci_msix_enabled(function))
        return;
    bool send = may_send(function, vector);
    set_pending(msix, vector, !send);
    const uint32_t *entry = msix->table[vector];
    if (send)
        machine_send_msi(function->device->machine, (uint64_t)entry[1] << 32 | entry[0], entry[2]);
}

void pci_msix_update(struct pci_function *function)
{
    for (unsigned i = 0; i < function->msix.count; i++)
        if (is_pending(&function->msix, i))
            pci_msix_notify(function, i);
}

static uint32_t read32(struct pci_function *function, uint64_t offset)
{
    struct pci_msix *msix = &function->msix;
    if (offset < msix->count * PCI_MSIX_ENTRY_SIZE)
        return msix->table[offset / PCI_MSIX_ENTRY_SIZE][offset / 4 % 4];
    uint64_t bits = offset - PCI_MSIX_PBA_OFFSET;
    if (offset >= PCI_MSIX_PBA_OFFSET && bits < sizeof msix->pending)
        return (uint32_t)(msix->pending[bits / 8] >> (bits % 8 * 8));
    return 0;
}

static void write32(struct pci_function *function, uint64_t offset, uint32_t value)
{
    struct pci_msix *msix = &function->msix;
    if (offset >= msix->count * PCI_MSIX_ENTRY_SIZE)
        return; /* pending bits are read-only */
    unsigned vector = (unsigned)(offset / PCI_MSIX_ENTRY_SIZE), word = offset / 4 % 4;
    msix->table[vector][word] = word == 3 ? value & PCI_MSIX_ENTRY_MASKED : value;
    if (word == 3 && is_pending(msix, vector))
        pci_msix_notify(function, vector);
}

/* Aligned accesses of 4 and 8 bytes are all that software may make. */
static bool well_formed(struct pci_function *function, uint64_t offset, unsigned size)
{
    if ((size == 4 || size == 8) && offset % size == 0)
        return true;
    device_guest_error(function->device, "MSI-X table access of %u bytes at %#llx", size,
                       (unsigned long long)offset);
    return false;
}

static uint64_t msix_read(void *context, uint64_t offset, unsigned size)
{
    struct pci_function *function = context;
    if (!well_formed(function, offset, size))
        return ~0ull;
    uint64_t value = read32(function, offset);
    return size == 8 ? value | (uint64_t)read32(function, offset + 4) << 32 : value;
}

static void msix_write(void *context, uint64_t offset, unsigned size, uint64_t value)
{
    struct pci_function *function = context;
    if (!well_formed(function, offset, size))
        return;
    write32(function, offset, (uint32_t)value);
    if (size == 8)
        write32(function, offset + 4, (uint32_t)(value >> 32));
}

static const struct bus_ops msix_ops = {.read = msix_read, .write = msix_write};

int pci_function_add_msix(struct pci_function *function, unsigned bar, unsigned count)
{
    if (count == 0 || count > PCI_MSIX_VECTORS_MAX)
        return -EINVAL;
    uint8_t body[10];
    store_le16(body, (uint16_t)(count - 1));
    store_le32(body + 2, PCI_MSIX_TABLE_OFFSET | bar);
    store_le32(body + 6, PCI_MSIX_PBA_OFFSET | bar);
    unsigned at = pci_function_add_capability(function, PCI_CAPABILITY_MSIX, body, sizeof body);
    if (!at)
        return -ENOSPC;
    function->msix.capability = at;
    function->msix.count = count;
    store_le16(function->write_mask + at + PCI_MSIX_CONTROL,
               PCI_MSIX_CONTROL_ENABLE | PCI_MSIX_CONTROL_MASK);
    pci_msix_reset(function);
    return pci_function_add_bar(function, bar, PCI_BAR_MEM64, PCI_MSIX_BAR_SIZE, &msix_ops,
                                function);
}

void pci_msix_reset(struct pci_function *function)
{
    struct pci_msix *msix = &function->msix;
    memset(msix->table, 0, sizeof msix->table);
    memset(msix->pending, 0, sizeof msix->pending);
    for (unsigned i = 0; i < msix->count; i++)
        msix->table[i][3] = PCI_MSIX_ENTRY_MASKED;
}

void pci_msix_save(struct pci_function *function, struct state_writer *w)
{
    struct pci_msix *msix = &function->msix;
    if (!msix->count)
        return;
    state_put(w, "pci_msix_table", msix->table, msix->count * sizeof msix->table[0]);
    state_put(w, "pci_msix_pending", msix->pending, sizeof msix->pending);
}

void pci_msix_load(struct pci_function *function, struct state_reader *r)
{
    struct pci_msix *msix = &function->msix;
    if (!msix->count)
        return;
    state_get(r, "pci_msix_table", msix->table, msix->count * sizeof msix->table[0]);
    state_get(r, "pci_msix_pending", msix->pending, sizeof msix->pending);
    for (unsigned i = 0; i < msix->count; i++)
        msix->table[i][3] &= PCI_MSIX_ENTRY_MASKED;
    for (unsigned i = msix->count; i < PCI_MSIX_VECTORS_MAX; i++)
        set_pending(msix, i, false);
}
