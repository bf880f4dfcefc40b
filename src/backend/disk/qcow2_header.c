/* Reading, validating and rewriting the header and the snapshot table. See qcow2_header.h. */
#include "backend/disk/qcow2_header.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backend/disk/qcow2.h"

#define FEATURE_ENTRY        48
#define SNAPSHOT_ENTRY       40
#define SNAPSHOT_EXTRA_MAX   1024
#define SNAPSHOT_TABLE_BYTES (64u << 20)

bool qcow2_is_magic(const uint8_t *magic)
{
    return memcmp(magic, "QFI\xfb", QCOW2_MAGIC_SIZE) == 0;
}

static void load_fields(struct qcow2_header *h)
{
    const uint8_t *s = h->sector;
    h->version = load_be32(s + QCOW2_AT_VERSION);
    h->cluster_bits = load_be32(s + QCOW2_AT_CLUSTER_BITS);
    h->size = load_be64(s + QCOW2_AT_SIZE);
    h->crypt_method = load_be32(s + QCOW2_AT_CRYPT_METHOD);
    h->l1_size = load_be32(s + QCOW2_AT_L1_SIZE);
    h->l1_offset = load_be64(s + QCOW2_AT_L1_OFFSET);
    h->refcount_table_offset = load_be64(s + QCOW2_AT_REFCOUNT_OFFSET);
    h->refcount_table_clusters = load_be32(s + QCOW2_AT_REFCOUNT_CLUSTERS);
    h->snapshot_count = load_be32(s + QCOW2_AT_SNAPSHOT_COUNT);
    h->snapshots_offset = load_be64(s + QCOW2_AT_SNAPSHOTS_OFFSET);
    h->refcount_order = 4;
    h->header_length = QCOW2_V2_LENGTH;
    if (h->version < 3)
        return;
    h->incompatible = load_be64(s + QCOW2_AT_INCOMPATIBLE);
    h->compatible = load_be64(s + QCOW2_AT_COMPATIBLE);
    h->autoclear = load_be64(s + QCOW2_AT_AUTOCLEAR);
    h->refcount_order = load_be32(s + QCOW2_AT_REFCOUNT_ORDER);
    h->header_length = load_be32(s + QCOW2_AT_HEADER_LENGTH);
    if (h->header_length > QCOW2_AT_COMPRESSION)
        h->compression = s[QCOW2_AT_COMPRESSION];
}

static int check_fields(const struct qcow2_header *h, const char *name, struct err *err)
{
    uint64_t cluster = BIT(MIN(h->cluster_bits, 63u));
    if (h->version != 2 && h->version != 3)
        return err_set(err, ENOTSUP, "%s: is of qcow2 version %u; versions 2 and 3 are supported",
                       name, h->version);
    if (h->cluster_bits < QCOW2_CLUSTER_BITS_MIN || h->cluster_bits > QCOW2_CLUSTER_BITS_MAX)
        return err_set(err, EINVAL,
                       "%s: has a bad header: its cluster size is 2^%u bytes, not 512 to 2M", name,
                       h->cluster_bits);
    if (h->version == 3 && (h->header_length < QCOW2_V3_LENGTH || h->header_length % 8 ||
                            h->header_length > cluster || h->header_length > QCOW2_SECTOR))
        return err_set(err, EINVAL, "%s: has a bad header: its length is given as %u", name,
                       h->header_length);
    if (h->refcount_order > 6)
        return err_set(err, EINVAL, "%s: has a bad header: its refcounts are 2^%u bits wide", name,
                       h->refcount_order);
    if (h->size > INT64_MAX - QCOW2_SECTOR)
        return err_set(err, EINVAL, "%s: has a bad header: its disk's size is no size", name);
    if (h->l1_size > QCOW2_L1_BYTES_MAX / 8)
        return err_set(err, EFBIG, "%s: its L1 table is too large: %u entries; at most %u work",
                       name, h->l1_size, QCOW2_L1_BYTES_MAX / 8);
    if (h->l1_size < qcow2_l1_entries(h->size, h->cluster_bits))
        return err_set(err, EINVAL, "%s: its L1 table of %u entries is too small for its size",
                       name, h->l1_size);
    if (h->l1_offset % cluster)
        return err_set(err, EINVAL, "%s: its L1 table does not begin with a cluster", name);
    if (h->refcount_table_offset % cluster)
        return err_set(err, EINVAL, "%s: its refcount table does not begin with a cluster", name);
    if (h->refcount_table_clusters > QCOW2_TABLE_BYTES_MAX >> h->cluster_bits)
        return err_set(err, EFBIG, "%s: its refcount table is too large: %u clusters", name,
                       h->refcount_table_clusters);
    if (h->snapshot_count > QCOW2_SNAPSHOTS_MAX || h->snapshots_offset % cluster)
        return err_set(err, EINVAL, "%s: has a bad header: its table of %u snapshots is damaged",
                       name, h->snapshot_count);
    return 0;
}

