/*
 * What wakes and interrupts a vCPU: messages between APICs, MSIs, the 8259's line, NMI, INIT,
 * start-up IPIs, and which of them is taken between two instructions.
 * SDM vol. 3 sections 6.9 (priorities), 9.4 (INIT, SIPI), 11.6, 11.8.
 */
#include <errno.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/clock.h"
#include "engine/soft/soft_int.h"
#include "vm/clock.h"

/* --- waking --- */

static long futex(_Atomic uint32_t *word, int operation, uint32_t value,
                  const struct timespec *timeout)
{
    return syscall(SYS_futex, (uint32_t *)word, operation | FUTEX_PRIVATE_FLAG, value, timeout,
                   NULL, FUTEX_BITSET_MATCH_ANY);
}

/* Pairs with soft_wait: attention is set before `sleeping` is read, and the other way round there.
 */
void soft_wake(struct engine_vcpu *vcpu)
{
    atomic_store(&vcpu->attention, 1);
    if (atomic_load(&vcpu->sleeping))
        futex(&vcpu->attention, FUTEX_WAKE, 1, NULL);
}

void soft_notify(struct engine_vcpu *vcpu)
{
    atomic_store(&vcpu->attention, 1);
}

/* One that begins to run after the look sees the section itself. */
void soft_stop_running(void *context)
{
    struct engine_vm *vm = context;
    for (unsigned i = 0; i < vm->vcpu_count; i++) {
        if (atomic_load(&vm->vcpu[i]->member.running))
            soft_notify(vm->vcpu[i]);
    }
}

/* Host time of the next timer event, or UINT64_MAX. */
static uint64_t next_event(struct engine_vcpu *vcpu)
{
    const struct vm_clock *clock = vcpu->vm->config.clock;
    uint64_t next = x86_lapic_next_ns(&vcpu->lapic);

    return clock && next != UINT64_MAX ? vm_clock_host_deadline(clock, next) : UINT64_MAX;
}

void soft_set_alarm(struct engine_vcpu *vcpu)
{
    soft_timer_set(&vcpu->vm->timer, vcpu->index, next_event(vcpu));
}

/* One that sleeps now has its own deadline. */
void soft_timer_expired(void *context, unsigned index)
{
    struct engine_vm *vm = context;
    atomic_store(&vm->vcpu[index]->timer_due, true);
    soft_notify(vm->vcpu[index]);
}

void soft_wait(struct engine_vcpu *vcpu)
{
    struct engine_vm *vm = vcpu->vm;
    uint64_t host = next_event(vcpu);
    struct timespec deadline = {.tv_sec = (time_t)(host / NS_PER_S),
                                .tv_nsec = (long)(host % NS_PER_S)};

    soft_timer_set(&vm->timer, vcpu->index, SOFT_TIMER_NEVER);
    exclusive_leave(&vm->exclusive, &vcpu->member);
    atomic_store(&vcpu->sleeping, true);
    if (!atomic_load(&vcpu->attention))
        futex(&vcpu->attention, FUTEX_WAIT_BITSET, 0, host == UINT64_MAX ? NULL : &deadline);
    atomic_store(&vcpu->sleeping, false);
    atomic_store(&vcpu->timer_due, true); /* perhaps */
    atomic_store(&vcpu->attention, 1);
    exclusive_enter(&vm->exclusive, &vcpu->member);
}

/* --- messages --- */

static void deliver_to(struct engine_vcpu *vcpu, const struct x86_lapic_message *message)
{
    if (x86_lapic_accept(&vcpu->lapic, message))
        soft_wake(vcpu);
}

/* Lowest priority: the matching CPUs in turn, as chipsets do; section 11.6.2.4. */
static void deliver_lowest(struct engine_vm *vm, const struct x86_lapic_message *message,
                           const struct engine_vcpu *except)
{
    unsigned first = atomic_fetch_add(&vm->lowest_turn, 1);

    for (unsigned i = 0; i < vm->vcpu_count; i++) {
        struct engine_vcpu *vcpu = vm->vcpu[(first + i) % vm->vcpu_count];
        if (vcpu != except &&
            (message->shorthand == X86_TO_OTHERS || x86_lapic_matches(&vcpu->lapic, message)) &&
            vcpu->lapic.software) {
            deliver_to(vcpu, message);
            return;
        }
    }
}

