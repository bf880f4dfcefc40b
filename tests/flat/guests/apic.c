/*
 * Local APIC: timer in its three modes, masking, task priority, self-IPI, NMI, x2APIC, disabling.
 * SDM vol. 3 chapter 11 (local APIC), sections 11.5.4 (timer), 11.8 (priorities), 11.12 (x2APIC).
 */
#include "flat.h"

static volatile unsigned count[256];

static void count_and_eoi(struct frame *frame)
{
    count[frame->vector]++;
    if (rdmsr(0x1b) & 1 << 10)
        wrmsr(0x80b, 0);
    else
        APIC(0xb0) = 0;
}

static void count_only(struct frame *frame)
{
    count[frame->vector]++;
}

/* Waits with interrupts on until the count is reached, halted in between. */
static bool wait_for(unsigned vector, unsigned wanted)
{
    uint64_t end = rdtsc() + 20000000000ull; /* some seconds at any TSC */
    asm volatile("cli");
    while (count[vector] < wanted && rdtsc() < end)
        asm volatile("sti; hlt; cli");
    return count[vector] >= wanted;
}

static void timer(void)
{
    flat_set_handler(0x50, count_and_eoi);
    APIC(0x3e0) = 0xb; /* divide by 1 */
    APIC(0x320) = 0x50;
    APIC(0x380) = 100000;
    check(wait_for(0x50, 1), "one-shot timer fires");
    check(APIC(0x390) == 0, "one-shot timer stops at zero");
    APIC(0x320) = 0x50 | 1 << 17;
    APIC(0x380) = 500000; /* KVM has none shorter than 200 microseconds */
    check(wait_for(0x50, 6), "periodic timer fires again and again");
    check(APIC(0x390) <= 500000, "the current count stays below the initial one");
    APIC(0x320) = 0x50 | 1 << 16;
    unsigned before = count[0x50];
    uint64_t end = rdtsc() + 3000000;
    asm volatile("sti");
    while (rdtsc() < end)
        pause();
    asm volatile("cli");
    check(count[0x50] <= before + 1, "a masked timer is silent");
    APIC(0x380) = 0;
    uint32_t r[4];
    cpuid(1, 0, r);
    if (r[2] >> 24 & 1) {
        before = count[0x50];
        APIC(0x320) = 0x50 | 2 << 17;
        asm volatile("mfence");
        uint64_t deadline = rdtsc() + 1000000;
        wrmsr(0x6e0, deadline);
        check(wait_for(0x50, before + 1) && rdtsc() >= deadline, "TSC deadline fires, not early");
        check(rdmsr(0x6e0) == 0, "the deadline MSR reads 0 after it fired");
        wrmsr(0x6e0, rdtsc() - 1);
        check(wait_for(0x50, before + 2), "a deadline in the past fires at once");
    }
    APIC(0x320) = 1 << 16;
}

static void self_ipi(unsigned vector)
{
    APIC(0x300) = 0x44000 | vector; /* self, fixed, assert */
}

static void priorities(void)
{
    flat_set_handler(0x60, count_and_eoi);
    flat_set_handler(0x90, count_and_eoi);
    asm volatile("cli");
    self_ipi(0x60);
    check(APIC(0x200 + 0x30) == 1, "IRR shows the self-IPI while IF is clear");
    asm volatile("sti; nop; nop; cli");
    check(count[0x60] == 1, "it is taken after STI");
    APIC(0x80) = 0x80; /* task priority above 0x60 */
    self_ipi(0x60);
    self_ipi(0x90);
    asm volatile("sti; nop; nop; cli");
    check(count[0x90] == 1 && count[0x60] == 1, "the task priority holds lower vectors back");
    check((APIC(0xa0) & 0xff) == 0x80, "the processor priority is the task priority");
    APIC(0x80) = 0;
    asm volatile("sti; nop; nop; cli");
    check(count[0x60] == 2, "and lets them through when it falls");
    uint64_t cr8;
    asm volatile("mov %1, %%cr8; mov %%cr8, %0" : "=r"(cr8) : "r"(5ull));
    check(cr8 == 5 && APIC(0x80) == 0x50, "CR8 is the task priority's class");
    asm volatile("mov %0, %%cr8" : : "r"(0ull));
}

/* STI holds interrupts back for one instruction; so does MOV SS. */
static void shadow(void)
{
    uint64_t seen_after_one, seen_after_two;
    unsigned before = count[0x60];
    self_ipi(0x60);
    asm volatile("sti; mov %2, %%eax; mov %2, %%ecx; cli"
                 : "=&a"(seen_after_one), "=&c"(seen_after_two)
                 : "m"(count[0x60])
                 : "memory");
    check((unsigned)seen_after_one == before, "no interrupt right after STI");
    check((unsigned)seen_after_two == before + 1, "but after the next instruction");
}

static void nmi(void)
{
    flat_set_handler(2, count_only);
    asm volatile("cli");
    APIC(0x310) = APIC(0x20) & 0xff000000;
    APIC(0x300) = 0x4000 | 4 << 8;
    for (unsigned i = 0; i < 1000 && !count[2]; i++)
        pause();
    check(count[2] >= 1, "an NMI comes through with IF clear");
}

static void x2apic(void)
{
    uint32_t r[4];
    cpuid(1, 0, r);
    if (!(r[2] >> 21 & 1)) {
        print("no x2APIC\n");
        return;
    }
    uint32_t id = APIC(0x20) >> 24;
    wrmsr(0x1b, rdmsr(0x1b) | 1 << 10);
    check(rdmsr(0x802) == id, "x2APIC: the ID MSR");
    check(rdmsr(0x80d) == (uint64_t)((id >> 4) << 16 | 1 << (id & 15)),
          "x2APIC: the logical ID is derived");
    unsigned before = count[0x60];
    wrmsr(0x83f, 0x60);
    asm volatile("sti; nop; nop; cli");
    check(count[0x60] == before + 1, "x2APIC: the self-IPI register");
    wrmsr(0x830, (uint64_t)id << 32 | 0x4060);
    asm volatile("sti; nop; nop; cli");
    check(count[0x60] == before + 2, "x2APIC: a 64-bit ICR write");
}

static void x2apic_bad(void *argument)
{
    wrmsr((uint32_t)(uint64_t)argument, 1);
}

static void base_to_xapic(void *argument)
{
    (void)argument;
    wrmsr(0x1b, rdmsr(0x1b) & ~(1ull << 10));
}

static void transitions(void)
{
    flat_try(x2apic_bad, (void *)0x802);
    print_fault("x2APIC: write to the read-only ID");
    flat_try(x2apic_bad, (void *)0x80e);
    print_fault("x2APIC: write to DFR, which is not there");
    flat_try(base_to_xapic, NULL);
    print_fault("x2APIC straight to xAPIC");
    wrmsr(0x1b, rdmsr(0x1b) & ~(3ull << 10));
    uint32_t r[4];
    cpuid(1, 0, r);
    check(!(r[3] >> 9 & 1), "disabled: CPUID does not show an APIC");
    flat_apic_enable();
    cpuid(1, 0, r);
    check(r[3] >> 9 & 1, "enabled again: CPUID shows it");
    unsigned before = count[0x60];
    self_ipi(0x60);
    asm volatile("sti; nop; nop; cli");
    check(count[0x60] == before + 1, "and it works");
}

void guest_main(void)
{
    flat_apic_enable();
    check(rdmsr(0x1b) >> 8 & 1, "this is the bootstrap processor");
    check((APIC(0x30) & 0xff) >= 0x10, "version");
    timer();
    priorities();
    shadow();
    nmi();
    x2apic();
    transitions();
}
