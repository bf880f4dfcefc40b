/*
 * What walks leave behind for the next ones: for each 2 MiB of linear addresses the page table that
 * maps them, or the large page that they lie in. Runs on the CPU's thread. SDM vol. 3 section
 * 4.10.3: INVLPG drops all of it, whatever the address.
 */
#include "x86/tlb.h"

#define REGION_MASK (~0ull << X86_TLB_REGION_SHIFT)

static struct x86_tlb_page *slot_of(struct x86_cpu *cpu, uint64_t la)
{
    uint64_t n = la >> X86_TLB_REGION_SHIFT;
    return &cpu->book.region[(n ^ n >> 8 ^ n >> 16) % X86_TLB_REGIONS];
}

const struct x86_tlb_page *x86_tlb_region_find(struct x86_cpu *cpu, uint64_t la)
{
    const struct x86_tlb_page *r = slot_of(cpu, la);
    bool valid = r->space == x86_tlb_space_present(cpu)->tables ||
                 r->space == x86_tlb_space_global(cpu)->tables;

    return valid && r->la == (la & REGION_MASK) ? r : NULL;
}

void x86_tlb_region_insert(struct x86_cpu *cpu, uint64_t la, const struct x86_tlb_page *region)
{
    struct x86_tlb_page *r = slot_of(cpu, la);

    *r = *region;
    r->la = la & REGION_MASK;
    if (!r->host)
        r->gpa &= REGION_MASK;
    r->space = (r->global ? x86_tlb_space_global(cpu) : x86_tlb_space_present(cpu))->tables;
}

void x86_tlb_region_clear(struct x86_cpu *cpu)
{
    memset(cpu->book.region, 0, sizeof cpu->book.region);
}
