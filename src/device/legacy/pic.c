/*
 * 8259A pair (Intel 8259A data sheet, order 231468; edge/level control registers as in the ICH9
 * data sheet, section 13.4). The master's input 2 is the slave's output.
 *
 * Registers are served on vCPU threads, the acknowledge cycle comes from vCPU 0's, lines change on
 * any thread. The pair's own lock guards the state, not the device's: it is taken below the line
 * lock. irq_lines_eoi is called without it.
 */
#include "device/legacy/pic.h"

#include <errno.h>

#include "device/legacy/legacy_io.h"
#include "vm/irq.h"
#include "vm/machine.h"
#include "vm/state.h"

#define CASCADE     2
#define NO_IRQ      8
#define SPURIOUS    7
#define LINES       16
#define NO_LINE     LINES
#define ELCR_MASTER 0xf8 /* lines 0, 1, 2 are always edge-triggered */
#define ELCR_SLAVE  0xde /* and 8 and 13 */
#define PORT_MASTER 0x20
#define PORT_SLAVE  0xa0
#define PORT_ELCR   0x4d0

#define ICW1_IC4      0x01
#define ICW1_SINGLE   0x02
#define ICW1_LEVEL    0x08
#define ICW1_INIT     0x10
#define ICW4_AEOI     0x02
#define ICW4_SFNM     0x10
#define OCW3_SELECT   0x08
#define OCW3_POLL     0x04
#define OCW3_READ     0x02
#define OCW3_READ_ISR 0x01
#define OCW3_SMM_SET  0x40
#define OCW3_SMM      0x20
#define OCW2_ROTATE   0x80
#define OCW2_SPECIFIC 0x40
#define OCW2_EOI      0x20
#define POLL_PENDING  0x80

/* One 8259A. All fields are bytes, and saved as they are. */
struct pic_chip {
    uint8_t lines; /* levels of the inputs */
    uint8_t irr, imr, isr;
    uint8_t icw1, icw2, icw4;
    uint8_t next_icw; /* 2, 3, 4: which comes next; 0: initialised or never started */
    uint8_t lowest;   /* the input with the lowest priority */
    uint8_t special_mask, rotate_on_aeoi, read_isr, poll;
    uint8_t elcr;
};

_Static_assert(sizeof(struct pic_chip) == 14, "saved as it is, so without padding");

struct pic {
    struct device device;
    struct irq_sink sink;
    pthread_mutex_t lock;
    struct pic_chip chip[2]; /* master, slave */
    bool output;
};

static bool is_level(const struct pic_chip *chip, unsigned irq)
{
    return (chip->icw1 & ICW1_LEVEL) || (chip->elcr >> irq & 1);
}

/* 0 for the highest priority, NO_IRQ for none of the set. */
static unsigned priority_of(const struct pic_chip *chip, uint8_t set)
{
    for (unsigned priority = 0; priority < 8; priority++)
        if (set >> ((chip->lowest + 1 + priority) & 7) & 1)
            return priority;
    return NO_IRQ;
}

static unsigned irq_at(const struct pic_chip *chip, unsigned priority)
{
    return (chip->lowest + 1 + priority) & 7;
}

/* The request that the chip would deliver now, or NO_IRQ. */
static unsigned pending_irq(const struct pic *pic, const struct pic_chip *chip)
{
    uint8_t requests = chip->irr & ~chip->imr, in_service = chip->isr;
    if (chip->special_mask) {
        requests &= ~in_service; /* what serves blocks itself only */
        in_service = 0;
    }
    unsigned request = priority_of(chip, requests);
    if (request == NO_IRQ)
        return NO_IRQ;
    unsigned irq = irq_at(chip, request), serving = priority_of(chip, in_service);
    /* Fully nested for the slave: its further requests pass while one of it is in service. */
    bool nested = (chip->icw4 & ICW4_SFNM) && chip == &pic->chip[0] && irq == CASCADE;
    return request < serving || (nested && request == serving) ? irq : NO_IRQ;
}

/* Wires the slave's output to the master and the master's to the CPU. Lock held. */
static void update_output(struct pic *pic)
{
    struct pic_chip *master = &pic->chip[0];
    uint8_t cascade = 1 << CASCADE;
    if (pending_irq(pic, &pic->chip[1]) != NO_IRQ)
        master->irr |= cascade;
    else
        master->irr &= ~cascade;
    bool output = pending_irq(pic, master) != NO_IRQ;
    if (output == pic->output)
        return;
    pic->output = output;
    struct machine *machine = pic->device.machine;
    machine->engine->set_extint(machine->engine_vm, output);
}

