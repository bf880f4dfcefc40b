/* The JSON of --stats; parat-run(1) describes its members. */
#include "cli/stats.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "cli/cli.h"

static int file_error(const struct stats_file *file, int error, struct err *err)
{
    return err_set(err, error, "--stats %s: cannot be written: %s", file->path, strerror(error));
}

/* What the file says now stays until there is something better. */
int stats_open(struct stats_file *file, const char *path, struct err *err)
{
    const int flags = O_WRONLY | O_CLOEXEC | O_NOCTTY;
    json_object_seed(1); /* else it opens a file, later; there are no keys but ours */
    *file = (struct stats_file) {.path = path, .fd = open(path, flags | O_CREAT | O_EXCL, 0644)};
    file->unused = file->fd >= 0;
    if (file->fd < 0 && errno == EEXIST)
        file->fd = open(path, flags);
    struct stat st;
    if (file->fd < 0 || fstat(file->fd, &st) < 0)
        return file_error(file, errno, err);
    file->regular = S_ISREG(st.st_mode);
    return 0;
}

void stats_close(struct stats_file *file)
{
    if (file->fd >= 0)
        close(file->fd);
    if (file->unused)
        unlink(file->path);
    file->fd = -1;
    file->unused = false;
}

static json_t *integer(uint64_t value)
{
    return json_integer((json_int_t)value);
}

static json_t *exits_by_kind(const struct machine_counters *counters)
{
    static const char *const names[VM_EXIT_KIND_COUNT] = {
        [VM_EXIT_INTERRUPTED] = "interrupted",
        [VM_EXIT_IO] = "io",
        [VM_EXIT_MMIO] = "mmio",
        [VM_EXIT_EMULATE] = "emulate",
        [VM_EXIT_HLT] = "hlt",
        [VM_EXIT_SHUTDOWN] = "shutdown",
        [VM_EXIT_MSR] = "msr",
        [VM_EXIT_CPUID] = "cpuid",
        [VM_EXIT_DEBUG] = "debug",
        [VM_EXIT_ERROR] = "error",
    };
    json_t *exits = json_object();
    for (unsigned i = 0; i < VM_EXIT_KIND_COUNT; i++)
        json_object_set_new(exits, names[i], integer(counters->vcpu.exits[i]));
    return exits;
}

static json_t *lockstep_object(const struct engine_lockstep_counters *lockstep)
{
    json_t *object = json_object();
    json_object_set_new(object, "units", integer(lockstep->units));
    json_object_set_new(object, "instructions", integer(lockstep->instructions));
    json_object_set_new(object, "unchecked", integer(lockstep->unchecked));
    json_object_set_new(object, "retries", integer(lockstep->retries));
    json_object_set_new(object, "divergences", integer(lockstep->divergences));
    return object;
}

static json_t *accesses_by_device(struct machine *machine)
{
    json_t *devices = json_object();
    list_for_each (link, &machine->devices) {
        struct device *device = container_of(link, struct device, link);
        json_t *one = json_object();
        json_object_set_new(one, "reads", integer(atomic_load(&device->reads)));
        json_object_set_new(one, "writes", integer(atomic_load(&device->writes)));
        json_object_set_new(one, "guest_errors", integer(atomic_load(&device->guest_errors)));
        json_object_set_new(devices, device->path, one);
    }
    return devices;
}

static json_t *bus_object(const struct bus_counters *bus)
{
    json_t *object = json_object();
    json_object_set_new(object, "reads", integer(bus->reads));
    json_object_set_new(object, "writes", integer(bus->writes));
    json_object_set_new(object, "unclaimed_reads", integer(bus->unclaimed_reads));
    json_object_set_new(object, "unclaimed_writes", integer(bus->unclaimed_writes));
    return object;
}

static json_t *tlb_object(const struct engine_tlb_counters *tlb)
{
    json_t *object = json_object();
    json_object_set_new(object, "fills", integer(tlb->fills));
    json_object_set_new(object, "walks", integer(tlb->walks));
    json_object_set_new(object, "flushes", integer(tlb->flushes));
    return object;
}

