/*
 * A disk: a raw file with its own ways of I/O, or an image format on worker threads, and what every
 * request passes. Opened and closed on the loop thread; requests come from any thread.
 */
#include "backend/disk/disk.h"

#include <errno.h>
#include <linux/falloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backend/disk/disk_int.h"
#include "base/log.h"

#define SECTOR_SIZE 512u

/* Opening */

static int start_io(struct disk *disk, const struct disk_config *config, struct err *err)
{
    unsigned queues = MAX(config->queue_count, 1);
    if (config->use_io_uring && !disk->image) {
        disk->io = &disk_uring_ops;
        int error = disk->io->create(disk, queues);
        if (!error)
            return 0;
        log_info("--disk %s: the host denies io_uring (%s): using worker threads", config->path,
                 strerror(-error));
    }
    disk->io = &disk_pool_ops;
    int error = disk->io->create(disk, queues);
    if (error) {
        disk->io = NULL;
        return err_set(err, -error, "--disk %s: cannot start worker threads: %s", config->path,
                       strerror(-error));
    }
    return 0;
}

/* The file becomes the image's; what is asked of a raw disk stays with the disk. */
static int open_image(struct disk *disk, const struct image_config *config, struct err *err)
{
    int error = image_open_on(&disk->image, &disk->file, config, err);
    if (error)
        return error;
    disk->size = disk->image->size;
    disk->can_discard = disk->image->can_discard;
    if (disk->size == 0)
        return err_set(err, EINVAL, "--disk %s: is a disk of no size", config->path);
    return 0;
}

static int open_contents(struct disk *disk, const struct disk_config *config, struct err *err)
{
    struct image_config image = {.label = "--disk ",
                                 .path = config->path,
                                 .format = config->format,
                                 .read_only = config->read_only,
                                 .direct = config->direct};
    int error = image_find_format(&image.format, &disk->file, &image, err);
    if (error)
        return error;
    disk->block_size = disk->discard_granularity = disk->file.block_size;
    if (image.format != DISK_FORMAT_RAW) {
        error = open_image(disk, &image, err);
        if (!error)
            disk->discard_granularity = disk->image->cluster_size;
        return error;
    }
    disk->size = align_up(disk->file.size, SECTOR_SIZE); /* the missing bytes read as zero */
    disk->can_discard = disk->file.can_discard;
    return 0;
}

int disk_open(struct disk **out, const struct disk_config *config, struct err *err)
{
    struct disk *disk = calloc(1, sizeof *disk);
    if (!disk)
        return err_set(err, ENOMEM, "--disk %s: out of memory", config->path);
    disk->file.fd = disk->file.direct_fd = -1;
    disk->read_only = config->read_only;
    disk->sandbox = config->sandbox;
    pthread_mutex_init(&disk->lock, NULL);
    pthread_cond_init(&disk->idle, NULL);
    struct disk_file_config file = {.label = "--disk ",
                                    .path = config->path,
                                    .read_only = config->read_only,
                                    .direct = config->direct};
    int error = disk_file_open(&disk->file, &file, err);
    if (!error)
        error = open_contents(disk, config, err);
    if (!error)
        error = start_io(disk, config, err);
    if (error) {
        disk_close(disk);
        return error;
    }
    *out = disk;
    return 0;
}

static void close_image(struct image *image)
{
    char name[256];
    snprintf(name, sizeof name, "%s", image->name);
    int error = image_close(image);
    if (error)
        log_error("%s: what the guest had not flushed is lost: %s", name, strerror(-error));
}

void disk_close(struct disk *disk)
{
    if (!disk)
        return;
    if (disk->io)
        disk->io->destroy(disk);
    if (disk->image)
        close_image(disk->image);
    disk_file_close(&disk->file);
    pthread_cond_destroy(&disk->idle);
    pthread_mutex_destroy(&disk->lock);
    free(disk);
}

