/* The command line parser; see options.h. */
#include "cli/options.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define HELP_COLUMN 28

/* Parsing */

static const struct option *find_option(const struct option *options, size_t count,
                                        const char *name, size_t length)
{
    for (size_t i = 0; i < count; i++)
        if (options[i].name && strlen(options[i].name) == length &&
            memcmp(options[i].name, name, length) == 0)
            return &options[i];
    return NULL;
}

static int check_use(const struct option *option, const char *equals, const char *value, bool seen,
                     struct err *err)
{
    const char *dashes = option->name[1] ? "--" : "-";
    if (!option->value && equals)
        return err_set(err, EINVAL, "--%s: takes no value", option->name);
    if (option->value && !value)
        return err_set(err, EINVAL, "%s%s: needs a value (%s)", dashes, option->name,
                       option->value);
    if (seen && !option->repeatable)
        return err_set(err, EINVAL, "%s%s: is given twice", dashes, option->name);
    return 0;
}

static int parse_value(const struct option *option, const char *value, void *target,
                       struct err *err)
{
    int error = option->parse(target, value, err);
    if (!error)
        return 0;
    const char *dashes = option->name[1] ? "--" : "-";
    if (!value)
        return err_prefix(err, error, "%s%s", dashes, option->name);
    return err_prefix(err, error, "%s%s %s", dashes, option->name, value);
}

/* The option that an argument names; *equals: what stands behind its name. NULL: none. */
static const struct option *match(const struct option *options, size_t count, const char *arg,
                                  const char **equals)
{
    *equals = NULL;
    if (arg[0] == '-' && arg[1] && arg[1] != '-')
        return arg[2] ? NULL : find_option(options, count, arg + 1, 1);
    *equals = strchr(arg, '=');
    size_t length = *equals ? (size_t)(*equals - arg - 2) : strlen(arg + 2);
    return length == 1 ? NULL : find_option(options, count, arg + 2, length);
}

/* One option, its value perhaps the next argument. */
static int parse_option(const struct options *o, char ***args, void *target, bool *seen,
                        struct err *err)
{
    const char *arg = **args, *equals;
    const struct option *option = match(o->list, o->count, arg, &equals);
    if (!option)
        return err_set(err, EINVAL, "%.*s: there is no such option", (int)strcspn(arg, "="), arg);
    const char *value = equals ? equals + 1 : NULL;
    if (option->value && !value && (*args)[1])
        value = *++*args;
    bool *seen_it = &seen[option - o->list];
    int error = check_use(option, equals, value, *seen_it, err);
    if (!error)
        error = parse_value(option, value, target, err);
    *seen_it = true;
    return error;
}

/* "-", "--" and "-5G" are words. */
static bool is_option(const char *arg)
{
    bool number = arg[0] == '-' && arg[1] >= '0' && arg[1] <= '9';
    return arg[0] == '-' && arg[1] && !number && (arg[1] != '-' || arg[2]);
}

int options_parse(const struct options *o, char **args, void *target, bool *help, struct err *err)
{
    bool seen[OPTIONS_MAX] = {false};
    unsigned words = 0;
    *help = false;
    for (; *args; args++) {
        const char *arg = *args;
        if (strcmp(arg, "--help") == 0 || strcmp(arg, "-h") == 0) {
            *help = true;
            return 0;
        }
        if (!is_option(arg) && !o->words)
            return err_set(err, EINVAL, "%s: every argument must be an --option", arg);
        if (!is_option(arg) && words == o->words_max)
            return err_set(err, EINVAL, "%s: is one argument too many", arg);
        if (!is_option(arg)) {
            o->words[words++] = arg;
            continue;
        }
        int error = parse_option(o, &args, target, seen, err);
        if (error)
            return error;
    }
    return 0;
}

/* Help */

static void print_option(const struct option *option)
{
    const char *dashes = option->name[1] ? "--" : "-";
    int used = printf("  %s%s%s%s", dashes, option->name, option->value ? " " : "",
                      option->value ? option->value : "");
    if (used >= HELP_COLUMN) {
        putchar('\n');
        used = 0;
    }
    for (const char *line = option->help; line;) {
        const char *end = strchr(line, '\n');
        int length = end ? (int)(end - line) : (int)strlen(line);
        printf("%*s%.*s\n", HELP_COLUMN - used, "", length, line);
        used = 0;
        line = end ? end + 1 : NULL;
    }
}

void options_print_help(const struct option *options, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        if (options[i].name)
            print_option(&options[i]);
        else
            printf("\n%s:\n", options[i].help);
    }
}

/* Values */

static bool add_digit(uint64_t *value, unsigned base, char c)
{
    unsigned digit = c >= '0' && c <= '9'   ? (unsigned)(c - '0')
                     : c >= 'a' && c <= 'f' ? (unsigned)(c - 'a' + 10)
                     : c >= 'A' && c <= 'F' ? (unsigned)(c - 'A' + 10)
                                            : 99;
    return digit < base && !mul_overflows(*value, (uint64_t)base, value) &&
           !add_overflows(*value, (uint64_t)digit, value);
}

/* Unlike strtoull: no sign, no space, no octal. *end is behind the last digit. */
static bool parse_digits(const char *text, uint64_t *value, const char **end)
{
    unsigned base = 10;
    if (text[0] == '0' && (text[1] == 'x' || text[1] == 'X')) {
        base = 16;
        text += 2;
    }
    const char *start = text;
    *value = 0;
    uint64_t next = 0;
    while (add_digit(&next, base, *text)) {
        *value = next;
        text++;
    }
    *end = text;
    return text > start;
}

bool options_parse_number(const char *text, uint64_t max, uint64_t *out)
{
    const char *end;
    return parse_digits(text, out, &end) && !*end && *out <= max;
}

bool options_parse_size(const char *text, uint64_t *out)
{
    static const char suffixes[] = "KMGT";
    const char *end;
    if (!parse_digits(text, out, &end))
        return false;
    if (!*end)
        return true;
    const char upper = *end >= 'a' && *end <= 'z' ? (char)(*end - 32) : *end;
    const char *suffix = strchr(suffixes, upper);
    if (!suffix || end[1])
        return false;
    return !mul_overflows(*out, 1ull << (10 * (suffix - suffixes + 1)), out);
}

char *options_next_word(char **cursor)
{
    char *from = *cursor;
    if (!from)
        return NULL;
    char *word = from, *to = from;
    for (; *from; from++) {
        if (*from == ',' && *++from != ',') {
            *to = 0;
            *cursor = from;
            return word;
        }
        *to++ = *from;
    }
    *to = 0;
    *cursor = NULL;
    return word;
}

const char *options_value_of(const char *word, const char *name)
{
    size_t length = strlen(name);
    return strncmp(word, name, length) == 0 && word[length] == '=' ? word + length + 1 : NULL;
}
