/* device/rtc: the calendar, setting it, interrupts, CMOS sizes, state, garbage. */
#include "rig.h"

#include "base/clock.h"
#include "device/legacy/rtc.h"
#include "device/legacy/rtc_time.h"

#define RAM ((3ull << 30) + (1ull << 29))

struct fixture {
    struct machine *machine;
    struct device *device;
};

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);
    f->machine = rig_create(RAM, 3);
    f->device = rig_add(f->machine, &rtc_class, NULL);
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

static uint8_t get(struct fixture *f, uint8_t reg)
{
    rig_outb(f->machine, 0x70, reg);
    return rig_inb(f->machine, 0x71);
}

static void set(struct fixture *f, uint8_t reg, uint8_t value)
{
    rig_outb(f->machine, 0x70, reg);
    rig_outb(f->machine, 0x71, value);
}

static void assert_time(struct fixture *f, const uint8_t expected[6])
{
    static const uint8_t registers[6] = {9, 8, 7, 4, 2, 0};
    for (unsigned i = 0; i < 6; i++)
        assert_int_equal(get(f, registers[i]), expected[i]);
}

static void test_calendar(void **state)
{
    static const struct {
        int64_t unix_s;
        struct rtc_time t;
    } cases[] = {
        {0, {1970, 1, 1, 5, 0, 0, 0}},
        {951782399, {2000, 2, 28, 2, 23, 59, 59}},
        {951782400, {2000, 2, 29, 3, 0, 0, 0}},
        {951868800, {2000, 3, 1, 4, 0, 0, 0}},
        {4107542399, {2100, 2, 28, 1, 23, 59, 59}},
        {4107542400, {2100, 3, 1, 2, 0, 0, 0}},
        {-1, {1969, 12, 31, 4, 23, 59, 59}},
    };
    (void)state;
    for (unsigned i = 0; i < ARRAY_COUNT(cases); i++) {
        struct rtc_time t;
        rtc_time_from_unix(cases[i].unix_s, &t);
        assert_memory_equal(&t, &cases[i].t, sizeof t);
        assert_int_equal(rtc_time_to_unix(&t), cases[i].unix_s);
    }
    for (int64_t s = -60000000000; s < 250000000000; s += 86399999) {
        struct rtc_time t;
        uint8_t registers[10], century;
        rtc_time_from_unix(s, &t);
        rtc_time_to_registers(&t, (uint8_t)(s & 6), registers, &century);
        rtc_time_from_registers(&t, (uint8_t)(s & 6), registers, century);
        assert_int_equal(rtc_time_to_unix(&t), s);
    }
}

static void test_time_runs(void **state)
{
    struct fixture *f = *state;
    assert_time(f, (uint8_t[]) {0x00, 0x01, 0x01, 0x00, 0x00, 0x00});
    assert_int_equal(get(f, 0x32), 0x20);
    assert_int_equal(get(f, 6), 7); /* a Saturday */
    vm_clock_fake_advance(f->machine->clock, (13 * 3600 + 14 * 60 + 15) * NS_PER_S);
    assert_time(f, (uint8_t[]) {0x00, 0x01, 0x01, 0x13, 0x14, 0x15});
    set(f, 0x0b, 0x04); /* binary, 12 hours */
    assert_time(f, (uint8_t[]) {0, 1, 1, 0x81, 14, 15});
}

static void test_guest_sets_time(void **state)
{
    struct fixture *f = *state;
    set(f, 0x0b, 0x82);
    static const uint8_t values[][2] = {{9, 0x27}, {8, 0x12}, {7, 0x31},
                                        {4, 0x23}, {2, 0x59}, {0, 0x58}};
    for (unsigned i = 0; i < ARRAY_COUNT(values); i++)
        set(f, values[i][0], values[i][1]);
    vm_clock_fake_advance(f->machine->clock, 5 * NS_PER_S);
    assert_int_equal(get(f, 0), 0x58); /* stopped */
    set(f, 0x0b, 0x02);
    vm_clock_fake_advance(f->machine->clock, 3 * NS_PER_S);
    assert_time(f, (uint8_t[]) {0x28, 0x01, 0x01, 0x00, 0x00, 0x01});
    set(f, 4, 0x07); /* without stopping */
    assert_time(f, (uint8_t[]) {0x28, 0x01, 0x01, 0x07, 0x00, 0x01});
}

static void test_update_in_progress(void **state)
{
    struct fixture *f = *state;
    assert_int_equal(get(f, 0x0a) & 0x80, 0);
    vm_clock_fake_advance(f->machine->clock, NS_PER_S - 100 * NS_PER_US);
    assert_int_equal(get(f, 0x0a) & 0x80, 0x80);
    vm_clock_fake_advance(f->machine->clock, 100 * NS_PER_US);
    assert_int_equal(get(f, 0x0a) & 0x80, 0);
}

