/*
 * A CPU at CPL 3 in 64-bit mode, with paging, stubs and a translator: runs a few instructions by
 * their handlers and as one unit, from the same state, and compares everything.
 *
 * Data lies at RIG_DATA: two writable pages, which are not neighbours in RAM, a read-only one, and
 * one that is not present.
 */
#ifndef PARAT_TESTS_TRANSLATE_RIG_H
#define PARAT_TESTS_TRANSLATE_RIG_H

#include "test.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "x86/mem.h"
#include "x86/stub.h"
#include "x86/translate_int.h"

#define RIG_RAM_SIZE 0x40000u
#define RIG_TABLES   0x1000u
#define RIG_CODE     0x10000u
#define RIG_DATA     0x20000u
#define RIG_READONLY (RIG_DATA + 0x2000u)
#define RIG_ABSENT   (RIG_DATA + 0x3000u)
#define RIG_CODE_MAX 200u
#define RIG_CODE_MEM (1u << 20)
#define RIG_FS_BASE  0x1230u

struct translate_rig {
    struct x86_cpu *cpu;
    uint8_t *cpu_memory; /* with room below it, and the attention word behind */
    struct x86_cpuid_table cpuid;
    struct x86_decoder *decoder;
    struct x86_stubs *stubs;
    struct x86_stub_memory stub_memory, code_memory;
    struct x86_translator *translator;
    struct x86_unit *unit;
    struct x86_insn seen[X86_UNIT_INSNS_MAX]; /* the unit's own, while handlers are counted */
    unsigned handler_calls;
    bool cold; /* start with an empty TLB */
    /* What reads of a device give; NULL: all ones. */
    uint64_t (*device_read)(struct translate_rig *rig);
    bool moved; /* the first data page's RAM is that at RIG_DATA + 0x4000 now */
    _Alignas(PAGE_SIZE) uint8_t ram[RIG_RAM_SIZE];

    struct x86_state before, after[2];
    struct x86_event fault[2]; /* kind NONE: none */
    uint8_t ram_before[RIG_RAM_SIZE], ram_after[RIG_RAM_SIZE];
};

static inline uint8_t *rig_page(void *context, gpa_t page, bool *writable)
{
    struct translate_rig *rig = context;

    *writable = true;
    if (rig->moved && page.v == RIG_DATA)
        return rig->ram + RIG_DATA + 0x4000;
    return page.v < RIG_RAM_SIZE ? rig->ram + page.v : NULL;
}

static inline uint64_t rig_mmio_read(void *context, gpa_t address, unsigned size)
{
    struct translate_rig *rig = context;

    (void)address, (void)size;
    return rig->device_read ? rig->device_read(rig) : ~0ull;
}

static inline void rig_mmio_write(void *context, gpa_t address, unsigned size, uint64_t value)
{
    (void)context, (void)address, (void)size, (void)value;
}

static inline void rig_exclusive(void *context)
{
    (void)context;
}

static const struct x86_ops rig_ops = {.page = rig_page,
                                       .mmio_read = rig_mmio_read,
                                       .mmio_write = rig_mmio_write,
                                       .exclusive_begin = rig_exclusive,
                                       .exclusive_end = rig_exclusive};

static inline void rig_features(struct x86_features *features)
{
    memset(features, 0xff, sizeof *features);
    x86_feature_set(features, X86_FEATURE_AVX, __builtin_cpu_supports("avx"));
    x86_feature_set(features, X86_FEATURE_AVX2, __builtin_cpu_supports("avx2"));
    x86_feature_set(features, X86_FEATURE_SSE42, __builtin_cpu_supports("sse4.2"));
}

