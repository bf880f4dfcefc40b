/* From the disk's offsets to the file's: the L1 table and the L2 tables. Under the image's lock. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "backend/disk/qcow2_int.h"

static uint64_t l2_entries(const struct qcow2 *q)
{
    return BIT(q->l2_bits);
}

/* Entries */

static int parse_compressed(struct qcow2 *q, uint64_t entry, struct qcow2_extent *out)
{
    uint64_t offset, size;
    qcow2_compressed_place(&q->header, entry, &offset, &size);
    if (!range_fits(offset, size, q->end << q->cluster_bits))
        return qcow2_corrupt(q, "a compressed cluster lies outside the file");
    out->kind = QCOW2_COMPRESSED_DATA;
    out->host = offset;
    return 0;
}

int qcow2_parse_entry(struct qcow2 *q, uint64_t entry, struct qcow2_extent *out)
{
    *out = (struct qcow2_extent) {.kind = QCOW2_UNALLOCATED, .entry = entry};
    if (entry & QCOW2_COMPRESSED)
        return parse_compressed(q, entry, out);
    uint64_t host = entry & QCOW2_OFFSET_MASK;
    bool zero = entry & QCOW2_ZERO;
    if (entry & ~(QCOW2_OFFSET_MASK | QCOW2_COPIED | QCOW2_ZERO) || (zero && q->header.version < 3))
        return qcow2_corrupt(q, "an L2 entry has reserved bits");
    if (host & (q->cluster_size - 1))
        return qcow2_corrupt(q, "an L2 entry points into the middle of a cluster");
    if (host && host >> q->cluster_bits >= q->end)
        return qcow2_corrupt(q, "an L2 entry points outside the file");
    if (host && qcow2_set_has(&q->metadata, host >> q->cluster_bits))
        return qcow2_corrupt(q, "an L2 entry points to a cluster that holds tables");
    out->kind = zero ? QCOW2_ZEROES : host ? QCOW2_DATA : QCOW2_UNALLOCATED;
    out->host = host;
    out->in_place = host && entry & QCOW2_COPIED;
    return 0;
}

static bool continues(const struct qcow2_extent *from, const struct qcow2_extent *next,
                      uint64_t distance)
{
    if (next->kind != from->kind || from->kind == QCOW2_COMPRESSED_DATA)
        return false;
    return from->kind != QCOW2_DATA ||
           (next->in_place == from->in_place && next->host == from->host + distance);
}

/* Looks along an L2 table from an index on. `inside` is the offset in the first cluster. */
static int look_along(struct qcow2 *q, const struct qcow2_table *l2, uint64_t index,
                      uint64_t inside, struct qcow2_extent *out)
{
    uint64_t length = out->length;
    int error = qcow2_parse_entry(q, load_be64(l2->data + index * 8), out);
    if (error)
        return error;
    uint64_t clusters = 1;
    while (index + clusters < l2_entries(q) && clusters << q->cluster_bits < inside + length) {
        struct qcow2_extent next;
        error = qcow2_parse_entry(q, load_be64(l2->data + (index + clusters) * 8), &next);
        if (error || !continues(out, &next, clusters << q->cluster_bits))
            break; /* an error is told to whoever begins there */
        clusters++;
    }
    out->length = MIN(length, (clusters << q->cluster_bits) - inside);
    if (out->kind == QCOW2_DATA)
        out->host += inside;
    return 0;
}

int qcow2_lookup(struct qcow2 *q, uint64_t offset, uint64_t length, struct qcow2_extent *out)
{
    uint64_t inside = offset & (q->cluster_size - 1), cluster = offset >> q->cluster_bits;
    uint64_t index = cluster & (l2_entries(q) - 1), l1_index = cluster >> q->l2_bits;
    *out = (struct qcow2_extent) {.kind = QCOW2_UNALLOCATED, .length = length};
    if (l1_index >= q->header.l1_size || !(q->l1[l1_index] & QCOW2_OFFSET_MASK)) {
        uint64_t left = ((l2_entries(q) - index) << q->cluster_bits) - inside;
        out->length = MIN(length, left);
        return 0;
    }
    struct qcow2_table *l2;
    int error = qcow2_cache_get(q, &q->l2_cache, q->l1[l1_index] & QCOW2_OFFSET_MASK, &l2);
    return error ? error : look_along(q, l2, index, inside, out);
}

/* Changes */

