/*
 * x86 delivery of interrupts and exceptions: frames in each mode, stack switches, checks and their
 * error codes, double and triple faults (SDM vol. 3 chapter 6), and IRET back again.
 */
#include "cpu_rig.h"

#define HANDLER 0x21000u
#define INNER   0x38000u /* top of the ring 0 stack */

static const struct x86_event divide = {.kind = X86_EVENT_EXCEPTION, .vector = X86_DE};

static struct x86_event error_event(uint8_t vector, uint32_t error)
{
    return (struct x86_event) {
        .kind = X86_EVENT_EXCEPTION, .vector = vector, .has_error = true, .error = error};
}

static struct x86_event page_fault(uint64_t la)
{
    struct x86_event e = error_event(X86_PF_FAULT, 2);
    e.has_payload = true;
    e.payload = la;
    return e;
}

/* A gate of the IDT: attr as in the descriptor's byte 5. */
static void put_gate(struct rig *r, unsigned vector, uint16_t selector, uint32_t offset,
                     uint8_t attr)
{
    put64(r, RIG_IDT + vector * 8,
          (offset & 0xffff) | (uint64_t)selector << 16 | (uint64_t)attr << 40 |
              (uint64_t)(offset >> 16) << 48);
}

static void put_gate64(struct rig *r, unsigned vector, uint16_t selector, uint64_t offset,
                       uint8_t attr, unsigned ist)
{
    put64(r, RIG_IDT + vector * 16,
          (offset & 0xffff) | (uint64_t)selector << 16 | (uint64_t)ist << 32 |
              (uint64_t)attr << 40 | (offset >> 16 & 0xffff) << 48);
    put64(r, RIG_IDT + vector * 16 + 8, offset >> 32);
}

/* --- real mode --- */

static void test_real_mode(void **state)
{
    struct rig *r = *state;
    struct x86_cpu *cpu = &r->cpu;

    for (unsigned i = 0; i < 6; i++)
        cpu->s.seg[i] = (struct x86_segment) {
            .base = 0x20000, .limit = 0xffff, .selector = 0x2000, .attr = 0x93};
    cpu->s.idtr = (struct x86_table_register) {.base = 0, .limit = 0x3ff};
    cpu->s.rip = 0x123;
    cpu->s.gpr[X86_RSP] = 0xaaaa0008;
    cpu->s.rflags = X86_FIXED | X86_IF | X86_TF | X86_CF;
    x86_cpu_update_mode(cpu);
    put32(r, 0x20 * 4, 0x30001234);
    struct x86_event irq = {.kind = X86_EVENT_INTERRUPT, .vector = 0x20};
    assert_int_equal(x86_deliver(cpu, &irq), X86_OK);
    assert_int_equal(cpu->s.rip, 0x1234);
    assert_int_equal(cpu->s.seg[X86_CS].base, 0x30000);
    assert_int_equal(cpu->s.gpr[X86_RSP], 0xaaaa0002);
    assert_int_equal(get16(r, 0x20002), 0x123);
    assert_int_equal(get16(r, 0x20004), 0x2000);
    assert_int_equal(get16(r, 0x20006), X86_FIXED | X86_IF | X86_TF | X86_CF);
    assert_int_equal(cpu->s.rflags, X86_FIXED | X86_CF);

    PUT_CODE(r, 0x31234, 0xcf); /* iret */
    assert_int_equal(rig_step(r), -1);
    assert_int_equal(cpu->s.rip, 0x123);
    assert_int_equal(cpu->s.seg[X86_CS].base, 0x20000);
    assert_int_equal(cpu->s.rflags, X86_FIXED | X86_IF | X86_TF | X86_CF);
    assert_int_equal(cpu->s.gpr[X86_RSP], 0xaaaa0008);
}

/* --- 32-bit protected mode --- */

static void protected_world(struct rig *r, unsigned cpl)
{
    rig_protected(r, cpl);
    put_gate(r, X86_DE, SEL_CODE0, HANDLER, 0x8e);
    put_gate(r, X86_GP, SEL_CODE0, HANDLER + 0x10, 0x8e);
    put_gate(r, X86_PF_FAULT, SEL_CODE0, HANDLER + 0x20, 0x8f);
    put_gate(r, X86_DF_FAULT, SEL_CODE0, HANDLER + 0x30, 0x8e);
    put_gate(r, X86_NP, SEL_CODE0, HANDLER + 0x40, 0x8e);
    put_gate(r, X86_TS, SEL_CODE0, HANDLER + 0x50, 0x8e);
    put_gate(r, X86_SS_FAULT, SEL_CODE0, HANDLER + 0x60, 0x8e);
    put32(r, RIG_TSS + 4, INNER);
    put16(r, RIG_TSS + 8, SEL_DATA0);
    r->cpu.s.rflags = X86_FIXED | X86_IF;
}

