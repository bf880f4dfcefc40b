/*
 * What the integer exec_*.c modules share: operands by constant size, the host's flags, and shapes
 * of handlers. Everything here folds to straight code where size and operation are constants.
 */
#ifndef PARAT_X86_EXEC_INT_H
#define PARAT_X86_EXEC_INT_H

#include "x86/cpu.h"
#include "x86/decode_int.h"
#include "x86/mem.h"

#define NO_INLINE static __attribute__((noinline))

/* --- registers --- */

ALWAYS_INLINE uint64_t reg_read(const struct x86_cpu *cpu, uint16_t offset, unsigned size)
{
    const char *p = (const char *)cpu + offset;
    switch (size) {
    case 1:
        return *(const uint8_t *)p;
    case 2:
        return *(const uint16_t *)p;
    case 4:
        return *(const uint32_t *)p;
    default:
        return *(const uint64_t *)p;
    }
}

/* A 32-bit write clears the upper half, the smaller ones leave the rest alone. */
ALWAYS_INLINE void reg_write(struct x86_cpu *cpu, uint16_t offset, unsigned size, uint64_t value)
{
    char *p = (char *)cpu + offset;
    switch (size) {
    case 1:
        *(uint8_t *)p = (uint8_t)value;
        break;
    case 2:
        *(uint16_t *)p = (uint16_t)value;
        break;
    case 4:
        *(uint64_t *)p = (uint32_t)value;
        break;
    default:
        *(uint64_t *)p = value;
        break;
    }
}

#define GPR_OFFSET(n) ((uint16_t)(offsetof(struct x86_cpu, s.gpr) + (n)*8))

ALWAYS_INLINE uint64_t gpr_read(const struct x86_cpu *cpu, unsigned n, unsigned size)
{
    return reg_read(cpu, GPR_OFFSET(n), size);
}

ALWAYS_INLINE void gpr_write(struct x86_cpu *cpu, unsigned n, unsigned size, uint64_t value)
{
    reg_write(cpu, GPR_OFFSET(n), size, value);
}

ALWAYS_INLINE uint64_t sign_extend(uint64_t value, unsigned size)
{
    switch (size) {
    case 1:
        return (uint64_t)(int8_t)value;
    case 2:
        return (uint64_t)(int16_t)value;
    case 4:
        return (uint64_t)(int32_t)value;
    default:
        return value;
    }
}

/* --- flags: guest flags are what the host computes --- */

/*
 * The status flags in AX as LAHF and SETO leave them. FLAGS_IN sets the host's from AX, FLAGS_OUT
 * puts them there; what stands between must leave AX alone.
 */
#define FLAGS_IN  "addb $0x7f, %%al\n\tsahf\n\t"
#define FLAGS_OUT "\n\tlahf\n\tseto %%al"

ALWAYS_INLINE uint64_t flags_split(uint64_t rflags)
{
    return (rflags & 0xff) << 8 | (rflags >> 11 & 1);
}

ALWAYS_INLINE uint64_t flags_join(uint64_t rflags, uint64_t ax)
{
    return (rflags & ~X86_STATUS_FLAGS) | (ax >> 8 & 0xff) | (ax & 1) << 11;
}

/* --- memory operands --- */

ALWAYS_INLINE uint64_t mem_load(struct x86_cpu *cpu, const struct x86_insn *insn, unsigned size)
{
    return x86_load(cpu, x86_operand_la(cpu, insn, size, X86_READ), size);
}

ALWAYS_INLINE void mem_store(struct x86_cpu *cpu, const struct x86_insn *insn, unsigned size,
                             uint64_t value)
{
    x86_store(cpu, x86_operand_la(cpu, insn, size, X86_WRITE), size, value);
}

/* Host address of bytes that hit in the TLB for writing; NULL: go the slow way. */
ALWAYS_INLINE char *write_pointer(struct x86_cpu *cpu, uint64_t la, unsigned size)
{
    const struct x86_tlb_entry *e = &cpu->tlb_now[la >> PAGE_SHIFT & (X86_TLB_SIZE - 1)];
    return x86_tlb_hit(e->write, la, size) ? (char *)(la + e->addend) : NULL;
}

