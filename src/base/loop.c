/*
 * The event loop: epoll over the watched descriptors, an eventfd for messages and stop, and one
 * timerfd for the earliest timer. The lock guards messages and timers only; handlers run without
 * it. What runs on which thread stands in loop.h.
 */
#include "base/loop.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "base/clock.h"

#define EVENTS_MAX 32

struct loop {
    int epoll_fd;
    struct loop_watch wake, timer; /* the loop's own two descriptors */
    _Atomic bool stop;

    pthread_mutex_t lock;
    struct list messages; /* pending, in order of posting */
    struct list timers;   /* armed, by deadline */
    uint64_t timer_fd_ns; /* what the timerfd is set to; UINT64_MAX: nothing */

    /* Loop thread: the events of this turn, so that loop_watch_remove can take one back. */
    struct epoll_event events[EVENTS_MAX];
    int event_next, event_count;
    bool stoppable; /* inside loop_run */
};

static bool should_stop(const struct loop *loop)
{
    return loop->stoppable && atomic_load(&loop->stop);
}

/* Async-signal-safe. A full eventfd counter is fine: then the loop wakes anyway. */
static void wake_loop(struct loop *loop)
{
    uint64_t one = 1;
    ssize_t ignored = write(loop->wake.fd, &one, sizeof one);
    (void)ignored;
}

static void drain_counter(int fd)
{
    uint64_t count;
    ssize_t ignored = read(fd, &count, sizeof count);
    (void)ignored;
}

/* Messages */

static struct loop_message *take_message(struct loop *loop)
{
    struct loop_message *message = NULL;
    pthread_mutex_lock(&loop->lock);
    if (!list_empty(&loop->messages)) {
        message = container_of(loop->messages.next, struct loop_message, link);
        list_remove(&message->link);
        message->pending = false;
    }
    pthread_mutex_unlock(&loop->lock);
    return message;
}

/* Runs what was posted before this turn: a handler that posts itself again does not starve the
 * rest. */
static void handle_wake(struct loop_watch *watch, uint32_t events)
{
    struct loop *loop = watch->loop;
    drain_counter(watch->fd);
    unsigned count = 0;
    pthread_mutex_lock(&loop->lock);
    list_for_each (pos, &loop->messages)
        count++;
    pthread_mutex_unlock(&loop->lock);

    while (count-- && !should_stop(loop)) {
        struct loop_message *message = take_message(loop);
        if (!message)
            return;
        message->handler(message);
    }
    pthread_mutex_lock(&loop->lock);
    bool more = !list_empty(&loop->messages);
    pthread_mutex_unlock(&loop->lock);
    if (more)
        wake_loop(loop);
}

void loop_post(struct loop *loop, struct loop_message *message)
{
    pthread_mutex_lock(&loop->lock);
    bool wake = list_empty(&loop->messages);
    if (!message->pending) {
        message->pending = true;
        list_push_back(&loop->messages, &message->link);
    }
    pthread_mutex_unlock(&loop->lock);
    if (wake)
        wake_loop(loop);
}

bool loop_message_cancel(struct loop *loop, struct loop_message *message)
{
    pthread_mutex_lock(&loop->lock);
    bool was_pending = message->pending;
    if (was_pending) {
        list_remove(&message->link);
        message->pending = false;
    }
    pthread_mutex_unlock(&loop->lock);
    return was_pending;
}

/* Timers */

static struct loop_timer *timer_of(struct list *link)
{
    return container_of(link, struct loop_timer, link);
}

/* Sets the timerfd for the first timer. A timerfd that fires too early only costs a turn, so a
 * cancelled timer leaves it alone. Lock held. */
static void update_timer_fd(struct loop *loop)
{
    if (list_empty(&loop->timers))
        return;
    uint64_t deadline_ns = timer_of(loop->timers.next)->deadline_ns;
    if (deadline_ns >= loop->timer_fd_ns)
        return;
    loop->timer_fd_ns = deadline_ns;
    deadline_ns = MIN(MAX(deadline_ns, 1), (uint64_t)INT64_MAX); /* 0 would disarm */
    struct itimerspec spec = {
        .it_value = {.tv_sec = (time_t)(deadline_ns / NS_PER_S),
                     .tv_nsec = (long)(deadline_ns % NS_PER_S)},
    };
    timerfd_settime(loop->timer.fd, TFD_TIMER_ABSTIME, &spec, NULL);
}

static struct loop_timer *take_due_timer(struct loop *loop, uint64_t now_ns)
{
    struct loop_timer *due = NULL;
    pthread_mutex_lock(&loop->lock);
    if (!list_empty(&loop->timers)) {
        struct loop_timer *first = timer_of(loop->timers.next);
        if (first->deadline_ns <= now_ns) {
            list_remove(&first->link);
            first->armed = false;
            due = first;
        }
    }
    pthread_mutex_unlock(&loop->lock);
    return due;
}

