/*
 * Fuzz target: random code in every mode of the CPU for decoder and interpreter; cached blocks
 * compared with single steps.
 *
 * The input is a byte that chooses the mode, more bytes for registers, and code. Each state that
 * the interpreter makes must be one that could be saved (compare.c).
 */
#include "compare.h"

#define CODE      0x10000u
#define STACK     0x18000u
#define TABLES32  0xb000u /* page directory and table */
#define TABLE_PAE 0xd000u
#define HANDLER   0x7800u
#define COUNT     0x8000u

enum mode {
    MODE_REAL,
    MODE_PROTECTED16,
    MODE_PROTECTED32,
    MODE_PAGED32,
    MODE_PAE,
    MODE_VIRTUAL86,
    MODE_COMPATIBLE, /* 32-bit code in long mode */
    MODE_LONG,
    MODE_COUNT
};

struct input {
    uint8_t mode;
    uint8_t flags;
    struct world_header header;
    struct fuzz_input code;
};

enum flag { USER = 1, STEPWISE = 2, TRAP_FLAG = 4, BREAKPOINT = 8, NO_FPU = 16, ALIGNED = 32 };

static struct world reference, subject;

const char *__asan_default_options(void);
const char *__asan_default_options(void)
{
    return "detect_leaks=0"; /* see translate.c */
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc, (void)argv;
    world_create(&reference, ENGINE_CODE_INTERPRET, 0);
    world_create(&subject, ENGINE_CODE_INTERPRET, 0);
    reference.code_in_devices = subject.code_in_devices = true;
    compare_init();
    return 0;
}

/* --- what is not as in 64-bit mode --- */

static uint64_t descriptor(uint32_t base, uint16_t attr)
{
    return 0xffff | (uint64_t)(base & 0xffffff) << 16 | (uint64_t)(attr & 0xff) << 40 |
           0xfull << 48 | (uint64_t)(attr >> 12) << 52 | (uint64_t)(base >> 24) << 56;
}

/* Selectors 8 to 0x38: code and data of level 0, data and code of level 3, 16-bit code, data; TSS
 * at 0x30. */
static void make_descriptors(struct world *w)
{
    static const uint16_t attrs[] = {0xc09b, 0xc093, 0xc0f3, 0xc0fb, 0x009b};

    for (unsigned i = 0; i < ARRAY_COUNT(attrs); i++)
        store_le64(w->ram + WORLD_GDT + 8 + i * 8, descriptor(0, attrs[i]));
    store_le64(w->ram + WORLD_GDT + 0x30, 0x00008b0000000067 | (uint64_t)WORLD_TSS << 16);
    store_le64(w->ram + WORLD_GDT + 0x38, 0x0000890000000067 | (uint64_t)(WORLD_TSS + 0x80) << 16);
    memset(w->ram + WORLD_TSS, 0, 0x200);
    store_le32(w->ram + WORLD_TSS + 4, WORLD_KSTACK);
    store_le32(w->ram + WORLD_TSS + 8, 0x10);
    store_le16(w->ram + WORLD_TSS + 102, 0x68); /* I/O map behind the limit */
}

/*
 * incl %ss:COUNT; cmpl $8, %ss:COUNT; jae 1f; incl (%esp); iret; 1: hlt. Behind virtual-8086 mode
 * only CS and SS are loaded.
 */
static void make_handlers32(struct world *w)
{
    static const uint8_t handler[] = {0x83, 0xc4, 0x04, /* with an error code: addl $4, %esp */
                                      0x36, 0xff, 0x05, 0x00, 0x80, 0x00, 0x00, /* without: + 3 */
                                      0x36, 0x83, 0x3d, 0x00, 0x80, 0x00, 0x00, 0x08, /* cmpl */
                                      0x73, 0x04, 0xff, 0x04, 0x24, 0xcf, 0xf4};

    memcpy(w->ram + HANDLER, handler, sizeof handler);
    for (unsigned i = 0; i < 256; i++) {
        bool error = i == 8 || (i >= 10 && i <= 14) || i == 17 || i == 21;
        uint64_t at = HANDLER + (error ? 0 : 3);
        store_le64(w->ram + WORLD_IDT + i * 8,
                   at | 8 << 16 | (i == 3 || i >= 0x80 ? 0xeeull : 0x8eull) << 40);
    }
    store_le64(w->ram + WORLD_IDT + 0x81 * 8, 0x38 << 16 | 0xe5ull << 40); /* a task gate */
}

