/*
 * More code than a code cache of 1 MiB holds: thousands of functions, made at run time, that call
 * each other, so that the cache overflows in the middle of work, again and again, with return
 * addresses into what was dropped on the stack. Some change between two rounds.
 */
#include "flat.h"

#define FUNCTIONS 3000
#define SIZE      160 /* bytes of each */
#define ROUNDS    3
#define DEPTH     40 /* calls inside each other */

static uint8_t code[FUNCTIONS * SIZE] __attribute__((aligned(4096)));
static uint32_t addends[FUNCTIONS];

static uint32_t next_random(uint32_t *seed)
{
    *seed = *seed * 1664525 + 1013904223;
    return *seed >> 8;
}

struct writer {
    uint8_t *at;
};

static void put(struct writer *w, const void *bytes, unsigned length)
{
    memcpy(w->at, bytes, length);
    w->at += length;
}
#define PUT(w, ...) put(w, (const uint8_t[]) {__VA_ARGS__}, sizeof(const uint8_t[]) {__VA_ARGS__})

static void put_32(struct writer *w, uint32_t v)
{
    put(w, &v, 4);
}

static uint32_t callee_of(unsigned n)
{
    return (n * 2654435761u + 12345) % FUNCTIONS;
}

/*
 * uint32_t f(uint32_t sum, uint32_t depth): adds and mixes; calls another one while depth is not 0,
 * and mixes once more with what it was given.
 */
static void make(unsigned n)
{
    uint8_t *start = code + n * SIZE;
    struct writer w = {start};

    PUT(&w, 0x53, 0x89, 0xfb); /* push %rbx; mov %edi, %ebx */
    PUT(&w, 0x81, 0xc7);       /* add $addend, %edi */
    put_32(&w, addends[n]);
    for (unsigned i = 0; i < n % 5; i++)
        PUT(&w, 0xc1, 0xc7, (uint8_t)(i + 3), 0x31, 0xdf, 0xf7, 0xd7); /* rol; xor %ebx; not */
    PUT(&w, 0x85, 0xf6);                                               /* test %esi, %esi */
    PUT(&w, 0x74, 0x0b);                                               /* jz over the call */
    PUT(&w, 0xff, 0xce);                                               /* dec %esi */
    PUT(&w, 0x40, 0xf6, 0xc7, 0x01);                                   /* test $1, %dil */
    PUT(&w, 0xe8);                                                     /* call */
    put_32(&w, (uint32_t)(code + callee_of(n) * SIZE - (w.at + 4)));
    PUT(&w, 0x89, 0xf8);       /* mov %edi, %eax: when not called */
    PUT(&w, 0x01, 0xd8);       /* add %ebx, %eax */
    PUT(&w, 0x89, 0xc7);       /* mov %eax, %edi: what the caller finds */
    PUT(&w, 0xc1, 0xc0, 0x07); /* rol $7, %eax */
    PUT(&w, 0x5b, 0xc3);       /* pop %rbx; ret */
}

/* The same in C. */
static uint32_t rol(uint32_t v, unsigned n)
{
    return v << n | v >> (32 - n);
}

/* *edi: as the function leaves it. */
static uint32_t model(unsigned n, uint32_t *edi, uint32_t depth)
{
    uint32_t ebx = *edi, eax;
    *edi += addends[n];
    for (unsigned i = 0; i < n % 5; i++)
        *edi = ~(rol(*edi, i + 3) ^ ebx);
    if (depth)
        model(callee_of(n), edi, depth - 1);
    eax = *edi + ebx;
    *edi = eax;
    return rol(eax, 7);
}

static bool agrees(unsigned n, uint32_t value, uint32_t depth)
{
    uint32_t edi = value, expected = model(n, &edi, depth);
    uint32_t (*f)(uint32_t, uint32_t) = (void *)(code + n * SIZE);
    return f(value, depth) == expected;
}

void guest_main(void)
{
    uint32_t seed = 7;
    for (unsigned n = 0; n < FUNCTIONS; n++) {
        addends[n] = next_random(&seed);
        make(n);
    }
    for (unsigned round = 0; round < ROUNDS; round++) {
        bool good = true;
        for (unsigned n = 0; n < FUNCTIONS; n++)
            good &= agrees(n, n * 3 + round, n % DEPTH);
        check(good, "a round over all functions");
        for (unsigned i = 0; i < 200; i++) {
            unsigned n = next_random(&seed) % FUNCTIONS;
            addends[n] += 1;
            make(n);
        }
    }
    bool good = true;
    for (unsigned n = 0; n < 100; n++) /* hot, among them */
        for (unsigned i = 0; i < 100; i++)
            good &= agrees(n * 30, i, n % DEPTH);
    check(good, "and often the same ones");
}
