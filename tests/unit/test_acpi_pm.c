/* device/acpi_pm: S5, power button, SCI, the PM timer and its interrupt, GPE, state, garbage. */
#include "rig.h"

#include "base/clock.h"
#include "device/legacy/acpi_pm.h"
#include "vm/platform.h"

#define STATUS  PLATFORM_PM1_EVT
#define ENABLE  (PLATFORM_PM1_EVT + 2)
#define CONTROL PLATFORM_PM1_CNT

struct fixture {
    struct machine *machine;
    struct device *device;
};

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);
    f->machine = rig_create(1 << 20, 1);
    f->device = rig_add(f->machine, &acpi_pm_class, NULL);
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

static void test_power_off(void **state)
{
    struct fixture *f = *state;
    assert_int_equal(rig_in(f->machine, CONTROL, 2), 1); /* always in ACPI mode */
    rig_out(f->machine, CONTROL, 2, 0x2001 | 5 << 10);   /* a sleep state that is not there */
    assert_int_equal(rig_take_request(f->machine), REQUEST_NONE);
    assert_int_equal(f->device->guest_errors, 1);
    rig_out(f->machine, CONTROL, 2, PLATFORM_SLP_TYP_S5 << 10);
    assert_int_equal(rig_take_request(f->machine), REQUEST_NONE);
    assert_int_equal(rig_in(f->machine, CONTROL, 2), PLATFORM_SLP_TYP_S5 << 10 | 1);
    rig_out(f->machine, CONTROL, 2, 0x2000 | PLATFORM_SLP_TYP_S5 << 10);
    assert_int_equal(rig_take_request(f->machine), REQUEST_END);
    assert_int_equal(f->machine->internal->request_end, MACHINE_END_POWEROFF);
}

static void test_power_button(void **state)
{
    struct fixture *f = *state;
    rig_out(f->machine, ENABLE, 2, 0x0100);
    machine_press_power_button(f->machine);
    assert_true(rig_line(f->machine, 9));
    assert_int_equal(rig_in(f->machine, STATUS, 2), 0x0100);
    rig_out(f->machine, STATUS, 2, 0x0100);
    assert_false(rig_line(f->machine, 9));
    rig_out(f->machine, ENABLE, 2, 0);
    machine_press_power_button(f->machine);
    assert_false(rig_line(f->machine, 9)); /* kept for later */
    rig_outb(f->machine, ENABLE + 1, 0x01);
    assert_true(rig_line(f->machine, 9));
}

static void test_timer(void **state)
{
    struct fixture *f = *state;
    uint32_t before = rig_in(f->machine, PLATFORM_PM_TMR, 4);
    vm_clock_fake_advance(f->machine->clock, NS_PER_S);
    uint32_t ticks = (rig_in(f->machine, PLATFORM_PM_TMR, 4) - before) & 0xffffff;
    assert_in_range(ticks, 3579544, 3579546);
    rig_out(f->machine, ENABLE, 2, 1);
    assert_false(rig_line(f->machine, 9));
    vm_clock_fake_advance(f->machine->clock, 1400 * NS_PER_MS); /* 2^23 ticks are 2.34 s */
    assert_true(rig_line(f->machine, 9));
    rig_out(f->machine, STATUS, 2, 1);
    assert_false(rig_line(f->machine, 9));
    vm_clock_fake_advance(f->machine->clock, 2400 * NS_PER_MS);
    assert_true(rig_line(f->machine, 9));
}

static void test_gpe_registers(void **state)
{
    struct fixture *f = *state;
    rig_out(f->machine, PLATFORM_GPE0 + 2, 2, 0xffff);
    assert_int_equal(rig_in(f->machine, PLATFORM_GPE0, 4), 0xffff0000);
    assert_false(rig_line(f->machine, 9));
}

static void test_state_round_trip(void **state)
{
    struct fixture *f = *state;
    rig_out(f->machine, ENABLE, 2, 0x0121);
    rig_out(f->machine, CONTROL, 2, 0x1c01);
    machine_press_power_button(f->machine);
    vm_clock_fake_advance(f->machine->clock, 5 * NS_PER_S);
    struct machine *other = rig_create(1 << 20, 1);
    vm_clock_fake_advance(other->clock, 5 * NS_PER_S);
    rig_assert_round_trip(f->device, rig_add(other, &acpi_pm_class, NULL));
    assert_true(rig_line(other, 9));
    assert_int_equal(rig_in(other, PLATFORM_PM_TMR, 4), rig_in(f->machine, PLATFORM_PM_TMR, 4));
    rig_destroy(other);
}

static void test_garbage(void **state)
{
    struct fixture *f = *state;
    rig_fuzz(f->machine, f->machine->pio, PLATFORM_PM_BASE, 0x30, 300000);
    f->device->class->reset(f->device);
    assert_false(rig_line(f->machine, 9));
    assert_int_equal(rig_in(f->machine, CONTROL, 2), 1);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_power_off),     TEST(test_power_button),     TEST(test_timer),
        TEST(test_gpe_registers), TEST(test_state_round_trip), TEST(test_garbage),
    };
    return cmocka_run_group_tests_name("acpi_pm", tests, NULL, NULL);
}
