/*
 * x86 segmentation: loads of segment registers with each check that can fail, limits and types of
 * accesses, far transfers, call gates, the inspecting instructions, LDTR and TR, hardware tasks
 * (SDM vol. 3 chapters 3, 5 and 7).
 */
#include "cpu_rig.h"

#include "x86/segment.h"

#define INNER 0x38000u

/* --- loads --- */

static int load(struct rig *r, unsigned seg, uint16_t selector)
{
    return RIG_TRY(r, x86_load_segment(&r->cpu, seg, selector));
}

static void check_fault(struct rig *r, int vector, int expected, uint32_t error)
{
    assert_int_equal(vector, expected);
    assert_int_equal(r->cpu.fault.error, error);
}

static void test_data_loads(void **state)
{
    struct rig *r = *state;

    rig_protected(r, 3);
    assert_int_equal(load(r, X86_DS, SEL_DATA3), -1);
    assert_int_equal(r->cpu.s.seg[X86_DS].attr, 0xc0f3);                        /* accessed */
    assert_int_equal(get64(r, RIG_GDT + (SEL_DATA3 & ~7u)) >> 40 & 0xff, 0xf3); /* in memory too */
    assert_int_equal(load(r, X86_ES, 0), -1);
    assert_int_equal(r->cpu.s.seg[X86_ES].attr, 0);
    assert_int_equal(RIG_TRY(r, x86_linear(&r->cpu, X86_ES, 0, 1, X86_READ)), X86_GP);

    check_fault(r, load(r, X86_DS, SEL_DATA0), X86_GP, SEL_DATA0);     /* CPL > DPL */
    check_fault(r, load(r, X86_DS, SEL_DATA0 | 3), X86_GP, SEL_DATA0); /* RPL > DPL */
    check_fault(r, load(r, X86_DS, 0x100), X86_GP, 0x100);             /* beyond the GDT */
    check_fault(r, load(r, X86_DS, 0x0c), X86_GP, 0x0c);               /* no LDT */
    check_fault(r, load(r, X86_DS, SEL_TSS), X86_GP, SEL_TSS);         /* a system segment */
    put_descriptor(r, SEL_FREE, descriptor(0, 0xfffff, 0xc0f8));       /* execute-only */
    check_fault(r, load(r, X86_DS, SEL_FREE), X86_GP, SEL_FREE);
    put_descriptor(r, SEL_FREE, descriptor(0, 0xfffff, 0xc072)); /* not present */
    check_fault(r, load(r, X86_DS, SEL_FREE | 3), X86_NP, SEL_FREE);
    put_descriptor(r, SEL_FREE, descriptor(0, 0xfffff, 0xc09e)); /* conforming, readable, DPL 0 */
    assert_int_equal(load(r, X86_DS, SEL_FREE | 3), -1);
}

static void test_stack_loads(void **state)
{
    struct rig *r = *state;

    rig_protected(r, 0);
    r->cpu.s.interrupt_shadow = false;
    assert_int_equal(load(r, X86_SS, SEL_DATA0), -1);
    assert_true(r->cpu.s.interrupt_shadow);
    assert_true(r->cpu.s.shadow_is_mov_ss);
    check_fault(r, load(r, X86_SS, 0), X86_GP, 0);
    check_fault(r, load(r, X86_SS, SEL_DATA3), X86_GP, SEL_DATA3 & ~3u);       /* RPL */
    check_fault(r, load(r, X86_SS, SEL_DATA3 & ~3u), X86_GP, SEL_DATA3 & ~3u); /* DPL */
    check_fault(r, load(r, X86_SS, SEL_DATA0 | 1), X86_GP, SEL_DATA0);
    check_fault(r, load(r, X86_SS, SEL_CODE0), X86_GP, SEL_CODE0);
    put_descriptor(r, SEL_FREE, descriptor(0, 0xfffff, 0xc090)); /* read-only */
    check_fault(r, load(r, X86_SS, SEL_FREE), X86_GP, SEL_FREE);
    put_descriptor(r, SEL_FREE, descriptor(0, 0xfffff, 0xc012));
    check_fault(r, load(r, X86_SS, SEL_FREE), X86_SS_FAULT, SEL_FREE);
    rig_long(r, 0);
    assert_int_equal(load(r, X86_SS, 0), -1);
    check_fault(r, load(r, X86_SS, 3), X86_GP, 0);
    rig_long(r, 3);
    check_fault(r, load(r, X86_SS, 3), X86_GP, 0);
}

