/* `parat disk`: one table of options a subcommand; what they do stands in backend/disk. */
#include "cli/cmd_disk.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backend/disk/image_create.h"
#include "backend/disk/image_info.h"
#include "base/log.h"
#include "cli/disk_progress.h"
#include "cli/disk_report.h"
#include "cli/exit_status.h"
#include "cli/options.h"

#define FINDINGS_MAX 20u

struct disk_options {
    enum disk_format format, out_format;
    struct image_create create;
    const char *backing;
    enum disk_format backing_format;
    bool json, repair, shrink;
    const char *words[2];
};

static int wrong_use(struct err *err, const char *sentence)
{
    err_set(err, EINVAL, "%s", sentence);
    return EXIT_WRONG_USE;
}

/* Options */

static int parse_format_value(enum disk_format *out, const char *value, struct err *err)
{
    return image_format_parse(value, out) ? 0 : err_set(err, EINVAL, "known are raw and qcow2");
}

static int parse_format(void *target, const char *value, struct err *err)
{
    return parse_format_value(&((struct disk_options *)target)->format, value, err);
}

static int parse_out_format(void *target, const char *value, struct err *err)
{
    return parse_format_value(&((struct disk_options *)target)->out_format, value, err);
}

static int parse_backing(void *target, const char *value, struct err *err)
{
    if (!*value)
        return err_set(err, EINVAL, "the value is empty");
    ((struct disk_options *)target)->backing = value;
    return 0;
}

static int parse_backing_format(void *target, const char *value, struct err *err)
{
    return parse_format_value(&((struct disk_options *)target)->backing_format, value, err);
}

static int parse_cluster_size(void *target, const char *value, struct err *err)
{
    uint64_t size;
    if (!options_parse_size(value, &size) || size < 512 || size > 2u << 20 || size & (size - 1))
        return err_set(err, EINVAL, "a cluster has 512 bytes to 2M, a power of two");
    ((struct disk_options *)target)->create.qcow2.cluster_size = (uint32_t)size;
    return 0;
}

static int parse_refcount_bits(void *target, const char *value, struct err *err)
{
    uint64_t bits;
    if (!options_parse_number(value, 64, &bits) || !bits || bits & (bits - 1))
        return err_set(err, EINVAL, "refcounts have 1 to 64 bits, a power of two");
    ((struct disk_options *)target)->create.qcow2.refcount_bits = (unsigned)bits;
    return 0;
}

static int parse_version(void *target, const char *value, struct err *err)
{
    uint64_t version;
    if (!options_parse_number(value, 3, &version) || version < 2)
        return err_set(err, EINVAL, "known are 2 and 3");
    ((struct disk_options *)target)->create.qcow2.version = (unsigned)version;
    return 0;
}

static int parse_lazy(void *target, const char *value, struct err *err)
{
    ((struct disk_options *)target)->create.qcow2.lazy_refcounts = true;
    return 0;
}

static int parse_json(void *target, const char *value, struct err *err)
{
    ((struct disk_options *)target)->json = true;
    return 0;
}

static int parse_repair(void *target, const char *value, struct err *err)
{
    ((struct disk_options *)target)->repair = true;
    return 0;
}

static int parse_shrink(void *target, const char *value, struct err *err)
{
    ((struct disk_options *)target)->shrink = true;
    return 0;
}

#define OPTION_FORMAT                                                                              \
    {                                                                                              \
        "format", "FORMAT", "of FILE: raw or qcow2 (default: qcow2 for *.qcow2, else raw)", false, \
            parse_format                                                                           \
    }
#define OPTIONS_QCOW2                                                                              \
    {NULL, NULL, "Of a new qcow2 image", false, NULL},                                             \
        {"cluster-size", "SIZE", "512 to 2M (default: 64K)", false, parse_cluster_size},           \
        {"lazy-refcounts", NULL, "fewer writes; slow start after a power cut", false, parse_lazy}, \
        {"refcount-bits", "N", "1 to 64 (default: 16)", false, parse_refcount_bits},               \
    {                                                                                              \
        "version", "N", "3 (default), or 2 for old programs", false, parse_version                 \
    }

static const struct option create_options[] = {
    OPTION_FORMAT,
    {"backing", "FILE", "shows FILE where nothing was written; seen from\nthe new image's folder",
     false, parse_backing},
    {"backing-format", "FORMAT", "of the backing file; it is recorded", false,
     parse_backing_format},
    OPTIONS_QCOW2,
};
static const struct option info_options[] = {
    {"format", "FORMAT", "raw or qcow2 (default: what the header says)", false, parse_format},
    {"json", NULL, "for programs", false, parse_json},
};
static const struct option convert_options[] = {
    {"O", "FORMAT", "of OUT: raw or qcow2 (default: by its name)", false, parse_out_format},
    {"f", "FORMAT", "of IN (default: qcow2 for *.qcow2, else raw)", false, parse_format},
    OPTIONS_QCOW2,
};
static const struct option check_options[] = {
    OPTION_FORMAT,
    {"repair", NULL, "mends leaks, refcounts and flags", false, parse_repair},
    {"json", NULL, "for programs", false, parse_json},
};
static const struct option resize_options[] = {
    OPTION_FORMAT,
    {"shrink", NULL, "allows a smaller size: what lies behind it is lost", false, parse_shrink},
};

