/*
 * 16550A UART (National Semiconductor PC16550D data sheet, sections 8 and 9).
 *
 * Registers are served on vCPU threads, input and "room again" arrive on the loop thread, as do the
 * timers; the device's lock guards all. Bytes leave at once, without the baud rate's pacing. When
 * the host does not read, THRE stays low for OUTPUT_PATIENCE_NS, then output is dropped until there
 * is room: a guest that polls THRE never hangs on its host.
 */
#include "device/legacy/serial.h"

#include <errno.h>

#include "backend/console/console.h"
#include "base/clock.h"
#include "device/legacy/legacy_io.h"
#include "vm/machine.h"
#include "vm/state.h"

#define FIFO_SIZE          16
#define OUTPUT_PATIENCE_NS (1 * NS_PER_S)
#define RX_TIMEOUT_NS      (350 * NS_PER_US) /* 4 characters at 115200 baud */

enum {
    REG_DATA = 0, /* RBR, THR; DLL with DLAB */
    REG_IER = 1,  /* DLM with DLAB */
    REG_IIR = 2,  /* FCR on write */
    REG_LCR = 3,
    REG_MCR = 4,
    REG_LSR = 5,
    REG_MSR = 6,
    REG_SCR = 7,
};

#define IER_RX     0x01
#define IER_THRE   0x02
#define IER_LINE   0x04
#define IER_MODEM  0x08
#define IIR_NONE   0x01
#define IIR_THRE   0x02
#define IIR_RX     0x04
#define IIR_LINE   0x06
#define IIR_RX_TMO 0x0c
#define IIR_FIFO   0xc0
#define FCR_ENABLE 0x01
#define FCR_RX_CLR 0x02
#define FCR_TX_CLR 0x04
#define LCR_BREAK  0x40
#define LCR_DLAB   0x80
#define MCR_DTR    0x01
#define MCR_RTS    0x02
#define MCR_OUT1   0x04
#define MCR_OUT2   0x08
#define MCR_LOOP   0x10
#define LSR_DR     0x01
#define LSR_OE     0x02
#define LSR_BI     0x10
#define LSR_THRE   0x20
#define LSR_TEMT   0x40
#define MSR_CTS    0x10
#define MSR_DSR    0x20
#define MSR_RI     0x40
#define MSR_DCD    0x80
#define MSR_TERI   0x04 /* trailing edge of RI; the other deltas are the line's bit >> 4 */

struct serial_fifo {
    uint8_t data[FIFO_SIZE];
    uint8_t first, count;
};

_Static_assert(sizeof(struct serial_fifo) == 18, "saved as it is, so without padding");

struct serial {
    struct device device;
    struct legacy_range range;
    struct console *console;
    struct irq_source irq;
    struct vm_timer rx_timer, tx_timer;

    uint16_t divisor;
    uint8_t ier, fcr, lcr, mcr, scr;
    uint8_t lsr_errors; /* OE, BI: until LSR is read */
    uint8_t msr_delta;
    uint8_t thre_pending; /* the transmitter-empty interrupt */
    uint8_t rx_timeout;   /* the character time-out interrupt */
    struct serial_fifo rx, tx;

    bool input_refused;        /* the console keeps input for us */
    bool dropping;             /* the host has not read for too long */
    bool rx_armed, tx_waiting; /* the timers run */
};

static void fifo_push(struct serial_fifo *fifo, uint8_t byte)
{
    fifo->data[(fifo->first + fifo->count++) % FIFO_SIZE] = byte;
}

static uint8_t fifo_pop(struct serial_fifo *fifo)
{
    uint8_t byte = fifo->data[fifo->first];
    fifo->first = (fifo->first + 1) % FIFO_SIZE;
    fifo->count--;
    return byte;
}

static void fifo_clear(struct serial_fifo *fifo)
{
    fifo->first = fifo->count = 0;
}

static unsigned fifo_room(const struct serial *s, const struct serial_fifo *fifo)
{
    unsigned capacity = s->fcr & FCR_ENABLE ? FIFO_SIZE : 1;
    return fifo->count < capacity ? capacity - fifo->count : 0;
}

static unsigned rx_trigger(const struct serial *s)
{
    static const uint8_t trigger[4] = {1, 4, 8, 14};
    return s->fcr & FCR_ENABLE ? trigger[s->fcr >> 6] : 1;
}

/* --- interrupts --- */

