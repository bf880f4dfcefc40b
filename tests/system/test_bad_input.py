"""Wrong options and bad files: one clear sentence that names option, file and reason; nothing half-done."""
import os
import pathlib
import select
import signal
import socket

import pytest

from vm import Vm, parat

pytestmark = pytest.mark.quick


def refused(*arguments, status=(1, 2), says=()):
    """parat run with these arguments must fail at once with one sentence that has these words."""
    done = parat("run", *arguments)
    assert done.returncode in status, done.stderr
    assert done.stdout == "", "nothing may reach the console"
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, f"one sentence expected:\n{done.stderr}"
    for word in says:
        assert str(word) in lines[0], lines[0]
    return lines[0]


@pytest.mark.parametrize("arguments, says", [
    (["--nosuch"], ["--nosuch"]),
    (["--cpus"], ["--cpus"]),
    (["--cpus", "x"], ["--cpus", "x"]),
    (["--cpus", "0"], ["--cpus", "0"]),
    (["--cpus", "100000"], ["--cpus", "100000"]),
    (["--cpus", "-1"], ["--cpus", "-1"]),
    (["--memory", "0"], ["--memory", "0"]),
    (["--memory", "banana"], ["--memory", "banana"]),
    (["--memory", "-1M"], ["--memory", "-1M"]),
    (["--memory", "99999999999999999999G"], ["--memory"]),
    (["--memory", "512Q"], ["--memory", "512Q"]),
    (["--machine", "nosuch"], ["--machine", "nosuch"]),
    (["--engine", "nosuch"], ["--engine", "nosuch"]),
    (["--engine", "soft,mode=nosuch"], ["--engine", "nosuch", "interpret"]),
    (["--engine", "auto,code-cache=1K"], ["--engine", "code-cache=1K", "1M"]),
    (["--cpu", "nosuch"], ["--cpu", "nosuch"]),
    (["--net", "nosuch"], ["--net", "nosuch"]),
    (["--net", "user,hostfwd=nosuch"], ["--net", "nosuch"]),
    (["--net", "user,hostfwd=tcp:127.0.0.1:99999-:7"], ["--net", "99999"]),
    (["--net", "user,mac=12:34"], ["--net", "12:34"]),
    (["--console", "nosuch"], ["--console", "nosuch"]),
    (["--on-triple-fault", "nosuch"], ["--on-triple-fault", "nosuch"]),
    (["--debug-exit", "0x12345"], ["--debug-exit", "0x12345"]),
    (["stray"], ["stray"]),
])
def test_wrong_use_is_refused(arguments, says, kernel):
    refused("--kernel", kernel, *arguments, says=says)


def test_no_kernel_at_all():
    refused("--memory", "64M", says=["--kernel"])


def test_unknown_command():
    done = parat("nosuch")
    assert done.returncode == 2
    assert "nosuch" in done.stderr


