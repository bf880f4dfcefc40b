/*
 * Guest memory, the slow ways: TLB misses, page-crossing accesses, MMIO, pages that may not be
 * written directly, watched pages, alignment checks, instruction fetch. Runs on the CPU's thread.
 * SDM vol. 3 sections 4.6, 4.10; 6.15 (#AC); APM vol. 2 section 5.4.
 */
#include "x86/mem.h"

#include "x86/debug.h"
#include "x86/paging.h"
#include "x86/tlb.h"

/* One or more bytes inside one page, translated and allowed. */
struct ref {
    uint8_t *host; /* NULL: MMIO */
    uint64_t gpa;
    bool direct; /* host may be written */
};

/* --- #GP or #SS for a non-canonical address --- */

/*
 * SDM vol. 3 section 6.15: a non-canonical address is #SS(0) when the access is to the stack. The
 * fast paths do not carry the segment this far, so the instruction is looked at once more.
 */
static bool access_is_stack(struct x86_cpu *cpu, uint64_t la)
{
    uint64_t from_rsp = la - cpu->s.gpr[X86_RSP] + 64;
    struct x86_insn insn = {0};
    uint8_t bytes[15];
    bool writable = false;
    gpa_t at;

    if (!cpu->decoder || !x86_translate(cpu, cpu->s.rip + cpu->seg_base[X86_CS], &at))
        return from_rsp < 128;
    const uint8_t *page = cpu->ops->page(cpu->context, gpa(at.v & PAGE_MASK), &writable);
    unsigned count = (unsigned)MIN(sizeof bytes, PAGE_SIZE - (at.v & ~PAGE_MASK));
    if (!page)
        return from_rsp < 128;
    memcpy(bytes, page + (at.v & ~PAGE_MASK), count);
    if (x86_decode(cpu->decoder, &cpu->decode_mode, bytes, count, &insn) != X86_DECODE_OK)
        return from_rsp < 128;
    if (insn.flags & X86_INSN_MEM) {
        uint64_t from_operand = la - (cpu->seg_base[insn.seg] + x86_ea(cpu, &insn));
        if (insn.seg == X86_SS)
            return true;
        if (from_operand <= PAGE_SIZE)
            return false;
    }
    return from_rsp < 128 || la - cpu->s.gpr[X86_RBP] + 512 < 1024; /* ENTER, LEAVE */
}

static void set_fault(struct x86_event *fault, enum x86_vector vector, uint32_t error)
{
    *fault = (struct x86_event) {
        .kind = X86_EVENT_EXCEPTION, .vector = (uint8_t)vector, .has_error = true, .error = error};
}

/* --- one page --- */

static void fill_tlb(struct x86_cpu *cpu, enum x86_mmu mmu, const struct x86_tlb_page *page,
                     bool direct)
{
    bool data = mmu != X86_MMU_ALIGNED && !x86_debug_watches(cpu, page->la);
    struct x86_tlb_fill fill = {
        .read = data && x86_paging_allows(cpu, page, X86_READ, mmu),
        .write = data && direct && page->dirty && x86_paging_allows(cpu, page, X86_WRITE, mmu),
        .exec = x86_paging_allows(cpu, page, X86_EXEC, mmu),
    };
    x86_tlb_fill(cpu, mmu, page, &fill);
}

static bool hit(const struct x86_tlb_entry *e, uint64_t la, enum x86_access access)
{
    uint64_t tag = access == X86_WRITE ? e->write : access == X86_READ ? e->read : e->exec;
    return tag == (la & PAGE_MASK);
}

static bool resolve_first(struct x86_cpu *cpu, uint64_t la, enum x86_access access,
                          enum x86_mmu mmu, struct ref *out)
{
    struct x86_tlb_entry *e = x86_tlb_slot(cpu, la, mmu);

    if (!hit(e, la, access))
        return false;
    *out = (struct ref) {(uint8_t *)(la + e->addend), x86_tlb_gpa(cpu, la, mmu) | (la & ~PAGE_MASK),
                         hit(e, la, X86_WRITE)};
    return true;
}

/* Direct writes are asked for only when there is a write: a page written to is no code page. */
static bool resolve_second(struct x86_cpu *cpu, uint64_t la, enum x86_access access,
                           enum x86_mmu mmu, struct ref *out)
{
    struct x86_tlb_page *page = x86_tlb_second_find(cpu, la);

