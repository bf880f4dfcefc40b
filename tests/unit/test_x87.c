/*
 * x87: exceptions that are unmasked or pending, stack faults, environments in each format, the
 * synthesised instruction and operand pointers. SDM vol. 1 chapter 8.
 */
#include "vector_rig.h"

static const uint8_t one[10] = {0, 0, 0, 0, 0, 0, 0, 0x80, 0xff, 0x3f};

static void test_stack_overflow_masked(void **state)
{
    struct vector_rig *rig = *state;
    struct x86_fpu *f = &rig->cpu.s.fpu;
    static const uint8_t indefinite[10] = {0, 0, 0, 0, 0, 0, 0, 0xc0, 0xff, 0xff};

    x86_fpu_init_x87(f);
    for (unsigned i = 0; i < 8; i++)
        assert_int_equal(rig_run(rig, 0xd9, 0xe8), RIG_OK); /* fld1 */
    assert_int_equal(f->ftw, 0xff);
    assert_int_equal(f->fsw & (FSW_IE | FSW_SF), 0);
    assert_int_equal(rig_run(rig, 0xd9, 0xe8), RIG_OK);
    assert_int_equal(f->fsw & (FSW_IE | FSW_SF | FSW_C1 | FSW_ES), FSW_IE | FSW_SF | FSW_C1);
    assert_memory_equal(f->st[0], indefinite, 10);
}

static void test_unmasked_stack_fault_leaves_the_stack(void **state)
{
    struct vector_rig *rig = *state;
    struct x86_fpu *f = &rig->cpu.s.fpu;

    x86_fpu_init_x87(f);
    f->fcw &= (uint16_t)~FSW_IE;
    assert_int_equal(rig_run(rig, 0xdd, 0xd8), RIG_OK); /* fstp st0 of an empty stack */
    assert_int_equal(f->fsw, FSW_IE | FSW_SF | FSW_ES | FSW_B);
    assert_int_equal(f->ftw, 0);
    assert_int_equal(rig_run(rig, 0xd9, 0xe8), X86_MF); /* the next one tells */
    assert_int_equal(rig_run(rig, 0x9b), X86_MF);
    assert_int_equal(rig_run(rig, 0xdf, 0xe0), RIG_OK); /* fnstsw ax does not wait */
    assert_int_equal(rig->cpu.s.gpr[X86_RAX] & 0xffff, FSW_IE | FSW_SF | FSW_ES | FSW_B);
    assert_int_equal(rig_run(rig, 0xdb, 0xe2), RIG_OK); /* fnclex */
    assert_int_equal(rig_run(rig, 0xd9, 0xe8), RIG_OK);
}

static void test_unmasked_zero_divide_keeps_operands(void **state)
{
    struct vector_rig *rig = *state;
    struct x86_fpu *f = &rig->cpu.s.fpu;

    x86_fpu_init_x87(f);
    f->fcw &= (uint16_t)~FSW_ZE;
    assert_int_equal(rig_run(rig, 0xd9, 0xee), RIG_OK); /* fldz */
    assert_int_equal(rig_run(rig, 0xd9, 0xe8), RIG_OK); /* fld1 */
    assert_int_equal(rig_run(rig, 0xd8, 0xf1), RIG_OK); /* fdiv st0, st1 */
    assert_memory_equal(f->st[0], one, 10);
    assert_int_equal(f->fsw & (FSW_EXCEPTIONS | FSW_ES), FSW_ZE | FSW_ES);
    rig->cpu.s.cr0 &= ~X86_CR0_NE;
    assert_int_equal(rig_run(rig, 0xd9, 0xe8), RIG_OK); /* no #MF without CR0.NE */
}

