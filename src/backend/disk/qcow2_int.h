/*
 * What the files of the qcow2 driver share.
 *
 *   qcow2.c            opening and closing
 *   qcow2_header.c     the header and the snapshot table
 *   qcow2_cache.c      tables of one cluster (L2, refcount blocks) in memory, bounded
 *   qcow2_refcount.c   which clusters are free; making and freeing them
 *   qcow2_map.c        from the disk's offsets to the file's, and changes of that
 *   qcow2_commit.c     in which order changes reach the file
 *   qcow2_range.c      keeps requests for the same clusters apart
 *   qcow2_io.c         reads and writes
 *   qcow2_clear.c      discards and zeroes
 *   qcow2_compress.c   compressed clusters
 *   qcow2_resize.c     a larger or smaller disk
 *   qcow2_create.c     new images
 *   qcow2_count.c, qcow2_check.c, qcow2_rebuild.c   checking and mending
 *
 * How a power cut is survived. Changes of tables stay in memory (that is what a guest's flush is
 * for) and reach the file in qcow2_commit in an order, with flushes between the steps, in which a
 * cluster is counted before anything points to it, has its contents before anything points to it,
 * and is free for others only when nothing in the file points to it any more. A cut leaves at worst
 * clusters that are counted and not used. With lazy refcounts the header says "dirty" instead, and
 * counts are made anew at the next opening.
 *
 * Locks. `lock` guards all fields; it is held while tables are read and changed, not while data
 * moves. While `committing` no table changes, so that the commit can write without the lock;
 * lookups go on. Requests first take their clusters in `ranges`: shared to read and to write in
 * place, exclusively to change where the clusters lie. So nobody writes to a cluster that another
 * frees.
 */
#ifndef PARAT_BACKEND_DISK_QCOW2_INT_H
#define PARAT_BACKEND_DISK_QCOW2_INT_H

#include <pthread.h>

#include "backend/disk/image.h"
#include "backend/disk/qcow2.h"
#include "backend/disk/qcow2_header.h"
#include "backend/disk/qcow2_set.h"
#include "base/list.h"
#include "base/log.h"

/* Entries of L1 and L2 tables */
#define QCOW2_OFFSET_MASK 0x00fffffffffffe00ull
#define QCOW2_COPIED      BIT(63)
#define QCOW2_COMPRESSED  BIT(62)
#define QCOW2_ZERO        BIT(0)

/* A table of one cluster. Big-endian, as in the file. */
struct qcow2_table {
    struct list lru;
    struct qcow2_table *next; /* with the same hash */
    uint64_t offset;
    uint32_t dirty_from, dirty_to; /* bytes; equal: clean */
    uint8_t *data;
};

struct qcow2_cache {
    struct list lru; /* oldest first */
    struct qcow2_table **buckets;
    unsigned bucket_count, count, limit, dirty_count;
};

/* Freed clusters that the file still points to, or may. */
struct qcow2_pending {
    uint64_t first, count; /* clusters */
};

struct qcow2_range {
    struct list link;
    uint64_t first, last; /* clusters of the disk */
    bool exclusive;
};

struct qcow2_decompressed; /* qcow2_compress.c */

struct qcow2 {
    struct image image;
    struct image_file *file;
    struct qcow2_header header;
    uint64_t cluster_size;
    uint32_t cluster_bits, l2_bits;     /* log2 of entries in an L2 table */
    uint32_t refcount_bits, block_bits; /* log2 of entries in a refcount block */

    pthread_mutex_t lock;
    pthread_cond_t changed; /* committing ended, or a range was given back */
    bool committing;
    bool written; /* the header tells that we write: dirty and autoclear bits */
    int failed;   /* a flush went wrong: what is in the file is not known any more */
    struct log_limit corrupt_log;

    uint64_t *l1; /* host order, header.l1_size entries */
    uint64_t l1_dirty_from, l1_dirty_to;
    uint64_t *blocks; /* the refcount table, host order */
    uint64_t block_count;
    uint64_t blocks_dirty_from, blocks_dirty_to;
    struct qcow2_cache l2_cache, block_cache;
    struct qcow2_set metadata; /* clusters that hold tables: no data may lie there */
    uint64_t end;              /* clusters: no valid pointer leads there or behind */
    uint64_t free_hint;        /* no free cluster lies before */
    struct qcow2_pending *pending;
    size_t pending_count;

    struct list ranges;
    struct qcow2_decompressed *decompressed;
};

static inline struct qcow2 *qcow2_of(struct image *image)
{
    return container_of(image, struct qcow2, image);
}

static inline bool qcow2_is_lazy(const struct qcow2 *q)
{
    return q->header.compatible & QCOW2_COMPATIBLE_LAZY;
}

