/*
 * The whole vCPU in and out. Loop thread while no vCPU runs, or the vCPU's between runs. Order
 * matters: CPUID before everything (at creation), the segments with the APIC's base before the
 * APIC, TSC_ADJUST before the clock reads it, events last.
 *
 * A counting APIC timer goes on from when the state is set; the TSC's deadline is set at the first
 * run, when the TSC is (kvm_clock.c). Until then the state that was set is what is read.
 */
#include <errno.h>
#include <string.h>

#include "engine/kvm/kvm_int.h"
#include "x86/lapic.h"
#include "x86/xsave.h"

#define XSAVE_XSTATE_BV 512

/* A part of the state, and what to call it when the kernel refuses it. */
struct part {
    const char *name;
    int (*get)(struct engine_vcpu *vcpu, struct x86_state *out);
    int (*set)(struct engine_vcpu *vcpu, const struct x86_state *s);
    bool shared; /* others than the vCPU change it: devices, other vCPUs, time */
};

/* --- general registers --- */

static int get_regs(struct engine_vcpu *vcpu, struct x86_state *out)
{
    struct kvm_regs r;
    int error = kvm_call(vcpu->fd, KVM_GET_REGS, &r);
    if (error)
        return error;
    const uint64_t gpr[16] = {
        [X86_RAX] = r.rax, [X86_RCX] = r.rcx, [X86_RDX] = r.rdx, [X86_RBX] = r.rbx,
        [X86_RSP] = r.rsp, [X86_RBP] = r.rbp, [X86_RSI] = r.rsi, [X86_RDI] = r.rdi,
        [X86_R8] = r.r8,   [X86_R9] = r.r9,   [X86_R10] = r.r10, [X86_R11] = r.r11,
        [X86_R12] = r.r12, [X86_R13] = r.r13, [X86_R14] = r.r14, [X86_R15] = r.r15,
    };
    memcpy(out->gpr, gpr, sizeof out->gpr);
    out->rip = r.rip;
    out->rflags = r.rflags;
    return 0;
}

static int set_regs(struct engine_vcpu *vcpu, const struct x86_state *s)
{
    const uint64_t *gpr = s->gpr;
    struct kvm_regs r = {
        .rax = gpr[X86_RAX],
        .rcx = gpr[X86_RCX],
        .rdx = gpr[X86_RDX],
        .rbx = gpr[X86_RBX],
        .rsp = gpr[X86_RSP],
        .rbp = gpr[X86_RBP],
        .rsi = gpr[X86_RSI],
        .rdi = gpr[X86_RDI],
        .r8 = gpr[X86_R8],
        .r9 = gpr[X86_R9],
        .r10 = gpr[X86_R10],
        .r11 = gpr[X86_R11],
        .r12 = gpr[X86_R12],
        .r13 = gpr[X86_R13],
        .r14 = gpr[X86_R14],
        .r15 = gpr[X86_R15],
        .rip = s->rip,
        .rflags = s->rflags,
    };
    return kvm_call(vcpu->fd, KVM_SET_REGS, &r);
}

/* --- segments and control registers --- */

static void segments_to(struct x86_state *out, const struct kvm_sregs2 *r)
{
    kvm_segment_to(&out->seg[X86_ES], &r->es, false);
    kvm_segment_to(&out->seg[X86_CS], &r->cs, false);
    kvm_segment_to(&out->seg[X86_SS], &r->ss, true);
    kvm_segment_to(&out->seg[X86_DS], &r->ds, false);
    kvm_segment_to(&out->seg[X86_FS], &r->fs, false);
    kvm_segment_to(&out->seg[X86_GS], &r->gs, false);
    kvm_segment_to(&out->ldtr, &r->ldt, false);
    kvm_segment_to(&out->tr, &r->tr, false);
    out->gdtr = (struct x86_table_register) {r->gdt.base, r->gdt.limit};
    out->idtr = (struct x86_table_register) {r->idt.base, r->idt.limit};
}

static void segments_from(struct kvm_sregs2 *out, const struct x86_state *s)
{
    kvm_segment_from(&out->es, &s->seg[X86_ES]);
    kvm_segment_from(&out->cs, &s->seg[X86_CS]);
    kvm_segment_from(&out->ss, &s->seg[X86_SS]);
    kvm_segment_from(&out->ds, &s->seg[X86_DS]);
    kvm_segment_from(&out->fs, &s->seg[X86_FS]);
    kvm_segment_from(&out->gs, &s->seg[X86_GS]);
    kvm_segment_from(&out->ldt, &s->ldtr);
    kvm_segment_from(&out->tr, &s->tr);
    out->gdt = (struct kvm_dtable) {.base = s->gdtr.base, .limit = s->gdtr.limit};
    out->idt = (struct kvm_dtable) {.base = s->idtr.base, .limit = s->idtr.limit};
}

