/* See disk_progress.h. */
#include "cli/disk_progress.h"

#include <assert.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/bits.h"
#include "base/clock.h"

#define BAR_WIDTH 40u
#define DRAW_NS   (100 * NS_PER_MS)

void disk_progress_start(struct disk_progress *progress)
{
    *progress =
        (struct disk_progress) {.shown = isatty(STDERR_FILENO), .start_ns = clock_host_ns()};
    sigemptyset(&progress->signals);
    sigaddset(&progress->signals, SIGINT);
    sigaddset(&progress->signals, SIGTERM);
    sigaddset(&progress->signals, SIGHUP);
    pthread_sigmask(SIG_BLOCK, &progress->signals, &progress->old);
}

static void draw(const struct disk_progress *progress, uint64_t done, uint64_t total)
{
    static const char full[] = "########################################";
    static_assert(sizeof full == BAR_WIDTH + 1, "the bar's width");
    double part = total ? (double)done / (double)total : 1;
    double seconds = (double)(clock_host_ns() - progress->start_ns) / (double)NS_PER_S;
    int used = (int)(part * BAR_WIDTH);
    fprintf(stderr, "\r[%-*.*s] %3.0f %%  %.0f MiB/s ", (int)BAR_WIDTH, used, full, part * 100,
            seconds > 0 ? (double)done / seconds / (1 << 20) : 0);
    fflush(stderr);
}

bool disk_progress_go_on(void *context, uint64_t done, uint64_t total)
{
    struct disk_progress *progress = context;
    uint64_t now = clock_host_ns();
    if (progress->shown && (now - progress->drawn_ns > DRAW_NS || done == total)) {
        draw(progress, done, total);
        progress->drawn_ns = now;
    }
    struct timespec none = {0};
    int signal = sigtimedwait(&progress->signals, NULL, &none);
    if (signal > 0)
        progress->signal = signal;
    return !progress->signal;
}

void disk_progress_end(struct disk_progress *progress)
{
    if (progress->shown && progress->drawn_ns)
        fputs("\r\033[K", stderr);
    pthread_sigmask(SIG_SETMASK, &progress->old, NULL);
    if (progress->signal)
        raise(progress->signal);
}
