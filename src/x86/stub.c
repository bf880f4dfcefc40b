/*
 * The store of stubs: a bump allocator over executable memory and a hash from code to stub. Stubs
 * are never dropped one by one, since decoded instructions point to them. Any thread; a spin lock
 * is held for a lookup or for copying some 60 bytes.
 */
#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "x86/stub_int.h"

#define STUB_BUCKETS 4096u
#define STUB_ALIGN   16u
#define STUB_INT3    0xcc

struct stub_entry {
    struct x86_stub stub;
    struct stub_entry *next;
    const uint8_t *code; /* writable alias: only read */
    size_t size;
};

struct x86_stubs {
    struct x86_stub_memory memory;
    size_t used;
    atomic_flag lock;
    struct stub_entry *bucket[STUB_BUCKETS];
};

int x86_stubs_create(struct x86_stubs **out, const struct x86_stub_memory *memory)
{
    struct x86_stubs *stubs = calloc(1, sizeof *stubs);

    if (!stubs)
        return -ENOMEM;
    stubs->memory = *memory;
    atomic_flag_clear(&stubs->lock);
    *out = stubs;
    return 0;
}

void x86_stubs_destroy(struct x86_stubs *stubs)
{
    if (!stubs)
        return;
    for (unsigned i = 0; i < STUB_BUCKETS; i++) {
        struct stub_entry *entry = stubs->bucket[i];
        while (entry) {
            struct stub_entry *next = entry->next;
            free(entry);
            entry = next;
        }
    }
    free(stubs);
}

size_t x86_stubs_used(const struct x86_stubs *stubs)
{
    return stubs->used;
}

/* FNV-1a */
static uint32_t stub_hash(const uint8_t *code, size_t size)
{
    uint32_t hash = 2166136261u;

    for (size_t i = 0; i < size; i++)
        hash = (hash ^ code[i]) * 16777619u;
    return (hash ^ hash >> 16) % STUB_BUCKETS;
}

static bool stub_equal(const struct stub_entry *entry, const struct x86_stub *like,
                       const uint8_t *code, size_t size)
{
    const struct x86_stub *s = &entry->stub;

    return entry->size == size && memcmp(entry->code, code, size) == 0 && s->flags == like->flags &&
           s->mem_size == like->mem_size && s->dest_size == like->dest_size &&
           s->tiny_count == like->tiny_count;
}

static struct stub_entry *stub_make(struct x86_stubs *stubs, const struct x86_stub *like,
                                    const uint8_t *code, size_t size)
{
    size_t room = (size_t)align_up(size, STUB_ALIGN), at = stubs->used;
    struct stub_entry *entry;

    if (!range_fits(at, room, stubs->memory.size) || !(entry = malloc(sizeof *entry)))
        return NULL;
    memcpy(stubs->memory.write + at, code, size);
    memset(stubs->memory.write + at + size, STUB_INT3, room - size);
    stubs->used += room;
    entry->stub = *like;
    entry->stub.run = (x86_stub_code *)(void *)(stubs->memory.execute + at);
    entry->code = stubs->memory.write + at;
    entry->size = size;
    return entry;
}

const struct x86_stub *x86_stub_get(struct x86_stubs *stubs, const struct x86_stub *like,
                                    const uint8_t *code, size_t size)
{
    struct stub_entry *entry;
    unsigned bucket;

    if (!stubs)
        return NULL;
    bucket = stub_hash(code, size);
    while (atomic_flag_test_and_set_explicit(&stubs->lock, memory_order_acquire))
        __builtin_ia32_pause();
    for (entry = stubs->bucket[bucket]; entry; entry = entry->next)
        if (stub_equal(entry, like, code, size))
            break;
    if (!entry && (entry = stub_make(stubs, like, code, size))) {
        entry->next = stubs->bucket[bucket];
        stubs->bucket[bucket] = entry;
    }
    atomic_flag_clear_explicit(&stubs->lock, memory_order_release);
    return entry ? &entry->stub : NULL;
}
