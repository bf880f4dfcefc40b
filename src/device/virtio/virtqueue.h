/*
 * The one walker of split virtqueues (virtio 1.2 section 2.7); every virtio device goes through it.
 *
 * The rings are the guest's and untrusted: each descriptor is copied once, then checked, then used;
 * every loop is bounded by the queue's size. A ring that breaks the rules puts the device in
 * DEVICE_NEEDS_RESET (virtio_needs_reset) and nothing is done with the queue until the reset.
 *
 * All functions: any thread, device lock held. The lock is the device's own, not per queue: a
 * register write (a notify) already holds it, and what is done under it is short.
 */
#ifndef PARAT_DEVICE_VIRTIO_VIRTQUEUE_H
#define PARAT_DEVICE_VIRTIO_VIRTQUEUE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "base/addr.h"
#include "base/bits.h"

struct virtio_device;

#define VIRTQUEUE_SIZE_MAX 256
/* Host pieces of a chain: a descriptor that crosses RAM regions takes more than one. */
#define VIRTQUEUE_IOV_MAX (VIRTQUEUE_SIZE_MAX + 8)

struct virtqueue {
    struct virtio_device *device;
    unsigned index;
    uint16_t size_max;
    /* Set by the driver before it enables the queue. */
    uint16_t size;
    bool enabled;
    gpa_t descriptors, avail, used; /* queue_desc, queue_driver, queue_device */
    /* Positions in the rings; they wrap at 2^16. */
    uint16_t next_avail;
    uint16_t next_used;
    uint16_t signalled_used; /* next_used when the driver was last told */
    bool signalled_valid;
    uint16_t in_flight; /* chains taken and not yet given back */
};

struct virtqueue_segment {
    gpa_t address;
    uint32_t length;
};

/* One request: what the device may read comes first, then what it may write. */
struct virtqueue_chain {
    uint16_t head;
    unsigned segment_count, readable_segments;
    unsigned iov_count, readable_iov;
    uint64_t readable_size, writable_size;
    struct virtqueue_segment segment[VIRTQUEUE_SIZE_MAX];
    struct iovec iov[VIRTQUEUE_IOV_MAX];
};

void virtqueue_reset(struct virtqueue *queue);
/* The driver enables the queue. False: alignment or place of the rings is wrong (2.7.10.1). */
bool virtqueue_enable(struct virtqueue *queue);

/* Takes the next chain; false when there is none, or when the ring is bad. */
bool virtqueue_pop(struct virtqueue *queue, struct virtqueue_chain *chain);
/* Puts the last `count` taken chains back; none of them was given back. */
void virtqueue_rewind(struct virtqueue *queue, unsigned count);
/* Tells the driver to notify about new buffers; true when there already are some: look again. */
bool virtqueue_want_notify(struct virtqueue *queue);

/* Gives a chain back with `written` bytes in its writable part, and notifies as negotiated. */
void virtqueue_push(struct virtqueue *queue, uint16_t head, uint32_t written);
/* The same in two steps, for several chains that must appear at once: fill the ahead-th (0, 1…),
 * then publish them. */
void virtqueue_fill(struct virtqueue *queue, unsigned ahead, uint16_t head, uint32_t written);
void virtqueue_publish(struct virtqueue *queue, unsigned count);

/* Copies from the readable part; returns how many bytes there were. */
size_t virtqueue_read(const struct virtqueue_chain *chain, uint64_t offset, void *to,
                      size_t length);
/* Copies into the writable part through the write bracket; returns how many bytes fitted. */
size_t virtqueue_write(struct virtqueue *queue, const struct virtqueue_chain *chain,
                       uint64_t offset, const void *from, size_t length);

/*
 * The chain's readable or writable bytes from `skip` on, at most `length` of them, as host pieces.
 * Points into the chain and trims it in place, so it can be asked once for each part.
 */
unsigned virtqueue_trim_readable(struct virtqueue_chain *chain, uint64_t skip, uint64_t length,
                                 struct iovec **iov);
unsigned virtqueue_trim_writable(struct virtqueue_chain *chain, uint64_t skip, uint64_t length,
                                 struct iovec **iov);

/* The write bracket around all writable segments, for direct I/O. begin: 0 or -errno. */
int virtqueue_write_begin(struct virtqueue *queue, const struct virtqueue_chain *chain) MUST_USE;
void virtqueue_write_end(struct virtqueue *queue, const struct virtqueue_chain *chain);

#endif