/* The same of 16 bits, by the table at 0. */
static void make_handlers16(struct world *w)
{
    static const uint8_t handler[] = {0x2e, 0xff, 0x06, 0x80, 0x00,       /* incw cs:0x80 */
                                      0x2e, 0x83, 0x3e, 0x80, 0x00, 0x08, /* cmpw $8 */
                                      0x73, 0x06, 0x55, 0x89, 0xe5, /* jae; push bp; mov bp, sp */
                                      0xff, 0x46, 0x02, 0x5d, 0xcf, 0xf4};

    memcpy(w->ram + HANDLER, handler, sizeof handler);
    for (unsigned i = 0; i < 256; i++)
        store_le32(w->ram + i * 4, (HANDLER >> 4) << 16);
}

static void make_tables32(struct world *w)
{
    uint32_t bits = X86_PTE_P | X86_PTE_W | X86_PTE_A | X86_PTE_D | X86_PTE_U;

    store_le32(w->ram + TABLES32, (TABLES32 + 0x1000) | bits);
    store_le32(w->ram + TABLES32 + 4, X86_PTE_PS | bits);
    for (unsigned i = 0; i < 32; i++)
        store_le32(w->ram + TABLES32 + 0x1000 + i * 4, i << PAGE_SHIFT | bits);
    store_le32(w->ram + TABLES32 + 0x1000 + 0x1c * 4, 0x1c000 | (bits & ~X86_PTE_W));
    store_le32(w->ram + TABLES32 + 0x1000 + 0x1d * 4, 0);
    store_le64(w->ram + TABLE_PAE, (TABLE_PAE + 0x1000) | X86_PTE_P);
    store_le64(w->ram + TABLE_PAE + 0x1000, X86_PTE_PS | bits);
}

/* --- registers --- */

static struct x86_segment segment(uint16_t selector, uint16_t attr)
{
    return (struct x86_segment) {.limit = UINT32_MAX, .selector = selector, .attr = attr};
}

static void set_flat(struct x86_state *s, const struct input *in, bool code16)
{
    bool user = in->flags & USER;
    uint16_t dpl = user ? X86_SEG_DPL : 0;

    for (unsigned i = 0; i < 6; i++)
        s->seg[i] = segment(user ? 0x1b : 0x10, (uint16_t)(0xc093 | dpl));
    s->seg[X86_CS] = segment(code16 ? 0x28
                             : user ? 0x23
                                    : 8,
                             (uint16_t)((code16 ? 0x809b : 0xc09b) | dpl));
    s->rip = CODE;
    s->gpr[X86_RSP] = STACK;
}

/* Real mode and virtual-8086 mode: CS:IP = 0x1000:0. */
static void set_real(struct x86_state *s, bool virtual86)
{
    for (unsigned i = 0; i < 6; i++) {
        uint16_t selector = i == X86_CS ? 0x1000 : 0x1400;
        s->seg[i] = (struct x86_segment) {.base = selector * 16u,
                                          .limit = 0xffff,
                                          .selector = selector,
                                          .attr = virtual86 ? 0xf3 : 0x93};
    }
    s->rip = 0;
    s->gpr[X86_RSP] = 0x4000;
}

static void set_paging(struct x86_state *s, const struct input *in)
{
    s->cr0 |= X86_CR0_PG;
    s->cr4 |= X86_CR4_PSE;
    s->cr3 = TABLES32;
    if (in->mode != MODE_PAE)
        return;
    s->cr4 |= X86_CR4_PAE;
    s->cr3 = TABLE_PAE;
    s->pdptr[0] = (TABLE_PAE + 0x1000) | X86_PTE_P;
}

