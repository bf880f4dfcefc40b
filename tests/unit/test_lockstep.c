/*
 * Lockstep finds what a translator can do wrong (each wrong unit here does one thing wrong),
 * and does not cry at what is right: units that stop early, devices and other vCPUs that write to
 * memory, values that differ each time, code that changes.
 */
#include "test.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/clock.h"
#include "base/loop.h"
#include "engine/soft/lockstep_int.h"
#include "engine/soft/soft.h"
#include "engine/soft/soft_int.h"
#include "vm/clock.h"

#define RAM_SIZE (1u << 20)
#define CODE     0x1000
#define FUNC     0x3000
#define DATA     0x4000
#define STACK    0x8000
#define TABLES   0x9000 /* four page tables */
#define IDT      0xd000
#define GDT      0xe000

struct test_vm {
    uint8_t *ram;
    struct loop *loop;
    struct vm_clock *clock;
    struct x86_cpuid_table cpuid;
    struct engine_vm *vm;
    struct engine_vcpu *vcpu[2];
    unsigned outs, reads, writes;
    bool ended; /* the program has written to port 1 */
};

static uint64_t mmio_read(void *context, gpa_t address, unsigned size)
{
    return ++((struct test_vm *)context)->reads;
}

static void mmio_write(void *context, gpa_t address, unsigned size, uint64_t value)
{
    ((struct test_vm *)context)->writes++;
}

static uint32_t pio_read(void *context, uint16_t port, unsigned size)
{
    return 0;
}

/* Port 1 ends the run. */
static void pio_write(void *context, uint16_t port, unsigned size, uint32_t value)
{
    struct test_vm *t = context;
    if (port == 0)
        t->outs++;
    if (port != 1)
        return;
    t->ended = true;
    engine_soft.vcpu_kick(t->vcpu[0]);
}

static void eoi(void *context, uint8_t vector)
{
}

static uint8_t acknowledge(void *context)
{
    return 0;
}

static const struct engine_callbacks callbacks = {mmio_read, mmio_write, pio_read,
                                                  pio_write, eoi,        acknowledge};

/* --- programs --- */

