/*
 * Multiboot 1 (specification 0.6.96): an ELF kernel or one with the header's own addresses (the
 * a.out kludge), entered in 32-bit protected mode with EAX = magic, EBX at the information
 * structure. Video modes, APM and drive tables are not given. Loop thread.
 */
#include "boot/boot_int.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define HEADER_MAGIC 0x1badb002u
#define LOADER_MAGIC 0x2badb002u
#define SEARCH_BYTES 8192
#define MODULES_MAX  64
#define MMAP_ENTRY   24 /* with its size field */
#define LOADER_NAME  "parat"
#define ADDRESS_MAX  0x100000000ull

/* Header flags. Bits 0-15 are requirements. */
#define WANT_PAGE_ALIGN 0x00000001u
#define WANT_MEMORY     0x00000002u
#define WANT_VIDEO      0x00000004u
#define HAS_ADDRESSES   0x00010000u

/* Information structure: flags and offsets. */
#define INFO_MEMORY      0x001
#define INFO_CMDLINE     0x004
#define INFO_MODULES     0x008
#define INFO_MMAP        0x040
#define INFO_LOADER_NAME 0x200

enum {
    AT_FLAGS = 0,
    AT_MEM_LOWER = 4,
    AT_MEM_UPPER = 8,
    AT_CMDLINE = 16,
    AT_MODS_COUNT = 20,
    AT_MODS_ADDR = 24,
    AT_MMAP_LENGTH = 44,
    AT_MMAP_ADDR = 48,
    AT_LOADER_NAME = 64,
    INFO_SIZE = 116,
};

/* Offset of the header in the first 8 KiB; -1: none. */
static int find_header(const uint8_t *bytes, size_t size)
{
    for (size_t at = 0; at + 12 <= size; at += 4)
        if (load_le32(bytes + at) == HEADER_MAGIC &&
            load_le32(bytes + at) + load_le32(bytes + at + 4) + load_le32(bytes + at + 8) == 0)
            return (int)at;
    return -1;
}

/* The header's address fields. */
static int parse_addresses(const struct boot_file *file, struct boot_multiboot *m,
                           const uint8_t *header, uint64_t header_offset, struct err *err)
{
    uint64_t header_address = load_le32(header + 12), load = load_le32(header + 16);
    uint64_t load_end = load_le32(header + 20), bss_end = load_le32(header + 24);
    m->entry = load_le32(header + 28);
    if (load > header_address || header_address - load > header_offset)
        return boot_file_error(file, err, EINVAL,
                               "its multiboot header says that it is loaded behind itself");
    m->offset = header_offset - (header_address - load);
    m->load_address = load;
    m->load_size = load_end ? load_end - load : file->size - m->offset;
    if (load_end && load_end < load)
        return boot_file_error(file, err, EINVAL,
                               "its multiboot header says that it ends before it starts");
    if (!range_fits(m->offset, m->load_size, file->size))
        return boot_file_error(file, err, EINVAL,
                               "is truncated: its multiboot header says %llu bytes",
                               (unsigned long long)(m->offset + m->load_size));
    m->mem_size = m->load_size;
    if (bss_end > load && bss_end - load > m->mem_size)
        m->mem_size = bss_end - load;
    if (m->entry < load || m->entry - load >= m->mem_size)
        return boot_file_error(file, err, EINVAL,
                               "its multiboot entry point 0x%llx lies outside of it",
                               (unsigned long long)m->entry);
    return 0;
}

int boot_multiboot_parse(const struct boot_file *file, struct boot_multiboot *m, struct err *err)
{
    uint8_t bytes[SEARCH_BYTES];
    size_t size = MIN(sizeof bytes, file->size);
    memset(m, 0, sizeof *m);
    int error = boot_file_read(file, 0, bytes, size, err);
    if (error)
        return error;
    int at = find_header(bytes, size);
    if (at < 0)
        return -ENOEXEC;
    uint32_t flags = load_le32(bytes + at + 4);
    if (flags & 0xffff & ~(WANT_PAGE_ALIGN | WANT_MEMORY | WANT_VIDEO))
        return boot_file_error(file, err, ENOTSUP,
                               "its multiboot header wants something unknown (flags 0x%x)", flags);
    m->align_modules = flags & WANT_PAGE_ALIGN;
    m->has_addresses = flags & HAS_ADDRESSES;
    if (!m->has_addresses)
        return 0;
    if ((size_t)at + 32 > size)
        return boot_file_error(file, err, EINVAL, "is truncated in its multiboot header");
    return parse_addresses(file, m, bytes + at, (uint64_t)at, err);
}

/* --- loading --- */

static int load_by_addresses(struct boot_map *map, const struct boot_image *image, struct err *err)
{
    const struct boot_multiboot *m = &image->multiboot;
    const struct boot_file *file = &image->kernel;
    int error = boot_map_reserve(map, m->load_address, m->mem_size);
    if (error)
        return boot_file_error(file, err, -error,
                               "needs memory from 0x%llx to 0x%llx, which is not all free RAM",
                               (unsigned long long)m->load_address,
                               (unsigned long long)(m->load_address + m->mem_size));
    error = boot_file_load(file, m->offset, map->machine, m->load_address, m->load_size, err);
    if (error || m->mem_size == m->load_size)
        return error;
    error = guest_memory_fill(map->machine->memory, gpa(m->load_address + m->load_size), 0,
                              m->mem_size - m->load_size);
    return error
               ? boot_file_error(file, err, -error, "cannot clear its memory: %s", strerror(-error))
               : 0;
}

