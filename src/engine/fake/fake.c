/* Engine `fake`; see fake.h. A lock per VM guards everything but the kick. */
#include "engine/fake/fake.h"

#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdlib.h>
#include <string.h>

struct engine_vm {
    pthread_mutex_t lock;
    struct engine_vm_config config;
    struct engine_vm_state state;
    engine_fake_script *script;
    void *script_context;
    struct engine_fake_log log;
};

struct engine_vcpu {
    struct engine_vm *vm;
    unsigned index;
    unsigned step;
    sem_t kicked; /* sem_post is async-signal-safe */
    struct x86_state state;
    struct engine_vcpu_counters counters;
};

static void fake_probe(struct engine_probe *out)
{
    *out = (struct engine_probe) {.verdict = ENGINE_UNUSABLE, .reason = "it is for tests only"};
}

static unsigned fake_capabilities(void)
{
    return 0;
}

static void fake_cpu_features(struct x86_features *out)
{
    memset(out, 0xff, sizeof *out);
}

static int fake_vm_create(const struct engine_vm_config *config, struct engine_vm **out,
                          struct err *err)
{
    struct engine_vm *vm = calloc(1, sizeof *vm);
    if (!vm)
        return err_set(err, ENOMEM, "out of memory");
    pthread_mutex_init(&vm->lock, NULL);
    vm->config = *config;
    vm->state.tsc_hz = config->tsc_hz ? config->tsc_hz : 1000000000;
    *out = vm;
    return 0;
}

static void fake_vm_destroy(struct engine_vm *vm)
{
    pthread_mutex_destroy(&vm->lock);
    free(vm);
}

static int fake_memory_map(struct engine_vm *vm, const struct engine_slot *slot)
{
    (void)vm, (void)slot;
    return 0;
}

static int fake_memory_unmap(struct engine_vm *vm, gpa_t start, uint64_t size)
{
    (void)vm, (void)start, (void)size;
    return 0;
}

static int fake_memory_protect(struct engine_vm *vm, gpa_t start, uint64_t size,
                               unsigned protection)
{
    (void)vm, (void)start, (void)size, (void)protection;
    return 0;
}

static int fake_dirty_log(struct engine_vm *vm, gpa_t start, uint64_t size, uint64_t *bitmap)
{
    (void)vm, (void)start, (void)size, (void)bitmap;
    return -ENOTSUP;
}

static void fake_memory_written(struct engine_vm *vm, gpa_t start, uint64_t length)
{
    (void)start;
    pthread_mutex_lock(&vm->lock);
    vm->log.written_bytes += length;
    pthread_mutex_unlock(&vm->lock);
}

static int fake_vcpu_create(struct engine_vm *vm, unsigned index, struct engine_vcpu **out,
                            struct err *err)
{
    struct engine_vcpu *vcpu = calloc(1, sizeof *vcpu);
    if (!vcpu)
        return err_set(err, ENOMEM, "out of memory");
    vcpu->vm = vm;
    vcpu->index = index;
    sem_init(&vcpu->kicked, 0, 0);
    *out = vcpu;
    return 0;
}

static void fake_vcpu_destroy(struct engine_vcpu *vcpu)
{
    sem_destroy(&vcpu->kicked);
    free(vcpu);
}

static void fake_vcpu_run(struct engine_vcpu *vcpu, struct vm_exit *exit)
{
    struct engine_vm *vm = vcpu->vm;
    memset(exit, 0, sizeof *exit);
    exit->kind = VM_EXIT_INTERRUPTED;
    if (sem_trywait(&vcpu->kicked) == 0) {
        /* kicked before or since the last run */
    } else if (vm->script && vm->script(vm->script_context, vcpu->index, vcpu->step, exit)) {
        vcpu->step++;
    } else {
        exit->kind = VM_EXIT_INTERRUPTED;
        while (sem_wait(&vcpu->kicked) != 0)
            ;
    }
    if ((unsigned)exit->kind < VM_EXIT_KIND_COUNT)
        vcpu->counters.exits[exit->kind]++;
}

static void fake_vcpu_kick(struct engine_vcpu *vcpu)
{
    sem_post(&vcpu->kicked);
}

static int fake_vcpu_get_state(struct engine_vcpu *vcpu, struct x86_state *out)
{
    *out = vcpu->state;
    return 0;
}

static int fake_vcpu_set_state(struct engine_vcpu *vcpu, const struct x86_state *state,
                               struct err *err)
{
    (void)err;
    vcpu->state = *state;
    return 0;
}

