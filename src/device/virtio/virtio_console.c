/*
 * virtio console (virtio 1.2 section 5.3) with one port: queue 0 carries input, queue 1 output.
 * Output is taken on the vCPU thread that notified; when the backend takes less, the chain stays in
 * the ring and goes on at can_write. Input comes on the loop thread. Device lock held, or taken by
 * the backend's callbacks.
 */
#include "device/virtio/virtio_console.h"

#include "backend/console/console.h"
#include "vm/machine.h"
#include "vm/state.h"

#define QUEUE_RECEIVE  0
#define QUEUE_TRANSMIT 1

#define CONFIG_EMERG_WRITE 8
#define CONFIG_BYTES       12

#define CHUNK        512u
#define TRANSMIT_MAX (1u << 20)

struct virtio_console {
    struct virtio_device virtio;
    struct console *console;
    uint64_t transmit_offset; /* of the next chain: what the backend has already */
    bool transmit_waiting;    /* for can_write */
    bool input_waiting;       /* the backend keeps input until there are buffers */
    struct virtqueue_chain chain;
};

static struct virtio_console *console_of(struct virtio_device *virtio)
{
    return container_of(virtio, struct virtio_console, virtio);
}

/* --- output --- */

/* Writes the chain from transmit_offset on; false when the backend is full. What is beyond
 * TRANSMIT_MAX is lost, so that a chain that names the same memory over and over ends. */
static bool transmit_chain(struct virtio_console *c)
{
    uint8_t bytes[CHUNK];
    size_t length;
    while (c->transmit_offset < TRANSMIT_MAX &&
           (length = virtqueue_read(&c->chain, c->transmit_offset, bytes, sizeof bytes)) > 0) {
        size_t taken = c->console ? console_write(c->console, bytes, length) : length;
        c->transmit_offset += taken;
        if (taken < length)
            return false;
    }
    c->transmit_offset = 0;
    return true;
}

static bool transmit(struct virtio_console *c, struct virtqueue *queue)
{
    for (unsigned count = 0; count < queue->size; count++) {
        while (!virtqueue_pop(queue, &c->chain))
            if (!virtqueue_want_notify(queue))
                return false;
        if (!transmit_chain(c)) {
            c->transmit_waiting = true;
            virtqueue_rewind(queue, 1);
            return false;
        }
        virtqueue_push(queue, c->chain.head, 0);
    }
    return true;
}

static void can_write(void *context)
{
    struct virtio_console *c = context;
    pthread_mutex_lock(&c->virtio.device.lock);
    if (c->transmit_waiting) {
        c->transmit_waiting = false;
        virtio_continue(&c->virtio, &c->virtio.queue[QUEUE_TRANSMIT]);
    }
    pthread_mutex_unlock(&c->virtio.device.lock);
}

/* Before the driver has queues (5.3.4): one character. */
static void console_config_write(struct virtio_device *virtio, unsigned offset, unsigned size,
                                 uint32_t value)
{
    struct virtio_console *c = console_of(virtio);
    uint8_t byte = (uint8_t)value;
    if (offset == CONFIG_EMERG_WRITE && c->console)
        console_write(c->console, &byte, 1);
}

/* --- input --- */

static size_t fill_buffers(struct virtio_console *c, const uint8_t *data, size_t length)
{
    struct virtqueue *queue = &c->virtio.queue[QUEUE_RECEIVE];
    size_t done = 0;
    while (done < length) {
        if (!virtqueue_pop(queue, &c->chain)) {
            if (virtqueue_want_notify(queue))
                continue;
            break;
        }
        size_t part = virtqueue_write(queue, &c->chain, 0, data + done, length - done);
        if (part == 0)
            virtio_needs_reset(&c->virtio, "an input buffer that cannot be written");
        virtqueue_push(queue, c->chain.head, (uint32_t)part);
        done += part;
    }
    return done;
}

/* Input that comes while no driver runs is lost, as on a serial line that nobody reads. */
static size_t input(void *context, const uint8_t *data, size_t length)
{
    struct virtio_console *c = context;
    pthread_mutex_lock(&c->virtio.device.lock);
    size_t taken = virtio_is_live(&c->virtio) ? fill_buffers(c, data, length) : length;
    c->input_waiting = taken < length;
    pthread_mutex_unlock(&c->virtio.device.lock);
    return taken;
}

static void ask_for_input(struct virtio_console *c)
{
    if (c->input_waiting)
        console_kick_input(c->console);
    c->input_waiting = false;
}

/* --- the device --- */

static bool console_notify(struct virtio_device *virtio, struct virtqueue *queue)
{
    struct virtio_console *c = console_of(virtio);
    if (queue->index == QUEUE_TRANSMIT)
        return !c->transmit_waiting && transmit(c, queue);
    ask_for_input(c);
    return false;
}

static void console_reset(struct virtio_device *virtio)
{
    struct virtio_console *c = console_of(virtio);
    c->transmit_offset = 0;
    c->transmit_waiting = false;
    ask_for_input(c);
}

static void console_save(struct virtio_device *virtio, struct state_writer *w)
{
    state_put_field(w, console_of(virtio), transmit_offset);
}

static int console_load(struct virtio_device *virtio, struct state_reader *r, struct err *err)
{
    state_get_field(r, console_of(virtio), transmit_offset);
    return 0;
}

static const struct virtio_ops console_ops = {
    .id = VIRTIO_ID_CONSOLE,
    .notify = console_notify,
    .reset = console_reset,
    .config_write = console_config_write,
    .save = console_save,
    .load = console_load,
};

static int console_create(struct device *device, const void *config, struct err *err)
{
    const struct virtio_console_config *console_config = config;
    struct virtio_console *c = console_of(virtio_of(device));
    const struct virtio_setup setup = {.ops = &console_ops,
                                       .features = VIRTIO_CONSOLE_F_EMERG_WRITE,
                                       .queue_count = 2,
                                       .config_size = CONFIG_BYTES,
                                       .attach = &console_config->transport};
    int error = virtio_init(&c->virtio, &setup, err);
    if (error)
        return error;
    c->console = console_config->console;
    const struct console_client client = {.input = input, .can_write = can_write, .context = c};
    if (c->console)
        console_attach(c->console, &client);
    return 0;
}

static void console_destroy(struct device *device)
{
    struct virtio_console *c = console_of(virtio_of(device));
    if (c->console)
        console_attach(c->console, NULL);
    virtio_destroy(&c->virtio);
}

const struct device_class virtio_console_class = {
    .name = "virtio-console",
    .size = sizeof(struct virtio_console),
    .create = console_create,
    .reset = virtio_class_reset,
    .save = virtio_class_save,
    .load = virtio_class_load,
    .destroy = console_destroy,
};
