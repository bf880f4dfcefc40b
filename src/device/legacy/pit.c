/*
 * 8254 timer with the PC's wiring: counter 0 drives line 0, counter 1 was the memory refresh,
 * counter 2 is gated and read through port 0x61 (ICH9 data sheet, sections 5.7 and 13.7). The
 * counters themselves are in pit_counter.c.
 *
 * Registers are served on vCPU threads, the timer on the loop thread; the device's lock guards all.
 * Periodic ticks that the host was late for are made up for, up to a bound, at twice the rate.
 */
#include "device/legacy/pit.h"

#include <errno.h>

#include "base/clock.h"
#include "device/legacy/legacy_io.h"
#include "device/legacy/pit_counter.h"
#include "vm/machine.h"
#include "vm/state.h"

#define HZ            1193182ull
#define PORT_COUNTERS 0x40
#define PORT_CONTROL  3
#define PORT_B        0x61
#define REFRESH_NS    15085 /* half a period of the refresh bit */
#define BACKLOG_MAX   50    /* ticks that are made up for */
#define MIN_EDGE_NS   (50 * NS_PER_US)

#define PORT_B_GATE2    0x01
#define PORT_B_WRITABLE 0x0f
#define PORT_B_REFRESH  0x10
#define PORT_B_OUT2     0x20

struct pit {
    struct device device;
    struct irq_source irq;
    struct vm_timer timer;
    struct pit_counter counter[3];
    uint8_t port_b;
    uint64_t edge;    /* tick of the next rise of counter 0 that line 0 is to see */
    uint32_t backlog; /* rises that were missed and are still owed */
};

static uint64_t now_ns(const struct pit *pit)
{
    return vm_clock_ns(pit->device.machine->clock);
}

static uint64_t ticks_of(uint64_t ns)
{
    return mul_div_u64(ns, HZ, NS_PER_S);
}

/* The first nanosecond at which ticks_of gives the tick. */
static uint64_t ns_of(uint64_t tick)
{
    return mul_div_u64(tick, NS_PER_S, HZ) + 1;
}

static uint64_t now_ticks(const struct pit *pit)
{
    return ticks_of(now_ns(pit));
}

/* --- counter 0 and line 0 --- */

/* When the timer is to run: at the next rise, earlier while ticks are owed. */
static void arm(struct pit *pit)
{
    if (pit->edge == PIT_NEVER) {
        vm_timer_cancel(&pit->timer);
        return;
    }
    uint64_t now = now_ns(pit), deadline = ns_of(pit->edge);
    uint32_t period = pit_counter_period(&pit->counter[0]);
    if (pit->backlog && period)
        deadline = MIN(deadline, now + mul_div_u64(period, NS_PER_S, HZ) / 2);
    vm_timer_arm(&pit->timer, MAX(deadline, now + MIN_EDGE_NS));
}

/* Takes up the counter's schedule from now on, after the guest changed it. */
static void restart(struct pit *pit)
{
    uint64_t now = now_ticks(pit);
    pit->backlog = 0;
    pit->edge = pit_counter_next_rise(&pit->counter[0], now);
    irq_source_set(&pit->irq, pit_counter_output(&pit->counter[0], now));
    arm(pit);
}

/* Counts the rises that are due and finds the next one. */
static void pass_edges(struct pit *pit)
{
    uint64_t now = now_ticks(pit);
    struct pit_counter *c = &pit->counter[0];
    if (pit->edge == PIT_NEVER || now < pit->edge)
        return;
    uint32_t period = pit_counter_period(c);
    uint64_t due = period ? (now - pit->edge) / period + 1 : 1;
    pit->backlog = (uint32_t)MIN(pit->backlog + due, BACKLOG_MAX);
    pit->edge = pit_counter_next_rise(c, now);
}

static void timer_fired(struct vm_timer *timer)
{
    struct pit *pit = container_of(timer, struct pit, timer);
    pthread_mutex_lock(&pit->device.lock);
    pass_edges(pit);
    if (pit->backlog) {
        pit->backlog--;
        irq_source_set(&pit->irq, false);
        irq_source_set(&pit->irq, true);
    }
    arm(pit);
    pthread_mutex_unlock(&pit->device.lock);
}

/* --- ports 0x40 to 0x43 --- */

static void write_control(struct pit *pit, uint8_t value)
{
    unsigned select = value >> 6;
    uint64_t now = now_ticks(pit);
    if (select < 3 && (value & 0x30) == 0) {
        pit_counter_latch_count(&pit->counter[select], now);
        return;
    }
    if (select < 3) {
        pit_counter_control(&pit->counter[select], value, now);
        if (select == 0)
            restart(pit);
        return;
    }
    for (unsigned i = 0; i < 3; i++) { /* read-back */
        if (!(value & 2u << i))
            continue;
        if (!(value & 0x20))
            pit_counter_latch_count(&pit->counter[i], now);
        if (!(value & 0x10))
            pit_counter_latch_status(&pit->counter[i], now);
    }
}