static void test_same_level(void **state)
{
    struct rig *r = *state;
    struct x86_event gp = error_event(X86_GP, 0x50);

    protected_world(r, 0);
    r->cpu.s.interrupt_shadow = true;
    assert_int_equal(x86_deliver(&r->cpu, &gp), X86_OK);
    assert_int_equal(r->cpu.s.gpr[X86_RSP], RIG_STACK - 16);
    assert_int_equal(get32(r, RIG_STACK - 16), 0x50);
    assert_int_equal(get32(r, RIG_STACK - 12), RIG_CODE);
    assert_int_equal(get32(r, RIG_STACK - 8), SEL_CODE0);
    assert_int_equal(get32(r, RIG_STACK - 4), X86_FIXED | X86_IF | X86_RF); /* a fault sets RF */
    assert_int_equal(r->cpu.s.rflags, X86_FIXED);
    assert_false(r->cpu.s.interrupt_shadow);
    assert_int_equal(r->cpu.s.rip, HANDLER + 0x10);
}

static void test_inner_level_and_back(void **state)
{
    struct rig *r = *state;

    protected_world(r, 3);
    r->cpu.s.rflags |= X86_NT;
    assert_int_equal(x86_deliver(&r->cpu, &divide), X86_OK);
    assert_int_equal(r->cpu.cpl, 0);
    assert_int_equal(r->cpu.s.seg[X86_CS].selector, SEL_CODE0);
    assert_int_equal(r->cpu.s.seg[X86_SS].selector, SEL_DATA0);
    assert_int_equal(r->cpu.s.gpr[X86_RSP], INNER - 20);
    assert_int_equal(get32(r, INNER - 4), SEL_DATA3);
    assert_int_equal(get32(r, INNER - 8), RIG_STACK);
    assert_int_equal(get32(r, INNER - 16), SEL_CODE3);
    assert_int_equal(r->cpu.s.rflags & (X86_NT | X86_IF), 0);

    r->cpu.s.seg[X86_DS] = flat(SEL_DATA0, 0xc093); /* the kernel's, not for the program */
    x86_cpu_update_mode(&r->cpu);
    PUT_CODE(r, HANDLER, 0xcf);
    assert_int_equal(rig_step(r), -1);
    assert_int_equal(r->cpu.cpl, 3);
    assert_int_equal(r->cpu.s.rip, RIG_CODE);
    assert_int_equal(r->cpu.s.gpr[X86_RSP], RIG_STACK);
    assert_int_equal(r->cpu.s.rflags, X86_FIXED | X86_IF | X86_NT);
    assert_int_equal(r->cpu.s.seg[X86_DS].attr, 0);
    assert_int_equal(r->cpu.s.seg[X86_ES].selector, SEL_DATA3);
}

/* IRET loads RF where it can matter: with a breakpoint enabled. */
static void test_iret_loads_rf_for_breakpoints(void **state)
{
    struct rig *r = *state;

    protected_world(r, 3);
    r->cpu.s.dr[0] = 0x12345;
    r->cpu.s.dr7 |= 1;
    assert_int_equal(x86_deliver(&r->cpu, &divide), X86_OK);
    PUT_CODE(r, HANDLER, 0xcf);
    assert_int_equal(rig_step(r), -1);
    assert_int_equal(r->cpu.s.rip, RIG_CODE);
    assert_true(r->cpu.s.rflags & X86_RF);
}

static void test_trap_gate_keeps_if(void **state)
{
    struct rig *r = *state;
    struct x86_event pf = page_fault(0x1234);

    protected_world(r, 0);
    assert_int_equal(x86_deliver(&r->cpu, &pf), X86_OK);
    assert_true(r->cpu.s.rflags & X86_IF);
    assert_int_equal(r->cpu.s.cr2, 0x1234);
}

static void test_soft_interrupt(void **state)
{
    struct rig *r = *state;

    protected_world(r, 3);
    PUT_CODE(r, RIG_CODE, 0xcd, 0x80);
    put_gate(r, 0x80, SEL_CODE0, HANDLER, 0x8e); /* DPL 0 */
    assert_int_equal(rig_step(r), 0x80);
    struct x86_event event = r->cpu.fault;
    assert_int_equal(event.kind, X86_EVENT_SOFT_INTERRUPT);
    assert_int_equal(x86_deliver(&r->cpu, &event), X86_OK);
    assert_int_equal(r->cpu.s.rip, HANDLER + 0x10); /* #GP, at the INT, without EXT */
    assert_int_equal(get32(r, INNER - 24), 0x80 * 8 + 2);
    assert_int_equal(get32(r, INNER - 20), RIG_CODE);

    protected_world(r, 3);
    put_gate(r, 0x80, SEL_CODE0, HANDLER, 0xee);
    assert_int_equal(rig_step(r), 0x80);
    event = r->cpu.fault;
    assert_int_equal(x86_deliver(&r->cpu, &event), X86_OK);
    assert_int_equal(get32(r, INNER - 20), RIG_CODE + 2);
    assert_int_equal(get32(r, INNER - 12), X86_FIXED | X86_IF); /* no RF */
}

