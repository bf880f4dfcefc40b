/*
 * Runs a sequence by the translator: on engine soft, as a machine would use it, with a kernel of a
 * page that tells which exception ended it by writing to the port of that number. Each block is
 * translated at its first execution. 64-bit code.
 */
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/bits.h"
#include "engine/soft/soft.h"
#include "engine/soft/soft_int.h"

#include "diff.h"

/* Where native code sees the kernel of the host. */
#define KERNEL_BASE 0xffff900000000000ull
#define KERNEL_SIZE (4 * 4096)
#define GPA_KERNEL  (DIFF_RAM_SIZE - KERNEL_SIZE - 3 * 4096)
#define GPA_TABLES  (DIFF_RAM_SIZE - 3 * 4096)

/* In the kernel's pages. */
#define IDT      0x0000
#define GDT      0x0400
#define TSS      0x0500
#define HANDLERS 0x1000 /* 16 bytes each */
#define STACK    0x4000 /* its end */
#define VECTORS  32

#define KERNEL_CS 0x10
#define TICKS_MAX 10 /* of the driver's alarm: then a sequence hangs */

struct diff_translated {
    struct x86_cpuid_table cpuid;
    struct engine_vm *vm;
    struct engine_vcpu *vcpu;
    struct x86_state reset;
    unsigned vector; /* as the guest says; VECTORS: nothing yet */
    volatile sig_atomic_t ticks;
    uint8_t *ram;
};

/* --- what the guest says --- */

static uint64_t mmio_read(void *context, gpa_t address, unsigned size)
{
    return ~0ull;
}

static void mmio_write(void *context, gpa_t address, unsigned size, uint64_t value)
{
}

static uint32_t pio_read(void *context, uint16_t port, unsigned size)
{
    return ~0u;
}

static void pio_write(void *context, uint16_t port, unsigned size, uint32_t value)
{
    struct diff_translated *t = context;
    t->vector = port;
    engine_soft.vcpu_kick(t->vcpu);
}

static void eoi(void *context, uint8_t vector)
{
}

static uint8_t acknowledge(void *context)
{
    return 0;
}

static const struct engine_callbacks callbacks = {mmio_read, mmio_write, pio_read,
                                                  pio_write, eoi,        acknowledge};

/* --- setting up --- */

static void page_entry(struct diff_translated *t, uint64_t table, uint64_t index, uint64_t value)
{
    store_le64(t->ram + table + index * 8, value);
}

static void map_kernel(struct diff_translated *t)
{
    const uint64_t bits = X86_PTE_P | X86_PTE_W | X86_PTE_A | X86_PTE_D;
    const uint64_t base = KERNEL_BASE;

    page_entry(t, 0, base >> 39 & 511, GPA_TABLES | bits);
    page_entry(t, GPA_TABLES, base >> 30 & 511, (GPA_TABLES + 0x1000) | bits);
    page_entry(t, GPA_TABLES + 0x1000, base >> 21 & 511, (GPA_TABLES + 0x2000) | bits);
    for (uint64_t i = 0; i < KERNEL_SIZE / 4096; i++)
        page_entry(t, GPA_TABLES + 0x2000, i, (GPA_KERNEL + i * 4096) | bits);
}

static void put_gate(struct diff_translated *t, unsigned vector, uint64_t handler)
{
    uint64_t type = vector == X86_BP || vector == X86_OF_TRAP ? 0xee00ull : 0x8e00ull;
    uint8_t *gate = t->ram + GPA_KERNEL + IDT + vector * 16;

    store_le64(gate, (handler & 0xffff) | KERNEL_CS << 16 | type << 32 | (handler >> 16) << 48);
    store_le64(gate + 8, handler >> 32);
}

/* out %al, $vector; hlt; jmp to the hlt */
static void put_handler(struct diff_translated *t, unsigned vector)
{
    const uint8_t code[] = {0xe6, (uint8_t)vector, 0xf4, 0xeb, 0xfd};
    unsigned at = HANDLERS + vector * 16;

    memcpy(t->ram + GPA_KERNEL + at, code, sizeof code);
    put_gate(t, vector, KERNEL_BASE + at);
}

static void build_kernel(struct diff_translated *t)
{
    map_kernel(t);
    for (unsigned i = 0; i < VECTORS; i++)
        put_handler(t, i);
    store_le64(t->ram + GPA_KERNEL + GDT + KERNEL_CS, 0x00af9b000000ffff);
    store_le64(t->ram + GPA_KERNEL + TSS + 4, KERNEL_BASE + STACK); /* RSP0 */
}

