/* What the files of the disk backend share. disk.h is the contract for everyone else. */
#ifndef PARAT_BACKEND_DISK_DISK_INT_H
#define PARAT_BACKEND_DISK_DISK_INT_H

#include <assert.h>
#include <pthread.h>

#include "backend/disk/disk.h"
#include "backend/disk/disk_file.h"
#include "backend/disk/image.h"
#include "base/pool.h"

struct disk_uring;

/* A way to carry requests out. submit never blocks and ends each request with disk_finish. */
struct disk_io_ops {
    const char *name;
    int (*create)(struct disk *disk, unsigned queue_count);
    void (*destroy)(struct disk *disk);
    void (*submit)(struct disk *disk, struct disk_request *request);
};

extern const struct disk_io_ops disk_pool_ops;
extern const struct disk_io_ops disk_uring_ops;

struct disk {
    struct disk_file file; /* of a raw disk; an image has its own */
    struct image *image;   /* NULL: raw */
    uint64_t size;
    uint32_t block_size, discard_granularity;
    const struct sandbox *sandbox;
    bool read_only;
    bool can_discard;

    const struct disk_io_ops *io;
    struct pool *pool;        /* all requests of disk_pool, the rare slow ones of disk_uring */
    struct disk_uring *uring; /* of disk_uring */

    pthread_mutex_t lock;
    pthread_cond_t idle;
    unsigned in_flight; /* guarded by lock */
};

/* What a request carries while it is here; lies in disk_request.backend. */
struct disk_slot {
    struct pool_job job;
    struct disk *disk;
    uint64_t done_bytes; /* transferred so far; iov and offset already stand behind them */
};
static_assert(sizeof(struct disk_slot) <= sizeof(((struct disk_request *)0)->backend),
              "disk_request.backend is too small");

static inline struct disk_slot *disk_slot_of(struct disk_request *request)
{
    return (struct disk_slot *)request->backend;
}

static inline struct disk_request *disk_request_of(struct disk_slot *slot)
{
    return (struct disk_request *)((char *)slot - offsetof(struct disk_request, backend));
}

/* disk_fallocate_mode and disk_use_direct choose how a request is carried out. */
int disk_fallocate_mode(const struct disk_request *request);
bool disk_use_direct(const struct disk *disk, struct disk_request *request);
/* Moves offset and iov past what was transferred. */
void disk_advance(struct disk_request *request, uint64_t bytes);

/* disk_sync.c: carries out what is left of the request on this thread; blocks. 0 or -errno. */
int disk_sync_run(struct disk *disk, struct disk_request *request);

/* disk_pool.c: hands the rest of a request to the workers. */
void disk_pool_submit(struct disk *disk, struct disk_request *request);

/* Completes the request; it may be gone afterwards. No lock held. */
void disk_finish(struct disk *disk, struct disk_request *request, int result);

#endif
