/*
 * vm/machine on engine fake: exits reach the buses, requests end or reset the machine, the first
 * request wins, pause stops every vCPU, saved state comes back.
 */
#include "test.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "engine/fake/fake.h"
#include "vm/machine.h"
#include "vm/state.h"

/* A port that remembers writes and asks the machine for things, by the value written. */
enum { PORT = 0x500, ASK_RESET = 1, ASK_POWEROFF, ASK_DEBUG_EXIT, ASK_TWO };

struct asker {
    struct device device;
    unsigned resets;
    uint64_t last;
};

static uint64_t asker_read(void *context, uint64_t offset, unsigned size)
{
    (void)offset, (void)size;
    return ((struct asker *)context)->last;
}

static void asker_write(void *context, uint64_t offset, unsigned size, uint64_t value)
{
    struct asker *a = context;
    (void)offset, (void)size;
    a->last = value;
    switch (value) {
    case ASK_RESET:
        machine_request_reset(a->device.machine);
        break;
    case ASK_POWEROFF:
        machine_request_end(a->device.machine, MACHINE_END_POWEROFF);
        break;
    case ASK_DEBUG_EXIT:
        machine_request_debug_exit(a->device.machine, 21);
        break;
    case ASK_TWO:
        machine_request_debug_exit(a->device.machine, 7);
        machine_request_end(a->device.machine, MACHINE_END_POWEROFF);
        break;
    default:
        break;
    }
}

static int asker_create(struct device *device, const void *config, struct err *err)
{
    static const struct bus_ops ops = {asker_read, asker_write};
    (void)config;
    struct bus_range range = {
        .start = PORT, .size = 4, .ops = &ops, .context = device, .device = device};
    int error = bus_add(device->machine->pio, &range);
    return error ? err_set(err, -error, "port taken") : 0;
}

static void asker_reset(struct device *device)
{
    ((struct asker *)device)->resets++;
}

static void asker_save(struct device *device, struct state_writer *w)
{
    state_put_field(w, (struct asker *)device, last);
}

static int asker_load(struct device *device, struct state_reader *r, struct err *err)
{
    (void)err;
    state_get_field(r, (struct asker *)device, last);
    return 0;
}

static const struct device_class asker_class = {
    .name = "asker",
    .size = sizeof(struct asker),
    .create = asker_create,
    .reset = asker_reset,
    .save = asker_save,
    .load = asker_load,
};

struct setup {
    struct loop *loop;
    struct machine *machine;
    struct asker *asker;
    const uint8_t *writes; /* values that vCPU 0 writes to the port, one exit each */
    unsigned write_count;
    enum vm_exit_kind last_exit; /* after them; INTERRUPTED: none */
    uint8_t data[8];
    atomic_uint steps;
};

static bool script(void *context, unsigned vcpu, unsigned step, struct vm_exit *exit)
{
    struct setup *s = context;
    if (vcpu != 0)
        return false;
    if (step < s->write_count) {
        s->data[0] = s->writes[step];
        exit->kind = VM_EXIT_IO;
        exit->io.port = PORT;
        exit->io.size = 1;
        exit->io.write = true;
        exit->io.count = 1;
        exit->io.data = s->data;
    } else if (step == s->write_count && s->last_exit != VM_EXIT_INTERRUPTED) {
        exit->kind = s->last_exit;
        snprintf(exit->error.text, sizeof exit->error.text, "the script says so");
    } else {
        return false;
    }
    atomic_fetch_add(&s->steps, 1);
    return true;
}

static void setup_machine(struct setup *s, bool no_reboot, bool triple_fault_resets)
{
    struct machine_config config = {.name = "test",
                                    .vcpu_count = 2,
                                    .ram_size = 1 << 20,
                                    .engine = &engine_fake,
                                    .no_reboot = no_reboot,
                                    .reset_on_triple_fault = triple_fault_resets};
    struct err err;
    struct device *device;
    assert_int_equal(loop_create(&s->loop), 0);
    config.loop = s->loop;
    assert_int_equal(machine_create(&s->machine, &config, &err), 0);
    assert_int_equal(
        machine_add_device(s->machine, &asker_class, "test/asker", NULL, &device, &err), 0);
    s->asker = (struct asker *)device;
    engine_fake_set_script(s->machine->engine_vm, script, s);
}