static void test_limits_and_types(void **state)
{
    struct rig *r = *state;
    struct x86_segment *ds = &r->cpu.s.seg[X86_DS], *ss = &r->cpu.s.seg[X86_SS];

    rig_protected(r, 0);
    *ds = (struct x86_segment) {.base = 0x1000, .limit = 0xff, .selector = 8, .attr = 0x4093};
    *ss = (struct x86_segment) {.base = 0, .limit = 0xfff, .selector = 8, .attr = 0x4097};
    x86_cpu_update_mode(&r->cpu);
    assert_int_equal(x86_linear(&r->cpu, X86_DS, 0xfc, 4, X86_WRITE), 0x10fc);
    check_fault(r, RIG_TRY(r, x86_linear(&r->cpu, X86_DS, 0xfd, 4, X86_READ)), X86_GP, 0);
    /* expand-down: only above the limit */
    assert_int_equal(x86_linear(&r->cpu, X86_SS, 0x1000, 4, X86_WRITE), 0x1000);
    check_fault(r, RIG_TRY(r, x86_linear(&r->cpu, X86_SS, 0xfff, 4, X86_WRITE)), X86_SS_FAULT, 0);
    check_fault(r, RIG_TRY(r, x86_linear(&r->cpu, X86_SS, 0xfffffffe, 4, X86_READ)), X86_SS_FAULT,
                0);
    ss->attr = 0x97; /* 16-bit: up to ffff */
    x86_cpu_update_mode(&r->cpu);
    check_fault(r, RIG_TRY(r, x86_linear(&r->cpu, X86_SS, 0xfffe, 4, X86_READ)), X86_SS_FAULT, 0);
    *ds = flat(8, 0xc091); /* read-only */
    x86_cpu_update_mode(&r->cpu);
    assert_int_equal(x86_linear(&r->cpu, X86_DS, 8, 4, X86_READ), 8);
    check_fault(r, RIG_TRY(r, x86_linear(&r->cpu, X86_DS, 8, 4, X86_WRITE)), X86_GP, 0);
    check_fault(r, RIG_TRY(r, x86_linear(&r->cpu, X86_CS, 8, 4, X86_WRITE)), X86_GP, 0);
    assert_int_equal(x86_linear(&r->cpu, X86_CS, 8, 4, X86_READ), 8);
    r->cpu.s.seg[X86_CS].attr = 0xc099; /* execute-only */
    x86_cpu_update_mode(&r->cpu);
    check_fault(r, RIG_TRY(r, x86_linear(&r->cpu, X86_CS, 8, 4, X86_READ)), X86_GP, 0);
}

static void test_real_mode_limits(void **state)
{
    struct rig *r = *state;

    assert_int_equal(load(r, X86_DS, 0x1234), -1);
    assert_int_equal(r->cpu.s.seg[X86_DS].base, 0x12340);
    assert_int_equal(x86_linear(&r->cpu, X86_DS, 0xfffc, 4, X86_WRITE), 0x2233c);
    check_fault(r, RIG_TRY(r, x86_linear(&r->cpu, X86_DS, 0xfffd, 4, X86_WRITE)), X86_GP, 0);
    r->cpu.s.seg[X86_DS].limit = UINT32_MAX; /* "big real mode": a load keeps the limit */
    assert_int_equal(load(r, X86_DS, 0x10), -1);
    assert_int_equal(x86_linear(&r->cpu, X86_DS, 0x200000, 4, X86_WRITE), 0x200100);
}

/* --- far transfers --- */

