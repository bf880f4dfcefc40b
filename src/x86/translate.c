/*
 * Making a unit: scanning, liveness of flags, the loop over instructions, entries and exits, what
 * lies out of line. The CPU's thread. See translate.h; docs/soft-engine.md tells the whole.
 */
#include "x86/translate.h"

#include <errno.h>
#include <stdlib.h>

#include "x86/translate_int.h"

/* A unit goes on behind so many conditional branches that were not taken. */
#define SIDE_EXITS_MAX 8

/* --- creation --- */

bool x86_translate_possible(const char **why)
{
    *why = "the host's code is not x86-64";
#if defined(__x86_64__)
    __builtin_cpu_init();
    uint32_t eax = 0x80000001, ebx, ecx, edx;
    __asm__("cpuid" : "+a"(eax), "=b"(ebx), "=c"(ecx), "=d"(edx));
    *why = "the host's CPU has no LAHF in 64-bit mode";
    if (!(ecx & 1))
        return false;
    *why = "the host's CPU has no CRC32 instruction (SSE4.2)";
    return __builtin_cpu_supports("sse4.2");
#else
    return false;
#endif
}

int x86_translator_create(struct x86_translator **out, const struct x86_translator_config *config)
{
    struct x86_translator *tr = calloc(1, sizeof *tr);

    if (!tr)
        return -ENOMEM;
    __builtin_cpu_init();
    tr->config = *config;
    tr->at = config->memory.write;
    tr->has_bmi2 = __builtin_cpu_supports("bmi2");
    if (config->memory.size < X86_TRANSLATE_MEMORY_MIN || !x86_routines_make(tr)) {
        free(tr);
        return -ENOMEM;
    }
    tr->start = tr->at;
    *out = tr;
    return 0;
}

void x86_translator_destroy(struct x86_translator *tr)
{
    free(tr);
}

void x86_translator_reset(struct x86_translator *tr, struct x86_cpu *cpu)
{
    tr->at = tr->start;
    x86_jump_cache_clear(tr, cpu);
}

size_t x86_translator_used(const struct x86_translator *tr)
{
    return (size_t)(tr->at - tr->config.memory.write);
}

/* --- scanning --- */

bool x86_ends_unit(const struct x86_source *s)
{
    switch (s->kind) {
    case KIND_JMP:
    case KIND_CALL:
    case KIND_RET:
    case KIND_JMP_INDIRECT:
    case KIND_CALL_INDIRECT:
        return true;
    case KIND_HANDLER:
        return s->insn.flags & X86_INSN_END;
    default:
        return false;
    }
}

bool x86_jumps_in_unit(const struct x86_source *s)
{
    return s->kind == KIND_JCC || s->kind == KIND_LOOP || s->kind == KIND_JMP ||
           s->kind == KIND_CALL;
}

/* A direct branch to another page. */
static bool leaves_page(const struct x86_source *s)
{
    int64_t target = (int64_t)s->offset + s->z.length + (int64_t)s->insn.imm;
    return x86_jumps_in_unit(s) && (target < 0 || target >= (int64_t)PAGE_SIZE);
}

/* One instruction at tr->bytes. False: it does not fit, or cannot be decoded. */
static bool scan_one(struct x86_translator *tr, const struct x86_unit_code *code, uint8_t mode)
{
    static const struct x86_decode_mode decode_mode = {.code_size = 8};
    struct x86_source *s = &tr->source[tr->count];
    struct x86_decode_bytes from = {&decode_mode, code->bytes + tr->bytes,
                                    code->available - tr->bytes};

    if (x86_decode_whole(tr->config.decoder, &from, &s->insn, &s->z, s->op) != X86_DECODE_OK)
        return false;
    s->bytes = from.bytes;
    s->offset = (uint16_t)(tr->page_offset + tr->bytes);
    x86_source_classify(s, mode);
    if (unlikely(code->edge) && leaves_page(s)) {
        s->kind = KIND_HANDLER;
        s->faults = true;
        s->flags_read = FLAGS_ALL;
    }
    if (tr->count && s[-1].kind == KIND_STI && x86_jumps_in_unit(s))
        return false; /* STI is the last one then */
    tr->bytes += x86_insn_watched(&s->insn, from.available);
    tr->count++;
    return true;
}

/* A place in the unit's insn[] for each instruction that may need its handler. */
static void choose_kept(struct x86_translator *tr)
{
    tr->kept = 0;
    for (unsigned i = 0; i < tr->count; i++) {
        if (tr->source[i].faults || tr->config.alone)
            tr->source[i].kept = (uint8_t)tr->kept++;
    }
}

