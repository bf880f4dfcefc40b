/*
 * One instruction in software; see emulate.h. The state is taken out of the engine, x86/ executes,
 * the state goes back. vCPU's thread, which holds no lock.
 *
 * Memory is the machine's, devices its buses. A store goes to RAM directly, so that LOCK operations
 * are atomic against CPUs that the engine runs; the pages are bracketed as written when the
 * instruction has ended. What belongs to the engine (APIC registers, its MSRs) is not reached from
 * here: the engine emulates that itself.
 */
#include "vm/emulate.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/random.h>

#include "base/clock.h"
#include "vm/machine.h"
#include "vm/stub_memory.h"
#include "x86/cpu.h"
#include "x86/stub.h"

#define PAGES_MAX 32 /* written by one instruction and the delivery of its exception */

/* What the vCPUs' emulators share. Made before the sandbox closes: it is executable memory. */
struct emulator_code {
    struct stub_memory memory;
    struct x86_stubs *stubs;
    struct x86_decoder *decoder;
};

struct emulator {
    struct x86_cpu cpu;
    struct machine *machine;
    uint64_t tsc_hz;
    gpa_t written[PAGES_MAX];
    unsigned written_count;
};

/* --- memory --- */

static bool note_written(struct emulator *e, gpa_t page)
{
    for (unsigned i = 0; i < e->written_count; i++) {
        if (e->written[i].v == page.v)
            return true;
    }
    if (e->written_count == PAGES_MAX ||
        guest_memory_write_begin(e->machine->memory, page, PAGE_SIZE))
        return false;
    e->written[e->written_count++] = page;
    return true;
}

static void end_written(struct emulator *e)
{
    for (unsigned i = 0; i < e->written_count; i++)
        guest_memory_write_end(e->machine->memory, e->written[i], PAGE_SIZE);
    e->written_count = 0;
}

static uint8_t *ram(struct emulator *e, gpa_t address, bool write)
{
    const struct mem_region *region = guest_memory_find(e->machine->memory, address);
    if (!region || (write && (region->flags & MEM_READONLY)))
        return NULL;
    return region->hva + (address.v - region->start.v);
}

static uint8_t *page(void *context, gpa_t address, bool *writable)
{
    struct emulator *e = context;
    uint8_t *host = ram(e, address, *writable);
    if (host && *writable)
        *writable = note_written(e, address);
    return host;
}

static uint8_t *store_begin(void *context, gpa_t address, unsigned length)
{
    struct emulator *e = context;
    if (guest_memory_write_begin(e->machine->memory, address, length))
        return NULL;
    return ram(e, address, true);
}

static void store_end(void *context, gpa_t address, unsigned length)
{
    struct emulator *e = context;
    guest_memory_write_end(e->machine->memory, address, length);
}

/* --- devices --- */

static uint64_t mmio_read(void *context, gpa_t address, unsigned size)
{
    struct emulator *e = context;
    return bus_read(e->machine->mmio, address.v, size);
}

static void mmio_write(void *context, gpa_t address, unsigned size, uint64_t value)
{
    struct emulator *e = context;
    bus_write(e->machine->mmio, address.v, size, value);
}

static uint32_t pio_read(void *context, uint16_t port, unsigned size)
{
    struct emulator *e = context;
    return (uint32_t)bus_read(e->machine->pio, port, size);
}

static void pio_write(void *context, uint16_t port, unsigned size, uint32_t value)
{
    struct emulator *e = context;
    bus_write(e->machine->pio, port, size, value);
}

/* --- the rest of the surroundings --- */

/* A LOCK operation that crosses cache lines, here, is atomic against nobody. */
static void no_section(void *context)
{
    (void)context;
}

static uint64_t tsc(void *context)
{
    struct emulator *e = context;
    return mul_div_u64(vm_clock_ns(e->machine->clock), e->tsc_hz, NS_PER_S);
}

static bool no_msr_read(void *context, uint32_t index, uint64_t *value)
{
    (void)context, (void)index, (void)value;
    return false;
}

static bool no_msr_write(void *context, uint32_t index, uint64_t value)
{
    (void)context, (void)index, (void)value;
    return false;
}

static uint64_t cr8_read(void *context)
{
    struct emulator *e = context;
    return e->cpu.s.lapic.tpr >> 4;
}

static void cr8_write(void *context, uint64_t value)
{
    struct emulator *e = context;
    e->cpu.s.lapic.tpr = (uint32_t)(value & 15) << 4;
}

static bool read_random(void *context, uint64_t *value)
{
    (void)context;
    return getrandom(value, sizeof *value, 0) == (ssize_t)sizeof *value;
}

