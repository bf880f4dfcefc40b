/*
 * The host side of a serial port or console: a byte stream to a terminal, a pseudo-terminal or a
 * file. Output is buffered (bounded: when the other end does not read, write takes less).
 */
#ifndef PARAT_BACKEND_CONSOLE_CONSOLE_H
#define PARAT_BACKEND_CONSOLE_CONSOLE_H

#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <termios.h>

#include "base/bits.h"
#include "base/err.h"

struct console;
struct loop;

enum console_kind { CONSOLE_NONE, CONSOLE_STDIO, CONSOLE_PTY, CONSOLE_FILE };

struct console_config {
    enum console_kind kind;
    const char *path; /* CONSOLE_FILE */
    struct loop *loop;
    struct console_terminal *terminal; /* CONSOLE_STDIO: where the saved mode goes; zeroed */
    /* Ctrl-] q on a terminal (loop thread). */
    void (*quit)(void *context);
    void *quit_context;
};

/* What the device gives; set by console_attach. Loop thread. */
struct console_client {
    /* Input for the guest: returns how many bytes it took; console_kick_input when it can take
     * more. */
    size_t (*input)(void *context, const uint8_t *data, size_t length);
    /* Output room again after a short write. */
    void (*can_write)(void *context);
    void *context;
};

/*
 * The user's terminal in raw mode. Belongs to main, which restores it on each way out: restore is
 * async-signal-safe and does nothing when nothing was changed; raw puts the mode back after a stop.
 */
struct console_terminal {
    volatile sig_atomic_t raw;
    int fd;
    struct termios saved, mode;
};

void console_terminal_restore(struct console_terminal *terminal);
void console_terminal_raw(struct console_terminal *terminal);

/* CONSOLE_STDIO puts a terminal into raw mode until console_close. */
int console_open(struct console **out, const struct console_config *config,
                 struct err *err) MUST_USE;
/* Writes out what is buffered, for a second at most. Loop thread. NULL is fine. */
void console_close(struct console *console);
/* "/dev/pts/N" of a CONSOLE_PTY, "" of the others. */
const char *console_path(const struct console *console);
/* client is copied; NULL detaches. Loop thread. */
void console_attach(struct console *console, const struct console_client *client);
/* Any thread. Returns how many bytes were taken. */
size_t console_write(struct console *console, const uint8_t *data, size_t length);
/* Any thread: the device has room for input again. */
void console_kick_input(struct console *console);

#endif
