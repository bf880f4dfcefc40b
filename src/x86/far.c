/*
 * Far transfers: JMP, CALL, RET and IRET to another code segment, through call gates, between
 * privilege levels and modes. Registers change only after the last thing that can fault. Runs on
 * the CPU's thread.
 * SDM vol. 3 sections 5.8 (gates, conforming code), 7.3 (tasks); vol. 2: CALL, IRET, JMP, RET; APM
 * vol. 2 section 4.8 (long mode).
 */
#include "x86/exec_int.h"
#include "x86/paging.h"
#include "x86/segment_int.h"

/* --- code segments --- */

void x86_check_target(struct x86_cpu *cpu, const struct x86_segment *cs, uint64_t offset)
{
    bool ok =
        cpu->long_mode && (cs->attr & X86_SEG_L) ? x86_canonical(offset) : offset <= cs->limit;
    if (!ok)
        x86_raise_error(cpu, X86_GP, 0);
}

/* Reads the descriptor of a code segment; raises #GP when there is none. */
static void read_code(struct x86_cpu *cpu, uint16_t selector, struct x86_descriptor *d)
{
    if (x86_selector_is_null(selector))
        x86_raise_error(cpu, X86_GP, 0);
    if (!x86_descriptor_read(cpu, selector, d))
        x86_raise_selector(cpu, X86_GP, selector);
}

/* L and D together are reserved in long mode. */
static bool is_bad_long_code(const struct x86_cpu *cpu, const struct x86_descriptor *d)
{
    return cpu->long_mode && x86_descriptor_has(d, X86_SEG_L) && x86_descriptor_has(d, X86_SEG_DB);
}

/* The new hidden CS, with its accessed bit set; RPL is the privilege level it will run at. */
static void make_cs(struct x86_cpu *cpu, struct x86_descriptor *d, uint16_t selector, unsigned rpl,
                    struct x86_segment *cs)
{
    if (!x86_descriptor_has(d, X86_SEG_P))
        x86_raise_selector(cpu, X86_NP, selector);
    x86_descriptor_mark(cpu, d, X86_SEG_ACCESSED, true);
    x86_descriptor_to_segment(d, (uint16_t)((selector & ~X86_SELECTOR_RPL) | rpl), cs);
}

static void commit_cs(struct x86_cpu *cpu, const struct x86_segment *cs, uint64_t offset)
{
    cpu->s.seg[X86_CS] = *cs;
    cpu->next_rip = offset;
    cpu->end_block = true;
    x86_cpu_update_mode(cpu);
}

/* --- real and virtual-8086 mode --- */

static void real_jump(struct x86_cpu *cpu, uint16_t selector, uint64_t offset)
{
    x86_set_real_segment(cpu, X86_CS, selector);
    cpu->next_rip = offset;
    cpu->end_block = true;
    x86_cpu_update_mode(cpu);
}

static void real_check(struct x86_cpu *cpu, uint64_t offset)
{
    if (offset > cpu->s.seg[X86_CS].limit)
        x86_raise_error(cpu, X86_GP, 0);
}

static void far_real(struct x86_cpu *cpu, uint16_t selector, uint64_t offset, unsigned size,
                     bool call)
{
    real_check(cpu, offset);
    if (call) {
        struct x86_stack stack;
        x86_stack_current(cpu, &stack);
        x86_stack_push(cpu, &stack, size, cpu->s.seg[X86_CS].selector);
        x86_stack_push(cpu, &stack, size, cpu->next_rip);
        x86_stack_commit(cpu, &stack);
    }
    real_jump(cpu, selector, offset);
}

/* --- direct transfers --- */

static void push_return(struct x86_cpu *cpu, struct x86_stack *stack, unsigned size)
{
    x86_stack_push(cpu, stack, size, cpu->s.seg[X86_CS].selector);
    x86_stack_push(cpu, stack, size, cpu->next_rip);
}

