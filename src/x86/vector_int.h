/*
 * What the vector files share: checks that come before each instruction, operand access, handlers.
 */
#ifndef PARAT_X86_VECTOR_INT_H
#define PARAT_X86_VECTOR_INT_H

#include "x86/decode_int.h"
#include "x86/mem.h"
#include "x86/stub_int.h"
#include "x86/x87_int.h"

#define MXCSR_FLAGS   0x003fu /* sticky exception flags */
#define MXCSR_IE      0x0001u
#define MXCSR_DE      0x0002u
#define MXCSR_ZE      0x0004u
#define MXCSR_UE      0x0010u
#define MXCSR_MASKS   0x1f80u /* the same order as the flags, 7 bits up */
#define MXCSR_FTZ     0x8000u
#define MXCSR_DEFAULT 0x1f80u
#define MXCSR_VALID   0xffffu /* MXCSR_MASK of FXSAVE: DAZ is there */

/* The slow ends of the checks: raise what is due, or return when nothing is. vector_exec.c */
void x86_sse_unavailable(struct x86_cpu *cpu);
void x86_avx_unavailable(struct x86_cpu *cpu);

/* SDM vol. 3 section 2.5 and vol. 2 section 2.5: #UD goes before #NM. */
static inline void x86_check_sse(struct x86_cpu *cpu)
{
    if (unlikely((cpu->s.cr0 & (X86_CR0_EM | X86_CR0_TS)) || !(cpu->s.cr4 & X86_CR4_OSFXSR)))
        x86_sse_unavailable(cpu);
}

static inline void x86_check_avx(struct x86_cpu *cpu)
{
    const uint64_t both = X86_XCR0_SSE | X86_XCR0_AVX;

    if (unlikely((cpu->s.cr0 & X86_CR0_TS) || !(cpu->s.cr4 & X86_CR4_OSXSAVE) ||
                 (cpu->s.xcr0 & both) != both))
        x86_avx_unavailable(cpu);
}

/* #UD, #NM and #MF of an MMX instruction; it changes nothing. */
void x86_check_mmx(struct x86_cpu *cpu);
/*
 * What each MMX instruction but EMMS does: TOP 0, all tags valid. After it ST(i) is MMi. SDM vol. 3
 * section 13.2 "Emulation of the MMX instruction set".
 */
void x86_enter_mmx(struct x86_cpu *cpu);
/* MMi was written: its exponent becomes all ones. `offset` is the register's. */
void x86_mmx_written(struct x86_cpu *cpu, uint16_t offset);

static inline void *vec_operand(struct x86_cpu *cpu, uint64_t offset)
{
    return (char *)cpu + offset;
}

/* Offset into struct x86_cpu of an operand's register: vector, MMX or general. */
uint16_t x86_vector_register_offset(ZydisRegister reg);

/* Host address of bytes that can be read directly, or NULL. */
static inline const void *vec_read_pointer(struct x86_cpu *cpu, uint64_t la, unsigned size)
{
    const struct x86_tlb_entry *e = x86_tlb_slot(cpu, la, (enum x86_mmu)cpu->mmu);

    if (likely(e->read == (la & PAGE_MASK) && (la & ~PAGE_MASK) <= PAGE_SIZE - size))
        return (const void *)(la + e->addend);
    return NULL;
}

static inline void *vec_write_pointer(struct x86_cpu *cpu, uint64_t la, unsigned size)
{
    const struct x86_tlb_entry *e = x86_tlb_slot(cpu, la, (enum x86_mmu)cpu->mmu);

    if (likely(e->write == (la & PAGE_MASK) && (la & ~PAGE_MASK) <= PAGE_SIZE - size))
        return (void *)(la + e->addend);
    return NULL;
}

/* vector_exec.c: instructions that run through a stub (insn->aux). */
x86_handler x86_vector_run_sse_registers;
x86_handler x86_vector_run_sse_load;
x86_handler x86_vector_run_avx_registers;
x86_handler x86_vector_run_avx_load;
x86_handler x86_vector_run_any;

/* Binders */
bool x86_vector_bind_stub(const struct x86_decode *d, struct x86_insn *out);   /* vector_bind.c */
bool x86_vector_bind_move(const struct x86_decode *d, struct x86_insn *out);   /* vector_move.c */
bool x86_vector_bind_idiom(const struct x86_decode *d, struct x86_insn *out);  /* vector_move.c */
bool x86_vector_bind_masked(const struct x86_decode *d, struct x86_insn *out); /* vector_mask.c */
bool x86_vector_bind_gather(const struct x86_decode *d, struct x86_insn *out); /* vector_mask.c */
bool x86_vector_bind_state(const struct x86_decode *d, struct x86_insn *out);  /* vector_mask.c */

#endif
