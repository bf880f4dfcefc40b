/* See exit_status.h. */
#include "cli/exit_status.h"

int run_exit_status(enum machine_end end, bool has_debug_exit, uint32_t debug_exit_value)
{
    /* With a debug-exit port the odd statuses are the guest's. */
    switch (end) {
    case MACHINE_END_POWEROFF:
    case MACHINE_END_RESET:
    case MACHINE_END_USER:
        return EXIT_OK;
    case MACHINE_END_DEBUG_EXIT:
        return (int)((debug_exit_value << 1 | 1) & 0xff);
    case MACHINE_END_TRIPLE_FAULT:
        return has_debug_exit ? 4 : EXIT_TRIPLE_FAULT;
    case MACHINE_END_NONE:
    case MACHINE_END_HOST_ERROR:
        break;
    }
    return has_debug_exit ? 2 : EXIT_HOST_ERROR;
}
