"""The sandbox from outside: what the kernel says of each thread, and what a violation looks like.

All other tests run with it on, so they show that nothing which is needed is forbidden."""
import ctypes
import os
import pathlib
import shutil
import subprocess
import tempfile

import pytest

from vm import PROGRAM, TOP, parat

HELLO = TOP / "build" / "tests" / "flat" / "hello.elf"
WAITS = "parat-guest: sleeping"


def status_of(task):
    """/proc/PID/task/TID/status as a dict."""
    lines = pathlib.Path(task, "status").read_text(encoding="ascii", errors="replace").splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


def threads(pid):
    """Name and status of each thread."""
    found = {}
    for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
        status = status_of(task)
        found.setdefault(status["Name"], []).append(status)
    return found


def helper_of(pid):
    """The network helper's pid."""
    for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
        children = (task / "children").read_text(encoding="ascii").split()
        if children:
            return int(children[0])
    raise AssertionError("there is no network helper")


def is_confined(status):
    """A filter, no way to new privileges, no capabilities."""
    return (status["Seccomp"] == "2" and status["NoNewPrivs"] == "1" and
            all(int(status[name], 16) == 0 for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")))


@pytest.mark.quick
@pytest.mark.parametrize("io", ["auto", "threads"])
def test_every_thread_is_confined(boot, empty_disk, io):
    with boot("sleep", "--cpus", "2", "--net", "user", "--disk", f"{empty_disk},io={io}") as machine:
        machine.expect(WAITS)
        found = threads(machine.process.pid)
        helper = threads(helper_of(machine.process.pid))
    assert {"parat", "vcpu0", "vcpu1", "parat-worker", "parat-alarm"} <= set(found)
    # The kernel's own threads of a ring are no program's.
    loose = [name for name, all_of in found.items() for status in all_of
             if not is_confined(status) and not name.startswith("iou-")]
    assert not loose
    assert set(helper) == {"parat-net"} and is_confined(helper["parat-net"][0])
    if os.geteuid() == 0:
        assert helper["parat-net"][0]["Uid"].split()[0] == "65534"


@pytest.mark.quick
def test_off_says_so_and_confines_nothing(boot):
    with boot("sleep", "--sandbox", "off", "--net", "user") as machine:
        machine.expect(WAITS)
        found = threads(machine.process.pid)
        helper = threads(helper_of(machine.process.pid))
        assert "--sandbox off" in machine.errors
    before = status_of("/proc/self")["Seccomp"]
    assert {status["Seccomp"] for all_of in found.values() for status in all_of} == {before}
    assert {status["Seccomp"] for all_of in helper.values() for status in all_of} == {before}


@pytest.mark.quick
def test_runs_as_an_ordinary_user():
    """As nobody, when the tests are root's; else they all do."""
    if os.geteuid() != 0:
        pytest.skip("all tests run as an ordinary user")
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        for file in (PROGRAM, HELLO):
            shutil.copy(file, folder)
        result = subprocess.run(
            [pathlib.Path(folder, pathlib.Path(PROGRAM).name), "run", "--kernel", pathlib.Path(folder, HELLO.name),
             "--net", "user", "--debug-exit", "0xf4"],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False, user=65534, group=65534,
            extra_groups=[], cwd="/")
    assert result.returncode == 1, result.stderr
    assert "hello from 64-bit mode" in result.stdout


# --- violations ---

# In the thread that PARAT_TEST_THREAD names, the first lock taken or clock read after its filter has closed
# makes a system call that no role may make.
INTRUDER = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <linux/futex.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static _Thread_local int closed;

long syscall(long number, ...)
{
    static long (*next)(long, ...);
    va_list args;
    long a[6];
    if (!next)
        next = (long (*)(long, ...))dlsym(RTLD_NEXT, "syscall");
    va_start(args, number);
    for (int i = 0; i < 6; i++)
        a[i] = va_arg(args, long);
    va_end(args);
    long result = next(number, a[0], a[1], a[2], a[3], a[4], a[5]);
    if (number == SYS_seccomp && result == 0)
        closed = 1;
    return result;
}

static void intrude(void)
{
    char name[17] = "";
    const char *wanted = getenv("PARAT_TEST_THREAD");
    if (!closed || !wanted)
        return;
    prctl(PR_GET_NAME, name);
    if (strcmp(name, wanted) == 0) {
        closed = 0;
        unlink("/tmp/parat-test-that-is-not-there");
    }
}

int pthread_mutex_lock(pthread_mutex_t *lock)
{
    static int (*next)(pthread_mutex_t *);
    if (!next)
        next = (int (*)(pthread_mutex_t *))dlsym(RTLD_NEXT, "pthread_mutex_lock");
    intrude();
    return next(lock);
}

int clock_gettime(clockid_t clock, struct timespec *to)
{
    static int (*next)(clockid_t, struct timespec *);
    if (!next)
        next = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    intrude();
    return next(clock, to);
}
"""


@pytest.fixture(scope="module")
def intruder(tmp_path_factory):
    """A library that makes a thread do what it may not."""
    library = tmp_path_factory.mktemp("intruder") / "intruder.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", library, "-xc", "-"], input=INTRUDER, text=True, check=True)
    return library


def has_io_uring():
    """A ring can be made here."""
    fd = ctypes.CDLL(None).syscall(425, 1, ctypes.create_string_buffer(120))
    if fd >= 0:
        os.close(fd)
    return fd >= 0


def said_by_the_sandbox(thread):
    """The sentence."""
    return f"parat: sandbox: thread {thread} tried the system call unlink ("


@pytest.mark.parametrize("thread", ["parat", "vcpu0", "vcpu1", "parat-worker", "parat-uring", "parat-alarm"])
def test_violation_is_named_and_ends_the_process(boot, empty_disk, intruder, thread):
    """In a thread of each role. Exit status 6."""
    if thread == "parat-uring" and not has_io_uring():
        pytest.skip("the host denies io_uring")
    environment = dict(os.environ, LD_PRELOAD=str(intruder), PARAT_TEST_THREAD=thread)
    io = "threads" if thread == "parat-worker" else "auto"
    with boot("smp,disk,spin", "--cpus", "2", "--disk", f"{empty_disk},io={io}", env=environment) as machine:
        machine.wait(6)
        assert said_by_the_sandbox(thread) in machine.errors


def test_violation_in_the_network_helper_takes_the_cable_out(boot, intruder):
    """The machine goes on without its network."""
    environment = dict(os.environ, LD_PRELOAD=str(intruder), PARAT_TEST_THREAD="parat-net")
    with boot("net,info", "--net", "user", env=environment) as machine:
        machine.wait(0)
        machine.said("parat-guest: net FAILED")
        machine.task_ok("info")
        assert said_by_the_sandbox("parat-net") in machine.errors
        assert "the cable is out" in machine.errors


def test_host_without_seccomp_is_refused_with_a_sentence(tmp_path):
    """An outer filter, like a container's, that denies the system call seccomp."""
    library = tmp_path / "deny.so"
    source = "#include <errno.h>\n#include <sys/syscall.h>\n" + INTRUDER.replace(
        "if (number == SYS_seccomp && result == 0)", "if (0)").replace(
        "va_start(args, number);", "if (number == SYS_seccomp) { errno = EPERM; return -1; }\n    va_start(args, number);")
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, "-xc", "-"], input=source, text=True, check=True)
    result = parat("run", "--kernel", HELLO, env=dict(os.environ, LD_PRELOAD=str(library)))
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1 and "--sandbox off" in result.stderr
