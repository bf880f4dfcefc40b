/*
 * Delivery of exceptions and interrupts: real-mode vectors, gates of the IDT in protected and long
 * mode, and what a fault during delivery turns into. Runs on the CPU's thread.
 * SDM vol. 3 chapter 6: 6.12 (procedures), 6.13 (error codes), 6.14 (64-bit), 6.15 and table 6-5
 * (double fault); 21.1.4 (real mode), 21.3 (virtual-8086, without VME); 18.3.1.1 (RF).
 */
#include "x86/paging.h"
#include "x86/segment_int.h"

#define ERROR_EXT 1u
#define ERROR_IDT 2u

/* The chain of faults is short; this only bounds what no guest should reach. */
#define ATTEMPTS_MAX 8

static bool is_software(const struct x86_event *event)
{
    return event->kind == X86_EVENT_SOFT_INTERRUPT || event->kind == X86_EVENT_SOFT_EXCEPTION ||
           event->kind == X86_EVENT_PRIVILEGED_SOFT_EXCEPTION;
}

/* Gates' DPL and virtual-8086's IOPL apply to INT n, INT3 and INTO, not to INT1. */
static bool checks_dpl(const struct x86_event *event)
{
    return event->kind == X86_EVENT_SOFT_INTERRUPT || event->kind == X86_EVENT_SOFT_EXCEPTION;
}

static uint64_t return_rip(const struct x86_cpu *cpu, const struct x86_event *event)
{
    return is_software(event) ? cpu->next_rip : cpu->s.rip;
}

/* SDM vol. 3 section 18.3.1.1: faults push RF set, so that they do not meet their breakpoint twice.
 */
static uint64_t pushed_flags(const struct x86_cpu *cpu, const struct x86_event *event)
{
    const uint64_t not_faults = BIT(X86_DB) | BIT(X86_NMI) | BIT(X86_BP) | BIT(X86_OF_TRAP) |
                                BIT(X86_DF_FAULT) | BIT(X86_MC);
    bool fault = event->kind == X86_EVENT_EXCEPTION && event->vector < 32 &&
                 !(not_faults >> event->vector & 1);
    return cpu->s.rflags | X86_FIXED | (fault ? X86_RF : 0);
}

/* --- real mode, SDM vol. 3 section 21.1.4 --- */

static void deliver_real(struct x86_cpu *cpu, const struct x86_event *event)
{
    unsigned at = event->vector * 4u;
    struct x86_stack stack;

    if (at + 3 > cpu->s.idtr.limit)
        x86_raise_error(cpu, X86_GP, 0);
    uint32_t entry = (uint32_t)x86_system_load(cpu, cpu->s.idtr.base + at, 4);
    x86_stack_current(cpu, &stack);
    x86_stack_push(cpu, &stack, 2, cpu->s.rflags & 0xffff);
    x86_stack_push(cpu, &stack, 2, cpu->s.seg[X86_CS].selector);
    x86_stack_push(cpu, &stack, 2, return_rip(cpu, event));
    x86_stack_commit(cpu, &stack);
    x86_set_real_segment(cpu, X86_CS, (uint16_t)(entry >> 16));
    cpu->s.rip = entry & 0xffff;
    cpu->s.rflags &= ~(X86_IF | X86_TF | X86_AC | X86_RF);
}

/* --- gates --- */

struct gate {
    struct x86_descriptor d;
    unsigned size; /* of pushes: 2, 4, 8 */
    bool interrupt;
    bool task;
};

static _Noreturn void raise_gate(struct x86_cpu *cpu, enum x86_vector vector,
                                 const struct x86_event *event)
{
    x86_raise_error(cpu, vector, event->vector * 8u | ERROR_IDT);
}

static void gate_kind(struct x86_cpu *cpu, const struct x86_event *event, struct gate *gate)
{
    unsigned type = x86_descriptor_type(&gate->d);

    gate->task = type == X86_TYPE_TASK_GATE && !cpu->long_mode;
    gate->interrupt = type == X86_TYPE_INTERRUPT_GATE || type == X86_TYPE_INTERRUPT_GATE16;
    bool trap = type == X86_TYPE_TRAP_GATE || type == X86_TYPE_TRAP_GATE16;
    bool small = type == X86_TYPE_INTERRUPT_GATE16 || type == X86_TYPE_TRAP_GATE16;
    gate->size = cpu->long_mode ? 8 : small ? 2 : 4;
    if (x86_descriptor_has(&gate->d, X86_SEG_S) || !(gate->task || gate->interrupt || trap) ||
        (small && cpu->long_mode))
        raise_gate(cpu, X86_GP, event);
}

