/* Discards and zeroes. Whole clusters change their entries; the ends of a range are written. */
#include <errno.h>

#include "backend/disk/qcow2_int.h"

/* What an entry becomes. Without a backing file an empty entry reads as zeroes. */
static uint64_t cleared(const struct qcow2 *q, const struct qcow2_extent *old, bool keep)
{
    uint64_t entry = q->image.backing ? QCOW2_ZERO : 0;
    if (old->kind == QCOW2_UNALLOCATED)
        return entry;
    if (keep && old->in_place && q->header.version >= 3)
        return old->entry | QCOW2_ZERO;
    return old->kind == QCOW2_ZEROES && keep ? old->entry : entry;
}

/* Whether all of count clusters are cleared already, so that no table needs to change. */
static int find_change(struct qcow2 *q, uint64_t cluster, uint64_t count, bool keep, bool *out)
{
    *out = false;
    uint64_t l1 = q->l1[cluster >> q->l2_bits] & QCOW2_OFFSET_MASK;
    uint64_t index = cluster & (BIT(q->l2_bits) - 1);
    if (!l1) {
        *out = q->image.backing;
        return 0;
    }
    struct qcow2_table *l2;
    int error = qcow2_cache_get(q, &q->l2_cache, l1, &l2);
    for (uint64_t i = 0; i < count && !error && !*out; i++) {
        struct qcow2_extent old;
        error = qcow2_parse_entry(q, load_be64(l2->data + (index + i) * 8), &old);
        *out = !error && cleared(q, &old, keep) != old.entry;
    }
    return error;
}

/* count clusters within one L2 table. Lock held, not committing. */
static int clear_entries(struct qcow2 *q, uint64_t cluster, uint64_t count, bool keep)
{
    struct qcow2_table *l2;
    int error = qcow2_l2_for_change(q, cluster, &l2);
    uint64_t index = cluster & (BIT(q->l2_bits) - 1);
    for (uint64_t i = 0; i < count && !error; i++) {
        uint8_t *at = l2->data + (index + i) * 8;
        struct qcow2_extent old;
        error = qcow2_parse_entry(q, load_be64(at), &old);
        if (error)
            break;
        uint64_t entry = cleared(q, &old, keep);
        if (entry == old.entry)
            continue;
        if (!(entry & QCOW2_OFFSET_MASK))
            error = qcow2_free_entry(q, old.entry);
        if (error)
            break;
        store_be64(at, entry);
        qcow2_cache_dirty(&q->l2_cache, l2, (index + i) * 8, 8);
    }
    return error;
}

int qcow2_clear_clusters(struct qcow2 *q, uint64_t cluster, uint64_t count, bool keep)
{
    int error = 0;
    while (count && !error) {
        uint64_t left = BIT(q->l2_bits) - (cluster & (BIT(q->l2_bits) - 1));
        uint64_t part = MIN(count, left);
        bool change;
        pthread_mutex_lock(&q->lock);
        error = find_change(q, cluster, part, keep, &change);
        if (!error && change)
            error = qcow2_begin_change(q);
        if (!error && change)
            error = clear_entries(q, cluster, part, keep);
        pthread_mutex_unlock(&q->lock);
        cluster += part;
        count -= part;
    }
    return error;
}

/* Whether a part of a cluster reads as zeroes without being written. */
static bool is_zero(struct qcow2 *q, uint64_t offset, uint64_t length)
{
    enum image_extent_kind kind;
    uint64_t found = length;
    return q->image.ops->map(&q->image, offset, &found, &kind) == 0 && kind == IMAGE_ZEROES &&
           found == length;
}

static int zero_part(struct qcow2 *q, uint64_t offset, uint64_t length)
{
    return !length || is_zero(q, offset, length) ? 0 : qcow2_write_zeroes(q, offset, length);
}

int qcow2_clear(struct image *image, uint64_t offset, uint64_t length, enum image_clear how)
{
    struct qcow2 *q = qcow2_of(image);
    uint64_t end = offset + length, mask = q->cluster_size - 1;
    /* Version 2 has no zero clusters, so that what lies in the backing file would come back. */
    if (q->header.version < 3 && image->backing)
        return how == IMAGE_DISCARD ? 0 : zero_part(q, offset, length);
    uint64_t first = (offset + mask) & ~mask, last = end & ~mask;
    if (end == image->size)
        last = (end + mask) & ~mask; /* behind the disk's end nothing is to be kept */
    if (first >= last)
        return how == IMAGE_DISCARD ? 0 : zero_part(q, offset, length);
    int error = how == IMAGE_DISCARD ? 0 : zero_part(q, offset, first - offset);
    if (error)
        return error;
    struct qcow2_range range = {.first = first >> q->cluster_bits,
                                .last = (last >> q->cluster_bits) - 1,
                                .exclusive = true};
    qcow2_range_take(q, &range);
    error = qcow2_clear_clusters(q, range.first, range.last - range.first + 1, how == IMAGE_ZERO);
    qcow2_range_give(q, &range);
    if (error || how == IMAGE_DISCARD || end <= last)
        return error;
    return zero_part(q, last, end - last);
}
