/* See disk_report.h. */
#include "cli/disk_report.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static const char *format_name(enum disk_format format)
{
    return format == DISK_FORMAT_QCOW2 ? "qcow2" : "raw";
}

static const char *compression_name(const struct qcow2_header *h)
{
    return h->compression == QCOW2_ZSTD ? "zstd" : "deflate";
}

/* Text */

static void print_size(const char *what, uint64_t bytes)
{
    static const char *const units[] = {"bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    double value = (double)bytes;
    size_t unit = 0;
    for (; value >= 1024 && unit + 1 < ARRAY_COUNT(units); unit++)
        value /= 1024;
    printf("%-16s%.4g %s", what, value, units[unit]);
    if (unit)
        printf(" (%" PRIu64 " bytes)", bytes);
    putchar('\n');
}

static void print_snapshots(const struct image_info *info)
{
    if (info->qcow2.snapshot_count && !info->snapshots)
        puts("snapshots:      cannot be read");
    for (uint32_t i = 0; info->snapshots && i < info->qcow2.snapshot_count; i++) {
        const struct qcow2_snapshot *s = &info->snapshots[i];
        char when[32] = "";
        time_t date = s->date_s;
        struct tm tm;
        if (gmtime_r(&date, &tm))
            strftime(when, sizeof when, "%Y-%m-%d %H:%M:%S UTC", &tm);
        printf("%-16s%s '%s', %s\n", i ? "" : "snapshots:", s->id, s->name, when);
    }
}

static void print_backing(const struct image_info *info, const char *path)
{
    const struct qcow2_header *h = &info->qcow2;
    if (!h->backing_name[0])
        return;
    char *resolved = image_resolve(path, h->backing_name);
    printf("backing file:   %s (%s)\n", resolved ? resolved : h->backing_name,
           h->backing_format[0] ? h->backing_format : "its format is not recorded");
    free(resolved);
}

static void print_qcow2(const struct image_info *info, const char *path)
{
    const struct qcow2_header *h = &info->qcow2;
    printf("qcow2 version:  %u\n", h->version);
    print_size("cluster size:", qcow2_cluster_size(h));
    printf("refcounts:      %u bits%s\n", 1u << h->refcount_order,
           h->compatible & QCOW2_COMPATIBLE_LAZY ? ", lazy" : "");
    printf("compression:    %s\n", compression_name(h));
    print_backing(info, path);
    print_snapshots(info);
    if (h->incompatible & QCOW2_INCOMPATIBLE_DIRTY)
        puts("state:          was not closed cleanly");
    if (h->incompatible & QCOW2_INCOMPATIBLE_CORRUPT)
        puts("state:          is marked as damaged");
    if (h->unsupported[0])
        printf("unsupported:    %s\n", h->unsupported);
}

/* JSON */

static json_t *snapshots_json(const struct image_info *info)
{
    json_t *list = json_array();
    for (uint32_t i = 0; info->snapshots && i < info->qcow2.snapshot_count; i++) {
        const struct qcow2_snapshot *s = &info->snapshots[i];
        json_array_append_new(list, json_pack("{s:s, s:s, s:I, s:I}", "id", s->id, "name", s->name,
                                              "date", (json_int_t)s->date_s, "vm_state_bytes",
                                              (json_int_t)s->vm_state_size));
    }
    return list;
}

static json_t *backing_json(const struct qcow2_header *h, const char *path)
{
    if (!h->backing_name[0])
        return json_null();
    char *resolved = image_resolve(path, h->backing_name);
    json_t *backing = json_pack("{s:s, s:s?, s:s?}", "name", h->backing_name, "path", resolved,
                                "format", h->backing_format[0] ? h->backing_format : NULL);
    free(resolved);
    return backing;
}

static json_t *qcow2_json(const struct image_info *info, const char *path)
{
    const struct qcow2_header *h = &info->qcow2;
    return json_pack("{s:i, s:I, s:i, s:b, s:s, s:b, s:b, s:s?, s:o, s:o}", "version",
                     (int)h->version, "cluster_bytes", (json_int_t)qcow2_cluster_size(h),
                     "refcount_bits", 1 << h->refcount_order, "lazy_refcounts",
                     !!(h->compatible & QCOW2_COMPATIBLE_LAZY), "compression", compression_name(h),
                     "dirty", !!(h->incompatible & QCOW2_INCOMPATIBLE_DIRTY), "corrupt",
                     !!(h->incompatible & QCOW2_INCOMPATIBLE_CORRUPT), "unsupported",
                     h->unsupported[0] ? h->unsupported : NULL, "backing", backing_json(h, path),
                     "snapshots", snapshots_json(info));
}

/* A file's name need not be UTF-8: then there is nothing that JSON could hold. */
static void print_json(json_t *value)
{
    if (value)
        json_dumpf(value, stdout, JSON_INDENT(2));
    else
        fputs("null", stdout);
    putchar('\n');
    json_decref(value);
}

void disk_report_info(const struct image_info *info, const char *path, bool json)
{
    if (json) {
        json_t *more = info->format == DISK_FORMAT_QCOW2 ? qcow2_json(info, path) : json_null();
        print_json(json_pack("{s:s, s:s, s:I, s:I, s:I, s:o}", "file", path, "format",
                             format_name(info->format), "virtual_bytes", (json_int_t)info->size,
                             "file_bytes", (json_int_t)info->file_size, "host_bytes",
                             (json_int_t)info->host_size, "qcow2", more));
        return;
    }
    printf("file:           %s\n", path);
    printf("format:         %s\n", format_name(info->format));
    print_size("disk size:", info->size);
    print_size("file size:", info->file_size);
    print_size("on the host:", info->host_size);
    if (info->format == DISK_FORMAT_QCOW2)
        print_qcow2(info, path);
}

void disk_report_check(const struct qcow2_report *r, const char *path, bool json)
{
    if (json) {
        print_json(json_pack("{s:s, s:I, s:I, s:I, s:I, s:b, s:I, s:I, s:I}", "file", path, "leaks",
                             (json_int_t)r->leaks, "bad_refcounts", (json_int_t)r->bad_refcounts,
                             "bad_flags", (json_int_t)r->bad_flags, "errors", (json_int_t)r->errors,
                             "mended", r->mended, "data_clusters", (json_int_t)r->data_clusters,
                             "compressed_clusters", (json_int_t)r->compressed_clusters,
                             "file_clusters", (json_int_t)r->file_clusters));
        return;
    }
    uint64_t mendable = r->leaks + r->bad_refcounts + r->bad_flags;
    if (mendable)
        printf("%s: %" PRIu64 " leaked clusters, %" PRIu64 " bad refcounts, %" PRIu64
               " bad flags%s\n",
               path, r->leaks, r->bad_refcounts, r->bad_flags,
               r->mended ? ": all mended" : "; --repair mends them");
    if (r->errors)
        printf("%s: %" PRIu64 " errors that cannot be mended\n", path, r->errors);
    if (!mendable && !r->errors)
        printf("%s: no errors\n", path);
    printf("%s: %" PRIu64 " data clusters, %" PRIu64 " of them compressed, in a file of %" PRIu64
           " clusters\n",
           path, r->data_clusters + r->compressed_clusters, r->compressed_clusters,
           r->file_clusters);
}
