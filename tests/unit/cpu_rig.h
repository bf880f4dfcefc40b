/*
 * A CPU with 4 MiB of fake RAM for the tests of src/x86's system side. MMIO above 1 TiB and ports
 * are recorded. Code is put as bytes and run with x86_step or by calling into x86/ under rig_try.
 */
#ifndef PARAT_TESTS_CPU_RIG_H
#define PARAT_TESTS_CPU_RIG_H

#include "test.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "x86/cpu.h"
#include "x86/mem.h"

#define RIG_RAM (4u << 20)

struct rig {
    struct x86_cpu cpu;
    struct x86_cpuid_table cpuid;
    struct x86_decoder *decoder;
    uint8_t *ram;
    uint64_t code_page; /* a page that refuses direct writes; UINT64_MAX: none */
    unsigned stores_begun, mmio_reads, mmio_writes;
    uint64_t mmio_address, mmio_value;
    unsigned mmio_size;
    uint32_t pio_value;
    uint16_t pio_port;
    uint64_t tsc, cr8;
    uint64_t (*mmio_hook)(struct rig *r, uint64_t address); /* answers reads instead, or NULL */
};

static uint8_t *rig_page(void *context, gpa_t page, bool *writable)
{
    struct rig *r = context;
    if (page.v >= RIG_RAM)
        return NULL;
    *writable = page.v != r->code_page;
    return r->ram + page.v;
}

static uint8_t *rig_store_begin(void *context, gpa_t address, unsigned length)
{
    struct rig *r = context;
    r->stores_begun++;
    return r->ram + address.v;
}

static void rig_store_end(void *context, gpa_t address, unsigned length)
{
    (void)context;
}

static uint64_t rig_mmio_read(void *context, gpa_t address, unsigned size)
{
    struct rig *r = context;
    r->mmio_reads++;
    r->mmio_address = address.v;
    r->mmio_size = size;
    if (r->mmio_hook)
        return r->mmio_hook(r, address.v);
    return address.v >= 1ull << 40 ? 0x1122334455667788 : ~0ull;
}

static void rig_mmio_write(void *context, gpa_t address, unsigned size, uint64_t value)
{
    struct rig *r = context;
    r->mmio_writes++;
    r->mmio_address = address.v;
    r->mmio_size = size;
    r->mmio_value = value;
}

static uint32_t rig_pio_read(void *context, uint16_t port, unsigned size)
{
    struct rig *r = context;
    r->pio_port = port;
    return 0xa1b2c3d4;
}

static void rig_pio_write(void *context, uint16_t port, unsigned size, uint32_t value)
{
    struct rig *r = context;
    r->pio_port = port;
    r->pio_value = value;
}

static void rig_nothing(void *context)
{
    (void)context;
}

static uint64_t rig_tsc(void *context)
{
    return ((struct rig *)context)->tsc;
}

static bool rig_msr_read(void *context, uint32_t index, uint64_t *value)
{
    *value = 0;
    return false;
}

static bool rig_msr_write(void *context, uint32_t index, uint64_t value)
{
    return false;
}

static uint64_t rig_cr8_read(void *context)
{
    return ((struct rig *)context)->cr8;
}

static void rig_cr8_write(void *context, uint64_t value)
{
    ((struct rig *)context)->cr8 = value;
}

static bool rig_random(void *context, uint64_t *value)
{
    *value = 42;
    return true;
}

static const struct x86_ops rig_ops = {
    .page = rig_page,
    .store_begin = rig_store_begin,
    .store_end = rig_store_end,
    .mmio_read = rig_mmio_read,
    .mmio_write = rig_mmio_write,
    .pio_read = rig_pio_read,
    .pio_write = rig_pio_write,
    .exclusive_begin = rig_nothing,
    .exclusive_end = rig_nothing,
    .tsc = rig_tsc,
    .msr_read = rig_msr_read,
    .msr_write = rig_msr_write,
    .cr8_read = rig_cr8_read,
    .cr8_write = rig_cr8_write,
    .random = rig_random,
};

