/*
 * Plain vector moves and zeroing idioms, without a stub: they are what memcpy, memset and string
 * functions are made of. The CPU's thread. SDM vol. 2, MOVAPS … MOVQ; vol. 2 section 2.5 for the
 * alignment and availability rules.
 */
#include "x86/vector_int.h"

#define VEC_INLINE static inline __attribute__((always_inline))

VEC_INLINE void vec_check(struct x86_cpu *cpu, bool vex)
{
    if (vex)
        x86_check_avx(cpu);
    else
        x86_check_sse(cpu);
}

/* `size` and the flags are constants at each use, so that each handler is straight code. */
VEC_INLINE void vec_load(struct x86_cpu *cpu, const struct x86_insn *insn, unsigned size, bool vex,
                         bool aligned)
{
    uint8_t *dst = vec_operand(cpu, insn->dst);
    uint8_t value[32];
    const void *from;
    uint64_t la;

    vec_check(cpu, vex);
    la = x86_operand_la(cpu, insn, size, X86_READ);
    if (aligned && unlikely(la & (size - 1)))
        x86_raise_error(cpu, X86_GP, 0);
    from = vec_read_pointer(cpu, la, size);
    if (unlikely(!from)) {
        x86_load_bytes(cpu, la, value, size);
        from = value;
    }
    memcpy(dst, from, size);
    if (size < 16)
        memset(dst + size, 0, 16 - size);
    if (vex && size < 32)
        memset(dst + 16, 0, 16);
}

VEC_INLINE void vec_store(struct x86_cpu *cpu, const struct x86_insn *insn, unsigned size, bool vex,
                          bool aligned)
{
    const uint8_t *src = vec_operand(cpu, insn->src);
    uint64_t la;
    void *to;

    vec_check(cpu, vex);
    la = x86_operand_la(cpu, insn, size, X86_WRITE);
    if (aligned && unlikely(la & (size - 1)))
        x86_raise_error(cpu, X86_GP, 0);
    to = vec_write_pointer(cpu, la, size);
    if (likely(to))
        memcpy(to, src, size);
    else
        x86_store_bytes(cpu, la, src, size);
}

/* Copies `size` bytes between registers and zeroes up to `width`. */
VEC_INLINE void vec_copy(struct x86_cpu *cpu, const struct x86_insn *insn, unsigned size,
                         unsigned width, bool vex)
{
    uint8_t *dst = vec_operand(cpu, insn->dst), value[32];

    vec_check(cpu, vex);
    memcpy(value, vec_operand(cpu, insn->src), size);
    memcpy(dst, value, size);
    if (width > size)
        memset(dst + size, 0, width - size);
}

VEC_INLINE void vec_zero(struct x86_cpu *cpu, const struct x86_insn *insn, unsigned width, bool vex)
{
    vec_check(cpu, vex);
    memset(vec_operand(cpu, insn->dst), 0, width);
}

#define VEC_HANDLER(name, call)                                                                    \
    static void name(struct x86_cpu *cpu, const struct x86_insn *insn)                             \
    {                                                                                              \
        call;                                                                                      \
    }

VEC_HANDLER(load_16, vec_load(cpu, insn, 16, false, false))
VEC_HANDLER(load_16_aligned, vec_load(cpu, insn, 16, false, true))
VEC_HANDLER(load_v16, vec_load(cpu, insn, 16, true, false))
VEC_HANDLER(load_v16_aligned, vec_load(cpu, insn, 16, true, true))
VEC_HANDLER(load_v32, vec_load(cpu, insn, 32, true, false))
VEC_HANDLER(load_v32_aligned, vec_load(cpu, insn, 32, true, true))
VEC_HANDLER(load_4, vec_load(cpu, insn, 4, false, false))
VEC_HANDLER(load_8, vec_load(cpu, insn, 8, false, false))
VEC_HANDLER(load_v4, vec_load(cpu, insn, 4, true, false))
VEC_HANDLER(load_v8, vec_load(cpu, insn, 8, true, false))
VEC_HANDLER(store_16, vec_store(cpu, insn, 16, false, false))
VEC_HANDLER(store_16_aligned, vec_store(cpu, insn, 16, false, true))
VEC_HANDLER(store_v16, vec_store(cpu, insn, 16, true, false))
VEC_HANDLER(store_v16_aligned, vec_store(cpu, insn, 16, true, true))
VEC_HANDLER(store_v32, vec_store(cpu, insn, 32, true, false))
VEC_HANDLER(store_v32_aligned, vec_store(cpu, insn, 32, true, true))
VEC_HANDLER(store_4, vec_store(cpu, insn, 4, false, false))
VEC_HANDLER(store_8, vec_store(cpu, insn, 8, false, false))
VEC_HANDLER(store_v4, vec_store(cpu, insn, 4, true, false))
VEC_HANDLER(store_v8, vec_store(cpu, insn, 8, true, false))
VEC_HANDLER(copy_4, vec_copy(cpu, insn, 4, 16, false))    /* MOVD xmm, r32 */
VEC_HANDLER(copy_8, vec_copy(cpu, insn, 8, 16, false))    /* MOVQ xmm, r64 or xmm */
VEC_HANDLER(copy_16, vec_copy(cpu, insn, 16, 16, false))  /* MOVAPS xmm, xmm */
VEC_HANDLER(copy_v4, vec_copy(cpu, insn, 4, 32, true))    /* VMOVD xmm, r32 */
VEC_HANDLER(copy_v8, vec_copy(cpu, insn, 8, 32, true))    /* VMOVQ xmm, r64 or xmm */
VEC_HANDLER(copy_v16, vec_copy(cpu, insn, 16, 32, true))  /* VMOVAPS xmm, xmm */
VEC_HANDLER(copy_v32, vec_copy(cpu, insn, 32, 32, true))  /* VMOVAPS ymm, ymm */
VEC_HANDLER(copy_gpr4, vec_copy(cpu, insn, 4, 8, false))  /* MOVD r32, xmm */
VEC_HANDLER(copy_gpr8, vec_copy(cpu, insn, 8, 8, false))  /* MOVQ r64, xmm */
VEC_HANDLER(copy_gpr_v4, vec_copy(cpu, insn, 4, 8, true)) /* VMOVD r32, xmm */
VEC_HANDLER(copy_gpr_v8, vec_copy(cpu, insn, 8, 8, true)) /* VMOVQ r64, xmm */
VEC_HANDLER(zero_16, vec_zero(cpu, insn, 16, false))
VEC_HANDLER(zero_v, vec_zero(cpu, insn, 32, true))

