/* `parat run`: one VM from its options to its exit status. */
#ifndef PARAT_CLI_CMD_RUN_H
#define PARAT_CLI_CMD_RUN_H

#include "cli/cli.h"

int cmd_run(const struct cli *cli, char **args);

#endif
