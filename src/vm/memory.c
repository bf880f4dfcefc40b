/*
 * Guest memory. The region table does not change while vCPUs run, so lookups take no lock.
 * Any thread; see memory.h.
 */
#include "vm/memory.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define REGIONS_MAX 32

struct guest_memory {
    struct mem_region region[REGIONS_MAX];
    size_t count;
    struct list observers;
};

int guest_memory_create(struct guest_memory **out)
{
    struct guest_memory *memory = calloc(1, sizeof *memory);
    if (!memory)
        return -ENOMEM;
    list_init(&memory->observers);
    *out = memory;
    return 0;
}

void guest_memory_destroy(struct guest_memory *memory)
{
    if (!memory)
        return;
    for (size_t i = 0; i < memory->count; i++) {
        munmap(memory->region[i].hva, memory->region[i].size);
        close(memory->region[i].fd);
    }
    free(memory);
}

static int region_map(struct mem_region *region, struct err *err)
{
    region->fd = memfd_create("parat-ram", MFD_CLOEXEC);
    if (region->fd < 0)
        return err_set(err, errno, "cannot create guest RAM: %s", strerror(errno));
    if (ftruncate(region->fd, (off_t)region->size) != 0) {
        int error = errno;
        close(region->fd);
        return err_set(err, error, "cannot size guest RAM to %llu MiB: %s",
                       (unsigned long long)(region->size >> 20), strerror(error));
    }
    region->hva =
        mmap(NULL, region->size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, region->fd, 0);
    if (region->hva == MAP_FAILED) {
        int error = errno;
        close(region->fd);
        return err_set(err, error, "cannot map %llu MiB of guest RAM: %s",
                       (unsigned long long)(region->size >> 20), strerror(error));
    }
    /* A dump of the VM process must not carry the guest's memory. */
    (void)madvise(region->hva, region->size, MADV_DONTDUMP);
    return 0;
}

static size_t region_position(const struct guest_memory *memory, gpa_t start)
{
    size_t i = 0;
    while (i < memory->count && memory->region[i].start.v < start.v)
        i++;
    return i;
}

int guest_memory_add_ram(struct guest_memory *memory, gpa_t start, uint64_t size, struct err *err)
{
    uint64_t end;
    if (size == 0 || (start.v | size) & ~PAGE_MASK || add_overflows(start.v, size, &end))
        return err_set(err, EINVAL, "guest RAM must be whole pages");
    if (memory->count == REGIONS_MAX)
        return err_set(err, ENOSPC, "too many pieces of guest RAM");
    for (size_t i = 0; i < memory->count; i++) {
        const struct mem_region *other = &memory->region[i];
        if (ranges_overlap(start.v, size, other->start.v, other->size))
            return err_set(err, EEXIST, "two pieces of guest RAM overlap");
    }
    struct mem_region region = {.start = start,
                                .size = size,
                                .backing = MEM_BACKING_MEMFD,
                                .flags = MEM_PINNABLE | MEM_SHAREABLE};
    int error = region_map(&region, err);
    if (error)
        return error;
    size_t at = region_position(memory, start);
    memmove(&memory->region[at + 1], &memory->region[at],
            (memory->count - at) * sizeof memory->region[0]);
    memory->region[at] = region;
    memory->count++;
    return 0;
}

const struct mem_region *guest_memory_regions(const struct guest_memory *memory, size_t *count)
{
    *count = memory->count;
    return memory->region;
}

const struct mem_region *guest_memory_find(const struct guest_memory *memory, gpa_t address)
{
    for (size_t i = 0; i < memory->count; i++) {
        const struct mem_region *region = &memory->region[i];
        if (address.v >= region->start.v && address.v - region->start.v < region->size)
            return region;
    }
    return NULL;
}

uint64_t guest_memory_ram_size(const struct guest_memory *memory)
{
    uint64_t sum = 0;
    for (size_t i = 0; i < memory->count; i++)
        sum += memory->region[i].size;
    return sum;
}

/* The piece of [at, at + length) that lies in one region: its host address and length. */
static uint8_t *piece(const struct guest_memory *memory, gpa_t at, uint64_t length,
                      uint64_t *piece_length, unsigned *flags)
{
    const struct mem_region *region = guest_memory_find(memory, at);
    *piece_length = 0;
    *flags = 0;
    if (!region)
        return NULL;
    uint64_t offset = at.v - region->start.v;
    *piece_length = MIN(length, region->size - offset);
    *flags = region->flags;
    return region->hva + offset;
}

/* 0 when every byte of the range is RAM. */
static int range_check(const struct guest_memory *memory, gpa_t start, uint64_t length)
{
    uint64_t end;
    if (add_overflows(start.v, length, &end))
        return -EFAULT;
    while (length) {
        uint64_t part;
        unsigned flags;
        if (!piece(memory, start, length, &part, &flags))
            return -EFAULT;
        start = gpa_add(start, part);
        length -= part;
    }
    return 0;
}

