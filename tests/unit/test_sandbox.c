/*
 * The sandbox, role by role, each in a process of its own: what a role may not is refused and
 * named, what it needs works, and the table has a reason for every row.
 */
#include "test.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/sandbox_int.h"

#define VIOLATION      6
#define ENGINE_REQUEST 0xae80u /* what an engine asks for; beside 0 to 0x5412 */

/* --- a child with a role --- */

static int report_fd(void)
{
    return 100;
}

static void on_sigsys(int number, siginfo_t *info, void *context)
{
    char text[200];
    size_t length = sandbox_describe(info, text, sizeof text);

    (void)number, (void)context;
    (void)!write(report_fd(), text, length);
    _exit(VIOLATION);
}

/* The child's part: 0, or anything else for a failure. */
typedef int child_function(void);

static void be_child(enum sandbox_role role, child_function *function)
{
    struct sigaction action = {.sa_sigaction = on_sigsys, .sa_flags = SA_SIGINFO};
    const unsigned request = ENGINE_REQUEST;
    const struct sandbox_config config = {.roles = BIT(role), .ioctls = &request, .ioctl_count = 1};
    struct sandbox *sandbox;
    struct err err;
    sigset_t all;

    sigaction(SIGSYS, &action, NULL);
    sigfillset(&all); /* as in the threads of the VM process */
    pthread_sigmask(SIG_SETMASK, &all, NULL);
    prctl(PR_SET_NAME, "a-thread");
    if (sandbox_create(&sandbox, &config, &err)) {
        dprintf(report_fd(), "%s", err.text);
        _exit(100);
    }
    sandbox_enter(sandbox, role);
    _exit(function());
}

/* Returns the exit status; `said`: what the handler wrote. */
static int run(enum sandbox_role role, child_function *function, char *said, size_t size)
{
    int pipes[2], status;
    assert_int_equal(pipe(pipes), 0);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        dup2(pipes[1], report_fd());
        be_child(role, function);
    }
    close(pipes[1]);
    ssize_t length = read(pipes[0], said, size - 1);
    said[length > 0 ? length : 0] = 0;
    close(pipes[0]);
    assert_int_equal(waitpid(child, &status, 0), child);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

static const char *const role_names[SANDBOX_ROLE_COUNT] = {
    [SANDBOX_LOOP] = "loop",     [SANDBOX_VCPU] = "vcpu",   [SANDBOX_WORKER] = "worker",
    [SANDBOX_REAPER] = "reaper", [SANDBOX_ALARM] = "alarm", [SANDBOX_NET_HELPER] = "net-helper",
};

/* --- what none may --- */

#define FORBIDDEN(name, expression)                                                                \
    static int try_##name(void)                                                                    \
    {                                                                                              \
        return (expression) ? 0 : 1;                                                               \
    }

FORBIDDEN(socket, socket(AF_UNIX, SOCK_STREAM, 0))
FORBIDDEN(openat, open("/tmp/parat-sandbox-test", O_RDWR | O_CREAT, 0600))
FORBIDDEN(execve, syscall(SYS_execve, "/bin/true", NULL, NULL))
FORBIDDEN(clone, syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0))
FORBIDDEN(clone3, syscall(SYS_clone3, NULL, 0))
FORBIDDEN(ptrace, ptrace(PTRACE_TRACEME, 0, NULL, NULL))
FORBIDDEN(process_vm_writev, syscall(SYS_process_vm_writev, 1, NULL, 0, NULL, 0, 0))
FORBIDDEN(mprotect, mprotect(NULL, 4096, PROT_READ | PROT_EXEC))
FORBIDDEN(mmap, mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == NULL)
FORBIDDEN(kill, kill(1, 0))
FORBIDDEN(tgkill, syscall(SYS_tgkill, 1, 1, SIGTERM))
FORBIDDEN(unlink, unlink("/tmp/parat-sandbox-test"))
FORBIDDEN(rename, rename("/tmp/parat-sandbox-test", "/tmp/parat-sandbox-test-2"))
FORBIDDEN(setuid, syscall(SYS_setuid, 0))
FORBIDDEN(io_uring_setup, syscall(SYS_io_uring_setup, 1, NULL))
FORBIDDEN(seccomp, syscall(SYS_seccomp, 0, 0, NULL))
FORBIDDEN(prctl, prctl(PR_SET_DUMPABLE, 1, 0, 0, 0))
FORBIDDEN(ioctl, syscall(SYS_ioctl, 0, 0x5412 /* TIOCSTI */, NULL))
FORBIDDEN(bpf, syscall(SYS_bpf, 0, NULL, 0))
FORBIDDEN(memfd_create, syscall(SYS_memfd_create, "x", 0))