static inline struct x86_stub_memory rig_map(size_t size)
{
    uint8_t *at =
        mmap(NULL, size, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    assert_ptr_not_equal(at, MAP_FAILED);
    return (struct x86_stub_memory) {at, at, size};
}

static inline void rig_map_page(struct translate_rig *rig, uint64_t la, uint64_t page,
                                uint64_t bits)
{
    store_le64(rig->ram + RIG_TABLES + 0x3000 + (la >> 12) * 8, page | bits);
}

static inline void rig_paging(struct translate_rig *rig)
{
    /* Accessed before: a group's probe may set that bit ahead of its accesses, as processors may.
     */
    for (unsigned level = 0; level < 3; level++)
        store_le64(rig->ram + RIG_TABLES + level * 0x1000,
                   (RIG_TABLES + (level + 1) * 0x1000) | 0x27);
    rig_map_page(rig, RIG_CODE, RIG_CODE, 0x67);
    rig_map_page(rig, RIG_DATA, RIG_DATA, 0x67);
    rig_map_page(rig, RIG_DATA + 0x1000, RIG_DATA + 0x5000, 0x67);
    rig_map_page(rig, RIG_READONLY, RIG_DATA + 0x3000, 0x65);
    rig->before.cr3 = RIG_TABLES;
}

/* User mode with everything enabled. */
static inline void rig_state(struct translate_rig *rig)
{
    struct x86_state *s = &rig->before;

    *s = rig->cpu->s;
    s->cr0 = X86_CR0_PE | X86_CR0_PG | X86_CR0_WP | X86_CR0_NE | X86_CR0_MP | X86_CR0_ET;
    s->cr4 = X86_CR4_PAE | X86_CR4_OSFXSR | X86_CR4_OSXMMEXCPT | X86_CR4_OSXSAVE;
    s->xcr0 = X86_XCR0_X87 | X86_XCR0_SSE | X86_XCR0_AVX;
    s->efer = X86_EFER_LME | X86_EFER_LMA;
    for (unsigned i = 0; i < 6; i++)
        s->seg[i] = (struct x86_segment) {
            .base = i == X86_FS ? RIG_FS_BASE : 0,
            .limit = UINT32_MAX,
            .attr = (uint16_t)(X86_SEG_P | X86_SEG_S | X86_SEG_WRITABLE | 3u << 5 |
                               (i == X86_CS ? X86_SEG_CODE | X86_SEG_L : X86_SEG_DB) | X86_SEG_G)};
    s->rip = RIG_CODE;
    s->rflags = 2;
    rig_paging(rig);
}

static inline void rig_set_cpl(struct translate_rig *rig, unsigned cpl)
{
    for (unsigned i = 0; i < 6; i++)
        rig->before.seg[i].attr = (uint16_t)((rig->before.seg[i].attr & ~X86_SEG_DPL) | cpl << 5);
}

static inline void rig_make_cpu(struct translate_rig *rig)
{
    size_t size = X86_TRANSLATE_HEADROOM + sizeof(struct x86_cpu) + sizeof(uint64_t);
    struct x86_cpu_config config = {.ops = &rig_ops,
                                    .context = rig,
                                    .is_bsp = true,
                                    .decoder = rig->decoder,
                                    .cpuid = &rig->cpuid,
                                    .stubs = rig->stubs};

    rig->cpu_memory = aligned_alloc(64, (size + 63) / 64 * 64);
    assert_non_null(rig->cpu_memory);
    memset(rig->cpu_memory, 0, size);
    rig->cpu = (struct x86_cpu *)(void *)(rig->cpu_memory + X86_TRANSLATE_HEADROOM);
    x86_cpu_init(rig->cpu, &config);
}

static inline int rig_setup(void **state)
{
    struct translate_rig *rig = aligned_alloc(PAGE_SIZE, sizeof *rig);

    assert_non_null(rig);
    memset(rig, 0, sizeof *rig);
    rig->stub_memory = rig_map(X86_STUBS_SIZE);
    rig->code_memory = rig_map(RIG_CODE_MEM);
    struct x86_cpuid_config cpuid = {.brand = "test", .vcpu_count = 1, .tsc_hz = 1000000000};
    rig_features(&cpuid.features);
    x86_cpuid_build(&rig->cpuid, &cpuid);
    assert_int_equal(x86_stubs_create(&rig->stubs, &rig->stub_memory), 0);
    assert_int_equal(x86_decoder_create(&rig->decoder, &rig->cpuid.features, rig->stubs), 0);
    rig_make_cpu(rig);
    rig_state(rig);
    struct x86_translator_config config = {.memory = rig->code_memory,
                                           .decoder = rig->decoder,
                                           .features = &rig->cpuid.features,
                                           .attention = sizeof(struct x86_cpu),
                                           .alone = true};
    assert_int_equal(x86_translator_create(&rig->translator, &config), 0);
    rig->unit = calloc(1, sizeof *rig->unit + X86_UNIT_INSNS_MAX * sizeof(struct x86_insn));
    assert_non_null(rig->unit);
    *state = rig;
    return 0;
}

static inline int rig_teardown(void **state)
{
    struct translate_rig *rig = *state;

    x86_translator_destroy(rig->translator);
    x86_decoder_destroy(rig->decoder);
    x86_stubs_destroy(rig->stubs);
    munmap(rig->stub_memory.write, rig->stub_memory.size);
    munmap(rig->code_memory.write, rig->code_memory.size);
    free(rig->cpu_memory);
    free(rig->unit);
    free(rig);
    return 0;
}

/* --- running --- */

/* Both runs begin with the same TLB: empty, or with the data's pages. */
static inline void rig_begin(struct translate_rig *rig, unsigned which)
{
    x86_cpu_set_state(rig->cpu, &rig->before);
    rig->moved = false;
    x86_tlb_flush(rig->cpu, false); /* of what lay elsewhere */
    rig->cpu->end_block = false;
    memcpy(rig->ram, rig->ram_before, sizeof rig->ram);
    if (!rig->cold) {
        x86_probe_write(rig->cpu, RIG_DATA, 1);
        x86_probe_write(rig->cpu, RIG_DATA + 0x1000, 1);
        (void)x86_load(rig->cpu, RIG_READONLY, 1);
    }
    rig->fault[which] = (struct x86_event) {0};
}

static inline void rig_end(struct translate_rig *rig, unsigned which)
{
    x86_cpu_get_state(rig->cpu, &rig->after[which]);
}

/* From RIP to the end of the code, as the engine does between units. */
static inline void rig_interpret(struct translate_rig *rig, const uint8_t *code, unsigned length)
{
    struct x86_cpu *cpu = rig->cpu;

    while (cpu->s.rip - RIG_CODE < length) {
        struct x86_insn insn;
        uint64_t at = cpu->s.rip - RIG_CODE;
        assert_int_equal(x86_decode(rig->decoder, &cpu->decode_mode, code + at, length - at, &insn),
                         X86_DECODE_OK);
        cpu->s.interrupt_shadow = cpu->s.shadow_is_mov_ss = false;
        cpu->next_rip = cpu->s.rip + insn.length;
        insn.run(cpu, &insn);
        cpu->s.rip = cpu->next_rip;
    }
}

static inline void rig_by_handlers(struct translate_rig *rig, const uint8_t *code, unsigned length)
{
    jmp_buf unwind;

    rig_begin(rig, 0);
    rig->cpu->unwind = &unwind;
    if (setjmp(unwind))
        rig->fault[0] = rig->cpu->fault;
    else
        rig_interpret(rig, code, length);
    rig_end(rig, 0);
    memcpy(rig->ram_after, rig->ram, sizeof rig->ram);
}

/* In place of a unit's handlers. */
static inline void rig_count_call(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    struct translate_rig *rig = cpu->context;
    const struct x86_insn *seen = &rig->seen[insn - rig->unit->insn];

    rig->handler_calls++;
    seen->run(cpu, seen);
}

/* Makes the unit; the instructions are in translator->source[] then. Returns how many bytes of the
 * code it is of. */
static inline unsigned rig_translate_some(struct translate_rig *rig, const uint8_t *code,
                                          unsigned length)
{
    struct x86_translator *tr = rig->translator;

    x86_translator_reset(tr, rig->cpu);
    x86_cpu_set_state(rig->cpu, &rig->before);
    uint8_t mode = x86_unit_mode(rig->cpu);
    assert_true(rig->before.seg[X86_SS].attr & X86_SEG_DPL ? x86_mode_vector(mode)
                                                           : mode != X86_UNIT_NONE);
    struct x86_unit_code from = {.mode = mode, .bytes = code, .available = length};
    unsigned bytes = x86_translate_scan(tr, &from);
    if (!bytes)
        return 0;
    assert_true(x86_unit_make(tr, rig->unit));
    for (unsigned i = 0; i < tr->kept; i++) {
        rig->seen[i] = rig->unit->insn[i];
        rig->unit->insn[i].run = rig_count_call;
    }
    return bytes;
}

/* False: not of all of them. */
static inline bool rig_translate(struct translate_rig *rig, const uint8_t *code, unsigned length)
{
    return rig_translate_some(rig, code, length) == length;
}

/* A unit ends early where the CPU leaves its mode: the interpreter goes on. */
static inline void rig_as_unit(struct translate_rig *rig, const uint8_t *code, unsigned length)
{
    struct x86_unit_exit out;
    jmp_buf unwind;

    rig_begin(rig, 1);
    rig->handler_calls = 0;
    rig->cpu->unwind = &unwind;
    x86_unit_choose_key(rig->translator, rig->cpu, rig->unit->mode);
    if (setjmp(unwind)) {
        rig->fault[1] = rig->cpu->fault;
    } else {
        x86_unit_run(rig->translator, rig->cpu, rig->unit, &out);
        rig_interpret(rig, code, length);
    }
    rig_end(rig, 1);
}

/* NULL, or what differs between the two runs. */
static inline const char *rig_difference(const struct translate_rig *rig)
{
    const struct x86_event *a = &rig->fault[0], *b = &rig->fault[1];
    const char *what;

    if (a->kind != b->kind || a->vector != b->vector || a->error != b->error ||
        a->payload != b->payload)
        return "exception";
    if (!x86_state_equal(&rig->after[0], &rig->after[1], &what))
        return what;
    return memcmp(rig->ram, rig->ram_after, sizeof rig->ram) == 0 ? NULL : "memory";
}

#endif
