/* The options of `parat run`: the table, its text for --help, and a parser for each value. */
#include "cli/run_options.h"

#include <arpa/inet.h>
#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysinfo.h>

#include "backend/disk/image.h"
#include "cli/options.h"
#include "vm/engine.h"

#define MIB (1ull << 20)

static int set_string(const char **to, const char *value, struct err *err)
{
    if (!*value)
        return err_set(err, EINVAL, "the value is empty");
    *to = value;
    return 0;
}

/* "on" or "off" of a word NAME=…; a bare NAME means on. -EINVAL otherwise. */
static int parse_switch(const char *word, const char *name, bool *out)
{
    const char *value = options_value_of(word, name);
    if (!value && strcmp(word, name) != 0)
        return -EINVAL;
    if (value && strcmp(value, "on") != 0 && strcmp(value, "off") != 0)
        return -EINVAL;
    *out = !value || strcmp(value, "on") == 0;
    return 0;
}

/* The machine */

static int parse_name(void *target, const char *value, struct err *err)
{
    for (const char *c = value; *c; c++)
        if (*c <= ' ' || *c == '/' || *c == 0x7f)
            return err_set(err, EINVAL, "a name has no spaces, slashes or control characters");
    if (strlen(value) > 63)
        return err_set(err, EINVAL, "a name has at most 63 characters");
    return set_string(&((struct run_options *)target)->name, value, err);
}

static int parse_machine(void *target, const char *value, struct err *err)
{
    if (strcmp(value, "q35-1") != 0)
        return err_set(err, EINVAL, "there is no such machine; this parat knows q35-1");
    return set_string(&((struct run_options *)target)->machine, value, err);
}

static int parse_engine_mode(struct engine_code_config *code, const char *mode, struct err *err)
{
    if (strcmp(mode, "translate") == 0)
        code->mode = ENGINE_CODE_TRANSLATE;
    else if (strcmp(mode, "interpret") == 0)
        code->mode = ENGINE_CODE_INTERPRET;
    else if (strcmp(mode, "lockstep") == 0)
        code->mode = ENGINE_CODE_LOCKSTEP;
    else
        return err_set(err, EINVAL, "mode= takes translate, interpret or lockstep");
    return 0;
}

static int parse_engine_word(struct engine_code_config *code, const char *word, struct err *err)
{
    const char *mode = options_value_of(word, "mode");
    const char *cache = options_value_of(word, "code-cache");
    if (mode)
        return parse_engine_mode(code, mode, err);
    if (!cache)
        return err_set(err, EINVAL,
                       "'%s' is not one of mode=translate|interpret|lockstep, code-cache=SIZE",
                       word);
    if (!options_parse_size(cache, &code->cache_size) || code->cache_size < ENGINE_CODE_CACHE_MIN ||
        code->cache_size > ENGINE_CODE_CACHE_MAX || code->cache_size % 4096)
        return err_set(err, EINVAL, "code-cache= takes 1M to 1G, a multiple of 4K");
    return 0;
}

static int parse_engine(void *target, const char *value, struct err *err)
{
    struct run_options *o = target;
    size_t length = strcspn(value, ",");
    if (!length)
        return err_set(err, EINVAL, "the engine's name is missing");
    if (length > RUN_ENGINE_NAME_MAX)
        return err_set(err, EINVAL, "there is no such engine; try auto");
    memcpy(o->engine, value, length);
    o->engine[length] = 0;
    char *copy = strdup(value + length), *cursor = copy, *word;
    if (!copy)
        return err_set(err, ENOMEM, "out of memory");
    int error = 0;
    options_next_word(&cursor); /* what stands before the first comma: nothing */
    while (!error && (word = options_next_word(&cursor))) {
        o->has_code = true;
        error = parse_engine_word(&o->code, word, err);
    }
    free(copy);
    return error;
}

static int parse_cpus(void *target, const char *value, struct err *err)
{
    uint64_t count;
    if (!options_parse_number(value, ENGINE_VCPUS_MAX, &count) || count == 0)
        return err_set(err, EINVAL, "a machine has 1 to %d CPUs", ENGINE_VCPUS_MAX);
    ((struct run_options *)target)->cpus = (unsigned)count;
    return 0;
}

