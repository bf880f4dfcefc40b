/* device/virtio/virtio_console and virtio_rng, the console's backend replaced by buffers. */
#include "virtio_guest.h"

#include "backend/console/console.h"
#include "base/clock.h"
#include "device/virtio/virtio_console.h"
#include "device/virtio/virtio_rng.h"

/* The backend, in place of backend/console. */
struct console {
    struct console_client client;
    uint8_t out[8192];
    size_t out_length, room;
    unsigned kicks;
};

void console_attach(struct console *console, const struct console_client *client)
{
    console->client = client ? *client : (struct console_client) {0};
}

size_t console_write(struct console *console, const uint8_t *data, size_t length)
{
    length = MIN(length, console->room);
    memcpy(console->out + console->out_length, data, length);
    console->out_length += length;
    console->room -= length;
    return length;
}

void console_kick_input(struct console *console)
{
    console->kicks++;
}

struct fixture {
    struct guest guest;
    struct console console;
    struct device *rng;
};

#define BUFFER GUEST_BUFFERS

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);
    f->console.room = sizeof f->console.out;
    guest_create(&f->guest, 7);
    const struct virtio_pci_config pci = {f->guest.host, 7}, rng_pci = {f->guest.host, 8};
    const struct virtio_console_config config = {{virtio_pci_attach, &pci}, &f->console};
    const struct virtio_rng_config rng_config = {{virtio_pci_attach, &rng_pci}};
    f->guest.device = rig_add(f->guest.machine, &virtio_console_class, &config);
    f->rng = rig_add(f->guest.machine, &virtio_rng_class, &rng_config);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    guest_destroy(&f->guest);
    assert_null(f->console.client.input);
    free(f);
    return 0;
}

static void offer_text(struct fixture *f, const char *text)
{
    guest_put(&f->guest, BUFFER, text, strlen(text));
    guest_add(&f->guest, 1, &(struct guest_part) {BUFFER, (uint32_t)strlen(text), false}, 1);
    guest_kick(&f->guest, 1);
}

static void test_output(void **state)
{
    struct fixture *f = *state;
    guest_start(&f->guest, 0, 2);
    offer_text(f, "hello");
    assert_memory_equal(f->console.out, "hello", 5);
    assert_int_equal(guest_used_idx(&f->guest, 1), 1);
}

static void test_output_waits_for_room_and_loses_nothing(void **state)
{
    struct fixture *f = *state;
    guest_start(&f->guest, 0, 2);
    f->console.room = 3;
    offer_text(f, "hello");
    assert_int_equal(guest_used_idx(&f->guest, 1), 0);
    guest_kick(&f->guest, 1); /* does not send anything twice */
    assert_int_equal(f->console.out_length, 3);

    struct fixture *other; /* also not when it goes on in another machine */
    void *other_state;
    setup(&other_state);
    other = other_state;
    rig_assert_round_trip(f->guest.device, other->guest.device);
    teardown(&other_state);

    f->console.room = 100;
    f->console.client.can_write(f->console.client.context);
    guest_run_loop(&f->guest);
    assert_int_equal(guest_used_idx(&f->guest, 1), 1);
    assert_int_equal(f->console.out_length, 5);
    assert_memory_equal(f->console.out, "hello", 5);
}

static size_t type(struct fixture *f, const char *text)
{
    return f->console.client.input(f->console.client.context, (const uint8_t *)text, strlen(text));
}

static void test_input(void **state)
{
    struct fixture *f = *state;
    struct guest *g = &f->guest;
    uint32_t head, written;
    char got[8];
    assert_int_equal(type(f, "lost"), 4); /* no driver */
    guest_start(g, VIRTIO_F_EVENT_IDX, 2);
    assert_int_equal(type(f, "abc"), 0);
    guest_add(g, 0, &(struct guest_part) {BUFFER, 2, true}, 1);
    guest_kick(g, 0);
    assert_int_equal(f->console.kicks, 1);
    assert_int_equal(type(f, "abc"), 2);
    assert_true(guest_take_used(g, 0, &head, &written));
    assert_int_equal(written, 2);
    guest_get(g, BUFFER, got, 2);
    assert_memory_equal(got, "ab", 2);
    guest_set_status(g, 0);
    assert_int_equal(f->console.kicks, 2); /* what waited is asked for again, and lost */
}

