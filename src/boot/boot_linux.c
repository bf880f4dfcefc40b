/*
 * Linux bzImage by the 64-bit entry point, or the 32-bit one for 32-bit kernels (the kernel's
 * Documentation/arch/x86/boot.rst, protocol 2.10 and later). The header is untrusted. Loop thread.
 */
#include "boot/boot_int.h"

#include <errno.h>
#include <string.h>

/* Offsets in the file's first sector and in the zero page: the same. */
enum {
    HDR_SETUP_SECTS = 0x1f1,
    HDR_SYSSIZE = 0x1f4,
    HDR_BOOT_FLAG = 0x1fe,
    HDR_JUMP = 0x200,
    HDR_MAGIC = 0x202,
    HDR_VERSION = 0x206,
    HDR_TYPE_OF_LOADER = 0x210,
    HDR_LOADFLAGS = 0x211,
    HDR_CODE32_START = 0x214,
    HDR_RAMDISK_IMAGE = 0x218,
    HDR_RAMDISK_SIZE = 0x21c,
    HDR_CMD_LINE_PTR = 0x228,
    HDR_INITRD_ADDR_MAX = 0x22c,
    HDR_RELOCATABLE = 0x234,
    HDR_XLOADFLAGS = 0x236,
    HDR_CMDLINE_SIZE = 0x238,
    HDR_PREF_ADDRESS = 0x258,
    HDR_INIT_SIZE = 0x260,
    HDR_END = 0x264,
    ZERO_PAGE_RSDP = 0x070,
    ZERO_PAGE_E820_COUNT = 0x1e8,
    ZERO_PAGE_E820 = 0x2d0,
    ZERO_PAGE_SIZE = 0x1000,
};

#define PROTOCOL_2_10        0x020a
#define PROTOCOL_2_12        0x020c
#define LOADED_HIGH          0x01
#define XLF_KERNEL_64        0x01
#define LOADER_UNDEFINED     0xff
#define ENTRY_64             0x200
#define IDENTITY_DIRECTORIES 4 /* page directories of 2 MiB pages: 4 GiB */
#define IDENTITY_TABLES      (2 + IDENTITY_DIRECTORIES)
#define PTE_TABLE            (X86_PTE_P | X86_PTE_W)
#define ENTRIES              512

static int check_header(const struct boot_file *file, struct boot_linux *k, struct err *err)
{
    unsigned version = load_le16(k->header + HDR_VERSION);
    if (version < PROTOCOL_2_10)
        return boot_file_error(file, err, EINVAL,
                               "is a Linux kernel with boot protocol %u.%02u; 2.10 is needed",
                               version >> 8, version & 0xff);
    if (!(k->header[HDR_LOADFLAGS] & LOADED_HIGH))
        return boot_file_error(file, err, EINVAL, "is a Linux zImage; a bzImage is needed");
    unsigned sectors = k->header[HDR_SETUP_SECTS] ? k->header[HDR_SETUP_SECTS] : 4;
    k->payload_offset = (sectors + 1) * 512ull;
    k->payload_size = load_le32(k->header + HDR_SYSSIZE) * 16ull;
    if (k->payload_size == 0 || !range_fits(k->payload_offset, k->payload_size, file->size))
        return boot_file_error(file, err, EINVAL,
                               "is truncated: a Linux kernel of %llu bytes should have %llu",
                               (unsigned long long)file->size,
                               (unsigned long long)(k->payload_offset + k->payload_size));
    return 0;
}

int boot_linux_parse(const struct boot_file *file, struct boot_linux *k, struct err *err)
{
    memset(k, 0, sizeof *k);
    if (file->size < HDR_END)
        return -ENOEXEC;
    int error = boot_file_read(file, 0, k->header, HDR_END, err);
    if (error)
        return error;
    if (load_le16(k->header + HDR_BOOT_FLAG) != 0xaa55 ||
        memcmp(k->header + HDR_MAGIC, "HdrS", 4) != 0)
        return -ENOEXEC;
    error = check_header(file, k, err);
    if (error)
        return error;
    k->is_64bit = load_le16(k->header + HDR_VERSION) >= PROTOCOL_2_12 &&
                  (load_le16(k->header + HDR_XLOADFLAGS) & XLF_KERNEL_64);
    k->load_address = load_le64(k->header + HDR_PREF_ADDRESS);
    k->needed_size = MAX(load_le32(k->header + HDR_INIT_SIZE), k->payload_size);
    k->initrd_max = load_le32(k->header + HDR_INITRD_ADDR_MAX);
    k->cmdline_max = load_le32(k->header + HDR_CMDLINE_SIZE);
    if (k->load_address < BOOT_ROM_END || k->load_address >= MACHINE_LOW_RAM_MAX)
        return boot_file_error(file, err, EINVAL, "wants to be loaded at 0x%llx",
                               (unsigned long long)k->load_address);
    return 0;
}

