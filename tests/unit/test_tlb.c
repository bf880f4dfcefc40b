/*
 * The software TLB across address spaces: what a PCID keeps and what each invalidation takes (SDM
 * vol. 3 section 4.10.4), and the numbers by which translations of code are known to hold.
 */
#include "cpu_rig.h"

#define LA     0x7000001000ull /* differs between the spaces */
#define TABLES 0x100000u       /* 16 KiB for each space: PML4, PDPT, PD, PT */
#define PAGES  0x200000u       /* what LA shows: 8 KiB for each space, the second page for `move` */
#define KEEP   BIT(63)

static uint64_t tables_of(unsigned n)
{
    return TABLES + n * 0x4000u;
}

static void map(struct rig *r, unsigned n, uint64_t page, uint64_t flags)
{
    put64(r, tables_of(n) + 0x3000 + (LA >> 12 & 511) * 8, page | 7 | flags);
}

/* Space n: the rig's identity map, and page n at LA. */
static void make_space(struct rig *r, unsigned n)
{
    uint64_t at = tables_of(n);

    put64(r, at, (at + 0x1000) | 7);
    put64(r, at + 0x1000, (RIG_PML4 + 0x2000) | 7);
    put64(r, at + 0x1000 + (LA >> 30 & 511) * 8, (at + 0x2000) | 7);
    put64(r, at + 0x2000 + (LA >> 21 & 511) * 8, (at + 0x3000) | 7);
    put32(r, PAGES + n * 0x2000, n);
    put32(r, PAGES + n * 0x2000 + 0x1000, n + 100);
    map(r, n, PAGES + n * 0x2000, 0);
}

/* Makes the tables say something else than what may be kept. */
static void move(struct rig *r, unsigned n)
{
    map(r, n, PAGES + n * 0x2000 + 0x1000, 0);
}

static void begin(struct rig *r)
{
    rig_long(r, 0);
    for (unsigned n = 0; n < 24; n++)
        make_space(r, n);
    r->cpu.s.cr4 |= X86_CR4_PCIDE | X86_CR4_PGE;
    x86_tlb_flush(&r->cpu, false);
}

static void load_cr(struct rig *r, unsigned number, uint64_t value)
{
    PUT_CODE(r, RIG_CODE, 0x0f, 0x22, (uint8_t)(0xc0 | number << 3));
    r->cpu.s.rip = RIG_CODE;
    r->cpu.s.gpr[X86_RAX] = value;
    assert_int_equal(rig_step(r), -1);
}

/* To space n, whose PCID is n. */
static void go(struct rig *r, unsigned n, uint64_t keep)
{
    load_cr(r, 3, tables_of(n) | n | keep);
}

static uint32_t see(struct rig *r)
{
    return (uint32_t)x86_load(&r->cpu, LA, 4);
}

static void invlpg(struct rig *r, uint64_t la)
{
    PUT_CODE(r, RIG_CODE, 0x0f, 0x01, 0x38); /* invlpg [rax] */
    r->cpu.s.rip = RIG_CODE;
    r->cpu.s.gpr[X86_RAX] = la;
    assert_int_equal(rig_step(r), -1);
}

static void invpcid(struct rig *r, uint64_t type, uint64_t pcid, uint64_t la)
{
    PUT_CODE(r, RIG_CODE, 0x66, 0x0f, 0x38, 0x82, 0x03); /* invpcid rax, [rbx] */
    put64(r, 0x60000, pcid);
    put64(r, 0x60008, la);
    r->cpu.s.rip = RIG_CODE;
    r->cpu.s.gpr[X86_RAX] = type;
    r->cpu.s.gpr[X86_RBX] = 0x60000;
    assert_int_equal(rig_step(r), -1);
}

/* --- what a PCID keeps --- */

