/*
 * Changes of mappings, permissions and modes under code that is hot: each thing runs thousands of
 * times before and after the change, so that whatever is kept of it is kept. SDM vol. 3 sections
 * 4.10 (invalidation), 4.6 (access rights), 2.5 (control registers), 12.6 (self-modifying code).
 */
#include "flat.h"

#define HOT 3000
#define V   0x40000000ul /* beyond RAM: mapped to frames below */
#define V2  0x48000000ul
#define P   1ull
#define W   2ull
#define U   4ull
#define G   0x100ull
#define NX  (1ull << 63)

static uint8_t frame_a[2 * 4096] __attribute__((aligned(4096)));
static uint8_t frame_b[2 * 4096] __attribute__((aligned(4096)));

static void put_return(uint8_t *p, uint32_t value)
{
    p[0] = 0xb8; /* mov $value, %eax; ret */
    memcpy(p + 1, &value, 4);
    p[5] = 0xc3;
}

static uint32_t call(uint64_t address)
{
    return ((uint32_t(*)(void))address)();
}

/* True when each of many calls gives this. */
static bool always(uint64_t address, uint32_t value)
{
    for (unsigned i = 0; i < HOT; i++)
        if (call(address) != value)
            return false;
    return true;
}

static void map(uint64_t address, const void *frame, uint64_t bits)
{
    *flat_pte(address) = (uint64_t)frame | bits;
}

static void do_call(void *address)
{
    call((uint64_t)address);
}

/* --- another frame under the same address --- */

static void flush_invlpg(void)
{
    invlpg((void *)V);
}

static void flush_cr3(void)
{
    write_cr3(read_cr3());
}

static void flush_pge(void)
{
    write_cr4(read_cr4() | 0x80);
    write_cr4(read_cr4() & ~0x80ull);
}

static void invpcid(uint64_t type, uint64_t pcid, uint64_t address)
{
    const uint64_t descriptor[2] = {pcid, address};
    asm volatile("invpcid %0, %1" : : "m"(descriptor), "r"(type) : "memory");
}

static void flush_invpcid_address(void)
{
    invpcid(0, 0, V);
}

static void flush_invpcid_single(void)
{
    invpcid(1, 0, 0);
}

static void flush_invpcid_all(void)
{
    invpcid(2, 0, 0);
}

static void flush_invpcid_all_but_global(void)
{
    invpcid(3, 0, 0);
}

static void remap(const char *what, void (*flush)(void), uint64_t bits)
{
    bool good = true;
    for (unsigned i = 0; i < 8; i++) {
        map(V, i & 1 ? frame_b : frame_a, P | W | bits);
        flush();
        good &= always(V + 16, i & 1 ? 2 : 1);
    }
    check(good, what);
}

static void remapping(void)
{
    put_return(frame_a + 16, 1);
    put_return(frame_b + 16, 2);
    remap("another frame, INVLPG", flush_invlpg, 0);
    remap("another frame, MOV CR3", flush_cr3, 0);
    remap("another frame, INVPCID of the address", flush_invpcid_address, 0);
    remap("another frame, INVPCID of the PCID", flush_invpcid_single, 0);
    remap("another frame, INVPCID of all", flush_invpcid_all, 0);
    remap("another frame, INVPCID of all but global", flush_invpcid_all_but_global, 0);
    remap("another frame, CR4.PGE", flush_pge, 0);
    write_cr4(read_cr4() | 0x80);
    remap("a global page, INVLPG", flush_invlpg, G);
    remap("a global page, INVPCID of all", flush_invpcid_all, G);
    write_cr4(read_cr4() & ~0x80ull);
    map(V, frame_a, P | W);
    flush_pge();
}

/* --- code that takes its own page away --- */

/* movq %rsi, (%rdi); invlpg (%rdx); movl $value, %eax; ret */
static void put_self_remap(uint8_t *p, uint32_t value)
{
    static const uint8_t code[] = {0x48, 0x89, 0x37, 0x0f, 0x01, 0x3a};
    memcpy(p, code, sizeof code);
    put_return(p + sizeof code, value);
}

