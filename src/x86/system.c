/*
 * System instructions: descriptor-table registers, TLB, halting, CPUID, MSRs, time stamp, ports,
 * interrupt flag, FS/GS bases, XCR0, cache, random numbers. Runs on the CPU's thread.
 * SDM vol. 2 under each instruction's name; vol. 3 sections 2.8 (system instructions), 2.5 (UMIP,
 * TSD, SMAP), 6.8.1 (interrupt flag); vol. 1 section 19.5 (I/O protection).
 * VMX and SVM instructions have no binder: #UD.
 */
#include "x86/debug.h"
#include "x86/exec_int.h"
#include "x86/io.h"
#include "x86/paging.h"
#include "x86/system_int.h"

/* --- LGDT, LIDT, SGDT, SIDT, LMSW, SMSW, CLTS --- */

/* A 10-byte operand in 64-bit code, else 6 bytes; 24 bits of base with 16-bit operands. */
static struct x86_table_register load_table(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    unsigned base_size = cpu->code_size == 8 ? 8 : 4;
    uint64_t la = x86_operand_la(cpu, insn, 2 + base_size, X86_READ);
    struct x86_table_register table = {.limit = (uint16_t)x86_load(cpu, la, 2)};

    table.base = base_size == 8 ? x86_load(cpu, la + 2, 8) : x86_load(cpu, la + 2, 4);
    if (base_size == 8 && !x86_canonical(table.base))
        x86_raise_error(cpu, X86_GP, 0);
    if (insn->size == 2 && base_size == 4)
        table.base &= 0xffffff;
    return table;
}

static void run_lgdt(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    x86_require_cpl0(cpu);
    cpu->s.gdtr = load_table(cpu, insn);
}

static void run_lidt(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    x86_require_cpl0(cpu);
    cpu->s.idtr = load_table(cpu, insn);
}

static void check_umip(struct x86_cpu *cpu)
{
    if (cpu->s.cr4 & X86_CR4_UMIP)
        x86_require_cpl0(cpu);
}

static void store_table(struct x86_cpu *cpu, const struct x86_insn *insn,
                        const struct x86_table_register *table)
{
    unsigned base_size = cpu->code_size == 8 ? 8 : 4;
    uint8_t bytes[10];

    check_umip(cpu);
    store_le16(bytes, table->limit);
    store_le64(bytes + 2, table->base);
    uint64_t la = x86_operand_la(cpu, insn, 2 + base_size, X86_WRITE);
    x86_store_bytes(cpu, la, bytes, 2 + base_size);
}

static void run_sgdt(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    store_table(cpu, insn, &cpu->s.gdtr);
}

static void run_sidt(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    store_table(cpu, insn, &cpu->s.idtr);
}

/* Loads PE, MP, EM and TS, and cannot clear PE. */
static void run_lmsw(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    x86_require_cpl0(cpu);
    uint64_t value =
        insn->flags & X86_INSN_MEM ? mem_load(cpu, insn, 2) : reg_read(cpu, insn->dst, 2);
    x86_write_cr0(cpu, (cpu->s.cr0 & ~0xeull) | (value & 0xf));
}

static void run_smsw(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    check_umip(cpu);
    if (insn->flags & X86_INSN_MEM)
        mem_store(cpu, insn, 2, cpu->s.cr0);
    else
        reg_write(cpu, insn->dst, insn->size, cpu->s.cr0);
}

static void run_clts(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    x86_require_cpl0(cpu);
    cpu->s.cr0 &= ~X86_CR0_TS;
}

/* --- TLB and caches --- */

static void run_invlpg(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    x86_require_cpl0(cpu);
    uint64_t la = cpu->seg_base[insn->seg] + x86_ea(cpu, insn);
    if (cpu->code_size != 8)
        la = (uint32_t)la;
    if (x86_canonical(la))
        x86_tlb_flush_page(cpu, la);
}

