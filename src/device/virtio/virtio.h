/*
 * The part of virtio that all devices and transports share (virtio 1.2 chapters 2 and 3): status,
 * features, queues, the config space and its generation, state.
 *
 * Between two seams: a *device* (blk, net…) fills in struct virtio_ops and sees queues; a
 * *transport* (PCI) turns its registers into the virtio_* calls below and carries interrupts.
 * Neither sees the other.
 *
 * Everything here: device lock held, on any thread, unless it says otherwise. Notifies are handled
 * on the vCPU thread that wrote the register: with few host CPUs that is the shortest way, and
 * whatever blocks goes to the backend's workers. They are bounded: what a queue still holds after
 * one round of its size is continued by a loop message, so that no vCPU can be kept inside a
 * handler.
 */
#ifndef PARAT_DEVICE_VIRTIO_VIRTIO_H
#define PARAT_DEVICE_VIRTIO_VIRTIO_H

#include <stdbool.h>
#include <stdint.h>

#include "base/bits.h"
#include "base/err.h"
#include "base/loop.h"
#include "device/virtio/virtqueue.h"
#include "vm/device.h"

/* Device status (2.1) */
#define VIRTIO_STATUS_ACKNOWLEDGE 0x01
#define VIRTIO_STATUS_DRIVER      0x02
#define VIRTIO_STATUS_DRIVER_OK   0x04
#define VIRTIO_STATUS_FEATURES_OK 0x08
#define VIRTIO_STATUS_NEEDS_RESET 0x40
#define VIRTIO_STATUS_FAILED      0x80

/* Reserved feature bits (chapter 6) */
#define VIRTIO_F_INDIRECT_DESC BIT(28)
#define VIRTIO_F_EVENT_IDX     BIT(29)
#define VIRTIO_F_VERSION_1     BIT(32)

/* Device types (chapter 5) */
#define VIRTIO_ID_NET     1
#define VIRTIO_ID_BLOCK   2
#define VIRTIO_ID_CONSOLE 3
#define VIRTIO_ID_ENTROPY 4

#define VIRTIO_QUEUES_MAX 64
#define VIRTIO_CONFIG_MAX 128

struct virtio_device;
struct state_reader;
struct state_writer;

/* What a device gives; NULL where it has nothing to do. */
struct virtio_ops {
    uint16_t id;
    /* The driver set DRIVER_OK. */
    void (*start)(struct virtio_device *virtio);
    /* The driver reset the device, or the machine was reset. Nothing is in flight. */
    void (*reset)(struct virtio_device *virtio);
    /*
     * The queue may have new buffers; the device is live. Returns true when it stopped before the
     * queue was empty only because it did enough for now: it is called again from the loop.
     */
    bool (*notify)(struct virtio_device *virtio, struct virtqueue *queue);
    /* A guest write into the config space. */
    void (*config_write)(struct virtio_device *virtio, unsigned offset, unsigned size,
                         uint32_t value);
    /* Beyond what is saved for every device. */
    void (*save)(struct virtio_device *virtio, struct state_writer *w);
    int (*load)(struct virtio_device *virtio, struct state_reader *r, struct err *err);
};

/* What a transport gives. `transport` is virtio->transport. */
struct virtio_transport_ops {
    /* Interrupts the driver: queue has used buffers. */
    void (*interrupt_queue)(void *transport, unsigned queue);
    /* Interrupts the driver: the config space or DEVICE_NEEDS_RESET changed. */
    void (*interrupt_config)(void *transport);
    /* The driver reset the device (the registers of the transport itself stay). */
    void (*device_reset)(void *transport);
    /* Power-on. */
    void (*reset)(void *transport);
    void (*save)(void *transport, struct state_writer *w);
    int (*load)(void *transport, struct state_reader *r, struct err *err);
    void (*destroy)(void *transport); /* frees it */
};

/* How a device gets its transport, without knowing which; part of each device's config. */
struct virtio_attach {
    int (*attach)(struct virtio_device *virtio, const void *config, struct err *err);
    const void *config;
};

struct virtio_device {
    struct device device; /* first: this is a struct device */
    const struct virtio_ops *ops;
    const struct virtio_transport_ops *transport_ops;
    void *transport;

    uint64_t offered_features, driver_features;
    uint8_t status;
    uint8_t config_generation;
    bool reset_pending;   /* status 0 was written, requests are still in flight */
    bool dma_enabled;     /* the transport lets the device reach memory */
    unsigned in_flight;   /* requests that a backend holds */
    unsigned config_size; /* in use */
    uint8_t config[VIRTIO_CONFIG_MAX];
    unsigned queue_count;
    struct virtqueue queue[VIRTIO_QUEUES_MAX];

    uint64_t continue_queues; /* a bit per queue, for the message */
    struct loop_message continue_message;
};

/* --- for devices --- */

struct virtio_setup {
    const struct virtio_ops *ops;
    uint64_t features; /* of the device type; VERSION_1 and the ring's features are added */
    unsigned queue_count;
    unsigned config_size;
    const struct virtio_attach *attach;
};
/* Creation. Config bytes are filled in by the device before or after. */
int virtio_init(struct virtio_device *virtio, const struct virtio_setup *setup,
                struct err *err) MUST_USE;
/* Loop thread, lock not held, nothing in flight. */
void virtio_destroy(struct virtio_device *virtio);

/* For struct device_class. */
void virtio_class_reset(struct device *device);
void virtio_class_save(struct device *device, struct state_writer *w);
int virtio_class_load(struct device *device, struct state_reader *r, struct err *err);

static inline struct virtio_device *virtio_of(struct device *device)
{
    return container_of(device, struct virtio_device, device);
}

static inline bool virtio_has(const struct virtio_device *virtio, uint64_t feature)
{
    return virtio->driver_features & feature;
}

/* DRIVER_OK and healthy: queues may be used. */
bool virtio_is_live(const struct virtio_device *virtio);
/* The driver broke a rule; counted and logged. */
void virtio_needs_reset(struct virtio_device *virtio, const char *why);
/* The device changed its config space. */
void virtio_config_changed(struct virtio_device *virtio);
/* Has notify called for the queue from the loop thread. */
void virtio_continue(struct virtio_device *virtio, struct virtqueue *queue);
/* A request went to a backend, or came back; a pending reset completes with the last one. */
void virtio_request_begin(struct virtio_device *virtio);
void virtio_request_end(struct virtio_device *virtio);

/* --- for transports --- */

void virtio_set_status(struct virtio_device *virtio, uint8_t status);
void virtio_set_driver_features(struct virtio_device *virtio, unsigned word, uint32_t value);
void virtio_notify(struct virtio_device *virtio, unsigned queue);
/* The transport opens or closes the device's way to memory; opening looks at all queues. */
void virtio_set_dma(struct virtio_device *virtio, bool enabled);
uint32_t virtio_config_read(struct virtio_device *virtio, uint64_t offset, unsigned size);
void virtio_config_write(struct virtio_device *virtio, uint64_t offset, unsigned size,
                         uint32_t value);
/* The driver writes 1 to queue_enable. */
void virtio_enable_queue(struct virtio_device *virtio, struct virtqueue *queue);

#endif
