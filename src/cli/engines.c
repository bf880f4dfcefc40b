/* The table of engines. An engine in it and in meson.build is all that a new one needs here. */
#include "cli/engines.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "engine/soft/soft.h"

static const struct engine_ops *const engines[] = {
    &engine_soft,
};

/* "engine soft (auto: the only one in this build; 12.3 ns an instruction)" */
static void describe(struct engine_choice *out, const struct engine_probe *probe, const char *how)
{
    char speed[48] = "";
    if (probe->user_ns > 0)
        snprintf(speed, sizeof speed, "; %.1f ns an instruction", probe->user_ns);
    snprintf(out->why, sizeof out->why, "engine %s (%s%s)%s%s", out->engine->name, how, speed,
             probe->reason[0] ? ": " : "", probe->reason);
}

static bool has_code_modes(const struct engine_ops *engine)
{
    return engine->capabilities() & ENGINE_CAP_CODE_MODES;
}

static int choose_by_name(struct engine_choice *out, const char *name, bool code, struct err *err)
{
    for (size_t i = 0; i < ARRAY_COUNT(engines); i++) {
        if (strcmp(engines[i]->name, name) != 0)
            continue;
        struct engine_probe probe = {0};
        out->engine = engines[i];
        out->engine->probe(&probe);
        if (probe.verdict == ENGINE_UNUSABLE)
            return err_set(err, ENOTSUP, "--engine %s: is not usable here: %s", name, probe.reason);
        if (code && !has_code_modes(out->engine))
            return err_set(err, EINVAL, "--engine %s: has no mode= and no code-cache=", name);
        describe(out, &probe, "as asked");
        return 0;
    }
    return err_set(err, EINVAL, "--engine %s: there is no such engine; try auto", name);
}

static int choose_best(struct engine_choice *out, bool code, struct err *err)
{
    struct engine_probe best = {.verdict = ENGINE_UNUSABLE};
    for (size_t i = 0; i < ARRAY_COUNT(engines); i++) {
        struct engine_probe probe = {0};
        if (code && !has_code_modes(engines[i]))
            continue;
        engines[i]->probe(&probe);
        if (probe.verdict == ENGINE_UNUSABLE || (out->engine && probe.rank <= best.rank))
            continue;
        out->engine = engines[i];
        best = probe;
    }
    if (!out->engine)
        return err_set(err, ENOTSUP, "--engine auto: no engine is usable on this host");
    describe(out, &best,
             ARRAY_COUNT(engines) == 1 ? "auto: the only one in this build"
                                       : "auto: the fastest usable one");
    return 0;
}

int engines_choose(struct engine_choice *out, const char *name, bool code, struct err *err)
{
    *out = (struct engine_choice) {0};
    return strcmp(name, "auto") == 0 ? choose_best(out, code, err)
                                     : choose_by_name(out, name, code, err);
}
