/*
 * The device state format: sections keyed by a stable path (`pci/00:03.0/virtio-blk`), each a
 * sequence of tagged, length-prefixed fields. It is the file format of a saved VM too.
 *
 *   section: "PS" u16 path length, u32 body length, path, body
 *   field:   u8 flags (bit 0: required), u8 name length, u32 data length, name, data
 *
 * All numbers are little-endian. A reader asks for fields by name, in any order. A required field
 * that nobody asked for makes state_reader_end fail: an older parat refuses what it does not
 * understand. A field that is missing leaves the caller's value alone, so new fields have defaults.
 */
#ifndef PARAT_VM_STATE_H
#define PARAT_VM_STATE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/bits.h"
#include "base/err.h"

#define STATE_PATH_MAX   96
#define STATE_NAME_MAX   48
#define STATE_FIELDS_MAX 512
#define STATE_DATA_MAX   (16u << 20)

/* Appends to a growing buffer; an allocation failure is remembered and told by state_writer_end. */
struct state_writer {
    uint8_t *data;
    size_t size, capacity;
    size_t section; /* where the open section starts; SIZE_MAX: none */
    int error;
};

void state_writer_init(struct state_writer *w);
void state_writer_free(struct state_writer *w);
void state_begin(struct state_writer *w, const char *path);
void state_put(struct state_writer *w, const char *name, const void *data, size_t size);
void state_put_optional(struct state_writer *w, const char *name, const void *data, size_t size);
void state_put_u64(struct state_writer *w, const char *name, uint64_t value);
void state_end(struct state_writer *w);
int state_writer_result(const struct state_writer *w) MUST_USE; /* 0 or -ENOMEM */

/* Reads one section. The buffer stays the caller's. Untrusted: every length is checked. */
struct state_reader {
    char path[STATE_PATH_MAX + 1];
    const uint8_t *body;
    size_t size;
    uint64_t asked[STATE_FIELDS_MAX / 64]; /* fields that were asked for, by position */
    int error;                             /* first failure: -EINVAL a field of the wrong size */
    char bad_field[STATE_NAME_MAX + 1];
};

/* Takes the section at *offset and moves *offset behind it. 1: got one; 0: end; -EINVAL: corrupt.
 */
int state_next_section(const void *data, size_t size, size_t *offset,
                       struct state_reader *r) MUST_USE;
bool state_has(struct state_reader *r, const char *name);
/* Copies a field of exactly size bytes; leaves `to` alone when it is missing; returns whether it
 * was there. */
bool state_get(struct state_reader *r, const char *name, void *to, size_t size);
bool state_get_u64(struct state_reader *r, const char *name, uint64_t *to);
/* A field of any size; points into the buffer. NULL when missing. */
const void *state_get_bytes(struct state_reader *r, const char *name, size_t *size);
/* 0, or -errno with a sentence that names path and field. */
int state_reader_end(struct state_reader *r, struct err *err) MUST_USE;

/* For integer struct members of any width: state_put_field(w, s, member) and its counterpart. */
#define state_put_field(w, object, member)                                                         \
    state_put(w, #member, &(object)->member, sizeof(object)->member)
#define state_get_field(r, object, member)                                                         \
    state_get(r, #member, &(object)->member, sizeof(object)->member)

#endif
