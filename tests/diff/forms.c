/*
 * The instruction forms there are: every combination of prefix, map, opcode and ModRM class that
 * Zydis accepts in 64-bit mode and that x86/ has a handler for, named by mnemonic and operands.
 */
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bits.h"
#include "x86/cpu.h"

#include "diff.h"

#define SLOTS 16384

bool diff_decode(const struct diff_forms *forms, const uint8_t *bytes, size_t length,
                 struct diff_insn *out)
{
    return ZYAN_SUCCESS(ZydisDecoderDecodeFull(&forms->decoder, bytes, length, &out->z, out->op));
}

/* --- names --- */

static const char *register_kind(const ZydisDecodedOperand *op, char text[16])
{
    switch (ZydisRegisterGetClass(op->reg.value)) {
    case ZYDIS_REGCLASS_X87:
        return "st";
    case ZYDIS_REGCLASS_MMX:
        return "mm";
    case ZYDIS_REGCLASS_XMM:
        return "xmm";
    case ZYDIS_REGCLASS_YMM:
        return "ymm";
    case ZYDIS_REGCLASS_SEGMENT:
        return "sreg";
    default:
        snprintf(text, 16, "r%u", op->size);
        return text;
    }
}

static const char *operand_kind(const ZydisDecodedOperand *op, char text[16])
{
    switch (op->type) {
    case ZYDIS_OPERAND_TYPE_REGISTER:
        return register_kind(op, text);
    case ZYDIS_OPERAND_TYPE_MEMORY:
        snprintf(text, 16, op->mem.type == ZYDIS_MEMOP_TYPE_VSIB ? "vm%u" : "m%u", op->size);
        return text;
    case ZYDIS_OPERAND_TYPE_IMMEDIATE:
        snprintf(text, 16, op->imm.is_relative ? "rel%u" : "i%u", op->size);
        return text;
    default:
        return "ptr";
    }
}

static const char *prefix_name(const ZydisDecodedInstruction *z)
{
    if (z->attributes & ZYDIS_ATTRIB_HAS_LOCK)
        return "lock ";
    if (z->attributes & ZYDIS_ATTRIB_HAS_REPNE)
        return "repne ";
    if (z->attributes & ZYDIS_ATTRIB_HAS_REPE)
        return "repe ";
    return z->attributes & ZYDIS_ATTRIB_HAS_REP ? "rep " : "";
}

static void form_name(const struct diff_insn *i, char *out, size_t size)
{
    bool vex = i->z.encoding == ZYDIS_INSTRUCTION_ENCODING_VEX;
    int n = snprintf(out, size, "%s%s", prefix_name(&i->z), ZydisMnemonicGetString(i->z.mnemonic));

    for (unsigned k = 0; k < i->z.operand_count_visible && n < (int)size; k++) {
        char text[16];
        n += snprintf(out + n, size - (size_t)n, "%s%s", k ? ", " : " ",
                      operand_kind(&i->op[k], text));
    }
    /* Without visible operands, or with one, the width may be all that differs. */
    if (n < (int)size && !vex && i->z.operand_width == 16 &&
        (i->z.operand_count_visible == 0 || i->op[0].type == ZYDIS_OPERAND_TYPE_IMMEDIATE))
        snprintf(out + n, size - (size_t)n, " (16)");
}

static uint32_t hash_of(const char *name)
{
    uint32_t h = 2166136261u;
    for (; *name; name++)
        h = (h ^ (uint8_t)*name) * 16777619u;
    return h;
}

static unsigned *slot_of(const struct diff_forms *forms, const char *name)
{
    unsigned i = hash_of(name) % SLOTS;
    while (forms->slot[i] && strcmp(forms->form[forms->slot[i] - 1].name, name) != 0)
        i = (i + 1) % SLOTS;
    return &forms->slot[i];
}

unsigned diff_forms_find(const struct diff_forms *forms, const uint8_t *bytes, size_t length)
{
    struct diff_insn insn;
    char name[80];

    if (!diff_decode(forms, bytes, length, &insn))
        return UINT_MAX;
    form_name(&insn, name, sizeof name);
    return *slot_of(forms, name) - 1; /* 0: none, UINT_MAX */
}

/* --- enumeration --- */

