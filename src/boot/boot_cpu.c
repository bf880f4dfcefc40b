/*
 * The first CPU's state at a kernel's entry point. SDM vol. 3 chapters 3 and 9; the Linux boot
 * protocol, multiboot 0.6.96 section 3.2 and Xen's PVH document say what they want. Pure.
 */
#include "boot/boot_int.h"

#include <string.h>

#define CODE_SELECTOR 0x10
#define DATA_SELECTOR 0x18

/* Type and flags of flat descriptors, as in the descriptor's bits 40-55. */
#define ATTR_CODE32 (0x9b | X86_SEG_DB | X86_SEG_G)
#define ATTR_CODE64 (0x9b | X86_SEG_L | X86_SEG_G)
#define ATTR_DATA   (0x93 | X86_SEG_DB | X86_SEG_G)
#define ATTR_TSS    0x8b

#define MTRR_DEF_WRITE_BACK 0x806 /* enabled, no ranges: all memory write-back */

static uint64_t flat_descriptor(uint16_t attr)
{
    return 0x000f00000000ffffull | (uint64_t)attr << 40;
}

int boot_cpu_put_gdt(struct boot_map *map, bool is_64bit, uint64_t *gdt, struct err *err)
{
    const uint64_t table[4] = {
        [CODE_SELECTOR / 8] = flat_descriptor(is_64bit ? ATTR_CODE64 : ATTR_CODE32),
        [DATA_SELECTOR / 8] = flat_descriptor(ATTR_DATA),
    };
    return boot_map_put(map, table, sizeof table, gdt, err);
}

static void set_flat(struct x86_state *cpu, uint64_t entry, uint64_t gdt, uint16_t code_attr)
{
    struct x86_segment data = {0, 0xffffffff, DATA_SELECTOR, ATTR_DATA};
    for (unsigned i = 0; i < ARRAY_COUNT(cpu->seg); i++)
        cpu->seg[i] = data;
    cpu->seg[X86_CS] = (struct x86_segment) {0, 0xffffffff, CODE_SELECTOR, code_attr};
    cpu->tr = (struct x86_segment) {0, 0x67, 0, ATTR_TSS};
    cpu->gdtr.base = gdt;
    cpu->gdtr.limit = 4 * 8 - 1;
    cpu->idtr.base = 0;
    cpu->idtr.limit = 0;
    cpu->rip = entry;
    cpu->rflags = X86_FIXED;
    cpu->mtrr_def_type = MTRR_DEF_WRITE_BACK;
}

void boot_cpu_flat32(struct x86_state *cpu, uint64_t entry, uint64_t gdt)
{
    set_flat(cpu, entry, gdt, ATTR_CODE32);
    cpu->cr0 = X86_CR0_PE | X86_CR0_ET;
    cpu->cr4 = 0;
    cpu->efer = 0;
}

void boot_cpu_long(struct x86_state *cpu, uint64_t entry, uint64_t gdt, uint64_t cr3)
{
    set_flat(cpu, entry, gdt, ATTR_CODE64);
    cpu->cr0 = X86_CR0_PE | X86_CR0_ET | X86_CR0_PG;
    cpu->cr3 = cr3;
    cpu->cr4 = X86_CR4_PAE;
    cpu->efer = X86_EFER_LME | X86_EFER_LMA;
}
