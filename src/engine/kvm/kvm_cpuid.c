/*
 * CPUID: what this host's KVM can give of the features that the portable state and the machine
 * model know, and a vCPU's table. Linux, Documentation/virt/kvm/api.rst (KVM_GET_SUPPORTED_CPUID,
 * KVM_SET_CPUID2).
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/kvm/kvm_int.h"

#define ENTRIES_MAX 256

struct cpuid_list {
    uint32_t count, padding; /* as struct kvm_cpuid2, with room for the entries */
    struct kvm_cpuid_entry2 entry[ENTRIES_MAX];
};

/*
 * All that the state can carry from host to host. Not MONITOR (idle in the kernel instead), nor
 * anything with state of its own that x86/state.h has no place for (AVX-512, PKU, CET, SVM, VMX).
 */
static const enum x86_feature portable[] = {
    X86_FEATURE_FPU,        X86_FEATURE_DE,       X86_FEATURE_PSE,        X86_FEATURE_TSC,
    X86_FEATURE_MSR,        X86_FEATURE_PAE,      X86_FEATURE_MCE,        X86_FEATURE_CX8,
    X86_FEATURE_APIC,       X86_FEATURE_SEP,      X86_FEATURE_MTRR,       X86_FEATURE_PGE,
    X86_FEATURE_MCA,        X86_FEATURE_CMOV,     X86_FEATURE_PAT,        X86_FEATURE_PSE36,
    X86_FEATURE_CLFLUSH,    X86_FEATURE_MMX,      X86_FEATURE_FXSR,       X86_FEATURE_SSE,
    X86_FEATURE_SSE2,       X86_FEATURE_SSE3,     X86_FEATURE_PCLMUL,     X86_FEATURE_SSSE3,
    X86_FEATURE_FMA,        X86_FEATURE_CX16,     X86_FEATURE_PCID,       X86_FEATURE_SSE41,
    X86_FEATURE_SSE42,      X86_FEATURE_X2APIC,   X86_FEATURE_MOVBE,      X86_FEATURE_POPCNT,
    X86_FEATURE_AES,        X86_FEATURE_XSAVE,    X86_FEATURE_AVX,        X86_FEATURE_F16C,
    X86_FEATURE_RDRAND,     X86_FEATURE_FSGSBASE, X86_FEATURE_TSC_ADJUST, X86_FEATURE_BMI1,
    X86_FEATURE_AVX2,       X86_FEATURE_SMEP,     X86_FEATURE_BMI2,       X86_FEATURE_ERMS,
    X86_FEATURE_INVPCID,    X86_FEATURE_RDSEED,   X86_FEATURE_ADX,        X86_FEATURE_SMAP,
    X86_FEATURE_CLFLUSHOPT, X86_FEATURE_CLWB,     X86_FEATURE_SHA,        X86_FEATURE_UMIP,
    X86_FEATURE_VAES,       X86_FEATURE_VPCLMUL,  X86_FEATURE_RDPID,      X86_FEATURE_FSRM,
    X86_FEATURE_SYSCALL,    X86_FEATURE_NX,       X86_FEATURE_PDPE1GB,    X86_FEATURE_RDTSCP,
    X86_FEATURE_LM,         X86_FEATURE_LAHF,     X86_FEATURE_LZCNT,      X86_FEATURE_PREFETCHW,
    X86_FEATURE_XSAVEOPT,   X86_FEATURE_XSAVEC,   X86_FEATURE_XGETBV1,    X86_FEATURE_XSAVES,
};

