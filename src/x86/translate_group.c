/*
 * Groups: memory operands of a unit that lie at known distances from each other (the same
 * registers, not written in between but by known amounts) share one look into the TLB. The first
 * member probes the whole range, which must lie in one page; it keeps the host address of the
 * range's start, and the others use that. They can neither fault nor lose flags.
 *
 * A probe that fails for more than a missing entry leaves the unit: the instructions from there on
 * are run by a plain unit, made without groups (x86_unit_exit.plain). Nothing takes TLB entries
 * away while host code runs; a handler that did (tlb_revocations) does not come back into the unit.
 * The CPU's thread.
 */
#include "x86/translate_int.h"

/* Bytes that a group may span. */
#define SPAN_MAX 256

/* What is known of the general registers: each change but by a known amount begins a new version.
 */
struct registers {
    uint32_t version[16];
    int64_t delta[16]; /* since that version began */
};

/* base + index << scale at certain versions; X86_BASE_RIP: the unit's page. */
struct origin {
    uint8_t base, index, scale;
    uint32_t base_version, index_version;
};

enum { BASE_NONE = 0xff, BASE_RIP = 16 };

struct open_group {
    struct origin origin;
    bool branched; /* since its first member */
};

struct grouping {
    struct x86_translator *tr;
    struct registers regs;
    struct open_group open[X86_GROUPS_MAX];
};

/* A memory access of an instruction. */
struct access {
    struct origin origin;
    int64_t offset; /* from the origin */
    unsigned size;
    bool write;
};

static bool origin_equal(const struct origin *a, const struct origin *b)
{
    return a->base == b->base && a->index == b->index && a->scale == b->scale &&
           a->base_version == b->base_version && a->index_version == b->index_version;
}

/* --- accesses --- */

static struct origin stack_origin(const struct registers *r, unsigned gpr)
{
    return (struct origin) {
        .base = (uint8_t)gpr, .index = BASE_NONE, .base_version = r->version[gpr]};
}

static bool operand_access(const struct registers *r, const struct x86_source *s,
                           struct access *out)
{
    const ZydisDecodedOperandMem *mem = &s->mem->mem;
    unsigned gpr;

    if (s->z.address_width != 64 || mem->segment == ZYDIS_REGISTER_FS ||
        mem->segment == ZYDIS_REGISTER_GS || (s->kind != KIND_VECTOR && x86_needs_alignment(s)))
        return false;
    *out = (struct access) {.origin = {.base = BASE_NONE, .index = BASE_NONE},
                            .offset = mem->disp.value,
                            .size = s->mem->size / 8u,
                            .write = s->mem_write};
    if (mem->base == ZYDIS_REGISTER_RIP) {
        out->origin.base = BASE_RIP;
        out->offset += s->offset + s->z.length;
    } else if (x86_gpr_number(mem->base, &gpr)) {
        out->origin.base = (uint8_t)gpr;
        out->origin.base_version = r->version[gpr];
        out->offset += r->delta[gpr];
    } else {
        return false;
    }
    if (x86_gpr_number(mem->index, &gpr)) {
        out->origin.index = (uint8_t)gpr;
        out->origin.scale = mem->scale;
        out->origin.index_version = r->version[gpr];
        out->offset += r->delta[gpr] * mem->scale;
    }
    return out->size && out->size <= 32;
}

/* The one access of the instruction that can be in a group. */
static bool access_of(const struct registers *r, const struct x86_source *s, struct access *out)
{
    switch (s->kind) {
    case KIND_GENERIC:
    case KIND_VECTOR:
    case KIND_DIV:
        return s->mem && operand_access(r, s, out);
    case KIND_PUSH:
    case KIND_CALL:
        if (s->kind == KIND_PUSH && s->mem)
            return false;
        *out = (struct access) {stack_origin(r, X86_RSP), r->delta[X86_RSP] - 8, .size = 8,
                                .write = true};
        return true;
    case KIND_POP:
    case KIND_RET:
        *out = (struct access) {stack_origin(r, X86_RSP), r->delta[X86_RSP], .size = 8};
        return true;
    case KIND_LEAVE:
        *out = (struct access) {stack_origin(r, X86_RBP), r->delta[X86_RBP], .size = 8};
        return true;
    default:
        return false;
    }
}

/* --- what instructions do to registers --- */

static void forget(struct registers *r, unsigned gpr)
{
    r->version[gpr]++;
    r->delta[gpr] = 0;
}

