/*
 * Translated integer and system instructions against the interpreter's handlers: the same bytes
 * from the same random state, with flags in the host's or in memory before, looked at or lost
 * after, with memory in all states. Each proves that registers, RFLAGS, memory and exceptions are
 * equal, and where it says so that no handler was needed.
 */
#include <stdio.h>

#include "translate_rig.h"
#include "x86/paging.h"

struct random {
    uint64_t state;
};

/* splitmix64 */
static uint64_t next(struct random *r)
{
    uint64_t x = r->state += 0x9e3779b97f4a7c15;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9;
    x = (x ^ x >> 27) * 0x94d049bb133111eb;
    return x ^ x >> 31;
}

static unsigned below(struct random *r, unsigned limit)
{
    return (unsigned)(next(r) % limit);
}

struct code {
    uint8_t byte[64];
    unsigned length;
};

static void put(struct code *c, const void *bytes, unsigned length)
{
    assert_true(c->length + length <= sizeof c->byte);
    memcpy(c->byte + c->length, bytes, length);
    c->length += length;
}

#define CODE(...)                                                                                  \
    (struct code)                                                                                  \
    {                                                                                              \
        {__VA_ARGS__}, sizeof((const uint8_t[]) {__VA_ARGS__})                                     \
    }

/* --- one sequence --- */

#define STACK (RIG_DATA + 0x800)

static void random_state(struct translate_rig *rig, struct random *r)
{
    struct x86_state *s = &rig->before;

    for (unsigned i = 0; i < 16; i++)
        s->gpr[i] = next(r) >> 8 * below(r, 8);
    s->gpr[X86_RSP] = STACK;
    s->gpr[X86_RSI] = RIG_DATA + 0x100;
    s->gpr[X86_RDI] = RIG_DATA + 0x200;
    s->rflags = X86_FIXED | (next(r) & X86_STATUS_FLAGS);
    for (unsigned i = 0; i < 6; i++)
        s->seg[i].selector = (uint16_t)(next(r) & 0xfff0);
    s->kernel_gs_base = next(r) >> 20;
    for (unsigned i = 0; i < 6 * PAGE_SIZE; i++)
        rig->ram[RIG_DATA + i] = (uint8_t)next(r);
    memcpy(rig->ram_before, rig->ram, sizeof rig->ram);
}

static void print_code(const struct code *c)
{
    for (unsigned i = 0; i < c->length; i++)
        print_error(" %02x", c->byte[i]);
}

/* Returns the number of handlers that were called. */
static unsigned compare(struct translate_rig *rig, const struct code *c)
{
    assert_int_not_equal(rig_translate_some(rig, c->byte, c->length), 0);
    rig_by_handlers(rig, c->byte, c->length);
    rig_as_unit(rig, c->byte, c->length);
    const char *difference = rig_difference(rig);
    if (difference) {
        print_error("differs in %s (rip %lx %lx, flags %lx %lx, rax %lx %lx):", difference,
                    rig->after[0].rip, rig->after[1].rip, rig->after[0].rflags,
                    rig->after[1].rflags, rig->after[0].gpr[0], rig->after[1].gpr[0]);
        print_code(c);
        print_error("\n");
        fail();
    }
    return rig->handler_calls;
}

/* With host flags before (add r9, r8) or not, and with flags read behind (sbb r13, r12), or
 * overwritten (xor r13, r13), or neither. Returns how many handlers were called. */
static unsigned compare_around(struct translate_rig *rig, struct random *r, const struct code *what)
{
    static const uint8_t add[] = {0x4d, 0x01, 0xc1}, sbb[] = {0x4d, 0x19, 0xe5},
                         clear[] = {0x4d, 0x31, 0xed};
    unsigned before = below(r, 2), behind = below(r, 3);
    struct code c = {.length = 0};

    if (before)
        put(&c, add, sizeof add);
    put(&c, what->byte, what->length);
    if (behind == 1)
        put(&c, sbb, sizeof sbb);
    if (behind == 2)
        put(&c, clear, sizeof clear);
    return compare(rig, &c);
}

#define ROUNDS 12

/* Warm TLB, nothing faults: no handler. */
static void native(struct translate_rig *rig, struct code c)
{
    struct random r = {c.byte[0] | (uint64_t)c.byte[1] << 8 | (uint64_t)c.byte[2] << 16};

    for (unsigned i = 0; i < ROUNDS; i++) {
        random_state(rig, &r);
        unsigned calls = compare_around(rig, &r, &c);
        if (calls) {
            print_error("handlers called:");
            print_code(&c);
            print_error("\n");
        }
        assert_int_equal(calls, 0);
    }
}

