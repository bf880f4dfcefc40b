/*
 * Segment registers: loads with their checks, limits and types of accesses, and the instructions
 * that inspect descriptors. Runs on the CPU's thread.
 * SDM vol. 3 chapters 3 and 5; vol. 2: MOV, LDS, LAR, LSL, VERR, ARPL, LLDT, LTR, SWAPGS. AMD loads
 * FS and GS with null without clearing the base; this machine clears (CPUID 80000021 EAX bit 6).
 */
#include "x86/segment_int.h"

#include "x86/exec_int.h"
#include "x86/paging.h"

/* --- accesses --- */

/* SDM vol. 3 section 5.3 */
static bool limit_permits(const struct x86_segment *segment, bool down, uint64_t offset,
                          unsigned size)
{
    uint64_t last = offset + size - 1;

    if (!down)
        return last <= segment->limit;
    uint64_t top = segment->attr & X86_SEG_DB ? UINT32_MAX : 0xffff;
    return offset > segment->limit && last <= top;
}

bool x86_segment_permits(const struct x86_cpu *cpu, const struct x86_segment *segment,
                         uint64_t offset, unsigned size, enum x86_access access)
{
    uint16_t attr = segment->attr;
    bool code = attr & X86_SEG_CODE;

    if (!cpu->protected_mode || cpu->v86)
        return limit_permits(segment, false, offset, size);
    if (!(attr & X86_SEG_P))
        return false;
    if (access == X86_WRITE && (code || !(attr & X86_SEG_WRITABLE)))
        return false;
    if (access == X86_READ && code && !(attr & X86_SEG_READABLE))
        return false;
    return limit_permits(segment, !code && (attr & X86_SEG_EXPAND_DOWN), offset, size);
}

void x86_check_segment(struct x86_cpu *cpu, unsigned seg, uint64_t offset, unsigned size,
                       enum x86_access access)
{
    if (!x86_segment_permits(cpu, &cpu->s.seg[seg], offset, size, access))
        x86_raise_error(cpu, seg == X86_SS ? X86_SS_FAULT : X86_GP, 0);
}

/* --- loads --- */

void x86_set_real_segment(struct x86_cpu *cpu, unsigned seg, uint16_t selector)
{
    struct x86_segment *s = &cpu->s.seg[seg];

    s->selector = selector;
    s->base = (uint32_t)selector << 4;
    if (cpu->s.rflags & X86_VM) {
        s->limit = 0xffff;
        s->attr = X86_SEG_P | X86_SEG_DPL | X86_SEG_S | X86_SEG_WRITABLE | X86_SEG_ACCESSED;
    }
}

/* A null selector. SS keeps its DPL, which is the CPL. */
static void set_null_segment(struct x86_cpu *cpu, unsigned seg, uint16_t selector)
{
    uint16_t attr = (uint16_t)(seg == X86_SS ? cpu->cpl << X86_SEG_DPL_SHIFT : 0);
    cpu->s.seg[seg] = (struct x86_segment) {.selector = selector, .attr = attr};
}

static void load_ss(struct x86_cpu *cpu, uint16_t selector)
{
    unsigned rpl = selector & X86_SELECTOR_RPL;
    struct x86_descriptor d;

    if (x86_selector_is_null(selector)) {
        if (cpu->code_size != 8 || cpu->cpl == 3 || rpl != cpu->cpl)
            x86_raise_error(cpu, X86_GP, 0);
        set_null_segment(cpu, X86_SS, selector);
        return;
    }
    if (!x86_descriptor_read(cpu, selector, &d) || rpl != cpu->cpl ||
        !x86_descriptor_is_writable_data(&d) || x86_descriptor_dpl(&d) != cpu->cpl)
        x86_raise_selector(cpu, X86_GP, selector);
    if (!x86_descriptor_has(&d, X86_SEG_P))
        x86_raise_selector(cpu, X86_SS_FAULT, selector);
    x86_descriptor_mark(cpu, &d, X86_SEG_ACCESSED, true);
    x86_descriptor_to_segment(&d, selector, &cpu->s.seg[X86_SS]);
}

static bool data_load_permitted(const struct x86_cpu *cpu, const struct x86_descriptor *d,
                                uint16_t selector)
{
    unsigned dpl = x86_descriptor_dpl(d);

    if (!x86_descriptor_has(d, X86_SEG_S))
        return false;
    if (x86_descriptor_is_code(d) && !x86_descriptor_has(d, X86_SEG_READABLE))
        return false;
    return x86_descriptor_is_conforming(d) ||
           ((selector & X86_SELECTOR_RPL) <= dpl && cpu->cpl <= dpl);
}

