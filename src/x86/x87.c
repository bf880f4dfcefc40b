/*
 * x87 instructions, run by the host's x87 unit through a stub: load the guest's x87 state with all
 * exceptions masked, execute, take the state out again, leave the unit empty. The CPU's thread.
 * SDM vol. 1 chapter 8; 8.5 for what unmasked exceptions leave undone.
 *
 * Deviations: an unmasked overflow or underflow with a register destination delivers the masked
 * result, not the one scaled by 2^24576; an exact denormal result raises no unmasked underflow.
 */
#include "x86/mem.h"
#include "x86/stub_int.h"
#include "x86/x87_int.h"

/* What FXRSTOR64 and FXSAVE64 move. SDM vol. 1 table 10-2. */
struct x87_image {
    _Alignas(16) uint16_t fcw;
    uint16_t fsw;
    uint8_t ftw, reserved;
    uint16_t fop;
    uint64_t fip, fdp;
    uint32_t mxcsr, mxcsr_mask;
    uint8_t st[8][16];
    uint8_t xmm_and_rest[352];
};

_Static_assert(sizeof(struct x87_image) == 512, "FXSAVE image");

/* Stub arguments: the image, the memory operand, the flags for FCMOVcc. */
static uint64_t x87_call(struct x86_cpu *cpu, const struct x86_stub *stub, struct x87_image *image,
                         void *memory)
{
    uint64_t flags = X86_FIXED | X86_IF | (cpu->s.rflags & X86_STATUS_FLAGS);

    return stub->run(image, memory, (void *)(uintptr_t)flags, NULL, cpu);
}

static void image_from_guest(struct x87_image *image, const struct x86_fpu *fpu)
{
    memset(image, 0, sizeof *image);
    image->fcw = fpu->fcw | FCW_MASKS;
    image->fsw = fpu->fsw & (uint16_t) ~(FSW_EXCEPTIONS | FSW_SF | FSW_ES | FSW_B);
    image->ftw = fpu->ftw;
    image->mxcsr = x86_host_mxcsr();
    memcpy(image->st, fpu->st, sizeof image->st);
}

/* The sticky flags stay; the rest of the status word is new. */
static void image_to_guest(const struct x87_image *image, struct x86_fpu *fpu, uint16_t raised)
{
    const uint16_t sticky = fpu->fsw & (FSW_EXCEPTIONS | FSW_SF);

    fpu->fsw = (image->fsw & (uint16_t)~FSW_EXCEPTIONS) | sticky | raised;
    fpu->ftw = image->ftw;
    for (unsigned i = 0; i < 8; i++)
        memcpy(fpu->st[i], image->st[i], 10);
}

/* FIP, FDP, FOP are the guest's, made here: the host's would tell where parat's code lies. */
static void set_pointers(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    struct x86_fpu *fpu = &cpu->s.fpu;

    fpu->fip = cpu->s.rip;
    fpu->fcs = cpu->s.seg[X86_CS].selector;
    fpu->fop = (uint16_t)insn->imm;
    if (insn->flags & X86_INSN_MEM) {
        fpu->fdp = x86_ea(cpu, insn);
        fpu->fds = cpu->s.seg[insn->seg].selector;
    }
}

/*
 * Puts the outcome into the guest's state. False: an unmasked exception keeps the destination as
 * it was. Invalid operation, denormal and zero divide do so always, overflow and underflow for a
 * destination in memory. SDM vol. 1 sections 8.5.1 to 8.5.6. Where the manual leaves it open this
 * is what AMD's CPUs do: the condition codes are set all the same (C1 only by a stack fault), and
 * a denormal is loaded.
 */
