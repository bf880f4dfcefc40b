/*
 * i8042 keyboard controller (IBM PS/2 Hardware Interface Technical Reference, "keyboard and
 * auxiliary device controller" and "keyboards (101- and 102-key)"). On vCPU threads, with the
 * device's lock held.
 *
 * The keyboard answers every command at once, so that no driver waits for a time-out; no key is
 * ever pressed. There is no auxiliary device: its tests fail, bytes for it time out.
 *
 * Deviation: the A20 bit of the output port is kept and has no effect.
 */
#include "device/legacy/i8042.h"

#include <errno.h>

#include "device/legacy/legacy_io.h"
#include "vm/irq.h"
#include "vm/machine.h"
#include "vm/state.h"

#define PORT_DATA   0x60
#define PORT_STATUS 0x64
#define LINE        1
#define QUEUE_SIZE  16
#define RAM_SIZE    32

/* Status register. */
#define STATUS_FULL     0x01 /* output buffer */
#define STATUS_SYSTEM   0x04 /* the self test has passed */
#define STATUS_COMMAND  0x08 /* the last write was a command */
#define STATUS_UNLOCKED 0x10
#define STATUS_TIMEOUT  0x40

/* Command byte: RAM byte 0. */
#define CTR_KBD_INTERRUPT 0x01
#define CTR_SYSTEM        0x04
#define CTR_KBD_DISABLED  0x10
#define CTR_AUX_DISABLED  0x20
#define CTR_TRANSLATE     0x40

/* Output port. */
#define OUT_NO_RESET 0x01
#define OUT_A20      0x02
#define OUT_IRQ1     0x10

enum {
    CMD_READ_RAM = 0x20,  /* to 0x3f */
    CMD_WRITE_RAM = 0x60, /* to 0x7f */
    CMD_DISABLE_AUX = 0xa7,
    CMD_ENABLE_AUX = 0xa8,
    CMD_TEST_AUX = 0xa9,
    CMD_SELF_TEST = 0xaa,
    CMD_TEST_KBD = 0xab,
    CMD_DISABLE_KBD = 0xad,
    CMD_ENABLE_KBD = 0xae,
    CMD_READ_INPUT = 0xc0,
    CMD_READ_OUTPUT = 0xd0,
    CMD_WRITE_OUTPUT = 0xd1,
    CMD_WRITE_KBD_BUFFER = 0xd2,
    CMD_WRITE_AUX_BUFFER = 0xd3,
    CMD_WRITE_AUX = 0xd4,
    CMD_DISABLE_A20 = 0xdd,
    CMD_ENABLE_A20 = 0xdf,
    CMD_PULSE = 0xf0, /* to 0xff: the clear ones of bits 0-3 are pulsed */
};

enum {
    KBD_LEDS = 0xed,
    KBD_ECHO = 0xee,
    KBD_SCAN_SET = 0xf0,
    KBD_IDENTIFY = 0xf2,
    KBD_RATE = 0xf3,
    KBD_ENABLE = 0xf4,
    KBD_DISABLE = 0xf5,
    KBD_DEFAULTS = 0xf6,
    KBD_RESEND = 0xfe,
    KBD_RESET = 0xff,
    KBD_ACK = 0xfa,
    KBD_PASSED = 0xaa,
};

struct i8042 {
    struct device device;
    struct irq_source irq;
    uint8_t ram[RAM_SIZE];
    uint8_t status; /* SYSTEM, COMMAND, TIMEOUT */
    uint8_t output_port;
    uint8_t command;                         /* a command that waits for its byte; 0: none */
    uint8_t kbd_command;                     /* the keyboard's likewise */
    uint8_t kbd_scan_set;                    /* 1 to 3 */
    uint8_t kbd_last;                        /* for "resend" */
    uint8_t queue[QUEUE_SIZE], first, count; /* bytes for the guest */
};

/* --- bytes to the guest --- */

static void update_irq(struct i8042 *k)
{
    irq_source_set(&k->irq, k->count && (k->ram[0] & CTR_KBD_INTERRUPT));
}

static void push(struct i8042 *k, uint8_t byte)
{
    if (k->count == QUEUE_SIZE)
        return;
    k->queue[(k->first + k->count++) % QUEUE_SIZE] = byte;
    update_irq(k);
}

static void push_kbd(struct i8042 *k, uint8_t byte)
{
    k->kbd_last = byte;
    push(k, byte);
}

static uint8_t pop(struct i8042 *k)
{
    uint8_t byte = k->queue[k->first];
    if (k->count == 0)
        return byte; /* the buffer keeps its last byte */
    k->first = (k->first + 1) % QUEUE_SIZE;
    k->count--;
    irq_source_set(&k->irq, false); /* each byte makes an edge */
    update_irq(k);
    return byte;
}