    if (!page || (access == X86_WRITE && !page->dirty) ||
        !x86_paging_allows(cpu, page, access, mmu))
        return false;
    out->gpa = page->gpa | (la & ~PAGE_MASK);
    out->host = page->host;
    out->direct = page->grant == cpu->book.grant;
    if (access == X86_WRITE && !out->direct) {
        out->direct = true;
        out->host = cpu->ops->page(cpu->context, gpa(page->gpa), &out->direct);
        if (!out->host)
            return true; /* ROM */
        page->host = out->host;
        page->grant = out->direct ? cpu->book.grant : 0;
    }
    fill_tlb(cpu, mmu, page, out->direct);
    out->host += la & ~PAGE_MASK;
    return true;
}

static bool resolve_peeked(struct x86_cpu *cpu, uint64_t la, enum x86_access access,
                           enum x86_mmu mmu, struct ref *out)
{
    struct x86_tlb_page page;
    bool data = mmu != X86_MMU_ALIGNED;

    if (likely(!cpu->ops->tlb_peek) || !cpu->ops->tlb_peek(cpu->context, la, access, mmu, &page))
        return false;
    out->gpa = page.gpa | (la & ~PAGE_MASK);
    out->direct = access == X86_WRITE;
    out->host = cpu->ops->page(cpu->context, gpa(page.gpa), &out->direct);
    if (!out->host)
        return true; /* ROM */
    page.host = out->host;
    x86_tlb_fill(cpu, mmu, &page,
                 &(struct x86_tlb_fill) {.read = data && access != X86_EXEC,
                                         .write = data && access == X86_WRITE && out->direct,
                                         .exec = access == X86_EXEC});
    out->host += la & ~PAGE_MASK;
    return true;
}

/* False: *fault is what the access raises. */
static bool resolve_by_walk(struct x86_cpu *cpu, uint64_t la, enum x86_access access,
                            enum x86_mmu mmu, struct ref *out, struct x86_event *fault)
{
    struct x86_mapping m;

    if (cpu->long_mode && unlikely(!x86_canonical(la))) {
        bool stack = access != X86_EXEC && access_is_stack(cpu, la);
        set_fault(fault, stack ? X86_SS_FAULT : X86_GP, 0);
        return false;
    }
    if (!x86_paging_walk(cpu, la, access, mmu, true, &m)) {
        set_fault(fault, X86_PF_FAULT, m.error);
        fault->has_payload = true;
        fault->payload = la;
        return false;
    }
    cpu->tlb_walks++;
    out->gpa = m.page.gpa | (la & ~PAGE_MASK);
    out->direct = access == X86_WRITE;
    out->host = cpu->ops->page(cpu->context, gpa(m.page.gpa), &out->direct);
    if (!out->host)
        return true;
    m.page.host = out->host;
    m.page.grant = out->direct && access == X86_WRITE ? cpu->book.grant : 0;
    out->direct = m.page.grant;
    out->host += la & ~PAGE_MASK;
    if (m.page.page_shift > PAGE_SHIFT)
        x86_tlb_note_large(cpu, la, m.page.page_shift);
    fill_tlb(cpu, mmu, x86_tlb_second_insert(cpu, &m.page), out->direct);
    return true;
}

static bool try_resolve(struct x86_cpu *cpu, uint64_t la, enum x86_access access, enum x86_mmu mmu,
                        struct ref *out, struct x86_event *fault)
{
    return resolve_first(cpu, la, access, mmu, out) || resolve_second(cpu, la, access, mmu, out) ||
           resolve_peeked(cpu, la, access, mmu, out) ||
           resolve_by_walk(cpu, la, access, mmu, out, fault);
}

static void resolve(struct x86_cpu *cpu, uint64_t la, enum x86_access access, enum x86_mmu mmu,
                    struct ref *out)
{
    struct x86_event fault;

    if (!try_resolve(cpu, la, access, mmu, out, &fault))
        x86_raise_event(cpu, &fault);
}

bool x86_tlb_prepare(struct x86_cpu *cpu, uint64_t la, bool write)
{
    const enum x86_mmu mmu = (enum x86_mmu)cpu->mmu;
    struct x86_event fault;
    struct ref ref;

    if (!try_resolve(cpu, la, X86_READ, mmu, &ref, &fault))
        return false;
    if (write)
        (void)resolve_second(cpu, la, X86_WRITE, mmu, &ref);
    return hit(x86_tlb_slot(cpu, la, mmu), la, write ? X86_WRITE : X86_READ);
}

/* --- bytes of a resolved page --- */

