/*
 * The compact decoded instruction, made once by x86_decode (Zydis does the decoding) and executed
 * many times by calling its handler.
 *
 * Register operands are byte offsets into struct x86_cpu (a 16-bit number), so that AH, a base that
 * is not there (the constant zero) and RIP need no special case: x86_cpu.zero and x86_cpu.next_rip
 * lie beside the registers.
 */
#ifndef PARAT_X86_INSN_H
#define PARAT_X86_INSN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/bits.h"
#include "base/err.h"
#include "x86/cpuid.h"

struct x86_cpu;
struct x86_insn;

/*
 * Executes one instruction. On entry cpu->s.rip is its address and cpu->next_rip the next one's;
 * a branch changes next_rip. A fault leaves by x86_raise_* (longjmp) with nothing half-done and
 * s.rip untouched; after a normal return the caller sets s.rip = next_rip.
 */
typedef void x86_handler(struct x86_cpu *cpu, const struct x86_insn *insn);

enum x86_insn_flags {
    X86_INSN_LOCK = 1 << 0,
    X86_INSN_REP = 1 << 1,    /* F3 on a string instruction */
    X86_INSN_REPNE = 1 << 2,  /* F2 on a string instruction */
    X86_INSN_MEM = 1 << 3,    /* has a memory operand in seg/base/index/disp */
    X86_INSN_FLAT64 = 1 << 5, /* address size 8 in 64-bit mode: address = segment base + operand */
    X86_INSN_END = 1 << 4, /* ends a block: branch, or changes mode, mapping or interrupt state */
    /* No instruction: bytes behind its length, up to X86_INSN_BYTES_MAX in all, have decided that.
     */
    X86_INSN_UNKNOWN = 1 << 6,
};

#define X86_INSN_BYTES_MAX 15u

struct x86_insn {
    x86_handler *run;
    uint64_t imm; /* sign-extended immediate, or branch displacement, or what bind() wants */
    void *aux;    /* free for the module that bound it (a stub, a thunk table entry) */
    int32_t disp;
    uint16_t base, index; /* offsets into struct x86_cpu, never absent */
    uint16_t dst, src;    /* first and second register operand, offsets into struct x86_cpu */
    uint16_t src2;        /* third */
    uint8_t scale;        /* shift of the index: 0 to 3 */
    uint8_t seg;          /* enum x86_seg of the memory operand */
    uint8_t length;       /* 1 to 15 bytes */
    uint8_t size;         /* operand size in bytes: 1, 2, 4, 8 (16, 32 for vectors) */
    uint8_t address_size; /* 2, 4 or 8 */
    uint8_t flags;        /* enum x86_insn_flags */
};

/* How many of the bytes that there were the decode depends on: those to watch for changes. */
static inline unsigned x86_insn_watched(const struct x86_insn *insn, size_t available)
{
    if (likely(!(insn->flags & X86_INSN_UNKNOWN)))
        return insn->length;
    return (unsigned)MIN(available, (size_t)X86_INSN_BYTES_MAX);
}

/* What one decode is about: code segment's default size in bytes (2, 4, 8) and what is enabled. */
struct x86_decode_mode {
    uint8_t code_size;
    bool real_or_v86; /* some instructions do not exist there */
};

/*
 * Owns the Zydis decoders and the index from mnemonic to binder. Not changed after creation, so any
 * number of threads may decode with one. `features`: an instruction whose feature is missing is
 * #UD.
 */
struct x86_decoder;

/* exec_memory: where vector and x87 stubs are made, see stub.h; NULL: such instructions are #UD. */
struct x86_stubs;
int x86_decoder_create(struct x86_decoder **out, const struct x86_features *features,
                       struct x86_stubs *stubs) MUST_USE;
void x86_decoder_destroy(struct x86_decoder *decoder);

enum x86_decode_result {
    X86_DECODE_OK,
    X86_DECODE_TRUNCATED, /* needs more bytes than there are */
    X86_DECODE_TOO_LONG,  /* over 15 bytes: #GP; out->run raises it */
};

/*
 * Decodes the instruction at bytes. An illegal one is OK with a handler that raises #UD (length is
 * then 1 or what could be decoded).
 */
enum x86_decode_result x86_decode(const struct x86_decoder *decoder,
                                  const struct x86_decode_mode *mode, const uint8_t *bytes,
                                  size_t available, struct x86_insn *out);

#endif
