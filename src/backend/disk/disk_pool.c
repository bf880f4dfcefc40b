/* Disk I/O on worker threads: works on every host. */
#include <errno.h>

#include "backend/disk/disk_int.h"

#define THREADS_PER_QUEUE 2
#define THREADS_MAX       8

static void run_request(struct pool_job *job)
{
    struct disk_slot *slot = container_of(job, struct disk_slot, job);
    struct disk_request *request = disk_request_of(slot);
    struct disk *disk = slot->disk;
    disk_finish(disk, request, disk_sync_run(disk, request));
}

void disk_pool_submit(struct disk *disk, struct disk_request *request)
{
    struct disk_slot *slot = disk_slot_of(request);
    slot->job.run = run_request;
    pool_submit(disk->pool, &slot->job);
}

static int disk_pool_create(struct disk *disk, unsigned queue_count)
{
    unsigned count = MIN(queue_count * THREADS_PER_QUEUE, THREADS_MAX);
    return pool_create_confined(&disk->pool, count, disk->sandbox);
}

static void disk_pool_destroy(struct disk *disk)
{
    pool_destroy(disk->pool);
    disk->pool = NULL;
}

const struct disk_io_ops disk_pool_ops = {
    .name = "threads",
    .create = disk_pool_create,
    .destroy = disk_pool_destroy,
    .submit = disk_pool_submit,
};