/* A page of another PCID costs that one all it has, which is allowed, and rare. */
static void drop_page_of(struct x86_cpu *cpu, unsigned pcid, uint64_t la)
{
    if (!(cpu->s.cr4 & X86_CR4_PCIDE) || pcid == (cpu->s.cr3 & 0xfff))
        x86_tlb_flush_page(cpu, la);
    else
        x86_tlb_flush_pcid(cpu, pcid);
}

static void run_invpcid(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    uint64_t descriptor[2];

    x86_require_cpl0(cpu);
    uint64_t type = reg_read(cpu, insn->dst, cpu->code_size == 8 ? 8 : 4);
    x86_load_bytes(cpu, x86_operand_la(cpu, insn, 16, X86_READ), descriptor, 16);
    bool pcide = cpu->s.cr4 & X86_CR4_PCIDE;
    if (type > 3 || descriptor[0] >> 12 || (type < 2 && !pcide && descriptor[0]) ||
        (type == 0 && !x86_canonical(descriptor[1])))
        x86_raise_error(cpu, X86_GP, 0);
    if (type == 0)
        drop_page_of(cpu, (unsigned)descriptor[0], descriptor[1]);
    else if (type == 1)
        x86_tlb_flush_pcid(cpu, (unsigned)descriptor[0]);
    else
        x86_tlb_flush(cpu, type == 3);
}

static void run_cache_all(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    x86_require_cpl0(cpu);
}

/* The caches are the host's, and coherent: only the access rights are checked. */
static void run_cache_line(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    uint8_t byte;
    x86_load_bytes(cpu, x86_operand_la(cpu, insn, 1, X86_READ), &byte, 1);
}

/* --- halting --- */

static void halt(struct x86_cpu *cpu)
{
    cpu->s.mp_state = X86_MP_HALTED;
    cpu->halted = true;
    cpu->end_block = true;
}

static void run_hlt(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    x86_require_cpl0(cpu);
    halt(cpu);
}

static void run_monitor(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    uint8_t byte;

    if (cpu->cpl)
        x86_raise(cpu, X86_UD);
    if ((uint32_t)cpu->s.gpr[X86_RCX])
        x86_raise_error(cpu, X86_GP, 0);
    uint64_t offset = cpu->s.gpr[X86_RAX] & size_mask(insn->address_size);
    x86_load_bytes(cpu, x86_linear(cpu, insn->seg, offset, 1, X86_READ), &byte, 1);
}

/* MWAIT as HLT: it may end at any time, and each interrupt ends it. */
static void run_mwait(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    if (cpu->cpl)
        x86_raise(cpu, X86_UD);
    if ((uint32_t)cpu->s.gpr[X86_RCX] & ~1u)
        x86_raise_error(cpu, X86_GP, 0);
    if ((cpu->s.gpr[X86_RCX] & 1) && !(cpu->s.rflags & X86_IF))
        return; /* "break on masked interrupts": HLT could sleep through one */
    halt(cpu);
}

/* --- CPUID, MSRs, time stamp --- */

static void run_cpuid(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    struct x86_cpuid_context context = {.apic_id = cpu->s.lapic.id,
                                        .cr4 = cpu->s.cr4,
                                        .xcr0 = cpu->s.xcr0,
                                        .xss = cpu->s.xss,
                                        .apic_base = cpu->s.apic_base};
    uint64_t *gpr = cpu->s.gpr;
    uint32_t out[4];

    x86_cpuid_query(cpu->cpuid, &context, (uint32_t)gpr[X86_RAX], (uint32_t)gpr[X86_RCX], out);
    gpr[X86_RAX] = out[0];
    gpr[X86_RBX] = out[1];
    gpr[X86_RCX] = out[2];
    gpr[X86_RDX] = out[3];
}

static void set_edx_eax(struct x86_cpu *cpu, uint64_t value)
{
    cpu->s.gpr[X86_RAX] = (uint32_t)value;
    cpu->s.gpr[X86_RDX] = value >> 32;
}