/* jmp or call far ptr in 32-bit code */
static int far_pointer(struct rig *r, uint8_t opcode, uint16_t selector, uint32_t offset)
{
    PUT_CODE(r, RIG_CODE, opcode, 0, 0, 0, 0, 0, 0);
    put32(r, RIG_CODE + 1, offset);
    put16(r, RIG_CODE + 5, selector);
    r->cpu.s.rip = RIG_CODE;
    return rig_step(r);
}

#define JMP_FAR  0xea
#define CALL_FAR 0x9a

static void test_far_jump_checks(void **state)
{
    struct rig *r = *state;

    rig_protected(r, 0);
    assert_int_equal(far_pointer(r, JMP_FAR, SEL_CODE0, 0x1234), -1);
    assert_int_equal(r->cpu.s.rip, 0x1234);
    check_fault(r, far_pointer(r, JMP_FAR, 0, 0), X86_GP, 0);
    check_fault(r, far_pointer(r, JMP_FAR, SEL_DATA0, 0), X86_GP, SEL_DATA0);
    check_fault(r, far_pointer(r, JMP_FAR, SEL_CODE3, 0), X86_GP, SEL_CODE3 & ~3u);
    check_fault(r, far_pointer(r, JMP_FAR, SEL_CODE0 | 3, 0), X86_GP, SEL_CODE0);
    put_descriptor(r, SEL_FREE, descriptor(0, 0xfffff, 0xc01a));
    check_fault(r, far_pointer(r, JMP_FAR, SEL_FREE, 0), X86_NP, SEL_FREE);
    put_descriptor(r, SEL_FREE, descriptor(0, 0x0ff, 0x409a));
    check_fault(r, far_pointer(r, JMP_FAR, SEL_FREE, 0x100), X86_GP, 0);
    assert_int_equal(r->cpu.s.seg[X86_CS].selector, SEL_CODE0);

    rig_protected(r, 3); /* conforming code of ring 0 runs at the caller's level */
    put_descriptor(r, SEL_FREE, descriptor(0, 0xfffff, 0xc09e));
    assert_int_equal(far_pointer(r, JMP_FAR, SEL_FREE, 0x1234), -1);
    assert_int_equal(r->cpu.s.seg[X86_CS].selector, SEL_FREE | 3);
    assert_int_equal(r->cpu.cpl, 3);
}

static void test_real_to_long_mode(void **state)
{
    struct rig *r = *state;
    struct x86_cpu *cpu = &r->cpu;

    rig_long(r, 0); /* for its tables; then from the start */
    x86_state_reset(&cpu->s, 0, true);
    r->cpu.s.gdtr = (struct x86_table_register) {.base = RIG_GDT, .limit = 0xff};
    cpu->s.seg[X86_CS] =
        (struct x86_segment) {.base = RIG_CODE, .limit = 0xffff, .selector = 0x2000, .attr = 0x9b};
    cpu->s.rip = 0;
    cpu->s.gpr[X86_RAX] = X86_CR4_PAE;
    cpu->s.gpr[X86_RBX] = RIG_PML4;
    cpu->s.gpr[X86_RCX] = X86_MSR_EFER;
    cpu->s.gpr[X86_RSI] = X86_CR0_PE | X86_CR0_PG | X86_CR0_ET;
    x86_cpu_update_mode(cpu);
    PUT_CODE(r, RIG_CODE, 0x0f, 0x22, 0xe0,          /* mov cr4, eax */
             0x0f, 0x22, 0xdb,                       /* mov cr3, ebx */
             0x66, 0xb8, 0x00, 0x01, 0, 0,           /* mov eax, LME */
             0x31, 0xd2, 0x0f, 0x30,                 /* xor dx, dx; wrmsr */
             0x0f, 0x22, 0xc6,                       /* mov cr0, esi */
             0x66, 0xea, 0, 0, 2, 0, SEL_CODE64, 0); /* jmp far */
    cpu->s.gpr[X86_RDX] = 0;
    for (unsigned i = 0; i < 6; i++)
        assert_int_equal(rig_step(r), -1);
    assert_true(cpu->s.efer & X86_EFER_LMA);
    assert_int_equal(cpu->code_size, 2); /* compatibility mode until the jump */
    assert_int_equal(rig_step(r), -1);
    assert_int_equal(cpu->code_size, 8);
    assert_int_equal(cpu->s.rip, 0x20000);
    assert_null(x86_state_validate(&cpu->s));
}

