/* What the PCI files share among themselves. */
#ifndef PARAT_DEVICE_PCI_PCI_INT_H
#define PARAT_DEVICE_PCI_PCI_INT_H

#include <pthread.h>

#include "device/pci/pci.h"

struct pci_host {
    struct device device;
    struct pci_function function; /* 00:00.0, the bridge itself */
    /* Set at creation, then constant: config accesses read it without a lock. */
    struct pci_function *slot[PCI_SLOTS];
    _Atomic uint32_t address;      /* CONFIG_ADDRESS */
    _Atomic uint8_t reset_control; /* port 0xcf9 */
    pthread_mutex_t map_lock;      /* what is wanted and mapped, of all BARs */
    uint64_t next_io, next_mem32, next_mem64;
};

/* Reserves an address for a BAR; 0: the window is full. */
uint64_t pci_host_reserve(struct pci_host *host, enum pci_bar_kind kind, uint64_t size);

/* Brings the bus ranges into line with BARs and COMMAND. Device lock held. */
void pci_bar_update(struct pci_function *function);
/* Takes all the function's ranges from the buses. */
void pci_bar_unmap_all(struct pci_function *function);

/* MSI-X part of config writes, reset and state. */
void pci_msix_update(struct pci_function *function);
void pci_msix_reset(struct pci_function *function);
void pci_msix_save(struct pci_function *function, struct state_writer *w);
void pci_msix_load(struct pci_function *function, struct state_reader *r);

/* The interrupt line follows intx_level, COMMAND and MSI-X. */
void pci_intx_update(struct pci_function *function);

#endif