/* The kernel has PDPTRs only where they count. */
static bool has_pdptrs(const struct x86_state *s)
{
    return (s->cr0 & X86_CR0_PG) && (s->cr4 & X86_CR4_PAE) && !(s->efer & X86_EFER_LMA);
}

static int get_sregs(struct engine_vcpu *vcpu, struct x86_state *out)
{
    struct kvm_sregs2 r;
    int error = kvm_call(vcpu->fd, KVM_GET_SREGS2, &r);
    if (error)
        return error;
    segments_to(out, &r);
    out->cr0 = r.cr0;
    out->cr2 = r.cr2;
    out->cr3 = r.cr3;
    out->cr4 = r.cr4;
    out->efer = r.efer;
    out->apic_base = r.apic_base;
    memset(out->pdptr, 0, sizeof out->pdptr);
    if (r.flags & KVM_SREGS2_FLAGS_PDPTRS_VALID)
        memcpy(out->pdptr, r.pdptrs, sizeof out->pdptr);
    return 0;
}

static int set_sregs(struct engine_vcpu *vcpu, const struct x86_state *s)
{
    struct kvm_sregs2 r = {.cr0 = s->cr0,
                           .cr2 = s->cr2,
                           .cr3 = s->cr3,
                           .cr4 = s->cr4,
                           .cr8 = s->lapic.tpr >> 4,
                           .efer = s->efer,
                           .apic_base = s->apic_base};
    segments_from(&r, s);
    if (has_pdptrs(s)) {
        r.flags = KVM_SREGS2_FLAGS_PDPTRS_VALID;
        memcpy(r.pdptrs, s->pdptr, sizeof s->pdptr);
    }
    return kvm_call(vcpu->fd, KVM_SET_SREGS2, &r);
}

/* --- debug registers --- */

static int get_debug(struct engine_vcpu *vcpu, struct x86_state *out)
{
    struct kvm_debugregs r;
    int error = kvm_call(vcpu->fd, KVM_GET_DEBUGREGS, &r);
    if (error)
        return error;
    memcpy(out->dr, r.db, sizeof out->dr);
    out->dr6 = r.dr6;
    out->dr7 = r.dr7;
    return 0;
}

static int set_debug(struct engine_vcpu *vcpu, const struct x86_state *s)
{
    struct kvm_debugregs r = {.dr6 = s->dr6, .dr7 = s->dr7};
    memcpy(r.db, s->dr, sizeof r.db);
    return kvm_call(vcpu->fd, KVM_SET_DEBUGREGS, &r);
}

/* --- x87 and vectors --- */

static bool has_xsave(const struct engine_vcpu *vcpu)
{
    return x86_has(&vcpu->vm->config.cpuid->features, X86_FEATURE_XSAVE);
}

/* What the guest was not told of is in its initial state; the kernel may name it all the same. */
static int get_fpu(struct engine_vcpu *vcpu, struct x86_state *out)
{
    struct kvm_xsave x;
    struct kvm_xcrs xcrs = {.nr_xcrs = 0};
    int error = kvm_call(vcpu->fd, KVM_GET_XSAVE, &x);
    if (!error && has_xsave(vcpu))
        error = kvm_call(vcpu->fd, KVM_GET_XCRS, &xcrs);
    if (error)
        return error;
    uint8_t *image = (uint8_t *)x.region;
    store_le64(image + XSAVE_XSTATE_BV,
               load_le64(image + XSAVE_XSTATE_BV) & (X86_XCR0_X87 | X86_XCR0_SSE | X86_XCR0_AVX));
    out->xcr0 = xcrs.nr_xcrs ? xcrs.xcrs[0].value : X86_XCR0_X87;
    return x86_xsave_from_image(&out->fpu, image, sizeof x.region);
}

static int set_fpu(struct engine_vcpu *vcpu, const struct x86_state *s)
{
    struct kvm_xsave x;
    struct kvm_xcrs xcrs = {.nr_xcrs = 1, .xcrs = {{.xcr = 0, .value = s->xcr0}}};
    memset(&x, 0, sizeof x);
    uint8_t *image = (uint8_t *)x.region;
    x86_xsave_to_image(&s->fpu, image);
    store_le64(image + XSAVE_XSTATE_BV, load_le64(image + XSAVE_XSTATE_BV) & vcpu->vm->xcr0);
    int error = kvm_call(vcpu->fd, KVM_SET_XSAVE, &x);
    return error || !has_xsave(vcpu) ? error : kvm_call(vcpu->fd, KVM_SET_XCRS, &xcrs);
}

/* --- local APIC --- */

