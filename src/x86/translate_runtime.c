/*
 * Between C and host code: the common routines in code memory, the call of an interpreter's
 * handler, running a unit, the jump cache. The CPU's thread.
 */
#include "x86/exec_int.h"
#include "x86/tlb.h"
#include "x86/translate_int.h"
#include "x86/vector_int.h"

/* --- modes --- */

/* Vector instructions run as they are only while none of them can raise anything but page faults.
 */
static bool vectors_usable(const struct x86_cpu *cpu)
{
    const uint64_t both = X86_XCR0_SSE | X86_XCR0_AVX;

    if ((cpu->s.cr0 & (X86_CR0_EM | X86_CR0_TS)) || !(cpu->s.cr4 & X86_CR4_OSFXSR) ||
        (cpu->s.fpu.mxcsr & MXCSR_MASKS) != MXCSR_MASKS)
        return false;
    return !x86_has(cpu->features, X86_FEATURE_AVX) ||
           ((cpu->s.cr4 & X86_CR4_OSXSAVE) && (cpu->s.xcr0 & both) == both);
}

uint8_t x86_unit_mode(const struct x86_cpu *cpu)
{
    if (cpu->code_size != 8 || cpu->mmu == X86_MMU_ALIGNED || cpu->debug_active || cpu->cpl == 1 ||
        cpu->cpl == 2)
        return X86_UNIT_NONE; /* CPL 1, 2: so that a supervisor's TLB means CPL 0 */
    bool vector = cpu->cpl == 3 && vectors_usable(cpu);
    return (uint8_t)(cpu->mmu | vector << 2);
}

/* --- the jump cache --- */

/* As x86_emit_jump_compare has it. */
__attribute__((target("sse4.2"))) static struct x86_jump *jump_slot(struct x86_cpu *cpu,
                                                                    uint64_t rip)
{
    uint64_t hash = __builtin_ia32_crc32di((uint32_t)cpu->host.jump_now, rip);
    return &cpu->host.jump[hash / sizeof(struct x86_jump) % X86_JUMP_SIZE];
}

struct x86_rm x86_emit_jump_compare(struct x86_emit *e, size_t attention, int32_t pushed,
                                    uint8_t *miss[2])
{
    struct x86_encoding load32 = {.opcode = 0x8b};
    struct x86_encoding crc32 = {.opcode = 0xf1, .map = 2, .mandatory = 0xf2, .w = true};
    struct x86_rm now = x86_cpu_field(CPU_OFFSET(host.jump_now) + pushed);
    struct x86_rm t0 = x86_rm_reg(T0);
    struct x86_rm slot = x86_rm_indexed(HOST_RSP, T1, CPU_OFFSET(host.jump) + pushed);

    x86_emit_load(e, T2, now);
    x86_emit_op(e, &load32, T1, &now);
    x86_emit_op(e, &crc32, T1, &t0);
    x86_emit_alu_imm32(e, ALU_AND, T1, (int32_t)((X86_JUMP_SIZE - 1) * sizeof(struct x86_jump)));
    /* Attention wanted: no key matches. */
    x86_emit_alu(e, ALU_XOR, T2, x86_cpu_field((int32_t)attention + pushed));
    slot.disp += (int32_t)offsetof(struct x86_jump, key);
    x86_emit_alu(e, ALU_CMP, T2, slot);
    miss[0] = x86_emit_jcc(e, COND_NE);
    slot.disp += (int32_t)(offsetof(struct x86_jump, rip) - offsetof(struct x86_jump, key));
    x86_emit_alu(e, ALU_CMP, T0, slot);
    miss[1] = x86_emit_jcc(e, COND_NE);
    slot.disp += (int32_t)(offsetof(struct x86_jump, entry) - offsetof(struct x86_jump, rip));
    return slot;
}

/* Kernel code counts as mapped global, user code as not; what is otherwise is not noted. */
static bool in_global_space(uint8_t mode)
{
    return x86_mode_mmu(mode) != X86_MMU_USER;
}

