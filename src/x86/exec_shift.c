/*
 * Shifts and rotates, double shifts, and the flagless shifts of BMI2. vCPU thread.
 * SDM vol. 1 section 7.3.6. The host masks counts and leaves flags alone as the guest's would.
 */
#include "x86/exec_int.h"

#define SIZES(name)                                                                                \
    {                                                                                              \
        name##_1, name##_2, name##_4, name##_8                                                     \
    }

/*
 * In an immediate count of ROL and ROR: OF, which the manuals leave undefined for counts other than
 * 1, keeps its value. Intel's processors do so, for registers only; translated code executes that
 * form, this here the one with CL, which changes it.
 */
#define KEEP_OF 0x100u

/* The count is in CL. */
#define HOST_SHIFT(name, insn, n, type)                                                            \
    ALWAYS_INLINE uint64_t host_##name##_##n(uint64_t a, uint64_t count, uint64_t *rflags)         \
    {                                                                                              \
        type v = (type)a;                                                                          \
        uint64_t ax = flags_split(*rflags);                                                        \
        __asm__(FLAGS_IN insn " %%cl, %0" FLAGS_OUT                                                \
                : "+r"(v), "+&a"(ax)                                                               \
                : "c"((uint8_t)count)                                                              \
                : "cc");                                                                           \
        uint64_t kept = count & KEEP_OF ? *rflags & X86_OF : 0;                                    \
        *rflags = flags_join(*rflags, ax);                                                         \
        if (count & KEEP_OF)                                                                       \
            *rflags = (*rflags & ~X86_OF) | kept;                                                  \
        return v;                                                                                  \
    }

