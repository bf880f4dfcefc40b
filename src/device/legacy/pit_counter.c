/*
 * One counter of an 8254 (Intel 8254 data sheet, order 231164, "mode definitions"). Time is in
 * ticks of its 1.193182 MHz clock. Pure.
 *
 * Deviation: a new count in mode 3 is loaded at the end of the whole period, not of the half.
 */
#include "device/legacy/pit_counter.h"

#include "base/bits.h"

_Static_assert(sizeof(struct pit_counter) == 48, "saved as it is, so without padding");

enum { ACCESS_LATCH = 0, ACCESS_LOW = 1, ACCESS_HIGH = 2, ACCESS_BOTH = 3 };

static bool is_periodic(const struct pit_counter *c)
{
    return c->mode == 2 || c->mode == 3;
}

static bool is_gate_triggered(const struct pit_counter *c)
{
    return c->mode == 1 || c->mode == 5;
}

static uint32_t modulus(const struct pit_counter *c)
{
    return c->bcd ? 10000 : 0x10000;
}

/* Puts the next count in force when its time has come. */
static void synchronise(struct pit_counter *c, uint64_t now)
{
    if (c->next_count && now >= c->next_start) {
        c->count = c->next_count;
        c->start = c->next_start;
        c->next_count = 0;
        c->null_count = 0;
    }
}

/* Ticks since the count was loaded. */
static uint64_t elapsed(const struct pit_counter *c, uint64_t now)
{
    if (c->start == PIT_NEVER)
        return c->elapsed;
    return now > c->start ? now - c->start : 0;
}

static void load(struct pit_counter *c, uint32_t count, uint64_t now)
{
    c->count = count;
    c->start = now + 1; /* the clock pulse after the write loads it */
    c->elapsed = 0;
    c->next_count = 0;
    c->null_count = 0;
}

/* Modes in which a low gate stops the counting. */
static void stop(struct pit_counter *c, uint64_t now)
{
    c->elapsed = elapsed(c, now);
    c->start = PIT_NEVER;
}

void pit_counter_reset(struct pit_counter *c, bool gate)
{
    *c = (struct pit_counter) {
        .start = PIT_NEVER, .count = 0x10000, .access = ACCESS_BOTH, .gate = gate};
}

void pit_counter_control(struct pit_counter *c, uint8_t control, uint64_t now)
{
    unsigned mode = control >> 1 & 7;
    (void)now;
    c->mode = (uint8_t)(mode > 5 ? mode - 4 : mode);
    c->bcd = control & 1;
    c->count = MIN(c->count, modulus(c));
    c->access = control >> 4 & 3;
    c->start = PIT_NEVER;
    c->elapsed = 0;
    c->next_count = 0;
    c->latch_bytes = c->latch_second = c->status_latched = 0;
    c->read_second = c->write_second = 0;
    c->null_count = 1;
    c->loaded = c->triggered = 0;
}

/* --- counting --- */

static uint32_t from_register(const struct pit_counter *c, uint16_t value)
{
    if (!c->bcd)
        return value ? value : 0x10000;
    uint32_t count =
        (value >> 12) * 1000u + (value >> 8 & 15) * 100u + (value >> 4 & 15) * 10u + (value & 15);
    count %= 10000;
    return count ? count : 10000;
}

static uint16_t to_register(const struct pit_counter *c, uint32_t value)
{
    value %= modulus(c);
    if (!c->bcd)
        return (uint16_t)value;
    return (uint16_t)(value / 1000 << 12 | value / 100 % 10 << 8 | value / 10 % 10 << 4 |
                      value % 10);
}

static uint16_t present_count(struct pit_counter *c, uint64_t now)
{
    synchronise(c, now);
    uint64_t ticks = elapsed(c, now);
    if (c->mode == 2)
        return to_register(c, c->count - (uint32_t)(ticks % c->count));
    if (c->mode == 3) /* by two, on even numbers */
        return to_register(c, (c->count - (uint32_t)(2 * ticks % c->count)) & ~1u);
    uint32_t m = modulus(c);
    return to_register(c, (c->count + m - (uint32_t)(ticks % m)) % m);
}

bool pit_counter_output(struct pit_counter *c, uint64_t now)
{
    synchronise(c, now);
    if (!c->loaded)
        return c->mode != 0;
    uint64_t ticks = elapsed(c, now);
    switch (c->mode) {
    case 0:
        return !c->write_second && ticks >= c->count;
    case 1:
        return !c->triggered || ticks >= c->count;
    case 2:
        return !c->gate || c->count == 1 || ticks % c->count != c->count - 1;
    case 3:
        return !c->gate || ticks % c->count < (c->count + 1) / 2;
    case 4:
        return ticks != c->count;
    default:
        return !c->triggered || ticks != c->count;
    }
}

uint32_t pit_counter_period(const struct pit_counter *c)
{
    return is_periodic(c) && c->loaded && c->gate ? c->count : 0;
}

