/* device/pic: the 8259A pair's priorities, modes, cascade, end of interrupt, state, garbage. */
#include "rig.h"

#include "device/legacy/pic.h"

#define MASTER 0x20
#define SLAVE  0xa0

struct fixture {
    struct machine *machine;
    struct device *device;
    struct irq_source source[16];
    struct irq_eoi_notifier notifier;
    unsigned eoi_count;
};

static void on_eoi(struct irq_eoi_notifier *notifier, unsigned line)
{
    struct fixture *f = container_of(notifier, struct fixture, notifier);
    assert_int_equal(line, notifier->line);
    f->eoi_count++;
}

/* The pair as a PC's system programs it: vectors 0x20 and 0x28, nothing masked. */
static void initialise(struct fixture *f, uint8_t master_icw4, uint8_t icw1)
{
    static const uint16_t ports[2] = {MASTER, SLAVE};
    for (unsigned i = 0; i < 2; i++) {
        rig_outb(f->machine, ports[i], 0x11 | icw1);
        rig_outb(f->machine, ports[i] + 1, (uint8_t)(0x20 + i * 8));
        rig_outb(f->machine, ports[i] + 1, i ? 2 : 4);
        rig_outb(f->machine, ports[i] + 1, i ? 0x01 : master_icw4);
    }
}

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);
    f->machine = rig_create(1 << 20, 1);
    f->device = rig_add(f->machine, &pic_class, NULL);
    for (unsigned i = 0; i < 16; i++)
        irq_source_init(&f->source[i], f->machine->irq, i);
    f->notifier = (struct irq_eoi_notifier) {.eoi = on_eoi, .line = 10};
    irq_lines_add_eoi_notifier(f->machine->irq, &f->notifier);
    initialise(f, 0x01, 0);
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

static bool output(struct fixture *f)
{
    struct engine_fake_log log;
    engine_fake_read_log(f->machine->engine_vm, &log);
    return log.extint;
}

static uint8_t acknowledge(struct fixture *f)
{
    return f->machine->chip_acknowledge(f->machine->chip_acknowledge_context);
}

static void eoi(struct fixture *f, uint16_t port)
{
    rig_outb(f->machine, port, 0x20);
}

static void raise_line(struct fixture *f, unsigned line)
{
    irq_source_set(&f->source[line], true);
}

static void test_nothing_before_initialisation(void **state)
{
    struct fixture *f = *state;
    f->device->class->reset(f->device);
    raise_line(f, 1);
    assert_false(output(f));
    assert_int_equal(rig_inb(f->machine, MASTER + 1), 0xff);
}

static void test_priorities_nest(void **state)
{
    struct fixture *f = *state;
    raise_line(f, 4);
    assert_true(output(f));
    assert_int_equal(acknowledge(f), 0x24);
    assert_false(output(f));
    raise_line(f, 6);
    assert_false(output(f)); /* lower than what serves */
    raise_line(f, 1);
    assert_int_equal(acknowledge(f), 0x21);
    rig_outb(f->machine, MASTER, 0x0b);
    assert_int_equal(rig_inb(f->machine, MASTER), 0x12); /* ISR */
    eoi(f, MASTER);
    eoi(f, MASTER);
    assert_int_equal(acknowledge(f), 0x26);
    assert_int_equal(acknowledge(f), 0x27); /* nothing left: spurious */
}

static void test_edges_and_levels(void **state)
{
    struct fixture *f = *state;
    raise_line(f, 5);
    assert_int_equal(acknowledge(f), 0x25);
    eoi(f, MASTER);
    assert_false(output(f)); /* still high, but no edge */
    rig_out(f->machine, 0x4d0, 2, 0xffff);
    assert_int_equal(rig_in(f->machine, 0x4d0, 2), 0xdef8);
    assert_int_equal(acknowledge(f), 0x25); /* level-triggered now */
    eoi(f, MASTER);
    assert_true(output(f));
    irq_source_set(&f->source[5], false);
    assert_false(output(f));
}

static void test_cascade_and_eoi_notifier(void **state)
{
    struct fixture *f = *state;
    raise_line(f, 10);
    raise_line(f, 12);
    assert_int_equal(acknowledge(f), 0x2a);
    eoi(f, SLAVE);
    assert_int_equal(f->eoi_count, 1);
    eoi(f, MASTER);
    assert_int_equal(acknowledge(f), 0x2c);
    eoi(f, SLAVE);
    eoi(f, MASTER);
    assert_int_equal(f->eoi_count, 1);
    assert_false(output(f));
}

