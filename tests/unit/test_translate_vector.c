/*
 * Translated vector instructions: every form that the decoder knows, with registers and with memory
 * in all states, against the interpreter's handler. What is emitted is decoded again and must be
 * the same instruction.
 */
#include <stdio.h>

#include "translate_rig.h"

struct random {
    uint64_t state;
};

/* splitmix64 */
static uint64_t next(struct random *r)
{
    uint64_t x = r->state += 0x9e3779b97f4a7c15;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9;
    x = (x ^ x >> 27) * 0x94d049bb133111eb;
    return x ^ x >> 31;
}

static unsigned below(struct random *r, unsigned limit)
{
    return (unsigned)(next(r) % limit);
}

/* --- instructions --- */

/* A point in the space of encodings; modrm: as it is with ModRM.rm of a register or of memory. */
struct form {
    bool vex, w, l;
    uint8_t prefix; /* 0, 66, F2, F3 */
    uint8_t map, opcode;
    uint8_t digit; /* ModRM.reg where it is part of the opcode */
    bool has_digit, memory;
};

struct code {
    uint8_t byte[RIG_CODE_MAX];
    unsigned length;
};

static void put(struct code *c, unsigned byte)
{
    assert_true(c->length < sizeof c->byte);
    c->byte[c->length++] = (uint8_t)byte;
}

static void put_32(struct code *c, uint32_t value)
{
    for (unsigned i = 0; i < 4; i++)
        put(c, value >> 8 * i);
}

/* Register numbers and the address form of one instruction. */
struct operands {
    uint8_t reg, rm, vvvv, imm; /* rm: the base register of memory */
    uint8_t index, scale;       /* index 4: none */
    int32_t disp;
    bool rip, fs, address32;
};

static void put_prefixes(struct code *c, const struct form *f, const struct operands *o)
{
    static const uint8_t pp[] = {['\x66'] = 1};
    unsigned x = f->memory && !o->rip ? o->index >> 3 & 1u : 0;
    unsigned r = f->has_digit ? 0 : o->reg >> 3 & 1u, b = o->rip && f->memory ? 0 : o->rm >> 3 & 1u;
    unsigned p = f->prefix == 0xf3 ? 2 : f->prefix == 0xf2 ? 3 : f->prefix ? pp[f->prefix] : 0;

    if (f->memory && o->fs)
        put(c, 0x64);
    if (f->memory && o->address32)
        put(c, 0x67);
    if (f->vex) {
        put(c, 0xc4);
        put(c, (r ^ 1) << 7 | (x ^ 1) << 6 | (b ^ 1) << 5 | f->map);
        put(c, (unsigned)f->w << 7 | (~o->vvvv & 15u) << 3 | (unsigned)f->l << 2 | p);
        return;
    }
    if (f->prefix)
        put(c, f->prefix);
    if (f->w | r | x | b)
        put(c, 0x40u | (unsigned)f->w << 3 | r << 2 | x << 1 | b);
    put(c, 0x0f);
    if (f->map > 1)
        put(c, f->map == 2 ? 0x38 : 0x3a);
}

/* The immediate is there for all in map 3, and some in map 1; `imm_size` tells. */
static void put_form(struct code *c, const struct form *f, const struct operands *o,
                     unsigned imm_size)
{
    unsigned reg = (f->has_digit ? f->digit : o->reg & 7u) << 3;

    put_prefixes(c, f, o);
    put(c, f->opcode);
    if (!f->memory) {
        put(c, 0xc0 | reg | (o->rm & 7));
    } else if (o->rip) {
        put(c, reg | 5);
        put_32(c, (uint32_t)o->disp - (RIG_CODE + c->length + 4 + imm_size));
    } else {
        put(c, 0x80 | reg | 4);
        put(c, (unsigned)o->scale << 6 | (o->index & 7u) << 3 | (o->rm & 7));
        put_32(c, (uint32_t)o->disp);
    }
    for (unsigned i = 0; i < imm_size; i++)
        put(c, o->imm);
}

/* --- the forms --- */

struct counts {
    unsigned forms, native, runs, inline_runs, protection_faults, page_faults, differences;
};

/* More than there are. */
#define FORMS_MAX 4000

struct known_form {
    struct form form;
    struct x86_source source;
};

struct walk {
    struct translate_rig *rig;
    struct random random;
    ZydisDecoder decoder;
    struct counts counts;
    void (*each)(struct walk *w, const struct form *f, const struct x86_source *s);
    struct known_form *known;
    unsigned known_count;
};

