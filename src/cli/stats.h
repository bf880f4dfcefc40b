/*
 * --stats: what was counted, as JSON. The file's place is taken at the start, so that a wrong path
 * is told before the VM runs; it appears at the end, whole. Main thread.
 */
#ifndef PARAT_CLI_STATS_H
#define PARAT_CLI_STATS_H

#include <stdint.h>

#include "base/bits.h"
#include "base/err.h"
#include "vm/machine.h"

struct stats_file {
    const char *path;
    char temporary[4096]; /* renamed to path at the end; empty: path is no regular file */
    int fd;
};

int stats_open(struct stats_file *file, const char *path, struct err *err) MUST_USE;
/* Drops an open file that was not written. */
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
