/*
 * Addition, subtraction, logic and comparison. One short handler for each operation, operand form
 * and size. vCPU thread. SDM vol. 1 section 7.3.2, vol. 2.
 */
#include "x86/exec_int.h"
#include "x86/host_alu.h"

/* Forms of two operands: destination, source. M: memory, R: register, I: immediate. */
enum { FORM_RR, FORM_RI, FORM_RM, FORM_MR, FORM_MI, FORM_COUNT };

ALWAYS_INLINE void run_rr(struct x86_cpu *cpu, const struct x86_insn *insn, unsigned size,
                          host_binary *op)
{
    uint64_t b = reg_read(cpu, insn->src, size);
    reg_write(cpu, insn->dst, size, op(reg_read(cpu, insn->dst, size), b, &cpu->s.rflags));
}

ALWAYS_INLINE void run_ri(struct x86_cpu *cpu, const struct x86_insn *insn, unsigned size,
                          host_binary *op)
{
    uint64_t a = reg_read(cpu, insn->dst, size);
    reg_write(cpu, insn->dst, size, op(a, insn->imm, &cpu->s.rflags));
}

ALWAYS_INLINE void run_rm(struct x86_cpu *cpu, const struct x86_insn *insn, unsigned size,
                          host_binary *op)
{
    uint64_t b = mem_load(cpu, insn, size);
    reg_write(cpu, insn->dst, size, op(reg_read(cpu, insn->dst, size), b, &cpu->s.rflags));
}

ALWAYS_INLINE void run_mr(struct x86_cpu *cpu, const struct x86_insn *insn, unsigned size,
                          host_binary *op)
{
    uint64_t la = x86_operand_la(cpu, insn, size, X86_WRITE);
    mem_modify(cpu, la, size, op, reg_read(cpu, insn->dst, size));
}

ALWAYS_INLINE void run_mi(struct x86_cpu *cpu, const struct x86_insn *insn, unsigned size,
                          host_binary *op)
{
    mem_modify(cpu, x86_operand_la(cpu, insn, size, X86_WRITE), size, op, insn->imm);
}

/* The fast halves; false: not done. */
ALWAYS_INLINE bool fast_run_rm(struct x86_cpu *cpu, const struct x86_insn *insn, unsigned size,
                               host_binary *op)
{
    const char *p = fast_read(cpu, insn, size);
    if (unlikely(!p))
        return false;
    uint64_t a = reg_read(cpu, insn->dst, size);
    reg_write(cpu, insn->dst, size, op(a, host_load(p, size), &cpu->s.rflags));
    return true;
}

ALWAYS_INLINE bool fast_run_mr(struct x86_cpu *cpu, const struct x86_insn *insn, unsigned size,
                               host_binary *op)
{
    char *p = fast_write(cpu, insn, size);
    if (unlikely(!p))
        return false;
    uint64_t b = reg_read(cpu, insn->dst, size);
    host_store(p, size, op(host_load(p, size), b, &cpu->s.rflags));
    return true;
}

ALWAYS_INLINE bool fast_run_mi(struct x86_cpu *cpu, const struct x86_insn *insn, unsigned size,
                               host_binary *op)
{
    char *p = fast_write(cpu, insn, size);
    if (unlikely(!p))
        return false;
    host_store(p, size, op(host_load(p, size), insn->imm, &cpu->s.rflags));
    return true;
}

/* CMP and TEST write flags only. */
ALWAYS_INLINE void look_rr(struct x86_cpu *cpu, const struct x86_insn *insn, unsigned size,
                           host_binary *op)
{
    op(reg_read(cpu, insn->dst, size), reg_read(cpu, insn->src, size), &cpu->s.rflags);
}

ALWAYS_INLINE void look_ri(struct x86_cpu *cpu, const struct x86_insn *insn, unsigned size,
                           host_binary *op)
{
    op(reg_read(cpu, insn->dst, size), insn->imm, &cpu->s.rflags);
}

ALWAYS_INLINE void look_rm(struct x86_cpu *cpu, const struct x86_insn *insn, unsigned size,
                           host_binary *op)
{
    uint64_t b = mem_load(cpu, insn, size);
    op(reg_read(cpu, insn->dst, size), b, &cpu->s.rflags);
}

