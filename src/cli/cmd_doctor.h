/* `parat doctor`: what this host can run VMs with, and what to do where it cannot. */
#ifndef PARAT_CLI_CMD_DOCTOR_H
#define PARAT_CLI_CMD_DOCTOR_H

#include "cli/cli.h"

int cmd_doctor(const struct cli *cli, char **args);

#endif
