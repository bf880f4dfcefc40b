/* See image_info.h. */
#include "backend/disk/image_info.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backend/disk/qcow2.h"

static int read_qcow2(struct image_info *info, struct disk_file *file, const char *path,
                      struct err *err)
{
    struct image_file *on = image_file_on_disk(file);
    if (!on) {
        disk_file_close(file);
        return err_set(err, ENOMEM, "%s: out of memory", path);
    }
    int error = qcow2_header_read(&info->qcow2, on, path, err);
    uint64_t bytes;
    if (!error && qcow2_snapshots_read(&info->snapshots, &bytes, &info->qcow2, on))
        info->snapshots = NULL;
    info->size = info->qcow2.size;
    on->ops->close(on);
    return error;
}

static bool has_magic(const struct disk_file *file)
{
    uint8_t magic[QCOW2_MAGIC_SIZE];
    return pread(file->fd, magic, sizeof magic, 0) == sizeof magic && qcow2_is_magic(magic);
}

int image_info_read(struct image_info *out, const char *path, enum disk_format format,
                    struct err *err)
{
    struct disk_file_config config = {
        .label = "", .path = path, .read_only = true, .no_lock = true};
    struct disk_file file;
    struct stat st;
    *out = (struct image_info) {.format = format};
    int error = disk_file_open(&file, &config, err);
    if (error)
        return error;
    if (format == DISK_FORMAT_AUTO)
        out->format = has_magic(&file) ? DISK_FORMAT_QCOW2 : DISK_FORMAT_RAW;
    out->size = out->file_size = file.size;
    if (fstat(file.fd, &st) == 0)
        out->host_size = (uint64_t)st.st_blocks * 512;
    if (out->format == DISK_FORMAT_QCOW2)
        return read_qcow2(out, &file, path, err);
    disk_file_close(&file);
    return 0;
}

void image_info_free(struct image_info *info)
{
    free(info->snapshots);
}

int image_check(const char *path, enum disk_format format, struct qcow2_check *check,
                struct qcow2_report *out, struct err *err)
{
    struct disk_file_config config = {.label = "", .path = path, .read_only = !check->repair};
    struct image_config image = {.label = "", .path = path, .format = format};
    struct disk_file file;
    int error = disk_file_open(&file, &config, err);
    if (error)
        return error;
    error = image_find_format(&image.format, &file, &image, err);
    if (!error && image.format == DISK_FORMAT_RAW)
        error = err_set(err, ENOTSUP, "%s: is raw: there is nothing that could be checked", path);
    struct image_file *on = error ? NULL : image_file_on_disk(&file);
    if (!error && !on)
        error = err_set(err, ENOMEM, "%s: out of memory", path);
    if (error) {
        disk_file_close(&file);
        return error;
    }
    check->name = path;
    error = qcow2_check(on, check, out, err);
    on->ops->close(on);
    return error;
}
