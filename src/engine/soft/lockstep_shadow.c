/*
 * The shadow CPU of lockstep: memory by private copies, values recorded and given again, and the
 * loop that interprets a unit on it. vCPU's thread. See lockstep.h.
 */
#include <string.h>

#include "engine/soft/lockstep_int.h"
#include "x86/mem.h"
#include "x86/tlb.h"

/*
 * What one execution of a string instruction may do before it lets go is up to the handler; it lets
 * go soon after 64 KiB. The shadow goes further, so that its pages cover what the unit stores.
 */
#define STRING_LIMIT (128u << 10)

/* In so many instructions at the start, and in one unit of so many after them, each instruction is
 * fetched and decoded anew: that finds units that are stale. */
#define FRESH_FIRST 10000000u
#define FRESH_EACH  16u

/* The shadow is thrown away after this. */
static _Noreturn void abandon(struct lockstep *l)
{
    longjmp(l->abandon, 1);
}

static struct lockstep *lockstep_of(void *vcpu)
{
    return ((struct engine_vcpu *)vcpu)->lockstep;
}

/* --- memory --- */

static struct shadow_page *find_page(struct lockstep *l, uint64_t gpa)
{
    for (unsigned i = 0; i < l->page_count; i++) {
        if (l->page[i].gpa == gpa)
            return &l->page[i];
    }
    return NULL;
}

/* Not the guest's doing, so it does not end the unit. */
static void flush_shadow(struct lockstep *l)
{
    bool end_block = l->shadow.end_block;
    x86_tlb_flush(&l->shadow, false);
    l->shadow.end_block = end_block;
    l->own_flushes++;
}

static struct shadow_page *add_page(struct lockstep *l, uint64_t gpa, uint8_t *host)
{
    if (l->page_count == LOCKSTEP_PAGES_MAX)
        abandon(l);
    struct shadow_page *page = &l->page[l->page_count++];
    page->gpa = gpa;
    page->host = host;
    memcpy(page->base, host, PAGE_SIZE);
    memcpy(page->copy, page->base, PAGE_SIZE);
    if (l->phase == LOCKSTEP_REPEAT) {
        memcpy(page->original, page->base, PAGE_SIZE);
        memset(page->stored, 0, sizeof page->stored);
    }
    flush_shadow(l); /* entries for it lead to the guest's */
    return page;
}

/*
 * Stores to decoded code end the unit, as they do on the vCPU. When the unit is repeated each store
 * is noted.
 */
static uint8_t *shadow_page(void *context, gpa_t at, bool *writable)
{
    struct lockstep *l = lockstep_of(context);
    bool write = *writable;

    *writable = false;
    uint8_t *host = soft_page(context, at, writable);
    if (!host || (write && !soft_store_begin(context, at, 1)))
        return NULL;
    struct shadow_page *page = find_page(l, at.v);
    if (!page && !write)
        return host;
    if (!page)
        page = add_page(l, at.v, host);
    *writable =
        write && l->phase == LOCKSTEP_RECORD && !soft_memory_has_code(l->vcpu->vm, at.v, PAGE_SIZE);
    return page->copy;
}

static uint8_t *shadow_store_begin(void *context, gpa_t address, unsigned length)
{
    bool writable = true;
    uint8_t *page = shadow_page(context, gpa(address.v & PAGE_MASK), &writable);
    return page ? page + (address.v & ~PAGE_MASK) : NULL;
}

static void shadow_store_end(void *context, gpa_t address, unsigned length)
{
    struct lockstep *l = lockstep_of(context);
    struct shadow_page *page = find_page(l, address.v & PAGE_MASK);

    if (l->phase == LOCKSTEP_REPEAT && page)
        memset(page->stored + (address.v & ~PAGE_MASK), true, length);
    if (soft_memory_has_code(l->vcpu->vm, address.v, length))
        l->shadow.end_block = true;
}

/* Good until the guest changes its mappings: then both CPUs walk. */
static bool shadow_tlb_peek(void *context, uint64_t la, enum x86_access access, enum x86_mmu mmu,
                            struct x86_tlb_page *page)
{
    struct lockstep *l = lockstep_of(context);

    return l->shadow.tlb_flushes == l->own_flushes && l->shadow.s.cr3 == l->before.cr3 &&
           x86_tlb_peek(&l->vcpu->cpu, la, access, mmu, page);
}

/* --- values --- */

static void record(struct lockstep *l, const struct shadow_value *value)
{
    if (l->value_count == LOCKSTEP_VALUES_MAX)
        abandon(l);
    l->value[l->value_count++] = *value;
}

