/*
 * Which clusters of the file are in use, and by how many. A refcount table of pointers to refcount
 * blocks; both grow at the end of the file, where everything is free. Under the image's lock.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "backend/disk/qcow2_int.h"

#define CLUSTERS_MAX(q) ((QCOW2_OFFSET_MASK >> (q)->cluster_bits) + 1)
#define PENDING_MAX     4096u

/* Entries */

uint64_t qcow2_refcount_load(const uint8_t *block, uint64_t index, uint32_t order)
{
    switch (order) {
    case 3:
        return block[index];
    case 4:
        return load_be16(block + index * 2);
    case 5:
        return load_be32(block + index * 4);
    case 6:
        return load_be64(block + index * 8);
    }
    unsigned width = 1u << order, per_byte = 8 / width;
    return block[index / per_byte] >> (index % per_byte * width) & ((1u << width) - 1);
}

void qcow2_refcount_store(uint8_t *block, uint64_t index, uint32_t order, uint64_t value)
{
    unsigned width = 1u << order;
    switch (order) {
    case 3:
        block[index] = (uint8_t)value;
        return;
    case 4:
        store_be16(block + index * 2, (uint16_t)value);
        return;
    case 5:
        store_be32(block + index * 4, (uint32_t)value);
        return;
    case 6:
        store_be64(block + index * 8, value);
        return;
    }
    unsigned per_byte = 8 / width, shift = (unsigned)(index % per_byte) * width;
    uint8_t mask = (uint8_t)(((1u << width) - 1) << shift);
    uint8_t *byte = &block[index / per_byte];
    *byte = (uint8_t)((*byte & ~mask) | (value << shift & mask));
}

static uint64_t block_entries(const struct qcow2 *q)
{
    return BIT(q->block_bits);
}

static bool has_block(const struct qcow2 *q, uint64_t index)
{
    return index < q->block_count && q->blocks[index];
}

static int get(struct qcow2 *q, uint64_t cluster, uint64_t *out)
{
    uint64_t index = cluster >> q->block_bits;
    *out = 0;
    if (!has_block(q, index))
        return 0;
    struct qcow2_table *block;
    int error = qcow2_cache_get(q, &q->block_cache, q->blocks[index], &block);
    if (!error)
        *out = qcow2_refcount_load(block->data, cluster & (block_entries(q) - 1),
                                   q->header.refcount_order);
    return error;
}

/* The block is there. */
static int set(struct qcow2 *q, uint64_t cluster, uint64_t value)
{
    struct qcow2_table *block;
    uint64_t at = q->blocks[cluster >> q->block_bits], index = cluster & (block_entries(q) - 1);
    int error = qcow2_cache_get(q, &q->block_cache, at, &block);
    if (error)
        return error;
    qcow2_refcount_store(block->data, index, q->header.refcount_order, value);
    uint64_t bits = q->refcount_bits;
    qcow2_cache_dirty(&q->block_cache, block, index * bits / 8, MAX(bits / 8, 1u));
    return 0;
}

/* Counting a stretch; what cannot be counted is given back. */
static int set_range(struct qcow2 *q, uint64_t first, uint64_t count)
{
    for (uint64_t i = 0; i < count; i++) {
        int error = set(q, first + i, 1);
        if (error) {
            qcow2_free_now(q, first, i);
            return error;
        }
    }
    q->end = MAX(q->end, first + count);
    return 0;
}

/* Growing */

/* A region at the end: new blocks, then perhaps a new refcount table, then what was asked for. */
struct region {
    uint64_t start, blocks, table, wanted; /* clusters */
    uint64_t table_entries;
};

static uint64_t region_end(const struct region *r)
{
    return r->start + r->blocks + r->table + r->wanted;
}

/* Each part makes the region longer, which may need more of the parts: until it stands still. */
static int plan_region(const struct qcow2 *q, struct region *r)
{
    for (;;) {
        uint64_t blocks = 0, table = 0, last = (region_end(r) - 1) >> q->block_bits;
        for (uint64_t i = r->start >> q->block_bits; i <= last; i++)
            blocks += !has_block(q, i);
        if (last >= q->block_count) {
            r->table_entries = MAX(r->table_entries, last + 1 + last / 2);
            table = (r->table_entries * 8 + q->cluster_size - 1) >> q->cluster_bits;
        }
        if (region_end(r) > CLUSTERS_MAX(q) || table << q->cluster_bits > QCOW2_TABLE_BYTES_MAX)
            return -EFBIG;
        if (blocks <= r->blocks && table <= r->table)
            return 0;
        r->blocks = MAX(r->blocks, blocks);
        r->table = MAX(r->table, table);
    }
}

