/*
 * Control and debug registers, and MOV with segment registers. Runs on the CPU's thread.
 * SDM vol. 3 sections 2.5 (control registers), 4.10.4 (what invalidates the TLB), 9.8.5 (long mode
 * switch), 18.2 (debug registers); vol. 2B "MOV - Move to/from Control Registers".
 */
#include "x86/exec_int.h"
#include "x86/mem.h"
#include "x86/paging.h"
#include "x86/segment.h"
#include "x86/system_int.h"

#define CR0_DEFINED                                                                                \
    (X86_CR0_PE | X86_CR0_MP | X86_CR0_EM | X86_CR0_TS | X86_CR0_ET | X86_CR0_NE | X86_CR0_WP |    \
     X86_CR0_AM | X86_CR0_NW | X86_CR0_CD | X86_CR0_PG)
#define CR3_KEEP_TLB BIT(63)

void x86_require_cpl0(struct x86_cpu *cpu)
{
    if (cpu->cpl)
        x86_raise_error(cpu, X86_GP, 0);
}

static _Noreturn void refuse(struct x86_cpu *cpu)
{
    x86_raise_error(cpu, X86_GP, 0);
}

/* --- CR0 --- */

/* What setting or clearing PG asks for: SDM vol. 3 sections 4.1.1, 9.8.5. */
static void check_paging_change(struct x86_cpu *cpu, bool on)
{
    const struct x86_state *s = &cpu->s;
    bool lme = s->efer & X86_EFER_LME;

    if (!on && (cpu->code_size == 8 || (s->cr4 & X86_CR4_PCIDE)))
        refuse(cpu);
    if (on && lme && (!(s->cr4 & X86_CR4_PAE) || (s->seg[X86_CS].attr & X86_SEG_L)))
        refuse(cpu);
}

void x86_write_cr0(struct x86_cpu *cpu, uint64_t value)
{
    struct x86_state *s = &cpu->s;
    uint64_t old = s->cr0;

    if (value >> 32)
        refuse(cpu);
    value = (value & CR0_DEFINED) | X86_CR0_ET;
    if (((value & X86_CR0_PG) && !(value & X86_CR0_PE)) ||
        ((value & X86_CR0_NW) && !(value & X86_CR0_CD)))
        refuse(cpu);
    if ((value ^ old) & X86_CR0_PG)
        check_paging_change(cpu, value & X86_CR0_PG);
    bool pae = (value & X86_CR0_PG) && (s->cr4 & X86_CR4_PAE) && !(s->efer & X86_EFER_LME);
    if (pae && ((value ^ old) & (X86_CR0_PG | X86_CR0_CD | X86_CR0_NW)) &&
        !x86_paging_load_pdptrs(cpu, s->cr3))
        refuse(cpu);

    s->cr0 = value;
    if ((value ^ old) & X86_CR0_PG) {
        bool lma = (value & X86_CR0_PG) && (s->efer & X86_EFER_LME);
        s->efer = lma ? s->efer | X86_EFER_LMA : s->efer & ~X86_EFER_LMA;
    }
    if ((value ^ old) & (X86_CR0_PG | X86_CR0_WP | X86_CR0_PE))
        x86_tlb_flush(cpu, false);
    cpu->end_block = true;
    x86_cpu_update_mode(cpu);
}

/* --- CR3, SDM vol. 3 section 4.10.4.1 --- */

void x86_write_cr3(struct x86_cpu *cpu, uint64_t value)
{
    struct x86_state *s = &cpu->s;
    bool pcide = s->cr4 & X86_CR4_PCIDE;
    bool keep = pcide && (value & CR3_KEEP_TLB);

    if (pcide)
        value &= ~CR3_KEEP_TLB;
    if (cpu->long_mode && value >> cpu->cpuid->physical_address_bits)
        refuse(cpu);
    if (!cpu->long_mode)
        value = (uint32_t)value;
    if ((s->cr0 & X86_CR0_PG) && (s->cr4 & X86_CR4_PAE) && !cpu->long_mode &&
        !x86_paging_load_pdptrs(cpu, value))
        refuse(cpu);
    s->cr3 = value;
    x86_tlb_switch(cpu, keep);
    cpu->end_block = true;
}

/* --- CR4 --- */

