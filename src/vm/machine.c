/*
 * The machine: puts its parts together, runs, resets and ends it. See machine.h for threads.
 *
 * Run control: vCPU threads run while target is RUNNING. A request (reset, end) is remembered,
 * holds the vCPUs where they are, and is served on the loop thread by a message. The loop thread
 * waits for vCPUs only in machine_pause and vcpus_join_threads, holding no lock that a handler
 * takes.
 */
#include "vm/machine_int.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/sandbox.h"
#include "vm/emulate.h"

const char *machine_end_name(enum machine_end end)
{
    static const char *const names[] = {
        [MACHINE_END_NONE] = "none",
        [MACHINE_END_POWEROFF] = "poweroff",
        [MACHINE_END_RESET] = "reset",
        [MACHINE_END_DEBUG_EXIT] = "debug-exit",
        [MACHINE_END_TRIPLE_FAULT] = "triple-fault",
        [MACHINE_END_USER] = "user",
        [MACHINE_END_HOST_ERROR] = "host-error",
    };
    return (unsigned)end < ARRAY_COUNT(names) ? names[end] : "unknown";
}

/* --- what the engine calls --- */

static uint64_t callback_mmio_read(void *context, gpa_t address, unsigned size)
{
    struct machine *machine = context;
    return bus_read(machine->mmio, address.v, size);
}

static void callback_mmio_write(void *context, gpa_t address, unsigned size, uint64_t value)
{
    struct machine *machine = context;
    bus_write(machine->mmio, address.v, size, value);
}

static uint32_t callback_pio_read(void *context, uint16_t port, unsigned size)
{
    struct machine *machine = context;
    return (uint32_t)bus_read(machine->pio, port, size);
}

static void callback_pio_write(void *context, uint16_t port, unsigned size, uint32_t value)
{
    struct machine *machine = context;
    bus_write(machine->pio, port, size, value);
}

static void callback_eoi(void *context, uint8_t vector)
{
    struct machine *machine = context;
    if (machine->chip_eoi)
        machine->chip_eoi(machine->chip_eoi_context, vector);
}

static uint8_t callback_extint_acknowledge(void *context)
{
    struct machine *machine = context;
    return machine->chip_acknowledge ? machine->chip_acknowledge(machine->chip_acknowledge_context)
                                     : 0xff;
}

static const struct engine_callbacks callbacks = {
    .mmio_read = callback_mmio_read,
    .mmio_write = callback_mmio_write,
    .pio_read = callback_pio_read,
    .pio_write = callback_pio_write,
    .eoi = callback_eoi,
    .extint_acknowledge = callback_extint_acknowledge,
};

static void memory_written(struct mem_observer *observer, gpa_t start, uint64_t length)
{
    struct machine_int *m = container_of(observer, struct machine_int, observer);
    struct machine *machine = m->message.machine;
    if (machine->engine_vm && machine->engine->memory_written)
        machine->engine->memory_written(machine->engine_vm, start, length);
}

/* --- creation --- */

static int create_memory(struct machine *machine, struct err *err)
{
    int error = guest_memory_create(&machine->memory);
    if (error)
        return err_set(err, -error, "out of memory");
    uint64_t size = machine->config.ram_size, low = MIN(size, MACHINE_LOW_RAM_MAX);
    uint64_t high_end = MACHINE_HIGH_RAM + (size - low);
    machine->pci64_base = align_up(high_end, 1ull << 30);
    error = guest_memory_add_ram(machine->memory, gpa(0), low, err);
    if (!error && size > low)
        error = guest_memory_add_ram(machine->memory, gpa(MACHINE_HIGH_RAM), size - low, err);
    return error;
}

static int create_engine(struct machine *machine, struct err *err)
{
    struct engine_vm_config config = {.vcpu_count = machine->config.vcpu_count,
                                      .clock = machine->clock,
                                      .tsc_hz = machine->config.tsc_hz,
                                      .cpuid = machine->config.cpuid,
                                      .code = machine->config.code,
                                      .callbacks = &callbacks,
                                      .context = machine,
                                      .sandbox = machine->config.sandbox};
    machine->capabilities = machine->engine->capabilities();
    int error = machine->engine->vm_create(&config, &machine->engine_vm, err);
    if (!error && !(machine->capabilities & ENGINE_CAP_CODE_MODES) && machine->config.cpuid)
        error =
            emulator_code_create(&machine->emulator_code, &machine->config.cpuid->features, err);
    if (error)
        return error;
    size_t count;
    const struct mem_region *region = guest_memory_regions(machine->memory, &count);
    for (size_t i = 0; i < count && !error; i++) {
        struct engine_slot slot = {.start = region[i].start,
                                   .size = region[i].size,
                                   .hva = region[i].hva,
                                   .protection = MEM_PROT_READ | MEM_PROT_WRITE | MEM_PROT_EXEC};
        error = machine->engine->memory_map(machine->engine_vm, &slot);
    }
    if (error)
        return err_set(err, -error, "engine %s cannot map guest RAM: %s", machine->engine->name,
                       strerror(-error));
    guest_memory_observe(machine->memory, &machine->internal->observer);
    return 0;
}

