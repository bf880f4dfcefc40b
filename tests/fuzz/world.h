/*
 * A small guest for the fuzz targets that run code: RAM, page tables, handlers of all exceptions,
 * devices that answer the same each time, and engine soft's VM and vCPU around it. Two of them that
 * are filled from the same input can be compared.
 *
 * The input is a header (struct world_header) and code. Faults do not end a run: the handler goes
 * on at the next 16 bytes, perhaps after a change of the page tables, and halts after 8 of them.
 */
#ifndef PARAT_TESTS_FUZZ_WORLD_H
#define PARAT_TESTS_FUZZ_WORLD_H

#include "fuzz.h"

#include "engine/soft/soft.h"
#include "engine/soft/soft_int.h"

#define WORLD_RAM       0x20000u
#define WORLD_TABLES    0x1000u /* four page tables */
#define WORLD_GDT       0x5000u
#define WORLD_TSS       0x5800u
#define WORLD_IDT       0x6000u
#define WORLD_HANDLERS  0x7000u
#define WORLD_VARIABLES 0x8000u
#define WORLD_KSTACK    0xa000u   /* top */
#define WORLD_PT        0x1ff000u /* where the handlers see the last page table */

/* Where the code under test and its data are seen; below, or the same with WORLD_HIGH. */
#define WORLD_HIGH  0xffff800000000000u
#define WORLD_CODE  0x10000u /* three pages */
#define WORLD_DATA  0x20000u
#define WORLD_STACK 0x30000u
#define CODE_SIZE   0x3000u

enum world_flag {
    WORLD_KERNEL = 1 << 0,
    WORLD_STEPWISE = 1 << 1,  /* compare behind each unit, not at the end */
    WORLD_HOT_SHIFT = 2,      /* two bits: how often code is interpreted first */
    WORLD_HIGH_HALF = 1 << 4, /* code and data in the upper half */
    WORLD_SMAP = 1 << 5,      /* and SMEP */
    WORLD_CODE_READONLY = 1 << 6,
    WORLD_ALIGNED = 1 << 7,  /* alignment checks */
    WORLD_NO_FPU = 1 << 8,   /* CR0.TS */
    WORLD_UNMASKED = 1 << 9, /* floating point exceptions */
    WORLD_SMALL = 1 << 10,   /* little code memory */
    WORLD_OFFSET_SHIFT = 11, /* three bits: where in its page the code begins */
};

#define SCRIPT_MAX 8

struct world_header {
    uint16_t flags; /* enum world_flag */
    uint16_t rflags;
    uint8_t gpr[16];            /* what kind of value, see gpr_value */
    uint8_t script[SCRIPT_MAX]; /* what the n-th fault changes of the page tables, see world.c */
    uint64_t seed;              /* of the vector registers and the random values */
};

struct world {
    uint8_t *ram; /* with guard pages */
    struct engine_vm *vm;
    struct engine_vcpu *vcpu;
    struct x86_ops ops;
    uint64_t accesses, log; /* to devices: how many, and a hash of them */
    uint64_t cr8;
    bool code_in_devices; /* the guest may run some: how often they are read is not compared */
};

/* cache_size: of the code memory. */
void world_create(struct world *w, enum engine_code_mode mode, uint64_t cache_size);
void world_read_header(struct fuzz_input *in, struct world_header *header);
/* Everything as it was, then filled from the input. */
void world_reset(struct world *w, const struct world_header *header, const struct fuzz_input *code);

static inline bool world_ended(const struct world *w)
{
    return w->vcpu->cpu.s.mp_state != X86_MP_RUNNABLE;
}

/* Executes one instruction as the manual says: fetched, decoded and interpreted anew. */
void world_step(struct world *w);
/* Runs as the engine does, until it looks at its attention word. */
void world_slice(struct world *w, unsigned attention);
/* Compares; NULL or what differs. memory: RAM too. */
const char *world_difference(const struct world *a, const struct world *b, bool memory);
/* Registers, on stderr. */
void world_print(const struct world *w, const char *name);
/* The instruction at RIP, on stderr. */
void world_print_insn(const struct world *w);

#endif