static bool is_vector_class(ZydisRegister reg)
{
    ZydisRegisterClass class = ZydisRegisterGetClass(reg);
    return class == ZYDIS_REGCLASS_XMM || class == ZYDIS_REGCLASS_YMM;
}

static const ZydisDecodedOperand *operand_in(const struct x86_source *s, unsigned encoding)
{
    for (unsigned i = 0; i < s->z.operand_count; i++)
        if (s->op[i].encoding == encoding)
            return &s->op[i];
    return NULL;
}

static bool decode_form(struct walk *w, const struct form *f, struct x86_source *s)
{
    static const struct x86_decode_mode mode = {.code_size = 8};
    const struct operands o = {.index = 4, .vvvv = 0};
    struct code c = {0};

    put_form(&c, f, &o, 1);
    struct x86_decode_bytes from = {&mode, c.byte, c.length};
    *s = (struct x86_source) {0};
    if (x86_decode_whole(w->rig->decoder, &from, &s->insn, &s->z, s->op) != X86_DECODE_OK ||
        s->z.mnemonic == ZYDIS_MNEMONIC_INVALID)
        return false;
    for (unsigned i = 0; i < s->z.operand_count; i++)
        if (s->op[i].type == ZYDIS_OPERAND_TYPE_REGISTER && is_vector_class(s->op[i].reg.value))
            return true;
    return false;
}

/* One opcode with one combination of prefixes: with memory and a register, each digit. */
static void walk_opcode(struct walk *w, struct form *f)
{
    for (unsigned memory = 0; memory < 2; memory++) {
        for (f->digit = 0; f->digit < 8; f->digit++) {
            struct x86_source s;
            f->memory = memory;
            f->has_digit = true;
            if (!decode_form(w, f, &s))
                continue;
            f->has_digit = !operand_in(&s, ZYDIS_OPERAND_ENCODING_MODRM_REG);
            w->counts.forms++;
            w->each(w, f, &s);
            if (!f->has_digit)
                break;
        }
    }
}

static void walk_forms(struct walk *w)
{
    static const uint8_t prefixes[] = {0, 0x66, 0xf3, 0xf2};

    for (unsigned n = 0; n < 4 * 2 * 2 * 2 * 3 * 256; n++) {
        struct form f = {.opcode = n & 0xff,
                         .prefix = prefixes[n >> 8 & 3],
                         .w = n >> 10 & 1,
                         .l = n >> 11 & 1,
                         .vex = n >> 12 & 1,
                         .map = (uint8_t)((n >> 13) + 1)};
        bool escape = f.map == 1 && (f.opcode == 0x38 || f.opcode == 0x3a);
        if ((f.vex || !f.l) && !escape)
            walk_opcode(w, &f);
    }
}

/* --- operands --- */

static uint64_t address(struct random *r, unsigned size)
{
    static const uint64_t page[] = {RIG_DATA, RIG_DATA + 0x1000, RIG_READONLY, RIG_ABSENT};

    switch (below(r, 10)) {
    case 0: /* from one page into the next */
        return page[1 + below(r, 3)] - 1 - below(r, size);
    case 1:
        return page[below(r, 4)] + below(r, 0x1000 - size);
    case 2:
        return below(r, 2) ? next(r) : UINT64_MAX - below(r, 64);
    case 3:
        return page[2] + below(r, 100) * size;
    case 4:
    case 5: /* unaligned */
        return page[below(r, 2)] + 1 + below(r, 0x1000 - 2 * size);
    default:
        return page[below(r, 2)] + below(r, 0x1000 / size) * size;
    }
}

/* Where LDMXCSR finds a value; so many of random_state's are good for units with vectors. */
#define MXCSR_AT     (RIG_DATA + 0x120u)
#define MXCSR_MASKED 5

