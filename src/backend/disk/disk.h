/*
 * The host side of a disk: asynchronous requests on a file. No guest addresses, no virtio types.
 * Submitting never blocks; completions come on another thread, in any order.
 */
#ifndef PARAT_BACKEND_DISK_DISK_H
#define PARAT_BACKEND_DISK_DISK_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "base/bits.h"
#include "base/err.h"

struct disk;
struct sandbox;

enum disk_op { DISK_READ, DISK_WRITE, DISK_FLUSH, DISK_DISCARD, DISK_WRITE_ZEROES };

#define DISK_IOV_MAX 256

/* The caller owns it and keeps it, and what iov points to, until done() was called. */
struct disk_request {
    enum disk_op op;
    uint64_t offset,
        length;        /* bytes; multiples of 512; length is the sum of iov for reads and writes */
    struct iovec *iov; /* may be changed by the backend */
    unsigned iov_count;
    bool unmap;   /* WRITE_ZEROES may deallocate */
    bool bounced; /* the buffers are not pinnable guest memory: no constraint here */
    /* result: 0 or -errno (-EIO, -ENOSPC…). On a worker or completion thread, with no lock held. */
    void (*done)(struct disk_request *request, int result);
    void *context;    /* the caller's */
    void *backend[8]; /* the backend's */
};

/* AUTO: raw, or qcow2 for a name that ends in .qcow2; image.h tells why not by contents. */
enum disk_format { DISK_FORMAT_AUTO, DISK_FORMAT_RAW, DISK_FORMAT_QCOW2 };

struct disk_config {
    const char *path;
    enum disk_format format;
    bool read_only;
    bool direct;       /* O_DIRECT */
    bool use_io_uring; /* raw only, where the host allows it; otherwise the worker pool, which
                        * log_info tells */
    unsigned queue_count;
    const struct sandbox *sandbox; /* for the disk's threads, or NULL */
};

struct disk_info {
    uint64_t size; /* bytes, a multiple of 512 */
    bool read_only;
    bool can_discard;
    uint32_t block_size;          /* preferred, 512 or more */
    uint32_t discard_granularity; /* bytes: smaller discards may do nothing */
    const char *format_name;      /* "raw" or "qcow2" */
    const char *io_name;          /* "io_uring" or "threads" */
};

/*
 * Opens and locks the file (OFD locks: exclusive when writable, shared when read-only). Errors name
 * the path and the reason: missing, a directory, no permission, in use by another VM.
 */
int disk_open(struct disk **out, const struct disk_config *config, struct err *err) MUST_USE;
/* No request is in flight. NULL is fine. */
void disk_close(struct disk *disk);
void disk_info(const struct disk *disk, struct disk_info *out);
/* Any thread. Bad ranges complete with -EINVAL. done() may be called before submit returns. */
void disk_submit(struct disk *disk, struct disk_request *request);
/* Waits until no request is in flight. */
void disk_drain(struct disk *disk);

#endif
