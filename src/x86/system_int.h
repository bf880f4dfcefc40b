/*
 * What the modules of system instructions share: system.c binds and implements most, control.c the
 * control and debug registers, syscall.c the fast system calls.
 */
#ifndef PARAT_X86_SYSTEM_INT_H
#define PARAT_X86_SYSTEM_INT_H

#include "x86/cpu.h"
#include "x86/decode_int.h"

/* Raises #GP(0) above CPL 0. */
void x86_require_cpl0(struct x86_cpu *cpu);

/* control.c. LMSW and CLTS go the same way as MOV to CR0. Raise #GP(0). */
void x86_write_cr0(struct x86_cpu *cpu, uint64_t value);
void x86_write_cr3(struct x86_cpu *cpu, uint64_t value);
void x86_write_cr4(struct x86_cpu *cpu, uint64_t value);

/* The CR4 bits that this CPU's features allow. */
uint64_t x86_cr4_allowed(const struct x86_features *features);

bool x86_bind_fast_call(const struct x86_decode *d, struct x86_insn *out); /* syscall.c */

#endif
