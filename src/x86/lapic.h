/*
 * The local APIC: registers as xAPIC (MMIO page) and x2APIC (MSRs), timer, priorities, and what a
 * CPU sends to others. SDM vol. 3 chapter 11 "Advanced Programmable Interrupt Controller". Pure:
 * time and the way to other APICs are callbacks.
 *
 * Threads: one vCPU thread owns it. What others do is accept messages (x86_lapic_matches, _accept):
 * that touches only the members under "shared", which are atomic; the caller wakes the owner.
 */
#ifndef PARAT_X86_LAPIC_H
#define PARAT_X86_LAPIC_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/bits.h"
#include "x86/state.h"

/* Index into x86_lapic_state.lvt; the last place there (CMCI) is not implemented. */
enum x86_lapic_lvt {
    X86_LVT_TIMER,
    X86_LVT_THERMAL,
    X86_LVT_PERF,
    X86_LVT_LINT0,
    X86_LVT_LINT1,
    X86_LVT_ERROR,
    X86_LVT_COUNT
};

/* Registers that an engine looks at: offset / 16 in the xAPIC page, MSR - 0x800. */
enum x86_lapic_register {
    X86_APIC_TPR = 0x08,
    X86_APIC_EOI = 0x0b,
    X86_APIC_ICR = 0x30,
    X86_APIC_ICR_HIGH = 0x31,
    X86_APIC_SELF_IPI = 0x3f,
};

/* Delivery modes of messages and LVT entries. SDM vol. 3 section 11.5.1. */
enum x86_delivery {
    X86_DELIVER_FIXED = 0,
    X86_DELIVER_LOWEST = 1,
    X86_DELIVER_SMI = 2,
    X86_DELIVER_NMI = 4,
    X86_DELIVER_INIT = 5,
    X86_DELIVER_SIPI = 6,
    X86_DELIVER_EXTINT = 7,
};

enum x86_shorthand { X86_TO_DESTINATION, X86_TO_SELF, X86_TO_ALL, X86_TO_OTHERS };

#define X86_LAPIC_BROADCAST 0xffffffffu /* physical or logical destination: everybody */

/* An interrupt on the way to one or more local APICs. */
struct x86_lapic_message {
    uint32_t destination;
    uint8_t delivery; /* enum x86_delivery */
    uint8_t vector;
    uint8_t shorthand; /* enum x86_shorthand */
    bool logical;
    bool level; /* level-triggered: its EOI is broadcast */
};

struct x86_lapic_ops {
    uint64_t (*now_ns)(void *context);              /* VM time */
    uint64_t (*tsc_at)(void *context, uint64_t ns); /* the guest's TSC at that VM time */
    /* The message goes to all matching APICs, this one included where it matches. */
    void (*send)(void *context, const struct x86_lapic_message *message);
    void (*eoi)(void *context, uint8_t vector); /* end of a level-triggered interrupt */
};

struct x86_lapic_config {
    const struct x86_lapic_ops *ops;
    void *context;
    uint32_t id;
    uint64_t tsc_hz;
    bool has_x2apic, has_deadline;
};

/* In `signals` */
#define X86_LAPIC_NMI  1u
#define X86_LAPIC_INIT 2u
#define X86_LAPIC_SIPI 4u /* with the vector in bits 8-15 */

struct x86_lapic {
    struct x86_lapic_config config;

    uint64_t base; /* IA32_APIC_BASE */
    uint32_t tpr, svr, esr;
    uint64_t icr;
    uint32_t lvt[X86_LVT_COUNT];
    uint32_t timer_initial, timer_divide;
    uint64_t timer_expiry_ns; /* one-shot and periodic; UINT64_MAX: not running */
    uint64_t tsc_deadline;    /* 0: not armed */
    uint64_t deadline_ns;     /* VM time of tsc_deadline, UINT64_MAX: not armed; derived */
    uint32_t isr[8];
    uint32_t errors_seen; /* of `errors`, those that had their LVT interrupt */

