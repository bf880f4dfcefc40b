/*
 * From a guest-physical address and a mode to what is made of the code there (a decoded block, or
 * host code), and from a page to all that is made of its code. One vCPU's; its thread.
 */
#ifndef PARAT_ENGINE_SOFT_CODE_INDEX_H
#define PARAT_ENGINE_SOFT_CODE_INDEX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/addr.h"
#include "base/bits.h"

/* First member of whatever stands in an index. Lies where its owner wants it. */
struct code {
    uint64_t key;           /* code_key, or CODE_DEAD once dropped */
    struct code *page_next; /* in the list of its page */
    uint64_t tail;          /* gpa of a second page that it reaches into, or CODE_NO_TAIL */
    struct code *tail_next; /* in the list of that page */
};

#define CODE_DEAD       0ull
#define CODE_NO_TAIL    UINT64_MAX
#define CODE_MODE_SHIFT 56 /* physical addresses have at most 52 bits */

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
    uint64_t key; /* 0: free */
    struct code *code;
};

#define CODE_PAGE_BUCKETS 4096u
#define CODE_TAIL_BUCKETS 256u

struct code_index {
    struct code_slot *slot; /* open addressing with linear probing; at least half of them free */
    unsigned bits;          /* of their number */
    unsigned used;
    struct code **page; /* lists, by a hash of the page */
    struct code **tail; /* lists of those with a tail, by a hash of its page */
};

/* Room for 2^bits / 2 entries at first. */
int code_index_create(struct code_index *index, unsigned bits) MUST_USE;
void code_index_destroy(struct code_index *index);
/* Empties it; the slots stay as many as they are. */
void code_index_clear(struct code_index *index);
/* Enters code, whose key is not yet there. False: out of memory. */
bool code_index_add(struct code_index *index, struct code *code);
/* Takes it out. It is dead then; it stays in its pages' lists until somebody walks those. */
void code_index_remove(struct code_index *index, struct code *code);
typedef void code_dropped(void *context, struct code *code);
/* Takes out all of one page, and calls dropped for each. */
void code_index_drop_page(struct code_index *index, uint64_t page, code_dropped *dropped,
                          void *context);

static inline unsigned code_index_home(const struct code_index *index, uint64_t key)
{
    return (unsigned)(key * 0x9e3779b97f4a7c15ull >> (64 - index->bits));
}

/* NULL: there is none. */
static inline struct code *code_index_find(const struct code_index *index, uint64_t key)
{
    unsigned mask = (1u << index->bits) - 1, i = code_index_home(index, key);

    while (index->slot[i].key != key) {
        if (!index->slot[i].key)
            return NULL;
        i = (i + 1) & mask;
    }
    return index->slot[i].code;
}

#endif
