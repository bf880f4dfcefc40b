/*
 * The portable vCPU state: reset, INIT, validation, comparison. Pure. SDM vol. 3 table 10-1 (9-1 in
 * older editions: "IA-32 Processor States Following Power-up, Reset, or INIT"), chapter 26.3.1 for
 * what a valid state is.
 */
#include "x86/state.h"

#include <stddef.h>
#include <string.h>

#include "x86/cpuid.h"
#include "x86/lapic.h"

#define ATTR_REAL_DATA (X86_SEG_P | X86_SEG_S | X86_SEG_WRITABLE | X86_SEG_ACCESSED)
#define ATTR_REAL_CODE (ATTR_REAL_DATA | X86_SEG_CODE)
#define ATTR_LDT       (X86_SEG_P | 2)
#define ATTR_TSS_BUSY  (X86_SEG_P | 11)

/* --- reset and INIT --- */

/* The part that reset and INIT have in common. */
static void reset_core(struct x86_state *s)
{
    memset(s->gpr, 0, sizeof s->gpr);
    s->gpr[X86_RDX] = X86_CPU_SIGNATURE;
    s->rip = 0xfff0;
    s->rflags = X86_FIXED;
    for (unsigned i = 0; i < 6; i++)
        s->seg[i] = (struct x86_segment) {.limit = 0xffff, .attr = ATTR_REAL_DATA};
    s->seg[X86_CS] = (struct x86_segment) {
        .base = 0xffff0000, .limit = 0xffff, .selector = 0xf000, .attr = ATTR_REAL_CODE};
    s->ldtr = (struct x86_segment) {.limit = 0xffff, .attr = ATTR_LDT};
    s->tr = (struct x86_segment) {.limit = 0xffff, .attr = ATTR_TSS_BUSY};
    s->gdtr = s->idtr = (struct x86_table_register) {.limit = 0xffff};
    s->cr2 = s->cr3 = s->cr4 = 0;
    memset(s->pdptr, 0, sizeof s->pdptr);
    memset(s->dr, 0, sizeof s->dr);
    s->dr6 = 0xffff0ff0;
    s->dr7 = 0x400;
    s->efer = 0;
    s->pending = (struct x86_event) {0};
    s->interrupt_shadow = s->shadow_is_mov_ss = s->nmi_blocked = false;
}

void x86_state_reset(struct x86_state *s, uint32_t apic_id, bool is_bsp)
{
    memset(s, 0, sizeof *s);
    reset_core(s);
    s->cr0 = X86_CR0_CD | X86_CR0_NW | X86_CR0_ET;
    s->xcr0 = X86_XCR0_X87;
    s->pat = 0x0007040600070406;
    s->apic_base = X86_APIC_BASE_ADDRESS | X86_APIC_BASE_ENABLE | (is_bsp ? X86_APIC_BASE_BSP : 0);
    s->misc_enable = 1; /* fast strings */
    s->fpu.fcw = 0x40;
    s->fpu.ftw = 0xff; /* tags 5555: all hold zero */
    s->fpu.mxcsr = 0x1f80;
    x86_lapic_state_reset(&s->lapic, apic_id);
    s->mp_state = is_bsp ? X86_MP_RUNNABLE : X86_MP_WAIT_SIPI;
}

/* XCR0, PAT, MTRRs, TSC, x87/SSE and MSRs outside this list stay: SDM vol. 3 table 10-1, "INIT". */
void x86_state_init(struct x86_state *s)
{
    bool is_bsp = s->apic_base & X86_APIC_BASE_BSP;

    reset_core(s);
    s->cr0 = (s->cr0 & (X86_CR0_CD | X86_CR0_NW)) | X86_CR0_ET;
    x86_lapic_state_reset(&s->lapic, s->lapic.id);
    s->tsc_deadline = 0;
    s->mp_state = is_bsp ? X86_MP_RUNNABLE : X86_MP_WAIT_SIPI;
}

/* --- validation --- */

static bool canonical(uint64_t la)
{
    return (uint64_t)((int64_t)(la << 16) >> 16) == la;
}

