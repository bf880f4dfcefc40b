/*
 * The page walk: 32-bit, PAE and 4-level paging, permissions, reserved bits, accessed and dirty
 * bits, error codes. Runs on the CPU's thread; other CPUs change the same tables meanwhile, hence
 * each entry is read once, whole, and A/D are set by compare-and-swap. SDM vol. 3 chapter 4.
 */
#include "x86/paging.h"

#include "x86/tlb.h"

#define LEVELS_MAX 4

/* The shape of a paging mode. */
struct shape {
    unsigned levels;
    unsigned entry_size;
    unsigned index_bits;
};

/* What a walk has seen on its way down. */
struct walk {
    struct shape shape;
    struct {
        uint64_t gpa, value;
    } entry[LEVELS_MAX];
    unsigned depth;            /* entries read */
    struct x86_tlb_page above; /* user, write, exec of all levels above the last one read */
    uint8_t *table;            /* host address of the last table, NULL when it is not RAM */
};

static struct shape paging_shape(const struct x86_cpu *cpu)
{
    if (cpu->s.efer & X86_EFER_LMA)
        return (struct shape) {4, 8, 9};
    if (cpu->s.cr4 & X86_CR4_PAE)
        return (struct shape) {2, 8, 9}; /* below the PDPTRs */
    return (struct shape) {2, 4, 10};
}

/* --- reading and changing one entry --- */

static uint64_t entry_load(const uint8_t *at, unsigned size)
{
    if (size == 4)
        return __atomic_load_n((const uint32_t *)(const void *)at, __ATOMIC_RELAXED);
    return __atomic_load_n((const uint64_t *)(const void *)at, __ATOMIC_RELAXED);
}

static uint64_t entry_read(struct x86_cpu *cpu, uint64_t at, unsigned size, uint8_t **table)
{
    bool writable = false;

    *table = cpu->ops->page(cpu->context, gpa(at & PAGE_MASK), &writable);
    if (!*table)
        return cpu->ops->mmio_read(cpu->context, gpa(at), size);
    return entry_load(*table + (at & ~PAGE_MASK), size);
}

static bool swap(uint8_t *at, unsigned size, uint64_t old, uint64_t value)
{
    if (size == 4) {
        uint32_t expected = (uint32_t)old;
        return __atomic_compare_exchange_n((uint32_t *)(void *)at, &expected, (uint32_t)value,
                                           false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED);
    }
    return __atomic_compare_exchange_n((uint64_t *)(void *)at, &old, value, false, __ATOMIC_SEQ_CST,
                                       __ATOMIC_RELAXED);
}

/* False when another CPU has changed the entry meanwhile. Tables in ROM keep their bits. */
static bool entry_set(struct x86_cpu *cpu, uint64_t at, unsigned size, uint64_t old, uint64_t bits)
{
    bool writable = true;
    uint8_t *page = cpu->ops->page(cpu->context, gpa(at & PAGE_MASK), &writable);

    if (!page)
        return true;
    if (writable)
        return swap(page + (at & ~PAGE_MASK), size, old, old | bits);
    uint8_t *p = cpu->ops->store_begin(cpu->context, gpa(at), size);
    if (!p)
        return true;
    bool done = swap(p, size, old, old | bits);
    cpu->ops->store_end(cpu->context, gpa(at), size);
    return done;
}

/* --- reserved bits, SDM vol. 3 tables 4-4 to 4-19 --- */

static uint64_t bits_between(unsigned low, unsigned high)
{
    return low > high ? 0 : (~0ull >> (63 - high)) & (~0ull << low);
}

static uint64_t reserved_bits(const struct x86_cpu *cpu, const struct shape *shape, unsigned shift,
                              bool leaf)
{
    unsigned width = cpu->cpuid->physical_address_bits;

    if (shape->entry_size == 4)
        return leaf && shift == 22 ? BIT(21) | (width < 40 ? bits_between(width - 19, 20) : 0) : 0;

    uint64_t reserved = bits_between(width, 51);
    if (!(cpu->s.efer & X86_EFER_NXE))
        reserved |= X86_PTE_NX;
    if (shape->levels == 2)
        reserved |= bits_between(52, 62);
    if (leaf && shift > PAGE_SHIFT)
        reserved |= bits_between(13, shift - 1);
    if (!leaf && (shift == 39 || (shift == 30 && !x86_has(cpu->features, X86_FEATURE_PDPE1GB))))
        reserved |= X86_PTE_PS;
    return reserved;
}

static bool entry_is_leaf(const struct x86_cpu *cpu, const struct shape *shape, unsigned shift,
                          uint64_t value)
{
    if (shift == PAGE_SHIFT)
        return true;
    if (!(value & X86_PTE_PS))
        return false;
    if (shape->entry_size == 4)
        return cpu->s.cr4 & X86_CR4_PSE;
    return shift == 21 || (shift == 30 && x86_has(cpu->features, X86_FEATURE_PDPE1GB));
}

