/*
 * Running a vCPU: KVM_RUN, its exits by table, kicks. vCPU's thread, but for kicks.
 *
 * A kick sets its flag, then the kernel's immediate_exit, then signals the thread when that is in
 * KVM_RUN. The run path clears immediate_exit before it reads the flags, and is inside before the
 * kernel reads immediate_exit: whatever the order, one of the three is seen. The signal is blocked
 * outside of KVM_RUN, so that it disturbs no system call of a device.
 */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "engine/kvm/kvm_int.h"

#define COMPLETIONS_MAX 64 /* pieces of one access; the kernel has fewer */

enum action { RUN_ON, RUN_RETURN };

static enum action fail(struct vm_exit *exit, int error, const char *what)
{
    exit->kind = VM_EXIT_ERROR;
    exit->error.error = error;
    snprintf(exit->error.text, sizeof exit->error.text, "%s: %s", what, strerror(-error));
    return RUN_RETURN;
}

/* --- exits --- */

static enum action exit_io(struct engine_vcpu *vcpu, struct vm_exit *exit)
{
    struct kvm_run *run = vcpu->run;
    exit->kind = VM_EXIT_IO;
    exit->io.port = run->io.port;
    exit->io.size = run->io.size;
    exit->io.write = run->io.direction == KVM_EXIT_IO_OUT;
    exit->io.count = run->io.count;
    exit->io.data = (uint8_t *)run + run->io.data_offset;
    vcpu->io_open = true;
    return RUN_RETURN;
}

static enum action exit_mmio(struct engine_vcpu *vcpu, struct vm_exit *exit)
{
    struct kvm_run *run = vcpu->run;
    exit->kind = VM_EXIT_MMIO;
    exit->mmio.address = gpa(run->mmio.phys_addr);
    exit->mmio.size = (uint8_t)run->mmio.len;
    exit->mmio.write = run->mmio.is_write;
    exit->mmio.data = run->mmio.data;
    vcpu->io_open = true;
    return RUN_RETURN;
}

static enum action exit_again(struct engine_vcpu *vcpu, struct vm_exit *exit)
{
    return RUN_ON;
}

static enum action exit_shutdown(struct engine_vcpu *vcpu, struct vm_exit *exit)
{
    vcpu->shut_down = true;
    exit->kind = VM_EXIT_SHUTDOWN;
    return RUN_RETURN;
}

static enum action exit_eoi(struct engine_vcpu *vcpu, struct vm_exit *exit)
{
    const struct engine_vm_config *config = &vcpu->vm->config;
    config->callbacks->eoi(config->context, vcpu->run->eoi.vector);
    return RUN_ON;
}

static enum action exit_internal(struct engine_vcpu *vcpu, struct vm_exit *exit)
{
    uint32_t kind = vcpu->run->internal.suberror;
    if (kind == KVM_INTERNAL_ERROR_EMULATION) {
        exit->kind = VM_EXIT_EMULATE;
        return RUN_RETURN;
    }
    exit->kind = VM_EXIT_ERROR;
    exit->error.error = -EIO;
    snprintf(exit->error.text, sizeof exit->error.text, "KVM gave up with internal error %u (%llx)",
             kind,
             vcpu->run->internal.ndata ? (unsigned long long)vcpu->run->internal.data[0] : 0ull);
    return RUN_RETURN;
}

static enum action exit_fail_entry(struct engine_vcpu *vcpu, struct vm_exit *exit)
{
    exit->kind = VM_EXIT_ERROR;
    exit->error.error = -EIO;
    snprintf(exit->error.text, sizeof exit->error.text,
             "the CPU does not enter the guest, hardware reason %#llx",
             (unsigned long long)vcpu->run->fail_entry.hardware_entry_failure_reason);
    return RUN_RETURN;
}

static enum action exit_unknown(struct engine_vcpu *vcpu, struct vm_exit *exit)
{
    kvm_count(&vcpu->unknown_exits);
    exit->kind = VM_EXIT_ERROR;
    exit->error.error = -EIO;
    snprintf(exit->error.text, sizeof exit->error.text, "exit %u of KVM, which nobody handles",
             vcpu->run->exit_reason);
    return RUN_RETURN;
}

typedef enum action exit_handler(struct engine_vcpu *vcpu, struct vm_exit *exit);

/* HLT stays in the kernel, as the local APIC is there. */
static exit_handler *const exit_handlers[] = {
    [KVM_EXIT_UNKNOWN] = exit_unknown,   [KVM_EXIT_IO] = exit_io,
    [KVM_EXIT_MMIO] = exit_mmio,         [KVM_EXIT_IRQ_WINDOW_OPEN] = exit_again,
    [KVM_EXIT_SHUTDOWN] = exit_shutdown, [KVM_EXIT_FAIL_ENTRY] = exit_fail_entry,
    [KVM_EXIT_INTR] = exit_again,        [KVM_EXIT_INTERNAL_ERROR] = exit_internal,
    [KVM_EXIT_IOAPIC_EOI] = exit_eoi,
};

