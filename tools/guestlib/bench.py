"""The benchmark guest: bench/guest's program, busybox and gcc's cc1 in one folder and in one initrd."""
import pathlib
import re
import shutil
import stat

from . import cache, initrd

_SOURCES = pathlib.Path(__file__).resolve().parent.parent.parent / "bench" / "guest"
# Plain x86-64 without the compiler's own vectors: a scalar row is scalar, and the same everywhere.
_COMPILE = ["gcc", "-D_GNU_SOURCE", "-std=gnu11", "-O2", "-march=x86-64", "-fno-tree-vectorize",
            "-ffp-contract=off", "-Wall", "-Wextra", "-Wshadow", "-Wno-unused-parameter", "-static",
            "-pthread", "-I/usr/include/lua5.4"]
_LIBRARIES = ["-llua5.4", "-lsqlite3", "-llzma", "-lz", "-lm"]
# What cc1 compiles: one of the sources with all that it includes.
_INPUT = "work_library.c"


def get():
    """The path of the initrd, whose first program is the benchmark."""
    return _folder() / "initrd.cpio"


def get_root():
    """The folder with the same files, to run the program natively in."""
    return _folder() / "root"


def _folder():
    compiler = cache.run(["gcc", "--version"], "cannot ask gcc").decode().splitlines()[0]
    sources = sorted(_SOURCES.glob("*.[ch]"))
    key = cache.key(pathlib.Path(__file__), compiler, *sources)
    result = cache.folder() / "bench" / key
    busybox = initrd.busybox()
    with cache.lock():
        if (result / "initrd.cpio").exists():
            return result
        with cache.scratch() as scratch, cache.step("making the benchmark guest"):
            made = scratch / "made"
            root = made / "root"
            (root / "bin").mkdir(parents=True)
            shutil.copy(busybox, root / "bin" / "busybox")
            _compile(root / "work", sources)
            _add_cc1(root / "cc1")
            (made / "initrd.cpio").write_bytes(_archive(root))
            made.chmod(0o755)
            return cache.publish(made, result)


def _compile(program, sources):
    """The program is static: it runs in a guest that has nothing else."""
    files = [path for path in sources if path.suffix == ".c"]
    cache.run([*_COMPILE, "-o", program, *files, *_LIBRARIES],
              "cannot compile bench/guest (tools/deps bench installs its libraries)")


def _add_cc1(folder):
    """gcc's compiler proper with the libraries it needs and something to compile."""
    folder.mkdir()
    problem = "cannot take gcc's cc1"
    cc1 = cache.run(["gcc", "-print-prog-name=cc1"], problem).decode().strip()
    shutil.copy(cc1, folder / "cc1")
    for library in re.findall(r"(/\S+) \(0x", cache.run(["ldd", cc1], problem).decode()):
        name = pathlib.Path(library).name
        shutil.copy(library, folder / ("ld.so" if name.startswith("ld-linux") else name))
    cache.run([*_COMPILE, "-E", "-o", folder / "input.i", _SOURCES / _INPUT],
              "cannot preprocess bench/guest (tools/deps bench installs its libraries)")


def _archive(root):
    """All files of the folder as an initrd whose /init is the program."""
    archive = initrd.Cpio()
    for name in ("dev", "proc", "sys", "tmp"):
        archive.add(name, stat.S_IFDIR | 0o755)
    for path in sorted(root.glob("**/*")):
        name = str(path.relative_to(root))
        if path.is_dir():
            archive.add(name, stat.S_IFDIR | 0o755)
        else:
            archive.add(name, stat.S_IFREG | 0o755, path.read_bytes())
    archive.add("init", stat.S_IFLNK | 0o777, b"work")
    return archive.finish()
