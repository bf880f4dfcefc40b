/*
 * A machine for device tests: engine fake, a clock that moves only when told, no vCPU threads.
 * Register accesses go through the buses as a vCPU's would.
 */
#ifndef PARAT_TESTS_RIG_H
#define PARAT_TESTS_RIG_H

#include "test.h"

#include <stdlib.h>
#include <string.h>

#include "engine/fake/fake.h"
#include "vm/machine.h"
#include "vm/machine_int.h"
#include "vm/state.h"

static inline struct machine *rig_create(uint64_t ram_size, unsigned vcpu_count)
{
    struct loop *loop;
    struct machine *machine;
    struct err err = {{0}};
    assert_int_equal(loop_create(&loop), 0);
    struct machine_config config = {.name = "rig",
                                    .vcpu_count = vcpu_count,
                                    .ram_size = ram_size,
                                    .engine = &engine_fake,
                                    .loop = loop};
    assert_int_equal(machine_create(&machine, &config, &err), 0);
    vm_clock_destroy(machine->clock);
    assert_int_equal(vm_clock_create_fake(&machine->clock), 0);
    return machine;
}

static inline void rig_destroy(struct machine *machine)
{
    struct loop *loop = machine->loop;
    machine_destroy(machine);
    loop_destroy(loop);
}

static inline struct device *rig_add(struct machine *machine, const struct device_class *class,
                                     const void *config)
{
    struct device *device = NULL;
    struct err err = {{0}};
    assert_int_equal(machine_add_device(machine, class, class->name, config, &device, &err), 0);
    device->class->reset(device);
    return device;
}

static inline uint32_t rig_in(struct machine *machine, uint16_t port, unsigned size)
{
    return (uint32_t)bus_read(machine->pio, port, size);
}

static inline void rig_out(struct machine *machine, uint16_t port, unsigned size, uint32_t value)
{
    bus_write(machine->pio, port, size, value);
}

static inline uint8_t rig_inb(struct machine *machine, uint16_t port)
{
    return (uint8_t)rig_in(machine, port, 1);
}

static inline void rig_outb(struct machine *machine, uint16_t port, uint8_t value)
{
    rig_out(machine, port, 1, value);
}

static inline bool rig_line(struct machine *machine, unsigned line)
{
    return irq_lines_levels(machine->irq) >> line & 1;
}

/* What was asked of the machine since the last call: enum machine_request. */
static inline int rig_take_request(struct machine *machine)
{
    int request = atomic_exchange(&machine->internal->request, REQUEST_NONE);
    loop_message_cancel(machine->loop, &machine->internal->message.message);
    return request;
}

static inline void rig_save(struct device *device, struct state_writer *w)
{
    state_writer_init(w);
    state_begin(w, device->path);
    device->class->save(device, w);
    state_end(w);
    assert_int_equal(state_writer_result(w), 0);
}

static inline int rig_load(struct device *device, const void *data, size_t size)
{
    struct state_reader r;
    struct err err = {{0}};
    size_t offset = 0;
    assert_int_equal(state_next_section(data, size, &offset, &r), 1);
    int error = device->class->load(device, &r, &err);
    return error ? error : state_reader_end(&r, &err);
}

/* Saves one device, loads it into a fresh one, and asks that this one saves the same bytes. */
static inline void rig_assert_round_trip(struct device *from, struct device *to)
{
    struct state_writer a, b;
    rig_save(from, &a);
    assert_int_equal(rig_load(to, a.data, a.size), 0);
    rig_save(to, &b);
    assert_int_equal(a.size, b.size);
    assert_memory_equal(a.data, b.data, a.size);
    state_writer_free(&a);
    state_writer_free(&b);
}

static inline uint64_t rig_random(uint64_t *seed)
{
    *seed = *seed * 6364136223846793005ull + 1442695040888963407ull;
    return *seed >> 33 ^ *seed << 7;
}

/*
 * count random accesses to [start, start + size) of a bus, with the clock moving now and then. What
 * is asked is that nothing crashes or hangs (the sanitizers of the unit suite look on).
 */
static inline void rig_fuzz(struct machine *machine, struct bus *bus, uint64_t start, unsigned size,
                            unsigned count)
{
    uint64_t seed = 42 + start;
    for (unsigned i = 0; i < count; i++) {
        unsigned width = 1u << rig_random(&seed) % 3;
        uint64_t address = start + rig_random(&seed) % size, value = rig_random(&seed);
        if (rig_random(&seed) % 3)
            bus_write(bus, address, width, value & size_mask(width));
        else
            bus_read(bus, address, width);
        if (i % 16 == 0)
            vm_clock_fake_advance(machine->clock, rig_random(&seed) % 2000000);
        rig_take_request(machine);
    }
}

#endif
