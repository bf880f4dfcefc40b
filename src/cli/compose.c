/*
 * The composition: opens what the options name, makes the machine and puts the devices in.
 *
 * Order: what can fail because of the user's files first, the terminal last.
 */
#include "cli/compose.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "backend/console/console.h"
#include "backend/disk/disk.h"
#include "backend/net/net.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/loop.h"
#include "base/sandbox.h"
#include "boot/boot.h"
#include "cli/q35.h"

/* The filters are there before the first thread, which closes its sandbox by itself. */
static int make_sandbox(struct composition *c, struct err *err)
{
    const struct sandbox_config config = {.roles = BIT(SANDBOX_LOOP) | BIT(SANDBOX_VCPU) |
                                                   BIT(SANDBOX_WORKER) | BIT(SANDBOX_REAPER) |
                                                   BIT(SANDBOX_ALARM),
                                          .ioctls = c->choice.engine->ioctls,
                                          .ioctl_count = c->choice.engine->ioctl_count};
    if (!c->options->no_sandbox)
        return sandbox_create(&c->sandbox, &config, err);
    log_warning("--sandbox off: a guest that breaks out of its machine can do all that you can");
    return 0;
}

/* What is made of files and sockets */

static int open_boot(struct composition *c, struct err *err)
{
    const struct run_options *o = c->options;
    struct boot_config config = {.kernel = o->kernel,
                                 .initrds = o->initrds,
                                 .initrd_count = o->initrd_count,
                                 .append = o->append};
    return boot_open(&c->boot, &config, err);
}

static int open_disks(struct composition *c, struct err *err)
{
    const struct run_options *o = c->options;
    for (unsigned i = 0; i < o->disk_count; i++) {
        const struct run_disk *disk = &o->disks[i];
        struct disk_config config = {.path = disk->path,
                                     .format = disk->format,
                                     .read_only = disk->read_only,
                                     .direct = disk->direct,
                                     .use_io_uring = !disk->no_io_uring,
                                     .queue_count = o->cpus,
                                     .sandbox = c->sandbox};
        int error = disk_open(&c->disks[i], &config, err);
        if (error)
            return error;
    }
    return 0;
}

static int open_nets(struct composition *c, struct err *err)
{
    const struct run_options *o = c->options;
    for (unsigned i = 0; i < o->net_count; i++) {
        if (o->nets[i].none)
            continue;
        struct net_user_config config = o->nets[i].user;
        config.loop = c->loop;
        config.confined = !o->no_sandbox;
        int error = net_user_open(&c->nets[i], &config, err);
        if (error)
            return error;
    }
    return 0;
}

/* The machine */

static void tell_path(const char *what, const struct console *console)
{
    if (console && console_path(console)[0])
        log_notice("%s is %s", what, console_path(console));
}

/* The engine is told when it is certain that something runs: a failure is one sentence only. */
static int load(struct machine *machine, void *context, struct x86_state *bsp, struct err *err)
{
    struct composition *c = context;
    int error = boot_load(machine, c->boot, bsp, err);
    if (!error && !c->announced) {
        c->announced = true;
        log_notice("%s", c->choice.why);
        tell_path("the console", c->console);
        tell_path("the virtio console", c->virtio_console);
    }
    return error;
}

static int build_cpu(struct composition *c, struct err *err)
{
    const struct engine_ops *engine = c->choice.engine;
    struct x86_features available;
    engine->cpu_features(&available);
    uint64_t wanted = c->options->tsc_hz ? c->options->tsc_hz : Q35_TSC_HZ;
    c->tsc_hz = engine->tsc_hz ? engine->tsc_hz(wanted) : wanted;
    struct x86_cpuid_config config = {.vcpu_count = c->options->cpus, .tsc_hz = c->tsc_hz};
    int error = x86_cpu_model(c->options->cpu, &available, &config.features, err);
    if (error)
        return error;
    char brand[48];
    snprintf(brand, sizeof brand, "parat virtual CPU (%s)", c->options->cpu);
    config.brand = brand;
    x86_cpuid_build(&c->cpuid, &config);
    return 0;
}

static int create_machine(struct composition *c, struct err *err)
{
    const struct run_options *o = c->options;
    struct machine_config config = {
        .name = o->name,
        .vcpu_count = o->cpus,
        .ram_size = o->memory,
        .tsc_hz = c->tsc_hz,
        .engine = c->choice.engine,
        .code = o->code,
        .cpuid = &c->cpuid,
        .reset_on_triple_fault = o->reset_on_triple_fault,
        .no_reboot = o->no_reboot,
        .loop = c->loop,
        .sandbox = c->sandbox,
        .load = load,
        .load_context = c,
    };
    return machine_create(&c->machine, &config, err);
}

static void on_quit(void *context)
{
    struct composition *c = context;
    if (c->machine)
        machine_request_end(c->machine, MACHINE_END_USER);
}

static int open_console(struct composition *c, const struct run_console *wanted,
                        struct console_terminal *terminal, struct console **out, struct err *err)
{
    struct console_config config = {
        .kind = wanted->kind,
        .path = wanted->path,
        .loop = c->loop,
        .terminal = terminal,
        .quit = on_quit,
        .quit_context = c,
    };
    return console_open(out, &config, err);
}

static int open_consoles(struct composition *c, struct console_terminal *terminal, struct err *err)
{
    const struct run_options *o = c->options;
    int error = open_console(c, &o->console, terminal, &c->console, err);
    if (!error && o->has_virtio_console)
        error = open_console(c, &o->virtio_console, terminal, &c->virtio_console, err);
    return error;
}

static int create_in_order(struct composition *c, struct console_terminal *terminal,
                           struct err *err)
{
    int error = engines_choose(&c->choice, c->options->engine, c->options->has_code, err);
    if (!error)
        error = build_cpu(c, err);
    if (!error)
        error = make_sandbox(c, err);
    if (!error)
        error = open_boot(c, err);
    if (!error)
        error = open_disks(c, err);
    if (!error)
        error = open_nets(c, err);
    if (!error)
        error = create_machine(c, err);
    if (!error)
        error = open_consoles(c, terminal, err);
    if (!error)
        error = q35_add_devices(c, err);
    return error;
}

int compose_create(struct composition *out, const struct run_options *options,
                   struct console_terminal *terminal, struct err *err)
{
    *out = (struct composition) {.options = options};
    int error = loop_create(&out->loop);
    if (error)
        return err_set(err, -error, "cannot create the event loop: %s", strerror(-error));
    return create_in_order(out, terminal, err);
}

void compose_destroy(struct composition *c)
{
    machine_destroy(c->machine);
    for (unsigned i = 0; i < RUN_NETS_MAX; i++)
        if (c->nets[i])
            c->nets[i]->ops->close(c->nets[i]);
    for (unsigned i = 0; i < RUN_DISKS_MAX; i++)
        disk_close(c->disks[i]);
    console_close(c->virtio_console);
    console_close(c->console);
    boot_close(c->boot);
    sandbox_destroy(c->sandbox);
    loop_destroy(c->loop);
}
