/*
 * What the generator has to know about single instructions: which ones two runs cannot agree on,
 * and which want their operands prepared to get beyond a fault. The place to extend for new ones.
 */
#include <string.h>

#include "base/bits.h"

#include "diff.h"

/* --- left out --- */

static const struct {
    ZydisMnemonic mnemonic;
    const char *why;
} excluded[] = {
    {ZYDIS_MNEMONIC_INT, "enters the host's kernel"},
    {ZYDIS_MNEMONIC_SYSCALL, "enters the host's kernel"},
    {ZYDIS_MNEMONIC_SYSENTER, "enters the host's kernel"},
    {ZYDIS_MNEMONIC_VMMCALL, "enters the host's hypervisor"},
    {ZYDIS_MNEMONIC_INT3, "ends every sequence"},
    {ZYDIS_MNEMONIC_INT1, "virtual hosts report it as a fault"},
    {ZYDIS_MNEMONIC_CPUID, "differs by design"},
    {ZYDIS_MNEMONIC_RDTSC, "not repeatable"},
    {ZYDIS_MNEMONIC_RDTSCP, "not repeatable"},
    {ZYDIS_MNEMONIC_RDPID, "not repeatable"},
    {ZYDIS_MNEMONIC_RDPRU, "not repeatable"},
    {ZYDIS_MNEMONIC_RDPMC, "depends on the host's CR4.PCE"},
    {ZYDIS_MNEMONIC_RDRAND, "not repeatable"},
    {ZYDIS_MNEMONIC_RDSEED, "not repeatable"},
    {ZYDIS_MNEMONIC_WRFSBASE, "would move the harness's thread-local storage"},
    {ZYDIS_MNEMONIC_WRGSBASE, "the harness sets GS once"},
    {ZYDIS_MNEMONIC_RDFSBASE, "not repeatable"},
    {ZYDIS_MNEMONIC_XSETBV, "differs by design"},
    {ZYDIS_MNEMONIC_XGETBV, "differs by design"},
    {ZYDIS_MNEMONIC_SMSW, "CR0 differs by design, or UMIP"},
    {ZYDIS_MNEMONIC_STR, "differs by design, or UMIP"},
    {ZYDIS_MNEMONIC_SLDT, "differs by design, or UMIP"},
    {ZYDIS_MNEMONIC_SGDT, "differs by design, or UMIP"},
    {ZYDIS_MNEMONIC_SIDT, "differs by design, or UMIP"},
    {ZYDIS_MNEMONIC_LAR, "the descriptor tables differ"},
    {ZYDIS_MNEMONIC_LSL, "the descriptor tables differ"},
    {ZYDIS_MNEMONIC_VERR, "the descriptor tables differ"},
    {ZYDIS_MNEMONIC_VERW, "the descriptor tables differ"},
    {ZYDIS_MNEMONIC_LFS, "would move the harness's thread-local storage"},
    {ZYDIS_MNEMONIC_LGS, "would move GS"},
    {ZYDIS_MNEMONIC_LSS, "the descriptor tables differ"},
    {ZYDIS_MNEMONIC_IRET, "the descriptor tables differ"},
    {ZYDIS_MNEMONIC_IRETD, "the descriptor tables differ"},
    {ZYDIS_MNEMONIC_IRETQ, "the descriptor tables differ"},
    {ZYDIS_MNEMONIC_FNSTENV, "stores FIP and FDP, which differ by design"},
    {ZYDIS_MNEMONIC_FNSAVE, "stores FIP and FDP, which differ by design"},
    {ZYDIS_MNEMONIC_FLDENV, "loads FIP and FDP"},
    {ZYDIS_MNEMONIC_FRSTOR, "loads FIP and FDP"},
    {ZYDIS_MNEMONIC_FXSAVE, "stores FIP and FDP, which differ by design"},
    {ZYDIS_MNEMONIC_FXSAVE64, "stores FIP and FDP, which differ by design"},
    {ZYDIS_MNEMONIC_FXRSTOR, "random images fault or load FIP"},
    {ZYDIS_MNEMONIC_FXRSTOR64, "random images fault or load FIP"},
    {ZYDIS_MNEMONIC_UD0, "has no handler"},
};

