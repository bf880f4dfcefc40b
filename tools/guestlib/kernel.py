"""The stock Debian cloud kernel: vmlinuz, the vmlinux inside it, and its modules."""
import re
import struct

from . import cache, packages

# bzImage setup header: Linux Documentation/arch/x86/boot.rst
_SETUP_SECTS, _HEADER_MAGIC, _PAYLOAD_OFFSET = 0x1F1, 0x202, 0x248
_LZ4_LEGACY_MAGIC = b"\x02\x21\x4c\x18"
_PT_NOTE, _XEN_ELFNOTE_PHYS32_ENTRY = 4, 18


def _version_key(path):
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name)]


def newest():
    """The folder of the newest kernel in the cache, or None."""
    kernels = [path for path in (cache.folder() / "kernel").glob("*") if (path / "vmlinux").exists()]
    return max(kernels, key=_version_key, default=None)


def get():
    """The folder of a kernel: vmlinuz, vmlinux, config, modules/. Fetched when there is none."""
    with cache.lock():
        return newest() or _make()


def _make():
    with cache.scratch() as scratch, cache.step("fetching the Debian cloud kernel"):
        name = packages.dependency("linux-image-cloud-amd64", r"linux-image-\d[\w.+-]*-cloud-amd64")
        version = name.removeprefix("linux-image-")
        tree = scratch / "tree"
        made = scratch / "made"
        tree.mkdir()
        made.mkdir()
        packages.unpack(name, tree)
        (tree / "boot" / f"vmlinuz-{version}").rename(made / "vmlinuz")
        (tree / "boot" / f"config-{version}").rename(made / "config")
        (tree / "lib" / "modules" / version).rename(made / "modules")
        (made / "vmlinux").write_bytes(extract((made / "vmlinuz").read_bytes(), scratch))
        return cache.publish(made, cache.folder() / "kernel" / version)


def extract(image, scratch):
    """The vmlinux inside a bzImage whose payload is LZ4, checked: an ELF file with a PVH entry."""
    if image[_HEADER_MAGIC:_HEADER_MAGIC + 4] != b"HdrS":
        raise cache.GuestError("the kernel is no bzImage: its setup header has no HdrS")
    setup_bytes = (image[_SETUP_SECTS] + 1) * 512
    offset, length = struct.unpack_from("<II", image, _PAYLOAD_OFFSET)
    # The four bytes after the compressed stream are the size of what is in it.
    payload = image[setup_bytes + offset:setup_bytes + offset + length - 4]
    if not payload.startswith(_LZ4_LEGACY_MAGIC):
        raise cache.GuestError("the kernel's payload is not compressed with LZ4")
    packed = scratch / "vmlinux.lz4"
    packed.write_bytes(payload)
    vmlinux = cache.run(["lz4", "-dc", packed], "cannot unpack the kernel's payload")
    if not has_pvh_note(vmlinux):
        raise cache.GuestError("the vmlinux has no PVH note")
    return vmlinux


def has_pvh_note(vmlinux):
    """True for a 64-bit ELF with a note XEN_ELFNOTE_PHYS32_ENTRY."""
    if vmlinux[:5] != b"\x7fELF\x02":
        return False
    program_headers, = struct.unpack_from("<Q", vmlinux, 32)
    entry_size, entry_count = struct.unpack_from("<HH", vmlinux, 54)
    for index in range(entry_count):
        kind, _, offset, _, _, size = struct.unpack_from("<IIQQQQ", vmlinux,
                                                         program_headers + index * entry_size)
        if kind == _PT_NOTE and _note_in(vmlinux[offset:offset + size]):
            return True
    return False


def _note_in(notes):
    at = 0
    while at + 12 <= len(notes):
        name_size, value_size, kind = struct.unpack_from("<III", notes, at)
        name = notes[at + 12:at + 12 + name_size]
        if name == b"Xen\0" and kind == _XEN_ELFNOTE_PHYS32_ENTRY:
            return True
        at += 12 + (name_size + 3) // 4 * 4 + (value_size + 3) // 4 * 4
    return False
