/* Runs a sequence with x86_step on a CPU at CPL 3, in the address space of guest.c. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/bits.h"
#include "x86/cpu.h"
#include "x86/mem.h"
#include "x86/stub.h"

#include "diff.h"

#define STEPS_MAX 3000

struct diff_emulated {
    struct x86_cpu cpu;
    struct x86_cpuid_table cpuid;
    struct x86_decoder *decoder;
    struct x86_stubs *stubs;
    struct x86_stub_memory stub_memory;
    _Alignas(4096) uint8_t ram[DIFF_RAM_SIZE];
};

/* --- what the CPU asks of its surroundings --- */

static uint8_t *ram_page(void *context, gpa_t page, bool *writable)
{
    struct diff_emulated *e = context;
    *writable = true;
    return page.v < sizeof e->ram ? e->ram + page.v : NULL;
}

static uint8_t *store_begin(void *context, gpa_t address, unsigned length)
{
    struct diff_emulated *e = context;
    return address.v < sizeof e->ram ? e->ram + address.v : NULL;
}

static void store_end(void *context, gpa_t address, unsigned length)
{
}

static uint64_t mmio_read(void *context, gpa_t address, unsigned size)
{
    return ~0ull;
}

static void mmio_write(void *context, gpa_t address, unsigned size, uint64_t value)
{
}

static void exclusive(void *context)
{
}

static uint64_t tsc(void *context)
{
    return 0;
}

static const struct x86_ops ops = {.page = ram_page,
                                   .store_begin = store_begin,
                                   .store_end = store_end,
                                   .mmio_read = mmio_read,
                                   .mmio_write = mmio_write,
                                   .exclusive_begin = exclusive,
                                   .exclusive_end = exclusive,
                                   .tsc = tsc};

/* --- setting up --- */

static int create_stubs(struct diff_emulated *e)
{
    struct x86_stub_memory *m = &e->stub_memory;
    int fd = memfd_create("diff-stubs", MFD_CLOEXEC);

    m->size = X86_STUBS_SIZE;
    if (fd < 0 || ftruncate(fd, (off_t)m->size))
        return -errno;
    m->write = mmap(NULL, m->size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    m->execute = mmap(NULL, m->size, PROT_READ | PROT_EXEC, MAP_SHARED, fd, 0);
    close(fd);
    if (m->write == MAP_FAILED || m->execute == MAP_FAILED)
        return -ENOMEM;
    return x86_stubs_create(&e->stubs, m);
}

int diff_emulated_create(struct diff_emulated **out)
{
    struct diff_emulated *e = aligned_alloc(4096, align_up(sizeof *e, 4096));
    int error;

    if (!e)
        return -ENOMEM;
    memset(e, 0, sizeof *e);
    diff_guest_features(&e->cpuid.features);
    e->cpuid.physical_address_bits = 40;
    error = create_stubs(e);
    if (!error)
        error = x86_decoder_create(&e->decoder, &e->cpuid.features, e->stubs);
    if (error) {
        diff_emulated_destroy(e);
        return error;
    }
    diff_guest_build(e->ram);
    const struct x86_cpu_config config = {.ops = &ops,
                                          .context = e,
                                          .decoder = e->decoder,
                                          .cpuid = &e->cpuid,
                                          .stubs = e->stubs,
                                          .is_bsp = true};
    x86_cpu_init(&e->cpu, &config);
    *out = e;
    return 0;
}

void diff_emulated_destroy(struct diff_emulated *e)
{
    x86_decoder_destroy(e->decoder);
    if (e->stubs)
        x86_stubs_destroy(e->stubs);
    if (e->stub_memory.write)
        munmap(e->stub_memory.write, e->stub_memory.size);
    if (e->stub_memory.execute)
        munmap(e->stub_memory.execute, e->stub_memory.size);
    free(e);
}

const struct x86_decoder *diff_emulated_decoder(const struct diff_emulated *e)
{
    return e->decoder;
}

/* --- running --- */

static void load(struct diff_emulated *e, const struct diff_input *input)
{
    struct x86_state state = e->cpu.s;

    diff_guest_load(e->ram, &state, input);
    x86_cpu_set_state(&e->cpu, &state);
}

static void store(struct diff_emulated *e, struct diff_end *end)
{
    struct x86_cpu *cpu = &e->cpu;
    const struct x86_event *fault = &cpu->fault;
    bool soft = fault->kind == X86_EVENT_SOFT_EXCEPTION ||
                fault->kind == X86_EVENT_SOFT_INTERRUPT ||
                fault->kind == X86_EVENT_PRIVILEGED_SOFT_EXCEPTION;

    diff_guest_store(e->ram, &cpu->s, end);
    if (soft)
        end->state.rip = cpu->next_rip;
    end->vector = fault->vector;
    end->error = fault->has_error ? fault->error : 0;
    end->cr2 = fault->vector == X86_PF_FAULT ? fault->payload : 0;
}

void diff_emulated_run(struct diff_emulated *e, const struct diff_input *input,
                       struct diff_end *end, diff_seen *seen, void *context)
{
    unsigned steps = 0;

    load(e, input);
    do {
        if (seen)
            seen(context, e->cpu.s.rip);
    } while (x86_step(&e->cpu) == X86_OK && ++steps < STEPS_MAX);
    end->timeout = steps >= STEPS_MAX;
    store(e, end);
}
