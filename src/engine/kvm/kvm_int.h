/*
 * What the modules of engine kvm share: the VM, the vCPU, and each module's functions. The kernel's
 * interface is Linux's Documentation/virt/kvm/api.rst; its constants stay in this folder.
 *
 * Lock order: memory_lock -> gate_lock; msi_lock and clock_lock are leaves.
 */
#ifndef PARAT_ENGINE_KVM_INT_H
#define PARAT_ENGINE_KVM_INT_H

#include <linux/kvm.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "vm/engine.h"

#define KVM_SLOTS_MAX 64
#define KVM_ROUTES_MAX                                                                             \
    64 /* level-triggered messages whose end we hear of: more than IOAPIC pins                     \
        */
#define KVM_TSC_KHZ_MAX UINT32_MAX

/* A piece of the guest-physical address space. Those the guest may not even read are not given to
 * the kernel: all accesses come out as MMIO then. */
struct kvm_slot {
    uint64_t start, size;
    uint8_t *hva;
    unsigned protection;
    unsigned id;     /* the kernel's number for it */
    uint64_t *dirty; /* a bit per page; NULL: not logged */
};

/* A level-triggered message, in the kernel's routing table. */
struct kvm_route {
    uint64_t address;
    uint32_t data;
    uint64_t last_use; /* 0: free */
};

/* How VM time and the guests' TSCs lie to the host's; kvm_clock.c. */
struct kvm_time {
    bool valid;
    _Atomic uint64_t base;       /* host time at VM time 0 when the rest was measured */
    uint64_t offset;             /* the kernel's TSC offset of a vCPU whose own offset is 0 */
    _Atomic unsigned generation; /* changes with `offset` */
};

struct engine_vm {
    struct engine_vm_config config;
    int system_fd, fd;
    size_t run_size; /* of a vCPU's shared page */
    int kick_signal;
    uint64_t tsc_hz;
    bool tsc_scaling;
    uint64_t xcr0; /* components that the host has, of those that the state knows */

    pthread_mutex_t memory_lock;
    struct kvm_slot slot[KVM_SLOTS_MAX]; /* sorted */
    unsigned slot_count;

    /* Closed while slots are replaced: no vCPU may see the moment without them. */
    _Atomic bool gate_closed;
    pthread_mutex_t gate_lock;
    pthread_cond_t gate_left;

    pthread_mutex_t msi_lock;
    struct kvm_route route[KVM_ROUTES_MAX];
    uint64_t route_turn;

    pthread_mutex_t clock_lock;
    struct kvm_time time;

    struct engine_vcpu *vcpu[ENGINE_VCPUS_MAX];
    unsigned vcpu_count;
    _Atomic bool extint; /* level of the 8259 pair's output */
};

struct engine_vcpu {
    struct engine_vm *vm;
    unsigned index;
    int fd;
    struct kvm_run *run;

    _Atomic bool kicked;      /* the machine wants run to return */
    _Atomic bool look;        /* NMI or 8259: something to do before the guest goes on */
    _Atomic bool nmi_pending; /* inject_nmi, not yet given to the kernel */
    _Atomic bool inside;      /* in KVM_RUN: see gate_closed */
    _Atomic pid_t tid;        /* of the thread that ran it last; 0: none */

    bool io_open;    /* the kernel waits for the answer to an I/O exit */
    bool stale;      /* the state was set since the kernel said whether interrupts are open */
    bool shut_down;  /* triple fault; until the next state */
    bool lint0_seen; /* level of extint at the last look (vCPU 0) */

    /* Time: what the guest was given, and what it has added since (TSC_ADJUST tells). */
    uint64_t tsc_offset, tsc_adjust;
    unsigned time_generation;

    /* The state as it was set, until the first run after: its timers have not begun. */
    bool fresh;
    struct x86_state set;

    /* The state as it was given, until the next run: see kvm_set_state. */
    bool given;
    struct x86_state get;

    _Atomic uint64_t exits[VM_EXIT_KIND_COUNT], unknown_exits; /* written by the owner */
};

/* Single writer: no locked instruction. */
static inline void kvm_count(_Atomic uint64_t *counter)
{
    atomic_store_explicit(counter, atomic_load_explicit(counter, memory_order_relaxed) + 1,
                          memory_order_relaxed);
}

/* ioctl that goes on after EINTR; 0 or more, or -errno. */
int kvm_call(int fd, unsigned long request, void *argument);
/* The same for requests with a number. */
int kvm_call_number(int fd, unsigned long request, unsigned long argument);

/* --- kvm_probe.c, kvm_diagnose.c, kvm_cpuid.c --- */

void kvm_probe(struct engine_probe *out);
/* NULL, or the name of the first thing that this kernel's KVM lacks. */
const char *kvm_missing_capability(int system_fd);
void kvm_cpu_features(struct x86_features *out);
int kvm_cpuid_set(struct engine_vcpu *vcpu) MUST_USE;