static void set_input(struct pic_chip *chip, unsigned irq, bool level)
{
    uint8_t bit = (uint8_t)(1 << irq);
    bool rose = level && !(chip->lines & bit);
    chip->lines = level ? chip->lines | bit : chip->lines & ~bit;
    if (is_level(chip, irq))
        chip->irr = level ? chip->irr | bit : chip->irr & ~bit;
    else if (rose)
        chip->irr |= bit;
}

static void pic_set_level(struct irq_sink *sink, unsigned line, bool level)
{
    struct pic *pic = container_of(sink, struct pic, sink);
    if (line >= LINES || line == CASCADE)
        return;
    pthread_mutex_lock(&pic->lock);
    set_input(&pic->chip[line / 8], line % 8, level);
    update_output(pic);
    pthread_mutex_unlock(&pic->lock);
}

/* --- ends of interrupts --- */

/* Returns the line whose end it was, or NO_LINE. */
static unsigned end_irq(struct pic *pic, struct pic_chip *chip, unsigned irq)
{
    uint8_t bit = (uint8_t)(1 << irq);
    if (!(chip->isr & bit))
        return NO_LINE;
    chip->isr &= ~bit;
    if (chip == &pic->chip[1])
        return 8 + irq;
    return irq == CASCADE ? NO_LINE : irq;
}

/* What non-specific commands mean: the highest-priority interrupt in service. */
static unsigned serving_irq(const struct pic_chip *chip)
{
    uint8_t in_service = chip->isr;
    if (chip->special_mask)
        in_service &= ~chip->imr;
    unsigned priority = priority_of(chip, in_service);
    return priority == NO_IRQ ? NO_IRQ : irq_at(chip, priority);
}

static void notify_eoi(struct pic *pic, unsigned line)
{
    if (line != NO_LINE)
        irq_lines_eoi(pic->device.machine->irq, line);
}

/* --- acknowledge --- */

/* The chip's half of an acknowledge cycle for a request that it has. Returns the line that ended
 * at once (automatic EOI), or NO_LINE. */
static unsigned acknowledge(struct pic *pic, struct pic_chip *chip, unsigned irq)
{
    uint8_t bit = (uint8_t)(1 << irq);
    bool is_cascade = chip == &pic->chip[0] && irq == CASCADE;
    if (!is_cascade && !is_level(chip, irq))
        chip->irr &= ~bit;
    chip->isr |= bit;
    if (!(chip->icw4 & ICW4_AEOI))
        return NO_LINE;
    if (chip->rotate_on_aeoi)
        chip->lowest = (uint8_t)irq;
    return end_irq(pic, chip, irq);
}

/* Returns the vector. Without a request it is the spurious one, input 7's. */
static uint8_t pic_acknowledge(void *context)
{
    struct pic *pic = context;
    struct pic_chip *master = &pic->chip[0], *slave = &pic->chip[1];
    unsigned ended[2] = {NO_LINE, NO_LINE};
    uint8_t vector;
    pthread_mutex_lock(&pic->lock);
    unsigned irq = pending_irq(pic, master);
    if (irq == CASCADE) {
        unsigned slave_irq = pending_irq(pic, slave);
        ended[0] = acknowledge(pic, master, irq);
        if (slave_irq != NO_IRQ)
            ended[1] = acknowledge(pic, slave, slave_irq);
        vector = (slave->icw2 & 0xf8) | (slave_irq == NO_IRQ ? SPURIOUS : slave_irq);
    } else {
        if (irq != NO_IRQ)
            ended[0] = acknowledge(pic, master, irq);
        vector = (master->icw2 & 0xf8) | (irq == NO_IRQ ? SPURIOUS : irq);
    }
    update_output(pic);
    pthread_mutex_unlock(&pic->lock);
    notify_eoi(pic, ended[0]);
    notify_eoi(pic, ended[1]);
    return vector;
}

/* --- command words --- */

/* ICW1 clears the mask and the edge detectors. */
static void write_icw1(struct pic_chip *chip, uint8_t value)
{
    chip->icw1 = value;
    chip->icw4 = 0;
    chip->imr = chip->isr = 0;
    chip->irr = 0;
    for (unsigned irq = 0; irq < 8; irq++)
        if (is_level(chip, irq))
            chip->irr |= chip->lines & 1 << irq;
    chip->lowest = 7;
    chip->special_mask = chip->rotate_on_aeoi = chip->read_isr = chip->poll = 0;
    chip->next_icw = 2;
}

