/*
 * The user's terminal as the guest's console: raw mode and the keys behind Ctrl-]. Loop thread, but
 * for console_terminal_restore, which also runs in handlers of fatal signals.
 */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "backend/console/console_int.h"

#define ESCAPE_KEY 0x1d /* Ctrl-] */

static const char help_text[] = "\r\nparat: Ctrl-] q quits, Ctrl-] Ctrl-] types Ctrl-], "
                                "Ctrl-] ? shows this\r\n";

void console_terminal_restore(struct console_terminal *terminal)
{
    if (!terminal->raw)
        return;
    terminal->raw = 0;
    tcsetattr(terminal->fd, TCSANOW, &terminal->saved);
}

void console_terminal_raw(struct console_terminal *terminal)
{
    if (tcsetattr(terminal->fd, TCSADRAIN, &terminal->mode) == 0)
        terminal->raw = 1;
}

int console_terminal_open(struct console *console, struct err *err)
{
    struct console_terminal *terminal = console->config.terminal;
    console->in_fd = STDIN_FILENO;
    console->out_fd = STDOUT_FILENO;
    if (!isatty(STDIN_FILENO))
        return 0;
    terminal->fd = STDIN_FILENO;
    if (tcgetattr(terminal->fd, &terminal->saved) < 0)
        return err_set(err, errno, "--console stdio: cannot read the terminal's mode: %s",
                       strerror(errno));
    terminal->mode = terminal->saved;
    /* c_oflag stays: parat's own lines still want their carriage returns. */
    terminal->mode.c_iflag &= ~(IGNBRK | BRKINT | PARMRK | ISTRIP | INLCR | IGNCR | ICRNL | IXON);
    terminal->mode.c_lflag &= ~(ECHO | ECHONL | ICANON | ISIG | IEXTEN);
    terminal->mode.c_cc[VMIN] = 1;
    terminal->mode.c_cc[VTIME] = 0;
    console_terminal_raw(terminal);
    console->is_terminal = true;
    return 0;
}

/* True when the byte after Ctrl-] goes to the guest. */
static bool handle_escape(struct console *console, uint8_t key)
{
    if (key == ESCAPE_KEY)
        return true;
    if (key == 'q' || key == 'Q') {
        if (console->config.quit)
            console->config.quit(console->config.quit_context);
    } else {
        console_write(console, (const uint8_t *)help_text, sizeof help_text - 1);
    }
    return false;
}

size_t console_terminal_filter(struct console *console, uint8_t *data, size_t length)
{
    size_t kept = 0;
    for (size_t i = 0; i < length; i++) {
        if (console->escape) {
            console->escape = false;
            if (handle_escape(console, data[i]))
                data[kept++] = data[i];
        } else if (data[i] == ESCAPE_KEY) {
            console->escape = true;
        } else {
            data[kept++] = data[i];
        }
    }
    return kept;
}
