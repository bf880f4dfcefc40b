/*
 * Stacks that are not (yet) SS:RSP: the frames of gates, far calls, interrupts and their returns
 * are pushed and popped here, and committed when nothing can fault any more. Runs on the CPU's
 * thread. SDM vol. 3 sections 5.8.5 (stack switching), 6.14.4 (64-bit), 7.2.1 (where in the TSS).
 */
#include "x86/segment_int.h"

#include "x86/paging.h"

static uint64_t width_mask(unsigned width)
{
    return size_mask(width);
}

void x86_stack_current(const struct x86_cpu *cpu, struct x86_stack *out)
{
    *out = (struct x86_stack) {.ss = cpu->s.seg[X86_SS],
                               .sp = cpu->s.gpr[X86_RSP] & width_mask(cpu->stack_size),
                               .width = cpu->stack_size,
                               .mmu = x86_mmu_at(cpu, cpu->cpl)};
}

static uint64_t stack_la(struct x86_cpu *cpu, const struct x86_stack *stack, unsigned size,
                         enum x86_access access)
{
    if (stack->width == 8) {
        if (!x86_canonical(stack->sp) || !x86_canonical(stack->sp + size - 1))
            x86_raise_error(cpu, X86_SS_FAULT, stack->error);
        return stack->sp;
    }
    if (!x86_segment_permits(cpu, &stack->ss, stack->sp, size, access))
        x86_raise_error(cpu, X86_SS_FAULT, stack->error);
    return (uint32_t)(stack->ss.base + stack->sp);
}

void x86_stack_push(struct x86_cpu *cpu, struct x86_stack *stack, unsigned size, uint64_t value)
{
    stack->sp = (stack->sp - size) & width_mask(stack->width);
    uint64_t la = stack_la(cpu, stack, size, X86_WRITE);
    x86_store_slow(cpu, la, size, value, stack->mmu);
}

uint64_t x86_stack_pop(struct x86_cpu *cpu, struct x86_stack *stack, unsigned size)
{
    uint64_t la = stack_la(cpu, stack, size, X86_READ);
    stack->sp = (stack->sp + size) & width_mask(stack->width);
    return x86_load_slow(cpu, la, size, stack->mmu);
}

void x86_stack_commit(struct x86_cpu *cpu, const struct x86_stack *stack)
{
    uint64_t *rsp = &cpu->s.gpr[X86_RSP];

    *rsp = stack->width == 2 ? (*rsp & ~0xffffull) | stack->sp : stack->sp;
}

/* --- inner stacks --- */

static uint64_t tss_load(struct x86_cpu *cpu, unsigned offset, unsigned size)
{
    if (offset + size - 1 > cpu->s.tr.limit)
        x86_raise_selector(cpu, X86_TS, cpu->s.tr.selector);
    return x86_system_load(cpu, cpu->s.tr.base + offset, size);
}

/* SDM vol. 3 section 6.14.4: RSPn, or an IST entry; SS becomes null with RPL = DPL. */
static void inner_long(struct x86_cpu *cpu, unsigned dpl, unsigned ist, struct x86_stack *out)
{
    out->sp = tss_load(cpu, ist ? 36 + (ist - 1) * 8 : 4 + dpl * 8, 8);
    out->width = 8;
    out->ss = (struct x86_segment) {.selector = (uint16_t)dpl,
                                    .attr = (uint16_t)(dpl << X86_SEG_DPL_SHIFT)};
    out->error = 0;
    if (!x86_canonical(out->sp))
        x86_raise_error(cpu, X86_SS_FAULT, 0);
}

static void inner_legacy(struct x86_cpu *cpu, unsigned dpl, struct x86_stack *out)
{
    bool tss32 = cpu->s.tr.attr & 8;
    unsigned at = tss32 ? 4 + dpl * 8 : 2 + dpl * 4, size = tss32 ? 4 : 2;
    uint64_t sp = tss_load(cpu, at, size);
    uint16_t selector = (uint16_t)tss_load(cpu, at + size, 2);
    struct x86_descriptor d;

    if (x86_selector_is_null(selector) || (selector & X86_SELECTOR_RPL) != dpl ||
        !x86_descriptor_read(cpu, selector, &d) || x86_descriptor_dpl(&d) != dpl ||
        !x86_descriptor_is_writable_data(&d))
        x86_raise_selector(cpu, X86_TS, selector);
    if (!x86_descriptor_has(&d, X86_SEG_P))
        x86_raise_selector(cpu, X86_SS_FAULT, selector);
    x86_descriptor_mark(cpu, &d, X86_SEG_ACCESSED, true);
    x86_descriptor_to_segment(&d, selector, &out->ss);
    out->width = out->ss.attr & X86_SEG_DB ? 4 : 2;
    out->sp = sp & width_mask(out->width);
    out->error = selector & X86_SELECTOR_MASK;
}

void x86_stack_inner(struct x86_cpu *cpu, unsigned dpl, unsigned ist, struct x86_stack *out)
{
    out->mmu = x86_mmu_at(cpu, dpl);
    if (cpu->long_mode)
        inner_long(cpu, dpl, ist, out);
    else
        inner_legacy(cpu, dpl, out);
}