/* Returns the line whose end it was, or NO_LINE. */
static unsigned write_ocw2(struct pic *pic, struct pic_chip *chip, uint8_t value)
{
    unsigned irq = value & 7;
    bool rotate = value & OCW2_ROTATE, specific = value & OCW2_SPECIFIC;
    if (!(value & OCW2_EOI)) {
        if (specific && rotate)
            chip->lowest = (uint8_t)irq; /* set priority */
        else if (!specific)
            chip->rotate_on_aeoi = rotate;
        return NO_LINE;
    }
    if (!specific)
        irq = serving_irq(chip);
    if (irq == NO_IRQ)
        return NO_LINE;
    if (rotate)
        chip->lowest = (uint8_t)irq;
    return end_irq(pic, chip, irq);
}

static void write_ocw3(struct pic_chip *chip, uint8_t value)
{
    chip->poll = (value & OCW3_POLL) != 0;
    if (value & OCW3_READ)
        chip->read_isr = value & OCW3_READ_ISR;
    if (value & OCW3_SMM_SET)
        chip->special_mask = (value & OCW3_SMM) != 0;
}

static void write_data(struct pic_chip *chip, uint8_t value)
{
    switch (chip->next_icw) {
    case 2:
        chip->icw2 = value;
        chip->next_icw = chip->icw1 & ICW1_SINGLE ? (chip->icw1 & ICW1_IC4 ? 4 : 0) : 3;
        break;
    case 3: /* who is whose slave is fixed here */
        chip->next_icw = chip->icw1 & ICW1_IC4 ? 4 : 0;
        break;
    case 4:
        chip->icw4 = value;
        chip->next_icw = 0;
        break;
    default:
        chip->imr = value;
    }
}

static unsigned write_chip(struct pic *pic, struct pic_chip *chip, unsigned port, uint8_t value)
{
    if (port == 1)
        write_data(chip, value);
    else if (value & ICW1_INIT)
        write_icw1(chip, value);
    else if (value & OCW3_SELECT)
        write_ocw3(chip, value);
    else
        return write_ocw2(pic, chip, value);
    return NO_LINE;
}

/* A poll is an acknowledge cycle by software. */
static uint8_t read_poll(struct pic *pic, struct pic_chip *chip, unsigned *ended)
{
    unsigned irq = pending_irq(pic, chip);
    chip->poll = 0;
    if (irq == NO_IRQ)
        return 0;
    *ended = acknowledge(pic, chip, irq);
    return (uint8_t)(POLL_PENDING | irq);
}

static uint8_t read_chip(struct pic *pic, struct pic_chip *chip, unsigned port, unsigned *ended)
{
    if (chip->poll)
        return read_poll(pic, chip, ended);
    if (port == 1)
        return chip->imr;
    return chip->read_isr ? chip->isr : chip->irr;
}

/* --- ports --- */

static uint64_t ports_read(struct pic *pic, struct pic_chip *chip, uint64_t offset)
{
    unsigned ended = NO_LINE;
    legacy_io_count_read(&pic->device);
    pthread_mutex_lock(&pic->lock);
    uint8_t value = read_chip(pic, chip, (unsigned)offset, &ended);
    update_output(pic);
    pthread_mutex_unlock(&pic->lock);
    notify_eoi(pic, ended);
    return value;
}

static void ports_write(struct pic *pic, struct pic_chip *chip, uint64_t offset, uint8_t value)
{
    legacy_io_count_write(&pic->device);
    pthread_mutex_lock(&pic->lock);
    unsigned ended = write_chip(pic, chip, (unsigned)offset, value);
    update_output(pic);
    pthread_mutex_unlock(&pic->lock);
    notify_eoi(pic, ended);
}

/* A word is two bytes to the two ports. */
static uint64_t master_read(void *context, uint64_t offset, unsigned size)
{
    struct pic *pic = context;
    uint64_t value = ports_read(pic, &pic->chip[0], offset);
    return size > 1 ? value | ports_read(pic, &pic->chip[0], 1) << 8 : value;
}

static void master_write(void *context, uint64_t offset, unsigned size, uint64_t value)
{
    struct pic *pic = context;
    ports_write(pic, &pic->chip[0], offset, (uint8_t)value);
    if (size > 1)
        ports_write(pic, &pic->chip[0], 1, (uint8_t)(value >> 8));
}

static uint64_t slave_read(void *context, uint64_t offset, unsigned size)
{
    struct pic *pic = context;
    uint64_t value = ports_read(pic, &pic->chip[1], offset);
    return size > 1 ? value | ports_read(pic, &pic->chip[1], 1) << 8 : value;
}

static void slave_write(void *context, uint64_t offset, unsigned size, uint64_t value)
{
    struct pic *pic = context;
    ports_write(pic, &pic->chip[1], offset, (uint8_t)value);
    if (size > 1)
        ports_write(pic, &pic->chip[1], 1, (uint8_t)(value >> 8));
}

