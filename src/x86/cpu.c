/*
 * The working CPU: creation, state in and out, what is derived from the state, raising exceptions.
 * Runs on the thread that owns the CPU. SDM vol. 3 chapters 2 (modes), 3.4.5 (descriptors), 5.
 */
#include "x86/cpu.h"

#include "x86/mem.h"
#include "x86/tlb.h"

void x86_cpu_init(struct x86_cpu *cpu, const struct x86_cpu_config *config)
{
    memset(cpu, 0, sizeof *cpu);
    cpu->ops = config->ops;
    cpu->context = config->context;
    cpu->decoder = config->decoder;
    cpu->cpuid = config->cpuid;
    cpu->features = &config->cpuid->features;
    cpu->stubs = config->stubs;
    x86_tlb_init(cpu);
    x86_state_reset(&cpu->s, config->apic_id, config->is_bsp);
    cpu->next_rip = cpu->s.rip;
    x86_cpu_update_mode(cpu);
}

void x86_cpu_set_state(struct x86_cpu *cpu, const struct x86_state *state)
{
    cpu->s = *state;
    cpu->next_rip = cpu->s.rip;
    cpu->halted = cpu->s.mp_state == X86_MP_HALTED;
    cpu->end_block = true;
    cpu->debug_hits = 0;
    x86_tlb_flush(cpu, false);
    x86_cpu_update_mode(cpu);
}

void x86_cpu_get_state(const struct x86_cpu *cpu, struct x86_state *out)
{
    *out = cpu->s;
}

/*
 * Does an access through this segment need no check at all? Only then when the limit covers 4 GiB
 * and the type allows it (SDM vol. 3 section 5.3, 5.5).
 */
static bool segment_is_flat(const struct x86_segment *seg, bool write)
{
    if (seg->limit != UINT32_MAX ||
        (seg->attr & (X86_SEG_P | X86_SEG_S)) != (X86_SEG_P | X86_SEG_S))
        return false;
    if (seg->attr & X86_SEG_CODE)
        return !write && (seg->attr & X86_SEG_READABLE);
    return !(seg->attr & X86_SEG_EXPAND_DOWN) && (!write || (seg->attr & X86_SEG_WRITABLE));
}

static void update_segments(struct x86_cpu *cpu)
{
    cpu->flat_read = cpu->flat_write = 0;
    for (unsigned i = 0; i < 6; i++) {
        const struct x86_segment *seg = &cpu->s.seg[i];
        cpu->seg_base[i] = seg->base;
        if (segment_is_flat(seg, false))
            cpu->flat_read |= (uint8_t)(1u << i);
        if (segment_is_flat(seg, true))
            cpu->flat_write |= (uint8_t)(1u << i);
    }
    if (cpu->code_size != 8)
        return;
    cpu->flat_read = cpu->flat_write = 0x3f;
    for (unsigned i = X86_ES; i <= X86_DS; i++)
        cpu->seg_base[i] = 0;
}

/* SDM vol. 3 section 4.6 */
enum x86_mmu x86_mmu_at(const struct x86_cpu *cpu, unsigned cpl)
{
    if (cpl == 3)
        return X86_MMU_USER;
    return (cpu->s.cr4 & X86_CR4_SMAP) && !(cpu->s.rflags & X86_AC) ? X86_MMU_KERNEL
                                                                    : X86_MMU_KERNEL_USER;
}

/* Alignment is checked at CPL 3 only: SDM vol. 3 section 2.5 (CR0.AM). */
static uint8_t data_mmu(const struct x86_cpu *cpu)
{
    bool checked = cpu->cpl == 3 && (cpu->s.rflags & X86_AC) && (cpu->s.cr0 & X86_CR0_AM);
    return (uint8_t)(checked ? X86_MMU_ALIGNED : x86_mmu_at(cpu, cpu->cpl));
}

static void update_data_mmu(struct x86_cpu *cpu)
{
    cpu->mmu = data_mmu(cpu);
    cpu->tlb_now = cpu->tlb[cpu->mmu];
    cpu->debug_active = (cpu->s.rflags & (X86_TF | X86_RF)) || (cpu->s.dr7 & 0xff);
}

static uint8_t level_of(uint16_t ss)
{
    return (uint8_t)((ss & X86_SEG_DPL) >> X86_SEG_DPL_SHIFT);
}

void x86_cpu_update_level(struct x86_cpu *cpu)
{
    cpu->cpl = level_of(cpu->s.seg[X86_SS].attr);
    update_data_mmu(cpu);
}

void x86_cpu_update_mode(struct x86_cpu *cpu)
{
    const struct x86_state *s = &cpu->s;
    uint16_t cs = s->seg[X86_CS].attr, ss = s->seg[X86_SS].attr;

    cpu->protected_mode = s->cr0 & X86_CR0_PE;
    cpu->v86 = cpu->protected_mode && (s->rflags & X86_VM);
    cpu->long_mode = s->efer & X86_EFER_LMA;
    cpu->cpl = !cpu->protected_mode ? 0 : cpu->v86 ? 3 : level_of(ss);
    cpu->code_size = cpu->long_mode && (cs & X86_SEG_L) ? 8 : cs & X86_SEG_DB ? 4 : 2;
    cpu->stack_size = cpu->code_size == 8 ? 8 : ss & X86_SEG_DB ? 4 : 2;
    cpu->decode_mode.code_size = cpu->code_size;
    cpu->decode_mode.real_or_v86 = !cpu->protected_mode || cpu->v86;
    update_data_mmu(cpu);
    update_segments(cpu);
}

void x86_raise_event(struct x86_cpu *cpu, const struct x86_event *event)
{
    cpu->fault = *event;
    longjmp(*cpu->unwind, 1);
}

void x86_raise(struct x86_cpu *cpu, enum x86_vector vector)
{
    x86_raise_event(cpu,
                    &(struct x86_event) {.kind = X86_EVENT_EXCEPTION, .vector = (uint8_t)vector});
}

void x86_raise_error(struct x86_cpu *cpu, enum x86_vector vector, uint32_t error)
{
    x86_raise_event(cpu, &(struct x86_event) {.kind = X86_EVENT_EXCEPTION,
                                              .vector = (uint8_t)vector,
                                              .has_error = true,
                                              .error = error});
}

void x86_raise_page_fault(struct x86_cpu *cpu, uint64_t la, uint32_t error)
{
    x86_raise_event(cpu, &(struct x86_event) {.kind = X86_EVENT_EXCEPTION,
                                              .vector = X86_PF_FAULT,
                                              .has_error = true,
                                              .has_payload = true,
                                              .error = error,
                                              .payload = la});
}