/* The next recorded value, if it is of that kind. */
static bool recorded(struct lockstep *l, struct shadow_value *value)
{
    const struct shadow_value *next = &l->value[l->value_next];

    if (l->phase == LOCKSTEP_IDLE || l->value_next == l->value_count || next->kind != value->kind ||
        next->index != value->index)
        return false;
    *value = *next;
    l->value_next++;
    return true;
}

/* From the engine, or once more. */
static void ask(struct lockstep *l, struct shadow_value *value)
{
    struct engine_vcpu *vcpu = l->vcpu;

    if (l->phase != LOCKSTEP_RECORD && recorded(l, value))
        return;
    value->ok = true;
    switch (value->kind) {
    case VALUE_TSC:
        value->value = soft_x86_ops.tsc(vcpu);
        break;
    case VALUE_RANDOM:
        value->ok = soft_x86_ops.random(vcpu, &value->value);
        break;
    case VALUE_MSR:
        value->ok = soft_x86_ops.msr_read(vcpu, value->index, &value->value);
        break;
    case VALUE_CR8:
        value->value = soft_x86_ops.cr8_read(vcpu);
        break;
    case VALUE_APIC:
        break;
    }
    if (l->phase == LOCKSTEP_RECORD)
        record(l, value);
    else if (l->phase == LOCKSTEP_REPEAT)
        abandon(l);
}

static uint64_t ask_tsc(void *context)
{
    struct shadow_value v = {.kind = VALUE_TSC};
    ask(lockstep_of(context), &v);
    return v.value;
}

static bool ask_random(void *context, uint64_t *value)
{
    struct shadow_value v = {.kind = VALUE_RANDOM, .value = *value};
    ask(lockstep_of(context), &v);
    *value = v.value;
    return v.ok;
}

static bool ask_msr(void *context, uint32_t index, uint64_t *value)
{
    struct shadow_value v = {.kind = VALUE_MSR, .index = index, .value = *value};
    ask(lockstep_of(context), &v);
    *value = v.value;
    return v.ok;
}

static uint64_t ask_cr8(void *context)
{
    struct shadow_value v = {.kind = VALUE_CR8};
    ask(lockstep_of(context), &v);
    return v.value;
}

/* The APIC's registers can be read without harm; a device's perhaps not. */
static uint64_t shadow_mmio_read(void *context, gpa_t address, unsigned size)
{
    struct lockstep *l = lockstep_of(context);
    struct shadow_value v = {.kind = VALUE_APIC, .index = (uint32_t)address.v};

    if (!soft_is_apic_page(l->vcpu, address.v & PAGE_MASK))
        abandon(l);
    if (l->phase == LOCKSTEP_REPEAT) {
        if (!recorded(l, &v))
            abandon(l);
        return v.value;
    }
    v.value = soft_x86_ops.mmio_read(context, address, size);
    record(l, &v);
    return v.value;
}

/* --- what is not done twice --- */

static void shadow_mmio_write(void *context, gpa_t address, unsigned size, uint64_t value)
{
    abandon(lockstep_of(context));
}

static uint32_t shadow_pio_read(void *context, uint16_t port, unsigned size)
{
    abandon(lockstep_of(context));
}

static void shadow_pio_write(void *context, uint16_t port, unsigned size, uint32_t value)
{
    abandon(lockstep_of(context));
}

static bool shadow_msr_write(void *context, uint32_t index, uint64_t value)
{
    abandon(lockstep_of(context));
}

static void shadow_cr8_write(void *context, uint64_t value)
{
    abandon(lockstep_of(context));
}

/* The others stand still anyway. */
static void shadow_exclusive(void *context)
{
}

const struct x86_ops lockstep_shadow_ops = {
    .page = shadow_page,
    .store_begin = shadow_store_begin,
    .store_end = shadow_store_end,
    .mmio_read = shadow_mmio_read,
    .mmio_write = shadow_mmio_write,
    .pio_read = shadow_pio_read,
    .pio_write = shadow_pio_write,
    .exclusive_begin = shadow_exclusive,
    .exclusive_end = shadow_exclusive,
    .tsc = ask_tsc,
    .msr_read = ask_msr,
    .msr_write = shadow_msr_write,
    .cr8_read = ask_cr8,
    .cr8_write = shadow_cr8_write,
    .random = ask_random,
    .tlb_peek = shadow_tlb_peek,
};

/* --- the vCPU's side --- */

static uint64_t unit_mmio_read(void *context, gpa_t address, unsigned size)
{
    struct shadow_value v = {.kind = VALUE_APIC, .index = (uint32_t)address.v};

    if (recorded(lockstep_of(context), &v))
        return v.value;
    return soft_x86_ops.mmio_read(context, address, size);
}

