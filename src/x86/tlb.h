/*
 * The software TLB's own side: paging.c fills it. mem.h has the lookups and flushes for others.
 */
#ifndef PARAT_X86_TLB_H
#define PARAT_X86_TLB_H

#include "x86/cpu.h"

/* In x86_tlb_book.flags */
#define TLB_LISTED_LOCAL  0x01 /* the slot stands in list[0] */
#define TLB_LISTED_GLOBAL 0x02 /* ... in list[1] */
#define TLB_GLOBAL        0x04 /* the entry there now is global */
#define TLB_MAY_WRITE     0x08 /* paging allows writes and D is set; only direct ones are refused */
#define TLB_SIZE_CLASS    0x30 /* 0: made from a 4 KiB page; else index + 1 into large_shifts */
#define TLB_SIZE_SHIFT    4

/* A page as the walk found it, for one kind of access. */
struct x86_tlb_fill {
    uint64_t la, gpa; /* page addresses */
    uint8_t *host;
    bool read, write, exec; /* tags to set */
    bool may_write;
    bool global;
    unsigned page_shift; /* of the guest's page: 12, 21, 22, 30 */
};

void x86_tlb_init(struct x86_cpu *cpu);
/* Adds to the entry that is there when it is for the same page, or replaces it. */
void x86_tlb_fill(struct x86_cpu *cpu, enum x86_mmu mmu, const struct x86_tlb_fill *fill);
/* Puts the entry for la, if it is among the victims, back into its slot. Always tried before a
 * walk, so that no page is in both places. */
bool x86_tlb_revive(struct x86_cpu *cpu, enum x86_mmu mmu, uint64_t la);
/* The entry for la allows writes by paging, whether or not directly. */
bool x86_tlb_may_write(const struct x86_cpu *cpu, enum x86_mmu mmu, uint64_t la);

#endif
