/*
 * Exceptions: vectors and error codes, delivery through bad gates, double fault, what is pushed.
 * SDM vol. 3 chapter 6, table 6-5 for faults during delivery.
 */
#include "flat.h"

#define TRY(name, code)                                                                            \
    static void name(void *argument)                                                               \
    {                                                                                              \
        (void)argument;                                                                            \
        asm volatile(code : : "a"(argument) : "rcx", "rdx", "memory");                             \
    }

TRY(ud2, "ud2")
TRY(int3, "int3")
TRY(int_n, "int $0x40")
TRY(divide_overflow, "mov $1, %%edx; xor %%eax, %%eax; mov $1, %%ecx; div %%ecx")
TRY(lock_register, ".byte 0xf0, 0x01, 0xc0") /* lock add %eax, %eax */
TRY(aligned_sse, "mov %%cr0, %%rcx; movaps 1(%%rax), %%xmm0")
TRY(load_null_ss, "xor %%ecx, %%ecx; mov %%ecx, %%ss; mov $0x10, %%ecx; mov %%ecx, %%ss")
TRY(load_beyond_gdt, "mov $0x1238, %%ecx; mov %%ecx, %%ds")
TRY(load_ldt_selector, "mov $0x0c, %%ecx; mov %%ecx, %%ds")
TRY(load_code_as_ss, "mov $0x08, %%ecx; mov %%ecx, %%ss")
TRY(load_not_present, "mov $0x60, %%ecx; mov %%ecx, %%ds")
TRY(load_not_present_ss, "mov $0x60, %%ecx; mov %%ecx, %%ss")
TRY(jump_non_canonical, "mov $0x800000000000, %%rcx; jmp *%%rcx")
TRY(bad_cr0, "mov %%cr0, %%rcx; and $~1, %%rcx; mov %%rcx, %%cr0")    /* PG without PE */
TRY(bad_cr4, "mov %%cr4, %%rcx; and $~0x20, %%rcx; mov %%rcx, %%cr4") /* PAE off in long mode */
TRY(reserved_cr4, "mov %%cr4, %%rcx; bts $30, %%rcx; mov %%rcx, %%cr4")
TRY(x87_with_ts, "mov %%cr0, %%rcx; or $8, %%rcx; mov %%rcx, %%cr0; fnop")
TRY(sse_with_em, "mov %%cr0, %%rcx; or $4, %%rcx; mov %%rcx, %%cr0; xorps %%xmm0, %%xmm0")
TRY(far_return_null, "push $0; push $0; lretq")
TRY(too_long, ".rept 15; .byte 0x66; .endr; nop")

static void simple(void)
{
    static uint8_t aligned[32] __attribute__((aligned(16)));
    gdt[SEL_FREE / 8] = 0x00cf13000000ffff; /* data, not present */
    const struct {
        const char *what;
        void (*function)(void *);
        void *argument;
    } tests[] = {
        {"UD2", ud2, NULL},
        {"INT3", int3, NULL},
        {"INT 0x40", int_n, NULL},
        {"DIV overflow", divide_overflow, NULL},
        {"LOCK on a register", lock_register, NULL},
        {"MOVAPS unaligned", aligned_sse, aligned},
        {"null SS at CPL 0", load_null_ss, NULL},
        {"DS beyond the GDT", load_beyond_gdt, NULL},
        {"DS from a missing LDT", load_ldt_selector, NULL},
        {"SS from a code segment", load_code_as_ss, NULL},
        {"DS not present", load_not_present, NULL},
        {"SS not present", load_not_present_ss, NULL},
        {"jump to a non-canonical address", jump_non_canonical, NULL},
        {"x87 with CR0.TS", x87_with_ts, NULL},
        {"SSE with CR0.EM", sse_with_em, NULL},
        {"RETF to a null selector", far_return_null, NULL},
        {"16-byte instruction", too_long, NULL},
    };
    for (unsigned i = 0; i < sizeof tests / sizeof tests[0]; i++) {
        flat_try(tests[i].function, tests[i].argument);
        print_fault(tests[i].what);
        write_cr0(read_cr0() & ~12ull);
    }
}

