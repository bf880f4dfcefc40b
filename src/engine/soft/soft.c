/*
 * Engine soft: creation, state in and out, the table of operations. Loop thread unless said
 * otherwise; see vm/engine.h.
 */
#include "engine/soft/soft.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/clock.h"
#include "base/log.h"
#include "engine/soft/soft_int.h"
#include "x86/stub.h"

/*
 * The TSC's frequency when the configuration names none: one tick is one nanosecond of VM time. The
 * same on every host, so a saved VM runs on anywhere, and conversions are exact.
 */
#define DEFAULT_TSC_HZ NS_PER_S

static unsigned capabilities(void)
{
    return ENGINE_CAP_TSC_SCALING | ENGINE_CAP_COUNTS_INSTRUCTIONS | ENGINE_CAP_CODE_MODES;
}

/* --- VM --- */

/* A guard page, the headroom, the vCPU: translated code's stack pointer is the vCPU's address. */
#define VCPU_OFFSET (PAGE_SIZE + X86_TRANSLATE_HEADROOM)

static struct engine_vcpu *allocate_vcpu(void)
{
    size_t size = VCPU_OFFSET + align_up(sizeof(struct engine_vcpu), PAGE_SIZE);
    char *memory = mmap(NULL, size, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED)
        return NULL;
    if (mprotect(memory, PAGE_SIZE, PROT_NONE)) {
        munmap(memory, size);
        return NULL;
    }
    return (struct engine_vcpu *)(void *)(memory + VCPU_OFFSET);
}

static void release_vcpu(struct engine_vcpu *vcpu)
{
    munmap((char *)vcpu - VCPU_OFFSET,
           VCPU_OFFSET + align_up(sizeof(struct engine_vcpu), PAGE_SIZE));
}

static void free_vcpu(struct engine_vcpu *vcpu)
{
    lockstep_destroy(vcpu);
    block_cache_destroy(&vcpu->cache);
    x86_translator_destroy(vcpu->translator);
    stub_memory_destroy(&vcpu->code_memory);
    pthread_mutex_destroy(&vcpu->post_lock);
    release_vcpu(vcpu);
}

static void vm_destroy(struct engine_vm *vm)
{
    soft_timer_stop(&vm->timer);
    for (unsigned i = 0; i < vm->vcpu_count; i++)
        free_vcpu(vm->vcpu[i]);
    soft_memory_destroy(vm);
    x86_decoder_destroy(vm->decoder);
    x86_stubs_destroy(vm->stubs);
    stub_memory_destroy(&vm->stub_memory);
    exclusive_destroy(&vm->exclusive);
    free(vm);
}

static int create_decoder(struct engine_vm *vm, struct err *err)
{
    int error = stub_memory_create(&vm->stub_memory, X86_STUBS_SIZE, err);
    if (error)
        return error;
    struct x86_stub_memory memory = {.write = vm->stub_memory.write,
                                     .execute = vm->stub_memory.execute,
                                     .size = vm->stub_memory.size};
    error = x86_stubs_create(&vm->stubs, &memory);
    if (!error)
        error = x86_decoder_create(&vm->decoder, &vm->config.cpuid->features, vm->stubs);
    if (error)
        return err_set(err, -error, "engine soft: cannot make the decoder: %s", strerror(-error));
    return 0;
}

static int start_timer(struct engine_vm *vm, struct err *err)
{
    vm->timer.sandbox = vm->config.sandbox;
    int error = soft_timer_start(&vm->timer, vm->config.vcpu_count, soft_timer_expired, vm);
    if (error)
        return err_set(err, -error, "engine soft: cannot start a thread: %s", strerror(-error));
    return 0;
}

static int vm_create(const struct engine_vm_config *config, struct engine_vm **out, struct err *err)
{
    struct engine_vm *vm = calloc(1, sizeof *vm);
    if (!vm)
        return err_set(err, ENOMEM, "out of memory");
    vm->config = *config;
    vm->tsc_hz = config->tsc_hz ? config->tsc_hz : DEFAULT_TSC_HZ;
    if (!vm->config.code.cache_size)
        vm->config.code.cache_size = ENGINE_CODE_CACHE_DEFAULT;
    exclusive_init(&vm->exclusive, soft_stop_running, vm);
    int error = soft_memory_create(vm);
    if (!error)
        error = create_decoder(vm, err);
    if (!error)
        error = start_timer(vm, err);
    if (error) {
        vm_destroy(vm);
        return error;
    }
    *out = vm;
    return 0;
}