/* Forms: register or memory, by CL or by an immediate. */
#define SHIFT_HANDLERS(name, insn, n, type)                                                        \
    HOST_SHIFT(name, insn, n, type)                                                                \
    static void name##_rc_##n(struct x86_cpu *cpu, const struct x86_insn *i)                       \
    {                                                                                              \
        uint64_t v = reg_read(cpu, i->dst, n);                                                     \
        uint8_t count = (uint8_t)cpu->s.gpr[X86_RCX];                                              \
        reg_write(cpu, i->dst, n, host_##name##_##n(v, count, &cpu->s.rflags));                    \
    }                                                                                              \
    static void name##_ri_##n(struct x86_cpu *cpu, const struct x86_insn *i)                       \
    {                                                                                              \
        uint64_t v = reg_read(cpu, i->dst, n);                                                     \
        reg_write(cpu, i->dst, n, host_##name##_##n(v, i->imm, &cpu->s.rflags));                   \
    }                                                                                              \
    static void name##_mc_##n(struct x86_cpu *cpu, const struct x86_insn *i)                       \
    {                                                                                              \
        uint64_t la = x86_operand_la(cpu, i, n, X86_WRITE);                                        \
        mem_modify(cpu, la, n, host_##name##_##n, (uint8_t)cpu->s.gpr[X86_RCX]);                   \
    }                                                                                              \
    static void name##_mi_##n(struct x86_cpu *cpu, const struct x86_insn *i)                       \
    {                                                                                              \
        mem_modify(cpu, x86_operand_la(cpu, i, n, X86_WRITE), n, host_##name##_##n, i->imm);       \
    }

static bool bind_shift(const struct x86_decode *d, struct x86_insn *out,
                       x86_handler *const handlers[4][4])
{
    unsigned form = (is_mem(d, 0) ? 2u : 0u) + (is_imm(d, 1) ? 1u : 0u);
    out->run = handlers[form][size_index(out->size)];
    out->imm = (uint8_t)out->imm;
    return true;
}

#define SHIFT(name)                                                                                \
    SHIFT_HANDLERS(name, #name "b", 1, uint8_t)                                                    \
    SHIFT_HANDLERS(name, #name "w", 2, uint16_t)                                                   \
    SHIFT_HANDLERS(name, #name "l", 4, uint32_t)                                                   \
    SHIFT_HANDLERS(name, #name "q", 8, uint64_t)                                                   \
    static bool bind_##name(const struct x86_decode *d, struct x86_insn *out)                      \
    {                                                                                              \
        static x86_handler *const handlers[4][4] = {SIZES(name##_rc), SIZES(name##_ri),            \
                                                    SIZES(name##_mc), SIZES(name##_mi)};           \
        return bind_shift(d, out, handlers);                                                       \
    }

SHIFT(shl);
SHIFT(shr);
SHIFT(sar);
SHIFT(rol);
SHIFT(ror);
SHIFT(rcl);
SHIFT(rcr);

/* Measured: add $0x7f, %al sets OF; rol $2, %al. */
bool x86_host_rotate_keeps_of(void)
{
    uint8_t v = 1;
    bool of;

    __asm__("addb $0x7f, %1; rolb $2, %1" : "=@cco"(of), "+q"(v) : : "cc");
    return of;
}

static bool keep_of(const struct x86_decode *d, struct x86_insn *out)
{
    unsigned count = (unsigned)out->imm & (out->size == 8 ? 63 : 31);
    if (d->rotate_keeps_of && !is_mem(d, 0) && is_imm(d, 1) && count != 1)
        out->imm |= KEEP_OF;
    return true;
}

static bool bind_rotate_left(const struct x86_decode *d, struct x86_insn *out)
{
    return bind_rol(d, out) && keep_of(d, out);
}

static bool bind_rotate_right(const struct x86_decode *d, struct x86_insn *out)
{
    return bind_ror(d, out) && keep_of(d, out);
}

/* --- SHLD, SHRD --- */

#define DOUBLE_HANDLERS(name, insn, n, type)                                                       \
    ALWAYS_INLINE uint64_t host_##name##_##n(uint64_t a, uint64_t b, uint64_t count,               \
                                             uint64_t *rflags)                                     \
    {                                                                                              \
        type v = (type)a;                                                                          \
        uint64_t ax = flags_split(*rflags);                                                        \
        __asm__(FLAGS_IN insn " %%cl, %2, %0" FLAGS_OUT                                            \
                : "+r"(v), "+&a"(ax)                                                               \
                : "r"((type)b), "c"((uint8_t)count)                                                \
                : "cc");                                                                           \
        *rflags = flags_join(*rflags, ax);                                                         \
        return v;                                                                                  \
    }                                                                                              \
    ALWAYS_INLINE void name##_r_##n(struct x86_cpu *cpu, const struct x86_insn *i, uint64_t count) \
    {                                                                                              \
        uint64_t a = reg_read(cpu, i->dst, n), b = reg_read(cpu, i->src, n);                       \
        reg_write(cpu, i->dst, n, host_##name##_##n(a, b, count, &cpu->s.rflags));                 \
    }                                                                                              \
    ALWAYS_INLINE void name##_m_##n(struct x86_cpu *cpu, const struct x86_insn *i, uint64_t count) \
    {                                                                                              \
        uint64_t la = x86_operand_la(cpu, i, n, X86_WRITE), b = reg_read(cpu, i->dst, n);          \
        x86_probe_write(cpu, la, n);                                                               \
        uint64_t a = x86_load(cpu, la, n);                                                         \
        x86_store(cpu, la, n, host_##name##_##n(a, b, count, &cpu->s.rflags));                     \
    }                                                                                              \
    static void name##_rc_##n(struct x86_cpu *cpu, const struct x86_insn *i)                       \
    {                                                                                              \
        name##_r_##n(cpu, i, cpu->s.gpr[X86_RCX]);                                                 \
    }                                                                                              \
    static void name##_ri_##n(struct x86_cpu *cpu, const struct x86_insn *i)                       \
    {                                                                                              \
        name##_r_##n(cpu, i, i->imm);                                                              \
    }                                                                                              \
    static void name##_mc_##n(struct x86_cpu *cpu, const struct x86_insn *i)                       \
    {                                                                                              \
        name##_m_##n(cpu, i, cpu->s.gpr[X86_RCX]);                                                 \
    }                                                                                              \
    static void name##_mi_##n(struct x86_cpu *cpu, const struct x86_insn *i)                       \
    {                                                                                              \
        name##_m_##n(cpu, i, i->imm);                                                              \
    }

#define DOUBLE_SIZES(name)                                                                         \
    {                                                                                              \
        name##_2, name##_4, name##_8                                                               \
    }
#define DOUBLE(name)                                                                               \
    DOUBLE_HANDLERS(name, #name "w", 2, uint16_t)                                                  \
    DOUBLE_HANDLERS(name, #name "l", 4, uint32_t)                                                  \
    DOUBLE_HANDLERS(name, #name "q", 8, uint64_t)                                                  \
    static bool bind_##name(const struct x86_decode *d, struct x86_insn *out)                      \
    {                                                                                              \
        static x86_handler *const handlers[4][3] = {                                               \
            DOUBLE_SIZES(name##_rc), DOUBLE_SIZES(name##_ri), DOUBLE_SIZES(name##_mc),             \
            DOUBLE_SIZES(name##_mi)};                                                              \
        unsigned form = (is_mem(d, 0) ? 2u : 0u) + (is_imm(d, 2) ? 1u : 0u);                       \
        out->run = handlers[form][size_index(out->size) - 1];                                      \
        return true;                                                                               \
    }

DOUBLE(shld);
DOUBLE(shrd);

/* --- SHLX, SHRX, SARX, RORX: no flags --- */

#define FLAGLESS_SIZE(name, n, expression)                                                         \
    ALWAYS_INLINE uint64_t host_##name##_##n(uint64_t v, unsigned count)                           \
    {                                                                                              \
        return expression;                                                                         \
    }                                                                                              \
    static void name##_r_##n(struct x86_cpu *cpu, const struct x86_insn *i)                        \
    {                                                                                              \
        unsigned count = (unsigned)reg_read(cpu, i->src2, 1) & (8 * n - 1);                        \
        uint64_t v = reg_read(cpu, i->src, n);                                                     \
        reg_write(cpu, i->dst, n, host_##name##_##n(v, count));                                    \
    }                                                                                              \
    static void name##_m_##n(struct x86_cpu *cpu, const struct x86_insn *i)                        \
    {                                                                                              \
        unsigned count = (unsigned)reg_read(cpu, i->src, 1) & (8 * n - 1);                         \
        uint64_t v = mem_load(cpu, i, n);                                                          \
        reg_write(cpu, i->dst, n, host_##name##_##n(v, count));                                    \
    }
#define FLAGLESS(name, expression_4, expression_8)                                                 \
    FLAGLESS_SIZE(name, 4, expression_4)                                                           \
    FLAGLESS_SIZE(name, 8, expression_8)                                                           \
    static bool bind_##name(const struct x86_decode *d, struct x86_insn *out)                      \
    {                                                                                              \
        static x86_handler *const handlers[2][2] = {{name##_r_4, name##_r_8},                      \
                                                    {name##_m_4, name##_m_8}};                     \
        out->run = handlers[is_mem(d, 1)][out->size == 8];                                         \
        return true;                                                                               \
    }

FLAGLESS(shlx, v << count, v << count);
FLAGLESS(shrx, v >> count, v >> count);
FLAGLESS(sarx, (uint64_t)((int32_t)v >> count), (uint64_t)((int64_t)v >> count));

ALWAYS_INLINE uint64_t rotate_right(uint64_t v, unsigned size, unsigned count)
{
    if (size == 4)
        return (uint32_t)v >> (count & 31) | (uint32_t)v << (-count & 31);
    return v >> (count & 63) | v << (-count & 63);
}

#define RORX(n)                                                                                    \
    static void rorx_r_##n(struct x86_cpu *cpu, const struct x86_insn *i)                          \
    {                                                                                              \
        uint64_t v = reg_read(cpu, i->src, n);                                                     \
        reg_write(cpu, i->dst, n, rotate_right(v, n, (unsigned)i->imm));                           \
    }                                                                                              \
    static void rorx_m_##n(struct x86_cpu *cpu, const struct x86_insn *i)                          \
    {                                                                                              \
        reg_write(cpu, i->dst, n, rotate_right(mem_load(cpu, i, n), n, (unsigned)i->imm));         \
    }
RORX(4);
RORX(8);

static bool bind_rorx(const struct x86_decode *d, struct x86_insn *out)
{
    static x86_handler *const handlers[2][2] = {{rorx_r_4, rorx_r_8}, {rorx_m_4, rorx_m_8}};
    out->run = handlers[is_mem(d, 1)][out->size == 8];
    return true;
}

const struct x86_bind x86_bind_shift[] = {
    {ZYDIS_MNEMONIC_SHL, bind_shl},          {ZYDIS_MNEMONIC_SHR, bind_shr},
    {ZYDIS_MNEMONIC_SAR, bind_sar},          {ZYDIS_MNEMONIC_ROL, bind_rotate_left},
    {ZYDIS_MNEMONIC_ROR, bind_rotate_right}, {ZYDIS_MNEMONIC_RCL, bind_rcl},
    {ZYDIS_MNEMONIC_RCR, bind_rcr},          {ZYDIS_MNEMONIC_SHLD, bind_shld},
    {ZYDIS_MNEMONIC_SHRD, bind_shrd},        {ZYDIS_MNEMONIC_SHLX, bind_shlx},
    {ZYDIS_MNEMONIC_SHRX, bind_shrx},        {ZYDIS_MNEMONIC_SARX, bind_sarx},
    {ZYDIS_MNEMONIC_RORX, bind_rorx},        X86_BIND_END,
};
