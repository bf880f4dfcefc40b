/*
 * Stack instructions. vCPU thread. SDM vol. 1 sections 6.2-6.5, vol. 2 (ENTER, POPF tables).
 */
#include "x86/exec_stack.h"
#include "x86/segment.h"

#define SIZES(name)                                                                                \
    {                                                                                              \
        name##_2, name##_4, name##_8                                                               \
    }
#define FOR_SIZES(M) M(2) M(4) M(8)

/* Operand size of a push or pop: 8 or 2 in 64-bit mode. */
static unsigned stack_width(const struct x86_decode *d)
{
    return d->z->operand_width / 8u;
}

static unsigned stack_index(const struct x86_decode *d)
{
    return size_index(stack_width(d)) - 1;
}

/* --- PUSH, POP --- */

#define PUSH_POP(n)                                                                                \
    NO_INLINE void push_r_##n##_whole(struct x86_cpu *cpu, const struct x86_insn *insn)            \
    {                                                                                              \
        stack_push(cpu, n, reg_read(cpu, insn->dst, n));                                           \
    }                                                                                              \
    static void push_r_##n(struct x86_cpu *cpu, const struct x86_insn *insn)                       \
    {                                                                                              \
        if (n != 8 || unlikely(!fast_push_8(cpu, reg_read(cpu, insn->dst, 8))))                    \
            push_r_##n##_whole(cpu, insn);                                                         \
    }                                                                                              \
    static void push_i_##n(struct x86_cpu *cpu, const struct x86_insn *insn)                       \
    {                                                                                              \
        stack_push(cpu, n, insn->imm);                                                             \
    }                                                                                              \
    static void push_m_##n(struct x86_cpu *cpu, const struct x86_insn *insn)                       \
    {                                                                                              \
        stack_push(cpu, n, mem_load(cpu, insn, n));                                                \
    }                                                                                              \
    /* imm: number of the segment register. AMD's processors write the whole slot. */              \
    static void push_s_##n(struct x86_cpu *cpu, const struct x86_insn *insn)                       \
    {                                                                                              \
        stack_push(cpu, n, cpu->s.seg[insn->imm].selector);                                        \
    }                                                                                              \
    NO_INLINE void pop_r_##n##_whole(struct x86_cpu *cpu, const struct x86_insn *insn)             \
    {                                                                                              \
        uint64_t value = stack_pop(cpu, n);                                                        \
        reg_write(cpu, insn->dst, n, value); /* after the move: POP RSP */                         \
    }                                                                                              \
    static void pop_r_##n(struct x86_cpu *cpu, const struct x86_insn *insn)                        \
    {                                                                                              \
        const char *p = n == 8 ? fast_top_8(cpu) : NULL;                                           \
        if (unlikely(!p)) {                                                                        \
            pop_r_##n##_whole(cpu, insn);                                                          \
            return;                                                                                \
        }                                                                                          \
        uint64_t value = load_le64(p);                                                             \
        cpu->s.gpr[X86_RSP] += 8;                                                                  \
        reg_write(cpu, insn->dst, 8, value);                                                       \
    }                                                                                              \
    /* The address is made with the stack pointer already moved. */                                \
    static void pop_m_##n(struct x86_cpu *cpu, const struct x86_insn *insn)                        \
    {                                                                                              \
        uint64_t value = stack_peek(cpu, n, 0), old = cpu->s.gpr[X86_RSP];                         \
        stack_move(cpu, n);                                                                        \
        uint64_t offset = x86_ea(cpu, insn), moved = cpu->s.gpr[X86_RSP];                          \
        cpu->s.gpr[X86_RSP] = old;                                                                 \
        x86_store(cpu, x86_linear(cpu, insn->seg, offset, n, X86_WRITE), n, value);                \
        cpu->s.gpr[X86_RSP] = moved;                                                               \
    }                                                                                              \
    static void pop_s_##n(struct x86_cpu *cpu, const struct x86_insn *insn)                        \
    {                                                                                              \
        uint64_t selector = stack_peek(cpu, n, 0);                                                 \
        x86_load_segment(cpu, (unsigned)insn->imm, (uint16_t)selector);                            \
        stack_move(cpu, n);                                                                        \
    }

FOR_SIZES(PUSH_POP);

static bool is_segment(const struct x86_decode *d)
{
    return is_reg(d, 0) && d->op[0].reg.value >= ZYDIS_REGISTER_ES &&
           d->op[0].reg.value <= ZYDIS_REGISTER_GS;
}

