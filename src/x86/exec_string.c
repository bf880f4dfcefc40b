/*
 * String instructions with their repeat prefixes. vCPU thread. SDM vol. 1 section 7.3.9.
 *
 * Elements go one by one through the checked accesses, or, where both sides are plain memory within
 * a page, as one run of the host's own instruction: it has the guest's semantics for overlap,
 * direction and flags. Where that is slow (short, unaligned or backward copies, comparisons) larger
 * pieces go before it. Registers are written back after each element or run, so that a fault leaves
 * them at the element that faulted. A long repetition stops now and then with the instruction still
 * to be finished (next_rip is its own address), so that interrupts get through.
 */
#include "x86/exec_int.h"
#include "x86/io.h"

/* Bytes moved, or what a slow element counts as, before an instruction lets go. */
#define BUDGET       65536
#define SLOW_ELEMENT 64

struct string {
    struct x86_cpu *cpu;
    const struct x86_insn *insn;
    unsigned size;   /* of an element */
    uint64_t mask;   /* of addresses and counts */
    uint64_t count;  /* elements left to do */
    uint64_t si, di; /* offsets */
    bool backward;
    bool flat; /* 64-bit addresses in 64-bit code: no limits */
};

ALWAYS_INLINE uint64_t step_of(const struct string *s, uint64_t elements)
{
    uint64_t bytes = elements * s->size;
    return s->backward ? -bytes : bytes;
}

ALWAYS_INLINE void register_write(struct string *s, unsigned gpr, uint64_t value)
{
    if (s->mask == 0xffff)
        gpr_write(s->cpu, gpr, 2, value);
    else
        s->cpu->s.gpr[gpr] = value & s->mask;
}

ALWAYS_INLINE bool is_repeated(const struct string *s)
{
    return s->insn->flags & (X86_INSN_REP | X86_INSN_REPNE);
}

ALWAYS_INLINE struct string string_begin(struct x86_cpu *cpu, const struct x86_insn *insn,
                                         unsigned size)
{
    struct string s = {.cpu = cpu, .insn = insn, .size = size};
    s.mask = size_mask(insn->address_size);
    s.count = is_repeated(&s) ? cpu->s.gpr[X86_RCX] & s.mask : 1;
    s.si = cpu->s.gpr[X86_RSI] & s.mask;
    s.di = cpu->s.gpr[X86_RDI] & s.mask;
    s.backward = cpu->s.rflags & X86_DF;
    s.flat = insn->address_size == 8 && cpu->code_size == 8;
    return s;
}

/* Which of the index registers an instruction uses. */
enum { USE_SI = 1, USE_DI = 2 };

/* `done` elements are complete: brings the registers up to date. */
ALWAYS_INLINE void string_advance(struct string *s, unsigned use, uint64_t done)
{
    if (use & USE_SI) {
        s->si = (s->si + step_of(s, done)) & s->mask;
        register_write(s, X86_RSI, s->si);
    }
    if (use & USE_DI) {
        s->di = (s->di + step_of(s, done)) & s->mask;
        register_write(s, X86_RDI, s->di);
    }
    s->count -= done;
    if (is_repeated(s))
        register_write(s, X86_RCX, s->count);
}

ALWAYS_INLINE uint64_t source_la(struct string *s)
{
    return x86_linear(s->cpu, s->insn->seg, s->si, s->size, X86_READ);
}

ALWAYS_INLINE uint64_t destination_la(struct string *s, enum x86_access access)
{
    return x86_linear(s->cpu, X86_ES, s->di, s->size, access);
}

/* --- runs --- */

/* Elements from `offset` on that neither wrap at the address size nor leave the segment's limit. */
static uint64_t segment_run(const struct string *s, unsigned seg, uint64_t offset)
{
    const struct x86_cpu *cpu = s->cpu;
    const struct x86_segment *segment = &cpu->s.seg[seg];
    uint64_t last = s->mask;

    if (cpu->code_size != 8) {
        if (!(segment->attr & X86_SEG_CODE) && segment->attr & X86_SEG_EXPAND_DOWN)
            return 1;
        last = MIN(last, (uint64_t)segment->limit);
    }
    if (s->backward)
        return offset / s->size + 1;
    return offset > last ? 1 : MAX((last - offset) / s->size, 1u);
}