static uint64_t edx_eax(const struct x86_cpu *cpu)
{
    return cpu->s.gpr[X86_RDX] << 32 | (uint32_t)cpu->s.gpr[X86_RAX];
}

static void run_rdmsr(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    uint64_t value;

    x86_require_cpl0(cpu);
    if (!x86_msr_read(cpu, (uint32_t)cpu->s.gpr[X86_RCX], &value))
        x86_raise_error(cpu, X86_GP, 0);
    set_edx_eax(cpu, value);
}

static void run_wrmsr(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    x86_require_cpl0(cpu);
    if (!x86_msr_write(cpu, (uint32_t)cpu->s.gpr[X86_RCX], edx_eax(cpu)))
        x86_raise_error(cpu, X86_GP, 0);
    cpu->end_block = true;
}

static void read_tsc(struct x86_cpu *cpu)
{
    if (cpu->s.cr4 & X86_CR4_TSD)
        x86_require_cpl0(cpu);
    set_edx_eax(cpu, x86_tsc(cpu));
}

static void run_rdtsc(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    read_tsc(cpu);
}

static void run_rdtscp(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    read_tsc(cpu);
    cpu->s.gpr[X86_RCX] = (uint32_t)cpu->s.tsc_aux;
}

static void run_rdpid(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    reg_write(cpu, insn->dst, 8, (uint32_t)cpu->s.tsc_aux);
}

/* There are no counters. */
static void run_rdpmc(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    x86_raise_error(cpu, X86_GP, 0);
}

/* --- ports, SDM vol. 1 section 19.5.2 --- */

/* Both bytes that the bits may lie in are read, as the hardware does. */
static bool bitmap_permits(struct x86_cpu *cpu, uint16_t port, unsigned size)
{
    const struct x86_segment *tr = &cpu->s.tr;

    if (!(tr->attr & X86_SEG_P) || !(tr->attr & 8) || tr->limit < 103)
        return false;
    uint32_t at = (uint32_t)x86_system_load(cpu, tr->base + 102, 2) + port / 8u;
    if (at + 1 > tr->limit)
        return false;
    uint32_t bits = (uint32_t)x86_system_load(cpu, tr->base + at, 2) >> (port % 8);
    return !(bits & ((1u << size) - 1));
}

void x86_check_io(struct x86_cpu *cpu, uint16_t port, unsigned size)
{
    unsigned iopl = (unsigned)((cpu->s.rflags & X86_IOPL) >> 12);

    if (cpu->protected_mode && (cpu->v86 || cpu->cpl > iopl) && !bitmap_permits(cpu, port, size))
        x86_raise_error(cpu, X86_GP, 0);
    if (cpu->debug_active)
        x86_debug_io(cpu, port, size);
}

/* insn->src2: the port is DX, not imm */
static uint16_t port_of(const struct x86_cpu *cpu, const struct x86_insn *insn)
{
    return (uint16_t)(insn->src2 ? cpu->s.gpr[X86_RDX] : insn->imm & 0xff);
}

static void run_in(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    uint16_t port = port_of(cpu, insn);

    x86_check_io(cpu, port, insn->size);
    gpr_write(cpu, X86_RAX, insn->size, x86_in(cpu, port, insn->size));
}

static void run_out(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    uint16_t port = port_of(cpu, insn);

    x86_check_io(cpu, port, insn->size);
    x86_out(cpu, port, insn->size, (uint32_t)gpr_read(cpu, X86_RAX, insn->size));
}

static bool bind_port(const struct x86_decode *d, struct x86_insn *out)
{
    bool in = d->z->mnemonic == ZYDIS_MNEMONIC_IN;

    out->run = in ? run_in : run_out;
    out->size = (uint8_t)(d->op[in ? 0 : 1].size / 8);
    out->src2 = is_reg(d, in ? 1 : 0);
    return true;
}

