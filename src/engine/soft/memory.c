/*
 * Guest-physical memory of engine soft: slots, and the marks that keep decoded code and RAM in step
 * (DESIGN 8.4).
 *
 * A page with a code mark has no direct writers: every store to it goes through store_begin/end,
 * which drops the blocks made from the bytes. Marking a page takes write access from all that may
 * have it, in the exclusive section, before the bytes that are decoded are read. What is posted to
 * a vCPU (drop this page) is done before its next block; a mark is cleared only after the post. So
 * a block whose bytes changed after they were read never runs again.
 *
 * Threads: vCPU threads while running, without a lock on the slots; others under slots_lock.
 */
#include "engine/soft/soft_int.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "x86/mem.h"

/* --- slots --- */

static struct soft_slot *find_slot(struct engine_vm *vm, uint64_t address)
{
    for (unsigned i = 0; i < vm->slot_count; i++) {
        if (address < vm->slot[i].end)
            return address >= vm->slot[i].start ? &vm->slot[i] : NULL;
    }
    return NULL;
}

int soft_memory_create(struct engine_vm *vm)
{
    for (unsigned i = 0; i < SOFT_PAGE_LOCKS; i++)
        pthread_mutex_init(&vm->page_lock[i], NULL);
    return pthread_rwlock_init(&vm->slots_lock, NULL) ? -ENOMEM : 0;
}

static void free_slot(struct soft_slot *slot)
{
    free(slot->code);
    free(slot->writer);
}

void soft_memory_destroy(struct engine_vm *vm)
{
    for (unsigned i = 0; i < vm->slot_count; i++)
        free_slot(&vm->slot[i]);
    pthread_rwlock_destroy(&vm->slots_lock);
    for (unsigned i = 0; i < SOFT_PAGE_LOCKS; i++)
        pthread_mutex_destroy(&vm->page_lock[i]);
}

/* The tables start zeroed and untouched, so they cost what is used. */
static int make_slot(struct soft_slot *out, uint64_t start, uint64_t end, uint8_t *hva,
                     unsigned protection)
{
    size_t pages = (end - start) >> PAGE_SHIFT;
    *out = (struct soft_slot) {.start = start,
                               .end = end,
                               .hva = hva,
                               .protection = protection,
                               .code = calloc(pages, sizeof *out->code),
                               .writer = calloc(pages, sizeof *out->writer)};
    if (out->code && out->writer)
        return 0;
    free_slot(out);
    return -ENOMEM;
}

static void post_drop_all(struct engine_vcpu *vcpu)
{
    pthread_mutex_lock(&vcpu->post_lock);
    vcpu->post_count = SOFT_POSTS_MAX + 1;
    atomic_store(&vcpu->posted, true);
    pthread_mutex_unlock(&vcpu->post_lock);
    soft_notify(vcpu);
}

/* Exclusive. Nothing of the old map stays in any TLB, nor any block. */
static void forget_map(struct engine_vm *vm)
{
    for (unsigned i = 0; i < vm->vcpu_count; i++) {
        x86_tlb_flush(&vm->vcpu[i]->cpu, false);
        post_drop_all(vm->vcpu[i]);
    }
}

/* The new table replaces the old one while nobody reads it. Marks start anew. */
static void install_slots(struct engine_vm *vm, const struct soft_slot *slot, unsigned count)
{
    exclusive_begin(&vm->exclusive, NULL);
    for (unsigned i = 0; i < vm->slot_count; i++)
        free_slot(&vm->slot[i]);
    memcpy(vm->slot, slot, count * sizeof *slot);
    vm->slot_count = count;
    forget_map(vm);
    exclusive_end(&vm->exclusive);
}

/* A change of [start, end): what remains of each old slot around it, and what takes its place. */
struct map_change {
    uint64_t start, end;
    bool keep; /* the part inside stays mapped, with another protection */
    unsigned protection;
    const struct engine_slot *add; /* or this comes in */
    struct soft_slot slot[SOFT_SLOTS_MAX];
    unsigned count;
};

static int change_add(struct map_change *c, uint64_t start, uint64_t end, uint8_t *hva,
                      unsigned protection)
{
    if (start >= end)
        return 0;
    if (c->count == SOFT_SLOTS_MAX)
        return -ENOSPC;
    int error = make_slot(&c->slot[c->count], start, end, hva, protection);
    if (!error)
        c->count++;
    return error;
}