/* --- the keyboard --- */

/* The byte that follows a command with an argument. */
static void keyboard_argument(struct i8042 *k, uint8_t command, uint8_t value)
{
    push_kbd(k, KBD_ACK);
    if (command != KBD_SCAN_SET)
        return;
    if (value == 0)
        push_kbd(k, k->kbd_scan_set);
    else if (value <= 3)
        k->kbd_scan_set = value;
}

static void keyboard_identify(struct i8042 *k)
{
    push_kbd(k, 0xab);
    push_kbd(k, k->ram[0] & CTR_TRANSLATE ? 0x41 : 0x83); /* 0x83 in scan set 1 */
}

static void keyboard_write(struct i8042 *k, uint8_t value)
{
    uint8_t command = k->kbd_command;
    k->kbd_command = 0;
    if (command && value < KBD_LEDS) {
        keyboard_argument(k, command, value);
        return;
    }
    switch (value) {
    case KBD_ECHO:
        push_kbd(k, KBD_ECHO);
        return;
    case KBD_RESEND:
        push(k, k->kbd_last);
        return;
    case KBD_LEDS:
    case KBD_SCAN_SET:
    case KBD_RATE:
        k->kbd_command = value;
        push_kbd(k, KBD_ACK);
        return;
    case KBD_IDENTIFY:
        push_kbd(k, KBD_ACK);
        keyboard_identify(k);
        return;
    case KBD_RESET:
        k->kbd_scan_set = 2;
        push_kbd(k, KBD_ACK);
        push_kbd(k, KBD_PASSED);
        return;
    default:
        push_kbd(k, value >= KBD_LEDS ? KBD_ACK : KBD_RESEND);
    }
}

/* --- the controller --- */

static void write_output_port(struct i8042 *k, uint8_t value)
{
    k->output_port = value;
    if (!(value & OUT_NO_RESET))
        machine_request_reset(k->device.machine);
}

static void self_test(struct i8042 *k)
{
    k->status |= STATUS_SYSTEM;
    k->ram[0] |= CTR_SYSTEM;
    k->count = 0;
    push(k, 0x55);
}

static void set_ctr(struct i8042 *k, uint8_t clear, uint8_t set)
{
    k->ram[0] = (uint8_t)((k->ram[0] & ~clear) | set);
    update_irq(k);
}

static void simple_command(struct i8042 *k, uint8_t value)
{
    switch (value) {
    case CMD_DISABLE_AUX:
        set_ctr(k, 0, CTR_AUX_DISABLED);
        break;
    case CMD_ENABLE_AUX:
        set_ctr(k, CTR_AUX_DISABLED, 0);
        break;
    case CMD_TEST_AUX:
        push(k, 0x02); /* clock line stuck high: nothing there */
        break;
    case CMD_SELF_TEST:
        self_test(k);
        break;
    case CMD_TEST_KBD:
        push(k, 0x00);
        break;
    case CMD_DISABLE_KBD:
        set_ctr(k, 0, CTR_KBD_DISABLED);
        break;
    case CMD_ENABLE_KBD:
        set_ctr(k, CTR_KBD_DISABLED, 0);
        break;
    case CMD_READ_INPUT:
        push(k, 0x80); /* keyboard not locked */
        break;
    case CMD_READ_OUTPUT:
        push(k, k->output_port | (k->count ? OUT_IRQ1 : 0));
        break;
    case CMD_DISABLE_A20:
        k->output_port &= (uint8_t)~OUT_A20;
        break;
    case CMD_ENABLE_A20:
        k->output_port |= OUT_A20;
        break;
    default:
        break; /* unknown commands are ignored */
    }
}

static void write_command(struct i8042 *k, uint8_t value)
{
    k->status |= STATUS_COMMAND;
    k->command = 0;
    if (value >= CMD_READ_RAM && value < CMD_READ_RAM + RAM_SIZE)
        push(k, k->ram[value - CMD_READ_RAM]);
    else if ((value >= CMD_WRITE_RAM && value < CMD_WRITE_RAM + RAM_SIZE) ||
             (value >= CMD_WRITE_OUTPUT && value <= CMD_WRITE_AUX))
        k->command = value;
    else if (value >= CMD_PULSE && !(value & OUT_NO_RESET))
        machine_request_reset(k->device.machine);
    else
        simple_command(k, value);
}

/* Nobody answers on the auxiliary port: the controller says so. */
static void write_aux(struct i8042 *k)
{
    k->status |= STATUS_TIMEOUT;
    push(k, KBD_RESEND);
}