/* --- interrupt flag, SDM vol. 3 section 6.8.1; without VME and PVI --- */

static void check_iopl(struct x86_cpu *cpu)
{
    unsigned iopl = (unsigned)((cpu->s.rflags & X86_IOPL) >> 12);

    if (cpu->protected_mode && cpu->cpl > iopl)
        x86_raise_error(cpu, X86_GP, 0);
}

static void run_cli(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    check_iopl(cpu);
    cpu->s.rflags &= ~X86_IF;
}

static void run_sti(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    check_iopl(cpu);
    if (!(cpu->s.rflags & X86_IF))
        cpu->s.interrupt_shadow = true;
    cpu->s.rflags |= X86_IF;
}

/* AC changes which TLB table data accesses use. */
static void set_ac(struct x86_cpu *cpu, bool on)
{
    if (cpu->cpl)
        x86_raise(cpu, X86_UD);
    cpu->s.rflags = on ? cpu->s.rflags | X86_AC : cpu->s.rflags & ~X86_AC;
    cpu->mmu = (uint8_t)x86_mmu_at(cpu, 0);
    cpu->tlb_now = cpu->tlb[cpu->mmu];
}

static void run_clac(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    set_ac(cpu, false);
}

static void run_stac(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    set_ac(cpu, true);
}

/* --- RDFSBASE and family --- */

static void check_fsgsbase(struct x86_cpu *cpu)
{
    if (!(cpu->s.cr4 & X86_CR4_FSGSBASE))
        x86_raise(cpu, X86_UD);
}

/* insn->imm: enum x86_seg */
static void run_read_base(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    check_fsgsbase(cpu);
    reg_write(cpu, insn->dst, insn->size, cpu->s.seg[insn->imm].base);
}

static void run_write_base(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    uint64_t base = reg_read(cpu, insn->dst, insn->size);

    check_fsgsbase(cpu);
    if (!x86_canonical(base))
        x86_raise_error(cpu, X86_GP, 0);
    cpu->s.seg[insn->imm].base = base;
    cpu->seg_base[insn->imm] = base;
}

static bool bind_base(const struct x86_decode *d, struct x86_insn *out)
{
    ZydisMnemonic m = d->z->mnemonic;
    bool fs = m == ZYDIS_MNEMONIC_RDFSBASE || m == ZYDIS_MNEMONIC_WRFSBASE;
    bool read = m == ZYDIS_MNEMONIC_RDFSBASE || m == ZYDIS_MNEMONIC_RDGSBASE;

    out->imm = fs ? X86_FS : X86_GS;
    out->run = read ? run_read_base : run_write_base;
    return d->mode->code_size == 8;
}

/* --- XCR0, SDM vol. 1 section 13.3 --- */

static void check_osxsave(struct x86_cpu *cpu)
{
    if (!(cpu->s.cr4 & X86_CR4_OSXSAVE))
        x86_raise(cpu, X86_UD);
}

/* XCR1 (XINUSE) tells no component as unused: allowed, and the same on every run. */
static void run_xgetbv(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    uint32_t index = (uint32_t)cpu->s.gpr[X86_RCX];

    check_osxsave(cpu);
    if (index > 1 || (index == 1 && !x86_has(cpu->features, X86_FEATURE_XGETBV1)))
        x86_raise_error(cpu, X86_GP, 0);
    set_edx_eax(cpu, cpu->s.xcr0);
}

static void run_xsetbv(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    uint64_t value = edx_eax(cpu), allowed = X86_XCR0_X87 | X86_XCR0_SSE;

    check_osxsave(cpu);
    x86_require_cpl0(cpu);
    if (x86_has(cpu->features, X86_FEATURE_AVX))
        allowed |= X86_XCR0_AVX;
    if ((uint32_t)cpu->s.gpr[X86_RCX] || !(value & X86_XCR0_X87) || (value & ~allowed) ||
        ((value & X86_XCR0_AVX) && !(value & X86_XCR0_SSE)))
        x86_raise_error(cpu, X86_GP, 0);
    cpu->s.xcr0 = value;
    cpu->end_block = true;
}

