/* New refcount tables from counts; see qcow2_count.h. Used by create, repair and dirty images. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "backend/disk/qcow2_count.h"
#include "backend/disk/qcow2_int.h"

/* Where the new tables go: blocks, then the table that points to them. */
struct plan {
    struct image_file *file;
    struct qcow2_header *header;
    struct qcow2_counts *counts;
    uint32_t block_bits; /* log2 of the counts in a block */
    uint64_t start, block_count, table_clusters;
    uint8_t *needed; /* which blocks clusters in use need; needed_count long */
    uint64_t needed_count;
    uint64_t last_block;
};

static uint64_t plan_end(const struct plan *p)
{
    return p->start + p->block_count + p->table_clusters;
}

static bool is_in_plan(const struct plan *p, uint64_t cluster)
{
    return cluster >= p->start && cluster < plan_end(p);
}

/* Behind all that is in use, the old tables too: they count until the header is written. */
static uint64_t find_start(const struct qcow2_counts *counts, bool used_only)
{
    uint64_t end = 0;
    for (uint64_t i = 0; i < counts->slot_count; i++) {
        const struct qcow2_chunk *chunk = counts->chunks[i];
        for (uint64_t at = 0; chunk && at < QCOW2_CHUNK; at++)
            if (chunk->count[at] > (used_only ? chunk->own[at] : 0u))
                end = MAX(end, chunk->index * QCOW2_CHUNK + at + 1);
    }
    return end;
}

static int find_needed(struct plan *p)
{
    uint64_t end = find_start(p->counts, true);
    p->needed_count = ((end ? end - 1 : 0) >> p->block_bits) + 1;
    if (p->needed_count > QCOW2_TABLE_BYTES_MAX / 8)
        return -EFBIG;
    p->needed = calloc(p->needed_count, 1);
    if (!p->needed)
        return -ENOMEM;
    for (uint64_t i = 0; i < p->counts->slot_count; i++) {
        const struct qcow2_chunk *chunk = p->counts->chunks[i];
        for (uint64_t at = 0; chunk && at < QCOW2_CHUNK; at++)
            if (chunk->count[at] > chunk->own[at])
                p->needed[(chunk->index * QCOW2_CHUNK + at) >> p->block_bits] = 1;
    }
    return 0;
}

static bool is_needed(const struct plan *p, uint64_t block)
{
    return (block < p->needed_count && p->needed[block]) ||
           (block >= p->start >> p->block_bits && block <= (plan_end(p) - 1) >> p->block_bits);
}

/* The tables count themselves: until their number stands still. */
static int make_plan(struct plan *p)
{
    p->start = find_start(p->counts, false);
    p->block_count = p->table_clusters = 1;
    for (;;) {
        p->last_block = MAX(p->needed_count - 1, (plan_end(p) - 1) >> p->block_bits);
        uint64_t blocks = 0, cluster = qcow2_cluster_size(p->header);
        uint64_t table = ((p->last_block + 1) * 8 + cluster - 1) / cluster;
        if (table * cluster > QCOW2_TABLE_BYTES_MAX)
            return -EFBIG;
        for (uint64_t i = 0; i <= p->last_block; i++)
            blocks += is_needed(p, i);
        if (blocks <= p->block_count && table <= p->table_clusters)
            return 0;
        p->block_count = MAX(p->block_count, blocks);
        p->table_clusters = MAX(p->table_clusters, table);
    }
}

static int fill_block(struct plan *p, uint64_t block, uint8_t *data)
{
    uint32_t order = p->header->refcount_order;
    uint64_t first = block << p->block_bits, max = size_mask(8) >> (64 - (1u << order));
    memset(data, 0, qcow2_cluster_size(p->header));
    for (uint64_t i = 0; i < BIT(p->block_bits); i++) {
        uint64_t count = is_in_plan(p, first + i) ? 1 : qcow2_counts_get_used(p->counts, first + i);
        if (count > max)
            return -ERANGE;
        if (count)
            qcow2_refcount_store(data, i, order, count);
    }
    return 0;
}

static int write_tables(struct plan *p)
{
    uint64_t cluster = qcow2_cluster_size(p->header), next = p->start;
    uint8_t *block = malloc(cluster), *table = calloc(p->table_clusters, cluster);
    int error = block && table ? 0 : -ENOMEM;
    for (uint64_t i = 0; i <= p->last_block && !error; i++) {
        if (!is_needed(p, i))
            continue;
        error = fill_block(p, i, block);
        if (!error)
            error = image_file_write(p->file, block, cluster, next * cluster);
        store_be64(table + i * 8, next++ * cluster);
    }
    uint64_t table_at = (p->start + p->block_count) * cluster;
    if (!error)
        error = image_file_write(p->file, table, p->table_clusters * cluster, table_at);
    free(block);
    free(table);
    return error ? error : image_file_flush(p->file);
}

static int switch_to_plan(struct plan *p)
{
    struct qcow2_header *h = p->header;
    uint64_t cluster = qcow2_cluster_size(h), size;
    h->refcount_table_offset = (p->start + p->block_count) * cluster;
    h->refcount_table_clusters = (uint32_t)p->table_clusters;
    h->incompatible &= ~QCOW2_INCOMPATIBLE_DIRTY;
    int error = qcow2_header_write(h, p->file);
    if (!error)
        error = image_file_flush(p->file);
    /* What lies behind is not in use. A block device cannot be cut, which does no harm. */
    if (!error && p->file->ops->size(p->file, &size) == 0 && size > plan_end(p) * cluster)
        p->file->ops->resize(p->file, plan_end(p) * cluster);
    return error;
}

int qcow2_rebuild(struct image_file *file, struct qcow2_header *header, struct qcow2_counts *counts)
{
    struct plan plan = {.file = file,
                        .header = header,
                        .counts = counts,
                        .block_bits = header->cluster_bits + 3 - header->refcount_order};
    int error = find_needed(&plan);
    if (!error)
        error = make_plan(&plan);
    if (!error && counts->outside && plan_end(&plan) > counts->outside)
        error = -ENOTRECOVERABLE;
    if (!error)
        error = write_tables(&plan);
    if (!error)
        error = switch_to_plan(&plan);
    free(plan.needed);
    return error;
}
