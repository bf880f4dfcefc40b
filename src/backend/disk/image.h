/*
 * Disk images: the contents of a disk seen through a format (raw, qcow2), with the backing files
 * below it. Calls block and return 0 or -errno; readv, writev, clear and flush may come from
 * several threads at a time, all else from one thread while nothing else is under way.
 *
 * docs/disks.md tells what is supported and how the format of a file is found.
 */
#ifndef PARAT_BACKEND_DISK_IMAGE_H
#define PARAT_BACKEND_DISK_IMAGE_H

#include <stdbool.h>
#include <stdint.h>

#include "backend/disk/disk.h"
#include "backend/disk/disk_file.h"
#include "backend/disk/image_file.h"
#include "base/bits.h"
#include "base/err.h"

#define IMAGE_DEPTH_MAX   64 /* files in a chain of backing files */
#define IMAGE_SECTOR      512u
#define IMAGE_BACKING_MAX 1023 /* bytes of a backing file's name */

struct image;

enum image_clear {
    IMAGE_DISCARD,   /* a hint: what is not whole clusters stays */
    IMAGE_ZERO,      /* reads as zeroes; keeps the space where it can */
    IMAGE_ZERO_UNMAP /* reads as zeroes; gives the space back where it can */
};

enum image_extent_kind { IMAGE_DATA, IMAGE_ZEROES };

struct image_ops {
    const char *name;
    int (*readv)(struct image *image, const struct image_io *io);
    int (*writev)(struct image *image, const struct image_io *io);
    int (*clear)(struct image *image, uint64_t offset, uint64_t length, enum image_clear how);
    int (*flush)(struct image *image);
    /* What is at offset; *length: at most what the caller asks for. Backing files are looked into.
     */
    int (*map)(struct image *image, uint64_t offset, uint64_t *length, enum image_extent_kind *out);
    /* Not with anything else under way. The sentence begins with the image's name. */
    int (*resize)(struct image *image, uint64_t size, struct err *err);
    /* Writes what is still in memory; then the file is closed. */
    int (*close)(struct image *image);
};

/* Base of each format's own struct. */
struct image {
    const struct image_ops *ops;
    char *name;    /* for sentences: "--disk a.img" */
    uint64_t size; /* of the disk, a multiple of 512 */
    bool read_only, can_discard;
    uint32_t cluster_size; /* unit of discards, 512 or more */
    struct image *backing; /* or NULL */
    char *backing_name;    /* as the file tells it, or NULL */
    char *backing_format;  /* as the file tells it, or NULL */
};

struct image_config {
    const char *label; /* begins each sentence, before the path: "--disk " or "" */
    const char *path;
    enum disk_format format; /* DISK_FORMAT_AUTO: see image_find_format */
    bool read_only, direct;
};

/* Opens a file and all its backing files (read-only). One sentence names the file that is wrong. */
int image_open(struct image **out, const struct image_config *config, struct err *err) MUST_USE;
/* The same on a file that is open; takes the file over in any case. config->format is known. */
int image_open_on(struct image **out, struct disk_file *file, const struct image_config *config,
                  struct err *err) MUST_USE;
/*
 * Decides the format of an open file. What is in a file never makes it qcow2 by itself: a guest can
 * write a header into a raw disk. Without a given format a file with a qcow2 header must have a
 * name that ends in .qcow2, and a file with that name must have the header; otherwise it is
 * refused.
 */
int image_find_format(enum disk_format *out, const struct disk_file *file,
                      const struct image_config *config, struct err *err) MUST_USE;
/* The format that a new file of this name gets when none is told. */
enum disk_format image_format_of_name(const char *path);
/* "raw" or "qcow2"; false for anything else. */
bool image_format_parse(const char *text, enum disk_format *out);
/* NULL is fine. Writes what is still in memory: -errno when that failed; closes in any case. */
int image_close(struct image *image);

/* A name in an image's file, seen from the folder of that image. malloc'ed; NULL without memory. */
char *image_resolve(const char *image_path, const char *name);

static inline int image_readv(struct image *image, const struct image_io *io)
{
    return image->ops->readv(image, io);
}

int image_read(struct image *image, void *data, size_t size, uint64_t offset) MUST_USE;
int image_write(struct image *image, const void *data, size_t size, uint64_t offset) MUST_USE;

/* A raw image on a file, which it takes over. */
int image_raw_open(struct image **out, struct image_file *file, const char *name, bool read_only,
                   struct err *err) MUST_USE;

#endif
