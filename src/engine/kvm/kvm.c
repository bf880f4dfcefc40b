/*
 * Engine kvm: creation and destruction, the table of operations. Loop thread unless said otherwise;
 * see vm/engine.h. Linux, Documentation/virt/kvm/api.rst.
 */
#include "engine/kvm/kvm.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/clock.h"
#include "engine/kvm/kvm_int.h"
#include "x86/defs.h"

/* Three pages and one that KVM on old Intel CPUs needs in guest-physical space; no RAM there. */
#define IDENTITY_MAP_ADDRESS 0xfeffc000ull
#define TSS_ADDRESS          0xfeffd000ull

#define SIGNAL_SET_BYTES 8 /* the kernel's */

int kvm_call(int fd, unsigned long request, void *argument)
{
    int result;
    do
        result = ioctl(fd, request, argument);
    while (result < 0 && errno == EINTR);
    return result < 0 ? -errno : result;
}

int kvm_call_number(int fd, unsigned long request, unsigned long argument)
{
    return kvm_call(fd, request, (void *)argument); // NOLINT: the kernel takes either
}

static unsigned capabilities(void)
{
    unsigned caps = ENGINE_CAP_DIRTY_LOG | ENGINE_CAP_DOORBELL;
    int fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return caps;
    if (kvm_call_number(fd, KVM_CHECK_EXTENSION, KVM_CAP_TSC_CONTROL) > 0)
        caps |= ENGINE_CAP_TSC_SCALING;
    close(fd);
    return caps;
}

/* --- VM --- */

struct enabled {
    uint32_t cap;
    uint64_t argument;
    const char *name;
};

/* IOAPIC, 8259s and 8254 are the machine's; the routes are for the ends of level interrupts. */
static const struct enabled enabled[] = {
    {KVM_CAP_SPLIT_IRQCHIP, KVM_ROUTES_MAX, "a split interrupt controller"},
    {KVM_CAP_X2APIC_API, KVM_X2APIC_API_USE_32BIT_IDS | KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK,
     "32-bit APIC ids"},
    {KVM_CAP_EXCEPTION_PAYLOAD, 1, "exception payloads"},
    {KVM_CAP_EXIT_ON_EMULATION_FAILURE, 1, "exits for instructions it cannot emulate"},
};

static int enable_capabilities(struct engine_vm *vm, struct err *err)
{
    for (size_t i = 0; i < ARRAY_COUNT(enabled); i++) {
        struct kvm_enable_cap cap = {.cap = enabled[i].cap, .args = {enabled[i].argument}};
        int error = kvm_call(vm->fd, KVM_ENABLE_CAP, &cap);
        if (error)
            return err_set(err, -error, "engine kvm: this kernel's KVM has no %s: %s",
                           enabled[i].name, strerror(-error));
    }
    return 0;
}

static int open_system(struct engine_vm *vm, struct err *err)
{
    vm->system_fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    if (vm->system_fd < 0)
        return err_set(err, errno, "engine kvm: cannot open /dev/kvm: %s", strerror(errno));
    const char *missing = kvm_missing_capability(vm->system_fd);
    if (missing)
        return err_set(err, ENOTSUP, "engine kvm: this kernel's KVM has no %s", missing);
    int size = kvm_call_number(vm->system_fd, KVM_GET_VCPU_MMAP_SIZE, 0);
    if (size < (int)sizeof(struct kvm_run))
        return err_set(err, EIO, "engine kvm: /dev/kvm is not the kernel's KVM");
    vm->run_size = (size_t)size;
    vm->tsc_scaling = kvm_call_number(vm->system_fd, KVM_CHECK_EXTENSION, KVM_CAP_TSC_CONTROL) > 0;
    return 0;
}

static int create_kernel_vm(struct engine_vm *vm, struct err *err)
{
    vm->fd = kvm_call_number(vm->system_fd, KVM_CREATE_VM, 0);
    if (vm->fd < 0)
        return err_set(err, -vm->fd, "engine kvm: the kernel makes no VM: %s", strerror(-vm->fd));
    uint64_t identity = IDENTITY_MAP_ADDRESS;
    int error = kvm_call(vm->fd, KVM_SET_IDENTITY_MAP_ADDR, &identity);
    if (!error)
        error = kvm_call_number(vm->fd, KVM_SET_TSS_ADDR, TSS_ADDRESS);
    if (error)
        return err_set(err, -error, "engine kvm: cannot set up the VM: %s", strerror(-error));
    return enable_capabilities(vm, err);
}

static void init_locks(struct engine_vm *vm)
{
    pthread_mutex_init(&vm->memory_lock, NULL);
    pthread_mutex_init(&vm->gate_lock, NULL);
    pthread_cond_init(&vm->gate_left, NULL);
    pthread_mutex_init(&vm->msi_lock, NULL);
    pthread_mutex_init(&vm->clock_lock, NULL);
}

static void free_vcpu(struct engine_vcpu *vcpu)
{
    if (vcpu->run)
        munmap(vcpu->run, vcpu->vm->run_size);
    if (vcpu->fd >= 0)
        close(vcpu->fd);
    free(vcpu);
}

