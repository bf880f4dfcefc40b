/*
 * The differential test: sequences of user-mode instructions run on the real CPU, by x86/'s
 * interpreter and by its translator, and everything that a program can see is compared.
 *
 * forms.c lists the instruction forms there are (enumerated through Zydis, kept when x86/ has a
 * handler); policy.c says which are left out and why, and prepares operands for some; generate.c
 * makes sequences from forms; native.c, emulated.c and translated.c run them; main.c compares and
 * counts.
 */
#ifndef PARAT_TESTS_DIFF_H
#define PARAT_TESTS_DIFF_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <Zydis/Zydis.h>

#include "x86/cpuid.h"
#include "x86/insn.h"
#include "x86/state.h"

/*
 * One address space for both sides. All below 2 GiB, so that 32-bit addresses and displacements
 * reach it. What is not listed is not mapped.
 */
#define DATA_BASE  0x10000000ull /* 4 pages read-write, 1 read-only, 1 not mapped, 1 read-write */
#define DATA_RW    (4 * 4096)
#define DATA_RO    4096
#define DATA_HOLE  4096
#define DATA_TAIL  4096
#define STACK_BASE 0x10100000ull /* 2 pages read-write */
#define STACK_SIZE (2 * 4096)
#define CODE_BASE  0x20000000ull /* 4 pages, executable and readable; filled up with INT3 */
#define CODE_SIZE  (4 * 4096)
#define CODE_LAND  (CODE_BASE + 3 * 4096) /* INT3s where an indirect branch may go */
#define GS_BASE    0x3000ull              /* the segment base that GS overrides add */

/* All memory that is compared, in the order of its addresses. */
#define MEMORY_SIZE (DATA_RW + DATA_RO + DATA_TAIL + STACK_SIZE)

struct diff_state {
    uint64_t gpr[16];
    uint64_t rip, rflags;
    struct x86_fpu fpu; /* without fop, fip, fdp, fcs, fds */
};

/* How a run ended. Every run ends with an exception: INT3 after the last instruction at the latest.
 */
struct diff_end {
    struct diff_state state;
    unsigned vector;
    uint64_t error, cr2; /* error: #PF, #GP, …; cr2: #PF */
    bool timeout;
    uint8_t memory[MEMORY_SIZE];
};

struct diff_input {
    unsigned code_size; /* 8, or 4: compatibility mode */
    struct diff_state state;
    uint8_t memory[MEMORY_SIZE];
    uint8_t code[CODE_SIZE];
};

/* --- instruction forms (forms.c) --- */

/* How to encode one: prefixes, map, opcode and what of ModRM is fixed. */
struct diff_template {
    uint8_t prefix[3]; /* F0, 66, F2, F3; 0: none */
    uint8_t map;       /* 0: one byte, 1: 0F, 2: 0F 38, 3: 0F 3A */
    uint8_t opcode;
    bool vex, w, l;
    uint8_t pp;
    bool has_modrm;
    uint8_t modrm;  /* as found; mod 3 or not, and reg where it is part of the opcode */
    uint8_t suffix; /* bytes of immediates, as found */
};

#define DIFF_TEMPLATES_MAX 24

enum diff_group { DIFF_INTEGER, DIFF_VECTOR, DIFF_X87 };

struct diff_form {
    char name[80]; /* "lock add m32, r32" */
    ZydisMnemonic mnemonic;
    enum diff_group group;
    ZydisISASet isa;
    bool implemented;     /* x86/ has a handler */
    const char *excluded; /* why it is not compared, or NULL */
    unsigned template_count;
    struct diff_template template[DIFF_TEMPLATES_MAX];
};

struct diff_forms {
    struct diff_form *form;
    unsigned count, capacity;
    unsigned *slot; /* hash of names: index + 1 */
    ZydisDecoder decoder;
    const struct x86_decoder *x86;
    struct x86_decode_mode mode;
    bool all; /* not only what is implemented and can be compared */
};

/* 64-bit code, what is implemented and not left out. */
int diff_forms_create(struct diff_forms *forms, const struct x86_decoder *x86, unsigned code_size);
/* Everything that Zydis knows, for code of size 4 or 8. For the table in docs/. */
int diff_forms_create_all(struct diff_forms *forms, const struct x86_decoder *x86,
                          unsigned code_size);
void diff_forms_destroy(struct diff_forms *forms);
/* The form of an instruction; UINT_MAX when it is none of ours. */
unsigned diff_forms_find(const struct diff_forms *forms, const uint8_t *bytes, size_t length);

struct diff_insn {
    ZydisDecodedInstruction z;
    ZydisDecodedOperand op[ZYDIS_MAX_OPERAND_COUNT];
};
bool diff_decode(const struct diff_forms *forms, const uint8_t *bytes, size_t length,
                 struct diff_insn *out);

