/*
 * Doorbells: on an engine that has them, a driver's notify of a queue signals an event descriptor
 * without an exit to the device, and the loop looks at the queue.
 */
#ifndef PARAT_DEVICE_VIRTIO_PCI_BELLS_H
#define PARAT_DEVICE_VIRTIO_PCI_BELLS_H

#include "base/bits.h"
#include "base/err.h"
#include "base/loop.h"
#include "device/pci/pci.h"
#include "device/virtio/virtio.h"

struct virtio_pci_bell {
    struct loop_watch watch;
    struct virtio_device *virtio;
    unsigned queue;
};

struct virtio_pci_bells {
    unsigned count; /* 0: the engine has none */
    struct virtio_pci_bell bell[VIRTIO_QUEUES_MAX];
    struct pci_doorbell doorbell[VIRTIO_QUEUES_MAX];
};

/* A bell for each queue, at its place in the function's notify structure. Loop thread. */
int virtio_pci_bells_create(struct virtio_pci_bells *bells, struct virtio_device *virtio,
                            struct pci_function *function, struct err *err) MUST_USE;
/* The function is gone. Loop thread. */
void virtio_pci_bells_destroy(struct virtio_pci_bells *bells);

#endif
