/*
 * Log lines on standard error. Any thread. The level is the one file-scope state outside main.
 */
#ifndef PARAT_BASE_LOG_H
#define PARAT_BASE_LOG_H

#include <stdint.h>

/* LOG_NOTICE: what a user wants to be told of every run. */
enum log_level { LOG_ERROR, LOG_WARNING, LOG_NOTICE, LOG_INFO, LOG_DEBUG };

/* Shows lines up to and including this level; LOG_NOTICE until told otherwise. */
void log_set_level(enum log_level level);

/* Writes "parat: text\n" in one write call. */
void log_line(enum log_level level, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* One per place that a guest can make talk. Zero-initialised; the owner's lock or thread guards it.
 */
struct log_limit {
    uint64_t window_start_ns;
    uint32_t count;      /* lines in this window */
    uint64_t suppressed; /* lines dropped in all */
};

/* Like log_line, but at most 5 lines in 10 seconds; the first line after a silence tells the count.
 */
void log_line_limited(struct log_limit *limit, enum log_level level, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

#define log_error(...)   log_line(LOG_ERROR, __VA_ARGS__)
#define log_warning(...) log_line(LOG_WARNING, __VA_ARGS__)
#define log_notice(...)  log_line(LOG_NOTICE, __VA_ARGS__)
#define log_info(...)    log_line(LOG_INFO, __VA_ARGS__)
#define log_debug(...)   log_line(LOG_DEBUG, __VA_ARGS__)

#endif