static int change_split(struct map_change *c, const struct soft_slot *old)
{
    uint64_t start = MAX(old->start, c->start), end = MIN(old->end, c->end);
    if (start >= end)
        return change_add(c, old->start, old->end, old->hva, old->protection);
    int error = change_add(c, old->start, start, old->hva, old->protection);
    if (!error && c->keep)
        error = change_add(c, start, end, old->hva + (start - old->start), c->protection);
    if (!error)
        error = change_add(c, end, old->end, old->hva + (end - old->start), old->protection);
    return error;
}

static int by_start(const void *a, const void *b)
{
    const struct soft_slot *x = a, *y = b;
    return x->start < y->start ? -1 : x->start > y->start;
}

/* slots_lock held for writing. */
static int change_map(struct engine_vm *vm, struct map_change *c)
{
    int error = 0;
    for (unsigned i = 0; i < vm->slot_count && !error; i++)
        error = change_split(c, &vm->slot[i]);
    if (!error && c->add)
        error = change_add(c, c->start, c->end, c->add->hva, c->add->protection);
    if (error) {
        for (unsigned i = 0; i < c->count; i++)
            free_slot(&c->slot[i]);
        return error;
    }
    qsort(c->slot, c->count, sizeof c->slot[0], by_start);
    install_slots(vm, c->slot, c->count);
    return 0;
}

static int change_begin(struct map_change *c, gpa_t start, uint64_t size)
{
    c->start = start.v;
    if (((start.v | size) & ~PAGE_MASK) || !size || add_overflows(start.v, size, &c->end))
        return -EINVAL;
    return 0;
}

int soft_memory_map(struct engine_vm *vm, const struct engine_slot *slot)
{
    struct map_change c = {.add = slot};
    int error = change_begin(&c, slot->start, slot->size);
    if (error)
        return error;
    pthread_rwlock_wrlock(&vm->slots_lock);
    for (unsigned i = 0; i < vm->slot_count; i++) {
        if (c.start < vm->slot[i].end && vm->slot[i].start < c.end)
            error = -EEXIST;
    }
    if (!error)
        error = change_map(vm, &c);
    pthread_rwlock_unlock(&vm->slots_lock);
    return error;
}

int soft_memory_unmap(struct engine_vm *vm, gpa_t start, uint64_t size)
{
    struct map_change c = {0};
    int error = change_begin(&c, start, size);
    if (error)
        return error;
    pthread_rwlock_wrlock(&vm->slots_lock);
    error = change_map(vm, &c);
    pthread_rwlock_unlock(&vm->slots_lock);
    return error;
}

int soft_memory_protect(struct engine_vm *vm, gpa_t start, uint64_t size, unsigned protection)
{
    struct map_change c = {.keep = true, .protection = protection};
    int error = change_begin(&c, start, size);
    if (error)
        return error;
    pthread_rwlock_wrlock(&vm->slots_lock);
    error = change_map(vm, &c);
    pthread_rwlock_unlock(&vm->slots_lock);
    return error;
}

/* --- code marks --- */

static pthread_mutex_t *page_lock(struct engine_vm *vm, uint64_t address)
{
    return &vm->page_lock[(address >> PAGE_SHIFT) % SOFT_PAGE_LOCKS];
}

static size_t page_index(const struct soft_slot *slot, uint64_t address)
{
    return (address - slot->start) >> PAGE_SHIFT;
}

/* The 64-byte pieces of a page that [address, address + length) touches. */
static uint64_t granules(uint64_t address, unsigned length)
{
    unsigned first = (unsigned)(address & ~PAGE_MASK) / 64;
    unsigned last = ((unsigned)(address & ~PAGE_MASK) + length - 1) / 64;
    return ~0ull >> (63 - last) & ~0ull << first;
}

static void post_drop(struct engine_vcpu *vcpu, uint64_t page)
{
    pthread_mutex_lock(&vcpu->post_lock);
    if (vcpu->post_count < SOFT_POSTS_MAX)
        vcpu->post[vcpu->post_count++] = page;
    else
        vcpu->post_count = SOFT_POSTS_MAX + 1;
    atomic_store(&vcpu->posted, true);
    pthread_mutex_unlock(&vcpu->post_lock);
    soft_notify(vcpu);
}

