"""Debian from disk to a login, and a file fetched over the NAT network: what ./quickstart shows."""
import os
import subprocess

from vm import BOOT_SECONDS, PROGRAM, TOP


def test_session_on_debian(kernel, initrd, debian_disk):
    """tools/quickstart-session plays its session on a copy of the disk."""
    command = [PROGRAM, "run", "--name", "debian", "--cpus", "2", "--memory", "512M", "--kernel", kernel,
               "--initrd", initrd, "--append", "console=ttyS0 root=/dev/vda", "--disk", debian_disk,
               "--net", "user,host-loopback=on"]
    environment = {**os.environ, "PARAT_QUICKSTART_TIMEOUT": str(2 * BOOT_SECONDS)}
    done = subprocess.run([TOP / "tools" / "quickstart-session", "--", *map(str, command)],
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True, errors="replace", env=environment, timeout=5 * BOOT_SECONDS,
                          check=False)
    assert done.returncode == 0, "\n".join(done.stdout.splitlines()[-40:])
    check = subprocess.run(["/usr/sbin/e2fsck", "-f", "-n", debian_disk], stdout=subprocess.PIPE,
                           stderr=subprocess.STDOUT, text=True, check=False)
    assert check.returncode == 0, check.stdout
