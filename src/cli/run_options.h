/* What `parat run` was asked for. Strings belong to the options and end with them. Main thread. */
#ifndef PARAT_CLI_RUN_OPTIONS_H
#define PARAT_CLI_RUN_OPTIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "backend/console/console.h"
#include "backend/disk/disk.h"
#include "backend/net/net.h"
#include "base/bits.h"
#include "base/err.h"
#include "vm/engine.h"

#define RUN_DISKS_MAX       16
#define RUN_NETS_MAX        8
#define RUN_INITRDS_MAX     16
#define RUN_ENGINE_NAME_MAX 31
#define RUN_DISK_SERIAL_MAX 20 /* virtio-blk's ID string */
#define RUN_MEMORY_MIN      (1ull << 20)

struct run_disk {
    char *path;
    enum disk_format format;
    bool read_only, direct, no_io_uring;
    char serial[RUN_DISK_SERIAL_MAX + 1];
};

struct run_net {
    bool none;
    uint8_t mac[6];
    bool has_mac;
    struct net_user_config user; /* loop is set later */
};

struct run_console {
    enum console_kind kind;
    const char *path;
};

struct run_options {
    const char *name, *machine, *cpu;
    char engine[RUN_ENGINE_NAME_MAX + 1];
    bool has_code; /* --engine had options that set `code` */
    struct engine_code_config code;
    uint64_t tsc_hz; /* for tests; 0: the machine model's */
    unsigned cpus;
    uint64_t memory;
    const char *kernel, *append, *stats;
    const char *initrds[RUN_INITRDS_MAX];
    unsigned initrd_count;
    struct run_disk disks[RUN_DISKS_MAX];
    unsigned disk_count;
    struct run_net nets[RUN_NETS_MAX];
    unsigned net_count;
    struct run_console console;
    bool has_virtio_console;
    struct run_console virtio_console;
    bool has_debug_exit;
    uint16_t debug_exit_port;
    bool reset_on_triple_fault, no_reboot, verbose;
    bool no_sandbox;
};

/* args end with NULL and live as long as the options. -errno with the sentence; run_options_free is
 * due in any case. */
int run_options_parse(struct run_options *out, char **args, bool *help, struct err *err) MUST_USE;
void run_options_free(struct run_options *options);
void run_options_print_help(void);

#endif
