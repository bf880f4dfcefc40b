/* device/serial: registers, FIFOs, interrupts, loopback, back-pressure, state, garbage. */
#include "rig.h"

#include "backend/console/console.h"
#include "device/legacy/serial.h"

#define PORT SERIAL_COM1_PORT

/* A console of our own in place of the backend's: the linker takes these. */
struct console {
    struct console_client client;
    uint8_t out[4096];
    size_t out_count, room;
    unsigned kicks;
};

void console_attach(struct console *console, const struct console_client *client)
{
    console->client = client ? *client : (struct console_client) {0};
}

size_t console_write(struct console *console, const uint8_t *data, size_t length)
{
    size_t count = MIN(length, console->room);
    console->room -= count;
    for (size_t i = 0; i < count; i++)
        console->out[console->out_count++ % sizeof console->out] = data[i];
    return count;
}

void console_kick_input(struct console *console)
{
    console->kicks++;
}

struct fixture {
    struct console console;
    struct machine *machine;
    struct device *device;
};

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);
    f->console.room = 1000000000;
    f->machine = rig_create(1 << 20, 1);
    struct serial_config config = {PORT, SERIAL_COM1_IRQ, &f->console};
    f->device = rig_add(f->machine, &serial_class, &config);
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

static void out(struct fixture *f, unsigned reg, uint8_t value)
{
    rig_outb(f->machine, (uint16_t)(PORT + reg), value);
}

static uint8_t in(struct fixture *f, unsigned reg)
{
    return rig_inb(f->machine, (uint16_t)(PORT + reg));
}

static size_t type(struct fixture *f, const char *text)
{
    return f->console.client.input(f->console.client.context, (const uint8_t *)text, strlen(text));
}

static void test_output_reaches_console(void **state)
{
    struct fixture *f = *state;
    out(f, 0, 'h');
    out(f, 0, 'i');
    assert_int_equal(f->console.out_count, 2);
    assert_memory_equal(f->console.out, "hi", 2);
    assert_int_equal(in(f, 5), 0x60);
}

static void test_detected_as_16550a(void **state)
{
    struct fixture *f = *state;
    out(f, 7, 0x5a);
    assert_int_equal(in(f, 7), 0x5a);
    out(f, 1, 0xff);
    assert_int_equal(in(f, 1), 0x0f);
    out(f, 1, 0);
    out(f, 2, 0x01);
    assert_int_equal(in(f, 2), 0xc1);
    out(f, 2, 0xe1); /* no 64-byte FIFO */
    assert_int_equal(in(f, 2), 0xc1);
    out(f, 4, 0x1a); /* loopback with RTS and OUT2 */
    assert_int_equal(in(f, 6) & 0xf0, 0x90);
}

static void test_divisor_latch(void **state)
{
    struct fixture *f = *state;
    out(f, 3, 0x83);
    out(f, 0, 0x34);
    out(f, 1, 0x12);
    assert_int_equal(in(f, 0), 0x34);
    assert_int_equal(in(f, 1), 0x12);
    out(f, 3, 0x03);
    assert_int_equal(in(f, 1), 0);
    assert_int_equal(f->console.out_count, 0);
}

static void test_thre_interrupt(void **state)
{
    struct fixture *f = *state;
    out(f, 4, 0x08);
    out(f, 1, 0x02);
    assert_true(rig_line(f->machine, 4));
    assert_int_equal(in(f, 2) & 0x0f, 0x02);
    assert_int_equal(in(f, 2) & 0x0f, 0x01); /* reading IIR ended it */
    assert_false(rig_line(f->machine, 4));
    out(f, 0, 'x'); /* ... and an emptied transmitter raises it again */
    assert_true(rig_line(f->machine, 4));
    out(f, 4, 0x00);
    assert_false(rig_line(f->machine, 4)); /* OUT2 gates it */
}

static void test_receive_trigger_and_timeout(void **state)
{
    struct fixture *f = *state;
    out(f, 4, 0x08);
    out(f, 2, 0x81); /* FIFO, trigger at 8 */
    out(f, 1, 0x01);
    assert_int_equal(type(f, "abc"), 3);
    assert_true(rig_line(f->machine, 4));
    assert_int_equal(in(f, 2) & 0x0f, 0x0c);
    assert_int_equal(in(f, 0), 'a');
    assert_false(rig_line(f->machine, 4));
    vm_clock_fake_advance(f->machine->clock, 1000000);
    assert_true(rig_line(f->machine, 4)); /* what is left is announced again */
    assert_int_equal(type(f, "defghi"), 6);
    assert_int_equal(in(f, 2) & 0x0f, 0x04);
    for (const char *c = "bcdefghi"; *c; c++)
        assert_int_equal(in(f, 0), *c);
    assert_int_equal(in(f, 5) & 1, 0);
    assert_int_equal(in(f, 0), 0);
}

static void test_input_waits_for_room(void **state)
{
    struct fixture *f = *state;
    assert_int_equal(type(f, "abc"), 1); /* no FIFO: one byte */
    assert_int_equal(f->console.kicks, 0);
    assert_int_equal(in(f, 0), 'a');
    assert_int_equal(f->console.kicks, 1);
    out(f, 2, 0x01);
    assert_int_equal(type(f, "0123456789abcdefghij"), 16);
    assert_int_equal(in(f, 5) & 2, 0); /* no overrun */
}