/* create */

static int parse_disk_size(const char *text, uint64_t *out, struct err *err)
{
    if (!options_parse_size(text, out) || *out == 0 || *out > INT64_MAX - 512)
        return err_set(err, EINVAL, "%s: is no size; write for example 512M or 20G", text);
    *out = align_up(*out, IMAGE_SECTOR);
    return 0;
}

/* Opens the backing file as the new image will: it must be there, and gives format and size. */
static int look_at_backing(struct disk_options *o, struct err *err)
{
    char *path = image_resolve(o->words[0], o->backing);
    if (!path)
        return err_set(err, ENOMEM, "%s: out of memory", o->words[0]);
    struct image_config config = {
        .label = "--backing ", .path = path, .format = o->backing_format, .read_only = true};
    struct image *image;
    int error = image_open(&image, &config, err);
    free(path);
    if (error)
        return error;
    struct qcow2_create *create = &o->create.qcow2;
    create->backing_name = o->backing;
    create->backing_format = image->ops->name;
    if (!create->size)
        create->size = image->size;
    image_close(image);
    return 0;
}

static int run_create(struct disk_options *o, struct err *err)
{
    o->create.format = o->format ? o->format : image_format_of_name(o->words[0]);
    int error = o->words[1] ? parse_disk_size(o->words[1], &o->create.qcow2.size, err) : 0;
    if (error)
        return error;
    if (o->backing && o->create.format != DISK_FORMAT_QCOW2)
        return wrong_use(err, "--backing: raw images have none; name the image *.qcow2");
    if (!o->words[1] && !o->backing)
        return wrong_use(err, "the size is missing: parat disk create FILE SIZE");
    if (o->backing_format && !o->backing)
        return wrong_use(err, "--backing-format: goes with --backing");
    error = o->backing ? look_at_backing(o, err) : 0;
    if (error)
        return error;
    struct image_new made;
    struct disk_progress progress; /* for the signals' sake */
    disk_progress_start(&progress);
    error = image_create_begin(&made, o->words[0], &o->create, err);
    if (!error)
        error = image_create_finish(&made, err);
    disk_progress_end(&progress);
    return error;
}

/* info */

static int run_info(struct disk_options *o, struct err *err)
{
    struct image_info info;
    int error = image_info_read(&info, o->words[0], o->format, err);
    if (error)
        return error;
    disk_report_info(&info, o->words[0], o->json);
    image_info_free(&info);
    return 0;
}

/* convert */

static int copy_to_new(struct disk_options *o, struct image *from, struct err *err)
{
    struct image_new made;
    struct disk_progress progress;
    struct image_watch watch = {disk_progress_go_on, &progress};
    o->create.format = o->out_format ? o->out_format : image_format_of_name(o->words[1]);
    o->create.qcow2.size = from->size;
    disk_progress_start(&progress);
    int error = image_create_begin(&made, o->words[1], &o->create, err);
    if (!error) {
        error = image_copy(made.image, from, &watch, err);
        if (error)
            image_create_abort(&made);
        else
            error = image_create_finish(&made, err);
    }
    disk_progress_end(&progress);
    return error;
}

static int run_convert(struct disk_options *o, struct err *err)
{
    struct image_config config = {
        .label = "", .path = o->words[0], .format = o->format, .read_only = true};
    struct image *from;
    int error = image_open(&from, &config, err);
    if (error)
        return error;
    error = copy_to_new(o, from, err);
    image_close(from);
    return error;
}

/* check */

struct findings {
    uint64_t count;
    bool quiet;
};

static void say_finding(void *context, const char *finding)
{
    struct findings *findings = context;
    if (!findings->quiet && findings->count < FINDINGS_MAX)
        printf("%s\n", finding);
    if (!findings->quiet && findings->count == FINDINGS_MAX)
        puts("...");
    findings->count++;
}

static int run_check(struct disk_options *o, struct err *err)
{
    struct findings findings = {.quiet = o->json};
    struct qcow2_check check = {.repair = o->repair, .say = say_finding, .context = &findings};
    struct qcow2_report report;
    int error = image_check(o->words[0], o->format, &check, &report, err);
    if (error)
        return error;
    disk_report_check(&report, o->words[0], o->json);
    if (report.errors || (!report.mended && report.bad_refcounts + report.bad_flags))
        return EXIT_DISK_DAMAGED;
    return report.leaks && !report.mended ? EXIT_DISK_LEAKS : 0;
}

/* resize */

