/*
 * I/O APIC (Intel 82093AA data sheet, section 3; the EOI register as in the ICH9 data sheet,
 * section 13.5). Interrupts leave as messages (SDM vol. 3 section 11.11).
 *
 * Registers are served on vCPU threads, lines change on any thread, ends of interrupts arrive on
 * vCPU threads. The chip's own lock guards the state, not the device's: it is taken below the line
 * lock. irq_lines_eoi is called without it.
 */
#include "device/legacy/ioapic.h"

#include <errno.h>

#include "device/legacy/legacy_io.h"
#include "vm/irq.h"
#include "vm/machine.h"
#include "vm/state.h"

#define PINS      IRQ_LINE_COUNT
#define TIMER_PIN 2 /* where line 0 arrives; the MADT says so */
#define VERSION   (0x20 | (PINS - 1) << 16)

enum { IOREGSEL = 0x00, IOWIN = 0x10, EOIR = 0x40 };
enum { INDEX_ID = 0, INDEX_VERSION = 1, INDEX_ARBITRATION = 2, INDEX_TABLE = 0x10 };

/* Redirection entry. */
#define RED_VECTOR     0xffull
#define RED_DEST_LOGIC BIT(11)
#define RED_STATUS     BIT(12)
#define RED_REMOTE_IRR BIT(14)
#define RED_LEVEL      BIT(15)
#define RED_MASKED     BIT(16)
#define RED_WRITABLE   (0xff0000000001afffull)

struct ioapic {
    struct device device;
    struct irq_sink sink;
    pthread_mutex_t lock;

    uint32_t id;
    uint8_t index;
    uint64_t entry[PINS];
    uint32_t levels; /* of the pins, one bit each */
};

static const struct bus_ops ioapic_ops;
static const struct legacy_range ioapic_range = {MACHINE_IOAPIC_BASE, PAGE_SIZE, &ioapic_ops};

static unsigned pin_of_line(unsigned line)
{
    return line == 0 ? TIMER_PIN : line;
}

static unsigned line_of_pin(unsigned pin)
{
    return pin == TIMER_PIN ? 0 : pin;
}

/* Chip lock held. */
static void send(struct ioapic *chip, unsigned pin)
{
    uint64_t entry = chip->entry[pin];
    uint64_t address = 0xfee00000 | (entry >> 56) << 12 | (entry & RED_DEST_LOGIC ? BIT(2) : 0);
    uint32_t data = (uint32_t)(entry & 0x7ff); /* vector and delivery mode */
    if (entry & RED_LEVEL) {
        data |= BIT(15) | BIT(14);
        chip->entry[pin] |= RED_REMOTE_IRR;
    }
    machine_send_msi(chip->device.machine, address, data);
}

/* Sends a level-triggered pin's interrupt when its turn has come. Chip lock held. */
static void serve_level(struct ioapic *chip, unsigned pin)
{
    uint64_t entry = chip->entry[pin];
    if ((entry & RED_LEVEL) && !(entry & (RED_MASKED | RED_REMOTE_IRR)) &&
        (chip->levels & BIT(pin)))
        send(chip, pin);
}

/* An edge on a masked pin is lost, as the data sheet says. */
static void ioapic_set_level(struct irq_sink *sink, unsigned line, bool level)
{
    struct ioapic *chip = container_of(sink, struct ioapic, sink);
    if (line == TIMER_PIN || line >= PINS)
        return; /* the 8259s' cascade has no pin */
    unsigned pin = pin_of_line(line);
    pthread_mutex_lock(&chip->lock);
    bool rose = level && !(chip->levels & BIT(pin));
    chip->levels = (uint32_t)(level ? chip->levels | BIT(pin) : chip->levels & ~BIT(pin));
    if (chip->entry[pin] & RED_LEVEL)
        serve_level(chip, pin);
    else if (rose && !(chip->entry[pin] & RED_MASKED))
        send(chip, pin);
    pthread_mutex_unlock(&chip->lock);
}

/*
 * The guest ended the interrupt with this vector. Notifiers may lower the line first; if it is
 * still high after that, the interrupt is sent again. No lock held.
 */
static void ioapic_eoi(void *context, uint8_t vector)
{
    struct ioapic *chip = context;
    uint32_t ended = 0;
    pthread_mutex_lock(&chip->lock);
    for (unsigned pin = 0; pin < PINS; pin++) {
        uint64_t entry = chip->entry[pin];
        if ((entry & RED_REMOTE_IRR) && (entry & RED_VECTOR) == vector) {
            chip->entry[pin] &= ~RED_REMOTE_IRR;
            ended |= (uint32_t)BIT(pin);
        }
    }
    pthread_mutex_unlock(&chip->lock);
    if (!ended)
        return;
    for (unsigned pin = 0; pin < PINS; pin++)
        if (ended & BIT(pin))
            irq_lines_eoi(chip->device.machine->irq, line_of_pin(pin));
    pthread_mutex_lock(&chip->lock);
    for (unsigned pin = 0; pin < PINS; pin++)
        if (ended & BIT(pin))
            serve_level(chip, pin);
    pthread_mutex_unlock(&chip->lock);
}

/* --- registers --- */

