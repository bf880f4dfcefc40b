"""Rows of bench/guest's program: what there are, and one pass over some of them somewhere.

The program prints "begin" and "end" lines (bench/guest/work.c). The time of a row is by the clock of the
machine that the program runs on; the host's clock, read when the lines arrive, is the check on it."""
import re
import subprocess
import time

from . import machines

_LINE = re.compile(r"parat-bench: (begin|end|failed) (\S+)\s*(.*)")
_RESULT = re.compile(r"ns=(\d+) processor=(\d+) sum=([0-9a-f]+)")
_DONE = "parat-bench: done"
# A clock is wrong if it differs from the host's by more than this share and this time.
_CLOCK_SHARE, _CLOCK_NS = 0.1, 50e6


class Row:
    """A row as the program lists it."""

    def __init__(self, group, name, unit, count):
        self.group = group
        self.name = name
        self.unit = unit
        self.count = int(count)


class Result:
    """One pass of a row, or why there is none.

    ns, processor_ns   by the clocks of the machine that ran it
    host_ns, host_processor_ns   time on the host, and what the process used of its processors
    checksum   of the results"""

    def __init__(self, failure=None, **found):
        self.failure = failure
        self.ns = found.get("ns")
        self.processor_ns = found.get("processor_ns")
        self.host_ns = found.get("host_ns")
        self.host_processor_ns = found.get("host_processor_ns")
        self.checksum = found.get("checksum")

    def clock_is_wrong(self):
        """Whether the machine's clock and the host's disagree."""
        difference = abs(self.host_ns - self.ns)
        return difference > _CLOCK_NS and difference > _CLOCK_SHARE * self.host_ns


def listed(root):
    """The rows of the program in the folder `root`, in the order in which it runs them."""
    done = subprocess.run([f"{root}/work", "--list"], stdout=subprocess.PIPE, text=True, check=True)
    return [Row(*line.split()) for line in done.stdout.splitlines()]


def run(start, names, boot_seconds, row_seconds):
    """One pass over rows: yields (name, Result) for each as it ends.

    start(names) starts a process that runs them in this order. When one hangs or the machine dies, that
    row has failed and another process goes on with the rest."""
    left = list(names)
    while left:
        with start(left) as running:
            try:
                for name, result in _passes(running, boot_seconds, row_seconds):
                    yield name, result
                    left.remove(name)
                running.finish(20)
                failure = "the program did not run it"
            except machines.BenchError as error:
                failure = str(error)
        if left:
            yield left.pop(0), Result(failure=failure)


def _passes(running, boot_seconds, row_seconds):
    """(name, Result) from the console of one process."""
    begun, begun_processor, seconds = 0, 0, boot_seconds
    while True:
        line = running.read_until(b"\n", seconds).decode(errors="replace").strip()
        now, processor = time.monotonic_ns(), running.processor_ns()
        if _DONE in line:
            return
        found = _LINE.search(line)
        if not found:
            continue
        word, name, rest = found.groups()
        seconds = row_seconds
        numbers = _RESULT.match(rest)
        if word == "begin":
            begun, begun_processor = now, processor
        elif word == "end" and numbers:
            yield name, Result(ns=int(numbers[1]), processor_ns=int(numbers[2]), checksum=numbers[3],
                               host_ns=now - begun, host_processor_ns=processor - begun_processor)
        else:
            yield name, Result(failure=f"{word} {rest}")
