/*
 * MSRs and CPUID: what faults, what reads back, the TSC. SDM vol. 3 section 17.17 (TSC), vol. 4;
 * APM vol. 2 appendix A.
 */
#include "flat.h"

struct access {
    uint32_t index;
    uint64_t value;
};

static void do_write(void *argument)
{
    struct access *a = argument;
    wrmsr(a->index, a->value);
}

static void do_read(void *argument)
{
    struct access *a = argument;
    a->value = rdmsr(a->index);
}

static void writes(void)
{
    static struct {
        const char *what;
        struct access access;
    } tests[] = {
        {"an MSR that does not exist", {0x12345678, 0}},
        {"LSTAR not canonical", {0xc0000082, 0x800000000000}},
        {"FS.base not canonical", {0xc0000100, 0xffff000000000000}},
        {"KERNEL_GS_BASE not canonical", {0xc0000102, 0x8000000000000000}},
        {"SYSENTER_EIP not canonical", {0x176, 0x1000000000000000}},
        {"EFER reserved bit", {0xc0000080, 1ull << 40}},
        {"EFER.LME cleared with paging on", {0xc0000080, 0x801}},
        {"PAT with a reserved type", {0x277, 2}},
        {"APIC base beyond the physical addresses", {0x1b, 0xffff0000fee00900}},
        {"LSTAR canonical", {0xc0000082, 0xffff800000001234}},
        {"PAT as after reset", {0x277, 0x0007040600070406}},
    };
    for (unsigned i = 0; i < sizeof tests / sizeof tests[0]; i++) {
        flat_try(do_write, &tests[i].access);
        print_fault(tests[i].what);
    }
    struct access missing = {.index = 0x12345678};
    flat_try(do_read, &missing);
    print_fault("read of an MSR that does not exist");
    check(rdmsr(0xc0000082) == 0xffff800000001234, "LSTAR reads back");
}

static void bases(void)
{
    static uint64_t value = 0x1122334455667788;
    wrmsr(0xc0000100, (uint64_t)&value - 16);
    uint64_t seen;
    asm volatile("mov %%fs:16, %0" : "=r"(seen));
    check(seen == value, "FS.base is used");
    wrmsr(0xc0000101, (uint64_t)&value - 8);
    wrmsr(0xc0000102, 0x1234);
    asm volatile("swapgs");
    check(rdmsr(0xc0000101) == 0x1234, "SWAPGS exchanges");
    asm volatile("swapgs; mov %%gs:8, %0" : "=r"(seen));
    check(seen == value, "and back; GS.base is used");
}

static void time_stamp(void)
{
    uint64_t before = rdtsc(), previous = before;
    bool monotonic = true;
    for (unsigned i = 0; i < 1000; i++) {
        uint64_t now = rdtsc();
        monotonic &= now >= previous;
        previous = now;
    }
    check(monotonic && previous > before, "the TSC goes forward");
    wrmsr(0x10, 0x1000000000000);
    uint64_t now = rdtsc();
    check(now >= 0x1000000000000 && now < 0x1000000000000 + 100000000000, "WRMSR sets the TSC");
    uint32_t a, c, d;
    wrmsr(0xc0000103, 77);
    asm volatile("rdtscp" : "=a"(a), "=c"(c), "=d"(d));
    check(c == 77, "RDTSCP tells TSC_AUX");
    wrmsr(0x3b, 0);
    uint64_t low = rdtsc();
    wrmsr(0x3b, 1ull << 44);
    check(rdtsc() >= low + (1ull << 44), "TSC_ADJUST moves the TSC");
    wrmsr(0x3b, 0);
    asm volatile("mov %%cr4, %%rax; or $4, %%rax; mov %%rax, %%cr4" : : : "rax");
    check(rdtsc() > 0, "CR4.TSD does not matter at CPL 0");
    static uint8_t stack[4096] __attribute__((aligned(16)));
    extern char user_rdtsc[];
    flat_call_user((void (*)(void))user_rdtsc, stack + sizeof stack);
    print_fault("RDTSC at CPL 3 with CR4.TSD");
    asm volatile("mov %%cr4, %%rax; and $~4, %%rax; mov %%rax, %%cr4" : : : "rax");
    flat_call_user((void (*)(void))user_rdtsc, stack + sizeof stack);
    check(fault.vector == 0x80, "RDTSC at CPL 3 without");
}
asm("user_rdtsc: rdtsc\n int $0x80\n");

/* SYSCALL from CPL 3 comes back by SYSRET to the instruction behind. */
static volatile uint64_t syscall_rcx, syscall_r11, user_r15;
asm("syscall_entry:\n"
    "  mov %rcx, syscall_rcx(%rip)\n"
    "  mov %r11, syscall_r11(%rip)\n"
    "  sysretq\n"
    "user_syscall:\n"
    "  stc\n"
    "  syscall\n"
    "after_syscall:\n"
    "  mov $0x99, %r15\n"
    "  mov %r15, user_r15(%rip)\n"
    "  int $0x80\n");
extern char syscall_entry[], user_syscall[], after_syscall[];

static void system_calls(void)
{
    static uint8_t stack[4096] __attribute__((aligned(16)));
    wrmsr(0xc0000081, (uint64_t)(SEL_CODE32_USER | 3) << 48 | (uint64_t)SEL_CODE64 << 32);
    wrmsr(0xc0000082, (uint64_t)syscall_entry);
    wrmsr(0xc0000084, 0x200);
    flat_call_user((void (*)(void))user_syscall, stack + sizeof stack);
    check(fault.vector == 0x80 && user_r15 == 0x99, "SYSCALL and SYSRET");
    check(syscall_rcx == (uint64_t)after_syscall, "RCX holds the return address");
    check((syscall_r11 & 0x201) == 0x201, "R11 holds RFLAGS");
    check(fault.cs == (SEL_CODE64_USER | 3), "CS of STAR + 16, RPL 3");
    wrmsr(0xc0000080, rdmsr(0xc0000080) & ~1ull);
    flat_call_user((void (*)(void))user_syscall, stack + sizeof stack);
    print_fault("SYSCALL without EFER.SCE");
}

static void leaves(void)
{
    uint32_t r[4];
    cpuid(0, 0, r);
    print("%c%c%c%c\n", (int)(r[1] & 255), (int)(r[1] >> 8 & 255), (int)(r[1] >> 16 & 255),
          (int)(r[1] >> 24));
    cpuid(0x40000000, 0, r);
    check(r[1] == 0x4b4d564b && r[2] == 0x564b4d56 && r[3] == 0x4d, "the hypervisor leaf is KVM's");
    cpuid(0x40000001, 0, r);
    check(r[0] == (1u << 24 | 1u << 3 | 1u << 0), "kvmclock with its stable bit, nothing else");
    cpuid(1, 0, r);
    check(r[2] >> 31, "a hypervisor is present");
    check(!(r[2] >> 27 & 1), "OSXSAVE follows CR4");
    asm volatile("mov %%cr4, %%rax; bts $18, %%rax; mov %%rax, %%cr4" : : : "rax");
    cpuid(1, 0, r);
    check(r[2] >> 27 & 1, "OSXSAVE follows CR4 when set");
}

void guest_main(void)
{
    writes();
    bases();
    time_stamp();
    system_calls();
    leaves();
}
