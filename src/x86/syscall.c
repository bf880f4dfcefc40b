/*
 * The fast system calls. Runs on the CPU's thread. APM vol. 3 "SYSCALL", "SYSRET", "SYSENTER",
 * "SYSEXIT"; APM vol. 2 section 6.1.
 *
 * As on AMD's CPUs: SYSCALL and SYSRET also exist in legacy and compatibility mode, SYSENTER and
 * SYSEXIT not in long mode, and SYSRET to a non-canonical RCX faults in user mode, at the fetch.
 * Unlike there, SYSRET loads the whole hidden SS, as Intel's do.
 */
#include "x86/exec_int.h"
#include "x86/system_int.h"

#define ATTR_CODE (X86_SEG_P | X86_SEG_S | X86_SEG_CODE | X86_SEG_READABLE | X86_SEG_ACCESSED)
#define ATTR_DATA (X86_SEG_P | X86_SEG_S | X86_SEG_WRITABLE | X86_SEG_ACCESSED)

/* Flat segments; size 8: 64-bit code. */
static void set_flat(struct x86_cpu *cpu, uint16_t cs, uint16_t ss, unsigned cpl, unsigned size)
{
    uint16_t dpl = (uint16_t)(cpl << X86_SEG_DPL_SHIFT);
    bool same_size = size == 8 && cpu->code_size == 8;

    cpu->s.seg[X86_CS] = (struct x86_segment) {
        .limit = UINT32_MAX,
        .selector = cs,
        .attr = (uint16_t)(ATTR_CODE | X86_SEG_G | dpl | (size == 8 ? X86_SEG_L : X86_SEG_DB))};
    cpu->s.seg[X86_SS] =
        (struct x86_segment) {.limit = UINT32_MAX,
                              .selector = ss,
                              .attr = (uint16_t)(ATTR_DATA | X86_SEG_G | X86_SEG_DB | dpl)};
    cpu->end_block = true;
    if (likely(same_size))
        x86_cpu_update_level(cpu);
    else
        x86_cpu_update_mode(cpu);
}

static void run_syscall(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    struct x86_state *s = &cpu->s;
    uint16_t cs = (uint16_t)(s->star >> 32 & 0xfffc);

    if (!(s->efer & X86_EFER_SCE) || !cpu->protected_mode)
        x86_raise(cpu, X86_UD);
    if (cpu->long_mode) {
        s->gpr[X86_RCX] = cpu->next_rip;
        s->gpr[X86_R11] = s->rflags & ~X86_RF;
        cpu->next_rip = cpu->code_size == 8 ? s->lstar : s->cstar;
        s->rflags = (s->rflags & ~(s->sfmask | X86_RF)) | X86_FIXED;
        set_flat(cpu, cs, (uint16_t)(cs + 8), 0, 8);
        return;
    }
    s->gpr[X86_RCX] = (uint32_t)cpu->next_rip;
    cpu->next_rip = (uint32_t)s->star;
    s->rflags &= ~(X86_VM | X86_IF | X86_RF);
    set_flat(cpu, cs, (uint16_t)(cs + 8), 0, 4);
}

#define SYSRET_FLAGS 0x3c7fd7ull

static void run_sysret(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    struct x86_state *s = &cpu->s;
    uint16_t base = (uint16_t)(s->star >> 48 | 3);
    bool to64 = cpu->long_mode && insn->size == 8;

    if (!(s->efer & X86_EFER_SCE))
        x86_raise(cpu, X86_UD);
    if (!cpu->protected_mode || cpu->cpl)
        x86_raise_error(cpu, X86_GP, 0);
    cpu->next_rip = to64 ? s->gpr[X86_RCX] : (uint32_t)s->gpr[X86_RCX];
    if (cpu->long_mode) {
        s->rflags = (s->gpr[X86_R11] & SYSRET_FLAGS & ~X86_RF) | X86_FIXED;
    } else {
        s->rflags |= X86_IF;
    }
    set_flat(cpu, (uint16_t)(base + (to64 ? 16 : 0)), (uint16_t)(base + 8), 3, to64 ? 8 : 4);
}

static void run_sysenter(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    struct x86_state *s = &cpu->s;
    uint16_t cs = (uint16_t)(s->sysenter_cs & 0xfffc);

    if (cpu->long_mode)
        x86_raise(cpu, X86_UD);
    if (!cpu->protected_mode || !cs)
        x86_raise_error(cpu, X86_GP, 0);
    s->rflags &= ~(X86_VM | X86_IF | X86_RF);
    s->gpr[X86_RSP] = (uint32_t)s->sysenter_esp;
    cpu->next_rip = (uint32_t)s->sysenter_eip;
    set_flat(cpu, cs, (uint16_t)(cs + 8), 0, 4);
}

static void run_sysexit(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    struct x86_state *s = &cpu->s;
    uint16_t cs = (uint16_t)(s->sysenter_cs & 0xfffc);

    if (cpu->long_mode)
        x86_raise(cpu, X86_UD);
    if (!cpu->protected_mode || cpu->cpl || !cs)
        x86_raise_error(cpu, X86_GP, 0);
    s->gpr[X86_RSP] = (uint32_t)s->gpr[X86_RCX];
    cpu->next_rip = (uint32_t)s->gpr[X86_RDX];
    set_flat(cpu, (uint16_t)((cs + 16) | 3), (uint16_t)((cs + 24) | 3), 3, 4);
}

bool x86_bind_fast_call(const struct x86_decode *d, struct x86_insn *out)
{
    switch (d->z->mnemonic) {
    case ZYDIS_MNEMONIC_SYSCALL:
        out->run = run_syscall;
        break;
    case ZYDIS_MNEMONIC_SYSRET:
        out->run = run_sysret;
        break;
    case ZYDIS_MNEMONIC_SYSENTER:
        out->run = run_sysenter;
        break;
    default:
        out->run = run_sysexit;
    }
    out->size = d->z->operand_width / 8;
    out->flags |= X86_INSN_END;
    return true;
}
