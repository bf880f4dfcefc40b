/*
 * Descriptors: reading them from the GDT or LDT, their hidden parts, their accessed and busy bits.
 * Runs on the CPU's thread. SDM vol. 3 sections 3.4.5, 3.5.
 */
#include "x86/descriptor.h"

#include "x86/mem.h"

bool x86_descriptor_read(struct x86_cpu *cpu, uint16_t selector, struct x86_descriptor *out)
{
    uint64_t base = cpu->s.gdtr.base;
    uint32_t limit = cpu->s.gdtr.limit, offset = selector & ~7u;

    if (selector & X86_SELECTOR_TI) {
        if (!(cpu->s.ldtr.attr & X86_SEG_P))
            return false;
        base = cpu->s.ldtr.base;
        limit = cpu->s.ldtr.limit;
    }
    if (offset + 7 > limit)
        return false;
    *out = (struct x86_descriptor) {.la = base + offset};
    uint64_t value = x86_system_load(cpu, out->la, 8);
    out->low = (uint32_t)value;
    out->high = (uint32_t)(value >> 32);
    if (!cpu->long_mode || x86_descriptor_has(out, X86_SEG_S))
        return true;
    if (offset + 15 > limit)
        return false;
    value = x86_system_load(cpu, out->la + 8, 8);
    out->upper = (uint32_t)value;
    out->upper_high = (uint32_t)(value >> 32);
    return true;
}

void x86_descriptor_mark(struct x86_cpu *cpu, struct x86_descriptor *d, uint16_t bits, bool on)
{
    uint32_t mask = (uint32_t)bits << 8;

    for (;;) {
        uint32_t value = on ? d->high | mask : d->high & ~mask;
        if (value == d->high)
            return;
        bool done = x86_system_compare_swap(cpu, d->la + 4, d->high, value);
        d->high = done ? value : (uint32_t)x86_system_load(cpu, d->la + 4, 4);
        if (done)
            return;
    }
}

void x86_raise_selector(struct x86_cpu *cpu, enum x86_vector vector, uint16_t selector)
{
    x86_raise_error(cpu, vector, selector & X86_SELECTOR_MASK);
}
