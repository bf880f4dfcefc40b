/*
 * Mixed stress inside a guest, for so many seconds: processes, signals, mappings, code that is
 * written and run at once, wake-ups between threads, timers. Every job checks what it sees, and
 * every wait has a limit: a wake-up that is lost is a failure and not a longer test.
 *
 *   churn SECONDS
 *
 * Prints a line every five seconds with how far each job is; ends with status 0 when all went well.
 */
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* The guest has four CPUs on a busy host: a wait that takes this long was never going to end. */
#define LIMIT_S 60

struct job {
    const char *name;
    void (*round)(struct job *job);
    uint64_t random;
    atomic_ulong rounds;
    pthread_t thread;
};

static atomic_bool stop;

static void fail(const char *format, ...)
{
    va_list args;

    va_start(args, format);
    printf("parat-guest: churn: ");
    vprintf(format, args);
    printf("\n");
    fflush(stdout);
    va_end(args);
    _exit(1);
}

static uint64_t next(struct job *job)
{
    job->random = job->random * 6364136223846793005u + 1442695040888963407u;
    return job->random >> 32;
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* --- mappings: fill, protect, fault, move, unmap --- */

static _Thread_local sigjmp_buf on_fault;
static _Thread_local volatile bool expects_fault;

static void segv(int number)
{
    (void)number;
    if (!expects_fault)
        _exit(3);
    siglongjmp(on_fault, 1);
}

static bool faults(volatile uint64_t *at, bool write)
{
    volatile bool faulted = true;

    expects_fault = true;
    if (!sigsetjmp(on_fault, 1)) {
        if (write)
            *at = 1;
        else
            (void)*at;
        faulted = false;
    }
    expects_fault = false;
    return faulted;
}

static void mappings(struct job *job)
{
    size_t pages = 1 + next(job) % 64, words = pages * 512;
    uint64_t key = next(job);
    uint64_t *m = mmap(NULL, pages * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (m == MAP_FAILED)
        fail("mmap: %s", strerror(errno));
    for (size_t i = 0; i < words; i += 1 + next(job) % 300)
        m[i] = key ^ i;
    size_t at = next(job) % pages * 512;
    m[at] = key;
    mprotect(m + at, 4096, PROT_READ);
    if (!faults(m + at, true) || m[at] != key)
        fail("a read-only page could be written");
    mprotect(m + at, 4096, PROT_NONE);
    if (!faults(m + at, false))
        fail("a page without access could be read");
    mprotect(m + at, 4096, PROT_READ | PROT_WRITE);
    m = mremap(m, pages * 4096, pages * 4096 + 65536, MREMAP_MAYMOVE);
    if (m == MAP_FAILED || m[at] != key || m[words] != 0)
        fail("a moved mapping has other contents");
    munmap(m, pages * 4096 + 65536);
}

/* --- code that is written and run at once: in place, and through another mapping --- */

/* add edi, imm32; lea eax, [rdi + rdi]; ret */
static void write_code(uint8_t *at, uint32_t imm)
{
    static const uint8_t rest[] = {0x8d, 0x04, 0x3f, 0xc3};

    at[0] = 0x81;
    at[1] = 0xc7;
    memcpy(at + 2, &imm, 4);
    memcpy(at + 6, rest, sizeof rest);
}

static void code(struct job *job)
{
    int fd = memfd_create("code", 0);
    uint8_t *run, *write;

    if (fd < 0 || ftruncate(fd, 8192))
        fail("memfd: %s", strerror(errno));
    run = mmap(NULL, 8192, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_SHARED, fd, 0);
    write = next(job) & 1 ? run : mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    for (unsigned i = 0; i < 300; i++) {
        uint32_t imm = (uint32_t)next(job), x = (uint32_t)next(job);
        unsigned at = (unsigned)(next(job) % 3 * 16 + 4096 - 40); /* one crosses into the second page */
        write_code(write + at, imm);
        /* Another linear address: a processor wants a serializing instruction here. */
        uint32_t a = 0, b, c = 0, d;
        __asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d) : : "memory");
        for (unsigned k = 0; k < 1 + i % 40; k++) {
            uint32_t got = ((uint32_t(*)(uint32_t))(uintptr_t)(run + at))(x + k);
            if (got != 2 * (x + k + imm))
                fail("stale code: %x + %x gave %x", x + k, imm, got);
        }
    }
    if (write != run)
        munmap(write, 8192);
    munmap(run, 8192);
}

/* --- wake-ups: a token goes round between two threads --- */

struct table {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    unsigned turn, rounds;
};

static void hand_over(struct table *t, unsigned me)
{
    struct timespec limit;

    pthread_mutex_lock(&t->lock);
    while (t->turn != me) {
        clock_gettime(CLOCK_REALTIME, &limit);
        limit.tv_sec += LIMIT_S;
        if (pthread_cond_timedwait(&t->changed, &t->lock, &limit) == ETIMEDOUT && t->turn != me)
            fail("a wake-up was lost");
    }
    t->turn = !me;
    pthread_cond_signal(&t->changed);
    pthread_mutex_unlock(&t->lock);
}

static void *other_side(void *table)
{
    struct table *t = table;
    for (unsigned i = 0; i < t->rounds; i++)
        hand_over(t, 1);
    return NULL;
}

static void wakeups(struct job *job)
{
    struct table t = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, 0,
                      (unsigned)(100 + next(job) % 400)};
    pthread_t other;

    if (pthread_create(&other, NULL, other_side, &t))
        fail("cannot start a thread");
    for (unsigned i = 0; i < t.rounds; i++)
        hand_over(&t, 0);
    pthread_join(other, NULL);
}

