/*
 * The exclusive section: one thread does something while every other member (vCPU thread) stands at
 * a safe point. A member is either running guest code or safe; entering and leaving cost one store
 * and one load.
 *
 * Lock order: innermost but for `stop`, which must not take locks. A thread that waits in
 * exclusive_begin counts as safe meanwhile, so what it looked up before may be revoked after.
 */
#ifndef PARAT_ENGINE_SOFT_EXCLUSIVE_H
#define PARAT_ENGINE_SOFT_EXCLUSIVE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

#define EXCLUSIVE_MEMBERS_MAX 64

struct exclusive_member {
    _Atomic bool running;
    bool resume; /* was running when it began its section */
};

struct exclusive {
    pthread_mutex_t lock;
    pthread_cond_t left, ended;
    _Atomic bool active; /* written with the lock held */
    pthread_t owner;     /* while active */
    unsigned depth;
    struct exclusive_member *owner_member;
    struct exclusive_member *member[EXCLUSIVE_MEMBERS_MAX];
    unsigned member_count;
    /* Makes running members look at `active` soon; any thread. */
    void (*stop)(void *context);
    void *context;
};

void exclusive_init(struct exclusive *exclusive, void (*stop)(void *context), void *context);
void exclusive_destroy(struct exclusive *exclusive);
/* Before any member runs. The member starts safe. */
void exclusive_add(struct exclusive *exclusive, struct exclusive_member *member);

/* The member's own thread. enter waits while another's section is active. */
void exclusive_enter(struct exclusive *exclusive, struct exclusive_member *member);
void exclusive_leave(struct exclusive *exclusive, struct exclusive_member *member);

static inline bool exclusive_wanted(struct exclusive *exclusive)
{
    return atomic_load_explicit(&exclusive->active, memory_order_relaxed);
}

/*
 * Any thread; member is the caller's own, NULL when it has none (or is safe anyway). May be nested
 * by the thread that owns the section. Must not be called with a lock that a running member takes.
 */
void exclusive_begin(struct exclusive *exclusive, struct exclusive_member *member);
void exclusive_end(struct exclusive *exclusive);

#endif
