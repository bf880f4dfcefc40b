/*
 * The portable vCPU state: all that a guest can observe of one CPU between two instructions. Every
 * engine converts to and from it; it is what is saved. No I/O is in flight in it.
 *
 * Normalisation (two states that differ only in this are equal): FIP/FDP/FOP of x87 when no
 * unmasked exception is pending; timer deadlines to the nanosecond; hidden parts of unusable
 * segments; the upper halves of SYSENTER_ESP and _EIP, which AMD's CPUs do not have.
 */
#ifndef PARAT_X86_STATE_H
#define PARAT_X86_STATE_H

#include <stdbool.h>
#include <stdint.h>

#include "x86/defs.h"

struct x86_segment {
    uint64_t base;
    uint32_t limit; /* in bytes, granularity applied */
    uint16_t selector;
    uint16_t attr; /* X86_SEG_*: descriptor bits 40-47 and 52-55; 0: unusable (null) */
};

struct x86_table_register { /* GDTR, IDTR */
    uint64_t base;
    uint16_t limit;
};

/* x87 and vector registers; x86_xsave_* (xsave.h) converts to and from an XSAVE image. */
struct x86_fpu {
    _Alignas(32) uint8_t ymm[16][32];
    uint8_t st[8][16]; /* ST(0) to ST(7), 80 bits each, the rest zero */
    uint16_t fcw, fsw;
    uint8_t ftw; /* abridged as in FXSAVE: bit i set: physical register i is not empty */
    uint16_t fop, fcs, fds;
    uint64_t fip, fdp;
    uint32_t mxcsr;
};

/* An exception or interrupt on its way to the guest. */
enum x86_event_kind {
    X86_EVENT_NONE,
    X86_EVENT_INTERRUPT, /* external */
    X86_EVENT_NMI,
    X86_EVENT_EXCEPTION,
    X86_EVENT_SOFT_INTERRUPT,            /* INT n */
    X86_EVENT_SOFT_EXCEPTION,            /* INT3, INTO */
    X86_EVENT_PRIVILEGED_SOFT_EXCEPTION, /* INT1 */
};

struct x86_event {
    uint8_t kind; /* enum x86_event_kind */
    uint8_t vector;
    bool has_error;
    bool has_payload;
    uint32_t error;
    uint64_t payload; /* #PF: CR2; #DB: bits to set in DR6. Not applied before delivery. */
};

enum x86_mp_state {
    X86_MP_RUNNABLE,
    X86_MP_HALTED,
    X86_MP_WAIT_SIPI, /* after INIT */
    X86_MP_SHUTDOWN,
};

struct x86_lapic_state {
    uint32_t id; /* xAPIC: bits 31-24 of the register are id */
    uint32_t tpr, ldr, dfr, svr, esr, esr_latched;
    uint64_t icr;
    uint32_t lvt[7]; /* enum x86_lapic_lvt */
    uint32_t timer_initial, timer_divide;
    uint64_t timer_expiry_ns; /* VM time of the next expiry; UINT64_MAX: not running */
    uint32_t isr[8], irr[8], tmr[8];
    bool nmi_pending, init_pending, sipi_pending;
    uint8_t sipi_vector;
};

struct x86_state {
    uint64_t gpr[16]; /* enum x86_gpr */
    uint64_t rip;
    uint64_t rflags;

    struct x86_segment seg[6]; /* enum x86_seg */
    struct x86_segment ldtr, tr;
    struct x86_table_register gdtr, idtr;

    uint64_t cr0, cr2, cr3, cr4, xcr0;
    uint64_t pdptr[4]; /* as loaded by MOV CR3 in PAE mode */
    uint64_t dr[4], dr6, dr7;

    /* MSRs */
    uint64_t efer;
    uint64_t star, lstar, cstar, sfmask, kernel_gs_base;
    uint64_t sysenter_cs, sysenter_esp, sysenter_eip;
    uint64_t tsc_aux, pat, apic_base, misc_enable, xss, spec_ctrl;
    uint64_t tsc_offset; /* TSC = VM clock in TSC ticks + this (WRMSR TSC, TSC_ADJUST) */
    uint64_t tsc_adjust;
    uint64_t tsc_deadline; /* 0: not armed */
    uint64_t mtrr_def_type, mtrr_fixed[11], mtrr_base[8], mtrr_mask[8];
    uint64_t kvmclock_system_time, kvmclock_wall_clock; /* as written by the guest */
    uint64_t debug_ctl;
    uint64_t mcg_status;

    struct x86_fpu fpu;
    struct x86_lapic_state lapic;

    struct x86_event pending; /* exception that was raised and not yet delivered */
    uint8_t mp_state;         /* enum x86_mp_state */
    bool interrupt_shadow;    /* after STI or MOV SS: the next instruction takes no interrupt */
    bool shadow_is_mov_ss;    /* ... nor a debug trap */
    bool nmi_blocked;         /* until IRET */
};

/* The state after power-on (INIT keeps some: x86_state_init). SDM vol. 3 table 10-1. */
void x86_state_reset(struct x86_state *state, uint32_t apic_id, bool is_bsp);
/* After an INIT signal: like reset, but for TSC, MTRRs, x87/SSE, CR0.CD/NW, PAT, APIC id and base.
 */
void x86_state_init(struct x86_state *state);

/*
 * Checks that a state from a file is one a CPU can be in (canonical addresses, reserved bits,
 * EFER/CR0/CR4 in step, attributes of segments). NULL, or what is wrong with it.
 */
const char *x86_state_validate(const struct x86_state *state);

/* Equal after normalisation; otherwise *what names the first field that differs. */
bool x86_state_equal(const struct x86_state *a, const struct x86_state *b, const char **what);

#endif