@pytest.fixture
def bad_kernel(request, tmp_path, kernel):
    """A file that is no kernel, of the wanted kind."""
    path = tmp_path / "kernel"
    content = kernel.read_bytes()
    if request.param == "directory":
        path.mkdir()
    elif request.param == "empty":
        path.write_bytes(b"")
    elif request.param == "text":
        path.write_text("I am not a kernel.\n" * 1000)
    elif request.param == "zeros":
        path.write_bytes(bytes(1 << 20))
    elif request.param == "header only":
        path.write_bytes(content[:0x260])
    elif request.param == "truncated":
        path.write_bytes(content[:len(content) // 2])
    return path


@pytest.mark.parametrize("bad_kernel", ["missing", "directory", "empty", "text", "zeros", "header only",
                                        "truncated"], indirect=True)
def test_bad_kernel(bad_kernel):
    refused("--kernel", bad_kernel, status=(1,), says=["--kernel", bad_kernel])


@pytest.fixture
def bad_elf(request, tmp_path, vmlinux):
    """A damaged ELF kernel, of the wanted kind."""
    content = bytearray(vmlinux.read_bytes())
    if request.param == "header only":
        content = content[:64]
    elif request.param == "truncated":
        content = content[:len(content) // 3]
    elif request.param == "program headers outside":
        content[32:40] = (1 << 62).to_bytes(8, "little")
    elif request.param == "no PVH note":
        content = content.replace(b"\x04\0\0\0\x08\0\0\0\x12\0\0\0Xen\0", b"\x04\0\0\0\x08\0\0\0\x11\0\0\0Xen\0")
    path = tmp_path / "vmlinux"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("bad_elf", ["header only", "truncated", "program headers outside", "no PVH note"],
                         indirect=True)
def test_bad_elf_kernel(bad_elf):
    refused("--kernel", bad_elf, status=(1,), says=["--kernel", bad_elf])


def test_missing_initrd(kernel, tmp_path):
    path = tmp_path / "nosuch"
    refused("--kernel", kernel, "--initrd", path, status=(1,), says=["--initrd", path])


def test_initrd_that_does_not_fit(kernel, tmp_path):
    path = tmp_path / "initrd"
    with open(path, "wb") as file:
        file.truncate(200 << 20)
    refused("--kernel", kernel, "--memory", "128M", "--initrd", path, status=(1,),
            says=["--initrd", path])


def test_memory_below_what_the_kernel_needs(kernel):
    refused("--kernel", kernel, "--memory", "1M", status=(1, 2), says=["--memory"])


def test_memory_above_the_host(kernel):
    refused("--kernel", kernel, "--memory", "60000G", status=(1, 2), says=["--memory"])


@pytest.mark.parametrize("kind", ["missing", "directory"])
def test_bad_disk(kind, kernel, tmp_path):
    path = tmp_path / "disk"
    if kind == "directory":
        path.mkdir()
    refused("--kernel", kernel, "--disk", path, status=(1,), says=["--disk", path])


def test_disk_with_unknown_suboption(kernel, empty_disk):
    refused("--kernel", kernel, "--disk", f"{empty_disk},nosuch", says=["--disk", "nosuch"])


def test_disk_that_is_not_writable(kernel, empty_disk):
    empty_disk.chmod(0o444)
    if os.access(empty_disk, os.W_OK):
        pytest.skip("this user may write to everything")
    refused("--kernel", kernel, "--disk", empty_disk, status=(1,), says=["--disk", empty_disk])


def test_disk_in_use(boot, kernel, initrd, empty_disk):
    """A disk in use by a writer is locked; readers share one."""
    with boot("sleep", "--disk", empty_disk) as writer:
        refused_while_running(writer, kernel, empty_disk)


def refused_while_running(writer, kernel, disk):
    """Waits for the first sign of life, then tries the same disk again both ways."""
    writer.expect("parat-guest: init")
    refused("--kernel", kernel, "--disk", disk, status=(1,), says=["--disk", disk])
    refused("--kernel", kernel, "--disk", f"{disk},ro", status=(1,), says=["--disk", disk])


def test_readers_share_a_disk(boot, kernel, empty_disk):
    """Two VMs may have a disk read-only; meanwhile nobody may write to it."""
    disk = f"{empty_disk},ro"
    with boot("sleep", "--disk", disk) as first, boot("sleep", "--disk", disk) as second:
        first.expect("parat-guest: init")
        second.expect("parat-guest: init")
        refused("--kernel", kernel, "--disk", empty_disk, status=(1,), says=["--disk", empty_disk])


def test_port_in_use(kernel):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        refused("--kernel", kernel, "--net", f"user,hostfwd=tcp:127.0.0.1:{port}-:7", status=(1,),
                says=["--net", port])


def test_console_file_that_cannot_be_made(kernel, tmp_path):
    path = tmp_path / "nosuch" / "console"
    refused("--kernel", kernel, "--console", f"file={path}", status=(1,), says=["--console", path])


def test_stats_file_that_cannot_be_made(kernel, tmp_path):
    path = tmp_path / "nosuch" / "stats"
    refused("--kernel", kernel, "--stats", path, status=(1,), says=["--stats", path])


def test_no_process_stays_after_a_kill(boot):
    """When parat is killed its helper processes end too: their pipes close."""
    with boot("sleep", "--net", "user") as machine:
        machine.expect("parat-guest: init")
        tasks = pathlib.Path(f"/proc/{machine.process.pid}/task")
        listed = " ".join(children.read_text() for children in tasks.glob("*/children")).split()
        assert listed, "the network runs in a helper process"
        handles = [os.pidfd_open(int(pid)) for pid in listed]
        machine.process.send_signal(signal.SIGKILL)
        machine.process.wait()
        for handle in handles:
            wait_for_end(handle)
            os.close(handle)


def wait_for_end(pidfd):
    """A pidfd is readable when its process has ended."""
    assert select.select([pidfd], [], [], 10)[0], "a helper process outlived parat"


def test_help_names_every_option():
    done = parat("run", "--help")
    assert done.returncode == 0
    for option in ("name machine engine cpus memory cpu kernel initrd append disk net console debug-exit "
                   "on-triple-fault no-reboot stats").split():
        assert f"--{option}" in done.stdout
    done = parat("--help")
    assert done.returncode == 0
    assert "run" in done.stdout
