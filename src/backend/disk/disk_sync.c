/* One request carried out with ordinary system calls. Runs on a worker thread, blocks. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#include "backend/disk/disk_int.h"

#define ZEROES_SIZE      32768u
#define ZEROES_IOV_COUNT 32

static const uint8_t zeroes[ZEROES_SIZE];

/* The file is shorter than the disk (its size was rounded up, or someone cut it): zeroes. */
static void zero_fill(struct disk_request *request)
{
    for (unsigned i = 0; i < request->iov_count; i++)
        memset(request->iov[i].iov_base, 0, request->iov[i].iov_len);
    disk_advance(request, request->length);
}

static int transfer(struct disk *disk, struct disk_request *request)
{
    bool write = request->op == DISK_WRITE;
    while (request->length) {
        int fd = disk_use_direct(disk, request) ? disk->file.direct_fd : disk->file.fd;
        int count = (int)request->iov_count;
        off_t offset = (off_t)request->offset;
        ssize_t done = write ? pwritev(fd, request->iov, count, offset)
                             : preadv(fd, request->iov, count, offset);
        if (done < 0 && errno == EINTR)
            continue;
        if (done < 0)
            return -errno;
        if (done == 0 && write)
            return -EIO;
        if (done == 0)
            zero_fill(request);
        else
            disk_advance(request, (uint64_t)done);
    }
    return 0;
}

static int write_zeroes_by_hand(struct disk *disk, struct disk_request *request)
{
    struct iovec iov[ZEROES_IOV_COUNT];
    uint64_t offset = request->offset, left = request->length;
    while (left) {
        int count = 0;
        for (uint64_t planned = 0; planned < left && count < ZEROES_IOV_COUNT; count++) {
            size_t size = MIN(left - planned, ZEROES_SIZE);
            iov[count] = (struct iovec) {(void *)zeroes, size};
            planned += size;
        }
        ssize_t done = pwritev(disk->file.fd, iov, count, (off_t)offset);
        if (done < 0 && errno == EINTR)
            continue;
        if (done <= 0)
            return done < 0 ? -errno : -EIO;
        offset += (uint64_t)done;
        left -= (uint64_t)done;
    }
    return 0;
}

static int deallocate(struct disk *disk, struct disk_request *request)
{
    int mode = disk_fallocate_mode(request);
    while (fallocate(disk->file.fd, mode, (off_t)request->offset, (off_t)request->length) < 0) {
        if (errno == EINTR)
            continue;
        if (errno != EOPNOTSUPP && errno != EINVAL && errno != ENOSYS)
            return -errno;
        /* A discard is a hint. Zeroes were promised. */
        return request->op == DISK_DISCARD ? 0 : write_zeroes_by_hand(disk, request);
    }
    return 0;
}

static int flush(struct disk *disk)
{
    while (fdatasync(disk->file.fd) < 0)
        if (errno != EINTR)
            return -errno;
    return 0;
}

/* The same on an image: any format but raw. */
static int run_on_image(struct image *image, struct disk_request *request)
{
    const struct image_ops *ops = image->ops;
    struct image_io io = {request->iov, request->iov_count, request->offset, request->length};
    switch (request->op) {
    case DISK_READ:
        return ops->readv(image, &io);
    case DISK_WRITE:
        return ops->writev(image, &io);
    case DISK_FLUSH:
        return ops->flush(image);
    case DISK_DISCARD:
        return ops->clear(image, io.offset, io.length, IMAGE_DISCARD);
    case DISK_WRITE_ZEROES:
        return ops->clear(image, io.offset, io.length,
                          request->unmap ? IMAGE_ZERO_UNMAP : IMAGE_ZERO);
    }
    return -EINVAL;
}

int disk_sync_run(struct disk *disk, struct disk_request *request)
{
    if (disk->image)
        return run_on_image(disk->image, request);
    switch (request->op) {
    case DISK_READ:
    case DISK_WRITE:
        return transfer(disk, request);
    case DISK_FLUSH:
        return flush(disk);
    case DISK_DISCARD:
    case DISK_WRITE_ZEROES:
        return deallocate(disk, request);
    }
    return -EINVAL;
}