static bool touches_special_register(const struct diff_insn *i)
{
    for (unsigned k = 0; k < i->z.operand_count_visible; k++) {
        if (i->op[k].type != ZYDIS_OPERAND_TYPE_REGISTER)
            continue;
        switch (ZydisRegisterGetClass(i->op[k].reg.value)) {
        case ZYDIS_REGCLASS_SEGMENT:
            /* Reading one is fine. */
            if (i->op[k].actions & ZYDIS_OPERAND_ACTION_MASK_WRITE)
                return true;
            break;
        case ZYDIS_REGCLASS_CONTROL:
        case ZYDIS_REGCLASS_DEBUG:
            return true;
        default:
            break;
        }
    }
    return false;
}

static bool is_loop(ZydisMnemonic m)
{
    return m == ZYDIS_MNEMONIC_LOOP || m == ZYDIS_MNEMONIC_LOOPE || m == ZYDIS_MNEMONIC_LOOPNE ||
           m == ZYDIS_MNEMONIC_JCXZ || m == ZYDIS_MNEMONIC_JECXZ || m == ZYDIS_MNEMONIC_JRCXZ;
}

static bool has_repeat_prefix(const struct diff_insn *i)
{
    for (unsigned k = 0; k < i->z.raw.prefix_count; k++)
        if (i->z.raw.prefixes[k].value == 0xf2 || i->z.raw.prefixes[k].value == 0xf3)
            return true;
    return false;
}

static bool is_decimal_adjust(ZydisMnemonic m)
{
    return m == ZYDIS_MNEMONIC_AAA || m == ZYDIS_MNEMONIC_AAS || m == ZYDIS_MNEMONIC_DAA ||
           m == ZYDIS_MNEMONIC_DAS;
}

/*
 * parat's CPU is AMD's. Intel's processors ignore prefixes before near branches, loops and PAUSE,
 * want the operands of SHA instructions aligned, push 16 bits of a segment register, and leave
 * something else in undefined flags of decimal adjustments.
 */
static bool differs_on_intel(const struct diff_insn *i)
{
    if (i->z.meta.branch_type != ZYDIS_BRANCH_TYPE_NONE &&
        i->z.attributes & ZYDIS_ATTRIB_HAS_OPERANDSIZE &&
        (i->z.machine_mode == ZYDIS_MACHINE_MODE_LONG_64 || is_loop(i->z.mnemonic)))
        return true;
    if (i->z.mnemonic == ZYDIS_MNEMONIC_PUSH &&
        ZydisRegisterGetClass(i->op[0].reg.value) == ZYDIS_REGCLASS_SEGMENT)
        return true;
    return (is_loop(i->z.mnemonic) && has_repeat_prefix(i)) ||
           (i->z.mnemonic == ZYDIS_MNEMONIC_PAUSE && i->z.raw.rex.B) ||
           i->z.meta.isa_set == ZYDIS_ISA_SET_SHA || is_decimal_adjust(i->z.mnemonic);
}

bool diff_policy_comparable_here(const struct diff_insn *i)
{
    return !__builtin_cpu_is("intel") || !differs_on_intel(i);
}

const char *diff_policy_excluded(const struct diff_insn *i)
{
    for (unsigned k = 0; k < ARRAY_COUNT(excluded); k++)
        if (i->z.mnemonic == excluded[k].mnemonic)
            return excluded[k].why;
    if (i->z.meta.branch_type == ZYDIS_BRANCH_TYPE_FAR)
        return "the descriptor tables differ";
    if (i->z.meta.category == ZYDIS_CATEGORY_XSAVE || i->z.meta.category == ZYDIS_CATEGORY_XSAVEOPT)
        return "the host has more state components";
    if (i->z.attributes & ZYDIS_ATTRIB_IS_PRIVILEGED || i->z.meta.category == ZYDIS_CATEGORY_IO ||
        i->z.meta.category == ZYDIS_CATEGORY_IOSTRINGOP)
        return "privileged";
    if (touches_special_register(i))
        return "segment, control and debug registers";
    return NULL;
}

/* --- prepared --- */

static unsigned gpr_number(ZydisRegister reg)
{
    ZydisRegister full = ZydisRegisterGetLargestEnclosing(ZYDIS_MACHINE_MODE_LONG_64, reg);
    return full >= ZYDIS_REGISTER_RAX && full <= ZYDIS_REGISTER_R15 ? full - ZYDIS_REGISTER_RAX
                                                                    : X86_RSP;
}