/* --- AH to BH --- */

static bool is_high(unsigned reg)
{
    return reg >= 4;
}

static void high_byte_pairs_without_handlers(void **state)
{
    struct translate_rig *rig = *state;
    static const uint8_t opcodes[] = {0x00, 0x02, 0x08, 0x0a, 0x10, 0x12, 0x18, 0x1a, 0x20, 0x22,
                                      0x28, 0x2a, 0x30, 0x32, 0x38, 0x3a, 0x84, 0x86, 0x88, 0x8a};

    for (unsigned i = 0; i < sizeof opcodes; i++)
        for (unsigned modrm = 0xc0; modrm < 0x100; modrm++)
            if (is_high(modrm & 7) || is_high(modrm >> 3 & 7))
                native(rig, CODE(opcodes[i], (uint8_t)modrm));
    for (unsigned modrm = 0xc0; modrm < 0x100; modrm++) {
        if (!is_high(modrm & 7) && !is_high(modrm >> 3 & 7))
            continue;
        native(rig, CODE(0x0f, 0xb0, (uint8_t)modrm)); /* CMPXCHG */
        native(rig, CODE(0x0f, 0xc0, (uint8_t)modrm)); /* XADD */
    }
}

static void high_byte_with_immediates_without_handlers(void **state)
{
    struct translate_rig *rig = *state;

    for (unsigned digit = 0; digit < 8; digit++)
        for (unsigned reg = 4; reg < 8; reg++) {
            uint8_t modrm = (uint8_t)(0xc0 | digit << 3 | reg);
            native(rig, CODE(0x80, modrm, 0x93));
            native(rig, CODE(0xc0, modrm, 0x03));
            native(rig, CODE(0xc0, modrm, 0x20));
            native(rig, CODE(0xd0, modrm));
            native(rig, CODE(0xd2, modrm));
            if (digit < 2)
                native(rig, CODE(0xfe, modrm));
            if (digit < 6 && digit != 1)
                native(rig, digit ? CODE(0xf6, modrm) : CODE(0xf6, modrm, 0x55));
            if (digit == 0)
                native(rig, CODE(0xc6, modrm, 0x81));
        }
    for (unsigned reg = 4; reg < 8; reg++) {
        native(rig, CODE((uint8_t)(0xb0 | reg), 0x7e));
        for (unsigned condition = 0; condition < 16; condition++)
            native(rig, CODE(0x0f, (uint8_t)(0x90 | condition), (uint8_t)(0xc0 | reg)));
    }
}

/* Not into ESP: that one is elsewhere. */
static void high_byte_extended_without_handlers(void **state)
{
    struct translate_rig *rig = *state;

    for (unsigned to = 0; to < 8; to++)
        for (unsigned reg = 4; reg < 8; reg++) {
            uint8_t modrm = (uint8_t)(0xc0 | to << 3 | reg);
            if (to == X86_RSP)
                continue;
            native(rig, CODE(0x0f, 0xb6, modrm));
            native(rig, CODE(0x0f, 0xbe, modrm));
            native(rig, CODE(0x66, 0x0f, 0xb6, modrm));
            native(rig, CODE(0x66, 0x0f, 0xbe, modrm));
            native(rig, CODE(0xf2, 0x0f, 0x38, 0xf0, modrm));
        }
}

static void high_byte_with_memory_without_handlers(void **state)
{
    struct translate_rig *rig = *state;
    static const uint8_t opcodes[] = {0x00, 0x02, 0x08, 0x0a, 0x10, 0x12, 0x18, 0x1a, 0x20, 0x22,
                                      0x28, 0x2a, 0x30, 0x32, 0x38, 0x3a, 0x84, 0x88, 0x8a};

    for (unsigned i = 0; i < sizeof opcodes; i++)
        for (unsigned reg = 4; reg < 8; reg++) {
            native(rig, CODE(opcodes[i], (uint8_t)(reg << 3 | X86_RSI)));
            native(rig, CODE(opcodes[i], (uint8_t)(0x40 | reg << 3 | X86_RDI), 0x7f));
            native(rig, CODE(opcodes[i], (uint8_t)(0x44 | reg << 3), 0x24, 0x11)); /* [rsp+17] */
        }
    native(rig, CODE(0xf0, 0x00, 0x26)); /* lock add [rsi], ah */
    native(rig, CODE(0xf0, 0x20, 0x3e)); /* lock and [rsi], bh */
}

