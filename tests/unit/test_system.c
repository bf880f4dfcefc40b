/*
 * x86 system instructions: control registers' rules, MSRs, CPUID and models, ports, SYSCALL and
 * SYSENTER, interrupt flag, debug registers and exceptions, the state's reset, validation and
 * comparison.
 */
#include "cpu_rig.h"

#include <errno.h>

/* --- control registers --- */

/* mov crN, rax */
static int write_cr(struct rig *r, unsigned n, uint64_t value)
{
    if (n == 8)
        PUT_CODE(r, RIG_CODE, 0x44, 0x0f, 0x22, 0xc0);
    else
        PUT_CODE(r, RIG_CODE, 0x0f, 0x22, (uint8_t)(0xc0 | n << 3));
    r->cpu.s.rip = RIG_CODE;
    r->cpu.s.gpr[X86_RAX] = value;
    return rig_step(r);
}

static void test_cr0_rules(void **state)
{
    struct rig *r = *state;
    uint64_t ok;

    rig_protected(r, 0);
    ok = r->cpu.s.cr0;
    assert_int_equal(write_cr(r, 0, ok & ~(uint64_t)X86_CR0_ET), -1);
    assert_int_equal(r->cpu.s.cr0, ok); /* ET stays one */
    assert_int_equal(write_cr(r, 0, (ok | X86_CR0_PG) & ~X86_CR0_PE), X86_GP);
    assert_int_equal(write_cr(r, 0, ok | X86_CR0_NW), X86_GP);
    assert_int_equal(write_cr(r, 0, ok | X86_CR0_NW | X86_CR0_CD), -1);
    r->cpu.s.efer = X86_EFER_LME;
    assert_int_equal(write_cr(r, 0, ok | X86_CR0_PG), X86_GP); /* LME without PAE */
    rig_long(r, 0);
    assert_int_equal(write_cr(r, 0, r->cpu.s.cr0 | 1ull << 32), X86_GP);
    assert_int_equal(write_cr(r, 0, r->cpu.s.cr0 & ~X86_CR0_PG), X86_GP); /* from 64-bit code */
    rig_protected(r, 3);
    assert_int_equal(write_cr(r, 0, ok), X86_GP);
}

static void test_cr3_cr4_rules(void **state)
{
    struct rig *r = *state;

    rig_long(r, 0);
    assert_int_equal(write_cr(r, 3, RIG_PML4 | 1ull << 46), X86_GP);
    assert_int_equal(write_cr(r, 3, RIG_PML4 | BIT(63)), X86_GP); /* no PCIDE */
    assert_int_equal(write_cr(r, 4, 0), X86_GP);                  /* PAE in long mode */
    assert_int_equal(write_cr(r, 4, X86_CR4_PAE | X86_CR4_VME), X86_GP);
    assert_int_equal(write_cr(r, 4, X86_CR4_PAE | BIT(40)), X86_GP);
    assert_int_equal(write_cr(r, 3, RIG_PML4 | 0x18), -1);
    assert_int_equal(write_cr(r, 4, X86_CR4_PAE | X86_CR4_PCIDE), X86_GP); /* CR3[11:0] */
    assert_int_equal(write_cr(r, 3, RIG_PML4), -1);
    assert_int_equal(write_cr(r, 4, X86_CR4_PAE | X86_CR4_PCIDE), -1);
    assert_int_equal(write_cr(r, 3, RIG_PML4 | 5 | BIT(63)), -1);
    assert_int_equal(r->cpu.s.cr3, RIG_PML4 | 5);
    assert_int_equal(write_cr(r, 8, 16), X86_GP);
    assert_int_equal(write_cr(r, 8, 9), -1);
    assert_int_equal(r->cr8, 9);
    rig_protected(r, 0);
    r->cpu.s.efer = 0;
    r->cpu.s.cr4 = 0;
    x86_cpu_update_mode(&r->cpu);
    assert_int_equal(write_cr(r, 4, X86_CR4_PCIDE), X86_GP); /* not in long mode */
}