/* What a hardware interrupt through a broken gate turns into; error includes EXT. */
static void check_broken(struct rig *r, uint32_t handler, uint32_t error)
{
    struct x86_event irq = {.kind = X86_EVENT_INTERRUPT, .vector = 0x40};

    assert_int_equal(x86_deliver(&r->cpu, &irq), X86_OK);
    assert_int_equal(r->cpu.s.rip, HANDLER + handler);
    assert_int_equal(get32(r, (uint32_t)r->cpu.s.gpr[X86_RSP]), error);
}

static void test_gate_checks(void **state)
{
    struct rig *r = *state;
    const uint32_t idt = 0x40 * 8 + 2 + 1;

    protected_world(r, 0); /* a type that is no gate */
    put_gate(r, 0x40, SEL_CODE0, HANDLER, 0x8c);
    check_broken(r, 0x10, idt);
    protected_world(r, 0); /* not present */
    put_gate(r, 0x40, SEL_CODE0, HANDLER, 0x0e);
    check_broken(r, 0x40, idt);
    protected_world(r, 0); /* null selector */
    put_gate(r, 0x40, 0, HANDLER, 0x8e);
    check_broken(r, 0x10, 1);
    protected_world(r, 0); /* a data segment */
    put_gate(r, 0x40, SEL_DATA0, HANDLER, 0x8e);
    check_broken(r, 0x10, SEL_DATA0 | 1);
    protected_world(r, 0); /* outer code */
    put_gate(r, 0x40, SEL_CODE3, HANDLER, 0x8e);
    check_broken(r, 0x10, (SEL_CODE3 & ~3u) | 1);
    protected_world(r, 0); /* code not present */
    put_descriptor(r, SEL_FREE, descriptor(0, 0xfffff, 0xc01a));
    put_gate(r, 0x40, SEL_FREE, HANDLER, 0x8e);
    check_broken(r, 0x40, SEL_FREE | 1);
    protected_world(r, 0); /* offset beyond the segment */
    put_descriptor(r, SEL_FREE, descriptor(0, 0xff, 0x409a));
    put_gate(r, 0x40, SEL_FREE, HANDLER, 0x8e);
    check_broken(r, 0x10, 1);
    protected_world(r, 0); /* outside the IDT */
    r->cpu.s.idtr.limit = 0x40 * 8 + 6;
    check_broken(r, 0x10, idt);
}

static void test_inner_stack_checks(void **state)
{
    struct rig *r = *state;
    struct x86_event irq = {.kind = X86_EVENT_INTERRUPT, .vector = 0x40};

    /* The stack for ring 0 is bad for #TS's own delivery too: #TS, then #TS in it: #DF, the same
     * stack again: shutdown. */
    protected_world(r, 3);
    put_gate(r, 0x40, SEL_CODE0, HANDLER, 0x8e);
    put16(r, RIG_TSS + 8, SEL_DATA3);
    assert_int_equal(x86_deliver(&r->cpu, &irq), X86_SHUTDOWN);
    assert_int_equal(r->cpu.s.mp_state, X86_MP_SHUTDOWN);
    assert_int_equal(r->cpu.s.rip, RIG_CODE);
    assert_int_equal(r->cpu.fault.vector, X86_TS);
    assert_int_equal(r->cpu.fault.error, SEL_DATA3 & ~3);

    protected_world(r, 3);
    put_gate(r, 0x40, SEL_CODE0, HANDLER, 0x8e);
    put_descriptor(r, SEL_FREE, descriptor(0, 0xfffff, 0xc012)); /* not present */
    put16(r, RIG_TSS + 8, SEL_FREE);
    assert_int_equal(x86_deliver(&r->cpu, &irq), X86_SHUTDOWN);
    assert_int_equal(r->cpu.fault.vector, X86_SS_FAULT);
    assert_int_equal(r->cpu.fault.error, SEL_FREE);

    protected_world(r, 3);
    put_gate(r, 0x40, SEL_CODE0, HANDLER, 0x8e);
    r->cpu.s.tr.limit = 8; /* SS0 is cut off */
    assert_int_equal(x86_deliver(&r->cpu, &irq), X86_SHUTDOWN);
    assert_int_equal(r->cpu.fault.vector, X86_TS);
    assert_int_equal(r->cpu.fault.error, SEL_TSS);
}