static void fake_vcpu_counters(struct engine_vcpu *vcpu, struct engine_vcpu_counters *out)
{
    *out = vcpu->counters;
}

static int fake_vm_get_state(struct engine_vm *vm, struct engine_vm_state *out)
{
    *out = vm->state;
    return 0;
}

static int fake_vm_set_state(struct engine_vm *vm, const struct engine_vm_state *state,
                             struct err *err)
{
    if (state->tsc_hz != vm->state.tsc_hz)
        return err_set(err, ENOTSUP, "saved state: its TSC runs at %llu Hz, this one at %llu Hz",
                       (unsigned long long)state->tsc_hz, (unsigned long long)vm->state.tsc_hz);
    vm->state = *state;
    return 0;
}

static void fake_send_msi(struct engine_vm *vm, uint64_t address, uint32_t data)
{
    pthread_mutex_lock(&vm->lock);
    if (vm->log.msi_count < ENGINE_FAKE_MSI_MAX) {
        vm->log.msi[vm->log.msi_count].address = address;
        vm->log.msi[vm->log.msi_count].data = data;
    }
    vm->log.msi_count++;
    pthread_mutex_unlock(&vm->lock);
}

static void fake_set_extint(struct engine_vm *vm, bool level)
{
    pthread_mutex_lock(&vm->lock);
    vm->log.extint = level;
    pthread_mutex_unlock(&vm->lock);
}

static void fake_inject_nmi(struct engine_vcpu *vcpu)
{
    pthread_mutex_lock(&vcpu->vm->lock);
    vcpu->vm->log.nmi_count++;
    pthread_mutex_unlock(&vcpu->vm->lock);
}

static void fake_inject_exception(struct engine_vcpu *vcpu, const struct x86_event *event)
{
    vcpu->state.pending = *event;
}

static int fake_doorbell_add(struct engine_vm *vm, gpa_t address, unsigned size, int fd)
{
    int error = -ENOSPC;
    pthread_mutex_lock(&vm->lock);
    if (vm->log.doorbell_count < ENGINE_FAKE_DOORBELL_MAX) {
        vm->log.doorbell[vm->log.doorbell_count++] =
            (struct engine_fake_doorbell) {address.v, size, fd};
        error = 0;
    }
    pthread_mutex_unlock(&vm->lock);
    return error;
}

static int fake_doorbell_remove(struct engine_vm *vm, gpa_t address, unsigned size, int fd)
{
    int error = -ENOENT;
    pthread_mutex_lock(&vm->lock);
    for (unsigned i = 0; i < vm->log.doorbell_count && error; i++) {
        struct engine_fake_doorbell *bell = &vm->log.doorbell[i];
        if (bell->address != address.v || bell->size != size || bell->fd != fd)
            continue;
        *bell = vm->log.doorbell[--vm->log.doorbell_count];
        error = 0;
    }
    pthread_mutex_unlock(&vm->lock);
    return error;
}

void engine_fake_set_script(struct engine_vm *vm, engine_fake_script *script, void *context)
{
    vm->script = script;
    vm->script_context = context;
}

void engine_fake_read_log(struct engine_vm *vm, struct engine_fake_log *out)
{
    pthread_mutex_lock(&vm->lock);
    *out = vm->log;
    pthread_mutex_unlock(&vm->lock);
}

const struct engine_ops engine_fake = {
    .name = "fake",
    .probe = fake_probe,
    .capabilities = fake_capabilities,
    .cpu_features = fake_cpu_features,
    .vm_create = fake_vm_create,
    .vm_destroy = fake_vm_destroy,
    .memory_map = fake_memory_map,
    .memory_unmap = fake_memory_unmap,
    .memory_protect = fake_memory_protect,
    .dirty_log = fake_dirty_log,
    .memory_written = fake_memory_written,
    .vcpu_create = fake_vcpu_create,
    .vcpu_destroy = fake_vcpu_destroy,
    .vcpu_run = fake_vcpu_run,
    .vcpu_kick = fake_vcpu_kick,
    .vcpu_get_state = fake_vcpu_get_state,
    .vcpu_set_state = fake_vcpu_set_state,
    .vcpu_counters = fake_vcpu_counters,
    .vm_get_state = fake_vm_get_state,
    .vm_set_state = fake_vm_set_state,
    .send_msi = fake_send_msi,
    .set_extint = fake_set_extint,
    .inject_nmi = fake_inject_nmi,
    .inject_exception = fake_inject_exception,
    .doorbell_add = fake_doorbell_add,
    .doorbell_remove = fake_doorbell_remove,
};