static uint32_t read_indexed(const struct ioapic *chip)
{
    unsigned entry = (unsigned)(chip->index - INDEX_TABLE) / 2;
    if (chip->index == INDEX_ID || chip->index == INDEX_ARBITRATION)
        return chip->id << 24;
    if (chip->index == INDEX_VERSION)
        return VERSION;
    if (chip->index < INDEX_TABLE || entry >= PINS)
        return 0xffffffff;
    return (uint32_t)(chip->entry[entry] >> (chip->index & 1 ? 32 : 0));
}

static void write_entry(struct ioapic *chip, unsigned pin, uint64_t value)
{
    uint64_t kept = chip->entry[pin] & RED_REMOTE_IRR;
    chip->entry[pin] = (value & RED_WRITABLE) | (value & RED_LEVEL ? kept : 0);
    serve_level(chip, pin);
}

static void write_indexed(struct ioapic *chip, uint32_t value)
{
    unsigned pin = (unsigned)(chip->index - INDEX_TABLE) / 2;
    if (chip->index == INDEX_ID) {
        chip->id = value >> 24 & 0x0f;
    } else if (chip->index >= INDEX_TABLE && pin < PINS) {
        uint64_t entry = chip->entry[pin];
        bool high = chip->index & 1;
        write_entry(chip, pin,
                    high ? (entry & 0xffffffff) | (uint64_t)value << 32
                         : (entry & ~0xffffffffull) | value);
    }
}

static uint64_t ioapic_read(void *context, uint64_t offset, unsigned size)
{
    struct ioapic *chip = context;
    uint64_t value = 0;
    legacy_io_count_read(&chip->device);
    pthread_mutex_lock(&chip->lock);
    if (offset == IOREGSEL)
        value = chip->index;
    else if (offset == IOWIN)
        value = read_indexed(chip);
    pthread_mutex_unlock(&chip->lock);
    return value & size_mask(size);
}

static void ioapic_write(void *context, uint64_t offset, unsigned size, uint64_t value)
{
    struct ioapic *chip = context;
    legacy_io_count_write(&chip->device);
    if (offset == EOIR) {
        ioapic_eoi(chip, (uint8_t)value);
        return;
    }
    pthread_mutex_lock(&chip->lock);
    if (offset == IOREGSEL)
        chip->index = (uint8_t)value;
    else if (offset == IOWIN && size >= 4)
        write_indexed(chip, (uint32_t)value);
    pthread_mutex_unlock(&chip->lock);
}

static const struct bus_ops ioapic_ops = {ioapic_read, ioapic_write};

/* --- the device --- */

/* The lines are wires: their levels stay over a reset. */
static void ioapic_reset(struct device *device)
{
    struct ioapic *chip = container_of(device, struct ioapic, device);
    pthread_mutex_lock(&chip->lock);
    chip->id = 0;
    chip->index = 0;
    for (unsigned pin = 0; pin < PINS; pin++)
        chip->entry[pin] = RED_MASKED;
    pthread_mutex_unlock(&chip->lock);
}

static int ioapic_create(struct device *device, const void *config, struct err *err)
{
    struct ioapic *chip = container_of(device, struct ioapic, device);
    (void)config;
    int error = legacy_io_add(device, device->machine->mmio, &ioapic_range, 1, false, err);
    if (error)
        return error;
    pthread_mutex_init(&chip->lock, NULL);
    ioapic_reset(device);
    chip->sink.set_level = ioapic_set_level;
    irq_lines_add_sink(device->machine->irq, &chip->sink);
    device->machine->chip_eoi = ioapic_eoi;
    device->machine->chip_eoi_context = chip;
    return 0;
}

static void ioapic_destroy(struct device *device)
{
    struct ioapic *chip = container_of(device, struct ioapic, device);
    device->machine->chip_eoi = NULL;
    irq_lines_remove_sink(device->machine->irq, &chip->sink);
    legacy_io_remove(device->machine->mmio, &ioapic_range, 1);
    pthread_mutex_destroy(&chip->lock);
}

static void ioapic_save(struct device *device, struct state_writer *w)
{
    struct ioapic *chip = container_of(device, struct ioapic, device);
    pthread_mutex_lock(&chip->lock);
    state_put_field(w, chip, id);
    state_put_field(w, chip, index);
    state_put_field(w, chip, entry);
    state_put_field(w, chip, levels);
    pthread_mutex_unlock(&chip->lock);
}

static int ioapic_load(struct device *device, struct state_reader *r, struct err *err)
{
    struct ioapic *chip = container_of(device, struct ioapic, device);
    (void)err;
    pthread_mutex_lock(&chip->lock);
    state_get_field(r, chip, id);
    state_get_field(r, chip, index);
    state_get_field(r, chip, entry);
    state_get_field(r, chip, levels);
    chip->id &= 0x0f;
    for (unsigned pin = 0; pin < PINS; pin++)
        chip->entry[pin] &= RED_WRITABLE | RED_REMOTE_IRR;
    pthread_mutex_unlock(&chip->lock);
    return 0;
}

const struct device_class ioapic_class = {
    .name = "ioapic",
    .size = sizeof(struct ioapic),
    .create = ioapic_create,
    .reset = ioapic_reset,
    .save = ioapic_save,
    .load = ioapic_load,
    .destroy = ioapic_destroy,
};
