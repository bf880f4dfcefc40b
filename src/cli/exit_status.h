/* The statuses that `parat` ends with. Pure. */
#ifndef PARAT_CLI_EXIT_STATUS_H
#define PARAT_CLI_EXIT_STATUS_H

#include <stdbool.h>
#include <stdint.h>

#include "vm/machine.h"

/* With --debug-exit the odd statuses are the guest's: host errors are 2 then, triple faults 4. */
enum {
    EXIT_OK = 0,
    EXIT_HOST_ERROR = 1,
    EXIT_WRONG_USE = 2,
    EXIT_TRIPLE_FAULT = 3,
    EXIT_SANDBOX = 6, /* a thread did what its sandbox forbids */
};

/* The exit status of a machine that ended so. */
int run_exit_status(enum machine_end end, bool has_debug_exit, uint32_t debug_exit_value);

#endif
