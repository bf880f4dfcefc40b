/*
 * Page faults: every permission with its error code, accessed and dirty bits, large pages, INVLPG.
 * SDM vol. 3 sections 4.6 (access rights), 4.7 (error code), 4.8 (accessed and dirty).
 */
#include "flat.h"

#define PAGE ((uint8_t *)0x40000000) /* beyond RAM: remapped below */
#define P    1ull
#define W    2ull
#define U    4ull
#define A    0x20ull
#define D    0x40ull
#define NX   (1ull << 63)

static uint8_t frame[4096] __attribute__((aligned(4096)));
static uint64_t *pte;

static void map(uint64_t flags)
{
    *pte = (uint64_t)frame | flags;
    invlpg(PAGE);
}

static void do_read(void *p)
{
    (void)*(volatile uint8_t *)p;
}

static void do_write(void *p)
{
    *(volatile uint8_t *)p = 0xc3; /* RET, for do_execute */
}

static void do_execute(void *p)
{
    ((void (*)(void))p)();
}

static void try_all(const char *what)
{
    print("%s\n", what);
    flat_try(do_read, PAGE + 5);
    print_fault(" read");
    flat_try(do_write, PAGE);
    print_fault(" write");
    flat_try(do_execute, PAGE);
    print_fault(" execute");
}

/* At CPL 3: the page holds the address to touch in RBX. */
asm("user_read: movb (%rbx), %al\n int $0x80\n"
    "user_write: movb $0xc3, (%rbx)\n int $0x80\n"
    "user_execute: call *%rbx\n int $0x80\n");
extern char user_read[], user_write[], user_execute[];

static void try_user(const char *what, char *code)
{
    static uint8_t stack[4096] __attribute__((aligned(16)));
    asm volatile("mov %0, %%rbx; call *%1"
                 :
                 : "r"(PAGE), "r"(flat_call_user), "D"(code), "S"(stack + sizeof stack)
                 : "rbx", "rax", "rcx", "rdx", "r8", "r9", "r10", "r11", "memory");
    if (fault.vector == 0x80)
        fault.happened = false;
    print_fault(what);
}

static void try_user_all(const char *what)
{
    print("%s\n", what);
    try_user(" user read", user_read);
    try_user(" user write", user_write);
    try_user(" user execute", user_execute);
}

static void permissions(void)
{
    map(0);
    try_all("not present");
    map(P | W);
    try_all("present, writable");
    map(P);
    try_all("read-only, CR0.WP");
    write_cr0(read_cr0() & ~(1ull << 16));
    flat_try(do_write, PAGE);
    print_fault(" write without CR0.WP");
    write_cr0(read_cr0() | 1 << 16);
    map(P | W | NX);
    try_all("no-execute");
    map(P | W);
    try_user_all("supervisor page");
    map(P | U);
    try_user_all("user page, read-only");
    map(P | W | U);
    try_user_all("user page");
    map(P | W | U | NX);
    try_user_all("user page, no-execute");
    map(0);
    try_user_all("not present");
}

static void smep_and_smap(void)
{
    map(P | W | U);
    /* The guest's own pages become supervisor pages first: it runs from the first 2 MiB. */
    page_directories[0] &= ~U;
    write_cr3(read_cr3());
    uint32_t r[4];
    cpuid(7, 0, r);
    check(r[1] >> 7 & 1 && r[1] >> 20 & 1, "CPUID tells of SMEP and SMAP");
    write_cr4(read_cr4() | 1 << 20);
    flat_try(do_execute, PAGE);
    print_fault("SMEP: execute a user page");
    flat_try(do_read, PAGE);
    print_fault("SMEP: read a user page");
    write_cr4((read_cr4() & ~(1ull << 20)) | 1 << 21);
    flat_try(do_read, PAGE);
    print_fault("SMAP: read a user page");
    flat_try(do_write, PAGE);
    print_fault("SMAP: write a user page");
    asm volatile("stac");
    do_read(PAGE);
    do_write(PAGE);
    asm volatile("clac");
    check(true, "SMAP with AC set lets both through");
    write_cr4(read_cr4() & ~(1ull << 21));
}

