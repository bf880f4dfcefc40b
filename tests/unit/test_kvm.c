/*
 * Engine kvm: conversions and verdicts as pure functions; then, where /dev/kvm is usable (in
 * tools/lab kvm unit), real vCPUs with tiny 32-bit programs: kicks, interrupts, the memory map, the
 * dirty log, state.
 */
#include "test.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/loop.h"
#include "engine/kvm/kvm.h"
#include "engine/kvm/kvm_int.h"
#include "vm/clock.h"
#include "x86/lapic.h"

/* --- conversions --- */

static void test_a_segment_survives_the_kernel_form(void **state)
{
    static const uint16_t attrs[] = {0xa09b, 0xc093, 0x0089, 0x008b, 0x40f3, 0x0093};
    for (size_t i = 0; i < ARRAY_COUNT(attrs); i++) {
        struct x86_segment seg = {0x12345000, 0xfffff, 0x33, attrs[i]}, back;
        struct kvm_segment kernel;
        kvm_segment_from(&kernel, &seg);
        kvm_segment_to(&back, &kernel, false);
        assert_memory_equal(&back, &seg, sizeof seg);
    }
}

static void test_an_unusable_stack_segment_keeps_the_privilege_level(void **state)
{
    struct x86_segment seg = {.attr = 3 << X86_SEG_DPL_SHIFT}, back;
    struct kvm_segment kernel;
    kvm_segment_from(&kernel, &seg);
    assert_int_equal(kernel.unusable, 1);
    kvm_segment_to(&back, &kernel, true);
    assert_int_equal(back.attr, seg.attr);
    kvm_segment_to(&back, &kernel, false);
    assert_int_equal(back.attr, 0);
}

static void test_an_apic_survives_the_kernel_form(void **state)
{
    struct x86_state s, back;
    struct kvm_lapic_state regs;
    x86_state_reset(&s, 5, true);
    s.lapic.svr = 0x1ff;
    s.lapic.lvt[X86_LVT_TIMER] = 0x20030;
    s.lapic.timer_initial = 1000000;
    s.lapic.timer_divide = 3; /* by 16 */
    s.lapic.timer_expiry_ns = 1600000;
    s.lapic.irr[2] = 0x80;
    s.lapic.isr[7] = 1;
    s.lapic.tmr[2] = 0x80;
    s.lapic.icr = 0x0300000000c08ull;
    kvm_lapic_from(&regs, &s, 800000);
    back = s;
    kvm_lapic_to(&back, &regs, 800000);
    assert_memory_equal(&back.lapic, &s.lapic, sizeof s.lapic);
    s.apic_base |= X86_APIC_BASE_X2APIC;
    kvm_lapic_from(&regs, &s, 0);
    assert_int_equal(load_le32(regs.regs + 0x20), 5);
}

static void test_a_pending_event_survives_the_kernel_form(void **state)
{
    static const struct x86_event events[] = {
        {.kind = X86_EVENT_NONE},
        {.kind = X86_EVENT_INTERRUPT, .vector = 0x31},
        {.kind = X86_EVENT_NMI, .vector = 2},
        {.kind = X86_EVENT_EXCEPTION,
         .vector = 14,
         .has_error = true,
         .error = 6,
         .has_payload = true,
         .payload = 0xdeadbeef000},
    };
    for (size_t i = 0; i < ARRAY_COUNT(events); i++) {
        struct x86_state s = {.pending = events[i], .nmi_blocked = true, .interrupt_shadow = true},
                         back = {0};
        struct kvm_vcpu_events kernel;
        kvm_events_from(&kernel, &s);
        kvm_events_to(&back, &kernel);
        assert_memory_equal(&back.pending, &s.pending, sizeof s.pending);
        assert_true(back.nmi_blocked && back.interrupt_shadow && !back.shadow_is_mov_ss);
    }
}

/* --- verdicts --- */

static void assert_diagnosis(const struct kvm_host *host, const char *reason, const char *remedy)
{
    struct engine_probe probe = {.verdict = ENGINE_USABLE};
    assert_true(kvm_diagnose(host, &probe));
    assert_int_equal(probe.verdict, ENGINE_UNUSABLE);
    if (!strstr(probe.reason, reason) || !strstr(probe.remedy, remedy))
        fail_msg("\"%s\" / \"%s\" lacks \"%s\" / \"%s\"", probe.reason, probe.remedy, reason,
                 remedy);
}

