/* base/pool: every job runs once, drain and destroy wait for all, several run at a time. */
#include "test.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "base/pool.h"

struct job {
    struct pool_job job;
    struct pool *pool;
    _Atomic int *counter;
    int again;
};

static void run_count(struct pool_job *pool_job)
{
    struct job *job = container_of(pool_job, struct job, job);
    atomic_fetch_add(job->counter, 1);
    if (job->again-- > 0)
        pool_submit(job->pool, pool_job);
    else
        free(job);
}

static void submit_counting(struct pool *pool, _Atomic int *counter, int again)
{
    struct job *job = calloc(1, sizeof *job);
    *job = (struct job) {.job.run = run_count, .pool = pool, .counter = counter, .again = again};
    pool_submit(pool, &job->job);
}

static void test_thread_count_is_checked(void **state)
{
    struct pool *pool = NULL;
    assert_int_equal(pool_create(&pool, 0), -EINVAL);
    assert_int_equal(pool_create(&pool, 65), -EINVAL);
    assert_null(pool);
}

static void test_drain_waits_for_all(void **state)
{
    struct pool *pool;
    _Atomic int counter = 0;
    assert_int_equal(pool_create(&pool, 4), 0);
    for (int i = 0; i < 500; i++)
        submit_counting(pool, &counter, i % 2);
    pool_drain(pool);
    assert_int_equal(counter, 750);
    pool_drain(pool); /* idle: returns at once */
    pool_destroy(pool);
}

static void test_destroy_runs_what_was_submitted(void **state)
{
    struct pool *pool;
    _Atomic int counter = 0;
    assert_int_equal(pool_create(&pool, 3), 0);
    for (int i = 0; i < 200; i++)
        submit_counting(pool, &counter, 3);
    pool_destroy(pool);
    assert_int_equal(counter, 800);
}

struct meeting {
    struct pool_job job;
    pthread_barrier_t *barrier;
    bool all_blocked;
};

static void run_meet(struct pool_job *job)
{
    struct meeting *m = container_of(job, struct meeting, job);
    sigset_t mask;
    pthread_sigmask(SIG_SETMASK, NULL, &mask);
    m->all_blocked = sigismember(&mask, SIGTERM) == 1 && sigismember(&mask, SIGUSR1) == 1;
    pthread_barrier_wait(m->barrier); /* returns only when all three run at the same time */
}

static void test_jobs_run_at_the_same_time_without_signals(void **state)
{
    struct pool *pool;
    pthread_barrier_t barrier;
    pthread_barrier_init(&barrier, NULL, 3);
    struct meeting m[3];
    assert_int_equal(pool_create(&pool, 3), 0);
    for (int i = 0; i < 3; i++) {
        m[i] = (struct meeting) {.job.run = run_meet, .barrier = &barrier};
        pool_submit(pool, &m[i].job);
    }
    pool_destroy(pool);
    for (int i = 0; i < 3; i++)
        assert_true(m[i].all_blocked);
    pthread_barrier_destroy(&barrier);
}

struct ordered {
    struct pool_job job;
    int *counter, position;
};

static void run_ordered(struct pool_job *job)
{
    struct ordered *o = container_of(job, struct ordered, job);
    o->position = ++*o->counter;
}

static void test_one_thread_keeps_the_order(void **state)
{
    struct pool *pool;
    struct ordered o[50];
    int counter = 0;
    assert_int_equal(pool_create(&pool, 1), 0);
    for (int i = 0; i < 50; i++) {
        o[i] = (struct ordered) {.job.run = run_ordered, .counter = &counter};
        pool_submit(pool, &o[i].job);
    }
    pool_destroy(pool);
    for (int i = 0; i < 50; i++)
        assert_int_equal(o[i].position, i + 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_thread_count_is_checked),
        cmocka_unit_test(test_drain_waits_for_all),
        cmocka_unit_test(test_destroy_runs_what_was_submitted),
        cmocka_unit_test(test_jobs_run_at_the_same_time_without_signals),
        cmocka_unit_test(test_one_thread_keeps_the_order),
    };
    return cmocka_run_group_tests_name("pool", tests, NULL, NULL);
}