static const char *validate_control(const struct x86_state *s)
{
    const uint64_t cr4_known = X86_CR4_VME | X86_CR4_PVI | X86_CR4_TSD | X86_CR4_DE | X86_CR4_PSE |
                               X86_CR4_PAE | X86_CR4_MCE | X86_CR4_PGE | X86_CR4_PCE |
                               X86_CR4_OSFXSR | X86_CR4_OSXMMEXCPT | X86_CR4_UMIP |
                               X86_CR4_FSGSBASE | X86_CR4_PCIDE | X86_CR4_OSXSAVE | X86_CR4_SMEP |
                               X86_CR4_SMAP;
    const uint64_t efer_known =
        X86_EFER_SCE | X86_EFER_LME | X86_EFER_LMA | X86_EFER_NXE | X86_EFER_FFXSR;
    bool pg = s->cr0 & X86_CR0_PG, lme = s->efer & X86_EFER_LME, lma = s->efer & X86_EFER_LMA;

    if (s->cr0 >> 32 || (pg && !(s->cr0 & X86_CR0_PE)) ||
        ((s->cr0 & X86_CR0_NW) && !(s->cr0 & X86_CR0_CD)))
        return "cr0";
    if (s->cr4 & ~cr4_known)
        return "cr4";
    if ((s->efer & ~efer_known) || lma != (pg && lme))
        return "efer";
    if (lma && !(s->cr4 & X86_CR4_PAE))
        return "cr4";
    if ((s->cr4 & X86_CR4_PCIDE) && !lma)
        return "cr4";
    if (s->cr3 >> 52)
        return "cr3";
    if (!(s->xcr0 & X86_XCR0_X87) || s->xcr0 >> 3 ||
        ((s->xcr0 & X86_XCR0_AVX) && !(s->xcr0 & X86_XCR0_SSE)))
        return "xcr0";
    return NULL;
}

static const char *validate_addresses(const struct x86_state *s)
{
    if (!canonical(s->gdtr.base))
        return "gdtr";
    if (!canonical(s->idtr.base))
        return "idtr";
    if (!canonical(s->lstar) || !canonical(s->cstar) || !canonical(s->kernel_gs_base))
        return "syscall registers";
    if (!canonical(s->sysenter_esp) || !canonical(s->sysenter_eip))
        return "sysenter registers";
    for (unsigned i = 0; i < 4; i++) {
        /* Of one that is not present all bits are the guest's. */
        if ((s->pdptr[i] & X86_PTE_P) && s->pdptr[i] >> 52)
            return "pdptr";
    }
    return NULL;
}

static bool valid_segment(const struct x86_segment *seg)
{
    bool low_ones = (seg->limit & 0xfff) == 0xfff, high_zero = !(seg->limit & 0xfff00000);

    if (seg->attr & ~0xf0ffu || !canonical(seg->base))
        return false;
    return !(seg->attr & X86_SEG_P) || (seg->attr & X86_SEG_G ? low_ones : high_zero);
}

static const char *validate_segments(const struct x86_state *s)
{
    static const char *const names[] = {"es", "cs", "ss", "ds", "fs", "gs"};

    for (unsigned i = 0; i < 6; i++) {
        const struct x86_segment *seg = &s->seg[i];
        if (!valid_segment(seg) || ((seg->attr & X86_SEG_P) && !(seg->attr & X86_SEG_S)) ||
            (i <= X86_DS && seg->base >> 32))
            return names[i];
    }
    if (!(s->seg[X86_CS].attr & X86_SEG_P))
        return "cs";
    if (!valid_segment(&s->ldtr))
        return "ldtr";
    if (!valid_segment(&s->tr))
        return "tr";
    return NULL;
}

static const char *validate_events(const struct x86_state *s)
{
    if (s->pending.kind > X86_EVENT_PRIVILEGED_SOFT_EXCEPTION)
        return "pending event";
    if (s->mp_state > X86_MP_SHUTDOWN)
        return "mp_state";
    if (s->dr7 >> 32 || s->dr6 >> 32)
        return "debug registers";
    if (s->fpu.mxcsr >> 16)
        return "mxcsr";
    if ((s->apic_base & 0x2ff) || s->apic_base >> 52 ||
        ((s->apic_base & X86_APIC_BASE_X2APIC) && !(s->apic_base & X86_APIC_BASE_ENABLE)))
        return "apic_base";
    return NULL;
}

const char *x86_state_validate(const struct x86_state *s)
{
    const char *what = validate_control(s);

    if (!what)
        what = validate_addresses(s);
    if (!what)
        what = validate_segments(s);
    if (!what)
        what = validate_events(s);
    if (!what && (!(s->rflags & X86_FIXED) || s->rflags >> 22 ||
                  ((s->rflags & X86_VM) && (s->efer & X86_EFER_LMA))))
        what = "rflags";
    return what;
}

/* --- comparison --- */

#define SAME(f)                                                                                    \
    {                                                                                              \
#f, offsetof(struct x86_state, f), sizeof(((struct x86_state *)0)->f)                      \
    }