static void test_each_cause_has_its_own_sentence_and_remedy(void **state)
{
    assert_diagnosis(&(struct kvm_host) {.open_error = EACCES}, "may not open", "adduser USER kvm");
    assert_diagnosis(&(struct kvm_host) {.open_error = ENOENT, .is_vm = true}, "itself a VM",
                     "nested virtualization");
    assert_diagnosis(&(struct kvm_host) {.open_error = ENOENT}, "neither VT-x nor AMD-V",
                     "firmware");
    assert_diagnosis(&(struct kvm_host) {.open_error = ENOENT, .cpu_svm = true},
                     "firmware has disabled", "enable virtualization");
    assert_diagnosis(
        &(struct kvm_host) {.open_error = ENOENT, .cpu_svm = true, .kernel_has_it = true},
        "there is no /dev/kvm", "modprobe kvm_amd");
    assert_diagnosis(
        &(struct kvm_host) {.open_error = ENODEV, .cpu_vmx = true, .kernel_has_it = true},
        "there is no /dev/kvm", "modprobe kvm_intel");
    assert_diagnosis(&(struct kvm_host) {.open_error = EMFILE}, "cannot be opened", "");
    assert_diagnosis(&(struct kvm_host) {.missing = "sense of humour"}, "no sense of humour",
                     "newer kernel");
    assert_diagnosis(&(struct kvm_host) {.create_error = EBUSY}, "another hypervisor",
                     "end the other");
    assert_diagnosis(&(struct kvm_host) {.create_error = ENOMEM}, "makes no VM", "dmesg");
    struct engine_probe probe = {.verdict = ENGINE_USABLE};
    assert_false(kvm_diagnose(&(struct kvm_host) {.open_error = 0}, &probe));
}

static void test_kernel_mode_that_is_emulated_is_slow(void **state)
{
    struct engine_probe probe = {.user_ns = 0.3, .kernel_ns = 600};
    kvm_judge_speed(&probe);
    assert_int_equal(probe.verdict, ENGINE_SLOW);
    assert_int_equal(probe.rank, 0);
    assert_non_null(strstr(probe.reason, "600 ns"));
    probe = (struct engine_probe) {.user_ns = 190, .kernel_ns = 200};
    kvm_judge_speed(&probe);
    assert_int_equal(probe.verdict, ENGINE_SLOW);
}

static void test_kernel_mode_as_fast_as_user_mode_is_usable(void **state)
{
    struct engine_probe probe = {.user_ns = 0.3, .kernel_ns = 0.3};
    kvm_judge_speed(&probe);
    assert_int_equal(probe.verdict, ENGINE_USABLE);
    assert_int_equal(probe.rank, 2);
    probe = (struct engine_probe) {.user_ns = 5, .kernel_ns = 12}; /* an emulated PC */
    kvm_judge_speed(&probe);
    assert_int_equal(probe.verdict, ENGINE_USABLE);
}

/* --- real vCPUs --- */

#define RAM_SIZE (1u << 20)
#define CODE     0x1000
#define DATA     0x4000
#define IDT      0x5000
#define GDT      0x5800
#define STACK    0x8000

struct test_vm {
    uint8_t *ram;
    struct loop *loop;
    struct vm_clock *clock;
    struct x86_cpuid_table cpuid;
    struct engine_vm *vm;
    struct engine_vcpu *vcpu[2];
    _Atomic unsigned eois, acknowledged;
    _Atomic uint8_t eoi_vector;
};

static uint64_t no_read(void *context, gpa_t address, unsigned size)
{
    return UINT64_MAX;
}

static void no_write(void *context, gpa_t address, unsigned size, uint64_t value)
{
}

static uint32_t no_pio_read(void *context, uint16_t port, unsigned size)
{
    return UINT32_MAX;
}

static void no_pio_write(void *context, uint16_t port, unsigned size, uint32_t value)
{
}

static void on_eoi(void *context, uint8_t vector)
{
    struct test_vm *t = context;
    t->eoi_vector = vector;
    atomic_fetch_add(&t->eois, 1);
}

static uint8_t on_acknowledge(void *context)
{
    struct test_vm *t = context;
    atomic_fetch_add(&t->acknowledged, 1);
    engine_kvm.set_extint(t->vm, false);
    return 0x21;
}

static const struct engine_callbacks callbacks = {no_read,      no_write, no_pio_read,
                                                  no_pio_write, on_eoi,   on_acknowledge};

#define PROGRAM(name, text)                                                                        \
    __asm__(".pushsection .rodata\n.code32\n" #name ":\n" text "\n" #name "_end:\n.code64\n"       \
            ".popsection\n");                                                                      \
    extern const uint8_t name[], name##_end[];

