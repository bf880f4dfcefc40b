/*
 * CPUID: features by name, the CPU models that a VM can be given, and the table that answers a
 * guest's CPUID. SDM vol. 2A "CPUID"; APM vol. 3 appendix E. Pure: no OS, no host CPUID (the caller
 * passes what the host or engine gives).
 */
#ifndef PARAT_X86_CPUID_H
#define PARAT_X86_CPUID_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/bits.h"
#include "base/err.h"

/* The feature words, each one register of one leaf. */
enum x86_feature_word {
    X86_WORD_1_EDX,
    X86_WORD_1_ECX,
    X86_WORD_7_EBX,
    X86_WORD_7_ECX,
    X86_WORD_7_EDX,
    X86_WORD_80000001_EDX,
    X86_WORD_80000001_ECX,
    X86_WORD_D_1_EAX,
    X86_WORD_80000007_EDX,
    X86_WORD_80000008_EBX,
    X86_WORD_80000021_EAX,
    X86_WORD_COUNT
};

#define X86_FEATURE(word, bit) ((word)*32 + (bit))

enum x86_feature {
    X86_FEATURE_FPU = X86_FEATURE(X86_WORD_1_EDX, 0),
    X86_FEATURE_DE = X86_FEATURE(X86_WORD_1_EDX, 2),
    X86_FEATURE_PSE = X86_FEATURE(X86_WORD_1_EDX, 3),
    X86_FEATURE_TSC = X86_FEATURE(X86_WORD_1_EDX, 4),
    X86_FEATURE_MSR = X86_FEATURE(X86_WORD_1_EDX, 5),
    X86_FEATURE_PAE = X86_FEATURE(X86_WORD_1_EDX, 6),
    X86_FEATURE_MCE = X86_FEATURE(X86_WORD_1_EDX, 7),
    X86_FEATURE_CX8 = X86_FEATURE(X86_WORD_1_EDX, 8),
    X86_FEATURE_APIC = X86_FEATURE(X86_WORD_1_EDX, 9),
    X86_FEATURE_SEP = X86_FEATURE(X86_WORD_1_EDX, 11),
    X86_FEATURE_MTRR = X86_FEATURE(X86_WORD_1_EDX, 12),
    X86_FEATURE_PGE = X86_FEATURE(X86_WORD_1_EDX, 13),
    X86_FEATURE_MCA = X86_FEATURE(X86_WORD_1_EDX, 14),
    X86_FEATURE_CMOV = X86_FEATURE(X86_WORD_1_EDX, 15),
    X86_FEATURE_PAT = X86_FEATURE(X86_WORD_1_EDX, 16),
    X86_FEATURE_PSE36 = X86_FEATURE(X86_WORD_1_EDX, 17),
    X86_FEATURE_CLFLUSH = X86_FEATURE(X86_WORD_1_EDX, 19),
    X86_FEATURE_MMX = X86_FEATURE(X86_WORD_1_EDX, 23),
    X86_FEATURE_FXSR = X86_FEATURE(X86_WORD_1_EDX, 24),
    X86_FEATURE_SSE = X86_FEATURE(X86_WORD_1_EDX, 25),
    X86_FEATURE_SSE2 = X86_FEATURE(X86_WORD_1_EDX, 26),
    X86_FEATURE_HTT = X86_FEATURE(X86_WORD_1_EDX, 28),

