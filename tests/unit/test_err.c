/* base/err: the sentence reaches the user whole or cut, never overrun. */
#include "test.h"

#include <errno.h>
#include <string.h>

#include "base/err.h"

static void test_set_returns_negative_errno(void **state)
{
    (void)state;
    struct err err = {{0}};
    assert_int_equal(err_set(&err, ENOENT, "--kernel %s: not there", "x"), -ENOENT);
    assert_string_equal(err.text, "--kernel x: not there");
    assert_int_equal(err_set(NULL, EINVAL, "nobody listens"), -EINVAL);
}

static void test_prefix_keeps_sentence(void **state)
{
    (void)state;
    struct err err = {{0}};
    int error = err_set(&err, EIO, "cannot read");
    assert_int_equal(err_prefix(&err, error, "--disk %d", 2), -EIO);
    assert_string_equal(err.text, "--disk 2: cannot read");
}

static void test_long_text_is_cut(void **state)
{
    (void)state;
    struct err err;
    char longer[2000];
    memset(longer, 'a', sizeof longer);
    longer[sizeof longer - 1] = 0;
    err_set(&err, EIO, "%s", longer);
    assert_int_equal(strlen(err.text), sizeof err.text - 1);
    err_prefix(&err, -EIO, "%s", longer);
    assert_int_equal(strlen(err.text), sizeof err.text - 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_set_returns_negative_errno),
        cmocka_unit_test(test_prefix_keeps_sentence),
        cmocka_unit_test(test_long_text_is_cut),
    };
    return cmocka_run_group_tests_name("err", tests, NULL, NULL);
}
