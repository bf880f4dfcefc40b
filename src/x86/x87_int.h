/*
 * What the x87, MMX and XSAVE files share: bits of the status and control words, and how the
 * register stack of struct x86_fpu is turned. SDM vol. 1 section 8.1.
 */
#ifndef PARAT_X86_X87_INT_H
#define PARAT_X86_X87_INT_H

#include "x86/cpu.h"
#include "x86/decode_int.h"

#define FSW_EXCEPTIONS 0x003f
#define FSW_IE         0x0001
#define FSW_DE         0x0002
#define FSW_ZE         0x0004
#define FSW_OE         0x0008
#define FSW_UE         0x0010
#define FSW_PE         0x0020
#define FSW_SF         0x0040
#define FSW_ES         0x0080
#define FSW_C0         0x0100
#define FSW_C1         0x0200
#define FSW_C2         0x0400
#define FSW_TOP        0x3800
#define FSW_TOP_SHIFT  11
#define FSW_C3         0x4000
#define FSW_B          0x8000

#define FCW_MASKS   0x003f
#define FCW_DEFAULT 0x037f
#define FCW_FIXED   0x0040 /* always reads as one */
#define FCW_VALID   0x1f7f

/* Sets ES and B of FSW from the flags and the masks. */
void x86_fpu_update_es(struct x86_fpu *fpu);
/* Turns the stack: another register is ST(0), each physical register keeps what it holds. */
void x86_fpu_set_top(struct x86_fpu *fpu, unsigned top);
/* As FNINIT leaves it. */
void x86_fpu_init_x87(struct x86_fpu *fpu);

/*
 * #MF for an unmasked exception of an earlier instruction. With CR0.NE clear a PC would raise IRQ
 * 13; there the exception is ignored, as if IGNNE# was asserted.
 */
static inline void x86_check_pending(struct x86_cpu *cpu)
{
    if (unlikely(cpu->s.fpu.fsw & FSW_ES) && cpu->s.cr0 & X86_CR0_NE)
        x86_raise(cpu, X86_MF);
}

static inline void x86_check_x87(struct x86_cpu *cpu)
{
    if (unlikely(cpu->s.cr0 & (X86_CR0_EM | X86_CR0_TS)))
        x86_raise(cpu, X86_NM);
}

static inline uint32_t x86_host_mxcsr(void)
{
    uint32_t mxcsr;

    __asm__ volatile("stmxcsr %0" : "=m"(mxcsr));
    return mxcsr;
}

/* x87_env.c: control instructions and environments. Takes those that x87.c has no stub for. */
bool x86_x87_bind_control(const struct x86_decode *d, struct x86_insn *out);

#endif
