/*
 * x86/decode: what is an instruction and what is not, in each mode; operands as insn.h says.
 * The forms themselves are compared with the real CPU by tests/diff.
 */
#include "cpu_rig.h"

#include "x86/decode_int.h"

struct decoded {
    enum x86_decode_result result;
    struct x86_insn insn;
    bool undefined;
};

static struct decoded decode_with(const struct x86_features *features, uint8_t code_size, bool real,
                                  const uint8_t *bytes, size_t length)
{
    const struct x86_decode_mode mode = {.code_size = code_size, .real_or_v86 = real};
    static const uint8_t ud2[] = {0x0f, 0x0b};
    struct x86_decoder *decoder;
    struct x86_insn undefined;
    struct decoded d;

    assert_int_equal(x86_decoder_create(&decoder, features, NULL), 0);
    assert_int_equal(x86_decode(decoder, &mode, ud2, sizeof ud2, &undefined), X86_DECODE_OK);
    d.result = x86_decode(decoder, &mode, bytes, length, &d.insn);
    d.undefined = d.insn.run == undefined.run;
    x86_decoder_destroy(decoder);
    return d;
}

static struct decoded decode_mode(uint8_t code_size, bool real, const uint8_t *bytes, size_t length)
{
    struct x86_features all;
    memset(&all, 0xff, sizeof all);
    return decode_with(&all, code_size, real, bytes, length);
}

#define BYTES(...)           (const uint8_t[]) {__VA_ARGS__}, sizeof((const uint8_t[]) {__VA_ARGS__})
#define DECODE(size, ...)    decode_mode(size, false, BYTES(__VA_ARGS__))
#define DEFINED(size, ...)   assert_false(DECODE(size, __VA_ARGS__).undefined)
#define UNDEFINED(size, ...) assert_true(DECODE(size, __VA_ARGS__).undefined)

/* Fifteen bytes are an instruction, sixteen are #GP, and bytes that are not there are asked for. */
static void test_length_limits(void **state)
{
    uint8_t bytes[16];

    memset(bytes, 0x66, sizeof bytes);
    bytes[14] = 0x90;
    struct decoded d = decode_mode(8, false, bytes, 15);
    assert_int_equal(d.result, X86_DECODE_OK);
    assert_int_equal(d.insn.length, 15);
    bytes[14] = 0x66;
    bytes[15] = 0x90;
    assert_int_equal(decode_mode(8, false, bytes, 16).result, X86_DECODE_TOO_LONG);
    assert_int_equal(decode_mode(8, false, bytes, 15).result, X86_DECODE_TOO_LONG);
    assert_int_equal(decode_mode(8, false, bytes, 14).result, X86_DECODE_TRUNCATED);
    assert_int_equal(DECODE(8, 0x48, 0xb8, 1, 2, 3, 4, 5, 6, 7).result, X86_DECODE_TRUNCATED);
    assert_int_equal(DECODE(8, 0x0f).result, X86_DECODE_TRUNCATED);
}

static void test_too_long_is_gp(void **state)
{
    struct rig *r = *state;

    rig_long(r, 0);
    memset(r->ram + RIG_CODE, 0x66, 15);
    assert_int_equal(rig_step(r), X86_GP);
    assert_int_equal(r->cpu.s.rip, RIG_CODE);
}

/* LOCK needs a lockable instruction with a memory destination. */
static void test_lock(void **state)
{
    DEFINED(8, 0xf0, 0x01, 0x08);             /* lock add [rax], ecx */
    DEFINED(8, 0xf0, 0x87, 0x08);             /* lock xchg [rax], ecx */
    DEFINED(8, 0xf0, 0x0f, 0xc7, 0x08);       /* lock cmpxchg8b [rax] */
    DEFINED(8, 0xf0, 0x48, 0x0f, 0xc7, 0x08); /* lock cmpxchg16b [rax] */
    UNDEFINED(8, 0xf0, 0x01, 0xc8);           /* register destination */
    UNDEFINED(8, 0xf0, 0x03, 0x08);           /* memory is the source */
    UNDEFINED(8, 0xf0, 0x39, 0x08);           /* cmp */
    UNDEFINED(8, 0xf0, 0x89, 0x08);           /* mov */
    UNDEFINED(8, 0xf0, 0x0f, 0xa3, 0x08);     /* bt */
    UNDEFINED(8, 0xf0, 0xd1, 0x20);           /* shl */
    UNDEFINED(8, 0xf0, 0x90);                 /* nop */
    assert_true(DECODE(8, 0xf0, 0x01, 0x08).insn.flags & X86_INSN_LOCK);
}

