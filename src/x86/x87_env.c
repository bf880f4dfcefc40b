/*
 * x87 control instructions and environments, in C: FNINIT, FLDCW, FNSTENV, FNSAVE and their kin.
 * They are what kernels use, and the non-waiting ones must not touch the host's unit. The CPU's
 * thread. SDM vol. 1 sections 8.1.8 to 8.1.10, vol. 2 under each name.
 */
#include "x86/mem.h"
#include "x86/x87_int.h"

void x86_fpu_update_es(struct x86_fpu *fpu)
{
    if (fpu->fsw & ~fpu->fcw & FSW_EXCEPTIONS)
        fpu->fsw |= FSW_ES | FSW_B;
    else
        fpu->fsw &= (uint16_t) ~(FSW_ES | FSW_B);
}

void x86_fpu_set_top(struct x86_fpu *fpu, unsigned top)
{
    unsigned turn = (top - ((fpu->fsw & FSW_TOP) >> FSW_TOP_SHIFT)) & 7;

    if (turn) {
        uint8_t st[8][16];
        for (unsigned i = 0; i < 8; i++)
            memcpy(st[i], fpu->st[(i + turn) & 7], 16);
        memcpy(fpu->st, st, sizeof st);
    }
    fpu->fsw = (fpu->fsw & (uint16_t)~FSW_TOP) | (uint16_t)(top << FSW_TOP_SHIFT);
}

void x86_fpu_init_x87(struct x86_fpu *fpu)
{
    x86_fpu_set_top(fpu, 0);
    fpu->fcw = FCW_DEFAULT;
    fpu->fsw = 0;
    fpu->ftw = 0;
    fpu->fop = fpu->fcs = fpu->fds = 0;
    fpu->fip = fpu->fdp = 0;
}

static void run_fninit(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    x86_check_x87(cpu);
    x86_fpu_init_x87(&cpu->s.fpu);
}

static void run_fnclex(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    x86_check_x87(cpu);
    cpu->s.fpu.fsw &= (uint16_t) ~(FSW_EXCEPTIONS | FSW_SF | FSW_ES | FSW_B);
}

static void set_fcw(struct x86_fpu *fpu, uint16_t fcw)
{
    fpu->fcw = (fcw & FCW_VALID) | FCW_FIXED;
    x86_fpu_update_es(fpu);
}

static void run_fldcw(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    x86_check_x87(cpu);
    x86_check_pending(cpu);
    set_fcw(&cpu->s.fpu, (uint16_t)x86_load(cpu, x86_operand_la(cpu, insn, 2, X86_READ), 2));
}

static void run_fnstcw(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    x86_check_x87(cpu);
    x86_store(cpu, x86_operand_la(cpu, insn, 2, X86_WRITE), 2, cpu->s.fpu.fcw);
}

static void run_fnstsw(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    x86_check_x87(cpu);
    x86_store(cpu, x86_operand_la(cpu, insn, 2, X86_WRITE), 2, cpu->s.fpu.fsw);
}

static void run_fnstsw_ax(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    x86_check_x87(cpu);
    store_le16(&cpu->s.gpr[X86_RAX], cpu->s.fpu.fsw);
}

/* Only CR0.TS with CR0.MP keeps FWAIT from running. */
static void run_fwait(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    const uint64_t both = X86_CR0_MP | X86_CR0_TS;

    if ((cpu->s.cr0 & both) == both)
        x86_raise(cpu, X86_NM);
    x86_check_pending(cpu);
}

static void run_fnop(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    x86_check_x87(cpu);
    x86_check_pending(cpu);
}

/* FENI, FDISI, FSETPM: no-ops since the 387. */
static void run_old_nop(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    x86_check_x87(cpu);
}

/* Two bits per physical register: 0 valid, 1 zero, 2 special, 3 empty. SDM vol. 1 section 8.1.7. */
static unsigned register_tag(const uint8_t *st)
{
    uint64_t mantissa = load_le64(st);
    unsigned exponent = load_le16(st + 8) & 0x7fff;

    if (exponent == 0 && mantissa == 0)
        return 1;
    return exponent == 0 || exponent == 0x7fff || !(mantissa >> 63) ? 2 : 0;
}