static void test_lmsw_cannot_clear_pe(void **state)
{
    struct rig *r = *state;

    rig_protected(r, 0);
    PUT_CODE(r, RIG_CODE, 0x0f, 0x01, 0xf0);
    r->cpu.s.gpr[X86_RAX] = X86_CR0_TS;
    assert_int_equal(rig_step(r), -1);
    assert_int_equal(r->cpu.s.cr0 & 0xf, X86_CR0_PE | X86_CR0_TS);
    PUT_CODE(r, RIG_CODE + 3, 0x0f, 0x06); /* clts */
    assert_int_equal(rig_step(r), -1);
    assert_int_equal(r->cpu.s.cr0 & 0xf, X86_CR0_PE);
}

static void test_descriptor_tables(void **state)
{
    struct rig *r = *state;

    rig_protected(r, 0);
    put16(r, 0x60000, 0x123);
    put32(r, 0x60002, 0xff001000);
    r->cpu.s.gpr[X86_RAX] = 0x60000;
    PUT_CODE(r, RIG_CODE, 0x66, 0x0f, 0x01, 0x10, /* lgdt, 16-bit operand: 24 bits of base */
             0x0f, 0x01, 0x18,                    /* lidt */
             0x0f, 0x01, 0x40, 0x10);             /* sgdt [eax+16] */
    assert_int_equal(rig_step(r), -1);
    assert_int_equal(r->cpu.s.gdtr.base, 0x1000);
    assert_int_equal(r->cpu.s.gdtr.limit, 0x123);
    assert_int_equal(rig_step(r), -1);
    assert_int_equal(r->cpu.s.idtr.base, 0xff001000);
    assert_int_equal(rig_step(r), -1);
    assert_int_equal(get16(r, 0x60010), 0x123);
    assert_int_equal(get32(r, 0x60012), 0x1000);
    rig_long(r, 3); /* UMIP */
    r->cpu.s.rip = RIG_CODE + 7;
    r->cpu.s.gpr[X86_RAX] = 0x60000;
    assert_int_equal(rig_step(r), -1);
    r->cpu.s.rip = RIG_CODE + 7;
    r->cpu.s.cr4 |= X86_CR4_UMIP;
    assert_int_equal(rig_step(r), X86_GP);
}

/* --- MSRs --- */

static void test_msr_rules(void **state)
{
    struct rig *r = *state;
    struct x86_cpu *cpu = &r->cpu;
    uint64_t v;

    rig_long(r, 0);
    assert_false(x86_msr_write(cpu, X86_MSR_LSTAR, 1ull << 47));
    assert_true(x86_msr_write(cpu, X86_MSR_LSTAR, ~0ull << 47));
    assert_true(x86_msr_read(cpu, X86_MSR_LSTAR, &v));
    assert_int_equal(v, ~0ull << 47);
    assert_false(x86_msr_write(cpu, X86_MSR_SFMASK, 1ull << 32));
    assert_false(x86_msr_write(cpu, X86_MSR_EFER, cpu->s.efer & ~X86_EFER_LME)); /* paging is on */
    assert_false(x86_msr_write(cpu, X86_MSR_EFER, cpu->s.efer | BIT(12)));
    assert_true(x86_msr_write(cpu, X86_MSR_EFER, cpu->s.efer & ~(X86_EFER_NXE | X86_EFER_LMA)));
    assert_true(cpu->s.efer & X86_EFER_LMA);
    assert_false(x86_msr_write(cpu, X86_MSR_PAT, 0x0002000000000000));
    assert_true(x86_msr_write(cpu, X86_MSR_PAT, 0x0007010600070106));
    assert_true(x86_msr_write(cpu, X86_MSR_GS_BASE, 0x1000));
    assert_int_equal(cpu->seg_base[X86_GS], 0x1000);
    assert_false(x86_msr_write(cpu, X86_MSR_MCG_CAP, 1));
    assert_true(x86_msr_write(cpu, X86_MSR_UCODE_REV, 1)); /* ignored */
    assert_false(x86_msr_read(cpu, 0x12345, &v));
    assert_true(x86_msr_write(cpu, X86_MSR_MTRR_BASE0 + 3, 0x3ffff0000800));
    assert_int_equal(cpu->s.mtrr_mask[1], 0x3ffff0000800);
    assert_false(x86_msr_write(cpu, X86_MSR_MTRR_BASE0 + 2, 2));
    assert_false(x86_msr_write(cpu, X86_MSR_MTRR_BASE0 + 2, 1ull << 46));
    assert_true(x86_msr_write(cpu, X86_MSR_MTRR_FIX_4K_C0000 + 7, 0x0606060606060606));
    assert_int_equal(cpu->s.mtrr_fixed[10], 0x0606060606060606);
}

