/* Direct kernel boot: telling the formats apart, and what they share. Loop thread. */
#include "boot/boot.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "boot/boot_int.h"

/* Which format; the most specific sign first. */
static int detect(struct boot_image *image, struct err *err)
{
    const struct boot_file *file = &image->kernel;
    int error = boot_linux_parse(file, &image->linux_image, err);
    image->kind = BOOT_LINUX;
    if (error != -ENOEXEC)
        return error;
    int multiboot_error = boot_multiboot_parse(file, &image->multiboot, err);
    if (multiboot_error && multiboot_error != -ENOEXEC)
        return multiboot_error;
    image->kind = BOOT_MULTIBOOT;
    if (!multiboot_error && image->multiboot.has_addresses)
        return 0;
    error = boot_elf_parse(file, &image->elf, err);
    if (!error && image->elf.has_pvh_entry)
        image->kind = BOOT_PVH;
    else if (!error && multiboot_error)
        return boot_file_error(file, err, EINVAL,
                               "is an ELF file with neither a PVH note nor a multiboot header");
    if (error == -ENOEXEC)
        return boot_file_error(
            file, err, EINVAL,
            "is not a kernel: neither a Linux bzImage, nor ELF with a PVH note, nor multiboot");
    if (!error && image->kind == BOOT_MULTIBOOT && image->elf.entry >= MACHINE_LOW_RAM_MAX)
        return boot_file_error(file, err, EINVAL, "its entry point lies above the RAM");
    return error;
}

static int open_files(struct boot_image *image, const struct boot_config *config, struct err *err)
{
    int error = boot_file_open(&image->kernel, "--kernel", config->kernel, err);
    image->initrd = calloc(config->initrd_count + 1, sizeof *image->initrd);
    image->append = strdup(config->append ? config->append : "");
    if (!error && (!image->initrd || !image->append))
        error = err_set(err, ENOMEM, "out of memory");
    for (unsigned i = 0; i < config->initrd_count && !error; i++) {
        error = boot_file_open(&image->initrd[i], "--initrd", config->initrds[i], err);
        image->initrd_count += !error;
    }
    return error;
}

int boot_open(struct boot_image **out, const struct boot_config *config, struct err *err)
{
    struct boot_image *image = calloc(1, sizeof *image);
    if (!image)
        return err_set(err, ENOMEM, "out of memory");
    int error = open_files(image, config, err);
    if (!error)
        error = detect(image, err);
    if (error) {
        boot_close(image);
        return error;
    }
    *out = image;
    return 0;
}

void boot_close(struct boot_image *image)
{
    if (!image)
        return;
    for (unsigned i = 0; i < image->initrd_count; i++)
        boot_file_close(&image->initrd[i]);
    boot_file_close(&image->kernel);
    free(image->initrd);
    free(image->append);
    free(image);
}

/* The size of all initrds, each padded to 4 bytes; 0 when it overflows or there is none. */
static uint64_t initrds_size(const struct boot_image *image)
{
    uint64_t size = 0;
    for (unsigned i = 0; i < image->initrd_count; i++)
        if (image->initrd[i].size > UINT32_MAX ||
            add_overflows(size, align_up(image->initrd[i].size, 4), &size))
            return UINT64_MAX;
    return size;
}

int boot_initrd_load(struct boot_map *map, const struct boot_image *image, uint64_t max,
                     struct boot_initrd *out, struct err *err)
{
    uint64_t size = initrds_size(image);
    *out = (struct boot_initrd) {0};
    if (size == 0)
        return 0;
    uint64_t at = boot_map_alloc_top(map, size, BOOT_ROM_END, max);
    if (at == 0)
        return boot_file_error(&image->initrd[0], err, ENOMEM,
                               "%lluM do not fit beside the kernel: --memory gives %lluM",
                               (unsigned long long)(MIN(size, UINT64_MAX >> 1) + 0xfffff) >> 20,
                               (unsigned long long)map->low_end >> 20);
    *out = (struct boot_initrd) {at, size};
    for (unsigned i = 0; i < image->initrd_count; i++) {
        const struct boot_file *file = &image->initrd[i];
        uint64_t padding = align_up(file->size, 4) - file->size;
        int error = boot_file_load(file, 0, map->machine, at, file->size, err);
        if (error)
            return error;
        if (padding && guest_memory_fill(map->machine->memory, gpa(at + file->size), 0, padding))
            return boot_file_error(file, err, EFAULT, "cannot be padded in guest memory");
        at += file->size + padding;
    }
    return 0;
}

int boot_load(struct machine *machine, void *context, struct x86_state *bsp, struct err *err)
{
    static int (*const load[])(struct boot_map *, const struct boot_image *, struct x86_state *,
                               struct err *) = {
        [BOOT_LINUX] = boot_linux_load,
        [BOOT_PVH] = boot_pvh_load,
        [BOOT_MULTIBOOT] = boot_multiboot_load,
    };
    const struct boot_image *image = context;
    struct boot_map map;
    int error = boot_map_init(&map, machine, err);
    if (!error)
        error = boot_acpi_load(&map, err);
    return error ? error : load[image->kind](&map, image, bsp, err);
}
