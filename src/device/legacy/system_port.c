/*
 * System control port A and the POST port (ICH9 data sheet, sections 13.7.4 and 5.6). On vCPU
 * threads, with the device's lock held.
 *
 * Deviation: the A20 bit is kept and has no effect; address line 20 is never masked.
 */
#include "device/legacy/system_port.h"

#include <errno.h>

#include "device/legacy/legacy_io.h"
#include "vm/machine.h"
#include "vm/state.h"

#define PORT_A_RESET 0x01
#define PORT_A_A20   0x02

struct system_port {
    struct device device;
    uint8_t port_a, post;
};

static uint64_t port_a_read(void *context, uint64_t offset, unsigned size)
{
    struct system_port *s = context;
    (void)offset, (void)size;
    return s->port_a;
}

/* The reset happens on the bit's change from 0 to 1. */
static void port_a_write(void *context, uint64_t offset, unsigned size, uint64_t value)
{
    struct system_port *s = context;
    (void)offset, (void)size;
    if (value & ~(uint64_t)s->port_a & PORT_A_RESET)
        machine_request_reset(s->device.machine);
    s->port_a = value & (PORT_A_RESET | PORT_A_A20);
}

static uint64_t post_read(void *context, uint64_t offset, unsigned size)
{
    struct system_port *s = context;
    (void)offset, (void)size;
    return s->post;
}

static void post_write(void *context, uint64_t offset, unsigned size, uint64_t value)
{
    struct system_port *s = context;
    (void)offset, (void)size;
    s->post = (uint8_t)value;
}

static const struct bus_ops port_a_ops = {port_a_read, port_a_write};
static const struct bus_ops post_ops = {post_read, post_write};
static const struct legacy_range system_port_ranges[] = {
    {0x80, 1, &post_ops},
    {0x92, 1, &port_a_ops},
};

static void system_port_reset(struct device *device)
{
    struct system_port *s = container_of(device, struct system_port, device);
    s->port_a = PORT_A_A20;
    s->post = 0;
}

static int system_port_create(struct device *device, const void *config, struct err *err)
{
    (void)config;
    system_port_reset(device);
    return legacy_io_add(device, device->machine->pio, system_port_ranges,
                         ARRAY_COUNT(system_port_ranges), true, err);
}

static void system_port_destroy(struct device *device)
{
    legacy_io_remove(device->machine->pio, system_port_ranges, ARRAY_COUNT(system_port_ranges));
}

static void system_port_save(struct device *device, struct state_writer *w)
{
    struct system_port *s = container_of(device, struct system_port, device);
    state_put_field(w, s, port_a);
    state_put_field(w, s, post);
}

static int system_port_load(struct device *device, struct state_reader *r, struct err *err)
{
    struct system_port *s = container_of(device, struct system_port, device);
    (void)err;
    state_get_field(r, s, port_a);
    state_get_field(r, s, post);
    return 0;
}

const struct device_class system_port_class = {
    .name = "system-port",
    .size = sizeof(struct system_port),
    .create = system_port_create,
    .reset = system_port_reset,
    .save = system_port_save,
    .load = system_port_load,
    .destroy = system_port_destroy,
};
