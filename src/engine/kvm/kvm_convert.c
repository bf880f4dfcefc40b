/*
 * Between the kernel's structures and the portable state: segments, local APIC, events. Pure.
 * Linux, Documentation/virt/kvm/api.rst (KVM_GET_SREGS, KVM_GET_LAPIC, KVM_GET_VCPU_EVENTS); SDM
 * vol. 3 section 11.4.1 (APIC registers).
 */
#include <string.h>

#include "engine/kvm/kvm_int.h"
#include "x86/lapic.h"

/* --- segments --- */

void kvm_segment_from(struct kvm_segment *out, const struct x86_segment *seg)
{
    *out = (struct kvm_segment) {
        .base = seg->base,
        .limit = seg->limit,
        .selector = seg->selector,
        .type = seg->attr & X86_SEG_TYPE,
        .s = seg->attr & X86_SEG_S ? 1 : 0,
        .dpl = (seg->attr & X86_SEG_DPL) >> X86_SEG_DPL_SHIFT,
        .present = seg->attr & X86_SEG_P ? 1 : 0,
        .avl = seg->attr & X86_SEG_AVL ? 1 : 0,
        .l = seg->attr & X86_SEG_L ? 1 : 0,
        .db = seg->attr & X86_SEG_DB ? 1 : 0,
        .g = seg->attr & X86_SEG_G ? 1 : 0,
        .unusable = seg->attr & X86_SEG_P ? 0 : 1,
    };
}

/* Of an unusable SS the DPL counts: it is the CPL. */
void kvm_segment_to(struct x86_segment *out, const struct kvm_segment *seg, bool is_ss)
{
    unsigned dpl = (unsigned)(seg->dpl & 3) << X86_SEG_DPL_SHIFT;
    *out = (struct x86_segment) {.base = seg->base, .limit = seg->limit, .selector = seg->selector};
    if (seg->unusable || !seg->present) {
        out->attr = (uint16_t)(is_ss ? dpl : 0);
        return;
    }
    out->attr = (uint16_t)((seg->type & X86_SEG_TYPE) | dpl | X86_SEG_P | (seg->s ? X86_SEG_S : 0) |
                           (seg->avl ? X86_SEG_AVL : 0) | (seg->l ? X86_SEG_L : 0) |
                           (seg->db ? X86_SEG_DB : 0) | (seg->g ? X86_SEG_G : 0));
}

/* --- local APIC --- */

/* Registers by their place in the xAPIC page. */
enum {
    REG_ID = 0x20,
    REG_TPR = 0x80,
    REG_LDR = 0xd0,
    REG_DFR = 0xe0,
    REG_SVR = 0xf0,
    REG_ISR = 0x100,
    REG_TMR = 0x180,
    REG_IRR = 0x200,
    REG_ESR = 0x280,
    REG_ICR = 0x300,
    REG_ICR_HIGH = 0x310,
    REG_TIMER_INITIAL = 0x380,
    REG_TIMER_CURRENT = 0x390,
    REG_TIMER_DIVIDE = 0x3e0,
};

static const uint16_t lvt_register[X86_LVT_COUNT] = {
    [X86_LVT_TIMER] = 0x320, [X86_LVT_THERMAL] = 0x330, [X86_LVT_PERF] = 0x340,
    [X86_LVT_LINT0] = 0x350, [X86_LVT_LINT1] = 0x360,   [X86_LVT_ERROR] = 0x370,
};

#define LVT_MASKED BIT(16)

static uint32_t get(const struct kvm_lapic_state *regs, unsigned offset)
{
    return load_le32(regs->regs + offset);
}

static void put(struct kvm_lapic_state *regs, unsigned offset, uint32_t value)
{
    store_le32(regs->regs + offset, value);
}

/* SDM vol. 3 figure 11-10. */
static unsigned divisor(uint32_t divide)
{
    unsigned code = (divide & 3) | (divide >> 1 & 4);
    return code == 7 ? 1 : 2u << code;
}

static bool is_x2apic(const struct x86_state *s)
{
    return s->apic_base & X86_APIC_BASE_X2APIC;
}

/* The kernel's timer, too, ticks once a nanosecond. What is left of the count, rounded up. */
static uint32_t count_left(const struct x86_lapic_state *lapic, uint64_t now_ns)
{
    if (lapic->timer_expiry_ns == UINT64_MAX)
        return 0;
    if (lapic->timer_expiry_ns <= now_ns)
        return 1;
    uint64_t step = divisor(lapic->timer_divide);
    uint64_t left = (lapic->timer_expiry_ns - now_ns + step - 1) / step;
    return (uint32_t)MIN(left, (uint64_t)lapic->timer_initial);
}

void kvm_lapic_from(struct kvm_lapic_state *out, const struct x86_state *s, uint64_t now_ns)
{
    const struct x86_lapic_state *lapic = &s->lapic;
    memset(out, 0, sizeof *out);
    put(out, REG_ID, is_x2apic(s) ? lapic->id : lapic->id << 24);
    put(out, REG_TPR, lapic->tpr);
    put(out, REG_LDR, lapic->ldr);
    put(out, REG_DFR, lapic->dfr);
    put(out, REG_SVR, lapic->svr);
    put(out, REG_ESR, lapic->esr);
    put(out, REG_ICR, (uint32_t)lapic->icr);
    put(out, REG_ICR_HIGH, (uint32_t)(lapic->icr >> 32));
    for (unsigned i = 0; i < X86_LVT_COUNT; i++)
        put(out, lvt_register[i], lapic->lvt[i]);
    put(out, REG_TIMER_INITIAL, lapic->timer_initial);
    put(out, REG_TIMER_CURRENT, count_left(lapic, now_ns));
    put(out, REG_TIMER_DIVIDE, lapic->timer_divide);
    for (unsigned i = 0; i < 8; i++) {
        put(out, REG_ISR + i * 16, lapic->isr[i]);
        put(out, REG_TMR + i * 16, lapic->tmr[i]);
        put(out, REG_IRR + i * 16, lapic->irr[i]);
    }
}