static bool commit(struct x86_fpu *fpu, const struct x87_image *image, const struct x86_stub *stub)
{
    const uint16_t before = FSW_IE | FSW_DE | FSW_ZE, range = FSW_OE | FSW_UE;
    const uint16_t codes = FSW_C0 | FSW_C2 | FSW_C3;
    uint16_t raised = image->fsw & FSW_EXCEPTIONS, fsw = image->fsw;
    const uint16_t unmasked = raised & (uint16_t)~fpu->fcw;
    const bool is_load = stub->flags & X86_STUB_X87_LOAD, store = stub->flags & X86_STUB_STORE;
    bool done = !(unmasked & before) && !(store && unmasked & range);

    if (done || (is_load && (unmasked & before) == FSW_DE)) {
        image_to_guest(image, fpu, raised);
    } else {
        raised &= unmasked & before ? before : (uint16_t)~FSW_PE;
        if (!(fsw & FSW_SF) && !(stub->flags & X86_STUB_FLAGS)) /* FCOMI keeps it */
            fsw &= (uint16_t)~FSW_C1;
        fpu->fsw &= (uint16_t) ~(codes | FSW_C1);
        fpu->fsw |= (fsw & (codes | FSW_C1 | FSW_SF)) | raised;
    }
    x86_fpu_update_es(fpu);
    return done;
}

static void run_x87(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    const struct x86_stub *stub = insn->aux;
    const bool store = stub->flags & X86_STUB_STORE;
    struct x87_image image;
    uint8_t memory[16] = {0};
    uint64_t la = 0, flags;

    x86_check_x87(cpu);
    x86_check_pending(cpu);
    if (stub->mem_size) {
        la = x86_operand_la(cpu, insn, stub->mem_size, store ? X86_WRITE : X86_READ);
        if (store)
            x86_probe_write(cpu, la, stub->mem_size);
        else
            x86_load_bytes(cpu, la, memory, stub->mem_size);
    }
    image_from_guest(&image, &cpu->s.fpu);
    flags = x87_call(cpu, stub, &image, memory);
    set_pointers(cpu, insn);
    if (commit(&cpu->s.fpu, &image, stub) && store)
        x86_store_bytes(cpu, la, memory, stub->mem_size);
    if (stub->flags & X86_STUB_FLAGS)
        cpu->s.rflags = (cpu->s.rflags & ~X86_STATUS_FLAGS) | (flags & X86_STATUS_FLAGS);
}

/*
 * fxrstor64 [rdi]; the instruction, with its memory operand at [rsi]; fxsave64 [rdi]; fninit.
 * FCMOVcc sees the guest's flags, FCOMI's are returned.
 */
static unsigned make_code(uint8_t *code, uint8_t opcode, uint8_t modrm, bool reads_flags,
                          bool writes_flags)
{
    static const uint8_t load[] = {0x48, 0x0f, 0xae, 0x0f}, set_flags[] = {0x52, 0x9d},
                         get_flags[] = {0x9c, 0x58},
                         save[] = {0x48, 0x0f, 0xae, 0x07, 0xdb, 0xe3, 0xc3};
    unsigned n = 0;

    memcpy(code + n, load, sizeof load);
    n += (unsigned)sizeof load;
    if (reads_flags) {
        memcpy(code + n, set_flags, sizeof set_flags);
        n += (unsigned)sizeof set_flags;
    }
    code[n++] = opcode;
    code[n++] = modrm;
    if (writes_flags) {
        memcpy(code + n, get_flags, sizeof get_flags);
        n += (unsigned)sizeof get_flags;
    }
    memcpy(code + n, save, sizeof save);
    return n + (unsigned)sizeof save;
}

