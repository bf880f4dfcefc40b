/* vm/memory: bounds, spans of regions, the write bracket on every host-side write. */
#include "test.h"

#include <errno.h>
#include <string.h>

#include "vm/memory.h"

struct recorder {
    struct mem_observer observer;
    uint64_t start, length;
    unsigned begins, ends;
    int refuse;
};

static int recorder_begin(struct mem_observer *observer, gpa_t start, uint64_t length)
{
    struct recorder *r = (struct recorder *)observer;
    r->begins++;
    r->start = start.v;
    r->length = length;
    return r->refuse;
}

static void recorder_end(struct mem_observer *observer, gpa_t start, uint64_t length)
{
    struct recorder *r = (struct recorder *)observer;
    assert_int_equal(r->start, start.v);
    assert_int_equal(r->length, length);
    r->ends++;
}

/* RAM at [0, 64K) and, adjacent to nothing, at [1M, 1M + 64K); a third touches the second. */
static struct guest_memory *new_memory(void)
{
    struct guest_memory *memory;
    struct err err;
    assert_int_equal(guest_memory_create(&memory), 0);
    assert_int_equal(guest_memory_add_ram(memory, gpa(0x100000), 0x10000, &err), 0);
    assert_int_equal(guest_memory_add_ram(memory, gpa(0), 0x10000, &err), 0);
    assert_int_equal(guest_memory_add_ram(memory, gpa(0x110000), 0x1000, &err), 0);
    return memory;
}

static void test_regions_are_sorted_and_do_not_overlap(void **state)
{
    (void)state;
    struct guest_memory *memory = new_memory();
    struct err err;
    size_t count;
    const struct mem_region *region = guest_memory_regions(memory, &count);
    assert_int_equal(count, 3);
    assert_int_equal(region[0].start.v, 0);
    assert_int_equal(region[2].start.v, 0x110000);
    assert_int_equal(guest_memory_ram_size(memory), 0x21000);
    assert_int_equal(guest_memory_add_ram(memory, gpa(0xf000), 0x2000, &err), -EEXIST);
    assert_int_equal(guest_memory_add_ram(memory, gpa(0x20000), 0, &err), -EINVAL);
    assert_int_equal(guest_memory_add_ram(memory, gpa(0x20001), 0x1000, &err), -EINVAL);
    assert_int_equal(guest_memory_add_ram(memory, gpa(UINT64_MAX - 0xfff), 0x2000, &err), -EINVAL);
    assert_null(guest_memory_find(memory, gpa(0x10000)));
    guest_memory_destroy(memory);
}

static void test_copies_span_regions_and_refuse_holes(void **state)
{
    (void)state;
    struct guest_memory *memory = new_memory();
    uint8_t out[32], in[32];
    memset(in, 0x5a, sizeof in);
    assert_int_equal(guest_memory_write(memory, gpa(0x10fff0), in, sizeof in), 0);
    assert_int_equal(guest_memory_read(memory, gpa(0x10fff0), out, sizeof out), 0);
    assert_memory_equal(in, out, sizeof in);
    assert_int_equal(guest_memory_write(memory, gpa(0xfff0), in, sizeof in), -EFAULT);
    memset(in, 0, sizeof in);
    assert_int_equal(guest_memory_read(memory, gpa(0xfff0), out, 16), 0);
    assert_memory_equal(in, out, 16); /* the refused write left nothing */
    assert_int_equal(guest_memory_read(memory, gpa(UINT64_MAX), out, 2), -EFAULT);
    assert_int_equal(guest_memory_read(memory, gpa(0x111000), out, 1), -EFAULT);
    assert_int_equal(guest_memory_fill(memory, gpa(0x110ffe), 7, 3), -EFAULT);
    assert_int_equal(guest_memory_fill(memory, gpa(0x110ffd), 7, 3), 0);
    guest_memory_destroy(memory);
}

static void test_single_accesses_are_aligned(void **state)
{
    (void)state;
    struct guest_memory *memory = new_memory();
    uint64_t value = 0;
    assert_int_equal(guest_memory_store(memory, gpa(0x1000), 8, 0x1122334455667788), 0);
    assert_int_equal(guest_memory_load(memory, gpa(0x1004), 4, &value), 0);
    assert_int_equal(value, 0x11223344);
    assert_int_equal(guest_memory_load(memory, gpa(0x1007), 1, &value), 0);
    assert_int_equal(value, 0x11);
    assert_int_equal(guest_memory_load(memory, gpa(0x1001), 2, &value), -EINVAL);
    assert_int_equal(guest_memory_load(memory, gpa(0x1000), 3, &value), -EINVAL);
    assert_int_equal(guest_memory_store(memory, gpa(0x20000), 4, 0), -EFAULT);
    guest_memory_destroy(memory);
}

static void test_every_write_is_bracketed(void **state)
{
    (void)state;
    struct guest_memory *memory = new_memory();
    struct recorder r = {.observer = {.begin = recorder_begin, .end = recorder_end}};
    guest_memory_observe(memory, &r.observer);
    uint32_t word = 1;
    assert_int_equal(guest_memory_write(memory, gpa(0x2000), &word, 4), 0);
    assert_int_equal(r.begins, 1);
    assert_int_equal(guest_memory_store(memory, gpa(0x2008), 4, 1), 0);
    assert_int_equal(guest_memory_fill(memory, gpa(0x3000), 1, 100), 0);
    assert_int_equal(r.begins, 3);
    assert_int_equal(r.ends, 3);
    assert_int_equal(r.length, 100);
    r.refuse = -EIO;
    assert_int_equal(guest_memory_store(memory, gpa(0x2000), 4, 9), -EIO);
    uint64_t value;
    assert_int_equal(guest_memory_load(memory, gpa(0x2000), 4, &value), 0);
    assert_int_equal(value, 1);
    assert_int_equal(r.ends, 3);
    guest_memory_destroy(memory);
}

static void test_iov_splits_and_checks_flags(void **state)
{
    (void)state;
    struct guest_memory *memory = new_memory();
    struct iovec iov[4];
    unsigned count = 4;
    assert_int_equal(guest_memory_iov(memory, gpa(0x10f000), 0x2000, MEM_PINNABLE, iov, &count), 0);
    assert_int_equal(count, 2);
    assert_int_equal(iov[0].iov_len, 0x1000);
    assert_int_equal(iov[1].iov_len, 0x1000);
    count = 1;
    assert_int_equal(guest_memory_iov(memory, gpa(0x10f000), 0x2000, 0, iov, &count), -E2BIG);
    count = 4;
    assert_int_equal(guest_memory_iov(memory, gpa(0x10f000), 0x2001, 0, iov, &count), -EFAULT);
    assert_int_equal(guest_memory_iov(memory, gpa(0), 16, MEM_LAZY, iov, &count), -ENOTSUP);
    guest_memory_destroy(memory);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_regions_are_sorted_and_do_not_overlap),
        cmocka_unit_test(test_copies_span_regions_and_refuse_holes),
        cmocka_unit_test(test_single_accesses_are_aligned),
        cmocka_unit_test(test_every_write_is_bracketed),
        cmocka_unit_test(test_iov_splits_and_checks_flags),
    };
    return cmocka_run_group_tests_name("memory", tests, NULL, NULL);
}
