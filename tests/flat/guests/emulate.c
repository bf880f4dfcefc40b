/*
 * Instructions that KVM does not know how to emulate, on a device's registers (the IOAPIC's): there
 * the machine executes them itself. Other engines need no help with them.
 */
#include "flat.h"

#define IOREGSEL (*(volatile uint32_t *)0xfec00000ul)
#define IOWIN    (*(volatile uint32_t *)0xfec00010ul)

enum { INDEX_ID, INDEX_VERSION };

static unsigned bits(uint32_t v)
{
    unsigned count = 0;
    for (; v; v &= v - 1)
        count++;
    return count;
}

static void load_and_count(void)
{
    uint32_t count = 0, sum = 0;
    IOREGSEL = INDEX_VERSION;
    uint32_t version = IOWIN;
    asm volatile("popcntl %1, %0" : "=r"(count) : "m"(IOWIN) : "cc");
    check(count == bits(version), "POPCNT of a device's register");
    asm volatile("crc32l %1, %0" : "+r"(sum) : "m"(IOWIN));
    uint32_t wanted = 0;
    asm volatile("crc32l %1, %0" : "+r"(wanted) : "r"(version));
    check(sum == wanted, "CRC32 of a device's register");
}

static void store_vector(void)
{
    IOREGSEL = INDEX_ID;
    asm volatile("movd %1, %%xmm0; movd %%xmm0, %0" : "=m"(IOWIN) : "r"(5u << 24));
    check(IOWIN == 5u << 24, "MOVD from a vector register to a device's");
    IOWIN = 0;
}

static void flags_and_address(void)
{
    uint64_t flags;
    uint32_t v = 1;
    uint64_t base = 0xfec00000ul, index = 2;
    IOREGSEL = INDEX_ID; /* reads as 0 */
    asm volatile("stc; popcntl (%2,%3,8), %0; pushfq; popq %1"
                 : "=r"(v), "=r"(flags)
                 : "r"(base), "r"(index)
                 : "cc", "memory");
    check(v == 0, "with base and index");
    check((flags & 0x8d5) == 0x40, "flags are as POPCNT of zero leaves them");
}

static void many(void)
{
    uint32_t sum = 0;
    IOREGSEL = INDEX_VERSION;
    for (unsigned i = 0; i < 200; i++) {
        uint32_t count;
        asm volatile("popcntl %1, %0" : "=r"(count) : "m"(IOWIN) : "cc");
        sum += count;
    }
    check(sum == 200u * bits(IOWIN), "two hundred times");
}

void guest_main(void)
{
    write_cr4(read_cr4() | 0x600); /* OSFXSR, OSXMMEXCPT */
    load_and_count();
    store_vector();
    flags_and_address();
    many();
}
