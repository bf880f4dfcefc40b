/*
 * What the modules of engine soft share: the VM, the vCPU, and each module's functions.
 *
 * Lock order: slots_lock -> exclusive section -> a page lock -> a vCPU's post lock. A running vCPU
 * reads the slots without slots_lock: they change only in the exclusive section.
 */
#ifndef PARAT_ENGINE_SOFT_INT_H
#define PARAT_ENGINE_SOFT_INT_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "engine/soft/block.h"
#include "engine/soft/exclusive.h"
#include "engine/soft/lockstep.h"
#include "engine/soft/timer.h"
#include "vm/engine.h"
#include "vm/stub_memory.h"
#include "x86/cpu.h"
#include "x86/lapic.h"
#include "x86/translate.h"

#define SOFT_SLOTS_MAX  64
#define SOFT_PAGE_LOCKS 64
#define SOFT_POSTS_MAX  1024

/*
 * A slot and what is known of each of its pages. `code`: a bit per 64 bytes from which some vCPU
 * has decoded instructions; changed under the page's lock. `writer`: who may hold TLB entries that
 * allow direct writes: SOFT_WRITER_NONE, a vCPU's index + 1, SOFT_WRITER_MANY; under the same lock.
 */
struct soft_slot {
    uint64_t start, end;
    uint8_t *hva;
    unsigned protection;
    _Atomic uint64_t *code;
    _Atomic uint8_t *writer;
};

#define SOFT_WRITER_NONE 0
#define SOFT_WRITER_MANY 255

struct engine_vm {
    struct engine_vm_config config;
    uint64_t tsc_hz;
    struct exclusive exclusive;
    struct soft_timer timer;

    pthread_rwlock_t slots_lock;
    struct soft_slot slot[SOFT_SLOTS_MAX]; /* sorted */
    unsigned slot_count;
    pthread_mutex_t page_lock[SOFT_PAGE_LOCKS];

    struct stub_memory stub_memory;
    struct x86_stubs *stubs;
    struct x86_decoder *decoder;

    struct engine_vcpu *vcpu[ENGINE_VCPUS_MAX]; /* NULL until created */
    unsigned vcpu_count;                        /* created */
    _Atomic bool extint;                        /* level of the 8259 pair's output */
    _Atomic unsigned lowest_turn;               /* who is next for lowest-priority delivery */

    /* For tests: called between granting direct writes to a page and their use. NULL in life. */
    void (*test_grant_delay)(struct engine_vcpu *vcpu, uint64_t page);
};

struct engine_vcpu {
    struct x86_cpu cpu; /* first, with X86_TRANSLATE_HEADROOM below: see x86/translate.h */
    struct stub_memory code_memory;
    struct x86_translator *translator; /* NULL: everything is interpreted */
    struct engine_vm *vm;
    unsigned index;
    struct x86_lapic lapic;
    struct exclusive_member member;
    struct block_cache cache;
    struct lockstep *lockstep; /* NULL but in ENGINE_CODE_LOCKSTEP */

    /* Set by any thread when there is something to look at between two blocks; futex word. */
    _Alignas(8) _Atomic uint32_t attention;
    uint32_t attention_zero; /* translated code reads both as one */
    _Atomic bool sleeping;   /* in futex wait on attention */
    _Atomic bool kicked;
    _Atomic bool timer_due; /* the APIC's timer is to be looked at */

    pthread_mutex_t post_lock;
    uint64_t post[SOFT_POSTS_MAX]; /* pages whose blocks are to be dropped */
    unsigned post_count;           /* SOFT_POSTS_MAX + 1: drop all */
    _Atomic bool posted;

    const struct block *current; /* being executed */
    unsigned exclusive_depth;    /* sections begun by the instruction being executed */
    bool lint0_seen;             /* level of extint at the last look (vCPU 0) */
    uint64_t offset_seen;        /* TSC offset at the last look */
    pthread_t thread;            /* that ran it last */
    bool thread_prepared;

    uint8_t random[256];
    unsigned random_left;

    _Atomic uint64_t exits[VM_EXIT_KIND_COUNT], instructions, interrupts; /* written by the owner */
};

/* Single writer: no locked instruction. */
static inline void soft_count(_Atomic uint64_t *counter, uint64_t n)
{
    atomic_store_explicit(counter, atomic_load_explicit(counter, memory_order_relaxed) + n,
                          memory_order_relaxed);
}