/* Where the kernel ends: modules go above it, as GRUB does. */
static uint64_t kernel_end(const struct boot_image *image)
{
    uint64_t end = BOOT_ROM_END;
    if (image->multiboot.has_addresses)
        return MAX(end, image->multiboot.load_address + image->multiboot.mem_size);
    for (unsigned i = 0; i < image->elf.segment_count; i++)
        end = MAX(end, image->elf.segment[i].address + image->elf.segment[i].mem_size);
    return end;
}

static int put_module(struct boot_map *map, const struct boot_image *image, unsigned index,
                      uint8_t *entry, struct err *err)
{
    const struct boot_file *file = &image->initrd[index];
    uint64_t name = 0;
    uint64_t address = boot_map_alloc_bottom(map, file->size, kernel_end(image), map->low_end);
    if (address == 0)
        return boot_file_error(file, err, ENOMEM, "%llu bytes do not fit: --memory gives %lluM",
                               (unsigned long long)file->size,
                               (unsigned long long)map->low_end >> 20);
    int error = boot_file_load(file, 0, map->machine, address, file->size, err);
    if (!error)
        error = boot_map_put(map, file->path, strlen(file->path) + 1, &name, err);
    store_le32(entry, (uint32_t)address);
    store_le32(entry + 4, (uint32_t)(address + file->size));
    store_le32(entry + 8, (uint32_t)name);
    store_le32(entry + 12, 0);
    return error;
}

static int put_modules(struct boot_map *map, const struct boot_image *image, uint8_t *info,
                       struct err *err)
{
    uint8_t table[MODULES_MAX * 16];
    uint64_t address = 0;
    unsigned count = image->initrd_count;
    if (count == 0)
        return 0;
    if (count > MODULES_MAX)
        return err_set(err, E2BIG, "--initrd: %u modules, and %d is the most", count, MODULES_MAX);
    for (unsigned i = 0; i < count; i++) {
        int error = put_module(map, image, i, table + i * 16, err);
        if (error)
            return error;
    }
    store_le32(info + AT_MODS_COUNT, count);
    int error = boot_map_put(map, table, count * 16, &address, err);
    store_le32(info + AT_MODS_ADDR, (uint32_t)address);
    return error;
}

static int put_mmap(struct boot_map *map, uint8_t *info, struct err *err)
{
    struct boot_e820 entries[BOOT_E820_MAX];
    uint8_t bytes[BOOT_E820_MAX * MMAP_ENTRY];
    uint64_t address = 0;
    unsigned count = boot_e820(map->machine, entries);
    for (unsigned i = 0; i < count; i++) {
        uint8_t *at = bytes + i * MMAP_ENTRY;
        store_le32(at, MMAP_ENTRY - 4);
        store_le64(at + 4, entries[i].start);
        store_le64(at + 12, entries[i].size);
        store_le32(at + 20, entries[i].type);
    }
    int error = boot_map_put(map, bytes, count * MMAP_ENTRY, &address, err);
    store_le32(info + AT_MMAP_LENGTH, count * MMAP_ENTRY);
    store_le32(info + AT_MMAP_ADDR, (uint32_t)address);
    return error;
}

static int put_string(struct boot_map *map, const char *text, uint8_t *field, struct err *err)
{
    uint64_t address = 0;
    int error = boot_map_put(map, text, strlen(text) + 1, &address, err);
    store_le32(field, (uint32_t)address);
    return error;
}

static int put_info(struct boot_map *map, const struct boot_image *image, uint64_t *address,
                    struct err *err)
{
    uint8_t info[INFO_SIZE] = {0};
    store_le32(info + AT_FLAGS,
               INFO_MEMORY | INFO_CMDLINE | INFO_MODULES | INFO_MMAP | INFO_LOADER_NAME);
    store_le32(info + AT_MEM_LOWER, BOOT_LOW_END / 1024);
    store_le32(info + AT_MEM_UPPER, (uint32_t)((map->low_end - BOOT_ROM_END) / 1024));
    int error = put_string(map, image->append, info + AT_CMDLINE, err);
    if (!error)
        error = put_string(map, LOADER_NAME, info + AT_LOADER_NAME, err);
    if (!error)
        error = put_modules(map, image, info, err);
    if (!error)
        error = put_mmap(map, info, err);
    return error ? error : boot_map_put(map, info, sizeof info, address, err);
}

int boot_multiboot_load(struct boot_map *map, const struct boot_image *image, struct x86_state *bsp,
                        struct err *err)
{
    bool by_addresses = image->multiboot.has_addresses;
    uint64_t info = 0, gdt = 0;
    int error = by_addresses ? load_by_addresses(map, image, err) : boot_elf_load(map, image, err);
    if (!error)
        error = put_info(map, image, &info, err);
    if (!error)
        error = boot_cpu_put_gdt(map, false, &gdt, err);
    if (error)
        return error;
    boot_cpu_flat32(bsp, by_addresses ? image->multiboot.entry : image->elf.entry, gdt);
    bsp->gpr[X86_RAX] = LOADER_MAGIC;
    bsp->gpr[X86_RBX] = info;
    return 0;
}