static bool bind_push(const struct x86_decode *d, struct x86_insn *out)
{
    static x86_handler *const r[] = SIZES(push_r), *const i[] = SIZES(push_i),
                              *const m[] = SIZES(push_m), *const s[] = SIZES(push_s);
    unsigned n = stack_index(d);

    if (is_segment(d)) {
        out->imm = x86_segment_number(d->op[0].reg.value);
        out->run = s[n];
        return true;
    }
    out->run = is_imm(d, 0) ? i[n] : is_mem(d, 0) ? m[n] : r[n];
    return true;
}

static bool bind_pop(const struct x86_decode *d, struct x86_insn *out)
{
    static x86_handler *const r[] = SIZES(pop_r), *const m[] = SIZES(pop_m),
                              *const s[] = SIZES(pop_s);
    unsigned n = stack_index(d);

    if (is_segment(d)) {
        out->imm = x86_segment_number(d->op[0].reg.value);
        out->flags |= X86_INSN_END;
        out->run = s[n];
        return true;
    }
    out->run = is_mem(d, 0) ? m[n] : r[n];
    return true;
}

/* --- PUSHA, POPA --- */

ALWAYS_INLINE void run_pusha(struct x86_cpu *cpu, unsigned size)
{
    for (unsigned i = 0; i < 8; i++)
        stack_probe(cpu, size, -(uint64_t)size * (i + 1));
    for (unsigned i = 0; i < 8; i++)
        stack_poke(cpu, size, -(uint64_t)size * (i + 1), cpu->s.gpr[i]);
    stack_move(cpu, -(uint64_t)size * 8);
}

ALWAYS_INLINE void run_popa(struct x86_cpu *cpu, unsigned size)
{
    uint64_t value[8];

    for (unsigned i = 0; i < 8; i++)
        value[7 - i] = stack_peek(cpu, size, (uint64_t)size * i);
    for (unsigned i = 0; i < 8; i++)
        if (i != X86_RSP)
            gpr_write(cpu, i, size, value[i]);
    stack_move(cpu, (uint64_t)size * 8);
}

static void pusha_2(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    run_pusha(cpu, 2);
}

static void pusha_4(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    run_pusha(cpu, 4);
}

static void popa_2(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    run_popa(cpu, 2);
}

static void popa_4(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    run_popa(cpu, 4);
}

static bool bind_pusha(const struct x86_decode *d, struct x86_insn *out)
{
    out->run = stack_width(d) == 2 ? pusha_2 : pusha_4;
    return true;
}

static bool bind_popa(const struct x86_decode *d, struct x86_insn *out)
{
    out->run = stack_width(d) == 2 ? popa_2 : popa_4;
    return true;
}

/* --- PUSHF, POPF --- */

static void check_v86_iopl(struct x86_cpu *cpu)
{
    if (cpu->v86 && (cpu->s.rflags & X86_IOPL) != X86_IOPL)
        x86_raise_error(cpu, X86_GP, 0);
}

ALWAYS_INLINE void run_pushf(struct x86_cpu *cpu, unsigned size)
{
    check_v86_iopl(cpu);
    stack_push(cpu, size, cpu->s.rflags & ~(X86_RF | X86_VM));
}

/* Which flags POPF may change here. */
static uint64_t popf_mask(const struct x86_cpu *cpu, unsigned size)
{
    uint64_t mask = X86_STATUS_FLAGS | X86_TF | X86_DF | X86_NT;
    unsigned iopl = (unsigned)(cpu->s.rflags >> 12 & 3);

    if (cpu->cpl == 0)
        mask |= X86_IOPL;
    if (cpu->cpl <= iopl)
        mask |= X86_IF;
    if (size > 2)
        mask |= X86_AC | X86_ID | X86_RF;
    return mask;
}

ALWAYS_INLINE void run_popf(struct x86_cpu *cpu, unsigned size)
{
    check_v86_iopl(cpu);
    uint64_t value = stack_pop(cpu, size) & ~X86_RF; /* the image's RF is not loaded */
    uint64_t mask = popf_mask(cpu, size), old = cpu->s.rflags;

    cpu->s.rflags = (old & ~mask) | (value & mask);
    if (unlikely((old ^ cpu->s.rflags) & (X86_AC | X86_TF | X86_RF)))
        x86_cpu_update_mode(cpu);
}

#define FLAGS_HANDLERS(n)                                                                          \
    static void pushf_##n(struct x86_cpu *cpu, const struct x86_insn *insn)                        \
    {                                                                                              \
        run_pushf(cpu, n);                                                                         \
    }                                                                                              \
    static void popf_##n(struct x86_cpu *cpu, const struct x86_insn *insn)                         \
    {                                                                                              \
        run_popf(cpu, n);                                                                          \
    }
FOR_SIZES(FLAGS_HANDLERS);

static bool bind_pushf(const struct x86_decode *d, struct x86_insn *out)
{
    static x86_handler *const handlers[] = SIZES(pushf);
    out->run = handlers[stack_index(d)];
    return true;
}

