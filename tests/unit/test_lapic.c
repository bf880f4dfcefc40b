/* x86/lapic: modes, destinations, priorities, errors and the timer, on a fake clock. */
#include "test.h"

#include <string.h>

#include "x86/lapic.h"

#define CPUS 3

struct system {
    struct x86_lapic lapic[CPUS];
    uint64_t now;
    unsigned eoi_count;
    uint8_t eoi_vector;
    unsigned sent;
    struct x86_lapic_message last;
};

static uint64_t now_ns(void *context)
{
    return ((struct system *)context)->now;
}

static uint64_t tsc_at(void *context, uint64_t ns)
{
    return ns;
}

static void send_message(void *context, const struct x86_lapic_message *message)
{
    struct system *s = context;
    s->sent++;
    s->last = *message;
    if (message->shorthand != X86_TO_DESTINATION)
        return;
    for (unsigned i = 0; i < CPUS; i++) {
        if (x86_lapic_matches(&s->lapic[i], message))
            x86_lapic_accept(&s->lapic[i], message);
    }
}

static void note_eoi(void *context, uint8_t vector)
{
    struct system *s = context;
    s->eoi_count++;
    s->eoi_vector = vector;
}

static const struct x86_lapic_ops ops = {now_ns, tsc_at, send_message, note_eoi};

static uint32_t get(struct x86_lapic *l, unsigned offset)
{
    return (uint32_t)x86_lapic_mmio_read(l, offset, 4);
}

static void set(struct x86_lapic *l, unsigned offset, uint32_t value)
{
    x86_lapic_mmio_write(l, offset, 4, value);
}

static void start(struct system *s)
{
    memset(s, 0, sizeof *s);
    for (unsigned i = 0; i < CPUS; i++) {
        struct x86_lapic_config config = {&ops, s, i, 1000000000, true, true};
        x86_lapic_create(&s->lapic[i], &config);
        set(&s->lapic[i], 0xf0, 0x1ff);
    }
}

static bool requested(struct x86_lapic *l, uint8_t vector)
{
    return l->irr[vector / 32] >> vector % 32 & 1;
}

static void fixed(struct x86_lapic *l, uint8_t vector, bool level)
{
    x86_lapic_accept(l, &(struct x86_lapic_message) {.vector = vector, .level = level});
}

/* SDM 11.4.7.1 */
static void test_power_on_values(void **state)
{
    struct system s;
    start(&s);
    struct x86_lapic_config config = {&ops, &s, 2, 1000000000, true, true};
    struct x86_lapic l;
    x86_lapic_create(&l, &config);
    assert_int_equal(get(&l, 0x20), 2u << 24);
    assert_int_equal(get(&l, 0x30), 0x50014);
    assert_int_equal(get(&l, 0xf0), 0xff);
    assert_int_equal(get(&l, 0xe0), 0xffffffff);
    for (unsigned lvt = 0x320; lvt <= 0x370; lvt += 0x10)
        assert_int_equal(get(&l, lvt), 0x10000);
    fixed(&l, 0x40, false);
    assert_int_equal(x86_lapic_pending(&l), -1); /* software-disabled: not accepted */
    x86_lapic_accept(&l, &(struct x86_lapic_message) {.delivery = X86_DELIVER_NMI});
    assert_int_equal(l.signals, X86_LAPIC_NMI);
    set(&l, 0x350, 0x700);
    assert_int_equal(get(&l, 0x350), 0x10700); /* the mask cannot be cleared */
}

static void test_priorities(void **state)
{
    struct system s;
    start(&s);
    struct x86_lapic *l = &s.lapic[0];
    fixed(l, 0x41, false);
    fixed(l, 0x52, true);
    assert_int_equal(x86_lapic_pending(l), 0x52);
    x86_lapic_acknowledge(l, 0x52);
    assert_int_equal(get(l, 0xa0), 0x50);       /* PPR follows the one in service */
    assert_int_equal(x86_lapic_pending(l), -1); /* 0x41 is of a lower class */
    fixed(l, 0x5f, false);
    assert_int_equal(x86_lapic_pending(l), -1); /* the same class */
    fixed(l, 0x61, false);
    assert_int_equal(x86_lapic_pending(l), 0x61);
    set(l, 0x80, 0x60);
    assert_int_equal(x86_lapic_pending(l), -1);
    assert_int_equal(x86_lapic_read_cr8(l), 6);
    x86_lapic_write_cr8(l, 0);
    set(l, 0xb0, 0); /* EOI of 0x52: level-triggered, so told to the IOAPIC */
    assert_int_equal(s.eoi_count, 1);
    assert_int_equal(s.eoi_vector, 0x52);
    x86_lapic_acknowledge(l, 0x61);
    set(l, 0xb0, 0);
    assert_int_equal(s.eoi_count, 1);
    assert_int_equal(x86_lapic_pending(l), 0x5f);
}