static int check_memory(uint64_t size, struct err *err)
{
    if (size < RUN_MEMORY_MIN)
        return err_set(err, EINVAL, "a machine has at least 1M of RAM%s",
                       size >= 16 ? " (sizes are bytes unless they end in K, M or G)" : "");
    if (size % 4096)
        return err_set(err, EINVAL, "must be a multiple of 4K");
    struct sysinfo host;
    if (sysinfo(&host) < 0)
        return err_set(err, errno, "cannot find out the host's RAM: %s", strerror(errno));
    uint64_t total = (uint64_t)host.totalram * host.mem_unit;
    if (size > total)
        return err_set(err, EINVAL, "the host has only %lluM of RAM",
                       (unsigned long long)(total / MIB));
    return 0;
}

static int parse_memory(void *target, const char *value, struct err *err)
{
    uint64_t size;
    if (!options_parse_size(value, &size))
        return err_set(err, EINVAL, "is no size; write for example 512M or 2G");
    int error = check_memory(size, err);
    if (!error)
        ((struct run_options *)target)->memory = size;
    return error;
}

static int parse_cpu(void *target, const char *value, struct err *err)
{
    if (strcmp(value, "v2") != 0 && strcmp(value, "v3") != 0 && strcmp(value, "host") != 0)
        return err_set(err, EINVAL, "there is no such CPU model; known are v2, v3 and host");
    return set_string(&((struct run_options *)target)->cpu, value, err);
}

/* What it boots */

static int parse_kernel(void *target, const char *value, struct err *err)
{
    return set_string(&((struct run_options *)target)->kernel, value, err);
}

static int parse_initrd(void *target, const char *value, struct err *err)
{
    struct run_options *o = target;
    if (o->initrd_count == RUN_INITRDS_MAX)
        return err_set(err, EINVAL, "at most %d can be given", RUN_INITRDS_MAX);
    return set_string(&o->initrds[o->initrd_count++], value, err);
}

static int parse_append(void *target, const char *value, struct err *err)
{
    ((struct run_options *)target)->append = value;
    return 0;
}

/* Disks */

static int parse_serial(struct run_disk *disk, const char *serial, struct err *err)
{
    if (!*serial || strlen(serial) > RUN_DISK_SERIAL_MAX)
        return err_set(err, EINVAL, "serial= takes 1 to %d characters", RUN_DISK_SERIAL_MAX);
    for (const char *c = serial; *c; c++)
        if (*c < ' ' || *c > '~')
            return err_set(err, EINVAL, "serial= takes printable ASCII only");
    strcpy(disk->serial, serial);
    return 0;
}

static int parse_disk_io(struct run_disk *disk, const char *io, struct err *err)
{
    if (strcmp(io, "threads") != 0 && strcmp(io, "auto") != 0)
        return err_set(err, EINVAL, "io= takes auto or threads");
    disk->no_io_uring = strcmp(io, "threads") == 0;
    return 0;
}

static int parse_disk_word(struct run_disk *disk, const char *word, struct err *err)
{
    const char *serial = options_value_of(word, "serial"), *io = options_value_of(word, "io");
    const char *format = options_value_of(word, "format");
    if (serial)
        return parse_serial(disk, serial, err);
    if (io)
        return parse_disk_io(disk, io, err);
    if (format && !image_format_parse(format, &disk->format))
        return err_set(err, EINVAL, "format= takes raw or qcow2");
    if (format)
        return 0;
    if (strcmp(word, "ro") == 0)
        disk->read_only = true;
    else if (strcmp(word, "direct") == 0)
        disk->direct = true;
    else
        return err_set(err, EINVAL,
                       "'%s' is not one of format=raw|qcow2, ro, direct, serial=S, io=threads",
                       word);
    return 0;
}