static void test_tsc_moves_with_adjust(void **state)
{
    struct rig *r = *state;
    uint64_t v;

    r->tsc = 1000;
    assert_true(x86_msr_write(&r->cpu, X86_MSR_TSC, 5000));
    assert_true(x86_msr_read(&r->cpu, X86_MSR_TSC, &v));
    assert_int_equal(v, 5000);
    assert_int_equal(r->cpu.s.tsc_adjust, 4000);
    assert_true(x86_msr_write(&r->cpu, X86_MSR_TSC_ADJUST, 0));
    assert_true(x86_msr_read(&r->cpu, X86_MSR_TSC, &v));
    assert_int_equal(v, 1000);
}

static void test_rdmsr_faults(void **state)
{
    struct rig *r = *state;

    rig_long(r, 0);
    PUT_CODE(r, RIG_CODE, 0x0f, 0x32);
    r->cpu.s.gpr[X86_RCX] = 0x12345;
    assert_int_equal(rig_step(r), X86_GP);
    r->cpu.s.gpr[X86_RCX] = X86_MSR_STAR;
    r->cpu.s.star = 0x1122334455667788;
    assert_int_equal(rig_step(r), -1);
    assert_int_equal(r->cpu.s.gpr[X86_RAX], 0x55667788);
    assert_int_equal(r->cpu.s.gpr[X86_RDX], 0x11223344);
    rig_long(r, 3);
    r->cpu.s.gpr[X86_RCX] = X86_MSR_STAR;
    assert_int_equal(rig_step(r), X86_GP);
    PUT_CODE(r, RIG_CODE, 0x0f, 0x31); /* rdtsc */
    assert_int_equal(rig_step(r), -1);
    r->cpu.s.rip = RIG_CODE;
    r->cpu.s.cr4 |= X86_CR4_TSD;
    assert_int_equal(rig_step(r), X86_GP);
}

/* --- CPUID --- */

static void test_models(void **state)
{
    struct x86_features all, out;
    struct err err;

    (void)state;
    memset(&all, 0xff, sizeof all);
    assert_int_equal(x86_cpu_model("v2", &all, &out, &err), 0);
    assert_true(x86_has(&out, X86_FEATURE_SSE42));
    assert_false(x86_has(&out, X86_FEATURE_AVX));
    assert_int_equal(x86_cpu_model("v3", &all, &out, &err), 0);
    assert_true(x86_has(&out, X86_FEATURE_AVX2));
    x86_feature_set(&all, X86_FEATURE_AVX2, false);
    assert_int_equal(x86_cpu_model("v3", &all, &out, &err), -ENOTSUP);
    assert_non_null(strstr(err.text, "avx2"));
    assert_int_equal(x86_cpu_model("host", &all, &out, &err), 0);
    assert_memory_equal(&all, &out, sizeof all);
    assert_int_equal(x86_cpu_model("v9", &all, &out, &err), -EINVAL);
    assert_non_null(strstr(err.text, "v9"));
}

