/* A second opinion on the translator's host code: see verify.h. */
#include "verify.h"

#include "fuzz.h"

#include "engine/soft/soft_int.h"
#include "x86/translate_int.h"

struct verifier {
    struct engine_vcpu *vcpu;
    const struct x86_translator *tr;
    const uint8_t *start; /* the units' part of the code memory, writable view */
    size_t size;
    uint8_t *seen;  /* per byte: enum seen */
    uint32_t *todo; /* offsets, a place each */
    size_t todo_count;
    const struct x86_unit *unit; /* where the way began */
    ZydisDecoder decoder;
};

enum seen { UNSEEN, BEGINS, INSIDE, WAITS };

static _Noreturn void wrong(const struct verifier *v, const uint8_t *at, const char *what)
{
    fprintf(stderr, "host code:");
    for (const uint8_t *p = at; p < v->start + v->size && p < at + 15; p++)
        fprintf(stderr, " %02x", *p);
    fprintf(stderr, "\nin or behind the unit of %u guest bytes at page offset 0x%x, mode %u\n",
            v->unit->bytes, v->unit->page_offset, v->unit->mode);
    fuzz_fail("translated code at 0x%zx: %s", (size_t)(at - v->start), what);
}

/* To be read, once. */
static void note(struct verifier *v, const uint8_t *from, const uint8_t *to)
{
    if (to < v->start || to >= v->start + v->size)
        wrong(v, from, "leads out of the code memory");
    size_t at = (size_t)(to - v->start);
    if (v->seen[at] == INSIDE)
        wrong(v, from, "leads into the middle of an instruction");
    if (v->seen[at] != UNSEEN)
        return;
    v->seen[at] = WAITS;
    v->todo[v->todo_count++] = (uint32_t)at;
}

/* --- one instruction --- */

static bool is_forbidden(const ZydisDecodedInstruction *z)
{
    switch (z->meta.category) {
    case ZYDIS_CATEGORY_SYSCALL:
    case ZYDIS_CATEGORY_SYSRET:
    case ZYDIS_CATEGORY_SYSTEM:
    case ZYDIS_CATEGORY_INTERRUPT:
    case ZYDIS_CATEGORY_IO:
    case ZYDIS_CATEGORY_IOSTRINGOP:
    case ZYDIS_CATEGORY_SEGOP:
    case ZYDIS_CATEGORY_RDWRFSGS:
    case ZYDIS_CATEGORY_RDRAND:
    case ZYDIS_CATEGORY_RDSEED:
    case ZYDIS_CATEGORY_SMAP:
    case ZYDIS_CATEGORY_XSAVE:
    case ZYDIS_CATEGORY_XSAVEOPT:
    case ZYDIS_CATEGORY_PUSH:
    case ZYDIS_CATEGORY_POP:
        return true;
    default:
        return z->attributes & (ZYDIS_ATTRIB_IS_PRIVILEGED | ZYDIS_ATTRIB_HAS_SEGMENT_FS |
                                ZYDIS_ATTRIB_HAS_SEGMENT_GS) ||
               z->meta.branch_type == ZYDIS_BRANCH_TYPE_FAR ||
               z->mnemonic == ZYDIS_MNEMONIC_CPUID || z->mnemonic == ZYDIS_MNEMONIC_LDMXCSR ||
               z->mnemonic == ZYDIS_MNEMONIC_VLDMXCSR;
    }
}

static bool is_stack_pointer(ZydisRegister reg)
{
    return ZydisRegisterGetLargestEnclosing(ZYDIS_MACHINE_MODE_LONG_64, reg) == ZYDIS_REGISTER_RSP;
}

/* T1 and T2 (R14, R15) hold what came of the TLB, the host address of a group, or an offset in a
 * table. */
