"""The programs that bench/run compares, and one boot in one of them."""
import json
import os
import pathlib
import select
import shutil
import signal
import subprocess
import time

_INIT_MARKER = b"parat-guest: init"
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


class BenchError(Exception):
    """The sentence for the user."""


class Shape:
    """The VM that every program boots."""

    def __init__(self, kernel, initrd, cpus, memory, seconds):
        self.kernel = kernel
        self.initrd = initrd
        self.cpus = str(cpus)
        self.memory = memory
        self.seconds = seconds
        self.ram_bytes = int(memory[:-1]) * _UNITS[memory[-1]]
        self.append = "console=ttyS0 quiet panic=-1 parat.do=sleep"


class Parat:
    """parat on its software CPU. Its kernel starts with the first guest instruction (--stats)."""

    name = "parat"
    kernel_marker = None

    def __init__(self, program):
        self._program = program

    def available(self):
        """Whether it is built."""
        if not pathlib.Path(self._program).exists():
            raise BenchError(f"{self._program} is not built")
        return True

    def command(self, shape, stats):
        """The command of one boot."""
        return [self._program, "run", "--engine", "soft", "--name", "bench", "--cpus", shape.cpus,
                "--memory", shape.memory, "--kernel", shape.kernel, "--initrd", shape.initrd,
                "--append", shape.append, "--net", "user", "--stats", stats]

    @staticmethod
    def first_instruction_ns(stats):
        """Nanoseconds from the process's start to the first guest instruction."""
        try:
            return json.loads(stats.read_text())["startup_ns"]
        except (OSError, KeyError, ValueError) as error:
            raise BenchError(f"parat left no usable --stats: {error!r}") from error


class Qemu:
    """QEMU's software CPU. Its firmware says on the serial port when it starts the kernel."""

    name = "qemu-tcg"
    kernel_marker = b"Booting from ROM"

    @staticmethod
    def available():
        """Whether it is installed."""
        if not shutil.which("qemu-system-x86_64"):
            raise BenchError("there is no qemu-system-x86_64; tools/deps bench installs it")
        return True

    @staticmethod
    def command(shape, _stats):
        """The command of one boot, with the devices that parat has."""
        return ["qemu-system-x86_64", "-M", "q35", "-accel", "tcg", "-cpu", "max", "-m", shape.memory,
                "-smp", shape.cpus, "-nographic", "-no-reboot", "-kernel", shape.kernel,
                "-initrd", shape.initrd, "-append", shape.append, "-netdev", "user,id=n",
                "-device", "virtio-net-pci,netdev=n"]

    @staticmethod
    def first_instruction_ns(_stats):
        """Not known."""
        return None


class Boot:
    """One process, from its start to the marker; ended by its pid in any case."""

    def __init__(self, command, kernel_marker):
        self._kernel_marker = kernel_marker
        self._start = time.monotonic()
        self._process = subprocess.Popen([str(word) for word in command], stdin=subprocess.PIPE,
                                         stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.pid = self._process.pid
        self.kernel_start = None

    def __enter__(self):
        return self

    def __exit__(self, *_details):
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate()

    def wait_for_init(self, seconds):
        """Seconds from the start of the process to the marker."""
        console = b""
        while _INIT_MARKER not in console:
            left = self._start + seconds - time.monotonic()
            if left <= 0 or not select.select([self._process.stdout], [], [], left)[0]:
                raise BenchError(f"no marker within {seconds} s; the console ends: {console[-300:]!r}")
            data = os.read(self._process.stdout.fileno(), 65536)
            if not data:
                errors = self._process.stderr.read()[-300:]
                raise BenchError(f"ended before the marker: {console[-300:]!r} {errors!r}")
            console += data
            if self.kernel_start is None and self._kernel_marker and self._kernel_marker in console:
                self.kernel_start = time.monotonic() - self._start
        return time.monotonic() - self._start

    def stop(self):
        """Ends the program as a user would: two SIGTERM stop parat at once and let it write --stats."""
        for _ in range(2):
            if self._process.poll() is None:
                self._process.send_signal(signal.SIGTERM)
                time.sleep(0.05)
        try:
            self._process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
