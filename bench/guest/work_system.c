// What asks the kernel: system calls, page faults, pipes, threads, processes. All on one CPU, so
// that the number of CPUs a machine has makes no difference.
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include "work.h"

#define PAGE_SIZE  4096U
#define AREA_PAGES 2048U

// Keeps the process on the CPU that it is on. The pointer only says that all is well.
static void *one_cpu_prepare(void)
{
    static const char ready[] = "ready";
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET((unsigned)sched_getcpu(), &set);
    return sched_setaffinity(0, sizeof(set), &set) ? NULL : (void *)ready;
}

static uint64_t getpid_run(void *data, uint64_t count)
{
    uint64_t bad = 0;
    long expected = getpid();
    for (uint64_t i = 0; i < count; i++) {
        bad += syscall(SYS_getpid) != expected;
    }
    return bad ? WORK_FAILED : 0;
}

static uint8_t *map_area(void)
{
    uint8_t *area = mmap(NULL, AREA_PAGES * PAGE_SIZE, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (area == MAP_FAILED) {
        return NULL;
    }
    // One fault per page also where the kernel likes huge ones. It may not know them at all.
    (void)madvise(area, AREA_PAGES * PAGE_SIZE, MADV_NOHUGEPAGE);
    return area;
}

// The count is faults; mapping and unmapping belong to the cost.
static uint64_t fault_run(void *data, uint64_t count)
{
    for (uint64_t done = 0; done < count; done += AREA_PAGES) {
        uint8_t *area = map_area();
        if (!area) {
            return WORK_FAILED;
        }
        for (size_t page = 0; page < AREA_PAGES; page++) {
            area[page * PAGE_SIZE] = 1;
        }
        munmap(area, AREA_PAGES * PAGE_SIZE);
    }
    return 0;
}

static uint64_t mprotect_run(void *data, uint64_t count)
{
    volatile uint8_t *page = map_area();
    uint64_t bad = 0;
    for (uint64_t i = 0; page && i < count; i += 2) {
        *page = (uint8_t)i;
        bad += mprotect((void *)page, PAGE_SIZE, PROT_READ) != 0;
        bad += *page != (uint8_t)i;
        bad += mprotect((void *)page, PAGE_SIZE, PROT_READ | PROT_WRITE) != 0;
    }
    return bad || !page ? WORK_FAILED : 0;
}

// Sends back each byte until the other end closes.
static void echo(int in, int out)
{
    char byte;
    while (read(in, &byte, 1) == 1 && write(out, &byte, 1) == 1) {
    }
}

static uint64_t pipe_run(void *data, uint64_t count)
{
    int there[2], back[2];
    if (pipe(there) || pipe(back)) {
        return WORK_FAILED;
    }
    pid_t child = fork();
    if (child == 0) {
        close(there[1]);
        echo(there[0], back[1]);
        _exit(0);
    }
    uint64_t bad = child < 0;
    for (uint64_t i = 0; i < count && !bad; i++) {
        char byte = (char)i, answer = 0;
        bad += write(there[1], &byte, 1) != 1 || read(back[0], &answer, 1) != 1 || answer != byte;
    }
    close(there[1]);
    waitpid(child, NULL, 0);
    return bad ? WORK_FAILED : 0;
}

static void *start(void *counter)
{
    ++*(uint64_t *)counter;
    return counter;
}

static uint64_t thread_run(void *data, uint64_t count)
{
    uint64_t started = 0;
    for (uint64_t i = 0; i < count; i++) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, start, &started) || pthread_join(thread, NULL)) {
            return WORK_FAILED;
        }
    }
    return started == count ? 0 : WORK_FAILED;
}

static uint64_t fork_run(void *data, uint64_t count)
{
    uint64_t bad = 0;
    for (uint64_t i = 0; i < count; i++) {
        pid_t child = fork();
        if (child == 0) {
            _exit(7);
        }
        int status = 0;
        bad += child < 0 || waitpid(child, &status, 0) != child || WEXITSTATUS(status) != 7;
    }
    return bad ? WORK_FAILED : 0;
}

const struct work_row work_system_rows[] = {
    {"system", "getpid", "call", 1000000, one_cpu_prepare, getpid_run},
    {"system", "page-fault", "fault", 32 * AREA_PAGES, one_cpu_prepare, fault_run},
    {"system", "mprotect", "call", 50000, one_cpu_prepare, mprotect_run},
    {"system", "pipe", "round-trip", 20000, one_cpu_prepare, pipe_run},
    {"system", "thread", "thread", 5000, one_cpu_prepare, thread_run},
    {"system", "fork", "process", 1000, one_cpu_prepare, fork_run},
    {NULL, NULL, NULL, 0, NULL, NULL},
};
