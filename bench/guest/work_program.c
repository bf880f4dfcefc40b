// Other programs, started from the folder that tools/guest bench makes: busybox and gcc's cc1. In a
// guest that folder is the root; natively it is the current folder.
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>
#include "work.h"

// Runs a program to its end and returns the checksum of what it printed, or WORK_FAILED.
static uint64_t run_program(const char *const *words)
{
    int output[2];
    if (pipe(output)) {
        return WORK_FAILED;
    }
    pid_t child = fork();
    if (child == 0) {
        dup2(output[1], STDOUT_FILENO);
        close(output[0]);
        close(output[1]);
        execv(words[0], (char *const *)words);
        _exit(127);
    }
    close(output[1]);
    uint64_t sum = WORK_SUM;
    char bytes[4096];
    ssize_t size;
    while ((size = read(output[0], bytes, sizeof(bytes))) > 0) {
        sum = work_sum(sum, bytes, (size_t)size);
    }
    close(output[0]);
    int status = -1;
    waitpid(child, &status, 0);
    return status == 0 && sum != WORK_SUM ? sum : WORK_FAILED;
}

static uint64_t cc1_run(void *data, uint64_t count)
{
    static const char *const words[] = {
        "cc1/ld.so",      "--library-path", "cc1", "cc1/cc1", "-quiet", "-O2",
        "-fpreprocessed", "cc1/input.i",    "-o",  "-",       NULL};
    uint64_t sum = 0;
    for (uint64_t i = 0; i < count && sum != WORK_FAILED; i++) {
        sum = run_program(words);
    }
    return sum;
}

static uint64_t exec_run(void *data, uint64_t count)
{
    static char *const words[] = {"true", NULL};
    static char *const environment[] = {NULL};
    for (uint64_t i = 0; i < count; i++) {
        pid_t child = fork();
        if (child == 0) {
            execve("bin/busybox", words, environment);
            _exit(127);
        }
        int status = -1;
        if (child < 0 || waitpid(child, &status, 0) != child || status != 0) {
            return WORK_FAILED;
        }
    }
    return 0;
}

// A loop as scripts have it: commands, pipes, command substitution, tests, arithmetic.
static uint64_t shell_run(void *data, uint64_t count)
{
    static const char script[] = "i=0\n"
                                 "while [ $i -lt $1 ]; do\n"
                                 "    i=$((i + 1))\n"
                                 "    word=$(bin/busybox echo \"line $i of many\" |"
                                 " bin/busybox sed 's/of/in/')\n"
                                 "    case $word in *in*) bin/busybox expr $i \\* 3 ;; esac\n"
                                 "    (echo \"$word\" | bin/busybox cut -d' ' -f2)\n"
                                 "done\n";
    char turns[24];
    snprintf(turns, sizeof(turns), "%llu", (unsigned long long)count);
    const char *const words[] = {"bin/busybox", "sh", "-c", script, "sh", turns, NULL};
    return run_program(words);
}

const struct work_row work_program_rows[] = {
    {"integer", "cc1", "file", 1, NULL, cc1_run},
    {"system", "fork-exec", "process", 300, NULL, exec_run},
    {"system", "shell", "turn", 50, NULL, shell_run},
    {NULL, NULL, NULL, 0, NULL, NULL},
};
