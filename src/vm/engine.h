/*
 * The engine contract: the only seam between a machine and what executes its vCPUs. No constant of
 * KVM, SVM or VMX crosses it.
 *
 * Threads: probe, vm_* and vcpu_create/destroy are called on the loop thread; vcpu_run only on that
 * vCPU's own thread; get/set state on the loop thread while no vCPU runs, or on the vCPU's thread
 * between runs; everything marked "any thread" also from device handlers with locks held, so it
 * must not wait for a vCPU.
 */
#ifndef PARAT_VM_ENGINE_H
#define PARAT_VM_ENGINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/addr.h"
#include "base/bits.h"
#include "base/err.h"
#include "x86/cpuid.h"
#include "x86/state.h"

struct vm_clock;
struct engine_vm;
struct engine_vcpu;
struct sandbox;

#define ENGINE_VCPUS_MAX 64

enum engine_verdict { ENGINE_UNUSABLE, ENGINE_SLOW, ENGINE_USABLE };

struct engine_probe {
    enum engine_verdict verdict;
    char reason[256];          /* "because…", for the user; empty when there is nothing to say */
    char remedy[256];          /* what the user can do about it; empty: nothing */
    double user_ns, kernel_ns; /* measured time per instruction; 0: not measured */
    unsigned rank;             /* `auto` takes the usable engine with the highest rank */
};

enum engine_capability {
    ENGINE_CAP_DIRTY_LOG = 1 << 0,
    ENGINE_CAP_DOORBELL = 1 << 1,
    ENGINE_CAP_TSC_SCALING = 1 << 2,
    ENGINE_CAP_COUNTS_INSTRUCTIONS = 1 << 3,
    ENGINE_CAP_CODE_MODES = 1 << 4, /* heeds struct engine_code_config */
};

/* How an engine that executes instructions in software does so. */
enum engine_code_mode {
    ENGINE_CODE_TRANSLATE, /* by host code made from them: the fastest way */
    ENGINE_CODE_INTERPRET, /* one after the other */
    ENGINE_CODE_LOCKSTEP,  /* both; a difference ends the VM with VM_EXIT_ERROR. Slow, a test. */
};
#define ENGINE_CODE_CACHE_DEFAULT (64ull << 20)
#define ENGINE_CODE_CACHE_MIN     (1ull << 20)
#define ENGINE_CODE_CACHE_MAX     (1ull << 30)

struct engine_code_config {
    enum engine_code_mode mode;
    uint64_t cache_size; /* bytes of translated code that each vCPU keeps; 0: the default */
};

/* What run returns; it and what it points to are valid until the next call. An engine that executes
 * instructions itself reaches the buses by its callbacks in the middle of an instruction and never
 * returns IO, MMIO, MSR, CPUID or EMULATE. */
enum vm_exit_kind {
    VM_EXIT_INTERRUPTED, /* kicked, or a signal: look at requests and call run again */
    VM_EXIT_IO,
    VM_EXIT_MMIO,
    VM_EXIT_EMULATE,  /* execute the one instruction at rip with x86/ */
    VM_EXIT_HLT,      /* only engines without a local APIC */
    VM_EXIT_SHUTDOWN, /* triple fault */
    VM_EXIT_MSR,
    VM_EXIT_CPUID,
    VM_EXIT_DEBUG,
    VM_EXIT_ERROR, /* the engine cannot go on; error and text tell why */
    VM_EXIT_KIND_COUNT
};

struct vm_exit {
    enum vm_exit_kind kind;
    union {
        struct {
            uint16_t port;
            uint8_t size; /* 1, 2 or 4 */
            bool write;
            uint32_t count; /* of repeated accesses in data */
            uint8_t *data;  /* size * count bytes; the machine fills it on a read */
        } io;
        struct {
            gpa_t address;
            uint8_t size; /* 1 to 8 */
            bool write;
            uint8_t *data; /* size bytes; the machine fills it on a read */
        } mmio;
        struct {
            gpa_t address;
            bool write;
        } emulate;
        struct {
            uint32_t index;
            bool write;
            uint64_t value; /* the machine fills it on a read */
            bool fault;     /* the machine sets it: #GP */
        } msr;
        struct {
            uint32_t leaf, subleaf;
            uint32_t regs[4]; /* EAX EBX ECX EDX, filled by the machine */
        } cpuid;
        struct {
            int error;
            char text[200];
        } error;
    };
};

