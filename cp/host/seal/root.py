"""The root of a machine: an empty file system in which nothing is but what the machine may see. Standard library only.

What it may see has the same absolute path as on the host. What is the same for many machines (interpreter, libraries,
devices, the code of a topology) is mounted once, in the saved system, as a :class:`Pattern`; a machine mounts the parts
of a pattern and its own disks in a file system of its own, makes that its root, and lets go of the old one.

Names on the way to something, which are folders here that hold nothing else, can be passed and not listed.
"""

import contextlib
import errno
import os
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from retinue.cp.host import libc
from retinue.cp.host.errors import SealFailed
from retinue.cp.host.seal import code

__all__ = [
    "DEVICES",
    "HINTS",
    "Own",
    "Pattern",
    "Plan",
    "Workshop",
    "enter",
    "linked",
    "readable",
    "temporary",
    "writable",
]

DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")

PASS = 0o111
"""The mode of a folder on the way to something."""

_FOLDER, _LINK, _MOUNTED_FOLDER, _MOUNTED_FILE = range(4)

_SAFE = libc.MOUNT_ATTR_NOSUID | libc.MOUNT_ATTR_NODEV
_READ = libc.MOUNT_ATTR_RDONLY | _SAFE
"""Not NOEXEC: the kernel would not map a module of machine code (mmap(2), EPERM)."""
_TMPFS = libc.MS_NOSUID | libc.MS_NODEV | libc.MS_NOEXEC

INODE = 4096
"""Bytes of a temporary disk for which it may have one file: each takes memory of the kernel as well."""

_PLACE = "/proc"
"""The folder that the workshop covers: every host has it, no machine wants it, and it had better not be seen anyhow."""
_NEW = f"{_PLACE}/new"


class Plan(NamedTuple):
    """What of the host the machines of one kind, with one set of code folders, may read."""

    readable: tuple[str, ...]
    """Files and folders, without symbolic links, none inside another."""
    runnable: frozenset[str]
    """Those of them whose programs may be run."""
    links: Mapping[str, str]
    """Symbolic links on the way to them, and what they say."""
    listed: tuple[str, ...]
    """Folders of sys.path. Their times stay as they are: at any other the import system would want to list them."""


class Own(NamedTuple):
    """A mount that one machine has for itself."""

    path: str
    attributes: int
    options: str = ""
    """Of a new tmpfs; empty for something of the host."""


def writable(path: str) -> Own:
    """A disk."""
    return Own(path, _SAFE | libc.MOUNT_ATTR_NOEXEC)


def linked(path: str) -> Own:
    """A disk that may be read only."""
    return Own(path, _READ | libc.MOUNT_ATTR_NOEXEC)


def readable(path: str) -> Own:
    """Code."""
    return Own(path, _READ)


def temporary(path: str, size: int, user: int) -> Own:
    """A disk that is empty at the start and gone at the end. ``user`` owns it; -1 for who mounts it."""
    options = f"size={size},nr_inodes={max(64, size // INODE)},mode=0700"
    return Own(path, 0, options + (f",uid={user},gid={user}" if user >= 0 else ""))


class Pattern:
    """What is the same in the roots of many machines."""

    def __init__(self, folder: str, plan: Plan) -> None:
        self.folder = folder
        self.times: dict[str, int] = {}
        self.entries: dict[str, dict[str, int]] = {"": {}}
        before = os.umask(0)
        try:
            _mount(Own(folder, 0, f"mode={PASS:o}"), folder)
            for path in (*plan.readable, *DEVICES):
                self._add(path, _MOUNTED_FOLDER if os.path.isdir(path) else _MOUNTED_FILE)
            for path in plan.readable:
                _bind(path, folder + path)
            for path, target in plan.links.items():
                if self._add(path, _LINK):
                    os.symlink(target, folder + path)
            for path in plan.listed:
                if path in self.entries:
                    self.times[path] = os.stat(path).st_mtime_ns
                    os.utime(folder + path, ns=(0, self.times[path]))
            libc.restrict_mount(folder, _READ)
            for path in DEVICES:
                _bind(path, folder + path)
                libc.restrict_mount(folder + path, libc.MOUNT_ATTR_RDONLY | libc.MOUNT_ATTR_NOSUID)
        finally:
            os.umask(before)

    def _add(self, path: str, kind: int) -> bool:
        """Make a place for something, and the folders on the way there. False if it lies in what is there already."""
        parent, _, name = path.rpartition("/")
        if parent not in self.entries and not self._add(parent, _FOLDER):
            return False
        if name in self.entries[parent]:
            return False
        self.entries[parent][name] = kind
        if kind == _FOLDER:
            self.entries[path] = {}
        if kind != _LINK:
            _make_place(self.folder + path, file=kind == _MOUNTED_FILE)
        return True

    def graft(self, folder: str, ways: set[str]) -> None:
        """Put ``folder`` of the pattern, which is "" or a path, into the new root.

        ``ways`` are the folders in which something else will be mounted: they have to be the machine's own.
        """
        for name, kind in self.entries[folder].items():
            path = f"{folder}/{name}"
            if kind == _LINK:
                os.symlink(os.readlink(self.folder + path), _NEW + path)
                continue
            _make_place(_NEW + path, file=kind == _MOUNTED_FILE)
            if kind == _FOLDER and path in ways:
                self.graft(path, ways)
            else:
                _bind(self.folder + path, _NEW + path)


