/*
 * Runs a sequence with x86_step on a CPU at CPL 3 in 64-bit mode, in an address space made like the
 * native one: page tables and pages lie in one buffer.
 */
#include <cpuid.h>
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

#define RAM_PAGES  32
#define GPA_PML4   0x0000
#define GPA_PDPT   0x1000
#define GPA_PD     0x2000
#define GPA_PT     0x3000 /* of DATA_BASE and STACK_BASE */
#define GPA_PT2    0x4000 /* of CODE_BASE */
#define GPA_MEMORY 0x5000 /* MEMORY_SIZE bytes in the order of struct diff_end */
#define GPA_CODE   0x10000
#define STEPS_MAX  3000

struct diff_emulated {
    struct x86_cpu cpu;
    struct x86_cpuid_table cpuid;
    struct x86_decoder *decoder;
    struct x86_stubs *stubs;
    struct x86_stub_memory stub_memory;
    struct x86_segment seg[6]; /* as every run starts */
    _Alignas(4096) uint8_t ram[RAM_PAGES * 4096];
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

static void host_features(struct x86_features *f)
{
    unsigned a, b, c, d;

    __cpuid(1, a, b, c, d);
    f->word[X86_WORD_1_EDX] = d;
    f->word[X86_WORD_1_ECX] = c;
    __cpuid_count(7, 0, a, b, c, d);
    f->word[X86_WORD_7_EBX] = b;
    f->word[X86_WORD_7_ECX] = c;
    f->word[X86_WORD_7_EDX] = d;
    __cpuid(0x80000001, a, b, c, d);
    f->word[X86_WORD_80000001_EDX] = d;
    f->word[X86_WORD_80000001_ECX] = c;
    __cpuid_count(0xd, 1, a, b, c, d);
    f->word[X86_WORD_D_1_EAX] = a;
}

static void page_entry(struct diff_emulated *e, uint64_t table, uint64_t index, uint64_t value)
{
    store_le64(e->ram + table + index * 8, value);
}

#define TABLE (X86_PTE_P | X86_PTE_W | X86_PTE_U | X86_PTE_A)
#define RW    (TABLE | X86_PTE_D | X86_PTE_NX)
#define RO    (X86_PTE_P | X86_PTE_U | X86_PTE_A | X86_PTE_NX)
#define RX    (X86_PTE_P | X86_PTE_U | X86_PTE_A)

/* Maps `size` bytes and returns the physical address behind them. */
static uint64_t map(struct diff_emulated *e, uint64_t la, uint64_t size, uint64_t gpa,
                    uint64_t bits)
{
    uint64_t table = la >= CODE_BASE ? GPA_PT2 : GPA_PT;
    for (uint64_t i = 0; i < size; i += 4096)
        page_entry(e, table, (la + i) >> 12 & 511, (gpa + i) | bits);
    return gpa + size;
}

static void build_tables(struct diff_emulated *e)
{
    uint64_t gpa = GPA_MEMORY;

    page_entry(e, GPA_PML4, 0, GPA_PDPT | TABLE);
    page_entry(e, GPA_PDPT, 0, GPA_PD | TABLE);
    page_entry(e, GPA_PD, DATA_BASE >> 21, GPA_PT | TABLE);
    page_entry(e, GPA_PD, CODE_BASE >> 21, GPA_PT2 | TABLE);
    gpa = map(e, DATA_BASE, DATA_RW, gpa, RW);
    gpa = map(e, DATA_BASE + DATA_RW, DATA_RO, gpa, RO);
    gpa = map(e, DATA_BASE + DATA_RW + DATA_RO + DATA_HOLE, DATA_TAIL, gpa, RW);
    gpa = map(e, STACK_BASE, STACK_SIZE, gpa, RW);
    map(e, CODE_BASE, CODE_SIZE, GPA_CODE, RX);
}

static struct x86_segment flat(uint16_t selector, uint16_t attr)
{
    return (struct x86_segment) {.limit = 0xffffffff, .selector = selector, .attr = attr};
}

static void user_mode(struct x86_state *s)
{
    s->cr0 =
        X86_CR0_PE | X86_CR0_MP | X86_CR0_ET | X86_CR0_NE | X86_CR0_WP | X86_CR0_AM | X86_CR0_PG;
    s->cr3 = GPA_PML4;
    s->cr4 = X86_CR4_DE | X86_CR4_PAE | X86_CR4_PGE | X86_CR4_OSFXSR | X86_CR4_OSXMMEXCPT |
             X86_CR4_OSXSAVE | X86_CR4_FSGSBASE;
    s->efer = X86_EFER_SCE | X86_EFER_LME | X86_EFER_LMA | X86_EFER_NXE;
    s->xcr0 = X86_XCR0_X87 | X86_XCR0_SSE | X86_XCR0_AVX;
    s->rflags = X86_FIXED | X86_IF;
    s->rip = CODE_BASE;
    /* Linux's selectors; 64-bit code, DPL 3 everywhere. */
    s->seg[X86_CS] = flat(0x33, X86_SEG_P | X86_SEG_DPL | X86_SEG_S | 0xb | X86_SEG_L | X86_SEG_G);
    s->seg[X86_SS] = flat(0x2b, X86_SEG_P | X86_SEG_DPL | X86_SEG_S | 0x3 | X86_SEG_DB | X86_SEG_G);
    s->seg[X86_DS] = s->seg[X86_ES] = s->seg[X86_SS];
    s->seg[X86_FS] = s->seg[X86_GS] = (struct x86_segment) {0};
    s->seg[X86_GS].base = GS_BASE;
    s->gdtr.limit = s->idtr.limit = 0;
    s->ldtr = (struct x86_segment) {0};
    s->tr.limit = 0x40; /* too short for a port permission map: all ports are forbidden */
}

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
    host_features(&e->cpuid.features);
    e->cpuid.physical_address_bits = 40;
    error = create_stubs(e);
    if (!error)
        error = x86_decoder_create(&e->decoder, &e->cpuid.features, e->stubs);
    if (error) {
        diff_emulated_destroy(e);
        return error;
    }
    build_tables(e);
    const struct x86_cpu_config config = {.ops = &ops,
                                          .context = e,
                                          .decoder = e->decoder,
                                          .cpuid = &e->cpuid,
                                          .stubs = e->stubs,
                                          .is_bsp = true};
    x86_cpu_init(&e->cpu, &config);
    struct x86_state state;
    x86_cpu_get_state(&e->cpu, &state);
    user_mode(&state);
    x86_cpu_set_state(&e->cpu, &state);
    memcpy(e->seg, state.seg, sizeof e->seg);
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
    struct x86_cpu *cpu = &e->cpu;

