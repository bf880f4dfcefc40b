/*
 * Checking and mending. All pointers of the image are followed and counted; the counts are compared
 * with the refcounts in the file, and COPIED flags with the counts. Mending writes new refcounts
 * and corrects the flags. Loops are bounded by the size of the file: no table is followed twice
 * from one L1 table, and no two tables may share a cluster. One thread.
 */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backend/disk/qcow2_count.h"
#include "backend/disk/qcow2_int.h"

#define BITMAP_DIRECTORY_MAX (64u << 20)
#define BITMAP_ENTRY         24u

struct checker {
    const struct qcow2_check *config;
    struct image_file *file;
    struct qcow2_header header;
    struct qcow2_report *report;
    struct qcow2_counts counts;
    struct qcow2_set seen; /* L2 tables of this L1 table */
    uint64_t end, cluster; /* of the file in clusters, and their size */
    uint32_t block_bits;
    uint8_t *table; /* of one cluster */
    bool lost;      /* a table could not be followed: what is in use is not known */
};

static void say(struct checker *c, const char *format, ...) __attribute__((format(printf, 2, 3)));

static void say(struct checker *c, const char *format, ...)
{
    char text[160];
    if (!c->config->say)
        return;
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    c->config->say(c->config->context, text);
}

/* Counting */

static void note_outside(struct checker *c, uint64_t cluster)
{
    uint64_t first = c->counts.outside;
    cluster = MAX(cluster, c->end);
    c->counts.outside = first ? MIN(first, cluster) : cluster;
}

/* One reference. *good: the cluster is there and holds nothing else. */
static int count(struct checker *c, uint64_t cluster, enum qcow2_role role, const char *what,
                 bool *good)
{
    *good = cluster < c->end;
    if (!*good) {
        c->report->errors++;
        note_outside(c, cluster);
        say(c, "%s lies outside the file, at cluster %llu", what, (unsigned long long)cluster);
        return 0;
    }
    int error = qcow2_counts_add(&c->counts, cluster, role, false);
    if (error != -EEXIST)
        return error;
    *good = false;
    c->report->errors++;
    say(c, "cluster %llu: %s lies where something else is", (unsigned long long)cluster, what);
    return 0;
}

/* A table of bytes that has its clusters for itself. */
static int count_fixed(struct checker *c, uint64_t offset, uint64_t bytes, const char *what,
                       bool *good)
{
    *good = true;
    if (bytes && (offset % c->cluster || !range_fits(offset, bytes, c->end * c->cluster))) {
        *good = false;
        c->lost = true;
        c->report->errors++;
        note_outside(c, offset / c->cluster);
        say(c, "%s lies outside the file", what);
        return 0;
    }
    uint64_t first = offset / c->cluster, last = first + (bytes + c->cluster - 1) / c->cluster;
    int error = 0;
    for (uint64_t i = first; i < last && !error; i++) {
        bool one;
        error = count(c, i, QCOW2_ROLE_FIXED, what, &one);
        *good &= one;
    }
    c->lost |= !*good;
    return error;
}

static int count_compressed(struct checker *c, uint64_t entry)
{
    uint64_t offset, size;
    bool good = true;
    qcow2_compressed_place(&c->header, entry, &offset, &size);
    int error = 0;
    for (uint64_t i = offset / c->cluster; i <= (offset + size - 1) / c->cluster && !error; i++)
        error = count(c, i, QCOW2_ROLE_DATA, "a compressed cluster", &good);
    return error;
}

static int count_entry(struct checker *c, uint64_t entry, bool active)
{
    uint64_t host = entry & QCOW2_OFFSET_MASK, zero = c->header.version < 3 ? QCOW2_ZERO : 0;
    if (entry & QCOW2_COMPRESSED) {
        c->report->compressed_clusters += active;
        return count_compressed(c, entry);
    }
    if (host % c->cluster || entry & (~(QCOW2_OFFSET_MASK | QCOW2_COPIED | QCOW2_ZERO) | zero)) {
        c->report->errors++;
        say(c, "an L2 entry makes no sense: %#llx", (unsigned long long)entry);
        return 0;
    }
    bool good = true;
    if (!host)
        return 0;
    c->report->data_clusters += active;
    return count(c, host / c->cluster, QCOW2_ROLE_DATA, "a data cluster", &good);
}

