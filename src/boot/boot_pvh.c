/*
 * PVH: an ELF kernel entered at the address of its XEN_ELFNOTE_PHYS32_ENTRY note, in 32-bit
 * protected mode with EBX at a struct hvm_start_info, version 1 (Xen's
 * public/arch-x86/hvm/start_info.h). Loop thread.
 */
#include "boot/boot_int.h"

#include <string.h>

#define START_INFO_MAGIC 0x336ec578u
#define ADDRESS_MAX      0x100000000ull

enum {
    START_INFO_SIZE = 56,
    MODULE_SIZE = 32,
    MEMMAP_SIZE = 24,
};

static int put_memmap(struct boot_map *map, uint64_t *address, unsigned *count, struct err *err)
{
    struct boot_e820 entries[BOOT_E820_MAX];
    uint8_t bytes[BOOT_E820_MAX * MEMMAP_SIZE] = {0};
    *count = boot_e820(map->machine, entries);
    for (unsigned i = 0; i < *count; i++) {
        uint8_t *at = bytes + i * MEMMAP_SIZE;
        store_le64(at, entries[i].start);
        store_le64(at + 8, entries[i].size);
        store_le32(at + 16, entries[i].type);
    }
    return boot_map_put(map, bytes, *count * MEMMAP_SIZE, address, err);
}

static int put_start_info(struct boot_map *map, uint64_t cmdline, uint64_t module,
                          uint64_t *address, struct err *err)
{
    uint8_t info[START_INFO_SIZE] = {0};
    uint64_t memmap = 0;
    unsigned count = 0;
    int error = put_memmap(map, &memmap, &count, err);
    if (error)
        return error;
    store_le32(info + 0, START_INFO_MAGIC);
    store_le32(info + 4, 1); /* version */
    store_le32(info + 12, module ? 1 : 0);
    store_le64(info + 16, module);
    store_le64(info + 24, cmdline);
    store_le64(info + 32, BOOT_RSDP);
    store_le64(info + 40, memmap);
    store_le32(info + 48, count);
    return boot_map_put(map, info, sizeof info, address, err);
}

static int put_module(struct boot_map *map, const struct boot_initrd *initrd, uint64_t *address,
                      struct err *err)
{
    uint8_t module[MODULE_SIZE] = {0};
    if (initrd->size == 0)
        return 0;
    store_le64(module, initrd->address);
    store_le64(module + 8, initrd->size);
    return boot_map_put(map, module, sizeof module, address, err);
}

int boot_pvh_load(struct boot_map *map, const struct boot_image *image, struct x86_state *bsp,
                  struct err *err)
{
    struct boot_initrd initrd = {0};
    uint64_t cmdline = 0, module = 0, info = 0, gdt = 0;
    int error = boot_elf_load(map, image, err);
    if (!error)
        error = boot_map_put(map, image->append, strlen(image->append) + 1, &cmdline, err);
    if (!error)
        error = boot_initrd_load(map, image, ADDRESS_MAX, &initrd, err);
    if (!error)
        error = put_module(map, &initrd, &module, err);
    if (!error)
        error = put_start_info(map, cmdline, module, &info, err);
    if (!error)
        error = boot_cpu_put_gdt(map, false, &gdt, err);
    if (error)
        return error;
    boot_cpu_flat32(bsp, image->elf.pvh_entry, gdt);
    bsp->gpr[X86_RBX] = info;
    return 0;
}
