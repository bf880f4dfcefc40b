/*
 * Segment descriptors and gates as they lie in the GDT, LDT and IDT. SDM vol. 3
 * sections 3.4.5, 3.5, 5.8.3, 6.11, 6.14.1, 7.2.
 */
#ifndef PARAT_X86_DESCRIPTOR_H
#define PARAT_X86_DESCRIPTOR_H

#include "x86/cpu.h"

/* System types (S clear), SDM vol. 3 table 3-2 */
enum x86_system_type {
    X86_TYPE_TSS16 = 1,
    X86_TYPE_LDT = 2,
    X86_TYPE_TSS16_BUSY = 3,
    X86_TYPE_CALL_GATE16 = 4,
    X86_TYPE_TASK_GATE = 5,
    X86_TYPE_INTERRUPT_GATE16 = 6,
    X86_TYPE_TRAP_GATE16 = 7,
    X86_TYPE_TSS = 9, /* 32-bit, in long mode 64-bit; so are the next */
    X86_TYPE_TSS_BUSY = 11,
    X86_TYPE_CALL_GATE = 12,
    X86_TYPE_INTERRUPT_GATE = 14,
    X86_TYPE_TRAP_GATE = 15,
};

struct x86_descriptor {
    uint64_t la; /* where it lies */
    uint32_t low, high;
    uint32_t upper, upper_high; /* of the 16-byte system descriptors of long mode, else zero */
};

#define X86_SELECTOR_RPL  3u
#define X86_SELECTOR_TI   4u
#define X86_SELECTOR_MASK 0xfffcu /* as an error code carries it */

static inline bool x86_selector_is_null(uint16_t selector)
{
    return !(selector & X86_SELECTOR_MASK);
}

static inline uint16_t x86_descriptor_attr(const struct x86_descriptor *d)
{
    return (uint16_t)(d->high >> 8 & 0xf0ff);
}

static inline unsigned x86_descriptor_type(const struct x86_descriptor *d)
{
    return d->high >> 8 & 0xf;
}

static inline unsigned x86_descriptor_dpl(const struct x86_descriptor *d)
{
    return d->high >> 13 & 3;
}

static inline bool x86_descriptor_is_code(const struct x86_descriptor *d)
{
    return (d->high >> 8 & (X86_SEG_S | X86_SEG_CODE)) == (X86_SEG_S | X86_SEG_CODE);
}

static inline bool x86_descriptor_is_writable_data(const struct x86_descriptor *d)
{
    return (d->high >> 8 & (X86_SEG_S | X86_SEG_CODE | X86_SEG_WRITABLE)) ==
           (X86_SEG_S | X86_SEG_WRITABLE);
}

static inline bool x86_descriptor_is_conforming(const struct x86_descriptor *d)
{
    return x86_descriptor_is_code(d) && (d->high >> 8 & X86_SEG_CONFORMING);
}

static inline bool x86_descriptor_has(const struct x86_descriptor *d, uint16_t attr)
{
    return x86_descriptor_attr(d) & attr;
}

/* Gates */
static inline uint16_t x86_gate_selector(const struct x86_descriptor *d)
{
    return (uint16_t)(d->low >> 16);
}

static inline uint64_t x86_gate_offset(const struct x86_descriptor *d)
{
    return (uint64_t)d->upper << 32 | (d->high & 0xffff0000) | (d->low & 0xffff);
}

static inline uint32_t x86_descriptor_limit(const struct x86_descriptor *d)
{
    uint32_t limit = (d->high & 0xf0000) | (d->low & 0xffff);
    return d->high & BIT(23) ? limit << 12 | 0xfff : limit;
}

static inline uint64_t x86_descriptor_base(const struct x86_descriptor *d)
{
    return (uint64_t)d->upper << 32 | (d->high & 0xff000000) | (d->high & 0xff) << 16 |
           d->low >> 16;
}

/*
 * Reads the descriptor that a selector names. False when it lies outside its table (the caller
 * raises what its instruction raises); page faults are raised.
 */
bool x86_descriptor_read(struct x86_cpu *cpu, uint16_t selector, struct x86_descriptor *out);

/* The hidden part for a segment register. */
static inline void x86_descriptor_to_segment(const struct x86_descriptor *d, uint16_t selector,
                                             struct x86_segment *out)
{
    *out = (struct x86_segment) {.base = x86_descriptor_base(d),
                                 .limit = x86_descriptor_limit(d),
                                 .selector = selector,
                                 .attr = x86_descriptor_attr(d)};
}

/* Sets (or clears) type bits in memory, atomically: accessed, busy. Nothing when they are so. */
void x86_descriptor_mark(struct x86_cpu *cpu, struct x86_descriptor *d, uint16_t bits, bool on);

/* Raises with the selector as error code. */
_Noreturn void x86_raise_selector(struct x86_cpu *cpu, enum x86_vector vector, uint16_t selector);

#endif
