/*
 * Image files in memory for the tests of backend/disk: they can record what is written and play a
 * power cut at any point of it, and fail at a chosen operation.
 */
#ifndef PARAT_TESTS_IMAGE_RIG_H
#define PARAT_TESTS_IMAGE_RIG_H

#include "test.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backend/disk/image.h"
#include "backend/disk/qcow2.h"
#include "backend/disk/qcow2_count.h"
#include "backend/disk/qcow2_header.h"
#include "backend/disk/qcow2_int.h"
#include "base/log.h"

#define MEM_SIZE_MAX (64u << 20)

enum mem_op_kind { MEM_WRITE, MEM_ZERO, MEM_RESIZE, MEM_FLUSH };

struct mem_op {
    enum mem_op_kind kind;
    uint64_t offset, length;
    uint8_t *data; /* of a write */
};

struct mem_file {
    struct image_file base;
    uint8_t *data;
    uint64_t size, room; /* bytes of data: used and allocated */
    bool keep;           /* closing leaves it: the test owns it */
    bool record;         /* into ops */
    struct mem_op *ops;
    size_t op_count;
    long fail_at; /* the operation (write, zero, resize, flush) from here on that fails; -1: none */
    int fail_with;
};

static struct mem_file *mem_of(struct image_file *file)
{
    return (struct mem_file *)file;
}

static void mem_reserve(struct mem_file *mem, uint64_t size)
{
    if (size <= mem->size)
        return;
    if (size > mem->room) {
        mem->room = MAX(size, mem->room * 2);
        mem->data = realloc(mem->data, mem->room);
    }
    memset(mem->data + mem->size, 0, size - mem->size);
    mem->size = size;
}

static int mem_readv(struct image_file *file, const struct image_io *io)
{
    struct mem_file *mem = mem_of(file);
    uint64_t at = io->offset;
    for (unsigned i = 0; i < io->iov_count; i++) {
        uint64_t size = io->iov[i].iov_len, inside = 0;
        if (at < mem->size)
            inside = MIN(size, mem->size - at);
        if (inside)
            memcpy(io->iov[i].iov_base, mem->data + at, inside);
        memset((uint8_t *)io->iov[i].iov_base + inside, 0, size - inside);
        at += size;
    }
    return 0;
}

/* Counts an operation; -errno when it is the one to fail. */
static int mem_count(struct mem_file *mem)
{
    if (mem->fail_at < 0 || mem->fail_at-- > 0)
        return 0;
    return -mem->fail_with;
}

static void mem_apply(struct mem_file *mem, const struct mem_op *op)
{
    switch (op->kind) {
    case MEM_WRITE:
        mem_reserve(mem, op->offset + op->length);
        memcpy(mem->data + op->offset, op->data, op->length);
        break;
    case MEM_ZERO:
        if (op->offset < mem->size)
            memset(mem->data + op->offset, 0, MIN(op->length, mem->size - op->offset));
        break;
    case MEM_RESIZE:
        if (op->length < mem->size)
            mem->size = op->length;
        mem_reserve(mem, op->length);
        break;
    case MEM_FLUSH:
        break;
    }
}

static int mem_do(struct mem_file *mem, struct mem_op op)
{
    int error = mem_count(mem);
    if (!error && (op.offset > MEM_SIZE_MAX || op.length > MEM_SIZE_MAX))
        error = -EFBIG;
    if (error) {
        free(op.data);
        return error;
    }
    mem_apply(mem, &op);
    if (!mem->record) {
        free(op.data);
        return 0;
    }
    if (mem->op_count % 1024 == 0)
        mem->ops = realloc(mem->ops, (mem->op_count + 1024) * sizeof *mem->ops);
    mem->ops[mem->op_count++] = op;
    return 0;
}

static int mem_writev(struct image_file *file, const struct image_io *io)
{
    uint8_t *data = malloc(io->length + 1);
    uint64_t at = 0;
    for (unsigned i = 0; i < io->iov_count; i++) {
        memcpy(data + at, io->iov[i].iov_base, io->iov[i].iov_len);
        at += io->iov[i].iov_len;
    }
    return mem_do(mem_of(file), (struct mem_op) {MEM_WRITE, io->offset, io->length, data});
}

static int mem_flush(struct image_file *file)
{
    return mem_do(mem_of(file), (struct mem_op) {MEM_FLUSH, 0, 0, NULL});
}

static int mem_zero(struct image_file *file, uint64_t offset, uint64_t length, bool unmap)
{
    return mem_do(mem_of(file), (struct mem_op) {MEM_ZERO, offset, length, NULL});
}

static int mem_resize(struct image_file *file, uint64_t size)
{
    return mem_do(mem_of(file), (struct mem_op) {MEM_RESIZE, 0, size, NULL});
}

static int mem_size(struct image_file *file, uint64_t *out)
{
    *out = mem_of(file)->size;
    return 0;
}

static int mem_map(struct image_file *file, uint64_t offset, uint64_t *length, bool *stored)
{
    *stored = offset < mem_of(file)->size;
    return 0;
}

static void mem_forget_ops(struct mem_file *mem)
{
    for (size_t i = 0; i < mem->op_count; i++)
        free(mem->ops[i].data);
    free(mem->ops);
    mem->ops = NULL;
    mem->op_count = 0;
}

