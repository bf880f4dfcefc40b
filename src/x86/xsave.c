/*
 * FXSAVE, FXRSTOR, the XSAVE family, LDMXCSR and STMXCSR. The CPU's thread. Stores go to memory
 * after all faults are excluded; bytes that the manual leaves alone are not written.
 * SDM vol. 1 sections 10.5 and 13.7 to 13.12, vol. 2 under each name.
 */
#include "x86/exec_int.h"
#include "x86/vector_int.h"
#include "x86/xsave_int.h"

/* In insn->imm */
enum xsave_form {
    XSAVE_WIDE = 1 << 0,       /* REX.W: 64-bit FIP and FDP */
    XSAVE_INIT_OPT = 1 << 1,   /* components in their initial state are not written */
    XSAVE_SUPERVISOR = 1 << 2, /* XSAVES, XRSTORS */
};

/* Registers 8 to 15 are only reached in 64-bit mode. */
static unsigned register_count(const struct x86_cpu *cpu)
{
    return cpu->code_size == 8 ? 16 : 8;
}

static void check_fxsave(struct x86_cpu *cpu)
{
    if (cpu->s.cr0 & (X86_CR0_EM | X86_CR0_TS))
        x86_raise(cpu, X86_NM);
}

static void check_xsave(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    if (!(cpu->s.cr4 & X86_CR4_OSXSAVE))
        x86_raise(cpu, X86_UD);
    if (cpu->s.cr0 & X86_CR0_TS)
        x86_raise(cpu, X86_NM);
    if (insn->imm & XSAVE_SUPERVISOR && cpu->cpl)
        x86_raise_error(cpu, X86_GP, 0);
}

static uint64_t area_la(struct x86_cpu *cpu, const struct x86_insn *insn, unsigned size,
                        unsigned align, enum x86_access access)
{
    uint64_t la = x86_operand_la(cpu, insn, size, access);

    if (la & (align - 1))
        x86_raise_error(cpu, X86_GP, 0);
    return la;
}

/* An area that is written: in place when the memory is at hand, else in a buffer, by pieces. */
struct area {
    uint64_t la;
    uint8_t *at; /* its image */
    bool direct; /* which is the memory itself */
};

/* Raises what writing the area raises. */
static struct area begin_area(struct x86_cpu *cpu, uint64_t la, unsigned size, uint8_t *buffer)
{
    char *direct = write_pointer(cpu, la, size);

    if (likely(direct))
        return (struct area) {la, (uint8_t *)direct, true};
    x86_probe_write(cpu, la, size);
    return (struct area) {la, buffer, false};
}

static void put_area(struct x86_cpu *cpu, const struct area *area, unsigned offset, unsigned size)
{
    if (unlikely(!area->direct))
        x86_store_bytes(cpu, area->la + offset, area->at + offset, size);
}

static void put_xmm(const struct x86_fpu *f, uint8_t *image, unsigned count)
{
    for (unsigned i = 0; i < count; i++)
        memcpy(image + XSAVE_XMM + i * 16, f->ymm[i], 16);
}

static void put_mxcsr(const struct x86_fpu *f, uint8_t *image)
{
    store_le32(image + XSAVE_MXCSR, f->mxcsr);
    store_le32(image + XSAVE_MXCSR + 4, X86_MXCSR_MASK);
}

static void run_fxsave(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    const unsigned count = register_count(cpu);
    uint8_t buffer[X86_XSAVE_LEGACY_SIZE];

    check_fxsave(cpu);
    const uint64_t la = area_la(cpu, insn, sizeof buffer, 16, X86_WRITE);
    struct area area = begin_area(cpu, la, sizeof buffer, buffer);
    x86_fxsave_put_x87(&cpu->s.fpu, area.at, insn->imm & XSAVE_WIDE);
    put_mxcsr(&cpu->s.fpu, area.at);
    put_xmm(&cpu->s.fpu, area.at, count);
    put_area(cpu, &area, 0, XSAVE_XMM + count * 16);
}

static void check_mxcsr(struct x86_cpu *cpu, uint32_t mxcsr)
{
    if (mxcsr & ~X86_MXCSR_MASK)
        x86_raise_error(cpu, X86_GP, 0);
}

static void get_xmm(struct x86_fpu *f, const uint8_t *image, unsigned count)
{
    for (unsigned i = 0; i < count; i++)
        memcpy(f->ymm[i], image + XSAVE_XMM + i * 16, 16);
}

