/*
 * The small guest of the fuzz targets: see world.h. One thread.
 *
 * Everything outside the CPU is a function of the input: time stands still, random numbers and what
 * devices answer come from counts, MSRs of the local APIC and of kvmclock do not exist.
 */
#include "world.h"

#include <sys/mman.h>

#include <Zydis/Zydis.h>

#include "x86/mem.h"

/* The handlers' variables, as the assembler text below has them. */
#define COUNT      (WORLD_VARIABLES + 0x00)
#define HALF       (WORLD_VARIABLES + 0x08)
#define CODE_BASE  (WORLD_VARIABLES + 0x10)
#define SCRIPT     (WORLD_VARIABLES + 0x100)
#define SYSCALL    0x100 /* from WORLD_HANDLERS */
#define WITH_ERROR 0x180

#define DEVICE 0x10000000u /* guest-physical, not RAM */

#define PROGRAM(name, text)                                                                        \
    __asm__(".pushsection .rodata\n" #name ":\n" text "\n" #name "_end:\n.popsection\n");          \
    extern const uint8_t name[], name##_end[];

/*
 * Exceptions. Each counts, and the 9th halts; one with a script entry (a page table entry that
 * holds its own index in bits 52-57) stores it and invalidates the page in both halves.
 */
PROGRAM(world_handler,
        "pushq %rax\npushq %rcx\npushq %rdx\n"
        "movl 0x8000, %ecx\nincl 0x8000\ncmpl $8, %ecx\njae 9f\n"
        "movq 0x8100(,%rcx,8), %rax\ntestq %rax, %rax\njz 1f\n"
        "movq %rax, %rdx\nshrq $52, %rdx\nandl $0x3f, %edx\nmovq %rax, 0x1ff000(,%rdx,8)\n"
        "shll $12, %edx\ninvlpg (%rdx)\n"
        "movq $0xffff800000000000, %rax\ninvlpg (%rax,%rdx)\n"
        "1: movq 24(%rsp), %rax\naddl $16, %eax\nandl $0x1ff0, %eax\naddq 0x8010, %rax\n"
        "movq %rax, 24(%rsp)\nandl $0xfffffeff, 40(%rsp)\n"
        "popq %rdx\npopq %rcx\npopq %rax\niretq\n"
        "9: cli\nhlt\njmp 9b")
PROGRAM(world_syscall, "incl 0x8000\ncmpl $8, 0x8000\njae 9f\nsysretq\n9: cli\nhlt\njmp 9b")
/* In front of it: the error code goes. */
PROGRAM(world_with_error, "addq $8, %rsp\njmp .-0x184")

/* --- the world around the CPU --- */

static struct world *world_of(void *vcpu)
{
    return ((struct engine_vcpu *)vcpu)->vm->config.context;
}

/* The next answer of a device; what was asked is remembered. */
static uint64_t device(struct world *w, uint64_t address, uint64_t what)
{
    uint64_t seed = w->log ^ address ^ what << 32;
    w->accesses++;
    w->log = fuzz_mix(&seed);
    return w->log;
}

/* How often a device is read to fetch code is nobody's business: there, reads change nothing. */
static uint64_t mmio_read(void *context, gpa_t address, unsigned size)
{
    uint64_t seed = address.v;
    if (world_of(context)->code_in_devices)
        return fuzz_mix(&seed) & size_mask(size);
    return device(world_of(context), address.v, size) & size_mask(size);
}

static void mmio_write(void *context, gpa_t address, unsigned size, uint64_t value)
{
    device(world_of(context), address.v ^ value, 0x100 + size);
}

static uint32_t pio_read(void *context, uint16_t port, unsigned size)
{
    return (uint32_t)(device(world_of(context), port, 0x200 + size) & size_mask(size));
}

static void pio_write(void *context, uint16_t port, unsigned size, uint32_t value)
{
    device(world_of(context), port ^ (uint64_t)value << 20, 0x300 + size);
}

static uint64_t tsc(void *context)
{
    (void)context;
    return 1000000000;
}

static bool msr_read(void *context, uint32_t index, uint64_t *value)
{
    (void)context, (void)index;
    *value = 0;
    return false;
}

static bool msr_write(void *context, uint32_t index, uint64_t value)
{
    (void)context, (void)index, (void)value;
    return false;
}

static uint64_t cr8_read(void *context)
{
    return world_of(context)->cr8;
}

static void cr8_write(void *context, uint64_t value)
{
    world_of(context)->cr8 = value;
}

static bool random_number(void *context, uint64_t *value)
{
    *value = device(world_of(context), 0, 0x400);
    return true;
}

/* --- creation --- */

static void map_ram(struct world *w)
{
    uint8_t *around = mmap(NULL, WORLD_RAM + 2 * PAGE_SIZE, PROT_NONE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    fuzz_must(around != MAP_FAILED);
    w->ram = around + PAGE_SIZE;
    fuzz_must(mprotect(w->ram, WORLD_RAM, PROT_READ | PROT_WRITE) == 0);
}

static const struct x86_cpuid_table *cpuid(void)
{
    struct x86_cpuid_config config = {.brand = "fuzz", .vcpu_count = 1, .tsc_hz = 1000000000};
    struct x86_cpuid_table *table = calloc(1, sizeof *table); /* outlives the VM */

    fuzz_must(table);
    engine_soft.cpu_features(&config.features);
    x86_cpuid_build(table, &config);
    return table;
}

static void own_ops(struct world *w)
{
    w->ops = soft_x86_ops;
    w->ops.mmio_read = mmio_read;
    w->ops.mmio_write = mmio_write;
    w->ops.pio_read = pio_read;
    w->ops.pio_write = pio_write;
    w->ops.tsc = tsc;
    w->ops.tsc_changed = NULL;
    w->ops.yield = NULL;
    w->ops.msr_read = msr_read;
    w->ops.msr_write = msr_write;
    w->ops.cr8_read = cr8_read;
    w->ops.cr8_write = cr8_write;
    w->ops.random = random_number;
    w->vcpu->cpu.ops = &w->ops;
}

void world_create(struct world *w, enum engine_code_mode mode, uint64_t cache_size)
{
    static const struct engine_callbacks none;
    struct engine_vm_config config = {.vcpu_count = 1,
                                      .cpuid = cpuid(),
                                      .code = {.mode = mode, .cache_size = cache_size},
                                      .callbacks = &none,
                                      .context = w};
    struct engine_slot slot = {.size = WORLD_RAM,
                               .protection = MEM_PROT_READ | MEM_PROT_WRITE | MEM_PROT_EXEC};

    memset(w, 0, sizeof *w);
    map_ram(w);
    slot.hva = w->ram;
    fuzz_must(engine_soft.vm_create(&config, &w->vm, NULL) == 0);
    fuzz_must(engine_soft.memory_map(w->vm, &slot) == 0);
    fuzz_must(engine_soft.vcpu_create(w->vm, 0, &w->vcpu, NULL) == 0);
    fuzz_must(mode != ENGINE_CODE_TRANSLATE || w->vcpu->translator);
    own_ops(w);
    exclusive_enter(&w->vm->exclusive, &w->vcpu->member);
}

/* --- memory --- */

static void put(struct world *w, uint64_t at, uint64_t value)
{
    store_le64(w->ram + at, value);
}

static void put_program(struct world *w, uint64_t at, const uint8_t *start, const uint8_t *end)
{
    memcpy(w->ram + at, start, (size_t)(end - start));
}

#define A  (X86_PTE_P | X86_PTE_A) /* accessed before: a group's probe may set that ahead */
#define RW (A | X86_PTE_W | X86_PTE_D)
#define U  X86_PTE_U

struct mapping {
    uint32_t page, frame; /* numbers */
    uint64_t bits;        /* in user mode; kernel mode takes U away below page 0x26 */
};

static const struct mapping mappings[] = {
    {0x05, 0x05, RW},
    {0x06, 0x06, RW},
    {0x07, 0x07, RW},
    {0x08, 0x08, RW},
    {0x09, 0x09, RW},
    {0x1ff, 0x04, RW},
    {0x10, 0x10, RW | U}, /* the code: not neighbours in RAM */
    {0x11, 0x13, RW | U},
    {0x12, 0x12, RW | U},
    {0x20, 0x14, RW | U}, /* data: the same */
    {0x21, 0x16, RW | U},
    {0x22, 0x15, A | U},
    {0x24, 0x17, RW},
    {0x25, DEVICE >> PAGE_SHIFT, RW | U | X86_PTE_NX},
    {0x26, 0x10, RW | U},                         /* the first page of code again */
    {0x27, 0x14, RW | U},                         /* the first page of data again */
    {0x28, 0x18, A | X86_PTE_W | U | X86_PTE_NX}, /* clean */
    {0x30, 0x19, RW | U | X86_PTE_NX},            /* stack */
    {0x31, 0x1a, RW | U},
};

/* What a script can make of a page: {page, frame, bits}. Number 0 does nothing. */
static const struct mapping changes[] = {
    {0, 0, 0},
    {0x10, 0x12, RW | U}, /* other code there */
    {0x11, 0x10, RW | U},
    {0x12, 0x14, RW | U},
    {0x10, 0x10, A | U},
    {0x10, 0x10, RW | U},
    {0x11, 0x13, RW | U | X86_PTE_NX},
    {0x11, 0, 0},
    {0x20, 0x16, RW | U},
    {0x20, 0x14, A | U},
    {0x20, 0x10, RW | U}, /* data that is code */
    {0x21, 0, 0},
    {0x21, 0x14, RW | U},
    {0x22, 0x15, RW | U},
    {0x23, 0x15, RW | U},
    {0x26, 0x13, RW | U},
    {0x28, 0x18, RW | U},
    {0x21, DEVICE >> PAGE_SHIFT, RW | U | X86_PTE_NX},
    {0x30, 0x19, A | U},
    {0x20, 0x14, RW},
};

static uint64_t entry_of(const struct mapping *m, const struct world_header *header)
{
    uint64_t bits = m->bits;

    if ((header->flags & WORLD_KERNEL) && m->page < 0x26)
        bits &= ~U;
    if ((header->flags & WORLD_KERNEL) && m->page >= 0x30)
        bits &= ~U;
    if ((header->flags & WORLD_CODE_READONLY) && m->page >= 0x10 && m->page < 0x20)
        bits &= ~X86_PTE_W;
    return (uint64_t)m->frame << PAGE_SHIFT | bits;
}

static void make_tables(struct world *w, const struct world_header *header)
{
    for (unsigned level = 0; level < 3; level++)
        put(w, WORLD_TABLES + level * 0x1000, (WORLD_TABLES + (level + 1) * 0x1000) | RW | U);
    put(w, WORLD_TABLES + 256 * 8, (WORLD_TABLES + 0x1000) | RW | U); /* WORLD_HIGH */
    for (unsigned i = 0; i < ARRAY_COUNT(mappings); i++)
        put(w, WORLD_TABLES + 0x3000 + mappings[i].page * 8, entry_of(&mappings[i], header));
}

static void make_descriptors(struct world *w)
{
    static const uint64_t gdt[] = {0,
                                   0x00af9b000000ffff,
                                   0x00cf93000000ffff,
                                   0x00cff3000000ffff,
                                   0x00affb000000ffff,
                                   0x00cffb000000ffff,
                                   0x00008b0000000067 | (uint64_t)(WORLD_TSS & 0xffff) << 16,
                                   0};

    memcpy(w->ram + WORLD_GDT, gdt, sizeof gdt);
    put(w, WORLD_TSS + 4, WORLD_KSTACK);
    put(w, WORLD_TSS + 36, WORLD_KSTACK - 0x800); /* IST 1 */
    for (unsigned i = 0; i < 256; i++) {
        bool error = i == 8 || (i >= 10 && i <= 14) || i == 17 || i == 21;
        bool open = i == 3 || i == 4 || i >= 0x80;
        uint64_t at = WORLD_HANDLERS + (error ? WITH_ERROR : 0);
        put(w, WORLD_IDT + i * 16ull,
            (at & 0xffff) | 8 << 16 | 1ull << 32 | (open ? 0xeeull : 0x8eull) << 40);
        put(w, WORLD_IDT + i * 16ull + 8, 0);
    }
    put_program(w, WORLD_HANDLERS, world_handler, world_handler_end);
    put_program(w, WORLD_HANDLERS + SYSCALL, world_syscall, world_syscall_end);
    put_program(w, WORLD_HANDLERS + WITH_ERROR, world_with_error, world_with_error_end);
}

static uint64_t half(const struct world_header *header)
{
    return header->flags & WORLD_HIGH_HALF ? WORLD_HIGH : 0;
}

static void make_script(struct world *w, const struct world_header *header)
{
    put(w, HALF, half(header));
    put(w, CODE_BASE, half(header) + WORLD_CODE);
    for (unsigned i = 0; i < SCRIPT_MAX; i++) {
        const struct mapping *m = &changes[header->script[i] % ARRAY_COUNT(changes)];
        if (m->page)
            put(w, SCRIPT + i * 8, entry_of(m, header) | (uint64_t)m->page << 52);
    }
}

/* Pointers to code and data, small numbers, floating point numbers. */
static void make_data(struct world *w, const struct world_header *header)
{
    static const uint8_t frames[] = {0x14, 0x15, 0x16, 0x17, 0x18};
    static const double numbers[] = {1.0, -2.5, 1e300, 1e-310, 0.1, 3.0, 65536.0, -0.0};

    for (unsigned f = 0; f < ARRAY_COUNT(frames); f++) {
        for (unsigned i = 0; i < 512; i++) {
            uint64_t value = i + f;
            if (i % 4 == 1)
                value = half(header) + WORLD_CODE + (i * 16 & 0x1ff0);
            else if (i % 4 == 2)
                value = half(header) + WORLD_DATA + (i * 40 & 0x1fff);
            else if (i % 4 == 3)
                memcpy(&value, &numbers[i / 4 % 8], 8);
            put(w, frames[f] * 0x1000ull + i * 8, value);
        }
    }
    for (unsigned i = 0; i < 512; i++)
        put(w, 0x19000 + i * 8, half(header) + WORLD_CODE + (i * 32 & 0x1fe0));
}

static unsigned code_offset(const struct world_header *header)
{
    static const uint16_t offsets[8] = {0, 0x7c0, 0xf80, 0xff0, 0xffd, 0x1000, 0x1fc0, 0xfe0};
    return offsets[header->flags >> WORLD_OFFSET_SHIFT & 7];
}

static void put_code(struct world *w, const struct world_header *header,
                     const struct fuzz_input *code)
{
    static const uint16_t frame[3] = {0x10, 0x13, 0x12};
    unsigned at = code_offset(header);

    /* HLT: ends it, or faults. */
    for (unsigned i = 0; i < ARRAY_COUNT(frame); i++)
        memset(w->ram + frame[i] * PAGE_SIZE, 0xf4, PAGE_SIZE);
    for (size_t done = 0; done < code->left && at < CODE_SIZE;) {
        size_t part = MIN(code->left - done, PAGE_SIZE - at % PAGE_SIZE);
        memcpy(w->ram + frame[at / PAGE_SIZE] * PAGE_SIZE + at % PAGE_SIZE, code->data + done,
               part);
        done += part;
        at += (unsigned)part;
    }
}

/* --- registers --- */

static uint64_t gpr_value(const struct world_header *header, unsigned gpr, uint64_t *seed)
{
    uint8_t choice = header->gpr[gpr];
    uint64_t more = choice >> 4, base = half(header), random = fuzz_mix(seed);

    if (gpr == X86_RSP && choice < 0xe0)
        return base + WORLD_STACK + 0x400 + (choice & 0x7f) * 8;
    switch (choice & 15) {
    case 0:
        return more;
    case 1:
        return ~more;
    case 2:
        return base + WORLD_DATA + more * 8;
    case 3:
        return base + WORLD_DATA + 0xff0 + more;
    case 4:
        return base + WORLD_DATA + 0x1ff0 + more;
    case 5:
        return base + WORLD_DATA + more * 0x1000;
    case 6:
        return base + WORLD_CODE + more * 0x40;
    case 7:
        return base + WORLD_DATA + 0x6000 + more * 0x40;
    case 8:
        return base + WORLD_DATA + 0x8000 + more;
    case 9:
        return base + WORLD_STACK + more * 0x100;
    case 10:
        return base + WORLD_CODE + 0xff8 + more;
    case 11:
        return 0x7ffffffffffe + more;
    case 12:
        return random >> more * 4;
    case 13:
        return base + WORLD_DATA + 0x5000 + more * 4;
    case 14:
        return more * 0x1000;
    default:
        return random;
    }
}

static void set_control(struct x86_state *s, const struct world_header *header)
{
    uint16_t flags = header->flags;

    s->cr0 = X86_CR0_PE | X86_CR0_PG | X86_CR0_WP | X86_CR0_NE | X86_CR0_MP | X86_CR0_ET;
    s->cr4 = X86_CR4_PAE | X86_CR4_OSFXSR | X86_CR4_OSXMMEXCPT | X86_CR4_OSXSAVE |
             X86_CR4_FSGSBASE | X86_CR4_PGE;
    s->cr0 |= flags & WORLD_ALIGNED ? X86_CR0_AM : 0;
    s->cr0 |= flags & WORLD_NO_FPU ? X86_CR0_TS : 0;
    s->cr4 |= flags & WORLD_SMAP ? X86_CR4_SMAP | X86_CR4_SMEP : 0;
    s->cr3 = WORLD_TABLES;
    s->xcr0 = X86_XCR0_X87 | X86_XCR0_SSE | X86_XCR0_AVX;
    s->efer = X86_EFER_LME | X86_EFER_LMA | X86_EFER_NXE | X86_EFER_SCE;
    s->star = 0x13ull << 48 | 8ull << 32;
    s->lstar = WORLD_HANDLERS + SYSCALL;
    s->sfmask = X86_TF;
    s->kernel_gs_base = half(header) + WORLD_DATA + 0x80;
    s->gdtr = (struct x86_table_register) {WORLD_GDT, 0x3f};
    s->idtr = (struct x86_table_register) {WORLD_IDT, 0xfff};
    s->tr = (struct x86_segment) {.base = WORLD_TSS, .limit = 0x67, .selector = 0x30, .attr = 0x8b};
}

static void set_segments(struct x86_state *s, const struct world_header *header)
{
    bool kernel = header->flags & WORLD_KERNEL;
    uint16_t dpl = kernel ? 0 : X86_SEG_DPL;

    for (unsigned i = 0; i < 6; i++)
        s->seg[i] = (struct x86_segment) {.limit = UINT32_MAX,
                                          .selector = kernel ? 0x10 : 0x1b,
                                          .attr = (uint16_t)(0xc093 | dpl)};
    s->seg[X86_CS].selector = kernel ? 8 : 0x23;
    s->seg[X86_CS].attr = (uint16_t)(0xa09b | dpl);
    s->seg[X86_FS].base = half(header) + WORLD_DATA + 0x123;
    s->seg[X86_GS].base = half(header) + WORLD_DATA + 0x1000;
}

static void make_state(struct world *w, const struct world_header *header)
{
    struct x86_state s;
    uint64_t seed = header->seed;

    x86_state_reset(&s, 0, true);
    set_control(&s, header);
    set_segments(&s, header);
    for (unsigned i = 0; i < 16; i++)
        s.gpr[i] = gpr_value(header, i, &seed);
    for (unsigned i = 0; i < 16; i++) {
        for (unsigned k = 0; k < 32; k += 8)
            store_le64(&s.fpu.ymm[i][k], fuzz_mix(&seed));
    }
    s.fpu.fcw = header->flags & WORLD_UNMASKED ? 0x360 : 0x37f;
    s.fpu.mxcsr = header->flags & WORLD_UNMASKED ? 0x1f80 & ~(header->seed & 0x1f80) : 0x1f80;
    s.rip = half(header) + WORLD_CODE + code_offset(header);
    s.rflags = X86_FIXED | (header->rflags & (X86_STATUS_FLAGS | X86_DF | X86_TF | X86_IOPL));
    s.rflags |= header->flags & WORLD_ALIGNED ? X86_AC : 0;
    s.mp_state = X86_MP_RUNNABLE;
    fuzz_must(engine_soft.vcpu_set_state(w->vcpu, &s, NULL) == 0);
}

/* --- one input --- */

void world_read_header(struct fuzz_input *in, struct world_header *header)
{
    header->flags = fuzz_u16(in);
    header->rflags = fuzz_u16(in);
    fuzz_take(in, header->gpr, sizeof header->gpr);
    fuzz_take(in, header->script, sizeof header->script);
    header->seed = fuzz_u64(in);
}

/* The engine forgets all code. */
static void forget_code(struct world *w)
{
    struct engine_vcpu *vcpu = w->vcpu;
    struct soft_slot *slot = &w->vm->slot[0];

    soft_take_posts(vcpu);
    block_cache_clear(&vcpu->cache);
    memset(vcpu->cache.heat, 0, sizeof vcpu->cache.heat);
    memset((void *)slot->code, 0, WORLD_RAM / PAGE_SIZE * sizeof *slot->code);
    memset((void *)slot->writer, 0, WORLD_RAM / PAGE_SIZE * sizeof *slot->writer);
    vcpu->current = NULL;
    atomic_store(&vcpu->attention, 0);
}

void world_reset(struct world *w, const struct world_header *header, const struct fuzz_input *code)
{
    memset(w->ram, 0, WORLD_RAM);
    make_tables(w, header);
    make_descriptors(w);
    make_script(w, header);
    make_data(w, header);
    put_code(w, header, code);
    forget_code(w);
    make_state(w, header);
    w->accesses = w->log = w->cr8 = 0;
    w->vcpu->cache.hot = 1u << (header->flags >> WORLD_HOT_SHIFT & 3);
}

/* --- running --- */

void world_step(struct world *w)
{
    struct x86_cpu *cpu = &w->vcpu->cpu;
    enum x86_result result = x86_step(cpu);

    cpu->end_block = false;
    while (w->vcpu->exclusive_depth)
        soft_x86_ops.exclusive_end(w->vcpu);
    if (result == X86_FAULT) {
        cpu->s.interrupt_shadow = cpu->s.shadow_is_mov_ss = false;
        result = x86_deliver(cpu, &cpu->fault);
        cpu->end_block = false;
    }
    if (result != X86_OK)
        cpu->s.mp_state = X86_MP_SHUTDOWN;
}

void world_slice(struct world *w, unsigned attention)
{
    atomic_store(&w->vcpu->attention, attention);
    soft_take_posts(w->vcpu);
    if (!soft_run_slice(w->vcpu))
        w->vcpu->cpu.s.mp_state = X86_MP_SHUTDOWN;
}

/* --- comparing --- */

const char *world_difference(const struct world *a, const struct world *b, bool memory)
{
    static char text[64];
    const char *what;

    if (!x86_state_equal(&a->vcpu->cpu.s, &b->vcpu->cpu.s, &what))
        return what;
    if (a->accesses != b->accesses || a->log != b->log)
        return "accesses to devices";
    if (!memory || memcmp(a->ram, b->ram, WORLD_RAM) == 0)
        return NULL;
    unsigned at = 0;
    while (a->ram[at] == b->ram[at])
        at++;
    snprintf(text, sizeof text, "memory at 0x%x: 0x%02x, 0x%02x", at, a->ram[at], b->ram[at]);
    return text;
}

void world_print(const struct world *w, const char *name)
{
    static const char *const names[16] = {"rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
                                          "r8",  "r9",  "r10", "r11", "r12", "r13", "r14", "r15"};
    const struct x86_state *s = &w->vcpu->cpu.s;

    fprintf(stderr, "%s: rip %llx rflags %llx cr2 %llx cr3 %llx cs %x state %u, %llu accesses\n",
            name, (unsigned long long)s->rip, (unsigned long long)s->rflags,
            (unsigned long long)s->cr2, (unsigned long long)s->cr3, s->seg[X86_CS].selector,
            s->mp_state, (unsigned long long)w->accesses);
    if (s->gpr[X86_RSP] + 8 <= WORLD_KSTACK)
        fprintf(stderr, "  at rsp: %llx\n",
                (unsigned long long)load_le64(w->ram + s->gpr[X86_RSP]));
    for (unsigned i = 0; i < 16; i++)
        fprintf(stderr, "%5s %016llx%s", names[i], (unsigned long long)s->gpr[i],
                i % 4 == 3 ? "\n" : "");
}

/* By the tables in their first state: good enough to read. */
void world_print_insn(const struct world *w)
{
    const struct x86_cpu *cpu = &w->vcpu->cpu;
    uint64_t la = cpu->seg_base[X86_CS] + cpu->s.rip, page = la >> PAGE_SHIFT & 0x1ff;
    uint64_t entry = load_le64(w->ram + WORLD_TABLES + 0x3000 + page * 8);
    uint64_t at = (entry & 0xfffff000) | (la & ~PAGE_MASK);
    ZydisDisassembledInstruction text = {0};

    if ((entry & X86_PTE_P) && at < WORLD_RAM - 15)
        ZydisDisassembleIntel(cpu->code_size == 8 ? ZYDIS_MACHINE_MODE_LONG_64
                                                  : ZYDIS_MACHINE_MODE_LEGACY_32,
                              cpu->s.rip, w->ram + at, 15, &text);
    fprintf(stderr, "cpl %u %16llx  %s\n", cpu->cpl, (unsigned long long)cpu->s.rip, text.text);
}
