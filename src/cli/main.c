/*
 * `parat`: the command table, and the process-wide matters that belong to no VM: the terminal that
 * must come back in its old mode whatever happens, and signals with a fixed meaning.
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "backend/console/console.h"
#include "backend/net/net.h"
#include "base/bits.h"
#include "base/clock.h"
#include "base/sandbox.h"
#include "cli/cli.h"
#include "cli/cmd_disk.h"
#include "cli/cmd_doctor.h"
#include "cli/cmd_run.h"
#include "cli/exit_status.h"

/* A signal handler gets no context: this is the one object at file scope. */
static struct console_terminal terminal;

/* SA_RESETHAND is set: raising the signal again ends the process as if nobody had caught it. */
static void restore_and_die(int signal)
{
    console_terminal_restore(&terminal);
    raise(signal);
}

/* A filter of the sandbox sends this one; see base/sandbox.h. */
static void tell_violation_and_end(int signal, siginfo_t *info, void *context)
{
    char text[200];
    size_t length = sandbox_describe(info, text, sizeof text);
    console_terminal_restore(&terminal);
    ssize_t ignored = write(STDERR_FILENO, text, length);
    (void)ignored;
    _exit(EXIT_SANDBOX);
}

static void install_signals(void)
{
    static const int fatal[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGABRT, SIGQUIT, SIGTRAP};
    struct sigaction die = {.sa_handler = restore_and_die,
                            .sa_flags = SA_RESETHAND | SA_NODEFER | SA_ONSTACK};
    for (size_t i = 0; i < ARRAY_COUNT(fatal); i++)
        sigaction(fatal[i], &die, NULL);
    struct sigaction violation = {.sa_sigaction = tell_violation_and_end,
                                  .sa_flags = SA_SIGINFO | SA_ONSTACK};
    sigaction(SIGSYS, &violation, NULL);
    struct sigaction ignore = {.sa_handler = SIG_IGN};
    sigaction(SIGPIPE, &ignore, NULL); /* a closed pipe is an error of write */
    sigaction(SIGXFSZ, &ignore, NULL); /* so is a file at its size limit */
}

static int cmd_version(const struct cli *cli, char **args)
{
    puts("parat " PARAT_VERSION);
    return EXIT_OK;
}

static int cmd_net_helper(const struct cli *cli, char **args)
{
    return net_user_helper_main();
}

static int cmd_help(const struct cli *cli, char **args);

static const struct cli_command commands[] = {
    {"run", "create a virtual machine and run it", cmd_run},
    {"disk", "make, describe, copy, check and resize disk images", cmd_disk},
    {"doctor", "tell what this host can run virtual machines with", cmd_doctor},
    {"version", "print the version", cmd_version},
    {"help", "show this", cmd_help},
    {NET_USER_HELPER_COMMAND, NULL, cmd_net_helper},
};

static int cmd_help(const struct cli *cli, char **args)
{
    puts("usage: parat COMMAND [--option VALUE]...\n"
         "\n"
         "parat runs virtual machines on any x86-64 Linux host, with or without virtualization\n"
         "hardware.\n"
         "\n"
         "Commands:");
    for (size_t i = 0; i < ARRAY_COUNT(commands); i++)
        if (commands[i].help)
            printf("  %-10s %s\n", commands[i].name, commands[i].help);
    puts("\n"
         "'parat COMMAND --help' tells a command's options. See also parat(1), parat-run(1),\n"
         "parat-disk(1) and parat-doctor(1).");
    return EXIT_OK;
}

static const struct cli_command *find_command(const char *name)
{
    if (strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0)
        name = "help";
    if (strcmp(name, "--version") == 0)
        name = "version";
    for (size_t i = 0; i < ARRAY_COUNT(commands); i++)
        if (strcmp(commands[i].name, name) == 0)
            return &commands[i];
    return NULL;
}

int main(int argc, char **argv)
{
    struct cli cli = {.start_ns = clock_host_ns(), .terminal = &terminal};
    if (argc < 2) {
        fputs("parat: a command is missing; 'parat --help' lists them\n", stderr);
        return EXIT_WRONG_USE;
    }
    const struct cli_command *command = find_command(argv[1]);
    if (!command) {
        fprintf(stderr, "parat: %s: there is no such command; 'parat --help' lists them\n",
                argv[1]);
        return EXIT_WRONG_USE;
    }
    install_signals();
    int status = command->run(&cli, argv + 2);
    console_terminal_restore(&terminal);
    if (fflush(stdout) != 0 && status == EXIT_OK)
        status = EXIT_HOST_ERROR;
    return status;
}