static uint64_t new_key(struct x86_translator *tr, uint8_t mode, uint32_t space)
{
    for (unsigned i = 0; i < tr->known_count; i++) {
        const struct x86_known_key *k = &tr->known[i];
        if (k->mode == mode && k->space == space)
            return k->key;
    }
    unsigned n = tr->known_count < X86_KNOWN_KEYS ? tr->known_count++
                                                  : (unsigned)(tr->last_key / 2 % X86_KNOWN_KEYS);
    tr->last_key += 2;
    tr->known[n] = (struct x86_known_key) {.key = tr->last_key, .space = space, .mode = mode};
    return tr->last_key;
}

static uint64_t present_key(struct x86_translator *tr, const struct x86_cpu *cpu, uint8_t mode)
{
    uint32_t space = in_global_space(mode) ? cpu->code_space_global : cpu->code_space;
    struct x86_known_key *present = &tr->present[mode];

    if (unlikely(present->space != space || !present->key))
        *present = (struct x86_known_key) {new_key(tr, mode, space), space, mode};
    return present->key;
}

void x86_unit_choose_key(struct x86_translator *tr, struct x86_cpu *cpu, uint8_t mode)
{
    if (unlikely(cpu->code_space_wraps != tr->wraps)) {
        x86_jump_cache_clear(tr, cpu);
        tr->wraps = cpu->code_space_wraps;
    }
    cpu->host.jump_now = present_key(tr, cpu, mode);
    if (!in_global_space(mode))
        return;
    cpu->host.jump_kernel = present_key(tr, cpu, X86_MMU_KERNEL);
    cpu->host.jump_kernel_user = present_key(tr, cpu, X86_MMU_KERNEL_USER);
}

bool x86_unit_note(struct x86_cpu *cpu, const struct x86_unit *unit)
{
    uint64_t rip = cpu->s.rip;

    if (x86_tlb_note_code(cpu, rip) != in_global_space(unit->mode))
        return false;
    *jump_slot(cpu, rip) =
        (struct x86_jump) {.rip = rip, .key = cpu->host.jump_now, .entry = (uintptr_t)unit->enter};
    return true;
}

bool x86_unit_admit(struct x86_translator *tr, struct x86_cpu *cpu, const struct x86_unit *unit)
{
    uint64_t page = cpu->s.rip & PAGE_MASK;

    x86_unit_choose_key(tr, cpu, unit->mode);
    if (x86_tlb_note_code(cpu, page + PAGE_SIZE) != in_global_space(unit->mode))
        return false;
    store_le64(unit->guard_key, cpu->host.jump_now);
    store_le64(unit->guard_page, page);
    return true;
}

void x86_jump_cache_clear(struct x86_translator *tr, struct x86_cpu *cpu)
{
    memset(cpu->host.jump, 0, sizeof cpu->host.jump);
    memset(tr->present, 0, sizeof tr->present);
    tr->known_count = 0;
}

/* --- handlers --- */

/*
 * After an instruction that leads elsewhere (a system call, a change of mode): host code for RIP,
 * if the jump cache has it and nothing is to be looked at; else NULL.
 */
static const uint8_t *find_entry(struct x86_cpu *cpu, uint8_t mode)
{
    struct x86_translator *tr = cpu->host.translator;

    if (mode == X86_UNIT_NONE || tr->config.alone || cpu->halted || cpu->s.interrupt_shadow ||
        __atomic_load_n((uint64_t *)(void *)((char *)cpu + tr->config.attention), __ATOMIC_ACQUIRE))
        return NULL;
    x86_unit_choose_key(tr, cpu, mode);
    cpu->host.mode = mode;
    const struct x86_jump *jump = jump_slot(cpu, cpu->s.rip);
    if (jump->key != cpu->host.jump_now || jump->rip != cpu->s.rip)
        return NULL;
    cpu->end_block = false; /* it has: this is another unit, and not one that was dropped */
    return (const uint8_t *)jump->entry;
}

