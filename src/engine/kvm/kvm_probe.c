/*
 * Probing: is there a usable KVM, and how long does it take for an instruction in kernel mode and
 * in user mode? Measured in a VM of four pages, without an operating system. There are hosts whose
 * /dev/kvm exists and emulates every kernel-mode instruction. Loop thread; about a millisecond.
 */
#include <cpuid.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "engine/kvm/kvm_int.h"
#include "x86/defs.h"

/* --- facts about the host --- */

struct needed {
    int cap;
    const char *name;
};

static const struct needed needed[] = {
    {KVM_CAP_USER_MEMORY, "memory slots"},
    {KVM_CAP_IRQCHIP, "local APIC"},
    {KVM_CAP_SPLIT_IRQCHIP, "split interrupt controller (KVM_CAP_SPLIT_IRQCHIP)"},
    {KVM_CAP_SIGNAL_MSI, "interrupt messages (KVM_CAP_SIGNAL_MSI)"},
    {KVM_CAP_IMMEDIATE_EXIT, "immediate exits (KVM_CAP_IMMEDIATE_EXIT)"},
    {KVM_CAP_READONLY_MEM, "read-only memory (KVM_CAP_READONLY_MEM)"},
    {KVM_CAP_IOEVENTFD, "doorbells (KVM_CAP_IOEVENTFD)"},
    {KVM_CAP_XSAVE, "XSAVE state (KVM_CAP_XSAVE)"},
    {KVM_CAP_DEBUGREGS, "debug register state (KVM_CAP_DEBUGREGS)"},
    {KVM_CAP_X2APIC_API, "32-bit APIC ids (KVM_CAP_X2APIC_API)"},
    {KVM_CAP_EXCEPTION_PAYLOAD, "exception payloads (KVM_CAP_EXCEPTION_PAYLOAD)"},
    {KVM_CAP_SREGS2, "PDPTR state (KVM_CAP_SREGS2)"},
    {KVM_CAP_EXIT_ON_EMULATION_FAILURE,
     "exits for what it cannot emulate (KVM_CAP_EXIT_ON_EMULATION_FAILURE)"},
    {KVM_CAP_ENFORCE_PV_FEATURE_CPUID, "strict CPUID (KVM_CAP_ENFORCE_PV_FEATURE_CPUID)"},
    {KVM_CAP_VCPU_ATTRIBUTES, "TSC offsets (KVM_CAP_VCPU_ATTRIBUTES)"},
};

const char *kvm_missing_capability(int system_fd)
{
    if (kvm_call_number(system_fd, KVM_GET_API_VERSION, 0) != KVM_API_VERSION)
        return "API of version 12";
    for (size_t i = 0; i < ARRAY_COUNT(needed); i++) {
        if (kvm_call_number(system_fd, KVM_CHECK_EXTENSION, (unsigned long)needed[i].cap) <= 0)
            return needed[i].name;
    }
    return NULL;
}

/* The kernel leaves out what the firmware has disabled. */
static bool kernel_lists(const char *flag)
{
    char line[4096], wanted[16];
    bool found = false;
    FILE *file = fopen("/proc/cpuinfo", "re");
    if (!file)
        return true; /* not known */
    snprintf(wanted, sizeof wanted, " %s ", flag);
    while (!found && fgets(line, sizeof line, file)) {
        if (strncmp(line, "flags", 5) != 0)
            continue;
        line[strcspn(line, "\n")] = ' ';
        found = strstr(line, wanted);
        break;
    }
    fclose(file);
    return found;
}

static void look_at_cpu(struct kvm_host *host)
{
    unsigned a, b, c, d;
    if (__get_cpuid(1, &a, &b, &c, &d)) {
        host->cpu_vmx = c & BIT(5);
        host->is_vm = c & BIT(31);
    }
    if (__get_cpuid(0x80000001, &a, &b, &c, &d))
        host->cpu_svm = c & BIT(2);
    host->kernel_has_it = kernel_lists(host->cpu_svm ? "svm" : "vmx");
}