static void load_data(struct x86_cpu *cpu, unsigned seg, uint16_t selector)
{
    struct x86_descriptor d;

    if (x86_selector_is_null(selector)) {
        set_null_segment(cpu, seg, selector);
        return;
    }
    if (!x86_descriptor_read(cpu, selector, &d) || !data_load_permitted(cpu, &d, selector))
        x86_raise_selector(cpu, X86_GP, selector);
    if (!x86_descriptor_has(&d, X86_SEG_P))
        x86_raise_selector(cpu, X86_NP, selector);
    x86_descriptor_mark(cpu, &d, X86_SEG_ACCESSED, true);
    x86_descriptor_to_segment(&d, selector, &cpu->s.seg[seg]);
}

void x86_load_segment_register(struct x86_cpu *cpu, unsigned seg, uint16_t selector)
{
    if (!cpu->protected_mode || cpu->v86)
        x86_set_real_segment(cpu, seg, selector);
    else if (seg == X86_SS)
        load_ss(cpu, selector);
    else
        load_data(cpu, seg, selector);
    x86_cpu_update_mode(cpu);
}

void x86_load_segment(struct x86_cpu *cpu, unsigned seg, uint16_t selector)
{
    x86_load_segment_register(cpu, seg, selector);
    if (seg == X86_SS) {
        cpu->s.interrupt_shadow = true;
        cpu->s.shadow_is_mov_ss = true;
        cpu->end_block = true;
    }
}

/* --- LDS, LES, LFS, LGS, LSS --- */

/* insn->imm: the segment register */
static void run_load_far_pointer(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    uint64_t ea = x86_ea(cpu, insn);
    uint64_t la = x86_linear(cpu, insn->seg, ea, insn->size + 2u, X86_READ);
    uint64_t offset = x86_load(cpu, la, insn->size);
    uint16_t selector = (uint16_t)x86_load(cpu, la + insn->size, 2);

    x86_load_segment_register(cpu, (unsigned)insn->imm, selector);
    reg_write(cpu, insn->dst, insn->size, offset);
}

static bool bind_load_far_pointer(const struct x86_decode *d, struct x86_insn *out)
{
    switch (d->z->mnemonic) {
    case ZYDIS_MNEMONIC_LDS:
        out->imm = X86_DS;
        break;
    case ZYDIS_MNEMONIC_LES:
        out->imm = X86_ES;
        break;
    case ZYDIS_MNEMONIC_LFS:
        out->imm = X86_FS;
        break;
    case ZYDIS_MNEMONIC_LGS:
        out->imm = X86_GS;
        break;
    default:
        out->imm = X86_SS;
    }
    out->size = d->z->operand_width / 8;
    out->run = run_load_far_pointer;
    out->flags |= X86_INSN_END;
    return is_mem(d, 1);
}

/* --- a 16-bit selector operand, first or second --- */

static uint16_t selector_operand(struct x86_cpu *cpu, const struct x86_insn *insn, uint16_t reg)
{
    if (insn->flags & X86_INSN_MEM)
        return (uint16_t)mem_load(cpu, insn, 2);
    return (uint16_t)reg_read(cpu, reg, 2);
}

/* --- LAR, LSL, VERR, VERW, ARPL --- */

static void set_zf(struct x86_cpu *cpu, bool on)
{
    cpu->s.rflags = on ? cpu->s.rflags | X86_ZF : cpu->s.rflags & ~X86_ZF;
}

/* May the program see this descriptor? Conforming code always. */
static bool visible(const struct x86_cpu *cpu, const struct x86_descriptor *d, uint16_t selector)
{
    unsigned dpl = x86_descriptor_dpl(d);
    return x86_descriptor_is_conforming(d) ||
           (cpu->cpl <= dpl && (selector & X86_SELECTOR_RPL) <= dpl);
}

/* System types that LAR and LSL accept, a bit each: SDM vol. 2A "LAR", "LSL". */
#define LAR_TYPES      (BIT(1) | BIT(2) | BIT(3) | BIT(4) | BIT(5) | BIT(9) | BIT(11) | BIT(12))
#define LAR_TYPES_LONG (BIT(2) | BIT(9) | BIT(11) | BIT(12))
#define LSL_TYPES      (BIT(1) | BIT(2) | BIT(3) | BIT(9) | BIT(11))
#define LSL_TYPES_LONG (BIT(2) | BIT(9) | BIT(11))

