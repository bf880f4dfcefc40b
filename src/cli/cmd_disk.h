/* `parat disk`: makes, describes, copies, checks and resizes disk images. */
#ifndef PARAT_CLI_CMD_DISK_H
#define PARAT_CLI_CMD_DISK_H

#include "cli/cli.h"

/* Exit statuses of `parat disk check` beside those of all commands. */
enum { EXIT_DISK_LEAKS = 3, EXIT_DISK_DAMAGED = 4 };

int cmd_disk(const struct cli *cli, char **args);

#endif