static void random_state(struct walk *w)
{
    struct x86_state *s = &w->rig->before;
    static const uint32_t mxcsr[] = {0x1f80, 0x9fc0, 0x1fbf, 0x3f80, 0x7f80, 0x1e80, 0x0000};

    for (unsigned i = 0; i < 16; i++)
        s->gpr[i] = below(&w->random, 2) ? next(&w->random) : below(&w->random, 40);
    for (unsigned i = 0; i < 16; i++) {
        for (unsigned k = 0; k < 4; k++)
            store_le64(s->fpu.ymm[i] + k * 8, next(&w->random));
        double value = (double)(int64_t)(next(&w->random) >> below(&w->random, 64)) / 16;
        float single = (float)value;
        if (below(&w->random, 2))
            memcpy(s->fpu.ymm[i], &value, 8);
        else if (below(&w->random, 2))
            memcpy(s->fpu.ymm[i], &single, 4);
    }
    s->fpu.mxcsr = mxcsr[below(&w->random, MXCSR_MASKED)];
    s->rflags = 2 | (next(&w->random) & X86_STATUS_FLAGS);
    s->rip = RIG_CODE;
    for (unsigned i = 0; i < 0x4000; i += 8)
        store_le64(w->rig->ram_before + RIG_DATA + i, next(&w->random));
    for (unsigned i = 0x5000; i < 0x6000; i += 8)
        store_le64(w->rig->ram_before + RIG_DATA + i, next(&w->random));
    store_le32(w->rig->ram_before + MXCSR_AT, mxcsr[below(&w->random, ARRAY_COUNT(mxcsr))]);
}

/* Registers at random; the memory operand's so that they give an address worth trying. */
static struct operands random_operands(struct walk *w, const struct x86_source *s)
{
    struct random *r = &w->random;
    struct x86_state *state = &w->rig->before;
    const ZydisDecodedOperand *mem = operand_in(s, ZYDIS_OPERAND_ENCODING_MODRM_RM);
    unsigned size = mem && mem->type == ZYDIS_OPERAND_TYPE_MEMORY ? mem->size / 8u : 16;
    uint64_t to = address(r, size ? size : 16);
    struct operands o = {.reg = (uint8_t)below(r, 16),
                         .rm = (uint8_t)below(r, 16),
                         .imm = (uint8_t)next(r),
                         .index = below(r, 3) ? 4 : (uint8_t)below(r, 16),
                         .scale = (uint8_t)below(r, 4),
                         .fs = below(r, 8) == 0,
                         .address32 = below(r, 8) == 0,
                         .rip = below(r, 6) == 0};

    if (operand_in(s, ZYDIS_OPERAND_ENCODING_NDSNDD))
        o.vvvv = (uint8_t)below(r, 16);
    o.disp = below(r, 3) ? (int32_t)below(r, 300) - 150 : 0;
    if (o.index == o.rm)
        o.index = 4;
    if (o.fs)
        to -= RIG_FS_BASE;
    if (o.rip)
        o.disp = (int32_t)to;
    else
        state->gpr[o.rm] =
            to - (uint64_t)(int64_t)o.disp - (o.index == 4 ? 0 : state->gpr[o.index] << o.scale);
    return o;
}

/* --- one form --- */

static bool same_operand(const ZydisDecodedOperand *a, const ZydisDecodedOperand *b)
{
    if (a->type != b->type || a->size != b->size || a->encoding != b->encoding ||
        a->actions != b->actions)
        return false;
    if (a->type == ZYDIS_OPERAND_TYPE_IMMEDIATE)
        return a->imm.value.u == b->imm.value.u;
    return a->type != ZYDIS_OPERAND_TYPE_REGISTER || !is_vector_class(a->reg.value) ||
           a->reg.value == b->reg.value;
}

/* The first instruction with this mnemonic in the unit's body is the guest's own. */
static bool is_emitted(struct walk *w, const struct x86_source *s)
{
    const struct x86_translation *t = &w->rig->translator->work;
    const uint8_t *at = t->body;

    while (at < t->e.at) {
        ZydisDecodedInstruction z;
        ZydisDecodedOperand op[ZYDIS_MAX_OPERAND_COUNT];
        if (!ZYAN_SUCCESS(ZydisDecoderDecodeFull(&w->decoder, at, (size_t)(t->e.at - at), &z, op)))
            return false;
        at += z.length;
        if (z.mnemonic != s->z.mnemonic)
            continue;
        if (z.encoding != s->z.encoding || z.meta.isa_set != s->z.meta.isa_set ||
            z.operand_count != s->z.operand_count)
            return false;
        for (unsigned i = 0; i < z.operand_count; i++)
            if (!same_operand(&op[i], &s->op[i]))
                return false;
        return true;
    }
    return false;
}

