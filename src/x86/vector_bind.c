/*
 * Makes the stub of a vector instruction at decode time. Any thread.
 *
 * The instruction is taken apart (Zydis has decoded it) and put together again from the fields
 * alone: prefix, map, opcode, W, L, immediate; with the operand of ModRM.reg in register 1, of
 * ModRM.rm in register 2 or at [rsi], of VEX.vvvv in register 3, of the immediate in register 4;
 * general registers in RAX and RCX. The result is decoded once more and must be the same
 * instruction: no byte runs on the host that the decoder has not proved.
 * SDM vol. 2 sections 2.1-2.3 (encodings), 2.5 (exception classes).
 */
#include "x86/vector_int.h"

/* Host registers of the arguments, see x86_stub_code; R8 is the CPU. */
enum { HOST_RDX = 2, HOST_RCX = 1, HOST_RSI = 6, HOST_RDI = 7 };

struct stub_code {
    uint8_t byte[160];
    unsigned size;
};

/* One operand that the stub loads and stores. */
struct stub_operand {
    ZydisRegisterClass class;
    uint8_t host;    /* register number in the normalised instruction */
    uint8_t pointer; /* host register that points to the guest's value */
    bool read, written;
};

static void emit(struct stub_code *code, const uint8_t *byte, unsigned size)
{
    if (code->size + size > sizeof code->byte)
        return; /* the longest stub has 120 bytes */
    memcpy(code->byte + code->size, byte, size);
    code->size += size;
}

#define EMIT(code, ...)                                                                            \
    emit(code, (const uint8_t[]) {__VA_ARGS__}, sizeof((const uint8_t[]) {__VA_ARGS__}))

static void emit_disp32(struct stub_code *code, size_t offset)
{
    uint8_t byte[4];

    store_le32(byte, (uint32_t)offset);
    emit(code, byte, sizeof byte);
}

/* Load (store = 0) or store (1) between the operand's host register and its memory. */
static void emit_transfer(struct stub_code *code, const struct stub_operand *op, bool vex,
                          unsigned store)
{
    uint8_t modrm = (uint8_t)(op->host << 3 | op->pointer);

    switch (op->class) {
    case ZYDIS_REGCLASS_XMM:
    case ZYDIS_REGCLASS_YMM:
        if (vex)
            EMIT(code, 0xc5, 0xfc, (uint8_t)(0x10 | store), modrm); /* vmovups ymm */
        else
            EMIT(code, 0x0f, (uint8_t)(0x10 | store), modrm); /* movups xmm */
        break;
    case ZYDIS_REGCLASS_MMX:
        EMIT(code, 0x0f, (uint8_t)(store ? 0x7f : 0x6f), modrm); /* movq mm */
        break;
    default:
        EMIT(code, 0x48, (uint8_t)(store ? 0x89 : 0x8b), modrm); /* mov r64 */
        break;
    }
}

/* Where the instruction's operand of each encoding goes. */
static bool place_operand(const ZydisDecodedOperand *op, bool vex, struct stub_operand *out)
{
    bool gpr;

    out->class = ZydisRegisterGetClass(op->reg.value);
    out->written = op->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE;
    gpr = out->class == ZYDIS_REGCLASS_GPR32 || out->class == ZYDIS_REGCLASS_GPR64;
    /* A legacy instruction keeps what it does not write of a vector register. */
    out->read =
        op->actions & ZYDIS_OPERAND_ACTION_MASK_READ || (!vex && out->class == ZYDIS_REGCLASS_XMM);
    switch (op->encoding) {
    case ZYDIS_OPERAND_ENCODING_MODRM_REG:
        out->host = gpr ? 0 : 1;
        out->pointer = HOST_RDI;
        break;
    case ZYDIS_OPERAND_ENCODING_MODRM_RM:
        out->host = gpr ? 1 : 2;
        out->pointer = HOST_RSI;
        break;
    case ZYDIS_OPERAND_ENCODING_NDSNDD:
        out->host = 3;
        out->pointer = HOST_RDX;
        return !gpr;
    case ZYDIS_OPERAND_ENCODING_IS4:
        out->host = 4;
        out->pointer = HOST_RCX;
        return !gpr;
    default:
        return false;
    }
    return gpr || out->class == ZYDIS_REGCLASS_XMM || out->class == ZYDIS_REGCLASS_YMM ||
           out->class == ZYDIS_REGCLASS_MMX;
}

