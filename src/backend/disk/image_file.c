/* Host files behind images: ordinary system calls on the calling thread. See image_file.h. */
#include "backend/disk/image_file.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "backend/disk/disk_file.h"

#define IOV_MAX_AT_ONCE 1024
#define ZEROES_SIZE     32768u

static const uint8_t zeroes[ZEROES_SIZE];

struct host_file {
    struct image_file base;
    struct disk_file file;
};

static struct disk_file *disk_file_of(struct image_file *file)
{
    return &container_of(file, struct host_file, base)->file;
}

/* Vectors */

unsigned image_io_slice(const struct image_io *io, uint64_t skip, uint64_t length,
                        struct iovec *out, unsigned max)
{
    unsigned count = 0;
    for (unsigned i = 0; i < io->iov_count && length; i++) {
        uint64_t size = io->iov[i].iov_len;
        if (skip >= size) {
            skip -= size;
            continue;
        }
        if (count == max)
            return 0;
        size_t part = (size_t)MIN(size - skip, length);
        out[count++] = (struct iovec) {(char *)io->iov[i].iov_base + skip, part};
        length -= part;
        skip = 0;
    }
    return length ? 0 : count;
}

void image_io_zero(const struct image_io *io, uint64_t skip, uint64_t length)
{
    for (unsigned i = 0; i < io->iov_count && length; i++) {
        uint64_t size = io->iov[i].iov_len;
        if (skip >= size) {
            skip -= size;
            continue;
        }
        size_t part = (size_t)MIN(size - skip, length);
        memset((char *)io->iov[i].iov_base + skip, 0, part);
        length -= part;
        skip = 0;
    }
}

static void advance(struct image_io *io, uint64_t bytes)
{
    io->offset += bytes;
    io->length -= bytes;
    while (io->iov_count && bytes >= io->iov->iov_len) {
        bytes -= io->iov->iov_len;
        io->iov++;
        io->iov_count--;
    }
    if (bytes) {
        io->iov->iov_base = (char *)io->iov->iov_base + bytes;
        io->iov->iov_len -= bytes;
    }
}

int image_file_read(struct image_file *file, void *data, size_t size, uint64_t offset)
{
    struct iovec iov = {data, size};
    return file->ops->readv(file, &(struct image_io) {&iov, 1, offset, size});
}

int image_file_write(struct image_file *file, const void *data, size_t size, uint64_t offset)
{
    struct iovec iov = {(void *)data, size};
    return file->ops->writev(file, &(struct image_io) {&iov, 1, offset, size});
}

/* Host files */

/* What is not aligned for O_DIRECT goes through the page cache, which the kernel keeps coherent. */
static int choose_fd(const struct disk_file *file, const struct image_io *io)
{
    if (file->direct_fd < 0 || (io->offset | io->length) & (file->direct_align - 1))
        return file->fd;
    for (unsigned i = 0; i < io->iov_count; i++)
        if ((uintptr_t)io->iov[i].iov_base & (file->direct_memory_align - 1) ||
            io->iov[i].iov_len & (file->direct_align - 1))
            return file->fd;
    return file->direct_fd;
}

static int host_readv(struct image_file *base, const struct image_io *io)
{
    struct disk_file *file = disk_file_of(base);
    struct image_io left = *io;
    while (left.length) {
        int count = (int)MIN(left.iov_count, (unsigned)IOV_MAX_AT_ONCE);
        ssize_t done = preadv(choose_fd(file, &left), left.iov, count, (off_t)left.offset);
        if (done < 0 && errno == EINTR)
            continue;
        if (done < 0)
            return -errno;
        if (done == 0) {
            image_io_zero(&left, 0, left.length);
            return 0;
        }
        advance(&left, (uint64_t)done);
    }
    return 0;
}

static int host_writev(struct image_file *base, const struct image_io *io)
{
    struct disk_file *file = disk_file_of(base);
    struct image_io left = *io;
    while (left.length) {
        int count = (int)MIN(left.iov_count, (unsigned)IOV_MAX_AT_ONCE);
        ssize_t done = pwritev(choose_fd(file, &left), left.iov, count, (off_t)left.offset);
        if (done < 0 && errno == EINTR)
            continue;
        if (done <= 0)
            return done < 0 ? -errno : -EIO;
        advance(&left, (uint64_t)done);
    }
    return 0;
}

static int host_flush(struct image_file *base)
{
    while (fdatasync(disk_file_of(base)->fd) < 0)
        if (errno != EINTR)
            return -errno;
    return 0;
}

static int write_zeroes(struct image_file *base, uint64_t offset, uint64_t length)
{
    while (length) {
        size_t part = (size_t)MIN(length, (uint64_t)ZEROES_SIZE);
        int error = image_file_write(base, zeroes, part, offset);
        if (error)
            return error;
        offset += part;
        length -= part;
    }
    return 0;
}

static int host_zero(struct image_file *base, uint64_t offset, uint64_t length, bool unmap)
{
    int mode = (unmap ? FALLOC_FL_PUNCH_HOLE : FALLOC_FL_ZERO_RANGE) | FALLOC_FL_KEEP_SIZE;
    while (fallocate(disk_file_of(base)->fd, mode, (off_t)offset, (off_t)length) < 0) {
        if (errno == EINTR)
            continue;
        if (errno != EOPNOTSUPP && errno != EINVAL && errno != ENOSYS)
            return -errno;
        return write_zeroes(base, offset, length);
    }
    return 0;
}

static int host_resize(struct image_file *base, uint64_t size)
{
    while (ftruncate(disk_file_of(base)->fd, (off_t)size) < 0)
        if (errno != EINTR)
            return -errno;
    return 0;
}

static int host_size(struct image_file *base, uint64_t *out)
{
    struct disk_file *file = disk_file_of(base);
    off_t end = file->is_block_device ? (off_t)file->size : lseek(file->fd, 0, SEEK_END);
    if (end < 0)
        return -errno;
    *out = (uint64_t)end;
    return 0;
}

/* SEEK_DATA and SEEK_HOLE; a file system without them has no holes that it tells of. */
static int host_map(struct image_file *base, uint64_t offset, uint64_t *length, bool *stored)
{
    int fd = disk_file_of(base)->fd;
    off_t data = lseek(fd, (off_t)offset, SEEK_DATA);
    if (data < 0 && errno == ENXIO) {
        *stored = false;
        return 0;
    }
    *stored = data < 0 || (uint64_t)data <= offset;
    off_t end = *stored ? lseek(fd, (off_t)offset, SEEK_HOLE) : data;
    if (end > (off_t)offset)
        *length = MIN(*length, (uint64_t)end - offset);
    return 0;
}

static void host_close(struct image_file *base)
{
    struct host_file *host = container_of(base, struct host_file, base);
    disk_file_close(&host->file);
    free(host);
}

static const struct image_file_ops host_ops = {
    .readv = host_readv,
    .writev = host_writev,
    .flush = host_flush,
    .zero = host_zero,
    .resize = host_resize,
    .size = host_size,
    .map = host_map,
    .close = host_close,
};

struct image_file *image_file_on_disk(struct disk_file *file)
{
    struct host_file *host = calloc(1, sizeof *host);
    if (!host)
        return NULL;
    host->base.ops = &host_ops;
    host->file = *file;
    file->fd = file->direct_fd = -1;
    return &host->base;
}
