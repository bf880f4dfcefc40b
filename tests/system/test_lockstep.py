"""Whole systems in lockstep: each unit of translated code is checked against the interpreter.

A divergence ends the VM with a failure of the host, so that the guest does not get to its end."""
import pytest

from vm import BOOT_SECONDS, Vm, read_stats

LOCKSTEP = ("--engine", "soft,mode=lockstep")


def checked(stats, least):
    """At least so many instructions were compared, and nearly all that ran."""
    lockstep = read_stats(stats)["lockstep"]
    print(lockstep)
    assert lockstep["divergences"] == 0
    assert lockstep["instructions"] > least
    assert lockstep["unchecked"] < lockstep["instructions"] / 100


def test_boot(boot, tmp_path):
    """A Debian kernel to its init and back, one CPU."""
    stats = tmp_path / "stats"
    with boot("info", *LOCKSTEP, "--stats", stats, seconds=3 * BOOT_SECONDS) as machine:
        machine.wait(0)
        machine.task_ok("info")
    checked(stats, 1e9)


@pytest.mark.full
def test_two_cpus_with_devices(boot, tmp_path, ext4_disk):
    """Shell commands on two CPUs, a disk and a network."""
    stats = tmp_path / "stats"
    with boot("smp,stress,net,ping,files", "--cpus", "2", "--net", "user", "--disk", ext4_disk, *LOCKSTEP,
              "--stats", stats, words="parat.size=1", seconds=6 * BOOT_SECONDS) as machine:
        machine.wait(0)
        machine.task_ok("smp", "stress", "net", "ping", "files")
    checked(stats, 1e9)


@pytest.mark.full
def test_compile_and_shell(kernel, bench_initrd, tmp_path):
    """gcc's compiler proper and shell commands: the rows of bench/guest."""
    stats = tmp_path / "stats"
    append = "console=ttyS0 quiet panic=-1 rows=cc1,shell passes=1"
    with Vm("--memory", "512M", "--kernel", kernel, "--initrd", bench_initrd, "--append", append,
            "--no-reboot", *LOCKSTEP, "--stats", stats, seconds=4 * BOOT_SECONDS) as machine:
        machine.expect("parat-bench: end cc1 ")
        machine.expect("parat-bench: end shell ")
        machine.wait(0)
    checked(stats, 2e9)
