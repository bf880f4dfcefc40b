/*
 * Makes sequences: picks forms, fills in what their templates leave open, and puts moves before
 * them so that memory operands mostly hit the test's memory.
 */
#include <limits.h>
#include <string.h>

#include "base/bits.h"

#include "diff.h"

#define TARGET_INSNS 140
#define CODE_LIMIT   8000

/* splitmix64 */
uint64_t diff_random(struct diff_random *r)
{
    uint64_t z = r->state += 0x9e3779b97f4a7c15ull;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ z >> 27) * 0x94d049bb133111ebull;
    return z ^ z >> 31;
}

uint64_t diff_random_value(struct diff_random *r)
{
    static const uint64_t special[] = {
        0,      1,          ~0ull,      0x7f,       0x80,      0xff,       0x7fff,        0x8000,
        0xffff, 0x7fffffff, 0x80000000, 0xffffffff, INT64_MAX, 1ull << 63, 0x100000000ull};
    switch (diff_below(r, 5)) {
    case 0:
        return special[diff_below(r, ARRAY_COUNT(special))];
    case 1:
        return diff_below(r, 256);
    case 2:
        return diff_random(r) >> diff_below(r, 64);
    default:
        return diff_random(r);
    }
}

uint64_t diff_address(struct diff_random *r, unsigned size)
{
    unsigned align = size & -size;
    uint64_t a;

    if (!align || align > 32)
        align = 8;
    switch (diff_below(r, 400)) {
    case 0: /* at or over the edge to the read-only page */
        return DATA_BASE + DATA_RW - diff_below(r, 40);
    case 1: /* out of it, into nothing */
        return DATA_BASE + DATA_RW + DATA_RO - diff_below(r, 40);
    case 2: /* out of nothing */
        return DATA_BASE - diff_below(r, 40);
    case 3: /* not canonical, or far away */
        return diff_chance(r, 50) ? 1ull << 47 | diff_random(r) : diff_random(r) >> 16;
    case 4:
    case 5:
    case 6: /* across pages */
        return DATA_BASE + 4096 * (1 + diff_below(r, 3)) - diff_below(r, size + 1);
    case 7:
    case 8:
    case 9:
    case 10:
    case 11:
    case 12:
    case 13:
    case 14:
    case 15:
    case 16: /* anywhere, any alignment */
        return DATA_BASE + 256 + diff_below(r, DATA_RW - 1024);
    default:
        a = DATA_BASE + 256 + diff_below(r, DATA_RW - 1024);
        return a & ~(uint64_t)(align - 1);
    }
}

/* --- writing --- */

void diff_put_bytes(struct diff_writer *w, const uint8_t *bytes, unsigned length)
{
    struct diff_sequence *s = w->s;

    if (s->count >= DIFF_INSNS_MAX || s->length + length > CODE_LIMIT)
        return;
    memcpy(s->input.code + s->length, bytes, length);
    s->form[s->count] = diff_forms_find(w->forms, bytes, length);
    s->offset[s->count++] = (uint16_t)s->length;
    s->length += length;
    s->offset[s->count] = (uint16_t)s->length;
}

void diff_put_mov(struct diff_writer *w, unsigned gpr, uint64_t value)
{
    uint8_t bytes[10] = {(uint8_t)(gpr >= 8 ? 0x41 : 0x40), (uint8_t)(0xb8 | (gpr & 7))};

    if (value >> 32 == 0 || w->s->input.code_size != 8) {
        store_le32(bytes + 2, (uint32_t)value);
        diff_put_bytes(w, gpr >= 8 ? bytes : bytes + 1, gpr >= 8 ? 6 : 5);
    } else {
        bytes[0] |= 8;
        store_le64(bytes + 2, value);
        diff_put_bytes(w, bytes, 10);
    }
}

/* --- encoding one --- */

struct encoding {
    uint8_t bytes[32];
    unsigned length;
};

static void put(struct encoding *e, uint64_t byte)
{
    if (e->length < sizeof e->bytes)
        e->bytes[e->length++] = (uint8_t)byte;
}

