/* device/pit: the six modes, latches, BCD, port 0x61, line 0 with late hosts, state, garbage. */
#include "rig.h"

#include "base/clock.h"
#include "device/legacy/pit.h"
#include "device/legacy/pit_counter.h"

#define HZ 1193182ull

struct fixture {
    struct machine *machine;
    struct device *device;
    struct irq_sink sink;
    unsigned rises;
};

static void count_rise(struct irq_sink *sink, unsigned line, bool level)
{
    struct fixture *f = container_of(sink, struct fixture, sink);
    f->rises += line == 0 && level;
}

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);
    f->machine = rig_create(1 << 20, 1);
    f->device = rig_add(f->machine, &pit_class, NULL);
    f->sink.set_level = count_rise;
    irq_lines_add_sink(f->machine->irq, &f->sink);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    rig_destroy(f->machine);
    free(f);
    return 0;
}

static void control(struct fixture *f, uint8_t value)
{
    rig_outb(f->machine, 0x43, value);
}

static void write16(struct fixture *f, unsigned counter, uint16_t value)
{
    rig_outb(f->machine, (uint16_t)(0x40 + counter), (uint8_t)value);
    rig_outb(f->machine, (uint16_t)(0x40 + counter), (uint8_t)(value >> 8));
}

static uint16_t read16(struct fixture *f, unsigned counter)
{
    uint16_t low = rig_inb(f->machine, (uint16_t)(0x40 + counter));
    return (uint16_t)(low | rig_inb(f->machine, (uint16_t)(0x40 + counter)) << 8);
}

static void advance_ticks(struct fixture *f, uint64_t ticks)
{
    vm_clock_fake_advance(f->machine->clock, mul_div_u64(ticks, NS_PER_S, HZ) + 100);
}

static void test_mode_2_ticks(void **state)
{
    struct fixture *f = *state;
    control(f, 0x34);
    write16(f, 0, 11932); /* 100 Hz */
    f->rises = 0;
    for (unsigned i = 0; i < 100; i++)
        vm_clock_fake_advance(f->machine->clock, 10 * NS_PER_MS);
    assert_in_range(f->rises, 99, 100);
}

/* The host runs the timer late: time jumps, and the timer is served after that. */
static void test_late_host_makes_up_within_bounds(void **state)
{
    struct fixture *f = *state;
    control(f, 0x34);
    write16(f, 0, 11932);
    f->rises = 0;
    vm_clock_set_ns(f->machine->clock, 205 * NS_PER_MS); /* 20 periods */
    vm_clock_fake_advance(f->machine->clock, NS_PER_MS);
    assert_int_equal(f->rises, 1); /* not all at once: the guest could not tell them apart */
    vm_clock_fake_advance(f->machine->clock, 195 * NS_PER_MS);
    assert_in_range(f->rises, 38, 40);
    vm_clock_set_ns(f->machine->clock, 1000 * NS_PER_S); /* 100,000 periods: most are forgotten */
    f->rises = 0;
    vm_clock_fake_advance(f->machine->clock, NS_PER_S);
    assert_in_range(f->rises, 148, 151);
}

static void test_mode_0_once(void **state)
{
    struct fixture *f = *state;
    control(f, 0x30);
    assert_false(rig_line(f->machine, 0));
    write16(f, 0, 1000);
    advance_ticks(f, 900);
    assert_false(rig_line(f->machine, 0));
    assert_in_range(read16(f, 0), 95, 101);
    advance_ticks(f, 110);
    assert_true(rig_line(f->machine, 0));
    advance_ticks(f, 70000);
    assert_true(rig_line(f->machine, 0));
    assert_int_equal(f->rises, 1);
    rig_outb(f->machine, 0x40, 5); /* the first byte of a new count stops it */
    assert_false(rig_line(f->machine, 0));
}

static void test_mode_3_square(void **state)
{
    struct fixture *f = *state;
    rig_outb(f->machine, 0x61, 1);
    control(f, 0xb6);
    write16(f, 2, 1000);
    unsigned high = 0;
    for (unsigned i = 0; i < 1000; i++) {
        vm_clock_fake_advance(f->machine->clock, NS_PER_S / HZ);
        high += rig_inb(f->machine, 0x61) >> 5 & 1;
    }
    assert_in_range(high, 470, 530);
}

static void test_counter_2_gate(void **state)
{
    struct fixture *f = *state;
    rig_outb(f->machine, 0x61, 0);
    control(f, 0xb0); /* mode 0 */
    write16(f, 2, 500);
    advance_ticks(f, 5000);
    assert_int_equal(rig_inb(f->machine, 0x61) & 0x20, 0); /* the gate is low */
    rig_outb(f->machine, 0x61, 1);
    advance_ticks(f, 400);
    assert_int_equal(rig_inb(f->machine, 0x61) & 0x21, 0x01);
    advance_ticks(f, 110);
    assert_int_equal(rig_inb(f->machine, 0x61) & 0x21, 0x21);
    vm_clock_fake_advance(f->machine->clock, 15085);
    uint8_t before = rig_inb(f->machine, 0x61) & 0x10;
    vm_clock_fake_advance(f->machine->clock, 15085);
    assert_int_not_equal(rig_inb(f->machine, 0x61) & 0x10, before); /* refresh */
}

