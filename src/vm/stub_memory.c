/*
 * Executable memory for the stubs and the translated code of x86/: one memfd mapped twice, writable
 * and executable apart, each at an address of the kernel's choice between guard pages. Loop thread.
 */
#include "vm/stub_memory.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/addr.h"

static uint8_t *map_guarded(int fd, size_t size, int protection)
{
    size_t guard = PAGE_SIZE;
    uint8_t *around =
        mmap(NULL, size + 2 * guard, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (around == MAP_FAILED)
        return NULL;
    uint8_t *inside = mmap(around + guard, size, protection, MAP_SHARED | MAP_FIXED, fd, 0);
    if (inside != MAP_FAILED)
        return inside;
    munmap(around, size + 2 * guard);
    return NULL;
}

static void unmap_guarded(uint8_t *inside, size_t size)
{
    if (inside)
        munmap(inside - PAGE_SIZE, size + 2 * PAGE_SIZE);
}

void stub_memory_destroy(struct stub_memory *memory)
{
    unmap_guarded(memory->write, memory->size);
    unmap_guarded(memory->execute, memory->size);
    *memory = (struct stub_memory) {0};
}

int stub_memory_create(struct stub_memory *memory, size_t size, struct err *err)
{
    *memory = (struct stub_memory) {.size = size};
    int fd = memfd_create("parat-code", MFD_CLOEXEC);
    if (fd < 0)
        return err_set(err, errno, "cannot make memory for code: %s", strerror(errno));
    if (!ftruncate(fd, (off_t)size)) {
        memory->write = map_guarded(fd, memory->size, PROT_READ | PROT_WRITE);
        if (memory->write)
            memory->execute = map_guarded(fd, memory->size, PROT_READ | PROT_EXEC);
    }
    int error = errno;
    close(fd);
    if (memory->execute)
        return 0;
    stub_memory_destroy(memory);
    return err_set(err, error, "the host does not let a program make executable memory: %s",
                   strerror(error));
}