class Workshop:
    """Where the patterns of a saved system stand. Covers /proc: which processes the host has is nobody's business.

    :raises OSError: this process may not mount anything.
    """

    def __init__(self) -> None:
        libc.mount("retinue", _PLACE, "tmpfs", _TMPFS, "mode=0700")
        os.mkdir(_NEW)
        self._made = 0

    def pattern(self, plan: Plan) -> Pattern:
        """Make one."""
        self._made += 1
        folder = f"{_PLACE}/{self._made}"
        os.mkdir(folder)
        try:
            return Pattern(folder, plan)
        except OSError:
            with contextlib.suppress(OSError):
                libc.unmount(folder)
            raise

    def remove(self, pattern: Pattern) -> None:
        """Take one away; the machines that have its parts keep them."""
        libc.unmount(pattern.folder)
        os.rmdir(pattern.folder)


def enter(pattern: Pattern, own: Iterable[Own], files: Mapping[str, str]) -> None:
    """Go on in a new root, made of ``pattern``, ``own`` mounts and the text of ``files``. The old one is out of reach.

    :raises SealFailed: something cannot be mounted.
    """
    links: dict[str, str] = {}
    mounts = sorted((code.resolved(one.path, links), one) for one in own)
    ways = {way for path in (*(path for path, _ in mounts), *links, *files) for way in _ways(path)}
    before = os.umask(0)
    step = "a namespace of mounts"
    try:
        libc.unshare(libc.CLONE_NEWNS)
        step = "an empty file system"
        _mount(Own(_NEW, 0, f"mode={PASS:o}"), _NEW)
        step = "what many machines have"
        pattern.graft("", ways)
        for path, one in mounts:
            step = one.path
            _make_ways(path)
            if not os.path.lexists(_NEW + path):
                _make_place(_NEW + path, file=not one.options and not os.path.isdir(path))
            _mount(one, _NEW + path, path)
        for path, text in (*links.items(), *files.items()):
            step = path
            _make_ways(path)
            if not os.path.lexists(_NEW + path):
                _write(path, text) if path in files else os.symlink(text, _NEW + path)
        step = "the new root"
        for path, time in pattern.times.items():
            if path in ways:
                os.utime(_NEW + path, ns=(0, time))
        libc.restrict_mount(_NEW, libc.MOUNT_ATTR_RDONLY, below=False)
        os.chdir(_NEW)
        libc.pivot_to_working_folder()
    except OSError as error:
        raise SealFailed("root", step, error.errno or 0, HINTS.get(error.errno or 0, "")) from error
    finally:
        os.umask(before)


HINTS = {
    errno.EACCES: "the user the system runs as must be able to get there",
    errno.ENOSPC: "too many mounts in this namespace: see the sysctl fs.mount-max",
    errno.ENOSYS: "needs Linux 5.12",
}


def _ways(path: str) -> list[str]:
    """Every folder on the way to a path."""
    parts = path.split("/")[:-1]
    return ["/".join(parts[:count]) for count in range(2, len(parts) + 1)]


def _make_ways(path: str) -> None:
    for way in _ways(path):
        if not os.path.lexists(_NEW + way):
            os.mkdir(_NEW + way, PASS)


def _make_place(path: str, *, file: bool) -> None:
    if file:
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o444))
    else:
        os.mkdir(path, PASS)


def _write(path: str, text: str) -> None:
    with open(_NEW + path, "x", opener=lambda name, flags: os.open(name, flags, 0o444)) as file:
        file.write(text)


def _mount(one: Own, target: str, source: str = "") -> None:
    if one.options:
        libc.mount("retinue", target, "tmpfs", _TMPFS, one.options)
    else:
        _bind(source, target)
        libc.restrict_mount(target, one.attributes)


def _bind(source: str, target: str) -> None:
    libc.mount(source, target, "", libc.MS_BIND | libc.MS_REC, "")
