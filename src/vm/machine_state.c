/*
 * Saving and loading a paused machine. Sections, in this order: "machine" (what it is), "engine",
 * "vcpu/N", then each device under its path. Loop thread.
 */
#include "vm/machine_int.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "vm/state.h"
#include "vm/state_vcpu.h"

static void save_machine(struct machine *machine, struct state_writer *w)
{
    state_begin(w, "machine");
    state_put_u64(w, "vcpu_count", machine->config.vcpu_count);
    state_put_u64(w, "ram_size", machine->config.ram_size);
    state_put_u64(w, "clock_ns", vm_clock_ns(machine->clock));
    state_end(w);
}

static int save_engine(struct machine *machine, struct state_writer *w)
{
    struct engine_vm_state state = {0};
    int error = machine->engine->vm_get_state(machine->engine_vm, &state);
    state_begin(w, "engine");
    state_put_u64(w, "tsc_hz", state.tsc_hz);
    state_put_u64(w, "clock_ns", state.clock_ns);
    state_put_u64(w, "tsc", state.tsc);
    state_end(w);
    return error;
}

static int save_vcpus(struct machine *machine, struct state_writer *w)
{
    int error = 0;
    for (unsigned i = 0; i < machine->config.vcpu_count && !error; i++) {
        struct x86_state state;
        char path[24];
        error = machine->engine->vcpu_get_state(machine->vcpu[i].engine, &state);
        snprintf(path, sizeof path, "vcpu/%u", i);
        state_begin(w, path);
        if (!error)
            state_vcpu_save(&state, w);
        state_end(w);
    }
    return error;
}

static void devices_quiesce(struct machine *machine)
{
    list_for_each (link, &machine->devices) {
        struct device *device = container_of(link, struct device, link);
        if (device->class->quiesce)
            device->class->quiesce(device);
    }
}

/* A request that was not served yet is in no section: the guest would wait for it for ever. */
static bool has_open_request(const struct machine_int *m)
{
    return atomic_load(&m->request) != REQUEST_NONE && m->end == MACHINE_END_NONE;
}

int machine_save(struct machine *machine, struct state_writer *w, struct err *err)
{
    if (has_open_request(machine->internal))
        return err_set(err, EBUSY, "cannot save: the guest is about to be reset or to end");
    devices_quiesce(machine);
    save_machine(machine, w);
    int error = save_engine(machine, w);
    if (!error)
        error = save_vcpus(machine, w);
    if (error)
        return err_set(err, -error, "engine %s cannot give its state: %s", machine->engine->name,
                       strerror(-error));
    list_for_each (link, &machine->devices) {
        struct device *device = container_of(link, struct device, link);
        pthread_mutex_lock(&device->lock);
        state_begin(w, device->path);
        if (device->class->save)
            device->class->save(device, w);
        state_end(w);
        pthread_mutex_unlock(&device->lock);
    }
    error = state_writer_result(w);
    return error ? err_set(err, -error, "cannot save: %s", strerror(-error)) : 0;
}

static int load_machine(struct machine *machine, struct state_reader *r, struct err *err)
{
    uint64_t vcpus = 0, ram = 0, clock = 0;
    state_get_u64(r, "vcpu_count", &vcpus);
    state_get_u64(r, "ram_size", &ram);
    state_get_u64(r, "clock_ns", &clock);
    if (vcpus != machine->config.vcpu_count || ram != machine->config.ram_size)
        return err_set(err, EINVAL,
                       "saved state: is of a machine with %llu CPUs and %llu MiB of memory, not %u "
                       "and %llu",
                       (unsigned long long)vcpus, (unsigned long long)(ram >> 20),
                       machine->config.vcpu_count,
                       (unsigned long long)(machine->config.ram_size >> 20));
    vm_clock_set_ns(machine->clock, clock);
    return 0;
}

