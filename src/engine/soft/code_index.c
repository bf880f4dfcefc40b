/* The index of code by address and by page. vCPU's thread. See code_index.h. */
#include "engine/soft/code_index.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

int code_index_create(struct code_index *index, unsigned bits)
{
    *index = (struct code_index) {.bits = bits};
    index->slot = calloc((size_t)1 << bits, sizeof *index->slot);
    index->page = calloc(CODE_PAGE_BUCKETS, sizeof(struct code *));
    index->tail = calloc(CODE_TAIL_BUCKETS, sizeof(struct code *));
    if (index->slot && index->page && index->tail)
        return 0;
    code_index_destroy(index);
    return -ENOMEM;
}

void code_index_destroy(struct code_index *index)
{
    free(index->slot);
    free(index->page);
    free(index->tail);
    *index = (struct code_index) {0};
}

void code_index_clear(struct code_index *index)
{
    memset(index->slot, 0, sizeof *index->slot << index->bits);
    memset(index->page, 0, CODE_PAGE_BUCKETS * sizeof(struct code *));
    memset(index->tail, 0, CODE_TAIL_BUCKETS * sizeof(struct code *));
    index->used = 0;
}

/* --- by address --- */

static void put(struct code_index *index, struct code *code)
{
    unsigned mask = (1u << index->bits) - 1, i = code_index_home(index, code->key);

    while (index->slot[i].key)
        i = (i + 1) & mask;
    index->slot[i] = (struct code_slot) {code->key, code};
}

static bool grow(struct code_index *index)
{
    struct code_slot *old = index->slot, *slot = calloc((size_t)2 << index->bits, sizeof *slot);
    unsigned count = 1u << index->bits;

    if (!slot)
        return false;
    index->slot = slot;
    index->bits++;
    for (unsigned i = 0; i < count; i++) {
        if (old[i].key)
            put(index, old[i].code);
    }
    free(old);
    return true;
}

/* Those behind the gap move up, unless that led them before their homes. */
static void take(struct code_index *index, uint64_t key)
{
    unsigned mask = (1u << index->bits) - 1, gap = code_index_home(index, key);

    while (index->slot[gap].key != key) {
        if (!index->slot[gap].key)
            return;
        gap = (gap + 1) & mask;
    }
    for (unsigned i = (gap + 1) & mask; index->slot[i].key; i = (i + 1) & mask) {
        unsigned home = code_index_home(index, index->slot[i].key);
        if (((i - home) & mask) < ((i - gap) & mask))
            continue;
        index->slot[gap] = index->slot[i];
        gap = i;
    }
    index->slot[gap] = (struct code_slot) {0};
    index->used--;
}

/* --- by page --- */

static struct code **bucket_of(struct code_index *index, uint64_t address)
{
    return &index->page[(address >> PAGE_SHIFT) % CODE_PAGE_BUCKETS];
}

static struct code **tail_bucket_of(struct code_index *index, uint64_t page)
{
    return &index->tail[(page >> PAGE_SHIFT) % CODE_TAIL_BUCKETS];
}

bool code_index_add(struct code_index *index, struct code *code)
{
    if ((index->used + 1) * 2 > 1u << index->bits && !grow(index))
        return false;
    struct code **bucket = bucket_of(index, code_address(code->key));
    code->page_next = *bucket;
    *bucket = code;
    if (code->tail != CODE_NO_TAIL) {
        struct code **tail = tail_bucket_of(index, code->tail);
        code->tail_next = *tail;
        *tail = code;
    }
    put(index, code);
    index->used++;
    return true;
}

void code_index_remove(struct code_index *index, struct code *code)
{
    take(index, code->key);
    code->key = CODE_DEAD;
}

/* Those that reach into the page: they are also in the lists of their first pages, where the dead
 * are passed over. */
static void drop_tails(struct code_index *index, uint64_t page, code_dropped *dropped,
                       void *context)
{
    struct code **link = tail_bucket_of(index, page);

    while (*link) {
        struct code *code = *link;
        bool dead = code->key == CODE_DEAD;
        if (!dead && code->tail != page) {
            link = &code->tail_next;
            continue;
        }
        *link = code->tail_next;
        if (dead)
            continue;
        code_index_remove(index, code);
        dropped(context, code);
    }
}

void code_index_drop_page(struct code_index *index, uint64_t page, code_dropped *dropped,
                          void *context)
{
    struct code **link = bucket_of(index, page);

    while (*link) {
        struct code *code = *link;
        bool dead = code->key == CODE_DEAD;
        if (!dead && (code_address(code->key) & PAGE_MASK) != page) {
            link = &code->page_next;
            continue;
        }
        *link = code->page_next;
        if (dead)
            continue;
        code_index_remove(index, code);
        dropped(context, code);
    }
    drop_tails(index, page, dropped, context);
}
