/*
 * Guest memory as the CPU sees it: segmentation, software TLB, paging (SDM vol. 3 chapters 3-5).
 * The inline paths are the interpreter's hot loop; paging.c has the slow ones.
 *
 * Every function may leave by x86_raise_*. A store that returns has happened whole; one that faults
 * has changed nothing (page-crossing stores check both pages first).
 */
#ifndef PARAT_X86_MEM_H
#define PARAT_X86_MEM_H

#include "base/bits.h"
#include "x86/cpu.h"

/* --- slow paths, paging.c / segment.c --- */

uint64_t x86_load_slow(struct x86_cpu *cpu, uint64_t la, unsigned size, enum x86_mmu mmu);
void x86_store_slow(struct x86_cpu *cpu, uint64_t la, unsigned size, uint64_t value,
                    enum x86_mmu mmu);
/* Segment limit, type and canonical checks; raises #GP(0) or #SS(0). */
void x86_check_segment(struct x86_cpu *cpu, unsigned seg, uint64_t offset, unsigned size,
                       enum x86_access access);

/* Any length up to 4096: vectors, descriptors, XSAVE areas. Faults before anything is copied. */
void x86_load_bytes(struct x86_cpu *cpu, uint64_t la, void *to, unsigned length);
void x86_store_bytes(struct x86_cpu *cpu, uint64_t la, const void *from, unsigned length);
/* Raises what a store of these bytes would raise; a store after it cannot fault. */
void x86_probe_write(struct x86_cpu *cpu, uint64_t la, unsigned length);
/*
 * Host pointer for an atomic operation on RAM that is directly writable and does not cross a
 * cache line; NULL otherwise (do it in the exclusive section by load and store). Raises as a write.
 */
void *x86_atomic_pointer(struct x86_cpu *cpu, uint64_t la, unsigned size);
/*
 * Host pointer to plain bytes [la, la + *length) within one page for a string instruction, with
 * *length cut to the page's end; NULL when the page is MMIO or not directly writable. Raises.
 */
uint8_t *x86_string_pointer(struct x86_cpu *cpu, uint64_t la, enum x86_access access,
                            uint64_t *length);

/* Implicit supervisor accesses (GDT, IDT, TSS): as CPL 0, at linear addresses. */
uint64_t x86_system_load(struct x86_cpu *cpu, uint64_t la, unsigned size);
void x86_system_store(struct x86_cpu *cpu, uint64_t la, unsigned size, uint64_t value);
/* Atomic where the memory allows it: descriptors' accessed and busy bits. False: was not old. */
bool x86_system_compare_swap(struct x86_cpu *cpu, uint64_t la, uint32_t old, uint32_t value);

/*
 * Instruction bytes at linear address la: up to 15, fewer when the next page cannot be fetched (the
 * fault is raised only when none can) or CS ends (#GP(0) when la is outside). Returns the count;
 * pages[0] and [1] get the guest-physical page addresses (pages[1] = UINT64_MAX when one page holds
 * them all).
 */
unsigned x86_fetch(struct x86_cpu *cpu, uint64_t la, uint8_t bytes[15], uint64_t pages[2]);
/*
 * Host address of the code page at la (page aligned down) for execution, with its gpa; NULL when it
 * is not RAM. Raises #PF, #GP. Does not look at CS's limit.
 */
const uint8_t *x86_fetch_page(struct x86_cpu *cpu, uint64_t la, uint64_t *page_gpa);

/* Translates without side effects for debuggers and tests; false: not mapped. */
bool x86_translate(struct x86_cpu *cpu, uint64_t la, gpa_t *out);

/*
 * Flushes, SDM vol. 3 section 4.10.4. The present PCID is what CR4 and CR3 say at the time.
 * keep_global false: everything; true: all that is not global, of all PCIDs.
 */
void x86_tlb_flush(struct x86_cpu *cpu, bool keep_global);
void x86_tlb_flush_page(struct x86_cpu *cpu, uint64_t la); /* INVLPG */
void x86_tlb_flush_pcid(struct x86_cpu *cpu, unsigned pcid);
/* After CR3 was loaded. keep: what is known of the PCID loaded stays. */
void x86_tlb_switch(struct x86_cpu *cpu, bool keep);
/*
 * Has a TLB entry made for reading, or also writing, at la if that changes nothing that the guest
 * could see but accessed bits. False: there is none.
 */
