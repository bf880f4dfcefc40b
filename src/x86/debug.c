/*
 * Debug exceptions: single-step, DR0-DR3, general detect's friends. Runs on the CPU's thread, by
 * single instructions. SDM vol. 3 sections 18.2 (registers), 18.3 (exceptions); 6.8.3 (MOV SS).
 * BTF (DEBUGCTL) is not offered.
 */
#include "x86/debug.h"

#include "x86/mem.h"

#define DR6_BS BIT(14)

enum breakpoint_type { BP_EXEC, BP_WRITE, BP_IO, BP_ACCESS };

static bool enabled(const struct x86_cpu *cpu, unsigned n)
{
    return cpu->s.dr7 >> (n * 2) & 3;
}

static enum breakpoint_type type_of(const struct x86_cpu *cpu, unsigned n)
{
    return (enum breakpoint_type)(cpu->s.dr7 >> (16 + n * 4) & 3);
}

/* LEN: 1, 2, 8, 4 bytes; the address is aligned down to it. */
static unsigned length_of(const struct x86_cpu *cpu, unsigned n)
{
    static const uint8_t lengths[] = {1, 2, 8, 4};
    return lengths[cpu->s.dr7 >> (18 + n * 4) & 3];
}

static bool overlaps(const struct x86_cpu *cpu, unsigned n, uint64_t at, unsigned size)
{
    unsigned length = length_of(cpu, n);
    return ranges_overlap(cpu->s.dr[n] & ~(uint64_t)(length - 1), length, at, size);
}

bool x86_debug_watches(const struct x86_cpu *cpu, uint64_t la)
{
    if (likely(!(cpu->s.dr7 & 0xff)))
        return false;
    for (unsigned n = 0; n < 4; n++) {
        enum breakpoint_type type = type_of(cpu, n);
        if (enabled(cpu, n) && (type == BP_WRITE || type == BP_ACCESS) &&
            (cpu->s.dr[n] & PAGE_MASK) == (la & PAGE_MASK))
            return true;
    }
    return false;
}

void x86_debug_access(struct x86_cpu *cpu, uint64_t la, unsigned size, bool write)
{
    for (unsigned n = 0; n < 4; n++) {
        enum breakpoint_type type = type_of(cpu, n);
        if (enabled(cpu, n) && (type == BP_ACCESS || (type == BP_WRITE && write)) &&
            overlaps(cpu, n, la, size))
            cpu->debug_hits |= BIT(n);
    }
}

void x86_debug_io(struct x86_cpu *cpu, uint16_t port, unsigned size)
{
    if (!(cpu->s.cr4 & X86_CR4_DE))
        return;
    for (unsigned n = 0; n < 4; n++) {
        if (enabled(cpu, n) && type_of(cpu, n) == BP_IO && overlaps(cpu, n, port, size))
            cpu->debug_hits |= BIT(n);
    }
}

static _Noreturn void raise_debug(struct x86_cpu *cpu, uint64_t dr6)
{
    struct x86_event event = {
        .kind = X86_EVENT_EXCEPTION, .vector = X86_DB, .has_payload = true, .payload = dr6};
    x86_raise_event(cpu, &event);
}

void x86_debug_before(struct x86_cpu *cpu)
{
    uint64_t la = cpu->s.rip + cpu->seg_base[X86_CS];
    uint64_t hits = 0;

    cpu->debug_step = cpu->s.rflags & X86_TF;
    cpu->debug_keep_rf = false;
    if ((cpu->s.rflags & X86_RF) || (cpu->s.interrupt_shadow && cpu->s.shadow_is_mov_ss))
        return;
    if (cpu->code_size != 8)
        la = (uint32_t)la;
    for (unsigned n = 0; n < 4; n++) {
        if (enabled(cpu, n) && type_of(cpu, n) == BP_EXEC && cpu->s.dr[n] == la)
            hits |= BIT(n);
    }
    if (hits)
        raise_debug(cpu, hits);
}

void x86_debug_after(struct x86_cpu *cpu)
{
    if ((cpu->s.rflags & X86_RF) && !cpu->debug_keep_rf) {
        cpu->s.rflags &= ~X86_RF;
        x86_cpu_update_mode(cpu);
    }
    if (cpu->s.interrupt_shadow && cpu->s.shadow_is_mov_ss)
        return; /* hits wait for the next instruction's end; a step here is lost */
    uint64_t dr6 = cpu->debug_hits | (cpu->debug_step ? DR6_BS : 0);
    cpu->debug_hits = 0;
    cpu->debug_step = false;
    if (dr6)
        raise_debug(cpu, dr6);
}
