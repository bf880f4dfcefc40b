"""A Debian root disk, made with mmdebstrap from the machine's configured mirror."""
import os
import pathlib
import re
import subprocess

from . import cache

_HERE = pathlib.Path(__file__).resolve().parent
_SUITE = "bookworm"
_SUITES = {_SUITE, f"{_SUITE}-updates", f"{_SUITE}-security"}
_PACKAGES = ("sysvinit-core", "login", "util-linux", "procps", "wget", "ifupdown", "udhcpc", "iproute2",
             "iputils-ping", "kmod", "netbase", "less", "nano")
_EXCLUDED = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/info/*", "/usr/share/locale/*",
             "/usr/share/lintian/*")
_SIZE = "1G"
# crypt(3) of "parat": SHA-256 with the fewest rounds there are.
_PASSWORD = "$5$rounds=1000$parat$ozUW01IN1tCOjaVymHlg8uB6vqkIcHHM2wWyOKwBCF5"


def get():
    """The path of the disk template: raw, ext4, no partition table. Made when there is none."""
    setup = (_HERE / "disk-setup.sh").read_text().replace("@PASSWORD@", _PASSWORD)
    key = cache.key(setup, " ".join(_PACKAGES), _SIZE)
    result = cache.folder() / "disk" / f"debian-12-{key}.img"
    with cache.lock():
        if result.exists():
            return result
        with cache.scratch() as scratch, cache.step("making a Debian root disk (about a minute)"):
            tree = _bootstrap(scratch, setup)
            return cache.publish(_format(tree, scratch), result)


def _sources():
    """The machine's apt sources for this release of Debian, as lines for sources.list."""
    lines = []
    wanted = "$(REPO_URI)|$(RELEASE)|$(COMPONENT)|$(ORIGIN)"
    listed = cache.run(["apt-get", "indextargets", "--format", wanted, "Created-By: Packages"],
                       "cannot read apt's sources").decode()
    for line in sorted(set(listed.splitlines())):
        uri, release, component, origin = line.split("|")
        if release in _SUITES and component == "main" and origin in ("Debian", "", "$(ORIGIN)"):
            lines.append(f"deb {uri} {release} main")
    if not any(f" {_SUITE} main" in line for line in lines):
        raise cache.GuestError(f"apt has no source for Debian {_SUITE} main on this machine")
    return "\n".join(lines) + "\n"


def _apt_options():
    """The machine's settings for reaching its mirror: proxies and the like."""
    dump = cache.run(["apt-config", "dump"], "cannot read apt's configuration").decode()
    pattern = re.compile(r'^(Acquire::(?:http|https|ftp|Retries)\S*) "(.+)";$')
    settings = [found.groups() for found in map(pattern.match, dump.splitlines()) if found]
    return [f'{name} "{value}";' for name, value in settings if not name.endswith("User-Agent")]


def _bootstrap(scratch, setup):
    """The tree as a tar archive: that keeps its owners even when an ordinary user makes it."""
    sources = scratch / "sources.list"
    sources.write_text(_sources())
    tree = scratch / "tree.tar"
    command = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={','.join(_PACKAGES)}"]
    command += [f"--dpkgopt=path-exclude={path}" for path in _EXCLUDED]
    command += [f"--aptopt={option}" for option in _apt_options()]
    command += [f"--customize-hook={setup}", _SUITE, tree, sources]
    cache.run(command, "cannot make a Debian tree", timeout=1200)
    return tree


def _format(tree, scratch):
    """An ext4 image of the tree, made without mounting it; fakeroot gives it its owners."""
    image = scratch / "image"
    root = scratch / "root"
    root.mkdir()
    # Tables that the guest's kernel would otherwise zero in the background are made now.
    script = ('tar -xpf "$1" -C "$2" --numeric-owner --exclude="./dev/*" && truncate -s "$4" "$3" && '
              'PATH=$PATH:/usr/sbin:/sbin mke2fs -q -F -t ext4 -m 0 -L parat '
              '-E lazy_itable_init=0,lazy_journal_init=0 -d "$2" "$3"')
    command = ["sh", "-c", script, "sh", tree, root, image, _SIZE]
    if os.geteuid() != 0:
        command = ["fakeroot", *command]
    try:
        cache.run(command, "cannot make the disk image")
    finally:
        subprocess.run(["chmod", "-R", "u+rwX", root], check=False)
    return image