/* --- what is special (policy.c) --- */

/* NULL: test it. Otherwise why this instruction is left out. */
const char *diff_policy_excluded(const struct diff_insn *insn);

/* False: this host's processor does something else than parat's, as is known. */
bool diff_policy_comparable_here(const struct diff_insn *insn);

/* --- random numbers, seeded --- */

struct diff_random {
    uint64_t state;
};
uint64_t diff_random(struct diff_random *r);
/* 0 <= result < limit */
static inline uint64_t diff_below(struct diff_random *r, uint64_t limit)
{
    return diff_random(r) % limit;
}
static inline bool diff_chance(struct diff_random *r, unsigned percent)
{
    return diff_below(r, 100) < percent;
}
uint64_t diff_random_value(struct diff_random *r); /* often a special one */

/* --- sequences (generate.c) --- */

#define DIFF_INSNS_MAX 400

struct diff_sequence {
    struct diff_input input;
    unsigned count, length; /* instructions; bytes of code */
    uint16_t offset[DIFF_INSNS_MAX + 1];
    unsigned form[DIFF_INSNS_MAX]; /* UINT_MAX: none (a preparing instruction) */
};

/* `want` picks the next form: the driver prefers what was tested least. */
typedef unsigned diff_pick(void *context, struct diff_random *r);
void diff_generate(struct diff_sequence *out, const struct diff_forms *forms, struct diff_random *r,
                   diff_pick *pick, void *context);

/* What policy.c may put before an instruction. Flags and other registers stay. */
struct diff_writer {
    struct diff_sequence *s;
    const struct diff_forms *forms;
    struct diff_random *r;
};
void diff_put_bytes(struct diff_writer *w, const uint8_t *bytes, unsigned length);
void diff_put_mov(struct diff_writer *w, unsigned gpr, uint64_t value);
/* Loads registers so that the instruction, coming next, is more likely to do something. */
void diff_policy_prepare(struct diff_writer *w, const struct diff_insn *insn);
/* True when two memory operands may fault and the real CPU chooses now one, now the other. */
/* A fault of this instruction that Intel's processors do not raise, or not with the same state. */
bool diff_policy_differs_on_intel(const struct diff_insn *insn, unsigned vector);
bool diff_policy_either_fault(const struct diff_insn *insn);
/* True when the memory operand is to hold *value: where few values are good. */
bool diff_policy_operand(const struct diff_insn *insn, struct diff_random *r, uint64_t *value);
/* An address for a memory operand of `size` bytes: mostly good, sometimes at an edge. */
uint64_t diff_address(struct diff_random *r, unsigned size);

/* --- the guest of the other two (guest.c) --- */

#define DIFF_RAM_SIZE (40 * 4096ull)
#define DIFF_GPA_CODE 0x10000

void diff_guest_features(struct x86_features *features);
/* Page tables. */
void diff_guest_build(uint8_t *ram);
/* Memory, code and registers; the state had its values from reset or from a run before. */
void diff_guest_load(uint8_t *ram, struct x86_state *state, const struct diff_input *input);
/* Memory and registers; the exception is the caller's. */
void diff_guest_store(const uint8_t *ram, const struct x86_state *state, struct diff_end *end);

/* --- running (native.c, emulated.c, translated.c) --- */

struct diff_native;
int diff_native_create(struct diff_native **out);
void diff_native_destroy(struct diff_native *native);
void diff_native_run(struct diff_native *native, const struct diff_input *input,
                     struct diff_end *end);
/* Has `tick` called five times a second, in a signal handler of the thread that created it. */
void diff_native_on_tick(struct diff_native *native, void (*tick)(void *context), void *context);

struct diff_emulated;
int diff_emulated_create(struct diff_emulated **out);
void diff_emulated_destroy(struct diff_emulated *emulated);
const struct x86_decoder *diff_emulated_decoder(const struct diff_emulated *emulated);
/* seen(context, rip) is called before each step, and may be NULL. */
typedef void diff_seen(void *context, uint64_t rip);
void diff_emulated_run(struct diff_emulated *emulated, const struct diff_input *input,
                       struct diff_end *end, diff_seen *seen, void *context);

/* In the process that runs it: it has a thread. */
struct diff_translated;
int diff_translated_create(struct diff_translated **out);
void diff_translated_destroy(struct diff_translated *translated);
/* again: the code is that of the run before, and its translation is used. */
void diff_translated_run(struct diff_translated *translated, const struct diff_input *input,
                         bool again, struct diff_end *end);
/* Now and then, from a signal handler: a run that takes too long ends. */
void diff_translated_tick(struct diff_translated *translated);

#endif
