/*
 * A console's two byte streams. Output goes into a ring on any thread and out of it on the loop
 * thread, which writes only what poll says will not block: the descriptors are shared with the
 * user's shell and stay in blocking mode. Input is read on the loop thread.
 *
 * Lock order: device lock -> console lock. No callback runs with the console's lock held.
 */
#include "backend/console/console.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "backend/console/console_int.h"
#include "base/clock.h"

#define WRITE_CHUNK    1024u /* fits any terminal and pipe that polls writable */
#define CLOSE_DRAIN_MS 1000

/* Output */

static size_t out_copy(struct console *console, uint8_t *data, uint64_t *position)
{
    pthread_mutex_lock(&console->lock);
    *position = console->out_head;
    size_t length = MIN(console->out_tail - console->out_head, WRITE_CHUNK);
    for (size_t i = 0; i < length; i++)
        data[i] = console->out[(*position + i) % CONSOLE_OUT_SIZE];
    pthread_mutex_unlock(&console->lock);
    return length;
}

/* The writer may have dropped some of these bytes meanwhile (an absent pty). */
static void out_consume(struct console *console, uint64_t position, size_t length)
{
    pthread_mutex_lock(&console->lock);
    console->out_head = MAX(console->out_head, position + length);
    pthread_mutex_unlock(&console->lock);
}

static void out_set_dead(struct console *console)
{
    pthread_mutex_lock(&console->lock);
    console->out_dead = true;
    console->out_head = console->out_tail;
    pthread_mutex_unlock(&console->lock);
}

static void out_set_absent(struct console *console, bool absent)
{
    pthread_mutex_lock(&console->lock);
    console->out_absent = absent;
    pthread_mutex_unlock(&console->lock);
}

static bool is_writable(int fd, int timeout_ms)
{
    struct pollfd p = {.fd = fd, .events = POLLOUT};
    return poll(&p, 1, timeout_ms) > 0;
}

/* Writes until the ring is empty (true) or the other end does not take more (false). */
static bool out_drain(struct console *console, int timeout_ms)
{
    uint8_t data[WRITE_CHUNK];
    uint64_t position;
    size_t length;
    while ((length = out_copy(console, data, &position))) {
        if (!is_writable(console->out_fd, timeout_ms))
            return false;
        ssize_t done = write(console->out_fd, data, length);
        if (done >= 0)
            out_consume(console, position, (size_t)done);
        else if (errno == EAGAIN)
            return false;
        else if (errno == ENOSPC || errno == EFBIG)
            out_consume(console, position, length); /* a full disk: this much is lost */
        else if (errno != EINTR)
            out_set_dead(console);
    }
    return true;
}

static void watch_output(struct console *console, bool on)
{
    if (on == console->out_watched)
        return;
    if (on)
        on = loop_watch_add(console->config.loop, &console->out_watch, EPOLLOUT) == 0;
    else
        loop_watch_remove(&console->out_watch);
    console->out_watched = on;
}

static void flush_output(struct console *console)
{
    bool absent = console->config.kind == CONSOLE_PTY && console_pty_check_absent(console);
    out_set_absent(console, absent);
    if (absent)
        watch_output(console, false);
    else
        watch_output(console, !out_drain(console, 0));

    pthread_mutex_lock(&console->lock);
    bool room = console->out_tail - console->out_head <= CONSOLE_OUT_SIZE / 2;
    bool tell = console->starved && (room || absent || console->out_dead);
    if (tell)
        console->starved = false;
    pthread_mutex_unlock(&console->lock);
    if (tell && console->client.can_write)
        console->client.can_write(console->client.context);
}

static void on_out_message(struct loop_message *message)
{
    flush_output(container_of(message, struct console, out_message));
}

static void on_out_ready(struct loop_watch *watch, uint32_t events)
{
    flush_output(container_of(watch, struct console, out_watch));
}

/* Lock held. Returns how many of the bytes there is room for. */
static size_t out_make_room(struct console *console, size_t length)
{
    uint64_t used = console->out_tail - console->out_head;
    uint64_t room = CONSOLE_OUT_SIZE - used;
    if (length <= room)
        return length;
    if (!console->out_absent) {
        console->starved = true;
        return room;
    }
    length = MIN(length, CONSOLE_OUT_SIZE);
    console->out_head += length - room;
    return length;
}

size_t console_write(struct console *console, const uint8_t *data, size_t length)
{
    if (console->out_fd < 0)
        return length;
    pthread_mutex_lock(&console->lock);
    size_t taken = length;
    if (!console->out_dead) {
        taken = out_make_room(console, length);
        for (size_t i = 0; i < taken; i++)
            console->out[console->out_tail++ % CONSOLE_OUT_SIZE] = data[i];
    }
    pthread_mutex_unlock(&console->lock);
    loop_post(console->config.loop, &console->out_message);
    return taken;
}

/* Input */

static void watch_input(struct console *console, bool on)
{
    if (on && console->in_always)
        loop_post(console->config.loop, &console->in_message);
    if (on == console->in_watched || console->in_always)
        return;
    console->in_watched = on;
    if (!on) {
        loop_watch_remove(&console->in_watch);
        return;
    }
    if (loop_watch_add(console->config.loop, &console->in_watch, EPOLLIN)) {
        console->in_watched = false; /* a plain file has no poll */
        console->in_always = true;
        loop_post(console->config.loop, &console->in_message);
    }
}

