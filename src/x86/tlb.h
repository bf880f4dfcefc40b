/*
 * The software TLB's own side: mem.c fills it. mem.h has the lookups and flushes for others.
 */
#ifndef PARAT_X86_TLB_H
#define PARAT_X86_TLB_H

#include "x86/cpu.h"

/* In x86_tlb_book.flags */
#define TLB_LISTED_LOCAL  0x01 /* the slot stands in list[0] */
#define TLB_LISTED_GLOBAL 0x02 /* ... in list[1] */
#define TLB_GLOBAL        0x04 /* the entry there now is global */
#define TLB_SIZE_CLASS    0x30 /* 0: made from a 4 KiB page; else index + 1 into the large sizes */
#define TLB_SIZE_SHIFT    4

/* --- tlb.c: the first level --- */

/* Tags to set. */
struct x86_tlb_fill {
    bool read, write, exec;
};

void x86_tlb_init(struct x86_cpu *cpu);
/* The entry for la, from the page that lies there. */
void x86_tlb_fill(struct x86_cpu *cpu, enum x86_mmu mmu, const struct x86_tlb_page *page,
                  const struct x86_tlb_fill *fill);

/*
 * What the CPU would use for such an access without a walk, moving nothing: page->gpa, host. False:
 * it would walk. tlb_second.c
 */
bool x86_tlb_peek(struct x86_cpu *cpu, uint64_t la, enum x86_access access, enum x86_mmu mmu,
                  struct x86_tlb_page *page);

/* A page of this size lies around la: before the first entry made from it. */
void x86_tlb_note_large(struct x86_cpu *cpu, uint64_t la, unsigned page_shift);

/* Large pages have a class, from 1; a page of 4 KiB has class 0. */
#define TLB_CLASS_COUNT 3u
unsigned x86_tlb_class_shift(unsigned size_class);

/* --- tlb_second.c: the second level --- */

/* The page of la in the present space, or NULL. Good until the next insertion. */
struct x86_tlb_page *x86_tlb_second_find(struct x86_cpu *cpu, uint64_t la);
/* Replaces what was known of page->la. Returns it in its place, with `space` set. */
struct x86_tlb_page *x86_tlb_second_insert(struct x86_cpu *cpu, const struct x86_tlb_page *page);
void x86_tlb_second_drop(struct x86_cpu *cpu, uint64_t la);
/* All pages made from a large one around la, in the present space and global. */
void x86_tlb_second_drop_large(struct x86_cpu *cpu, uint64_t la);
void x86_tlb_second_clear(struct x86_cpu *cpu);
/* No page may be written directly until it is asked for again. */
void x86_tlb_second_revoke(struct x86_cpu *cpu);

/* --- tlb_region.c: shortcuts for the walk --- */

/* What is known of the 2 MiB around la, or NULL. */
const struct x86_tlb_page *x86_tlb_region_find(struct x86_cpu *cpu, uint64_t la);
/* la and space of *region are set here, and gpa becomes the region's. */
void x86_tlb_region_insert(struct x86_cpu *cpu, uint64_t la, const struct x86_tlb_page *region);
void x86_tlb_region_clear(struct x86_cpu *cpu);

/* --- tlb_space.c: address spaces and their numbers --- */

void x86_tlb_spaces_init(struct x86_cpu *cpu);
/* Nothing of the space is known any more. */
void x86_tlb_space_renew(struct x86_cpu *cpu, struct x86_tlb_space *space);
/* All that are not present are free, and the present one is that of CR3 and CR4. */
void x86_tlb_spaces_reset(struct x86_cpu *cpu);
/* The space of a PCID, or NULL. */
struct x86_tlb_space *x86_tlb_space_of(struct x86_cpu *cpu, unsigned pcid);
/* Makes the space of CR3 and CR4 the present one. True: something may be known of it. */
bool x86_tlb_space_enter(struct x86_cpu *cpu);
/* What walks left behind is gone, of the present space and of global pages. */
void x86_tlb_spaces_forget_tables(struct x86_cpu *cpu);
/* The translation of la is taken away: the code numbers change if it was noted. */
void x86_tlb_space_forget_page(struct x86_cpu *cpu, struct x86_tlb_space *space, uint64_t la);

static inline struct x86_tlb_space *x86_tlb_space_present(struct x86_cpu *cpu)
{
    return &cpu->book.space[cpu->book.present];
}

static inline struct x86_tlb_space *x86_tlb_space_global(struct x86_cpu *cpu)
{
    return &cpu->book.space[X86_TLB_GLOBAL];
}

#endif
