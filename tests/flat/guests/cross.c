/*
 * Four CPUs that change each other's hot code and mappings: immediates of instructions, bytes of
 * jumps, the frame under a page, with shoot-down by IPI. SDM vol. 3 sections 9.1.3 (cross-modifying
 * code), 4.10.5 (shoot-down).
 */
#include "flat.h"

#define CPUS   4
#define SLOTS  64
#define ROUNDS 400
#define V      0x40000000ul
#define SHOOT  0x60
#define P      1ull
#define W      2ull

/* movl $value, %eax; ret: the value is aligned, so that it changes at once. */
static uint8_t code[SLOTS][64] __attribute__((aligned(4096)));
static uint8_t frames[2][4096] __attribute__((aligned(4096)));
static volatile uint32_t latest[SLOTS]; /* written before the code */
static volatile unsigned running, finished, failures;
static volatile unsigned acknowledged;
static volatile uint32_t generation;

static uint32_t call(const void *p)
{
    return ((uint32_t(*)(void))(uint64_t)p)();
}

static volatile uint32_t *value_of(unsigned slot)
{
    return (volatile uint32_t *)(code[slot] + 4);
}

static void make_slot(unsigned slot)
{
    uint8_t *p = code[slot];
    p[0] = p[1] = p[2] = 0x90;
    p[3] = 0xb8;
    *value_of(slot) = 0;
    p[8] = 0xc3;
}

/* Values only grow: one that was seen must not be followed by an older one. */
static void run_slots(unsigned me)
{
    uint32_t seen[SLOTS] = {0};
    uint32_t seed = me * 77777;

    while (finished < 1) {
        seed = seed * 1664525 + 1013904223;
        unsigned slot = seed >> 20 & (SLOTS - 1);
        uint32_t value = call(code[slot]);
        if (value < seen[slot])
            __atomic_add_fetch(&failures, 1, __ATOMIC_SEQ_CST);
        if (value > latest[slot])
            __atomic_add_fetch(&failures, 1, __ATOMIC_SEQ_CST);
        seen[slot] = value;
    }
    /* All is quiet: after a serialising instruction each must be the latest. */
    uint32_t r[4];
    cpuid(0, 0, r);
    for (unsigned slot = 0; slot < SLOTS; slot++)
        if (call(code[slot]) != latest[slot])
            __atomic_add_fetch(&failures, 1, __ATOMIC_SEQ_CST);
}

static void on_shoot(struct frame *frame)
{
    (void)frame;
    invlpg((void *)V);
    __atomic_add_fetch(&acknowledged, 1, __ATOMIC_SEQ_CST);
    APIC(0xb0) = 0;
}

/* After the shoot-down was acknowledged the new frame is seen, and nothing else. */
static void run_page(void)
{
    while (finished < 2) {
        uint32_t from = generation, value = call((void *)V), to = generation;
        if (from == to && !(from & 1) && value != (from >> 1 & 1))
            __atomic_add_fetch(&failures, 1, __ATOMIC_SEQ_CST);
    }
}

static void cpu_main(void *argument)
{
    flat_apic_enable();
    unsigned me = APIC(0x20) >> 24;
    (void)argument;
    asm volatile("sti");
    __atomic_add_fetch(&running, 1, __ATOMIC_SEQ_CST);
    run_slots(me);
    __atomic_add_fetch(&running, 1, __ATOMIC_SEQ_CST);
    run_page();
    __atomic_add_fetch(&running, 1, __ATOMIC_SEQ_CST);
    for (;;)
        asm volatile("hlt");
}

static void await(unsigned count)
{
    while (running < count)
        pause();
}

static void change_code(void)
{
    uint32_t seed = 5;
    for (unsigned i = 0; i < ROUNDS; i++) {
        seed = seed * 1664525 + 1013904223;
        unsigned slot = seed >> 20 & (SLOTS - 1);
        latest[slot]++;
        asm volatile("" : : : "memory");
        *value_of(slot) = latest[slot];
        if (i % 16 == 0)
            for (unsigned k = 0; k < 50; k++)
                pause();
    }
    finished = 1;
    await(2 * (CPUS - 1));
    check(failures == 0, "values in hot code only grow, and all CPUs see the last ones");
}

static void change_page(void)
{
    for (unsigned i = 1; i <= ROUNDS / 4; i++) {
        generation++; /* odd: in between */
        *flat_pte(V) = (uint64_t)frames[i & 1] | P | W;
        invlpg((void *)V);
        acknowledged = 0;
        APIC(0x300) = 0xc4000 | SHOOT;
        while (acknowledged < CPUS - 1)
            pause();
        generation++;
        for (unsigned k = 0; k < 20; k++)
            if (call((void *)V) != (i & 1))
                failures++;
    }
    finished = 2;
    await(3 * (CPUS - 1));
    check(failures == 0, "after a shoot-down no CPU runs the old page");
}

void guest_main(void)
{
    for (unsigned slot = 0; slot < SLOTS; slot++)
        make_slot(slot);
    for (unsigned i = 0; i < 2; i++) {
        frames[i][0] = 0xb8;
        frames[i][1] = (uint8_t)i;
        frames[i][5] = 0xc3;
    }
    *flat_pte(V) = (uint64_t)frames[0] | P | W;
    invlpg((void *)V);
    flat_apic_enable();
    flat_set_handler(SHOOT, on_shoot);
    for (unsigned cpu = 1; cpu < CPUS; cpu++)
        flat_start_ap(cpu, cpu_main, NULL);
    await(CPUS - 1);
    change_code();
    change_page();
}
