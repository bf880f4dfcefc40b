/*
 * What the boot loaders share: files, the map of what is placed where, CPU entry states. Loop
 * thread.
 */
#ifndef PARAT_BOOT_BOOT_INT_H
#define PARAT_BOOT_BOOT_INT_H

#include <stdbool.h>
#include <stdint.h>

#include "base/bits.h"
#include "base/err.h"
#include "vm/machine.h"

/* --- a user's file: an option, a path, an open descriptor, the size it had --- */

struct boot_file {
    const char *option; /* "--kernel" */
    char *path;
    int fd;
    uint64_t size;
};

/* A regular, readable, non-empty file. */
int boot_file_open(struct boot_file *file, const char *option, const char *path, struct err *err);
void boot_file_close(struct boot_file *file);
/* Exactly length bytes; a file that has shrunk is an error. */
int boot_file_read(const struct boot_file *file, uint64_t offset, void *to, size_t length,
                   struct err *err);
/* The same, straight into guest RAM. */
int boot_file_load(const struct boot_file *file, uint64_t offset, struct machine *machine,
                   uint64_t to, uint64_t length, struct err *err);
/* err_set with "OPTION PATH: " before the sentence. */
int boot_file_error(const struct boot_file *file, struct err *err, int error, const char *format,
                    ...) __attribute__((format(printf, 4, 5)));

/* --- ELF --- */

#define BOOT_ELF_SEGMENTS_MAX 64

struct boot_elf_segment {
    uint64_t offset, file_size; /* in the file */
    uint64_t address, mem_size; /* physical */
    uint64_t virtual_address;
};

struct boot_elf {
    uint64_t entry; /* physical */
    unsigned segment_count;
    struct boot_elf_segment segment[BOOT_ELF_SEGMENTS_MAX];
    bool has_pvh_entry;
    uint32_t pvh_entry;
};

/* Checks everything that does not depend on the machine. -ENOEXEC without a sentence: no ELF. */
int boot_elf_parse(const struct boot_file *file, struct boot_elf *elf, struct err *err);

/* --- Linux bzImage --- */

#define BOOT_LINUX_HEADER_MAX                                                                      \
    0x268 /* end of the setup header that we copy, from the file's start */

struct boot_linux {
    uint8_t header[BOOT_LINUX_HEADER_MAX];
    uint64_t payload_offset, payload_size; /* the protected-mode kernel in the file */
    uint64_t load_address, needed_size;
    uint32_t initrd_max, cmdline_max;
    bool is_64bit;
};

/* -ENOEXEC without a sentence: no bzImage. */
int boot_linux_parse(const struct boot_file *file, struct boot_linux *linux_image, struct err *err);

/* --- multiboot 1 --- */

struct boot_multiboot {
    bool has_addresses; /* the a.out kludge; else the ELF headers count */
    uint64_t offset, load_size, load_address, mem_size, entry;
    bool align_modules;
};

/* -ENOEXEC without a sentence: no multiboot header. */
int boot_multiboot_parse(const struct boot_file *file, struct boot_multiboot *multiboot,
                         struct err *err);

/* --- the image --- */

enum boot_kind { BOOT_LINUX, BOOT_PVH, BOOT_MULTIBOOT };

struct boot_image {
    enum boot_kind kind;
    struct boot_file kernel;
    struct boot_file *initrd;
    unsigned initrd_count;
    char *append;
    struct boot_linux linux_image;
    struct boot_elf elf;
    struct boot_multiboot multiboot;
};

/* --- what lies where in low RAM --- */

#define BOOT_RANGES_MAX (BOOT_ELF_SEGMENTS_MAX + 160)
#define BOOT_RSDP       0xe0000ull /* the ACPI tables follow it */
#define BOOT_ROM_END    0x100000ull
#define BOOT_LOW_END    0x9fc00ull /* where an EBDA would begin */

struct boot_range {
    uint64_t start, size;
};

struct boot_map {
    struct machine *machine;
    uint64_t low_end; /* of RAM below the PCI hole */
    struct boot_range used[BOOT_RANGES_MAX];
    unsigned count;
};

int boot_map_init(struct boot_map *map, struct machine *machine, struct err *err);
/* -ERANGE outside RAM, -EEXIST on overlap, -ENOSPC when the table is full. */
int boot_map_reserve(struct boot_map *map, uint64_t start, uint64_t size) MUST_USE;
/* Highest or lowest free place between min and max (exclusive); 0: none. It is reserved. */
uint64_t boot_map_alloc_top(struct boot_map *map, uint64_t size, uint64_t min, uint64_t max);
uint64_t boot_map_alloc_bottom(struct boot_map *map, uint64_t size, uint64_t min, uint64_t max);
/* Copies into guest RAM at a place below 640 KiB; *address is where. */
int boot_map_put(struct boot_map *map, const void *data, size_t size, uint64_t *address,
                 struct err *err);

/* The memory map for the guest. Types are ACPI's address range types. */
#define BOOT_E820_MAX      16
#define BOOT_E820_RAM      1
#define BOOT_E820_RESERVED 2

struct boot_e820 {
    uint64_t start, size;
    uint32_t type;
};

unsigned boot_e820(const struct machine *machine, struct boot_e820 out[BOOT_E820_MAX]);

/* --- loading; the map already holds the ACPI tables --- */

struct boot_initrd {
    uint64_t address, size; /* size 0: none */
};

int boot_elf_load(struct boot_map *map, const struct boot_image *image, struct err *err);
/* All --initrd files one after the other, each at a multiple of 4 bytes, below max. */
int boot_initrd_load(struct boot_map *map, const struct boot_image *image, uint64_t max,
                     struct boot_initrd *out, struct err *err);

int boot_linux_load(struct boot_map *map, const struct boot_image *image, struct x86_state *bsp,
                    struct err *err);
int boot_pvh_load(struct boot_map *map, const struct boot_image *image, struct x86_state *bsp,
                  struct err *err);
int boot_multiboot_load(struct boot_map *map, const struct boot_image *image, struct x86_state *bsp,
                        struct err *err);

/* ACPI tables from BOOT_RSDP on. */
int boot_acpi_load(struct boot_map *map, struct err *err);

/* --- CPU entry states --- */

/* 32-bit protected mode, flat segments, no paging, interrupts off. */
void boot_cpu_flat32(struct x86_state *cpu, uint64_t entry, uint64_t gdt);
/* 64-bit mode over the page tables at cr3. */
void boot_cpu_long(struct x86_state *cpu, uint64_t entry, uint64_t gdt, uint64_t cr3);
/* The GDT that matches: null, unused, flat code at 0x10, flat data at 0x18. */
int boot_cpu_put_gdt(struct boot_map *map, bool is_64bit, uint64_t *gdt, struct err *err);

#endif