/*
 * What the machine gives an engine. All may be called on any vCPU thread inside vcpu_run; none
 * waits for a vCPU. context is the first argument.
 */
struct engine_callbacks {
    uint64_t (*mmio_read)(void *context, gpa_t address, unsigned size);
    void (*mmio_write)(void *context, gpa_t address, unsigned size, uint64_t value);
    uint32_t (*pio_read)(void *context, uint16_t port, unsigned size);
    void (*pio_write)(void *context, uint16_t port, unsigned size, uint32_t value);
    /* The guest ended the level-triggered interrupt `vector`: IOAPIC looks which pins it was. */
    void (*eoi)(void *context, uint8_t vector);
    /* Interrupt acknowledge cycle of the 8259 pair, when the CPU takes an external interrupt. */
    uint8_t (*extint_acknowledge)(void *context);
};

struct engine_vm_config {
    unsigned vcpu_count; /* 1 to ENGINE_VCPUS_MAX; vCPU i has APIC id i */
    struct vm_clock *clock;
    uint64_t tsc_hz;                     /* 0: the engine chooses */
    const struct x86_cpuid_table *cpuid; /* what CPUID answers; outlives the VM */
    struct engine_code_config code;      /* with ENGINE_CAP_CODE_MODES */
    const struct engine_callbacks *callbacks;
    void *context;
    const struct sandbox *sandbox; /* for threads of the engine's own, or NULL */
};

enum mem_protection { MEM_PROT_NONE = 0, MEM_PROT_READ = 1, MEM_PROT_WRITE = 2, MEM_PROT_EXEC = 4 };

/* A piece of guest-physical address space backed by host memory. */
struct engine_slot {
    gpa_t start;
    uint64_t size; /* whole pages */
    uint8_t *hva;
    unsigned protection; /* enum mem_protection; a write to a read-only slot goes to mmio_write */
};

/* The VM-wide state that belongs to the engine. */
struct engine_vm_state {
    uint64_t tsc_hz;
    uint64_t clock_ns; /* VM time at which tsc was read */
    uint64_t tsc;      /* of vCPU 0 at that time */
};

/* Of ENGINE_CODE_LOCKSTEP: what was compared. */
struct engine_lockstep_counters {
    uint64_t units, instructions; /* checked */
    uint64_t unchecked;           /* instructions that could only be executed once */
    uint64_t retries;             /* differences that went away when both ran again */
    uint64_t divergences;
};

/* Of an engine with a software TLB; read when the vCPU has stopped. */
struct engine_tlb_counters {
    uint64_t fills;   /* misses in the tables that are probed first */
    uint64_t walks;   /* ... that the second level did not know either */
    uint64_t flushes; /* of more than a page; also switches of the address space */
};

/* Of an engine that translates code; read when the vCPU has stopped. */
struct engine_code_counters {
    uint64_t decoded;                /* instructions, for the interpreter */
    uint64_t units, instructions;    /* translated */
    uint64_t bytes, limit;           /* of host code: now, and at most */
    uint64_t resets;                 /* everything was dropped, perhaps because it was full */
    uint64_t dropped;                /* units whose guest code was written to */
    uint64_t entries;                /* times that host code was entered by the dispatcher */
    uint64_t lookups;                /* jumps that the jump cache did not know */
    uint64_t handlers, probe_misses; /* calls of the interpreter for one instruction: what is not
                                        translated, and memory that the TLB did not have */
};

struct engine_vcpu_counters {
    uint64_t exits[VM_EXIT_KIND_COUNT]; /* also those served by callbacks, by their kind */
    uint64_t instructions;              /* valid with ENGINE_CAP_COUNTS_INSTRUCTIONS */
    uint64_t interrupts;                /* delivered to the guest */
    struct engine_lockstep_counters lockstep;
    struct engine_tlb_counters tlb;
    struct engine_code_counters code;
};