#define PROGRAM(name, text)                                                                        \
    __asm__(".pushsection .rodata\n" #name ":\n" text "\n" #name "_end:\n.popsection\n");          \
    extern const uint8_t name[], name##_end[];
#define END "outb %al, $1\n9: cli\nhlt\njmp 9b"

/* Something of everything, 400 times. */
PROGRAM(mixed_program, "movl $400, %ecx\nmovl $0x9e3779b9, %ebx\nfninit\n"
                       "1: addl %ecx, %ebx\nadcl $7, 0x4010\npushq %rbx\npopq %rdx\n"
                       "movd %ebx, %xmm3\npaddd %xmm3, %xmm4\nmovups %xmm4, 0x4020\n"
                       "pushq %rbx\nfildl (%rsp)\npopq %rax\nfstpl 0x4040\n"
                       "testl $3, %ecx\nje 3f\nincq %r10\nsbbq %r10, %r15\n"
                       "3: call 2f\nloop 1b\n" END "\n"
                       "2: pushq %rcx\nmovl $300, %ecx\nmovl $0x4100, %edi\nmovb %bl, %al\ncld\n"
                       "rep stosb\npopq %rcx\nlock xaddl %eax, 0x4050\nret")
/* Faults in `divide`, which the handler skips. */
PROGRAM(fault_program, "movl $100, %ecx\n1: call *%rbp\nincl 0x4000\nloop 1b\n" END)
PROGRAM(divide, "xorl %edx, %edx\nmovl $5, %eax\nincl 0x4004\ndivl 0x4008\nnop\nret")
PROGRAM(skip_handler, "incl 0x400c\naddq $7, (%rsp)\niretq")
/* Adds up what changes under it. */
PROGRAM(watch_program, "movl $20000, %ecx\n1: addl 0x4004, %eax\naddl %eax, 0x4008\n"
                       "incl 0x4010\ndecl %ecx\njnz 1b\n" END)
PROGRAM(values_program, "movl $200, %ecx\nmovl $0xfee00020, %ebx\n1: rdtsc\naddl %eax, 0x4000\n"
                        "rdrand %eax\naddl %eax, 0x4004\nmovl (%rbx), %eax\naddl %eax, 0x4008\n"
                        "loop 1b\n" END)
PROGRAM(device_program, "movl $100, %ecx\n1: incl 0x4000\naddl %ecx, %eax\noutl %eax, $0\n"
                        "movl 0x300000, %eax\naddl %eax, 0x4008\naddl %eax, 0x300004\n"
                        "loop 1b\n" END)
/* Calls FUNC, whose immediate it changes each time. */
PROGRAM(change_program, "movl $300, %ecx\n1: movb %cl, 0x3001\nmovl $0x3000, %ebp\ncall *%rbp\n"
                        "addl %eax, 0x4000\nloop 1b\n" END)
/* The same inside one unit. */
PROGRAM(self_program, "movl $300, %ecx\n1: movb %cl, 0x1000 + 2f - self_program + 1\n"
                      "2: movl $0, %eax\naddl %eax, 0x4000\nloop 1b\n" END)
PROGRAM(function, "movl $0, %eax\nret")
PROGRAM(long_string,
        "movl $200000, %ecx\nmovl $0x20000, %esi\nmovl $0x60001, %edi\ncld\nrep movsb\n"
        "movl $5000, %ecx\nmovl $0x10000, %edi\nrep stosl\n" END)
PROGRAM(locked_program, "movl $3000, %ecx\n1: lock incl 0x4000\nlock incl 0x403e\n"
                        "movl 0x4080, %eax\nmovl %eax, 0x4084\nincl 0x4080\nloop 1b\n" END)
PROGRAM(spin_program, "1: lock incl 0x4000\nincl 0x4004\nlock incl 0x403e\njmp 1b")

static void load(struct test_vm *t, uint32_t address, const uint8_t *start, const uint8_t *end)
{
    memcpy(t->ram + address, start, (size_t)(end - start));
    engine_soft.memory_written(t->vm, gpa(address), (uint64_t)(end - start));
}
#define LOAD(t, address, name) load(t, address, name, name##_end)

static uint32_t word(const struct test_vm *t, uint32_t address)
{
    return load_le32(t->ram + address);
}

/* --- the VM --- */

static void start_at(struct test_vm *t, unsigned index, uint32_t rip)
{
    struct x86_state s;

    x86_state_reset(&s, index, index == 0);
    s.cr0 = X86_CR0_PE | X86_CR0_ET | X86_CR0_NE | X86_CR0_PG;
    s.cr3 = TABLES;
    s.cr4 = X86_CR4_PAE | X86_CR4_OSFXSR | X86_CR4_OSXMMEXCPT;
    s.efer = X86_EFER_LME | X86_EFER_LMA;
    for (unsigned i = 0; i < 6; i++) {
        s.seg[i] = (struct x86_segment) {.limit = UINT32_MAX,
                                         .selector = i == X86_CS ? 8 : 0x10,
                                         .attr = X86_SEG_G | X86_SEG_DB | X86_SEG_P | X86_SEG_S |
                                                 X86_SEG_WRITABLE | X86_SEG_ACCESSED};
    }
    s.seg[X86_CS].attr ^= X86_SEG_CODE | X86_SEG_DB | X86_SEG_L;
    s.gdtr = (struct x86_table_register) {GDT, 23};
    s.idtr = (struct x86_table_register) {IDT, 0xfff};
    s.gpr[X86_RSP] = STACK + index * 0x1000;
    s.gpr[X86_RBP] = 0x1800;
    s.rip = rip;
    s.rflags = X86_FIXED;
    s.mp_state = X86_MP_RUNNABLE;
    assert_int_equal(engine_soft.vcpu_set_state(t->vcpu[index], &s, NULL), 0);
}

static void set_entry(struct test_vm *t, uint32_t table, unsigned index, uint64_t value)
{
    store_le64(t->ram + table + index * 8, value);
}

/* The first 4 MiB and the local APIC, at their own addresses. */
static void make_tables(struct test_vm *t)
{
    const uint64_t table = X86_PTE_P | X86_PTE_W, page = table | X86_PTE_PS;

    set_entry(t, TABLES, 0, (TABLES + 0x1000) | table);
    set_entry(t, TABLES + 0x1000, 0, (TABLES + 0x2000) | table);
    set_entry(t, TABLES + 0x1000, 3, (TABLES + 0x3000) | table);
    set_entry(t, TABLES + 0x2000, 0, page);
    set_entry(t, TABLES + 0x2000, 1, 0x200000 | page);
    set_entry(t, TABLES + 0x3000, 503, 0xfee00000 | page);
    set_entry(t, GDT, 1, 0x00af9b000000ffff);
    set_entry(t, GDT, 2, 0x00cf93000000ffff);
    for (unsigned i = 0; i < 256; i++)
        set_entry(t, IDT, i * 2, 0x6000 | 8ull << 16 | 0x8e00ull << 32);
    LOAD(t, 0x6000, skip_handler);
}

static struct test_vm *vm_create_mode(unsigned vcpus, enum engine_code_mode mode)
{
    struct test_vm *t = calloc(1, sizeof *t);
    t->ram = mmap(NULL, RAM_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_ptr_not_equal(t->ram, MAP_FAILED);
    t->cpuid.physical_address_bits = 40;
    engine_soft.cpu_features(&t->cpuid.features);
    assert_int_equal(loop_create(&t->loop), 0);
    assert_int_equal(vm_clock_create(&t->clock, t->loop), 0);
    struct engine_vm_config config = {.vcpu_count = vcpus,
                                      .clock = t->clock,
                                      .cpuid = &t->cpuid,
                                      .code = {.mode = mode},
                                      .callbacks = &callbacks,
                                      .context = t};
    assert_int_equal(engine_soft.vm_create(&config, &t->vm, NULL), 0);
    struct engine_slot slot = {.size = RAM_SIZE,
                               .hva = t->ram,
                               .protection = MEM_PROT_READ | MEM_PROT_WRITE | MEM_PROT_EXEC};
    assert_int_equal(engine_soft.memory_map(t->vm, &slot), 0);
    for (unsigned i = 0; i < vcpus; i++)
        assert_int_equal(engine_soft.vcpu_create(t->vm, i, &t->vcpu[i], NULL), 0);
    make_tables(t);
    start_at(t, 0, CODE);
    vm_clock_resume(t->clock);
    return t;
}

static struct test_vm *vm_create(unsigned vcpus)
{
    return vm_create_mode(vcpus, ENGINE_CODE_LOCKSTEP);
}

static void vm_destroy(struct test_vm *t)
{
    engine_soft.vm_destroy(t->vm);
    vm_clock_destroy(t->clock);
    loop_destroy(t->loop);
    munmap(t->ram, RAM_SIZE);
    free(t);
}

static int setup(void **state)
{
    *state = vm_create(1);
    return 0;
}

static int teardown(void **state)
{
    vm_destroy(*state);
    return 0;
}

static struct engine_lockstep_counters counters(const struct test_vm *t)
{
    struct engine_vcpu_counters c;
    engine_soft.vcpu_counters(t->vcpu[0], &c);
    return c.lockstep;
}

/* Runs vCPU 0 until the program ends, with no divergence. */
static void run_clean(struct test_vm *t)
{
    struct vm_exit exit;
    engine_soft.vcpu_run(t->vcpu[0], &exit);
    if (exit.kind == VM_EXIT_ERROR)
        fail_msg("%s", exit.error.text);
    assert_int_equal(exit.kind, VM_EXIT_INTERRUPTED);
    assert_true(t->ended);
    assert_int_equal(counters(t).divergences, 0);
}

/* --- wrong units: from the 60th on each does one thing wrong --- */

/* Read-only tables cannot hold the count: it lies in a corner of RAM. */
static bool is_time(struct engine_vcpu *vcpu)
{
    uint8_t *ram = vcpu->vm->slot[0].hva;
    store_le32(ram + 0x7ff0, load_le32(ram + 0x7ff0) + 1);
    return load_le32(ram + 0x7ff0) >= 60;
}

#define WRONG(name, what)                                                                          \
    static void name(struct engine_vcpu *vcpu, const struct x86_unit *unit)                        \
    {                                                                                              \
        struct x86_cpu *cpu = &vcpu->cpu;                                                          \
        uint8_t *ram = vcpu->vm->slot[0].hva;                                                      \
        uint64_t old = load_le64(ram + 0x4010);                                                    \
        lockstep_interpret(vcpu, unit);                                                            \
        if (is_time(vcpu)) {                                                                       \
            what;                                                                                  \
        }                                                                                          \
        (void)cpu, (void)ram, (void)old;                                                           \
    }

WRONG(wrong_carry, cpu->s.rflags ^= X86_CF)
WRONG(wrong_adjust, cpu->s.rflags ^= X86_AF)
WRONG(wrong_direction, cpu->s.rflags ^= X86_DF)
WRONG(wrong_register, cpu->s.gpr[X86_RBX] ^= 1)
WRONG(wrong_upper_half, cpu->s.gpr[X86_R15] ^= 1ull << 63)
WRONG(wrong_rip, cpu->s.rip += 1)
WRONG(wrong_segment, cpu->s.seg[X86_GS].base ^= 0x1000)
WRONG(wrong_cr2, cpu->s.cr2 ^= 1)
WRONG(wrong_xmm, cpu->s.fpu.ymm[3][0] ^= 1)
WRONG(wrong_ymm, cpu->s.fpu.ymm[15][31] ^= 0x80)
WRONG(wrong_st, cpu->s.fpu.st[7][9] ^= 1)
WRONG(wrong_ftw, cpu->s.fpu.ftw ^= 1)
WRONG(wrong_mxcsr, cpu->s.fpu.mxcsr ^= 1)
WRONG(wrong_shadow, cpu->s.interrupt_shadow = true)
WRONG(wrong_halt, cpu->halted = true)

/* These go wrong at a unit that stores at 0x4010. */
#define WRONG_STORE(name, what)                                                                    \
    static void name(struct engine_vcpu *vcpu, const struct x86_unit *unit)                        \
    {                                                                                              \
        uint8_t *ram = vcpu->vm->slot[0].hva;                                                      \
        uint64_t old = load_le64(ram + 0x4010);                                                    \
        lockstep_interpret(vcpu, unit);                                                            \
        if (load_le64(ram + 0x4010) != old) {                                                      \
            what;                                                                                  \
        }                                                                                          \
        (void)old;                                                                                 \
    }

WRONG_STORE(wrong_store, ram[0x4011] ^= 1)
WRONG_STORE(missed_store, store_le64(ram + 0x4010, old))
WRONG_STORE(stray_store, ram[0x4ff0]++) /* only now and then a device's */

static void never_moves(struct engine_vcpu *vcpu, const struct x86_unit *unit)
{
}

static void spurious_fault(struct engine_vcpu *vcpu, const struct x86_unit *unit)
{
    lockstep_interpret(vcpu, unit);
    if (is_time(vcpu))
        x86_raise_error(&vcpu->cpu, X86_GP, 0);
}

static void test_finds_what_is_wrong(void **state)
{
    static const struct {
        const char *name;
        lockstep_unit *run;
    } wrong[] = {
#define CASE(f) {#f, f}
        CASE(wrong_carry),      CASE(wrong_adjust), CASE(wrong_direction), CASE(wrong_register),
        CASE(wrong_upper_half), CASE(wrong_rip),    CASE(wrong_segment),   CASE(wrong_cr2),
        CASE(wrong_xmm),        CASE(wrong_ymm),    CASE(wrong_st),        CASE(wrong_ftw),
        CASE(wrong_mxcsr),      CASE(wrong_shadow), CASE(wrong_halt),      CASE(wrong_store),
        CASE(missed_store),     CASE(stray_store),  CASE(never_moves),     CASE(spurious_fault),
    };
    for (unsigned i = 0; i < ARRAY_COUNT(wrong); i++) {
        struct test_vm *t = vm_create(1);
        struct vm_exit exit;
        LOAD(t, CODE, mixed_program);
        t->vcpu[0]->lockstep->run = wrong[i].run;
        engine_soft.vcpu_run(t->vcpu[0], &exit);
        if (exit.kind != VM_EXIT_ERROR)
            fail_msg("%s was not found", wrong[i].name);
        assert_int_equal(counters(t).divergences, 1);
        assert_non_null(strstr(exit.error.text, "lockstep"));
        vm_destroy(t);
    }
}

/* --- faults --- */

static void run_faults(struct test_vm *t, struct vm_exit *exit)
{
    LOAD(t, CODE, fault_program);
    LOAD(t, 0x1800, divide);
    engine_soft.vcpu_run(t->vcpu[0], exit);
}

static void test_faults_in_the_middle_are_delivered_once(void **state)
{
    struct test_vm *t = *state;
    struct vm_exit exit;
    run_faults(t, &exit);
    assert_int_equal(exit.kind, VM_EXIT_INTERRUPTED);
    assert_int_equal(word(t, DATA), 100);
    assert_int_equal(word(t, DATA + 4), 100);
    assert_int_equal(word(t, DATA + 12), 100);
    assert_int_equal(counters(t).divergences, 0);
}

/* Faults, or not, otherwise than the unit does. */
static void fault_becomes(struct engine_vcpu *vcpu, const struct x86_unit *unit, int vector)
{
    struct x86_cpu *cpu = &vcpu->cpu;
    jmp_buf here, *outer = cpu->unwind;

    cpu->unwind = &here;
    if (!setjmp(here)) {
        lockstep_interpret(vcpu, unit);
        cpu->unwind = outer;
        return;
    }
    cpu->unwind = outer;
    if (vector >= 0)
        x86_raise(cpu, (enum x86_vector)vector);
    cpu->s.rip += 7;
}

static void missed_fault(struct engine_vcpu *vcpu, const struct x86_unit *unit)
{
    fault_becomes(vcpu, unit, -1);
}

static void other_fault(struct engine_vcpu *vcpu, const struct x86_unit *unit)
{
    fault_becomes(vcpu, unit, X86_UD);
}

static void test_finds_wrong_faults(void **state)
{
    lockstep_unit *const wrong[] = {missed_fault, other_fault};

    for (unsigned i = 0; i < ARRAY_COUNT(wrong); i++) {
        struct test_vm *t = vm_create(1);
        struct vm_exit exit;
        t->vcpu[0]->lockstep->run = wrong[i];
        run_faults(t, &exit);
        assert_int_equal(exit.kind, VM_EXIT_ERROR);
        assert_int_equal(counters(t).divergences, 1);
        vm_destroy(t);
    }
}

/* False: it led elsewhere. */
static bool run_insn(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    uint64_t next = cpu->s.rip + insn->length;

    cpu->next_rip = next;
    insn->run(cpu, insn);
    cpu->s.rip = cpu->next_rip;
    return cpu->s.rip == next;
}

/* --- stale code --- */

/* Keeps what it has seen first at each address, as a translator that forgets nothing would. */
struct stale {
    struct x86_insn insn[X86_UNIT_INSNS_MAX];
    unsigned count;
};
static struct stale *stale; /* of 64 KiB of code; a unit has no context */

static void stale_unit(struct engine_vcpu *vcpu, const struct x86_unit *unit)
{
    struct x86_cpu *cpu = &vcpu->cpu;
    struct stale *s = &stale[(unit->page | unit->page_offset) & 0xffff];

    if (!s->count) {
        s->count = unit->count;
        memcpy(s->insn, unit->insn, unit->count * sizeof unit->insn[0]);
    }
    bool goes_on = true;
    for (unsigned i = 0; i < s->count && goes_on; i++)
        goes_on = run_insn(cpu, &s->insn[i]) && !cpu->end_block;
}

/* Goes on in old code. */
static void runs_on(struct engine_vcpu *vcpu, const struct x86_unit *unit)
{
    for (unsigned i = 0; i < unit->count && run_insn(&vcpu->cpu, &unit->insn[i]); i++)
        ;
}

static void run_changes(struct test_vm *t, bool inside, struct vm_exit *exit)
{
    if (inside)
        LOAD(t, CODE, self_program);
    else
        LOAD(t, CODE, change_program);
    LOAD(t, FUNC, function);
    engine_soft.vcpu_run(t->vcpu[0], exit);
}

static void test_code_that_changes(void **state)
{
    for (unsigned inside = 0; inside < 2; inside++) {
        struct test_vm *t = vm_create(1);
        struct vm_exit exit;
        run_changes(t, inside, &exit);
        assert_int_equal(exit.kind, VM_EXIT_INTERRUPTED);
        assert_int_equal(word(t, DATA), 45150 - 256 * 45); /* of 300 bytes */
        assert_int_equal(counters(t).divergences, 0);
        vm_destroy(t);
    }
}

static void test_finds_stale_code(void **state)
{
    for (unsigned inside = 0; inside < 2; inside++) {
        struct test_vm *t = vm_create(1);
        struct vm_exit exit;
        stale = calloc(0x10000, sizeof *stale);
        t->vcpu[0]->lockstep->run = inside ? runs_on : stale_unit;
        run_changes(t, inside, &exit);
        assert_int_equal(exit.kind, VM_EXIT_ERROR);
        free(stale);
        vm_destroy(t);
    }
}

/* --- what is right --- */

/* The shadow leaves no trace: memory and registers become what they become without it. */
static void test_mixed_program(void **state)
{
    struct test_vm *t = *state, *plain = vm_create_mode(1, ENGINE_CODE_INTERPRET);
    struct x86_state a, b;
    const char *what;
    LOAD(t, CODE, mixed_program);
    LOAD(plain, CODE, mixed_program);
    run_clean(t);
    run_clean(plain);
    assert_memory_equal(t->ram, plain->ram, RAM_SIZE);
    engine_soft.vcpu_get_state(t->vcpu[0], &a);
    engine_soft.vcpu_get_state(plain->vcpu[0], &b);
    assert_true(x86_state_equal(&a, &b, &what));
    vm_destroy(plain);
    struct engine_vcpu_counters c;
    engine_soft.vcpu_counters(t->vcpu[0], &c);
    assert_true(c.lockstep.instructions > 400 * 20);
    assert_true(c.lockstep.unchecked < 5);
    assert_int_equal(c.instructions, c.lockstep.instructions + c.lockstep.unchecked);
}

/* Stops behind the first half. */
static void half_unit(struct engine_vcpu *vcpu, const struct x86_unit *unit)
{
    struct x86_cpu *cpu = &vcpu->cpu;
    unsigned count = (unit->count + 1u) / 2;

    for (unsigned i = 0; i < count && run_insn(cpu, &unit->insn[i]) && !cpu->end_block; i++)
        ;
}

/* Lets go of a string instruction after each element. */
static void element_unit(struct engine_vcpu *vcpu, const struct x86_unit *unit)
{
    struct x86_cpu *cpu = &vcpu->cpu;
    bool goes_on = true;

    for (unsigned i = 0; i < unit->count && goes_on; i++) {
        cpu->debug_active = true;
        goes_on = run_insn(cpu, &unit->insn[i]) && !cpu->end_block;
        cpu->debug_active = false;
    }
}

static void test_units_may_stop_early(void **state)
{
    lockstep_unit *const early[] = {half_unit, element_unit};

    for (unsigned i = 0; i < ARRAY_COUNT(early); i++) {
        struct test_vm *t = vm_create(1);
        LOAD(t, CODE, mixed_program);
        t->vcpu[0]->lockstep->run = early[i];
        run_clean(t);
        assert_true(counters(t).retries > 0);
        vm_destroy(t);
    }
}

static void test_long_strings(void **state)
{
    struct test_vm *t = *state;
    for (unsigned i = 0; i < 200000; i++)
        t->ram[0x20000 + i] = (uint8_t)(i * 7 + (i >> 8));
    LOAD(t, CODE, long_string);
    run_clean(t);
    for (unsigned i = 0; i < 200000; i++)
        assert_int_equal(t->ram[0x60001 + i], (uint8_t)(i * 7 + (i >> 8)));
}

static void test_values_that_differ_each_time(void **state)
{
    struct test_vm *t = *state;
    LOAD(t, CODE, values_program);
    run_clean(t);
    assert_int_equal(counters(t).retries, 0);
    assert_in_range(counters(t).unchecked, 0,
                    15); /* the unit of the last turn, with the OUT behind it */
}

/* Devices are asked as often as the guest asks. */
static void test_devices_are_asked_once(void **state)
{
    struct test_vm *t = *state;
    LOAD(t, CODE, device_program);
    run_clean(t);
    assert_int_equal(t->outs, 100);
    assert_int_equal(t->reads, 200);
    assert_int_equal(t->writes, 100);
    assert_int_equal(word(t, DATA), 100);
    assert_true(counters(t).unchecked >= 300);
}

static void *write_like_a_device(void *context)
{
    struct test_vm *t = context;
    _Atomic uint32_t *counter = (void *)(t->ram + DATA + 4);

    while (!__atomic_load_n(&t->ended, __ATOMIC_RELAXED)) {
        uint64_t start = clock_host_ns();
        while (clock_host_ns() - start < 100000) /* far longer than a few passes */
            ;
        atomic_fetch_add(counter, 1);
    }
    return NULL;
}

/* Both beside what the program stores and where it loads from. */
static void test_devices_write_meanwhile(void **state)
{
    struct test_vm *t = *state;
    pthread_t thread;
    LOAD(t, CODE, watch_program);
    assert_int_equal(pthread_create(&thread, NULL, write_like_a_device, t), 0);
    struct vm_exit exit;
    engine_soft.vcpu_run(t->vcpu[0], &exit);
    __atomic_store_n(&t->ended, true, __ATOMIC_RELAXED); /* the writer's end, too */
    pthread_join(thread, NULL);
    assert_int_equal(exit.kind, VM_EXIT_INTERRUPTED);
    assert_int_equal(word(t, DATA + 16), 20000);
}

static void *run_other(void *context)
{
    struct test_vm *t = context;
    struct vm_exit exit;
    engine_soft.vcpu_run(t->vcpu[1], &exit);
    assert_int_equal(exit.kind, VM_EXIT_INTERRUPTED);
    return NULL;
}

/* Each unit runs as if alone: nothing that the two do to the same bytes is a difference. */
static void test_two_vcpus(void **state)
{
    struct test_vm *t = vm_create(2);
    pthread_t thread;
    LOAD(t, CODE, locked_program);
    LOAD(t, FUNC, spin_program);
    start_at(t, 1, FUNC);
    assert_int_equal(pthread_create(&thread, NULL, run_other, t), 0);
    run_clean(t);
    engine_soft.vcpu_kick(t->vcpu[1]);
    pthread_join(thread, NULL);
    assert_int_equal(word(t, DATA + 0x80), 3000);
    assert_int_equal(word(t, DATA) - word(t, DATA + 4) - 3000, 0);
    vm_destroy(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_finds_what_is_wrong),
        cmocka_unit_test_setup_teardown(test_faults_in_the_middle_are_delivered_once, setup,
                                        teardown),
        cmocka_unit_test(test_finds_wrong_faults),
        cmocka_unit_test(test_code_that_changes),
        cmocka_unit_test(test_finds_stale_code),
        cmocka_unit_test_setup_teardown(test_mixed_program, setup, teardown),
        cmocka_unit_test(test_units_may_stop_early),
        cmocka_unit_test_setup_teardown(test_long_strings, setup, teardown),
        cmocka_unit_test_setup_teardown(test_values_that_differ_each_time, setup, teardown),
        cmocka_unit_test_setup_teardown(test_devices_are_asked_once, setup, teardown),
        cmocka_unit_test_setup_teardown(test_devices_write_meanwhile, setup, teardown),
        cmocka_unit_test(test_two_vcpus),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
