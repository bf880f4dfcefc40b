/*
 * LOCK-prefixed instructions, XADD and CMPXCHG. vCPU thread. SDM vol. 3 section 9.1.
 *
 * A locked one is the host's own locked instruction on the guest's memory where that is directly
 * writable and inside one cache line; otherwise a load and a store while all other vCPUs stand
 * still. What can fault is tried before that, because a fault leaves by longjmp.
 */
#include "x86/exec_bit.h"
#include "x86/exec_int.h"
#include "x86/host_alu.h"

#define SIZES(name)                                                                                \
    {                                                                                              \
        name##_1, name##_2, name##_4, name##_8                                                     \
    }
#define WIDE_SIZES(name)                                                                           \
    {                                                                                              \
        NULL, name##_2, name##_4, name##_8                                                         \
    }

typedef void lock_binary(void *p, uint64_t b, uint64_t *rflags);

/* --- read-modify-write with two operands --- */

#define LOCK_HOST(name, insn, n, type)                                                             \
    ALWAYS_INLINE void lock_##name##_##n(void *p, uint64_t b, uint64_t *rflags)                    \
    {                                                                                              \
        uint64_t ax = flags_split(*rflags);                                                        \
        __asm__ volatile(FLAGS_IN "lock " insn " %2, (%1)" FLAGS_OUT                               \
                         : "+&a"(ax)                                                               \
                         : "r"(p), "r"((type)b)                                                    \
                         : "cc", "memory");                                                        \
        *rflags = flags_join(*rflags, ax);                                                         \
    }

ALWAYS_INLINE void locked(struct x86_cpu *cpu, uint64_t la, unsigned size, lock_binary *fast,
                          host_binary *plain, uint64_t b)
{
    void *p = x86_atomic_pointer(cpu, la, size);

    if (likely(p)) {
        fast(p, b, &cpu->s.rflags);
        return;
    }
    x86_probe_write(cpu, la, size);
    cpu->ops->exclusive_begin(cpu->context);
    x86_store(cpu, la, size, plain(x86_load(cpu, la, size), b, &cpu->s.rflags));
    cpu->ops->exclusive_end(cpu->context);
}

