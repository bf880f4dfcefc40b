/*
 * Translation of what kernels do beside arithmetic: the interrupt flag and RFLAGS as a whole, the
 * swap of GS's base, selectors, bit strings in memory, single string elements; and of AH to BH,
 * which only instructions without REX have. The CPU's thread. SDM vol. 2; vol. 1 section 3.4.3
 * (RFLAGS).
 *
 * Status flags are in the host or in host.flags, the other bits of RFLAGS in memory only. A unit
 * with a supervisor's TLB runs at CPL 0 (x86_unit_mode).
 */
#include "x86/translate_int.h"

#define GUEST_RAX (x86_host_of[X86_RAX])
#define GUEST_RSP (x86_host_of[X86_RSP])
#define GUEST_RSI (x86_host_of[X86_RSI])
#define GUEST_RDI (x86_host_of[X86_RDI])

/* --- which ones: AH to BH --- */

static bool is_high_register(const ZydisDecodedOperand *op)
{
    return op->type == ZYDIS_OPERAND_TYPE_REGISTER && op->reg.value >= ZYDIS_REGISTER_AH &&
           op->reg.value <= ZYDIS_REGISTER_BH;
}

/* The visible operand that is one, or NULL. */
static const ZydisDecodedOperand *high_register(const struct x86_source *s)
{
    for (unsigned i = 0; i < s->z.operand_count_visible; i++) {
        if (is_high_register(&s->op[i]))
            return &s->op[i];
    }
    return NULL;
}

/* Without REX, all registers are themselves in the host, but RAX, which is staged, and RSP. */
static bool use_plain_register(struct x86_source *s, const ZydisDecodedOperand *op)
{
    unsigned gpr, size;

    if (ZydisRegisterGetClass(op->reg.value) == ZYDIS_REGCLASS_FLAGS)
        return true;
    if (is_high_register(op))
        gpr = op->reg.value - ZYDIS_REGISTER_AH;
    else if (!x86_gpr_of(op->reg.value, &gpr, &size) || gpr == X86_RSP || gpr > X86_RDI)
        return false;
    if (gpr == X86_RAX) {
        s->rax_read = true;
        s->rax_written |= !!(op->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE);
    }
    return true;
}

static bool is_high_byte(struct x86_source *s)
{
    const ZydisDecodedOperand *high = high_register(s);

    if (!high || (s->kind != KIND_GENERIC && s->kind != KIND_MOV_IMM))
        return false;
    s->reg = s->rm = s->vvvv = (struct x86_gpr_use) {0};
    s->mem = NULL;
    s->mem_write = s->rax_read = s->rax_written = false;
    for (unsigned i = 0; i < s->z.operand_count; i++) {
        const ZydisDecodedOperand *op = &s->op[i];
        if (op->type == ZYDIS_OPERAND_TYPE_REGISTER ? !use_plain_register(s, op)
                                                    : !x86_source_use(s, op))
            return false;
    }
    /* With memory, only one of the two may change. */
    bool both = s->mem_write && (high->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE);
    return !s->mem || (!both && s->z.mnemonic != ZYDIS_MNEMONIC_CMPXCHG);
}

/* --- which ones: the others --- */

static uint8_t string_kind(const struct x86_source *s)
{
    const uint64_t special = ZYDIS_ATTRIB_HAS_REPE | ZYDIS_ATTRIB_HAS_REPNE |
                             ZYDIS_ATTRIB_HAS_SEGMENT_FS | ZYDIS_ATTRIB_HAS_SEGMENT_GS;
    bool repeated = s->z.attributes & ZYDIS_ATTRIB_HAS_REP;

    if (s->z.meta.category != ZYDIS_CATEGORY_STRINGOP || (s->z.attributes & special) ||
        s->z.address_width != 64)
        return KIND_HANDLER;
    switch (s->z.opcode & ~1u) {
    case 0xa4: /* MOVS */
    case 0xaa: /* STOS */
        return repeated ? KIND_REP_STRING : KIND_STRING;
    case 0xac: /* LODS */
        return repeated ? KIND_HANDLER : KIND_STRING;
    default:
        return KIND_HANDLER;
    }
}