/* --- flags and system registers --- */

static void flags_through_ah_without_handlers(void **state)
{
    native(*state, CODE(0x9f));
    native(*state, CODE(0x9e));
    native(*state, CODE(0x9f, 0x9e));
    native(*state, CODE(0x9e, 0x9f));
}

static void pushf_and_popf_without_handlers(void **state)
{
    struct translate_rig *rig = *state;

    native(rig, CODE(0x9c));
    native(rig, CODE(0xfc, 0x9c));       /* cld; pushf */
    native(rig, CODE(0xfd, 0x9c, 0xfc)); /* std; pushf; cld */
    rig_set_cpl(rig, 0);
    native(rig, CODE(0x9c));
    native(rig, CODE(0x9c, 0x9d));
    native(rig, CODE(0x9c, 0xfa, 0x9d)); /* pushf; cli; popf */
    native(rig, CODE(0xfa, 0x9c, 0x5a)); /* cli; pushf; pop rdx */
}

/* Any image, at both privilege levels; those with TF end in the handler. */
static void popf_loads_what_it_may(void **state)
{
    struct translate_rig *rig = *state;
    struct random r = {7};
    unsigned natives = 0;

    for (unsigned i = 0; i < 400; i++) {
        rig_set_cpl(rig, i & 1 ? 3 : 0);
        random_state(rig, &r);
        uint64_t image = next(&r);
        if (i & 2)
            image &= ~(X86_TF | X86_AC);
        store_le64(rig->ram_before + STACK, image);
        if (i & 4)
            rig->before.rflags |= X86_IF | X86_ID;
        struct code c = CODE(0x9d);
        natives += !compare_around(rig, &r, &c);
    }
    assert_in_range(natives, 100, 200); /* half of those at CPL 0, and the lucky */
}

static void kernel_only_ones_without_handlers(void **state)
{
    struct translate_rig *rig = *state;

    rig_set_cpl(rig, 0);
    native(rig, CODE(0xfa));                                     /* cli */
    native(rig, CODE(0xfb, 0x90));                               /* sti; nop */
    native(rig, CODE(0xfb, 0x48, 0x01, 0xd8));                   /* sti; add rax, rbx */
    native(rig, CODE(0xfb, 0xfa));                               /* sti; cli */
    native(rig, CODE(0xfb, 0xfb, 0x90));                         /* sti; sti; nop */
    native(rig, CODE(0x9c, 0xfb, 0x9d));                         /* pushf; sti; popf */
    native(rig, CODE(0xfb, 0x8b, 0x06));                         /* sti; mov eax, [rsi] */
    native(rig, CODE(0x0f, 0x01, 0xf8));                         /* swapgs */
    native(rig, CODE(0x0f, 0x01, 0xf8, 0x65, 0x48, 0x8d, 0x06)); /* swapgs; lea rax, gs:[rsi] */
}

static void kernel_only_ones_fault_for_users(void **state)
{
    struct translate_rig *rig = *state;
    struct random r = {8};
    const struct code codes[] = {CODE(0xfa), CODE(0xfb, 0x90), CODE(0x0f, 0x01, 0xf8)};

    for (unsigned i = 0; i < ARRAY_COUNT(codes); i++) {
        random_state(rig, &r);
        compare(rig, &codes[i]);
        assert_int_equal(rig->fault[1].vector, X86_GP);
    }
}

/* STI at the end of a unit or before a branch is the handler's, whose shadow the engine keeps. */
static void sti_in_odd_places(void **state)
{
    struct translate_rig *rig = *state;
    struct random r = {9};
    const struct code codes[] = {CODE(0xfb), CODE(0xfb, 0xeb, 0x00), CODE(0xfb, 0x75, 0x01, 0x90),
                                 CODE(0xfb, 0xe8, 0, 0, 0, 0)};

    rig_set_cpl(rig, 0);
    for (unsigned i = 0; i < ARRAY_COUNT(codes); i++) {
        random_state(rig, &r);
        assert_int_equal(compare(rig, &codes[i]), 1);
    }
}

