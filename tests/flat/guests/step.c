/*
 * Single-step and breakpoints in code that is hot: the same traps at the same places with the same
 * result as in a copy of it that never ran before. SDM vol. 3 section 18.3 (17.3 in older
 * editions).
 */
#include "flat.h"

#define HOT       3000
#define TRAPS_MAX 4096

/*
 * Computes something of RDI and RSI; position independent, so that copies of it run. With every
 * kind of jump, a string instruction, and stores.
 */
asm("work:\n"
    "  push %rbx\n"
    "  push %rbp\n"
    "  mov %rdi, %rax\n"
    "  lea work_table(%rip), %rbx\n"
    "work_once: mov $12, %ecx\n"
    "1: add %rsi, %rax\n"
    "  adc $3, %rax\n"
    "  rol $7, %rax\n"
    "  test $1, %al\n"
    "  jz 2f\n"
    "  xor $0x55, %rax\n"
    "  jmp 3f\n"
    "2: call 5f\n"
    "3: mov %rax, -8(%rsp)\n"
    "  addl $1, -4(%rsp)\n"
    "  mov -8(%rsp), %rax\n"
    "  dec %ecx\n"
    "  jnz 1b\n"
    "  lea -64(%rsp), %rdi\n"
    "  mov $5, %ecx\n"
    "  cld\n"
    "  rep stosb\n"
    "  lea 4f(%rip), %rbp\n"
    "  jmp *%rbp\n"
    "4: pop %rbp\n"
    "  pop %rbx\n"
    "  ret\n"
    "5: imul $77, %rax, %rax\n"
    "  bswap %rax\n"
    "  ret\n"
    "work_table: .quad 0\n"
    "work_end:\n");
extern const uint8_t work[], work_once[], work_end[];

typedef uint64_t work_function(uint64_t a, uint64_t b);

static uint8_t copies[64][512] __attribute__((aligned(4096)));
static unsigned used;

static work_function *fresh_copy(void)
{
    uint8_t *copy = copies[used++];
    memcpy(copy, work, (size_t)(work_end - work));
    return (work_function *)copy;
}

static struct traps {
    uint64_t start; /* of the code that is stepped */
    unsigned count, outside;
    uint16_t at[TRAPS_MAX];
    uint64_t dr6;
} traps;

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
static inline void write_dr0(uint64_t v)
{
    asm volatile("mov %0, %%dr0" : : "r"(v));
}
static inline void write_dr7(uint64_t v)
{
    asm volatile("mov %0, %%dr7" : : "r"(v));
}

static void on_debug(struct frame *frame)
{
    uint64_t at = frame->rip - traps.start;
    if (at >= (uint64_t)(work_end - work))
        traps.outside++;
    else if (traps.count < TRAPS_MAX)
        traps.at[traps.count++] = (uint16_t)at;
    traps.dr6 |= read_dr6();
    if (!(read_dr6() & 1 << 14))
        frame->rflags |= 1 << 16; /* RF */
    write_dr6(0xffff0ff0);
}

static void begin(work_function *f)
{
    memset(&traps, 0, sizeof traps);
    traps.start = (uint64_t)f;
}

/* With TF set around the call. */
static uint64_t stepped(work_function *f, uint64_t a, uint64_t b)
{
    uint64_t result;
    begin(f);
    asm volatile("pushfq\n\torl $0x100, (%%rsp)\n\tpopfq\n\t"
                 "call *%3\n\t"
                 "pushfq\n\tandl $~0x100, (%%rsp)\n\tpopfq"
                 : "=a"(result), "+D"(a), "+S"(b)
                 : "r"(f)
                 : "rcx", "rdx", "r8", "r9", "r10", "r11", "memory", "cc");
    return result;
}

static uint64_t heat(work_function *f)
{
    uint64_t sum = 0;
    for (unsigned i = 0; i < HOT; i++)
        sum = sum * 31 + f(i, sum);
    return sum;
}

static void single_step(void)
{
    static struct traps cold;
    work_function *hot = fresh_copy(), *never = fresh_copy();
    uint64_t heated = heat(hot);
    uint64_t a = stepped(never, 1234, 5678);
    cold = traps;
    uint64_t b = stepped(hot, 1234, 5678);
    check(a == b && a == hot(1234, 5678), "the same result, stepped or not");
    check(cold.count > 100 && cold.count == traps.count && cold.outside == traps.outside &&
              memcmp(cold.at, traps.at, sizeof cold.at) == 0,
          "the same traps in hot code as in code that never ran");
    check(heat(hot) == heated, "hot again");
}

/* Each HOT call is stepped with the seed's chance; nothing may come of it. */
static void by_turns(void)
{
    work_function *f = fresh_copy();
    uint64_t plain = heat(fresh_copy()), sum = 0;
    uint32_t seed = 1;
    for (unsigned i = 0; i < HOT; i++) {
        seed = seed * 1103515245 + 12345;
        sum = sum * 31 + (seed >> 16 & 63 ? f(i, sum) : stepped(f, i, sum));
    }
    check(sum == plain, "stepped now and then");
}

static void instruction_breakpoint(void)
{
    work_function *f = fresh_copy();
    uint64_t heated = heat(f), offset = (uint64_t)(work_once - work);
    begin(f);
    write_dr0((uint64_t)f + offset + 1);
    write_dr7(0x400 | 2);
    bool same = heat(f) == heated;
    check(same && traps.count == 0, "a breakpoint inside an instruction of hot code is silent");
    begin(f);
    write_dr0((uint64_t)f + offset);
    same = heat(f) == heated;
    write_dr7(0x400);
    check(same && traps.count == HOT && traps.at[0] == offset && traps.at[HOT - 1] == offset,
          "a breakpoint in hot code is hit each time");
    begin(f);
    check(heat(f) == heated && traps.count == 0, "and no more when it is off");
}

static void data_breakpoint(void)
{
    static volatile uint64_t words[1024];
    unsigned hits = 0;
    for (unsigned round = 0; round < 4; round++) {
        begin(NULL);
        if (round & 1) {
            write_dr0((uint64_t)&words[77]);
            write_dr7(0x400 | 2 | 1 << 16 | 2 << 18);
        }
        for (unsigned i = 0; i < 8 * 1024; i++)
            words[i % 1024]++;
        write_dr7(0x400);
        hits = traps.outside;
        check(hits == (round & 1 ? 8 : 0), round & 1 ? "eight hits of a watched word in a hot loop"
                                                     : "none when it is not watched");
    }
    check(words[77] == 32, "and nothing was lost");
}

void guest_main(void)
{
    flat_set_handler(1, on_debug);
    single_step();
    by_turns();
    instruction_breakpoint();
    data_breakpoint();
}