static int create_parts(struct machine *machine, struct err *err)
{
    int error = create_memory(machine, err);
    if (error)
        return error;
    error = bus_create(&machine->pio, "port I/O", 0x10000);
    if (!error)
        error = bus_create(&machine->mmio, "MMIO", 0);
    if (!error)
        error = irq_lines_create(&machine->irq);
    if (!error)
        error = vm_clock_create(&machine->clock, machine->loop);
    if (error)
        return err_set(err, -error, "cannot create the machine: %s", strerror(-error));
    return create_engine(machine, err);
}

static void serve_request(struct loop_message *message);

int machine_create(struct machine **out, const struct machine_config *config, struct err *err)
{
    if (config->vcpu_count == 0 || config->vcpu_count > ENGINE_VCPUS_MAX)
        return err_set(err, EINVAL, "a machine has 1 to %d CPUs", ENGINE_VCPUS_MAX);
    struct machine *machine = calloc(1, sizeof *machine);
    struct machine_int *m = calloc(1, sizeof *m);
    if (!machine || !m) {
        free(machine);
        free(m);
        return err_set(err, ENOMEM, "out of memory");
    }
    machine->config = *config;
    machine->loop = config->loop;
    machine->engine = config->engine;
    machine->internal = m;
    list_init(&machine->devices);
    pthread_mutex_init(&m->lock, NULL);
    pthread_cond_init(&m->changed, NULL);
    m->observer.end = memory_written;
    m->message =
        (struct machine_message) {.message = {.handler = serve_request}, .machine = machine};
    int error = create_parts(machine, err);
    if (error) {
        machine_destroy(machine);
        return error;
    }
    *out = machine;
    return 0;
}

static void destroy_devices(struct machine *machine)
{
    while (!list_empty(&machine->devices)) {
        struct device *device = container_of(machine->devices.prev, struct device, link);
        list_remove(&device->link);
        if (device->class->destroy)
            device->class->destroy(device);
        pthread_mutex_destroy(&device->lock);
        free(device);
    }
}

void machine_destroy(struct machine *machine)
{
    if (!machine)
        return;
    vcpus_join_threads(machine);
    vcpus_destroy(machine);
    destroy_devices(machine);
    struct machine_int *m = machine->internal;
    loop_message_cancel(machine->loop, &m->message.message);
    if (machine->engine_vm)
        machine->engine->vm_destroy(machine->engine_vm);
    emulator_code_destroy(machine->emulator_code);
    vm_clock_destroy(machine->clock);
    irq_lines_destroy(machine->irq);
    bus_destroy(machine->mmio);
    bus_destroy(machine->pio);
    guest_memory_destroy(machine->memory);
    pthread_cond_destroy(&m->changed);
    pthread_mutex_destroy(&m->lock);
    free(m);
    free(machine);
}

int machine_add_device(struct machine *machine, const struct device_class *class, const char *path,
                       const void *config, struct device **out, struct err *err)
{
    struct device *device = calloc(1, MAX(class->size, sizeof *device));
    if (!device)
        return err_set(err, ENOMEM, "out of memory");
    device->class = class;
    device->machine = machine;
    snprintf(device->path, sizeof device->path, "%s", path);
    pthread_mutex_init(&device->lock, NULL);
    int error = class->create(device, config, err);
    if (error) {
        pthread_mutex_destroy(&device->lock);
        free(device);
        return error;
    }
    list_push_back(&machine->devices, &device->link);
    if (out)
        *out = device;
    return 0;
}

struct device *machine_find_device(struct machine *machine, const char *path)
{
    list_for_each (link, &machine->devices) {
        struct device *device = container_of(link, struct device, link);
        if (strcmp(device->path, path) == 0)
            return device;
    }
    return NULL;
}

/* --- run control --- */