static uint64_t pit_read(void *context, uint64_t offset, unsigned size)
{
    struct pit *pit = context;
    if (offset == PORT_CONTROL)
        return size_mask(size);
    return pit_counter_read(&pit->counter[offset], now_ticks(pit));
}

static void pit_write(void *context, uint64_t offset, unsigned size, uint64_t value)
{
    struct pit *pit = context;
    (void)size;
    if (offset == PORT_CONTROL) {
        write_control(pit, (uint8_t)value);
        return;
    }
    pit_counter_write(&pit->counter[offset], (uint8_t)value, now_ticks(pit));
    if (offset == 0)
        restart(pit);
}

/* --- port 0x61 --- */

static uint64_t port_b_read(void *context, uint64_t offset, unsigned size)
{
    struct pit *pit = context;
    uint64_t value = pit->port_b;
    (void)offset, (void)size;
    if (now_ns(pit) / REFRESH_NS & 1)
        value |= PORT_B_REFRESH;
    if (pit_counter_output(&pit->counter[2], now_ticks(pit)))
        value |= PORT_B_OUT2;
    return value;
}

static void port_b_write(void *context, uint64_t offset, unsigned size, uint64_t value)
{
    struct pit *pit = context;
    (void)offset, (void)size;
    pit->port_b = value & PORT_B_WRITABLE;
    pit_counter_set_gate(&pit->counter[2], value & PORT_B_GATE2, now_ticks(pit));
}

static const struct bus_ops pit_ops = {pit_read, pit_write};
static const struct bus_ops port_b_ops = {port_b_read, port_b_write};
static const struct legacy_range pit_ranges[] = {
    {PORT_COUNTERS, 4, &pit_ops},
    {PORT_B, 1, &port_b_ops},
};

/* --- the device --- */

/* No counter runs until it is programmed; there is no firmware to do it. */
static void pit_reset(struct device *device)
{
    struct pit *pit = container_of(device, struct pit, device);
    for (unsigned i = 0; i < ARRAY_COUNT(pit->counter); i++)
        pit_counter_reset(&pit->counter[i], i != 2);
    pit->port_b = 0;
    restart(pit);
}

static int pit_create(struct device *device, const void *config, struct err *err)
{
    struct pit *pit = container_of(device, struct pit, device);
    struct machine *machine = device->machine;
    (void)config;
    vm_timer_init(&pit->timer, machine->clock, timer_fired, pit);
    irq_source_init(&pit->irq, machine->irq, 0);
    pit->edge = PIT_NEVER;
    return legacy_io_add(device, machine->pio, pit_ranges, ARRAY_COUNT(pit_ranges), true, err);
}

static void pit_destroy(struct device *device)
{
    struct pit *pit = container_of(device, struct pit, device);
    vm_timer_cancel(&pit->timer);
    legacy_io_remove(device->machine->pio, pit_ranges, ARRAY_COUNT(pit_ranges));
}

static void save_counter(struct state_writer *w, const char *name, const struct pit_counter *c)
{
    state_put(w, name, c, sizeof *c);
}

static const char *const counter_names[3] = {"counter0", "counter1", "counter2"};

static void pit_save(struct device *device, struct state_writer *w)
{
    struct pit *pit = container_of(device, struct pit, device);
    uint8_t level = pit->irq.level;
    for (unsigned i = 0; i < ARRAY_COUNT(pit->counter); i++)
        save_counter(w, counter_names[i], &pit->counter[i]);
    state_put_field(w, pit, port_b);
    state_put_field(w, pit, edge);
    state_put_field(w, pit, backlog);
    state_put(w, "level", &level, sizeof level);
}

static int pit_load(struct device *device, struct state_reader *r, struct err *err)
{
    struct pit *pit = container_of(device, struct pit, device);
    uint8_t level = 0;
    (void)err;
    for (unsigned i = 0; i < ARRAY_COUNT(pit->counter); i++) {
        state_get(r, counter_names[i], &pit->counter[i], sizeof pit->counter[i]);
        pit_counter_sanitize(&pit->counter[i]);
    }
    state_get_field(r, pit, port_b);
    state_get_field(r, pit, edge);
    state_get_field(r, pit, backlog);
    state_get(r, "level", &level, sizeof level);
    pit->backlog = MIN(pit->backlog, BACKLOG_MAX);
    if (pit->edge != PIT_NEVER && pit->edge > BIT(62))
        pit->edge = pit_counter_next_rise(&pit->counter[0], now_ticks(pit));
    irq_source_set(&pit->irq, level != 0);
    arm(pit);
    return 0;
}

const struct device_class pit_class = {
    .name = "pit",
    .size = sizeof(struct pit),
    .create = pit_create,
    .reset = pit_reset,
    .save = pit_save,
    .load = pit_load,
    .destroy = pit_destroy,
};