static void test_pcid_keeps_its_entries(void **state)
{
    struct rig *r = *state;

    begin(r);
    go(r, 1, 0);
    assert_int_equal(see(r), 1);
    move(r, 1);
    go(r, 2, 0);
    assert_int_equal(see(r), 2);
    go(r, 1, KEEP);
    uint64_t walks = r->cpu.tlb_walks;
    assert_int_equal(see(r), 1);
    assert_int_equal(r->cpu.tlb_walks, walks);
    go(r, 2, KEEP);
    assert_int_equal(see(r), 2);
    go(r, 1, 0); /* bit 63 clear: nothing of it is kept */
    assert_int_equal(see(r), 101);
}

static void test_without_pcids_nothing_is_kept(void **state)
{
    struct rig *r = *state;

    begin(r);
    load_cr(r, 4, r->cpu.s.cr4 & ~X86_CR4_PCIDE);
    load_cr(r, 3, tables_of(1));
    assert_int_equal(see(r), 1);
    move(r, 1);
    load_cr(r, 3, tables_of(2));
    assert_int_equal(see(r), 2);
    load_cr(r, 3, tables_of(1));
    assert_int_equal(see(r), 101);
}

/* However many there are, each sees its own pages, also when its old ones had to go. */
static void test_many_pcids(void **state)
{
    struct rig *r = *state;

    begin(r);
    for (unsigned round = 0; round < 3; round++) {
        for (unsigned n = 1; n < 24; n++) {
            go(r, n, KEEP);
            assert_int_equal(see(r), n);
        }
    }
    for (unsigned i = 0; i < 500; i++) {
        unsigned n = 1 + i * i % 23;
        go(r, n, i % 3 ? KEEP : 0);
        assert_int_equal(see(r), n);
    }
}

static void test_pcid_of_the_last_ones_is_kept(void **state)
{
    struct rig *r = *state;

    begin(r);
    for (unsigned n = 1; n < 24; n++) {
        go(r, n, 0);
        see(r);
        move(r, n);
    }
    for (unsigned n = 16; n < 24; n++) {
        go(r, n, KEEP);
        assert_int_equal(see(r), n);
    }
}

/* --- what each invalidation takes --- */

/* Spaces 1 and 2 are kept and stale, 1 is the present one. */
static void begin_stale(struct rig *r, uint64_t flags)
{
    begin(r);
    for (unsigned n = 2; n; n--) {
        map(r, n, PAGES + n * 0x2000, flags);
        go(r, n, 0);
        assert_int_equal(see(r), flags ? 2 : n);
    }
    move(r, 1);
    move(r, 2);
    assert_int_equal(see(r), flags ? 2 : 1);
}

struct seen {
    uint64_t type, pcid;
    uint32_t one, two; /* in which space */
};

static void test_invpcid_types(void **state)
{
    static const struct seen cases[] = {
        {0, 1, 101, 2}, {0, 2, 1, 102},   {0, 3, 1, 2},     {1, 1, 101, 2},
        {1, 2, 1, 102}, {2, 0, 101, 102}, {3, 0, 101, 102},
    };
    struct rig *r = *state;

    for (unsigned i = 0; i < ARRAY_COUNT(cases); i++) {
        begin_stale(r, 0);
        invpcid(r, cases[i].type, cases[i].pcid, LA);
        assert_int_equal(see(r), cases[i].one);
        go(r, 2, KEEP);
        assert_int_equal(see(r), cases[i].two);
    }
}

static void test_invpcid_and_global_pages(void **state)
{
    struct rig *r = *state;

    begin_stale(r, X86_PTE_G);
    invpcid(r, 1, 1, 0);
    invpcid(r, 1, 2, 0);
    invpcid(r, 3, 0, 0);
    assert_int_equal(see(r), 2);
    go(r, 2, 0);
    assert_int_equal(see(r), 2);
    invpcid(r, 2, 0, 0);
    assert_int_equal(see(r), 102);
}