/* The highest-priority pending interrupt, as IIR shows it. */
static uint8_t pending_interrupt(const struct serial *s)
{
    if ((s->ier & IER_LINE) && s->lsr_errors)
        return IIR_LINE;
    if ((s->ier & IER_RX) && s->rx.count >= rx_trigger(s))
        return IIR_RX;
    if ((s->ier & IER_RX) && s->rx_timeout)
        return IIR_RX_TMO;
    if ((s->ier & IER_THRE) && s->thre_pending)
        return IIR_THRE;
    if ((s->ier & IER_MODEM) && s->msr_delta)
        return 0;
    return IIR_NONE;
}

/* On a PC the interrupt reaches the bus only with OUT2, and not in loopback. */
static void update_irq(struct serial *s)
{
    bool gate = (s->mcr & MCR_OUT2) && !(s->mcr & MCR_LOOP);
    irq_source_set(&s->irq, gate && pending_interrupt(s) != IIR_NONE);
}

/* --- transmitter --- */

static void tx_sent(struct serial *s)
{
    if (s->tx.count)
        return;
    s->thre_pending = true;
    if (s->tx_waiting)
        vm_timer_cancel(&s->tx_timer);
    s->tx_waiting = false;
}

/* From now on the host has OUTPUT_PATIENCE_NS to make room. */
static void tx_wait(struct serial *s)
{
    if (s->tx_waiting)
        return;
    s->tx_waiting = true;
    vm_timer_arm(&s->tx_timer, vm_clock_ns(s->device.machine->clock) + OUTPUT_PATIENCE_NS);
}

static void tx_flush(struct serial *s)
{
    while (s->tx.count) {
        uint8_t byte = s->tx.data[s->tx.first];
        if (s->console && !s->dropping && console_write(s->console, &byte, 1) == 0) {
            tx_wait(s);
            return;
        }
        fifo_pop(&s->tx);
    }
    tx_sent(s);
}

static void tx_patience_over(struct vm_timer *timer)
{
    struct serial *s = container_of(timer, struct serial, tx_timer);
    pthread_mutex_lock(&s->device.lock);
    if (s->tx.count) {
        s->dropping = true;
        tx_flush(s);
        update_irq(s);
    }
    pthread_mutex_unlock(&s->device.lock);
}

static void console_can_write(void *context)
{
    struct serial *s = context;
    pthread_mutex_lock(&s->device.lock);
    s->dropping = false;
    if (s->tx.count)
        tx_flush(s);
    update_irq(s);
    pthread_mutex_unlock(&s->device.lock);
}

/* --- receiver --- */

static void rx_push(struct serial *s, uint8_t byte)
{
    if (fifo_room(s, &s->rx) == 0) {
        s->lsr_errors |= LSR_OE;
        return;
    }
    fifo_push(&s->rx, byte);
}

/* Nothing more comes at the moment: what lies below the trigger level is announced by time-out. */
static void rx_pause(struct serial *s)
{
    s->rx_timeout = (s->fcr & FCR_ENABLE) && s->rx.count > 0;
}

static size_t console_input(void *context, const uint8_t *data, size_t length)
{
    struct serial *s = context;
    pthread_mutex_lock(&s->device.lock);
    size_t taken = 0;
    if (!(s->mcr & MCR_LOOP)) {
        for (; taken < length && fifo_room(s, &s->rx) > 0; taken++)
            fifo_push(&s->rx, data[taken]);
        rx_pause(s);
    }
    s->input_refused = taken < length;
    update_irq(s);
    pthread_mutex_unlock(&s->device.lock);
    return taken;
}

static void rx_resume_input(struct serial *s)
{
    if (!s->input_refused || (s->mcr & MCR_LOOP) || fifo_room(s, &s->rx) == 0)
        return;
    s->input_refused = false;
    console_kick_input(s->console);
}

/* Data that a reader left behind is announced again, so that no edge is lost. */
static void rx_timed_out(struct vm_timer *timer)
{
    struct serial *s = container_of(timer, struct serial, rx_timer);
    pthread_mutex_lock(&s->device.lock);
    s->rx_armed = false;
    rx_pause(s);
    update_irq(s);
    pthread_mutex_unlock(&s->device.lock);
}

static void rx_arm_timeout(struct serial *s)
{
    if (!(s->fcr & FCR_ENABLE) || s->rx_armed)
        return;
    s->rx_armed = true;
    vm_timer_arm(&s->rx_timer, vm_clock_ns(s->device.machine->clock) + RX_TIMEOUT_NS);
}

static uint8_t read_data(struct serial *s)
{
    if (s->rx.count == 0)
        return 0;
    uint8_t byte = fifo_pop(&s->rx);
    s->rx_timeout = false;
    if (s->rx.count == 0)
        rx_resume_input(s);
    else
        rx_arm_timeout(s);
    update_irq(s);
    return byte;
}