static void give_input(struct console *console)
{
    if (!console->client.input || !console->in_length)
        return;
    size_t taken = console->client.input(console->client.context, console->in, console->in_length);
    taken = MIN(taken, console->in_length);
    console->in_length -= taken;
    memmove(console->in, console->in + taken, console->in_length);
}

/* Reads once; poll said that it does not block. A terminal is always read, for the escape keys. */
static void read_input(struct console *console)
{
    uint8_t data[256];
    size_t room = sizeof console->in - console->in_length;
    size_t wanted = console->is_terminal ? sizeof data : MIN(room, sizeof data);
    if (wanted == 0)
        return;
    ssize_t length = read(console->in_fd, data, wanted);
    if (length < 0 && (errno == EINTR || errno == EAGAIN))
        return;
    if (length <= 0) {
        /* A pty's other side is gone only for now: the timer looks for the next. */
        console->in_ended = console->config.kind != CONSOLE_PTY;
        watch_input(console, false);
        if (!console->in_ended && !console_pty_check_absent(console))
            console_kick_input(console);
        return;
    }
    size_t kept = (size_t)length;
    if (console->is_terminal)
        kept = console_terminal_filter(console, data, kept);
    kept = MIN(kept, room);
    memcpy(console->in + console->in_length, data, kept);
    console->in_length += kept;
}

static bool wants_input(const struct console *console)
{
    if (console->in_fd < 0 || console->in_ended)
        return false;
    return console->is_terminal || (console->client.input && console->in_length == 0);
}

static void on_in_ready(struct loop_watch *watch, uint32_t events)
{
    struct console *console = container_of(watch, struct console, in_watch);
    read_input(console);
    give_input(console);
    if (!wants_input(console))
        watch_input(console, false);
}

static void on_in_message(struct loop_message *message)
{
    struct console *console = container_of(message, struct console, in_message);
    give_input(console);
    if (console->in_always && wants_input(console)) {
        read_input(console);
        give_input(console);
    }
    if (wants_input(console))
        watch_input(console, true);
}

void console_kick_input(struct console *console)
{
    loop_post(console->config.loop, &console->in_message);
}

void console_resume(struct console *console)
{
    console_kick_input(console);
    loop_post(console->config.loop, &console->out_message);
}

void console_attach(struct console *console, const struct console_client *client)
{
    console->client = client ? *client : (struct console_client) {0};
    console_kick_input(console);
}

/* Opening and closing */

static int open_output_file(struct console *console, struct err *err)
{
    const char *path = console->config.path;
    console->own_fds = true;
    console->out_fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOCTTY, 0666);
    if (console->out_fd < 0)
        return err_set(err, errno, "--console file=%s: cannot be opened: %s", path,
                       strerror(errno));
    return 0;
}

static int open_kind(struct console *console, struct err *err)
{
    switch (console->config.kind) {
    case CONSOLE_NONE:
        return 0;
    case CONSOLE_STDIO:
        return console_terminal_open(console, err);
    case CONSOLE_PTY:
        return console_pty_open(console, err);
    case CONSOLE_FILE:
        return open_output_file(console, err);
    }
    return -EINVAL;
}

int console_open(struct console **out, const struct console_config *config, struct err *err)
{
    struct console *console = calloc(1, sizeof *console);
    if (!console)
        return err_set(err, ENOMEM, "--console: out of memory");
    console->config = *config;
    console->in_fd = console->out_fd = -1;
    pthread_mutex_init(&console->lock, NULL);
    console->in_message.handler = on_in_message;
    console->out_message.handler = on_out_message;
    console->in_watch.handler = on_in_ready;
    console->out_watch.handler = on_out_ready;
    int error = open_kind(console, err);
    if (error) {
        console_close(console);
        return error;
    }
    console->in_watch.fd = console->in_fd;
    console->out_watch.fd = console->out_fd;
    if (console->config.kind == CONSOLE_PTY && (console->out_watch.fd = dup(console->out_fd)) < 0) {
        error = err_set(err, errno, "--console pty: %s", strerror(errno));
        console_close(console);
        return error;
    }
    if (wants_input(console))
        watch_input(console, true);
    *out = console;
    return 0;
}

static void close_descriptors(struct console *console)
{
    if (!console->own_fds)
        return;
    if (console->config.kind == CONSOLE_PTY && console->out_watch.fd > 0)
        close(console->out_watch.fd);
    if (console->out_fd >= 0)
        close(console->out_fd);
}

void console_close(struct console *console)
{
    if (!console)
        return;
    struct loop *loop = console->config.loop;
    watch_input(console, false);
    watch_output(console, false);
    loop_timer_cancel(loop, &console->pty_timer);
    loop_message_cancel(loop, &console->in_message);
    loop_message_cancel(loop, &console->out_message);
    bool absent = console->config.kind == CONSOLE_PTY; /* its reader goes with us */
    if (console->out_fd >= 0 && !absent)
        out_drain(console, CLOSE_DRAIN_MS);
    if (console->is_terminal)
        console_terminal_restore(console->config.terminal);
    close_descriptors(console);
    pthread_mutex_destroy(&console->lock);
    free(console);
}

const char *console_path(const struct console *console)
{
    return console->path;
}