/* --- RDRAND, RDSEED --- */

static void run_random(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    uint64_t value = 0;
    bool ok = cpu->ops->random(cpu->context, &value);

    reg_write(cpu, insn->dst, insn->size, ok ? value : 0);
    cpu->s.rflags = (cpu->s.rflags & ~X86_STATUS_FLAGS) | (ok ? X86_CF : 0);
}

/* --- binding --- */

enum { PROTECTED_ONLY = 1, END = 2 };

struct simple {
    ZydisMnemonic mnemonic;
    x86_handler *run;
    unsigned flags;
};

static const struct simple simple[] = {
    {ZYDIS_MNEMONIC_LGDT, run_lgdt, 0},
    {ZYDIS_MNEMONIC_LIDT, run_lidt, 0},
    {ZYDIS_MNEMONIC_SGDT, run_sgdt, 0},
    {ZYDIS_MNEMONIC_SIDT, run_sidt, 0},
    {ZYDIS_MNEMONIC_LMSW, run_lmsw, END},
    {ZYDIS_MNEMONIC_SMSW, run_smsw, 0},
    {ZYDIS_MNEMONIC_CLTS, run_clts, END},
    {ZYDIS_MNEMONIC_INVLPG, run_invlpg, END},
    {ZYDIS_MNEMONIC_INVPCID, run_invpcid, PROTECTED_ONLY | END},
    {ZYDIS_MNEMONIC_INVD, run_cache_all, 0},
    {ZYDIS_MNEMONIC_WBINVD, run_cache_all, 0},
    {ZYDIS_MNEMONIC_CLFLUSH, run_cache_line, 0},
    {ZYDIS_MNEMONIC_CLFLUSHOPT, run_cache_line, 0},
    {ZYDIS_MNEMONIC_CLWB, run_cache_line, 0},
    {ZYDIS_MNEMONIC_HLT, run_hlt, END},
    {ZYDIS_MNEMONIC_MONITOR, run_monitor, 0},
    {ZYDIS_MNEMONIC_MWAIT, run_mwait, END},
    {ZYDIS_MNEMONIC_CPUID, run_cpuid, 0},
    {ZYDIS_MNEMONIC_RDMSR, run_rdmsr, 0},
    {ZYDIS_MNEMONIC_WRMSR, run_wrmsr, END},
    {ZYDIS_MNEMONIC_RDTSC, run_rdtsc, 0},
    {ZYDIS_MNEMONIC_RDTSCP, run_rdtscp, 0},
    {ZYDIS_MNEMONIC_RDPID, run_rdpid, 0},
    {ZYDIS_MNEMONIC_RDPMC, run_rdpmc, 0},
    {ZYDIS_MNEMONIC_CLI, run_cli, 0},
    {ZYDIS_MNEMONIC_STI, run_sti, END},
    {ZYDIS_MNEMONIC_CLAC, run_clac, PROTECTED_ONLY | END},
    {ZYDIS_MNEMONIC_STAC, run_stac, PROTECTED_ONLY | END},
    {ZYDIS_MNEMONIC_XGETBV, run_xgetbv, 0},
    {ZYDIS_MNEMONIC_XSETBV, run_xsetbv, END},
    {ZYDIS_MNEMONIC_RDRAND, run_random, 0},
    {ZYDIS_MNEMONIC_RDSEED, run_random, 0},
};

static bool bind_simple(const struct x86_decode *d, struct x86_insn *out)
{
    for (unsigned i = 0; i < ARRAY_COUNT(simple); i++) {
        if (simple[i].mnemonic != d->z->mnemonic)
            continue;
        if ((simple[i].flags & PROTECTED_ONLY) && d->mode->real_or_v86)
            return false;
        out->run = simple[i].run;
        out->size = d->z->operand_width / 8;
        if (simple[i].flags & END)
            out->flags |= X86_INSN_END;
        return true;
    }
    return false;
}

