/*
 * Lockstep: a unit by the shadow, then for real, then the comparison. vCPU's thread. See
 * lockstep.h.
 */
#include "engine/soft/lockstep.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/soft/lockstep_int.h"
#include "x86/mem.h"

/* So often the shadow repeats before a difference is a divergence: the first of them finds out what
 * is stored to. */
#define REPEATS 8
/* So often shadow and unit both begin anew. */
#define ATTEMPTS 3
/* So often in a row memory may have been changed by others behind one unit. */
#define FOREIGN_MAX 16

/* --- creation --- */

static void init_shadow(struct lockstep *l)
{
    const struct x86_cpu *cpu = &l->vcpu->cpu;
    struct x86_cpu_config config = {.ops = &lockstep_shadow_ops,
                                    .context = l->vcpu,
                                    .decoder = cpu->decoder,
                                    .cpuid = cpu->cpuid,
                                    .stubs = cpu->stubs};
    x86_cpu_init(&l->shadow, &config);
}

static void interpret_from(struct engine_vcpu *vcpu, const struct x86_unit *unit, unsigned first)
{
    struct x86_cpu *cpu = &vcpu->cpu;

    for (unsigned i = first; i < unit->count; i++) {
        const struct x86_insn *insn = &unit->insn[i];
        uint64_t next = cpu->s.rip + insn->length;
        cpu->next_rip = next;
        insn->run(cpu, insn);
        cpu->s.rip = cpu->next_rip;
        if (cpu->s.rip != next || cpu->end_block)
            return;
    }
}

/* A group of memory operands could not be had: what the unit has left to do. */
static void interpret_rest(struct engine_vcpu *vcpu, const struct x86_unit *unit)
{
    unsigned offset = unit->page_offset, first = 0;

    while (first < unit->count && offset != (vcpu->cpu.s.rip & ~PAGE_MASK))
        offset += unit->insn[first++].length;
    interpret_from(vcpu, unit, first);
}

static void run_translated(struct engine_vcpu *vcpu, const struct x86_unit *unit)
{
    struct x86_unit_exit exit;

    x86_unit_choose_key(vcpu->translator, &vcpu->cpu, unit->mode);
    x86_unit_run(vcpu->translator, &vcpu->cpu, unit, &exit);
    if (exit.plain)
        interpret_rest(vcpu, unit);
}

int lockstep_create(struct engine_vcpu *vcpu, struct err *err)
{
    size_t align = _Alignof(struct lockstep);
    struct lockstep *l = aligned_alloc(align, align_up(sizeof *l, align));
    struct shadow_page *page = calloc(LOCKSTEP_PAGES_MAX, sizeof *page);
    if (!l || !page) {
        free(page);
        free(l);
        return err_set(err, ENOMEM, "engine soft: no memory to check CPU %u", vcpu->index);
    }
    memset(l, 0, sizeof *l);
    l->page = page;
    l->vcpu = vcpu;
    l->run = run_translated;
    init_shadow(l);
    lockstep_shadow_wrap(l);
    vcpu->lockstep = l;
    vcpu->cache.hot = 1; /* all is to be checked */
    vcpu->cpu.ops = &l->ops;
    return 0;
}

void lockstep_destroy(struct engine_vcpu *vcpu)
{
    if (!vcpu->lockstep)
        return;
    free(vcpu->lockstep->page);
    free(vcpu->lockstep);
    vcpu->lockstep = NULL;
}

/* --- running for real --- */

void lockstep_interpret(struct engine_vcpu *vcpu, const struct x86_unit *unit)
{
    interpret_from(vcpu, unit, 0);
}

static enum lockstep_end run_unit(struct lockstep *l, const struct x86_unit *unit)
{
    struct engine_vcpu *vcpu = l->vcpu;
    jmp_buf here, *outer = vcpu->cpu.unwind;
    enum lockstep_end end = LOCKSTEP_FAULT;

    l->phase = LOCKSTEP_UNIT;
    l->value_next = 0;
    vcpu->current = NULL;
    vcpu->cpu.unwind = &here;
    if (!setjmp(here)) {
        l->run(vcpu, unit);
        end = LOCKSTEP_OK;
    }
    vcpu->cpu.unwind = outer;
    return end;
}

/* --- comparing --- */

enum difference {
    SAME,
    FOREIGN, /* only memory that the shadow did not change, or that a walk did */
    DIFFERENT,
};