static void vm_destroy(struct engine_vm *vm)
{
    for (unsigned i = 0; i < vm->vcpu_count; i++)
        free_vcpu(vm->vcpu[i]);
    kvm_memory_destroy(vm);
    if (vm->fd >= 0)
        close(vm->fd);
    if (vm->system_fd >= 0)
        close(vm->system_fd);
    pthread_mutex_destroy(&vm->clock_lock);
    pthread_mutex_destroy(&vm->msi_lock);
    pthread_cond_destroy(&vm->gate_left);
    pthread_mutex_destroy(&vm->gate_lock);
    pthread_mutex_destroy(&vm->memory_lock);
    free(vm);
}

static int vm_create(const struct engine_vm_config *config, struct engine_vm **out, struct err *err)
{
    struct engine_vm *vm = calloc(1, sizeof *vm);
    if (!vm)
        return err_set(err, ENOMEM, "out of memory");
    vm->config = *config;
    vm->system_fd = vm->fd = -1;
    vm->kick_signal = SIGRTMIN;
    vm->xcr0 = X86_XCR0_X87 | X86_XCR0_SSE;
    if (x86_has(&config->cpuid->features, X86_FEATURE_AVX))
        vm->xcr0 |= X86_XCR0_AVX;
    init_locks(vm);
    int error = open_system(vm, err);
    if (!error)
        error = create_kernel_vm(vm, err);
    if (error) {
        vm_destroy(vm);
        return error;
    }
    vm->tsc_hz = config->tsc_hz;
    *out = vm;
    return 0;
}

static int vm_get_state(struct engine_vm *vm, struct engine_vm_state *out)
{
    uint64_t offset = 0;
    int error = vm->vcpu_count ? kvm_clock_get_offset(vm->vcpu[0], &offset) : 0;
    out->tsc_hz = vm->tsc_hz;
    out->clock_ns = kvm_clock_ns(vm);
    out->tsc = mul_div_u64(out->clock_ns, vm->tsc_hz, NS_PER_S) + offset;
    return error;
}

static int vm_set_state(struct engine_vm *vm, const struct engine_vm_state *state, struct err *err)
{
    if (state->tsc_hz == 0)
        return err_set(err, EINVAL, "engine kvm: a saved TSC frequency of 0");
    if (state->tsc_hz != vm->tsc_hz && !vm->tsc_scaling)
        return err_set(err, ENOTSUP,
                       "engine kvm: the saved VM's TSC runs at %llu Hz, this host's at %llu Hz, "
                       "and its CPU cannot scale it",
                       (unsigned long long)state->tsc_hz, (unsigned long long)vm->tsc_hz);
    bool changes = state->tsc_hz != vm->tsc_hz;
    vm->tsc_hz = state->tsc_hz;
    for (unsigned i = 0; i < vm->vcpu_count && changes; i++) {
        int error = kvm_clock_set_khz(vm->vcpu[i], err);
        if (error)
            return error;
    }
    kvm_clock_invalidate(vm);
    return 0;
}

/* --- vCPU --- */

/* Its memory stays until the VM goes: a device's thread may be sending it an interrupt now. */
static void vcpu_destroy(struct engine_vcpu *vcpu)
{
    (void)vcpu;
}

/* The kick's signal is blocked in the thread at all times but inside KVM_RUN. */
static int set_signal_mask(struct engine_vcpu *vcpu)
{
    struct {
        uint32_t length; /* as struct kvm_signal_mask */
        uint8_t set[SIGNAL_SET_BYTES];
    } mask = {.length = SIGNAL_SET_BYTES};
    uint64_t blocked = ~BIT(vcpu->vm->kick_signal - 1);
    memcpy(mask.set, &blocked, sizeof blocked);
    return kvm_call(vcpu->fd, KVM_SET_SIGNAL_MASK, &mask);
}

/* Asynchronous page faults and the like are not in CPUID: then their MSRs shall not be there. */
static int enforce_cpuid(struct engine_vcpu *vcpu)
{
    struct kvm_enable_cap cap = {.cap = KVM_CAP_ENFORCE_PV_FEATURE_CPUID, .args = {1}};
    return kvm_call(vcpu->fd, KVM_ENABLE_CAP, &cap);
}

static int open_vcpu(struct engine_vcpu *vcpu, struct err *err)
{
    struct engine_vm *vm = vcpu->vm;
    vcpu->fd = kvm_call_number(vm->fd, KVM_CREATE_VCPU, vcpu->index);
    if (vcpu->fd < 0)
        return err_set(err, -vcpu->fd, "engine kvm: the kernel makes no CPU %u: %s", vcpu->index,
                       strerror(-vcpu->fd));
    void *run = mmap(NULL, vm->run_size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu->fd, 0);
    if (run == MAP_FAILED)
        return err_set(err, errno, "engine kvm: cannot map CPU %u: %s", vcpu->index,
                       strerror(errno));
    vcpu->run = run;
    int error = set_signal_mask(vcpu);
    if (!error)
        error = enforce_cpuid(vcpu);
    if (!error)
        error = kvm_cpuid_set(vcpu);
    if (error)
        return err_set(err, -error, "engine kvm: the kernel refuses CPU %u's CPUID: %s",
                       vcpu->index, strerror(-error));
    return kvm_clock_set_khz(vcpu, err);
}

