/*
 * A vCPU's caches of code, keyed by guest-physical address and mode: decoded blocks, and the units
 * of host code that take the place of blocks which have run often. Only the vCPU's own thread uses
 * them.
 *
 * Blocks lie in a small part of the arena that is emptied whole when it is full: those still in use
 * are decoded again. Units stay until the code memory is full; then they all go. Dropped blocks and
 * units stay readable until then: the one that runs may drop itself.
 */
#ifndef PARAT_ENGINE_SOFT_BLOCK_H
#define PARAT_ENGINE_SOFT_BLOCK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/bits.h"
#include "engine/soft/code_index.h"
#include "x86/cpu.h"
#include "x86/insn.h"
#include "x86/translate.h"

struct engine_vcpu;

#define BLOCK_INSNS_MAX 48

/*
 * Straight-line code inside one page; only a block of one instruction may reach into a second page,
 * code.tail, which must be what follows in the linear address space at each execution. The same
 * goes for units.
 */
struct block {
    struct code code;
    struct block *successor[2]; /* last seen after it: by falling through, by a jump */
    uint16_t bytes;
    uint8_t count;
    bool never; /* no unit could be made of it */
    struct x86_insn insn[];
};

/* A unit's place in the index. */
struct translation {
    struct code code;
    struct x86_unit unit; /* last: its size varies */
};

/* How often the code at an address was interpreted, by a hash of its key: outlives the blocks. */
#define BLOCK_HEAT_BITS 16u

struct block_cache {
    struct code_index index;
    uint8_t *arena; /* blocks, and behind them units; touched as it fills */
    size_t used;    /* of the blocks' part */
    uint8_t heat[1u << BLOCK_HEAT_BITS];

    size_t unit_size, unit_used;
    struct x86_translator *translator; /* may be NULL */
    struct x86_cpu *cpu;
    bool full;    /* all units are to be dropped before the next is looked for */
    unsigned hot; /* times that code is interpreted until it is translated */

    /* Counters, written by the owner. */
    uint64_t decodes; /* times that the arena of blocks was emptied */
    uint64_t decoded; /* instructions */
    uint64_t clears;  /* of all units */
    uint64_t units_made, units_dropped, translated;
    uint64_t entries, notes; /* runs of units begun by block_loop; jump cache entries made */
};

/* unit_size: bytes for all struct x86_unit; touched as they are used. */
int block_cache_create(struct block_cache *cache, size_t unit_size) MUST_USE;
void block_cache_destroy(struct block_cache *cache);
void block_cache_set_translator(struct block_cache *cache, struct x86_translator *translator,
                                struct x86_cpu *cpu);
/* Drops all units; none is running. */
void block_cache_clear_units(struct block_cache *cache);
/* Drops everything; nothing of it is running. */
void block_cache_clear(struct block_cache *cache);
/* Drops all that was made of bytes in this page. */
void block_cache_drop_page(struct block_cache *cache, uint64_t page);

#define BLOCK_HOT 24 /* the default of block_cache.hot, which is at most 255 */

/*
 * Code size, real or virtual-8086 mode, and the mode of units, or no unit (its TLB has none).
 * BLOCK_SHADOW: only its first instruction runs, in an interrupt shadow; never a unit. BLOCK_PLAIN:
 * a unit without groups of memory operands, always of 64-bit code, so that the bit is free.
 * BLOCK_EDGE: at linear addresses from where a direct branch may reach one that is not canonical;
 * of 64-bit code, too.
 */
#define BLOCK_SHADOW          0x01
#define BLOCK_PLAIN           0x02
#define BLOCK_EDGE            0x04
#define BLOCK_UNIT_MODE(mode) ((uint8_t)((mode) >> 5))
static inline uint8_t block_mode(const struct x86_cpu *cpu)
{
    uint8_t unit = x86_unit_mode(cpu);
    if (unit == X86_UNIT_NONE)
        unit = X86_MMU_ALIGNED;
    return (uint8_t)(cpu->decode_mode.code_size | cpu->decode_mode.real_or_v86 << 4 | unit << 5);
}

/* Code at an address, to be looked for or made. */
struct block_place {
    uint64_t key;
    uint64_t la;
    const uint8_t *page; /* the host address of its page */
};

static inline struct translation *block_find_unit(const struct block_cache *cache, uint64_t key)
{
    struct code *code = code_index_find(&cache->index, key);
    return code && code_index_kind(&cache->index, code) == CODE_UNIT ? (struct translation *)code
                                                                     : NULL;
}

/*
 * Decodes. May empty the arena of blocks (cache->decodes changes), may wait in an exclusive
 * section, may raise a fetch fault. NULL: only x86_step can do it.
 */
struct block *block_make(struct engine_vcpu *vcpu, const struct block_place *place);
/* Has been interpreted once more: host code in place of the block, or NULL. May wait, too. */
struct translation *block_heat_up(struct engine_vcpu *vcpu, struct block *block,
                                  const struct block_place *place);

/* The plain unit there, which is made if need be; NULL: the interpreter must do. May wait, too. */
struct translation *block_plain_unit(struct engine_vcpu *vcpu, const struct block_place *place);

/* --- dispatch.c --- */

/*
 * Runs code from CS:RIP on until attention is wanted, the CPU halted or needs single instructions.
 * True: the next instruction cannot come from a block (x86_step it). May raise.
 */
bool block_loop(struct engine_vcpu *vcpu);

/* After a fault inside block_loop: how many instructions of vcpu->current were completed. */
unsigned block_completed(const struct engine_vcpu *vcpu);

#endif
