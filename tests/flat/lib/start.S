/*
 * Entry of every flat guest: from the multiboot loader (32-bit protected mode, no paging) to 64-bit
 * mode with the first 4 GiB mapped one to one by 2 MiB pages, then guest_main(). Also the exception
 * entries, the start of an application processor, and calls into 32-bit and 16-bit code.
 */
#include "flat.h"

    .section .multiboot, "a"
    .align 4
    .long 0x1badb002, 0, -0x1badb002

    .text
    .code32
    .global start
start:
    cli
    cld
    movl %ebx, multiboot_info
    movl $stack_top, %esp
    /* Page tables: PML4 -> PDPT -> 4 page directories of 2 MiB pages. */
    movl $pdpt + 7, pml4
    movl $page_directories + 7, %eax
    xorl %ecx, %ecx
1:  movl %eax, pdpt(, %ecx, 8)
    addl $4096, %eax
    incl %ecx
    cmpl $4, %ecx
    jne 1b
    xorl %ecx, %ecx
    movl $0x87, %eax
2:  movl %eax, page_directories(, %ecx, 8)
    addl $0x200000, %eax
    incl %ecx
    cmpl $2048, %ecx
    jne 2b
    call enter_long_mode
    .code64
    movl $stack_top, %esp
    call flat_init
    call guest_main
    xorl %edi, %edi
    call debug_exit
3:  hlt
    jmp 3b

    /* From 32-bit code without paging: returns in 64-bit mode. */
    .code32
enter_long_mode:
    movl %cr4, %eax
    orl $0x620, %eax /* PAE, OSFXSR, OSXMMEXCPT */
    movl %eax, %cr4
    movl $pml4, %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx
    rdmsr
    orl $0x901, %eax /* SCE, LME, NXE */
    wrmsr
    movl %cr0, %eax
    orl $0x80010023, %eax /* PG, WP, NE, MP, PE */
    andl $~0x4, %eax
    movl %eax, %cr0
    lgdt gdt_pointer
    movl $SEL_DATA64, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movl %eax, %fs
    movl %eax, %gs
    popl %edx
    ljmp $SEL_CODE64, $1f
    .code64
1:  jmp *%rdx

    /* --- exceptions: each pushes an error code (0 where there is none) and its vector --- */
    .macro vector_entry number has_error
    .align 16
    .if \has_error == 0
    pushq $0
    .endif
    pushq $\number
    jmp exception_common
    .endm

    .align 16
    .global exception_entries
exception_entries:
    .set n, 0
    .rept 256
    .if n == 8 || (n >= 10 && n <= 14) || n == 17
    vector_entry n 1
    .else
    vector_entry n 0
    .endif
    .set n, n + 1
    .endr

exception_common:
    pushq %rax
    pushq %rcx
    pushq %rdx
    pushq %rbx
    pushq %rbp
    pushq %rsi
    pushq %rdi
    pushq %r8
    pushq %r9
    pushq %r10
    pushq %r11
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    cld
    movq %rsp, %rdi
    call exception_handler
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %r11
    popq %r10
    popq %r9
    popq %r8
    popq %rdi
    popq %rsi
    popq %rbp
    popq %rbx
    popq %rdx
    popq %rcx
    popq %rax
    addq $16, %rsp
    iretq

    /*
     * bool flat_try(void (*function)(void *), void *argument): calls it; a fault inside comes back
     * here with true (exception_handler finds try_stack set).
     */
    .global flat_try
flat_try:
    pushq %rbx
    pushq %rbp
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    pushfq
    pushq try_stack(%rip)
    movq %rsp, try_stack(%rip)
    movq %rdi, %rax
    movq %rsi, %rdi
    subq $8, %rsp
    call *%rax
    xorl %eax, %eax
    jmp 1f
    .global flat_try_recover
flat_try_recover:
    movl $1, %eax
1:  movq try_stack(%rip), %rsp
    popq try_stack(%rip)
    popfq
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbp
    popq %rbx
    ret

    /*
     * void flat_call_user(void (*function)(void), void *stack): runs function at CPL 3 until it
     * executes INT 0x80 (vector 0x80 comes back here through exception_handler) or faults.
     */
    .global flat_call_user
flat_call_user:
    pushq %rbx
    pushq %rbp
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, user_return_stack(%rip)
    movq %rsp, tss64 + 4(%rip)
    subq $1024, tss64 + 4(%rip)
    andq $-16, tss64 + 4(%rip)
    pushq $SEL_DATA64_USER | 3
    pushq %rsi
    pushq $0x202
    pushq $SEL_CODE64_USER | 3
    pushq %rdi
    iretq
    .global flat_user_return
