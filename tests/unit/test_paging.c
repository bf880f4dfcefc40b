/*
 * x86 paging: each combination of entry bits, control bits and kind of access against a model
 * written from the manual's prose (SDM vol. 3 section 4.6), error codes, A and D bits, TLB flushes,
 * slow paths.
 */
#include "cpu_rig.h"

#define LA     0x7000001000ull /* its own tables below, at 0x40000 */
#define TABLES 0x40000u
#define TARGET 0x50000u

/* --- every permission against the model --- */

struct world {
    bool pde_user, pde_write, pde_nx, pte_user, pte_write, pte_nx, pte_present;
    bool wp, smep, smap, nxe, ac;
    unsigned cpl;
    enum x86_access access;
};

static struct world world_of(unsigned n)
{
    struct world w = {
        .pde_user = n & 1,
        .pde_write = n & 2,
        .pde_nx = n & 4,
        .pte_user = n & 8,
        .pte_write = n & 16,
        .pte_nx = n & 32,
        .pte_present = n & 64,
        .wp = n & 128,
        .smep = n & 256,
        .smap = n & 512,
        .nxe = n & 1024,
        .ac = n & 2048,
        .cpl = n & 4096 ? 3 : 0,
        .access = (n >> 13) % 3,
    };
    return w;
}

#define WORLDS (3u << 13)

/* SDM vol. 3 sections 4.6.1 and 4.7, read straight. -1: no fault; else the error code. */
static int model(const struct world *w)
{
    bool supervisor = w->cpl != 3, user_page = w->pde_user && w->pte_user;
    bool writable = w->pde_write && w->pte_write, nx = w->pde_nx || w->pte_nx;
    int error = 0;
    bool ok = true;

    if (w->access == X86_WRITE)
        error |= 2;
    if (!supervisor)
        error |= 4;
    if (w->access == X86_EXEC && (w->smep || w->nxe))
        error |= 16;
    if (!w->nxe && w->pde_nx)
        return error | 1 | 8;
    if (!w->pte_present)
        return error;
    if (!w->nxe && w->pte_nx)
        return error | 1 | 8;
    if (supervisor) {
        if (w->access == X86_READ)
            ok = !user_page || !w->smap || w->ac;
        else if (w->access == X86_WRITE)
            ok = (writable || !w->wp) && (!user_page || !w->smap || w->ac);
        else
            ok = !nx && !(user_page && w->smep);
    } else {
        ok = user_page && (w->access != X86_WRITE || writable) && (w->access != X86_EXEC || !nx);
    }
    return ok ? -1 : error | 1;
}

static void build_world(struct rig *r, const struct world *w)
{
    rig_long(r, w->cpl);
    put64(r, RIG_PML4, (RIG_PML4 + 0x1000) | 7);
    put64(r, RIG_PML4 + 0x1000 + (LA >> 30 & 511) * 8, TABLES | 7);
    put64(r, TABLES + (LA >> 21 & 511) * 8,
          (TABLES + 0x1000) | 1 | w->pde_write << 1 | w->pde_user << 2 | (uint64_t)w->pde_nx << 63);
    put64(r, TABLES + 0x1000 + (LA >> 12 & 511) * 8,
          TARGET | w->pte_present | w->pte_write << 1 | w->pte_user << 2 |
              (uint64_t)w->pte_nx << 63);
    if (!w->wp)
        r->cpu.s.cr0 &= ~X86_CR0_WP;
    if (w->smep)
        r->cpu.s.cr4 |= X86_CR4_SMEP;
    if (w->smap)
        r->cpu.s.cr4 |= X86_CR4_SMAP;
    if (!w->nxe)
        r->cpu.s.efer &= ~X86_EFER_NXE;
    r->cpu.s.rflags = X86_FIXED | (w->ac ? X86_AC : 0);
    x86_tlb_flush(&r->cpu, false);
    x86_cpu_update_mode(&r->cpu);
}

static int try_access(struct rig *r, enum x86_access access)
{
    uint8_t bytes[15];
    uint64_t pages[2];

    if (access == X86_READ)
        return RIG_TRY(r, x86_load(&r->cpu, LA + 8, 4));
    if (access == X86_WRITE)
        return RIG_TRY(r, x86_store(&r->cpu, LA + 8, 4, 1));
    return RIG_TRY(r, x86_fetch(&r->cpu, LA + 8, bytes, pages));
}

