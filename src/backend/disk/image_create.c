/* See image_create.h. */
#include "backend/disk/image_create.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define CHUNK   (2u << 20) /* read at a time; a multiple of every cluster size */
#define GRANULE 4096u      /* what is looked at for being all zeroes, at least */

/* Making */

static int create_on(struct image **out, struct disk_file *file, const char *path,
                     const struct image_create *create, struct err *err)
{
    struct image_file *on = image_file_on_disk(file);
    if (!on) {
        disk_file_close(file);
        return err_set(err, ENOMEM, "%s: out of memory", path);
    }
    int error;
    if (create->format == DISK_FORMAT_QCOW2) {
        error = qcow2_create(on, path, &create->qcow2, err);
        if (!error)
            error = qcow2_open(out, on, path, false, err);
    } else {
        error = on->ops->resize(on, create->qcow2.size);
        if (error)
            err_set(err, -error, "%s: cannot be made so large: %s", path, strerror(-error));
        else
            error = image_raw_open(out, on, path, false, err);
    }
    if (error)
        on->ops->close(on);
    return error;
}

static int make_file(struct image_new *made, struct disk_file *file, struct err *err)
{
    char *label;
    if (asprintf(&label, "%s: its temporary file ", made->path) < 0)
        return err_set(err, ENOMEM, "%s: out of memory", made->path);
    struct disk_file_config config = {.label = label, .path = made->temporary};
    int error = disk_file_create(file, &config, err);
    free(label);
    return error;
}

int image_create_begin(struct image_new *out, const char *path, const struct image_create *create,
                       struct err *err)
{
    *out = (struct image_new) {.path = strdup(path)};
    if (access(path, F_OK) == 0) {
        free(out->path);
        return err_set(err, EEXIST, "%s: is there already; nothing is overwritten", path);
    }
    if (!out->path || asprintf(&out->temporary, "%s.%d.part", path, (int)getpid()) < 0) {
        free(out->path);
        return err_set(err, ENOMEM, "%s: out of memory", path);
    }
    struct disk_file file;
    int error = make_file(out, &file, err);
    bool there = !error;
    if (!error)
        error = create_on(&out->image, &file, path, create, err);
    if (error && there)
        unlink(out->temporary);
    if (error) {
        free(out->temporary);
        free(out->path);
    }
    return error;
}

/* Not every file system can rename without overwriting. */
static int give_name(const struct image_new *made)
{
    if (renameat2(AT_FDCWD, made->temporary, AT_FDCWD, made->path, RENAME_NOREPLACE) == 0)
        return 0;
    if (errno != EINVAL && errno != ENOSYS)
        return -errno;
    return rename(made->temporary, made->path) == 0 ? 0 : -errno;
}

int image_create_finish(struct image_new *made, struct err *err)
{
    int error = made->image->ops->flush(made->image), closed = image_close(made->image);
    if (!error)
        error = closed;
    if (!error)
        error = give_name(made);
    if (error)
        err_set(err, -error, "%s: cannot be written: %s", made->path, strerror(-error));
    if (error)
        unlink(made->temporary);
    free(made->temporary);
    free(made->path);
    return error;
}

void image_create_abort(struct image_new *made)
{
    unlink(made->temporary);
    image_close(made->image);
    free(made->temporary);
    free(made->path);
}

/* Copying */

static bool is_zero(const uint8_t *data, size_t size)
{
    return data[0] == 0 && memcmp(data, data + 1, size - 1) == 0;
}

/* Writes those granules that are not all zeroes, runs of them at once. */
static int write_data(struct image *to, const uint8_t *data, size_t size, uint64_t offset)
{
    size_t granule = MAX(to->cluster_size, GRANULE), run = 0;
    for (size_t at = 0; at < size; at += granule) {
        size_t part = MIN(granule, size - at);
        bool zero = is_zero(data + at, part);
        if (!zero)
            run += part;
        if (!run || (!zero && at + part < size))
            continue;
        size_t end = zero ? at : at + part;
        int error = image_write(to, data + end - run, run, offset + end - run);
        if (error)
            return error;
        run = 0;
    }
    return 0;
}

static int fail(const struct image *image, int error, const char *verb, struct err *err)
{
    return err_set(err, -error, "%s: cannot be %s: %s", image->name, verb, strerror(-error));
}

/* Whole chunks that hold nothing from offset on: *end is where the first other one begins. */
static int skip_holes(struct image *from, uint64_t offset, uint64_t *end)
{
    *end = offset;
    while (*end < from->size) {
        uint64_t length = from->size - *end;
        enum image_extent_kind kind;
        int error = from->ops->map(from, *end, &length, &kind);
        if (error)
            return error;
        if (kind == IMAGE_DATA)
            break;
        *end += length;
    }
    if (*end < from->size)
        *end &= ~(uint64_t)(CHUNK - 1);
    return 0;
}

static int copy_chunk(struct image *to, struct image *from, uint8_t *data, uint64_t offset,
                      struct err *err)
{
    size_t size = (size_t)MIN(from->size - offset, (uint64_t)CHUNK);
    int error = image_read(from, data, size, offset);
    if (error)
        return fail(from, error, "read", err);
    error = write_data(to, data, size, offset);
    return error ? fail(to, error, "written", err) : 0;
}

int image_copy(struct image *to, struct image *from, const struct image_watch *watch,
               struct err *err)
{
    uint8_t *data;
    if (posix_memalign((void **)&data, 4096, CHUNK))
        return err_set(err, ENOMEM, "%s: out of memory", to->name);
    int error = 0;
    for (uint64_t offset = 0; offset < from->size && !error;) {
        uint64_t next;
        error = skip_holes(from, offset, &next);
        if (error) {
            fail(from, error, "read", err);
            break;
        }
        if (next == offset) {
            error = copy_chunk(to, from, data, offset, err);
            next = offset + CHUNK;
        }
        offset = MIN(next, from->size);
        if (!error && watch && !watch->go_on(watch->context, offset, from->size))
            error = err_set(err, ECANCELED, "%s: was stopped", to->name);
    }
    free(data);
    return error;
}