/* INVLPG takes a global page from every space, and a page that is not global from the present. */
static void test_invlpg(void **state)
{
    struct rig *r = *state;

    begin_stale(r, X86_PTE_G);
    invlpg(r, LA);
    assert_int_equal(see(r), 101);
    go(r, 2, KEEP);
    assert_int_equal(see(r), 102);

    begin_stale(r, 0);
    invlpg(r, LA + 0xfff);
    assert_int_equal(see(r), 101);
    go(r, 2, KEEP);
    assert_int_equal(see(r), 2);
    invlpg(r, LA);
    assert_int_equal(see(r), 102);
}

static void test_invlpg_of_a_large_page_that_lost_its_slot(void **state)
{
    struct rig *r = *state;
    uint64_t other = 0x5f0000 + X86_TLB_SIZE * PAGE_SIZE;

    begin(r);
    put64(r, RIG_PML4 + 0x2000 + (other >> 21) * 8, 0x000087);
    put32(r, 0x3f0000, 7);
    put64(r, RIG_PML4 + 0x2010, 0x000087); /* 4 MiB shows 0, then 2 MiB */
    x86_load(&r->cpu, 0x5f0000, 4);
    x86_load(&r->cpu, other, 4);
    put64(r, RIG_PML4 + 0x2010, 0x200087);
    invlpg(r, 0x400000);
    assert_int_equal(x86_load(&r->cpu, 0x5f0000, 4), 7);
}

static void test_control_registers_take_all(void **state)
{
    struct rig *r = *state;
    static const uint64_t bits[] = {X86_CR4_PGE, X86_CR4_PSE, X86_CR4_SMAP};

    for (unsigned i = 0; i < ARRAY_COUNT(bits); i++) {
        begin_stale(r, 0);
        load_cr(r, 4, r->cpu.s.cr4 ^ bits[i]);
        load_cr(r, 4, r->cpu.s.cr4 ^ bits[i]);
        assert_int_equal(see(r), 101);
        go(r, 2, KEEP);
        assert_int_equal(see(r), 102);
    }
    begin_stale(r, 0);
    load_cr(r, 0, r->cpu.s.cr0 ^ X86_CR0_WP);
    go(r, 2, KEEP);
    assert_int_equal(see(r), 102);
}

/* The engine's flush, when the memory map changes. */
static void test_flush_takes_all(void **state)
{
    struct rig *r = *state;

    begin_stale(r, 0);
    x86_tlb_flush(&r->cpu, false);
    assert_int_equal(see(r), 101);
    go(r, 2, KEEP);
    assert_int_equal(see(r), 102);
}

/* A page that gets a code mark loses direct writers in spaces that are away, too. */
static void test_write_protection_reaches_kept_entries(void **state)
{
    struct rig *r = *state;

    begin(r);
    go(r, 1, 0);
    x86_store(&r->cpu, LA, 4, 5);
    go(r, 2, 0);
    see(r);
    x86_tlb_write_protect(&r->cpu, PAGES + 0x2000);
    r->code_page = PAGES + 0x2000;
    go(r, 1, KEEP);
    see(r);
    x86_store(&r->cpu, LA, 4, 6);
    assert_int_equal(r->stores_begun, 1);
    assert_int_equal(see(r), 6);
}

/* Direct writes come back with the space, without asking again. */
static void test_kept_entry_is_writable_at_once(void **state)
{
    struct rig *r = *state;

    begin(r);
    go(r, 1, 0);
    x86_store(&r->cpu, LA, 4, 5);
    go(r, 2, 0);
    go(r, 1, KEEP);
    see(r);
    assert_int_equal(x86_tlb_slot(&r->cpu, LA, (enum x86_mmu)r->cpu.mmu)->write, LA);
}

/* --- shortcuts of the walk --- */

#define OTHER_TABLE 0x180000u

/* Space 1 after a walk; its PD then names another table, which shows page 10
 * everywhere. */