static void test_cpuid_answers(void **state)
{
    struct rig *r = *state;
    struct x86_cpuid_context c = {.apic_id = 3, .xcr0 = 1, .apic_base = X86_APIC_BASE_ENABLE};
    uint32_t out[4];

    x86_cpuid_query(&r->cpuid, &c, 0, 0, out);
    assert_int_equal(out[0], 0xd);
    assert_memory_equal(&out[1], "Auth", 4);
    assert_memory_equal(&out[3], "enti", 4);
    assert_memory_equal(&out[2], "cAMD", 4);
    x86_cpuid_query(&r->cpuid, &c, 1, 0, out);
    assert_int_equal(out[0] >> 8 & 0xf, 0xf); /* family */
    assert_int_equal(out[1] >> 24, 3);
    assert_int_equal(out[2] & BIT(27), 0);
    assert_true(out[3] & BIT(9));
    c.cr4 = X86_CR4_OSXSAVE;
    c.apic_base = 0;
    x86_cpuid_query(&r->cpuid, &c, 1, 0, out);
    assert_true(out[2] & BIT(27));
    assert_int_equal(out[3] & BIT(9), 0);
    x86_cpuid_query(&r->cpuid, &c, 0xb, 1, out);
    assert_int_equal(out[0], 2); /* 4 cores */
    assert_int_equal(out[1], 4);
    assert_int_equal(out[3], 3);
    x86_cpuid_query(&r->cpuid, &c, 0xd, 0, out);
    assert_int_equal(out[0], 7);
    assert_int_equal(out[1], 576);
    assert_int_equal(out[2], 832);
    c.xcr0 = 7;
    x86_cpuid_query(&r->cpuid, &c, 0xd, 0, out);
    assert_int_equal(out[1], 832);
    x86_cpuid_query(&r->cpuid, &c, 0x40000000, 0, out);
    assert_memory_equal(&out[1], "KVMKVMKVM\0\0\0", 12);
    x86_cpuid_query(&r->cpuid, &c, 0x40000001, 0, out);
    assert_int_equal(out[0], BIT(0) | BIT(3) | BIT(24));
    x86_cpuid_query(&r->cpuid, &c, 0x40000010, 0, out);
    assert_int_equal(out[0], 1000000);
    x86_cpuid_query(&r->cpuid, &c, 0x80000008, 0, out);
    assert_int_equal(out[0], 46 | 48 << 8);
    assert_int_equal(out[2], 3 | 2 << 12);
    x86_cpuid_query(&r->cpuid, &c, 0x12345678, 0, out);
    assert_int_equal(out[0] | out[1] | out[2] | out[3], 0);
    assert_true(r->cpuid.count <= X86_CPUID_ENTRIES_MAX);
}

/* --- ports --- */

static void test_io_permission(void **state)
{
    struct rig *r = *state;

    rig_protected(r, 3);
    PUT_CODE(r, RIG_CODE, 0xed); /* in eax, dx */
    r->cpu.s.gpr[X86_RDX] = 0x3f8;
    r->cpu.s.tr.limit = 0x200;
    put16(r, RIG_TSS + 102, 0x68);
    memset(r->ram + RIG_TSS + 0x68, 0xff, 0x100);
    assert_int_equal(rig_step(r), X86_GP);
    r->ram[RIG_TSS + 0x68 + 0x3f8 / 8] = 0xf0; /* 3f8-3fb */
    assert_int_equal(rig_step(r), -1);
    assert_int_equal(r->cpu.s.gpr[X86_RAX], 0xa1b2c3d4);
    assert_int_equal(r->pio_port, 0x3f8);
    r->cpu.s.rip = RIG_CODE;
    r->cpu.s.gpr[X86_RDX] = 0x3f9; /* the last of four is not permitted */
    assert_int_equal(rig_step(r), X86_GP);
    r->cpu.s.tr.limit = 0x68 + 0x3f8 / 8; /* both bytes must be inside */
    r->cpu.s.gpr[X86_RDX] = 0x3f8;
    assert_int_equal(rig_step(r), X86_GP);
    r->cpu.s.rflags |= X86_IOPL;
    assert_int_equal(rig_step(r), -1);
    rig_protected(r, 0);
    PUT_CODE(r, RIG_CODE, 0xe6, 0x80); /* out 80h, al */
    r->cpu.s.gpr[X86_RAX] = 0x1234;
    assert_int_equal(rig_step(r), -1);
    assert_int_equal(r->pio_port, 0x80);
    assert_int_equal(r->pio_value, 0x34);
}

/* --- fast system calls --- */

