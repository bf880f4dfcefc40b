/*
 * A small writer of ACPI Machine Language (ACPI 6.4, chapter 20) and resource templates (section
 * 6.4). Blocks are opened and closed; a failed allocation or too deep a nesting is remembered and
 * told at the end. Pure.
 */
#ifndef PARAT_BOOT_AML_H
#define PARAT_BOOT_AML_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/bits.h"

#define AML_DEPTH_MAX 12

struct aml {
    uint8_t *data;
    size_t size, capacity;
    size_t open[AML_DEPTH_MAX]; /* where the open blocks' lengths are */
    unsigned depth;
    bool failed;
};

void aml_init(struct aml *aml);
void aml_free(struct aml *aml);

void aml_bytes(struct aml *aml, const void *data, size_t size);
void aml_byte(struct aml *aml, uint8_t value);

/* Data objects. */
void aml_integer(struct aml *aml, uint64_t value);
void aml_string(struct aml *aml, const char *text);
void aml_eisa_id(struct aml *aml, const char *id); /* "PNP0A08" */
/* A path of one to four-letter segments: "\\_SB.PCI0", "_CRS", "COM1". */
void aml_path(struct aml *aml, const char *path);

/* Name (path, ...): the value follows. */
void aml_name(struct aml *aml, const char *path);
void aml_name_integer(struct aml *aml, const char *path, uint64_t value);
void aml_name_string(struct aml *aml, const char *path, const char *text);
void aml_name_eisa_id(struct aml *aml, const char *path, const char *id);

/* Blocks; each is ended by aml_end. */
void aml_begin_scope(struct aml *aml, const char *path);
void aml_begin_device(struct aml *aml, const char *name);
void aml_begin_package(struct aml *aml, uint8_t element_count);
void aml_end(struct aml *aml);

/* Name (_CRS, ResourceTemplate () {...}); ended by aml_end_resources. */
void aml_begin_crs(struct aml *aml);
void aml_end_resources(struct aml *aml);
void aml_resource_io(struct aml *aml, uint16_t base, uint8_t length);
void aml_resource_irq(struct aml *aml, unsigned line); /* edge, active high */
void aml_resource_memory32(struct aml *aml, uint32_t base, uint32_t length);
/* Windows of a bridge, [first, last]. */
void aml_resource_bus_window(struct aml *aml, uint16_t first, uint16_t last);
void aml_resource_io_window(struct aml *aml, uint16_t first, uint16_t last);
void aml_resource_memory32_window(struct aml *aml, uint32_t first, uint32_t last);
void aml_resource_memory64_window(struct aml *aml, uint64_t first, uint64_t last);

#endif
