"""The parts of a guest, from tools/guest."""
import functools
import pathlib
import subprocess

from .machines import BenchError

TOP = pathlib.Path(__file__).resolve().parent.parent.parent


@functools.lru_cache(maxsize=None)
def path(what):
    """The path of a part of the guest, made if need be."""
    done = subprocess.run([TOP / "tools" / "guest", what], stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise BenchError(f"cannot make the guest's {what}")
    return done.stdout.strip()
