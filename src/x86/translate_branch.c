/*
 * Translation of near branches, calls and returns of 64-bit code. Within the page they are jumps in
 * code memory, once linked; out of it, and when the target is computed, by the jump cache. The
 * CPU's thread. SDM vol. 1 section 6.4.
 */
#include "x86/translate_int.h"

#define GUEST_RSP (x86_host_of[X86_RSP])

static int32_t next_offset(const struct x86_source *s)
{
    return s->offset + s->z.length;
}

/* Where a direct branch goes, as an offset in the page; may lie outside. */
static int64_t target_offset(const struct x86_source *s)
{
    return next_offset(s) + (int64_t)s->insn.imm;
}

static bool in_page(int64_t offset)
{
    return offset >= 0 && offset < (int64_t)PAGE_SIZE;
}

/* Every loop comes by here or by the jump cache. */
void x86_emit_attention_check(struct x86_translation *t, int offset)
{
    x86_emit_cmp_mem32(&t->e, x86_cpu_field((int32_t)t->tr->config.attention), 0);
    x86_leave_to(t, x86_emit_jcc(&t->e, COND_NE), offset, false);
}

/* The unit jumps to its own start: the body, when the flags are where it wants them. */
static bool is_own_start(const struct x86_translation *t, int64_t offset)
{
    return offset == (int64_t)t->tr->page_offset && !t->tr->config.alone && t->mode == t->tr->mode;
}

static void jump_back(struct x86_translation *t, int64_t offset)
{
    x86_flags_spill(t);
    x86_emit_attention_check(t, (int)offset);
    if (is_own_start(t, offset)) {
        uint8_t *jump = x86_emit_jmp(&t->e);
        if (!t->e.full)
            x86_emit_link(jump, t->unit->chain[0]);
    } else {
        x86_leave_to(t, x86_emit_jmp(&t->e), (int)offset, true);
    }
}

/* Goes there for good; flags are as t->flags says. */
static void jump_to(struct x86_translation *t, int64_t offset)
{
    if (!in_page(offset)) {
        x86_flags_spill(t);
        x86_leave_far(t, offset);
    } else if (offset <= t->source->offset) {
        jump_back(t, offset);
    } else {
        x86_leave_to(t, x86_emit_jmp(&t->e), (int)offset, true);
    }
}

static void translate_jcc(struct x86_translation *t)
{
    unsigned condition = t->source->z.opcode & 15;
    int64_t offset = target_offset(t->source);

    x86_flags_want(t);
    if (in_page(offset) && offset > t->source->offset) {
        x86_leave_to(t, x86_emit_jcc(&t->e, condition), (int)offset, true);
        return;
    }
    /* Around the jump; what is spilled there is not when it is not taken. */
    uint8_t flags = t->flags;
    uint8_t *around = x86_emit_jcc(&t->e, condition ^ 1);
    jump_to(t, offset);
    if (!t->e.full)
        x86_emit_link(around, t->e.at);
    t->flags = flags;
    t->ended = false;
}

/* RCX is counted down and looked at without changing flags. */
static void translate_loop(struct x86_translation *t)
{
    static const uint8_t if_zero[] = {0xe3, 5}, if_not_zero[] = {0xe3, 2, 0xeb, 5};
    const struct x86_source *s = t->source;
    bool tests_zf = s->z.opcode < 0xe2;
    bool while_equal = (uintptr_t)s->insn.aux == 1; /* also by a prefix: the handler knows */
    uint8_t *around[2];

    if (tests_zf)
        x86_flags_want(t);
    if (s->z.opcode == 0xe3) {
        x86_emit_bytes(&t->e, if_zero, sizeof if_zero);
    } else {
        x86_emit_lea(&t->e, HOST_RCX, x86_rm_mem(HOST_RCX, -1));
        x86_emit_bytes(&t->e, if_not_zero, sizeof if_not_zero);
    }
    uint8_t flags = t->flags;
    around[0] = x86_emit_jmp(&t->e);
    around[1] = tests_zf ? x86_emit_jcc(&t->e, while_equal ? COND_NE : COND_E) : NULL;
    jump_to(t, target_offset(s));
    for (unsigned i = 0; i < 2 && !t->e.full; i++) {
        if (around[i])
            x86_emit_link(around[i], t->e.at);
    }
    t->flags = flags;
    t->ended = false;
}

/* The return address on the stack; T0 is used. */
static void emit_push_next(struct x86_translation *t)
{
    struct x86_rm to = x86_emit_stack(t, X86_RSP, -8);
    x86_emit_rip(t, T2, next_offset(t->source));
    x86_emit_store(&t->e, to, T2);
    x86_emit_lea(&t->e, GUEST_RSP, x86_rm_mem(GUEST_RSP, -8));
}

static void translate_call(struct x86_translation *t)
{
    x86_flags_spill(t);
    emit_push_next(t);
    jump_to(t, target_offset(t->source));
}

void x86_emit_canonical_check(struct x86_translation *t)
{
    x86_emit_mov(&t->e, T1, T0);
    x86_emit_shift_imm(&t->e, 7, T1, 47, true);
    x86_emit_lea(&t->e, T1, x86_rm_mem(T1, 1));
    x86_emit_alu_imm(&t->e, ALU_CMP, T1, 1);
    x86_slow_path(t, x86_emit_jcc(&t->e, COND_A));
}

static void translate_ret(struct x86_translation *t)
{
    const struct x86_source *s = t->source;
    unsigned release = s->z.operand_count_visible ? (uint16_t)s->insn.imm : 0;

    x86_flags_spill(t);
    x86_emit_load(&t->e, T0, x86_emit_stack(t, X86_RSP, 0));
    struct x86_rm entry = x86_emit_jump_lookup(t);
    x86_emit_lea(&t->e, GUEST_RSP, x86_rm_mem(GUEST_RSP, 8 + (int32_t)release));
    x86_emit_jmp_rm(&t->e, entry);
    t->ended = true;
}

/* T0 = the branch's operand. */
static void emit_target_operand(struct x86_translation *t)
{
    const struct x86_source *s = t->source;

    if (s->mem) {
        x86_emit_load(&t->e, T0, x86_emit_memory(t, false));
    } else {
        unsigned host = x86_gpr_in(t, s->rm.gpr, T0);
        x86_emit_mov(&t->e, T0, host);
    }
}

static void translate_indirect(struct x86_translation *t)
{
    struct x86_rm rip = x86_cpu_field(CPU_OFFSET(host.temp));
    struct x86_rm where = x86_cpu_field(CPU_OFFSET(host.temp2));

    x86_flags_spill(t);
    emit_target_operand(t);
    struct x86_rm entry = x86_emit_jump_lookup(t);
    if (t->source->kind == KIND_CALL_INDIRECT) {
        x86_emit_load(&t->e, T1, entry);
        x86_emit_store(&t->e, rip, T0);
        x86_emit_store(&t->e, where, T1);
        emit_push_next(t);
        x86_emit_load(&t->e, T0, rip);
        entry = where;
    }
    x86_emit_jmp_rm(&t->e, entry);
    t->ended = true;
}

void x86_translate_branch(struct x86_translation *t)
{
    switch (t->source->kind) {
    case KIND_JCC:
        translate_jcc(t);
        break;
    case KIND_LOOP:
        translate_loop(t);
        break;
    case KIND_JMP:
        jump_to(t, target_offset(t->source));
        t->ended = true;
        break;
    case KIND_CALL:
        translate_call(t);
        t->ended = true;
        break;
    case KIND_RET:
        translate_ret(t);
        break;
    default:
        translate_indirect(t);
        break;
    }
}
