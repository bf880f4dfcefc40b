/*
 * The translator's assembler; see emit.h. SDM vol. 2 sections 2.1 (ModRM, SIB), 2.2 (REX), 2.3
 * (VEX).
 */
#include "x86/emit.h"

static void emit_legacy_prefixes(struct x86_emit *e, const struct x86_encoding *enc, unsigned rex,
                                 bool force)
{
    if (enc->lock)
        x86_emit_8(e, 0xf0);
    if (enc->operand16)
        x86_emit_8(e, 0x66);
    if (enc->mandatory)
        x86_emit_8(e, enc->mandatory);
    if (rex || force)
        x86_emit_8(e, 0x40 | rex);
    if (enc->map)
        x86_emit_8(e, 0x0f);
    if (enc->map > 1)
        x86_emit_8(e, enc->map == 2 ? 0x38 : 0x3a);
}

static void emit_vex(struct x86_emit *e, const struct x86_encoding *enc, unsigned rex)
{
    unsigned pp = enc->mandatory == 0x66   ? 1
                  : enc->mandatory == 0xf3 ? 2
                  : enc->mandatory == 0xf2 ? 3
                                           : 0;
    unsigned inverted = ~rex & 7; /* R X B */

    if (enc->map == 1 && !enc->w && (inverted & 3) == 3) {
        x86_emit_8(e, 0xc5);
        x86_emit_8(e, (inverted & 4) << 5 | (~enc->vvvv & 15u) << 3 | enc->l << 2 | pp);
        return;
    }
    x86_emit_8(e, 0xc4);
    x86_emit_8(e, inverted << 5 | enc->map);
    x86_emit_8(e, (unsigned)enc->w << 7 | (~enc->vvvv & 15u) << 3 | enc->l << 2 | pp);
}

static void emit_modrm(struct x86_emit *e, unsigned reg, const struct x86_rm *rm)
{
    unsigned base = rm->base & 7u, mod;

    if (!rm->is_mem) {
        x86_emit_8(e, 0xc0 | reg << 3 | base);
        return;
    }
    if (rm->disp == 0 && base != HOST_RBP)
        mod = 0;
    else
        mod = rm->disp == (int8_t)rm->disp ? 1 : 2;
    if (rm->index == HOST_NONE && base != HOST_RSP) {
        x86_emit_8(e, mod << 6 | reg << 3 | base);
    } else {
        unsigned index = rm->index == HOST_NONE ? 4 : rm->index & 7u;
        x86_emit_8(e, mod << 6 | reg << 3 | 4);
        x86_emit_8(e, (unsigned)rm->scale << 6 | index << 3 | base);
    }
    if (mod == 1)
        x86_emit_8(e, (uint8_t)rm->disp);
    else if (mod == 2)
        x86_emit_32(e, (uint32_t)rm->disp);
}

static bool needs_rex(unsigned reg)
{
    return reg >= HOST_RSP && reg <= HOST_RDI;
}

void x86_emit_op(struct x86_emit *e, const struct x86_encoding *enc, unsigned reg,
                 const struct x86_rm *rm)
{
    unsigned rex = (reg >> 3 & 1) << 2 | (rm->base >> 3 & 1u);
    bool force =
        (enc->byte_reg && needs_rex(reg)) || (enc->byte_rm && !rm->is_mem && needs_rex(rm->base));

    if (rm->is_mem && rm->index != HOST_NONE)
        rex |= (rm->index >> 3 & 1u) << 1;
    if (enc->vex)
        emit_vex(e, enc, rex);
    else
        emit_legacy_prefixes(e, enc, rex | (unsigned)enc->w << 3, force);
    x86_emit_8(e, enc->opcode);
    emit_modrm(e, reg & 7, rm);
}

static void op64(struct x86_emit *e, uint8_t opcode, unsigned reg, struct x86_rm rm)
{
    struct x86_encoding enc = {.opcode = opcode, .w = true};
    x86_emit_op(e, &enc, reg, &rm);
}

