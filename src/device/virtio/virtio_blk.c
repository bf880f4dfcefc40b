/*
 * virtio block device (virtio 1.2 section 5.2): several queues, flush, discard, write-zeroes,
 * serial number. Requests are taken on the vCPU thread that notified, go to the disk backend as
 * host pointers into guest memory, and complete on the backend's thread. Everything under the
 * device lock, except that nothing but the backend touches a request between submit and done.
 *
 * The write cache cannot be switched (no CONFIG_WCE): it is write-back for a driver that negotiated
 * FLUSH and write-through (a flush after each write) for one that did not (5.2.5.1).
 */
#include "device/virtio/virtio_blk.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "backend/disk/disk.h"
#include "vm/machine.h"

#define SECTOR        512u
#define HEADER_SIZE   16 /* type, reserved, sector */
#define RANGE_SIZE    16 /* a discard or write-zeroes segment: sector, count, flags */
#define RANGE_F_UNMAP 1u
#define RANGE_SECTORS (1u << 22)               /* at most 2 GiB in one segment */
#define SEGMENTS_MAX  (VIRTQUEUE_SIZE_MAX - 2) /* header and status take two */
#define SEGMENT_BYTES (1u << 20)
#define REQUEST_BYTES (1u << 30) /* bound of one transfer */
/* From here on nothing more is taken: pause, reset and exit wait for all that is in flight. */
#define IN_FLIGHT_BYTES (64ull << 20)

/* Config space (5.2.4) */
#define CONFIG_CAPACITY             0
#define CONFIG_SIZE_MAX             8
#define CONFIG_SEG_MAX              12
#define CONFIG_BLK_SIZE             20
#define CONFIG_PHYSICAL_BLOCK_EXP   24
#define CONFIG_MIN_IO_SIZE          26
#define CONFIG_OPT_IO_SIZE          28
#define CONFIG_NUM_QUEUES           34
#define CONFIG_MAX_DISCARD          36
#define CONFIG_MAX_DISCARD_SEG      40
#define CONFIG_DISCARD_ALIGNMENT    44
#define CONFIG_MAX_WRITE_ZEROES     48
#define CONFIG_MAX_WRITE_ZEROES_SEG 52
#define CONFIG_WRITE_ZEROES_UNMAP   56
#define CONFIG_BYTES                60

/* Who completes a request whose done() may come before submit returned, see submit(). */
enum handover { SUBMITTING, SUBMITTED, DONE };

struct blk_request {
    struct disk_request disk; /* first */
    struct virtio_blk *blk;
    struct virtqueue *queue;
    struct blk_request *next_free;
    _Atomic int handover;
    int result;
    uint32_t read_bytes;  /* of a read; the backend changes its own length */
    uint64_t costs_bytes; /* of bytes_in_flight */
    bool bracketed;
    bool flush_after; /* write-through */
    struct virtqueue_chain chain;
};

struct virtio_blk {
    struct virtio_device virtio;
    struct disk *disk;
    struct disk_info info;
    uint8_t serial[VIRTIO_BLK_SERIAL_SIZE];
    struct blk_request *free; /* at most one per ring entry is ever made */
    pthread_cond_t idle;      /* in_flight fell to 0 */
    uint64_t bytes_in_flight; /* which the backend has to move */
    uint64_t waiting_queues;  /* a bit per queue that was left for there being too many of them */
};

static struct virtio_blk *blk_of(struct virtio_device *virtio)
{
    return container_of(virtio, struct virtio_blk, virtio);
}

/* --- requests are kept and used again --- */

static struct blk_request *take_request(struct virtio_blk *blk)
{
    struct blk_request *request = blk->free;
    if (request)
        blk->free = request->next_free;
    else
        request = malloc(sizeof *request);
    return request;
}

static void put_request(struct virtio_blk *blk, struct blk_request *request)
{
    request->next_free = blk->free;
    blk->free = request;
}

/* --- completion --- */

/* The status byte is the last writable one (5.2.6); data_bytes were written before it. */
static void complete(struct blk_request *request, uint8_t status, uint32_t data_bytes)
{
    struct virtqueue *queue = request->queue;
    struct virtqueue_chain *chain = &request->chain;
    virtqueue_write(queue, chain, chain->writable_size - 1, &status, 1);
    /* used.len counts from the start of the writable part, so it may tell of the status byte only
     * when all before it was written (2.7.8.2). */
    bool all = data_bytes + 1 == chain->writable_size;
    virtqueue_push(queue, chain->head, all ? data_bytes + 1 : data_bytes);
    put_request(request->blk, request);
}

static void submit(struct blk_request *request);

