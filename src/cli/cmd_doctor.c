/* `parat doctor`: probes every engine and prints a table, or JSON. Main thread. */
#include "cli/cmd_doctor.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "cli/engines.h"
#include "cli/exit_status.h"
#include "cli/options.h"

struct doctor_options {
    bool json;
};

static int parse_json(void *target, const char *value, struct err *err)
{
    ((struct doctor_options *)target)->json = true;
    return 0;
}

static const struct option options[] = {
    {"json", NULL, "print JSON, for programs", false, parse_json},
};

static void print_help(void)
{
    puts("usage: parat doctor [--json]\n"
         "\n"
         "Tells which engines can run VMs on this host, how fast each was measured to be, which "
         "one\n"
         "--engine auto takes, and what to do where one cannot be used. The exit status is 0 when\n"
         "at least one is usable.\n");
    options_print_help(options, ARRAY_COUNT(options));
}

static const char *verdict_name(enum engine_verdict verdict)
{
    static const char *const names[] = {
        [ENGINE_UNUSABLE] = "unusable", [ENGINE_SLOW] = "slow", [ENGINE_USABLE] = "usable"};
    return names[verdict];
}

/* --- the table --- */

static void format_ns(char text[16], double ns)
{
    if (ns > 0)
        snprintf(text, 16, ns < 10 ? "%.2f ns" : "%.0f ns", ns);
    else
        snprintf(text, 16, "-");
}

static void print_row(const struct engine_report *r)
{
    char kernel[16], user[16];
    format_ns(kernel, r->probe.kernel_ns);
    format_ns(user, r->probe.user_ns);
    printf("%-8s%-10s%14s%14s%s\n", r->name, verdict_name(r->probe.verdict), kernel, user,
           r->is_auto ? "   <- auto" : "");
}

static void print_reason(const struct engine_report *r)
{
    if (r->probe.reason[0])
        printf("\n%s is %s %s.\n", r->name, verdict_name(r->probe.verdict), r->probe.reason);
    if (r->probe.remedy[0])
        printf("  What to do: %s.\n", r->probe.remedy);
}

static void print_table(const struct engine_report *reports, size_t count)
{
    const char *chosen = NULL;
    printf("%-8s%-10s%14s%14s\n", "engine", "verdict", "kernel mode", "user mode");
    for (size_t i = 0; i < count; i++) {
        print_row(&reports[i]);
        chosen = reports[i].is_auto ? reports[i].name : chosen;
    }
    puts("(the time of one instruction, measured)");
    for (size_t i = 0; i < count; i++)
        print_reason(&reports[i]);
    if (chosen)
        printf("\n--engine auto takes %s, the fastest usable one.\n", chosen);
    else
        puts("\nNo engine is usable on this host.");
}

/* --- JSON --- */

static json_t *measured(double ns)
{
    return ns > 0 ? json_real(ns) : json_null();
}

static json_t *report_object(const struct engine_report *r)
{
    json_t *object = json_object();
    json_object_set_new(object, "name", json_string(r->name));
    json_object_set_new(object, "verdict", json_string(verdict_name(r->probe.verdict)));
    json_object_set_new(object, "reason", json_string(r->probe.reason));
    json_object_set_new(object, "remedy", json_string(r->probe.remedy));
    json_object_set_new(object, "kernel_ns", measured(r->probe.kernel_ns));
    json_object_set_new(object, "user_ns", measured(r->probe.user_ns));
    json_object_set_new(object, "auto", json_boolean(r->is_auto));
    return object;
}

static int print_json(const struct engine_report *reports, size_t count)
{
    json_t *root = json_object(), *list = json_array();
    const char *chosen = NULL;
    for (size_t i = 0; i < count; i++) {
        json_array_append_new(list, report_object(&reports[i]));
        chosen = reports[i].is_auto ? reports[i].name : chosen;
    }
    json_object_set_new(root, "engines", list);
    json_object_set_new(root, "auto", chosen ? json_string(chosen) : json_null());
    char *text = json_dumps(root, JSON_INDENT(2) | JSON_REAL_PRECISION(4));
    json_decref(root);
    if (!text) {
        log_error("out of memory");
        return -1;
    }
    puts(text);
    free(text);
    return 0;
}

/* --- the command --- */

static int report(const struct doctor_options *o)
{
    struct engine_report reports[ENGINES_MAX];
    size_t count = engines_report(reports);
    bool usable = false;
    for (size_t i = 0; i < count; i++)
        usable |= reports[i].probe.verdict != ENGINE_UNUSABLE;
    if (!o->json)
        print_table(reports, count);
    else if (print_json(reports, count))
        return EXIT_HOST_ERROR;
    return usable ? EXIT_OK : EXIT_HOST_ERROR;
}

int cmd_doctor(const struct cli *cli, char **args)
{
    struct doctor_options o = {0};
    struct err err = {{0}};
    bool help;
    const struct options table = {.list = options, .count = ARRAY_COUNT(options)};
    if (options_parse(&table, args, &o, &help, &err)) {
        log_error("doctor: %s", err.text);
        return EXIT_WRONG_USE;
    }
    if (help) {
        print_help();
        return EXIT_OK;
    }
    return report(&o);
}
