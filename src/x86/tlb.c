/*
 * The software TLB's first level, which is probed inline: direct-mapped, one table per kind of
 * access, 4 KiB entries also for large pages, of the present address space only. A flush clears the
 * slots filled since the last one. Behind it are the second level (tlb_second.c) and the walk.
 * Runs on the CPU's thread. SDM vol. 3 section 4.10.
 *
 * Large pages: INVLPG anywhere in one must drop all entries made from it. A filter (a set of bits
 * over hashed region numbers) knows whether a large page may have been used around an address; only
 * then are all entries looked at.
 */
#include "x86/tlb.h"

#include "x86/mem.h"

static void clear_entry(struct x86_tlb_entry *e)
{
    e->read = e->write = e->exec = X86_TLB_EMPTY;
}

static bool is_page(const struct x86_tlb_entry *e, uint64_t page)
{
    return e->read == page || e->write == page || e->exec == page;
}

void x86_tlb_init(struct x86_cpu *cpu)
{
    for (unsigned m = 0; m < X86_MMU_COUNT; m++) {
        for (unsigned i = 0; i < X86_TLB_SIZE; i++)
            clear_entry(&cpu->tlb[m][i]);
    }
    cpu->book.grant = 1;
    x86_tlb_spaces_init(cpu);
}

/* --- large page filter --- */

static const uint8_t large_shifts[TLB_CLASS_COUNT] = {21, 22, 30};

unsigned x86_tlb_class_shift(unsigned size_class)
{
    return large_shifts[size_class - 1];
}

/* Kernel and user halves apart: kernels use large pages everywhere, programs rarely. */
static unsigned large_hash(uint64_t la, unsigned shift)
{
    uint64_t region = la >> shift;
    return (unsigned)(la >> 63 << 9 | (region + shift * 31) * 0x9e3779b97f4a7c15ull >> 55);
}

static unsigned size_class(unsigned shift)
{
    for (unsigned i = 0; i < ARRAY_COUNT(large_shifts); i++) {
        if (large_shifts[i] == shift)
            return i + 1;
    }
    return 0;
}

static void large_note(struct x86_tlb_book *book, uint64_t la, unsigned shift)
{
    unsigned h = large_hash(la, shift);
    book->large[h / 64] |= BIT(h % 64);
}

static bool large_maybe(const struct x86_tlb_book *book, uint64_t la)
{
    for (unsigned i = 0; i < ARRAY_COUNT(large_shifts); i++) {
        unsigned h = large_hash(la, large_shifts[i]);
        if (book->large[h / 64] >> (h % 64) & 1)
            return true;
    }
    return false;
}

/* --- filling --- */

/* A slot is in a list at most once, so the lists cannot overflow. */
static void list_add(struct x86_tlb_book *book, uint8_t *flags, unsigned slot, bool global)
{
    uint8_t listed = global ? TLB_LISTED_GLOBAL : TLB_LISTED_LOCAL;
    if (*flags & listed)
        return;
    *flags |= listed;
    book->list[global][book->count[global]++] = (uint16_t)slot;
}

void x86_tlb_fill(struct x86_cpu *cpu, enum x86_mmu mmu, const struct x86_tlb_page *page,
                  const struct x86_tlb_fill *fill)
{
    unsigned index = page->la >> PAGE_SHIFT & (X86_TLB_SIZE - 1);
    uint8_t *flags = &cpu->book.flags[mmu][index];

    cpu->tlb[mmu][index] = (struct x86_tlb_entry) {
        .read = fill->read ? page->la : X86_TLB_EMPTY,
        .write = fill->write ? page->la : X86_TLB_EMPTY,
        .exec = fill->exec ? page->la : X86_TLB_EMPTY,
        .addend = (uintptr_t)page->host - page->la,
    };
    cpu->book.gpa[mmu][index] = page->gpa;
    *flags &= TLB_LISTED_LOCAL | TLB_LISTED_GLOBAL;
    *flags |= page->global ? TLB_GLOBAL : 0;
    if (page->page_shift > PAGE_SHIFT)
        *flags |= (uint8_t)(size_class(page->page_shift) << TLB_SIZE_SHIFT);
    list_add(&cpu->book, flags, mmu * X86_TLB_SIZE + index, page->global);
    cpu->tlb_fills++;
}

/* What INVLPG of a large page must know, even when the entry is no longer there. */
void x86_tlb_note_large(struct x86_cpu *cpu, uint64_t la, unsigned page_shift)
{
    large_note(&cpu->book, la, page_shift);
}

/* --- flushing --- */

