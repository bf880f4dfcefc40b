/*
 * Hardware task switch by CALL and IRET, and virtual-8086 mode, in 32-bit protected mode.
 * SDM vol. 3 sections 7.3 (task switching), 20.2 (virtual-8086 mode), 20.3 (its interrupts).
 */
#include "flat.h"

struct results {
    uint32_t task_ebx, task_tr, task_flags, task_backlink, cr0_after, b_type_inside, b_type_after;
    uint32_t v86_vector, v86_error, v86_flags, v86_ds, v86_ss, v86_opcode, v86_ax;
};
static volatile struct results *const results = (void *)0x7000;

#define LOW 0x9000

asm(".set TLOW, 0x9000\n"
    ".code32\n"
    "tasks_start:\n"
    "  mov %esp, TLOW + (t_saved_esp - tasks_start)\n"
    "  sidt TLOW + (t_saved_idt - tasks_start)\n"
    "  lgdt TLOW + (t_gdt_pointer - tasks_start)\n"
    "  lidt TLOW + (t_idt_pointer - tasks_start)\n"
    "  ljmp $8, $TLOW + (1f - tasks_start)\n"
    "1: mov $0x10, %eax\n"
    "  mov %eax, %ds\n mov %eax, %es\n mov %eax, %ss\n mov %eax, %fs\n mov %eax, %gs\n"
    "  mov $0x18, %eax\n"
    "  ltr %ax\n"
    "  lcall $0x20, $0\n" /* call the task */
    "  mov %cr0, %eax\n"
    "  mov %eax, 0x7010\n"
    "  clts\n"
    "  movzbl TLOW + (t_gdt - tasks_start) + 0x20 + 5, %eax\n"
    "  mov %eax, 0x7018\n"
    /* virtual-8086 mode: GS FS DS ES SS ESP EFLAGS CS EIP */
    "  push $0x1111\n push $0x2222\n push $0x3333\n push $0x4444\n"
    "  push $0x0500\n push $0x0800\n"
    "  push $0x20002\n push $TLOW >> 4\n push $t_v86 - tasks_start\n"
    "  iret\n"
    "t_gp_handler:\n"          /* error, EIP, CS, EFLAGS, ESP, SS, ES, DS, FS, GS */
    "  mov %eax, %ss:0x7034\n" /* DS is null here */
    "  mov $0x10, %eax\n"
    "  mov %eax, %ds\n mov %eax, %es\n"
    "  movl $13, 0x701c\n"
    "  pop 0x7020\n"
    "  mov 8(%esp), %eax\n mov %eax, 0x7024\n"
    "  mov 24(%esp), %eax\n mov %eax, 0x7028\n"
    "  mov 16(%esp), %eax\n mov %eax, 0x702c\n"
    "  mov 4(%esp), %eax\n shl $4, %eax\n add (%esp), %eax\n"
    "  movzwl (%eax), %eax\n mov %eax, 0x7030\n"
    "  mov TLOW + (t_saved_esp - tasks_start), %esp\n"
    "  lidt TLOW + (t_saved_idt - tasks_start)\n"
    "  ret\n"
    "t_task_b:\n"
    "  mov %ebx, 0x7000\n"
    "  str %eax\n"
    "  mov %eax, 0x7004\n"
    "  pushf\n"
    "  pop 0x7008\n"
    "  movzwl TLOW + (t_tss_b - tasks_start), %eax\n"
    "  mov %eax, 0x700c\n"
    "  movzbl TLOW + (t_gdt - tasks_start) + 0x20 + 5, %eax\n"
    "  mov %eax, 0x7014\n"
    "  iret\n"
    ".code16\n"
    "t_v86:\n"
    "  mov %ds, %ax\n"
    "  add $1, %ax\n"
    "  int $0x21\n" /* IOPL 0: #GP(0) */
    "  hlt\n"
    ".code32\n"
    ".align 8\n"
    "t_saved_esp: .long 0\n"
    "t_saved_idt: .word 0\n .long 0\n"
    "t_gdt_pointer: .word 5 * 8 - 1\n .long TLOW + (t_gdt - tasks_start)\n"
    "t_idt_pointer: .word 14 * 8 - 1\n .long TLOW + (t_idt - tasks_start)\n"
    ".align 8\n"
    "t_gdt: .quad 0, 0x00cf9b000000ffff, 0x00cf93000000ffff\n"
    "  .word 103, TLOW + (t_tss_a - tasks_start), 0x8900, 0\n"
    "  .word 103, TLOW + (t_tss_b - tasks_start), 0x8900, 0\n"
    "t_idt: .skip 13 * 8\n"
    "  .word TLOW + (t_gp_handler - tasks_start), 8, 0x8e00, 0\n"
    "t_tss_a: .long 0, 0x6000, 0x10\n .skip 104 - 12\n"
    "t_tss_b: .skip 8 * 4\n"                                  /* back link, stacks, CR3 */
    "  .long TLOW + (t_task_b - tasks_start), 2\n"            /* EIP, EFLAGS */
    "  .long 0, 0, 0, 0x1234abcd, 0x5000, 0, 0, 0\n"          /* EAX ECX EDX EBX ESP EBP ESI EDI */
    "  .long 0x10, 8, 0x10, 0x10, 0x10, 0x10, 0, 104 << 16\n" /* ES CS SS DS FS GS LDT, map */
    "tasks_end:\n"
    ".code64\n");
extern char tasks_start[], tasks_end[];

void guest_main(void)
{
    memcpy((void *)LOW, tasks_start, (size_t)(tasks_end - tasks_start));
    memset((void *)(uintptr_t)results, 0, sizeof *results);
    flat_call_32((void (*)(void))LOW);
    check(results->task_ebx == 0x1234abcd, "a task starts with the registers of its TSS");
    check(results->task_tr == 0x20, "TR names it");
    check(results->task_flags >> 14 & 1, "a called task has NT set");
    check(results->task_backlink == 0x18, "and its back link names the caller");
    check(results->b_type_inside == 0x8b && results->b_type_after == 0x89,
          "its TSS is busy inside and available after IRET");
    check(results->cr0_after >> 3 & 1, "a task switch sets CR0.TS");
    check(results->v86_vector == 13 && results->v86_error == 0,
          "INT n in v86 mode with IOPL 0 is #GP(0)");
    check(results->v86_flags >> 17 & 1, "EFLAGS.VM was pushed");
    check(results->v86_ds == 0x3333 && results->v86_ss == 0x0500, "so were the segments");
    check(results->v86_ax == 0x3334, "v86 code ran");
    check(results->v86_opcode == 0x21cd, "EIP points at INT");
}