static void check_world(struct rig *r, unsigned n)
{
    struct world w = world_of(n);
    uint64_t pde_at = TABLES + (LA >> 21 & 511) * 8,
             pte_at = TABLES + 0x1000 + (LA >> 12 & 511) * 8;

    build_world(r, &w);
    uint64_t pde = get64(r, pde_at), pte = get64(r, pte_at);
    int expected = model(&w), got = try_access(r, w.access);
    uint64_t a = expected < 0 ? X86_PTE_A : 0;
    uint64_t d = expected < 0 && w.access == X86_WRITE ? X86_PTE_D : 0;

    if (got != (expected < 0 ? -1 : X86_PF_FAULT) ||
        (expected >= 0 && r->cpu.fault.error != (uint32_t)expected))
        fail_msg("world %u: expected error %d, got vector %d error %u", n, expected, got,
                 r->cpu.fault.error);
    if (expected >= 0)
        assert_int_equal(r->cpu.fault.payload, LA + 8);
    assert_int_equal(get64(r, pde_at), pde | a);
    assert_int_equal(get64(r, pte_at), pte | a | d);
}

static void test_permissions(void **state)
{
    for (unsigned n = 0; n < WORLDS; n++)
        check_world(*state, n);
}

/* The TLB's answer must be the walk's: the same accesses again, after one that filled it. */
static void test_permissions_from_tlb(void **state)
{
    struct rig *r = *state;

    for (unsigned n = 0; n < WORLDS; n++) {
        struct world w = world_of(n);
        build_world(r, &w);
        for (unsigned access = 0; access < 3; access++) {
            for (unsigned again = 0; again < 2; again++) {
                w.access = (enum x86_access)access;
                int expected = model(&w), got = try_access(r, w.access);
                if ((got < 0) != (expected < 0))
                    fail_msg("world %u access %u: expected %d got %d", n, access, expected, got);
            }
        }
    }
}

/* --- reserved bits --- */

static int read_with(struct rig *r, uint64_t pml4e, uint64_t pdpte, uint64_t pde, uint64_t pte)
{
    rig_long(r, 0);
    put64(r, RIG_PML4 + 0 * 8, (RIG_PML4 + 0x1000) | 7 | pml4e);
    put64(r, RIG_PML4 + 0x1000 + (LA >> 30 & 511) * 8, TABLES | 7 | pdpte);
    put64(r, TABLES + (LA >> 21 & 511) * 8, (TABLES + 0x1000) | 7 | pde);
    put64(r, TABLES + 0x1000 + (LA >> 12 & 511) * 8, TARGET | 7 | pte);
    x86_tlb_flush(&r->cpu, false);
    int vector = RIG_TRY(r, x86_load(&r->cpu, LA, 8));
    return vector < 0 ? -1 : (int)r->cpu.fault.error;
}

static void test_reserved_bits(void **state)
{
    struct rig *r = *state;
    uint64_t ps = X86_PTE_PS;

    assert_int_equal(read_with(r, 0, 0, 0, 0), -1);
    for (unsigned bit = 46; bit < 52; bit++) {
        assert_int_equal(read_with(r, BIT(bit), 0, 0, 0), 9);
        assert_int_equal(read_with(r, 0, BIT(bit), 0, 0), 9);
        assert_int_equal(read_with(r, 0, 0, BIT(bit), 0), 9);
        assert_int_equal(read_with(r, 0, 0, 0, BIT(bit)), 9);
    }
    assert_int_equal(read_with(r, BIT(52) | BIT(62), BIT(55), BIT(60), BIT(61)), -1);
    assert_int_equal(read_with(r, ps, 0, 0, 0), 9);
    assert_int_equal(read_with(r, 0, 0, 0, ps), -1); /* PAT there */
    /* 2 MiB: the table's own address is the frame, bits 13-20 must be clear */
    assert_int_equal(read_with(r, 0, 0, ps, 0), 9);
}

/* --- page sizes --- */

