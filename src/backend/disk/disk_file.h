/* The host's file or block device behind an image: opened, locked, measured. Loop thread. */
#ifndef PARAT_BACKEND_DISK_DISK_FILE_H
#define PARAT_BACKEND_DISK_DISK_FILE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/bits.h"
#include "base/err.h"

struct disk_file_config {
    const char *label; /* begins each sentence, right before the path: "--disk " */
    const char *path;
    bool read_only;
    bool direct;  /* O_DIRECT as well */
    bool no_lock; /* only to look at it */
};

struct disk_file {
    int fd;        /* through the page cache; holds the lock */
    int direct_fd; /* O_DIRECT, or -1 */
    uint64_t size; /* bytes, at the time of opening */
    uint64_t device, inode;
    uint32_t block_size;                        /* preferred, 512 or more */
    uint32_t direct_align, direct_memory_align; /* bytes; for direct_fd */
    bool read_only, can_discard, is_block_device;
};

/*
 * Opens and locks (OFD locks: exclusive when writable, shared when read-only). Errors name the path
 * and the reason: missing, a directory, no permission, in use by another VM. Nothing is left open
 * then.
 */
int disk_file_open(struct disk_file *out, const struct disk_file_config *config,
                   struct err *err) MUST_USE;
/* Makes an empty file, writable and locked; -EEXIST when something has this name. */
int disk_file_create(struct disk_file *out, const struct disk_file_config *config,
                     struct err *err) MUST_USE;
void disk_file_close(struct disk_file *file);

#endif
