/* New, empty images: the header and an empty L1 table; refcounts as the checker makes them. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "backend/disk/qcow2_int.h"

static int check_create(const struct qcow2_create *create, const char *name, struct err *err)
{
    uint32_t cluster = create->cluster_size;
    unsigned bits = create->refcount_bits;
    if (create->version != 2 && create->version != 3)
        return err_set(err, EINVAL, "%s: the qcow2 version is 2 or 3", name);
    if (cluster < 512 || cluster > 2u << 20 || cluster & (cluster - 1))
        return err_set(err, EINVAL, "%s: a cluster has 512 bytes to 2M, a power of two", name);
    if (bits < 1 || bits > 64 || bits & (bits - 1))
        return err_set(err, EINVAL, "%s: refcounts have 1 to 64 bits, a power of two", name);
    if (create->version == 2 && (bits != 16 || create->lazy_refcounts))
        return err_set(err, EINVAL,
                       "%s: version 2 has refcounts of 16 bits, and no lazy ones; use version 3",
                       name);
    if (create->size == 0 || create->size % IMAGE_SECTOR || create->size > INT64_MAX - IMAGE_SECTOR)
        return err_set(err, EINVAL, "%s: the size must be a multiple of 512 bytes", name);
    uint32_t cluster_bits = (uint32_t)__builtin_ctz(cluster);
    if (qcow2_l1_entries(create->size, cluster_bits) > QCOW2_L1_BYTES_MAX / 8)
        return err_set(err, EFBIG, "%s: clusters of %u bytes do not allow so large a disk", name,
                       cluster);
    size_t backing = create->backing_name ? strlen(create->backing_name) : 0;
    if (backing > IMAGE_BACKING_MAX || backing + 256 > cluster)
        return err_set(err, ENAMETOOLONG, "%s: the name of the backing file is too long", name);
    return 0;
}

/* Behind the fields: extensions, their end, the name of the backing file. */
static void store_backing(uint8_t *header, size_t at, const struct qcow2_create *create)
{
    if (create->backing_format) {
        size_t length = strlen(create->backing_format);
        store_be32(header + at, QCOW2_EXTENSION_BACKING_FORMAT);
        store_be32(header + at + 4, (uint32_t)length);
        memcpy(header + at + 8, create->backing_format, length);
        at += 8 + align_up(length, 8);
    }
    at += 8; /* the end: zeroes */
    if (!create->backing_name)
        return;
    size_t length = strlen(create->backing_name);
    store_be64(header + QCOW2_AT_BACKING_OFFSET, at);
    store_be32(header + QCOW2_AT_BACKING_SIZE, (uint32_t)length);
    memcpy(header + at, create->backing_name, length);
}

static void store_header(uint8_t *header, const struct qcow2_create *create, uint64_t l1_entries)
{
    memcpy(header, "QFI\xfb", QCOW2_MAGIC_SIZE);
    store_be32(header + QCOW2_AT_VERSION, create->version);
    store_be32(header + QCOW2_AT_CLUSTER_BITS, (uint32_t)__builtin_ctz(create->cluster_size));
    store_be64(header + QCOW2_AT_SIZE, create->size);
    store_be32(header + QCOW2_AT_L1_SIZE, (uint32_t)l1_entries);
    store_be64(header + QCOW2_AT_L1_OFFSET, create->cluster_size);
    size_t length = QCOW2_V2_LENGTH;
    if (create->version >= 3) {
        length = QCOW2_V3_LENGTH;
        store_be64(header + QCOW2_AT_COMPATIBLE,
                   create->lazy_refcounts ? QCOW2_COMPATIBLE_LAZY : 0);
        store_be32(header + QCOW2_AT_REFCOUNT_ORDER,
                   (uint32_t)__builtin_ctz(create->refcount_bits));
        store_be32(header + QCOW2_AT_HEADER_LENGTH, (uint32_t)length);
    }
    store_backing(header, length, create);
}

int qcow2_create(struct image_file *file, const char *name, const struct qcow2_create *create,
                 struct err *err)
{
    int error = check_create(create, name, err);
    if (error)
        return error;
    uint32_t cluster = create->cluster_size, bits = (uint32_t)__builtin_ctz(cluster);
    uint64_t l1 = qcow2_l1_entries(create->size, bits);
    uint8_t *header = calloc(1, cluster);
    if (!header)
        return err_set(err, ENOMEM, "%s: out of memory", name);
    store_header(header, create, l1);
    error = file->ops->resize(file, cluster + align_up(l1 * 8, cluster));
    if (!error)
        error = image_file_write(file, header, cluster, 0);
    free(header);
    if (error)
        return err_set(err, -error, "%s: cannot be written: %s", name, strerror(-error));
    struct qcow2_report report;
    struct qcow2_check check = {.name = name, .repair = true};
    return qcow2_check(file, &check, &report, err);
}
