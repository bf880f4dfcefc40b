/*
 * Long work of `parat disk`: a progress bar on a terminal, and a clean end when a signal wants one.
 * Main thread.
 */
#ifndef PARAT_CLI_DISK_PROGRESS_H
#define PARAT_CLI_DISK_PROGRESS_H

#include <signal.h>
#include <stdbool.h>
#include <stdint.h>

struct disk_progress {
    bool shown; /* standard error is a terminal */
    uint64_t start_ns, drawn_ns;
    sigset_t signals, old;
    int signal; /* which one came; 0: none */
};

/* From here on SIGINT, SIGTERM, SIGHUP are held back. */
void disk_progress_start(struct disk_progress *progress);
/* Draws; false when a signal came. For struct image_watch. */
bool disk_progress_go_on(void *context, uint64_t done, uint64_t total);
/* Removes the bar. A signal that came acts now: the process ends by it. */
void disk_progress_end(struct disk_progress *progress);

#endif
