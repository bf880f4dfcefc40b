/* Executable memory for x86/stub.h and x86/translate.h: one memfd seen twice. */
#ifndef PARAT_VM_STUB_MEMORY_H
#define PARAT_VM_STUB_MEMORY_H

#include <stddef.h>
#include <stdint.h>

#include "base/bits.h"
#include "base/err.h"

struct stub_memory {
    uint8_t *write, *execute; /* with guard pages around */
    size_t size;
};

/* size: a multiple of the page size. */
int stub_memory_create(struct stub_memory *memory, size_t size, struct err *err) MUST_USE;
void stub_memory_destroy(struct stub_memory *memory);

#endif