static uint8_t normal_modrm(const struct x86_decode *d, bool *has_vvvv, bool *has_is4)
{
    uint8_t reg = d->z->raw.modrm.reg, mod = 0, rm = HOST_RSI;

    for (unsigned i = 0; i < d->z->operand_count_visible; i++) {
        const ZydisDecodedOperand *op = &d->op[i];
        struct stub_operand place;

        if (op->type != ZYDIS_OPERAND_TYPE_REGISTER || !place_operand(op, true, &place))
            continue;
        if (op->encoding == ZYDIS_OPERAND_ENCODING_MODRM_REG)
            reg = place.host;
        if (op->encoding == ZYDIS_OPERAND_ENCODING_MODRM_RM) {
            mod = 3;
            rm = place.host;
        }
        *has_vvvv |= op->encoding == ZYDIS_OPERAND_ENCODING_NDSNDD;
        *has_is4 |= op->encoding == ZYDIS_OPERAND_ENCODING_IS4;
    }
    return (uint8_t)(mod << 6 | reg << 3 | rm);
}

static void emit_legacy(struct stub_code *code, const struct x86_decode *d, bool w, uint8_t modrm)
{
    const ZydisDecodedInstruction *z = d->z;

    for (unsigned i = 0; i < z->raw.prefix_count; i++)
        if (z->raw.prefixes[i].type == ZYDIS_PREFIX_TYPE_MANDATORY)
            EMIT(code, z->raw.prefixes[i].value);
    if (w)
        EMIT(code, 0x48);
    EMIT(code, 0x0f);
    if (z->opcode_map == ZYDIS_OPCODE_MAP_0F38)
        EMIT(code, 0x38);
    if (z->opcode_map == ZYDIS_OPCODE_MAP_0F3A)
        EMIT(code, 0x3a);
    EMIT(code, z->opcode, modrm);
}

static void emit_vex(struct stub_code *code, const struct x86_decode *d, bool w, uint8_t modrm,
                     bool has_vvvv)
{
    const ZydisDecodedInstruction *z = d->z;
    unsigned vvvv = has_vvvv ? 3 : 0;

    EMIT(code, 0xc4, (uint8_t)(0xe0 | z->raw.vex.m_mmmm),
         (uint8_t)(w << 7 | (~vvvv & 15) << 3 | z->raw.vex.L << 2 | z->raw.vex.pp), z->opcode,
         modrm);
}

/* The same instruction in 64-bit mode, with the registers of the stub. */
static void emit_normal(struct stub_code *code, const struct x86_decode *d, bool w)
{
    bool has_vvvv = false, has_is4 = false;
    uint8_t modrm = normal_modrm(d, &has_vvvv, &has_is4);

    if (d->z->encoding == ZYDIS_INSTRUCTION_ENCODING_VEX)
        emit_vex(code, d, w, modrm, has_vvvv);
    else
        emit_legacy(code, d, w, modrm);
    if (has_is4)
        EMIT(code, 4 << 4);
    else if (d->z->raw.imm[0].size)
        EMIT(code, (uint8_t)d->z->raw.imm[0].value.u);
}

/* RAX where Zydis says RAX though the mode has EAX only: with W set outside of 64-bit mode. */
static ZydisRegister implicit_register(const struct x86_decode *d, ZydisRegister reg)
{
    if (d->mode->code_size != 8 && reg >= ZYDIS_REGISTER_RAX && reg <= ZYDIS_REGISTER_RDI)
        return (ZydisRegister)(reg - ZYDIS_REGISTER_RAX + ZYDIS_REGISTER_EAX);
    return reg;
}

/* PCMPESTRI and PCMPESTRM take their lengths from EAX, EDX or RAX, RDX. */
static bool same_implicit_registers(const struct x86_decode *d, const ZydisDecodedInstruction *z,
                                    const ZydisDecodedOperand *op)
{
    if (z->operand_count != d->z->operand_count)
        return false;
    for (unsigned i = z->operand_count_visible; i < z->operand_count; i++)
        if (op[i].type == ZYDIS_OPERAND_TYPE_REGISTER &&
            ZydisRegisterGetClass(op[i].reg.value) != ZYDIS_REGCLASS_FLAGS &&
            op[i].reg.value != implicit_register(d, d->op[i].reg.value))
            return false;
    return true;
}

