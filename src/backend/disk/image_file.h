/*
 * The seam between an image format and the bytes of its file: a host file, memory in tests. Any
 * thread, several at a time; calls block. Each returns 0 or -errno.
 */
#ifndef PARAT_BACKEND_DISK_IMAGE_FILE_H
#define PARAT_BACKEND_DISK_IMAGE_FILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "base/bits.h"

struct image_file;
struct disk_file;

/* A stretch of bytes and where they go. The vector may be changed by who carries it out. */
struct image_io {
    struct iovec *iov;
    unsigned iov_count;
    uint64_t offset, length; /* length is the sum of iov */
};

struct image_file_ops {
    /* What lies behind the end of the file reads as zeroes. */
    int (*readv)(struct image_file *file, const struct image_io *io);
    /* A write behind the end makes the file longer. */
    int (*writev)(struct image_file *file, const struct image_io *io);
    /* All writes that had returned before are on stable storage afterwards. */
    int (*flush)(struct image_file *file);
    /* Reads as zeroes afterwards; unmap: gives the space back. Does not change the size. */
    int (*zero)(struct image_file *file, uint64_t offset, uint64_t length, bool unmap);
    int (*resize)(struct image_file *file, uint64_t size);
    int (*size)(struct image_file *file, uint64_t *out);
    /* Whether bytes at offset are stored (or are a hole), and for how long: *length is the most
     * that the caller asks for. */
    int (*map)(struct image_file *file, uint64_t offset, uint64_t *length, bool *stored);
    void (*close)(struct image_file *file);
};

struct image_file {
    const struct image_file_ops *ops;
};

int image_file_read(struct image_file *file, void *data, size_t size, uint64_t offset) MUST_USE;
int image_file_write(struct image_file *file, const void *data, size_t size,
                     uint64_t offset) MUST_USE;
static inline int image_file_flush(struct image_file *file)
{
    return file->ops->flush(file);
}

/* Takes the open file over (from *file, which is closed then); NULL without memory. */
struct image_file *image_file_on_disk(struct disk_file *file);

/* Of a vector: the part that begins `skip` bytes in, `length` long. `out` has room for `max`. The
 * number of entries, or 0 when they do not fit or the vector is too short. */
unsigned image_io_slice(const struct image_io *io, uint64_t skip, uint64_t length,
                        struct iovec *out, unsigned max);
/* Fills the part of the vector with zeroes. */
void image_io_zero(const struct image_io *io, uint64_t skip, uint64_t length);

#endif
