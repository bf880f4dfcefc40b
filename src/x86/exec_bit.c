/*
 * Bit tests, scans and counts, BMI1/BMI2 bit fields, CRC32. vCPU thread.
 * SDM vol. 1 sections 7.3.7 and 5.1.16.
 */
#include "x86/exec_bit.h"
#include "x86/exec_int.h"

#define WIDE_SIZES(name)                                                                           \
    {                                                                                              \
        name##_2, name##_4, name##_8                                                               \
    }

/* --- BT, BTS, BTR, BTC --- */

ALWAYS_INLINE void bt_look(struct x86_cpu *cpu, uint64_t la, unsigned size, host_binary *op,
                           uint64_t bit)
{
    op(x86_load(cpu, la, size), bit, &cpu->s.rflags);
}

#define BIT_HANDLERS(name, n, ACCESS, memory)                                                      \
    static void name##_rr_##n(struct x86_cpu *cpu, const struct x86_insn *i)                       \
    {                                                                                              \
        uint64_t a = reg_read(cpu, i->dst, n), b = reg_read(cpu, i->src, n);                       \
        uint64_t v = host_##name##_##n(a, b, &cpu->s.rflags);                                      \
        if (ACCESS == X86_WRITE)                                                                   \
            reg_write(cpu, i->dst, n, v);                                                          \
    }                                                                                              \
    static void name##_ri_##n(struct x86_cpu *cpu, const struct x86_insn *i)                       \
    {                                                                                              \
        uint64_t v = host_##name##_##n(reg_read(cpu, i->dst, n), i->imm, &cpu->s.rflags);          \
        if (ACCESS == X86_WRITE)                                                                   \
            reg_write(cpu, i->dst, n, v);                                                          \
    }                                                                                              \
    static void name##_mr_##n(struct x86_cpu *cpu, const struct x86_insn *i)                       \
    {                                                                                              \
        uint64_t bit = reg_read(cpu, i->dst, n);                                                   \
        memory(cpu, bit_string_la(cpu, i, n, bit, ACCESS), n, host_##name##_##n, bit);             \
    }                                                                                              \
    static void name##_mi_##n(struct x86_cpu *cpu, const struct x86_insn *i)                       \
    {                                                                                              \
        memory(cpu, x86_operand_la(cpu, i, n, ACCESS), n, host_##name##_##n, i->imm);              \
    }

static bool bind_bit(const struct x86_decode *d, struct x86_insn *out,
                     x86_handler *const handlers[4][3])
{
    if (out->flags & X86_INSN_LOCK)
        return false; /* exec_atomic.c */
    unsigned form = (is_mem(d, 0) ? 2u : 0u) + (is_imm(d, 1) ? 1u : 0u);
    out->run = handlers[form][size_index(out->size) - 1];
    return true;
}

#define BITS(name, ACCESS, memory)                                                                 \
    BIT_HANDLERS(name, 2, ACCESS, memory)                                                          \
    BIT_HANDLERS(name, 4, ACCESS, memory)                                                          \
    BIT_HANDLERS(name, 8, ACCESS, memory)                                                          \
    static bool bind_##name(const struct x86_decode *d, struct x86_insn *out)                      \
    {                                                                                              \
        static x86_handler *const handlers[4][3] = {WIDE_SIZES(name##_rr), WIDE_SIZES(name##_ri),  \
                                                    WIDE_SIZES(name##_mr), WIDE_SIZES(name##_mi)}; \
        return bind_bit(d, out, handlers);                                                         \
    }

BITS(bt, X86_READ, bt_look);
BITS(bts, X86_WRITE, mem_modify);
BITS(btr, X86_WRITE, mem_modify);
BITS(btc, X86_WRITE, mem_modify);

/* --- scans and counts: destination register, source register or memory --- */

/*
 * The destination goes in whole: BSF and BSR of zero leave it alone, even the upper half of a
 * 32-bit one, and the host decides that here.
 */
#define SCAN_HANDLERS(name, insn, n, modifier)                                                     \
    ALWAYS_INLINE void name##_##n(struct x86_cpu *cpu, const struct x86_insn *i, uint64_t b)       \
    {                                                                                              \
        uint64_t v = reg_read(cpu, i->dst, 8), ax = flags_split(cpu->s.rflags);                    \
        __asm__(FLAGS_IN insn " %" modifier "2, %" modifier "0" FLAGS_OUT                          \
                : "+r"(v), "+&a"(ax)                                                               \
                : "r"(b)                                                                           \
                : "cc");                                                                           \
        cpu->s.rflags = flags_join(cpu->s.rflags, ax);                                             \
        reg_write(cpu, i->dst, 8, v);                                                              \
    }                                                                                              \
    static void name##_r_##n(struct x86_cpu *cpu, const struct x86_insn *i)                        \
    {                                                                                              \
        name##_##n(cpu, i, reg_read(cpu, i->src, n));                                              \
    }                                                                                              \
    static void name##_m_##n(struct x86_cpu *cpu, const struct x86_insn *i)                        \
    {                                                                                              \
        name##_##n(cpu, i, mem_load(cpu, i, n));                                                   \
    }

#define SCAN(name)                                                                                 \
    SCAN_HANDLERS(name, #name "w", 2, "w")                                                         \
    SCAN_HANDLERS(name, #name "l", 4, "k")                                                         \
    SCAN_HANDLERS(name, #name "q", 8, "q")                                                         \
    static bool bind_##name(const struct x86_decode *d, struct x86_insn *out)                      \
    {                                                                                              \
        static x86_handler *const handlers[2][3] = {WIDE_SIZES(name##_r), WIDE_SIZES(name##_m)};   \
        out->run = handlers[is_mem(d, 1)][size_index(out->size) - 1];                              \
        return true;                                                                               \
    }

SCAN(bsf);
SCAN(bsr);
SCAN(tzcnt);
SCAN(lzcnt);
SCAN(popcnt);

/* --- BMI1, BMI2 with two operands: destination and source --- */

#define PAIR_SIZES(name)                                                                           \
    {                                                                                              \
        name##_4, name##_8                                                                         \
    }

#define BLS_HANDLERS(name, insn, n, type)                                                          \
    ALWAYS_INLINE void name##_##n(struct x86_cpu *cpu, const struct x86_insn *i, uint64_t b)       \
    {                                                                                              \
        type v;                                                                                    \
        uint64_t ax = flags_split(cpu->s.rflags);                                                  \
        __asm__(FLAGS_IN insn " %2, %0" FLAGS_OUT : "=&r"(v), "+&a"(ax) : "r"((type)b) : "cc");    \
        cpu->s.rflags = flags_join(cpu->s.rflags, ax);                                             \
        reg_write(cpu, i->dst, n, v);                                                              \
    }                                                                                              \
    static void name##_r_##n(struct x86_cpu *cpu, const struct x86_insn *i)                        \
    {                                                                                              \
        name##_##n(cpu, i, reg_read(cpu, i->src, n));                                              \
    }                                                                                              \
    static void name##_m_##n(struct x86_cpu *cpu, const struct x86_insn *i)                        \
    {                                                                                              \
        name##_##n(cpu, i, mem_load(cpu, i, n));                                                   \
    }
#define BLS(name)                                                                                  \
    BLS_HANDLERS(name, #name "l", 4, uint32_t)                                                     \
    BLS_HANDLERS(name, #name "q", 8, uint64_t)                                                     \
    static bool bind_##name(const struct x86_decode *d, struct x86_insn *out)                      \
    {                                                                                              \
        static x86_handler *const handlers[2][2] = {PAIR_SIZES(name##_r), PAIR_SIZES(name##_m)};   \
        out->run = handlers[is_mem(d, 1)][out->size == 8];                                         \
        return true;                                                                               \
    }

BLS(blsi);
BLS(blsmsk);
BLS(blsr);

/* --- BMI1, BMI2 with three operands --- */

/* In the manual's order a, b, c: `insn c, b, a` for the host's assembler. */
#define FIELD_HOST(name, insn, n, type)                                                            \
    ALWAYS_INLINE uint64_t host_##name##_##n(uint64_t b, uint64_t c, uint64_t *rflags)             \
    {                                                                                              \
        type v;                                                                                    \
        uint64_t ax = flags_split(*rflags);                                                        \
        __asm__(FLAGS_IN insn " %3, %2, %0" FLAGS_OUT                                              \
                : "=&r"(v), "+&a"(ax)                                                              \
                : "r"((type)b), "r"((type)c)                                                       \
                : "cc");                                                                           \
        *rflags = flags_join(*rflags, ax);                                                         \
        return v;                                                                                  \
    }
/* The memory operand, if there is one, is b (BEXTR, BZHI) or c (ANDN, PDEP, PEXT). */
#define FIELD_HANDLERS(name, insn, n, type, middle)                                                \
    FIELD_HOST(name, insn, n, type)                                                                \
    static void name##_r_##n(struct x86_cpu *cpu, const struct x86_insn *i)                        \
    {                                                                                              \
        uint64_t b = reg_read(cpu, i->src, n), c = reg_read(cpu, i->src2, n);                      \
        reg_write(cpu, i->dst, n, host_##name##_##n(b, c, &cpu->s.rflags));                        \
    }                                                                                              \
    static void name##_m_##n(struct x86_cpu *cpu, const struct x86_insn *i)                        \
    {                                                                                              \
        uint64_t m = mem_load(cpu, i, n), r = reg_read(cpu, i->src, n);                            \
        uint64_t b = middle ? m : r, c = middle ? r : m;                                           \
        reg_write(cpu, i->dst, n, host_##name##_##n(b, c, &cpu->s.rflags));                        \
    }
#define FIELD(name, middle)                                                                        \
    FIELD_HANDLERS(name, #name "l", 4, uint32_t, middle)                                           \
    FIELD_HANDLERS(name, #name "q", 8, uint64_t, middle)                                           \
    static bool bind_##name(const struct x86_decode *d, struct x86_insn *out)                      \
    {                                                                                              \
        static x86_handler *const handlers[2][2] = {PAIR_SIZES(name##_r), PAIR_SIZES(name##_m)};   \
        out->run = handlers[(out->flags & X86_INSN_MEM) != 0][out->size == 8];                     \
        return true;                                                                               \
    }

FIELD(andn, false);
FIELD(pdep, false);
FIELD(pext, false);
FIELD(bextr, true);
FIELD(bzhi, true);

/* --- CRC32: source of any size, destination 32 or 64 bits --- */

#define CRC_HANDLERS(insn, n, type, accumulator)                                                   \
    ALWAYS_INLINE void crc32_##n(struct x86_cpu *cpu, const struct x86_insn *i, uint64_t b)        \
    {                                                                                              \
        accumulator v = (accumulator)reg_read(cpu, i->dst, 8);                                     \
        __asm__(insn " %1, %0" : "+r"(v) : "r"((type)b));                                          \
        reg_write(cpu, i->dst, 8, v);                                                              \
    }                                                                                              \
    static void crc32_r_##n(struct x86_cpu *cpu, const struct x86_insn *i)                         \
    {                                                                                              \
        crc32_##n(cpu, i, reg_read(cpu, i->src, n));                                               \
    }                                                                                              \
    static void crc32_m_##n(struct x86_cpu *cpu, const struct x86_insn *i)                         \
    {                                                                                              \
        crc32_##n(cpu, i, mem_load(cpu, i, n));                                                    \
    }

CRC_HANDLERS("crc32b", 1, uint8_t, uint32_t);
CRC_HANDLERS("crc32w", 2, uint16_t, uint32_t);
CRC_HANDLERS("crc32l", 4, uint32_t, uint32_t);
CRC_HANDLERS("crc32q", 8, uint64_t, uint64_t);

static bool bind_crc32(const struct x86_decode *d, struct x86_insn *out)
{
    static x86_handler *const handlers[2][4] = {{crc32_r_1, crc32_r_2, crc32_r_4, crc32_r_8},
                                                {crc32_m_1, crc32_m_2, crc32_m_4, crc32_m_8}};
    out->run = handlers[is_mem(d, 1)][size_index(d->op[1].size / 8u)];
    return true;
}

const struct x86_bind x86_bind_bit[] = {
    {ZYDIS_MNEMONIC_BT, bind_bt},
    {ZYDIS_MNEMONIC_BTS, bind_bts},
    {ZYDIS_MNEMONIC_BTR, bind_btr},
    {ZYDIS_MNEMONIC_BTC, bind_btc},
    {ZYDIS_MNEMONIC_BSF, bind_bsf},
    {ZYDIS_MNEMONIC_BSR, bind_bsr},
    {ZYDIS_MNEMONIC_TZCNT, bind_tzcnt},
    {ZYDIS_MNEMONIC_LZCNT, bind_lzcnt},
    {ZYDIS_MNEMONIC_POPCNT, bind_popcnt},
    {ZYDIS_MNEMONIC_BLSI, bind_blsi},
    {ZYDIS_MNEMONIC_BLSMSK, bind_blsmsk},
    {ZYDIS_MNEMONIC_BLSR, bind_blsr},
    {ZYDIS_MNEMONIC_ANDN, bind_andn},
    {ZYDIS_MNEMONIC_PDEP, bind_pdep},
    {ZYDIS_MNEMONIC_PEXT, bind_pext},
    {ZYDIS_MNEMONIC_BEXTR, bind_bextr},
    {ZYDIS_MNEMONIC_BZHI, bind_bzhi},
    {ZYDIS_MNEMONIC_CRC32, bind_crc32},
    X86_BIND_END,
};