/*
 * Called by host code with the whole state in the CPU: runs one instruction by its handler. Returns
 * where host code goes on, or NULL: back to the caller of x86_unit_run. May raise.
 */
static const uint8_t *run_handler(struct x86_cpu *cpu)
{
    struct x86_site site;
    memcpy(&site, cpu->host.site, sizeof site);
    const struct x86_insn *insn = site.insn;
    uint64_t next = cpu->host.page_base + (uint64_t)(int64_t)site.offset + insn->length;
    bool in_line = site.link == (int32_t)sizeof site;
    uint64_t revocations = cpu->tlb_revocations;

    *(in_line ? &cpu->host.handlers : &cpu->host.probe_misses) += 1;
    cpu->s.rip = next - insn->length;
    cpu->next_rip = next;
    cpu->s.rflags = flags_join(cpu->s.rflags, cpu->host.flags);
    insn->run(cpu, insn);
    cpu->s.rip = cpu->next_rip;
    cpu->host.flags = (uint16_t)flags_split(cpu->s.rflags);
    uint8_t mode = x86_unit_mode(cpu);
    if (unlikely((insn->flags & X86_INSN_END) || cpu->end_block || cpu->next_rip != next ||
                 cpu->s.interrupt_shadow || mode != cpu->host.mode ||
                 cpu->tlb_revocations != revocations))
        return find_entry(cpu, mode);
    return cpu->host.site + site.link;
}

/*
 * Called by host code when a group's probe missed at address host.temp: tries to have the entry
 * made, which nobody can see (no page fault, no dirty bit). Returns where to try again, or NULL:
 * the instruction at RIP and what follows is for a plain unit.
 */
static const uint8_t *fill_group(struct x86_cpu *cpu)
{
    struct x86_site site;
    struct x86_group_site range;
    memcpy(&site, cpu->host.site, sizeof site);
    memcpy(&range, cpu->host.site + sizeof site, sizeof range);
    uint64_t la = cpu->host.temp;
    /* A walk through tables in a device may have taken what other groups of the unit hold; one that
     * set bits in a table beside our code may have dropped the unit itself. */
    uint64_t revocations = cpu->tlb_revocations;

    cpu->s.rip = cpu->host.page_base + (uint64_t)(int64_t)site.offset;
    if (((la ^ (la + range.span - 1)) & PAGE_MASK) == 0 && x86_tlb_prepare(cpu, la, range.write) &&
        likely(cpu->tlb_revocations == revocations && !cpu->end_block))
        return cpu->host.site + site.link;
    cpu->host.plain = true;
    return NULL;
}

/* --- the routines --- */

static const uint8_t callee_saved[] = {HOST_RBX, HOST_RBP, HOST_R12, HOST_R13, HOST_R14, HOST_R15};

static void emit_push(struct x86_emit *e, unsigned reg)
{
    if (reg >= 8)
        x86_emit_8(e, 0x41);
    x86_emit_8(e, 0x50 | (reg & 7));
}

static void emit_pop(struct x86_emit *e, unsigned reg)
{
    if (reg >= 8)
        x86_emit_8(e, 0x41);
    x86_emit_8(e, 0x58 | (reg & 7));
}

static void emit_field(struct x86_emit *e, uint8_t opcode, uint8_t map, unsigned digit,
                       int32_t offset)
{
    struct x86_encoding enc = {.opcode = opcode, .map = map};
    struct x86_rm rm = x86_cpu_field(offset);
    x86_emit_op(e, &enc, digit, &rm);
}

/* All guest registers that live in the host's, from or to their homes. */
static void emit_gprs(struct x86_emit *e, bool load)
{
    for (unsigned i = 0; i < 16; i++) {
        if (x86_host_of[i] == HOST_NONE)
            continue;
        if (load)
            x86_emit_load(e, x86_host_of[i], x86_gpr_home(i));
        else
            x86_emit_store(e, x86_gpr_home(i), x86_host_of[i]);
    }
}

