/* signalfd on the loop; see signals.h. */
#include "cli/signals.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "base/log.h"
#include "vm/machine.h"

static void signal_set(sigset_t *set)
{
    static const int handled[] = {SIGTERM, SIGHUP, SIGINT, SIGTSTP, SIGCONT};
    sigemptyset(set);
    for (size_t i = 0; i < ARRAY_COUNT(handled); i++)
        sigaddset(set, handled[i]);
}

void signals_block(void)
{
    sigset_t set;
    signal_set(&set);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
}

static void press_or_stop(struct signals *signals, const struct signalfd_siginfo *info)
{
    if (signals->pressed) {
        machine_request_end(signals->machine, MACHINE_END_USER);
        return;
    }
    signals->pressed = true;
    log_notice("signal %u from process %u: pressing the power button; another one stops the VM",
               info->ssi_signo, info->ssi_pid);
    machine_press_power_button(signals->machine);
}

/* SIGSTOP takes effect before kill returns: what follows it runs when the process goes on. */
static void stop_process(struct signals *signals)
{
    bool raw = signals->terminal->raw;
    console_terminal_restore(signals->terminal);
    kill(getpid(), SIGSTOP);
    if (raw)
        console_terminal_raw(signals->terminal);
}

static void handle_signal(struct signals *signals, const struct signalfd_siginfo *info)
{
    switch (info->ssi_signo) {
    case SIGTERM:
    case SIGHUP:
        press_or_stop(signals, info);
        break;
    case SIGINT:
        machine_request_end(signals->machine, MACHINE_END_USER);
        break;
    case SIGTSTP:
        stop_process(signals);
        break;
    case SIGCONT: /* the shell may have changed the mode meanwhile */
        if (signals->terminal->raw)
            console_terminal_raw(signals->terminal);
        break;
    }
}

static void on_readable(struct loop_watch *watch, uint32_t events)
{
    struct signals *signals = container_of(watch, struct signals, watch);
    struct signalfd_siginfo info;
    while (read(watch->fd, &info, sizeof info) == sizeof info)
        handle_signal(signals, &info);
}

int signals_start(struct signals *signals, struct machine *machine,
                  struct console_terminal *terminal, struct err *err)
{
    sigset_t set;
    signal_set(&set);
    *signals = (struct signals) {.machine = machine, .terminal = terminal};
    signals->watch.handler = on_readable;
    signals->watch.fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    if (signals->watch.fd < 0)
        return err_set(err, errno, "cannot receive signals: %s", strerror(errno));
    int error = loop_watch_add(machine->loop, &signals->watch, EPOLLIN);
    if (error) {
        close(signals->watch.fd);
        return err_set(err, -error, "cannot receive signals: %s", strerror(-error));
    }
    return 0;
}

void signals_stop(struct signals *signals)
{
    loop_watch_remove(&signals->watch);
    close(signals->watch.fd);
}
