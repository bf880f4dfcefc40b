/* engine/soft's alarm: fires once, not early, wakes only for an earlier deadline, loses none. */
#include "test.h"

#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "engine/soft/timer.h"

#define CPUS 4
#define HOUR (3600 * NS_PER_S)

struct rig {
    struct soft_timer timer;
    pthread_mutex_t lock;
    pthread_cond_t fired;
    unsigned count[CPUS]; /* guarded by lock */
    uint64_t at[CPUS];    /* when it fired last */
};

static void expired(void *context, unsigned index)
{
    struct rig *rig = context;
    pthread_mutex_lock(&rig->lock);
    rig->count[index]++;
    rig->at[index] = clock_host_ns();
    pthread_cond_broadcast(&rig->fired);
    pthread_mutex_unlock(&rig->lock);
}

static int setup(void **state)
{
    struct rig *rig = calloc(1, sizeof *rig);
    pthread_mutex_init(&rig->lock, NULL);
    pthread_cond_init(&rig->fired, NULL);
    assert_int_equal(soft_timer_start(&rig->timer, CPUS, expired, rig), 0);
    *state = rig;
    return 0;
}

static int teardown(void **state)
{
    struct rig *rig = *state;
    soft_timer_stop(&rig->timer);
    free(rig);
    return 0;
}

/* False: not within 20 s. */
static bool await_count(struct rig *rig, unsigned index, unsigned count)
{
    struct timespec end;
    int error = 0;
    clock_gettime(CLOCK_REALTIME, &end);
    end.tv_sec += 20;
    pthread_mutex_lock(&rig->lock);
    while (rig->count[index] < count && !error)
        error = pthread_cond_timedwait(&rig->fired, &rig->lock, &end);
    pthread_mutex_unlock(&rig->lock);
    return !error;
}

/* The thread is asleep, or about to be, with this target. */
static void await_target(struct rig *rig, uint64_t target)
{
    uint64_t start = clock_host_ns();
    while (atomic_load(&rig->timer.target) != target) {
        assert_true(clock_host_ns() - start < 20 * NS_PER_S);
        sched_yield();
    }
}

static void test_fires_once_and_not_early(void **state)
{
    struct rig *rig = *state;
    uint64_t at = clock_host_ns() + 2 * NS_PER_MS;
    soft_timer_set(&rig->timer, 1, at);
    assert_true(await_count(rig, 1, 1));
    assert_true(rig->at[1] >= at);
    assert_int_equal(rig->timer.deadline[1], SOFT_TIMER_NEVER);
    await_target(rig, SOFT_TIMER_NEVER); /* nothing left to do */
    assert_int_equal(rig->count[1], 1);
}

static void test_a_deadline_in_the_past_fires(void **state)
{
    struct rig *rig = *state;
    await_target(rig, SOFT_TIMER_NEVER);
    soft_timer_set(&rig->timer, 0, 0);
    assert_true(await_count(rig, 0, 1));
}

static void test_only_an_earlier_deadline_wakes(void **state)
{
    struct rig *rig = *state;
    uint64_t far = clock_host_ns() + HOUR;
    soft_timer_set(&rig->timer, 0, far);
    await_target(rig, far);
    uint32_t word = rig->timer.word;
    soft_timer_set(&rig->timer, 0, far + HOUR);
    soft_timer_set(&rig->timer, 1, far + 1);
    soft_timer_set(&rig->timer, 1, SOFT_TIMER_NEVER);
    assert_int_equal(rig->timer.word, word);
    assert_int_equal(rig->timer.target, far);
    soft_timer_set(&rig->timer, 2, clock_host_ns());
    assert_int_equal(rig->timer.word, word + 1);
    assert_true(await_count(rig, 2, 1));
    await_target(rig, far + HOUR);
}

static void test_a_withdrawn_deadline_does_not_fire(void **state)
{
    struct rig *rig = *state;
    uint64_t now = clock_host_ns();
    soft_timer_set(&rig->timer, 0, now + HOUR);
    soft_timer_set(&rig->timer, 0, now + 50 * NS_PER_MS);
    soft_timer_set(&rig->timer, 0, SOFT_TIMER_NEVER);
    soft_timer_set(&rig->timer, 1, now + 51 * NS_PER_MS);
    assert_true(await_count(rig, 1, 1));
    assert_int_equal(rig->count[0], 0);
}

static void test_sleeps_while_nothing_is_armed(void **state)
{
    struct rig *rig = *state;
    await_target(rig, SOFT_TIMER_NEVER);
    assert_int_equal(rig->timer.wakes, 0);
    soft_timer_set(&rig->timer, 3, clock_host_ns() + NS_PER_MS);
    assert_true(await_count(rig, 3, 1));
    await_target(rig, SOFT_TIMER_NEVER);
    assert_in_range(rig->timer.wakes, 1, 3); /* for the new deadline, and at it */
}

struct owner {
    struct rig *rig;
    unsigned index, lost;
};

/* Deadlines now and later, moved earlier and later; the last set one must fire. */
static void *arm_again_and_again(void *argument)
{
    struct owner *o = argument;
    for (unsigned i = 0; i < 2000 && !o->lost; i++) {
        unsigned before;
        uint64_t now = clock_host_ns();
        soft_timer_set(&o->rig->timer, o->index, now + HOUR);
        soft_timer_set(&o->rig->timer, o->index, SOFT_TIMER_NEVER);
        pthread_mutex_lock(&o->rig->lock);
        before = o->rig->count[o->index];
        pthread_mutex_unlock(&o->rig->lock);
        soft_timer_set(&o->rig->timer, o->index, now + (i * 7919) % 50000);
        o->lost += !await_count(o->rig, o->index, before + 1);
    }
    return NULL;
}

static void test_none_is_lost(void **state)
{
    struct rig *rig = *state;
    struct owner owner[CPUS];
    pthread_t thread[CPUS];
    for (unsigned i = 0; i < CPUS; i++) {
        owner[i] = (struct owner) {.rig = rig, .index = i};
        assert_int_equal(pthread_create(&thread[i], NULL, arm_again_and_again, &owner[i]), 0);
    }
    for (unsigned i = 0; i < CPUS; i++) {
        pthread_join(thread[i], NULL);
        assert_int_equal(owner[i].lost, 0);
        assert_int_equal(rig->count[i], 2000);
    }
}

static void test_stop_does_not_wait_for_a_deadline(void **state)
{
    struct rig *rig = *state;
    soft_timer_set(&rig->timer, 0, clock_host_ns() + HOUR);
    soft_timer_stop(&rig->timer); /* the suite's limit is a minute */
    assert_int_equal(rig->count[0], 0);
    soft_timer_stop(&rig->timer); /* again: nothing */
}

#define RIG_TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        RIG_TEST(test_fires_once_and_not_early),
        RIG_TEST(test_a_deadline_in_the_past_fires),
        RIG_TEST(test_only_an_earlier_deadline_wakes),
        RIG_TEST(test_a_withdrawn_deadline_does_not_fire),
        RIG_TEST(test_sleeps_while_nothing_is_armed),
        RIG_TEST(test_none_is_lost),
        RIG_TEST(test_stop_does_not_wait_for_a_deadline),
    };
    return cmocka_run_group_tests_name("timer", tests, NULL, NULL);
}
