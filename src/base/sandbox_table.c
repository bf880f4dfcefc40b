/*
 * Every system call that a thread may make after its sandbox has closed: for which roles, with
 * which arguments, and why. What is not here ends the process, but for the requests by ioctl of the
 * VM's engine (vm/engine.h). Descriptors that were opened before
 * stay usable; no call here opens a path (but for the network helper's name server), runs a
 * program, makes a thread, or gives memory that can be executed.
 */
#include <seccomp.h>

#include "base/sandbox_int.h"

#define LOOP   BIT(SANDBOX_LOOP)
#define VCPU   BIT(SANDBOX_VCPU)
#define WORKER BIT(SANDBOX_WORKER)
#define REAPER BIT(SANDBOX_REAPER)
#define ALARM  BIT(SANDBOX_ALARM)
#define NET    BIT(SANDBOX_NET_HELPER)
#define VM     (LOOP | VCPU | WORKER | REAPER | ALARM)
#define ALL    (VM | NET)

const struct sandbox_call sandbox_calls[] = {
    /* Threads and locks */
    {SCMP_SYS(futex), ALL, CHECK_NONE, "locks; waking and halting vCPUs; joining threads"},
    {SCMP_SYS(sched_yield), ALL, CHECK_NONE,
     "a guest's PAUSE loop; a ring that is short of memory"},
    {SCMP_SYS(rseq), ALL, CHECK_NONE, "libc at the end of a thread"},
    {SCMP_SYS(set_robust_list), ALL, CHECK_NONE, "libc at the beginning of a thread"},
    {SCMP_SYS(sched_getaffinity), ALL, CHECK_NONE, "libc counts CPUs for malloc's arenas"},
    {SCMP_SYS(gettid), ALL, CHECK_NONE, "abort and raise"},
    {SCMP_SYS(getpid), ALL, CHECK_NONE, "abort and raise"},
    {SCMP_SYS(tgkill), ALL, CHECK_OWN_PROCESS, "abort and raise; kicking a vCPU's thread"},
    {SCMP_SYS(prctl), ALL, CHECK_THREAD_OPTIONS, "a thread's name, timer slack"},
    {SCMP_SYS(exit), ALL, CHECK_NONE, "the end of a thread"},
    {SCMP_SYS(exit_group), ALL, CHECK_NONE, "the end of the process"},

    /* Signals */
    {SCMP_SYS(rt_sigreturn), ALL, CHECK_NONE, "the end of a signal handler"},
    {SCMP_SYS(rt_sigprocmask), ALL, CHECK_NONE, "abort, the end of a thread"},
    {SCMP_SYS(rt_sigtimedwait), VCPU, CHECK_NONE, "engine kvm: the signal that ended a run"},
    {SCMP_SYS(rt_sigaction), ALL, CHECK_NONE, "abort"},
    {SCMP_SYS(sigaltstack), ALL, CHECK_NONE, "sanitizers at the end of a thread"},
    {SCMP_SYS(restart_syscall), ALL, CHECK_NONE, "a wait goes on after SIGSTOP and SIGCONT"},

    /* Memory */
    {SCMP_SYS(mmap), ALL, CHECK_NOT_EXECUTABLE, "malloc"},
    {SCMP_SYS(mprotect), ALL, CHECK_NOT_EXECUTABLE, "malloc's arenas grow"},
    {SCMP_SYS(munmap), ALL, CHECK_NONE, "free; stacks of ended threads; guest RAM at the end"},
    {SCMP_SYS(mremap), ALL, CHECK_NONE, "realloc"},
    {SCMP_SYS(madvise), ALL, CHECK_NONE, "malloc; stacks of ended threads"},
    {SCMP_SYS(brk), ALL, CHECK_NONE, "malloc"},

    /* Time and random numbers */
    {SCMP_SYS(clock_gettime), ALL, CHECK_NONE, "where the vDSO has no clock"},
    {SCMP_SYS(gettimeofday), ALL, CHECK_NONE, "where the vDSO has no clock"},
    {SCMP_SYS(time), ALL, CHECK_NONE, "where the vDSO has no clock"},
    {SCMP_SYS(clock_nanosleep), LOOP | WORKER, CHECK_NONE, "short waits"},
    {SCMP_SYS(timerfd_settime), LOOP | VCPU | WORKER | REAPER, CHECK_NONE,
     "a timer of the loop, armed by the thread that needs it"},
    {SCMP_SYS(getrandom), ALL, CHECK_NONE, "virtio-rng, RDRAND; libc"},

    /* Descriptors that are open */
    {SCMP_SYS(read), LOOP | NET, CHECK_NONE, "terminal, signals, timers; name servers"},
    {SCMP_SYS(write), ALL, CHECK_NONE, "log, console, statistics; waking the loop"},
    {SCMP_SYS(writev), ALL, CHECK_NONE, "libc's own messages"},
    {SCMP_SYS(close), ALL, CHECK_NONE, "the end of the VM; connections"},
    {SCMP_SYS(lseek), LOOP | WORKER | NET, CHECK_NONE,
     "loading the kernel at a reset; sizes and holes of images; stdio"},
    {SCMP_SYS(pread64), LOOP | WORKER, CHECK_NONE, "loading the kernel at a reset; disks"},
    {SCMP_SYS(pwrite64), LOOP | WORKER, CHECK_NONE, "statistics; disks"},
    {SCMP_SYS(sendfile), LOOP, CHECK_NONE, "loading the kernel at a reset"},
    {SCMP_SYS(ftruncate), LOOP | WORKER, CHECK_NONE, "statistics"},
    {SCMP_SYS(fstat), ALL, CHECK_NONE, "stdio"},
    {SCMP_SYS(newfstatat), ALL & ~NET, CHECK_OPEN_FILE, "stdio"},
    {SCMP_SYS(fcntl), LOOP | WORKER | NET, CHECK_LOCK, "locks of disks; sockets that do not block"},
    {SCMP_SYS(ioctl), ALL & ~NET, CHECK_TERMINAL, "the terminal's mode, also when a thread dies"},
    {SCMP_SYS(poll), LOOP | NET, CHECK_NONE, "console; all of the helper's sockets"},
    {SCMP_SYS(ppoll), LOOP | NET, CHECK_NONE, "the same with another libc"},
    {SCMP_SYS(epoll_wait), LOOP, CHECK_NONE, "the event loop"},
    {SCMP_SYS(epoll_pwait), LOOP, CHECK_NONE, "the same with another libc"},
    {SCMP_SYS(epoll_ctl), LOOP, CHECK_NONE, "the event loop"},
    {SCMP_SYS(getrusage), LOOP, CHECK_NONE, "statistics"},

    /* Disks */
    {SCMP_SYS(preadv), LOOP | WORKER, CHECK_NONE, "disks; closing an image"},
    {SCMP_SYS(pwritev), LOOP | WORKER, CHECK_NONE, "disks; closing an image"},
    {SCMP_SYS(preadv2), LOOP | WORKER, CHECK_NONE, "disks; closing an image"},
    {SCMP_SYS(pwritev2), LOOP | WORKER, CHECK_NONE, "disks; closing an image"},
    {SCMP_SYS(fdatasync), LOOP | WORKER, CHECK_NONE, "flushes; closing an image"},
    {SCMP_SYS(fsync), LOOP | WORKER, CHECK_NONE, "flushes; closing an image"},
    {SCMP_SYS(fallocate), LOOP | WORKER, CHECK_NONE, "discard, write zeroes; closing an image"},
    {SCMP_SYS(io_uring_enter), LOOP | VCPU | WORKER | REAPER, CHECK_NONE,
     "requests to a ring that was restricted before"},

    /* The VM process and its network helper: a socket pair that was made before. */
    {SCMP_SYS(sendmsg), LOOP | VCPU | NET, CHECK_NONE, "frames of the guest; UDP"},
    {SCMP_SYS(sendto), NET, CHECK_NONE, "frames for the guest; TCP, UDP"},
    {SCMP_SYS(recvfrom), LOOP | NET, CHECK_NONE, "frames for the guest; TCP, UDP"},
    {SCMP_SYS(recvmsg), NET, CHECK_NONE, "UDP, ICMP"},
    {SCMP_SYS(wait4), LOOP, CHECK_NONE, "the network helper has ended"},
    {SCMP_SYS(pidfd_send_signal), LOOP, CHECK_ONLY_KILL, "ending the network helper"},

    /* Job control: the user's Ctrl-Z at the terminal */
    {SCMP_SYS(kill), LOOP, CHECK_OWN_STOP, "SIGTSTP stops the process"},

    /* The network helper's sockets (libslirp) */
    {SCMP_SYS(socket), NET, CHECK_INTERNET, "a connection of the guest"},
    {SCMP_SYS(connect), NET, CHECK_NONE, "a connection of the guest"},
    {SCMP_SYS(bind), NET, CHECK_NONE, "an answer's address"},
    {SCMP_SYS(listen), NET, CHECK_NONE, "a port that a connection announced (FTP)"},
    {SCMP_SYS(accept), NET, CHECK_NONE, "a forwarded port"},
    {SCMP_SYS(accept4), NET, CHECK_NONE, "a forwarded port"},
    {SCMP_SYS(shutdown), NET, CHECK_NONE, "one direction of a connection has ended"},
    {SCMP_SYS(getsockname), NET, CHECK_NONE, "a socket's own address"},
    {SCMP_SYS(getpeername), NET, CHECK_NONE, "a connection's far side"},
    {SCMP_SYS(getsockopt), NET, CHECK_NONE, "a connection that failed"},
    {SCMP_SYS(setsockopt), NET, CHECK_NONE, "options that the guest's packets ask for"},
    {SCMP_SYS(ioctl), NET, CHECK_SOCKET_IOCTL, "how much can be read; sockets that do not block"},
    {SCMP_SYS(openat), NET, CHECK_READ_ONLY, "the host's name servers, which change"},
    {SCMP_SYS(newfstatat), NET, CHECK_NONE, "whether they have changed"},
    {SCMP_SYS(stat), NET, CHECK_NONE, "the same with another libc"},
};
const size_t sandbox_call_count = ARRAY_COUNT(sandbox_calls);