static void test_latch_and_read_back(void **state)
{
    struct fixture *f = *state;
    control(f, 0x34);
    write16(f, 0, 60000);
    advance_ticks(f, 10000);
    control(f, 0x00);
    uint16_t latched = read16(f, 0);
    assert_in_range(latched, 49990, 50001);
    control(f, 0xc2); /* status and count of counter 0 */
    advance_ticks(f, 5000);
    assert_int_equal(rig_inb(f->machine, 0x40), 0xb4); /* out, both bytes, mode 2 */
    assert_in_range(latched - read16(f, 0), 0, 10);    /* latched at the read-back */
    assert_in_range(read16(f, 0), 44980, 45001);
    control(f, 0x14); /* low byte only, no count yet */
    control(f, 0xe2);
    assert_int_equal(rig_inb(f->machine, 0x40), 0xd4); /* null count */
}

static void test_bcd(void **state)
{
    struct fixture *f = *state;
    control(f, 0x31); /* mode 0, BCD */
    write16(f, 0, 0x1234);
    advance_ticks(f, 200);
    assert_in_range(read16(f, 0), 0x1030, 0x1036);
    write16(f, 0, 0xffff); /* not BCD digits: any count, no harm */
    read16(f, 0);
}

static void test_new_count_waits_for_period(void **state)
{
    struct pit_counter c;
    pit_counter_reset(&c, true);
    pit_counter_control(&c, 0x34, 0);
    pit_counter_write(&c, 100, 0);
    pit_counter_write(&c, 0, 0);
    assert_int_equal(pit_counter_next_rise(&c, 10), 101);
    pit_counter_write(&c, 50, 20);
    pit_counter_write(&c, 0, 20);
    assert_int_equal(pit_counter_next_rise(&c, 21), 101);
    assert_int_equal(pit_counter_next_rise(&c, 101), 151);
    (void)state;
}

static void test_triggered_and_strobe_modes(void **state)
{
    struct pit_counter c;
    (void)state;
    pit_counter_reset(&c, false);
    pit_counter_control(&c, 0x92, 0); /* mode 1, low byte */
    pit_counter_write(&c, 10, 0);
    assert_true(pit_counter_output(&c, 100));
    pit_counter_set_gate(&c, true, 100);
    assert_false(pit_counter_output(&c, 105));
    assert_int_equal(pit_counter_next_rise(&c, 105), 111);
    assert_true(pit_counter_output(&c, 111));
    pit_counter_control(&c, 0x98, 200); /* mode 4 */
    pit_counter_write(&c, 10, 200);
    assert_true(pit_counter_output(&c, 210));
    assert_false(pit_counter_output(&c, 211));
    assert_true(pit_counter_output(&c, 212));
    assert_int_equal(pit_counter_next_rise(&c, 205), 212);
}

/* The shortest period does not make the loop spin. */
static void test_shortest_period(void **state)
{
    struct fixture *f = *state;
    control(f, 0x14);
    rig_outb(f->machine, 0x40, 1);
    f->rises = 0;
    vm_clock_fake_advance(f->machine->clock, 10 * NS_PER_MS);
    assert_in_range(f->rises, 1, 201);
}

static void test_state_round_trip(void **state)
{
    struct fixture *f = *state;
    control(f, 0x34);
    write16(f, 0, 11932);
    rig_outb(f->machine, 0x61, 3);
    control(f, 0xb6);
    write16(f, 2, 777);
    vm_clock_fake_advance(f->machine->clock, 123456789);
    struct machine *other = rig_create(1 << 20, 1);
    vm_clock_fake_advance(other->clock, 123456789);
    struct device *copy = rig_add(other, &pit_class, NULL);
    rig_assert_round_trip(f->device, copy);
    for (unsigned i = 0; i < 50; i++) {
        vm_clock_fake_advance(f->machine->clock, 3 * NS_PER_MS);
        vm_clock_fake_advance(other->clock, 3 * NS_PER_MS);
        control(f, 0);
        rig_outb(other, 0x43, 0);
        assert_int_equal(rig_inb(f->machine, 0x40), rig_inb(other, 0x40));
        assert_int_equal(rig_inb(f->machine, 0x40), rig_inb(other, 0x40));
        assert_int_equal(rig_inb(f->machine, 0x61), rig_inb(other, 0x61));
    }
    rig_destroy(other);
}

/* The count from before is none that a decimal counter can have. */
static void test_state_round_trip_before_the_first_decimal_count(void **state)
{
    struct fixture *f = *state;
    control(f, 0x6f); /* counter 1, mode 3, BCD */
    struct machine *other = rig_create(1 << 20, 1);
    struct device *copy = rig_add(other, &pit_class, NULL);
    rig_assert_round_trip(f->device, copy);
    rig_destroy(other);
}

static void test_garbage(void **state)
{
    struct fixture *f = *state;
    for (unsigned i = 0; i < 100; i++) {
        rig_fuzz(f->machine, f->machine->pio, 0x40, 4, 1500);
        rig_fuzz(f->machine, f->machine->pio, 0x61, 1, 500);
    }
    f->device->class->reset(f->device);
    control(f, 0x30);
    write16(f, 0, 100);
    advance_ticks(f, 200);
    assert_true(rig_line(f->machine, 0));
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_mode_2_ticks),
        TEST(test_late_host_makes_up_within_bounds),
        TEST(test_mode_0_once),
        TEST(test_mode_3_square),
        TEST(test_counter_2_gate),
        TEST(test_latch_and_read_back),
        TEST(test_bcd),
        TEST(test_new_count_waits_for_period),
        TEST(test_triggered_and_strobe_modes),
        TEST(test_shortest_period),
        TEST(test_state_round_trip),
        TEST(test_state_round_trip_before_the_first_decimal_count),
        TEST(test_garbage),
    };
    return cmocka_run_group_tests_name("pit", tests, NULL, NULL);
}
