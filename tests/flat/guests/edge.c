/*
 * Direct branches whose targets are not canonical, in the last page of the lower half and the first
 * one of the upper: #GP at the branch, with nothing changed, in code that is hot. What goes on
 * behind the last byte faults there. The same page is mapped elsewhere, too, and the translations
 * made at one place must not be used at the other. SDM vol. 2 (JMP, CALL, Jcc, LOOP: #GP), vol. 1
 * section 3.3.7.1.
 */
#include "flat.h"

#define HOT      30
#define LAST     0x00007ffffffff000ul /* the page below the hole */
#define FIRST    0xffff800000000000ul /* the page above it */
#define ORDINARY 0x0000000006000000ul /* RAM; here the code page, and RAM behind */

static uint8_t page[4096] __attribute__((aligned(4096)));
static uint8_t before[4096] __attribute__((aligned(4096))); /* in front of LAST */
static uint64_t tables[2][3][512] __attribute__((aligned(4096)));

/* Maps the page at `la`, which has a PML4 entry of its own. */
static void map(uint64_t la, uint64_t t[3][512])
{
    pml4[la >> 39 & 511] = (uint64_t)t[0] | 3;
    t[0][la >> 30 & 511] = (uint64_t)t[1] | 3;
    t[1][la >> 21 & 511] = (uint64_t)t[2] | 3;
    t[2][la >> 12 & 511] = (uint64_t)page | 3;
}

/* --- calling it: RCX and RAX are given, and RSP is kept for a look --- */

static struct {
    uint64_t code, rcx, rflags; /* in */
} in;
static uint64_t end_rcx, end_rsp, begin_rsp;

static void run(void *unused)
{
    (void)unused;
    asm volatile("push %%rbp\n"
                 "mov %%rsp, %[begin]\n"
                 "push %[rflags]\n"
                 "popfq\n"
                 "call *%[code]\n"
                 "mov %%rcx, %[end_rcx]\n"
                 "pop %%rbp\n"
                 : [begin] "=m"(begin_rsp), [end_rcx] "=m"(end_rcx)
                 : "c"(in.rcx), [code] "m"(in.code), [rflags] "m"(in.rflags)
                 : "rax", "rdx", "memory", "cc");
}

static void on_gp(struct frame *frame)
{
    fault = (struct fault) {.happened = true,
                            .vector = (unsigned)frame->vector,
                            .error = frame->error,
                            .rip = frame->rip,
                            .rsp = frame->rsp};
    end_rcx = frame->rcx;
    end_rsp = frame->rsp;
    frame->rip = *(uint64_t *)(begin_rsp - 8); /* back behind the call */
    frame->rsp = begin_rsp;
}

/* --- the cases --- */

struct test {
    const char *name;
    uint8_t code[12];
    uint8_t length, branch; /* bytes; where the branch begins */
    uint64_t rcx_taken, rcx_not, flags_taken, flags_not;
};

#define CF 1ul
#define ZF 0x40ul

static const struct test tests[] = {
    {"jmp", {0x90, 0xe9}, 6, 1, 0, 0, 0, 0},
    {"call", {0x90, 0xe8}, 6, 1, 0, 0, 0, 0},
    {"jc", {0x90, 0x0f, 0x82}, 7, 1, 0, 0, CF, 0},
    {"jne", {0x31, 0xd2, 0x90, 0x0f, 0x85}, 9, 3, 0, 0, 0, 0}, /* never taken */
    {"jrcxz", {0x90, 0xe3}, 3, 1, 0, 5, 0, 0},
    {"loop", {0x90, 0xe2}, 3, 1, 5, 1, 0, 0},
    {"loope", {0x90, 0xe1}, 3, 1, 5, 5, ZF, 0},
};

/* Writes the code so that its branch leads out of the page by a little; returns where it begins. */
static unsigned place(const struct test *t, bool above)
{
    bool is_short = t->length - t->branch == 2;
    /* Short ones reach 127 bytes. */
    unsigned at = above ? 4096 - 64 : 64;
    int64_t target = above ? 4096 + 8 : -8;
    int64_t distance = target - (int64_t)(at + t->length);

    memset(page, 0xcc, sizeof page);
    memcpy(page + at, t->code, t->length);
    if (is_short) {
        page[at + t->length - 1] = (uint8_t)distance;
    } else {
        int32_t d = (int32_t)distance;
        memcpy(page + at + t->length - 4, &d, 4);
    }
    page[at + t->length] = 0xc3; /* not taken: ret */
    return at;
}

