/*
 * CPUID: models, the table of a machine, the answer to one vCPU. Pure. SDM vol. 2A "CPUID"; APM
 * vol. 3 appendix E; the hypervisor leaves as Linux's Documentation/virt/kvm/x86/cpuid.rst has
 * them.
 *
 * Vendor and family: AuthenticAMD, 0Fh. Kernels apply no Meltdown, SSB, MDS, Retbleed or SRSO
 * workaround to it, which an interpreter has no use for; the model number is below those with
 * erratum 400 (C1E) and above those whose REP MOVS is slow.
 */
#include "x86/cpuid.h"

#include <errno.h>

#include "x86/defs.h"

/* --- models --- */

struct feature_name {
    enum x86_feature feature;
    uint8_t level; /* the lowest model that has it: 2, 3 */
    const char *name;
};

/* x86-64 psABI levels, and what is below and beside them on every CPU of that age. */
static const struct feature_name promised[] = {
    {X86_FEATURE_FPU, 2, "fpu"},
    {X86_FEATURE_DE, 2, "de"},
    {X86_FEATURE_PSE, 2, "pse"},
    {X86_FEATURE_TSC, 2, "tsc"},
    {X86_FEATURE_MSR, 2, "msr"},
    {X86_FEATURE_PAE, 2, "pae"},
    {X86_FEATURE_MCE, 2, "mce"},
    {X86_FEATURE_CX8, 2, "cx8"},
    {X86_FEATURE_APIC, 2, "apic"},
    {X86_FEATURE_SEP, 2, "sep"},
    {X86_FEATURE_MTRR, 2, "mtrr"},
    {X86_FEATURE_PGE, 2, "pge"},
    {X86_FEATURE_MCA, 2, "mca"},
    {X86_FEATURE_CMOV, 2, "cmov"},
    {X86_FEATURE_PAT, 2, "pat"},
    {X86_FEATURE_PSE36, 2, "pse36"},
    {X86_FEATURE_CLFLUSH, 2, "clflush"},
    {X86_FEATURE_MMX, 2, "mmx"},
    {X86_FEATURE_FXSR, 2, "fxsr"},
    {X86_FEATURE_SSE, 2, "sse"},
    {X86_FEATURE_SSE2, 2, "sse2"},
    {X86_FEATURE_SYSCALL, 2, "syscall"},
    {X86_FEATURE_NX, 2, "nx"},
    {X86_FEATURE_RDTSCP, 2, "rdtscp"},
    {X86_FEATURE_LM, 2, "lm"},
    {X86_FEATURE_LAHF, 2, "lahf_lm"},
    {X86_FEATURE_CX16, 2, "cx16"},
    {X86_FEATURE_SSE3, 2, "sse3"},
    {X86_FEATURE_SSSE3, 2, "ssse3"},
    {X86_FEATURE_SSE41, 2, "sse4_1"},
    {X86_FEATURE_SSE42, 2, "sse4_2"},
    {X86_FEATURE_POPCNT, 2, "popcnt"},
    {X86_FEATURE_X2APIC, 2, "x2apic"},
    {X86_FEATURE_TSC_DEADLINE, 2, "tsc_deadline_timer"},
    {X86_FEATURE_HYPERVISOR, 2, "hypervisor"},
    {X86_FEATURE_TSC_ADJUST, 2, "tsc_adjust"},
    {X86_FEATURE_ERMS, 2, "erms"},
    {X86_FEATURE_INVARIANT_TSC, 2, "constant_tsc"},

    {X86_FEATURE_AVX, 3, "avx"},
    {X86_FEATURE_AVX2, 3, "avx2"},
    {X86_FEATURE_BMI1, 3, "bmi1"},
    {X86_FEATURE_BMI2, 3, "bmi2"},
    {X86_FEATURE_F16C, 3, "f16c"},
    {X86_FEATURE_FMA, 3, "fma"},
    {X86_FEATURE_LZCNT, 3, "lzcnt"},
    {X86_FEATURE_MOVBE, 3, "movbe"},
    {X86_FEATURE_XSAVE, 3, "xsave"},
    {X86_FEATURE_XSAVEOPT, 3, "xsaveopt"},
    {X86_FEATURE_AES, 3, "aes"},
    {X86_FEATURE_PCLMUL, 3, "pclmulqdq"},
    {X86_FEATURE_RDRAND, 3, "rdrand"},
    {X86_FEATURE_FSGSBASE, 3, "fsgsbase"},
    {X86_FEATURE_SMEP, 3, "smep"},
    {X86_FEATURE_PDPE1GB, 3, "pdpe1gb"},
    {X86_FEATURE_PREFETCHW, 3, "prefetchw"},
};

static int fill_model(const char *name, unsigned level, const struct x86_features *available,
                      struct x86_features *out, struct err *err)
{
    *out = (struct x86_features) {{0}};
    for (size_t i = 0; i < ARRAY_COUNT(promised); i++) {
        if (promised[i].level > level)
            continue;
        if (!x86_has(available, promised[i].feature))
            return err_set(err, ENOTSUP,
                           "--cpu %s: needs the CPU feature %s, which is missing here", name,
                           promised[i].name);
        x86_feature_set(out, promised[i].feature, true);
    }
    return 0;
}