PROGRAM(halt_program, "1: cli\nhlt\njmp 1b")
PROGRAM(spin_program, "1: incl 0x4000\njmp 1b")
PROGRAM(out_in_program, "movl $0x11223344, %eax\noutl %eax, $0x40\ninb $0x41, %al\nmovl %eax, "
                        "0x4000\n1: cli\nhlt\njmp 1b")
PROGRAM(device_program, "movl $0x55, 0x80000000\nmovl 0x80000004, %eax\nmovl %eax, 0x4000\n"
                        "1: cli\nhlt\njmp 1b")
/* Counts interrupts: handlers say which came. Ends of interrupts go to the APIC. */
PROGRAM(idle_program, "movl $0x1ff, 0xfee000f0\n1: sti\nhlt\ncli\nincl 0x4000\njmp 1b")
PROGRAM(apic_handler, "incl 0x4010\nmovl $0, 0xfee000b0\niret")
PROGRAM(pic_handler, "incl 0x4020\niret")
PROGRAM(nmi_handler, "incl 0x4030\niret")
PROGRAM(store_program, "movl $7, 0x4000\nmovl $8, 0x6000\n1: cli\nhlt\njmp 1b")
PROGRAM(tsc_program, "1: rdtsc\nxchgl %eax, %edx\noutl %eax, $0x41\nxchgl %eax, %edx\n"
                     "outl %eax, $0x40\njmp 1b")
PROGRAM(bell_program, "movw $3, 0x90000000\nmovl $1, %eax\noutl %eax, $0x40\n1: hlt\njmp 1b")

#define LOAD(t, at, program) memcpy((t)->ram + (at), program, (size_t)(program##_end - (program)))

static void set_gate(struct test_vm *t, unsigned vector, uint32_t handler)
{
    uint8_t *gate = t->ram + IDT + vector * 8;
    store_le64(gate,
               (handler & 0xffff) | 8u << 16 | 0x8e0000000000ull | (uint64_t)(handler >> 16) << 48);
}

static struct x86_segment flat(uint16_t selector, uint16_t type)
{
    return (struct x86_segment) {
        .limit = UINT32_MAX,
        .selector = selector,
        .attr = (uint16_t)(X86_SEG_G | X86_SEG_DB | X86_SEG_P | X86_SEG_S | type)};
}

static void flat_state(struct x86_state *s, unsigned index)
{
    x86_state_reset(s, index, index == 0);
    s->mp_state = X86_MP_RUNNABLE;
    s->cr0 = X86_CR0_PE | X86_CR0_ET | X86_CR0_NE;
    for (unsigned i = 0; i < 6; i++)
        s->seg[i] = flat(0x10, 3);
    s->seg[X86_CS] = flat(8, 11);
    s->gdtr = (struct x86_table_register) {GDT, 23};
    s->idtr = (struct x86_table_register) {IDT, 256 * 8 - 1};
    s->rip = CODE;
    s->gpr[X86_RSP] = STACK + index * 0x1000;
    s->rflags = X86_FIXED;
}

/* A slow one is no CPU to test on: it emulates kernel mode, and not all of it well. */
static bool is_usable(void)
{
    struct engine_probe probe;
    engine_kvm.probe(&probe);
    if (probe.verdict != ENGINE_USABLE)
        print_message("skipped: engine kvm is not usable here: %s\n", probe.reason);
    return probe.verdict == ENGINE_USABLE;
}

