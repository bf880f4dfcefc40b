/*
 * vm/emulate on engine fake: one instruction at a time over the machine's memory and buses, its
 * exceptions through the guest's IDT, and writes that observers of memory hear of.
 */
#include "rig.h"

#include "vm/emulate.h"
#include "x86/cpuid.h"

#define RAM  (1u << 20)
#define CODE 0x1000
#define DATA 0x4000
#define IDT  0x5000
#define GDT  0x5800
#define PORT 0x500

struct test {
    struct machine *machine;
    struct x86_cpuid_table cpuid;
    uint64_t port_value, mmio_value;
    struct bus_range pio, mmio;
};

static uint64_t read_value(void *context, uint64_t offset, unsigned size)
{
    return *(uint64_t *)context;
}

static void write_value(void *context, uint64_t offset, unsigned size, uint64_t value)
{
    *(uint64_t *)context = value;
}

static const struct bus_ops value_ops = {read_value, write_value};

static void put(struct test *t, uint64_t at, const void *bytes, size_t size)
{
    assert_int_equal(guest_memory_write(t->machine->memory, gpa(at), bytes, size), 0);
}

static uint32_t get(struct test *t, uint64_t at)
{
    uint32_t value;
    assert_int_equal(guest_memory_read(t->machine->memory, gpa(at), &value, sizeof value), 0);
    return value;
}

static void put64(struct test *t, uint64_t at, uint64_t value)
{
    put(t, at, &value, sizeof value);
}

static int setup(void **state)
{
    struct test *t = calloc(1, sizeof *t);
    struct err err = {{0}};
    t->machine = rig_create(RAM, 1);
    struct x86_cpuid_config config = {.vcpu_count = 1, .brand = "test"};
    memset(config.features.word, 0xff, sizeof config.features.word);
    x86_cpuid_build(&t->cpuid, &config);
    t->machine->config.cpuid = &t->cpuid;
    assert_int_equal(
        emulator_code_create(&t->machine->emulator_code, &t->cpuid.features, &(struct err) {0}), 0);
    t->pio = (struct bus_range) {PORT, 4, &value_ops, &t->port_value, NULL};
    t->mmio = (struct bus_range) {0xfe000000, 4096, &value_ops, &t->mmio_value, NULL};
    assert_int_equal(bus_add(t->machine->pio, &t->pio), 0);
    assert_int_equal(bus_add(t->machine->mmio, &t->mmio), 0);
    assert_int_equal(machine_start(t->machine, &err), 0);
    put64(t, GDT + 8, 0x00cf9b000000ffffull);
    put64(t, GDT + 16, 0x00cf93000000ffffull);
    *state = t;
    return 0;
}

static int teardown(void **state)
{
    struct test *t = *state;
    rig_destroy(t->machine);
    free(t);
    return 0;
}

static struct x86_state start_state(void)
{
    struct x86_state s;
    x86_state_reset(&s, 0, true);
    s.cr0 = X86_CR0_PE | X86_CR0_ET | X86_CR0_NE;
    s.cr4 = X86_CR4_OSFXSR;
    for (unsigned i = 0; i < 6; i++)
        s.seg[i] = (struct x86_segment) {.limit = UINT32_MAX, .selector = 0x10, .attr = 0xc093};
    s.seg[X86_CS].selector = 8;
    s.seg[X86_CS].attr = 0xc09b;
    s.gdtr = (struct x86_table_register) {GDT, 23};
    s.idtr = (struct x86_table_register) {IDT, 0x7ff};
    s.rip = CODE;
    s.gpr[X86_RSP] = 0x8000;
    s.rflags = X86_FIXED;
    return s;
}

static enum emulate_result emulate(struct test *t, struct x86_state *s)
{
    struct err err = {{0}};
    struct vcpu *vcpu = &t->machine->vcpu[0];
    assert_int_equal(engine_fake.vcpu_set_state(vcpu->engine, s, &err), 0);
    enum emulate_result result = emulator_run(vcpu, &err);
    assert_int_equal(engine_fake.vcpu_get_state(vcpu->engine, s), 0);
    return result;
}

