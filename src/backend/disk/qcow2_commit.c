/*
 * In which order changes of tables reach the file. Between two steps lies a flush where the second
 * relies on the first:
 *
 *   1. counts of new clusters (with lazy refcounts: not now)      all data that was written before
 *   2. the refcount table, when it points to new blocks
 *   3. L2 tables: they point to clusters that are counted and have their contents
 *   4. the L1 table: it points to L2 tables that are complete
 *   5. counts of freed clusters go down, in memory: nothing in the file points to them any more
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "backend/disk/qcow2_int.h"

#define PENDING_RANGES 2048u

/* What one commit writes; collected under the lock, used without. */
struct batch {
    struct qcow2_table **blocks, **l2;
    unsigned block_count, l2_count;
    bool with_counts;
    int flush_error;
};

void qcow2_wait_commit(struct qcow2 *q)
{
    while (q->committing)
        pthread_cond_wait(&q->changed, &q->lock);
}

/* After a flush that failed the host may have thrown away what it could not write. */
static int flush(struct qcow2 *q, struct batch *batch)
{
    return batch->flush_error = image_file_flush(q->file);
}

static int write_tables(struct qcow2 *q, struct qcow2_table **tables, unsigned count)
{
    int error = 0;
    for (unsigned i = 0; i < count && !error; i++)
        error = qcow2_table_write(q, tables[i]);
    return error;
}

/* Entries [from, to) of an array of big-endian pointers at an offset of the file. */
static int write_pointers(struct qcow2 *q, const uint64_t *entries, uint64_t from, uint64_t to,
                          uint64_t offset)
{
    uint8_t *data = malloc((to - from) * 8);
    if (!data)
        return -ENOMEM;
    for (uint64_t i = from; i < to; i++)
        store_be64(data + (i - from) * 8, entries[i]);
    int error = image_file_write(q->file, data, (to - from) * 8, offset + from * 8);
    free(data);
    return error;
}

static bool has_new_blocks(const struct qcow2 *q)
{
    return q->blocks_dirty_to > q->blocks_dirty_from;
}

static bool has_l1_changes(const struct qcow2 *q)
{
    return q->l1_dirty_to > q->l1_dirty_from;
}

/* Steps 1 and 2. */
static int write_counts(struct qcow2 *q, struct batch *batch)
{
    int error = batch->with_counts ? write_tables(q, batch->blocks, batch->block_count) : 0;
    if (!error)
        error = flush(q, batch);
    if (error || !batch->with_counts || !has_new_blocks(q))
        return error;
    error = write_pointers(q, q->blocks, q->blocks_dirty_from, q->blocks_dirty_to,
                           q->header.refcount_table_offset);
    return error ? error : flush(q, batch);
}

/* Steps 3 and 4. */
static int write_mapping(struct qcow2 *q, struct batch *batch)
{
    int error = write_tables(q, batch->l2, batch->l2_count);
    if (error || !has_l1_changes(q))
        return error ? error : flush(q, batch);
    error = flush(q, batch);
    if (!error)
        error = write_pointers(q, q->l1, q->l1_dirty_from, q->l1_dirty_to, q->header.l1_offset);
    return error ? error : flush(q, batch);
}

static int write_batch(struct qcow2 *q, struct batch *batch)
{
    int error = write_counts(q, batch);
    bool mapping = batch->l2_count || has_l1_changes(q);
    return error || !mapping ? error : write_mapping(q, batch);
}

static int collect(struct qcow2 *q, struct batch *batch)
{
    batch->block_count = batch->with_counts ? q->block_cache.dirty_count : 0;
    batch->l2_count = q->l2_cache.dirty_count;
    batch->blocks = batch->block_count ? qcow2_cache_list_dirty(&q->block_cache) : NULL;
    batch->l2 = qcow2_cache_list_dirty(&q->l2_cache);
    bool missing = (batch->block_count && !batch->blocks) || (batch->l2_count && !batch->l2);
    return missing ? -ENOMEM : 0;
}

