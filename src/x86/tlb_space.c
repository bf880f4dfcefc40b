/*
 * Address spaces of the software TLB: one for each PCID used lately, and one for global pages. A
 * space is told by a number; flushing it is to give it another one. Runs on the CPU's thread.
 * SDM vol. 3 sections 4.10.1 and 4.10.4.
 *
 * Beside it each space has a number for those who keep translations of code (cpu.h, code_space). It
 * changes only when something may become stale that was noted. A filter knows what was noted: two
 * bits for each page, hashed.
 */
#include "x86/mem.h"
#include "x86/tlb.h"

/* --- numbers --- */

static void publish(struct x86_cpu *cpu)
{
    cpu->code_space = x86_tlb_space_present(cpu)->code;
    cpu->code_space_global = x86_tlb_space_global(cpu)->code;
}

static void forget_notes(struct x86_tlb_space *space)
{
    if (space->noted)
        memset(space->filter, 0, sizeof space->filter);
    space->noted = false;
    space->noted_sizes = 0;
}

/* All numbers were given once: they begin anew, and nothing with an old one stays. */
static void wrap(struct x86_cpu *cpu)
{
    struct x86_tlb_book *book = &cpu->book;

    x86_tlb_second_clear(cpu);
    x86_tlb_region_clear(cpu);
    for (unsigned i = 0; i < X86_TLB_SPACES; i++) {
        forget_notes(&book->space[i]);
        book->space[i].number = 0;
        if (i == X86_TLB_GLOBAL || i == book->present) {
            book->space[i].number = ++book->last_number;
            book->space[i].tables = ++book->last_number;
            book->space[i].code = ++book->last_number;
        }
    }
    publish(cpu);
    cpu->code_space_wraps++;
    cpu->end_block = true;
}

static uint32_t fresh(struct x86_cpu *cpu)
{
    if (cpu->book.last_number == UINT32_MAX) {
        cpu->book.last_number = 0;
        wrap(cpu);
    }
    return ++cpu->book.last_number;
}

static void renew_code(struct x86_cpu *cpu, struct x86_tlb_space *space)
{
    if (!space->noted)
        return;
    forget_notes(space);
    space->code = fresh(cpu);
    publish(cpu);
}

void x86_tlb_space_renew(struct x86_cpu *cpu, struct x86_tlb_space *space)
{
    space->number = fresh(cpu);
    space->tables = fresh(cpu);
    renew_code(cpu, space);
}

void x86_tlb_spaces_forget_tables(struct x86_cpu *cpu)
{
    x86_tlb_space_present(cpu)->tables = fresh(cpu);
    x86_tlb_space_global(cpu)->tables = fresh(cpu);
}

/* --- PCIDs --- */

static uint16_t present_pcid(const struct x86_cpu *cpu)
{
    return cpu->s.cr4 & X86_CR4_PCIDE ? cpu->s.cr3 & 0xfff : 0;
}

void x86_tlb_spaces_init(struct x86_cpu *cpu)
{
    cpu->book.present = 1;
    for (unsigned i = 0; i < 2; i++) {
        cpu->book.space[i].number = fresh(cpu);
        cpu->book.space[i].tables = fresh(cpu);
        cpu->book.space[i].code = fresh(cpu);
    }
    publish(cpu);
}

struct x86_tlb_space *x86_tlb_space_of(struct x86_cpu *cpu, unsigned pcid)
{
    for (unsigned i = X86_TLB_GLOBAL + 1; i < X86_TLB_SPACES; i++) {
        struct x86_tlb_space *space = &cpu->book.space[i];
        if (space->number && space->pcid == pcid)
            return space;
    }
    return NULL;
}

void x86_tlb_spaces_reset(struct x86_cpu *cpu)
{
    for (unsigned i = X86_TLB_GLOBAL + 1; i < X86_TLB_SPACES; i++) {
        if (i != cpu->book.present)
            cpu->book.space[i].number = 0;
    }
    x86_tlb_space_present(cpu)->pcid = present_pcid(cpu);
    x86_tlb_space_renew(cpu, x86_tlb_space_present(cpu));
}