static void test_unwritable_input_buffer_needs_reset(void **state)
{
    struct fixture *f = *state;
    guest_start(&f->guest, 0, 2);
    guest_add(&f->guest, 0, &(struct guest_part) {BUFFER, 2, false}, 1);
    type(f, "abc");
    assert_true(guest_status(&f->guest) & VIRTIO_STATUS_NEEDS_RESET);
}

static void test_emergency_write(void **state)
{
    struct fixture *f = *state;
    guest_enable(&f->guest);
    guest_write(&f->guest, VIRTIO_PCI_DEVICE + 8, 4, 'X');
    assert_int_equal(f->console.out[0], 'X');
}

static void use_rng(struct fixture *f)
{
    f->guest.slot = 8;
    f->guest.device = f->rng;
}

static void test_random_numbers(void **state)
{
    struct fixture *f = *state;
    struct guest *g = &f->guest;
    uint32_t head, written;
    uint8_t got[600], zero[600] = {0};
    use_rng(f);
    guest_start(g, 0, 1);
    guest_add(g, 0, &(struct guest_part) {BUFFER, sizeof got, true}, 1);
    guest_kick(g, 0);
    assert_true(guest_take_used(g, 0, &head, &written));
    assert_int_equal(written, sizeof got);
    guest_get(g, BUFFER, got, sizeof got);
    assert_memory_not_equal(got, zero, 300);
    assert_memory_not_equal(got + 300, zero, 300);
    guest_get(g, BUFFER + sizeof got, got, 8);
    assert_memory_equal(got, zero, 8);
}

static void test_random_numbers_have_a_rate(void **state)
{
    struct fixture *f = *state;
    struct guest *g = &f->guest;
    uint32_t head, written;
    uint64_t sum = 0;
    use_rng(f);
    guest_start(g, 0, 1);
    for (unsigned i = 0; i < 4; i++)
        guest_add(g, 0, &(struct guest_part) {BUFFER, 40 << 10, true}, 1);
    guest_kick(g, 0);
    while (guest_take_used(g, 0, &head, &written))
        sum += written;
    assert_int_equal(sum, 64 << 10); /* one window's worth */
    vm_clock_fake_advance(g->machine->clock, NS_PER_S);
    guest_run_loop(g);
    while (guest_take_used(g, 0, &head, &written))
        sum += written;
    assert_true(sum > 64 << 10);
    assert_int_equal(guest_used_idx(g, 0), 4);
}

static void test_rng_state(void **state)
{
    struct fixture *f = *state, *other;
    void *other_state;
    use_rng(f);
    guest_start(&f->guest, 0, 1);
    setup(&other_state);
    other = other_state;
    rig_assert_round_trip(f->rng, other->rng);
    teardown(&other_state);
}

static void test_garbage(void **state)
{
    struct fixture *f = *state;
    struct guest *g = &f->guest;
    guest_start(g, 0, 2);
    f->console.room = 0;
    rig_fuzz(g->machine, g->machine->mmio, g->bar, VIRTIO_PCI_BAR_SIZE, 50000);
    use_rng(f);
    guest_start(g, 0, 1);
    rig_fuzz(g->machine, g->machine->mmio, g->bar, VIRTIO_PCI_BAR_SIZE, 50000);
    guest_run_loop(g);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_output),
        TEST(test_output_waits_for_room_and_loses_nothing),
        TEST(test_input),
        TEST(test_unwritable_input_buffer_needs_reset),
        TEST(test_emergency_write),
        TEST(test_random_numbers),
        TEST(test_random_numbers_have_a_rate),
        TEST(test_rng_state),
        TEST(test_garbage),
    };
    return cmocka_run_group_tests_name("virtio_console", tests, NULL, NULL);
}