static struct x86_rm vector_home(unsigned i)
{
    return x86_cpu_field(CPU_OFFSET(s.fpu.ymm) + 32 * (int32_t)i);
}

/* MOVUPS of all of them, as VEX of 128 or 256 bits or without VEX. */
static void emit_vectors(struct x86_emit *e, bool load, bool vex, unsigned l)
{
    for (unsigned i = 0; i < 16; i++) {
        struct x86_encoding movups = {
            .opcode = load ? 0x10 : 0x11, .map = 1, .vex = vex, .l = (uint8_t)l};
        struct x86_rm home = vector_home(i);
        x86_emit_op(e, &movups, i, &home);
    }
}

/*
 * Upper halves that are all zero are left as VZEROUPPER made them. Loading them would make them
 * "dirty": some CPUs then save and restore them, 70 cycles each time, wherever code of 128 bits
 * without VEX meets code of 256 bits (Intel optimization reference manual, 15.3).
 */
static void emit_vectors_load_avx(struct x86_emit *e)
{
    struct x86_encoding load = {.opcode = 0x10, .map = 1, .vex = true};
    struct x86_encoding test = {.opcode = 0x17, .map = 2, .mandatory = 0x66, .vex = true};
    struct x86_rm xmm0 = x86_rm_reg(0);

    for (unsigned i = 0; i < 16; i++) {
        struct x86_rm upper = vector_home(i);
        upper.disp += 16;
        if (i < 2) {
            x86_emit_op(e, &load, i, &upper);
            continue;
        }
        struct x86_encoding vorps = {
            .opcode = 0x56, .map = 1, .vex = true, .vvvv = (uint8_t)(i & 1)};
        x86_emit_op(e, &vorps, i & 1, &upper);
    }
    struct x86_encoding vorps = {.opcode = 0x56, .map = 1, .vex = true, .vvvv = 1};
    x86_emit_op(e, &vorps, 0, &xmm0);
    x86_emit_op(e, &test, 0, &xmm0);
    uint8_t *clean = x86_emit_jcc(e, COND_E);
    emit_vectors(e, true, true, 1);
    uint8_t *done = x86_emit_jmp(e);
    if (!e->full)
        x86_emit_link(clean, e->at);
    emit_vectors(e, true, true, 0);
    if (!e->full)
        x86_emit_link(done, e->at);
}

enum { DIGIT_LDMXCSR = 2, DIGIT_STMXCSR = 3 };

static void emit_mxcsr(struct x86_emit *e, unsigned digit, int32_t offset)
{
    emit_field(e, 0xae, 1, digit, offset);
}

static void emit_vectors_in(struct x86_emit *e, bool avx)
{
    if (avx)
        emit_vectors_load_avx(e);
    else
        emit_vectors(e, true, false, 0);
    emit_mxcsr(e, DIGIT_STMXCSR, CPU_OFFSET(host.mxcsr));
    emit_mxcsr(e, DIGIT_LDMXCSR, CPU_OFFSET(s.fpu.mxcsr));
}

static void emit_vectors_out(struct x86_emit *e, bool avx)
{
    static const uint8_t vzeroupper[] = {0xc5, 0xf8, 0x77};

    emit_vectors(e, false, avx, 1);
    emit_mxcsr(e, DIGIT_STMXCSR, CPU_OFFSET(s.fpu.mxcsr));
    emit_mxcsr(e, DIGIT_LDMXCSR, CPU_OFFSET(host.mxcsr));
    if (avx)
        x86_emit_bytes(e, vzeroupper, sizeof vzeroupper);
}

static void emit_enter(struct x86_emit *e, bool vector, bool avx)
{
    for (size_t i = 0; i < ARRAY_COUNT(callee_saved); i++)
        emit_push(e, callee_saved[i]);
    x86_emit_lea(e, HOST_RSP, x86_rm_mem(HOST_RSP, -8)); /* aligned for run_handler */
    x86_emit_store(e, x86_rm_mem(HOST_RDI, CPU_OFFSET(host.c_stack)), HOST_RSP);
    x86_emit_mov(e, HOST_RSP, HOST_RDI);
    x86_emit_mov(e, T1, HOST_RSI);
    if (vector)
        emit_vectors_in(e, avx);
    emit_gprs(e, true);
    x86_emit_load(e, T0, x86_cpu_field(CPU_OFFSET(s.rip)));
    x86_emit_jmp_rm(e, x86_rm_reg(T1));
}

