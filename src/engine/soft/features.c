/*
 * The CPUID features that engine soft can give: what x86/ implements, less the vector instructions
 * that this host's CPU lacks (they run on the host's unit). SDM vol. 2A "CPUID".
 */
#include <cpuid.h>

#include "engine/soft/soft_int.h"

/*
 * Implemented in software alone. MONITOR is not offered: a store to the monitored line would have
 * to end MWAIT, and kernels that see it wake idle CPUs by such stores instead of interrupts.
 */
static const enum x86_feature always[] = {
    X86_FEATURE_FPU,           X86_FEATURE_DE,         X86_FEATURE_PSE,
    X86_FEATURE_TSC,           X86_FEATURE_MSR,        X86_FEATURE_PAE,
    X86_FEATURE_CX8,           X86_FEATURE_APIC,       X86_FEATURE_SEP,
    X86_FEATURE_MTRR,          X86_FEATURE_PGE,        X86_FEATURE_MCE,
    X86_FEATURE_MCA,           X86_FEATURE_CMOV,       X86_FEATURE_PAT,
    X86_FEATURE_PSE36,         X86_FEATURE_CLFLUSH,    X86_FEATURE_MMX,
    X86_FEATURE_FXSR,          X86_FEATURE_SSE,        X86_FEATURE_SSE2,

    X86_FEATURE_CX16,          X86_FEATURE_PCID,       X86_FEATURE_X2APIC,
    X86_FEATURE_MOVBE,         X86_FEATURE_POPCNT,     X86_FEATURE_TSC_DEADLINE,
    X86_FEATURE_XSAVE,         X86_FEATURE_RDRAND,     X86_FEATURE_HYPERVISOR,
    X86_FEATURE_FSGSBASE,      X86_FEATURE_TSC_ADJUST, X86_FEATURE_BMI1,
    X86_FEATURE_SMEP,          X86_FEATURE_BMI2,       X86_FEATURE_ERMS,
    X86_FEATURE_INVPCID,       X86_FEATURE_RDSEED,     X86_FEATURE_ADX,
    X86_FEATURE_SMAP,          X86_FEATURE_CLFLUSHOPT, X86_FEATURE_CLWB,
    X86_FEATURE_UMIP,          X86_FEATURE_RDPID,      X86_FEATURE_FSRM,
    X86_FEATURE_SYSCALL,       X86_FEATURE_NX,         X86_FEATURE_PDPE1GB,
    X86_FEATURE_RDTSCP,        X86_FEATURE_LM,         X86_FEATURE_LAHF,
    X86_FEATURE_LZCNT,         X86_FEATURE_PREFETCHW,  X86_FEATURE_XSAVEOPT,
    X86_FEATURE_XSAVEC,        X86_FEATURE_XGETBV1,    X86_FEATURE_XSAVES,
    X86_FEATURE_INVARIANT_TSC,
};

/* Run as themselves. */
static const enum x86_feature from_host[] = {
    X86_FEATURE_SSE3,  X86_FEATURE_PCLMUL, X86_FEATURE_SSSE3,   X86_FEATURE_FMA,  X86_FEATURE_SSE41,
    X86_FEATURE_SSE42, X86_FEATURE_AES,    X86_FEATURE_AVX,     X86_FEATURE_F16C, X86_FEATURE_AVX2,
    X86_FEATURE_SHA,   X86_FEATURE_VAES,   X86_FEATURE_VPCLMUL,
};

static bool os_has_avx(void)
{
    unsigned a, d;
    __asm__ volatile("xgetbv" : "=a"(a), "=d"(d) : "c"(0));
    return (a & 6) == 6;
}

static void host_features(struct x86_features *out)
{
    unsigned a, b, c, d;

    memset(out, 0, sizeof *out);
    if (__get_cpuid(1, &a, &b, &c, &d)) {
        out->word[X86_WORD_1_EDX] = d;
        out->word[X86_WORD_1_ECX] = c;
    }
    if (__get_cpuid_count(7, 0, &a, &b, &c, &d)) {
        out->word[X86_WORD_7_EBX] = b;
        out->word[X86_WORD_7_ECX] = c;
    }
    bool osxsave = out->word[X86_WORD_1_ECX] & BIT(27);
    if (osxsave && os_has_avx())
        return;
    static const enum x86_feature vex[] = {X86_FEATURE_AVX,  X86_FEATURE_AVX2, X86_FEATURE_FMA,
                                           X86_FEATURE_F16C, X86_FEATURE_VAES, X86_FEATURE_VPCLMUL};
    for (unsigned i = 0; i < ARRAY_COUNT(vex); i++)
        x86_feature_set(out, vex[i], false);
}

void soft_cpu_features(struct x86_features *out)
{
    struct x86_features host;

    memset(out, 0, sizeof *out);
    host_features(&host);
    for (unsigned i = 0; i < ARRAY_COUNT(always); i++)
        x86_feature_set(out, always[i], true);
    for (unsigned i = 0; i < ARRAY_COUNT(from_host); i++)
        x86_feature_set(out, from_host[i], x86_has(&host, from_host[i]));
}
