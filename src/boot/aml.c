/* A small writer of ACPI Machine Language (aml.h). */
#include "boot/aml.h"

#include <stdlib.h>
#include <string.h>

/* Opcodes, ACPI 6.4 table 20.2. */
enum {
    OP_ZERO = 0x00,
    OP_ONE = 0x01,
    OP_NAME = 0x08,
    OP_BYTE = 0x0a,
    OP_WORD = 0x0b,
    OP_DWORD = 0x0c,
    OP_STRING = 0x0d,
    OP_QWORD = 0x0e,
    OP_SCOPE = 0x10,
    OP_BUFFER = 0x11,
    OP_PACKAGE = 0x12,
    OP_DUAL_NAME = 0x2e,
    OP_MULTI_NAME = 0x2f,
    OP_EXT = 0x5b,
    OP_EXT_DEVICE = 0x82,
};

#define LENGTH_BYTES 3 /* of a package length as we write it: up to 1 MiB */

void aml_init(struct aml *aml)
{
    memset(aml, 0, sizeof *aml);
}

void aml_free(struct aml *aml)
{
    free(aml->data);
    aml_init(aml);
}

void aml_bytes(struct aml *aml, const void *data, size_t size)
{
    if (aml->size + size > aml->capacity) {
        size_t capacity = MAX(aml->capacity * 2, aml->size + size + 1024);
        uint8_t *grown = realloc(aml->data, capacity);
        if (!grown) {
            aml->failed = true;
            return;
        }
        aml->data = grown;
        aml->capacity = capacity;
    }
    memcpy(aml->data + aml->size, data, size);
    aml->size += size;
}

void aml_byte(struct aml *aml, uint8_t value)
{
    aml_bytes(aml, &value, 1);
}

void aml_integer(struct aml *aml, uint64_t value)
{
    if (value <= 1) {
        aml_byte(aml, value ? OP_ONE : OP_ZERO);
    } else if (value <= 0xff) {
        aml_byte(aml, OP_BYTE);
        aml_bytes(aml, &value, 1);
    } else if (value <= 0xffff) {
        aml_byte(aml, OP_WORD);
        aml_bytes(aml, &value, 2);
    } else if (value <= 0xffffffff) {
        aml_byte(aml, OP_DWORD);
        aml_bytes(aml, &value, 4);
    } else {
        aml_byte(aml, OP_QWORD);
        aml_bytes(aml, &value, 8);
    }
}

void aml_string(struct aml *aml, const char *text)
{
    aml_byte(aml, OP_STRING);
    aml_bytes(aml, text, strlen(text) + 1);
}

/* Three letters of 5 bits and four hexadecimal digits, most significant byte first. */
void aml_eisa_id(struct aml *aml, const char *id)
{
    uint32_t product = (uint32_t)strtoul(id + 3, NULL, 16);
    uint32_t packed = (uint32_t)(id[0] - '@') << 26 | (uint32_t)(id[1] - '@') << 21 |
                      (uint32_t)(id[2] - '@') << 16 | product;
    uint32_t swapped = __builtin_bswap32(packed);
    aml_byte(aml, OP_DWORD);
    aml_bytes(aml, &swapped, 4);
}

void aml_path(struct aml *aml, const char *path)
{
    if (*path == '\\')
        aml_byte(aml, (uint8_t)*path++);
    unsigned segments = 1;
    for (const char *c = path; *c; c++)
        segments += *c == '.';
    if (segments == 2) {
        aml_byte(aml, OP_DUAL_NAME);
    } else if (segments > 2) {
        aml_byte(aml, OP_MULTI_NAME);
        aml_byte(aml, (uint8_t)segments);
    }
    while (segments-- > 0) {
        size_t length = strcspn(path, ".");
        aml_bytes(aml, path, MIN(length, 4));
        for (size_t i = length; i < 4; i++)
            aml_byte(aml, '_');
        path += length + (path[length] == '.');
    }
}

void aml_name(struct aml *aml, const char *path)
{
    aml_byte(aml, OP_NAME);
    aml_path(aml, path);
}

void aml_name_integer(struct aml *aml, const char *path, uint64_t value)
{
    aml_name(aml, path);
    aml_integer(aml, value);
}

void aml_name_string(struct aml *aml, const char *path, const char *text)
{
    aml_name(aml, path);
    aml_string(aml, text);
}

void aml_name_eisa_id(struct aml *aml, const char *path, const char *id)
{
    aml_name(aml, path);
    aml_eisa_id(aml, id);
}

/* --- blocks --- */

static void open_block(struct aml *aml)
{
    static const uint8_t room[LENGTH_BYTES] = {0};
    if (aml->depth == AML_DEPTH_MAX) {
        aml->failed = true;
        return;
    }
    aml->open[aml->depth++] = aml->size;
    aml_bytes(aml, room, sizeof room);
}

