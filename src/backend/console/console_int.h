/* What the files of the console backend share. */
#ifndef PARAT_BACKEND_CONSOLE_CONSOLE_INT_H
#define PARAT_BACKEND_CONSOLE_CONSOLE_INT_H

#include <pthread.h>

#include "backend/console/console.h"
#include "base/loop.h"

#define CONSOLE_OUT_SIZE 65536u /* output that waits for its reader; a power of two */
#define CONSOLE_IN_SIZE  4096u  /* input that waits for the guest */

struct console {
    struct console_config config;
    struct console_client client; /* loop thread */
    int in_fd, out_fd;            /* -1: none */
    bool own_fds;
    char path[64];

    /* Input; loop thread. */
    struct loop_watch in_watch;
    struct loop_message in_message;
    bool in_watched, in_ended;
    bool in_always; /* no poll for this file: always readable */
    bool is_terminal;
    bool escape; /* Ctrl-] was typed */
    uint8_t in[CONSOLE_IN_SIZE];
    size_t in_length;

    /* Output. Positions count all bytes ever; the ring holds [out_head, out_tail). */
    struct loop_watch out_watch; /* loop thread: while the other end does not read */
    bool out_watched;
    struct loop_message out_message;
    pthread_mutex_t lock; /* guards the rest */
    bool out_dead;        /* the other end is gone for good: output is dropped */
    bool out_absent;      /* a pty that nobody opened: the oldest output is dropped */
    bool starved;         /* a write was cut: tell can_write */
    uint64_t out_head, out_tail;
    uint8_t out[CONSOLE_OUT_SIZE];

    struct loop_timer pty_timer; /* looks whether somebody opened the pty */
};

/* console_terminal.c: filters typed bytes; returns how many are left in data. Loop thread. */
size_t console_terminal_filter(struct console *console, uint8_t *data, size_t length);
int console_terminal_open(struct console *console, struct err *err);

/* console_pty.c */
int console_pty_open(struct console *console, struct err *err);
/* True when nobody has the terminal open; looks again later by itself. Loop thread. */
bool console_pty_check_absent(struct console *console);

/* console.c: tries input and output again. Loop thread. */
void console_resume(struct console *console);

#endif
