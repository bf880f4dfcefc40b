/*
 * The sixteen conditions of Jcc, SETcc and CMOVcc, in the order of their encoding.
 * SDM vol. 1 appendix B.
 */
#ifndef PARAT_X86_EXEC_COND_H
#define PARAT_X86_EXEC_COND_H

#include <stdbool.h>
#include <stdint.h>

#include "x86/defs.h"

/* clang-format off */
#define FOR_CONDITIONS(M) M(o) M(no) M(b) M(nb) M(z) M(nz) M(be) M(nbe)                            \
                          M(s) M(ns) M(p) M(np) M(l) M(nl) M(le) M(nle)
/* clang-format on */

#define CONDITION(name, opposite, expression)                                                      \
    static inline bool cond_##name(uint64_t f)                                                     \
    {                                                                                              \
        return expression;                                                                         \
    }                                                                                              \
    static inline bool cond_##opposite(uint64_t f)                                                 \
    {                                                                                              \
        return !(expression);                                                                      \
    }

/* SF is bit 7 and OF bit 11: bit 11 of the exclusive or says that they differ. */
CONDITION(o, no, (f & X86_OF) != 0)
CONDITION(b, nb, (f & X86_CF) != 0)
CONDITION(z, nz, (f & X86_ZF) != 0)
CONDITION(be, nbe, (f & (X86_CF | X86_ZF)) != 0)
CONDITION(s, ns, (f & X86_SF) != 0)
CONDITION(p, np, (f & X86_PF) != 0)
CONDITION(l, nl, ((f ^ f << 4) & X86_OF) != 0)
CONDITION(le, nle, (((f ^ f << 4) & X86_OF) | (f & X86_ZF)) != 0)

#undef CONDITION

#endif