static bool inspect(struct x86_cpu *cpu, uint16_t selector, uint64_t types,
                    struct x86_descriptor *d)
{
    if (x86_selector_is_null(selector) || !x86_descriptor_read(cpu, selector, d))
        return false;
    if (!x86_descriptor_has(d, X86_SEG_S) && !(types >> x86_descriptor_type(d) & 1))
        return false;
    return visible(cpu, d, selector);
}

static void run_lar(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    uint16_t selector = selector_operand(cpu, insn, insn->src);
    struct x86_descriptor d;
    bool ok = inspect(cpu, selector, cpu->long_mode ? LAR_TYPES_LONG : LAR_TYPES, &d);

    if (ok)
        reg_write(cpu, insn->dst, insn->size, d.high & 0x00ffff00);
    set_zf(cpu, ok);
}

static void run_lsl(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    uint16_t selector = selector_operand(cpu, insn, insn->src);
    struct x86_descriptor d;
    bool ok = inspect(cpu, selector, cpu->long_mode ? LSL_TYPES_LONG : LSL_TYPES, &d);

    if (ok)
        reg_write(cpu, insn->dst, insn->size, x86_descriptor_limit(&d));
    set_zf(cpu, ok);
}

static void run_verr(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    uint16_t selector = selector_operand(cpu, insn, insn->dst);
    struct x86_descriptor d;

    set_zf(cpu, inspect(cpu, selector, 0, &d) &&
                    (!x86_descriptor_is_code(&d) || x86_descriptor_has(&d, X86_SEG_READABLE)));
}

static void run_verw(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    uint16_t selector = selector_operand(cpu, insn, insn->dst);
    struct x86_descriptor d;

    set_zf(cpu, inspect(cpu, selector, 0, &d) && x86_descriptor_is_writable_data(&d));
}

static void run_arpl(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    bool mem = insn->flags & X86_INSN_MEM;
    uint64_t la = mem ? x86_operand_la(cpu, insn, 2, X86_READ) : 0;
    uint16_t rpl = (uint16_t)(reg_read(cpu, mem ? insn->dst : insn->src, 2) & X86_SELECTOR_RPL);

    /* Written only when it changes, so a fault of the read is one of a read. */
    uint16_t selector = (uint16_t)(mem ? x86_load(cpu, la, 2) : reg_read(cpu, insn->dst, 2));
    bool lower = (selector & X86_SELECTOR_RPL) < rpl;
    if (lower) {
        selector = (uint16_t)((selector & ~X86_SELECTOR_RPL) | rpl);
        if (mem)
            x86_store(cpu, x86_operand_la(cpu, insn, 2, X86_WRITE), 2, selector);
        else
            reg_write(cpu, insn->dst, 2, selector);
    }
    set_zf(cpu, lower);
}

/* --- LLDT, LTR, SLDT, STR --- */

void x86_load_ldtr(struct x86_cpu *cpu, uint16_t selector, enum x86_vector vector)
{
    struct x86_descriptor d;

    if (x86_selector_is_null(selector)) {
        cpu->s.ldtr = (struct x86_segment) {.selector = selector};
        return;
    }
    if ((selector & X86_SELECTOR_TI) || !x86_descriptor_read(cpu, selector, &d) ||
        x86_descriptor_has(&d, X86_SEG_S) || x86_descriptor_type(&d) != X86_TYPE_LDT ||
        (d.upper_high & 0x1f00) || (cpu->long_mode && !x86_canonical(x86_descriptor_base(&d))))
        x86_raise_selector(cpu, vector, selector);
    if (!x86_descriptor_has(&d, X86_SEG_P))
        x86_raise_selector(cpu, vector == X86_TS ? X86_TS : X86_NP, selector);
    x86_descriptor_to_segment(&d, selector, &cpu->s.ldtr);
}

static void require_cpl0(struct x86_cpu *cpu)
{
    if (cpu->cpl)
        x86_raise_error(cpu, X86_GP, 0);
}

static void run_lldt(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    require_cpl0(cpu);
    x86_load_ldtr(cpu, selector_operand(cpu, insn, insn->dst), X86_GP);
}

static void run_ltr(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    struct x86_descriptor d;

    require_cpl0(cpu);
    uint16_t selector = selector_operand(cpu, insn, insn->dst);
    if (x86_selector_is_null(selector))
        x86_raise_error(cpu, X86_GP, 0);
    if ((selector & X86_SELECTOR_TI) || !x86_descriptor_read(cpu, selector, &d) ||
        x86_descriptor_has(&d, X86_SEG_S) ||
        (x86_descriptor_type(&d) != X86_TYPE_TSS &&
         (cpu->long_mode || x86_descriptor_type(&d) != X86_TYPE_TSS16)) ||
        (d.upper_high & 0x1f00) || (cpu->long_mode && !x86_canonical(x86_descriptor_base(&d))))
        x86_raise_selector(cpu, X86_GP, selector);
    if (!x86_descriptor_has(&d, X86_SEG_P))
        x86_raise_selector(cpu, X86_NP, selector);
    x86_descriptor_mark(cpu, &d, 2, true); /* busy */
    x86_descriptor_to_segment(&d, selector, &cpu->s.tr);
}