/* SDM 11.6.2: physical, flat, cluster, x2APIC cluster, broadcast. */
static void test_destinations(void **state)
{
    struct system s;
    start(&s);
    struct x86_lapic *l = s.lapic;
    set(&l[0], 0x310, 2u << 24);
    set(&l[0], 0x300, 0x4031);
    assert_true(requested(&l[2], 0x31) && !requested(&l[0], 0x31) && !requested(&l[1], 0x31));
    set(&l[0], 0x310, 0xffu << 24);
    set(&l[0], 0x300, 0x4032);
    assert_true(requested(&l[0], 0x32) && requested(&l[1], 0x32) && requested(&l[2], 0x32));

    for (unsigned i = 0; i < CPUS; i++)
        set(&l[i], 0xd0, 1u << (24 + i));
    set(&l[0], 0x310, 6u << 24);
    set(&l[0], 0x300, 0x4833);
    assert_true(!requested(&l[0], 0x33) && requested(&l[1], 0x33) && requested(&l[2], 0x33));

    for (unsigned i = 0; i < CPUS; i++) {
        set(&l[i], 0xe0, 0);
        set(&l[i], 0xd0, i == 2 ? 0x21000000 : (0x10u | 1u << i) << 24);
    }
    set(&l[0], 0x310, 0x13u << 24);
    set(&l[0], 0x300, 0x4834);
    assert_true(requested(&l[0], 0x34) && requested(&l[1], 0x34) && !requested(&l[2], 0x34));

    for (unsigned i = 0; i < CPUS; i++)
        assert_true(x86_lapic_write_base(&l[i], 0xfee00c00, 40));
    assert_true(x86_lapic_msr_write(&l[0], 0x830, 0x0000000500004835ull));
    assert_true(requested(&l[0], 0x35) && !requested(&l[1], 0x35) && requested(&l[2], 0x35));
    assert_true(x86_lapic_msr_write(&l[0], 0x830, 0xffffffff00004036ull));
    assert_true(requested(&l[0], 0x36) && requested(&l[1], 0x36) && requested(&l[2], 0x36));
    struct x86_lapic_message msi = x86_lapic_decode_msi(0xfee01000, 0x4037);
    assert_true(x86_lapic_matches(&l[1], &msi) && !x86_lapic_matches(&l[2], &msi));
}

static void test_ipi_kinds(void **state)
{
    struct system s;
    start(&s);
    set(&s.lapic[0], 0x310, 1u << 24);
    set(&s.lapic[0], 0x300, 0x8500); /* INIT level de-assert: nothing */
    assert_int_equal(s.sent, 0);
    set(&s.lapic[0], 0x300, 0x4500);
    set(&s.lapic[0], 0x300, 0x4612);
    set(&s.lapic[0], 0x300, 0x4613); /* the first vector stays */
    assert_int_equal(s.lapic[1].signals, X86_LAPIC_INIT | X86_LAPIC_SIPI | 0x1200);
    set(&s.lapic[0], 0x300, 0xc4045);
    assert_int_equal(s.last.shorthand, X86_TO_OTHERS);
    assert_int_equal(s.last.vector, 0x45);
    unsigned sent = s.sent;
    set(&s.lapic[0], 0x300, 0x84500); /* INIT to all including self does not exist */
    assert_int_equal(s.sent, sent);
}

/* SDM 11.5.3 */
static void test_errors(void **state)
{
    struct system s;
    start(&s);
    struct x86_lapic *l = &s.lapic[0];
    set(l, 0x370, 0xfe);
    set(l, 0x300, 0x4005);
    assert_int_equal(s.sent, 0);
    assert_true(requested(l, 0xfe));
    assert_int_equal(get(l, 0x280), 0); /* a write brings it */
    set(l, 0x280, 0);
    assert_int_equal(get(l, 0x280), 0x20);
    set(l, 0x280, 0);
    assert_int_equal(get(l, 0x280), 0);
    fixed(l, 7, false);
    x86_lapic_poll(l, true);
    set(l, 0x280, 0);
    assert_int_equal(get(l, 0x280), 0x40);
    get(l, 0x3f0);
    set(l, 0x280, 0);
    assert_int_equal(get(l, 0x280), 0x80);
}

