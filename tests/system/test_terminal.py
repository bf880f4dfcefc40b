"""parat on a terminal: the escape key, and the terminal's modes, which come back however parat ends."""
import os
import pty
import select
import signal
import subprocess
import termios
import time

import pytest

from vm import BOOT_SECONDS, PROGRAM

pytestmark = pytest.mark.quick


class Terminal:
    """parat run on a pseudo-terminal of its own."""

    def __init__(self, *arguments):
        self._ours, theirs = pty.openpty()
        self._theirs = theirs
        self.before = termios.tcgetattr(theirs)
        self.text = ""
        self.process = subprocess.Popen([PROGRAM, "run", *map(str, arguments)], stdin=theirs,
                                        stdout=theirs, stderr=theirs, start_new_session=True)

    def __enter__(self):
        return self

    def __exit__(self, *_details):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._ours)
        os.close(self._theirs)

    def expect(self, text):
        """Waits until the terminal shows text."""
        deadline = time.monotonic() + BOOT_SECONDS
        while text not in self.text:
            left = deadline - time.monotonic()
            assert left > 0 and self._read(left), f"no {text!r} in {self.text[-500:]!r}"

    def _read(self, seconds):
        if not select.select([self._ours], [], [], seconds)[0]:
            return False
        self.text += os.read(self._ours, 65536).decode(errors="replace")
        return True

    def type(self, text):
        """Presses keys."""
        os.write(self._ours, text.encode())

    def wait(self):
        """The exit status, when parat has ended; what it prints meanwhile is read."""
        deadline = time.monotonic() + 30
        while self.process.poll() is None:
            assert time.monotonic() < deadline, "parat does not end"
            self._read(0.05)
        return self.process.returncode

    def wait_raw(self):
        """Waits until parat has taken the terminal."""
        deadline = time.monotonic() + 30
        while not self.is_raw():
            assert time.monotonic() < deadline and self.process.poll() is None, self.text
            self._read(0.01)

    def modes(self):
        """The terminal's modes now."""
        return termios.tcgetattr(self._theirs)

    def is_raw(self):
        """Whether keys go to the guest one by one."""
        return not self.modes()[3] & (termios.ICANON | termios.ECHO)


@pytest.fixture
def terminal(kernel, initrd):
    """A VM that has just started, on a terminal."""
    with Terminal("--memory", "256M", "--kernel", kernel, "--initrd", initrd, "--append",
                  "console=ttyS0 quiet parat.do=spin") as running:
        running.wait_raw()
        yield running


def test_escape_key(terminal):
    """Ctrl-] ? helps, Ctrl-] q quits with status 0, and the modes are what they were."""
    terminal.type("\x1d?")
    terminal.expect("quit")
    terminal.type("\x1dq")
    assert terminal.wait() == 0
    assert terminal.modes() == terminal.before


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGHUP, signal.SIGQUIT],
                         ids=lambda number: number.name)
def test_terminal_is_restored_after(number, terminal):
    """A crash of parat, or the end of the session, leaves the terminal as it was."""
    terminal.process.send_signal(number)
    if number == signal.SIGHUP:  # presses the power button; this guest does not listen
        terminal.expect("power button")
        terminal.process.send_signal(number)
    terminal.wait()
    assert terminal.modes() == terminal.before
