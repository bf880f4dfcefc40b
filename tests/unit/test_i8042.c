/* device/i8042 and device/system_port: tests, keyboard answers, no mouse, resets, state, garbage.
 */
#include "rig.h"

#include "device/legacy/i8042.h"
#include "device/legacy/system_port.h"

struct fixture {
    struct machine *machine;
    struct device *device, *port;
};

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);
    f->machine = rig_create(1 << 20, 1);
    f->device = rig_add(f->machine, &i8042_class, NULL);
    f->port = rig_add(f->machine, &system_port_class, NULL);
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

static void command(struct fixture *f, uint8_t value)
{
    rig_outb(f->machine, 0x64, value);
}

static void data(struct fixture *f, uint8_t value)
{
    rig_outb(f->machine, 0x60, value);
}

/* The next byte, which must be there. */
static uint8_t answer(struct fixture *f)
{
    assert_int_equal(rig_inb(f->machine, 0x64) & 0x21, 0x01);
    return rig_inb(f->machine, 0x60);
}

static void silent(struct fixture *f)
{
    assert_int_equal(rig_inb(f->machine, 0x64) & 0x03, 0);
}

static void test_controller(void **state)
{
    struct fixture *f = *state;
    silent(f);
    command(f, 0xaa);
    assert_int_equal(answer(f), 0x55);
    command(f, 0xab);
    assert_int_equal(answer(f), 0x00);
    command(f, 0x60);
    data(f, 0x47);
    command(f, 0x20);
    assert_int_equal(answer(f), 0x47);
    command(f, 0xad);
    command(f, 0x20);
    assert_int_equal(answer(f), 0x57);
    silent(f);
}

/* What a driver asks to find out that there is no mouse, answered without a time-out. */
static void test_no_auxiliary_port(void **state)
{
    struct fixture *f = *state;
    command(f, 0xd3);
    data(f, 0x5a);
    assert_int_equal(answer(f), 0x5a); /* answer() checks that the auxiliary mark is clear */
    command(f, 0xa9);
    assert_int_not_equal(answer(f), 0x00);
    command(f, 0xd4);
    data(f, 0xf4);
    assert_int_equal(rig_inb(f->machine, 0x64) & 0x41, 0x41); /* time-out */
    rig_inb(f->machine, 0x60);
    silent(f);
}

static void test_keyboard_answers(void **state)
{
    struct fixture *f = *state;
    command(f, 0x60);
    data(f, 0x04); /* no translation */
    data(f, 0xff);
    assert_int_equal(answer(f), 0xfa);
    assert_int_equal(answer(f), 0xaa);
    data(f, 0xf2);
    assert_int_equal(answer(f), 0xfa);
    assert_int_equal(answer(f), 0xab);
    assert_int_equal(answer(f), 0x83);
    data(f, 0xed);
    assert_int_equal(answer(f), 0xfa);
    data(f, 0x02);
    assert_int_equal(answer(f), 0xfa);
    data(f, 0xf0);
    answer(f);
    data(f, 0x00);
    assert_int_equal(answer(f), 0xfa);
    assert_int_equal(answer(f), 0x02);
    data(f, 0xee);
    assert_int_equal(answer(f), 0xee);
    data(f, 0x10);
    assert_int_equal(answer(f), 0xfe);
    silent(f);
}

static void test_interrupt_per_byte(void **state)
{
    struct fixture *f = *state;
    data(f, 0xee);
    assert_false(rig_line(f->machine, 1)); /* not enabled */
    rig_inb(f->machine, 0x60);
    command(f, 0x60);
    data(f, 0x05);
    data(f, 0xff);
    assert_true(rig_line(f->machine, 1));
    rig_inb(f->machine, 0x60);
    assert_true(rig_line(f->machine, 1));
    rig_inb(f->machine, 0x60);
    assert_false(rig_line(f->machine, 1));
}

static void test_resets(void **state)
{
    struct fixture *f = *state;
    command(f, 0xfe);
    assert_int_equal(rig_take_request(f->machine), REQUEST_RESET);
    command(f, 0xff);
    assert_int_equal(rig_take_request(f->machine), REQUEST_NONE);
    command(f, 0xd1);
    data(f, 0xfe);
    assert_int_equal(rig_take_request(f->machine), REQUEST_RESET);
    assert_int_equal(rig_inb(f->machine, 0x92), 0x02);
    rig_outb(f->machine, 0x92, 0x01);
    assert_int_equal(rig_take_request(f->machine), REQUEST_RESET);
    rig_outb(f->machine, 0x92, 0x01); /* no edge */
    assert_int_equal(rig_take_request(f->machine), REQUEST_NONE);
    rig_outb(f->machine, 0x80, 0x42);
    assert_int_equal(rig_inb(f->machine, 0x80), 0x42);
}

static void test_state_round_trip(void **state)
{
    struct fixture *f = *state;
    command(f, 0x60);
    data(f, 0x45);
    data(f, 0xf2);
    rig_outb(f->machine, 0x92, 0);
    struct machine *other = rig_create(1 << 20, 1);
    rig_assert_round_trip(f->device, rig_add(other, &i8042_class, NULL));
    rig_assert_round_trip(f->port, rig_add(other, &system_port_class, NULL));
    assert_true(rig_line(other, 1));
    assert_int_equal(rig_inb(other, 0x60), 0xfa);
    assert_int_equal(rig_inb(other, 0x60), 0xab);
    rig_destroy(other);
}

static void test_garbage(void **state)
{
    struct fixture *f = *state;
    for (unsigned i = 0; i < 100; i++) {
        rig_fuzz(f->machine, f->machine->pio, 0x60, 1, 1000);
        rig_fuzz(f->machine, f->machine->pio, 0x64, 1, 1000);
        rig_fuzz(f->machine, f->machine->pio, 0x92, 1, 1000);
    }
    f->device->class->reset(f->device);
    command(f, 0xaa);
    assert_int_equal(answer(f), 0x55);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_controller),       TEST(test_no_auxiliary_port),
        TEST(test_keyboard_answers), TEST(test_interrupt_per_byte),
        TEST(test_resets),           TEST(test_state_round_trip),
        TEST(test_garbage),
    };
    return cmocka_run_group_tests_name("i8042", tests, NULL, NULL);
}
