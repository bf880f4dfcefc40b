/*
 * Translation of integer instructions: the same instruction with registers renamed and the memory
 * operand probed. The CPU's thread. SDM vol. 2.
 */
#include "x86/translate_int.h"

/* --- the encoding, taken from the decoder's fields --- */

static uint8_t opcode_map(const ZydisDecodedInstruction *z)
{
    switch (z->opcode_map) {
    case ZYDIS_OPCODE_MAP_0F:
        return 1;
    case ZYDIS_OPCODE_MAP_0F38:
        return 2;
    case ZYDIS_OPCODE_MAP_0F3A:
        return 3;
    default:
        return 0;
    }
}

static uint8_t vex_mandatory(const ZydisDecodedInstruction *z)
{
    static const uint8_t of[] = {0, 0x66, 0xf3, 0xf2};
    return of[z->raw.vex.pp & 3];
}

struct x86_encoding x86_encoding_of(const struct x86_source *s)
{
    const ZydisDecodedInstruction *z = &s->z;
    struct x86_encoding enc = {.opcode = z->opcode, .map = opcode_map(z)};

    if (z->encoding == ZYDIS_INSTRUCTION_ENCODING_VEX) {
        enc.vex = true;
        enc.mandatory = vex_mandatory(z);
        enc.w = z->raw.vex.W;
        enc.l = z->raw.vex.L;
        return enc;
    }
    enc.w = (z->attributes & ZYDIS_ATTRIB_HAS_REX) && z->raw.rex.W;
    enc.operand16 = z->attributes & ZYDIS_ATTRIB_HAS_OPERANDSIZE;
    enc.lock = z->attributes & ZYDIS_ATTRIB_HAS_LOCK;
    for (unsigned i = 0; i < z->raw.prefix_count; i++) {
        if (z->raw.prefixes[i].type == ZYDIS_PREFIX_TYPE_MANDATORY) {
            if (z->raw.prefixes[i].value == 0x66)
                enc.operand16 = true;
            else
                enc.mandatory = z->raw.prefixes[i].value;
        }
    }
    enc.byte_reg = s->reg.size == 1;
    enc.byte_rm = s->rm.size == 1;
    return enc;
}

/* Immediates are the last bytes of an instruction. */
void x86_emit_immediates(struct x86_translation *t)
{
    const struct x86_source *s = t->source;
    unsigned size = (s->z.raw.imm[0].size + s->z.raw.imm[1].size) / 8u;
    x86_emit_bytes(&t->e, s->bytes + s->z.length - size, size);
}

/* --- the general instruction --- */

/* Registers that are free beside the memory operand. */
struct scratch {
    uint8_t reg, vvvv;
};

static struct x86_rm memory_operand(struct x86_translation *t, struct scratch *free)
{
    const struct x86_source *s = t->source;
    bool wants = x86_wants_flags(s), stages_rax = s->rax_read || s->rax_written;

    struct x86_rm rm = x86_emit_memory(t, x86_needs_alignment(s));
    *free = (struct scratch) {.reg = T2, .vvvv = T0};
    if (rm.base == T0 && (wants || stages_rax || s->vvvv.size)) {
        /* One register for the address, and RAX is to be had. */
        x86_emit_lea(&t->e, T2, rm);
        rm = x86_rm_mem(T2, 0);
        free->reg = T1;
    }
    if (wants)
        x86_flags_want(t);
    return rm;
}

/* BT, BTS, BTR, BTC with the bit number in a register, which reaches beyond a memory operand. */
static bool is_bit_string(const struct x86_source *s)
{
    return s->z.opcode_map == ZYDIS_OPCODE_MAP_0F && (s->z.opcode & 0xe7) == 0xa3;
}

/* XADD, XCHG of a register with itself: one place for both. */
static bool is_same_register(const struct x86_source *s)
{
    return !s->mem && s->reg.size && s->reg.written && s->rm.written && s->reg.gpr == s->rm.gpr;
}

/* What these do to OF depends on whether the operand is a register (exec_shift.c). */
static bool is_rotate(const struct x86_source *s)
{
    return s->z.mnemonic == ZYDIS_MNEMONIC_ROL || s->z.mnemonic == ZYDIS_MNEMONIC_ROR;
}

/*
 * A register in ModRM.rm that lives in memory can be used there, but for 32-bit writes and where
 * memory is something else than a register.
 */
static struct x86_rm register_operand(struct x86_translation *t, const struct x86_gpr_use *use,
                                      bool *store)
{
    *store = false;
    if (x86_host_of[use->gpr] != HOST_NONE)
        return x86_rm_reg(x86_host_of[use->gpr]);
    bool load = is_bit_string(t->source) || is_same_register(t->source) || is_rotate(t->source);
    if (!load && (!use->written || use->size != 4))
        return x86_gpr_home(use->gpr);
    if (use->read || load)
        x86_emit_load(&t->e, T1, x86_gpr_home(use->gpr));
    *store = use->written;
    return x86_rm_reg(T1);
}

