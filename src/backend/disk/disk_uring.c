/*
 * Disk I/O with io_uring. Ring operations pass system call filters by, so the ring is restricted
 * before it is enabled: registered files, and only the operations below (io_uring_register(2),
 * IORING_REGISTER_RESTRICTIONS). Submitted on any thread under a lock; one thread reaps.
 *
 * Whatever a ring cannot finish in one go (short transfers, EAGAIN, a file system without
 * fallocate, too many requests) goes on to the workers.
 */
#include <errno.h>
#include <liburing.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "backend/disk/disk_int.h"
#include "base/sandbox.h"

#define RING_ENTRIES   256 /* requests in the ring at most; the completion queue has twice that */
#define SUBMIT_RETRIES 1000

enum { FILE_CACHED, FILE_DIRECT };

struct disk_uring {
    struct io_uring ring;
    pthread_t reaper;
    bool reaper_started;
    pthread_mutex_t lock; /* the submission side and in_ring */
    unsigned in_ring;
};

static const struct io_uring_restriction restrictions[] = {
    {.opcode = IORING_RESTRICTION_SQE_OP, .sqe_op = IORING_OP_READV},
    {.opcode = IORING_RESTRICTION_SQE_OP, .sqe_op = IORING_OP_WRITEV},
    {.opcode = IORING_RESTRICTION_SQE_OP, .sqe_op = IORING_OP_FSYNC},
    {.opcode = IORING_RESTRICTION_SQE_OP, .sqe_op = IORING_OP_FALLOCATE},
    {.opcode = IORING_RESTRICTION_SQE_FLAGS_REQUIRED, .sqe_flags = IOSQE_FIXED_FILE},
};

/* Submission */

static void prepare(const struct disk *disk, struct disk_request *request, struct io_uring_sqe *sqe)
{
    int file = disk_use_direct(disk, request) ? FILE_DIRECT : FILE_CACHED;
    switch (request->op) {
    case DISK_READ:
        io_uring_prep_readv(sqe, file, request->iov, request->iov_count, request->offset);
        break;
    case DISK_WRITE:
        io_uring_prep_writev(sqe, file, request->iov, request->iov_count, request->offset);
        break;
    case DISK_FLUSH:
        io_uring_prep_fsync(sqe, file, IORING_FSYNC_DATASYNC);
        break;
    case DISK_DISCARD:
    case DISK_WRITE_ZEROES:
        io_uring_prep_fallocate(sqe, file, disk_fallocate_mode(request), (off_t)request->offset,
                                (off_t)request->length);
        break;
    }
    io_uring_sqe_set_flags(sqe, IOSQE_FIXED_FILE);
    io_uring_sqe_set_data(sqe, request);
}

/* The entry is in the ring; only the kernel's short of memory can hold it up. Lock held. */
static void flush_submissions(struct disk_uring *uring)
{
    for (int i = 0; i < SUBMIT_RETRIES && io_uring_sq_ready(&uring->ring); i++)
        if (io_uring_submit(&uring->ring) < 0)
            sched_yield();
}

static struct io_uring_sqe *get_entry(struct disk_uring *uring)
{
    if (uring->in_ring >= RING_ENTRIES)
        return NULL;
    struct io_uring_sqe *sqe = io_uring_get_sqe(&uring->ring);
    uring->in_ring += !!sqe;
    return sqe;
}

static void disk_uring_submit(struct disk *disk, struct disk_request *request)
{
    struct disk_uring *uring = disk->uring;
    pthread_mutex_lock(&uring->lock);
    struct io_uring_sqe *sqe = get_entry(uring);
    if (sqe) {
        prepare(disk, request, sqe);
        flush_submissions(uring);
    }
    pthread_mutex_unlock(&uring->lock);
    if (!sqe)
        disk_pool_submit(disk, request);
}

/* Completion */

static bool wants_worker(const struct disk_request *request, int result)
{
    if (result == -EAGAIN || result == -EINTR)
        return true;
    bool hole = request->op == DISK_DISCARD || request->op == DISK_WRITE_ZEROES;
    return hole && (result == -EOPNOTSUPP || result == -EINVAL);
}

