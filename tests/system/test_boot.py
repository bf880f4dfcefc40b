"""Whole boots of the Debian kernel with the tasks of the guest initrd (tools/guestlib/tasks.sh)."""
import ctypes
import errno
import signal
import socket
import struct
import subprocess
import time

import pytest

from vm import BOOT_SECONDS, read_stats

TOUR = "info smp hotplug stress memory time rng net ping".split()


@pytest.mark.quick
def test_two_cpus_boot_and_power_off(boot, tmp_path):
    """bzImage, two CPUs, statistics."""
    stats = tmp_path / "stats"
    with boot("info,smp", "--cpus", "2", "--stats", stats) as machine:
        machine.wait(0)
        machine.task_ok("info", "smp")
        machine.said("parat-guest: cpus 2$")
    result = read_stats(stats)
    assert result["engine"] == "soft"
    assert result["end"] == "poweroff"
    assert result["tlb"]["fills"] > result["tlb"]["walks"] > 0
    assert result["code"]["instructions"] > result["code"]["units"] > 0
    assert result["code"]["resets"] == 0


@pytest.mark.parametrize("cpus", ["1", "4"])
def test_code_cache_overflows(boot, tmp_path, cpus):
    """All host code is dropped hundreds of times in the middle of work."""
    stats = tmp_path / "stats"
    with boot("info,smp,stress,memory", "--cpus", cpus, "--engine", "soft,code-cache=1M", "--stats", stats,
              seconds=2 * BOOT_SECONDS) as machine:
        machine.wait(0)
        machine.task_ok("info", "smp", "stress", "memory")
    code = read_stats(stats)["code"]
    assert code["resets"] >= 20
    assert code["bytes"] <= code["limit_bytes"] == int(cpus) << 20


@pytest.fixture(scope="module")
def tour(boot):
    """One boot with four CPUs that plays most tasks; the tests below look at what it said."""
    with boot(",".join(TOUR), "--cpus", "4", "--net", "user", seconds=2 * BOOT_SECONDS) as machine:
        machine.wait(0)
        yield machine


@pytest.mark.parametrize("task", TOUR)
def test_task(tour, task):
    tour.task_ok(task)


def test_tour_found_four_cpus(tour):
    tour.said("parat-guest: cpus 4$")


def test_tour_got_its_address(tour):
    tour.said(r"parat-guest: address 10\.0\.2\.15/24$")


def test_guest_knows_the_date(tour):
    then = int(tour.said(r"parat-guest: date (\d+)$").group(1))
    assert abs(time.time() - then) < 2 * BOOT_SECONDS + 60


def test_pvh(boot, vmlinux):
    """The same kernel as ELF, through its PVH entry, one CPU."""
    with boot("info", "--cpus", "1", image=vmlinux) as machine:
        machine.wait(0)
        machine.task_ok("info")
        machine.said("parat-guest: cpus 1$")


def test_disk(boot, empty_disk):
    """What the guest wrote is in the file; the serial number reaches the guest."""
    with boot("disk,discard,disksum", "--disk", f"{empty_disk},serial=parat-1") as machine:
        machine.wait(0)
        machine.task_ok("disk", "discard", "disksum")
        machine.said(f"disk /dev/vda {64 << 20} bytes, serial parat-1$")
        seen = machine.said("disksum ([0-9a-f]{32})$").group(1)
    ours = subprocess.run(["md5sum", empty_disk], stdout=subprocess.PIPE, text=True, check=True).stdout
    assert ours.split()[0] == seen


@pytest.mark.parametrize("how", ["denied", "threads", "direct"])
def test_disk_without_io_uring_and_past_the_cache(how, boot, empty_disk):
    """Containers forbid io_uring: the worker threads then do the same. direct goes past the page cache."""
    words = {"denied": "", "threads": ",io=threads", "direct": ",direct"}[how]
    deny = deny_io_uring if how == "denied" else None
    with boot("disk,discard", "--disk", f"{empty_disk}{words}", preexec_fn=deny) as machine:
        machine.wait(0)
        machine.task_ok("disk", "discard")


def deny_io_uring():
    """In the child before exec: io_uring_setup fails with EPERM, as under a container's seccomp filter."""
    load_number, jump_if_equal, give_back = 0x20, 0x15, 0x06
    program = b"".join(struct.pack("<HBBI", *line) for line in (
        (load_number, 0, 0, 0),
        (jump_if_equal, 0, 1, 425),
        (give_back, 0, 0, 0x00050000 | errno.EPERM),
        (give_back, 0, 0, 0x7FFF0000)))
    code = ctypes.create_string_buffer(program)
    filter_program = struct.pack("<HxxxxxxQ", 4, ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)
    no_new_privileges, set_seccomp, filter_mode = 38, 22, 2
    if libc.prctl(no_new_privileges, 1, 0, 0, 0) or libc.prctl(set_seccomp, filter_mode, filter_program):
        raise OSError(ctypes.get_errno(), "seccomp")


