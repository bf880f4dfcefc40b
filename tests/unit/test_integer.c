/*
 * x86/exec_*: what tests/diff cannot show, because 64-bit user mode has no such thing: decimal
 * arithmetic, stacks and branches of 16 and 32 bits, faults in the middle of string instructions,
 * locked operations beside RAM, privilege rules of the flags.
 */
#include "cpu_rig.h"

#define GPR(name) r->cpu.s.gpr[X86_##name]

/* Real mode at 0:7c00, stack at 0:7000. */
static void rig_real(struct rig *r)
{
    for (unsigned i = 0; i < 6; i++)
        r->cpu.s.seg[i] = (struct x86_segment) {.limit = 0xffff, .attr = 0x93};
    r->cpu.s.rip = r->cpu.next_rip = 0x7c00;
    GPR(RSP) = 0x7000;
    x86_cpu_update_mode(&r->cpu);
}

#define RUN_AT(r, at, ...)                                                                         \
    ({                                                                                             \
        PUT_CODE(r, at, __VA_ARGS__);                                                              \
        (r)->cpu.s.rip = (at);                                                                     \
        rig_step(r);                                                                               \
    })
#define RUN(r, ...)  RUN_AT(r, RIG_CODE, __VA_ARGS__)
#define REAL(r, ...) RUN_AT(r, 0x7c00, __VA_ARGS__)

static uint64_t status(const struct rig *r)
{
    return r->cpu.s.rflags & X86_STATUS_FLAGS;
}

/* --- decimal arithmetic: the examples of the manual's instruction pages --- */

static void test_daa(void **state)
{
    struct rig *r = *state;

    rig_protected(r, 0);
    GPR(RAX) = 0xae; /* 79 + 35 */
    r->cpu.s.rflags = X86_FIXED;
    assert_int_equal(RUN(r, 0x27), -1);
    assert_int_equal(GPR(RAX), 0x14);
    assert_int_equal(status(r), X86_CF | X86_AF | X86_PF);
}

static void test_das(void **state)
{
    struct rig *r = *state;

    rig_protected(r, 0);
    GPR(RAX) = 0xee; /* 35 - 47 */
    r->cpu.s.rflags = X86_FIXED | X86_CF | X86_AF | X86_SF;
    assert_int_equal(RUN(r, 0x2f), -1);
    assert_int_equal(GPR(RAX), 0x88);
    assert_int_equal(status(r) & ~X86_OF, X86_CF | X86_AF | X86_SF | X86_PF);
}

static void test_aaa_aas(void **state)
{
    struct rig *r = *state;

    rig_protected(r, 0);
    GPR(RAX) = 0x000b;
    r->cpu.s.rflags = X86_FIXED;
    assert_int_equal(RUN(r, 0x37), -1);
    assert_int_equal(GPR(RAX), 0x0101);
    assert_int_equal(status(r) & (X86_CF | X86_AF), X86_CF | X86_AF);
    GPR(RAX) = 0x02ff;
    r->cpu.s.rflags = X86_FIXED | X86_AF;
    assert_int_equal(RUN(r, 0x3f), -1);
    assert_int_equal(GPR(RAX), 0x0109);
    assert_int_equal(status(r) & (X86_CF | X86_AF), X86_CF | X86_AF);
}

static void test_aam_aad(void **state)
{
    struct rig *r = *state;

    rig_protected(r, 0);
    GPR(RAX) = 0x4f;
    assert_int_equal(RUN(r, 0xd4, 0x0a), -1);
    assert_int_equal(GPR(RAX), 0x0709);
    assert_int_equal(RUN(r, 0xd5, 0x0a), -1);
    assert_int_equal(GPR(RAX), 0x004f);
    assert_int_equal(RUN(r, 0xd4, 0x00), X86_DE);
    assert_int_equal(GPR(RAX), 0x004f);
}

/* --- stacks --- */

static void test_push_wraps_at_16_bits(void **state)
{
    struct rig *r = *state;

    rig_real(r);
    GPR(RSP) = 0x12340000;
    GPR(RAX) = 0xbeef;
    assert_int_equal(REAL(r, 0x50), -1);
    assert_int_equal(GPR(RSP), 0x1234fffe);
    assert_int_equal(get16(r, 0xfffe), 0xbeef);
}