static void read_gate(struct x86_cpu *cpu, const struct x86_event *event, struct gate *gate)
{
    unsigned entry = cpu->long_mode ? 16 : 8, at = event->vector * entry;

    if (at + entry - 1 > cpu->s.idtr.limit)
        raise_gate(cpu, X86_GP, event);
    gate->d = (struct x86_descriptor) {.la = cpu->s.idtr.base + at};
    uint64_t value = x86_system_load(cpu, gate->d.la, 8);
    gate->d.low = (uint32_t)value;
    gate->d.high = (uint32_t)(value >> 32);
    if (cpu->long_mode)
        gate->d.upper = (uint32_t)x86_system_load(cpu, gate->d.la + 8, 4);
    gate_kind(cpu, event, gate);
    if (checks_dpl(event) && x86_descriptor_dpl(&gate->d) < cpu->cpl)
        raise_gate(cpu, X86_GP, event);
    if (!x86_descriptor_has(&gate->d, X86_SEG_P))
        raise_gate(cpu, X86_NP, event);
}

/* The handler's code segment; *cpl is the level it will run at. */
static void read_handler(struct x86_cpu *cpu, const struct gate *gate, struct x86_segment *cs,
                         unsigned *cpl)
{
    uint16_t selector = x86_gate_selector(&gate->d);
    struct x86_descriptor d;

    if (x86_selector_is_null(selector))
        x86_raise_error(cpu, X86_GP, 0);
    if (!x86_descriptor_read(cpu, selector, &d) || !x86_descriptor_is_code(&d) ||
        x86_descriptor_dpl(&d) > cpu->cpl)
        x86_raise_selector(cpu, X86_GP, selector);
    if (cpu->long_mode &&
        (!x86_descriptor_has(&d, X86_SEG_L) || x86_descriptor_has(&d, X86_SEG_DB)))
        x86_raise_selector(cpu, X86_GP, selector);
    if (!x86_descriptor_has(&d, X86_SEG_P))
        x86_raise_selector(cpu, X86_NP, selector);
    *cpl = x86_descriptor_is_conforming(&d) ? cpu->cpl : x86_descriptor_dpl(&d);
    if (cpu->v86 && *cpl != 0)
        x86_raise_selector(cpu, X86_GP, selector);
    x86_descriptor_mark(cpu, &d, X86_SEG_ACCESSED, true);
    x86_descriptor_to_segment(&d, (uint16_t)((selector & ~X86_SELECTOR_RPL) | *cpl), cs);
}

/* The stack that the frame goes to. */
static void choose_stack(struct x86_cpu *cpu, const struct gate *gate, unsigned cpl,
                         struct x86_stack *stack)
{
    unsigned ist = cpu->long_mode ? gate->d.high & 7 : 0;

    if (cpl < cpu->cpl || ist) {
        x86_stack_inner(cpu, cpl, ist, stack);
    } else {
        x86_stack_current(cpu, stack);
        stack->width = cpu->long_mode ? 8 : stack->width;
        if (cpu->long_mode)
            stack->sp = cpu->s.gpr[X86_RSP];
    }
    if (cpu->long_mode)
        stack->sp &= ~0xfull;
}

static void push_frame(struct x86_cpu *cpu, const struct x86_event *event, const struct gate *gate,
                       bool with_stack, struct x86_stack *stack)
{
    static const uint8_t v86_segments[] = {X86_GS, X86_FS, X86_DS, X86_ES};
    unsigned size = gate->size;

    if (cpu->v86) {
        for (unsigned i = 0; i < ARRAY_COUNT(v86_segments); i++)
            x86_stack_push(cpu, stack, size, cpu->s.seg[v86_segments[i]].selector);
    }
    if (with_stack) {
        x86_stack_push(cpu, stack, size, cpu->s.seg[X86_SS].selector);
        x86_stack_push(cpu, stack, size, cpu->s.gpr[X86_RSP]);
    }
    x86_stack_push(cpu, stack, size, pushed_flags(cpu, event));
    x86_stack_push(cpu, stack, size, cpu->s.seg[X86_CS].selector);
    x86_stack_push(cpu, stack, size, return_rip(cpu, event));
    if (event->has_error)
        x86_stack_push(cpu, stack, size, event->error);
}

