/*
 * Vector instructions whose memory accesses depend on a mask (masked moves, gathers), and those
 * that only change register state (EMMS, VZEROALL, VZEROUPPER). The CPU's thread.
 * SDM vol. 2: MASKMOVDQU, MASKMOVQ, VMASKMOV, VPMASKMOV, VPGATHERDD/VGATHERDPS…, EMMS, VZEROALL.
 */
#include "x86/vector_int.h"

/* What the masked handlers need to know; kept in insn->imm. */
#define MASK_ELEMENT(imm) ((unsigned)(imm)&0xff)         /* bytes in a data element */
#define MASK_INDEX(imm)   ((unsigned)(imm) >> 8 & 0xff)  /* bytes in a gather's index element */
#define MASK_BYTES(imm)   ((unsigned)(imm) >> 16 & 0xff) /* bytes in the destination */

static uint64_t mask_imm(unsigned element, unsigned index, unsigned bytes)
{
    return element | index << 8 | bytes << 16;
}

static bool mask_selects(const uint8_t *mask, unsigned element, unsigned i)
{
    return mask[i * element + element - 1] & 0x80;
}

/* VMASKMOV and gathers are not subject to alignment checks (seen on AMD's CPUs). */
static enum x86_mmu unchecked_mmu(const struct x86_cpu *cpu)
{
    return cpu->mmu == X86_MMU_ALIGNED ? X86_MMU_USER : (enum x86_mmu)cpu->mmu;
}

/* Linear address of what lies `offset` bytes into the memory operand; it wraps as the address does.
 */
static uint64_t element_la(struct x86_cpu *cpu, const struct x86_insn *insn, unsigned offset,
                           unsigned size, enum x86_access access)
{
    uint64_t ea = x86_ea(cpu, insn) + offset;

    if (insn->address_size != 8)
        ea &= size_mask(insn->address_size);
    return x86_linear(cpu, insn->seg, ea, size, access);
}

/* x86_probe_write without the alignment check. */
static void probe_element(struct x86_cpu *cpu, uint64_t la, unsigned size)
{
    const uint64_t last = la + size - 1;

    x86_probe_write(cpu, la, 1);
    if ((la ^ last) & PAGE_MASK)
        x86_probe_write(cpu, last & PAGE_MASK, 1);
}

/*
 * Selected elements of a masked store; all faults come first. No access, hence no fault, for the
 * others.
 */
static void store_selected(struct x86_cpu *cpu, const struct x86_insn *insn, const uint8_t *mask,
                           const uint8_t *value)
{
    const unsigned element = MASK_ELEMENT(insn->imm), count = MASK_BYTES(insn->imm) / element;
    uint64_t la[32];

    for (unsigned i = 0; i < count; i++) {
        if (!mask_selects(mask, element, i))
            continue;
        la[i] = element_la(cpu, insn, i * element, element, X86_WRITE);
        probe_element(cpu, la[i], element);
    }
    for (unsigned i = 0; i < count; i++) {
        uint64_t element_value = 0;

        if (!mask_selects(mask, element, i))
            continue;
        memcpy(&element_value, value + i * element, element);
        x86_store_slow(cpu, la[i], element, element_value, unchecked_mmu(cpu));
    }
}

/* VMASKMOV, VPMASKMOV to a register: dst, mask in src. */
static void run_masked_load(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    const unsigned element = MASK_ELEMENT(insn->imm), bytes = MASK_BYTES(insn->imm);
    const uint8_t *mask = vec_operand(cpu, insn->src);
    uint8_t value[32] = {0};

    x86_check_avx(cpu);
    for (unsigned i = 0; i < bytes / element; i++) {
        if (mask_selects(mask, element, i)) {
            uint64_t la = element_la(cpu, insn, i * element, element, X86_READ);
            uint64_t v = x86_load_slow(cpu, la, element, unchecked_mmu(cpu));
            memcpy(value + i * element, &v, element);
        }
    }
    memcpy(vec_operand(cpu, insn->dst), value, 32);
}

