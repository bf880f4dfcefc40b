/* One table of the state's members serves saving and loading. */
#include "vm/state_vcpu.h"

struct member {
    const char *name;
    uint16_t offset, size;
};

#define MEMBER(field)                                                                              \
    {                                                                                              \
#field, offsetof(struct x86_state, field), sizeof(((struct x86_state *)0)->field)          \
    }

#define SEGMENT(field)                                                                             \
    MEMBER(field.base), MEMBER(field.limit), MEMBER(field.selector), MEMBER(field.attr)

static const struct member members[] = {
    MEMBER(gpr),
    MEMBER(rip),
    MEMBER(rflags),
    SEGMENT(seg[0]),
    SEGMENT(seg[1]),
    SEGMENT(seg[2]),
    SEGMENT(seg[3]),
    SEGMENT(seg[4]),
    SEGMENT(seg[5]),
    SEGMENT(ldtr),
    SEGMENT(tr),
    MEMBER(gdtr.base),
    MEMBER(gdtr.limit),
    MEMBER(idtr.base),
    MEMBER(idtr.limit),
    MEMBER(cr0),
    MEMBER(cr2),
    MEMBER(cr3),
    MEMBER(cr4),
    MEMBER(xcr0),
    MEMBER(pdptr),
    MEMBER(dr),
    MEMBER(dr6),
    MEMBER(dr7),
    MEMBER(efer),
    MEMBER(star),
    MEMBER(lstar),
    MEMBER(cstar),
    MEMBER(sfmask),
    MEMBER(kernel_gs_base),
    MEMBER(sysenter_cs),
    MEMBER(sysenter_esp),
    MEMBER(sysenter_eip),
    MEMBER(tsc_aux),
    MEMBER(pat),
    MEMBER(apic_base),
    MEMBER(misc_enable),
    MEMBER(xss),
    MEMBER(spec_ctrl),
    MEMBER(tsc_offset),
    MEMBER(tsc_adjust),
    MEMBER(tsc_deadline),
    MEMBER(mtrr_def_type),
    MEMBER(mtrr_fixed),
    MEMBER(mtrr_base),
    MEMBER(mtrr_mask),
    MEMBER(kvmclock_system_time),
    MEMBER(kvmclock_wall_clock),
    MEMBER(debug_ctl),
    MEMBER(mcg_status),
    MEMBER(fpu.ymm),
    MEMBER(fpu.st),
    MEMBER(fpu.fcw),
    MEMBER(fpu.fsw),
    MEMBER(fpu.ftw),
    MEMBER(fpu.fop),
    MEMBER(fpu.fcs),
    MEMBER(fpu.fds),
    MEMBER(fpu.fip),
    MEMBER(fpu.fdp),
    MEMBER(fpu.mxcsr),
    MEMBER(lapic.id),
    MEMBER(lapic.tpr),
    MEMBER(lapic.ldr),
    MEMBER(lapic.dfr),
    MEMBER(lapic.svr),
    MEMBER(lapic.esr),
    MEMBER(lapic.esr_latched),
    MEMBER(lapic.icr),
    MEMBER(lapic.lvt),
    MEMBER(lapic.timer_initial),
    MEMBER(lapic.timer_divide),
    MEMBER(lapic.timer_expiry_ns),
    MEMBER(lapic.isr),
    MEMBER(lapic.irr),
    MEMBER(lapic.tmr),
    MEMBER(lapic.nmi_pending),
    MEMBER(lapic.init_pending),
    MEMBER(lapic.sipi_pending),
    MEMBER(lapic.sipi_vector),
    MEMBER(pending.kind),
    MEMBER(pending.vector),
    MEMBER(pending.has_error),
    MEMBER(pending.has_payload),
    MEMBER(pending.error),
    MEMBER(pending.payload),
    MEMBER(mp_state),
    MEMBER(interrupt_shadow),
    MEMBER(shadow_is_mov_ss),
    MEMBER(nmi_blocked),
};

void state_vcpu_save(const struct x86_state *state, struct state_writer *w)
{
    for (size_t i = 0; i < ARRAY_COUNT(members); i++)
        state_put(w, members[i].name, (const uint8_t *)state + members[i].offset, members[i].size);
}

/* Any byte of a file may stand where a bool does. */
static void normalise_bools(struct x86_state *state)
{
    bool *const flags[] = {
        &state->lapic.nmi_pending, &state->lapic.init_pending,  &state->lapic.sipi_pending,
        &state->pending.has_error, &state->pending.has_payload, &state->interrupt_shadow,
        &state->shadow_is_mov_ss,  &state->nmi_blocked,
    };
    for (size_t i = 0; i < ARRAY_COUNT(flags); i++) {
        uint8_t byte;
        memcpy(&byte, flags[i], 1);
        *flags[i] = byte != 0;
    }
}

void state_vcpu_load(struct x86_state *state, struct state_reader *r)
{
    for (size_t i = 0; i < ARRAY_COUNT(members); i++)
        state_get(r, members[i].name, (uint8_t *)state + members[i].offset, members[i].size);
    normalise_bools(state);
}
