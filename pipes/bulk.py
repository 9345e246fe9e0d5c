"""Frames too large for a packet travel in memfds: the sender copies into one, the receiver copies out of it.

Making a memfd costs many times what copying does (the kernel clears and maps every page), so each end of a path keeps
its own: the sender a :class:`Shelf` of memfds to fill again and again, the receiver a :class:`Reader` with mappings of
those that come again. Neither is ever shared between paths: what one peer was told stays in a memfd until it is
overwritten. Who trusts whom:

* The receiver never writes. A memfd is sealed against every change but through the mapping that its maker has
  (memfd_create(2), F_SEAL_FUTURE_WRITE). A kernel without that seal gets a new memfd for each message, sealed for good.
* The sender may write at any time. So every byte is copied once, and only the copy is parsed.
* A mapping must not fault. It cannot end too early (F_SEAL_SHRINK is required), and it is read only where the file
  has no hole and can get none (F_SEAL_WRITE or F_SEAL_FUTURE_WRITE forbid to punch one): reading a hole allocates a
  page on the receiver's account, and kills it when there is none. All else is read by pread(2), which takes a hole for
  zeros, allocates nothing, and is half as fast.

Pages are charged to who wrote them first, the sender; the receiver pays for its copy. A mapping that is kept pins pages
that the sender has dropped, hence the bounds below.
"""

import fcntl
import mmap
import os
import sys
import threading
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from typing import Final

import msgpack

from retinue.pipes import wire
from retinue.pipes.errors import LimitExceeded, ProtocolViolation

Buffer = bytes | bytearray | memoryview

# The size of a slot is a power of two, so that messages of about the same size share slots. (Pages that no message has
# reached cost nothing.)
SMALLEST_SLOT: Final = 128 * 1024
# Slots of a path: one is read while another is filled. While they are small, two more make up for late answers.
LARGE_SLOTS: Final = 2
SMALL_SLOTS: Final = 4
SMALL_BYTES: Final = 4 * 1024 * 1024
# Bytes in free slots of all paths of the process; over that, those go that are free longest.
FREE_BYTES: Final = 64 * 1024 * 1024
# Mappings that a receiver keeps for a path (as many as a shelf has slots), and their bytes.
KEPT_VIEWS: Final = 4
KEPT_BYTES: Final = 2 * wire.MAX_MESSAGE
# What so many later messages of the path did not need is dropped, at both ends.
PATIENCE: Final = 16
# A binary body longer than this is never packed, only copied; and what may be around it: array, kind, id; numbers.
_APART: Final = 64 * 1024
_AROUND: Final = 64

_FUTURE_WRITE: Final = 0x10  # F_SEAL_FUTURE_WRITE, since Linux 5.1
_POPULATE_WRITE: Final = 23  # MADV_POPULATE_WRITE, since Linux 5.14
_FIXED: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_NO_HOLES_TO_COME: Final = fcntl.F_SEAL_WRITE | _FUTURE_WRITE


def _map(descriptor: int, length: int, protection: int) -> mmap.mmap:
    """A shared mapping; before Python 3.13 it costs a descriptor. OSError when there is no room."""
    if sys.version_info >= (3, 13):
        return mmap.mmap(descriptor, length, prot=protection, trackfd=False)
    return mmap.mmap(descriptor, length, prot=protection)