    memcpy(e->ram + GPA_MEMORY, input->memory, MEMORY_SIZE);
    memcpy(e->ram + GPA_CODE, input->code, CODE_SIZE);
    memcpy(cpu->s.gpr, input->state.gpr, sizeof cpu->s.gpr);
    memcpy(cpu->s.seg, e->seg, sizeof cpu->s.seg);
    if (input->code_size == 4) {
        cpu->s.seg[X86_CS].selector = 0x23;
        cpu->s.seg[X86_CS].attr ^= X86_SEG_L | X86_SEG_DB;
        cpu->s.seg[X86_GS] = (struct x86_segment) {0};
    }
    cpu->s.rip = input->state.rip;
    cpu->s.rflags = input->state.rflags;
    cpu->s.fpu = input->state.fpu;
    cpu->s.dr6 = 0xffff0ff0;
    cpu->s.interrupt_shadow = cpu->s.shadow_is_mov_ss = false;
    cpu->s.pending = (struct x86_event) {0};
    x86_cpu_update_mode(cpu);
}

static void store(struct diff_emulated *e, struct diff_end *end)
{
    struct x86_cpu *cpu = &e->cpu;
    const struct x86_event *fault = &cpu->fault;
    bool soft = fault->kind == X86_EVENT_SOFT_EXCEPTION ||
                fault->kind == X86_EVENT_SOFT_INTERRUPT ||
                fault->kind == X86_EVENT_PRIVILEGED_SOFT_EXCEPTION;

    memcpy(end->memory, e->ram + GPA_MEMORY, MEMORY_SIZE);
    memcpy(end->state.gpr, cpu->s.gpr, sizeof cpu->s.gpr);
    end->state.rip = soft ? cpu->next_rip : cpu->s.rip;
    end->state.rflags = cpu->s.rflags & ~(X86_RF | X86_FIXED);
    end->state.fpu = cpu->s.fpu;
    end->state.fpu.fop = end->state.fpu.fcs = end->state.fpu.fds = 0;
    end->state.fpu.fip = end->state.fpu.fdp = 0;
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
