/*
 * Debug exceptions: single-step and DR0-DR3. SDM vol. 3 chapter 18 "Debug". The caller uses these
 * only while cpu->debug_active is set (TF, RF or an enabled breakpoint).
 */
#ifndef PARAT_X86_DEBUG_H
#define PARAT_X86_DEBUG_H

#include "x86/cpu.h"

/* Before the instruction at s.rip is fetched: raises #DB on an instruction breakpoint. */
void x86_debug_before(struct x86_cpu *cpu);

/*
 * After an instruction completed (s.rip already behind it): ends RF, and raises the #DB trap for
 * single-step and for the data and I/O breakpoints that it hit.
 */
void x86_debug_after(struct x86_cpu *cpu);

/* A data access that took the slow path; notes hits in cpu->debug_hits. paging.c calls it. */
void x86_debug_access(struct x86_cpu *cpu, uint64_t la, unsigned size, bool write);
/* The same for a port access. */
void x86_debug_io(struct x86_cpu *cpu, uint16_t port, unsigned size);
/* True when a data breakpoint is enabled on this page: it gets no fast TLB entry. */
bool x86_debug_watches(const struct x86_cpu *cpu, uint64_t la);

#endif
