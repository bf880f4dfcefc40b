"""Fixtures of the whole-program tests: the program and the guests that tools/guest makes."""
import functools
import pathlib
import shutil
import subprocess

import pytest

import vm as vm_module
from vm import TOP, Vm


def pytest_configure(config):
    """The levels of ./check. A test with neither mark runs at the default level."""
    config.addinivalue_line("markers", "quick: takes a few seconds; runs in ./check quick")
    config.addinivalue_line("markers", "full: takes minutes; runs in ./check full only")


@functools.lru_cache(maxsize=None)
def make_guest(what):
    """The path that tools/guest prints, or a str that says why there is none."""
    done = subprocess.run([TOP / "tools" / "guest", what], stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=1500,
                          check=False)
    if done.returncode:
        return (done.stderr.strip().splitlines() or ["tools/guest failed"])[-1]
    return pathlib.Path(done.stdout.strip())


def guest(what):
    """The path of a guest's part; skips the test when it cannot be made."""
    made = make_guest(what)
    if isinstance(made, str):
        pytest.skip(f"no guest {what}: {made}")
    return made


@pytest.fixture(autouse=True)
def program():
    """There must be a program to test."""
    if not pathlib.Path(vm_module.PROGRAM).exists():
        pytest.skip(f"{vm_module.PROGRAM} is not built")
    return vm_module.PROGRAM


@pytest.fixture(scope="session")
def kernel():
    """The Debian cloud kernel as bzImage."""
    return guest("kernel")


@pytest.fixture(scope="session")
def vmlinux():
    """The same kernel as ELF with a PVH note."""
    return guest("vmlinux")


@pytest.fixture(scope="session")
def initrd():
    """The initrd that plays tasks."""
    return guest("initrd")


@pytest.fixture(scope="session")
def stress_initrd():
    """The same with a program for the task churn."""
    return guest("stress")


@pytest.fixture(scope="session")
def bench_initrd():
    """The initrd that runs the benchmark's work."""
    return guest("bench")


@pytest.fixture
def debian_disk(tmp_path):
    """A copy of the Debian root disk, removed after the test."""
    copy = tmp_path / "debian.img"
    subprocess.run(["cp", "--reflink=auto", "--sparse=always", guest("disk"), copy], check=True)
    yield copy
    copy.unlink()


@pytest.fixture
def empty_disk(tmp_path):
    """A sparse disk of 64 MiB."""
    path = tmp_path / "disk.img"
    with open(path, "wb") as file:
        file.truncate(64 << 20)
    return path


@pytest.fixture
def ext4_disk(empty_disk):
    """A disk of 64 MiB with an empty ext4 file system."""
    mke2fs = shutil.which("mke2fs", path="/usr/sbin:/sbin:/usr/bin")
    if not mke2fs:
        pytest.skip("no mke2fs")
    subprocess.run([mke2fs, "-q", "-F", "-t", "ext4", empty_disk], check=True)
    return empty_disk


@pytest.fixture(scope="session")
def boot(kernel, initrd):
    """boot(tasks, *options, words="", **more): a Vm that plays tasks from the initrd."""
    def start(tasks, *options, words="", image=None, ramdisk=None, **more):
        append = f"console=ttyS0 quiet panic=-1 parat.do={tasks} {words}"
        return Vm("--name", "test", "--memory", "256M", "--kernel", image or kernel,
                  "--initrd", ramdisk or initrd, "--append", append, *options, **more)
    return start