static bool goes_on(const struct x86_translator *tr, const struct x86_unit_code *code,
                    unsigned *branches)
{
    const struct x86_source *last = &tr->source[tr->count - 1];

    if (x86_ends_unit(last) || code->crosses)
        return false;
    if (last->kind != KIND_JCC && last->kind != KIND_LOOP)
        return true;
    return ++*branches < SIDE_EXITS_MAX &&
           (!code->follow || code->follow(code->context, tr->page_offset + tr->bytes));
}

unsigned x86_translate_scan(struct x86_translator *tr, const struct x86_unit_code *code)
{
    unsigned branches = 0;
    uint8_t mode = code->mode;

    tr->mode = code->mode;
    tr->plain = code->plain || code->crosses;
    tr->crosses = code->crosses;
    tr->page_offset = code->page_offset;
    tr->count = tr->bytes = 0;
    while (tr->count < X86_UNIT_INSNS_MAX && tr->bytes < code->available &&
           scan_one(tr, code, mode) && goes_on(tr, code, &branches))
        mode = x86_mode_behind(&tr->source[tr->count - 1], mode);
    x86_groups_form(tr);
    choose_kept(tr);
    x86_flags_find_live(tr);
    return tr->bytes;
}

size_t x86_unit_size(const struct x86_translator *tr)
{
    return sizeof(struct x86_unit) + tr->kept * sizeof(struct x86_insn);
}

/* --- ways out --- */

void x86_emit_rip(struct x86_translation *t, unsigned to, int32_t offset)
{
    x86_emit_load(&t->e, to, x86_cpu_field(CPU_OFFSET(host.page_base)));
    if (offset)
        x86_emit_lea(&t->e, to, x86_rm_mem(to, offset));
}

static void emit_call_routine(struct x86_emit *e, const uint8_t *routine)
{
    uint8_t *distance = x86_emit_call(e);
    if (!e->full)
        x86_emit_link(distance, routine);
}

static const struct x86_routines *routines(const struct x86_translation *t)
{
    return &t->tr->routines[x86_mode_vector(t->tr->mode)];
}

static void emit_site(struct x86_emit *e, const struct x86_site *site)
{
    x86_emit_bytes(e, site, sizeof *site);
}

/* Runs the handler of instruction `index`; back at `resume` (NULL: behind the site) with the flags
 * in memory and in the host. */
static void emit_handler_call(struct x86_translation *t, unsigned index, const uint8_t *resume)
{
    emit_call_routine(&t->e, routines(t)->call);
    struct x86_site site = {
        .kind = SITE_CALL,
        .offset = (int16_t)t->tr->source[index].offset,
        .link = resume ? (int32_t)(resume - t->e.at) : (int32_t)sizeof site,
        .insn = &t->unit->insn[t->tr->source[index].kept],
    };
    emit_site(&t->e, &site);
}

void x86_translate_by_handler(struct x86_translation *t)
{
    x86_flags_spill(t);
    emit_handler_call(t, t->index, NULL);
    t->flags = FLAGS_BOTH;
    t->ended = t->source->insn.flags & X86_INSN_END;
}

void x86_slow_path(struct x86_translation *t, uint8_t *link)
{
    if (t->slow_count == SLOW_MAX) {
        t->e.full = true;
        return;
    }
    t->slow[t->slow_count++] = (struct x86_slow) {
        .link = link, .index = (uint16_t)t->index, .remake = t->flags == FLAGS_NOWHERE};
    t->slow[t->slow_count - 1].maker = t->flags_maker;
}

void x86_group_miss(struct x86_translation *t, uint8_t *link, const uint8_t *retry)
{
    x86_slow_path(t, link);
    if (t->e.full)
        return;
    t->slow[t->slow_count - 1].group = true;
    t->slow[t->slow_count - 1].resume = retry;
}

void x86_leave_to(struct x86_translation *t, uint8_t *link, int offset, bool may_link)
{
    if (t->out_count == EXITS_MAX) {
        t->e.full = true;
        return;
    }
    t->out[t->out_count++] = (struct x86_way_out) {
        .link = link,
        .offset = (int16_t)offset,
        .host_flags = t->flags == FLAGS_HOST,
        .may_link = may_link && !t->tr->config.alone,
    };
}

struct x86_rm x86_emit_jump_lookup(struct x86_translation *t)
{
    uint8_t *miss[2];
    struct x86_rm entry = x86_emit_jump_compare(&t->e, t->tr->config.attention, 0, miss);