static void mem_free(struct mem_file *mem)
{
    mem_forget_ops(mem);
    free(mem->data);
    free(mem);
}

static void mem_close(struct image_file *file)
{
    if (!mem_of(file)->keep)
        mem_free(mem_of(file));
}

static const struct image_file_ops mem_ops = {
    .readv = mem_readv,
    .writev = mem_writev,
    .flush = mem_flush,
    .zero = mem_zero,
    .resize = mem_resize,
    .size = mem_size,
    .map = mem_map,
    .close = mem_close,
};

/* A copy of bytes as a file that outlives the image on it. */
static inline struct mem_file *mem_create(const uint8_t *data, uint64_t size)
{
    struct mem_file *mem = calloc(1, sizeof *mem);
    mem->base.ops = &mem_ops;
    mem->keep = true;
    mem->fail_at = -1;
    mem_reserve(mem, size);
    if (data)
        memcpy(mem->data, data, size);
    return mem;
}

/* The same contents, in the memory that is there. */
static inline void mem_set(struct mem_file *mem, const struct mem_file *from)
{
    mem->size = 0;
    mem_reserve(mem, from->size);
    memcpy(mem->data, from->data, from->size);
}

/* Images */

static inline struct mem_file *make_qcow2(const struct qcow2_create *create)
{
    struct mem_file *mem = mem_create(NULL, 0);
    struct err err = {{0}};
    if (qcow2_create(&mem->base, "test", create, &err))
        fail_msg("%s", err.text);
    return mem;
}

static inline struct image *open_qcow2(struct mem_file *mem, bool read_only)
{
    struct image *image = NULL;
    struct err err = {{0}};
    if (qcow2_open(&image, &mem->base, "test", read_only, &err))
        fail_msg("%s", err.text);
    return image;
}

/* Caches of eight tables, so that a small image fills them. */
static inline void shrink_caches(struct image *image)
{
    qcow2_of(image)->l2_cache.limit = qcow2_of(image)->block_cache.limit = 8;
}

static inline void say_finding(void *context, const char *finding)
{
    fprintf(stderr, "    %s\n", finding);
}

/* Repairs: refcounts and flags of an image that a test put together by hand. */
static inline struct qcow2_report check_qcow2(struct mem_file *mem, bool repair, bool loud)
{
    struct qcow2_report report;
    struct err err = {{0}};
    struct qcow2_check check = {.name = "test", .repair = repair, .say = loud ? say_finding : NULL};
    if (qcow2_check(&mem->base, &check, &report, &err))
        fail_msg("%s", err.text);
    return report;
}

/* No damage at all; leaks only where they are allowed. */
static inline void assert_sound(struct mem_file *mem, bool leaks_allowed)
{
    struct qcow2_report report = check_qcow2(mem, false, false);
    if (report.errors || report.bad_refcounts || report.bad_flags ||
        (report.leaks && !leaks_allowed)) {
        check_qcow2(mem, false, true);
        fail_msg("%llu errors, %llu bad refcounts, %llu bad flags, %llu leaks",
                 (unsigned long long)report.errors, (unsigned long long)report.bad_refcounts,
                 (unsigned long long)report.bad_flags, (unsigned long long)report.leaks);
    }
}

/*
 * Takes an internal snapshot: a copy of the L1 table and a table of one entry at the end of the
 * file; the repair then counts all clusters twice and takes the COPIED flags away.
 */
static inline void add_snapshot(struct mem_file *mem)
{
    struct qcow2_header h;
    assert_int_equal(qcow2_header_read(&h, &mem->base, "test", NULL), 0);
    uint64_t cluster = qcow2_cluster_size(&h), bytes = align_up(h.l1_size * 8ull, cluster);
    uint64_t l1 = align_up(mem->size, cluster), table = l1 + bytes;
    mem_reserve(mem, table + cluster);
    memcpy(mem->data + l1, mem->data + h.l1_offset, h.l1_size * 8ull);
    uint8_t *entry = mem->data + table;
    store_be64(entry, l1);
    store_be32(entry + 8, h.l1_size);
    store_be16(entry + 12, 1);
    store_be16(entry + 14, 4);
    store_be32(entry + 36, 16);
    store_be64(entry + 48, h.size);
    memcpy(entry + 56, "1snap", 5);
    store_be32(mem->data + QCOW2_AT_SNAPSHOT_COUNT, 1);
    store_be64(mem->data + QCOW2_AT_SNAPSHOTS_OFFSET, table);
    assert_int_equal(check_qcow2(mem, true, false).errors, 0);
}

/* The image as its first snapshot has it: a copy with that L1 table, to be read only. */
static inline struct mem_file *open_snapshot(const struct mem_file *mem)
{
    struct mem_file *copy = mem_create(mem->data, mem->size);
    uint64_t table = load_be64(copy->data + QCOW2_AT_SNAPSHOTS_OFFSET);
    memcpy(copy->data + QCOW2_AT_L1_OFFSET, copy->data + table, 8);
    store_be32(copy->data + QCOW2_AT_SNAPSHOT_COUNT, 0);
    return copy;
}

/* A xorshift generator: tests play the same on every host. */
static inline uint64_t next_random(uint64_t *seed)
{
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    return *seed;
}

#endif