static void far_direct(struct x86_cpu *cpu, struct x86_descriptor *d, uint16_t selector,
                       uint64_t offset, const struct x86_insn *insn)
{
    unsigned dpl = x86_descriptor_dpl(d), rpl = selector & X86_SELECTOR_RPL;
    struct x86_segment cs;
    struct x86_stack stack;

    if (x86_descriptor_is_conforming(d) ? dpl > cpu->cpl : rpl > cpu->cpl || dpl != cpu->cpl)
        x86_raise_selector(cpu, X86_GP, selector);
    if (is_bad_long_code(cpu, d))
        x86_raise_selector(cpu, X86_GP, selector);
    make_cs(cpu, d, selector, cpu->cpl, &cs);
    x86_check_target(cpu, &cs, offset);
    if (insn->src2) {
        x86_stack_current(cpu, &stack);
        push_return(cpu, &stack, insn->size);
        x86_stack_commit(cpu, &stack);
    }
    commit_cs(cpu, &cs, offset);
}

/* --- call gates --- */

static unsigned gate_size(const struct x86_cpu *cpu, const struct x86_descriptor *gate)
{
    if (cpu->long_mode)
        return 8;
    return x86_descriptor_type(gate) == X86_TYPE_CALL_GATE ? 4 : 2;
}

/* Reads and checks the code segment that a gate leads to. */
static void gate_target(struct x86_cpu *cpu, const struct x86_descriptor *gate, bool call,
                        struct x86_descriptor *d)
{
    uint16_t selector = x86_gate_selector(gate);

    read_code(cpu, selector, d);
    unsigned dpl = x86_descriptor_dpl(d);
    bool may_raise = call || x86_descriptor_is_conforming(d);
    if (!x86_descriptor_is_code(d) || (may_raise ? dpl > cpu->cpl : dpl != cpu->cpl))
        x86_raise_selector(cpu, X86_GP, selector);
    if (cpu->long_mode && (!x86_descriptor_has(d, X86_SEG_L) || x86_descriptor_has(d, X86_SEG_DB)))
        x86_raise_selector(cpu, X86_GP, selector);
}

/* The caller's parameters, lowest first in the array. SDM vol. 3 section 5.8.5 */
static void copy_parameters(struct x86_cpu *cpu, struct x86_stack *to, unsigned count,
                            unsigned size)
{
    uint32_t values[31];
    struct x86_stack from;

    x86_stack_current(cpu, &from);
    for (unsigned i = 0; i < count; i++)
        values[i] = (uint32_t)x86_stack_pop(cpu, &from, size);
    while (count--)
        x86_stack_push(cpu, to, size, values[count]);
}

/* To the more privileged level dpl. */
static void call_inner(struct x86_cpu *cpu, const struct x86_descriptor *gate, unsigned dpl,
                       const struct x86_segment *cs)
{
    unsigned size = gate_size(cpu, gate), count = cpu->long_mode ? 0 : gate->high & 0x1f;
    struct x86_stack stack;
    uint64_t offset = x86_gate_offset(gate);

    x86_stack_inner(cpu, dpl, 0, &stack);
    if (size == 2)
        offset &= 0xffff;
    x86_check_target(cpu, cs, offset);
    x86_stack_push(cpu, &stack, size, cpu->s.seg[X86_SS].selector);
    x86_stack_push(cpu, &stack, size, cpu->s.gpr[X86_RSP]);
    copy_parameters(cpu, &stack, count, size);
    push_return(cpu, &stack, size);
    cpu->s.seg[X86_SS] = stack.ss;
    x86_stack_commit(cpu, &stack);
    commit_cs(cpu, cs, offset);
}

static void far_gate(struct x86_cpu *cpu, const struct x86_descriptor *gate, bool call)
{
    struct x86_descriptor d;
    struct x86_segment cs;
    struct x86_stack stack;

    gate_target(cpu, gate, call, &d);
    unsigned dpl = x86_descriptor_dpl(&d);
    bool inner = call && !x86_descriptor_is_conforming(&d) && dpl < cpu->cpl;
    make_cs(cpu, &d, x86_gate_selector(gate), inner ? dpl : cpu->cpl, &cs);
    if (inner) {
        call_inner(cpu, gate, dpl, &cs);
        return;
    }
    unsigned size = gate_size(cpu, gate);
    uint64_t offset = size == 2 ? x86_gate_offset(gate) & 0xffff : x86_gate_offset(gate);
    x86_check_target(cpu, &cs, offset);
    if (call) {
        x86_stack_current(cpu, &stack);
        push_return(cpu, &stack, size);
        x86_stack_commit(cpu, &stack);
    }
    commit_cs(cpu, &cs, offset);
}

