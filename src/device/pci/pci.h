/*
 * Conventional PCI on bus 0 (PCI Local Bus Specification 3.0): what a device needs to be a PCI
 * function, and the two devices that make the bus: host bridge and ISA bridge.
 *
 * A function belongs to a struct device, whose lock guards it; config space handlers and BAR
 * handlers run on vCPU threads with it held. Functions are created after the host bridge and
 * destroyed before it.
 *
 * Lock order: device lock -> the host's map lock -> the bus's own lock.
 */
#ifndef PARAT_DEVICE_PCI_PCI_H
#define PARAT_DEVICE_PCI_PCI_H

#include <stdbool.h>
#include <stdint.h>

#include "base/bits.h"
#include "base/err.h"
#include "device/pci/pci_defs.h"
#include "vm/bus.h"
#include "vm/device.h"
#include "vm/irq.h"

struct pci_host;
struct pci_function;

/* Device classes of the bus itself. pci_lpc takes a struct pci_lpc_config. */
extern const struct device_class pci_host_class; /* no config; slot 0 */
extern const struct device_class pci_lpc_class;

struct pci_lpc_config {
    struct pci_host *host;
};

#define PCI_SLOT_LPC 31

/* The bus of a device of pci_host_class. */
struct pci_host *pci_host_of(struct device *device);

struct pci_function_ops {
    /* All may be NULL; device lock held. The guest is about to read these config bytes. */
    void (*config_reading)(struct pci_function *function, unsigned offset, unsigned size);
    /* The guest wrote them; what is writable is already stored. */
    void (*config_written)(struct pci_function *function, unsigned offset, unsigned size);
    /* COMMAND.BUS_MASTER changed. */
    void (*bus_master_changed)(struct pci_function *function, bool on);
};

struct pci_id {
    uint16_t vendor, device;
    uint16_t subsystem_vendor, subsystem;
    uint32_t class_code; /* 24 bits: class, subclass, interface */
    uint8_t revision;
    bool has_intx; /* INTA */
};

enum pci_bar_kind { PCI_BAR_NONE, PCI_BAR_IO, PCI_BAR_MEM32, PCI_BAR_MEM64 };

/* A place in a BAR where a write of `size` bytes signals fd, on engines that can do it. */
struct pci_doorbell {
    uint64_t offset;
    unsigned size;
    int fd;
};

struct pci_bar {
    enum pci_bar_kind kind;
    uint64_t size;
    uint64_t reset_base; /* where parat puts it at reset, there being no firmware */
    const struct bus_ops *ops;
    void *context;
    const struct pci_doorbell *doorbells;
    unsigned doorbell_count;
    /* Guarded by the host's map lock. */
    bool wanted, mapped;
    uint64_t base;        /* where it is wanted */
    uint64_t mapped_base; /* where it is */
};

struct pci_msix {
    unsigned count; /* 0: no MSI-X */
    unsigned capability;
    uint32_t table[PCI_MSIX_VECTORS_MAX][4]; /* address low, high, data, control */
    uint64_t pending[PCI_MSIX_VECTORS_MAX / 64];
};

struct pci_function {
    struct device *device;
    struct pci_host *host;
    const struct pci_function_ops *ops;
    unsigned slot;
    uint8_t config[PCI_CONFIG_SIZE];
    uint8_t reset_config[PCI_CONFIG_SIZE];
    uint8_t write_mask[PCI_CONFIG_SIZE];
    unsigned capabilities_end;
    struct pci_bar bar[PCI_BARS];
    struct pci_msix msix;
    struct irq_source intx;
    bool has_intx;
    bool intx_level; /* what the device wants; the line also depends on COMMAND and MSI-X */
};

/*
 * Puts the function (always function 0) into its slot. -EEXIST when the slot is taken, -EINVAL
 * when there is no such slot; then pci_function_destroy is not called. Next come BARs and
 * capabilities, then the first reset.
 */
int pci_function_init(struct pci_function *function, struct device *device, struct pci_host *host,
                      unsigned slot, const struct pci_id *id, struct err *err) MUST_USE;
void pci_function_destroy(struct pci_function *function);

/* size: a power of two, 16 or more. A 64-bit BAR takes index and index + 1. -ENOSPC when the
 * window is full. */
int pci_function_add_bar(struct pci_function *function, unsigned index, enum pci_bar_kind kind,
                         uint64_t size, const struct bus_ops *ops, void *context) MUST_USE;
/* They go where the BAR goes. The array stays the caller's. Before the first reset, with an engine
 * that has doorbells. */
void pci_function_set_doorbells(struct pci_function *function, unsigned bar,
                                const struct pci_doorbell *doorbells, unsigned count);
/* body is what follows the two bytes id and next. Returns the capability's offset, 0 when config
 * space is full. The body is read-only; see pci_function_set_writable. */
unsigned pci_function_add_capability(struct pci_function *function, uint8_t id, const void *body,
                                     unsigned size);
void pci_function_set_writable(struct pci_function *function, unsigned offset, unsigned size);
/* Adds the capability and a BAR of PCI_MSIX_BAR_SIZE with table and pending bits. */
int pci_function_add_msix(struct pci_function *function, unsigned bar, unsigned count) MUST_USE;

/* The state after power-on, BARs assigned but not enabled. */
void pci_function_reset(struct pci_function *function);
void pci_function_save(struct pci_function *function, struct state_writer *w);
int pci_function_load(struct pci_function *function, struct state_reader *r, struct err *err);

/* Config space as the guest sees it; size 1, 2 or 4; device lock held. */
uint32_t pci_config_read(struct pci_function *function, unsigned offset, unsigned size);
void pci_config_write(struct pci_function *function, unsigned offset, unsigned size,
                      uint32_t value);

/* An access through a BAR's handler, wherever the BAR lies. All ones when it does not fit. */
uint64_t pci_bar_read(struct pci_function *function, unsigned bar, uint64_t offset, unsigned size);
void pci_bar_write(struct pci_function *function, unsigned bar, uint64_t offset, unsigned size,
                   uint64_t value);

bool pci_bus_master(const struct pci_function *function);
void pci_set_intx(struct pci_function *function, bool level);
bool pci_msix_enabled(const struct pci_function *function);
/* Sends the vector's message, or marks it pending while it is masked. Out of range: nothing. */
void pci_msix_notify(struct pci_function *function, unsigned vector);

#endif
