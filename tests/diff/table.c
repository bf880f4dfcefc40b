/*
 * opcode_table: writes docs/opcodes.md, the table of every opcode form, from the decoder's own
 * answers; with --check FILE it only says whether that file is up to date.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "x86/cpu.h"
#include "x86/stub.h"

#include "diff.h"

/* Vector forms are implemented only where stubs can be made; nothing is run here. */
static int make_decoder(struct x86_decoder **out)
{
    static struct x86_features all;
    struct x86_stubs *stubs;
    uint8_t *memory = mmap(NULL, X86_STUBS_SIZE, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    if (memory == MAP_FAILED)
        return -1;
    memset(&all, 0xff, sizeof all);
    struct x86_stub_memory stub_memory = {memory, memory, X86_STUBS_SIZE};
    int error = x86_stubs_create(&stubs, &stub_memory);
    return error ? error : x86_decoder_create(out, &all, stubs);
}

static int by_isa_and_name(const void *a, const void *b)
{
    const struct diff_form *x = a, *y = b;
    int order = strcmp(ZydisISASetGetString(x->isa), ZydisISASetGetString(y->isa));

    if (!order)
        order = strcmp(ZydisMnemonicGetString(x->mnemonic), ZydisMnemonicGetString(y->mnemonic));
    return order ? order : strcmp(x->name, y->name);
}

/* UD0 to UD2 have no handler because they need none. */
static bool is_undefined(const struct diff_form *f)
{
    return f->mnemonic == ZYDIS_MNEMONIC_UD0 || f->mnemonic == ZYDIS_MNEMONIC_UD1 ||
           f->mnemonic == ZYDIS_MNEMONIC_UD2;
}

static const char *state_of(const struct diff_form *f, bool only_32)
{
    if (is_undefined(f))
        return "#UD by definition";
    if (!f->implemented)
        return "**#UD**";
    if (only_32)
        return "tests/flat";
    return f->excluded ? f->excluded : "compared";
}

/* The form without its mnemonic, which heads the row. */
static void print_operands(FILE *out, const struct diff_form *f)
{
    const char *mnemonic = ZydisMnemonicGetString(f->mnemonic), *at = strstr(f->name, mnemonic);
    int prefix = (int)(at - f->name);
    const char *operands = at + strlen(mnemonic);

    if (prefix)
        fprintf(out, "*%.*s* ", prefix - 1, f->name);
    fprintf(out, "%s", *operands ? operands + 1 : "-");
}

static bool same_row(const struct diff_form *a, const struct diff_form *b, bool only_32)
{
    return a->isa == b->isa && a->mnemonic == b->mnemonic &&
           strcmp(state_of(a, only_32), state_of(b, only_32)) == 0;
}

static bool is_listed(const struct diff_form *form, unsigned count, const struct diff_form *f)
{
    for (unsigned i = 0; i < count; i++)
        if (strcmp(form[i].name, f->name) == 0)
            return true;
    return false;
}

static void print_rows(FILE *out, const struct diff_form *form, unsigned count, bool only_32)
{
    for (unsigned i = 0; i < count; i++) {
        if (i == 0 || form[i].isa != form[i - 1].isa)
            fprintf(out, "\n### %s\n\n| instruction | forms | state |\n|---|---|---|\n",
                    ZydisISASetGetString(form[i].isa));
        fprintf(out, "| `%s` | ", ZydisMnemonicGetString(form[i].mnemonic));
        print_operands(out, &form[i]);
        for (; i + 1 < count && same_row(&form[i], &form[i + 1], only_32); i++) {
            fprintf(out, " · ");
            print_operands(out, &form[i + 1]);
        }
        fprintf(out, " | %s |\n", state_of(&form[i], only_32));
    }
}

static const char introduction[] =
    "# Every opcode form\n"
    "\n"
    "Made by `build/tests/diff/opcode_table > docs/opcodes.md` from the decoder's own answers; "
    "the\n"
    "suite `diff` of `./check` fails when it is out of date.\n"
    "\n"
    "A form is a mnemonic with kinds of operands: `r32` a general register of 32 bits, `m64` "
    "memory,\n"
    "`i8` an immediate, `rel8` a branch displacement, `vm32` a gather's memory. The state is one "
    "of\n"
    "- *compared*: implemented, and compared with the real CPU by `tests/diff`;\n"
    "- a reason why that cannot be: implemented, tested by `tests/flat` and `tests/unit`;\n"
    "- **#UD**: not implemented and not offered in CPUID; raises #UD.\n"
    "\n"
    "All with EVEX (AVX-512), XOP and 3DNow! encodings are #UD and not listed. What a form needs "
    "of\n"
    "CPUID is a further condition: `x86/decode.c`.\n"
    "\n"
    "Known deviations: an unmasked x87 overflow or underflow leaves the masked result in a "
    "register\n"
    "and not the scaled one, and an exact denormal result raises no unmasked x87 underflow; an\n"
    "unmasked SIMD overflow or underflow sets the precision flag as the masked one does, and "
    "DPPS,\n"
    "DPPD report the exceptions of all their steps at once; with CR0.NE clear x87 exceptions are\n"
    "ignored (no IRQ 13).\n";

static int write_table(FILE *out)
{
    struct x86_decoder *decoder;
    struct diff_forms wide, narrow;
    unsigned only = 0;

    if (make_decoder(&decoder) || diff_forms_create_all(&wide, decoder, 8) ||
        diff_forms_create_all(&narrow, decoder, 4))
        return -1;
    for (unsigned i = 0; i < narrow.count; i++)
        if (!is_listed(wide.form, wide.count, &narrow.form[i]))
            narrow.form[only++] = narrow.form[i];
    qsort(wide.form, wide.count, sizeof *wide.form, by_isa_and_name);
    qsort(narrow.form, only, sizeof *narrow.form, by_isa_and_name);
    fputs(introduction, out);
    fprintf(out, "\n## In 64-bit code: %u forms\n", wide.count);
    print_rows(out, wide.form, wide.count, false);
    fprintf(out, "\n## Only in 16- and 32-bit code: %u forms\n", only);
    print_rows(out, narrow.form, only, true);
    diff_forms_destroy(&wide);
    diff_forms_destroy(&narrow);
    return ferror(out) ? -1 : 0;
}

static int check(const char *path)
{
    char *text = NULL;
    size_t size = 0;
    FILE *made = open_memstream(&text, &size), *file = fopen(path, "r");
    int c, same;

    if (!made || !file || write_table(made) || fclose(made)) {
        fprintf(stderr, "opcode_table: cannot read %s\n", path);
        return 1;
    }
    for (size_t i = 0; (same = (c = fgetc(file)) == (i < size ? (uint8_t)text[i] : EOF)); i++)
        if (c == EOF)
            break;
    fclose(file);
    free(text);
    if (!same)
        fprintf(stderr, "%s is out of date: build/tests/diff/opcode_table > docs/opcodes.md\n",
                path);
    return !same;
}

int main(int argc, char **argv)
{
    if (argc == 3 && strcmp(argv[1], "--check") == 0)
        return check(argv[2]);
    if (argc != 1) {
        fprintf(stderr, "usage: opcode_table [--check FILE]\n");
        return 2;
    }
    return write_table(stdout) ? 1 : 0;
}
