// Floating point and vectors: a scalar matrix product and n-body with the SSE2 that every x86-64
// has; AVX2 with FMA, AVX2 on integers and AES-NI where the CPU has them.
#include <immintrin.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "work.h"

#define SIZE 192

struct matrices {
    _Alignas(32) double a[SIZE][SIZE];
    _Alignas(32) double b[SIZE][SIZE];
    _Alignas(32) double c[SIZE][SIZE];
};

static void *matrix_prepare(void)
{
    struct matrices *matrices = aligned_alloc(64, sizeof(*matrices));
    uint64_t random = 5;
    for (unsigned i = 0; matrices && i < SIZE * SIZE; i++) {
        matrices->a[i / SIZE][i % SIZE] = (double)(work_random(&random) >> 40) / 65536;
        matrices->b[i / SIZE][i % SIZE] = (double)(work_random(&random) >> 40) / 65536;
        matrices->c[i / SIZE][i % SIZE] = 0;
    }
    return matrices;
}

static uint64_t scalar_matrix_run(void *data, uint64_t count)
{
    struct matrices *m = data;
    for (uint64_t round = 0; round < count; round++) {
        for (unsigned i = 0; i < SIZE; i++) {
            for (unsigned j = 0; j < SIZE; j++) {
                double sum = 0;
                for (unsigned k = 0; k < SIZE; k++) {
                    sum += m->a[i][k] * m->b[k][j];
                }
                m->c[i][j] = sum;
            }
        }
        m->a[round % SIZE][round / SIZE % SIZE] += 1;
    }
    return work_sum(WORK_SUM, m->c, sizeof(m->c));
}

static void *avx2_matrix_prepare(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? matrix_prepare()
                                                                           : NULL;
}

// Sixteen columns of one row of the product.
__attribute__((target("avx2,fma"))) static void avx2_stripe(struct matrices *m, unsigned i,
                                                            unsigned j)
{
    __m256d c0 = _mm256_setzero_pd(), c1 = c0, c2 = c0, c3 = c0;
    for (unsigned k = 0; k < SIZE; k++) {
        __m256d a = _mm256_broadcast_sd(&m->a[i][k]);
        c0 = _mm256_fmadd_pd(a, _mm256_load_pd(&m->b[k][j]), c0);
        c1 = _mm256_fmadd_pd(a, _mm256_load_pd(&m->b[k][j + 4]), c1);
        c2 = _mm256_fmadd_pd(a, _mm256_load_pd(&m->b[k][j + 8]), c2);
        c3 = _mm256_fmadd_pd(a, _mm256_load_pd(&m->b[k][j + 12]), c3);
    }
    _mm256_store_pd(&m->c[i][j], c0);
    _mm256_store_pd(&m->c[i][j + 4], c1);
    _mm256_store_pd(&m->c[i][j + 8], c2);
    _mm256_store_pd(&m->c[i][j + 12], c3);
}

static uint64_t avx2_matrix_run(void *data, uint64_t count)
{
    struct matrices *m = data;
    for (uint64_t round = 0; round < count; round++) {
        for (unsigned i = 0; i < SIZE; i++) {
            for (unsigned j = 0; j < SIZE; j += 16) {
                avx2_stripe(m, i, j);
            }
        }
        m->a[round % SIZE][round / SIZE % SIZE] += 1;
    }
    return work_sum(WORK_SUM, m->c, sizeof(m->c));
}

// Five bodies that attract each other, in units of their own.
#define BODY_COUNT 5

struct body {
    double at[3], speed[3], mass;
};

static void *nbody_prepare(void)
{
    struct body *bodies = calloc(BODY_COUNT, sizeof(*bodies));
    uint64_t random = 11;
    for (unsigned i = 0; bodies && i < BODY_COUNT; i++) {
        bodies[i].mass = i ? 0.001 * i : 39.5;
        for (unsigned axis = 0; axis < 3; axis++) {
            bodies[i].at[axis] = i ? (double)(work_random(&random) >> 44) / 65536 + 3.0 * i : 0;
            bodies[i].speed[axis] = i ? (double)(work_random(&random) >> 48) / 65536 : 0;
        }
    }
    return bodies;
}

static void nbody_pull(struct body *a, struct body *b, double step)
{
    double d[3], square = 0;
    for (unsigned axis = 0; axis < 3; axis++) {
        d[axis] = a->at[axis] - b->at[axis];
        square += d[axis] * d[axis];
    }
    double magnitude = step / (square * sqrt(square));
    for (unsigned axis = 0; axis < 3; axis++) {
        a->speed[axis] -= d[axis] * b->mass * magnitude;
        b->speed[axis] += d[axis] * a->mass * magnitude;
    }
}