/* [VEX][aligned] for 16 bytes, the last row for 32 */
static x86_handler *const load_whole[3][2] = {
    {load_16, load_16_aligned}, {load_v16, load_v16_aligned}, {load_v32, load_v32_aligned}};
static x86_handler *const store_whole[3][2] = {
    {store_16, store_16_aligned}, {store_v16, store_v16_aligned}, {store_v32, store_v32_aligned}};
static x86_handler *const copy_whole[3] = {copy_16, copy_v16, copy_v32};
/* [VEX][8 bytes] */
static x86_handler *const load_low[2][2] = {{load_4, load_8}, {load_v4, load_v8}};
static x86_handler *const store_low[2][2] = {{store_4, store_8}, {store_v4, store_v8}};
static x86_handler *const copy_low[2][2] = {{copy_4, copy_8}, {copy_v4, copy_v8}};
static x86_handler *const copy_gpr[2][2] = {{copy_gpr4, copy_gpr8}, {copy_gpr_v4, copy_gpr_v8}};

static x86_handler *choose_whole(const struct x86_decode *d, unsigned row)
{
    bool aligned = d->z->meta.exception_class == ZYDIS_EXCEPTION_CLASS_SSE1 ||
                   d->z->meta.exception_class == ZYDIS_EXCEPTION_CLASS_AVX1;

    if (d->op[0].type == ZYDIS_OPERAND_TYPE_MEMORY)
        return store_whole[row][aligned];
    return d->op[1].type == ZYDIS_OPERAND_TYPE_MEMORY ? load_whole[row][aligned] : copy_whole[row];
}

/* MOVD and MOVQ: the low element, the rest of a vector destination becomes zero. */
static x86_handler *choose_low(const struct x86_decode *d, bool vex)
{
    bool quad = d->op[1].size == 64;
    ZydisRegisterClass dst = ZydisRegisterGetClass(d->op[0].reg.value);

    if (d->op[0].type == ZYDIS_OPERAND_TYPE_MEMORY)
        return store_low[vex][quad];
    if (d->op[1].type == ZYDIS_OPERAND_TYPE_MEMORY)
        return load_low[vex][quad];
    return dst == ZYDIS_REGCLASS_XMM ? copy_low[vex][quad] : copy_gpr[vex][quad];
}

static bool has_mmx(const struct x86_decode *d)
{
    for (unsigned i = 0; i < d->z->operand_count_visible; i++)
        if (d->op[i].type == ZYDIS_OPERAND_TYPE_REGISTER &&
            ZydisRegisterGetClass(d->op[i].reg.value) == ZYDIS_REGCLASS_MMX)
            return true;
    return false;
}

bool x86_vector_bind_move(const struct x86_decode *d, struct x86_insn *out)
{
    bool vex = d->z->encoding == ZYDIS_INSTRUCTION_ENCODING_VEX;
    unsigned bits = MAX(d->op[0].size, d->op[1].size);
    bool low = d->z->mnemonic == ZYDIS_MNEMONIC_MOVD || d->z->mnemonic == ZYDIS_MNEMONIC_MOVQ ||
               d->z->mnemonic == ZYDIS_MNEMONIC_VMOVD || d->z->mnemonic == ZYDIS_MNEMONIC_VMOVQ;

    if (has_mmx(d))
        return x86_vector_bind_stub(d, out);
    if (d->op[0].type == ZYDIS_OPERAND_TYPE_MEMORY)
        out->src = x86_register_offset(d->op[1].reg.value);
    out->run = low ? choose_low(d, vex) : choose_whole(d, !vex ? 0 : bits == 256 ? 2 : 1);
    return true;
}

/* PXOR, XORPS, VPXOR… of a register with itself. */
bool x86_vector_bind_idiom(const struct x86_decode *d, struct x86_insn *out)
{
    bool vex = d->z->encoding == ZYDIS_INSTRUCTION_ENCODING_VEX;
    unsigned a = vex ? 1 : 0, b = a + 1;

    if (has_mmx(d) || d->op[b].type != ZYDIS_OPERAND_TYPE_REGISTER ||
        d->op[a].reg.value != d->op[b].reg.value)
        return x86_vector_bind_stub(d, out);
    out->run = vex ? zero_v : zero_16;
    return true;
}
