/* vm/irq: a line is the OR of its sources; sinks hear changes only; EOI reaches its notifiers. */
#include "test.h"

#include "vm/irq.h"

struct recorder {
    struct irq_sink sink;
    unsigned rises, falls;
};

static void record(struct irq_sink *sink, unsigned line, bool level)
{
    struct recorder *r = (struct recorder *)sink;
    assert_int_equal(line, 10);
    if (level)
        r->rises++;
    else
        r->falls++;
}

static void test_line_is_or_of_sources(void **state)
{
    (void)state;
    struct irq_lines *lines;
    assert_int_equal(irq_lines_create(&lines), 0);
    struct recorder r = {.sink = {.set_level = record}};
    irq_lines_add_sink(lines, &r.sink);
    struct irq_source a, b;
    irq_source_init(&a, lines, 10);
    irq_source_init(&b, lines, 10);
    irq_source_set(&a, true);
    irq_source_set(&a, true);
    irq_source_set(&b, true);
    assert_int_equal(r.rises, 1);
    assert_int_equal(irq_lines_levels(lines), 1u << 10);
    irq_source_set(&a, false);
    assert_int_equal(r.falls, 0);
    irq_source_pulse(&a); /* the line is high already: nobody hears it */
    assert_int_equal(r.rises, 1);
    irq_source_set(&b, false);
    assert_int_equal(r.falls, 1);
    irq_source_pulse(&a);
    assert_int_equal(r.rises, 2);
    assert_int_equal(r.falls, 2);
    assert_int_equal(irq_lines_levels(lines), 0);
    irq_lines_destroy(lines);
}

static unsigned eoi_count;

static void count_eoi(struct irq_eoi_notifier *notifier, unsigned line)
{
    assert_int_equal(notifier->line, line);
    eoi_count++;
}

static void test_eoi_reaches_its_line_only(void **state)
{
    (void)state;
    struct irq_lines *lines;
    assert_int_equal(irq_lines_create(&lines), 0);
    struct irq_eoi_notifier notifier = {.eoi = count_eoi, .line = 5};
    irq_lines_add_eoi_notifier(lines, &notifier);
    eoi_count = 0;
    irq_lines_eoi(lines, 4);
    assert_int_equal(eoi_count, 0);
    irq_lines_eoi(lines, 5);
    assert_int_equal(eoi_count, 1);
    irq_lines_destroy(lines);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_line_is_or_of_sources),
        cmocka_unit_test(test_eoi_reaches_its_line_only),
    };
    return cmocka_run_group_tests_name("irq", tests, NULL, NULL);
}