static void begin_with_moved_table(struct rig *r)
{
    begin(r);
    put64(r, tables_of(1) + 0x3000 + (LA >> 12 & 511) * 8 + 16, (PAGES + 0x2000 * 20) | 0x67);
    go(r, 1, 0);
    see(r);
    for (unsigned i = 0; i < 512; i++)
        put64(r, OTHER_TABLE + i * 8, (PAGES + 0x2000 * 10) | 7);
    put64(r, tables_of(1) + 0x2000 + (LA >> 21 & 511) * 8, OTHER_TABLE | 7);
}

/* SDM vol. 3 section 4.10.4.1: each of these drops what is known of page tables, all of it. */
static void test_invalidations_drop_tables(void **state)
{
    struct rig *r = *state;

    for (unsigned i = 0; i < 6; i++) {
        begin_with_moved_table(r);
        if (i == 0)
            invlpg(r, 0x5000);
        else if (i == 1)
            go(r, 1, 0);
        else if (i < 5)
            invpcid(r, i - 2, 1, 0x5000);
        else
            x86_tlb_flush(&r->cpu, false);
        assert_int_equal(x86_load(&r->cpu, LA + 0x2000, 4), 10);
    }
}

/* A table of one PCID is not looked at for another. */
static void test_tables_are_of_one_pcid(void **state)
{
    struct rig *r = *state;

    begin(r);
    for (unsigned n = 1; n < 4; n++) {
        put64(r, tables_of(n) + 0x3000 + (LA >> 12 & 511) * 8 + 8, (PAGES + n * 0x2000) | 7);
        go(r, n, 0);
        see(r);
    }
    for (unsigned n = 1; n < 4; n++) {
        go(r, n, KEEP);
        assert_int_equal(x86_load(&r->cpu, LA + 0x1000, 4), n);
    }
}

/* Rights that were given, without an invalidation, are found before there is a fault. */
static void test_no_fault_comes_from_a_shortcut(void **state)
{
    struct rig *r = *state;
    uint64_t pde = tables_of(1) + 0x2000 + (LA >> 21 & 511) * 8;

    begin(r);
    r->cpu.s.cr0 |= X86_CR0_WP;
    put64(r, pde, (tables_of(1) + 0x3000) | 5);
    go(r, 1, 0);
    see(r);
    assert_int_equal(RIG_TRY(r, x86_store(&r->cpu, LA, 4, 1)), X86_PF_FAULT);
    put64(r, pde, (tables_of(1) + 0x3000) | 7);
    assert_int_equal(RIG_TRY(r, x86_store(&r->cpu, LA, 4, 1)), -1);

    put64(r, RIG_PML4 + 0x2010, 0x000085); /* the same with a large page */
    x86_load(&r->cpu, 0x401000, 4);
    assert_int_equal(RIG_TRY(r, x86_store(&r->cpu, 0x402000, 4, 1)), X86_PF_FAULT);
    put64(r, RIG_PML4 + 0x2010, 0x000087);
    assert_int_equal(RIG_TRY(r, x86_store(&r->cpu, 0x402000, 4, 1)), -1);
}

static void test_bits_are_set_below_a_shortcut(void **state)
{
    struct rig *r = *state;
    uint64_t pte = tables_of(1) + 0x3000 + (LA >> 12 & 511) * 8;

    begin(r);
    put64(r, pte + 8, PAGES | 7);
    put64(r, pte + 16, PAGES | 7);
    go(r, 1, 0);
    see(r);
    x86_load(&r->cpu, LA + 0x1000, 4);
    assert_int_equal(get64(r, pte + 8), PAGES | 7 | X86_PTE_A);
    x86_store(&r->cpu, LA + 0x2000, 4, 1);
    assert_int_equal(get64(r, pte + 16), PAGES | 7 | X86_PTE_A | X86_PTE_D);

    put64(r, RIG_PML4 + 0x2010, 0x000087);
    x86_load(&r->cpu, 0x401000, 4);
    assert_int_equal(get64(r, RIG_PML4 + 0x2010), 0x000087 | X86_PTE_A);
    x86_store(&r->cpu, 0x402000, 4, 1);
    assert_int_equal(get64(r, RIG_PML4 + 0x2010), 0x000087 | X86_PTE_A | X86_PTE_D);
}