static void put_call_gate(struct rig *r, uint16_t at, uint16_t selector, uint32_t offset,
                          uint8_t attr, unsigned count)
{
    put_descriptor(r, at,
                   (offset & 0xffff) | (uint64_t)selector << 16 | (uint64_t)count << 32 |
                       (uint64_t)attr << 40 | (uint64_t)(offset >> 16) << 48);
}

static void test_call_gate_inner(void **state)
{
    struct rig *r = *state;

    rig_protected(r, 3);
    put32(r, RIG_TSS + 4, INNER);
    put16(r, RIG_TSS + 8, SEL_DATA0);
    put_call_gate(r, SEL_FREE, SEL_CODE0, 0x21000, 0xec, 2);
    put32(r, RIG_STACK - 8, 0x11);
    put32(r, RIG_STACK - 4, 0x22);
    r->cpu.s.gpr[X86_RSP] = RIG_STACK - 8;
    assert_int_equal(far_pointer(r, CALL_FAR, SEL_FREE | 3, 0xdead), -1);
    assert_int_equal(r->cpu.cpl, 0);
    assert_int_equal(r->cpu.s.rip, 0x21000);
    assert_int_equal(r->cpu.s.gpr[X86_RSP], INNER - 24);
    assert_int_equal(get32(r, INNER - 4), SEL_DATA3);
    assert_int_equal(get32(r, INNER - 8), RIG_STACK - 8);
    assert_int_equal(get32(r, INNER - 12), 0x22);
    assert_int_equal(get32(r, INNER - 16), 0x11);
    assert_int_equal(get32(r, INNER - 20), SEL_CODE3);
    assert_int_equal(get32(r, INNER - 24), RIG_CODE + 7);

    PUT_CODE(r, 0x21000, 0xca, 8, 0); /* retf 8: drops the parameters on both stacks */
    assert_int_equal(rig_step(r), -1);
    assert_int_equal(r->cpu.cpl, 3);
    assert_int_equal(r->cpu.s.gpr[X86_RSP], RIG_STACK);
    assert_int_equal(r->cpu.s.rip, RIG_CODE + 7);
}

static void test_call_gate_checks(void **state)
{
    struct rig *r = *state;

    rig_protected(r, 3);
    put32(r, RIG_TSS + 4, INNER);
    put16(r, RIG_TSS + 8, SEL_DATA0);
    put_call_gate(r, SEL_FREE, SEL_CODE0, 0x21000, 0x8c, 0); /* DPL 0 */
    check_fault(r, far_pointer(r, CALL_FAR, SEL_FREE | 3, 0), X86_GP, SEL_FREE);
    put_call_gate(r, SEL_FREE, SEL_CODE0, 0x21000, 0x6c, 0); /* not present */
    check_fault(r, far_pointer(r, CALL_FAR, SEL_FREE | 3, 0), X86_NP, SEL_FREE);
    put_call_gate(r, SEL_FREE, SEL_DATA0, 0x21000, 0xec, 0);
    check_fault(r, far_pointer(r, CALL_FAR, SEL_FREE | 3, 0), X86_GP, SEL_DATA0);
    put_call_gate(r, SEL_FREE, 0, 0x21000, 0xec, 0);
    check_fault(r, far_pointer(r, CALL_FAR, SEL_FREE | 3, 0), X86_GP, 0);
    put_call_gate(r, SEL_FREE, SEL_CODE0, 0x21000, 0xec, 0);
    check_fault(r, far_pointer(r, JMP_FAR, SEL_FREE | 3, 0), X86_GP, SEL_CODE0);
    put16(r, RIG_TSS + 8, 0);
    check_fault(r, far_pointer(r, CALL_FAR, SEL_FREE | 3, 0), X86_TS, 0);
    put16(r, RIG_TSS + 8, SEL_DATA3 & ~3u); /* RPL 0, but DPL 3 */
    check_fault(r, far_pointer(r, CALL_FAR, SEL_FREE | 3, 0), X86_TS, SEL_DATA3 & ~3u);
    assert_int_equal(r->cpu.cpl, 3);
    assert_int_equal(r->cpu.s.gpr[X86_RSP], RIG_STACK);
}

