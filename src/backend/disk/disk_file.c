/* Opening, locking and checking the file behind a disk. Contracts stand in disk_file.h. */
#include "backend/disk/disk_file.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"

#define SECTOR_SIZE  512u
#define LOCK_RETRIES 10

static int open_error(const struct disk_file_config *config, int error, struct err *err)
{
    const char *label = config->label, *path = config->path;
    switch (error) {
    case ENOENT:
        return err_set(err, error, "%s%s: there is no such file", label, path);
    case EISDIR:
        return err_set(err, error, "%s%s: is a directory", label, path);
    case EEXIST:
        return err_set(err, error, "%s%s: is there already; nothing is overwritten", label, path);
    case EACCES:
    case EPERM:
    case EROFS:
        if (config->read_only)
            return err_set(err, error, "%s%s: is not readable: %s", label, path, strerror(error));
        return err_set(err, error, "%s%s: is not writable: %s%s", label, path, strerror(error),
                       strcmp(label, "--disk ") == 0 ? " (add ,ro to use it read-only)" : "");
    default:
        return err_set(err, error, "%s%s: cannot be opened: %s", label, path, strerror(error));
    }
}

/* O_NONBLOCK so that a FIFO cannot block us; off again because io_uring obeys it on files too. */
static int open_descriptors(struct disk_file *file, const struct disk_file_config *config,
                            struct err *err)
{
    int flags = (config->read_only ? O_RDONLY : O_RDWR) | O_CLOEXEC | O_NOCTTY;
    file->fd = open(config->path, flags | O_NONBLOCK);
    if (file->fd < 0)
        return open_error(config, errno, err);
    if (fcntl(file->fd, F_SETFL, 0) < 0)
        return open_error(config, errno, err);
    if (!config->direct)
        return 0;
    file->direct_fd = open(config->path, flags | O_DIRECT);
    if (file->direct_fd < 0 && errno == EINVAL)
        return err_set(err, EINVAL, "%s%s,direct: its file system has no direct I/O", config->label,
                       config->path);
    return file->direct_fd < 0 ? open_error(config, errno, err) : 0;
}

/* Alignment for O_DIRECT: told by statx where the kernel knows (6.1), else the safe guess. */
static void find_direct_alignment(struct disk_file *file)
{
    file->direct_align = file->direct_memory_align = 4096;
#ifdef STATX_DIOALIGN
    struct statx stx;
    if (statx(file->direct_fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &stx) == 0 &&
        (stx.stx_mask & STATX_DIOALIGN) && stx.stx_dio_offset_align) {
        file->direct_align = stx.stx_dio_offset_align;
        file->direct_memory_align = stx.stx_dio_mem_align;
    }
#endif
}

static bool probe_discard(const struct disk_file *file)
{
    if (file->read_only)
        return false;
    if (file->is_block_device)
        return true; /* a device without it answers EOPNOTSUPP, which completes as done */
    /* Behind the end of the file nothing is there to lose. */
    int mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
    return fallocate(file->fd, mode, (off_t)align_up(file->size, 4096), 4096) == 0;
}

static int find_geometry(struct disk_file *file, const struct disk_file_config *config,
                         struct err *err)
{
    struct stat st;
    if (fstat(file->fd, &st) < 0)
        return open_error(config, errno, err);
    if (S_ISDIR(st.st_mode))
        return open_error(config, EISDIR, err);
    file->size = (uint64_t)st.st_size;
    file->device = st.st_dev;
    file->inode = st.st_ino;
    file->block_size = SECTOR_SIZE;
    if (S_ISBLK(st.st_mode)) {
        int sector = SECTOR_SIZE;
        if (ioctl(file->fd, BLKGETSIZE64, &file->size) < 0 ||
            ioctl(file->fd, BLKSSZGET, &sector) < 0)
            return open_error(config, errno, err);
        file->block_size = (uint32_t)sector;
        file->is_block_device = true;
    } else if (!S_ISREG(st.st_mode)) {
        return err_set(err, EINVAL, "%s%s: is neither a file nor a block device", config->label,
                       config->path);
    }
    if (file->direct_fd >= 0) {
        find_direct_alignment(file);
        file->block_size = MAX(file->block_size, file->direct_align);
    }
    file->can_discard = probe_discard(file);
    return 0;
}

/*
 * An open-file-description lock on the whole file: shared to read, exclusive to write. The kernel
 * lets go of a ring's files a moment after its process died, so a busy file gets a second chance.
 */
static int try_lock(const struct disk_file *file)
{
    struct flock lock = {.l_type = file->read_only ? F_RDLCK : F_WRLCK, .l_whence = SEEK_SET};
    struct timespec pause = {.tv_nsec = (long)(10 * NS_PER_MS)};
    for (int i = 0;; i++) {
        if (fcntl(file->fd, F_OFD_SETLK, &lock) == 0)
            return 0;
        if ((errno != EAGAIN && errno != EACCES) || i == LOCK_RETRIES)
            return -errno;
        nanosleep(&pause, NULL);
    }
}

static bool is_read_by_others(const struct disk_file *file)
{
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    return fcntl(file->fd, F_OFD_GETLK, &lock) == 0 && lock.l_type == F_RDLCK;
}

static int lock_file(const struct disk_file *file, const struct disk_file_config *config,
                     struct err *err)
{
    int error = config->no_lock ? 0 : try_lock(file);
    if (!error)
        return 0;
    if (error != -EAGAIN && error != -EACCES) {
        log_warning("%s%s: its file system has no locks (%s); take care that nothing else "
                    "writes it",
                    config->label, config->path, strerror(-error));
        return 0;
    }
    return err_set(err, EBUSY, "%s%s: is in use %s by another VM", config->label, config->path,
                   is_read_by_others(file) ? "read-only" : "writable");
}

int disk_file_open(struct disk_file *out, const struct disk_file_config *config, struct err *err)
{
    *out = (struct disk_file) {.fd = -1, .direct_fd = -1, .read_only = config->read_only};
    int error = open_descriptors(out, config, err);
    if (!error)
        error = find_geometry(out, config, err);
    if (!error)
        error = lock_file(out, config, err);
    if (!error && out->size == 0)
        error = err_set(err, EINVAL, "%s%s: is empty", config->label, config->path);
    if (error)
        disk_file_close(out);
    return error;
}

int disk_file_create(struct disk_file *out, const struct disk_file_config *config, struct err *err)
{
    *out = (struct disk_file) {.fd = -1, .direct_fd = -1};
    out->fd = open(config->path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOCTTY, 0666);
    if (out->fd < 0 && errno == ENOENT)
        return err_set(err, ENOENT, "%s%s: there is no such folder", config->label, config->path);
    if (out->fd < 0)
        return open_error(config, errno, err);
    int error = find_geometry(out, config, err);
    if (!error)
        error = lock_file(out, config, err);
    if (error) {
        unlink(config->path);
        disk_file_close(out);
    }
    return error;
}

void disk_file_close(struct disk_file *file)
{
    if (file->direct_fd >= 0)
        close(file->direct_fd);
    if (file->fd >= 0) {
        /* A ring may still hold the description for a moment. */
        struct flock lock = {.l_type = F_UNLCK, .l_whence = SEEK_SET};
        fcntl(file->fd, F_OFD_SETLK, &lock);
        close(file->fd);
    }
    file->fd = file->direct_fd = -1;
}