static struct rig *rig_create(void)
{
    struct rig *r = aligned_alloc(64, (sizeof *r + 63) & ~63ull);
    struct x86_cpuid_config config = {.brand = "test", .vcpu_count = 4, .tsc_hz = 1000000000};

    memset(r, 0, sizeof *r);
    memset(&config.features, 0xff, sizeof config.features);
    x86_cpuid_build(&r->cpuid, &config);
    r->ram = aligned_alloc(4096, RIG_RAM);
    memset(r->ram, 0, RIG_RAM);
    r->code_page = UINT64_MAX;
    assert_int_equal(x86_decoder_create(&r->decoder, &r->cpuid.features, NULL), 0);
    struct x86_cpu_config cpu = {
        .ops = &rig_ops, .context = r, .decoder = r->decoder, .cpuid = &r->cpuid, .is_bsp = true};
    x86_cpu_init(&r->cpu, &cpu);
    return r;
}

static void rig_destroy(struct rig *r)
{
    x86_decoder_destroy(r->decoder);
    free(r->ram);
    free(r);
}

static int rig_setup(void **state)
{
    *state = rig_create();
    return 0;
}

static int rig_teardown(void **state)
{
    rig_destroy(*state);
    return 0;
}

/* --- memory --- */

static inline void put64(struct rig *r, uint64_t at, uint64_t v)
{
    assert_true(at + 8 <= RIG_RAM);
    store_le64(r->ram + at, v);
}

static inline void put32(struct rig *r, uint64_t at, uint32_t v)
{
    store_le32(r->ram + at, v);
}

static inline void put16(struct rig *r, uint64_t at, uint16_t v)
{
    store_le16(r->ram + at, v);
}

static inline uint64_t get64(struct rig *r, uint64_t at)
{
    return load_le64(r->ram + at);
}

static inline uint32_t get32(struct rig *r, uint64_t at)
{
    return load_le32(r->ram + at);
}

static inline uint16_t get16(struct rig *r, uint64_t at)
{
    return load_le16(r->ram + at);
}

#define PUT_CODE(r, at, ...)                                                                       \
    memcpy((r)->ram + (at), (const uint8_t[]) {__VA_ARGS__},                                       \
           sizeof((const uint8_t[]) {__VA_ARGS__}))

/* --- running --- */

/* Runs code under an unwind point: `RIG_TRY(r, x86_load(…))` is -1, or the vector raised. */
#define RIG_TRY(r, ...)                                                                            \
    ({                                                                                             \
        jmp_buf rig_here;                                                                          \
        volatile int rig_vector = -1;                                                              \
        (r)->cpu.unwind = &rig_here;                                                               \
        if (setjmp(rig_here))                                                                      \
            rig_vector = (r)->cpu.fault.vector;                                                    \
        else {                                                                                     \
            __VA_ARGS__;                                                                           \
        }                                                                                          \
        (r)->cpu.unwind = NULL;                                                                    \
        rig_vector;                                                                                \
    })

/* One instruction; -1 or the vector that it raised. */
static inline int rig_step(struct rig *r)
{
    return x86_step(&r->cpu) == X86_OK ? -1 : r->cpu.fault.vector;
}

/* --- a flat world --- */

#define RIG_GDT   0x1000u
#define RIG_IDT   0x2000u
#define RIG_TSS   0x3000u
#define RIG_PML4  0x10000u /* identity, 2 MiB pages, all user and writable */
#define RIG_CODE  0x20000u
#define RIG_STACK 0x30000u /* top */

/* Selectors in the GDT that rig_gdt makes. */
enum {
    SEL_CODE0 = 0x08, /* 32-bit, DPL 0 */
    SEL_DATA0 = 0x10,
    SEL_CODE3 = 0x1b, /* DPL 3, with RPL */
    SEL_DATA3 = 0x23,
    SEL_CODE64 = 0x28,
    SEL_CODE64_3 = 0x33,
    SEL_TSS = 0x38, /* and 0x40 in long mode */
    SEL_FREE = 0x48,
};

static inline uint64_t descriptor(uint32_t base, uint32_t limit, uint16_t attr)
{
    return (limit & 0xffff) | (uint64_t)(base & 0xffffff) << 16 | (uint64_t)(attr & 0xff) << 40 |
           (uint64_t)(limit >> 16 & 0xf) << 48 | (uint64_t)(attr >> 12) << 52 |
           (uint64_t)(base >> 24) << 56;
}