static void test_call_gate_long(void **state)
{
    struct rig *r = *state;

    rig_long(r, 3);
    put64(r, RIG_TSS + 4, INNER);
    put_call_gate(r, SEL_FREE, SEL_CODE64, 0x21000, 0xec, 0);
    put_descriptor(r, SEL_FREE + 8, 0);
    PUT_CODE(r, RIG_CODE, 0xff, 0x18); /* call far [rax] */
    r->cpu.s.gpr[X86_RAX] = 0x60000;
    put32(r, 0x60000, 0);
    put16(r, 0x60004, SEL_FREE | 3);
    assert_int_equal(rig_step(r), -1);
    assert_int_equal(r->cpu.cpl, 0);
    assert_int_equal(r->cpu.s.seg[X86_SS].selector, 0);
    assert_int_equal(r->cpu.s.gpr[X86_RSP], INNER - 32);
    assert_int_equal(get64(r, INNER - 8), SEL_DATA3);
    assert_int_equal(get64(r, INNER - 32), RIG_CODE + 2);
    PUT_CODE(r, 0x21000, 0x48, 0xcb);
    assert_int_equal(rig_step(r), -1);
    assert_int_equal(r->cpu.cpl, 3);
    assert_int_equal(r->cpu.s.gpr[X86_RSP], RIG_STACK);
    assert_int_equal(r->cpu.s.seg[X86_SS].selector, SEL_DATA3);
}

/* --- LAR, LSL, VERR, VERW, ARPL --- */

static bool zf_after(struct rig *r, uint8_t opcode, uint8_t modrm, uint16_t selector)
{
    PUT_CODE(r, RIG_CODE, 0x0f, opcode, modrm);
    r->cpu.s.rip = RIG_CODE;
    r->cpu.s.gpr[X86_RCX] = selector;
    assert_int_equal(rig_step(r), -1);
    return r->cpu.s.rflags & X86_ZF;
}

static void test_inspection(void **state)
{
    struct rig *r = *state;

    rig_protected(r, 3);
    assert_true(zf_after(r, 2, 0xc1, SEL_DATA3)); /* lar eax, ecx */
    assert_int_equal(r->cpu.s.gpr[X86_RAX], 0x00cff200);
    assert_true(zf_after(r, 3, 0xc1, SEL_DATA3)); /* lsl */
    assert_int_equal(r->cpu.s.gpr[X86_RAX], UINT32_MAX);
    assert_false(zf_after(r, 2, 0xc1, SEL_DATA0));
    assert_false(zf_after(r, 2, 0xc1, 0));
    assert_false(zf_after(r, 2, 0xc1, 0x200));
    assert_true(zf_after(r, 0, 0xe1, SEL_CODE3));  /* verr */
    assert_false(zf_after(r, 0, 0xe9, SEL_CODE3)); /* verw */
    assert_true(zf_after(r, 0, 0xe9, SEL_DATA3));
    rig_protected(r, 0);
    assert_true(zf_after(r, 2, 0xc1, SEL_TSS));
    assert_false(zf_after(r, 0, 0xe1, SEL_TSS));
    put_call_gate(r, SEL_FREE, SEL_CODE0, 0, 0x8c, 0);
    assert_true(zf_after(r, 2, 0xc1, SEL_FREE));
    assert_false(zf_after(r, 3, 0xc1, SEL_FREE)); /* gates have no limit */
    PUT_CODE(r, RIG_CODE, 0x63, 0xc8);            /* arpl ax, cx */
    r->cpu.s.rip = RIG_CODE;
    r->cpu.s.gpr[X86_RAX] = 0x10;
    r->cpu.s.gpr[X86_RCX] = 3;
    assert_int_equal(rig_step(r), -1);
    assert_int_equal(r->cpu.s.gpr[X86_RAX], 0x13);
    assert_true(r->cpu.s.rflags & X86_ZF);
}