static void set_target(struct machine_int *m, enum run_target target)
{
    pthread_mutex_lock(&m->lock);
    m->target = target;
    pthread_cond_broadcast(&m->changed);
    pthread_mutex_unlock(&m->lock);
}

void machine_pause(struct machine *machine)
{
    struct machine_int *m = machine->internal;
    if (m->pause_depth++ > 0)
        return;
    set_target(m, RUN_TARGET_PAUSED);
    vcpus_kick_all(machine);
    pthread_mutex_lock(&m->lock);
    while (m->running_count > 0)
        pthread_cond_wait(&m->changed, &m->lock);
    pthread_mutex_unlock(&m->lock);
    vm_clock_pause(machine->clock);
}

void machine_resume(struct machine *machine)
{
    struct machine_int *m = machine->internal;
    if (--m->pause_depth > 0)
        return;
    vm_clock_resume(machine->clock);
    set_target(m, RUN_TARGET_RUNNING);
}

/* Firmware gives all CPUs the same MTRRs (SDM vol. 3 section 12.11.8); a loader sets the first's.
 */
static void copy_memory_types(struct x86_state *to, const struct x86_state *from)
{
    to->mtrr_def_type = from->mtrr_def_type;
    for (unsigned i = 0; i < ARRAY_COUNT(to->mtrr_fixed); i++)
        to->mtrr_fixed[i] = from->mtrr_fixed[i];
    for (unsigned i = 0; i < ARRAY_COUNT(to->mtrr_base); i++) {
        to->mtrr_base[i] = from->mtrr_base[i];
        to->mtrr_mask[i] = from->mtrr_mask[i];
    }
}

/* Everything to the state after power-on, then the boot loader's. No vCPU runs. */
static int machine_to_reset_state(struct machine *machine, struct err *err)
{
    list_for_each (link, &machine->devices) {
        struct device *device = container_of(link, struct device, link);
        pthread_mutex_lock(&device->lock);
        device->class->reset(device);
        pthread_mutex_unlock(&device->lock);
    }
    struct x86_state state, bsp;
    x86_state_reset(&bsp, 0, true);
    int error = 0;
    if (machine->config.load)
        error = machine->config.load(machine, machine->config.load_context, &bsp, err);
    if (!error)
        error = machine->engine->vcpu_set_state(machine->vcpu[0].engine, &bsp, err);
    for (unsigned i = 1; i < machine->config.vcpu_count && !error; i++) {
        x86_state_reset(&state, i, false);
        copy_memory_types(&state, &bsp);
        error = machine->engine->vcpu_set_state(machine->vcpu[i].engine, &state, err);
    }
    return error;
}

static void serve_reset(struct machine *machine)
{
    struct machine_int *m = machine->internal;
    struct err err = {{0}};
    machine_pause(machine);
    list_for_each (link, &machine->devices) {
        struct device *device = container_of(link, struct device, link);
        if (device->class->quiesce)
            device->class->quiesce(device);
    }
    m->resets++;
    int error = machine_to_reset_state(machine, &err);
    atomic_store(&m->request, REQUEST_NONE);
    atomic_store(&m->hold, false);
    if (error)
        machine_request_host_error(machine, "reset: %s", err.text);
    machine_resume(machine);
}

static void end_now(struct machine *machine, enum machine_end end)
{
    machine->internal->end = end;
    loop_stop(machine->loop);
}

static void serve_request(struct loop_message *message)
{
    struct machine *machine = container_of(message, struct machine_message, message)->machine;
    struct machine_int *m = machine->internal;
    switch ((enum machine_request)atomic_load(&m->request)) {
    case REQUEST_RESET:
        if (machine->config.no_reboot)
            end_now(machine, MACHINE_END_RESET);
        else
            serve_reset(machine);
        break;
    case REQUEST_END:
        end_now(machine, m->request_end);
        break;
    case REQUEST_NONE:
        break;
    }
}

/*
 * Takes the request slot; false when another request is waiting. The caller fills in what belongs
 * to the request and then calls request_post.
 */
static bool request_take(struct machine_int *m, enum machine_request request)
{
    int none = REQUEST_NONE;
    return atomic_compare_exchange_strong(&m->request, &none, (int)request);
}

static void request_post(struct machine *machine)
{
    atomic_store(&machine->internal->hold, true);
    vcpus_kick_all(machine);
    loop_post(machine->loop, &machine->internal->message.message);
}

void machine_request_reset(struct machine *machine)
{
    if (request_take(machine->internal, REQUEST_RESET))
        request_post(machine);
}

