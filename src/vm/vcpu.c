/*
 * The vCPU threads: wait for permission to run, run the engine, handle its exits. Exits are served
 * by a table; a handler runs on the vCPU's thread and holds no lock of the machine.
 */
#include "vm/machine_int.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/sandbox.h"
#include "vm/emulate.h"

static void exit_interrupted(struct vcpu *vcpu, struct vm_exit *exit)
{
    (void)vcpu, (void)exit;
}

static void exit_io(struct vcpu *vcpu, struct vm_exit *exit)
{
    struct bus *bus = vcpu->machine->pio;
    for (uint32_t i = 0; i < exit->io.count; i++) {
        uint8_t *data = exit->io.data + (size_t)i * exit->io.size;
        uint64_t value = 0;
        if (exit->io.write) {
            memcpy(&value, data, exit->io.size);
            bus_write(bus, exit->io.port, exit->io.size, value);
        } else {
            value = bus_read(bus, exit->io.port, exit->io.size);
            memcpy(data, &value, exit->io.size);
        }
    }
}

static void exit_mmio(struct vcpu *vcpu, struct vm_exit *exit)
{
    struct bus *bus = vcpu->machine->mmio;
    uint64_t value = 0;
    if (exit->mmio.write) {
        memcpy(&value, exit->mmio.data, exit->mmio.size);
        bus_write(bus, exit->mmio.address.v, exit->mmio.size, value);
    } else {
        value = bus_read(bus, exit->mmio.address.v, exit->mmio.size);
        memcpy(exit->mmio.data, &value, exit->mmio.size);
    }
}

static void exit_msr(struct vcpu *vcpu, struct vm_exit *exit)
{
    (void)vcpu;
    exit->msr.fault = true; /* the engine knows all the MSRs there are */
}

static void exit_shutdown(struct vcpu *vcpu, struct vm_exit *exit)
{
    (void)exit;
    if (vcpu->machine->config.reset_on_triple_fault)
        machine_request_reset(vcpu->machine);
    else
        machine_request_end(vcpu->machine, MACHINE_END_TRIPLE_FAULT);
}

/* What the engine cannot execute. An exception is delivered; what ends the CPU ends the machine. */
static void exit_emulate(struct vcpu *vcpu, struct vm_exit *exit)
{
    struct err err = {{0}};
    enum emulate_result result = emulator_run(vcpu, &err);
    if (result == EMULATE_SHUTDOWN)
        exit_shutdown(vcpu, exit);
    else if (result == EMULATE_ERROR)
        machine_request_host_error(vcpu->machine, "vCPU %u: %s", vcpu->index, err.text);
}

static void exit_error(struct vcpu *vcpu, struct vm_exit *exit)
{
    machine_request_host_error(vcpu->machine, "vCPU %u: engine %s: %s", vcpu->index,
                               vcpu->machine->engine->name, exit->error.text);
}

static void exit_unknown(struct vcpu *vcpu, struct vm_exit *exit)
{
    machine_request_host_error(vcpu->machine,
                               "vCPU %u: engine %s returned exit %d, which nobody "
                               "handles",
                               vcpu->index, vcpu->machine->engine->name, (int)exit->kind);
}

typedef void exit_handler(struct vcpu *vcpu, struct vm_exit *exit);

static exit_handler *const exit_handlers[VM_EXIT_KIND_COUNT] = {
    [VM_EXIT_INTERRUPTED] = exit_interrupted,
    [VM_EXIT_IO] = exit_io,
    [VM_EXIT_MMIO] = exit_mmio,
    [VM_EXIT_EMULATE] = exit_emulate,
    [VM_EXIT_HLT] = exit_unknown,
    [VM_EXIT_SHUTDOWN] = exit_shutdown,
    [VM_EXIT_MSR] = exit_msr,
    [VM_EXIT_CPUID] = exit_unknown,
    [VM_EXIT_DEBUG] = exit_unknown,
    [VM_EXIT_ERROR] = exit_error,
};

static void vcpu_handle_exit(struct vcpu *vcpu, struct vm_exit *exit)
{
    exit_handler *handler = exit_unknown;
    if ((unsigned)exit->kind < VM_EXIT_KIND_COUNT)
        handler = exit_handlers[exit->kind];
    handler(vcpu, exit);
}