/* Features */

static void refuse(struct qcow2_header *h, const char *what)
{
    if (!h->unsupported[0])
        snprintf(h->unsupported, sizeof h->unsupported, "needs %s, which is not supported", what);
}

static void refuse_unsupported(struct qcow2_header *h)
{
    uint64_t known = QCOW2_INCOMPATIBLE_DIRTY | QCOW2_INCOMPATIBLE_CORRUPT |
                     QCOW2_INCOMPATIBLE_DATA_FILE | QCOW2_INCOMPATIBLE_COMPRESSION |
                     QCOW2_INCOMPATIBLE_EXTENDED_L2;
    if (h->crypt_method)
        snprintf(h->unsupported, sizeof h->unsupported, "is encrypted (%s), which is not supported",
                 h->crypt_method == 1   ? "AES"
                 : h->crypt_method == 2 ? "LUKS"
                                        : "unknown method");
    if (h->incompatible & QCOW2_INCOMPATIBLE_DATA_FILE)
        refuse(h, "the feature 'external data file'");
    if (h->incompatible & QCOW2_INCOMPATIBLE_EXTENDED_L2)
        refuse(h, "the feature 'extended L2 entries'");
    bool other = h->incompatible & QCOW2_INCOMPATIBLE_COMPRESSION;
    if ((other && h->compression != QCOW2_ZSTD) || (!other && h->compression != QCOW2_DEFLATE)) {
        char what[48];
        snprintf(what, sizeof what, "the compression type %u", h->compression);
        refuse(h, what);
    }
    if (h->incompatible & ~known) {
        char what[48];
        snprintf(what, sizeof what, "an unknown incompatible feature (bit %d)",
                 __builtin_ctzll(h->incompatible & ~known));
        refuse(h, what);
    }
}

/* The image may itself tell what a bit that we do not know is called. */
static void name_feature(struct qcow2_header *h, const uint8_t *data, uint32_t length)
{
    for (uint32_t at = 0; length - at >= FEATURE_ENTRY; at += FEATURE_ENTRY) {
        const uint8_t *entry = data + at;
        unsigned bit = entry[1];
        if (entry[0] != 0 || bit < 5 || bit > 63 || !(h->incompatible & BIT(bit)))
            continue;
        char text[47] = "", what[88];
        for (int i = 0; i < 46 && entry[2 + i]; i++)
            text[i] = entry[2 + i] >= ' ' && entry[2 + i] < 127 ? (char)entry[2 + i] : '?';
        snprintf(what, sizeof what, "the unknown incompatible feature '%s' (bit %u)", text, bit);
        refuse(h, what);
    }
}

/* Extensions and the name of the backing file lie in the first cluster. */

static int load_extension(struct qcow2_header *h, uint32_t type, const uint8_t *data,
                          uint32_t length)
{
    if (type == QCOW2_EXTENSION_BACKING_FORMAT) {
        if (length >= sizeof h->backing_format)
            return -EINVAL;
        memcpy(h->backing_format, data, length);
        h->backing_format[length] = 0;
    } else if (type == QCOW2_EXTENSION_FEATURE_NAMES) {
        name_feature(h, data, length);
    } else if (type == QCOW2_EXTENSION_BITMAPS && h->version >= 3) {
        if (length < 24)
            return -EINVAL;
        h->bitmaps_size = load_be64(data + 8);
        h->bitmaps_offset = load_be64(data + 16);
    }
    return 0;
}

static int load_extensions(struct qcow2_header *h, const uint8_t *cluster)
{
    uint64_t backing = load_be64(h->sector + QCOW2_AT_BACKING_OFFSET);
    uint64_t end = BIT(h->cluster_bits), at = h->header_length;
    if (backing && backing < end)
        end = backing;
    while (end > at && end - at >= 8) {
        uint32_t type = load_be32(cluster + at), length = load_be32(cluster + at + 4);
        at += 8;
        if (type == QCOW2_EXTENSION_END)
            return 0;
        if (length > end - at || load_extension(h, type, cluster + at, length))
            return -EINVAL;
        at += align_up(length, 8);
    }
    return 0;
}

static int load_backing_name(struct qcow2_header *h, const uint8_t *cluster)
{
    uint64_t offset = load_be64(h->sector + QCOW2_AT_BACKING_OFFSET);
    uint32_t size = load_be32(h->sector + QCOW2_AT_BACKING_SIZE);
    if (!offset || !size)
        return 0;
    if (size > IMAGE_BACKING_MAX || !range_fits(offset, size, BIT(h->cluster_bits)) ||
        memchr(cluster + offset, 0, size))
        return -EINVAL;
    memcpy(h->backing_name, cluster + offset, size);
    h->backing_name[size] = 0;
    return 0;
}