    x86_slow_path(t, miss[0]);
    x86_slow_path(t, miss[1]);
    return entry;
}

/* T0 = the linear address of an offset outside the page. */
static void emit_far_rip(struct x86_translation *t, int64_t offset)
{
    int32_t near = offset < 0 ? 0 : 2 * PAGE_SIZE; /* the branch may end in the next page */

    if (offset == (int32_t)offset) {
        x86_emit_rip(t, T0, (int32_t)offset);
    } else {
        x86_emit_rip(t, T0, near);
        x86_emit_lea(&t->e, T0, x86_rm_mem(T0, (int32_t)(offset - near)));
    }
}

/* T1 = a constant to be filled in, which is not what lies in the field: a jump to link. */
static uint8_t *emit_far_compare(struct x86_emit *e, int32_t field, uint8_t **constant)
{
    *constant = x86_emit_load_imm64(e, T1, 0);
    x86_emit_alu(e, ALU_CMP, T1, x86_cpu_field(field));
    return x86_emit_jcc(e, COND_NE);
}

/*
 * A far jump is linked for one key and one linear address of this page: both are compared, for the
 * page may be mapped elsewhere, too. No key is 0, so it goes to the jump cache at first.
 */
void x86_leave_far(struct x86_translation *t, int64_t offset)
{
    struct x86_emit *e = &t->e;
    uint8_t *key, *page, *miss[3];
    bool backward = offset < 0;

    miss[0] = emit_far_compare(e, CPU_OFFSET(host.jump_now), &key);
    miss[1] = emit_far_compare(e, CPU_OFFSET(host.page_base), &page);
    if (backward) { /* every loop comes by here or by the jump cache */
        x86_emit_cmp_mem32(e, x86_cpu_field((int32_t)t->tr->config.attention), 0);
        miss[2] = x86_emit_jcc(e, COND_NE);
    }
    emit_far_rip(t, offset);
    uint8_t *jump = x86_emit_jmp(e);
    for (unsigned i = 0; i < 2u + backward && !e->full; i++)
        x86_emit_link(miss[i], e->at);
    emit_far_rip(t, offset);
    emit_call_routine(e, routines(t)->lookup);
    emit_site(e, &(struct x86_site) {.kind = SITE_FAR,
                                     .link = (int32_t)(key - e->at),
                                     .page = (uint8_t)(page - key),
                                     .jump = (uint8_t)(jump - key)});
    t->ended = true;
}

static void emit_group_miss(struct x86_translation *t, const struct x86_slow *slow)
{
    const struct x86_source *s = &t->tr->source[slow->index];
    const struct x86_group *group = &t->tr->group[s->group - 1];

    struct x86_encoding test = {.opcode = 0xf7, .w = true};
    struct x86_rm t1 = x86_rm_reg(T1);
    struct x86_rm start = x86_cpu_field(CPU_OFFSET(host.temp));
    uint16_t span = (uint16_t)(group->max - group->min);

    if (slow->remake) {
        x86_emit_store(&t->e, start, T0);
        x86_emit_flags_remade(t, slow->maker);
        x86_emit_load(&t->e, T0, start);
    }
    /* A range that crosses a page: straight on to the plain unit, once there is one. */
    x86_emit_lea(&t->e, T1, x86_rm_mem(T0, span - 1));
    x86_emit_alu(&t->e, ALU_XOR, T1, x86_rm_reg(T0));
    x86_emit_op(&t->e, &test, 0, &t1);
    x86_emit_32(&t->e, -(uint32_t)PAGE_SIZE);
    uint8_t *plain = x86_emit_jcc(&t->e, COND_NE);
    if (!t->e.full)
        x86_emit_link(plain, t->e.at);
    emit_call_routine(&t->e, routines(t)->group);
    struct x86_site site = {
        .kind = SITE_GROUP,
        .offset = (int16_t)s->offset,
        .link = (int32_t)(slow->resume - t->e.at),
        .unit = t->unit,
    };
    struct x86_group_site range = {
        .plain = (int32_t)(plain - t->e.at), .span = span, .write = group->write};
    emit_site(&t->e, &site);
    x86_emit_bytes(&t->e, &range, sizeof range);
}

static void emit_slow(struct x86_translation *t)
{
    for (unsigned i = 0; i < t->slow_count && !t->e.full; i++) {
        struct x86_slow *s = &t->slow[i];
        const uint8_t *here = t->e.at;
        x86_emit_link(s->link, here);
        if (s->group) {
            emit_group_miss(t, s);
            continue;
        }
        /* Probes of one instruction share what comes out of line. */
        while (i + 1 < t->slow_count && t->slow[i + 1].index == s->index && !t->slow[i + 1].group)
            x86_emit_link(t->slow[++i].link, here);
        if (s->remake)
            x86_emit_flags_remade(t, s->maker);
        emit_handler_call(t, s->index, s->resume);
    }
}

