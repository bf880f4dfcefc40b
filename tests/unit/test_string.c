/*
 * x86/exec_string: repeated string instructions against a model that goes element by element: all
 * sizes, both directions, any alignment and overlap, across pages, matches anywhere.
 */
#include "cpu_rig.h"

#define AREA      0x50000u
#define AREA_SIZE 0x4000u
#define GPR(name) r->cpu.s.gpr[X86_##name]

enum what { MOVS = 0xa4, CMPS = 0xa6, STOS = 0xaa, LODS = 0xac, SCAS = 0xae };

struct model {
    uint8_t bytes[AREA_SIZE];
    uint64_t rax, rcx, rsi, rdi, flags;
};

static uint32_t seed = 1;

static uint32_t random_below(uint32_t n)
{
    seed = seed * 1664525 + 1013904223;
    return (seed >> 8) % n;
}

static uint64_t get(const struct model *m, uint64_t at, unsigned size)
{
    uint64_t v = 0;
    memcpy(&v, m->bytes + (at - AREA), size);
    return v;
}

static void put(struct model *m, uint64_t at, unsigned size, uint64_t v)
{
    memcpy(m->bytes + (at - AREA), &v, size);
}

/* The status flags of a - b. */
static uint64_t compare(uint64_t a, uint64_t b, unsigned size)
{
    unsigned top = 64 - size * 8;
    uint64_t flags, mask = ~0ull >> top;

    __asm__("cmp %2, %1\n\tpushfq\n\tpop %0" : "=r"(flags) : "r"(a << top), "r"(b << top) : "cc");
    flags &= X86_CF | X86_ZF | X86_SF | X86_OF;
    uint8_t low = (uint8_t)((a - b) & mask);
    flags |= __builtin_parity(low) ? 0 : X86_PF;
    return flags | (((a ^ b ^ (a - b)) & 0x10) ? X86_AF : 0);
}

/* One element; false: the repetition ends. */
static bool element(struct model *m, enum what what, unsigned size, bool repne, int64_t step)
{
    bool si = what == MOVS || what == CMPS || what == LODS, di = what != LODS;
    uint64_t mask = ~0ull >> (64 - size * 8);
    bool on = true;

    if (what == MOVS)
        put(m, m->rdi, size, get(m, m->rsi, size));
    if (what == STOS)
        put(m, m->rdi, size, m->rax);
    if (what == LODS) {
        uint64_t v = get(m, m->rsi, size);
        m->rax = size == 4 ? v : (m->rax & ~mask) | v;
    }
    if (what == CMPS || what == SCAS) {
        uint64_t a = what == CMPS ? get(m, m->rsi, size) : m->rax & mask;
        m->flags = compare(a, get(m, m->rdi, size), size);
        on = (bool)(m->flags & X86_ZF) != repne;
    }
    m->rsi += si ? step : 0;
    m->rdi += di ? step : 0;
    m->rcx--;
    return on;
}

static void run_guest(struct rig *r, enum what what, unsigned size, bool repne)
{
    uint8_t code[4], *p = code;

    *p++ = repne ? 0xf2 : 0xf3;
    if (size == 2)
        *p++ = 0x66;
    if (size == 8)
        *p++ = 0x48;
    *p = (uint8_t)(size == 1 ? what : what + 1);
    if (size == 2) { /* the operand size first is as good, and usual */
        code[0] = 0x66;
        code[1] = repne ? 0xf2 : 0xf3;
    }
    memcpy(r->ram + RIG_CODE, code, sizeof code);
    r->cpu.s.rip = RIG_CODE;
    do
        assert_int_equal(rig_step(r), -1);
    while (r->cpu.s.rip == RIG_CODE);
}

/* Few values, in stretches, so that comparisons go far. */
static void fill(struct model *m, bool varied)
{
    for (unsigned i = 0; i < AREA_SIZE; i++)
        m->bytes[i] = varied ? (uint8_t)(i * 7 + (i >> 8)) : 0x11;
    for (unsigned i = random_below(6); i > 0; i--)
        m->bytes[random_below(AREA_SIZE)] = (uint8_t)random_below(256);
}