static int parse_disk(void *target, const char *value, struct err *err)
{
    struct run_options *o = target;
    if (o->disk_count == RUN_DISKS_MAX)
        return err_set(err, EINVAL, "at most %d can be given", RUN_DISKS_MAX);
    struct run_disk *disk = &o->disks[o->disk_count];
    disk->path = strdup(value);
    if (!disk->path)
        return err_set(err, ENOMEM, "out of memory");
    o->disk_count++;
    char *cursor = disk->path, *word = options_next_word(&cursor);
    if (!*word)
        return err_set(err, EINVAL, "the file's name is missing");
    int error = 0;
    while (!error && (word = options_next_word(&cursor)))
        error = parse_disk_word(disk, word, err);
    return error;
}

/* Networks */

static int parse_port(const char *text, uint16_t *out)
{
    uint64_t port;
    if (!options_parse_number(text, UINT16_MAX, &port) || port == 0)
        return -EINVAL;
    *out = (uint16_t)port;
    return 0;
}

/* protocol:[ADDR]:PORT-:PORT; no ADDR means the host's loopback only. */
static int parse_forward(struct net_user_config *user, const char *text, struct err *err)
{
    if (user->forward_count == NET_USER_FORWARDS_MAX)
        return err_set(err, EINVAL, "at most %d ports can be forwarded", NET_USER_FORWARDS_MAX);
    struct net_user_forward *forward = &user->forward[user->forward_count++];
    char copy[80], *rest = copy;
    snprintf(copy, sizeof copy, "%s", text);
    const char *protocol = strsep(&rest, ":"), *address = strsep(&rest, ":");
    const char *host_port = strsep(&rest, "-");
    if (!rest || *rest != ':')
        return err_set(err, EINVAL, "hostfwd= is written tcp:ADDR:PORT-:PORT or udp:…");
    forward->udp = strcmp(protocol, "udp") == 0;
    if (!forward->udp && strcmp(protocol, "tcp") != 0)
        return err_set(err, EINVAL, "hostfwd= forwards tcp or udp, not '%s'", protocol);
    struct in_addr in;
    if (inet_pton(AF_INET, *address ? address : "127.0.0.1", &in) != 1)
        return err_set(err, EINVAL, "hostfwd=: '%s' is no IPv4 address", address);
    forward->host_address = ntohl(in.s_addr);
    if (parse_port(host_port, &forward->host_port) || parse_port(rest + 1, &forward->guest_port))
        return err_set(err, EINVAL, "hostfwd=: ports are 1 to 65535");
    return 0;
}

static int parse_mac(struct run_net *net, const char *text, struct err *err)
{
    unsigned b[6];
    int used = 0;
    if (strspn(text, "0123456789abcdefABCDEF:") != strlen(text) ||
        sscanf(text, "%2x:%2x:%2x:%2x:%2x:%2x%n", &b[0], &b[1], &b[2], &b[3], &b[4], &b[5],
               &used) != 6 ||
        text[used])
        return err_set(err, EINVAL, "mac= is written like 52:54:00:12:34:56");
    unsigned any = 0;
    for (int i = 0; i < 6; i++) {
        net->mac[i] = (uint8_t)b[i];
        any |= b[i];
    }
    if (!any || (b[0] & 1))
        return err_set(err, EINVAL, "mac=: that is no address of a single card");
    net->has_mac = true;
    return 0;
}

static int parse_net_word(struct run_net *net, const char *word, struct err *err)
{
    const char *mac = options_value_of(word, "mac");
    if (mac)
        return parse_mac(net, mac, err);
    const char *forward = options_value_of(word, "hostfwd");
    if (forward && !net->none)
        return parse_forward(&net->user, forward, err);
    if (!net->none && parse_switch(word, "host-loopback", &net->user.host_loopback) == 0)
        return 0;
    return err_set(err, EINVAL, "'%s' is not one of %s", word,
                   net->none ? "mac=ADDRESS" : "hostfwd=…, host-loopback=on|off, mac=ADDRESS");
}

