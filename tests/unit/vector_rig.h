/*
 * One CPU with 64 KiB of RAM for tests of vector and x87 instructions: rig_run decodes and executes
 * one instruction, as 64-bit code or otherwise, and tells the exception. No paging; addresses from
 * RIG_RAM_SIZE up have no RAM.
 */
#ifndef PARAT_TESTS_VECTOR_RIG_H
#define PARAT_TESTS_VECTOR_RIG_H

#include "test.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "x86/cpu.h"
#include "x86/mem.h"
#include "x86/stub.h"
#include "x86/x87_int.h"
#include "x86/xsave_int.h"

#define RIG_RAM_SIZE 0x10000u
#define RIG_OK       (-1) /* no exception */

struct vector_rig {
    struct x86_cpu cpu;
    struct x86_cpuid_table cpuid;
    struct x86_decoder *decoder;
    struct x86_stubs *stubs;
    uint8_t *stub_memory;
    uint8_t ram[RIG_RAM_SIZE];
};

static inline uint8_t *rig_page(void *context, gpa_t page, bool *writable)
{
    struct vector_rig *rig = context;

    (void)writable;
    return page.v < RIG_RAM_SIZE ? rig->ram + page.v : NULL;
}

static inline uint64_t rig_mmio_read(void *context, gpa_t address, unsigned size)
{
    (void)context, (void)address, (void)size;
    return ~0ull;
}

static inline void rig_mmio_write(void *context, gpa_t address, unsigned size, uint64_t value)
{
    (void)context, (void)address, (void)size, (void)value;
}

static const struct x86_ops rig_ops = {
    .page = rig_page, .mmio_read = rig_mmio_read, .mmio_write = rig_mmio_write};

/* What the host cannot do is not offered; a test of it is skipped by rig_needs. */
static inline void rig_features(struct x86_features *features)
{
    memset(features, 0xff, sizeof *features);
    x86_feature_set(features, X86_FEATURE_AVX, __builtin_cpu_supports("avx"));
    x86_feature_set(features, X86_FEATURE_AVX2, __builtin_cpu_supports("avx2"));
    x86_feature_set(features, X86_FEATURE_SSE42, __builtin_cpu_supports("sse4.2"));
}

static inline void rig_needs(const struct vector_rig *rig, enum x86_feature feature)
{
    if (!x86_has(&rig->cpuid.features, feature))
        skip();
}

/* 64-bit code at CPL 0, everything enabled, x87 and SSE as after reset, flat segments. */
static inline void rig_mode(struct vector_rig *rig, uint8_t code_size)
{
    struct x86_cpu *cpu = &rig->cpu;

    cpu->s.cr0 = X86_CR0_PE | X86_CR0_NE | X86_CR0_MP | X86_CR0_ET;
    cpu->s.cr4 = X86_CR4_OSFXSR | X86_CR4_OSXMMEXCPT | X86_CR4_OSXSAVE;
    cpu->s.xcr0 = X86_XCR0_X87 | X86_XCR0_SSE | X86_XCR0_AVX;
    cpu->s.efer = code_size == 8 ? X86_EFER_LME | X86_EFER_LMA : 0;
    for (unsigned i = 0; i < 6; i++)
        cpu->s.seg[i] = (struct x86_segment) {
            .limit = UINT32_MAX,
            .attr = X86_SEG_P | X86_SEG_S | X86_SEG_WRITABLE | (i == X86_CS ? X86_SEG_CODE : 0) |
                    (i == X86_CS && code_size == 8 ? X86_SEG_L : X86_SEG_DB) | X86_SEG_G};
    x86_cpu_update_mode(cpu);
}

static inline int rig_setup(void **state)
{
    struct vector_rig *rig = aligned_alloc(64, (sizeof *rig + 63) / 64 * 64);
    struct x86_cpu_config config = {.ops = &rig_ops, .context = rig, .is_bsp = true};

    assert_non_null(rig);
    memset(rig, 0, sizeof *rig);
    rig->stub_memory = mmap(NULL, X86_STUBS_SIZE, PROT_READ | PROT_WRITE | PROT_EXEC,
                            MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_ptr_not_equal(rig->stub_memory, MAP_FAILED);
    struct x86_stub_memory memory = {rig->stub_memory, rig->stub_memory, X86_STUBS_SIZE};
    rig_features(&rig->cpuid.features);
    assert_int_equal(x86_stubs_create(&rig->stubs, &memory), 0);
    assert_int_equal(x86_decoder_create(&rig->decoder, &rig->cpuid.features, rig->stubs), 0);
    config.decoder = rig->decoder;
    config.cpuid = &rig->cpuid;
    config.stubs = rig->stubs;
    x86_cpu_init(&rig->cpu, &config);
    rig_mode(rig, 8);
    rig->cpu.s.rip = 0x100;
    *state = rig;
    return 0;
}

static inline int rig_teardown(void **state)
{
    struct vector_rig *rig = *state;

    x86_decoder_destroy(rig->decoder);
    x86_stubs_destroy(rig->stubs);
    munmap(rig->stub_memory, X86_STUBS_SIZE);
    free(rig);
    return 0;
}

/* Executes one instruction; the vector of its exception, or RIG_OK. */
static inline int rig_execute(struct vector_rig *rig, const uint8_t *bytes, size_t size)
{
    struct x86_insn insn;
    jmp_buf unwind;

    assert_int_equal(x86_decode(rig->decoder, &rig->cpu.decode_mode, bytes, size, &insn),
                     X86_DECODE_OK);
    rig->cpu.next_rip = rig->cpu.s.rip + insn.length;
    rig->cpu.unwind = &unwind;
    if (setjmp(unwind))
        return rig->cpu.fault.vector;
    insn.run(&rig->cpu, &insn);
    return RIG_OK;
}

#define rig_run(rig, ...)                                                                          \
    rig_execute(rig, (const uint8_t[]) {__VA_ARGS__}, sizeof((const uint8_t[]) {__VA_ARGS__}))

static inline void rig_fill(void *to, size_t size, uint8_t seed)
{
    uint8_t *byte = to;

    for (size_t i = 0; i < size; i++)
        byte[i] = (uint8_t)(seed + i * 7);
}

#endif
