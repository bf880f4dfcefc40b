/* virtio over PCI, modern interface only (virtio 1.2 section 4.1). */
#ifndef PARAT_DEVICE_VIRTIO_VIRTIO_PCI_H
#define PARAT_DEVICE_VIRTIO_VIRTIO_PCI_H

#include "device/virtio/virtio.h"

struct pci_host;

struct virtio_pci_config {
    struct pci_host *host;
    unsigned slot;
};

/* For virtio_attach; config is a struct virtio_pci_config. */
int virtio_pci_attach(struct virtio_device *virtio, const void *config, struct err *err);

/* Layout of BAR 0; each capability says where its part lies (4.1.4). MSI-X is in BAR 2. */
#define VIRTIO_PCI_BAR           0
#define VIRTIO_PCI_MSIX_BAR      2
#define VIRTIO_PCI_COMMON        0x0000
#define VIRTIO_PCI_ISR           0x1000
#define VIRTIO_PCI_DEVICE        0x2000
#define VIRTIO_PCI_NOTIFY        0x3000
#define VIRTIO_PCI_BAR_SIZE      0x4000
#define VIRTIO_PCI_COMMON_SIZE   0x40
#define VIRTIO_PCI_NOTIFY_FACTOR 4

/* Registers of the common configuration structure (4.1.4.3). */
#define VIRTIO_PCI_DEVICE_FEATURE_SELECT 0x00
#define VIRTIO_PCI_DEVICE_FEATURE        0x04
#define VIRTIO_PCI_DRIVER_FEATURE_SELECT 0x08
#define VIRTIO_PCI_DRIVER_FEATURE        0x0c
#define VIRTIO_PCI_CONFIG_MSIX_VECTOR    0x10
#define VIRTIO_PCI_NUM_QUEUES            0x12
#define VIRTIO_PCI_DEVICE_STATUS         0x14
#define VIRTIO_PCI_CONFIG_GENERATION     0x15
#define VIRTIO_PCI_QUEUE_SELECT          0x16
#define VIRTIO_PCI_QUEUE_SIZE            0x18
#define VIRTIO_PCI_QUEUE_MSIX_VECTOR     0x1a
#define VIRTIO_PCI_QUEUE_ENABLE          0x1c
#define VIRTIO_PCI_QUEUE_NOTIFY_OFF      0x1e
#define VIRTIO_PCI_QUEUE_DESC            0x20
#define VIRTIO_PCI_QUEUE_DRIVER          0x28
#define VIRTIO_PCI_QUEUE_DEVICE          0x30

#define VIRTIO_PCI_NO_VECTOR 0xffff

/* Capability types (4.1.4) */
#define VIRTIO_PCI_CAP_COMMON 1
#define VIRTIO_PCI_CAP_NOTIFY 2
#define VIRTIO_PCI_CAP_ISR    3
#define VIRTIO_PCI_CAP_DEVICE 4
#define VIRTIO_PCI_CAP_PCI    5

#endif