static void test_large_pages(void **state)
{
    struct rig *r = *state;

    rig_long(r, 0);
    put32(r, 0x234568, 0x600df00d);
    put64(r, RIG_PML4 + 0x1000 + 8, 0x83); /* 1 GiB page at 1 GiB, frame 0 */
    put64(r, RIG_PML4 + 0x2000 + 16, 0x200083);
    put64(r, RIG_PML4 + 0x2000 + 24, 0x200083 | BIT(13)); /* reserved there */
    put64(r, RIG_PML4 + 0x1000 + 16, 0x83 | BIT(29));
    assert_int_equal(RIG_TRY(r, x86_load(&r->cpu, 0x600000, 4)), X86_PF_FAULT);
    assert_int_equal(r->cpu.fault.error, 9);
    assert_int_equal(RIG_TRY(r, x86_load(&r->cpu, 0x80000000, 4)), X86_PF_FAULT);
    assert_int_equal(r->cpu.fault.error, 9);
    assert_int_equal(x86_load(&r->cpu, 0x40234568, 4), 0x600df00d);
    assert_int_equal(x86_load(&r->cpu, 0x434568, 4), 0x600df00d);
}

static void test_two_level(void **state)
{
    struct rig *r = *state;

    rig_protected(r, 0);
    put32(r, TABLES, (TABLES + 0x1000) | 7);
    put32(r, TABLES + 0x1000 + 4 * 4, TARGET | 3);
    put32(r, TABLES + 4, 0x83);             /* 4 MiB page */
    put32(r, TABLES + 8, 0x83 | BIT(21));   /* reserved */
    put32(r, TABLES + 12, 0x83 | 3u << 13); /* PSE-36: 12 GiB */
    put32(r, TARGET + 0x10, 77);
    r->cpu.s.cr3 = TABLES;
    r->cpu.s.cr4 = X86_CR4_PSE;
    r->cpu.s.cr0 |= X86_CR0_PG;
    x86_tlb_flush(&r->cpu, false);
    assert_int_equal(x86_load(&r->cpu, 0x4010, 4), 77);
    assert_int_equal(x86_load(&r->cpu, 0x400000 + TARGET + 0x10, 4), 77);
    assert_int_equal(RIG_TRY(r, x86_load(&r->cpu, 0x800000, 4)), X86_PF_FAULT);
    assert_int_equal(r->cpu.fault.error, 9);
    gpa_t at;
    assert_true(x86_translate(&r->cpu, 0xc12345, &at));
    assert_int_equal(at.v, 0x300000000 + 0x12345);
}

static void test_pae(void **state)
{
    struct rig *r = *state;

    rig_protected(r, 0);
    r->cpu.s.cr4 = X86_CR4_PAE;
    put64(r, TABLES, (TABLES + 0x1000) | 1);
    put64(r, TABLES + 0x1000, 0x87);                           /* 2 MiB */
    put64(r, TABLES + 0x1008, 0x87 | BIT(52));                 /* reserved in PAE */
    PUT_CODE(r, RIG_CODE, 0x0f, 0x22, 0xd8, 0x0f, 0x22, 0xc3); /* mov cr3, eax; mov cr0, ebx */
    r->cpu.s.gpr[X86_RAX] = TABLES;
    r->cpu.s.gpr[X86_RBX] = r->cpu.s.cr0 | X86_CR0_PG;
    assert_int_equal(rig_step(r), -1);
    assert_int_equal(rig_step(r), -1);
    assert_int_equal(r->cpu.s.pdptr[0], (TABLES + 0x1000) | 1);
    put32(r, TARGET, 5);
    assert_int_equal(x86_load(&r->cpu, TARGET, 4), 5);
    assert_int_equal(RIG_TRY(r, x86_load(&r->cpu, 0x200000, 4)), X86_PF_FAULT);
    assert_int_equal(r->cpu.fault.error, 9);
    assert_int_equal(RIG_TRY(r, x86_load(&r->cpu, 0x40000000, 4)), X86_PF_FAULT);
    assert_int_equal(r->cpu.fault.error, 0);

    put64(r, TABLES + 8, BIT(1) | 1); /* a reserved bit: MOV CR3 is #GP, nothing changes */
    r->cpu.s.rip = RIG_CODE;
    assert_int_equal(rig_step(r), X86_GP);
    assert_int_equal(r->cpu.s.pdptr[1], 0);
}