static void handle_timer_fd(struct loop_watch *watch, uint32_t events)
{
    struct loop *loop = watch->loop;
    /* One `now` for the turn: a timer that arms itself for the past waits for the next one. */
    uint64_t now_ns = clock_host_ns();
    drain_counter(watch->fd);
    while (!should_stop(loop)) {
        struct loop_timer *timer = take_due_timer(loop, now_ns);
        if (!timer)
            break;
        timer->handler(timer);
    }
    pthread_mutex_lock(&loop->lock);
    loop->timer_fd_ns = UINT64_MAX;
    update_timer_fd(loop);
    pthread_mutex_unlock(&loop->lock);
}

void loop_timer_arm(struct loop *loop, struct loop_timer *timer, uint64_t deadline_ns)
{
    pthread_mutex_lock(&loop->lock);
    if (timer->armed)
        list_remove(&timer->link);
    timer->armed = true;
    timer->deadline_ns = deadline_ns;
    struct list *at = loop->timers.prev;
    while (at != &loop->timers && timer_of(at)->deadline_ns > deadline_ns)
        at = at->prev;
    list_insert_after(at, &timer->link);
    update_timer_fd(loop);
    pthread_mutex_unlock(&loop->lock);
}

void loop_timer_cancel(struct loop *loop, struct loop_timer *timer)
{
    pthread_mutex_lock(&loop->lock);
    if (timer->armed) {
        list_remove(&timer->link);
        timer->armed = false;
    }
    pthread_mutex_unlock(&loop->lock);
}

/* Watches */

int loop_watch_add(struct loop *loop, struct loop_watch *watch, uint32_t events)
{
    watch->loop = loop;
    struct epoll_event event = {.events = events, .data.ptr = watch};
    return epoll_ctl(loop->epoll_fd, EPOLL_CTL_ADD, watch->fd, &event) ? -errno : 0;
}

int loop_watch_change(struct loop_watch *watch, uint32_t events)
{
    struct epoll_event event = {.events = events, .data.ptr = watch};
    return epoll_ctl(watch->loop->epoll_fd, EPOLL_CTL_MOD, watch->fd, &event) ? -errno : 0;
}

void loop_watch_remove(struct loop_watch *watch)
{
    struct loop *loop = watch->loop;
    if (!loop)
        return;
    epoll_ctl(loop->epoll_fd, EPOLL_CTL_DEL, watch->fd, NULL);
    for (int i = loop->event_next; i < loop->event_count; i++)
        if (loop->events[i].data.ptr == watch)
            loop->events[i].data.ptr = NULL;
    watch->loop = NULL;
}

/* Running */

static int run_turn(struct loop *loop, int timeout_ms)
{
    loop->event_next = loop->event_count = 0;
    int count = epoll_wait(loop->epoll_fd, loop->events, EVENTS_MAX, timeout_ms);
    if (count < 0)
        return errno == EINTR ? 0 : -errno;
    loop->event_count = count;
    while (loop->event_next < loop->event_count && !should_stop(loop)) {
        struct epoll_event event = loop->events[loop->event_next++];
        struct loop_watch *watch = event.data.ptr;
        if (watch)
            watch->handler(watch, event.events);
    }
    return 0;
}

int loop_run(struct loop *loop)
{
    int result = 0;
    loop->stoppable = true;
    while (result == 0 && !atomic_exchange(&loop->stop, false))
        result = run_turn(loop, -1);
    loop->stoppable = false;
    return result;
}

int loop_run_once(struct loop *loop, int timeout_ms)
{
    return run_turn(loop, timeout_ms);
}

void loop_stop(struct loop *loop)
{
    atomic_store(&loop->stop, true);
    wake_loop(loop);
}

static void close_fd(int fd)
{
    if (fd >= 0)
        close(fd);
}

int loop_create(struct loop **out)
{
    struct loop *loop = calloc(1, sizeof *loop);
    if (!loop)
        return -ENOMEM;
    pthread_mutex_init(&loop->lock, NULL);
    list_init(&loop->messages);
    list_init(&loop->timers);
    loop->timer_fd_ns = UINT64_MAX;
    loop->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    loop->wake.fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    loop->wake.handler = handle_wake;
    loop->timer.fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    loop->timer.handler = handle_timer_fd;
    int error = loop->epoll_fd < 0 || loop->wake.fd < 0 || loop->timer.fd < 0 ? -errno : 0;
    if (!error)
        error = loop_watch_add(loop, &loop->wake, EPOLLIN);
    if (!error)
        error = loop_watch_add(loop, &loop->timer, EPOLLIN);
    if (error) {
        loop_destroy(loop);
        return error;
    }
    *out = loop;
    return 0;
}

void loop_destroy(struct loop *loop)
{
    if (!loop)
        return;
    close_fd(loop->timer.fd);
    close_fd(loop->wake.fd);
    close_fd(loop->epoll_fd);
    pthread_mutex_destroy(&loop->lock);
    free(loop);
}