static int parse_net(void *target, const char *value, struct err *err)
{
    struct run_options *o = target;
    if (o->net_count == RUN_NETS_MAX)
        return err_set(err, EINVAL, "at most %d can be given", RUN_NETS_MAX);
    struct run_net *net = &o->nets[o->net_count];
    char *copy = strdup(value);
    if (!copy)
        return err_set(err, ENOMEM, "out of memory");
    char *cursor = copy, *word = options_next_word(&cursor);
    net->none = strcmp(word, "none") == 0;
    int error = 0;
    if (!net->none && strcmp(word, "user") != 0)
        error = err_set(err, EINVAL, "there is no such network; known are user and none");
    while (!error && (word = options_next_word(&cursor)))
        error = parse_net_word(net, word, err);
    free(copy);
    o->net_count += !error;
    return error;
}

/* Console and the end */

static int parse_console_kind(struct run_console *console, const char *value, struct err *err)
{
    const char *path = options_value_of(value, "file");
    if (path) {
        console->kind = CONSOLE_FILE;
        return set_string(&console->path, path, err);
    }
    if (strcmp(value, "stdio") == 0)
        console->kind = CONSOLE_STDIO;
    else if (strcmp(value, "pty") == 0)
        console->kind = CONSOLE_PTY;
    else if (strcmp(value, "none") == 0)
        console->kind = CONSOLE_NONE;
    else
        return err_set(err, EINVAL, "known are stdio, pty, file=PATH and none");
    return 0;
}

static int parse_console(void *target, const char *value, struct err *err)
{
    return parse_console_kind(&((struct run_options *)target)->console, value, err);
}

static int parse_virtio_console(void *target, const char *value, struct err *err)
{
    struct run_options *o = target;
    o->has_virtio_console = true;
    return parse_console_kind(&o->virtio_console, value, err);
}

static int parse_debug_exit(void *target, const char *value, struct err *err)
{
    struct run_options *o = target;
    uint64_t port;
    if (!options_parse_number(value, UINT16_MAX, &port))
        return err_set(err, EINVAL, "a port is a number from 0 to 0xffff");
    o->has_debug_exit = true;
    o->debug_exit_port = (uint16_t)port;
    return 0;
}

static int parse_triple_fault(void *target, const char *value, struct err *err)
{
    struct run_options *o = target;
    o->reset_on_triple_fault = strcmp(value, "reset") == 0;
    if (!o->reset_on_triple_fault && strcmp(value, "exit") != 0)
        return err_set(err, EINVAL, "known are exit and reset");
    return 0;
}

static int parse_no_reboot(void *target, const char *value, struct err *err)
{
    ((struct run_options *)target)->no_reboot = true;
    return 0;
}

static int parse_stats(void *target, const char *value, struct err *err)
{
    return set_string(&((struct run_options *)target)->stats, value, err);
}

static int parse_sandbox(void *target, const char *value, struct err *err)
{
    ((struct run_options *)target)->no_sandbox = strcmp(value, "off") == 0;
    if (strcmp(value, "off") != 0 && strcmp(value, "on") != 0)
        return err_set(err, EINVAL, "known are on and off");
    return 0;
}

static int parse_verbose(void *target, const char *value, struct err *err)
{
    ((struct run_options *)target)->verbose = true;
    return 0;
}