static void test_loopback(void **state)
{
    struct fixture *f = *state;
    out(f, 4, 0x10);
    out(f, 0, 'q');
    assert_int_equal(f->console.out_count, 0);
    assert_int_equal(in(f, 5) & 1, 1);
    assert_int_equal(in(f, 0), 'q');
    out(f, 0, '1');
    out(f, 0, '2'); /* one-byte buffer: overrun, told once */
    assert_int_equal(in(f, 5) & 2, 2);
    assert_int_equal(in(f, 5) & 2, 0);
}

static void test_modem_status_delta(void **state)
{
    struct fixture *f = *state;
    assert_int_equal(in(f, 6), 0xb0);
    out(f, 4, 0x10); /* loopback: CTS, DSR, DCD fall */
    assert_int_equal(in(f, 6), 0x0b);
    assert_int_equal(in(f, 6), 0x00);
    out(f, 4, 0x14);
    out(f, 4, 0x10); /* trailing edge of RI */
    assert_int_equal(in(f, 6), 0x04);
}

static void test_full_host_paces_then_drops(void **state)
{
    struct fixture *f = *state;
    f->console.room = 1;
    out(f, 0, 'a');
    assert_int_equal(in(f, 5) & 0x20, 0x20);
    out(f, 0, 'b');
    assert_int_equal(in(f, 5) & 0x60, 0); /* the host takes nothing */
    f->console.room = 10;
    f->console.client.can_write(f->console.client.context);
    assert_int_equal(in(f, 5) & 0x60, 0x60);
    assert_memory_equal(f->console.out, "ab", 2);
    f->console.room = 0;
    out(f, 0, 'c');
    assert_int_equal(in(f, 5) & 0x20, 0);
    vm_clock_fake_advance(f->machine->clock, 1100000000);
    assert_int_equal(in(f, 5) & 0x20, 0x20); /* patience is over: the guest goes on */
    out(f, 0, 'd');
    assert_int_equal(in(f, 5) & 0x20, 0x20);
    f->console.room = 10;
    f->console.client.can_write(f->console.client.context);
    out(f, 0, 'e');
    assert_memory_equal(f->console.out, "abe", 3);
}

static void test_state_round_trip(void **state)
{
    struct fixture *f = *state;
    out(f, 3, 0x80);
    out(f, 0, 1);
    out(f, 3, 0x1b);
    out(f, 2, 0xc1);
    out(f, 1, 0x05);
    out(f, 4, 0x0b);
    out(f, 7, 0x77);
    type(f, "xyz");
    struct machine *other = rig_create(1 << 20, 1);
    struct serial_config config = {PORT, SERIAL_COM1_IRQ, NULL};
    struct device *copy = rig_add(other, &serial_class, &config);
    rig_assert_round_trip(f->device, copy);
    assert_true(rig_line(other, 4));
    assert_int_equal(rig_inb(other, PORT), 'x');
    rig_destroy(other);
}

static void test_impossible_state_is_refused(void **state)
{
    struct fixture *f = *state;
    uint8_t fifo[18] = {0};
    fifo[17] = 200;
    struct state_writer w;
    state_writer_init(&w);
    state_begin(&w, "serial");
    state_put(&w, "rx", fifo, sizeof fifo);
    state_end(&w);
    assert_int_not_equal(rig_load(f->device, w.data, w.size), 0);
    state_writer_free(&w);
}

static void test_garbage(void **state)
{
    struct fixture *f = *state;
    for (unsigned i = 0; i < 40; i++) {
        f->console.room = i % 3 ? 100000 : 5;
        type(f, "some input that is longer than the FIFO");
        rig_fuzz(f->machine, f->machine->pio, PORT, 8, 5000);
    }
    f->device->class->reset(f->device);
    assert_int_equal(in(f, 5), 0x60);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_output_reaches_console, setup, teardown),
        cmocka_unit_test_setup_teardown(test_detected_as_16550a, setup, teardown),
        cmocka_unit_test_setup_teardown(test_divisor_latch, setup, teardown),
        cmocka_unit_test_setup_teardown(test_thre_interrupt, setup, teardown),
        cmocka_unit_test_setup_teardown(test_receive_trigger_and_timeout, setup, teardown),
        cmocka_unit_test_setup_teardown(test_input_waits_for_room, setup, teardown),
        cmocka_unit_test_setup_teardown(test_loopback, setup, teardown),
        cmocka_unit_test_setup_teardown(test_modem_status_delta, setup, teardown),
        cmocka_unit_test_setup_teardown(test_full_host_paces_then_drops, setup, teardown),
        cmocka_unit_test_setup_teardown(test_state_round_trip, setup, teardown),
        cmocka_unit_test_setup_teardown(test_impossible_state_is_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(test_garbage, setup, teardown),
    };
    return cmocka_run_group_tests_name("serial", tests, NULL, NULL);
}