static void test_unmasked_overflow_to_memory_stores_nothing(void **state)
{
    struct vector_rig *rig = *state;
    struct x86_fpu *f = &rig->cpu.s.fpu;

    x86_fpu_init_x87(f);
    f->fcw &= (uint16_t)~FSW_OE;
    assert_int_equal(rig_run(rig, 0xd9, 0xe8), RIG_OK); /* fld1 */
    store_le16(f->st[0] + 8, 0x3fff + 200);
    rig->cpu.s.gpr[X86_RSI] = 0x1000;
    store_le32(rig->ram + 0x1000, 0x12345678);
    assert_int_equal(rig_run(rig, 0xd9, 0x1e), RIG_OK); /* fstp dword [rsi] */
    assert_int_equal(load_le32(rig->ram + 0x1000), 0x12345678);
    assert_int_equal(f->ftw, 0x80); /* not popped */
    assert_int_equal(f->fsw & (FSW_OE | FSW_ES), FSW_OE | FSW_ES);
}

static void test_sticky_flags_survive(void **state)
{
    struct vector_rig *rig = *state;
    struct x86_fpu *f = &rig->cpu.s.fpu;

    x86_fpu_init_x87(f);
    f->fsw |= FSW_PE | FSW_SF;
    assert_int_equal(rig_run(rig, 0xd9, 0xe8), RIG_OK); /* fld1 */
    assert_int_equal(f->fsw & (FSW_EXCEPTIONS | FSW_SF | FSW_ES), FSW_PE | FSW_SF);
}

static void test_pointers_are_the_guests(void **state)
{
    struct vector_rig *rig = *state;
    struct x86_fpu *f = &rig->cpu.s.fpu;

    x86_fpu_init_x87(f);
    rig->cpu.s.rip = 0x7654;
    rig->cpu.s.gpr[X86_RSI] = 0x1000;
    rig->cpu.s.seg[X86_CS].selector = 0x33;
    assert_int_equal(rig_run(rig, 0xdd, 0x46, 0x08), RIG_OK); /* fld qword [rsi + 8] */
    assert_int_equal(f->fip, 0x7654);
    assert_int_equal(f->fcs, 0x33);
    assert_int_equal(f->fdp, 0x1008);
    assert_int_equal(f->fop, 0x546);
    assert_int_equal(rig_run(rig, 0x9b), RIG_OK); /* control instructions do not change them */
    assert_int_equal(f->fop, 0x546);
}

static void test_environment_formats(void **state)
{
    struct vector_rig *rig = *state;
    struct x86_fpu *f = &rig->cpu.s.fpu;
    const uint8_t *ram = rig->ram + 0x1000;

    x86_fpu_init_x87(f);
    assert_int_equal(rig_run(rig, 0xd9, 0xe8), RIG_OK); /* fld1 */
    assert_int_equal(rig_run(rig, 0xd9, 0xee), RIG_OK); /* fldz */
    f->fcw = 0x37e;
    f->fip = 0x11223344;
    f->fdp = 0x55667788;
    f->fcs = 0x10;
    f->fds = 0x18;
    f->fop = 0x123;
    rig->cpu.s.gpr[X86_RSI] = 0x1000;
    assert_int_equal(rig_run(rig, 0xd9, 0x36), RIG_OK); /* fnstenv [rsi] */
    assert_int_equal(load_le32(ram), 0xffff037e);
    assert_int_equal(load_le32(ram + 4), 0xffff3000);
    assert_int_equal(load_le32(ram + 8), 0xffff1fff); /* register 7 valid, 6 zero */
    assert_int_equal(load_le32(ram + 12), 0x11223344);
    assert_int_equal(load_le32(ram + 16), 0x01230010);
    assert_int_equal(load_le32(ram + 20), 0x55667788);
    assert_int_equal(load_le32(ram + 24), 0xffff0018);
    assert_int_equal(f->fcw, 0x37f); /* all masked now */
    assert_int_equal(rig_run(rig, 0x66, 0xd9, 0x36), RIG_OK);
    assert_int_equal(load_le16(ram + 6), 0x3344);
    assert_int_equal(load_le16(ram + 12), 0x18);
}

