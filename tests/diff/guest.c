/*
 * The guest that emulated.c and translated.c run sequences in: CPL 3 in 64-bit (or compatibility)
 * mode, in an address space made like the native one. Page tables and pages lie in one buffer.
 */
#include <cpuid.h>
#include <string.h>

#include "base/bits.h"

#include "diff.h"

#define GPA_PML4   0x0000
#define GPA_PDPT   0x1000
#define GPA_PD     0x2000
#define GPA_PT     0x3000 /* of DATA_BASE and STACK_BASE */
#define GPA_PT2    0x4000 /* of CODE_BASE */
#define GPA_MEMORY 0x5000 /* MEMORY_SIZE bytes in the order of struct diff_end */
#define GPA_CODE   DIFF_GPA_CODE

void diff_guest_features(struct x86_features *f)
{
    unsigned a, b, c, d;

    __cpuid(1, a, b, c, d);
    f->word[X86_WORD_1_EDX] = d;
    f->word[X86_WORD_1_ECX] = c;
    __cpuid_count(7, 0, a, b, c, d);
    f->word[X86_WORD_7_EBX] = b;
    f->word[X86_WORD_7_ECX] = c;
    f->word[X86_WORD_7_EDX] = d;
    __cpuid(0x80000001, a, b, c, d);
    f->word[X86_WORD_80000001_EDX] = d;
    f->word[X86_WORD_80000001_ECX] = c;
    __cpuid_count(0xd, 1, a, b, c, d);
    f->word[X86_WORD_D_1_EAX] = a;
}

static void page_entry(uint8_t *ram, uint64_t table, uint64_t index, uint64_t value)
{
    store_le64(ram + table + index * 8, value);
}

#define TABLE (X86_PTE_P | X86_PTE_W | X86_PTE_U | X86_PTE_A)
#define RW    (TABLE | X86_PTE_D | X86_PTE_NX)
#define RO    (X86_PTE_P | X86_PTE_U | X86_PTE_A | X86_PTE_NX)
#define RX    (X86_PTE_P | X86_PTE_U | X86_PTE_A)

/* Maps `size` bytes and returns the physical address behind them. */
static uint64_t map(uint8_t *ram, uint64_t la, uint64_t size, uint64_t gpa, uint64_t bits)
{
    uint64_t table = la >= CODE_BASE ? GPA_PT2 : GPA_PT;
    for (uint64_t i = 0; i < size; i += 4096)
        page_entry(ram, table, (la + i) >> 12 & 511, (gpa + i) | bits);
    return gpa + size;
}

void diff_guest_build(uint8_t *ram)
{
    uint64_t gpa = GPA_MEMORY;

    page_entry(ram, GPA_PML4, 0, GPA_PDPT | TABLE);
    page_entry(ram, GPA_PDPT, 0, GPA_PD | TABLE);
    page_entry(ram, GPA_PD, DATA_BASE >> 21, GPA_PT | TABLE);
    page_entry(ram, GPA_PD, CODE_BASE >> 21, GPA_PT2 | TABLE);
    gpa = map(ram, DATA_BASE, DATA_RW, gpa, RW);
    gpa = map(ram, DATA_BASE + DATA_RW, DATA_RO, gpa, RO);
    gpa = map(ram, DATA_BASE + DATA_RW + DATA_RO + DATA_HOLE, DATA_TAIL, gpa, RW);
    gpa = map(ram, STACK_BASE, STACK_SIZE, gpa, RW);
    map(ram, CODE_BASE, CODE_SIZE, GPA_CODE, RX);
}

static struct x86_segment flat(uint16_t selector, uint16_t attr)
{
    return (struct x86_segment) {.limit = 0xffffffff, .selector = selector, .attr = attr};
}

static void user_mode(struct x86_state *s)
{
    s->cr0 =
        X86_CR0_PE | X86_CR0_MP | X86_CR0_ET | X86_CR0_NE | X86_CR0_WP | X86_CR0_AM | X86_CR0_PG;
    s->cr2 = 0;
    s->cr3 = GPA_PML4;
    s->cr4 = X86_CR4_DE | X86_CR4_PAE | X86_CR4_PGE | X86_CR4_OSFXSR | X86_CR4_OSXMMEXCPT |
             X86_CR4_OSXSAVE | X86_CR4_FSGSBASE;
    s->efer = X86_EFER_SCE | X86_EFER_LME | X86_EFER_LMA | X86_EFER_NXE;
    s->xcr0 = X86_XCR0_X87 | X86_XCR0_SSE | X86_XCR0_AVX;
    s->dr6 = 0xffff0ff0;
    /* Linux's selectors; 64-bit code, DPL 3 everywhere. */
    s->seg[X86_CS] = flat(0x33, X86_SEG_P | X86_SEG_DPL | X86_SEG_S | 0xb | X86_SEG_L | X86_SEG_G);
    s->seg[X86_SS] = flat(0x2b, X86_SEG_P | X86_SEG_DPL | X86_SEG_S | 0x3 | X86_SEG_DB | X86_SEG_G);
    s->seg[X86_DS] = s->seg[X86_ES] = s->seg[X86_SS];
    s->seg[X86_FS] = s->seg[X86_GS] = (struct x86_segment) {0};
    s->seg[X86_GS].base = GS_BASE;
    s->gdtr.limit = s->idtr.limit = 0;
    s->ldtr = (struct x86_segment) {0};
    s->tr.limit = 0x40; /* too short for a port permission map: all ports are forbidden */
}

void diff_guest_load(uint8_t *ram, struct x86_state *s, const struct diff_input *input)
{
    memcpy(ram + GPA_MEMORY, input->memory, MEMORY_SIZE);
    memcpy(ram + GPA_CODE, input->code, CODE_SIZE);
    user_mode(s);
    if (input->code_size == 4) {
        s->seg[X86_CS].selector = 0x23;
        s->seg[X86_CS].attr ^= X86_SEG_L | X86_SEG_DB;
        s->seg[X86_GS] = (struct x86_segment) {0};
    }
    memcpy(s->gpr, input->state.gpr, sizeof s->gpr);
    s->rip = input->state.rip;
    s->rflags = input->state.rflags | X86_FIXED;
    s->fpu = input->state.fpu;
    s->mp_state = X86_MP_RUNNABLE;
    s->interrupt_shadow = s->shadow_is_mov_ss = false;
    s->pending = (struct x86_event) {0};
}

void diff_guest_store(const uint8_t *ram, const struct x86_state *s, struct diff_end *end)
{
    memcpy(end->memory, ram + GPA_MEMORY, MEMORY_SIZE);
    memcpy(end->state.gpr, s->gpr, sizeof s->gpr);
    end->state.rip = s->rip;
    end->state.rflags = s->rflags & ~(X86_RF | X86_FIXED);
    end->state.fpu = s->fpu;
    end->state.fpu.fop = end->state.fpu.fcs = end->state.fpu.fds = 0;
    end->state.fpu.fip = end->state.fpu.fdp = 0;
}
