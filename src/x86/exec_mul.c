/*
 * Multiplication and division, and decimal arithmetic. vCPU thread.
 * SDM vol. 1 section 7.3.2. Division errors are found before the host divides, so it never faults.
 */
#include "x86/exec_int.h"
#include "x86/host_alu.h"

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

/*
 * --- decimal: the host has none of these in 64-bit mode ---
 *
 * The flags that the manuals leave undefined are AMD's: those of the addition or subtraction that
 * the adjustment is.
 */

enum { ADJUST_MASK = X86_CF | X86_AF };

/* AAA and AAS: a 16-bit addition of 106, or of nothing. */
static void ascii_adjust(struct x86_cpu *cpu, host_binary *operate)
{
    uint64_t ax = gpr_read(cpu, X86_RAX, 2), flags = cpu->s.rflags;
    bool adjust = (ax & 15) > 9 || flags & X86_AF;

    ax = operate(ax, adjust ? 0x106 : 0, &flags);
    cpu->s.rflags = (flags & ~(uint64_t)ADJUST_MASK) | (adjust ? ADJUST_MASK : 0);
    gpr_write(cpu, X86_RAX, 2, ax & 0xff0f);
}

static uint64_t add_2(uint64_t a, uint64_t b, uint64_t *rflags)
{
    return host_add_2(a, b, rflags);
}

static uint64_t sub_2(uint64_t a, uint64_t b, uint64_t *rflags)
{
    return host_sub_2(a, b, rflags);
}

static void aaa(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    ascii_adjust(cpu, add_2);
}

static void aas(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    ascii_adjust(cpu, sub_2);
}

/* What DAA adds and DAS subtracts. */
static uint64_t decimal_adjustment(const struct x86_cpu *cpu)
{
    uint64_t al = gpr_read(cpu, X86_RAX, 1), adjustment = 0;

    if ((al & 15) > 9 || cpu->s.rflags & X86_AF)
        adjustment = 6;
    if (al > 0x99 || cpu->s.rflags & X86_CF)
        adjustment += 0x60;
    return adjustment;
}

static void daa(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    uint64_t adjustment = decimal_adjustment(cpu), flags = cpu->s.rflags;

    gpr_write(cpu, X86_RAX, 1, host_add_1(gpr_read(cpu, X86_RAX, 1), adjustment, &flags));
    flags &= ~(uint64_t)ADJUST_MASK;
    flags |= adjustment & 6 ? X86_AF : 0;
    cpu->s.rflags = flags | (adjustment & 0x60 ? X86_CF : 0);
}

/* Here the borrow of the low digit counts, too. */
static void das(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    uint64_t adjustment = decimal_adjustment(cpu), flags = cpu->s.rflags;
    uint64_t al = gpr_read(cpu, X86_RAX, 1);
    bool borrow = (adjustment & 6) > al;

    gpr_write(cpu, X86_RAX, 1, host_sub_1(al, adjustment, &flags));
    flags &= ~(uint64_t)ADJUST_MASK;
    flags |= adjustment & 6 ? X86_AF : 0;
    cpu->s.rflags = flags | (adjustment & 0x60 || borrow ? X86_CF : 0);
}

static void aam(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    uint8_t base = (uint8_t)insn->imm, al = (uint8_t)cpu->s.gpr[X86_RAX];

    if (!base)
        x86_raise(cpu, X86_DE);
    gpr_write(cpu, X86_RAX, 2, (uint64_t)(al / base) << 8 | al % base);
    host_add_1(al % base, 0, &cpu->s.rflags);
}

static void aad(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    uint64_t ax = gpr_read(cpu, X86_RAX, 2);
    gpr_write(cpu, X86_RAX, 2, host_add_1(ax, (ax >> 8) * insn->imm, &cpu->s.rflags) & 0xff);
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