static unsigned field_operand(struct x86_translation *t, const struct x86_gpr_use *use,
                              unsigned scratch)
{
    if (x86_host_of[use->gpr] != HOST_NONE)
        return x86_host_of[use->gpr];
    if (use->read)
        x86_emit_load(&t->e, scratch, x86_gpr_home(use->gpr));
    return scratch;
}

/* The digit of an opcode extension, when ModRM.reg is no register. */
static unsigned modrm_reg(const struct x86_source *s)
{
    return s->z.raw.modrm.reg;
}

static void stage_rax(struct x86_translation *t)
{
    if (t->source->rax_read || t->source->rax_written)
        x86_emit_mov(&t->e, T0, x86_host_of[X86_RAX]);
}

static void unstage_rax(struct x86_translation *t)
{
    if (t->source->rax_written)
        x86_emit_mov(&t->e, x86_host_of[X86_RAX], T0);
}

static void changed(struct x86_translation *t)
{
    if (t->source->flags_written | t->source->flags_undefined)
        x86_flags_changed(t);
}

static void translate_generic(struct x86_translation *t)
{
    const struct x86_source *s = t->source;
    struct x86_encoding enc = x86_encoding_of(s);
    struct scratch free = {.reg = T2, .vvvv = T0};
    bool rm_store = false;
    unsigned reg = modrm_reg(s);
    struct x86_rm rm;

    if (s->mem) {
        rm = memory_operand(t, &free);
    } else {
        if (x86_wants_flags(s))
            x86_flags_want(t);
        rm = register_operand(t, &s->rm, &rm_store);
    }
    if (s->reg.size)
        reg = rm_store && is_same_register(s) ? T1 : field_operand(t, &s->reg, free.reg);
    if (s->vvvv.size)
        enc.vvvv = (uint8_t)field_operand(t, &s->vvvv, free.vvvv);
    stage_rax(t);
    x86_emit_op(&t->e, &enc, reg, &rm);
    x86_emit_immediates(t);
    if (rm_store)
        x86_emit_store(&t->e, x86_gpr_home(s->rm.gpr), T1);
    if (s->vvvv.size && s->vvvv.written)
        x86_gpr_out(t, s->vvvv.gpr, enc.vvvv);
    if (s->reg.size && s->reg.written)
        x86_gpr_out(t, s->reg.gpr, reg);
    unstage_rax(t);
    changed(t);
}

/* --- the others --- */

/* 04, 05, A8, A9…: the form with ModRM, since RAX is elsewhere. */
static void translate_accumulator(struct x86_translation *t)
{
    const struct x86_source *s = t->source;
    bool byte = !(s->z.opcode & 1), test = s->z.mnemonic == ZYDIS_MNEMONIC_TEST;
    struct x86_encoding enc = {.w = (s->z.attributes & ZYDIS_ATTRIB_HAS_REX) && s->z.raw.rex.W,
                               .operand16 = s->z.attributes & ZYDIS_ATTRIB_HAS_OPERANDSIZE,
                               .byte_rm = byte};
    struct x86_rm rm = x86_rm_reg(x86_host_of[X86_RAX]);

    enc.opcode = (uint8_t)((test ? 0xf6 : 0x80) | !byte);
    if (s->flags_read)
        x86_flags_want(t);
    x86_emit_op(&t->e, &enc, test ? 0 : s->z.opcode >> 3 & 7, &rm);
    x86_emit_immediates(t);
    changed(t);
}

/* The register in the low bits of the opcode. */
static unsigned opcode_gpr(const struct x86_source *s)
{
    unsigned b = (s->z.attributes & ZYDIS_ATTRIB_HAS_REX) && s->z.raw.rex.B;
    return (s->z.opcode & 7u) | b << 3;
}

/* PUSH and POP have forms with ModRM, too. */
static unsigned operand_gpr(const struct x86_source *s)
{
    unsigned gpr = 0, size;
    (void)x86_gpr_of(s->op[0].reg.value, &gpr, &size);
    return gpr;
}