/* SIZE, +SIZE or -SIZE. */
static int parse_new_size(const char *text, uint64_t old, uint64_t *out, struct err *err)
{
    bool more = text[0] == '+', less = text[0] == '-';
    int error = parse_disk_size(text + (more || less), out, err);
    if (error)
        return error;
    if ((less && *out >= old) || (more && *out > INT64_MAX - 512 - old))
        return err_set(err, EINVAL, "%s: the disk has %llu bytes, so that nothing sensible is left",
                       text, (unsigned long long)old);
    *out = less ? old - *out : more ? old + *out : *out;
    return 0;
}

static int run_resize(struct disk_options *o, struct err *err)
{
    struct image_config config = {.label = "", .path = o->words[0], .format = o->format};
    struct image *image;
    int error = image_open(&image, &config, err);
    if (error)
        return error;
    uint64_t size;
    error = parse_new_size(o->words[1], image->size, &size, err);
    if (!error && size < image->size && !o->shrink)
        error =
            wrong_use(err, "--shrink: is needed for a smaller size: what lies behind it is lost");
    if (!error && size != image->size)
        error = image->ops->resize(image, size, err);
    int closed = image_close(image);
    if (!error && closed)
        error = err_set(err, -closed, "%s: cannot be written: %s", o->words[0], strerror(-closed));
    return error;
}

/* The subcommands */

struct subcommand {
    const char *name, *words, *help;
    unsigned words_min, words_max;
    const struct option *options;
    size_t option_count;
    /* An exit status, or -errno; the sentence where it is none of success. */
    int (*run)(struct disk_options *options, struct err *err);
};

static const struct subcommand subcommands[] = {
    {"create", "FILE [SIZE]", "make an empty image", 1, 2, create_options,
     ARRAY_COUNT(create_options), run_create},
    {"info", "FILE", "tell what an image is", 1, 1, info_options, ARRAY_COUNT(info_options),
     run_info},
    {"convert", "IN OUT", "copy an image to a new one of any format", 2, 2, convert_options,
     ARRAY_COUNT(convert_options), run_convert},
    {"check", "FILE", "look for leaks and damage", 1, 1, check_options, ARRAY_COUNT(check_options),
     run_check},
    {"resize", "FILE [+|-]SIZE", "change the size of the disk", 2, 2, resize_options,
     ARRAY_COUNT(resize_options), run_resize},
};

static int print_help(void)
{
    puts("usage: parat disk COMMAND [--option VALUE]... FILE...\n"
         "\n"
         "Makes, describes, copies, checks and resizes disk images, raw and qcow2.\n"
         "\n"
         "Commands:");
    for (size_t i = 0; i < ARRAY_COUNT(subcommands); i++)
        printf("  %-8s %-17s %s\n", subcommands[i].name, subcommands[i].words, subcommands[i].help);
    puts("\n"
         "'parat disk COMMAND --help' tells a command's options. See also parat-disk(1).");
    return EXIT_OK;
}

static void print_command_help(const struct subcommand *command)
{
    printf("usage: parat disk %s [--option VALUE]... %s\n\n", command->name, command->words);
    options_print_help(command->options, command->option_count);
    if (command->run == run_check)
        puts("\nExit status: 0 no errors, or all mended; 1 the check failed; 2 wrong use;\n"
             "3 leaked clusters only; 4 damage.");
}

static int refuse(const struct err *err)
{
    log_error("%s", err->text);
    return EXIT_WRONG_USE;
}

static int run_subcommand(const struct subcommand *command, char **args)
{
    struct disk_options o = {
        .create.qcow2 = {.version = 3, .cluster_size = 65536, .refcount_bits = 16}};
    const struct options table = {command->options, command->option_count, o.words,
                                  command->words_max};
    struct err err = {{0}};
    bool help;
    if (options_parse(&table, args, &o, &help, &err))
        return refuse(&err);
    if (help) {
        print_command_help(command);
        return EXIT_OK;
    }
    if (!o.words[command->words_min - 1]) {
        err_set(&err, EINVAL, "disk %s: an argument is missing: parat disk %s %s", command->name,
                command->name, command->words);
        return refuse(&err);
    }
    int status = command->run(&o, &err);
    if (err.text[0])
        log_error("%s", err.text);
    return status < 0 ? EXIT_HOST_ERROR : status;
}

int cmd_disk(const struct cli *cli, char **args)
{
    if (!args[0] || strcmp(args[0], "--help") == 0 || strcmp(args[0], "-h") == 0) {
        print_help();
        return args[0] ? EXIT_OK : EXIT_WRONG_USE;
    }
    for (size_t i = 0; i < ARRAY_COUNT(subcommands); i++)
        if (strcmp(args[0], subcommands[i].name) == 0)
            return run_subcommand(&subcommands[i], args + 1);
    log_error("disk %s: there is no such command; 'parat disk --help' lists them", args[0]);
    return EXIT_WRONG_USE;
}