static void under_itself(void)
{
    put_self_remap(frame_a + 64, 1);
    put_self_remap(frame_b + 64, 2);
    bool good = true;
    for (unsigned i = 0; i < HOT; i++) {
        uint64_t next = (uint64_t)(i & 1 ? frame_a : frame_b) | P | W;
        uint32_t (*f)(uint64_t *, uint64_t, uint64_t) = (void *)(V + 64);
        good &= f(flat_pte(V), next, V) == (i & 1 ? 1 : 2);
    }
    check(good, "code that maps another frame under itself goes on there");
}

/* --- one frame at two addresses --- */

/* leaq 0(%rip), %rax; jmp to the next page's start */
static void put_alias_code(uint8_t *page)
{
    static const uint8_t lea[] = {0x48, 0x8d, 0x05, 0, 0, 0, 0, 0xe9};
    int32_t distance = 4096 - (128 + (int32_t)sizeof lea + 4);
    memcpy(page + 128, lea, sizeof lea);
    memcpy(page + 128 + sizeof lea, &distance, 4);
}

static void aliases(void)
{
    static const uint8_t add_1[] = {0x48, 0x83, 0xc0, 0x01, 0xc3}; /* add $1, %rax; ret */
    static const uint8_t add_2[] = {0x48, 0x83, 0xc0, 0x02, 0xc3};
    put_alias_code(frame_a);
    memcpy(frame_a + 4096, add_1, sizeof add_1);
    memcpy(frame_b + 4096, add_2, sizeof add_2);
    map(V, frame_a, P | W);
    map(V + 4096, frame_a + 4096, P | W);
    map(V2, frame_a, P | W);
    map(V2 + 4096, frame_b + 4096, P | W);
    flush_cr3();
    uint64_t (*one)(void) = (void *)(V + 128), (*two)(void) = (void *)(V2 + 128);
    bool good = true;
    for (unsigned i = 0; i < HOT; i++)
        good &= one() == V + 135 + 1 && two() == V2 + 135 + 2;
    check(good, "one frame at two addresses knows where it is, and what lies behind it");
    memcpy(frame_b + 4096, add_1, sizeof add_1);
    for (unsigned i = 0; i < HOT; i++)
        good &= one() == V + 135 + 1 && two() == V2 + 135 + 1;
    check(good, "and when that changes");
}

/* --- an instruction on two pages --- */

static void map_pair(uint64_t address, const uint8_t *second)
{
    map(address, frame_a, P | W | G);
    map(address + 4096, second, P | W | G);
    invlpg((void *)address);
    invlpg((void *)(address + 4096));
}

/* Its immediate begins in frame_a and goes on in the second page; another instruction leads there.
 */
static void across(void)
{
    static const uint8_t xor_ecx[] = {0x31, 0xc9};
    uint64_t at = V + 4092, at2 = V2 + 4092;
    memcpy(frame_a + 4092, xor_ecx, sizeof xor_ecx);
    put_return(frame_a + 4094, 0x0201);
    memcpy(frame_b + 4096, frame_a + 4096, 16);
    frame_b[4096] = 3;
    write_cr4(read_cr4() | 0x80);
    bool good = true;
    for (unsigned i = 0; i < 8; i++) {
        map_pair(V, i & 1 ? frame_b + 4096 : frame_a + 4096);
        good &= always(at, i & 1 ? 0x0301 : 0x0201);
    }
    check(good, "an instruction on two pages, another second frame");
    frame_b[4096] = 4;
    check(always(at, 0x0401), "its part in the second page is written");
    map_pair(V2, frame_a + 4096);
    for (unsigned i = 0; i < HOT; i++)
        good &= call(at) == 0x0401 && call(at2) == 0x0201;
    check(good, "its first page at two addresses, with other second pages");
    map(V + 4096, frame_b + 4096, 0);
    invlpg((void *)(V + 4096));
    flat_try(do_call, (void *)at);
    print_fault("its second page is not present");
    map_pair(V, frame_b + 4096);
    check(always(at, 0x0401), "and present again");
    /* jmp 0x7fffffff bytes on, all but one of its own in the second page */
    static const uint8_t jump[] = {0xe9, 0xff, 0xff, 0xff, 0x7f};
    uint64_t target = V + 4095 + sizeof jump + 0x7fffffff;
    memcpy(frame_a + 4095, jump, sizeof jump);
    put_return(frame_b + (target & 4095), 7);
    map(target & ~4095ull, frame_b, P | W | G);
    invlpg((void *)target);
    map_pair(V, frame_a + 4096);
    check(always(V + 4095, 7), "a jump on two pages as far as one can go");
    write_cr4(read_cr4() & ~0x80ull);
    map(V, frame_a, P | W);
    flush_pge();
}