static void emit_ways_out(struct x86_translation *t)
{
    for (unsigned i = 0; i < t->out_count && !t->e.full; i++) {
        const struct x86_way_out *out = &t->out[i];
        x86_emit_link(out->link, t->e.at);
        if (out->host_flags)
            x86_emit_flags_save(&t->e);
        emit_call_routine(&t->e, routines(t)->leave);
        struct x86_site site = {
            .kind = out->may_link ? SITE_LINK : SITE_RESUME,
            .host_flags = out->host_flags,
            .offset = out->offset,
            .link = (int32_t)(out->link - t->e.at),
            .unit = t->unit,
        };
        emit_site(&t->e, &site);
    }
}

/* --- the unit --- */

/* How the body wants the flags: in the host when they are read before they are lost. */
static uint8_t first_flags_state(const struct x86_translator *tr)
{
    if (tr->crosses)
        return FLAGS_MEMORY; /* for emit_guard */
    for (unsigned i = 0; i < tr->count; i++) {
        const struct x86_source *s = &tr->source[i];
        if (s->faults)
            return FLAGS_MEMORY;
        if (s->flags_read || s->flags_written || s->kind == KIND_JCC || s->kind == KIND_LOOP)
            return FLAGS_HOST;
    }
    return FLAGS_HOST;
}

/* Nobody looks at the flags that come in. */
static bool flags_are_dead_at_start(const struct x86_translator *tr)
{
    const struct x86_source *s = &tr->source[0];
    return !s->faults && !s->flags_read && !(s->live_after & ~s->flags_written);
}

/* Entries before the body: from the jump cache or C; flags in memory; flags in the host. */
static void emit_entries(struct x86_translation *t)
{
    static const uint8_t nop5[] = {0x0f, 0x1f, 0x44, 0x00, 0x00};
    struct x86_emit *e = &t->e;
    bool dead = flags_are_dead_at_start(t->tr);
    uint8_t *to_body = NULL;

    t->flags = first_flags_state(t->tr);
    t->flags_maker = FLAGS_NO_MAKER;
    if (t->flags == FLAGS_MEMORY) {
        t->unit->chain[1] = e->at;
        x86_emit_flags_save(e);
        to_body = x86_emit_jmp(e);
    }
    t->unit->enter = x86_executable(t->tr, e->at);
    x86_emit_lea(e, T0, x86_rm_mem(T0, -(int32_t)t->tr->source[0].offset));
    x86_emit_store(e, x86_cpu_field(CPU_OFFSET(host.page_base)), T0);
    t->unit->chain[0] = e->at;
    if (t->flags == FLAGS_HOST && !dead)
        x86_emit_flags_load(e);
    else if (t->flags == FLAGS_HOST)
        x86_emit_bytes(e, nop5, sizeof nop5); /* the two ways in are apart, see x86_unit_drop */
    t->body = e->at;
    if (t->flags == FLAGS_HOST)
        t->unit->chain[1] = t->body;
    else if (!e->full)
        x86_emit_link(to_body, t->body);
}

/* Whether the next page is still the one that the instruction goes on in: as in x86_leave_far. */
static void emit_guard(struct x86_translation *t)
{
    struct x86_unit *unit = t->unit;
    int offset = (int)t->tr->page_offset;

    unit->guard_key = unit->guard_page = NULL;
    if (!t->tr->crosses)
        return;
    t->source = &t->tr->source[0];
    x86_leave_to(t, emit_far_compare(&t->e, CPU_OFFSET(host.jump_now), &unit->guard_key), offset,
                 false);
    x86_leave_to(t, emit_far_compare(&t->e, CPU_OFFSET(host.page_base), &unit->guard_page), offset,
                 false);
}

static void translate_one(struct x86_translation *t)
{
    switch (t->source->kind) {
    case KIND_HANDLER:
        x86_translate_by_handler(t);
        break;
    case KIND_JCC:
    case KIND_JMP:
    case KIND_CALL:
    case KIND_RET:
    case KIND_JMP_INDIRECT:
    case KIND_CALL_INDIRECT:
    case KIND_LOOP:
        x86_translate_branch(t);
        break;
    case KIND_VECTOR:
        x86_translate_vector(t);
        break;
    case KIND_HIGH_BYTE:
    case KIND_FLAGS_AH:
    case KIND_RFLAGS_BIT:
    case KIND_STI:
    case KIND_PUSHF:
    case KIND_POPF:
    case KIND_SWAPGS:
    case KIND_FROM_SEGMENT:
    case KIND_BIT_STRING:
    case KIND_STRING:
    case KIND_REP_STRING:
    case KIND_AC:
    case KIND_FROM_CR:
    case KIND_READ_BASE:
    case KIND_WRITE_BASE:
    case KIND_PAUSE:
        x86_translate_system(t);
        break;
    default:
        x86_translate_integer(t);
        break;
    }
}

