/*
 * Modes: 32-bit protected mode with its own IDT, 16-bit protected mode, real mode and back,
 * compatibility mode, virtual-8086 mode. SDM vol. 3 sections 9.8-9.9 and 20; vol. 1 section 3.1.
 */
#include "flat.h"

/* Shared with the 32-bit and 16-bit code, which lies below 1 MiB when it runs there. */
struct results {
    uint32_t eflags32, esp_delta, vector32, error32;
    uint16_t real_ax, real_cs, real_int, pm16_ax;
    uint32_t pm16_sp;
    uint32_t unreal;
};
static volatile struct results *const results = (void *)0x7000;

/* Copied to LOW; entered by flat_call_32 as 32-bit code at its start. */
#define LOW 0x9000

asm(".code32\n"
    "modes_start:\n"
    /* exceptions in 32-bit mode: IDT with one gate */
    "  sidt LOW + (saved_idt - modes_start)\n"
    "  lidt LOW + (idt32_pointer - modes_start)\n"
    "  mov %esp, %esi\n"
    "  mov $0, %ecx\n"
    "  mov $0x1238, %eax\n"
    "fault_at: mov %eax, %fs\n" /* #GP(0x1238) */
    "after_fault:\n"
    "  sub %esp, %esi\n"
    "  mov %esi, 0x7004\n"
    /* 16-bit protected mode */
    "  mov %esp, LOW + (saved_esp - modes_start)\n"
    "  ljmp $0x28, $LOW + (pm16 - modes_start)\n"
    "handler32:\n"
    "  pop %edx\n"
    "  mov %edx, 0x700c\n" /* error code */
    "  movl $13, 0x7008\n"
    "  movl $LOW + (after_fault - modes_start), (%esp)\n"
    "  iret\n"
    ".code16\n"
    "pm16:\n"
    "  mov $0x30, %ax\n"
    "  mov %ax, %ds\n"
    "  mov %ax, %es\n"
    "  mov %ax, %ss\n"
    "  mov $0x6000, %sp\n"
    "  mov $0x1234, %ax\n"
    "  push %ax\n"
    "  call 1f\n"
    "1: pop %bx\n"
    "  pop %ax\n"
    "  inc %ax\n"
    "  mov %ax, 0x7016\n"
    "  mov %sp, 0x7018\n"
    /* real mode */
    "  mov %cr0, %eax\n"
    "  and $0xfffffffe, %eax\n"
    "  mov %eax, %cr0\n"
    "  ljmp $LOW >> 4, $real - modes_start\n"
    "real:\n"
    "  lidt %cs:real_idt - modes_start\n"
    "  xor %ax, %ax\n"
    "  mov %ax, %ss\n"
    "  mov $0x6000, %sp\n"
    "  mov $0x700, %ax\n"
    "  mov %ax, %ds\n" /* 0x7000 */
    "  mov %cs, %ax\n"
    "  mov %ax, 0x12\n"
    "  mov $0xffff, %ax\n"
    "  add $2, %ax\n"
    "  mov %ax, 0x10\n"
    /* an interrupt through the vector table at 0 */
    "  xor %ax, %ax\n"
    "  mov %ax, %es\n"
    "  movw $real_handler - modes_start, %es:0x60 * 4\n"
    "  movw $LOW >> 4, %es:0x60 * 4 + 2\n"
    "  movw $0, 0x14\n"
    "  int $0x60\n"
    "  incw 0x14\n"
    /* "unreal": FS keeps the 4 GiB limit that it got in protected mode */
    "  mov %cr0, %eax\n"
    "  or $1, %al\n"
    "  mov %eax, %cr0\n"
    "  mov $0x20, %bx\n"
    "  mov %bx, %fs\n"
    "  and $0xfe, %al\n"
    "  mov %eax, %cr0\n"
    "  mov $0x110000, %ebx\n"
    "  movl %fs:(%ebx), %ecx\n"
    "  mov %ecx, 0x1c\n"
    /* and back to 32-bit protected mode */
    "  mov %cr0, %eax\n"
    "  or $1, %al\n"
    "  mov %eax, %cr0\n"
    "  ljmpl $0x18, $LOW + (back32 - modes_start)\n"
    "real_handler:\n"
    "  movw $0x60, 0x14\n"
    "  iret\n"
    ".code32\n"
    "back32:\n"
    "  mov $0x20, %eax\n"
    "  mov %eax, %ds\n"
    "  mov %eax, %es\n"
    "  mov %eax, %ss\n"
    "  mov LOW + (saved_esp - modes_start), %esp\n"
    "  pushf\n"
    "  pop %eax\n"
    "  mov %eax, 0x7000\n"
    "  lidt LOW + (saved_idt - modes_start)\n"
    "  ret\n"
    ".align 8\n"
    "saved_esp: .long 0\n"
    "saved_idt: .word 0\n .long 0\n .word 0\n"
    "idt32_pointer: .word 14 * 8 - 1\n .long LOW + (idt32 - modes_start)\n"
    "real_idt: .word 0x3ff\n .long 0\n"
    ".align 8\n"
    "idt32: .skip 13 * 8\n"
    "  .word LOW + (handler32 - modes_start), 0x18, 0x8e00, 0\n"
    "modes_end:\n"
    ".code64\n"
    ".set LOW, 0x9000\n");