static int add_metadata(struct qcow2 *q, uint64_t first, uint64_t count)
{
    for (uint64_t i = 0; i < count; i++) {
        int error = qcow2_set_add(&q->metadata, first + i);
        if (error) {
            while (i--)
                qcow2_set_remove(&q->metadata, first + i);
            return error;
        }
    }
    return 0;
}

static int write_dirty_blocks(struct qcow2 *q)
{
    struct qcow2_table **dirty = qcow2_cache_list_dirty(&q->block_cache);
    unsigned count = q->block_cache.dirty_count;
    if (!dirty)
        return count ? -ENOMEM : 0;
    int error = 0;
    for (unsigned i = 0; i < count && !error; i++)
        error = qcow2_table_write(q, dirty[i]);
    for (unsigned i = 0; i < count && !error; i++)
        qcow2_cache_clean(&q->block_cache, dirty[i]);
    free(dirty);
    return error;
}

/*
 * Makes a longer refcount table the file's own: the blocks and the table first, then, after a
 * flush, the one sector of the header. The old table is free then.
 */
static int switch_table(struct qcow2 *q, uint64_t first, uint64_t clusters)
{
    size_t bytes = clusters << q->cluster_bits;
    uint8_t *table = calloc(1, bytes);
    if (!table)
        return -ENOMEM;
    for (uint64_t i = 0; i < q->block_count; i++)
        store_be64(table + i * 8, q->blocks[i]);
    int error = write_dirty_blocks(q);
    if (!error)
        error = image_file_write(q->file, table, bytes, first << q->cluster_bits);
    free(table);
    if (!error)
        error = image_file_flush(q->file);
    if (error)
        return error;
    struct qcow2_header old = q->header;
    q->header.refcount_table_offset = first << q->cluster_bits;
    q->header.refcount_table_clusters = (uint32_t)clusters;
    error = qcow2_header_write(&q->header, q->file);
    if (!error)
        error = image_file_flush(q->file);
    if (error) {
        q->failed = error; /* which of the two tables counts is not known */
        return error;
    }
    q->blocks_dirty_from = q->blocks_dirty_to = 0;
    uint64_t old_first = old.refcount_table_offset >> q->cluster_bits;
    for (uint64_t i = 0; i < old.refcount_table_clusters; i++)
        qcow2_set_remove(&q->metadata, old_first + i);
    qcow2_free_now(q, old_first, old.refcount_table_clusters);
    return 0;
}

static int lengthen_array(struct qcow2 *q, uint64_t entries)
{
    if (entries <= q->block_count)
        return 0;
    uint64_t *blocks = realloc(q->blocks, entries * sizeof *blocks);
    if (!blocks)
        return -ENOMEM;
    memset(blocks + q->block_count, 0, (entries - q->block_count) * sizeof *blocks);
    q->blocks = blocks;
    q->block_count = entries;
    return 0;
}

static int add_blocks(struct qcow2 *q, const struct region *r)
{
    uint64_t next = r->start, last = (region_end(r) - 1) >> q->block_bits;
    for (uint64_t i = r->start >> q->block_bits; i <= last; i++) {
        if (has_block(q, i))
            continue;
        struct qcow2_table *block;
        int error = qcow2_cache_new(q, &q->block_cache, next << q->cluster_bits, &block);
        if (error)
            return error;
        q->blocks[i] = next++ << q->cluster_bits;
        bool clean = q->blocks_dirty_to == q->blocks_dirty_from;
        q->blocks_dirty_from = clean ? i : MIN(q->blocks_dirty_from, i);
        q->blocks_dirty_to = clean ? i + 1 : MAX(q->blocks_dirty_to, i + 1);
    }
    return 0;
}