/* A free one, else the one that was not used for the longest time. */
static struct x86_tlb_space *take_space(struct x86_cpu *cpu, uint16_t pcid)
{
    struct x86_tlb_space *best = NULL;

    for (unsigned i = X86_TLB_GLOBAL + 1; i < X86_TLB_SPACES; i++) {
        struct x86_tlb_space *space = &cpu->book.space[i];
        if (!best || (best->number && (!space->number || space->last_use < best->last_use)))
            best = space;
    }
    forget_notes(best);
    best->number = fresh(cpu);
    best->tables = fresh(cpu);
    best->code = fresh(cpu);
    best->pcid = pcid;
    return best;
}

bool x86_tlb_space_enter(struct x86_cpu *cpu)
{
    uint16_t pcid = present_pcid(cpu);
    struct x86_tlb_space *space = x86_tlb_space_present(cpu);
    bool known = true;

    space->last_use = ++cpu->book.switches;
    if (space->pcid == pcid)
        return true;
    space = x86_tlb_space_of(cpu, pcid);
    if (!space) {
        space = take_space(cpu, pcid);
        known = false;
    }
    cpu->book.present = (unsigned)(space - cpu->book.space);
    publish(cpu);
    return known;
}

/* --- notes --- */

#define FILTER_BITS 14u
_Static_assert(X86_TLB_FILTER_WORDS * 64 == 1u << FILTER_BITS, "the filter's size");

static uint64_t hash(uint64_t la, unsigned shift)
{
    return ((la >> shift) * 64 + shift) * 0x9e3779b97f4a7c15ull;
}

static unsigned hash_bit(uint64_t hash, unsigned n)
{
    return (unsigned)(hash << (n * 16) >> (64 - FILTER_BITS));
}

static void filter_add(struct x86_tlb_space *space, uint64_t hash)
{
    unsigned a = hash_bit(hash, 0), b = hash_bit(hash, 1);

    space->filter[a / 64] |= BIT(a % 64);
    space->filter[b / 64] |= BIT(b % 64);
}

static bool filter_has(const struct x86_tlb_space *space, uint64_t hash)
{
    unsigned a = hash_bit(hash, 0), b = hash_bit(hash, 1);

    return (space->filter[a / 64] >> (a % 64) & 1) && (space->filter[b / 64] >> (b % 64) & 1);
}

/* Was la noted, or another address in the same large page? */
static bool may_be_noted(const struct x86_tlb_space *space, uint64_t la)
{
    if (!space->noted)
        return false;
    if (filter_has(space, hash(la, PAGE_SHIFT)))
        return true;
    for (unsigned i = 0; i < TLB_CLASS_COUNT; i++) {
        if ((space->noted_sizes >> i & 1) &&
            filter_has(space, hash(la, x86_tlb_class_shift(i + 1))))
            return true;
    }
    return false;
}

void x86_tlb_space_forget_page(struct x86_cpu *cpu, struct x86_tlb_space *space, uint64_t la)
{
    if (may_be_noted(space, la))
        renew_code(cpu, space);
}

bool x86_tlb_note_code(struct x86_cpu *cpu, uint64_t la)
{
    uint8_t flags = cpu->book.flags[cpu->mmu][la >> PAGE_SHIFT & (X86_TLB_SIZE - 1)];
    unsigned size_class = (flags & TLB_SIZE_CLASS) >> TLB_SIZE_SHIFT;
    bool global = flags & TLB_GLOBAL;
    struct x86_tlb_space *space = global ? x86_tlb_space_global(cpu) : x86_tlb_space_present(cpu);

    space->noted = true;
    filter_add(space, hash(la, PAGE_SHIFT));
    if (size_class) {
        space->noted_sizes |= (uint8_t)BIT(size_class - 1);
        filter_add(space, hash(la, x86_tlb_class_shift(size_class)));
    }
    return global;
}