static json_t *code_object(const struct engine_code_counters *code)
{
    json_t *object = json_object();
    json_object_set_new(object, "decoded", integer(code->decoded));
    json_object_set_new(object, "units", integer(code->units));
    json_object_set_new(object, "instructions", integer(code->instructions));
    json_object_set_new(object, "bytes", integer(code->bytes));
    json_object_set_new(object, "limit_bytes", integer(code->limit));
    json_object_set_new(object, "resets", integer(code->resets));
    json_object_set_new(object, "dropped", integer(code->dropped));
    json_object_set_new(object, "entries", integer(code->entries));
    json_object_set_new(object, "lookups", integer(code->lookups));
    json_object_set_new(object, "handlers", integer(code->handlers));
    json_object_set_new(object, "probe_misses", integer(code->probe_misses));
    return object;
}

static json_t *peak_rss(void)
{
    struct rusage usage;
    if (getrusage(RUSAGE_SELF, &usage) < 0)
        return json_null();
    return integer((uint64_t)usage.ru_maxrss * 1024);
}

static void add_machine(json_t *root, const struct stats_run *run)
{
    struct machine *machine = run->machine;
    struct machine_counters counters;
    machine_counters(machine, &counters);
    bool counts = machine->capabilities & ENGINE_CAP_COUNTS_INSTRUCTIONS;
    uint64_t first_ns = machine_first_run_ns(machine);
    json_object_set_new(root, "engine", json_string(machine->engine->name));
    json_object_set_new(root, "cpus", integer(machine->config.vcpu_count));
    json_object_set_new(root, "memory_bytes", integer(machine->config.ram_size));
    json_object_set_new(root, "startup_ns",
                        first_ns ? integer(first_ns - run->start_ns) : json_null());
    json_object_set_new(root, "instructions",
                        counts ? integer(counters.vcpu.instructions) : json_null());
    json_object_set_new(root, "interrupts",
                        counts ? integer(counters.vcpu.interrupts) : json_null());
    json_object_set_new(root, "resets", integer(counters.resets));
    json_object_set_new(root, "lockstep",
                        machine->config.code.mode == ENGINE_CODE_LOCKSTEP
                            ? lockstep_object(&counters.vcpu.lockstep)
                            : json_null());
    json_object_set_new(root, "tlb", counts ? tlb_object(&counters.vcpu.tlb) : json_null());
    json_object_set_new(root, "code", counts ? code_object(&counters.vcpu.code) : json_null());
    json_object_set_new(root, "exits", exits_by_kind(&counters));
    json_object_set_new(root, "devices", accesses_by_device(machine));
    json_object_set_new(root, "pio", bus_object(&counters.pio));
    json_object_set_new(root, "mmio", bus_object(&counters.mmio));
}

static json_t *build(const struct stats_run *run)
{
    json_t *root = json_object();
    json_object_set_new(root, "parat", json_string(PARAT_VERSION));
    json_object_set_new(root, "name", json_string(run->name));
    json_object_set_new(root, "machine", json_string(run->model));
    json_object_set_new(root, "cpu", json_string(run->cpu));
    json_object_set_new(root, "end", json_string(machine_end_name(run->end)));
    json_object_set_new(root, "status", json_integer(run->status));
    json_object_set_new(root, "duration_ns", integer(clock_host_ns() - run->start_ns));
    json_object_set_new(root, "peak_rss_bytes", peak_rss());
    add_machine(root, run);
    return root;
}

/* Over what the file said; then what is left of that is cut off. */
static int write_text(struct stats_file *file, const char *text)
{
    size_t length = strlen(text), done = 0;
    while (done < length) {
        ssize_t count = write(file->fd, text + done, length - done);
        if (count < 0 && errno != EINTR)
            return errno;
        done += count > 0 ? (size_t)count : 0;
    }
    return file->regular && ftruncate(file->fd, (off_t)length) < 0 ? errno : 0;
}

int stats_write(struct stats_file *file, const struct stats_run *run, struct err *err)
{
    json_t *root = build(run);
    char *text = json_dumps(root, JSON_INDENT(2)), *line;
    json_decref(root);
    if (!text || asprintf(&line, "%s\n", text) < 0) {
        free(text);
        return file_error(file, ENOMEM, err);
    }
    int error = write_text(file, line);
    free(line);
    free(text);
    file->unused = false;
    return error ? file_error(file, error, err) : 0;
}