/* --- TLB --- */

/* A page at LA that shows TARGET, made stale in the tables afterwards. */
static void map_target(struct rig *r, uint64_t flags)
{
    rig_long(r, 0);
    put64(r, RIG_PML4 + 0x1000 + (LA >> 30 & 511) * 8, TABLES | 7);
    put64(r, TABLES + (LA >> 21 & 511) * 8, (TABLES + 0x1000) | 7);
    put64(r, TABLES + 0x1000 + (LA >> 12 & 511) * 8, TARGET | 7 | flags);
    r->cpu.s.cr4 |= X86_CR4_PGE | X86_CR4_PCIDE;
    x86_tlb_flush(&r->cpu, false);
    put32(r, TARGET, 1);
    put32(r, TARGET + 0x1000, 2);
    assert_int_equal(x86_load(&r->cpu, LA, 4), 1);
    put64(r, TABLES + 0x1000 + (LA >> 12 & 511) * 8, (TARGET + 0x1000) | 7 | flags);
    assert_int_equal(x86_load(&r->cpu, LA, 4), 1);
}

static uint64_t load_after_cr3(struct rig *r, uint64_t cr3)
{
    PUT_CODE(r, RIG_CODE, 0x0f, 0x22, 0xd8);
    r->cpu.s.rip = RIG_CODE;
    r->cpu.s.gpr[X86_RAX] = cr3;
    assert_int_equal(rig_step(r), -1);
    return x86_load(&r->cpu, LA, 4);
}

static void test_flush_rules(void **state)
{
    struct rig *r = *state;

    map_target(r, 0);
    assert_int_equal(load_after_cr3(r, RIG_PML4), 2);
    map_target(r, X86_PTE_G);
    assert_int_equal(load_after_cr3(r, RIG_PML4), 1); /* global stays */
    map_target(r, 0);
    assert_int_equal(load_after_cr3(r, RIG_PML4 | BIT(63)), 1); /* bit 63 keeps */
    assert_int_equal(r->cpu.s.cr3, RIG_PML4);
    map_target(r, X86_PTE_G);
    x86_tlb_flush(&r->cpu, false);
    assert_int_equal(x86_load(&r->cpu, LA, 4), 2);
    map_target(r, X86_PTE_G);
    x86_tlb_flush_page(&r->cpu, LA + 0xfff);
    assert_int_equal(x86_load(&r->cpu, LA, 4), 2);
    map_target(r, 0);
    x86_tlb_flush_page(&r->cpu, LA + 0x1000);
    assert_int_equal(x86_load(&r->cpu, LA, 4), 1);
}

static void test_invlpg_of_large_page(void **state)
{
    struct rig *r = *state;

    rig_long(r, 0);
    put32(r, 0x1000f0, 1);
    put32(r, 0x3000f0, 2);
    assert_int_equal(x86_load(&r->cpu, 0x1000f0, 4), 1);
    put64(r, RIG_PML4 + 0x2000, 0x200087);
    assert_int_equal(x86_load(&r->cpu, 0x1000f0, 4), 1);
    x86_tlb_flush_page(&r->cpu, 0x1ff000); /* another address in the same large page */
    assert_int_equal(x86_load(&r->cpu, 0x1000f0, 4), 2);
}

static int invpcid(struct rig *r, uint64_t type, uint64_t pcid, uint64_t la)
{
    PUT_CODE(r, RIG_CODE, 0x66, 0x0f, 0x38, 0x82, 0x03); /* invpcid rax, [rbx] */
    put64(r, 0x60000, pcid);
    put64(r, 0x60008, la);
    r->cpu.s.rip = RIG_CODE;
    r->cpu.s.gpr[X86_RAX] = type;
    r->cpu.s.gpr[X86_RBX] = 0x60000;
    return rig_step(r);
}

