/*
 * The cache of decoded blocks: lookup, decoding, dropping, running. See block.h. vCPU's thread.
 */
#include "engine/soft/block.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "engine/soft/soft_int.h"
#include "x86/mem.h"

/* About half a million instructions; a Debian boot to a login fits. */
#define ARENA_SIZE   (32u << 20)
#define HASH_BUCKETS 32768u
#define PAGE_BUCKETS 4096u

/* Bytes looked at for one block. */
#define WINDOW 256u

/* --- the tables --- */

int block_cache_create(struct block_cache *cache)
{
    memset(cache, 0, sizeof *cache);
    cache->hot = BLOCK_HOT;
    /* Touched as it fills, so a small guest costs little. */
    cache->arena = mmap(NULL, ARENA_SIZE, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    cache->hash = calloc(HASH_BUCKETS, sizeof *cache->hash);
    cache->page = calloc(PAGE_BUCKETS, sizeof *cache->page);
    if (cache->arena != MAP_FAILED && cache->hash && cache->page)
        return 0;
    block_cache_destroy(cache);
    return -ENOMEM;
}

void block_cache_destroy(struct block_cache *cache)
{
    if (cache->arena && cache->arena != MAP_FAILED)
        munmap(cache->arena, ARENA_SIZE);
    free(cache->hash);
    free(cache->page);
    memset(cache, 0, sizeof *cache);
}

void block_cache_clear(struct block_cache *cache)
{
    memset(cache->hash, 0, HASH_BUCKETS * sizeof *cache->hash);
    memset(cache->page, 0, PAGE_BUCKETS * sizeof *cache->page);
    cache->used = 0;
    cache->full = false;
    cache->clears++;
    if (cache->translator)
        x86_translator_reset(cache->translator, cache->cpu);
}

void block_cache_set_translator(struct block_cache *cache, struct x86_translator *translator,
                                struct x86_cpu *cpu)
{
    cache->translator = translator;
    cache->cpu = cpu;
}

static unsigned hash_of(uint64_t address, uint8_t mode)
{
    uint64_t key = address ^ (uint64_t)mode << 40;
    return (unsigned)((key ^ key >> 15 ^ (unsigned)(mode >> 5) * 0x55) % HASH_BUCKETS);
}

static unsigned page_bucket(uint64_t address)
{
    return (unsigned)((address >> PAGE_SHIFT) % PAGE_BUCKETS);
}

static bool matches(const struct block *block, uint64_t address, uint8_t mode)
{
    return block->address == address && block->mode == mode;
}

static struct block *lookup(const struct block_cache *cache, uint64_t address, uint8_t mode)
{
    struct block *block = cache->hash[hash_of(address, mode)];
    while (block && !matches(block, address, mode))
        block = block->hash_next;
    return block;
}

static void insert(struct block_cache *cache, struct block *block)
{
    struct block **hash = &cache->hash[hash_of(block->address, block->mode)];
    struct block **page = &cache->page[page_bucket(block->address)];

    block->hash_next = *hash;
    *hash = block;
    block->page_next[0] = *page;
    *page = block;
    if (block->tail == BLOCK_NO_TAIL)
        return;
    page = &cache->page[page_bucket(block->tail)];
    if (page_bucket(block->tail) == page_bucket(block->address))
        return; /* found by its address there */
    block->page_next[1] = *page;
    *page = block;
}

static void unhash(struct block_cache *cache, struct block *block)
{
    struct block **link = &cache->hash[hash_of(block->address, block->mode)];
    while (*link && *link != block)
        link = &(*link)->hash_next;
    if (*link)
        *link = block->hash_next;
}

/*
 * A block with a tail stands in two lists; dropped by one of them it stays in the other until a
 * walk there finds it dead. Which link belongs to this bucket is told by where its address lies,
 * which a dead block no longer knows: hence `page`.
 */
static unsigned link_of(const struct block *block, unsigned bucket)
{
    return page_bucket(block->page) == bucket ? 0 : 1;
}

void block_cache_drop_page(struct block_cache *cache, uint64_t page)
{
    unsigned bucket = page_bucket(page);
    struct block **link = &cache->page[bucket];

    while (*link) {
        struct block *block = *link;
        unsigned which = link_of(block, bucket);
        bool dead = block->address == BLOCK_ADDRESS_DEAD;
        if (!dead && block->page != page && block->tail != page) {
            link = &block->page_next[which];
            continue;
        }
        if (!dead) {
            unhash(cache, block);
            block->address = BLOCK_ADDRESS_DEAD;
            if (block->unit && !x86_unit_drop(cache->translator, block->unit))
                cache->full = true;
        }
        *link = block->page_next[which];
    }
}

/* --- decoding --- */

/* Room for the largest block, by emptying the cache when it is full. */
static struct block *reserve(struct block_cache *cache)
{
    size_t need = sizeof(struct block) + BLOCK_INSNS_MAX * sizeof(struct x86_insn);
    if (cache->used + need > ARENA_SIZE)
        block_cache_clear(cache);
    return (struct block *)(void *)(cache->arena + cache->used);
}

static void keep(struct block_cache *cache, struct block *block)
{
    size_t size = sizeof *block + block->count * sizeof block->insn[0];
    cache->used += align_up(size, 16);
    cache->decoded += block->count;
    insert(cache, block);
}

/* Decodes from a copy. Ends before an instruction that does not fit into `available` bytes. */
static void decode_bytes(const struct x86_cpu *cpu, struct block *block, const uint8_t *bytes,
                         unsigned available)
{
    unsigned used = 0;

    block->count = 0;
    while (block->count < BLOCK_INSNS_MAX) {
        struct x86_insn *insn = &block->insn[block->count];
        enum x86_decode_result r =
            x86_decode(cpu->decoder, &cpu->decode_mode, bytes + used, available - used, insn);
        if (r == X86_DECODE_TRUNCATED)
            break;
        used += insn->length;
        block->count++;
        if (r == X86_DECODE_TOO_LONG || (insn->flags & X86_INSN_END) || used >= available)
            break;
    }
    block->bytes = (uint16_t)used;
}

/* Other vCPUs and devices may be writing these bytes: each word is read once, whole. */
static void copy_code(uint8_t *to, const uint8_t *from, unsigned length)
{
    unsigned i = 0;
    for (; i < length && ((uintptr_t)(from + i) & 7); i++)
        to[i] = __atomic_load_n(from + i, __ATOMIC_RELAXED);
    for (; i + 8 <= length; i += 8)
        store_le64(to + i,
                   __atomic_load_n((const uint64_t *)(const void *)(from + i), __ATOMIC_RELAXED));
    for (; i < length; i++)
        to[i] = __atomic_load_n(from + i, __ATOMIC_RELAXED);
}

/*
 * The order matters: first a copy to learn the length, then the mark, then a look whether the bytes
 * are still those (a store that comes later is told to us by the mark).
 */
static bool decode_inside(struct engine_vcpu *vcpu, struct block *block, const uint8_t *page)
{
    uint8_t copy[WINDOW], again[WINDOW];
    unsigned offset = (unsigned)(block->address & ~PAGE_MASK);
    unsigned available = (unsigned)MIN(WINDOW, PAGE_SIZE - offset);

    for (unsigned attempt = 0; attempt < 4; attempt++) {
        copy_code(copy, page + offset, available);
        decode_bytes(&vcpu->cpu, block, copy, available);
        if (block->count == 0 || !soft_memory_mark_code(vcpu, block->address, block->bytes, page))
            return false;
        copy_code(again, page + offset, block->bytes);
        if (memcmp(copy, again, block->bytes) == 0)
            return true;
    }
    return false;
}

/* One instruction that goes on in the next page; `la` is its linear address. */
static bool decode_across(struct engine_vcpu *vcpu, struct block *block, uint64_t la)
{
    uint8_t bytes[15], again[15];
    uint64_t pages[2];
    unsigned first = (unsigned)(PAGE_SIZE - (la & ~PAGE_MASK));
    unsigned count = x86_fetch(&vcpu->cpu, la, bytes, pages);

    if (count <= first || pages[1] == UINT64_MAX)
        return false;
    decode_bytes(&vcpu->cpu, block, bytes, count);
    if (block->count == 0 || block->insn[0].length <= first)
        return false;
    block->count = 1;
    block->bytes = block->insn[0].length;
    block->tail = pages[1];
    return soft_memory_mark_code(vcpu, block->address, first, NULL) &&
           soft_memory_mark_code(vcpu, block->tail, block->bytes - first, NULL) &&
           x86_fetch(&vcpu->cpu, la, again, pages) >= block->bytes && pages[1] == block->tail &&
           pages[0] == (block->address & PAGE_MASK) && memcmp(bytes, again, block->bytes) == 0;
}

static struct block *make(struct engine_vcpu *vcpu, uint64_t address, uint64_t la,
                          const uint8_t *page)
{
    struct block *block = reserve(&vcpu->cache);

    *block = (struct block) {.address = address,
                             .page = address & PAGE_MASK,
                             .tail = BLOCK_NO_TAIL,
                             .mode = block_mode(&vcpu->cpu)};
    if (!decode_inside(vcpu, block, page) && (block->count != 0 || !decode_across(vcpu, block, la)))
        return NULL;
    keep(&vcpu->cache, block);
    return block;
}

/* --- translating --- */

/* Bytes looked at for one unit. */
#define UNIT_WINDOW 512u

/*
 * Host code for a block that has become hot. The same order as in decode_inside. No unit is made
 * when bytes change all the time; when there is no room, everything goes before the next block.
 */
static void translate(struct engine_vcpu *vcpu, struct block *block, const uint8_t *page)
{
    struct block_cache *cache = &vcpu->cache;
    uint8_t copy[UNIT_WINDOW], again[UNIT_WINDOW];
    unsigned offset = (unsigned)(block->address & ~PAGE_MASK);
    unsigned available = (unsigned)MIN(UNIT_WINDOW, PAGE_SIZE - offset);

    copy_code(copy, page + offset, available);
    unsigned bytes =
        x86_translate_scan(vcpu->translator, block->mode >> 5, offset, copy, available);
    if (!bytes || !soft_memory_mark_code(vcpu, block->address, bytes, page))
        return;
    copy_code(again, page + offset, bytes);
    if (memcmp(copy, again, bytes) != 0)
        return;
    size_t size = align_up(x86_unit_size(vcpu->translator), 16);
    struct x86_unit *unit = (struct x86_unit *)(void *)(cache->arena + cache->used);
    if (cache->used + size > ARENA_SIZE || !x86_unit_make(vcpu->translator, unit)) {
        cache->full = true;
        return;
    }
    cache->used += size;
    cache->translated += unit->count;
    cache->units++;
    unit->page = block->page;
    block->unit = unit;
}

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

/* Segment limit, and a second page that must still be the one that was decoded. */
static inline bool may_run(struct x86_cpu *cpu, const struct block *block, uint64_t la)
{
    if (cpu->code_size != 8 &&
        !range_fits(cpu->s.rip, block->bytes, (uint64_t)cpu->s.seg[X86_CS].limit + 1))
        return false;
    if (likely(block->tail == BLOCK_NO_TAIL))
        return true;
    uint64_t page, next = (la & PAGE_MASK) + PAGE_SIZE;
    if (cpu->code_size != 8)
        next = (uint32_t)next;
    return code_page(cpu, next, &page) && page == block->tail;
}

/*
 * The block at CS:RIP; previous (may be NULL) ran before it. NULL: x86_step must do. May raise a
 * fetch fault; may empty the cache, and previous with it.
 */
static struct block *find(struct engine_vcpu *vcpu, struct block *previous)
{
    struct x86_cpu *cpu = &vcpu->cpu;
    struct block_cache *cache = &vcpu->cache;
    uint64_t la = cpu->seg_base[X86_CS] + cpu->s.rip, page;
    if (cpu->code_size != 8)
        la = (uint32_t)la;
    const uint8_t *host = code_page(cpu, la, &page);
    if (unlikely(!host))
        return NULL;

    uint64_t address = page | (la & ~PAGE_MASK), clears = cache->clears;
    uint8_t mode = block_mode(cpu);
    struct block **link = NULL;
    if (likely(previous)) {
        link = &previous->successor[address != previous->address + previous->bytes];
        if (likely(*link && matches(*link, address, mode)) && may_run(cpu, *link, la))
            return *link;
    }
    struct block *block = lookup(cache, address, mode);
    if (!block)
        block = make(vcpu, address, la, host);
    if (!block || !may_run(cpu, block, la))
        return NULL;
    if (link && cache->clears == clears)
        *link = block;
    return block;
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

/* Whether the block may have a unit at all. */
static bool can_translate(const struct engine_vcpu *vcpu, const struct block *block)
{
    return vcpu->translator && x86_unit_mode(&vcpu->cpu) == block->mode >> 5 &&
           block->tail == BLOCK_NO_TAIL;
}

static void heat_up(struct engine_vcpu *vcpu, struct block *block)
{
    unsigned hot = vcpu->cache.hot;
    uint64_t page;

    if (block->heat >= hot || ++block->heat < hot || !can_translate(vcpu, block))
        return;
    const uint8_t *host = code_page(&vcpu->cpu, vcpu->cpu.s.rip, &page);
    if (host && page == block->page)
        translate(vcpu, block, host);
}

/* Runs the block's unit; `exit` is how the one before came back, and then how this one did. */
static void run_unit(struct engine_vcpu *vcpu, struct block *block, struct x86_unit_exit *exit)
{
    struct x86_cpu *cpu = &vcpu->cpu;
    struct x86_unit *unit = block->unit;

    x86_unit_choose_key(vcpu->translator, cpu, unit->mode);
    if (exit->lookup)
        x86_unit_note(cpu, unit);
    if (exit->link && exit->from->page == unit->page && exit->from->mode == unit->mode)
        x86_unit_link(exit, unit);
    vcpu->current = NULL;
    x86_unit_run(vcpu->translator, cpu, unit, exit);
}

bool block_loop(struct engine_vcpu *vcpu)
{
    struct x86_cpu *cpu = &vcpu->cpu;
    struct x86_unit_exit exit = {0};
    struct block *block = NULL;

    do {
        if (unlikely(vcpu->cache.full)) {
            block_cache_clear(&vcpu->cache);
            block = NULL;
        }
        uint64_t clears = vcpu->cache.clears;
        block = find(vcpu, block);
        if (unlikely(!block))
            return true;
        if (unlikely(vcpu->cache.clears != clears))
            exit = (struct x86_unit_exit) {0};
        if (unlikely(atomic_load_explicit(&vcpu->posted, memory_order_acquire)))
            return false; /* perhaps the very bytes just decoded have changed */
        unsigned limit = BLOCK_INSNS_MAX;
        if (unlikely(cpu->s.interrupt_shadow)) {
            cpu->s.interrupt_shadow = cpu->s.shadow_is_mov_ss = false;
            limit = 1;
        }
        if (unlikely(!block->unit)) {
            heat_up(vcpu, block);
            if (unlikely(atomic_load_explicit(&vcpu->posted, memory_order_acquire)))
                return false;
        }
        if (likely(block->unit) && limit != 1) {
            if (likely(!vcpu->lockstep))
                run_unit(vcpu, block, &exit);
            else if (!lockstep_run(vcpu, block->unit))
                return false;
            block = NULL;
        } else {
            exit = (struct x86_unit_exit) {0};
            vcpu->current = block;
            unsigned count = run(cpu, block, limit);
            soft_count(&vcpu->instructions, count);
        }
        cpu->end_block = false;
    } while (likely(!atomic_load_explicit(&vcpu->attention, memory_order_acquire)) &&
             !cpu->halted && !cpu->debug_active);
    return false;
}

unsigned block_completed(const struct engine_vcpu *vcpu)
{
    const struct block *block = vcpu->current;
    uint64_t la = vcpu->cpu.seg_base[X86_CS] + vcpu->cpu.s.rip, done = 0;
    unsigned count = 0;

    /* Within one page, so the page offset tells. A dropped block has only its page left: then 0. */
    if (!block || block->address == BLOCK_ADDRESS_DEAD)
        return 0;
    while (count < block->count && ((block->address + done) & ~PAGE_MASK) != (la & ~PAGE_MASK))
        done += block->insn[count++].length;
    return count < block->count ? count : 0;
}
