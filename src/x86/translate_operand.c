/*
 * Operands of translated instructions: what an instruction does to registers, memory and flags, the
 * address of its memory operand, and the inline look into the software TLB. The CPU's thread.
 */
#include "x86/translate_int.h"

const uint8_t x86_host_of[16] = {
    HOST_R10, HOST_RCX, HOST_RDX, HOST_RBX, HOST_R11,  HOST_RBP,  HOST_RSI,  HOST_RDI,
    HOST_R8,  HOST_R9,  HOST_R12, HOST_R13, HOST_NONE, HOST_NONE, HOST_NONE, HOST_NONE,
};

/* --- what an instruction uses --- */

bool x86_gpr_of(ZydisRegister reg, unsigned *gpr, unsigned *size)
{
    static const struct {
        ZydisRegister first, last;
        uint8_t gpr, size;
    } ranges[] = {
        {ZYDIS_REGISTER_RAX, ZYDIS_REGISTER_R15, 0, 8},
        {ZYDIS_REGISTER_EAX, ZYDIS_REGISTER_R15D, 0, 4},
        {ZYDIS_REGISTER_AX, ZYDIS_REGISTER_R15W, 0, 2},
        {ZYDIS_REGISTER_AL, ZYDIS_REGISTER_BL, 0, 1},
        {ZYDIS_REGISTER_SPL, ZYDIS_REGISTER_R15B, 4, 1},
    };
    for (size_t i = 0; i < ARRAY_COUNT(ranges); i++) {
        if (reg >= ranges[i].first && reg <= ranges[i].last) {
            *gpr = reg - ranges[i].first + ranges[i].gpr;
            *size = ranges[i].size;
            return true;
        }
    }
    return false;
}

#define READS  ZYDIS_OPERAND_ACTION_MASK_READ
#define WRITES ZYDIS_OPERAND_ACTION_MASK_WRITE

/* A register operand that is encoded in a field. */
static bool use_field(struct x86_source *s, const ZydisDecodedOperand *op, unsigned gpr,
                      unsigned size)
{
    struct x86_gpr_use *use = op->encoding == ZYDIS_OPERAND_ENCODING_MODRM_REG  ? &s->reg
                              : op->encoding == ZYDIS_OPERAND_ENCODING_MODRM_RM ? &s->rm
                              : op->encoding == ZYDIS_OPERAND_ENCODING_NDSNDD   ? &s->vvvv
                                                                                : NULL;
    if (!use)
        return false;
    *use = (struct x86_gpr_use) {
        .gpr = (uint8_t)gpr,
        .size = (uint8_t)size,
        .read = op->actions & READS,
        .written = op->actions & WRITES,
    };
    /* What is written in part, or perhaps, keeps the rest; BSF and BSR of 0 write nothing. */
    if (use->written &&
        (size < 4 || op->actions & ZYDIS_OPERAND_ACTION_CONDWRITE ||
         s->z.mnemonic == ZYDIS_MNEMONIC_BSF || s->z.mnemonic == ZYDIS_MNEMONIC_BSR))
        use->read = true;
    return true;
}

/* One that is not encoded. RCX, RDX and RBX are themselves in the host, RAX is staged. */
static bool use_implicit(struct x86_source *s, const ZydisDecodedOperand *op, unsigned gpr,
                         unsigned size)
{
    if (gpr == X86_RCX || gpr == X86_RDX || gpr == X86_RBX)
        return true;
    if (gpr != X86_RAX)
        return false;
    s->rax_read |= op->actions & READS || size < 4;
    s->rax_written |= !!(op->actions & WRITES);
    return true;
}

bool x86_source_use(struct x86_source *s, const ZydisDecodedOperand *op)
{
    unsigned gpr, size;

    switch (op->type) {
    case ZYDIS_OPERAND_TYPE_IMMEDIATE:
        return true;
    case ZYDIS_OPERAND_TYPE_MEMORY:
        if (op->mem.type != ZYDIS_MEMOP_TYPE_MEM || s->mem ||
            op->encoding != ZYDIS_OPERAND_ENCODING_MODRM_RM)
            return false;
        s->mem = op;
        s->mem_write = op->actions & WRITES;
        return true;
    case ZYDIS_OPERAND_TYPE_REGISTER:
        if (op->reg.value == ZYDIS_REGISTER_RFLAGS || op->reg.value == ZYDIS_REGISTER_EFLAGS ||
            op->reg.value == ZYDIS_REGISTER_FLAGS)
            return true;
        if (!x86_gpr_of(op->reg.value, &gpr, &size))
            return op->reg.value == ZYDIS_REGISTER_AH && op->encoding == ZYDIS_OPERAND_ENCODING_NONE
                       ? use_implicit(s, op, X86_RAX, 1)
                       : false;
        if (op->encoding == ZYDIS_OPERAND_ENCODING_NONE)
            return use_implicit(s, op, gpr, size);
        return use_field(s, op, gpr, size);
    default:
        return false;
    }
}