uint64_t x86_cr4_allowed(const struct x86_features *features)
{
    static const struct {
        enum x86_feature feature;
        uint64_t bits;
    } table[] = {
        {X86_FEATURE_TSC, X86_CR4_TSD},     {X86_FEATURE_DE, X86_CR4_DE},
        {X86_FEATURE_PSE, X86_CR4_PSE},     {X86_FEATURE_PAE, X86_CR4_PAE},
        {X86_FEATURE_MCE, X86_CR4_MCE},     {X86_FEATURE_PGE, X86_CR4_PGE},
        {X86_FEATURE_FXSR, X86_CR4_OSFXSR}, {X86_FEATURE_SSE, X86_CR4_OSXMMEXCPT},
        {X86_FEATURE_UMIP, X86_CR4_UMIP},   {X86_FEATURE_FSGSBASE, X86_CR4_FSGSBASE},
        {X86_FEATURE_PCID, X86_CR4_PCIDE},  {X86_FEATURE_XSAVE, X86_CR4_OSXSAVE},
        {X86_FEATURE_SMEP, X86_CR4_SMEP},   {X86_FEATURE_SMAP, X86_CR4_SMAP},
    };
    uint64_t allowed = X86_CR4_PCE;

    for (unsigned i = 0; i < ARRAY_COUNT(table); i++) {
        if (x86_has(features, table[i].feature))
            allowed |= table[i].bits;
    }
    return allowed;
}

void x86_write_cr4(struct x86_cpu *cpu, uint64_t value)
{
    const uint64_t mapping =
        X86_CR4_PSE | X86_CR4_PAE | X86_CR4_PGE | X86_CR4_PCIDE | X86_CR4_SMEP | X86_CR4_SMAP;
    const uint64_t reload = X86_CR4_PSE | X86_CR4_PAE | X86_CR4_PGE | X86_CR4_SMEP;
    struct x86_state *s = &cpu->s;
    uint64_t changed = value ^ s->cr4;

    if (value & ~x86_cr4_allowed(cpu->features))
        refuse(cpu);
    if (cpu->long_mode && !(value & X86_CR4_PAE))
        refuse(cpu);
    if ((changed & value & X86_CR4_PCIDE) && (!cpu->long_mode || (s->cr3 & 0xfff)))
        refuse(cpu);
    if ((s->cr0 & X86_CR0_PG) && (value & X86_CR4_PAE) && !cpu->long_mode && (changed & reload) &&
        !x86_paging_load_pdptrs(cpu, s->cr3))
        refuse(cpu);

    s->cr4 = value;
    if (changed & mapping)
        x86_tlb_flush(cpu, false);
    cpu->end_block = true;
    x86_cpu_update_mode(cpu);
}

/* --- MOV CR --- */

/* insn->imm: the control register, dst: the general one */
static void run_from_cr(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    uint64_t value = 0;

    x86_require_cpl0(cpu);
    switch (insn->imm) {
    case 0:
        value = cpu->s.cr0;
        break;
    case 2:
        value = cpu->s.cr2;
        break;
    case 3:
        value = cpu->s.cr3;
        break;
    case 4:
        value = cpu->s.cr4;
        break;
    case 8:
        value = cpu->ops->cr8_read(cpu->context);
        break;
    }
    reg_write(cpu, insn->dst, insn->size, value);
}

static void run_to_cr(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    uint64_t value = reg_read(cpu, insn->dst, insn->size);

    x86_require_cpl0(cpu);
    switch (insn->imm) {
    case 0:
        x86_write_cr0(cpu, value);
        break;
    case 2:
        cpu->s.cr2 = value;
        break;
    case 3:
        x86_write_cr3(cpu, value);
        break;
    case 4:
        x86_write_cr4(cpu, value);
        break;
    case 8:
        if (value >> 4)
            refuse(cpu);
        cpu->ops->cr8_write(cpu->context, value);
        cpu->end_block = true;
        break;
    }
}

/* --- MOV DR, SDM vol. 3 section 18.2 --- */

#define DR6_FIXED   0xffff0ff0ull
#define DR6_WRITE   0xe00full
#define DR6_BD      BIT(13)
#define DR7_FIXED   0x400ull
#define DR7_WRITE   0xffff23ffull
#define DR7_GD      BIT(13)
#define DR7_ENABLES 0xffull