/* Divisions that mostly do not overflow. */
static void prepare_division(struct diff_writer *w, const struct diff_insn *i)
{
    uint64_t rax = diff_random_value(w->r) >> (i->z.operand_width == 8 ? 56 : 1);
    diff_put_mov(w, X86_RDX, 0);
    diff_put_mov(w, X86_RAX, rax);
}

/* Comparisons with memory that succeed where it is zero. */
static void prepare_compare_exchange(struct diff_writer *w)
{
    diff_put_mov(w, X86_RAX, 0);
    diff_put_mov(w, X86_RDX, 0);
}

/* Where the segment override, if there is one, makes it the address wanted. */
static uint64_t before_segment(const struct diff_insn *i, uint64_t address)
{
    return i->z.attributes & ZYDIS_ATTRIB_HAS_SEGMENT_GS ? address - GS_BASE : address;
}

/* CMPS: bytes and words differ, and long counts from short ones. */
bool diff_policy_either_fault(const struct diff_insn *i)
{
    return i->z.mnemonic == ZYDIS_MNEMONIC_CMPSB || i->z.mnemonic == ZYDIS_MNEMONIC_CMPSW ||
           i->z.mnemonic == ZYDIS_MNEMONIC_CMPSD || i->z.mnemonic == ZYDIS_MNEMONIC_CMPSQ;
}

static bool uses_mmx(const struct diff_insn *i)
{
    for (unsigned k = 0; k < i->z.operand_count; k++)
        if (i->op[k].type == ZYDIS_OPERAND_TYPE_REGISTER &&
            ZydisRegisterGetClass(i->op[k].reg.value) == ZYDIS_REGCLASS_MMX)
            return true;
    return false;
}

/*
 * Intel's: most vector instructions are not subject to alignment checks. An indirect call has
 * written the return address when its target is refused. What a string instruction or a masked move
 * leaves in registers, flags or CR2 when it faults, a conversion in MXCSR, MMX in the x87's state,
 * is something else. An x87 store that finds an empty register does not look at its operand.
 */
bool diff_policy_differs_on_intel(const struct diff_insn *i, unsigned vector)
{
    if (vector == X86_AC_FAULT)
        return i->z.meta.exception_class != ZYDIS_EXCEPTION_CLASS_NONE || uses_mmx(i);
    switch (i->z.mnemonic) {
    case ZYDIS_MNEMONIC_CALL:
    case ZYDIS_MNEMONIC_FISTTP:
    case ZYDIS_MNEMONIC_VCVTPS2PH:
    case ZYDIS_MNEMONIC_MASKMOVDQU:
    case ZYDIS_MNEMONIC_VMASKMOVDQU:
    case ZYDIS_MNEMONIC_VMASKMOVPS:
    case ZYDIS_MNEMONIC_VMASKMOVPD:
    case ZYDIS_MNEMONIC_VPMASKMOVD:
    case ZYDIS_MNEMONIC_VPMASKMOVQ:
        return true;
    default:
        return i->z.meta.category == ZYDIS_CATEGORY_STRINGOP ||
               i->z.meta.isa_set == ZYDIS_ISA_SET_X87 || uses_mmx(i);
    }
}

static void prepare_string(struct diff_writer *w, const struct diff_insn *i)
{
    uint64_t count = diff_chance(w->r, 85) ? diff_below(w->r, 24) : diff_below(w->r, 600);

    diff_put_mov(w, X86_RSI, before_segment(i, diff_address(w->r, 32)));
    diff_put_mov(w, X86_RDI, diff_address(w->r, 32));
    diff_put_mov(w, X86_RCX, count);
}

/* AMD's processors fault here whatever the mask is, and at rounded addresses: avoid faults. */
static void prepare_masked_move(struct diff_writer *w, const struct diff_insn *i)
{
    uint64_t address = DATA_BASE + 256 + diff_below(w->r, DATA_RW - 512);
    diff_put_mov(w, X86_RDI, before_segment(i, address));
}

/*
 * Several operations in one: after the first has raised an unmasked exception the processor leaves
 * the others out, and we do not. Masks them all: MOV m32, i32; LDMXCSR m32.
 */