/* MOV from a segment or control register. */
static uint8_t special_move_kind(struct x86_source *s, bool kernel)
{
    if (s->z.opcode_map == ZYDIS_OPCODE_MAP_DEFAULT && s->z.opcode == 0x8c)
        return x86_source_use(s, &s->op[0]) ? KIND_FROM_SEGMENT : KIND_HANDLER;
    if (s->z.opcode_map == ZYDIS_OPCODE_MAP_0F && s->z.opcode == 0x20 && kernel &&
        s->op[1].reg.value <= ZYDIS_REGISTER_CR4)
        return x86_source_use(s, &s->op[0]) ? KIND_FROM_CR : KIND_HANDLER;
    return is_high_byte(s) ? KIND_HIGH_BYTE : KIND_HANDLER;
}

static bool is_bit_string(struct x86_source *s)
{
    return s->z.address_width == 64 && s->z.raw.modrm.mod != 3 && s->z.opcode != 0xba &&
           x86_source_use(s, &s->op[0]) && x86_source_use(s, &s->op[1]);
}

uint8_t x86_system_classify(struct x86_source *s, uint8_t mode)
{
    bool kernel = x86_mode_mmu(mode) != X86_MMU_USER;

    switch (s->z.mnemonic) {
    case ZYDIS_MNEMONIC_CLI:
        return kernel ? KIND_RFLAGS_BIT : KIND_HANDLER;
    case ZYDIS_MNEMONIC_CLD:
    case ZYDIS_MNEMONIC_STD:
        return KIND_RFLAGS_BIT;
    case ZYDIS_MNEMONIC_STI:
        return kernel ? KIND_STI : KIND_HANDLER;
    case ZYDIS_MNEMONIC_SWAPGS:
        return kernel ? KIND_SWAPGS : KIND_HANDLER;
    case ZYDIS_MNEMONIC_PUSHFQ:
        return KIND_PUSHF;
    case ZYDIS_MNEMONIC_POPFQ:
        return kernel ? KIND_POPF : KIND_HANDLER;
    case ZYDIS_MNEMONIC_LAHF:
    case ZYDIS_MNEMONIC_SAHF:
        return KIND_FLAGS_AH;
    case ZYDIS_MNEMONIC_BT:
    case ZYDIS_MNEMONIC_BTS:
    case ZYDIS_MNEMONIC_BTR:
    case ZYDIS_MNEMONIC_BTC:
        return is_bit_string(s) ? KIND_BIT_STRING : KIND_HANDLER;
    case ZYDIS_MNEMONIC_CLAC: /* AC is clear where user pages are refused */
        return x86_mode_mmu(mode) == X86_MMU_KERNEL ? KIND_NOP : kernel ? KIND_AC : KIND_HANDLER;
    case ZYDIS_MNEMONIC_STAC:
        return kernel ? KIND_AC : KIND_HANDLER;
    case ZYDIS_MNEMONIC_RDFSBASE:
    case ZYDIS_MNEMONIC_RDGSBASE:
        return x86_source_use(s, &s->op[0]) ? KIND_READ_BASE : KIND_HANDLER;
    case ZYDIS_MNEMONIC_WRFSBASE:
    case ZYDIS_MNEMONIC_WRGSBASE:
        return x86_source_use(s, &s->op[0]) ? KIND_WRITE_BASE : KIND_HANDLER;
    case ZYDIS_MNEMONIC_PAUSE:
        /* With REX.B it is an exchange with R8. */
        return s->z.attributes & ZYDIS_ATTRIB_HAS_REX && s->z.raw.rex.B ? KIND_HANDLER : KIND_PAUSE;
    case ZYDIS_MNEMONIC_MOV:
        return special_move_kind(s, kernel);
    default:
        break;
    }
    return is_high_byte(s) ? KIND_HIGH_BYTE : string_kind(s);
}

uint8_t x86_mode_behind(const struct x86_source *s, uint8_t mode)
{
    if (s->kind != KIND_AC)
        return mode;
    return s->z.mnemonic == ZYDIS_MNEMONIC_STAC ? X86_MMU_KERNEL_USER : X86_MMU_KERNEL;
}

/* --- what is emitted: AH to BH --- */

static void stage_rax(struct x86_translation *t)
{
    if (t->source->rax_read)
        x86_emit_mov(&t->e, T0, GUEST_RAX);
}

