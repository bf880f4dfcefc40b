"""The lab: an emulated PC with AMD-V whose Linux runs parat on KVM. Used by tools/lab."""
import contextlib
import pathlib
import re
import shutil
import stat
import subprocess
import threading

from . import cache, disk, initrd, kernel

_HERE = pathlib.Path(__file__).resolve().parent
_TOP = _HERE.parent.parent
_JOBS = _HERE / "lab-jobs.sh"
_EXPECTED = _TOP / "tests" / "flat" / "expected"
_FLAT_SECONDS = 60
_MODULES = ("irqbypass", "kvm", "kvm_amd", "virtio_pci", "virtio_blk")
_QEMU = ("qemu-system-x86_64", "-M", "q35,accel=tcg", "-cpu", "max", "-nographic", "-no-reboot",
         "-nodefaults", "-serial", "stdio")
_FIRMWARE_END = b"Booting from ROM.."  # its last line; a dot or an end follow only sometimes
_OWN_SECONDS = 15
_FOLDERS = ("bin", "dev", "flat", "guest", "proc", "root", "sys", "tmp", "lib", "lib64", "usr",
            "usr/lib", "etc")
_MEMORY = "2500M"
_START_SECONDS = 60  # from QEMU's start to the first job
# A job that hangs is ended by the lab's own clock; this is how much later we end the whole PC, when that
# stands still (see lab-init.sh). It is started again for what is left.
_GRACE_SECONDS = 30
_STARTS_MAX = 3
# Guests that the emulated AMD-V runs otherwise than a CPU. injected: an interrupt is now and then taken
# right behind STI, when another one had ended the run there.
_LEFT_OUT = ("injected",)


def limits():
    """{job: its limit in seconds}: the flat guests, then the jobs in the order of their file."""
    found = re.findall(r"^job_(\w+)\(\) \{ # (\d+) s$", _JOBS.read_text(), re.MULTILINE)
    flat = {f"flat_{path.stem}": _FLAT_SECONDS for path in sorted(_EXPECTED.glob("*.txt"))
            if path.stem not in _LEFT_OUT}
    return flat | {name: int(seconds) for name, seconds in found}


def jobs():
    """The names of all jobs."""
    return list(limits())


def run(program, wanted, arguments):
    """Runs the jobs in the emulated PC and prints what they say; 0 if all went well."""
    if not shutil.which(_QEMU[0]):
        print("skipped: there is no qemu-system-x86_64; tools/deps lab installs it")
        print(f"0 passed, 0 failed, {len(wanted)} skipped")
        return 0
    said = {}
    with cache.scratch() as scratch:
        image = scratch / "lab.cpio"
        image.write_bytes(_archive(program, arguments.cpus))
        for start in range(_STARTS_MAX):
            left = [job for job in wanted if job not in said]
            if start and left:
                print(f"lab: the emulated PC did not go on; starting it again for {' '.join(left)}")
            if left:
                said |= _Pc(_command(image, left, arguments.cpus), arguments.keep_log).watch()
    return _report(wanted, said)


def _command(image, wanted, cpus):
    words = f"console=ttyS0 panic=-1 quiet no_timer_check lab.jobs={','.join(wanted)}"
    return [*_QEMU, "-smp", str(cpus), "-m", _MEMORY, "-kernel", kernel.get() / "vmlinuz",
            "-initrd", image, "-append", words, *_disk(wanted)]


def _disk(wanted):
    """A Debian root disk for the jobs that boot one; what they write is thrown away."""
    if "debian" not in wanted:
        return []
    return ["-drive", f"file={disk.get()},format=raw,if=virtio,snapshot=on"]


class _Pc:
    """The emulated PC while it runs. One that says nothing for longer than its job may take is ended."""

    def __init__(self, command, log):
        self._command = [str(word) for word in command]
        self._log = log
        self._timer = None

    def watch(self):
        """Runs it to its end, printing what it says; returns {job: "ok", "FAILED" or "skipped"}."""
        said = {}
        with contextlib.ExitStack() as stack:
            keep = stack.enter_context(open(self._log, "a", encoding="utf-8")) if self._log else None
            process = stack.enter_context(subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT))
            stack.callback(process.kill)
            self._allow(process, _START_SECONDS)
            for raw in process.stdout:
                line = raw.decode(errors="replace").rstrip("\r\n")
                print(line, flush=True)
                if keep:
                    print(line, file=keep, flush=True)
                self._hear(process, line, said)
            process.wait()
            self._timer.cancel()
        return said

    def _hear(self, process, line, said):
        found = re.match(r"lab: (\w+) (begins|ok|FAILED|skipped)\b", line)
        if found and found.group(2) == "begins":
            self._allow(process, limits()[found.group(1)] + _GRACE_SECONDS)
        elif found:
            said[found.group(1)] = found.group(2)
            self._allow(process, _GRACE_SECONDS)

    def _allow(self, process, seconds):
        if self._timer:
            self._timer.cancel()
        self._timer = threading.Timer(seconds, process.kill)
        self._timer.daemon = True
        self._timer.start()