/* B0 to BF */
static void translate_mov_imm(struct x86_translation *t)
{
    const struct x86_source *s = t->source;
    unsigned gpr = opcode_gpr(s), size = s->op[0].size / 8u;
    unsigned host = x86_host_of[gpr] == HOST_NONE ? T1 : x86_host_of[gpr];

    if (size < 4 && host == T1)
        x86_emit_load(&t->e, T1, x86_gpr_home(gpr));
    if (size == 2)
        x86_emit_8(&t->e, 0x66);
    if (host >= 8 || size == 8 || (size == 1 && host >= 4))
        x86_emit_8(&t->e, 0x40u | (size == 8) << 3 | host >> 3);
    x86_emit_8(&t->e, (s->z.opcode & 0xf8u) | (host & 7));
    x86_emit_immediates(t);
    if (host == T1)
        x86_gpr_out(t, gpr, T1);
}

static void translate_bswap(struct x86_translation *t)
{
    const struct x86_source *s = t->source;
    unsigned gpr = opcode_gpr(s), size = s->op[0].size / 8u;
    unsigned host = x86_gpr_in(t, gpr, T1);

    x86_emit_8(&t->e, 0x40u | (size == 8) << 3 | host >> 3);
    x86_emit_8(&t->e, 0x0f);
    x86_emit_8(&t->e, 0xc8u | (host & 7));
    if (host == T1)
        x86_gpr_out(t, gpr, T1);
}

/* 90 to 97 with a register other than RAX. */
static void translate_xchg_rax(struct x86_translation *t)
{
    const struct x86_source *s = t->source;
    unsigned gpr = opcode_gpr(s), host = x86_gpr_in(t, gpr, T1);
    struct x86_encoding enc = {
        .opcode = 0x87, .w = s->op[0].size == 64, .operand16 = s->op[0].size == 16};
    struct x86_rm rm = x86_rm_reg(host);

    x86_emit_op(&t->e, &enc, x86_host_of[X86_RAX], &rm);
    if (host == T1)
        x86_gpr_out(t, gpr, T1);
}

/* CBW to CQO, carry, fences: nothing in them names a register. */
static void translate_implicit(struct x86_translation *t)
{
    const struct x86_source *s = t->source;
    bool sign = s->z.opcode == 0x98 || s->z.opcode == 0x99;

    if (s->flags_written)
        x86_flags_want(t);
    if (sign)
        x86_emit_mov(&t->e, T0, x86_host_of[X86_RAX]);
    x86_emit_bytes(&t->e, s->bytes, s->z.length);
    if (sign && s->z.opcode == 0x98)
        x86_emit_mov(&t->e, x86_host_of[X86_RAX], T0);
    changed(t);
}

/* Without touching flags. A segment's base does not count. */
static void translate_lea(struct x86_translation *t)
{
    const struct x86_source *s = t->source;
    ZydisDecodedOperandMem mem = s->mem->mem;
    struct x86_encoding enc = {
        .opcode = 0x8b, .w = s->reg.size == 8, .operand16 = s->reg.size == 2};

    mem.segment = ZYDIS_REGISTER_DS;
    unsigned la = x86_emit_address(t, &mem);
    unsigned reg = field_operand(t, &s->reg, T2);
    struct x86_rm rm = x86_rm_reg(la);
    x86_emit_op(&t->e, &enc, reg, &rm);
    x86_gpr_out(t, s->reg.gpr, reg);
}

/*
 * DIV, IDIV of 32 and 64 bits. Where the quotient might not fit, the handler decides: DIV faults
 * when the upper half is not below the divisor; IDIV is done here when the upper half is only the
 * sign of the lower and the divisor is neither 0 nor -1.
 */
static void emit_div_guard(struct x86_translation *t, unsigned divisor, bool is_signed, bool w)
{
    struct x86_emit *e = &t->e;
    struct x86_encoding cmp = {.opcode = 0x3b, .w = w}, mov = {.opcode = 0x8b, .w = w};
    struct x86_encoding lea = {.opcode = 0x8d, .w = w};
    struct x86_encoding cmp_imm = {.opcode = 0x83, .w = w};
    struct x86_rm rm = x86_rm_reg(divisor);

    if (!is_signed) {
        x86_emit_op(e, &cmp, HOST_RDX, &rm);
        x86_slow_path(t, x86_emit_jcc(e, COND_AE));
        return;
    }
    struct x86_rm next = x86_rm_mem(divisor, 1), t1 = x86_rm_reg(T1), rax = x86_rm_reg(T0);
    x86_emit_op(e, &lea, T1, &next);
    x86_emit_op(e, &cmp_imm, ALU_CMP, &t1);
    x86_emit_8(e, 1);
    x86_slow_path(t, x86_emit_jcc(e, COND_BE));
    x86_emit_op(e, &mov, T1, &rax);
    x86_emit_shift_imm(e, 7, T1, w ? 63 : 31, w);
    x86_emit_op(e, &cmp, HOST_RDX, &t1);
    x86_slow_path(t, x86_emit_jcc(e, COND_NE));
}