static void complete(struct disk *disk, struct disk_request *request, int result)
{
    if (result < 0 && !wants_worker(request, result)) {
        disk_finish(disk, request, result);
        return;
    }
    bool transfer = request->op == DISK_READ || request->op == DISK_WRITE;
    if (transfer && result > 0)
        disk_advance(request, (uint64_t)result);
    if (result < 0 || (transfer && request->length))
        disk_pool_submit(disk, request);
    else
        disk_finish(disk, request, 0);
}

/* Ends at the completion without a request, which disk_uring_destroy submits. */
static void *reap(void *context)
{
    struct disk *disk = context;
    struct disk_uring *uring = disk->uring;
    pthread_setname_np(pthread_self(), "parat-uring");
    sandbox_enter(disk->sandbox, SANDBOX_REAPER);
    for (;;) {
        struct io_uring_cqe *cqe;
        if (io_uring_wait_cqe(&uring->ring, &cqe) < 0)
            continue;
        struct disk_request *request = io_uring_cqe_get_data(cqe);
        int result = cqe->res;
        io_uring_cqe_seen(&uring->ring, cqe);
        if (!request)
            return NULL;
        pthread_mutex_lock(&uring->lock);
        uring->in_ring--;
        flush_submissions(uring);
        pthread_mutex_unlock(&uring->lock);
        complete(disk, request, result);
    }
}

/* Set up and teardown */

/* Debian's liburing declares these two calls and does not export them. */
static int ring_register(const struct io_uring *ring, unsigned op, const void *arg, unsigned count)
{
    return syscall(__NR_io_uring_register, ring->ring_fd, op, arg, count) < 0 ? -errno : 0;
}

static int restrict_ring(struct disk *disk, struct disk_uring *uring)
{
    const struct disk_file *file = &disk->file;
    int files[] = {file->fd, file->direct_fd};
    int error = io_uring_register_files(&uring->ring, files, file->direct_fd < 0 ? 1 : 2);
    if (!error)
        error = ring_register(&uring->ring, IORING_REGISTER_RESTRICTIONS, restrictions,
                              ARRAY_COUNT(restrictions));
    if (!error)
        error = ring_register(&uring->ring, IORING_REGISTER_ENABLE_RINGS, NULL, 0);
    return error;
}

static int start_reaper(struct disk *disk, struct disk_uring *uring)
{
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int error = pthread_create(&uring->reaper, NULL, reap, disk);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    uring->reaper_started = !error;
    return -error;
}

static void stop_reaper(struct disk_uring *uring)
{
    pthread_mutex_lock(&uring->lock);
    struct io_uring_sqe *sqe = io_uring_get_sqe(&uring->ring); /* nothing is in flight: not NULL */
    io_uring_prep_readv(sqe, FILE_CACHED, NULL, 0, 0);         /* any allowed no-op */
    io_uring_sqe_set_flags(sqe, IOSQE_FIXED_FILE);
    io_uring_sqe_set_data(sqe, NULL);
    flush_submissions(uring);
    pthread_mutex_unlock(&uring->lock);
    pthread_join(uring->reaper, NULL);
}

static void disk_uring_destroy(struct disk *disk)
{
    struct disk_uring *uring = disk->uring;
    if (uring->reaper_started)
        stop_reaper(uring);
    pool_destroy(disk->pool);
    disk->pool = NULL;
    io_uring_queue_exit(&uring->ring);
    pthread_mutex_destroy(&uring->lock);
    free(uring);
    disk->uring = NULL;
}

static int disk_uring_create(struct disk *disk, unsigned queue_count)
{
    struct disk_uring *uring = calloc(1, sizeof *uring);
    if (!uring)
        return -ENOMEM;
    int error = io_uring_queue_init(RING_ENTRIES, &uring->ring, IORING_SETUP_R_DISABLED);
    if (error) {
        free(uring);
        return error;
    }
    pthread_mutex_init(&uring->lock, NULL);
    disk->uring = uring;
    error = restrict_ring(disk, uring);
    if (!error)
        error = pool_create_confined(&disk->pool, 1, disk->sandbox);
    if (!error)
        error = start_reaper(disk, uring);
    if (error)
        disk_uring_destroy(disk);
    return error;
}

const struct disk_io_ops disk_uring_ops = {
    .name = "io_uring",
    .create = disk_uring_create,
    .destroy = disk_uring_destroy,
    .submit = disk_uring_submit,
};
