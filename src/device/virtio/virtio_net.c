/*
 * virtio network device (virtio 1.2 section 5.1). Frames go out on the vCPU thread that notified,
 * straight from guest memory, and come in on the loop thread. When the backend or the guest has no
 * room, the frame stays where it is and the other side says when to go on. Device lock held, or
 * taken by the backend's callbacks.
 *
 * Checksums the guest left out (NEEDS_CSUM) are computed here unless the backend takes such frames,
 * so the guest never has to. No segmentation offload.
 */
#include "device/virtio/virtio_net.h"

#include <errno.h>

#include "backend/net/net.h"
#include "vm/machine.h"
#include "vm/state.h"

#define FRAME_MIN 14 /* an Ethernet header */
/* A frame in more receive buffers than this is dropped: they are far below the size that 5.1.6.3.1
 * asks for. */
#define BUFFERS_MAX 64

/* Config space (5.1.4) */
#define CONFIG_MAC     0
#define CONFIG_STATUS  6
#define CONFIG_BYTES   8
#define STATUS_LINK_UP 1

struct virtio_net {
    struct virtio_device virtio;
    struct net *net;
    uint8_t default_mac[VIRTIO_NET_MAC_SIZE];
    bool send_waiting;    /* for can_send */
    bool receive_waiting; /* the backend keeps a frame until there are buffers */
    struct virtqueue_chain chain, first;
    uint8_t frame[NET_FRAME_MAX]; /* where a checksum is filled in */
};

static struct virtio_net *net_of(struct virtio_device *virtio)
{
    return container_of(virtio, struct virtio_net, virtio);
}

/* --- transmit --- */

/* Ones' complement sum (RFC 1071) of the bytes as 16-bit words in memory order. */
static uint16_t checksum(const uint8_t *bytes, size_t length)
{
    uint64_t sum = 0;
    for (; length >= 4; bytes += 4, length -= 4)
        sum += load_le32(bytes);
    if (length >= 2) {
        sum += load_le16(bytes);
        bytes += 2;
        length -= 2;
    }
    if (length)
        sum += *bytes;
    while (sum >> 16)
        sum = (sum & 0xffff) + (sum >> 16);
    return (uint16_t)~sum;
}

/* 5.1.6.2: sum from csum_start to the end, into csum_start + csum_offset. False: out of the frame.
 */
static bool fill_checksum(uint8_t *frame, size_t length, const uint8_t *header)
{
    size_t start = load_le16(header + 6), at = start + load_le16(header + 8);
    if (start >= length || !range_fits(at, 2, length))
        return false;
    uint16_t sum = checksum(frame + start, length - start);
    store_le16(frame + at, sum ? sum : 0xffff); /* 0 would mean "none" in UDP */
    return true;
}

/* Sends the frame of the chain. 0 also when it was dropped; -EAGAIN: later. */
static int send_frame(struct virtio_net *n)
{
    uint8_t header[VIRTIO_NET_HEADER_SIZE];
    if (virtqueue_read(&n->chain, 0, header, sizeof header) != sizeof header)
        return -EINVAL;
    uint64_t length = n->chain.readable_size - sizeof header;
    bool needs_checksum = header[0] & VIRTIO_NET_HDR_F_NEEDS_CSUM;
    /* header[1] is gso_type: no segmentation was offered. */
    if (length < FRAME_MIN || length > NET_FRAME_MAX || header[1] ||
        (needs_checksum && !virtio_has(&n->virtio, VIRTIO_NET_F_CSUM)))
        return -EINVAL;
    struct iovec whole = {n->frame, length}, *iov = &whole;
    unsigned count = 1;
    if (needs_checksum && !n->net->checksum_offload) {
        virtqueue_read(&n->chain, sizeof header, n->frame, length);
        if (!fill_checksum(n->frame, length, header))
            return -EINVAL;
    } else {
        count = virtqueue_trim_readable(&n->chain, sizeof header, length, &iov);
    }
    return n->net->ops->send(n->net, iov, count);
}

static bool transmit(struct virtio_net *n, struct virtqueue *queue)
{
    for (unsigned done = 0; done < queue->size; done++) {
        while (!virtqueue_pop(queue, &n->chain))
            if (!virtqueue_want_notify(queue))
                return false;
        int error = send_frame(n);
        if (error == -EAGAIN) {
            n->send_waiting = true;
            virtqueue_rewind(queue, 1);
            return false;
        }
        if (error == -EINVAL)
            device_guest_error(&n->virtio.device, "a frame that cannot be sent");
        virtqueue_push(queue, n->chain.head, 0);
    }
    return true;
}

