/* Split virtqueues (virtio 1.2 section 2.7); threads and rules in virtqueue.h. */
#include "device/virtio/virtqueue.h"

#include <stdatomic.h>

#include "device/virtio/virtio.h"
#include "vm/machine.h"

/* Descriptor (2.7.5) */
#define DESC_SIZE       16
#define DESC_F_NEXT     1
#define DESC_F_WRITE    2
#define DESC_F_INDIRECT 4
#define CHAIN_BYTES_MAX (1ull << 32) /* 2.7.5: the sum of all lengths */

/* Available ring (2.7.6): flags, idx, ring[], used_event. Used ring (2.7.8): flags, idx, ring[] of
 * (id, len), avail_event. */
#define AVAIL_F_NO_INTERRUPT 1
#define RING_IDX             2
#define RING_ENTRIES         4

struct descriptor {
    uint64_t address;
    uint32_t length;
    uint16_t flags, next;
};

static struct guest_memory *memory_of(const struct virtqueue *queue)
{
    return queue->device->device.machine->memory;
}

static uint64_t avail_bytes(const struct virtqueue *queue)
{
    return RING_ENTRIES + 2ull * queue->size + 2;
}

static uint64_t used_bytes(const struct virtqueue *queue)
{
    return RING_ENTRIES + 8ull * queue->size + 2;
}

static gpa_t avail_entry(const struct virtqueue *queue, uint16_t position)
{
    return gpa_add(queue->avail, RING_ENTRIES + 2u * (position & (queue->size - 1u)));
}

static gpa_t used_entry(const struct virtqueue *queue, uint16_t position)
{
    return gpa_add(queue->used, RING_ENTRIES + 8u * (position & (queue->size - 1u)));
}

/* used_event lies behind the available ring, avail_event behind the used ring (2.7.7.2, 2.7.10). */
static gpa_t used_event(const struct virtqueue *queue)
{
    return gpa_add(queue->avail, RING_ENTRIES + 2u * queue->size);
}

static gpa_t avail_event(const struct virtqueue *queue)
{
    return gpa_add(queue->used, RING_ENTRIES + 8u * queue->size);
}

/* The rings were checked when the queue was enabled, so these fail only when a page cannot be had.
 */
static uint16_t ring_load(struct virtqueue *queue, gpa_t at)
{
    uint64_t value = 0;
    if (guest_memory_load(memory_of(queue), at, 2, &value))
        virtio_needs_reset(queue->device, "a ring cannot be read");
    return (uint16_t)value;
}

static void ring_store(struct virtqueue *queue, gpa_t at, uint16_t value)
{
    if (guest_memory_store(memory_of(queue), at, 2, value))
        virtio_needs_reset(queue->device, "a ring cannot be written");
}

void virtqueue_reset(struct virtqueue *queue)
{
    *queue = (struct virtqueue) {.device = queue->device,
                                 .index = queue->index,
                                 .size_max = queue->size_max,
                                 .size = queue->size_max};
}

static bool is_ram(struct virtqueue *queue, gpa_t start, uint64_t length)
{
    struct iovec iov[4];
    unsigned count = ARRAY_COUNT(iov);
    return guest_memory_iov(memory_of(queue), start, length, 0, iov, &count) == 0;
}

bool virtqueue_enable(struct virtqueue *queue)
{
    if (queue->size == 0 || queue->size > queue->size_max || queue->size & (queue->size - 1))
        return false;
    if (queue->descriptors.v % 16 || queue->avail.v % 2 || queue->used.v % 4)
        return false;
    if (!is_ram(queue, queue->descriptors, (uint64_t)DESC_SIZE * queue->size) ||
        !is_ram(queue, queue->avail, avail_bytes(queue)) ||
        !is_ram(queue, queue->used, used_bytes(queue)))
        return false;
    queue->enabled = true;
    return true;
}

/* --- taking chains --- */

/* Where descriptors are read from: the queue's table or an indirect one. */
struct table {
    gpa_t start;
    uint32_t count;
    bool indirect;
};

static const char *read_descriptor(struct virtqueue *queue, const struct table *table,
                                   uint32_t index, struct descriptor *out)
{
    uint8_t bytes[DESC_SIZE];
    if (index >= table->count)
        return "a descriptor index is outside its table";
    if (guest_memory_read(memory_of(queue), gpa_add(table->start, (uint64_t)index * DESC_SIZE),
                          bytes, sizeof bytes))
        return "a descriptor table is outside RAM";
    *out = (struct descriptor) {load_le64(bytes), load_le32(bytes + 8), load_le16(bytes + 12),
                                load_le16(bytes + 14)};
    return NULL;
}

/* 2.7.5.3.1: one table, not nested, not chained; its length a multiple of 16. */
static const char *enter_indirect(struct virtqueue *queue, struct table *table,
                                  const struct descriptor *d)
{
    if (!virtio_has(queue->device, VIRTIO_F_INDIRECT_DESC))
        return "an indirect descriptor, which was not negotiated";
    if (table->indirect)
        return "an indirect descriptor inside an indirect table";
    if (d->flags & DESC_F_NEXT)
        return "an indirect descriptor with NEXT";
    if (d->length == 0 || d->length % DESC_SIZE || d->length / DESC_SIZE > queue->size_max)
        return "an indirect table of a wrong length";
    *table = (struct table) {gpa(d->address), d->length / DESC_SIZE, true};
    return NULL;
}