/* One host access for 1, 2, 4 and 8 bytes, so that other CPUs never see half of an aligned one. */
static void copy(void *to, const void *from, unsigned length)
{
    switch (length) {
    case 1:
        *(uint8_t *)to = *(const uint8_t *)from;
        break;
    case 2:
        store_le16(to, load_le16(from));
        break;
    case 4:
        store_le32(to, load_le32(from));
        break;
    case 8:
        store_le64(to, load_le64(from));
        break;
    default:
        memcpy(to, from, length);
    }
}

static unsigned mmio_piece(unsigned length)
{
    return length >= 8 ? 8 : length >= 4 ? 4 : length >= 2 ? 2 : 1;
}

static void ref_load(struct x86_cpu *cpu, const struct ref *ref, uint8_t *to, unsigned length)
{
    if (likely(ref->host)) {
        copy(to, ref->host, length);
        return;
    }
    for (unsigned done = 0; done < length;) {
        unsigned piece = mmio_piece(length - done);
        uint64_t v = cpu->ops->mmio_read(cpu->context, gpa(ref->gpa + done), piece);
        memcpy(to + done, &v, piece);
        done += piece;
    }
}

static void ref_store(struct x86_cpu *cpu, const struct ref *ref, const uint8_t *from,
                      unsigned length)
{
    if (likely(ref->host && ref->direct)) {
        copy(ref->host, from, length);
        return;
    }
    if (ref->host) {
        uint8_t *to = cpu->ops->store_begin(cpu->context, gpa(ref->gpa), length);
        if (to) {
            copy(to, from, length);
            cpu->ops->store_end(cpu->context, gpa(ref->gpa), length);
        }
        return;
    }
    for (unsigned done = 0; done < length;) {
        unsigned piece = mmio_piece(length - done);
        uint64_t v = 0;
        memcpy(&v, from + done, piece);
        cpu->ops->mmio_write(cpu->context, gpa(ref->gpa + done), piece, v);
        done += piece;
    }
}

/* --- any bytes, up to a page --- */

/* Where the access goes on after its first page: wraps at 4 GiB outside 64-bit code. */
static uint64_t second_page(const struct x86_cpu *cpu, uint64_t la)
{
    uint64_t next = (la & PAGE_MASK) + PAGE_SIZE;
    return cpu->code_size != 8 && next == BIT(32) ? 0 : next;
}

static unsigned first_length(uint64_t la, unsigned length)
{
    return (unsigned)MIN(length, PAGE_SIZE - (la & ~PAGE_MASK));
}

/* The page of an access, and the second one when it is reached. */
static void resolve_pages(struct x86_cpu *cpu, uint64_t la, unsigned length, enum x86_access access,
                          enum x86_mmu mmu, struct ref page[2])
{
    bool crosses = first_length(la, length) < length;
    uint64_t revocations;

    do {
        revocations = cpu->tlb_revocations;
        resolve(cpu, la, access, mmu, &page[0]);
        if (likely(!crosses))
            return;
        resolve(cpu, second_page(cpu, la), access, mmu, &page[1]);
    } while (unlikely(revocations != cpu->tlb_revocations));
}

static void load(struct x86_cpu *cpu, uint64_t la, void *to, unsigned length, enum x86_mmu mmu)
{
    unsigned first = first_length(la, length);
    struct ref page[2];

    resolve_pages(cpu, la, length, X86_READ, mmu, page);
    ref_load(cpu, &page[0], to, first);
    if (first == length)
        return;
    if (unlikely(!page[0].host)) /* the map may have changed while a device was asked */
        resolve(cpu, second_page(cpu, la), X86_READ, mmu, &page[1]);
    ref_load(cpu, &page[1], (uint8_t *)to + first, length - first);
}

static void store(struct x86_cpu *cpu, uint64_t la, const void *from, unsigned length,
                  enum x86_mmu mmu)
{
    unsigned first = first_length(la, length);
    struct ref page[2];

    resolve_pages(cpu, la, length, X86_WRITE, mmu, page);
    ref_store(cpu, &page[0], from, first);
    if (first == length)
        return;
    if (unlikely(!page[0].host)) /* the map may have changed, or code been decoded, meanwhile */
        resolve(cpu, second_page(cpu, la), X86_WRITE, mmu, &page[1]);
    ref_store(cpu, &page[1], (const uint8_t *)from + first, length - first);
}

