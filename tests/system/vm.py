"""A parat process under test: started, watched on its console, and ended, always within a time limit."""
import json
import os
import pathlib
import re
import subprocess
import threading
import time

TOP = pathlib.Path(__file__).resolve().parent.parent.parent
PROGRAM = os.environ.get("PARAT", str(TOP / "build" / "parat"))
# The time that one boot may take. The interpreter needs about half a minute on an idle machine.
BOOT_SECONDS = int(os.environ.get("PARAT_TEST_BOOT_SECONDS", "180"))


def parat(*arguments, seconds=20, **options):
    """Runs parat to its end; returns subprocess's result with text output."""
    return subprocess.run([PROGRAM, *map(str, arguments)], stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace",
                          timeout=seconds, check=False, **options)


class Vm:
    """`parat run ARGUMENTS...` with the console on pipes. Use it in a `with` block.

    Nothing here sleeps for a guess: waits end when the console says something, when the process ends,
    or when the time is up; then the process is killed and the test fails with the console's end."""

    def __init__(self, *arguments, seconds=BOOT_SECONDS, **options):
        self._deadline = time.monotonic() + seconds
        self._changed = threading.Condition()
        self._console = ""
        self._position = 0
        self._ended = False
        self.process = subprocess.Popen(
            [PROGRAM, "run", *map(str, arguments)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, **options)
        self._errors = []
        self._threads = [threading.Thread(target=self._read_console, daemon=True),
                         threading.Thread(target=self._read_errors, daemon=True)]
        for thread in self._threads:
            thread.start()
        self._timer = threading.Timer(seconds, self.process.kill)
        self._timer.daemon = True
        self._timer.start()

    def __enter__(self):
        return self

    def __exit__(self, *_details):
        self._timer.cancel()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for thread in self._threads:
            thread.join(5)
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            try:
                pipe.close()
            except BrokenPipeError:
                pass

    def _read_console(self):
        while True:
            data = os.read(self.process.stdout.fileno(), 65536)
            with self._changed:
                self._console += data.decode(errors="replace").replace("\r", "")
                self._ended = not data
                self._changed.notify_all()
            if not data:
                return

    def _read_errors(self):
        for line in self.process.stderr:
            with self._changed:
                self._errors.append(line.decode(errors="replace"))
                self._changed.notify_all()

    @property
    def console(self):
        """All that the console has said."""
        with self._changed:
            return self._console

    @property
    def errors(self):
        """All that parat itself has said."""
        return "".join(self._errors)

    def expect(self, pattern, count=1):
        """Waits until the console, from where the last expect ended, matches; returns the last match."""
        found = None
        for _ in range(count):
            found = self._expect_one(re.compile(pattern, re.MULTILINE))
        return found

    def expect_from_parat(self, text):
        """Waits until parat itself has said this."""
        with self._changed:
            while text not in self.errors:
                left = self._deadline - time.monotonic()
                if left <= 0:
                    raise AssertionError(f"parat never said {text!r}\n{self._tail()}")
                self._changed.wait(left)

    def _expect_one(self, pattern):
        with self._changed:
            while True:
                found = pattern.search(self._console, self._position)
                if found:
                    self._position = found.end()
                    return found
                left = self._deadline - time.monotonic()
                if self._ended or left <= 0:
                    why = "the console ended" if self._ended else "time is up"
                    raise AssertionError(f"no {pattern.pattern!r}: {why}\n{self._tail()}")
                self._changed.wait(left)

    def _tail(self):
        lines = self._console.splitlines()[-30:]
        return "\n".join(["--- console's end:", *lines, "--- parat said:", self.errors])

    def send(self, text):
        """Types on the console."""
        self.process.stdin.write(text.encode())
        self.process.stdin.flush()

    def wait(self, status=0):
        """Waits for the end of the process, which must have this exit status."""
        self.process.wait(timeout=max(1, self._deadline + 5 - time.monotonic()))
        for thread in self._threads:
            thread.join(5)
        if self.process.returncode != status:
            raise AssertionError(f"exit status {self.process.returncode}, not {status}\n{self._tail()}")

    def task_ok(self, *names):
        """Checks that the guest initrd said these of its tasks went well."""
        for name in names:
            if f"\nparat-guest: {name} ok" not in self.console:
                raise AssertionError(f"task {name} did not say ok\n{self._tail()}")

    def said(self, pattern):
        """The first match of a pattern in all that the console has said."""
        found = re.search(pattern, self.console, re.MULTILINE)
        if not found:
            raise AssertionError(f"the console never said {pattern!r}\n{self._tail()}")
        return found


def read_stats(path):
    """The JSON that --stats wrote."""
    return json.loads(pathlib.Path(path).read_text())