#define LOCK_HANDLERS(name, n, la_of_register)                                                     \
    static void name##_mr_##n(struct x86_cpu *cpu, const struct x86_insn *i)                       \
    {                                                                                              \
        uint64_t b = reg_read(cpu, i->dst, n);                                                     \
        locked(cpu, la_of_register(cpu, i, n, b), n, lock_##name##_##n, host_##name##_##n, b);     \
    }                                                                                              \
    static void name##_mi_##n(struct x86_cpu *cpu, const struct x86_insn *i)                       \
    {                                                                                              \
        uint64_t la = x86_operand_la(cpu, i, n, X86_WRITE);                                        \
        locked(cpu, la, n, lock_##name##_##n, host_##name##_##n, i->imm);                          \
    }

static bool bind_locked(struct x86_insn *out, x86_handler *const handlers[4])
{
    out->run = handlers[size_index(out->size)];
    return out->flags & X86_INSN_LOCK && out->run;
}

ALWAYS_INLINE uint64_t plain_la(struct x86_cpu *cpu, const struct x86_insn *i, unsigned size,
                                uint64_t b)
{
    return x86_operand_la(cpu, i, size, X86_WRITE);
}

ALWAYS_INLINE uint64_t bit_la(struct x86_cpu *cpu, const struct x86_insn *i, unsigned size,
                              uint64_t b)
{
    return bit_string_la(cpu, i, size, b, X86_WRITE);
}

/*
 * The host's BTS with a register bit number would reach beyond the operand as the guest's does;
 * bit_la has done that, so the number is cut. Its immediate forms come this way, too.
 */
#define LOCK_BIT_HOST(name, insn, n, type)                                                         \
    LOCK_HOST(name##_cut, insn, n, type)                                                           \
    ALWAYS_INLINE void lock_##name##_##n(void *p, uint64_t b, uint64_t *rflags)                    \
    {                                                                                              \
        lock_##name##_cut_##n(p, b &(8 * n - 1), rflags);                                          \
    }

#define LOCK_BIND(name, TABLE)                                                                     \
    static bool bind_##name(const struct x86_decode *d, struct x86_insn *out)                      \
    {                                                                                              \
        static x86_handler *const mr[] = TABLE(name##_mr), *const mi[] = TABLE(name##_mi);         \
        return bind_locked(out, is_imm(d, 1) ? mi : mr);                                           \
    }

#define LOCK_ALU(name)                                                                             \
    LOCK_HOST(name, #name "b", 1, uint8_t)                                                         \
    LOCK_HOST(name, #name "w", 2, uint16_t)                                                        \
    LOCK_HOST(name, #name "l", 4, uint32_t)                                                        \
    LOCK_HOST(name, #name "q", 8, uint64_t)                                                        \
    LOCK_HANDLERS(name, 1, plain_la)                                                               \
    LOCK_HANDLERS(name, 2, plain_la)                                                               \
    LOCK_HANDLERS(name, 4, plain_la)                                                               \
    LOCK_HANDLERS(name, 8, plain_la)                                                               \
    LOCK_BIND(name, SIZES)

#define LOCK_BIT(name)                                                                             \
    LOCK_BIT_HOST(name, #name "w", 2, uint16_t)                                                    \
    LOCK_BIT_HOST(name, #name "l", 4, uint32_t)                                                    \
    LOCK_BIT_HOST(name, #name "q", 8, uint64_t)                                                    \
    LOCK_HANDLERS(name, 2, bit_la)                                                                 \
    LOCK_HANDLERS(name, 4, bit_la)                                                                 \
    LOCK_HANDLERS(name, 8, bit_la)                                                                 \
    LOCK_BIND(name, WIDE_SIZES)

LOCK_ALU(add);
LOCK_ALU(or);
LOCK_ALU(adc);
LOCK_ALU(sbb);
LOCK_ALU(and);
LOCK_ALU(sub);
LOCK_ALU(xor);
LOCK_BIT(bts);
LOCK_BIT(btr);
LOCK_BIT(btc);

/* --- read-modify-write with one operand --- */

#define LOCK_UNARY_SIZE(name, insn, n, type)                                                       \
    ALWAYS_INLINE void lock_##name##_##n(void *p, uint64_t b, uint64_t *rflags)                    \
    {                                                                                              \
        uint64_t ax = flags_split(*rflags);                                                        \
        __asm__ volatile(FLAGS_IN "lock " insn " (%1)" FLAGS_OUT                                   \
                         : "+&a"(ax)                                                               \
                         : "r"(p)                                                                  \
                         : "cc", "memory");                                                        \
        *rflags = flags_join(*rflags, ax);                                                         \
    }                                                                                              \
    ALWAYS_INLINE uint64_t plain_##name##_##n(uint64_t a, uint64_t b, uint64_t *rflags)            \
    {                                                                                              \
        return host_##name##_##n(a, rflags);                                                       \
    }                                                                                              \
    static void name##_m_##n(struct x86_cpu *cpu, const struct x86_insn *i)                        \
    {                                                                                              \
        uint64_t la = x86_operand_la(cpu, i, n, X86_WRITE);                                        \
        locked(cpu, la, n, lock_##name##_##n, plain_##name##_##n, 0);                              \
    }

#define LOCK_UNARY(name)                                                                           \
    LOCK_UNARY_SIZE(name, #name "b", 1, uint8_t)                                                   \
    LOCK_UNARY_SIZE(name, #name "w", 2, uint16_t)                                                  \
    LOCK_UNARY_SIZE(name, #name "l", 4, uint32_t)                                                  \
    LOCK_UNARY_SIZE(name, #name "q", 8, uint64_t)                                                  \
    static bool bind_##name(const struct x86_decode *d, struct x86_insn *out)                      \
    {                                                                                              \
        static x86_handler *const handlers[] = SIZES(name##_m);                                    \
        return bind_locked(out, handlers);                                                         \
    }

LOCK_UNARY(inc);
LOCK_UNARY(dec);
LOCK_UNARY(neg);
LOCK_UNARY(not );

/* --- XADD --- */

#define LOCK_XADD(n, type)                                                                         \
    ALWAYS_INLINE uint64_t lock_xadd_##n(void *p, uint64_t b)                                      \
    {                                                                                              \
        type v = (type)b;                                                                          \
        __asm__ volatile("lock xadd %0, (%1)" : "+r"(v) : "r"(p) : "memory", "cc");                \
        return v;                                                                                  \
    }
LOCK_XADD(1, uint8_t);
LOCK_XADD(2, uint16_t);
LOCK_XADD(4, uint32_t);
LOCK_XADD(8, uint64_t);

/* Memory: locked always, which without the prefix is more than asked and does not show. */
ALWAYS_INLINE void run_xadd_m(struct x86_cpu *cpu, const struct x86_insn *i, unsigned size,
                              uint64_t (*xadd)(void *p, uint64_t b), host_binary *add)
{
    uint64_t la = x86_operand_la(cpu, i, size, X86_WRITE);
    uint64_t old, b = reg_read(cpu, i->dst, size);
    void *p = x86_atomic_pointer(cpu, la, size);

    if (likely(p)) {
        old = xadd(p, b);
        (void)add(old, b, &cpu->s.rflags);
    } else {
        x86_probe_write(cpu, la, size);
        cpu->ops->exclusive_begin(cpu->context);
        old = x86_load(cpu, la, size);
        x86_store(cpu, la, size, add(old, b, &cpu->s.rflags));
        cpu->ops->exclusive_end(cpu->context);
    }
    reg_write(cpu, i->dst, size, old);
}

#define XADD(n)                                                                                    \
    static void xadd_r_##n(struct x86_cpu *cpu, const struct x86_insn *i)                          \
    {                                                                                              \
        uint64_t a = reg_read(cpu, i->dst, n), b = reg_read(cpu, i->src, n);                       \
        uint64_t sum = host_add_##n(a, b, &cpu->s.rflags);                                         \
        reg_write(cpu, i->src, n, a);                                                              \
        reg_write(cpu, i->dst, n, sum);                                                            \
    }                                                                                              \
    static void xadd_m_##n(struct x86_cpu *cpu, const struct x86_insn *i)                          \
    {                                                                                              \
        run_xadd_m(cpu, i, n, lock_xadd_##n, host_add_##n);                                        \
    }
XADD(1);
XADD(2);
XADD(4);
XADD(8);

static bool bind_xadd(const struct x86_decode *d, struct x86_insn *out)
{
    static x86_handler *const r[] = SIZES(xadd_r), *const m[] = SIZES(xadd_m);
    out->run = (is_mem(d, 0) ? m : r)[size_index(out->size)];
    return true;
}

/* --- CMPXCHG --- */

/*
 * The register form is done on whole registers, so that the host decides what becomes of the upper
 * halves. RAX is needed for the flags afterwards.
 */
#define CMPXCHG_HANDLERS(insn, n, type, modifier)                                                  \
    static void cmpxchg_r_##n(struct x86_cpu *cpu, const struct x86_insn *i)                       \
    {                                                                                              \
        uint64_t rax = cpu->s.gpr[X86_RAX], a = reg_read(cpu, i->dst, n == 1 ? 1 : 8);             \
        uint64_t b = reg_read(cpu, i->src, n), ax = rax;                                           \
        __asm__(insn " %" modifier "3, %" modifier "0\n\tmovq %%rax, %2" FLAGS_OUT                 \
                : "+r"(a), "+&a"(ax), "=&r"(rax)                                                   \
                : "r"(b)                                                                           \
                : "cc");                                                                           \
        cpu->s.rflags = flags_join(cpu->s.rflags, ax);                                             \
        cpu->s.gpr[X86_RAX] = rax;                                                                 \
        if (i->dst != GPR_OFFSET(X86_RAX) || cpu->s.rflags & X86_ZF)                               \
            reg_write(cpu, i->dst, n == 1 ? 1 : 8, a);                                             \
    }                                                                                              \
    ALWAYS_INLINE void lock_cmpxchg_##n(void *p, uint64_t b, uint64_t *rflags, uint64_t *rax)      \
    {                                                                                              \
        uint64_t ax = *rax;                                                                        \
        __asm__ volatile("lock " insn " %" modifier "3, (%2)\n\tmovq %%rax, %1" FLAGS_OUT          \
                         : "+&a"(ax), "=&r"(*rax)                                                  \
                         : "r"(p), "r"(b)                                                          \
                         : "cc", "memory");                                                        \
        *rflags = flags_join(*rflags, ax);                                                         \
    }                                                                                              \
    static void cmpxchg_m_##n(struct x86_cpu *cpu, const struct x86_insn *i)                       \
    {                                                                                              \
        uint64_t la = x86_operand_la(cpu, i, n, X86_WRITE), b = reg_read(cpu, i->dst, n);          \
        uint64_t rax = cpu->s.gpr[X86_RAX];                                                        \
        void *p = x86_atomic_pointer(cpu, la, n);                                                  \
        if (likely(p)) {                                                                           \
            lock_cmpxchg_##n(p, b, &cpu->s.rflags, &rax);                                          \
        } else {                                                                                   \
            x86_probe_write(cpu, la, n);                                                           \
            cpu->ops->exclusive_begin(cpu->context);                                               \
            uint64_t copy = x86_load(cpu, la, n);                                                  \
            lock_cmpxchg_##n(&copy, b, &cpu->s.rflags, &rax);                                      \
            x86_store(cpu, la, n, copy);                                                           \
            cpu->ops->exclusive_end(cpu->context);                                                 \
        }                                                                                          \
        cpu->s.gpr[X86_RAX] = rax;                                                                 \
    }

CMPXCHG_HANDLERS("cmpxchgb", 1, uint8_t, "b");
CMPXCHG_HANDLERS("cmpxchgw", 2, uint16_t, "w");
CMPXCHG_HANDLERS("cmpxchgl", 4, uint32_t, "k");
CMPXCHG_HANDLERS("cmpxchgq", 8, uint64_t, "q");

static bool bind_cmpxchg(const struct x86_decode *d, struct x86_insn *out)
{
    static x86_handler *const r[] = SIZES(cmpxchg_r), *const m[] = SIZES(cmpxchg_m);
    out->run = (is_mem(d, 0) ? m : r)[size_index(out->size)];
    return true;
}

/* --- CMPXCHG8B, CMPXCHG16B: two halves of `half` bytes, low one first --- */

struct pair {
    uint64_t lo, hi;
};

/* Stores `desired` where *p equals *expected; otherwise *expected becomes what is there. */
ALWAYS_INLINE bool lock_cmpxchg_pair(void *p, unsigned half, struct pair *expected,
                                     struct pair desired)
{
    bool equal;

    if (half == 4)
        __asm__ volatile("lock cmpxchg8b (%3)"
                         : "=@ccz"(equal), "+a"(expected->lo), "+d"(expected->hi)
                         : "r"(p), "b"(desired.lo), "c"(desired.hi)
                         : "memory");
    else
        __asm__ volatile("lock cmpxchg16b (%3)"
                         : "=@ccz"(equal), "+a"(expected->lo), "+d"(expected->hi)
                         : "r"(p), "b"(desired.lo), "c"(desired.hi)
                         : "memory");
    return equal;
}

ALWAYS_INLINE bool slow_cmpxchg_pair(struct x86_cpu *cpu, uint64_t la, unsigned half,
                                     struct pair *expected, struct pair desired)
{
    x86_probe_write(cpu, la, 2 * half);
    cpu->ops->exclusive_begin(cpu->context);
    struct pair old = {x86_load(cpu, la, half), x86_load(cpu, la + half, half)};
    bool equal = old.lo == expected->lo && old.hi == expected->hi;
    struct pair new = equal ? desired : old;
    x86_store(cpu, la, half, new.lo);
    x86_store(cpu, la + half, half, new.hi);
    cpu->ops->exclusive_end(cpu->context);
    *expected = old;
    return equal;
}

ALWAYS_INLINE void run_cmpxchg_pair(struct x86_cpu *cpu, const struct x86_insn *i, unsigned half)
{
    uint64_t la = x86_operand_la(cpu, i, 2 * half, X86_WRITE);
    struct pair expected = {gpr_read(cpu, X86_RAX, half), gpr_read(cpu, X86_RDX, half)};
    struct pair desired = {gpr_read(cpu, X86_RBX, half), gpr_read(cpu, X86_RCX, half)};

    if (half == 8 && la & 15)
        x86_raise_error(cpu, X86_GP, 0);
    void *p = x86_atomic_pointer(cpu, la, 2 * half);
    bool equal = likely(p) ? lock_cmpxchg_pair(p, half, &expected, desired)
                           : slow_cmpxchg_pair(cpu, la, half, &expected, desired);
    if (equal) {
        cpu->s.rflags |= X86_ZF;
        return;
    }
    cpu->s.rflags &= ~X86_ZF;
    gpr_write(cpu, X86_RAX, half, expected.lo);
    gpr_write(cpu, X86_RDX, half, expected.hi);
}

static void cmpxchg8b(struct x86_cpu *cpu, const struct x86_insn *i)
{
    run_cmpxchg_pair(cpu, i, 4);
}

static void cmpxchg16b(struct x86_cpu *cpu, const struct x86_insn *i)
{
    run_cmpxchg_pair(cpu, i, 8);
}

static bool bind_cmpxchg8b(const struct x86_decode *d, struct x86_insn *out)
{
    out->run = cmpxchg8b;
    return x86_has(d->features, X86_FEATURE_CX8);
}

static bool bind_cmpxchg16b(const struct x86_decode *d, struct x86_insn *out)
{
    out->run = cmpxchg16b;
    return true;
}

const struct x86_bind x86_bind_atomic[] = {
    {ZYDIS_MNEMONIC_ADD, bind_add},
    {ZYDIS_MNEMONIC_OR, bind_or},
    {ZYDIS_MNEMONIC_ADC, bind_adc},
    {ZYDIS_MNEMONIC_SBB, bind_sbb},
    {ZYDIS_MNEMONIC_AND, bind_and},
    {ZYDIS_MNEMONIC_SUB, bind_sub},
    {ZYDIS_MNEMONIC_XOR, bind_xor},
    {ZYDIS_MNEMONIC_INC, bind_inc},
    {ZYDIS_MNEMONIC_DEC, bind_dec},
    {ZYDIS_MNEMONIC_NEG, bind_neg},
    {ZYDIS_MNEMONIC_NOT, bind_not},
    {ZYDIS_MNEMONIC_BTS, bind_bts},
    {ZYDIS_MNEMONIC_BTR, bind_btr},
    {ZYDIS_MNEMONIC_BTC, bind_btc},
    {ZYDIS_MNEMONIC_XADD, bind_xadd},
    {ZYDIS_MNEMONIC_CMPXCHG, bind_cmpxchg},
    {ZYDIS_MNEMONIC_CMPXCHG8B, bind_cmpxchg8b},
    {ZYDIS_MNEMONIC_CMPXCHG16B, bind_cmpxchg16b},
    X86_BIND_END,
};