/* What diff_guest_load leaves alone or sets otherwise. */
static void kernel_registers(struct x86_state *s)
{
    s->gdtr = (struct x86_table_register) {KERNEL_BASE + GDT, 0x1f};
    s->idtr = (struct x86_table_register) {KERNEL_BASE + IDT, VECTORS * 16 - 1};
    s->tr = (struct x86_segment) {
        .base = KERNEL_BASE + TSS, .limit = 0x67, .selector = 0x18, .attr = X86_SEG_P | 0xb};
}

static int create_vm(struct diff_translated *t)
{
    struct engine_vm_config config = {
        .vcpu_count = 1, .cpuid = &t->cpuid, .callbacks = &callbacks, .context = t};
    struct engine_slot slot = {.size = DIFF_RAM_SIZE,
                               .hva = t->ram,
                               .protection = MEM_PROT_READ | MEM_PROT_WRITE | MEM_PROT_EXEC};
    struct err err;
    int error = engine_soft.vm_create(&config, &t->vm, &err);
    if (!error)
        error = engine_soft.memory_map(t->vm, &slot);
    if (!error)
        error = engine_soft.vcpu_create(t->vm, 0, &t->vcpu, &err);
    if (!error && !t->vcpu->translator)
        error = -ENOTSUP;
    return error;
}

/* The engine's own thread must not take the signals of native runs. */
static int create_vm_in_peace(struct diff_translated *t)
{
    sigset_t all, before;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = create_vm(t);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return error;
}

int diff_translated_create(struct diff_translated **out)
{
    struct diff_translated *t = calloc(1, sizeof *t);

    if (!t)
        return -ENOMEM;
    t->cpuid.physical_address_bits = 40;
    diff_guest_features(&t->cpuid.features);
    t->ram = mmap(NULL, DIFF_RAM_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    int error = t->ram == MAP_FAILED ? -ENOMEM : create_vm_in_peace(t);
    if (error) {
        diff_translated_destroy(t);
        return error;
    }
    diff_guest_build(t->ram);
    build_kernel(t);
    t->vcpu->cache.hot = 1;
    engine_soft.vcpu_get_state(t->vcpu, &t->reset);
    *out = t;
    return 0;
}

void diff_translated_destroy(struct diff_translated *t)
{
    if (t->vm)
        engine_soft.vm_destroy(t->vm);
    if (t->ram != MAP_FAILED)
        munmap(t->ram, DIFF_RAM_SIZE);
    free(t);
}

/* --- running --- */

void diff_translated_tick(struct diff_translated *t)
{
    if (++t->ticks == TICKS_MAX)
        engine_soft.vcpu_kick(t->vcpu);
}

static bool has_error_code(unsigned vector)
{
    return vector == X86_DF_FAULT || (vector >= X86_TS && vector <= X86_PF_FAULT) ||
           vector == X86_AC_FAULT;
}

/* The registers of the interrupted program, from the kernel's stack. */
static void store(struct diff_translated *t, struct x86_state *s, struct diff_end *end)
{
    const uint8_t *frame = t->ram + GPA_KERNEL + STACK - 5 * 8;

    end->vector = t->vector;
    end->error = has_error_code(t->vector) ? load_le64(frame - 8) : 0;
    end->cr2 = t->vector == X86_PF_FAULT ? s->cr2 : 0;
    s->rip = load_le64(frame);
    s->rflags = load_le64(frame + 16);
    s->gpr[X86_RSP] = load_le64(frame + 24);
    diff_guest_store(t->ram, s, end);
}

void diff_translated_run(struct diff_translated *t, const struct diff_input *input, bool again,
                         struct diff_end *end)
{
    struct x86_state s = t->reset;
    struct vm_exit exit;
    struct err err;

    diff_guest_load(t->ram, &s, input);
    kernel_registers(&s);
    if (!again)
        engine_soft.memory_written(t->vm, gpa(DIFF_GPA_CODE), CODE_SIZE);
    t->vector = VECTORS;
    t->ticks = 0;
    if (engine_soft.vcpu_set_state(t->vcpu, &s, &err) == 0)
        engine_soft.vcpu_run(t->vcpu, &exit);
    end->timeout = t->vector == VECTORS;
    engine_soft.vcpu_get_state(t->vcpu, &s);
    store(t, &s, end);
}