static void deliver_gate(struct x86_cpu *cpu, const struct x86_event *event,
                         const struct gate *gate)
{
    static const uint8_t data[] = {X86_ES, X86_DS, X86_FS, X86_GS};
    uint64_t offset = x86_gate_offset(&gate->d);
    struct x86_segment cs;
    struct x86_stack stack;
    unsigned cpl;

    read_handler(cpu, gate, &cs, &cpl);
    choose_stack(cpu, gate, cpl, &stack);
    if (gate->size == 2)
        offset &= 0xffff;
    x86_check_target(cpu, &cs, offset);
    bool inner = cpl < cpu->cpl;
    push_frame(cpu, event, gate, inner || cpu->long_mode, &stack);

    if (cpu->v86) {
        for (unsigned i = 0; i < ARRAY_COUNT(data); i++)
            cpu->s.seg[data[i]] = (struct x86_segment) {0};
    }
    if (inner)
        cpu->s.seg[X86_SS] = stack.ss;
    x86_stack_commit(cpu, &stack);
    cpu->s.seg[X86_CS] = cs;
    cpu->s.rip = offset;
    cpu->s.rflags &= ~(X86_TF | X86_NT | X86_RF | X86_VM | (gate->interrupt ? X86_IF : 0));
}

/* --- 64-bit mode, when nothing is in the way --- */

/* Where the frame's first byte goes: 0: not at hand. */
static uint64_t long_frame(struct x86_cpu *cpu, unsigned ist, unsigned size)
{
    uint64_t sp = cpu->s.gpr[X86_RSP];
    unsigned at = ist ? 36 + (ist - 1) * 8 : 4; /* in the TSS, SDM vol. 3 section 7.7 */

    if (cpu->cpl || ist) {
        const uint8_t *p =
            at + 7 <= cpu->s.tr.limit ? x86_table_pointer(cpu, cpu->s.tr.base + at, 8) : NULL;
        if (!p)
            return 0;
        sp = load_le64(p);
    }
    return (sp & ~0xfull) - size;
}

static bool enter_long(struct x86_cpu *cpu, const struct x86_event *event,
                       const struct x86_descriptor *gate, const struct x86_descriptor *code)
{
    struct x86_state *s = &cpu->s;
    unsigned size = event->has_error ? 48 : 40;
    uint64_t la = long_frame(cpu, gate->high & 7, size);
    const struct x86_tlb_entry *e = x86_tlb_slot(cpu, la, x86_mmu_at(cpu, 0));

    if (!la || !x86_tlb_hit(e->write, la, size))
        return false;
    uint8_t *frame = (uint8_t *)(la + e->addend);
    if (event->has_error) {
        store_le64(frame, event->error);
        frame += 8;
    }
    store_le64(frame, return_rip(cpu, event));
    store_le64(frame + 8, s->seg[X86_CS].selector);
    store_le64(frame + 16, pushed_flags(cpu, event));
    store_le64(frame + 24, s->gpr[X86_RSP]);
    store_le64(frame + 32, s->seg[X86_SS].selector);
    if (cpu->cpl)
        s->seg[X86_SS] = (struct x86_segment) {0};
    s->gpr[X86_RSP] = la;
    uint16_t selector = x86_gate_selector(gate) & (uint16_t)~X86_SELECTOR_RPL;
    x86_descriptor_to_segment(code, selector, &s->seg[X86_CS]);
    s->rip = cpu->next_rip = x86_gate_offset(gate);
    bool interrupt = !(gate->high & BIT(8));
    s->rflags &= ~(X86_TF | X86_NT | X86_RF | X86_VM | (interrupt ? X86_IF : 0));
    x86_cpu_update_level(cpu);
    return true;
}

/*
 * The same from 64-bit code to a handler at CPL 0 when gate, code segment, TSS and stack are at
 * hand in the TLB and in order: the usual case, in which nothing can fault. False: nothing changed.
 */
static bool deliver_long(struct x86_cpu *cpu, const struct x86_event *event)
{
    const struct x86_table_register *idtr = &cpu->s.idtr;
    unsigned at = event->vector * 16u;
    struct x86_descriptor gate, code;

    if (cpu->code_size != 8 || cpu->debug_active || at + 15 > idtr->limit)
        return false;
    const uint8_t *p = x86_table_pointer(cpu, idtr->base + at, 16);
    if (!p)
        return false;
    gate = (struct x86_descriptor) {
        .low = load_le32(p), .high = load_le32(p + 4), .upper = load_le32(p + 8)};
    bool is_gate = (gate.high & 0x9e00) == 0x8e00; /* present, interrupt or trap gate */
    uint64_t offset = x86_gate_offset(&gate);
    if (!is_gate || (checks_dpl(event) && x86_descriptor_dpl(&gate) < cpu->cpl) ||
        !x86_long_code_at_hand(cpu, x86_gate_selector(&gate), &code) ||
        x86_descriptor_dpl(&code) != 0 || !x86_canonical(offset))
        return false;
    return enter_long(cpu, event, &gate, &code);
}