static void deliver(struct engine_vm *vm, const struct x86_lapic_message *message,
                    struct engine_vcpu *sender)
{
    struct engine_vcpu *except = message->shorthand == X86_TO_OTHERS ? sender : NULL;

    if (message->delivery == X86_DELIVER_LOWEST) {
        deliver_lowest(vm, message, except);
        return;
    }
    for (unsigned i = 0; i < vm->vcpu_count; i++) {
        struct engine_vcpu *vcpu = vm->vcpu[i];
        bool wanted = message->shorthand == X86_TO_SELF ? vcpu == sender
                      : message->shorthand == X86_TO_DESTINATION
                          ? x86_lapic_matches(&vcpu->lapic, message)
                          : vcpu != except && vcpu->lapic.enabled;
        if (wanted)
            deliver_to(vcpu, message);
    }
}

static void lapic_send(void *context, const struct x86_lapic_message *message)
{
    struct engine_vcpu *vcpu = context;
    deliver(vcpu->vm, message, vcpu);
}

static uint64_t lapic_now(void *context)
{
    struct engine_vcpu *vcpu = context;
    return soft_clock_ns(vcpu->vm);
}

static uint64_t lapic_tsc_at(void *context, uint64_t ns)
{
    struct engine_vcpu *vcpu = context;
    return soft_clock_tsc_at(vcpu->vm, ns) + vcpu->cpu.s.tsc_offset;
}

/* Inside an instruction of the guest: the machine may take locks, so this is a safe point. */
static void lapic_eoi(void *context, uint8_t vector)
{
    struct engine_vcpu *vcpu = context;
    struct engine_vm *vm = vcpu->vm;
    struct soft_outside outside = soft_outside_begin(vcpu);

    vm->config.callbacks->eoi(vm->config.context, vector);
    soft_outside_end(vcpu, outside);
}

const struct x86_lapic_ops soft_lapic_ops = {
    .now_ns = lapic_now,
    .tsc_at = lapic_tsc_at,
    .send = lapic_send,
    .eoi = lapic_eoi,
};

void soft_send_msi(struct engine_vm *vm, uint64_t address, uint32_t data)
{
    struct x86_lapic_message message = x86_lapic_decode_msi(address, data);
    deliver(vm, &message, NULL);
}

void soft_set_extint(struct engine_vm *vm, bool level)
{
    atomic_store(&vm->extint, level);
    if (vm->vcpu_count)
        soft_wake(vm->vcpu[0]);
}

void soft_inject_nmi(struct engine_vcpu *vcpu)
{
    atomic_fetch_or(&vcpu->lapic.signals, X86_LAPIC_NMI);
    soft_wake(vcpu);
}

/* --- INIT and SIPI --- */

static void take_init(struct engine_vcpu *vcpu)
{
    struct x86_state state;

    x86_cpu_get_state(&vcpu->cpu, &state);
    x86_state_init(&state);
    state.mp_state = vcpu->lapic.base & X86_APIC_BASE_BSP ? X86_MP_RUNNABLE : X86_MP_WAIT_SIPI;
    state.apic_base = vcpu->lapic.base;
    x86_lapic_init(&vcpu->lapic);
    x86_cpu_set_state(&vcpu->cpu, &state);
}

/* Section 9.4.4.1: starts in real mode at vector * 4 KiB. */
static void take_sipi(struct engine_vcpu *vcpu, uint8_t vector)
{
    struct x86_segment *cs = &vcpu->cpu.s.seg[X86_CS];

    if (vcpu->cpu.s.mp_state != X86_MP_WAIT_SIPI)
        return;
    cs->selector = (uint16_t)(vector << 8);
    cs->base = (uint64_t)vector << 12;
    vcpu->cpu.s.rip = 0;
    vcpu->cpu.s.mp_state = X86_MP_RUNNABLE;
    x86_cpu_update_mode(&vcpu->cpu);
}

static void take_signals(struct engine_vcpu *vcpu)
{
    uint32_t signals = atomic_load(&vcpu->lapic.signals);

    if (likely(!(signals & ~X86_LAPIC_NMI)))
        return;
    signals = atomic_fetch_and(&vcpu->lapic.signals, X86_LAPIC_NMI);
    if (signals & X86_LAPIC_INIT)
        take_init(vcpu);
    if (signals & X86_LAPIC_SIPI)
        take_sipi(vcpu, (uint8_t)(signals >> 8));
}