static void fill_ram(struct test_vm *t)
{
    t->ram = mmap(NULL, RAM_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert_ptr_not_equal(t->ram, MAP_FAILED);
    store_le64(t->ram + GDT + 8, 0x00cf9b000000ffffull);
    store_le64(t->ram + GDT + 16, 0x00cf93000000ffffull);
}

static int set_up(void **state)
{
    struct test_vm *t = calloc(1, sizeof *t);
    *state = t;
    fill_ram(t);
    struct x86_cpuid_config cpuid = {.vcpu_count = 2, .brand = "test"};
    engine_kvm.cpu_features(&cpuid.features);
    x86_cpuid_build(&t->cpuid, &cpuid);
    assert_int_equal(loop_create(&t->loop), 0);
    assert_int_equal(vm_clock_create(&t->clock, t->loop), 0);
    vm_clock_resume(t->clock);
    struct engine_vm_config config = {.vcpu_count = 2,
                                      .clock = t->clock,
                                      .cpuid = &t->cpuid,
                                      .callbacks = &callbacks,
                                      .context = t};
    struct err err = {{0}};
    if (engine_kvm.vm_create(&config, &t->vm, &err))
        fail_msg("%s", err.text);
    struct engine_slot slot = {.size = RAM_SIZE, .hva = t->ram, .protection = 7};
    assert_int_equal(engine_kvm.memory_map(t->vm, &slot), 0);
    for (unsigned i = 0; i < 2; i++) {
        if (engine_kvm.vcpu_create(t->vm, i, &t->vcpu[i], &err))
            fail_msg("%s", err.text);
    }
    return 0;
}

static int tear_down(void **state)
{
    struct test_vm *t = *state;
    engine_kvm.vm_destroy(t->vm);
    vm_clock_destroy(t->clock);
    loop_destroy(t->loop);
    munmap(t->ram, RAM_SIZE);
    free(t);
    return 0;
}

static void begin(struct test_vm *t, unsigned index)
{
    struct x86_state s;
    struct err err = {{0}};
    flat_state(&s, index);
    if (engine_kvm.vcpu_set_state(t->vcpu[index], &s, &err))
        fail_msg("%s", err.text);
}

static struct vm_exit run(struct test_vm *t, unsigned index)
{
    struct vm_exit exit;
    engine_kvm.vcpu_run(t->vcpu[index], &exit);
    if (exit.kind == VM_EXIT_ERROR)
        fail_msg("%s", exit.error.text);
    return exit;
}

struct runner {
    struct test_vm *t;
    unsigned index;
    pthread_t thread;
    struct vm_exit exit;
};

static void *run_until_kicked(void *argument)
{
    struct runner *r = argument;
    engine_kvm.vcpu_run(r->t->vcpu[r->index], &r->exit);
    return NULL;
}

static void start(struct runner *r, struct test_vm *t, unsigned index)
{
    *r = (struct runner) {.t = t, .index = index};
    assert_int_equal(pthread_create(&r->thread, NULL, run_until_kicked, r), 0);
}

static void stop(struct runner *r)
{
    engine_kvm.vcpu_kick(r->t->vcpu[r->index]);
    pthread_join(r->thread, NULL);
    assert_int_equal(r->exit.kind, VM_EXIT_INTERRUPTED);
}

static uint32_t read_ram(struct test_vm *t, unsigned at)
{
    return __atomic_load_n((uint32_t *)(void *)(t->ram + at), __ATOMIC_SEQ_CST);
}

/* Waits until the guest has changed a word; the test's own limit ends it otherwise. */
static void await_ram(struct test_vm *t, unsigned at, uint32_t least)
{
    while (read_ram(t, at) < least)
        usleep(100);
}

static void test_io_and_its_answer(void **state)
{
    struct test_vm *t = *state;
    LOAD(t, CODE, out_in_program);
    begin(t, 0);
    struct vm_exit exit = run(t, 0);
    assert_int_equal(exit.kind, VM_EXIT_IO);
    assert_true(exit.io.write && exit.io.port == 0x40 && exit.io.size == 4 && exit.io.count == 1);
    assert_int_equal(load_le32(exit.io.data), 0x11223344);
    exit = run(t, 0);
    assert_true(exit.kind == VM_EXIT_IO && !exit.io.write && exit.io.port == 0x41);
    exit.io.data[0] = 0xaa;
    struct runner r;
    start(&r, t, 0);
    await_ram(t, DATA, 1);
    stop(&r);
    assert_int_equal(read_ram(t, DATA), 0x112233aa);
}

static void test_device_accesses_come_out_and_are_answered(void **state)
{
    struct test_vm *t = *state;
    LOAD(t, CODE, device_program);
    begin(t, 0);
    struct vm_exit exit = run(t, 0);
    assert_true(exit.kind == VM_EXIT_MMIO && exit.mmio.write && exit.mmio.size == 4);
    assert_true(exit.mmio.address.v == 0x80000000 && exit.mmio.data[0] == 0x55);
    exit = run(t, 0);
    assert_true(exit.kind == VM_EXIT_MMIO && !exit.mmio.write);
    store_le32(exit.mmio.data, 0x12345678);
    /* A state that is read now has the answer, and the instruction is over. */
    struct x86_state s;
    assert_int_equal(engine_kvm.vcpu_get_state(t->vcpu[0], &s), 0);
    assert_int_equal((uint32_t)s.gpr[X86_RAX], 0x12345678);
    assert_true(s.rip > CODE + 10);
}

static void test_a_kick_before_run_is_not_lost(void **state)
{
    struct test_vm *t = *state;
    LOAD(t, CODE, spin_program);
    begin(t, 0);
    engine_kvm.vcpu_kick(t->vcpu[0]);
    assert_int_equal(run(t, 0).kind, VM_EXIT_INTERRUPTED);
}

/* Kicks come at every point of entering and leaving; one that is lost hangs the test. */
static void *kick_often(void *argument)
{
    struct test_vm *t = argument;
    for (unsigned i = 0; i < 3000; i++) {
        engine_kvm.vcpu_kick(t->vcpu[0]);
        if (i % 3 == 0)
            usleep(i % 50);
    }
    return NULL;
}

static void test_no_kick_of_many_is_lost(void **state)
{
    struct test_vm *t = *state;
    LOAD(t, CODE, halt_program);
    begin(t, 0);
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, kick_often, t), 0);
    for (unsigned i = 0; i < 100; i++)
        assert_int_equal(run(t, 0).kind, VM_EXIT_INTERRUPTED);
    pthread_join(thread, NULL);
    engine_kvm.vcpu_kick(t->vcpu[0]);
    assert_int_equal(run(t, 0).kind, VM_EXIT_INTERRUPTED);
}

