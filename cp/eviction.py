"""How pages of segments go out of real storage: looked at, taken out of the tables of their machine, written, dropped.

The kernel drops what is clean and in no tables, and nothing else: so a page that is touched meanwhile simply stays, and
nobody has to stand still or to be asked before the coldest of those that were unmapped some time ago are dropped. They
are a stock. It is laid in ahead of need: what is cold is begun to be written then, and clean when it is dropped.

All functions may be called in worker threads.
"""

import contextlib
import errno
import os
import threading
from collections.abc import Iterator, Sequence
from typing import Final

import attrs

from retinue.cp.host import file_pages
from retinue.cp.recency import Range, Recency, coldest

__all__ = ["Looked", "Segment", "cached", "drop_cold", "look", "put_out", "unmap_outside", "write_ahead"]

TRIES: Final = 3
"""Times that pages are dropped: the kernel leaves those that it has in its hands just then."""

STOCK: Final = 0.5
"""The part of what was in real storage that is dropped without another look."""

DUE: Final = 0.125
"""The part of what was in real storage after which there is another look."""

ROUNDS: Final = 8
"""Times that as many more are tried as could not be dropped: some had been touched, or are not written yet."""

FEW: Final = 256
"""Ranges of which each is asked for by itself; of more it costs less to look at the whole segment."""


@attrs.define
class Segment:
    """One that a process has; ``size`` in bytes."""

    name: str
    size: int
    keep: bool
    descriptor: int
    device: int
    inode: int
    recency: Recency
    stock: int = 0
    """Bytes that were in real storage at the last look."""
    _closed: bool = False
    _lock: threading.Lock = attrs.field(factory=threading.Lock, eq=False)

    @classmethod
    def of(cls, name: str, keep: bool, descriptor: int) -> "Segment":
        """Of a file."""
        about = os.fstat(descriptor)
        return cls(name, about.st_size, keep, descriptor, about.st_dev, about.st_ino, Recency(about.st_size))

    @contextlib.contextmanager
    def opened(self) -> Iterator[int]:
        """A descriptor of its own for a block of code in a thread: while the other is closed, and its number has
        become that of another file, this one stays. OSError for one that is closed."""
        with self._lock:
            if self._closed:
                raise OSError(errno.EBADF, f"the segment {self.name} is closed")
            descriptor = os.dup(self.descriptor)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def close(self) -> None:
        with self._lock:
            if not self._closed:
                self._closed = True
                os.close(self.descriptor)

    @property
    def used(self) -> float:
        """The part of the stock that was chosen since the last look; 1 when there was none."""
        return 1 - self.recency.left / self.stock if self.stock else 1.0


@attrs.define
class Looked:
    """What a look at one segment has found."""

    segment: Segment
    pid: int
    mappings: list[file_pages.Mapping]
    touched: bool
    """Some of it is in the tables of its machine, or may be."""
    resident: int

    @property
    def left(self) -> int:
        """Bytes that are in real storage now, of what was."""
        with contextlib.suppress(OSError):
            return min(self.resident, cached(self.segment))
        return 0


def cached(segment: Segment) -> int:
    """Bytes of a segment that are in real storage. OSError."""
    with segment.opened() as descriptor:
        return file_pages.cached(descriptor, [(0, segment.size)])[0]


def look(wanted: Sequence[tuple[int, Segment]]) -> list[Looked]:
    """At segments of processes, for a round of their recency. Nobody may close them meanwhile."""
    found = []
    for pid, segment in wanted:
        mappings = file_pages.mapped(pid, segment.device, segment.inode) if pid else []
        touched = file_pages.present(pid, mappings, segment.size) if mappings else None
        resident = file_pages.residency(segment.descriptor, segment.size)
        segment.recency.look(resident, touched)
        segment.stock = segment.recency.left
        in_tables = touched is None or 1 in touched
        found.append(Looked(segment, pid, mappings, in_tables, resident.count(1) * file_pages.PAGE))
    return found


