/*
 * The loop that runs a vCPU's code: host code where there is a unit, decoded blocks elsewhere.
 * vCPU's thread. See block.h.
 */
#include "engine/soft/block.h"
#include "engine/soft/lockstep.h"
#include "engine/soft/soft_int.h"
#include "x86/mem.h"
#include "x86/paging.h"

/* --- finding --- */

/* The translation for execution, from the TLB or by a walk. NULL: not RAM. */
static inline const uint8_t *code_page(struct x86_cpu *cpu, uint64_t la, uint64_t *page)
{
    const struct x86_tlb_entry *e = x86_tlb_slot(cpu, la, (enum x86_mmu)cpu->mmu);
    if (likely(e->exec == (la & PAGE_MASK))) {
        *page = x86_tlb_gpa(cpu, la, (enum x86_mmu)cpu->mmu);
        return (const uint8_t *)((la & PAGE_MASK) + e->addend);
    }
    return x86_fetch_page(cpu, la, page);
}

/* A direct branch there may have a target that is not canonical: 2 GiB and an instruction away. */
static inline bool is_at_edge(uint64_t la)
{
    const uint64_t reach = (1ull << 31) + 16;
    return unlikely(!x86_canonical(la + reach) || !x86_canonical(la - reach));
}

/* Where CS:RIP is. False: not in RAM. May raise a fetch fault. */
static inline bool locate(struct x86_cpu *cpu, struct block_place *place)
{
    uint64_t page;

    place->la = cpu->seg_base[X86_CS] + cpu->s.rip;
    if (unlikely(cpu->code_size != 8)) {
        if (cpu->s.rip > cpu->s.seg[X86_CS].limit)
            return false; /* #GP, whatever page is there */
        place->la = (uint32_t)place->la;
    }
    place->page = code_page(cpu, place->la, &page);
    if (unlikely(!place->page))
        return false;
    uint8_t mode = block_mode(cpu) | (is_at_edge(place->la) ? BLOCK_EDGE : 0);
    place->key = code_key(page | (place->la & ~PAGE_MASK), mode);
    return true;
}

/*
 * The page behind la's is the one that the code goes on in. The walk for it may set bits in a page
 * table that is also this code's page, and so drop the code.
 */
static bool is_followed(struct x86_cpu *cpu, uint64_t la, const struct code *code)
{
    uint64_t page, next = (la & PAGE_MASK) + PAGE_SIZE;
    if (cpu->code_size != 8)
        next = (uint32_t)next;
    return code_page(cpu, next, &page) && page == code->tail && code->key != CODE_DEAD;
}

/* Segment limit, and a second page that must still be the one that was decoded. */
static inline bool may_run(struct x86_cpu *cpu, const struct block *block, uint64_t la)
{
    if (cpu->code_size != 8 &&
        !range_fits(cpu->s.rip, block->bytes, (uint64_t)cpu->s.seg[X86_CS].limit + 1))
        return false;
    return likely(block->code.tail == CODE_NO_TAIL) || is_followed(cpu, la, &block->code);
}

/* The same for a unit, which is always of 64-bit code. */
static inline bool may_enter(struct engine_vcpu *vcpu, const struct translation *translation,
                             uint64_t la)
{
    return likely(translation->code.tail == CODE_NO_TAIL) ||
           (is_followed(&vcpu->cpu, la, &translation->code) &&
            x86_unit_admit(vcpu->translator, &vcpu->cpu, &translation->unit));
}

/* One instruction is to run alone, not from a unit, which may be there, too. */
static void choose_single(struct block_place *place)
{
    place->key = code_key(code_address(place->key), code_mode(place->key) | BLOCK_SHADOW);
}

/* What is to run next: one of both. */
struct found {
    struct translation *translation;
    struct block *block;
};

/* False: x86_step must do. previous: the block that ran before, or NULL. May raise a fetch fault.
 */
static inline bool find(struct engine_vcpu *vcpu, struct block *previous,
                        const struct block_place *place, struct found *out)
{
    struct block_cache *cache = &vcpu->cache;
    struct block **link = NULL;

    *out = (struct found) {0};
    if (previous) {
        uint64_t behind = previous->code.key + previous->bytes;
        link = &previous->successor[place->key != behind];
        if (*link && (*link)->code.key == place->key) {
            out->block = *link;
            return may_run(&vcpu->cpu, out->block, place->la);
        }
    }
    struct code *code = code_index_find(&cache->index, place->key);
    struct block_place single;
    if (code && code_index_kind(&cache->index, code) == CODE_UNIT) {
        out->translation = (struct translation *)code;
        if (likely(may_enter(vcpu, out->translation, place->la)))
            return true;
        out->translation = NULL;
        single = *place;
        choose_single(&single);
        place = &single;
        code = code_index_find(&cache->index, place->key);
        link = NULL;
    }
    out->block = (struct block *)code;
    if (unlikely(!out->block)) {
        uint64_t decodes = cache->decodes;
        out->block = block_make(vcpu, place);
        if (cache->decodes != decodes)
            link = NULL; /* previous is gone */
    }
    if (!out->block || !may_run(&vcpu->cpu, out->block, place->la))
        return false;
    if (link)
        *link = out->block;
    return true;
}

