/*
 * FXSAVE and the XSAVE family: images, which bytes are written, the header's rules, MXCSR.
 * SDM vol. 1 chapter 13 and section 10.5.
 */
#include <errno.h>

#include "vector_rig.h"

static void fill_fpu(struct vector_rig *rig)
{
    struct x86_fpu *f = &rig->cpu.s.fpu;

    rig_fill(f->ymm, sizeof f->ymm, 5);
    for (unsigned i = 0; i < 8; i++)
        rig_fill(f->st[i], 10, (uint8_t)(i + 1));
    f->fcw = 0x27f;
    f->fsw = 0x1000;
    f->ftw = 0x3c;
    f->fop = 0x123;
    f->fip = 0x1122334455667788;
    f->fdp = 0x99aabbccddeeff;
    f->fcs = f->fds = 0;
    f->mxcsr = 0x1fa0;
}

/* EDX:EAX */
static void request(struct vector_rig *rig, uint64_t components)
{
    rig->cpu.s.gpr[X86_RAX] = (uint32_t)components;
    rig->cpu.s.gpr[X86_RDX] = components >> 32;
    rig->cpu.s.gpr[X86_RSI] = 0x1000;
}

static void test_image_round_trip(void **state)
{
    struct vector_rig *rig = *state;
    struct x86_fpu back = {.fcw = 1};
    uint8_t image[X86_XSAVE_SIZE];

    fill_fpu(rig);
    x86_xsave_to_image(&rig->cpu.s.fpu, image);
    assert_int_equal(x86_xsave_from_image(&back, image, sizeof image), 0);
    assert_memory_equal(&back, &rig->cpu.s.fpu, sizeof back);
}

static void test_image_without_components_is_initial(void **state)
{
    struct vector_rig *rig = *state;
    struct x86_fpu *f = &rig->cpu.s.fpu;
    uint8_t image[X86_XSAVE_SIZE];

    fill_fpu(rig);
    x86_xsave_to_image(f, image);
    store_le64(image + XSAVE_XSTATE_BV, 0);
    assert_int_equal(x86_xsave_from_image(f, image, X86_XSAVE_AVX_OFFSET), 0);
    assert_int_equal(x86_xsave_in_use(f), 0);
    assert_int_equal(f->fcw, 0x37f);
}

static void test_bad_images_are_refused(void **state)
{
    struct vector_rig *rig = *state;
    struct x86_fpu *f = &rig->cpu.s.fpu, before;
    uint8_t good[X86_XSAVE_SIZE], bad[X86_XSAVE_SIZE];

    fill_fpu(rig);
    before = *f;
    x86_xsave_to_image(f, good);
    assert_int_equal(x86_xsave_from_image(f, good, X86_XSAVE_SIZE - 1), -EINVAL);
    assert_int_equal(x86_xsave_from_image(f, good, 100), -EINVAL);
    memcpy(bad, good, sizeof bad);
    store_le64(bad + XSAVE_XSTATE_BV, 15);
    assert_int_equal(x86_xsave_from_image(f, bad, sizeof bad), -EINVAL);
    memcpy(bad, good, sizeof bad);
    store_le64(bad + XSAVE_XCOMP_BV, XSAVE_COMPACTED | 7);
    assert_int_equal(x86_xsave_from_image(f, bad, sizeof bad), -EINVAL);
    memcpy(bad, good, sizeof bad);
    store_le32(bad + XSAVE_MXCSR, 0x10000);
    assert_int_equal(x86_xsave_from_image(f, bad, sizeof bad), -EINVAL);
    assert_memory_equal(f, &before, sizeof before);
}

static void test_fxsave_forms(void **state)
{
    struct vector_rig *rig = *state;
    struct x86_fpu *f = &rig->cpu.s.fpu;
    const uint8_t *ram = rig->ram + 0x1000;

    fill_fpu(rig);
    f->fcs = 0x33;
    memset(rig->ram + 0x1000, 0xee, 512);
    request(rig, 0);
    assert_int_equal(rig_run(rig, 0x0f, 0xae, 0x06), RIG_OK); /* fxsave [rsi] */
    assert_int_equal(load_le32(ram + 8), 0x55667788);
    assert_int_equal(load_le32(ram + 12), 0x33);
    assert_int_equal(load_le32(ram + 28), 0xffff);
    assert_memory_equal(ram + 160 + 15 * 16, f->ymm[15], 16);
    assert_int_equal(ram[416], 0xee);                               /* for software */
    assert_int_equal(rig_run(rig, 0x48, 0x0f, 0xae, 0x06), RIG_OK); /* fxsave64 */
    assert_int_equal(load_le64(ram + 8), f->fip);
    rig_mode(rig, 4);
    memset(rig->ram + 0x1000, 0xee, 512);
    assert_int_equal(rig_run(rig, 0x0f, 0xae, 0x06), RIG_OK);
    assert_memory_equal(ram + 160 + 7 * 16, f->ymm[7], 16);
    assert_int_equal(ram[160 + 8 * 16], 0xee); /* XMM8 is not there in 32-bit code */
}

