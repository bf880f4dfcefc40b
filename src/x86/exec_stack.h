/*
 * Pushes and pops by the width of the stack pointer (SS.B, or 8 in 64-bit mode). A fault leaves the
 * stack pointer as it was. SDM vol. 1 section 6.2.
 */
#ifndef PARAT_X86_EXEC_STACK_H
#define PARAT_X86_EXEC_STACK_H

#include "x86/exec_int.h"

/* Stack offset `delta` bytes from the top, wrapped to the stack's width. */
ALWAYS_INLINE uint64_t stack_offset(const struct x86_cpu *cpu, uint64_t delta)
{
    uint64_t sp = cpu->s.gpr[X86_RSP] + delta;
    if (unlikely(cpu->stack_size != 8))
        sp = cpu->stack_size == 4 ? (uint32_t)sp : (uint16_t)sp;
    return sp;
}

/* Moves the stack pointer by delta bytes. */
ALWAYS_INLINE void stack_move(struct x86_cpu *cpu, uint64_t delta)
{
    if (unlikely(cpu->stack_size == 2))
        gpr_write(cpu, X86_RSP, 2, cpu->s.gpr[X86_RSP] + delta);
    else
        cpu->s.gpr[X86_RSP] = stack_offset(cpu, delta);
}

/* The value `delta` bytes above the top; pops nothing. */
ALWAYS_INLINE uint64_t stack_peek(struct x86_cpu *cpu, unsigned size, uint64_t delta)
{
    return x86_load(cpu, x86_linear(cpu, X86_SS, stack_offset(cpu, delta), size, X86_READ), size);
}

/* Stores a value `delta` bytes from the top; moves nothing. */
ALWAYS_INLINE void stack_poke(struct x86_cpu *cpu, unsigned size, uint64_t delta, uint64_t value)
{
    x86_store(cpu, x86_linear(cpu, X86_SS, stack_offset(cpu, delta), size, X86_WRITE), size, value);
}

/* An operand size of 8 means 64-bit mode: RSP is all there is to the address. */
ALWAYS_INLINE bool fast_push_8(struct x86_cpu *cpu, uint64_t value)
{
    uint64_t rsp = cpu->s.gpr[X86_RSP] - 8;
    char *p = write_pointer(cpu, rsp, 8);
    if (unlikely(!p))
        return false;
    store_le64(p, value);
    cpu->s.gpr[X86_RSP] = rsp;
    return true;
}

ALWAYS_INLINE const char *fast_top_8(struct x86_cpu *cpu)
{
    return read_pointer(cpu, cpu->s.gpr[X86_RSP], 8);
}

/* Raises what a store there would. */
ALWAYS_INLINE void stack_probe(struct x86_cpu *cpu, unsigned size, uint64_t delta)
{
    uint64_t offset = stack_offset(cpu, delta);
    x86_probe_write(cpu, x86_linear(cpu, X86_SS, offset, size, X86_WRITE), size);
}

ALWAYS_INLINE void stack_push(struct x86_cpu *cpu, unsigned size, uint64_t value)
{
    stack_poke(cpu, size, -(uint64_t)size, value);
    stack_move(cpu, -(uint64_t)size);
}

ALWAYS_INLINE uint64_t stack_pop(struct x86_cpu *cpu, unsigned size)
{
    uint64_t value = stack_peek(cpu, size, 0);
    stack_move(cpu, size);
    return value;
}

#endif