static void test_pusha_popa(void **state)
{
    struct rig *r = *state;

    rig_protected(r, 0);
    for (unsigned i = 0; i < 8; i++)
        if (i != X86_RSP)
            r->cpu.s.gpr[i] = 0x11111111u * i;
    assert_int_equal(RUN(r, 0x60), -1);
    assert_int_equal(GPR(RSP), RIG_STACK - 32);
    assert_int_equal(get32(r, RIG_STACK - 20), RIG_STACK); /* ESP as it was */
    assert_int_equal(get32(r, RIG_STACK - 32), 0x77777777);
    for (unsigned i = 0; i < 8; i++)
        if (i != X86_RSP)
            r->cpu.s.gpr[i] = 0;
    assert_int_equal(RUN(r, 0x61), -1);
    assert_int_equal(GPR(RSP), RIG_STACK);
    assert_int_equal(GPR(RDI), 0x77777777);
    assert_int_equal(GPR(RCX), 0x11111111);
}

/* A selector fills its 32-bit slot. */
static void test_push_segment(void **state)
{
    struct rig *r = *state;

    rig_protected(r, 0);
    put32(r, RIG_STACK - 4, 0xaaaaaaaa);
    assert_int_equal(RUN(r, 0x1e), -1);
    assert_int_equal(GPR(RSP), RIG_STACK - 4);
    assert_int_equal(get32(r, RIG_STACK - 4), SEL_DATA0);
}

static void test_enter_levels(void **state)
{
    struct rig *r = *state;

    rig_protected(r, 0);
    GPR(RBP) = RIG_STACK + 0x100;
    put32(r, RIG_STACK + 0xfc, 0x1111);
    assert_int_equal(RUN(r, 0xc8, 0x10, 0x00, 0x02), -1); /* enter 16, 2 */
    assert_int_equal(GPR(RBP), RIG_STACK - 4);
    assert_int_equal(GPR(RSP), RIG_STACK - 12 - 16);
    assert_int_equal(get32(r, RIG_STACK - 4), RIG_STACK + 0x100);
    assert_int_equal(get32(r, RIG_STACK - 8), 0x1111);
    assert_int_equal(get32(r, RIG_STACK - 12), RIG_STACK - 4);
    assert_int_equal(RUN(r, 0xc9), -1);
    assert_int_equal(GPR(RSP), RIG_STACK);
    assert_int_equal(GPR(RBP), RIG_STACK + 0x100);
}

/* POP to memory addresses with the stack pointer already moved, and faults with it unmoved. */
static void test_pop_memory(void **state)
{
    struct rig *r = *state;

    rig_long(r, 0);
    put64(r, RIG_STACK, 0x1234);
    assert_int_equal(RUN(r, 0x8f, 0x44, 0x24, 0x10), -1); /* pop [rsp+16] */
    assert_int_equal(get64(r, RIG_STACK + 24), 0x1234);
    assert_int_equal(GPR(RSP), RIG_STACK + 8);
    GPR(RAX) = 0x500000; /* not mapped */
    assert_int_equal(RUN(r, 0x8f, 0x00), X86_PF_FAULT);
    assert_int_equal(GPR(RSP), RIG_STACK + 8);
}

/* --- flags and privilege --- */

static void test_popf_privilege(void **state)
{
    struct rig *r = *state;

    rig_protected(r, 3);
    r->cpu.s.rflags = X86_FIXED;
    put32(r, RIG_STACK, 0xffffffff);
    assert_int_equal(RUN(r, 0x9d), -1);
    assert_int_equal(r->cpu.s.rflags & (X86_IF | X86_IOPL | X86_VM | X86_RF), 0);
    assert_true(r->cpu.s.rflags & X86_AC);
    assert_true(r->cpu.s.rflags & X86_CF);
    rig_protected(r, 0);
    r->cpu.s.rflags = X86_FIXED;
    put32(r, RIG_STACK, (uint32_t)(X86_IF | X86_IOPL));
    assert_int_equal(RUN(r, 0x9d), -1);
    assert_int_equal(r->cpu.s.rflags, X86_FIXED | X86_IF | X86_IOPL);
}

static void test_v86_needs_iopl(void **state)
{
    struct rig *r = *state;
    const uint8_t codes[] = {0x9c, 0x9d, 0xcd};

    for (unsigned i = 0; i < sizeof codes; i++) {
        rig_protected(r, 3);
        r->cpu.s.rflags = X86_FIXED | X86_VM;
        for (unsigned s = 0; s < 6; s++)
            r->cpu.s.seg[s] = (struct x86_segment) {.limit = 0xffff, .attr = 0xf3};
        GPR(RSP) = 0x7000;
        x86_cpu_update_mode(&r->cpu);
        r->ram[0x7c01] = 0x21;
        assert_int_equal(REAL(r, codes[i]), X86_GP);
        assert_int_equal(GPR(RSP), 0x7000);
    }
}

