/*
 * The device state format; see state.h. Reading is done on untrusted bytes: a section is split by
 * checked lengths and every look-up walks the fields again (sections are small).
 */
#include "vm/state.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define SECTION_HEADER 8 /* "PS", u16 path length, u32 body length */
#define FIELD_HEADER   6 /* u8 flags, u8 name length, u32 data length */
#define FIELD_REQUIRED 1

void state_writer_init(struct state_writer *w)
{
    *w = (struct state_writer) {.section = SIZE_MAX};
}

void state_writer_free(struct state_writer *w)
{
    free(w->data);
    *w = (struct state_writer) {.section = SIZE_MAX};
}

static void append(struct state_writer *w, const void *data, size_t size)
{
    if (w->error)
        return;
    if (w->capacity - w->size < size) {
        size_t capacity = MAX(w->capacity * 2, w->size + size + 4096);
        uint8_t *bigger = realloc(w->data, capacity);
        if (!bigger) {
            w->error = -ENOMEM;
            return;
        }
        w->data = bigger;
        w->capacity = capacity;
    }
    if (size)
        memcpy(w->data + w->size, data, size);
    w->size += size;
}

void state_begin(struct state_writer *w, const char *path)
{
    uint8_t header[SECTION_HEADER] = {'P', 'S'};
    size_t length = strnlen(path, STATE_PATH_MAX);
    store_le16(header + 2, (uint16_t)length);
    w->section = w->size;
    append(w, header, sizeof header);
    append(w, path, length);
}

static void put_field(struct state_writer *w, const char *name, const void *data, size_t size,
                      uint8_t flags)
{
    size_t length = strnlen(name, STATE_NAME_MAX);
    uint8_t header[FIELD_HEADER] = {flags, (uint8_t)length};
    if (size > STATE_DATA_MAX) {
        w->error = -E2BIG;
        return;
    }
    store_le32(header + 2, (uint32_t)size);
    append(w, header, sizeof header);
    append(w, name, length);
    append(w, data, size);
}

void state_put(struct state_writer *w, const char *name, const void *data, size_t size)
{
    put_field(w, name, data, size, FIELD_REQUIRED);
}

void state_put_optional(struct state_writer *w, const char *name, const void *data, size_t size)
{
    put_field(w, name, data, size, 0);
}

void state_put_u64(struct state_writer *w, const char *name, uint64_t value)
{
    state_put(w, name, &value, sizeof value);
}

void state_end(struct state_writer *w)
{
    if (w->error || w->section == SIZE_MAX)
        return;
    uint8_t *header = w->data + w->section;
    size_t body = w->size - w->section - SECTION_HEADER - load_le16(header + 2);
    if (body > UINT32_MAX)
        w->error = -E2BIG;
    else
        store_le32(header + 4, (uint32_t)body);
    w->section = SIZE_MAX;
}

int state_writer_result(const struct state_writer *w)
{
    return w->error;
}

struct field {
    uint8_t flags;
    const char *name;
    size_t name_length;
    const uint8_t *data;
    size_t size;
};

/* The field at *offset of the body; false at the end or where it does not fit (*corrupt then). */
static bool next_field(const uint8_t *body, size_t size, size_t *offset, struct field *out,
                       bool *corrupt)
{
    if (*offset == size)
        return false;
    *corrupt = true;
    if (!range_fits(*offset, FIELD_HEADER, size))
        return false;
    const uint8_t *header = body + *offset;
    out->flags = header[0];
    out->name_length = header[1];
    out->size = load_le32(header + 2);
    size_t at = *offset + FIELD_HEADER;
    if (out->name_length > STATE_NAME_MAX || out->size > STATE_DATA_MAX ||
        !range_fits(at, out->name_length + out->size, size))
        return false;
    out->name = (const char *)body + at;
    out->data = body + at + out->name_length;
    *offset = at + out->name_length + out->size;
    *corrupt = false;
    return true;
}

static bool body_is_sound(const uint8_t *body, size_t size)
{
    size_t offset = 0, count = 0;
    struct field field;
    bool corrupt = false;
    while (next_field(body, size, &offset, &field, &corrupt))
        count++;
    return !corrupt && count <= STATE_FIELDS_MAX;
}

int state_next_section(const void *data, size_t size, size_t *offset, struct state_reader *r)
{
    const uint8_t *bytes = data;
    if (*offset == size)
        return 0;
    if (!range_fits(*offset, SECTION_HEADER, size))
        return -EINVAL;
    const uint8_t *header = bytes + *offset;
    size_t path_length = load_le16(header + 2), body_length = load_le32(header + 4);
    size_t at = *offset + SECTION_HEADER;
    if (header[0] != 'P' || header[1] != 'S' || path_length > STATE_PATH_MAX ||
        !range_fits(at, path_length + body_length, size))
        return -EINVAL;
    *r = (struct state_reader) {.body = bytes + at + path_length, .size = body_length};
    memcpy(r->path, bytes + at, path_length);
    if (!body_is_sound(r->body, r->size))
        return -EINVAL;
    *offset = at + path_length + body_length;
    return 1;
}

static bool find_field(struct state_reader *r, const char *name, struct field *out)
{
    size_t offset = 0, length = strlen(name);
    bool corrupt = false;
    for (size_t i = 0; next_field(r->body, r->size, &offset, out, &corrupt); i++) {
        if (out->name_length == length && memcmp(out->name, name, length) == 0) {
            r->asked[i / 64] |= BIT(i % 64);
            return true;
        }
    }
    return false;
}

bool state_has(struct state_reader *r, const char *name)
{
    struct field field;
    return find_field(r, name, &field);
}

static void remember_error(struct state_reader *r, int error, const char *name, size_t length)
{
    if (r->error)
        return;
    r->error = error;
    memcpy(r->bad_field, name, MIN(length, (size_t)STATE_NAME_MAX));
}

bool state_get(struct state_reader *r, const char *name, void *to, size_t size)
{
    struct field field;
    if (!find_field(r, name, &field))
        return false;
    if (field.size != size) {
        remember_error(r, -EINVAL, field.name, field.name_length);
        return false;
    }
    memcpy(to, field.data, size);
    return true;
}

bool state_get_u64(struct state_reader *r, const char *name, uint64_t *to)
{
    return state_get(r, name, to, sizeof *to);
}

const void *state_get_bytes(struct state_reader *r, const char *name, size_t *size)
{
    struct field field;
    if (!find_field(r, name, &field))
        return NULL;
    *size = field.size;
    return field.data;
}

int state_reader_end(struct state_reader *r, struct err *err)
{
    if (r->error)
        return err_set(err, -r->error, "saved state: %s: field %s has the wrong size", r->path,
                       r->bad_field);
    size_t offset = 0;
    struct field field;
    bool corrupt = false;
    for (size_t i = 0; next_field(r->body, r->size, &offset, &field, &corrupt); i++)
        if (field.flags & FIELD_REQUIRED && !(r->asked[i / 64] >> (i % 64) & 1))
            return err_set(err, ENOTSUP, "saved state: %s: field %.*s is unknown to this parat",
                           r->path, (int)field.name_length, field.name);
    return 0;
}
