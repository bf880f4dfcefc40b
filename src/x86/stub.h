/*
 * Executable memory for stubs: short pieces of host code that run one vector or x87 instruction on
 * the host's unit with the guest's registers. x86/ maps nothing itself: the caller provides the
 * memory, mapped twice: executable (never writable) and writable (never executable).
 */
#ifndef PARAT_X86_STUB_H
#define PARAT_X86_STUB_H

#include <stddef.h>
#include <stdint.h>

#include "base/bits.h"

struct x86_stubs;

/*
 * Enough for every form there is, each immediate counted (tests/unit/test_vector.c computes the
 * bound): so the guest cannot exhaust it. Only what is used needs to be backed by memory.
 */
#define X86_STUBS_SIZE (4u << 20)

struct x86_stub_memory {
    uint8_t *write;   /* where bytes are stored */
    uint8_t *execute; /* the same memory, where they run */
    size_t size;
};

/* The memory stays the caller's and outlives the stubs. Thread-safe afterwards (its own lock). */
int x86_stubs_create(struct x86_stubs **out, const struct x86_stub_memory *memory) MUST_USE;
void x86_stubs_destroy(struct x86_stubs *stubs);
size_t x86_stubs_used(const struct x86_stubs *stubs); /* bytes */

#endif
