/* vm/clock: timers in order of deadline on a fake clock; a real clock stands still while paused. */
#include "test.h"

#include "base/clock.h"
#include "base/loop.h"
#include "vm/clock.h"

struct test_timer {
    struct vm_timer timer;
    unsigned fired;
    uint64_t at;
    uint64_t again_ns; /* period, 0: one shot */
};

static void fired(struct vm_timer *timer)
{
    struct test_timer *t = timer->context;
    t->fired++;
    t->at = vm_clock_ns(timer->clock);
    if (t->again_ns)
        vm_timer_arm(timer, t->at + t->again_ns);
}

static void test_fake_clock_runs_timers_in_order(void **state)
{
    (void)state;
    struct vm_clock *clock;
    assert_int_equal(vm_clock_create_fake(&clock), 0);
    struct test_timer a = {.fired = 0}, b = {.fired = 0}, periodic = {.again_ns = 10};
    vm_timer_init(&a.timer, clock, fired, &a);
    vm_timer_init(&b.timer, clock, fired, &b);
    vm_timer_init(&periodic.timer, clock, fired, &periodic);
    vm_timer_arm(&b.timer, 200);
    vm_timer_arm(&a.timer, 100);
    vm_timer_arm(&periodic.timer, 10);
    vm_clock_fake_advance(clock, 99);
    assert_int_equal(a.fired, 0);
    assert_int_equal(periodic.fired, 9);
    vm_clock_fake_advance(clock, 1);
    assert_int_equal(a.fired, 1);
    assert_int_equal(a.at, 100);
    vm_timer_cancel(&periodic.timer);
    vm_timer_arm(&b.timer, 150); /* moves it */
    vm_clock_fake_advance(clock, 1000);
    assert_int_equal(b.fired, 1);
    assert_int_equal(b.at, 150);
    assert_int_equal(periodic.fired, 10);
    assert_int_equal(vm_clock_ns(clock), 1100);
    vm_clock_destroy(clock);
}

static void test_paused_clock_stands_still(void **state)
{
    (void)state;
    struct loop *loop;
    struct vm_clock *clock;
    assert_int_equal(loop_create(&loop), 0);
    assert_int_equal(vm_clock_create(&clock, loop), 0);
    assert_int_equal(vm_clock_ns(clock), 0);
    assert_true(vm_clock_host_deadline(clock, 5) == UINT64_MAX);
    vm_clock_set_ns(clock, 1ull << 62); /* a VM older than this host's uptime */
    vm_clock_resume(clock);
    uint64_t now = vm_clock_ns(clock);
    assert_true(now >= 1ull << 62 && now < (1ull << 62) + 60 * NS_PER_S);
    uint64_t host = vm_clock_host_deadline(clock, (1ull << 62) + NS_PER_S);
    assert_true(host <= clock_host_ns() + NS_PER_S);
    vm_clock_pause(clock);
    now = vm_clock_ns(clock);
    assert_int_equal(vm_clock_ns(clock), now);
    vm_clock_destroy(clock);
    loop_destroy(loop);
}

static void test_real_timer_fires_on_the_loop(void **state)
{
    (void)state;
    struct loop *loop;
    struct vm_clock *clock;
    assert_int_equal(loop_create(&loop), 0);
    assert_int_equal(vm_clock_create(&clock, loop), 0);
    struct test_timer t = {.fired = 0};
    vm_timer_init(&t.timer, clock, fired, &t);
    vm_timer_arm(&t.timer, NS_PER_MS);
    assert_int_equal(loop_run_once(loop, 0), 0); /* paused: does not fire */
    assert_int_equal(t.fired, 0);
    vm_clock_resume(clock);
    while (!t.fired)
        assert_int_equal(loop_run_once(loop, 5000), 0);
    assert_true(t.at >= NS_PER_MS);
    vm_timer_cancel(&t.timer);
    vm_clock_destroy(clock);
    loop_destroy(loop);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fake_clock_runs_timers_in_order),
        cmocka_unit_test(test_paused_clock_stands_still),
        cmocka_unit_test(test_real_timer_fires_on_the_loop),
    };
    return cmocka_run_group_tests_name("clock", tests, NULL, NULL);
}