/* --- measuring --- */

#define END_PORT    0x10
#define LOOP_LENGTH 4u       /* instructions a round */
#define ROUNDS_MIN  64u      /* of an emulated loop: some 100 microseconds */
#define ROUNDS_MAX  0x40000u /* of a native one */
#define TRIES       3u
#define ENOUGH_NS   20000 /* a measurement of this length is good ... */
#define ENOUGH_BASE 2     /* ... and as many times what entry and exit take */

/* Guest-physical pages. Linear address 0 to 2 MiB is mapped one to one, for user mode, too. */
enum { PAGE_PML4, PAGE_PDPT, PAGE_DIRECTORY, PAGE_CODE, PAGE_COUNT };

/* 1: add eax, ecx; xor ebx, eax; dec ecx; jnz 1b; out END_PORT, al; jmp 1b */
static const uint8_t program[] = {0x01, 0xc8, 0x31, 0xc3,     0xff, 0xc9,
                                  0x75, 0xf8, 0xe6, END_PORT, 0xeb, 0xf4};

struct rig {
    int vm, vcpu;
    size_t run_size;
    struct kvm_run *run;
    uint8_t *memory;
};

static void fill_memory(uint8_t *memory)
{
    const uint64_t flags = X86_PTE_P | X86_PTE_W | X86_PTE_U;
    store_le64(memory + PAGE_PML4 * PAGE_SIZE, PAGE_PDPT * PAGE_SIZE | flags);
    store_le64(memory + PAGE_PDPT * PAGE_SIZE, PAGE_DIRECTORY * PAGE_SIZE | flags);
    store_le64(memory + PAGE_DIRECTORY * PAGE_SIZE, flags | X86_PTE_PS);
    memcpy(memory + PAGE_CODE * PAGE_SIZE, program, sizeof program);
}

static int rig_create(struct rig *rig, int system_fd)
{
    const size_t size = PAGE_COUNT * PAGE_SIZE;
    *rig = (struct rig) {.vm = -1, .vcpu = -1, .run = MAP_FAILED};
    rig->memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    rig->vm = kvm_call_number(system_fd, KVM_CREATE_VM, 0);
    if (rig->vm < 0)
        return rig->vm;
    if (rig->memory == MAP_FAILED)
        return -ENOMEM;
    fill_memory(rig->memory);
    struct kvm_userspace_memory_region region = {.memory_size = size,
                                                 .userspace_addr = (uintptr_t)rig->memory};
    int error = kvm_call(rig->vm, KVM_SET_USER_MEMORY_REGION, &region);
    rig->vcpu = error ? error : kvm_call_number(rig->vm, KVM_CREATE_VCPU, 0);
    if (rig->vcpu < 0)
        return rig->vcpu;
    rig->run_size = (size_t)kvm_call_number(system_fd, KVM_GET_VCPU_MMAP_SIZE, 0);
    rig->run = mmap(NULL, rig->run_size, PROT_READ | PROT_WRITE, MAP_SHARED, rig->vcpu, 0);
    return rig->run == MAP_FAILED ? -errno : 0;
}

static void rig_destroy(struct rig *rig)
{
    if (rig->run != MAP_FAILED)
        munmap(rig->run, rig->run_size);
    if (rig->vcpu >= 0)
        close(rig->vcpu);
    if (rig->vm >= 0)
        close(rig->vm);
    if (rig->memory != MAP_FAILED)
        munmap(rig->memory, PAGE_COUNT * PAGE_SIZE);
}

