/*
 * Multiplication and division, and decimal arithmetic. vCPU thread.
 * SDM vol. 1 section 7.3.2. Division errors are found before the host divides, so it never faults.
 */
#include "x86/exec_int.h"

#define SIZES(name)                                                                                \
    {                                                                                              \
        name##_1, name##_2, name##_4, name##_8                                                     \
    }

/* --- MUL, IMUL, DIV, IDIV on the accumulator pair --- */

/* RAX and RDX in and out; for bytes the pair is AX alone. */
#define HOST_PAIR(name, insn, n, type)                                                             \
    ALWAYS_INLINE void host_##name##_##n(uint64_t *rax, uint64_t *rdx, uint64_t b,                 \
                                         uint64_t *rflags)                                         \
    {                                                                                              \
        uint64_t ax = flags_split(*rflags), lo = *rax, hi = *rdx;                                  \
        __asm__(FLAGS_IN "movq %[lo], %%rax\n\t" insn " %[b]\n\t"                                  \
                         "movq %%rax, %[lo]" FLAGS_OUT                                             \
                : "+&a"(ax), [lo] "+&r"(lo), "+&d"(hi)                                             \
                : [b] "r"((type)b)                                                                 \
                : "cc");                                                                           \
        *rflags = flags_join(*rflags, ax);                                                         \
        *rax = lo;                                                                                 \
        *rdx = hi;                                                                                 \
    }

/* What would be out of range of the quotient raises #DE. Operands are of the size. */
ALWAYS_INLINE bool div_fits(unsigned size, uint64_t rax, uint64_t rdx, uint64_t b)
{
    switch (size) {
    case 1:
        return (rax >> 8 & 0xff) < b;
    case 2:
        return (rdx & 0xffff) < b;
    case 4:
        return (rdx & 0xffffffff) < b;
    default:
        return rdx < b;
    }
}

/* Does a signed dividend of up to 64 bits divided by b fit `size` bytes? */
static bool idiv_fits_small(int64_t dividend, int64_t b, unsigned size)
{
    int64_t max = (int64_t)(size_mask(size) >> 1);

    if (b == 0)
        return false;
    if (b == -1)
        return dividend >= -max && dividend <= max + 1;
    int64_t quotient = dividend / b;
    return quotient >= -max - 1 && quotient <= max;
}

static bool idiv_fits_8(uint64_t rax, uint64_t rdx, int64_t b)
{
    bool negative_dividend = (int64_t)rdx < 0;
    bool negative = negative_dividend != (b < 0);
    uint64_t lo = negative_dividend ? -rax : rax;
    uint64_t hi = negative_dividend ? ~rdx + (rax == 0) : rdx;
    uint64_t divisor = b < 0 ? -(uint64_t)b : (uint64_t)b;
    uint64_t quotient, rest;

    if (hi >= divisor) /* also b == 0 */
        return false;
    __asm__("divq %4" : "=a"(quotient), "=d"(rest) : "a"(lo), "d"(hi), "r"(divisor) : "cc");
    return quotient <= (uint64_t)INT64_MAX + negative;
}

ALWAYS_INLINE bool idiv_fits(unsigned size, uint64_t rax, uint64_t rdx, uint64_t b)
{
    switch (size) {
    case 1:
        return idiv_fits_small((int16_t)rax, (int8_t)b, 1);
    case 2:
        return idiv_fits_small((int32_t)((rdx & 0xffff) << 16 | (rax & 0xffff)), (int16_t)b, 2);
    case 4:
        return idiv_fits_small((int64_t)(rdx << 32 | (rax & 0xffffffff)), (int32_t)b, 4);
    default:
        return idiv_fits_8(rax, rdx, (int64_t)b);
    }
}

ALWAYS_INLINE bool mul_fits(unsigned size, uint64_t rax, uint64_t rdx, uint64_t b)
{
    return true;
}
#define imul_fits mul_fits

