/* base/loop: watches, messages from other threads, timers in order, stop without a lost wake-up. */
#include "test.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/loop.h"

static int setup(void **state)
{
    return loop_create((struct loop **)state);
}

static int teardown(void **state)
{
    loop_destroy(*state);
    return 0;
}

struct pipe_watch {
    struct loop_watch watch;
    struct pipe_watch *victim; /* removed by the handler */
    int calls;
};

static void on_pipe(struct loop_watch *watch, uint32_t events)
{
    struct pipe_watch *p = container_of(watch, struct pipe_watch, watch);
    p->calls++;
    if (p->victim)
        loop_watch_remove(&p->victim->watch);
}

static void test_watch_is_level_triggered(void **state)
{
    int fds[2];
    assert_int_equal(pipe(fds), 0);
    struct pipe_watch p = {.watch = {.fd = fds[0], .handler = on_pipe}};
    assert_int_equal(loop_watch_add(*state, &p.watch, EPOLLIN), 0);
    assert_int_equal(loop_run_once(*state, 0), 0);
    assert_int_equal(p.calls, 0);
    assert_int_equal(write(fds[1], "x", 1), 1);
    assert_int_equal(loop_run_once(*state, 0), 0);
    assert_int_equal(loop_run_once(*state, 0), 0);
    assert_int_equal(p.calls, 2);
    assert_int_equal(loop_watch_change(&p.watch, 0), 0);
    assert_int_equal(loop_run_once(*state, 0), 0);
    assert_int_equal(p.calls, 2);
    loop_watch_remove(&p.watch);
    close(fds[0]);
    close(fds[1]);
}

static void test_removed_watch_is_not_called_in_same_turn(void **state)
{
    int fds[2];
    assert_int_equal(pipe(fds), 0);
    int copy = dup(fds[0]);
    assert_int_equal(write(fds[1], "x", 1), 1);
    struct pipe_watch a = {.watch = {.fd = fds[0], .handler = on_pipe}};
    struct pipe_watch b = {.watch = {.fd = copy, .handler = on_pipe}, .victim = &a};
    a.victim = &b; /* whichever comes first removes the other */
    assert_int_equal(loop_watch_add(*state, &a.watch, EPOLLIN), 0);
    assert_int_equal(loop_watch_add(*state, &b.watch, EPOLLIN), 0);
    assert_int_equal(loop_run_once(*state, 0), 0);
    assert_int_equal(a.calls + b.calls, 1);
    loop_watch_remove(&a.watch);
    loop_watch_remove(&b.watch);
    close(copy);
    close(fds[0]);
    close(fds[1]);
}

struct counted {
    struct loop_message message;
    struct loop *loop;
    int calls, again;
};

static void on_message(struct loop_message *message)
{
    struct counted *c = container_of(message, struct counted, message);
    c->calls++;
    if (c->again-- > 0)
        loop_post(c->loop, message);
}

static void test_message_runs_once_and_can_be_cancelled(void **state)
{
    struct counted c = {.message.handler = on_message, .loop = *state};
    loop_post(*state, &c.message);
    loop_post(*state, &c.message);
    assert_int_equal(loop_run_once(*state, 0), 0);
    assert_int_equal(loop_run_once(*state, 0), 0);
    assert_int_equal(c.calls, 1);
    loop_post(*state, &c.message);
    assert_true(loop_message_cancel(*state, &c.message));
    assert_false(loop_message_cancel(*state, &c.message));
    assert_int_equal(loop_run_once(*state, 0), 0);
    assert_int_equal(c.calls, 1);
}

static void test_reposting_message_waits_for_next_turn(void **state)
{
    struct counted c = {.message.handler = on_message, .loop = *state, .again = 1};
    loop_post(*state, &c.message);
    assert_int_equal(loop_run_once(*state, -1), 0);
    assert_int_equal(c.calls, 1);
    assert_int_equal(loop_run_once(*state, -1), 0); /* would hang if the wake-up were lost */
    assert_int_equal(c.calls, 2);
}

#define POSTS 20000

struct poster {
    struct loop_message message;
    struct loop *loop;
    _Atomic int handled;
};