static void test_table_registers(void **state)
{
    struct rig *r = *state;

    rig_protected(r, 0);
    put_descriptor(r, SEL_FREE, descriptor(0x5000, 0xf, 0x0082));
    PUT_CODE(r, RIG_CODE, 0x0f, 0x00, 0xd1); /* lldt cx */
    r->cpu.s.gpr[X86_RCX] = SEL_FREE;
    assert_int_equal(rig_step(r), -1);
    put64(r, 0x5008, descriptor(0x7000, 0xfff, 0x4092));
    assert_int_equal(load(r, X86_DS, 0x0c), -1); /* from the LDT now */
    assert_int_equal(r->cpu.s.seg[X86_DS].base, 0x7000);
    r->cpu.s.rip = RIG_CODE;
    r->cpu.s.gpr[X86_RCX] = SEL_DATA0;
    check_fault(r, rig_step(r), X86_GP, SEL_DATA0);

    PUT_CODE(r, RIG_CODE, 0x0f, 0x00, 0xd9); /* ltr cx */
    r->cpu.s.gpr[X86_RCX] = SEL_TSS;
    check_fault(r, rig_step(r), X86_GP, SEL_TSS); /* busy */
    put_descriptor(r, SEL_TSS, descriptor(RIG_TSS, 0x67, 0x0089));
    assert_int_equal(rig_step(r), -1);
    assert_int_equal(get64(r, RIG_GDT + SEL_TSS) >> 40 & 0xff, 0x8b);
    rig_protected(r, 3);
    check_fault(r, rig_step(r), X86_GP, 0);
}

/* A descriptor in a device's memory, which never reads twice the same. */
static uint64_t restless_descriptor(struct rig *r, uint64_t address)
{
    uint64_t value = descriptor(r->mmio_reads << 16, 0xfffff, 0xc092);

    assert_true(r->mmio_reads < 1000);
    return address & 4 ? value >> 32 : value;
}

static void test_descriptor_that_never_stays(void **state)
{
    struct rig *r = *state;

    rig_protected(r, 0);
    r->cpu.s.gdtr.base = 0x80000000;
    r->mmio_hook = restless_descriptor;
    assert_int_equal(load(r, X86_ES, SEL_DATA0), -1);
    assert_int_equal(r->mmio_writes, 1); /* the accessed bit */
    assert_int_equal(r->cpu.s.seg[X86_ES].selector, SEL_DATA0);
}

/* --- tasks --- */

#define TSS2      0x4000u
#define SEL_TASK2 0x50u

static void put_task(struct rig *r)
{
    put_descriptor(r, SEL_TASK2, descriptor(TSS2, 0x67, 0x0089));
    put32(r, TSS2 + 0x20, 0x21000);
    put32(r, TSS2 + 0x24, X86_FIXED | X86_CF);
    for (unsigned i = 0; i < 8; i++)
        put32(r, TSS2 + 0x28 + i * 4, 0x30100 + i);
    put32(r, TSS2 + 0x28 + X86_RSP * 4, INNER);
    for (unsigned i = 0; i < 6; i++)
        put16(r, TSS2 + 0x48 + i * 4, SEL_DATA0);
    put16(r, TSS2 + 0x48 + X86_CS * 4, SEL_CODE0);
    put16(r, TSS2 + 0x60, 0);
}

static unsigned tss_type(struct rig *r, uint16_t selector)
{
    return get64(r, RIG_GDT + selector) >> 40 & 0xf;
}

