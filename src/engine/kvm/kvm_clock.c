/*
 * Time: the guests' TSCs and kvmclock follow VM time. vCPU's thread, or the loop's while no vCPU
 * runs.
 *
 * The kernel's TSC never stops, VM time does in a pause. At the first run the TSC is set to where
 * VM time stands; when a run finds that VM time's base has moved (by exactly the length of a
 * pause), TSC and kvmclock are moved back by as much: so a pause costs no precision, however often
 * it happens. All vCPUs get the same offset, but for what the guest itself has added: that moves
 * TSC_ADJUST by the same amount (SDM vol. 3 section 17.17.3).
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "engine/kvm/kvm_int.h"
#include "vm/clock.h"
#include "x86/defs.h"

uint64_t kvm_clock_ns(const struct engine_vm *vm)
{
    return vm->config.clock ? vm_clock_ns(vm->config.clock) : 0;
}

static uint64_t ticks(const struct engine_vm *vm, uint64_t ns)
{
    return mul_div_u64(ns, vm->tsc_hz, NS_PER_S);
}

/* Host time at VM time 0; while paused, or without a clock, it does not count. */
static uint64_t present_base(const struct engine_vm *vm)
{
    return vm->config.clock ? vm_clock_host_deadline(vm->config.clock, 0) : 0;
}

static int access_offset(struct engine_vcpu *vcpu, unsigned long request, uint64_t *offset)
{
    struct kvm_device_attr attr = {.group = KVM_VCPU_TSC_CTRL,
                                   .attr = KVM_VCPU_TSC_OFFSET,
                                   .addr = (uint64_t)(uintptr_t)offset};
    return kvm_call(vcpu->fd, request, &attr);
}

int kvm_clock_get_offset(struct engine_vcpu *vcpu, uint64_t *offset)
{
    uint64_t adjust = vcpu->tsc_adjust;
    int error = 0;
    if (!vcpu->fresh && x86_has(&vcpu->vm->config.cpuid->features, X86_FEATURE_TSC_ADJUST))
        error = kvm_msr_read(vcpu, X86_MSR_TSC_ADJUST, &adjust);
    *offset = vcpu->tsc_offset + (adjust - vcpu->tsc_adjust);
    return error;
}

static int set_kvmclock(struct engine_vm *vm, uint64_t ns)
{
    struct kvm_clock_data data = {.clock = ns};
    return kvm_call(vm->fd, KVM_SET_CLOCK, &data);
}

/* Where the offset must be so that the TSC reads as VM time has it. */
static int measure(struct engine_vcpu *vcpu, struct kvm_time *time)
{
    struct engine_vm *vm = vcpu->vm;
    uint64_t tsc, offset;
    int error = access_offset(vcpu, KVM_GET_DEVICE_ATTR, &offset);
    uint64_t before = kvm_clock_ns(vm);
    if (!error)
        error = kvm_msr_read(vcpu, X86_MSR_TSC, &tsc);
    uint64_t after = kvm_clock_ns(vm);
    if (error)
        return error;
    time->offset = offset + ticks(vm, before + (after - before) / 2) - tsc;
    return set_kvmclock(vm, kvm_clock_ns(vm));
}

/* VM time stood still for `pause` nanoseconds of the host's. */
static int skip_pause(struct engine_vm *vm, struct kvm_time *time, uint64_t pause)
{
    struct kvm_clock_data data;
    int error = kvm_call(vm->fd, KVM_GET_CLOCK, &data);
    time->offset -= ticks(vm, pause);
    return error ? error : set_kvmclock(vm, data.clock - pause);
}

/* clock_lock held. */
static int update_time(struct engine_vcpu *vcpu, uint64_t base)
{
    struct kvm_time *time = &vcpu->vm->time;
    int error;
    if (!time->valid)
        error = measure(vcpu, time);
    else
        error = skip_pause(vcpu->vm, time, base - time->base);
    if (error)
        return error;
    time->valid = true;
    time->generation++;
    time->base = base; /* last: pairs with kvm_clock_prepare */
    return 0;
}