/* A non-canonical address is #GP or #SS before it is #AC. */
static void check_alignment(struct x86_cpu *cpu, uint64_t la, unsigned size, enum x86_mmu mmu)
{
    if (mmu == X86_MMU_ALIGNED && (la & (size - 1)) && (!cpu->long_mode || x86_canonical(la)))
        x86_raise_error(cpu, X86_AC_FAULT, 0);
}

/*
 * What #AC asks of a longer operand (SDM vol. 3 table 6-7, AMD's for vectors: 16 bytes at most): 8
 * of an 80-bit one, 4 of an x87 environment.
 */
static unsigned alignment_of(unsigned length)
{
    if (length == 10)
        return 8;
    return MIN(length & -length, 16u);
}

/* --- two pages that both hit: SDM vol. 3 section 8.1.1 asks for no atomicity --- */

/* Where the bytes from la on and those in the second page are. */
static bool find_both(struct x86_cpu *cpu, uint64_t la, enum x86_access access, enum x86_mmu mmu,
                      uint8_t *host[2])
{
    uint64_t next = second_page(cpu, la);
    const struct x86_tlb_entry *e0 = x86_tlb_slot(cpu, la, mmu), *e1 = x86_tlb_slot(cpu, next, mmu);

    host[0] = (uint8_t *)(la + e0->addend);
    host[1] = (uint8_t *)(next + e1->addend);
    return hit(e0, la, access) && hit(e1, next, access);
}

/* The last 8 bytes of one page and the first 8 of the other, shifted together. */
static bool load_both(struct x86_cpu *cpu, uint64_t la, unsigned size, enum x86_mmu mmu,
                      uint64_t *value)
{
    unsigned first = first_length(la, size);
    uint8_t *host[2];

    if (first == size || !find_both(cpu, la, X86_READ, mmu, host))
        return false;
    uint64_t low = load_le64(host[0] + first - 8), high = load_le64(host[1]);
    *value = (low >> (64 - first * 8) | high << first * 8) & ~0ull >> (64 - size * 8);
    return true;
}

static bool store_both(struct x86_cpu *cpu, uint64_t la, unsigned size, uint64_t value,
                       enum x86_mmu mmu)
{
    unsigned first = first_length(la, size);
    uint8_t *host[2];

    if (first == size || !find_both(cpu, la, X86_WRITE, mmu, host))
        return false;
    for (unsigned i = 0; i < first; i++)
        host[0][i] = (uint8_t)(value >> i * 8);
    for (unsigned i = first; i < size; i++)
        host[1][i - first] = (uint8_t)(value >> i * 8);
    return true;
}

uint64_t x86_load_slow(struct x86_cpu *cpu, uint64_t la, unsigned size, enum x86_mmu mmu)
{
    uint64_t value = 0;

    if (load_both(cpu, la, size, mmu, &value))
        return value;
    check_alignment(cpu, la, size, mmu);
    load(cpu, la, &value, size, mmu);
    if (cpu->debug_active)
        x86_debug_access(cpu, la, size, false);
    return value;
}

void x86_store_slow(struct x86_cpu *cpu, uint64_t la, unsigned size, uint64_t value,
                    enum x86_mmu mmu)
{
    if (store_both(cpu, la, size, value, mmu))
        return;
    check_alignment(cpu, la, size, mmu);
    store(cpu, la, &value, size, mmu);
    if (cpu->debug_active)
        x86_debug_access(cpu, la, size, true);
}

void x86_load_bytes(struct x86_cpu *cpu, uint64_t la, void *to, unsigned length)
{
    check_alignment(cpu, la, alignment_of(length), (enum x86_mmu)cpu->mmu);
    load(cpu, la, to, length, (enum x86_mmu)cpu->mmu);
    if (cpu->debug_active)
        x86_debug_access(cpu, la, length, false);
}

void x86_store_bytes(struct x86_cpu *cpu, uint64_t la, const void *from, unsigned length)
{
    check_alignment(cpu, la, alignment_of(length), (enum x86_mmu)cpu->mmu);
    store(cpu, la, from, length, (enum x86_mmu)cpu->mmu);
    if (cpu->debug_active)
        x86_debug_access(cpu, la, length, true);
}

void x86_probe_write(struct x86_cpu *cpu, uint64_t la, unsigned length)
{
    struct ref ref;

    check_alignment(cpu, la, alignment_of(length), (enum x86_mmu)cpu->mmu);
    resolve(cpu, la, X86_WRITE, (enum x86_mmu)cpu->mmu, &ref);
    if (first_length(la, length) < length)
        resolve(cpu, second_page(cpu, la), X86_WRITE, (enum x86_mmu)cpu->mmu, &ref);
}

