/* `parat run`: options, composition, the run itself, and what is said about its end. */
#include "cli/cmd_run.h"

#include <stdio.h>

#include "backend/console/console.h"
#include "base/log.h"
#include "cli/compose.h"
#include "cli/exit_status.h"
#include "cli/run_options.h"
#include "cli/signals.h"
#include "cli/stats.h"

static int host_error(const struct run_options *options, const struct err *err)
{
    log_error("%s", err->text);
    return run_exit_status(MACHINE_END_HOST_ERROR, options->has_debug_exit, 0);
}

static enum machine_end run_machine(const struct cli *cli, struct composition *c, struct err *err)
{
    struct signals signals;
    if (signals_start(&signals, c->machine, cli->terminal, err))
        return MACHINE_END_HOST_ERROR;
    enum machine_end end = machine_run(c->machine, err);
    signals_stop(&signals);
    return end;
}

/* Runs a VM whose parts are all there; err has the sentence when the status says so. */
static int run_composition(const struct cli *cli, struct composition *c, struct stats_file *stats,
                           struct err *err)
{
    const struct run_options *o = c->options;
    enum machine_end end = run_machine(cli, c, err);
    int status = run_exit_status(end, o->has_debug_exit, machine_debug_exit_value(c->machine));
    if (!stats || !c->announced)
        return status;
    struct stats_run run = {.name = o->name,
                            .model = o->machine,
                            .cpu = o->cpu,
                            .machine = c->machine,
                            .end = end,
                            .start_ns = cli->start_ns,
                            .status = status};
    struct err stats_err = {{0}};
    if (stats_write(stats, &run, &stats_err) && !err->text[0]) {
        *err = stats_err;
        status = run_exit_status(MACHINE_END_HOST_ERROR, o->has_debug_exit, 0);
    }
    return status;
}

/* The sentence about a failure comes when the terminal is itself again. */
static int run_with_options(const struct cli *cli, const struct run_options *options)
{
    struct err err = {{0}};
    struct stats_file stats;
    if (options->stats && stats_open(&stats, options->stats, &err))
        return host_error(options, &err);
    struct composition c;
    int status = compose_create(&c, options, cli->terminal, &err)
                     ? run_exit_status(MACHINE_END_HOST_ERROR, options->has_debug_exit, 0)
                     : run_composition(cli, &c, options->stats ? &stats : NULL, &err);
    compose_destroy(&c);
    if (options->stats)
        stats_close(&stats);
    if (err.text[0])
        log_error("%s", err.text);
    return status;
}

int cmd_run(const struct cli *cli, char **args)
{
    struct run_options options;
    struct err err = {{0}};
    bool help;
    int status = EXIT_OK;
    if (run_options_parse(&options, args, &help, &err)) {
        log_error("%s", err.text);
        status = EXIT_WRONG_USE;
    } else if (help) {
        run_options_print_help();
    } else {
        if (options.verbose)
            log_set_level(LOG_INFO);
        signals_block();
        status = run_with_options(cli, &options);
    }
    run_options_free(&options);
    return status;
}
