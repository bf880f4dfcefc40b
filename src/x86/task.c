/*
 * The hardware task switch. Runs on the CPU's thread. SDM vol. 3 chapter 7: section 7.2 (TSS), 7.3
 * (steps and checks, table 7-1), 7.4 (linking), 7.6 (16-bit TSS).
 *
 * All memory of both TSSs is checked before anything changes; from then on faults belong to the new
 * task, as the manual has it.
 */
#include "x86/paging.h"
#include "x86/segment_int.h"

/* Where the fields lie. Registers stand in the order of enum x86_gpr, segments in x86_seg's. */
struct layout {
    uint8_t size; /* of a register */
    uint8_t eip, eflags, gpr, seg, ldt;
    uint8_t seg_count, seg_step;
    uint8_t saved_from, saved_length; /* what a switch away writes */
    uint8_t limit_min;
};

static const struct layout layout32 = {4, 0x20, 0x24, 0x28, 0x48, 0x60, 6, 4, 0x20, 0x40, 0x67};
static const struct layout layout16 = {2, 0x0e, 0x10, 0x12, 0x22, 0x2a, 4, 2, 0x0e, 0x1c, 0x2b};

#define TSS32_CR3 0x1c
#define TSS32_T   0x64

struct task {
    uint16_t selector;
    struct x86_descriptor descriptor;
    struct x86_segment tr;
    const struct layout *layout;
    uint32_t cr3, eip, eflags, gpr[8];
    uint16_t seg[6], ldt;
    bool trap;
};

static const struct layout *layout_of(uint16_t attr)
{
    return attr & 8 ? &layout32 : &layout16;
}

static uint32_t field(struct x86_cpu *cpu, const struct task *t, unsigned at, unsigned size)
{
    return (uint32_t)x86_system_load(cpu, t->tr.base + at, size);
}

/* Step 1: the descriptor. SDM vol. 3 table 7-1 */
static void find_task(struct x86_cpu *cpu, uint16_t selector, enum x86_task_source source,
                      struct task *t)
{
    enum x86_vector vector = source == X86_TASK_IRET ? X86_TS : X86_GP;
    unsigned busy = source == X86_TASK_IRET ? 2 : 0;

    t->selector = selector;
    if (x86_selector_is_null(selector) || (selector & X86_SELECTOR_TI) ||
        !x86_descriptor_read(cpu, selector, &t->descriptor))
        x86_raise_selector(cpu, vector, selector);
    unsigned type = x86_descriptor_type(&t->descriptor);
    if (x86_descriptor_has(&t->descriptor, X86_SEG_S) ||
        (type != (X86_TYPE_TSS16 | busy) && type != (X86_TYPE_TSS | busy)))
        x86_raise_selector(cpu, vector, selector);
    if (!x86_descriptor_has(&t->descriptor, X86_SEG_P))
        x86_raise_selector(cpu, X86_NP, selector);
    x86_descriptor_to_segment(&t->descriptor, selector, &t->tr);
    t->layout = layout_of(t->tr.attr);
    if (t->tr.limit < t->layout->limit_min)
        x86_raise_selector(cpu, X86_TS, selector);
}

/* Reads all of the new TSS, so that no page fault comes later. */
static void read_task(struct x86_cpu *cpu, struct task *t)
{
    const struct layout *l = t->layout;

    t->eip = field(cpu, t, l->eip, l->size);
    t->eflags = field(cpu, t, l->eflags, l->size);
    for (unsigned i = 0; i < 8; i++) {
        t->gpr[i] = field(cpu, t, l->gpr + i * l->size, l->size);
        if (l->size == 2)
            t->gpr[i] |= 0xffff0000;
    }
    memset(t->seg, 0, sizeof t->seg);
    for (unsigned i = 0; i < l->seg_count; i++)
        t->seg[i] = (uint16_t)field(cpu, t, l->seg + i * l->seg_step, 2);
    t->ldt = (uint16_t)field(cpu, t, l->ldt, 2);
    t->cr3 = l->size == 4 ? field(cpu, t, TSS32_CR3, 4) : 0;
    t->trap = l->size == 4 && (field(cpu, t, TSS32_T, 2) & 1);
}