/* --- branches --- */

static void test_branch_limits(void **state)
{
    struct rig *r = *state;

    rig_real(r);
    assert_int_equal(REAL(r, 0xe9, 0x00, 0x90), -1); /* IP wraps at 16 bits */
    assert_int_equal(r->cpu.s.rip, (0x7c03 + 0x9000) & 0xffff);
    rig_protected(r, 0);
    r->cpu.s.seg[X86_CS].limit = RIG_CODE + 0x100;
    x86_cpu_update_mode(&r->cpu);
    assert_int_equal(RUN(r, 0xeb, 0x7f), -1);
    assert_int_equal(RUN(r, 0xe9, 0x00, 0x01, 0x00, 0x00), X86_GP); /* beyond the limit */
    assert_int_equal(r->cpu.s.rip, RIG_CODE);
    GPR(RAX) = RIG_CODE + 0x200;
    assert_int_equal(RUN(r, 0xff, 0xd0), X86_GP);
    assert_int_equal(GPR(RSP), RIG_STACK);
}

static void test_loop_counts(void **state)
{
    struct rig *r = *state;

    rig_real(r);
    GPR(RCX) = 0x55550001;
    assert_int_equal(REAL(r, 0xe2, 0x10), -1); /* CX becomes 0: falls through */
    assert_int_equal(GPR(RCX), 0x55550000);
    assert_int_equal(r->cpu.s.rip, 0x7c02);
    assert_int_equal(REAL(r, 0x67, 0xe2, 0x10), -1); /* ECX counts, IP still 16 bits */
    assert_int_equal(GPR(RCX), 0x5554ffff);
    assert_int_equal(r->cpu.s.rip, 0x7c13);
}

static void test_software_interrupts(void **state)
{
    struct rig *r = *state;

    rig_protected(r, 0);
    assert_int_equal(RUN(r, 0xcd, 0x80), 0x80);
    assert_int_equal(r->cpu.fault.kind, X86_EVENT_SOFT_INTERRUPT);
    assert_int_equal(r->cpu.s.rip, RIG_CODE);
    assert_int_equal(r->cpu.next_rip, RIG_CODE + 2);
    assert_int_equal(RUN(r, 0xcc), X86_BP);
    assert_int_equal(r->cpu.fault.kind, X86_EVENT_SOFT_EXCEPTION);
    assert_int_equal(RUN(r, 0xf1), X86_DB);
    assert_int_equal(r->cpu.fault.kind, X86_EVENT_PRIVILEGED_SOFT_EXCEPTION);
    r->cpu.s.rflags = X86_FIXED;
    assert_int_equal(RUN(r, 0xce), -1);
    r->cpu.s.rflags |= X86_OF;
    assert_int_equal(RUN(r, 0xce), X86_OF_TRAP);
}

static void test_bound(void **state)
{
    struct rig *r = *state;

    rig_protected(r, 0);
    GPR(RBX) = 0x50000;
    put32(r, 0x50000, (uint32_t)-5);
    put32(r, 0x50004, 5);
    GPR(RAX) = 5;
    assert_int_equal(RUN(r, 0x62, 0x03), -1);
    GPR(RAX) = (uint32_t)-6;
    assert_int_equal(RUN(r, 0x62, 0x03), X86_BR);
    GPR(RAX) = 6;
    assert_int_equal(RUN(r, 0x62, 0x03), X86_BR);
}

/* --- strings --- */

/* A fault in the middle leaves the registers at the element that faulted. */
static void test_string_fault_is_precise(void **state)
{
    struct rig *r = *state;

    rig_long(r, 0);
    GPR(RSI) = 0x50000;
    GPR(RDI) = 0x400000 - 24; /* 3 elements, then nothing is mapped */
    GPR(RCX) = 10;
    for (unsigned i = 0; i < 10; i++)
        put64(r, 0x50000 + 8 * i, i + 1);
    assert_int_equal(RUN(r, 0xf3, 0x48, 0xa5), X86_PF_FAULT);
    assert_int_equal(r->cpu.fault.payload, 0x400000);
    assert_int_equal(r->cpu.fault.error & X86_PFERR_W, X86_PFERR_W);
    assert_int_equal(GPR(RCX), 7);
    assert_int_equal(GPR(RSI), 0x50000 + 24);
    assert_int_equal(GPR(RDI), 0x400000);
    assert_int_equal(get64(r, 0x400000 - 8), 3);
    assert_int_equal(r->cpu.s.rip, RIG_CODE);
}

