/*
 * Between the makers of stubs (vector_bind.c, x87.c) and their store (stub.c).
 *
 * A stub runs one *normalised* instruction: registers re-encoded to fixed host registers, memory
 * operand to [rsi]. Its arguments are pointers to the guest's operands, so that the number of
 * different stubs is bounded by the number of instruction forms, not by what guests write.
 */
#ifndef PARAT_X86_STUB_INT_H
#define PARAT_X86_STUB_INT_H

#include "x86/stub.h"

struct x86_cpu;

/*
 * reg, rm, v, is4: where the operands of ModRM.reg, ModRM.rm (register or memory), VEX.vvvv and
 * the register in an immediate are. Returns RFLAGS after the instruction when it writes them. A
 * System V function: all vector registers are clobbered, upper halves zero, x87 state empty.
 */
typedef uint64_t x86_stub_code(void *reg, void *rm, void *v, void *is4, struct x86_cpu *cpu);

enum x86_stub_flags {
    X86_STUB_VEX = 1 << 0,       /* needs XCR0.AVX; else a legacy SSE instruction */
    X86_STUB_MMX = 1 << 1,       /* enters the MMX state */
    X86_STUB_LOAD = 1 << 2,      /* reads a memory operand of mem_size bytes */
    X86_STUB_STORE = 1 << 3,     /* writes one */
    X86_STUB_ALIGN = 1 << 4,     /* ... which must be aligned to its size */
    X86_STUB_MXCSR = 1 << 5,     /* floating point: rounding and exceptions by MXCSR */
    X86_STUB_FLAGS = 1 << 6,     /* writes the status flags */
    X86_STUB_DEST_RM = 1 << 7,   /* the destination is ModRM.rm, not ModRM.reg */
    X86_STUB_DEST_MMX = 1 << 8,  /* the destination is an MMX register */
    X86_STUB_TINY32 = 1 << 9,    /* arithmetic with single precision results: can underflow */
    X86_STUB_TINY64 = 1 << 10,   /* double */
    X86_STUB_X87_LOAD = 1 << 11, /* FLD */
};

struct x86_stub {
    x86_stub_code *run;
    uint16_t flags;     /* enum x86_stub_flags */
    uint8_t mem_size;   /* bytes; 0: no memory operand */
    uint8_t dest_size;  /* bytes that the stub stores to a register destination */
    uint8_t tiny_count; /* how many elements TINY32/TINY64 is about */
};

/*
 * The stub with this code and these properties, made if it is not there yet; it lives as long as
 * stubs. `like->run` is ignored. NULL when memory is exhausted (X86_STUBS_SIZE never is) or stubs
 * is NULL.
 */
const struct x86_stub *x86_stub_get(struct x86_stubs *stubs, const struct x86_stub *like,
                                    const uint8_t *code, size_t size);

#endif