/* gpr += *amount, all 64 bits. */
static bool known_amount(const struct x86_source *s, unsigned gpr, int64_t *amount)
{
    unsigned base;

    switch (s->z.mnemonic) {
    case ZYDIS_MNEMONIC_ADD:
    case ZYDIS_MNEMONIC_SUB:
        if (s->kind != KIND_GENERIC || s->rm.size != 8 || s->rm.gpr != gpr ||
            s->op[1].type != ZYDIS_OPERAND_TYPE_IMMEDIATE)
            return false;
        *amount =
            s->z.mnemonic == ZYDIS_MNEMONIC_ADD ? s->op[1].imm.value.s : -s->op[1].imm.value.s;
        return *amount > -(1 << 20) && *amount < 1 << 20;
    case ZYDIS_MNEMONIC_INC:
    case ZYDIS_MNEMONIC_DEC:
        *amount = s->z.mnemonic == ZYDIS_MNEMONIC_INC ? 1 : -1;
        return s->rm.size == 8 && s->rm.gpr == gpr;
    case ZYDIS_MNEMONIC_LEA:
        *amount = s->mem->mem.disp.value;
        return s->kind == KIND_LEA && s->reg.size == 8 && s->z.address_width == 64 &&
               s->mem->mem.index == ZYDIS_REGISTER_NONE &&
               x86_gpr_number(s->mem->mem.base, &base) && base == gpr && *amount > -(1 << 20) &&
               *amount < 1 << 20;
    case ZYDIS_MNEMONIC_PUSH:
        *amount = -8;
        return gpr == X86_RSP;
    case ZYDIS_MNEMONIC_POP:
        *amount = 8;
        return gpr == X86_RSP && s->op[0].reg.value != ZYDIS_REGISTER_RSP;
    default:
        return false;
    }
}

static void note_register(struct registers *r, const struct x86_source *s, ZydisRegister reg)
{
    int64_t amount;
    unsigned gpr;

    if (reg >= ZYDIS_REGISTER_AH && reg <= ZYDIS_REGISTER_BH)
        gpr = reg - ZYDIS_REGISTER_AH;
    else if (!x86_gpr_number(reg, &gpr))
        return;
    if (known_amount(s, gpr, &amount))
        r->delta[gpr] += amount;
    else
        forget(r, gpr);
}

static void note_writes(struct registers *r, const struct x86_source *s)
{
    bool rsp_done = false;

    for (unsigned i = 0; i < s->z.operand_count; i++) {
        const ZydisDecodedOperand *op = &s->op[i];
        if (op->type != ZYDIS_OPERAND_TYPE_REGISTER ||
            !(op->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE))
            continue;
        if (op->reg.value == ZYDIS_REGISTER_RSP) {
            if (rsp_done)
                continue;
            rsp_done = true;
        }
        note_register(r, s, op->reg.value);
    }
}

static void forget_all(struct grouping *g)
{
    for (unsigned i = 0; i < 16; i++)
        forget(&g->regs, i);
    for (unsigned i = 0; i < g->tr->group_count; i++)
        g->open[i].origin.base = BASE_NONE;
}

/* --- forming groups --- */

static bool join(struct x86_group *group, const struct open_group *open,
                 const struct access *access)
{
    int64_t min = MIN(group->min, access->offset);
    int64_t max = MAX(group->max, access->offset + access->size);

    if (!origin_equal(&open->origin, &access->origin) || max - min > SPAN_MAX)
        return false;
    /* Behind a branch a store may never come: it alone does not ask for a writable page. */
    if (access->write && !group->write && open->branched)
        return false;
    group->min = min;
    group->max = max;
    group->write |= access->write;
    group->members++;
    return true;
}

static void add(struct grouping *g, struct x86_source *s, const struct access *access)
{
    struct x86_translator *tr = g->tr;
    unsigned i;

    for (i = tr->group_count; i-- > 0;) {
        if (join(&tr->group[i], &g->open[i], access))
            break;
    }
    if (i == UINT32_MAX) {
        if (tr->group_count == X86_GROUPS_MAX)
            return;
        i = tr->group_count++;
        tr->group[i] = (struct x86_group) {.min = access->offset,
                                           .max = access->offset + access->size,
                                           .write = access->write,
                                           .members = 1,
                                           .leader = (uint8_t)(s - tr->source)};
        g->open[i] = (struct open_group) {.origin = access->origin};
    }
    s->group = (uint8_t)(i + 1);
    s->group_offset = access->offset;
}

void x86_groups_form(struct x86_translator *tr)
{
    struct grouping g = {.tr = tr};

    tr->group_count = 0;
    for (unsigned i = 0; i < tr->count; i++) {
        struct x86_source *s = &tr->source[i];
        struct access access;

        s->group = 0;
        if (tr->plain)
            continue;
        if (s->kind == KIND_HANDLER || s->kind == KIND_AC) {
            forget_all(&g);
            continue;
        }
        /* What follows STI is done in its unit. */
        bool alone = i && s[-1].kind == KIND_STI;
        if (!alone && access_of(&g.regs, s, &access))
            add(&g, s, &access);
        if (s->kind == KIND_JCC) {
            for (unsigned k = 0; k < tr->group_count; k++)
                g.open[k].branched = true;
        }
        note_writes(&g.regs, s);
    }
    for (unsigned i = 0; i < tr->count; i++) {
        struct x86_source *s = &tr->source[i];
        if (!s->group)
            continue;
        if (tr->group[s->group - 1].members < 2)
            s->group = 0;
        else if (tr->group[s->group - 1].leader != i && x86_only_memory_faults(s) &&
                 !(s->kind == KIND_VECTOR && x86_needs_alignment(s)))
            s->faults = false;
    }
}