static const char *add_segment(struct virtqueue *queue, struct virtqueue_chain *chain,
                               const struct descriptor *d)
{
    bool writable = d->flags & DESC_F_WRITE;
    if (d->length == 0)
        return "a descriptor of length 0";
    if (!writable && chain->readable_segments != chain->segment_count)
        return "a readable descriptor after a writable one";
    if (chain->readable_size + chain->writable_size + d->length > CHAIN_BYTES_MAX)
        return "a chain of more than 4 GiB";
    unsigned count = VIRTQUEUE_IOV_MAX - chain->iov_count;
    if (guest_memory_iov(memory_of(queue), gpa(d->address), d->length, 0,
                         chain->iov + chain->iov_count, &count))
        return "a buffer outside RAM";
    chain->segment[chain->segment_count++] =
        (struct virtqueue_segment) {gpa(d->address), d->length};
    chain->iov_count += count;
    if (writable) {
        chain->writable_size += d->length;
    } else {
        chain->readable_segments = chain->segment_count;
        chain->readable_iov = chain->iov_count;
        chain->readable_size += d->length;
    }
    return NULL;
}

/* Follows the chain from its head. NULL, or what is wrong with it. */
static const char *walk(struct virtqueue *queue, struct virtqueue_chain *chain)
{
    struct table table = {queue->descriptors, queue->size, false};
    uint32_t index = chain->head;
    for (;;) {
        struct descriptor d;
        const char *wrong = read_descriptor(queue, &table, index, &d);
        if (wrong)
            return wrong;
        if (d.flags & DESC_F_INDIRECT) {
            wrong = enter_indirect(queue, &table, &d);
            if (wrong)
                return wrong;
            index = 0;
            continue; /* at most once: tables do not nest */
        }
        if (chain->segment_count == queue->size_max ||
            (!table.indirect && chain->segment_count == queue->size))
            return "a chain longer than the queue, or a loop";
        wrong = add_segment(queue, chain, &d);
        if (wrong)
            return wrong;
        if (!(d.flags & DESC_F_NEXT))
            return NULL;
        index = d.next;
    }
}

static void clear_chain(struct virtqueue_chain *chain, uint16_t head)
{
    chain->head = head;
    chain->segment_count = chain->readable_segments = 0;
    chain->iov_count = chain->readable_iov = 0;
    chain->readable_size = chain->writable_size = 0;
}

static bool may_run(const struct virtqueue *queue)
{
    return queue->enabled && virtio_is_live(queue->device) && queue->device->dma_enabled;
}

bool virtqueue_pop(struct virtqueue *queue, struct virtqueue_chain *chain)
{
    if (!may_run(queue))
        return false;
    /* Acquire (in the load): entries are read after the index that covers them. */
    uint16_t waiting =
        (uint16_t)(ring_load(queue, gpa_add(queue->avail, RING_IDX)) - queue->next_avail);
    if (waiting == 0)
        return false;
    if (waiting > queue->size || queue->in_flight >= queue->size) {
        virtio_needs_reset(queue->device, "more buffers are available than the queue holds");
        return false;
    }
    uint16_t head = ring_load(queue, avail_entry(queue, queue->next_avail));
    clear_chain(chain, head);
    const char *wrong = walk(queue, chain);
    if (wrong)
        virtio_needs_reset(queue->device, wrong);
    if (!may_run(queue))
        return false;
    queue->next_avail++;
    queue->in_flight++;
    return true;
}

void virtqueue_rewind(struct virtqueue *queue, unsigned count)
{
    queue->next_avail = (uint16_t)(queue->next_avail - count);
    queue->in_flight = (uint16_t)(queue->in_flight - count);
}

bool virtqueue_want_notify(struct virtqueue *queue)
{
    if (!may_run(queue))
        return false;
    if (virtio_has(queue->device, VIRTIO_F_EVENT_IDX)) {
        ring_store(queue, avail_event(queue), queue->next_avail);
        /* Pairs with the driver's barrier between its index and its look at avail_event. */
        atomic_thread_fence(memory_order_seq_cst);
    }
    return ring_load(queue, gpa_add(queue->avail, RING_IDX)) != queue->next_avail;
}

/* --- giving chains back --- */

/* 2.7.7.2 and 2.7.10.2: does the driver want to hear about used buffers old to now? */
static bool driver_wants_interrupt(struct virtqueue *queue)
{
    /* Pairs with the driver's barrier between used_event (or flags) and its look at used idx. */
    atomic_thread_fence(memory_order_seq_cst);
    if (!virtio_has(queue->device, VIRTIO_F_EVENT_IDX))
        return !(ring_load(queue, queue->avail) & AVAIL_F_NO_INTERRUPT);
    bool valid = queue->signalled_valid;
    uint16_t old = queue->signalled_used, now = queue->next_used;
    queue->signalled_used = now;
    queue->signalled_valid = true;
    uint16_t event = ring_load(queue, used_event(queue));
    return !valid || (uint16_t)(now - event - 1) < (uint16_t)(now - old);
}