static bool same_event(const struct x86_cpu *a, const struct x86_cpu *b)
{
    const struct x86_event *x = &a->fault, *y = &b->fault;
    bool soft = x->kind >= X86_EVENT_SOFT_INTERRUPT;
    return x->kind == y->kind && x->vector == y->vector && x->has_error == y->has_error &&
           (!x->has_error || x->error == y->error) && x->has_payload == y->has_payload &&
           (!x->has_payload || x->payload == y->payload) && (!soft || a->next_rip == b->next_rip);
}

static bool same_cpu(const struct lockstep *l, enum lockstep_end end, enum lockstep_end shadow)
{
    const struct x86_cpu *a = &l->vcpu->cpu, *b = &l->shadow;
    const char *what;

    return end == shadow && (end != LOCKSTEP_FAULT || same_event(a, b)) && a->halted == b->halted &&
           (memcmp(&a->s, &b->s, sizeof a->s) == 0 || x86_state_equal(&a->s, &b->s, &what));
}

/*
 * A byte that the shadow changed must be what the shadow made of it. Another one may have been
 * changed by a device; A and D bits are set when a CPU walks, which depends on its TLB.
 */
static enum difference compare_byte(const struct shadow_page *page, unsigned at)
{
    uint8_t now = page->host[at], wanted = page->copy[at];

    if (now == wanted)
        return SAME;
    bool walk = at % 4 == 0 && !((now ^ wanted) & ~(X86_PTE_A | X86_PTE_D));
    return wanted == page->base[at] || walk ? FOREIGN : DIFFERENT;
}

static enum difference compare_memory(const struct lockstep *l)
{
    enum difference result = SAME;

    for (unsigned i = 0; i < l->page_count; i++) {
        const struct shadow_page *page = &l->page[i];
        if (memcmp(page->host, page->copy, PAGE_SIZE) == 0)
            continue;
        for (unsigned k = 0; k < PAGE_SIZE; k++)
            result = MAX(result, compare_byte(page, k));
    }
    return result;
}

static enum difference compare(const struct lockstep *l, enum lockstep_end end,
                               enum lockstep_end shadow)
{
    return same_cpu(l, end, shadow) ? compare_memory(l) : DIFFERENT;
}

/* --- after a difference --- */

static void note_first_pass(struct lockstep *l)
{
    for (unsigned i = 0; i < l->page_count; i++) {
        struct shadow_page *page = &l->page[i];
        memcpy(page->original, page->base, PAGE_SIZE);
        for (unsigned k = 0; k < PAGE_SIZE; k++)
            page->stored[k] = page->copy[k] != page->base[k];
    }
}

/*
 * The shadow once more, to where the unit stopped: it may have stopped earlier, or have seen what a
 * device wrote meanwhile. False: a divergence.
 */
static bool repeat(struct lockstep *l, const struct x86_unit *unit, enum lockstep_end end,
                   enum difference *difference)
{
    struct engine_vcpu *vcpu = l->vcpu;
    const struct x86_state *target = end == LOCKSTEP_OK ? &vcpu->cpu.s : NULL;
    enum lockstep_end shadow = LOCKSTEP_ABANDONED;

    note_first_pass(l);
    l->phase = LOCKSTEP_REPEAT;
    for (unsigned i = 0; i < REPEATS; i++) {
        lockstep_shadow_rebase(l);
        shadow = lockstep_shadow_run(l, unit, target);
        if (shadow == LOCKSTEP_ABANDONED)
            break;
        *difference = compare(l, end, shadow);
        if (*difference != DIFFERENT)
            return true;
    }
    /* The code may have changed under the unit; that it is told of before its next unit. */
    if (atomic_load(&vcpu->posted))
        return true;
    if (l->attempts + 1 == ATTEMPTS)
        lockstep_report(l, unit, end, shadow);
    return false;
}

/* Takes back what the unit did to this page. */
static void undo_page(struct lockstep *l, const struct shadow_page *page)
{
    for (unsigned k = 0; k < PAGE_SIZE; k++) {
        if (!page->stored[k] || page->host[k] == page->original[k])
            continue;
        page->host[k] = page->original[k];
        soft_store_end(l->vcpu, gpa(page->gpa + k), 1);
    }
}

/*
 * A device may have written twice, behind the first pass and behind the unit. So all begins
 * anew, at the dispatcher. False: often enough.
 */