/* Is what was put together what was taken apart? */
static bool same_instruction(const struct x86_decode *d, const uint8_t *byte, unsigned size)
{
    ZydisDecoder decoder;
    ZydisDecodedInstruction z;
    ZydisDecodedOperand op[ZYDIS_MAX_OPERAND_COUNT];

    (void)ZydisDecoderInit(&decoder, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
    if (!ZYAN_SUCCESS(ZydisDecoderDecodeFull(&decoder, byte, size, &z, op)) || z.length != size ||
        z.mnemonic != d->z->mnemonic || z.encoding != d->z->encoding ||
        z.operand_count_visible != d->z->operand_count_visible ||
        z.meta.isa_set != d->z->meta.isa_set)
        return false;
    for (unsigned i = 0; i < z.operand_count_visible; i++)
        if (op[i].type != d->op[i].type || op[i].size != d->op[i].size ||
            op[i].encoding != d->op[i].encoding || op[i].actions != d->op[i].actions)
            return false;
    return same_implicit_registers(d, &z, op);
}

/*
 * W selects the operation for some, the width of a general register for others (which 32-bit mode
 * ignores), and is ignored by the rest: take the smallest W that means the same in 64-bit mode.
 */
static bool normalise(struct stub_code *code, const struct x86_decode *d)
{
    for (int w = 0; w < 2; w++) {
        code->size = 0;
        emit_normal(code, d, w);
        if (same_instruction(d, code->byte, code->size))
            return true;
    }
    return false;
}

static void emit_implicit_load(struct stub_code *code, ZydisRegister reg)
{
    switch (reg) {
    case ZYDIS_REGISTER_XMM0: /* movups xmm0, [r8 + disp] */
        EMIT(code, 0x41, 0x0f, 0x10, 0x80);
        emit_disp32(code, offsetof(struct x86_cpu, s.fpu.ymm));
        break;
    case ZYDIS_REGISTER_EAX:
    case ZYDIS_REGISTER_RAX:
        EMIT(code, 0x49, 0x8b, 0x80);
        emit_disp32(code, offsetof(struct x86_cpu, s.gpr[X86_RAX]));
        break;
    case ZYDIS_REGISTER_EDX:
    case ZYDIS_REGISTER_RDX:
        EMIT(code, 0x49, 0x8b, 0x90);
        emit_disp32(code, offsetof(struct x86_cpu, s.gpr[X86_RDX]));
        break;
    default:
        break;
    }
}

static void emit_implicit_store(struct stub_code *code, ZydisRegister reg, bool vex)
{
    switch (reg) {
    case ZYDIS_REGISTER_XMM0:
        if (vex)
            EMIT(code, 0xc4, 0xc1, 0x7c, 0x11, 0x80); /* vmovups [r8 + disp], ymm0 */
        else
            EMIT(code, 0x41, 0x0f, 0x11, 0x80);
        emit_disp32(code, offsetof(struct x86_cpu, s.fpu.ymm));
        break;
    case ZYDIS_REGISTER_ECX:
    case ZYDIS_REGISTER_RCX:
        EMIT(code, 0x49, 0x89, 0x88);
        emit_disp32(code, offsetof(struct x86_cpu, s.gpr[X86_RCX]));
        break;
    case ZYDIS_REGISTER_FLAGS:
    case ZYDIS_REGISTER_EFLAGS:
    case ZYDIS_REGISTER_RFLAGS:
        EMIT(code, 0x9c, 0x58); /* pushfq; pop rax */
        break;
    default:
        break;
    }
}

static bool emit_loads(struct stub_code *code, const struct x86_decode *d, bool vex)
{
    for (unsigned i = 0; i < d->z->operand_count_visible; i++) {
        const ZydisDecodedOperand *op = &d->op[i];
        struct stub_operand place;

        if (op->type == ZYDIS_OPERAND_TYPE_MEMORY || op->type == ZYDIS_OPERAND_TYPE_IMMEDIATE)
            continue;
        if (op->type != ZYDIS_OPERAND_TYPE_REGISTER || !place_operand(op, vex, &place))
            return false;
        if (place.read)
            emit_transfer(code, &place, vex, 0);
    }
    for (unsigned i = d->z->operand_count_visible; i < d->z->operand_count; i++)
        if (d->op[i].type == ZYDIS_OPERAND_TYPE_REGISTER &&
            d->op[i].actions & ZYDIS_OPERAND_ACTION_MASK_READ)
            emit_implicit_load(code, d->op[i].reg.value);
    return true;
}

static void emit_stores(struct stub_code *code, const struct x86_decode *d, bool vex)
{
    for (unsigned i = d->z->operand_count_visible; i < d->z->operand_count; i++)
        if (d->op[i].type == ZYDIS_OPERAND_TYPE_REGISTER &&
            d->op[i].actions & ZYDIS_OPERAND_ACTION_MASK_WRITE)
            emit_implicit_store(code, d->op[i].reg.value, vex);
    for (unsigned i = 0; i < d->z->operand_count_visible; i++) {
        struct stub_operand place;

        if (d->op[i].type == ZYDIS_OPERAND_TYPE_REGISTER && place_operand(&d->op[i], vex, &place) &&
            place.written)
            emit_transfer(code, &place, vex, 1);
    }
}

/* Memory forms of legacy instructions that need no alignment although their class does. */
static bool is_unaligned(ZydisMnemonic m)
{
    switch (m) {
    case ZYDIS_MNEMONIC_MOVUPS:
    case ZYDIS_MNEMONIC_MOVUPD:
    case ZYDIS_MNEMONIC_MOVDQU:
    case ZYDIS_MNEMONIC_LDDQU:
    case ZYDIS_MNEMONIC_PCMPESTRI:
    case ZYDIS_MNEMONIC_PCMPESTRM:
    case ZYDIS_MNEMONIC_PCMPISTRI:
    case ZYDIS_MNEMONIC_PCMPISTRM:
        return true;
    case ZYDIS_MNEMONIC_SHA1MSG1: /* AMD's CPUs do not check the SHA instructions */
    case ZYDIS_MNEMONIC_SHA1MSG2:
    case ZYDIS_MNEMONIC_SHA1NEXTE:
    case ZYDIS_MNEMONIC_SHA1RNDS4:
    case ZYDIS_MNEMONIC_SHA256MSG1:
    case ZYDIS_MNEMONIC_SHA256MSG2:
    case ZYDIS_MNEMONIC_SHA256RNDS2:
        return true;
    default:
        return false;
    }
}

/* Those whose exception class does not tell: MMX conversions (CVTPD2PI aligns), estimates. */
static bool uses_mxcsr(ZydisMnemonic m)
{
    switch (m) {
    case ZYDIS_MNEMONIC_CVTPI2PS:
    case ZYDIS_MNEMONIC_CVTPS2PI:
    case ZYDIS_MNEMONIC_CVTTPS2PI:
    case ZYDIS_MNEMONIC_CVTPD2PI:
    case ZYDIS_MNEMONIC_CVTTPD2PI:
    case ZYDIS_MNEMONIC_RCPPS:
    case ZYDIS_MNEMONIC_RCPSS:
    case ZYDIS_MNEMONIC_RSQRTPS:
    case ZYDIS_MNEMONIC_RSQRTSS:
    case ZYDIS_MNEMONIC_VRCPPS:
    case ZYDIS_MNEMONIC_VRCPSS:
    case ZYDIS_MNEMONIC_VRSQRTPS:
    case ZYDIS_MNEMONIC_VRSQRTSS:
        return true;
    default:
        return false;
    }
}

/* Alignment and MXCSR, from the manual's exception class (SDM vol. 2 table 2-17). */
static unsigned class_flags(const ZydisDecodedInstruction *z)
{
    switch (z->meta.exception_class) {
    case ZYDIS_EXCEPTION_CLASS_SSE1:
    case ZYDIS_EXCEPTION_CLASS_AVX1:
        return X86_STUB_ALIGN;
    case ZYDIS_EXCEPTION_CLASS_SSE2:
        return X86_STUB_ALIGN | X86_STUB_MXCSR;
    case ZYDIS_EXCEPTION_CLASS_SSE4:
        return (is_unaligned(z->mnemonic) ? 0u : X86_STUB_ALIGN) |
               (uses_mxcsr(z->mnemonic) ? X86_STUB_MXCSR : 0u);
    case ZYDIS_EXCEPTION_CLASS_SSE3:
    case ZYDIS_EXCEPTION_CLASS_AVX2:
    case ZYDIS_EXCEPTION_CLASS_AVX3:
    case ZYDIS_EXCEPTION_CLASS_AVX11:
        return X86_STUB_MXCSR;
    default:
        return uses_mxcsr(z->mnemonic)
                   ? X86_STUB_MXCSR |
                         (z->encoding == ZYDIS_INSTRUCTION_ENCODING_VEX ? 0u : X86_STUB_ALIGN)
                   : 0u;
    }
}

/*
 * Can its result be tiny? Then an unmasked underflow needs a look at the result: a masked run only
 * tells of tiny results that are inexact (SDM vol. 1 section 4.9.1.5).
 */
static void mark_tiny(const struct x86_decode *d, struct x86_stub *stub)
{
    const ZydisDecodedOperand *dest = &d->op[0];
    unsigned element = dest->element_size / 8;

    switch (d->z->mnemonic) {
    case ZYDIS_MNEMONIC_CVTSD2SS:
    case ZYDIS_MNEMONIC_VCVTSD2SS:
    case ZYDIS_MNEMONIC_CVTPD2PS:
    case ZYDIS_MNEMONIC_VCVTPD2PS:
        break;
    default:
        /* Estimates raise no exception. */
        if (uses_mxcsr(d->z->mnemonic) || d->z->meta.category == ZYDIS_CATEGORY_CONVERT ||
            (dest->element_type != ZYDIS_ELEMENT_TYPE_FLOAT32 &&
             dest->element_type != ZYDIS_ELEMENT_TYPE_FLOAT64))
            return;
        break;
    case ZYDIS_MNEMONIC_MINSS:
    case ZYDIS_MNEMONIC_MINSD:
    case ZYDIS_MNEMONIC_MINPS:
    case ZYDIS_MNEMONIC_MINPD:
    case ZYDIS_MNEMONIC_MAXSS:
    case ZYDIS_MNEMONIC_MAXSD:
    case ZYDIS_MNEMONIC_MAXPS:
    case ZYDIS_MNEMONIC_MAXPD:
    case ZYDIS_MNEMONIC_VMINSS:
    case ZYDIS_MNEMONIC_VMINSD:
    case ZYDIS_MNEMONIC_VMINPS:
    case ZYDIS_MNEMONIC_VMINPD:
    case ZYDIS_MNEMONIC_VMAXSS:
    case ZYDIS_MNEMONIC_VMAXSD:
    case ZYDIS_MNEMONIC_VMAXPS:
    case ZYDIS_MNEMONIC_VMAXPD:
    case ZYDIS_MNEMONIC_COMISS:
    case ZYDIS_MNEMONIC_COMISD:
    case ZYDIS_MNEMONIC_UCOMISS:
    case ZYDIS_MNEMONIC_UCOMISD:
    case ZYDIS_MNEMONIC_VCOMISS:
    case ZYDIS_MNEMONIC_VCOMISD:
    case ZYDIS_MNEMONIC_VUCOMISS:
    case ZYDIS_MNEMONIC_VUCOMISD:
        return;
    }
    if (element != 4 && element != 8)
        return;
    stub->flags |= element == 4 ? X86_STUB_TINY32 : X86_STUB_TINY64;
    stub->tiny_count = (uint8_t)(d->z->meta.exception_class == ZYDIS_EXCEPTION_CLASS_SSE3 ||
                                         d->z->meta.exception_class == ZYDIS_EXCEPTION_CLASS_AVX3
                                     ? 1
                                     : dest->element_count);
}

static uint8_t stored_size(ZydisRegisterClass class, bool vex)
{
    if (class == ZYDIS_REGCLASS_XMM || class == ZYDIS_REGCLASS_YMM)
        return vex ? 32 : 16;
    return 8;
}

/* Fills in what the handler must know, and the offsets of the operands. */
static void describe_operand(const ZydisDecodedOperand *op, struct x86_stub *stub,
                             struct x86_insn *out)
{
    ZydisRegisterClass class = ZydisRegisterGetClass(op->reg.value);
    bool written = op->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE;
    uint16_t offset = x86_vector_register_offset(op->reg.value);

    if (class == ZYDIS_REGCLASS_MMX)
        stub->flags |= X86_STUB_MMX | (written ? X86_STUB_DEST_MMX : 0);
    if (written)
        stub->dest_size = stored_size(class, stub->flags & X86_STUB_VEX);
    switch (op->encoding) {
    case ZYDIS_OPERAND_ENCODING_MODRM_REG:
        out->dst = offset;
        break;
    case ZYDIS_OPERAND_ENCODING_MODRM_RM:
        out->src = offset;
        stub->flags |= written ? X86_STUB_DEST_RM : 0;
        break;
    case ZYDIS_OPERAND_ENCODING_NDSNDD:
        out->src2 = offset;
        break;
    default:
        out->imm = offset;
        break;
    }
}

static void describe(const struct x86_decode *d, struct x86_stub *stub, struct x86_insn *out)
{
    stub->flags |= (uint16_t)class_flags(d->z);
    out->imm = offsetof(struct x86_cpu, zero);
    for (unsigned i = 0; i < d->z->operand_count_visible; i++) {
        const ZydisDecodedOperand *op = &d->op[i];

        if (op->type == ZYDIS_OPERAND_TYPE_REGISTER)
            describe_operand(op, stub, out);
        if (op->type != ZYDIS_OPERAND_TYPE_MEMORY)
            continue;
        stub->mem_size = (uint8_t)(op->size / 8);
        if (op->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE)
            stub->flags |= X86_STUB_STORE | X86_STUB_DEST_RM;
        else
            stub->flags |= X86_STUB_LOAD;
    }
    /* Class 4 and 2 align whole vectors only. */
    if (!(stub->flags & X86_STUB_VEX) && stub->mem_size < 16)
        stub->flags &= (uint16_t)~X86_STUB_ALIGN;
    for (unsigned i = d->z->operand_count_visible; i < d->z->operand_count; i++)
        if (d->op[i].type == ZYDIS_OPERAND_TYPE_REGISTER &&
            ZydisRegisterGetClass(d->op[i].reg.value) == ZYDIS_REGCLASS_FLAGS &&
            d->op[i].actions & ZYDIS_OPERAND_ACTION_MASK_WRITE)
            stub->flags |= X86_STUB_FLAGS;
    if (stub->flags & X86_STUB_MXCSR)
        mark_tiny(d, stub);
}

static x86_handler *choose_handler(const struct x86_stub *stub)
{
    switch (stub->flags & (uint16_t) ~(X86_STUB_ALIGN | X86_STUB_DEST_RM)) {
    case 0:
        return x86_vector_run_sse_registers;
    case X86_STUB_LOAD:
        return x86_vector_run_sse_load;
    case X86_STUB_VEX:
        return x86_vector_run_avx_registers;
    case X86_STUB_VEX | X86_STUB_LOAD:
        return stub->flags & X86_STUB_ALIGN ? x86_vector_run_any : x86_vector_run_avx_load;
    default:
        return x86_vector_run_any;
    }
}

uint16_t x86_vector_register_offset(ZydisRegister reg)
{
    if (reg >= ZYDIS_REGISTER_MM0 && reg <= ZYDIS_REGISTER_MM7)
        return (uint16_t)(offsetof(struct x86_cpu, s.fpu.st) + (reg - ZYDIS_REGISTER_MM0) * 16u);
    return x86_register_offset(reg);
}

/* MOVSD and CMPSD are string instructions too, and XOP and EVEX share mnemonics. */
static bool is_vector(const ZydisDecodedInstruction *z)
{
    return (z->encoding == ZYDIS_INSTRUCTION_ENCODING_VEX ||
            (z->encoding == ZYDIS_INSTRUCTION_ENCODING_LEGACY &&
             z->opcode_map != ZYDIS_OPCODE_MAP_DEFAULT)) &&
           z->attributes & ZYDIS_ATTRIB_HAS_MODRM && !(z->attributes & ZYDIS_ATTRIB_HAS_LOCK);
}

bool x86_vector_bind_stub(const struct x86_decode *d, struct x86_insn *out)
{
    bool vex = d->z->encoding == ZYDIS_INSTRUCTION_ENCODING_VEX;
    struct x86_stub stub = {.flags = vex ? X86_STUB_VEX : 0};
    struct stub_code normal = {.size = 0}, code = {.size = 0};

    if (!is_vector(d->z) || !normalise(&normal, d))
        return false;
    describe(d, &stub, out);
    if (stub.mem_size > 32 || !emit_loads(&code, d, vex))
        return false;
    emit(&code, normal.byte, normal.size);
    emit_stores(&code, d, vex);
    if (stub.flags & X86_STUB_MMX)
        EMIT(&code, 0x0f, 0x77); /* emms */
    if (vex)
        EMIT(&code, 0xc5, 0xf8, 0x77); /* vzeroupper */
    EMIT(&code, 0xc3);
    out->aux = (void *)x86_stub_get(d->stubs, &stub, code.byte, code.size);
    out->run = choose_handler(&stub);
    return out->aux;
}