static void mark_clean(struct qcow2 *q, const struct batch *batch)
{
    for (unsigned i = 0; i < batch->block_count; i++)
        qcow2_cache_clean(&q->block_cache, batch->blocks[i]);
    for (unsigned i = 0; i < batch->l2_count; i++)
        qcow2_cache_clean(&q->l2_cache, batch->l2[i]);
    if (batch->with_counts)
        q->blocks_dirty_from = q->blocks_dirty_to = 0;
    q->l1_dirty_from = q->l1_dirty_to = 0;
}

/* Step 5. */
static void free_pending(struct qcow2 *q)
{
    for (size_t i = 0; i < q->pending_count; i++)
        qcow2_free_now(q, q->pending[i].first, q->pending[i].count);
    q->pending_count = 0;
    free(q->pending);
    q->pending = NULL;
}

/* Counts go with tables that point to what they count. all: those that went down, too, and those
 * of lazy refcounts. */
static int commit(struct qcow2 *q, bool all)
{
    qcow2_wait_commit(q);
    if (q->failed)
        return q->failed;
    bool mapping = q->l2_cache.dirty_count || has_l1_changes(q);
    struct batch batch = {.with_counts = all || (mapping && !qcow2_is_lazy(q))};
    int error = collect(q, &batch);
    if (!error) {
        q->committing = true;
        pthread_mutex_unlock(&q->lock);
        error = write_batch(q, &batch);
        pthread_mutex_lock(&q->lock);
        q->committing = false;
        q->failed = batch.flush_error;
        pthread_cond_broadcast(&q->changed);
    }
    if (!error) {
        mark_clean(q, &batch);
        free_pending(q);
    }
    free(batch.blocks);
    free(batch.l2);
    return error;
}

int qcow2_commit(struct qcow2 *q)
{
    return commit(q, false);
}

static bool is_full(const struct qcow2_cache *cache)
{
    return cache->dirty_count > cache->limit / 2;
}

/* The header: that others' additions are out of date, and that counts are. For good at once. */
static int mark_written(struct qcow2 *q)
{
    if (q->written)
        return 0;
    uint64_t incompatible = q->header.incompatible, autoclear = q->header.autoclear;
    q->header.autoclear = 0;
    if (qcow2_is_lazy(q))
        q->header.incompatible |= QCOW2_INCOMPATIBLE_DIRTY;
    int error = 0;
    if (q->header.autoclear != autoclear || q->header.incompatible != incompatible) {
        error = qcow2_header_write(&q->header, q->file);
        if (!error)
            error = q->failed = image_file_flush(q->file);
    }
    q->written = !error;
    return error;
}

int qcow2_begin_write(struct qcow2 *q)
{
    if (q->written)
        return q->failed;
    qcow2_wait_commit(q);
    return q->failed ? q->failed : mark_written(q);
}

int qcow2_begin_change(struct qcow2 *q)
{
    qcow2_wait_commit(q);
    int error = qcow2_begin_write(q);
    if (error)
        return error;
    if (is_full(&q->l2_cache) || q->pending_count >= PENDING_RANGES)
        error = qcow2_commit(q);
    if (!error && is_full(&q->block_cache))
        error = commit(q, true);
    /* The lock was dropped in between. */
    qcow2_wait_commit(q);
    return error;
}

int qcow2_commit_all(struct qcow2 *q)
{
    pthread_mutex_lock(&q->lock);
    int error = commit(q, false);
    /* Again: the first one let counts go down. */
    if (!error)
        error = commit(q, true);
    if (!error && q->header.incompatible & QCOW2_INCOMPATIBLE_DIRTY) {
        q->header.incompatible &= ~QCOW2_INCOMPATIBLE_DIRTY;
        error = qcow2_header_write(&q->header, q->file);
        if (!error)
            error = image_file_flush(q->file);
    }
    pthread_mutex_unlock(&q->lock);
    return error;
}