/* --- system descriptors: gates and tasks --- */

static void far_system(struct x86_cpu *cpu, const struct x86_descriptor *d, uint16_t selector,
                       bool call)
{
    unsigned type = x86_descriptor_type(d), dpl = x86_descriptor_dpl(d);
    bool is_gate = type == X86_TYPE_CALL_GATE || (!cpu->long_mode && type == X86_TYPE_CALL_GATE16);
    bool is_task = !cpu->long_mode &&
                   (type == X86_TYPE_TASK_GATE || type == X86_TYPE_TSS || type == X86_TYPE_TSS16);

    if ((!is_gate && !is_task) || dpl < cpu->cpl || dpl < (selector & X86_SELECTOR_RPL) ||
        (cpu->long_mode && (d->upper_high & 0x1f00)))
        x86_raise_selector(cpu, X86_GP, selector);
    if (!x86_descriptor_has(d, X86_SEG_P))
        x86_raise_selector(cpu, X86_NP, selector);
    if (is_gate) {
        far_gate(cpu, d, call);
        return;
    }
    uint16_t tss = type == X86_TYPE_TASK_GATE ? x86_gate_selector(d) : selector;
    x86_task_switch(cpu, tss, call ? X86_TASK_CALL : X86_TASK_JMP, cpu->next_rip);
}

static void far_transfer(struct x86_cpu *cpu, const struct x86_insn *insn, uint16_t selector,
                         uint64_t offset)
{
    bool call = insn->src2;
    struct x86_descriptor d;

    if (!cpu->protected_mode || cpu->v86) {
        far_real(cpu, selector, offset, insn->size, call);
        return;
    }
    read_code(cpu, selector, &d);
    if (!x86_descriptor_has(&d, X86_SEG_S))
        far_system(cpu, &d, selector, call);
    else if (x86_descriptor_is_code(&d))
        far_direct(cpu, &d, selector, offset, insn);
    else
        x86_raise_selector(cpu, X86_GP, selector);
}

/* ptr16:16, ptr16:32: imm is the offset, disp the selector; src2: it is a call */
static void run_far_pointer(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    far_transfer(cpu, insn, (uint16_t)insn->disp, insn->imm);
}

static void run_far_memory(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    uint64_t la = x86_operand_la(cpu, insn, insn->size + 2u, X86_READ);
    uint64_t offset = x86_load(cpu, la, insn->size);

    far_transfer(cpu, insn, (uint16_t)x86_load(cpu, la + insn->size, 2), offset);
}

/* --- RET and IRET: what they share --- */

struct return_frame {
    uint64_t rip, rflags, rsp;
    uint16_t cs, ss;
};

/* Checks the code segment that a return leads to. SDM vol. 2B "RET", vol. 2A "IRET" */
static void return_code(struct x86_cpu *cpu, const struct return_frame *frame,
                        struct x86_segment *cs)
{
    unsigned rpl = frame->cs & X86_SELECTOR_RPL;
    struct x86_descriptor d;

    read_code(cpu, frame->cs, &d);
    unsigned dpl = x86_descriptor_dpl(&d);
    if (!x86_descriptor_is_code(&d) || rpl < cpu->cpl ||
        (x86_descriptor_is_conforming(&d) ? dpl > rpl : dpl != rpl) || is_bad_long_code(cpu, &d))
        x86_raise_selector(cpu, X86_GP, frame->cs);
    make_cs(cpu, &d, frame->cs, rpl, cs);
    x86_check_target(cpu, cs, frame->rip);
}

/* The stack segment popped by a return to level rpl. */
static void return_stack(struct x86_cpu *cpu, const struct x86_segment *cs, uint16_t selector,
                         struct x86_segment *ss)
{
    unsigned rpl = cs->selector & X86_SELECTOR_RPL;
    struct x86_descriptor d;

