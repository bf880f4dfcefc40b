/* The worker pool: one queue, one lock, threads that wait for work. Contracts stand in pool.h. */
#include "base/pool.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>

#include "base/sandbox.h"

#define THREADS_MAX 64

struct pool {
    pthread_mutex_t lock;
    pthread_cond_t work; /* a job was queued, or the pool is closing */
    pthread_cond_t idle; /* nothing is queued or running */
    struct list jobs;
    unsigned running;
    bool closing;
    const struct sandbox *sandbox;
    unsigned thread_count;
    pthread_t threads[THREADS_MAX];
};

/* Lock held. NULL when the pool closes and nothing is left. */
static struct pool_job *wait_for_job(struct pool *pool)
{
    while (list_empty(&pool->jobs)) {
        /* A running job may still submit more: only the last one to finish ends the threads. */
        if (pool->closing && pool->running == 0)
            return NULL;
        pthread_cond_wait(&pool->work, &pool->lock);
    }
    struct pool_job *job = container_of(pool->jobs.next, struct pool_job, link);
    list_remove(&job->link);
    return job;
}

static void *worker(void *context)
{
    struct pool *pool = context;
    pthread_setname_np(pthread_self(), "parat-worker");
    sandbox_enter(pool->sandbox, SANDBOX_WORKER);
    pthread_mutex_lock(&pool->lock);
    struct pool_job *job;
    while ((job = wait_for_job(pool))) {
        pool->running++;
        pthread_mutex_unlock(&pool->lock);
        job->run(job); /* may free the job */
        pthread_mutex_lock(&pool->lock);
        if (--pool->running == 0 && list_empty(&pool->jobs)) {
            pthread_cond_broadcast(&pool->idle);
            if (pool->closing)
                pthread_cond_broadcast(&pool->work);
        }
    }
    pthread_mutex_unlock(&pool->lock);
    return NULL;
}

static int start_threads(struct pool *pool, unsigned count)
{
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int error = 0;
    while (!error && pool->thread_count < count) {
        error = pthread_create(&pool->threads[pool->thread_count], NULL, worker, pool);
        pool->thread_count += !error;
    }
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    return -error;
}

int pool_create(struct pool **out, unsigned thread_count)
{
    return pool_create_confined(out, thread_count, NULL);
}

int pool_create_confined(struct pool **out, unsigned thread_count, const struct sandbox *sandbox)
{
    if (thread_count < 1 || thread_count > THREADS_MAX)
        return -EINVAL;
    struct pool *pool = calloc(1, sizeof *pool);
    if (!pool)
        return -ENOMEM;
    pool->sandbox = sandbox;
    pthread_mutex_init(&pool->lock, NULL);
    pthread_cond_init(&pool->work, NULL);
    pthread_cond_init(&pool->idle, NULL);
    list_init(&pool->jobs);
    int error = start_threads(pool, thread_count);
    if (error) {
        pool_destroy(pool);
        return error;
    }
    *out = pool;
    return 0;
}

void pool_destroy(struct pool *pool)
{
    if (!pool)
        return;
    pthread_mutex_lock(&pool->lock);
    pool->closing = true;
    pthread_cond_broadcast(&pool->work);
    pthread_mutex_unlock(&pool->lock);
    for (unsigned i = 0; i < pool->thread_count; i++)
        pthread_join(pool->threads[i], NULL);
    pthread_cond_destroy(&pool->idle);
    pthread_cond_destroy(&pool->work);
    pthread_mutex_destroy(&pool->lock);
    free(pool);
}

void pool_submit(struct pool *pool, struct pool_job *job)
{
    pthread_mutex_lock(&pool->lock);
    list_push_back(&pool->jobs, &job->link);
    pthread_cond_signal(&pool->work);
    pthread_mutex_unlock(&pool->lock);
}

void pool_drain(struct pool *pool)
{
    pthread_mutex_lock(&pool->lock);
    while (pool->running > 0 || !list_empty(&pool->jobs))
        pthread_cond_wait(&pool->idle, &pool->lock);
    pthread_mutex_unlock(&pool->lock);
}
