/*
 * Interrupts at chosen points: the same in every run, whatever the host's clock does. A seed says
 * which pieces of code run in which order and which of them have an interrupt waiting (sent by the
 * CPU to itself while IF is 0). Each piece opens the door in its middle, where flags, strings, x87
 * and vector registers are live. It must be taken exactly behind the instruction that the manual
 * says, once, and what is computed must be what comes out without interrupts. The expected text has
 * all results: interpreter, translator and lockstep must come to the same. SDM vol. 3
 * section 6.8.1 (IF, and the instruction behind STI), 11.6.1 (ICR).
 */
#include "flat.h"

#define VECTOR 0x51
#define SEEDS  12
#define STEPS  1500

static uint32_t seed;

static uint32_t next_random(void)
{
    seed = seed * 1664525 + 1013904223;
    return seed >> 8;
}

static unsigned interrupts;
static uint64_t taken_at;

/* Uses all registers for itself, and puts them back. */
static void on_interrupt(struct frame *frame)
{
    static uint8_t area[512] __attribute__((aligned(16)));

    asm volatile("fxsave %0\n\t"
                 "fninit\n\tfld1\n\tfldpi\n\tfaddp\n\t"
                 "pcmpeqd %%xmm0, %%xmm0\n\tpxor %%xmm7, %%xmm7\n\t"
                 "pxor %%xmm15, %%xmm15\n\tmovq %%rsp, %%xmm3\n\t"
                 "fxrstor %0"
                 : "+m"(area));
    interrupts++;
    taken_at = frame->rip;
    APIC(0xb0) = 0;
}

/* --- the pieces: memory at RDI, a number in RSI, the result in RAX --- */

typedef uint64_t piece(uint64_t *memory, uint64_t x);

/* `before` ends with the instruction behind which the interrupt is taken; or in `there`. */
#define PIECE_BETWEEN(name, before, there, behind)                                                 \
    asm("do_" #name ":\n" before "\nfrom_" #name ":\n" there "\nto_" #name ":\n" behind            \
        "\n ret\n");                                                                               \
    extern const char from_##name[], to_##name[];                                                  \
    uint64_t do_##name(uint64_t *memory, uint64_t x);
#define PIECE(name, before, behind) PIECE_BETWEEN(name, before, "", behind)

PIECE(adc, "mov %rsi, %rax\n mov %rdi, %rdx\n add %rsi, %rax\n sti\n adc %rsi, %rdx",
      "adc $5, %rax\n adc %rax, (%rdi)\n cli\n sbb $3, %rax\n rcl $3, %rax")
PIECE(sti_twice, "cmp $77, %sil\n sti\n sti",
      "setb %al\n movzx %al, %eax\n cli\n cmovs %rsi, %rax\n lea 3(%rax,%rsi,4), %rax")
PIECE(store, "mov 8(%rdi), %rax\n sti\n mov %rsi, 8(%rdi)",
      "add 8(%rdi), %rax\n xor %rax, 16(%rdi)\n rol $9, %rax\n cli")
PIECE(popf, "test %rsi, %rsi\n pushf\n orl $0x200, (%rsp)\n mov %rsi, %rax\n popf",
      "js 1f\n bswap %rax\n 1: cli\n setp %cl\n add %cl, %al")
PIECE(loop, "mov $40, %ecx\n xor %eax, %eax\n sti\n nop",
      "1: add %rsi, %rax\n rol $5, %rax\n xor %rax, (%rdi,%rcx,8)\n dec %ecx\n jnz 1b\n cli")
PIECE(call, "mov %rsi, %rax\n stc\n sti\n lea 3(%rax), %rax",
      "call 1f\n cli\n jmp 2f\n 1: adc %rsi, %rax\n bswap %rax\n ret\n 2: nop")
PIECE(string, "mov %rsi, %rax\n mov %rdi, %rsi\n lea 1024(%rdi), %rdi\n mov $37, %ecx\n sti\n nop",
      "rep movsq\n cli\n xor -8(%rdi), %rax\n stosq")
PIECE(vector, "movq %rsi, %xmm0\n pshufd $0x1b, %xmm0, %xmm7\n sti\n paddq %xmm0, %xmm7",
      "movdqu %xmm7, 32(%rdi)\n cvtdq2ps %xmm7, %xmm3\n pxor %xmm3, %xmm0\n cli\n movq %xmm0, %rax")
PIECE(x87, "fninit\n mov %rsi, 48(%rdi)\n fildll 48(%rdi)\n fldpi\n sti\n fmulp",
      "fsqrt\n fstpl 56(%rdi)\n cli\n fnstsw %ax\n and $0x3f, %eax\n add 56(%rdi), %rax")
