/*
 * Vector instructions where user-mode comparison with the host cannot go: availability, alignment,
 * SIMD exceptions, what a faulting instruction leaves behind, MMX aliasing, the bound on stubs.
 */
#include "vector_rig.h"

#define XMM(rig, i) ((rig)->cpu.s.fpu.ymm[i])

static void put_float(struct vector_rig *rig, unsigned i, const float v[4])
{
    memcpy(XMM(rig, i), v, 16);
}

static float get_float(struct vector_rig *rig, unsigned i)
{
    float v;
    memcpy(&v, XMM(rig, i), 4);
    return v;
}

static void test_legacy_keeps_and_vex_clears_the_upper_half(void **state)
{
    struct vector_rig *rig = *state;
    uint8_t upper[16], zero[16] = {0};

    rig_needs(rig, X86_FEATURE_AVX);
    rig_fill(rig->cpu.s.fpu.ymm, sizeof rig->cpu.s.fpu.ymm, 3);
    memcpy(upper, XMM(rig, 9) + 16, 16);
    assert_int_equal(rig_run(rig, 0x66, 0x45, 0x0f, 0xfe, 0xca), RIG_OK); /* paddd xmm9, xmm10 */
    assert_memory_equal(XMM(rig, 9) + 16, upper, 16);
    assert_int_equal(rig_run(rig, 0xc4, 0x41, 0x31, 0xfe, 0xca), RIG_OK); /* vpaddd xmm9,xmm9,… */
    assert_memory_equal(XMM(rig, 9) + 16, zero, 16);
    rig_fill(XMM(rig, 2), 32, 9);
    assert_int_equal(rig_run(rig, 0xc5, 0xfa, 0x6f, 0x16), RIG_OK); /* vmovdqu xmm2, [rsi] */
    assert_memory_equal(XMM(rig, 2) + 16, zero, 16);
}

static void test_alignment(void **state)
{
    struct vector_rig *rig = *state;

    rig->cpu.s.gpr[X86_RSI] = 0x1008;
    assert_int_equal(rig_run(rig, 0x0f, 0x28, 0x06), X86_GP);       /* movaps xmm0, [rsi] */
    assert_int_equal(rig_run(rig, 0x0f, 0x29, 0x06), X86_GP);       /* movaps [rsi], xmm0 */
    assert_int_equal(rig_run(rig, 0x66, 0x0f, 0xfe, 0x06), X86_GP); /* paddd xmm0, [rsi] */
    assert_int_equal(rig_run(rig, 0x0f, 0x58, 0x06), X86_GP);       /* addps xmm0, [rsi] */
    assert_int_equal(rig_run(rig, 0x0f, 0x10, 0x06), RIG_OK);       /* movups */
    assert_int_equal(rig_run(rig, 0xf3, 0x0f, 0x7f, 0x06), RIG_OK); /* movdqu [rsi], xmm0 */
    assert_int_equal(rig_run(rig, 0xf2, 0x0f, 0x58, 0x06), RIG_OK); /* addsd xmm0, [rsi] */
    assert_int_equal(rig_run(rig, 0x66, 0x0f, 0x2c, 0x06), X86_GP); /* cvttpd2pi mm0, [rsi] */
    rig_needs(rig, X86_FEATURE_AVX);
    assert_int_equal(rig_run(rig, 0xc5, 0xf9, 0xfe, 0x06), RIG_OK); /* vpaddd: unaligned */
    assert_int_equal(rig_run(rig, 0xc5, 0xf8, 0x28, 0x06), X86_GP); /* vmovaps xmm0, [rsi] */
    rig->cpu.s.gpr[X86_RSI] = 0x1010;
    assert_int_equal(rig_run(rig, 0xc5, 0xf8, 0x28, 0x06), RIG_OK);
    assert_int_equal(rig_run(rig, 0xc5, 0xfc, 0x28, 0x06), X86_GP); /* vmovaps ymm0, [rsi] */
}