static bool is_conditional(const struct test *t)
{
    return t->flags_taken != t->flags_not || t->rcx_taken != t->rcx_not;
}

static void one(const struct test *t, uint64_t base, bool above, bool expect_fault)
{
    unsigned at = place(t, above);
    bool good = true, never = t->name[1] == 'n';

    for (unsigned i = 0; i < HOT && is_conditional(t); i++) { /* hot where it does not fault */
        in = (typeof(in)) {base + at, t->rcx_not, 2 | t->flags_not};
        fault.happened = false;
        run(NULL);
        good &= !fault.happened;
    }
    for (unsigned i = 0; i < HOT && expect_fault; i++) {
        in = (typeof(in)) {base + at, t->rcx_taken, 2 | t->flags_taken};
        fault.happened = false;
        run(NULL);
        if (never) {
            good &= !fault.happened;
            continue;
        }
        good &= fault.happened && fault.vector == 13 && fault.error == 0 &&
                fault.rip == base + at + t->branch && end_rcx == t->rcx_taken &&
                end_rsp == begin_rsp - 8;
    }
    print("%s %s %s\n", good ? "ok" : "FAIL", t->name, above ? "over the end" : "below the start");
    if (!good)
        print_fault("  last");
}

/* The page as ordinary code first: the same bytes, a target that is there. */
static void aliases(void)
{
    static const uint8_t jump[] = {0x90, 0xe9};
    int32_t distance = 4096 + 8 - (64 + 6); /* into the next page */
    bool good = true;

    memset(page, 0xcc, sizeof page);
    memcpy(page + 64, jump, sizeof jump);
    memcpy(page + 66, &distance, 4);
    *(uint8_t *)(ORDINARY + 64 + 6 + distance) = 0xc3;
    for (unsigned i = 0; i < 4 * HOT; i++) {
        bool edge = (i / HOT) & 1;
        in = (typeof(in)) {(edge ? LAST : ORDINARY) + 64, 0, 2};
        fault.happened = false;
        run(NULL);
        good &= edge ? fault.happened && fault.rip == LAST + 65 : !fault.happened;
    }
    check(good, "the same page at an ordinary address and at the edge");
}

/* The jump itself begins in the page before. */
static void goes_on_in_the_last_page(void)
{
    int32_t distance = 4096 + 8 - 2;
    uint8_t jump[5] = {0xe9};
    bool good = true;

    memcpy(jump + 1, &distance, 4);
    memset(page, 0xcc, sizeof page);
    memcpy(before + 4093, jump, 3);
    memcpy(page, jump + 3, 2);
    write_cr4(read_cr4() | 0x80); /* global pages: code of the kernel is expected to be */
    tables[0][2][(LAST >> 12 & 511) - 1] = (uint64_t)before | 0x103;
    tables[0][2][LAST >> 12 & 511] = (uint64_t)page | 0x103;
    invlpg((void *)LAST);
    for (unsigned i = 0; i < 4 * HOT; i++) {
        in = (typeof(in)) {LAST - 3, 0, 2};
        fault.happened = false;
        run(NULL);
        good &= fault.happened && fault.vector == 13 && fault.rip == LAST - 3;
    }
    check(good, "a jump over the end that goes on in the last page");
}

static void runs_over_the_end(void)
{
    bool good = true;

    memset(page, 0x90, sizeof page);
    for (unsigned i = 0; i < HOT; i++) {
        in = (typeof(in)) {LAST + 4096 - 8, 0, 2};
        fault.happened = false;
        run(NULL);
        good &= fault.happened && fault.vector == 13 && fault.rip == LAST + 4096;
    }
    check(good, "what runs over the end faults behind it");
}

void guest_main(void)
{
    map(LAST, tables[0]);
    map(FIRST, tables[1]);
    *flat_pte(ORDINARY) = (uint64_t)page | 3;
    invlpg((void *)ORDINARY);
    flat_set_handler(13, on_gp);
    for (unsigned i = 0; i < sizeof tests / sizeof *tests; i++) {
        one(&tests[i], LAST, true, true);
        one(&tests[i], FIRST, false, true);
    }
    aliases();
    goes_on_in_the_last_page();
    runs_over_the_end();
}
