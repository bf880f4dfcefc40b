/*
 * engine/soft as its machine sees it, with tiny 32-bit programs: kicks, halting and waking, changed
 * code (own, another vCPU's, the host's), split locks, changes of the map, interrupts, state.
 */
#include "test.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "base/clock.h"
#include "base/loop.h"
#include "engine/soft/soft.h"
#include "engine/soft/soft_int.h"
#include "vm/clock.h"

#define RAM_SIZE (1u << 20)

/* Where the programs find things. */
#define CODE0 0x1000
#define CODE1 0x2000
#define FUNC  0x3000 /* a function that programs change and call */
#define DATA  0x4000
#define IDT   0x5000
#define GDT   0x5800
#define STACK 0x8000 /* of vCPU 0; the next one's is 4 KiB above */

struct test_vm {
    uint8_t *ram;
    struct loop *loop;
    struct vm_clock *clock;
    struct x86_cpuid_table cpuid;
    struct engine_vm *vm;
    struct engine_vcpu *vcpu[2];
    _Atomic uint32_t out[4]; /* what was written to ports 0 to 3 */
    _Atomic unsigned outs, eois;
    struct vm_exit exit[2];
    void (*mmio_hook)(struct test_vm *t); /* in an MMIO read; or NULL */
    bool map_changed;
};

static uint64_t mmio_read(void *context, gpa_t address, unsigned size)
{
    struct test_vm *t = context;
    if (t->mmio_hook)
        t->mmio_hook(t);
    return 0x1122334455667788ull;
}

static void mmio_write(void *context, gpa_t address, unsigned size, uint64_t value)
{
}

static uint32_t pio_read(void *context, uint16_t port, unsigned size)
{
    return ((struct test_vm *)context)->out[port & 3];
}

static void pio_write(void *context, uint16_t port, unsigned size, uint32_t value)
{
    struct test_vm *t = context;
    t->out[port & 3] = value;
    atomic_fetch_add(&t->outs, 1);
}

static void eoi(void *context, uint8_t vector)
{
    atomic_fetch_add(&((struct test_vm *)context)->eois, 1);
}

static uint8_t acknowledge(void *context)
{
    engine_soft.set_extint(((struct test_vm *)context)->vm, false);
    return 0x21;
}

static const struct engine_callbacks callbacks = {mmio_read, mmio_write, pio_read,
                                                  pio_write, eoi,        acknowledge};

/* --- programs; they run at their own address, so only relative or absolute constants --- */

#define PROGRAM(name, text)                                                                        \
    __asm__(".pushsection .rodata\n.code32\n" #name ":\n" text "\n" #name "_end:\n.code64\n"       \
            ".popsection\n");                                                                      \
    extern const uint8_t name[], name##_end[];

PROGRAM(halt_program, "1: cli\nhlt\njmp 1b")
PROGRAM(spin_program, "1: incl 0x4000\njmp 1b")
PROGRAM(spin_out_program, "1: incl %eax\noutl %eax, $0\njmp 1b")
/* Changes the immediate of the next instruction. */
PROGRAM(self_change_program, "movb $7, 0x1000 + 2f - self_change_program + 1\n"
                             "2: movl $1, %eax\nmovl %eax, 0x4000\ncli\n3: hlt")
/* eax = the function's result, until the flag is set, and once more after that. */
PROGRAM(call_loop_program, "1: movl $0x3000, %ecx\ncall *%ecx\nmovl %eax, 0x4000\n"
                           "cmpl $0, 0x4040\nje 1b\ncall *%ecx\nmovl %eax, 0x4004\ncli\nhlt")
PROGRAM(function, "movl $1, %eax\nret")
PROGRAM(patch_program, "movb $2, 0x3001\nmovl $1, 0x4040\ncli\nhlt")
/* 20,000 times a LOCK XADD across a cache line. */
PROGRAM(split_lock_program, "movl $20000, %ecx\n1: movl $1, %eax\nlock xaddl %eax, 0x403e\n"
                            "loop 1b\ncli\nhlt")