static void test_fxrstor_faults(void **state)
{
    struct vector_rig *rig = *state;
    struct x86_fpu before;

    fill_fpu(rig);
    before = rig->cpu.s.fpu;
    request(rig, 0);
    store_le32(rig->ram + 0x1000 + XSAVE_MXCSR, 0x10000);
    assert_int_equal(rig_run(rig, 0x0f, 0xae, 0x0e), X86_GP); /* fxrstor: reserved MXCSR bit */
    rig->cpu.s.gpr[X86_RSI] = 0x1008;
    assert_int_equal(rig_run(rig, 0x0f, 0xae, 0x0e), X86_GP); /* alignment */
    assert_int_equal(rig_run(rig, 0x0f, 0xae, 0x06), X86_GP);
    store_le32(rig->ram + 0x1008, 0x10000);
    assert_int_equal(rig_run(rig, 0x0f, 0xae, 0x16), X86_GP); /* ldmxcsr */
    assert_memory_equal(&rig->cpu.s.fpu, &before, sizeof before);
    rig->cpu.s.cr0 |= X86_CR0_EM;
    assert_int_equal(rig_run(rig, 0x0f, 0xae, 0x06), X86_NM);
}

static void test_xsave_merges_the_header(void **state)
{
    struct vector_rig *rig = *state;
    const uint8_t *ram = rig->ram + 0x1000;

    fill_fpu(rig);
    memset(rig->ram + 0x1000, 0xee, X86_XSAVE_SIZE);
    store_le64(rig->ram + 0x1000 + XSAVE_XSTATE_BV, 1);
    memset(rig->cpu.s.fpu.ymm, 0, sizeof rig->cpu.s.fpu.ymm);
    rig_fill(rig->cpu.s.fpu.ymm[2], 16, 1);
    request(rig, ~1ull); /* SSE and AVX: AVX is in its initial state */
    assert_int_equal(rig_run(rig, 0x0f, 0xae, 0x26), RIG_OK); /* xsave [rsi] */
    assert_int_equal(load_le64(ram + XSAVE_XSTATE_BV), 1 | X86_XCR0_SSE);
    assert_int_equal(ram[0], 0xee);                 /* x87 not asked for */
    assert_int_equal(ram[XSAVE_XCOMP_BV], 0xee);    /* not written by XSAVE */
    assert_int_equal(ram[X86_XSAVE_AVX_OFFSET], 0); /* XSAVE writes it all the same */
    assert_int_equal(load_le32(ram + XSAVE_MXCSR), 0x1fa0);
    memset(rig->ram + 0x1000, 0xee, X86_XSAVE_SIZE);
    assert_int_equal(rig_run(rig, 0x0f, 0xae, 0x36), RIG_OK); /* xsaveopt does not */
    assert_int_equal(ram[X86_XSAVE_AVX_OFFSET], 0xee);
}

static void test_xsavec_writes_what_is_in_use(void **state)
{
    struct vector_rig *rig = *state;
    const uint8_t *ram = rig->ram + 0x1000;

    memset(&rig->cpu.s.fpu, 0, sizeof rig->cpu.s.fpu);
    x86_fpu_init_x87(&rig->cpu.s.fpu);
    rig->cpu.s.fpu.mxcsr = 0x1f80;
    memset(rig->ram + 0x1000, 0xee, X86_XSAVE_SIZE);
    request(rig, 7);
    assert_int_equal(rig_run(rig, 0x0f, 0xc7, 0x26), RIG_OK); /* xsavec [rsi] */
    assert_int_equal(load_le64(ram + XSAVE_XSTATE_BV), 0);
    assert_int_equal(load_le64(ram + XSAVE_XCOMP_BV), XSAVE_COMPACTED | 7);
    assert_int_equal(ram[0], 0xee);
    rig->cpu.s.fpu.mxcsr = 0x1fa0; /* counts as SSE state here */
    assert_int_equal(rig_run(rig, 0x0f, 0xc7, 0x26), RIG_OK);
    assert_int_equal(load_le64(ram + XSAVE_XSTATE_BV), X86_XCR0_SSE);
    assert_int_equal(load_le32(ram + XSAVE_MXCSR), 0x1fa0);
}