static void translate_body(struct x86_translation *t)
{
    for (t->index = 0; t->index < t->tr->count && !t->e.full; t->index++) {
        unsigned slow = t->slow_count;
        bool window = t->window;
        t->source = &t->tr->source[t->index];
        if (t->source->faults || t->tr->config.alone)
            t->unit->insn[t->source->kept] = t->source->insn;
        t->window = false;
        translate_one(t);
        for (; slow < t->slow_count; slow++) {
            if (!t->slow[slow].group)
                t->slow[slow].resume = t->e.at;
        }
        x86_group_forget_scratch(t);
        if (window && !t->ended)
            x86_emit_window(t);
    }
    if (t->ended)
        return;
    /* On to the next instruction: in this page, or perhaps behind it. */
    unsigned next = t->tr->page_offset + t->tr->bytes;
    if (next < PAGE_SIZE) {
        x86_leave_to(t, x86_emit_jmp(&t->e), (int)next, true);
        return;
    }
    t->source = &(struct x86_source) {.live_after = FLAGS_ALL};
    x86_flags_spill(t);
    x86_leave_far(t, next);
}

bool x86_unit_make(struct x86_translator *tr, struct x86_unit *unit)
{
    struct x86_translation *t = &tr->work;

    t->tr = tr;
    t->e =
        (struct x86_emit) {.at = tr->at, .end = tr->config.memory.write + tr->config.memory.size};
    t->unit = unit;
    t->ended = t->window = false;
    t->slow_count = t->out_count = 0;
    t->t1_group = 0;
    unit->bytes = (uint16_t)tr->bytes;
    unit->count = (uint8_t)tr->count;
    unit->mode = t->mode = tr->mode;
    unit->page_offset = (uint16_t)tr->page_offset;
    emit_entries(t);
    emit_guard(t);
    translate_body(t);
    emit_slow(t);
    emit_ways_out(t);
    if (t->e.full)
        return false;
    tr->at = t->e.at + (-(uintptr_t)t->e.at & 15);
    if (tr->at > t->e.end)
        tr->at = t->e.end;
    return true;
}

/* --- links --- */

void x86_unit_link(const struct x86_unit_exit *exit, const struct x86_unit *unit)
{
    x86_emit_link(exit->link, unit->chain[exit->host_flags]);
}

void x86_unit_link_far(const struct x86_translator *tr, const struct x86_unit_exit *exit,
                       const struct x86_unit *unit)
{
    store_le64(exit->far.key, exit->key);
    store_le64(exit->far.page, exit->page_base);
    x86_emit_link(exit->far.jump, x86_writable(tr, unit->enter));
}

static void make_jump(uint8_t *at, const uint8_t *to)
{
    *at = 0xe9;
    x86_emit_link(at + 1, to);
}

/*
 * Each way in becomes a jump to a new way out. No thread is inside: ours is in C, in a store or in
 * a page walk that sets bits, and comes back into a unit that was dropped only to leave it.
 */
bool x86_unit_drop(struct x86_translator *tr, struct x86_unit *unit)
{
    struct x86_emit e = {.at = tr->at, .end = tr->config.memory.write + tr->config.memory.size};
    const struct x86_routines *r = &tr->routines[x86_mode_vector(unit->mode)];
    struct x86_site site = {.kind = SITE_RESUME, .offset = (int16_t)unit->page_offset};
    uint8_t *with_rip = e.at;

    emit_call_routine(&e, r->leave_rip);
    emit_site(&e, &(struct x86_site) {.kind = SITE_LOOKUP});
    uint8_t *with_host_flags = e.at;
    x86_emit_flags_save(&e);
    uint8_t *with_flags = e.at;
    emit_call_routine(&e, r->leave);
    emit_site(&e, &site);
    if (e.full)
        return false;
    make_jump(unit->chain[0], with_flags);
    make_jump(unit->chain[1], with_host_flags);
    make_jump(x86_writable(tr, unit->enter), with_rip);
    tr->at = e.at;
    return true;
}
