/*
 * Address kinds. A guest-physical address is a type of its own, so that it cannot be mixed up with
 * a linear address (plain uint64_t, called `la`), an offset or a host pointer.
 */
#ifndef PARAT_BASE_ADDR_H
#define PARAT_BASE_ADDR_H

#include <stdbool.h>
#include <stdint.h>

typedef struct {
    uint64_t v;
} gpa_t;

static inline gpa_t gpa(uint64_t v)
{
    return (gpa_t) {v};
}

static inline gpa_t gpa_add(gpa_t a, uint64_t offset)
{
    return (gpa_t) {a.v + offset};
}

#define PAGE_SHIFT 12
#define PAGE_SIZE  4096ull
#define PAGE_MASK  (~(PAGE_SIZE - 1))

#endif
