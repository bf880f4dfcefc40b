/*
 * Guest-physical memory: the slots as the kernel has them, the dirty log. Any thread that may
 * change the map; memory_lock is held meanwhile.
 *
 * The kernel can add and delete a slot but not cut one or change its protection. Where a slot is
 * replaced, all vCPUs are kept out of KVM_RUN in between (the gate), so that none finds a hole: it
 * would take RAM for a device.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/kvm/kvm_int.h"

/* --- the gate --- */

void kvm_gate_enter(struct engine_vcpu *vcpu)
{
    struct engine_vm *vm = vcpu->vm;
    for (;;) {
        atomic_store(&vcpu->inside, true); /* pairs with gate_close */
        if (likely(!atomic_load(&vm->gate_closed)))
            return;
        kvm_gate_leave(vcpu);
        pthread_mutex_lock(&vm->memory_lock);
        pthread_mutex_unlock(&vm->memory_lock);
    }
}

void kvm_gate_leave(struct engine_vcpu *vcpu)
{
    struct engine_vm *vm = vcpu->vm;
    atomic_store(&vcpu->inside, false);
    if (likely(!atomic_load(&vm->gate_closed)))
        return;
    pthread_mutex_lock(&vm->gate_lock);
    pthread_cond_broadcast(&vm->gate_left);
    pthread_mutex_unlock(&vm->gate_lock);
}

/* Waits for KVM_RUN to return on other threads, not for what they do then: they may be waiting for
 * a lock of the caller's. */
static void gate_close(struct engine_vm *vm)
{
    atomic_store(&vm->gate_closed, true);
    pthread_mutex_lock(&vm->gate_lock);
    for (unsigned i = 0; i < vm->vcpu_count; i++) {
        if (atomic_load(&vm->vcpu[i]->inside))
            kvm_vcpu_wake(vm->vcpu[i]);
        while (atomic_load(&vm->vcpu[i]->inside))
            pthread_cond_wait(&vm->gate_left, &vm->gate_lock);
    }
    pthread_mutex_unlock(&vm->gate_lock);
}

static void gate_open(struct engine_vm *vm)
{
    atomic_store(&vm->gate_closed, false);
}

/* --- slots --- */

static bool is_given(const struct kvm_slot *slot)
{
    return slot->protection & MEM_PROT_READ;
}

static int tell_kernel(struct engine_vm *vm, const struct kvm_slot *slot, uint64_t size)
{
    struct kvm_userspace_memory_region region = {
        .slot = slot->id,
        .flags = (slot->protection & MEM_PROT_WRITE ? 0 : KVM_MEM_READONLY) |
                 (slot->dirty ? KVM_MEM_LOG_DIRTY_PAGES : 0),
        .guest_phys_addr = slot->start,
        .memory_size = size,
        .userspace_addr = (uint64_t)(uintptr_t)slot->hva,
    };
    return is_given(slot) ? kvm_call(vm->fd, KVM_SET_USER_MEMORY_REGION, &region) : 0;
}

static size_t bitmap_words(uint64_t size)
{
    return (size_t)(size / PAGE_SIZE + 63) / 64;
}

/* The map with one change made: a new list of slots. */
struct map_change {
    uint64_t start, end;
    bool keep; /* the part inside stays mapped, with another protection */
    unsigned protection;
    struct kvm_slot slot[KVM_SLOTS_MAX];
    unsigned count;
    bool replaces; /* some old slot is cut or changed */
    bool no_memory;
};

static void change_put(struct map_change *c, const struct kvm_slot *old, uint64_t start,
                       uint64_t end, unsigned protection)
{
    if (start >= end)
        return;
    if (c->count < KVM_SLOTS_MAX)
        c->slot[c->count] = (struct kvm_slot) {.start = start,
                                               .size = end - start,
                                               .hva = old->hva + (start - old->start),
                                               .protection = protection,
                                               .dirty = old->dirty};
    c->count++;
}

static void change_split(struct map_change *c, const struct kvm_slot *old)
{
    uint64_t old_end = old->start + old->size;
    uint64_t start = MAX(old->start, c->start), end = MIN(old_end, c->end);
    if (start >= end) {
        change_put(c, old, old->start, old_end, old->protection);
        return;
    }
    c->replaces = true;
    change_put(c, old, old->start, start, old->protection);
    if (c->keep)
        change_put(c, old, start, end, c->protection);
    change_put(c, old, end, old_end, old->protection);
}