/* Going down, a run ends where an expand-down segment does. */
static void test_string_down_to_a_lower_limit(void **state)
{
    struct rig *r = *state;

    rig_protected(r, 0);
    r->cpu.s.seg[X86_ES] = (struct x86_segment) {.limit = 0x50fff, .selector = 8, .attr = 0xc097};
    x86_cpu_update_mode(&r->cpu);
    r->cpu.s.rflags |= X86_DF;
    GPR(RAX) = 0x77;
    GPR(RDI) = 0x51008;
    GPR(RCX) = 20;
    put32(r, 0x50ffc, 0);
    assert_int_equal(RUN(r, 0xf3, 0xaa), X86_GP);
    assert_int_equal(GPR(RCX), 11);
    assert_int_equal(GPR(RDI), 0x50fff);
    assert_int_equal(get32(r, 0x50ffc), 0);
    GPR(RDI) = 0x50808; /* inside a page */
    r->cpu.s.seg[X86_ES].limit = 0x507ff;
    x86_cpu_update_mode(&r->cpu);
    GPR(RCX) = 20;
    put32(r, 0x507fc, 0);
    assert_int_equal(RUN(r, 0xf3, 0xaa), X86_GP);
    assert_int_equal(GPR(RCX), 11);
    assert_int_equal(get32(r, 0x507fc), 0);
}

/* A long repetition lets go in between, at its own address, and is finished by running it again. */
static void test_long_repetition_lets_go(void **state)
{
    struct rig *r = *state;
    unsigned steps = 0;

    rig_long(r, 0);
    GPR(RDI) = 0x100000;
    GPR(RCX) = 0x100000;
    GPR(RAX) = 0x5a;
    PUT_CODE(r, RIG_CODE, 0xf3, 0xaa);
    while (r->cpu.s.rip == RIG_CODE && ++steps < 100)
        assert_int_equal(rig_step(r), -1);
    assert_in_range(steps, 2, 99);
    assert_int_equal(GPR(RCX), 0);
    assert_int_equal(GPR(RDI), 0x200000);
    assert_int_equal(r->ram[0x100000], 0x5a);
    assert_int_equal(r->ram[0x1fffff], 0x5a);
}

/* Overlap upwards repeats the pattern, as element after element does. */
static void test_overlapping_copy(void **state)
{
    struct rig *r = *state;

    rig_long(r, 0);
    memcpy(r->ram + 0x50000, "abc", 3);
    GPR(RSI) = 0x50000;
    GPR(RDI) = 0x50003;
    GPR(RCX) = 9;
    assert_int_equal(RUN(r, 0xf3, 0xa4), -1);
    assert_memory_equal(r->ram + 0x50000, "abcabcabcabc", 12);
}

/* 16-bit index registers wrap and keep their upper halves. */
static void test_string_16_bit(void **state)
{
    struct rig *r = *state;

    rig_real(r);
    GPR(RDI) = 0x1230ffff;
    GPR(RCX) = 0xabcd0003;
    GPR(RAX) = 0x77;
    assert_int_equal(REAL(r, 0xf3, 0xaa), -1);
    assert_int_equal(GPR(RDI), 0x12300002);
    assert_int_equal(GPR(RCX), 0xabcd0000);
    assert_int_equal(r->ram[0xffff], 0x77);
    assert_int_equal(r->ram[0], 0x77);
    assert_int_equal(r->ram[1], 0x77);
}

static void test_ins_outs(void **state)
{
    struct rig *r = *state;

    rig_long(r, 0);
    GPR(RDX) = 0x60;
    GPR(RDI) = 0x50000;
    GPR(RCX) = 2;
    assert_int_equal(RUN(r, 0xf3, 0x6d), -1); /* rep insd */
    assert_int_equal(get64(r, 0x50000), 0xa1b2c3d4a1b2c3d4);
    assert_int_equal(GPR(RCX), 0);
    GPR(RSI) = 0x50000;
    assert_int_equal(RUN(r, 0x66, 0x6f), -1); /* outsw */
    assert_int_equal(r->pio_port, 0x60);
    assert_int_equal(r->pio_value, 0xc3d4);
    GPR(RDI) = 0x500000; /* not mapped: no port is read */
    r->pio_port = 0;
    assert_int_equal(RUN(r, 0x6c), X86_PF_FAULT);
    assert_int_equal(r->pio_port, 0);
}

