/*
 * A vCPU's cache of decoded blocks, keyed by guest-physical address and decode mode. Only the
 * vCPU's own thread uses it. A block that has run a few times gets a unit of host code, which
 * starts where the block does and may go on behind its end.
 *
 * Dropped blocks stay readable until the arena is emptied (block_cache_clear, only between blocks):
 * the block that runs may drop itself, and links to a dropped block fail by its dead address.
 */
#ifndef PARAT_ENGINE_SOFT_BLOCK_H
#define PARAT_ENGINE_SOFT_BLOCK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/bits.h"
#include "x86/cpu.h"
#include "x86/insn.h"
#include "x86/translate.h"

struct engine_vcpu;

#define BLOCK_INSNS_MAX    48
#define BLOCK_ADDRESS_DEAD UINT64_MAX
#define BLOCK_NO_TAIL      UINT64_MAX

/*
 * Straight-line code inside one page; only a block of one instruction may reach into a second page,
 * `tail`, which must be what follows in the linear address space at each execution.
 */
struct block {
    uint64_t address; /* gpa of the first byte; BLOCK_ADDRESS_DEAD once dropped */
    uint64_t page;    /* gpa of its page, also once dropped */
    uint64_t tail;    /* gpa of the second page, or BLOCK_NO_TAIL */
    struct block *hash_next;
    struct block *page_next[2]; /* in the list of its page, of its tail */
    struct block *successor[2]; /* last seen after it: by falling through, by a jump */
    struct x86_unit *unit;      /* host code, or NULL */
    uint16_t bytes;
    uint8_t count;
    uint8_t mode; /* block_mode */
    uint8_t heat; /* times run by the interpreter, up to the cache's `hot` */
    struct x86_insn insn[];
};

struct block_cache {
    uint8_t *arena;
    size_t used;
    struct block **hash;
    struct block **page;               /* lists of blocks by a hash of their page */
    struct x86_translator *translator; /* may be NULL */
    struct x86_cpu *cpu;
    bool full;    /* to be cleared before the next block is looked for */
    unsigned hot; /* times that a block is seen until it is translated */
    uint64_t clears, decoded, translated, units;
};

int block_cache_create(struct block_cache *cache) MUST_USE;
void block_cache_destroy(struct block_cache *cache);
void block_cache_set_translator(struct block_cache *cache, struct x86_translator *translator,
                                struct x86_cpu *cpu);
/* Empties it; no block is running. */
void block_cache_clear(struct block_cache *cache);
/* Drops the blocks with bytes in this page. */
void block_cache_drop_page(struct block_cache *cache, uint64_t page);

#define BLOCK_HOT 12 /* the default of block_cache.hot, which is at most 255 */

/* Code size, real or virtual-8086 mode, and the mode of units, or no unit (its TLB has none). */
static inline uint8_t block_mode(const struct x86_cpu *cpu)
{
    uint8_t unit = x86_unit_mode(cpu);
    if (unit == X86_UNIT_NONE)
        unit = X86_MMU_ALIGNED;
    return (uint8_t)(cpu->decode_mode.code_size | cpu->decode_mode.real_or_v86 << 4 | unit << 5);
}

/*
 * Runs blocks from CS:RIP on until attention is wanted, the CPU halted or needs single
 * instructions. True: the next instruction cannot come from a block (x86_step it). May raise.
 */
bool block_loop(struct engine_vcpu *vcpu);

/* After a fault inside block_loop: how many instructions of vcpu->current were completed. */
unsigned block_completed(const struct engine_vcpu *vcpu);

#endif