static void test_task_call_and_return(void **state)
{
    struct rig *r = *state;

    rig_protected(r, 0);
    put_task(r);
    r->cpu.s.gpr[X86_RSI] = 0x5151;
    assert_int_equal(far_pointer(r, CALL_FAR, SEL_TASK2, 0), -1);
    assert_int_equal(r->cpu.s.rip, 0x21000);
    assert_int_equal(r->cpu.s.gpr[X86_RBX], 0x30103);
    assert_int_equal(r->cpu.s.tr.selector, SEL_TASK2);
    assert_int_equal(r->cpu.s.rflags, X86_FIXED | X86_CF | X86_NT);
    assert_true(r->cpu.s.cr0 & X86_CR0_TS);
    assert_int_equal(get16(r, TSS2), SEL_TSS); /* the link */
    assert_int_equal(tss_type(r, SEL_TSS), 11);
    assert_int_equal(tss_type(r, SEL_TASK2), 11);
    assert_int_equal(get32(r, RIG_TSS + 0x20), RIG_CODE + 7);
    assert_int_equal(get32(r, RIG_TSS + 0x40), 0x5151);
    assert_int_equal(get16(r, RIG_TSS + 0x48 + X86_CS * 4), SEL_CODE0);

    PUT_CODE(r, 0x21000, 0xcf);
    assert_int_equal(rig_step(r), -1);
    assert_int_equal(r->cpu.s.tr.selector, SEL_TSS);
    assert_int_equal(r->cpu.s.rip, RIG_CODE + 7);
    assert_int_equal(r->cpu.s.gpr[X86_RSI], 0x5151);
    assert_int_equal(tss_type(r, SEL_TASK2), 9);
    assert_int_equal(get32(r, TSS2 + 0x24) & X86_NT, 0);
}

static void test_task_checks(void **state)
{
    struct rig *r = *state;

    rig_protected(r, 0);
    put_task(r);
    check_fault(r, far_pointer(r, JMP_FAR, SEL_TSS, 0), X86_GP, SEL_TSS); /* busy: itself */
    put_descriptor(r, SEL_TASK2, descriptor(TSS2, 0x66, 0x0089));
    check_fault(r, far_pointer(r, JMP_FAR, SEL_TASK2, 0), X86_TS, SEL_TASK2);
    put_descriptor(r, SEL_TASK2, descriptor(TSS2, 0x67, 0x0009));
    check_fault(r, far_pointer(r, JMP_FAR, SEL_TASK2, 0), X86_NP, SEL_TASK2);
    assert_int_equal(r->cpu.s.tr.selector, SEL_TSS);
    put_task(r); /* a bad SS is found in the new task */
    put16(r, TSS2 + 0x48 + X86_SS * 4, SEL_DATA3);
    check_fault(r, far_pointer(r, JMP_FAR, SEL_TASK2, 0), X86_TS, SEL_DATA3 & ~3u);
    assert_int_equal(r->cpu.s.tr.selector, SEL_TASK2);
    assert_int_equal(r->cpu.s.rip, 0x21000);
}

/* Bad PDPTRs fault in the new task, at its level. */
static void test_task_with_bad_pdptrs(void **state)
{
    struct rig *r = *state;

    rig_protected(r, 0);
    put_task(r);
    put32(r, TSS2 + 0x1c, 0x60000);
    put64(r, 0x60000, 0x61000 | BIT(1) | X86_PTE_P); /* reserved */
    put16(r, TSS2 + 0x48 + X86_CS * 4, SEL_CODE3);
    put16(r, TSS2 + 0x48 + X86_SS * 4, SEL_DATA3);
    put64(r, 0x62000, 0xe7); /* 2 MiB, to itself */
    r->cpu.s.pdptr[0] = 0x62000 | X86_PTE_P;
    r->cpu.s.cr4 |= X86_CR4_PAE;
    r->cpu.s.cr0 |= X86_CR0_PG;
    x86_tlb_flush(&r->cpu, false);
    x86_cpu_update_mode(&r->cpu);
    check_fault(r, far_pointer(r, JMP_FAR, SEL_TASK2, 0), X86_GP, 0);
    assert_int_equal(r->cpu.s.tr.selector, SEL_TASK2);
    assert_int_equal(r->cpu.cpl, 3);
}

