/* Closing the sandbox; see sandbox.h. */
#include "base/sandbox.h"

#include <cap-ng.h>
#include <errno.h>
#include <grp.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/log.h"
#include "base/sandbox_int.h"

#define NOBODY 65534

struct sandbox {
    struct sock_fprog program[SANDBOX_ROLE_COUNT]; /* filter NULL: not asked for */
    int landlock;                                  /* a rule set, or -1 */
};

/* --- entering --- */

static int drop_capabilities(void)
{
    if (capng_get_caps_process() < 0)
        return -EPERM;
    if (capng_have_capabilities(CAPNG_SELECT_CAPS) == CAPNG_NONE)
        return 0;
    capng_clear(CAPNG_SELECT_CAPS);
    return capng_apply(CAPNG_SELECT_CAPS) < 0 ? -EPERM : 0;
}

/* The signal that tells of a violation must not be blocked: the kernel would kill without a word.
 */
static void unblock_sigsys(void)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGSYS);
    pthread_sigmask(SIG_UNBLOCK, &set, NULL);
}

/* SPEC_ALLOW: speculative store bypass is not switched off for us by older kernels; see
 * docs/threat-model.md. */
static int install(const struct sock_fprog *program)
{
    long result =
        syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_SPEC_ALLOW, program);
    return result < 0 ? -errno : 0;
}

static int enter(const struct sandbox *sandbox, enum sandbox_role role)
{
    int error = drop_capabilities();
    if (!error && prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
        error = -errno;
    if (!error)
        error = sandbox_landlock_enter(sandbox->landlock);
    if (error)
        return error;
    unblock_sigsys();
    return install(&sandbox->program[role]);
}

void sandbox_enter(const struct sandbox *sandbox, enum sandbox_role role)
{
    if (!sandbox)
        return;
    int error = enter(sandbox, role);
    if (!error)
        return;
    log_error("the sandbox of a thread cannot be closed: %s", strerror(-error));
    abort();
}

void sandbox_leave_root(void)
{
    if (geteuid() != 0)
        return;
    /* In a user namespace that has no such number, or without the capability, root is little worth.
     */
    if (setgroups(0, NULL) < 0 || setresgid(NOBODY, NOBODY, NOBODY) < 0 ||
        setresuid(NOBODY, NOBODY, NOBODY) < 0)
        log_info("the network helper stays root: %s", strerror(errno));
}

/* --- creation --- */

struct trial {
    const struct sandbox *sandbox;
    enum sandbox_role role;
    int error;
};

static void *try_it(void *argument)
{
    struct trial *trial = argument;
    trial->error = enter(trial->sandbox, trial->role);
    return NULL;
}

static int try_on_thread(const struct sandbox *sandbox, enum sandbox_role role)
{
    struct trial trial = {.sandbox = sandbox, .role = role};
    pthread_t thread;
    int error = -pthread_create(&thread, NULL, try_it, &trial);
    if (error)
        return error;
    pthread_join(thread, NULL);
    return trial.error;
}

static int make_filters(struct sandbox *sandbox, const struct sandbox_config *config)
{
    int error = 0;
    for (unsigned i = 0; i < SANDBOX_ROLE_COUNT && !error; i++)
        if (config->roles & BIT(i))
            error = sandbox_filter_make((enum sandbox_role)i, config, &sandbox->program[i]);
    return error;
}

int sandbox_create(struct sandbox **out, const struct sandbox_config *config, struct err *err)
{
    struct sandbox *sandbox = calloc(1, sizeof *sandbox);
    enum sandbox_role any = (enum sandbox_role)__builtin_ctz(config->roles);
    if (!sandbox)
        return err_set(err, ENOMEM, "--sandbox: out of memory");
    sandbox->landlock = sandbox_landlock_make(any);
    int error = make_filters(sandbox, config);
    if (!error)
        error = try_on_thread(sandbox, any);
    if (error) {
        sandbox_destroy(sandbox);
        return err_set(
            err, -error,
            "--sandbox: this host does not let a program confine itself: %s (--sandbox off "
            "runs without)",
            strerror(-error));
    }
    if (sandbox->landlock < 0)
        log_info("--sandbox: the kernel has no Landlock; the system call filters stand alone");
    *out = sandbox;
    return 0;
}

void sandbox_destroy(struct sandbox *sandbox)
{
    if (!sandbox)
        return;
    for (unsigned i = 0; i < SANDBOX_ROLE_COUNT; i++)
        free(sandbox->program[i].filter);
    if (sandbox->landlock >= 0)
        close(sandbox->landlock);
    free(sandbox);
}