/* SDM vol. 3 table 6-5, each cell that can be made: a first event whose gate is broken. */
static void test_double_fault_table(void **state)
{
    struct rig *r = *state;
    static const struct {
        uint8_t first, expected;
    } cases[] = {
        {X86_DE, X86_DF_FAULT},
        {X86_TS, X86_DF_FAULT},
        {X86_NP, X86_DF_FAULT},
        {X86_GP, X86_DF_FAULT},
        {X86_PF_FAULT, X86_DF_FAULT},
        {X86_SS_FAULT, X86_DF_FAULT},
        {X86_DB, X86_GP},
        {X86_UD, X86_GP},
        {X86_NM, X86_GP},
        {X86_MF, X86_GP},
        {X86_AC_FAULT, X86_GP},
        {X86_XM, X86_GP},
    };
    for (unsigned i = 0; i < ARRAY_COUNT(cases); i++) {
        struct x86_event first = {.kind = X86_EVENT_EXCEPTION, .vector = cases[i].first};
        protected_world(r, 0);
        put_gate(r, cases[i].first, SEL_DATA0, HANDLER, 0x8e);
        if (cases[i].first == X86_GP)
            put_gate(r, X86_DF_FAULT, SEL_CODE0, HANDLER + 0x30, 0x8e);
        assert_int_equal(x86_deliver(&r->cpu, &first), X86_OK);
        assert_int_equal(r->cpu.s.rip, HANDLER + (cases[i].expected == X86_GP ? 0x10 : 0x30));
        assert_int_equal(get32(r, (uint32_t)r->cpu.s.gpr[X86_RSP]),
                         cases[i].expected == X86_GP ? SEL_DATA0 | 1 : 0);
    }
}

static void test_triple_fault(void **state)
{
    struct rig *r = *state;

    protected_world(r, 0);
    put_gate(r, X86_DE, 0, 0, 0);
    put_gate(r, X86_DF_FAULT, 0, 0, 0);
    assert_int_equal(x86_deliver(&r->cpu, &divide), X86_SHUTDOWN);
}

/* A page fault while a contributory exception is delivered is served first, not doubled. */
static void test_page_fault_after_contributory(void **state)
{
    struct rig *r = *state;
    struct x86_event gp = error_event(X86_GP, 0);

    rig_long(r, 0);
    put_gate64(r, X86_GP, SEL_CODE64, HANDLER, 0x8e, 1);
    put_gate64(r, X86_PF_FAULT, SEL_CODE64, HANDLER + 0x20, 0x8e, 0);
    put64(r, RIG_TSS + 36, 0x70000000); /* IST1 is not mapped */
    assert_int_equal(x86_deliver(&r->cpu, &gp), X86_OK);
    assert_int_equal(r->cpu.s.rip, HANDLER + 0x20);
    assert_int_equal(r->cpu.s.cr2, 0x70000000 - 8);

    struct x86_event pf = page_fault(0x1234);
    rig_long(r, 0); /* but two page faults double */
    put_gate64(r, X86_PF_FAULT, SEL_CODE64, HANDLER + 0x20, 0x8e, 1);
    put_gate64(r, X86_DF_FAULT, SEL_CODE64, HANDLER + 0x30, 0x8e, 0);
    assert_int_equal(x86_deliver(&r->cpu, &pf), X86_OK);
    assert_int_equal(r->cpu.s.rip, HANDLER + 0x30);
    assert_int_equal(get64(r, r->cpu.s.gpr[X86_RSP]), 0);
}

/* --- 64-bit mode --- */

static void test_long_same_level_aligns(void **state)
{
    struct rig *r = *state;
    struct x86_event gp = error_event(X86_GP, 0x18);

    rig_long(r, 0);
    put_gate64(r, X86_GP, SEL_CODE64, HANDLER, 0x8e, 0);
    r->cpu.s.gpr[X86_RSP] = RIG_STACK - 5;
    r->cpu.s.rflags = X86_FIXED | X86_IF;
    assert_int_equal(x86_deliver(&r->cpu, &gp), X86_OK);
    assert_int_equal(r->cpu.s.gpr[X86_RSP], RIG_STACK - 16 - 48);
    assert_int_equal(get64(r, RIG_STACK - 16 - 8), SEL_DATA0);
    assert_int_equal(get64(r, RIG_STACK - 16 - 16), RIG_STACK - 5);
    assert_int_equal(get64(r, RIG_STACK - 16 - 32), SEL_CODE64);
    assert_int_equal(get64(r, RIG_STACK - 16 - 40), RIG_CODE);
    assert_int_equal(get64(r, RIG_STACK - 16 - 48), 0x18);

    r->cpu.s.gpr[X86_RSP] += 8;
    PUT_CODE(r, HANDLER, 0x48, 0xcf);
    assert_int_equal(rig_step(r), -1);
    assert_int_equal(r->cpu.s.gpr[X86_RSP], RIG_STACK - 5);
    assert_int_equal(r->cpu.s.rip, RIG_CODE);
    assert_int_equal(r->cpu.s.seg[X86_SS].selector, SEL_DATA0);
}

