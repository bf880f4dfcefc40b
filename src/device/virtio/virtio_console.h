/* virtio console (virtio 1.2 section 5.3): one port, /dev/hvc0 in Linux. */
#ifndef PARAT_DEVICE_VIRTIO_VIRTIO_CONSOLE_H
#define PARAT_DEVICE_VIRTIO_VIRTIO_CONSOLE_H

#include "device/virtio/virtio.h"

struct console;

struct virtio_console_config {
    struct virtio_attach transport;
    struct console *console; /* stays the caller's; NULL: output is lost */
};

extern const struct device_class virtio_console_class;

#define VIRTIO_CONSOLE_F_EMERG_WRITE BIT(2)

#endif