static bool is_allowed(const ZydisDecodedInstruction *z, const ZydisDecodedOperand *op)
{
    const ZydisDecodedOperandMem *mem = &op->mem;

    if (mem->type != ZYDIS_MEMOP_TYPE_MEM || z->mnemonic == ZYDIS_MNEMONIC_NOP)
        return true;
    if (z->address_width != 64)
        return false;
    if (mem->base == ZYDIS_REGISTER_RSP)
        return (mem->index == ZYDIS_REGISTER_NONE || mem->index == ZYDIS_REGISTER_R14) &&
               mem->disp.value >= 0 &&
               mem->disp.value + op->size / 8 <= (int64_t)sizeof(struct engine_vcpu);
    if (op->visibility == ZYDIS_OPERAND_VISIBILITY_HIDDEN ||
        z->meta.category == ZYDIS_CATEGORY_STRINGOP)
        return z->attributes & ZYDIS_ATTRIB_HAS_REP;
    return mem->base == ZYDIS_REGISTER_R14 || mem->index == ZYDIS_REGISTER_R14 ||
           mem->base == ZYDIS_REGISTER_R15;
}

static void check_operands(const struct verifier *v, const uint8_t *at,
                           const ZydisDecodedInstruction *z, const ZydisDecodedOperand *op)
{
    for (unsigned i = 0; i < z->operand_count; i++) {
        if (op[i].type == ZYDIS_OPERAND_TYPE_MEMORY && !is_allowed(z, &op[i]))
            wrong(v, at, "an operand in memory that no probe led to");
        if (op[i].type == ZYDIS_OPERAND_TYPE_REGISTER && is_stack_pointer(op[i].reg.value) &&
            (op[i].actions & ZYDIS_OPERAND_ACTION_MASK_WRITE))
            wrong(v, at, "changes RSP");
    }
}

/* --- branches --- */

static bool is_routine(const struct verifier *v, const uint8_t *to)
{
    for (unsigned i = 0; i < 2; i++) {
        const struct x86_routines *r = &v->tr->routines[i];
        if (to == r->call || to == r->leave || to == r->lookup || to == r->leave_rip ||
            to == r->group)
            return true;
    }
    return false;
}

/* A handler's instruction lies where units do: behind the blocks. */
static bool is_kept(const struct verifier *v, const struct x86_insn *insn)
{
    const struct block_cache *cache = &v->vcpu->cache;
    const uint8_t *at = (const uint8_t *)insn;
    const uint8_t *units = cache->arena + (size_t)cache->index.units * CODE_GRAIN;

    return at >= units && at + sizeof *insn <= units + cache->unit_used;
}

static void check_call(struct verifier *v, const uint8_t *at, const uint8_t *next,
                       const uint8_t *to)
{
    struct x86_site site;
    size_t size = sizeof site;

    if (!is_routine(v, to))
        wrong(v, at, "calls what is no common routine");
    if (next + size > v->start + v->size)
        wrong(v, at, "calls a routine at the end of the code memory");
    memcpy(&site, next, sizeof site);
    if (site.kind > SITE_GROUP || (site.kind == SITE_CALL && !is_kept(v, site.insn)))
        wrong(v, at, "calls a routine without saying what for");
    if (site.kind == SITE_GROUP)
        size += sizeof(struct x86_group_site);
    memset(v->seen + (next - v->start), INSIDE, size);
    /* Behind a handler that leads elsewhere nothing is resumed. */
    if (site.kind == SITE_GROUP || (site.kind == SITE_CALL && !(site.insn->flags & X86_INSN_END)))
        note(v, at, next + site.link);
}

/* By the jump cache, or to what was looked up there before. */
static bool is_lookup(const ZydisDecodedOperand *op)
{
    const ZydisDecodedOperandMem *mem = &op->mem;

    if (op->type != ZYDIS_OPERAND_TYPE_MEMORY || mem->base != ZYDIS_REGISTER_RSP)
        return false;
    return mem->index == ZYDIS_REGISTER_R14
               ? mem->disp.value == CPU_OFFSET(host.jump[0].entry) && mem->scale == 1
               : mem->index == ZYDIS_REGISTER_NONE && mem->disp.value == CPU_OFFSET(host.temp2);
}

