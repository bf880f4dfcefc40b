/*
 * Model-specific registers that live in the CPU state, by table; the rest goes to x86_ops (APIC,
 * kvmclock). Runs on the CPU's thread. SDM vol. 4; vol. 3 sections 11.11 (MTRRs), 11.12 (PAT), 15.3
 * (machine check), 17.17 (TSC); APM vol. 2 appendix A (the AMD ones, with the values of a family
 * 0Fh CPU whose features are all off).
 */
#include "x86/cpu.h"

#include "x86/mem.h"
#include "x86/paging.h"

struct msr {
    uint32_t index;
    uint32_t count;    /* consecutive registers */
    uint32_t stride;   /* bytes between their fields */
    uint32_t offset;   /* of the field in struct x86_state; NO_FIELD: reads as value */
    uint64_t value;    /* what reads add to the field */
    uint64_t writable; /* others must be written as they read, or else #GP */
    bool ignore;       /* writes are accepted and dropped */
    int feature;       /* needed, or ANY */
    bool (*check)(const struct x86_cpu *cpu, uint64_t value); /* false: #GP; may be NULL */
    void (*apply)(struct x86_cpu *cpu, uint64_t value);       /* instead of the store, or NULL */
};

#define NO_FIELD UINT32_MAX
#define ANY      (-1)
#define FIELD(f) .count = 1, .offset = offsetof(struct x86_state, f)
#define ALL      UINT64_MAX

static uint64_t *field_of(struct x86_cpu *cpu, const struct msr *msr, uint32_t index)
{
    return (uint64_t *)(void *)((char *)&cpu->s + msr->offset +
                                (index - msr->index) * (uint64_t)msr->stride);
}

/* --- writes with rules --- */

static bool check_canonical(const struct x86_cpu *cpu, uint64_t value)
{
    return x86_canonical(value);
}

/* SDM vol. 3 section 2.2.1: LME may not change with paging on. */
static bool check_efer(const struct x86_cpu *cpu, uint64_t value)
{
    bool lme_changes = (value ^ cpu->s.efer) & X86_EFER_LME;

    return !(lme_changes && (cpu->s.cr0 & X86_CR0_PG)) &&
           !((value & X86_EFER_NXE) && !x86_has(cpu->features, X86_FEATURE_NX));
}

/* LMA is the CPU's own. */
static void apply_efer(struct x86_cpu *cpu, uint64_t value)
{
    uint64_t old = cpu->s.efer;

    cpu->s.efer = (value & ~X86_EFER_LMA) | (old & X86_EFER_LMA);
    if ((value ^ old) & X86_EFER_NXE)
        x86_tlb_flush(cpu, false);
    x86_cpu_update_mode(cpu);
}

static bool valid_memory_type(unsigned type)
{
    return type <= 6 && type != 2 && type != 3;
}

/* SDM vol. 3 section 11.12.2; 7 is UC- and only the PAT has it. */
static bool check_pat(const struct x86_cpu *cpu, uint64_t value)
{
    for (unsigned i = 0; i < 8; i++) {
        unsigned type = value >> (i * 8) & 0xff;
        if (!valid_memory_type(type) && type != 7)
            return false;
    }
    return true;
}

static bool check_mtrr_fixed(const struct x86_cpu *cpu, uint64_t value)
{
    for (unsigned i = 0; i < 8; i++) {
        if (!valid_memory_type(value >> (i * 8) & 0xff))
            return false;
    }
    return true;
}

static bool check_mtrr_type(const struct x86_cpu *cpu, uint64_t value)
{
    return valid_memory_type(value & 0xff);
}

static void tell_tsc_changed(struct x86_cpu *cpu)
{
    if (cpu->ops->tsc_changed)
        cpu->ops->tsc_changed(cpu->context);
}

/* SDM vol. 3 section 17.17.3: each of the two moves the other. */
static void apply_tsc(struct x86_cpu *cpu, uint64_t value)
{
    uint64_t delta = value - x86_tsc(cpu);

    cpu->s.tsc_offset += delta;
    cpu->s.tsc_adjust += delta;
    tell_tsc_changed(cpu);
}

static void apply_tsc_adjust(struct x86_cpu *cpu, uint64_t value)
{
    cpu->s.tsc_offset += value - cpu->s.tsc_adjust;
    cpu->s.tsc_adjust = value;
    tell_tsc_changed(cpu);
}

/* --- the table --- */

#define CONSTANT(v) .count = 1, .offset = NO_FIELD, .value = (v), .feature = ANY