ALWAYS_INLINE void look_mr(struct x86_cpu *cpu, const struct x86_insn *insn, unsigned size,
                           host_binary *op)
{
    uint64_t a = mem_load(cpu, insn, size);
    op(a, reg_read(cpu, insn->dst, size), &cpu->s.rflags);
}

ALWAYS_INLINE void look_mi(struct x86_cpu *cpu, const struct x86_insn *insn, unsigned size,
                           host_binary *op)
{
    op(mem_load(cpu, insn, size), insn->imm, &cpu->s.rflags);
}

ALWAYS_INLINE bool fast_look_rm(struct x86_cpu *cpu, const struct x86_insn *insn, unsigned size,
                                host_binary *op)
{
    const char *p = fast_read(cpu, insn, size);
    if (unlikely(!p))
        return false;
    op(reg_read(cpu, insn->dst, size), host_load(p, size), &cpu->s.rflags);
    return true;
}

ALWAYS_INLINE bool fast_look_mr(struct x86_cpu *cpu, const struct x86_insn *insn, unsigned size,
                                host_binary *op)
{
    const char *p = fast_read(cpu, insn, size);
    if (unlikely(!p))
        return false;
    op(host_load(p, size), reg_read(cpu, insn->dst, size), &cpu->s.rflags);
    return true;
}

ALWAYS_INLINE bool fast_look_mi(struct x86_cpu *cpu, const struct x86_insn *insn, unsigned size,
                                host_binary *op)
{
    const char *p = fast_read(cpu, insn, size);
    if (unlikely(!p))
        return false;
    op(host_load(p, size), insn->imm, &cpu->s.rflags);
    return true;
}

/* add_rr_4 and so on: KIND is run or look */
#define HANDLER(kind, name, form, n)                                                               \
    static void name##_##form##_##n(struct x86_cpu *cpu, const struct x86_insn *insn)              \
    {                                                                                              \
        kind##_##form(cpu, insn, n, host_##name##_##n);                                            \
    }