/* Logs (rarely) that the image is damaged; -EIO. */
int qcow2_corrupt(struct qcow2 *q, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* qcow2_cache.c. Lock held, or nobody else there. */
int qcow2_cache_init(struct qcow2_cache *cache, size_t bytes, uint64_t cluster_size) MUST_USE;
void qcow2_cache_free(struct qcow2_cache *cache);
/* The table at offset, valid until the next call for this cache; read when it is not there. */
int qcow2_cache_get(struct qcow2 *q, struct qcow2_cache *cache, uint64_t offset,
                    struct qcow2_table **out) MUST_USE;
/* The same with zeroes instead of what the file holds; all of it is dirty. */
int qcow2_cache_new(struct qcow2 *q, struct qcow2_cache *cache, uint64_t offset,
                    struct qcow2_table **out) MUST_USE;
void qcow2_cache_dirty(struct qcow2_cache *cache, struct qcow2_table *table, uint64_t from,
                       uint64_t size);
/* Forgets it, even when dirty. */
void qcow2_cache_drop(struct qcow2_cache *cache, uint64_t offset);
/* All dirty tables: a malloc'ed array of cache->dirty_count, NULL when there are none or without
 * memory. */
struct qcow2_table **qcow2_cache_list_dirty(struct qcow2_cache *cache);
/* Writes one without marking it clean. */
int qcow2_table_write(struct qcow2 *q, const struct qcow2_table *table) MUST_USE;
void qcow2_cache_clean(struct qcow2_cache *cache, struct qcow2_table *table);

/* qcow2_refcount.c. Lock held, not committing. */
uint64_t qcow2_refcount_load(const uint8_t *block, uint64_t index, uint32_t refcount_order);
void qcow2_refcount_store(uint8_t *block, uint64_t index, uint32_t refcount_order, uint64_t value);
/* Counts up to `want` free clusters that lie together, at least 1. */
int qcow2_alloc(struct qcow2 *q, uint64_t want, uint64_t *first, uint64_t *got) MUST_USE;
/* Exactly `count` clusters together, at the end of the file. */
int qcow2_alloc_together(struct qcow2 *q, uint64_t count, uint64_t *first) MUST_USE;
/* Takes one reference from each; nothing in the file points to them through that reference. */
void qcow2_free_now(struct qcow2 *q, uint64_t first, uint64_t count);
/* The same after the next commit. */
int qcow2_free_later(struct qcow2 *q, uint64_t first, uint64_t count) MUST_USE;

/* qcow2_commit.c */
/* Lock held; dropped meanwhile. Afterwards nobody is committing. */
void qcow2_wait_commit(struct qcow2 *q);
/* Lock held. All changes of tables, and all data written before, are in the file; *for good*. */
int qcow2_commit(struct qcow2 *q) MUST_USE;
/* Lock held. Before anything is changed: marks the header, commits when too much is waiting. */
int qcow2_begin_change(struct qcow2 *q) MUST_USE;
/* Lock held. Before data is written in place. */
int qcow2_begin_write(struct qcow2 *q) MUST_USE;
/* Nobody else there. Commits, counts included; the header is clean. */
int qcow2_commit_all(struct qcow2 *q) MUST_USE;

/* qcow2_map.c. Lock held. */
enum qcow2_kind { QCOW2_UNALLOCATED, QCOW2_ZEROES, QCOW2_DATA, QCOW2_COMPRESSED_DATA };
struct qcow2_extent {
    enum qcow2_kind kind;
    uint64_t host;   /* of DATA: offset in the file */
    uint64_t length; /* bytes of the same kind that lie together */
    uint64_t entry;  /* of the first cluster */
    bool in_place;   /* DATA may be overwritten where it is */
};
/* What is at offset, for at most length bytes. */
int qcow2_lookup(struct qcow2 *q, uint64_t offset, uint64_t length,
                 struct qcow2_extent *out) MUST_USE;
/* The L2 table of a cluster of the disk, made or copied so that it may be changed. Not committing.
 */
int qcow2_l2_for_change(struct qcow2 *q, uint64_t cluster, struct qcow2_table **out) MUST_USE;
/* Lets clusters of the disk, within one L2 table, lie at host; frees what was there before. */
int qcow2_link(struct qcow2 *q, uint64_t cluster, uint64_t count, uint64_t host) MUST_USE;
/* Kind and place of an entry; -EIO for one that cannot be. */
int qcow2_parse_entry(struct qcow2 *q, uint64_t entry, struct qcow2_extent *out) MUST_USE;
/* Frees, after the next commit, what an entry of an L2 table points to. */
int qcow2_free_entry(struct qcow2 *q, uint64_t entry) MUST_USE;

/* qcow2_range.c. Lock not held. */
void qcow2_range_take(struct qcow2 *q, struct qcow2_range *range);
void qcow2_range_give(struct qcow2 *q, struct qcow2_range *range);

/* qcow2_io.c; the caller holds the range. */
int qcow2_read_range(struct qcow2 *q, const struct image_io *io) MUST_USE;
int qcow2_readv(struct image *image, const struct image_io *io);
int qcow2_writev(struct image *image, const struct image_io *io);
/* Writes zeroes as data. Takes its range itself. */
int qcow2_write_zeroes(struct qcow2 *q, uint64_t offset, uint64_t length) MUST_USE;

/* qcow2_clear.c */
int qcow2_clear(struct image *image, uint64_t offset, uint64_t length, enum image_clear how);

/* Whole clusters; the caller holds the range. keep: do not give the space back. */
int qcow2_clear_clusters(struct qcow2 *q, uint64_t cluster, uint64_t count, bool keep) MUST_USE;

/* qcow2_compress.c. Any thread, lock not held. */
/* Where a compressed cluster lies: bytes of whole sectors. */
void qcow2_compressed_place(const struct qcow2_header *header, uint64_t entry, uint64_t *offset,
                            uint64_t *size);
/* The part of a compressed cluster that begins `skip` bytes in. */
int qcow2_read_compressed(struct qcow2 *q, uint64_t entry, uint64_t skip,
                          const struct image_io *part) MUST_USE;
struct qcow2_decompressed *qcow2_decompressed_create(void);
void qcow2_decompressed_destroy(struct qcow2_decompressed *d);

/* qcow2_resize.c */
int qcow2_resize(struct image *image, uint64_t size, struct err *err);

#endif
