/*
 * Landlock: what is left of paths and ports when the sandbox has closed, by the kernel's own rules
 * and not by system calls' numbers. Linux Documentation/userspace-api/landlock.rst; its constants
 * up to version 5 of the interface are repeated here, because headers are older than kernels.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/sandbox_int.h"

#define CREATE_RULESET_VERSION 1u
#define RULE_PATH_BENEATH      1
#define FS_READ_FILE           (1ull << 2)
#define FS_READ_DIR            (1ull << 3)

struct ruleset {
    uint64_t fs, net;
};

struct __attribute__((packed)) path_beneath {
    uint64_t allowed;
    int32_t parent_fd;
};

/* All rights to files that the version knows. */
static uint64_t fs_rights(long version)
{
    static const unsigned bits[] = {0, 13, 14, 15, 15, 16}; /* of versions 1 to 5 */
    return (1ull << bits[version < 5 ? version : 5]) - 1;
}

static int make_ruleset(enum sandbox_role role)
{
    long version = syscall(SYS_landlock_create_ruleset, NULL, 0, CREATE_RULESET_VERSION);
    if (version < 1)
        return -1; /* not built in, not enabled, or denied by a container */
    bool net = version >= 4 && role != SANDBOX_NET_HELPER;
    struct ruleset rules = {.fs = fs_rights(version), .net = net ? 3 : 0 /* bind, connect TCP */};
    return (int)syscall(SYS_landlock_create_ruleset, &rules,
                        version >= 4 ? sizeof rules : sizeof rules.fs, 0);
}

/* Nothing but reading what lies in the folder. It may be missing. */
static void allow_reading(int rules, const char *folder)
{
    struct path_beneath beneath = {.allowed = FS_READ_FILE,
                                   .parent_fd = open(folder, O_PATH | O_CLOEXEC)};
    if (beneath.parent_fd < 0)
        return;
    (void)syscall(SYS_landlock_add_rule, rules, RULE_PATH_BENEATH, &beneath, 0);
    close(beneath.parent_fd);
}

/*
 * A resolver replaces its file, so it is the folders that count: of the link and of its target. Not
 * the root folder, which would be everything.
 */
static void allow_name_servers(int rules)
{
    char target[PATH_MAX];
    allow_reading(rules, "/etc");
    if (!realpath("/etc/resolv.conf", target))
        return;
    *strrchr(target, '/') = 0;
    if (target[0])
        allow_reading(rules, target);
}

int sandbox_landlock_make(enum sandbox_role role)
{
    int rules = make_ruleset(role);
    if (rules >= 0 && role == SANDBOX_NET_HELPER)
        allow_name_servers(rules);
    return rules;
}

int sandbox_landlock_enter(int rules)
{
    return rules < 0 || syscall(SYS_landlock_restrict_self, rules, 0) == 0 ? 0 : -errno;
}