/* --- the walk --- */

static uint64_t leaf_address(const struct shape *shape, unsigned shift, uint64_t value, uint64_t la)
{
    uint64_t frame = value & bits_between(shift, shape->entry_size == 4 ? 31 : 51);

    if (shape->entry_size == 4 && shift == 22)
        frame |= (value >> 13 & 0xff) << 32; /* PSE-36 */
    return frame | (la & (BIT(shift) - 1) & PAGE_MASK);
}

static void add_rights(const struct shape *shape, uint64_t value, struct x86_tlb_page *page)
{
    page->user &= !!(value & X86_PTE_U);
    page->write &= !!(value & X86_PTE_W);
    if (shape->entry_size == 8)
        page->exec &= !(value & X86_PTE_NX);
}

static void add_leaf(const struct x86_cpu *cpu, const struct shape *shape, unsigned shift,
                     uint64_t value, struct x86_tlb_page *page)
{
    page->gpa = leaf_address(shape, shift, value, page->la);
    page->page_shift = (uint8_t)shift;
    page->global = (value & X86_PTE_G) && (cpu->s.cr4 & X86_CR4_PGE);
    page->dirty = value & X86_PTE_D;
}

/* Reads entries down to the leaf. False, with the P and RSVD bits of the error code. */
static bool walk_down(struct x86_cpu *cpu, uint64_t la, struct walk *w, struct x86_mapping *out)
{
    const struct shape *shape = &w->shape;
    uint64_t table = cpu->s.cr3 & (shape->entry_size == 8 ? bits_between(12, 51) : 0xfffff000);
    unsigned shift = PAGE_SHIFT + shape->levels * shape->index_bits;

    if (shape->levels == 2 && shape->entry_size == 8) {
        uint64_t pdptr = cpu->s.pdptr[la >> 30 & 3];
        out->error = 0;
        if (!(pdptr & X86_PTE_P))
            return false;
        table = pdptr & bits_between(12, 51);
    }
    out->page.user = out->page.write = out->page.exec = true;
    for (w->depth = 0;;) {
        shift -= shape->index_bits;
        uint64_t index = la >> shift & (BIT(shape->index_bits) - 1);
        uint64_t at = table + index * shape->entry_size;
        uint64_t value = entry_read(cpu, at, shape->entry_size, &w->table);
        bool leaf = entry_is_leaf(cpu, shape, shift, value);

        w->entry[w->depth].gpa = at;
        w->entry[w->depth++].value = value;
        out->error = 0;
        if (!(value & X86_PTE_P))
            return false;
        out->error = X86_PFERR_P | X86_PFERR_RSVD;
        if (value & reserved_bits(cpu, shape, shift, leaf))
            return false;
        w->above = out->page;
        add_rights(shape, value, &out->page);
        if (leaf) {
            add_leaf(cpu, shape, shift, value, &out->page);
            return true;
        }
        table = value & bits_between(12, shape->entry_size == 8 ? 51 : 31);
    }
}

/* SDM vol. 3 section 4.6.1 */
bool x86_paging_allows(const struct x86_cpu *cpu, const struct x86_tlb_page *page,
                       enum x86_access access, enum x86_mmu mmu)
{
    if (mmu == X86_MMU_USER || mmu == X86_MMU_ALIGNED)
        return page->user && (access != X86_WRITE || page->write) &&
               (access != X86_EXEC || page->exec);
    if (access == X86_EXEC)
        return page->exec && !(page->user && (cpu->s.cr4 & X86_CR4_SMEP));
    if (page->user && mmu == X86_MMU_KERNEL)
        return false;
    return access != X86_WRITE || page->write || !(cpu->s.cr0 & X86_CR0_WP);
}

/* SDM vol. 3 section 4.7, all but P and RSVD. */
static uint32_t access_error(const struct x86_cpu *cpu, enum x86_access access, enum x86_mmu mmu)
{
    uint32_t error = access == X86_WRITE ? X86_PFERR_W : 0;
    bool nx = (cpu->s.cr4 & X86_CR4_PAE) && (cpu->s.efer & X86_EFER_NXE);

    if (mmu == X86_MMU_USER || mmu == X86_MMU_ALIGNED)
        error |= X86_PFERR_U;
    if (access == X86_EXEC && (nx || (cpu->s.cr4 & X86_CR4_SMEP)))
        error |= X86_PFERR_I;
    return error;
}

/* Sets A on the way and A (and D) in the leaf. False: an entry has changed, walk again. */
static bool walk_commit(struct x86_cpu *cpu, const struct walk *w, enum x86_access access)
{
    for (unsigned i = 0; i < w->depth; i++) {
        uint64_t bits = X86_PTE_A;
        if (i + 1 == w->depth && access == X86_WRITE)
            bits |= X86_PTE_D;
        if ((w->entry[i].value & bits) != bits &&
            !entry_set(cpu, w->entry[i].gpa, w->shape.entry_size, w->entry[i].value, bits))
            return false;
    }
    return true;
}