/* SDM 11.12.5: which ways there are between the modes. */
static void test_mode_transitions(void **state)
{
    struct system s;
    start(&s);
    struct x86_lapic *l = &s.lapic[0];
    l->base |= 0x100;
    assert_false(x86_lapic_write_base(l, 0xfee00400, 40)); /* x2APIC without enable */
    assert_false(x86_lapic_write_base(l, 0xfee00a00, 40)); /* reserved bit 9 */
    assert_false(x86_lapic_write_base(l, 1ull << 40 | 0x800, 40));
    assert_true(x86_lapic_write_base(l, 0xfee00c00, 40));
    assert_int_equal(l->base, 0xfee00d00); /* BSP stays */
    assert_false(x86_lapic_write_base(l, 0xfee00800, 40));
    assert_true(x86_lapic_write_base(l, 0xfee00000, 40));
    assert_int_equal(x86_lapic_pending(l), -1);
    assert_true(x86_lapic_takes_extint(l));
    assert_false(x86_lapic_write_base(l, 0xfee00c00, 40)); /* not from disabled */
    assert_true(x86_lapic_write_base(l, 0xfee00800, 40));
    assert_int_equal(get(l, 0xf0), 0xff); /* as after power-on */
    l->config.has_x2apic = false;
    assert_false(x86_lapic_write_base(l, 0xfee00c00, 40));
}

/* SDM 11.12.1: which MSRs exist and which bits. */
static void test_x2apic_registers(void **state)
{
    struct system s;
    start(&s);
    struct x86_lapic *l = &s.lapic[2];
    uint64_t v;
    assert_false(x86_lapic_msr_read(l, 0x802, &v)); /* not in xAPIC mode */
    assert_true(x86_lapic_write_base(l, 0xfee00c00, 40));
    assert_true(x86_lapic_msr_read(l, 0x802, &v) && v == 2);
    assert_true(x86_lapic_msr_read(l, 0x80d, &v) && v == 4);
    static const uint16_t no_read[] = {0x80b, 0x80e, 0x831, 0x83f, 0x809, 0x800, 0x8ff};
    for (unsigned i = 0; i < sizeof no_read / sizeof no_read[0]; i++)
        assert_false(x86_lapic_msr_read(l, no_read[i], &v));
    static const uint16_t no_write[] = {0x802, 0x803, 0x80a, 0x80d, 0x80e, 0x810, 0x831, 0x839};
    for (unsigned i = 0; i < sizeof no_write / sizeof no_write[0]; i++)
        assert_false(x86_lapic_msr_write(l, no_write[i], 0));
    assert_false(x86_lapic_msr_write(l, 0x80b, 1));
    assert_false(x86_lapic_msr_write(l, 0x828, 1));
    assert_false(x86_lapic_msr_write(l, 0x808, 0x100));
    assert_false(x86_lapic_msr_write(l, 0x808, 1ull << 32));
    assert_true(x86_lapic_msr_write(l, 0x83f, 0x66));
    assert_int_equal(s.last.shorthand, X86_TO_SELF);
    assert_int_equal(s.last.vector, 0x66);
}

static void test_timer_one_shot(void **state)
{
    struct system s;
    start(&s);
    struct x86_lapic *l = &s.lapic[0];
    set(l, 0x320, 0x40);
    set(l, 0x3e0, 3); /* by 16 */
    s.now = 1000;
    set(l, 0x380, 100);
    assert_int_equal(x86_lapic_next_ns(l), 2600);
    s.now = 1801;
    assert_int_equal(get(l, 0x390), 50);
    set(l, 0x3e0, 0xb); /* by 1: the count goes on */
    assert_int_equal(get(l, 0x390), 50);
    s.now = 1851;
    x86_lapic_poll(l, true);
    assert_int_equal(x86_lapic_pending(l), 0x40);
    assert_int_equal(get(l, 0x390), 0);
    assert_true(x86_lapic_next_ns(l) == UINT64_MAX);
    set(l, 0x380, 100);
    set(l, 0x380, 0);
    assert_true(x86_lapic_next_ns(l) == UINT64_MAX);
}

