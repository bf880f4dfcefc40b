"""The cache folder: results appear in it complete or not at all, made by one process at a time."""
import contextlib
import fcntl
import hashlib
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import threading
import time


class GuestError(Exception):
    """The sentence for the user."""


def folder():
    """The cache folder, made if need be."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    path = pathlib.Path(base) / "parat"
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise GuestError(f"cannot make the cache folder {path}: {error.strerror}") from error
    return path


def say(text):
    """Progress, for people: standard error."""
    print(f"guest: {text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def step(text):
    """Announces a step that takes long, says every ten seconds that it goes on, and its seconds at the
    end."""
    say(f"{text} ...")
    start = time.monotonic()
    done = threading.Event()

    def tell():
        while not done.wait(10):
            say(f"{text}: {time.monotonic() - start:.0f} s so far")

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    try:
        yield
    finally:
        done.set()
        teller.join()
    say(f"{text}: {time.monotonic() - start:.1f} s")


@contextlib.contextmanager
def lock():
    """One process at a time makes things; the second one then finds them made."""
    with open(folder() / "lock", "w", encoding="ascii") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another process that makes guests")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def scratch():
    """A folder beside the results (the same file system, so that rename works), removed at the end."""
    path = pathlib.Path(tempfile.mkdtemp(prefix="making-", dir=folder()))
    path.chmod(0o755)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def publish(made, result):
    """Moves a finished file or folder to its place."""
    result.parent.mkdir(parents=True, exist_ok=True)
    os.rename(made, result)
    return result


def key(*parts):
    """A short name for what a result was made from: str, bytes or the content of a Path."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, pathlib.Path):
            part = part.read_bytes()
        digest.update(part if isinstance(part, bytes) else part.encode())
        digest.update(b"\0")
    return digest.hexdigest()[:10]


def run(command, problem, timeout=600, **options):
    """Runs a command; its output is shown only when it fails. Returns standard output."""
    command = [str(word) for word in command]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, timeout=timeout, check=False, **options)
    except FileNotFoundError as error:
        raise GuestError(f"{problem}: there is no program '{command[0]}'; "
                         "tools/deps guest installs it") from error
    except subprocess.TimeoutExpired as error:
        raise GuestError(f"{problem}: {command[0]} took more than {timeout} s") from error
    if done.returncode:
        text = (done.stderr or done.stdout).decode(errors="replace").strip().splitlines()
        tail = "\n  ".join(text[-8:])
        raise GuestError(f"{problem}: {command[0]} failed with status {done.returncode}\n  {tail}")
    return done.stdout
