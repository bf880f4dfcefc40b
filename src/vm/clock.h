/*
 * The VM's clock and its timers. VM time counts nanoseconds since the VM first ran, stands still
 * while the VM is paused, and moves with a saved VM. Everything the guest can observe of time (TSC,
 * kvmclock, PIT, RTC, APIC timer, ACPI timer) derives from it.
 *
 * A test makes a fake clock that moves only when told.
 */
#ifndef PARAT_VM_CLOCK_H
#define PARAT_VM_CLOCK_H

#include <stdbool.h>
#include <stdint.h>

#include "base/bits.h"
#include "base/list.h"

struct loop;
struct vm_clock;

/* Starts paused at 0. Timers' handlers run on the loop's thread. */
int vm_clock_create(struct vm_clock **out, struct loop *loop) MUST_USE;
/* A clock that stands at 0 until vm_clock_fake_advance, which runs due timers on the caller's
 * thread. */
int vm_clock_create_fake(struct vm_clock **out) MUST_USE;
void vm_clock_fake_advance(struct vm_clock *clock, uint64_t ns);
void vm_clock_destroy(struct vm_clock *clock);

/* Any thread, no lock. */
uint64_t vm_clock_ns(const struct vm_clock *clock);
/* Unix time now in ns (host's wall clock; a fake clock counts from 2000-01-01). */
uint64_t vm_clock_wall_ns(const struct vm_clock *clock);
/* Host CLOCK_MONOTONIC at which VM time will be vm_ns if it runs on; UINT64_MAX while paused. */
uint64_t vm_clock_host_deadline(const struct vm_clock *clock, uint64_t vm_ns);

/* Loop thread. */
void vm_clock_pause(struct vm_clock *clock);
void vm_clock_resume(struct vm_clock *clock);
/* Sets the time of a paused clock (restore). */
void vm_clock_set_ns(struct vm_clock *clock, uint64_t ns);

/*
 * One-shot timer in VM time. The owner (a device) sets handler and context, and keeps the struct
 * until vm_timer_cancel on the loop thread. The handler runs on the loop thread with no lock held;
 * it takes its device's lock itself. Arm and cancel: any thread, also with the device's lock held.
 */
struct vm_timer {
    void (*handler)(struct vm_timer *timer);
    void *context;
    struct vm_clock *clock; /* set by init */
    uint64_t deadline_ns;   /* guarded by the clock's lock; UINT64_MAX: not armed */
    struct list link;       /* armed timers, sorted by deadline */
};

void vm_timer_init(struct vm_timer *timer, struct vm_clock *clock,
                   void (*handler)(struct vm_timer *timer), void *context);
void vm_timer_arm(struct vm_timer *timer, uint64_t deadline_ns);
void vm_timer_cancel(struct vm_timer *timer);

#endif
