/* Opening images of any format with their chain of backing files; see image.h. Loop thread. */
#include "backend/disk/image.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backend/disk/qcow2.h"

/* One file of a chain while it is being opened: the files above it, to find loops. */
struct link {
    const struct link *above;
    uint64_t device, inode;
    unsigned depth;
};

/* Formats */

bool image_format_parse(const char *text, enum disk_format *out)
{
    *out = strcmp(text, "raw") == 0 ? DISK_FORMAT_RAW : DISK_FORMAT_QCOW2;
    return *out == DISK_FORMAT_RAW || strcmp(text, "qcow2") == 0;
}

enum disk_format image_format_of_name(const char *path)
{
    static const char suffix[] = ".qcow2";
    size_t length = strlen(path);
    bool named =
        length >= sizeof suffix && strcmp(path + length - (sizeof suffix - 1), suffix) == 0;
    return named ? DISK_FORMAT_QCOW2 : DISK_FORMAT_RAW;
}

static bool has_qcow2_header(const struct disk_file *file)
{
    uint8_t magic[QCOW2_MAGIC_SIZE];
    ssize_t got = pread(file->fd, magic, sizeof magic, 0);
    return got == sizeof magic && qcow2_is_magic(magic);
}

int image_find_format(enum disk_format *out, const struct disk_file *file,
                      const struct image_config *config, struct err *err)
{
    bool header = has_qcow2_header(file);
    enum disk_format named = image_format_of_name(config->path);
    *out = config->format;
    if (config->format == DISK_FORMAT_QCOW2 && !header)
        return err_set(err, EINVAL, "%s%s: is no qcow2 image: it does not begin with its header",
                       config->label, config->path);
    if (config->format != DISK_FORMAT_AUTO)
        return 0;
    if (header && named != DISK_FORMAT_QCOW2)
        return err_set(err, EINVAL,
                       "%s%s: begins with a qcow2 header, but its name does not end in .qcow2: say "
                       "format=qcow2, or format=raw if a guest wrote that into a raw disk",
                       config->label, config->path);
    if (!header && named == DISK_FORMAT_QCOW2)
        return err_set(
            err, EINVAL,
            "%s%s: has no qcow2 header though its name ends in .qcow2: it is damaged, or "
            "say format=raw",
            config->label, config->path);
    *out = header ? DISK_FORMAT_QCOW2 : DISK_FORMAT_RAW;
    return 0;
}

/* Names of backing files */

char *image_resolve(const char *image_path, const char *name)
{
    const char *slash = strrchr(image_path, '/');
    size_t folder = name[0] == '/' || !slash ? 0 : (size_t)(slash - image_path) + 1;
    char *path = malloc(folder + strlen(name) + 1);
    if (!path)
        return NULL;
    memcpy(path, image_path, folder);
    strcpy(path + folder, name);
    return path;
}

/* "nbd://…" and "json:…" are not files. A colon behind a slash belongs to a file's name. */
static int check_backing_name(const struct image *image, const char **name, struct err *err)
{
    if (strncmp(*name, "file:", 5) == 0)
        *name += 5;
    size_t scheme = strcspn(*name, ":/");
    if ((*name)[scheme] == ':')
        return err_set(err, EINVAL,
                       "%s: its backing file '%s' is not on this host, which is not "
                       "supported",
                       image->name, image->backing_name);
    if (!**name)
        return err_set(err, EINVAL, "%s: the name of its backing file is empty", image->name);
    return 0;
}

/* The same trap as in image_find_format: the format must be recorded when there is a doubt. */
static int find_backing_format(const struct image *image, struct image_config *config,
                               const struct disk_file *file, struct err *err)
{
    const char *format = image->backing_format;
    if (format && !image_format_parse(format, &config->format))
        return err_set(err, ENOTSUP, "%s%s: is of the format '%s', which is not supported",
                       config->label, config->path, format);
    if (format)
        return image_find_format(&config->format, file, config, err);
    bool header = has_qcow2_header(file);
    if (header && image_format_of_name(config->path) != DISK_FORMAT_QCOW2)
        return err_set(err, EINVAL,
                       "%s%s: begins with a qcow2 header, but the image above does not record that "
                       "its format is qcow2: record it with 'qemu-img rebase -u -F'",
                       config->label, config->path);
    config->format = header ? DISK_FORMAT_QCOW2 : DISK_FORMAT_RAW;
    return 0;
}

/* Before it is opened: its lock would be in the way of its own image. */
static int check_loop(const struct link *above, const struct image_config *config, struct err *err)
{
    struct stat st;
    if (above->depth >= IMAGE_DEPTH_MAX)
        return err_set(err, ELOOP, "%s%s: more than %d files back each other", config->label,
                       config->path, IMAGE_DEPTH_MAX);
    if (stat(config->path, &st) < 0)
        return 0; /* opening it tells why */
    for (; above; above = above->above)
        if (above->device == st.st_dev && above->inode == st.st_ino)
            return err_set(err, ELOOP, "%s%s: is its own backing file in the end", config->label,
                           config->path);
    return 0;
}

