"""bench/run soft: every goal of the software CPU in one run, parat, QEMU and native side by side."""
import os
import pathlib
import platform
import re
import statistics
import subprocess
import tempfile
import time

from . import boot, goals, guests, machines, memory, rows, table

_APPEND = "console=ttyS0 quiet panic=-1 rows="
_DISK_APPEND = "console=ttyS0 root=/dev/vda"
_LOGIN_PROMPT = b"login: "
_PARALLEL = "parallel"
_SHORT_NS = 20e6
# Rows that are no work of bench/guest: whole boots.
_BOOT_ROWS = (rows.Row("boot", "boot", "boot", 1), rows.Row("login", "login", "boot", 1),
              rows.Row("memory", goals.LOGIN_MEMORY, "MiB", 1))


class Native:
    """The benchmark program on the host itself."""

    name = goals.NATIVE

    @staticmethod
    def check():
        """It is always there."""


def every_row(root):
    """All rows, in the order of the table."""
    groups = [goal.group for goal in goals.GOALS] + [_PARALLEL, "memory"]
    return sorted(list(_BOOT_ROWS) + rows.listed(root), key=lambda row: groups.index(row.group))


def show_rows():
    """Prints them."""
    for row in every_row(guests.path("bench-root")):
        print(f"{row.group:10} {row.name:14} {row.count} x {row.unit}")


class Bench:
    """The samples of one run of the benchmark, and what takes them."""

    def __init__(self, arguments):
        self._arguments = arguments
        self._root = guests.path("bench-root")
        self._checksums = {}
        self.samples = {}
        self.stats = []
        self.problems = []
        self.rows = self._chosen(every_row(self._root))
        self._folder = tempfile.TemporaryDirectory()
        self._stats_file = pathlib.Path(self._folder.name) / "stats"

    def close(self):
        """Removes its temporary files."""
        self._folder.cleanup()

    def _chosen(self, every):
        names = {row.name for row in every} | {row.group for row in every}
        for option in (self._arguments.only, self._arguments.skip):
            unknown = set(option) - names
            if unknown:
                raise machines.BenchError(f"no row or group {', '.join(sorted(unknown))}; there are: "
                                          + " ".join(sorted(names)))
        only, skip = set(self._arguments.only), set(self._arguments.skip)
        return [row for row in every if (not only or {row.name, row.group} & only)
                and not {row.name, row.group} & skip]

    def turn(self, program):
        """Each chosen row once in one program."""
        def names(wanted):
            return [row.name for row in self.rows if wanted(row.group)]

        if program.name == goals.QEMU_ERMS:
            self._work(program, names(lambda group: group == "stream"), 1)
            return
        boots = {row.group for row in _BOOT_ROWS}
        if program.name != goals.NATIVE and names(lambda group: group == "boot"):
            self._boot(program)
        self._work(program, names(lambda group: group not in boots | {_PARALLEL}), 1)
        self._work(program, names(lambda group: group == _PARALLEL), 2)
        if program.name != goals.NATIVE and names(lambda group: group in ("login", "memory")):
            self._login(program)

    def _add(self, program, name, value):
        self.samples.setdefault(program.name, {}).setdefault(name, []).append(value)
        row = next((row for row in self.rows if row.name == name), None)
        if row:
            text = table.value_text(row, value) + ("" if row.unit == "MiB" else f" per {row.unit}")
            print(f"  {program.name:10} {name:14} {text}", flush=True)

    def _problem(self, text):
        self.problems.append(text)
        print(f"  {text}", flush=True)

    def _boot(self, program):
        try:
            result = boot.sample(program, boot.shape_of("kernel"), self._arguments.boot_limit)
        except machines.BenchError as error:
            self._problem(f"{program.name} boot: {error}")
            return
        key = "processor_s" if self._arguments.processor_time else "start_to_init_s"
        self._add(program, "boot", result[key] * 1e9)

    def _start(self, program, cpus):
        """What rows.run calls to start a process."""
        def start(names):
            if program.name == goals.NATIVE:
                return machines.Running([f"{self._root}/work", *names], cwd=self._root)
            shape = machines.Shape(guests.path("kernel"), guests.path("bench"),
                                   _APPEND + ",".join(names), cpus)
            return machines.Running(program.command(shape, self._stats_file))
        return start

    def _work(self, program, names, cpus):
        self._stats_file.unlink(missing_ok=True)
        for name, result in rows.run(self._start(program, cpus), names, self._arguments.boot_limit,
                                     self._arguments.row_limit):
            if result.failure:
                self._problem(f"{program.name} {name}: {result.failure}")
                continue
            self._add(program, name, self._time(program, cpus, result))
            if result.clock_is_wrong():
                self._problem(f"{program.name} {name}: its clock says {result.ns / 1e9:.3f} s, "
                              f"the host's {result.host_ns / 1e9:.3f} s")
            expected, by = self._checksums.setdefault(name, (result.checksum, program.name))
            if result.checksum != expected:
                self._problem(f"{program.name} {name}: its result is {result.checksum}, "
                              f"that of {by} was {expected}")
        if self._stats_file.exists():
            self.stats.append({"rows": names, **program.read_stats(self._stats_file)})

    def _time(self, program, cpus, result):
        """The time that counts. Processor time says nothing about what two processors gain, and that of a
        VM is read when its lines arrive, too late for what is over in a moment."""
        if not self._arguments.processor_time or cpus > 1 or result.ns < _SHORT_NS:
            return result.ns
        return result.processor_ns if program.name == goals.NATIVE else result.host_processor_ns

    def _login(self, program):
        """Debian from disk to its login prompt, as ./quickstart boots it, and the memory it takes then."""
        disk = pathlib.Path(self._folder.name) / "disk.img"
        subprocess.run(["cp", "--reflink=auto", "--sparse=always", guests.path("disk"), disk], check=True)
        shape = machines.Shape(guests.path("kernel"), guests.path("initrd"), _DISK_APPEND, 2, net=True,
                               disk=disk)
        try:
            with machines.Running(program.command(shape, self._stats_file)) as running:
                running.read_until(_LOGIN_PROMPT, self._arguments.boot_limit)
                self._add(program, "login", running.seconds() * 1e9)
                overhead = memory.overhead_bytes(running.pid, shape.ram_bytes)
                self._add(program, goals.LOGIN_MEMORY, overhead / (1 << 20))
        except machines.BenchError as error:
            self._problem(f"{program.name} login: {error}")
        finally:
            disk.unlink()

    def medians(self):
        """{program: {row: median}}."""
        return {program: {name: statistics.median(values) for name, values in found.items()}
                for program, found in self.samples.items()}