static int get_lapic(struct engine_vcpu *vcpu, struct x86_state *out)
{
    struct kvm_lapic_state regs;
    int error = kvm_call(vcpu->fd, KVM_GET_LAPIC, &regs);
    if (error)
        return error;
    kvm_lapic_to(out, &regs, kvm_clock_ns(vcpu->vm));
    if (!x86_has(&vcpu->vm->config.cpuid->features, X86_FEATURE_TSC_DEADLINE))
        return 0;
    return kvm_msr_read(vcpu, X86_MSR_TSC_DEADLINE, &out->tsc_deadline);
}

static int set_lapic(struct engine_vcpu *vcpu, const struct x86_state *s)
{
    struct kvm_lapic_state regs;
    kvm_lapic_from(&regs, s, kvm_clock_ns(vcpu->vm));
    int error = kvm_call(vcpu->fd, KVM_SET_LAPIC, &regs);
    if (error || !x86_has(&vcpu->vm->config.cpuid->features, X86_FEATURE_TSC_DEADLINE))
        return error;
    return kvm_msr_write(vcpu, X86_MSR_TSC_DEADLINE, 0); /* kvm_clock.c sets it */
}

/* Everything that others than the vCPU change, and time, is as it was given since the last run. */
static bool is_own_change(const struct engine_vcpu *vcpu, const struct x86_state *s)
{
    const struct x86_state *was = &vcpu->get;
    return vcpu->given && !memcmp(&was->lapic, &s->lapic, sizeof s->lapic) &&
           was->apic_base == s->apic_base && was->tsc_deadline == s->tsc_deadline &&
           was->tsc_offset == s->tsc_offset && was->tsc_adjust == s->tsc_adjust;
}

/* --- events, INIT and start-up --- */

static int get_events(struct engine_vcpu *vcpu, struct x86_state *out)
{
    struct kvm_vcpu_events events;
    int error = kvm_call(vcpu->fd, KVM_GET_VCPU_EVENTS, &events);
    if (!error)
        kvm_events_to(out, &events);
    out->lapic.nmi_pending |= atomic_load(&vcpu->nmi_pending);
    return error;
}

static int set_events(struct engine_vcpu *vcpu, const struct x86_state *s)
{
    struct kvm_vcpu_events events;
    kvm_events_from(&events, s);
    if (is_own_change(vcpu, s)) /* an NMI may have come meanwhile */
        events.flags &= ~(KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SIPI_VECTOR);
    return kvm_call(vcpu->fd, KVM_SET_VCPU_EVENTS, &events);
}

/* The kernel takes a pending INIT or start-up IPI when it is asked, so this comes first. */
static int get_mp_state(struct engine_vcpu *vcpu, struct x86_state *out)
{
    struct kvm_mp_state mp;
    int error = kvm_call(vcpu->fd, KVM_GET_MP_STATE, &mp);
    if (error)
        return error;
    bool waits =
        mp.mp_state == KVM_MP_STATE_UNINITIALIZED || mp.mp_state == KVM_MP_STATE_INIT_RECEIVED;
    out->mp_state = vcpu->shut_down                      ? X86_MP_SHUTDOWN
                    : waits                              ? X86_MP_WAIT_SIPI
                    : mp.mp_state == KVM_MP_STATE_HALTED ? X86_MP_HALTED
                                                         : X86_MP_RUNNABLE;
    return 0;
}

/* In INIT_RECEIVED a start-up IPI is taken; SIPI_RECEIVED is that with one pending. */
static int set_mp_state(struct engine_vcpu *vcpu, const struct x86_state *s)
{
    struct kvm_mp_state mp = {.mp_state = KVM_MP_STATE_RUNNABLE};
    if (s->mp_state == X86_MP_HALTED)
        mp.mp_state = KVM_MP_STATE_HALTED;
    else if (s->mp_state == X86_MP_WAIT_SIPI)
        mp.mp_state =
            s->lapic.sipi_pending ? KVM_MP_STATE_SIPI_RECEIVED : KVM_MP_STATE_INIT_RECEIVED;
    return kvm_call(vcpu->fd, KVM_SET_MP_STATE, &mp);
}

/* --- all of it --- */

static int get_time(struct engine_vcpu *vcpu, struct x86_state *out)
{
    return kvm_clock_get_offset(vcpu, &out->tsc_offset);
}

static int get_msrs(struct engine_vcpu *vcpu, struct x86_state *out)
{
    uint32_t bad = 0;
    return kvm_msrs_get(vcpu, out, &bad);
}

static const struct part parts[] = {
    {"general registers", get_regs, set_regs, false},
    {"segments and control registers", get_sregs, set_sregs, false},
    {"debug registers", get_debug, set_debug, false},
    {"vector registers", get_fpu, set_fpu, false},
    {"MSRs", get_msrs, NULL, false}, /* set with a name for the one refused */
    {"local APIC", get_lapic, set_lapic, true},
    {"events", get_events, set_events, false},
    {"time", get_time, NULL, false},
};

