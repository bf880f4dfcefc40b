/*
 * A pool of worker threads for blocking work (disk I/O above all). Jobs are run in the order in
 * which they were submitted, several at a time.
 */
#ifndef PARAT_BASE_POOL_H
#define PARAT_BASE_POOL_H

#include <stdbool.h>

#include "base/bits.h"
#include "base/list.h"

struct pool;
struct sandbox;

/* The caller owns the job and keeps it until run() was called; run() may submit it again or free
 * it. */
struct pool_job {
    void (*run)(struct pool_job *job);
    struct list link;
};

/* Starts thread_count (1 to 64) threads with all signals blocked. */
int pool_create(struct pool **out, unsigned thread_count) MUST_USE;
/* The same with threads that enter the sandbox as workers; NULL: they do not. */
int pool_create_confined(struct pool **out, unsigned thread_count,
                         const struct sandbox *sandbox) MUST_USE;
/* Runs what was submitted, then ends the threads. NULL is fine. */
void pool_destroy(struct pool *pool);
/* Any thread. */
void pool_submit(struct pool *pool, struct pool_job *job);
/* Waits until nothing is queued or running. Not from a job. */
void pool_drain(struct pool *pool);

#endif