static bool undo(struct lockstep *l)
{
    if (++l->attempts == ATTEMPTS)
        return false;
    for (unsigned i = 0; i < l->page_count; i++)
        undo_page(l, &l->page[i]);
    x86_cpu_set_state(&l->vcpu->cpu, &l->before);
    return true;
}

/* A store that goes astray inside a page looks like a device's, but does so each time. */
static bool is_accused(struct lockstep *l, enum difference difference)
{
    struct lockstep_suspect *suspect =
        &l->suspect[(l->before.rip ^ l->before.rip >> 6) % LOCKSTEP_SUSPECTS];

    if (difference != FOREIGN || suspect->rip != l->before.rip)
        suspect->times = 0;
    if (difference != FOREIGN)
        return false;
    suspect->rip = l->before.rip;
    return ++suspect->times > FOREIGN_MAX;
}

static void diverge(struct lockstep *l)
{
    soft_count(&l->divergences, 1);
    l->diverged = true;
    snprintf(l->text, sizeof l->text,
             "lockstep: translated code at RIP 0x%llx did something else than the interpreter",
             (unsigned long long)l->before.rip);
    soft_wake(l->vcpu); /* have it looked at */
}

bool lockstep_failed(const struct lockstep *l, struct vm_exit *exit)
{
    if (!l || !l->diverged)
        return false;
    exit->kind = VM_EXIT_ERROR;
    exit->error.error = -EIO;
    snprintf(exit->error.text, sizeof exit->error.text, "%s", l->text);
    return true;
}

/* --- one unit --- */

/* The unit has run; true: as the interpreter would have. False: see undo. */
static bool check(struct lockstep *l, const struct x86_unit *unit, enum lockstep_end end,
                  enum lockstep_end shadow)
{
    enum difference difference = compare(l, end, shadow);

    if (unlikely(difference == DIFFERENT)) {
        soft_count(&l->retries, 1);
        if (!repeat(l, unit, end, &difference))
            return false;
    }
    if (unlikely(is_accused(l, difference))) {
        lockstep_report(l, unit, end, shadow);
        l->attempts = ATTEMPTS - 1;
        return false;
    }
    l->attempts = 0;
    soft_count(&l->units, 1);
    soft_count(&l->instructions, l->done);
    return true;
}

static void begin_section(struct engine_vcpu *vcpu)
{
    if (vcpu->vm->vcpu_count > 1)
        soft_x86_ops.exclusive_begin(vcpu);
}

static void end_sections(struct engine_vcpu *vcpu)
{
    while (vcpu->exclusive_depth)
        soft_x86_ops.exclusive_end(vcpu);
}

static bool run_unchecked(struct lockstep *l, const struct x86_unit *unit)
{
    end_sections(l->vcpu);
    soft_count(&l->unchecked, unit->count);
    soft_count(&l->vcpu->instructions, unit->count);
    lockstep_interpret(l->vcpu, unit);
    return true;
}

bool lockstep_run(struct engine_vcpu *vcpu, const struct x86_unit *unit)
{
    struct lockstep *l = vcpu->lockstep;

    if (l->diverged)
        return false;
    begin_section(vcpu);
    if (atomic_load(&vcpu->posted)) { /* while this waited for the others */
        end_sections(vcpu);
        return false;
    }
    vcpu->cpu.end_block = false; /* what set it has ended */
    memcpy(&l->before, &vcpu->cpu.s, sizeof l->before);
    l->phase = LOCKSTEP_RECORD;
    enum lockstep_end shadow = lockstep_shadow_run(l, unit, NULL);
    if (shadow == LOCKSTEP_ABANDONED) {
        l->phase = LOCKSTEP_IDLE;
        return run_unchecked(l, unit);
    }
    enum lockstep_end end = run_unit(l, unit);
    bool ok = check(l, unit, end, shadow), again = !ok && undo(l);
    l->phase = LOCKSTEP_IDLE;
    end_sections(vcpu);
    if (again)
        return true;
    if (!ok) {
        diverge(l);
        return false;
    }
    if (end == LOCKSTEP_FAULT)
        longjmp(*vcpu->cpu.unwind, 1);
    soft_count(&vcpu->instructions, l->done);
    return true;
}

void lockstep_counters(const struct lockstep *l, struct engine_lockstep_counters *out)
{
    *out = (struct engine_lockstep_counters) {0};
    if (!l)
        return;
    out->units = l->units;
    out->instructions = l->instructions;
    out->unchecked = l->unchecked;
    out->retries = l->retries;
    out->divergences = l->divergences;
}