static void teardown_machine(struct setup *s)
{
    machine_destroy(s->machine);
    loop_destroy(s->loop);
}

static void test_guest_powers_off(void **state)
{
    (void)state;
    struct err err;
    struct setup s = {.writes = (const uint8_t[]) {9, ASK_POWEROFF, 5}, .write_count = 3};
    setup_machine(&s, false, false);
    assert_int_equal(machine_run(s.machine, &err), MACHINE_END_POWEROFF);
    assert_int_equal(s.asker->last, ASK_POWEROFF); /* the guest did not go on */
    assert_int_equal(s.asker->resets, 1);
    assert_true(machine_first_run_ns(s.machine) != 0);
    struct machine_counters counters;
    machine_counters(s.machine, &counters);
    assert_int_equal(counters.vcpu.exits[VM_EXIT_IO], 2);
    assert_int_equal(counters.pio.writes, 2);
    teardown_machine(&s);
}

static void test_reset_runs_on_in_the_same_machine(void **state)
{
    (void)state;
    struct err err;
    struct setup s = {.writes = (const uint8_t[]) {ASK_RESET, ASK_RESET, ASK_DEBUG_EXIT},
                      .write_count = 3};
    setup_machine(&s, false, false);
    assert_int_equal(machine_run(s.machine, &err), MACHINE_END_DEBUG_EXIT);
    assert_int_equal(machine_debug_exit_value(s.machine), 21);
    assert_int_equal(s.asker->resets, 3);
    struct machine_counters counters;
    machine_counters(s.machine, &counters);
    assert_int_equal(counters.resets, 2);
    teardown_machine(&s);
}

static void test_no_reboot_ends(void **state)
{
    (void)state;
    struct err err;
    struct setup s = {.writes = (const uint8_t[]) {ASK_RESET}, .write_count = 1};
    setup_machine(&s, true, false);
    assert_int_equal(machine_run(s.machine, &err), MACHINE_END_RESET);
    assert_int_equal(s.asker->resets, 1);
    teardown_machine(&s);
}

static void test_first_request_wins(void **state)
{
    (void)state;
    struct err err;
    struct setup s = {.writes = (const uint8_t[]) {ASK_TWO}, .write_count = 1};
    setup_machine(&s, false, false);
    assert_int_equal(machine_run(s.machine, &err), MACHINE_END_DEBUG_EXIT);
    assert_int_equal(machine_debug_exit_value(s.machine), 7);
    teardown_machine(&s);
}

static void test_triple_fault_and_engine_errors(void **state)
{
    (void)state;
    struct err err;
    struct setup s = {.last_exit = VM_EXIT_SHUTDOWN};
    setup_machine(&s, false, false);
    assert_int_equal(machine_run(s.machine, &err), MACHINE_END_TRIPLE_FAULT);
    teardown_machine(&s);

    s = (struct setup) {.last_exit = VM_EXIT_ERROR};
    setup_machine(&s, false, false);
    assert_int_equal(machine_run(s.machine, &err), MACHINE_END_HOST_ERROR);
    assert_non_null(strstr(err.text, "the script says so"));
    teardown_machine(&s);

    s = (struct setup) {.last_exit = VM_EXIT_KIND_COUNT};
    setup_machine(&s, false, false);
    assert_int_equal(machine_run(s.machine, &err), MACHINE_END_HOST_ERROR);
    assert_non_null(strstr(err.text, "nobody handles"));
    teardown_machine(&s);

    s = (struct setup) {.last_exit = VM_EXIT_SHUTDOWN};
    setup_machine(&s, true, true); /* becomes a reset, which ends with no_reboot */
    assert_int_equal(machine_run(s.machine, &err), MACHINE_END_RESET);
    teardown_machine(&s);
}

struct pauser {
    struct loop_message message;
    struct setup *setup;
    unsigned rounds;
};