/* 64-bit mode at the privilege level; IOPL 3, so that user mode may end it, too. */
static int rig_prepare(struct rig *rig, unsigned level, uint32_t rounds)
{
    struct kvm_sregs sregs;
    int error = kvm_call(rig->vcpu, KVM_GET_SREGS, &sregs);
    if (error)
        return error;
    struct kvm_segment data = {.limit = UINT32_MAX,
                               .selector = (uint16_t)(0x10 | level),
                               .type = 3,
                               .present = 1,
                               .dpl = (uint8_t)level,
                               .db = 1,
                               .s = 1,
                               .g = 1};
    sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = sregs.cs = data;
    sregs.cs.type = 11;
    sregs.cs.selector = (uint16_t)(8 | level);
    sregs.cs.db = 0;
    sregs.cs.l = 1;
    sregs.cr0 = X86_CR0_PE | X86_CR0_ET | X86_CR0_NE | X86_CR0_PG;
    sregs.cr3 = PAGE_PML4 * PAGE_SIZE;
    sregs.cr4 = X86_CR4_PAE;
    sregs.efer = X86_EFER_LME | X86_EFER_LMA;
    struct kvm_regs regs = {
        .rip = PAGE_CODE * PAGE_SIZE, .rcx = rounds, .rflags = X86_FIXED | X86_IOPL};
    error = kvm_call(rig->vcpu, KVM_SET_SREGS, &sregs);
    return error ? error : kvm_call(rig->vcpu, KVM_SET_REGS, &regs);
}

/* What this thread got of the CPU, so that a busy host does not look slow. */
static uint64_t thread_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return (uint64_t)now.tv_sec * NS_PER_S + (uint64_t)now.tv_nsec;
}

/* Nanoseconds for so many rounds and the exit; or -errno. */
static int64_t rig_run(struct rig *rig, unsigned level, uint32_t rounds)
{
    int error = rig_prepare(rig, level, rounds);
    if (error)
        return error;
    uint64_t start = thread_ns();
    error = kvm_call_number(rig->vcpu, KVM_RUN, 0);
    uint64_t end = thread_ns();
    if (error)
        return error;
    return rig->run->exit_reason == KVM_EXIT_IO ? (int64_t)(end - start) : -EIO;
}

/* The shortest of some: the first has page faults, any may have an interrupt of the host's. */
static int64_t rig_run_best(struct rig *rig, unsigned level, uint32_t rounds)
{
    int64_t best = INT64_MAX;
    for (unsigned i = 0; i < TRIES; i++)
        best = MIN(best, rig_run(rig, level, rounds));
    return best;
}

/* Nanoseconds an instruction; negative: it did not run. Without what entry and exit take. */
static double measure(struct rig *rig, unsigned level)
{
    int64_t base = rig_run_best(rig, level, 1);
    if (base < 0)
        return -1;
    for (uint32_t rounds = ROUNDS_MIN;; rounds *= 8) {
        int64_t took = rig_run_best(rig, level, rounds + 1);
        if (took < 0)
            return -1;
        if (took - base >= MAX(ENOUGH_NS, base * ENOUGH_BASE) || rounds >= ROUNDS_MAX)
            return (double)MAX(took - base, 1) / ((double)rounds * LOOP_LENGTH);
    }
}

static void measure_both(struct rig *rig, struct engine_probe *out)
{
    double user = measure(rig, 3), kernel = measure(rig, 0);
    if (user < 0 || kernel < 0) {
        out->verdict = ENGINE_UNUSABLE;
        snprintf(out->reason, sizeof out->reason, "because its VMs do not run: %s",
                 user < 0 ? "not even user-mode code" : "kernel-mode code does not");
        return;
    }
    out->user_ns = user;
    out->kernel_ns = kernel;
    kvm_judge_speed(out);
}

void kvm_probe(struct engine_probe *out)
{
    struct kvm_host host = {0};
    struct rig rig;
    *out = (struct engine_probe) {.verdict = ENGINE_UNUSABLE};
    look_at_cpu(&host);
    int fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    if (fd < 0) {
        host.open_error = errno;
        (void)kvm_diagnose(&host, out);
        return;
    }
    host.missing = kvm_missing_capability(fd);
    host.create_error = -rig_create(&rig, fd);
    if (!kvm_diagnose(&host, out))
        measure_both(&rig, out);
    rig_destroy(&rig);
    close(fd);
}