/* --- the numbers of code --- */

/* As the translator does: the page is executed, then noted. */
static bool note(struct rig *r, uint64_t la)
{
    uint64_t page;

    x86_fetch_page(&r->cpu, la, &page);
    return x86_tlb_note_code(&r->cpu, la);
}

static void test_code_number_returns_with_its_pcid(void **state)
{
    struct rig *r = *state;

    begin(r);
    go(r, 1, 0);
    uint32_t one = r->cpu.code_space;
    assert_false(note(r, LA));
    assert_int_equal(r->cpu.code_space, one);
    go(r, 2, 0);
    uint32_t two = r->cpu.code_space;
    note(r, LA);
    assert_int_not_equal(two, one);
    go(r, 1, KEEP);
    assert_int_equal(r->cpu.code_space, one);
    go(r, 2, KEEP);
    assert_int_equal(r->cpu.code_space, two);
    invpcid(r, 1, 1, 0);
    assert_int_equal(r->cpu.code_space, two);
    go(r, 1, KEEP);
    assert_int_not_equal(r->cpu.code_space, one);
    go(r, 2, 0);
    assert_int_not_equal(r->cpu.code_space, two);
    assert_int_not_equal(r->cpu.code_space, one);
}

/* PCIDs come and go: what was noted under an old number is never taken for another's. */
static void test_code_number_is_never_anothers(void **state)
{
    struct rig *r = *state;
    uint32_t seen[24] = {0};

    begin(r);
    for (unsigned i = 0; i < 300; i++) {
        unsigned n = 1 + i * i % 23;
        go(r, n, i % 5 ? KEEP : 0);
        note(r, LA);
        for (unsigned other = 1; other < 24; other++)
            assert_true(other == n || seen[other] != r->cpu.code_space);
        assert_int_not_equal(r->cpu.code_space, 0);
        assert_int_not_equal(r->cpu.code_space, r->cpu.code_space_global);
        seen[n] = r->cpu.code_space;
    }
}

static void test_code_numbers_and_invlpg(void **state)
{
    struct rig *r = *state;

    begin(r);
    map(r, 1, PAGES, X86_PTE_G);
    go(r, 1, 0);
    uint32_t local = r->cpu.code_space, global = r->cpu.code_space_global;
    assert_true(note(r, LA));
    assert_false(note(r, RIG_CODE));
    for (unsigned i = 1; i < 100; i++)
        invlpg(r, LA + i * PAGE_SIZE);
    assert_int_equal(r->cpu.code_space, local);
    assert_int_equal(r->cpu.code_space_global, global);
    invlpg(r, LA);
    assert_int_equal(r->cpu.code_space, local);
    assert_int_not_equal(r->cpu.code_space_global, global);
    global = r->cpu.code_space_global;
    invlpg(r, LA); /* no longer noted */
    assert_int_equal(r->cpu.code_space_global, global);
    invlpg(r, 0x1ff000); /* of the same large page as RIG_CODE */
    assert_int_not_equal(r->cpu.code_space, local);
    assert_int_equal(r->cpu.code_space_global, global);
}

/* With nothing noted there is nothing to lose. */
static void test_code_numbers_stay_when_nothing_is_noted(void **state)
{
    struct rig *r = *state;

    begin(r);
    uint32_t local = r->cpu.code_space, global = r->cpu.code_space_global;
    x86_tlb_flush(&r->cpu, false);
    load_cr(r, 3, r->cpu.s.cr3);
    assert_int_equal(r->cpu.code_space, local);
    note(r, RIG_CODE);
    load_cr(r, 3, r->cpu.s.cr3);
    assert_int_not_equal(r->cpu.code_space, local);
    assert_int_equal(r->cpu.code_space_global, global);
}

