/*
 * Port and memory-mapped I/O of each size, string I/O, what nobody claims, the TSS's I/O bitmap.
 * SDM vol. 1 chapter 18 (input/output).
 */
#include "flat.h"

#define HOLE ((volatile uint8_t *)0xd0000000) /* in the PCI window: nobody is there */

static void ports(void)
{
    check(in8(0x1f00) == 0xff && in16(0x1f00) == 0xffff && in32(0x1f00) == 0xffffffff,
          "ports that nobody claims read all ones");
    out8(0x1f00, 1);
    out16(0x1f01, 2);
    out32(0x1f03, 3);
    check(true, "and swallow writes");
    out8(0x3ff, 0x5a); /* the serial port's scratch register */
    check(in8(0x3ff) == 0x5a, "a byte register reads back");
    uint8_t bytes[6] = {1, 2, 3, 4, 5, 6};
    const void *from = bytes;
    uint64_t n = 6;
    asm volatile("rep outsb" : "+S"(from), "+c"(n) : "d"(0x3ff) : "memory");
    check(in8(0x3ff) == 6 && n == 0, "REP OUTSB");
    void *to = bytes;
    n = 6;
    asm volatile("rep insb" : "+D"(to), "+c"(n) : "d"(0x3ff) : "memory");
    check(bytes[0] == 6 && bytes[5] == 6, "REP INSB");
}

static void mmio(void)
{
    check(HOLE[0] == 0xff && *(volatile uint16_t *)(HOLE + 2) == 0xffff &&
              *(volatile uint32_t *)(HOLE + 4) == 0xffffffff &&
              *(volatile uint64_t *)(HOLE + 8) == ~0ull,
          "memory that nobody claims reads all ones");
    HOLE[0] = 1;
    *(volatile uint64_t *)(HOLE + 8) = 1;
    check(*(volatile uint64_t *)(HOLE + 8) == ~0ull, "and swallows writes");
    volatile uint32_t *ioapic = (void *)0xfec00000;
    ioapic[0] = 0x10; /* the first redirection entry, low half */
    ioapic[4] = 0x10070;
    check((ioapic[4] & 0x1ffff) == 0x10070, "a 32-bit register reads back");
    asm volatile("orl $0x100, %0" : "+m"(ioapic[4]));
    check((ioapic[4] & 0x1ffff) == 0x10170, "read-modify-write on a register");
    uint32_t copy[2];
    memset(copy, 0, sizeof copy);
    void *to = copy;
    const void *from = (void *)(uintptr_t)&ioapic[4];
    uint64_t n = 1;
    asm volatile("rep movsl" : "+D"(to), "+S"(from), "+c"(n) : : "memory");
    check((copy[0] & 0x1ffff) == 0x10170, "REP MOVSD from a register");
    uint64_t sum = 1;
    asm volatile("addq %1, %0" : "+r"(sum) : "m"(*(volatile uint64_t *)(HOLE + 16)));
    check(sum == 0, "arithmetic with a 64-bit operand there");
}

asm("user_out: mov $0x3ff, %edx\n mov $0x77, %al\n out %al, %dx\n int $0x80\n"
    "user_out16: mov $0x3ff, %edx\n out %ax, %dx\n int $0x80\n");
extern char user_out[], user_out16[];

static void bitmap(void)
{
    static uint8_t stack[4096] __attribute__((aligned(16)));
    /* The library's TSS has one page of room: a bitmap of 1,024 ports behind its 104 bytes. */
    uint16_t offset = 104;
    memset(tss64 + offset, 0xff, 129);
    memcpy(tss64 + 102, &offset, 2);
    gdt[SEL_TSS64 / 8] = (gdt[SEL_TSS64 / 8] & ~0xffffull & ~(2ull << 40)) | (104 + 128);
    asm volatile("ltr %w0" : : "r"(SEL_TSS64));
    flat_call_user((void (*)(void))user_out, stack + sizeof stack);
    print_fault("OUT at CPL 3, bit set");
    tss64[offset + 0x3ff / 8] &= 0x7f;
    flat_call_user((void (*)(void))user_out, stack + sizeof stack);
    check(fault.vector == 0x80 && in8(0x3ff) == 0x77, "OUT at CPL 3, bit clear");
    flat_call_user((void (*)(void))user_out16, stack + sizeof stack);
    print_fault("OUT of 16 bits where one of the two is set");
}

void guest_main(void)
{
    ports();
    mmio();
    bitmap();
}
