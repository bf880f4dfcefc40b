/*
 * Between the decoder and the modules that implement instructions: each module exports a const
 * table of binders, and decode.c lists the tables. A binder looks at the full decode and picks the
 * handler.
 */
#ifndef PARAT_X86_DECODE_INT_H
#define PARAT_X86_DECODE_INT_H

#include <Zydis/Zydis.h>

#include "x86/insn.h"

struct x86_decode {
    const ZydisDecodedInstruction *z;
    const ZydisDecodedOperand *op; /* z->operand_count, the visible ones first */
    const uint8_t *bytes;
    const struct x86_decode_mode *mode;
    const struct x86_features *features;
    struct x86_stubs *stubs;
    bool rotate_keeps_of; /* the host's CPU: see exec_shift.c */
};

/* ROL and ROR of a register by an immediate other than 1 leave OF alone on this host. */
bool x86_host_rotate_keeps_of(void);

struct x86_decode_bytes {
    const struct x86_decode_mode *mode;
    const uint8_t *bytes;
    size_t available;
};

/*
 * x86_decode, with what Zydis found (op: ZYDIS_MAX_OPERAND_COUNT). z->mnemonic is
 * ZYDIS_MNEMONIC_INVALID when the instruction does nothing but raise.
 */
enum x86_decode_result x86_decode_whole(const struct x86_decoder *decoder,
                                        const struct x86_decode_bytes *from, struct x86_insn *out,
                                        ZydisDecodedInstruction *z, ZydisDecodedOperand *op);

/*
 * Sets out->run (and aux, imm… where it differs from the defaults). The decoder has filled in
 * length, flags, size, address_size, the memory operand if there is one, imm from the first
 * immediate operand, and dst/src/src2 from the visible register operands in order (XMM and YMM are
 * offsets too; MMX, x87, segment, control registers are not). False: not mine; when no binder of
 * the mnemonic takes it, it is #UD. A mnemonic may have several binders, asked in the tables'
 * order.
 */
struct x86_bind {
    ZydisMnemonic mnemonic;
    bool (*bind)(const struct x86_decode *d, struct x86_insn *out);
};

/* Ends with mnemonic ZYDIS_MNEMONIC_INVALID. */
extern const struct x86_bind x86_bind_alu[]; /* exec_alu.c: add … test, inc, dec, neg, not, adcx */
extern const struct x86_bind x86_bind_shift[]; /* shifts, rotates, shld, shrd, BMI2 shifts */
extern const struct x86_bind x86_bind_mul[];   /* mul, div, mulx, BCD */
extern const struct x86_bind x86_bind_bit[];   /* bt*, bsf, tzcnt, popcnt, BMI, crc32 */
extern const struct x86_bind x86_bind_move[]; /* mov, movzx, lea, xchg, cmov, set, bswap, movbe… */
extern const struct x86_bind x86_bind_atomic[]; /* xadd, cmpxchg*, and LOCK forms of the rest */
extern const struct x86_bind x86_bind_misc[];   /* nop, pause, fences, cache hints, flag ops, ud */
extern const struct x86_bind x86_bind_string[]; /* movs, stos, lods, cmps, scas, ins, outs */
extern const struct x86_bind x86_bind_stack[];  /* push, pop, pusha, enter, leave, pushf, popf */
extern const struct x86_bind
    x86_bind_branch[]; /* jcc, jmp, call, ret near, loop, int n, int1/3, into */
extern const struct x86_bind
    x86_bind_segment[]; /* far jmp/call/ret, iret, lds…, lar, lsl, verr, arpl, lldt, swapgs */
extern const struct x86_bind x86_bind_system[]; /* lgdt…, hlt, msr, cpuid, in/out, tsc, cli/sti,
                                                   syscall, xsetbv, clflush, rdrand… */
extern const struct x86_bind x86_bind_vector[]; /* MMX, SSE, AVX, AES, SHA… */
extern const struct x86_bind x86_bind_x87[];
extern const struct x86_bind x86_bind_xsave[]; /* fxsave, xsave family, ldmxcsr */

/*
 * MOV with a control, debug or segment register on either side: x86_bind_move's entry for MOV calls
 * this when an operand is one. system.c.
 */
bool x86_bind_mov_system(const struct x86_decode *d, struct x86_insn *out);

/*
 * Offset into struct x86_cpu of a general register (RAX…, AH…, RIP) or of the XMM or YMM register's
 * low byte; the zero slot for none.
 */
uint16_t x86_register_offset(ZydisRegister reg);
/* enum x86_seg of a segment register; DS for anything else. */
uint8_t x86_segment_number(ZydisRegister reg);

#endif
