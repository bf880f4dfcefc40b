/*
 * Segment limits and types, from compatibility mode, where they are checked: limits at each size,
 * expand-down, read-only, execute-only, null. SDM vol. 3 sections 5.3-5.6.
 */
#include "flat.h"

enum { LIMITED = SEL_FREE, EXPAND_DOWN = 0x68, READ_ONLY = 0x70, EXECUTE_ONLY = 0x78, DPL3 = 0x80 };

static volatile uint32_t selector, offset;

#define ACCESS(name, code)                                                                         \
    asm(".code32\n" #name "_code:\n mov selector, %eax\n mov offset, %ebx\n mov %eax, %es\n" code  \
        "\n lret\n.code64\n");                                                                     \
    extern char name##_code[];                                                                     \
    static void name(void *argument)                                                               \
    {                                                                                              \
        struct {                                                                                   \
            uint32_t offset;                                                                       \
            uint16_t selector;                                                                     \
        } __attribute__((packed)) target = {(uint32_t)(uint64_t)name##_code, SEL_CODE32};          \
        (void)argument;                                                                            \
        asm volatile("lcall *%0" : : "m"(target) : "rax", "rbx", "rcx", "rdx", "memory");          \
    }

ACCESS(read_byte, "movb %es:(%ebx), %cl")
ACCESS(read_dword, "movl %es:(%ebx), %ecx")
ACCESS(write_dword, "movl %ecx, %es:(%ebx)")
ACCESS(lsl_lar, "lsl %eax, %ecx\n lar %eax, %edx\n mov %ecx, lsl_result\n mov %edx, lar_result")
ACCESS(verify, "verr %ax\n setz verr_result\n verw %ax\n setz verw_result")

static volatile uint32_t lsl_result, lar_result;
static volatile uint8_t verr_result, verw_result;

static uint64_t descriptor(uint64_t base, uint64_t limit, uint64_t type, uint64_t flags)
{
    return (limit & 0xffff) | (base & 0xffffff) << 16 | type << 40 | (limit >> 16 & 15) << 48 |
           flags << 52 | (base >> 24 & 0xff) << 56;
}

static void try_at(const char *what, void (*access)(void *), uint32_t s, uint32_t o)
{
    selector = s;
    offset = o;
    flat_try(access, NULL);
    print_fault(what);
}

void guest_main(void)
{
    static uint8_t data[8192] __attribute__((aligned(4096)));
    uint64_t base = (uint64_t)data;
    gdt[LIMITED / 8] = descriptor(base, 0xfff, 0x93, 4);
    gdt[EXPAND_DOWN / 8] = descriptor(base, 0xfff, 0x97, 4);
    gdt[READ_ONLY / 8] = descriptor(base, 0xfff, 0x91, 4);
    gdt[EXECUTE_ONLY / 8] = descriptor(base, 0xfff, 0x99, 4);
    gdt[DPL3 / 8] = descriptor(base, 0, 0xf2, 0xc); /* not accessed yet; 4 KiB granular */
    try_at("last byte", read_byte, LIMITED, 0xfff);
    try_at("byte behind the limit", read_byte, LIMITED, 0x1000);
    try_at("last dword", read_dword, LIMITED, 0xffc);
    try_at("dword across the limit", read_dword, LIMITED, 0xffd);
    try_at("dword at the top of the offsets", read_dword, LIMITED, 0xfffffffe);
    try_at("write inside", write_dword, LIMITED, 0x10);
    try_at("expand-down: at the limit", read_byte, EXPAND_DOWN, 0xfff);
    try_at("expand-down: above the limit", read_byte, EXPAND_DOWN, 0x1000);
    try_at("expand-down: write above the limit", write_dword, EXPAND_DOWN, 0x1000);
    try_at("read-only: read", read_dword, READ_ONLY, 0);
    try_at("read-only: write", write_dword, READ_ONLY, 0);
    try_at("execute-only: load", read_byte, EXECUTE_ONLY, 0);
    try_at("null: access", read_byte, 0, 0);
    try_at("granular limit of 0: last byte", read_byte, DPL3, 0xfff);
    try_at("granular limit of 0: behind", read_byte, DPL3, 0x1000);
    check(gdt[DPL3 / 8] >> 40 & 1, "loading sets the accessed bit");
    try_at("LSL and LAR", lsl_lar, DPL3, 0);
    check(lsl_result == 0xfff && lar_result == 0xc0f300, "give limit and rights");
    try_at("VERR and VERW", verify, READ_ONLY, 0);
    check(verr_result == 1 && verw_result == 0, "read-only is readable, not writable");
}
