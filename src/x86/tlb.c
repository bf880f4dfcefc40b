/*
 * The software TLB: direct-mapped, one table per kind of access, 4 KiB entries also for large
 * pages. A flush clears the slots filled since the last one. Runs on the CPU's thread.
 * SDM vol. 3 section 4.10.
 *
 * Large pages: INVLPG anywhere in one must drop all entries made from it. A filter (a set of bits
 * over hashed region numbers) knows whether a large page may have been used around an address; only
 * then are all slots in use looked at.
 */
#include "x86/tlb.h"

#include "x86/mem.h"

static void clear_entry(struct x86_tlb_entry *e)
{
    e->read = e->write = e->exec = X86_TLB_EMPTY;
}

static bool is_empty(const struct x86_tlb_entry *e)
{
    return e->read == X86_TLB_EMPTY && e->write == X86_TLB_EMPTY && e->exec == X86_TLB_EMPTY;
}

static bool is_page(const struct x86_tlb_entry *e, uint64_t page)
{
    return e->read == page || e->write == page || e->exec == page;
}

static void clear_victims(struct x86_cpu *cpu)
{
    for (unsigned m = 0; m < X86_MMU_COUNT; m++) {
        for (unsigned i = 0; i < X86_TLB_VICTIMS; i++)
            clear_entry(&cpu->book.victim[m][i].entry);
    }
}

void x86_tlb_init(struct x86_cpu *cpu)
{
    for (unsigned m = 0; m < X86_MMU_COUNT; m++) {
        for (unsigned i = 0; i < X86_TLB_SIZE; i++)
            clear_entry(&cpu->tlb[m][i]);
    }
    clear_victims(cpu);
}

/* --- large page filter --- */

static const uint8_t large_shifts[] = {21, 22, 30};

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

#define LISTED (TLB_LISTED_LOCAL | TLB_LISTED_GLOBAL)

static struct x86_tlb_victim as_victim(const struct x86_cpu *cpu, enum x86_mmu mmu, unsigned index)
{
    const struct x86_tlb_book *book = &cpu->book;

    return (struct x86_tlb_victim) {cpu->tlb[mmu][index], book->gpa[mmu][index],
                                    (uint8_t)(book->flags[mmu][index] & ~LISTED)};
}

static void save_victim(struct x86_cpu *cpu, enum x86_mmu mmu, unsigned index)
{
    if (is_empty(&cpu->tlb[mmu][index]))
        return;
    unsigned n = cpu->book.next_victim[mmu]++ % X86_TLB_VICTIMS;
    cpu->book.victim[mmu][n] = as_victim(cpu, mmu, index);
}

bool x86_tlb_revive(struct x86_cpu *cpu, enum x86_mmu mmu, uint64_t la)
{
    unsigned index = la >> PAGE_SHIFT & (X86_TLB_SIZE - 1);
    uint8_t *flags = &cpu->book.flags[mmu][index];

    for (unsigned i = 0; i < X86_TLB_VICTIMS; i++) {
        struct x86_tlb_victim *v = &cpu->book.victim[mmu][i];
        if (!is_page(&v->entry, la & PAGE_MASK))
            continue;
        struct x86_tlb_victim old = as_victim(cpu, mmu, index);
        cpu->tlb[mmu][index] = v->entry;
        cpu->book.gpa[mmu][index] = v->gpa;
        *flags = (uint8_t)((*flags & LISTED) | v->flags);
        *v = old;
        list_add(&cpu->book, flags, mmu * X86_TLB_SIZE + index, *flags & TLB_GLOBAL);
        return true;
    }
    return false;
}

void x86_tlb_fill(struct x86_cpu *cpu, enum x86_mmu mmu, const struct x86_tlb_fill *fill)
{
    unsigned index = fill->la >> PAGE_SHIFT & (X86_TLB_SIZE - 1);
    struct x86_tlb_entry *e = &cpu->tlb[mmu][index];
    uint64_t *page_gpa = &cpu->book.gpa[mmu][index];
    uint8_t *flags = &cpu->book.flags[mmu][index];
    bool same = is_page(e, fill->la) && *page_gpa == fill->gpa &&
                e->addend == (uintptr_t)fill->host - fill->la;

    if (!same) {
        if (!is_page(e, fill->la))
            save_victim(cpu, mmu, index);
        clear_entry(e);
        *flags &= (uint8_t) ~(TLB_GLOBAL | TLB_MAY_WRITE);
    }
    *flags &= (uint8_t)~TLB_SIZE_CLASS;
    *flags |= (uint8_t)(size_class(fill->page_shift) << TLB_SIZE_SHIFT);
    e->addend = (uintptr_t)fill->host - fill->la;
    *page_gpa = fill->gpa;
    if (fill->read)
        e->read = fill->la;
    if (fill->write)
        e->write = fill->la;
    if (fill->exec)
        e->exec = fill->la;
    if (fill->global)
        *flags |= TLB_GLOBAL;
    else
        *flags &= (uint8_t)~TLB_GLOBAL;
    if (fill->may_write)
        *flags |= TLB_MAY_WRITE;
    list_add(&cpu->book, flags, mmu * X86_TLB_SIZE + index, fill->global);
    if (fill->page_shift > PAGE_SHIFT)
        large_note(&cpu->book, fill->la, fill->page_shift);
    cpu->tlb_fills++;
}

bool x86_tlb_may_write(const struct x86_cpu *cpu, enum x86_mmu mmu, uint64_t la)
{
    unsigned index = la >> PAGE_SHIFT & (X86_TLB_SIZE - 1);
    return cpu->tlb[mmu][index].read == (la & PAGE_MASK) &&
           (cpu->book.flags[mmu][index] & TLB_MAY_WRITE);
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

void x86_tlb_flush(struct x86_cpu *cpu, bool keep_global)
{
    flush_list(cpu, false);
    if (!keep_global) {
        flush_list(cpu, true);
        memset(cpu->book.large, 0, sizeof cpu->book.large);
    }
    clear_victims(cpu);
    cpu->tlb_flushes++;
    cpu->tlb_revocations++;
    cpu->end_block = true;
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
    if (large_maybe(&cpu->book, la))
        flush_large(cpu, la);
    la &= PAGE_MASK;
    for (unsigned m = 0; m < X86_MMU_COUNT; m++) {
        struct x86_tlb_entry *e = x86_tlb_slot(cpu, la, (enum x86_mmu)m);
        if (is_page(e, la))
            clear_entry(e);
    }
    clear_victims(cpu);
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
    clear_victims(cpu);
    cpu->tlb_revocations++;
}
