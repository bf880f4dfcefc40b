/*
 * The MSRs of the portable state, by table. vCPU's thread, or the loop's while no vCPU runs.
 * Linux, Documentation/virt/kvm/api.rst (KVM_GET_MSRS, KVM_SET_MSRS).
 */
#include <errno.h>
#include <stddef.h>
#include <string.h>

#include "engine/kvm/kvm_int.h"
#include "x86/defs.h"

#define ANY (-1)

struct msr {
    uint32_t index;
    uint16_t offset; /* in struct x86_state */
    int feature;     /* without it the kernel may not know the MSR */
};

#define MSR(index, field, feature)                                                                 \
    {                                                                                              \
        index, offsetof(struct x86_state, field), feature                                          \
    }

/*
 * Not here: EFER, which goes with the segments; TSC and its deadline, kvm_clock.c; SPEC_CTRL and
 * DEBUG_CTL, which no CPU model has. Of the time page's two numbers the new ones are used. The wall
 * clock comes last: the kernel fills it in when it is written.
 */
static const struct msr msrs[] = {
    MSR(X86_MSR_STAR, star, X86_FEATURE_SYSCALL),
    MSR(X86_MSR_LSTAR, lstar, X86_FEATURE_LM),
    MSR(X86_MSR_CSTAR, cstar, X86_FEATURE_LM),
    MSR(X86_MSR_SFMASK, sfmask, X86_FEATURE_SYSCALL),
    MSR(X86_MSR_KERNEL_GS_BASE, kernel_gs_base, X86_FEATURE_LM),
    MSR(X86_MSR_SYSENTER_CS, sysenter_cs, X86_FEATURE_SEP),
    MSR(X86_MSR_SYSENTER_ESP, sysenter_esp, X86_FEATURE_SEP),
    MSR(X86_MSR_SYSENTER_EIP, sysenter_eip, X86_FEATURE_SEP),
    MSR(X86_MSR_TSC_AUX, tsc_aux, X86_FEATURE_RDTSCP),
    MSR(X86_MSR_PAT, pat, X86_FEATURE_PAT),
    MSR(X86_MSR_MISC_ENABLE, misc_enable, ANY),
    MSR(X86_MSR_XSS, xss, X86_FEATURE_XSAVES),
    MSR(X86_MSR_TSC_ADJUST, tsc_adjust, X86_FEATURE_TSC_ADJUST),
    MSR(X86_MSR_MCG_STATUS, mcg_status, X86_FEATURE_MCA),
    MSR(X86_MSR_MTRR_DEF_TYPE, mtrr_def_type, X86_FEATURE_MTRR),
    MSR(X86_MSR_MTRR_FIX_64K, mtrr_fixed[0], X86_FEATURE_MTRR),
    MSR(X86_MSR_MTRR_FIX_16K_80000, mtrr_fixed[1], X86_FEATURE_MTRR),
    MSR(X86_MSR_MTRR_FIX_16K_A0000, mtrr_fixed[2], X86_FEATURE_MTRR),
    MSR(X86_MSR_MTRR_FIX_4K_C0000 + 0, mtrr_fixed[3], X86_FEATURE_MTRR),
    MSR(X86_MSR_MTRR_FIX_4K_C0000 + 1, mtrr_fixed[4], X86_FEATURE_MTRR),
    MSR(X86_MSR_MTRR_FIX_4K_C0000 + 2, mtrr_fixed[5], X86_FEATURE_MTRR),
    MSR(X86_MSR_MTRR_FIX_4K_C0000 + 3, mtrr_fixed[6], X86_FEATURE_MTRR),
    MSR(X86_MSR_MTRR_FIX_4K_C0000 + 4, mtrr_fixed[7], X86_FEATURE_MTRR),
    MSR(X86_MSR_MTRR_FIX_4K_C0000 + 5, mtrr_fixed[8], X86_FEATURE_MTRR),
    MSR(X86_MSR_MTRR_FIX_4K_C0000 + 6, mtrr_fixed[9], X86_FEATURE_MTRR),
    MSR(X86_MSR_MTRR_FIX_4K_C0000 + 7, mtrr_fixed[10], X86_FEATURE_MTRR),
    MSR(X86_MSR_MTRR_BASE0 + 0, mtrr_base[0], X86_FEATURE_MTRR),
    MSR(X86_MSR_MTRR_BASE0 + 1, mtrr_mask[0], X86_FEATURE_MTRR),
    MSR(X86_MSR_MTRR_BASE0 + 2, mtrr_base[1], X86_FEATURE_MTRR),
    MSR(X86_MSR_MTRR_BASE0 + 3, mtrr_mask[1], X86_FEATURE_MTRR),
    MSR(X86_MSR_MTRR_BASE0 + 4, mtrr_base[2], X86_FEATURE_MTRR),
    MSR(X86_MSR_MTRR_BASE0 + 5, mtrr_mask[2], X86_FEATURE_MTRR),
    MSR(X86_MSR_MTRR_BASE0 + 6, mtrr_base[3], X86_FEATURE_MTRR),
    MSR(X86_MSR_MTRR_BASE0 + 7, mtrr_mask[3], X86_FEATURE_MTRR),
    MSR(X86_MSR_MTRR_BASE0 + 8, mtrr_base[4], X86_FEATURE_MTRR),
    MSR(X86_MSR_MTRR_BASE0 + 9, mtrr_mask[4], X86_FEATURE_MTRR),
    MSR(X86_MSR_MTRR_BASE0 + 10, mtrr_base[5], X86_FEATURE_MTRR),
    MSR(X86_MSR_MTRR_BASE0 + 11, mtrr_mask[5], X86_FEATURE_MTRR),
    MSR(X86_MSR_MTRR_BASE0 + 12, mtrr_base[6], X86_FEATURE_MTRR),
    MSR(X86_MSR_MTRR_BASE0 + 13, mtrr_mask[6], X86_FEATURE_MTRR),
    MSR(X86_MSR_MTRR_BASE0 + 14, mtrr_base[7], X86_FEATURE_MTRR),
    MSR(X86_MSR_MTRR_BASE0 + 15, mtrr_mask[7], X86_FEATURE_MTRR),
    MSR(X86_MSR_KVM_SYSTEM_TIME, kvmclock_system_time, ANY),
    MSR(X86_MSR_KVM_WALL_CLOCK, kvmclock_wall_clock, ANY),
};