static void write_data(struct serial *s, uint8_t byte)
{
    s->thre_pending = false;
    update_irq(s); /* the line falls, so that the empty transmitter makes an edge */
    if (s->mcr & MCR_LOOP) {
        rx_push(s, byte);
        rx_pause(s);
        s->thre_pending = true;
    } else if (fifo_room(s, &s->tx) > 0) {
        fifo_push(&s->tx, byte);
        tx_flush(s);
    }
    update_irq(s);
}

/* --- modem lines --- */

static uint8_t modem_lines(const struct serial *s)
{
    if (!(s->mcr & MCR_LOOP))
        return MSR_CTS | MSR_DSR | MSR_DCD;
    return (s->mcr & MCR_RTS ? MSR_CTS : 0) | (s->mcr & MCR_DTR ? MSR_DSR : 0) |
           (s->mcr & MCR_OUT1 ? MSR_RI : 0) | (s->mcr & MCR_OUT2 ? MSR_DCD : 0);
}

static void write_mcr(struct serial *s, uint8_t value)
{
    uint8_t before = modem_lines(s);
    s->mcr = value & 0x1f;
    uint8_t after = modem_lines(s), changed = before ^ after;
    s->msr_delta |= (changed & (MSR_CTS | MSR_DSR | MSR_DCD)) >> 4;
    if (before & ~after & MSR_RI)
        s->msr_delta |= MSR_TERI;
    rx_resume_input(s);
}

/* --- the other registers --- */

static void write_ier(struct serial *s, uint8_t value)
{
    uint8_t rising = value & ~s->ier;
    s->ier = value & 0x0f;
    if ((rising & IER_THRE) && s->tx.count == 0)
        s->thre_pending = true;
}

static void write_fcr(struct serial *s, uint8_t value)
{
    bool toggled = (value ^ s->fcr) & FCR_ENABLE;
    if (toggled || (value & FCR_RX_CLR)) {
        fifo_clear(&s->rx);
        s->rx_timeout = false;
    }
    if (toggled || (value & FCR_TX_CLR)) {
        fifo_clear(&s->tx);
        tx_sent(s);
    }
    s->fcr = value & FCR_ENABLE ? value & 0xc9 : 0;
    rx_resume_input(s);
}

static void write_lcr(struct serial *s, uint8_t value)
{
    if ((value & ~s->lcr & LCR_BREAK) && (s->mcr & MCR_LOOP)) {
        s->lsr_errors |= LSR_BI;
        rx_push(s, 0);
    }
    s->lcr = value;
}

static uint8_t read_iir(struct serial *s)
{
    uint8_t pending = pending_interrupt(s);
    if (pending == IIR_THRE) {
        s->thre_pending = false;
        update_irq(s);
    }
    return pending | (s->fcr & FCR_ENABLE ? IIR_FIFO : 0);
}

static uint8_t read_lsr(struct serial *s)
{
    uint8_t value = s->lsr_errors | (s->rx.count ? LSR_DR : 0);
    if (s->tx.count == 0)
        value |= LSR_THRE | LSR_TEMT;
    if (s->lsr_errors) {
        s->lsr_errors = 0;
        update_irq(s);
    }
    return value;
}

static uint8_t read_msr(struct serial *s)
{
    uint8_t value = modem_lines(s) | s->msr_delta;
    if (s->msr_delta) {
        s->msr_delta = 0;
        update_irq(s);
    }
    return value;
}

static uint8_t read_register(struct serial *s, unsigned reg)
{
    bool dlab = s->lcr & LCR_DLAB;
    switch (reg) {
    case REG_DATA:
        return dlab ? (uint8_t)s->divisor : read_data(s);
    case REG_IER:
        return dlab ? s->divisor >> 8 : s->ier;
    case REG_IIR:
        return read_iir(s);
    case REG_LCR:
        return s->lcr;
    case REG_MCR:
        return s->mcr;
    case REG_LSR:
        return read_lsr(s);
    case REG_MSR:
        return read_msr(s);
    default:
        return s->scr;
    }
}

static void write_register(struct serial *s, unsigned reg, uint8_t value)
{
    bool dlab = s->lcr & LCR_DLAB;
    if (dlab && reg == REG_DATA) {
        s->divisor = (s->divisor & 0xff00) | value;
    } else if (dlab && reg == REG_IER) {
        s->divisor = (uint16_t)(value << 8 | (s->divisor & 0xff));
    } else if (reg == REG_DATA) {
        write_data(s, value);
    } else if (reg == REG_SCR) {
        s->scr = value;
    } else {
        static void (*const writers[8])(struct serial *, uint8_t) = {[REG_IER] = write_ier,
                                                                     [REG_IIR] = write_fcr,
                                                                     [REG_LCR] = write_lcr,
                                                                     [REG_MCR] = write_mcr};
        if (writers[reg])
            writers[reg](s, value);
        update_irq(s);
    }
}

