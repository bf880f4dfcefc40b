// Memory streaming: the C library's memcpy, memset and strlen, as it chooses them for the CPU, and
// the REP string instructions themselves.
#include <stdlib.h>
#include <string.h>
#include "work.h"

#define LARGE (4U << 20)

struct areas {
    uint8_t *from, *to;
};

// Both areas are there before the time runs: every page is written.
static void *areas_prepare(void)
{
    struct areas *areas = malloc(sizeof(*areas));
    if (!areas) {
        return NULL;
    }
    areas->from = aligned_alloc(4096, LARGE);
    areas->to = aligned_alloc(4096, LARGE);
    if (!areas->from || !areas->to) {
        return NULL;
    }
    work_text((char *)areas->from, LARGE);
    memset(areas->to, 1, LARGE);
    return areas;
}

// The compiler must not know what is called, or it would do the work itself or leave it out.
static void *(*const volatile call_memcpy)(void *, const void *, size_t) = memcpy;
static void *(*const volatile call_memset)(void *, int, size_t) = memset;
static size_t (*const volatile call_strlen)(const char *) = strlen;

static uint64_t memcpy_64_run(void *data, uint64_t count)
{
    struct areas *areas = data;
    for (uint64_t i = 0; i < count; i++) {
        call_memcpy(areas->to + (i & 63) * 64, areas->from + (i & 31) * 72, 64);
    }
    return work_sum(WORK_SUM, areas->to, 4096);
}

static uint64_t memcpy_16k_run(void *data, uint64_t count)
{
    struct areas *areas = data;
    for (uint64_t i = 0; i < count; i++) {
        call_memcpy(areas->to, areas->from + (i & 7) * 64, 16384);
    }
    return work_sum(WORK_SUM, areas->to, 16384);
}

static uint64_t memcpy_4m_run(void *data, uint64_t count)
{
    struct areas *areas = data;
    for (uint64_t i = 0; i < count; i++) {
        call_memcpy(areas->to, areas->from, LARGE);
    }
    return work_sum(WORK_SUM, areas->to, 16384);
}

static uint64_t memset_4m_run(void *data, uint64_t count)
{
    struct areas *areas = data;
    for (uint64_t i = 0; i < count; i++) {
        call_memset(areas->to, (int)i, LARGE);
    }
    return work_sum(WORK_SUM, areas->to, 16384);
}

static uint64_t rep_movs_run(void *data, uint64_t count)
{
    struct areas *areas = data;
    for (uint64_t i = 0; i < count; i++) {
        void *to = areas->to;
        const void *from = areas->from + (i & 7) * 64;
        size_t size = 16384;
        __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(size) : : "memory");
    }
    return work_sum(WORK_SUM, areas->to, 16384);
}

static uint64_t rep_stos_run(void *data, uint64_t count)
{
    struct areas *areas = data;
    for (uint64_t i = 0; i < count; i++) {
        void *to = areas->to;
        size_t size = 16384;
        __asm__ volatile("rep stosb" : "+D"(to), "+c"(size) : "a"(i) : "memory");
    }
    return work_sum(WORK_SUM, areas->to, 16384);
}

static void *string_prepare(void)
{
    char *string = aligned_alloc(64, 1024);
    if (string) {
        memset(string, 'x', 1024);
        string[1023] = '\0';
    }
    return string;
}

static uint64_t strlen_run(void *data, uint64_t count)
{
    uint64_t sum = 0;
    for (uint64_t i = 0; i < count; i++) {
        sum += call_strlen((const char *)data + (i & 31));
    }
    return sum;
}

const struct work_row work_stream_rows[] = {
    {"stream", "memcpy-64", "call", 10000000, areas_prepare, memcpy_64_run},
    {"stream", "memcpy-16k", "call", 20000, areas_prepare, memcpy_16k_run},
    {"stream", "memcpy-4m", "call", 200, areas_prepare, memcpy_4m_run},
    {"stream", "memset-4m", "call", 60, areas_prepare, memset_4m_run},
    {"stream", "rep-movs", "16KiB", 20000, areas_prepare, rep_movs_run},
    {"stream", "rep-stos", "16KiB", 20000, areas_prepare, rep_stos_run},
    {"stream", "strlen", "1KiB", 1500000, string_prepare, strlen_run},
    {NULL, NULL, NULL, 0, NULL, NULL},
};
