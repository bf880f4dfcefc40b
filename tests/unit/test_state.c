/* vm/state: what was written is read; every truncation and corruption is refused, none crashes. */
#include "test.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "vm/state.h"
#include "vm/state_vcpu.h"

static void write_two_sections(struct state_writer *w)
{
    state_writer_init(w);
    state_begin(w, "legacy/serial0");
    state_put_u64(w, "lcr", 3);
    uint16_t divisor = 12;
    state_put(w, "divisor", &divisor, sizeof divisor);
    state_put_optional(w, "note", "new", 3);
    state_end(w);
    state_begin(w, "pci/00:03.0/virtio-blk");
    state_end(w);
    assert_int_equal(state_writer_result(w), 0);
}

static void test_round_trip(void **state)
{
    (void)state;
    struct state_writer w;
    struct state_reader r;
    struct err err;
    write_two_sections(&w);
    size_t offset = 0;
    assert_int_equal(state_next_section(w.data, w.size, &offset, &r), 1);
    assert_string_equal(r.path, "legacy/serial0");
    uint64_t lcr = 0, missing = 42;
    uint16_t divisor = 0;
    assert_true(state_get(&r, "divisor", &divisor, sizeof divisor));
    assert_int_equal(divisor, 12);
    assert_false(state_get_u64(&r, "missing", &missing));
    assert_int_equal(missing, 42);
    assert_int_equal(state_reader_end(&r, &err), -ENOTSUP); /* "lcr" was not asked for */
    assert_non_null(strstr(err.text, "lcr"));
    assert_true(state_get_u64(&r, "lcr", &lcr));
    assert_int_equal(lcr, 3);
    assert_int_equal(state_reader_end(&r, &err), 0); /* "note" is optional */
    assert_int_equal(state_next_section(w.data, w.size, &offset, &r), 1);
    assert_string_equal(r.path, "pci/00:03.0/virtio-blk");
    assert_int_equal(state_next_section(w.data, w.size, &offset, &r), 0);
    state_writer_free(&w);
}

static void test_wrong_size_is_named(void **state)
{
    (void)state;
    struct state_writer w;
    struct state_reader r;
    struct err err;
    write_two_sections(&w);
    size_t offset = 0;
    uint32_t divisor = 99;
    assert_int_equal(state_next_section(w.data, w.size, &offset, &r), 1);
    assert_false(state_get(&r, "divisor", &divisor, sizeof divisor));
    assert_int_equal(divisor, 99);
    assert_int_equal(state_reader_end(&r, &err), -EINVAL);
    assert_non_null(strstr(err.text, "divisor"));
    state_writer_free(&w);
}

/* Reads everything there is; the sanitizers watch. */
static void read_all(const uint8_t *data, size_t size)
{
    uint8_t *copy = malloc(size ? size : 1); /* exact size, so that ASan sees an overrun */
    assert_non_null(copy);
    memcpy(copy, data, size);
    size_t offset = 0;
    struct state_reader r;
    struct err err;
    uint64_t value;
    while (state_next_section(copy, size, &offset, &r) > 0) {
        state_get_u64(&r, "lcr", &value);
        state_get_u64(&r, "divisor", &value);
        if (state_reader_end(&r, &err) == 0)
            continue;
    }
    free(copy);
}

static void test_damage_never_crashes(void **state)
{
    (void)state;
    struct state_writer w;
    write_two_sections(&w);
    for (size_t cut = 0; cut < w.size; cut++)
        read_all(w.data, cut);
    for (size_t i = 0; i < w.size; i++) {
        uint8_t old = w.data[i];
        for (unsigned bit = 0; bit < 8; bit++) {
            w.data[i] = (uint8_t)(old ^ (1u << bit));
            read_all(w.data, w.size);
        }
        w.data[i] = 0xff;
        read_all(w.data, w.size);
        w.data[i] = old;
    }
    size_t offset = 0;
    struct state_reader r;
    assert_int_equal(state_next_section(w.data, w.size - 1, &offset, &r), 1);
    assert_int_equal(state_next_section(w.data, w.size - 1, &offset, &r), -EINVAL);
    state_writer_free(&w);
}

static void test_vcpu_state_round_trip(void **state)
{
    (void)state;
    static struct x86_state before, after; /* large */
    uint8_t *bytes = (uint8_t *)&before;
    memset(&before, 0, sizeof before);
    memset(&after, 0, sizeof after);
    for (size_t i = 0; i < sizeof before.gpr; i++)
        bytes[offsetof(struct x86_state, gpr) + i] = (uint8_t)(i * 7 + 1);
    before.seg[3].attr = 0xc093;
    before.lapic.timer_expiry_ns = UINT64_MAX;
    before.lapic.irr[7] = 5;
    before.fpu.ymm[15][31] = 9;
    before.nmi_blocked = true;
    before.pending.payload = 77;
    struct state_writer w;
    state_writer_init(&w);
    state_begin(&w, "vcpu/0");
    state_vcpu_save(&before, &w);
    state_end(&w);
    assert_int_equal(state_writer_result(&w), 0);
    size_t offset = 0;
    struct state_reader r;
    struct err err;
    assert_int_equal(state_next_section(w.data, w.size, &offset, &r), 1);
    state_vcpu_load(&after, &r);
    assert_int_equal(state_reader_end(&r, &err), 0);
    assert_memory_equal(&before, &after, sizeof before);
    state_writer_free(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_wrong_size_is_named),
        cmocka_unit_test(test_damage_never_crashes),
        cmocka_unit_test(test_vcpu_state_round_trip),
    };
    return cmocka_run_group_tests_name("state", tests, NULL, NULL);
}
