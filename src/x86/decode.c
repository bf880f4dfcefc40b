/*
 * The decoder: Zydis decodes, this file turns the result into the compact struct x86_insn and asks
 * the modules' tables for the handler. Any thread; a decoder is read-only after creation.
 * SDM vol. 2 chapters 2-3; APM vol. 3 chapter 1. The machine is an AMD one: a 66 prefix makes near
 * branches 16-bit in 64-bit mode.
 */
#include <errno.h>
#include <stdlib.h>

#include "x86/cpu.h"
#include "x86/decode_int.h"

static const struct x86_bind *const bind_tables[] = {
    x86_bind_alu,    x86_bind_move,   x86_bind_branch,  x86_bind_stack, x86_bind_shift,
    x86_bind_mul,    x86_bind_bit,    x86_bind_atomic,  x86_bind_misc,  x86_bind_string,
    x86_bind_system, x86_bind_vector, x86_bind_segment, x86_bind_x87,   x86_bind_xsave,
};

#define MNEMONIC_COUNT (ZYDIS_MNEMONIC_MAX_VALUE + 1)
#define BINDER_MAX     4096

struct x86_decoder {
    ZydisDecoder zydis[3]; /* code sizes 2, 4, 8 */
    struct x86_features features;
    struct x86_stubs *stubs;
    bool rotate_keeps_of;
    /* The binders of a mnemonic are binder[first[m]] up to binder[first[m + 1]] */
    uint16_t first[MNEMONIC_COUNT + 1];
    const struct x86_bind *binder[BINDER_MAX];
};

/* What an instruction set needs: never there, always there, or 2 + a feature. */
enum { NEVER, ALWAYS, FEATURE_BASE };
#define NEEDS(f) (FEATURE_BASE + X86_FEATURE_##f)

