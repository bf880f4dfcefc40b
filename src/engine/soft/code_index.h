/*
 * From a guest-physical address and a mode to what is made of the code there (a decoded block, or a
 * unit of host code: never both), and from a page to all that is made of its code. One vCPU's; its
 * thread.
 *
 * All lies in one arena, blocks below units, at multiples of CODE_GRAIN: a slot holds a hash and
 * a place in the arena, and half of a cache line is enough for most searches.
 */
#ifndef PARAT_ENGINE_SOFT_CODE_INDEX_H
#define PARAT_ENGINE_SOFT_CODE_INDEX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/addr.h"
#include "base/bits.h"

/* First member of whatever stands in an index. */
struct code {
    uint64_t key;           /* code_key, or CODE_DEAD once dropped */
    struct code *page_next; /* in the list of its page */
    uint64_t tail;          /* gpa of a second page that it reaches into, or CODE_NO_TAIL */
    struct code *tail_next; /* in the list of that page */
};

#define CODE_DEAD       0ull
#define CODE_NO_TAIL    UINT64_MAX
#define CODE_MODE_SHIFT 56 /* physical addresses have at most 52 bits */
#define CODE_GRAIN      16u

/* mode is not 0. */
static inline uint64_t code_key(uint64_t address, uint8_t mode)
{
    return address | (uint64_t)mode << CODE_MODE_SHIFT;
}

static inline uint64_t code_address(uint64_t key)
{
    return key & ((1ull << CODE_MODE_SHIFT) - 1);
}

static inline uint8_t code_mode(uint64_t key)
{
    return (uint8_t)(key >> CODE_MODE_SHIFT);
}

struct code_slot {
    uint32_t hash;
    uint32_t at; /* in the arena, by CODE_GRAIN; 0: free */
};

#define CODE_PAGE_BUCKETS 4096u
#define CODE_TAIL_BUCKETS 256u

enum code_kind { CODE_BLOCK, CODE_UNIT, CODE_KINDS };

/* Lists of code by a hash of its page, and by that of its second page, if it has one. */
struct code_lists {
    struct code *page[CODE_PAGE_BUCKETS], *tail[CODE_TAIL_BUCKETS];
};

struct code_index {
    struct code_slot *slot; /* open addressing with linear probing; at least half of them free */
    unsigned bits;          /* of their number, 1 to 32 */
    unsigned used;
    uint8_t *arena;          /* the first grain stays unused */
    uint32_t units;          /* where in the arena units begin */
    struct code_lists *list; /* [CODE_KINDS] */
};

/* Room for 2^bits / 2 entries at first. units: offset in the arena, below 64 GiB. */
int code_index_create(struct code_index *index, unsigned bits, uint8_t *arena,
                      size_t units) MUST_USE;
void code_index_destroy(struct code_index *index);
/* Forgets all of a kind, without a look at it. */
void code_index_clear(struct code_index *index, enum code_kind kind);
/* Enters code, whose key is not yet there. False: out of memory. */
bool code_index_add(struct code_index *index, struct code *code);
/* Takes it out. It is dead then; it stays in its pages' lists until somebody walks those. */
void code_index_remove(struct code_index *index, struct code *code);
typedef void code_dropped(void *context, struct code *code);
/* Takes out all of one page, and calls dropped for each. */
void code_index_drop_page(struct code_index *index, uint64_t page, code_dropped *dropped,
                          void *context);

static inline uint32_t code_index_hash(uint64_t key)
{
    return (uint32_t)(key * 0x9e3779b97f4a7c15ull >> 32);
}

static inline uint32_t code_index_home(const struct code_index *index, uint32_t hash)
{
    return hash >> (32 - index->bits);
}

static inline struct code *code_index_at(const struct code_index *index, uint32_t at)
{
    return (struct code *)(void *)(index->arena + (size_t)at * CODE_GRAIN);
}

static inline enum code_kind code_index_kind(const struct code_index *index,
                                             const struct code *code)
{
    return (size_t)((const uint8_t *)code - index->arena) / CODE_GRAIN < index->units ? CODE_BLOCK
                                                                                      : CODE_UNIT;
}

/* NULL: there is none. */
static inline struct code *code_index_find(const struct code_index *index, uint64_t key)
{
    uint32_t hash = code_index_hash(key), mask = (uint32_t)((1ull << index->bits) - 1);
    uint32_t i = code_index_home(index, hash);

    for (; index->slot[i].at; i = (i + 1) & mask) {
        if (index->slot[i].hash != hash)
            continue;
        struct code *code = code_index_at(index, index->slot[i].at);
        if (likely(code->key == key))
            return code;
    }
    return NULL;
}

#endif