int x86_cpu_model(const char *name, const struct x86_features *available, struct x86_features *out,
                  struct err *err)
{
    if (!strcmp(name, "v2"))
        return fill_model(name, 2, available, out, err);
    if (!strcmp(name, "v3"))
        return fill_model(name, 3, available, out, err);
    if (!strcmp(name, "host")) {
        *out = *available;
        return 0;
    }
    return err_set(err, EINVAL, "--cpu %s: unknown model, choose v2, v3 or host", name);
}

/* --- the table --- */

#define PHYSICAL_BITS 46u
#define LINEAR_BITS   48u
#define MAX_BASIC     0xdu
#define MAX_EXTENDED  0x80000021u

/* Bits of leaf 1 EDX that leaf 80000001 repeats on AMD. */
#define AMD_REPEATED 0x0183f3ffu
#define CMP_LEGACY   BIT(1)
#define ARAT         BIT(2)

/* KVM_FEATURE_CLOCKSOURCE, CLOCKSOURCE2, CLOCKSOURCE_STABLE_BIT */
#define KVM_FEATURES (BIT(0) | BIT(3) | BIT(24))

static struct x86_cpuid_entry *add(struct x86_cpuid_table *t, uint32_t leaf)
{
    struct x86_cpuid_entry *e = &t->entry[t->count++];
    e->leaf = leaf;
    return e;
}

static struct x86_cpuid_entry *add_subleaf(struct x86_cpuid_table *t, uint32_t leaf,
                                           uint32_t subleaf)
{
    struct x86_cpuid_entry *e = add(t, leaf);
    e->has_subleaf = true;
    e->subleaf = subleaf;
    return e;
}

/* Bits of an APIC id that count the cores. */
static unsigned core_bits(unsigned vcpu_count)
{
    unsigned bits = 0;
    while (BIT(bits) < vcpu_count)
        bits++;
    return bits;
}

static void set_vendor(struct x86_cpuid_entry *e, const char vendor[12])
{
    e->ebx = load_le32(vendor);
    e->edx = load_le32(vendor + 4);
    e->ecx = load_le32(vendor + 8);
}

static void build_basic(struct x86_cpuid_table *t, const struct x86_cpuid_config *config)
{
    const uint32_t *word = config->features.word;
    unsigned count = config->vcpu_count;
    struct x86_cpuid_entry *e = add(t, 0);

    e->eax = MAX_BASIC;
    set_vendor(e, "AuthenticAMD");

    e = add(t, 1);
    e->eax = X86_CPU_SIGNATURE;
    e->ebx = 8u << 8 | (count & 0xff) << 16; /* CLFLUSH line, logical processors */
    e->ecx = word[X86_WORD_1_ECX];
    e->edx = word[X86_WORD_1_EDX];
    if (count > 1)
        e->edx |= BIT(X86_FEATURE_HTT % 32);

    add(t, 6)->eax = ARAT;

    e = add_subleaf(t, 7, 0);
    e->ebx = word[X86_WORD_7_EBX];
    e->ecx = word[X86_WORD_7_ECX];
    e->edx = word[X86_WORD_7_EDX];

    e = add_subleaf(t, 0xb, 0); /* threads: one */
    e->ebx = 1;
    e->ecx = 1u << 8;
    e = add_subleaf(t, 0xb, 1); /* cores */
    e->eax = core_bits(count);
    e->ebx = count;
    e->ecx = 2u << 8 | 1;
}

static uint64_t xsave_components(const struct x86_features *features)
{
    uint64_t components = X86_XCR0_X87 | X86_XCR0_SSE;
    return x86_has(features, X86_FEATURE_AVX) ? components | X86_XCR0_AVX : components;
}

/* SDM vol. 1 section 13.4: 512 legacy bytes, 64 of header, then AVX's 256. */
uint32_t x86_xsave_area_size(uint64_t components, bool compacted)
{
    return components & X86_XCR0_AVX ? 576 + 256 : 576;
}

static void build_xsave(struct x86_cpuid_table *t, const struct x86_cpuid_config *config)
{
    uint64_t components = xsave_components(&config->features);
    struct x86_cpuid_entry *e;

    if (!x86_has(&config->features, X86_FEATURE_XSAVE))
        return;
    e = add_subleaf(t, 0xd, 0);
    e->eax = (uint32_t)components;
    e->ecx = x86_xsave_area_size(components, false);
    add_subleaf(t, 0xd, 1)->eax = config->features.word[X86_WORD_D_1_EAX];
    if (components & X86_XCR0_AVX) {
        e = add_subleaf(t, 0xd, 2);
        e->eax = 256;
        e->ebx = 576;
    }
}

