/* Compares two worlds: see compare.h. One thread. */
#include "compare.h"

#include <signal.h>
#include <sys/time.h>

/* Instructions that the interpreter runs before it takes the code for endless. */
#define STEPS_MAX 1500u
/* Stepwise: units; instructions of one of them; elements of all strings in it. */
#define UNITS_MAX       100u
#define UNIT_STEPS_MAX  20000u
#define UNIT_STRING_MAX 500000u
/* Of CPU time; only code that does not come back takes so long. */
#define SECONDS_MAX 5

/* The vCPU whose code runs; its attention word is all that a signal may touch. */
static struct engine_vcpu *volatile running;
static volatile sig_atomic_t late;
static bool tracing;

static void alarm_rings(int signal)
{
    static const char text[] = "FOUND: translated code does not end\n";

    (void)signal;
    if (late) { /* not even when asked to */
        if (write(2, text, sizeof text - 1) < 0)
            _exit(1);
        abort();
    }
    late = 1;
    if (running)
        atomic_store(&running->attention, 1);
}

static void watch(struct engine_vcpu *vcpu)
{
    unsigned seconds = vcpu ? SECONDS_MAX : 0;
    struct itimerval timer = {.it_value.tv_sec = seconds, .it_interval.tv_sec = seconds};

    late = 0;
    running = vcpu;
    setitimer(ITIMER_VIRTUAL, &timer, NULL);
}

void compare_init(void)
{
    tracing = getenv("FUZZ_TRACE");
    signal(SIGVTALRM, alarm_rings);
}

static _Noreturn void differs(const struct compare *c, const char *what)
{
    world_print(c->reference, "interpreted");
    world_print(c->subject, "as it runs ");
    fuzz_fail("code does something else than one instruction after the other: %s", what);
}

/* Tables that the guest makes itself: a group's probe may set bits there earlier than the access.
 */
static bool has_own_tables(const struct compare *c)
{
    return c->translates && (c->reference->vcpu->cpu.s.cr3 & PAGE_MASK) != WORLD_TABLES;
}

/* What comes out must be a state that could be saved. */
static void step(const struct compare *c)
{
    if (tracing)
        world_print_insn(c->reference);
    world_step(c->reference);
    const char *wrong = x86_state_validate(&c->reference->vcpu->cpu.s);
    if (wrong)
        fuzz_fail("the interpreter has made a state that is none: %s", wrong);
}

/*
 * An element only of a string instruction: host code may have stopped in its middle, or the string
 * overwrites its own instruction, which is fetched again then.
 */
static void step_element(const struct compare *c)
{
    c->reference->vcpu->cpu.debug_active = true;
    step(c);
    x86_cpu_update_mode(&c->reference->vcpu->cpu);
}

/* --- until the end --- */

static bool reference_ends(const struct compare *c)
{
    for (unsigned i = 0; i < STEPS_MAX && !world_ended(c->reference); i++)
        step_element(c);
    return world_ended(c->reference);
}

static void run_to_end(const struct compare *c)
{
    watch(c->subject->vcpu);
    while (!world_ended(c->subject) && !late)
        world_slice(c->subject, 0);
    bool endless = late;
    watch(NULL);
    const char *what =
        endless ? "it does not end" : world_difference(c->reference, c->subject, true);
    if (what && !has_own_tables(c))
        differs(c, what);
}

/* --- behind each unit --- */

enum way { THERE, NEVER, TOO_FAR };

/* Has the reference go where the subject is. */
static enum way follow(const struct compare *c)
{
    const struct x86_state *here = &c->reference->vcpu->cpu.s, *there = &c->subject->vcpu->cpu.s;
    unsigned steps = 0, elements = 0;

    while (steps < UNIT_STEPS_MAX) {
        uint64_t rip = here->rip;
        if (rip == there->rip && !world_difference(c->reference, c->subject, true))
            return THERE;
        if (world_ended(c->reference))
            return NEVER;
        step_element(c);
        if (here->rip != rip)
            steps++;
        else if (++elements == UNIT_STRING_MAX)
            return TOO_FAR;
    }
    return NEVER;
}

static void run_stepwise(const struct compare *c)
{
    for (unsigned i = 0; i < UNITS_MAX && !world_ended(c->subject); i++) {
        if (tracing)
            fprintf(stderr, "       %16llx  as it runs\n",
                    (unsigned long long)c->subject->vcpu->cpu.s.rip);
        watch(c->subject->vcpu);
        world_slice(c->subject, 1);
        watch(NULL);
        if (has_own_tables(c))
            break;
        enum way way = follow(c);
        if (way == NEVER)
            differs(c, "the interpreter does not come there");
        if (way == TOO_FAR)
            break;
    }
}

void compare_run(const struct compare *c)
{
    c->fill(c->reference, c->input);
    c->fill(c->subject, c->input);
    if (!c->stepwise && reference_ends(c)) {
        run_to_end(c);
        return;
    }
    c->fill(c->reference, c->input);
    run_stepwise(c);
}
