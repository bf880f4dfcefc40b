/*
 * Translation of vector instructions in units whose vector registers are the host's: the same
 * instruction with the same vector registers, general registers renamed, the memory operand probed.
 * The CPU's thread. SDM vol. 2 sections 2.1 to 2.3 (encodings), 2.5 (exception classes).
 *
 * The unit's mode says that nothing forbids them and that all exceptions are masked: what can still
 * go wrong is the memory operand, and whatever is not as usual with that is for the interpreter's
 * handler. Gathers, MMX registers and MXCSR's own instructions are, too. A masked move whose
 * whole operand can be accessed is like any other move.
 */
#include "x86/translate_int.h"

/* --- which ones --- */

/* Of all instructions with XMM and YMM registers in these sets, only the operands decide. */
static bool is_known_set(ZydisISASet set)
{
    switch (set) {
    case ZYDIS_ISA_SET_SSE:
    case ZYDIS_ISA_SET_SSE2:
    case ZYDIS_ISA_SET_SSE3:
    case ZYDIS_ISA_SET_SSSE3:
    case ZYDIS_ISA_SET_SSE4:
    case ZYDIS_ISA_SET_SSE42:
    case ZYDIS_ISA_SET_AES:
    case ZYDIS_ISA_SET_PCLMULQDQ:
    case ZYDIS_ISA_SET_SHA:
    case ZYDIS_ISA_SET_AVX:
    case ZYDIS_ISA_SET_AVX2:
    case ZYDIS_ISA_SET_AVXAES:
    case ZYDIS_ISA_SET_FMA:
    case ZYDIS_ISA_SET_F16C:
    case ZYDIS_ISA_SET_VAES:
    case ZYDIS_ISA_SET_VPCLMULQDQ:
        return true;
    default:
        return false;
    }
}

/* With memory that is not encoded; or entering the MMX state without an MMX register. */
static bool is_special(ZydisMnemonic mnemonic)
{
    switch (mnemonic) {
    case ZYDIS_MNEMONIC_CVTPI2PS:
    case ZYDIS_MNEMONIC_CVTPI2PD:
    case ZYDIS_MNEMONIC_MASKMOVDQU:
    case ZYDIS_MNEMONIC_VMASKMOVDQU:
        return true;
    default:
        return false;
    }
}

static bool zeroes_registers(const ZydisDecodedInstruction *z)
{
    return z->mnemonic == ZYDIS_MNEMONIC_VZEROUPPER || z->mnemonic == ZYDIS_MNEMONIC_VZEROALL;
}

static bool is_vector_register(const ZydisDecodedOperand *op)
{
    if (op->type != ZYDIS_OPERAND_TYPE_REGISTER)
        return false;
    ZydisRegisterClass class = ZydisRegisterGetClass(op->reg.value);
    return class == ZYDIS_REGCLASS_XMM || class == ZYDIS_REGCLASS_YMM;
}

static unsigned vector_number(const ZydisDecodedOperand *op)
{
    return ZydisRegisterGetId(op->reg.value) & 15u;
}

static bool is_known_place(const ZydisDecodedOperand *op)
{
    switch (op->encoding) {
    case ZYDIS_OPERAND_ENCODING_MODRM_REG:
    case ZYDIS_OPERAND_ENCODING_MODRM_RM:
    case ZYDIS_OPERAND_ENCODING_NDSNDD:
    case ZYDIS_OPERAND_ENCODING_IS4:
        return true;
    default:
        return op->encoding == ZYDIS_OPERAND_ENCODING_NONE && op->reg.value == ZYDIS_REGISTER_XMM0;
    }
}

static bool is_memory_size(const struct x86_source *s)
{
    unsigned bits = s->mem ? s->mem->size : 8;
    return bits >= 8 && bits <= 256 && !(bits & (bits - 1));
}

/* General registers: 32 and 64 bits, one at most, not in VEX.vvvv. */
static bool has_usual_gprs(const struct x86_source *s)
{
    return !s->vvvv.size && !(s->reg.size && s->rm.size) && (!s->reg.size || s->reg.size >= 4) &&
           (!s->rm.size || s->rm.size >= 4);
}

bool x86_vector_classify(struct x86_source *s)
{
    const ZydisDecodedInstruction *z = &s->z;
    bool has_vector = false;

    if (!is_known_set(z->meta.isa_set) || is_special(z->mnemonic) ||
        (z->encoding != ZYDIS_INSTRUCTION_ENCODING_LEGACY &&
         z->encoding != ZYDIS_INSTRUCTION_ENCODING_VEX))
        return false;
    if (zeroes_registers(z))
        return true;
    if (z->opcode_map == ZYDIS_OPCODE_MAP_DEFAULT || !(z->attributes & ZYDIS_ATTRIB_HAS_MODRM))
        return false;
    for (unsigned i = 0; i < z->operand_count; i++) {
        const ZydisDecodedOperand *op = &s->op[i];
        bool vector = is_vector_register(op);
        if (vector ? !is_known_place(op) : !x86_source_use(s, op))
            return false;
        has_vector |= vector;
    }
    return has_vector && !s->rax_written && is_memory_size(s) && has_usual_gprs(s);
}