static void build_hypervisor(struct x86_cpuid_table *t, const struct x86_cpuid_config *config)
{
    struct x86_cpuid_entry *e = add(t, 0x40000000);
    static const char signature[12] = "KVMKVMKVM";

    e->eax = 0x40000010;
    e->ebx = load_le32(signature);
    e->ecx = load_le32(signature + 4);
    e->edx = load_le32(signature + 8);
    add(t, 0x40000001)->eax = KVM_FEATURES;
    add(t, 0x40000010)->eax = (uint32_t)(config->tsc_hz / 1000);
}

static void build_brand(struct x86_cpuid_table *t, const char *brand)
{
    char text[48] = {0};

    strncpy(text, brand, sizeof text - 1);
    for (unsigned i = 0; i < 3; i++) {
        struct x86_cpuid_entry *e = add(t, 0x80000002 + i);
        e->eax = load_le32(text + i * 16);
        e->ebx = load_le32(text + i * 16 + 4);
        e->ecx = load_le32(text + i * 16 + 8);
        e->edx = load_le32(text + i * 16 + 12);
    }
}

static void build_extended(struct x86_cpuid_table *t, const struct x86_cpuid_config *config)
{
    const uint32_t *word = config->features.word;
    unsigned count = config->vcpu_count;
    struct x86_cpuid_entry *e = add(t, 0x80000000);

    e->eax = MAX_EXTENDED;
    set_vendor(e, "AuthenticAMD");

    e = add(t, 0x80000001);
    e->eax = X86_CPU_SIGNATURE;
    e->ecx = word[X86_WORD_80000001_ECX];
    e->edx = word[X86_WORD_80000001_EDX] | (word[X86_WORD_1_EDX] & AMD_REPEATED);
    if (count > 1)
        e->ecx |= CMP_LEGACY;

    build_brand(t, config->brand);

    e = add(t, 0x80000005); /* L1: 64 KiB each, 2-way, 64-byte lines; TLBs */
    e->eax = e->ebx = 0xff20ff20;
    e->ecx = e->edx = 0x40020140;
    e = add(t, 0x80000006); /* L2: 512 KiB, 16-way */
    e->ebx = 0x42004200;
    e->ecx = 0x02008140;
    add(t, 0x80000007)->edx = word[X86_WORD_80000007_EDX];
    e = add(t, 0x80000008);
    e->eax = t->physical_address_bits | LINEAR_BITS << 8;
    e->ebx = word[X86_WORD_80000008_EBX];
    e->ecx = (count - 1) | core_bits(count) << 12;
    add(t, 0x80000021)->eax = word[X86_WORD_80000021_EAX];
}

void x86_cpuid_build(struct x86_cpuid_table *out, const struct x86_cpuid_config *config)
{
    *out = (struct x86_cpuid_table) {.features = config->features,
                                     .max_basic = MAX_BASIC,
                                     .max_extended = MAX_EXTENDED,
                                     .physical_address_bits = PHYSICAL_BITS};
    build_basic(out, config);
    build_xsave(out, config);
    build_hypervisor(out, config);
    build_extended(out, config);
}

/* --- the answer --- */

static const struct x86_cpuid_entry *lookup(const struct x86_cpuid_table *table, uint32_t leaf,
                                            uint32_t subleaf)
{
    for (size_t i = 0; i < table->count; i++) {
        const struct x86_cpuid_entry *e = &table->entry[i];
        if (e->leaf == leaf && (!e->has_subleaf || e->subleaf == subleaf))
            return e;
    }
    return NULL;
}

static void patch_bit(uint32_t *word, enum x86_feature feature, bool on)
{
    uint32_t bit = 1u << (feature % 32);
    *word = on ? *word | bit : *word & ~bit;
}

void x86_cpuid_query(const struct x86_cpuid_table *table, const struct x86_cpuid_context *context,
                     uint32_t leaf, uint32_t subleaf, uint32_t out[4])
{
    const struct x86_cpuid_entry *e = lookup(table, leaf, subleaf);
    bool apic = context->apic_base & X86_APIC_BASE_ENABLE;

    out[0] = e ? e->eax : 0;
    out[1] = e ? e->ebx : 0;
    out[2] = e ? e->ecx : 0;
    out[3] = e ? e->edx : 0;
    switch (leaf) {
    case 1:
        out[1] |= context->apic_id << 24;
        patch_bit(&out[2], (enum x86_feature)27, context->cr4 & X86_CR4_OSXSAVE);
        if (!apic)
            patch_bit(&out[3], X86_FEATURE_APIC, false);
        break;
    case 0xb:
        out[2] |= e ? 0 : subleaf & 0xff;
        out[3] = context->apic_id;
        break;
    case 0xd:
        if (e && subleaf == 0)
            out[1] = x86_xsave_area_size(context->xcr0, false);
        if (e && subleaf == 1)
            out[1] = x86_xsave_area_size(context->xcr0 | context->xss, true);
        break;
    case 0x80000001:
        if (!apic)
            patch_bit(&out[3], X86_FEATURE_APIC, false);
        break;
    }
}
