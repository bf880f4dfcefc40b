/* The raw format: the file's bytes are the disk's. Stateless, so any number of threads. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "backend/disk/image.h"

struct raw {
    struct image image;
    struct image_file *file;
};

static struct raw *raw_of(struct image *image)
{
    return container_of(image, struct raw, image);
}

static int raw_readv(struct image *image, const struct image_io *io)
{
    struct image_file *file = raw_of(image)->file;
    return file->ops->readv(file, io);
}

static int raw_writev(struct image *image, const struct image_io *io)
{
    struct image_file *file = raw_of(image)->file;
    return file->ops->writev(file, io);
}

static int raw_clear(struct image *image, uint64_t offset, uint64_t length, enum image_clear how)
{
    struct image_file *file = raw_of(image)->file;
    return file->ops->zero(file, offset, length, how != IMAGE_ZERO);
}

static int raw_flush(struct image *image)
{
    return image_file_flush(raw_of(image)->file);
}

static int raw_map(struct image *image, uint64_t offset, uint64_t *length,
                   enum image_extent_kind *out)
{
    struct image_file *file = raw_of(image)->file;
    bool stored;
    int error = file->ops->map(file, offset, length, &stored);
    *out = stored ? IMAGE_DATA : IMAGE_ZEROES;
    return error;
}

static int raw_resize(struct image *image, uint64_t size, struct err *err)
{
    struct image_file *file = raw_of(image)->file;
    int error = file->ops->resize(file, size);
    if (error)
        return err_set(err, -error, "%s: cannot be resized: %s", image->name, strerror(-error));
    image->size = align_up(size, IMAGE_SECTOR);
    return 0;
}

static int raw_close(struct image *image)
{
    struct image_file *file = raw_of(image)->file;
    file->ops->close(file);
    return 0;
}

static const struct image_ops raw_ops = {
    .name = "raw",
    .readv = raw_readv,
    .writev = raw_writev,
    .clear = raw_clear,
    .flush = raw_flush,
    .map = raw_map,
    .resize = raw_resize,
    .close = raw_close,
};

int image_raw_open(struct image **out, struct image_file *file, const char *name, bool read_only,
                   struct err *err)
{
    uint64_t size;
    int error = file->ops->size(file, &size);
    if (error)
        return err_set(err, -error, "%s: cannot be read: %s", name, strerror(-error));
    struct raw *raw = calloc(1, sizeof *raw);
    char *copy = strdup(name);
    if (!raw || !copy) {
        free(raw);
        free(copy);
        return err_set(err, ENOMEM, "%s: out of memory", name);
    }
    raw->file = file;
    raw->image = (struct image) {.ops = &raw_ops,
                                 .name = copy,
                                 .size = align_up(size, IMAGE_SECTOR),
                                 .read_only = read_only,
                                 .can_discard = !read_only,
                                 .cluster_size = IMAGE_SECTOR};
    *out = &raw->image;
    return 0;
}