static void put_prefixes(struct encoding *e, const struct diff_template *t, bool wide,
                         struct diff_random *r)
{
    if (t->has_modrm && diff_chance(r, 4))
        put(e, wide ? 0x65 : 0x26);                  /* GS, ES */
    if ((wide || t->has_modrm) && diff_chance(r, 4)) /* 16-bit addresses hit nothing */
        put(e, 0x67);
    for (unsigned i = 0; i < sizeof t->prefix && !t->vex; i++)
        if (t->prefix[i])
            put(e, t->prefix[i]);
}

static void put_opcode(struct encoding *e, const struct diff_template *t, bool wide,
                       struct diff_random *r)
{
    uint64_t rxb = wide && diff_chance(r, 50) ? diff_below(r, 8) : 0;

    if (t->vex) {
        uint64_t vvvv = diff_chance(r, 50) ? diff_below(r, 16) | (wide ? 0 : 8) : 15;
        put(e, 0xc4);
        put(e, (~rxb & 7) << 5 | t->map);
        put(e, t->w << 7 | vvvv << 3 | t->l << 2 | t->pp);
    } else {
        if (t->w || rxb || (wide && diff_chance(r, 10)))
            put(e, 0x40 | t->w << 3 | rxb);
        if (t->map)
            put(e, 0x0f);
        if (t->map > 1)
            put(e, t->map == 2 ? 0x38 : 0x3a);
    }
    put(e, t->opcode);
}

/* reg and rm may be part of the opcode: then another try keeps them. */
static void put_modrm(struct encoding *e, const struct diff_template *t, struct diff_random *r,
                      bool keep)
{
    uint64_t mod = t->modrm >> 6, reg = t->modrm >> 3 & 7, rm = t->modrm & 7;
    bool vsib = rm == 4 && keep;

    if (mod != 3) {
        mod = diff_below(r, 3);
        rm = vsib ? 4 : diff_below(r, 8);
    } else if (!keep) {
        rm = diff_below(r, 8);
    }
    if (!keep)
        reg = diff_below(r, 8);
    put(e, mod << 6 | reg << 3 | rm);
    if (mod == 3)
        return;
    uint64_t sib = diff_below(r, 256);
    if (rm == 4)
        put(e, sib);
    unsigned disp = mod == 1 ? 1 : mod == 2 || rm == 5 || (rm == 4 && (sib & 7) == 5) ? 4 : 0;
    if (rm == 4 && (sib & 7) == 5 && mod == 1)
        disp = 1;
    uint64_t value = diff_random(r);
    for (unsigned i = 0; i < disp; i++)
        put(e, value >> (8 * i));
}

static void put_suffix(struct encoding *e, const struct diff_template *t, struct diff_random *r)
{
    uint64_t value = diff_random_value(r);

    /* RET and ENTER: bytes of stack, and 0 to 3 levels of nesting */
    if (t->map == 0 && !t->vex && (t->opcode == 0xc2 || t->opcode == 0xc8) && diff_chance(r, 90))
        value &= 0x030078;
    for (unsigned i = 0; i < t->suffix; i++)
        put(e, value >> (8 * i));
}

/* Encodes the form with its open fields filled at random; false: no try kept the form. */
static bool encode(const struct diff_forms *forms, unsigned index, struct diff_random *r,
                   struct encoding *out, struct diff_insn *insn)
{
    const struct diff_form *form = &forms->form[index];
    const bool wide = forms->mode.code_size == 8;

    for (unsigned attempt = 0; attempt < 24; attempt++) {
        const struct diff_template *t = &form->template[diff_below(r, form->template_count)];
        *out = (struct encoding) {.length = 0};
        put_prefixes(out, t, wide, r);
        put_opcode(out, t, wide, r);
        if (t->has_modrm)
            put_modrm(out, t, r, attempt & 1);
        put_suffix(out, t, r);
        if (out->length <= 15 && diff_decode(forms, out->bytes, out->length, insn) &&
            insn->z.length == out->length && !diff_policy_excluded(insn) &&
            diff_policy_comparable_here(insn) &&
            diff_forms_find(forms, out->bytes, out->length) == index)
            return true;
    }
    return false;
}

/* --- operands --- */

static unsigned gpr_of(ZydisRegister reg)
{
    ZydisRegister full = ZydisRegisterGetLargestEnclosing(ZYDIS_MACHINE_MODE_LONG_64, reg);
    return full >= ZYDIS_REGISTER_RAX && full <= ZYDIS_REGISTER_R15 ? full - ZYDIS_REGISTER_RAX
                                                                    : 16u;
}

