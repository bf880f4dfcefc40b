/*
 * What x86/ needs of its surroundings (struct x86_ops), except memory: devices, APIC page, time,
 * MSRs, random numbers. vCPU's thread, inside an instruction.
 *
 * While the machine serves an access the vCPU counts as standing at a safe point: the handler may
 * wait for a device's lock whose holder changes the memory map.
 */
#include <sched.h>
#include <sys/random.h>

#include "base/clock.h"
#include "engine/soft/soft_int.h"
#include "vm/clock.h"
#include "x86/mem.h"

/* --- time --- */

uint64_t soft_clock_ns(const struct engine_vm *vm)
{
    return vm->config.clock ? vm_clock_ns(vm->config.clock) : 0;
}

uint64_t soft_clock_tsc_at(const struct engine_vm *vm, uint64_t ns)
{
    return likely(vm->tsc_hz == NS_PER_S) ? ns : mul_div_u64(ns, vm->tsc_hz, NS_PER_S);
}

uint64_t soft_clock_tsc(const struct engine_vm *vm)
{
    return soft_clock_tsc_at(vm, soft_clock_ns(vm));
}

static uint64_t read_tsc(void *context)
{
    struct engine_vcpu *vcpu = context;
    return soft_clock_tsc(vcpu->vm);
}

/* --- devices --- */

/*
 * Also out of an exclusive section that a LOCK operation on a device holds: the handler may wait
 * for a lock whose holder wants a section of its own.
 */
struct soft_outside soft_outside_begin(struct engine_vcpu *vcpu)
{
    struct soft_outside outside = {.sections = vcpu->exclusive_depth};

    while (vcpu->exclusive_depth)
        soft_x86_ops.exclusive_end(vcpu);
    outside.left = atomic_load_explicit(&vcpu->member.running, memory_order_relaxed);
    if (outside.left)
        exclusive_leave(&vcpu->vm->exclusive, &vcpu->member);
    return outside;
}

/* What the access has caused (an interrupt, an end) is looked at before the next instruction. */
void soft_outside_end(struct engine_vcpu *vcpu, struct soft_outside outside)
{
    if (outside.left)
        exclusive_enter(&vcpu->vm->exclusive, &vcpu->member);
    while (vcpu->exclusive_depth < outside.sections)
        soft_x86_ops.exclusive_begin(vcpu);
    if (atomic_load_explicit(&vcpu->attention, memory_order_relaxed))
        vcpu->cpu.end_block = true;
}

/* Offset in the xAPIC page, or -1. */
static int apic_offset(const struct engine_vcpu *vcpu, gpa_t address)
{
    uint64_t base = vcpu->lapic.base;
    bool xapic = (base & (X86_APIC_BASE_ENABLE | X86_APIC_BASE_X2APIC)) == X86_APIC_BASE_ENABLE;
    return xapic && (address.v & PAGE_MASK) == (base & PAGE_MASK) ? (int)(address.v & ~PAGE_MASK)
                                                                  : -1;
}

/* Has the engine look at everything before the next instruction. */
static void look_soon(struct engine_vcpu *vcpu)
{
    soft_notify(vcpu);
    vcpu->cpu.end_block = true;
}

/* After a write to one of its registers, by number. What is written often is looked at closely. */
static void apic_written(struct engine_vcpu *vcpu, unsigned reg)
{
    bool often = reg == X86_APIC_TPR || reg == X86_APIC_EOI || reg == X86_APIC_ICR ||
                 reg == X86_APIC_ICR_HIGH || reg == X86_APIC_SELF_IPI;

    if (!often || x86_lapic_pending(&vcpu->lapic) >= 0)
        look_soon(vcpu);
}

static uint64_t mmio_read(void *context, gpa_t address, unsigned size)
{
    struct engine_vcpu *vcpu = context;
    int offset = apic_offset(vcpu, address);

    if (offset >= 0)
        return x86_lapic_mmio_read(&vcpu->lapic, (unsigned)offset, size);
    soft_count(&vcpu->exits[VM_EXIT_MMIO], 1);
    struct soft_outside outside = soft_outside_begin(vcpu);
    uint64_t value = vcpu->vm->config.callbacks->mmio_read(vcpu->vm->config.context, address, size);
    soft_outside_end(vcpu, outside);
    return value;
}

static void mmio_write(void *context, gpa_t address, unsigned size, uint64_t value)
{
    struct engine_vcpu *vcpu = context;
    int offset = apic_offset(vcpu, address);

    if (offset >= 0) {
        x86_lapic_mmio_write(&vcpu->lapic, (unsigned)offset, size, value);
        apic_written(vcpu, (unsigned)offset >> 4);
        return;
    }
    soft_count(&vcpu->exits[VM_EXIT_MMIO], 1);
    struct soft_outside outside = soft_outside_begin(vcpu);
    vcpu->vm->config.callbacks->mmio_write(vcpu->vm->config.context, address, size, value);
    soft_outside_end(vcpu, outside);
}

static uint32_t pio_read(void *context, uint16_t port, unsigned size)
{
    struct engine_vcpu *vcpu = context;

    soft_count(&vcpu->exits[VM_EXIT_IO], 1);
    struct soft_outside outside = soft_outside_begin(vcpu);
    uint32_t value = vcpu->vm->config.callbacks->pio_read(vcpu->vm->config.context, port, size);
    soft_outside_end(vcpu, outside);
    return value;
}