void machine_request_end(struct machine *machine, enum machine_end end)
{
    if (request_take(machine->internal, REQUEST_END)) {
        machine->internal->request_end = end;
        request_post(machine);
    }
}

void machine_request_debug_exit(struct machine *machine, uint32_t value)
{
    if (request_take(machine->internal, REQUEST_END)) {
        machine->internal->debug_exit_value = value;
        machine->internal->request_end = MACHINE_END_DEBUG_EXIT;
        request_post(machine);
    }
}

void machine_request_host_error(struct machine *machine, const char *format, ...)
{
    if (!request_take(machine->internal, REQUEST_END))
        return;
    va_list args;
    va_start(args, format);
    vsnprintf(machine->internal->host_error.text, sizeof machine->internal->host_error.text, format,
              args);
    va_end(args);
    machine->internal->request_end = MACHINE_END_HOST_ERROR;
    request_post(machine);
}

void machine_press_power_button(struct machine *machine)
{
    if (machine->power_button)
        machine->power_button(machine->power_button_context);
    else
        machine_request_end(machine, MACHINE_END_USER);
}

int machine_start(struct machine *machine, struct err *err)
{
    struct machine_int *m = machine->internal;
    if (m->started)
        return 0;
    int error = vcpus_create(machine, err);
    if (!error)
        error = machine_to_reset_state(machine, err);
    m->started = error == 0;
    return error;
}

enum machine_end machine_run(struct machine *machine, struct err *err)
{
    struct machine_int *m = machine->internal;
    int error = machine_start(machine, err);
    if (!error)
        error = vcpus_start_threads(machine, err);
    if (error)
        return MACHINE_END_HOST_ERROR;
    sandbox_enter(machine->config.sandbox, SANDBOX_LOOP); /* all there is to start was started */
    vm_clock_resume(machine->clock);
    set_target(m, RUN_TARGET_RUNNING);
    error = loop_run(machine->loop);
    vcpus_join_threads(machine);
    vm_clock_pause(machine->clock);
    if (error) {
        err_set(err, -error, "the event loop failed: %s", strerror(-error));
        return MACHINE_END_HOST_ERROR;
    }
    if (m->end == MACHINE_END_HOST_ERROR)
        *err = m->host_error;
    return m->end;
}

uint32_t machine_debug_exit_value(const struct machine *machine)
{
    return machine->internal->debug_exit_value;
}

uint64_t machine_first_run_ns(const struct machine *machine)
{
    return atomic_load(&machine->internal->first_run_ns);
}

static void add_lockstep(struct engine_lockstep_counters *sum,
                         const struct engine_lockstep_counters *one)
{
    sum->units += one->units;
    sum->instructions += one->instructions;
    sum->unchecked += one->unchecked;
    sum->retries += one->retries;
    sum->divergences += one->divergences;
}

static void add_tlb(struct engine_tlb_counters *sum, const struct engine_tlb_counters *one)
{
    sum->fills += one->fills;
    sum->walks += one->walks;
    sum->flushes += one->flushes;
}

static void add_code(struct engine_code_counters *sum, const struct engine_code_counters *one)
{
    sum->decoded += one->decoded;
    sum->units += one->units;
    sum->instructions += one->instructions;
    sum->bytes += one->bytes;
    sum->limit += one->limit;
    sum->resets += one->resets;
    sum->dropped += one->dropped;
    sum->entries += one->entries;
    sum->lookups += one->lookups;
    sum->handlers += one->handlers;
    sum->probe_misses += one->probe_misses;
}

void machine_counters(struct machine *machine, struct machine_counters *out)
{
    *out = (struct machine_counters) {.resets = machine->internal->resets};
    bus_counters(machine->pio, &out->pio);
    bus_counters(machine->mmio, &out->mmio);
    for (unsigned i = 0; i < machine->config.vcpu_count; i++) {
        struct engine_vcpu_counters one;
        memset(&one, 0, sizeof one);
        if (machine->vcpu[i].engine)
            machine->engine->vcpu_counters(machine->vcpu[i].engine, &one);
        for (unsigned k = 0; k < VM_EXIT_KIND_COUNT; k++)
            out->vcpu.exits[k] += one.exits[k];
        out->vcpu.instructions += one.instructions;
        out->vcpu.interrupts += one.interrupts;
        add_lockstep(&out->vcpu.lockstep, &one.lockstep);
        add_tlb(&out->vcpu.tlb, &one.tlb);
        add_code(&out->vcpu.code, &one.code);
    }
}