/* --- processes: fork, pipe, exec --- */

static void read_all(int fd, void *to, size_t count)
{
    for (size_t done = 0; done < count;) {
        ssize_t n = read(fd, (char *)to + done, count - done);
        if (n <= 0 && errno != EINTR)
            fail("a pipe ended early");
        done += n > 0 ? (size_t)n : 0;
    }
}

static void processes(struct job *job)
{
    uint64_t key = next(job), answer;
    int pipes[2], status;

    if (pipe(pipes))
        fail("pipe: %s", strerror(errno));
    pid_t child = fork();
    if (child < 0)
        fail("fork: %s", strerror(errno));
    if (child == 0) {
        key = key * key + 1;
        if (write(pipes[1], &key, sizeof key) != sizeof key)
            _exit(1);
        if (key & 2)
            execl("/bin/busybox", "true", (char *)NULL);
        _exit(0);
    }
    read_all(pipes[0], &answer, sizeof answer);
    while (waitpid(child, &status, 0) < 0)
        if (errno != EINTR)
            fail("waitpid: %s", strerror(errno));
    if (answer != key * key + 1 || status)
        fail("a child answered %lx, status %x", (unsigned long)answer, status);
    close(pipes[0]);
    close(pipes[1]);
}

/* --- signals: to itself and by a timer, in the middle of work --- */

static atomic_ulong alarms;
static _Thread_local volatile unsigned usr1;

static void on_alarm(int number)
{
    (void)number;
    atomic_fetch_add(&alarms, 1);
}

static void on_usr1(int number)
{
    (void)number;
    usr1++;
}

static void signals(struct job *job)
{
    unsigned count = (unsigned)(50 + next(job) % 200), before = usr1;
    double x = 1, expected = 1;

    for (unsigned i = 0; i < count; i++) {
        pthread_kill(pthread_self(), SIGUSR1);
        for (unsigned k = 0; k < 20; k++)
            x = x * 1.0000001 + 0.5;
    }
    for (unsigned i = 0; i < count * 20; i++)
        expected = expected * 1.0000001 + 0.5;
    if (x != expected)
        fail("a signal changed floating point registers");
    if (usr1 != before + count)
        fail("%u signals of %u came", usr1 - before, count);
}

/* --- timers --- */

static void timers(struct job *job)
{
    double begin = now(), end;
    struct timespec t = {0, (long)(next(job) % 5000000)};

    while (nanosleep(&t, &t) && errno == EINTR)
        ;
    end = now();
    if (end < begin || end - begin > LIMIT_S)
        fail("a sleep of some milliseconds took %f s", end - begin);
}

/* --- all of them --- */

static struct job jobs[] = {
    {.name = "mappings", .round = mappings}, {.name = "code", .round = code},
    {.name = "wakeups", .round = wakeups},   {.name = "processes", .round = processes},
    {.name = "signals", .round = signals},   {.name = "timers", .round = timers},
    {.name = "mappings", .round = mappings}, {.name = "code", .round = code},
};
#define JOBS (sizeof jobs / sizeof jobs[0])

static void *run(void *arg)
{
    struct job *job = arg;

    job->random = (uint64_t)(job - jobs) * 77 + 1;
    while (!atomic_load(&stop)) {
        job->round(job);
        atomic_fetch_add(&job->rounds, 1);
    }
    return NULL;
}

static void begin(void)
{
    struct itimerval each = {{0, 3000}, {0, 3000}};
    struct sigaction on_segv = {.sa_handler = segv, .sa_flags = SA_NODEFER},
                     on_timer = {.sa_handler = on_alarm, .sa_flags = SA_RESTART},
                     on_signal = {.sa_handler = on_usr1, .sa_flags = SA_RESTART};

    sigaction(SIGSEGV, &on_segv, NULL);
    sigaction(SIGALRM, &on_timer, NULL);
    sigaction(SIGUSR1, &on_signal, NULL);
    setitimer(ITIMER_REAL, &each, NULL);
    for (size_t i = 0; i < JOBS; i++)
        if (pthread_create(&jobs[i].thread, NULL, run, &jobs[i]))
            fail("cannot start a thread");
}

/* Every job gets on. */
static void beat(unsigned long before[JOBS], double stuck_since[JOBS])
{
    printf("parat-guest: churn at %.0f s:", now());
    for (size_t i = 0; i < JOBS; i++) {
        unsigned long rounds = atomic_load(&jobs[i].rounds);
        printf(" %s %lu", jobs[i].name, rounds);
        if (rounds != before[i])
            stuck_since[i] = now();
        else if (now() - stuck_since[i] > LIMIT_S)
            fail("%s does not get on", jobs[i].name);
        before[i] = rounds;
    }
    printf(" alarms %lu\n", atomic_load(&alarms));
    fflush(stdout);
}

int main(int argc, char **argv)
{
    double end = now() + (argc > 1 ? atof(argv[1]) : 10);
    unsigned long before[JOBS] = {0};
    double stuck_since[JOBS];

    for (size_t i = 0; i < JOBS; i++)
        stuck_since[i] = now();
    begin();
    while (now() < end) {
        struct timespec t = {5, 0};
        while (nanosleep(&t, &t) && errno == EINTR)
            ;
        beat(before, stuck_since);
    }
    atomic_store(&stop, true);
    for (size_t i = 0; i < JOBS; i++)
        pthread_join(jobs[i].thread, NULL);
    for (size_t i = 0; i < JOBS; i++)
        if (!atomic_load(&jobs[i].rounds))
            fail("%s did nothing", jobs[i].name);
    if (!atomic_load(&alarms))
        fail("the timer's signal never came");
    return 0;
}