static void unstage_rax(struct x86_translation *t)
{
    if (t->source->rax_written)
        x86_emit_mov(&t->e, GUEST_RAX, T0);
}

static void changed(struct x86_translation *t)
{
    if (t->source->flags_written | t->source->flags_undefined)
        x86_flags_changed(t);
}

/*
 * A register that is written takes the operand from a place that needs no REX; one that is only
 * read goes to AL, which any address can stand beside.
 */
static void translate_high_byte_memory(struct x86_translation *t)
{
    const struct x86_source *s = t->source;
    struct x86_encoding enc = x86_encoding_of(s), movzx = {.opcode = 0xb6, .map = 1};
    struct x86_rm rm, temp = x86_cpu_field(CPU_OFFSET(host.temp));
    bool written = high_register(s)->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE;
    unsigned reg = s->z.raw.modrm.reg;

    x86_flags_spill(t);
    unsigned la = x86_emit_address(t, &s->mem->mem);
    rm = x86_emit_probe(t, la, 1, s->mem_write, false);
    if (written) {
        x86_emit_op(&t->e, &movzx, T2, &rm);
        x86_emit_store(&t->e, temp, T2);
        rm = temp;
    } else {
        x86_emit_lea(&t->e, T2, rm);
        rm = x86_rm_mem(T2, 0);
    }
    if (x86_wants_flags(s))
        x86_flags_want(t);
    stage_rax(t);
    if (!written) {
        struct x86_rm high = x86_rm_reg(reg);
        x86_emit_op(&t->e, &movzx, T0, &high);
        reg = T0;
    }
    x86_emit_op(&t->e, &enc, reg, &rm);
    unstage_rax(t);
    changed(t);
}

static void translate_high_byte(struct x86_translation *t)
{
    const struct x86_source *s = t->source;

    if (s->mem) {
        translate_high_byte_memory(t);
        return;
    }
    if (x86_wants_flags(s))
        x86_flags_want(t);
    stage_rax(t);
    if (s->z.attributes & ZYDIS_ATTRIB_HAS_MODRM) {
        struct x86_encoding enc = x86_encoding_of(s);
        struct x86_rm rm = x86_rm_reg(s->z.raw.modrm.rm);
        x86_emit_op(&t->e, &enc, s->z.raw.modrm.reg, &rm);
    } else {
        x86_emit_8(&t->e, s->z.opcode); /* B4 to B7 */
    }
    x86_emit_immediates(t);
    unstage_rax(t);
    changed(t);
}

/* LAHF, SAHF */
static void translate_flags_ah(struct x86_translation *t)
{
    bool load = t->source->z.mnemonic == ZYDIS_MNEMONIC_LAHF;

    if (load || x86_wants_flags(t->source))
        x86_flags_want(t);
    x86_emit_mov(&t->e, T0, GUEST_RAX);
    x86_emit_8(&t->e, t->source->z.opcode);
    if (load)
        x86_emit_mov(&t->e, GUEST_RAX, T0);
    else
        x86_flags_changed(t);
}

/* --- RFLAGS --- */

static const struct x86_rm *rflags(void)
{
    static const struct x86_rm field = {
        .is_mem = true, .base = HOST_RSP, .index = HOST_NONE, .disp = CPU_OFFSET(s.rflags)};
    return &field;
}

/* Flags are in memory. As 64 bits, so that a load soon after need not wait for the store. */
static void emit_change_rflags(struct x86_translation *t, enum x86_alu op, uint64_t bits)
{
    struct x86_encoding enc = {.opcode = 0x81, .w = true};
    x86_emit_op(&t->e, &enc, op, rflags());
    x86_emit_32(&t->e, (uint32_t)bits);
}

/* CLI, CLD, STD */
static void translate_rflags_bit(struct x86_translation *t)
{
    x86_flags_spill(t);
    if (t->source->z.mnemonic == ZYDIS_MNEMONIC_STD)
        emit_change_rflags(t, ALU_OR, X86_DF);
    else
        emit_change_rflags(t, ALU_AND,
                           t->source->z.mnemonic == ZYDIS_MNEMONIC_CLI ? ~X86_IF : ~X86_DF);
}