static void run_fxrstor(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    uint8_t image[X86_XSAVE_LEGACY_SIZE];

    check_fxsave(cpu);
    x86_load_bytes(cpu, area_la(cpu, insn, sizeof image, 16, X86_READ), image, sizeof image);
    check_mxcsr(cpu, load_le32(image + XSAVE_MXCSR));
    x86_fxsave_get_x87(&cpu->s.fpu, image, insn->imm & XSAVE_WIDE);
    cpu->s.fpu.mxcsr = load_le32(image + XSAVE_MXCSR);
    get_xmm(&cpu->s.fpu, image, register_count(cpu));
}

/* The components that the instruction is about (the manual's RFBM). */
static uint64_t requested(const struct x86_cpu *cpu, const struct x86_insn *insn)
{
    const uint64_t mask = (uint32_t)cpu->s.gpr[X86_RAX] | (uint64_t)(uint32_t)cpu->s.gpr[X86_RDX]
                                                              << 32;

    return mask & (cpu->s.xcr0 | (insn->imm & XSAVE_SUPERVISOR ? cpu->s.xss : 0)) & XSAVE_ALL;
}

static unsigned area_size(uint64_t components)
{
    return components & X86_XCR0_AVX ? X86_XSAVE_SIZE : X86_XSAVE_AVX_OFFSET;
}

/* Writes the components in `saved`; MXCSR when with_mxcsr. */
static void store_components(struct x86_cpu *cpu, const struct x86_insn *insn,
                             const struct area *area, uint64_t saved, bool with_mxcsr)
{
    const unsigned count = register_count(cpu);
    const struct x86_fpu *f = &cpu->s.fpu;

    if (saved & X86_XCR0_X87) {
        x86_fxsave_put_x87(f, area->at, insn->imm & XSAVE_WIDE);
        put_area(cpu, area, 0, XSAVE_MXCSR);
        put_area(cpu, area, XSAVE_ST, XSAVE_XMM - XSAVE_ST);
    }
    if (with_mxcsr) {
        put_mxcsr(f, area->at);
        put_area(cpu, area, XSAVE_MXCSR, 8);
    }
    if (saved & X86_XCR0_SSE) {
        put_xmm(f, area->at, count);
        put_area(cpu, area, XSAVE_XMM, count * 16);
    }
    if (saved & X86_XCR0_AVX) {
        for (unsigned i = 0; i < count; i++)
            memcpy(area->at + X86_XSAVE_AVX_OFFSET + i * 16, f->ymm[i] + 16, 16);
        put_area(cpu, area, X86_XSAVE_AVX_OFFSET, count * 16);
    }
}

/* XSAVE, XSAVEOPT: the header keeps the bits of components that are not asked for. */
static void run_xsave(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    const uint64_t vector = X86_XCR0_SSE | X86_XCR0_AVX;
    uint8_t buffer[X86_XSAVE_SIZE];
    uint64_t rfbm, in_use, la, header;

    check_xsave(cpu, insn);
    rfbm = requested(cpu, insn);
    in_use = x86_xsave_in_use(&cpu->s.fpu) & rfbm;
    la = area_la(cpu, insn, area_size(rfbm), 64, X86_WRITE);
    struct area area = begin_area(cpu, la, area_size(rfbm), buffer);
    header = x86_load(cpu, la + XSAVE_XSTATE_BV, 8);
    store_components(cpu, insn, &area, insn->imm & XSAVE_INIT_OPT ? in_use : rfbm, rfbm & vector);
    x86_store(cpu, la + XSAVE_XSTATE_BV, 8, (header & ~rfbm) | in_use);
}

/* XSAVEC, XSAVES. With no other component than AVX its place is the standard one. */
static void run_xsavec(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    uint8_t buffer[X86_XSAVE_SIZE];
    uint64_t rfbm, saved, la;

    check_xsave(cpu, insn);
    rfbm = requested(cpu, insn);
    saved = x86_xsave_in_use(&cpu->s.fpu) & rfbm;
    if (cpu->s.fpu.mxcsr != XSAVE_MXCSR_INIT)
        saved |= rfbm & X86_XCR0_SSE;
    la = area_la(cpu, insn, area_size(rfbm), 64, X86_WRITE);
    struct area area = begin_area(cpu, la, area_size(rfbm), buffer);
    store_components(cpu, insn, &area, saved, saved & X86_XCR0_SSE);
    x86_store(cpu, la + XSAVE_XSTATE_BV, 8, saved);
    x86_store(cpu, la + XSAVE_XCOMP_BV, 8, rfbm | XSAVE_COMPACTED);
}