static void test_long_from_user(void **state)
{
    struct rig *r = *state;
    struct x86_event nmi = {.kind = X86_EVENT_NMI, .vector = X86_NMI};

    rig_long(r, 3);
    put_gate64(r, X86_NMI, SEL_CODE64, HANDLER, 0x8e, 0);
    put64(r, RIG_TSS + 4, INNER);
    r->cpu.s.rflags = X86_FIXED | X86_IF;
    assert_int_equal(x86_deliver(&r->cpu, &nmi), X86_OK);
    assert_true(r->cpu.s.nmi_blocked);
    assert_int_equal(r->cpu.cpl, 0);
    assert_int_equal(r->cpu.s.seg[X86_SS].selector, 0);
    assert_int_equal(get64(r, INNER - 8), SEL_DATA3);
    assert_int_equal(get64(r, INNER - 24), X86_FIXED | X86_IF);
    PUT_CODE(r, HANDLER, 0x48, 0xcf);
    assert_int_equal(rig_step(r), -1);
    assert_false(r->cpu.s.nmi_blocked);
    assert_int_equal(r->cpu.cpl, 3);
    assert_int_equal(r->cpu.code_size, 8);
    assert_int_equal(r->cpu.s.seg[X86_SS].selector, SEL_DATA3);
}

static void test_long_ist(void **state)
{
    struct rig *r = *state;

    rig_long(r, 0);
    put_gate64(r, X86_DE, SEL_CODE64, HANDLER, 0x8e, 3);
    put64(r, RIG_TSS + 36 + 16, 0x39008);
    assert_int_equal(x86_deliver(&r->cpu, &divide), X86_OK);
    assert_int_equal(r->cpu.s.gpr[X86_RSP], 0x39000 - 40);
    assert_int_equal(r->cpu.s.seg[X86_SS].selector, SEL_DATA0);
}

/*
 * Delivery and IRETQ take a shorter way when everything is in the TLB. Both ways must do the same,
 * for gates, descriptors, stacks and flags with something wrong now and then.
 */
#define WORLD 0x40000u /* bytes that matter */

static uint32_t next_random(uint32_t *seed)
{
    *seed = *seed * 1664525 + 1013904223;
    return *seed >> 8;
}

/* Flips one bit of a few, rarely. */
static uint64_t flip(uint32_t *seed, uint64_t value, uint64_t bits)
{
    uint64_t bit = BIT(next_random(seed) & 63);
    return next_random(seed) % 4 ? value : value ^ (bit & bits);
}

static void random_tables(struct rig *r, uint32_t *seed, unsigned vector)
{
    static const uint8_t types[] = {0x8e, 0x8e, 0x8e, 0x8f, 0xee, 0xef, 0x0e, 0x85};
    static const uint16_t selectors[] = {SEL_CODE64, SEL_CODE64, SEL_CODE64, SEL_CODE64_3,
                                         SEL_CODE0,  SEL_DATA0,  0,          SEL_CODE64 | 1};
    uint64_t handler = flip(seed, HANDLER, BIT(47) | BIT(40));
    uint32_t x = next_random(seed);

    put_gate64(r, vector, selectors[x % 8], handler, types[x >> 3 & 7],
               x >> 6 & 3 ? 0 : x >> 8 & 7);
    for (unsigned i = 0; i < 8; i++)
        put64(r, RIG_TSS + 4 + i * 8, flip(seed, INNER - i * 0x100, BIT(3) | BIT(46) | BIT(47)));
    put_descriptor(r, SEL_CODE64, flip(seed, descriptor(0, 0xfffff, 0xa09b), 0xf0ff0000000000));
    put_descriptor(r, SEL_CODE64_3, flip(seed, descriptor(0, 0xfffff, 0xa0fb), 0xf0ff0000000000));
    put_descriptor(r, SEL_DATA0, flip(seed, descriptor(0, 0xfffff, 0xc093), 0xf0ff0000000000));
    put_descriptor(r, SEL_DATA3, flip(seed, descriptor(0, 0xfffff, 0xc0f3), 0xf0ff0000000000));
    r->cpu.s.gdtr.limit = (uint16_t)(next_random(seed) % 16 ? 0xff : 0x2f);
    r->cpu.s.idtr.limit = (uint16_t)(next_random(seed) % 16 ? 0xfff : vector * 16 + 8);
    r->cpu.s.tr.limit = next_random(seed) % 16 ? 0x67 : 8;
    r->cpu.s.cr4 |= next_random(seed) % 2 ? X86_CR4_SMAP : 0;
}

static void random_registers(struct rig *r, uint32_t *seed)
{
    uint64_t flags = X86_IF | X86_TF | X86_NT | X86_AC | X86_RF | X86_IOPL | X86_CF | X86_DF;

    r->cpu.s.rflags = flip(seed, flip(seed, X86_FIXED | X86_IF, flags), flags);
    r->cpu.s.gpr[X86_RSP] = flip(seed, RIG_STACK - next_random(seed) % 80, BIT(47) | BIT(30));
    r->cpu.s.seg[X86_DS] = flat(SEL_DATA0, next_random(seed) % 2 ? 0xc093 : 0);
    x86_cpu_update_mode(&r->cpu);
}

static void touch(struct rig *r, uint64_t la)
{
    enum x86_mmu mmu = x86_mmu_at(&r->cpu, 0);

    RIG_TRY(r, (void)x86_load_slow(&r->cpu, la, 1, mmu));
    RIG_TRY(r, x86_store_slow(&r->cpu, la, 1, 0, mmu));
}