static void complain(struct walk *w, const struct code *c, const char *what)
{
    ZydisDecodedInstruction z;
    ZydisDecodedOperand op[ZYDIS_MAX_OPERAND_COUNT];
    ZydisFormatter formatter;
    char text[120] = "?";

    if (w->counts.differences++ >= 100)
        return;
    ZydisFormatterInit(&formatter, ZYDIS_FORMATTER_STYLE_INTEL);
    if (ZYAN_SUCCESS(ZydisDecoderDecodeFull(&w->decoder, c->byte, c->length, &z, op)))
        ZydisFormatterFormatInstruction(&formatter, &z, op, z.operand_count_visible, text,
                                        sizeof text, RIG_CODE, NULL);
    fprintf(stderr, "%s:", what);
    for (unsigned i = 0; i < c->length; i++)
        fprintf(stderr, " %02x", c->byte[i]);
    fprintf(stderr, ": %s\n", text);
}

/* Both ways, and all is the same. */
static void compare(struct walk *w, const struct code *c)
{
    struct translate_rig *rig = w->rig;

    rig->cold = below(&w->random, 16) == 0;
    rig_by_handlers(rig, c->byte, c->length);
    rig_as_unit(rig, c->byte, c->length);
    const char *what = rig_difference(rig);
    if (what)
        complain(w, c, what);
    w->counts.runs++;
    w->counts.inline_runs += !rig->handler_calls;
    if (rig->fault[0].kind == X86_EVENT_NONE)
        return;
    w->counts.protection_faults += rig->fault[0].vector == X86_GP;
    w->counts.page_faults += rig->fault[0].vector == X86_PF_FAULT;
}

#define VARIANTS 12

static unsigned immediate_size(const struct x86_source *s)
{
    return (s->z.raw.imm[0].size + s->z.raw.imm[1].size) / 8u;
}

static bool is_gather(const struct x86_source *s)
{
    const ZydisDecodedOperand *mem = operand_in(s, ZYDIS_OPERAND_ENCODING_MODRM_RM);
    return s->z.meta.category == ZYDIS_CATEGORY_GATHER ||
           (mem && mem->type == ZYDIS_OPERAND_TYPE_MEMORY &&
            mem->mem.type == ZYDIS_MEMOP_TYPE_VSIB);
}

static void check_form(struct walk *w, const struct form *f, const struct x86_source *form)
{
    struct translate_rig *rig = w->rig;
    bool native = false;

    if (is_gather(form))
        return;
    for (unsigned i = 0; i < VARIANTS; i++) {
        struct code c = {0};
        random_state(w);
        struct operands o = random_operands(w, form);
        put_form(&c, f, &o, immediate_size(form));
        if (!rig_translate(rig, c.byte, c.length)) {
            complain(w, &c, "no unit was made");
            continue;
        }
        const struct x86_source *s = &rig->translator->source[0];
        native = s->kind == KIND_VECTOR;
        if (native && !is_emitted(w, s))
            complain(w, &c, "something else was emitted");
        compare(w, &c);
        if (native && !s->mem && rig->handler_calls)
            complain(w, &c, "the handler was called");
    }
    w->counts.native += native;
}

/* --- sequences --- */

static void note_form(struct walk *w, const struct form *f, const struct x86_source *form)
{
    assert_true(w->known_count < FORMS_MAX);
    if (!is_gather(form))
        w->known[w->known_count++] = (struct known_form) {*f, *form};
}

/* What writes and reads flags between vector instructions, and vector instructions without
 * operands. */
static void put_other(struct code *c, struct random *r)
{
    static const struct {
        uint8_t length, byte[9];
    } others[] = {
        {3, {0x48, 0x01, 0xd1}},             /* add rcx, rdx */
        {2, {0x11, 0xd8}},                   /* adc eax, ebx */
        {4, {0x41, 0x0f, 0x92, 0xc0}},       /* setb r8b */
        {3, {0x0f, 0x4b, 0xf2}},             /* cmovnp esi, edx */
        {3, {0x4d, 0x39, 0xd1}},             /* cmp r9, r10 */
        {2, {0xff, 0xc7}},                   /* inc edi */
        {1, {0x9f}},                         /* lahf */
        {3, {0xc5, 0xf8, 0x77}},             /* vzeroupper */
        {3, {0xc5, 0xfc, 0x77}},             /* vzeroall */
        {4, {0x4c, 0x0f, 0xc3, 0x1e}},       /* movnti [rsi], r11 */
        {5, {0x64, 0x49, 0x0f, 0xc3, 0x06}}, /* movnti fs:[r14], rax */
        {8,
         {0x0f, 0xae, 0x14, 0x25, MXCSR_AT & 0xff, MXCSR_AT >> 8 & 0xff,
          MXCSR_AT >> 16}}, /* ldmxcsr [MXCSR_AT] */
        {8,
         {0x0f, 0xae, 0x1c, 0x25, MXCSR_AT & 0xff, MXCSR_AT >> 8 & 0xff,
          MXCSR_AT >> 16}}, /* stmxcsr [MXCSR_AT] */
    };
    unsigned i = below(r, ARRAY_COUNT(others));

    for (unsigned k = 0; k < others[i].length; k++)
        put(c, others[i].byte[k]);
}