/* ... to memory: mask in dst (the first register), value in src. */
static void run_masked_store(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    x86_check_avx(cpu);
    store_selected(cpu, insn, vec_operand(cpu, insn->dst), vec_operand(cpu, insn->src));
}

/*
 * MASKMOVDQU and MASKMOVQ, at [rDI]: AMD's CPUs fault for the whole operand, whatever the mask is,
 * and want it aligned by 8 where alignment is checked.
 */
static void probe_rdi(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    for (unsigned i = 0; i < MASK_BYTES(insn->imm); i += 8)
        x86_probe_write(cpu, element_la(cpu, insn, i, 8, X86_WRITE), 8);
}

/* MASKMOVDQU, VMASKMOVDQU: value in dst, mask in src. */
static void run_maskmovdqu(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    x86_check_sse(cpu);
    probe_rdi(cpu, insn);
    store_selected(cpu, insn, vec_operand(cpu, insn->src), vec_operand(cpu, insn->dst));
}

static void run_vmaskmovdqu(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    x86_check_avx(cpu);
    probe_rdi(cpu, insn);
    store_selected(cpu, insn, vec_operand(cpu, insn->src), vec_operand(cpu, insn->dst));
}

/* The MMX state is entered even when the store faults (as AMD's CPUs do). */
static void run_maskmovq(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    x86_check_mmx(cpu);
    x86_enter_mmx(cpu);
    probe_rdi(cpu, insn);
    store_selected(cpu, insn, vec_operand(cpu, insn->src), vec_operand(cpu, insn->dst));
}

static unsigned mask_element(ZydisMnemonic m)
{
    switch (m) {
    case ZYDIS_MNEMONIC_VMASKMOVPS:
    case ZYDIS_MNEMONIC_VPMASKMOVD:
        return 4;
    case ZYDIS_MNEMONIC_VMASKMOVPD:
    case ZYDIS_MNEMONIC_VPMASKMOVQ:
        return 8;
    default:
        return 1;
    }
}

bool x86_vector_bind_masked(const struct x86_decode *d, struct x86_insn *out)
{
    unsigned bytes = d->op[0].size / 8;

    out->imm = mask_imm(mask_element(d->z->mnemonic), 0, bytes);
    switch (d->z->mnemonic) {
    case ZYDIS_MNEMONIC_MASKMOVQ:
    case ZYDIS_MNEMONIC_MASKMOVDQU:
    case ZYDIS_MNEMONIC_VMASKMOVDQU:
        out->dst = x86_vector_register_offset(d->op[0].reg.value);
        out->src = x86_vector_register_offset(d->op[1].reg.value);
        out->base = x86_register_offset(ZYDIS_REGISTER_RDI);
        if (d->z->attributes & ZYDIS_ATTRIB_HAS_SEGMENT_CS)
            out->seg = X86_CS;
        else if (d->z->attributes & ZYDIS_ATTRIB_HAS_SEGMENT_SS)
            out->seg = X86_SS;
        else if (d->z->attributes & ZYDIS_ATTRIB_HAS_SEGMENT_ES)
            out->seg = X86_ES;
        else if (d->z->attributes & ZYDIS_ATTRIB_HAS_SEGMENT_FS)
            out->seg = X86_FS;
        else if (d->z->attributes & ZYDIS_ATTRIB_HAS_SEGMENT_GS)
            out->seg = X86_GS;
        out->run = d->z->mnemonic == ZYDIS_MNEMONIC_MASKMOVQ     ? run_maskmovq
                   : d->z->mnemonic == ZYDIS_MNEMONIC_MASKMOVDQU ? run_maskmovdqu
                                                                 : run_vmaskmovdqu;
        return true;
    default:
        out->run = d->op[0].type == ZYDIS_OPERAND_TYPE_MEMORY ? run_masked_store : run_masked_load;
        return true;
    }
}

static int64_t gather_index(const uint8_t *index, unsigned size, unsigned i)
{
    return size == 4 ? (int64_t)(int32_t)load_le32(index + i * 4)
                     : (int64_t)load_le64(index + i * 8);
}