static int place_kernel(struct boot_map *map, const struct boot_image *image, struct err *err)
{
    const struct boot_linux *k = &image->linux_image;
    uint64_t end = k->load_address + k->needed_size;
    if (boot_map_reserve(map, k->load_address, k->needed_size))
        return boot_file_error(
            &image->kernel, err, ENOMEM,
            "this kernel needs at least %lluM of memory, and --memory gives %lluM",
            (unsigned long long)(end + 0xfffff) >> 20, (unsigned long long)map->low_end >> 20);
    return boot_file_load(&image->kernel, k->payload_offset, map->machine, k->load_address,
                          k->payload_size, err);
}

static int put_cmdline(struct boot_map *map, const struct boot_image *image, uint64_t *address,
                       struct err *err)
{
    size_t length = strlen(image->append);
    if (length > image->linux_image.cmdline_max)
        return err_set(err, E2BIG, "--append: %zu characters, and the kernel %s takes at most %u",
                       length, image->kernel.path, image->linux_image.cmdline_max);
    return boot_map_put(map, image->append, length + 1, address, err);
}

static void fill_e820(const struct boot_map *map, uint8_t *page)
{
    struct boot_e820 entries[BOOT_E820_MAX];
    unsigned count = boot_e820(map->machine, entries);
    page[ZERO_PAGE_E820_COUNT] = (uint8_t)count;
    for (unsigned i = 0; i < count; i++) {
        uint8_t *at = page + ZERO_PAGE_E820 + i * 20;
        store_le64(at, entries[i].start);
        store_le64(at + 8, entries[i].size);
        store_le32(at + 16, entries[i].type);
    }
}

static int put_zero_page(struct boot_map *map, const struct boot_linux *k, uint64_t cmdline,
                         const struct boot_initrd *initrd, uint64_t *address, struct err *err)
{
    uint8_t page[ZERO_PAGE_SIZE] = {0};
    /* The header ends where its jump instruction goes to. */
    size_t end = MIN(HDR_MAGIC + k->header[HDR_JUMP + 1], HDR_END);
    if (end > HDR_SETUP_SECTS)
        memcpy(page + HDR_SETUP_SECTS, k->header + HDR_SETUP_SECTS, end - HDR_SETUP_SECTS);
    page[HDR_TYPE_OF_LOADER] = LOADER_UNDEFINED;
    store_le32(page + HDR_CODE32_START, (uint32_t)k->load_address);
    store_le32(page + HDR_CMD_LINE_PTR, (uint32_t)cmdline);
    store_le32(page + HDR_RAMDISK_IMAGE, (uint32_t)initrd->address);
    store_le32(page + HDR_RAMDISK_SIZE, (uint32_t)initrd->size);
    store_le64(page + ZERO_PAGE_RSDP, BOOT_RSDP);
    fill_e820(map, page);
    return boot_map_put(map, page, sizeof page, address, err);
}

/* One-to-one page tables for the first 4 GiB. */
static int put_page_tables(struct boot_map *map, uint64_t *cr3, struct err *err)
{
    uint64_t tables[IDENTITY_TABLES][ENTRIES] = {{0}};
    uint64_t base = boot_map_alloc_bottom(map, sizeof tables, PAGE_SIZE, BOOT_LOW_END);
    if (base == 0)
        return err_set(err, ENOMEM, "--memory: there is no room for the page tables");
    tables[0][0] = (base + PAGE_SIZE) | PTE_TABLE;
    for (unsigned i = 0; i < IDENTITY_DIRECTORIES; i++) {
        tables[1][i] = (base + (2 + i) * PAGE_SIZE) | PTE_TABLE;
        for (unsigned k = 0; k < ENTRIES; k++)
            tables[2 + i][k] = ((uint64_t)i << 30 | (uint64_t)k << 21) | PTE_TABLE | X86_PTE_PS;
    }
    *cr3 = base;
    int error = guest_memory_write(map->machine->memory, gpa(base), tables, sizeof tables);
    return error ? err_set(err, -error, "cannot write the page tables: %s", strerror(-error)) : 0;
}

int boot_linux_load(struct boot_map *map, const struct boot_image *image, struct x86_state *bsp,
                    struct err *err)
{
    const struct boot_linux *k = &image->linux_image;
    struct boot_initrd initrd = {0};
    uint64_t cmdline = 0, zero_page = 0, gdt = 0, cr3 = 0;
    int error = place_kernel(map, image, err);
    if (!error)
        error = put_cmdline(map, image, &cmdline, err);
    if (!error)
        error = boot_initrd_load(map, image, k->initrd_max + 1ull, &initrd, err);
    if (!error)
        error = put_zero_page(map, k, cmdline, &initrd, &zero_page, err);
    if (!error)
        error = boot_cpu_put_gdt(map, k->is_64bit, &gdt, err);
    if (!error && k->is_64bit)
        error = put_page_tables(map, &cr3, err);
    if (error)
        return error;
    if (k->is_64bit)
        boot_cpu_long(bsp, k->load_address + ENTRY_64, gdt, cr3);
    else
        boot_cpu_flat32(bsp, k->load_address, gdt);
    bsp->gpr[X86_RSI] = zero_page;
    return 0;
}