static const ZydisDecodedOperand *memory_operand(const struct diff_insn *i)
{
    for (unsigned k = 0; k < i->z.operand_count_visible; k++)
        if (i->op[k].type == ZYDIS_OPERAND_TYPE_MEMORY)
            return &i->op[k];
    return NULL;
}

static void patch_displacement(struct encoding *e, const struct diff_insn *i, uint64_t value)
{
    unsigned size = i->z.raw.disp.size / 8;
    memcpy(e->bytes + i->z.raw.disp.offset, &value, size);
}

/* VPXOR of the index register: all elements point at the base. */
static void zero_vector_index(struct diff_writer *w, ZydisRegister reg)
{
    unsigned n = (unsigned)ZydisRegisterGetId(reg) & 15;
    uint8_t bytes[5] = {0xc4, (uint8_t)(n < 8 ? 0xe1 : 0x41), (uint8_t)((~n & 15) << 3 | 5), 0xef,
                        (uint8_t)(0xc0 | (n & 7) << 3 | (n & 7))};
    diff_put_bytes(w, bytes, sizeof bytes);
}

/* Chooses an address and makes base, index and displacement amount to it. Returns it. */
static uint64_t aim(struct diff_writer *w, struct encoding *e, const struct diff_insn *i)
{
    const ZydisDecodedOperand *op = memory_operand(i);
    unsigned base = gpr_of(op->mem.base), index = gpr_of(op->mem.index);
    uint64_t address = diff_address(w->r, op->size / 8u), target = address, scaled = 0;

    if (op->mem.segment == ZYDIS_REGISTER_GS)
        target -= GS_BASE;
    if (op->mem.type == ZYDIS_MEMOP_TYPE_VSIB) {
        zero_vector_index(w, op->mem.index);
    } else if (index < 16 && index != X86_RSP && index != base) {
        uint64_t value = diff_below(w->r, 16);
        diff_put_mov(w, index, value);
        scaled = value * op->mem.scale;
    }
    if (base == X86_RSP) {
        if (i->z.raw.disp.size)
            patch_displacement(e, i, diff_below(w->r, 64));
    } else if (base < 16) {
        uint64_t value = target - (uint64_t)i->z.raw.disp.value - scaled;
        diff_put_mov(w, base, index == base ? value / (1u + op->mem.scale) : value);
    } else if (op->mem.base == ZYDIS_REGISTER_RIP || op->mem.base == ZYDIS_REGISTER_EIP) {
        patch_displacement(e, i, target - (CODE_BASE + w->s->length + e->length));
    } else {
        patch_displacement(e, i, target - scaled);
    }
    return address;
}

/* Branches go to the next instruction here; aim_forward changes some. */
static void aim_branch(struct diff_writer *w, struct encoding *e, const struct diff_insn *i)
{
    memset(e->bytes + i->z.raw.imm[0].offset, 0, i->z.raw.imm[0].size / 8);
}

/* Has some branches skip a few instructions, or leave for the INT3s or for nowhere. */
static void aim_forward(struct diff_sequence *s, const struct diff_forms *forms,
                        struct diff_random *r)
{
    struct diff_insn i;

    for (unsigned n = 0; n < s->count; n++) {
        uint8_t *code = s->input.code + s->offset[n];
        unsigned next = s->offset[n + 1];
        if (!diff_chance(r, 12) || !diff_decode(forms, code, next - s->offset[n], &i) ||
            !i.z.raw.imm[0].is_relative)
            continue;
        unsigned size = i.z.raw.imm[0].size / 8;
        uint64_t value = s->offset[MIN(n + 1 + diff_below(r, 10), s->count)] - next;
        if (size == 4 && diff_chance(r, 10))
            value = 0x1000000 + diff_below(r, 0x1000000);
        if (size > 1 || value < 128)
            memcpy(code + i.z.raw.imm[0].offset, &value, size);
    }
}

/* LEA of what follows the branch. */
static void aim_indirect(struct diff_writer *w, const struct encoding *e, const struct diff_insn *i)
{
    unsigned gpr = gpr_of(i->op[0].reg.value);
    if (gpr < 16 && gpr != X86_RSP && diff_chance(w->r, 80)) {
        uint64_t here = CODE_BASE + w->s->length + (gpr >= 8 ? 6 : 5);
        diff_put_mov(w, gpr, here + e->length);
    }
}