/* Elements in the page at la, in the direction of travel; 0 when even one crosses its end. */
static uint64_t page_run(const struct string *s, uint64_t la)
{
    uint64_t offset = la & ~PAGE_MASK;
    if (offset > PAGE_SIZE - s->size)
        return 0;
    return s->backward ? offset / s->size + 1 : (PAGE_SIZE - offset) / s->size;
}

static uint64_t run_by_walk(struct string *s, unsigned seg, uint64_t offset, uint64_t la,
                            enum x86_access access, uint8_t **host)
{
    uint64_t length = s->size;
    uint64_t count = MIN(page_run(s, la), s->flat ? UINT64_MAX : segment_run(s, seg, offset));

    if (!count)
        return 0;
    *host = x86_string_pointer(s->cpu, la, access, &length);
    return *host && length >= s->size ? count : 0;
}

/*
 * How many elements may be done at once at this linear address of a segment; 0: none, do one by
 * one. *host is the first element then.
 */
ALWAYS_INLINE uint64_t run_at(struct string *s, unsigned seg, uint64_t offset, uint64_t la,
                              enum x86_access access, uint8_t **host)
{
    const struct x86_tlb_entry *e = &s->cpu->tlb_now[la >> PAGE_SHIFT & (X86_TLB_SIZE - 1)];
    uint64_t tag = access == X86_WRITE ? e->write : e->read;

    if (unlikely(!s->flat || tag != (la & PAGE_MASK)))
        return run_by_walk(s, seg, offset, la, access, host);
    *host = (uint8_t *)(la + e->addend);
    return page_run(s, la);
}

/* The run on the other side was found at `revocations`; is its host address still good? */
ALWAYS_INLINE bool run_stays(const struct string *s, uint64_t revocations)
{
    return likely(s->cpu->tlb_revocations == revocations);
}

/* Runs pay from a few elements on; single-stepping stops after each element. */
ALWAYS_INLINE bool runs_pay(const struct string *s)
{
    return s->count >= 4 && !s->cpu->debug_active;
}

/* --- the loop around one instruction's element and run --- */

/* Does elements at once; returns how many (0: none can be) and may clear *more. */
typedef uint64_t string_run(struct string *s, bool *more);
/* Does one element; false: stop, whatever the count (REPE, REPNE). */
typedef bool string_element(struct string *s);

ALWAYS_INLINE void repeat(struct x86_cpu *cpu, const struct x86_insn *insn, unsigned size,
                          unsigned use, string_run *run, string_element *element)
{
    struct string s = string_begin(cpu, insn, size);
    int64_t budget = BUDGET;
    bool more = true;

    while (s.count && more) {
        uint64_t done = run && runs_pay(&s) ? run(&s, &more) : 0;
        if (!done) {
            more = element(&s);
            done = 1;
            budget -= SLOW_ELEMENT;
        }
        budget -= (int64_t)(done * size);
        string_advance(&s, use, done);
        if (s.count && more && (budget < 0 || cpu->end_block || cpu->debug_active)) {
            cpu->next_rip = cpu->s.rip;
            cpu->end_block = true;
            return;
        }
    }
}

/* The host instruction at work in the guest's direction. */
#define HOST_STRING(insn, ...)                                                                     \
    do {                                                                                           \
        if (s->backward)                                                                           \
            __asm__ volatile("std\n\t" insn "\n\tcld" __VA_ARGS__);                                \
        else                                                                                       \
            __asm__ volatile(insn __VA_ARGS__);                                                    \
    } while (0)

/* --- larger pieces, each byte read and written once as the instruction does --- */

#define PIECE 16u

struct piece {
    uint64_t word[2];
};

ALWAYS_INLINE struct piece piece_load(const uint8_t *p)
{
    struct piece v;
    memcpy(&v, p, sizeof v);
    return v;
}

ALWAYS_INLINE void piece_store(uint8_t *p, struct piece v)
{
    memcpy(p, &v, sizeof v);
}

/* Short copies, which start slowly as a host instruction. The areas are apart. */
#define SHORT_COPY 256u

static void copy_short(uint8_t *to, const uint8_t *from, uint64_t length)
{
    for (; length >= PIECE; length -= PIECE, to += PIECE, from += PIECE)
        piece_store(to, piece_load(from));
    if (length & 8)
        store_le64(to, load_le64(from));
    to += length & 8, from += length & 8;
    if (length & 4)
        store_le32(to, load_le32(from));
    to += length & 4, from += length & 4;
    if (length & 2)
        store_le16(to, load_le16(from));
    to += length & 2, from += length & 2;
    if (length & 1)
        *to = *from;
}

