/* What the modules of lockstep share; see lockstep.h. */
#ifndef PARAT_ENGINE_SOFT_LOCKSTEP_INT_H
#define PARAT_ENGINE_SOFT_LOCKSTEP_INT_H

#include <setjmp.h>

#include "base/addr.h"
#include "engine/soft/lockstep.h"
#include "engine/soft/soft_int.h"
#include "x86/cpu.h"

/* Enough for the stores of a unit with a string instruction; one with more is unchecked. */
#define LOCKSTEP_PAGES_MAX  256
#define LOCKSTEP_VALUES_MAX 256

/* A page that the shadow has written to. */
struct shadow_page {
    uint64_t gpa;
    uint8_t *host;               /* the guest's */
    uint8_t original[PAGE_SIZE]; /* before the unit */
    uint8_t base[PAGE_SIZE];     /* what this pass began with */
    uint8_t copy[PAGE_SIZE];     /* what the shadow sees */
    bool stored[PAGE_SIZE]; /* bytes that a pass has stored to; the first one's by their change */
};

/* Something that is different each time it is asked. */
struct shadow_value {
    enum { VALUE_TSC, VALUE_RANDOM, VALUE_MSR, VALUE_CR8, VALUE_APIC } kind;
    bool ok;
    uint32_t index; /* of the MSR, of the APIC's register */
    uint64_t value;
};

/* How a stretch of instructions ended. */
enum lockstep_end {
    LOCKSTEP_OK,
    LOCKSTEP_FAULT,     /* cpu->fault */
    LOCKSTEP_ABANDONED, /* the shadow cannot go on: a device */
};

/* A unit that was followed by changes in memory that it did not make. */
struct lockstep_suspect {
    uint64_t rip;
    unsigned times;
};
#define LOCKSTEP_SUSPECTS 64

struct lockstep {
    struct x86_cpu shadow;
    struct engine_vcpu *vcpu;
    lockstep_unit *run;
    struct x86_ops ops; /* the vCPU's: those of the engine, with what is recorded given again */

    struct x86_state before; /* the unit */
    enum { LOCKSTEP_IDLE, LOCKSTEP_RECORD, LOCKSTEP_UNIT, LOCKSTEP_REPEAT } phase;
    jmp_buf abandon;
    unsigned done;        /* instructions that the shadow has completed */
    uint64_t string_left; /* bytes for the string instruction at hand */
    uint64_t own_flushes; /* shadow.tlb_flushes, without those by the guest */
    bool fresh;           /* each instruction is fetched and decoded again */

    struct shadow_page *page;
    unsigned page_count;
    struct shadow_value value[LOCKSTEP_VALUES_MAX];
    unsigned value_count, value_next;

    unsigned attempts; /* at this unit, undone */
    struct lockstep_suspect suspect[LOCKSTEP_SUSPECTS];
    bool diverged;
    char text[160];
    _Atomic uint64_t units, instructions, unchecked, retries, divergences;
};

/* --- lockstep_shadow.c --- */

extern const struct x86_ops lockstep_shadow_ops;
/*
 * Interprets the unit from `before` on: to its end, or (target not NULL) until it stands where
 * target does. LOCKSTEP_REPEAT keeps the pages of the first pass.
 */
enum lockstep_end lockstep_shadow_run(struct lockstep *l, const struct x86_unit *unit,
                                      const struct x86_state *target);
/* The vCPU's side of what is recorded: sets l->ops. */
void lockstep_shadow_wrap(struct lockstep *l);
/* The pages as they are now without what shadow and unit stored, for another pass. */
void lockstep_shadow_rebase(struct lockstep *l);

/* --- lockstep_report.c --- */

/* Logs what differs. */
void lockstep_report(struct lockstep *l, const struct x86_unit *unit, enum lockstep_end end,
                     enum lockstep_end shadow);

#endif
