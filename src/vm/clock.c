/*
 * VM time = host monotonic time - offset while running, a constant while paused. Readers on any
 * thread use a sequence counter; the loop thread alone pauses and resumes. Timers hang in one
 * sorted list behind one host timer.
 */
#include "vm/clock.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "base/clock.h"
#include "base/loop.h"

#define FAKE_WALL_START_NS (946684800ull * NS_PER_S) /* 2000-01-01 */

struct vm_clock {
    struct loop *loop; /* NULL: fake */
    _Atomic unsigned sequence;
    _Atomic bool running;
    _Atomic uint64_t base; /* running: host ns at VM time 0 (may wrap); else the VM time */
    pthread_mutex_t lock;  /* timers */
    struct list timers;
    struct loop_timer host_timer;
};

static void timers_run(struct vm_clock *clock);

static void host_timer_fired(struct loop_timer *timer)
{
    timers_run(container_of(timer, struct vm_clock, host_timer));
}

static struct vm_clock *clock_new(struct loop *loop)
{
    struct vm_clock *clock = calloc(1, sizeof *clock);
    if (!clock)
        return NULL;
    clock->loop = loop;
    clock->host_timer.handler = host_timer_fired;
    pthread_mutex_init(&clock->lock, NULL);
    list_init(&clock->timers);
    return clock;
}

int vm_clock_create(struct vm_clock **out, struct loop *loop)
{
    *out = clock_new(loop);
    return *out ? 0 : -ENOMEM;
}

int vm_clock_create_fake(struct vm_clock **out)
{
    return vm_clock_create(out, NULL);
}

void vm_clock_destroy(struct vm_clock *clock)
{
    if (!clock)
        return;
    if (clock->loop)
        loop_timer_cancel(clock->loop, &clock->host_timer);
    pthread_mutex_destroy(&clock->lock);
    free(clock);
}

/* A consistent pair of running and base; pairs with clock_change. */
static void clock_read(const struct vm_clock *clock, bool *running, uint64_t *base)
{
    struct vm_clock *c = (struct vm_clock *)(uintptr_t)clock;
    unsigned before;
    do {
        before = atomic_load_explicit(&c->sequence, memory_order_acquire);
        *running = atomic_load_explicit(&c->running, memory_order_relaxed);
        *base = atomic_load_explicit(&c->base, memory_order_relaxed);
        atomic_thread_fence(memory_order_acquire);
    } while (before & 1 || atomic_load_explicit(&c->sequence, memory_order_relaxed) != before);
}

static void clock_change(struct vm_clock *clock, bool running, uint64_t base)
{
    atomic_fetch_add_explicit(&clock->sequence, 1, memory_order_relaxed);
    atomic_thread_fence(memory_order_release);
    atomic_store_explicit(&clock->running, running, memory_order_relaxed);
    atomic_store_explicit(&clock->base, base, memory_order_relaxed);
    atomic_fetch_add_explicit(&clock->sequence, 1, memory_order_release);
}

uint64_t vm_clock_ns(const struct vm_clock *clock)
{
    bool running;
    uint64_t base;
    clock_read(clock, &running, &base);
    return running ? clock_host_ns() - base : base;
}

uint64_t vm_clock_wall_ns(const struct vm_clock *clock)
{
    return clock->loop ? clock_wall_ns() : FAKE_WALL_START_NS + vm_clock_ns(clock);
}

uint64_t vm_clock_host_deadline(const struct vm_clock *clock, uint64_t vm_ns)
{
    bool running;
    uint64_t base, deadline;
    clock_read(clock, &running, &base);
    if (!running || vm_ns == UINT64_MAX)
        return UINT64_MAX;
    /* base is "host time at VM time 0", which a restored VM may have below zero: wrapping is right
     * for it, but a deadline beyond the host's range is never. */
    deadline = vm_ns + base;
    return (int64_t)base >= 0 && deadline < vm_ns ? UINT64_MAX : deadline;
}

/* Lock held. Sets the host timer for the first deadline. */
static void host_timer_update(struct vm_clock *clock)
{
    if (!clock->loop)
        return;
    uint64_t deadline = UINT64_MAX;
    if (!list_empty(&clock->timers)) {
        struct vm_timer *first = container_of(clock->timers.next, struct vm_timer, link);
        deadline = vm_clock_host_deadline(clock, first->deadline_ns);
    }
    if (deadline == UINT64_MAX)
        loop_timer_cancel(clock->loop, &clock->host_timer);
    else
        loop_timer_arm(clock->loop, &clock->host_timer, deadline);
}

