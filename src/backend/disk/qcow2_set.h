/* A set of numbers: open addressing, doubles when half full. The owner's lock guards it. */
#ifndef PARAT_BACKEND_DISK_QCOW2_SET_H
#define PARAT_BACKEND_DISK_QCOW2_SET_H

#include <stdbool.h>
#include <stdint.h>

#include "base/bits.h"

/* All zeroes is the empty set. */
struct qcow2_set {
    uint64_t *slots; /* number + 1, or 0 */
    uint64_t slot_count, count;
};

/* 0; -EEXIST when it is there already; -ENOMEM. number < UINT64_MAX. */
int qcow2_set_add(struct qcow2_set *set, uint64_t number) MUST_USE;
bool qcow2_set_has(const struct qcow2_set *set, uint64_t number);
void qcow2_set_remove(struct qcow2_set *set, uint64_t number);
void qcow2_set_free(struct qcow2_set *set);

#endif
