/* The index of code against a plain list: finding, removing, dropping pages, growing. */
#include "test.h"

#include <string.h>

#include "engine/soft/code_index.h"

#define COUNT 3000u

struct fixture {
    struct code_index index;
    struct code code[COUNT];
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
    assert_int_equal(code_index_create(&f->index, 2), 0);
    for (unsigned i = 0; i < COUNT; i++) {
        f->key[i] = f->code[i].key = key_of(i);
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

static void test_clear_forgets_all(void **state)
{
    static struct fixture f;
    add_all(&f);
    code_index_clear(&f.index);
    for (unsigned i = 0; i < COUNT; i++)
        assert_null(code_index_find(&f.index, f.key[i]));
    code_index_drop_page(&f.index, 0, count_dropped, &f);
    assert_int_equal(f.dropped, 0);
    code_index_destroy(&f.index);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_entries_survive_growth),
        cmocka_unit_test(test_removal_leaves_the_others),
        cmocka_unit_test(test_dropping_takes_one_page),
        cmocka_unit_test(test_clear_forgets_all),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