static void test_syscall_sysret(void **state)
{
    struct rig *r = *state;
    struct x86_state *s = &r->cpu.s;

    rig_long(r, 3);
    s->star = 0x0023001000000000;
    s->lstar = 0x21000;
    s->sfmask = X86_IF | X86_TF;
    s->rflags = X86_FIXED | X86_IF | X86_CF;
    PUT_CODE(r, RIG_CODE, 0x0f, 0x05);
    PUT_CODE(r, 0x21000, 0x48, 0x0f, 0x07);
    assert_int_equal(rig_step(r), -1);
    assert_int_equal(s->rip, 0x21000);
    assert_int_equal(r->cpu.cpl, 0);
    assert_int_equal(s->gpr[X86_RCX], RIG_CODE + 2);
    assert_int_equal(s->gpr[X86_R11], X86_FIXED | X86_IF | X86_CF);
    assert_int_equal(s->rflags, X86_FIXED | X86_CF);
    assert_int_equal(s->seg[X86_CS].selector, 0x10);
    assert_int_equal(s->seg[X86_SS].selector, 0x18);
    assert_int_equal(rig_step(r), -1);
    assert_int_equal(s->rip, RIG_CODE + 2);
    assert_int_equal(r->cpu.cpl, 3);
    assert_int_equal(r->cpu.code_size, 8);
    assert_int_equal(s->seg[X86_CS].selector, 0x33);
    assert_int_equal(s->seg[X86_SS].selector, 0x2b);
    assert_int_equal(s->rflags, X86_FIXED | X86_IF | X86_CF);
    s->efer &= ~X86_EFER_SCE;
    s->rip = RIG_CODE;
    assert_int_equal(rig_step(r), X86_UD);
    PUT_CODE(r, RIG_CODE, 0x0f, 0x34); /* sysenter in long mode: #UD on AMD */
    assert_int_equal(rig_step(r), X86_UD);
}

static void test_sysenter_sysexit(void **state)
{
    struct rig *r = *state;
    struct x86_state *s = &r->cpu.s;

    rig_protected(r, 3);
    PUT_CODE(r, RIG_CODE, 0x0f, 0x34);
    PUT_CODE(r, 0x21000, 0x0f, 0x35);
    assert_int_equal(rig_step(r), X86_GP); /* SYSENTER_CS is null */
    s->sysenter_cs = SEL_CODE0;
    s->sysenter_esp = 0x38000;
    s->sysenter_eip = 0x21000;
    assert_int_equal(rig_step(r), -1);
    assert_int_equal(r->cpu.cpl, 0);
    assert_int_equal(s->gpr[X86_RSP], 0x38000);
    s->gpr[X86_RCX] = 0x7000;
    s->gpr[X86_RDX] = 0x8000;
    assert_int_equal(rig_step(r), -1);
    assert_int_equal(r->cpu.cpl, 3);
    assert_int_equal(s->rip, 0x8000);
    assert_int_equal(s->gpr[X86_RSP], 0x7000);
    assert_int_equal(s->seg[X86_CS].selector, SEL_CODE3);
}

/* --- interrupt flag --- */

static void test_sti_shadow(void **state)
{
    struct rig *r = *state;

    rig_protected(r, 0);
    PUT_CODE(r, RIG_CODE, 0xfb, 0xfb, 0x90, 0xfa);
    assert_int_equal(rig_step(r), -1);
    assert_true(r->cpu.s.interrupt_shadow);
    assert_int_equal(rig_step(r), -1);
    assert_false(r->cpu.s.interrupt_shadow); /* IF was set already */
    rig_protected(r, 3);
    assert_int_equal(rig_step(r), X86_GP);
    r->cpu.s.rflags |= X86_IOPL;
    assert_int_equal(rig_step(r), -1);
}

static void test_smap_and_stac(void **state)
{
    struct rig *r = *state;

    rig_long(r, 0);
    r->cpu.s.cr4 |= X86_CR4_SMAP;
    put64(r, RIG_PML4 + 0x2008, 0x200083); /* 2-4 MiB: the kernel's */
    x86_tlb_flush(&r->cpu, false);
    x86_cpu_update_mode(&r->cpu);
    assert_int_equal(RIG_TRY(r, x86_load(&r->cpu, 0x1000, 8)), X86_PF_FAULT);
    memcpy(r->ram + 0x220000, (const uint8_t[]) {0x0f, 0x01, 0xcb, 0x0f, 0x01, 0xca}, 6);
    r->cpu.s.rip = 0x220000;
    assert_int_equal(rig_step(r), -1);
    assert_int_equal(RIG_TRY(r, x86_load(&r->cpu, 0x1000, 8)), -1);
    assert_int_equal(rig_step(r), -1);
    assert_int_equal(RIG_TRY(r, x86_load(&r->cpu, 0x1000, 8)), X86_PF_FAULT);
}

