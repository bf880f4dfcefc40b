/*
 * Lockstep: each unit of translated code is checked against the interpreter. vCPU's thread.
 *
 * A second CPU, the shadow, interprets its instructions first. What it stores goes to private
 * copies of the pages, so nobody sees it: neither devices nor other vCPUs. It knows of pages what
 * the vCPU's own TLB knows, stale entries included. Then the unit runs for real, and registers,
 * faults and the pages are compared. What the shadow read that is different each time (TSC, random
 * numbers, the local APIC) is given to the unit again. An instruction that touches a device cannot
 * be executed twice: its unit is interpreted once, for real, and counted as unchecked.
 *
 * A device may have written to memory between the two runs. So the shadow repeats after a
 * difference: only one that stays is a divergence, which ends the VM. Other vCPUs stand still
 * meanwhile (exclusive section).
 *
 * For the translator this means (struct x86_translator_config, alone): a unit returns to C where it
 * ends, or earlier behind any of its instructions, and is not chained to others; it keeps all its
 * decoded instructions; it reads TSC, random numbers, MSRs and the APIC by struct x86_ops.
 */
#ifndef PARAT_ENGINE_SOFT_LOCKSTEP_H
#define PARAT_ENGINE_SOFT_LOCKSTEP_H

#include <stdbool.h>

#include "base/bits.h"
#include "base/err.h"
#include "vm/engine.h"

struct lockstep;
struct x86_unit;

/* Runs a unit; may raise. */
typedef void lockstep_unit(struct engine_vcpu *vcpu, const struct x86_unit *unit);

/* After the vCPU's CPU and translator: puts itself between the CPU and the engine's x86_ops. */
int lockstep_create(struct engine_vcpu *vcpu, struct err *err) MUST_USE;
void lockstep_destroy(struct engine_vcpu *vcpu);

/*
 * Runs the unit and checks it. May raise, as the unit does. Counts the instructions. False: nothing
 * may run now; block_loop returns, so that what is posted or a divergence is looked at.
 */
bool lockstep_run(struct engine_vcpu *vcpu, const struct x86_unit *unit);

/* A divergence was found: true, and *exit ends the VM. lockstep may be NULL. */
bool lockstep_failed(const struct lockstep *lockstep, struct vm_exit *exit);
void lockstep_counters(const struct lockstep *lockstep, struct engine_lockstep_counters *out);

/* What a unit does, by the interpreter. */
void lockstep_interpret(struct engine_vcpu *vcpu, const struct x86_unit *unit);

#endif