    if (x86_selector_is_null(selector)) {
        if (!cpu->long_mode || !(cs->attr & X86_SEG_L) || rpl == 3 ||
            (selector & X86_SELECTOR_RPL) != rpl)
            x86_raise_error(cpu, X86_GP, 0);
        *ss = (struct x86_segment) {.selector = selector,
                                    .attr = (uint16_t)(rpl << X86_SEG_DPL_SHIFT)};
        return;
    }
    if (!x86_descriptor_read(cpu, selector, &d) || (selector & X86_SELECTOR_RPL) != rpl ||
        !x86_descriptor_is_writable_data(&d) || x86_descriptor_dpl(&d) != rpl)
        x86_raise_selector(cpu, X86_GP, selector);
    if (!x86_descriptor_has(&d, X86_SEG_P))
        x86_raise_selector(cpu, X86_SS_FAULT, selector);
    x86_descriptor_mark(cpu, &d, X86_SEG_ACCESSED, true);
    x86_descriptor_to_segment(&d, selector, ss);
}

/* Segments that the outer level may not see become null. SDM vol. 3 section 5.8.6 */
static void drop_inner_segments(struct x86_cpu *cpu, unsigned cpl)
{
    static const uint8_t data[] = {X86_ES, X86_DS, X86_FS, X86_GS};

    for (unsigned i = 0; i < ARRAY_COUNT(data); i++) {
        struct x86_segment *seg = &cpu->s.seg[data[i]];
        bool conforming = (seg->attr & (X86_SEG_CODE | X86_SEG_CONFORMING)) ==
                          (X86_SEG_CODE | X86_SEG_CONFORMING);
        unsigned dpl = (seg->attr & X86_SEG_DPL) >> X86_SEG_DPL_SHIFT;
        if ((seg->attr & X86_SEG_P) && !conforming && dpl < cpl)
            *seg = (struct x86_segment) {0};
    }
}

/* SP after a return that popped SS: as wide as the new stack. */
static void set_returned_sp(struct x86_cpu *cpu, const struct x86_segment *cs, uint64_t sp)
{
    uint64_t *rsp = &cpu->s.gpr[X86_RSP];

    if (cpu->long_mode && (cs->attr & X86_SEG_L))
        *rsp = sp;
    else if (cpu->s.seg[X86_SS].attr & X86_SEG_DB)
        *rsp = (uint32_t)sp;
    else
        *rsp = (*rsp & ~0xffffull) | (sp & 0xffff);
}

/* --- RET far --- */

static void return_real(struct x86_cpu *cpu, const struct x86_insn *insn, struct x86_stack *stack,
                        const struct return_frame *frame)
{
    real_check(cpu, frame->rip);
    stack->sp = (stack->sp + insn->imm) & size_mask(stack->width);
    x86_stack_commit(cpu, stack);
    real_jump(cpu, frame->cs, frame->rip);
}

/* insn->imm: bytes of parameters to drop */
static void run_far_return(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    struct return_frame frame;
    struct x86_stack stack;
    struct x86_segment cs, ss;

    x86_stack_current(cpu, &stack);
    frame.rip = x86_stack_pop(cpu, &stack, insn->size);
    frame.cs = (uint16_t)x86_stack_pop(cpu, &stack, insn->size);
    if (!cpu->protected_mode || cpu->v86) {
        return_real(cpu, insn, &stack, &frame);
        return;
    }
    return_code(cpu, &frame, &cs);
    unsigned rpl = frame.cs & X86_SELECTOR_RPL;
    stack.sp = (stack.sp + insn->imm) & size_mask(stack.width);
    if (rpl == cpu->cpl) {
        x86_stack_commit(cpu, &stack);
        commit_cs(cpu, &cs, frame.rip);
        return;
    }
    frame.rsp = x86_stack_pop(cpu, &stack, insn->size);
    frame.ss = (uint16_t)x86_stack_pop(cpu, &stack, insn->size);
    return_stack(cpu, &cs, frame.ss, &ss);
    cpu->s.seg[X86_SS] = ss;
    set_returned_sp(cpu, &cs, frame.rsp + insn->imm);
    drop_inner_segments(cpu, rpl);
    commit_cs(cpu, &cs, frame.rip);
}