static bool is_same(const struct kvm_slot *a, const struct kvm_slot *b)
{
    return a->start == b->start && a->size == b->size && a->hva == b->hva &&
           a->protection == b->protection;
}

static const struct kvm_slot *find_same(const struct kvm_slot *list, unsigned count,
                                        const struct kvm_slot *wanted)
{
    for (unsigned i = 0; i < count; i++) {
        if (is_same(&list[i], wanted))
            return &list[i];
    }
    return NULL;
}

static unsigned free_id(const struct map_change *c)
{
    for (unsigned id = 0;; id++) {
        bool used = false;
        for (unsigned i = 0; i < c->count; i++)
            used |= c->slot[i].id == id;
        if (!used)
            return id;
    }
}

/* Slots that stay keep number and log; new ones of a logged slot count as written all over. */
static void change_number(struct engine_vm *vm, struct map_change *c)
{
    for (unsigned i = 0; i < c->count; i++) {
        const struct kvm_slot *same = find_same(vm->slot, vm->slot_count, &c->slot[i]);
        bool logged = c->slot[i].dirty;
        c->slot[i].id = same ? same->id : UINT32_MAX;
        c->slot[i].dirty = same ? same->dirty : NULL;
        if (same || !logged)
            continue;
        size_t bytes = bitmap_words(c->slot[i].size) * sizeof(uint64_t);
        c->slot[i].dirty = malloc(bytes);
        if (c->slot[i].dirty)
            memset(c->slot[i].dirty, 0xff, bytes);
        else
            c->no_memory = true;
    }
    for (unsigned i = 0; i < c->count; i++) {
        if (c->slot[i].id == UINT32_MAX)
            c->slot[i].id = free_id(c);
    }
}

/* Deletes what is no longer there, then adds what is new. */
static int change_tell(struct engine_vm *vm, const struct map_change *c)
{
    int error = 0;
    for (unsigned i = 0; i < vm->slot_count && !error; i++) {
        if (!find_same(c->slot, c->count, &vm->slot[i]))
            error = tell_kernel(vm, &vm->slot[i], 0);
    }
    for (unsigned i = 0; i < c->count && !error; i++) {
        if (!find_same(vm->slot, vm->slot_count, &c->slot[i]))
            error = tell_kernel(vm, &c->slot[i], c->slot[i].size);
    }
    return error;
}

static void change_free(const struct kvm_slot *list, unsigned count, const struct kvm_slot *kept,
                        unsigned kept_count)
{
    for (unsigned i = 0; i < count; i++) {
        if (!find_same(kept, kept_count, &list[i]))
            free(list[i].dirty);
    }
}

/* memory_lock held. */
static int change_install(struct engine_vm *vm, struct map_change *c)
{
    if (c->count > KVM_SLOTS_MAX)
        return -ENOSPC;
    change_number(vm, c);
    int error = c->no_memory ? -ENOMEM : 0;
    if (error) {
        change_free(c->slot, c->count, vm->slot, vm->slot_count);
        return error;
    }
    if (c->replaces)
        gate_close(vm);
    error = change_tell(vm, c);
    if (c->replaces)
        gate_open(vm);
    change_free(vm->slot, vm->slot_count, c->slot, c->count);
    memcpy(vm->slot, c->slot, c->count * sizeof c->slot[0]);
    vm->slot_count = c->count;
    return error;
}

static int change_begin(struct map_change *c, gpa_t start, uint64_t size)
{
    c->start = start.v;
    if (((start.v | size) & ~PAGE_MASK) || !size || add_overflows(start.v, size, &c->end))
        return -EINVAL;
    return 0;
}

static int change_all(struct engine_vm *vm, struct map_change *c)
{
    pthread_mutex_lock(&vm->memory_lock);
    for (unsigned i = 0; i < vm->slot_count; i++)
        change_split(c, &vm->slot[i]);
    int error = change_install(vm, c);
    pthread_mutex_unlock(&vm->memory_lock);
    return error;
}