/* SDM vol. 3 section 6.12.2 */
static void deliver_task(struct x86_cpu *cpu, const struct x86_event *event,
                         const struct gate *gate)
{
    uint64_t rip = return_rip(cpu, event);
    struct x86_stack stack;

    cpu->s.rflags = pushed_flags(cpu, event);
    x86_task_switch(cpu, x86_gate_selector(&gate->d), X86_TASK_INTERRUPT, rip);
    if (!event->has_error)
        return;
    x86_stack_current(cpu, &stack);
    x86_stack_push(cpu, &stack, cpu->s.tr.attr & 8 ? 4 : 2, event->error);
    x86_stack_commit(cpu, &stack);
}

static void deliver(struct x86_cpu *cpu, const struct x86_event *event)
{
    struct gate gate;

    if (!cpu->protected_mode) {
        deliver_real(cpu, event);
        return;
    }
    if (cpu->v86 && event->kind == X86_EVENT_SOFT_INTERRUPT &&
        (cpu->s.rflags & X86_IOPL) != X86_IOPL)
        x86_raise_error(cpu, X86_GP, 0);
    read_gate(cpu, event, &gate);
    if (gate.task)
        deliver_task(cpu, event, &gate);
    else
        deliver_gate(cpu, event, &gate);
}

/* --- faults during delivery --- */

/* CR2, DR6, DR7.GD: set when the exception is delivered, also when it becomes a double fault. */
static void apply_payload(struct x86_cpu *cpu, const struct x86_event *event)
{
    if (!event->has_payload)
        return;
    if (event->vector == X86_PF_FAULT)
        cpu->s.cr2 = event->payload;
    if (event->vector == X86_DB) {
        cpu->s.dr6 = (cpu->s.dr6 & ~0xfull) | event->payload;
        cpu->s.dr7 &= ~BIT(13);
    }
}

/* True: it faulted, and cpu->fault says how. */
static bool attempt(struct x86_cpu *cpu, const struct x86_event *event)
{
    jmp_buf here;
    jmp_buf *outer = cpu->unwind;

    cpu->unwind = &here;
    if (setjmp(here)) {
        cpu->unwind = outer;
        return true;
    }
    deliver(cpu, event);
    cpu->unwind = outer;
    return false;
}

enum fault_class { BENIGN, CONTRIBUTORY, PAGE_FAULT, DOUBLE_FAULT };

static enum fault_class classify(const struct x86_event *event)
{
    if (event->kind != X86_EVENT_EXCEPTION)
        return BENIGN;
    switch (event->vector) {
    case X86_DE:
    case X86_TS:
    case X86_NP:
    case X86_SS_FAULT:
    case X86_GP:
        return CONTRIBUTORY;
    case X86_PF_FAULT:
        return PAGE_FAULT;
    case X86_DF_FAULT:
        return DOUBLE_FAULT;
    default:
        return BENIGN;
    }
}

/* SDM vol. 3 table 6-5: does second, met while delivering first, make a double fault? */
static bool doubles(enum fault_class first, enum fault_class second)
{
    if (first == PAGE_FAULT)
        return second == PAGE_FAULT || second == CONTRIBUTORY;
    return first == CONTRIBUTORY && second == CONTRIBUTORY;
}

static void begin(struct x86_cpu *cpu, const struct x86_event *event)
{
    cpu->s.interrupt_shadow = false;
    cpu->s.shadow_is_mov_ss = false;
    cpu->halted = false;
    cpu->debug_hits = 0;
    cpu->debug_step = false;
    cpu->end_block = true;
    if (cpu->s.mp_state == X86_MP_HALTED)
        cpu->s.mp_state = X86_MP_RUNNABLE;
    if (event->kind == X86_EVENT_NMI)
        cpu->s.nmi_blocked = true;
}

static enum x86_result shutdown(struct x86_cpu *cpu)
{
    cpu->s.mp_state = X86_MP_SHUTDOWN;
    return X86_SHUTDOWN;
}

enum x86_result x86_deliver(struct x86_cpu *cpu, const struct x86_event *event)
{
    struct x86_event now = *event;

    begin(cpu, event);
    for (unsigned i = 0; i < ATTEMPTS_MAX; i++) {
        apply_payload(cpu, &now);
        if (likely(deliver_long(cpu, &now)))
            return X86_OK;
        if (!attempt(cpu, &now)) {
            cpu->next_rip = cpu->s.rip;
            x86_cpu_update_mode(cpu);
            return X86_OK;
        }
        struct x86_event second = cpu->fault;
        enum fault_class class = classify(&second);
        if (classify(&now) == DOUBLE_FAULT && class != BENIGN)
            return shutdown(cpu);
        if (class == CONTRIBUTORY && second.has_error && !is_software(&now))
            second.error |= ERROR_EXT;
        if (doubles(classify(&now), class)) {
            apply_payload(cpu, &second);
            second = (struct x86_event) {
                .kind = X86_EVENT_EXCEPTION, .vector = X86_DF_FAULT, .has_error = true};
        }
        now = second;
    }
    return shutdown(cpu);
}