/* Loop thread. */
static void can_send(void *context)
{
    struct virtio_net *n = context;
    pthread_mutex_lock(&n->virtio.device.lock);
    if (n->send_waiting) {
        n->send_waiting = false;
        virtio_continue(&n->virtio, &n->virtio.queue[VIRTIO_NET_QUEUE_TRANSMIT]);
    }
    pthread_mutex_unlock(&n->virtio.device.lock);
}

/* --- receive --- */

enum delivery { DELIVERED, DROPPED, NO_BUFFERS };

/* Takes the next receive buffer; false when there is none, with a notify asked for. */
static bool take_buffer(struct virtqueue *queue, struct virtqueue_chain *chain)
{
    while (!virtqueue_pop(queue, chain))
        if (!virtqueue_want_notify(queue))
            return false;
    return true;
}

/* The header goes in last, when the number of buffers is known (5.1.6.4). */
static void write_header(struct virtio_net *n, struct virtqueue *queue, unsigned buffers)
{
    uint8_t header[VIRTIO_NET_HEADER_SIZE] = {0};
    store_le16(header + 10, (uint16_t)buffers);
    virtqueue_write(queue, &n->first, 0, header, sizeof header);
}

/*
 * Spreads header and frame over receive buffers: one, or several with MRG_RXBUF. They appear in the
 * used ring together; until then all of them can be put back.
 */
static enum delivery deliver(struct virtio_net *n, const uint8_t *frame, size_t length)
{
    struct virtqueue *queue = &n->virtio.queue[VIRTIO_NET_QUEUE_RECEIVE];
    unsigned limit = virtio_has(&n->virtio, VIRTIO_NET_F_MRG_RXBUF) ? BUFFERS_MAX : 1, used = 0;
    limit = MIN(limit, queue->size);
    uint64_t skip = VIRTIO_NET_HEADER_SIZE; /* in the first buffer */
    for (size_t done = 0; done < length; used++) {
        struct virtqueue_chain *chain = used ? &n->chain : &n->first;
        enum delivery failed = used == limit ? DROPPED : NO_BUFFERS;
        if (used == limit || !take_buffer(queue, chain)) {
            virtqueue_rewind(queue, used);
            return failed;
        }
        if (chain->writable_size <= skip) {
            virtio_needs_reset(&n->virtio, "a receive buffer that is too small");
            virtqueue_rewind(queue, used + 1);
            return DROPPED;
        }
        size_t part = virtqueue_write(queue, chain, skip, frame + done, length - done);
        virtqueue_fill(queue, used, chain->head, (uint32_t)(skip + part));
        done += part;
        skip = 0;
        if (part == 0) { /* the page cannot be had */
            virtqueue_rewind(queue, used + 1);
            return DROPPED;
        }
    }
    write_header(n, queue, used);
    virtqueue_publish(queue, used);
    return DELIVERED;
}

/* Loop thread. Without a driver the backend is paused; a frame that comes all the same is lost. */
static bool receive(void *context, const uint8_t *frame, size_t length)
{
    struct virtio_net *n = context;
    enum delivery result = DROPPED;
    pthread_mutex_lock(&n->virtio.device.lock);
    bool listening =
        virtio_is_live(&n->virtio) && n->virtio.queue[VIRTIO_NET_QUEUE_RECEIVE].enabled;
    if (listening && length >= FRAME_MIN && length <= NET_FRAME_MAX)
        result = deliver(n, frame, length);
    if (result == NO_BUFFERS && !virtio_is_live(&n->virtio))
        result = DROPPED; /* the ring turned out to be bad */
    n->receive_waiting = result == NO_BUFFERS;
    pthread_mutex_unlock(&n->virtio.device.lock);
    return result != NO_BUFFERS;
}

/* There are buffers again. */
static void ask_for_frames(struct virtio_net *n)
{
    if (n->receive_waiting)
        n->net->ops->pause_receive(n->net, false);
    n->receive_waiting = false;
}

/* Loop thread. */
static void link_changed(void *context, bool up)
{
    struct virtio_net *n = context;
    pthread_mutex_lock(&n->virtio.device.lock);
    store_le16(n->virtio.config + CONFIG_STATUS, up ? STATUS_LINK_UP : 0);
    virtio_config_changed(&n->virtio);
    pthread_mutex_unlock(&n->virtio.device.lock);
}

/* --- control queue (5.1.6.5) --- */