/* --- debug --- */

static void test_single_step(void **state)
{
    struct rig *r = *state;

    rig_protected(r, 0);
    PUT_CODE(r, RIG_CODE, 0x90, 0x90);
    r->cpu.s.rflags |= X86_TF;
    x86_cpu_update_mode(&r->cpu);
    assert_int_equal(rig_step(r), X86_DB);
    assert_int_equal(r->cpu.s.rip, RIG_CODE + 1);
    assert_int_equal(r->cpu.fault.payload, BIT(14));
}

static void test_popf_steps_after_the_next(void **state)
{
    struct rig *r = *state;

    rig_protected(r, 0);
    PUT_CODE(r, RIG_CODE, 0x9d, 0x90); /* popf; nop */
    put32(r, RIG_STACK, X86_FIXED | X86_TF);
    assert_int_equal(rig_step(r), -1);
    assert_int_equal(rig_step(r), X86_DB);
    assert_int_equal(r->cpu.s.rip, RIG_CODE + 2);
}

/* mov drN, eax */
static int write_dr(struct rig *r, unsigned n, uint32_t value)
{
    PUT_CODE(r, RIG_CODE, 0x0f, 0x23, (uint8_t)(0xc0 | n << 3));
    r->cpu.s.rip = RIG_CODE;
    r->cpu.s.gpr[X86_RAX] = value;
    return rig_step(r);
}

static void test_data_breakpoint(void **state)
{
    struct rig *r = *state;

    rig_protected(r, 0);
    x86_store(&r->cpu, 0x60004, 4, 1); /* a fast entry that the watch must drop */
    assert_int_equal(write_dr(r, 1, 0x60004), -1);
    assert_int_equal(write_dr(r, 7, 1u << 3 | 0xdu << 20), -1); /* G1, write, 4 bytes */
    PUT_CODE(r, RIG_CODE, 0x89, 0x03, 0x8b, 0x03);              /* mov [ebx], eax; mov eax, [ebx] */
    r->cpu.s.rip = RIG_CODE;
    r->cpu.s.gpr[X86_RBX] = 0x60006;
    r->cpu.s.gpr[X86_RAX] = 77;
    assert_int_equal(rig_step(r), X86_DB);
    assert_int_equal(r->cpu.fault.payload, BIT(1));
    assert_int_equal(r->cpu.s.rip, RIG_CODE + 2);
    assert_int_equal(get32(r, 0x60006), 77);
    assert_int_equal(rig_step(r), -1); /* a read does not hit */
    r->cpu.s.rip = RIG_CODE;
    r->cpu.s.gpr[X86_RBX] = 0x60008;
    assert_int_equal(rig_step(r), -1);
}

static void test_code_breakpoint_and_rf(void **state)
{
    struct rig *r = *state;

    rig_protected(r, 0);
    r->cpu.s.dr[0] = RIG_CODE;
    r->cpu.s.dr7 = 0x401;
    PUT_CODE(r, RIG_CODE, 0x90, 0xeb, 0xfd); /* nop; jmp back */
    x86_cpu_update_mode(&r->cpu);
    assert_int_equal(rig_step(r), X86_DB);
    assert_int_equal(r->cpu.s.rip, RIG_CODE);
    r->cpu.s.rflags |= X86_RF; /* as the handler's IRET would set it */
    assert_int_equal(rig_step(r), -1);
    assert_false(r->cpu.s.rflags & X86_RF);
    assert_int_equal(rig_step(r), -1);
    assert_int_equal(rig_step(r), X86_DB);

    r->cpu.s.interrupt_shadow = r->cpu.s.shadow_is_mov_ss = true; /* MOV SS masks it */
    assert_int_equal(rig_step(r), -1);
}