/* Has the TLB know what the CPU may read and write. */
static void warm_up(struct rig *r)
{
    static const uint32_t pages[] = {RIG_GDT, RIG_IDT, RIG_TSS, HANDLER, RIG_CODE};

    for (unsigned i = 0; i < ARRAY_COUNT(pages); i++)
        touch(r, pages[i] + 0xff0);
    touch(r, r->cpu.s.gpr[X86_RSP] - 64);
    touch(r, INNER - 64);
    touch(r, RIG_STACK - 64);
}

/* Does it twice from the same start, cold and warm. Returns the result, negative: they differ. */
static int do_twice(struct rig *r, int (*what)(struct rig *r, const void *argument),
                    const void *argument)
{
    uint8_t *before = malloc(WORLD), *after = malloc(WORLD);
    struct x86_state start, end;
    const char *where = "memory";
    int result[2];

    warm_up(r); /* sets accessed bits of the page tables; its stores are undone below */
    x86_cpu_get_state(&r->cpu, &start);
    memcpy(before, r->ram, WORLD);
    x86_tlb_flush(&r->cpu, false);
    result[0] = what(r, argument);
    x86_cpu_get_state(&r->cpu, &end);
    memcpy(after, r->ram, WORLD);
    x86_cpu_set_state(&r->cpu, &start);
    warm_up(r);
    memcpy(r->ram, before, WORLD);
    result[1] = what(r, argument);
    bool same = result[0] == result[1] && memcmp(after, r->ram, WORLD) == 0 &&
                x86_state_equal(&r->cpu.s, &end, &where);
    if (!same)
        print_error("%d %d, %s\n", result[0], result[1], where);
    free(before);
    free(after);
    return same ? result[0] : -2;
}

static int deliver_it(struct rig *r, const void *event)
{
    return (int)x86_deliver(&r->cpu, event);
}

static int step_it(struct rig *r, const void *nothing)
{
    return rig_step(r) == -1 ? 0 : r->cpu.fault.vector + 1;
}

static void test_long_delivery_warm_and_cold(void **state)
{
    static const enum x86_event_kind kinds[] = {X86_EVENT_EXCEPTION, X86_EVENT_INTERRUPT,
                                                X86_EVENT_NMI, X86_EVENT_SOFT_INTERRUPT};
    struct rig *r = *state;
    uint32_t seed = 1;
    unsigned good = 0;

    for (unsigned i = 0; i < 4000; i++) {
        uint32_t x = next_random(&seed);
        struct x86_event event = {.kind = kinds[x & 3], .vector = 0x40};
        if (event.kind == X86_EVENT_EXCEPTION)
            event = page_fault(0x1234);
        rig_long(r, x & 4 ? 3 : 0);
        random_tables(r, &seed, event.vector);
        random_registers(r, &seed);
        int result = do_twice(r, deliver_it, &event);
        assert_true(result >= 0);
        good += result == X86_OK && r->cpu.s.rip == HANDLER;
    }
    assert_in_range(good, 400, 3500); /* both ways out were tried */
}

static void test_long_iret_warm_and_cold(void **state)
{
    static const uint16_t cs[] = {SEL_CODE64_3, SEL_CODE64_3, SEL_CODE64, SEL_CODE64,
                                  SEL_CODE3,    SEL_CODE0,    0,          SEL_CODE64 | 3};
    static const uint16_t ss[] = {SEL_DATA3, SEL_DATA3, SEL_DATA0, SEL_DATA0, 0, 3, SEL_CODE64, 4};
    uint64_t flags = X86_IF | X86_TF | X86_NT | X86_AC | X86_RF | X86_IOPL | X86_CF | X86_VM;
    struct rig *r = *state;
    uint32_t seed = 2;
    unsigned good = 0;

    PUT_CODE(r, HANDLER, 0x48, 0xcf);
    for (unsigned i = 0; i < 4000; i++) {
        rig_long(r, 0);
        random_tables(r, &seed, 0x40);
        random_registers(r, &seed);
        r->cpu.s.rip = HANDLER;
        uint32_t x = next_random(&seed), at = RIG_STACK - 0x100 - x % 8;
        r->cpu.s.gpr[X86_RSP] = at;
        put64(r, at, flip(&seed, RIG_CODE, BIT(47) | BIT(30)));
        put64(r, at + 8, cs[x >> 8 & 7]);
        put64(r, at + 16, flip(&seed, X86_FIXED | X86_IF, flags));
        put64(r, at + 24, RIG_STACK - 0x40);
        put64(r, at + 32, x >> 16 & 1 ? ss[x >> 8 & 7] : ss[x >> 12 & 7]);
        int result = do_twice(r, step_it, NULL);
        assert_true(result >= 0);
        good += result == 0;
    }
    assert_in_range(good, 400, 3500);
}