static const struct option table[] = {
    {NULL, NULL, "The machine", false, NULL},
    {"name", "NAME", "what the VM is called (default: parat)", false, parse_name},
    {"machine", "MODEL", "q35-1 (default): its hardware never changes", false, parse_machine},
    {"engine", "ENGINE[,OPTION...]",
     "auto (default: the fastest usable one), kvm or soft;\n"
     "'parat doctor' tells what is usable here.\n"
     "Options of soft:\n"
     "mode=translate|interpret|lockstep   how code is run;\n"
     "             lockstep checks one by the other\n"
     "code-cache=SIZE   of each CPU, 1M to 1G (64M)",
     false, parse_engine},
    {"cpus", "N", "number of CPUs, 1 to 64 (default: 1)", false, parse_cpus},
    {"memory", "SIZE", "RAM, with K, M or G (default: 512M)", false, parse_memory},
    {"cpu", "MODEL",
     "host (default): all that this host and the engine give;\n"
     "v2, v3: x86-64 psABI levels, the same on every host",
     false, parse_cpu},

    {NULL, NULL, "What it boots", false, NULL},
    {"kernel", "FILE", "bzImage, ELF with a PVH note, or multiboot 1", false, parse_kernel},
    {"initrd", "FILE", "initial RAM disk; for multiboot a module (repeatable)", true, parse_initrd},
    {"append", "STRING", "the kernel's command line", false, parse_append},

    {NULL, NULL, "Devices", false, NULL},
    {"disk", "FILE[,OPTION...]",
     "virtio disk: a file or block device (repeatable);\n"
     "a comma in its name is written twice. Options:\n"
     "format=raw|qcow2   default: qcow2 for *.qcow2, else raw\n"
     "ro           read-only; may be shared\n"
     "direct       past the host's page cache\n"
     "serial=S     the serial number the guest sees\n"
     "io=threads   never io_uring",
     true, parse_disk},
    {"net", "user[,OPTION...]|none",
     "virtio network card (repeatable; default: none).\n"
     "user: NAT without privileges; guest 10.0.2.15,\n"
     "gateway 10.0.2.2, DNS 10.0.2.3. Options:\n"
     "hostfwd=tcp|udp:[ADDR]:PORT-:PORT   host to guest\n"
     "host-loopback=on   10.0.2.2 is the host's 127.0.0.1\n"
     "mac=ADDRESS        as in 52:54:00:12:34:56",
     true, parse_net},
    {"console", "KIND",
     "where COM1 goes: stdio (default; Ctrl-] q quits,\n"
     "Ctrl-] ? helps), pty, file=PATH or none",
     false, parse_console},
    {"virtio-console", "KIND", "a virtio console as well (/dev/hvc0)", false, parse_virtio_console},

    {NULL, NULL, "How it ends", false, NULL},
    {"no-reboot", NULL, "a reset of the guest ends parat", false, parse_no_reboot},
    {"on-triple-fault", "ACTION", "exit (default; status 3) or reset", false, parse_triple_fault},
    {"debug-exit", "PORT", "a guest's write of v there ends parat: (v << 1) | 1", false,
     parse_debug_exit},
    {"stats", "FILE", "what was counted, as JSON, at the end", false, parse_stats},
    {"sandbox", "on|off",
     "on (default): parat gives up what it does not need\n"
     "before the guest runs; off is for debugging",
     false, parse_sandbox},
    {"verbose", NULL, "log more on standard error", false, parse_verbose},
};
static_assert(ARRAY_COUNT(table) <= OPTIONS_MAX, "options_parse counts up to OPTIONS_MAX");

int run_options_parse(struct run_options *out, char **args, bool *help, struct err *err)
{
    *out = (struct run_options) {
        .name = "parat",
        .machine = "q35-1",
        .engine = "auto",
        .cpu = "host",
        .cpus = 1,
        .memory = 512 * MIB,
        .append = "",
        .console = {.kind = CONSOLE_STDIO},
    };
    const struct options options = {.list = table, .count = ARRAY_COUNT(table)};
    int error = options_parse(&options, args, out, help, err);
    if (error || *help)
        return error;
    if (!out->kernel)
        return err_set(err, EINVAL, "--kernel: is needed: there is nothing else to boot");
    if (out->has_virtio_console && out->virtio_console.kind == CONSOLE_STDIO &&
        out->console.kind == CONSOLE_STDIO)
        return err_set(err, EINVAL,
                       "--virtio-console stdio: --console has the terminal already; "
                       "give that another place");
    return 0;
}

void run_options_free(struct run_options *options)
{
    for (unsigned i = 0; i < options->disk_count; i++)
        free(options->disks[i].path);
}

void run_options_print_help(void)
{
    puts("usage: parat run --kernel FILE [--option VALUE | --option=VALUE]...\n"
         "\n"
         "Creates a virtual machine and runs it until it powers off.");
    options_print_help(table, ARRAY_COUNT(table));
    puts("\n"
         "Signals: SIGTERM presses the power button, a second one stops at once.\n"
         "\n"
         "Exit status: 0 guest powered off or user quit (or reset with --no-reboot);\n"
         "1 the host failed; 2 wrong use; 3 triple fault. With --debug-exit the host's\n"
         "failures are 2 and triple faults 4. 6: a thread did what the sandbox forbids.\n"
         "See also parat-run(1).");
}
