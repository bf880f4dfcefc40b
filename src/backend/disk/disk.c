/*
 * Opening, locking and checking the file behind a disk, and what every request passes. Opened and
 * closed on the loop thread; requests come from any thread.
 */
#include "backend/disk/disk.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "backend/disk/disk_int.h"
#include "base/clock.h"
#include "base/log.h"

#define SECTOR_SIZE  512u
#define LOCK_RETRIES 10

/* Opening */

static int open_error(const struct disk_config *config, int error, struct err *err)
{
    const char *path = config->path;
    switch (error) {
    case ENOENT:
        return err_set(err, error, "--disk %s: there is no such file", path);
    case EISDIR:
        return err_set(err, error, "--disk %s: is a directory", path);
    case EACCES:
    case EPERM:
    case EROFS:
        if (config->read_only)
            return err_set(err, error, "--disk %s: is not readable: %s", path, strerror(error));
        return err_set(err, error, "--disk %s: is not writable: %s (add ,ro to use it read-only)",
                       path, strerror(error));
    default:
        return err_set(err, error, "--disk %s: cannot be opened: %s", path, strerror(error));
    }
}

/* O_NONBLOCK so that a FIFO cannot block us; off again because io_uring obeys it on files too. */
static int open_file(struct disk *disk, const struct disk_config *config, struct err *err)
{
    int flags = (config->read_only ? O_RDONLY : O_RDWR) | O_CLOEXEC | O_NOCTTY;
    disk->fd = open(config->path, flags | O_NONBLOCK);
    if (disk->fd < 0)
        return open_error(config, errno, err);
    if (fcntl(disk->fd, F_SETFL, 0) < 0)
        return open_error(config, errno, err);
    if (!config->direct)
        return 0;
    disk->direct_fd = open(config->path, flags | O_DIRECT);
    if (disk->direct_fd < 0 && errno == EINVAL)
        return err_set(err, EINVAL, "--disk %s,direct: its file system has no direct I/O",
                       config->path);
    return disk->direct_fd < 0 ? open_error(config, errno, err) : 0;
}

/* Alignment for O_DIRECT: told by statx where the kernel knows (6.1), else the safe guess. */
static void find_direct_alignment(struct disk *disk)
{
    disk->direct_align = disk->direct_memory_align = 4096;
#ifdef STATX_DIOALIGN
    struct statx stx;
    if (statx(disk->direct_fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &stx) == 0 &&
        (stx.stx_mask & STATX_DIOALIGN) && stx.stx_dio_offset_align) {
        disk->direct_align = stx.stx_dio_offset_align;
        disk->direct_memory_align = stx.stx_dio_mem_align;
    }
#endif
}

static bool probe_discard(const struct disk *disk, const struct stat *st)
{
    if (disk->read_only)
        return false;
    if (S_ISBLK(st->st_mode))
        return true; /* a device without it answers EOPNOTSUPP, which completes as done */
    /* Behind the end of the file nothing is there to lose. */
    int mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
    return fallocate(disk->fd, mode, (off_t)align_up(disk->size, 4096), 4096) == 0;
}

static int find_geometry(struct disk *disk, const struct disk_config *config, struct err *err)
{
    struct stat st;
    if (fstat(disk->fd, &st) < 0)
        return open_error(config, errno, err);
    if (S_ISDIR(st.st_mode))
        return open_error(config, EISDIR, err);
    uint64_t size = (uint64_t)st.st_size;
    disk->block_size = SECTOR_SIZE;
    if (S_ISBLK(st.st_mode)) {
        int sector = SECTOR_SIZE;
        if (ioctl(disk->fd, BLKGETSIZE64, &size) < 0 || ioctl(disk->fd, BLKSSZGET, &sector) < 0)
            return open_error(config, errno, err);
        disk->block_size = (uint32_t)sector;
    } else if (!S_ISREG(st.st_mode)) {
        return err_set(err, EINVAL, "--disk %s: is neither a file nor a block device",
                       config->path);
    }
    if (size == 0)
        return err_set(err, EINVAL, "--disk %s: is empty", config->path);
    disk->size = align_up(size, SECTOR_SIZE); /* the missing bytes read as zero */
    if (disk->direct_fd >= 0) {
        find_direct_alignment(disk);
        disk->block_size = MAX(disk->block_size, disk->direct_align);
    }
    disk->can_discard = probe_discard(disk, &st);
    return 0;
}

