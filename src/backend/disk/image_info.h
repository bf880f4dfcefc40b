/* What an image file says about itself, without opening what is below it. One thread. */
#ifndef PARAT_BACKEND_DISK_IMAGE_INFO_H
#define PARAT_BACKEND_DISK_IMAGE_INFO_H

#include "backend/disk/image.h"
#include "backend/disk/qcow2_header.h"

struct image_info {
    enum disk_format format;
    uint64_t size;      /* of the disk */
    uint64_t file_size; /* of the file, and what it takes on the host's disk */
    uint64_t host_size;
    struct qcow2_header qcow2;
    struct qcow2_snapshot *snapshots; /* qcow2.snapshot_count, or NULL when they cannot be read */
};

/* AUTO looks at the header alone, since nothing is done with what is found. The file may be in
 * use. */
int image_info_read(struct image_info *out, const char *path, enum disk_format format,
                    struct err *err) MUST_USE;
void image_info_free(struct image_info *info);

/* Checks an image; it may not be in use. say and report: see qcow2_check. A raw one is refused. */
struct qcow2_check;
struct qcow2_report;
int image_check(const char *path, enum disk_format format, struct qcow2_check *check,
                struct qcow2_report *out, struct err *err) MUST_USE;

#endif
