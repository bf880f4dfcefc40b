/* See qcow2_count.h. */
#include "backend/disk/qcow2_count.h"

#include <errno.h>
#include <stdlib.h>

#define SLOTS_MIN  16u
#define CHUNKS_MAX (1u << 17) /* 1.5 GiB: for 256M clusters */

static uint64_t find(struct qcow2_chunk **chunks, uint64_t slot_count, uint64_t index)
{
    uint64_t hash = index * 0x9e3779b97f4a7c15ull, at = (hash ^ hash >> 32) & (slot_count - 1);
    while (chunks[at] && chunks[at]->index != index)
        at = (at + 1) & (slot_count - 1);
    return at;
}

static int grow(struct qcow2_counts *counts)
{
    uint64_t slot_count = MAX(counts->slot_count * 2, (uint64_t)SLOTS_MIN);
    struct qcow2_chunk **chunks = calloc(slot_count, sizeof *chunks);
    if (!chunks)
        return -ENOMEM;
    for (uint64_t i = 0; i < counts->slot_count; i++)
        if (counts->chunks[i])
            chunks[find(chunks, slot_count, counts->chunks[i]->index)] = counts->chunks[i];
    free(counts->chunks);
    counts->chunks = chunks;
    counts->slot_count = slot_count;
    return 0;
}

static struct qcow2_chunk *get_chunk(struct qcow2_counts *counts, uint64_t cluster)
{
    uint64_t index = cluster / QCOW2_CHUNK;
    if (counts->last && counts->last->index == index)
        return counts->last;
    if (!counts->slot_count)
        return NULL;
    struct qcow2_chunk *chunk = counts->chunks[find(counts->chunks, counts->slot_count, index)];
    if (chunk)
        counts->last = chunk;
    return chunk;
}

static int make_chunk(struct qcow2_counts *counts, uint64_t cluster, struct qcow2_chunk **out)
{
    if (counts->chunk_count >= CHUNKS_MAX)
        return -EFBIG;
    int error = counts->chunk_count * 2 >= counts->slot_count ? grow(counts) : 0;
    if (error)
        return error;
    struct qcow2_chunk *chunk = calloc(1, sizeof *chunk);
    if (!chunk)
        return -ENOMEM;
    chunk->index = cluster / QCOW2_CHUNK;
    counts->chunks[find(counts->chunks, counts->slot_count, chunk->index)] = chunk;
    counts->chunk_count++;
    counts->last = *out = chunk;
    return 0;
}

int qcow2_counts_add(struct qcow2_counts *counts, uint64_t cluster, enum qcow2_role role, bool own)
{
    struct qcow2_chunk *chunk = get_chunk(counts, cluster);
    int error = chunk ? 0 : make_chunk(counts, cluster, &chunk);
    if (error)
        return error;
    uint64_t at = cluster % QCOW2_CHUNK;
    chunk->count[at] += chunk->count[at] < UINT32_MAX;
    chunk->own[at] += own && chunk->own[at] < UINT8_MAX;
    enum qcow2_role old = chunk->role[at];
    bool good = old == QCOW2_ROLE_NONE || (old == role && role != QCOW2_ROLE_FIXED);
    chunk->role[at] = (uint8_t)(good ? role : QCOW2_ROLE_CONFLICT);
    return good ? 0 : -EEXIST;
}

enum qcow2_role qcow2_counts_role(struct qcow2_counts *counts, uint64_t cluster)
{
    struct qcow2_chunk *chunk = get_chunk(counts, cluster);
    return chunk ? chunk->role[cluster % QCOW2_CHUNK] : QCOW2_ROLE_NONE;
}

uint32_t qcow2_counts_get(struct qcow2_counts *counts, uint64_t cluster)
{
    struct qcow2_chunk *chunk = get_chunk(counts, cluster);
    return chunk ? chunk->count[cluster % QCOW2_CHUNK] : 0;
}

uint32_t qcow2_counts_get_used(struct qcow2_counts *counts, uint64_t cluster)
{
    struct qcow2_chunk *chunk = get_chunk(counts, cluster);
    uint64_t at = cluster % QCOW2_CHUNK;
    return chunk ? chunk->count[at] - chunk->own[at] : 0;
}

void qcow2_counts_free(struct qcow2_counts *counts)
{
    for (uint64_t i = 0; i < counts->slot_count; i++)
        free(counts->chunks[i]);
    free(counts->chunks);
    *counts = (struct qcow2_counts) {0};
}
