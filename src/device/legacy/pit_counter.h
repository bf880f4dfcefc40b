/*
 * One counter of an 8254 as a function of time in ticks: nothing runs, everything is computed when
 * asked. Pure; the owner serialises.
 */
#ifndef PARAT_DEVICE_PIT_COUNTER_H
#define PARAT_DEVICE_PIT_COUNTER_H

#include <stdbool.h>
#include <stdint.h>

#define PIT_NEVER UINT64_MAX

/* All fields are plain integers and saved as they are. */
struct pit_counter {
    uint64_t start;       /* tick at which the present count was loaded; counting: PIT_NEVER: not */
    uint64_t elapsed;     /* ticks counted before a gate or a half-written count stopped it */
    uint32_t count;       /* in ticks: 1 to 0x10000, or 10000 in BCD */
    uint32_t next_count;  /* modes 2 and 3: loaded when the period ends; 0: none */
    uint64_t next_start;  /* when that is */
    uint16_t latch;       /* latched count */
    uint8_t latch_bytes;  /* how many of it are still to be read */
    uint8_t latch_second; /* the next one is the high byte */
    uint8_t status;       /* latched status */
    uint8_t status_latched;
    uint8_t mode, bcd, access; /* of the control word */
    uint8_t read_second, write_second;
    uint8_t write_low; /* the first byte of a two-byte count */
    uint8_t gate;
    uint8_t null_count; /* a count was written and is not loaded yet */
    uint8_t loaded;     /* a count was written since the control word */
    uint8_t triggered;  /* modes 1 and 5: the gate has risen */
};

void pit_counter_reset(struct pit_counter *c, bool gate);
void pit_counter_control(struct pit_counter *c, uint8_t control, uint64_t now);
void pit_counter_write(struct pit_counter *c, uint8_t value, uint64_t now);
uint8_t pit_counter_read(struct pit_counter *c, uint64_t now);
void pit_counter_latch_count(struct pit_counter *c, uint64_t now);
void pit_counter_latch_status(struct pit_counter *c, uint64_t now);
void pit_counter_set_gate(struct pit_counter *c, bool gate, uint64_t now);
bool pit_counter_output(struct pit_counter *c, uint64_t now);
/* The first tick after `now` at which the output rises; PIT_NEVER: not by itself. */
uint64_t pit_counter_next_rise(struct pit_counter *c, uint64_t now);
/* Ticks between rises in modes 2 and 3, else 0. */
uint32_t pit_counter_period(const struct pit_counter *c);
/* Brings fields from a saved state into range. */
void pit_counter_sanitize(struct pit_counter *c);

#endif