/* --- memory.c: guest-physical memory and code marks (DESIGN 8.4) --- */

int soft_memory_create(struct engine_vm *vm) MUST_USE;
void soft_memory_destroy(struct engine_vm *vm);
int soft_memory_map(struct engine_vm *vm, const struct engine_slot *slot);
int soft_memory_unmap(struct engine_vm *vm, gpa_t start, uint64_t size);
int soft_memory_protect(struct engine_vm *vm, gpa_t start, uint64_t size, unsigned protection);
void soft_memory_written(struct engine_vm *vm, gpa_t start, uint64_t length);
/* The page shows this vCPU's local APIC. */
bool soft_is_apic_page(const struct engine_vcpu *vcpu, uint64_t page);
/* x86_ops */
uint8_t *soft_page(void *context, gpa_t page, bool *writable);
uint8_t *soft_store_begin(void *context, gpa_t address, unsigned length);
void soft_store_end(void *context, gpa_t address, unsigned length);
/*
 * Before code from [address, address + length) (inside one page) is used: marks it, and takes
 * direct write access to the page from everybody. May wait in an exclusive section. False: not RAM,
 * or no longer at `host` (when not NULL), the page's host address before.
 */
bool soft_memory_mark_code(struct engine_vcpu *vcpu, uint64_t address, unsigned length,
                           const uint8_t *host);
/* Do these bytes (inside one page) lie where code was decoded? Marks are per 64 bytes. */
bool soft_memory_has_code(struct engine_vm *vm, uint64_t address, unsigned length);
/* The engine's own write to guest RAM (kvmclock); false when some byte is not writable RAM. */
bool soft_memory_write(struct engine_vcpu *vcpu, uint64_t address, const void *from,
                       unsigned length);
/* Does what was posted. Between blocks. */
void soft_take_posts(struct engine_vcpu *vcpu);

/* --- irq.c: what wakes and interrupts a vCPU --- */

extern const struct x86_lapic_ops soft_lapic_ops;
void soft_wake(struct engine_vcpu *vcpu); /* any thread, async-signal-safe */
/* The same for what a sleeping vCPU may as well look at when something else wakes it. */
void soft_notify(struct engine_vcpu *vcpu);
void soft_stop_running(void *vm); /* struct exclusive's stop */
void soft_send_msi(struct engine_vm *vm, uint64_t address, uint32_t data);
void soft_set_extint(struct engine_vm *vm, bool level);
void soft_inject_nmi(struct engine_vcpu *vcpu);
/* Takes the highest-priority event that is deliverable now. False: triple fault. */
bool soft_take_events(struct engine_vcpu *vcpu);
/* Sleeps until attention or the next timer event; leaves attention set. */
void soft_wait(struct engine_vcpu *vcpu);
/* Has attention set at the next timer event. */
void soft_set_alarm(struct engine_vcpu *vcpu);
void soft_timer_expired(void *vm, unsigned index); /* struct soft_timer's */

/* --- run.c --- */

void soft_run(struct engine_vcpu *vcpu, struct vm_exit *exit);
/* Runs a stretch of instructions without looking at events; false: triple fault. */
bool soft_run_slice(struct engine_vcpu *vcpu);

/* --- callbacks.c: x86_ops --- */

extern const struct x86_ops soft_x86_ops;
/* Around what the machine does for an instruction: the vCPU is safe meanwhile, see callbacks.c. */
struct soft_outside {
    bool left;         /* was running */
    unsigned sections; /* exclusive sections that it held */
};
struct soft_outside soft_outside_begin(struct engine_vcpu *vcpu);
void soft_outside_end(struct engine_vcpu *vcpu, struct soft_outside outside);
uint64_t soft_clock_ns(const struct engine_vm *vm);
uint64_t soft_clock_tsc(const struct engine_vm *vm); /* without a guest's offset */
uint64_t soft_clock_tsc_at(const struct engine_vm *vm, uint64_t ns);

/* --- kvmclock.c --- */

bool soft_kvmclock_msr_write(struct engine_vcpu *vcpu, uint32_t index, uint64_t value);
/* Writes the time page again, and moves the APIC timer's deadline, where the TSC was set. */
void soft_look_at_tsc(struct engine_vcpu *vcpu);

/* --- probe.c, features.c --- */

void soft_probe(struct engine_probe *out);
void soft_cpu_features(struct x86_features *out);

#endif
