/*
 * Interrupts into the kernel's local APICs: messages, the 8259 pair's line, NMIs; and the routes by
 * which the kernel tells of ends of level-triggered interrupts. Linux, Documentation/virt/kvm/
 * api.rst (KVM_CAP_SPLIT_IRQCHIP, KVM_SIGNAL_MSI); SDM vol. 3 sections 11.5, 11.11.
 */
#include <errno.h>
#include <string.h>

#include "base/log.h"
#include "engine/kvm/kvm_int.h"
#include "x86/lapic.h"

#define MSI_LEVEL   BIT(15)
#define MSI_ASSERT  BIT(14)
#define MSI_ADDRESS 0xfee00000u

#define APIC_LVT_LINT0 0x350
#define LVT_MASKED     BIT(16)

/* --- messages --- */

static int install_routes(struct engine_vm *vm)
{
    struct {
        uint32_t count, flags; /* as struct kvm_irq_routing */
        struct kvm_irq_routing_entry entry[KVM_ROUTES_MAX];
    } table = {.count = 0};
    for (unsigned i = 0; i < KVM_ROUTES_MAX; i++) {
        if (!vm->route[i].last_use)
            continue;
        table.entry[table.count++] = (struct kvm_irq_routing_entry) {
            .gsi = i,
            .type = KVM_IRQ_ROUTING_MSI,
            .u.msi = {.address_lo = (uint32_t)vm->route[i].address,
                      .address_hi = (uint32_t)(vm->route[i].address >> 32),
                      .data = vm->route[i].data}};
    }
    return kvm_call(vm->fd, KVM_SET_GSI_ROUTING, &table);
}

/* Puts a message into the kernel's table, in the place of the one unused for longest. */
static void add_route(struct engine_vm *vm, uint64_t address, uint32_t data)
{
    unsigned oldest = 0;
    pthread_mutex_lock(&vm->msi_lock);
    vm->route_turn++;
    for (unsigned i = 0; i < KVM_ROUTES_MAX; i++) {
        struct kvm_route *route = &vm->route[i];
        if (route->last_use && route->address == address && route->data == data) {
            route->last_use = vm->route_turn;
            pthread_mutex_unlock(&vm->msi_lock);
            return;
        }
        if (route->last_use < vm->route[oldest].last_use)
            oldest = i;
    }
    vm->route[oldest] = (struct kvm_route) {address, data, vm->route_turn};
    int error = install_routes(vm);
    pthread_mutex_unlock(&vm->msi_lock);
    if (error)
        log_warning("engine kvm: cannot route an interrupt: %s", strerror(-error));
}

/* Only of routes in its table does the kernel look for level-triggered vectors. */
void kvm_send_msi(struct engine_vm *vm, uint64_t address, uint32_t data)
{
    if (data & MSI_LEVEL)
        add_route(vm, address, data);
    struct kvm_msi msi = {
        .address_lo = (uint32_t)address, .address_hi = (uint32_t)(address >> 32), .data = data};
    (void)kvm_call(vm->fd, KVM_SIGNAL_MSI, &msi); /* nobody takes it: as on the bus */
}

/* After a restore: those under way have come by no route of ours. */
void kvm_irq_route_state(struct engine_vm *vm, const struct x86_lapic_state *lapic)
{
    for (unsigned vector = 16; vector < 256; vector++) {
        uint32_t bit = 1u << (vector % 32);
        uint32_t pending = (lapic->isr[vector / 32] | lapic->irr[vector / 32]) & bit;
        if (pending && (lapic->tmr[vector / 32] & bit))
            add_route(vm, MSI_ADDRESS | lapic->id << 12, vector | MSI_LEVEL | MSI_ASSERT);
    }
}

/* --- the 8259 pair and NMIs --- */

static void look(struct engine_vcpu *vcpu)
{
    atomic_store(&vcpu->look, true);
    kvm_vcpu_wake(vcpu);
}

void kvm_set_extint(struct engine_vm *vm, bool level)
{
    atomic_store(&vm->extint, level);
    if (vm->vcpu_count)
        look(vm->vcpu[0]);
}

void kvm_inject_nmi(struct engine_vcpu *vcpu)
{
    atomic_store(&vcpu->nmi_pending, true);
    look(vcpu);
}

/* LINT0 as an ordinary source: an edge of the line is what its entry says. */
static int pulse_lint0(struct engine_vcpu *vcpu)
{
    struct kvm_lapic_state regs;
    int error = kvm_call(vcpu->fd, KVM_GET_LAPIC, &regs);
    if (error)
        return error;
    uint32_t entry = load_le32(regs.regs + APIC_LVT_LINT0);
    unsigned delivery = entry >> 8 & 7;
    if ((entry & LVT_MASKED) || delivery == X86_DELIVER_EXTINT)
        return 0;
    if (delivery == X86_DELIVER_NMI)
        return kvm_call_number(vcpu->fd, KVM_NMI, 0);
    if (delivery == X86_DELIVER_FIXED)
        kvm_send_msi(vcpu->vm, MSI_ADDRESS | vcpu->index << 12, entry & 0xff);
    return 0;
}

/*
 * The vCPU is at an instruction boundary with interrupts open: the interrupt is put in as an event
 * on its way, so that a state taken now has it (KVM_INTERRUPT would hide it).
 */
static int deliver_extint(struct engine_vcpu *vcpu)
{
    struct engine_vm *vm = vcpu->vm;
    struct kvm_vcpu_events events;
    struct kvm_mp_state mp;
    int error = kvm_call(vcpu->fd, KVM_GET_VCPU_EVENTS, &events);
    if (!error)
        error = kvm_call(vcpu->fd, KVM_GET_MP_STATE, &mp);
    if (error)
        return error;
    events.interrupt.injected = 1;
    events.interrupt.soft = 0;
    events.interrupt.nr = vm->config.callbacks->extint_acknowledge(vm->config.context);
    events.flags = 0;
    error = kvm_call(vcpu->fd, KVM_SET_VCPU_EVENTS, &events);
    if (!error && mp.mp_state == KVM_MP_STATE_HALTED) {
        mp.mp_state = KVM_MP_STATE_RUNNABLE;
        error = kvm_call(vcpu->fd, KVM_SET_MP_STATE, &mp);
    }
    return error;
}

/* What the kernel says of the window is from its last return. */
static int refresh_window(struct engine_vcpu *vcpu)
{
    return vcpu->stale ? kvm_vcpu_complete_io(vcpu) : 0;
}

static int look_at_extint(struct engine_vcpu *vcpu)
{
    bool level = atomic_load(&vcpu->vm->extint);
    int error = 0;
    if (level && !vcpu->lint0_seen)
        error = pulse_lint0(vcpu);
    vcpu->lint0_seen = level;
    vcpu->run->request_interrupt_window = 0;
    if (!level || error)
        return error;
    atomic_store(&vcpu->look, true); /* until the line falls */
    error = refresh_window(vcpu);
    if (!error && vcpu->run->ready_for_interrupt_injection)
        return deliver_extint(vcpu);
    vcpu->run->request_interrupt_window = 1;
    return error;
}

int kvm_irq_prepare(struct engine_vcpu *vcpu)
{
    if (likely(!atomic_load_explicit(&vcpu->look, memory_order_acquire)))
        return 0;
    atomic_store(&vcpu->look, false);
    int error = 0;
    if (atomic_exchange(&vcpu->nmi_pending, false))
        error = kvm_call_number(vcpu->fd, KVM_NMI, 0);
    if (!error && vcpu->index == 0)
        error = look_at_extint(vcpu);
    return error;
}
