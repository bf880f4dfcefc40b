/*
 * The machine: one VM with its memory, buses, interrupt lines, clock, devices, engine and vCPU
 * threads. Everything hangs off it; there may be several in one process.
 *
 * Threads: the loop thread creates, runs, resets and destroys it; each vCPU has a thread; devices
 * reach it from any of them through the functions marked "any thread".
 */
#ifndef PARAT_VM_MACHINE_H
#define PARAT_VM_MACHINE_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/bits.h"
#include "base/err.h"
#include "base/list.h"
#include "base/loop.h"
#include "vm/bus.h"
#include "vm/clock.h"
#include "vm/device.h"
#include "vm/engine.h"
#include "vm/irq.h"
#include "vm/memory.h"

/* Why a machine ended. */
enum machine_end {
    MACHINE_END_NONE,
    MACHINE_END_POWEROFF,
    MACHINE_END_RESET, /* with no_reboot */
    MACHINE_END_DEBUG_EXIT,
    MACHINE_END_TRIPLE_FAULT,
    MACHINE_END_USER, /* quit from the console, second SIGTERM */
    MACHINE_END_HOST_ERROR,
};
const char *machine_end_name(enum machine_end end); /* "poweroff", "debug-exit"… */

struct machine;

struct emulator_code;
struct sandbox;

struct machine_config {
    const char *name;
    unsigned vcpu_count;
    uint64_t ram_size;
    uint64_t tsc_hz;                 /* 0: the engine chooses */
    const struct engine_ops *engine; /* chosen and probed by the caller */
    struct engine_code_config code;
    const struct x86_cpuid_table *cpuid;
    bool reset_on_triple_fault;
    bool no_reboot;
    struct loop *loop;
    const struct sandbox *sandbox; /* for the vCPUs' threads and the loop's; NULL: none */
    /*
     * Puts kernel, tables and initrd into RAM and sets vCPU 0's state (the reset state on entry).
     * Called before the first run and at each reset, with no vCPU running. May be NULL.
     */
    int (*load)(struct machine *machine, void *context, struct x86_state *bsp, struct err *err);
    void *load_context;
};

struct vcpu {
    struct machine *machine;
    unsigned index;
    struct engine_vcpu *engine;
    struct emulator *emulator; /* NULL until an instruction needs it */
    pthread_t thread;
    bool thread_started;
};

/* Where RAM lies: below 4 GiB up to the PCI hole, the rest from 4 GiB on. */
#define MACHINE_LOW_RAM_MAX 0xb0000000ull /* ECAM at this address, then 32-bit BARs */
#define MACHINE_ECAM_BASE   0xb0000000ull
#define MACHINE_ECAM_SIZE   0x10000000ull /* 256 buses */
#define MACHINE_PCI32_BASE  0xc0000000ull
#define MACHINE_PCI32_END   0xfec00000ull
#define MACHINE_IOAPIC_BASE 0xfec00000ull
#define MACHINE_HIGH_RAM    0x100000000ull
#define MACHINE_PCI64_SIZE  0x1000000000ull /* 64 GiB window above high RAM, 1 GiB aligned */

/* What devices use. Fields are set before the first device is created and constant after that. */
struct machine {
    struct machine_config config;
    struct guest_memory *memory;
    struct bus *pio, *mmio;
    struct irq_lines *irq;
    struct vm_clock *clock;
    struct loop *loop;
    const struct engine_ops *engine;
    unsigned capabilities; /* the engine's */
    struct engine_vm *engine_vm;
    struct emulator_code *emulator_code; /* NULL: the engine executes everything itself */
    struct vcpu vcpu[ENGINE_VCPUS_MAX];
    struct list devices;
    uint64_t pci64_base; /* of the 64-bit window */

    /* Set by the interrupt chips when they are created; NULL without them. */
    void (*chip_eoi)(void *context, uint8_t vector); /* IOAPIC */
    void *chip_eoi_context;
    uint8_t (*chip_acknowledge)(void *context); /* 8259 pair */
    void *chip_acknowledge_context;
    /* The power button; set by the ACPI device. Loop thread. */
    void (*power_button)(void *context);
    void *power_button_context;

    struct machine_int *internal;
};

int machine_create(struct machine **out, const struct machine_config *config,
                   struct err *err) MUST_USE;
/* Ends threads, destroys devices in reverse order, then everything else. NULL is fine. */
void machine_destroy(struct machine *machine);

/* Creates a device at the end of the order. path is copied. The result belongs to the machine. */
int machine_add_device(struct machine *machine, const struct device_class *class, const char *path,
                       const void *config, struct device **out, struct err *err) MUST_USE;
struct device *machine_find_device(struct machine *machine, const char *path);

/*
 * Creates the vCPUs and puts everything into the reset state (boot loader included). machine_run
 * and machine_load do it when it was not done. Loop thread.
 */
int machine_start(struct machine *machine, struct err *err) MUST_USE;
/*
 * Runs until the end, from the reset state or from what machine_load put in: starts the threads,
 * serves the loop. Returns why it ended; *err has the sentence for MACHINE_END_HOST_ERROR. The
 * threads are gone then, the state is still there: it can be saved. Once a machine.
 */
enum machine_end machine_run(struct machine *machine, struct err *err);
/* The value the guest wrote to the debug-exit port. */
uint32_t machine_debug_exit_value(const struct machine *machine);
/* clock_host_ns when the first vCPU entered the guest; 0 before. */
uint64_t machine_first_run_ns(const struct machine *machine);

/* Requests; any thread, also from register handlers. The first one wins until it was served. */
void machine_request_reset(struct machine *machine);
void machine_request_end(struct machine *machine, enum machine_end end);
void machine_request_debug_exit(struct machine *machine, uint32_t value);
void machine_request_host_error(struct machine *machine, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
/* Presses the ACPI power button; without one: ends with USER. Loop thread. */
void machine_press_power_button(struct machine *machine);

/* Sends a message-signalled interrupt. Any thread. */
static inline void machine_send_msi(struct machine *machine, uint64_t address, uint32_t data)
{
    machine->engine->send_msi(machine->engine_vm, address, data);
}

/* Loop thread: no vCPU runs between the two; the clock stands. Nested calls count. */
void machine_pause(struct machine *machine);
void machine_resume(struct machine *machine);

/*
 * Whole-VM state (devices, vCPUs, engine, not RAM). The machine is paused, has not run yet, or has
 * ended; -EBUSY while a request to it waits for the loop. load wants a machine with the same
 * configuration, whose RAM the caller has filled after machine_start, and each of its sections
 * once; on failure the machine must be destroyed.
 */
struct state_writer;
int machine_save(struct machine *machine, struct state_writer *w, struct err *err) MUST_USE;
int machine_load(struct machine *machine, const void *data, size_t size, struct err *err) MUST_USE;

struct machine_counters {
    struct engine_vcpu_counters vcpu; /* summed */
    struct bus_counters pio, mmio;
    uint64_t resets;
};
void machine_counters(struct machine *machine, struct machine_counters *out);

#endif
