/*
 * Signals as events of the loop: SIGTERM and SIGHUP press the power button and a second one stops
 * the VM at once, SIGINT stops it at once, SIGTSTP and SIGCONT give the terminal back and take it
 * again. Loop thread.
 */
#ifndef PARAT_CLI_SIGNALS_H
#define PARAT_CLI_SIGNALS_H

#include "backend/console/console.h"
#include "base/loop.h"

struct machine;

struct signals {
    struct loop_watch watch;
    struct machine *machine;
    struct console_terminal *terminal;
    bool pressed;
};

/* Blocks the signals on this thread: before the first other thread is made. */
void signals_block(void);
/* From now on they act on the machine. */
int signals_start(struct signals *signals, struct machine *machine,
                  struct console_terminal *terminal, struct err *err) MUST_USE;
void signals_stop(struct signals *signals);

#endif
