/*
 * A small table-driven command line: --name VALUE, --name=VALUE, --flag; -N VALUE for an option
 * whose name is one letter; and words, where a command takes some. Every failure is one
 * sentence that begins with the option. Main thread.
 */
#ifndef PARAT_CLI_OPTIONS_H
#define PARAT_CLI_OPTIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/bits.h"
#include "base/err.h"

struct option {
    const char *name;  /* without the dashes; NULL: `help` heads a group of options */
    const char *value; /* what the help calls the value; NULL: takes none */
    const char *help;  /* lines separated by \n */
    bool repeatable;
    /* value is NULL for a flag. 0, or -errno with a sentence that need not name the option. */
    int (*parse)(void *target, const char *value, struct err *err);
};

#define OPTIONS_MAX 64

struct options {
    const struct option *list;
    size_t count;
    /* What is not an option goes here, in its order; what is missing is not touched. NULL: nothing
     * may. */
    const char **words;
    unsigned words_max;
};

/* Hands each argument to its option. -EINVAL with the sentence. --help (-h) sets *help and ends. */
int options_parse(const struct options *options, char **args, void *target, bool *help,
                  struct err *err) MUST_USE;
/* The table as text for a terminal, on standard output. */
void options_print_help(const struct option *options, size_t count);

/* A number, decimal or 0x; false when it is none or above max. */
bool options_parse_number(const char *text, uint64_t max, uint64_t *out) MUST_USE;
/* A number of bytes with an optional K, M, G or T (powers of 1024). */
bool options_parse_size(const char *text, uint64_t *out) MUST_USE;

/*
 * Cuts the next word off a list separated by commas, in place; two commas stand for one that
 * belongs to the word. NULL at the end.
 */
char *options_next_word(char **cursor);
/* The part of word behind "name=", or NULL. */
const char *options_value_of(const char *word, const char *name);

#endif
