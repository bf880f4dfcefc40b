/* The library works: serial output, 64-bit mode, a recorded exception, user mode, 32-bit code. */
#include "flat.h"

static void divide(void *argument)
{
    asm volatile("xor %%edx, %%edx; mov $1, %%eax; divl (%0)" : : "r"(argument) : "rax", "rdx");
}

static void user_code(void)
{
    asm volatile("mov %%cs, %%eax; int $0x80" : : : "rax");
}

static volatile uint32_t cr0_of_32;

/* 32-bit: mov %cr0, %eax; mov %eax, cr0_of_32; ret */
asm(".code32\n"
    "code_32: mov %cr0, %eax\n"
    "mov %eax, cr0_of_32\n"
    "ret\n"
    ".code64\n");
extern char code_32[];

void guest_main(void)
{
    uint32_t zero = 0;
    print("hello from %s mode\n", rdmsr(0xc0000080) & 1 << 10 ? "64-bit" : "another");
    check(flat_try(divide, &zero) && fault.vector == 0, "divide by zero is #DE");
    static uint8_t stack[4096];
    flat_call_user(user_code, stack + sizeof stack);
    check(fault.vector == 0x80 && fault.cs == (SEL_CODE64_USER | 3),
          "user mode and back by INT 0x80");
    flat_call_32((void (*)(void))code_32);
    check((cr0_of_32 & 0x80000001) == 1, "32-bit protected mode without paging, and back");
    print("%d %u %x %08x %lx\n", -5, 42u, 0xbeefu, 0x1234u, 0x123456789abcdeful);
}