    X86_FEATURE_SSE3 = X86_FEATURE(X86_WORD_1_ECX, 0),
    X86_FEATURE_PCLMUL = X86_FEATURE(X86_WORD_1_ECX, 1),
    X86_FEATURE_MONITOR = X86_FEATURE(X86_WORD_1_ECX, 3),
    X86_FEATURE_SSSE3 = X86_FEATURE(X86_WORD_1_ECX, 9),
    X86_FEATURE_FMA = X86_FEATURE(X86_WORD_1_ECX, 12),
    X86_FEATURE_CX16 = X86_FEATURE(X86_WORD_1_ECX, 13),
    X86_FEATURE_PCID = X86_FEATURE(X86_WORD_1_ECX, 17),
    X86_FEATURE_SSE41 = X86_FEATURE(X86_WORD_1_ECX, 19),
    X86_FEATURE_SSE42 = X86_FEATURE(X86_WORD_1_ECX, 20),
    X86_FEATURE_X2APIC = X86_FEATURE(X86_WORD_1_ECX, 21),
    X86_FEATURE_MOVBE = X86_FEATURE(X86_WORD_1_ECX, 22),
    X86_FEATURE_POPCNT = X86_FEATURE(X86_WORD_1_ECX, 23),
    X86_FEATURE_TSC_DEADLINE = X86_FEATURE(X86_WORD_1_ECX, 24),
    X86_FEATURE_AES = X86_FEATURE(X86_WORD_1_ECX, 25),
    X86_FEATURE_XSAVE = X86_FEATURE(X86_WORD_1_ECX, 26),
    X86_FEATURE_AVX = X86_FEATURE(X86_WORD_1_ECX, 28),
    X86_FEATURE_F16C = X86_FEATURE(X86_WORD_1_ECX, 29),
    X86_FEATURE_RDRAND = X86_FEATURE(X86_WORD_1_ECX, 30),
    X86_FEATURE_HYPERVISOR = X86_FEATURE(X86_WORD_1_ECX, 31),

    X86_FEATURE_FSGSBASE = X86_FEATURE(X86_WORD_7_EBX, 0),
    X86_FEATURE_TSC_ADJUST = X86_FEATURE(X86_WORD_7_EBX, 1),
    X86_FEATURE_BMI1 = X86_FEATURE(X86_WORD_7_EBX, 3),
    X86_FEATURE_AVX2 = X86_FEATURE(X86_WORD_7_EBX, 5),
    X86_FEATURE_SMEP = X86_FEATURE(X86_WORD_7_EBX, 7),
    X86_FEATURE_BMI2 = X86_FEATURE(X86_WORD_7_EBX, 8),
    X86_FEATURE_ERMS = X86_FEATURE(X86_WORD_7_EBX, 9),
    X86_FEATURE_INVPCID = X86_FEATURE(X86_WORD_7_EBX, 10),
    X86_FEATURE_RDSEED = X86_FEATURE(X86_WORD_7_EBX, 18),
    X86_FEATURE_ADX = X86_FEATURE(X86_WORD_7_EBX, 19),
    X86_FEATURE_SMAP = X86_FEATURE(X86_WORD_7_EBX, 20),
    X86_FEATURE_CLFLUSHOPT = X86_FEATURE(X86_WORD_7_EBX, 23),
    X86_FEATURE_CLWB = X86_FEATURE(X86_WORD_7_EBX, 24),
    X86_FEATURE_SHA = X86_FEATURE(X86_WORD_7_EBX, 29),

    X86_FEATURE_UMIP = X86_FEATURE(X86_WORD_7_ECX, 2),
    X86_FEATURE_VAES = X86_FEATURE(X86_WORD_7_ECX, 9),
    X86_FEATURE_VPCLMUL = X86_FEATURE(X86_WORD_7_ECX, 10),
    X86_FEATURE_RDPID = X86_FEATURE(X86_WORD_7_ECX, 22),
    X86_FEATURE_FSRM = X86_FEATURE(X86_WORD_7_EDX, 4),