flat_user_return:
    movq user_return_stack(%rip), %rsp
    movl $SEL_DATA64, %eax
    movl %eax, %ds
    movl %eax, %es
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbp
    popq %rbx
    ret

    /*
     * void flat_call_32(void (*function)(void)): leaves long mode, calls 32-bit protected-mode code
     * without paging, and comes back. Flat segments; interrupts off; the 32-bit code keeps ESP.
     */
    .global flat_call_32
flat_call_32:
    pushq %rbx
    pushq %rbp
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    pushfq
    cli
    movq %rsp, call_32_stack(%rip)
    sidt idt_saved(%rip)
    movl %edi, %ebx
    ljmp *leave_long_mode(%rip)
    .code32
leave_long_mode_32:
    movl $SEL_DATA32, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movl %cr0, %eax
    andl $~0x80000000, %eax
    movl %eax, %cr0
    movl $0xc0000080, %ecx
    rdmsr
    andl $~0x100, %eax
    wrmsr
    movl %cr4, %eax
    andl $~0x20, %eax
    movl %eax, %cr4
    movl $stack32_top, %esp
    call *%ebx
    movl $stack32_top, %esp
    call enter_long_mode
    .code64
    lidt idt_saved(%rip)
    movw $SEL_TSS64, %ax
    andb $~2, gdt + SEL_TSS64 + 5(%rip) /* not busy */
    ltr %ax
    movq call_32_stack(%rip), %rsp
    popfq
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbp
    popq %rbx
    ret

    /* --- application processors: copied below 1 MiB, see flat_start_ap --- */
    .global ap_trampoline, ap_trampoline_end
    .code16
ap_trampoline:
    cli
    xorw %ax, %ax
    movw %ax, %ds
    lgdtl AP_TRAMPOLINE + (ap_gdt_pointer - ap_trampoline)
    movl %cr0, %eax
    orb $1, %al
    movl %eax, %cr0
    ljmpl $SEL_CODE32, $ap_start_32
ap_gdt_pointer:
    .word GDT_BYTES - 1
    .long gdt
ap_trampoline_end:
    .code32
ap_start_32:
    movl $SEL_DATA32, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movl ap_stack, %esp
    call enter_long_mode
    .code64
    movl ap_stack(%rip), %esp
    call flat_ap_entry
1:  hlt
    jmp 1b

    .data
    .align 16
    .global gdt
gdt:
    .quad 0
    .quad 0x00af9b000000ffff /* SEL_CODE64 */
    .quad 0x00cf93000000ffff /* SEL_DATA64 */
    .quad 0x00cf9b000000ffff /* SEL_CODE32 */
    .quad 0x00cf93000000ffff /* SEL_DATA32 */
    .quad 0x00009b000000ffff /* SEL_CODE16: base 0 */
    .quad 0x000093000000ffff /* SEL_DATA16 */
    .quad 0x00cffb000000ffff /* SEL_CODE32_USER */
    .quad 0x00cff3000000ffff /* SEL_DATA64_USER */
    .quad 0x00affb000000ffff /* SEL_CODE64_USER */
    .quad 0, 0               /* SEL_TSS64, filled in by flat_init */
    .quad 0, 0, 0, 0, 0, 0, 0, 0 /* for the guests, from SEL_FREE on */
gdt_end:
    .if gdt_end - gdt != GDT_BYTES
    .error "GDT_BYTES"
    .endif
    .global gdt_pointer
gdt_pointer:
    .word GDT_BYTES - 1
    .quad gdt
leave_long_mode:
    .long leave_long_mode_32
    .word SEL_CODE32
    .global idt_saved
idt_saved:
    .word 0
    .quad 0
    .align 16
    .global try_stack, user_return_stack, ap_stack, multiboot_info
try_stack: .quad 0
user_return_stack: .quad 0
call_32_stack: .quad 0
ap_stack: .quad 0
multiboot_info: .quad 0

    .bss
    .align 4096
    .global pml4, pdpt, page_directories, tss64
pml4: .skip 4096
pdpt: .skip 4096
page_directories: .skip 4 * 4096
tss64: .skip 4096
    .skip 32768
stack_top:
    .skip 8192
    .global stack32_top
stack32_top:
    .section .note.GNU-stack, "", @progbits
