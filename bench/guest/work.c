// Runs rows of work and prints their times: as an ordinary program, or as process 1 of a guest.
//
//   work --list                 the rows: group, name, unit and units of a pass
//   work [passes=N] NAME...     runs these rows, or all
//
// As process 1 it takes the same words from the kernel command line (rows=NAME,NAME passes=N) and
// powers the machine off at the end. Each pass prints "begin" and "end" lines; a reader with a
// clock of its own sees whether the guest's clock is right.
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include "work.h"

#define COMMAND_LINE_SIZE 4096

static const struct work_row *const tables[] = {
    work_integer_rows, work_library_rows, work_vector_rows,
    work_stream_rows,  work_system_rows,  work_program_rows,
};
#define TABLE_COUNT (sizeof(tables) / sizeof(tables[0]))

struct request {
    const char *names; // separated by commas; NULL: all rows
    unsigned long passes;
};

void work_text(char *text, size_t size)
{
    uint64_t state = 88172645463325252U;
    size_t at = 0;
    while (at < size) {
        // The product of two numbers makes small word numbers more frequent than large ones.
        uint64_t random = work_random(&state);
        uint64_t word = ((random & 0x3FF) * (random >> 10 & 0x3FF)) >> 8;
        uint64_t letters = word * 0x9E3779B97F4A7C15U | 1;
        for (unsigned length = 2 + (unsigned)(word % 7); length > 0 && at < size; length--) {
            text[at++] = (char)('a' + letters % 26);
            letters = letters / 26 + word;
        }
        if (at < size) {
            text[at++] = random >> 60 ? ' ' : '\n';
        }
    }
}

static uint64_t now_ns(clockid_t clock)
{
    struct timespec now;
    clock_gettime(clock, &now);
    return (uint64_t)now.tv_sec * 1000000000U + (uint64_t)now.tv_nsec;
}

// The processor time of this process and of its children that have ended.
static uint64_t processor_ns(void)
{
    struct rusage usage = {0};
    getrusage(RUSAGE_CHILDREN, &usage);
    uint64_t us = (uint64_t)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec);
    uint64_t s = (uint64_t)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec);
    return now_ns(CLOCK_PROCESS_CPUTIME_ID) + s * 1000000000U + us * 1000U;
}

// In a child process. Returns its exit status.
static int run_pass(const struct work_row *row)
{
    void *data = row->prepare ? row->prepare() : NULL;
    if (row->prepare && !data) {
        printf("parat-bench: failed %s prepare\n", row->name);
        return 1;
    }
    printf("parat-bench: begin %s\n", row->name);
    fflush(stdout);
    uint64_t processor = processor_ns(), start = now_ns(CLOCK_MONOTONIC);
    uint64_t sum = row->run(data, row->count);
    uint64_t ns = now_ns(CLOCK_MONOTONIC) - start;
    processor = processor_ns() - processor;
    if (sum == WORK_FAILED) {
        printf("parat-bench: failed %s run\n", row->name);
        return 1;
    }
    printf("parat-bench: end %s ns=%llu processor=%llu sum=%016llx\n", row->name,
           (unsigned long long)ns, (unsigned long long)processor, (unsigned long long)sum);
    return 0;
}

static void run_row(const struct work_row *row, unsigned long passes)
{
    for (unsigned long pass = 0; pass < passes; pass++) {
        fflush(stdout);
        pid_t child = fork();
        if (child == 0) {
            int status = run_pass(row);
            fflush(stdout);
            _exit(status);
        }
        int status = 0;
        if (child < 0 || waitpid(child, &status, 0) != child) {
            printf("parat-bench: failed %s %s\n", row->name, strerror(errno));
        } else if (WIFSIGNALED(status)) {
            printf("parat-bench: failed %s signal %d\n", row->name, WTERMSIG(status));
        }
    }
}

// True if `name` is one of the comma-separated names.
static bool is_named(const char *names, const char *name)
{
    size_t length = strlen(name);
    for (const char *at = names; at; at = strchr(at, ',')) {
        at += *at == ',';
        if (strncmp(at, name, length) == 0 && (at[length] == ',' || at[length] == '\0')) {
            return true;
        }
    }
    return false;
}

static void run(const struct request *request)
{
    for (size_t i = 0; i < TABLE_COUNT; i++) {
        for (const struct work_row *row = tables[i]; row->name; row++) {
            if (!request->names || is_named(request->names, row->name)) {
                run_row(row, request->passes);
            }
        }
    }
    printf("parat-bench: done\n");
    fflush(stdout);
}

static void list(void)
{
    for (size_t i = 0; i < TABLE_COUNT; i++) {
        for (const struct work_row *row = tables[i]; row->name; row++) {
            printf("%s %s %s %llu\n", row->group, row->name, row->unit,
                   (unsigned long long)row->count);
        }
    }
}

// Takes in one word of a command line; says whether it was one of ours.
static bool take_word(struct request *request, const char *word)
{
    if (strncmp(word, "rows=", 5) == 0) {
        request->names = word + 5;
    } else if (strncmp(word, "passes=", 7) == 0) {
        request->passes = strtoul(word + 7, NULL, 10);
    } else {
        return false;
    }
    return true;
}

static void read_command_line(struct request *request, char line[COMMAND_LINE_SIZE])
{
    FILE *file = fopen("/proc/cmdline", "r");
    size_t length = file ? fread(line, 1, COMMAND_LINE_SIZE - 1, file) : 0;
    line[length] = '\0';
    if (file) {
        fclose(file);
    }
    char *rest = NULL;
    for (char *word = strtok_r(line, " \n", &rest); word; word = strtok_r(NULL, " \n", &rest)) {
        take_word(request, word);
    }
}

// Process 1 of a guest. Does not return.
static void be_init(void)
{
    printf("parat-guest: init\n");
    fflush(stdout);
    if (mount("proc", "/proc", "proc", 0, NULL) || mount("sysfs", "/sys", "sysfs", 0, NULL) ||
        mount("dev", "/dev", "devtmpfs", 0, NULL) || mount("tmpfs", "/tmp", "tmpfs", 0, NULL)) {
        printf("parat-bench: cannot mount: %s\n", strerror(errno));
    }
    char line[COMMAND_LINE_SIZE];
    struct request request = {.passes = 1};
    read_command_line(&request, line);
    run(&request);
    reboot(RB_POWER_OFF);
    for (;;) {
        pause();
    }
}

int main(int argc, char **argv)
{
    if (getpid() == 1) {
        be_init();
    }
    if (argc > 1 && strcmp(argv[1], "--list") == 0) {
        list();
        return 0;
    }
    char names[COMMAND_LINE_SIZE] = "";
    struct request request = {.passes = 1};
    for (int i = 1; i < argc; i++) {
        if (!take_word(&request, argv[i])) {
            size_t used = strlen(names);
            snprintf(names + used, sizeof(names) - used, "%s%s", used ? "," : "", argv[i]);
            request.names = names;
        }
    }
    run(&request);
    return 0;
}
