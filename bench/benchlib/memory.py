"""Memory of a VM's processes beyond the guest's own RAM, from /proc (Linux, proc(5))."""
import pathlib
import re

_MAPPING = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) (\S+) \S+ \S+ \d+\s*(.*)$")
_PRIVATE = re.compile(r"^Private_(?:Clean|Dirty|Hugetlb):\s+(\d+) kB$")
_SHARE = re.compile(r"^Pss:\s+(\d+) kB$")


def descendants(pid):
    """A process and all its children, theirs too."""
    pids = [pid]
    for parent in pids:
        for task in pathlib.Path(f"/proc/{parent}/task").glob("*/children"):
            pids += [int(child) for child in task.read_text().split()]
    return pids


def is_guest_ram(size, permissions, name, ram_bytes):
    """True for a mapping that backs the guest's RAM: parat's memfd, or QEMU's one that is just as large
    (its code buffer may be larger, but code may run there)."""
    if name:
        return name.startswith("/memfd:parat-ram")
    return "x" not in permissions and ram_bytes <= size < ram_bytes + (16 << 20)


def private_bytes(pid, ram_bytes):
    """Private resident bytes of one process, without those of the guest's RAM.

    Memory of a memfd is the process's own, too, but a page that it maps twice (code, once to write and
    once to run) is not called private; its two shares add up to one page."""
    total, counted = 0, None
    with open(f"/proc/{pid}/smaps", encoding="ascii", errors="replace") as smaps:
        for line in smaps:
            mapping = _MAPPING.match(line)
            if mapping:
                size = int(mapping.group(2), 16) - int(mapping.group(1), 16)
                counted = _SHARE if mapping.group(4).startswith("/memfd:") else _PRIVATE
                if is_guest_ram(size, mapping.group(3), mapping.group(4), ram_bytes):
                    counted = None
                continue
            found = counted and counted.match(line)
            if found:
                total += int(found.group(1)) * 1024
    return total


def overhead_bytes(pid, ram_bytes):
    """The sum over a VM's process and its helpers."""
    return sum(private_bytes(process, ram_bytes) for process in descendants(pid))
