"""State taken out and put into a fresh VM at seeded points of a boot that then completes."""
import subprocess

import pytest

from vm import TOP

MOVES = TOP / "build" / "tests" / "moves"


def run(kernel, initrd, *options, seconds):
    """Runs build/tests/moves, which exits 0 only if all moves were made and the guest powered off."""
    done = subprocess.run([MOVES, "--kernel", kernel, "--initrd", initrd, *options],
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True, timeout=seconds, check=False)
    print(done.stdout)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("mode", ["translate", "interpret"])
@pytest.mark.parametrize("cpus", ["1", "2"])
def test_boot_survives_moves(kernel, initrd, cpus, mode):
    """Some seconds each, translated; about half a minute, interpreted."""
    run(kernel, initrd, "--moves", "100", "--seed", "7", "--cpus", cpus, "--engine", f"soft,mode={mode}",
        "--mean-us", "5000" if mode == "translate" else "20000", seconds=240)


@pytest.mark.full
def test_boot_survives_moves_in_lockstep(kernel, initrd):
    """Some minutes. What a move loses of the state is seen by the next unit that looks at it."""
    run(kernel, initrd, "--moves", "100", "--seed", "7", "--engine", "soft,mode=lockstep",
        "--mean-us", "100000", seconds=900)


@pytest.mark.full
def test_boot_survives_a_thousand_moves(kernel, initrd):
    """Some minutes."""
    run(kernel, initrd, "--moves", "1000", "--seed", "11", "--mean-us", "4000", seconds=900)
