"""What one end of a path reads large frames with; :mod:`~retinue.pipes.bulk` says what it may rely on."""

import fcntl
import mmap
import os
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from retinue.pipes import wire
from retinue.pipes.bulk import APART, BIN32, PATIENCE, map_shared
from retinue.pipes.errors import ProtocolViolation

# Mappings that a receiver keeps for a path (as many as a shelf has slots), and their bytes.
KEPT_VIEWS: Final = 4
KEPT_BYTES: Final = 2 * wire.MAX_MESSAGE
# What may be around a large binary body: array, kind, id; numbers.
_AROUND: Final = 64

# F_SEAL_FUTURE_WRITE (0x10) has no name in the library.
_NO_HOLES_TO_COME: Final = fcntl.F_SEAL_WRITE | 0x10


class _View:
    """A mapping of a memfd that came more than once."""

    __slots__ = ("_solid", "mapping", "since")

    def __init__(self, descriptor: int, length: int) -> None:
        self.mapping = map_shared(descriptor, length, mmap.PROT_READ)
        self.since = 0  # the message that used it last
        self._solid = 0  # bytes before the first hole, when that was looked for

    def covers(self, descriptor: int, size: int) -> bool:
        """Whether that many bytes are mapped and none of them is in a hole."""
        if self._solid < size:
            with suppress(OSError):  # this descriptor is open for its path only
                self._solid = os.lseek(descriptor, 0, os.SEEK_HOLE)
        return size <= min(self._solid, len(self.mapping))


class Reader:
    """What one end of a path reads large frames with.

    A memfd that comes for the first time is read by pread; when it comes again it is mapped, which pays from the next
    time on. A mapping that PATIENCE later messages did not need is dropped; of more than KEPT_VIEWS or KEPT_BYTES the
    longest unused. A file that is kept mapped cannot end, so its number means no other file.
    """

    def __init__(self) -> None:
        self._fetched = 0
        self._seen: dict[tuple[int, int], int] = {}  # device and inode of what was not mapped: the message
        self._views: dict[tuple[int, int], _View] = {}  # the longest unused first
        self._closed = False

    def fetch(self, untrusted_descriptor: int, size: int) -> wire.Frame:
        """The checked frame that is the first ``size`` bytes of a memfd. Does not close the descriptor.

        Raises :exc:`ProtocolViolation`; MemoryError when there is no room for a copy; ValueError after :meth:`close`.
        """
        if self._closed:
            raise ValueError("this reader is closed")
        try:  # before anything else: it tells a memfd, and no file system of the peer's making is asked
            seals = fcntl.fcntl(untrusted_descriptor, fcntl.F_GET_SEALS)
        except OSError:
            raise ProtocolViolation("a bulk descriptor that is not a memfd") from None
        if not seals & fcntl.F_SEAL_SHRINK:
            raise ProtocolViolation("a bulk descriptor that is not sealed against shrinking")
        status = os.fstat(untrusted_descriptor)
        if status.st_size < size:
            raise ProtocolViolation("a bulk descriptor that is shorter than announced")
        self._fetched += 1
        view = self._find(untrusted_descriptor, status, seals)
        self._drop_unused()
        if view is None or not view.covers(untrusted_descriptor, size):
            return _parse(lambda start, end: _pread(untrusted_descriptor, start, end), size)
        mapping = view.mapping
        return _parse(lambda start, end: mapping[start:end], size)

    def close(self) -> None:
        """Drop all mappings."""
        self._closed = True
        while self._views:
            self._views.popitem()[1].mapping.close()

    def _find(self, descriptor: int, status: os.stat_result, seals: int) -> _View | None:
        """The mapping of a file, kept or new. None: it is to be read by pread."""
        key = status.st_dev, status.st_ino
        view = self._views.pop(key, None)
        if view is None:
            # A page of a hugetlb file may be missing when it is read, whatever the file says; fatal. (st_blksize does
            # not tell: it is large for ordinary memfds too where the host gives those huge pages.)
            if os.fstatvfs(descriptor).f_bsize != mmap.PAGESIZE:
                raise ProtocolViolation("a bulk descriptor of huge pages")
            again, self._seen[key] = key in self._seen, self._fetched
            if not again or not seals & _NO_HOLES_TO_COME or status.st_size > wire.MAX_MESSAGE:
                return None
            try:
                view = _View(descriptor, status.st_size)
            except OSError:  # no address space or descriptors, or this one is open for writing only
                return None
        view.since = self._fetched
        self._views[key] = view  # behind the others
        return view

    def _drop_unused(self) -> None:
        oldest = self._fetched - PATIENCE
        self._seen = {key: number for key, number in self._seen.items() if number >= oldest}
        mapped = sum(len(view.mapping) for view in self._views.values())
        for key, view in list(self._views.items()):
            if view.since >= oldest and len(self._views) <= KEPT_VIEWS and mapped <= KEPT_BYTES:
                break
            mapped -= len(view.mapping)
            view.mapping.close()
            del self._views[key]


def _pread(descriptor: int, start: int, end: int) -> bytes:
    try:
        data = os.pread(descriptor, end - start, start)
    except OSError:  # opened for writing only, or what was swapped out cannot be read back
        data = b""
    if len(data) != end - start:
        raise ProtocolViolation("a bulk descriptor that cannot be read")
    return data


# The first byte of an integer in msgpack: how many bytes it has with it.
_WIDTHS: Final = dict.fromkeys([*range(0x80), *range(0xE0, 0x100)], 1) | {
    0xCC: 2, 0xCD: 3, 0xCE: 5, 0xCF: 9, 0xD0: 2, 0xD1: 3, 0xD2: 5, 0xD3: 9,
}  # fmt: skip
_NIL: Final = b"\xc0"


def _parse(copy: Callable[[int, int], bytes], size: int) -> wire.Frame:
    """The checked frame. ``copy(start, end)`` gives a private copy of that part; no part is looked at in two copies."""
    head = copy(0, min(_AROUND, size))
    if size > APART and 0x93 <= head[0] <= 0x96 and head[1] < 0x80 and head[2] in _WIDTHS:
        marker = 2 + _WIDTHS[head[2]]
        start = marker + 5
        end = start + int.from_bytes(head[marker + 1 : start], "big")
        if head[marker] == BIN32 and end - start > APART and end <= size <= end + _AROUND:
            # A message or reply with a binary body. It is checked with a nil in its place: it may be anything.
            frame = wire.Decoder().decode_bulk(head[:marker] + _NIL + copy(end, size))
            frame[2] = copy(start, end)
            return frame
    return wire.Decoder().decode_bulk(copy(0, size))