/* pop [site]; everything home */
static void emit_spill(struct x86_emit *e, bool vector, bool avx)
{
    emit_field(e, 0x8f, 0, 0, CPU_OFFSET(host.site));
    emit_gprs(e, false);
    if (vector)
        emit_vectors_out(e, avx);
}

static void emit_back_to_c(struct x86_emit *e)
{
    x86_emit_load(e, HOST_RSP, x86_cpu_field(CPU_OFFSET(host.c_stack)));
    x86_emit_lea(e, HOST_RSP, x86_rm_mem(HOST_RSP, 8));
    for (size_t i = ARRAY_COUNT(callee_saved); i-- > 0;)
        emit_pop(e, callee_saved[i]);
    x86_emit_8(e, 0xc3);
}

/* Everything from home, RAX is RIP; on at T1. */
static void emit_resume(struct x86_emit *e, bool vector, bool avx)
{
    static const uint8_t add_sahf[] = {0x04, 0x7f, 0x9e};
    struct x86_encoding movzx = {.opcode = 0xb7, .map = 1};
    struct x86_rm flags = x86_cpu_field(CPU_OFFSET(host.flags));

    if (vector)
        emit_vectors_in(e, avx);
    emit_gprs(e, true);
    x86_emit_op(e, &movzx, T0, &flags);
    x86_emit_bytes(e, add_sahf, sizeof add_sahf);
    x86_emit_load(e, T0, x86_cpu_field(CPU_OFFSET(s.rip)));
    x86_emit_jmp_rm(e, x86_rm_reg(T1));
}

typedef const uint8_t *host_function(struct x86_cpu *cpu);

static void emit_call(struct x86_emit *e, bool vector, bool avx, host_function *function,
                      const uint8_t *tail)
{
    emit_spill(e, vector, avx);
    x86_emit_mov(e, HOST_RDI, HOST_RSP);
    x86_emit_mov(e, HOST_RBX, HOST_RSP);
    x86_emit_load(e, HOST_RSP, x86_cpu_field(CPU_OFFSET(host.c_stack)));
    x86_emit_load_imm64(e, HOST_RAX, (uint64_t)(uintptr_t)function);
    x86_emit_call_rm(e, x86_rm_reg(HOST_RAX));
    x86_emit_mov(e, HOST_RSP, HOST_RBX);
    x86_emit_mov(e, T1, HOST_RAX);
    x86_emit_alu_imm(e, ALU_CMP, T1, 0);
    uint8_t *leave = x86_emit_jcc(e, COND_E);
    /* The mode may be another one now: test byte [mode], 4 */
    emit_field(e, 0xf6, 0, 0, CPU_OFFSET(host.mode));
    x86_emit_8(e, 4);
    uint8_t *plain = x86_emit_jcc(e, COND_E);
    emit_resume(e, true, avx);
    if (!e->full) {
        x86_emit_link(leave, tail);
        x86_emit_link(plain, e->at);
    }
    emit_resume(e, false, avx);
}

/* Before leave_rip. The site's address, which the call has pushed, is dropped on a hit. */
static void emit_lookup(struct x86_emit *e, size_t attention, struct x86_routines *r)
{
    uint8_t *miss[2];

    r->lookup = e->at;
    struct x86_rm entry = x86_emit_jump_compare(e, attention, 8, miss);
    x86_emit_lea(e, HOST_RSP, x86_rm_mem(HOST_RSP, 8));
    entry.disp -= 8;
    x86_emit_jmp_rm(e, entry);
    for (unsigned i = 0; i < 2 && !e->full; i++)
        x86_emit_link(miss[i], e->at);
}

