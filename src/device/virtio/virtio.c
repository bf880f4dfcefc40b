/* What all virtio devices share; see virtio.h. Virtio 1.2 chapters 2 and 3. */
#include "device/virtio/virtio.h"

#include <errno.h>
#include <stdio.h>

#include "vm/machine.h"
#include "vm/state.h"

#define OFFERED_ALWAYS (VIRTIO_F_VERSION_1 | VIRTIO_F_INDIRECT_DESC | VIRTIO_F_EVENT_IDX)
#define DRIVER_STATUS                                                                              \
    (VIRTIO_STATUS_ACKNOWLEDGE | VIRTIO_STATUS_DRIVER | VIRTIO_STATUS_DRIVER_OK |                  \
     VIRTIO_STATUS_FEATURES_OK | VIRTIO_STATUS_FAILED)

static void continue_queues(struct loop_message *message);

int virtio_init(struct virtio_device *virtio, const struct virtio_setup *setup, struct err *err)
{
    if (setup->queue_count > VIRTIO_QUEUES_MAX || setup->config_size > VIRTIO_CONFIG_MAX)
        return err_set(err, EINVAL, "%s: at most %d queues", virtio->device.path,
                       VIRTIO_QUEUES_MAX);
    virtio->ops = setup->ops;
    virtio->offered_features = setup->features | OFFERED_ALWAYS;
    virtio->queue_count = setup->queue_count;
    virtio->config_size = setup->config_size;
    virtio->continue_message.handler = continue_queues;
    for (unsigned i = 0; i < virtio->queue_count; i++) {
        virtio->queue[i] =
            (struct virtqueue) {.device = virtio, .index = i, .size_max = VIRTQUEUE_SIZE_MAX};
        virtqueue_reset(&virtio->queue[i]);
    }
    return setup->attach->attach(virtio, setup->attach->config, err);
}

void virtio_destroy(struct virtio_device *virtio)
{
    loop_message_cancel(virtio->device.machine->loop, &virtio->continue_message);
    virtio->transport_ops->destroy(virtio->transport);
}

bool virtio_is_live(const struct virtio_device *virtio)
{
    return (virtio->status & (VIRTIO_STATUS_DRIVER_OK | VIRTIO_STATUS_NEEDS_RESET)) ==
               VIRTIO_STATUS_DRIVER_OK &&
           !virtio->reset_pending;
}

void virtio_needs_reset(struct virtio_device *virtio, const char *why)
{
    device_guest_error(&virtio->device, "%s", why);
    if (virtio->status & VIRTIO_STATUS_NEEDS_RESET)
        return;
    virtio->status |= VIRTIO_STATUS_NEEDS_RESET;
    /* 2.1.2: a live driver is told by a configuration change notification. */
    if (virtio->status & VIRTIO_STATUS_DRIVER_OK)
        virtio->transport_ops->interrupt_config(virtio->transport);
}

void virtio_config_changed(struct virtio_device *virtio)
{
    virtio->config_generation++;
    if (virtio_is_live(virtio))
        virtio->transport_ops->interrupt_config(virtio->transport);
}

/* --- notifies --- */

static void notify(struct virtio_device *virtio, struct virtqueue *queue)
{
    if (!virtio_is_live(virtio) || !queue->enabled || !virtio->dma_enabled)
        return;
    if (virtio->ops->notify && virtio->ops->notify(virtio, queue))
        virtio_continue(virtio, queue);
}

void virtio_notify(struct virtio_device *virtio, unsigned queue)
{
    if (queue < virtio->queue_count)
        notify(virtio, &virtio->queue[queue]);
    else
        device_guest_error(&virtio->device, "notify of queue %u of %u", queue, virtio->queue_count);
}

void virtio_continue(struct virtio_device *virtio, struct virtqueue *queue)
{
    virtio->continue_queues |= BIT(queue->index);
    loop_post(virtio->device.machine->loop, &virtio->continue_message);
}

/* Loop thread, lock not held. */
static void continue_queues(struct loop_message *message)
{
    struct virtio_device *virtio = container_of(message, struct virtio_device, continue_message);
    pthread_mutex_lock(&virtio->device.lock);
    uint64_t queues = virtio->continue_queues;
    virtio->continue_queues = 0;
    for (unsigned i = 0; i < virtio->queue_count; i++)
        if (queues >> i & 1)
            notify(virtio, &virtio->queue[i]);
    pthread_mutex_unlock(&virtio->device.lock);
}

static void continue_all(struct virtio_device *virtio)
{
    for (unsigned i = 0; i < virtio->queue_count; i++)
        if (virtio->queue[i].enabled)
            virtio_continue(virtio, &virtio->queue[i]);
}

