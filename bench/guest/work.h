// The benchmark program: fixed pieces of work ("rows"), timed. The very same binary runs natively
// and in every guest, so that the times of one row can be compared.
#ifndef PARAT_BENCH_WORK_H
#define PARAT_BENCH_WORK_H

#include <stddef.h>
#include <stdint.h>

struct work_row {
    const char *group; // the goal that the row belongs to: bench/benchlib/goals.py
    const char *name;
    const char *unit; // what the time is divided by
    uint64_t count;   // units of work in one pass: the same wherever the program runs
    // Makes what the work needs, outside the measured time; returns NULL if it cannot. It may be
    // NULL.
    void *(*prepare)(void);
    // Does `count` units and returns a checksum of the results, or WORK_FAILED. Each pass runs in a
    // process of its own and nothing is given back.
    uint64_t (*run)(void *data, uint64_t count);
};

#define WORK_FAILED UINT64_MAX

// The tables, one per file. Each ends with a row without a name.
extern const struct work_row work_integer_rows[];
extern const struct work_row work_library_rows[];
extern const struct work_row work_vector_rows[];
extern const struct work_row work_stream_rows[];
extern const struct work_row work_system_rows[];
extern const struct work_row work_program_rows[];

// work_coremark.c: one round of the CoreMark-like mixture.
void *work_coremark_prepare(void);
uint64_t work_coremark_run(void *data, uint64_t count);

// Pseudo-random numbers (xorshift64*), the same everywhere.
static inline uint64_t work_random(uint64_t *state)
{
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    return *state * 0x2545F4914F6CDD1DU;
}

// FNV-1a over bytes, going on from `sum`; a checksum starts with WORK_SUM.
#define WORK_SUM 0xCBF29CE484222325U
static inline uint64_t work_sum(uint64_t sum, const void *bytes, size_t size)
{
    const uint8_t *byte = bytes;
    for (size_t i = 0; i < size; i++) {
        sum = (sum ^ byte[i]) * 0x100000001B3U;
    }
    return sum;
}

// Fills a buffer with text of made-up words, about as compressible as prose.
void work_text(char *text, size_t size);

#endif