/* CR4.UMIP: SDM vol. 3 section 2.5 */
static void run_store_selector(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    uint16_t selector = insn->imm ? cpu->s.tr.selector : cpu->s.ldtr.selector;

    if (cpu->cpl && (cpu->s.cr4 & X86_CR4_UMIP))
        x86_raise_error(cpu, X86_GP, 0);
    if (insn->flags & X86_INSN_MEM)
        mem_store(cpu, insn, 2, selector);
    else
        reg_write(cpu, insn->dst, insn->size, selector);
}

static bool bind_inspect(const struct x86_decode *d, struct x86_insn *out)
{
    static const struct {
        ZydisMnemonic mnemonic;
        x86_handler *run;
    } handlers[] = {
        {ZYDIS_MNEMONIC_LAR, run_lar},
        {ZYDIS_MNEMONIC_LSL, run_lsl},
        {ZYDIS_MNEMONIC_VERR, run_verr},
        {ZYDIS_MNEMONIC_VERW, run_verw},
        {ZYDIS_MNEMONIC_ARPL, run_arpl},
        {ZYDIS_MNEMONIC_LLDT, run_lldt},
        {ZYDIS_MNEMONIC_LTR, run_ltr},
        {ZYDIS_MNEMONIC_SLDT, run_store_selector},
        {ZYDIS_MNEMONIC_STR, run_store_selector},
    };
    if (d->mode->real_or_v86)
        return false;
    for (unsigned i = 0; i < ARRAY_COUNT(handlers); i++) {
        if (handlers[i].mnemonic == d->z->mnemonic)
            out->run = handlers[i].run;
    }
    out->imm = d->z->mnemonic == ZYDIS_MNEMONIC_STR;
    out->size = d->z->operand_width / 8;
    if (out->run == run_lldt || out->run == run_ltr)
        out->flags |= X86_INSN_END;
    return true;
}

/* --- SWAPGS --- */

static void run_swapgs(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    require_cpl0(cpu);
    uint64_t base = cpu->s.seg[X86_GS].base;
    cpu->s.seg[X86_GS].base = cpu->s.kernel_gs_base;
    cpu->s.kernel_gs_base = base;
    cpu->seg_base[X86_GS] = cpu->s.seg[X86_GS].base;
}

static bool bind_swapgs(const struct x86_decode *d, struct x86_insn *out)
{
    out->run = run_swapgs;
    return d->mode->code_size == 8;
}

const struct x86_bind x86_bind_segment[] = {
    {ZYDIS_MNEMONIC_LDS, bind_load_far_pointer}, {ZYDIS_MNEMONIC_LES, bind_load_far_pointer},
    {ZYDIS_MNEMONIC_LFS, bind_load_far_pointer}, {ZYDIS_MNEMONIC_LGS, bind_load_far_pointer},
    {ZYDIS_MNEMONIC_LSS, bind_load_far_pointer}, {ZYDIS_MNEMONIC_LAR, bind_inspect},
    {ZYDIS_MNEMONIC_LSL, bind_inspect},          {ZYDIS_MNEMONIC_VERR, bind_inspect},
    {ZYDIS_MNEMONIC_VERW, bind_inspect},         {ZYDIS_MNEMONIC_ARPL, bind_inspect},
    {ZYDIS_MNEMONIC_LLDT, bind_inspect},         {ZYDIS_MNEMONIC_LTR, bind_inspect},
    {ZYDIS_MNEMONIC_SLDT, bind_inspect},         {ZYDIS_MNEMONIC_STR, bind_inspect},
    {ZYDIS_MNEMONIC_SWAPGS, bind_swapgs},        {ZYDIS_MNEMONIC_JMP, x86_bind_far},
    {ZYDIS_MNEMONIC_CALL, x86_bind_far},         {ZYDIS_MNEMONIC_RET, x86_bind_far},
    {ZYDIS_MNEMONIC_IRET, x86_bind_iret},        {ZYDIS_MNEMONIC_IRETD, x86_bind_iret},
    {ZYDIS_MNEMONIC_IRETQ, x86_bind_iret},       X86_BIND_END,
};