bool x86_tlb_prepare(struct x86_cpu *cpu, uint64_t la, bool write);
/* Drops the write permission of entries for a physical page (it has code now). Owner thread. */
void x86_tlb_write_protect(struct x86_cpu *cpu, uint64_t page_gpa);
/*
 * Notes that somebody keeps the translation of la for execution, which is in the TLB now (for
 * cpu->mmu). True: it is one of code_space_global, else of code_space; see there in cpu.h.
 */
bool x86_tlb_note_code(struct x86_cpu *cpu, uint64_t la);

/* --- hot paths --- */

/* Offset of the memory operand in its segment. */
static inline uint64_t x86_ea(const struct x86_cpu *cpu, const struct x86_insn *insn)
{
    const char *regs = (const char *)cpu;
    uint64_t ea = load_le64(regs + insn->base) + (load_le64(regs + insn->index) << insn->scale) +
                  (uint64_t)(int64_t)insn->disp;
    if (unlikely(insn->address_size != 8))
        ea = insn->address_size == 4 ? (uint32_t)ea : (uint16_t)ea;
    return ea;
}

/* Linear address of an access, checked against the segment. */
static inline uint64_t x86_linear(struct x86_cpu *cpu, unsigned seg, uint64_t offset, unsigned size,
                                  enum x86_access access)
{
    uint8_t flat = access == X86_WRITE ? cpu->flat_write : cpu->flat_read;

    if (likely(cpu->code_size == 8))
        return cpu->seg_base[seg] + offset;
    /* Flat segments end at 4 GiB, too. */
    if (unlikely(!(flat >> seg & 1) || offset + size - 1 > UINT32_MAX))
        x86_check_segment(cpu, seg, offset, size, access);
    return (uint32_t)(cpu->seg_base[seg] + offset);
}

static inline uint64_t x86_operand_la(struct x86_cpu *cpu, const struct x86_insn *insn,
                                      unsigned size, enum x86_access access)
{
    return x86_linear(cpu, insn->seg, x86_ea(cpu, insn), size, access);
}

static inline struct x86_tlb_entry *x86_tlb_slot(struct x86_cpu *cpu, uint64_t la, enum x86_mmu mmu)
{
    return &cpu->tlb[mmu][la >> PAGE_SHIFT & (X86_TLB_SIZE - 1)];
}

/* The guest-physical page that the entry for la is of, when one of its tags matches. */
static inline uint64_t x86_tlb_gpa(const struct x86_cpu *cpu, uint64_t la, enum x86_mmu mmu)
{
    return cpu->book.gpa[mmu][la >> PAGE_SHIFT & (X86_TLB_SIZE - 1)];
}

/* Do all `size` bytes at la lie in the page of this tag? la is of the tag's slot, so that the next
 * page's never matches. */
static inline bool x86_tlb_hit(uint64_t tag, uint64_t la, unsigned size)
{
    return likely(tag == ((la + size - 1) & PAGE_MASK));
}

#define ALWAYS_INLINE static inline __attribute__((always_inline))

/* size is a constant 1, 2, 4 or 8 at each call, so that these fold to one host access. */
ALWAYS_INLINE uint64_t host_load(const void *p, unsigned size)
{
    switch (size) {
    case 1:
        return *(const uint8_t *)p;
    case 2:
        return load_le16(p);
    case 4:
        return load_le32(p);
    default:
        return load_le64(p);
    }
}

ALWAYS_INLINE void host_store(void *p, unsigned size, uint64_t value)
{
    switch (size) {
    case 1:
        *(uint8_t *)p = (uint8_t)value;
        break;
    case 2:
        store_le16(p, (uint16_t)value);
        break;
    case 4:
        store_le32(p, (uint32_t)value);
        break;
    default:
        store_le64(p, value);
        break;
    }
}

static inline uint64_t x86_load(struct x86_cpu *cpu, uint64_t la, unsigned size)
{
    const struct x86_tlb_entry *e = &cpu->tlb_now[la >> PAGE_SHIFT & (X86_TLB_SIZE - 1)];
    if (x86_tlb_hit(e->read, la, size))
        return host_load((const void *)(la + e->addend), size);
    return x86_load_slow(cpu, la, size, (enum x86_mmu)cpu->mmu);
}

static inline void x86_store(struct x86_cpu *cpu, uint64_t la, unsigned size, uint64_t value)
{
    const struct x86_tlb_entry *e = &cpu->tlb_now[la >> PAGE_SHIFT & (X86_TLB_SIZE - 1)];
    if (x86_tlb_hit(e->write, la, size))
        host_store((void *)(la + e->addend), size, value);
    else
        x86_store_slow(cpu, la, size, value, (enum x86_mmu)cpu->mmu);
}

#endif