/* --- running --- */

/* Up to `limit` instructions; returns how many were begun. */
static inline unsigned run(struct x86_cpu *cpu, const struct block *block, unsigned limit)
{
    const struct x86_insn *insn = block->insn;
    const struct x86_insn *end = insn + MIN(limit, block->count);

    do {
        cpu->next_rip = cpu->s.rip + insn->length;
        insn->run(cpu, insn);
        cpu->s.rip = cpu->next_rip;
        insn++;
    } while (insn != end && likely(!cpu->end_block));
    return (unsigned)(insn - block->insn);
}

static void run_block(struct engine_vcpu *vcpu, const struct block *block, unsigned limit)
{
    vcpu->current = block;
    unsigned count = run(&vcpu->cpu, block, limit);
    vcpu->current = NULL;
    soft_count(&vcpu->instructions, count);
}

/* Runs the unit; `exit` is how the one before came back, and then how this one did. */
static void run_unit(struct engine_vcpu *vcpu, const struct x86_unit *unit,
                     struct x86_unit_exit *exit)
{
    struct x86_cpu *cpu = &vcpu->cpu;

    x86_unit_choose_key(vcpu->translator, cpu, unit->mode);
    if (exit->lookup) {
        bool noted = x86_unit_note(cpu, unit);
        vcpu->cache.notes++;
        if (noted && exit->far.key && exit->key == cpu->host.jump_now)
            x86_unit_link_far(vcpu->translator, exit, unit);
    }
    if (exit->link && exit->from->page == unit->page && exit->mode == unit->mode)
        x86_unit_link(exit, unit);
    vcpu->current = NULL;
    vcpu->cache.entries++;
    x86_unit_run(vcpu->translator, cpu, unit, exit);
}

static inline bool is_posted(const struct engine_vcpu *vcpu)
{
    return unlikely(atomic_load_explicit(&vcpu->posted, memory_order_acquire));
}

/* So it is after STI and MOV SS. */
static bool leave_shadow(struct x86_cpu *cpu, struct block_place *place)
{
    if (likely(!cpu->s.interrupt_shadow))
        return false;
    cpu->s.interrupt_shadow = cpu->s.shadow_is_mov_ss = false;
    choose_single(place);
    return true;
}

bool block_loop(struct engine_vcpu *vcpu)
{
    struct x86_cpu *cpu = &vcpu->cpu;
    struct x86_unit_exit exit = {0};
    struct block *previous = NULL;
    struct block_place place;
    struct found found;

    do {
        if (unlikely(vcpu->cache.full)) {
            block_cache_clear_units(&vcpu->cache);
            exit = (struct x86_unit_exit) {0};
        }
        if (unlikely(!locate(cpu, &place)))
            return true;
        bool single = leave_shadow(cpu, &place);
        found.translation = unlikely(exit.plain) ? block_plain_unit(vcpu, &place) : NULL;
        if (likely(!found.translation)) {
            if (unlikely(exit.plain)) {
                choose_single(&place);
                single = true;
            }
            if (unlikely(!find(vcpu, previous, &place, &found)))
                return true;
            if (!found.translation)
                found.translation = block_heat_up(vcpu, found.block, &place);
        }
        if (is_posted(vcpu))
            return false; /* perhaps the very bytes just decoded have changed */
        if (likely(found.translation)) {
            if (likely(!vcpu->lockstep))
                run_unit(vcpu, &found.translation->unit, &exit);
            else if (!lockstep_run(vcpu, &found.translation->unit))
                return false;
            previous = NULL;
        } else {
            exit = (struct x86_unit_exit) {0};
            run_block(vcpu, found.block, single ? 1 : BLOCK_INSNS_MAX);
            previous = found.block;
        }
        cpu->end_block = false;
        /* A unit that asks for the plain one has perhaps done nothing yet: that comes first. */
    } while (unlikely(exit.plain) ||
             (likely(!atomic_load_explicit(&vcpu->attention, memory_order_acquire)) &&
              !cpu->halted && !cpu->debug_active));
    return false;
}

unsigned block_completed(const struct engine_vcpu *vcpu)
{
    const struct block *block = vcpu->current;
    uint64_t la = vcpu->cpu.seg_base[X86_CS] + vcpu->cpu.s.rip, done = 0;
    unsigned count = 0;

    /* Within one page, so the page offset tells. A dropped block has no address left: then 0. */
    if (!block || block->code.key == CODE_DEAD)
        return 0;
    while (count < block->count && ((block->code.key + done) & ~PAGE_MASK) != (la & ~PAGE_MASK))
        done += block->insn[count++].length;
    return count < block->count ? count : 0;
}