static int vcpu_create(struct engine_vm *vm, unsigned index, struct engine_vcpu **out,
                       struct err *err)
{
    struct engine_vcpu *vcpu = calloc(1, sizeof *vcpu);
    if (!vcpu)
        return err_set(err, ENOMEM, "out of memory");
    vcpu->vm = vm;
    vcpu->index = index;
    vcpu->fd = -1;
    int error = open_vcpu(vcpu, err);
    if (!error) {
        struct x86_state state;
        x86_state_reset(&state, index, index == 0);
        error = kvm_set_state(vcpu, &state, err);
    }
    if (error) {
        free_vcpu(vcpu);
        return error;
    }
    vm->vcpu[index] = vcpu;
    vm->vcpu_count = index + 1;
    *out = vcpu;
    return 0;
}

/* vCPU's thread, between runs. */
static void inject_exception(struct engine_vcpu *vcpu, const struct x86_event *event)
{
    struct x86_state state;
    struct err err = {{0}};
    if (kvm_get_state(vcpu, &state))
        return;
    state.pending = *event;
    (void)kvm_set_state(vcpu, &state, &err);
}

static void vcpu_counters(struct engine_vcpu *vcpu, struct engine_vcpu_counters *out)
{
    for (unsigned i = 0; i < VM_EXIT_KIND_COUNT; i++)
        out->exits[i] = vcpu->exits[i];
}

/* --- doorbells --- */

static int doorbell(struct engine_vm *vm, gpa_t address, unsigned size, int fd, uint32_t flags)
{
    struct kvm_ioeventfd bell = {.addr = address.v, .len = size, .fd = fd, .flags = flags};
    return kvm_call(vm->fd, KVM_IOEVENTFD, &bell);
}

static int doorbell_add(struct engine_vm *vm, gpa_t address, unsigned size, int fd)
{
    return doorbell(vm, address, size, fd, 0);
}

static int doorbell_remove(struct engine_vm *vm, gpa_t address, unsigned size, int fd)
{
    return doorbell(vm, address, size, fd, KVM_IOEVENTFD_FLAG_DEASSIGN);
}

/* None of them makes anything new. */
static const unsigned ioctls[] = {
    KVM_RUN,
    KVM_INTERRUPT,
    KVM_NMI,
    KVM_SIGNAL_MSI,
    KVM_SET_SIGNAL_MASK,
    KVM_IOEVENTFD,
    KVM_GET_REGS,
    KVM_SET_REGS,
    KVM_GET_SREGS,
    KVM_SET_SREGS,
    KVM_GET_SREGS2,
    KVM_SET_SREGS2,
    KVM_GET_XSAVE,
    KVM_SET_XSAVE,
    KVM_GET_XCRS,
    KVM_SET_XCRS,
    KVM_GET_DEBUGREGS,
    KVM_SET_DEBUGREGS,
    KVM_GET_MSRS,
    KVM_SET_MSRS,
    KVM_GET_LAPIC,
    KVM_SET_LAPIC,
    KVM_GET_VCPU_EVENTS,
    KVM_SET_VCPU_EVENTS,
    KVM_GET_MP_STATE,
    KVM_SET_MP_STATE,
    KVM_GET_CLOCK,
    KVM_SET_CLOCK,
    KVM_GET_TSC_KHZ,
    KVM_SET_TSC_KHZ,
    KVM_GET_DEVICE_ATTR,
    KVM_SET_DEVICE_ATTR,
    KVM_GET_DIRTY_LOG,
    KVM_SET_GSI_ROUTING,
    KVM_SET_USER_MEMORY_REGION,
};

const struct engine_ops engine_kvm = {
    .name = "kvm",
    .probe = kvm_probe,
    .ioctls = ioctls,
    .ioctl_count = ARRAY_COUNT(ioctls),
    .capabilities = capabilities,
    .cpu_features = kvm_cpu_features,
    .tsc_hz = kvm_tsc_hz,
    .vm_create = vm_create,
    .vm_destroy = vm_destroy,
    .memory_map = kvm_memory_map,
    .memory_unmap = kvm_memory_unmap,
    .memory_protect = kvm_memory_protect,
    .dirty_log = kvm_dirty_log,
    .vcpu_create = vcpu_create,
    .vcpu_destroy = vcpu_destroy,
    .vcpu_run = kvm_vcpu_run,
    .vcpu_kick = kvm_vcpu_kick,
    .vcpu_get_state = kvm_get_state,
    .vcpu_set_state = kvm_set_state,
    .vcpu_counters = vcpu_counters,
    .vm_get_state = vm_get_state,
    .vm_set_state = vm_set_state,
    .send_msi = kvm_send_msi,
    .set_extint = kvm_set_extint,
    .inject_nmi = kvm_inject_nmi,
    .inject_exception = inject_exception,
    .doorbell_add = doorbell_add,
    .doorbell_remove = doorbell_remove,
};