extern char modes_start[], modes_end[];

static void protected_and_real(void)
{
    memcpy((void *)LOW, modes_start, (size_t)(modes_end - modes_start));
    memset((void *)(uintptr_t)results, 0, sizeof *results);
    *(volatile uint32_t *)0x110000 = 0xcafe1234;
    flat_call_32((void (*)(void))LOW);
    check(results->vector32 == 13 && results->error32 == 0x1238, "32-bit: #GP with its selector");
    check(results->esp_delta == 0, "32-bit: IRET takes the whole frame");
    check(results->pm16_ax == 0x1235 && results->pm16_sp == 0x6000,
          "16-bit protected mode: stack and call");
    check(results->real_ax == 1 && results->real_cs == LOW >> 4, "real mode: registers and CS");
    check(results->real_int == 0x61, "real mode: INT through the vector table");
    check(results->unreal == 0xcafe1234, "real mode keeps a segment's limit");
    check((results->eflags32 & 2) == 2, "back in 32-bit mode");
}

/* Compatibility mode: 32-bit code under long mode; addresses and stack are 32 bits wide. */
static volatile uint32_t compat_result, compat_wrap;
asm(".code32\n"
    "compat_code:\n"
    "  mov $0xffffffff, %eax\n"
    "  inc %eax\n" /* one byte 0x40: a REX prefix in 64-bit mode */
    "  mov %eax, compat_result\n"
    "  push $0x55\n"
    "  pop %eax\n"
    "  add %eax, compat_result\n"
    "  mov $0xfffffff0, %ebx\n"
    "  mov compat_table + 0x10(%ebx), %eax\n" /* wraps at 4 GiB */
    "  mov %eax, compat_wrap\n"
    "  lret\n"
    ".align 4\n"
    "compat_table: .long 0x77\n"
    ".code64\n");
extern char compat_code[];

static void compatibility_mode(void)
{
    struct {
        uint32_t offset;
        uint16_t selector;
    } __attribute__((packed)) target = {(uint32_t)(uint64_t)compat_code, SEL_CODE32};
    /* RETF of the 32-bit code pops 4 bytes each: CALL FAR pushed them as a 32-bit operand. */
    asm volatile("lcall *%0" : : "m"(target) : "rax", "rbx", "memory");
    check(compat_result == 0x55, "compatibility mode: INC is one byte, stack works");
    check(compat_wrap == 0x77, "compatibility mode: addresses wrap at 4 GiB");
}

void guest_main(void)
{
    protected_and_real();
    compatibility_mode();
}
