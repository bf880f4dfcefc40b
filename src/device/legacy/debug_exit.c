/*
 * The debug-exit port (debug_exit.h). It has no state: the machine keeps what was written. The
 * handler runs on the vCPU's thread.
 */
#include "device/legacy/debug_exit.h"

#include <errno.h>

#include "vm/bus.h"
#include "vm/machine.h"

struct debug_exit {
    struct device device;
    uint16_t port;
};

static uint64_t debug_exit_read(void *context, uint64_t offset, unsigned size)
{
    (void)context, (void)offset;
    return size_mask(size);
}

static void debug_exit_write(void *context, uint64_t offset, unsigned size, uint64_t value)
{
    struct debug_exit *d = context;
    (void)offset;
    machine_request_debug_exit(d->device.machine, (uint32_t)(value & size_mask(size)));
}

static const struct bus_ops debug_exit_ops = {debug_exit_read, debug_exit_write};

/* Four ports wide, so that a 4-byte write arrives whole; narrower where a neighbour is in the way.
 */
static int debug_exit_create(struct device *device, const void *config, struct err *err)
{
    struct debug_exit *d = container_of(device, struct debug_exit, device);
    const struct debug_exit_config *c = config;
    d->port = c->port;
    int error = -EEXIST;
    for (unsigned size = 4; size > 0 && error; size /= 2) {
        struct bus_range range = {c->port, size, &debug_exit_ops, d, device};
        error = bus_add(device->machine->pio, &range);
    }
    if (error)
        return err_set(err, -error, "--debug-exit 0x%x: this port belongs to another device",
                       c->port);
    return 0;
}

static void debug_exit_destroy(struct device *device)
{
    struct debug_exit *d = container_of(device, struct debug_exit, device);
    bus_remove(device->machine->pio, d->port);
}

static void debug_exit_reset(struct device *device)
{
    (void)device;
}

static void debug_exit_save(struct device *device, struct state_writer *w)
{
    (void)device, (void)w;
}

static int debug_exit_load(struct device *device, struct state_reader *r, struct err *err)
{
    (void)device, (void)r, (void)err;
    return 0;
}

const struct device_class debug_exit_class = {
    .name = "debug-exit",
    .size = sizeof(struct debug_exit),
    .create = debug_exit_create,
    .reset = debug_exit_reset,
    .save = debug_exit_save,
    .load = debug_exit_load,
    .destroy = debug_exit_destroy,
};