static int load_engine(struct machine *machine, struct state_reader *r, struct err *err)
{
    struct engine_vm_state state = {0};
    state_get_u64(r, "tsc_hz", &state.tsc_hz);
    state_get_u64(r, "clock_ns", &state.clock_ns);
    state_get_u64(r, "tsc", &state.tsc);
    return machine->engine->vm_set_state(machine->engine_vm, &state, err);
}

static int load_vcpu(struct machine *machine, struct state_reader *r, struct err *err)
{
    unsigned index;
    char tail;
    if (sscanf(r->path, "vcpu/%u%c", &index, &tail) != 1 || index >= machine->config.vcpu_count)
        return err_set(err, EINVAL, "saved state: %s: this machine has no such CPU", r->path);
    struct x86_state state;
    x86_state_reset(&state, index, index == 0);
    state_vcpu_load(&state, r);
    const char *wrong = x86_state_validate(&state);
    if (!wrong && state.lapic.id != index)
        wrong = "lapic.id"; /* engine.h: vCPU i has APIC id i */
    if (wrong)
        return err_set(err, EINVAL, "saved state: %s: %s", r->path, wrong);
    return machine->engine->vcpu_set_state(machine->vcpu[index].engine, &state, err);
}

static int load_device(struct machine *machine, struct state_reader *r, struct err *err)
{
    struct device *device = machine_find_device(machine, r->path);
    if (!device)
        return err_set(err, EINVAL, "saved state: %s: this machine has no such device", r->path);
    if (!device->class->load)
        return 0;
    pthread_mutex_lock(&device->lock);
    int error = device->class->load(device, r, err);
    pthread_mutex_unlock(&device->lock);
    return error;
}

static int load_section(struct machine *machine, struct state_reader *r, struct err *err)
{
    int error;
    if (strcmp(r->path, "machine") == 0)
        error = load_machine(machine, r, err);
    else if (strcmp(r->path, "engine") == 0)
        error = load_engine(machine, r, err);
    else if (strncmp(r->path, "vcpu/", 5) == 0)
        error = load_vcpu(machine, r, err);
    else
        error = load_device(machine, r, err);
    return error ? error : state_reader_end(r, err);
}

static int count_sections(const void *data, size_t size, const char *path, unsigned *count,
                          struct err *err)
{
    size_t offset = 0;
    struct state_reader r;
    int more;
    *count = 0;
    while ((more = state_next_section(data, size, &offset, &r)) > 0)
        *count += strcmp(r.path, path) == 0;
    return more ? err_set(err, EINVAL, "saved state: corrupt at byte %zu", offset) : 0;
}

static int require_section(const void *data, size_t size, const char *path, struct err *err)
{
    unsigned count;
    int error = count_sections(data, size, path, &count, err);
    if (error || count == 1)
        return error;
    return err_set(err, EINVAL, "saved state: %s is %s", path,
                   count ? "there more than once" : "missing");
}

/* A file that was cut between two sections would leave parts of the machine as after power-on. */
static int require_all_sections(struct machine *machine, const void *data, size_t size,
                                struct err *err)
{
    int error = require_section(data, size, "machine", err);
    if (!error)
        error = require_section(data, size, "engine", err);
    for (unsigned i = 0; i < machine->config.vcpu_count && !error; i++) {
        char path[24];
        snprintf(path, sizeof path, "vcpu/%u", i);
        error = require_section(data, size, path, err);
    }
    list_for_each (link, &machine->devices) {
        if (error)
            return error;
        error = require_section(data, size, container_of(link, struct device, link)->path, err);
    }
    return error;
}

int machine_load(struct machine *machine, const void *data, size_t size, struct err *err)
{
    int error = require_all_sections(machine, data, size, err);
    if (!error)
        error = machine_start(machine, err);
    if (error)
        return error;
    devices_quiesce(machine);
    size_t offset = 0;
    struct state_reader r;
    int more;
    while ((more = state_next_section(data, size, &offset, &r)) > 0) {
        error = load_section(machine, &r, err);
        if (error)
            return error;
    }
    return more ? err_set(err, EINVAL, "saved state: corrupt at byte %zu", offset) : 0;
}
