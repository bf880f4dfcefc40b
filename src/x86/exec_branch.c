/*
 * Near branches, calls and returns, and software interrupts. vCPU thread.
 * SDM vol. 1 sections 6.4 and 7.3.8; APM vol. 3 (in 64-bit mode a 66 prefix makes a near branch
 * 16-bit: AMD's way).
 */
#include "x86/exec_cond.h"
#include "x86/exec_int.h"
#include "x86/exec_stack.h"

/* --- targets: size is the operand size: 8 in 64-bit mode, 2 or 4 --- */

ALWAYS_INLINE bool is_canonical(uint64_t a)
{
    return (uint64_t)((int64_t)(a << 16) >> 16) == a;
}

ALWAYS_INLINE bool target_allowed(const struct x86_cpu *cpu, unsigned size, uint64_t target)
{
    if (size == 8)
        return is_canonical(target);
    return cpu->code_size == 8 || target <= cpu->s.seg[X86_CS].limit;
}

ALWAYS_INLINE uint64_t target_of(struct x86_cpu *cpu, unsigned size, uint64_t target)
{
    target &= size_mask(size);
    if (unlikely(!target_allowed(cpu, size, target)))
        x86_raise_error(cpu, X86_GP, 0);
    return target;
}

ALWAYS_INLINE uint64_t relative(struct x86_cpu *cpu, const struct x86_insn *insn, unsigned size)
{
    return target_of(cpu, size, cpu->next_rip + insn->imm);
}

/* Operand size of a near branch. */
static unsigned branch_size(const struct x86_decode *d)
{
    bool prefix = d->z->attributes & ZYDIS_ATTRIB_HAS_OPERANDSIZE;
    bool rex_w = d->z->attributes & ZYDIS_ATTRIB_HAS_REX && d->z->raw.rex.W;

    if (d->mode->code_size == 8)
        return prefix && !rex_w ? 2 : 8;
    return (d->mode->code_size == 2) != prefix ? 2 : 4;
}

static unsigned branch_index(const struct x86_decode *d)
{
    return size_index(branch_size(d)) - 1;
}

#define BRANCH_SIZES(name)                                                                         \
    {                                                                                              \
        name##_2, name##_4, name##_8                                                               \
    }
#define FOR_BRANCH_SIZES(M) M(2) M(4) M(8)

/* --- Jcc, LOOPcc, JrCXZ --- */