static const struct {
    const char *name;
    child_function *function;
} forbidden[] = {
#define ROW(name)                                                                                  \
    {                                                                                              \
#name, try_##name                                                                          \
    }
    ROW(socket),
    ROW(openat),
    ROW(execve),
    ROW(clone),
    ROW(clone3),
    ROW(ptrace),
    ROW(process_vm_writev),
    ROW(mprotect),
    ROW(mmap),
    ROW(kill),
    ROW(tgkill),
    ROW(unlink),
    ROW(rename),
    ROW(setuid),
    ROW(io_uring_setup),
    ROW(seccomp),
    ROW(prctl),
    ROW(ioctl),
    ROW(bpf),
    ROW(memfd_create),
};

static void each_role_is_refused_what_none_may_and_the_call_is_named(void **state)
{
    for (unsigned role = 0; role < SANDBOX_ROLE_COUNT; role++)
        for (unsigned i = 0; i < ARRAY_COUNT(forbidden); i++) {
            char said[300], wanted[100];
            int status = run((enum sandbox_role)role, forbidden[i].function, said, sizeof said);
            snprintf(wanted, sizeof wanted, "thread a-thread tried the system call %s (",
                     forbidden[i].name);
            if (status != VIOLATION || !strstr(said, wanted))
                fail_msg("%s in role %s: status %d, \"%s\"", forbidden[i].name, role_names[role],
                         status, said);
        }
}

/* --- what one may and another not --- */

static int read_something(void)
{
    char byte;
    return read(-1, &byte, 1) == -1 ? 0 : 1;
}

static int send_something(void)
{
    struct msghdr message = {0};
    return sendmsg(-1, &message, 0) == -1 ? 0 : 1;
}

static int write_a_disk(void)
{
    return pwritev(-1, NULL, 0, 0) == -1 && fdatasync(-1) == -1 ? 0 : 1;
}

static int use_the_internet(void)
{
    return socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0) >= 0 ? 0 : 1;
}

static int ask_the_engine(void)
{
    return syscall(SYS_ioctl, -1, ENGINE_REQUEST, NULL) == -1 ? 0 : 1;
}

static int stop_itself(void)
{
    (void)syscall(SYS_kill, getpid(), 0); /* signal 0 is not SIGSTOP */
    return 1;
}

static void roles_differ(void **state)
{
    static const struct {
        child_function *function;
        const char *call;
        unsigned roles;
    } cases[] = {
        {read_something, "read", BIT(SANDBOX_LOOP) | BIT(SANDBOX_NET_HELPER)},
        {send_something, "sendmsg",
         BIT(SANDBOX_LOOP) | BIT(SANDBOX_VCPU) | BIT(SANDBOX_NET_HELPER)},
        {write_a_disk, "pwritev", BIT(SANDBOX_LOOP) | BIT(SANDBOX_WORKER)},
        {use_the_internet, "socket", BIT(SANDBOX_NET_HELPER)},
        {ask_the_engine, "ioctl",
         BIT(SANDBOX_LOOP) | BIT(SANDBOX_VCPU) | BIT(SANDBOX_WORKER) | BIT(SANDBOX_REAPER) |
             BIT(SANDBOX_ALARM)},
        {stop_itself, "kill", 0},
    };
    for (unsigned role = 0; role < SANDBOX_ROLE_COUNT; role++)
        for (unsigned i = 0; i < ARRAY_COUNT(cases); i++) {
            char said[300];
            int status = run((enum sandbox_role)role, cases[i].function, said, sizeof said);
            int wanted = cases[i].roles & BIT(role) ? 0 : VIOLATION;
            if (status != wanted || (wanted && !strstr(said, cases[i].call)))
                fail_msg("%s in role %s: status %d, \"%s\"", cases[i].call, role_names[role],
                         status, said);
        }
}

/* --- what all need --- */

static int live(void)
{
    pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    unsigned char *big = malloc(1 << 20), *small = malloc(100);
    struct timespec now;

    pthread_mutex_lock(&lock);
    memset(big, 1, 1 << 20);
    big = realloc(big, 4 << 20);
    pthread_mutex_unlock(&lock);
    int good = big && small && big[5] == 1 && clock_gettime(CLOCK_REALTIME, &now) == 0 &&
               syscall(SYS_getrandom, small, 8, 0) == 8 && write(report_fd(), "", 0) == 0;
    free(big);
    free(small);
    return good ? 0 : 1;
}

static int die(void)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGABRT);
    pthread_sigmask(SIG_UNBLOCK, &set, NULL);
    abort();
}

