/* Claiming a legacy device's address ranges (legacy_io.h). Loop thread. */
#include "device/legacy/legacy_io.h"

void legacy_io_remove(struct bus *bus, const struct legacy_range *ranges, unsigned count)
{
    while (count-- > 0)
        bus_remove(bus, ranges[count].start);
}

int legacy_io_add(struct device *device, struct bus *bus, const struct legacy_range *ranges,
                  unsigned count, bool locked, struct err *err)
{
    for (unsigned i = 0; i < count; i++) {
        struct bus_range range = {
            .start = ranges[i].start,
            .size = ranges[i].size,
            .ops = ranges[i].ops,
            .context = device,
            .device = locked ? device : NULL,
        };
        int error = bus_add(bus, &range);
        if (error) {
            legacy_io_remove(bus, ranges, i);
            return err_set(err, -error, "%s: address 0x%llx is already taken", device->path,
                           (unsigned long long)ranges[i].start);
        }
    }
    return 0;
}