def write_ahead(segments: Sequence[Segment]) -> None:
    """Begin to write what was changed, and do not wait for it: what will be dropped soon is clean then.

    Not only what is cold: one call for all costs less than one for each page, which is how file systems do it worst.
    """
    for segment in segments:
        with contextlib.suppress(OSError), segment.opened() as descriptor:  # the disk does not take them: they stay
            file_pages.begin_writing(descriptor, [(0, segment.size)])


def drop_cold(segments: Sequence[Segment], most: int) -> int:
    """Drop so many bytes of what is cold, clean and was not touched since it was unmapped. Returns how many it were."""
    gone = 0
    for _ in range(ROUNDS):
        chosen = _coldest([segment for segment in segments if segment.used < STOCK], most - gone)
        for segment, each in chosen:
            gone += (each.count(1) - _drop(segment, each).count(1)) * segment.recency.chunk
        if not chosen or gone >= most:
            break
    return gone


def put_out(looked: Sequence[Looked], most: int | None) -> int:
    """Write and drop so many bytes, or all. Returns how many bytes are out of real storage since the look."""
    whole = sum(each.segment.size for each in looked)
    for segment, chosen in _coldest([each.segment for each in looked], whole if most is None else most):
        left = _drop(segment, chosen)
        for _ in range(TRIES if 1 in left else 0):
            tried = left
            with contextlib.suppress(OSError), segment.opened() as descriptor:  # the disk does not take them: they stay
                file_pages.write_back(descriptor, _few(segment, left))
            left = _drop(segment, left)
            if 1 not in left or left == tried:
                break
    return sum(each.resident - each.left for each in looked)


def unmap_outside(looked: Sequence[Looked], most: int | None) -> bool:
    """All, or what would be put out first, and without the machine. False when it has to be asked."""
    touched = [each for each in looked if each.touched]
    if most is None:
        chosen = [[(0, each.segment.size)] for each in touched]
    else:
        cold = coldest([each.segment.recency for each in looked], most, keep=True)
        chosen = [each.segment.recency.ranges(which) for each, which in zip(looked, cold, strict=True) if each.touched]
    return all(
        each.mappings and file_pages.unmap(each.pid, each.mappings, ranges)
        for each, ranges in zip(touched, chosen, strict=True)
    )


def _coldest(segments: Sequence[Segment], most: int, *, keep: bool = False) -> list[tuple[Segment, bytes]]:
    chosen = coldest([segment.recency for segment in segments], most, keep=keep)
    return [(segment, each) for segment, each in zip(segments, chosen, strict=True) if 1 in each]


def _few(segment: Segment, chosen: bytes) -> list[Range]:
    """Ranges in which chosen chunks are; all of it rather than very many."""
    ranges = segment.recency.ranges(chosen)
    return ranges if len(ranges) <= FEW else [(0, segment.size)]


def _drop(segment: Segment, chosen: bytes) -> bytes:
    """Returns what is left of the chosen chunks."""
    ranges = segment.recency.ranges(chosen)
    try:
        with segment.opened() as descriptor:
            file_pages.drop(descriptor, ranges)
            if len(ranges) > FEW:
                resident = file_pages.residency(descriptor, segment.size)
            else:
                resident = _found(descriptor, segment.size, ranges)
    except OSError:
        return chosen
    return segment.recency.dropped(chosen, resident)


def _found(descriptor: int, whole: int, ranges: list[Range]) -> bytes:
    """Pages that are still there, of these ranges."""
    resident = bytearray(-(-whole // file_pages.PAGE))
    for (offset, length), size in zip(ranges, file_pages.cached(descriptor, ranges), strict=True):
        if 0 < size < length:
            return file_pages.residency(descriptor, whole)
        if size:
            first, last = offset // file_pages.PAGE, -(-(offset + length) // file_pages.PAGE)
            resident[first:last] = b"\1" * (last - first)
    return bytes(resident)