/* Clears what the list names; a slot that has changed its kind since stands in the other list. */
static void flush_list(struct x86_cpu *cpu, bool global)
{
    struct x86_tlb_book *book = &cpu->book;
    uint8_t listed = global ? TLB_LISTED_GLOBAL : TLB_LISTED_LOCAL;

    for (unsigned i = 0; i < book->count[global]; i++) {
        unsigned slot = book->list[global][i];
        uint8_t *flags = &book->flags[slot / X86_TLB_SIZE][slot % X86_TLB_SIZE];
        *flags &= (uint8_t)~listed;
        if (!(*flags & TLB_GLOBAL) == !global)
            clear_entry(&cpu->tlb[slot / X86_TLB_SIZE][slot % X86_TLB_SIZE]);
    }
    book->count[global] = 0;
}

/* Entries of the tables are gone: host addresses got from them are, too. */
static void announce(struct x86_cpu *cpu)
{
    cpu->tlb_flushes++;
    cpu->tlb_revocations++;
    cpu->end_block = true;
}

void x86_tlb_flush(struct x86_cpu *cpu, bool keep_global)
{
    flush_list(cpu, false);
    x86_tlb_spaces_reset(cpu);
    if (!keep_global) {
        flush_list(cpu, true);
        x86_tlb_space_renew(cpu, x86_tlb_space_global(cpu));
        memset(cpu->book.unusual, 0, sizeof cpu->book.unusual);
        memset(cpu->book.large, 0, sizeof cpu->book.large);
    }
    announce(cpu);
}

void x86_tlb_switch(struct x86_cpu *cpu, bool keep)
{
    unsigned before = cpu->book.present;
    bool known = x86_tlb_space_enter(cpu), stays = before == cpu->book.present;

    if (known && !keep)
        x86_tlb_space_renew(cpu, x86_tlb_space_present(cpu));
    if (!keep || !stays)
        flush_list(cpu, false);
    announce(cpu);
}

void x86_tlb_flush_pcid(struct x86_cpu *cpu, unsigned pcid)
{
    struct x86_tlb_space *space = x86_tlb_space_of(cpu, pcid);

    if (!space)
        return;
    x86_tlb_space_renew(cpu, space);
    if (space == x86_tlb_space_present(cpu))
        flush_list(cpu, false);
    announce(cpu);
}

static bool entry_is_for(const struct x86_tlb_entry *e, uint64_t la, unsigned shift)
{
    return (e->read != X86_TLB_EMPTY && !((e->read ^ la) >> shift)) ||
           (e->write != X86_TLB_EMPTY && !((e->write ^ la) >> shift)) ||
           (e->exec != X86_TLB_EMPTY && !((e->exec ^ la) >> shift));
}

static void flush_large(struct x86_cpu *cpu, uint64_t la)
{
    const struct x86_tlb_book *book = &cpu->book;

    for (unsigned l = 0; l < 2; l++) {
        for (unsigned i = 0; i < book->count[l]; i++) {
            unsigned slot = book->list[l][i], m = slot / X86_TLB_SIZE, n = slot % X86_TLB_SIZE;
            unsigned class = (book->flags[m][n] & TLB_SIZE_CLASS) >> TLB_SIZE_SHIFT;
            if (class && entry_is_for(&cpu->tlb[m][n], la, large_shifts[class - 1]))
                clear_entry(&cpu->tlb[m][n]);
        }
    }
}

void x86_tlb_flush_page(struct x86_cpu *cpu, uint64_t la)
{
    if (large_maybe(&cpu->book, la)) {
        flush_large(cpu, la);
        x86_tlb_second_drop_large(cpu, la);
    }
    la &= PAGE_MASK;
    x86_tlb_second_drop(cpu, la);
    x86_tlb_spaces_forget_tables(cpu);
    x86_tlb_space_forget_page(cpu, x86_tlb_space_present(cpu), la);
    x86_tlb_space_forget_page(cpu, x86_tlb_space_global(cpu), la);
    for (unsigned m = 0; m < X86_MMU_COUNT; m++) {
        struct x86_tlb_entry *e = x86_tlb_slot(cpu, la, (enum x86_mmu)m);
        if (is_page(e, la))
            clear_entry(e);
    }
    cpu->end_block = true;
}

void x86_tlb_write_protect(struct x86_cpu *cpu, uint64_t page_gpa)
{
    const struct x86_tlb_book *book = &cpu->book;

    for (unsigned l = 0; l < 2; l++) {
        for (unsigned i = 0; i < book->count[l]; i++) {
            unsigned slot = book->list[l][i], m = slot / X86_TLB_SIZE, n = slot % X86_TLB_SIZE;
            if (book->gpa[m][n] == page_gpa)
                cpu->tlb[m][n].write = X86_TLB_EMPTY;
        }
    }
    x86_tlb_second_revoke(cpu);
    cpu->tlb_revocations++;
}
