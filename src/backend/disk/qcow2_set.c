/* See qcow2_set.h. Linear probing; removal moves later entries of the run back. */
#include "backend/disk/qcow2_set.h"

#include <errno.h>
#include <stdlib.h>

#define SLOTS_MIN 64u

static uint64_t home_of(const struct qcow2_set *set, uint64_t number)
{
    uint64_t hash = number * 0x9e3779b97f4a7c15ull;
    return (hash ^ hash >> 32) & (set->slot_count - 1);
}

/* The slot that holds the number, or the free one where it belongs. */
static uint64_t find(const struct qcow2_set *set, uint64_t number)
{
    uint64_t at = home_of(set, number);
    while (set->slots[at] && set->slots[at] != number + 1)
        at = (at + 1) & (set->slot_count - 1);
    return at;
}

static int grow(struct qcow2_set *set)
{
    struct qcow2_set bigger = {.slot_count = MAX(set->slot_count * 2, (uint64_t)SLOTS_MIN),
                               .count = set->count};
    bigger.slots = calloc(bigger.slot_count, sizeof *bigger.slots);
    if (!bigger.slots)
        return -ENOMEM;
    for (uint64_t i = 0; i < set->slot_count; i++)
        if (set->slots[i])
            bigger.slots[find(&bigger, set->slots[i] - 1)] = set->slots[i];
    free(set->slots);
    *set = bigger;
    return 0;
}

int qcow2_set_add(struct qcow2_set *set, uint64_t number)
{
    if (set->count * 2 >= set->slot_count) {
        int error = grow(set);
        if (error)
            return error;
    }
    uint64_t at = find(set, number);
    if (set->slots[at])
        return -EEXIST;
    set->slots[at] = number + 1;
    set->count++;
    return 0;
}

bool qcow2_set_has(const struct qcow2_set *set, uint64_t number)
{
    return set->slot_count && set->slots[find(set, number)];
}

void qcow2_set_remove(struct qcow2_set *set, uint64_t number)
{
    if (!qcow2_set_has(set, number))
        return;
    uint64_t mask = set->slot_count - 1, hole = find(set, number);
    set->count--;
    for (uint64_t at = (hole + 1) & mask; set->slots[at]; at = (at + 1) & mask) {
        uint64_t home = home_of(set, set->slots[at] - 1);
        /* It may move to the hole unless its home lies cyclically behind the hole. */
        if (((at - home) & mask) >= ((at - hole) & mask)) {
            set->slots[hole] = set->slots[at];
            hole = at;
        }
    }
    set->slots[hole] = 0;
}

void qcow2_set_free(struct qcow2_set *set)
{
    free(set->slots);
    *set = (struct qcow2_set) {0};
}
