/*
 * Writing host instructions: the translator's assembler. Only what the translator needs. SDM vol. 2
 * chapter 2.
 *
 * Bytes go to the writable view of the code memory; distances between two places in it are the same
 * in the executable view. When memory runs out `full` is set and bytes are dropped: whoever asked
 * for the code looks at it once, at the end.
 */
#ifndef PARAT_X86_EMIT_H
#define PARAT_X86_EMIT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "base/bits.h"

/* Host registers by their numbers. */
enum x86_host {
    HOST_RAX,
    HOST_RCX,
    HOST_RDX,
    HOST_RBX,
    HOST_RSP,
    HOST_RBP,
    HOST_RSI,
    HOST_RDI,
    HOST_R8,
    HOST_R9,
    HOST_R10,
    HOST_R11,
    HOST_R12,
    HOST_R13,
    HOST_R14,
    HOST_R15,
    HOST_NONE = 0xff,
};

struct x86_emit {
    uint8_t *at, *end; /* in the writable view */
    bool full;
};

/* The operand of ModRM.rm: a register, or [base + index << scale + disp]. base is never absent. */
struct x86_rm {
    bool is_mem;
    uint8_t base; /* the register itself when !is_mem */
    uint8_t index, scale;
    int32_t disp;
};

/* An instruction without its operands. */
struct x86_encoding {
    uint8_t opcode;
    uint8_t map;       /* 0: one byte; 1: 0F; 2: 0F 38; 3: 0F 3A */
    uint8_t mandatory; /* 0, 0x66, 0xf3, 0xf2: before REX */
    bool lock, operand16, w;
    bool byte_reg, byte_rm; /* register operands there are 8 bits wide: 4 to 7 need a REX */
    bool vex;
    uint8_t vvvv, l; /* VEX only */
};

static inline struct x86_rm x86_rm_reg(unsigned reg)
{
    return (struct x86_rm) {.base = (uint8_t)reg, .index = HOST_NONE};
}

static inline struct x86_rm x86_rm_mem(unsigned base, int32_t disp)
{
    return (struct x86_rm) {
        .is_mem = true, .base = (uint8_t)base, .index = HOST_NONE, .disp = disp};
}

static inline struct x86_rm x86_rm_indexed(unsigned base, unsigned index, int32_t disp)
{
    return (struct x86_rm) {
        .is_mem = true, .base = (uint8_t)base, .index = (uint8_t)index, .disp = disp};
}

static inline void x86_emit_bytes(struct x86_emit *e, const void *bytes, size_t count)
{
    if (unlikely((size_t)(e->end - e->at) < count)) {
        e->full = true;
        return;
    }
    memcpy(e->at, bytes, count);
    e->at += count;
}

static inline void x86_emit_8(struct x86_emit *e, unsigned value)
{
    uint8_t byte = (uint8_t)value;
    x86_emit_bytes(e, &byte, 1);
}

static inline void x86_emit_32(struct x86_emit *e, uint32_t value)
{
    uint8_t bytes[4];
    store_le32(bytes, value);
    x86_emit_bytes(e, bytes, 4);
}

static inline void x86_emit_64(struct x86_emit *e, uint64_t value)
{
    uint8_t bytes[8];
    store_le64(bytes, value);
    x86_emit_bytes(e, bytes, 8);
}

/* Prefixes, opcode, ModRM, SIB, displacement; the caller adds the immediate. */
void x86_emit_op(struct x86_emit *e, const struct x86_encoding *enc, unsigned reg,
                 const struct x86_rm *rm);

/* --- common instructions; 64 bits wide where the name does not say otherwise --- */

enum x86_alu { ALU_ADD, ALU_OR, ALU_ADC, ALU_SBB, ALU_AND, ALU_SUB, ALU_XOR, ALU_CMP };

void x86_emit_mov(struct x86_emit *e, unsigned to, unsigned from);
void x86_emit_mov32(struct x86_emit *e, unsigned to, unsigned from);
void x86_emit_load(struct x86_emit *e, unsigned to, struct x86_rm from);
void x86_emit_store(struct x86_emit *e, struct x86_rm to, unsigned from);
/* Returns where the constant stands: it can be changed later. */
uint8_t *x86_emit_load_imm64(struct x86_emit *e, unsigned to, uint64_t value);
void x86_emit_lea(struct x86_emit *e, unsigned to, struct x86_rm address);
/* op reg, reg/mem (CMP too) */
void x86_emit_alu(struct x86_emit *e, enum x86_alu op, unsigned reg, struct x86_rm rm);
void x86_emit_alu_imm(struct x86_emit *e, enum x86_alu op, unsigned reg, int32_t imm);
void x86_emit_alu_imm32(struct x86_emit *e, enum x86_alu op, unsigned reg, int32_t imm);
/* cmp dword [rm], imm8 */
void x86_emit_cmp_mem32(struct x86_emit *e, struct x86_rm rm, int8_t imm);
void x86_emit_shift_imm(struct x86_emit *e, unsigned digit, unsigned reg, unsigned count, bool w);
/* Jumps of which the distance is filled in later: returns where the 32 bits stand. */
uint8_t *x86_emit_jmp(struct x86_emit *e);
uint8_t *x86_emit_jcc(struct x86_emit *e, unsigned condition);
uint8_t *x86_emit_call(struct x86_emit *e);
void x86_emit_link(uint8_t *distance, const uint8_t *target);
void x86_emit_jmp_rm(struct x86_emit *e, struct x86_rm rm);
void x86_emit_call_rm(struct x86_emit *e, struct x86_rm rm);

enum { COND_O, COND_NO, COND_B, COND_AE, COND_E, COND_NE, COND_BE, COND_A };

#endif