static void test_iret_sets_rf_for_one(void **state)
{
    struct rig *r = *state;

    rig_protected(r, 0);
    r->cpu.s.dr[0] = 0x21000;
    r->cpu.s.dr7 = 0x401;
    x86_cpu_update_mode(&r->cpu);
    PUT_CODE(r, RIG_CODE, 0xcf);
    PUT_CODE(r, 0x21000, 0x90);
    put32(r, RIG_STACK, 0x21000);
    put32(r, RIG_STACK + 4, SEL_CODE0);
    put32(r, RIG_STACK + 8, X86_FIXED | X86_RF);
    assert_int_equal(rig_step(r), -1);
    assert_true(r->cpu.s.rflags & X86_RF);
    assert_int_equal(rig_step(r), -1);
    assert_false(r->cpu.s.rflags & X86_RF);
}

static void test_io_breakpoint_and_general_detect(void **state)
{
    struct rig *r = *state;

    rig_protected(r, 0);
    r->cpu.s.cr4 |= X86_CR4_DE;
    r->cpu.s.dr[2] = 0x80;
    r->cpu.s.dr7 = 0x400 | 1u << 4 | 2u << 24;
    x86_cpu_update_mode(&r->cpu);
    PUT_CODE(r, RIG_CODE, 0xe6, 0x80, 0xe6, 0x81);
    assert_int_equal(rig_step(r), X86_DB);
    assert_int_equal(r->cpu.fault.payload, BIT(2));
    assert_int_equal(rig_step(r), -1);

    r->cpu.s.dr7 |= BIT(13);
    assert_int_equal(write_dr(r, 0, 5), X86_DB);
    assert_int_equal(r->cpu.fault.payload, BIT(13));
    assert_int_equal(r->cpu.s.rip, RIG_CODE);
    r->cpu.s.dr7 = 0x400;
    assert_int_equal(write_dr(r, 4, 5), X86_UD); /* DE: no alias */
}

static void test_debug_registers(void **state)
{
    struct rig *r = *state;

    rig_protected(r, 0);
    assert_int_equal(write_dr(r, 6, 0), -1);
    assert_int_equal(r->cpu.s.dr6, 0xffff0ff0);
    assert_int_equal(write_dr(r, 5, 0xffffffff), -1); /* DR7's alias, CR4.DE clear */
    assert_int_equal(r->cpu.s.dr7, 0xffff27ff);
}

/* --- the state --- */

static void test_reset_state(void **state)
{
    struct rig *r = *state;
    struct x86_state s, t;
    const char *what;

    x86_state_reset(&s, 2, false);
    assert_null(x86_state_validate(&s));
    assert_int_equal(s.seg[X86_CS].base + s.rip, 0xfffffff0);
    assert_int_equal(s.mp_state, X86_MP_WAIT_SIPI);
    assert_int_equal(s.cr0, 0x60000010);
    t = r->cpu.s;
    t.mtrr_base[0] = 6;
    t.cr0 = X86_CR0_PE | X86_CR0_ET;
    t.xcr0 = 7;
    x86_state_init(&t);
    assert_int_equal(t.cr0, X86_CR0_ET);
    assert_int_equal(t.mtrr_base[0], 6);
    assert_int_equal(t.xcr0, 7);
    assert_int_equal(t.mp_state, X86_MP_RUNNABLE); /* the BSP */
    x86_cpu_set_state(&r->cpu, &t);
    x86_cpu_get_state(&r->cpu, &s);
    assert_true(x86_state_equal(&s, &t, &what));
}