PIECE(locked, "mov %rsi, %rax\n sti\n lock xadd %rax, 64(%rdi)",
      "cmc\n rcr $1, %rax\n movzbl %sil, %ecx\n lock btsq %rcx, 72(%rdi)\n adc $0, %rax\n cli")
PIECE(stack, "push %rsi\n push %rdi\n sti\n pop %rax",
      "pop %rcx\n add %rcx, %rax\n cli\n sub %rdi, %rax\n push %rax\n addq $11, (%rsp)\n pop %rax")
/* The door is open all the time: it is taken somewhere behind the write to the ICR. */
PIECE_BETWEEN(icr,
              "mov $0xfee00300, %edx\n mov %rsi, %rax\n sub %rsi, %rax\n sbb %rcx, %rcx\n sti\n"
              "nop\n mov %r8d, (%rdx)",
              "add %rsi, %rax\n adc %rcx, %rax\n mov $9, %ecx\n 1: lea 7(%rax,%rax,2), %rax\n"
              "dec %ecx\n jnz 1b",
              "cli")

static const struct {
    piece *run;
    const char *from, *to;
    bool sends; /* itself */
} pieces[] = {
#define ENTRY(name)                                                                                \
    {                                                                                              \
        do_##name, from_##name, to_##name, false                                                   \
    }
    ENTRY(adc),  ENTRY(sti_twice), ENTRY(store),  ENTRY(popf),
    ENTRY(loop), ENTRY(call),      ENTRY(string), ENTRY(vector),
    ENTRY(x87),  ENTRY(locked),    ENTRY(stack),  {do_icr, from_icr, to_icr, true},
};
#define PIECES (sizeof pieces / sizeof pieces[0])

/* --- a sequence of them --- */

static uint64_t memory[512];

/* Of an ICR write without effect: a message to a CPU that is not there. */
#define ICR_SELF    (1u << 18 | VECTOR)
#define ICR_NOWHERE VECTOR

static uint64_t call_piece(unsigned k, uint64_t x, bool interrupt)
{
    register uint32_t icr asm("r8") = interrupt ? ICR_SELF : ICR_NOWHERE;
    uint64_t result;

    asm volatile("call *%[run]"
                 : "=a"(result), "+r"(icr)
                 : [run] "m"(pieces[k].run), "D"(memory), "S"(x)
                 : "rcx", "rdx", "r9", "r10", "r11", "memory", "cc");
    return result;
}

static uint64_t one(unsigned k, uint64_t x, bool interrupt, bool *good)
{
    unsigned before = interrupts;
    unsigned wanted = interrupt ? 1 : 0;

    if (interrupt && !pieces[k].sends)
        APIC(0x300) = ICR_SELF;
    uint64_t result = call_piece(k, x, interrupt);
    bool there =
        !interrupt || (taken_at >= (uint64_t)pieces[k].from && taken_at <= (uint64_t)pieces[k].to);
    if (interrupts != before + wanted || !there) {
        if (*good)
            print("piece %u: %u interrupts, the last at %lx, not in %lx to %lx\n", k,
                  interrupts - before, taken_at, (uint64_t)pieces[k].from, (uint64_t)pieces[k].to);
        *good = false;
    }
    return result;
}

static uint64_t sequence(unsigned number, bool with, bool *good)
{
    uint64_t hash = 0xcbf29ce484222325;

    seed = number;
    for (unsigned i = 0; i < 512; i++)
        memory[i] = i * 0x9e3779b97f4a7c15;
    for (unsigned i = 0; i < STEPS; i++) {
        unsigned k = next_random() % PIECES;
        uint64_t x = (uint64_t)next_random() << 37 ^ next_random();
        bool interrupt = next_random() & 1;
        hash = (hash ^ one(k, x, interrupt && with, good)) * 0x100000001b3;
    }
    for (unsigned i = 0; i < 512; i++)
        hash = (hash ^ memory[i]) * 0x100000001b3;
    return hash;
}

void guest_main(void)
{
    flat_apic_enable();
    flat_set_handler(VECTOR, on_interrupt);
    APIC(0x310) = 0x7f000000; /* nobody */
    for (unsigned n = 1; n <= SEEDS; n++) {
        bool good = true;
        uint64_t alone = sequence(n, false, &good);
        interrupts = 0;
        uint64_t disturbed = sequence(n, true, &good);
        good &= alone == disturbed;
        print("%s seed %u: %lx, %u interrupts\n", good ? "ok" : "FAIL", n, disturbed, interrupts);
    }
}