static uint64_t nbody_run(void *data, uint64_t count)
{
    struct body *bodies = data;
    for (uint64_t round = 0; round < count; round++) {
        for (unsigned i = 0; i < BODY_COUNT; i++) {
            for (unsigned j = i + 1; j < BODY_COUNT; j++) {
                nbody_pull(&bodies[i], &bodies[j], 0.001);
            }
        }
        for (unsigned i = 0; i < BODY_COUNT; i++) {
            for (unsigned axis = 0; axis < 3; axis++) {
                bodies[i].at[axis] += 0.001 * bodies[i].speed[axis];
            }
        }
    }
    return work_sum(WORK_SUM, bodies, BODY_COUNT * sizeof(*bodies));
}

#define BYTE_COUNT 4096

static void *bytes_prepare(void)
{
    char *bytes = aligned_alloc(64, BYTE_COUNT);
    if (bytes) {
        work_text(bytes, BYTE_COUNT);
    }
    return bytes;
}

static void *avx2_integer_prepare(void)
{
    return __builtin_cpu_supports("avx2") ? bytes_prepare() : NULL;
}

// Mixes 4 KiB: sums, products, shuffles, shifts, comparisons and blends of 32 bytes each.
__attribute__((target("avx2"))) static uint64_t avx2_integer_run(void *data, uint64_t count)
{
    __m256i *vectors = data;
    __m256i state = _mm256_set1_epi32(0x01234567), swap = _mm256_set1_epi64x(0x0405060700010203);
    for (uint64_t round = 0; round < count; round++) {
        for (unsigned i = 0; i < BYTE_COUNT / 32; i++) {
            __m256i value = _mm256_load_si256(&vectors[i]);
            __m256i sum = _mm256_add_epi32(value, state);
            __m256i product = _mm256_mullo_epi16(_mm256_shuffle_epi8(sum, swap), value);
            __m256i larger = _mm256_cmpgt_epi32(sum, product);
            state = _mm256_blendv_epi8(_mm256_xor_si256(product, _mm256_srli_epi32(sum, 7)),
                                       _mm256_slli_epi32(sum, 5), larger);
            _mm256_store_si256(&vectors[i], _mm256_add_epi8(value, state));
        }
    }
    return work_sum(WORK_SUM, data, BYTE_COUNT);
}

static void *aes_prepare(void)
{
    return __builtin_cpu_supports("aes") ? bytes_prepare() : NULL;
}

__attribute__((target("aes"))) static void aes_encrypt(__m128i blocks[4], const __m128i keys[11])
{
    __m128i b0 = _mm_xor_si128(blocks[0], keys[0]), b1 = _mm_xor_si128(blocks[1], keys[0]);
    __m128i b2 = _mm_xor_si128(blocks[2], keys[0]), b3 = _mm_xor_si128(blocks[3], keys[0]);
    for (unsigned round = 1; round < 10; round++) {
        b0 = _mm_aesenc_si128(b0, keys[round]);
        b1 = _mm_aesenc_si128(b1, keys[round]);
        b2 = _mm_aesenc_si128(b2, keys[round]);
        b3 = _mm_aesenc_si128(b3, keys[round]);
    }
    blocks[0] = _mm_aesenclast_si128(b0, keys[10]);
    blocks[1] = _mm_aesenclast_si128(b1, keys[10]);
    blocks[2] = _mm_aesenclast_si128(b2, keys[10]);
    blocks[3] = _mm_aesenclast_si128(b3, keys[10]);
}

// Encrypts 4 KiB in place, four blocks at a time, with fixed round keys.
__attribute__((target("aes"))) static uint64_t aes_run(void *data, uint64_t count)
{
    __m128i *blocks = data, keys[11];
    uint64_t random = 13;
    for (unsigned i = 0; i < 11; i++) {
        uint64_t low = work_random(&random);
        keys[i] = _mm_set_epi64x((long long)work_random(&random), (long long)low);
    }
    for (uint64_t round = 0; round < count; round++) {
        for (unsigned i = 0; i < BYTE_COUNT / 16; i += 4) {
            aes_encrypt(blocks + i, keys);
        }
    }
    return work_sum(WORK_SUM, data, BYTE_COUNT);
}

const struct work_row work_vector_rows[] = {
    {"vector", "matrix", "product", 8, matrix_prepare, scalar_matrix_run},
    {"vector", "matrix-avx2", "product", 20, avx2_matrix_prepare, avx2_matrix_run},
    {"vector", "nbody", "step", 400000, nbody_prepare, nbody_run},
    {"vector", "integer-avx2", "4KiB", 60000, avx2_integer_prepare, avx2_integer_run},
    {"vector", "aes", "4KiB", 100000, aes_prepare, aes_run},
    {NULL, NULL, NULL, 0, NULL, NULL},
};
