/*
 * virtio entropy device (virtio 1.2 section 5.4). Bytes come from getrandom, at most RATE_BYTES in
 * each RATE_NS of VM time; what is over waits for a timer. vCPU threads and the loop thread, device
 * lock held.
 */
#include "device/virtio/virtio_rng.h"

#include <sys/random.h>

#include "base/clock.h"
#include "vm/machine.h"
#include "vm/state.h"

#define CHUNK      256u /* getrandom never gives less than asked up to this */
#define RATE_BYTES (64u << 10)
#define RATE_NS    (100 * NS_PER_MS)

struct virtio_rng {
    struct virtio_device virtio;
    struct vm_timer timer;
    uint64_t window_start_ns;
    uint64_t budget; /* bytes left in this window */
    struct virtqueue_chain chain;
};

static struct virtio_rng *rng_of(struct virtio_device *virtio)
{
    return container_of(virtio, struct virtio_rng, virtio);
}

static void refill(struct virtio_rng *rng)
{
    uint64_t now = vm_clock_ns(rng->virtio.device.machine->clock);
    if (now - rng->window_start_ns < RATE_NS)
        return;
    rng->window_start_ns = now;
    rng->budget = RATE_BYTES;
}

/* Fills the chain as far as the budget goes; returns how many bytes. */
static uint32_t fill(struct virtio_rng *rng, struct virtqueue *queue)
{
    uint64_t done = 0, size = MIN(rng->chain.writable_size, rng->budget);
    while (done < size) {
        uint8_t bytes[CHUNK];
        size_t part = MIN(size - done, CHUNK);
        if (getrandom(bytes, part, 0) != (ssize_t)part)
            break;
        size_t written = virtqueue_write(queue, &rng->chain, done, bytes, part);
        done += written;
        if (written != part)
            break;
    }
    rng->budget -= done;
    return (uint32_t)done;
}

static bool rng_notify(struct virtio_device *virtio, struct virtqueue *queue)
{
    struct virtio_rng *rng = rng_of(virtio);
    for (unsigned count = 0; count < queue->size; count++) {
        refill(rng);
        if (rng->budget == 0) {
            vm_timer_arm(&rng->timer, rng->window_start_ns + RATE_NS);
            return false;
        }
        while (!virtqueue_pop(queue, &rng->chain))
            if (!virtqueue_want_notify(queue))
                return false;
        virtqueue_push(queue, rng->chain.head, fill(rng, queue));
    }
    return true;
}

/* Loop thread: the next window began. */
static void timer_fired(struct vm_timer *timer)
{
    struct virtio_rng *rng = timer->context;
    pthread_mutex_lock(&rng->virtio.device.lock);
    virtio_continue(&rng->virtio, &rng->virtio.queue[0]);
    pthread_mutex_unlock(&rng->virtio.device.lock);
}

static void rng_reset(struct virtio_device *virtio)
{
    struct virtio_rng *rng = rng_of(virtio);
    vm_timer_cancel(&rng->timer);
    rng->window_start_ns = vm_clock_ns(virtio->device.machine->clock);
    rng->budget = RATE_BYTES;
}

static void rng_save(struct virtio_device *virtio, struct state_writer *w)
{
    struct virtio_rng *rng = rng_of(virtio);
    state_put_field(w, rng, window_start_ns);
    state_put_field(w, rng, budget);
}

static int rng_load(struct virtio_device *virtio, struct state_reader *r, struct err *err)
{
    struct virtio_rng *rng = rng_of(virtio);
    state_get_field(r, rng, window_start_ns);
    state_get_field(r, rng, budget);
    rng->budget = MIN(rng->budget, RATE_BYTES);
    return 0;
}

static const struct virtio_ops rng_ops = {
    .id = VIRTIO_ID_ENTROPY,
    .notify = rng_notify,
    .reset = rng_reset,
    .save = rng_save,
    .load = rng_load,
};

static int rng_create(struct device *device, const void *config, struct err *err)
{
    const struct virtio_rng_config *rng_config = config;
    struct virtio_rng *rng = rng_of(virtio_of(device));
    const struct virtio_setup setup = {
        .ops = &rng_ops, .queue_count = 1, .attach = &rng_config->transport};
    vm_timer_init(&rng->timer, device->machine->clock, timer_fired, rng);
    return virtio_init(&rng->virtio, &setup, err);
}

static void rng_destroy(struct device *device)
{
    struct virtio_rng *rng = rng_of(virtio_of(device));
    vm_timer_cancel(&rng->timer);
    virtio_destroy(&rng->virtio);
}

const struct device_class virtio_rng_class = {
    .name = "virtio-rng",
    .size = sizeof(struct virtio_rng),
    .create = rng_create,
    .reset = virtio_class_reset,
    .save = virtio_class_save,
    .load = virtio_class_load,
    .destroy = rng_destroy,
};