static const struct msr msrs[] = {
    {X86_MSR_TSC, CONSTANT(0), .writable = ALL, .apply = apply_tsc},
    {X86_MSR_TSC_ADJUST, FIELD(tsc_adjust), .writable = ALL, .feature = X86_FEATURE_TSC_ADJUST,
     .apply = apply_tsc_adjust},
    {X86_MSR_PLATFORM_ID, CONSTANT(0)},
    {X86_MSR_UCODE_REV, CONSTANT(0x01000065), .ignore = true},
    {X86_MSR_SYSENTER_CS, FIELD(sysenter_cs), .writable = 0xffffffff, .feature = X86_FEATURE_SEP},
    {X86_MSR_SYSENTER_ESP, FIELD(sysenter_esp), .writable = ALL, .feature = X86_FEATURE_SEP,
     .check = check_canonical},
    {X86_MSR_SYSENTER_EIP, FIELD(sysenter_eip), .writable = ALL, .feature = X86_FEATURE_SEP,
     .check = check_canonical},
    {X86_MSR_MCG_CAP, CONSTANT(0)},
    {X86_MSR_MCG_STATUS, FIELD(mcg_status), .writable = 7, .feature = X86_FEATURE_MCA},
    {X86_MSR_MISC_ENABLE, FIELD(misc_enable), .writable = 1, .feature = ANY},
    {X86_MSR_DEBUG_CTL, FIELD(debug_ctl), .writable = 0, .feature = ANY},
    {X86_MSR_PAT, FIELD(pat), .writable = ALL, .feature = X86_FEATURE_PAT, .check = check_pat},

    {X86_MSR_MTRR_CAP, 1, .offset = NO_FIELD, .value = 0x508, .feature = X86_FEATURE_MTRR},
    {X86_MSR_MTRR_DEF_TYPE, FIELD(mtrr_def_type), .writable = 0xcff, .feature = X86_FEATURE_MTRR,
     .check = check_mtrr_type},
    {X86_MSR_MTRR_FIX_64K, FIELD(mtrr_fixed[0]), .writable = ALL, .feature = X86_FEATURE_MTRR,
     .check = check_mtrr_fixed},
    {X86_MSR_MTRR_FIX_16K_80000, 2, 8, offsetof(struct x86_state, mtrr_fixed[1]), .writable = ALL,
     .feature = X86_FEATURE_MTRR, .check = check_mtrr_fixed},
    {X86_MSR_MTRR_FIX_4K_C0000, 8, 8, offsetof(struct x86_state, mtrr_fixed[3]), .writable = ALL,
     .feature = X86_FEATURE_MTRR, .check = check_mtrr_fixed},

    {X86_MSR_EFER, FIELD(efer), .feature = ANY, .check = check_efer, .apply = apply_efer,
     .writable = X86_EFER_SCE | X86_EFER_LME | X86_EFER_LMA | X86_EFER_NXE},
    {X86_MSR_STAR, FIELD(star), .writable = ALL, .feature = X86_FEATURE_SYSCALL},
    {X86_MSR_LSTAR, FIELD(lstar), .writable = ALL, .feature = X86_FEATURE_LM,
     .check = check_canonical},
    {X86_MSR_CSTAR, FIELD(cstar), .writable = ALL, .feature = X86_FEATURE_LM,
     .check = check_canonical},
    {X86_MSR_SFMASK, FIELD(sfmask), .writable = 0xffffffff, .feature = X86_FEATURE_SYSCALL},
    {X86_MSR_TSC_AUX, FIELD(tsc_aux), .writable = 0xffffffff, .feature = X86_FEATURE_RDTSCP},
    {X86_MSR_XSS, FIELD(xss), .writable = 0, .feature = X86_FEATURE_XSAVES},

    {0xc0010010, CONSTANT(0), .ignore = true},           /* SYSCFG: no SME */
    {0xc0010015, CONSTANT(0), .ignore = true},           /* HWCR */
    {0xc001001a, CONSTANT(0x100000000), .ignore = true}, /* TOP_MEM */
    {0xc001001d, CONSTANT(0), .ignore = true},           /* TOP_MEM2 */
    {0xc001001f, CONSTANT(0), .ignore = true},           /* NB_CFG */
    {0xc0010055, CONSTANT(0), .ignore = true},           /* interrupt pending: no C1E */
    {0xc0010112, CONSTANT(0)},                           /* SMM base */
    {0xc0010113, CONSTANT(0)},                           /* SMM mask: none */
    {0xc0010114, CONSTANT(BIT(4))},                      /* VM_CR: SVM disabled */
    {0xc0010140, CONSTANT(0)},                           /* OSVW length: no errata known */
    {0xc0010141, CONSTANT(0)},                           /* OSVW status */
    {0xc0011029, CONSTANT(BIT(1)), .ignore = true},      /* DE_CFG: LFENCE serializes */
};