static const uint16_t isa_needs[ZYDIS_ISA_SET_MAX_VALUE + 1] = {
    [ZYDIS_ISA_SET_ADOX_ADCX] = NEEDS(ADX),
    [ZYDIS_ISA_SET_AES] = NEEDS(AES),
    [ZYDIS_ISA_SET_AMD] = ALWAYS,
    [ZYDIS_ISA_SET_AVX] = NEEDS(AVX),
    [ZYDIS_ISA_SET_AVX2] = NEEDS(AVX2),
    [ZYDIS_ISA_SET_AVX2GATHER] = NEEDS(AVX2),
    [ZYDIS_ISA_SET_AVXAES] = NEEDS(AES),
    [ZYDIS_ISA_SET_BMI1] = NEEDS(BMI1),
    [ZYDIS_ISA_SET_BMI2] = NEEDS(BMI2),
    [ZYDIS_ISA_SET_CLFLUSHOPT] = NEEDS(CLFLUSHOPT),
    [ZYDIS_ISA_SET_CLFSH] = NEEDS(CLFLUSH),
    [ZYDIS_ISA_SET_CLWB] = NEEDS(CLWB),
    [ZYDIS_ISA_SET_CMOV] = NEEDS(CMOV),
    [ZYDIS_ISA_SET_CMPXCHG16B] = NEEDS(CX16),
    [ZYDIS_ISA_SET_F16C] = NEEDS(F16C),
    [ZYDIS_ISA_SET_FAT_NOP] = ALWAYS,
    [ZYDIS_ISA_SET_FCMOV] = NEEDS(CMOV),
    [ZYDIS_ISA_SET_FMA] = NEEDS(FMA),
    [ZYDIS_ISA_SET_FXSAVE] = NEEDS(FXSR),
    [ZYDIS_ISA_SET_FXSAVE64] = NEEDS(FXSR),
    [ZYDIS_ISA_SET_I186] = ALWAYS,
    [ZYDIS_ISA_SET_I286PROTECTED] = ALWAYS,
    [ZYDIS_ISA_SET_I286REAL] = ALWAYS,
    [ZYDIS_ISA_SET_I386] = ALWAYS,
    [ZYDIS_ISA_SET_I486] = ALWAYS,
    [ZYDIS_ISA_SET_I486REAL] = ALWAYS,
    [ZYDIS_ISA_SET_I86] = ALWAYS,
    [ZYDIS_ISA_SET_INVPCID] = NEEDS(INVPCID),
    [ZYDIS_ISA_SET_LAHF] = ALWAYS,
    [ZYDIS_ISA_SET_LONGMODE] = ALWAYS,
    [ZYDIS_ISA_SET_LZCNT] = NEEDS(LZCNT),
    [ZYDIS_ISA_SET_MONITOR] = NEEDS(MONITOR),
    [ZYDIS_ISA_SET_MOVBE] = NEEDS(MOVBE),
    [ZYDIS_ISA_SET_PAUSE] = ALWAYS,
    [ZYDIS_ISA_SET_PCLMULQDQ] = NEEDS(PCLMUL),
    [ZYDIS_ISA_SET_PENTIUMMMX] = NEEDS(MMX),
    [ZYDIS_ISA_SET_PENTIUMREAL] = ALWAYS,
    [ZYDIS_ISA_SET_POPCNT] = NEEDS(POPCNT),
    [ZYDIS_ISA_SET_PPRO] = ALWAYS,
    [ZYDIS_ISA_SET_PREFETCHWT1] = ALWAYS,
    [ZYDIS_ISA_SET_PREFETCH_NOP] = ALWAYS,
    [ZYDIS_ISA_SET_RDPID] = NEEDS(RDPID),
    [ZYDIS_ISA_SET_RDPMC] = ALWAYS,
    [ZYDIS_ISA_SET_RDRAND] = NEEDS(RDRAND),
    [ZYDIS_ISA_SET_RDSEED] = NEEDS(RDSEED),
    [ZYDIS_ISA_SET_RDTSCP] = NEEDS(RDTSCP),
    [ZYDIS_ISA_SET_RDWRFSGS] = NEEDS(FSGSBASE),
    [ZYDIS_ISA_SET_SHA] = NEEDS(SHA),
    [ZYDIS_ISA_SET_SMAP] = NEEDS(SMAP),
    [ZYDIS_ISA_SET_SSE] = NEEDS(SSE),
    [ZYDIS_ISA_SET_SSE2] = NEEDS(SSE2),
    [ZYDIS_ISA_SET_SSE2MMX] = NEEDS(SSE2),
    [ZYDIS_ISA_SET_SSE3] = NEEDS(SSE3),
    [ZYDIS_ISA_SET_SSE3X87] = NEEDS(SSE3),
    [ZYDIS_ISA_SET_SSE4] = NEEDS(SSE41),
    [ZYDIS_ISA_SET_SSE42] = NEEDS(SSE42),
    [ZYDIS_ISA_SET_SSEMXCSR] = NEEDS(SSE),
    [ZYDIS_ISA_SET_SSE_PREFETCH] = NEEDS(SSE),
    [ZYDIS_ISA_SET_SSSE3] = NEEDS(SSSE3),
    [ZYDIS_ISA_SET_SSSE3MMX] = NEEDS(SSSE3),
    [ZYDIS_ISA_SET_VAES] = NEEDS(VAES),
    [ZYDIS_ISA_SET_VPCLMULQDQ] = NEEDS(VPCLMUL),
    [ZYDIS_ISA_SET_X87] = NEEDS(FPU),
    [ZYDIS_ISA_SET_XSAVE] = NEEDS(XSAVE),
    [ZYDIS_ISA_SET_XSAVEC] = NEEDS(XSAVEC),
    [ZYDIS_ISA_SET_XSAVEOPT] = NEEDS(XSAVEOPT),
    [ZYDIS_ISA_SET_XSAVES] = NEEDS(XSAVES),
};

static bool isa_present(const struct x86_features *features, ZydisISASet isa)
{
    uint16_t needs = isa_needs[isa];
    if (needs >= FEATURE_BASE)
        return x86_has(features, (enum x86_feature)(needs - FEATURE_BASE));
    return needs == ALWAYS;
}

static void zydis_setup(ZydisDecoder *z, ZydisMachineMode mode, ZydisStackWidth width,
                        const struct x86_features *features)
{
    (void)ZydisDecoderInit(z, mode, width);
    (void)ZydisDecoderEnableMode(z, ZYDIS_DECODER_MODE_AMD_BRANCHES, ZYAN_TRUE);
    /* Without the feature these are the no-ops, or BSF and BSR, that they extend. */
    (void)ZydisDecoderEnableMode(z, ZYDIS_DECODER_MODE_MPX, ZYAN_FALSE);
    (void)ZydisDecoderEnableMode(z, ZYDIS_DECODER_MODE_CET, ZYAN_FALSE);
    (void)ZydisDecoderEnableMode(z, ZYDIS_DECODER_MODE_CLDEMOTE, ZYAN_FALSE);
    (void)ZydisDecoderEnableMode(z, ZYDIS_DECODER_MODE_LZCNT, x86_has(features, X86_FEATURE_LZCNT));
    (void)ZydisDecoderEnableMode(z, ZYDIS_DECODER_MODE_TZCNT, x86_has(features, X86_FEATURE_BMI1));
}