/* What 64-bit mode took away. */
static void test_invalid_in_64_bit(void **state)
{
    static const uint8_t gone[] = {0x06, 0x07, 0x0e, 0x16, 0x17, 0x1e, 0x1f, 0x27, 0x2f,
                                   0x37, 0x3f, 0x60, 0x61, 0x9a, 0xce, 0xd6, 0xea};

    for (unsigned i = 0; i < sizeof gone; i++) {
        uint8_t bytes[8] = {gone[i]};
        assert_true(decode_mode(8, false, bytes, sizeof bytes).undefined);
        assert_false(decode_mode(4, false, bytes, sizeof bytes).undefined);
    }
    UNDEFINED(8, 0x62, 0x08); /* bound */
    DEFINED(4, 0x62, 0x08);
    UNDEFINED(8, 0xd4, 0x0a); /* aam */
    DEFINED(4, 0xd4, 0x0a);
    UNDEFINED(8, 0xc4, 0x08); /* les */
    DEFINED(4, 0xc4, 0x08);
    UNDEFINED(8, 0x82, 0xc0, 0x01);
    DEFINED(4, 0x82, 0xc0, 0x01);
}

/* MOV to CS does not exist; UD0, UD1, UD2 never will. */
static void test_undefined_for_ever(void **state)
{
    UNDEFINED(8, 0x8e, 0xc8);
    UNDEFINED(8, 0x0f, 0x0b);
    UNDEFINED(8, 0x0f, 0xb9, 0xc0);
    UNDEFINED(8, 0x0f, 0xff, 0xc0);
    UNDEFINED(8, 0x0f, 0xa6, 0xc0);
    UNDEFINED(8, 0x62, 0xf1, 0x7c, 0x48, 0x58, 0xc0); /* EVEX */
    UNDEFINED(8, 0x0f, 0x0d, 0xc0);                   /* prefetch of a register */
}

/* VEX needs protected mode, and does not like REX, LOCK or a second size prefix. */
static void test_vex(void **state)
{
    struct x86_features all;

    memset(&all, 0xff, sizeof all);
    DEFINED(8, 0xc4, 0xe2, 0x78, 0xf2, 0xc1); /* andn eax, eax, ecx */
    DEFINED(4, 0xc4, 0xe2, 0x78, 0xf2, 0xc1);
    assert_true(decode_mode(2, true, BYTES(0xc4, 0xe2, 0x78, 0xf2, 0xc1)).undefined);
    UNDEFINED(8, 0x48, 0xc4, 0xe2, 0x78, 0xf2, 0xc1);
    UNDEFINED(8, 0x66, 0xc4, 0xe2, 0x78, 0xf2, 0xc1);
    UNDEFINED(8, 0xf0, 0xc4, 0xe2, 0x78, 0xf2, 0x01);
    x86_feature_set(&all, X86_FEATURE_BMI1, false);
    assert_true(decode_with(&all, 8, false, BYTES(0xc4, 0xe2, 0x78, 0xf2, 0xc1)).undefined);
}

/* A feature that the CPU does not have is #UD, or the older instruction under the same bytes. */
static void test_features(void **state)
{
    struct x86_features none = {{0}}, all;
    memset(&all, 0xff, sizeof all);

    assert_true(decode_with(&none, 8, false, BYTES(0xf3, 0x0f, 0xb8, 0xc1)).undefined); /* popcnt */
    assert_true(decode_with(&none, 8, false, BYTES(0x0f, 0x38, 0xf0, 0x01)).undefined); /* movbe */
    assert_true(decode_with(&none, 8, false, BYTES(0x9f)).undefined);                   /* lahf */
    assert_false(decode_with(&none, 4, false, BYTES(0x9f)).undefined);
    struct decoded with = decode_with(&all, 8, false, BYTES(0xf3, 0x0f, 0xbd, 0xc1)),
                   without = decode_with(&none, 8, false, BYTES(0xf3, 0x0f, 0xbd, 0xc1)),
                   bsr = decode_with(&none, 8, false, BYTES(0x0f, 0xbd, 0xc1));
    assert_ptr_equal(without.insn.run, bsr.insn.run);
    assert_ptr_not_equal(with.insn.run, bsr.insn.run);
}

