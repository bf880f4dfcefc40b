/*
 * What a flat guest can use: a serial console, exceptions that are recorded, user mode, 32-bit
 * code, the local APIC, other CPUs. Runs in 64-bit mode with 4 GiB mapped one to one.
 */
#ifndef PARAT_TESTS_FLAT_H
#define PARAT_TESTS_FLAT_H

#define SEL_CODE64      0x08
#define SEL_DATA64      0x10
#define SEL_CODE32      0x18
#define SEL_DATA32      0x20
#define SEL_CODE16      0x28
#define SEL_DATA16      0x30
#define SEL_CODE32_USER 0x38
#define SEL_DATA64_USER 0x40
#define SEL_CODE64_USER 0x48
#define SEL_TSS64       0x50
#define SEL_FREE        0x60
#define GDT_BYTES       160
#define AP_TRAMPOLINE   0x8000

#ifndef __ASSEMBLER__

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

void guest_main(void); /* the guest's own; returning ends with debug_exit(0) */

/* Formats: %s %c %d %u %x %lx %p, widths with zeros as in %08x. */
void print(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* Ends the VM: parat's exit status is (value << 1) | 1. */
_Noreturn void debug_exit(uint32_t value);
void check(bool good, const char *what); /* prints "ok what" or "FAIL what" */

static inline void out8(uint16_t port, uint8_t v)
{
    asm volatile("outb %0, %1" : : "a"(v), "Nd"(port));
}
static inline void out16(uint16_t port, uint16_t v)
{
    asm volatile("outw %0, %1" : : "a"(v), "Nd"(port));
}
static inline void out32(uint16_t port, uint32_t v)
{
    asm volatile("outl %0, %1" : : "a"(v), "Nd"(port));
}
static inline uint8_t in8(uint16_t port)
{
    uint8_t v;
    asm volatile("inb %1, %0" : "=a"(v) : "Nd"(port));
    return v;
}
static inline uint16_t in16(uint16_t port)
{
    uint16_t v;
    asm volatile("inw %1, %0" : "=a"(v) : "Nd"(port));
    return v;
}
static inline uint32_t in32(uint16_t port)
{
    uint32_t v;
    asm volatile("inl %1, %0" : "=a"(v) : "Nd"(port));
    return v;
}
static inline uint64_t rdmsr(uint32_t i)
{
    uint32_t a, d;
    asm volatile("rdmsr" : "=a"(a), "=d"(d) : "c"(i));
    return (uint64_t)d << 32 | a;
}
static inline void wrmsr(uint32_t i, uint64_t v)
{
    asm volatile("wrmsr" : : "c"(i), "a"((uint32_t)v), "d"((uint32_t)(v >> 32)) : "memory");
}
static inline uint64_t rdtsc(void)
{
    uint32_t a, d;
    asm volatile("lfence; rdtsc" : "=a"(a), "=d"(d) : : "memory");
    return (uint64_t)d << 32 | a;
}
static inline uint64_t read_cr0(void)
{
    uint64_t v;
    asm volatile("mov %%cr0, %0" : "=r"(v));
    return v;
}
static inline void write_cr0(uint64_t v)
{
    asm volatile("mov %0, %%cr0" : : "r"(v) : "memory");
}
static inline uint64_t read_cr2(void)
{
    uint64_t v;
    asm volatile("mov %%cr2, %0" : "=r"(v));
    return v;
}
static inline uint64_t read_cr3(void)
{
    uint64_t v;
    asm volatile("mov %%cr3, %0" : "=r"(v));
    return v;
}
static inline void write_cr3(uint64_t v)
{
    asm volatile("mov %0, %%cr3" : : "r"(v) : "memory");
}
static inline uint64_t read_cr4(void)
{
    uint64_t v;
    asm volatile("mov %%cr4, %0" : "=r"(v));
    return v;
}
static inline void write_cr4(uint64_t v)
{
    asm volatile("mov %0, %%cr4" : : "r"(v) : "memory");
}
static inline void invlpg(const void *p)
{
    asm volatile("invlpg (%0)" : : "r"(p) : "memory");
}
static inline void cpuid(uint32_t leaf, uint32_t sub, uint32_t r[4])
{
    asm volatile("cpuid" : "=a"(r[0]), "=b"(r[1]), "=c"(r[2]), "=d"(r[3]) : "a"(leaf), "c"(sub));
}
static inline void pause(void)
{
    asm volatile("pause" : : : "memory");
}

/* --- exceptions --- */

struct frame {
    uint64_t r15, r14, r13, r12, r11, r10, r9, r8, rdi, rsi, rbp, rbx, rdx, rcx, rax;
    uint64_t vector, error;
    uint64_t rip, cs, rflags, rsp, ss;
};

/* The last exception that flat_try or user mode ended by. */
struct fault {
    bool happened;
    unsigned vector;
    uint64_t error, rip, cr2, cs, rflags, rsp;
};
extern struct fault fault;

bool flat_try(void (*function)(void *), void *argument); /* true: it faulted, see `fault` */
/* Runs code at CPL 3 (its pages must be user pages) until INT 0x80 or a fault. */
void flat_call_user(void (*function)(void), void *stack);
void flat_call_32(void (*function)(void));
/* A handler for one vector, instead of recording; NULL: none. */
void flat_set_handler(unsigned vector, void (*handler)(struct frame *frame));
/* Raw access to the IDT entry of a vector: type and DPL, present bit. */
void flat_set_gate(unsigned vector, uint64_t handler, uint16_t selector, uint8_t type_dpl_p,
                   uint8_t ist);
extern char exception_entries[];
extern uint64_t gdt[];
extern uint8_t tss64[];
extern uint64_t pml4[512], pdpt[512], page_directories[2048];
extern uint32_t stack32_top[];

/* "fault VECTOR error ERROR" and for #PF the address, or "no fault". */
void print_fault(const char *what);

/* --- pages --- */

/* Splits the 2 MiB page of the address into 4 KiB pages (once) and returns the entry of its page.
 */
uint64_t *flat_pte(uint64_t address);

/* --- local APIC (xAPIC page) --- */

#define APIC(offset) (*(volatile uint32_t *)(0xfee00000ul + (offset)))
void flat_apic_enable(void);
/* Starts CPU apic_id, which calls entry(argument) on a stack of its own, once at a time. */
void flat_start_ap(unsigned apic_id, void (*entry)(void *), void *argument);

void *memset(void *to, int byte, size_t n);
void *memcpy(void *to, const void *from, size_t n);
int memcmp(const void *a, const void *b, size_t n);

#endif
#endif