static int count_l2(struct checker *c, uint64_t offset, bool active)
{
    int error = image_file_read(c->file, c->table, c->cluster, offset);
    for (uint64_t i = 0; i < c->cluster / 8 && !error; i++) {
        uint64_t entry = load_be64(c->table + i * 8);
        error = entry ? count_entry(c, entry, active) : 0;
    }
    return error;
}

/* *follow: the entry leads to an L2 table that this L1 table has not led to yet. */
static int enter_l1_entry(struct checker *c, uint64_t entry, bool *follow)
{
    uint64_t offset = entry & QCOW2_OFFSET_MASK;
    *follow = false;
    if (offset % c->cluster || entry & ~(QCOW2_OFFSET_MASK | QCOW2_COPIED)) {
        c->report->errors++;
        c->lost = true;
        say(c, "an L1 entry makes no sense: %#llx", (unsigned long long)entry);
        return 0;
    }
    if (!offset)
        return 0;
    int error = qcow2_set_add(&c->seen, offset / c->cluster);
    if (error == -EEXIST) {
        c->report->errors++;
        c->lost = true;
        say(c, "two L1 entries point to the L2 table at cluster %llu",
            (unsigned long long)(offset / c->cluster));
        return 0;
    }
    if (!error)
        error = count(c, offset / c->cluster, QCOW2_ROLE_L2, "an L2 table", follow);
    c->lost |= !*follow;
    return error;
}

/* Calls visit for each L2 table that an L1 table leads to. */
static int read_l1(struct checker *c, uint64_t offset, uint64_t entries, uint8_t **out)
{
    *out = malloc(entries * 8 + 1);
    if (!*out)
        return -ENOMEM;
    return image_file_read(c->file, *out, entries * 8, offset);
}

static int count_l1(struct checker *c, uint64_t offset, uint64_t entries, bool active)
{
    uint8_t *l1;
    int error = read_l1(c, offset, entries, &l1);
    for (uint64_t i = 0; i < entries && !error; i++) {
        bool follow;
        uint64_t entry = load_be64(l1 + i * 8);
        error = enter_l1_entry(c, entry, &follow);
        if (!error && follow)
            error = count_l2(c, entry & QCOW2_OFFSET_MASK, active);
    }
    free(l1);
    qcow2_set_free(&c->seen);
    return error;
}

/* Bitmaps: counted while their extension is valid; when it is not, others do not count them. */

static int count_bitmap(struct checker *c, uint64_t offset, uint64_t entries)
{
    bool good;
    int error = count_fixed(c, offset, entries * 8, "a bitmap's table", &good);
    if (error || !good)
        return error;
    uint8_t *table;
    error = read_l1(c, offset, entries, &table);
    for (uint64_t i = 0; i < entries && !error; i++) {
        uint64_t at = load_be64(table + i * 8) & QCOW2_OFFSET_MASK;
        if (at)
            error = count_fixed(c, at, c->cluster, "a bitmap", &good);
    }
    free(table);
    return error;
}

static int count_bitmaps(struct checker *c)
{
    uint64_t size = c->header.bitmaps_size, offset = c->header.bitmaps_offset;
    if (!size || !(c->header.autoclear & QCOW2_AUTOCLEAR_BITMAPS))
        return 0;
    bool good = size <= BITMAP_DIRECTORY_MAX;
    int error = good ? count_fixed(c, offset, size, "the bitmap directory", &good) : 0;
    uint8_t entry[BITMAP_ENTRY];
    for (uint64_t at = 0; !error && good && size - at >= BITMAP_ENTRY;) {
        error = image_file_read(c->file, entry, sizeof entry, offset + at);
        if (!error)
            error = count_bitmap(c, load_be64(entry), load_be32(entry + 8));
        uint64_t length = align_up(BITMAP_ENTRY + load_be16(entry + 18) + load_be32(entry + 20), 8);
        if (length > size - at)
            break;
        at += length;
    }
    return error;
}