/* Interrupts are taken behind the next instruction (x86_emit_window), which no unit ends before. */
static void translate_sti(struct x86_translation *t)
{
    if (t->index + 1 == t->tr->count) {
        x86_translate_by_handler(t);
        return;
    }
    x86_flags_spill(t);
    emit_change_rflags(t, ALU_OR, X86_IF);
    t->window = true;
}

void x86_emit_window(struct x86_translation *t)
{
    struct x86_source *present = t->source, behind = {.live_after = FLAGS_ALL};

    t->source = &behind;
    x86_flags_spill(t);
    t->source = present;
    x86_emit_attention_check(t, present->offset + present->z.length);
}

/* T1 = what PUSHF pushes; flags are in memory. Uses T0, T2. */
static void emit_rflags_image(struct x86_translation *t)
{
    struct x86_encoding movzx = {.opcode = 0xb7, .map = 1};
    struct x86_rm flags = x86_cpu_field(CPU_OFFSET(host.flags));
    const uint64_t not_pushed = X86_STATUS_FLAGS | X86_RF | X86_VM;

    x86_emit_op(&t->e, &movzx, T0, &flags);
    x86_emit_load(&t->e, T1, *rflags());
    x86_emit_mov32(&t->e, T2, T0);
    x86_emit_alu_imm(&t->e, ALU_AND, T1, (int32_t)~not_pushed);
    x86_emit_shift_imm(&t->e, 5, T2, 8, false);
    x86_emit_alu_imm32(&t->e, ALU_AND, T0, 1);
    x86_emit_alu(&t->e, ALU_OR, T1, x86_rm_reg(T2));
    x86_emit_shift_imm(&t->e, 4, T0, 11, false);
    x86_emit_alu(&t->e, ALU_OR, T1, x86_rm_reg(T0));
}

static void translate_pushf(struct x86_translation *t)
{
    struct x86_rm temp = x86_cpu_field(CPU_OFFSET(host.temp));

    x86_flags_spill(t);
    emit_rflags_image(t);
    x86_emit_store(&t->e, temp, T1);
    x86_emit_lea(&t->e, T0, x86_rm_mem(GUEST_RSP, -8));
    struct x86_rm to = x86_emit_probe(t, T0, 8, true, false);
    x86_emit_load(&t->e, T2, temp);
    x86_emit_store(&t->e, to, T2);
    x86_emit_mov(&t->e, GUEST_RSP, T0);
}

/* host.flags = the status flags of the image in T0, as LAHF and SETO leave them. Uses T1. */
static void emit_flags_from_image(struct x86_translation *t)
{
    struct x86_encoding store = {.opcode = 0x89, .operand16 = true};
    struct x86_rm flags = x86_cpu_field(CPU_OFFSET(host.flags));

    x86_emit_mov32(&t->e, T1, T0);
    x86_emit_alu_imm32(&t->e, ALU_AND, T0, X86_STATUS_FLAGS & 0xff);
    x86_emit_shift_imm(&t->e, 5, T1, 11, false);
    x86_emit_alu_imm32(&t->e, ALU_OR, T0, X86_FIXED);
    x86_emit_shift_imm(&t->e, 4, T0, 8, false);
    x86_emit_alu_imm32(&t->e, ALU_AND, T1, 1);
    x86_emit_alu(&t->e, ALU_OR, T0, x86_rm_reg(T1));
    x86_emit_op(&t->e, &store, T0, &flags);
}

/*
 * At CPL 0. Single steps and alignment checks change the mode: for the handler. RF is 0 in units,
 * and what is popped there is not loaded.
 */
static void translate_popf(struct x86_translation *t)
{
    const uint64_t plain = X86_IF | X86_DF | X86_NT | X86_IOPL | X86_ID;
    const struct x86_source *s = t->source;

    x86_flags_spill(t);
    x86_emit_load(&t->e, T0, x86_emit_probe(t, GUEST_RSP, 8, false, false));
    x86_emit_load(&t->e, T1, *rflags());
    x86_emit_mov(&t->e, T2, T0);
    x86_emit_alu(&t->e, ALU_XOR, T2, x86_rm_reg(T1));
    x86_emit_alu_imm32(&t->e, ALU_AND, T2, X86_TF | X86_AC);
    x86_slow_path(t, x86_emit_jcc(&t->e, COND_NE));
    x86_emit_mov32(&t->e, T2, T0);
    x86_emit_alu_imm(&t->e, ALU_AND, T1, (int32_t)~plain);
    x86_emit_alu_imm32(&t->e, ALU_AND, T2, (int32_t)plain);
    x86_emit_alu(&t->e, ALU_OR, T1, x86_rm_reg(T2));
    x86_emit_store(&t->e, *rflags(), T1);
    x86_emit_lea(&t->e, GUEST_RSP, x86_rm_mem(GUEST_RSP, 8));
    emit_flags_from_image(t);
    x86_emit_attention_check(t, s->offset + s->z.length);
}

