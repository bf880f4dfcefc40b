/*
 * The alarm of a VM; see timer.h. The thread is created with the VM and does nothing else.
 */
#include "engine/soft/timer.h"

#include <linux/futex.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/sandbox.h"

static void futex(_Atomic uint32_t *word, int operation, uint32_t value,
                  const struct timespec *deadline)
{
    syscall(SYS_futex, (uint32_t *)word, operation | FUTEX_PRIVATE_FLAG, value, deadline, NULL,
            FUTEX_BITSET_MATCH_ANY);
}

void soft_timer_wake(struct soft_timer *timer)
{
    atomic_fetch_add(&timer->word, 1);
    futex(&timer->word, FUTEX_WAKE, 1, NULL);
}

static uint64_t earliest(struct soft_timer *timer)
{
    uint64_t first = SOFT_TIMER_NEVER;
    for (unsigned i = 0; i < timer->count; i++)
        first = MIN(first, atomic_load(&timer->deadline[i]));
    return first;
}

/* A deadline that its vCPU changes meanwhile stays as it is then. */
static void fire(struct soft_timer *timer, uint64_t now)
{
    for (unsigned i = 0; i < timer->count; i++) {
        uint64_t at = atomic_load(&timer->deadline[i]);
        if (at <= now && atomic_compare_exchange_strong(&timer->deadline[i], &at, SOFT_TIMER_NEVER))
            timer->expired(timer->context, i);
    }
}

static void sleep_until(struct soft_timer *timer, uint32_t word, uint64_t at)
{
    struct timespec deadline = {.tv_sec = (time_t)(at / NS_PER_S),
                                .tv_nsec = (long)(at % NS_PER_S)};
    futex(&timer->word, FUTEX_WAIT_BITSET, word, at == SOFT_TIMER_NEVER ? NULL : &deadline);
    atomic_fetch_add(&timer->wakes, 1);
}

static void *run(void *argument)
{
    struct soft_timer *timer = argument;

    sandbox_enter(timer->sandbox, SANDBOX_ALARM);
    prctl(PR_SET_TIMERSLACK, 1ul, 0ul, 0ul, 0ul); /* the default is 50 microseconds */
    while (!atomic_load(&timer->closing)) {
        uint32_t word = atomic_load(&timer->word);
        uint64_t first = earliest(timer);
        if (first != SOFT_TIMER_NEVER && first <= clock_host_ns()) {
            fire(timer, clock_host_ns());
            continue;
        }
        atomic_store(&timer->target, first);
        if (earliest(timer) >= first && !atomic_load(&timer->closing))
            sleep_until(timer, word, first);
        atomic_store(&timer->target, 0); /* awake: nobody need wake it */
    }
    return NULL;
}

int soft_timer_start(struct soft_timer *timer, unsigned count,
                     void (*expired)(void *context, unsigned index), void *context)
{
    sigset_t all, old;

    timer->count = count;
    timer->expired = expired;
    timer->context = context;
    for (unsigned i = 0; i < ENGINE_VCPUS_MAX; i++)
        timer->deadline[i] = SOFT_TIMER_NEVER;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int error = pthread_create(&timer->thread, NULL, run, timer);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (error)
        return -error;
    pthread_setname_np(timer->thread, "parat-alarm");
    timer->started = true;
    return 0;
}

void soft_timer_stop(struct soft_timer *timer)
{
    if (!timer->started)
        return;
    atomic_store(&timer->closing, true);
    soft_timer_wake(timer);
    pthread_join(timer->thread, NULL);
    timer->started = false;
}
