/* virtio entropy device (virtio 1.2 section 5.4): the host's random numbers, at a bounded rate. */
#ifndef PARAT_DEVICE_VIRTIO_VIRTIO_RNG_H
#define PARAT_DEVICE_VIRTIO_VIRTIO_RNG_H

#include "device/virtio/virtio.h"

struct virtio_rng_config {
    struct virtio_attach transport;
};

extern const struct device_class virtio_rng_class;

#endif