/* A counting sort of all binders by mnemonic; those of one mnemonic stay in the tables' order. */
static int index_binders(struct x86_decoder *decoder)
{
    uint16_t *first = decoder->first;
    size_t count = 0;
    for (size_t t = 0; t < ARRAY_COUNT(bind_tables); t++)
        for (const struct x86_bind *b = bind_tables[t]; b->mnemonic; b++, count++)
            first[b->mnemonic + 1]++;
    if (count > BINDER_MAX)
        return -E2BIG;
    for (size_t m = 0; m < MNEMONIC_COUNT; m++)
        first[m + 1] = (uint16_t)(first[m + 1] + first[m]);
    /* Filling moves each start to its end, which is the next one's start: shift back after. */
    for (size_t t = 0; t < ARRAY_COUNT(bind_tables); t++)
        for (const struct x86_bind *b = bind_tables[t]; b->mnemonic; b++)
            decoder->binder[first[b->mnemonic]++] = b;
    memmove(first + 1, first, MNEMONIC_COUNT * sizeof *first);
    first[0] = 0;
    return 0;
}

int x86_decoder_create(struct x86_decoder **out, const struct x86_features *features,
                       struct x86_stubs *stubs)
{
    struct x86_decoder *decoder = calloc(1, sizeof *decoder);
    if (!decoder)
        return -ENOMEM;
    int error = index_binders(decoder);
    if (error) {
        free(decoder);
        return error;
    }
    decoder->features = *features;
    decoder->stubs = stubs;
    decoder->rotate_keeps_of = x86_host_rotate_keeps_of();
    zydis_setup(&decoder->zydis[0], ZYDIS_MACHINE_MODE_LEGACY_16, ZYDIS_STACK_WIDTH_16, features);
    zydis_setup(&decoder->zydis[1], ZYDIS_MACHINE_MODE_LEGACY_32, ZYDIS_STACK_WIDTH_32, features);
    zydis_setup(&decoder->zydis[2], ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64, features);
    *out = decoder;
    return 0;
}

void x86_decoder_destroy(struct x86_decoder *decoder)
{
    free(decoder);
}

static uint16_t gpr_offset(unsigned number, unsigned byte)
{
    return (uint16_t)(offsetof(struct x86_cpu, s.gpr) + number * 8 + byte);
}

uint16_t x86_register_offset(ZydisRegister reg)
{
    if (reg >= ZYDIS_REGISTER_RAX && reg <= ZYDIS_REGISTER_R15)
        return gpr_offset(reg - ZYDIS_REGISTER_RAX, 0);
    if (reg >= ZYDIS_REGISTER_EAX && reg <= ZYDIS_REGISTER_R15D)
        return gpr_offset(reg - ZYDIS_REGISTER_EAX, 0);
    if (reg >= ZYDIS_REGISTER_AX && reg <= ZYDIS_REGISTER_R15W)
        return gpr_offset(reg - ZYDIS_REGISTER_AX, 0);
    if (reg >= ZYDIS_REGISTER_AL && reg <= ZYDIS_REGISTER_BL)
        return gpr_offset(reg - ZYDIS_REGISTER_AL, 0);
    if (reg >= ZYDIS_REGISTER_AH && reg <= ZYDIS_REGISTER_BH)
        return gpr_offset(reg - ZYDIS_REGISTER_AH, 1);
    if (reg >= ZYDIS_REGISTER_SPL && reg <= ZYDIS_REGISTER_R15B)
        return gpr_offset(reg - ZYDIS_REGISTER_SPL + X86_RSP, 0);
    if (reg >= ZYDIS_REGISTER_XMM0 && reg <= ZYDIS_REGISTER_XMM15)
        return (uint16_t)(offsetof(struct x86_cpu, s.fpu.ymm) + (reg - ZYDIS_REGISTER_XMM0) * 32u);
    if (reg >= ZYDIS_REGISTER_YMM0 && reg <= ZYDIS_REGISTER_YMM15)
        return (uint16_t)(offsetof(struct x86_cpu, s.fpu.ymm) + (reg - ZYDIS_REGISTER_YMM0) * 32u);
    if (reg == ZYDIS_REGISTER_RIP || reg == ZYDIS_REGISTER_EIP)
        return offsetof(struct x86_cpu, next_rip);
    return offsetof(struct x86_cpu, zero);
}