bool x86_bind_far(const struct x86_decode *d, struct x86_insn *out)
{
    if (d->z->meta.branch_type != ZYDIS_BRANCH_TYPE_FAR)
        return false;
    out->size = d->z->operand_width / 8;
    out->flags |= X86_INSN_END;
    if (d->z->mnemonic == ZYDIS_MNEMONIC_RET) {
        out->imm &= 0xffff;
        out->run = run_far_return;
        return true;
    }
    out->src2 = d->z->mnemonic == ZYDIS_MNEMONIC_CALL;
    if (d->op[0].type == ZYDIS_OPERAND_TYPE_POINTER) {
        out->imm = d->op[0].ptr.offset & size_mask(out->size);
        out->disp = d->op[0].ptr.segment;
        out->run = run_far_pointer;
        return true;
    }
    out->run = run_far_memory;
    return is_mem(d, 0);
}

/* --- IRET --- */

#define FLAGS_ANY (X86_STATUS_FLAGS | X86_TF | X86_DF | X86_NT)

/* The flags that IRET may change, from the level it is executed at. */
static void set_returned_flags(struct x86_cpu *cpu, uint64_t value, unsigned size)
{
    uint64_t may = FLAGS_ANY;

    if (size > 2)
        may |= X86_RF | X86_AC | X86_ID;
    if (cpu->cpl <= (cpu->s.rflags & X86_IOPL) >> 12)
        may |= X86_IF;
    if (cpu->cpl == 0)
        may |= X86_IOPL | (size > 2 ? X86_VIF | X86_VIP : 0);
    cpu->s.rflags = (cpu->s.rflags & ~may) | (value & may);
    /* It matters to breakpoints only. Most faults end so, and single steps are slow. */
    if (!(cpu->s.dr7 & 0xff))
        cpu->s.rflags &= ~X86_RF;
    cpu->debug_keep_rf = cpu->s.rflags & X86_RF;
}

static void iret_real(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    struct x86_stack stack;
    struct return_frame frame;
    uint64_t keep = cpu->v86 ? X86_IOPL : 0;

    if (cpu->v86 && (cpu->s.rflags & X86_IOPL) != X86_IOPL)
        x86_raise_error(cpu, X86_GP, 0);
    x86_stack_current(cpu, &stack);
    frame.rip = x86_stack_pop(cpu, &stack, insn->size);
    frame.cs = (uint16_t)x86_stack_pop(cpu, &stack, insn->size);
    frame.rflags = x86_stack_pop(cpu, &stack, insn->size);
    real_check(cpu, frame.rip);
    x86_stack_commit(cpu, &stack);
    uint64_t may = (FLAGS_ANY | X86_IF | X86_IOPL) & ~keep;
    if (insn->size > 2)
        may |= X86_RF | X86_AC | X86_ID;
    cpu->s.rflags = (cpu->s.rflags & ~may) | (frame.rflags & may);
    cpu->debug_keep_rf = cpu->s.rflags & X86_RF;
    real_jump(cpu, frame.cs, frame.rip);
}

/* SDM vol. 3 section 21.2.2: from CPL 0, with VM set in the popped EFLAGS. */
static void iret_to_v86(struct x86_cpu *cpu, struct x86_stack *stack,
                        const struct return_frame *frame)
{
    static const uint8_t order[] = {X86_SS, X86_ES, X86_DS, X86_FS, X86_GS};
    uint16_t selector[ARRAY_COUNT(order)];
    uint64_t rsp = x86_stack_pop(cpu, stack, 4);

    for (unsigned i = 0; i < ARRAY_COUNT(order); i++)
        selector[i] = (uint16_t)x86_stack_pop(cpu, stack, 4);
    if (frame->rip > 0xffff)
        x86_raise_error(cpu, X86_GP, 0);
    set_returned_flags(cpu, frame->rflags, 4);
    cpu->s.rflags |= X86_VM;
    for (unsigned i = 0; i < ARRAY_COUNT(order); i++)
        x86_set_real_segment(cpu, order[i], selector[i]);
    cpu->s.gpr[X86_RSP] = (uint32_t)rsp;
    real_jump(cpu, frame->cs, frame->rip);
}