/* --- locked --- */

/* Across a cache line, and on a page with decoded code: through the exclusive section. */
static void test_locked_slow_path(void **state)
{
    struct rig *r = *state;

    rig_long(r, 0);
    put64(r, 0x5003c, 0x00000001ffffffff);
    GPR(RBX) = 0x5003c;
    GPR(RAX) = 1;
    assert_int_equal(RUN(r, 0xf0, 0x48, 0x01, 0x03), -1); /* lock add [rbx], rax */
    assert_int_equal(get64(r, 0x5003c), 0x0000000200000000);
    r->code_page = 0x60000;
    put32(r, 0x60010, 7);
    GPR(RBX) = 0x60010;
    GPR(RAX) = 7;
    GPR(RCX) = 9;
    assert_int_equal(RUN(r, 0xf0, 0x0f, 0xb1, 0x0b), -1); /* lock cmpxchg [rbx], ecx */
    assert_int_equal(get32(r, 0x60010), 9);
    assert_true(r->cpu.s.rflags & X86_ZF);
    assert_true(r->stores_begun > 0);
    GPR(RAX) = 5;
    assert_int_equal(RUN(r, 0xf0, 0x0f, 0xc1, 0x03), -1); /* lock xadd [rbx], eax */
    assert_int_equal(get32(r, 0x60010), 14);
    assert_int_equal(GPR(RAX), 9);
}

static void test_cmpxchg16b_alignment(void **state)
{
    struct rig *r = *state;

    rig_long(r, 0);
    GPR(RSI) = 0x50008;
    assert_int_equal(RUN(r, 0x48, 0x0f, 0xc7, 0x0e), X86_GP);
    GPR(RSI) = 0x50010;
    GPR(RAX) = GPR(RDX) = 0;
    GPR(RBX) = 1;
    GPR(RCX) = 2;
    assert_int_equal(RUN(r, 0xf0, 0x48, 0x0f, 0xc7, 0x0e), -1);
    assert_int_equal(get64(r, 0x50010), 1);
    assert_int_equal(get64(r, 0x50018), 2);
    assert_int_equal(RUN(r, 0xf0, 0x48, 0x0f, 0xc7, 0x0e), -1);
    assert_false(r->cpu.s.rflags & X86_ZF);
    assert_int_equal(GPR(RAX), 1);
    assert_int_equal(GPR(RDX), 2);
}

/* A read-modify-write of a page that is not there faults as a write. */
static void test_modify_faults_as_write(void **state)
{
    struct rig *r = *state;

    rig_long(r, 0);
    GPR(RBX) = 0x500000;
    assert_int_equal(RUN(r, 0x01, 0x03), X86_PF_FAULT);
    assert_int_equal(r->cpu.fault.error & X86_PFERR_W, X86_PFERR_W);
    assert_int_equal(RUN(r, 0x3b, 0x03), X86_PF_FAULT); /* cmp reads */
    assert_int_equal(r->cpu.fault.error & X86_PFERR_W, 0);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, rig_setup, rig_teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_daa),
        TEST(test_das),
        TEST(test_aaa_aas),
        TEST(test_aam_aad),
        TEST(test_push_wraps_at_16_bits),
        TEST(test_pusha_popa),
        TEST(test_push_segment),
        TEST(test_enter_levels),
        TEST(test_pop_memory),
        TEST(test_popf_privilege),
        TEST(test_v86_needs_iopl),
        TEST(test_branch_limits),
        TEST(test_loop_counts),
        TEST(test_software_interrupts),
        TEST(test_bound),
        TEST(test_string_fault_is_precise),
        TEST(test_string_down_to_a_lower_limit),
        TEST(test_long_repetition_lets_go),
        TEST(test_overlapping_copy),
        TEST(test_string_16_bit),
        TEST(test_ins_outs),
        TEST(test_locked_slow_path),
        TEST(test_cmpxchg16b_alignment),
        TEST(test_modify_faults_as_write),
    };
    return cmocka_run_group_tests_name("integer", tests, NULL, NULL);
}
