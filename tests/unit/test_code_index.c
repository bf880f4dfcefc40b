/* The index of code against a plain list: finding, removing, dropping pages, growing. */
#include "test.h"

#include <string.h>

#include "engine/soft/code_index.h"

#define COUNT 3000u

struct fixture {
    struct code_index index;
    struct code unused; /* the arena's first grains */
    struct code code[COUNT], extra;
    uint64_t key[COUNT]; /* as entered; code.key when it has been dropped */
    unsigned dropped;
};

static uint64_t key_of(unsigned i)
{
    /* Some 40 to a page, pages that share buckets, two modes. */
    uint64_t page = (uint64_t)(i / 40) * CODE_PAGE_BUCKETS / 2;
    return code_key(page << PAGE_SHIFT | i % 40 * 64, (uint8_t)(8 | (i % 3 == 0) << 5));
}

static void add_all(struct fixture *f)
{
    uint8_t *arena = (uint8_t *)&f->unused;
    size_t units = (size_t)((uint8_t *)&f->code[COUNT / 2] - arena);
    assert_int_equal(code_index_create(&f->index, 2, arena, units), 0);
    for (unsigned i = 0; i < COUNT; i++) {
        f->key[i] = key_of(i);
        f->code[i] = (struct code) {.key = f->key[i], .tail = CODE_NO_TAIL};
        assert_true(code_index_add(&f->index, &f->code[i]));
    }
}

static void check_all(struct fixture *f)
{
    for (unsigned i = 0; i < COUNT; i++)
        assert_ptr_equal(code_index_find(&f->index, f->key[i]),
                         f->code[i].key == CODE_DEAD ? NULL : &f->code[i]);
}

static void test_entries_survive_growth(void **state)
{
    static struct fixture f;
    add_all(&f);
    check_all(&f);
    assert_null(code_index_find(&f.index, code_key(0x123456000, 8)));
    code_index_destroy(&f.index);
}

/* What stood behind the gap is still found. */
static void test_removal_leaves_the_others(void **state)
{
    static struct fixture f;
    add_all(&f);
    for (unsigned i = 0; i < COUNT; i += 1 + i % 3) {
        code_index_remove(&f.index, &f.code[i]);
        if (i % 100 == 0)
            check_all(&f);
    }
    check_all(&f);
    code_index_destroy(&f.index);
}

static void count_dropped(void *context, struct code *code)
{
    struct fixture *f = context;
    assert_int_equal(code->key, CODE_DEAD);
    f->dropped++;
}

static void test_dropping_takes_one_page(void **state)
{
    static struct fixture f;
    uint64_t page = code_address(key_of(100)) & PAGE_MASK;

    add_all(&f);
    code_index_remove(&f.index, &f.code[100]); /* not told of again */
    code_index_drop_page(&f.index, page, count_dropped, &f);
    assert_int_equal(f.dropped, 39);
    for (unsigned i = 0; i < COUNT; i++)
        assert_int_equal(f.code[i].key == CODE_DEAD, (code_address(key_of(i)) & PAGE_MASK) == page);
    check_all(&f);
    code_index_destroy(&f.index);
}

static void test_a_second_page_drops_too(void **state)
{
    static struct fixture f;
    uint64_t page = 0x123456000;

    add_all(&f);
    f.extra = (struct code) {.key = code_key(page - 4096 + 4094, 8), .tail = page};
    assert_true(code_index_add(&f.index, &f.extra));
    code_index_drop_page(&f.index, page, count_dropped, &f);
    assert_int_equal(f.dropped, 1);
    assert_int_equal(f.extra.key, CODE_DEAD);
    check_all(&f);
    code_index_drop_page(&f.index, page - 4096, count_dropped, &f);
    assert_int_equal(f.dropped, 1);
    code_index_destroy(&f.index);
}

static void test_clear_forgets_one_kind(void **state)
{
    static struct fixture f;
    add_all(&f);
    code_index_clear(&f.index, CODE_BLOCK);
    for (unsigned i = 0; i < COUNT; i++)
        assert_ptr_equal(code_index_find(&f.index, f.key[i]), i < COUNT / 2 ? NULL : &f.code[i]);
    code_index_drop_page(&f.index, 0, count_dropped, &f);
    assert_int_equal(f.dropped, 0);
    code_index_clear(&f.index, CODE_UNIT);
    assert_int_equal(f.index.used, 0);
    assert_null(code_index_find(&f.index, f.key[COUNT - 1]));
    code_index_destroy(&f.index);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_entries_survive_growth),
        cmocka_unit_test(test_removal_leaves_the_others),
        cmocka_unit_test(test_dropping_takes_one_page),
        cmocka_unit_test(test_a_second_page_drops_too),
        cmocka_unit_test(test_clear_forgets_one_kind),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