uint8_t x86_segment_number(ZydisRegister reg)
{
    switch (reg) {
    case ZYDIS_REGISTER_ES:
        return X86_ES;
    case ZYDIS_REGISTER_CS:
        return X86_CS;
    case ZYDIS_REGISTER_SS:
        return X86_SS;
    case ZYDIS_REGISTER_FS:
        return X86_FS;
    case ZYDIS_REGISTER_GS:
        return X86_GS;
    default:
        return X86_DS;
    }
}

/*
 * Zydis 4.0 takes R13D for a base where mod 0 says that there is none, only a displacement (it
 * asks for EBP alone).
 */
static bool has_no_base(const ZydisDecodedInstruction *z)
{
    return z->attributes & ZYDIS_ATTRIB_HAS_SIB && z->raw.modrm.mod == 0 && z->raw.sib.base == 5;
}

static void fill_memory(const ZydisDecodedInstruction *z, const ZydisDecodedOperandMem *mem,
                        struct x86_insn *out)
{
    out->flags |= X86_INSN_MEM;
    out->seg = x86_segment_number(mem->segment);
    out->base = x86_register_offset(mem->base);
    out->index = x86_register_offset(mem->index);
    out->scale = (uint8_t)(mem->scale > 1 ? __builtin_ctz(mem->scale) : 0);
    out->disp = (int32_t)mem->disp.value;
    if (has_no_base(z)) {
        out->base = offsetof(struct x86_cpu, zero);
        out->disp = (int32_t)z->raw.disp.value;
    }
}

static void fill_operands(const struct x86_decode *d, struct x86_insn *out)
{
    unsigned registers = 0;
    bool has_imm = false;
    uint16_t *slot[3] = {&out->dst, &out->src, &out->src2};

    for (unsigned i = 0; i < d->z->operand_count_visible; i++) {
        const ZydisDecodedOperand *op = &d->op[i];
        if (op->type == ZYDIS_OPERAND_TYPE_REGISTER && registers < 3) {
            *slot[registers++] = x86_register_offset(op->reg.value);
        } else if (op->type == ZYDIS_OPERAND_TYPE_IMMEDIATE && !has_imm) {
            has_imm = true;
            out->imm = op->imm.value.u;
        } else if (op->type == ZYDIS_OPERAND_TYPE_MEMORY && !(out->flags & X86_INSN_MEM)) {
            fill_memory(d->z, &op->mem, out);
        }
    }
}

static uint8_t operand_size(const struct x86_decode *d)
{
    if (d->z->operand_count_visible && d->op[0].size)
        return (uint8_t)(d->op[0].size / 8);
    return d->z->operand_width / 8;
}

static uint8_t insn_flags(const ZydisDecodedInstruction *z)
{
    uint8_t flags = 0;
    if (z->attributes & ZYDIS_ATTRIB_HAS_LOCK)
        flags |= X86_INSN_LOCK;
    if (z->attributes & (ZYDIS_ATTRIB_HAS_REP | ZYDIS_ATTRIB_HAS_REPE))
        flags |= X86_INSN_REP;
    if (z->attributes & ZYDIS_ATTRIB_HAS_REPNE)
        flags |= X86_INSN_REPNE;
    switch (z->meta.category) {
    case ZYDIS_CATEGORY_CALL:
    case ZYDIS_CATEGORY_COND_BR:
    case ZYDIS_CATEGORY_INTERRUPT:
    case ZYDIS_CATEGORY_RET:
    case ZYDIS_CATEGORY_SYSCALL:
    case ZYDIS_CATEGORY_SYSRET:
    case ZYDIS_CATEGORY_UNCOND_BR:
        flags |= X86_INSN_END;
        break;
    default:
        break;
    }
    return flags;
}

/* VPEXTRQ and VPINSRQ; Zydis takes them for the 32-bit ones elsewhere, AMD's processors do not. */
static bool needs_64_bit(const struct x86_decode *d)
{
    return d->mode->code_size != 8 && d->z->raw.vex.W &&
           d->z->opcode_map == ZYDIS_OPCODE_MAP_0F3A &&
           (d->z->opcode == 0x16 || d->z->opcode == 0x22);
}