static void test_a_spinning_guest_can_be_kicked(void **state)
{
    struct test_vm *t = *state;
    LOAD(t, CODE, spin_program);
    begin(t, 0);
    for (unsigned i = 0; i < 50; i++) {
        struct runner r;
        start(&r, t, 0);
        await_ram(t, DATA, read_ram(t, DATA) + 1);
        stop(&r);
    }
}

static void load_interrupts(struct test_vm *t)
{
    LOAD(t, CODE, idle_program);
    LOAD(t, 0x2000, apic_handler);
    LOAD(t, 0x2100, pic_handler);
    LOAD(t, 0x2200, nmi_handler);
    set_gate(t, 0x31, 0x2000);
    set_gate(t, 0x21, 0x2100);
    set_gate(t, 2, 0x2200);
}

static void test_messages_wake_a_halted_cpu(void **state)
{
    struct test_vm *t = *state;
    load_interrupts(t);
    begin(t, 0);
    struct runner r;
    start(&r, t, 0);
    for (unsigned i = 1; i <= 20; i++) {
        while (read_ram(t, 0x4010) < i) {
            engine_kvm.send_msi(t->vm, 0xfee00000, 0x31);
            usleep(200);
        }
    }
    stop(&r);
    assert_int_equal(t->eois, 0); /* edges tell of no end */
}

static void test_the_end_of_a_level_interrupt_is_told(void **state)
{
    struct test_vm *t = *state;
    load_interrupts(t);
    begin(t, 0);
    struct runner r;
    start(&r, t, 0);
    for (unsigned i = 1; i <= 5; i++) {
        while (atomic_load(&t->eois) < i) {
            if (read_ram(t, 0x4010) < i)
                engine_kvm.send_msi(t->vm, 0xfee00000, 0x31 | 3 << 14);
            usleep(200);
        }
    }
    stop(&r);
    assert_int_equal(t->eoi_vector, 0x31);
}

static void test_the_8259_pair_interrupts_through_lint0(void **state)
{
    struct test_vm *t = *state;
    load_interrupts(t);
    begin(t, 0);
    struct x86_state s;
    struct err err = {{0}};
    assert_int_equal(engine_kvm.vcpu_get_state(t->vcpu[0], &s), 0);
    s.lapic.lvt[X86_LVT_LINT0] = 0x700; /* ExtINT, not masked */
    s.lapic.svr = 0x1ff;
    assert_int_equal(engine_kvm.vcpu_set_state(t->vcpu[0], &s, &err), 0);
    struct runner r;
    start(&r, t, 0);
    for (unsigned i = 1; i <= 5; i++) {
        engine_kvm.set_extint(t->vm, true);
        await_ram(t, 0x4020, i);
    }
    stop(&r);
    assert_int_equal(t->acknowledged, 5);
}

static void test_an_nmi_reaches_a_halted_cpu(void **state)
{
    struct test_vm *t = *state;
    load_interrupts(t);
    begin(t, 0);
    struct runner r;
    start(&r, t, 0);
    engine_kvm.inject_nmi(t->vcpu[0]);
    await_ram(t, 0x4030, 1);
    stop(&r);
}

static void test_a_write_to_read_only_memory_comes_out(void **state)
{
    struct test_vm *t = *state;
    LOAD(t, CODE, store_program);
    assert_int_equal(
        engine_kvm.memory_protect(t->vm, gpa(0x6000), 0x1000, MEM_PROT_READ | MEM_PROT_EXEC), 0);
    begin(t, 0);
    struct vm_exit exit = run(t, 0);
    assert_int_equal(exit.kind, VM_EXIT_MMIO);
    assert_int_equal(exit.mmio.address.v, 0x6000);
    assert_int_equal(read_ram(t, DATA), 7);
    assert_int_equal(read_ram(t, 0x6000), 0);
}