static bool bind_x87(const struct x86_decode *d, struct x86_insn *out)
{
    const ZydisDecodedInstruction *z = d->z;
    const uint8_t modrm = d->bytes[z->raw.modrm.offset];
    struct x86_stub stub = {0};
    bool reads_flags = false, writes_flags = false;
    uint8_t code[32];

    if (z->opcode_map != ZYDIS_OPCODE_MAP_DEFAULT || z->opcode < 0xd8 || z->opcode > 0xdf)
        return false;
    for (unsigned i = 0; i < z->operand_count; i++) {
        const ZydisDecodedOperand *op = &d->op[i];
        const bool written = op->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE;

        if (op->type == ZYDIS_OPERAND_TYPE_MEMORY) {
            stub.mem_size = (uint8_t)(op->size / 8);
            stub.flags |= written ? X86_STUB_STORE : X86_STUB_LOAD;
        } else if (op->type == ZYDIS_OPERAND_TYPE_REGISTER &&
                   ZydisRegisterGetClass(op->reg.value) == ZYDIS_REGCLASS_FLAGS) {
            reads_flags |= !written;
            writes_flags |= written;
        }
    }
    /* A ModRM that goes into the stub as it is must name registers, whatever the tables say. */
    if (stub.mem_size > 10 || (!stub.mem_size && modrm < 0xc0))
        return false;
    if (writes_flags)
        stub.flags |= X86_STUB_FLAGS;
    if (z->mnemonic == ZYDIS_MNEMONIC_FLD)
        stub.flags |= X86_STUB_X87_LOAD;
    unsigned size = make_code(code, z->opcode, stub.mem_size ? (modrm & 0x38) | 6 : modrm,
                              reads_flags, writes_flags);
    out->aux = (void *)x86_stub_get(d->stubs, &stub, code, size);
    out->imm = (uint64_t)(z->opcode & 7) << 8 | modrm;
    out->run = run_x87;
    return out->aux;
}

#define HOST(m)    {ZYDIS_MNEMONIC_##m, bind_x87},             /* runs as itself on the host */
#define CONTROL(m) {ZYDIS_MNEMONIC_##m, x86_x87_bind_control}, /* in x87_env.c */

/* clang-format off */
const struct x86_bind x86_bind_x87[] = {
    HOST(F2XM1) HOST(FABS) HOST(FADD) HOST(FADDP) HOST(FBLD) HOST(FBSTP) HOST(FCHS) HOST(FCMOVB)
    HOST(FCMOVBE) HOST(FCMOVE) HOST(FCMOVNB) HOST(FCMOVNBE) HOST(FCMOVNE) HOST(FCMOVNU) HOST(FCMOVU)
    HOST(FCOM) HOST(FCOMI) HOST(FCOMIP) HOST(FCOMP) HOST(FCOMPP) HOST(FCOS) HOST(FDECSTP)
    CONTROL(FDISI8087_NOP) HOST(FDIV) HOST(FDIVP) HOST(FDIVR) HOST(FDIVRP) CONTROL(FENI8087_NOP)
    HOST(FFREE) HOST(FFREEP) HOST(FIADD) HOST(FICOM) HOST(FICOMP) HOST(FIDIV) HOST(FIDIVR)
    HOST(FILD) HOST(FIMUL) HOST(FINCSTP) HOST(FIST) HOST(FISTP) HOST(FISTTP) HOST(FISUB)
    HOST(FISUBR) HOST(FLD) HOST(FLD1) CONTROL(FLDCW) CONTROL(FLDENV) HOST(FLDL2E) HOST(FLDL2T)
    HOST(FLDLG2) HOST(FLDLN2) HOST(FLDPI) HOST(FLDZ) HOST(FMUL) HOST(FMULP) CONTROL(FNCLEX)
    CONTROL(FNINIT) CONTROL(FNOP) CONTROL(FNSAVE) CONTROL(FNSTCW) CONTROL(FNSTENV) CONTROL(FNSTSW)
    HOST(FPATAN) HOST(FPREM) HOST(FPREM1) HOST(FPTAN) HOST(FRNDINT) CONTROL(FRSTOR) HOST(FSCALE)
    CONTROL(FSETPM287_NOP) HOST(FSIN) HOST(FSINCOS) HOST(FSQRT) HOST(FST) HOST(FSTP) HOST(FSTPNCE)
    HOST(FSUB) HOST(FSUBP) HOST(FSUBR) HOST(FSUBRP) HOST(FTST) HOST(FUCOM) HOST(FUCOMI)
    HOST(FUCOMIP) HOST(FUCOMP) HOST(FUCOMPP) CONTROL(FWAIT) HOST(FXAM) HOST(FXCH) HOST(FXTRACT)
    HOST(FYL2X) HOST(FYL2XP1)
    {ZYDIS_MNEMONIC_INVALID, NULL},
};
/* clang-format on */