static void on_post(struct loop_message *message)
{
    struct poster *p = container_of(message, struct poster, message);
    if (atomic_fetch_add(&p->handled, 1) + 1 == POSTS)
        loop_stop(p->loop);
}

static void *post_many(void *context)
{
    struct poster *p = context;
    for (int i = 0; i < POSTS; i++) {
        loop_post(p->loop, &p->message);
        while (atomic_load(&p->handled) == i) /* a lost wake-up hangs here */
            sched_yield();
    }
    return NULL;
}

static void test_no_wakeup_is_lost_between_threads(void **state)
{
    struct poster p = {.message.handler = on_post, .loop = *state};
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, post_many, &p), 0);
    assert_int_equal(loop_run(*state), 0);
    pthread_join(thread, NULL);
    assert_int_equal(p.handled, POSTS);
}

struct order {
    struct loop_timer timer;
    int *counter, position;
    struct loop *stop;
};

static void on_timer(struct loop_timer *timer)
{
    struct order *o = container_of(timer, struct order, timer);
    o->position = ++*o->counter;
    if (o->stop)
        loop_stop(o->stop);
}

static void test_timers_run_by_deadline(void **state)
{
    int counter = 0;
    struct order t[4];
    static const uint64_t delay_ms[4] = {3, 1, 2, 4};
    uint64_t now = clock_host_ns();
    for (int i = 0; i < 4; i++) {
        t[i] = (struct order) {.timer.handler = on_timer, .counter = &counter};
        loop_timer_arm(*state, &t[i].timer, now + delay_ms[i] * NS_PER_MS);
    }
    t[3].stop = *state;
    loop_timer_cancel(*state, &t[2].timer);
    assert_int_equal(loop_run(*state), 0);
    assert_true(clock_host_ns() >= now + 4 * NS_PER_MS);
    assert_int_equal(t[1].position, 1);
    assert_int_equal(t[0].position, 2);
    assert_int_equal(t[3].position, 3);
    assert_int_equal(t[2].position, 0);
}

static void test_timer_moves_when_armed_again(void **state)
{
    int counter = 0;
    struct order far = {.timer.handler = on_timer, .counter = &counter, .stop = *state};
    loop_timer_arm(*state, &far.timer, UINT64_MAX);
    loop_timer_arm(*state, &far.timer, 0); /* the past: at once */
    assert_int_equal(loop_run(*state), 0);
    assert_int_equal(far.position, 1);
    assert_int_equal(loop_run_once(*state, 0), 0);
    assert_int_equal(counter, 1);
}

static void *arm_from_thread(void *context)
{
    struct order *o = context;
    for (int i = 0; i < 1000; i++) {
        loop_timer_arm(o->stop, &o->timer, UINT64_MAX);
        loop_timer_cancel(o->stop, &o->timer);
    }
    loop_timer_arm(o->stop, &o->timer, clock_host_ns() + NS_PER_MS);
    return NULL;
}

static void test_timer_armed_by_other_thread_fires(void **state)
{
    int counter = 0;
    struct order o = {.timer.handler = on_timer, .counter = &counter, .stop = *state};
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, arm_from_thread, &o), 0);
    assert_int_equal(loop_run(*state), 0);
    pthread_join(thread, NULL);
    assert_int_equal(counter, 1);
}

static void test_stop_before_run_is_kept(void **state)
{
    loop_stop(*state);
    assert_int_equal(loop_run(*state), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_watch_is_level_triggered, setup, teardown),
        cmocka_unit_test_setup_teardown(test_removed_watch_is_not_called_in_same_turn, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(test_message_runs_once_and_can_be_cancelled, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(test_reposting_message_waits_for_next_turn, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(test_no_wakeup_is_lost_between_threads, setup, teardown),
        cmocka_unit_test_setup_teardown(test_timers_run_by_deadline, setup, teardown),
        cmocka_unit_test_setup_teardown(test_timer_moves_when_armed_again, setup, teardown),
        cmocka_unit_test_setup_teardown(test_timer_armed_by_other_thread_fires, setup, teardown),
        cmocka_unit_test_setup_teardown(test_stop_before_run_is_kept, setup, teardown),
    };
    return cmocka_run_group_tests_name("loop", tests, NULL, NULL);
}