/*
 * A run of a copy in the host's memory: `left` elements from `from` on. What the pieces leave over
 * is the host instruction's. Pieces need to be at least as far apart as they are long.
 */
ALWAYS_INLINE bool copy_is_short(const uint8_t *to, const uint8_t *from, uint64_t length)
{
    return length <= SHORT_COPY && (uint64_t)(to - from) >= length;
}

/* From the last byte of the first element downwards; returns how many bytes it has copied. */
static uint64_t copy_backward(uint8_t *to, const uint8_t *from, uint64_t length)
{
    uint64_t done = 0;

    if ((uint64_t)(from - to) < PIECE)
        return 0;
    for (; length - done >= PIECE; done += PIECE)
        piece_store(to - done - (PIECE - 1), piece_load(from - done - (PIECE - 1)));
    return done;
}

typedef uint8_t bytes_1 __attribute__((vector_size(PIECE)));
typedef uint16_t bytes_2 __attribute__((vector_size(PIECE)));
typedef uint32_t bytes_4 __attribute__((vector_size(PIECE)));
typedef uint64_t bytes_8 __attribute__((vector_size(PIECE)));

/* --- MOVS --- */

ALWAYS_INLINE bool movs_element(struct string *s, unsigned size)
{
    uint64_t value = x86_load(s->cpu, source_la(s), size);
    x86_store(s->cpu, destination_la(s, X86_WRITE), size, value);
    return true;
}

#define MOVS_RUN(n, suffix)                                                                        \
    static uint64_t movs_run_##n(struct string *s, bool *more)                                     \
    {                                                                                              \
        uint8_t *from, *to;                                                                        \
        unsigned seg = s->insn->seg;                                                               \
        uint64_t a = run_at(s, seg, s->si, source_la(s), X86_READ, &from);                         \
        if (!a)                                                                                    \
            return 0;                                                                              \
        uint64_t revocations = s->cpu->tlb_revocations;                                            \
        uint64_t b = run_at(s, X86_ES, s->di, destination_la(s, X86_WRITE), X86_WRITE, &to);       \
        if (!b || !run_stays(s, revocations))                                                      \
            return 0;                                                                              \
        uint64_t count = MIN(s->count, MIN(a, b)), left = count;                                   \
        if (s->backward) {                                                                         \
            uint64_t skip = copy_backward(to + n - 1, from + n - 1, count * n);                    \
            to -= skip, from -= skip, left -= skip / n;                                            \
        } else if (copy_is_short(to, from, count * n)) {                                           \
            copy_short(to, from, count *n);                                                        \
            return count;                                                                          \
        }                                                                                          \
        HOST_STRING("rep movs" suffix, : "+S"(from), "+D"(to), "+c"(left) : : "memory", "cc");     \
        return count;                                                                              \
    }

/* --- STOS --- */

ALWAYS_INLINE bool stos_element(struct string *s, unsigned size)
{
    x86_store(s->cpu, destination_la(s, X86_WRITE), size, s->cpu->s.gpr[X86_RAX]);
    return true;
}

#define STOS_RUN(n, suffix)                                                                        \
    static uint64_t stos_run_##n(struct string *s, bool *more)                                     \
    {                                                                                              \
        uint8_t *to;                                                                               \
        uint64_t la = destination_la(s, X86_WRITE);                                                \
        uint64_t count = MIN(s->count, run_at(s, X86_ES, s->di, la, X86_WRITE, &to));              \
        uint64_t left = count, value = s->cpu->s.gpr[X86_RAX];                                     \
        if (count)                                                                                 \
            HOST_STRING("rep stos" suffix, : "+D"(to), "+c"(left) : "a"(value) : "memory", "cc");  \
        return count;                                                                              \
    }

/* --- LODS --- */

ALWAYS_INLINE bool lods_element(struct string *s, unsigned size)
{
    gpr_write(s->cpu, X86_RAX, size, x86_load(s->cpu, source_la(s), size));
    return true;
}

/* --- CMPS, SCAS: the flags of the last comparison; ZF decides about the next --- */

ALWAYS_INLINE bool goes_on(const struct string *s)
{
    bool zf = s->cpu->s.rflags & X86_ZF;
    return s->insn->flags & X86_INSN_REPNE ? !zf : zf;
}

