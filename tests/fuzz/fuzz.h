/*
 * What the fuzz targets share. A target is one file with LLVMFuzzerTestOneInput, linked with
 * libFuzzer (tests/fuzz/meson.build); docs/testing.md says how to run one. The same bytes do the
 * same each time: nothing of an input may be left behind for the next.
 */
#ifndef PARAT_TESTS_FUZZ_H
#define PARAT_TESTS_FUZZ_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bits.h"

/* libFuzzer's; the second is called once before all inputs. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerInitialize(int *argc, char ***argv);

/* Says what was found and crashes, so that libFuzzer keeps the input. */
#define fuzz_fail(...)                                                                             \
    do {                                                                                           \
        fprintf(stderr, "FOUND: " __VA_ARGS__);                                                    \
        fputc('\n', stderr);                                                                       \
        abort();                                                                                   \
    } while (0)

/* The target's own set-up cannot fail, or nothing is fuzzed. */
#define fuzz_must(condition)                                                                       \
    do {                                                                                           \
        if (!(condition))                                                                          \
            fuzz_fail("set-up: %s, line %d: %s", __FILE__, __LINE__, #condition);                  \
    } while (0)

/* The input, eaten from the front; zeros behind its end. */
struct fuzz_input {
    const uint8_t *data;
    size_t left;
};

static inline void fuzz_take(struct fuzz_input *in, void *to, size_t size)
{
    size_t have = MIN(in->left, size);
    memset(to, 0, size);
    if (have)
        memcpy(to, in->data, have);
    in->data += have;
    in->left -= have;
}

static inline uint8_t fuzz_u8(struct fuzz_input *in)
{
    uint8_t value;
    fuzz_take(in, &value, sizeof value);
    return value;
}

static inline uint16_t fuzz_u16(struct fuzz_input *in)
{
    uint16_t value;
    fuzz_take(in, &value, sizeof value);
    return value;
}

static inline uint32_t fuzz_u32(struct fuzz_input *in)
{
    uint32_t value;
    fuzz_take(in, &value, sizeof value);
    return value;
}

static inline uint64_t fuzz_u64(struct fuzz_input *in)
{
    uint64_t value;
    fuzz_take(in, &value, sizeof value);
    return value;
}

/* The next of a row of numbers that look random and are the same each time (splitmix64). */
static inline uint64_t fuzz_mix(uint64_t *seed)
{
    uint64_t z = *seed += 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}

#endif
