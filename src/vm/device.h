/*
 * The device contract: a class of operations and an instance. The composition root lists all
 * classes in one table and creates the instances in a fixed order; reset goes in that order,
 * teardown in reverse.
 *
 * A device's register handlers run on vCPU threads, its timers, messages and backend completions on
 * the loop thread or a worker. `lock` guards its state: the bus takes it around register handlers;
 * timers, messages and completions take it themselves. Never wait for a vCPU or for the loop with
 * it held.
 *
 * Lock order in a VM (outer first): device.lock -> irq_lines -> chip (IOAPIC, 8259) -> engine.
 * A device may take another device's lock only upward in the PCI tree (function -> its bridge:
 * never).
 */
#ifndef PARAT_VM_DEVICE_H
#define PARAT_VM_DEVICE_H

#include <pthread.h>
#include <stdint.h>

#include "base/bits.h"
#include "base/err.h"
#include "base/list.h"
#include "base/log.h"

struct machine;
struct device;
struct state_reader;
struct state_writer;

struct device_class {
    const char *name; /* "virtio-blk"; also the last part of the path */
    size_t size;      /* of the instance, whose first member is struct device */
    /*
     * Registers bus ranges, lines, timers. config belongs to the class and need not outlive the
     * call. 0, or -errno with a sentence; destroy is not called then: it cleans up after itself.
     */
    int (*create)(struct device *device, const void *config, struct err *err);
    /* To the state after power-on. Loop thread, no vCPU runs, lock held by the caller. */
    void (*reset)(struct device *device);
    /* Loop thread, no vCPU runs, backends quiet (see quiesce), lock held by the caller. */
    void (*save)(struct device *device, struct state_writer *w);
    int (*load)(struct device *device, struct state_reader *r, struct err *err);
    /* Loop thread, no vCPU exists any more. Ends backend work that is in flight. */
    void (*destroy)(struct device *device);
    /* Waits until no backend request is in flight. NULL: has none. Loop thread, lock not held. */
    void (*quiesce)(struct device *device);
};

struct device {
    const struct device_class *class;
    struct machine *machine;
    char path[64]; /* stable key in saved state: "legacy/serial0", "pci/00:03.0/virtio-blk" */
    pthread_mutex_t lock;
    struct list link; /* in the machine, in order of creation */
    struct log_limit log_limit;
    _Atomic uint64_t reads, writes; /* guest register accesses, counted by the bus */
    _Atomic uint64_t guest_errors;  /* things that a sane guest does not do */
};

/* Counts a guest's mistake and logs it, rate-limited, with the device's path before it. */
void device_guest_error(struct device *device, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

#endif