void *x86_atomic_pointer(struct x86_cpu *cpu, uint64_t la, unsigned size)
{
    struct ref ref;

    check_alignment(cpu, la, size, (enum x86_mmu)cpu->mmu);
    if ((la & 63) + size > 64) {
        x86_probe_write(cpu, la, size);
        return NULL;
    }
    resolve(cpu, la, X86_WRITE, (enum x86_mmu)cpu->mmu, &ref);
    if (cpu->debug_active)
        x86_debug_access(cpu, la, size, true);
    return ref.direct ? ref.host : NULL;
}

uint8_t *x86_string_pointer(struct x86_cpu *cpu, uint64_t la, enum x86_access access,
                            uint64_t *length)
{
    struct ref ref;

    if (cpu->mmu == X86_MMU_ALIGNED || x86_debug_watches(cpu, la))
        return NULL;
    resolve(cpu, la, access, (enum x86_mmu)cpu->mmu, &ref);
    *length = MIN(*length, PAGE_SIZE - (la & ~PAGE_MASK));
    return access == X86_WRITE && !ref.direct ? NULL : ref.host;
}

/* --- implicit supervisor accesses, SDM vol. 3 section 4.6 --- */

static enum x86_mmu system_mmu(const struct x86_cpu *cpu)
{
    return cpu->s.cr4 & X86_CR4_SMAP ? X86_MMU_KERNEL : X86_MMU_KERNEL_USER;
}

uint64_t x86_system_load(struct x86_cpu *cpu, uint64_t la, unsigned size)
{
    uint64_t value = 0;

    load(cpu, la, &value, size, system_mmu(cpu));
    return value;
}

void x86_system_store(struct x86_cpu *cpu, uint64_t la, unsigned size, uint64_t value)
{
    store(cpu, la, &value, size, system_mmu(cpu));
}

bool x86_system_compare_swap(struct x86_cpu *cpu, uint64_t la, uint32_t old, uint32_t value)
{
    struct ref ref;

    resolve(cpu, la, X86_WRITE, system_mmu(cpu), &ref);
    if (!ref.host) { /* ROM, or a device, which need not read twice the same: callers retry */
        x86_system_store(cpu, la, 4, value);
        return true;
    }
    if (!ref.direct || (la & 63) > 60) {
        if (x86_system_load(cpu, la, 4) != old)
            return false;
        x86_system_store(cpu, la, 4, value);
        return true;
    }
    return __atomic_compare_exchange_n((uint32_t *)(void *)ref.host, &old, value, false,
                                       __ATOMIC_SEQ_CST, __ATOMIC_RELAXED);
}

/* --- instruction fetch --- */

unsigned x86_fetch(struct x86_cpu *cpu, uint64_t la, uint8_t bytes[15], uint64_t pages[2])
{
    const struct x86_segment *cs = &cpu->s.seg[X86_CS];
    unsigned length = 15;
    struct x86_event fault;
    struct ref ref;

    if (cpu->code_size != 8) {
        uint32_t offset = (uint32_t)(la - cs->base);
        if (offset > cs->limit)
            x86_raise_error(cpu, X86_GP, 0);
        length = (unsigned)MIN(length, (uint64_t)cs->limit - offset + 1);
    }
    resolve(cpu, la, X86_EXEC, (enum x86_mmu)cpu->mmu, &ref);
    unsigned first = first_length(la, length);
    ref_load(cpu, &ref, bytes, first);
    pages[0] = ref.gpa & PAGE_MASK;
    pages[1] = UINT64_MAX;
    if (first == length ||
        !try_resolve(cpu, second_page(cpu, la), X86_EXEC, (enum x86_mmu)cpu->mmu, &ref, &fault))
        return first;
    ref_load(cpu, &ref, bytes + first, length - first);
    pages[1] = ref.gpa & PAGE_MASK;
    return length;
}

const uint8_t *x86_fetch_page(struct x86_cpu *cpu, uint64_t la, uint64_t *page_gpa)
{
    struct ref ref;

    resolve(cpu, la, X86_EXEC, (enum x86_mmu)cpu->mmu, &ref); /* a fault tells the whole la */
    *page_gpa = ref.gpa & PAGE_MASK;
    return ref.host ? ref.host - (la & ~PAGE_MASK) : NULL;
}