void soft_take_posts(struct engine_vcpu *vcpu)
{
    if (!atomic_load(&vcpu->posted))
        return;
    pthread_mutex_lock(&vcpu->post_lock);
    if (vcpu->post_count > SOFT_POSTS_MAX)
        block_cache_clear(&vcpu->cache);
    else
        for (unsigned i = 0; i < vcpu->post_count; i++)
            block_cache_drop_page(&vcpu->cache, vcpu->post[i]);
    vcpu->post_count = 0;
    atomic_store(&vcpu->posted, false);
    pthread_mutex_unlock(&vcpu->post_lock);
}

/*
 * Bytes inside one page were written: drops the code made from them. The fence pairs with the
 * locked instructions of soft_memory_mark_code: either it sees the new bytes or we see its mark.
 */
static void invalidate_piece(struct engine_vm *vm, struct engine_vcpu *self, uint64_t address,
                             unsigned length)
{
    struct soft_slot *slot = find_slot(vm, address);
    if (!slot)
        return;
    _Atomic uint64_t *code = &slot->code[page_index(slot, address)];
    uint64_t touched = granules(address, length), page = address & PAGE_MASK;

    atomic_thread_fence(memory_order_seq_cst);
    if (!(atomic_load(code) & touched))
        return;
    pthread_mutex_lock(page_lock(vm, address));
    if (atomic_load(code) & touched) {
        atomic_store(code, 0); /* before the posts: see soft_memory_mark_code */
        for (unsigned i = 0; i < vm->vcpu_count; i++) {
            if (vm->vcpu[i] != self)
                post_drop(vm->vcpu[i], page);
        }
        if (self) {
            block_cache_drop_page(&self->cache, page);
            self->cpu.end_block = true;
            if (self->cache.full) /* host code may still lead to what it was to drop */
                soft_notify(self);
        }
    }
    pthread_mutex_unlock(page_lock(vm, address));
}

/* self: the vCPU whose thread this is, when it runs; else NULL. */
static void invalidate(struct engine_vm *vm, struct engine_vcpu *self, uint64_t address,
                       uint64_t length)
{
    while (length) {
        uint64_t piece = MIN(length, PAGE_SIZE - (address & ~PAGE_MASK));
        invalidate_piece(vm, self, address, (unsigned)piece);
        address += piece;
        length -= piece;
    }
}

void soft_memory_written(struct engine_vm *vm, gpa_t start, uint64_t length)
{
    pthread_rwlock_rdlock(&vm->slots_lock);
    invalidate(vm, NULL, start.v, length);
    pthread_rwlock_unlock(&vm->slots_lock);
}

/* In the exclusive section nobody keeps a way to write to the page directly, or gets one. */
static void revoke_writers(struct engine_vcpu *vcpu, uint64_t page)
{
    struct engine_vm *vm = vcpu->vm;

    exclusive_begin(&vm->exclusive, &vcpu->member);
    for (unsigned i = 0; i < vm->vcpu_count; i++)
        x86_tlb_write_protect(&vm->vcpu[i]->cpu, page);
    struct soft_slot *slot = find_slot(vm, page); /* the map may have changed before we began */
    if (slot)
        atomic_store(&slot->writer[page_index(slot, page)], SOFT_WRITER_NONE);
    exclusive_end(&vm->exclusive);
}

static bool is_at(struct engine_vm *vm, uint64_t address, const uint8_t *host)
{
    struct soft_slot *slot = find_slot(vm, address);
    return slot && (!host || slot->hva + ((address & PAGE_MASK) - slot->start) == host);
}

/*
 * The writer byte stays set until the revocation is complete, so a second vCPU that finds the page
 * marked, but not yet revoked, revokes (waits) too. The mark may be cleared again at once by a
 * store: then a post waits for this vCPU, and what it decodes now is dropped. Marks are cleared
 * before the posts: who has taken the post cannot find the old mark here, keep a block for it, and
 * have the mark cleared afterwards.
 */