static enum action handle(struct engine_vcpu *vcpu, struct vm_exit *exit)
{
    uint32_t reason = vcpu->run->exit_reason;
    exit_handler *handler = reason < ARRAY_COUNT(exit_handlers) ? exit_handlers[reason] : NULL;
    return (handler ? handler : exit_unknown)(vcpu, exit);
}

/* --- the run itself --- */

static void set_immediate_exit(struct engine_vcpu *vcpu, uint8_t value)
{
    __atomic_store_n(&vcpu->run->immediate_exit, value, __ATOMIC_SEQ_CST);
}

/* A signal that has come stays pending, blocked as it is. */
static void drain_signal(struct engine_vcpu *vcpu)
{
    sigset_t set;
    struct timespec now = {0};
    sigemptyset(&set);
    sigaddset(&set, vcpu->vm->kick_signal);
    while (sigtimedwait(&set, NULL, &now) > 0)
        ;
}

/* 0, -EINTR, or -errno. */
static int enter_kernel(struct engine_vcpu *vcpu)
{
    kvm_gate_enter(vcpu);
    int result = ioctl(vcpu->fd, KVM_RUN, 0) < 0 ? -errno : 0;
    kvm_gate_leave(vcpu);
    vcpu->io_open = vcpu->stale = false;
    return result;
}

static int prepare(struct engine_vcpu *vcpu)
{
    int error = kvm_clock_prepare(vcpu);
    if (!error)
        error = kvm_irq_prepare(vcpu);
    vcpu->fresh = vcpu->given = false;
    return error;
}

static enum action run_once(struct engine_vcpu *vcpu, struct vm_exit *exit)
{
    set_immediate_exit(vcpu, 0);
    if (atomic_load(&vcpu->kicked)) {
        atomic_store(&vcpu->kicked, false);
        return RUN_RETURN;
    }
    int error = prepare(vcpu);
    if (error)
        return fail(exit, error, "cannot prepare the CPU");
    error = enter_kernel(vcpu);
    if (!error)
        return handle(vcpu, exit);
    if (error == -EINTR)
        drain_signal(vcpu);
    /* EAGAIN: a CPU that waits for INIT or a start-up IPI has woken up. */
    return error == -EINTR || error == -EAGAIN ? RUN_ON : fail(exit, error, "KVM_RUN");
}

/* Asked of the kernel: a new thread may have the pthread_t of one that has ended. */
static void prepare_thread(struct engine_vcpu *vcpu)
{
    pid_t tid = (pid_t)syscall(SYS_gettid);
    sigset_t set;
    if (likely(atomic_load_explicit(&vcpu->tid, memory_order_relaxed) == tid))
        return;
    sigemptyset(&set);
    sigaddset(&set, vcpu->vm->kick_signal);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    atomic_store(&vcpu->tid, tid);
}

void kvm_vcpu_run(struct engine_vcpu *vcpu, struct vm_exit *exit)
{
    prepare_thread(vcpu);
    exit->kind = VM_EXIT_INTERRUPTED;
    if (vcpu->shut_down) /* until an INIT or a reset by the machine */
        exit->kind = VM_EXIT_SHUTDOWN;
    else
        while (run_once(vcpu, exit) == RUN_ON)
            ;
    kvm_count(&vcpu->exits[exit->kind]);
}

/* --- from other threads --- */

void kvm_vcpu_wake(struct engine_vcpu *vcpu)
{
    set_immediate_exit(vcpu, 1);
    if (atomic_load(&vcpu->inside))
        syscall(SYS_tgkill, getpid(), atomic_load(&vcpu->tid), vcpu->vm->kick_signal);
}

void kvm_vcpu_kick(struct engine_vcpu *vcpu)
{
    atomic_store(&vcpu->kicked, true);
    kvm_vcpu_wake(vcpu);
}

/* --- completing --- */

/* A further piece of the access, which the machine has to serve now. */
static void serve_piece(struct engine_vcpu *vcpu)
{
    const struct engine_vm_config *config = &vcpu->vm->config;
    struct kvm_run *run = vcpu->run;
    uint64_t value = 0;
    if (run->exit_reason != KVM_EXIT_MMIO || run->mmio.len > sizeof value)
        return;
    gpa_t address = gpa(run->mmio.phys_addr);
    if (run->mmio.is_write) {
        memcpy(&value, run->mmio.data, run->mmio.len);
        config->callbacks->mmio_write(config->context, address, run->mmio.len, value);
    } else {
        value = config->callbacks->mmio_read(config->context, address, run->mmio.len);
        memcpy(run->mmio.data, &value, run->mmio.len);
    }
}

/* With immediate_exit the kernel does what is left of the last exit and runs no guest code. */
int kvm_vcpu_complete_io(struct engine_vcpu *vcpu)
{
    int error = 0;
    for (unsigned i = 0; i < COMPLETIONS_MAX && !error; i++) {
        set_immediate_exit(vcpu, 1);
        error = ioctl(vcpu->fd, KVM_RUN, 0) < 0 ? -errno : 0;
        if (!error)
            serve_piece(vcpu);
    }
    vcpu->io_open = vcpu->stale = false;
    set_immediate_exit(vcpu, 0); /* the flags of who kicked meanwhile are read by the next run */
    return error == -EINTR || error == -EAGAIN ? 0 : error ? error : -EIO;
}