/* The caller is returned to where an interrupt may be taken: not sooner, not later. */
static void attention_is_looked_at_behind_sti_and_popf(void **state)
{
    struct translate_rig *rig = *state;
    struct random r = {10};
    const struct {
        struct code code;
        unsigned stop;
    } cases[] = {
        {CODE(0xfb, 0x90, 0x90, 0x90), 2},
        {CODE(0x4d, 0x01, 0xc1, 0xfb, 0x4d, 0x01, 0xc1, 0x90), 7},
        {CODE(0x9c, 0x9d, 0x90), 2},
        {CODE(0xfa, 0x90, 0x90), 3},
    };
    uint64_t *attention = (uint64_t *)(void *)(rig->cpu + 1);

    rig_set_cpl(rig, 0);
    for (unsigned i = 0; i < ARRAY_COUNT(cases); i++) {
        random_state(rig, &r);
        assert_true(rig_translate(rig, cases[i].code.byte, cases[i].code.length));
        *attention = 1;
        rig_as_unit(rig, NULL, 0);
        *attention = 0;
        assert_int_equal(rig->after[1].rip, RIG_CODE + cases[i].stop);
        rig_by_handlers(rig, cases[i].code.byte, cases[i].stop);
        assert_null(rig_difference(rig));
    }
}

static void selectors_without_handlers(void **state)
{
    for (unsigned segment = 0; segment < 6; segment++) {
        for (unsigned reg = 0; reg < 8; reg++) {
            uint8_t modrm = (uint8_t)(0xc0 | segment << 3 | reg);
            native(*state, CODE(0x8c, modrm));
            native(*state, CODE(0x48, 0x8c, modrm));
            native(*state, CODE(0x66, 0x8c, modrm));
            native(*state, CODE(0x41, 0x8c, modrm));
            native(*state, CODE(0x49, 0x8c, modrm));
            native(*state, CODE(0x66, 0x41, 0x8c, modrm));
        }
        native(*state, CODE(0x8c, (uint8_t)(segment << 3 | X86_RSI)));
    }
}

/* All registers; R10 and R14 live in memory. */
static void control_registers_and_bases(void **state)
{
    struct translate_rig *rig = *state;
    static const uint8_t numbers[] = {0, 2, 3, 4};
    struct random r = {17};

    for (unsigned reg = 0; reg < 16; reg++) {
        uint8_t b = (uint8_t)(0x40 | reg >> 3), modrm = (uint8_t)(0xc0 | (reg & 7));
        rig_set_cpl(rig, 0);
        for (unsigned i = 0; i < sizeof numbers; i++)
            native(rig, CODE(b, 0x0f, 0x20, (uint8_t)(modrm | numbers[i] << 3)));
        for (unsigned i = 0; i < 8; i++) {
            struct code c =
                CODE(0xf3, (uint8_t)(b | (i & 1) << 3), 0x0f, 0xae, (uint8_t)(modrm | i >> 1 << 3));
            rig_set_cpl(rig, below(&r, 2) ? 3 : 0);
            rig->before.cr4 |= X86_CR4_FSGSBASE;
            random_state(rig, &r);
            rig->before.gpr[reg] >>= below(&r, 2) ? 20 : 0;
            bool canonical = i < 4 || !(i & 1) || x86_canonical(rig->before.gpr[reg]);
            unsigned calls = compare_around(rig, &r, &c);
            if (reg != X86_R9) /* which compare_around may change before */
                assert_int_equal(calls, !canonical);
            rig->before.cr4 &= ~X86_CR4_FSGSBASE;
            compare(rig, &c);
            assert_int_equal(rig->fault[1].vector, X86_UD);
        }
    }
}

static void pauses_are_counted(void **state)
{
    struct translate_rig *rig = *state;
    struct random r = {18};
    struct code c = CODE(0xf3, 0x90, 0xf3, 0x90);

    random_state(rig, &r);
    rig->cpu->pauses = 0;
    for (unsigned i = 0; i < X86_PAUSES_TO_YIELD; i++) {
        unsigned before = rig->cpu->pauses;
        unsigned calls = compare(rig, &c); /* runs it twice */
        assert_int_equal(rig->cpu->pauses, (before + 4) % X86_PAUSES_TO_YIELD);
        assert_int_equal(calls, rig->cpu->pauses == 0);
    }
}