static void set_l1(struct qcow2 *q, uint64_t index, uint64_t entry)
{
    q->l1[index] = entry;
    bool clean = q->l1_dirty_to == q->l1_dirty_from;
    q->l1_dirty_from = clean ? index : MIN(q->l1_dirty_from, index);
    q->l1_dirty_to = clean ? index + 1 : MAX(q->l1_dirty_to, index + 1);
}

/* Copies what is in the old table (offset 0: nothing) into a new one. */
static int fill_l2(struct qcow2 *q, uint64_t old, uint64_t at, struct qcow2_table **out)
{
    if (!old)
        return qcow2_cache_new(q, &q->l2_cache, at, out);
    uint8_t *copy = malloc(q->cluster_size);
    if (!copy)
        return -ENOMEM;
    struct qcow2_table *from;
    int error = qcow2_cache_get(q, &q->l2_cache, old, &from);
    if (!error) {
        memcpy(copy, from->data, q->cluster_size);
        error = qcow2_cache_new(q, &q->l2_cache, at, out);
    }
    if (!error)
        memcpy((*out)->data, copy, q->cluster_size);
    free(copy);
    return error;
}

/* The old table may be one of a snapshot's too: it only loses a reference. */
static int replace_l2(struct qcow2 *q, uint64_t l1_index, struct qcow2_table **out)
{
    uint64_t old = q->l1[l1_index] & QCOW2_OFFSET_MASK, first, got;
    int error = qcow2_alloc(q, 1, &first, &got);
    if (error)
        return error;
    uint64_t at = first << q->cluster_bits;
    error = qcow2_set_add(&q->metadata, first);
    if (!error)
        error = fill_l2(q, old, at, out);
    if (!error && old)
        error = qcow2_free_later(q, old >> q->cluster_bits, 1);
    if (error) {
        qcow2_cache_drop(&q->l2_cache, at);
        qcow2_set_remove(&q->metadata, first);
        qcow2_free_now(q, first, 1);
        return error;
    }
    if (old) {
        qcow2_set_remove(&q->metadata, old >> q->cluster_bits);
        qcow2_cache_drop(&q->l2_cache, old);
    }
    set_l1(q, l1_index, at | QCOW2_COPIED);
    return 0;
}

int qcow2_l2_for_change(struct qcow2 *q, uint64_t cluster, struct qcow2_table **out)
{
    uint64_t l1_index = cluster >> q->l2_bits;
    if (l1_index >= q->header.l1_size)
        return -EINVAL;
    uint64_t entry = q->l1[l1_index];
    if (entry & QCOW2_OFFSET_MASK && entry & QCOW2_COPIED)
        return qcow2_cache_get(q, &q->l2_cache, entry & QCOW2_OFFSET_MASK, out);
    return replace_l2(q, l1_index, out);
}

int qcow2_free_entry(struct qcow2 *q, uint64_t entry)
{
    struct qcow2_extent old;
    int error = qcow2_parse_entry(q, entry, &old);
    if (error || !old.host)
        return error;
    uint64_t first = old.host >> q->cluster_bits, last = first;
    if (old.kind == QCOW2_COMPRESSED_DATA) {
        uint64_t offset, size;
        qcow2_compressed_place(&q->header, entry, &offset, &size);
        last = (offset + size - 1) >> q->cluster_bits;
    }
    return qcow2_free_later(q, first, last - first + 1);
}

int qcow2_link(struct qcow2 *q, uint64_t cluster, uint64_t count, uint64_t host)
{
    struct qcow2_table *l2;
    int error = qcow2_l2_for_change(q, cluster, &l2);
    if (error)
        return error;
    uint64_t index = cluster & (l2_entries(q) - 1);
    for (uint64_t i = 0; i < count; i++) {
        uint8_t *entry = l2->data + (index + i) * 8;
        uint64_t old = load_be64(entry), at = host + (i << q->cluster_bits);
        /* A zero cluster may have kept the very cluster that it is written to now. An old entry
         * that makes no sense frees nothing. */
        if (old & QCOW2_COMPRESSED || (old & QCOW2_OFFSET_MASK) != at)
            error = qcow2_free_entry(q, old);
        if (error == -ENOMEM)
            return q->failed = error; /* half linked: it must not reach the file */
        store_be64(entry, at | QCOW2_COPIED);
        qcow2_cache_dirty(&q->l2_cache, l2, (index + i) * 8, 8);
    }
    return 0;
}