    /* shared */
    _Atomic uint32_t irr[8], tmr[8];
    _Atomic uint32_t signals; /* X86_LAPIC_NMI… */
    _Atomic uint32_t errors;  /* since the last write to ESR */
    _Atomic uint32_t id, ldr, dfr;
    _Atomic bool enabled;  /* globally */
    _Atomic bool x2apic;   /* mode */
    _Atomic bool software; /* enabled by SVR: takes fixed interrupts */
};

/* The state after power-on; engines and x86_state_reset use the same. SDM section 11.4.7.1. */
void x86_lapic_state_reset(struct x86_lapic_state *state, uint32_t id);

void x86_lapic_create(struct x86_lapic *lapic, const struct x86_lapic_config *config);
/* After INIT: all registers but ID and base. Pending signals stay. */
void x86_lapic_init(struct x86_lapic *lapic);
void x86_lapic_set_state(struct x86_lapic *lapic, const struct x86_lapic_state *state,
                         uint64_t apic_base, uint64_t tsc_deadline);
void x86_lapic_get_state(struct x86_lapic *lapic, struct x86_lapic_state *out);

/* --- owner --- */

/* WRMSR IA32_APIC_BASE; false: #GP. lapic->base has the result. */
bool x86_lapic_write_base(struct x86_lapic *lapic, uint64_t value, unsigned address_bits);
/* Accesses to the xAPIC page, offset 0 to 4095. What is not 32 bits and aligned by 16 reads as 0.
 */
uint64_t x86_lapic_mmio_read(struct x86_lapic *lapic, unsigned offset, unsigned size);
void x86_lapic_mmio_write(struct x86_lapic *lapic, unsigned offset, unsigned size, uint64_t value);
/* MSRs 0x800 to 0x8ff; false: #GP. */
bool x86_lapic_msr_read(struct x86_lapic *lapic, uint32_t index, uint64_t *value);
bool x86_lapic_msr_write(struct x86_lapic *lapic, uint32_t index, uint64_t value);
uint64_t x86_lapic_read_cr8(const struct x86_lapic *lapic);
void x86_lapic_write_cr8(struct x86_lapic *lapic, uint64_t value);
uint64_t x86_lapic_read_deadline(const struct x86_lapic *lapic);
void x86_lapic_write_deadline(struct x86_lapic *lapic, uint64_t tsc);
/* The guest's TSC was set, or its frequency. */
void x86_lapic_tsc_changed(struct x86_lapic *lapic);

/* Raises what became due: the timer's when that is to be looked at, errors. */
void x86_lapic_poll(struct x86_lapic *lapic, bool timer);
/* VM time at which poll has something to do next; UINT64_MAX: never. */
uint64_t x86_lapic_next_ns(struct x86_lapic *lapic);

/* The vector that would be taken now, by priority; -1: none. Does not look at RFLAGS.IF. */
int x86_lapic_pending(struct x86_lapic *lapic);
/* Moves the pending vector into service. */
void x86_lapic_acknowledge(struct x86_lapic *lapic, uint8_t vector);
/* Does an interrupt on the 8259's line reach the CPU as such (LINT0 as ExtINT, or APIC off)? */
bool x86_lapic_takes_extint(const struct x86_lapic *lapic);
/* An edge on LINT0 or LINT1 (pin 0, 1) whose entry is not ExtINT. */
void x86_lapic_pulse_lint(struct x86_lapic *lapic, unsigned pin);

/* --- any thread --- */

/* Is it one of the message's destinations? Not for shorthands. SDM section 11.6.2. */
bool x86_lapic_matches(struct x86_lapic *lapic, const struct x86_lapic_message *message);
/* Takes a message. True: the owner has something to look at. */
bool x86_lapic_accept(struct x86_lapic *lapic, const struct x86_lapic_message *message);
/* A message-signalled interrupt's address and data. SDM section 11.11. */
struct x86_lapic_message x86_lapic_decode_msi(uint64_t address, uint32_t data);

#endif