struct msr_list {
    uint32_t count, padding; /* as struct kvm_msrs, with room for the entries */
    struct kvm_msr_entry entry[ARRAY_COUNT(msrs)];
    const struct msr *known[ARRAY_COUNT(msrs)];
};

static bool has(const struct engine_vcpu *vcpu, const struct msr *msr)
{
    return msr->feature == ANY ||
           x86_has(&vcpu->vm->config.cpuid->features, (enum x86_feature)msr->feature);
}

static uint64_t value_of(const struct x86_state *s, const struct msr *msr)
{
    return s ? load_le64((const char *)s + msr->offset) : 0;
}

static void fill(struct engine_vcpu *vcpu, struct msr_list *list, const struct x86_state *s,
                 const struct x86_state *known)
{
    list->count = list->padding = 0;
    for (size_t i = 0; i < ARRAY_COUNT(msrs); i++) {
        uint64_t value = value_of(s, &msrs[i]);
        if (!has(vcpu, &msrs[i]) || (known && value == value_of(known, &msrs[i])))
            continue;
        list->known[list->count] = &msrs[i];
        list->entry[list->count++] = (struct kvm_msr_entry) {.index = msrs[i].index, .data = value};
    }
}

/* The kernel returns how many it did. */
static int transfer(struct engine_vcpu *vcpu, unsigned long request, struct msr_list *list,
                    uint32_t *bad)
{
    int done = kvm_call(vcpu->fd, request, list);
    if (done < 0)
        return done;
    if ((uint32_t)done == list->count)
        return 0;
    *bad = list->entry[done].index;
    return -EINVAL;
}

int kvm_msrs_get(struct engine_vcpu *vcpu, struct x86_state *out, uint32_t *bad)
{
    struct msr_list list;
    fill(vcpu, &list, NULL, NULL);
    int error = transfer(vcpu, KVM_GET_MSRS, &list, bad);
    for (uint32_t i = 0; i < list.count && !error; i++)
        store_le64((char *)out + list.known[i]->offset, list.entry[i].data);
    return error;
}

int kvm_msrs_set(struct engine_vcpu *vcpu, const struct x86_state *s, const struct x86_state *known,
                 uint32_t *bad)
{
    struct msr_list list;
    fill(vcpu, &list, s, known);
    return transfer(vcpu, KVM_SET_MSRS, &list, bad);
}

struct one_msr {
    uint32_t count, padding; /* as struct kvm_msrs */
    struct kvm_msr_entry entry;
};

int kvm_msr_read(struct engine_vcpu *vcpu, uint32_t index, uint64_t *value)
{
    struct one_msr one = {.count = 1, .entry = {.index = index}};
    int done = kvm_call(vcpu->fd, KVM_GET_MSRS, &one);
    *value = one.entry.data;
    return done < 0 ? done : done == 1 ? 0 : -EINVAL;
}

int kvm_msr_write(struct engine_vcpu *vcpu, uint32_t index, uint64_t value)
{
    struct one_msr one = {.count = 1, .entry = {.index = index, .data = value}};
    int done = kvm_call(vcpu->fd, KVM_SET_MSRS, &one);
    return done < 0 ? done : done == 1 ? 0 : -EINVAL;
}