void virtqueue_fill(struct virtqueue *queue, unsigned ahead, uint16_t head, uint32_t written)
{
    uint8_t entry[8];
    if (!queue->enabled || !virtio_is_live(queue->device))
        return;
    store_le32(entry, head);
    store_le32(entry + 4, written);
    if (guest_memory_write(memory_of(queue),
                           used_entry(queue, (uint16_t)(queue->next_used + ahead)), entry,
                           sizeof entry))
        virtio_needs_reset(queue->device, "a used ring cannot be written");
}

void virtqueue_publish(struct virtqueue *queue, unsigned count)
{
    queue->in_flight = (uint16_t)(queue->in_flight - count);
    if (!queue->enabled || !virtio_is_live(queue->device))
        return;
    queue->next_used = (uint16_t)(queue->next_used + count);
    /* Release (in the store): the entries, and the data before them, are there first. */
    ring_store(queue, gpa_add(queue->used, RING_IDX), queue->next_used);
    struct virtio_device *virtio = queue->device;
    if (driver_wants_interrupt(queue))
        virtio->transport_ops->interrupt_queue(virtio->transport, queue->index);
}

void virtqueue_push(struct virtqueue *queue, uint16_t head, uint32_t written)
{
    virtqueue_fill(queue, 0, head, written);
    virtqueue_publish(queue, 1);
}

/* --- a chain's bytes --- */

size_t virtqueue_read(const struct virtqueue_chain *chain, uint64_t offset, void *to, size_t length)
{
    size_t done = 0;
    for (unsigned i = 0; i < chain->readable_iov && done < length; i++) {
        const struct iovec *iov = &chain->iov[i];
        if (offset >= iov->iov_len) {
            offset -= iov->iov_len;
            continue;
        }
        size_t part = MIN(length - done, iov->iov_len - offset);
        memcpy((uint8_t *)to + done, (const uint8_t *)iov->iov_base + offset, part);
        done += part;
        offset = 0;
    }
    return done;
}

size_t virtqueue_write(struct virtqueue *queue, const struct virtqueue_chain *chain,
                       uint64_t offset, const void *from, size_t length)
{
    size_t done = 0;
    for (unsigned i = chain->readable_segments; i < chain->segment_count && done < length; i++) {
        const struct virtqueue_segment *segment = &chain->segment[i];
        if (offset >= segment->length) {
            offset -= segment->length;
            continue;
        }
        size_t part = MIN(length - done, segment->length - offset);
        if (guest_memory_write(memory_of(queue), gpa_add(segment->address, offset),
                               (const uint8_t *)from + done, part))
            break;
        done += part;
        offset = 0;
    }
    return done;
}

/* Cuts the pieces to [skip, skip + length); returns how many are left. */
static unsigned trim(struct iovec *pieces, unsigned count, uint64_t skip, uint64_t length,
                     struct iovec **iov)
{
    unsigned first = 0, used = 0;
    while (first < count && skip >= pieces[first].iov_len)
        skip -= pieces[first++].iov_len;
    *iov = pieces + first;
    if (first < count && skip) {
        pieces[first].iov_base = (uint8_t *)pieces[first].iov_base + skip;
        pieces[first].iov_len -= skip;
    }
    for (; first + used < count && length; used++) {
        struct iovec *piece = &pieces[first + used];
        piece->iov_len = MIN(piece->iov_len, length);
        length -= piece->iov_len;
    }
    return used;
}

unsigned virtqueue_trim_readable(struct virtqueue_chain *chain, uint64_t skip, uint64_t length,
                                 struct iovec **iov)
{
    return trim(chain->iov, chain->readable_iov, skip, length, iov);
}

unsigned virtqueue_trim_writable(struct virtqueue_chain *chain, uint64_t skip, uint64_t length,
                                 struct iovec **iov)
{
    return trim(chain->iov + chain->readable_iov, chain->iov_count - chain->readable_iov, skip,
                length, iov);
}

static void end_segments(struct virtqueue *queue, const struct virtqueue_chain *chain, unsigned end)
{
    for (unsigned i = chain->readable_segments; i < end; i++)
        guest_memory_write_end(memory_of(queue), chain->segment[i].address,
                               chain->segment[i].length);
}

int virtqueue_write_begin(struct virtqueue *queue, const struct virtqueue_chain *chain)
{
    for (unsigned i = chain->readable_segments; i < chain->segment_count; i++) {
        int error = guest_memory_write_begin(memory_of(queue), chain->segment[i].address,
                                             chain->segment[i].length);
        if (error) {
            end_segments(queue, chain, i);
            return error;
        }
    }
    return 0;
}

void virtqueue_write_end(struct virtqueue *queue, const struct virtqueue_chain *chain)
{
    end_segments(queue, chain, chain->segment_count);
}
