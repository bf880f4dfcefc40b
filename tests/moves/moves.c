/*
 * Moves a booting Linux from VM to VM: at seeded points in VM time the machine is stopped, its
 * state and RAM are put into a fresh one, and that one goes on. The boot must end with the guest's
 * own power-off. Also checks that a state that was put in comes out again as it was.
 *
 *   moves --kernel FILE --initrd FILE [--append TEXT] [--moves N] [--seed S] [--cpus N]
 *         [--mean-us N] [--engine ENGINE[,OPTION...]] [--other ENGINE] [--cpu MODEL]
 *
 * With --other the machines run on the two engines in turn.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/loop.h"
#include "cli/compose.h"
#include "cli/engines.h"
#include "cli/run_options.h"
#include "vm/state.h"
#include "vm/state_vcpu.h"

struct options {
    const char *kernel, *initrd, *append, *cpus, *cpu, *engine, *other;
    unsigned long moves, mean_us;
    uint64_t seed;
};

/* SplitMix64. */
static uint64_t next_random(uint64_t *seed)
{
    uint64_t z = *seed += 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}

static int create(struct composition *out, struct run_options *options, const char *when)
{
    struct err err = {{0}};
    if (compose_create(out, options, NULL, &err) || machine_start(out->machine, &err)) {
        fprintf(stderr, "%s: %s\n", when, err.text);
        return -1;
    }
    return 0;
}

/* Copies what is not a hole. */
static int copy_ram(struct machine *from, struct machine *to)
{
    size_t count;
    const struct mem_region *region = guest_memory_regions(from->memory, &count);
    for (size_t i = 0; i < count; i++) {
        off_t end = 0, start;
        while ((start = lseek(region[i].fd, end, SEEK_DATA)) >= 0) {
            end = lseek(region[i].fd, start, SEEK_HOLE);
            gpa_t at = gpa_add(region[i].start, (uint64_t)start);
            if (end < 0 ||
                guest_memory_write(to->memory, at, region[i].hva + start, (size_t)(end - start)))
                return -1;
        }
    }
    return 0;
}

/* A CPU's state, equal but for what engines may normalise (x86/state.h). */
static bool same_cpu(struct state_reader *a, struct state_reader *b)
{
    struct x86_state one, two;
    const char *what = NULL;
    if (strncmp(a->path, "vcpu/", 5) != 0)
        return false;
    x86_state_reset(&one, 0, true);
    x86_state_reset(&two, 0, true);
    state_vcpu_load(&one, a);
    state_vcpu_load(&two, b);
    if (x86_state_equal(&one, &two, &what))
        return true;
    fprintf(stderr, "%s: %s differs\n", a->path, what);
    return false;
}

/* The same bytes come out of the new machine, or the name of the first section that differs. */
static int compare_states(const struct state_writer *a, const struct state_writer *b)
{
    struct state_reader ra, rb;
    size_t at_a = 0, at_b = 0;
    while (state_next_section(a->data, a->size, &at_a, &ra) == 1) {
        if (state_next_section(b->data, b->size, &at_b, &rb) != 1 ||
            strcmp(ra.path, rb.path) != 0 || ra.size != rb.size ||
            (memcmp(ra.body, rb.body, ra.size) != 0 && !same_cpu(&ra, &rb))) {
            fprintf(stderr, "section %s is not what was put in\n", ra.path);
            return -1;
        }
    }
    return 0;
}

static int move(struct machine *from, struct machine *to)
{
    struct state_writer w, again;
    struct err err = {{0}};
    state_writer_init(&w);
    state_writer_init(&again);
    int error = machine_save(from, &w, &err);
    if (!error)
        error = copy_ram(from, to);
    if (!error)
        error = machine_load(to, w.data, w.size, &err);
    if (!error)
        error = machine_save(to, &again, &err);
    if (!error)
        error = compare_states(&w, &again);
    if (error && err.text[0])
        fprintf(stderr, "%s\n", err.text);
    state_writer_free(&w);
    state_writer_free(&again);
    return error;
}

struct stopper {
    struct loop_timer timer;
    struct machine *machine;
};

static void stop(struct loop_timer *timer)
{
    machine_request_end(container_of(timer, struct stopper, timer)->machine, MACHINE_END_USER);
}

/* Runs c for delay_ns at most (0: to its end). */
static enum machine_end run_for(struct composition *c, uint64_t delay_ns, struct err *err)
{
    struct stopper stopper = {.timer = {.handler = stop}, .machine = c->machine};
    if (delay_ns)
        loop_timer_arm(c->loop, &stopper.timer, clock_host_ns() + delay_ns);
    enum machine_end end = machine_run(c->machine, err);
    loop_timer_cancel(c->loop, &stopper.timer);
    return end;
}

