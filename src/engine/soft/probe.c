/*
 * Probing engine soft: it runs everywhere; measured is what an instruction costs here, by a loop of
 * 32-bit code in a VM of one page. Loop thread.
 */
#include <stdio.h>
#include <sys/mman.h>

#include "base/clock.h"
#include "engine/soft/soft.h"
#include "engine/soft/soft_int.h"

#define LOOPS 20000u

/* mov ecx, LOOPS; 1: add eax, ecx; xor ebx, eax; dec ecx; jnz 1b; hlt */
static const uint8_t program[] = {0xb9, LOOPS & 0xff, LOOPS >> 8, 0,    0,    0x01, 0xc8,
                                  0x31, 0xc3,         0x49,       0x75, 0xf9, 0xf4};

static uint64_t no_read(void *context, gpa_t address, unsigned size)
{
    return UINT64_MAX;
}

static void no_write(void *context, gpa_t address, unsigned size, uint64_t value)
{
}

static const struct engine_callbacks no_machine = {.mmio_read = no_read, .mmio_write = no_write};

static void flat_32bit_state(struct x86_state *s)
{
    s->cr0 = X86_CR0_PE | X86_CR0_ET | X86_CR0_NE;
    for (unsigned i = 0; i < 6; i++) {
        s->seg[i] = (struct x86_segment) {.limit = UINT32_MAX,
                                          .selector = 0x10,
                                          .attr = X86_SEG_G | X86_SEG_DB | X86_SEG_P | X86_SEG_S |
                                                  X86_SEG_WRITABLE | X86_SEG_ACCESSED};
    }
    s->seg[X86_CS].selector = 8;
    s->seg[X86_CS].attr |= X86_SEG_CODE;
    s->rip = 0;
    s->rflags = X86_FIXED;
}

/* What this thread got of the CPU, so that a busy host does not look slow. */
static uint64_t thread_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return (uint64_t)now.tv_sec * NS_PER_S + (uint64_t)now.tv_nsec;
}

/* Nanoseconds per instruction; 0 when it did not run. */
static double measure(struct engine_vm *vm, uint8_t *page)
{
    struct engine_slot slot = {.size = PAGE_SIZE,
                               .hva = page,
                               .protection = MEM_PROT_READ | MEM_PROT_WRITE | MEM_PROT_EXEC};
    struct engine_vcpu *vcpu = NULL;
    double result = 0;

    if (engine_soft.memory_map(vm, &slot) || engine_soft.vcpu_create(vm, 0, &vcpu, NULL))
        return 0;
    memcpy(page, program, sizeof program);
    struct x86_state state = vcpu->cpu.s;
    flat_32bit_state(&state);
    x86_cpu_set_state(&vcpu->cpu, &state);

    uint64_t start = thread_ns();
    bool good = true;
    while (good && !vcpu->cpu.halted)
        good = soft_run_slice(vcpu);
    if (good)
        result = (double)(thread_ns() - start) / (double)vcpu->instructions;
    engine_soft.vcpu_destroy(vcpu);
    return result;
}

void soft_probe(struct engine_probe *out)
{
    struct x86_cpuid_table cpuid = {.physical_address_bits = 40};
    struct engine_vm_config config = {.vcpu_count = 1, .cpuid = &cpuid, .callbacks = &no_machine};
    struct engine_vm *vm;
    struct err err = {{0}};

    *out = (struct engine_probe) {.verdict = ENGINE_USABLE, .rank = 1};
    soft_cpu_features(&cpuid.features);
    if (engine_soft.vm_create(&config, &vm, &err)) {
        out->verdict = ENGINE_UNUSABLE;
        snprintf(out->reason, sizeof out->reason, "because %.200s", err.text);
        return;
    }
    uint8_t *page =
        mmap(NULL, PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (page != MAP_FAILED) {
        out->user_ns = out->kernel_ns = measure(vm, page);
        engine_soft.vm_destroy(vm);
        munmap(page, PAGE_SIZE);
        return;
    }
    engine_soft.vm_destroy(vm);
}