static void test_invpcid(void **state)
{
    struct rig *r = *state;
    static const struct {
        uint64_t type, pcid, global;
        unsigned sees;
    } cases[] = {
        {0, 0, 0, 2},         {0, 5, 0, 1},         {1, 0, 0, 2}, {1, 5, 0, 1},
        {2, 0, X86_PTE_G, 2}, {3, 0, X86_PTE_G, 1}, {3, 0, 0, 2}, {1, 0, X86_PTE_G, 1},
    };
    for (unsigned i = 0; i < ARRAY_COUNT(cases); i++) {
        map_target(r, cases[i].global);
        assert_int_equal(invpcid(r, cases[i].type, cases[i].pcid, LA), -1);
        assert_int_equal(x86_load(&r->cpu, LA, 4), cases[i].sees);
    }
    assert_int_equal(invpcid(r, 4, 0, LA), X86_GP);
    assert_int_equal(invpcid(r, 0, 0x1000, LA), X86_GP);
    assert_int_equal(invpcid(r, 0, 0, BIT(50)), X86_GP);
}

/* Two pages of one slot: the second use of each needs no new walk, until a flush. */
static void test_slot_shared_by_two_pages(void **state)
{
    struct rig *r = *state;
    uint64_t other = LA + X86_TLB_SIZE * PAGE_SIZE;

    map_target(r, X86_PTE_G);
    put64(r, TABLES + (other >> 21 & 511) * 8, 0x000087);
    x86_tlb_flush(&r->cpu, false);
    put32(r, other & 0x1fffff, 3);
    x86_load(&r->cpu, LA, 4);
    x86_load(&r->cpu, other, 4);
    uint64_t walks = r->cpu.tlb_walks;
    for (unsigned i = 0; i < 4; i++) {
        assert_int_equal(x86_load(&r->cpu, LA, 4), 2);
        assert_int_equal(x86_load(&r->cpu, other, 4), 3);
    }
    assert_int_equal(r->cpu.tlb_walks, walks);
    put64(r, TABLES + 0x1000 + (LA >> 12 & 511) * 8, TARGET | 7);
    x86_tlb_flush_page(&r->cpu, LA); /* also when it has lost its slot */
    assert_int_equal(x86_load(&r->cpu, LA, 4), 1);
    put64(r, TABLES + (other >> 21 & 511) * 8, 0x200087);
    assert_int_equal(x86_load(&r->cpu, other, 4), 3);
    x86_load(&r->cpu, LA, 4);
    x86_tlb_flush(&r->cpu, true);
    put32(r, 0x200000 + (other & 0x1fffff), 4);
    assert_int_equal(x86_load(&r->cpu, other, 4), 4);
    x86_store(&r->cpu, other, 4, 5); /* write protection reaches both */
    x86_load(&r->cpu, LA, 4);
    x86_tlb_write_protect(&r->cpu, 0x200000 + (other & 0x1ff000));
    r->code_page = 0x200000 + (other & 0x1ff000);
    x86_store(&r->cpu, other, 4, 6);
    assert_int_equal(r->stores_begun, 1);
}

/* A slot that a global entry took over from another one stays through a flush of the others. */
static void test_slot_turned_global(void **state)
{
    struct rig *r = *state;
    uint64_t other = LA + X86_TLB_SIZE * PAGE_SIZE; /* the same slot, in the next large page */

    map_target(r, X86_PTE_G);
    put64(r, TABLES + (other >> 21 & 511) * 8, 0x000087);
    x86_tlb_flush(&r->cpu, false);
    x86_load(&r->cpu, other, 4);
    assert_int_equal(x86_load(&r->cpu, LA, 4), 2);
    put64(r, TABLES + 0x1000 + (LA >> 12 & 511) * 8, TARGET | 7);
    x86_tlb_flush(&r->cpu, true);
    assert_int_equal(x86_load(&r->cpu, LA, 4), 2);
    x86_tlb_flush(&r->cpu, false);
    assert_int_equal(x86_load(&r->cpu, LA, 4), 1);
}

static void test_flush_after_many_fills(void **state)
{
    struct rig *r = *state;

    rig_long(r, 0);
    for (unsigned round = 0; round < 3; round++) {
        for (uint64_t la = 0; la < RIG_RAM; la += PAGE_SIZE)
            x86_load(&r->cpu, la, 4);
        x86_tlb_flush(&r->cpu, round & 1);
        for (unsigned i = 0; i < X86_TLB_SIZE; i++)
            assert_int_equal(r->cpu.tlb[r->cpu.mmu][i].read, X86_TLB_EMPTY);
    }
}

/* --- slow paths --- */

