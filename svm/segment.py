"""Segments: large writable memory that lies in a file and need not be resident, as a program has it.

A :class:`Segment` is an :class:`mmap.mmap`, so a buffer like any other: slices, ``memoryview``, ``numpy.frombuffer``.
"""

import contextlib
import mmap
import os
import re
import resource
from typing import Final

__all__ = ["Segment", "map_segment", "size_in_bytes"]

_SIZE: Final = re.compile(r"([1-9][0-9]{0,14})([KMG])", re.ASCII)
# Bytes that are read ahead by one call: of more the kernel reads the beginning only (read_ahead_kb is 128 or more).
_PIECE: Final = 128 << 10
_UNITS: Final = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


class Segment(mmap.mmap):
    """Writable memory of ``len(segment)`` bytes, zeros at first.

    ``name`` is what the machine calls it. ``keep``: what is in it outlives the machine, and the system.
    Its parts are read from the paging volume when they are touched and are not resident, page by page: a program that
    goes through it in order says so with :meth:`prefetch`.
    """

    name: str
    keep: bool
    _room = 0  # bytes by which the limit of addresses is higher because of it

    def prefetch(self, offset: int = 0, length: int | None = None) -> None:
        """Have a range of bytes read ahead, all at once; does not wait for it. The whole segment without arguments."""
        end = len(self) if length is None else min(len(self), offset + length)
        for at in range(offset - offset % mmap.PAGESIZE, end, _PIECE):
            self.madvise(mmap.MADV_WILLNEED, at, min(_PIECE, end - at))

    def unmap(self, offset: int, length: int) -> None:
        """Take a range out of the tables of this process: nothing is lost, and the control program can put it out."""
        if not self.closed and 0 <= offset < len(self) and length > 0:
            self.madvise(mmap.MADV_DONTNEED, offset, min(length, len(self) - offset))

    def resize(self, newsize: int) -> None:
        """It has one size for good: TypeError."""
        raise TypeError("a segment keeps its size")

    def close(self) -> None:
        """Give up the memory; what was not kept is gone when the machine ends. BufferError while somebody views it."""
        super().close()
        room, self._room = self._room, 0
        _change_addresses(-room)


def map_segment(descriptor: int, name: str, size: int, *, keep: bool) -> Segment:
    """The segment of a descriptor, which is closed. OSError: there are no addresses for it."""
    try:
        room = _change_addresses(size)
        try:
            segment = Segment(descriptor, size)
        except BaseException:
            _change_addresses(-room)
            raise
    finally:
        os.close(descriptor)
    # A fault reads one page, and not the MiBs around it that some disks are set to: the control program has few to
    # give away when it puts pages out.
    segment.madvise(mmap.MADV_RANDOM)
    segment.name, segment.keep, segment._room = name, keep, room
    return segment


def size_in_bytes(size: int | str) -> int:
    """Bytes of ``4096`` or of ``"512M"``. ValueError."""
    if isinstance(size, str):
        found = _SIZE.fullmatch(size)
        if found is None:
            raise ValueError(f'{size!r} is no size such as "64M"')
        return int(found[1]) * _UNITS[found[2]]
    if isinstance(size, bool) or size <= 0:
        raise ValueError(f"{size!r} is no size of a segment")
    return size


def _change_addresses(size: int) -> int:
    """Raise or lower the limit of addresses by whole pages, if there is one; returns by how many bytes it was.

    It is without segments, and its hard one leaves room for those that the machine may have: above that nothing is
    raised, and the mapping says that there is no room.
    """
    size = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    if size == 0 or soft == resource.RLIM_INFINITY:
        return 0
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (soft + size, hard))
        return size
    return 0
