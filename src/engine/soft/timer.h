/*
 * The alarm of a VM: one host thread that sets a running vCPU's `attention` when its local APIC's
 * timer is due. Blocks count no instructions and look at no clock, so somebody else must.
 *
 * The thread sleeps until the earliest deadline that it has seen. A vCPU stores its deadline and
 * wakes the thread only for an earlier one; a later one, or none, costs a store, and the thread
 * then wakes once for nothing. Deadlines are the host's (CLOCK_MONOTONIC): a vCPU withdraws its own
 * when it halts (it sleeps until the deadline by itself) and when it leaves vcpu_run, and so before
 * VM time can stop.
 */
#ifndef PARAT_ENGINE_SOFT_TIMER_H
#define PARAT_ENGINE_SOFT_TIMER_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/bits.h"
#include "vm/engine.h"

#define SOFT_TIMER_NEVER UINT64_MAX

struct soft_timer {
    unsigned count;
    _Atomic uint64_t
        deadline[ENGINE_VCPUS_MAX]; /* host ns; by the vCPU, and by the thread to NEVER */
    _Atomic uint64_t target;        /* the thread sleeps until then */
    _Atomic uint32_t word;          /* futex: changes when it must look again */
    _Atomic bool closing;
    _Atomic uint64_t wakes; /* returns from sleep, for tests and statistics */
    void (*expired)(void *context, unsigned index);
    void *context;
    pthread_t thread;
    bool started;
    const struct sandbox *sandbox; /* set before the start; NULL: none */
};

/* expired runs on the alarm's thread, after the deadline, which is withdrawn by then. */
int soft_timer_start(struct soft_timer *timer, unsigned count,
                     void (*expired)(void *context, unsigned index), void *context) MUST_USE;
void soft_timer_stop(struct soft_timer *timer); /* also of one that was never started */

void soft_timer_wake(struct soft_timer *timer);

/* Any thread, in order for one index. `at`: host ns, or SOFT_TIMER_NEVER. */
static inline void soft_timer_set(struct soft_timer *timer, unsigned index, uint64_t at)
{
    if (likely(atomic_load_explicit(&timer->deadline[index], memory_order_relaxed) == at))
        return;
    /* The thread stores its target, then looks at the deadlines: one of us sees the other. */
    atomic_store(&timer->deadline[index], at);
    if (unlikely(at < atomic_load(&timer->target)))
        soft_timer_wake(timer);
}

#endif
