"""The programs that bench/run compares, and one run of one of them."""
import contextlib
import json
import os
import pathlib
import select
import shutil
import signal
import subprocess
import time

INIT_MARKER = b"parat-guest: init"
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


class BenchError(Exception):
    """The sentence for the user."""


class Shape:
    """The VM that every program boots."""

    def __init__(self, kernel, initrd, append, cpus=1, memory="512M", **devices):
        self.kernel = kernel
        self.initrd = initrd
        self.append = append
        self.cpus = str(cpus)
        self.memory = memory
        self.net = devices.pop("net", False)
        self.disk = devices.pop("disk", None)
        if devices:
            raise TypeError(f"no such devices: {devices}")

    @property
    def ram_bytes(self):
        """The guest's RAM."""
        return int(self.memory[:-1]) * _UNITS[self.memory[-1]]


class Parat:
    """parat on its software CPU. Its kernel starts with the first guest instruction (--stats)."""

    name = "parat"
    kernel_marker = None

    def __init__(self, program, engine="soft", options=()):
        self._program = program
        self._engine = engine
        self._options = list(options)

    def check(self):
        """It must be built."""
        if not pathlib.Path(self._program).exists():
            raise BenchError(f"{self._program} is not built")

    def command(self, shape, stats):
        """The command of one boot; `stats` is where --stats goes."""
        command = [self._program, "run", "--engine", self._engine, "--name", "bench",
                   "--cpus", shape.cpus, "--memory", shape.memory, "--kernel", shape.kernel, "--initrd", shape.initrd,
                   "--append", shape.append, "--stats", stats, *self._options]
        if shape.net:
            command += ["--net", "user"]
        if shape.disk:
            command += ["--disk", shape.disk]
        return command

    @staticmethod
    def read_stats(stats):
        """What --stats said at the end."""
        try:
            return json.loads(stats.read_text())
        except (OSError, ValueError) as error:
            raise BenchError(f"parat left no usable --stats: {error!r}") from error

    def first_instruction_ns(self, stats):
        """Nanoseconds from the process's start to the first guest instruction."""
        counters = self.read_stats(stats)
        if "startup_ns" not in counters:
            raise BenchError("parat's --stats have no startup_ns")
        return counters["startup_ns"]


class Qemu:
    """QEMU's software CPU. Its firmware says on the serial port when it starts the kernel."""

    kernel_marker = b"Booting from ROM"

    def __init__(self, name="qemu", cpu="max"):
        self.name = name
        self._cpu = cpu

    @staticmethod
    def check():
        """It must be installed."""
        if not shutil.which("qemu-system-x86_64"):
            raise BenchError("there is no qemu-system-x86_64; tools/deps bench installs it")

    def command(self, shape, _stats):
        """The command of one boot, with the devices that parat has."""
        command = ["qemu-system-x86_64", "-M", "q35", "-accel", "tcg", "-cpu", self._cpu,
                   "-m", shape.memory, "-smp", shape.cpus, "-nographic", "-no-reboot",
                   "-kernel", shape.kernel, "-initrd", shape.initrd, "-append", shape.append]
        if shape.net:
            command += ["-netdev", "user,id=n", "-device", "virtio-net-pci,netdev=n"]
        if shape.disk:
            command += ["-drive", f"if=none,id=d,format=raw,file={shape.disk}",
                        "-device", "virtio-blk-pci,drive=d"]
        return command

    @staticmethod
    def first_instruction_ns(_stats):
        """Not known."""
        return None


class Running:
    """One process with its console on pipes; ended by its pid in any case."""

    def __init__(self, command, kernel_marker=None, cwd=None):
        self._kernel_marker = kernel_marker
        self._console = b""
        self._start = time.monotonic()
        self._process = subprocess.Popen([str(word) for word in command], stdin=subprocess.PIPE,
                                         stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=cwd)
        self.pid = self._process.pid
        self.kernel_start = None

    def __enter__(self):
        return self

    def __exit__(self, *_details):
        # Nothing is read any more: a child of a child may hold the pipes open.
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()

    def seconds(self):
        """Seconds since the process started."""
        return time.monotonic() - self._start

    def processor_ns(self):
        """Nanoseconds of processor time that all its threads have used."""
        # The number of another process's clock: Linux include/linux/posix-timers_types.h.
        try:
            return time.clock_gettime_ns((~self.pid << 3) | 2)
        except OSError:
            return 0

    def read_until(self, marker, seconds):
        """Takes the console up to and with `marker`, which must come within `seconds` from now."""
        deadline = time.monotonic() + seconds
        while marker not in self._console:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._process.stdout], [], [], left)[0]:
                raise BenchError(f"no {marker!r} within {seconds} s; the console ends: "
                                 f"{self._console[-300:]!r}")
            data = os.read(self._process.stdout.fileno(), 65536)
            if not data:
                errors = self._process.stderr.read()[-300:]
                raise BenchError(f"ended before {marker!r}: {self._console[-300:]!r} {errors!r}")
            self._console += data
            if self.kernel_start is None and self._kernel_marker and self._kernel_marker in self._console:
                self.kernel_start = self.seconds()
        taken, self._console = self._console.split(marker, 1)
        return taken + marker

    def finish(self, seconds):
        """Lets the program end by itself for so long, then stops it."""
        try:
            self._process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            self.stop()

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
