/*
 * Compressed clusters, read only: deflate without a header (RFC 1951) and zstd. The last few are
 * kept, since a guest reads a cluster in several requests. Any thread; a lock of its own.
 */
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>
#include <zstd.h>

#include "backend/disk/qcow2_int.h"

#define KEPT        4
#define WINDOW_BITS (-15) /* no header; any window */

struct kept {
    uint64_t entry; /* of the L2 table; 0: none. Nothing ever writes other data there. */
    uint8_t *data;
};

struct qcow2_decompressed {
    pthread_mutex_t lock;
    struct kept kept[KEPT];
    unsigned next;
};

struct qcow2_decompressed *qcow2_decompressed_create(void)
{
    struct qcow2_decompressed *d = calloc(1, sizeof *d);
    if (d)
        pthread_mutex_init(&d->lock, NULL);
    return d;
}

void qcow2_decompressed_destroy(struct qcow2_decompressed *d)
{
    if (!d)
        return;
    for (int i = 0; i < KEPT; i++)
        free(d->kept[i].data);
    pthread_mutex_destroy(&d->lock);
    free(d);
}

void qcow2_compressed_place(const struct qcow2_header *header, uint64_t entry, uint64_t *offset,
                            uint64_t *size)
{
    uint32_t x = 62 - (header->cluster_bits - 8);
    uint64_t sectors = ((entry & (BIT(62) - 1)) >> x) + 1;
    *offset = entry & (BIT(x) - 1);
    *size = (*offset & ~(uint64_t)511) + sectors * 512 - *offset;
}

/* Both end when the cluster is full; what comes behind belongs to somebody else. */

static int inflate_cluster(const uint8_t *from, size_t from_size, uint8_t *to, size_t to_size)
{
    z_stream z = {.next_in = (Bytef *)from,
                  .avail_in = (uInt)from_size,
                  .next_out = to,
                  .avail_out = (uInt)to_size};
    if (inflateInit2(&z, WINDOW_BITS) != Z_OK)
        return -ENOMEM;
    inflate(&z, Z_FINISH);
    bool full = z.avail_out == 0;
    inflateEnd(&z);
    return full ? 0 : -EIO;
}

static int unzstd_cluster(const uint8_t *from, size_t from_size, uint8_t *to, size_t to_size)
{
    ZSTD_DCtx *context = ZSTD_createDCtx();
    if (!context)
        return -ENOMEM;
    ZSTD_inBuffer in = {from, from_size, 0};
    ZSTD_outBuffer out = {to, to_size, 0};
    while (out.pos < out.size) {
        size_t in_before = in.pos, out_before = out.pos;
        size_t left = ZSTD_decompressStream(context, &out, &in);
        if (ZSTD_isError(left) || (in.pos == in_before && out.pos == out_before))
            break;
    }
    ZSTD_freeDCtx(context);
    return out.pos == out.size ? 0 : -EIO;
}

static int decompress(struct qcow2 *q, uint64_t entry, uint8_t *to)
{
    uint64_t offset, size;
    qcow2_compressed_place(&q->header, entry, &offset, &size);
    uint8_t *from = malloc(size);
    if (!from)
        return -ENOMEM;
    int error = image_file_read(q->file, from, size, offset);
    if (!error && q->header.compression == QCOW2_ZSTD)
        error = unzstd_cluster(from, size, to, q->cluster_size);
    else if (!error)
        error = inflate_cluster(from, size, to, q->cluster_size);
    free(from);
    if (error == -EIO) {
        pthread_mutex_lock(&q->lock);
        qcow2_corrupt(q, "a compressed cluster cannot be decompressed");
        pthread_mutex_unlock(&q->lock);
    }
    return error;
}

static void copy_out(const uint8_t *from, const struct image_io *part)
{
    for (unsigned i = 0; i < part->iov_count; i++) {
        memcpy(part->iov[i].iov_base, from, part->iov[i].iov_len);
        from += part->iov[i].iov_len;
    }
}

static bool copy_kept(struct qcow2_decompressed *d, uint64_t entry, uint64_t skip,
                      const struct image_io *part)
{
    bool found = false;
    pthread_mutex_lock(&d->lock);
    for (int i = 0; i < KEPT && !found; i++) {
        found = d->kept[i].entry == entry;
        if (found)
            copy_out(d->kept[i].data + skip, part);
    }
    pthread_mutex_unlock(&d->lock);
    return found;
}

static void keep(struct qcow2_decompressed *d, uint64_t entry, uint8_t *data)
{
    pthread_mutex_lock(&d->lock);
    struct kept *kept = &d->kept[d->next];
    d->next = (d->next + 1) % KEPT;
    uint8_t *old = kept->data;
    *kept = (struct kept) {entry, data};
    pthread_mutex_unlock(&d->lock);
    free(old);
}

int qcow2_read_compressed(struct qcow2 *q, uint64_t entry, uint64_t skip,
                          const struct image_io *part)
{
    if (copy_kept(q->decompressed, entry, skip, part))
        return 0;
    uint8_t *data = malloc(q->cluster_size);
    if (!data)
        return -ENOMEM;
    int error = decompress(q, entry, data);
    if (error) {
        free(data);
        return error;
    }
    copy_out(data + skip, part);
    keep(q->decompressed, entry, data);
    return 0;
}
