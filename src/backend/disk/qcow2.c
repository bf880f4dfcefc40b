/* Opening and closing qcow2 images; qcow2_int.h is the guide to the driver. Loop thread. */
#include "backend/disk/qcow2.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backend/disk/qcow2_int.h"

#define L2_CACHE_BYTES    (8u << 20) /* maps 64 GiB with clusters of 64 KiB */
#define BLOCK_CACHE_BYTES (2u << 20)

int qcow2_corrupt(struct qcow2 *q, const char *format, ...)
{
    char text[160];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    log_line_limited(&q->corrupt_log, LOG_ERROR, "%s: is damaged: %s; see 'parat disk check'",
                     q->image.name, text);
    return -EIO;
}

/* Tables. The sentences say "is damaged", name what is, and where to go. */

static int damaged(const struct qcow2 *q, struct err *err, const char *what, const char *how)
{
    return err_set(err, EINVAL, "%s: is damaged: %s %s; see 'parat disk check'", q->image.name,
                   what, how);
}

static int claim(struct qcow2 *q, uint64_t offset, const char *what, struct err *err)
{
    uint64_t cluster = offset >> q->cluster_bits;
    if (offset & (q->cluster_size - 1))
        return damaged(q, err, what, "points into the middle of a cluster");
    if (cluster >= q->end)
        return damaged(q, err, what, "points outside the file");
    int error = qcow2_set_add(&q->metadata, cluster);
    if (error == -EEXIST)
        return damaged(q, err, what, "points to a cluster that holds another table");
    return error ? err_set(err, -error, "%s: out of memory", q->image.name) : 0;
}

static int claim_area(struct qcow2 *q, uint64_t offset, uint64_t bytes, const char *what,
                      struct err *err)
{
    if (!range_fits(offset, bytes, q->end << q->cluster_bits))
        return damaged(q, err, what, "lies outside the file");
    int error = 0;
    for (uint64_t at = 0; at < bytes && !error; at += q->cluster_size)
        error = claim(q, offset + at, what, err);
    return error;
}

/* An array of big-endian pointers, each to a cluster of its own. */
static int load_pointers(struct qcow2 *q, uint64_t offset, uint64_t count, uint64_t **out,
                         struct err *err)
{
    uint64_t *entries = malloc(count * 8 + 1);
    *out = entries;
    if (!entries)
        return err_set(err, ENOMEM, "%s: out of memory", q->image.name);
    int error = image_file_read(q->file, entries, count * 8, offset);
    if (error)
        return err_set(err, -error, "%s: cannot be read: %s", q->image.name, strerror(-error));
    for (uint64_t i = 0; i < count; i++)
        entries[i] = load_be64(&entries[i]);
    return 0;
}

static int load_l1(struct qcow2 *q, struct err *err)
{
    const struct qcow2_header *h = &q->header;
    int error = claim_area(q, h->l1_offset, h->l1_size * 8ull, "the L1 table", err);
    if (!error)
        error = load_pointers(q, h->l1_offset, h->l1_size, &q->l1, err);
    for (uint64_t i = 0; i < h->l1_size && !error; i++) {
        if (q->l1[i] & ~(QCOW2_OFFSET_MASK | QCOW2_COPIED))
            error = damaged(q, err, "an L1 entry", "has reserved bits");
        else if (q->l1[i] & QCOW2_OFFSET_MASK)
            error = claim(q, q->l1[i] & QCOW2_OFFSET_MASK, "an L1 entry", err);
    }
    return error;
}

static int load_refcount_table(struct qcow2 *q, struct err *err)
{
    const struct qcow2_header *h = &q->header;
    uint64_t bytes = (uint64_t)h->refcount_table_clusters << q->cluster_bits;
    if (!bytes)
        return damaged(q, err, "the refcount table", "is missing");
    int error = claim_area(q, h->refcount_table_offset, bytes, "the refcount table", err);
    if (!error)
        error = load_pointers(q, h->refcount_table_offset, bytes / 8, &q->blocks, err);
    q->block_count = bytes / 8;
    for (uint64_t i = 0; i < q->block_count && !error; i++)
        if (q->blocks[i])
            error = claim(q, q->blocks[i], "a refcount table entry", err);
    return error;
}