static void leave_long_mode(struct x86_state *s)
{
    s->efer &= ~(X86_EFER_LME | X86_EFER_LMA | X86_EFER_NXE);
    s->cr0 &= ~X86_CR0_PG;
    s->cr3 = 0;
    s->cr4 &= ~X86_CR4_PAE;
    for (unsigned i = 0; i < 16; i++)
        s->gpr[i] = i < 8 ? (uint32_t)s->gpr[i] & 0x1ffff : 0;
    s->kernel_gs_base = 0;
    s->idtr.limit = 0x7ff;
    s->tr = (struct x86_segment) {.base = WORLD_TSS, .limit = 0x67, .selector = 0x30, .attr = 0x8b};
}

static void set_mode(struct world *w, struct x86_state *s, const struct input *in)
{
    if (in->mode == MODE_LONG)
        return;
    if (in->mode == MODE_COMPATIBLE) {
        s->seg[X86_CS].attr = (uint16_t)((s->seg[X86_CS].attr & ~X86_SEG_L) | X86_SEG_DB);
        for (unsigned i = 0; i < 6; i++)
            s->seg[i].base = 0;
        return;
    }
    leave_long_mode(s);
    make_descriptors(w);
    if (in->mode == MODE_REAL) {
        s->cr0 = X86_CR0_ET | X86_CR0_NE;
        s->idtr = (struct x86_table_register) {0, 0x3ff};
        make_handlers16(w);
        set_real(s, false);
        return;
    }
    make_handlers32(w);
    make_tables32(w);
    set_flat(s, in, in->mode == MODE_PROTECTED16);
    if (in->mode >= MODE_PAGED32)
        set_paging(s, in);
    if (in->mode == MODE_VIRTUAL86) {
        set_real(s, true);
        s->rflags |= X86_VM;
        s->cr4 |= in->flags & USER ? X86_CR4_VME : 0;
    }
}

static void set_flags(struct x86_state *s, const struct input *in)
{
    s->rflags |= in->flags & TRAP_FLAG ? X86_TF : 0;
    s->cr0 |= in->flags & NO_FPU ? X86_CR0_TS | X86_CR0_EM : 0;
    if (in->flags & ALIGNED) {
        s->cr0 |= X86_CR0_AM;
        s->rflags |= X86_AC;
    }
    if (in->flags & BREAKPOINT) {
        s->dr[0] = CODE + 4;
        s->dr[1] = 0x14010;
        s->dr[2] = 0x60;
        s->dr7 = 0x400 | 0x3f | 0x3ull << 20 | 0x2ull << 24;
        s->cr4 |= X86_CR4_DE;
    }
}

static void fill(struct world *w, const void *input)
{
    const struct input *in = input;
    struct world_header header = in->header;
    struct x86_state s;

    header.flags &= WORLD_NO_FPU | WORLD_UNMASKED | 3 << WORLD_HOT_SHIFT | 7 << WORLD_OFFSET_SHIFT;
    header.flags |= in->flags & USER ? 0 : WORLD_KERNEL;
    if (in->mode != MODE_LONG)
        header.flags &= (uint16_t) ~(7 << WORLD_OFFSET_SHIFT);
    world_reset(w, &header, &in->code);
    fuzz_must(engine_soft.vcpu_get_state(w->vcpu, &s) == 0);
    set_mode(w, &s, in);
    set_flags(&s, in);
    const char *wrong = x86_state_validate(&s);
    if (wrong)
        fuzz_fail("set-up: mode %u: %s", in->mode, wrong);
    fuzz_must(engine_soft.vcpu_set_state(w->vcpu, &s, NULL) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input in = {.code = {data, size}};

    in.mode = fuzz_u8(&in.code) % MODE_COUNT;
    in.flags = fuzz_u8(&in.code);
    world_read_header(&in.code, &in.header);
    struct compare compare = {.reference = &reference,
                              .subject = &subject,
                              .fill = fill,
                              .input = &in,
                              .stepwise = in.flags & STEPWISE};
    compare_run(&compare);
    return 0;
}