def _output(*command):
    """The first line that a program prints, or "" if it cannot."""
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                              cwd=guests.TOP, check=False)
    except OSError:
        return ""
    return done.stdout.split("\n")[0]


def machine():
    """What the figures come from."""
    cpu = re.search(r"^model name\s*: (.*)$", pathlib.Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return {"date": time.strftime("%Y-%m-%d %H:%M"), "cpu": cpu[1] if cpu else platform.machine(),
            "cpus": os.cpu_count(), "host": platform.release(),
            "guest": pathlib.Path(guests.path("kernel")).parent.name,
            "parat": _output("git", "describe", "--always", "--dirty"),
            "qemu": _output("qemu-system-x86_64", "--version")}


def _programs(arguments):
    every = [Native(), machines.Parat(arguments.program, arguments.engine, arguments.parat_options),
             machines.Qemu(goals.QEMU, "max"), machines.Qemu(goals.QEMU_ERMS, "max,-erms")]
    unwanted = set(goals.QEMU_PROGRAMS if arguments.no_qemu else ())
    unwanted |= {goals.NATIVE} if arguments.no_native else set()
    unwanted |= {goals.PARAT} if arguments.no_parat else set()
    programs = [program for program in every if program.name not in unwanted]
    for program in programs:
        program.check()
    return programs


def run(arguments):
    """The benchmark. Returns what --json writes and whether all rows ran and agreed."""
    programs = _programs(arguments)
    bench = Bench(arguments)
    about = machine()
    print("; ".join(f"{key} {value}" for key, value in about.items()))
    loads = [os.getloadavg()]
    try:
        for turn in range(arguments.runs):
            print(f"run {turn + 1} of {arguments.runs}, load average {os.getloadavg()[0]:.2f}", flush=True)
            for program in programs:
                bench.turn(program)
            loads.append(os.getloadavg())
    finally:
        bench.close()
    medians = bench.medians()
    verdicts = goals.judge(medians, {row.name: row.group for row in bench.rows})
    table.print_samples(bench.rows, bench.samples)
    table.print_rows(bench.rows, medians)
    table.print_goals(verdicts)
    print("\nload average " + " ".join(f"{load[0]:.2f}" for load in loads))
    for problem in bench.problems:
        print(f"PROBLEM: {problem}")
    about["times"] = "processor" if arguments.processor_time else "wall"
    result = {"machine": about, "units": {row.name: [row.group, row.unit, row.count] for row in bench.rows},
              "samples": bench.samples, "medians": medians, "load_averages": loads,
              "goals": [vars(verdict) | {"meets": verdict.meets} for verdict in verdicts],
              "problems": bench.problems, "parat_stats": bench.stats}
    return result, not bench.problems