/* --- STAC, CLAC --- */

static void emit_set_byte(struct x86_translation *t, int32_t offset, uint8_t value)
{
    struct x86_encoding mov = {.opcode = 0xc6};
    struct x86_rm field = x86_cpu_field(offset);
    x86_emit_op(&t->e, &mov, 0, &field);
    x86_emit_8(&t->e, value);
}

static void emit_test(struct x86_translation *t, struct x86_rm field, uint32_t bits)
{
    struct x86_encoding test = {.opcode = 0xf7};
    x86_emit_op(&t->e, &test, 0, &field);
    x86_emit_32(&t->e, bits);
}

/* What follows in the unit is of the new mode. */
static void emit_change_mode(struct x86_translation *t, uint8_t mode)
{
    struct x86_rm key = x86_cpu_field(mode == X86_MMU_KERNEL ? CPU_OFFSET(host.jump_kernel)
                                                             : CPU_OFFSET(host.jump_kernel_user));
    int32_t table = mode * (int32_t)sizeof(((struct x86_cpu *)0)->tlb[0]);

    t->mode = mode;
    emit_set_byte(t, CPU_OFFSET(mmu), mode);
    emit_set_byte(t, CPU_OFFSET(host.mode), mode);
    x86_emit_lea(&t->e, T0, x86_cpu_field(CPU_OFFSET(tlb) + table));
    x86_emit_store(&t->e, x86_cpu_field(CPU_OFFSET(tlb_now)), T0);
    x86_emit_load(&t->e, T0, key);
    x86_emit_store(&t->e, x86_cpu_field(CPU_OFFSET(host.jump_now)), T0);
}

/* Without SMAP user pages are always allowed: CLAC is for the handler then, which leaves the unit.
 */
static void translate_ac(struct x86_translation *t)
{
    uint8_t mode = x86_mode_behind(t->source, t->mode);

    x86_flags_spill(t);
    if (mode == X86_MMU_KERNEL) {
        emit_test(t, x86_cpu_field(CPU_OFFSET(s.cr4)), X86_CR4_SMAP);
        x86_slow_path(t, x86_emit_jcc(&t->e, COND_E));
        emit_change_rflags(t, ALU_AND, ~X86_AC);
    } else {
        emit_change_rflags(t, ALU_OR, X86_AC);
    }
    if (mode != t->mode)
        emit_change_mode(t, mode);
}

/* --- segments and control registers --- */

static void translate_swapgs(struct x86_translation *t)
{
    struct x86_rm inactive = x86_cpu_field(CPU_OFFSET(s.kernel_gs_base));
    struct x86_rm hidden = x86_cpu_field(CPU_OFFSET(s.seg[X86_GS].base));

    x86_emit_load(&t->e, T0, inactive);
    x86_emit_load(&t->e, T1, hidden);
    x86_emit_store(&t->e, hidden, T0);
    x86_emit_store(&t->e, x86_cpu_field(CPU_OFFSET(seg_base[X86_GS])), T0);
    x86_emit_store(&t->e, inactive, T1);
}