static void save_old(struct x86_cpu *cpu, uint32_t eip, uint64_t eflags)
{
    const struct layout *l = layout_of(cpu->s.tr.attr);
    uint64_t base = cpu->s.tr.base;

    /* Both ends are written first: a page that cannot be written faults before the rest. */
    x86_system_store(cpu, base + l->seg + (l->seg_count - 1u) * l->seg_step, 2,
                     cpu->s.seg[l->seg_count - 1].selector);
    x86_system_store(cpu, base + l->eip, l->size, eip);
    x86_system_store(cpu, base + l->eflags, l->size, eflags);
    for (unsigned i = 0; i < 8; i++)
        x86_system_store(cpu, base + l->gpr + i * l->size, l->size, cpu->s.gpr[i]);
    for (unsigned i = 0; i + 1u < l->seg_count; i++)
        x86_system_store(cpu, base + l->seg + i * l->seg_step, 2, cpu->s.seg[i].selector);
}

static void clear_old_busy(struct x86_cpu *cpu)
{
    struct x86_descriptor d;

    if (x86_descriptor_read(cpu, cpu->s.tr.selector, &d))
        x86_descriptor_mark(cpu, &d, 2, false);
}

/* A bad PDPTR in a task switch is #GP in the new task. */
static void load_cr3(struct x86_cpu *cpu, const struct task *t)
{
    if (!(cpu->s.cr0 & X86_CR0_PG) || t->layout->size != 4)
        return;
    if ((cpu->s.cr4 & X86_CR4_PAE) && !x86_paging_load_pdptrs(cpu, t->cr3))
        x86_raise_error(cpu, X86_GP, 0);
    cpu->s.cr3 = t->cr3;
    x86_tlb_flush(cpu, true);
}

/* --- the new task's segments: SDM vol. 3 table 7-1, from "LDT" on --- */

static void load_task_cs(struct x86_cpu *cpu, uint16_t selector)
{
    unsigned rpl = selector & X86_SELECTOR_RPL;
    struct x86_descriptor d;

    if (x86_selector_is_null(selector) || !x86_descriptor_read(cpu, selector, &d) ||
        !x86_descriptor_is_code(&d))
        x86_raise_selector(cpu, X86_TS, selector);
    unsigned dpl = x86_descriptor_dpl(&d);
    if (x86_descriptor_is_conforming(&d) ? dpl > rpl : dpl != rpl)
        x86_raise_selector(cpu, X86_TS, selector);
    if (!x86_descriptor_has(&d, X86_SEG_P))
        x86_raise_selector(cpu, X86_NP, selector);
    x86_descriptor_mark(cpu, &d, X86_SEG_ACCESSED, true);
    x86_descriptor_to_segment(&d, selector, &cpu->s.seg[X86_CS]);
}

static void load_task_ss(struct x86_cpu *cpu, uint16_t selector, unsigned cpl)
{
    struct x86_descriptor d;

    if (x86_selector_is_null(selector) || !x86_descriptor_read(cpu, selector, &d) ||
        !x86_descriptor_is_writable_data(&d) || x86_descriptor_dpl(&d) != cpl ||
        (selector & X86_SELECTOR_RPL) != cpl)
        x86_raise_selector(cpu, X86_TS, selector);
    if (!x86_descriptor_has(&d, X86_SEG_P))
        x86_raise_selector(cpu, X86_SS_FAULT, selector);
    x86_descriptor_mark(cpu, &d, X86_SEG_ACCESSED, true);
    x86_descriptor_to_segment(&d, selector, &cpu->s.seg[X86_SS]);
}

static void load_task_data(struct x86_cpu *cpu, unsigned seg, uint16_t selector, unsigned cpl)
{
    struct x86_descriptor d;

    if (x86_selector_is_null(selector))
        return;
    if (!x86_descriptor_read(cpu, selector, &d) || !x86_descriptor_has(&d, X86_SEG_S) ||
        (x86_descriptor_is_code(&d) && !x86_descriptor_has(&d, X86_SEG_READABLE)))
        x86_raise_selector(cpu, X86_TS, selector);
    unsigned dpl = x86_descriptor_dpl(&d);
    if (!x86_descriptor_is_conforming(&d) && (dpl < cpl || dpl < (selector & X86_SELECTOR_RPL)))
        x86_raise_selector(cpu, X86_TS, selector);
    if (!x86_descriptor_has(&d, X86_SEG_P))
        x86_raise_selector(cpu, X86_NP, selector);
    x86_descriptor_mark(cpu, &d, X86_SEG_ACCESSED, true);
    x86_descriptor_to_segment(&d, selector, &cpu->s.seg[seg]);
}