static void test_availability(void **state)
{
    struct vector_rig *rig = *state;
    struct x86_state *s = &rig->cpu.s;
    const uint64_t cr0 = s->cr0, cr4 = s->cr4;

    s->cr0 = cr0 | X86_CR0_TS;
    assert_int_equal(rig_run(rig, 0x0f, 0x28, 0xc1), X86_NM); /* movaps xmm0, xmm1 */
    assert_int_equal(rig_run(rig, 0x0f, 0x58, 0xc1), X86_NM); /* addps xmm0, xmm1 */
    assert_int_equal(rig_run(rig, 0x0f, 0x6f, 0xc1), X86_NM); /* movq mm0, mm1 */
    assert_int_equal(rig_run(rig, 0xd9, 0xe8), X86_NM);       /* fld1 */
    assert_int_equal(rig_run(rig, 0x9b), X86_NM);             /* fwait, with MP */
    s->cr0 = cr0 | X86_CR0_TS | X86_CR0_EM;
    assert_int_equal(rig_run(rig, 0x0f, 0x58, 0xc1), X86_UD); /* #UD comes first */
    assert_int_equal(rig_run(rig, 0x0f, 0x6f, 0xc1), X86_UD);
    assert_int_equal(rig_run(rig, 0xdb, 0xe3), X86_NM); /* fninit */
    s->cr0 = cr0;
    s->cr4 = cr4 & ~X86_CR4_OSFXSR;
    assert_int_equal(rig_run(rig, 0x66, 0x0f, 0xef, 0xc0), X86_UD); /* pxor xmm0, xmm0 */
    assert_int_equal(rig_run(rig, 0x0f, 0x6f, 0xc1), RIG_OK);       /* MMX does not care */
    s->cr4 = cr4;
    rig_needs(rig, X86_FEATURE_AVX);
    s->xcr0 = X86_XCR0_X87 | X86_XCR0_SSE;
    assert_int_equal(rig_run(rig, 0xc5, 0xf8, 0x58, 0xc1), X86_UD); /* vaddps */
    s->xcr0 |= X86_XCR0_AVX;
    s->cr4 = cr4 & ~X86_CR4_OSXSAVE;
    assert_int_equal(rig_run(rig, 0xc5, 0xf8, 0x77), X86_UD); /* vzeroupper */
}

static void test_not_offered(void **state)
{
    struct vector_rig *rig = *state;

    /* vaddps zmm0, zmm1, zmm2 · extrq xmm0, xmm1 (SSE4A) · movntss [rsi], xmm0 (SSE4A) */
    assert_int_equal(rig_run(rig, 0x62, 0xf1, 0x74, 0x48, 0x58, 0xc2), X86_UD);
    assert_int_equal(rig_run(rig, 0x66, 0x0f, 0x79, 0xc1), X86_UD);
    assert_int_equal(rig_run(rig, 0xf3, 0x0f, 0x2b, 0x06), X86_UD);
}

static void test_masked_exceptions_are_sticky(void **state)
{
    struct vector_rig *rig = *state;
    const uint32_t before = x86_host_mxcsr();

    put_float(rig, 0, (const float[4]) {1, 2, 3, 4});
    put_float(rig, 1, (const float[4]) {0, 1, 1, 3});
    rig->cpu.s.fpu.mxcsr = 0x1f80 | 0x6000;                   /* towards zero */
    assert_int_equal(rig_run(rig, 0x0f, 0x5e, 0xc1), RIG_OK); /* divps xmm0, xmm1 */
    assert_int_equal(rig->cpu.s.fpu.mxcsr, 0x1f80 | 0x6000 | 0x24);
    assert_true(get_float(rig, 0) > 3e38f);
    assert_int_equal((x86_host_mxcsr() ^ before) & ~0x3fu, 0);
    assert_int_equal(rig_run(rig, 0x0f, 0x58, 0xc9), RIG_OK); /* addps xmm1, xmm1: no new flag */
    assert_int_equal(rig->cpu.s.fpu.mxcsr, 0x1f80 | 0x6000 | 0x24);
}

static void test_unmasked_exception_changes_only_flags(void **state)
{
    struct vector_rig *rig = *state;
    uint8_t before[16];

    put_float(rig, 0, (const float[4]) {1, 2, 1, 4});
    put_float(rig, 1, (const float[4]) {0, 1, 3, 3});
    memcpy(before, XMM(rig, 0), 16);
    rig->cpu.s.fpu.mxcsr = 0x1f80 & ~0x200u;                  /* zero divide unmasked */
    assert_int_equal(rig_run(rig, 0x0f, 0x5e, 0xc1), X86_XM); /* divps: also inexact in element 2 */
    assert_memory_equal(XMM(rig, 0), before, 16);
    assert_int_equal(rig->cpu.s.fpu.mxcsr & 0x3f, 0x04); /* found before the computation */
    rig->cpu.s.cr4 &= ~X86_CR4_OSXMMEXCPT;
    assert_int_equal(rig_run(rig, 0x0f, 0x5e, 0xc1), X86_UD);
}