static void translate_div(struct x86_translation *t)
{
    const struct x86_source *s = t->source;
    bool is_signed = s->z.mnemonic == ZYDIS_MNEMONIC_IDIV;
    unsigned size = s->op[0].size / 8u;
    struct x86_encoding enc = x86_encoding_of(s), mov = {.opcode = 0x8b, .w = size == 8};

    if (s->mem) {
        struct x86_rm rm = x86_emit_memory(t, false);
        x86_emit_op(&t->e, &mov, T2, &rm);
    } else {
        unsigned host = x86_gpr_in(t, s->rm.gpr, T2);
        x86_emit_mov(&t->e, T2, host);
    }
    x86_flags_spill(t);
    x86_emit_mov(&t->e, T0, x86_host_of[X86_RAX]);
    emit_div_guard(t, T2, is_signed, size == 8);
    if (s->live_after) {
        /* What it leaves in the flags is undefined, but not random: it depends on what they were.
         */
        x86_flags_want(t);
        x86_emit_mov(&t->e, T0, x86_host_of[X86_RAX]);
    }
    struct x86_rm rm = x86_rm_reg(T2);
    enc.byte_rm = false;
    x86_emit_op(&t->e, &enc, modrm_reg(s), &rm);
    x86_emit_mov(&t->e, x86_host_of[X86_RAX], T0);
    x86_flags_changed(t);
}

/* --- the stack --- */

#define GUEST_RSP (x86_host_of[X86_RSP])

/* What is pushed, into a register other than T0 and T1 when it is not one. */
static void store_pushed(struct x86_translation *t, const struct x86_rm *to)
{
    const struct x86_source *s = t->source;
    const ZydisDecodedOperand *op = &s->op[0];
    struct x86_encoding imm = {.opcode = 0xc7, .w = true};

    if (op->type == ZYDIS_OPERAND_TYPE_IMMEDIATE) {
        x86_emit_op(&t->e, &imm, 0, to);
        x86_emit_32(&t->e, (uint32_t)op->imm.value.u);
    } else if (s->mem) {
        x86_emit_load(&t->e, T2, x86_cpu_field(CPU_OFFSET(host.temp)));
        x86_emit_store(&t->e, *to, T2);
    } else {
        x86_emit_store(&t->e, *to, x86_gpr_in(t, operand_gpr(s), T2));
    }
}

static void translate_push(struct x86_translation *t)
{
    const struct x86_source *s = t->source;

    if (s->mem) {
        x86_emit_load(&t->e, T2, x86_emit_memory(t, false));
        x86_emit_store(&t->e, x86_cpu_field(CPU_OFFSET(host.temp)), T2);
    }
    struct x86_rm to = x86_emit_stack(t, X86_RSP, -8);
    store_pushed(t, &to);
    x86_emit_lea(&t->e, GUEST_RSP, x86_rm_mem(GUEST_RSP, -8));
}

static void translate_pop(struct x86_translation *t)
{
    unsigned gpr = operand_gpr(t->source);
    unsigned host = x86_host_of[gpr] == HOST_NONE ? T2 : x86_host_of[gpr];
    x86_emit_load(&t->e, host, x86_emit_stack(t, X86_RSP, 0));
    if (gpr != X86_RSP)
        x86_emit_lea(&t->e, GUEST_RSP, x86_rm_mem(GUEST_RSP, 8));
    if (host == T2)
        x86_gpr_out(t, gpr, T2);
}

static void translate_leave(struct x86_translation *t)
{
    unsigned rbp = x86_host_of[X86_RBP];

    struct x86_rm from = x86_emit_stack(t, X86_RBP, 0);
    x86_emit_lea(&t->e, GUEST_RSP, x86_rm_mem(rbp, 8));
    x86_emit_load(&t->e, rbp, from);
}

void x86_translate_integer(struct x86_translation *t)
{
    switch (t->source->kind) {
    case KIND_GENERIC:
        translate_generic(t);
        break;
    case KIND_ACCUMULATOR:
        translate_accumulator(t);
        break;
    case KIND_MOV_IMM:
        translate_mov_imm(t);
        break;
    case KIND_BSWAP:
        translate_bswap(t);
        break;
    case KIND_XCHG_RAX:
        translate_xchg_rax(t);
        break;
    case KIND_IMPLICIT:
        translate_implicit(t);
        break;
    case KIND_LEA:
        translate_lea(t);
        break;
    case KIND_DIV:
        translate_div(t);
        break;
    case KIND_PUSH:
        translate_push(t);
        break;
    case KIND_POP:
        translate_pop(t);
        break;
    case KIND_LEAVE:
        translate_leave(t);
        break;
    default: /* KIND_NOP */
        break;
    }
}