static bool use_operands(struct x86_source *s)
{
    for (unsigned i = 0; i < s->z.operand_count; i++) {
        if (!x86_source_use(s, &s->op[i]))
            return false;
    }
    return true;
}

/* --- kinds --- */

/* By mnemonic; 0 is KIND_HANDLER. What depends on the form is decided in kind_of. */
static const uint8_t kinds[ZYDIS_MNEMONIC_MAX_VALUE + 1] = {
    [ZYDIS_MNEMONIC_ADD] = KIND_GENERIC,     [ZYDIS_MNEMONIC_ADC] = KIND_GENERIC,
    [ZYDIS_MNEMONIC_SUB] = KIND_GENERIC,     [ZYDIS_MNEMONIC_SBB] = KIND_GENERIC,
    [ZYDIS_MNEMONIC_AND] = KIND_GENERIC,     [ZYDIS_MNEMONIC_OR] = KIND_GENERIC,
    [ZYDIS_MNEMONIC_XOR] = KIND_GENERIC,     [ZYDIS_MNEMONIC_CMP] = KIND_GENERIC,
    [ZYDIS_MNEMONIC_TEST] = KIND_GENERIC,    [ZYDIS_MNEMONIC_XCHG] = KIND_GENERIC,
    [ZYDIS_MNEMONIC_MOV] = KIND_GENERIC,     [ZYDIS_MNEMONIC_BT] = KIND_GENERIC,
    [ZYDIS_MNEMONIC_BTS] = KIND_GENERIC,     [ZYDIS_MNEMONIC_BTR] = KIND_GENERIC,
    [ZYDIS_MNEMONIC_BTC] = KIND_GENERIC,     [ZYDIS_MNEMONIC_MOVZX] = KIND_GENERIC,
    [ZYDIS_MNEMONIC_MOVSX] = KIND_GENERIC,   [ZYDIS_MNEMONIC_MOVSXD] = KIND_GENERIC,
    [ZYDIS_MNEMONIC_INC] = KIND_GENERIC,     [ZYDIS_MNEMONIC_DEC] = KIND_GENERIC,
    [ZYDIS_MNEMONIC_NEG] = KIND_GENERIC,     [ZYDIS_MNEMONIC_NOT] = KIND_GENERIC,
    [ZYDIS_MNEMONIC_SHL] = KIND_GENERIC,     [ZYDIS_MNEMONIC_SHR] = KIND_GENERIC,
    [ZYDIS_MNEMONIC_SAR] = KIND_GENERIC,     [ZYDIS_MNEMONIC_ROL] = KIND_GENERIC,
    [ZYDIS_MNEMONIC_ROR] = KIND_GENERIC,     [ZYDIS_MNEMONIC_RCL] = KIND_GENERIC,
    [ZYDIS_MNEMONIC_RCR] = KIND_GENERIC,     [ZYDIS_MNEMONIC_SHLD] = KIND_GENERIC,
    [ZYDIS_MNEMONIC_SHRD] = KIND_GENERIC,    [ZYDIS_MNEMONIC_IMUL] = KIND_GENERIC,
    [ZYDIS_MNEMONIC_MUL] = KIND_GENERIC,     [ZYDIS_MNEMONIC_BSF] = KIND_GENERIC,
    [ZYDIS_MNEMONIC_BSR] = KIND_GENERIC,     [ZYDIS_MNEMONIC_TZCNT] = KIND_GENERIC,
    [ZYDIS_MNEMONIC_LZCNT] = KIND_GENERIC,   [ZYDIS_MNEMONIC_POPCNT] = KIND_GENERIC,
    [ZYDIS_MNEMONIC_ANDN] = KIND_GENERIC,    [ZYDIS_MNEMONIC_BEXTR] = KIND_GENERIC,
    [ZYDIS_MNEMONIC_BLSI] = KIND_GENERIC,    [ZYDIS_MNEMONIC_BLSMSK] = KIND_GENERIC,
    [ZYDIS_MNEMONIC_BLSR] = KIND_GENERIC,    [ZYDIS_MNEMONIC_BZHI] = KIND_GENERIC,
    [ZYDIS_MNEMONIC_PDEP] = KIND_GENERIC,    [ZYDIS_MNEMONIC_PEXT] = KIND_GENERIC,
    [ZYDIS_MNEMONIC_RORX] = KIND_GENERIC,    [ZYDIS_MNEMONIC_SARX] = KIND_GENERIC,
    [ZYDIS_MNEMONIC_SHLX] = KIND_GENERIC,    [ZYDIS_MNEMONIC_SHRX] = KIND_GENERIC,
    [ZYDIS_MNEMONIC_MULX] = KIND_GENERIC,    [ZYDIS_MNEMONIC_ADCX] = KIND_GENERIC,
    [ZYDIS_MNEMONIC_ADOX] = KIND_GENERIC,    [ZYDIS_MNEMONIC_MOVBE] = KIND_GENERIC,
    [ZYDIS_MNEMONIC_CRC32] = KIND_GENERIC,   [ZYDIS_MNEMONIC_XADD] = KIND_GENERIC,
    [ZYDIS_MNEMONIC_CMPXCHG] = KIND_GENERIC, [ZYDIS_MNEMONIC_CBW] = KIND_IMPLICIT,
    [ZYDIS_MNEMONIC_CWDE] = KIND_IMPLICIT,   [ZYDIS_MNEMONIC_CDQE] = KIND_IMPLICIT,
    [ZYDIS_MNEMONIC_CWD] = KIND_IMPLICIT,    [ZYDIS_MNEMONIC_CDQ] = KIND_IMPLICIT,
    [ZYDIS_MNEMONIC_CQO] = KIND_IMPLICIT,    [ZYDIS_MNEMONIC_CLC] = KIND_IMPLICIT,
    [ZYDIS_MNEMONIC_STC] = KIND_IMPLICIT,    [ZYDIS_MNEMONIC_CMC] = KIND_IMPLICIT,
    [ZYDIS_MNEMONIC_LFENCE] = KIND_IMPLICIT, [ZYDIS_MNEMONIC_MFENCE] = KIND_IMPLICIT,
    [ZYDIS_MNEMONIC_SFENCE] = KIND_IMPLICIT, [ZYDIS_MNEMONIC_NOP] = KIND_NOP,
    [ZYDIS_MNEMONIC_ENDBR64] = KIND_NOP,     [ZYDIS_MNEMONIC_PREFETCHNTA] = KIND_NOP,
    [ZYDIS_MNEMONIC_PREFETCHT0] = KIND_NOP,  [ZYDIS_MNEMONIC_PREFETCHT1] = KIND_NOP,
    [ZYDIS_MNEMONIC_PREFETCHT2] = KIND_NOP,  [ZYDIS_MNEMONIC_PREFETCHW] = KIND_NOP,
    [ZYDIS_MNEMONIC_DIV] = KIND_DIV,         [ZYDIS_MNEMONIC_IDIV] = KIND_DIV,
    [ZYDIS_MNEMONIC_BSWAP] = KIND_BSWAP,     [ZYDIS_MNEMONIC_LEA] = KIND_LEA,
    [ZYDIS_MNEMONIC_PUSH] = KIND_PUSH,       [ZYDIS_MNEMONIC_POP] = KIND_POP,
    [ZYDIS_MNEMONIC_LEAVE] = KIND_LEAVE,     [ZYDIS_MNEMONIC_JMP] = KIND_JMP,
    [ZYDIS_MNEMONIC_CALL] = KIND_CALL,       [ZYDIS_MNEMONIC_RET] = KIND_RET,
    [ZYDIS_MNEMONIC_MOVNTI] = KIND_GENERIC,
};

