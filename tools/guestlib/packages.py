"""Debian packages: fetched from the machine's configured mirror and unpacked, never installed."""
import os
import re

from . import cache


def _apt_options(private):
    options = ["-qq", "-o", "Acquire::Retries=3"]
    if os.geteuid() == 0:
        options += ["-o", "APT::Sandbox::User=root"]
    if private:
        state = cache.folder() / "apt"
        (state / "lists" / "partial").mkdir(parents=True, exist_ok=True)
        (state / "archives" / "partial").mkdir(parents=True, exist_ok=True)
        options += ["-o", f"Dir::State::lists={state}/lists", "-o", f"Dir::Cache={state}"]
    return options


def _fetch(name, where, private):
    options = _apt_options(private)
    if private:
        with cache.step("reading the package lists"):
            cache.run(["apt-get", *options, "update"], "cannot read the package lists")
    cache.run(["apt-get", *options, "download", name], f"cannot fetch the package {name}", cwd=where)


def _fields(name, private):
    """The first description of a package that apt knows, as text."""
    options = _apt_options(private)[1:]
    return cache.run(["apt-cache", *options, "show", "--no-all-versions", name],
                     f"apt knows no package {name}").decode(errors="replace")


def _with_fresh_lists(action):
    """Runs action(private=False); if that fails, once more with package lists of our own.

    The machine's lists may be missing or name versions that have left the mirror, and only root may
    refresh those."""
    try:
        return action(False)
    except cache.GuestError:
        return action(True)


def dependency(name, pattern):
    """The first dependency of package `name` that matches the regular expression `pattern`."""
    def look(private):
        if private:
            cache.run(["apt-get", *_apt_options(True), "update"], "cannot read the package lists")
        for line in _fields(name, private).splitlines():
            found = line.startswith("Depends:") and re.search(pattern, line)
            if found:
                return found.group(0)
        raise cache.GuestError(f"the package {name} depends on nothing like {pattern}")
    return _with_fresh_lists(look)


def unpack(name, where):
    """Fetches package `name` and unpacks it into the folder `where`. Returns `where`."""
    _with_fresh_lists(lambda private: _fetch(name, where, private))
    (deb,) = where.glob("*.deb")
    cache.run(["dpkg-deb", "-x", deb, where], f"cannot unpack {deb.name}")
    deb.unlink()
    return where
