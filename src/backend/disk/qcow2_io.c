/* Reads and writes. Several threads at a time; data moves without the lock. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "backend/disk/qcow2_int.h"

#define PARTS_MAX     (DISK_IOV_MAX + 4)
#define ZEROES_SIZE   65536u
#define ZEROES_PIECES 64u

/* Reading */

/* What the image itself does not hold: the backing file, and zeroes behind its end. */
static int read_backing(struct qcow2 *q, const struct image_io *part)
{
    struct image *backing = q->image.backing;
    uint64_t inside = 0;
    if (backing && part->offset < backing->size)
        inside = MIN(part->length, backing->size - part->offset);
    image_io_zero(part, inside, part->length - inside);
    if (!inside)
        return 0;
    struct iovec iov[PARTS_MAX];
    struct image_io io = {iov, image_io_slice(part, 0, inside, iov, PARTS_MAX), part->offset,
                          inside};
    return io.iov_count ? image_readv(backing, &io) : -EINVAL;
}

static int read_extent(struct qcow2 *q, const struct qcow2_extent *extent, struct image_io *part)
{
    uint64_t skip = part->offset & (q->cluster_size - 1);
    switch (extent->kind) {
    case QCOW2_UNALLOCATED:
        return read_backing(q, part);
    case QCOW2_ZEROES:
        image_io_zero(part, 0, part->length);
        return 0;
    case QCOW2_DATA:
        part->offset = extent->host;
        return q->file->ops->readv(q->file, part);
    case QCOW2_COMPRESSED_DATA:
        return qcow2_read_compressed(q, extent->entry, skip, part);
    }
    return -EINVAL;
}

int qcow2_read_range(struct qcow2 *q, const struct image_io *io)
{
    struct iovec iov[PARTS_MAX];
    for (uint64_t done = 0; done < io->length;) {
        struct qcow2_extent extent;
        pthread_mutex_lock(&q->lock);
        int error = qcow2_lookup(q, io->offset + done, io->length - done, &extent);
        pthread_mutex_unlock(&q->lock);
        if (error)
            return error;
        struct image_io part = {iov, image_io_slice(io, done, extent.length, iov, PARTS_MAX),
                                io->offset + done, extent.length};
        error = part.iov_count ? read_extent(q, &extent, &part) : -EINVAL;
        if (error)
            return error;
        done += extent.length;
    }
    return 0;
}

static struct qcow2_range range_of(const struct qcow2 *q, uint64_t offset, uint64_t length)
{
    return (struct qcow2_range) {.first = offset >> q->cluster_bits,
                                 .last = (offset + length - 1) >> q->cluster_bits};
}

int qcow2_readv(struct image *image, const struct image_io *io)
{
    struct qcow2 *q = qcow2_of(image);
    if (!io->length)
        return 0;
    struct qcow2_range range = range_of(q, io->offset, io->length);
    qcow2_range_take(q, &range);
    int error = qcow2_read_range(q, io);
    qcow2_range_give(q, &range);
    return error;
}

/* Writing */

static int write_in_place(struct qcow2 *q, const struct image_io *io, uint64_t done,
                          const struct qcow2_extent *extent)
{
    struct iovec iov[PARTS_MAX];
    struct image_io part = {iov, image_io_slice(io, done, extent->length, iov, PARTS_MAX),
                            extent->host, extent->length};
    return part.iov_count ? q->file->ops->writev(q->file, &part) : -EINVAL;
}

/* Clusters that get a new place: what is written, and what was there around it. */
struct piece {
    uint64_t offset, length; /* of the data, on the disk */
    uint64_t head, tail;     /* bytes before and behind it in its clusters */
    uint64_t first, count;   /* clusters of the file */
    bool reused;             /* the cluster had been kept for this */
};

static int allocate_piece(struct qcow2 *q, const struct qcow2_extent *extent, struct piece *piece)
{
    uint64_t mask = q->cluster_size - 1;
    piece->head = piece->offset & mask;
    uint64_t want = (piece->head + piece->length + mask) >> q->cluster_bits;
    piece->reused = extent->kind == QCOW2_ZEROES && extent->in_place;
    piece->first = extent->host >> q->cluster_bits;
    piece->count = 1;
    int error = qcow2_begin_change(q);
    if (!error && !piece->reused)
        error = qcow2_alloc(q, want, &piece->first, &piece->count);
    if (error)
        return error;
    uint64_t bytes = piece->count << q->cluster_bits;
    piece->length = MIN(piece->length, bytes - piece->head);
    piece->tail = bytes - piece->head - piece->length;
    return 0;
}

static int read_old(struct qcow2 *q, uint8_t *data, uint64_t size, uint64_t offset)
{
    struct iovec iov = {data, size};
    return size ? qcow2_read_range(q, &(struct image_io) {&iov, 1, offset, size}) : 0;
}

