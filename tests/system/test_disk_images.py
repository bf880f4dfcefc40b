"""`parat disk` as a user runs it, beside qemu-img, and VMs on qcow2 images."""
import hashlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import time

import pexpect
import pytest

from vm import BOOT_SECONDS, PROGRAM, Vm, parat

MIB = 1 << 20


def disk(*arguments, status=0):
    """`parat disk ARGUMENTS...` must end with this status; what it printed on both."""
    done = parat("disk", *arguments, seconds=60)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


def qemu_img(*arguments, status=0):
    """The same with qemu-img; skips the test where there is none."""
    program = shutil.which("qemu-img")
    if not program:
        pytest.skip("no qemu-img (Debian's qemu-utils)")
    done = subprocess.run([program, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True, timeout=60, check=False)
    assert done.returncode == status, done.stdout
    return done.stdout


def info(path):
    """What `parat disk info --json` says."""
    return json.loads(disk("info", "--json", path))


@pytest.fixture
def sparse(tmp_path):
    """A raw disk of 1 GiB with three islands of data."""
    path = tmp_path / "sparse.raw"
    with open(path, "wb") as file:
        for offset in (0, 300 * MIB + 4096, 1023 * MIB):
            file.seek(offset)
            file.write(os.urandom(MIB))
    return path


def digest(path):
    """A checksum of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@pytest.mark.quick
def test_create_info_resize_check(tmp_path):
    image = tmp_path / "a.qcow2"
    assert disk("create", image, "1G") == ""
    told = info(image)
    assert told["format"] == "qcow2" and told["virtual_bytes"] == 1 << 30
    assert told["qcow2"]["version"] == 3 and told["qcow2"]["cluster_bytes"] == 65536
    qemu_img("check", image)
    disk("resize", image, "+1G")
    assert json.loads(qemu_img("info", "--output=json", image))["virtual-size"] == 2 << 30
    assert "--shrink" in disk("resize", image, "-512M", status=2)
    disk("resize", "--shrink", image, "-512M")
    assert info(image)["virtual_bytes"] == 1536 * MIB
    qemu_img("check", image)
    assert "no errors" in disk("check", image)
    assert "lazy" in disk("create", "--lazy-refcounts", "--cluster-size", "4K", tmp_path / "b.qcow2", "1M") + \
        disk("info", tmp_path / "b.qcow2")
    disk("create", tmp_path / "c.img", "10M")
    assert (tmp_path / "c.img").stat().st_size == 10 * MIB and info(tmp_path / "c.img")["format"] == "raw"


@pytest.mark.quick
def test_backing_file_is_seen_from_the_images_folder(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "base.raw").write_bytes(b"x" * MIB)
    overlay = tmp_path / "sub" / "over.qcow2"
    disk("create", "--backing", "base.raw", overlay)
    told = info(overlay)
    assert told["virtual_bytes"] == MIB
    assert told["qcow2"]["backing"] == {"name": "base.raw", "path": str(tmp_path / "sub" / "base.raw"), "format": "raw"}
    disk("convert", "-O", "raw", overlay, tmp_path / "flat.raw")
    assert (tmp_path / "flat.raw").read_bytes() == b"x" * MIB
    qemu_img("check", overlay)


def test_convert_keeps_contents_and_holes(sparse, tmp_path):
    qcow2, back = tmp_path / "a.qcow2", tmp_path / "back.raw"
    disk("convert", sparse, qcow2)
    assert qcow2.stat().st_size < 5 * MIB
    qemu_img("check", qcow2)
    qemu_img("compare", "-f", "raw", "-F", "qcow2", sparse, qcow2)
    disk("convert", qcow2, back)
    assert back.stat().st_size == 1 << 30 and back.stat().st_blocks * 512 < 5 * MIB
    assert digest(back) == digest(sparse)
    qemu_img("convert", "-c", "-O", "qcow2", "-o", "compression_type=zstd", sparse, tmp_path / "z.qcow2")
    disk("convert", "-O", "raw", tmp_path / "z.qcow2", tmp_path / "z.raw")
    assert digest(tmp_path / "z.raw") == digest(sparse)


@pytest.mark.quick
@pytest.mark.parametrize("arguments, status, says", [
    (["create"], 2, ["parat disk create FILE [SIZE]"]),
    (["create", "a.qcow2"], 2, ["the size is missing"]),
    (["create", "a.qcow2", "banana"], 1, ["banana", "no size"]),
    (["create", "a.qcow2", "1G", "more"], 2, ["more", "too many"]),
    (["create", "old.raw", "1G"], 1, ["old.raw", "there already"]),
    (["create", "nosuch/a.qcow2", "1G"], 1, ["nosuch/a.qcow2", "no such folder"]),
    (["create", "--cluster-size", "3K", "a.qcow2", "1G"], 2, ["--cluster-size 3K", "power of two"]),
    (["create", "--cluster-size", "512", "a.qcow2", "1T"], 1, ["a.qcow2", "512 bytes do not allow"]),
    (["create", "--backing", "nosuch", "a.qcow2"], 1, ["nosuch", "no such file"]),
    (["create", "--backing", "old.raw", "a.img"], 2, ["--backing", "raw images have none"]),
    (["create", "--format", "vmdk", "a", "1G"], 2, ["--format vmdk", "raw and qcow2"]),
    (["info", "nosuch"], 1, ["nosuch", "no such file"]),
    (["info", "--format", "qcow2", "old.raw"], 1, ["old.raw", "is no qcow2 image"]),
    (["convert", "old.raw"], 2, ["parat disk convert IN OUT"]),
    (["convert", "-O", "vdi", "old.raw", "b"], 2, ["-O vdi", "raw and qcow2"]),
    (["convert", "old.raw", "old.raw"], 1, ["old.raw", "there already"]),
    (["check", "old.raw"], 1, ["old.raw", "is raw"]),
    (["resize", "old.raw", "-2G"], 1, ["-2G", "nothing sensible"]),
    (["nosuch"], 2, ["disk nosuch", "no such command"]),
])
def test_wrong_use_is_refused(arguments, status, says, tmp_path):
    (tmp_path / "old.raw").write_bytes(bytes(MIB))
    done = parat("disk", *arguments, cwd=tmp_path)
    assert done.returncode == status and done.stdout == "", done.stdout + done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    for word in says:
        assert word in done.stderr, done.stderr
    assert os.listdir(tmp_path) == ["old.raw"]


@pytest.mark.quick
def test_check_tells_leaks_and_damage_by_its_status(tmp_path):
    image = tmp_path / "a.qcow2"
    (tmp_path / "a.raw").write_bytes(os.urandom(MIB))
    disk("convert", tmp_path / "a.raw", image)
    content = bytearray(image.read_bytes())
    table = int.from_bytes(content[48:56], "big")
    block = int.from_bytes(content[table:table + 8], "big")
    content[block + 2 * 100 + 1] = 1
    image.write_bytes(content)
    assert "cluster 100 is leaked" in disk("check", image, status=3)
    content[block + 2 * 6:block + 2 * 6 + 2] = b"\0\0"
    image.write_bytes(content)
    assert json.loads(disk("check", "--json", image, status=4))["bad_refcounts"] == 1
    assert "all mended" in disk("check", "--repair", image)
    assert "no errors" in disk("check", image)
    qemu_img("check", image)


class Paused:
    """A convert of a large disk, that was seen to be under way."""

    def __init__(self, folder):
        self.source = folder / "large.raw"
        self.target = folder / "out" / "large.qcow2"
        self.target.parent.mkdir()
        chunk = os.urandom(4 * MIB)
        with open(self.source, "wb") as file:
            for _ in range(64):
                file.write(chunk)
        self.process = subprocess.Popen([PROGRAM, "disk", "convert", self.source, self.target],
                                        stdin=subprocess.DEVNULL)
        deadline = time.monotonic() + 30
        while not self.started() and self.process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.001)
        self.process.send_signal(signal.SIGSTOP)

    def started(self):
        """Whether something of the output is there."""
        return any(path.stat().st_size > MIB for path in self.target.parent.iterdir())

    def end(self, number):
        """Sends a signal and waits for the end; the exit status."""
        self.process.send_signal(number)
        self.process.send_signal(signal.SIGCONT)
        return self.process.wait(timeout=30)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_convert_leaves_nothing(number, tmp_path):
    paused = Paused(tmp_path)
    assert paused.end(number) == -number
    assert list(paused.target.parent.iterdir()) == []


def test_killed_convert_leaves_no_half_image(tmp_path):
    paused = Paused(tmp_path)
    paused.end(signal.SIGKILL)
    assert not paused.target.exists()
    disk("convert", paused.source, paused.target)
    qemu_img("compare", "-f", "raw", "-F", "qcow2", paused.source, paused.target)


@pytest.mark.quick
def test_progress_bar_on_a_terminal(sparse, tmp_path):
    child = pexpect.spawn(PROGRAM, ["disk", "convert", str(sparse), str(tmp_path / "a.qcow2")], timeout=60)
    child.expect(r"\[#+ *\] +\d+ %")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
    done = parat("disk", "convert", sparse, tmp_path / "b.qcow2")
    assert done.stderr == "" and done.stdout == ""


@pytest.mark.quick
def test_a_guest_cannot_turn_its_raw_disk_into_qcow2(kernel, tmp_path):
    secret, raw = tmp_path / "secret", tmp_path / "disk.img"
    secret.write_bytes(b"s" * MIB)
    disk("create", "--format", "qcow2", "--backing", secret, raw)  # as a guest could write it
    for options in ("", ",ro"):
        done = parat("run", "--kernel", kernel, "--disk", f"{raw}{options}")
        assert done.returncode == 1 and "format=raw" in done.stderr and str(raw) in done.stderr
    done = parat("run", "--kernel", kernel, "--disk", f"{raw},format=vmdk")
    assert done.returncode == 2 and "format=" in done.stderr
    assert "begins with a qcow2 header" in disk("convert", "-O", "raw", raw, tmp_path / "out", status=1)


def test_disk_tasks_on_qcow2(boot, tmp_path):
    """Writes past the caches, and a discard that gives the clusters back."""
    image = tmp_path / "disk.qcow2"
    disk("create", image, "64M")
    with boot("disk,discard,disksum", "--cpus", "2", "--disk", f"{image},serial=q1") as machine:
        machine.wait()
        machine.task_ok("disk", "discard", "disksum")
        machine.said(f"disk /dev/vda {64 << 20} bytes, serial q1$")
        seen = machine.said("disksum ([0-9a-f]{32})$").group(1)
    qemu_img("check", image)
    disk("check", image)
    disk("convert", image, tmp_path / "out.raw")
    assert hashlib.md5((tmp_path / "out.raw").read_bytes()).hexdigest() == seen
    assert json.loads(disk("check", "--json", image))["data_clusters"] == 0


def log_in(machine):
    """To the shell of the Debian disk."""
    machine.expect("login: ")
    machine.send("root\n")
    machine.expect("Password: ")
    machine.send("parat\n")
    machine.expect("# ")


def test_debian_on_qcow2_with_a_backing_file(kernel, initrd, debian_disk, tmp_path):
    """Two boots: what the first wrote the second finds; the backing file stays as it was."""
    before = digest(debian_disk)
    overlay = tmp_path / "over.qcow2"
    disk("create", "--backing", debian_disk.name, overlay)
    options = ["--memory", "512M", "--kernel", kernel, "--initrd", initrd, "--append",
               "console=ttyS0 quiet root=/dev/vda", "--disk", overlay]
    with Vm(*options, seconds=3 * BOOT_SECONDS) as machine:
        log_in(machine)
        machine.send("seq 1 300000 >/root/numbers && md5sum /root/numbers && poweroff\n")
        seen = machine.expect(r"([0-9a-f]{32})  /root/numbers").group(1)
        machine.wait()
    for check in (lambda: disk("check", overlay), lambda: qemu_img("check", overlay)):
        check()
    assert digest(debian_disk) == before
    with Vm(*options, seconds=3 * BOOT_SECONDS) as machine:
        log_in(machine)
        machine.send("md5sum /root/numbers && poweroff\n")
        assert machine.expect(r"([0-9a-f]{32})  /root/numbers").group(1) == seen
        machine.wait()
    qemu_img("check", overlay)
    flat = pathlib.Path(tmp_path / "flat.raw")
    disk("convert", overlay, flat)
    fsck = subprocess.run(["/usr/sbin/e2fsck", "-f", "-n", flat], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True, check=False)
    assert fsck.returncode == 0, fsck.stdout