static void gates(void)
{
    flat_set_gate(0x40, (uint64_t)exception_entries + 0x40 * 16, SEL_CODE64, 0x0e, 0);
    flat_try(int_n, NULL);
    print_fault("INT through a gate that is not present");
    flat_set_gate(0x40, (uint64_t)exception_entries + 0x40 * 16, SEL_DATA64, 0x8e, 0);
    flat_try(int_n, NULL);
    print_fault("INT through a gate to a data segment");
    flat_set_gate(0x40, (uint64_t)exception_entries + 0x40 * 16, SEL_CODE64, 0x85, 0);
    flat_try(int_n, NULL);
    print_fault("INT through a task gate");
    flat_set_gate(0x40, (uint64_t)exception_entries + 0x40 * 16, 0, 0x8e, 0);
    flat_try(int_n, NULL);
    print_fault("INT through a gate with a null selector");
    flat_set_gate(6, (uint64_t)exception_entries + 6 * 16, SEL_DATA64, 0x8e, 0);
    flat_try(ud2, NULL);
    print_fault("#UD through a gate to a data segment");
    flat_set_gate(6, (uint64_t)exception_entries + 6 * 16, SEL_CODE64, 0x0e, 0);
    flat_try(ud2, NULL);
    print_fault("#UD through a gate that is not present");
    /* #UD -> #NP gate missing too: contributory after contributory is a double fault. */
    flat_set_gate(11, 0, SEL_CODE64, 0x0e, 0);
    flat_try(ud2, NULL);
    print_fault("#UD and #NP undeliverable");
    flat_set_gate(11, (uint64_t)exception_entries + 11 * 16, SEL_CODE64, 0x8e, 0);
    flat_set_gate(6, (uint64_t)exception_entries + 6 * 16, SEL_CODE64, 0x8e, 0);
}

static void touch(void *p)
{
    (void)*(volatile uint8_t *)p;
}

static void double_faults(void)
{
    flat_set_gate(14, 0, SEL_CODE64, 0x0e, 0);
    flat_try(touch, (void *)0x123456789000);
    print_fault("#PF then #NP");
    check(read_cr2() == 0x123456789000, "CR2 holds the first fault's address");
    flat_set_gate(14, (uint64_t)exception_entries + 14 * 16, SEL_CODE64, 0x8e, 0);
}

static void user_privilege(void)
{
    static uint8_t stack[4096] __attribute__((aligned(16)));
    extern char user_cli[], user_hlt[], user_int40[], user_in[], user_cr[], user_sti[], user_popf[];
    const struct {
        const char *what;
        char *code;
    } tests[] = {
        {"CLI at CPL 3", user_cli}, {"STI at CPL 3", user_sti},
        {"HLT at CPL 3", user_hlt}, {"INT 0x40 at CPL 3 through a DPL 0 gate", user_int40},
        {"IN at CPL 3", user_in},   {"MOV CR3 at CPL 3", user_cr},
    };
    flat_set_gate(0x40, (uint64_t)exception_entries + 0x40 * 16, SEL_CODE64, 0x8e, 0);
    for (unsigned i = 0; i < sizeof tests / sizeof tests[0]; i++) {
        flat_call_user((void (*)(void))tests[i].code, stack + sizeof stack);
        print_fault(tests[i].what);
    }
    flat_call_user((void (*)(void))user_popf, stack + sizeof stack);
    check(fault.vector == 0x80 && fault.rflags >> 9 & 1, "POPF at CPL 3 leaves IF alone");
    fault.happened = false;
}
asm("user_cli: cli\n int $0x80\n"
    "user_sti: sti\n int $0x80\n"
    "user_hlt: hlt\n int $0x80\n"
    "user_int40: int $0x40\n int $0x80\n"
    "user_in: in $0x80, %al\n int $0x80\n"
    "user_cr: mov %cr3, %rax\n int $0x80\n"
    "user_popf: push $2\n popf\n int $0x80\n");

static struct frame seen;

static void keep(struct frame *frame)
{
    seen = *frame;
}

/* The handler returns: a trap goes on behind the instruction. */
static void frames(void)
{
    uint64_t rsp_before;
    flat_set_handler(0x41, keep);
    asm volatile("mov %%rsp, %0; int $0x41" : "=&r"(rsp_before) : : "memory");
    check(seen.rsp == rsp_before, "RSP is pushed without a privilege change");

    check(seen.ss == SEL_DATA64 && seen.cs == SEL_CODE64, "SS and CS are pushed");
    check((seen.rflags & 2) == 2, "RFLAGS is pushed");
    flat_set_handler(0x41, NULL);
}

void guest_main(void)
{
    for (unsigned v = 8; v <= 14; v++) /* survive a bad stack */
        if (v != 9)
            flat_set_gate(v, (uint64_t)exception_entries + v * 16, SEL_CODE64, 0x8e, 0);
    simple();
    gates();
    double_faults();
    user_privilege();
    frames();
    flat_try(reserved_cr4, NULL);
    print_fault("CR4 reserved bit");
    flat_try(bad_cr4, NULL);
    print_fault("CR4.PAE off in long mode");
    flat_try(bad_cr0, NULL);
    print_fault("CR0.PG without PE");
}