static void test_validation(void **state)
{
    struct rig *r = *state;
    struct x86_state good, s;

    rig_long(r, 0);
    r->cpu.s.rflags = X86_FIXED;
    good = r->cpu.s;
    assert_null(x86_state_validate(&good));
#define BAD(change, name)                                                                          \
    do {                                                                                           \
        s = good;                                                                                  \
        change;                                                                                    \
        assert_string_equal(x86_state_validate(&s), name);                                         \
    } while (0)
    BAD(s.cr0 &= ~X86_CR0_PE, "cr0");
    BAD(s.cr4 &= ~X86_CR4_PAE, "cr4");
    BAD(s.efer &= ~X86_EFER_LMA, "efer");
    BAD(s.cr4 |= BIT(31), "cr4");
    BAD(s.xcr0 = 5, "xcr0");
    BAD(s.lstar = 1ull << 60, "syscall registers");
    BAD(s.gdtr.base = 1ull << 60, "gdtr");
    BAD(s.seg[X86_CS].attr = 0, "cs");
    BAD(s.seg[X86_DS].attr |= 0x100, "ds");
    BAD(s.seg[X86_DS].limit = 0xfffff000, "ds");
    BAD(s.rflags = 0, "rflags");
    BAD(s.rflags |= X86_VM, "rflags");
    BAD(s.apic_base |= 1, "apic_base");
    BAD(s.apic_base = X86_APIC_BASE_X2APIC, "apic_base");
    BAD(s.mp_state = 9, "mp_state");
    BAD(s.pending.kind = 99, "pending event");
    BAD(s.pdptr[1] = BIT(60) | X86_PTE_P, "pdptr");
}

/* What a guest has MOV CR3 load must not make its saved state a bad one: those that are not present
 * may hold anything. */
static void test_validation_of_pdptrs_that_are_not_present(void **state)
{
    struct rig *r = *state;

    rig_long(r, 0);
    r->cpu.s.rflags = X86_FIXED;
    r->cpu.s.pdptr[1] = ~0ull << 1;
    assert_null(x86_state_validate(&r->cpu.s));
}

static void test_comparison(void **state)
{
    struct rig *r = *state;
    struct x86_state a, b;
    const char *what = NULL;

    rig_long(r, 0);
    a = b = r->cpu.s;
    b.fpu.fip = 1; /* no exception pending: not seen */
    b.seg[X86_ES].attr = a.seg[X86_ES].attr = 0;
    b.seg[X86_ES].limit = 1;
    assert_true(x86_state_equal(&a, &b, &what));
    a.fpu.fsw = b.fpu.fsw = 1;
    a.fpu.fcw = b.fpu.fcw = 0;
    assert_false(x86_state_equal(&a, &b, &what));
    assert_string_equal(what, "fpu pointers");
    b = a;
    b.seg[X86_GS].base = 1;
    assert_false(x86_state_equal(&a, &b, &what));
    assert_string_equal(what, "gs");
    b = a;
    b.lapic.irr[3] = 1;
    assert_false(x86_state_equal(&a, &b, &what));
    assert_string_equal(what, "lapic.irr");
}

int main(void)
{
#define RIG_TEST(f) cmocka_unit_test_setup_teardown(f, rig_setup, rig_teardown)
    const struct CMUnitTest tests[] = {
        RIG_TEST(test_cr0_rules),
        RIG_TEST(test_cr3_cr4_rules),
        RIG_TEST(test_lmsw_cannot_clear_pe),
        RIG_TEST(test_descriptor_tables),
        RIG_TEST(test_msr_rules),
        RIG_TEST(test_tsc_moves_with_adjust),
        RIG_TEST(test_rdmsr_faults),
        cmocka_unit_test(test_models),
        RIG_TEST(test_cpuid_answers),
        RIG_TEST(test_io_permission),
        RIG_TEST(test_syscall_sysret),
        RIG_TEST(test_sysenter_sysexit),
        RIG_TEST(test_sti_shadow),
        RIG_TEST(test_smap_and_stac),
        RIG_TEST(test_single_step),
        RIG_TEST(test_popf_steps_after_the_next),
        RIG_TEST(test_data_breakpoint),
        RIG_TEST(test_code_breakpoint_and_rf),
        RIG_TEST(test_iret_sets_rf_for_one),
        RIG_TEST(test_io_breakpoint_and_general_detect),
        RIG_TEST(test_debug_registers),
        RIG_TEST(test_reset_state),
        RIG_TEST(test_validation),
        RIG_TEST(test_validation_of_pdptrs_that_are_not_present),
        RIG_TEST(test_comparison),
    };
    return cmocka_run_group_tests_name("system", tests, NULL, NULL);
}