/* The deadline is in TSC ticks: the kernel's timer for it was made under the old offset. */
static int set_deadline(struct engine_vcpu *vcpu)
{
    uint64_t deadline = vcpu->set.tsc_deadline;
    if (!x86_has(&vcpu->vm->config.cpuid->features, X86_FEATURE_TSC_DEADLINE))
        return 0;
    int error = vcpu->fresh ? 0 : kvm_msr_read(vcpu, X86_MSR_TSC_DEADLINE, &deadline);
    return error || !deadline ? error : kvm_msr_write(vcpu, X86_MSR_TSC_DEADLINE, deadline);
}

static int apply_time(struct engine_vcpu *vcpu, uint64_t vm_offset, unsigned generation)
{
    uint64_t own;
    int error = kvm_clock_get_offset(vcpu, &own);
    if (error)
        return error;
    vm_offset += own;
    error = access_offset(vcpu, KVM_SET_DEVICE_ATTR, &vm_offset);
    if (!error)
        error = set_deadline(vcpu);
    vcpu->time_generation = generation;
    return error;
}

static int prepare_slowly(struct engine_vcpu *vcpu, uint64_t base)
{
    struct engine_vm *vm = vcpu->vm;
    int error = 0;
    pthread_mutex_lock(&vm->clock_lock);
    if (!vm->time.valid || vm->time.base != base)
        error = update_time(vcpu, base);
    unsigned generation = vm->time.generation;
    uint64_t offset = vm->time.offset;
    pthread_mutex_unlock(&vm->clock_lock);
    if (error || (vcpu->time_generation == generation && !vcpu->fresh))
        return error;
    return apply_time(vcpu, offset, generation);
}

/* Without a lock: who sees the new base sees the new generation, too. */
int kvm_clock_prepare(struct engine_vcpu *vcpu)
{
    const struct kvm_time *time = &vcpu->vm->time;
    uint64_t base = present_base(vcpu->vm);
    bool same = atomic_load_explicit(&time->base, memory_order_acquire) == base;
    unsigned generation = atomic_load_explicit(&time->generation, memory_order_relaxed);
    if (likely(same && generation == vcpu->time_generation && !vcpu->fresh))
        return 0;
    return prepare_slowly(vcpu, base);
}

void kvm_clock_invalidate(struct engine_vm *vm)
{
    pthread_mutex_lock(&vm->clock_lock);
    vm->time.valid = false;
    vm->time.generation++;
    pthread_mutex_unlock(&vm->clock_lock);
}

/* --- frequency --- */

/* The kernel counts in kHz. A VM that asks for none has the host's. */
int kvm_clock_set_khz(struct engine_vcpu *vcpu, struct err *err)
{
    struct engine_vm *vm = vcpu->vm;
    int khz = kvm_call_number(vcpu->fd, KVM_GET_TSC_KHZ, 0);
    if (khz <= 0)
        return err_set(err, ENOTSUP, "engine kvm: the kernel does not know its TSC's frequency");
    if (!vm->tsc_hz)
        vm->tsc_hz = (uint64_t)khz * 1000;
    if (vm->tsc_hz / 1000 == (uint64_t)khz)
        return 0;
    uint64_t wanted = vm->tsc_hz / 1000;
    if (wanted > KVM_TSC_KHZ_MAX || !vm->tsc_scaling ||
        kvm_call_number(vcpu->fd, KVM_SET_TSC_KHZ, wanted))
        return err_set(err, ENOTSUP,
                       "engine kvm: a TSC of %llu Hz: this host's runs at %d kHz, and its CPU "
                       "cannot scale it",
                       (unsigned long long)vm->tsc_hz, khz);
    return 0;
}

static int host_khz(int system_fd)
{
    int vm = kvm_call_number(system_fd, KVM_CREATE_VM, 0);
    if (vm < 0)
        return vm;
    int vcpu = kvm_call_number(vm, KVM_CREATE_VCPU, 0);
    int khz = vcpu < 0 ? vcpu : kvm_call_number(vcpu, KVM_GET_TSC_KHZ, 0);
    if (vcpu >= 0)
        close(vcpu);
    close(vm);
    return khz;
}

uint64_t kvm_tsc_hz(uint64_t wanted)
{
    int fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return wanted;
    bool scales = kvm_call_number(fd, KVM_CHECK_EXTENSION, KVM_CAP_TSC_CONTROL) > 0;
    int khz = scales ? 0 : host_khz(fd);
    close(fd);
    return khz > 0 ? (uint64_t)khz * 1000 : wanted;
}
