/* Tables in memory: a hash by offset and a list by age. Dirty tables stay until a commit. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "backend/disk/qcow2_int.h"

#define TABLES_MIN 8u

int qcow2_cache_init(struct qcow2_cache *cache, size_t bytes, uint64_t cluster_size)
{
    list_init(&cache->lru);
    cache->limit = MAX((unsigned)(bytes / cluster_size), TABLES_MIN);
    cache->bucket_count = TABLES_MIN;
    while (cache->bucket_count < cache->limit)
        cache->bucket_count *= 2;
    cache->buckets = calloc(cache->bucket_count, sizeof *cache->buckets);
    return cache->buckets ? 0 : -ENOMEM;
}

static struct qcow2_table **bucket_of(struct qcow2_cache *cache, uint64_t offset)
{
    uint64_t hash = (offset >> QCOW2_CLUSTER_BITS_MIN) * 0x9e3779b97f4a7c15ull;
    return &cache->buckets[hash >> 40 & (cache->bucket_count - 1)];
}

static struct qcow2_table *find(struct qcow2_cache *cache, uint64_t offset)
{
    struct qcow2_table *table = *bucket_of(cache, offset);
    while (table && table->offset != offset)
        table = table->next;
    return table;
}

static bool is_dirty(const struct qcow2_table *table)
{
    return table->dirty_to > table->dirty_from;
}

static void forget(struct qcow2_cache *cache, struct qcow2_table *table)
{
    struct qcow2_table **link = bucket_of(cache, table->offset);
    while (*link != table)
        link = &(*link)->next;
    *link = table->next;
    list_remove(&table->lru);
    cache->dirty_count -= is_dirty(table);
    cache->count--;
    free(table->data);
    free(table);
}

void qcow2_cache_free(struct qcow2_cache *cache)
{
    if (!cache->buckets)
        return;
    while (!list_empty(&cache->lru))
        forget(cache, container_of(cache->lru.next, struct qcow2_table, lru));
    free(cache->buckets);
    cache->buckets = NULL;
}

/* Makes room by dropping the oldest clean tables. A cache full of dirty ones grows for a while. */
static void evict(struct qcow2_cache *cache)
{
    struct list *pos = cache->lru.next;
    while (cache->count >= cache->limit && pos != &cache->lru) {
        struct qcow2_table *table = container_of(pos, struct qcow2_table, lru);
        pos = pos->next;
        if (!is_dirty(table))
            forget(cache, table);
    }
}

static struct qcow2_table *add(struct qcow2 *q, struct qcow2_cache *cache, uint64_t offset)
{
    evict(cache);
    struct qcow2_table *table = calloc(1, sizeof *table);
    if (!table)
        return NULL;
    /* Aligned, so that O_DIRECT can take it. */
    if (posix_memalign((void **)&table->data, MIN(q->cluster_size, 4096), q->cluster_size)) {
        free(table);
        return NULL;
    }
    table->offset = offset;
    struct qcow2_table **bucket = bucket_of(cache, offset);
    table->next = *bucket;
    *bucket = table;
    list_push_back(&cache->lru, &table->lru);
    cache->count++;
    return table;
}

int qcow2_cache_get(struct qcow2 *q, struct qcow2_cache *cache, uint64_t offset,
                    struct qcow2_table **out)
{
    struct qcow2_table *table = find(cache, offset);
    if (table) {
        list_remove(&table->lru);
        list_push_back(&cache->lru, &table->lru);
        *out = table;
        return 0;
    }
    table = add(q, cache, offset);
    if (!table)
        return -ENOMEM;
    int error = image_file_read(q->file, table->data, q->cluster_size, offset);
    if (error) {
        forget(cache, table);
        return error;
    }
    *out = table;
    return 0;
}

int qcow2_cache_new(struct qcow2 *q, struct qcow2_cache *cache, uint64_t offset,
                    struct qcow2_table **out)
{
    qcow2_cache_drop(cache, offset);
    struct qcow2_table *table = add(q, cache, offset);
    if (!table)
        return -ENOMEM;
    memset(table->data, 0, q->cluster_size);
    qcow2_cache_dirty(cache, table, 0, q->cluster_size);
    *out = table;
    return 0;
}

/* Whole sectors: what lies between two changes is written again, which does no harm. */
void qcow2_cache_dirty(struct qcow2_cache *cache, struct qcow2_table *table, uint64_t from,
                       uint64_t size)
{
    uint32_t begin = (uint32_t)from & ~(QCOW2_SECTOR - 1);
    uint32_t end = (uint32_t)align_up(from + size, QCOW2_SECTOR);
    if (!is_dirty(table)) {
        cache->dirty_count++;
        table->dirty_from = begin;
        table->dirty_to = end;
        return;
    }
    table->dirty_from = MIN(table->dirty_from, begin);
    table->dirty_to = MAX(table->dirty_to, end);
}

void qcow2_cache_drop(struct qcow2_cache *cache, uint64_t offset)
{
    struct qcow2_table *table = find(cache, offset);
    if (table)
        forget(cache, table);
}

struct qcow2_table **qcow2_cache_list_dirty(struct qcow2_cache *cache)
{
    if (!cache->dirty_count)
        return NULL;
    struct qcow2_table **tables = calloc(cache->dirty_count, sizeof *tables);
    unsigned count = 0;
    if (tables)
        list_for_each (pos, &cache->lru) {
            struct qcow2_table *table = container_of(pos, struct qcow2_table, lru);
            if (is_dirty(table))
                tables[count++] = table;
        }
    return tables;
}

int qcow2_table_write(struct qcow2 *q, const struct qcow2_table *table)
{
    uint32_t from = table->dirty_from;
    return image_file_write(q->file, table->data + from, table->dirty_to - from,
                            table->offset + from);
}

void qcow2_cache_clean(struct qcow2_cache *cache, struct qcow2_table *table)
{
    cache->dirty_count -= is_dirty(table);
    table->dirty_from = table->dirty_to = 0;
}
