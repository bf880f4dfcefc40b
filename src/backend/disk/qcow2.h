/*
 * The qcow2 format, versions 2 and 3 (QEMU, docs/interop/qcow2). docs/disks.md tells what is
 * supported and what a power cut can do; qcow2_int.h how it is built.
 */
#ifndef PARAT_BACKEND_DISK_QCOW2_H
#define PARAT_BACKEND_DISK_QCOW2_H

#include <stdbool.h>
#include <stdint.h>

#include "backend/disk/image.h"
#include "backend/disk/image_file.h"
#include "base/bits.h"
#include "base/err.h"

#define QCOW2_MAGIC_SIZE 4

bool qcow2_is_magic(const uint8_t *magic);

/*
 * Opens the image in a file, which it takes over when it succeeds. name begins each sentence. Does
 * not open the backing file: image->backing_name tells it, and the caller sets image->backing.
 * An image that was not closed cleanly under lazy refcounts is mended first, unless read_only.
 */
int qcow2_open(struct image **out, struct image_file *file, const char *name, bool read_only,
               struct err *err) MUST_USE;

/* Creating */

struct qcow2_create {
    uint64_t size;
    unsigned version;                          /* 2 or 3 */
    uint32_t cluster_size;                     /* a power of two, 512 to 2M */
    unsigned refcount_bits;                    /* a power of two, 1 to 64; 16 for version 2 */
    bool lazy_refcounts;                       /* version 3 */
    const char *backing_name, *backing_format; /* or NULL */
};

/* Makes an empty image in an empty file, and flushes it. */
int qcow2_create(struct image_file *file, const char *name, const struct qcow2_create *create,
                 struct err *err) MUST_USE;

/* Checking */

struct qcow2_report {
    uint64_t leaks;         /* clusters that are kept and not used */
    uint64_t bad_refcounts; /* used clusters whose count is too low */
    uint64_t bad_flags;     /* "may be written in place" where that is wrong, or the reverse */
    uint64_t errors;        /* what cannot be mended */
    uint64_t data_clusters, compressed_clusters; /* of the active disk */
    uint64_t file_clusters;
    bool mended; /* the first three are history */
};

struct qcow2_check {
    const char *name;                                /* begins sentences */
    bool repair;                                     /* needs a writable file */
    void (*say)(void *context, const char *finding); /* or NULL */
    void *context;
};

/* 0 when the check itself could be done; what it found stands in the report. */
int qcow2_check(struct image_file *file, const struct qcow2_check *check, struct qcow2_report *out,
                struct err *err) MUST_USE;

#endif