static void op32(struct x86_emit *e, uint8_t opcode, unsigned reg, struct x86_rm rm)
{
    struct x86_encoding enc = {.opcode = opcode};
    x86_emit_op(e, &enc, reg, &rm);
}

void x86_emit_mov(struct x86_emit *e, unsigned to, unsigned from)
{
    if (to != from)
        op64(e, 0x89, from, x86_rm_reg(to));
}

void x86_emit_mov32(struct x86_emit *e, unsigned to, unsigned from)
{
    op32(e, 0x89, from, x86_rm_reg(to));
}

void x86_emit_load(struct x86_emit *e, unsigned to, struct x86_rm from)
{
    op64(e, 0x8b, to, from);
}

void x86_emit_store(struct x86_emit *e, struct x86_rm to, unsigned from)
{
    op64(e, 0x89, from, to);
}

uint8_t *x86_emit_load_imm64(struct x86_emit *e, unsigned to, uint64_t value)
{
    x86_emit_8(e, 0x48 | to >> 3);
    x86_emit_8(e, 0xb8 | (to & 7));
    uint8_t *at = e->at;
    x86_emit_64(e, value);
    return at;
}

void x86_emit_lea(struct x86_emit *e, unsigned to, struct x86_rm address)
{
    op64(e, 0x8d, to, address);
}

void x86_emit_alu(struct x86_emit *e, enum x86_alu op, unsigned reg, struct x86_rm rm)
{
    op64(e, (uint8_t)(op << 3 | 3), reg, rm);
}

static void alu_imm(struct x86_emit *e, const struct x86_encoding *enc, unsigned digit,
                    unsigned reg, int32_t imm)
{
    struct x86_rm rm = x86_rm_reg(reg);
    bool is_short = imm == (int8_t)imm;
    struct x86_encoding used = *enc;

    used.opcode = is_short ? 0x83 : 0x81;
    x86_emit_op(e, &used, digit, &rm);
    if (is_short)
        x86_emit_8(e, (uint8_t)imm);
    else
        x86_emit_32(e, (uint32_t)imm);
}

void x86_emit_alu_imm(struct x86_emit *e, enum x86_alu op, unsigned reg, int32_t imm)
{
    alu_imm(e, &(struct x86_encoding) {.w = true}, op, reg, imm);
}

void x86_emit_alu_imm32(struct x86_emit *e, enum x86_alu op, unsigned reg, int32_t imm)
{
    alu_imm(e, &(struct x86_encoding) {0}, op, reg, imm);
}

void x86_emit_cmp_mem32(struct x86_emit *e, struct x86_rm rm, int8_t imm)
{
    op32(e, 0x83, ALU_CMP, rm);
    x86_emit_8(e, (uint8_t)imm);
}

void x86_emit_shift_imm(struct x86_emit *e, unsigned digit, unsigned reg, unsigned count, bool w)
{
    struct x86_encoding enc = {.opcode = 0xc1, .w = w};
    struct x86_rm rm = x86_rm_reg(reg);
    x86_emit_op(e, &enc, digit, &rm);
    x86_emit_8(e, count);
}

uint8_t *x86_emit_jmp(struct x86_emit *e)
{
    x86_emit_8(e, 0xe9);
    x86_emit_32(e, 0);
    return e->at - 4;
}

uint8_t *x86_emit_jcc(struct x86_emit *e, unsigned condition)
{
    x86_emit_8(e, 0x0f);
    x86_emit_8(e, 0x80 | condition);
    x86_emit_32(e, 0);
    return e->at - 4;
}

uint8_t *x86_emit_call(struct x86_emit *e)
{
    x86_emit_8(e, 0xe8);
    x86_emit_32(e, 0);
    return e->at - 4;
}

void x86_emit_link(uint8_t *distance, const uint8_t *target)
{
    store_le32(distance, (uint32_t)(target - (distance + 4)));
}

void x86_emit_jmp_rm(struct x86_emit *e, struct x86_rm rm)
{
    op32(e, 0xff, 4, rm);
}

void x86_emit_call_rm(struct x86_emit *e, struct x86_rm rm)
{
    op32(e, 0xff, 2, rm);
}