static uint8_t kind_of_mov(const ZydisDecodedInstruction *z)
{
    if (z->opcode_map != ZYDIS_OPCODE_MAP_DEFAULT)
        return KIND_HANDLER; /* control and debug registers */
    if (z->opcode >= 0xb0 && z->opcode <= 0xbf)
        return KIND_MOV_IMM;
    bool segment = z->opcode == 0x8c || z->opcode == 0x8e;
    return z->attributes & ZYDIS_ATTRIB_HAS_MODRM && !segment ? KIND_GENERIC : KIND_HANDLER;
}

static uint8_t kind_by_category(const ZydisDecodedInstruction *z)
{
    switch (z->meta.category) {
    case ZYDIS_CATEGORY_CMOV:
    case ZYDIS_CATEGORY_SETCC:
        return KIND_GENERIC;
    case ZYDIS_CATEGORY_COND_BR:
        return z->opcode >= 0xe0 && z->opcode <= 0xe3 ? KIND_LOOP : KIND_JCC;
    default:
        return KIND_HANDLER;
    }
}

static uint8_t kind_of(const ZydisDecodedInstruction *z)
{
    uint8_t kind = kinds[z->mnemonic];
    bool modrm = z->attributes & ZYDIS_ATTRIB_HAS_MODRM;

    switch (z->mnemonic) {
    case ZYDIS_MNEMONIC_MOV:
        return kind_of_mov(z);
    case ZYDIS_MNEMONIC_CMPXCHG8B:
    case ZYDIS_MNEMONIC_CMPXCHG16B:
        return KIND_GENERIC;
    case ZYDIS_MNEMONIC_XCHG:
        return modrm ? KIND_GENERIC : KIND_XCHG_RAX;
    case ZYDIS_MNEMONIC_BT:
    case ZYDIS_MNEMONIC_BTS:
    case ZYDIS_MNEMONIC_BTR:
    case ZYDIS_MNEMONIC_BTC:
        /* With a register as bit number, the memory operand's address depends on it. */
        return z->raw.modrm.mod == 3 || z->opcode == 0xba ? KIND_GENERIC : KIND_HANDLER;
    case ZYDIS_MNEMONIC_JMP:
    case ZYDIS_MNEMONIC_CALL:
    case ZYDIS_MNEMONIC_RET:
        if (z->meta.branch_type == ZYDIS_BRANCH_TYPE_FAR)
            return KIND_HANDLER;
        if (z->mnemonic == ZYDIS_MNEMONIC_RET || !modrm)
            return kind;
        return z->mnemonic == ZYDIS_MNEMONIC_JMP ? KIND_JMP_INDIRECT : KIND_CALL_INDIRECT;
    default:
        break;
    }
    if (kind == KIND_GENERIC && !modrm)
        return KIND_ACCUMULATOR;
    return kind ? kind : kind_by_category(z);
}