static void write_data(struct i8042 *k, uint8_t value)
{
    uint8_t command = k->command;
    k->status &= (uint8_t)~STATUS_COMMAND;
    k->command = 0;
    if (command >= CMD_WRITE_RAM && command < CMD_WRITE_RAM + RAM_SIZE) {
        k->ram[command - CMD_WRITE_RAM] = value;
        update_irq(k);
    } else if (command == CMD_WRITE_OUTPUT) {
        write_output_port(k, value);
    } else if (command == CMD_WRITE_KBD_BUFFER || command == CMD_WRITE_AUX_BUFFER) {
        push(k, value); /* without the auxiliary mark: there is no such port */
    } else if (command == CMD_WRITE_AUX) {
        write_aux(k);
    } else {
        k->ram[0] &= (uint8_t)~CTR_KBD_DISABLED; /* writing to the keyboard enables it */
        keyboard_write(k, value);
    }
}

/* --- ports --- */

static uint64_t data_read(void *context, uint64_t offset, unsigned size)
{
    struct i8042 *k = context;
    (void)offset, (void)size;
    k->status &= (uint8_t)~STATUS_TIMEOUT;
    return pop(k);
}

static void data_write(void *context, uint64_t offset, unsigned size, uint64_t value)
{
    (void)offset, (void)size;
    write_data(context, (uint8_t)value);
}

static uint64_t status_read(void *context, uint64_t offset, unsigned size)
{
    struct i8042 *k = context;
    (void)offset, (void)size;
    return k->status | STATUS_UNLOCKED | (k->count ? STATUS_FULL : 0);
}

static void status_write(void *context, uint64_t offset, unsigned size, uint64_t value)
{
    (void)offset, (void)size;
    write_command(context, (uint8_t)value);
}

static const struct bus_ops data_ops = {data_read, data_write};
static const struct bus_ops status_ops = {status_read, status_write};
static const struct legacy_range i8042_ranges[] = {
    {PORT_DATA, 1, &data_ops},
    {PORT_STATUS, 1, &status_ops},
};

/* --- the device --- */

/* As firmware leaves it: tested, keyboard enabled, interrupts off, scan codes translated. */
static void i8042_reset(struct device *device)
{
    struct i8042 *k = container_of(device, struct i8042, device);
    for (unsigned i = 0; i < RAM_SIZE; i++)
        k->ram[i] = 0;
    k->ram[0] = CTR_SYSTEM | CTR_AUX_DISABLED | CTR_TRANSLATE;
    k->status = STATUS_SYSTEM;
    k->output_port = OUT_NO_RESET | OUT_A20 | 0xc0;
    k->command = k->kbd_command = 0;
    k->kbd_scan_set = 2;
    k->kbd_last = KBD_ACK;
    k->first = k->count = 0;
    update_irq(k);
}

static int i8042_create(struct device *device, const void *config, struct err *err)
{
    struct i8042 *k = container_of(device, struct i8042, device);
    (void)config;
    irq_source_init(&k->irq, device->machine->irq, LINE);
    i8042_reset(device);
    return legacy_io_add(device, device->machine->pio, i8042_ranges, ARRAY_COUNT(i8042_ranges),
                         true, err);
}

static void i8042_destroy(struct device *device)
{
    legacy_io_remove(device->machine->pio, i8042_ranges, ARRAY_COUNT(i8042_ranges));
}

static void i8042_save(struct device *device, struct state_writer *w)
{
    struct i8042 *k = container_of(device, struct i8042, device);
    state_put_field(w, k, ram);
    state_put_field(w, k, status);
    state_put_field(w, k, output_port);
    state_put_field(w, k, command);
    state_put_field(w, k, kbd_command);
    state_put_field(w, k, kbd_scan_set);
    state_put_field(w, k, kbd_last);
    state_put_field(w, k, queue);
    state_put_field(w, k, first);
    state_put_field(w, k, count);
}

static int i8042_load(struct device *device, struct state_reader *r, struct err *err)
{
    struct i8042 *k = container_of(device, struct i8042, device);
    (void)err;
    state_get_field(r, k, ram);
    state_get_field(r, k, status);
    state_get_field(r, k, output_port);
    state_get_field(r, k, command);
    state_get_field(r, k, kbd_command);
    state_get_field(r, k, kbd_scan_set);
    state_get_field(r, k, kbd_last);
    state_get_field(r, k, queue);
    state_get_field(r, k, first);
    state_get_field(r, k, count);
    k->first %= QUEUE_SIZE;
    k->count = MIN(k->count, QUEUE_SIZE);
    update_irq(k);
    return 0;
}

const struct device_class i8042_class = {
    .name = "i8042",
    .size = sizeof(struct i8042),
    .create = i8042_create,
    .reset = i8042_reset,
    .save = i8042_save,
    .load = i8042_load,
    .destroy = i8042_destroy,
};
