/* The index of code by address and by page. vCPU's thread. See code_index.h. */
#include "engine/soft/code_index.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

int code_index_create(struct code_index *index, unsigned bits, uint8_t *arena, size_t units)
{
    *index =
        (struct code_index) {.bits = bits, .arena = arena, .units = (uint32_t)(units / CODE_GRAIN)};
    index->slot = calloc((size_t)1 << bits, sizeof *index->slot);
    index->list = calloc(CODE_KINDS, sizeof *index->list);
    if (index->slot && index->list)
        return 0;
    code_index_destroy(index);
    return -ENOMEM;
}

void code_index_destroy(struct code_index *index)
{
    free(index->slot);
    free(index->list);
    *index = (struct code_index) {0};
}

/* --- by address --- */

static uint32_t mask_of(const struct code_index *index)
{
    return (uint32_t)((1ull << index->bits) - 1);
}

static void put(struct code_index *index, struct code_slot slot)
{
    uint32_t mask = mask_of(index), i = code_index_home(index, slot.hash);

    while (index->slot[i].at)
        i = (i + 1) & mask;
    index->slot[i] = slot;
}

static bool grow(struct code_index *index)
{
    struct code_slot *old = index->slot;
    size_t count = (size_t)1 << index->bits;
    struct code_slot *slot = index->bits < 31 ? calloc(2 * count, sizeof *slot) : NULL;

    if (!slot)
        return false;
    index->slot = slot;
    index->bits++;
    for (size_t i = 0; i < count; i++) {
        if (old[i].at)
            put(index, old[i]);
    }
    free(old);
    return true;
}

/* Those behind the gap move up, unless that led them before their homes. */
static void close_gap(struct code_index *index, uint32_t gap)
{
    uint32_t mask = mask_of(index);

    for (uint32_t i = (gap + 1) & mask; index->slot[i].at; i = (i + 1) & mask) {
        uint32_t home = code_index_home(index, index->slot[i].hash);
        if (((i - home) & mask) < ((i - gap) & mask))
            continue;
        index->slot[gap] = index->slot[i];
        gap = i;
    }
    index->slot[gap] = (struct code_slot) {0};
    index->used--;
}

static void take(struct code_index *index, const struct code *code)
{
    uint32_t mask = mask_of(index), i = code_index_home(index, code_index_hash(code->key));

    for (; index->slot[i].at; i = (i + 1) & mask) {
        if (code_index_at(index, index->slot[i].at) == code) {
            close_gap(index, i);
            return;
        }
    }
}

/* From behind a free slot once around: what moves up has been looked at already. */
static void take_kind(struct code_index *index, enum code_kind kind)
{
    uint32_t mask = mask_of(index), first = 0;

    while (index->slot[first].at)
        first++;
    for (uint32_t i = (first - 1) & mask; i != first; i = (i - 1) & mask) {
        uint32_t at = index->slot[i].at;
        if (at && (at < index->units ? CODE_BLOCK : CODE_UNIT) == kind)
            close_gap(index, i);
    }
}

void code_index_clear(struct code_index *index, enum code_kind kind)
{
    take_kind(index, kind);
    memset(&index->list[kind], 0, sizeof index->list[kind]);
}

/* --- by page --- */

static unsigned bucket(uint64_t address, unsigned count)
{
    return (unsigned)((address >> PAGE_SHIFT) % count);
}

bool code_index_add(struct code_index *index, struct code *code)
{
    struct code_lists *list = &index->list[code_index_kind(index, code)];

    if (((uint64_t)index->used + 1) * 2 > 1ull << index->bits && !grow(index))
        return false;
    struct code **page = &list->page[bucket(code_address(code->key), CODE_PAGE_BUCKETS)];
    code->page_next = *page;
    *page = code;
    if (code->tail != CODE_NO_TAIL) {
        struct code **tail = &list->tail[bucket(code->tail, CODE_TAIL_BUCKETS)];
        code->tail_next = *tail;
        *tail = code;
    }
    put(index, (struct code_slot) {
                   .hash = code_index_hash(code->key),
                   .at = (uint32_t)((size_t)((uint8_t *)code - index->arena) / CODE_GRAIN)});
    index->used++;
    return true;
}

void code_index_remove(struct code_index *index, struct code *code)
{
    take(index, code);
    code->key = CODE_DEAD;
}

/* What drop_page is about. */
struct dropping {
    struct code_index *index;
    uint64_t page;
    code_dropped *dropped;
    void *context;
};

static void drop(const struct dropping *d, struct code *code)
{
    code_index_remove(d->index, code);
    d->dropped(d->context, code);
}

static void drop_list(const struct dropping *d, struct code **link)
{
    while (*link) {
        struct code *code = *link;
        bool dead = code->key == CODE_DEAD;
        if (!dead && (code_address(code->key) & PAGE_MASK) != d->page) {
            link = &code->page_next;
            continue;
        }
        *link = code->page_next;
        if (!dead)
            drop(d, code);
    }
}

/* They are also in the lists of their first pages, where the dead are passed over. */
static void drop_tails(const struct dropping *d, struct code **link)
{
    while (*link) {
        struct code *code = *link;
        bool dead = code->key == CODE_DEAD;
        if (!dead && code->tail != d->page) {
            link = &code->tail_next;
            continue;
        }
        *link = code->tail_next;
        if (!dead)
            drop(d, code);
    }
}

void code_index_drop_page(struct code_index *index, uint64_t page, code_dropped *dropped,
                          void *context)
{
    const struct dropping d = {index, page, dropped, context};

    for (unsigned kind = 0; kind < CODE_KINDS; kind++) {
        drop_list(&d, &index->list[kind].page[bucket(page, CODE_PAGE_BUCKETS)]);
        drop_tails(&d, &index->list[kind].tail[bucket(page, CODE_TAIL_BUCKETS)]);
    }
}