/* A count in CL may be 0, and then no flag changes; an immediate one is known. */
static bool is_shift(const ZydisDecodedInstruction *z)
{
    return z->mnemonic == ZYDIS_MNEMONIC_SHL || z->mnemonic == ZYDIS_MNEMONIC_SHR ||
           z->mnemonic == ZYDIS_MNEMONIC_SAR || z->mnemonic == ZYDIS_MNEMONIC_ROL ||
           z->mnemonic == ZYDIS_MNEMONIC_ROR || z->mnemonic == ZYDIS_MNEMONIC_RCL ||
           z->mnemonic == ZYDIS_MNEMONIC_RCR || z->mnemonic == ZYDIS_MNEMONIC_SHLD ||
           z->mnemonic == ZYDIS_MNEMONIC_SHRD;
}

static bool count_is_known(const struct x86_source *s)
{
    for (unsigned i = 0; i < s->z.operand_count_visible; i++) {
        if (s->op[i].type == ZYDIS_OPERAND_TYPE_IMMEDIATE)
            return s->op[i].imm.value.u & (s->z.operand_width == 64 ? 63 : 31);
    }
    return s->z.opcode == 0xd0 || s->z.opcode == 0xd1;
}

/* All six, whatever the manuals call undefined: measured, and the interpreter counts on it. */
static bool writes_all(const ZydisDecodedInstruction *z)
{
    switch (z->mnemonic) {
    case ZYDIS_MNEMONIC_ADD:
    case ZYDIS_MNEMONIC_SUB:
    case ZYDIS_MNEMONIC_CMP:
    case ZYDIS_MNEMONIC_AND:
    case ZYDIS_MNEMONIC_OR:
    case ZYDIS_MNEMONIC_XOR:
    case ZYDIS_MNEMONIC_TEST:
    case ZYDIS_MNEMONIC_NEG:
    case ZYDIS_MNEMONIC_ADC:
    case ZYDIS_MNEMONIC_SBB:
        return true;
    default:
        return false;
    }
}