static void test_the_map_changes_under_a_running_cpu(void **state)
{
    struct test_vm *t = *state;
    LOAD(t, CODE, spin_program);
    begin(t, 0);
    struct runner r;
    start(&r, t, 0);
    for (unsigned i = 0; i < 40; i++) {
        await_ram(t, DATA, read_ram(t, DATA) + 1);
        unsigned protection = i % 2 ? 7 : MEM_PROT_READ;
        assert_int_equal(engine_kvm.memory_protect(t->vm, gpa(0x20000), 0x3000, protection), 0);
    }
    assert_int_equal(engine_kvm.memory_unmap(t->vm, gpa(0x80000), 0x80000), 0);
    stop(&r);
    struct engine_slot again = {.start = gpa(0x7f000), .size = 0x1000, .hva = t->ram};
    assert_int_equal(engine_kvm.memory_map(t->vm, &again), -EEXIST);
    again.start = gpa(0x123);
    assert_int_equal(engine_kvm.memory_map(t->vm, &again), -EINVAL);
}

static void test_the_dirty_log_has_what_was_written(void **state)
{
    struct test_vm *t = *state;
    uint64_t bitmap[4] = {0};
    LOAD(t, CODE, store_program);
    assert_int_equal(engine_kvm.dirty_log(t->vm, gpa(0), RAM_SIZE, bitmap), 0);
    assert_true(bitmap[0] == UINT64_MAX && bitmap[3] == UINT64_MAX); /* before the log began */
    begin(t, 0);
    struct runner r;
    start(&r, t, 0);
    await_ram(t, 0x6000, 8);
    stop(&r);
    /* Part of it first: the rest must not be lost with it. */
    memset(bitmap, 0, sizeof bitmap);
    assert_int_equal(engine_kvm.dirty_log(t->vm, gpa(0x5000), 0x2000, bitmap), 0);
    assert_int_equal(bitmap[0], BIT(1)); /* 0x6000 */
    memset(bitmap, 0, sizeof bitmap);
    assert_int_equal(engine_kvm.dirty_log(t->vm, gpa(0), RAM_SIZE, bitmap), 0);
    /* The kernel may count a page as written that was only read; but no other one. */
    assert_int_equal(bitmap[0] & ~BIT(CODE / PAGE_SIZE), BIT(DATA / PAGE_SIZE));
    assert_true(bitmap[1] == 0 && bitmap[3] == 0);
}

static void test_a_doorbell_takes_the_write_and_no_exit(void **state)
{
    struct test_vm *t = *state;
    LOAD(t, CODE, bell_program);
    int fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    uint64_t count = 0;
    assert_int_equal(engine_kvm.doorbell_add(t->vm, gpa(0x90000000), 2, fd), 0);
    begin(t, 0);
    assert_int_equal(run(t, 0).kind, VM_EXIT_IO);
    assert_int_equal(read(fd, &count, sizeof count), sizeof count);
    assert_int_equal(count, 1);
    assert_int_equal(engine_kvm.doorbell_remove(t->vm, gpa(0x90000000), 2, fd), 0);
    begin(t, 0);
    assert_int_equal(run(t, 0).kind, VM_EXIT_MMIO);
    close(fd);
}