/* Pauses and resumes from the loop thread while the vCPUs come and go. */
static void pause_and_resume(struct loop_message *message)
{
    struct pauser *p = (struct pauser *)message;
    struct machine *machine = p->setup->machine;
    machine_pause(machine);
    machine_pause(machine);
    unsigned before = atomic_load(&p->setup->steps);
    uint64_t now = vm_clock_ns(machine->clock);
    machine_resume(machine); /* the outer one still holds */
    assert_int_equal(atomic_load(&p->setup->steps), before);
    assert_int_equal(vm_clock_ns(machine->clock), now);
    machine_resume(machine);
    if (++p->rounds < 200)
        loop_post(p->setup->loop, message);
    else
        machine_request_end(machine, MACHINE_END_USER);
}

static void test_pause_holds_every_vcpu(void **state)
{
    (void)state;
    struct err err;
    static uint8_t writes[100000];
    struct setup s = {.writes = writes, .write_count = sizeof writes};
    memset(writes, 9, sizeof writes);
    setup_machine(&s, false, false);
    struct pauser p = {.message = {.handler = pause_and_resume}, .setup = &s};
    loop_post(s.loop, &p.message);
    assert_int_equal(machine_run(s.machine, &err), MACHINE_END_USER);
    assert_int_equal(p.rounds, 200);
    teardown_machine(&s);
}

static void save_from_loop(struct loop_message *message)
{
    struct pauser *p = (struct pauser *)message;
    struct machine *machine = p->setup->machine;
    struct err err;
    struct state_writer w;
    state_writer_init(&w);
    machine_pause(machine);
    p->setup->asker->last = 1234;
    assert_int_equal(machine_save(machine, &w, &err), 0);
    p->setup->asker->last = 0;
    assert_int_equal(machine_load(machine, w.data, w.size, &err), 0);
    assert_int_equal(p->setup->asker->last, 1234);
    assert_int_equal(machine_load(machine, w.data, w.size - 1, &err), -EINVAL);
    assert_non_null(strstr(err.text, "corrupt"));
    machine_resume(machine);
    state_writer_free(&w);
    machine_request_end(machine, MACHINE_END_USER);
}

static void test_saved_state_comes_back(void **state)
{
    (void)state;
    struct err err;
    struct setup s = {.write_count = 0};
    setup_machine(&s, false, false);
    struct pauser p = {.message = {.handler = save_from_loop}, .setup = &s};
    loop_post(s.loop, &p.message);
    assert_int_equal(machine_run(s.machine, &err), MACHINE_END_USER);
    teardown_machine(&s);
}

/* Where each section of the state ends, in order. */
static unsigned section_ends(const struct state_writer *w, size_t *ends, unsigned max)
{
    size_t offset = 0;
    struct state_reader r;
    unsigned count = 0;
    while (state_next_section(w->data, w->size, &offset, &r) == 1) {
        assert_true(count < max);
        ends[count++] = offset;
    }
    return count;
}

static void test_state_cut_between_sections_is_refused(void **state)
{
    (void)state;
    struct err err;
    struct setup s = {.write_count = 0};
    struct state_writer w;
    size_t ends[16];
    setup_machine(&s, false, false);
    assert_int_equal(machine_start(s.machine, &err), 0);
    state_writer_init(&w);
    assert_int_equal(machine_save(s.machine, &w, &err), 0);
    unsigned count = section_ends(&w, ends, ARRAY_COUNT(ends));
    assert_int_equal(machine_load(s.machine, w.data, 0, &err), -EINVAL);
    for (unsigned i = 0; i + 1 < count; i++) {
        assert_int_equal(machine_load(s.machine, w.data, ends[i], &err), -EINVAL);
        assert_non_null(strstr(err.text, "missing"));
    }
    assert_int_equal(machine_load(s.machine, w.data, ends[count - 1], &err), 0);
    state_writer_free(&w);
    teardown_machine(&s);
}

static void test_section_that_comes_twice_is_refused(void **state)
{
    (void)state;
    struct err err;
    struct setup s = {.write_count = 0};
    struct state_writer w;
    setup_machine(&s, false, false);
    assert_int_equal(machine_start(s.machine, &err), 0);
    state_writer_init(&w);
    assert_int_equal(machine_save(s.machine, &w, &err), 0);
    state_begin(&w, s.asker->device.path);
    state_end(&w);
    assert_int_equal(machine_load(s.machine, w.data, w.size, &err), -EINVAL);
    assert_non_null(strstr(err.text, "more than once"));
    state_writer_free(&w);
    teardown_machine(&s);
}

