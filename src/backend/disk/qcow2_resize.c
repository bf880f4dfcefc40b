/* A larger or smaller disk. One thread, nothing else under way. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "backend/disk/qcow2_int.h"

static int write_l1(struct qcow2 *q, const uint64_t *l1, uint64_t entries, uint64_t offset)
{
    uint64_t bytes = align_up(entries * 8, q->cluster_size);
    uint8_t *data = calloc(1, bytes);
    if (!data)
        return -ENOMEM;
    for (uint64_t i = 0; i < entries; i++)
        store_be64(data + i * 8, l1[i]);
    int error = image_file_write(q->file, data, bytes, offset);
    free(data);
    return error;
}

static int flush_header(struct qcow2 *q)
{
    int error = qcow2_header_write(&q->header, q->file);
    return error ? error : image_file_flush(q->file);
}

/* The new L1 table is complete and counted before the header points to it. Lock held; the old table
 * is as in the file. */
static int switch_l1(struct qcow2 *q, uint64_t *l1, uint64_t entries)
{
    uint64_t first, mask = q->cluster_size - 1;
    uint64_t old_first = q->header.l1_offset >> q->cluster_bits;
    uint64_t old_count = (q->header.l1_size * 8ull + mask) >> q->cluster_bits;
    uint64_t count = (entries * 8 + mask) >> q->cluster_bits;
    int error = qcow2_alloc_together(q, count, &first);
    for (uint64_t i = 0; i < count && !error; i++)
        error = qcow2_set_add(&q->metadata, first + i);
    if (!error)
        error = write_l1(q, l1, entries, first << q->cluster_bits);
    pthread_mutex_unlock(&q->lock);
    if (!error)
        error = qcow2_commit_all(q); /* the counts */
    pthread_mutex_lock(&q->lock);
    if (error)
        return q->failed = error;
    q->header.l1_offset = first << q->cluster_bits;
    q->header.l1_size = (uint32_t)entries;
    error = flush_header(q);
    if (error)
        return q->failed = error;
    for (uint64_t i = 0; i < old_count; i++)
        qcow2_set_remove(&q->metadata, old_first + i);
    qcow2_free_now(q, old_first, old_count);
    return 0;
}

static int grow_l1(struct qcow2 *q, uint64_t entries)
{
    uint64_t *l1 = calloc(entries, sizeof *l1);
    if (!l1)
        return -ENOMEM;
    memcpy(l1, q->l1, q->header.l1_size * sizeof *l1);
    pthread_mutex_lock(&q->lock);
    int error = qcow2_begin_change(q);
    if (!error)
        error = switch_l1(q, l1, entries);
    pthread_mutex_unlock(&q->lock);
    if (error) {
        free(l1);
        return error;
    }
    free(q->l1);
    q->l1 = l1;
    return 0;
}

/* What the disk's new part would show: the backing file, and the rest of its last cluster. */
static int clear_new_part(struct qcow2 *q, uint64_t old_size, uint64_t size)
{
    uint64_t end = MIN(align_up(old_size, q->cluster_size), size);
    if (q->image.backing)
        end = MAX(end, MIN(size, q->image.backing->size));
    return end > old_size ? qcow2_clear(&q->image, old_size, end - old_size, IMAGE_ZERO) : 0;
}

static int grow(struct qcow2 *q, uint64_t size, uint64_t old_size)
{
    uint64_t entries = qcow2_l1_entries(size, q->cluster_bits);
    int error = 0;
    if (entries > QCOW2_L1_BYTES_MAX / 8)
        return -EFBIG;
    if (entries > q->header.l1_size)
        error = grow_l1(q, entries);
    q->image.size = size;
    if (!error)
        error = clear_new_part(q, old_size, size);
    if (!error)
        error = qcow2_commit_all(q);
    q->header.size = size;
    return error ? error : flush_header(q);
}

static int shrink(struct qcow2 *q, uint64_t size, uint64_t old_size)
{
    uint64_t mask = q->cluster_size - 1;
    uint64_t first = (size + mask) >> q->cluster_bits, end = (old_size + mask) >> q->cluster_bits;
    q->header.size = q->image.size = size;
    int error = flush_header(q);
    /* Only what an L2 table is there for: an entry is cleared, none is made. */
    for (uint64_t at = first; at < end && !error;) {
        uint64_t next = MIN(end, ((at >> q->l2_bits) + 1) << q->l2_bits);
        if (q->l1[at >> q->l2_bits] & QCOW2_OFFSET_MASK)
            error = qcow2_clear_clusters(q, at, next - at, false);
        at = next;
    }
    return error ? error : qcow2_commit_all(q);
}

int qcow2_resize(struct image *image, uint64_t size, struct err *err)
{
    struct qcow2 *q = qcow2_of(image);
    uint64_t old_size = image->size;
    if (q->header.snapshot_count && (q->header.version < 3 || size < old_size))
        return err_set(err, ENOTSUP, "%s: has snapshots, which do not allow this size",
                       image->name);
    pthread_mutex_lock(&q->lock);
    int error = qcow2_begin_write(q);
    pthread_mutex_unlock(&q->lock);
    if (!error)
        error = size < old_size ? shrink(q, size, old_size) : grow(q, size, old_size);
    if (error == -EFBIG)
        return err_set(err, EFBIG, "%s: clusters of %u bytes do not allow so large a disk",
                       image->name, image->cluster_size);
    return error ? err_set(err, -error, "%s: cannot be resized: %s", image->name, strerror(-error))
                 : 0;
}