static void test_real_mode_environment(void **state)
{
    struct vector_rig *rig = *state;
    struct x86_fpu *f = &rig->cpu.s.fpu;
    const uint8_t *ram = rig->ram + 0x1000;

    rig_mode(rig, 4);
    x86_fpu_init_x87(f);
    f->fip = 0x3344;
    f->fcs = 0x1234;
    f->fop = 0x123;
    rig->cpu.protected_mode = false;
    rig->cpu.s.gpr[X86_RSI] = 0x1000;
    assert_int_equal(rig_run(rig, 0x66, 0xd9, 0x36), RIG_OK); /* 0x12340 + 0x3344 = 0x15684 */
    assert_int_equal(load_le16(ram + 6), 0x5684);
    assert_int_equal(load_le16(ram + 8), 0x1123);
}

static void test_fnsave_and_frstor(void **state)
{
    struct vector_rig *rig = *state;
    struct x86_fpu *f = &rig->cpu.s.fpu, saved;

    x86_fpu_init_x87(f);
    for (unsigned i = 0; i < 3; i++)
        assert_int_equal(rig_run(rig, 0xd9, 0xe8 + i), RIG_OK); /* fld1, fldl2t, fldl2e */
    saved = *f;
    rig->cpu.s.gpr[X86_RSI] = 0x1000;
    assert_int_equal(rig_run(rig, 0xdd, 0x36), RIG_OK); /* fnsave [rsi] */
    assert_int_equal(f->fcw, FCW_DEFAULT);
    assert_int_equal(f->ftw, 0);
    assert_int_equal(f->fsw, 0);
    memset(f->st, 0, sizeof f->st);
    assert_int_equal(rig_run(rig, 0xdd, 0x26), RIG_OK); /* frstor [rsi] */
    assert_int_equal(f->ftw, saved.ftw);
    assert_int_equal(f->fsw, saved.fsw);
    assert_memory_equal(f->st, saved.st, sizeof f->st);
}

static void test_control_word_fixes_reserved_bits(void **state)
{
    struct vector_rig *rig = *state;

    rig->cpu.s.gpr[X86_RSI] = 0x1000;
    store_le16(rig->ram + 0x1000, 0xffff);
    assert_int_equal(rig_run(rig, 0xd9, 0x2e), RIG_OK); /* fldcw [rsi] */
    assert_int_equal(rig->cpu.s.fpu.fcw, 0x1f7f);
    store_le16(rig->ram + 0x1000, 0);
    assert_int_equal(rig_run(rig, 0xd9, 0x2e), RIG_OK);
    assert_int_equal(rig->cpu.s.fpu.fcw, 0x40);
}

static void test_conditional_moves_and_compares_use_flags(void **state)
{
    struct vector_rig *rig = *state;
    struct x86_fpu *f = &rig->cpu.s.fpu;

    x86_fpu_init_x87(f);
    assert_int_equal(rig_run(rig, 0xd9, 0xe8), RIG_OK); /* fld1 */
    assert_int_equal(rig_run(rig, 0xd9, 0xee), RIG_OK); /* fldz */
    rig->cpu.s.rflags = X86_FIXED;
    assert_int_equal(rig_run(rig, 0xda, 0xc9), RIG_OK); /* fcmove st0, st1: not taken */
    assert_int_equal(load_le64(f->st[0]), 0);
    assert_int_equal(rig_run(rig, 0xdb, 0xf1), RIG_OK); /* fcomi st0, st1: below */
    assert_int_equal(rig->cpu.s.rflags & X86_STATUS_FLAGS, X86_CF);
    rig->cpu.s.rflags |= X86_ZF;
    assert_int_equal(rig_run(rig, 0xda, 0xc9), RIG_OK);
    assert_memory_equal(f->st[0], one, 10);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, rig_setup, rig_teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_stack_overflow_masked),
        TEST(test_unmasked_stack_fault_leaves_the_stack),
        TEST(test_unmasked_zero_divide_keeps_operands),
        TEST(test_unmasked_overflow_to_memory_stores_nothing),
        TEST(test_sticky_flags_survive),
        TEST(test_pointers_are_the_guests),
        TEST(test_environment_formats),
        TEST(test_real_mode_environment),
        TEST(test_fnsave_and_frstor),
        TEST(test_control_word_fixes_reserved_bits),
        TEST(test_conditional_moves_and_compares_use_flags),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