/* SMAP: the data's pages are a user's. Without a translation in the TLB at first. */
static void stac_and_clac(void **state)
{
    struct translate_rig *rig = *state;
    struct random r = {19};
    const struct {
        struct code code;
        bool faults;
    } cases[] = {
        {CODE(0x0f, 0x01, 0xcb, 0x8b, 0x06, 0x01, 0x07, 0x8b, 0x4e, 0x10, 0x0f, 0x01, 0xca), false},
        {CODE(0x0f, 0x01, 0xca, 0x0f, 0x01, 0xcb, 0x0f, 0x01, 0xcb, 0x8b, 0x06), false},
        {CODE(0x0f, 0x01, 0xcb, 0x01, 0x06, 0x0f, 0x01, 0xca, 0x01, 0x06), true},
        {CODE(0x0f, 0x01, 0xcb, 0x8b, 0x06, 0x0f, 0x01, 0xca, 0x03, 0x46, 0x04), true},
        {CODE(0x8b, 0x06), true},
        {CODE(0x0f, 0x01, 0xca, 0x8b, 0x06), true},
    };

    rig_set_cpl(rig, 0);
    for (unsigned i = 0; i < ARRAY_COUNT(cases) * 20; i++) {
        const struct code *c = &cases[i % ARRAY_COUNT(cases)].code;
        bool smap = below(&r, 2), ac = below(&r, 2);
        rig->cold = smap && !ac;
        random_state(rig, &r);
        rig->before.cr4 = (rig->before.cr4 & ~X86_CR4_SMAP) | (smap ? X86_CR4_SMAP : 0);
        rig->before.rflags |= ac ? X86_AC : 0;
        compare_around(rig, &r, c);
        bool open = c->byte[0] == 0x8b && ac;
        assert_int_equal(rig->fault[1].kind != X86_EVENT_NONE,
                         smap && !open && cases[i % ARRAY_COUNT(cases)].faults);
        assert_int_equal(rig->cpu->mmu, x86_mmu_at(rig->cpu, 0));
        assert_ptr_equal(rig->cpu->tlb_now, rig->cpu->tlb[rig->cpu->mmu]);
    }
}

static void pop_to_the_stack_pointer_without_handlers(void **state)
{
    native(*state, CODE(0x5c));
    native(*state, CODE(0x54, 0x5c)); /* push rsp; pop rsp */
}

/* FF /6 and 8F /0, which compilers do not use for registers. */
static void push_and_pop_of_registers_by_modrm(void **state)
{
    for (unsigned reg = 0; reg < 16; reg++) {
        uint8_t rex = (uint8_t)(0x40 | reg >> 3), low = reg & 7;
        native(*state, CODE(rex, 0xff, (uint8_t)(0xf0 | low))); /* push */
        native(*state, CODE(rex, 0x8f, (uint8_t)(0xc0 | low))); /* pop */
        if (reg != X86_RSP)                                     /* in a group */
            native(*state, CODE(0x50, rex, 0x8f, (uint8_t)(0xc0 | low), 0x5a));
    }
}

/* --- memory --- */

/* BT, BTS, BTR, BTC of three sizes; R10 lives in memory. */
static struct code bit_string(unsigned kind, unsigned size, bool lock, unsigned reg)
{
    static const uint8_t opcodes[] = {0xa3, 0xab, 0xb3, 0xbb};
    struct code c = {.length = 0};

    if (lock)
        c.byte[c.length++] = 0xf0;
    if (size == 2)
        c.byte[c.length++] = 0x66;
    c.byte[c.length++] = (uint8_t)(0x40 | (size == 8) << 3 | reg >> 3 << 2);
    c.byte[c.length++] = 0x0f;
    c.byte[c.length++] = opcodes[kind];
    c.byte[c.length++] = (uint8_t)((reg & 7) << 3 | X86_RDI);
    return c;
}

/* Signed bit numbers from one end of the page to the other, and all others, which may fault. */
static void bit_strings(void **state)
{
    static const uint8_t registers[] = {X86_RAX, X86_RCX, 10, 12};
    struct translate_rig *rig = *state;
    struct random r = {11};

    for (unsigned i = 0; i < 4 * 3 * 2 * 4 * 10; i++) {
        unsigned kind = i & 3, reg = registers[i >> 2 & 3], size = 2u << (i >> 5) % 3;
        bool lock = (i >> 4 & 1) && kind, wild = below(&r, 4) == 0;
        struct code c = bit_string(kind, size, lock, reg);
        random_state(rig, &r);
        uint64_t *number = &rig->before.gpr[reg];
        *number = wild ? next(&r) >> below(&r, 64) : below(&r, 0xc00) - 0x200ull;
        if (size < 8)
            *number = (next(&r) << 8 * size) | (*number & ((1ull << 8 * size) - 1));
        unsigned calls = compare_around(rig, &r, &c);
        assert_true(wild || calls == 0);
    }
}