PROGRAM(device_lock_program, "lock incl 0x300000\ncli\n1: hlt\njmp 1b")
PROGRAM(idle_program, "1: sti\nhlt\ncli\nincl 0x4000\njmp 1b")
/* Ends in PAUSEs for another CPU. */
PROGRAM(pause_program, "1: pause\nincl 0x4000\njmp 1b")
/* The APIC timer in deadline mode, an hour from TSC 0; then the TSC is set close to that. */
PROGRAM(deadline_program, "movl $0x40040, 0xfee00320\nmovl $0x6e0, %ecx\nmovl $0x346, %edx\n"
                          "xorl %eax, %eax\nwrmsr\nsti\nmovl $0x10, %ecx\n"
                          "movl $0x345, %edx\nmovl $0xfffe0000, %eax\nwrmsr\n"
                          "1: incl 0x4000\njmp 1b")
PROGRAM(enabled_spin_program, "sti\n1: incl 0x4000\njmp 1b")
/* Counts in 0x4010 + and ends the interrupt. */
PROGRAM(isr_program, "incl 0x4010\nmovl $0, 0xfee000b0\niretl")
PROGRAM(mapped_program, "1: movl 0x200000, %eax\nmovl %eax, 0x4000\njmp 1b")

PROGRAM(general_protection_program, "movl $13, 0x4000\ncli\n1: hlt\njmp 1b")
PROGRAM(page_fault_program, "movl $14, 0x4000\ncli\n1: hlt\njmp 1b")
/* 0F 04 is no instruction; the handler makes 0F 06 of it, CLTS. The second byte is at 0x1040. */
PROGRAM(illegal_program, "jmp 2f\n.org illegal_program + 0x3f\n2: .byte 0x0f, 0x04\n"
                         "movl $7, 0x4000\ncli\n1: hlt\njmp 1b")
PROGRAM(legalise_program, "incl 0x4010\nmovb $6, 0x1040\niretl")

static void load(struct test_vm *t, uint32_t address, const uint8_t *start, const uint8_t *end)
{
    memcpy(t->ram + address, start, (size_t)(end - start));
    if (t->vm)
        engine_soft.memory_written(t->vm, gpa(address), (uint64_t)(end - start));
}
#define LOAD(t, address, name) load(t, address, name, name##_end)

static uint32_t word(struct test_vm *t, uint32_t address)
{
    return atomic_load((_Atomic uint32_t *)(void *)(t->ram + address));
}

/* --- the VM --- */

static void map_ram(struct test_vm *t)
{
    struct engine_slot slot = {.size = RAM_SIZE,
                               .hva = t->ram,
                               .protection = MEM_PROT_READ | MEM_PROT_WRITE | MEM_PROT_EXEC};
    assert_int_equal(engine_soft.memory_map(t->vm, &slot), 0);
}

static void start_at(struct test_vm *t, unsigned index, uint32_t rip)
{
    struct x86_state s;

    x86_state_reset(&s, index, index == 0);
    s.cr0 = X86_CR0_PE | X86_CR0_ET | X86_CR0_NE;
    for (unsigned i = 0; i < 6; i++) {
        s.seg[i] = (struct x86_segment) {.limit = UINT32_MAX,
                                         .selector = 0x10,
                                         .attr = X86_SEG_G | X86_SEG_DB | X86_SEG_P | X86_SEG_S |
                                                 X86_SEG_WRITABLE | X86_SEG_ACCESSED};
    }
    s.seg[X86_CS].selector = 8;
    s.seg[X86_CS].attr |= X86_SEG_CODE;
    s.gdtr = (struct x86_table_register) {GDT, 23};
    s.idtr = (struct x86_table_register) {IDT, 0x7ff};
    s.gpr[X86_RSP] = STACK + index * 0x1000;
    s.rip = rip;
    s.rflags = X86_FIXED;
    s.mp_state = X86_MP_RUNNABLE;
    s.lapic.svr = 0x1ff;
    assert_int_equal(engine_soft.vcpu_set_state(t->vcpu[index], &s, NULL), 0);
}

/* A flat GDT, and one interrupt handler for all vectors. */
static void make_tables(struct test_vm *t)
{
    static const uint64_t gdt[] = {0, 0x00cf9b000000ffff, 0x00cf93000000ffff};
    uint32_t handler = 0x6000;

    memcpy(t->ram + GDT, gdt, sizeof gdt);
    for (unsigned i = 0; i < 256; i++) {
        uint64_t gate = handler | 8ull << 16 | 0x8e00ull << 32;
        memcpy(t->ram + IDT + i * 8, &gate, 8);
    }
    LOAD(t, handler, isr_program);
}