/* Memory takes 16 bits; a register as many as it has. */
static void translate_from_segment(struct x86_translation *t)
{
    const struct x86_source *s = t->source;
    struct x86_encoding movzx = {.opcode = 0xb7, .map = 1};
    struct x86_encoding mov16 = {.opcode = 0x89, .operand16 = true};
    unsigned segment = x86_segment_number(s->op[1].reg.value);
    struct x86_rm selector =
        x86_cpu_field(CPU_OFFSET(s.seg) + (int32_t)(segment * sizeof(struct x86_segment)) +
                      (int32_t)offsetof(struct x86_segment, selector));
    struct x86_rm to;

    if (s->mem) {
        x86_flags_spill(t);
        unsigned la = x86_emit_address(t, &s->mem->mem);
        to = x86_emit_probe(t, la, 2, true, false);
    } else if (s->rm.size == 2) {
        unsigned host = x86_host_of[s->rm.gpr];
        to = host == HOST_NONE ? x86_gpr_home(s->rm.gpr) : x86_rm_reg(host);
    } else {
        x86_emit_op(&t->e, &movzx, T2, &selector);
        x86_gpr_out(t, s->rm.gpr, T2);
        return;
    }
    x86_emit_op(&t->e, &movzx, T2, &selector);
    x86_emit_op(&t->e, &mov16, T2, &to);
}

static bool is_fs(const struct x86_source *s)
{
    return s->z.mnemonic == ZYDIS_MNEMONIC_RDFSBASE || s->z.mnemonic == ZYDIS_MNEMONIC_WRFSBASE;
}

/* Not enabled: #UD, by the handler. */
static void emit_base_check(struct x86_translation *t)
{
    x86_flags_spill(t);
    emit_test(t, x86_cpu_field(CPU_OFFSET(s.cr4)), X86_CR4_FSGSBASE);
    x86_slow_path(t, x86_emit_jcc(&t->e, COND_E));
}

static struct x86_rm hidden_base(const struct x86_source *s)
{
    return x86_cpu_field(is_fs(s) ? CPU_OFFSET(s.seg[X86_FS].base)
                                  : CPU_OFFSET(s.seg[X86_GS].base));
}

static void translate_read_base(struct x86_translation *t)
{
    const struct x86_source *s = t->source;
    struct x86_encoding load = {.opcode = 0x8b, .w = s->rm.size == 8};
    struct x86_rm base = hidden_base(s);

    emit_base_check(t);
    x86_emit_op(&t->e, &load, T0, &base);
    x86_gpr_out(t, s->rm.gpr, T0);
}

static void translate_write_base(struct x86_translation *t)
{
    const struct x86_source *s = t->source;
    struct x86_encoding load = {.opcode = 0x8b, .w = s->rm.size == 8};
    int32_t used = is_fs(s) ? CPU_OFFSET(seg_base[X86_FS]) : CPU_OFFSET(seg_base[X86_GS]);

    emit_base_check(t);
    struct x86_rm from = x86_rm_reg(x86_gpr_in(t, s->rm.gpr, T0));
    x86_emit_op(&t->e, &load, T0, &from);
    x86_emit_canonical_check(t);
    x86_emit_store(&t->e, hidden_base(s), T0);
    x86_emit_store(&t->e, x86_cpu_field(used), T0);
}

static void translate_from_cr(struct x86_translation *t)
{
    static const int32_t offsets[] = {CPU_OFFSET(s.cr0), 0, CPU_OFFSET(s.cr2), CPU_OFFSET(s.cr3),
                                      CPU_OFFSET(s.cr4)};
    const struct x86_source *s = t->source;

    x86_emit_load(&t->e, T0, x86_cpu_field(offsets[s->op[1].reg.value - ZYDIS_REGISTER_CR0]));
    x86_gpr_out(t, s->rm.gpr, T0);
}

/* --- PAUSE --- */

/* Counted; the handler looks whether to let others run. */
static void translate_pause(struct x86_translation *t)
{
    struct x86_encoding cmp = {.opcode = 0x81}, add = {.opcode = 0x83};
    struct x86_rm pauses = x86_cpu_field(CPU_OFFSET(pauses));

    x86_flags_spill(t);
    x86_emit_op(&t->e, &cmp, ALU_CMP, &pauses);
    x86_emit_32(&t->e, X86_PAUSES_TO_YIELD - 1);
    x86_slow_path(t, x86_emit_jcc(&t->e, COND_AE));
    x86_emit_op(&t->e, &add, ALU_ADD, &pauses);
    x86_emit_8(&t->e, 1);
}

/* --- memory operands of any size --- */

/* op is the one for 16 bits and more. */
static void emit_sized(struct x86_translation *t, uint8_t op, unsigned size, unsigned reg,
                       struct x86_rm rm)
{
    struct x86_encoding enc = {.opcode = (uint8_t)(size == 1 ? op - 1 : op),
                               .w = size == 8,
                               .operand16 = size == 2,
                               .byte_reg = size == 1};
    x86_emit_op(&t->e, &enc, reg, &rm);
}

