/*
 * How often each cluster of an image is pointed to, and by what: made by the checker from the
 * tables alone. Memory goes with what is pointed to, not with the size of the file. One thread.
 */
#ifndef PARAT_BACKEND_DISK_QCOW2_COUNT_H
#define PARAT_BACKEND_DISK_QCOW2_COUNT_H

#include <stdbool.h>
#include <stdint.h>

#include "backend/disk/image_file.h"
#include "backend/disk/qcow2_header.h"
#include "base/bits.h"

/* What a cluster holds. Several pointers (of snapshots) may share what is not FIXED. CONFLICT:
 * different things. */
enum qcow2_role {
    QCOW2_ROLE_NONE,
    QCOW2_ROLE_FIXED,
    QCOW2_ROLE_L2,
    QCOW2_ROLE_DATA,
    QCOW2_ROLE_CONFLICT
};

#define QCOW2_CHUNK 2048u /* clusters */

struct qcow2_chunk {
    uint64_t index; /* of its first cluster, in chunks */
    uint32_t count[QCOW2_CHUNK];
    uint8_t role[QCOW2_CHUNK];
    uint8_t own[QCOW2_CHUNK]; /* those of count that come from the refcounts' own tables */
};

struct qcow2_counts {
    struct qcow2_chunk **chunks; /* a hash: open addressing */
    uint64_t slot_count, chunk_count;
    struct qcow2_chunk *last; /* the one used last */
    uint64_t outside;         /* the first cluster behind the file that is pointed to; 0: none */
};

/* 0; -EEXIST when the cluster holds something else (it is counted all the same); -ENOMEM; -EFBIG
 * when there are too many. */
int qcow2_counts_add(struct qcow2_counts *counts, uint64_t cluster, enum qcow2_role role,
                     bool own) MUST_USE;
/* All pointers; those that are not the refcounts' own. */
uint32_t qcow2_counts_get(struct qcow2_counts *counts, uint64_t cluster);
uint32_t qcow2_counts_get_used(struct qcow2_counts *counts, uint64_t cluster);
enum qcow2_role qcow2_counts_role(struct qcow2_counts *counts, uint64_t cluster);
void qcow2_counts_free(struct qcow2_counts *counts);

/*
 * qcow2_rebuild.c: writes new refcount tables from the counts behind all that is in use, and makes
 * them valid with one write of the header. A power cut leaves the old or the new ones. -ERANGE when
 * a count does not fit; -EFBIG; -ENOTRECOVERABLE when the file would grow over a cluster that is
 * pointed to though it is not there: that pointer would seem to be good then.
 */
int qcow2_rebuild(struct image_file *file, struct qcow2_header *header,
                  struct qcow2_counts *counts) MUST_USE;

#endif