int guest_memory_read(struct guest_memory *memory, gpa_t from, void *to, size_t length)
{
    int error = range_check(memory, from, length);
    if (error)
        return error;
    uint8_t *out = to;
    while (length) {
        uint64_t part;
        unsigned flags;
        const uint8_t *hva = piece(memory, from, length, &part, &flags);
        if (!hva)
            return -EFAULT; /* not after range_check */
        memcpy(out, hva, part);
        out += part;
        from = gpa_add(from, part);
        length -= part;
    }
    return 0;
}

/* Copies `bytes`, or fills with *bytes when `fill`; inside a bracket. */
static void put(struct guest_memory *memory, gpa_t to, const uint8_t *bytes, uint64_t length,
                bool fill)
{
    while (length) {
        uint64_t part;
        unsigned flags;
        uint8_t *hva = piece(memory, to, length, &part, &flags);
        if (!hva)
            return; /* not after range_check */
        if (fill) {
            memset(hva, *bytes, part);
        } else {
            memcpy(hva, bytes, part);
            bytes += part;
        }
        to = gpa_add(to, part);
        length -= part;
    }
}

int guest_memory_write(struct guest_memory *memory, gpa_t to, const void *from, size_t length)
{
    int error = guest_memory_write_begin(memory, to, length);
    if (error)
        return error;
    put(memory, to, from, length, false);
    guest_memory_write_end(memory, to, length);
    return 0;
}

int guest_memory_fill(struct guest_memory *memory, gpa_t to, uint8_t byte, uint64_t length)
{
    int error = guest_memory_write_begin(memory, to, length);
    if (error)
        return error;
    put(memory, to, &byte, length, true);
    guest_memory_write_end(memory, to, length);
    return 0;
}

/* Host address of a naturally aligned access, which therefore lies in one region. */
static int aligned_pointer(struct guest_memory *memory, gpa_t at, unsigned size, void **out)
{
    if ((size != 1 && size != 2 && size != 4 && size != 8) || at.v & (size - 1))
        return -EINVAL;
    uint64_t part;
    unsigned flags;
    *out = piece(memory, at, size, &part, &flags);
    return *out ? 0 : -EFAULT;
}

int guest_memory_load(struct guest_memory *memory, gpa_t from, unsigned size, uint64_t *value)
{
    void *p;
    int error = aligned_pointer(memory, from, size, &p);
    if (error)
        return error;
    switch (size) {
    case 1:
        *value = __atomic_load_n((uint8_t *)p, __ATOMIC_ACQUIRE);
        break;
    case 2:
        *value = __atomic_load_n((uint16_t *)p, __ATOMIC_ACQUIRE);
        break;
    case 4:
        *value = __atomic_load_n((uint32_t *)p, __ATOMIC_ACQUIRE);
        break;
    default:
        *value = __atomic_load_n((uint64_t *)p, __ATOMIC_ACQUIRE);
        break;
    }
    return 0;
}

int guest_memory_store(struct guest_memory *memory, gpa_t to, unsigned size, uint64_t value)
{
    void *p;
    int error = aligned_pointer(memory, to, size, &p);
    if (!error)
        error = guest_memory_write_begin(memory, to, size);
    if (error)
        return error;
    switch (size) {
    case 1:
        __atomic_store_n((uint8_t *)p, (uint8_t)value, __ATOMIC_RELEASE);
        break;
    case 2:
        __atomic_store_n((uint16_t *)p, (uint16_t)value, __ATOMIC_RELEASE);
        break;
    case 4:
        __atomic_store_n((uint32_t *)p, (uint32_t)value, __ATOMIC_RELEASE);
        break;
    default:
        __atomic_store_n((uint64_t *)p, value, __ATOMIC_RELEASE);
        break;
    }
    guest_memory_write_end(memory, to, size);
    return 0;
}

int guest_memory_iov(struct guest_memory *memory, gpa_t start, uint64_t length, unsigned need,
                     struct iovec *iov, unsigned *count)
{
    int error = range_check(memory, start, length);
    if (error)
        return error;
    unsigned used = 0;
    while (length) {
        uint64_t part;
        unsigned flags;
        uint8_t *hva = piece(memory, start, length, &part, &flags);
        if ((flags & need) != need)
            return -ENOTSUP;
        if (used == *count)
            return -E2BIG;
        iov[used++] = (struct iovec) {hva, part};
        start = gpa_add(start, part);
        length -= part;
    }
    *count = used;
    return 0;
}

int guest_memory_write_begin(struct guest_memory *memory, gpa_t start, uint64_t length)
{
    int error = range_check(memory, start, length);
    if (error)
        return error;
    list_for_each (link, &memory->observers) {
        struct mem_observer *observer = container_of(link, struct mem_observer, link);
        error = observer->begin ? observer->begin(observer, start, length) : 0;
        if (error)
            return error;
    }
    return 0;
}

void guest_memory_write_end(struct guest_memory *memory, gpa_t start, uint64_t length)
{
    list_for_each (link, &memory->observers) {
        struct mem_observer *observer = container_of(link, struct mem_observer, link);
        if (observer->end)
            observer->end(observer, start, length);
    }
}

void guest_memory_observe(struct guest_memory *memory, struct mem_observer *observer)
{
    list_push_back(&memory->observers, &observer->link);
}