/*
 * An open-file-description lock on the whole file: shared to read, exclusive to write. The kernel
 * lets go of a ring's files a moment after its process died, so a busy file gets a second chance.
 */
static int try_lock(const struct disk *disk)
{
    struct flock lock = {.l_type = disk->read_only ? F_RDLCK : F_WRLCK, .l_whence = SEEK_SET};
    struct timespec pause = {.tv_nsec = (long)(10 * NS_PER_MS)};
    for (int i = 0;; i++) {
        if (fcntl(disk->fd, F_OFD_SETLK, &lock) == 0)
            return 0;
        if ((errno != EAGAIN && errno != EACCES) || i == LOCK_RETRIES)
            return -errno;
        nanosleep(&pause, NULL);
    }
}

static void unlock_file(const struct disk *disk)
{
    struct flock lock = {.l_type = F_UNLCK, .l_whence = SEEK_SET};
    fcntl(disk->fd, F_OFD_SETLK, &lock);
}

static bool is_read_by_others(const struct disk *disk)
{
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    return fcntl(disk->fd, F_OFD_GETLK, &lock) == 0 && lock.l_type == F_RDLCK;
}

static int lock_file(const struct disk *disk, const struct disk_config *config, struct err *err)
{
    int error = try_lock(disk);
    if (!error)
        return 0;
    if (error != -EAGAIN && error != -EACCES) {
        log_warning("--disk %s: its file system has no locks (%s); take care that nothing else "
                    "writes it",
                    config->path, strerror(-error));
        return 0;
    }
    return err_set(err, EBUSY, "--disk %s: is in use %s by another VM", config->path,
                   is_read_by_others(disk) ? "read-only" : "writable");
}

static int start_io(struct disk *disk, const struct disk_config *config, struct err *err)
{
    unsigned queues = MAX(config->queue_count, 1);
    if (config->use_io_uring) {
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

int disk_open(struct disk **out, const struct disk_config *config, struct err *err)
{
    struct disk *disk = calloc(1, sizeof *disk);
    if (!disk)
        return err_set(err, ENOMEM, "--disk %s: out of memory", config->path);
    disk->fd = disk->direct_fd = -1;
    disk->read_only = config->read_only;
    disk->sandbox = config->sandbox;
    pthread_mutex_init(&disk->lock, NULL);
    pthread_cond_init(&disk->idle, NULL);
    int error = open_file(disk, config, err);
    if (!error)
        error = find_geometry(disk, config, err);
    if (!error)
        error = lock_file(disk, config, err);
    if (!error)
        error = start_io(disk, config, err);
    if (error) {
        disk_close(disk);
        return error;
    }
    *out = disk;
    return 0;
}

void disk_close(struct disk *disk)
{
    if (!disk)
        return;
    if (disk->io)
        disk->io->destroy(disk);
    if (disk->direct_fd >= 0)
        close(disk->direct_fd);
    if (disk->fd >= 0) {
        unlock_file(disk);
        close(disk->fd);
    }
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
    if (disk->direct_fd < 0 || !is_transfer(request->op) || disk_slot_of(request)->done_bytes)
        return false;
    if ((request->offset | request->length) & (disk->direct_align - 1))
        return false;
    for (unsigned i = 0; i < request->iov_count; i++) {
        if ((uintptr_t)request->iov[i].iov_base & (disk->direct_memory_align - 1))
            return false;
        if (request->iov[i].iov_len & (disk->direct_align - 1))
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