static void test_crossing_store_is_whole_or_not(void **state)
{
    struct rig *r = *state;
    uint64_t pte = TABLES + 0x1000 + (LA >> 12 & 511) * 8;

    map_target(r, 0);
    x86_tlb_flush(&r->cpu, false);
    put64(r, pte + 8, 0); /* the next page is not there */
    put64(r, TARGET + 0x1000 + 0xff8, 0x1111111111111111);
    assert_int_equal(RIG_TRY(r, x86_store(&r->cpu, LA + 0xffc, 8, ~0ull)), X86_PF_FAULT);
    assert_int_equal(r->cpu.fault.payload, LA + 0x1000);
    assert_int_equal(get64(r, TARGET + 0x1000 + 0xff8), 0x1111111111111111);
    put64(r, pte + 8, TARGET | 7);
    x86_store(&r->cpu, LA + 0xffc, 8, 0xaabbccddeeff0011);
    assert_int_equal(get32(r, TARGET + 0x1ffc), 0xeeff0011);
    assert_int_equal(get32(r, TARGET), 0xaabbccdd);
    assert_int_equal(x86_load(&r->cpu, LA + 0xffc, 8), 0xaabbccddeeff0011);
}

/* Every length and place across two pages that lie apart, known to the TLB and not. */
static void test_crossing_of_every_length(void **state)
{
    struct rig *r = *state;
    uint64_t pte = TABLES + 0x1000 + (LA >> 12 & 511) * 8;
    uint64_t value = 0x8877665544332211;

    map_target(r, 0);
    put64(r, pte + 8, (TARGET + 0x8000) | 7);
    for (unsigned n = 2; n <= 8; n *= 2) {
        for (unsigned first = 1; first < n; first++) {
            uint64_t at = LA + 0x1000 - first, mask = ~0ull >> (64 - n * 8);
            uint8_t *left = r->ram + TARGET + 0x2000 - 8, *right = r->ram + TARGET + 0x8000;
            for (unsigned known = 0; known < 2; known++) {
                memset(left, 0xee, 8);
                memset(right, 0xee, 8);
                x86_store(&r->cpu, at, n, value);
                assert_int_equal(x86_load(&r->cpu, at, n), value & mask);
                assert_memory_equal(left + 8 - first, &value, first);
                assert_memory_equal(right, (uint8_t *)&value + first, n - first);
                assert_int_equal(first == 8 ? 0xee : left[7 - first], 0xee);
                assert_int_equal(right[n - first], 0xee);
            }
            x86_tlb_flush(&r->cpu, false);
        }
    }
}

static void test_mmio(void **state)
{
    struct rig *r = *state;

    map_target(r, 0);
    put64(r, TABLES + 0x1000 + (LA >> 12 & 511) * 8, 1ull << 40 | 7);
    x86_tlb_flush(&r->cpu, false);
    assert_int_equal(x86_load(&r->cpu, LA + 0x10, 4), 0x55667788);
    assert_int_equal(r->mmio_address, (1ull << 40) + 0x10);
    assert_int_equal(r->mmio_size, 4);
    x86_store(&r->cpu, LA + 0x18, 8, 99);
    assert_int_equal(r->mmio_writes, 1);
    assert_int_equal(r->mmio_size, 8);
    assert_int_equal(r->mmio_value, 99);
}

static void test_code_page_store(void **state)
{
    struct rig *r = *state;

    map_target(r, 0);
    x86_tlb_flush(&r->cpu, false);
    r->code_page = TARGET + 0x1000;
    x86_store(&r->cpu, LA, 4, 7);
    x86_store(&r->cpu, LA, 4, 8);
    assert_int_equal(r->stores_begun, 2);
    assert_int_equal(get32(r, TARGET + 0x1000), 8);
    r->code_page = UINT64_MAX; /* its code is gone: direct again */
    x86_store(&r->cpu, LA, 4, 9);
    x86_store(&r->cpu, LA, 4, 10);
    assert_int_equal(r->stores_begun, 2);
    x86_tlb_write_protect(&r->cpu, TARGET + 0x1000);
    r->code_page = TARGET + 0x1000;
    x86_store(&r->cpu, LA, 4, 11);
    assert_int_equal(r->stores_begun, 3);
    assert_null(x86_atomic_pointer(&r->cpu, LA, 4));
}