ALWAYS_INLINE const char *read_pointer(struct x86_cpu *cpu, uint64_t la, unsigned size)
{
    const struct x86_tlb_entry *e = &cpu->tlb_now[la >> PAGE_SHIFT & (X86_TLB_SIZE - 1)];
    return x86_tlb_hit(e->read, la, size) ? (const char *)(la + e->addend) : NULL;
}

/*
 * The hot handlers come in two: the fast one for the memory operand of 64-bit code that hits in the
 * TLB, which calls nothing, and the whole one, which it ends in otherwise.
 */
ALWAYS_INLINE uint64_t fast_la(const struct x86_cpu *cpu, const struct x86_insn *insn)
{
    const char *regs = (const char *)cpu;
    return load_le64(regs + insn->base) + (load_le64(regs + insn->index) << insn->scale) +
           (uint64_t)(int64_t)insn->disp + cpu->seg_base[insn->seg];
}

ALWAYS_INLINE const char *fast_read(struct x86_cpu *cpu, const struct x86_insn *insn, unsigned size)
{
    return likely(insn->flags & X86_INSN_FLAT64) ? read_pointer(cpu, fast_la(cpu, insn), size)
                                                 : NULL;
}

ALWAYS_INLINE char *fast_write(struct x86_cpu *cpu, const struct x86_insn *insn, unsigned size)
{
    return likely(insn->flags & X86_INSN_FLAT64) ? write_pointer(cpu, fast_la(cpu, insn), size)
                                                 : NULL;
}

/* An operation on a destination and a source, and on one destination. */
typedef uint64_t host_binary(uint64_t a, uint64_t b, uint64_t *rflags);
typedef uint64_t host_unary(uint64_t a, uint64_t *rflags);

/* A read-modify-write faults as a write, before it reads. */
ALWAYS_INLINE void mem_modify(struct x86_cpu *cpu, uint64_t la, unsigned size, host_binary *op,
                              uint64_t b)
{
    char *p = write_pointer(cpu, la, size);
    if (likely(p)) {
        host_store(p, size, op(host_load(p, size), b, &cpu->s.rflags));
        return;
    }
    x86_probe_write(cpu, la, size);
    x86_store(cpu, la, size, op(x86_load(cpu, la, size), b, &cpu->s.rflags));
}

ALWAYS_INLINE void mem_modify_unary(struct x86_cpu *cpu, uint64_t la, unsigned size, host_unary *op)
{
    char *p = write_pointer(cpu, la, size);
    if (likely(p)) {
        host_store(p, size, op(host_load(p, size), &cpu->s.rflags));
        return;
    }
    x86_probe_write(cpu, la, size);
    x86_store(cpu, la, size, op(x86_load(cpu, la, size), &cpu->s.rflags));
}

/* --- binding --- */

/* 0 to 3 for sizes 1, 2, 4, 8. */
static inline unsigned size_index(unsigned size)
{
    return (unsigned)__builtin_ctz(size);
}

static inline bool is_reg(const struct x86_decode *d, unsigned i)
{
    return d->op[i].type == ZYDIS_OPERAND_TYPE_REGISTER;
}

static inline bool is_mem(const struct x86_decode *d, unsigned i)
{
    return d->op[i].type == ZYDIS_OPERAND_TYPE_MEMORY;
}

static inline bool is_imm(const struct x86_decode *d, unsigned i)
{
    return d->op[i].type == ZYDIS_OPERAND_TYPE_IMMEDIATE;
}

static inline bool is_gpr(const struct x86_decode *d, unsigned i)
{
    return is_reg(d, i) && d->op[i].reg.value >= ZYDIS_REGISTER_AL &&
           d->op[i].reg.value <= ZYDIS_REGISTER_R15;
}

/* Table ends. */
#define X86_BIND_END                                                                               \
    {                                                                                              \
        ZYDIS_MNEMONIC_INVALID, NULL                                                               \
    }

#endif