/* What is known of a host without a usable /dev/kvm. */
struct kvm_host {
    int open_error;        /* of /dev/kvm; 0: it was opened */
    int create_error;      /* of a VM; 0: it was made */
    bool cpu_vmx, cpu_svm; /* CPUID has it */
    bool kernel_has_it;    /* /proc/cpuinfo lists it: the firmware did not disable it */
    bool is_vm;            /* CPUID's hypervisor bit */
    const char *missing;   /* capability that KVM lacks, or NULL */
};
/* Fills in verdict, reason and remedy. Pure. False: nothing is wrong. */
bool kvm_diagnose(const struct kvm_host *host, struct engine_probe *out);
/* The verdict on measured times; fills in verdict, rank, reason and remedy. Pure. */
void kvm_judge_speed(struct engine_probe *out);

/* --- kvm_memory.c --- */

int kvm_memory_map(struct engine_vm *vm, const struct engine_slot *slot);
int kvm_memory_unmap(struct engine_vm *vm, gpa_t start, uint64_t size);
int kvm_memory_protect(struct engine_vm *vm, gpa_t start, uint64_t size, unsigned protection);
int kvm_dirty_log(struct engine_vm *vm, gpa_t start, uint64_t size, uint64_t *bitmap);
void kvm_memory_destroy(struct engine_vm *vm);
/* Around KVM_RUN: waits while slots are being replaced. */
void kvm_gate_enter(struct engine_vcpu *vcpu);
void kvm_gate_leave(struct engine_vcpu *vcpu);

/* --- kvm_irq.c --- */

void kvm_send_msi(struct engine_vm *vm, uint64_t address, uint32_t data);
void kvm_set_extint(struct engine_vm *vm, bool level);
void kvm_inject_nmi(struct engine_vcpu *vcpu);
/* Before the guest goes on: gives the kernel what is pending. 0 or -errno. */
int kvm_irq_prepare(struct engine_vcpu *vcpu) MUST_USE;
/* The kernel tells of the ends of these level-triggered interrupts, too. */
void kvm_irq_route_state(struct engine_vm *vm, const struct x86_lapic_state *lapic);

/* --- kvm_clock.c --- */

/* Before the guest goes on: time stands still in a pause. 0 or -errno. */
int kvm_clock_prepare(struct engine_vcpu *vcpu) MUST_USE;
uint64_t kvm_clock_ns(const struct engine_vm *vm);
/* Forgets what was measured: VM time or the frequency was set. */
void kvm_clock_invalidate(struct engine_vm *vm);
/* The guest's own TSC offset now. */
int kvm_clock_get_offset(struct engine_vcpu *vcpu, uint64_t *offset) MUST_USE;
/* The frequency that a guest gets who wants `wanted`: this one, or the host's. */
uint64_t kvm_tsc_hz(uint64_t wanted);
int kvm_clock_set_khz(struct engine_vcpu *vcpu, struct err *err) MUST_USE;

/* --- kvm_run.c --- */

void kvm_vcpu_run(struct engine_vcpu *vcpu, struct vm_exit *exit);
void kvm_vcpu_kick(struct engine_vcpu *vcpu);
/* Has a running vCPU leave KVM_RUN, without a return to the machine. Any thread. */
void kvm_vcpu_wake(struct engine_vcpu *vcpu);
/* Completes the I/O that is open, so that the state is one between two instructions. */
int kvm_vcpu_complete_io(struct engine_vcpu *vcpu) MUST_USE;

/* --- kvm_state.c, kvm_msr.c, kvm_regs.c --- */

int kvm_get_state(struct engine_vcpu *vcpu, struct x86_state *out);
int kvm_set_state(struct engine_vcpu *vcpu, const struct x86_state *state, struct err *err);
/* Pure conversions. */
void kvm_segment_from(struct kvm_segment *out, const struct x86_segment *seg);
void kvm_segment_to(struct x86_segment *out, const struct kvm_segment *seg, bool is_ss);
void kvm_lapic_from(struct kvm_lapic_state *out, const struct x86_state *s, uint64_t now_ns);
void kvm_lapic_to(struct x86_state *out, const struct kvm_lapic_state *regs, uint64_t now_ns);
void kvm_events_from(struct kvm_vcpu_events *out, const struct x86_state *s);
void kvm_events_to(struct x86_state *out, const struct kvm_vcpu_events *events);
/* MSRs. *bad: the index of the one that the kernel refused. */
int kvm_msrs_get(struct engine_vcpu *vcpu, struct x86_state *out, uint32_t *bad) MUST_USE;
/* known: what the MSRs hold now, so that only others are written; or NULL. */
int kvm_msrs_set(struct engine_vcpu *vcpu, const struct x86_state *s, const struct x86_state *known,
                 uint32_t *bad) MUST_USE;
int kvm_msr_read(struct engine_vcpu *vcpu, uint32_t index, uint64_t *value) MUST_USE;
int kvm_msr_write(struct engine_vcpu *vcpu, uint32_t index, uint64_t value) MUST_USE;

#endif