static int vm_get_state(struct engine_vm *vm, struct engine_vm_state *out)
{
    uint64_t offset = vm->vcpu_count ? vm->vcpu[0]->cpu.s.tsc_offset : 0;

    out->tsc_hz = vm->tsc_hz;
    out->clock_ns = soft_clock_ns(vm);
    out->tsc = mul_div_u64(out->clock_ns, vm->tsc_hz, NS_PER_S) + offset;
    return 0;
}

/* Any frequency will do: the TSC is computed. Offsets come with the vCPUs' states. */
static int vm_set_state(struct engine_vm *vm, const struct engine_vm_state *state, struct err *err)
{
    if (state->tsc_hz == 0)
        return err_set(err, EINVAL, "engine soft: a saved TSC frequency of 0");
    vm->tsc_hz = state->tsc_hz;
    for (unsigned i = 0; i < vm->vcpu_count; i++) {
        struct engine_vcpu *vcpu = vm->vcpu[i];
        vcpu->lapic.config.tsc_hz = state->tsc_hz;
        vcpu->offset_seen = ~vcpu->cpu.s.tsc_offset;
    }
    return 0;
}

/* --- vCPU --- */

/* Its memory stays until the VM goes: a device's thread may be sending it an interrupt now. */
static void vcpu_destroy(struct engine_vcpu *vcpu)
{
    (void)vcpu;
}

static void init_cpu(struct engine_vcpu *vcpu)
{
    struct engine_vm *vm = vcpu->vm;
    const struct x86_features *features = &vm->config.cpuid->features;
    struct x86_cpu_config cpu = {.ops = &soft_x86_ops,
                                 .context = vcpu,
                                 .decoder = vm->decoder,
                                 .cpuid = vm->config.cpuid,
                                 .stubs = vm->stubs,
                                 .apic_id = vcpu->index,
                                 .is_bsp = vcpu->index == 0};
    struct x86_lapic_config lapic = {
        .ops = &soft_lapic_ops,
        .context = vcpu,
        .id = vcpu->index,
        .tsc_hz = vm->tsc_hz,
        .has_x2apic = x86_has(features, X86_FEATURE_X2APIC),
        .has_deadline = x86_has(features, X86_FEATURE_TSC_DEADLINE),
    };
    x86_cpu_init(&vcpu->cpu, &cpu);
    x86_lapic_create(&vcpu->lapic, &lapic);
    x86_lapic_set_state(&vcpu->lapic, &vcpu->cpu.s.lapic, vcpu->cpu.s.apic_base, 0);
}

static int create_translator(struct engine_vcpu *vcpu, struct err *err)
{
    const struct engine_vm_config *config = &vcpu->vm->config;
    const char *why;

    if (config->code.mode == ENGINE_CODE_INTERPRET)
        return 0;
    if (!x86_translate_possible(&why)) {
        log_warning("engine soft: code is interpreted, not translated: %s", why);
        return 0;
    }
    int error =
        stub_memory_create(&vcpu->code_memory, align_up(config->code.cache_size, PAGE_SIZE), err);
    if (error)
        return error;
    struct x86_translator_config translator = {
        .memory = {.write = vcpu->code_memory.write,
                   .execute = vcpu->code_memory.execute,
                   .size = vcpu->code_memory.size},
        .decoder = vcpu->vm->decoder,
        .features = &config->cpuid->features,
        .attention = offsetof(struct engine_vcpu, attention),
        .alone = config->code.mode == ENGINE_CODE_LOCKSTEP,
    };
    error = x86_translator_create(&vcpu->translator, &translator);
    if (error)
        return err_set(err, -error, "engine soft: no memory for CPU %u's translator", vcpu->index);
    block_cache_set_translator(&vcpu->cache, vcpu->translator, &vcpu->cpu);
    return 0;
}

