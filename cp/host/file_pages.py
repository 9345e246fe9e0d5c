"""The pages of a file that is mapped somewhere: which are in real storage, who has touched them, and how they go.

Nothing here reads the file, or touches the machine that has it mapped: a file that somebody has cut short, or a disk
with an error, must not stop who looks after it. Every function may be called in a worker thread.
"""

import contextlib
import ctypes
import errno
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from retinue.cp.host import libc
from retinue.cp.host.ranges import Range, put_out
from retinue.cp.host.seal.syscalls import number

__all__ = [
    *("PAGE", "Mapping", "begin_writing", "cached", "drop", "in_memory", "mapped", "present", "residency", "unmap"),
    "write_back",
]

PAGE: Final = os.sysconf("SC_PAGE_SIZE")

_PROT_NONE, _MAP_SHARED = 0, 1
_TMPFS, _RAMFS = 0x01021994, 0x858458F6  # linux/magic.h
_SYS_CACHESTAT: Final = 451  # on every architecture
_UNKNOWN: Final = errno.ENOSYS, errno.EPERM, errno.EOPNOTSUPP  # there is no cachestat(2), or not for this file
_WRITE, _WRITE_AND_WAIT = 2, 7  # SYNC_FILE_RANGE_...
_LARGE: Final = 64 << 20
"""Bytes of a range from which other threads go on while the kernel walks over it."""
_MOST_SLOW: Final = 64
"""Ranges, of one call each, for which the disk may be waited for: other threads go on, and may be slow to come back."""
# Calls of a microsecond, thousands of them: to let another thread in at each and wait for it would take seconds.
_quick: Final = ctypes.PyDLL(None, use_errno=True)
_quick.syscall.restype = ctypes.c_long
_quick.syscall.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint]
_quick.posix_fadvise.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_int]
_slow: Final = ctypes.CDLL(None)
_slow.posix_fadvise.argtypes = _quick.posix_fadvise.argtypes
_PRESENT: Final = bytes(each >> 7 for each in range(256))
"""Of the last byte of an entry of /proc/PID/pagemap: 1 when the process has the page in its tables."""
_MOST_MAPPINGS: Final = 64
"""Of one file in one process: a program has one or a few, and a hostile one could have 65,530."""


class _Counts(NamedTuple):
    """Pages of a range of a file, in real storage."""

    cached: int
    dirty: int
    writing: int


class Mapping(NamedTuple):
    """A part of a file in a process: addresses, and where it begins in the file."""

    start: int
    end: int
    offset: int


def in_memory(descriptor: int) -> bool:
    """Whether the file lies in a file system that is itself real storage (tmpfs): then nothing of it can be put out."""
    about = ctypes.create_string_buffer(256)  # struct statfs, which begins with the type
    libc.syscall(_call("fstatfs"), descriptor, ctypes.addressof(about))
    return int.from_bytes(about.raw[: ctypes.sizeof(ctypes.c_long)], "little") in (_TMPFS, _RAMFS)