/* The refcounts' own tables. They count until they are replaced. */

static int count_own(struct checker *c, uint64_t cluster, const char *what, bool *good)
{
    *good = cluster < c->end;
    int error = *good ? qcow2_counts_add(&c->counts, cluster, QCOW2_ROLE_FIXED, true) : -EEXIST;
    if (error != -EEXIST)
        return error;
    *good = false;
    /* New ones can be made. */
    c->report->bad_refcounts++;
    say(c, "%s lies outside the file or where something else is, at cluster %llu", what,
        (unsigned long long)cluster);
    return 0;
}

/* The refcount table with 0 for each block that cannot be used. calloc'ed, *entries long. */
static int count_refcounts(struct checker *c, uint64_t **out, uint64_t *entries)
{
    uint64_t first = c->header.refcount_table_offset / c->cluster;
    uint64_t clusters = c->header.refcount_table_clusters, per = c->cluster / 8;
    *entries = 0;
    *out = calloc(clusters * per + 1, sizeof **out);
    if (!*out)
        return -ENOMEM;
    int error = 0;
    for (uint64_t i = 0; i < clusters && !error; i++) {
        bool good;
        error = count_own(c, first + i, "the refcount table", &good);
        if (error || !good)
            continue;
        error = image_file_read(c->file, c->table, c->cluster, (first + i) * c->cluster);
        for (uint64_t j = 0; j < per && !error; j++)
            (*out)[i * per + j] = load_be64(c->table + j * 8);
    }
    *entries = clusters * per;
    for (uint64_t i = 0; i < *entries && !error; i++) {
        uint64_t block = (*out)[i];
        bool good = block % c->cluster == 0;
        if (block)
            error = count_own(c, good ? block / c->cluster : UINT64_MAX, "a refcount block", &good);
        if (!good)
            (*out)[i] = 0;
    }
    return error;
}

static int count_all(struct checker *c, uint64_t **blocks, uint64_t *block_count)
{
    struct qcow2_header *h = &c->header;
    struct qcow2_snapshot *snapshots = NULL;
    uint64_t bytes = 0, l1_bytes = h->l1_size * 8ull;
    bool good, *follow = calloc(h->snapshot_count + 1, sizeof *follow);
    if (!follow)
        return -ENOMEM;
    int error = count(c, 0, QCOW2_ROLE_FIXED, "the header", &good);
    if (!error)
        error = count_fixed(c, h->l1_offset, l1_bytes, "the L1 table", &follow[h->snapshot_count]);
    if (!error)
        error = qcow2_snapshots_read(&snapshots, &bytes, h, c->file);
    bool damaged = error == -EINVAL;
    if (damaged) {
        error = 0;
        c->report->errors++;
        c->lost = true;
        say(c, "the table of snapshots is damaged");
    }
    if (!error && bytes)
        error = count_fixed(c, h->snapshots_offset, bytes, "the table of snapshots", &good);
    for (uint32_t i = 0; snapshots && i < h->snapshot_count && !error; i++)
        error = count_fixed(c, snapshots[i].l1_offset, snapshots[i].l1_size * 8ull,
                            "a snapshot's L1 table", &follow[i]);
    if (!error)
        error = count_bitmaps(c);
    if (!error)
        error = count_refcounts(c, blocks, block_count);
    if (!error && follow[h->snapshot_count])
        error = count_l1(c, h->l1_offset, h->l1_size, true);
    for (uint32_t i = 0; snapshots && i < h->snapshot_count && !error; i++)
        if (follow[i])
            error = count_l1(c, snapshots[i].l1_offset, snapshots[i].l1_size, false);
    free(snapshots);
    free(follow);
    return error;
}

/* Comparing */