int kvm_memory_map(struct engine_vm *vm, const struct engine_slot *slot)
{
    struct map_change c = {0};
    int error = change_begin(&c, slot->start, slot->size);
    if (error)
        return error;
    pthread_mutex_lock(&vm->memory_lock);
    for (unsigned i = 0; i < vm->slot_count; i++) {
        if (ranges_overlap(c.start, slot->size, vm->slot[i].start, vm->slot[i].size))
            error = -EEXIST;
        change_split(&c, &vm->slot[i]);
    }
    struct kvm_slot added = {.start = c.start, .hva = slot->hva};
    change_put(&c, &added, c.start, c.end, slot->protection);
    if (!error)
        error = change_install(vm, &c);
    pthread_mutex_unlock(&vm->memory_lock);
    return error;
}

int kvm_memory_unmap(struct engine_vm *vm, gpa_t start, uint64_t size)
{
    struct map_change c = {0};
    int error = change_begin(&c, start, size);
    return error ? error : change_all(vm, &c);
}

int kvm_memory_protect(struct engine_vm *vm, gpa_t start, uint64_t size, unsigned protection)
{
    struct map_change c = {.keep = true, .protection = protection};
    int error = change_begin(&c, start, size);
    return error ? error : change_all(vm, &c);
}

void kvm_memory_destroy(struct engine_vm *vm)
{
    for (unsigned i = 0; i < vm->slot_count; i++)
        free(vm->slot[i].dirty);
    vm->slot_count = 0;
}

/* --- dirty log --- */

/* Turns the log on. Until then everything may have been written. */
static int log_begin(struct engine_vm *vm, struct kvm_slot *slot)
{
    size_t bytes = bitmap_words(slot->size) * sizeof(uint64_t);
    slot->dirty = malloc(bytes);
    if (!slot->dirty)
        return -ENOMEM;
    memset(slot->dirty, 0xff, bytes);
    int error = tell_kernel(vm, slot, slot->size);
    if (error) {
        free(slot->dirty);
        slot->dirty = NULL;
    }
    return error;
}

/* Takes the kernel's log of the slot, which clears it, into the slot's own. */
static int log_fetch(struct engine_vm *vm, struct kvm_slot *slot)
{
    if (!slot->dirty)
        return log_begin(vm, slot);
    if (!is_given(slot))
        return 0;
    size_t words = bitmap_words(slot->size);
    uint64_t *fresh = calloc(words, sizeof *fresh);
    if (!fresh)
        return -ENOMEM;
    struct kvm_dirty_log log = {.slot = slot->id, .dirty_bitmap = fresh};
    int error = kvm_call(vm->fd, KVM_GET_DIRTY_LOG, &log);
    for (size_t i = 0; i < words && !error; i++)
        slot->dirty[i] |= fresh[i];
    free(fresh);
    return error;
}

/* Moves the bits of [start, start + size) that lie in the slot to the caller's bitmap. */
static void log_take(struct kvm_slot *slot, uint64_t start, uint64_t size, uint64_t *bitmap)
{
    uint64_t from = MAX(start, slot->start), to = MIN(start + size, slot->start + slot->size);
    for (uint64_t at = from; at < to; at += PAGE_SIZE) {
        uint64_t mine = (at - slot->start) / PAGE_SIZE, theirs = (at - start) / PAGE_SIZE;
        if (slot->dirty[mine / 64] >> (mine % 64) & 1)
            bitmap[theirs / 64] |= BIT(theirs % 64);
        slot->dirty[mine / 64] &= ~BIT(mine % 64);
    }
}

/* The first call for a piece of memory turns its log on, and says that all of it was written. */
int kvm_dirty_log(struct engine_vm *vm, gpa_t start, uint64_t size, uint64_t *bitmap)
{
    uint64_t end;
    if (((start.v | size) & ~PAGE_MASK) || !size || add_overflows(start.v, size, &end))
        return -EINVAL;
    int error = 0;
    pthread_mutex_lock(&vm->memory_lock);
    for (unsigned i = 0; i < vm->slot_count && !error; i++) {
        struct kvm_slot *slot = &vm->slot[i];
        if (!ranges_overlap(start.v, size, slot->start, slot->size))
            continue;
        error = log_fetch(vm, slot);
        if (!error)
            log_take(slot, start.v, size, bitmap);
    }
    pthread_mutex_unlock(&vm->memory_lock);
    return error;
}
