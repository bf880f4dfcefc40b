/*
 * --stats: what was counted, as JSON. The file is opened at the start, so that a wrong path is told
 * before the VM runs, and because the sandbox knows no paths; it is written at the end, at once.
 * Main thread.
 */
#ifndef PARAT_CLI_STATS_H
#define PARAT_CLI_STATS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/bits.h"
#include "base/err.h"
#include "vm/machine.h"

struct stats_file {
    const char *path;
    int fd;
    bool regular; /* and no pipe or terminal */
    bool unused;  /* made by us, and not written yet */
};

int stats_open(struct stats_file *file, const char *path, struct err *err) MUST_USE;
/* Removes a file that was made for nothing. */
void stats_close(struct stats_file *file);

struct stats_run {
    const char *name, *model, *cpu;
    struct machine *machine;
    enum machine_end end;
    uint64_t start_ns; /* of the process, clock_host_ns */
    int status;
};
int stats_write(struct stats_file *file, const struct stats_run *run, struct err *err) MUST_USE;

#endif