static bool has(const struct x86_cpu *cpu, const struct msr *msr)
{
    return msr->feature == ANY || x86_has(cpu->features, (enum x86_feature)msr->feature);
}

static const struct msr *find(const struct x86_cpu *cpu, uint32_t index)
{
    for (size_t i = 0; i < ARRAY_COUNT(msrs); i++) {
        if (index - msrs[i].index < msrs[i].count)
            return has(cpu, &msrs[i]) ? &msrs[i] : NULL;
    }
    return NULL;
}

/* --- variable MTRRs: base and mask alternate --- */

static bool is_variable_mtrr(const struct x86_cpu *cpu, uint32_t index)
{
    return index - X86_MSR_MTRR_BASE0 < 16 && x86_has(cpu->features, X86_FEATURE_MTRR);
}

static uint64_t *variable_mtrr(struct x86_cpu *cpu, uint32_t index)
{
    uint32_t n = index - X86_MSR_MTRR_BASE0;
    return n & 1 ? &cpu->s.mtrr_mask[n / 2] : &cpu->s.mtrr_base[n / 2];
}

static bool write_variable_mtrr(struct x86_cpu *cpu, uint32_t index, uint64_t value)
{
    bool mask = (index - X86_MSR_MTRR_BASE0) & 1;

    if (value >> cpu->cpuid->physical_address_bits || (value & (mask ? 0x7ff : 0xf00)) ||
        (!mask && !valid_memory_type(value & 0xff)))
        return false;
    *variable_mtrr(cpu, index) = value;
    return true;
}

/* --- access --- */

static uint64_t current_value(struct x86_cpu *cpu, const struct msr *msr, uint32_t index)
{
    return msr->offset == NO_FIELD ? msr->value : *field_of(cpu, msr, index);
}

/* The ones that are written all the time and are not in the table. */
static bool is_outside(uint32_t index)
{
    return index == X86_MSR_TSC_DEADLINE || index - X86_MSR_X2APIC < 0x100;
}

/* The bases of FS and GS; NULL: another register. */
static uint64_t *segment_base(struct x86_cpu *cpu, uint32_t index)
{
    switch (index) {
    case X86_MSR_FS_BASE:
        return &cpu->s.seg[X86_FS].base;
    case X86_MSR_GS_BASE:
        return &cpu->s.seg[X86_GS].base;
    case X86_MSR_KERNEL_GS_BASE:
        return &cpu->s.kernel_gs_base;
    default:
        return NULL;
    }
}

static bool write_segment_base(struct x86_cpu *cpu, uint64_t *field, uint64_t value)
{
    if (!x86_canonical(value))
        return false;
    *field = value;
    cpu->seg_base[X86_FS] = cpu->s.seg[X86_FS].base;
    cpu->seg_base[X86_GS] = cpu->s.seg[X86_GS].base;
    return true;
}

bool x86_msr_read(struct x86_cpu *cpu, uint32_t index, uint64_t *value)
{
    uint64_t *base = segment_base(cpu, index);

    if (base && x86_has(cpu->features, X86_FEATURE_LM)) {
        *value = *base;
        return true;
    }
    if (is_outside(index))
        return cpu->ops->msr_read(cpu->context, index, value);
    if (is_variable_mtrr(cpu, index)) {
        *value = *variable_mtrr(cpu, index);
        return true;
    }
    const struct msr *msr = find(cpu, index);
    if (!msr)
        return cpu->ops->msr_read(cpu->context, index, value);
    *value = index == X86_MSR_TSC ? x86_tsc(cpu) : current_value(cpu, msr, index);
    return true;
}

bool x86_msr_write(struct x86_cpu *cpu, uint32_t index, uint64_t value)
{
    uint64_t *base = segment_base(cpu, index);

    if (base && x86_has(cpu->features, X86_FEATURE_LM))
        return write_segment_base(cpu, base, value);
    if (is_outside(index))
        return cpu->ops->msr_write(cpu->context, index, value);
    if (is_variable_mtrr(cpu, index))
        return write_variable_mtrr(cpu, index, value);
    const struct msr *msr = find(cpu, index);
    if (!msr)
        return cpu->ops->msr_write(cpu->context, index, value);
    if (msr->ignore)
        return true;
    if ((value ^ current_value(cpu, msr, index)) & ~msr->writable)
        return false;
    if (msr->check && !msr->check(cpu, value))
        return false;
    if (msr->apply)
        msr->apply(cpu, value);
    else if (msr->offset != NO_FIELD)
        *field_of(cpu, msr, index) = value;
    return true;
}
