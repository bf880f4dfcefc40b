/*
 * A bus: sorted, non-overlapping address ranges and the devices behind them. Each VM has two, one
 * for port I/O (65,536 ports) and one for MMIO.
 *
 * Lookup takes no lock (a sequence counter over a fixed table), so it is safe on the exit path
 * while a BAR moves. A dispatched access runs its handler on the vCPU's thread with the owning
 * device's lock held.
 */
#ifndef PARAT_VM_BUS_H
#define PARAT_VM_BUS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/bits.h"
#include "base/err.h"

struct bus;
struct device;

#define BUS_RANGES_MAX 256

/*
 * size is 1, 2, 4 or 8 (port I/O: up to 4); offset is from the range's start; offset + size never
 * passes the range's end. A read's value is cut to size by the bus. A device that does not know a
 * register returns what the hardware would (all ones unless the manual says otherwise).
 */
struct bus_ops {
    uint64_t (*read)(void *context, uint64_t offset, unsigned size);
    void (*write)(void *context, uint64_t offset, unsigned size, uint64_t value);
};

struct bus_range {
    uint64_t start;
    uint64_t size;
    const struct bus_ops *ops;
    void *context;
    struct device *device; /* whose lock is taken and whose counter counts; NULL: none */
};

/* limit: the address space's size in bytes (0: 2^64). */
int bus_create(struct bus **out, const char *name, uint64_t limit) MUST_USE;
void bus_destroy(struct bus *bus);

/* -EEXIST on overlap, -ERANGE outside the address space, -ENOSPC when the table is full. Any
 * thread. */
int bus_add(struct bus *bus, const struct bus_range *range) MUST_USE;
/* Removes the range that starts there; -ENOENT. An access in flight may still reach the handler. */
int bus_remove(struct bus *bus, uint64_t start);

/*
 * One guest access of 1 to 8 bytes. What nobody claims reads as all ones, swallows writes and is
 * counted. An access that crosses a range's end is split into bytes.
 */
uint64_t bus_read(struct bus *bus, uint64_t address, unsigned size);
void bus_write(struct bus *bus, uint64_t address, unsigned size, uint64_t value);

struct bus_counters {
    uint64_t reads, writes;                     /* all */
    uint64_t unclaimed_reads, unclaimed_writes; /* of them, by nobody */
};
void bus_counters(const struct bus *bus, struct bus_counters *out);

#endif
