/*
 * A PCI function's config space: bytes with a write mask each, so that the guest can change only
 * what is meant to change; capabilities, INTx, reset and state. vCPU threads, device lock held.
 *
 * PCI Local Bus Specification 3.0, chapter 6.
 */
#include "device/pci/pci.h"

#include <errno.h>
#include <string.h>

#include "device/pci/pci_int.h"
#include "vm/machine.h"
#include "vm/pci_irq.h"
#include "vm/state.h"

static void set_header(struct pci_function *function, const struct pci_id *id)
{
    uint8_t *config = function->reset_config, *mask = function->write_mask;
    store_le16(config + PCI_VENDOR_ID, id->vendor);
    store_le16(config + PCI_DEVICE_ID, id->device);
    config[PCI_REVISION_ID] = id->revision;
    store_le16(config + PCI_CLASS_CODE, (uint16_t)id->class_code);
    config[PCI_CLASS_CODE + 2] = (uint8_t)(id->class_code >> 16);
    store_le16(config + PCI_SUBSYSTEM_VENDOR_ID, id->subsystem_vendor);
    store_le16(config + PCI_SUBSYSTEM_ID, id->subsystem);
    store_le16(mask + PCI_COMMAND, PCI_COMMAND_WRITABLE);
    mask[PCI_CACHE_LINE_SIZE] = 0xff;
    mask[PCI_INTERRUPT_LINE] = 0xff;
    if (id->has_intx) {
        config[PCI_INTERRUPT_PIN] = 1;
        config[PCI_INTERRUPT_LINE] = (uint8_t)pci_irq_gsi(function->slot, 0);
    }
}

int pci_function_init(struct pci_function *function, struct device *device, struct pci_host *host,
                      unsigned slot, const struct pci_id *id, struct err *err)
{
    if (slot >= PCI_SLOTS)
        return err_set(err, EINVAL, "%s: there is no PCI slot %u", device->path, slot);
    if (host->slot[slot])
        return err_set(err, EEXIST, "%s: PCI slot %u is taken by %s", device->path, slot,
                       host->slot[slot]->device->path);
    *function = (struct pci_function) {.device = device,
                                       .host = host,
                                       .slot = slot,
                                       .capabilities_end = PCI_HEADER_END,
                                       .has_intx = id->has_intx};
    set_header(function, id);
    memcpy(function->config, function->reset_config, sizeof function->config);
    irq_source_init(&function->intx, device->machine->irq, pci_irq_gsi(slot, 0));
    host->slot[slot] = function;
    return 0;
}

void pci_function_destroy(struct pci_function *function)
{
    pci_bar_unmap_all(function);
    irq_source_set(&function->intx, false);
    function->host->slot[function->slot] = NULL;
}

unsigned pci_function_add_capability(struct pci_function *function, uint8_t id, const void *body,
                                     unsigned size)
{
    unsigned at = function->capabilities_end;
    if (!range_fits(at, size + 2, PCI_CONFIG_SIZE))
        return 0;
    uint8_t *config = function->reset_config;
    config[at] = id;
    config[at + 1] = config[PCI_CAPABILITIES];
    memcpy(config + at + 2, body, size);
    config[PCI_CAPABILITIES] = (uint8_t)at;
    config[PCI_STATUS] |= PCI_STATUS_CAPABILITIES;
    function->capabilities_end = (unsigned)align_up(at + 2 + size, 4);
    return at;
}

void pci_function_set_writable(struct pci_function *function, unsigned offset, unsigned size)
{
    memset(function->write_mask + offset, 0xff, size);
}

static uint16_t command(const struct pci_function *function)
{
    return load_le16(function->config + PCI_COMMAND);
}

bool pci_bus_master(const struct pci_function *function)
{
    return command(function) & PCI_COMMAND_BUS_MASTER;
}

void pci_intx_update(struct pci_function *function)
{
    if (!function->has_intx)
        return;
    uint8_t *status = function->config + PCI_STATUS;
    *status = (uint8_t)((*status & ~PCI_STATUS_INTERRUPT) |
                        (function->intx_level ? PCI_STATUS_INTERRUPT : 0));
    irq_source_set(&function->intx, function->intx_level &&
                                        !(command(function) & PCI_COMMAND_INTX_DISABLE) &&
                                        !pci_msix_enabled(function));
}

void pci_set_intx(struct pci_function *function, bool level)
{
    if (function->intx_level == level)
        return;
    function->intx_level = level;
    pci_intx_update(function);
}

uint32_t pci_config_read(struct pci_function *function, unsigned offset, unsigned size)
{
    if (!range_fits(offset, size, PCI_CONFIG_SIZE))
        return 0; /* no extended config space */
    if (function->ops && function->ops->config_reading)
        function->ops->config_reading(function, offset, size);
    uint32_t value = 0;
    memcpy(&value, function->config + offset, size);
    return value;
}

/* Brings everything that depends on config space into line with it. */
static void apply_config(struct pci_function *function)
{
    pci_bar_update(function);
    pci_intx_update(function);
    pci_msix_update(function);
}

void pci_config_write(struct pci_function *function, unsigned offset, unsigned size, uint32_t value)
{
    if (!range_fits(offset, size, PCI_CONFIG_SIZE))
        return;
    bool was_master = pci_bus_master(function);
    for (unsigned i = 0; i < size; i++) {
        uint8_t *byte = function->config + offset + i, mask = function->write_mask[offset + i];
        *byte = (uint8_t)((*byte & ~mask) | ((value >> (i * 8)) & mask));
    }
    apply_config(function);
    if (!function->ops)
        return;
    bool master = pci_bus_master(function);
    if (master != was_master && function->ops->bus_master_changed)
        function->ops->bus_master_changed(function, master);
    if (function->ops->config_written)
        function->ops->config_written(function, offset, size);
}

void pci_function_reset(struct pci_function *function)
{
    memcpy(function->config, function->reset_config, sizeof function->config);
    function->intx_level = false;
    pci_msix_reset(function);
    apply_config(function);
}

void pci_function_save(struct pci_function *function, struct state_writer *w)
{
    state_put(w, "pci_config", function->config, sizeof function->config);
    state_put_u64(w, "pci_intx", function->intx_level);
    pci_msix_save(function, w);
}

int pci_function_load(struct pci_function *function, struct state_reader *r, struct err *err)
{
    uint8_t config[PCI_CONFIG_SIZE];
    uint64_t level = 0;
    if (!state_get(r, "pci_config", config, sizeof config))
        return err_set(err, EINVAL, "saved state: %s: no config space", r->path);
    if (memcmp(config, function->reset_config, PCI_COMMAND) != 0)
        return err_set(err, EINVAL, "saved state: %s: slot %u held another device (%04x:%04x)",
                       r->path, function->slot, load_le16(config), load_le16(config + 2));
    /* Only what the guest could have written is taken over. */
    for (unsigned i = 0; i < PCI_CONFIG_SIZE; i++) {
        uint8_t mask = function->write_mask[i];
        function->config[i] = (uint8_t)((function->reset_config[i] & ~mask) | (config[i] & mask));
    }
    state_get_u64(r, "pci_intx", &level);
    function->intx_level = level;
    pci_msix_load(function, r);
    apply_config(function);
    return 0;
}
