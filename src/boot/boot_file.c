/* The user's files: opened once, read with every bound checked. Loop thread. */
#include "boot/boot_int.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <unistd.h>

int boot_file_error(const struct boot_file *file, struct err *err, int error, const char *format,
                    ...)
{
    char text[300];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    return err_set(err, error, "%s %s: %s", file->option, file->path, text);
}

static int check_type(struct boot_file *file, struct err *err)
{
    struct stat st;
    if (fstat(file->fd, &st) != 0)
        return boot_file_error(file, err, errno, "cannot look at it: %s", strerror(errno));
    if (S_ISDIR(st.st_mode))
        return boot_file_error(file, err, EISDIR, "is a directory");
    if (!S_ISREG(st.st_mode))
        return boot_file_error(file, err, EINVAL, "is not a regular file");
    if (st.st_size == 0)
        return boot_file_error(file, err, EINVAL, "is empty");
    file->size = (uint64_t)st.st_size;
    return 0;
}

int boot_file_open(struct boot_file *file, const char *option, const char *path, struct err *err)
{
    *file = (struct boot_file) {.option = option, .fd = -1, .path = strdup(path)};
    if (!file->path)
        return err_set(err, ENOMEM, "%s %s: out of memory", option, path);
    /* O_NONBLOCK: a FIFO is refused, not waited for. */
    file->fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    int error = file->fd < 0
                    ? boot_file_error(file, err, errno, "cannot open it: %s",
                                      errno == ENOENT ? "there is no such file" : strerror(errno))
                    : check_type(file, err);
    if (error)
        boot_file_close(file);
    return error;
}

void boot_file_close(struct boot_file *file)
{
    if (file->path && file->fd >= 0)
        close(file->fd);
    free(file->path);
    *file = (struct boot_file) {.fd = -1};
}

int boot_file_read(const struct boot_file *file, uint64_t offset, void *to, size_t length,
                   struct err *err)
{
    if (!range_fits(offset, length, file->size))
        return boot_file_error(file, err, EINVAL, "is truncated");
    uint8_t *at = to;
    while (length) {
        ssize_t count = pread(file->fd, at, length, (off_t)offset);
        if (count < 0 && errno == EINTR)
            continue;
        if (count < 0)
            return boot_file_error(file, err, errno, "cannot read it: %s", strerror(errno));
        if (count == 0)
            return boot_file_error(file, err, EIO, "has become shorter since it was opened");
        at += count;
        offset += (uint64_t)count;
        length -= (size_t)count;
    }
    return 0;
}

/*
 * Copies from file to file inside the kernel: half the time of a read into fresh guest RAM, which
 * faults in and clears each page first. Returns how much of length was copied: not all where the
 * file's end came or its file system cannot do this.
 */
static uint64_t send_to_region(const struct boot_file *file, uint64_t offset,
                               const struct mem_region *region, uint64_t to, uint64_t length)
{
    if (!region || region->fd < 0 || (region->flags & MEM_LAZY) ||
        !range_fits(to - region->start.v, length, region->size) ||
        lseek(region->fd, (off_t)(region->fd_offset + (to - region->start.v)), SEEK_SET) < 0)
        return 0;
    off_t from = (off_t)offset;
    uint64_t left = length;
    while (left) {
        ssize_t count = sendfile(region->fd, file->fd, &from, left);
        if (count <= 0)
            break;
        left -= (uint64_t)count;
    }
    return length - left;
}

int boot_file_load(const struct boot_file *file, uint64_t offset, struct machine *machine,
                   uint64_t to, uint64_t length, struct err *err)
{
    struct iovec iov[4];
    unsigned count = ARRAY_COUNT(iov);
    if (length == 0)
        return 0;
    int error = guest_memory_iov(machine->memory, gpa(to), length, 0, iov, &count);
    if (!error)
        error = guest_memory_write_begin(machine->memory, gpa(to), length);
    if (error)
        return boot_file_error(file, err, -error, "guest memory at 0x%llx cannot be written: %s",
                               (unsigned long long)to, strerror(-error));
    uint64_t skip = 0;
    if (range_fits(offset, length, file->size))
        skip =
            send_to_region(file, offset, guest_memory_find(machine->memory, gpa(to)), to, length);
    for (unsigned i = 0; i < count && !error; i++) {
        size_t sent = MIN(skip, iov[i].iov_len);
        error = boot_file_read(file, offset + sent, (uint8_t *)iov[i].iov_base + sent,
                               iov[i].iov_len - sent, err);
        offset += iov[i].iov_len;
        skip -= sent;
    }
    guest_memory_write_end(machine->memory, gpa(to), length);
    return error;
}
