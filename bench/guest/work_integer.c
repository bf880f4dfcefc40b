// Integer work in plain C: the CoreMark-like mixture, SHA-256, a byte-code interpreter, sorting,
// recursion; and the same mixture on one thread and on two, which shows what a second CPU is worth.
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include "work.h"

// SHA-256: FIPS 180-4.
static const uint32_t sha_k[64] = {
    0x428A2F98, 0x71374491, 0xB5C0FBCF, 0xE9B5DBA5, 0x3956C25B, 0x59F111F1, 0x923F82A4, 0xAB1C5ED5,
    0xD807AA98, 0x12835B01, 0x243185BE, 0x550C7DC3, 0x72BE5D74, 0x80DEB1FE, 0x9BDC06A7, 0xC19BF174,
    0xE49B69C1, 0xEFBE4786, 0x0FC19DC6, 0x240CA1CC, 0x2DE92C6F, 0x4A7484AA, 0x5CB0A9DC, 0x76F988DA,
    0x983E5152, 0xA831C66D, 0xB00327C8, 0xBF597FC7, 0xC6E00BF3, 0xD5A79147, 0x06CA6351, 0x14292967,
    0x27B70A85, 0x2E1B2138, 0x4D2C6DFC, 0x53380D13, 0x650A7354, 0x766A0ABB, 0x81C2C92E, 0x92722C85,
    0xA2BFE8A1, 0xA81A664B, 0xC24B8B70, 0xC76C51A3, 0xD192E819, 0xD6990624, 0xF40E3585, 0x106AA070,
    0x19A4C116, 0x1E376C08, 0x2748774C, 0x34B0BCB5, 0x391C0CB3, 0x4ED8AA4A, 0x5B9CCA4F, 0x682E6FF3,
    0x748F82EE, 0x78A5636F, 0x84C87814, 0x8CC70208, 0x90BEFFFA, 0xA4506CEB, 0xBEF9A3F7, 0xC67178F2,
};

static uint32_t rotate(uint32_t value, unsigned by)
{
    return value >> by | value << (32 - by);
}

static void sha_schedule(uint32_t w[64], const uint8_t block[64])
{
    for (unsigned i = 0; i < 16; i++) {
        uint32_t word;
        memcpy(&word, block + 4 * i, sizeof(word));
        w[i] = __builtin_bswap32(word);
    }
    for (unsigned i = 16; i < 64; i++) {
        uint32_t s0 = rotate(w[i - 15], 7) ^ rotate(w[i - 15], 18) ^ w[i - 15] >> 3;
        uint32_t s1 = rotate(w[i - 2], 17) ^ rotate(w[i - 2], 19) ^ w[i - 2] >> 10;
        w[i] = w[i - 16] + s0 + w[i - 7] + s1;
    }
}

static void sha_block(uint32_t state[8], const uint8_t block[64])
{
    uint32_t w[64];
    sha_schedule(w, block);
    uint32_t a = state[0], b = state[1], c = state[2], d = state[3];
    uint32_t e = state[4], f = state[5], g = state[6], h = state[7];
    for (unsigned i = 0; i < 64; i++) {
        uint32_t s1 = rotate(e, 6) ^ rotate(e, 11) ^ rotate(e, 25);
        uint32_t t1 = h + s1 + ((e & f) ^ (~e & g)) + sha_k[i] + w[i];
        uint32_t s0 = rotate(a, 2) ^ rotate(a, 13) ^ rotate(a, 22);
        uint32_t t2 = s0 + ((a & b) ^ (a & c) ^ (b & c));
        h = g, g = f, f = e, e = d + t1, d = c, c = b, b = a, a = t1 + t2;
    }
    state[0] += a, state[1] += b, state[2] += c, state[3] += d;
    state[4] += e, state[5] += f, state[6] += g, state[7] += h;
}

#define SHA_BLOCK_COUNT 256

static void *sha_prepare(void)
{
    char *text = malloc(SHA_BLOCK_COUNT * 64);
    if (text) {
        work_text(text, SHA_BLOCK_COUNT * 64);
    }
    return text;
}

static uint64_t sha_run(void *data, uint64_t count)
{
    uint32_t state[8] = {0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A,
                         0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19};
    for (uint64_t i = 0; i < count; i++) {
        sha_block(state, (const uint8_t *)data + i % SHA_BLOCK_COUNT * 64);
    }
    return work_sum(WORK_SUM, state, sizeof(state));
}

// A register machine with a switch; its program is the sieve of Eratosthenes.
enum operation {
    OP_SET,
    OP_ADD,
    OP_ADDI,
    OP_LOAD,
    OP_STORE,
    OP_LESS,
    OP_JUMP_IF,
    OP_JUMP_IF_NOT,
    OP_STOP
};

struct operand_code {
    uint8_t operation, a, b, c;
    int32_t value;
};

#define SIEVE_SIZE 4096

// r0 limit, r1 prime candidate, r2 multiple, r3 flag, r4 count of primes, r5 one
static const struct operand_code sieve[] = {
    {OP_SET, 0, 0, 0, SIEVE_SIZE}, {OP_SET, 1, 0, 0, 2},   {OP_SET, 4, 0, 0, 0},
    {OP_SET, 5, 0, 0, 1},          {OP_LOAD, 3, 1, 0, 0},  {OP_JUMP_IF, 3, 0, 0, 12},
    {OP_ADDI, 4, 4, 0, 1},         {OP_ADD, 2, 1, 1, 0},   {OP_LESS, 3, 2, 0, 0},
    {OP_JUMP_IF_NOT, 3, 0, 0, 12}, {OP_STORE, 2, 5, 0, 0}, {OP_JUMP_IF, 5, 0, 0, 16},
    {OP_ADDI, 1, 1, 0, 1},         {OP_LESS, 3, 1, 0, 0},  {OP_JUMP_IF, 3, 0, 0, 4},
    {OP_STOP, 0, 0, 0, 0},         {OP_ADD, 2, 2, 1, 0},   {OP_JUMP_IF, 5, 0, 0, 8},
};

