/*
 * The second level of the software TLB: set-associative, behind the tables that are probed inline.
 * It holds what the walk found, whatever the kind of access, so that pages come back without a walk
 * after they lost their slot in a table, and after the guest was in another address space. Runs on
 * the CPU's thread. SDM vol. 3 section 4.10.
 */
#include "x86/tlb.h"

#include "x86/mem.h"
#include "x86/paging.h"

/* Spaces that show different pages at one address, as after a fork, do not share a set. */
static struct x86_tlb_page *set_of(struct x86_cpu *cpu, uint64_t la, unsigned space)
{
    uint64_t n = la >> PAGE_SHIFT;
    return cpu->book.second[(n ^ n >> 9 ^ n >> 18 ^ space * 0x2b) % X86_TLB_SETS];
}

static struct x86_tlb_page *find_in(struct x86_cpu *cpu, uint64_t la, unsigned space)
{
    struct x86_tlb_page *page = set_of(cpu, la, space), *end = page + X86_TLB_WAYS;
    uint32_t number = cpu->book.space[space].number;

    for (; page < end; page++) {
        if (page->la == (la & PAGE_MASK) && page->space == number)
            return page;
    }
    return NULL;
}

/* Kernels have global pages in the upper half of the addresses and no others, and none below. */
static bool is_usual(uint64_t la, bool global)
{
    return global == (la >> 63);
}

struct x86_tlb_page *x86_tlb_second_find(struct x86_cpu *cpu, uint64_t la)
{
    unsigned usual = la >> 63 ? X86_TLB_GLOBAL : cpu->book.present;
    unsigned other = la >> 63 ? cpu->book.present : X86_TLB_GLOBAL;
    struct x86_tlb_page *page = find_in(cpu, la, usual);

    return page || likely(!cpu->book.unusual[la >> 63]) ? page : find_in(cpu, la, other);
}

/* In the order of mem.c: the table, then the second level. */
bool x86_tlb_peek(struct x86_cpu *cpu, uint64_t la, enum x86_access access, enum x86_mmu mmu,
                  struct x86_tlb_page *page)
{
    const struct x86_tlb_entry *e = x86_tlb_slot(cpu, la, mmu);
    uint64_t tag = access == X86_WRITE ? e->write : access == X86_READ ? e->read : e->exec;

    if (tag == (la & PAGE_MASK)) {
        *page = (struct x86_tlb_page) {
            .la = tag, .gpa = x86_tlb_gpa(cpu, la, mmu), .page_shift = PAGE_SHIFT};
        page->host = (uint8_t *)(tag + e->addend);
        return true;
    }
    const struct x86_tlb_page *known = x86_tlb_second_find(cpu, la);
    if (!known || (access == X86_WRITE && !known->dirty) ||
        !x86_paging_allows(cpu, known, access, mmu))
        return false;
    *page = *known;
    return true;
}

struct x86_tlb_page *x86_tlb_second_insert(struct x86_cpu *cpu, const struct x86_tlb_page *page)
{
    unsigned space = page->global ? X86_TLB_GLOBAL : cpu->book.present;
    struct x86_tlb_page *set = set_of(cpu, page->la, space), *to = find_in(cpu, page->la, space);

    if (!is_usual(page->la, page->global))
        cpu->book.unusual[page->la >> 63] = true;
    if (!to)
        to = &set[cpu->book.turn[(set - cpu->book.second[0]) / X86_TLB_WAYS]++ % X86_TLB_WAYS];
    *to = *page;
    to->space = cpu->book.space[space].number;
    return to;
}

void x86_tlb_second_drop(struct x86_cpu *cpu, uint64_t la)
{
    struct x86_tlb_page *page;

    while ((page = x86_tlb_second_find(cpu, la)))
        page->space = 0;
}

void x86_tlb_second_drop_large(struct x86_cpu *cpu, uint64_t la)
{
    struct x86_tlb_page *page = cpu->book.second[0];
    uint32_t present = x86_tlb_space_present(cpu)->number;
    uint32_t global = x86_tlb_space_global(cpu)->number;

    for (unsigned i = 0; i < X86_TLB_SETS * X86_TLB_WAYS; i++, page++) {
        if (page->page_shift > PAGE_SHIFT && !((page->la ^ la) >> page->page_shift) &&
            (page->space == present || page->space == global))
            page->space = 0;
    }
}

void x86_tlb_second_clear(struct x86_cpu *cpu)
{
    memset(cpu->book.second, 0, sizeof cpu->book.second);
}

void x86_tlb_second_revoke(struct x86_cpu *cpu)
{
    struct x86_tlb_page *page = cpu->book.second[0];

    if (++cpu->book.grant)
        return;
    for (unsigned i = 0; i < X86_TLB_SETS * X86_TLB_WAYS; i++)
        page[i].grant = 0;
    cpu->book.grant = 1;
}