/* Values in every part that a CPU of this kind can have. */
static void fill_state(struct x86_state *s)
{
    flat_state(s, 0);
    for (unsigned i = 0; i < 16; i++)
        s->gpr[i] = 0x1111111111111111ull * i;
    s->rflags |= X86_CF | X86_DF;
    s->dr[0] = 0x1234;
    s->dr7 = 0x402;
    s->efer = X86_EFER_SCE | X86_EFER_NXE;
    s->star = 0x0023001000000000;
    s->lstar = 0xffffffff81000000;
    s->cstar = 0xffffffff82000000;
    s->sfmask = 0x47700;
    s->kernel_gs_base = 0xffff888000000000;
    s->sysenter_cs = 0x10;
    s->sysenter_esp = 0x80001000; /* AMD's have 32 bits */
    s->sysenter_eip = 0x83000000;
    s->tsc_aux = 7;
    s->pat = 0x0407050600070106;
    s->mtrr_def_type = 0xc06;
    s->mtrr_base[0] = 0x80000000;
    s->mtrr_mask[0] = 0x3fff80000800;
    s->mtrr_fixed[3] = 0x0606060606060606;
    s->tsc_offset = 123456789;
    s->tsc_adjust = 5;
    for (unsigned i = 0; i < 16; i++)
        memset(s->fpu.ymm[i], (int)i + 1, 16);
    s->fpu.st[2][3] = 0x44;
    s->fpu.fcw = 0x37f;
    s->fpu.ftw = 4;
    s->lapic.svr = 0x1ff;
    s->lapic.tpr = 0x20;
    s->lapic.ldr = 1u << 24;
    s->lapic.lvt[X86_LVT_TIMER] = 0x400ef;
    s->lapic.irr[4] = 8;
    s->tsc_deadline = 1ull << 60;
    s->lapic.timer_divide = 3;
    s->nmi_blocked = true;
    s->interrupt_shadow = true;
    s->pending = (struct x86_event) {.kind = X86_EVENT_EXCEPTION,
                                     .vector = X86_PF_FAULT,
                                     .has_error = true,
                                     .error = 2,
                                     .has_payload = true,
                                     .payload = 0x1000};
}

static void test_a_state_that_was_put_in_comes_out(void **state)
{
    struct test_vm *t = *state;
    struct x86_state in, out;
    struct err err = {{0}};
    const char *what = NULL;
    fill_state(&in);
    if (engine_kvm.vcpu_set_state(t->vcpu[0], &in, &err))
        fail_msg("%s", err.text);
    assert_int_equal(engine_kvm.vcpu_get_state(t->vcpu[0], &out), 0);
    if (!x86_state_equal(&in, &out, &what))
        fail_msg("%s differs", what);
}

static void test_waiting_cpus_stay_waiting_over_a_state(void **state)
{
    struct test_vm *t = *state;
    struct x86_state in, out;
    struct err err = {{0}};
    const char *what = NULL;
    x86_state_reset(&in, 1, false);
    assert_int_equal(engine_kvm.vcpu_set_state(t->vcpu[1], &in, &err), 0);
    assert_int_equal(engine_kvm.vcpu_get_state(t->vcpu[1], &out), 0);
    assert_int_equal(out.mp_state, X86_MP_WAIT_SIPI);
    if (!x86_state_equal(&in, &out, &what))
        fail_msg("%s differs", what);
}

static void test_an_interrupt_that_comes_while_a_state_is_changed_stays(void **state)
{
    struct test_vm *t = *state;
    struct x86_state s;
    struct err err = {{0}};
    load_interrupts(t);
    begin(t, 0);
    assert_int_equal(engine_kvm.vcpu_get_state(t->vcpu[0], &s), 0);
    s.lapic.svr = 0x1ff;
    assert_int_equal(engine_kvm.vcpu_set_state(t->vcpu[0], &s, &err), 0);
    assert_int_equal(engine_kvm.vcpu_get_state(t->vcpu[0], &s), 0);
    engine_kvm.send_msi(t->vm, 0xfee00000, 0x31);
    s.gpr[X86_RBX] = 99; /* as after an instruction executed in software */
    assert_int_equal(engine_kvm.vcpu_set_state(t->vcpu[0], &s, &err), 0);
    assert_int_equal(engine_kvm.vcpu_get_state(t->vcpu[0], &s), 0);
    assert_int_equal(s.lapic.irr[0x31 / 32], 1u << (0x31 % 32));
    assert_int_equal(s.gpr[X86_RBX], 99);
}

/* The guest's TSC now. */
static uint64_t guest_tsc(struct test_vm *t)
{
    struct vm_exit exit = run(t, 0);
    assert_true(exit.kind == VM_EXIT_IO && exit.io.port == 0x41);
    uint64_t high = load_le32(exit.io.data);
    exit = run(t, 0);
    return high << 32 | load_le32(exit.io.data);
}

static void test_the_tsc_stands_still_in_a_pause(void **state)
{
    struct test_vm *t = *state;
    const uint64_t pause_ns = 300 * 1000000ull;
    struct engine_vm_state s;
    LOAD(t, CODE, tsc_program);
    begin(t, 0);
    assert_int_equal(engine_kvm.vm_get_state(t->vm, &s), 0);
    uint64_t pause = mul_div_u64(pause_ns, s.tsc_hz, NS_PER_S);
    uint64_t before = guest_tsc(t), end = clock_host_ns() + pause_ns;
    assert_true(before < s.tsc_hz * 60); /* it began with VM time */
    vm_clock_pause(t->clock);
    while (clock_host_ns() < end)
        usleep(1000);
    vm_clock_resume(t->clock);
    uint64_t after = guest_tsc(t);
    assert_true(after > before);
    assert_true(after - before < pause / 2);
}