/* DR4 and DR5 are DR6 and DR7, unless CR4.DE. */
static unsigned debug_register(struct x86_cpu *cpu, uint64_t number)
{
    if (number == 4 || number == 5) {
        if (cpu->s.cr4 & X86_CR4_DE)
            x86_raise(cpu, X86_UD);
        number += 2;
    }
    x86_require_cpl0(cpu);
    if (cpu->s.dr7 & DR7_GD) {
        struct x86_event event = {
            .kind = X86_EVENT_EXCEPTION, .vector = X86_DB, .has_payload = true, .payload = DR6_BD};
        x86_raise_event(cpu, &event);
    }
    return (unsigned)number;
}

static void run_from_dr(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    unsigned n = debug_register(cpu, insn->imm);
    uint64_t value = n < 4 ? cpu->s.dr[n] : n == 6 ? cpu->s.dr6 : cpu->s.dr7;

    reg_write(cpu, insn->dst, insn->size, value);
}

static void run_to_dr(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    unsigned n = debug_register(cpu, insn->imm);
    uint64_t value = reg_read(cpu, insn->dst, insn->size), old = cpu->s.dr7;

    if (n >= 6 && value >> 32)
        refuse(cpu);
    if (n < 4)
        cpu->s.dr[n] = value;
    else if (n == 6)
        cpu->s.dr6 = (value & DR6_WRITE) | DR6_FIXED;
    else
        cpu->s.dr7 = (value & DR7_WRITE) | DR7_FIXED;
    /* Watched pages have no fast TLB entries: paging.c fills anew. */
    if (n != 6 && ((old | cpu->s.dr7) & DR7_ENABLES))
        x86_tlb_flush(cpu, false);
    cpu->end_block = true;
    x86_cpu_update_mode(cpu);
}

/* --- MOV with segment registers --- */

/* insn->imm: enum x86_seg */
static void run_from_segment(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    uint16_t selector = cpu->s.seg[insn->imm].selector;

    if (insn->flags & X86_INSN_MEM)
        mem_store(cpu, insn, 2, selector);
    else
        reg_write(cpu, insn->dst, insn->size, selector);
}

static void run_to_segment(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    bool mem = insn->flags & X86_INSN_MEM;
    uint64_t selector = mem ? mem_load(cpu, insn, 2) : reg_read(cpu, insn->dst, 2);

    x86_load_segment(cpu, (unsigned)insn->imm, (uint16_t)selector);
}

/* --- binding --- */

struct special {
    x86_handler *from, *to;
    unsigned number;
};

static bool classify(ZydisRegister reg, struct special *out)
{
    static const uint8_t segments[] = {X86_ES, X86_CS, X86_SS, X86_DS, X86_FS, X86_GS};

    if (reg >= ZYDIS_REGISTER_CR0 && reg <= ZYDIS_REGISTER_CR15) {
        *out = (struct special) {run_from_cr, run_to_cr, reg - ZYDIS_REGISTER_CR0};
        return out->number == 0 || (out->number >= 2 && out->number <= 4) || out->number == 8;
    }
    if (reg >= ZYDIS_REGISTER_DR0 && reg <= ZYDIS_REGISTER_DR15) {
        *out = (struct special) {run_from_dr, run_to_dr, reg - ZYDIS_REGISTER_DR0};
        return out->number < 8;
    }
    if (reg >= ZYDIS_REGISTER_ES && reg <= ZYDIS_REGISTER_GS) {
        *out =
            (struct special) {run_from_segment, run_to_segment, segments[reg - ZYDIS_REGISTER_ES]};
        return true;
    }
    return false;
}

bool x86_bind_mov_system(const struct x86_decode *d, struct x86_insn *out)
{
    struct special special;
    bool to = is_reg(d, 0) && classify(d->op[0].reg.value, &special);

    if (!to && !(is_reg(d, 1) && classify(d->op[1].reg.value, &special)))
        return false;
    const ZydisDecodedOperand *other = &d->op[to ? 1 : 0];
    if (to && special.to == run_to_segment && special.number == X86_CS)
        return false;
    if (other->type == ZYDIS_OPERAND_TYPE_REGISTER)
        out->dst = x86_register_offset(other->reg.value);
    out->imm = special.number;
    out->size = (uint8_t)(other->size / 8);
    out->run = to ? special.to : special.from;
    if (to)
        out->flags |= X86_INSN_END;
    return true;
}