static void test_special_fully_nested(void **state)
{
    struct fixture *f = *state;
    raise_line(f, 12);
    assert_int_equal(acknowledge(f), 0x2c);
    raise_line(f, 9);
    assert_false(output(f)); /* the slave is in service as a whole */
    initialise(f, 0x11, 0);
    irq_source_set(&f->source[12], false);
    irq_source_set(&f->source[9], false);
    raise_line(f, 12);
    assert_int_equal(acknowledge(f), 0x2c);
    raise_line(f, 9);
    assert_int_equal(acknowledge(f), 0x29);
}

static void test_rotation(void **state)
{
    struct fixture *f = *state;
    raise_line(f, 3);
    assert_int_equal(acknowledge(f), 0x23);
    rig_outb(f->machine, MASTER, 0xa0); /* rotate on non-specific EOI: 3 is lowest, 4 highest */
    raise_line(f, 1);
    raise_line(f, 4);
    assert_int_equal(acknowledge(f), 0x24);
    eoi(f, MASTER);
    rig_outb(f->machine, MASTER, 0xc0); /* set priority: 0 lowest, 1 highest */
    assert_int_equal(acknowledge(f), 0x21);
    rig_outb(f->machine, MASTER, 0x60 | 1); /* specific EOI */
    assert_false(output(f));
}

static void test_special_mask(void **state)
{
    struct fixture *f = *state;
    raise_line(f, 1);
    assert_int_equal(acknowledge(f), 0x21);
    raise_line(f, 7);
    assert_false(output(f));
    rig_outb(f->machine, MASTER + 1, 0x02);
    rig_outb(f->machine, MASTER, 0x68); /* special mask mode */
    assert_int_equal(acknowledge(f), 0x27);
    eoi(f, MASTER); /* not the masked one */
    rig_outb(f->machine, MASTER, 0x0b);
    assert_int_equal(rig_inb(f->machine, MASTER), 0x02);
}

static void test_automatic_eoi_and_poll(void **state)
{
    struct fixture *f = *state;
    initialise(f, 0x03, 0);
    raise_line(f, 4);
    assert_int_equal(acknowledge(f), 0x24);
    rig_outb(f->machine, MASTER, 0x0b);
    assert_int_equal(rig_inb(f->machine, MASTER), 0);
    raise_line(f, 6);
    rig_outb(f->machine, MASTER, 0x0c);
    assert_int_equal(rig_inb(f->machine, MASTER), 0x86);
    rig_outb(f->machine, MASTER, 0x0c);
    assert_int_equal(rig_inb(f->machine, MASTER), 0x00);
}

static void test_state_round_trip(void **state)
{
    struct fixture *f = *state;
    raise_line(f, 4);
    acknowledge(f);
    raise_line(f, 1);
    rig_outb(f->machine, SLAVE + 1, 0x5a);
    struct machine *other = rig_create(1 << 20, 1);
    struct device *copy = rig_add(other, &pic_class, NULL);
    rig_assert_round_trip(f->device, copy);
    assert_int_equal(other->chip_acknowledge(other->chip_acknowledge_context), 0x21);
    assert_int_equal(rig_inb(other, SLAVE + 1), 0x5a);
    rig_destroy(other);
}

static void test_garbage(void **state)
{
    struct fixture *f = *state;
    uint64_t seed = 1;
    for (unsigned i = 0; i < 3000; i++) {
        static const uint16_t ports[3] = {MASTER, SLAVE, 0x4d0};
        rig_fuzz(f->machine, f->machine->pio, ports[i % 3], 2, 50);
        irq_source_set(&f->source[rig_random(&seed) % 16], rig_random(&seed) & 1);
        acknowledge(f);
    }
    for (unsigned i = 0; i < 16; i++)
        irq_source_set(&f->source[i], false);
    f->device->class->reset(f->device);
    initialise(f, 0x01, 0);
    raise_line(f, 3);
    assert_int_equal(acknowledge(f), 0x23);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_nothing_before_initialisation),
        TEST(test_priorities_nest),
        TEST(test_edges_and_levels),
        TEST(test_cascade_and_eoi_notifier),
        TEST(test_special_fully_nested),
        TEST(test_rotation),
        TEST(test_special_mask),
        TEST(test_automatic_eoi_and_poll),
        TEST(test_state_round_trip),
        TEST(test_garbage),
    };
    return cmocka_run_group_tests_name("pic", tests, NULL, NULL);
}
