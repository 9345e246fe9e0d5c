"""The paging volume: a file that is swap of the host for as long as a system runs. Standard library only.

It is made, formatted (mkswap(8), version 1) and switched on by the control program, and switched off and removed by it
at the end. A guard, a process of its own that is started beside the nucleus, does the latter where neither of them can
do it any more; and if that is killed, too, the next start of the system does. No other swap is ever touched, and no
file that is not a volume of ours.
"""

import ctypes
import errno
import os
import re
import select
import stat
import struct
import sys
import time
from contextlib import suppress
from typing import Any, Final

from retinue.cp.host import libc
from retinue.cp.host.kernel_files import read

__all__ = ["GUARD_ENTRY", "Volume", "VolumeFailed", "active"]

GUARD_ENTRY: Final = "retinue.cp.host.swap:guard"

PATIENCE: Final = 60
"""Tries, one a second, of the guard: it takes room in real storage to read back what is on the volume."""

_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_MAGIC: Final = b"SWAPSPACE2"
_LABEL: Final = b"retinue volume\0\0"
_HEADER: Final = 1024  # bytes before it: room for a boot block
_PREFER: Final = 0x8000  # SWAP_FLAG_PREFER
_MOST_PRIORITY: Final = 0x7FFF
_SYS_SWAPON: Final = {"x86_64": 167, "aarch64": 224}
_SYS_SWAPOFF: Final = {"x86_64": 168, "aarch64": 225}


class VolumeFailed(Exception):
    """There is no paging volume; the text says why, and what would help."""


class Volume:
    """A file that is to be swap, of so many bytes. Every method may be called in a thread."""

    def __init__(self, path: str, size: int) -> None:
        self.path = os.path.realpath(path)
        self._pages = size // _PAGE

    def open(self, *, adopt: bool) -> None:
        """Have it be swap. With ``adopt`` it goes on being it, if it is. :raises VolumeFailed:"""
        if active(self.path):
            if adopt:
                return
            self.close()  # of a system that was killed, and its guard with it
        try:
            self._make()
            others = [priority for _, priority in _swaps()]
            priority = min(_MOST_PRIORITY, max(others, default=-1) + 1)
            _switch(_SYS_SWAPON, self.path, _PREFER | max(0, priority))
        except OSError as error:
            with suppress(OSError):
                self._remove()
            raise VolumeFailed(f"{self.path}: {error.strerror}{_cure(error)}") from error

    def _make(self) -> None:
        self._remove()
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(self.path, flags, 0o600)
        try:
            os.fchmod(descriptor, 0o600)
            os.posix_fallocate(descriptor, 0, self._pages * _PAGE)
            header = struct.pack("=III16s16s", 1, self._pages - 1, 0, os.urandom(16), _LABEL)
            os.pwrite(descriptor, header, _HEADER)
            os.pwrite(descriptor, _MAGIC, _PAGE - len(_MAGIC))
            os.fsync(descriptor)
        except BaseException:
            os.unlink(self.path)
            raise
        finally:
            os.close(descriptor)

    def _remove(self) -> None:
        """Remove what an earlier one has left; nobody else's file. OSError."""
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        try:
            about = os.fstat(descriptor)
            first = os.pread(descriptor, _PAGE, 0) if stat.S_ISREG(about.st_mode) else b""
            label = first[_HEADER + 28 : _HEADER + 44]
            if about.st_uid != os.geteuid() or label != _LABEL or not first.endswith(_MAGIC):
                raise FileExistsError(errno.EEXIST, "there is a file of this name that is no paging volume")
        finally:
            os.close(descriptor)
        os.unlink(self.path)

    def close(self) -> None:
        """Switch it off, which reads back whatever is on it, and remove it. No error if it is off.

        :raises VolumeFailed: it is still on: the host has not enough real storage for what is on it.
        """
        try:
            if active(self.path):
                _switch(_SYS_SWAPOFF, self.path)
            self._remove()
        except OSError as error:
            raise VolumeFailed(f"{self.path} cannot be switched off: {error.strerror}") from error


def active(path: str) -> bool:
    """Whether a file is swap at this moment."""
    return path in [name for name, _ in _swaps()]


def _swaps() -> list[tuple[str, int]]:
    """The swap of this host: names and priorities."""
    rows = [line.split() for line in read("/proc/swaps").splitlines()[1:]]
    return [(_unescaped(row[0]), int(row[4])) for row in rows if len(row) >= 5]


def _unescaped(name: str) -> str:
    return os.fsdecode(re.sub(rb"\\([0-7]{3})", lambda found: bytes([int(found[1], 8)]), os.fsencode(name)))


def _switch(numbers: dict[str, int], path: str, *flags: int) -> None:
    name = ctypes.create_string_buffer(os.fsencode(path))
    libc.syscall(numbers[libc.MACHINE], ctypes.addressof(name), *flags)


def _cure(error: OSError) -> str:
    match error.errno:
        case errno.EINVAL:
            return " (this file system keeps no swap file: choose another with volume = ...)"
        case errno.EPERM | errno.EACCES:
            return " (it takes CAP_SYS_ADMIN)"
        case errno.ENOSPC:
            return " (make room there, or ask for a smaller size)"
    return ""


def guard(arguments: dict[str, Any]) -> int:
    """Wait for the end of a nucleus, then switch its volume off if it still is on. Returns the exit status."""
    waiting = select.poll()
    waiting.register(arguments["nucleus"], select.POLLIN)
    waiting.poll()
    volume = Volume(arguments["volume"], 0)
    for _ in range(PATIENCE):
        try:
            if not active(volume.path):
                return 0
            volume.close()
        except VolumeFailed as error:
            print(f"the paging volume: {error}", file=sys.stderr, flush=True)
            time.sleep(1)
    return int(active(volume.path))
