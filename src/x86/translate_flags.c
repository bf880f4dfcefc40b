/*
 * Where the guest's status flags are while a unit runs. They are the host's; a look into the TLB
 * loses them. What comes behind may still read them, and so may a fault. They are then saved in
 * memory, or, when only a fault or one late reader may want them and the registers that they came
 * from are still there, made again by who wants them, mostly out of line. The CPU's thread.
 */
#include "x86/translate_int.h"

/* --- liveness --- */

void x86_flags_find_live(struct x86_translator *tr)
{
    uint32_t live = FLAGS_ALL; /* behind the unit */

    for (unsigned i = tr->count; i-- > 0;) {
        struct x86_source *s = &tr->source[i];
        bool leaves = x86_jumps_in_unit(s) || x86_ends_unit(s);
        if (leaves || (i && tr->source[i - 1].kind == KIND_STI))
            live = FLAGS_ALL;
        s->live_after = live;
        s->flags_read |= s->flags_undefined & live;
        live = (live & ~s->flags_written) | s->flags_read;
        if (s->faults)
            live = FLAGS_ALL;
    }
}

/* Flags that matter before the present instruction. */
static bool are_live(const struct x86_translation *t)
{
    const struct x86_source *s = t->source;
    return s->faults || s->flags_read || (s->live_after & ~s->flags_written);
}

/* --- in memory --- */

/* lahf; seto al; mov [flags], ax */
void x86_emit_flags_save(struct x86_emit *e)
{
    static const uint8_t lahf_seto[] = {0x9f, 0x0f, 0x90, 0xc0};
    struct x86_encoding store = {.opcode = 0x89, .operand16 = true};
    struct x86_rm slot = x86_cpu_field(CPU_OFFSET(host.flags));

    x86_emit_bytes(e, lahf_seto, sizeof lahf_seto);
    x86_emit_op(e, &store, T0, &slot);
}

/* movzx eax, word [flags]; add al, 0x7f; sahf: the addition overflows when AL is 1 */
void x86_emit_flags_load(struct x86_emit *e)
{
    static const uint8_t add_sahf[] = {0x04, 0x7f, 0x9e};
    struct x86_encoding load = {.opcode = 0xb7, .map = 1};
    struct x86_rm slot = x86_cpu_field(CPU_OFFSET(host.flags));

    x86_emit_op(e, &load, T0, &slot);
    x86_emit_bytes(e, add_sahf, sizeof add_sahf);
}

/* --- made again --- */

/* How the flags of an instruction come out of registers behind it. */
struct recipe {
    enum x86_alu op; /* what it was */
    bool test;       /* TEST; with op AND, OR, XOR: of the result */
    bool has_imm;
    uint8_t size, gpr, other; /* the first operand, and the second: a register or imm */
    int32_t imm;
};

static bool alu_of(ZydisMnemonic m, enum x86_alu *op)
{
    switch (m) {
    case ZYDIS_MNEMONIC_ADD:
        *op = ALU_ADD;
        return true;
    case ZYDIS_MNEMONIC_SUB:
        *op = ALU_SUB;
        return true;
    case ZYDIS_MNEMONIC_CMP:
        *op = ALU_CMP;
        return true;
    case ZYDIS_MNEMONIC_TEST:
    case ZYDIS_MNEMONIC_AND:
    case ZYDIS_MNEMONIC_OR:
    case ZYDIS_MNEMONIC_XOR:
        *op = ALU_AND;
        return true;
    default:
        return false;
    }
}

/* The second operand. False: it is gone, or was in memory. */
static bool find_other(const struct x86_source *s, struct recipe *r)
{
    unsigned gpr, size;

    if (s->op[1].type == ZYDIS_OPERAND_TYPE_IMMEDIATE) {
        r->has_imm = true;
        r->imm = (int32_t)s->op[1].imm.value.s;
        return true;
    }
    if (s->op[1].type != ZYDIS_OPERAND_TYPE_REGISTER ||
        !x86_gpr_of(s->op[1].reg.value, &gpr, &size))
        return false;
    r->other = (uint8_t)gpr;
    return r->op != ALU_ADD || r->other != r->gpr;
}

static bool find_recipe(const struct x86_source *s, struct recipe *r)
{
    unsigned gpr, size;

    *r = (struct recipe) {0};
    if ((s->kind != KIND_GENERIC && s->kind != KIND_ACCUMULATOR) ||
        !alu_of(s->z.mnemonic, &r->op) || s->op[0].type != ZYDIS_OPERAND_TYPE_REGISTER ||
        !x86_gpr_of(s->op[0].reg.value, &gpr, &size))
        return false;
    r->gpr = r->other = (uint8_t)gpr;
    r->size = (uint8_t)size;
    if (r->op == ALU_AND && s->z.mnemonic != ZYDIS_MNEMONIC_TEST)
        return true; /* they are the result's: TEST of it with itself */
    return find_other(s, r);
}

static struct x86_encoding sized(const struct recipe *r, uint8_t opcode)
{
    return (struct x86_encoding) {.opcode = (uint8_t)(opcode | (r->size > 1)),
                                  .operand16 = r->size == 2,
                                  .w = r->size == 8,
                                  .byte_reg = r->size == 1,
                                  .byte_rm = r->size == 1};
}

