/*
 * The arithmetic of the integer instructions, done by the same host instruction: result and flags,
 * undefined ones included, are the host's. host_NAME_SIZE(a, b, &rflags) changes the status flags
 * in rflags as the instruction does.
 */
#ifndef PARAT_X86_HOST_ALU_H
#define PARAT_X86_HOST_ALU_H

#include "x86/exec_int.h"

/* Sets all status flags and reads none. */
#define HOST_BINARY(name, insn, n, type)                                                           \
    ALWAYS_INLINE uint64_t host_##name##_##n(uint64_t a, uint64_t b, uint64_t *rflags)             \
    {                                                                                              \
        type v = (type)a;                                                                          \
        uint64_t ax;                                                                               \
        __asm__(insn " %2, %0" FLAGS_OUT : "+r"(v), "=&a"(ax) : "r"((type)b) : "cc");              \
        *rflags = flags_join(*rflags, ax);                                                         \
        return v;                                                                                  \
    }

/* Reads CF. */
#define HOST_CARRY(name, insn, n, type)                                                            \
    ALWAYS_INLINE uint64_t host_##name##_##n(uint64_t a, uint64_t b, uint64_t *rflags)             \
    {                                                                                              \
        type v = (type)a;                                                                          \
        uint64_t ax = *rflags;                                                                     \
        __asm__("shrb $1, %%al\n\t" insn " %2, %0" FLAGS_OUT                                       \
                : "+r"(v), "+&a"(ax)                                                               \
                : "r"((type)b)                                                                     \
                : "cc");                                                                           \
        *rflags = flags_join(*rflags, ax);                                                         \
        return v;                                                                                  \
    }

/* Reads or keeps any flag. */
#define HOST_FLAGS(name, insn, n, type)                                                            \
    ALWAYS_INLINE uint64_t host_##name##_##n(uint64_t a, uint64_t b, uint64_t *rflags)             \
    {                                                                                              \
        type v = (type)a;                                                                          \
        uint64_t ax = flags_split(*rflags);                                                        \
        __asm__(FLAGS_IN insn " %2, %0" FLAGS_OUT : "+r"(v), "+&a"(ax) : "r"((type)b) : "cc");     \
        *rflags = flags_join(*rflags, ax);                                                         \
        return v;                                                                                  \
    }

#define HOST_UNARY(name, insn, n, type)                                                            \
    ALWAYS_INLINE uint64_t host_##name##_##n(uint64_t a, uint64_t *rflags)                         \
    {                                                                                              \
        type v = (type)a;                                                                          \
        uint64_t ax = flags_split(*rflags);                                                        \
        __asm__(FLAGS_IN insn " %0" FLAGS_OUT : "+r"(v), "+&a"(ax) : : "cc");                      \
        *rflags = flags_join(*rflags, ax);                                                         \
        return v;                                                                                  \
    }

/* The suffix is the instruction's; HOST_SIZES(HOST_BINARY, add) makes host_add_1 to host_add_8. */
#define HOST_SIZES(kind, name)                                                                     \
    kind(name, #name "b", 1, uint8_t) kind(name, #name "w", 2, uint16_t)                           \
        kind(name, #name "l", 4, uint32_t) kind(name, #name "q", 8, uint64_t)
#define HOST_SIZES_WIDE(kind, name)                                                                \
    kind(name, #name "w", 2, uint16_t) kind(name, #name "l", 4, uint32_t)                          \
        kind(name, #name "q", 8, uint64_t)

HOST_SIZES(HOST_BINARY, add);
HOST_SIZES(HOST_BINARY, or);
HOST_SIZES(HOST_BINARY, and);
HOST_SIZES(HOST_BINARY, sub);
HOST_SIZES(HOST_BINARY, xor);
HOST_SIZES(HOST_BINARY, cmp);
HOST_SIZES(HOST_BINARY, test);
HOST_SIZES(HOST_CARRY, adc);
HOST_SIZES(HOST_CARRY, sbb);
HOST_SIZES(HOST_UNARY, inc);
HOST_SIZES(HOST_UNARY, dec);
HOST_SIZES(HOST_UNARY, neg);
HOST_FLAGS(adcx, "adcxl", 4, uint32_t);
HOST_FLAGS(adcx, "adcxq", 8, uint64_t);
HOST_FLAGS(adox, "adoxl", 4, uint32_t);
HOST_FLAGS(adox, "adoxq", 8, uint64_t);

#define HOST_NOT(n, type)                                                                          \
    ALWAYS_INLINE uint64_t host_not_##n(uint64_t a, uint64_t *rflags)                              \
    {                                                                                              \
        return (type)~a;                                                                           \
    }
HOST_NOT(1, uint8_t);
HOST_NOT(2, uint16_t);
HOST_NOT(4, uint32_t);
HOST_NOT(8, uint64_t);

#endif
