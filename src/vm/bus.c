/*
 * A bus: a sorted table of ranges, read without a lock. Writers hold the mutex and make the
 * sequence number odd while they change the table; a reader whose number was odd or moved tries
 * again. Entries are read with relaxed atomics between the two fences; a torn entry is thrown away.
 */
#include "vm/bus.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "vm/device.h"

/* struct bus_range, each word an atomic of its own. */
struct slot {
    _Atomic uint64_t start, size;
    _Atomic(const struct bus_ops *) ops;
    _Atomic(void *) context;
    _Atomic(struct device *) device;
};

struct bus {
    const char *name;
    uint64_t limit;
    pthread_mutex_t lock; /* writers */
    _Atomic unsigned sequence;
    _Atomic unsigned count;
    struct slot slot[BUS_RANGES_MAX];
    _Atomic uint64_t reads, writes, unclaimed_reads, unclaimed_writes;
};

int bus_create(struct bus **out, const char *name, uint64_t limit)
{
    struct bus *bus = calloc(1, sizeof *bus);
    if (!bus)
        return -ENOMEM;
    bus->name = name;
    bus->limit = limit;
    pthread_mutex_init(&bus->lock, NULL);
    *out = bus;
    return 0;
}

void bus_destroy(struct bus *bus)
{
    if (!bus)
        return;
    pthread_mutex_destroy(&bus->lock);
    free(bus);
}

static void slot_read(struct slot *slot, struct bus_range *out)
{
    out->start = atomic_load_explicit(&slot->start, memory_order_relaxed);
    out->size = atomic_load_explicit(&slot->size, memory_order_relaxed);
    out->ops = atomic_load_explicit(&slot->ops, memory_order_relaxed);
    out->context = atomic_load_explicit(&slot->context, memory_order_relaxed);
    out->device = atomic_load_explicit(&slot->device, memory_order_relaxed);
}

static void slot_write(struct slot *slot, const struct bus_range *range)
{
    atomic_store_explicit(&slot->start, range->start, memory_order_relaxed);
    atomic_store_explicit(&slot->size, range->size, memory_order_relaxed);
    atomic_store_explicit(&slot->ops, range->ops, memory_order_relaxed);
    atomic_store_explicit(&slot->context, range->context, memory_order_relaxed);
    atomic_store_explicit(&slot->device, range->device, memory_order_relaxed);
}

/* The last slot that starts at or below the address; -1: none. */
static int slot_below(struct bus *bus, uint64_t address)
{
    unsigned low = 0, high = atomic_load_explicit(&bus->count, memory_order_relaxed);
    if (high > BUS_RANGES_MAX)
        high = BUS_RANGES_MAX;
    while (low < high) {
        unsigned middle = (low + high) / 2;
        if (atomic_load_explicit(&bus->slot[middle].start, memory_order_relaxed) <= address)
            low = middle + 1;
        else
            high = middle;
    }
    return (int)low - 1;
}

/* Finds the range of the address. Its acquire fence pairs with the release in write_end. */
static bool lookup(struct bus *bus, uint64_t address, struct bus_range *out)
{
    for (;;) {
        unsigned before = atomic_load_explicit(&bus->sequence, memory_order_acquire);
        if (before & 1)
            continue;
        int i = slot_below(bus, address);
        bool found = i >= 0;
        if (found) {
            slot_read(&bus->slot[i], out);
            found = address - out->start < out->size;
        }
        atomic_thread_fence(memory_order_acquire);
        if (atomic_load_explicit(&bus->sequence, memory_order_relaxed) == before)
            return found;
    }
}

static void write_begin(struct bus *bus)
{
    atomic_fetch_add_explicit(&bus->sequence, 1, memory_order_relaxed);
    atomic_thread_fence(memory_order_release);
}

static void write_end(struct bus *bus)
{
    atomic_fetch_add_explicit(&bus->sequence, 1, memory_order_release);
}

/* Writer's lock held. The position where the range belongs, or -errno. */
static int insert_position(struct bus *bus, const struct bus_range *range)
{
    unsigned count = atomic_load_explicit(&bus->count, memory_order_relaxed);
    if (count == BUS_RANGES_MAX)
        return -ENOSPC;
    int position = slot_below(bus, range->start) + 1;
    struct bus_range other;
    if (position > 0) {
        slot_read(&bus->slot[position - 1], &other);
        if (ranges_overlap(range->start, range->size, other.start, other.size))
            return -EEXIST;
    }
    if ((unsigned)position < count) {
        slot_read(&bus->slot[position], &other);
        if (ranges_overlap(range->start, range->size, other.start, other.size))
            return -EEXIST;
    }
    return position;
}