static void load_segments(struct x86_cpu *cpu, const struct task *t)
{
    static const uint8_t data[] = {X86_ES, X86_DS, X86_FS, X86_GS};
    unsigned cpl = t->seg[X86_CS] & X86_SELECTOR_RPL;

    x86_load_ldtr(cpu, t->ldt, X86_TS);
    if (cpu->s.rflags & X86_VM) {
        for (unsigned i = 0; i < 6; i++)
            x86_set_real_segment(cpu, i, t->seg[i]);
        return;
    }
    load_task_cs(cpu, t->seg[X86_CS]);
    load_task_ss(cpu, t->seg[X86_SS], cpl);
    for (unsigned i = 0; i < ARRAY_COUNT(data); i++)
        load_task_data(cpu, data[i], t->seg[data[i]], cpl);
}

/* The registers that need no check; the segments' hidden parts are unusable until loaded. */
static void load_registers(struct x86_cpu *cpu, const struct task *t, bool nested)
{
    unsigned cpl = t->eflags & X86_VM ? 3 : t->seg[X86_CS] & X86_SELECTOR_RPL;

    cpu->s.tr = t->tr;
    cpu->s.tr.attr |= 2; /* busy */
    cpu->s.cr0 |= X86_CR0_TS;
    cpu->s.rip = cpu->next_rip = t->eip;
    cpu->s.rflags = (t->eflags & 0x3f7fd5) | X86_FIXED | (nested ? X86_NT : 0);
    for (unsigned i = 0; i < 8; i++)
        cpu->s.gpr[i] = t->gpr[i];
    for (unsigned i = 0; i < 6; i++)
        cpu->s.seg[i] = (struct x86_segment) {.selector = t->seg[i]};
    cpu->s.seg[X86_SS].attr = (uint16_t)(cpl << X86_SEG_DPL_SHIFT);
    cpu->s.ldtr = (struct x86_segment) {.selector = t->ldt};
    cpu->s.dr7 &= ~0x155ull; /* the local breakpoints: SDM vol. 3 section 18.2.4 */
    cpu->debug_keep_rf = true;
    cpu->end_block = true;
}

void x86_task_switch(struct x86_cpu *cpu, uint16_t selector, enum x86_task_source source,
                     uint64_t return_rip)
{
    bool nested = source == X86_TASK_CALL || source == X86_TASK_INTERRUPT;
    uint64_t eflags = cpu->s.rflags;
    uint16_t old = cpu->s.tr.selector;
    struct task t;

    find_task(cpu, selector, source, &t);
    read_task(cpu, &t);
    if (source == X86_TASK_IRET)
        eflags &= ~X86_NT;
    save_old(cpu, (uint32_t)return_rip, eflags);
    if (nested)
        x86_system_store(cpu, t.tr.base, 2, old);
    else
        clear_old_busy(cpu);
    if (source != X86_TASK_IRET)
        x86_descriptor_mark(cpu, &t.descriptor, 2, true);

    load_registers(cpu, &t, nested);
    x86_cpu_update_mode(cpu); /* a fault from here on is the new task's */
    load_cr3(cpu, &t);
    load_segments(cpu, &t);
    x86_cpu_update_mode(cpu);
    x86_check_target(cpu, &cpu->s.seg[X86_CS], t.eip);
    if (t.trap)
        cpu->debug_hits |= BIT(15); /* DR6.BT; the caller's loop sees debug_active */
    cpu->debug_active |= t.trap;
}

void x86_task_return(struct x86_cpu *cpu)
{
    uint16_t link = (uint16_t)x86_system_load(cpu, cpu->s.tr.base, 2);
    x86_task_switch(cpu, link, X86_TASK_IRET, cpu->next_rip);
}