/* --- what is taken now --- */

static bool nmi_is_pending(struct engine_vcpu *vcpu)
{
    return atomic_load(&vcpu->lapic.signals) & X86_LAPIC_NMI;
}

static bool extint_is_pending(struct engine_vcpu *vcpu)
{
    return vcpu->index == 0 && atomic_load(&vcpu->vm->extint) &&
           x86_lapic_takes_extint(&vcpu->lapic);
}

/* LINT0 as an ordinary source fires on the line's rising edge. */
static void look_at_lint0(struct engine_vcpu *vcpu)
{
    bool level = vcpu->index == 0 && atomic_load(&vcpu->vm->extint);
    if (level && !vcpu->lint0_seen)
        x86_lapic_pulse_lint(&vcpu->lapic, 0);
    vcpu->lint0_seen = level;
}

static bool inject(struct engine_vcpu *vcpu, enum x86_event_kind kind, uint8_t vector)
{
    struct x86_event event = {.kind = kind, .vector = vector};

    vcpu->cpu.halted = false;
    vcpu->cpu.s.mp_state = X86_MP_RUNNABLE;
    soft_count(&vcpu->interrupts, 1);
    bool good = x86_deliver(&vcpu->cpu, &event) == X86_OK;
    if (extint_is_pending(vcpu) || x86_lapic_pending(&vcpu->lapic) >= 0 || nmi_is_pending(vcpu))
        soft_notify(vcpu); /* there is more */
    return good;
}

static uint8_t acknowledge_extint(struct engine_vcpu *vcpu)
{
    struct engine_vm *vm = vcpu->vm;

    exclusive_leave(&vm->exclusive, &vcpu->member);
    uint8_t vector = vm->config.callbacks->extint_acknowledge(vm->config.context);
    exclusive_enter(&vm->exclusive, &vcpu->member);
    return vector;
}

static bool take_interrupt(struct engine_vcpu *vcpu)
{
    if (extint_is_pending(vcpu))
        return inject(vcpu, X86_EVENT_INTERRUPT, acknowledge_extint(vcpu));
    int vector = x86_lapic_pending(&vcpu->lapic);
    if (vector < 0)
        return true;
    x86_lapic_acknowledge(&vcpu->lapic, (uint8_t)vector);
    return inject(vcpu, X86_EVENT_INTERRUPT, (uint8_t)vector);
}

/* After the next block: what is pending cannot be taken now. Halted it needs another event. */
static void look_again(struct engine_vcpu *vcpu)
{
    if (!vcpu->cpu.halted)
        soft_notify(vcpu);
}

bool soft_take_events(struct engine_vcpu *vcpu)
{
    struct x86_cpu *cpu = &vcpu->cpu;

    bool timer = atomic_load_explicit(&vcpu->timer_due, memory_order_relaxed);
    if (timer)
        atomic_store(&vcpu->timer_due, false);
    x86_lapic_poll(&vcpu->lapic, timer);
    look_at_lint0(vcpu);
    take_signals(vcpu);
    if (cpu->s.mp_state == X86_MP_WAIT_SIPI)
        return true;
    if (cpu->s.pending.kind != X86_EVENT_NONE) {
        struct x86_event event = cpu->s.pending;
        cpu->s.pending.kind = X86_EVENT_NONE;
        soft_notify(vcpu); /* there may be more */
        return x86_deliver(cpu, &event) == X86_OK;
    }
    bool blocked = cpu->s.interrupt_shadow && !cpu->halted;
    if (nmi_is_pending(vcpu)) {
        if (!blocked && !cpu->s.nmi_blocked) {
            atomic_fetch_and(&vcpu->lapic.signals, ~X86_LAPIC_NMI);
            return inject(vcpu, X86_EVENT_NMI, X86_NMI);
        }
        look_again(vcpu);
        if (!cpu->s.nmi_blocked)
            return true;
    }
    if (!extint_is_pending(vcpu) && x86_lapic_pending(&vcpu->lapic) < 0)
        return true;
    if ((cpu->s.rflags & X86_IF) && !blocked)
        return take_interrupt(vcpu);
    look_again(vcpu);
    return true;
}