#define JCC_SIZE(cc, n)                                                                            \
    static void j##cc##_##n(struct x86_cpu *cpu, const struct x86_insn *insn)                      \
    {                                                                                              \
        if (cond_##cc(cpu->s.rflags))                                                              \
            cpu->next_rip = relative(cpu, insn, n);                                                \
    }
#define JCC(cc) JCC_SIZE(cc, 2) JCC_SIZE(cc, 4) JCC_SIZE(cc, 8)
FOR_CONDITIONS(JCC);

static bool bind_jcc(const struct x86_decode *d, struct x86_insn *out)
{
#define JCC_ROW(cc) BRANCH_SIZES(j##cc),
    static x86_handler *const handlers[16][3] = {FOR_CONDITIONS(JCC_ROW)};
    out->run = handlers[d->z->opcode & 15][branch_index(d)];
    return true;
}

/* The count is as wide as addresses are. */
static uint64_t count_read(const struct x86_cpu *cpu, const struct x86_insn *insn)
{
    return cpu->s.gpr[X86_RCX] & size_mask(insn->address_size);
}

static void count_write(struct x86_cpu *cpu, const struct x86_insn *insn, uint64_t count)
{
    if (insn->address_size == 2)
        gpr_write(cpu, X86_RCX, 2, count);
    else
        cpu->s.gpr[X86_RCX] = count & size_mask(insn->address_size);
}

/* aux: 0 LOOP, or which value of ZF goes on looping: 1 set (LOOPE), 2 clear (LOOPNE). */
static void loop(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    uint64_t count = count_read(cpu, insn) - 1;
    bool zf = cpu->s.rflags & X86_ZF;
    uintptr_t want = (uintptr_t)insn->aux;
    uint64_t target = cpu->next_rip;

    if ((count & size_mask(insn->address_size)) && (want == 0 || (want == 1) == zf))
        target = target_of(cpu, insn->size, target + insn->imm);
    count_write(cpu, insn, count);
    cpu->next_rip = target;
}

/* AMD's processors have F3 and F2 decide between LOOPE and LOOPNE, the last one when both are
 * there. */
static uintptr_t loop_condition(const ZydisDecodedInstruction *z)
{
    uintptr_t want = z->mnemonic == ZYDIS_MNEMONIC_LOOPE ? 1 : 2;

    if (z->mnemonic == ZYDIS_MNEMONIC_LOOP)
        return 0;
    for (unsigned i = 0; i < z->raw.prefix_count; i++) {
        if (z->raw.prefixes[i].value == 0xf3)
            want = 1;
        else if (z->raw.prefixes[i].value == 0xf2)
            want = 2;
    }
    return want;
}

static bool bind_loop(const struct x86_decode *d, struct x86_insn *out)
{
    out->size = (uint8_t)branch_size(d);
    out->aux = (void *)loop_condition(d->z);
    out->run = loop;
    return true;
}

static void jcxz(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    if (!count_read(cpu, insn))
        cpu->next_rip = target_of(cpu, insn->size, cpu->next_rip + insn->imm);
}

static bool bind_jcxz(const struct x86_decode *d, struct x86_insn *out)
{
    out->size = (uint8_t)branch_size(d);
    out->run = jcxz;
    return true;
}

/* --- JMP, CALL, RET --- */

/* A fault of the push comes before one of the target, and neither leaves anything behind. */
ALWAYS_INLINE void do_call(struct x86_cpu *cpu, unsigned size, uint64_t target)
{
    target &= size_mask(size);
    if (unlikely(!target_allowed(cpu, size, target))) {
        stack_probe(cpu, size, -(uint64_t)size);
        x86_raise_error(cpu, X86_GP, 0);
    }
    stack_push(cpu, size, cpu->next_rip);
    cpu->next_rip = target;
}

ALWAYS_INLINE void do_ret(struct x86_cpu *cpu, unsigned size, uint64_t release)
{
    uint64_t target = target_of(cpu, size, stack_peek(cpu, size, 0));
    stack_move(cpu, size + release);
    cpu->next_rip = target;
}

#define BRANCHES(n)                                                                                \
    static void jmp_i_##n(struct x86_cpu *cpu, const struct x86_insn *insn)                        \
    {                                                                                              \
        cpu->next_rip = relative(cpu, insn, n);                                                    \
    }                                                                                              \
    static void jmp_r_##n(struct x86_cpu *cpu, const struct x86_insn *insn)                        \
    {                                                                                              \
        cpu->next_rip = target_of(cpu, n, reg_read(cpu, insn->dst, n));                            \
    }                                                                                              \
    static void jmp_m_##n(struct x86_cpu *cpu, const struct x86_insn *insn)                        \
    {                                                                                              \
        cpu->next_rip = target_of(cpu, n, mem_load(cpu, insn, n));                                 \
    }                                                                                              \
    NO_INLINE void call_i_##n##_whole(struct x86_cpu *cpu, const struct x86_insn *insn)            \
    {                                                                                              \
        do_call(cpu, n, cpu->next_rip + insn->imm);                                                \
    }                                                                                              \
    static void call_i_##n(struct x86_cpu *cpu, const struct x86_insn *insn)                       \
    {                                                                                              \
        uint64_t target = cpu->next_rip + insn->imm;                                               \
        if (n == 8 && likely(is_canonical(target)) && likely(fast_push_8(cpu, cpu->next_rip)))     \
            cpu->next_rip = target;                                                                \
        else                                                                                       \
            call_i_##n##_whole(cpu, insn);                                                         \
    }                                                                                              \
    static void call_r_##n(struct x86_cpu *cpu, const struct x86_insn *insn)                       \
    {                                                                                              \
        do_call(cpu, n, reg_read(cpu, insn->dst, n));                                              \
    }                                                                                              \
    static void call_m_##n(struct x86_cpu *cpu, const struct x86_insn *insn)                       \
    {                                                                                              \
        do_call(cpu, n, mem_load(cpu, insn, n));                                                   \
    }                                                                                              \
    NO_INLINE void ret_##n##_whole(struct x86_cpu *cpu, const struct x86_insn *insn)               \
    {                                                                                              \
        do_ret(cpu, n, 0);                                                                         \
    }                                                                                              \
    static void ret_##n(struct x86_cpu *cpu, const struct x86_insn *insn)                          \
    {                                                                                              \
        const char *p = n == 8 ? fast_top_8(cpu) : NULL;                                           \
        if (unlikely(!p) || unlikely(!is_canonical(load_le64(p)))) {                               \
            ret_##n##_whole(cpu, insn);                                                            \
            return;                                                                                \
        }                                                                                          \
        cpu->next_rip = load_le64(p);                                                              \
        cpu->s.gpr[X86_RSP] += 8;                                                                  \
    }                                                                                              \
    static void ret_i_##n(struct x86_cpu *cpu, const struct x86_insn *insn)                        \
    {                                                                                              \
        do_ret(cpu, n, (uint16_t)insn->imm);                                                       \
    }
FOR_BRANCH_SIZES(BRANCHES);

static bool bind_transfer(const struct x86_decode *d, struct x86_insn *out,
                          x86_handler *const handlers[3][3])
{
    if (d->z->meta.branch_type == ZYDIS_BRANCH_TYPE_FAR)
        return false; /* segment.c */
    out->run = handlers[is_imm(d, 0) ? 0 : is_reg(d, 0) ? 1 : 2][branch_index(d)];
    return true;
}

static bool bind_jmp(const struct x86_decode *d, struct x86_insn *out)
{
    static x86_handler *const handlers[3][3] = {BRANCH_SIZES(jmp_i), BRANCH_SIZES(jmp_r),
                                                BRANCH_SIZES(jmp_m)};
    return bind_transfer(d, out, handlers);
}

static bool bind_call(const struct x86_decode *d, struct x86_insn *out)
{
    static x86_handler *const handlers[3][3] = {BRANCH_SIZES(call_i), BRANCH_SIZES(call_r),
                                                BRANCH_SIZES(call_m)};
    return bind_transfer(d, out, handlers);
}

static bool bind_ret(const struct x86_decode *d, struct x86_insn *out)
{
    static x86_handler *const plain[] = BRANCH_SIZES(ret), *const release[] = BRANCH_SIZES(ret_i);
    if (d->z->meta.branch_type == ZYDIS_BRANCH_TYPE_FAR)
        return false;
    out->run = (d->z->operand_count_visible ? release : plain)[branch_index(d)];
    return true;
}

/* --- software interrupts --- */

static _Noreturn void raise_software(struct x86_cpu *cpu, enum x86_event_kind kind, uint8_t vector)
{
    struct x86_event event = {.kind = (uint8_t)kind, .vector = vector};
    x86_raise_event(cpu, &event);
}

static void int_n(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    if (cpu->v86 && (cpu->s.rflags & X86_IOPL) != X86_IOPL)
        x86_raise_error(cpu, X86_GP, 0);
    raise_software(cpu, X86_EVENT_SOFT_INTERRUPT, (uint8_t)insn->imm);
}

static void int3(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    raise_software(cpu, X86_EVENT_SOFT_EXCEPTION, X86_BP);
}

static void int1(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    raise_software(cpu, X86_EVENT_PRIVILEGED_SOFT_EXCEPTION, X86_DB);
}

static void into(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    if (cpu->s.rflags & X86_OF)
        raise_software(cpu, X86_EVENT_SOFT_EXCEPTION, X86_OF_TRAP);
}

ALWAYS_INLINE void bound(struct x86_cpu *cpu, const struct x86_insn *insn, unsigned size)
{
    uint64_t offset = x86_ea(cpu, insn);
    uint64_t upper_offset = (offset + size) & size_mask(insn->address_size);
    uint64_t low = x86_load(cpu, x86_linear(cpu, insn->seg, offset, size, X86_READ), size);
    uint64_t high = x86_load(cpu, x86_linear(cpu, insn->seg, upper_offset, size, X86_READ), size);
    int64_t index = (int64_t)sign_extend(reg_read(cpu, insn->dst, size), size);

    if (index < (int64_t)sign_extend(low, size) || index > (int64_t)sign_extend(high, size))
        x86_raise(cpu, X86_BR);
}

static void bound_2(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    bound(cpu, insn, 2);
}

static void bound_4(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    bound(cpu, insn, 4);
}

static bool bind_bound(const struct x86_decode *d, struct x86_insn *out)
{
    out->run = out->size == 2 ? bound_2 : bound_4;
    return true;
}

#define BIND_ONE(name)                                                                             \
    static bool bind_##name(const struct x86_decode *d, struct x86_insn *out)                      \
    {                                                                                              \
        out->run = name;                                                                           \
        return true;                                                                               \
    }
BIND_ONE(int_n);
BIND_ONE(int3);
BIND_ONE(int1);
BIND_ONE(into);

const struct x86_bind x86_bind_branch[] = {
    {ZYDIS_MNEMONIC_JO, bind_jcc},
    {ZYDIS_MNEMONIC_JNO, bind_jcc},
    {ZYDIS_MNEMONIC_JB, bind_jcc},
    {ZYDIS_MNEMONIC_JNB, bind_jcc},
    {ZYDIS_MNEMONIC_JZ, bind_jcc},
    {ZYDIS_MNEMONIC_JNZ, bind_jcc},
    {ZYDIS_MNEMONIC_JBE, bind_jcc},
    {ZYDIS_MNEMONIC_JNBE, bind_jcc},
    {ZYDIS_MNEMONIC_JS, bind_jcc},
    {ZYDIS_MNEMONIC_JNS, bind_jcc},
    {ZYDIS_MNEMONIC_JP, bind_jcc},
    {ZYDIS_MNEMONIC_JNP, bind_jcc},
    {ZYDIS_MNEMONIC_JL, bind_jcc},
    {ZYDIS_MNEMONIC_JNL, bind_jcc},
    {ZYDIS_MNEMONIC_JLE, bind_jcc},
    {ZYDIS_MNEMONIC_JNLE, bind_jcc},
    {ZYDIS_MNEMONIC_LOOP, bind_loop},
    {ZYDIS_MNEMONIC_LOOPE, bind_loop},
    {ZYDIS_MNEMONIC_LOOPNE, bind_loop},
    {ZYDIS_MNEMONIC_JCXZ, bind_jcxz},
    {ZYDIS_MNEMONIC_JECXZ, bind_jcxz},
    {ZYDIS_MNEMONIC_JRCXZ, bind_jcxz},
    {ZYDIS_MNEMONIC_JMP, bind_jmp},
    {ZYDIS_MNEMONIC_CALL, bind_call},
    {ZYDIS_MNEMONIC_RET, bind_ret},
    {ZYDIS_MNEMONIC_INT, bind_int_n},
    {ZYDIS_MNEMONIC_INT3, bind_int3},
    {ZYDIS_MNEMONIC_INT1, bind_int1},
    {ZYDIS_MNEMONIC_INTO, bind_into},
    {ZYDIS_MNEMONIC_BOUND, bind_bound},
    X86_BIND_END,
};
