/* The table of engines. An engine in it and in meson.build is all that a new one needs here. */
#include "cli/engines.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "engine/kvm/kvm.h"
#include "engine/soft/soft.h"

static const struct engine_ops *const engines[] = {
    &engine_kvm,
    &engine_soft,
};
_Static_assert(ARRAY_COUNT(engines) <= ENGINES_MAX, "room in reports");

static void append(struct engine_choice *out, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

static void append(struct engine_choice *out, const char *format, ...)
{
    size_t used = strlen(out->why);
    va_list args;
    va_start(args, format);
    vsnprintf(out->why + used, sizeof out->why - used, format, args);
    va_end(args);
}

/* "engine soft (auto: the fastest usable one; 12.3 ns an instruction)" */
static void describe(struct engine_choice *out, const struct engine_probe *probe, const char *how)
{
    double ns = MAX(probe->kernel_ns, probe->user_ns);
    out->why[0] = 0;
    append(out, "engine %s (%s", out->engine->name, how);
    if (ns > 0)
        append(out, "; %.1f ns an instruction", ns);
    append(out, ")");
    if (probe->reason[0])
        append(out, ": %s", probe->reason);
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
            return err_set(err, ENOTSUP, "--engine %s: is not usable here, %s", name, probe.reason);
        if (code && !has_code_modes(out->engine))
            return err_set(err, EINVAL, "--engine %s: has no mode= and no code-cache=", name);
        describe(out, &probe, "as asked");
        return 0;
    }
    return err_set(err, EINVAL, "--engine %s: there is no such engine; try auto", name);
}

/* The usable one with the highest rank, or NULL. */
static struct engine_report *best_of(struct engine_report *reports, size_t count)
{
    struct engine_report *best = NULL;
    for (size_t i = 0; i < count; i++) {
        if (reports[i].probe.verdict != ENGINE_UNUSABLE &&
            (!best || reports[i].probe.rank > best->probe.rank))
            best = &reports[i];
    }
    return best;
}

size_t engines_report(struct engine_report out[ENGINES_MAX])
{
    for (size_t i = 0; i < ARRAY_COUNT(engines); i++) {
        out[i] = (struct engine_report) {.name = engines[i]->name};
        engines[i]->probe(&out[i].probe);
    }
    struct engine_report *best = best_of(out, ARRAY_COUNT(engines));
    if (best)
        best->is_auto = true;
    return ARRAY_COUNT(engines);
}

/* Those that were passed over, and why. */
static void describe_others(struct engine_choice *out, const struct engine_report *reports,
                            size_t count)
{
    for (size_t i = 0; i < count; i++) {
        if (!reports[i].is_auto && reports[i].probe.reason[0])
            append(out, "; not %s, %s", reports[i].name, reports[i].probe.reason);
    }
}

static int choose_best(struct engine_choice *out, struct err *err)
{
    struct engine_report reports[ENGINES_MAX];
    size_t count = engines_report(reports);
    for (size_t i = 0; i < count; i++) {
        if (!reports[i].is_auto)
            continue;
        out->engine = engines[i];
        describe(out, &reports[i].probe, "auto: the fastest usable one");
        describe_others(out, reports, count);
        return 0;
    }
    return err_set(err, ENOTSUP,
                   "--engine auto: no engine is usable on this host; 'parat doctor' "
                   "tells why");
}

/* The options are for the only engine that has them. */
static const char *engine_with_code_modes(void)
{
    for (size_t i = 0; i < ARRAY_COUNT(engines); i++) {
        if (has_code_modes(engines[i]))
            return engines[i]->name;
    }
    return "auto";
}

int engines_choose(struct engine_choice *out, const char *name, bool code, struct err *err)
{
    *out = (struct engine_choice) {0};
    if (strcmp(name, "auto") != 0)
        return choose_by_name(out, name, code, err);
    return code ? choose_by_name(out, engine_with_code_modes(), code, err) : choose_best(out, err);
}