/* Often near what another instruction of the sequence accesses, by the same registers. */
static struct operands sequence_operands(struct walk *w, const struct known_form *k,
                                         struct operands *near, bool *has_near)
{
    uint64_t gpr[16];

    memcpy(gpr, w->rig->before.gpr, sizeof gpr);
    struct operands o = random_operands(w, &k->source);
    if (!k->form.memory)
        return o;
    if (*has_near && below(&w->random, 4)) {
        memcpy(w->rig->before.gpr, gpr, sizeof gpr);
        near->reg = o.reg;
        near->vvvv = o.vvvv;
        near->imm = o.imm;
        near->disp += (int32_t)below(&w->random, 5) * 16 - 32;
        if (below(&w->random, 8) == 0)
            near->disp += (int32_t)below(&w->random, 16);
        return *near;
    }
    *near = o;
    *has_near = true;
    return o;
}

static void check_sequence(struct walk *w)
{
    unsigned count = 2 + below(&w->random, 7);
    struct code c = {0};
    struct operands near = {0};
    bool has_near = false;

    random_state(w);
    for (unsigned i = 0; i < count; i++) {
        if (below(&w->random, 3) == 0) {
            put_other(&c, &w->random);
            continue;
        }
        const struct known_form *k = &w->known[below(&w->random, w->known_count)];
        struct operands o = sequence_operands(w, k, &near, &has_near);
        put_form(&c, &k->form, &o, immediate_size(&k->source));
    }
    if (rig_translate(w->rig, c.byte, c.length))
        compare(w, &c);
    else
        complain(w, &c, "no unit was made");
}

static void walk_free(struct walk *w)
{
    free(w->known);
    free(w);
}

static void print_counts(const struct counts *c)
{
    printf("%u runs, %u without a handler, %u #GP, %u #PF\n", c->runs, c->inline_runs,
           c->protection_faults, c->page_faults);
}

static struct walk *walk_new(struct translate_rig *rig)
{
    struct walk *w = calloc(1, sizeof *w);

    assert_non_null(w);
    w->rig = rig;
    w->known = calloc(FORMS_MAX, sizeof *w->known);
    assert_non_null(w->known);
    w->random.state = 1;
    (void)ZydisDecoderInit(&w->decoder, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
    memcpy(rig->ram_before, rig->ram, sizeof rig->ram);
    return w;
}

static void test_every_form_does_what_its_handler_does(void **state)
{
    struct walk *w = walk_new(*state);

    w->each = check_form;
    walk_forms(w);
    printf("%u forms, %u native\n", w->counts.forms, w->counts.native);
    print_counts(&w->counts);
    assert_int_equal(w->counts.differences, 0);
    assert_true(w->counts.native > w->counts.forms / 2);
    assert_true(w->counts.inline_runs > w->counts.runs / 2);
    assert_true(w->counts.protection_faults > w->counts.runs / 20);
    assert_true(w->counts.page_faults > w->counts.runs / 40);
    walk_free(w);
}

#define SEQUENCES 20000

static void test_sequences_with_flags_and_faults(void **state)
{
    struct walk *w = walk_new(*state);

    w->each = note_form;
    walk_forms(w);
    for (unsigned i = 0; i < SEQUENCES; i++)
        check_sequence(w);
    print_counts(&w->counts);
    assert_int_equal(w->counts.differences, 0);
    assert_true(w->counts.protection_faults > SEQUENCES / 20);
    assert_true(w->counts.page_faults > SEQUENCES / 20);
    assert_true(w->counts.inline_runs > SEQUENCES / 4);
    walk_free(w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_every_form_does_what_its_handler_does, rig_setup,
                                        rig_teardown),
        cmocka_unit_test_setup_teardown(test_sequences_with_flags_and_faults, rig_setup,
                                        rig_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