struct engine_ops {
    const char *name; /* for --engine */

    /* Measures; at most a few milliseconds. */
    void (*probe)(struct engine_probe *out);
    /* Requests by ioctl that the operations make once a VM and its vCPUs are there: the sandbox
     * lets them pass. NULL: none. */
    const unsigned *ioctls;
    size_t ioctl_count;
    unsigned (*capabilities)(void); /* enum engine_capability */
    /* The CPUID features that this engine can give on this host. */
    void (*cpu_features)(struct x86_features *out);
    /*
     * The TSC frequency that a VM gets on this host which wants `wanted`: that, or the host's where
     * nothing scales it. May be NULL: any will do.
     */
    uint64_t (*tsc_hz)(uint64_t wanted);

    int (*vm_create)(const struct engine_vm_config *config, struct engine_vm **out,
                     struct err *err);
    void (*vm_destroy)(struct engine_vm *vm);

    /* Also while vCPUs run: they see the new map before the call returns. */
    int (*memory_map)(struct engine_vm *vm, const struct engine_slot *slot);
    int (*memory_unmap)(struct engine_vm *vm, gpa_t start, uint64_t size);
    int (*memory_protect)(struct engine_vm *vm, gpa_t start, uint64_t size, unsigned protection);
    /* Sets a bit per page written since the last call and clears the log. -ENOTSUP without the cap.
     */
    int (*dirty_log)(struct engine_vm *vm, gpa_t start, uint64_t size, uint64_t *bitmap);
    /* The end of a host-side write bracket: drops code made from these bytes. Any thread. */
    void (*memory_written)(struct engine_vm *vm, gpa_t start, uint64_t length);

    /* In the order of index. The vCPU starts in the reset state; all but 0 wait for INIT/SIPI. */
    int (*vcpu_create)(struct engine_vm *vm, unsigned index, struct engine_vcpu **out,
                       struct err *err);
    void (*vcpu_destroy)(struct engine_vcpu *vcpu);
    /*
     * Runs until something needs the machine. Waits inside while the vCPU is halted or waits for
     * INIT/SIPI. Returns at once with INTERRUPTED when kicked before or during the call.
     */
    void (*vcpu_run)(struct engine_vcpu *vcpu, struct vm_exit *exit);
    /* The present or next vcpu_run returns soon; never lost. Any thread, async-signal-safe. */
    void (*vcpu_kick)(struct engine_vcpu *vcpu);
    int (*vcpu_get_state)(struct engine_vcpu *vcpu, struct x86_state *out);
    int (*vcpu_set_state)(struct engine_vcpu *vcpu, const struct x86_state *state, struct err *err);
    void (*vcpu_counters)(struct engine_vcpu *vcpu, struct engine_vcpu_counters *out);

    int (*vm_get_state)(struct engine_vm *vm, struct engine_vm_state *out);
    /* -ENOTSUP with a sentence when the TSC frequency differs and nothing scales it. */
    int (*vm_set_state)(struct engine_vm *vm, const struct engine_vm_state *state, struct err *err);

    /* Any thread. address/data as a PCI function would write them (SDM vol. 3 section 11.11). */
    void (*send_msi)(struct engine_vm *vm, uint64_t address, uint32_t data);
    /* The level of the 8259 pair's output, wired to LINT0 of vCPU 0. Any thread. */
    void (*set_extint)(struct engine_vm *vm, bool level);
    void (*inject_nmi)(struct engine_vcpu *vcpu); /* any thread */
    /* vCPU's thread, between runs; delivered by the next run. */
    void (*inject_exception)(struct engine_vcpu *vcpu, const struct x86_event *event);

    /* Optional (may be NULL): a guest write of `size` bytes to address signals fd, no exit. */
    int (*doorbell_add)(struct engine_vm *vm, gpa_t address, unsigned size, int fd);
    int (*doorbell_remove)(struct engine_vm *vm, gpa_t address, unsigned size, int fd);
};

#endif