static void classify_flags(struct x86_source *s)
{
    const ZydisAccessedFlags *f = s->z.cpu_flags;

    s->flags_read = 0;
    if (!f)
        return;
    s->flags_read = f->tested & FLAGS_ALL;
    s->flags_written = (f->modified | f->set_0 | f->set_1) & FLAGS_ALL;
    s->flags_undefined = f->undefined & FLAGS_ALL;
    if (writes_all(&s->z)) {
        s->flags_written = FLAGS_ALL;
        s->flags_undefined = 0;
    } else if (is_shift(&s->z) && !count_is_known(s)) {
        s->flags_undefined |= s->flags_written;
    }
    s->flags_written &= ~s->flags_undefined;
}

static bool has_prefix_66(const ZydisDecodedInstruction *z)
{
    return z->attributes & ZYDIS_ATTRIB_HAS_OPERANDSIZE;
}

/* Stack and branch instructions of other than the usual size are for the interpreter. */
static bool is_odd(const struct x86_source *s)
{
    switch (s->kind) {
    case KIND_MOV_IMM: /* AH to BH */
        return s->op[0].reg.value >= ZYDIS_REGISTER_AH && s->op[0].reg.value <= ZYDIS_REGISTER_BH;
    case KIND_BSWAP:
        return s->op[0].size == 16;
    case KIND_DIV:
        return s->op[0].size < 32;
    case KIND_PUSH:
    case KIND_POP:
        if (s->op[0].type == ZYDIS_OPERAND_TYPE_REGISTER && s->op[0].size != 64)
            return true; /* segment registers, too */
        return has_prefix_66(&s->z) ||
               (s->kind == KIND_POP && s->op[0].type == ZYDIS_OPERAND_TYPE_MEMORY);
    case KIND_LOOP:
        return s->z.address_width != 64 || has_prefix_66(&s->z);
    case KIND_LEAVE:
    case KIND_JCC:
    case KIND_JMP:
    case KIND_CALL:
    case KIND_RET:
    case KIND_JMP_INDIRECT:
    case KIND_CALL_INDIRECT:
        return has_prefix_66(&s->z);
    default:
        return false;
    }
}

static bool uses_explicit_operands(uint8_t kind)
{
    return kind == KIND_GENERIC || kind == KIND_DIV;
}

static void find_memory(struct x86_source *s)
{
    for (unsigned i = 0; i < s->z.operand_count_visible; i++) {
        if (s->op[i].type == ZYDIS_OPERAND_TYPE_MEMORY)
            s->mem = &s->op[i];
    }
}

/* The stack is an implicit operand of these: only the visible one is looked at. */
static bool classify_operands(struct x86_source *s)
{
    unsigned gpr, size;

    if (s->kind == KIND_PUSH || s->kind == KIND_POP) {
        find_memory(s);
        return s->op[0].type != ZYDIS_OPERAND_TYPE_REGISTER ||
               x86_gpr_of(s->op[0].reg.value, &gpr, &size);
    }
    if (s->kind == KIND_JMP_INDIRECT || s->kind == KIND_CALL_INDIRECT)
        return x86_source_use(s, &s->op[0]);
    if (s->kind == KIND_LEA) {
        s->mem = &s->op[1];
        return x86_source_use(s, &s->op[0]);
    }
    if (uses_explicit_operands(s->kind) && !use_operands(s))
        return false;
    /* RAX as the destination would be staged and renamed at once. */
    return !(s->rax_written && s->rm.written && s->rm.gpr == X86_RAX && !s->mem);
}