/* MOV m64, i32, or MOV m32, i32, to an absolute address. */
static unsigned store_length(const struct diff_writer *w)
{
    return w->s->input.code_size == 8 ? 12 : 10;
}

static void put_store(struct diff_writer *w, uint64_t address, uint64_t value)
{
    uint8_t wide[12] = {0x48, 0xc7, 0x04, 0x25}, narrow[10] = {0xc7, 0x05};
    bool is_wide = w->s->input.code_size == 8;

    if (address > INT32_MAX)
        return;
    store_le32(is_wide ? wide + 4 : narrow + 2, (uint32_t)address);
    store_le32(is_wide ? wide + 8 : narrow + 6, (uint32_t)value);
    diff_put_bytes(w, is_wide ? wide : narrow, store_length(w));
}

/* What the instruction finds in memory, where that matters. */
static void fill_operand(struct diff_writer *w, const struct encoding *e, const struct diff_insn *i,
                         uint64_t address)
{
    uint64_t value;

    if (i->z.meta.branch_type != ZYDIS_BRANCH_TYPE_NONE) {
        if (diff_chance(w->r, 90)) /* the address of what follows */
            put_store(w, address, CODE_BASE + w->s->length + store_length(w) + e->length);
    } else if (diff_policy_operand(i, w->r, &value)) {
        put_store(w, address, value);
    }
}

/* Has a return come back behind itself. */
static void aim_return(struct diff_writer *w, const struct encoding *e)
{
    uint8_t push[5] = {0x68};

    if (diff_chance(w->r, 10))
        return;
    store_le32(push + 1, (uint32_t)(CODE_BASE + w->s->length + sizeof push + e->length));
    diff_put_bytes(w, push, sizeof push);
}

/* The stack pointer is worth keeping: without it little else runs. */
static bool spoils_stack(const struct diff_insn *i)
{
    for (unsigned k = 0; k < i->z.operand_count_visible; k++)
        if (i->op[k].type == ZYDIS_OPERAND_TYPE_REGISTER && gpr_of(i->op[k].reg.value) == X86_RSP &&
            i->op[k].actions & ZYDIS_OPERAND_ACTION_MASK_WRITE)
            return true;
    return false;
}

static void put_form(struct diff_writer *w, unsigned form)
{
    struct encoding e;
    struct diff_insn insn;
    unsigned attempts = 0;
    uint64_t address = 0;

    do {
        if (!encode(w->forms, form, w->r, &e, &insn))
            return;
    } while (spoils_stack(&insn) && ++attempts < 8 && diff_chance(w->r, 95));

    bool relative = insn.op[0].type == ZYDIS_OPERAND_TYPE_IMMEDIATE && insn.op[0].imm.is_relative;
    diff_policy_prepare(w, &insn);
    if (relative && insn.z.operand_count_visible)
        aim_branch(w, &e, &insn);
    else if (memory_operand(&insn) && diff_below(w->r, 500))
        address = aim(w, &e, &insn);
    if (insn.z.mnemonic == ZYDIS_MNEMONIC_RET)
        aim_return(w, &e);
    else if (address)
        fill_operand(w, &e, &insn, address);
    else if (insn.z.meta.branch_type != ZYDIS_BRANCH_TYPE_NONE && insn.z.operand_count_visible &&
             insn.op[0].type == ZYDIS_OPERAND_TYPE_REGISTER)
        aim_indirect(w, &e, &insn);
    diff_put_bytes(w, e.bytes, e.length);
}

/* --- the state at the start --- */

static void random_vector(struct diff_random *r, uint8_t v[32])
{
    static const double numbers[] = {0.0, -0.0, 1.0, -1.5, 3.25, 1e10, 1e-310, 1e300};
    for (unsigned i = 0; i < 32; i += 8) {
        double d = numbers[diff_below(r, ARRAY_COUNT(numbers))];
        float f[2] = {(float)(d * 0.5), (float)diff_below(r, 1000)};
        uint64_t value = diff_random_value(r);
        switch (diff_below(r, 4)) {
        case 0:
            memcpy(v + i, &d, 8);
            break;
        case 1:
            memcpy(v + i, f, 8);
            break;
        default:
            memcpy(v + i, &value, 8);
            break;
        }
    }
}