/* --- shortcuts --- */

/* The last entry, below a table that is known. False: not there, or not as simple as that. */
static bool read_leaf(const struct x86_cpu *cpu, const struct shape *shape, const uint8_t *table,
                      enum x86_access access, struct x86_tlb_page *page)
{
    uint64_t index = page->la >> PAGE_SHIFT & (BIT(shape->index_bits) - 1);
    uint64_t value = entry_load(table + index * shape->entry_size, shape->entry_size);
    uint64_t needed = X86_PTE_P | X86_PTE_A | (access == X86_WRITE ? X86_PTE_D : 0);

    if ((value & needed) != needed || (value & reserved_bits(cpu, shape, PAGE_SHIFT, true)))
        return false;
    add_rights(shape, value, page);
    add_leaf(cpu, shape, PAGE_SHIFT, value, page);
    return true;
}

/*
 * The walk from what an earlier one left behind, when it has no bit to set. A fault is never found
 * here: it would not be the tables' fault, but ours.
 */
static bool walk_short(struct x86_cpu *cpu, uint64_t la, enum x86_access access, enum x86_mmu mmu,
                       struct x86_tlb_page *out)
{
    const struct x86_tlb_page *region = x86_tlb_region_find(cpu, la);

    if (!region)
        return false;
    *out = *region;
    out->la = la & PAGE_MASK;
    if (region->host) {
        struct shape shape = paging_shape(cpu);
        if (!read_leaf(cpu, &shape, region->host, access, out))
            return false;
    } else {
        out->gpa |= out->la & (BIT(X86_TLB_REGION_SHIFT) - 1);
        if (access == X86_WRITE && !out->dirty)
            return false;
    }
    return x86_paging_allows(cpu, out, access, mmu);
}

static void leave_behind(struct x86_cpu *cpu, const struct walk *w, const struct x86_tlb_page *page)
{
    struct x86_tlb_page region = page->page_shift == PAGE_SHIFT ? w->above : *page;

    region.host = page->page_shift == PAGE_SHIFT ? w->table : NULL;
    if (region.host || page->page_shift > PAGE_SHIFT)
        x86_tlb_region_insert(cpu, page->la, &region);
}

bool x86_paging_walk(struct x86_cpu *cpu, uint64_t la, enum x86_access access, enum x86_mmu mmu,
                     bool commit, struct x86_mapping *out)
{
    if (!(cpu->s.cr0 & X86_CR0_PG)) {
        out->page = (struct x86_tlb_page) {.la = la & PAGE_MASK,
                                           .gpa = la & PAGE_MASK,
                                           .page_shift = PAGE_SHIFT,
                                           .user = true,
                                           .write = true,
                                           .exec = true,
                                           .dirty = true};
        return true;
    }
    if (commit && walk_short(cpu, la, access, mmu, &out->page))
        return true;
    out->page = (struct x86_tlb_page) {.la = la & PAGE_MASK};
    struct walk w = {.shape = paging_shape(cpu)};
    do {
        bool found = walk_down(cpu, la, &w, out);
        if (found && x86_paging_allows(cpu, &out->page, access, mmu))
            continue;
        if (found)
            out->error = X86_PFERR_P;
        out->error |= access_error(cpu, access, mmu);
        return false;
    } while (commit && !walk_commit(cpu, &w, access));
    if (access == X86_WRITE)
        out->page.dirty = true;
    if (commit)
        leave_behind(cpu, &w, &out->page);
    return true;
}

/* SDM vol. 3 section 4.4.1 */
bool x86_paging_load_pdptrs(struct x86_cpu *cpu, uint64_t cr3)
{
    uint64_t reserved =
        BIT(1) | BIT(2) | bits_between(5, 8) | bits_between(cpu->cpuid->physical_address_bits, 63);
    uint64_t pdptr[4];
    uint8_t *table;

    for (unsigned i = 0; i < 4; i++) {
        pdptr[i] = entry_read(cpu, (cr3 & 0xffffffe0) + i * 8, 8, &table);
        if ((pdptr[i] & X86_PTE_P) && (pdptr[i] & reserved))
            return false;
    }
    memcpy(cpu->s.pdptr, pdptr, sizeof pdptr);
    return true;
}

bool x86_translate(struct x86_cpu *cpu, uint64_t la, gpa_t *out)
{
    struct x86_mapping m;

    if (cpu->long_mode && !x86_canonical(la))
        return false;
    if (!x86_paging_walk(cpu, la, X86_READ, X86_MMU_KERNEL_USER, false, &m))
        return false;
    *out = gpa(m.page.gpa | (la & ~PAGE_MASK));
    return true;
}