/* A LEA takes the same operand and touches no memory. */
static bool may_fault(const struct x86_source *s)
{
    switch (s->kind) {
    case KIND_HANDLER:
    case KIND_DIV:
    case KIND_PUSH:
    case KIND_POP:
    case KIND_LEAVE:
    case KIND_CALL:
    case KIND_RET:
    case KIND_CALL_INDIRECT:
    case KIND_JMP_INDIRECT:
    case KIND_STI:
    case KIND_PUSHF:
    case KIND_POPF:
    case KIND_BIT_STRING:
    case KIND_STRING:
    case KIND_REP_STRING:
    case KIND_AC:
    case KIND_READ_BASE:
    case KIND_WRITE_BASE:
    case KIND_PAUSE:
        return true;
    case KIND_GENERIC:
    case KIND_VECTOR:
    case KIND_HIGH_BYTE:
    case KIND_FROM_SEGMENT:
        return s->mem;
    default:
        return false;
    }
}

bool x86_only_memory_faults(const struct x86_source *s)
{
    return s->kind == KIND_GENERIC || s->kind == KIND_VECTOR || s->kind == KIND_PUSH ||
           s->kind == KIND_POP || s->kind == KIND_LEAVE;
}

bool x86_needs_alignment(const struct x86_source *s)
{
    if (s->kind == KIND_VECTOR)
        return x86_vector_needs_alignment(s);
    return (s->z.attributes & ZYDIS_ATTRIB_HAS_LOCK) || s->z.mnemonic == ZYDIS_MNEMONIC_XCHG ||
           s->z.mnemonic == ZYDIS_MNEMONIC_CMPXCHG16B;
}

void x86_source_classify(struct x86_source *s, uint8_t mode)
{
    s->reg = s->rm = s->vvvv = (struct x86_gpr_use) {0};
    s->mem = NULL;
    s->mem_write = s->rax_read = s->rax_written = false;
    s->flags_written = s->flags_undefined = 0;
    s->kind = KIND_HANDLER;
    s->faults = true;
    s->flags_read = FLAGS_ALL;
    if (s->z.mnemonic == ZYDIS_MNEMONIC_INVALID)
        return;
    s->kind = kind_of(&s->z);
    if (s->kind == KIND_HANDLER && x86_mode_vector(mode) && x86_vector_classify(s))
        s->kind = KIND_VECTOR;
    if (s->kind == KIND_HANDLER || is_odd(s) || (s->kind != KIND_VECTOR && !classify_operands(s)))
        s->kind = x86_system_classify(s, mode);
    if (s->kind != KIND_HANDLER)
        classify_flags(s);
    s->faults = may_fault(s);
}

/* --- registers --- */

unsigned x86_gpr_in(struct x86_translation *t, unsigned gpr, unsigned scratch)
{
    if (x86_host_of[gpr] != HOST_NONE)
        return x86_host_of[gpr];
    x86_emit_load(&t->e, scratch, x86_gpr_home(gpr));
    return scratch;
}

void x86_gpr_out(struct x86_translation *t, unsigned gpr, unsigned host)
{
    if (x86_host_of[gpr] == HOST_NONE)
        x86_emit_store(&t->e, x86_gpr_home(gpr), host);
    else
        x86_emit_mov(&t->e, x86_host_of[gpr], host);
}

/* --- addresses --- */

bool x86_gpr_number(ZydisRegister reg, unsigned *gpr)
{
    unsigned size;
    return reg != ZYDIS_REGISTER_NONE && x86_gpr_of(reg, gpr, &size);
}

static bool is_rip(ZydisRegister reg)
{
    return reg == ZYDIS_REGISTER_RIP || reg == ZYDIS_REGISTER_EIP;
}

/* base + index + displacement into T0. Uses T1. */
static void emit_sum(struct x86_translation *t, const ZydisDecodedOperandMem *mem)
{
    unsigned gpr;
    struct x86_rm sum = {.is_mem = true, .index = HOST_NONE, .disp = (int32_t)mem->disp.value};
    struct x86_encoding lea = {.opcode = 0x8d, .w = t->source->z.address_width == 64};

    if (x86_gpr_number(mem->index, &gpr)) {
        sum.index = (uint8_t)x86_gpr_in(t, gpr, T1);
        sum.scale = (uint8_t)(mem->scale > 1 ? __builtin_ctz(mem->scale) : 0);
    }
    if (x86_gpr_number(mem->base, &gpr)) {
        sum.base = (uint8_t)x86_gpr_in(t, gpr, T0);
    } else {
        /* No base: zero, which has a place in memory. */
        x86_emit_load(&t->e, T0, x86_cpu_field(CPU_OFFSET(zero)));
        sum.base = T0;
    }
    x86_emit_op(&t->e, &lea, T0, &sum);
}

