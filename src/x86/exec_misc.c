/*
 * No-operations and hints, fences, the instructions on single flags, and those that are undefined
 * for ever. vCPU thread. SDM vol. 1 sections 7.3.10 and 7.3.14.
 */
#include "x86/exec_int.h"

#define BIND_ONE(name)                                                                             \
    static bool bind_##name(const struct x86_decode *d, struct x86_insn *out)                      \
    {                                                                                              \
        out->run = name;                                                                           \
        return true;                                                                               \
    }

static void nop(struct x86_cpu *cpu, const struct x86_insn *insn)
{
}

/* LFENCE and SFENCE order no more than the host's own order of loads and stores, which holds. */
static void mfence(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    __asm__ volatile("mfence" : : : "memory");
}

static void clc(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    cpu->s.rflags &= ~X86_CF;
}

static void stc(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    cpu->s.rflags |= X86_CF;
}

static void cmc(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    cpu->s.rflags ^= X86_CF;
}

static void cld(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    cpu->s.rflags &= ~X86_DF;
}

static void std(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    cpu->s.rflags |= X86_DF;
}

#define AH_FLAGS (X86_SF | X86_ZF | X86_AF | X86_PF | X86_CF)

static void lahf(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    reg_write(cpu, GPR_OFFSET(X86_RAX) + 1, 1, (cpu->s.rflags & AH_FLAGS) | X86_FIXED);
}

static void sahf(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    uint64_t ah = cpu->s.gpr[X86_RAX] >> 8;
    cpu->s.rflags = (cpu->s.rflags & ~AH_FLAGS) | (ah & AH_FLAGS);
}

/* SALC, never documented by Intel: AL becomes all copies of CF. */
static void salc(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    gpr_write(cpu, X86_RAX, 1, cpu->s.rflags & X86_CF ? 0xff : 0);
}

/* CLAC and STAC are system.c's. */

/* 0F 0D with a register, a hint for Intel, does not exist for AMD. */
static bool bind_nop(const struct x86_decode *d, struct x86_insn *out)
{
    out->run = nop;
    return d->z->opcode_map != ZYDIS_OPCODE_MAP_0F || d->z->opcode != 0x0d ||
           d->z->raw.modrm.mod != 3;
}

BIND_ONE(mfence);
BIND_ONE(clc);
BIND_ONE(stc);
BIND_ONE(cmc);
BIND_ONE(cld);
BIND_ONE(std);
BIND_ONE(salc);

/* Counted: a CPU that spins may be waiting for one that has no host CPU. */
static void pause_hint(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    if (likely(++cpu->pauses < X86_PAUSES_TO_YIELD))
        return;
    cpu->pauses = 0;
    if (cpu->ops->yield)
        cpu->ops->yield(cpu->context);
}

static bool bind_pause(const struct x86_decode *d, struct x86_insn *out)
{
    out->run = pause_hint;
    return true;
}

/* In 64-bit mode these are a feature of their own. */
static bool lahf_exists(const struct x86_decode *d)
{
    return d->mode->code_size != 8 || x86_has(d->features, X86_FEATURE_LAHF);
}

static bool bind_lahf(const struct x86_decode *d, struct x86_insn *out)
{
    out->run = lahf;
    return lahf_exists(d);
}

static bool bind_sahf(const struct x86_decode *d, struct x86_insn *out)
{
    out->run = sahf;
    return lahf_exists(d);
}

/* UD0, UD1 and UD2 need no entry: what no table takes is #UD. */
const struct x86_bind x86_bind_misc[] = {
    {ZYDIS_MNEMONIC_NOP, bind_nop},
    {ZYDIS_MNEMONIC_PAUSE, bind_pause},
    {ZYDIS_MNEMONIC_LFENCE, bind_nop},
    {ZYDIS_MNEMONIC_SFENCE, bind_nop},
    {ZYDIS_MNEMONIC_MFENCE, bind_mfence},
    {ZYDIS_MNEMONIC_PREFETCH, bind_nop},
    {ZYDIS_MNEMONIC_PREFETCHW, bind_nop},
    {ZYDIS_MNEMONIC_PREFETCHWT1, bind_nop},
    {ZYDIS_MNEMONIC_PREFETCHNTA, bind_nop},
    {ZYDIS_MNEMONIC_PREFETCHT0, bind_nop},
    {ZYDIS_MNEMONIC_PREFETCHT1, bind_nop},
    {ZYDIS_MNEMONIC_PREFETCHT2, bind_nop},
    {ZYDIS_MNEMONIC_CLC, bind_clc},
    {ZYDIS_MNEMONIC_STC, bind_stc},
    {ZYDIS_MNEMONIC_CMC, bind_cmc},
    {ZYDIS_MNEMONIC_CLD, bind_cld},
    {ZYDIS_MNEMONIC_STD, bind_std},
    {ZYDIS_MNEMONIC_LAHF, bind_lahf},
    {ZYDIS_MNEMONIC_SAHF, bind_sahf},
    {ZYDIS_MNEMONIC_SALC, bind_salc},
    X86_BIND_END,
};