static uint64_t elcr_read(void *context, uint64_t offset, unsigned size)
{
    struct pic *pic = context;
    legacy_io_count_read(&pic->device);
    pthread_mutex_lock(&pic->lock);
    uint64_t value = pic->chip[offset].elcr;
    if (size > 1)
        value |= (uint64_t)pic->chip[1].elcr << 8;
    pthread_mutex_unlock(&pic->lock);
    return value;
}

static void write_elcr(struct pic_chip *chip, uint8_t value)
{
    chip->elcr = value;
    for (unsigned irq = 0; irq < 8; irq++)
        if (is_level(chip, irq))
            chip->irr = (chip->irr & ~(1 << irq)) | (chip->lines & 1 << irq);
}

static void elcr_write(void *context, uint64_t offset, unsigned size, uint64_t value)
{
    struct pic *pic = context;
    static const uint8_t writable[2] = {ELCR_MASTER, ELCR_SLAVE};
    legacy_io_count_write(&pic->device);
    pthread_mutex_lock(&pic->lock);
    for (unsigned i = (unsigned)offset; i < 2 && i < offset + size; i++, value >>= 8)
        write_elcr(&pic->chip[i], value & writable[i]);
    update_output(pic);
    pthread_mutex_unlock(&pic->lock);
}

static const struct bus_ops master_ops = {master_read, master_write};
static const struct bus_ops slave_ops = {slave_read, slave_write};
static const struct bus_ops elcr_ops = {elcr_read, elcr_write};
static const struct legacy_range pic_ranges[] = {
    {PORT_MASTER, 2, &master_ops},
    {PORT_SLAVE, 2, &slave_ops},
    {PORT_ELCR, 2, &elcr_ops},
};

/* --- the device --- */

/* Everything is masked until the guest initialises the pair. The lines are wires and stay. */
static void pic_reset(struct device *device)
{
    struct pic *pic = container_of(device, struct pic, device);
    pthread_mutex_lock(&pic->lock);
    for (unsigned i = 0; i < ARRAY_COUNT(pic->chip); i++)
        pic->chip[i] = (struct pic_chip) {.lines = pic->chip[i].lines, .imr = 0xff, .lowest = 7};
    update_output(pic);
    pthread_mutex_unlock(&pic->lock);
}

static int pic_create(struct device *device, const void *config, struct err *err)
{
    struct pic *pic = container_of(device, struct pic, device);
    struct machine *machine = device->machine;
    (void)config;
    int error =
        legacy_io_add(device, machine->pio, pic_ranges, ARRAY_COUNT(pic_ranges), false, err);
    if (error)
        return error;
    pthread_mutex_init(&pic->lock, NULL);
    pic_reset(device);
    pic->sink.set_level = pic_set_level;
    irq_lines_add_sink(machine->irq, &pic->sink);
    machine->chip_acknowledge = pic_acknowledge;
    machine->chip_acknowledge_context = pic;
    return 0;
}

static void pic_destroy(struct device *device)
{
    struct pic *pic = container_of(device, struct pic, device);
    device->machine->chip_acknowledge = NULL;
    irq_lines_remove_sink(device->machine->irq, &pic->sink);
    legacy_io_remove(device->machine->pio, pic_ranges, ARRAY_COUNT(pic_ranges));
    pthread_mutex_destroy(&pic->lock);
}

static void pic_save(struct device *device, struct state_writer *w)
{
    struct pic *pic = container_of(device, struct pic, device);
    pthread_mutex_lock(&pic->lock);
    state_put(w, "master", &pic->chip[0], sizeof pic->chip[0]);
    state_put(w, "slave", &pic->chip[1], sizeof pic->chip[1]);
    pthread_mutex_unlock(&pic->lock);
}

static int pic_load(struct device *device, struct state_reader *r, struct err *err)
{
    struct pic *pic = container_of(device, struct pic, device);
    (void)err;
    pthread_mutex_lock(&pic->lock);
    state_get(r, "master", &pic->chip[0], sizeof pic->chip[0]);
    state_get(r, "slave", &pic->chip[1], sizeof pic->chip[1]);
    for (unsigned i = 0; i < ARRAY_COUNT(pic->chip); i++)
        pic->chip[i].lowest &= 7;
    update_output(pic);
    pthread_mutex_unlock(&pic->lock);
    return 0;
}

const struct device_class pic_class = {
    .name = "pic",
    .size = sizeof(struct pic),
    .create = pic_create,
    .reset = pic_reset,
    .save = pic_save,
    .load = pic_load,
    .destroy = pic_destroy,
};