static void iret_protected(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    struct x86_stack stack;
    struct return_frame frame;
    struct x86_segment cs, ss;

    x86_stack_current(cpu, &stack);
    frame.rip = x86_stack_pop(cpu, &stack, insn->size);
    frame.cs = (uint16_t)x86_stack_pop(cpu, &stack, insn->size);
    frame.rflags = x86_stack_pop(cpu, &stack, insn->size);
    if (!cpu->long_mode && insn->size == 4 && cpu->cpl == 0 && (frame.rflags & X86_VM)) {
        iret_to_v86(cpu, &stack, &frame);
        return;
    }
    return_code(cpu, &frame, &cs);
    unsigned rpl = frame.cs & X86_SELECTOR_RPL;
    if (rpl == cpu->cpl && cpu->code_size != 8) {
        x86_stack_commit(cpu, &stack);
    } else {
        frame.rsp = x86_stack_pop(cpu, &stack, insn->size);
        frame.ss = (uint16_t)x86_stack_pop(cpu, &stack, insn->size);
        return_stack(cpu, &cs, frame.ss, &ss);
        cpu->s.seg[X86_SS] = ss;
        set_returned_sp(cpu, &cs, frame.rsp);
    }
    set_returned_flags(cpu, frame.rflags, insn->size); /* still with the old CPL */
    if (rpl > cpu->cpl)
        drop_inner_segments(cpu, rpl);
    commit_cs(cpu, &cs, frame.rip);
}

/* The SS that IRETQ pops, when it is at hand and in order; a null one, too, below CPL 3. */
static bool long_stack(struct x86_cpu *cpu, uint16_t selector, unsigned rpl, struct x86_segment *ss)
{
    struct x86_descriptor d;

    if ((selector & X86_SELECTOR_RPL) != rpl)
        return false;
    if (x86_selector_is_null(selector)) {
        *ss = (struct x86_segment) {.selector = selector,
                                    .attr = (uint16_t)(rpl << X86_SEG_DPL_SHIFT)};
        return rpl != 3;
    }
    if (!x86_descriptor_at_hand(cpu, selector, X86_KIND_DATA, X86_SEG_EXPAND_DOWN, &d) ||
        x86_descriptor_dpl(&d) != rpl)
        return false;
    x86_descriptor_to_segment(&d, selector, ss);
    return true;
}

/*
 * IRETQ from CPL 0 to 64-bit code when frame and descriptors are at hand in the TLB and in order:
 * the usual case, in which nothing can fault. False: nothing changed.
 */
static bool iret_long(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    const uint64_t la = cpu->s.gpr[X86_RSP];
    struct x86_descriptor code;
    struct x86_segment ss;

    if (insn->size != 8 || cpu->code_size != 8 || cpu->cpl || cpu->debug_active)
        return false;
    const char *p = read_pointer(cpu, la, 40);
    if (!p)
        return false;
    uint64_t rip = load_le64(p), rflags = load_le64(p + 16), rsp = load_le64(p + 24);
    uint16_t cs = load_le16(p + 8);
    unsigned rpl = cs & X86_SELECTOR_RPL;
    if (!x86_long_code_at_hand(cpu, cs, &code) || x86_descriptor_dpl(&code) != rpl ||
        !x86_canonical(rip) || !long_stack(cpu, load_le16(p + 32), rpl, &ss))
        return false;
    cpu->s.seg[X86_SS] = ss;
    cpu->s.gpr[X86_RSP] = rsp;
    set_returned_flags(cpu, rflags, 8);
    if (rpl)
        drop_inner_segments(cpu, rpl);
    x86_descriptor_to_segment(&code, cs, &cpu->s.seg[X86_CS]);
    cpu->next_rip = rip;
    cpu->end_block = true;
    x86_cpu_update_level(cpu);
    return true;
}

static void run_iret(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    cpu->s.nmi_blocked = false; /* also when it faults: SDM vol. 3 section 6.7.1 */
    if (!cpu->protected_mode || cpu->v86) {
        iret_real(cpu, insn);
        return;
    }
    if (cpu->s.rflags & X86_NT) {
        if (cpu->long_mode)
            x86_raise_error(cpu, X86_GP, 0);
        x86_task_return(cpu);
        return;
    }
    if (!iret_long(cpu, insn))
        iret_protected(cpu, insn);
}

bool x86_bind_iret(const struct x86_decode *d, struct x86_insn *out)
{
    ZydisMnemonic m = d->z->mnemonic;

    out->size = m == ZYDIS_MNEMONIC_IRETQ ? 8 : m == ZYDIS_MNEMONIC_IRETD ? 4 : 2;
    out->flags |= X86_INSN_END;
    out->run = run_iret;
    return true;
}
