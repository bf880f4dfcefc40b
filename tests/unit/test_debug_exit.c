/* device/debug_exit: the value of any size reaches the machine; busy neighbours narrow it. */
#include "rig.h"

#include "device/legacy/debug_exit.h"

static void test_write_of_each_size(void **state)
{
    (void)state;
    static const struct {
        unsigned size;
        uint32_t value, expected;
    } cases[] = {{1, 0x31, 0x31}, {2, 0x1234, 0x1234}, {4, 0x89abcdef, 0x89abcdef}};
    for (unsigned i = 0; i < ARRAY_COUNT(cases); i++) {
        struct machine *machine = rig_create(1 << 20, 1);
        struct debug_exit_config config = {0xf4};
        rig_add(machine, &debug_exit_class, &config);
        assert_int_equal(rig_in(machine, 0xf4, 4), 0xffffffff);
        assert_int_equal(rig_take_request(machine), REQUEST_NONE);
        rig_out(machine, 0xf4, cases[i].size, cases[i].value);
        assert_int_equal(machine->internal->request_end, MACHINE_END_DEBUG_EXIT);
        assert_int_equal(machine_debug_exit_value(machine), cases[i].expected);
        rig_destroy(machine);
    }
}

static uint64_t no_read(void *context, uint64_t offset, unsigned size)
{
    (void)context, (void)offset, (void)size;
    return 0;
}

static void no_write(void *context, uint64_t offset, unsigned size, uint64_t value)
{
    (void)context, (void)offset, (void)size, (void)value;
}

static void test_neighbours(void **state)
{
    (void)state;
    static const struct bus_ops ops = {no_read, no_write};
    struct machine *machine = rig_create(1 << 20, 1);
    struct bus_range taken = {.start = 0x501, .size = 1, .ops = &ops};
    assert_int_equal(bus_add(machine->pio, &taken), 0);
    struct debug_exit_config config = {0x500}, last = {0xffff}, bad = {0x501};
    rig_add(machine, &debug_exit_class, &config);
    rig_add(machine, &debug_exit_class, &last);
    struct err err = {{0}};
    assert_int_not_equal(machine_add_device(machine, &debug_exit_class, "x", &bad, NULL, &err), 0);
    assert_non_null(strstr(err.text, "--debug-exit 0x501"));
    rig_outb(machine, 0x500, 5);
    assert_int_equal(machine_debug_exit_value(machine), 5);
    rig_destroy(machine);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_write_of_each_size),
        cmocka_unit_test(test_neighbours),
    };
    return cmocka_run_group_tests_name("debug_exit", tests, NULL, NULL);
}