/* All frames are delivered whatever the filters, so receive modes and tables are acknowledged. */
static uint8_t control_command(struct virtio_net *n)
{
    uint8_t bytes[2 + VIRTIO_NET_MAC_SIZE];
    size_t length = virtqueue_read(&n->chain, 0, bytes, sizeof bytes);
    if (length >= 3 && bytes[0] == VIRTIO_NET_CTRL_RX)
        return VIRTIO_NET_OK;
    if (length < 2 || bytes[0] != VIRTIO_NET_CTRL_MAC)
        return VIRTIO_NET_ERR;
    if (bytes[1] == VIRTIO_NET_CTRL_MAC_TABLE)
        return VIRTIO_NET_OK;
    if (bytes[1] != VIRTIO_NET_CTRL_MAC_ADDR_SET || length != sizeof bytes)
        return VIRTIO_NET_ERR;
    memcpy(n->virtio.config + CONFIG_MAC, bytes + 2, VIRTIO_NET_MAC_SIZE);
    return VIRTIO_NET_OK;
}

static bool control(struct virtio_net *n, struct virtqueue *queue)
{
    for (unsigned done = 0; done < queue->size; done++) {
        while (!virtqueue_pop(queue, &n->chain))
            if (!virtqueue_want_notify(queue))
                return false;
        uint8_t ack = control_command(n);
        size_t written = virtqueue_write(queue, &n->chain, 0, &ack, 1);
        virtqueue_push(queue, n->chain.head, (uint32_t)written);
    }
    return true;
}

/* --- the device --- */

static bool net_notify(struct virtio_device *virtio, struct virtqueue *queue)
{
    struct virtio_net *n = net_of(virtio);
    switch (queue->index) {
    case VIRTIO_NET_QUEUE_RECEIVE:
        ask_for_frames(n);
        return false;
    case VIRTIO_NET_QUEUE_TRANSMIT:
        return !n->send_waiting && transmit(n, queue);
    default:
        return control(n, queue);
    }
}

static void net_start(struct virtio_device *virtio)
{
    struct virtio_net *n = net_of(virtio);
    n->net->ops->pause_receive(n->net, false);
}

/* Until a driver starts again, frames wait in the backend as far as it has room. */
static void net_reset(struct virtio_device *virtio)
{
    struct virtio_net *n = net_of(virtio);
    memcpy(virtio->config + CONFIG_MAC, n->default_mac, VIRTIO_NET_MAC_SIZE);
    n->send_waiting = n->receive_waiting = false;
    n->net->ops->pause_receive(n->net, true);
}

static void net_save(struct virtio_device *virtio, struct state_writer *w)
{
    state_put(w, "mac", virtio->config + CONFIG_MAC, VIRTIO_NET_MAC_SIZE);
}

static int net_load(struct virtio_device *virtio, struct state_reader *r, struct err *err)
{
    state_get(r, "mac", virtio->config + CONFIG_MAC, VIRTIO_NET_MAC_SIZE);
    if (virtio_is_live(virtio))
        net_start(virtio);
    return 0;
}

static const struct virtio_ops net_ops = {
    .id = VIRTIO_ID_NET,
    .notify = net_notify,
    .start = net_start,
    .reset = net_reset,
    .save = net_save,
    .load = net_load,
};

static uint64_t features(const struct net *net)
{
    return VIRTIO_NET_F_CSUM | (net->checksum_offload ? VIRTIO_NET_F_GUEST_CSUM : 0) |
           VIRTIO_NET_F_MAC | VIRTIO_NET_F_MRG_RXBUF | VIRTIO_NET_F_STATUS | VIRTIO_NET_F_CTRL_VQ |
           VIRTIO_NET_F_CTRL_RX | VIRTIO_NET_F_CTRL_MAC_ADDR;
}

static int net_create(struct device *device, const void *config, struct err *err)
{
    const struct virtio_net_config *net_config = config;
    struct virtio_net *n = net_of(virtio_of(device));
    const struct virtio_setup setup = {.ops = &net_ops,
                                       .features = features(net_config->net),
                                       .queue_count = 3,
                                       .config_size = CONFIG_BYTES,
                                       .attach = &net_config->transport};
    int error = virtio_init(&n->virtio, &setup, err);
    if (error)
        return error;
    n->net = net_config->net;
    memcpy(n->default_mac, net_config->mac, VIRTIO_NET_MAC_SIZE);
    memcpy(n->virtio.config + CONFIG_MAC, net_config->mac, VIRTIO_NET_MAC_SIZE);
    store_le16(n->virtio.config + CONFIG_STATUS, STATUS_LINK_UP);
    n->net->client = (struct net_client) {
        .receive = receive, .can_send = can_send, .link = link_changed, .context = n};
    return 0;
}

static void net_destroy(struct device *device)
{
    struct virtio_net *n = net_of(virtio_of(device));
    n->net->client = (struct net_client) {0};
    virtio_destroy(&n->virtio);
}

const struct device_class virtio_net_class = {
    .name = "virtio-net",
    .size = sizeof(struct virtio_net),
    .create = net_create,
    .reset = virtio_class_reset,
    .save = virtio_class_save,
    .load = virtio_class_load,
    .destroy = net_destroy,
};