    X86_FEATURE_SYSCALL = X86_FEATURE(X86_WORD_80000001_EDX, 11),
    X86_FEATURE_NX = X86_FEATURE(X86_WORD_80000001_EDX, 20),
    X86_FEATURE_PDPE1GB = X86_FEATURE(X86_WORD_80000001_EDX, 26),
    X86_FEATURE_RDTSCP = X86_FEATURE(X86_WORD_80000001_EDX, 27),
    X86_FEATURE_LM = X86_FEATURE(X86_WORD_80000001_EDX, 29),
    X86_FEATURE_LAHF = X86_FEATURE(X86_WORD_80000001_ECX, 0),
    X86_FEATURE_LZCNT = X86_FEATURE(X86_WORD_80000001_ECX, 5),
    X86_FEATURE_PREFETCHW = X86_FEATURE(X86_WORD_80000001_ECX, 8),

    X86_FEATURE_XSAVEOPT = X86_FEATURE(X86_WORD_D_1_EAX, 0),
    X86_FEATURE_XSAVEC = X86_FEATURE(X86_WORD_D_1_EAX, 1),
    X86_FEATURE_XGETBV1 = X86_FEATURE(X86_WORD_D_1_EAX, 2),
    X86_FEATURE_XSAVES = X86_FEATURE(X86_WORD_D_1_EAX, 3),

    X86_FEATURE_INVARIANT_TSC = X86_FEATURE(X86_WORD_80000007_EDX, 8),

    X86_FEATURE_LFENCE_SERIALIZING = X86_FEATURE(X86_WORD_80000021_EAX, 2),
    X86_FEATURE_NULL_SELECTOR_CLEARS_BASE = X86_FEATURE(X86_WORD_80000021_EAX, 6),
};

struct x86_features {
    uint32_t word[X86_WORD_COUNT];
};

static inline bool x86_has(const struct x86_features *f, enum x86_feature feature)
{
    return f->word[feature / 32] >> (feature % 32) & 1;
}

static inline void x86_feature_set(struct x86_features *f, enum x86_feature feature, bool on)
{
    if (on)
        f->word[feature / 32] |= 1u << (feature % 32);
    else
        f->word[feature / 32] &= ~(1u << (feature % 32));
}

/*
 * The features of a CPU model: "v2", "v3" (x86-64 psABI levels and what every kernel wants) or
 * "host" (all of `available`). -EINVAL for an unknown name, -ENOTSUP with a sentence that names the
 * first missing feature when `available` lacks one the model promises.
 */
int x86_cpu_model(const char *name, const struct x86_features *available, struct x86_features *out,
                  struct err *err) MUST_USE;

struct x86_cpuid_entry {
    uint32_t leaf, subleaf;
    bool has_subleaf; /* answers this subleaf only */
    uint32_t eax, ebx, ecx, edx;
};

#define X86_CPUID_ENTRIES_MAX 64

struct x86_cpuid_table {
    struct x86_features features;
    uint32_t max_basic, max_extended;
    uint32_t physical_address_bits;
    size_t count;
    struct x86_cpuid_entry entry[X86_CPUID_ENTRIES_MAX];
};

struct x86_cpuid_config {
    struct x86_features features;
    const char *brand; /* up to 47 characters */
    unsigned vcpu_count;
    uint64_t tsc_hz; /* 0: not told */
};

/* The machine's table: AuthenticAMD, the hypervisor leaves with kvmclock (stable bit) and no other
 * paravirtual feature. The same on every engine for the same config. */
void x86_cpuid_build(struct x86_cpuid_table *out, const struct x86_cpuid_config *config);

/* What depends on the asking vCPU. */
struct x86_cpuid_context {
    uint32_t apic_id;
    uint64_t cr4, xcr0, xss, apic_base;
};

/* What CPUID leaf 1 EAX says, and EDX holds after reset: family 0Fh. */
#define X86_CPU_SIGNATURE 0x00020f10u

/* Bytes of an XSAVE area for these components, standard or compacted form. */
uint32_t x86_xsave_area_size(uint64_t components, bool compacted);

void x86_cpuid_query(const struct x86_cpuid_table *table, const struct x86_cpuid_context *context,
                     uint32_t leaf, uint32_t subleaf, uint32_t out[4]);

#endif