static int setup(void **state)
{
    struct test_vm *t = calloc(1, sizeof *t);
    t->ram = mmap(NULL, RAM_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_ptr_not_equal(t->ram, MAP_FAILED);
    t->cpuid.physical_address_bits = 40;
    engine_soft.cpu_features(&t->cpuid.features);
    assert_int_equal(loop_create(&t->loop), 0);
    assert_int_equal(vm_clock_create(&t->clock, t->loop), 0);
    struct engine_vm_config config = {.vcpu_count = 2,
                                      .clock = t->clock,
                                      .cpuid = &t->cpuid,
                                      .callbacks = &callbacks,
                                      .context = t};
    assert_int_equal(engine_soft.vm_create(&config, &t->vm, NULL), 0);
    map_ram(t);
    for (unsigned i = 0; i < 2; i++)
        assert_int_equal(engine_soft.vcpu_create(t->vm, i, &t->vcpu[i], NULL), 0);
    make_tables(t);
    start_at(t, 0, CODE0);
    start_at(t, 1, CODE1);
    vm_clock_resume(t->clock);
    *state = t;
    return 0;
}

static int teardown(void **state)
{
    struct test_vm *t = *state;
    engine_soft.vcpu_destroy(t->vcpu[1]);
    engine_soft.vcpu_destroy(t->vcpu[0]);
    engine_soft.vm_destroy(t->vm);
    vm_clock_destroy(t->clock);
    loop_destroy(t->loop);
    munmap(t->ram, RAM_SIZE);
    free(t);
    return 0;
}

/* --- running --- */

struct runner {
    struct test_vm *t;
    unsigned index;
    pthread_t thread;
};

static void *run_thread(void *argument)
{
    struct runner *r = argument;
    engine_soft.vcpu_run(r->t->vcpu[r->index], &r->t->exit[r->index]);
    return NULL;
}

static void run(struct runner *r, struct test_vm *t, unsigned index)
{
    *r = (struct runner) {t, index, 0};
    assert_int_equal(pthread_create(&r->thread, NULL, run_thread, r), 0);
}

static void stop(struct runner *r)
{
    engine_soft.vcpu_kick(r->t->vcpu[r->index]);
    pthread_join(r->thread, NULL);
    assert_int_equal(r->t->exit[r->index].kind, VM_EXIT_INTERRUPTED);
}

/* Awaits a change that another thread makes; fails after 20 s. */
#define AWAIT(condition)                                                                           \
    do {                                                                                           \
        for (uint64_t start_ = clock_host_ns(); !(condition);) {                                   \
            assert_true(clock_host_ns() - start_ < 20 * NS_PER_S);                                 \
            nanosleep(&(struct timespec) {0, 100000}, NULL);                                       \
        }                                                                                          \
    } while (0)

static bool sleeps(struct test_vm *t, unsigned index)
{
    return atomic_load(&t->vcpu[index]->sleeping);
}

/* --- tests --- */

static void test_kick_before_run_is_not_lost(void **state)
{
    struct test_vm *t = *state;
    LOAD(t, CODE0, spin_program);
    engine_soft.vcpu_kick(t->vcpu[0]);
    engine_soft.vcpu_run(t->vcpu[0], &t->exit[0]);
    assert_int_equal(t->exit[0].kind, VM_EXIT_INTERRUPTED);
    struct x86_state s;
    engine_soft.vcpu_get_state(t->vcpu[0], &s);
    assert_int_equal(s.rip, CODE0);
}

static void test_kick_stops_a_loop_and_a_halt(void **state)
{
    struct test_vm *t = *state;
    struct runner a, b;
    LOAD(t, CODE0, spin_program);
    LOAD(t, CODE1, halt_program);
    run(&a, t, 0);
    run(&b, t, 1);
    AWAIT(word(t, DATA) > 1000 && sleeps(t, 1));
    stop(&a);
    stop(&b);
    struct x86_state s;
    engine_soft.vcpu_get_state(t->vcpu[1], &s);
    assert_int_equal(s.mp_state, X86_MP_HALTED);
    assert_int_equal(s.rip, CODE1 + 2);
    struct engine_vcpu_counters c;
    engine_soft.vcpu_counters(t->vcpu[0], &c);
    assert_int_equal((c.instructions + 1) / 2, word(t, DATA)); /* exact: two in a turn */
    assert_int_equal(c.exits[VM_EXIT_INTERRUPTED], 1);
}

/* Kicks come in at all moments; each ends a run, none is lost. */
static void test_kick_stress(void **state)
{
    struct test_vm *t = *state;
    LOAD(t, CODE0, idle_program);
    for (unsigned i = 0; i < 2000; i++) {
        struct runner r;
        run(&r, t, 0);
        if (i % 3 == 0)
            engine_soft.send_msi(t->vm, 0xfee00000, 0x40);
        stop(&r);
    }
}

static void test_port_access(void **state)
{
    struct test_vm *t = *state;
    struct runner r;
    LOAD(t, CODE0, spin_out_program);
    run(&r, t, 0);
    AWAIT(t->outs > 10);
    stop(&r);
    struct engine_vcpu_counters c;
    engine_soft.vcpu_counters(t->vcpu[0], &c);
    assert_int_equal(c.exits[VM_EXIT_IO], t->outs);
    assert_int_equal(t->out[0], t->outs);
}

static void test_code_that_changes_itself(void **state)
{
    struct test_vm *t = *state;
    struct runner r;
    LOAD(t, CODE0, self_change_program);
    run(&r, t, 0);
    AWAIT(sleeps(t, 0));
    stop(&r);
    assert_int_equal(word(t, DATA), 7);
}

/* The byte that decides lies in other 64 bytes, which are watched by themselves. */
static void test_illegal_code_made_legal_by_its_second_byte(void **state)
{
    struct test_vm *t = *state;
    struct runner r;
    LOAD(t, CODE0, illegal_program);
    LOAD(t, 0x6000, legalise_program);
    run(&r, t, 0);
    AWAIT(sleeps(t, 0) || word(t, DATA + 0x10) > 1);
    stop(&r);
    assert_int_equal(word(t, DATA + 0x10), 1);
    assert_int_equal(word(t, DATA), 7);
}

static void set_gate(struct test_vm *t, unsigned vector, uint32_t handler)
{
    uint64_t gate = handler | 8ull << 16 | 0x8e00ull << 32;
    memcpy(t->ram + IDT + vector * 8, &gate, 8);
}

/* Code runs off its segment's end, where a page that is not present begins. */
static void test_code_limit_comes_before_page_faults(void **state)
{
    static const uint8_t nops[] = {0x90, 0x90, 0x90};
    const uint32_t table = 0x20000, directory = 0x21000, limit = 0x2fff;
    struct test_vm *t = *state;
    struct x86_state s;
    struct runner r;

    for (uint32_t i = 0; i < 256; i++)
        store_le32(t->ram + table + i * 4, i << 12 | (i == (limit + 1) >> 12 ? 0 : 3));
    store_le32(t->ram + directory, table | 3);
    LOAD(t, 0x6100, general_protection_program);
    LOAD(t, 0x6200, page_fault_program);
    set_gate(t, X86_GP, 0x6100);
    set_gate(t, X86_PF_FAULT, 0x6200);
    load(t, limit - 2, nops, nops + sizeof nops);
    assert_int_equal(engine_soft.vcpu_get_state(t->vcpu[0], &s), 0);
    s.cr0 |= X86_CR0_PG;
    s.cr3 = directory;
    s.seg[X86_CS].limit = limit;
    s.rip = limit - 2;
    s.gpr[X86_RSP] = 0x9000;
    assert_int_equal(engine_soft.vcpu_set_state(t->vcpu[0], &s, NULL), 0);
    run(&r, t, 0);
    AWAIT(sleeps(t, 0));
    stop(&r);
    assert_int_equal(word(t, DATA), 13);
}

/* The host's write bracket drops decoded code. */
static void test_code_changed_by_the_host(void **state)
{
    struct test_vm *t = *state;
    struct runner r;
    LOAD(t, CODE0, call_loop_program);
    LOAD(t, FUNC, function);
    run(&r, t, 0);
    AWAIT(word(t, DATA) == 1);
    for (unsigned i = 2; i < 100; i++) {
        atomic_store((_Atomic uint8_t *)(t->ram + FUNC + 1), (uint8_t)i);
        engine_soft.memory_written(t->vm, gpa(FUNC + 1), 1);
        AWAIT(word(t, DATA) == i);
    }
    stop(&r);
}

/*
 * DESIGN 8.4: vCPU 0 was allowed to write directly, and is held there while vCPU 1 decodes the
 * page. Without the revocation, the store would land unnoticed and the old code run for ever.
 */
static struct test_vm *delayed; /* the hook has no context */

static void delay_grant(struct engine_vcpu *vcpu, uint64_t page)
{
    if (page != FUNC || vcpu->index != 0)
        return;
    uint64_t start = clock_host_ns();
    while (word(delayed, DATA) != 1 && clock_host_ns() - start < 100 * NS_PER_MS)
        nanosleep(&(struct timespec) {0, 100000}, NULL);
}

static void test_code_changed_by_another_vcpu(void **state)
{
    struct test_vm *t = *state;
    for (unsigned i = 0; i < 3; i++) {
        struct runner a, b;
        LOAD(t, CODE0, patch_program);
        LOAD(t, CODE1, call_loop_program);
        LOAD(t, FUNC, function);
        memset(t->ram + DATA, 0, 0x100);
        start_at(t, 0, CODE0);
        start_at(t, 1, CODE1);
        delayed = t;
        t->vm->test_grant_delay = i ? delay_grant : NULL;
        if (i == 1) { /* at the same time; else vCPU 1 has decoded before */
            run(&a, t, 0);
            nanosleep(&(struct timespec) {0, 5000000}, NULL);
            run(&b, t, 1);
        } else {
            run(&b, t, 1);
            AWAIT(word(t, DATA) == 1);
            run(&a, t, 0);
        }
        AWAIT(sleeps(t, 0) && sleeps(t, 1));
        stop(&a);
        stop(&b);
        assert_int_equal(word(t, DATA + 4), 2);
    }
}

static void test_split_locks(void **state)
{
    struct test_vm *t = *state;
    struct runner a, b;
    LOAD(t, CODE0, split_lock_program);
    LOAD(t, CODE1, split_lock_program);
    run(&a, t, 0);
    run(&b, t, 1);
    AWAIT(sleeps(t, 0) && sleeps(t, 1));
    stop(&a);
    stop(&b);
    uint32_t total;
    memcpy(&total, t->ram + 0x403e, 4);
    assert_int_equal(total, 40000);
}

static void test_map_changes_under_a_running_vcpu(void **state)
{
    struct test_vm *t = *state;
    struct runner r;
    uint8_t *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memset(page, 0x5a, 4096);
    LOAD(t, CODE0, mapped_program);
    run(&r, t, 0);
    AWAIT(word(t, DATA) == 0x55667788); /* nothing there: MMIO */
    struct engine_slot slot = {gpa(0x200000), 4096, page, MEM_PROT_READ | MEM_PROT_EXEC};
    for (unsigned i = 0; i < 20; i++) {
        assert_int_equal(engine_soft.memory_map(t->vm, &slot), 0);
        AWAIT(word(t, DATA) == 0x5a5a5a5a);
        assert_int_equal(engine_soft.memory_map(t->vm, &slot), -EEXIST);
        assert_int_equal(engine_soft.memory_protect(t->vm, gpa(0x1f0000), 0x20000, 7), 0);
        assert_int_equal(engine_soft.memory_unmap(t->vm, slot.start, slot.size), 0);
        AWAIT(word(t, DATA) == 0x55667788);
    }
    stop(&r);
    munmap(page, 4096);
}

static void *change_map(void *context)
{
    struct test_vm *t = context;
    assert_int_equal(engine_soft.memory_protect(t->vm, gpa(0), RAM_SIZE, 7), 0);
    return NULL;
}

/* The handler waits, as for a device's lock, for a thread that changes the map. */
static void wait_for_map_change(struct test_vm *t)
{
    struct timespec deadline;
    pthread_t thread;

    t->mmio_hook = NULL;
    assert_int_equal(pthread_create(&thread, NULL, change_map, t), 0);
    clock_gettime(CLOCK_REALTIME, &deadline);
    deadline.tv_sec += 10;
    t->map_changed = !pthread_timedjoin_np(thread, NULL, &deadline);
    if (!t->map_changed)
        pthread_detach(thread);
}

/* A LOCK operation on a device must not keep its exclusive section over the device's handler. */
static void test_lock_on_a_device_holds_nobody_up(void **state)
{
    struct test_vm *t = *state;
    struct runner r;
    LOAD(t, CODE0, device_lock_program);
    t->mmio_hook = wait_for_map_change;
    run(&r, t, 0);
    AWAIT(sleeps(t, 0));
    stop(&r);
    assert_true(t->map_changed);
    assert_int_equal(t->vcpu[0]->exclusive_depth, 0);
}

static void test_interrupts_wake(void **state)
{
    struct test_vm *t = *state;
    struct runner r;
    LOAD(t, CODE0, idle_program);
    run(&r, t, 0);
    for (unsigned i = 1; i <= 500; i++) {
        engine_soft.send_msi(t->vm, 0xfee00000, i % 2 ? 0x40 : 0x8041);
        AWAIT(word(t, DATA + 0x10) == i && word(t, DATA) == i);
    }
    assert_int_equal(t->eois, 250); /* of the level-triggered ones */
    AWAIT(sleeps(t, 0));
    engine_soft.inject_nmi(t->vcpu[0]);
    AWAIT(word(t, DATA + 0x10) == 501);
    stop(&r);
    struct engine_vcpu_counters c;
    engine_soft.vcpu_counters(t->vcpu[0], &c);
    assert_int_equal(c.interrupts, 501);
}

static void test_extint_through_lint0(void **state)
{
    struct test_vm *t = *state;
    struct runner r;
    LOAD(t, CODE0, idle_program);
    run(&r, t, 0);
    AWAIT(sleeps(t, 0));
    engine_soft.set_extint(t->vm, true); /* LINT0 is masked */
    stop(&r);
    assert_int_equal(word(t, DATA + 0x10), 0);
    x86_lapic_mmio_write(&t->vcpu[0]->lapic, 0x350, 4, 0x700);
    run(&r, t, 0);
    AWAIT(word(t, DATA + 0x10) == 1);
    stop(&r);
}

static void test_timer_wakes_a_halt(void **state)
{
    struct test_vm *t = *state;
    struct runner r;
    LOAD(t, CODE0, idle_program);
    x86_lapic_mmio_write(&t->vcpu[0]->lapic, 0x320, 4, 0x20040);
    x86_lapic_mmio_write(&t->vcpu[0]->lapic, 0x3e0, 4, 0xb);
    x86_lapic_mmio_write(&t->vcpu[0]->lapic, 0x380, 4, 2000000);
    uint64_t start = vm_clock_ns(t->clock);
    run(&r, t, 0);
    AWAIT(word(t, DATA + 0x10) >= 10);
    assert_true(vm_clock_ns(t->clock) - start >= 20 * NS_PER_MS);
    stop(&r);
}

static void periodic_timer(struct test_vm *t, uint32_t ns)
{
    x86_lapic_mmio_write(&t->vcpu[0]->lapic, 0x320, 4, 0x20040);
    x86_lapic_mmio_write(&t->vcpu[0]->lapic, 0x3e0, 4, 0xb);
    x86_lapic_mmio_write(&t->vcpu[0]->lapic, 0x380, 4, ns);
}

/* A vCPU that never looks at the clock by itself. */
static void test_timer_interrupts_a_loop(void **state)
{
    struct test_vm *t = *state;
    struct runner r;
    LOAD(t, CODE0, enabled_spin_program);
    periodic_timer(t, 1000000);
    uint64_t start = vm_clock_ns(t->clock);
    run(&r, t, 0);
    AWAIT(word(t, DATA + 0x10) >= 10);
    assert_true(vm_clock_ns(t->clock) - start >= 10 * NS_PER_MS);
    stop(&r);
}

/* While VM time stands still nothing is armed; it goes on from where it was. */
static void test_timer_over_a_pause(void **state)
{
    struct test_vm *t = *state;
    struct runner r;
    LOAD(t, CODE0, enabled_spin_program);
    periodic_timer(t, 1000000);
    for (unsigned i = 1; i <= 20; i++) {
        run(&r, t, 0);
        AWAIT(word(t, DATA + 0x10) >= i);
        stop(&r);
        vm_clock_pause(t->clock);
        assert_int_equal(t->vm->timer.deadline[0], SOFT_TIMER_NEVER);
        assert_true(vm_clock_ns(t->clock) >= i * NS_PER_MS);
        vm_clock_resume(t->clock);
    }
}

static void test_setting_the_tsc_moves_the_deadline(void **state)
{
    struct test_vm *t = *state;
    struct runner r;
    LOAD(t, CODE0, deadline_program);
    run(&r, t, 0);
    AWAIT(word(t, DATA + 0x10) == 1);
    stop(&r);
}

/* As restored. */
static void test_state_with_an_armed_timer(void **state)
{
    struct test_vm *t = *state;
    struct x86_state s;
    struct runner r;
    LOAD(t, CODE0, enabled_spin_program);
    engine_soft.vcpu_get_state(t->vcpu[0], &s);
    s.lapic.lvt[0] = 0x40040;
    s.tsc_deadline = vm_clock_ns(t->clock) + 2 * NS_PER_MS;
    assert_int_equal(engine_soft.vcpu_set_state(t->vcpu[0], &s, NULL), 0);
    run(&r, t, 0);
    AWAIT(word(t, DATA + 0x10) == 1);
    assert_true(vm_clock_ns(t->clock) >= s.tsc_deadline);
    stop(&r);
}

/* Safe points come by while it waits: the other vCPU gets its exclusive sections. */
static void test_spinning_yields(void **state)
{
    struct test_vm *t = *state;
    struct runner a, b;
    LOAD(t, CODE0, pause_program);
    LOAD(t, CODE1, split_lock_program);
    run(&a, t, 0);
    AWAIT(word(t, DATA) > 10 * X86_PAUSES_TO_YIELD);
    run(&b, t, 1);
    AWAIT(sleeps(t, 1));
    stop(&a);
    stop(&b);
    assert_true(t->vcpu[0]->cpu.pauses < X86_PAUSES_TO_YIELD);
}

static void test_state_moves_to_a_fresh_vcpu(void **state)
{
    struct test_vm *t = *state;
    struct runner r;
    struct x86_state a, b;
    const char *what = NULL;
    LOAD(t, CODE0, spin_program);
    run(&r, t, 0);
    AWAIT(word(t, DATA) > 100);
    stop(&r);
    engine_soft.vcpu_get_state(t->vcpu[0], &a);
    assert_int_equal(engine_soft.vcpu_set_state(t->vcpu[1], &a, NULL), 0);
    engine_soft.vcpu_get_state(t->vcpu[1], &b);
    assert_true(x86_state_equal(&a, &b, &what));
    uint32_t before = word(t, DATA);
    run(&r, t, 1);
    AWAIT(word(t, DATA) > before);
    stop(&r);
}

static void test_triple_fault(void **state)
{
    struct test_vm *t = *state;
    memset(t->ram + IDT, 0, 0x800);
    static const uint8_t ud2[] = {0x0f, 0x0b};
    load(t, CODE0, ud2, ud2 + 2);
    engine_soft.vcpu_run(t->vcpu[0], &t->exit[0]);
    assert_int_equal(t->exit[0].kind, VM_EXIT_SHUTDOWN);
}

static void test_probe_measures(void **state)
{
    struct engine_probe p;
    engine_soft.probe(&p);
    assert_int_equal(p.verdict, ENGINE_USABLE);
    assert_true(p.user_ns > 0.1 && p.user_ns < 10000);
}

#define VM_TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        VM_TEST(test_kick_before_run_is_not_lost),
        VM_TEST(test_kick_stops_a_loop_and_a_halt),
        VM_TEST(test_kick_stress),
        VM_TEST(test_port_access),
        VM_TEST(test_code_that_changes_itself),
        VM_TEST(test_illegal_code_made_legal_by_its_second_byte),
        VM_TEST(test_code_limit_comes_before_page_faults),
        VM_TEST(test_code_changed_by_the_host),
        VM_TEST(test_code_changed_by_another_vcpu),
        VM_TEST(test_split_locks),
        VM_TEST(test_map_changes_under_a_running_vcpu),
        VM_TEST(test_lock_on_a_device_holds_nobody_up),
        VM_TEST(test_interrupts_wake),
        VM_TEST(test_extint_through_lint0),
        VM_TEST(test_timer_wakes_a_halt),
        VM_TEST(test_timer_interrupts_a_loop),
        VM_TEST(test_timer_over_a_pause),
        VM_TEST(test_setting_the_tsc_moves_the_deadline),
        VM_TEST(test_state_with_an_armed_timer),
        VM_TEST(test_spinning_yields),
        VM_TEST(test_state_moves_to_a_fresh_vcpu),
        VM_TEST(test_triple_fault),
        cmocka_unit_test(test_probe_measures),
    };
    return cmocka_run_group_tests_name("soft", tests, NULL, NULL);
}