/* op `reg`, the other operand */
static void emit_with_other(struct x86_emit *e, const struct recipe *r, enum x86_alu op,
                            unsigned reg)
{
    bool test = r->op == ALU_AND;

    if (r->has_imm) {
        struct x86_encoding enc = sized(r, test ? 0xf6 : 0x80);
        struct x86_rm rm = x86_rm_reg(reg);
        x86_emit_op(e, &enc, test ? 0 : op, &rm);
        if (r->size == 1)
            x86_emit_8(e, (uint8_t)r->imm);
        else if (r->size == 2)
            x86_emit_bytes(e, &r->imm, 2);
        else
            x86_emit_32(e, (uint32_t)r->imm);
        return;
    }
    struct x86_encoding enc = sized(r, test ? 0x84 : (uint8_t)(op << 3 | 2));
    struct x86_rm rm = x86_host_of[r->other] == HOST_NONE ? x86_gpr_home(r->other)
                                                          : x86_rm_reg(x86_host_of[r->other]);
    x86_emit_op(e, &enc, reg, &rm);
}

/* The flags in the host's. Uses T0. */
static void emit_remake(struct x86_translation *t, unsigned maker)
{
    struct x86_emit *e = &t->e;
    struct recipe r;
    unsigned reg;

    if (!find_recipe(&t->tr->source[maker], &r)) {
        e->full = true; /* cannot be */
        return;
    }
    reg = x86_host_of[r.gpr];
    if (reg == HOST_NONE || r.op == ALU_ADD || r.op == ALU_SUB) {
        x86_emit_mov(e, T0, x86_gpr_in(t, r.gpr, T0));
        reg = T0;
    }
    if (r.op == ALU_ADD)
        emit_with_other(e, &r, ALU_SUB, reg);
    else if (r.op == ALU_SUB)
        emit_with_other(e, &r, ALU_ADD, reg);
    emit_with_other(e, &r, r.op == ALU_SUB ? ALU_CMP : r.op, reg);
}

void x86_emit_flags_remade(struct x86_translation *t, unsigned maker)
{
    emit_remake(t, maker);
    x86_emit_flags_save(&t->e);
}

/* --- which of the two --- */

/* Instructions over which flags may be nowhere: they go on to the next one or fault. */
static bool is_passable(const struct x86_source *s)
{
    switch (s->kind) {
    case KIND_GENERIC:
    case KIND_ACCUMULATOR:
    case KIND_MOV_IMM:
    case KIND_BSWAP:
    case KIND_LEA:
    case KIND_PUSH:
    case KIND_POP:
    case KIND_NOP:
    case KIND_VECTOR:
    case KIND_JCC:
        return true;
    default:
        return false;
    }
}

static bool writes(const struct x86_source *s, const struct recipe *r)
{
    unsigned gpr;

    for (unsigned i = 0; i < s->z.operand_count; i++) {
        const ZydisDecodedOperand *op = &s->op[i];
        if (op->type != ZYDIS_OPERAND_TYPE_REGISTER ||
            !(op->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE))
            continue;
        if (op->reg.value >= ZYDIS_REGISTER_AH && op->reg.value <= ZYDIS_REGISTER_BH)
            gpr = op->reg.value - ZYDIS_REGISTER_AH;
        else if (!x86_gpr_number(op->reg.value, &gpr))
            continue;
        if (gpr == r->gpr || (!r->has_imm && gpr == r->other))
            return true;
    }
    return false;
}

/*
 * Whether the flags of t->flags_maker can be made again by all who may want them, from the present
 * instruction to the first that reads or overwrites them.
 */
static bool can_be_made_again(const struct x86_translation *t)
{
    const struct x86_translator *tr = t->tr;
    struct recipe r;
    unsigned i;

    if (t->flags_maker == FLAGS_NO_MAKER || !find_recipe(&tr->source[t->flags_maker], &r))
        return false;
    for (i = t->flags_maker + 1u; i < t->index; i++) {
        if (writes(&tr->source[i], &r))
            return false;
    }
    for (; i < tr->count && is_passable(&tr->source[i]); i++) {
        const struct x86_source *s = &tr->source[i];
        if (x86_wants_flags(s) || s->flags_written == FLAGS_ALL)
            return true;
        if (writes(s, &r))
            return false;
    }
    return false;
}

void x86_flags_spill(struct x86_translation *t)
{
    if (t->flags == FLAGS_HOST && are_live(t))
        x86_emit_flags_save(&t->e);
    else if (t->flags == FLAGS_NOWHERE && are_live(t))
        x86_emit_flags_remade(t, t->flags_maker);
    t->flags = FLAGS_MEMORY;
}

void x86_flags_lose(struct x86_translation *t)
{
    if (t->flags == FLAGS_HOST && are_live(t) && can_be_made_again(t))
        t->flags = FLAGS_NOWHERE;
    if (t->flags != FLAGS_NOWHERE)
        x86_flags_spill(t);
}

void x86_flags_want(struct x86_translation *t)
{
    if (t->flags == FLAGS_MEMORY) {
        x86_emit_flags_load(&t->e);
        t->flags = FLAGS_BOTH;
    } else if (t->flags == FLAGS_NOWHERE) {
        emit_remake(t, t->flags_maker);
        t->flags = FLAGS_HOST;
    }
}