void kvm_lapic_to(struct x86_state *out, const struct kvm_lapic_state *regs, uint64_t now_ns)
{
    struct x86_lapic_state *lapic = &out->lapic;
    uint32_t id = get(regs, REG_ID), left = get(regs, REG_TIMER_CURRENT);
    *lapic = (struct x86_lapic_state) {
        .id = is_x2apic(out) ? id : id >> 24,
        .tpr = get(regs, REG_TPR) & 0xff,
        .ldr = get(regs, REG_LDR),
        .dfr = get(regs, REG_DFR),
        .svr = get(regs, REG_SVR) & 0x1ff,
        .esr = get(regs, REG_ESR),
        .icr = get(regs, REG_ICR) | (uint64_t)get(regs, REG_ICR_HIGH) << 32,
        .timer_initial = get(regs, REG_TIMER_INITIAL),
        .timer_divide = get(regs, REG_TIMER_DIVIDE),
        .timer_expiry_ns = UINT64_MAX,
    };
    for (unsigned i = 0; i < X86_LVT_COUNT; i++)
        lapic->lvt[i] = get(regs, lvt_register[i]);
    lapic->lvt[X86_LVT_COUNT] = LVT_MASKED; /* CMCI, which is not there */
    if (left)
        lapic->timer_expiry_ns = now_ns + (uint64_t)left * divisor(lapic->timer_divide);
    for (unsigned i = 0; i < 8; i++) {
        lapic->isr[i] = get(regs, REG_ISR + i * 16);
        lapic->tmr[i] = get(regs, REG_TMR + i * 16);
        lapic->irr[i] = get(regs, REG_IRR + i * 16);
    }
}

/* --- events --- */

static void exception_from(struct kvm_vcpu_events *out, const struct x86_event *event)
{
    out->exception.pending = 1;
    out->exception.nr = event->vector;
    out->exception.has_error_code = event->has_error;
    out->exception.error_code = event->error;
    out->exception_has_payload = event->has_payload;
    out->exception_payload = event->payload;
}

static void interrupt_from(struct kvm_vcpu_events *out, const struct x86_event *event)
{
    out->interrupt.injected = 1;
    out->interrupt.nr = event->vector;
    out->interrupt.soft = event->kind == X86_EVENT_SOFT_INTERRUPT;
}

void kvm_events_from(struct kvm_vcpu_events *out, const struct x86_state *s)
{
    *out = (struct kvm_vcpu_events) {
        .flags = KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW |
                 KVM_VCPUEVENT_VALID_PAYLOAD | KVM_VCPUEVENT_VALID_SIPI_VECTOR,
        .nmi = {.pending = s->lapic.nmi_pending, .masked = s->nmi_blocked},
        .sipi_vector = s->lapic.sipi_vector,
    };
    if (s->interrupt_shadow)
        out->interrupt.shadow =
            s->shadow_is_mov_ss ? KVM_X86_SHADOW_INT_MOV_SS : KVM_X86_SHADOW_INT_STI;
    switch ((enum x86_event_kind)s->pending.kind) {
    case X86_EVENT_NONE:
        break;
    case X86_EVENT_INTERRUPT:
    case X86_EVENT_SOFT_INTERRUPT:
        interrupt_from(out, &s->pending);
        break;
    case X86_EVENT_NMI:
        out->nmi.injected = 1;
        break;
    case X86_EVENT_EXCEPTION:
    case X86_EVENT_SOFT_EXCEPTION:
    case X86_EVENT_PRIVILEGED_SOFT_EXCEPTION:
        exception_from(out, &s->pending);
        break;
    }
}

static void exception_to(struct x86_event *out, const struct kvm_vcpu_events *events)
{
    *out = (struct x86_event) {.kind = X86_EVENT_EXCEPTION,
                               .vector = events->exception.nr,
                               .has_error = events->exception.has_error_code,
                               .error = events->exception.error_code};
    if (events->exception.pending && events->exception_has_payload) {
        out->has_payload = true;
        out->payload = events->exception_payload;
    }
}

void kvm_events_to(struct x86_state *out, const struct kvm_vcpu_events *events)
{
    uint8_t shadow = events->interrupt.shadow;
    out->pending = (struct x86_event) {0};
    if (events->exception.injected || events->exception.pending)
        exception_to(&out->pending, events);
    else if (events->nmi.injected)
        out->pending = (struct x86_event) {.kind = X86_EVENT_NMI, .vector = X86_NMI};
    else if (events->interrupt.injected)
        out->pending = (struct x86_event) {.kind = events->interrupt.soft ? X86_EVENT_SOFT_INTERRUPT
                                                                          : X86_EVENT_INTERRUPT,
                                           .vector = events->interrupt.nr};
    out->interrupt_shadow = shadow != 0;
    /* AMD-V has one bit for both kinds: then it counts as STI's. */
    out->shadow_is_mov_ss = shadow == KVM_X86_SHADOW_INT_MOV_SS;
    out->nmi_blocked = events->nmi.masked;
    out->lapic.nmi_pending = events->nmi.pending;
}