/* Replaces *current by a fresh machine in the same state. */
static int replace(struct composition **current, struct composition **spare,
                   struct run_options *options)
{
    if (create(*spare, options, "a fresh machine"))
        return -1;
    int error = move((*current)->machine, (*spare)->machine);
    compose_destroy(*current);
    struct composition *old = *current;
    *current = *spare;
    *spare = old;
    return error;
}

static int run_moves(const struct options *o, struct run_options *options)
{
    static struct composition machines[2]; /* large */
    struct composition *current = &machines[0], *spare = &machines[1];
    struct run_options first = *options;
    uint64_t seed = o->seed;
    unsigned long moved = 0;
    struct err err = {{0}};
    if (create(current, options, "the first machine"))
        return 1;
    enum machine_end end;
    for (;;) {
        uint64_t delay =
            moved < o->moves ? 1 + next_random(&seed) % (o->mean_us * 2 * NS_PER_US) : 0;
        end = run_for(current, delay, &err);
        if (end != MACHINE_END_USER)
            break;
        if (o->other && moved % 2 == 0)
            snprintf(options->engine, sizeof options->engine, "%s", o->other);
        else
            *options = first;
        if (replace(&current, &spare, options)) {
            fprintf(stderr, "move %lu failed\n", moved + 1);
            compose_destroy(current);
            return 1;
        }
        moved++;
    }
    compose_destroy(current);
    printf("seed %llu: %lu moves of %lu asked for, end: %s%s%s\n", (unsigned long long)o->seed,
           moved, o->moves, machine_end_name(end), err.text[0] ? ": " : "", err.text);
    return end == MACHINE_END_POWEROFF && moved == o->moves ? 0 : 1;
}

static int parse(struct options *o, int argc, char **argv)
{
    *o = (struct options) {.append = "console=ttyS0 parat.do=poweroff",
                           .cpus = "1",
                           .cpu = "host",
                           .engine = "soft",
                           .moves = 100,
                           .mean_us = 20000,
                           .seed = 1};
    for (int i = 1; i + 1 < argc; i += 2) {
        const char *name = argv[i], *value = argv[i + 1];
        if (strcmp(name, "--kernel") == 0)
            o->kernel = value;
        else if (strcmp(name, "--initrd") == 0)
            o->initrd = value;
        else if (strcmp(name, "--append") == 0)
            o->append = value;
        else if (strcmp(name, "--cpus") == 0)
            o->cpus = value;
        else if (strcmp(name, "--engine") == 0)
            o->engine = value;
        else if (strcmp(name, "--other") == 0)
            o->other = value;
        else if (strcmp(name, "--cpu") == 0)
            o->cpu = value;
        else if (strcmp(name, "--moves") == 0)
            o->moves = strtoul(value, NULL, 0);
        else if (strcmp(name, "--seed") == 0)
            o->seed = strtoull(value, NULL, 0);
        else if (strcmp(name, "--mean-us") == 0)
            o->mean_us = strtoul(value, NULL, 0);
        else
            return -1;
    }
    return o->kernel && o->initrd && o->mean_us ? 0 : -1;
}

/* What both engines can give; 0: anything. */
static uint64_t common_tsc_hz(const struct options *o)
{
    struct engine_choice choice;
    struct err err = {{0}};
    if (!o->other || engines_choose(&choice, o->other, false, &err) || !choice.engine->tsc_hz)
        return 0;
    return choice.engine->tsc_hz(NS_PER_S);
}

int main(int argc, char **argv)
{
    struct options o;
    if (parse(&o, argc, argv)) {
        fprintf(stderr, "usage: moves --kernel FILE --initrd FILE [--append TEXT] [--moves N] "
                        "[--seed S] [--cpus N] [--mean-us N] [--engine ENGINE[,OPTION...]] "
                        "[--other ENGINE] [--cpu MODEL]\n");
        return 2;
    }
    char *args[] = {"--kernel",  (char *)(uintptr_t)o.kernel,
                    "--initrd",  (char *)(uintptr_t)o.initrd,
                    "--append",  (char *)(uintptr_t)o.append,
                    "--cpus",    (char *)(uintptr_t)o.cpus,
                    "--cpu",     (char *)(uintptr_t)o.cpu,
                    "--memory",  "160M",
                    "--console", "none",
                    "--engine",  (char *)(uintptr_t)o.engine,
                    NULL};
    struct run_options options;
    struct err err = {{0}};
    bool help;
    if (run_options_parse(&options, args, &help, &err)) {
        fprintf(stderr, "%s\n", err.text);
        return 2;
    }
    log_set_level(LOG_ERROR);
    options.no_sandbox = true; /* machines follow each other in this process */
    options.tsc_hz = common_tsc_hz(&o);
    int status = run_moves(&o, &options);
    run_options_free(&options);
    return status;
}