/* Bytes of a template with everything it leaves open as zero. */
static unsigned template_bytes(const struct diff_template *t, uint8_t out[15])
{
    static const uint8_t escape[4][2] = {{0}, {0x0f}, {0x0f, 0x38}, {0x0f, 0x3a}};
    unsigned n = 0;

    memset(out, 0, 15);
    if (t->vex) {
        out[n++] = 0xc4;
        out[n++] = (uint8_t)(0xe0 | t->map);
        out[n++] = (uint8_t)(t->w << 7 | 0x78 | t->l << 2 | t->pp);
    } else {
        for (unsigned i = 0; i < sizeof t->prefix; i++)
            if (t->prefix[i])
                out[n++] = t->prefix[i];
        if (t->w)
            out[n++] = 0x48;
        for (unsigned i = 0; i < 2 && escape[t->map][i]; i++)
            out[n++] = escape[t->map][i];
    }
    out[n++] = t->opcode;
    out[n++] = t->modrm;
    return n;
}

static bool has_handler(const struct diff_forms *forms, const uint8_t *bytes)
{
    static const uint8_t ud2[2] = {0x0f, 0x0b};
    struct x86_insn insn, undefined;

    x86_decode(forms->x86, &forms->mode, ud2, sizeof ud2, &undefined);
    return x86_decode(forms->x86, &forms->mode, bytes, 15, &insn) == X86_DECODE_OK &&
           insn.run != undefined.run;
}

static enum diff_group group_of(const struct diff_insn *insn)
{
    if (insn->z.meta.isa_ext == ZYDIS_ISA_EXT_X87)
        return DIFF_X87;
    for (unsigned i = 0; i < insn->z.operand_count; i++)
        if (insn->op[i].type == ZYDIS_OPERAND_TYPE_REGISTER)
            switch (ZydisRegisterGetClass(insn->op[i].reg.value)) {
            case ZYDIS_REGCLASS_MMX:
            case ZYDIS_REGCLASS_XMM:
            case ZYDIS_REGCLASS_YMM:
                return DIFF_VECTOR;
            default:
                break;
            }
    return DIFF_INTEGER;
}

static int add_form(struct diff_forms *forms, const char *name, const struct diff_insn *insn)
{
    if (forms->count == forms->capacity) {
        unsigned capacity = forms->capacity ? forms->capacity * 2 : 512;
        struct diff_form *form = realloc(forms->form, capacity * sizeof *form);
        if (!form)
            return -ENOMEM;
        forms->form = form;
        forms->capacity = capacity;
    }
    if (forms->count >= SLOTS / 2)
        return -E2BIG;
    struct diff_form *f = &forms->form[forms->count];
    memset(f, 0, sizeof *f);
    snprintf(f->name, sizeof f->name, "%s", name);
    f->mnemonic = insn->z.mnemonic;
    f->group = group_of(insn);
    f->isa = insn->z.meta.isa_set;
    *slot_of(forms, name) = ++forms->count;
    return 0;
}

/* Another template is worth keeping when opcode or ModRM class is new. */
static void add_template(struct diff_form *f, const struct diff_template *t)
{
    for (unsigned i = 0; i < f->template_count; i++) {
        const struct diff_template *o = &f->template[i];
        if (o->opcode == t->opcode && o->map == t->map && o->vex == t->vex && o->w == t->w &&
            memcmp(o->prefix, t->prefix, sizeof t->prefix) == 0 && o->l == t->l &&
            (o->modrm & 0xf8) == (t->modrm & 0xf8))
            return;
    }
    if (f->template_count < DIFF_TEMPLATES_MAX)
        f->template[f->template_count++] = *t;
}

static int try_template(struct diff_forms *forms, struct diff_template *t)
{
    struct diff_insn insn;
    uint8_t bytes[15];
    char name[80];
    int error = 0;

    template_bytes(t, bytes);
    if (!diff_decode(forms, bytes, sizeof bytes, &insn))
        return 0;
    const char *excluded = diff_policy_excluded(&insn);
    bool implemented = has_handler(forms, bytes);
    if (!forms->all && (excluded || !implemented || !diff_policy_comparable_here(&insn)))
        return 0;
    t->has_modrm = insn.z.attributes & ZYDIS_ATTRIB_HAS_MODRM;
    t->suffix = (uint8_t)((insn.z.raw.imm[0].size + insn.z.raw.imm[1].size) / 8);
    if (!t->has_modrm && insn.z.raw.disp.size)
        t->suffix = (uint8_t)(t->suffix + insn.z.raw.disp.size / 8);
    form_name(&insn, name, sizeof name);
    unsigned *slot = slot_of(forms, name);
    if (!*slot)
        error = add_form(forms, name, &insn);
    if (error)
        return error;
    struct diff_form *form = &forms->form[*slot_of(forms, name) - 1];
    form->implemented |= implemented;
    form->excluded = excluded;
    add_template(form, t);
    return 0;
}