static void test_long_gate_checks(void **state)
{
    struct rig *r = *state;

    rig_long(r, 0);
    put_gate64(r, X86_GP, SEL_CODE64, HANDLER + 0x10, 0x8e, 0);
    put_gate64(r, 0x40, SEL_CODE0, HANDLER, 0x8e, 0); /* not 64-bit code */
    struct x86_event irq = {.kind = X86_EVENT_INTERRUPT, .vector = 0x40};
    assert_int_equal(x86_deliver(&r->cpu, &irq), X86_OK);
    assert_int_equal(get64(r, r->cpu.s.gpr[X86_RSP]), SEL_CODE0 | 1);
    rig_long(r, 0);
    put_gate64(r, 0x40, SEL_CODE64, 1ull << 50, 0x8e, 0); /* not canonical */
    assert_int_equal(x86_deliver(&r->cpu, &irq), X86_OK);
    assert_int_equal(get64(r, r->cpu.s.gpr[X86_RSP]), 1);
    rig_long(r, 0);
    put_gate64(r, 0x40, SEL_CODE64, HANDLER, 0x86, 0); /* 16-bit gate */
    assert_int_equal(x86_deliver(&r->cpu, &irq), X86_OK);
    assert_int_equal(get64(r, r->cpu.s.gpr[X86_RSP]), 0x40 * 8 + 3);
}

/* IRET's checks in 64-bit mode leave everything as it was. */
static void check_iret(struct rig *r, uint16_t cs, uint16_t ss, uint64_t rip, int vector,
                       uint32_t error)
{
    rig_long(r, 0);
    PUT_CODE(r, RIG_CODE, 0x48, 0xcf);
    put64(r, RIG_STACK, rip);
    put64(r, RIG_STACK + 8, cs);
    put64(r, RIG_STACK + 16, X86_FIXED);
    put64(r, RIG_STACK + 24, RIG_STACK);
    put64(r, RIG_STACK + 32, ss);
    struct x86_state before = r->cpu.s;
    const char *what;
    assert_int_equal(rig_step(r), vector);
    if (vector < 0)
        return;
    assert_int_equal(r->cpu.fault.error, error);
    if (!x86_state_equal(&before, &r->cpu.s, &what))
        fail_msg("IRET that faulted changed %s", what);
}

static void test_iret_checks(void **state)
{
    struct rig *r = *state;

    put_descriptor(r, SEL_FREE, 0);
    check_iret(r, SEL_CODE64_3, SEL_DATA3, 0x20, -1, 0);
    check_iret(r, SEL_CODE64_3, SEL_DATA3, 1ull << 47, X86_GP, 0);
    check_iret(r, SEL_CODE64, 0, 0x20, -1, 0);       /* null SS below CPL 3 */
    check_iret(r, SEL_CODE64_3, 3, 0x20, X86_GP, 0); /* ... not at 3 */
    check_iret(r, SEL_CODE3, 0, 0x20, X86_GP, 0);
    check_iret(r, 0, SEL_DATA0, 0x20, X86_GP, 0);
    check_iret(r, SEL_DATA0, SEL_DATA0, 0x20, X86_GP, SEL_DATA0);
    check_iret(r, SEL_CODE64 | 3, SEL_DATA3, 0x20, X86_GP, SEL_CODE64);
    check_iret(r, SEL_CODE64_3, SEL_DATA0, 0x20, X86_GP, SEL_DATA0);
    check_iret(r, SEL_CODE64_3, SEL_DATA0 | 3, 0x20, X86_GP, SEL_DATA0);
    check_iret(r, 0x100, SEL_DATA0, 0x20, X86_GP, 0x100);
    check_iret(r, SEL_CODE3, SEL_DATA3, 0x20, -1, 0);
    assert_int_equal(r->cpu.code_size, 4); /* compatibility mode */
}

static void test_iret_cannot_gain_privilege(void **state)
{
    struct rig *r = *state;

    rig_long(r, 3);
    PUT_CODE(r, RIG_CODE, 0x48, 0xcf);
    put64(r, RIG_STACK, HANDLER);
    put64(r, RIG_STACK + 8, SEL_CODE64);
    put64(r, RIG_STACK + 16, X86_FIXED | X86_IF | X86_IOPL);
    put64(r, RIG_STACK + 24, RIG_STACK);
    put64(r, RIG_STACK + 32, SEL_DATA0);
    assert_int_equal(rig_step(r), X86_GP);
    assert_int_equal(r->cpu.fault.error, SEL_CODE64);
    put64(r, RIG_STACK + 8, SEL_CODE64_3); /* nor IOPL and IF */
    put64(r, RIG_STACK + 32, SEL_DATA3);
    assert_int_equal(rig_step(r), -1);
    assert_int_equal(r->cpu.s.rflags, X86_FIXED);
}

/* --- virtual-8086 mode --- */