/* Lengthens what the refcounts cover from cluster `start` on, and counts `wanted` there. */
static int add_region(struct qcow2 *q, uint64_t start, uint64_t wanted, uint64_t *first)
{
    struct region r = {.start = start, .wanted = wanted};
    int error = plan_region(q, &r);
    if (!error)
        error = add_metadata(q, r.start, r.blocks + r.table);
    if (error)
        return error;
    error = lengthen_array(q, r.table ? (r.table << q->cluster_bits) / 8 : 0);
    if (!error)
        error = add_blocks(q, &r);
    if (!error)
        error = set_range(q, r.start, r.blocks + r.table + r.wanted);
    if (!error && r.table)
        error = switch_table(q, r.start + r.blocks, r.table);
    if (error) {
        q->failed = error; /* half of it is in memory: nothing may build on that */
        return error;
    }
    *first = r.start + r.blocks + r.table;
    return 0;
}

/* Finding */

/* Counts free clusters from `at` on, in one block; 0 when there is none. */
static int take_from_block(struct qcow2 *q, uint64_t at, uint64_t want, uint64_t *first,
                           uint64_t *got)
{
    uint64_t end = (at | (block_entries(q) - 1)) + 1, value;
    *got = 0;
    for (uint64_t c = at; c < end && *got < want; c++) {
        int error = get(q, c, &value);
        if (error)
            return error;
        if (value && *got)
            break;
        if (value)
            continue;
        if (qcow2_set_has(&q->metadata, c))
            return qcow2_corrupt(q, "cluster %llu holds a table and is counted as free",
                                 (unsigned long long)c);
        *first = *got ? *first : c;
        ++*got;
    }
    return *got ? set_range(q, *first, *got) : 0;
}

int qcow2_alloc(struct qcow2 *q, uint64_t want, uint64_t *first, uint64_t *got)
{
    uint64_t at = q->free_hint;
    for (;;) {
        if (at >= CLUSTERS_MAX(q))
            return -EFBIG;
        if (has_block(q, at >> q->block_bits)) {
            int error = take_from_block(q, at, want, first, got);
            if (error)
                return error;
            if (*got)
                break;
        } else if (at >= q->end) {
            int error = add_region(q, at, want, first);
            if (error)
                return error;
            *got = want;
            break;
        }
        at = (at | (block_entries(q) - 1)) + 1;
    }
    q->free_hint = *first + *got;
    return 0;
}

int qcow2_alloc_together(struct qcow2 *q, uint64_t count, uint64_t *first)
{
    return add_region(q, q->end, count, first);
}

/* Freeing */

static bool drop_one(struct qcow2 *q, uint64_t cluster)
{
    uint64_t value;
    if (get(q, cluster, &value))
        return false; /* cannot be read: it stays counted */
    if (!value) {
        qcow2_corrupt(q, "cluster %llu was in use and is counted as free",
                      (unsigned long long)cluster);
        return false;
    }
    if (set(q, cluster, value - 1) || value > 1)
        return false;
    q->free_hint = MIN(q->free_hint, cluster);
    return true;
}

void qcow2_free_now(struct qcow2 *q, uint64_t first, uint64_t count)
{
    uint64_t hole = first; /* [hole, i) is free and not yet given back to the host */
    for (uint64_t i = first; i <= first + count; i++) {
        if (i < first + count && drop_one(q, i))
            continue;
        if (i > hole)
            q->file->ops->zero(q->file, hole << q->cluster_bits, (i - hole) << q->cluster_bits,
                               true);
        hole = i + 1;
    }
}

int qcow2_free_later(struct qcow2 *q, uint64_t first, uint64_t count)
{
    struct qcow2_pending *last = q->pending_count ? &q->pending[q->pending_count - 1] : NULL;
    if (last && last->first + last->count == first) {
        last->count += count;
        return 0;
    }
    if (q->pending_count % PENDING_MAX == 0) {
        size_t room = q->pending_count + PENDING_MAX;
        struct qcow2_pending *bigger = realloc(q->pending, room * sizeof *bigger);
        if (!bigger)
            return -ENOMEM;
        q->pending = bigger;
    }
    q->pending[q->pending_count++] = (struct qcow2_pending) {first, count};
    return 0;
}