static int read_first_cluster(struct qcow2_header *h, struct image_file *file, const char *name,
                              struct err *err)
{
    uint8_t *cluster = malloc(BIT(h->cluster_bits));
    if (!cluster)
        return err_set(err, ENOMEM, "%s: out of memory", name);
    int error = image_file_read(file, cluster, BIT(h->cluster_bits), 0);
    if (error)
        error = err_set(err, -error, "%s: cannot be read: %s", name, strerror(-error));
    else if (load_extensions(h, cluster))
        error = err_set(err, EINVAL, "%s: has a bad header: its extensions are damaged", name);
    else if (load_backing_name(h, cluster))
        error = err_set(err, EINVAL,
                        "%s: has a bad header: the name of its backing file is damaged", name);
    free(cluster);
    return error;
}

int qcow2_header_read(struct qcow2_header *out, struct image_file *file, const char *name,
                      struct err *err)
{
    *out = (struct qcow2_header) {0};
    int error = image_file_read(file, out->sector, sizeof out->sector, 0);
    if (error)
        return err_set(err, -error, "%s: cannot be read: %s", name, strerror(-error));
    if (!qcow2_is_magic(out->sector))
        return err_set(err, EINVAL, "%s: is no qcow2 image: it does not begin with its header",
                       name);
    load_fields(out);
    error = check_fields(out, name, err);
    if (!error)
        error = read_first_cluster(out, file, name, err);
    if (!error)
        refuse_unsupported(out);
    return error;
}

int qcow2_header_write(struct qcow2_header *h, struct image_file *file)
{
    uint8_t *s = h->sector;
    store_be64(s + QCOW2_AT_SIZE, h->size);
    store_be32(s + QCOW2_AT_L1_SIZE, h->l1_size);
    store_be64(s + QCOW2_AT_L1_OFFSET, h->l1_offset);
    store_be64(s + QCOW2_AT_REFCOUNT_OFFSET, h->refcount_table_offset);
    store_be32(s + QCOW2_AT_REFCOUNT_CLUSTERS, h->refcount_table_clusters);
    if (h->version >= 3) {
        store_be64(s + QCOW2_AT_INCOMPATIBLE, h->incompatible);
        store_be64(s + QCOW2_AT_AUTOCLEAR, h->autoclear);
    }
    return image_file_write(file, s, sizeof h->sector, 0);
}

/* Snapshots */

static void copy_text(char *to, size_t size, const uint8_t *from, size_t length)
{
    length = MIN(length, size - 1);
    for (size_t i = 0; i < length; i++)
        to[i] = from[i] < ' ' || from[i] == 127 ? '?' : (char)from[i];
    to[length] = 0;
}

/* One entry at *at of the table; -EINVAL for one that is damaged. */
static int read_snapshot(struct qcow2_snapshot *out, uint64_t *at, struct image_file *file)
{
    uint8_t fixed[SNAPSHOT_ENTRY + 24], text[2 * 65535];
    int error = image_file_read(file, fixed, sizeof fixed, *at);
    if (error)
        return error;
    uint32_t id_size = load_be16(fixed + 12), name_size = load_be16(fixed + 14);
    uint32_t extra = load_be32(fixed + 36);
    if (extra > SNAPSHOT_EXTRA_MAX)
        return -EINVAL;
    error = image_file_read(file, text, id_size + name_size, *at + SNAPSHOT_ENTRY + extra);
    if (error)
        return error;
    out->l1_offset = load_be64(fixed);
    out->l1_size = load_be32(fixed + 8);
    out->date_s = load_be32(fixed + 16);
    out->vm_state_size = extra >= 8 ? load_be64(fixed + 40) : load_be32(fixed + 32);
    copy_text(out->id, sizeof out->id, text, id_size);
    copy_text(out->name, sizeof out->name, text + id_size, name_size);
    *at += align_up(SNAPSHOT_ENTRY + extra + id_size + name_size, 8);
    return 0;
}

int qcow2_snapshots_read(struct qcow2_snapshot **out, uint64_t *bytes, const struct qcow2_header *h,
                         struct image_file *file)
{
    *out = NULL;
    *bytes = 0;
    uint64_t at = h->snapshots_offset, file_size;
    int error = file->ops->size(file, &file_size);
    if (error || !h->snapshot_count)
        return error;
    struct qcow2_snapshot *list = calloc(h->snapshot_count, sizeof *list);
    if (!list)
        return -ENOMEM;
    for (uint32_t i = 0; i < h->snapshot_count && !error; i++) {
        error = at < file_size && at - h->snapshots_offset < SNAPSHOT_TABLE_BYTES
                    ? read_snapshot(&list[i], &at, file)
                    : -EINVAL;
        bool bad = list[i].l1_size > QCOW2_L1_BYTES_MAX / 8 ||
                   list[i].l1_offset % BIT(h->cluster_bits) ||
                   !range_fits(list[i].l1_offset, list[i].l1_size * 8ull, file_size);
        if (!error && bad)
            error = -EINVAL;
    }
    if (error) {
        free(list);
        return error;
    }
    *out = list;
    *bytes = at - h->snapshots_offset;
    return 0;
}