static void prepare_masked_exceptions(struct diff_writer *w)
{
    static const uint8_t store[] = {0xc7, 0x04, 0x25, 0x00, 0x01, 0x00, 0x10, 0x80, 0x1f, 0, 0},
                         load[] = {0x0f, 0xae, 0x14, 0x25, 0x00, 0x01, 0x00, 0x10};
    diff_put_bytes(w, store, sizeof store);
    diff_put_bytes(w, load, sizeof load);
}

/* A bit number that stays in the neighbourhood. */
static void prepare_bit(struct diff_writer *w, const struct diff_insn *i)
{
    unsigned gpr = gpr_number(i->op[1].reg.value);
    if (i->op[1].type == ZYDIS_OPERAND_TYPE_REGISTER && gpr != X86_RSP)
        diff_put_mov(w, gpr, diff_below(w->r, 4000) - 2000);
}

bool diff_policy_operand(const struct diff_insn *i, struct diff_random *r, uint64_t *value)
{
    switch (i->z.mnemonic) {
    case ZYDIS_MNEMONIC_LDMXCSR:
    case ZYDIS_MNEMONIC_VLDMXCSR:
        /* Bit 17 is good on AMD's processors only, and guests are not told of it. */
        *value =
            diff_chance(r, 80) ? 0x1f80 | (diff_random(r) & 0xe07f) : diff_random(r) & ~0x20000ull;
        return true;
    case ZYDIS_MNEMONIC_FLDCW:
        *value = diff_chance(r, 80) ? 0x37f | (diff_random(r) & 0xc00) : diff_random(r);
        return true;
    default:
        return false;
    }
}

void diff_policy_prepare(struct diff_writer *w, const struct diff_insn *i)
{
    if (i->z.meta.category == ZYDIS_CATEGORY_STRINGOP) {
        prepare_string(w, i);
        return;
    }
    switch (i->z.mnemonic) {
    case ZYDIS_MNEMONIC_DIV:
    case ZYDIS_MNEMONIC_IDIV:
        if (diff_chance(w->r, 70))
            prepare_division(w, i);
        break;
    case ZYDIS_MNEMONIC_CMPXCHG:
    case ZYDIS_MNEMONIC_CMPXCHG8B:
    case ZYDIS_MNEMONIC_CMPXCHG16B:
        if (diff_chance(w->r, 70))
            prepare_compare_exchange(w);
        break;
    case ZYDIS_MNEMONIC_BT:
    case ZYDIS_MNEMONIC_BTS:
    case ZYDIS_MNEMONIC_BTR:
    case ZYDIS_MNEMONIC_BTC:
        if (diff_chance(w->r, 90))
            prepare_bit(w, i);
        break;
    case ZYDIS_MNEMONIC_XLAT:
        diff_put_mov(w, X86_RBX, before_segment(i, diff_address(w->r, 256)));
        break;
    case ZYDIS_MNEMONIC_MASKMOVDQU:
    case ZYDIS_MNEMONIC_VMASKMOVDQU:
    case ZYDIS_MNEMONIC_MASKMOVQ:
        prepare_masked_move(w, i);
        break;
    case ZYDIS_MNEMONIC_DPPD:
    case ZYDIS_MNEMONIC_DPPS:
    case ZYDIS_MNEMONIC_VDPPD:
    case ZYDIS_MNEMONIC_VDPPS:
    case ZYDIS_MNEMONIC_VCVTPS2PH:
        prepare_masked_exceptions(w);
        break;
    case ZYDIS_MNEMONIC_PCMPESTRI:
    case ZYDIS_MNEMONIC_PCMPESTRM:
    case ZYDIS_MNEMONIC_VPCMPESTRI:
    case ZYDIS_MNEMONIC_VPCMPESTRM:
        diff_put_mov(w, X86_RAX, diff_below(w->r, 40) - 20);
        diff_put_mov(w, X86_RDX, diff_below(w->r, 40) - 20);
        break;
    case ZYDIS_MNEMONIC_LEAVE:
        diff_put_mov(w, X86_RBP, STACK_BASE + STACK_SIZE / 2 + diff_below(w->r, 64) * 8);
        break;
    default:
        break;
    }
}