/* Encodings that are there or not whatever the mnemonic is. */
static bool encoding_allowed(const struct x86_decode *d)
{
    ZydisInstructionEncoding e = d->z->encoding;
    if (e == ZYDIS_INSTRUCTION_ENCODING_VEX)
        return !d->mode->real_or_v86 && !needs_64_bit(d);
    return e == ZYDIS_INSTRUCTION_ENCODING_LEGACY;
}

static void run_ud(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    x86_raise(cpu, X86_UD);
}

static void run_too_long(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    x86_raise_error(cpu, X86_GP, 0);
}

static void make_ud(struct x86_insn *out, uint8_t length)
{
    *out = (struct x86_insn) {.run = run_ud,
                              .base = offsetof(struct x86_cpu, zero),
                              .index = offsetof(struct x86_cpu, zero),
                              .length = length,
                              .flags = X86_INSN_END};
}

static bool bind(const struct x86_decoder *decoder, const struct x86_decode *d,
                 struct x86_insn *out)
{
    unsigned m = d->z->mnemonic;
    for (unsigned i = decoder->first[m]; i < decoder->first[m + 1]; i++)
        if (decoder->binder[i]->bind(d, out))
            return true;
    return false;
}

static enum x86_decode_result decode_failed(ZyanStatus status, size_t available,
                                            struct x86_insn *out)
{
    make_ud(out, 1);
    out->flags |= X86_INSN_UNKNOWN;
    if (status == ZYDIS_STATUS_INSTRUCTION_TOO_LONG ||
        (status == ZYDIS_STATUS_NO_MORE_DATA && available >= ZYDIS_MAX_INSTRUCTION_LENGTH)) {
        out->run = run_too_long;
        return X86_DECODE_TOO_LONG;
    }
    return status == ZYDIS_STATUS_NO_MORE_DATA ? X86_DECODE_TRUNCATED : X86_DECODE_OK;
}

enum x86_decode_result x86_decode(const struct x86_decoder *decoder,
                                  const struct x86_decode_mode *mode, const uint8_t *bytes,
                                  size_t available, struct x86_insn *out)
{
    ZydisDecodedInstruction z;
    ZydisDecodedOperand op[ZYDIS_MAX_OPERAND_COUNT];

    return x86_decode_whole(decoder, &(struct x86_decode_bytes) {mode, bytes, available}, out, &z,
                            op);
}

enum x86_decode_result x86_decode_whole(const struct x86_decoder *decoder,
                                        const struct x86_decode_bytes *from, struct x86_insn *out,
                                        ZydisDecodedInstruction *z, ZydisDecodedOperand *op)
{
    const struct x86_decode_mode *mode = from->mode;
    const ZydisDecoder *zydis = &decoder->zydis[mode->code_size >> 2];
    size_t available = MIN(from->available, (size_t)ZYDIS_MAX_INSTRUCTION_LENGTH);

    ZyanStatus status = ZydisDecoderDecodeFull(zydis, from->bytes, available, z, op);
    z->mnemonic = ZYAN_SUCCESS(status) ? z->mnemonic : ZYDIS_MNEMONIC_INVALID;
    if (!ZYAN_SUCCESS(status))
        return decode_failed(status, available, out);

    struct x86_decode d = {.z = z,
                           .op = op,
                           .bytes = from->bytes,
                           .mode = mode,
                           .features = &decoder->features,
                           .stubs = decoder->stubs,
                           .rotate_keeps_of = decoder->rotate_keeps_of};
    *out = (struct x86_insn) {.base = offsetof(struct x86_cpu, zero),
                              .index = offsetof(struct x86_cpu, zero),
                              .dst = offsetof(struct x86_cpu, zero),
                              .src = offsetof(struct x86_cpu, zero),
                              .src2 = offsetof(struct x86_cpu, zero),
                              .seg = X86_DS,
                              .length = z->length,
                              .address_size = z->address_width / 8,
                              .flags = insn_flags(z)};
    if (mode->code_size == 8 && out->address_size == 8)
        out->flags |= X86_INSN_FLAT64;
    out->size = operand_size(&d);
    fill_operands(&d, out);
    if (!isa_present(&decoder->features, z->meta.isa_set) || !encoding_allowed(&d) ||
        !bind(decoder, &d, out)) {
        make_ud(out, z->length);
        z->mnemonic = ZYDIS_MNEMONIC_INVALID;
    }
    return X86_DECODE_OK;
}
