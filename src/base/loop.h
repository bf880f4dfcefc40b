/*
 * The event loop of a VM: file descriptors, timers and messages, all handled on the one thread
 * that calls loop_run. Handlers run without any lock of the loop held.
 */
#ifndef PARAT_BASE_LOOP_H
#define PARAT_BASE_LOOP_H

#include <stdbool.h>
#include <stdint.h>

#include "base/bits.h"
#include "base/list.h"

struct loop;

int loop_create(struct loop **out) MUST_USE;
/* No handler runs any more; the caller has removed its watches and timers. NULL is fine. */
void loop_destroy(struct loop *loop);

/* Runs handlers until loop_stop. Returns 0, or -errno when waiting itself fails. */
int loop_run(struct loop *loop) MUST_USE;
/* Any thread, also a signal handler. loop_run returns after the handler that is running; the next
 * loop_run returns at once when none was running. */
void loop_stop(struct loop *loop);
/* Handles what is ready now, waiting at most timeout_ms (-1: for ever). For tests. */
int loop_run_once(struct loop *loop, int timeout_ms) MUST_USE;

/*
 * A watched file descriptor. The caller owns the struct and the fd and keeps both until
 * loop_watch_remove. events are EPOLLIN, EPOLLOUT…; level-triggered. Loop thread, or before
 * loop_run.
 */
struct loop_watch {
    int fd;
    void (*handler)(struct loop_watch *watch, uint32_t events);
    struct loop *loop; /* set by add */
};

int loop_watch_add(struct loop *loop, struct loop_watch *watch, uint32_t events) MUST_USE;
int loop_watch_change(struct loop_watch *watch, uint32_t events) MUST_USE;
/* After it returns, the handler is not called again (also when an event was already fetched). */
void loop_watch_remove(struct loop_watch *watch);

/*
 * A message: a call on the loop thread. The caller owns the struct and keeps it until the handler
 * has run. Posting an already pending message does nothing. Any thread.
 */
struct loop_message {
    void (*handler)(struct loop_message *message);
    struct list link;
    bool pending; /* guarded by the loop's lock */
};

void loop_post(struct loop *loop, struct loop_message *message);
/* Takes a pending message back; true when it was still pending. Loop thread. */
bool loop_message_cancel(struct loop *loop, struct loop_message *message);

/*
 * A one-shot timer (zero-initialised but for its handler) on the host's CLOCK_MONOTONIC
 * (clock_host_ns). The handler runs on the loop thread at or after deadline_ns. Arming again moves
 * it. Any thread may arm and cancel; after a cancel from another thread the handler may be running
 * its last time.
 */
struct loop_timer {
    void (*handler)(struct loop_timer *timer);
    uint64_t deadline_ns; /* this and the rest: guarded by the loop's lock */
    struct list link;     /* armed timers by deadline: a VM has a handful, so a list is enough */
    bool armed;
};

void loop_timer_arm(struct loop *loop, struct loop_timer *timer, uint64_t deadline_ns);
void loop_timer_cancel(struct loop *loop, struct loop_timer *timer);

#endif