static void test_timer_periodic(void **state)
{
    struct system s;
    start(&s);
    struct x86_lapic *l = &s.lapic[0];
    set(l, 0x320, 0x20040);
    set(l, 0x3e0, 0xb);
    set(l, 0x380, 1000);
    s.now = 3500; /* three periods late: one interrupt, and the phase is kept */
    x86_lapic_poll(l, true);
    assert_int_equal(x86_lapic_pending(l), 0x40);
    assert_true(x86_lapic_next_ns(l) == UINT64_MAX); /* one more would change nothing */
    x86_lapic_acknowledge(l, 0x40);
    assert_int_equal(x86_lapic_next_ns(l), 4000);
    assert_int_equal(get(l, 0x390), 500);
    set(l, 0x320, 0x30040);
    s.now = 4000;
    x86_lapic_poll(l, true);
    assert_false(requested(l, 0x40)); /* masked, but it runs */
    assert_int_equal(get(l, 0x390), 1000);
    assert_true(x86_lapic_next_ns(l) == UINT64_MAX);
}

/* SDM 11.5.4.1 */
static void test_timer_deadline(void **state)
{
    struct system s;
    start(&s);
    struct x86_lapic *l = &s.lapic[0];
    x86_lapic_write_deadline(l, 500); /* not in this mode: ignored */
    assert_int_equal(x86_lapic_read_deadline(l), 0);
    set(l, 0x320, 0x40040);
    set(l, 0x380, 100);
    assert_int_equal(get(l, 0x390), 0);
    x86_lapic_write_deadline(l, 500);
    assert_int_equal(x86_lapic_next_ns(l), 500);
    s.now = 499;
    x86_lapic_poll(l, true);
    assert_int_equal(x86_lapic_pending(l), -1);
    s.now = 500;
    x86_lapic_poll(l, true);
    assert_int_equal(x86_lapic_pending(l), 0x40);
    assert_int_equal(x86_lapic_read_deadline(l), 0);
    x86_lapic_write_deadline(l, UINT64_MAX);
    assert_true(x86_lapic_next_ns(l) > 1ull << 62);
    set(l, 0x320, 0x40);
    assert_int_equal(x86_lapic_read_deadline(l), 0); /* leaving the mode disarms */
}

static void test_state_round_trip(void **state)
{
    struct system s;
    start(&s);
    struct x86_lapic *l = &s.lapic[1];
    set(l, 0x320, 0x20040);
    set(l, 0x380, 12345);
    set(l, 0xd0, 0x02000000);
    set(l, 0x80, 0x30);
    fixed(l, 0x91, true);
    x86_lapic_acknowledge(l, 0x91);
    fixed(l, 0x77, false);
    x86_lapic_accept(l, &(struct x86_lapic_message) {.delivery = X86_DELIVER_SIPI, .vector = 0x9a});
    struct x86_lapic_state a, b;
    x86_lapic_get_state(l, &a);
    x86_lapic_set_state(&s.lapic[2], &a, l->base, 0);
    x86_lapic_get_state(&s.lapic[2], &b);
    assert_memory_equal(&a, &b, sizeof a);
    assert_true(a.sipi_pending && a.sipi_vector == 0x9a);
    x86_lapic_init(l);
    assert_int_equal(get(l, 0x20), 1u << 24);
    assert_int_equal(get(l, 0xf0), 0xff);
    assert_int_equal(x86_lapic_pending(l), -1);
}

static void test_lint(void **state)
{
    struct system s;
    start(&s);
    struct x86_lapic *l = &s.lapic[0];
    assert_false(x86_lapic_takes_extint(l));
    set(l, 0x350, 0x700);
    assert_true(x86_lapic_takes_extint(l));
    set(l, 0x350, 0x55);
    assert_false(x86_lapic_takes_extint(l));
    x86_lapic_pulse_lint(l, 0);
    assert_true(requested(l, 0x55));
    set(l, 0x360, 0x400);
    x86_lapic_pulse_lint(l, 1);
    assert_int_equal(l->signals, X86_LAPIC_NMI);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_power_on_values),  cmocka_unit_test(test_priorities),
        cmocka_unit_test(test_destinations),     cmocka_unit_test(test_ipi_kinds),
        cmocka_unit_test(test_errors),           cmocka_unit_test(test_mode_transitions),
        cmocka_unit_test(test_x2apic_registers), cmocka_unit_test(test_timer_one_shot),
        cmocka_unit_test(test_timer_periodic),   cmocka_unit_test(test_timer_deadline),
        cmocka_unit_test(test_state_round_trip), cmocka_unit_test(test_lint),
    };
    return cmocka_run_group_tests_name("lapic", tests, NULL, NULL);
}
