/* Log lines on standard error; see log.h. */
#include "base/log.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"

#define LIMIT_WINDOW_NS 10000000000ull
#define LIMIT_LINES     5

static _Atomic int log_level = LOG_NOTICE;

void log_set_level(enum log_level level)
{
    atomic_store_explicit(&log_level, (int)level, memory_order_relaxed);
}

static void log_vline(enum log_level level, const char *format, va_list args)
{
    if ((int)level > atomic_load_explicit(&log_level, memory_order_relaxed))
        return;
    char line[1024];
    int used = snprintf(line, sizeof line, "parat: ");
    int more = vsnprintf(line + used, sizeof line - (size_t)used - 1, format, args);
    if (more < 0)
        return;
    size_t length = (size_t)used + (size_t)more;
    if (length > sizeof line - 2)
        length = sizeof line - 2;
    line[length++] = '\n';
    ssize_t ignored = write(STDERR_FILENO, line, length);
    (void)ignored;
}

void log_line(enum log_level level, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    log_vline(level, format, args);
    va_end(args);
}

void log_line_limited(struct log_limit *limit, enum log_level level, const char *format, ...)
{
    uint64_t now = clock_host_ns();
    if (now - limit->window_start_ns > LIMIT_WINDOW_NS) {
        if (limit->count > LIMIT_LINES)
            log_line(level, "(%u more lines like the next one were left out)",
                     limit->count - LIMIT_LINES);
        limit->window_start_ns = now;
        limit->count = 0;
    }
    if (++limit->count > LIMIT_LINES) {
        limit->suppressed++;
        return;
    }
    va_list args;
    va_start(args, format);
    log_vline(level, format, args);
    va_end(args);
}