static int open_on(struct image **out, struct disk_file *file, const struct image_config *config,
                   const struct link *link, struct err *err);

static int open_backing_file(struct image *image, struct image_config *config,
                             const struct link *above, struct err *err)
{
    struct disk_file file;
    struct disk_file_config file_config = {
        .label = config->label, .path = config->path, .read_only = true, .direct = config->direct};
    int error = check_loop(above, config, err);
    if (!error)
        error = disk_file_open(&file, &file_config, err);
    if (error)
        return error;
    struct link link = {above, file.device, file.inode, above->depth + 1};
    error = find_backing_format(image, config, &file, err);
    if (error) {
        disk_file_close(&file);
        return error;
    }
    return open_on(&image->backing, &file, config, &link, err);
}

static int open_backing(struct image *image, const struct image_config *above_config,
                        const struct link *above, struct err *err)
{
    const char *name = image->backing_name;
    int error = check_backing_name(image, &name, err);
    if (error)
        return error;
    char *path = image_resolve(above_config->path, name), *label = NULL;
    /* The label names the top file only: a sentence stays short however deep the chain is. */
    const char *top = above->above ? above_config->label : NULL;
    if (path && !top && asprintf(&label, "%s: backing file ", image->name) < 0)
        label = NULL;
    if (!path || (!top && !label)) {
        free(path);
        return err_set(err, ENOMEM, "%s: out of memory", image->name);
    }
    struct image_config config = {.label = top ? top : label,
                                  .path = path,
                                  .read_only = true,
                                  .direct = above_config->direct};
    error = open_backing_file(image, &config, above, err);
    free(path);
    free(label);
    return error;
}

/* Opening */

static int open_format(struct image **out, struct image_file *file,
                       const struct image_config *config, struct err *err)
{
    char *name;
    if (asprintf(&name, "%s%s", config->label, config->path) < 0)
        return err_set(err, ENOMEM, "%s%s: out of memory", config->label, config->path);
    int error = config->format == DISK_FORMAT_QCOW2
                    ? qcow2_open(out, file, name, config->read_only, err)
                    : image_raw_open(out, file, name, config->read_only, err);
    free(name);
    return error;
}

static int open_on(struct image **out, struct disk_file *file, const struct image_config *config,
                   const struct link *link, struct err *err)
{
    bool can_discard = file->can_discard;
    struct image_file *on = image_file_on_disk(file);
    if (!on) {
        disk_file_close(file);
        return err_set(err, ENOMEM, "%s%s: out of memory", config->label, config->path);
    }
    struct image *image = NULL;
    int error = open_format(&image, on, config, err);
    if (error) {
        on->ops->close(on);
        return error;
    }
    if (config->format == DISK_FORMAT_RAW)
        image->can_discard = can_discard;
    if (image->backing_name)
        error = open_backing(image, config, link, err);
    if (error) {
        image_close(image);
        return error;
    }
    *out = image;
    return 0;
}

int image_open_on(struct image **out, struct disk_file *file, const struct image_config *config,
                  struct err *err)
{
    struct link link = {NULL, file->device, file->inode, 1};
    return open_on(out, file, config, &link, err);
}

int image_open(struct image **out, const struct image_config *config, struct err *err)
{
    struct disk_file file;
    struct disk_file_config file_config = {.label = config->label,
                                           .path = config->path,
                                           .read_only = config->read_only,
                                           .direct = config->direct};
    int error = disk_file_open(&file, &file_config, err);
    if (error)
        return error;
    struct image_config known = *config;
    error = image_find_format(&known.format, &file, config, err);
    if (error) {
        disk_file_close(&file);
        return error;
    }
    return image_open_on(out, &file, &known, err);
}

int image_close(struct image *image)
{
    if (!image)
        return 0;
    struct image *backing = image->backing;
    char *strings[] = {image->name, image->backing_name, image->backing_format};
    int error = image->ops->close(image);
    for (size_t i = 0; i < ARRAY_COUNT(strings); i++)
        free(strings[i]);
    free(image);
    image_close(backing); /* read-only: nothing to write */
    return error;
}

int image_read(struct image *image, void *data, size_t size, uint64_t offset)
{
    struct iovec iov = {data, size};
    return image->ops->readv(image, &(struct image_io) {&iov, 1, offset, size});
}

int image_write(struct image *image, const void *data, size_t size, uint64_t offset)
{
    struct iovec iov = {(void *)data, size};
    return image->ops->writev(image, &(struct image_io) {&iov, 1, offset, size});
}