static void test_update_and_alarm_interrupts(void **state)
{
    struct fixture *f = *state;
    get(f, 0x0c);
    set(f, 0x0b, 0x12);
    vm_clock_fake_advance(f->machine->clock, 1100 * NS_PER_MS);
    assert_true(rig_line(f->machine, 8));
    assert_int_equal(get(f, 0x0c) & 0xb0, 0x90);
    assert_false(rig_line(f->machine, 8));
    assert_int_equal(get(f, 0x0c), 0);
    set(f, 1, 0x30);
    set(f, 3, 0xff);
    set(f, 5, 0xff);
    set(f, 0x0b, 0x22);
    vm_clock_fake_advance(f->machine->clock, 20 * NS_PER_S);
    assert_false(rig_line(f->machine, 8));
    for (unsigned i = 0; i < 10; i++)
        vm_clock_fake_advance(f->machine->clock, NS_PER_S);
    assert_true(rig_line(f->machine, 8));
    assert_int_equal(get(f, 0x0c) & 0xa0, 0xa0);
}

static void test_periodic_interrupt(void **state)
{
    struct fixture *f = *state;
    set(f, 0x0a, 0x26);
    set(f, 0x0b, 0x42);
    unsigned interrupts = 0;
    for (unsigned i = 0; i < 5000; i++) {
        vm_clock_fake_advance(f->machine->clock, 200 * NS_PER_US);
        if (rig_line(f->machine, 8))
            interrupts += get(f, 0x0c) >> 6 & 1;
    }
    assert_in_range(interrupts, 1020, 1026); /* 1,024 Hz for a second */
    set(f, 0x0a, 0x20);
    get(f, 0x0c);
    vm_clock_fake_advance(f->machine->clock, NS_PER_S);
    assert_false(rig_line(f->machine, 8));
}

static void test_memory_sizes(void **state)
{
    struct fixture *f = *state;
    assert_int_equal(get(f, 0x15) | get(f, 0x16) << 8, 640);
    assert_int_equal(get(f, 0x17) | get(f, 0x18) << 8, 0xffff);
    assert_int_equal((get(f, 0x34) | get(f, 0x35) << 8) * 65536ull,
                     MACHINE_LOW_RAM_MAX - (16 << 20));
    assert_int_equal((get(f, 0x5b) | get(f, 0x5c) << 8 | get(f, 0x5d) << 16) * 65536ull,
                     RAM - MACHINE_LOW_RAM_MAX);
    assert_int_equal(get(f, 0x5f), 2);
    assert_int_equal(get(f, 0x0d), 0x80);
}

static void test_cmos_survives_reset(void **state)
{
    struct fixture *f = *state;
    set(f, 0x40, 0x77);
    set(f, 0x0b, 0x72);
    f->device->class->reset(f->device);
    assert_int_equal(get(f, 0x40), 0x77);
    assert_int_equal(get(f, 0x0b), 0x02);
}

static void test_state_round_trip(void **state)
{
    struct fixture *f = *state;
    set(f, 9, 0x31);
    set(f, 0x0b, 0x52);
    set(f, 0x50, 0xab);
    vm_clock_fake_advance(f->machine->clock, 2 * NS_PER_S);
    struct machine *other = rig_create(RAM, 3);
    vm_clock_fake_advance(other->clock, 2 * NS_PER_S);
    struct device *copy = rig_add(other, &rtc_class, NULL);
    rig_assert_round_trip(f->device, copy);
    assert_true(rig_line(other, 8));
    rig_outb(other, 0x70, 9);
    assert_int_equal(rig_inb(other, 0x71), 0x31);
    rig_destroy(other);
}

static void test_garbage(void **state)
{
    struct fixture *f = *state;
    rig_fuzz(f->machine, f->machine->pio, 0x70, 2, 300000);
    f->device->class->reset(f->device);
    set(f, 0x20, 0x11);
    assert_int_equal(get(f, 0x20), 0x11);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_calendar),
        TEST(test_time_runs),
        TEST(test_guest_sets_time),
        TEST(test_update_in_progress),
        TEST(test_update_and_alarm_interrupts),
        TEST(test_periodic_interrupt),
        TEST(test_memory_sizes),
        TEST(test_cmos_survives_reset),
        TEST(test_state_round_trip),
        TEST(test_garbage),
    };
    return cmocka_run_group_tests_name("rtc", tests, NULL, NULL);
}