/* --- permissions --- */

static void execute_permission(void)
{
    put_return(frame_a + 20, 1);
    map(V, frame_a, P | W);
    flush_invlpg();
    for (unsigned i = 0; i < 3; i++) {
        check(always(V + 20, 1), "hot code");
        map(V, frame_a, P | W | NX);
        flush_invlpg();
        flat_try(do_call, (void *)(V + 20));
        print_fault("no-execute under hot code");
        map(V, frame_a, 0);
        flush_invlpg();
        flat_try(do_call, (void *)(V + 20));
        print_fault("not present under hot code");
        map(V, frame_a, P | W);
        flush_invlpg();
    }
}

static void nxe(void)
{
    map(V, frame_a, P | W | NX);
    flush_invlpg();
    flat_try(do_call, (void *)(V + 20));
    print_fault("no-execute");
    wrmsr(0xc0000080, rdmsr(0xc0000080) & ~(1ull << 11));
    flat_try(do_call, (void *)(V + 20));
    print_fault("the same bit without EFER.NXE");
    map(V, frame_a, P | W);
    flush_invlpg();
    check(always(V + 20, 1), "hot without EFER.NXE");
    wrmsr(0xc0000080, rdmsr(0xc0000080) | 1 << 11);
    check(always(V + 20, 1), "hot with it");
}

/* Counts up a word of a page; each store may be the one that faults. */
struct counting {
    volatile uint32_t *word;
    uint32_t rounds, done;
};

static void count_up(void *argument)
{
    struct counting *c = argument;
    for (c->done = 0; c->done < c->rounds; c->done++)
        (*c->word)++;
}

static void write_permission(void)
{
    struct counting c = {(uint32_t *)(V + 2048), HOT, 0};
    *c.word = 0;
    flat_try(count_up, &c);
    check(c.done == HOT && *c.word == HOT, "a hot store");
    map(V, frame_a, P);
    flush_invlpg();
    flat_try(count_up, &c);
    print_fault("read-only under a hot store");
    check(c.done == 0 && *c.word == HOT, "nothing was stored");
    write_cr0(read_cr0() & ~(1ull << 16));
    flat_try(count_up, &c);
    check(c.done == HOT && *c.word == 2 * HOT, "a hot store without CR0.WP");
    write_cr0(read_cr0() | 1 << 16);
    flat_try(count_up, &c);
    print_fault("CR0.WP under a hot store");
    map(V, frame_a, P | W);
    flush_invlpg();
    flat_try(count_up, &c);
    check(*c.word == 3 * HOT, "writable again");
}

/* --- user code --- */

static uint8_t user_stack[4096] __attribute__((aligned(16)));

/* Counts in R15 to HOT and adds up a word of data in RAX, by way of a call. */
asm(".balign 4096\n"
    "user_code:\n"
    "  xorl %r15d, %r15d\n"
    "  xorl %eax, %eax\n"
    "  movl $0x40000800, %ebx\n"
    "1: call 2f\n"
    "  incl %r15d\n"
    "  cmpl $3000, %r15d\n"
    "  jb 1b\n"
    "  int $0x80\n"
    "2: addl (%rbx), %eax\n"
    "  addps %xmm1, %xmm0\n"
    "  ret\n"
    ".balign 4096\n");
extern uint8_t user_code[];