static void test_code_numbers_change_with_all_flushes(void **state)
{
    struct rig *r = *state;

    begin(r);
    map(r, 1, PAGES, X86_PTE_G);
    for (unsigned i = 0; i < 6; i++) {
        go(r, 1, 0);
        note(r, LA);
        note(r, RIG_CODE);
        uint32_t local = r->cpu.code_space, global = r->cpu.code_space_global;
        struct x86_state same = r->cpu.s;
        if (i == 0)
            x86_tlb_flush(&r->cpu, false);
        else if (i == 1)
            load_cr(r, 4, r->cpu.s.cr4 ^ X86_CR4_PSE);
        else if (i == 2)
            load_cr(r, 0, r->cpu.s.cr0 ^ X86_CR0_WP);
        else if (i == 3)
            x86_cpu_set_state(&r->cpu, &same);
        else if (i == 4)
            invpcid(r, 2, 0, 0);
        else
            load_cr(r, 4, r->cpu.s.cr4 ^ X86_CR4_PGE);
        assert_int_not_equal(r->cpu.code_space, local);
        assert_int_not_equal(r->cpu.code_space_global, global);
    }
}

/* All numbers given: they begin anew, whoever keeps some is told, and nothing stale is found. */
static void test_numbers_wrap(void **state)
{
    struct rig *r = *state;

    for (unsigned left = 0; left < 8; left++) {
        begin_stale(r, 0);
        note(r, LA);
        uint32_t wraps = r->cpu.code_space_wraps;
        r->cpu.book.last_number = UINT32_MAX - left;
        for (unsigned i = 0; i < 8; i++) {
            go(r, 3 + i, 0);
            note(r, LA);
            assert_int_not_equal(r->cpu.code_space, 0);
            assert_int_not_equal(r->cpu.code_space_global, r->cpu.code_space);
            assert_int_equal(see(r), 3 + i);
        }
        assert_int_equal(r->cpu.code_space_wraps, wraps + 1);
        go(r, 1, KEEP);
        assert_int_equal(see(r), 101);
        go(r, 2, KEEP);
        assert_int_equal(see(r), 102);
    }
}

int main(void)
{
#define RIG_TEST(f) cmocka_unit_test_setup_teardown(f, rig_setup, rig_teardown)
    const struct CMUnitTest tests[] = {
        RIG_TEST(test_pcid_keeps_its_entries),
        RIG_TEST(test_without_pcids_nothing_is_kept),
        RIG_TEST(test_many_pcids),
        RIG_TEST(test_pcid_of_the_last_ones_is_kept),
        RIG_TEST(test_invpcid_types),
        RIG_TEST(test_invpcid_and_global_pages),
        RIG_TEST(test_invlpg),
        RIG_TEST(test_invlpg_of_a_large_page_that_lost_its_slot),
        RIG_TEST(test_control_registers_take_all),
        RIG_TEST(test_flush_takes_all),
        RIG_TEST(test_write_protection_reaches_kept_entries),
        RIG_TEST(test_kept_entry_is_writable_at_once),
        RIG_TEST(test_invalidations_drop_tables),
        RIG_TEST(test_tables_are_of_one_pcid),
        RIG_TEST(test_no_fault_comes_from_a_shortcut),
        RIG_TEST(test_bits_are_set_below_a_shortcut),
        RIG_TEST(test_code_number_returns_with_its_pcid),
        RIG_TEST(test_code_number_is_never_anothers),
        RIG_TEST(test_code_numbers_and_invlpg),
        RIG_TEST(test_code_numbers_stay_when_nothing_is_noted),
        RIG_TEST(test_code_numbers_change_with_all_flushes),
        RIG_TEST(test_numbers_wrap),
    };
    return cmocka_run_group_tests_name("tlb", tests, NULL, NULL);
}