static void one_round(struct rig *r, struct model *m)
{
    static const enum what kinds[] = {MOVS, MOVS, CMPS, STOS, LODS, SCAS};
    enum what what = kinds[random_below(6)];
    unsigned size = 1u << random_below(4), most = random_below(3) ? 80 : 0x1400 / size;
    bool repne = random_below(2), backward = random_below(3) == 0;
    uint64_t count = random_below(most), bytes = count * size;
    uint64_t room = AREA_SIZE - bytes - 8;

    fill(m, what == MOVS);
    m->rcx = count;
    m->rax = random_below(3) ? 0x1111111111111111 : 0x12345678abcdef01ull * (random_below(99) + 1);
    m->rsi = AREA + random_below((uint32_t)room);
    m->rdi = AREA + random_below((uint32_t)room);
    if (random_below(3) == 0) /* close together */
        m->rdi = AREA + (m->rsi - AREA + random_below(80)) % room;
    if (backward && count) {
        m->rsi += bytes - size;
        m->rdi += bytes - size;
    }
    m->flags = X86_CF | X86_AF;
    rig_long(r, 3);
    r->cpu.s.rflags = X86_FIXED | m->flags | (backward ? X86_DF : 0);
    GPR(RAX) = m->rax, GPR(RCX) = m->rcx, GPR(RSI) = m->rsi, GPR(RDI) = m->rdi;
    memcpy(r->ram + AREA, m->bytes, AREA_SIZE);
    run_guest(r, what, size, repne);

    int64_t step = backward ? -(int64_t)size : (int64_t)size;
    while (m->rcx && element(m, what, size, repne, step))
        ;
    if (what == LODS && size == 4 && count)
        m->rax = (uint32_t)m->rax;
    assert_int_equal(GPR(RCX), m->rcx);
    assert_int_equal(GPR(RSI), m->rsi);
    assert_int_equal(GPR(RDI), m->rdi);
    assert_int_equal(GPR(RAX), m->rax);
    assert_int_equal(r->cpu.s.rflags & X86_STATUS_FLAGS, m->flags);
    assert_memory_equal(r->ram + AREA, m->bytes, AREA_SIZE);
}

static void test_repeated_against_a_model(void **state)
{
    struct rig *r = *state;
    struct model *m = malloc(sizeof *m);

    for (unsigned i = 0; i < 20000; i++)
        one_round(r, m);
    free(m);
}

/* The destination has no host address to copy to at once: each element is stored by itself. */
static void test_copies_to_a_page_whose_stores_are_watched(void **state)
{
    struct rig *r = *state;

    for (unsigned i = 0; i < 4; i++) {
        unsigned size = 1u << i;
        rig_long(r, 3);
        for (unsigned k = 0; k < 64; k++)
            r->ram[AREA + k] = (uint8_t)(k + i);
        memset(r->ram + AREA + 0x1000, 0, 64);
        r->code_page = AREA + 0x1000;
        r->stores_begun = 0;
        r->cpu.s.rflags = X86_FIXED;
        GPR(RCX) = 5, GPR(RSI) = AREA, GPR(RDI) = AREA + 0x1000;
        run_guest(r, MOVS, size, false);
        assert_int_equal(r->stores_begun, 5);
        assert_memory_equal(r->ram + AREA + 0x1000, r->ram + AREA, 5 * size);
        assert_int_equal(r->ram[AREA + 0x1000 + 5 * size], 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_copies_to_a_page_whose_stores_are_watched, rig_setup,
                                        rig_teardown),
        cmocka_unit_test_setup_teardown(test_repeated_against_a_model, rig_setup, rig_teardown),
    };
    return cmocka_run_group_tests_name("string", tests, NULL, NULL);
}
