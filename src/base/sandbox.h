/*
 * The sandbox: what a thread gives up before it serves a guest. Each thread takes the filter of its
 * role for itself, so a role may do less than another: no new privileges, no capabilities, no paths
 * (Landlock, where the kernel has it), and only the system calls that sandbox_table.c lists with
 * their reasons. There is no way back.
 *
 * What a filter forbids arrives as SIGSYS in the thread that tried it; the handler calls
 * sandbox_describe and ends the process.
 */
#ifndef PARAT_BASE_SANDBOX_H
#define PARAT_BASE_SANDBOX_H

#include <signal.h>
#include <stddef.h>

#include "base/bits.h"
#include "base/err.h"

enum sandbox_role {
    SANDBOX_LOOP,       /* the main thread, from when the vCPUs start */
    SANDBOX_VCPU,       /* guest code and register handlers of devices */
    SANDBOX_WORKER,     /* disk I/O that blocks */
    SANDBOX_REAPER,     /* completions of io_uring */
    SANDBOX_ALARM,      /* the timers of engine soft */
    SANDBOX_NET_HELPER, /* the process with the network's sockets */
    SANDBOX_ROLE_COUNT
};

struct sandbox;

struct sandbox_config {
    unsigned roles; /* BIT(role) */
    /* Requests by ioctl that the roles of a VM's process may make beside the table's: those of its
     * engine. Copied. NULL: none. */
    const unsigned *ioctls;
    size_t ioctl_count;
};

/*
 * Makes the filters of the roles, with the process's own number in them,
 * and tries one on a thread that ends at once. An error means that this host cannot do it. Nothing
 * is given up yet.
 */
int sandbox_create(struct sandbox **out, const struct sandbox_config *config,
                   struct err *err) MUST_USE;
/* NULL is fine. No thread enters it any more. */
void sandbox_destroy(struct sandbox *sandbox);

/*
 * The calling thread gives up everything but its role. Aborts if it cannot: sandbox_create had
 * tried. NULL: nothing happens. Any thread.
 */
void sandbox_enter(const struct sandbox *sandbox, enum sandbox_role role);

/* Gives root's place to nobody (uid and gid 65534), when the process has it. Before threads. */
void sandbox_leave_root(void);

/*
 * In a handler of SIGSYS: a sentence with the thread's name and the call's, ended by a newline.
 * Async-signal-safe; returns its length. 0: the signal is not the sandbox's.
 */
size_t sandbox_describe(const siginfo_t *info, char *text, size_t size);
/* "openat", or NULL. Pure. */
const char *sandbox_call_name(long number);

#endif