static void reserved_bits(void)
{
    map(P | W | 1ull << 51);
    flat_try(do_read, PAGE);
    print_fault("reserved bit, read");
    flat_try(do_write, PAGE);
    print_fault("reserved bit, write");
    wrmsr(0xc0000080, rdmsr(0xc0000080) & ~(1ull << 11));
    map(P | W | NX);
    flat_try(do_read, PAGE);
    print_fault("NX without EFER.NXE");
    wrmsr(0xc0000080, rdmsr(0xc0000080) | 1 << 11);
}

static void accessed_and_dirty(void)
{
    map(P | W);
    check((*pte & (A | D)) == 0, "A and D start clear");
    do_read(PAGE);
    check((*pte & (A | D)) == A, "a read sets A");
    do_write(PAGE);
    check((*pte & (A | D)) == (A | D), "a write sets D");
    map(P);
    flat_try(do_write, PAGE);
    check((*pte & D) == 0, "a refused write sets no D");
    map(P | W);
    do_write(PAGE);
    check((*pte & (A | D)) == (A | D), "a first write sets both");
}

static void tlb(void)
{
    static uint8_t other[4096] __attribute__((aligned(4096)));
    map(P | W);
    frame[7] = 1;
    other[7] = 2;
    check(PAGE[7] == 1, "mapped");
    *pte = (uint64_t)other | P | W;
    invlpg(PAGE);
    check(PAGE[7] == 2, "INVLPG shows the new page");
    *pte = (uint64_t)frame | P | W;
    write_cr3(read_cr3());
    check(PAGE[7] == 1, "MOV CR3 shows the new page");
    *pte = (uint64_t)frame | P | W | 0x100; /* global */
    write_cr4(read_cr4() | 0x80);
    (void)*(volatile uint8_t *)PAGE;
    *pte = (uint64_t)other | P | W | 0x100;
    write_cr4(read_cr4() & ~0x80ull);
    check(PAGE[7] == 2, "clearing CR4.PGE drops global entries");
}

static void two_pages(void *argument)
{
    *(volatile uint64_t *)(PAGE + 4092) = (uint64_t)argument;
}

static void crossing(void)
{
    uint64_t *next = flat_pte((uint64_t)PAGE + 4096);
    map(P | W);
    *next = 0;
    invlpg(PAGE + 4096);
    *(uint32_t *)(PAGE + 4092) = 0x11111111;
    flat_try(two_pages, (void *)0x2222222222222222);
    print_fault("write across into a missing page");
    check(*(uint32_t *)(PAGE + 4092) == 0x11111111, "nothing of it was written");
    *next = ((uint64_t)frame) | P | W; /* the same frame again */
    invlpg(PAGE + 4096);
    flat_try(two_pages, (void *)0x3333333322222222);
    print_fault("write across two pages");
    check(*(uint32_t *)(PAGE + 4092) == 0x22222222 && *(uint32_t *)PAGE == 0x33333333,
          "both halves were written");
}

static void non_canonical(void *argument)
{
    (void)*(volatile uint8_t *)argument;
}

static void non_canonical_stack(void *argument)
{
    asm volatile("mov %%rsp, %%rbx; mov %0, %%rsp; push %%rax; mov %%rbx, %%rsp"
                 :
                 : "r"(argument)
                 : "rbx");
}

void guest_main(void)
{
    pte = flat_pte((uint64_t)PAGE);
    permissions();
    reserved_bits();
    accessed_and_dirty();
    tlb();
    crossing();
    flat_try(non_canonical, (void *)0x0000800000000000);
    print_fault("read of a non-canonical address");
    flat_set_gate(12, (uint64_t)exception_entries + 12 * 16, SEL_CODE64, 0x8e, 1); /* own stack */
    flat_set_gate(13, (uint64_t)exception_entries + 13 * 16, SEL_CODE64, 0x8e, 1);
    flat_try(non_canonical_stack, (void *)0x0000900000000000);
    print_fault("push to a non-canonical address");
    smep_and_smap();
}
