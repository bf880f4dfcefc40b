"""The guest initrd: a static busybox, the virtio modules and the scripts init.sh and tasks.sh."""
import pathlib
import re
import stat
import subprocess

from . import cache, kernel, packages

_HERE = pathlib.Path(__file__).resolve().parent
_SCRIPTS = {"init": "init.sh", "tasks.sh": "tasks.sh", "udhcpc.sh": "udhcpc.sh"}
_MODULES = ("virtio_pci", "virtio_blk", "virtio_net", "virtio_rng", "virtio_console",
            "virtio_balloon", "button", "evdev")
_FOLDERS = ("bin", "dev", "etc", "lib", "lib/modules", "mnt", "proc", "root", "sys", "tmp")


def get():
    """The path of the initrd for the newest kernel; made when its parts have changed."""
    return _get(())


def get_stress():
    """The same with the program churn, for the task of that name."""
    return _get((_HERE / "programs" / "churn.c",))


def _get(sources):
    folder = kernel.get()
    binary = busybox()
    scripts = {name: (_HERE / source).read_bytes() for name, source in _SCRIPTS.items()}
    key = cache.key(pathlib.Path(__file__), *scripts.values(), *sources)
    result = cache.folder() / "initrd" / f"{folder.name}-{key}.cpio"
    with cache.lock():
        if result.exists():
            return result
        with cache.scratch() as scratch:
            programs = {path.stem: _compile(path, scratch / path.stem) for path in sources}
            made = scratch / "initrd"
            made.write_bytes(_archive(folder, binary, scripts, programs))
            return cache.publish(made, result)


def _compile(source, program):
    """A static program, since the guest has no libraries."""
    cache.run(["gcc", "-D_GNU_SOURCE", "-std=gnu11", "-O2", "-Wall", "-Wextra", "-static", "-pthread", "-s",
               "-o", program, source], f"cannot compile {source.name}")
    return program.read_bytes()


def busybox():
    """The path of Debian's static busybox."""
    result = cache.folder() / "packages" / "busybox"
    with cache.lock():
        if result.exists():
            return result
        with cache.scratch() as scratch, cache.step("fetching busybox"):
            packages.unpack("busybox-static", scratch)
            return cache.publish(scratch / "bin" / "busybox", result)


def _archive(kernel_folder, binary, scripts, programs):
    """The cpio archive. It is not compressed: unpacking it would cost the guest more than reading it."""
    archive = Cpio()
    for name in _FOLDERS:
        archive.add(name, stat.S_IFDIR | 0o755)
    archive.add("bin/busybox", stat.S_IFREG | 0o755, binary.read_bytes())
    applets = subprocess.run([binary, "--list"], stdout=subprocess.PIPE, check=True).stdout
    for applet in sorted(set(applets.decode().split()) - {"busybox"}):
        archive.add(f"bin/{applet}", stat.S_IFLNK | 0o777, b"busybox")
    for name, content in programs.items():
        archive.add(f"bin/{name}", stat.S_IFREG | 0o755, content)
    for name, content in scripts.items():
        archive.add(name, stat.S_IFREG | 0o755, content)
    base = f"lib/modules/{kernel_folder.name}"
    archive.add(base, stat.S_IFDIR | 0o755)
    modules = Modules(kernel_folder / "modules")
    lines = []
    for name in modules.closure(_MODULES):
        archive.add(f"{base}/{name}.ko", stat.S_IFREG | 0o644, modules.content(name))
        needed = modules.closure(modules.needs(name))
        # modprobe loads a line's dependencies from right to left.
        lines.append(f"{name}.ko: " + " ".join(f"{other}.ko" for other in reversed(needed)))
    archive.add(f"{base}/modules.dep", stat.S_IFREG | 0o644, ("\n".join(lines) + "\n").encode())
    return archive.finish()


class Modules:
    """A tree of kernel modules. The package has no modules.dep, so the modules are asked themselves."""

    def __init__(self, tree):
        self._paths = {}
        for path in tree.glob("kernel/**/*.ko*"):
            self._paths[path.name.split(".")[0].replace("-", "_")] = path

    def content(self, name):
        """The module as the kernel's loader takes it: not compressed."""
        path = self._paths.get(name)
        if path is None:
            raise cache.GuestError(f"the kernel has no module {name}")
        if path.suffix == ".ko":
            return path.read_bytes()
        return cache.run(["xz", "-dc", path], f"cannot unpack {path.name}")

    def needs(self, name):
        """The names of the modules that a module names as its dependencies."""
        found = re.search(rb"\0depends=([^\0]*)\0", self.content(name))
        names = found.group(1).decode() if found else ""
        return [other.replace("-", "_") for other in names.split(",") if other]

    def closure(self, names):
        """The modules and all that they need, in the order in which they can be loaded."""
        order = []
        for name in names:
            for other in self.closure(self.needs(name)) + [name]:
                if other not in order:
                    order.append(other)
        return order


class Cpio:
    """Writes the kernel's initramfs format: Linux Documentation/driver-api/early-userspace."""

    def __init__(self):
        self._out = bytearray()
        self._count = 0

    def add(self, name, mode, content=b""):
        """Adds a file, folder or symbolic link owned by root."""
        self._count += 1
        encoded = name.encode() + b"\0"
        fields = (self._count, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(encoded), 0)
        self._out += b"070701" + b"".join(b"%08X" % field for field in fields) + encoded
        self._pad()
        self._out += content
        self._pad()

    def _pad(self):
        self._out += bytes(-len(self._out) % 4)

    def finish(self):
        """The archive with its trailer."""
        self.add("TRAILER!!!", 0)
        return bytes(self._out)