static void uncount_bytes(struct virtio_blk *blk, uint64_t bytes)
{
    blk->bytes_in_flight -= bytes;
    if (blk->bytes_in_flight >= IN_FLIGHT_BYTES)
        return;
    uint64_t queues = blk->waiting_queues;
    blk->waiting_queues = 0;
    for (unsigned i = 0; i < blk->virtio.queue_count; i++)
        if (queues >> i & 1)
            virtio_continue(&blk->virtio, &blk->virtio.queue[i]);
}

/* The backend is through with the request. Lock held. */
static void finish(struct blk_request *request)
{
    struct virtio_blk *blk = request->blk;
    struct virtio_device *virtio = &blk->virtio;
    int result = request->result;
    if (result == 0 && request->flush_after) {
        request->flush_after = false;
        request->disk.op = DISK_FLUSH;
        request->disk.offset = request->disk.length = 0;
        request->disk.iov_count = 0;
        submit(request);
        return;
    }
    uncount_bytes(blk, request->costs_bytes);
    if (request->bracketed)
        virtqueue_write_end(request->queue, &request->chain);
    if (result == 0)
        complete(request, VIRTIO_BLK_S_OK, request->read_bytes);
    else
        complete(request, VIRTIO_BLK_S_IOERR, 0);
    virtio_request_end(virtio);
    if (virtio->in_flight == 0)
        pthread_cond_broadcast(&blk->idle);
}

/* On the backend's thread, or inside disk_submit. */
static void disk_done(struct disk_request *disk_request, int result)
{
    struct blk_request *request = container_of(disk_request, struct blk_request, disk);
    struct virtio_device *virtio = &request->blk->virtio;
    request->result = result;
    /* Release: the submitter that finds DONE sees the result. */
    if (atomic_exchange(&request->handover, DONE) == SUBMITTING)
        return;
    pthread_mutex_lock(&virtio->device.lock);
    finish(request);
    pthread_mutex_unlock(&virtio->device.lock);
}

/*
 * Hands the request to the backend with the device lock held. When done() comes before disk_submit
 * has returned (perhaps on this very thread), it must not take the lock: it leaves the completion
 * to us.
 */
static void submit(struct blk_request *request)
{
    atomic_store(&request->handover, SUBMITTING);
    disk_submit(request->blk->disk, &request->disk);
    if (atomic_exchange(&request->handover, SUBMITTED) == DONE)
        finish(request);
}

/* --- the kinds of request --- */

/* Fills in what goes to the backend and sends it off. */
static void start(struct blk_request *request, enum disk_op op, uint64_t sector, uint64_t sectors)
{
    struct disk_request *disk = &request->disk;
    disk->op = op;
    disk->offset = sector * SECTOR;
    disk->length = sectors * SECTOR;
    disk->bounced = false;
    disk->done = disk_done;
    disk->context = NULL;
    request->costs_bytes = op == DISK_DISCARD ? 0 : disk->length; /* a discard moves nothing */
    request->blk->bytes_in_flight += request->costs_bytes;
    virtio_request_begin(&request->blk->virtio);
    submit(request);
}

static bool sectors_fit(const struct virtio_blk *blk, uint64_t sector, uint64_t count)
{
    return range_fits(sector, count, blk->info.size / SECTOR);
}

/* In each of these the result is a status for a request that ends at once, or -1: under way. */

static int transfer(struct blk_request *request, bool write, uint64_t sector)
{
    struct virtio_blk *blk = request->blk;
    struct virtqueue_chain *chain = &request->chain;
    uint64_t length = write ? chain->readable_size - HEADER_SIZE : chain->writable_size - 1;
    if (length % SECTOR || length > REQUEST_BYTES || !sectors_fit(blk, sector, length / SECTOR))
        return VIRTIO_BLK_S_IOERR;
    if (write && blk->info.read_only)
        return VIRTIO_BLK_S_IOERR;
    if (length == 0)
        return VIRTIO_BLK_S_OK;
    struct disk_request *disk = &request->disk;
    if (write)
        disk->iov_count = virtqueue_trim_readable(chain, HEADER_SIZE, length, &disk->iov);
    else
        disk->iov_count = virtqueue_trim_writable(chain, 0, length, &disk->iov);
    if (disk->iov_count > DISK_IOV_MAX)
        return VIRTIO_BLK_S_IOERR;
    if (!write) {
        if (virtqueue_write_begin(request->queue, chain))
            return VIRTIO_BLK_S_IOERR;
        request->bracketed = true;
        request->read_bytes = (uint32_t)length;
    }
    request->flush_after = write && !virtio_has(&blk->virtio, VIRTIO_BLK_F_FLUSH);
    start(request, write ? DISK_WRITE : DISK_READ, sector, length / SECTOR);
    return -1;
}