void virtio_set_dma(struct virtio_device *virtio, bool enabled)
{
    bool opened = enabled && !virtio->dma_enabled;
    virtio->dma_enabled = enabled;
    if (opened && virtio_is_live(virtio))
        continue_all(virtio);
}

/* --- reset --- */

static void reset_now(struct virtio_device *virtio)
{
    virtio->status = 0;
    virtio->driver_features = 0;
    virtio->reset_pending = false;
    virtio->continue_queues = 0;
    for (unsigned i = 0; i < virtio->queue_count; i++)
        virtqueue_reset(&virtio->queue[i]);
    if (virtio->ops->reset)
        virtio->ops->reset(virtio);
    virtio->transport_ops->device_reset(virtio->transport);
}

/*
 * Nothing may wait for a backend with the lock held, so a driver's reset with requests in flight
 * completes when the last one does; until then status does not read 0 (2.4.1, 4.1.4.3.1).
 */
static void driver_reset(struct virtio_device *virtio)
{
    if (virtio->in_flight)
        virtio->reset_pending = true;
    else
        reset_now(virtio);
}

void virtio_request_begin(struct virtio_device *virtio)
{
    virtio->in_flight++;
}

void virtio_request_end(struct virtio_device *virtio)
{
    virtio->in_flight--;
    if (virtio->in_flight == 0 && virtio->reset_pending)
        reset_now(virtio);
}

void virtio_class_reset(struct device *device)
{
    struct virtio_device *virtio = virtio_of(device);
    reset_now(virtio);
    virtio->config_generation = 0;
    virtio->transport_ops->reset(virtio->transport);
}

/* --- status and features (3.1.1) --- */

/* The driver's choice must be a part of the offer and contain VERSION_1 (6.1, 6.2). */
static bool features_acceptable(const struct virtio_device *virtio)
{
    return !(virtio->driver_features & ~virtio->offered_features) &&
           virtio->driver_features & VIRTIO_F_VERSION_1;
}

void virtio_set_status(struct virtio_device *virtio, uint8_t status)
{
    if (virtio->reset_pending)
        return;
    if (status == 0) {
        driver_reset(virtio);
        return;
    }
    uint8_t added = status & DRIVER_STATUS & (uint8_t)~virtio->status;
    if (added & VIRTIO_STATUS_FEATURES_OK && !features_acceptable(virtio)) {
        device_guest_error(&virtio->device, "features %#llx are not acceptable",
                           (unsigned long long)virtio->driver_features);
        added &= (uint8_t)~VIRTIO_STATUS_FEATURES_OK;
    }
    uint8_t after = virtio->status | added;
    if (added & VIRTIO_STATUS_DRIVER_OK && !(after & VIRTIO_STATUS_FEATURES_OK)) {
        device_guest_error(&virtio->device, "DRIVER_OK without FEATURES_OK");
        added &= (uint8_t)~VIRTIO_STATUS_DRIVER_OK;
    }
    virtio->status |= added; /* bits never go away but by a reset (2.1.1) */
    if (added & VIRTIO_STATUS_DRIVER_OK && virtio_is_live(virtio)) {
        if (virtio->ops->start)
            virtio->ops->start(virtio);
        continue_all(virtio);
    }
}

void virtio_set_driver_features(struct virtio_device *virtio, unsigned word, uint32_t value)
{
    if (word > 1 || virtio->status & VIRTIO_STATUS_FEATURES_OK) {
        if (value)
            device_guest_error(&virtio->device, "a write of features that is out of place");
        return;
    }
    virtio->driver_features &= ~(0xffffffffull << (word * 32));
    virtio->driver_features |= (uint64_t)value << (word * 32);
}

void virtio_enable_queue(struct virtio_device *virtio, struct virtqueue *queue)
{
    if (queue->enabled)
        return;
    if (!(virtio->status & VIRTIO_STATUS_FEATURES_OK) || virtio->reset_pending)
        device_guest_error(&virtio->device, "queue %u enabled before FEATURES_OK", queue->index);
    else if (!virtqueue_enable(queue))
        virtio_needs_reset(virtio, "a queue's rings are misplaced");
}

/* --- config space (2.5) --- */

uint32_t virtio_config_read(struct virtio_device *virtio, uint64_t offset, unsigned size)
{
    uint32_t value = 0;
    if (size > 4 || !range_fits(offset, size, virtio->config_size))
        return 0;
    memcpy(&value, virtio->config + offset, size);
    return value;
}

void virtio_config_write(struct virtio_device *virtio, uint64_t offset, unsigned size,
                         uint32_t value)
{
    if (size > 4 || !range_fits(offset, size, virtio->config_size) || !virtio->ops->config_write)
        device_guest_error(&virtio->device, "config write at %#llx", (unsigned long long)offset);
    else
        virtio->ops->config_write(virtio, (unsigned)offset, size, value);
}