static uint16_t full_tags(const struct x86_fpu *fpu)
{
    unsigned top = (fpu->fsw & FSW_TOP) >> FSW_TOP_SHIFT, tags = 0;

    for (unsigned i = 0; i < 8; i++) {
        unsigned tag = fpu->ftw >> i & 1 ? register_tag(fpu->st[(i - top) & 7]) : 3;
        tags |= tag << i * 2;
    }
    return (uint16_t)tags;
}

static uint8_t abridged_tags(uint16_t tags)
{
    unsigned abridged = 0;

    for (unsigned i = 0; i < 8; i++)
        if ((tags >> i * 2 & 3) != 3)
            abridged |= 1u << i;
    return (uint8_t)abridged;
}

/* The image of FNSTENV is 14 or 28 bytes, by operand size. SDM vol. 1 figures 8-9 to 8-12. */
enum { ENV_16 = 14, ENV_32 = 28, X87_REGISTERS = 80 };

static bool real_format(const struct x86_cpu *cpu)
{
    return !cpu->protected_mode || cpu->v86;
}

static void put_env_16(const struct x86_cpu *cpu, uint8_t *to)
{
    const struct x86_fpu *f = &cpu->s.fpu;
    const uint64_t ip = f->fip + (f->fcs << 4), dp = f->fdp + (f->fds << 4);
    const bool real = real_format(cpu);

    store_le16(to, f->fcw);
    store_le16(to + 2, f->fsw);
    store_le16(to + 4, full_tags(f));
    store_le16(to + 6, (uint16_t)(real ? ip : f->fip));
    store_le16(to + 8, real ? (uint16_t)((ip >> 16 & 15) << 12 | f->fop) : f->fcs);
    store_le16(to + 10, (uint16_t)(real ? dp : f->fdp));
    store_le16(to + 12, real ? (uint16_t)((dp >> 16 & 15) << 12) : f->fds);
}

static void put_env_32(const struct x86_cpu *cpu, uint8_t *to)
{
    const struct x86_fpu *f = &cpu->s.fpu;
    const uint32_t ip = (uint32_t)f->fip + ((uint32_t)f->fcs << 4);
    const uint32_t dp = (uint32_t)f->fdp + ((uint32_t)f->fds << 4);
    const uint32_t high = 0xffff0000;
    const bool real = real_format(cpu);

    store_le32(to, high | f->fcw);
    store_le32(to + 4, high | f->fsw);
    store_le32(to + 8, high | full_tags(f));
    store_le32(to + 12, real ? high | (ip & 0xffff) : (uint32_t)f->fip);
    store_le32(to + 16, real ? (ip >> 16) << 12 | f->fop : (uint32_t)f->fop << 16 | f->fcs);
    store_le32(to + 20, real ? high | (dp & 0xffff) : (uint32_t)f->fdp);
    store_le32(to + 24, real ? (dp >> 16) << 12 : high | f->fds);
}

static void get_env(struct x86_cpu *cpu, const uint8_t *from, unsigned size)
{
    struct x86_fpu *f = &cpu->s.fpu;
    const unsigned step = size == ENV_16 ? 2 : 4;
    const bool real = real_format(cpu);
    uint16_t fsw = load_le16(from + step);
    uint32_t word[4]; /* FIP, FCS and FOP, FDP, FDS */

    for (unsigned i = 0; i < 4; i++)
        word[i] = step == 2 ? load_le16(from + 6 + i * 2) : load_le32(from + 12 + i * 4);
    x86_fpu_set_top(f, (fsw & FSW_TOP) >> FSW_TOP_SHIFT);
    f->fsw = fsw;
    f->ftw = abridged_tags(load_le16(from + 2 * step));
    if (real) {
        f->fip = (word[0] & 0xffff) | (uint64_t)(word[1] >> 12) << 16;
        f->fdp = (word[2] & 0xffff) | (uint64_t)(word[3] >> 12 & 0xffff) << 16;
        f->fop = word[1] & 0x7ff;
        f->fcs = f->fds = 0;
    } else {
        f->fip = word[0];
        f->fdp = word[2];
        f->fcs = (uint16_t)word[1];
        f->fop = step == 2 ? 0 : word[1] >> 16 & 0x7ff;
        f->fds = (uint16_t)word[3];
    }
    set_fcw(f, load_le16(from));
}

