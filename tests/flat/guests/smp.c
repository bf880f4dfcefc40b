/*
 * Several CPUs: INIT and start-up IPIs, locked operations, IPIs between CPUs, code changed by
 * another CPU. SDM vol. 3 sections 9.4 (MP initialisation), 9.1 (locked operations), 9.1.3
 * (cross-modifying code).
 */
#include "flat.h"

#define ROUNDS 20000

static volatile uint64_t locked_counter, done_count;
static uint8_t split[128] __attribute__((aligned(64)));
static volatile unsigned ipi_count;
static volatile bool started[8];

static void count_ipi(struct frame *frame)
{
    (void)frame;
    __atomic_add_fetch(&ipi_count, 1, __ATOMIC_SEQ_CST);
    APIC(0xb0) = 0;
}

static void add_rounds(void)
{
    for (unsigned i = 0; i < ROUNDS; i++) {
        asm volatile("lock incq %0" : "+m"(locked_counter));
        asm volatile("lock addl $1, %0"
                     : "+m"(*(volatile uint32_t *)(split + 62))); /* split lock */
        if (i % 3 == 0) {
            uint64_t one = 1;
            asm volatile("lock xaddq %0, %1" : "+r"(one), "+m"(locked_counter));
        }
    }
}

static void cpu_main(void *argument)
{
    uint32_t me = APIC(0x20) >> 24;
    (void)argument;
    flat_apic_enable();
    started[me] = true;
    while (!started[0])
        pause();
    add_rounds();
    __atomic_add_fetch(&done_count, 1, __ATOMIC_SEQ_CST);
    for (;;)
        asm volatile("sti; hlt");
}

/* Another CPU calls code that this one rewrites; each new version must be seen after the flag. */
static uint8_t code[64] __attribute__((aligned(64)));
static volatile uint32_t version, seen_version, cross_failures;

static void runner(void *argument)
{
    (void)argument;
    for (uint32_t v = 1; v <= 500; v++) {
        while (version < v)
            pause();
        uint32_t r[4];
        cpuid(0, 0, r); /* serialises */
        if (((uint32_t(*)(void))code)() != v)
            cross_failures++;
        seen_version = v;
    }
    for (;;)
        asm volatile("cli; hlt");
}

static void cross_modifying(void)
{
    code[0] = 0xb8; /* mov $imm, %eax; ret */
    code[5] = 0xc3;
    flat_start_ap(2, runner, NULL);
    for (uint32_t v = 1; v <= 500; v++) {
        memcpy(code + 1, &v, 4);
        version = v;
        while (seen_version < v)
            pause();
    }
    check(cross_failures == 0, "another CPU runs each new version of changed code");
}

void guest_main(void)
{
    flat_apic_enable();
    flat_set_handler(0x70, count_ipi);
    for (unsigned cpu = 1; cpu <= 3; cpu++)
        if (cpu != 2)
            flat_start_ap(cpu, cpu_main, NULL);
    while (!started[1] || !started[3])
        pause();
    check(true, "two CPUs started");
    started[0] = true;
    add_rounds();
    while (done_count < 2)
        pause();
    check(locked_counter == 3ull * (ROUNDS + (ROUNDS + 2) / 3), "no locked increment was lost");
    check(*(uint32_t *)(split + 62) == 3u * ROUNDS, "nor one that crosses a cache line");
    APIC(0x310) = 1u << 24;
    APIC(0x300) = 0x4070;
    while (ipi_count < 1)
        pause();
    check(true, "an IPI to one CPU");
    cross_modifying();
    APIC(0x300) = 0xc4070; /* all but self; CPU 2 has its interrupts off */
    while (ipi_count < 3)
        pause();
    check(ipi_count == 3, "an IPI to all others");
    /* INIT stops a CPU that loops with interrupts off; it can start again. */
    flat_start_ap(2, cpu_main, NULL);
    while (done_count < 3)
        pause();
    check(true, "a CPU starts again after INIT");
}