static void test_a_store_to_ram_is_heard_of(void **state)
{
    static const uint8_t code[] = {0xff, 0x05, 0x00, 0x40, 0x00, 0x00}; /* incl 0x4000 */
    struct test *t = *state;
    struct x86_state s = start_state();
    struct engine_fake_log before, after;
    put(t, CODE, code, sizeof code);
    engine_fake_read_log(t->machine->engine_vm, &before);
    assert_int_equal(emulate(t, &s), EMULATE_DONE);
    engine_fake_read_log(t->machine->engine_vm, &after);
    assert_int_equal(get(t, DATA), 1);
    assert_int_equal(s.rip, CODE + sizeof code);
    assert_true(after.written_bytes > before.written_bytes);
}

static void test_devices_are_reached(void **state)
{
    /* popcntl 0xfe000000, %ebx; movd %xmm0, 0xfe000000; outl %eax, %dx */
    static const uint8_t code[] = {0xf3, 0x0f, 0xb8, 0x1d, 0, 0, 0,    0xfe, 0x66,
                                   0x0f, 0x7e, 0x05, 0,    0, 0, 0xfe, 0xef};
    struct test *t = *state;
    struct x86_state s = start_state();
    put(t, CODE, code, sizeof code);
    t->mmio_value = 0xf0f0;
    assert_int_equal(emulate(t, &s), EMULATE_DONE);
    assert_int_equal(s.gpr[X86_RBX], 8);
    store_le32(s.fpu.ymm[0], 0x12345678);
    assert_int_equal(emulate(t, &s), EMULATE_DONE);
    assert_int_equal(t->mmio_value, 0x12345678);
    s.gpr[X86_RDX] = PORT;
    s.gpr[X86_RAX] = 77;
    assert_int_equal(emulate(t, &s), EMULATE_DONE);
    assert_int_equal(t->port_value, 77);
    assert_int_equal(s.rip, CODE + sizeof code);
}

static void test_an_exception_is_delivered(void **state)
{
    static const uint8_t code[] = {0x0f, 0x0b}; /* ud2 */
    struct test *t = *state;
    struct x86_state s = start_state();
    put(t, CODE, code, sizeof code);
    put64(t, IDT + X86_UD * 8, 0x3000 | 8u << 16 | 0x8e0000000000ull);
    assert_int_equal(emulate(t, &s), EMULATE_DONE);
    assert_int_equal(s.rip, 0x3000);
    assert_int_equal(get(t, 0x8000 - 12), CODE); /* the fault's address, on the stack */
    assert_int_equal(s.pending.kind, X86_EVENT_NONE);
}

static void test_a_triple_fault_shuts_down(void **state)
{
    static const uint8_t code[] = {0x0f, 0x0b};
    struct test *t = *state;
    struct x86_state s = start_state();
    put(t, CODE, code, sizeof code);
    s.idtr.limit = 0;
    assert_int_equal(emulate(t, &s), EMULATE_SHUTDOWN);
}

static void test_code_outside_of_ram_ends_in_no_endless_loop(void **state)
{
    struct test *t = *state;
    struct x86_state s = start_state();
    s.rip = 0x90000000; /* nobody is there: all ones, which is no instruction */
    put64(t, IDT + X86_UD * 8, 0x3000 | 8u << 16 | 0x8e0000000000ull);
    assert_int_equal(emulate(t, &s), EMULATE_DONE);
    assert_int_equal(s.rip, 0x3000);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_a_store_to_ram_is_heard_of),
        TEST(test_devices_are_reached),
        TEST(test_an_exception_is_delivered),
        TEST(test_a_triple_fault_shuts_down),
        TEST(test_code_outside_of_ram_ends_in_no_endless_loop),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