/* --- emitting --- */

static const struct x86_group *group_of(const struct x86_translation *t)
{
    return &t->tr->group[t->source->group - 1];
}

static struct x86_rm slot(const struct x86_translation *t)
{
    return x86_cpu_field(CPU_OFFSET(host.group) + 8 * (t->source->group - 1));
}

/* T1 = the host address of the group's start; la is where this access is. */
static void emit_leader(struct x86_translation *t, unsigned la, const uint8_t *retry)
{
    const struct x86_group *group = group_of(t);
    int64_t back = group->min - t->source->group_offset;

    if (la != T0 || back)
        x86_emit_lea(&t->e, T0, x86_rm_mem(la, (int32_t)back));
    struct x86_rm addend =
        x86_emit_tlb_compare(t, T0, (unsigned)(group->max - group->min), group->write, false);
    x86_group_miss(t, x86_emit_jcc(&t->e, COND_NE), retry);
    x86_emit_load(&t->e, T1, addend);
    x86_emit_alu(&t->e, ALU_ADD, T1, x86_rm_reg(T0));
    x86_emit_store(&t->e, slot(t), T1);
    t->t1_group = t->source->group;
}

static bool is_leader(const struct x86_translation *t)
{
    return group_of(t)->leader == t->index;
}

static struct x86_rm emit_member(struct x86_translation *t)
{
    const struct x86_source *s = t->source;

    if (t->t1_group != s->group)
        x86_emit_load(&t->e, T1, slot(t));
    t->t1_group = s->group;
    return x86_rm_mem(T1, (int32_t)(s->group_offset - group_of(t)->min));
}

/* The group's probe does not look at alignment. Flags have been spilled. */
static void emit_alignment_check(struct x86_translation *t, struct x86_rm at)
{
    struct x86_encoding test = {.opcode = 0xf7};
    struct x86_rm t2 = x86_rm_reg(T2);

    x86_emit_lea(&t->e, T2, at);
    x86_emit_op(&t->e, &test, 0, &t2);
    x86_emit_32(&t->e, t->source->mem->size / 8u - 1);
    x86_slow_path(t, x86_emit_jcc(&t->e, COND_NE));
}

struct x86_rm x86_emit_memory(struct x86_translation *t, bool aligned)
{
    const struct x86_source *s = t->source;

    if (!s->group || is_leader(t) || aligned)
        x86_flags_lose(t);
    const uint8_t *retry = t->e.at;
    if (!s->group) {
        unsigned la = x86_emit_address(t, &s->mem->mem);
        return x86_emit_probe(t, la, s->mem->size / 8u, s->mem_write, aligned);
    }
    if (is_leader(t))
        emit_leader(t, x86_emit_address(t, &s->mem->mem), retry);
    struct x86_rm at = emit_member(t);
    if (aligned)
        emit_alignment_check(t, at);
    return at;
}

struct x86_rm x86_emit_stack(struct x86_translation *t, unsigned gpr, int offset)
{
    const struct x86_source *s = t->source;
    unsigned la = x86_host_of[gpr];

    if (s->group && !is_leader(t))
        return emit_member(t);
    x86_flags_lose(t);
    const uint8_t *retry = t->e.at;
    if (offset) {
        x86_emit_lea(&t->e, T0, x86_rm_mem(la, offset));
        la = T0;
    }
    if (!s->group)
        return x86_emit_probe(t, la, 8, offset != 0, false);
    emit_leader(t, la, retry);
    return emit_member(t);
}

/* Only host-resident registers are named: scratch is not used. */
static bool is_resident(const struct x86_gpr_use *use)
{
    return !use->size || x86_host_of[use->gpr] != HOST_NONE;
}

void x86_group_forget_scratch(struct x86_translation *t)
{
    const struct x86_source *s = t->source;
    bool keeps = false;

    switch (s->kind) {
    case KIND_GENERIC:
        keeps = s->mem ? s->group != 0
                       : is_resident(&s->rm) && is_resident(&s->reg) && is_resident(&s->vvvv);
        break;
    case KIND_PUSH:
    case KIND_POP:
        keeps = s->group;
        break;
    case KIND_NOP:
    case KIND_ACCUMULATOR:
        keeps = true;
        break;
    case KIND_JCC:
        keeps = true; /* what is emitted for a jump back uses T0 */
        break;
    default:
        break;
    }
    if (!keeps)
        t->t1_group = 0;
}