static void pair_exchanges(void **state)
{
    struct translate_rig *rig = *state;
    struct random r = {12};

    for (unsigned i = 0; i < 200; i++) {
        bool wide = i & 1, lock = i & 2, equal = i & 4, aligned = below(&r, 4);
        struct code c = {.length = 0};
        random_state(rig, &r);
        if (lock)
            put(&c, (const uint8_t[]) {0xf0}, 1);
        if (wide)
            put(&c, (const uint8_t[]) {0x48}, 1);
        put(&c, (const uint8_t[]) {0x0f, 0xc7, 0x0f}, 3);
        rig->before.gpr[X86_RDI] += aligned ? 0 : 1 + below(&r, 15);
        const uint8_t *p = rig->ram_before + rig->before.gpr[X86_RDI];
        if (equal) {
            rig->before.gpr[X86_RAX] = wide ? load_le64(p) : load_le32(p);
            rig->before.gpr[X86_RDX] = wide ? load_le64(p + 8) : load_le32(p + 4);
        }
        unsigned calls = compare_around(rig, &r, &c);
        if (aligned)
            assert_int_equal(calls, 0);
    }
}

static void string_elements(void **state)
{
    struct translate_rig *rig = *state;
    static const uint8_t opcodes[] = {0xa4, 0xa5, 0xaa, 0xab, 0xac, 0xad};

    for (unsigned i = 0; i < sizeof opcodes; i++) {
        native(rig, CODE(opcodes[i]));
        native(rig, CODE(0x66, opcodes[i]));
        native(rig, CODE(0x48, opcodes[i]));
        native(rig, CODE(opcodes[i], opcodes[i]));
        /* std; string; cld: downwards, by the handler */
        struct code down = CODE(0xfd, 0x48, opcodes[i], 0xfc);
        struct random r = {i};
        random_state(rig, &r);
        assert_int_equal(compare(rig, &down), 1);
    }
}

/* With REP: counts and places so that most end in their page, upwards but for some. */
static void repeated_strings(void **state)
{
    struct translate_rig *rig = *state;
    static const uint8_t opcodes[] = {0xa4, 0xa5, 0xaa, 0xab};
    struct random r = {15};
    unsigned natives = 0;

    for (unsigned i = 0; i < 600; i++) {
        unsigned opcode = opcodes[i & 3], size = opcode & 1 ? 2u << (i >> 2) % 3 : 1;
        struct code c = {.length = 0};
        random_state(rig, &r);
        if (below(&r, 8) == 0)
            put(&c, (const uint8_t[]) {0xfd}, 1);
        if (size == 2)
            put(&c, (const uint8_t[]) {0x66}, 1);
        put(&c, (const uint8_t[]) {0xf3, size == 8 ? 0x48 : 0x40, (uint8_t)opcode, 0xfc}, 4);
        rig->before.gpr[X86_RCX] = below(&r, 8) ? below(&r, 64) : next(&r) >> 1;
        rig->before.gpr[X86_RSI] = RIG_DATA + below(&r, 0x2100);
        rig->before.gpr[X86_RDI] =
            below(&r, 2) ? rig->before.gpr[X86_RSI] + below(&r, 32) : RIG_DATA + below(&r, 0x1100);
        if (below(&r, 16) == 0)
            rig->before.gpr[X86_RCX] = 4096 / size;
        if (below(&r, 16) == 0)
            rig->before.gpr[X86_RDI] = RIG_DATA;
        natives += compare_around(rig, &r, &c) == 0;
    }
    assert_in_range(natives, 300, 550);
}

static void page_fills_without_handlers(void **state)
{
    struct translate_rig *rig = *state;
    struct random r = {16};
    const struct code codes[] = {CODE(0xf3, 0x48, 0xab), CODE(0xf3, 0xaa), CODE(0xf3, 0x48, 0xa5)};

    for (unsigned i = 0; i < ARRAY_COUNT(codes); i++) {
        random_state(rig, &r);
        rig->before.gpr[X86_RCX] = i == 1 ? 4096 : 512;
        rig->before.gpr[X86_RDI] = RIG_DATA;
        rig->before.gpr[X86_RSI] = RIG_DATA + 0x1000;
        assert_int_equal(compare_around(rig, &r, &codes[i]), 0);
    }
}

static void loops_without_handlers(void **state)
{
    struct translate_rig *rig = *state;
    struct random r = {13};

    for (unsigned i = 0; i < 200; i++) {
        struct code c = CODE((uint8_t)(0xe0 | (i & 3)), 0x03, 0x48, 0xff, 0xc0);
        random_state(rig, &r);
        rig->before.gpr[X86_RCX] = below(&r, 3);
        if (i & 4)
            c.byte[1] = 0x80; /* out of the page */
        assert_int_equal(compare_around(rig, &r, &c), 0);
    }
}