static const struct x86_ops ops = {
    .page = page,
    .store_begin = store_begin,
    .store_end = store_end,
    .mmio_read = mmio_read,
    .mmio_write = mmio_write,
    .pio_read = pio_read,
    .pio_write = pio_write,
    .exclusive_begin = no_section,
    .exclusive_end = no_section,
    .tsc = tsc,
    .msr_read = no_msr_read,
    .msr_write = no_msr_write,
    .cr8_read = cr8_read,
    .cr8_write = cr8_write,
    .random = read_random,
};

/* --- creation --- */

static const size_t emulator_size = (sizeof(struct emulator) + PAGE_SIZE - 1) & ~(PAGE_SIZE - 1);

void emulator_destroy(struct emulator *emulator)
{
    if (emulator)
        munmap(emulator, emulator_size);
}

void emulator_code_destroy(struct emulator_code *code)
{
    if (!code)
        return;
    x86_decoder_destroy(code->decoder);
    x86_stubs_destroy(code->stubs);
    stub_memory_destroy(&code->memory);
    free(code);
}

static int create_decoder(struct emulator_code *code, const struct x86_features *features,
                          struct err *err)
{
    int error = stub_memory_create(&code->memory, X86_STUBS_SIZE, err);
    if (error)
        return error;
    struct x86_stub_memory memory = {
        .write = code->memory.write, .execute = code->memory.execute, .size = code->memory.size};
    error = x86_stubs_create(&code->stubs, &memory);
    if (!error)
        error = x86_decoder_create(&code->decoder, features, code->stubs);
    return error ? err_set(err, -error, "out of memory") : 0;
}

int emulator_code_create(struct emulator_code **out, const struct x86_features *features,
                         struct err *err)
{
    struct emulator_code *code = calloc(1, sizeof *code);
    if (!code)
        return err_set(err, ENOMEM, "out of memory");
    int error = create_decoder(code, features, err);
    if (error) {
        emulator_code_destroy(code);
        return error;
    }
    *out = code;
    return 0;
}

/* Large: the CPU's tables. In pages of its own, so that only what is used is there. */
static int create(struct vcpu *vcpu, struct err *err)
{
    struct emulator *e =
        mmap(NULL, emulator_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (e == MAP_FAILED)
        return err_set(err, ENOMEM, "out of memory");
    e->machine = vcpu->machine;
    struct x86_cpu_config config = {.ops = &ops,
                                    .context = e,
                                    .decoder = vcpu->machine->emulator_code->decoder,
                                    .cpuid = vcpu->machine->config.cpuid,
                                    .stubs = vcpu->machine->emulator_code->stubs,
                                    .apic_id = vcpu->index,
                                    .is_bsp = vcpu->index == 0};
    x86_cpu_init(&e->cpu, &config);
    vcpu->emulator = e;
    return 0;
}

/* --- the instruction --- */

static enum x86_result step(struct emulator *e)
{
    struct x86_cpu *cpu = &e->cpu;
    enum x86_result result = x86_step(cpu);
    if (result == X86_FAULT) {
        cpu->s.interrupt_shadow = cpu->s.shadow_is_mov_ss = false;
        result = x86_deliver(cpu, &cpu->fault);
    }
    end_written(e);
    return result;
}

static int load(struct vcpu *vcpu, struct x86_state *state)
{
    const struct engine_ops *engine = vcpu->machine->engine;
    struct engine_vm_state vm = {0};
    int error = engine->vm_get_state(vcpu->machine->engine_vm, &vm);
    vcpu->emulator->tsc_hz = vm.tsc_hz;
    if (!error)
        error = engine->vcpu_get_state(vcpu->engine, state);
    return error;
}

enum emulate_result emulator_run(struct vcpu *vcpu, struct err *err)
{
    struct x86_state state;
    if (!vcpu->emulator && create(vcpu, err))
        return EMULATE_ERROR;
    int error = load(vcpu, &state);
    if (error) {
        err_set(err, -error, "engine %s cannot give its state: %s", vcpu->machine->engine->name,
                strerror(-error));
        return EMULATE_ERROR;
    }
    x86_cpu_set_state(&vcpu->emulator->cpu, &state);
    if (step(vcpu->emulator) != X86_OK)
        return EMULATE_SHUTDOWN;
    x86_cpu_get_state(&vcpu->emulator->cpu, &state);
    if (vcpu->machine->engine->vcpu_set_state(vcpu->engine, &state, err))
        return EMULATE_ERROR;
    return EMULATE_DONE;
}
