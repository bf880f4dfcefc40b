/*
 * The page walk. paging.c; mem.c and the instructions that load CR3 use it.
 */
#ifndef PARAT_X86_PAGING_H
#define PARAT_X86_PAGING_H

#include "x86/mem.h"

/* Where a linear page lies and what the tables permit there. */
struct x86_mapping {
    struct x86_tlb_page page; /* of 4 KiB; its last fields, host and on, are the caller's */
    uint32_t error;           /* of the page fault when the walk fails */
};

/*
 * Walks the tables for an access of that kind and sets A and D bits. False: page fault, with
 * out->error its code. A walk that faults changes no table. `commit` false: changes none at all.
 */
bool x86_paging_walk(struct x86_cpu *cpu, uint64_t la, enum x86_access access, enum x86_mmu mmu,
                     bool commit, struct x86_mapping *out);

/* May an access of this kind use the page? For a write D is another question. */
bool x86_paging_allows(const struct x86_cpu *cpu, const struct x86_tlb_page *page,
                       enum x86_access access, enum x86_mmu mmu);

/*
 * Loads the four PDPTRs of PAE paging from the table at cr3; false when one has a reserved bit set
 * (then nothing is changed).
 */
bool x86_paging_load_pdptrs(struct x86_cpu *cpu, uint64_t cr3);

/* 48-bit addresses: bits 63-47 equal. */
static inline bool x86_canonical(uint64_t la)
{
    return (uint64_t)((int64_t)(la << 16) >> 16) == la;
}

#endif