def test_read_only_disk(boot, empty_disk):
    """A read-only disk stays as it was, and the guest gets an error."""
    before = empty_disk.read_bytes()
    with boot("diskfull", "--disk", f"{empty_disk},ro") as machine:
        machine.wait(0)
    assert empty_disk.read_bytes() == before


def test_write_workload_leaves_a_clean_file_system(boot, ext4_disk):
    with boot("files", "--cpus", "2", "--disk", f"{ext4_disk}") as machine:
        machine.wait(0)
        machine.task_ok("files")
    check = subprocess.run(["/usr/sbin/e2fsck", "-f", "-n", ext4_disk], stdout=subprocess.PIPE,
                           stderr=subprocess.STDOUT, text=True, check=False)
    assert check.returncode == 0, check.stdout


def test_full_host_disk_is_an_io_error(boot, tmp_path):
    """The guest gets an I/O error; parat goes on to a clean end."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder],
                             stderr=subprocess.PIPE, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"cannot mount a small file system: {mounted.stderr.strip()}")
    try:
        disk = folder / "disk.img"
        with open(disk, "wb") as file:
            file.truncate(64 << 20)
        with boot("diskfull,info", "--disk", disk) as machine:
            machine.wait(0)
            machine.said("I/O error")
            machine.task_ok("info")
    finally:
        # Lazily: the kernel lets go of an io_uring's files a moment after the process has ended.
        subprocess.run(["umount", "--lazy", folder], check=True)


def test_host_reaches_guest_through_forwarded_port(boot):
    """TCP from the host into the guest and back; the guest then powers off."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    net = f"user,hostfwd=tcp:127.0.0.1:{port}-:7000"
    with boot("net,echo", "--net", net) as machine:
        machine.expect("parat-guest: listening on 7000")
        assert echo(port, b"to the guest and back\n") == b"to the guest and back\n"
        machine.wait(0)
        machine.task_ok("net", "echo")


def echo(port, data):
    """Sends data and reads as much back. The guest may not listen yet: then the connection just ends."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
            received = b""
            try:
                connection.sendall(data)
                connection.shutdown(socket.SHUT_WR)
                while block := connection.recv(4096):
                    received += block
            except OSError:
                pass  # reset, at any of these calls
            if received:
                return received
    raise AssertionError("no answer from the guest")


def test_host_loopback_only_when_asked(boot):
    """A server on the host's loopback answers at 10.0.2.2 with host-loopback=on and not without."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        words = f"parat.url=http://10.0.2.2:{server.getsockname()[1]}/"
        with boot("net", "--net", "user", words=words) as machine:
            machine.wait(0)
            machine.said(r"parat-guest: address 10\.0\.2\.15/24$")
            machine.said("parat-guest: net FAILED")
        server.settimeout(0)
        with pytest.raises(BlockingIOError):
            server.accept()


def test_sigterm_presses_the_power_button(boot):
    with boot("button", "--cpus", "2") as machine:
        machine.expect("parat-guest: waiting for the power button")
        machine.process.send_signal(signal.SIGTERM)
        machine.wait(0)
        machine.task_ok("button")


def test_second_sigterm_stops_a_guest_that_does_not_listen(boot, tmp_path):
    stats = tmp_path / "stats"
    with boot("spin", "--stats", stats) as machine:
        machine.expect("parat-guest: spinning")
        machine.process.send_signal(signal.SIGTERM)
        machine.expect_from_parat("power button")  # two pending signals of a kind are one
        machine.process.send_signal(signal.SIGTERM)
        machine.wait(0)
    assert read_stats(stats)["end"] == "user"


def test_reboot_ends_parat_when_told(boot, tmp_path):
    stats = tmp_path / "stats"
    with boot("reboot", "--no-reboot", "--stats", stats) as machine:
        machine.wait(0)
    assert read_stats(stats)["end"] == "reset"


def test_crash_resets_and_boots_again(boot):
    """A kernel panic with panic=-1 resets the machine; the same process boots it again."""
    with boot("crash", "--cpus", "2", seconds=2 * BOOT_SECONDS) as machine:
        machine.expect("parat-guest: init", count=2)


@pytest.mark.full
def test_twenty_reboots_in_one_process(boot):
    with boot("reboot", "--cpus", "2", seconds=20 * BOOT_SECONDS) as machine:
        machine.expect("parat-guest: init", count=20)


@pytest.mark.full
@pytest.mark.parametrize("cpus", [1, 2, 4])
def test_stress(boot, cpus):
    """The load of the tour, longer, with each number of CPUs."""
    with boot("stress,stress,stress,smp", "--cpus", cpus, seconds=3 * BOOT_SECONDS) as machine:
        machine.wait(0)
        machine.task_ok("stress", "smp")
        assert "FAILED" not in machine.console