/* True: what follows is not reached. */
static bool check_branch(struct verifier *v, const uint8_t *at, const ZydisDecodedInstruction *z,
                         const ZydisDecodedOperand *op)
{
    const uint8_t *next = at + z->length;

    switch (z->meta.category) {
    case ZYDIS_CATEGORY_CALL:
        if (op[0].type != ZYDIS_OPERAND_TYPE_IMMEDIATE)
            wrong(v, at, "an indirect call");
        check_call(v, at, next, next + op[0].imm.value.s);
        return true;
    case ZYDIS_CATEGORY_RET:
        wrong(v, at, "a return");
    case ZYDIS_CATEGORY_UNCOND_BR:
        if (op[0].type == ZYDIS_OPERAND_TYPE_IMMEDIATE)
            note(v, at, next + op[0].imm.value.s);
        else if (!is_lookup(&op[0]))
            wrong(v, at, "a jump that is not by the jump cache");
        return true;
    case ZYDIS_CATEGORY_COND_BR:
        note(v, at, next + op[0].imm.value.s);
        return false;
    default:
        return false;
    }
}

static void read_from(struct verifier *v, size_t offset)
{
    ZydisDecodedInstruction z;
    ZydisDecodedOperand op[ZYDIS_MAX_OPERAND_COUNT];

    for (;;) {
        const uint8_t *at = v->start + offset;
        if (v->seen[offset] == BEGINS)
            return;
        if (v->seen[offset] == INSIDE)
            wrong(v, at, "overlaps another instruction");
        if (!ZYAN_SUCCESS(ZydisDecoderDecodeFull(&v->decoder, at, v->size - offset, &z, op)))
            wrong(v, at, "is no instruction");
        v->seen[offset] = BEGINS;
        for (unsigned i = 1; i < z.length; i++) {
            if (v->seen[offset + i] == BEGINS || v->seen[offset + i] == WAITS)
                wrong(v, at, "overlaps another instruction");
            v->seen[offset + i] = INSIDE;
        }
        if (is_forbidden(&z))
            wrong(v, at, "may not be there");
        if (z.meta.category != ZYDIS_CATEGORY_CALL)
            check_operands(v, at, &z, op);
        if (check_branch(v, at, &z, op))
            return;
        offset += z.length;
        if (offset >= v->size)
            wrong(v, at, "runs off the end of the code memory");
    }
}

static void read_unit(struct verifier *v, const struct x86_unit *unit)
{
    v->unit = unit;
    note(v, v->start, x86_writable(v->tr, unit->enter));
    note(v, v->start, unit->chain[0]);
    note(v, v->start, unit->chain[1]);
    while (v->todo_count) {
        size_t at = v->todo[--v->todo_count];
        if (v->seen[at] == WAITS)
            read_from(v, at);
    }
}

void verify_code(struct engine_vcpu *vcpu)
{
    const struct code_index *index = &vcpu->cache.index;
    struct verifier v = {.vcpu = vcpu, .tr = vcpu->translator};

    v.start = v.tr->start;
    v.size = (size_t)(v.tr->at - v.tr->start);
    if (v.tr->at > v.tr->config.memory.write + v.tr->config.memory.size)
        fuzz_fail("translated code goes on behind its memory");
    if (!v.size)
        return;
    v.seen = calloc(1, v.size);
    v.todo = calloc(v.size, sizeof *v.todo);
    fuzz_must(v.seen && v.todo);
    ZydisDecoderInit(&v.decoder, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
    for (uint64_t i = 0; i < 1ull << index->bits; i++) {
        struct code *code = index->slot[i].at ? code_index_at(index, index->slot[i].at) : NULL;
        if (code && code_index_kind(index, code) == CODE_UNIT)
            read_unit(&v, &((struct translation *)code)->unit);
    }
    free(v.todo);
    free(v.seen);
}
