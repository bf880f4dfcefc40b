/*
 * What lies where in the RAM below the PCI hole while a kernel is being loaded, and the memory map
 * that the guest is told. Loop thread.
 */
#include "boot/boot_int.h"

#include <errno.h>
#include <string.h>

int boot_map_init(struct boot_map *map, struct machine *machine, struct err *err)
{
    memset(map, 0, sizeof *map);
    map->machine = machine;
    const struct mem_region *region = guest_memory_find(machine->memory, gpa(0));
    map->low_end = region ? region->size : 0;
    if (map->low_end < 2 * BOOT_ROM_END)
        return err_set(err, EINVAL, "--memory %lluK: a PC needs at least 2M",
                       (unsigned long long)map->low_end / 1024);
    return boot_map_reserve(map, BOOT_LOW_END, BOOT_ROM_END - BOOT_LOW_END);
}

static const struct boot_range *find_overlap(const struct boot_map *map, uint64_t start,
                                             uint64_t size)
{
    for (unsigned i = 0; i < map->count; i++)
        if (ranges_overlap(start, size, map->used[i].start, map->used[i].size))
            return &map->used[i];
    return NULL;
}

int boot_map_reserve(struct boot_map *map, uint64_t start, uint64_t size)
{
    if (!range_fits(start, size, map->low_end))
        return -ERANGE;
    if (find_overlap(map, start, size))
        return -EEXIST;
    if (map->count == BOOT_RANGES_MAX)
        return -ENOSPC;
    map->used[map->count++] = (struct boot_range) {start, size};
    return 0;
}

/* Each step goes below one used range, so there are at most count + 1 steps. */
uint64_t boot_map_alloc_top(struct boot_map *map, uint64_t size, uint64_t min, uint64_t max)
{
    uint64_t end = MIN(max, map->low_end);
    while (size && size <= end) {
        uint64_t start = (end - size) & PAGE_MASK;
        if (start < min)
            return 0;
        const struct boot_range *used = find_overlap(map, start, size);
        if (!used)
            return boot_map_reserve(map, start, size) == 0 ? start : 0;
        end = used->start;
    }
    return 0;
}

uint64_t boot_map_alloc_bottom(struct boot_map *map, uint64_t size, uint64_t min, uint64_t max)
{
    uint64_t start = align_up(min, PAGE_SIZE), end = MIN(max, map->low_end);
    while (size && range_fits(start, size, end)) {
        const struct boot_range *used = find_overlap(map, start, size);
        if (!used)
            return boot_map_reserve(map, start, size) == 0 ? start : 0;
        start = align_up(used->start + used->size, PAGE_SIZE);
    }
    return 0;
}

int boot_map_put(struct boot_map *map, const void *data, size_t size, uint64_t *address,
                 struct err *err)
{
    *address = boot_map_alloc_bottom(map, size, PAGE_SIZE, BOOT_LOW_END);
    if (*address == 0)
        *address = boot_map_alloc_bottom(map, size, BOOT_ROM_END, map->low_end);
    if (*address == 0)
        return err_set(err, ENOMEM, "--memory: there is no room for %zu bytes of boot data", size);
    int error = guest_memory_write(map->machine->memory, gpa(*address), data, size);
    return error ? err_set(err, -error, "cannot write guest memory at 0x%llx: %s",
                           (unsigned long long)*address, strerror(-error))
                 : 0;
}

unsigned boot_e820(const struct machine *machine, struct boot_e820 out[BOOT_E820_MAX])
{
    unsigned count = 0;
    size_t region_count;
    const struct mem_region *region = guest_memory_regions(machine->memory, &region_count);
    uint64_t low_end = region_count ? region[0].size : 0;
    out[count++] = (struct boot_e820) {0, BOOT_LOW_END, BOOT_E820_RAM};
    out[count++] = (struct boot_e820) {BOOT_LOW_END, 0xa0000 - BOOT_LOW_END, BOOT_E820_RESERVED};
    out[count++] = (struct boot_e820) {BOOT_RSDP, BOOT_ROM_END - BOOT_RSDP, BOOT_E820_RESERVED};
    out[count++] = (struct boot_e820) {BOOT_ROM_END, low_end - BOOT_ROM_END, BOOT_E820_RAM};
    out[count++] = (struct boot_e820) {MACHINE_ECAM_BASE, MACHINE_ECAM_SIZE, BOOT_E820_RESERVED};
    out[count++] = (struct boot_e820) {MACHINE_IOAPIC_BASE, PAGE_SIZE, BOOT_E820_RESERVED};
    out[count++] = (struct boot_e820) {0xfee00000, PAGE_SIZE, BOOT_E820_RESERVED}; /* local APIC */
    for (size_t i = 1; i < region_count && count < BOOT_E820_MAX; i++)
        out[count++] = (struct boot_e820) {region[i].start.v, region[i].size, BOOT_E820_RAM};
    return count;
}