/* ModRM classes: each reg with a memory operand (plain, and with SIB), all 64 of mod 3. */
static int try_modrm(struct diff_forms *forms, struct diff_template *t)
{
    int error = 0;

    for (unsigned reg = 0; reg < 8 && !error; reg++) {
        t->modrm = (uint8_t)(reg << 3);
        error = try_template(forms, t);
        t->modrm = (uint8_t)(reg << 3 | 4);
        if (!error)
            error = try_template(forms, t);
        for (unsigned rm = 0; rm < 8 && !error; rm++) {
            t->modrm = (uint8_t)(0xc0 | reg << 3 | rm);
            error = try_template(forms, t);
        }
    }
    return error;
}

/* Bytes that are no opcodes: prefixes and escapes. */
static bool is_opcode(unsigned map, unsigned byte, unsigned code_size)
{
    static const uint8_t others[] = {0x0f, 0x26, 0x2e, 0x36, 0x3e, 0x62, 0x64, 0x65,
                                     0x66, 0x67, 0xc4, 0xc5, 0xf0, 0xf2, 0xf3};

    if (map == 1)
        return byte != 0x38 && byte != 0x3a;
    return map > 1 ||
           (((byte & 0xf0) != 0x40 || code_size != 8) && !memchr(others, (int)byte, sizeof others));
}

static int enumerate_legacy(struct diff_forms *forms)
{
    static const uint8_t prefixes[][3] = {{0},          {0x66},       {0xf2}, {0xf3},
                                          {0x66, 0xf2}, {0x66, 0xf3}, {0xf0}, {0xf0, 0x66}};
    int error = 0;

    for (unsigned map = 0; map < 4; map++)
        for (unsigned opcode = 0; opcode < 256 && !error; opcode++)
            for (unsigned p = 0; p < 2 * ARRAY_COUNT(prefixes) && !error; p++) {
                struct diff_template t = {.map = (uint8_t)map, .opcode = (uint8_t)opcode};
                if (!is_opcode(map, opcode, forms->mode.code_size))
                    break;
                memcpy(t.prefix, prefixes[p / 2], sizeof t.prefix);
                t.w = p & 1;
                if (t.w && forms->mode.code_size != 8)
                    continue; /* no REX */
                error = try_modrm(forms, &t);
            }
    return error;
}

static int enumerate_vex(struct diff_forms *forms)
{
    int error = 0;

    for (unsigned map = 1; map < 4; map++)
        for (unsigned opcode = 0; opcode < 256; opcode++)
            for (unsigned v = 0; v < 16 && !error; v++) {
                struct diff_template t = {.vex = true,
                                          .map = (uint8_t)map,
                                          .opcode = (uint8_t)opcode,
                                          .pp = v & 3,
                                          .w = v >> 2 & 1,
                                          .l = v >> 3};
                error = try_modrm(forms, &t);
            }
    return error;
}

static int create(struct diff_forms *forms, unsigned code_size)
{
    bool wide = code_size == 8;
    int error;

    forms->mode = (struct x86_decode_mode) {.code_size = (uint8_t)code_size};
    forms->slot = calloc(SLOTS, sizeof *forms->slot);
    if (!forms->slot)
        return -ENOMEM;
    ZydisDecoderInit(&forms->decoder,
                     wide ? ZYDIS_MACHINE_MODE_LONG_64 : ZYDIS_MACHINE_MODE_LEGACY_32,
                     wide ? ZYDIS_STACK_WIDTH_64 : ZYDIS_STACK_WIDTH_32);
    ZydisDecoderEnableMode(&forms->decoder, ZYDIS_DECODER_MODE_AMD_BRANCHES, ZYAN_TRUE);
    ZydisDecoderEnableMode(&forms->decoder, ZYDIS_DECODER_MODE_MPX, ZYAN_FALSE);
    ZydisDecoderEnableMode(&forms->decoder, ZYDIS_DECODER_MODE_CET, ZYAN_FALSE);
    error = enumerate_legacy(forms);
    if (!error)
        error = enumerate_vex(forms);
    if (error)
        diff_forms_destroy(forms);
    return error;
}

int diff_forms_create(struct diff_forms *forms, const struct x86_decoder *x86, unsigned code_size)
{
    *forms = (struct diff_forms) {.x86 = x86};
    return create(forms, code_size);
}

int diff_forms_create_all(struct diff_forms *forms, const struct x86_decoder *x86,
                          unsigned code_size)
{
    *forms = (struct diff_forms) {.x86 = x86, .all = true};
    return create(forms, code_size);
}

void diff_forms_destroy(struct diff_forms *forms)
{
    free(forms->form);
    free(forms->slot);
    *forms = (struct diff_forms) {0};
}