#define FAST_HANDLER(kind, name, form, n)                                                          \
    NO_INLINE void name##_##form##_##n##_whole(struct x86_cpu *cpu, const struct x86_insn *insn)   \
    {                                                                                              \
        kind##_##form(cpu, insn, n, host_##name##_##n);                                            \
    }                                                                                              \
    static void name##_##form##_##n(struct x86_cpu *cpu, const struct x86_insn *insn)              \
    {                                                                                              \
        if (unlikely(!fast_##kind##_##form(cpu, insn, n, host_##name##_##n)))                      \
            name##_##form##_##n##_whole(cpu, insn);                                                \
    }
#define HANDLERS_SIZE(kind, name, n)                                                               \
    HANDLER(kind, name, rr, n)                                                                     \
    HANDLER(kind, name, ri, n)                                                                     \
    FAST_HANDLER(kind, name, rm, n)                                                                \
    FAST_HANDLER(kind, name, mr, n)                                                                \
    FAST_HANDLER(kind, name, mi, n)
#define SIZES(name, form)                                                                          \
    {                                                                                              \
        name##_##form##_1, name##_##form##_2, name##_##form##_4, name##_##form##_8                 \
    }

static bool bind_binary(const struct x86_decode *d, struct x86_insn *out,
                        x86_handler *const handlers[FORM_COUNT][4])
{
    unsigned form;

    if (out->flags & X86_INSN_LOCK)
        return false; /* exec_atomic.c */
    if (is_mem(d, 0))
        form = is_imm(d, 1) ? FORM_MI : FORM_MR;
    else if (is_mem(d, 1))
        form = FORM_RM;
    else
        form = is_imm(d, 1) ? FORM_RI : FORM_RR;
    out->run = handlers[form][size_index(out->size)];
    return true;
}

#define BINARY(kind, name)                                                                         \
    HANDLERS_SIZE(kind, name, 1)                                                                   \
    HANDLERS_SIZE(kind, name, 2)                                                                   \
    HANDLERS_SIZE(kind, name, 4)                                                                   \
    HANDLERS_SIZE(kind, name, 8)                                                                   \
    static bool bind_##name(const struct x86_decode *d, struct x86_insn *out)                      \
    {                                                                                              \
        static x86_handler *const handlers[FORM_COUNT][4] = {                                      \
            SIZES(name, rr), SIZES(name, ri), SIZES(name, rm), SIZES(name, mr), SIZES(name, mi)};  \
        return bind_binary(d, out, handlers);                                                      \
    }

BINARY(run, add);
BINARY(run, or);
BINARY(run, adc);
BINARY(run, sbb);
BINARY(run, and);
BINARY(run, sub);
BINARY(run, xor);
BINARY(look, cmp);
BINARY(look, test);

/* --- one operand --- */

ALWAYS_INLINE void run_r(struct x86_cpu *cpu, const struct x86_insn *insn, unsigned size,
                         host_unary *op)
{
    reg_write(cpu, insn->dst, size, op(reg_read(cpu, insn->dst, size), &cpu->s.rflags));
}

ALWAYS_INLINE void run_m(struct x86_cpu *cpu, const struct x86_insn *insn, unsigned size,
                         host_unary *op)
{
    mem_modify_unary(cpu, x86_operand_la(cpu, insn, size, X86_WRITE), size, op);
}

static bool bind_unary(const struct x86_decode *d, struct x86_insn *out,
                       x86_handler *const handlers[2][4])
{
    if (out->flags & X86_INSN_LOCK)
        return false;
    out->run = handlers[is_mem(d, 0)][size_index(out->size)];
    return true;
}

#define HANDLERS_UNARY(name, n) HANDLER(run, name, r, n) HANDLER(run, name, m, n)
#define UNARY(name)                                                                                \
    HANDLERS_UNARY(name, 1)                                                                        \
    HANDLERS_UNARY(name, 2)                                                                        \
    HANDLERS_UNARY(name, 4)                                                                        \
    HANDLERS_UNARY(name, 8)                                                                        \
    static bool bind_##name(const struct x86_decode *d, struct x86_insn *out)                      \
    {                                                                                              \
        static x86_handler *const handlers[2][4] = {SIZES(name, r), SIZES(name, m)};               \
        return bind_unary(d, out, handlers);                                                       \
    }

UNARY(inc);
UNARY(dec);
UNARY(neg);
UNARY(not );

/* --- ADX --- */

#define ADX(name)                                                                                  \
    HANDLER(run, name, rr, 4)                                                                      \
    HANDLER(run, name, rr, 8)                                                                      \
    HANDLER(run, name, rm, 4)                                                                      \
    HANDLER(run, name, rm, 8)                                                                      \
    static bool bind_##name(const struct x86_decode *d, struct x86_insn *out)                      \
    {                                                                                              \
        static x86_handler *const handlers[2][2] = {{name##_rr_4, name##_rr_8},                    \
                                                    {name##_rm_4, name##_rm_8}};                   \
        out->run = handlers[is_mem(d, 1)][out->size == 8];                                         \
        return true;                                                                               \
    }

ADX(adcx);
ADX(adox);

const struct x86_bind x86_bind_alu[] = {
    {ZYDIS_MNEMONIC_ADD, bind_add},   {ZYDIS_MNEMONIC_OR, bind_or},
    {ZYDIS_MNEMONIC_ADC, bind_adc},   {ZYDIS_MNEMONIC_SBB, bind_sbb},
    {ZYDIS_MNEMONIC_AND, bind_and},   {ZYDIS_MNEMONIC_SUB, bind_sub},
    {ZYDIS_MNEMONIC_XOR, bind_xor},   {ZYDIS_MNEMONIC_CMP, bind_cmp},
    {ZYDIS_MNEMONIC_TEST, bind_test}, {ZYDIS_MNEMONIC_INC, bind_inc},
    {ZYDIS_MNEMONIC_DEC, bind_dec},   {ZYDIS_MNEMONIC_NEG, bind_neg},
    {ZYDIS_MNEMONIC_NOT, bind_not},   {ZYDIS_MNEMONIC_ADCX, bind_adcx},
    {ZYDIS_MNEMONIC_ADOX, bind_adox}, X86_BIND_END,
};
