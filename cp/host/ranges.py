"""Where a process has pages in real storage, and the call that takes them out of it from outside (madvise(2))."""

import array
import ctypes
import errno
import fcntl
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from retinue.cp.host import libc

__all__ = ["Range", "put_out", "ranges"]

Range = tuple[int, int]
"""First address and the one behind the last."""

_PAGE: Final = os.sysconf("SC_PAGE_SIZE")

# linux/fs.h
_PAGEMAP_SCAN: Final = 0xC0606610
_FILE, _PRESENT, _ZERO = 4, 8, 32
_EXCLUSIVE: Final = re.compile(b"[%s]+" % re.escape(bytes(range(1, 256, 2))))
_SCAN_ARG: Final = 12  # words of struct pm_scan_arg
_REGIONS: Final = 1024  # of three words each; more are asked for again

_MADV_PAGEOUT: Final = 21
_SYS_PROCESS_MADVISE: Final = 440
_MOST_RANGES: Final = 1024  # UIO_MAXIOV
_MOST_BYTES: Final = 1 << 30  # of one call: less than the kernel takes at once

# What stands for a file in maps and is shared memory.
_SHARED_MEMORY: Final = (b"/memfd:", b"/dev/zero", b"/SYSV", b"/dev/shm/")


def ranges(pid: int, start: int = 0, most: int | None = None) -> list[Range]:
    """Where a process has anonymous and shared memory in real storage, from an address on.

    At most so many bytes of it, or all; only what nobody shares with it. OSError: it may not be looked at, or the
    kernel cannot tell (before Linux 6.7).
    """
    left = most if most is not None else 1 << 62
    found: list[Range] = []
    descriptor = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    try:
        for first, last, anonymous in _mappings(pid):
            if last <= start:
                continue
            for one, other in _present(descriptor, max(first, start), last, -(-left // _PAGE), anonymous):
                found.append((one, other))
                left -= other - one
            if left <= 0:
                break
    finally:
        os.close(descriptor)
    return found


def _mappings(pid: int) -> Iterator[tuple[int, int, bool]]:
    """The addresses of a process from first to last: from, to, and whether only what is no file there is meant."""
    behind = last = 0
    with open(f"/proc/{pid}/maps", "rb") as maps:
        for line in maps:
            words = line.split(maxsplit=5)
            if words[-1].startswith(b"[vsyscall"):
                break
            one, _, other = words[0].partition(b"-")
            first, last = int(one, 16), int(other, 16)
            if words[-1].startswith(_SHARED_MEMORY):
                yield behind, first, True
                yield first, last, False
                behind = last
    yield behind, last, True


def _present(descriptor: int, first: int, last: int, pages: int, anonymous: bool) -> Iterator[Range]:
    """The ranges of a mapping that are in real storage, at most so many pages."""
    regions = array.array("Q", bytes(_REGIONS * 24))
    inverted, mask = (_FILE | _ZERO, _PRESENT | _FILE | _ZERO) if anonymous else (0, _PRESENT)
    while first < last and pages > 0:
        argument = array.array("Q", bytes(_SCAN_ARG * 8))
        argument[0], argument[2], argument[3] = _SCAN_ARG * 8, first, last
        argument[5], argument[6], argument[7] = regions.buffer_info()[0], _REGIONS, pages
        argument[8], argument[9], argument[11] = inverted, mask, _PRESENT
        count = fcntl.ioctl(descriptor, _PAGEMAP_SCAN, argument)
        for at in range(count):
            for one, other in _own(descriptor, regions[3 * at], regions[3 * at + 1]):
                if pages > 0:
                    other = min(other, one + pages * _PAGE)
                    pages -= (other - one) // _PAGE
                    yield one, other
        first = argument[4]  # where it ended


def _own(descriptor: int, first: int, last: int) -> Iterator[Range]:
    """The parts of a range that no other process has: of those that several have none can be taken."""
    words = os.pread(descriptor, (last - first) // _PAGE * 8, first // _PAGE * 8)
    # Bit 56 of each (pagemap in the kernel's documentation): the lowest of the highest byte.
    for run in _EXCLUSIVE.finditer(words[7::8]):
        yield first + run.start() * _PAGE, first + run.end() * _PAGE


def put_out(pid: int, where: Iterable[Range]) -> None:
    """Have the kernel take pages of another process out of real storage (process_madvise(2), Linux 5.10).

    Of pages that several processes have it takes none. It waits until they are on their way to the swap device. Needs
    CAP_SYS_NICE in the first user namespace, and the right to look at the process. OSError.
    """
    pidfd = os.pidfd_open(pid)
    try:
        for batch in _batches(where):
            _advise(pidfd, batch)
    finally:
        os.close(pidfd)


def _batches(where: Iterable[Range]) -> Iterator[list[Range]]:
    batch: list[Range] = []
    size = 0
    for first, last in where:
        while first < last:
            if len(batch) == _MOST_RANGES or size >= _MOST_BYTES:
                yield batch
                batch, size = [], 0
            end = min(last, first + _MOST_BYTES - size)
            batch.append((first, end))
            size += end - first
            first = end
    if batch:
        yield batch


def _advise(pidfd: int, batch: Sequence[Range]) -> None:
    """One call, and again behind each range that it refuses: one that was unmapped meanwhile, or that is locked."""
    while batch:
        vectors = (ctypes.c_size_t * (2 * len(batch)))()
        for at, (first, last) in enumerate(batch):
            vectors[2 * at], vectors[2 * at + 1] = first, last - first
        try:
            done = libc.syscall(_SYS_PROCESS_MADVISE, pidfd, ctypes.addressof(vectors), len(batch), _MADV_PAGEOUT, 0)
        except OSError as error:
            if error.errno not in (errno.ENOMEM, errno.EINVAL, errno.EBUSY):
                raise
            batch = batch[1:]
            continue
        for at, (first, last) in enumerate(batch):
            if done < last - first:
                batch = batch[at + 1 :]
                break
            done -= last - first
        else:
            return
