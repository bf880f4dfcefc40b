/*
 * The caches of decoded blocks and of units: making and dropping. See block.h. vCPU's thread.
 */
#include "engine/soft/block.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "engine/soft/soft_int.h"
#include "x86/mem.h"

/* Some forty thousand blocks. What boots decodes several times as many, but few of them twice. */
#define BLOCKS_SIZE (8u << 20)
#define INDEX_BITS  14u

/* Bytes looked at for one block. */
#define WINDOW 256u

/* --- the tables --- */

int block_cache_create(struct block_cache *cache, size_t unit_size)
{
    memset(cache, 0, sizeof *cache);
    void *arena = mmap(NULL, BLOCKS_SIZE + unit_size, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (arena == MAP_FAILED)
        return -ENOMEM;
    *cache = (struct block_cache) {.arena = arena, .unit_size = unit_size, .hot = BLOCK_HOT};
    cache->used = CODE_GRAIN;
    int error = code_index_create(&cache->index, INDEX_BITS, arena, BLOCKS_SIZE);
    if (error)
        block_cache_destroy(cache);
    return error;
}

void block_cache_destroy(struct block_cache *cache)
{
    if (cache->arena)
        munmap(cache->arena, BLOCKS_SIZE + cache->unit_size);
    code_index_destroy(&cache->index);
    memset(cache, 0, sizeof *cache);
}

void block_cache_set_translator(struct block_cache *cache, struct x86_translator *translator,
                                struct x86_cpu *cpu)
{
    cache->translator = translator;
    cache->cpu = cpu;
}

static void clear_blocks(struct block_cache *cache)
{
    code_index_clear(&cache->index, CODE_BLOCK);
    cache->used = CODE_GRAIN;
    cache->decodes++;
}

void block_cache_clear_units(struct block_cache *cache)
{
    code_index_clear(&cache->index, CODE_UNIT);
    cache->unit_used = 0;
    cache->full = false;
    cache->clears++;
    if (cache->translator)
        x86_translator_reset(cache->translator, cache->cpu);
}

void block_cache_clear(struct block_cache *cache)
{
    clear_blocks(cache);
    block_cache_clear_units(cache);
}

/* --- dropping --- */

static void dropped(void *context, struct code *code)
{
    struct block_cache *cache = context;
    struct translation *translation = (struct translation *)code;

    if (code_index_kind(&cache->index, code) == CODE_BLOCK)
        return;
    cache->units_dropped++;
    if (!x86_unit_drop(cache->translator, &translation->unit))
        cache->full = true;
}

void block_cache_drop_page(struct block_cache *cache, uint64_t page)
{
    code_index_drop_page(&cache->index, page, dropped, cache);
}

/* --- decoding --- */

/* Room for the largest block, by emptying the arena when it is full. */
static struct block *reserve(struct block_cache *cache)
{
    size_t need = sizeof(struct block) + BLOCK_INSNS_MAX * sizeof(struct x86_insn);
    if (cache->used + need > BLOCKS_SIZE)
        clear_blocks(cache);
    return (struct block *)(void *)(cache->arena + cache->used);
}

static bool keep(struct block_cache *cache, struct block *block)
{
    if (!code_index_add(&cache->index, &block->code))
        return false;
    cache->used += align_up(sizeof *block + block->count * sizeof block->insn[0], CODE_GRAIN);
    cache->decoded += block->count;
    return true;
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
        used += x86_insn_watched(insn, available - used);
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
    uint64_t address = code_address(block->code.key);
    unsigned offset = (unsigned)(address & ~PAGE_MASK);
    unsigned available = (unsigned)MIN(WINDOW, PAGE_SIZE - offset);

    for (unsigned attempt = 0; attempt < 4; attempt++) {
        copy_code(copy, page + offset, available);
        decode_bytes(&vcpu->cpu, block, copy, available);
        if (block->count == 0 || !soft_memory_mark_code(vcpu, address, block->bytes, page))
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
    uint64_t pages[2], address = code_address(block->code.key);
    unsigned first = (unsigned)(PAGE_SIZE - (la & ~PAGE_MASK));
    unsigned count = x86_fetch(&vcpu->cpu, la, bytes, pages);

    if (count <= first || pages[1] == UINT64_MAX)
        return false;
    decode_bytes(&vcpu->cpu, block, bytes, count);
    if (block->count == 0 || block->insn[0].length <= first)
        return false;
    block->count = 1;
    block->bytes = block->insn[0].length;
    block->code.tail = pages[1];
    return soft_memory_mark_code(vcpu, address, first, NULL) &&
           soft_memory_mark_code(vcpu, block->code.tail, block->bytes - first, NULL) &&
           x86_fetch(&vcpu->cpu, la, again, pages) >= block->bytes &&
           pages[1] == block->code.tail && pages[0] == (address & PAGE_MASK) &&
           memcmp(bytes, again, block->bytes) == 0;
}

struct block *block_make(struct engine_vcpu *vcpu, const struct block_place *place)
{
    struct block *block = reserve(&vcpu->cache);

    *block = (struct block) {.code = {.key = place->key, .tail = CODE_NO_TAIL}};
    if (!decode_inside(vcpu, block, place->page) &&
        (block->count != 0 || !decode_across(vcpu, block, place->la)))
        return NULL;
    return keep(&vcpu->cache, block) ? block : NULL;
}

/* --- translating --- */

/* Bytes looked at for one unit. */
#define UNIT_WINDOW 512u

static uint8_t *heat_of(struct block_cache *cache, uint64_t key)
{
    return &cache->heat[key * 0x9e3779b97f4a7c15ull >> (64 - BLOCK_HEAT_BITS)];
}

struct unit_site {
    struct block_cache *cache;
    uint64_t key;
};

/*
 * A unit goes on where code has run that is no unit's start: half as often as what leads there, or
 * more. That keeps rare code out, and most code in one unit only.
 */
static bool is_warm(void *context, unsigned page_offset)
{
    const struct unit_site *site = context;
    uint64_t key = (site->key & ~(uint64_t)(PAGE_SIZE - 1)) | page_offset;

    return page_offset < PAGE_SIZE && *heat_of(site->cache, key) >= site->cache->hot / 2;
}

/* Makes the unit of what was scanned. NULL: there is no room, everything goes before the next
 * block. */
static struct translation *keep_unit(struct engine_vcpu *vcpu, const struct block_place *place,
                                     uint64_t tail)
{
    struct block_cache *cache = &vcpu->cache;
    size_t size = offsetof(struct translation, unit) + x86_unit_size(vcpu->translator);
    struct translation *made =
        (struct translation *)(void *)(cache->arena + BLOCKS_SIZE + cache->unit_used);
    struct code *block = code_index_find(&cache->index, place->key);

    if (cache->unit_used + size > cache->unit_size ||
        !x86_unit_make(vcpu->translator, &made->unit)) {
        cache->full = true;
        return NULL;
    }
    if (block)
        code_index_remove(&cache->index, block); /* links to it fail, too */
    made->code = (struct code) {.key = place->key, .tail = tail};
    if (!code_index_add(&cache->index, &made->code)) {
        cache->full = true;
        return NULL;
    }
    made->unit.page = code_address(place->key) & PAGE_MASK;
    cache->unit_used += align_up(size, CODE_GRAIN);
    cache->units_made++;
    cache->translated += made->unit.count;
    return made;
}

/*
 * Host code for what has become hot. The same order as in decode_inside. None is made when bytes
 * change all the time.
 */
static struct translation *translate(struct engine_vcpu *vcpu, const struct block_place *place)
{
    struct block_cache *cache = &vcpu->cache;
    uint8_t copy[UNIT_WINDOW], again[UNIT_WINDOW];
    uint64_t address = code_address(place->key);
    unsigned offset = (unsigned)(address & ~PAGE_MASK);
    unsigned available = (unsigned)MIN(UNIT_WINDOW, PAGE_SIZE - offset);

    copy_code(copy, place->page + offset, available);
    struct x86_unit_code code = {.mode = BLOCK_UNIT_MODE(code_mode(place->key)),
                                 .plain = code_mode(place->key) & BLOCK_PLAIN,
                                 .edge = code_mode(place->key) & BLOCK_EDGE,
                                 .page_offset = offset,
                                 .bytes = copy,
                                 .available = available,
                                 .follow = is_warm,
                                 .context = &(struct unit_site) {cache, place->key}};
    unsigned bytes = x86_translate_scan(vcpu->translator, &code);
    if (!bytes || !soft_memory_mark_code(vcpu, address, bytes, place->page))
        return NULL;
    copy_code(again, place->page + offset, bytes);
    if (memcmp(copy, again, bytes) != 0)
        return NULL;
    return keep_unit(vcpu, place, CODE_NO_TAIL);
}

/* One instruction that goes on in the next page. As decode_across. */
static struct translation *translate_across(struct engine_vcpu *vcpu,
                                            const struct block_place *place)
{
    uint8_t bytes[15], again[15];
    uint64_t pages[2], address = code_address(place->key);
    unsigned first = (unsigned)(PAGE_SIZE - (place->la & ~PAGE_MASK));
    unsigned count = x86_fetch(&vcpu->cpu, place->la, bytes, pages);

    if (count <= first || pages[1] == UINT64_MAX)
        return NULL;
    struct x86_unit_code code = {.mode = BLOCK_UNIT_MODE(code_mode(place->key)),
                                 .crosses = true,
                                 .edge = code_mode(place->key) & BLOCK_EDGE,
                                 .page_offset = (unsigned)(address & ~PAGE_MASK),
                                 .bytes = bytes,
                                 .available = count};
    unsigned length = x86_translate_scan(vcpu->translator, &code);
    uint64_t tail = pages[1];
    if (length <= first || !soft_memory_mark_code(vcpu, address, first, NULL) ||
        !soft_memory_mark_code(vcpu, tail, length - first, NULL) ||
        x86_fetch(&vcpu->cpu, place->la, again, pages) < length || pages[1] != tail ||
        pages[0] != (address & PAGE_MASK) || memcmp(bytes, again, length) != 0)
        return NULL;
    return keep_unit(vcpu, place, tail);
}

struct translation *block_plain_unit(struct engine_vcpu *vcpu, const struct block_place *place)
{
    struct block_place plain = *place;

    plain.key = code_key(code_address(place->key), (uint8_t)(code_mode(place->key) | BLOCK_PLAIN));
    struct translation *known = block_find_unit(&vcpu->cache, plain.key);
    return known ? known : translate(vcpu, &plain);
}

static bool can_translate(const struct engine_vcpu *vcpu, const struct block *block)
{
    uint8_t mode = code_mode(block->code.key);
    return vcpu->translator && !(mode & BLOCK_SHADOW) &&
           x86_unit_mode(&vcpu->cpu) == BLOCK_UNIT_MODE(mode);
}

static struct translation *translate_hot(struct engine_vcpu *vcpu, const struct block *block,
                                         const struct block_place *place)
{
    if (!can_translate(vcpu, block))
        return NULL;
    return block->code.tail == CODE_NO_TAIL ? translate(vcpu, place)
                                            : translate_across(vcpu, place);
}

struct translation *block_heat_up(struct engine_vcpu *vcpu, struct block *block,
                                  const struct block_place *place)
{
    struct block_cache *cache = &vcpu->cache;
    uint8_t *heat = heat_of(cache, place->key);

    if (block->never || ++*heat < cache->hot)
        return NULL;
    *heat = 0;
    struct translation *made = translate_hot(vcpu, block, place);
    if (!made && !cache->full)
        block->never = true;
    return made;
}