/* Where each word of features stands. */
static const struct {
    uint32_t leaf, subleaf;
    unsigned reg; /* EAX EBX ECX EDX */
} places[X86_WORD_COUNT] = {
    [X86_WORD_1_EDX] = {1, 0, 3},
    [X86_WORD_1_ECX] = {1, 0, 2},
    [X86_WORD_7_EBX] = {7, 0, 1},
    [X86_WORD_7_ECX] = {7, 0, 2},
    [X86_WORD_7_EDX] = {7, 0, 3},
    [X86_WORD_80000001_EDX] = {0x80000001, 0, 3},
    [X86_WORD_80000001_ECX] = {0x80000001, 0, 2},
    [X86_WORD_D_1_EAX] = {0xd, 1, 0},
    [X86_WORD_80000007_EDX] = {0x80000007, 0, 3},
    [X86_WORD_80000008_EBX] = {0x80000008, 0, 1},
    [X86_WORD_80000021_EAX] = {0x80000021, 0, 0},
};

static uint32_t look_up(const struct cpuid_list *list, unsigned word)
{
    for (uint32_t i = 0; i < MIN(list->count, ENTRIES_MAX); i++) {
        const struct kvm_cpuid_entry2 *e = &list->entry[i];
        const uint32_t regs[4] = {e->eax, e->ebx, e->ecx, e->edx};
        if (e->function == places[word].leaf &&
            (!(e->flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX) || e->index == places[word].subleaf))
            return regs[places[word].reg];
    }
    return 0;
}

static void take_supported(int system_fd, struct x86_features *out)
{
    struct cpuid_list *list = calloc(1, sizeof *list);
    struct x86_features host = {{0}};
    if (!list)
        return;
    list->count = ENTRIES_MAX;
    if (!kvm_call(system_fd, KVM_GET_SUPPORTED_CPUID, list)) {
        for (unsigned word = 0; word < X86_WORD_COUNT; word++)
            host.word[word] = look_up(list, word);
        for (size_t i = 0; i < ARRAY_COUNT(portable); i++)
            x86_feature_set(out, portable[i], x86_has(&host, portable[i]));
    }
    free(list);
}

/*
 * Beside what the kernel lists: the deadline timer, which it tells of elsewhere; its own presence;
 * and a TSC that counts at one rate, because where the host's does not, the kernel has the guests'
 * follow.
 */
void kvm_cpu_features(struct x86_features *out)
{
    memset(out, 0, sizeof *out);
    int fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return;
    take_supported(fd, out);
    x86_feature_set(out, X86_FEATURE_TSC_DEADLINE,
                    kvm_call_number(fd, KVM_CHECK_EXTENSION, KVM_CAP_TSC_DEADLINE_TIMER) > 0);
    x86_feature_set(out, X86_FEATURE_HYPERVISOR, true);
    x86_feature_set(out, X86_FEATURE_INVARIANT_TSC, true);
    close(fd);
}

static struct kvm_cpuid_entry2 convert(const struct x86_cpuid_entry *e, uint32_t apic_id)
{
    struct kvm_cpuid_entry2 out = {.function = e->leaf,
                                   .index = e->subleaf,
                                   .flags = e->has_subleaf ? KVM_CPUID_FLAG_SIGNIFCANT_INDEX : 0,
                                   .eax = e->eax,
                                   .ebx = e->ebx,
                                   .ecx = e->ecx,
                                   .edx = e->edx};
    if (e->leaf == 1)
        out.ebx |= apic_id << 24;
    if (e->leaf == 0xb)
        out.edx = apic_id;
    return out;
}

/* What depends on CR4, XCR0 and the APIC base the kernel patches in as x86_cpuid_query does. */
int kvm_cpuid_set(struct engine_vcpu *vcpu)
{
    const struct x86_cpuid_table *table = vcpu->vm->config.cpuid;
    struct {
        uint32_t count, padding; /* as struct kvm_cpuid2 */
        struct kvm_cpuid_entry2 entry[X86_CPUID_ENTRIES_MAX];
    } list = {.count = (uint32_t)table->count};
    for (size_t i = 0; i < table->count; i++)
        list.entry[i] = convert(&table->entry[i], vcpu->index);
    return kvm_call(vcpu->fd, KVM_SET_CPUID2, &list);
}