static void test_unmasked_underflow_of_an_exact_result(void **state)
{
    struct vector_rig *rig = *state;

    put_float(rig, 0, (const float[4]) {0x1p-126f});
    put_float(rig, 1, (const float[4]) {0.5f});
    rig->cpu.s.fpu.mxcsr = 0x1f80;
    assert_int_equal(rig_run(rig, 0xf3, 0x0f, 0x59, 0xc1), RIG_OK); /* mulss: exact, so no UE */
    assert_int_equal(rig->cpu.s.fpu.mxcsr & 0x3f, 0);
    put_float(rig, 0, (const float[4]) {0x1p-126f});
    rig->cpu.s.fpu.mxcsr = 0x1f80 & ~0x800u;
    assert_int_equal(rig_run(rig, 0xf3, 0x0f, 0x59, 0xc1), X86_XM);
    assert_int_equal(rig->cpu.s.fpu.mxcsr & 0x3f, 0x10);
}

static void test_compare_keeps_flags_when_it_faults(void **state)
{
    struct vector_rig *rig = *state;

    put_float(rig, 0, (const float[4]) {__builtin_nanf("")});
    put_float(rig, 1, (const float[4]) {1});
    rig->cpu.s.rflags = X86_FIXED | X86_SF;
    rig->cpu.s.fpu.mxcsr = 0x1f80 & ~0x80u;
    assert_int_equal(rig_run(rig, 0x0f, 0x2f, 0xc1), X86_XM); /* comiss: invalid for a quiet NaN */
    assert_int_equal(rig->cpu.s.rflags, X86_FIXED | X86_SF);
    assert_int_equal(rig_run(rig, 0x0f, 0x2e, 0xc1), RIG_OK); /* ucomiss is not */
    assert_int_equal(rig->cpu.s.rflags & X86_STATUS_FLAGS, X86_ZF | X86_PF | X86_CF);
}

static void test_store_that_faults_changes_nothing(void **state)
{
    struct vector_rig *rig = *state;
    uint8_t before[16];

    rig_mode(rig, 4);
    rig->cpu.s.seg[X86_DS].limit = 0x200f;
    x86_cpu_update_mode(&rig->cpu);
    rig_fill(rig->ram + 0x2000, 0x20, 1);
    memcpy(before, rig->ram + 0x2008, 16);
    rig->cpu.s.gpr[X86_RSI] = 0x2008;
    assert_int_equal(rig_run(rig, 0xf3, 0x0f, 0x7f, 0x06), X86_GP); /* movdqu [esi], xmm0 */
    assert_memory_equal(rig->ram + 0x2008, before, 16);
    /* An MMX store that faults has not entered the MMX state either. */
    rig->cpu.s.fpu.fsw = 3 << FSW_TOP_SHIFT;
    rig->cpu.s.fpu.ftw = 0x10;
    rig->cpu.s.gpr[X86_RSI] = 0x200c;
    assert_int_equal(rig_run(rig, 0x0f, 0x7f, 0x06), X86_GP); /* movq [esi], mm0 */
    assert_int_equal(rig->cpu.s.fpu.fsw, 3 << FSW_TOP_SHIFT);
    assert_int_equal(rig->cpu.s.fpu.ftw, 0x10);
}