bool soft_memory_mark_code(struct engine_vcpu *vcpu, uint64_t address, unsigned length,
                           const uint8_t *host)
{
    struct engine_vm *vm = vcpu->vm;
    struct soft_slot *slot = find_slot(vm, address);
    if (!slot)
        return false;
    size_t index = page_index(slot, address);
    uint64_t wanted = granules(address, length), page = address & PAGE_MASK;

    if ((atomic_load(&slot->code[index]) & wanted) == wanted &&
        atomic_load(&slot->writer[index]) == SOFT_WRITER_NONE)
        return true;
    pthread_mutex_lock(page_lock(vm, address));
    atomic_fetch_or(&slot->code[index], wanted);
    uint8_t writer = atomic_load(&slot->writer[index]);
    if (writer == vcpu->index + 1) {
        x86_tlb_write_protect(&vcpu->cpu, page);
        atomic_store(&slot->writer[index], SOFT_WRITER_NONE);
        writer = SOFT_WRITER_NONE;
    }
    pthread_mutex_unlock(page_lock(vm, address));
    if (writer == SOFT_WRITER_NONE)
        return true;
    revoke_writers(vcpu, page);
    return is_at(vm, address, host);
}

bool soft_memory_has_code(struct engine_vm *vm, uint64_t address, unsigned length)
{
    struct soft_slot *slot = find_slot(vm, address);
    return slot && atomic_load(&slot->code[page_index(slot, address)]) & granules(address, length);
}

/* --- x86_ops --- */

bool soft_is_apic_page(const struct engine_vcpu *vcpu, uint64_t page)
{
    uint64_t base = vcpu->lapic.base;
    return (base & PAGE_MASK) == page &&
           (base & (X86_APIC_BASE_ENABLE | X86_APIC_BASE_X2APIC)) == X86_APIC_BASE_ENABLE;
}

/*
 * May this vCPU write directly? Remembers that it can, for soft_memory_mark_code. Where that is
 * remembered already no lock is needed: only an exclusive section, or this thread, can end it, and
 * who marks the page now finds it and waits for us in one.
 */
static bool grant_write(struct engine_vcpu *vcpu, struct soft_slot *slot, uint64_t page)
{
    struct engine_vm *vm = vcpu->vm;
    size_t index = page_index(slot, page);
    uint8_t self = (uint8_t)(vcpu->index + 1), known = atomic_load(&slot->writer[index]);

    if ((known == self || known == SOFT_WRITER_MANY) && !atomic_load(&slot->code[index]) &&
        likely(!vm->test_grant_delay))
        return true;
    pthread_mutex_lock(page_lock(vm, page));
    bool granted = atomic_load(&slot->code[index]) == 0;
    uint8_t writer = atomic_load(&slot->writer[index]);
    if (granted && writer != self)
        atomic_store(&slot->writer[index], writer == SOFT_WRITER_NONE ? self : SOFT_WRITER_MANY);
    pthread_mutex_unlock(page_lock(vm, page));
    if (granted && unlikely(vm->test_grant_delay))
        vm->test_grant_delay(vcpu, page);
    return granted;
}

uint8_t *soft_page(void *context, gpa_t page, bool *writable)
{
    struct engine_vcpu *vcpu = context;
    struct soft_slot *slot = find_slot(vcpu->vm, page.v);

    if (!slot || soft_is_apic_page(vcpu, page.v))
        return NULL;
    if (*writable && !(slot->protection & MEM_PROT_WRITE))
        return NULL; /* the machine hears of writes to ROM as MMIO */
    if (*writable)
        *writable = grant_write(vcpu, slot, page.v);
    return slot->hva + (page.v - slot->start);
}

uint8_t *soft_store_begin(void *context, gpa_t address, unsigned length)
{
    struct engine_vcpu *vcpu = context;
    struct soft_slot *slot = find_slot(vcpu->vm, address.v);

    if (!slot || !(slot->protection & MEM_PROT_WRITE) || slot->end - address.v < length)
        return NULL;
    return slot->hva + (address.v - slot->start);
}

void soft_store_end(void *context, gpa_t address, unsigned length)
{
    struct engine_vcpu *vcpu = context;
    invalidate(vcpu->vm, vcpu, address.v, length);
}

bool soft_memory_write(struct engine_vcpu *vcpu, uint64_t address, const void *from,
                       unsigned length)
{
    const uint8_t *bytes = from;
    while (length) {
        unsigned piece = (unsigned)MIN(length, PAGE_SIZE - (address & ~PAGE_MASK));
        uint8_t *to = soft_store_begin(vcpu, gpa(address), piece);
        if (!to)
            return false;
        memcpy(to, bytes, piece);
        soft_store_end(vcpu, gpa(address), piece);
        address += piece;
        bytes += piece;
        length -= piece;
    }
    return true;
}