static void pio_write(void *context, uint16_t port, unsigned size, uint32_t value)
{
    struct engine_vcpu *vcpu = context;

    soft_count(&vcpu->exits[VM_EXIT_IO], 1);
    struct soft_outside outside = soft_outside_begin(vcpu);
    vcpu->vm->config.callbacks->pio_write(vcpu->vm->config.context, port, size, value);
    soft_outside_end(vcpu, outside);
}

/* --- split locks --- */

static void begin_exclusive(void *context)
{
    struct engine_vcpu *vcpu = context;
    exclusive_begin(&vcpu->vm->exclusive, &vcpu->member);
    vcpu->exclusive_depth++;
}

static void end_exclusive(void *context)
{
    struct engine_vcpu *vcpu = context;
    vcpu->exclusive_depth--;
    exclusive_end(&vcpu->vm->exclusive);
}

/* A CPU that spins waits for another one: let that have the host's CPU. */
static void yield(void *context)
{
    struct engine_vcpu *vcpu = context;

    if (vcpu->vm->vcpu_count == 1)
        return;
    struct soft_outside outside = soft_outside_begin(vcpu);
    sched_yield();
    soft_outside_end(vcpu, outside);
}

/* --- MSRs --- */

static bool msr_read(void *context, uint32_t index, uint64_t *value)
{
    struct engine_vcpu *vcpu = context;

    if (index >= X86_MSR_X2APIC && index <= X86_MSR_X2APIC_END)
        return x86_lapic_msr_read(&vcpu->lapic, index, value);
    switch (index) {
    case X86_MSR_APIC_BASE:
        *value = vcpu->lapic.base;
        return true;
    case X86_MSR_TSC_DEADLINE:
        *value = x86_lapic_read_deadline(&vcpu->lapic);
        return x86_has(vcpu->cpu.features, X86_FEATURE_TSC_DEADLINE);
    case X86_MSR_KVM_SYSTEM_TIME:
    case X86_MSR_KVM_SYSTEM_TIME_OLD:
        *value = vcpu->cpu.s.kvmclock_system_time;
        return true;
    case X86_MSR_KVM_WALL_CLOCK:
    case X86_MSR_KVM_WALL_CLOCK_OLD:
        *value = vcpu->cpu.s.kvmclock_wall_clock;
        return true;
    default:
        return false;
    }
}

static bool write_apic_base(struct engine_vcpu *vcpu, uint64_t value)
{
    if (!x86_lapic_write_base(&vcpu->lapic, value, vcpu->cpu.cpuid->physical_address_bits))
        return false;
    vcpu->cpu.s.apic_base = vcpu->lapic.base;
    x86_tlb_flush(&vcpu->cpu, false); /* the page becomes RAM or registers */
    return true;
}

static void write_deadline(struct engine_vcpu *vcpu, uint64_t tsc)
{
    x86_lapic_write_deadline(&vcpu->lapic, tsc);
    if (x86_lapic_pending(&vcpu->lapic) >= 0)
        look_soon(vcpu); /* passed already, perhaps */
    soft_set_alarm(vcpu);
}

static bool msr_write(void *context, uint32_t index, uint64_t value)
{
    struct engine_vcpu *vcpu = context;

    if (index >= X86_MSR_X2APIC && index <= X86_MSR_X2APIC_END) {
        bool ok = x86_lapic_msr_write(&vcpu->lapic, index, value);
        apic_written(vcpu, index - X86_MSR_X2APIC);
        return ok;
    }
    if (index == X86_MSR_TSC_DEADLINE) {
        if (!x86_has(vcpu->cpu.features, X86_FEATURE_TSC_DEADLINE))
            return false;
        write_deadline(vcpu, value);
        return true;
    }
    if (index != X86_MSR_APIC_BASE)
        return soft_kvmclock_msr_write(vcpu, index, value);
    look_soon(vcpu);
    return write_apic_base(vcpu, value);
}

/* Looked at between instructions: the guest's time page and the timer depend on it. */
static void tsc_changed(void *context)
{
    struct engine_vcpu *vcpu = context;
    look_soon(vcpu);
}

static uint64_t read_cr8(void *context)
{
    struct engine_vcpu *vcpu = context;
    return x86_lapic_read_cr8(&vcpu->lapic);
}

static void write_cr8(void *context, uint64_t value)
{
    struct engine_vcpu *vcpu = context;
    x86_lapic_write_cr8(&vcpu->lapic, value);
    apic_written(vcpu, X86_APIC_TPR);
}

/* --- random numbers --- */

static bool read_random(void *context, uint64_t *value)
{
    struct engine_vcpu *vcpu = context;

    if (vcpu->random_left < sizeof *value) {
        ssize_t got = getrandom(vcpu->random, sizeof vcpu->random, 0);
        if (got < (ssize_t)sizeof *value)
            return false;
        vcpu->random_left = (unsigned)got;
    }
    vcpu->random_left -= (unsigned)sizeof *value;
    memcpy(value, vcpu->random + vcpu->random_left, sizeof *value);
    memset(vcpu->random + vcpu->random_left, 0, sizeof *value); /* never given twice */
    return true;
}

const struct x86_ops soft_x86_ops = {
    .page = soft_page,
    .store_begin = soft_store_begin,
    .store_end = soft_store_end,
    .mmio_read = mmio_read,
    .mmio_write = mmio_write,
    .pio_read = pio_read,
    .pio_write = pio_write,
    .exclusive_begin = begin_exclusive,
    .exclusive_end = end_exclusive,
    .tsc = read_tsc,
    .tsc_changed = tsc_changed,
    .yield = yield,
    .msr_read = msr_read,
    .msr_write = msr_write,
    .cr8_read = read_cr8,
    .cr8_write = write_cr8,
    .random = read_random,
};