/* --- what is emitted --- */

/* Legacy instructions with 16 bytes of memory that need not be aligned. */
static bool may_be_unaligned(ZydisMnemonic mnemonic)
{
    switch (mnemonic) {
    case ZYDIS_MNEMONIC_MOVUPS:
    case ZYDIS_MNEMONIC_MOVUPD:
    case ZYDIS_MNEMONIC_MOVDQU:
    case ZYDIS_MNEMONIC_LDDQU:
    case ZYDIS_MNEMONIC_PCMPESTRI:
    case ZYDIS_MNEMONIC_PCMPESTRM:
    case ZYDIS_MNEMONIC_PCMPISTRI:
    case ZYDIS_MNEMONIC_PCMPISTRM:
        return true;
    default:
        return false;
    }
}

/*
 * The host must never see an unaligned address where it minds; whether the guest's CPU minds is up
 * to the handler.
 */
bool x86_vector_needs_alignment(const struct x86_source *s)
{
    if (s->z.encoding == ZYDIS_INSTRUCTION_ENCODING_VEX)
        return s->z.meta.exception_class == ZYDIS_EXCEPTION_CLASS_AVX1;
    return s->mem->size == 128 && !may_be_unaligned(s->z.mnemonic);
}

static struct x86_rm memory_operand(struct x86_translation *t)
{
    const struct x86_source *s = t->source;

    struct x86_rm rm = x86_emit_memory(t, x86_vector_needs_alignment(s));
    if (rm.base == T0 && s->rax_read) {
        x86_emit_lea(&t->e, T2, rm);
        rm = x86_rm_mem(T2, 0);
    }
    return rm;
}

/* Only the prefixes that are part of the opcode; others mean nothing here. */
static struct x86_encoding vector_encoding(const struct x86_source *s)
{
    struct x86_encoding enc = x86_encoding_of(s);

    enc.byte_reg = enc.byte_rm = false;
    if (enc.vex)
        return enc;
    enc.operand16 = false;
    for (unsigned i = 0; i < s->z.raw.prefix_count; i++)
        enc.operand16 |= s->z.raw.prefixes[i].type == ZYDIS_PREFIX_TYPE_MANDATORY &&
                         s->z.raw.prefixes[i].value == 0x66;
    return enc;
}

/* The fields that hold vector registers. */
static void place_vectors(const struct x86_source *s, struct x86_encoding *enc, unsigned *reg,
                          struct x86_rm *rm)
{
    for (unsigned i = 0; i < s->z.operand_count_visible; i++) {
        const ZydisDecodedOperand *op = &s->op[i];
        if (!is_vector_register(op))
            continue;
        if (op->encoding == ZYDIS_OPERAND_ENCODING_MODRM_REG)
            *reg = vector_number(op);
        else if (op->encoding == ZYDIS_OPERAND_ENCODING_MODRM_RM)
            *rm = x86_rm_reg(vector_number(op));
        else if (op->encoding == ZYDIS_OPERAND_ENCODING_NDSNDD)
            enc->vvvv = (uint8_t)vector_number(op);
    }
}

/* The one general register among the operands, if there is one; T2 when it lives in memory. */
static unsigned gpr_operand(struct x86_translation *t, const struct x86_gpr_use *use)
{
    if (x86_host_of[use->gpr] != HOST_NONE)
        return x86_host_of[use->gpr];
    if (use->read)
        x86_emit_load(&t->e, T2, x86_gpr_home(use->gpr));
    return T2;
}

/* 32-bit results are zero-extended by the instruction. */
static void write_gpr(struct x86_translation *t, const struct x86_gpr_use *use)
{
    if (use->size && use->written && x86_host_of[use->gpr] == HOST_NONE)
        x86_emit_store(&t->e, x86_gpr_home(use->gpr), T2);
}

/* VZEROUPPER, VZEROALL */
static void emit_zeroing(struct x86_emit *e, const struct x86_encoding *enc)
{
    const uint8_t bytes[] = {0xc5, (uint8_t)(0xf8 | enc->l << 2), 0x77};
    x86_emit_bytes(e, bytes, sizeof bytes);
}

void x86_translate_vector(struct x86_translation *t)
{
    const struct x86_source *s = t->source;
    struct x86_encoding enc = vector_encoding(s);
    unsigned reg = s->z.raw.modrm.reg;
    struct x86_rm rm = x86_rm_reg(0);

    if (zeroes_registers(&s->z)) {
        emit_zeroing(&t->e, &enc);
        return;
    }
    if (s->mem)
        rm = memory_operand(t);
    place_vectors(s, &enc, &reg, &rm);
    if (s->rm.size)
        rm = x86_rm_reg(gpr_operand(t, &s->rm));
    if (s->reg.size)
        reg = gpr_operand(t, &s->reg);
    if (s->rax_read)
        x86_emit_mov(&t->e, T0, x86_host_of[X86_RAX]);
    x86_emit_op(&t->e, &enc, reg, &rm);
    x86_emit_immediates(t);
    write_gpr(t, &s->rm);
    write_gpr(t, &s->reg);
    if (s->flags_written | s->flags_undefined)
        x86_flags_changed(t);
}