/* --- state --- */

/* A queue's fields in the order in which they are saved. */
enum {
    SAVED_SIZE,
    SAVED_ENABLED,
    SAVED_DESCRIPTORS,
    SAVED_AVAIL,
    SAVED_USED,
    SAVED_NEXT_AVAIL,
    SAVED_NEXT_USED,
    SAVED_SIGNALLED,
    SAVED_SIGNALLED_VALID,
    SAVED_COUNT
};

static void save_queue(const struct virtqueue *queue, struct state_writer *w)
{
    char name[STATE_NAME_MAX];
    const uint64_t saved[SAVED_COUNT] = {
        [SAVED_SIZE] = queue->size,
        [SAVED_ENABLED] = queue->enabled,
        [SAVED_DESCRIPTORS] = queue->descriptors.v,
        [SAVED_AVAIL] = queue->avail.v,
        [SAVED_USED] = queue->used.v,
        [SAVED_NEXT_AVAIL] = queue->next_avail,
        [SAVED_NEXT_USED] = queue->next_used,
        [SAVED_SIGNALLED] = queue->signalled_used,
        [SAVED_SIGNALLED_VALID] = queue->signalled_valid,
    };
    snprintf(name, sizeof name, "queue%u", queue->index);
    state_put(w, name, saved, sizeof saved);
}

static int load_queue(struct virtqueue *queue, struct state_reader *r, struct err *err)
{
    char name[STATE_NAME_MAX];
    uint64_t saved[SAVED_COUNT];
    snprintf(name, sizeof name, "queue%u", queue->index);
    virtqueue_reset(queue);
    if (!state_get(r, name, saved, sizeof saved))
        return 0;
    queue->size = (uint16_t)saved[SAVED_SIZE];
    queue->descriptors = gpa(saved[SAVED_DESCRIPTORS]);
    queue->avail = gpa(saved[SAVED_AVAIL]);
    queue->used = gpa(saved[SAVED_USED]);
    if (saved[SAVED_ENABLED] && !virtqueue_enable(queue))
        return err_set(err, EINVAL, "saved state: %s: %s is not valid", r->path, name);
    queue->next_avail = (uint16_t)saved[SAVED_NEXT_AVAIL];
    queue->next_used = (uint16_t)saved[SAVED_NEXT_USED];
    queue->signalled_used = (uint16_t)saved[SAVED_SIGNALLED];
    queue->signalled_valid = saved[SAVED_SIGNALLED_VALID];
    return 0;
}

void virtio_class_save(struct device *device, struct state_writer *w)
{
    struct virtio_device *virtio = virtio_of(device);
    state_put_u64(w, "driver_features", virtio->driver_features);
    state_put_u64(w, "status", virtio->status);
    state_put_u64(w, "config_generation", virtio->config_generation);
    for (unsigned i = 0; i < virtio->queue_count; i++)
        save_queue(&virtio->queue[i], w);
    virtio->transport_ops->save(virtio->transport, w);
    if (virtio->ops->save)
        virtio->ops->save(virtio, w);
}

int virtio_class_load(struct device *device, struct state_reader *r, struct err *err)
{
    struct virtio_device *virtio = virtio_of(device);
    uint64_t features = 0, status = 0, generation = 0;
    reset_now(virtio);
    state_get_u64(r, "driver_features", &features);
    state_get_u64(r, "status", &status);
    state_get_u64(r, "config_generation", &generation);
    if (features & ~virtio->offered_features && status & VIRTIO_STATUS_FEATURES_OK)
        return err_set(err, ENOTSUP, "saved state: %s: features %#llx are not offered here",
                       r->path, (unsigned long long)(features & ~virtio->offered_features));
    if (status & VIRTIO_STATUS_DRIVER_OK && !(status & VIRTIO_STATUS_FEATURES_OK))
        return err_set(err, EINVAL, "saved state: %s: DRIVER_OK without FEATURES_OK", r->path);
    virtio->driver_features = features;
    virtio->status = (uint8_t)status & (DRIVER_STATUS | VIRTIO_STATUS_NEEDS_RESET);
    virtio->config_generation = (uint8_t)generation;
    int error = 0;
    for (unsigned i = 0; i < virtio->queue_count && !error; i++)
        error = load_queue(&virtio->queue[i], r, err);
    if (!error)
        error = virtio->transport_ops->load(virtio->transport, r, err);
    if (!error && virtio->ops->load)
        error = virtio->ops->load(virtio, r, err);
    if (!error && virtio_is_live(virtio))
        continue_all(virtio); /* buffers that nobody looked at before the save */
    return error;
}
