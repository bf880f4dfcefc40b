"""A guest that writes garbage to every device register and ring: no crash, no hang, no growth."""
import subprocess

import pytest

from vm import TOP, read_stats

GUEST = TOP / "build" / "tests" / "flat" / "garbage.elf"
MEMORY_MIB = 64
# Guest RAM, the code cache, and what AddressSanitizer adds.
SECONDS = {"build": 10, "build-asan": 30}
SLOWER = {"translate": 1, "lockstep": 6}
PEAK_MIB = {"build": MEMORY_MIB + 150, "build-asan": MEMORY_MIB + 500}


def stop(process):
    """A device may have written over the guest's code: then it loops, and two SIGTERMs must stop parat."""
    process.terminate()
    try:
        return process.communicate(timeout=1)
    except subprocess.TimeoutExpired:
        process.terminate()
        return process.communicate(timeout=30)


def run(folder, seed, tmp_path, mode="translate"):
    """One run; it must end by the guest's own word, a triple fault, a reset or SIGTERM, never by a crash."""
    disk, stats = tmp_path / "disk", tmp_path / "stats"
    disk.write_bytes(bytes(1 << 20))
    # Sanitizers make system calls of their own.
    sandbox = "off" if folder == "build-asan" else "on"
    with subprocess.Popen(
            [TOP / folder / "parat", "run", "--engine", f"soft,mode={mode}", "--kernel", GUEST, "--append", f"seed {seed}",
             "--memory", f"{MEMORY_MIB}M", "--disk", disk, "--net", "user", "--console", "stdio",
             "--no-reboot", "--debug-exit", "0xf4", "--stats", stats, "--sandbox", sandbox],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            output, errors = process.communicate(timeout=SECONDS[folder] * SLOWER[mode])
        except subprocess.TimeoutExpired:
            output, errors = stop(process)
    said = output.decode(errors="replace") + errors.decode(errors="replace")
    assert process.returncode in (0, 1, 4, 199), said[-2000:]
    assert "runtime error" not in said and "AddressSanitizer" not in said, said[-2000:]
    assert f"seed {seed}" in said
    assert read_stats(stats)["peak_rss_bytes"] < PEAK_MIB[folder] << 20
    return "still here" in said


@pytest.mark.parametrize("folder", ["build", "build-asan"])
def test_garbage(folder, tmp_path):
    """Most guests survive their own garbage (a device may write over them)."""
    if not (TOP / folder / "parat").exists():
        pytest.skip(f"{folder}/parat is not built")
    survived = sum(run(folder, seed, tmp_path) for seed in range(1, 9))
    assert survived >= 1


def test_garbage_in_lockstep(tmp_path):
    """The same, with what runs checked: devices write over code and data while it does."""
    survived = sum(run("build", seed, tmp_path, "lockstep") for seed in range(1, 3))
    assert survived >= 1


@pytest.mark.full
def test_much_garbage(tmp_path):
    """Two hundred more seeds."""
    assert sum(run("build", seed, tmp_path) for seed in range(100, 300)) >= 20