void aml_begin_scope(struct aml *aml, const char *path)
{
    aml_byte(aml, OP_SCOPE);
    open_block(aml);
    aml_path(aml, path);
}

void aml_begin_device(struct aml *aml, const char *name)
{
    aml_byte(aml, OP_EXT);
    aml_byte(aml, OP_EXT_DEVICE);
    open_block(aml);
    aml_path(aml, name);
}

void aml_begin_package(struct aml *aml, uint8_t element_count)
{
    aml_byte(aml, OP_PACKAGE);
    open_block(aml);
    aml_byte(aml, element_count);
}

void aml_end(struct aml *aml)
{
    if (aml->depth == 0 || aml->failed) {
        aml->failed = true;
        return;
    }
    size_t at = aml->open[--aml->depth], length = aml->size - at;
    aml->data[at] = (uint8_t)(0x80 | (length & 0xf)); /* two more bytes follow */
    aml->data[at + 1] = (uint8_t)(length >> 4);
    aml->data[at + 2] = (uint8_t)(length >> 12);
    if (length >> 20)
        aml->failed = true;
}

/* --- resources --- */

void aml_begin_crs(struct aml *aml)
{
    static const uint8_t word_size[3] = {OP_WORD};
    aml_name(aml, "_CRS");
    aml_byte(aml, OP_BUFFER);
    open_block(aml);
    aml_bytes(aml, word_size, sizeof word_size); /* the size is filled in at the end */
}

void aml_end_resources(struct aml *aml)
{
    aml_byte(aml, 0x79); /* end tag */
    aml_byte(aml, 0);    /* no checksum */
    if (aml->failed || aml->depth == 0)
        return;
    size_t size_at = aml->open[aml->depth - 1] + LENGTH_BYTES + 1;
    store_le16(aml->data + size_at, (uint16_t)(aml->size - size_at - 2));
    aml_end(aml);
}

void aml_resource_io(struct aml *aml, uint16_t base, uint8_t length)
{
    uint8_t d[8] = {0x47, 0x01}; /* 16-bit decode */
    store_le16(d + 2, base);
    store_le16(d + 4, base);
    d[6] = 1; /* alignment */
    d[7] = length;
    aml_bytes(aml, d, sizeof d);
}

void aml_resource_irq(struct aml *aml, unsigned line)
{
    uint8_t d[3] = {0x22};
    store_le16(d + 1, (uint16_t)(1u << line));
    aml_bytes(aml, d, sizeof d);
}

void aml_resource_memory32(struct aml *aml, uint32_t base, uint32_t length)
{
    uint8_t d[12] = {0x86, 9, 0, 1}; /* writable */
    store_le32(d + 4, base);
    store_le32(d + 8, length);
    aml_bytes(aml, d, sizeof d);
}

#define ADDRESS_MEMORY 0
#define ADDRESS_IO     1
#define ADDRESS_BUS    2
#define FIXED_RANGE    0x0c /* minimum and maximum are fixed; positive decode */

static void word_window(struct aml *aml, uint8_t type, uint8_t type_flags, uint16_t first,
                        uint16_t last)
{
    uint8_t d[16] = {0x88, 13, 0, type, FIXED_RANGE, type_flags};
    store_le16(d + 8, first);
    store_le16(d + 10, last);
    store_le16(d + 14, (uint16_t)(last - first + 1));
    aml_bytes(aml, d, sizeof d);
}

void aml_resource_bus_window(struct aml *aml, uint16_t first, uint16_t last)
{
    word_window(aml, ADDRESS_BUS, 0, first, last);
}

void aml_resource_io_window(struct aml *aml, uint16_t first, uint16_t last)
{
    word_window(aml, ADDRESS_IO, 0x03, first, last); /* the entire range */
}

void aml_resource_memory32_window(struct aml *aml, uint32_t first, uint32_t last)
{
    uint8_t d[26] = {0x87, 23, 0, ADDRESS_MEMORY, FIXED_RANGE, 0x01}; /* writable, not cached */
    store_le32(d + 10, first);
    store_le32(d + 14, last);
    store_le32(d + 22, last - first + 1);
    aml_bytes(aml, d, sizeof d);
}

void aml_resource_memory64_window(struct aml *aml, uint64_t first, uint64_t last)
{
    uint8_t d[46] = {0x8a, 43, 0, ADDRESS_MEMORY, FIXED_RANGE, 0x01};
    store_le64(d + 14, first);
    store_le64(d + 22, last);
    store_le64(d + 38, last - first + 1);
    aml_bytes(aml, d, sizeof d);
}