/* MONITOR's implicit operand is DS:RAX, or another segment by prefix. */
static bool bind_monitor(const struct x86_decode *d, struct x86_insn *out)
{
    if (d->z->attributes & ZYDIS_ATTRIB_HAS_SEGMENT_FS)
        out->seg = X86_FS;
    else if (d->z->attributes & ZYDIS_ATTRIB_HAS_SEGMENT_GS)
        out->seg = X86_GS;
    return bind_simple(d, out);
}

const struct x86_bind x86_bind_system[] = {
    {ZYDIS_MNEMONIC_LGDT, bind_simple},
    {ZYDIS_MNEMONIC_LIDT, bind_simple},
    {ZYDIS_MNEMONIC_SGDT, bind_simple},
    {ZYDIS_MNEMONIC_SIDT, bind_simple},
    {ZYDIS_MNEMONIC_LMSW, bind_simple},
    {ZYDIS_MNEMONIC_SMSW, bind_simple},
    {ZYDIS_MNEMONIC_CLTS, bind_simple},
    {ZYDIS_MNEMONIC_INVLPG, bind_simple},
    {ZYDIS_MNEMONIC_INVPCID, bind_simple},
    {ZYDIS_MNEMONIC_INVD, bind_simple},
    {ZYDIS_MNEMONIC_WBINVD, bind_simple},
    {ZYDIS_MNEMONIC_CLFLUSH, bind_simple},
    {ZYDIS_MNEMONIC_CLFLUSHOPT, bind_simple},
    {ZYDIS_MNEMONIC_CLWB, bind_simple},
    {ZYDIS_MNEMONIC_HLT, bind_simple},
    {ZYDIS_MNEMONIC_MONITOR, bind_monitor},
    {ZYDIS_MNEMONIC_MWAIT, bind_simple},
    {ZYDIS_MNEMONIC_CPUID, bind_simple},
    {ZYDIS_MNEMONIC_RDMSR, bind_simple},
    {ZYDIS_MNEMONIC_WRMSR, bind_simple},
    {ZYDIS_MNEMONIC_RDTSC, bind_simple},
    {ZYDIS_MNEMONIC_RDTSCP, bind_simple},
    {ZYDIS_MNEMONIC_RDPID, bind_simple},
    {ZYDIS_MNEMONIC_RDPMC, bind_simple},
    {ZYDIS_MNEMONIC_CLI, bind_simple},
    {ZYDIS_MNEMONIC_STI, bind_simple},
    {ZYDIS_MNEMONIC_CLAC, bind_simple},
    {ZYDIS_MNEMONIC_STAC, bind_simple},
    {ZYDIS_MNEMONIC_XGETBV, bind_simple},
    {ZYDIS_MNEMONIC_XSETBV, bind_simple},
    {ZYDIS_MNEMONIC_RDRAND, bind_simple},
    {ZYDIS_MNEMONIC_RDSEED, bind_simple},
    {ZYDIS_MNEMONIC_IN, bind_port},
    {ZYDIS_MNEMONIC_OUT, bind_port},
    {ZYDIS_MNEMONIC_RDFSBASE, bind_base},
    {ZYDIS_MNEMONIC_RDGSBASE, bind_base},
    {ZYDIS_MNEMONIC_WRFSBASE, bind_base},
    {ZYDIS_MNEMONIC_WRGSBASE, bind_base},
    {ZYDIS_MNEMONIC_SYSCALL, x86_bind_fast_call},
    {ZYDIS_MNEMONIC_SYSRET, x86_bind_fast_call},
    {ZYDIS_MNEMONIC_SYSENTER, x86_bind_fast_call},
    {ZYDIS_MNEMONIC_SYSEXIT, x86_bind_fast_call},
    X86_BIND_END,
};
