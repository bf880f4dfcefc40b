/*
 * The exclusive section; see exclusive.h. Two pairs make it safe without a lock on the fast path,
 * all four accesses sequentially consistent: a member stores `running` and then loads `active`; the
 * owner stores `active` and then loads each `running`. One of them sees the other.
 */
#include "engine/soft/exclusive.h"

void exclusive_init(struct exclusive *exclusive, void (*stop)(void *context), void *context)
{
    *exclusive = (struct exclusive) {.stop = stop, .context = context};
    pthread_mutex_init(&exclusive->lock, NULL);
    pthread_cond_init(&exclusive->left, NULL);
    pthread_cond_init(&exclusive->ended, NULL);
}

void exclusive_destroy(struct exclusive *exclusive)
{
    pthread_cond_destroy(&exclusive->ended);
    pthread_cond_destroy(&exclusive->left);
    pthread_mutex_destroy(&exclusive->lock);
}

void exclusive_add(struct exclusive *exclusive, struct exclusive_member *member)
{
    exclusive->member[exclusive->member_count++] = member;
}

/*
 * Sections are short, and members come to a safe point soon: a look now and again for some
 * microseconds saves both sides a sleep, which takes ten times as long.
 */
#define SPINS 100

static void spin_while_active(struct exclusive *exclusive)
{
    for (unsigned i = 0; i < SPINS && atomic_load(&exclusive->active); i++)
        __builtin_ia32_pause();
}

void exclusive_enter(struct exclusive *exclusive, struct exclusive_member *member)
{
    for (;;) {
        atomic_store(&member->running, true);
        if (!atomic_load(&exclusive->active))
            return;
        exclusive_leave(exclusive, member);
        spin_while_active(exclusive);
        pthread_mutex_lock(&exclusive->lock);
        while (exclusive->active)
            pthread_cond_wait(&exclusive->ended, &exclusive->lock);
        pthread_mutex_unlock(&exclusive->lock);
    }
}

void exclusive_leave(struct exclusive *exclusive, struct exclusive_member *member)
{
    atomic_store(&member->running, false);
    if (!atomic_load(&exclusive->active))
        return;
    pthread_mutex_lock(&exclusive->lock);
    pthread_cond_broadcast(&exclusive->left);
    pthread_mutex_unlock(&exclusive->lock);
}

static bool anyone_running(const struct exclusive *exclusive)
{
    for (unsigned i = 0; i < exclusive->member_count; i++) {
        if (atomic_load(&exclusive->member[i]->running))
            return true;
    }
    return false;
}

void exclusive_begin(struct exclusive *exclusive, struct exclusive_member *member)
{
    bool was_running = member && atomic_load(&member->running);

    if (was_running)
        exclusive_leave(exclusive, member);
    pthread_mutex_lock(&exclusive->lock);
    if (exclusive->active && pthread_equal(exclusive->owner, pthread_self())) {
        exclusive->depth++;
        pthread_mutex_unlock(&exclusive->lock);
        return;
    }
    while (exclusive->active)
        pthread_cond_wait(&exclusive->ended, &exclusive->lock);
    exclusive->owner = pthread_self();
    exclusive->depth = 1;
    exclusive->owner_member = member;
    if (member)
        member->resume = was_running;
    atomic_store(&exclusive->active, true);
    exclusive->stop(exclusive->context);
    /* A member that leaves says so before it asks for the lock. */
    for (unsigned i = 0; i < SPINS && anyone_running(exclusive); i++)
        __builtin_ia32_pause();
    while (anyone_running(exclusive))
        pthread_cond_wait(&exclusive->left, &exclusive->lock);
    pthread_mutex_unlock(&exclusive->lock);
}

void exclusive_end(struct exclusive *exclusive)
{
    pthread_mutex_lock(&exclusive->lock);
    if (--exclusive->depth == 0) {
        struct exclusive_member *member = exclusive->owner_member;
        exclusive->owner_member = NULL;
        if (member && member->resume)
            atomic_store(&member->running, true);
        atomic_store(&exclusive->active, false);
        pthread_cond_broadcast(&exclusive->ended);
    }
    pthread_mutex_unlock(&exclusive->lock);
}
