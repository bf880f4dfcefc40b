/*
 * Two worlds from one input: in the reference each instruction is fetched, decoded and interpreted
 * anew; the subject runs as engine soft does. Both must end with the same registers, memory and
 * accesses to devices; code that does not end is compared behind each unit or block. A difference
 * crashes. Code that loops for ever on the host is found by its CPU time.
 *
 * FUZZ_TRACE=1 in the environment prints what the interpreter executes.
 */
#ifndef PARAT_TESTS_FUZZ_COMPARE_H
#define PARAT_TESTS_FUZZ_COMPARE_H

#include "world.h"

struct compare {
    struct world *reference, *subject;
    /* Makes the world what the input says. */
    void (*fill)(struct world *world, const void *input);
    const void *input;
    bool stepwise;   /* compare behind each unit, not at the end */
    bool translates; /* the subject runs translated code */
};

/* Once, before all. */
void compare_init(void);
void compare_run(const struct compare *compare);

#endif