#define PAIR_HANDLERS(name, insn, n, type)                                                         \
    HOST_PAIR(name, insn, n, type)                                                                 \
    ALWAYS_INLINE void name##_##n(struct x86_cpu *cpu, uint64_t b)                                 \
    {                                                                                              \
        uint64_t rax = cpu->s.gpr[X86_RAX], rdx = cpu->s.gpr[X86_RDX];                             \
        if (unlikely(!name##_fits(n, rax, rdx, b)))                                                \
            x86_raise(cpu, X86_DE);                                                                \
        host_##name##_##n(&rax, &rdx, b, &cpu->s.rflags);                                          \
        cpu->s.gpr[X86_RAX] = rax;                                                                 \
        cpu->s.gpr[X86_RDX] = rdx;                                                                 \
    }                                                                                              \
    static void name##_r_##n(struct x86_cpu *cpu, const struct x86_insn *i)                        \
    {                                                                                              \
        name##_##n(cpu, reg_read(cpu, i->dst, n));                                                 \
    }                                                                                              \
    static void name##_m_##n(struct x86_cpu *cpu, const struct x86_insn *i)                        \
    {                                                                                              \
        name##_##n(cpu, mem_load(cpu, i, n));                                                      \
    }

#define PAIR(name)                                                                                 \
    PAIR_HANDLERS(name, #name "b", 1, uint8_t)                                                     \
    PAIR_HANDLERS(name, #name "w", 2, uint16_t)                                                    \
    PAIR_HANDLERS(name, #name "l", 4, uint32_t)                                                    \
    PAIR_HANDLERS(name, #name "q", 8, uint64_t)                                                    \
    static bool bind_##name##_pair(const struct x86_decode *d, struct x86_insn *out)               \
    {                                                                                              \
        static x86_handler *const handlers[2][4] = {SIZES(name##_r), SIZES(name##_m)};             \
        out->run = handlers[is_mem(d, 0)][size_index((unsigned)d->op[0].size / 8)];                \
        return true;                                                                               \
    }

PAIR(mul);
PAIR(imul);
PAIR(div);
PAIR(idiv);

/* --- IMUL with two and three operands --- */

#define IMUL_HANDLERS(insn, n, type)                                                               \
    ALWAYS_INLINE uint64_t host_imul2_##n(uint64_t a, uint64_t b, uint64_t *rflags)                \
    {                                                                                              \
        type v = (type)a;                                                                          \
        uint64_t ax = flags_split(*rflags);                                                        \
        __asm__(FLAGS_IN insn " %2, %0" FLAGS_OUT : "+r"(v), "+&a"(ax) : "r"((type)b) : "cc");     \
        *rflags = flags_join(*rflags, ax);                                                         \
        return v;                                                                                  \
    }                                                                                              \
    static void imul_rr_##n(struct x86_cpu *cpu, const struct x86_insn *i)                         \
    {                                                                                              \
        uint64_t a = reg_read(cpu, i->dst, n), b = reg_read(cpu, i->src, n);                       \
        reg_write(cpu, i->dst, n, host_imul2_##n(a, b, &cpu->s.rflags));                           \
    }                                                                                              \
    static void imul_rm_##n(struct x86_cpu *cpu, const struct x86_insn *i)                         \
    {                                                                                              \
        uint64_t b = mem_load(cpu, i, n);                                                          \
        reg_write(cpu, i->dst, n, host_imul2_##n(reg_read(cpu, i->dst, n), b, &cpu->s.rflags));    \
    }                                                                                              \
    static void imul_rri_##n(struct x86_cpu *cpu, const struct x86_insn *i)                        \
    {                                                                                              \
        uint64_t b = reg_read(cpu, i->src, n);                                                     \
        reg_write(cpu, i->dst, n, host_imul2_##n(b, i->imm, &cpu->s.rflags));                      \
    }                                                                                              \
    static void imul_rmi_##n(struct x86_cpu *cpu, const struct x86_insn *i)                        \
    {                                                                                              \
        uint64_t b = mem_load(cpu, i, n);                                                          \
        reg_write(cpu, i->dst, n, host_imul2_##n(b, i->imm, &cpu->s.rflags));                      \
    }

IMUL_HANDLERS("imulw", 2, uint16_t);
IMUL_HANDLERS("imull", 4, uint32_t);
IMUL_HANDLERS("imulq", 8, uint64_t);

#define WIDE_SIZES(name)                                                                           \
    {                                                                                              \
        name##_2, name##_4, name##_8                                                               \
    }

static bool bind_imul(const struct x86_decode *d, struct x86_insn *out)
{
    static x86_handler *const handlers[2][2][3] = {{WIDE_SIZES(imul_rr), WIDE_SIZES(imul_rri)},
                                                   {WIDE_SIZES(imul_rm), WIDE_SIZES(imul_rmi)}};

    if (d->z->operand_count_visible == 1)
        return bind_imul_pair(d, out);
    bool three = d->z->operand_count_visible == 3;
    out->run = handlers[is_mem(d, 1)][three][size_index(out->size) - 1];
    return true;
}

/* --- MULX: high half to the first, low half to the second; the first wins --- */

ALWAYS_INLINE void run_mulx(struct x86_cpu *cpu, const struct x86_insn *i, unsigned size,
                            uint64_t b)
{
    unsigned __int128 product = (unsigned __int128)gpr_read(cpu, X86_RDX, size) * b;
    reg_write(cpu, i->src, size, (uint64_t)product);
    reg_write(cpu, i->dst, size, (uint64_t)(product >> (8 * size)));
}

#define MULX(n)                                                                                    \
    static void mulx_r_##n(struct x86_cpu *cpu, const struct x86_insn *i)                          \
    {                                                                                              \
        run_mulx(cpu, i, n, reg_read(cpu, i->src2, n));                                            \
    }                                                                                              \
    static void mulx_m_##n(struct x86_cpu *cpu, const struct x86_insn *i)                          \
    {                                                                                              \
        run_mulx(cpu, i, n, mem_load(cpu, i, n));                                                  \
    }
MULX(4);
MULX(8);

static bool bind_mulx(const struct x86_decode *d, struct x86_insn *out)
{
    static x86_handler *const handlers[2][2] = {{mulx_r_4, mulx_r_8}, {mulx_m_4, mulx_m_8}};
    out->run = handlers[is_mem(d, 2)][out->size == 8];
    return true;
}

/* --- decimal: the host has none of these in 64-bit mode; undefined flags are cleared --- */

static void set_result_flags(struct x86_cpu *cpu, uint64_t others)
{
    uint8_t al = (uint8_t)cpu->s.gpr[X86_RAX];
    uint64_t flags = others;

    flags |= al ? 0 : X86_ZF;
    flags |= al & 0x80 ? X86_SF : 0;
    flags |= __builtin_parity(al) ? 0 : X86_PF;
    cpu->s.rflags = (cpu->s.rflags & ~X86_STATUS_FLAGS) | flags;
}

/* AAA, AAS: sign is 1 or -1 */
static void ascii_adjust(struct x86_cpu *cpu, int sign)
{
    uint16_t ax = (uint16_t)cpu->s.gpr[X86_RAX];
    uint64_t carry = 0;

    if ((ax & 15) > 9 || cpu->s.rflags & X86_AF) {
        ax = (uint16_t)(ax + sign * 0x106);
        carry = X86_AF | X86_CF;
    }
    gpr_write(cpu, X86_RAX, 2, ax & 0xff0f);
    set_result_flags(cpu, carry);
}

static void aaa(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    ascii_adjust(cpu, 1);
}

static void aas(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    ascii_adjust(cpu, -1);
}

/* DAA, DAS */
static void decimal_adjust(struct x86_cpu *cpu, int sign)
{
    uint8_t old = (uint8_t)cpu->s.gpr[X86_RAX], al = old;
    bool cf = cpu->s.rflags & X86_CF;
    uint64_t flags = 0;

    if ((old & 15) > 9 || cpu->s.rflags & X86_AF) {
        al = (uint8_t)(al + sign * 6);
        flags |= X86_AF;
        /* Only DAS lets the borrow of the low digit through. */
        if (sign < 0 && old < 6)
            flags |= X86_CF;
    }
    if (old > 0x99 || cf) {
        al = (uint8_t)(al + sign * 0x60);
        flags |= X86_CF;
    }
    gpr_write(cpu, X86_RAX, 1, al);
    set_result_flags(cpu, flags);
}

static void daa(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    decimal_adjust(cpu, 1);
}

static void das(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    decimal_adjust(cpu, -1);
}

static void aam(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    uint8_t base = (uint8_t)insn->imm, al = (uint8_t)cpu->s.gpr[X86_RAX];

    if (!base)
        x86_raise(cpu, X86_DE);
    gpr_write(cpu, X86_RAX, 2, (uint64_t)(al / base) << 8 | al % base);
    set_result_flags(cpu, 0);
}

static void aad(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    uint64_t rax = cpu->s.gpr[X86_RAX];
    gpr_write(cpu, X86_RAX, 2, (rax + (rax >> 8 & 0xff) * insn->imm) & 0xff);
    set_result_flags(cpu, 0);
}

#define BIND_ONE(name)                                                                             \
    static bool bind_##name(const struct x86_decode *d, struct x86_insn *out)                      \
    {                                                                                              \
        out->run = name;                                                                           \
        return true;                                                                               \
    }
BIND_ONE(aaa);
BIND_ONE(aas);
BIND_ONE(daa);
BIND_ONE(das);
BIND_ONE(aam);
BIND_ONE(aad);

const struct x86_bind x86_bind_mul[] = {
    {ZYDIS_MNEMONIC_MUL, bind_mul_pair}, {ZYDIS_MNEMONIC_IMUL, bind_imul},
    {ZYDIS_MNEMONIC_DIV, bind_div_pair}, {ZYDIS_MNEMONIC_IDIV, bind_idiv_pair},
    {ZYDIS_MNEMONIC_MULX, bind_mulx},    {ZYDIS_MNEMONIC_AAA, bind_aaa},
    {ZYDIS_MNEMONIC_AAS, bind_aas},      {ZYDIS_MNEMONIC_DAA, bind_daa},
    {ZYDIS_MNEMONIC_DAS, bind_das},      {ZYDIS_MNEMONIC_AAM, bind_aam},
    {ZYDIS_MNEMONIC_AAD, bind_aad},      X86_BIND_END,
};
