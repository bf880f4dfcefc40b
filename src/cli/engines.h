/* The engines that this parat has, and how one is chosen. Main thread. */
#ifndef PARAT_CLI_ENGINES_H
#define PARAT_CLI_ENGINES_H

#include <stdbool.h>

#include "base/bits.h"
#include "base/err.h"
#include "vm/engine.h"

struct engine_choice {
    const struct engine_ops *engine;
    char why[400]; /* for the user: "soft (auto): …" */
};

/*
 * name: an engine's, or "auto". code: options that only some engines have (ENGINE_CAP_CODE_MODES)
 * were given. -errno with a sentence that names --engine.
 */
int engines_choose(struct engine_choice *out, const char *name, bool code,
                   struct err *err) MUST_USE;

#endif