/* As on AMD's processors F3 makes LOOPE of LOOPNE, and F2 the other way round; the last one wins.
 */
static void loops_with_prefixes(void **state)
{
    static const uint8_t prefixes[][2] = {{0xf3, 0x3e}, {0xf2, 0x3e}, {0xf2, 0xf3}, {0xf3, 0xf2}};
    struct translate_rig *rig = *state;
    struct random r = {14};

    for (unsigned i = 0; i < 400; i++) {
        const uint8_t *prefix = prefixes[i % 4];
        struct code c =
            CODE(prefix[0], prefix[1], (uint8_t)(0xe0 | (i >> 2 & 3)), 0x03, 0x48, 0xff, 0xc0);
        random_state(rig, &r);
        rig->before.gpr[X86_RCX] = below(&r, 3);
        compare(rig, &c);
    }
}

/* Where the operand lies makes the difference: at a page's end, unaligned, read-only, absent. */
static void memory_in_all_states(void **state)
{
    static const uint64_t places[] = {
        RIG_DATA + 0xffc,      RIG_DATA + 0xff9,   RIG_DATA + 0x1004,    RIG_READONLY + 0x10,
        RIG_READONLY - 4,      RIG_ABSENT + 0x100, RIG_ABSENT - 4,       RIG_ABSENT + 4,
        0x0000800000000000ull, RIG_DATA + 1,       0xfffffffffffffffcull};
    const struct code codes[] = {
        CODE(0x9c),                               /* pushf */
        CODE(0x9d),                               /* popf */
        CODE(0x5c),                               /* pop rsp */
        CODE(0x54),                               /* push rsp */
        CODE(0x8c, 0x1f),                         /* mov [rdi], ds */
        CODE(0x48, 0xab),                         /* stosq */
        CODE(0x48, 0xa5),                         /* movsq */
        CODE(0x48, 0xad),                         /* lodsq */
        CODE(0xf0, 0x48, 0x0f, 0xab, 0x07),       /* lock bts [rdi], rax */
        CODE(0x48, 0x0f, 0xb3, 0x07),             /* btr [rdi], rax */
        CODE(0x0f, 0xa3, 0x07),                   /* bt [rdi], eax */
        CODE(0xf0, 0x48, 0x0f, 0xc7, 0x0f),       /* lock cmpxchg16b [rdi] */
        CODE(0xf0, 0x0f, 0xc7, 0x0f),             /* lock cmpxchg8b [rdi] */
        CODE(0x88, 0x27),                         /* mov [rdi], ah */
        CODE(0x02, 0x37),                         /* add dh, [rdi] */
        CODE(0xfb, 0x48, 0x01, 0x07, 0x48, 0x90), /* sti; add [rdi], rax; nop */
    };
    struct translate_rig *rig = *state;
    struct random r = {14};

    for (unsigned i = 0; i < ARRAY_COUNT(codes) * ARRAY_COUNT(places) * 8; i++) {
        const struct code *c = &codes[i % ARRAY_COUNT(codes)];
        uint64_t at = places[i / ARRAY_COUNT(codes) % ARRAY_COUNT(places)];
        rig_set_cpl(rig, below(&r, 2) && c->byte[0] != 0xfb ? 3 : 0);
        rig->cold = below(&r, 4) == 0;
        random_state(rig, &r);
        rig->before.gpr[X86_RSP] = at;
        rig->before.gpr[X86_RDI] = at;
        if (below(&r, 2))
            rig->before.gpr[X86_RSI] = at;
        rig->before.gpr[X86_RAX] &= 63;
        compare_around(rig, &r, c);
    }
    rig->cold = false;
}

/* --- a walk that is a safe point --- */

#define DEVICE_TABLE  0x80000000u /* no RAM */
#define BEHIND_DEVICE 0x200000u   /* linear, translated by that table */

/* The table's entries. While it is read, another thread gives the first data page other RAM. */
static uint64_t device_entry(struct translate_rig *rig)
{
    if (!rig->moved) {
        rig->moved = true;
        x86_tlb_flush(rig->cpu, false);
    }
    return (RIG_DATA + 0x3000) | 0x67;
}

/*
 * A group's fill walks page tables in a device; meanwhile the host address that another group of
 * the unit holds is taken away. What follows must not use it.
 */
