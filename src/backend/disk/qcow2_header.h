/* The qcow2 header and snapshot table as they are in the file. Pure but for reading the file. */
#ifndef PARAT_BACKEND_DISK_QCOW2_HEADER_H
#define PARAT_BACKEND_DISK_QCOW2_HEADER_H

#include <stdbool.h>
#include <stdint.h>

#include "backend/disk/image_file.h"
#include "base/bits.h"
#include "base/err.h"

#define QCOW2_CLUSTER_BITS_MIN 9
#define QCOW2_CLUSTER_BITS_MAX 21
#define QCOW2_L1_BYTES_MAX     (32u << 20) /* as QEMU has it; so for the next one */
#define QCOW2_TABLE_BYTES_MAX  (8u << 20)  /* of the refcount table */
#define QCOW2_SNAPSHOTS_MAX    65536u
#define QCOW2_SECTOR           512u /* what a power cut leaves whole: all fields below lie in one */

/* Where fields lie */
#define QCOW2_AT_VERSION           4
#define QCOW2_AT_BACKING_OFFSET    8
#define QCOW2_AT_BACKING_SIZE      16
#define QCOW2_AT_CLUSTER_BITS      20
#define QCOW2_AT_SIZE              24
#define QCOW2_AT_CRYPT_METHOD      32
#define QCOW2_AT_L1_SIZE           36
#define QCOW2_AT_L1_OFFSET         40
#define QCOW2_AT_REFCOUNT_OFFSET   48
#define QCOW2_AT_REFCOUNT_CLUSTERS 56
#define QCOW2_AT_SNAPSHOT_COUNT    60
#define QCOW2_AT_SNAPSHOTS_OFFSET  64
#define QCOW2_V2_LENGTH            72
#define QCOW2_AT_INCOMPATIBLE      72
#define QCOW2_AT_COMPATIBLE        80
#define QCOW2_AT_AUTOCLEAR         88
#define QCOW2_AT_REFCOUNT_ORDER    96
#define QCOW2_AT_HEADER_LENGTH     100
#define QCOW2_V3_LENGTH            104
#define QCOW2_AT_COMPRESSION       104

#define QCOW2_INCOMPATIBLE_DIRTY       BIT(0)
#define QCOW2_INCOMPATIBLE_CORRUPT     BIT(1)
#define QCOW2_INCOMPATIBLE_DATA_FILE   BIT(2)
#define QCOW2_INCOMPATIBLE_COMPRESSION BIT(3)
#define QCOW2_INCOMPATIBLE_EXTENDED_L2 BIT(4)
#define QCOW2_COMPATIBLE_LAZY          BIT(0)
#define QCOW2_AUTOCLEAR_BITMAPS        BIT(0)

#define QCOW2_EXTENSION_END            0u
#define QCOW2_EXTENSION_BACKING_FORMAT 0xe2792acau
#define QCOW2_EXTENSION_FEATURE_NAMES  0x6803f857u
#define QCOW2_EXTENSION_BITMAPS        0x23852875u

enum { QCOW2_DEFLATE = 0, QCOW2_ZSTD = 1 };

struct qcow2_header {
    uint32_t version, cluster_bits, crypt_method, l1_size, refcount_table_clusters;
    uint32_t snapshot_count, refcount_order, header_length, compression;
    uint64_t size, l1_offset, refcount_table_offset, snapshots_offset;
    uint64_t incompatible, compatible, autoclear;
    uint64_t bitmaps_offset, bitmaps_size; /* of the directory; size 0: none */
    char backing_name[1024];               /* "": none */
    char backing_format[32];               /* "": not recorded */
    char unsupported[160]; /* "" or what keeps us from opening it: "is encrypted, which…" */
    uint8_t sector[QCOW2_SECTOR]; /* as it is in the file */
};

struct qcow2_snapshot {
    uint64_t l1_offset;
    uint32_t l1_size;
    uint64_t vm_state_size;
    uint32_t date_s;
    char id[64], name[256]; /* cut if longer */
};

/* Reads and validates what can be validated alone. The sentence begins with name. */
int qcow2_header_read(struct qcow2_header *out, struct image_file *file, const char *name,
                      struct err *err) MUST_USE;
/* Puts the fields that can change back into the sector, and writes it. The caller flushes. */
int qcow2_header_write(struct qcow2_header *header, struct image_file *file) MUST_USE;

/* The table's entries, calloc'ed, and how many bytes it takes. */
int qcow2_snapshots_read(struct qcow2_snapshot **out, uint64_t *bytes,
                         const struct qcow2_header *header, struct image_file *file) MUST_USE;

static inline uint64_t qcow2_cluster_size(const struct qcow2_header *header)
{
    return 1ull << header->cluster_bits;
}

/* How many L1 entries a disk of this size needs. */
static inline uint64_t qcow2_l1_entries(uint64_t size, uint32_t cluster_bits)
{
    uint32_t shift = 2 * cluster_bits - 3;
    return (size >> shift) + ((size & (BIT(shift) - 1)) != 0);
}

#endif
