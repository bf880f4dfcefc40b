/* engine/soft/exclusive: nobody runs inside another's section, and nothing is lost or stuck. */
#include "test.h"

#include <pthread.h>
#include <stdatomic.h>

#include "engine/soft/exclusive.h"

#define THREADS  4
#define ROUNDS   20000
#define SECTIONS 300

struct stress {
    struct exclusive exclusive;
    struct exclusive_member member[THREADS];
    unsigned plain;          /* written in sections, read while running: no lock */
    unsigned shadow;         /* always equal to plain outside sections */
    _Atomic unsigned inside; /* members in their running part */
    _Atomic unsigned violations;
    _Atomic unsigned stops, next;
};

static void count_stop(void *context)
{
    atomic_fetch_add(&((struct stress *)context)->stops, 1);
}

static void do_section(struct stress *s, struct exclusive_member *member, bool nested)
{
    exclusive_begin(&s->exclusive, member);
    if (nested)
        exclusive_begin(&s->exclusive, member);
    s->plain++;
    if (atomic_load(&s->inside))
        atomic_fetch_add(&s->violations, 1);
    s->shadow++;
    if (nested)
        exclusive_end(&s->exclusive);
    exclusive_end(&s->exclusive);
}

static void *member_thread(void *argument)
{
    struct stress *s = argument;
    struct exclusive_member *member = &s->member[atomic_fetch_add(&s->next, 1)];
    unsigned sections = 0;

    exclusive_enter(&s->exclusive, member);
    for (unsigned i = 0; i < ROUNDS; i++) {
        atomic_fetch_add(&s->inside, 1);
        if (s->plain != s->shadow)
            atomic_fetch_add(&s->violations, 1);
        atomic_fetch_sub(&s->inside, 1);
        if (exclusive_wanted(&s->exclusive)) {
            exclusive_leave(&s->exclusive, member);
            exclusive_enter(&s->exclusive, member);
        }
        if (i % (ROUNDS / SECTIONS) == 0 && sections < SECTIONS) {
            do_section(s, member, sections % 3 == 0);
            sections++;
        }
    }
    exclusive_leave(&s->exclusive, member);
    return (void *)(uintptr_t)sections;
}

static void test_stress(void **state)
{
    static struct stress s;
    pthread_t thread[THREADS];
    uintptr_t total = 0;

    exclusive_init(&s.exclusive, count_stop, &s);
    for (unsigned i = 0; i < THREADS; i++)
        exclusive_add(&s.exclusive, &s.member[i]);
    for (unsigned i = 0; i < THREADS; i++)
        assert_int_equal(pthread_create(&thread[i], NULL, member_thread, &s), 0);
    for (unsigned i = 0; i < SECTIONS; i++) /* a thread that is no member */
        do_section(&s, NULL, false);
    for (unsigned i = 0; i < THREADS; i++) {
        void *result;
        pthread_join(thread[i], &result);
        total += (uintptr_t)result;
    }
    assert_int_equal(s.violations, 0);
    assert_int_equal(s.plain, total + SECTIONS);
    assert_int_equal(s.stops, s.plain); /* nested ones ask nobody again */
    exclusive_destroy(&s.exclusive);
}

static void test_owner_resumes_running(void **state)
{
    struct stress s = {0};
    exclusive_init(&s.exclusive, count_stop, &s);
    exclusive_add(&s.exclusive, &s.member[0]);
    exclusive_enter(&s.exclusive, &s.member[0]);
    do_section(&s, &s.member[0], true);
    assert_true(s.member[0].running);
    exclusive_leave(&s.exclusive, &s.member[0]);
    do_section(&s, &s.member[0], false);
    assert_false(s.member[0].running);
    exclusive_destroy(&s.exclusive);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_stress),
        cmocka_unit_test(test_owner_resumes_running),
    };
    return cmocka_run_group_tests_name("exclusive", tests, NULL, NULL);
}