enum { MOV_STORE = 0x89, MOV_LOAD = 0x8b };

/* --- bit strings --- */

/* T0 = la + the signed bit number's whole words. Uses T2. */
static void emit_bit_address(struct x86_translation *t, unsigned la)
{
    const struct x86_gpr_use *bit = &t->source->reg;
    unsigned log2_size = (unsigned)__builtin_ctz(bit->size);
    struct x86_encoding extend = {.opcode = bit->size == 2   ? 0xbf
                                            : bit->size == 4 ? 0x63
                                                             : 0x8b,
                                  .map = bit->size == 2,
                                  .w = true};
    struct x86_rm number = x86_rm_reg(x86_gpr_in(t, bit->gpr, T2));
    struct x86_rm word = x86_rm_indexed(la, T2, 0);

    x86_emit_op(&t->e, &extend, T2, &number);
    x86_emit_shift_imm(&t->e, 7, T2, log2_size + 3, true);
    word.scale = (uint8_t)log2_size;
    x86_emit_lea(&t->e, T0, word);
}

/*
 * Unlocked, on a register between a load and a store: faster, and there the host takes the bit
 * number modulo the size. Locked, the number is cut before.
 */
static void translate_bit_string(struct x86_translation *t)
{
    const struct x86_source *s = t->source;
    struct x86_encoding enc = x86_encoding_of(s);
    struct x86_rm word = x86_rm_mem(T1, 0), copy = x86_rm_reg(T2);
    unsigned size = s->reg.size;

    x86_flags_spill(t);
    emit_bit_address(t, x86_emit_address(t, &s->mem->mem));
    x86_emit_lea(&t->e, T1, x86_emit_probe(t, T0, size, s->mem_write, enc.lock));
    if (enc.lock) {
        x86_emit_mov(&t->e, T2, x86_gpr_in(t, s->reg.gpr, T2));
        x86_emit_alu_imm32(&t->e, ALU_AND, T2, (int32_t)(8 * size - 1));
        if (x86_wants_flags(s))
            x86_flags_want(t);
        x86_emit_op(&t->e, &enc, T2, &word);
    } else {
        emit_sized(t, MOV_LOAD, size, T2, word);
        if (x86_wants_flags(s))
            x86_flags_want(t);
        x86_emit_op(&t->e, &enc, x86_gpr_in(t, s->reg.gpr, T0), &copy);
        if (s->mem_write)
            emit_sized(t, MOV_STORE, size, T2, word);
    }
    x86_flags_changed(t);
}

/* --- one element of a string --- */

/* Upwards; the handler goes downwards. */
static void emit_direction_check(struct x86_translation *t)
{
    x86_flags_spill(t);
    emit_test(t, *rflags(), X86_DF);
    x86_slow_path(t, x86_emit_jcc(&t->e, COND_NE));
}

static void translate_string(struct x86_translation *t)
{
    const struct x86_source *s = t->source;
    unsigned opcode = s->z.opcode & ~1u, value = opcode == 0xa4 ? T0 : GUEST_RAX;
    int size = s->z.opcode & 1 ? s->z.operand_width / 8 : 1;

    emit_direction_check(t);
    if (opcode != 0xaa)
        emit_sized(t, MOV_LOAD, (unsigned)size, value,
                   x86_emit_probe(t, GUEST_RSI, (unsigned)size, false, false));
    if (opcode != 0xac)
        emit_sized(t, MOV_STORE, (unsigned)size, value,
                   x86_emit_probe(t, GUEST_RDI, (unsigned)size, true, false));
    if (opcode != 0xaa)
        x86_emit_lea(&t->e, GUEST_RSI, x86_rm_mem(GUEST_RSI, size));
    if (opcode != 0xac)
        x86_emit_lea(&t->e, GUEST_RDI, x86_rm_mem(GUEST_RDI, size));
}

/* --- repeated strings that lie in one page --- */