static void test_xrstor_round_trip(void **state)
{
    struct vector_rig *rig = *state;
    struct x86_fpu *f = &rig->cpu.s.fpu, saved;

    fill_fpu(rig);
    saved = *f;
    request(rig, 7);
    assert_int_equal(rig_run(rig, 0x48, 0x0f, 0xc7, 0x2e), RIG_OK); /* xsaves64 [rsi] */
    memset(f, 0, sizeof *f);
    assert_int_equal(rig_run(rig, 0x48, 0x0f, 0xc7, 0x1e), RIG_OK); /* xrstors64 */
    assert_memory_equal(f, &saved, sizeof saved);
    memset(f, 0x11, sizeof *f);
    request(rig, X86_XCR0_AVX); /* only the upper halves; MXCSR belongs to SSE when compacted */
    assert_int_equal(rig_run(rig, 0x48, 0x0f, 0xae, 0x2e), RIG_OK); /* xrstor64 */
    assert_memory_equal(f->ymm[3] + 16, saved.ymm[3] + 16, 16);
    assert_int_equal(f->ymm[3][0], 0x11);
    assert_int_equal(f->mxcsr, 0x11111111);
}

static void test_xrstor_initialises_absent_components(void **state)
{
    struct vector_rig *rig = *state;
    struct x86_fpu *f = &rig->cpu.s.fpu;

    fill_fpu(rig);
    memset(rig->ram + 0x1000, 0, X86_XSAVE_SIZE);
    store_le32(rig->ram + 0x1000 + XSAVE_MXCSR, 0x1f00);
    request(rig, 7);
    assert_int_equal(rig_run(rig, 0x0f, 0xae, 0x2e), RIG_OK); /* standard form */
    assert_int_equal(x86_xsave_in_use(f), 0);
    assert_int_equal(f->mxcsr, 0x1f00); /* loaded whatever XSTATE_BV says */
}

static void test_xrstor_checks_the_header(void **state)
{
    struct vector_rig *rig = *state;
    uint8_t *header = rig->ram + 0x1000 + XSAVE_XSTATE_BV;

    memset(rig->ram + 0x1000, 0, X86_XSAVE_SIZE);
    request(rig, 7);
    store_le64(header, 8); /* a component that XCR0 does not have */
    assert_int_equal(rig_run(rig, 0x0f, 0xae, 0x2e), X86_GP);
    store_le64(header, 7);
    header[16] = 1; /* reserved in the standard form: bytes 8 to 23 */
    assert_int_equal(rig_run(rig, 0x0f, 0xae, 0x2e), X86_GP);
    header[16] = 0;
    assert_int_equal(rig_run(rig, 0x0f, 0xae, 0x2e), RIG_OK);
    assert_int_equal(rig_run(rig, 0x0f, 0xc7, 0x1e), X86_GP); /* xrstors wants the compacted form */
    store_le64(header + 8, XSAVE_COMPACTED | 3);
    assert_int_equal(rig_run(rig, 0x0f, 0xae, 0x2e), X86_GP); /* XSTATE_BV has more than XCOMP_BV */
    store_le64(header + 8, XSAVE_COMPACTED | 7);
    assert_int_equal(rig_run(rig, 0x0f, 0xc7, 0x1e), RIG_OK);
    header[63] = 1;
    assert_int_equal(rig_run(rig, 0x0f, 0xc7, 0x1e), X86_GP);
    rig->cpu.s.cr4 &= ~X86_CR4_OSXSAVE;
    assert_int_equal(rig_run(rig, 0x0f, 0xae, 0x2e), X86_UD);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, rig_setup, rig_teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_image_round_trip),
        TEST(test_image_without_components_is_initial),
        TEST(test_bad_images_are_refused),
        TEST(test_fxsave_forms),
        TEST(test_fxrstor_faults),
        TEST(test_xsave_merges_the_header),
        TEST(test_xsavec_writes_what_is_in_use),
        TEST(test_xrstor_round_trip),
        TEST(test_xrstor_initialises_absent_components),
        TEST(test_xrstor_checks_the_header),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