/* The hint space: no-operations with any operand, ENDBR and RDSSP among them. */
static void test_hints(void **state)
{
    struct decoded nop = DECODE(8, 0x90);

    assert_ptr_equal(DECODE(8, 0xf3, 0x0f, 0x1e, 0xfa).insn.run, nop.insn.run);       /* endbr64 */
    assert_ptr_equal(DECODE(8, 0xf3, 0x48, 0x0f, 0x1e, 0xc8).insn.run, nop.insn.run); /* rdsspq */
    assert_ptr_equal(DECODE(8, 0x0f, 0x1f, 0x44, 0, 0).insn.run, nop.insn.run);
    assert_ptr_equal(DECODE(8, 0x0f, 0x1a, 0x00).insn.run, nop.insn.run); /* bndldx */
    assert_ptr_equal(DECODE(8, 0x0f, 0x18, 0x08).insn.run, nop.insn.run); /* prefetcht0 */
    assert_ptr_not_equal(DECODE(8, 0x41, 0x90).insn.run, nop.insn.run);   /* xchg r8d, eax */
}

/* Address size, by mode and prefix; a 32-bit one wraps there. */
static void test_address_size(void **state)
{
    assert_int_equal(DECODE(8, 0x8b, 0x01).insn.address_size, 8);
    assert_int_equal(DECODE(8, 0x67, 0x8b, 0x01).insn.address_size, 4);
    assert_int_equal(DECODE(4, 0x8b, 0x01).insn.address_size, 4);
    assert_int_equal(DECODE(4, 0x67, 0x8b, 0x01).insn.address_size, 2);
    assert_int_equal(DECODE(2, 0x8b, 0x01).insn.address_size, 2);
    assert_int_equal(DECODE(2, 0x67, 0x8b, 0x01).insn.address_size, 4);
}

static void test_operands(void **state)
{
    const size_t gpr = offsetof(struct x86_cpu, s.gpr);

    struct x86_insn i = DECODE(8, 0x8a, 0x64, 0x8b, 0xf0).insn; /* mov ah, [rbx+rcx*4-16] */
    assert_int_equal(i.dst, gpr + 1);
    assert_int_equal(i.base, gpr + 8 * X86_RBX);
    assert_int_equal(i.index, gpr + 8 * X86_RCX);
    assert_int_equal(i.scale, 2);
    assert_int_equal(i.disp, -16);
    assert_int_equal(i.seg, X86_DS);
    assert_int_equal(i.size, 1);
    i = DECODE(8, 0x40, 0x8a, 0x25, 4, 0, 0, 0).insn; /* mov spl, [rip+4] */
    assert_int_equal(i.dst, gpr + 8 * X86_RSP);
    assert_int_equal(i.base, offsetof(struct x86_cpu, next_rip));
    assert_int_equal(i.index, offsetof(struct x86_cpu, zero));
    i = DECODE(8, 0x65, 0x48, 0x8b, 0x04, 0x25, 0x28, 0, 0, 0).insn; /* mov rax, gs:[0x28] */
    assert_int_equal(i.seg, X86_GS);
    assert_int_equal(i.base, offsetof(struct x86_cpu, zero));
    assert_int_equal(i.disp, 0x28);
    assert_int_equal(DECODE(8, 0x8b, 0x45, 0).insn.seg, X86_SS); /* [rbp] */
    assert_int_equal((int64_t)DECODE(8, 0x83, 0xc0, 0xff).insn.imm, -1);
}

/* Mod 0 with SIB base 5 is a displacement alone, with REX.B and 32-bit addresses, too. */
static void test_sib_without_base(void **state)
{
    struct x86_insn i = DECODE(8, 0x67, 0x43, 0x8b, 0x04, 0x35, 0x78, 0x56, 0x34, 0x12).insn;
    assert_int_equal(i.base, offsetof(struct x86_cpu, zero));
    assert_int_equal(i.disp, 0x12345678);
}

/* F3 90 is PAUSE and F3 41 90 the exchange with R8 that it is without F3. */
static void test_pause(void **state)
{
    assert_ptr_equal(DECODE(8, 0xf3, 0x41, 0x90).insn.run, DECODE(8, 0x41, 0x90).insn.run);
    assert_ptr_not_equal(DECODE(8, 0xf3, 0x90).insn.run, DECODE(8, 0x41, 0x90).insn.run);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_length_limits),
        cmocka_unit_test_setup_teardown(test_too_long_is_gp, rig_setup, rig_teardown),
        cmocka_unit_test(test_lock),
        cmocka_unit_test(test_invalid_in_64_bit),
        cmocka_unit_test(test_undefined_for_ever),
        cmocka_unit_test(test_vex),
        cmocka_unit_test(test_features),
        cmocka_unit_test(test_hints),
        cmocka_unit_test(test_address_size),
        cmocka_unit_test(test_operands),
        cmocka_unit_test(test_sib_without_base),
        cmocka_unit_test(test_pause),
    };
    return cmocka_run_group_tests_name("decode", tests, NULL, NULL);
}
