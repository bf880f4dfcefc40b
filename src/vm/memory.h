/*
 * Guest memory: an ordered list of regions and the only ways to reach them from the host side.
 *
 * Every host-side write is bracketed by guest_memory_write_begin/end before its completion becomes
 * visible to the guest. The copying accessors do that themselves; whoever takes a host pointer
 * (direct I/O into an iovec) brackets by hand. Observers of the brackets load lazily restored
 * pages, feed the dirty bitmap and drop translated code.
 *
 * Regions are added while no vCPU runs. After that every function may be called on any thread.
 */
#ifndef PARAT_VM_MEMORY_H
#define PARAT_VM_MEMORY_H

#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "base/addr.h"
#include "base/bits.h"
#include "base/err.h"
#include "base/list.h"

enum mem_backing {
    MEM_BACKING_MEMFD,   /* shareable anonymous memory */
    MEM_BACKING_HUGETLB, /* later */
    MEM_BACKING_FILE,    /* private mapping of a file, later */
    MEM_BACKING_DEVICE,  /* later: memory lent by parat-metal */
};

enum mem_flags {
    MEM_PINNABLE = 1 << 0,  /* the kernel may pin it: io_uring fixed buffers, O_DIRECT */
    MEM_SHAREABLE = 1 << 1, /* fd may be passed to a helper process */
    MEM_LAZY = 1 << 2,      /* pages appear on first use; write_begin loads them */
    MEM_READONLY = 1 << 3,  /* the guest cannot write it (ROM) */
};

struct mem_region {
    gpa_t start;
    uint64_t size; /* whole pages */
    enum mem_backing backing;
    unsigned flags;
    uint8_t *hva;
    int fd;
    uint64_t fd_offset;
};

struct guest_memory;

int guest_memory_create(struct guest_memory **out) MUST_USE;
void guest_memory_destroy(struct guest_memory *memory); /* NULL is fine */

/*
 * Adds RAM of size bytes (whole pages) at start: zeroed, not touched, so that it costs nothing
 * until used. -EEXIST on overlap, -ENOMEM (with the sentence) when the host refuses.
 */
int guest_memory_add_ram(struct guest_memory *memory, gpa_t start, uint64_t size,
                         struct err *err) MUST_USE;

/* Regions sorted by address; valid until the next add. */
const struct mem_region *guest_memory_regions(const struct guest_memory *memory, size_t *count);
/* The region that holds the address, or NULL. */
const struct mem_region *guest_memory_find(const struct guest_memory *memory, gpa_t address);
uint64_t guest_memory_ram_size(const struct guest_memory *memory);

/*
 * Copies. -EFAULT when any byte is not RAM (nothing is copied then) or a page cannot be had.
 * May span regions.
 */
int guest_memory_read(struct guest_memory *memory, gpa_t from, void *to, size_t length) MUST_USE;
int guest_memory_write(struct guest_memory *memory, gpa_t to, const void *from,
                       size_t length) MUST_USE;
int guest_memory_fill(struct guest_memory *memory, gpa_t to, uint8_t byte,
                      uint64_t length) MUST_USE;

/*
 * One access of 1, 2, 4 or 8 bytes, naturally aligned: exactly one host access (acquire, release).
 * -EFAULT as above, -EINVAL when not aligned.
 */
int guest_memory_load(struct guest_memory *memory, gpa_t from, unsigned size,
                      uint64_t *value) MUST_USE;
int guest_memory_store(struct guest_memory *memory, gpa_t to, unsigned size,
                       uint64_t value) MUST_USE;

/*
 * Host pointers for direct I/O: fills up to *count iovecs for [start, start + length) and sets
 * *count to how many were used. All of them lie in regions that have every flag of `need`
 * (enum mem_flags); -ENOTSUP when a region lacks one (bounce then), -EFAULT when a byte is not RAM,
 * -E2BIG when *count is too small. Writes through them need the bracket.
 */
int guest_memory_iov(struct guest_memory *memory, gpa_t start, uint64_t length, unsigned need,
                     struct iovec *iov, unsigned *count) MUST_USE;

/* The write bracket. begin may fail (-EFAULT, -EIO): then do not write and do not call end. */
int guest_memory_write_begin(struct guest_memory *memory, gpa_t start, uint64_t length) MUST_USE;
void guest_memory_write_end(struct guest_memory *memory, gpa_t start, uint64_t length);

/*
 * Told of every bracket. begin returns 0 or -errno (the write does not happen then); NULL is fine
 * for either. Called on the writing thread. Added while no vCPU runs; the caller owns the struct.
 */
struct mem_observer {
    int (*begin)(struct mem_observer *observer, gpa_t start, uint64_t length);
    void (*end)(struct mem_observer *observer, gpa_t start, uint64_t length);
    struct list link;
};

void guest_memory_observe(struct guest_memory *memory, struct mem_observer *observer);

#endif