static int64_t interpret(const struct operand_code *code, uint8_t memory[SIEVE_SIZE])
{
    int64_t r[8] = {0};
    for (const struct operand_code *at = code;; at++) {
        switch (at->operation) {
        case OP_SET:
            r[at->a] = at->value;
            break;
        case OP_ADD:
            r[at->a] = r[at->b] + r[at->c];
            break;
        case OP_ADDI:
            r[at->a] = r[at->b] + at->value;
            break;
        case OP_LOAD:
            r[at->a] = memory[r[at->b] % SIEVE_SIZE];
            break;
        case OP_STORE:
            memory[r[at->a] % SIEVE_SIZE] = (uint8_t)r[at->b];
            break;
        case OP_LESS:
            r[at->a] = r[at->b] < r[at->c];
            break;
        case OP_JUMP_IF:
            at = r[at->a] ? code + at->value - 1 : at;
            break;
        case OP_JUMP_IF_NOT:
            at = r[at->a] ? at : code + at->value - 1;
            break;
        default:
            return r[4];
        }
    }
}

static uint64_t bytecode_run(void *data, uint64_t count)
{
    uint8_t memory[SIEVE_SIZE];
    uint64_t sum = 0;
    for (uint64_t i = 0; i < count; i++) {
        memset(memory, 0, sizeof(memory));
        sum += (uint64_t)interpret(sieve, memory);
    }
    return sum;
}

// Quicksort with the comparison inlined; short ranges by insertion.
static void sort_short(uint32_t *values, size_t count)
{
    for (size_t i = 1; i < count; i++) {
        uint32_t value = values[i];
        size_t j = i;
        for (; j > 0 && values[j - 1] > value; j--) {
            values[j] = values[j - 1];
        }
        values[j] = value;
    }
}

static void sort_quick(uint32_t *values, size_t count)
{
    while (count > 16) {
        uint32_t a = values[0], b = values[count / 2], c = values[count - 1];
        uint32_t pivot = a < b ? (b < c ? b : a < c ? c : a) : (a < c ? a : b < c ? c : b);
        size_t low = 0, high = count - 1;
        for (;; low++, high--) {
            while (values[low] < pivot) {
                low++;
            }
            while (values[high] > pivot) {
                high--;
            }
            if (low >= high) {
                break;
            }
            uint32_t value = values[low];
            values[low] = values[high];
            values[high] = value;
        }
        sort_quick(values + high + 1, count - high - 1);
        count = high + 1;
    }
    sort_short(values, count);
}

#define SORT_COUNT 1000000

static void *sort_prepare(void)
{
    uint32_t *values = malloc(SORT_COUNT * sizeof(*values));
    uint64_t random = 7;
    for (size_t i = 0; values && i < SORT_COUNT; i++) {
        values[i] = (uint32_t)work_random(&random);
    }
    return values;
}

static uint64_t sort_run(void *data, uint64_t count)
{
    uint32_t *values = data;
    sort_quick(values, count);
    for (uint64_t i = 1; i < count; i++) {
        if (values[i - 1] > values[i]) {
            return WORK_FAILED;
        }
    }
    return values[count / 2];
}

__attribute__((noinline)) static uint64_t fibonacci(unsigned n)
{
    return n < 2 ? n : fibonacci(n - 1) + fibonacci(n - 2);
}

static uint64_t recursion_run(void *data, uint64_t count)
{
    uint64_t sum = 0;
    for (uint64_t i = 0; i < count; i++) {
        sum += fibonacci(27);
    }
    return sum;
}

// Two threads do the work that one thread does in the row "one-thread", each the whole of it.
struct parallel {
    void *mixture;
    uint64_t count, sum;
};

static void *parallel_thread(void *data)
{
    struct parallel *parallel = data;
    parallel->sum = work_coremark_run(parallel->mixture, parallel->count);
    return parallel;
}

static uint64_t parallel_run(void *data, uint64_t count, unsigned thread_count)
{
    struct parallel parallel[2];
    pthread_t threads[2];
    for (unsigned i = 0; i < thread_count; i++) {
        parallel[i] = (struct parallel) {work_coremark_prepare(), count, 0};
        if (pthread_create(&threads[i], NULL, parallel_thread, &parallel[i])) {
            return WORK_FAILED;
        }
    }
    uint64_t sum = 0;
    for (unsigned i = 0; i < thread_count; i++) {
        pthread_join(threads[i], NULL);
        sum |= parallel[i].sum;
    }
    return sum;
}

static uint64_t one_thread_run(void *data, uint64_t count)
{
    return parallel_run(data, count, 1);
}

static uint64_t two_threads_run(void *data, uint64_t count)
{
    return parallel_run(data, count, 2);
}

const struct work_row work_integer_rows[] = {
    {"integer", "coremark", "round", 5000, work_coremark_prepare, work_coremark_run},
    {"integer", "sha256", "block", 400000, sha_prepare, sha_run},
    {"integer", "bytecode", "sieve", 1000, NULL, bytecode_run},
    {"integer", "sort", "element", SORT_COUNT, sort_prepare, sort_run},
    {"integer", "recursion", "fib(27)", 60, NULL, recursion_run},
    {"parallel", "one-thread", "round", 10000, NULL, one_thread_run},
    {"parallel", "two-threads", "round", 10000, NULL, two_threads_run},
    {NULL, NULL, NULL, 0, NULL, NULL},
};