unsigned x86_emit_address(struct x86_translation *t, const ZydisDecodedOperandMem *mem)
{
    unsigned gpr, segment = x86_segment_number(mem->segment);
    bool based = segment == X86_FS || segment == X86_GS;

    if (is_rip(mem->base)) {
        const struct x86_source *s = t->source;
        int64_t offset = (int64_t)s->offset + s->z.length + mem->disp.value;
        x86_emit_load(&t->e, T0, x86_cpu_field(CPU_OFFSET(host.page_base)));
        if (offset == (int32_t)offset) {
            x86_emit_lea(&t->e, T0, x86_rm_mem(T0, (int32_t)offset));
        } else {
            x86_emit_lea(&t->e, T0, x86_rm_mem(T0, (int32_t)mem->disp.value));
            x86_emit_lea(&t->e, T0, x86_rm_mem(T0, s->offset + s->z.length));
        }
        if (mem->base == ZYDIS_REGISTER_EIP)
            x86_emit_mov32(&t->e, T0, T0);
    } else if (!based && mem->index == ZYDIS_REGISTER_NONE && !mem->disp.value &&
               t->source->z.address_width == 64 && x86_gpr_number(mem->base, &gpr)) {
        return x86_gpr_in(t, gpr, T0);
    } else {
        emit_sum(t, mem);
    }
    if (based)
        x86_emit_alu(&t->e, ALU_ADD, T0,
                     x86_cpu_field(CPU_OFFSET(seg_base) + 8 * (int32_t)segment));
    return T0;
}

/* --- the software TLB --- */

static int32_t tlb_offset(const struct x86_translation *t, size_t field)
{
    return (int32_t)(offsetof(struct x86_cpu, tlb) + field) +
           x86_mode_mmu(t->mode) * (int32_t)sizeof(((struct x86_cpu *)0)->tlb[0]);
}

/* T1 = the byte offset of la's entry: (la >> 12) % entries * 32. */
static void emit_tlb_index(struct x86_translation *t, unsigned la)
{
    const unsigned shift = PAGE_SHIFT - 5;
    _Static_assert(sizeof(struct x86_tlb_entry) == 32, "the shift below");

    if (t->tr->has_bmi2) {
        struct x86_encoding rorx = {.opcode = 0xf0, .map = 3, .mandatory = 0xf2, .vex = true};
        struct x86_rm rm = x86_rm_reg(la);
        x86_emit_op(&t->e, &rorx, T1, &rm);
        x86_emit_8(&t->e, shift);
    } else {
        x86_emit_mov32(&t->e, T1, la);
        x86_emit_shift_imm(&t->e, 5, T1, shift, false);
    }
    x86_emit_alu_imm32(&t->e, ALU_AND, T1, (X86_TLB_SIZE - 1) << 5);
}

struct x86_rm x86_emit_tlb_compare(struct x86_translation *t, unsigned la, unsigned size,
                                   bool write, bool aligned)
{
    size_t tag =
        write ? offsetof(struct x86_tlb_entry, write) : offsetof(struct x86_tlb_entry, read);
    int32_t mask = -(int32_t)PAGE_SIZE;

    t->t1_group = 0;
    emit_tlb_index(t, la);
    if (aligned || size == 1) {
        x86_emit_mov(&t->e, T2, la);
        mask |= (int32_t)size - 1; /* what is not aligned matches no tag */
    } else {
        x86_emit_lea(&t->e, T2, x86_rm_mem(la, (int32_t)size - 1));
    }
    x86_emit_alu_imm(&t->e, ALU_AND, T2, mask);
    x86_emit_alu(&t->e, ALU_CMP, T2, x86_rm_indexed(HOST_RSP, T1, tlb_offset(t, tag)));
    return x86_rm_indexed(HOST_RSP, T1, tlb_offset(t, offsetof(struct x86_tlb_entry, addend)));
}

struct x86_rm x86_emit_probe(struct x86_translation *t, unsigned la, unsigned size, bool write,
                             bool aligned)
{
    struct x86_rm addend = x86_emit_tlb_compare(t, la, size, write, aligned);

    x86_slow_path(t, x86_emit_jcc(&t->e, COND_NE));
    x86_emit_load(&t->e, T1, addend);
    return x86_rm_indexed(la, T1, 0);
}