static void test_atomic_pointer(void **state)
{
    struct rig *r = *state;

    map_target(r, 0);
    x86_tlb_flush(&r->cpu, false);
    assert_ptr_equal(x86_atomic_pointer(&r->cpu, LA + 60, 4), r->ram + TARGET + 0x1000 + 60);
    assert_null(x86_atomic_pointer(&r->cpu, LA + 61, 4));
}

static void test_alignment_check(void **state)
{
    struct rig *r = *state;

    rig_long(r, 3);
    r->cpu.s.cr0 |= X86_CR0_AM;
    r->cpu.s.rflags |= X86_AC;
    x86_load(&r->cpu, 0x1001, 4); /* not in force before update_mode: fills the other table */
    x86_cpu_update_mode(&r->cpu);
    for (unsigned i = 0; i < 2; i++) {
        assert_int_equal(RIG_TRY(r, x86_load(&r->cpu, 0x1001, 4)), X86_AC_FAULT);
        assert_int_equal(RIG_TRY(r, x86_store(&r->cpu, 0x1002, 4, 0)), X86_AC_FAULT);
        assert_int_equal(RIG_TRY(r, x86_load(&r->cpu, 0x1008, 8)), -1);
        assert_int_equal(RIG_TRY(r, x86_load(&r->cpu, 0x1007, 1)), -1);
    }
}

static void test_non_canonical(void **state)
{
    struct rig *r = *state;

    rig_long(r, 0);
    PUT_CODE(r, RIG_CODE, 0x8b, 0x03);         /* mov eax, [rbx] */
    PUT_CODE(r, RIG_CODE + 16, 0x8b, 0x45, 0); /* mov eax, [rbp] */
    PUT_CODE(r, RIG_CODE + 32, 0x50);          /* push rax */
    r->cpu.s.gpr[X86_RBX] = r->cpu.s.gpr[X86_RBP] = 0x800000000000;
    assert_int_equal(rig_step(r), X86_GP);
    r->cpu.s.rip = RIG_CODE + 16;
    assert_int_equal(rig_step(r), X86_SS_FAULT);
    assert_int_equal(r->cpu.fault.error, 0);
    r->cpu.s.rip = RIG_CODE + 32;
    r->cpu.s.gpr[X86_RSP] = 0x800000000008;
    assert_int_equal(rig_step(r), X86_SS_FAULT);
    r->cpu.s.rip = 0x800000000000;
    assert_int_equal(rig_step(r), X86_GP);
}

static void test_fetch_across_pages(void **state)
{
    struct rig *r = *state;
    uint8_t bytes[15];
    uint64_t pages[2];

    map_target(r, 0);
    x86_tlb_flush(&r->cpu, false);
    put64(r, TABLES + 0x1000 + (LA >> 12 & 511) * 8 + 8, 0);
    assert_int_equal(x86_fetch(&r->cpu, LA + 0xffa, bytes, pages), 6);
    assert_int_equal(pages[0], TARGET + 0x1000);
    assert_int_equal(pages[1], UINT64_MAX);
    put64(r, TABLES + 0x1000 + (LA >> 12 & 511) * 8 + 8, TARGET | 5);
    assert_int_equal(x86_fetch(&r->cpu, LA + 0xffa, bytes, pages), 15);
    assert_int_equal(pages[1], TARGET);
}

/* --- the memory map changes while a walk asks a device --- */

#define TABLE_RAM  0x40000u  /* maps 4 to 6 MiB */
#define TABLE_MMIO 0x500000u /* maps 6 to 8 MiB, in a device's memory */
#define PAGE_A     0x50000u  /* at 6 MiB - 4 KiB */
#define PAGE_B     0x52000u  /* at 6 MiB */
#define BORDER     0x600000u

/* As the engine does it: RAM lies elsewhere on the host now, and nothing of it is in the TLB. */
static uint64_t move_ram(struct rig *r, uint64_t address)
{
    uint8_t *to = aligned_alloc(4096, RIG_RAM);

    assert_int_equal(address, TABLE_MMIO);
    memcpy(to, r->ram, RIG_RAM);
    memset(to + PAGE_A, 'N', PAGE_SIZE);
    memset(to + PAGE_B, 'M', PAGE_SIZE);
    memset(r->ram, 0xee, RIG_RAM);
    r->ram = to;
    x86_tlb_flush(&r->cpu, false);
    r->mmio_hook = NULL;
    return PAGE_B | 0x67;
}