static void test_gather_keeps_what_arrived(void **state)
{
    struct vector_rig *rig = *state;
    const uint32_t index[4] = {0, 4, 0x1000, 8}, all[4] = {~0u, ~0u, ~0u, ~0u};

    rig_needs(rig, X86_FEATURE_AVX2);
    rig_mode(rig, 4);
    rig->cpu.s.seg[X86_DS].limit = 0x1fff;
    x86_cpu_update_mode(&rig->cpu);
    rig->cpu.s.gpr[X86_RSI] = 0x1800;
    rig_fill(rig->ram + 0x1800, 16, 1);
    memset(XMM(rig, 0), 0x55, 32);
    memcpy(XMM(rig, 1), index, 16);
    memcpy(XMM(rig, 2), all, 16);
    /* vpgatherdd xmm0, [esi + xmm1], xmm2 */
    assert_int_equal(rig_run(rig, 0xc4, 0xe2, 0x69, 0x90, 0x04, 0x0e), X86_GP);
    assert_memory_equal(XMM(rig, 0), rig->ram + 0x1800, 8);
    assert_int_equal(load_le32(XMM(rig, 0) + 8), 0x55555555);
    assert_int_equal(load_le64(XMM(rig, 2)), 0);
    assert_int_equal(load_le64(XMM(rig, 2) + 8), ~0ull);
    store_le32(XMM(rig, 1) + 8, 12);
    assert_int_equal(rig_run(rig, 0xc4, 0xe2, 0x69, 0x90, 0x04, 0x0e), RIG_OK);
    assert_int_equal(load_le32(XMM(rig, 0) + 8), load_le32(rig->ram + 0x180c));
    assert_int_equal(load_le64(XMM(rig, 2) + 8), 0);
    /* Two of the three registers equal: #UD. */
    assert_int_equal(rig_run(rig, 0xc4, 0xe2, 0x69, 0x90, 0x14, 0x0e), X86_UD);
}

static void test_masked_store_touches_selected_elements_only(void **state)
{
    struct vector_rig *rig = *state;
    const uint32_t mask[4] = {0x80000000, 0, 0x80000000, 0x7fffffff};
    uint8_t expect[16];

    rig_needs(rig, X86_FEATURE_AVX);
    rig->cpu.s.gpr[X86_RSI] = 0x1000;
    rig_fill(rig->ram + 0x1000, 16, 1);
    memcpy(expect, rig->ram + 0x1000, 16);
    memset(expect, 0xee, 4);
    memset(expect + 8, 0xee, 4);
    memset(XMM(rig, 1), 0xee, 16);
    memcpy(XMM(rig, 2), mask, 16);
    assert_int_equal(rig_run(rig, 0xc4, 0xe2, 0x69, 0x2e, 0x0e), RIG_OK); /* vmaskmovps */
    assert_memory_equal(rig->ram + 0x1000, expect, 16);
}

static void test_mmx_aliases_the_x87_registers(void **state)
{
    struct vector_rig *rig = *state;
    struct x86_fpu *f = &rig->cpu.s.fpu;

    x86_fpu_init_x87(f);
    assert_int_equal(rig_run(rig, 0xd9, 0xe8), RIG_OK);       /* fld1: physical register 7 */
    assert_int_equal(rig_run(rig, 0x0f, 0xef, 0xc0), RIG_OK); /* pxor mm0, mm0 */
    assert_int_equal(f->fsw & FSW_TOP, 0);
    assert_int_equal(f->ftw, 0xff);
    assert_int_equal(load_le64(f->st[0]), 0);
    assert_int_equal(load_le16(f->st[0] + 8), 0xffff);
    assert_int_equal(load_le64(f->st[7]), 1ull << 63); /* 1.0 stayed where it was */
    assert_int_equal(load_le16(f->st[7] + 8), 0x3fff);
    assert_int_equal(rig_run(rig, 0x0f, 0x77), RIG_OK); /* emms */
    assert_int_equal(f->ftw, 0);
    f->fcw &= (uint16_t)~FSW_ZE;
    f->fsw |= FSW_ZE;
    x86_fpu_update_es(f);
    assert_int_equal(rig_run(rig, 0x0f, 0xef, 0xc0), X86_MF); /* a pending x87 exception */
}

static void test_string_compare_uses_implicit_registers(void **state)
{
    struct vector_rig *rig = *state;

    rig_needs(rig, X86_FEATURE_SSE42);
    memset(XMM(rig, 1), 0, 16);
    memcpy(XMM(rig, 1), "lo", 2);
    memcpy(XMM(rig, 2), "hello, world 123", 16);
    rig->cpu.s.gpr[X86_RCX] = ~0ull;
    /* pcmpistri xmm1, xmm2, equal ordered */
    assert_int_equal(rig_run(rig, 0x66, 0x0f, 0x3a, 0x63, 0xca, 0x0c), RIG_OK);
    assert_int_equal(rig->cpu.s.gpr[X86_RCX], 3);
    assert_int_equal(rig->cpu.s.rflags & (X86_CF | X86_ZF), X86_CF);
}

