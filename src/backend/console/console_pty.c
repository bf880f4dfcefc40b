/*
 * A pseudo-terminal as the guest's console. While nobody has it open its master side hangs up; then
 * the newest output is kept for whoever comes, and a timer looks five times a second. Loop thread.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "backend/console/console_int.h"
#include "base/clock.h"

#define LOOK_PERIOD_NS (200 * NS_PER_MS)

static bool has_hung_up(int fd)
{
    struct pollfd p = {.fd = fd, .events = 0};
    return poll(&p, 1, 0) > 0 && (p.revents & POLLHUP);
}

static void look_again(struct loop_timer *timer)
{
    struct console *console = container_of(timer, struct console, pty_timer);
    if (!console_pty_check_absent(console))
        console_resume(console);
}

bool console_pty_check_absent(struct console *console)
{
    if (!has_hung_up(console->out_fd))
        return false;
    loop_timer_arm(console->config.loop, &console->pty_timer, clock_host_ns() + LOOK_PERIOD_NS);
    return true;
}

/* Raw mode on the far side. Closing it again makes the master report that nobody is there. */
static int set_raw(const char *path)
{
    int fd = open(path, O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    struct termios mode;
    int error = tcgetattr(fd, &mode) < 0 ? -errno : 0;
    if (!error) {
        cfmakeraw(&mode);
        error = tcsetattr(fd, TCSANOW, &mode) < 0 ? -errno : 0;
    }
    close(fd);
    return error;
}

int console_pty_open(struct console *console, struct err *err)
{
    console->own_fds = true;
    console->pty_timer.handler = look_again;
    console->out_fd = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK);
    console->in_fd = console->out_fd;
    int error = console->out_fd < 0 || grantpt(console->out_fd) < 0 || unlockpt(console->out_fd) < 0
                    ? -errno
                    : 0;
    if (!error)
        error = -ptsname_r(console->out_fd, console->path, sizeof console->path);
    if (!error)
        error = set_raw(console->path);
    if (error)
        return err_set(err, -error, "--console pty: cannot make a pseudo-terminal: %s",
                       strerror(-error));
    return 0;
}