static void test_v86(void **state)
{
    struct rig *r = *state;
    static const uint16_t selectors[] = {0x2222, 0x3333, 0x1111, 0x4444,
                                         0x5555}; /* SS ES DS FS GS */

    protected_world(r, 0);
    PUT_CODE(r, RIG_CODE, 0xcf);
    put32(r, RIG_STACK - 36, 0x100);
    put32(r, RIG_STACK - 32, 0x3100);
    put32(r, RIG_STACK - 28, X86_FIXED | X86_VM | X86_IF);
    put32(r, RIG_STACK - 24, 0xfffe);
    for (unsigned i = 0; i < 5; i++)
        put32(r, RIG_STACK - 20 + i * 4, selectors[i]);
    r->cpu.s.gpr[X86_RSP] = RIG_STACK - 36;
    assert_int_equal(rig_step(r), -1);
    assert_true(r->cpu.v86);
    assert_int_equal(r->cpu.cpl, 3);
    assert_int_equal(r->cpu.code_size, 2);
    assert_int_equal(r->cpu.s.seg[X86_CS].base, 0x31000);
    assert_int_equal(r->cpu.s.seg[X86_ES].base, 0x33330);
    assert_int_equal(r->cpu.s.seg[X86_GS].selector, 0x5555);
    assert_int_equal(r->cpu.s.gpr[X86_RSP], 0xfffe);

    PUT_CODE(r, 0x31100, 0xfa); /* cli: #GP with IOPL 0 */
    assert_int_equal(rig_step(r), X86_GP);
    struct x86_event gp = r->cpu.fault;
    assert_int_equal(x86_deliver(&r->cpu, &gp), X86_OK);
    assert_false(r->cpu.v86);
    assert_int_equal(r->cpu.cpl, 0);
    assert_int_equal(r->cpu.s.gpr[X86_RSP], INNER - 40);
    assert_int_equal(get32(r, INNER - 4), 0x5555);
    assert_int_equal(get32(r, INNER - 16), 0x3333);
    assert_int_equal(get32(r, INNER - 20), 0x2222);
    assert_int_equal(get32(r, INNER - 28) & X86_VM, X86_VM);
    assert_int_equal(get32(r, INNER - 36), 0x100);
    assert_int_equal(get32(r, INNER - 40), 0);
    assert_int_equal(r->cpu.s.seg[X86_DS].attr, 0);

    /* and back; INT n with IOPL 0 is #GP(0) */
    r->cpu.s.gpr[X86_RSP] += 4;
    PUT_CODE(r, HANDLER + 0x10, 0xcf);
    PUT_CODE(r, 0x31100, 0xcd, 0x80);
    assert_int_equal(rig_step(r), -1);
    assert_true(r->cpu.v86);
    assert_int_not_equal(rig_step(r), -1);
    struct x86_event soft = r->cpu.fault;
    assert_int_equal(x86_deliver(&r->cpu, &soft), X86_OK);
    assert_int_equal(r->cpu.s.rip, HANDLER + 0x10);
    assert_int_equal(get32(r, INNER - 40), 0);
}

/* --- halting --- */

static void test_interrupt_ends_halt(void **state)
{
    struct rig *r = *state;
    struct x86_event irq = {.kind = X86_EVENT_INTERRUPT, .vector = X86_DE};

    protected_world(r, 0);
    PUT_CODE(r, RIG_CODE, 0xf4);
    assert_int_equal(rig_step(r), -1);
    assert_true(r->cpu.halted);
    assert_int_equal(r->cpu.s.mp_state, X86_MP_HALTED);
    assert_int_equal(x86_deliver(&r->cpu, &irq), X86_OK);
    assert_false(r->cpu.halted);
    assert_int_equal(r->cpu.s.mp_state, X86_MP_RUNNABLE);
    assert_int_equal(get32(r, RIG_STACK - 12), RIG_CODE + 1);
}

int main(void)
{
#define RIG_TEST(f) cmocka_unit_test_setup_teardown(f, rig_setup, rig_teardown)
    const struct CMUnitTest tests[] = {
        RIG_TEST(test_real_mode),
        RIG_TEST(test_same_level),
        RIG_TEST(test_inner_level_and_back),
        RIG_TEST(test_iret_loads_rf_for_breakpoints),
        RIG_TEST(test_trap_gate_keeps_if),
        RIG_TEST(test_soft_interrupt),
        RIG_TEST(test_gate_checks),
        RIG_TEST(test_inner_stack_checks),
        RIG_TEST(test_double_fault_table),
        RIG_TEST(test_triple_fault),
        RIG_TEST(test_page_fault_after_contributory),
        RIG_TEST(test_long_same_level_aligns),
        RIG_TEST(test_long_from_user),
        RIG_TEST(test_long_ist),
        RIG_TEST(test_long_gate_checks),
        RIG_TEST(test_long_delivery_warm_and_cold),
        RIG_TEST(test_long_iret_warm_and_cold),
        RIG_TEST(test_iret_checks),
        RIG_TEST(test_iret_cannot_gain_privilege),
        RIG_TEST(test_v86),
        RIG_TEST(test_interrupt_ends_halt),
    };
    return cmocka_run_group_tests_name("deliver", tests, NULL, NULL);
}
