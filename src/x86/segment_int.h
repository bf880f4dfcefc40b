/*
 * What the modules of segmentation share: segment.c (loads, checks), far.c (transfers), task.c
 * (task switch), deliver.c (gates of the IDT).
 */
#ifndef PARAT_X86_SEGMENT_INT_H
#define PARAT_X86_SEGMENT_INT_H

#include "x86/decode_int.h"
#include "x86/descriptor.h"
#include "x86/mem.h"
#include "x86/segment.h"

/* --- segment.c --- */

/* Real and virtual-8086 mode: the selector times 16. */
void x86_set_real_segment(struct x86_cpu *cpu, unsigned seg, uint16_t selector);
/* The load itself, without the shadow. */
void x86_load_segment_register(struct x86_cpu *cpu, unsigned seg, uint16_t selector);
/*
 * Does [offset, offset + size) lie in the segment, for an access of that kind? Protected mode also
 * looks at the type.
 */
bool x86_segment_permits(const struct x86_cpu *cpu, const struct x86_segment *segment,
                         uint64_t offset, unsigned size, enum x86_access access);
/* The LDTR from a descriptor that was checked (SDM vol. 2A "LLDT"). vector: #GP, or #TS in a task
 * switch. */
void x86_load_ldtr(struct x86_cpu *cpu, uint16_t selector, enum x86_vector vector);

/* --- what delivery and IRET in 64-bit mode read from tables when nothing is in their way --- */

/* Host address of what the CPU itself reads, when the TLB has it; NULL: go the whole way. */
static inline const uint8_t *x86_table_pointer(struct x86_cpu *cpu, uint64_t la, unsigned size)
{
    enum x86_mmu mmu = cpu->s.cr4 & X86_CR4_SMAP ? X86_MMU_KERNEL : X86_MMU_KERNEL_USER;
    const struct x86_tlb_entry *e = x86_tlb_slot(cpu, la, mmu);
    return x86_tlb_hit(e->read, la, size) ? (const uint8_t *)(la + e->addend) : NULL;
}

/*
 * A descriptor of the GDT by the same way: false when it is not at hand, or not a present segment
 * of this kind that is marked as accessed. `kind`: X86_SEG_* of bits 40 to 47, but DPL and those in
 * `any`.
 */
static inline bool x86_descriptor_at_hand(struct x86_cpu *cpu, uint16_t selector, uint8_t kind,
                                          uint8_t any, struct x86_descriptor *out)
{
    unsigned offset = selector & ~7u;
    const uint8_t *p;

    if (!(selector & X86_SELECTOR_MASK) || (selector & X86_SELECTOR_TI) ||
        offset + 7 > cpu->s.gdtr.limit)
        return false;
    p = x86_table_pointer(cpu, cpu->s.gdtr.base + offset, 8);
    if (unlikely(!p))
        return false;
    uint64_t value = load_le64(p);
    *out = (struct x86_descriptor) {.low = (uint32_t)value, .high = (uint32_t)(value >> 32)};
    return ((out->high >> 8 ^ kind) & 0xff & ~X86_SEG_DPL & ~any) == 0;
}

#define X86_KIND_CODE (X86_SEG_P | X86_SEG_S | X86_SEG_CODE | X86_SEG_ACCESSED)
#define X86_KIND_DATA (X86_SEG_P | X86_SEG_S | X86_SEG_WRITABLE | X86_SEG_ACCESSED)

/* 64-bit code, not conforming. */
static inline bool x86_long_code_at_hand(struct x86_cpu *cpu, uint16_t selector,
                                         struct x86_descriptor *out)
{
    return x86_descriptor_at_hand(cpu, selector, X86_KIND_CODE, X86_SEG_READABLE, out) &&
           x86_descriptor_has(out, X86_SEG_L) && !x86_descriptor_has(out, X86_SEG_DB);
}

/* --- far.c: a stack that is not (yet) SS:RSP --- */

struct x86_stack {
    struct x86_segment ss;
    uint64_t sp;
    unsigned width; /* of SP: 2, 4, 8 */
    enum x86_mmu mmu;
    uint32_t error; /* of #SS when the stack has no room */
};

/* The present stack. */
void x86_stack_current(const struct x86_cpu *cpu, struct x86_stack *out);
void x86_stack_push(struct x86_cpu *cpu, struct x86_stack *stack, unsigned size, uint64_t value);
uint64_t x86_stack_pop(struct x86_cpu *cpu, struct x86_stack *stack, unsigned size);
/* Writes SP back, in its width. */
void x86_stack_commit(struct x86_cpu *cpu, const struct x86_stack *stack);
/*
 * The stack for a more privileged level, from the TSS. ist: 64-bit interrupt gates, else 0. Raises
 * #TS, #SS. x86_stack_switch commits it.
 */
void x86_stack_inner(struct x86_cpu *cpu, unsigned dpl, unsigned ist, struct x86_stack *out);

/* Raises #GP(0) when an instruction pointer is outside its code segment or not canonical. */
void x86_check_target(struct x86_cpu *cpu, const struct x86_segment *cs, uint64_t offset);

bool x86_bind_far(const struct x86_decode *d, struct x86_insn *out);
bool x86_bind_iret(const struct x86_decode *d, struct x86_insn *out);

/* --- task.c --- */

enum x86_task_source { X86_TASK_JMP, X86_TASK_CALL, X86_TASK_IRET, X86_TASK_INTERRUPT };

/*
 * Switches to the task of a TSS selector. return_rip is saved in the old TSS. On return (and when a
 * fault is raised late) the registers are the new task's; s.rip and next_rip both are its EIP.
 */
void x86_task_switch(struct x86_cpu *cpu, uint16_t selector, enum x86_task_source source,
                     uint64_t return_rip);
/* Task return by IRET with NT set. */
void x86_task_return(struct x86_cpu *cpu);

#endif