static void host_addresses_taken_away_in_a_groups_walk_are_not_used(void **state)
{
    static const uint8_t code[] = {
        0x44, 0x8b, 0x06,       /* mov r8d, [rsi] */
        0x8b, 0x0f,             /* mov ecx, [rdi] */
        0x8b, 0x57, 0x08,       /* mov edx, [rdi + 8] */
        0x89, 0x5e, 0x04,       /* mov [rsi + 4], ebx */
        0x44, 0x8b, 0x4e, 0x08, /* mov r9d, [rsi + 8] */
    };
    struct translate_rig *rig = *state;
    struct random r = {20};

    random_state(rig, &r);
    store_le64(rig->ram_before + RIG_TABLES + 0x2000 + (BEHIND_DEVICE >> 21) * 8,
               DEVICE_TABLE | 0x27);
    rig->before.gpr[X86_RDI] = BEHIND_DEVICE + 0x40;
    rig->device_read = device_entry;
    assert_true(rig_translate(rig, code, sizeof code));
    assert_int_equal(rig->translator->group_count, 2);
    rig_by_handlers(rig, code, sizeof code);
    assert_true(rig->moved);
    rig_as_unit(rig, code, sizeof code);
    assert_true(rig->moved);
    assert_int_equal(rig->after[1].rip, RIG_CODE + sizeof code);
    assert_int_equal(load_le32(rig->ram + RIG_DATA + 0x4000 + 0x104),
                     (uint32_t)rig->before.gpr[X86_RBX]);
    assert_null(rig_difference(rig));
}

/* The walk has set a bit in a table that lies in our own code's page: the unit is dropped. */
static uint64_t entry_beside_code(struct translate_rig *rig)
{
    rig->moved = true;
    rig->cpu->end_block = true;
    return (RIG_DATA + 0x3000) | 0x67;
}

static void a_unit_that_its_groups_walk_drops_is_not_resumed(void **state)
{
    static const uint8_t code[] = {
        0x44, 0x8b, 0x06, /* mov r8d, [rsi] */
        0x8b, 0x0f,       /* mov ecx, [rdi] */
        0x8b, 0x57, 0x08, /* mov edx, [rdi + 8] */
    };
    struct translate_rig *rig = *state;
    struct random r = {21};
    struct x86_unit_exit out;

    random_state(rig, &r);
    store_le64(rig->ram_before + RIG_TABLES + 0x2000 + (BEHIND_DEVICE >> 21) * 8,
               DEVICE_TABLE | 0x27);
    rig->before.gpr[X86_RDI] = BEHIND_DEVICE + 0x40;
    rig->device_read = entry_beside_code;
    assert_true(rig_translate(rig, code, sizeof code));
    assert_int_equal(rig->translator->group_count, 2);
    rig_begin(rig, 1);
    x86_unit_choose_key(rig->translator, rig->cpu, rig->unit->mode);
    x86_unit_run(rig->translator, rig->cpu, rig->unit, &out);
    assert_true(rig->moved);
    assert_true(out.plain);
    assert_int_equal(rig->cpu->s.rip, RIG_CODE + 3);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, rig_setup, rig_teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(high_byte_pairs_without_handlers),
        TEST(high_byte_with_immediates_without_handlers),
        TEST(high_byte_extended_without_handlers),
        TEST(high_byte_with_memory_without_handlers),
        TEST(flags_through_ah_without_handlers),
        TEST(pushf_and_popf_without_handlers),
        TEST(popf_loads_what_it_may),
        TEST(kernel_only_ones_without_handlers),
        TEST(kernel_only_ones_fault_for_users),
        TEST(sti_in_odd_places),
        TEST(attention_is_looked_at_behind_sti_and_popf),
        TEST(selectors_without_handlers),
        TEST(pop_to_the_stack_pointer_without_handlers),
        TEST(push_and_pop_of_registers_by_modrm),
        TEST(bit_strings),
        TEST(pair_exchanges),
        TEST(string_elements),
        TEST(repeated_strings),
        TEST(page_fills_without_handlers),
        TEST(control_registers_and_bases),
        TEST(pauses_are_counted),
        TEST(stac_and_clac),
        TEST(loops_without_handlers),
        TEST(loops_with_prefixes),
        TEST(memory_in_all_states),
        TEST(host_addresses_taken_away_in_a_groups_walk_are_not_used),
        TEST(a_unit_that_its_groups_walk_drops_is_not_resumed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