static bool bind_popf(const struct x86_decode *d, struct x86_insn *out)
{
    static x86_handler *const handlers[] = SIZES(popf);
    out->run = handlers[stack_index(d)];
    out->flags |= X86_INSN_END; /* may open the interrupt window */
    return true;
}

/* --- ENTER, LEAVE --- */

/* Copies the frame pointers of the enclosing levels, then the new one's. Returns the bytes pushed.
 */
ALWAYS_INLINE uint64_t enter_display(struct x86_cpu *cpu, unsigned size, unsigned level,
                                     uint64_t frame)
{
    uint64_t depth = size; /* RBP was pushed */
    uint64_t bp = cpu->s.gpr[X86_RBP];

    for (unsigned i = 1; i < level; i++) {
        uint64_t offset = (bp - (uint64_t)size * i) & size_mask(cpu->stack_size);
        uint64_t la = x86_linear(cpu, X86_SS, offset, size, X86_READ);
        depth += size;
        stack_poke(cpu, size, -depth, x86_load(cpu, la, size));
    }
    depth += size;
    stack_poke(cpu, size, -depth, frame);
    return depth;
}

/* imm: bytes of locals; aux: nesting level. */
ALWAYS_INLINE void run_enter(struct x86_cpu *cpu, const struct x86_insn *insn, unsigned size)
{
    unsigned level = (unsigned)(uintptr_t)insn->aux & 31;
    uint64_t depth = size;

    stack_poke(cpu, size, -depth, cpu->s.gpr[X86_RBP]);
    uint64_t frame = stack_offset(cpu, -depth);
    if (level)
        depth = enter_display(cpu, size, level, frame);
    depth += (uint16_t)insn->imm;
    /* The new top must be writable, as if something were pushed there. */
    stack_probe(cpu, size, -depth);
    gpr_write(cpu, X86_RBP, size, frame);
    stack_move(cpu, -depth);
}

ALWAYS_INLINE void run_leave(struct x86_cpu *cpu, unsigned size)
{
    uint64_t bp = cpu->s.gpr[X86_RBP] & size_mask(cpu->stack_size);
    uint64_t value = x86_load(cpu, x86_linear(cpu, X86_SS, bp, size, X86_READ), size);

    if (cpu->stack_size == 2)
        gpr_write(cpu, X86_RSP, 2, bp + size);
    else
        cpu->s.gpr[X86_RSP] = (bp + size) & size_mask(cpu->stack_size);
    gpr_write(cpu, X86_RBP, size, value);
}

#define FRAME_HANDLERS(n)                                                                          \
    static void enter_##n(struct x86_cpu *cpu, const struct x86_insn *insn)                        \
    {                                                                                              \
        run_enter(cpu, insn, n);                                                                   \
    }                                                                                              \
    static void leave_##n(struct x86_cpu *cpu, const struct x86_insn *insn)                        \
    {                                                                                              \
        run_leave(cpu, n);                                                                         \
    }
FOR_SIZES(FRAME_HANDLERS);

static bool bind_enter(const struct x86_decode *d, struct x86_insn *out)
{
    static x86_handler *const handlers[] = SIZES(enter);
    out->aux = (void *)(uintptr_t)d->op[1].imm.value.u;
    out->run = handlers[stack_index(d)];
    return true;
}

static bool bind_leave(const struct x86_decode *d, struct x86_insn *out)
{
    static x86_handler *const handlers[] = SIZES(leave);
    out->run = handlers[stack_index(d)];
    return true;
}

const struct x86_bind x86_bind_stack[] = {
    {ZYDIS_MNEMONIC_PUSH, bind_push},
    {ZYDIS_MNEMONIC_POP, bind_pop},
    {ZYDIS_MNEMONIC_PUSHA, bind_pusha},
    {ZYDIS_MNEMONIC_PUSHAD, bind_pusha},
    {ZYDIS_MNEMONIC_POPA, bind_popa},
    {ZYDIS_MNEMONIC_POPAD, bind_popa},
    {ZYDIS_MNEMONIC_PUSHF, bind_pushf},
    {ZYDIS_MNEMONIC_PUSHFD, bind_pushf},
    {ZYDIS_MNEMONIC_PUSHFQ, bind_pushf},
    {ZYDIS_MNEMONIC_POPF, bind_popf},
    {ZYDIS_MNEMONIC_POPFD, bind_popf},
    {ZYDIS_MNEMONIC_POPFQ, bind_popf},
    {ZYDIS_MNEMONIC_ENTER, bind_enter},
    {ZYDIS_MNEMONIC_LEAVE, bind_leave},
    X86_BIND_END,
};