class Slot:
    """A memfd that holds one frame in its first ``size`` bytes. The descriptor belongs to the shelf; -1 once closed."""

    __slots__ = ("_capacity", "_mapping", "_populated", "_shelf", "_since", "descriptor", "nbytes", "size")

    def __init__(self, shelf: "Shelf", capacity: int) -> None:
        self.descriptor = os.memfd_create("retinue-bulk", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        self.size = 0
        self.nbytes = 0  # that have pages
        self._shelf = shelf
        self._capacity = capacity
        self._mapping: mmap.mmap | None = None
        self._populated = 0  # bytes whose pages are in the mapping, too
        self._since = 0  # free since this message of the shelf

    def release(self) -> None:
        """The other end has read it, or nobody needs it. More than once is no error."""
        self._shelf._take_back(self)

    def _write(self, parts: Sequence[Buffer]) -> None:
        """The first filling: written, which is cheaper than mapping fresh pages, and then sealed."""
        os.ftruncate(self.descriptor, self._capacity)
        # Mapped now, because nobody can after the seal.
        mapping = self._mapping = _map(self.descriptor, self._capacity, mmap.PROT_READ | mmap.PROT_WRITE)
        offset = 0
        for part in parts:
            rest = memoryview(part).cast("B")
            while rest:
                done = os.pwrite(self.descriptor, rest, offset)
                offset, rest = offset + done, rest[done:]
        self.nbytes = self.size = offset
        try:
            fcntl.fcntl(self.descriptor, fcntl.F_ADD_SEALS, _FIXED | _FUTURE_WRITE)
        except OSError:  # EINVAL: an older kernel
            mapping.close()
            self._mapping = None
            fcntl.fcntl(self.descriptor, fcntl.F_ADD_SEALS, _FIXED | fcntl.F_SEAL_WRITE)

    def _fill(self, parts: Sequence[Buffer], size: int) -> None:
        """A later filling, through the mapping."""
        assert self._mapping is not None
        if size > self.nbytes:  # without room for its pages, writing to the mapping would end this process
            os.posix_fallocate(self.descriptor, 0, size)
            self.nbytes = size
        if size > self._populated:
            pages = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
            with suppress(OSError):  # only faster, for one call instead of a fault for each page
                self._mapping.madvise(_POPULATE_WRITE, 0, pages)
            self._populated = pages
        offset = 0
        for part in parts:
            end = offset + memoryview(part).nbytes
            self._mapping[offset:end] = part
            offset = end
        self.size = size

    def _close(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1
        if self._mapping is not None:
            self._mapping.close()
            self._mapping = None


class _Pool:
    """The free slots of all shelves of this process, the longest free first. Shelves may be in several threads."""

    def __init__(self) -> None:
        self.nbytes = 0
        self._slots: dict[Slot, None] = {}
        self._lock = threading.RLock()

    def put(self, slot: Slot) -> None:
        """A slot is free; what is over the bound is dropped, which may be this one."""
        with self._lock:
            slot._shelf._free.append(slot)
            self._slots[slot] = None
            self.nbytes += slot.nbytes
            while self.nbytes > FREE_BYTES:
                self.drop(next(iter(self._slots)))

    def take(self, slot: Slot) -> bool:
        """Take it out to use it; False if it was dropped meanwhile."""
        with self._lock:
            if slot not in self._slots:
                return False
            del self._slots[slot]
            self.nbytes -= slot.nbytes
            slot._shelf._free.remove(slot)
            return True

    def drop(self, slot: Slot) -> None:
        """Take it out and close it."""
        if self.take(slot):
            slot._close()


_FREE: Final = _Pool()


def _most(slots: Collection[Slot]) -> int:
    """How many slots a path should have if they are like these."""
    return SMALL_SLOTS if all(slot.nbytes <= SMALL_BYTES for slot in slots) else LARGE_SLOTS


class Shelf:
    """The memfds of one end of a path, for what it sends. What was stored counts as told to the peer.

    Without timers, memory goes back like this: a slot that comes back is kept only if its size was stored twice within
    PATIENCE messages; the constants above bound what is kept; a free slot that PATIENCE later messages did not
    need is dropped. So one large message pins nothing, and a path that falls silent after several keeps at most two
    large slots, until other paths need the room.
    """

    def __init__(self) -> None:
        self._free: list[Slot] = []  # the longest free first
        self._out: set[Slot] = set()
        self._stored = 0
        # Capacity of a slot: the number of the latest message of that size, and whether another came shortly before.
        self._usual: dict[int, tuple[int, bool]] = {}
        self._closed = False

    def store(self, parts: Sequence[Buffer]) -> Slot:
        """Copy the parts, one behind the other, into a slot. The slot is the caller's until it is released.

        Raises OSError when the host has no memory or descriptors for it, ValueError when the shelf is closed.
        """
        if self._closed:
            raise ValueError("this shelf is closed")
        size = sum(memoryview(part).nbytes for part in parts)
        capacity = max(SMALLEST_SLOT, 1 << (size - 1).bit_length())
        self._count(capacity)
        slot = self._find(capacity)
        fresh = slot is None
        slot = slot or Slot(self, capacity)
        try:
            if fresh:
                slot._write(parts)
            else:
                slot._fill(parts, size)
        except BaseException:
            slot._close()
            raise
        self._out.add(slot)
        return slot

    @property
    def crowded(self) -> bool:
        """So many slots are out that they would not all be kept: another costs several times as much as waiting."""
        return len(self._out) >= _most(self._out)

    def close(self) -> None:
        """Close every slot, also those that are not released."""
        self._closed = True
        for slot in self._free.copy():
            _FREE.drop(slot)
        while self._out:
            self._out.pop()._close()

    def _count(self, capacity: int) -> None:
        self._stored += 1
        latest, _ = self._usual.get(capacity, (-PATIENCE, False))
        self._usual[capacity] = self._stored, self._stored - latest <= PATIENCE
        for slot in self._free.copy():
            if self._stored - slot._since > PATIENCE:
                _FREE.drop(slot)

    def _find(self, capacity: int) -> Slot | None:
        """The free slot of this capacity that was used last: it is the likeliest to be in the cache."""
        for slot in reversed(self._free.copy()):
            if slot._capacity == capacity and _FREE.take(slot):
                return slot
        return None

    def _take_back(self, slot: Slot) -> None:
        if slot not in self._out:
            return
        self._out.remove(slot)
        if slot._mapping is None or not self._usual[slot._capacity][1]:
            slot._close()
            return
        slot._since = self._stored
        _FREE.put(slot)
        for surplus in self._free[: -_most(self._free)]:
            _FREE.drop(surplus)


class _View:
    """A mapping of a memfd that came more than once."""

    __slots__ = ("_solid", "mapping", "since")

    def __init__(self, descriptor: int, length: int) -> None:
        self.mapping = _map(descriptor, length, mmap.PROT_READ)
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
_BIN32: Final = 0xC6


def _parse(copy: Callable[[int, int], bytes], size: int) -> wire.Frame:
    """The checked frame. ``copy(start, end)`` gives a private copy of that part; no part is looked at in two copies."""
    head = copy(0, min(_AROUND, size))
    if size > _APART and 0x93 <= head[0] <= 0x95 and head[1] < 0x80 and head[2] in _WIDTHS:
        marker = 2 + _WIDTHS[head[2]]
        start = marker + 5
        end = start + int.from_bytes(head[marker + 1 : start], "big")
        if head[marker] == _BIN32 and end - start > _APART and end <= size <= end + _AROUND:
            # A message or reply with a binary body. It is checked with a nil in its place: it may be anything.
            frame = wire.Decoder().decode_bulk(head[:marker] + _NIL + copy(end, size))
            frame[2] = copy(start, end)
            return frame
    return wire.Decoder().decode_bulk(copy(0, size))


def split(frame: wire.Frame) -> list[Buffer]:
    """The bytes of a frame as parts to be stored one behind the other; together they are what wire.encode makes.

    A large binary body is a part of its own and not copied: it must not change until the parts are stored. Raises as
    wire.encode does: TypeError for what cannot be said, :exc:`LimitExceeded` over MAX_MESSAGE.
    """
    body = frame[2] if len(frame) > 2 else None
    if not isinstance(body, bytes | bytearray | memoryview) or memoryview(body).nbytes <= _APART:
        return [wire.encode(frame)]
    body = memoryview(body).cast("B")  # TypeError when it is not contiguous
    around = wire.encode([*frame[:2], None, *frame[3:]])
    nil = 1 + sum(len(msgpack.packb(each)) for each in frame[:2])
    parts: list[Buffer] = [b"%b%c%b" % (around[:nil], _BIN32, body.nbytes.to_bytes(4, "big")), body]
    if tail := around[nil + 1 :]:
        parts.append(tail)
    size = sum(map(len, parts))
    if size > wire.MAX_MESSAGE:
        raise LimitExceeded("size of a message in bytes", size, wire.MAX_MESSAGE)
    return parts