uint64_t pit_counter_next_rise(struct pit_counter *c, uint64_t now)
{
    synchronise(c, now);
    if (!c->loaded || c->start == PIT_NEVER || (is_gate_triggered(c) && !c->triggered))
        return PIT_NEVER;
    if (is_periodic(c)) {
        uint64_t next = c->start + (elapsed(c, now) / c->count + 1) * c->count;
        return next;
    }
    /* Strobes end one tick after the count does. */
    uint64_t rise = c->start + c->count + (c->mode >= 4 ? 1 : 0);
    return rise > now ? rise : PIT_NEVER;
}

/* --- writing a count --- */

static void new_count(struct pit_counter *c, uint16_t value, uint64_t now)
{
    uint32_t count = from_register(c, value);
    synchronise(c, now);
    c->null_count = 1;
    if (is_gate_triggered(c)) {
        c->next_count = 0;
        c->count = c->triggered ? c->count : count;
        c->loaded = 1;
        if (c->triggered) { /* in force from the next trigger on */
            c->next_count = count;
            c->next_start = PIT_NEVER;
        }
        return;
    }
    if (is_periodic(c) && c->loaded && c->start != PIT_NEVER) {
        c->next_start = pit_counter_next_rise(c, now);
        c->next_count = count;
        return;
    }
    c->loaded = 1;
    load(c, count, now);
    if (!c->gate) { /* loaded, and stands */
        c->start = PIT_NEVER;
        c->elapsed = 0;
    }
}

void pit_counter_write(struct pit_counter *c, uint8_t value, uint64_t now)
{
    switch (c->access) {
    case ACCESS_LOW:
        new_count(c, value, now);
        break;
    case ACCESS_HIGH:
        new_count(c, (uint16_t)(value << 8), now);
        break;
    default:
        c->write_second ^= 1;
        if (c->write_second) {
            c->write_low = value;
            if (c->mode == 0 && c->loaded)
                stop(c, now); /* the first byte stops mode 0 */
        } else {
            new_count(c, (uint16_t)(value << 8 | c->write_low), now);
        }
    }
}

/* --- reading --- */

void pit_counter_latch_count(struct pit_counter *c, uint64_t now)
{
    if (c->latch_bytes)
        return; /* until it was read */
    c->latch = present_count(c, now);
    c->latch_bytes = c->access == ACCESS_BOTH ? 2 : 1;
    c->latch_second = c->access == ACCESS_HIGH;
}

void pit_counter_latch_status(struct pit_counter *c, uint64_t now)
{
    if (c->status_latched)
        return;
    bool output = pit_counter_output(c, now);
    c->status =
        (uint8_t)(output << 7 | c->null_count << 6 | c->access << 4 | c->mode << 1 | c->bcd);
    c->status_latched = 1;
}

uint8_t pit_counter_read(struct pit_counter *c, uint64_t now)
{
    if (c->status_latched) {
        c->status_latched = 0;
        return c->status;
    }
    if (c->latch_bytes) {
        uint8_t value = (uint8_t)(c->latch >> (c->latch_second ? 8 : 0));
        c->latch_second = 1;
        c->latch_bytes--;
        return value;
    }
    uint16_t count = present_count(c, now);
    if (c->access == ACCESS_BOTH)
        c->read_second ^= 1;
    bool high = c->access == ACCESS_HIGH || (c->access == ACCESS_BOTH && !c->read_second);
    return (uint8_t)(count >> (high ? 8 : 0));
}

/* --- the gate --- */

static void gate_rises(struct pit_counter *c, uint64_t now)
{
    if (!c->loaded)
        return;
    if (is_gate_triggered(c)) {
        c->triggered = 1;
        load(c, c->next_count ? c->next_count : c->count, now);
    } else if (is_periodic(c)) {
        load(c, c->next_count ? c->next_count : c->count, now);
    } else if (c->start == PIT_NEVER) {
        c->start = now >= c->elapsed ? now - c->elapsed : 0;
    }
}

/* Counts that were waiting for the period's end are loaded when the gate rises. */
static void gate_falls(struct pit_counter *c, uint64_t now)
{
    if (is_gate_triggered(c) || !c->loaded)
        return;
    stop(c, now);
    if (c->next_count)
        c->count = c->next_count;
    c->next_count = 0;
}

void pit_counter_set_gate(struct pit_counter *c, bool gate, uint64_t now)
{
    if (gate == c->gate)
        return;
    synchronise(c, now);
    if (gate)
        gate_rises(c, now);
    else
        gate_falls(c, now);
    c->gate = gate;
}

void pit_counter_sanitize(struct pit_counter *c)
{
    uint32_t m = modulus(c);
    c->mode = c->mode > 5 ? 0 : c->mode;
    c->bcd &= 1;
    c->access &= 3;
    c->count = c->count == 0 || c->count > m ? m : c->count;
    c->next_count = c->next_count > m ? m : c->next_count;
    c->latch_bytes = MIN(c->latch_bytes, 2);
    c->read_second &= 1;
    c->write_second &= 1;
    c->gate &= 1;
    c->null_count &= 1;
    if (c->start != PIT_NEVER && c->start > BIT(62))
        c->start = 0;
    c->elapsed = MIN(c->elapsed, BIT(62));
}