/* A wider access is made of bytes, as the ISA bus would. */
static uint64_t serial_read(void *context, uint64_t offset, unsigned size)
{
    uint64_t value = 0;
    for (unsigned i = 0; i < size; i++)
        value |= (uint64_t)read_register(context, (offset + i) & 7) << (8 * i);
    return value;
}

static void serial_write(void *context, uint64_t offset, unsigned size, uint64_t value)
{
    for (unsigned i = 0; i < size; i++)
        write_register(context, (offset + i) & 7, (uint8_t)(value >> (8 * i)));
}

static const struct bus_ops serial_ops = {serial_read, serial_write};

/* --- the device --- */

static void serial_reset(struct device *device)
{
    struct serial *s = container_of(device, struct serial, device);
    vm_timer_cancel(&s->rx_timer);
    vm_timer_cancel(&s->tx_timer);
    s->divisor = 12; /* 9600 baud */
    s->ier = s->fcr = s->lcr = s->scr = 0;
    s->mcr = 0;
    s->lsr_errors = s->msr_delta = 0;
    s->thre_pending = s->rx_timeout = false;
    s->dropping = s->rx_armed = s->tx_waiting = false;
    fifo_clear(&s->rx);
    fifo_clear(&s->tx);
    update_irq(s);
    if (s->console)
        rx_resume_input(s);
}

static int serial_create(struct device *device, const void *config, struct err *err)
{
    struct serial *s = container_of(device, struct serial, device);
    const struct serial_config *c = config;
    s->console = c->console;
    s->range = (struct legacy_range) {c->port, 8, &serial_ops};
    irq_source_init(&s->irq, device->machine->irq, c->irq);
    vm_timer_init(&s->rx_timer, device->machine->clock, rx_timed_out, s);
    vm_timer_init(&s->tx_timer, device->machine->clock, tx_patience_over, s);
    s->divisor = 12;
    int error = legacy_io_add(device, device->machine->pio, &s->range, 1, true, err);
    if (error)
        return error;
    if (s->console) {
        struct console_client client = {console_input, console_can_write, s};
        console_attach(s->console, &client);
    }
    return 0;
}

static void serial_destroy(struct device *device)
{
    struct serial *s = container_of(device, struct serial, device);
    if (s->console)
        console_attach(s->console, NULL);
    vm_timer_cancel(&s->rx_timer);
    vm_timer_cancel(&s->tx_timer);
    legacy_io_remove(device->machine->pio, &s->range, 1);
}

static void serial_save(struct device *device, struct state_writer *w)
{
    const struct serial *s = container_of(device, struct serial, device);
    state_put_field(w, s, divisor);
    state_put_field(w, s, ier);
    state_put_field(w, s, fcr);
    state_put_field(w, s, lcr);
    state_put_field(w, s, mcr);
    state_put_field(w, s, scr);
    state_put_field(w, s, lsr_errors);
    state_put_field(w, s, msr_delta);
    state_put_field(w, s, thre_pending);
    state_put_field(w, s, rx_timeout);
    state_put_field(w, s, rx);
    state_put_field(w, s, tx);
}

static bool fifo_is_sane(const struct serial_fifo *fifo)
{
    return fifo->first < FIFO_SIZE && fifo->count <= FIFO_SIZE;
}

static int serial_load(struct device *device, struct state_reader *r, struct err *err)
{
    struct serial *s = container_of(device, struct serial, device);
    state_get_field(r, s, divisor);
    state_get_field(r, s, ier);
    state_get_field(r, s, fcr);
    state_get_field(r, s, lcr);
    state_get_field(r, s, mcr);
    state_get_field(r, s, scr);
    state_get_field(r, s, lsr_errors);
    state_get_field(r, s, msr_delta);
    state_get_field(r, s, thre_pending);
    state_get_field(r, s, rx_timeout);
    state_get_field(r, s, rx);
    state_get_field(r, s, tx);
    if (!fifo_is_sane(&s->rx) || !fifo_is_sane(&s->tx)) {
        fifo_clear(&s->rx);
        fifo_clear(&s->tx);
        return err_set(err, EINVAL, "saved state: %s: a FIFO's count is impossible", device->path);
    }
    if (s->tx.count)
        tx_flush(s);
    rx_pause(s);
    update_irq(s);
    return 0;
}

const struct device_class serial_class = {
    .name = "serial",
    .size = sizeof(struct serial),
    .create = serial_create,
    .reset = serial_reset,
    .save = serial_save,
    .load = serial_load,
    .destroy = serial_destroy,
};