static void random_x87(struct diff_random *r, uint8_t st[16])
{
    uint64_t mantissa = diff_random_value(r);
    uint16_t exponent = (uint16_t)(0x3fff + diff_below(r, 64) - 32);

    memset(st, 0, 16);
    switch (diff_below(r, 8)) {
    case 0: /* zero */
        exponent = mantissa = 0;
        break;
    case 1: /* infinity, not-a-number, unsupported */
        exponent = 0x7fff;
        break;
    case 2: /* denormal, unnormal or anything */
        exponent = (uint16_t)diff_random(r);
        break;
    default:
        mantissa |= 1ull << 63;
        break;
    }
    store_le64(st, mantissa);
    store_le16(st + 8, (uint16_t)(exponent | (diff_chance(r, 30) ? 0x8000 : 0)));
}

static void random_fpu(struct diff_random *r, struct x86_fpu *fpu)
{
    memset(fpu, 0, sizeof *fpu);
    for (unsigned i = 0; i < 16; i++)
        random_vector(r, fpu->ymm[i]);
    for (unsigned i = 0; i < 8; i++)
        random_x87(r, fpu->st[i]);
    fpu->fcw = 0x37f;
    if (diff_chance(r, 30))
        fpu->fcw = (uint16_t)(0x7f | diff_below(r, 16) << 8);
    if (diff_chance(r, 5))
        fpu->fcw = (uint16_t)(fpu->fcw & ~(1u << diff_below(r, 6)));
    fpu->fsw = (uint16_t)(diff_below(r, 8) << 11);
    fpu->ftw = (uint8_t)(diff_chance(r, 60) ? 0xff : diff_random(r));
    fpu->mxcsr = 0x1f80;
    if (diff_chance(r, 40))
        fpu->mxcsr |= (uint32_t)(diff_below(r, 4) << 13 | diff_below(r, 64));
    if (diff_chance(r, 10))
        fpu->mxcsr |= 0x8040;
    if (diff_chance(r, 4)) /* an exception unmasked, its sticky flag clear */
        fpu->mxcsr &= ~(0x81u << diff_below(r, 6));
}

static void random_memory(struct diff_random *r, uint8_t *memory)
{
    for (unsigned i = 0; i < MEMORY_SIZE; i += 8) {
        uint64_t v = diff_random(r);
        switch (v >> 61) {
        case 0:
            v = CODE_LAND + (v & 1023); /* where a RET or an indirect jump may go */
            break;
        case 1:
            v = 0;
            break;
        case 2:
            v &= 0xffff00ff;
            break;
        default:
            break;
        }
        store_le64(memory + i, v);
    }
    memset(memory + DATA_RW, 0, DATA_RO); /* the native one cannot be written */
}

static void random_state(struct diff_random *r, struct diff_state *s)
{
    for (unsigned i = 0; i < 16; i++)
        s->gpr[i] = diff_chance(r, 40) ? diff_address(r, 8) : diff_random_value(r);
    s->gpr[X86_RSP] = STACK_BASE + STACK_SIZE / 2 + diff_below(r, 32) * 8;
    s->rip = CODE_BASE;
    s->rflags = X86_FIXED | X86_IF | (diff_random(r) & X86_STATUS_FLAGS);
    if (diff_chance(r, 15))
        s->rflags |= X86_DF;
    random_fpu(r, &s->fpu);
}

void diff_generate(struct diff_sequence *out, const struct diff_forms *forms, struct diff_random *r,
                   diff_pick *pick, void *context)
{
    struct diff_writer w = {.s = out, .forms = forms, .r = r};
    unsigned wanted = 1 + (unsigned)diff_below(r, 2 * TARGET_INSNS);

    memset(out->input.code, 0xcc, sizeof out->input.code);
    out->count = out->length = out->offset[0] = 0;
    out->input.code_size = forms->mode.code_size;
    random_state(r, &out->input.state);
    for (unsigned i = 0; out->input.code_size != 8 && i < 16; i++)
        out->input.state.gpr[i] = (uint32_t)out->input.state.gpr[i];
    random_memory(r, out->input.memory);
    for (unsigned i = 0; i < wanted && out->count < DIFF_INSNS_MAX - 8; i++)
        put_form(&w, pick(context, r));
    aim_forward(out, forms, r);
}
