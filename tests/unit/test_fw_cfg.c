/* device/fw_cfg: items, directory, DMA with its guards, state, garbage. */
#include "rig.h"

#include <errno.h>
#include <stdio.h>

#include "device/legacy/fw_cfg.h"
#include "vm/platform.h"

#define PORT PLATFORM_FW_CFG_PORT
#define RAM  (4ull << 20)

struct fixture {
    struct machine *machine;
    struct device *device;
};

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);
    f->machine = rig_create(RAM, 3);
    f->device = rig_add(f->machine, &fw_cfg_class, NULL);
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

static void read_item(struct fixture *f, uint16_t key, void *to, unsigned size)
{
    rig_out(f->machine, PORT, 2, key);
    for (unsigned i = 0; i < size; i++)
        ((uint8_t *)to)[i] = rig_inb(f->machine, PORT + 1);
}

/* One DMA transfer; returns the control field afterwards. */
static uint32_t dma(struct fixture *f, uint32_t control, uint32_t length, uint64_t address)
{
    uint8_t request[16];
    store_le32(request, __builtin_bswap32(control));
    store_le32(request + 4, __builtin_bswap32(length));
    store_le64(request + 8, __builtin_bswap64(address));
    assert_int_equal(guest_memory_write(f->machine->memory, gpa(0x1000), request, 16), 0);
    rig_out(f->machine, PORT + 4, 4, 0);
    rig_out(f->machine, PORT + 8, 4, __builtin_bswap32(0x1000));
    uint32_t result;
    assert_int_equal(guest_memory_read(f->machine->memory, gpa(0x1000), &result, 4), 0);
    return __builtin_bswap32(result);
}

static void test_numbered_items(void **state)
{
    struct fixture *f = *state;
    uint8_t bytes[8];
    read_item(f, 0, bytes, 4);
    assert_memory_equal(bytes, "QEMU", 4);
    read_item(f, 1, bytes, 4);
    assert_int_equal(load_le32(bytes), 3);
    read_item(f, 5, bytes, 2);
    assert_int_equal(load_le16(bytes), 3);
    read_item(f, 0x0f, bytes, 2);
    assert_int_equal(load_le16(bytes), 3);
    read_item(f, 3, bytes, 8);
    assert_int_equal(load_le64(bytes), RAM);
    read_item(f, 0x7777, bytes, 4);
    assert_int_equal(load_le32(bytes), 0);
}

static void test_directory_and_file(void **state)
{
    struct fixture *f = *state;
    assert_int_equal(fw_cfg_set_file(f->device, "etc/one", "11", 2), 0);
    assert_int_equal(fw_cfg_set_file(f->device, "etc/two", "2222", 4), 0);
    assert_int_equal(fw_cfg_set_file(f->device, "etc/one", "111", 3), 0); /* replaced */
    uint8_t directory[4 + 2 * 64], data[6];
    read_item(f, 0x19, directory, sizeof directory);
    assert_int_equal(__builtin_bswap32(load_le32(directory)), 2);
    assert_int_equal(__builtin_bswap32(load_le32(directory + 4)), 3);
    assert_string_equal((char *)directory + 12, "etc/one");
    assert_string_equal((char *)directory + 76, "etc/two");
    uint16_t key = __builtin_bswap16(load_le16(directory + 64 + 8));
    read_item(f, key, data, sizeof data);
    assert_memory_equal(data, "2222\0\0", 6);
    char name[80];
    memset(name, 'n', sizeof name);
    name[56] = 0;
    assert_int_equal(fw_cfg_set_file(f->device, name, "", 0), -ENAMETOOLONG);
    for (unsigned i = 2; i < FW_CFG_FILES_MAX; i++) {
        snprintf(name, sizeof name, "file%u", i);
        assert_int_equal(fw_cfg_set_file(f->device, name, "x", 1), 0);
    }
    assert_int_equal(fw_cfg_set_file(f->device, "one too many", "x", 1), -ENOSPC);
}

static void test_dma(void **state)
{
    struct fixture *f = *state;
    assert_int_equal(rig_in(f->machine, PORT + 4, 4), 0x554d4551); /* "QEMU" */
    assert_int_equal(rig_in(f->machine, PORT + 8, 4), 0x47464320); /* " CFG" */
    assert_int_equal(fw_cfg_set_file(f->device, "etc/data", "0123456789", 10), 0);
    assert_int_equal(dma(f, 0x20 << 16 | 0x0a, 4, 0x2000), 0); /* select and read */
    assert_int_equal(dma(f, 0x04, 2, 0), 0);                   /* skip */
    assert_int_equal(guest_memory_fill(f->machine->memory, gpa(0x2004), 0xee, 16), 0);
    assert_int_equal(dma(f, 0x02, 8, 0x2004), 0);
    char text[16];
    assert_int_equal(guest_memory_read(f->machine->memory, gpa(0x2000), text, 16), 0);
    assert_memory_equal(text, "01236789\0\0\0\0\xee\xee\xee\xee", 16); /* zeros behind the end */
}

static void test_dma_guards(void **state)
{
    struct fixture *f = *state;
    assert_int_equal(dma(f, 0x02, 4, RAM - 2), 1);
    assert_int_equal(dma(f, 0x02, 0xffffffff, 0x2000), 1);
    assert_int_equal(dma(f, 0x02, 4, ~0ull - 1), 1);
    assert_int_equal(dma(f, 0x02, 2 << 20, 0x2000), 1); /* in RAM, but far behind the item */
    assert_int_equal(dma(f, 0x10, 4, 0x2000), 1);       /* nothing is writable */
    rig_out(f->machine, PORT + 4, 4, 0xffffffff);       /* a structure outside of RAM */
    rig_out(f->machine, PORT + 8, 4, 0);
    assert_true(f->device->guest_errors >= 5);
}

static void test_state_round_trip(void **state)
{
    struct fixture *f = *state;
    uint8_t byte;
    read_item(f, 0, &byte, 1);
    struct machine *other = rig_create(RAM, 3);
    rig_assert_round_trip(f->device, rig_add(other, &fw_cfg_class, NULL));
    assert_int_equal(rig_inb(other, PORT + 1), 'E');
    rig_destroy(other);
}

static void test_garbage(void **state)
{
    struct fixture *f = *state;
    assert_int_equal(fw_cfg_set_file(f->device, "etc/data", "0123456789", 10), 0);
    rig_fuzz(f->machine, f->machine->pio, PORT, 12, 300000);
    f->device->class->reset(f->device);
    uint8_t bytes[4];
    read_item(f, 0, bytes, 4);
    assert_memory_equal(bytes, "QEMU", 4);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_numbered_items), TEST(test_directory_and_file), TEST(test_dma),
        TEST(test_dma_guards),     TEST(test_state_round_trip),   TEST(test_garbage),
    };
    return cmocka_run_group_tests_name("fw_cfg", tests, NULL, NULL);
}