#define COMPARE(n, type)                                                                           \
    ALWAYS_INLINE void compare_##n(struct x86_cpu *cpu, uint64_t a, uint64_t b)                    \
    {                                                                                              \
        uint64_t ax;                                                                               \
        __asm__("cmp %2, %1" FLAGS_OUT : "=&a"(ax) : "r"((type)a), "r"((type)b) : "cc");           \
        cpu->s.rflags = flags_join(cpu->s.rflags, ax);                                             \
    }

/*
 * How many elements at the front of a run decide nothing, in whole pieces; at least one is left for
 * the host instruction, which makes the flags. REPE CMPS: equal ones. SCAS: those that differ from
 * the value (REPNE), or are equal to it.
 */
ALWAYS_INLINE bytes_8 difference(const uint8_t *a, const uint8_t *b)
{
    bytes_8 x, y;
    memcpy(&x, a, sizeof x);
    memcpy(&y, b, sizeof y);
    return x ^ y;
}

static uint64_t skip_equal(const uint8_t *a, const uint8_t *b, uint64_t length)
{
    uint64_t done = 0;

    for (; length - done > 4 * PIECE; done += 4 * PIECE) {
        const uint8_t *x = a + done, *y = b + done;
        bytes_8 any =
            (difference(x, y) | difference(x + PIECE, y + PIECE)) |
            (difference(x + 2 * PIECE, y + 2 * PIECE) | difference(x + 3 * PIECE, y + 3 * PIECE));
        if (any[0] | any[1])
            break;
    }
    for (; length - done > PIECE; done += PIECE) {
        bytes_8 any = difference(a + done, b + done);
        if (any[0] | any[1])
            break;
    }
    return done;
}

