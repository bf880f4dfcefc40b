/*
 * Single-step and debug registers: instruction, write and read/write breakpoints, general detect,
 * what DR6 tells, RF. SDM vol. 3 chapter 18 (debug, 17 in older editions).
 */
#include "flat.h"

static inline uint64_t read_dr6(void)
{
    uint64_t v;
    asm volatile("mov %%dr6, %0" : "=r"(v));
    return v;
}
static inline void write_dr6(uint64_t v)
{
    asm volatile("mov %0, %%dr6" : : "r"(v));
}
static inline void write_dr0(const volatile void *p)
{
    asm volatile("mov %0, %%dr0" : : "r"(p));
}
static inline void write_dr7(uint64_t v)
{
    asm volatile("mov %0, %%dr7" : : "r"(v));
}

static unsigned traps;
static uint64_t rips[64], last_dr6, first_rflags;
static bool stop_stepping;

static void on_debug(struct frame *frame)
{
    if (traps < 64)
        rips[traps] = frame->rip;
    if (traps++ == 0)
        first_rflags = frame->rflags;
    last_dr6 = read_dr6();
    write_dr6(0xffff0ff0);
    if (!(last_dr6 & 1 << 14))
        frame->rflags |= 1 << 16; /* RF: do not hit the same instruction breakpoint again */
    if (stop_stepping)
        frame->rflags &= ~0x100ull;
}

static void begin(void)
{
    traps = 0;
    last_dr6 = 0;
}

extern char step_1[], step_2[], step_3[], step_4[], step_ss[], step_after_ss[];
asm(".text\n"
    "step_code:\n"
    "  pushfq\n"
    "  orl $0x100, (%rsp)\n"
    "  popfq\n" /* the trap comes after the instruction that follows */
    "step_1: nop\n"
    "step_2: mov $3, %ecx\n"
    "step_3: rep lodsb\n" /* a trap after each repetition */
    "step_4: pushfq\n"
    "  andl $~0x100, (%rsp)\n"
    "  popfq\n"
    "  ret\n");
void step_code(void);

static void single_step(void)
{
    static char bytes[8];
    begin();
    const void *from = bytes;
    asm volatile("call step_code" : "+S"(from) : : "rcx", "rax", "memory");
    check(rips[0] == (uint64_t)step_2 && rips[1] == (uint64_t)step_3,
          "single-step traps after each instruction");
    check(rips[2] == (uint64_t)step_3 && rips[3] == (uint64_t)step_3 && rips[4] == (uint64_t)step_4,
          "and after each repetition of a string instruction");
    check(traps == 8, "eight traps in all");
    check(last_dr6 == (0xffff0ff0 | 1 << 14), "DR6.BS");
}

static volatile uint64_t watched;

__attribute__((noinline)) static void target(void)
{
    asm volatile("nop");
}

static void breakpoints(void)
{
    begin();
    write_dr0((void *)target);
    write_dr7(0x400 | 2);
    target();
    check(traps == 1 && rips[0] == (uint64_t)target,
          "an instruction breakpoint is a fault at its address");
    check(last_dr6 == (0xffff0ff0 | 1), "DR6.B0");
    check(!(first_rflags >> 16 & 1), "the pushed RF is clear for an instruction breakpoint");
    begin();
    write_dr0(&watched);
    write_dr7(0x400 | 2 | 1 << 16 | 2 << 18); /* writes, 8 bytes */
    watched = 5;
    check(traps == 1 && watched == 5, "a write breakpoint is a trap: the write happened");
    begin();
    (void)watched;
    check(traps == 0, "a read does not hit a write breakpoint");
    ((volatile uint8_t *)&watched)[7] = 1;
    check(traps == 1, "one byte of the watched ones is enough");
    begin();
    write_dr7(0x400 | 2 | 3 << 16 | 0 << 18); /* reads and writes, 1 byte */
    (void)watched;
    check(traps == 1, "a read/write breakpoint sees a read that overlaps it");
    begin();
    (void)((volatile uint8_t *)&watched)[1];
    check(traps == 0, "but not its neighbour");
    write_dr7(0x400);
    (void)watched;
    check(traps == 0, "a disabled breakpoint is silent");
}

static void read_dr7_detected(void *argument)
{
    (void)argument;
    uint64_t v;
    asm volatile("mov %%dr7, %0" : "=r"(v));
}

static void high_dr6(void *argument)
{
    (void)argument;
    write_dr6(1ull << 32);
}

static void high_dr7(void *argument)
{
    (void)argument;
    write_dr7(1ull << 32);
}

static void general_detect(void)
{
    flat_set_handler(1, NULL);
    write_dr7(0x400 | 1 << 13);
    flat_try(read_dr7_detected, NULL);
    uint64_t dr6 = read_dr6();
    print_fault("MOV from DR7 with general detect");
    check(dr6 >> 13 & 1, "DR6.BD");
    write_dr6(0xffff0ff0);
    flat_try(high_dr6, NULL);
    print_fault("DR6 above 32 bits");
    flat_try(high_dr7, NULL);
    print_fault("DR7 above 32 bits");
}

void guest_main(void)
{
    flat_set_handler(1, on_debug);
    single_step();
    breakpoints();
    general_detect();
}