static int claim_snapshots(struct qcow2 *q, struct err *err)
{
    struct qcow2_snapshot *snapshots;
    uint64_t bytes;
    int error = qcow2_snapshots_read(&snapshots, &bytes, &q->header, q->file);
    if (error == -EINVAL)
        return damaged(q, err, "the table of snapshots", "makes no sense");
    if (error)
        return err_set(err, -error, "%s: cannot be read: %s", q->image.name, strerror(-error));
    error = claim_area(q, q->header.snapshots_offset, bytes, "the table of snapshots", err);
    for (uint32_t i = 0; snapshots && i < q->header.snapshot_count && !error; i++)
        error = claim_area(q, snapshots[i].l1_offset, snapshots[i].l1_size * 8ull,
                           "a snapshot's L1 table", err);
    free(snapshots);
    return error;
}

/* What only a writer needs is not looked at by a reader: so more can be rescued. */
static int load_tables(struct qcow2 *q, struct err *err)
{
    uint64_t size;
    int error = q->file->ops->size(q->file, &size);
    if (error)
        return err_set(err, -error, "%s: cannot be read: %s", q->image.name, strerror(-error));
    q->end = (size >> q->cluster_bits) + ((size & (q->cluster_size - 1)) != 0);
    error = claim(q, 0, "the header", err);
    if (!error)
        error = load_l1(q, err);
    if (error || q->image.read_only)
        return error;
    error = load_refcount_table(q, err);
    return error ? error : claim_snapshots(q, err);
}

/* Opening */

static int check_header(const struct qcow2_header *h, const char *name, bool read_only,
                        struct err *err)
{
    if (h->unsupported[0])
        return err_set(err, ENOTSUP, "%s: %s", name, h->unsupported);
    if (h->incompatible & QCOW2_INCOMPATIBLE_CORRUPT && !read_only)
        return err_set(err, EINVAL,
                       "%s: is marked as damaged; 'parat disk check --repair' may mend it", name);
    return 0;
}

/* Counts were not written when the image was left: they are made anew. */
static int mend_dirty(struct image_file *file, const char *name, struct qcow2_header *header,
                      struct err *err)
{
    struct qcow2_report report;
    struct qcow2_check check = {.name = name, .repair = true};
    log_notice("%s: was not closed cleanly; its refcounts are made anew", name);
    int error = qcow2_check(file, &check, &report, err);
    if (!error && report.errors)
        return err_set(err, EINVAL,
                       "%s: is damaged, and was not closed cleanly; see 'parat disk "
                       "check'",
                       name);
    return error ? error : qcow2_header_read(header, file, name, err);
}

static void destroy(struct qcow2 *q)
{
    qcow2_cache_free(&q->l2_cache);
    qcow2_cache_free(&q->block_cache);
    qcow2_set_free(&q->metadata);
    qcow2_decompressed_destroy(q->decompressed);
    free(q->l1);
    free(q->blocks);
    free(q->pending);
    pthread_cond_destroy(&q->changed);
    pthread_mutex_destroy(&q->lock);
}

static int allocate(struct qcow2 *q, const char *name)
{
    const struct qcow2_header *h = &q->header;
    q->image.name = strdup(name);
    q->image.backing_name = h->backing_name[0] ? strdup(h->backing_name) : NULL;
    q->image.backing_format = h->backing_format[0] ? strdup(h->backing_format) : NULL;
    q->decompressed = qcow2_decompressed_create();
    bool missing = !q->image.name || !q->decompressed ||
                   (h->backing_name[0] && !q->image.backing_name) ||
                   (h->backing_format[0] && !q->image.backing_format);
    int error = qcow2_cache_init(&q->l2_cache, L2_CACHE_BYTES, q->cluster_size);
    if (!error)
        error = qcow2_cache_init(&q->block_cache, BLOCK_CACHE_BYTES, q->cluster_size);
    return missing ? -ENOMEM : error;
}

