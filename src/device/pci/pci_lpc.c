/*
 * The ISA (LPC) bridge of the ICH9, 00:1f.0: its presence tells systems that there are ISA
 * devices. The PIRQ routing registers keep what is written; INTx pins go to the IOAPIC only
 * (vm/pci_irq.h), so nothing follows from them. vCPU threads, device lock held.
 *
 * Intel I/O Controller Hub 9 datasheet, section 13.1.
 */
#include "device/pci/pci.h"
#include "vm/state.h"

#define PIRQA_ROUT    0x60 /* to PIRQD */
#define PIRQE_ROUT    0x68 /* to PIRQH */
#define PIRQ_UNROUTED 0x80

struct pci_lpc {
    struct device device;
    struct pci_function function;
};

static struct pci_function *lpc_function(struct device *device)
{
    return &container_of(device, struct pci_lpc, device)->function;
}

static int lpc_create(struct device *device, const void *config, struct err *err)
{
    static const struct pci_id id = {
        .vendor = 0x8086, .device = 0x2918, .class_code = 0x060100, .revision = 2};
    const struct pci_lpc_config *lpc_config = config;
    struct pci_function *function = lpc_function(device);
    int error = pci_function_init(function, device, lpc_config->host, PCI_SLOT_LPC, &id, err);
    if (error)
        return error;
    memset(function->reset_config + PIRQA_ROUT, PIRQ_UNROUTED, 4);
    memset(function->reset_config + PIRQE_ROUT, PIRQ_UNROUTED, 4);
    pci_function_set_writable(function, PIRQA_ROUT, 4);
    pci_function_set_writable(function, PIRQE_ROUT, 4);
    return 0;
}

static void lpc_reset(struct device *device)
{
    pci_function_reset(lpc_function(device));
}

static void lpc_save(struct device *device, struct state_writer *w)
{
    pci_function_save(lpc_function(device), w);
}

static int lpc_load(struct device *device, struct state_reader *r, struct err *err)
{
    return pci_function_load(lpc_function(device), r, err);
}

static void lpc_destroy(struct device *device)
{
    pci_function_destroy(lpc_function(device));
}

const struct device_class pci_lpc_class = {
    .name = "lpc",
    .size = sizeof(struct pci_lpc),
    .create = lpc_create,
    .reset = lpc_reset,
    .save = lpc_save,
    .load = lpc_load,
    .destroy = lpc_destroy,
};