/* What XRSTOR looks at before it uses it: read once, the guest may be writing. */
struct restore {
    uint64_t header[8]; /* XSTATE_BV, XCOMP_BV, reserved */
    uint32_t mxcsr;
};

static bool header_rest_is_zero(const struct restore *r)
{
    uint64_t any = 0;

    for (unsigned i = 2; i < ARRAY_COUNT(r->header); i++)
        any |= r->header[i];
    return any == 0;
}

/* SDM vol. 1 sections 13.8 and 13.12: what a header may contain. */
static bool header_valid(const struct x86_cpu *cpu, const struct x86_insn *insn,
                         const struct restore *r)
{
    const uint64_t enabled = cpu->s.xcr0 | (insn->imm & XSAVE_SUPERVISOR ? cpu->s.xss : 0);
    const uint64_t present = r->header[0], format = r->header[1];

    if (!(format & XSAVE_COMPACTED))
        return !(insn->imm & XSAVE_SUPERVISOR) && !(present & ~enabled) && format == 0 &&
               r->header[2] == 0;
    return x86_has(cpu->features, X86_FEATURE_XSAVEC) && !(format & ~(enabled | XSAVE_COMPACTED)) &&
           !(present & ~format) && header_rest_is_zero(r);
}

static void load_component(struct x86_cpu *cpu, const struct x86_insn *insn, const uint8_t *image,
                           unsigned component)
{
    const unsigned count = register_count(cpu);
    struct x86_fpu *f = &cpu->s.fpu;

    switch (component) {
    case 0:
        x86_fxsave_get_x87(f, image, insn->imm & XSAVE_WIDE);
        break;
    case 1:
        get_xmm(f, image, count);
        break;
    default:
        for (unsigned i = 0; i < count; i++)
            memcpy(f->ymm[i] + 16, image + X86_XSAVE_AVX_OFFSET + i * 16, 16);
        break;
    }
}

/*
 * The MXCSR that XRSTOR leaves: in the standard form it is loaded with SSE or AVX whatever
 * XSTATE_BV says, in the compacted form it is part of the SSE component.
 */
static uint32_t restored_mxcsr(struct x86_cpu *cpu, const struct restore *r, uint64_t rfbm)
{
    const bool compacted = r->header[1] & XSAVE_COMPACTED;
    const uint64_t trigger = compacted ? X86_XCR0_SSE : X86_XCR0_SSE | X86_XCR0_AVX;

    if (!(rfbm & trigger))
        return cpu->s.fpu.mxcsr;
    if (compacted && !(r->header[0] & X86_XCR0_SSE))
        return XSAVE_MXCSR_INIT;
    check_mxcsr(cpu, r->mxcsr);
    return r->mxcsr;
}

/* XRSTOR, XRSTORS */
static void run_xrstor(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    uint8_t buffer[X86_XSAVE_SIZE];
    struct restore r;

    check_xsave(cpu, insn);
    const uint64_t rfbm = requested(cpu, insn);
    const unsigned size = area_size(rfbm);
    const uint64_t la = area_la(cpu, insn, size, 64, X86_READ);
    const uint8_t *image = (const uint8_t *)read_pointer(cpu, la, size);
    if (unlikely(!image)) {
        x86_load_bytes(cpu, la, buffer, size);
        image = buffer;
    }
    memcpy(r.header, image + XSAVE_XSTATE_BV, sizeof r.header);
    r.mxcsr = load_le32(image + XSAVE_MXCSR);
    if (!header_valid(cpu, insn, &r))
        x86_raise_error(cpu, X86_GP, 0);
    cpu->s.fpu.mxcsr = restored_mxcsr(cpu, &r, rfbm);
    for (unsigned i = 0; i < 3; i++) {
        if (rfbm & r.header[0] & BIT(i))
            load_component(cpu, insn, image, i);
        else if (rfbm & BIT(i))
            x86_xsave_init_component(&cpu->s.fpu, i, register_count(cpu));
    }
}

static void load_mxcsr(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    uint32_t mxcsr = (uint32_t)x86_load(cpu, x86_operand_la(cpu, insn, 4, X86_READ), 4);

    check_mxcsr(cpu, mxcsr);
    cpu->s.fpu.mxcsr = mxcsr;
}