/* Two CPUs that answer to one APIC id are not a machine. */
static void test_foreign_apic_id_in_state_is_refused(void **state)
{
    (void)state;
    struct err err;
    struct setup s = {.write_count = 0};
    struct state_writer w;
    struct x86_state cpu;
    setup_machine(&s, false, false);
    assert_int_equal(machine_start(s.machine, &err), 0);
    const struct engine_ops *engine = s.machine->engine;
    struct engine_vcpu *vcpu = s.machine->vcpu[0].engine;
    assert_int_equal(engine->vcpu_get_state(vcpu, &cpu), 0);
    cpu.lapic.id = 1;
    assert_int_equal(engine->vcpu_set_state(vcpu, &cpu, &err), 0);
    state_writer_init(&w);
    assert_int_equal(machine_save(s.machine, &w, &err), 0);
    assert_int_equal(machine_load(s.machine, w.data, w.size, &err), -EINVAL);
    assert_non_null(strstr(err.text, "lapic.id"));
    state_writer_free(&w);
    teardown_machine(&s);
}

static void save_with_open_request(struct loop_message *message)
{
    struct pauser *p = (struct pauser *)message;
    struct machine *machine = p->setup->machine;
    struct err err;
    struct state_writer w;
    state_writer_init(&w);
    machine_pause(machine);
    machine_request_end(machine, MACHINE_END_POWEROFF);
    assert_int_equal(machine_save(machine, &w, &err), -EBUSY);
    machine_resume(machine);
    state_writer_free(&w);
}

/* The power-off would be lost: the restored guest would stand behind its last instruction. */
static void test_save_with_a_request_open_is_refused(void **state)
{
    (void)state;
    struct err err;
    struct setup s = {.write_count = 0};
    struct state_writer w;
    setup_machine(&s, false, false);
    struct pauser p = {.message = {.handler = save_with_open_request}, .setup = &s};
    loop_post(s.loop, &p.message);
    assert_int_equal(machine_run(s.machine, &err), MACHINE_END_POWEROFF);
    state_writer_init(&w);
    assert_int_equal(machine_save(s.machine, &w, &err), 0); /* served: it has ended */
    state_writer_free(&w);
    teardown_machine(&s);
}

static void test_bad_configurations_are_refused(void **state)
{
    (void)state;
    struct err err;
    struct machine *machine;
    struct loop *loop;
    assert_int_equal(loop_create(&loop), 0);
    struct machine_config config = {
        .name = "test", .ram_size = 1 << 20, .engine = &engine_fake, .loop = loop};
    assert_int_equal(machine_create(&machine, &config, &err), -EINVAL);
    config.vcpu_count = ENGINE_VCPUS_MAX + 1;
    assert_int_equal(machine_create(&machine, &config, &err), -EINVAL);
    config.vcpu_count = 1;
    config.ram_size = 100;
    assert_int_equal(machine_create(&machine, &config, &err), -EINVAL);
    assert_non_null(strstr(err.text, "whole pages"));
    loop_destroy(loop);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_guest_powers_off),
        cmocka_unit_test(test_reset_runs_on_in_the_same_machine),
        cmocka_unit_test(test_no_reboot_ends),
        cmocka_unit_test(test_first_request_wins),
        cmocka_unit_test(test_triple_fault_and_engine_errors),
        cmocka_unit_test(test_pause_holds_every_vcpu),
        cmocka_unit_test(test_saved_state_comes_back),
        cmocka_unit_test(test_state_cut_between_sections_is_refused),
        cmocka_unit_test(test_section_that_comes_twice_is_refused),
        cmocka_unit_test(test_foreign_apic_id_in_state_is_refused),
        cmocka_unit_test(test_save_with_a_request_open_is_refused),
        cmocka_unit_test(test_bad_configurations_are_refused),
    };
    return cmocka_run_group_tests_name("machine", tests, NULL, NULL);
}
