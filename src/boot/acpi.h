/*
 * The machine's ACPI tables (ACPI 6.4) as two blobs, the RSDP and everything else, and a list of
 * what depends on where they lie: pointers, then checksums. Direct boot patches them in place;
 * fw_cfg's table loader can carry the same. Pure.
 */
#ifndef PARAT_BOOT_ACPI_H
#define PARAT_BOOT_ACPI_H

#include <stddef.h>
#include <stdint.h>

#include "base/bits.h"
#include "base/err.h"

#define ACPI_RSDP_SIZE   36
#define ACPI_PATCHES_MAX 32

struct acpi_config {
    unsigned vcpu_count;
    uint64_t pci64_base; /* of the 64-bit window for BARs */
};

enum acpi_blob { ACPI_BLOB_RSDP, ACPI_BLOB_TABLES };

struct acpi_patch {
    enum { ACPI_PATCH_POINTER, ACPI_PATCH_CHECKSUM } kind;
    enum acpi_blob blob; /* what is patched */
    uint32_t offset;     /* where */
    /* Pointer: its size; the address of the tables' blob is added to what is there. */
    uint32_t size;
    /* Checksum: the bytes [start, start + length) of the blob sum up to 0. */
    uint32_t start, length;
};

struct acpi_tables {
    uint8_t rsdp[ACPI_RSDP_SIZE];
    uint8_t *data;
    size_t size;
    struct acpi_patch patch[ACPI_PATCHES_MAX]; /* in the order of application */
    unsigned patch_count;
};

int acpi_build(struct acpi_tables *out, const struct acpi_config *config, struct err *err) MUST_USE;
void acpi_free(struct acpi_tables *tables);
/* Applies the patches for the tables' blob at this guest-physical address. */
void acpi_place(struct acpi_tables *tables, uint64_t address);

/* acpi_dsdt.c: the DSDT's body, without its header. */
struct aml;
void acpi_dsdt_body(struct aml *aml, const struct acpi_config *config);

#endif
