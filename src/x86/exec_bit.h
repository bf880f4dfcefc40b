/*
 * Bit tests and changes, plain for exec_bit.c and as the slow half of the locked ones in
 * exec_atomic.c. SDM vol. 1 section 3.1.1.9 (bit strings in memory).
 */
#ifndef PARAT_X86_EXEC_BIT_H
#define PARAT_X86_EXEC_BIT_H

#include "x86/host_alu.h"

HOST_SIZES_WIDE(HOST_FLAGS, bt);
HOST_SIZES_WIDE(HOST_FLAGS, bts);
HOST_SIZES_WIDE(HOST_FLAGS, btr);
HOST_SIZES_WIDE(HOST_FLAGS, btc);

/* A bit number from a register counts, signed, from the operand's address on. */
ALWAYS_INLINE uint64_t bit_string_la(struct x86_cpu *cpu, const struct x86_insn *insn,
                                     unsigned size, uint64_t bit, enum x86_access access)
{
    int64_t words = (int64_t)sign_extend(bit, size) >> (size == 2 ? 4 : size == 4 ? 5 : 6);
    uint64_t offset = x86_ea(cpu, insn) + (uint64_t)words * size;
    return x86_linear(cpu, insn->seg, offset & size_mask(insn->address_size), size, access);
}

#endif