static void call_user(const char *what)
{
    asm volatile("call *%0"
                 :
                 : "r"(flat_call_user), "D"(user_code), "S"(user_stack + sizeof user_stack)
                 : "rax", "rcx", "rdx", "r8", "r9", "r10", "r11", "memory");
    if (fault.vector == 0x80)
        fault.happened = false;
    print_fault(what);
}

static void set_supervisor(uint64_t address, bool supervisor)
{
    uint64_t *pte = flat_pte(address);
    *pte = supervisor ? *pte & ~U : *pte | U;
    invlpg((void *)address);
}

static void user_permission(void)
{
    map(V, frame_a, P | W | U);
    flush_invlpg();
    call_user("hot user code");
    set_supervisor(V, true);
    call_user("its data are the supervisor's now");
    set_supervisor(V, false);
    call_user("and again its own");
    set_supervisor((uint64_t)user_code, true);
    call_user("its code is the supervisor's now");
    set_supervisor((uint64_t)user_code, false);
    call_user("and again its own");
}

/* Vector registers of user code may live in the host's: what forbids them must be seen. */
static void vector_permission(void)
{
    call_user("hot vectors");
    write_cr0(read_cr0() | 8);
    call_user("CR0.TS under hot vectors");
    write_cr0(read_cr0() & ~8ull);
    call_user("CR0.TS clear");
    write_cr0(read_cr0() | 4);
    call_user("CR0.EM under hot vectors");
    write_cr0(read_cr0() & ~4ull);
    write_cr4(read_cr4() & ~0x200ull);
    call_user("CR4.OSFXSR clear under hot vectors");
    write_cr4(read_cr4() | 0x200);
    call_user("CR4.OSFXSR set");
    uint32_t unmasked = 0x1f80 & ~0x1000u, all = 0x1f80;
    asm volatile("ldmxcsr %0" : : "m"(unmasked)); /* precision */
    static const uint32_t inexact[2][4] __attribute__((aligned(16))) = {
        {0x3f800000, 0x3f800000, 0x3f800000, 0x3f800000}, {1, 1, 1, 1}};
    asm volatile("movaps %0, %%xmm0; movaps %1, %%xmm1" : : "m"(inexact[0]), "m"(inexact[1]));
    call_user("an unmasked exception under hot vectors");
    asm volatile("ldmxcsr %0" : : "m"(all));
    call_user("masked");
}

static void smep(void)
{
    put_return(frame_a + 20, 1);
    uint64_t saved = page_directories[0];
    page_directories[0] &= ~U;
    for (uint64_t page = 0x100000; page < 0x200000; page += 4096)
        set_supervisor(page, true);
    check(always(V + 20, 1), "hot kernel code in a user page");
    write_cr4(read_cr4() | 1 << 20);
    flat_try(do_call, (void *)(V + 20));
    print_fault("SMEP under it");
    write_cr4(read_cr4() & ~(1ull << 20));
    check(always(V + 20, 1), "and without SMEP");
    struct counting c = {(uint32_t *)(V + 2048), HOT, 0};
    flat_try(count_up, &c);
    check(c.done == HOT, "a hot store to a user page");
    write_cr4(read_cr4() | 1 << 21);
    flat_try(count_up, &c);
    print_fault("SMAP under it");
    asm volatile("stac");
    count_up(&c);
    check(c.done == HOT, "with AC");
    asm volatile("clac");
    flat_try(count_up, &c);
    print_fault("AC clear again");
    write_cr4(read_cr4() & ~(1ull << 21));
    page_directories[0] = saved;
    for (uint64_t page = 0x100000; page < 0x200000; page += 4096)
        set_supervisor(page, false);
}

/* --- address spaces --- */

static uint64_t other_pml4[512] __attribute__((aligned(4096)));
static uint64_t other_pdpt[512] __attribute__((aligned(4096)));
static uint64_t other_directory[512] __attribute__((aligned(4096)));
static uint64_t other_table[512] __attribute__((aligned(4096)));