/* Head, data and tail in one write. */
static int write_piece(struct qcow2 *q, const struct image_io *io, const struct piece *piece)
{
    struct iovec iov[PARTS_MAX];
    unsigned count = piece->head ? 1 : 0;
    uint8_t *around = malloc(piece->head + piece->tail + 1);
    if (!around)
        return -ENOMEM;
    iov[0] = (struct iovec) {around, piece->head};
    unsigned parts =
        image_io_slice(io, piece->offset - io->offset, piece->length, iov + count, PARTS_MAX - 2);
    count += parts;
    if (piece->tail)
        iov[count++] = (struct iovec) {around + piece->head, piece->tail};
    uint64_t end = piece->offset + piece->length;
    int error = parts ? read_old(q, around, piece->head, piece->offset - piece->head) : -EINVAL;
    if (!error)
        error = read_old(q, around + piece->head, piece->tail, end);
    struct image_io out = {iov, count, piece->first << q->cluster_bits,
                           piece->count << q->cluster_bits};
    if (!error)
        error = q->file->ops->writev(q->file, &out);
    free(around);
    return error;
}

/* Lock held. */
static int link_piece(struct qcow2 *q, const struct piece *piece)
{
    qcow2_wait_commit(q);
    return q->failed ? q->failed
                     : qcow2_link(q, piece->offset >> q->cluster_bits, piece->count,
                                  piece->first << q->cluster_bits);
}

/* The range is exclusive. *length: in, what there is to write; out, what was written. */
static int write_new(struct qcow2 *q, const struct image_io *io, uint64_t done,
                     const struct qcow2_extent *extent, uint64_t *length)
{
    struct piece piece = {.offset = io->offset + done, .length = extent->length};
    pthread_mutex_lock(&q->lock);
    int error = allocate_piece(q, extent, &piece);
    pthread_mutex_unlock(&q->lock);
    if (error)
        return error;
    error = write_piece(q, io, &piece);
    pthread_mutex_lock(&q->lock);
    if (!error)
        error = link_piece(q, &piece);
    if (error && !piece.reused) {
        qcow2_wait_commit(q);
        qcow2_free_now(q, piece.first, piece.count);
    }
    pthread_mutex_unlock(&q->lock);
    *length = piece.length;
    return error;
}

static int write_range(struct qcow2 *q, const struct image_io *io)
{
    for (uint64_t done = 0; done < io->length;) {
        struct qcow2_extent extent;
        pthread_mutex_lock(&q->lock);
        int error = qcow2_lookup(q, io->offset + done, io->length - done, &extent);
        pthread_mutex_unlock(&q->lock);
        uint64_t length = extent.length;
        if (!error && extent.kind == QCOW2_DATA && extent.in_place)
            error = write_in_place(q, io, done, &extent);
        else if (!error)
            error = write_new(q, io, done, &extent, &length);
        if (error)
            return error;
        done += length;
    }
    return 0;
}

/* Lock held. */
static bool is_all_in_place(struct qcow2 *q, const struct image_io *io)
{
    for (uint64_t done = 0; done < io->length;) {
        struct qcow2_extent extent;
        if (qcow2_lookup(q, io->offset + done, io->length - done, &extent) ||
            extent.kind != QCOW2_DATA || !extent.in_place)
            return false;
        done += extent.length;
    }
    return true;
}

int qcow2_writev(struct image *image, const struct image_io *io)
{
    struct qcow2 *q = qcow2_of(image);
    if (!io->length)
        return 0;
    struct qcow2_range range = range_of(q, io->offset, io->length);
    qcow2_range_take(q, &range);
    pthread_mutex_lock(&q->lock);
    int error = qcow2_begin_write(q);
    bool in_place = !error && is_all_in_place(q, io);
    pthread_mutex_unlock(&q->lock);
    if (!error && !in_place) {
        qcow2_range_give(q, &range);
        range.exclusive = true;
        qcow2_range_take(q, &range);
    }
    if (!error)
        error = write_range(q, io);
    qcow2_range_give(q, &range);
    return error;
}

int qcow2_write_zeroes(struct qcow2 *q, uint64_t offset, uint64_t length)
{
    uint8_t *zeroes = calloc(1, ZEROES_SIZE);
    if (!zeroes)
        return -ENOMEM;
    int error = 0;
    while (length && !error) {
        struct iovec iov[ZEROES_PIECES];
        struct image_io io = {iov, 0, offset, 0};
        while (io.iov_count < ZEROES_PIECES && io.length < length) {
            size_t part = (size_t)MIN(length - io.length, (uint64_t)ZEROES_SIZE);
            iov[io.iov_count++] = (struct iovec) {zeroes, part};
            io.length += part;
        }
        error = qcow2_writev(&q->image, &io);
        offset += io.length;
        length -= io.length;
    }
    free(zeroes);
    return error;
}