/* T2 = where the string of RCX elements at `start` ends, in the page; it must be there. */
static void emit_page_check(struct x86_translation *t, unsigned start, unsigned size)
{
    struct x86_rm end = x86_rm_indexed(T2, HOST_RCX, 0);

    end.scale = (uint8_t)__builtin_ctz(size);
    x86_emit_mov32(&t->e, T2, start);
    x86_emit_alu_imm32(&t->e, ALU_AND, T2, PAGE_SIZE - 1);
    x86_emit_lea(&t->e, T2, end);
    x86_emit_alu_imm32(&t->e, ALU_CMP, T2, PAGE_SIZE);
    x86_slow_path(t, x86_emit_jcc(&t->e, COND_A));
}

static void emit_exchange(struct x86_translation *t, unsigned a, unsigned b)
{
    struct x86_encoding xchg = {.opcode = 0x87, .w = true};
    struct x86_rm rm = x86_rm_reg(b);
    x86_emit_op(&t->e, &xchg, a, &rm);
}

/* to = where the string of T2 elements at `start` ends. */
static void emit_string_end(struct x86_translation *t, unsigned to, unsigned start, unsigned size)
{
    struct x86_rm end = x86_rm_indexed(start, T2, 0);

    end.scale = (uint8_t)__builtin_ctz(size);
    x86_emit_lea(&t->e, to, end);
}

static void emit_repeated(struct x86_translation *t, unsigned size)
{
    if (size == 2)
        x86_emit_8(&t->e, 0x66);
    x86_emit_8(&t->e, 0xf3);
    if (size == 8)
        x86_emit_8(&t->e, 0x48);
    x86_emit_8(&t->e, t->source->z.opcode);
}

/*
 * The host's own instruction on host addresses, while the guest's are kept in scratch registers;
 * RCX is the guest's. What crosses a page, goes downwards or misses is the handler's.
 */
static void translate_rep_string(struct x86_translation *t)
{
    const struct x86_source *s = t->source;
    unsigned size = s->z.opcode & 1 ? s->z.operand_width / 8u : 1;
    bool moves = (s->z.opcode & ~1u) == 0xa4;

    emit_direction_check(t);
    x86_emit_alu_imm(&t->e, ALU_CMP, HOST_RCX, (int32_t)(PAGE_SIZE / size));
    x86_slow_path(t, x86_emit_jcc(&t->e, COND_A));
    emit_page_check(t, GUEST_RDI, size);
    if (moves) {
        emit_page_check(t, GUEST_RSI, size);
        x86_emit_lea(&t->e, T0, x86_emit_probe(t, GUEST_RSI, 1, false, false));
    }
    x86_emit_lea(&t->e, T1, x86_emit_probe(t, GUEST_RDI, 1, true, false));
    x86_emit_mov(&t->e, T2, HOST_RCX);
    emit_exchange(t, T1, GUEST_RDI);
    if (moves)
        emit_exchange(t, T0, GUEST_RSI);
    else
        x86_emit_mov(&t->e, T0, GUEST_RAX);
    emit_repeated(t, size);
    emit_string_end(t, GUEST_RDI, T1, size);
    if (moves)
        emit_string_end(t, GUEST_RSI, T0, size);
}

void x86_translate_system(struct x86_translation *t)
{
    switch (t->source->kind) {
    case KIND_HIGH_BYTE:
        translate_high_byte(t);
        break;
    case KIND_FLAGS_AH:
        translate_flags_ah(t);
        break;
    case KIND_RFLAGS_BIT:
        translate_rflags_bit(t);
        break;
    case KIND_STI:
        translate_sti(t);
        break;
    case KIND_PUSHF:
        translate_pushf(t);
        break;
    case KIND_POPF:
        translate_popf(t);
        break;
    case KIND_SWAPGS:
        translate_swapgs(t);
        break;
    case KIND_FROM_SEGMENT:
        translate_from_segment(t);
        break;
    case KIND_BIT_STRING:
        translate_bit_string(t);
        break;
    case KIND_REP_STRING:
        translate_rep_string(t);
        break;
    case KIND_AC:
        translate_ac(t);
        break;
    case KIND_FROM_CR:
        translate_from_cr(t);
        break;
    case KIND_READ_BASE:
        translate_read_base(t);
        break;
    case KIND_WRITE_BASE:
        translate_write_base(t);
        break;
    case KIND_PAUSE:
        translate_pause(t);
        break;
    default: /* KIND_STRING */
        translate_string(t);
        break;
    }
}