/* insn->size is the size of the environment. */
static void put_env(const struct x86_cpu *cpu, unsigned size, uint8_t *to)
{
    if (size == ENV_16)
        put_env_16(cpu, to);
    else
        put_env_32(cpu, to);
}

/* Saves, then masks all exceptions. */
static void run_fnstenv(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    uint8_t env[ENV_32];

    x86_check_x87(cpu);
    put_env(cpu, insn->size, env);
    x86_store_bytes(cpu, x86_operand_la(cpu, insn, insn->size, X86_WRITE), env, insn->size);
    set_fcw(&cpu->s.fpu, cpu->s.fpu.fcw | FCW_MASKS);
}

static void run_fldenv(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    uint8_t env[ENV_32];

    x86_check_x87(cpu);
    x86_check_pending(cpu);
    x86_load_bytes(cpu, x86_operand_la(cpu, insn, insn->size, X86_READ), env, insn->size);
    get_env(cpu, env, insn->size);
}

static void run_fnsave(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    const unsigned size = insn->size + X87_REGISTERS;
    uint8_t image[ENV_32 + X87_REGISTERS];

    x86_check_x87(cpu);
    put_env(cpu, insn->size, image);
    for (unsigned i = 0; i < 8; i++)
        memcpy(image + insn->size + i * 10, cpu->s.fpu.st[i], 10);
    x86_store_bytes(cpu, x86_operand_la(cpu, insn, size, X86_WRITE), image, size);
    x86_fpu_init_x87(&cpu->s.fpu);
}

static void run_frstor(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    const unsigned size = insn->size + X87_REGISTERS;
    uint8_t image[ENV_32 + X87_REGISTERS];

    x86_check_x87(cpu);
    x86_check_pending(cpu);
    x86_load_bytes(cpu, x86_operand_la(cpu, insn, size, X86_READ), image, size);
    get_env(cpu, image, insn->size);
    for (unsigned i = 0; i < 8; i++)
        memcpy(cpu->s.fpu.st[i], image + insn->size + i * 10, 10);
}

static const struct {
    ZydisMnemonic mnemonic;
    x86_handler *run;
} control[] = {
    {ZYDIS_MNEMONIC_FNINIT, run_fninit},
    {ZYDIS_MNEMONIC_FNCLEX, run_fnclex},
    {ZYDIS_MNEMONIC_FLDCW, run_fldcw},
    {ZYDIS_MNEMONIC_FNSTCW, run_fnstcw},
    {ZYDIS_MNEMONIC_FNSTSW, run_fnstsw},
    {ZYDIS_MNEMONIC_FNSTENV, run_fnstenv},
    {ZYDIS_MNEMONIC_FLDENV, run_fldenv},
    {ZYDIS_MNEMONIC_FNSAVE, run_fnsave},
    {ZYDIS_MNEMONIC_FRSTOR, run_frstor},
    {ZYDIS_MNEMONIC_FWAIT, run_fwait},
    {ZYDIS_MNEMONIC_FNOP, run_fnop},
    {ZYDIS_MNEMONIC_FDISI8087_NOP, run_old_nop},
    {ZYDIS_MNEMONIC_FENI8087_NOP, run_old_nop},
    {ZYDIS_MNEMONIC_FSETPM287_NOP, run_old_nop},
};

bool x86_x87_bind_control(const struct x86_decode *d, struct x86_insn *out)
{
    unsigned bits = d->op[0].type == ZYDIS_OPERAND_TYPE_MEMORY ? d->op[0].size : 0;

    /* The environment's size: 752 and 864 bits are FNSAVE's 94 and 108 bytes. */
    if (bits >= ENV_16 * 8)
        out->size = bits == ENV_16 * 8 || bits == (ENV_16 + X87_REGISTERS) * 8 ? ENV_16 : ENV_32;
    for (unsigned i = 0; i < ARRAY_COUNT(control); i++)
        if (control[i].mnemonic == d->z->mnemonic)
            out->run = control[i].run;
    if (d->z->mnemonic == ZYDIS_MNEMONIC_FNSTSW && !bits)
        out->run = run_fnstsw_ax;
    return out->run;
}