int bus_add(struct bus *bus, const struct bus_range *range)
{
    uint64_t last;
    if (range->size == 0 || add_overflows(range->start, range->size - 1, &last) ||
        (bus->limit && last >= bus->limit))
        return -ERANGE;
    pthread_mutex_lock(&bus->lock);
    int position = insert_position(bus, range);
    if (position >= 0) {
        write_begin(bus);
        unsigned count = atomic_load_explicit(&bus->count, memory_order_relaxed);
        for (unsigned i = count; i > (unsigned)position; i--) {
            struct bus_range moved;
            slot_read(&bus->slot[i - 1], &moved);
            slot_write(&bus->slot[i], &moved);
        }
        slot_write(&bus->slot[position], range);
        atomic_store_explicit(&bus->count, count + 1, memory_order_relaxed);
        write_end(bus);
    }
    pthread_mutex_unlock(&bus->lock);
    return position < 0 ? position : 0;
}

int bus_remove(struct bus *bus, uint64_t start)
{
    pthread_mutex_lock(&bus->lock);
    int i = slot_below(bus, start);
    bool found = i >= 0 && atomic_load_explicit(&bus->slot[i].start, memory_order_relaxed) == start;
    if (found) {
        write_begin(bus);
        unsigned count = atomic_load_explicit(&bus->count, memory_order_relaxed) - 1;
        for (unsigned at = (unsigned)i; at < count; at++) {
            struct bus_range moved;
            slot_read(&bus->slot[at + 1], &moved);
            slot_write(&bus->slot[at], &moved);
        }
        atomic_store_explicit(&bus->count, count, memory_order_relaxed);
        write_end(bus);
    }
    pthread_mutex_unlock(&bus->lock);
    return found ? 0 : -ENOENT;
}

static void count(_Atomic uint64_t *counter)
{
    atomic_fetch_add_explicit(counter, 1, memory_order_relaxed);
}

static uint64_t range_read(const struct bus_range *range, uint64_t address, unsigned size)
{
    struct device *device = range->device;
    if (device) {
        count(&device->reads);
        pthread_mutex_lock(&device->lock);
    }
    uint64_t value =
        range->ops->read ? range->ops->read(range->context, address - range->start, size) : ~0ull;
    if (device)
        pthread_mutex_unlock(&device->lock);
    return value & size_mask(size);
}

static void range_write(const struct bus_range *range, uint64_t address, unsigned size,
                        uint64_t value)
{
    struct device *device = range->device;
    if (device) {
        count(&device->writes);
        pthread_mutex_lock(&device->lock);
    }
    if (range->ops->write)
        range->ops->write(range->context, address - range->start, size, value & size_mask(size));
    if (device)
        pthread_mutex_unlock(&device->lock);
}

uint64_t bus_read(struct bus *bus, uint64_t address, unsigned size)
{
    struct bus_range range;
    count(&bus->reads);
    bool found = lookup(bus, address, &range);
    if (found && range_fits(address - range.start, size, range.size))
        return range_read(&range, address, size);
    if (!found && size == 1) {
        count(&bus->unclaimed_reads);
        return 0xff;
    }
    /* Nobody there, or it crosses an end: byte by byte, each claimed or not. */
    uint64_t value = 0;
    bool claimed = false;
    for (unsigned i = 0; i < size; i++) {
        uint64_t byte = 0xff;
        if (lookup(bus, address + i, &range)) {
            byte = range_read(&range, address + i, 1);
            claimed = true;
        }
        value |= byte << (i * 8);
    }
    if (!claimed)
        count(&bus->unclaimed_reads);
    return value;
}

void bus_write(struct bus *bus, uint64_t address, unsigned size, uint64_t value)
{
    struct bus_range range;
    count(&bus->writes);
    bool found = lookup(bus, address, &range);
    if (found && range_fits(address - range.start, size, range.size)) {
        range_write(&range, address, size, value);
        return;
    }
    bool claimed = false;
    for (unsigned i = 0; i < size; i++) {
        if (lookup(bus, address + i, &range)) {
            range_write(&range, address + i, 1, value >> (i * 8));
            claimed = true;
        }
    }
    if (!claimed)
        count(&bus->unclaimed_writes);
}

void bus_counters(const struct bus *bus, struct bus_counters *out)
{
    out->reads = atomic_load_explicit(&bus->reads, memory_order_relaxed);
    out->writes = atomic_load_explicit(&bus->writes, memory_order_relaxed);
    out->unclaimed_reads = atomic_load_explicit(&bus->unclaimed_reads, memory_order_relaxed);
    out->unclaimed_writes = atomic_load_explicit(&bus->unclaimed_writes, memory_order_relaxed);
}
