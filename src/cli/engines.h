/* The engines that this parat has, and how one is chosen. Main thread. */
#ifndef PARAT_CLI_ENGINES_H
#define PARAT_CLI_ENGINES_H

#include <stdbool.h>

#include "base/bits.h"
#include "base/err.h"
#include "vm/engine.h"

struct engine_choice {
    const struct engine_ops *engine;
    char why[1000]; /* for the user: "engine soft (auto: …" */
};

/*
 * name: an engine's, or "auto". code: options that only some engines have (ENGINE_CAP_CODE_MODES)
 * were given. -errno with a sentence that names --engine.
 */
int engines_choose(struct engine_choice *out, const char *name, bool code,
                   struct err *err) MUST_USE;

#define ENGINES_MAX 4

struct engine_report {
    const char *name;
    struct engine_probe probe;
    bool is_auto; /* `auto` takes this one */
};

/* Probes all of them, in the table's order. Returns how many there are. */
size_t engines_report(struct engine_report out[ENGINES_MAX]);

#endif
