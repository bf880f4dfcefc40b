/*
 * Claiming a legacy device's fixed address ranges: all of a table or none. Loop thread.
 */
#ifndef PARAT_DEVICE_LEGACY_IO_H
#define PARAT_DEVICE_LEGACY_IO_H

#include <stdatomic.h>

#include "vm/bus.h"
#include "vm/device.h"

struct legacy_range {
    uint64_t start, size;
    const struct bus_ops *ops;
};

/*
 * Adds the ranges with the device as context. `locked`: the bus takes the device's lock around the
 * handlers; a device that says no counts its accesses itself (legacy_io_count). -errno with a
 * sentence, nothing added.
 */
int legacy_io_add(struct device *device, struct bus *bus, const struct legacy_range *ranges,
                  unsigned count, bool locked, struct err *err) MUST_USE;
void legacy_io_remove(struct bus *bus, const struct legacy_range *ranges, unsigned count);

static inline void legacy_io_count_read(struct device *device)
{
    atomic_fetch_add_explicit(&device->reads, 1, memory_order_relaxed);
}

static inline void legacy_io_count_write(struct device *device)
{
    atomic_fetch_add_explicit(&device->writes, 1, memory_order_relaxed);
}

#endif
