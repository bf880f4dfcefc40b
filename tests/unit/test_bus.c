/* vm/bus: overlap, lookup at the edges, splitting, unclaimed accesses, changes under readers. */
#include "test.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#include "vm/bus.h"

struct memory_device {
    uint8_t bytes[64];
    unsigned last_size;
};

static uint64_t memory_read(void *context, uint64_t offset, unsigned size)
{
    struct memory_device *d = context;
    assert_true(offset + size <= sizeof d->bytes);
    uint64_t value = ~0ull; /* the bus cuts it to size */
    memcpy(&value, d->bytes + offset, size);
    d->last_size = size;
    return value;
}

static void memory_write(void *context, uint64_t offset, unsigned size, uint64_t value)
{
    struct memory_device *d = context;
    assert_true(offset + size <= sizeof d->bytes);
    memcpy(d->bytes + offset, &value, size);
    d->last_size = size;
}

static const struct bus_ops memory_ops = {memory_read, memory_write};

static struct bus_range range_at(uint64_t start, struct memory_device *d)
{
    return (struct bus_range) {
        .start = start, .size = sizeof d->bytes, .ops = &memory_ops, .context = d};
}

static void test_overlap_is_refused(void **state)
{
    (void)state;
    struct bus *bus;
    struct memory_device d = {.last_size = 0};
    assert_int_equal(bus_create(&bus, "test", 0x10000), 0);
    struct bus_range range = range_at(0x1000, &d);
    assert_int_equal(bus_add(bus, &range), 0);
    range.start = 0x1000 - 63;
    assert_int_equal(bus_add(bus, &range), -EEXIST);
    range.start = 0x1000 + 63;
    assert_int_equal(bus_add(bus, &range), -EEXIST);
    range.start = 0x1000 - 64;
    assert_int_equal(bus_add(bus, &range), 0);
    range.start = 0x1000 + 64;
    assert_int_equal(bus_add(bus, &range), 0);
    range.start = 0x10000 - 63;
    assert_int_equal(bus_add(bus, &range), -ERANGE);
    range.size = 0;
    assert_int_equal(bus_add(bus, &range), -ERANGE);
    assert_int_equal(bus_remove(bus, 0x1001), -ENOENT);
    assert_int_equal(bus_remove(bus, 0x1000), 0);
    assert_int_equal(bus_remove(bus, 0x1000), -ENOENT);
    bus_destroy(bus);
}

static void test_table_is_bounded(void **state)
{
    (void)state;
    struct bus *bus;
    struct memory_device d = {.last_size = 0};
    assert_int_equal(bus_create(&bus, "test", 0), 0);
    for (uint64_t i = 0; i < BUS_RANGES_MAX; i++) {
        struct bus_range range = range_at((BUS_RANGES_MAX - i) * 0x1000, &d);
        assert_int_equal(bus_add(bus, &range), 0);
    }
    struct bus_range one_more = range_at(0, &d);
    assert_int_equal(bus_add(bus, &one_more), -ENOSPC);
    bus_destroy(bus);
}

static void test_accesses_reach_their_owner(void **state)
{
    (void)state;
    struct bus *bus;
    struct memory_device a = {.last_size = 0}, b = {.last_size = 0};
    assert_int_equal(bus_create(&bus, "test", 0), 0);
    struct bus_range ra = range_at(0x100, &a), rb = range_at(0x140, &b);
    assert_int_equal(bus_add(bus, &rb), 0);
    assert_int_equal(bus_add(bus, &ra), 0);
    bus_write(bus, 0x104, 4, 0x11223344);
    assert_int_equal(bus_read(bus, 0x104, 2), 0x3344);
    assert_int_equal(a.last_size, 2);
    bus_write(bus, 0x13e, 4, 0xaabbccdd); /* crosses from a to b: bytes */
    assert_int_equal(a.bytes[63], 0xcc);
    assert_int_equal(b.bytes[0], 0xbb);
    assert_int_equal(bus_read(bus, 0x13e, 4), 0xaabbccdd);
    bus_write(bus, 0x17e, 4, 0); /* half in b, half nowhere */
    assert_int_equal(bus_read(bus, 0x17e, 4), 0xffff0000);
    bus_destroy(bus);
}

static void test_unclaimed_reads_all_ones_and_counts(void **state)
{
    (void)state;
    struct bus *bus;
    struct bus_counters counters;
    assert_int_equal(bus_create(&bus, "test", 0), 0);
    assert_int_equal(bus_read(bus, 0x80, 1), 0xff);
    assert_int_equal(bus_read(bus, 0x80, 4), 0xffffffff);
    assert_true(bus_read(bus, 0x80, 8) == UINT64_MAX);
    bus_write(bus, 0x80, 2, 1);
    bus_counters(bus, &counters);
    assert_int_equal(counters.reads, 3);
    assert_int_equal(counters.unclaimed_reads, 3);
    assert_int_equal(counters.unclaimed_writes, 1);
    bus_destroy(bus);
}

struct mover {
    struct bus *bus;
    struct memory_device low;
    atomic_bool stop;
};

/* Adds and removes a range below the fixed one, so that the fixed one's slot keeps moving. */
static void *mover_thread(void *argument)
{
    struct mover *m = argument;
    while (!atomic_load(&m->stop)) {
        struct bus_range range = range_at(0x100, &m->low);
        if (bus_add(m->bus, &range) != 0 || bus_remove(m->bus, 0x100) != 0)
            return (void *)1;
    }
    return NULL;
}

static void test_lookup_holds_while_the_table_moves(void **state)
{
    (void)state;
    struct mover m = {.low = {.last_size = 0}};
    struct memory_device fixed;
    memset(fixed.bytes, 0x77, sizeof fixed.bytes);
    assert_int_equal(bus_create(&m.bus, "test", 0), 0);
    struct bus_range range = range_at(0x1000, &fixed);
    assert_int_equal(bus_add(m.bus, &range), 0);
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, mover_thread, &m), 0);
    for (unsigned i = 0; i < 200000; i++)
        assert_int_equal(bus_read(m.bus, 0x1000, 4), 0x77777777);
    atomic_store(&m.stop, true);
    void *failed;
    pthread_join(thread, &failed);
    assert_null(failed);
    bus_destroy(m.bus);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_overlap_is_refused),
        cmocka_unit_test(test_table_is_bounded),
        cmocka_unit_test(test_accesses_reach_their_owner),
        cmocka_unit_test(test_unclaimed_reads_all_ones_and_counts),
        cmocka_unit_test(test_lookup_holds_while_the_table_moves),
    };
    return cmocka_run_group_tests_name("bus", tests, NULL, NULL);
}
