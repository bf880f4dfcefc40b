/*
 * Interrupts at random points of a computation that uses all there is: general registers, flags
 * across instructions, strings, x87 and vector registers, calls, locked operations. What comes out
 * must be what comes out without interrupts. The points are seeded: from the command line ("seed
 * 5"), else 1. SDM vol. 3 section 6.12.
 */
#include "flat.h"

#define ROUNDS 300
#define VECTOR 0x50

extern uint64_t multiboot_info;

static uint32_t seed = 1;
static volatile unsigned interrupts;

static uint32_t next_random(void)
{
    seed = seed * 1664525 + 1013904223;
    return seed >> 8;
}

/*
 * Uses all registers for itself, and puts them back. The vector registers are changed and restored
 * through memory, x87 by FXSAVE.
 */
static void on_timer(struct frame *frame)
{
    static uint8_t area[512] __attribute__((aligned(16)));
    (void)frame;
    asm volatile("fxsave %0\n\t"
                 "fninit\n\tfld1\n\tfldpi\n\tfaddp\n\t"
                 "pcmpeqd %%xmm0, %%xmm0\n\tpxor %%xmm7, %%xmm7\n\t"
                 "pxor %%xmm15, %%xmm15\n\tmovq %%rsp, %%xmm3\n\t"
                 "fxrstor %0"
                 : "+m"(area));
    interrupts++;
    APIC(0xb0) = 0;
    APIC(0x380) = 200 + next_random() % 20000; /* the next one: VM time in units of 2 ns */
}

/* Over memory at RDI (256 words), RSI rounds; the result in RAX. */
asm("compute:\n"
    "  push %rbx\n  push %rbp\n  push %r12\n  push %r13\n  push %r14\n  push %r15\n"
    "  mov $0x9e3779b97f4a7c15, %rax\n"
    "  mov %rdi, %r15\n"
    "  xor %ebx, %ebx\n  xor %ebp, %ebp\n  xor %edx, %edx\n  xor %r8d, %r8d\n"
    "  mov $7, %r9d\n  mov $11, %r10d\n  mov $13, %r11d\n  mov $17, %r12d\n"
    "  mov $19, %r13d\n  mov $23, %r14d\n"
    "  fninit\n  fldz\n  pxor %xmm0, %xmm0\n  pxor %xmm7, %xmm7\n  pxor %xmm15, %xmm15\n"
    "1: mov $64, %ecx\n"
    "2: add %rax, %r9\n"
    "  adc %r9, %r10\n"
    "  adc %r10, %r11\n"
    "  sbb %r11, %r12\n"
    "  rcl $5, %r13\n"
    "  rcr $3, %r14\n"
    "  mov %r12, (%r15,%rcx,8)\n"
    "  xor %r13, 8(%r15,%rcx,8)\n"
    "  add %r14, 512(%r15)\n"
    "  adcq $0, 520(%r15)\n"
    "  lock xadd %rbx, 528(%r15)\n"
    "  call 4f\n"
    "  push %rax\n"
    "  popcnt %rax, %r8\n"
    "  pop %rax\n"
    "  cmp $32, %r8\n"
    "  cmova %r11, %rax\n"
    "  seta %dl\n"
    "  lea (%rdx,%rax,2), %rax\n"
    "  movq %rax, %xmm1\n"
    "  paddq %xmm1, %xmm0\n"
    "  pshufd $0x39, %xmm0, %xmm7\n"
    "  pxor %xmm7, %xmm15\n"
    "  movd %ecx, %xmm2\n"
    "  cvtdq2ps %xmm2, %xmm2\n"
    "  movl %ecx, 536(%r15)\n"
    "  fiadds 536(%r15)\n"
    "  dec %ecx\n"
    "  jnz 2b\n"
    "  lea 1024(%r15), %rdi\n"
    "  mov $300, %ecx\n"
    "  cld\n"
    "  rep stosb\n"
    "  lea 1024(%r15), %rdi\n"
    "  mov %rsi, %rbp\n"
    "  lea (%r15), %rsi\n"
    "  mov $32, %ecx\n"
    "  rep movsq\n"
    "  mov %rbp, %rsi\n"
    "  dec %rsi\n"
    "  jnz 1b\n"
    "  fistpll 544(%r15)\n"
    "  movdqu %xmm15, 560(%r15)\n"
    "  xor %r9, %rax\n  xor %r10, %rax\n  add %r11, %rax\n  xor %r12, %rax\n"
    "  add %r13, %rax\n  xor %r14, %rax\n  add %rbx, %rax\n"
    "  pop %r15\n  pop %r14\n  pop %r13\n  pop %r12\n  pop %rbp\n  pop %rbx\n"
    "  ret\n"
    "4: test %rax, %rax\n"
    "  js 5f\n"
    "  ror $9, %rax\n"
    "  ret\n"
    "5: bswap %rax\n"
    "  imul $0x10001, %rax, %rax\n"
    "  ret\n");
uint64_t compute(uint64_t *memory, uint64_t rounds);

static uint64_t hash(const uint64_t *words, unsigned count, uint64_t h)
{
    for (unsigned i = 0; i < count; i++)
        h = (h ^ words[i]) * 0x100000001b3;
    return h;
}

static uint64_t work(void)
{
    static uint64_t memory[512];
    memset(memory, 0, sizeof memory);
    uint64_t result = compute(memory, ROUNDS);
    return hash(memory, 512, result);
}

static void read_seed(void)
{
    const uint32_t *info = (const uint32_t *)multiboot_info;
    const char *c = info[0] & 4 ? (const char *)(uint64_t)info[4] : "";
    while (*c && (*c < '0' || *c > '9'))
        c++;
    if (!*c)
        return;
    for (seed = 0; *c >= '0' && *c <= '9'; c++)
        seed = seed * 10 + (uint32_t)(*c - '0');
}

void guest_main(void)
{
    read_seed();
    flat_apic_enable();
    flat_set_handler(VECTOR, on_timer);
    uint64_t alone = work();
    check(work() == alone, "twice the same");
    APIC(0x3e0) = 0; /* divide by 2 */
    APIC(0x320) = VECTOR;
    APIC(0x380) = 1000;
    asm volatile("sti");
    bool same = true;
    /* How many come in a round depends on how busy the host is. */
    for (unsigned i = 0; i < 5 || (interrupts < 100 && i < 1000); i++)
        same &= work() == alone;
    asm volatile("cli");
    APIC(0x320) = 1 << 16 | VECTOR;
    check(same, "and the same with interrupts");
    check(interrupts >= 100, "at least a hundred of them");
}