static void test_task_gate_interrupt(void **state)
{
    struct rig *r = *state;
    struct x86_event df = {.kind = X86_EVENT_EXCEPTION, .vector = X86_DF_FAULT, .has_error = true};

    rig_protected(r, 3);
    put_task(r);
    put64(r, RIG_IDT + X86_DF_FAULT * 8, (uint64_t)SEL_TASK2 << 16 | 0x85ull << 40);
    assert_int_equal(x86_deliver(&r->cpu, &df), X86_OK);
    assert_int_equal(r->cpu.cpl, 0);
    assert_int_equal(r->cpu.s.rip, 0x21000);
    assert_int_equal(r->cpu.s.gpr[X86_RSP], INNER - 4);
    assert_int_equal(get32(r, INNER - 4), 0);
    assert_int_equal(get32(r, RIG_TSS + 0x20), RIG_CODE);
}

static void test_task16(void **state)
{
    struct rig *r = *state;

    rig_protected(r, 0);
    put_descriptor(r, SEL_TASK2, descriptor(TSS2, 0x2b, 0x0081));
    put16(r, TSS2 + 0x0e, 0x1000);
    put16(r, TSS2 + 0x10, X86_FIXED);
    put16(r, TSS2 + 0x12, 0xabcd);
    put16(r, TSS2 + 0x12 + X86_RSP * 2, 0x8000);
    for (unsigned i = 0; i < 4; i++)
        put16(r, TSS2 + 0x22 + i * 2, i == X86_CS ? SEL_CODE0 : SEL_DATA0);
    assert_int_equal(far_pointer(r, JMP_FAR, SEL_TASK2, 0), -1);
    assert_int_equal(r->cpu.s.rip, 0x1000);
    assert_int_equal(r->cpu.s.gpr[X86_RAX], 0xffffabcd);
    assert_int_equal(r->cpu.s.seg[X86_FS].attr, 0);
    assert_int_equal(tss_type(r, SEL_TSS), 9); /* JMP frees the old one */
}

/* --- SWAPGS --- */

static void test_swapgs(void **state)
{
    struct rig *r = *state;

    rig_long(r, 0);
    PUT_CODE(r, RIG_CODE, 0x0f, 0x01, 0xf8);
    r->cpu.s.kernel_gs_base = 0x1000;
    r->cpu.s.seg[X86_GS].base = 0x2000;
    assert_int_equal(rig_step(r), -1);
    assert_int_equal(x86_linear(&r->cpu, X86_GS, 8, 4, X86_READ), 0x1008);
    assert_int_equal(r->cpu.s.kernel_gs_base, 0x2000);
    rig_long(r, 3);
    assert_int_equal(rig_step(r), X86_GP);
}

int main(void)
{
#define RIG_TEST(f) cmocka_unit_test_setup_teardown(f, rig_setup, rig_teardown)
    const struct CMUnitTest tests[] = {
        RIG_TEST(test_data_loads),
        RIG_TEST(test_stack_loads),
        RIG_TEST(test_limits_and_types),
        RIG_TEST(test_real_mode_limits),
        RIG_TEST(test_far_jump_checks),
        RIG_TEST(test_real_to_long_mode),
        RIG_TEST(test_call_gate_inner),
        RIG_TEST(test_call_gate_checks),
        RIG_TEST(test_call_gate_long),
        RIG_TEST(test_inspection),
        RIG_TEST(test_table_registers),
        RIG_TEST(test_task_call_and_return),
        RIG_TEST(test_task_checks),
        RIG_TEST(test_task_gate_interrupt),
        RIG_TEST(test_task_with_bad_pdptrs),
        RIG_TEST(test_descriptor_that_never_stays),
        RIG_TEST(test_task16),
        RIG_TEST(test_swapgs),
    };
    return cmocka_run_group_tests_name("segment", tests, NULL, NULL);
}
