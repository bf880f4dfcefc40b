/* What main hands to each command. Main thread. */
#ifndef PARAT_CLI_CLI_H
#define PARAT_CLI_CLI_H

#include <stdint.h>

struct console_terminal;

#define PARAT_VERSION "0.1.0"

struct cli {
    uint64_t start_ns;                 /* clock_host_ns at the beginning of main */
    struct console_terminal *terminal; /* restored on each way out */
};

struct cli_command {
    const char *name;
    const char *help; /* NULL: not shown */
    /* args: what follows the command's name, ends with NULL. Returns the exit status. */
    int (*run)(const struct cli *cli, char **args);
};

#endif