/* What a state that has not run has lost on its way into the kernel. */
static void keep_unrun(struct x86_state *out, const struct x86_state *set)
{
    out->tsc_deadline = set->tsc_deadline;
    out->lapic.timer_expiry_ns = set->lapic.timer_expiry_ns;
    out->lapic.esr_latched = set->lapic.esr_latched;
    if (!has_pdptrs(set))
        memcpy(out->pdptr, set->pdptr, sizeof out->pdptr);
    out->spec_ctrl = set->spec_ctrl;
    out->debug_ctl = set->debug_ctl;
}

int kvm_get_state(struct engine_vcpu *vcpu, struct x86_state *out)
{
    memset(out, 0, sizeof *out);
    int error = vcpu->io_open ? kvm_vcpu_complete_io(vcpu) : 0;
    if (!error)
        error = get_mp_state(vcpu, out);
    for (size_t i = 0; i < ARRAY_COUNT(parts) && !error; i++)
        error = parts[i].get(vcpu, out);
    if (vcpu->fresh)
        keep_unrun(out, &vcpu->set);
    vcpu->given = error == 0;
    vcpu->get = *out;
    return error;
}

static int refused(struct engine_vcpu *vcpu, const char *what, int error, struct err *err)
{
    return err_set(err, -error, "engine kvm: the kernel refuses CPU %u's %s: %s", vcpu->index, what,
                   strerror(-error));
}

static int set_msrs(struct engine_vcpu *vcpu, const struct x86_state *s,
                    const struct x86_state *known, struct err *err)
{
    uint32_t bad = 0;
    int error = kvm_msrs_set(vcpu, s, known, &bad);
    if (!error)
        return 0;
    return err_set(err, -error, "engine kvm: the kernel refuses CPU %u's MSR %#x: %s", vcpu->index,
                   bad, strerror(-error));
}

static int set_parts(struct engine_vcpu *vcpu, const struct x86_state *s,
                     const struct x86_state *known, struct err *err)
{
    for (size_t i = 0; i < ARRAY_COUNT(parts); i++) {
        if (!parts[i].set || (known && parts[i].shared))
            continue;
        int error = parts[i].set(vcpu, s);
        if (error)
            return refused(vcpu, parts[i].name, error, err);
    }
    int error = known && known->mp_state == s->mp_state ? 0 : set_mp_state(vcpu, s);
    if (error)
        return refused(vcpu, "run state", error, err);
    return set_msrs(vcpu, s, known, err);
}

/* The kernel has no place for a pending INIT: it is taken now. A start-up IPI has come after it. */
static void take_init(struct x86_state *s)
{
    bool sipi = s->lapic.sipi_pending;
    uint8_t vector = s->lapic.sipi_vector;
    x86_state_init(s);
    s->lapic.sipi_pending = sipi;
    s->lapic.sipi_vector = vector;
}

/* An instruction was executed for the vCPU. What has come to its APIC since the state was taken
 * must not be undone, so that is left alone. */
static int set_own_change(struct engine_vcpu *vcpu, const struct x86_state *s, struct err *err)
{
    int error = set_parts(vcpu, s, &vcpu->get, err);
    if (error)
        return error;
    vcpu->shut_down = s->mp_state == X86_MP_SHUTDOWN;
    vcpu->get = *s;
    if (vcpu->fresh)
        vcpu->set = *s;
    return 0;
}

static int set_whole(struct engine_vcpu *vcpu, const struct x86_state *state, struct err *err)
{
    struct x86_state s = *state;
    if (s.lapic.init_pending)
        take_init(&s);
    int error = set_parts(vcpu, &s, NULL, err);
    if (error)
        return error;
    vcpu->shut_down = s.mp_state == X86_MP_SHUTDOWN;
    vcpu->tsc_offset = s.tsc_offset;
    vcpu->tsc_adjust = s.tsc_adjust;
    vcpu->lint0_seen = atomic_load(&vcpu->vm->extint);
    atomic_store(&vcpu->nmi_pending, false);
    atomic_store(&vcpu->look, true);
    vcpu->set = s;
    vcpu->fresh = true;
    vcpu->given = false;
    kvm_irq_route_state(vcpu->vm, &s.lapic);
    return 0;
}

int kvm_set_state(struct engine_vcpu *vcpu, const struct x86_state *state, struct err *err)
{
    const char *wrong = x86_state_validate(state);
    if (wrong)
        return err_set(err, EINVAL, "state of CPU %u: %s", vcpu->index, wrong);
    int error = vcpu->io_open ? kvm_vcpu_complete_io(vcpu) : 0;
    if (error)
        return refused(vcpu, "open I/O", error, err);
    vcpu->stale = true;
    return is_own_change(vcpu, state) ? set_own_change(vcpu, state, err)
                                      : set_whole(vcpu, state, err);
}