/* The same, but for V, where frame_b is. */
static void build_other(void)
{
    memcpy(other_pml4, pml4, 4096);
    memcpy(other_pdpt, pdpt, 4096);
    memcpy(other_directory, page_directories + 512, 4096);
    memcpy(other_table, (void *)(page_directories[512] & ~0xfffull), 4096);
    other_pml4[0] = (uint64_t)other_pdpt | 7;
    other_pdpt[1] = (uint64_t)other_directory | 7;
    other_directory[0] = (uint64_t)other_table | 7;
    other_table[0] = (uint64_t)frame_b | P | W;
}

static bool switch_often(uint64_t one, uint64_t other)
{
    bool good = true;
    for (unsigned i = 0; i < HOT; i++) {
        write_cr3(one);
        good &= call(V + 20) == 1;
        write_cr3(other);
        good &= call(V + 20) == 2;
    }
    write_cr3(one);
    return good;
}

static void spaces(void)
{
    uint64_t one = (uint64_t)pml4, other = (uint64_t)other_pml4, keep = 1ull << 63;
    map(V, frame_a, P | W);
    flush_invlpg();
    put_return(frame_a + 20, 1);
    put_return(frame_b + 20, 2);
    build_other();
    check(switch_often(one, other), "two address spaces by turns");
    write_cr4(read_cr4() | 1 << 17);
    check(switch_often(one | 1, other | 2), "with PCIDs");
    check(switch_often(one | 1 | keep, other | 2 | keep), "with PCIDs whose entries stay");
    bool good = true;
    write_cr3(one | 1 | keep);
    for (unsigned i = 0; i < HOT; i++) { /* changed while another one is present */
        other_table[0] = (uint64_t)(i & 1 ? frame_b : frame_a) | P | W;
        if (i & 2)
            invpcid(0, 2, V);
        else
            invpcid(1, 2, 0);
        good &= call(V + 20) == 1;
        write_cr3(other | 2 | keep);
        good &= call(V + 20) == (i & 1 ? 2 : 1);
        write_cr3(one | 1 | keep);
    }
    check(good, "INVPCID of a PCID that is not the present one");
    write_cr3(one);
    write_cr4(read_cr4() & ~(1ull << 17));
}

/* --- segments and modes --- */

static void segment_base(void)
{
    static uint64_t words[2] = {11, 22};
    bool good = true;
    for (unsigned i = 0; i < HOT; i++) {
        uint64_t value;
        wrmsr(0xc0000101, (uint64_t)&words[i & 1]); /* GS */
        asm volatile("movq %%gs:0, %0" : "=r"(value));
        good &= value == words[i & 1];
    }
    check(good, "GS base changed each time");
    wrmsr(0xc0000101, 0);
}

/*
 * The same bytes in 64-bit and in 32-bit code: 48 is a prefix here and DEC EAX there. Each adds to
 * a word.
 */
asm(".globl both_modes\n"
    "both_modes:\n"
    "  .byte 0xb8, 0x05, 0, 0, 0\n" /* mov $5, %eax */
    "  .byte 0x48, 0xff, 0xc0\n"    /* inc %rax; or dec %eax, inc %eax */
    "  .byte 0x01, 0x04, 0x25\n"    /* add %eax, both_result */
    "  .long both_result\n"
    "  ret\n"
    /* In 32-bit code 04 25 is the address of another form: SIB without a base, the same. */
    ".bss\n"
    "both_result: .long 0\n"
    ".text\n");
extern uint32_t both_result;
void both_modes(void);

static void modes(void)
{
    uint32_t expected = 0;
    both_result = 0;
    for (unsigned i = 0; i < HOT / 10; i++) {
        for (unsigned k = 0; k < 20; k++)
            both_modes();
        flat_call_32(both_modes);
        expected += 20 * 6 + 5;
    }
    check(both_result == expected, "the same bytes as 64-bit and as 32-bit code");
}

void guest_main(void)
{
    remapping();
    under_itself();
    aliases();
    across();
    execute_permission();
    nxe();
    write_permission();
    user_permission();
    vector_permission();
    smep();
    spaces();
    segment_base();
    modes();
}