static void test_a_tsc_that_the_guest_has_set_stays_set(void **state)
{
    struct test_vm *t = *state;
    struct x86_state s;
    struct err err = {{0}};
    LOAD(t, CODE, tsc_program);
    begin(t, 0);
    (void)guest_tsc(t);
    assert_int_equal(engine_kvm.vcpu_get_state(t->vcpu[0], &s), 0);
    s.tsc_offset += 1ull << 50;
    s.tsc_adjust += 1ull << 50;
    assert_int_equal(engine_kvm.vcpu_set_state(t->vcpu[0], &s, &err), 0);
    assert_true(guest_tsc(t) >> 50 == 1);
    vm_clock_pause(t->clock);
    vm_clock_resume(t->clock);
    assert_true(guest_tsc(t) >> 50 == 1);
    assert_int_equal(engine_kvm.vcpu_get_state(t->vcpu[0], &s), 0);
    assert_int_equal(s.tsc_offset, 1ull << 50);
}

static void test_a_foreign_tsc_is_refused_by_name_or_scaled(void **state)
{
    struct test_vm *t = *state;
    struct engine_vm_state s;
    struct err err = {{0}};
    assert_int_equal(engine_kvm.vm_get_state(t->vm, &s), 0);
    assert_true(s.tsc_hz > 0);
    assert_int_equal(engine_kvm.vm_set_state(t->vm, &s, &err), 0);
    s.tsc_hz /= 2;
    int error = engine_kvm.vm_set_state(t->vm, &s, &err);
    if (engine_kvm.capabilities() & ENGINE_CAP_TSC_SCALING) {
        assert_int_equal(error, 0);
    } else {
        assert_int_equal(error, -ENOTSUP);
        assert_non_null(strstr(err.text, "cannot scale"));
    }
}

#define VM_TEST(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)

static const struct CMUnitTest pure_tests[] = {
    cmocka_unit_test(test_a_segment_survives_the_kernel_form),
    cmocka_unit_test(test_an_unusable_stack_segment_keeps_the_privilege_level),
    cmocka_unit_test(test_an_apic_survives_the_kernel_form),
    cmocka_unit_test(test_a_pending_event_survives_the_kernel_form),
    cmocka_unit_test(test_each_cause_has_its_own_sentence_and_remedy),
    cmocka_unit_test(test_kernel_mode_that_is_emulated_is_slow),
    cmocka_unit_test(test_kernel_mode_as_fast_as_user_mode_is_usable),
};

static const struct CMUnitTest vcpu_tests[] = {
    VM_TEST(test_io_and_its_answer),
    VM_TEST(test_device_accesses_come_out_and_are_answered),
    VM_TEST(test_a_kick_before_run_is_not_lost),
    VM_TEST(test_no_kick_of_many_is_lost),
    VM_TEST(test_a_spinning_guest_can_be_kicked),
    VM_TEST(test_messages_wake_a_halted_cpu),
    VM_TEST(test_the_end_of_a_level_interrupt_is_told),
    VM_TEST(test_the_8259_pair_interrupts_through_lint0),
    VM_TEST(test_an_nmi_reaches_a_halted_cpu),
    VM_TEST(test_a_write_to_read_only_memory_comes_out),
    VM_TEST(test_the_map_changes_under_a_running_cpu),
    VM_TEST(test_the_dirty_log_has_what_was_written),
    VM_TEST(test_a_doorbell_takes_the_write_and_no_exit),
    VM_TEST(test_a_state_that_was_put_in_comes_out),
    VM_TEST(test_waiting_cpus_stay_waiting_over_a_state),
    VM_TEST(test_an_interrupt_that_comes_while_a_state_is_changed_stays),
    VM_TEST(test_the_tsc_stands_still_in_a_pause),
    VM_TEST(test_a_tsc_that_the_guest_has_set_stays_set),
    VM_TEST(test_a_foreign_tsc_is_refused_by_name_or_scaled),
};

static void test_real_vcpus(void **state)
{
    skip();
}

int main(void)
{
    static const struct CMUnitTest skipped[] = {cmocka_unit_test(test_real_vcpus)};
    int failed = cmocka_run_group_tests(pure_tests, NULL, NULL);
    if (is_usable())
        return failed + cmocka_run_group_tests(vcpu_tests, NULL, NULL);
    return failed + cmocka_run_group_tests(skipped, NULL, NULL);
}