/* Returns the RAM that move_ram leaves behind. */
static uint8_t *map_over_device(struct rig *r)
{
    rig_long(r, 0);
    put64(r, RIG_PML4 + 0x2010, TABLE_RAM | 0x67);
    put64(r, RIG_PML4 + 0x2018, TABLE_MMIO | 0x67);
    put64(r, TABLE_RAM + 511 * 8, PAGE_A | 0x67);
    memset(r->ram + PAGE_A, 'O', PAGE_SIZE);
    r->mmio_hook = move_ram;
    return r->ram;
}

static void assert_left_alone(uint8_t *old)
{
    for (unsigned i = 0; i < RIG_RAM; i++)
        assert_int_equal(old[i], 0xee);
    free(old);
}

static void test_crossing_load_while_the_map_changes(void **state)
{
    struct rig *r = *state;
    uint8_t *old = map_over_device(r);

    uint64_t value = 0;
    assert_int_equal(RIG_TRY(r, value = x86_load(&r->cpu, BORDER - 4, 8)), -1);
    assert_int_equal(value, 0x4d4d4d4d4e4e4e4e);
    assert_left_alone(old);
}

static void test_crossing_store_while_the_map_changes(void **state)
{
    struct rig *r = *state;
    uint8_t *old = map_over_device(r);

    assert_int_equal(RIG_TRY(r, x86_store(&r->cpu, BORDER - 4, 8, 0x8877665544332211)), -1);
    assert_int_equal(get32(r, PAGE_A + 0xffc), 0x44332211);
    assert_int_equal(get32(r, PAGE_B), 0x88776655);
    assert_left_alone(old);
}

static void test_string_while_the_map_changes(void **state)
{
    struct rig *r = *state;
    uint8_t *old = map_over_device(r);

    PUT_CODE(r, RIG_CODE, 0xf3, 0xa4); /* rep movsb */
    r->cpu.s.gpr[X86_RSI] = BORDER - PAGE_SIZE;
    r->cpu.s.gpr[X86_RDI] = BORDER;
    r->cpu.s.gpr[X86_RCX] = 64;
    /* It may let go in between, as the flush ends the block. */
    for (unsigned i = 0; i < 64 && r->cpu.s.rip == RIG_CODE; i++)
        assert_int_equal(rig_step(r), -1);
    assert_int_equal(r->cpu.s.gpr[X86_RCX], 0);
    for (unsigned i = 0; i < 64; i++)
        assert_int_equal(r->ram[PAGE_B + i], 'N');
    assert_left_alone(old);
}

int main(void)
{
#define RIG_TEST(f) cmocka_unit_test_setup_teardown(f, rig_setup, rig_teardown)
    const struct CMUnitTest tests[] = {
        RIG_TEST(test_permissions),
        RIG_TEST(test_permissions_from_tlb),
        RIG_TEST(test_reserved_bits),
        RIG_TEST(test_large_pages),
        RIG_TEST(test_two_level),
        RIG_TEST(test_pae),
        RIG_TEST(test_flush_rules),
        RIG_TEST(test_invlpg_of_large_page),
        RIG_TEST(test_invpcid),
        RIG_TEST(test_slot_shared_by_two_pages),
        RIG_TEST(test_slot_turned_global),
        RIG_TEST(test_flush_after_many_fills),
        RIG_TEST(test_crossing_store_is_whole_or_not),
        RIG_TEST(test_crossing_of_every_length),
        RIG_TEST(test_mmio),
        RIG_TEST(test_code_page_store),
        RIG_TEST(test_atomic_pointer),
        RIG_TEST(test_alignment_check),
        RIG_TEST(test_non_canonical),
        RIG_TEST(test_fetch_across_pages),
        RIG_TEST(test_crossing_load_while_the_map_changes),
        RIG_TEST(test_crossing_store_while_the_map_changes),
        RIG_TEST(test_string_while_the_map_changes),
    };
    return cmocka_run_group_tests_name("paging", tests, NULL, NULL);
}