static void compare_one(struct checker *c, uint64_t cluster, uint64_t stored)
{
    uint64_t used = qcow2_counts_get(&c->counts, cluster);
    if (stored > used) {
        c->report->leaks++;
        say(c, "cluster %llu is leaked: counted %llu times, used %llu times",
            (unsigned long long)cluster, (unsigned long long)stored, (unsigned long long)used);
    } else if (stored < used) {
        c->report->bad_refcounts++;
        say(c, "cluster %llu has a bad refcount: counted %llu times, used %llu times",
            (unsigned long long)cluster, (unsigned long long)stored, (unsigned long long)used);
    }
}

static int compare_block(struct checker *c, uint64_t index, uint64_t offset)
{
    int error = image_file_read(c->file, c->table, c->cluster, offset);
    for (uint64_t i = 0; i < BIT(c->block_bits) && !error; i++)
        compare_one(c, (index << c->block_bits) + i,
                    qcow2_refcount_load(c->table, i, c->header.refcount_order));
    return error;
}

/* Each block with what it counts; then clusters that no block counts. */
static int compare(struct checker *c, const uint64_t *blocks, uint64_t block_count)
{
    int error = 0;
    for (uint64_t i = 0; i < block_count && !error; i++)
        if (blocks[i])
            error = compare_block(c, i, blocks[i]);
    for (uint64_t i = 0; i < c->counts.slot_count && !error; i++) {
        const struct qcow2_chunk *chunk = c->counts.chunks[i];
        for (uint64_t at = 0; chunk && at < QCOW2_CHUNK; at++) {
            uint64_t cluster = chunk->index * QCOW2_CHUNK + at, block = cluster >> c->block_bits;
            if (chunk->count[at] && (block >= block_count || !blocks[block]))
                compare_one(c, cluster, 0);
        }
    }
    return error;
}

/* Flags: COPIED says of the active tables' pointers that they are the only ones. */

static uint64_t with_flag(struct checker *c, uint64_t entry)
{
    uint64_t at = entry & QCOW2_OFFSET_MASK;
    if (entry & QCOW2_COMPRESSED)
        return entry & ~QCOW2_COPIED;
    if (!at || at % c->cluster || at / c->cluster >= c->end)
        return entry;
    bool only = qcow2_counts_get_used(&c->counts, at / c->cluster) == 1;
    return only ? entry | QCOW2_COPIED : entry & ~QCOW2_COPIED;
}

/* Corrects entries in memory; *changed when there was one. */
static void correct_flags(struct checker *c, uint8_t *table, uint64_t entries, bool *changed)
{
    *changed = false;
    for (uint64_t i = 0; i < entries; i++) {
        uint64_t entry = load_be64(table + i * 8), right = entry ? with_flag(c, entry) : 0;
        if (entry == right)
            continue;
        *changed = true;
        c->report->bad_flags++;
        say(c, "an entry has a wrong COPIED flag: %#llx", (unsigned long long)entry);
        store_be64(table + i * 8, right);
    }
}

static int check_l2_flags(struct checker *c, uint64_t offset, bool write)
{
    bool changed;
    int error = image_file_read(c->file, c->table, c->cluster, offset);
    if (error)
        return error;
    correct_flags(c, c->table, c->cluster / 8, &changed);
    return changed && write ? image_file_write(c->file, c->table, c->cluster, offset) : 0;
}

/* What lies over something else is not touched. */
static bool is_l1_whole(struct checker *c)
{
    uint64_t offset = c->header.l1_offset, bytes = c->header.l1_size * 8ull;
    bool whole = range_fits(offset, bytes, c->end * c->cluster);
    for (uint64_t at = 0; whole && at < bytes; at += c->cluster)
        whole = qcow2_counts_role(&c->counts, (offset + at) / c->cluster) == QCOW2_ROLE_FIXED;
    return whole;
}

