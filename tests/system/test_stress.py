"""Mixed stress on four CPUs: nothing hangs, no wake-up is lost, and everything that was computed is right."""
import os
import socketserver
import threading

import pytest

from vm import BOOT_SECONDS, read_stats


@pytest.fixture
def server():
    """A server on the host's loopback that answers a line with the same random bytes each time; its port."""
    content = os.urandom(200000)

    class Handler(socketserver.StreamRequestHandler):
        """One connection."""

        def handle(self):
            """Waits for the line, so that the guest listens."""
            self.rfile.readline()
            self.wfile.write(content)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as listener:
        thread = threading.Thread(target=listener.serve_forever)
        thread.start()
        yield listener.server_address[1]
        listener.shutdown()
        thread.join()


@pytest.mark.parametrize("seconds", [60, pytest.param(600, marks=pytest.mark.full)])
def test_mixed_stress(boot, stress_initrd, server, empty_disk, tmp_path, seconds):
    """Processes, signals, mappings, self-modifying code, timers, a disk and a network at once (churn.c)."""
    stats = tmp_path / "stats"
    words = f"parat.seconds={seconds} parat.port={server}"
    with boot("churn,smp", "--cpus", "4", "--net", "user,host-loopback=on", "--disk", empty_disk,
              "--stats", stats, words=words, ramdisk=stress_initrd, seconds=seconds + 2 * BOOT_SECONDS) as machine:
        machine.wait(0)
        print("\n".join(line for line in machine.console.splitlines() if "churn" in line))
        machine.task_ok("churn", "smp")
        blocks, fetches = map(int, machine.said(r"churn: (\d+) blocks to the disk and back, (\d+) fetches").groups())
    assert blocks > seconds / 10 and fetches > seconds / 10
    assert read_stats(stats)["end"] == "poweroff"