def cached(descriptor: int, ranges: Sequence[tuple[int, int]]) -> list[int]:
    """Bytes of each range (offset, length) of a file that are in real storage: by cachestat(2), or by looking at all of
    it where the kernel has none. OSError."""
    if (counts := _count(descriptor, ranges)) is not None:
        return [each.cached * PAGE for each in counts]
    pages = residency(descriptor, max(offset + length for offset, length in ranges))
    return [pages.count(1, at // PAGE, -(-(at + length) // PAGE)) * PAGE for at, length in ranges]


def _count(descriptor: int, ranges: Sequence[tuple[int, int]]) -> list[_Counts] | None:
    """Of each range; None where the kernel cannot tell. OSError."""
    counts = []
    span = (ctypes.c_uint64 * 2)()
    found = (ctypes.c_uint64 * 5)()  # cached, dirty, in writeback, evicted, recently evicted: pages
    places = ctypes.addressof(span), ctypes.addressof(found)
    try:
        for span[0], span[1] in ranges:
            if span[1] >= _LARGE:
                libc.syscall(_SYS_CACHESTAT, descriptor, *places, 0)
            elif _quick.syscall(_SYS_CACHESTAT, descriptor, *places, 0) < 0:
                raise OSError(ctypes.get_errno(), "cachestat")
            counts.append(_Counts(*found[:3]))
    except OSError as error:
        if error.errno not in _UNKNOWN:
            raise
        return None
    return counts


def residency(descriptor: int, size: int) -> bytes:
    """One byte for each page of a file: 1 when it is in real storage, 0 when not (mincore(2))."""
    pages = -(-size // PAGE)
    vector = ctypes.create_string_buffer(pages)
    place = libc.syscall(_call("mmap"), 0, size, _PROT_NONE, _MAP_SHARED, descriptor, 0)
    try:
        libc.syscall(_call("mincore"), place, size, ctypes.addressof(vector))
    finally:
        libc.syscall(_call("munmap"), place, size)
    return vector.raw


def mapped(pid: int, device: int, inode: int) -> list[Mapping]:
    """Where a process has a file mapped, at the most the first 64. Empty when it is gone or not ours to look at."""
    found = []
    with contextlib.suppress(OSError), open(f"/proc/{pid}/maps", errors="surrogateescape") as maps:
        for line in maps:
            addresses, _, offset, numbers, node, *_ = line.split(maxsplit=5)
            major, minor = (int(each, 16) for each in numbers.split(":"))
            if int(node) == inode and os.makedev(major, minor) == device:
                start, end = (int(each, 16) for each in addresses.split("-"))
                found.append(Mapping(start, end, int(offset, 16)))
                if len(found) == _MOST_MAPPINGS:
                    break
    return found


def present(pid: int, mappings: Iterable[Mapping], size: int) -> bytes | None:
    """One byte for each page of the file: 1 when the process has it in its tables, so has touched it since unmapping.

    A page that was read brings up to 15 neighbours with it that are in real storage. None: it is not ours to look at.
    """
    found = bytearray(-(-size // PAGE))
    try:
        pagemap = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        for mapping in mappings:
            pages = (mapping.end - mapping.start) // PAGE
            entries = os.pread(pagemap, pages * 8, mapping.start // PAGE * 8)
            first = mapping.offset // PAGE
            last = min(len(found), first + len(entries) // 8)
            found[first:last] = entries[7::8].translate(_PRESENT)[: last - first]
    except OSError:
        return None
    finally:
        os.close(pagemap)
    return bytes(found)


def unmap(pid: int, mappings: Sequence[Mapping], where: Iterable[tuple[int, int]]) -> bool:
    """Have a process lose ranges (offset, length) of a file from its tables, from outside and without waking it.

    What is clean goes out of real storage as well. False when this may not be done: it takes CAP_SYS_NICE.
    """
    try:
        put_out(pid, _places(mappings, where))
    except OSError:
        return False
    return True


def _places(mappings: Sequence[Mapping], where: Iterable[tuple[int, int]]) -> Iterator[Range]:
    for offset, length in where:
        for mapping in mappings:
            first = max(offset, mapping.offset)
            last = min(offset + length, mapping.offset + mapping.end - mapping.start)
            if first < last:
                yield mapping.start + first - mapping.offset, mapping.start + last - mapping.offset


def begin_writing(descriptor: int, ranges: Iterable[tuple[int, int]]) -> None:
    """Have changed pages of a file written, and do not wait for it (sync_file_range(2)). OSError."""
    for offset, length in ranges:
        libc.syscall(_call("sync_file_range"), descriptor, offset, length, _WRITE)


def write_back(descriptor: int, ranges: Sequence[tuple[int, int]]) -> None:
    """Have changed pages of a file written, and wait for it; all are begun before the first is waited for. OSError.

    Not for durability: what the disk has in its own cache may be lost with the power.
    """
    begin_writing(descriptor, ranges)
    for offset, length in ranges:
        libc.syscall(_call("sync_file_range"), descriptor, offset, length, _WRITE_AND_WAIT)


def drop(descriptor: int, ranges: Sequence[tuple[int, int]]) -> None:
    """Put pages of a file out of real storage that are clean and that nobody has in his tables. OSError.

    What is changed is begun to be written and stays. The disk may be waited for then, but other threads go on. Of very
    many ranges that are changed in part some may stay whole.
    """
    if not ranges:
        return
    counts: Iterable[_Counts] = itertools.repeat(_Counts(1, 0, 0))
    changed: Sequence[tuple[int, int]] = ()
    if (whole := _count(descriptor, [_span(ranges)])) is None:
        changed = ranges
    elif whole[0].dirty or whole[0].writing:
        counts = _count(descriptor, ranges) or counts
        changed = [where for where, each in zip(ranges, counts, strict=False) if each.dirty]
    with contextlib.suppress(OSError):  # the disk does not take them: they stay
        begin_writing(descriptor, changed if len(changed) <= _MOST_SLOW else [_span(changed)])
    slow = 0
    for (offset, length), each in zip(ranges, counts, strict=False):
        if max(each.dirty, each.writing) >= each.cached:
            continue  # there is nothing that could go
        call = _quick.posix_fadvise
        if each.dirty or each.writing or length >= _LARGE:
            if (slow := slow + 1) > _MOST_SLOW and length < _LARGE:
                continue
            call = _slow.posix_fadvise
        if number := call(descriptor, offset, length, os.POSIX_FADV_DONTNEED):
            raise OSError(number, os.strerror(number))


def _span(ranges: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The range from the first to the last."""
    first, last = min(offset for offset, _ in ranges), max(offset + length for offset, length in ranges)
    return first, last - first


def _call(name: str) -> int:
    found = number(name)
    assert found is not None, name
    return found