bool x86_routines_make(struct x86_translator *tr)
{
    struct x86_emit e = {.at = tr->at, .end = tr->config.memory.write + tr->config.memory.size};
    bool avx = x86_has(tr->config.features, X86_FEATURE_AVX);

    for (unsigned vector = 0; vector < 2; vector++) {
        struct x86_routines *r = &tr->routines[vector];
        r->enter = x86_executable(tr, e.at);
        emit_enter(&e, vector, avx);
        emit_lookup(&e, tr->config.attention, r);
        r->leave_rip = e.at;
        /* The return address still lies there. */
        x86_emit_store(&e, x86_cpu_field(CPU_OFFSET(s.rip) + 8), T0);
        r->leave = e.at;
        emit_spill(&e, vector, avx);
        const uint8_t *tail = e.at;
        emit_back_to_c(&e);
        r->call = e.at;
        emit_call(&e, vector, avx, run_handler, tail);
        r->group = e.at;
        x86_emit_store(&e, x86_cpu_field(CPU_OFFSET(host.temp) + 8), T0);
        emit_call(&e, vector, avx, fill_group, tail);
    }
    tr->at = e.at;
    return !e.full;
}

/* --- running --- */

typedef void enter_code(struct x86_cpu *cpu, const uint8_t *where);

/* What can be linked: the jump whose distance lies so far from the site. */
static void note_link(struct x86_unit_exit *out, struct x86_translator *tr,
                      const struct x86_cpu *cpu, int32_t distance)
{
    struct x86_site site;

    memcpy(&site, cpu->host.site, sizeof site);
    out->link = x86_writable(tr, cpu->host.site) + distance;
    out->host_flags = site.host_flags;
    out->from = site.unit;
    out->mode = cpu->host.mode;
}

static void note_far(struct x86_unit_exit *out, struct x86_translator *tr,
                     const struct x86_cpu *cpu)
{
    struct x86_site site;

    memcpy(&site, cpu->host.site, sizeof site);
    uint8_t *key = x86_writable(tr, cpu->host.site) + site.link;
    out->far = (struct x86_far) {key, key + site.page, key + site.jump};
    out->key = cpu->host.jump_now;
    out->page_base = cpu->host.page_base;
}

static void describe_exit(struct x86_translator *tr, struct x86_cpu *cpu, struct x86_unit_exit *out)
{
    struct x86_site site;
    struct x86_group_site range;

    *out = (struct x86_unit_exit) {.plain = cpu->host.plain};
    cpu->host.plain = false;
    memcpy(&site, cpu->host.site, sizeof site);
    switch ((enum x86_site_kind)site.kind) {
    case SITE_LINK:
        note_link(out, tr, cpu, site.link);
        cpu->s.rip = cpu->host.page_base + (uint64_t)(int64_t)site.offset;
        break;
    case SITE_RESUME:
        cpu->s.rip = cpu->host.page_base + (uint64_t)(int64_t)site.offset;
        break;
    case SITE_GROUP:
        memcpy(&range, cpu->host.site + sizeof site, sizeof range);
        note_link(out, tr, cpu, range.plain);
        break;
    case SITE_FAR:
        note_far(out, tr, cpu);
        out->lookup = true;
        break;
    case SITE_LOOKUP:
    case SITE_CALL:
        out->lookup = true;
        break;
    }
}

void x86_unit_run(struct x86_translator *tr, struct x86_cpu *cpu, const struct x86_unit *unit,
                  struct x86_unit_exit *out)
{
    const struct x86_routines *r = &tr->routines[x86_mode_vector(unit->mode)];

    cpu->host.flags = (uint16_t)flags_split(cpu->s.rflags);
    cpu->host.mode = unit->mode;
    cpu->host.translator = tr;
    ((enter_code *)(uintptr_t)r->enter)(cpu, unit->enter);
    cpu->s.rflags = flags_join(cpu->s.rflags, cpu->host.flags);
    describe_exit(tr, cpu, out);
}
