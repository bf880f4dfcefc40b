/*
 * A role's filter: the rows of the table as a program of the kernel's (seccomp(2)), made by
 * libseccomp. Main thread.
 */
#include <errno.h>
#include <fcntl.h>
#include <seccomp.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <termios.h>
#include <unistd.h>

#include "base/sandbox_int.h"

#define INT_BITS 0xffffffffull /* the kernel looks at no more of an int */

static struct scmp_arg_cmp is(unsigned argument, uint64_t mask, uint64_t value)
{
    return SCMP_CMP64(argument, SCMP_CMP_MASKED_EQ, mask, value);
}

static int allow(scmp_filter_ctx filter, int number, struct scmp_arg_cmp condition)
{
    return seccomp_rule_add_array(filter, SCMP_ACT_ALLOW, number, 1, &condition);
}

/* One of several values of an int argument. */
static int allow_values(scmp_filter_ctx filter, int number, unsigned argument,
                        const unsigned *value, size_t count)
{
    int error = 0;
    for (size_t i = 0; i < count && !error; i++)
        error = allow(filter, number, is(argument, INT_BITS, value[i]));
    return error;
}

static int allow_two(scmp_filter_ctx filter, int number, struct scmp_arg_cmp a,
                     struct scmp_arg_cmp b)
{
    struct scmp_arg_cmp both[] = {a, b};
    return seccomp_rule_add_array(filter, SCMP_ACT_ALLOW, number, ARRAY_COUNT(both), both);
}

#define VALUES(filter, number, argument, ...)                                                      \
    allow_values(filter, number, argument, (const unsigned[]) {__VA_ARGS__},                       \
                 sizeof((const unsigned[]) {__VA_ARGS__}) / sizeof(unsigned))

static int add(scmp_filter_ctx f, const struct sandbox_call *call)
{
    const int n = call->number;
    const uint64_t writes = O_ACCMODE | O_CREAT | O_TRUNC | O_PATH | O_TMPFILE;

    switch (call->check) {
    case CHECK_NONE:
        return seccomp_rule_add_array(f, SCMP_ACT_ALLOW, n, 0, NULL);
    case CHECK_NOT_EXECUTABLE:
        return allow(f, n, is(2, PROT_EXEC, 0));
    case CHECK_OWN_PROCESS:
        return allow(f, n, is(0, INT_BITS, (uint64_t)getpid()));
    case CHECK_OWN_STOP:
        return allow_two(f, n, is(0, INT_BITS, (uint64_t)getpid()), is(1, INT_BITS, SIGSTOP));
    case CHECK_ONLY_KILL:
        return allow(f, n, is(1, INT_BITS, SIGKILL));
    case CHECK_THREAD_OPTIONS:
        return VALUES(f, n, 0, PR_SET_TIMERSLACK, PR_SET_NAME, PR_GET_NAME);
    case CHECK_TERMINAL:
        return VALUES(f, n, 1, TCGETS, TCSETS, TCSETSW);
    case CHECK_SOCKET_IOCTL:
        return VALUES(f, n, 1, FIONBIO, FIONREAD, TCGETS);
    case CHECK_LOCK:
        return VALUES(f, n, 1, F_GETFL, F_SETFL, F_GETFD, F_SETFD, F_OFD_SETLK, F_OFD_GETLK);
    case CHECK_OPEN_FILE:
        return allow(f, n, is(3, INT_BITS, AT_EMPTY_PATH));
    case CHECK_READ_ONLY:
        return allow(f, n, is(2, writes, O_RDONLY));
    case CHECK_INTERNET:
        return VALUES(f, n, 0, AF_INET, AF_INET6);
    }
    return -EINVAL;
}

static int add_calls(scmp_filter_ctx filter, enum sandbox_role role)
{
    int error = 0;
    for (size_t i = 0; i < sandbox_call_count && !error; i++)
        if (sandbox_calls[i].roles & BIT(role))
            error = add(filter, &sandbox_calls[i]);
    return error;
}

/* The library writes programs to descriptors only. */
static int export(scmp_filter_ctx filter, struct sock_fprog *program)
{
    int fd = memfd_create("parat-filter", MFD_CLOEXEC), error = fd < 0 ? -errno : 0;
    if (!error)
        error = seccomp_export_bpf(filter, fd);
    off_t size = error ? 0 : lseek(fd, 0, SEEK_CUR);
    struct sock_filter *code = size > 0 ? malloc((size_t)size) : NULL;
    if (!error && (!code || pread(fd, code, (size_t)size, 0) != size))
        error = code ? -EIO : -ENOMEM;
    if (fd >= 0)
        close(fd);
    if (error) {
        free(code);
        return error;
    }
    program->len = (unsigned short)((size_t)size / sizeof *code);
    program->filter = code;
    return 0;
}

int sandbox_filter_make(enum sandbox_role role, const struct sandbox_config *config,
                        struct sock_fprog *program)
{
    scmp_filter_ctx filter = seccomp_init(SCMP_ACT_TRAP);
    if (!filter)
        return -ENOMEM;
    /* Calls of another architecture have other numbers: no thread makes any. */
    int error = seccomp_attr_set(filter, SCMP_FLTATR_ACT_BADARCH, SCMP_ACT_KILL_PROCESS);
    if (!error)
        error = seccomp_attr_set(filter, SCMP_FLTATR_CTL_OPTIMIZE, 2); /* a tree, not a list */
    if (!error)
        error = add_calls(filter, role);
    if (!error && role != SANDBOX_NET_HELPER)
        error = allow_values(filter, SCMP_SYS(ioctl), 1, config->ioctls, config->ioctl_count);
    if (!error)
        error = export(filter, program);
    seccomp_release(filter);
    return error;
}
