/*
 * The composition root: makes the VM that the options ask for, the only place that knows every
 * device and backend. Main thread, which is the loop thread.
 */
#ifndef PARAT_CLI_COMPOSE_H
#define PARAT_CLI_COMPOSE_H

#include "base/bits.h"
#include "base/err.h"
#include "cli/engines.h"
#include "cli/run_options.h"
#include "vm/machine.h"

struct boot_image;
struct console_terminal;
struct disk;
struct net;
struct pci_host;
struct sandbox;

struct composition {
    const struct run_options *options;
    struct engine_choice choice;
    uint64_t tsc_hz; /* the guest's */
    struct x86_cpuid_table cpuid;
    struct sandbox *sandbox; /* NULL: --sandbox off */
    struct loop *loop;
    struct boot_image *boot;
    struct disk *disks[RUN_DISKS_MAX];
    struct net *nets[RUN_NETS_MAX];
    struct console *console;        /* COM1 */
    struct console *virtio_console; /* NULL: there is none */
    struct machine *machine;
    bool announced; /* the line about the engine was printed */
};

/* Everything up to, and without, running. options and terminal outlive it. -errno with a sentence;
 * compose_destroy is due in any case. */
int compose_create(struct composition *out, const struct run_options *options,
                   struct console_terminal *terminal, struct err *err) MUST_USE;
void compose_destroy(struct composition *c);

#endif