static inline void put_descriptor(struct rig *r, uint16_t selector, uint64_t value)
{
    put64(r, RIG_GDT + (selector & ~7u), value);
}

static inline void rig_gdt(struct rig *r)
{
    put_descriptor(r, SEL_CODE0, descriptor(0, 0xfffff, 0xc09a));
    put_descriptor(r, SEL_DATA0, descriptor(0, 0xfffff, 0xc092));
    put_descriptor(r, SEL_CODE3, descriptor(0, 0xfffff, 0xc0fa));
    put_descriptor(r, SEL_DATA3, descriptor(0, 0xfffff, 0xc0f2));
    put_descriptor(r, SEL_CODE64, descriptor(0, 0xfffff, 0xa09a));
    put_descriptor(r, SEL_CODE64_3, descriptor(0, 0xfffff, 0xa0fa));
    put_descriptor(r, SEL_TSS, descriptor(RIG_TSS, 0x67, 0x0089));
    r->cpu.s.gdtr = (struct x86_table_register) {.base = RIG_GDT, .limit = 0xff};
    r->cpu.s.idtr = (struct x86_table_register) {.base = RIG_IDT, .limit = 0xfff};
    r->cpu.s.tr =
        (struct x86_segment) {.base = RIG_TSS, .limit = 0x67, .selector = SEL_TSS, .attr = 0x8b};
    put_descriptor(r, SEL_TSS, descriptor(RIG_TSS, 0x67, 0x008b));
}

static inline struct x86_segment flat(uint16_t selector, uint16_t attr)
{
    return (struct x86_segment) {.limit = UINT32_MAX, .selector = selector, .attr = attr};
}

static inline void rig_segments(struct rig *r, unsigned cpl, uint16_t code, uint16_t code_attr)
{
    uint16_t dpl = (uint16_t)(cpl << 5);
    for (unsigned i = 0; i < 6; i++)
        r->cpu.s.seg[i] = flat(cpl ? SEL_DATA3 : SEL_DATA0, (uint16_t)(0xc093 | dpl));
    r->cpu.s.seg[X86_CS] = flat(code, (uint16_t)(code_attr | dpl));
    r->cpu.s.rip = r->cpu.next_rip = RIG_CODE;
    r->cpu.s.gpr[X86_RSP] = RIG_STACK;
}

/* 32-bit protected mode, paging off. */
static inline void rig_protected(struct rig *r, unsigned cpl)
{
    rig_gdt(r);
    r->cpu.s.cr0 = X86_CR0_PE | X86_CR0_ET | X86_CR0_NE | X86_CR0_WP;
    rig_segments(r, cpl, cpl ? SEL_CODE3 : SEL_CODE0, 0xc09b);
    x86_cpu_update_mode(&r->cpu);
}

/* 64-bit mode, the first 4 MiB mapped to themselves. */
static inline void rig_long(struct rig *r, unsigned cpl)
{
    rig_gdt(r);
    put64(r, RIG_PML4, (RIG_PML4 + 0x1000) | 7);
    put64(r, RIG_PML4 + 0x1000, (RIG_PML4 + 0x2000) | 7);
    put64(r, RIG_PML4 + 0x2000, 0x000087);
    put64(r, RIG_PML4 + 0x2008, 0x200087);
    r->cpu.s.cr0 = X86_CR0_PE | X86_CR0_ET | X86_CR0_NE | X86_CR0_WP | X86_CR0_PG;
    r->cpu.s.cr4 = X86_CR4_PAE;
    r->cpu.s.efer = X86_EFER_LME | X86_EFER_LMA | X86_EFER_NXE | X86_EFER_SCE;
    r->cpu.s.cr3 = RIG_PML4;
    rig_segments(r, cpl, cpl ? SEL_CODE64_3 : SEL_CODE64, 0xa09b);
    x86_tlb_flush(&r->cpu, false);
    x86_cpu_update_mode(&r->cpu);
}

#endif