/* Waits until the vCPU may run; false: the thread ends. Counts it as running. */
static bool vcpu_enter(struct machine_int *m)
{
    pthread_mutex_lock(&m->lock);
    while (m->target == RUN_TARGET_PAUSED)
        pthread_cond_wait(&m->changed, &m->lock);
    bool run = m->target == RUN_TARGET_RUNNING;
    if (run)
        m->running_count++;
    pthread_mutex_unlock(&m->lock);
    return run;
}

static void vcpu_leave(struct machine_int *m)
{
    pthread_mutex_lock(&m->lock);
    if (--m->running_count == 0)
        pthread_cond_broadcast(&m->changed);
    pthread_mutex_unlock(&m->lock);
}

/* May the vCPU go on without looking at the target again? */
static bool vcpu_may_continue(struct machine_int *m)
{
    pthread_mutex_lock(&m->lock);
    while (atomic_load(&m->hold) && m->target == RUN_TARGET_RUNNING)
        pthread_cond_wait(&m->changed, &m->lock);
    bool go = m->target == RUN_TARGET_RUNNING;
    pthread_mutex_unlock(&m->lock);
    return go;
}

static void *vcpu_thread(void *argument)
{
    struct vcpu *vcpu = argument;
    struct machine *machine = vcpu->machine;
    struct machine_int *m = machine->internal;
    sandbox_enter(machine->config.sandbox, SANDBOX_VCPU);
    while (vcpu_enter(m)) {
        uint64_t unset = 0;
        if (vcpu->index == 0 && atomic_load_explicit(&m->first_run_ns, memory_order_relaxed) == 0)
            atomic_compare_exchange_strong(&m->first_run_ns, &unset, clock_host_ns());
        do {
            struct vm_exit exit;
            machine->engine->vcpu_run(vcpu->engine, &exit);
            vcpu_handle_exit(vcpu, &exit);
        } while (vcpu_may_continue(m));
        vcpu_leave(m);
    }
    return NULL;
}

int vcpus_create(struct machine *machine, struct err *err)
{
    for (unsigned i = 0; i < machine->config.vcpu_count; i++) {
        struct vcpu *vcpu = &machine->vcpu[i];
        vcpu->machine = machine;
        vcpu->index = i;
        int error = machine->engine->vcpu_create(machine->engine_vm, i, &vcpu->engine, err);
        if (error)
            return error;
    }
    return 0;
}

int vcpus_start_threads(struct machine *machine, struct err *err)
{
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old); /* signals are for the loop thread */
    int error = 0;
    for (unsigned i = 0; i < machine->config.vcpu_count && !error; i++) {
        struct vcpu *vcpu = &machine->vcpu[i];
        error = pthread_create(&vcpu->thread, NULL, vcpu_thread, vcpu);
        vcpu->thread_started = error == 0;
        char name[16];
        snprintf(name, sizeof name, "vcpu%u", i);
        if (!error)
            pthread_setname_np(vcpu->thread, name);
    }
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (error)
        return err_set(err, error, "cannot start the vCPU threads: %s", strerror(error));
    return 0;
}

void vcpus_kick_all(struct machine *machine)
{
    for (unsigned i = 0; i < machine->config.vcpu_count; i++)
        if (machine->vcpu[i].engine)
            machine->engine->vcpu_kick(machine->vcpu[i].engine);
}

void vcpus_join_threads(struct machine *machine)
{
    struct machine_int *m = machine->internal;
    pthread_mutex_lock(&m->lock);
    m->target = RUN_TARGET_EXIT;
    pthread_cond_broadcast(&m->changed);
    pthread_mutex_unlock(&m->lock);
    vcpus_kick_all(machine);
    for (unsigned i = 0; i < machine->config.vcpu_count; i++) {
        struct vcpu *vcpu = &machine->vcpu[i];
        if (vcpu->thread_started)
            pthread_join(vcpu->thread, NULL);
        vcpu->thread_started = false;
    }
}

void vcpus_destroy(struct machine *machine)
{
    for (unsigned i = machine->config.vcpu_count; i-- > 0;) {
        if (machine->vcpu[i].engine)
            machine->engine->vcpu_destroy(machine->vcpu[i].engine);
        machine->vcpu[i].engine = NULL;
        emulator_destroy(machine->vcpu[i].emulator);
        machine->vcpu[i].emulator = NULL;
    }
}