#define SKIP(n, type)                                                                              \
    static uint64_t skip_##n(const uint8_t *p, uint64_t length, uint64_t value, bool while_equal)  \
    {                                                                                              \
        bytes_##n wanted = (bytes_##n) {0} + (type)value;                                          \
        uint64_t done = 0;                                                                         \
        for (; length - done > PIECE; done += PIECE) {                                             \
            bytes_##n v;                                                                           \
            bytes_8 hits;                                                                          \
            memcpy(&v, p + done, sizeof v);                                                        \
            v = while_equal ? (bytes_##n)(v != wanted) : (bytes_##n)(v == wanted);                 \
            memcpy(&hits, &v, sizeof hits);                                                        \
            if (hits[0] | hits[1])                                                                 \
                break;                                                                             \
        }                                                                                          \
        return done;                                                                               \
    }

/* Compares the source with the destination, and reads the destination first, as AMD's do. */
#define CMPS_SIZE(n, suffix)                                                                       \
    static bool cmps_element_##n(struct string *s)                                                 \
    {                                                                                              \
        uint64_t b = x86_load(s->cpu, destination_la(s, X86_READ), n);                             \
        compare_##n(s->cpu, x86_load(s->cpu, source_la(s), n), b);                                 \
        return goes_on(s);                                                                         \
    }                                                                                              \
    static uint64_t cmps_run_##n(struct string *s, bool *more)                                     \
    {                                                                                              \
        uint8_t *from, *to;                                                                        \
        unsigned seg = s->insn->seg;                                                               \
        uint64_t b = run_at(s, X86_ES, s->di, destination_la(s, X86_READ), X86_READ, &to);         \
        if (!b)                                                                                    \
            return 0;                                                                              \
        uint64_t revocations = s->cpu->tlb_revocations;                                            \
        uint64_t a = run_at(s, seg, s->si, source_la(s), X86_READ, &from);                         \
        uint64_t count = MIN(s->count, MIN(a, b)), left = count, ax = 0;                           \
        if (!count || !run_stays(s, revocations))                                                  \
            return 0;                                                                              \
        if (!s->backward && !(s->insn->flags & X86_INSN_REPNE)) {                                  \
            uint64_t skip = skip_equal(from, to, count * n);                                       \
            from += skip, to += skip, left -= skip / n;                                            \
        }                                                                                          \
        if (s->insn->flags & X86_INSN_REPNE)                                                       \
            HOST_STRING("repne cmps" suffix FLAGS_OUT,                                             \
                        : "+S"(from), "+D"(to), "+c"(left), "+a"(ax)                               \
                        :                                                                          \
                        : "memory", "cc");                                                         \
        else                                                                                       \
            HOST_STRING("repe cmps" suffix FLAGS_OUT,                                              \
                        : "+S"(from), "+D"(to), "+c"(left), "+a"(ax)                               \
                        :                                                                          \
                        : "memory", "cc");                                                         \
        s->cpu->s.rflags = flags_join(s->cpu->s.rflags, ax);                                       \
        *more = goes_on(s);                                                                        \
        return count - left;                                                                       \
    }

#define SCAS_SIZE(n, suffix, type)                                                                 \
    SKIP(n, type)                                                                                  \
    static bool scas_element_##n(struct string *s)                                                 \
    {                                                                                              \
        uint64_t b = x86_load(s->cpu, destination_la(s, X86_READ), n);                             \
        compare_##n(s->cpu, s->cpu->s.gpr[X86_RAX], b);                                            \
        return goes_on(s);                                                                         \
    }                                                                                              \
    static uint64_t scas_run_##n(struct string *s, bool *more)                                     \
    {                                                                                              \
        uint8_t *to;                                                                               \
        uint64_t la = destination_la(s, X86_READ);                                                 \
        uint64_t count = MIN(s->count, run_at(s, X86_ES, s->di, la, X86_READ, &to));               \
        uint64_t left = count, ax = s->cpu->s.gpr[X86_RAX];                                        \
        if (!count)                                                                                \
            return 0;                                                                              \
        if (!s->backward) {                                                                        \
            uint64_t skip = skip_##n(to, count * n, ax, !(s->insn->flags & X86_INSN_REPNE));       \
            to += skip, left -= skip / n;                                                          \
        }                                                                                          \
        if (s->insn->flags & X86_INSN_REPNE)                                                       \
            HOST_STRING("repne scas" suffix FLAGS_OUT,                                             \
                        : "+D"(to), "+c"(left), "+a"(ax)                                           \
                        :                                                                          \
                        : "memory", "cc");                                                         \
        else                                                                                       \
            HOST_STRING("repe scas" suffix FLAGS_OUT,                                              \
                        : "+D"(to), "+c"(left), "+a"(ax)                                           \
                        :                                                                          \
                        : "memory", "cc");                                                         \
        s->cpu->s.rflags = flags_join(s->cpu->s.rflags, ax);                                       \
        *more = goes_on(s);                                                                        \
        return count - left;                                                                       \
    }

/* --- INS, OUTS: permission first, then memory, then the port --- */

ALWAYS_INLINE bool ins_element(struct string *s, unsigned size)
{
    uint16_t port = (uint16_t)s->cpu->s.gpr[X86_RDX];
    x86_check_io(s->cpu, port, size);
    uint64_t la = destination_la(s, X86_WRITE);
    x86_probe_write(s->cpu, la, size);
    x86_store(s->cpu, la, size, x86_in(s->cpu, port, size));
    return true;
}

ALWAYS_INLINE bool outs_element(struct string *s, unsigned size)
{
    uint16_t port = (uint16_t)s->cpu->s.gpr[X86_RDX];
    x86_check_io(s->cpu, port, size);
    x86_out(s->cpu, port, size, (uint32_t)x86_load(s->cpu, source_la(s), size));
    return true;
}

/* --- handlers --- */

#define ELEMENT(name, n)                                                                           \
    static bool name##_element_##n(struct string *s)                                               \
    {                                                                                              \
        return name##_element(s, n);                                                               \
    }
#define STRING_HANDLER(name, n, use, run)                                                          \
    static void name##_##n(struct x86_cpu *cpu, const struct x86_insn *insn)                       \
    {                                                                                              \
        repeat(cpu, insn, n, use, run, name##_element_##n);                                        \
    }

#define STRINGS(n, suffix, type)                                                                   \
    ELEMENT(movs, n)                                                                               \
    ELEMENT(stos, n)                                                                               \
    ELEMENT(lods, n)                                                                               \
    COMPARE(n, type)                                                                               \
    CMPS_SIZE(n, suffix)                                                                           \
    SCAS_SIZE(n, suffix, type)                                                                     \
    MOVS_RUN(n, suffix)                                                                            \
    STOS_RUN(n, suffix)                                                                            \
    STRING_HANDLER(movs, n, USE_SI | USE_DI, movs_run_##n)                                         \
    STRING_HANDLER(stos, n, USE_DI, stos_run_##n)                                                  \
    STRING_HANDLER(lods, n, USE_SI, NULL)                                                          \
    STRING_HANDLER(cmps, n, USE_SI | USE_DI, cmps_run_##n)                                         \
    STRING_HANDLER(scas, n, USE_DI, scas_run_##n)

#define PORT_STRINGS(n)                                                                            \
    ELEMENT(ins, n)                                                                                \
    ELEMENT(outs, n)                                                                               \
    STRING_HANDLER(ins, n, USE_DI, NULL)                                                           \
    STRING_HANDLER(outs, n, USE_SI, NULL)

STRINGS(1, "b", uint8_t);
STRINGS(2, "w", uint16_t);
STRINGS(4, "l", uint32_t);
STRINGS(8, "q", uint64_t);
PORT_STRINGS(1);
PORT_STRINGS(2);
PORT_STRINGS(4);

/* --- binding --- */

static bool bind_string(const struct x86_decode *d, struct x86_insn *out, x86_handler *run)
{
    /* SSE's MOVSD and CMPSD have these names, too. */
    if (d->z->meta.category != ZYDIS_CATEGORY_STRINGOP &&
        d->z->meta.category != ZYDIS_CATEGORY_IOSTRINGOP)
        return false;
    for (unsigned i = 0; i < d->z->operand_count; i++)
        if (is_mem(d, i) && d->op[i].mem.base != ZYDIS_REGISTER_NONE &&
            x86_register_offset(d->op[i].mem.base) == GPR_OFFSET(X86_RSI))
            out->seg = x86_segment_number(d->op[i].mem.segment);
    out->run = run;
    return true;
}

#define BIND_STRING(mnemonic, name, n)                                                             \
    static bool bind_##mnemonic(const struct x86_decode *d, struct x86_insn *out)                  \
    {                                                                                              \
        return bind_string(d, out, name##_##n);                                                    \
    }
#define BIND_STRINGS(name)                                                                         \
    BIND_STRING(name##b, name, 1)                                                                  \
    BIND_STRING(name##w, name, 2) BIND_STRING(name##d, name, 4) BIND_STRING(name##q, name, 8)

BIND_STRINGS(movs);
BIND_STRINGS(stos);
BIND_STRINGS(lods);
BIND_STRINGS(cmps);
BIND_STRINGS(scas);
BIND_STRING(insb, ins, 1);
BIND_STRING(insw, ins, 2);
BIND_STRING(insd, ins, 4);
BIND_STRING(outsb, outs, 1);
BIND_STRING(outsw, outs, 2);
BIND_STRING(outsd, outs, 4);

const struct x86_bind x86_bind_string[] = {
    {ZYDIS_MNEMONIC_MOVSB, bind_movsb},
    {ZYDIS_MNEMONIC_MOVSW, bind_movsw},
    {ZYDIS_MNEMONIC_MOVSD, bind_movsd},
    {ZYDIS_MNEMONIC_MOVSQ, bind_movsq},
    {ZYDIS_MNEMONIC_STOSB, bind_stosb},
    {ZYDIS_MNEMONIC_STOSW, bind_stosw},
    {ZYDIS_MNEMONIC_STOSD, bind_stosd},
    {ZYDIS_MNEMONIC_STOSQ, bind_stosq},
    {ZYDIS_MNEMONIC_LODSB, bind_lodsb},
    {ZYDIS_MNEMONIC_LODSW, bind_lodsw},
    {ZYDIS_MNEMONIC_LODSD, bind_lodsd},
    {ZYDIS_MNEMONIC_LODSQ, bind_lodsq},
    {ZYDIS_MNEMONIC_CMPSB, bind_cmpsb},
    {ZYDIS_MNEMONIC_CMPSW, bind_cmpsw},
    {ZYDIS_MNEMONIC_CMPSD, bind_cmpsd},
    {ZYDIS_MNEMONIC_CMPSQ, bind_cmpsq},
    {ZYDIS_MNEMONIC_SCASB, bind_scasb},
    {ZYDIS_MNEMONIC_SCASW, bind_scasw},
    {ZYDIS_MNEMONIC_SCASD, bind_scasd},
    {ZYDIS_MNEMONIC_SCASQ, bind_scasq},
    {ZYDIS_MNEMONIC_INSB, bind_insb},
    {ZYDIS_MNEMONIC_INSW, bind_insw},
    {ZYDIS_MNEMONIC_INSD, bind_insd},
    {ZYDIS_MNEMONIC_OUTSB, bind_outsb},
    {ZYDIS_MNEMONIC_OUTSW, bind_outsw},
    {ZYDIS_MNEMONIC_OUTSD, bind_outsd},
    X86_BIND_END,
};
