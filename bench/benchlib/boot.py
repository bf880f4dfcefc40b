"""bench/run boot: parat and QEMU boot the same kernel with the same small initrd."""
import os
import pathlib
import statistics
import tempfile

from . import guests, machines, memory

_APPEND = "console=ttyS0 quiet panic=-1 parat.do=sleep"


def sample(program, shape, seconds):
    """One boot: a dict of what was measured."""
    with tempfile.TemporaryDirectory() as folder:
        stats = pathlib.Path(folder) / "stats"
        with machines.Running(program.command(shape, stats), program.kernel_marker) as running:
            running.read_until(machines.INIT_MARKER, seconds)
            marker = running.seconds()
            processor_ns = running.processor_ns()
            overhead = memory.overhead_bytes(running.pid, shape.ram_bytes)
            running.stop()
        result = {"start_to_init_s": marker, "processor_s": processor_ns / 1e9,
                  "overhead_mib": overhead / (1 << 20)}
        first_ns = program.first_instruction_ns(stats)
        if first_ns is not None:
            result["first_instruction_ms"] = first_ns / 1e6
            result["kernel_to_init_s"] = marker - first_ns / 1e9
        elif running.kernel_start is not None:
            result["kernel_to_init_s"] = marker - running.kernel_start
        return result


def shape_of(kernel, cpus=1, memory_size="512M"):
    """The VM that is booted; `kernel` is the name of a part of the guest."""
    return machines.Shape(guests.path(kernel), guests.path("initrd"), _APPEND, cpus, memory_size, net=True)


def show(samples):
    """A table of all samples and the medians, then the ratios of the medians."""
    medians = {}
    for name, results in samples.items():
        print(f"\n{name}")
        for key in sorted({key for result in results for key in result}):
            values = [result[key] for result in results if key in result]
            medians[name, key] = statistics.median(values)
            listed = " ".join(f"{value:8.2f}" for value in values)
            print(f"  {key:22} median {medians[name, key]:8.2f}   samples {listed}")
    print()
    for key in ("kernel_to_init_s", "start_to_init_s", "overhead_mib"):
        if ("parat", key) in medians and ("qemu", key) in medians:
            ratio = medians["parat", key] / medians["qemu", key]
            print(f"{key}: parat is {ratio:.2f} times QEMU TCG")


def run(arguments):
    """The benchmark. Returns what --json writes."""
    shape = shape_of(arguments.kernel, arguments.cpus, arguments.memory)
    programs = [machines.Parat(arguments.program, arguments.engine, arguments.parat_options),
                machines.Qemu()]
    for program in programs:
        program.check()
    samples = {program.name: [] for program in programs}
    print(f"load average {os.getloadavg()[0]:.2f}; {os.cpu_count()} CPUs; guest {arguments.cpus} CPUs, "
          f"{arguments.memory}; {pathlib.Path(shape.kernel).parent.name}")
    for turn in range(arguments.runs):
        for program in programs:
            result = sample(program, shape, arguments.limit)
            samples[program.name].append(result)
            print(f"run {turn + 1} {program.name}: {result['start_to_init_s']:.2f} s to init, "
                  f"load average {os.getloadavg()[0]:.2f}", flush=True)
    show(samples)
    return samples