void disk_info(const struct disk *disk, struct disk_info *out)
{
    *out = (struct disk_info) {
        .size = disk->size,
        .read_only = disk->read_only,
        .can_discard = disk->can_discard,
        .block_size = disk->block_size,
        .discard_granularity = disk->discard_granularity,
        .format_name = disk->image ? disk->image->ops->name : "raw",
        .io_name = disk->io->name,
    };
}

/* Requests */

static bool is_transfer(enum disk_op op)
{
    return op == DISK_READ || op == DISK_WRITE;
}

static int check_request(const struct disk *disk, const struct disk_request *request)
{
    if (request->op == DISK_FLUSH)
        return 0;
    if (request->op > DISK_WRITE_ZEROES || (request->offset | request->length) % SECTOR_SIZE ||
        !range_fits(request->offset, request->length, disk->size))
        return -EINVAL;
    if (disk->read_only && request->op != DISK_READ)
        return -EROFS;
    if (!is_transfer(request->op))
        return 0;
    if (request->iov_count > DISK_IOV_MAX)
        return -EINVAL;
    uint64_t left = request->length;
    for (unsigned i = 0; i < request->iov_count; i++) {
        if (request->iov[i].iov_len > left)
            return -EINVAL;
        left -= request->iov[i].iov_len;
    }
    return left ? -EINVAL : 0;
}

void disk_submit(struct disk *disk, struct disk_request *request)
{
    pthread_mutex_lock(&disk->lock);
    disk->in_flight++;
    pthread_mutex_unlock(&disk->lock);
    int error = check_request(disk, request);
    bool nothing_to_do = request->op != DISK_FLUSH && request->length == 0;
    if (error || nothing_to_do) {
        disk_finish(disk, request, error);
        return;
    }
    *disk_slot_of(request) = (struct disk_slot) {.disk = disk};
    disk->io->submit(disk, request);
}

void disk_finish(struct disk *disk, struct disk_request *request, int result)
{
    request->done(request, result);
    pthread_mutex_lock(&disk->lock);
    if (--disk->in_flight == 0)
        pthread_cond_broadcast(&disk->idle);
    pthread_mutex_unlock(&disk->lock);
}

void disk_drain(struct disk *disk)
{
    pthread_mutex_lock(&disk->lock);
    while (disk->in_flight)
        pthread_cond_wait(&disk->idle, &disk->lock);
    pthread_mutex_unlock(&disk->lock);
}

/* KEEP_SIZE always: what lies behind the end of the file reads as zero anyway. */
int disk_fallocate_mode(const struct disk_request *request)
{
    bool punch = request->op == DISK_DISCARD || request->unmap;
    return (punch ? FALLOC_FL_PUNCH_HOLE : FALLOC_FL_ZERO_RANGE) | FALLOC_FL_KEEP_SIZE;
}

/* What is not aligned for O_DIRECT goes through the page cache, which the kernel keeps coherent. */
bool disk_use_direct(const struct disk *disk, struct disk_request *request)
{
    const struct disk_file *file = &disk->file;
    if (file->direct_fd < 0 || !is_transfer(request->op) || disk_slot_of(request)->done_bytes)
        return false;
    if ((request->offset | request->length) & (file->direct_align - 1))
        return false;
    for (unsigned i = 0; i < request->iov_count; i++) {
        if ((uintptr_t)request->iov[i].iov_base & (file->direct_memory_align - 1))
            return false;
        if (request->iov[i].iov_len & (file->direct_align - 1))
            return false;
    }
    return true;
}

void disk_advance(struct disk_request *request, uint64_t bytes)
{
    disk_slot_of(request)->done_bytes += bytes;
    request->offset += bytes;
    request->length -= bytes;
    while (request->iov_count && bytes >= request->iov->iov_len) {
        bytes -= request->iov->iov_len;
        request->iov++;
        request->iov_count--;
    }
    if (bytes) {
        request->iov->iov_base = (char *)request->iov->iov_base + bytes;
        request->iov->iov_len -= bytes;
    }
}