/* Fields without padding, compared as bytes. */
static const struct {
    const char *name;
    size_t offset, size;
} plain[] = {
    SAME(gpr),
    SAME(rip),
    SAME(rflags),
    SAME(cr0),
    SAME(cr2),
    SAME(cr3),
    SAME(cr4),
    SAME(xcr0),
    SAME(pdptr),
    SAME(dr),
    SAME(dr6),
    SAME(dr7),
    SAME(efer),
    SAME(star),
    SAME(lstar),
    SAME(cstar),
    SAME(sfmask),
    SAME(kernel_gs_base),
    SAME(sysenter_cs),
    SAME(tsc_aux),
    SAME(pat),
    SAME(apic_base),
    SAME(misc_enable),
    SAME(xss),
    SAME(spec_ctrl),
    SAME(tsc_offset),
    SAME(tsc_adjust),
    SAME(tsc_deadline),
    SAME(mtrr_def_type),
    SAME(mtrr_fixed),
    SAME(mtrr_base),
    SAME(mtrr_mask),
    SAME(kvmclock_system_time),
    SAME(kvmclock_wall_clock),
    SAME(debug_ctl),
    SAME(mcg_status),
    SAME(fpu.ymm),
    SAME(fpu.st),
    SAME(fpu.fcw),
    SAME(fpu.fsw),
    SAME(fpu.ftw),
    SAME(fpu.mxcsr),
    SAME(lapic.id),
    SAME(lapic.tpr),
    SAME(lapic.ldr),
    SAME(lapic.dfr),
    SAME(lapic.svr),
    SAME(lapic.esr),
    SAME(lapic.esr_latched),
    SAME(lapic.icr),
    SAME(lapic.lvt),
    SAME(lapic.timer_initial),
    SAME(lapic.timer_divide),
    SAME(lapic.timer_expiry_ns),
    SAME(lapic.isr),
    SAME(lapic.irr),
    SAME(lapic.tmr),
    SAME(lapic.nmi_pending),
    SAME(lapic.init_pending),
    SAME(lapic.sipi_pending),
    SAME(lapic.sipi_vector),
    SAME(pending.kind),
    SAME(pending.vector),
    SAME(pending.has_error),
    SAME(pending.error),
    SAME(pending.has_payload),
    SAME(pending.payload),
    SAME(mp_state),
    SAME(interrupt_shadow),
    SAME(shadow_is_mov_ss),
    SAME(nmi_blocked),
};

/* The hidden part of an unusable segment is nothing the guest sees, but for FS's and GS's base. */
static bool same_segment(const struct x86_segment *a, const struct x86_segment *b)
{
    if (a->selector != b->selector || (a->attr & X86_SEG_P) != (b->attr & X86_SEG_P))
        return false;
    if (!(a->attr & X86_SEG_P))
        return (a->attr & X86_SEG_DPL) == (b->attr & X86_SEG_DPL);
    return a->base == b->base && a->limit == b->limit && a->attr == b->attr;
}

static const char *differing_segment(const struct x86_state *a, const struct x86_state *b)
{
    static const char *const names[] = {"es", "cs", "ss", "ds", "fs", "gs"};

    for (unsigned i = 0; i < 6; i++) {
        if (!same_segment(&a->seg[i], &b->seg[i]) ||
            (i >= X86_FS && a->seg[i].base != b->seg[i].base))
            return names[i];
    }
    if (!same_segment(&a->ldtr, &b->ldtr))
        return "ldtr";
    if (!same_segment(&a->tr, &b->tr))
        return "tr";
    if (a->gdtr.base != b->gdtr.base || a->gdtr.limit != b->gdtr.limit)
        return "gdtr";
    if (a->idtr.base != b->idtr.base || a->idtr.limit != b->idtr.limit)
        return "idtr";
    return NULL;
}

/* FIP, FDP and FOP count only while an unmasked x87 exception is pending. */
static bool same_x87_pointers(const struct x86_fpu *a, const struct x86_fpu *b)
{
    if (!(a->fsw & ~a->fcw & 0x3f))
        return true;
    return a->fip == b->fip && a->fdp == b->fdp && a->fop == b->fop && a->fcs == b->fcs &&
           a->fds == b->fds;
}

/* SYSENTER does not exist in long mode on AMD's CPUs: 32 bits are all that is used. */
static bool same_sysenter(const struct x86_state *a, const struct x86_state *b)
{
    return (uint32_t)a->sysenter_esp == (uint32_t)b->sysenter_esp &&
           (uint32_t)a->sysenter_eip == (uint32_t)b->sysenter_eip;
}

bool x86_state_equal(const struct x86_state *a, const struct x86_state *b, const char **what)
{
    for (size_t i = 0; i < sizeof plain / sizeof plain[0]; i++) {
        if (memcmp((const char *)a + plain[i].offset, (const char *)b + plain[i].offset,
                   plain[i].size)) {
            *what = plain[i].name;
            return false;
        }
    }
    *what = differing_segment(a, b);
    if (!*what && !same_x87_pointers(&a->fpu, &b->fpu))
        *what = "fpu pointers";
    if (!*what && !same_sysenter(a, b))
        *what = "sysenter registers";
    return !*what;
}