def _report(wanted, said):
    passed = sum(said.get(job) == "ok" for job in wanted)
    skipped = sum(said.get(job) == "skipped" for job in wanted)
    for job in wanted:
        if job not in said:
            print(f"lab: {job} did not end")
        elif said[job] == "skipped":
            print(f"skipped: {job}: the emulated CPU cannot run it")
    failed = len(wanted) - passed - skipped
    print(f"{passed} passed, {failed} failed, {skipped} skipped")
    return 1 if failed else 0


def _archive(program, cpus):
    """The PC's initrd: busybox, modules, parat with its libraries, guests, and lab-init.sh."""
    archive = initrd.Cpio()
    made = set()
    for name in _FOLDERS:
        _add_folder(archive, made, name)
    busybox = initrd.busybox()
    archive.add("bin/busybox", stat.S_IFREG | 0o755, busybox.read_bytes())
    applets = subprocess.run([busybox, "--list"], stdout=subprocess.PIPE, check=True).stdout
    for applet in sorted(set(applets.decode().split()) - {"busybox"}):
        archive.add(f"bin/{applet}", stat.S_IFLNK | 0o777, b"busybox")
    archive.add("init", stat.S_IFREG | 0o755, (_HERE / "lab-init.sh").read_bytes())
    archive.add("jobs.sh", stat.S_IFREG | 0o755, _JOBS.read_bytes())
    _add_modules(archive)
    programs = [program] + [path for path in (program.parent / "tests" / "moves",
                                              program.parent / "tests" / "test_kvm") if path.exists()]
    for path in programs:
        archive.add(f"bin/{path.name}", stat.S_IFREG | 0o755, path.read_bytes())
    _add_libraries(archive, made, programs)
    _add_guests(archive, program.parent, cpus)
    return archive.finish()


def _add_folder(archive, made, name):
    for parent in [*reversed(pathlib.PurePath(name).parents), pathlib.PurePath(name)]:
        if str(parent) not in (".", *made):
            made.add(str(parent))
            archive.add(str(parent), stat.S_IFDIR | 0o755)


def _add_modules(archive):
    modules = initrd.Modules(kernel.get() / "modules")
    order = modules.closure(_MODULES)
    for name in order:
        archive.add(f"lib/{name}.ko", stat.S_IFREG | 0o644, modules.content(name))
    archive.add("lib/order", stat.S_IFREG | 0o644, ("\n".join(order) + "\n").encode())


def _add_libraries(archive, made, programs):
    """What the programs are linked with, where the loader looks for it."""
    paths = set()
    for program in programs:
        listed = cache.run(["ldd", program], f"cannot ask ldd about {program}").decode()
        paths.update(re.findall(r"(/\S+) \(0x", listed))
    for path in sorted(paths):
        _add_folder(archive, made, str(pathlib.PurePath(path).parent).lstrip("/"))
        archive.add(path.lstrip("/"), stat.S_IFREG | 0o755, pathlib.Path(path).read_bytes())


def _add_guests(archive, build, cpus):
    archive.add("guest/kernel", stat.S_IFREG | 0o644, (kernel.get() / "vmlinuz").read_bytes())
    archive.add("guest/initrd", stat.S_IFREG | 0o644, initrd.get().read_bytes())
    for expected in sorted(_EXPECTED.glob("*.txt")):
        guest = build / "tests" / "flat" / f"{expected.stem}.elf"
        archive.add(f"flat/{guest.name}", stat.S_IFREG | 0o644, guest.read_bytes())
        archive.add(f"flat/{guest.stem}.txt", stat.S_IFREG | 0o644, expected.read_bytes())
        archive.add(f"flat/{guest.stem}.cpu", stat.S_IFREG | 0o644, _own_text(guest, cpus))
    idle = build / "tests" / "flat" / "idle.elf"
    archive.add(f"flat/{idle.name}", stat.S_IFREG | 0o644, idle.read_bytes())


def _own_text(guest, cpus):
    """What the guest prints when it runs on the emulated CPU itself, without KVM and parat. With several
    CPUs QEMU executes atomic operations in another way."""
    version = cache.run([_QEMU[0], "--version"], "cannot ask QEMU for its version")
    result = cache.folder() / "lab" / cache.key(pathlib.Path(__file__), guest, version, str(cpus))
    if not result.exists():
        command = [*_QEMU, "-smp", str(cpus), "-m", "128M", "-kernel", guest,
                   "-device", "isa-debug-exit,iobase=0xf4,iosize=4"]
        try:
            done = subprocess.run([str(word) for word in command], stdin=subprocess.DEVNULL,
                                  stdout=subprocess.PIPE, timeout=_OWN_SECONDS, check=False)
            text = done.stdout
        except subprocess.TimeoutExpired as expired:
            text = expired.stdout or b""  # it needs what the emulated PC does not have
        with cache.scratch() as scratch:
            (scratch / "text").write_bytes(text.replace(b"\r", b"").partition(_FIRMWARE_END)[2].lstrip(b".\n"))
            cache.publish(scratch / "text", result)
    return result.read_bytes()