static int vcpu_create(struct engine_vm *vm, unsigned index, struct engine_vcpu **out,
                       struct err *err)
{
    struct engine_vcpu *vcpu = allocate_vcpu();
    if (!vcpu)
        return err_set(err, ENOMEM, "out of memory");
    vcpu->vm = vm;
    vcpu->index = index;
    if (block_cache_create(&vcpu->cache, align_up(vm->config.code.cache_size, PAGE_SIZE))) {
        release_vcpu(vcpu);
        return err_set(err, ENOMEM, "engine soft: no memory for CPU %u's decoded code", index);
    }
    pthread_mutex_init(&vcpu->post_lock, NULL);
    init_cpu(vcpu);
    int error = create_translator(vcpu, err);
    if (!error && vcpu->translator && vm->config.code.mode == ENGINE_CODE_LOCKSTEP)
        error = lockstep_create(vcpu, err);
    if (error) {
        free_vcpu(vcpu);
        return error;
    }
    vm->vcpu[index] = vcpu;
    vm->vcpu_count = index + 1;
    exclusive_add(&vm->exclusive, &vcpu->member);
    *out = vcpu;
    return 0;
}

/* vCPU's thread, or any signal handler. */
static void vcpu_kick(struct engine_vcpu *vcpu)
{
    atomic_store(&vcpu->kicked, true);
    soft_wake(vcpu);
}

static int vcpu_get_state(struct engine_vcpu *vcpu, struct x86_state *out)
{
    x86_cpu_get_state(&vcpu->cpu, out);
    x86_lapic_get_state(&vcpu->lapic, &out->lapic);
    out->apic_base = vcpu->lapic.base;
    out->tsc_deadline = x86_lapic_read_deadline(&vcpu->lapic);
    return 0;
}

static int vcpu_set_state(struct engine_vcpu *vcpu, const struct x86_state *state, struct err *err)
{
    const char *wrong = x86_state_validate(state);
    if (wrong)
        return err_set(err, EINVAL, "state of CPU %u: %s", vcpu->index, wrong);
    x86_cpu_set_state(&vcpu->cpu, state);
    x86_lapic_set_state(&vcpu->lapic, &state->lapic, state->apic_base, state->tsc_deadline);
    vcpu->lint0_seen = atomic_load(&vcpu->vm->extint);
    vcpu->offset_seen = ~state->tsc_offset; /* have the time page written again */
    return 0;
}

static void inject_exception(struct engine_vcpu *vcpu, const struct x86_event *event)
{
    vcpu->cpu.s.pending = *event;
}

static void code_counters(const struct engine_vcpu *vcpu, struct engine_code_counters *out)
{
    const struct block_cache *cache = &vcpu->cache;

    *out = (struct engine_code_counters) {.decoded = cache->decoded,
                                          .units = cache->units_made,
                                          .instructions = cache->translated,
                                          .resets = cache->clears,
                                          .dropped = cache->units_dropped,
                                          .entries = cache->entries,
                                          .lookups = cache->notes,
                                          .handlers = vcpu->cpu.host.handlers,
                                          .probe_misses = vcpu->cpu.host.probe_misses};
    if (!vcpu->translator)
        return;
    out->bytes = x86_translator_used(vcpu->translator);
    out->limit = vcpu->code_memory.size;
}

static void vcpu_counters(struct engine_vcpu *vcpu, struct engine_vcpu_counters *out)
{
    for (unsigned i = 0; i < VM_EXIT_KIND_COUNT; i++)
        out->exits[i] = vcpu->exits[i];
    out->instructions = vcpu->instructions;
    out->interrupts = vcpu->interrupts;
    out->tlb = (struct engine_tlb_counters) {vcpu->cpu.tlb_fills, vcpu->cpu.tlb_walks,
                                             vcpu->cpu.tlb_flushes};
    code_counters(vcpu, &out->code);
    lockstep_counters(vcpu->lockstep, &out->lockstep);
}

const struct engine_ops engine_soft = {
    .name = "soft",
    .probe = soft_probe,
    .capabilities = capabilities,
    .cpu_features = soft_cpu_features,
    .vm_create = vm_create,
    .vm_destroy = vm_destroy,
    .memory_map = soft_memory_map,
    .memory_unmap = soft_memory_unmap,
    .memory_protect = soft_memory_protect,
    .memory_written = soft_memory_written,
    .vcpu_create = vcpu_create,
    .vcpu_destroy = vcpu_destroy,
    .vcpu_run = soft_run,
    .vcpu_kick = vcpu_kick,
    .vcpu_get_state = vcpu_get_state,
    .vcpu_set_state = vcpu_set_state,
    .vcpu_counters = vcpu_counters,
    .vm_get_state = vm_get_state,
    .vm_set_state = vm_set_state,
    .send_msi = soft_send_msi,
    .set_extint = soft_set_extint,
    .inject_nmi = soft_inject_nmi,
    .inject_exception = inject_exception,
};