static void each_role_has_memory_locks_and_an_end(void **state)
{
    for (unsigned role = 0; role < SANDBOX_ROLE_COUNT; role++) {
        char said[300];
        int status = run((enum sandbox_role)role, live, said, sizeof said);
        if (status != 0)
            fail_msg("role %s: status %d, \"%s\"", role_names[role], status, said);
        assert_int_equal(run((enum sandbox_role)role, die, said, sizeof said), -SIGABRT);
    }
}

/* --- paths --- */

static int open_name_servers(void)
{
    return open("/etc/resolv.conf", O_RDONLY) >= 0 || open("/etc/hosts", O_RDONLY) >= 0 ? 0 : 1;
}

static int open_another_path(void)
{
    return open("/proc/self/status", O_RDONLY) < 0 && open("/usr", O_RDONLY) < 0 ? 0 : 1;
}

static void the_network_helper_reads_the_name_servers_file_and_no_other_folder(void **state)
{
    char said[300];
    int rules = sandbox_landlock_make(SANDBOX_NET_HELPER);

    assert_int_equal(run(SANDBOX_NET_HELPER, open_name_servers, said, sizeof said), 0);
    if (rules < 0)
        skip(); /* the kernel has no Landlock */
    close(rules);
    assert_int_equal(run(SANDBOX_NET_HELPER, open_another_path, said, sizeof said), 0);
}

/* Landlock alone, without the filter that stands before it. 0, or which try went through. */
static int in_the_domain_of_the_vm(int rules)
{
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(9)};
    bool has_net = syscall(SYS_landlock_create_ruleset, NULL, 0, 1) >= 4;

    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    if (sandbox_landlock_enter(rules))
        return 1;
    if (open("/etc/passwd", O_RDONLY) >= 0 || errno != EACCES)
        return 2;
    if (open("/tmp/parat-sandbox-test", O_RDWR | O_CREAT, 0600) >= 0 || errno != EACCES)
        return 3;
    if (mkdir("/tmp/parat-sandbox-test", 0700) == 0 || errno != EACCES)
        return 4;
    if (rmdir("/tmp/parat-sandbox-test") == 0 || (errno != EACCES && errno != ENOENT))
        return 5;
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int s = socket(AF_INET, SOCK_STREAM, 0);
    if (has_net && (connect(s, (struct sockaddr *)&to, sizeof to) == 0 || errno != EACCES))
        return 6;
    if (has_net && (bind(s, (struct sockaddr *)&to, sizeof to) == 0 || errno != EACCES))
        return 7;
    return 0;
}

static void no_path_and_no_port_is_left_to_the_vm_by_landlock_alone(void **state)
{
    int rules = sandbox_landlock_make(SANDBOX_LOOP), status;

    if (rules < 0)
        skip(); /* the kernel has no Landlock */
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0)
        _exit(in_the_domain_of_the_vm(rules));
    close(rules);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
}

/* --- the table --- */

static void every_row_has_a_reason_and_none_is_there_twice(void **state)
{
    for (size_t i = 0; i < sandbox_call_count; i++) {
        const struct sandbox_call *call = &sandbox_calls[i];
        assert_true(strlen(call->why) > 4);
        assert_true(call->roles && call->roles < BIT(SANDBOX_ROLE_COUNT));
        assert_non_null(sandbox_call_name(call->number));
        for (size_t k = 0; k < i; k++)
            assert_false(sandbox_calls[k].number == call->number &&
                         (sandbox_calls[k].roles & call->roles));
    }
}

static void calls_have_names(void **state)
{
    assert_string_equal(sandbox_call_name(SYS_read), "read");
    assert_string_equal(sandbox_call_name(SYS_openat), "openat");
    assert_null(sandbox_call_name(-1));
    assert_null(sandbox_call_name(1 << 20));
}

static void no_sandbox_is_none(void **state)
{
    sandbox_enter(NULL, SANDBOX_VCPU);
    sandbox_destroy(NULL);
    assert_int_equal(prctl(PR_GET_SECCOMP), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_role_is_refused_what_none_may_and_the_call_is_named),
        cmocka_unit_test(roles_differ),
        cmocka_unit_test(each_role_has_memory_locks_and_an_end),
        cmocka_unit_test(the_network_helper_reads_the_name_servers_file_and_no_other_folder),
        cmocka_unit_test(no_path_and_no_port_is_left_to_the_vm_by_landlock_alone),
        cmocka_unit_test(every_row_has_a_reason_and_none_is_there_twice),
        cmocka_unit_test(calls_have_names),
        cmocka_unit_test(no_sandbox_is_none),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