static int flush(struct blk_request *request)
{
    request->disk.iov_count = 0;
    start(request, DISK_FLUSH, 0, 0);
    return -1;
}

/* Discard and write-zeroes (5.2.6.2): one segment, as the config space says. */
static int clear_range(struct blk_request *request, bool discard)
{
    struct virtio_blk *blk = request->blk;
    uint64_t feature = discard ? VIRTIO_BLK_F_DISCARD : VIRTIO_BLK_F_WRITE_ZEROES;
    uint8_t range[RANGE_SIZE];
    if (!virtio_has(&blk->virtio, feature))
        return VIRTIO_BLK_S_UNSUPP;
    if (request->chain.readable_size != HEADER_SIZE + RANGE_SIZE)
        return VIRTIO_BLK_S_IOERR;
    virtqueue_read(&request->chain, HEADER_SIZE, range, sizeof range);
    uint64_t sector = load_le64(range);
    uint32_t count = load_le32(range + 8), flags = load_le32(range + 12);
    if (flags & ~RANGE_F_UNMAP || (discard && flags))
        return VIRTIO_BLK_S_UNSUPP;
    if (blk->info.read_only || count > RANGE_SECTORS || !sectors_fit(blk, sector, count))
        return VIRTIO_BLK_S_IOERR;
    if (count == 0)
        return VIRTIO_BLK_S_OK;
    request->disk.iov_count = 0;
    request->disk.unmap = flags & RANGE_F_UNMAP;
    request->flush_after = !virtio_has(&blk->virtio, VIRTIO_BLK_F_FLUSH);
    start(request, discard ? DISK_DISCARD : DISK_WRITE_ZEROES, sector, count);
    return -1;
}

/* The serial number is padded with zeros to 20 bytes (5.2.6). */
static void get_id(struct blk_request *request)
{
    uint64_t length = MIN(request->chain.writable_size - 1, (uint64_t)VIRTIO_BLK_SERIAL_SIZE);
    virtqueue_write(request->queue, &request->chain, 0, request->blk->serial, length);
    complete(request, VIRTIO_BLK_S_OK, (uint32_t)length);
}

static void dispatch(struct blk_request *request)
{
    uint8_t header[HEADER_SIZE];
    virtqueue_read(&request->chain, 0, header, sizeof header);
    uint64_t sector = load_le64(header + 8);
    int status = VIRTIO_BLK_S_UNSUPP;
    switch (load_le32(header)) {
    case VIRTIO_BLK_T_IN:
        status = transfer(request, false, sector);
        break;
    case VIRTIO_BLK_T_OUT:
        status = transfer(request, true, sector);
        break;
    case VIRTIO_BLK_T_FLUSH:
        status = flush(request);
        break;
    case VIRTIO_BLK_T_GET_ID:
        get_id(request);
        return;
    case VIRTIO_BLK_T_DISCARD:
        status = clear_range(request, true);
        break;
    case VIRTIO_BLK_T_WRITE_ZEROES:
        status = clear_range(request, false);
        break;
    default:
        break;
    }
    if (status >= 0)
        complete(request, (uint8_t)status, 0);
}

/* Takes and starts one request; false when there is none. */
static bool serve_one(struct virtio_blk *blk, struct virtqueue *queue)
{
    struct blk_request *request = take_request(blk);
    if (!request) {
        virtio_needs_reset(&blk->virtio, "the host is out of memory for requests");
        return false;
    }
    if (!virtqueue_pop(queue, &request->chain)) {
        put_request(blk, request);
        return false;
    }
    request->blk = blk;
    request->queue = queue;
    request->bracketed = request->flush_after = false;
    request->read_bytes = 0;
    request->disk.unmap = false;
    if (request->chain.readable_size < HEADER_SIZE || request->chain.writable_size < 1) {
        virtio_needs_reset(&blk->virtio, "a request without header or status byte");
        virtqueue_push(queue, request->chain.head, 0);
        put_request(blk, request);
        return false;
    }
    dispatch(request);
    return true;
}

static bool blk_notify(struct virtio_device *virtio, struct virtqueue *queue)
{
    struct virtio_blk *blk = blk_of(virtio);
    for (unsigned done = 0; done < queue->size;) {
        if (blk->bytes_in_flight >= IN_FLIGHT_BYTES) {
            blk->waiting_queues |= BIT(queue->index);
            return false;
        }
        if (serve_one(blk, queue))
            done++;
        else if (!virtqueue_want_notify(queue))
            return false;
    }
    return true;
}