/*
 * Gathers: dst, mask in src, vector index in src2. The elements go from the lowest up; each that
 * arrived is in the destination with its mask cleared, so that after a fault the rest follows.
 */
static void run_gather(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    const unsigned element = MASK_ELEMENT(insn->imm), index_size = MASK_INDEX(insn->imm);
    const unsigned bytes = MASK_BYTES(insn->imm), count = bytes / element;
    uint8_t *dst = vec_operand(cpu, insn->dst), *mask = vec_operand(cpu, insn->src), index[32];
    uint64_t base;

    x86_check_avx(cpu);
    memcpy(index, vec_operand(cpu, insn->src2), sizeof index);
    base = load_le64(vec_operand(cpu, insn->base)) + (uint64_t)(int64_t)insn->disp;
    for (unsigned i = 0; i < count; i++) {
        uint64_t ea = base + ((uint64_t)gather_index(index, index_size, i) << insn->scale), value;

        if (insn->address_size == 4)
            ea = (uint32_t)ea;
        if (mask_selects(mask, element, i)) {
            uint64_t la = x86_linear(cpu, insn->seg, ea, element, X86_READ);
            value = x86_load_slow(cpu, la, element, unchecked_mmu(cpu));
            memcpy(dst + i * element, &value, element);
        }
        memset(mask + i * element, 0, element);
    }
    memset(dst + bytes, 0, 32 - bytes);
    memset(mask, 0, 32);
}

/*
 * As many elements as both the data and the index vector have room for. #UD when two of the three
 * registers are the same.
 */
bool x86_vector_bind_gather(const struct x86_decode *d, struct x86_insn *out)
{
    const ZydisRegister index = d->op[1].mem.index;
    unsigned index_bytes = ZydisRegisterGetClass(index) == ZYDIS_REGCLASS_YMM ? 32 : 16;
    unsigned data_bytes = d->op[0].size / 8, element, index_size, count;

    switch (d->z->mnemonic) {
    case ZYDIS_MNEMONIC_VGATHERDPS:
    case ZYDIS_MNEMONIC_VPGATHERDD:
        element = index_size = 4;
        break;
    case ZYDIS_MNEMONIC_VGATHERDPD:
    case ZYDIS_MNEMONIC_VPGATHERDQ:
        element = 8;
        index_size = 4;
        break;
    case ZYDIS_MNEMONIC_VGATHERQPS:
    case ZYDIS_MNEMONIC_VPGATHERQD:
        element = 4;
        index_size = 8;
        break;
    default:
        element = index_size = 8;
        break;
    }
    count = MIN(index_bytes / index_size, data_bytes / element);
    out->src2 = x86_register_offset(index);
    out->index = offsetof(struct x86_cpu, zero);
    if (out->dst == out->src || out->dst == out->src2 || out->src == out->src2)
        return false;
    out->imm = mask_imm(element, index_size, count * element);
    out->run = run_gather;
    return true;
}

/* All tags empty; the registers stay. */
static void run_emms(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    x86_check_mmx(cpu);
    x86_enter_mmx(cpu);
    cpu->s.fpu.ftw = 0;
}

/* Registers 8 to 15 are only touched in 64-bit mode. */
static unsigned register_count(const struct x86_cpu *cpu)
{
    return cpu->code_size == 8 ? 16 : 8;
}

static void run_vzeroupper(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    x86_check_avx(cpu);
    for (unsigned i = 0; i < register_count(cpu); i++)
        memset(cpu->s.fpu.ymm[i] + 16, 0, 16);
}

static void run_vzeroall(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    x86_check_avx(cpu);
    memset(cpu->s.fpu.ymm, 0, register_count(cpu) * sizeof cpu->s.fpu.ymm[0]);
}

bool x86_vector_bind_state(const struct x86_decode *d, struct x86_insn *out)
{
    out->run = d->z->mnemonic == ZYDIS_MNEMONIC_EMMS         ? run_emms
               : d->z->mnemonic == ZYDIS_MNEMONIC_VZEROUPPER ? run_vzeroupper
                                                             : run_vzeroall;
    return true;
}