static void run_ldmxcsr(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    x86_check_sse(cpu);
    load_mxcsr(cpu, insn);
}

static void run_vldmxcsr(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    x86_check_avx(cpu);
    load_mxcsr(cpu, insn);
}

static void run_stmxcsr(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    x86_check_sse(cpu);
    x86_store(cpu, x86_operand_la(cpu, insn, 4, X86_WRITE), 4, cpu->s.fpu.mxcsr);
}

static void run_vstmxcsr(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    x86_check_avx(cpu);
    x86_store(cpu, x86_operand_la(cpu, insn, 4, X86_WRITE), 4, cpu->s.fpu.mxcsr);
}

static const struct {
    ZydisMnemonic mnemonic;
    x86_handler *run;
    unsigned form;
} forms[] = {
    {ZYDIS_MNEMONIC_FXSAVE, run_fxsave, 0},
    {ZYDIS_MNEMONIC_FXSAVE64, run_fxsave, XSAVE_WIDE},
    {ZYDIS_MNEMONIC_FXRSTOR, run_fxrstor, 0},
    {ZYDIS_MNEMONIC_FXRSTOR64, run_fxrstor, XSAVE_WIDE},
    {ZYDIS_MNEMONIC_XSAVE, run_xsave, 0},
    {ZYDIS_MNEMONIC_XSAVE64, run_xsave, XSAVE_WIDE},
    {ZYDIS_MNEMONIC_XSAVEOPT, run_xsave, XSAVE_INIT_OPT},
    {ZYDIS_MNEMONIC_XSAVEOPT64, run_xsave, XSAVE_INIT_OPT | XSAVE_WIDE},
    {ZYDIS_MNEMONIC_XSAVEC, run_xsavec, 0},
    {ZYDIS_MNEMONIC_XSAVEC64, run_xsavec, XSAVE_WIDE},
    {ZYDIS_MNEMONIC_XSAVES, run_xsavec, XSAVE_SUPERVISOR},
    {ZYDIS_MNEMONIC_XSAVES64, run_xsavec, XSAVE_SUPERVISOR | XSAVE_WIDE},
    {ZYDIS_MNEMONIC_XRSTOR, run_xrstor, 0},
    {ZYDIS_MNEMONIC_XRSTOR64, run_xrstor, XSAVE_WIDE},
    {ZYDIS_MNEMONIC_XRSTORS, run_xrstor, XSAVE_SUPERVISOR},
    {ZYDIS_MNEMONIC_XRSTORS64, run_xrstor, XSAVE_SUPERVISOR | XSAVE_WIDE},
    {ZYDIS_MNEMONIC_LDMXCSR, run_ldmxcsr, 0},
    {ZYDIS_MNEMONIC_STMXCSR, run_stmxcsr, 0},
    {ZYDIS_MNEMONIC_VLDMXCSR, run_vldmxcsr, 0},
    {ZYDIS_MNEMONIC_VSTMXCSR, run_vstmxcsr, 0},
};

static bool bind_xsave(const struct x86_decode *d, struct x86_insn *out)
{
    for (unsigned i = 0; i < ARRAY_COUNT(forms); i++) {
        if (forms[i].mnemonic != d->z->mnemonic)
            continue;
        out->run = forms[i].run;
        out->imm = forms[i].form;
        return true;
    }
    return false;
}

#define XSAVE(m) {ZYDIS_MNEMONIC_##m, bind_xsave},

/* clang-format off */
const struct x86_bind x86_bind_xsave[] = {
    XSAVE(FXSAVE) XSAVE(FXSAVE64) XSAVE(FXRSTOR) XSAVE(FXRSTOR64)
    XSAVE(XSAVE) XSAVE(XSAVE64) XSAVE(XSAVEOPT) XSAVE(XSAVEOPT64)
    XSAVE(XSAVEC) XSAVE(XSAVEC64) XSAVE(XSAVES) XSAVE(XSAVES64)
    XSAVE(XRSTOR) XSAVE(XRSTOR64) XSAVE(XRSTORS) XSAVE(XRSTORS64)
    XSAVE(LDMXCSR) XSAVE(STMXCSR) XSAVE(VLDMXCSR) XSAVE(VSTMXCSR)
    {ZYDIS_MNEMONIC_INVALID, NULL},
};
/* clang-format on */