static void clock_set_running(struct vm_clock *clock, bool running)
{
    uint64_t now = vm_clock_ns(clock);
    if (atomic_load_explicit(&clock->running, memory_order_relaxed) == running)
        return;
    clock_change(clock, running, running ? clock_host_ns() - now : now);
    pthread_mutex_lock(&clock->lock);
    host_timer_update(clock);
    pthread_mutex_unlock(&clock->lock);
}

void vm_clock_pause(struct vm_clock *clock)
{
    if (clock->loop)
        clock_set_running(clock, false);
}

void vm_clock_resume(struct vm_clock *clock)
{
    if (clock->loop)
        clock_set_running(clock, true);
}

void vm_clock_set_ns(struct vm_clock *clock, uint64_t ns)
{
    clock_change(clock, false, ns);
}

/* Takes the first timer that is due; NULL: none. */
static struct vm_timer *timer_take_due(struct vm_clock *clock, uint64_t now)
{
    struct vm_timer *timer = NULL;
    pthread_mutex_lock(&clock->lock);
    if (!list_empty(&clock->timers)) {
        timer = container_of(clock->timers.next, struct vm_timer, link);
        if (timer->deadline_ns > now) {
            timer = NULL;
        } else {
            list_remove(&timer->link);
            timer->deadline_ns = UINT64_MAX;
        }
    }
    if (!timer)
        host_timer_update(clock);
    pthread_mutex_unlock(&clock->lock);
    return timer;
}

/*
 * Runs what is due at one instant. A handler that arms a timer in the past has it run at the next
 * round of the loop, so that a guest cannot hold the loop here.
 */
static void timers_run(struct vm_clock *clock)
{
    uint64_t now = vm_clock_ns(clock);
    struct vm_timer *timer;
    for (unsigned rounds = 0; rounds < 64 && (timer = timer_take_due(clock, now)); rounds++)
        timer->handler(timer);
    pthread_mutex_lock(&clock->lock);
    host_timer_update(clock);
    pthread_mutex_unlock(&clock->lock);
}

void vm_clock_fake_advance(struct vm_clock *clock, uint64_t ns)
{
    uint64_t end = vm_clock_ns(clock) + ns;
    for (;;) {
        pthread_mutex_lock(&clock->lock);
        uint64_t next = end;
        if (!list_empty(&clock->timers))
            next = container_of(clock->timers.next, struct vm_timer, link)->deadline_ns;
        pthread_mutex_unlock(&clock->lock);
        if (next > end)
            break;
        clock_change(clock, false, MAX(next, vm_clock_ns(clock)));
        struct vm_timer *timer = timer_take_due(clock, vm_clock_ns(clock));
        if (!timer)
            break;
        timer->handler(timer);
    }
    clock_change(clock, false, end);
}

void vm_timer_init(struct vm_timer *timer, struct vm_clock *clock,
                   void (*handler)(struct vm_timer *timer), void *context)
{
    *timer = (struct vm_timer) {
        .handler = handler, .context = context, .clock = clock, .deadline_ns = UINT64_MAX};
    list_init(&timer->link);
}

void vm_timer_arm(struct vm_timer *timer, uint64_t deadline_ns)
{
    struct vm_clock *clock = timer->clock;
    pthread_mutex_lock(&clock->lock);
    list_remove(&timer->link);
    timer->deadline_ns = deadline_ns;
    struct list *at = clock->timers.prev;
    while (at != &clock->timers &&
           container_of(at, struct vm_timer, link)->deadline_ns > deadline_ns)
        at = at->prev;
    list_insert_after(at, &timer->link);
    if (clock->timers.next == &timer->link)
        host_timer_update(clock);
    pthread_mutex_unlock(&clock->lock);
}

void vm_timer_cancel(struct vm_timer *timer)
{
    struct vm_clock *clock = timer->clock;
    if (!clock)
        return;
    pthread_mutex_lock(&clock->lock);
    list_remove(&timer->link);
    timer->deadline_ns = UINT64_MAX;
    pthread_mutex_unlock(&clock->lock);
}