static int check_flags(struct checker *c, bool write)
{
    uint8_t *l1;
    struct qcow2_header *h = &c->header;
    if (!is_l1_whole(c))
        return 0;
    int error = read_l1(c, h->l1_offset, h->l1_size, &l1);
    for (uint64_t i = 0; i < h->l1_size && !error; i++) {
        uint64_t entry = load_be64(l1 + i * 8), at = entry & QCOW2_OFFSET_MASK;
        bool follow = at && at % c->cluster == 0 &&
                      qcow2_counts_role(&c->counts, at / c->cluster) == QCOW2_ROLE_L2 &&
                      qcow2_set_add(&c->seen, at / c->cluster) == 0;
        error = follow ? check_l2_flags(c, at, write) : 0;
    }
    bool changed = false;
    if (!error)
        correct_flags(c, l1, h->l1_size, &changed);
    if (!error && changed && write)
        error = image_file_write(c->file, l1, h->l1_size * 8ull, h->l1_offset);
    free(l1);
    qcow2_set_free(&c->seen);
    return error;
}

/* Mending. What only seems to be unused must not be freed. */

static int repair(struct checker *c)
{
    struct qcow2_report *report = c->report;
    bool counts =
        report->leaks || report->bad_refcounts || c->header.incompatible & QCOW2_INCOMPATIBLE_DIRTY;
    if (c->lost) {
        say(c, "nothing was mended: what the bad tables point to is not known");
        return 0;
    }
    /* Bitmaps are of the disk's contents, which stay; what else there is we do not know. */
    c->header.autoclear &= QCOW2_AUTOCLEAR_BITMAPS;
    int error = counts ? qcow2_rebuild(c->file, &c->header, &c->counts) : 0;
    if (error == -ENOTRECOVERABLE) {
        say(c, "nothing was mended: there are pointers to where new tables would lie");
        return 0;
    }
    uint64_t bad_flags = report->bad_flags;
    if (!error && bad_flags)
        error = check_flags(c, true);
    report->bad_flags = bad_flags;
    bool clear = c->header.incompatible & QCOW2_INCOMPATIBLE_CORRUPT && !report->errors;
    if (!error && clear) {
        c->header.incompatible &= ~QCOW2_INCOMPATIBLE_CORRUPT;
        error = image_file_flush(c->file);
        if (!error)
            error = qcow2_header_write(&c->header, c->file);
    }
    if (!error)
        error = image_file_flush(c->file);
    report->mended = !error && (counts || bad_flags || clear);
    return error;
}

static int run(struct checker *c)
{
    uint64_t *blocks = NULL, block_count = 0;
    int error = count_all(c, &blocks, &block_count);
    if (!error)
        error = compare(c, blocks, block_count);
    if (!error)
        error = check_flags(c, false);
    if (!error && c->config->repair)
        error = repair(c);
    free(blocks);
    return error;
}

static int check_error(const struct checker *c, int error, struct err *err)
{
    const char *name = c->config->name;
    if (error == -EFBIG)
        return err_set(err, EFBIG, "%s: is too large to be checked", name);
    if (error == -ERANGE)
        return err_set(err, ERANGE,
                       "%s: cannot be mended: a cluster is used more often than its refcount can "
                       "tell",
                       name);
    return err_set(err, -error, "%s: cannot be checked: %s", name, strerror(-error));
}

int qcow2_check(struct image_file *file, const struct qcow2_check *check, struct qcow2_report *out,
                struct err *err)
{
    struct checker c = {.config = check, .file = file, .report = out};
    *out = (struct qcow2_report) {0};
    uint64_t size;
    int error = qcow2_header_read(&c.header, file, check->name, err);
    if (error)
        return error;
    if (c.header.unsupported[0])
        return err_set(err, ENOTSUP, "%s: %s", check->name, c.header.unsupported);
    error = file->ops->size(file, &size);
    c.cluster = qcow2_cluster_size(&c.header);
    c.end = (size >> c.header.cluster_bits) + (size % c.cluster != 0);
    c.block_bits = c.header.cluster_bits + 3 - c.header.refcount_order;
    out->file_clusters = c.end;
    c.table = malloc(c.cluster);
    if (!error)
        error = c.table ? run(&c) : -ENOMEM;
    qcow2_counts_free(&c.counts);
    qcow2_set_free(&c.seen);
    free(c.table);
    return error ? check_error(&c, error, err) : 0;
}