/* That would let other vCPUs run in the middle of the unit. */
static void unit_yield(void *context)
{
    if (lockstep_of(context)->phase == LOCKSTEP_IDLE)
        soft_x86_ops.yield(context);
}

void lockstep_shadow_wrap(struct lockstep *l)
{
    l->ops = soft_x86_ops;
    l->ops.mmio_read = unit_mmio_read;
    l->ops.yield = unit_yield;
    l->ops.tsc = ask_tsc;
    l->ops.msr_read = ask_msr;
    l->ops.cr8_read = ask_cr8;
    l->ops.random = ask_random;
}

/* --- running --- */

void lockstep_shadow_rebase(struct lockstep *l)
{
    for (unsigned i = 0; i < l->page_count; i++) {
        struct shadow_page *page = &l->page[i];
        for (unsigned k = 0; k < PAGE_SIZE; k++)
            page->base[k] = page->stored[k] ? page->original[k] : page->host[k];
        memcpy(page->copy, page->base, PAGE_SIZE);
    }
}

static void prepare(struct lockstep *l)
{
    struct x86_cpu *shadow = &l->shadow;

    memcpy(&shadow->s, &l->before, sizeof shadow->s);
    shadow->next_rip = shadow->s.rip;
    shadow->halted = false;
    shadow->debug_hits = 0;
    shadow->end_block = false;
    if (l->phase == LOCKSTEP_RECORD)
        l->page_count = l->value_count = 0;
    l->value_next = 0;
    flush_shadow(l);
    l->own_flushes = shadow->tlb_flushes;
    x86_cpu_update_mode(shadow);
    l->done = 0;
    l->string_left = STRING_LIMIT;
    uint64_t instructions = atomic_load_explicit(&l->instructions, memory_order_relaxed);
    l->fresh = instructions < FRESH_FIRST ||
               atomic_load_explicit(&l->units, memory_order_relaxed) % FRESH_EACH == 0;
}

static bool is_repeated(const struct x86_insn *insn)
{
    return insn->flags & (X86_INSN_REP | X86_INSN_REPNE);
}

/* One instruction, or one element of a repeated one when `element`. Raises. */
static void step(struct lockstep *l, const struct x86_insn *insn, bool element)
{
    struct x86_cpu *shadow = &l->shadow;
    uint64_t rip = shadow->s.rip, count = shadow->s.gpr[X86_RCX];

    shadow->s.interrupt_shadow = shadow->s.shadow_is_mov_ss = false; /* of an STI in the unit */
    if (l->fresh && !element) {
        if (x86_step(shadow) == X86_FAULT)
            longjmp(*shadow->unwind, 1);
    } else {
        shadow->debug_active = element; /* has it let go after an element */
        shadow->next_rip = rip + insn->length;
        insn->run(shadow, insn);
        shadow->s.rip = shadow->next_rip;
        if (element)
            shadow->debug_active = false;
    }
    if (!is_repeated(insn) || shadow->s.rip != rip) {
        l->done++;
        return;
    }
    uint64_t bytes = (count - shadow->s.gpr[X86_RCX]) * insn->size;
    l->string_left -= MIN(bytes, l->string_left);
}

/* Does the shadow stand where the unit stopped? */
static bool is_there(const struct lockstep *l, const struct x86_insn *next,
                     const struct x86_state *target)
{
    const struct x86_state *s = &l->shadow.s;
    return s->rip == target->rip &&
           (!next || !is_repeated(next) || s->gpr[X86_RCX] == target->gpr[X86_RCX]);
}

static void run_to(struct lockstep *l, const struct x86_unit *unit, const struct x86_state *target)
{
    const struct x86_state *s = &l->shadow.s;

    while (l->done < unit->count) {
        const struct x86_insn *insn = &unit->insn[l->done], *next = insn + 1;
        uint64_t rip = s->rip;
        unsigned done = l->done;
        step(l, insn, target && is_repeated(insn));
        if (done == l->done)
            next = insn; /* more of a string */
        else if (l->done == unit->count)
            next = NULL;
        if (target ? is_there(l, next, target) : l->shadow.end_block || !l->string_left)
            return;
        if (next && next != insn && s->rip != rip + insn->length)
            return; /* a branch out of the unit */
    }
}

enum lockstep_end lockstep_shadow_run(struct lockstep *l, const struct x86_unit *unit,
                                      const struct x86_state *target)
{
    jmp_buf fault;

    prepare(l);
    if (setjmp(l->abandon))
        return LOCKSTEP_ABANDONED;
    if (setjmp(fault))
        return LOCKSTEP_FAULT;
    l->shadow.unwind = &fault;
    run_to(l, unit, target);
    return LOCKSTEP_OK;
}
