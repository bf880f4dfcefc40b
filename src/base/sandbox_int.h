/* What the modules of the sandbox share. See sandbox.h. */
#ifndef PARAT_BASE_SANDBOX_INT_H
#define PARAT_BASE_SANDBOX_INT_H

#include <linux/filter.h>

#include "base/sandbox.h"

/* Beyond the call's number: what its arguments must be. */
enum sandbox_check {
    CHECK_NONE,
    CHECK_NOT_EXECUTABLE, /* argument 2 is a protection without PROT_EXEC */
    CHECK_OWN_PROCESS,    /* argument 0 is this process */
    CHECK_OWN_STOP,       /* ... and argument 1 SIGSTOP */
    CHECK_ONLY_KILL,      /* argument 1 is SIGKILL */
    CHECK_THREAD_OPTIONS, /* prctl: the thread's name and timer slack */
    CHECK_TERMINAL,       /* ioctl: a terminal's mode */
    CHECK_SOCKET_IOCTL,   /* ioctl: FIONBIO, FIONREAD */
    CHECK_LOCK,           /* fcntl: flags, open-file-description locks */
    CHECK_OPEN_FILE,      /* newfstatat: of a descriptor, no path */
    CHECK_READ_ONLY,      /* openat: argument 2 opens for reading */
    CHECK_INTERNET,       /* socket: IPv4 and IPv6 */
};

struct sandbox_call {
    int number;
    unsigned roles; /* BIT(role) */
    enum sandbox_check check;
    const char *why;
};

extern const struct sandbox_call sandbox_calls[];
extern const size_t sandbox_call_count;

/* --- sandbox_filter.c --- */

/* The role's program for the kernel, in memory of its own (free(program->filter)). */
int sandbox_filter_make(enum sandbox_role role, const struct sandbox_config *config,
                        struct sock_fprog *program);

/* --- sandbox_landlock.c --- */

/*
 * A rule set under which no path can be opened, made or removed and no TCP port bound or connected;
 * for the network helper: the name server's file can be read and the network used. Its descriptor,
 * or -1 where the kernel has no Landlock.
 */
int sandbox_landlock_make(enum sandbox_role role);
int sandbox_landlock_enter(int rules);

#endif