/* Stubs that this form needs, counting each value of an immediate. */
static size_t form_size(struct vector_rig *rig, const struct x86_decode_mode *mode, uint8_t *bytes,
                        unsigned at)
{
    struct x86_insn insn;
    size_t before = x86_stubs_used(rig->stubs), one, two;

    bytes[at] = 0;
    (void)x86_decode(rig->decoder, mode, bytes, 15, &insn);
    one = x86_stubs_used(rig->stubs) - before;
    if (!one)
        return 0;
    bytes[at] = 1;
    (void)x86_decode(rig->decoder, mode, bytes, 15, &insn);
    two = x86_stubs_used(rig->stubs) - before;
    return two > one ? one * 256 : one;
}

static const uint8_t mandatory[4] = {0, 0x66, 0xf3, 0xf2};

/* ModRM bytes: [rdi] and a register, with each value of the reg field. */
static uint8_t form_modrm(unsigned i)
{
    return (uint8_t)((i & 8 ? 0xc1 : 7) | (i & 7) << 3);
}

static size_t legacy_forms(struct vector_rig *rig, const struct x86_decode_mode *mode,
                           unsigned prefix, unsigned map)
{
    size_t total = 0;

    for (unsigned opcode = 0; opcode < 256; opcode++)
        for (unsigned w = 0; w < (mode->code_size == 8 ? 2 : 1); w++)
            for (unsigned i = 0; i < 16; i++) {
                uint8_t bytes[24] = {0};
                unsigned n = 0;
                if (prefix)
                    bytes[n++] = mandatory[prefix];
                if (w)
                    bytes[n++] = 0x48;
                bytes[n++] = 0x0f;
                if (map > 1)
                    bytes[n++] = map == 2 ? 0x38 : 0x3a;
                bytes[n++] = (uint8_t)opcode;
                bytes[n++] = form_modrm(i);
                total += form_size(rig, mode, bytes, n);
            }
    return total;
}

static size_t vex_forms(struct vector_rig *rig, const struct x86_decode_mode *mode, unsigned prefix,
                        unsigned map)
{
    size_t total = 0;

    for (unsigned opcode = 0; opcode < 256; opcode++)
        for (unsigned wl = 0; wl < 4; wl++)
            for (unsigned i = 0; i < 16; i++) {
                uint8_t bytes[24] = {0xc4, (uint8_t)(0xe0 | map),
                                     (uint8_t)((wl & 1) << 7 | 15 << 3 | (wl >> 1) << 2 | prefix),
                                     (uint8_t)opcode, form_modrm(i)};
                total += form_size(rig, mode, bytes, 5);
            }
    return total;
}

static size_t x87_forms(struct vector_rig *rig, const struct x86_decode_mode *mode)
{
    size_t total = 0;

    for (unsigned i = 0; i < 8 * 256; i++) {
        uint8_t bytes[24] = {(uint8_t)(0xd8 | i >> 8), (uint8_t)i};
        total += form_size(rig, mode, bytes, 20);
    }
    return total;
}

static void test_all_stubs_fit(void **state)
{
    struct vector_rig *rig = *state;
    static const struct x86_decode_mode modes[2] = {{.code_size = 8}, {.code_size = 4}};
    size_t total = 0;

    for (unsigned m = 0; m < 2; m++) {
        for (unsigned prefix = 0; prefix < 4; prefix++)
            for (unsigned map = 1; map <= 3; map++) {
                total += legacy_forms(rig, &modes[m], prefix, map);
                total += vex_forms(rig, &modes[m], prefix, map);
            }
        total += x87_forms(rig, &modes[m]);
    }
    assert_true(total > 100000);
    assert_true(total < X86_STUBS_SIZE);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, rig_setup, rig_teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_legacy_keeps_and_vex_clears_the_upper_half),
        TEST(test_alignment),
        TEST(test_availability),
        TEST(test_not_offered),
        TEST(test_masked_exceptions_are_sticky),
        TEST(test_unmasked_exception_changes_only_flags),
        TEST(test_unmasked_underflow_of_an_exact_result),
        TEST(test_compare_keeps_flags_when_it_faults),
        TEST(test_store_that_faults_changes_nothing),
        TEST(test_gather_keeps_what_arrived),
        TEST(test_masked_store_touches_selected_elements_only),
        TEST(test_mmx_aliases_the_x87_registers),
        TEST(test_string_compare_uses_implicit_registers),
        TEST(test_all_stubs_fit),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