static int qcow2_flush(struct image *image)
{
    struct qcow2 *q = qcow2_of(image);
    if (image->read_only)
        return 0;
    pthread_mutex_lock(&q->lock);
    int error = qcow2_commit(q);
    pthread_mutex_unlock(&q->lock);
    return error;
}

static int qcow2_map(struct image *image, uint64_t offset, uint64_t *length,
                     enum image_extent_kind *out)
{
    struct qcow2 *q = qcow2_of(image);
    struct qcow2_extent extent;
    pthread_mutex_lock(&q->lock);
    int error = qcow2_lookup(q, offset, *length, &extent);
    pthread_mutex_unlock(&q->lock);
    if (error)
        return error;
    *length = extent.length;
    *out = extent.kind == QCOW2_DATA || extent.kind == QCOW2_COMPRESSED_DATA ? IMAGE_DATA
                                                                             : IMAGE_ZEROES;
    struct image *backing = image->backing;
    if (extent.kind != QCOW2_UNALLOCATED || !backing || offset >= backing->size)
        return 0;
    *length = MIN(*length, backing->size - offset);
    return backing->ops->map(backing, offset, length, out);
}

static int qcow2_close(struct image *image)
{
    struct qcow2 *q = qcow2_of(image);
    int error = q->written ? qcow2_commit_all(q) : 0;
    q->file->ops->close(q->file);
    destroy(q);
    return error;
}

static const struct image_ops qcow2_ops = {
    .name = "qcow2",
    .readv = qcow2_readv,
    .writev = qcow2_writev,
    .clear = qcow2_clear,
    .flush = qcow2_flush,
    .map = qcow2_map,
    .resize = qcow2_resize,
    .close = qcow2_close,
};

static void fill_in(struct qcow2 *q, struct image_file *file, bool read_only)
{
    const struct qcow2_header *h = &q->header;
    q->file = file;
    q->cluster_bits = h->cluster_bits;
    q->cluster_size = qcow2_cluster_size(h);
    q->l2_bits = h->cluster_bits - 3;
    q->refcount_bits = 1u << h->refcount_order;
    q->block_bits = h->cluster_bits + 3 - h->refcount_order;
    q->image.ops = &qcow2_ops;
    q->image.size = align_up(h->size, IMAGE_SECTOR);
    q->image.read_only = read_only;
    q->image.can_discard = !read_only && (h->version >= 3 || !h->backing_name[0]);
    q->image.cluster_size = (uint32_t)q->cluster_size;
    pthread_mutex_init(&q->lock, NULL);
    pthread_cond_init(&q->changed, NULL);
    list_init(&q->ranges);
}

static int open_header(struct qcow2 *q, struct image_file *file, const char *name, bool read_only,
                       struct err *err)
{
    int error = qcow2_header_read(&q->header, file, name, err);
    if (!error)
        error = check_header(&q->header, name, read_only, err);
    if (!error && q->header.incompatible & QCOW2_INCOMPATIBLE_DIRTY && !read_only)
        error = mend_dirty(file, name, &q->header, err);
    return error;
}

int qcow2_open(struct image **out, struct image_file *file, const char *name, bool read_only,
               struct err *err)
{
    struct qcow2 *q = calloc(1, sizeof *q);
    if (!q)
        return err_set(err, ENOMEM, "%s: out of memory", name);
    int error = open_header(q, file, name, read_only, err);
    if (error) {
        free(q);
        return error;
    }
    fill_in(q, file, read_only);
    error = allocate(q, name);
    if (error)
        err_set(err, -error, "%s: out of memory", name);
    else
        error = load_tables(q, err);
    if (error) {
        destroy(q);
        free(q->image.name);
        free(q->image.backing_name);
        free(q->image.backing_format);
        free(q);
        return error;
    }
    *out = &q->image;
    return 0;
}