/* --- the device --- */

static void set_config(struct virtio_blk *blk, unsigned queue_count)
{
    uint8_t *config = blk->virtio.config;
    unsigned exponent = 0;
    while (exponent < 8 && (SECTOR << (exponent + 1)) <= blk->info.block_size)
        exponent++;
    store_le64(config + CONFIG_CAPACITY, blk->info.size / SECTOR);
    store_le32(config + CONFIG_SIZE_MAX, SEGMENT_BYTES);
    store_le32(config + CONFIG_SEG_MAX, SEGMENTS_MAX);
    store_le32(config + CONFIG_BLK_SIZE, SECTOR);
    config[CONFIG_PHYSICAL_BLOCK_EXP] = (uint8_t)exponent;
    store_le16(config + CONFIG_MIN_IO_SIZE, (uint16_t)(1u << exponent));
    store_le32(config + CONFIG_OPT_IO_SIZE, 0);
    store_le16(config + CONFIG_NUM_QUEUES, (uint16_t)queue_count);
    store_le32(config + CONFIG_MAX_DISCARD, RANGE_SECTORS);
    store_le32(config + CONFIG_MAX_DISCARD_SEG, 1);
    store_le32(config + CONFIG_DISCARD_ALIGNMENT,
               MAX(1u << exponent, blk->info.discard_granularity / SECTOR));
    store_le32(config + CONFIG_MAX_WRITE_ZEROES, RANGE_SECTORS);
    store_le32(config + CONFIG_MAX_WRITE_ZEROES_SEG, 1);
    config[CONFIG_WRITE_ZEROES_UNMAP] = blk->info.can_discard;
}

static const struct virtio_ops blk_ops = {
    .id = VIRTIO_ID_BLOCK,
    .notify = blk_notify,
};

static int blk_create(struct device *device, const void *config, struct err *err)
{
    const struct virtio_blk_config *blk_config = config;
    struct virtio_blk *blk = blk_of(virtio_of(device));
    if (blk_config->serial && strlen(blk_config->serial) > VIRTIO_BLK_SERIAL_SIZE)
        return err_set(err, EINVAL, "%s: a serial number has at most %d characters", device->path,
                       VIRTIO_BLK_SERIAL_SIZE);
    blk->disk = blk_config->disk;
    disk_info(blk->disk, &blk->info);
    if (blk_config->serial)
        memcpy(blk->serial, blk_config->serial, strlen(blk_config->serial));
    uint64_t features = VIRTIO_BLK_F_SIZE_MAX | VIRTIO_BLK_F_SEG_MAX | VIRTIO_BLK_F_BLK_SIZE |
                        VIRTIO_BLK_F_FLUSH | VIRTIO_BLK_F_TOPOLOGY | VIRTIO_BLK_F_MQ;
    if (blk->info.read_only)
        features |= VIRTIO_BLK_F_RO;
    else
        features |= VIRTIO_BLK_F_WRITE_ZEROES | (blk->info.can_discard ? VIRTIO_BLK_F_DISCARD : 0);
    unsigned queue_count = MIN(MAX(blk_config->queue_count, 1u), VIRTIO_QUEUES_MAX);
    set_config(blk, queue_count);
    const struct virtio_setup setup = {.ops = &blk_ops,
                                       .features = features,
                                       .queue_count = queue_count,
                                       .config_size = CONFIG_BYTES,
                                       .attach = &blk_config->transport};
    int error = virtio_init(&blk->virtio, &setup, err);
    if (!error)
        pthread_cond_init(&blk->idle, NULL);
    return error;
}

/* Loop thread, lock not held. */
static void blk_quiesce(struct device *device)
{
    struct virtio_blk *blk = blk_of(virtio_of(device));
    pthread_mutex_lock(&device->lock);
    while (blk->virtio.in_flight)
        pthread_cond_wait(&blk->idle, &device->lock);
    pthread_mutex_unlock(&device->lock);
}

static void blk_destroy(struct device *device)
{
    struct virtio_blk *blk = blk_of(virtio_of(device));
    blk_quiesce(device);
    virtio_destroy(&blk->virtio);
    while (blk->free) {
        struct blk_request *request = blk->free;
        blk->free = request->next_free;
        free(request);
    }
    pthread_cond_destroy(&blk->idle);
}

const struct device_class virtio_blk_class = {
    .name = "virtio-blk",
    .size = sizeof(struct virtio_blk),
    .create = blk_create,
    .reset = virtio_class_reset,
    .save = virtio_class_save,
    .load = virtio_class_load,
    .destroy = blk_destroy,
    .quiesce = blk_quiesce,
};
