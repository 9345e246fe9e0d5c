"""Frames too large for a packet travel in memfds: the sender copies into one, the receiver copies out of it.

Making a memfd costs many times what copying does (the kernel clears and maps every page), so each end of a path keeps
its own: the sender a :class:`Shelf` of memfds to fill again and again, the receiver a
:class:`~retinue.pipes.reader.Reader` with mappings of those that come again. A program may also make a body where it
will travel (:meth:`Shelf.reserve`); then the sender copies nothing. Memfds are never shared between paths: what one
peer was told stays in one until it is overwritten. Who trusts whom:

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
import struct
import sys
import threading
from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import Final

import msgpack

from retinue.pipes import wire
from retinue.pipes.draft import Draft
from retinue.pipes.errors import LimitExceeded

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
# What so many later messages of the path did not need is dropped, at both ends.
PATIENCE: Final = 16
# A binary body longer than this is never packed, only copied.
APART: Final = 64 * 1024

BIN32: Final = 0xC6
_INT64: Final = 0xD3
# What is before the body of a draft, whatever its number is; and how much may be behind it.
_HEAD: Final = struct.Struct(">BBBqBI")
_TAIL: Final = 32

_FUTURE_WRITE: Final = 0x10  # F_SEAL_FUTURE_WRITE, since Linux 5.1
_POPULATE_WRITE: Final = 23  # MADV_POPULATE_WRITE, since Linux 5.14
_FIXED: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


def map_shared(descriptor: int, length: int, protection: int) -> mmap.mmap:
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

    def contents(self) -> bytes:
        """A copy of the frame."""
        return os.pread(self.descriptor, self.size, 0)

    def release(self) -> None:
        """The other end has read it, or nobody needs it. More than once is no error."""
        self._shelf._take_back(self)

    def discard(self) -> None:
        """Nobody needs it, and nobody shall get it again."""
        self._shelf._out.discard(self)
        self._shelf._drafts.discard(self)
        self._close()

    def _open(self) -> None:
        os.ftruncate(self.descriptor, self._capacity)
        # Mapped now, because nobody can after the seal.
        self._mapping = map_shared(self.descriptor, self._capacity, mmap.PROT_READ | mmap.PROT_WRITE)

    def _seal(self) -> bool:
        """Nobody can change it any more, but through the mapping. False if the kernel does not know such a seal."""
        try:
            fcntl.fcntl(self.descriptor, fcntl.F_ADD_SEALS, _FIXED | _FUTURE_WRITE)
        except OSError:
            return False
        return True

    def _write(self, parts: Sequence[Buffer]) -> None:
        """The first filling: written, which is cheaper than mapping fresh pages, and then sealed."""
        self._open()
        offset = 0
        for part in parts:
            rest = memoryview(part).cast("B")
            while rest:
                done = os.pwrite(self.descriptor, rest, offset)
                offset, rest = offset + done, rest[done:]
        self.nbytes = self.size = offset
        if not self._seal():
            assert self._mapping is not None
            self._mapping.close()
            self._mapping = None
            fcntl.fcntl(self.descriptor, fcntl.F_ADD_SEALS, _FIXED | fcntl.F_SEAL_WRITE)

    def _make_room(self, size: int) -> mmap.mmap:
        """The mapping, with pages for so many bytes."""
        assert self._mapping is not None
        if size > self.nbytes:  # without room for its pages, writing to the mapping would end this process
            os.posix_fallocate(self.descriptor, 0, size)
            self.nbytes = size
        if size > self._populated:
            pages = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
            with suppress(OSError):  # only faster, for one call instead of a fault for each page
                self._mapping.madvise(_POPULATE_WRITE, 0, pages)
            self._populated = pages
        return self._mapping

    def _fill(self, parts: Sequence[Buffer], size: int) -> None:
        """A later filling, through the mapping."""
        mapping = self._make_room(size)
        offset = 0
        for part in parts:
            end = offset + memoryview(part).nbytes
            mapping[offset:end] = part
            offset = end
        self.size = size

    def _finish(self, head: bytes, length: int, tail: bytes) -> None:
        """The body was made in place; only what is around it is missing."""
        assert self._mapping is not None
        end = len(head) + length
        self.size = end + len(tail)
        self._mapping[: len(head)] = head
        self._mapping[end : self.size] = tail

    def _close(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1
        if self._mapping is not None:
            with suppress(BufferError):  # a program still has a part of a draft: it ends with that
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
        self._drafts: set[Slot] = set()  # those that a program fills, and may never send
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
        slot = self._take_out(size)
        try:
            if slot._mapping is None:
                slot._write(parts)
            else:
                slot._fill(parts, size)
        except BaseException:
            slot.discard()
            raise
        return slot

    def reserve(self, size: int) -> Draft:
        """A body of so many bytes to be made in a slot; in other memory when it is small, or before Linux 5.1.

        Raises OSError and ValueError as :meth:`store` does, :exc:`LimitExceeded` when it cannot be one message.
        """
        if self._closed:
            raise ValueError("this shelf is closed")
        room = _HEAD.size + size + _TAIL
        if room > wire.MAX_MESSAGE:
            raise LimitExceeded("size of a message in bytes", room, wire.MAX_MESSAGE)
        if size < wire.MAX_PACKET:
            return Draft(memoryview(bytearray(size)))
        slot = self._take_out(room)
        try:
            if slot._mapping is None:
                slot._open()
                if not slot._seal():
                    slot.discard()
                    return Draft(memoryview(bytearray(size)))
            view = memoryview(slot._make_room(room))
        except BaseException:
            slot.discard()
            raise
        self._out.remove(slot)
        self._drafts.add(slot)
        with view:
            return Draft(view[_HEAD.size : _HEAD.size + size], slot)

    def finish(self, frame: wire.Frame) -> Slot:
        """The slot of a message whose body is a draft of this shelf, which is thereby sent.

        Raises ValueError for any other draft, and what :meth:`Draft.take` raises.
        """
        kind, ident, draft, *rest = frame
        draft.check()
        slot = draft.place
        if not isinstance(slot, Slot) or slot not in self._drafts:
            raise ValueError("a draft is for a message of the path that has made it")
        draft.take()
        self._drafts.remove(slot)
        self._out.add(slot)
        head = _HEAD.pack(0x90 | len(frame), kind, _INT64, ident, BIN32, len(draft))
        slot._finish(head, len(draft), b"".join(map(msgpack.packb, rest)))
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
        for slots in (self._out, self._drafts):
            while slots:
                slots.pop()._close()

    def _take_out(self, size: int) -> Slot:
        """A slot for so many bytes; one without a mapping is new."""
        capacity = max(SMALLEST_SLOT, 1 << (size - 1).bit_length())
        self._count(capacity)
        slot = self._find(capacity) or Slot(self, capacity)
        self._out.add(slot)
        return slot

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


def split(frame: wire.Frame) -> list[Buffer]:
    """The bytes of a frame as parts to be stored one behind the other; together they are what wire.encode makes.

    A large binary body is a part of its own and not copied: it must not change until the parts are stored. Raises as
    wire.encode does: TypeError for what cannot be said, :exc:`LimitExceeded` over MAX_MESSAGE.
    """
    body = frame[2] if len(frame) > 2 else None
    if not isinstance(body, bytes | bytearray | memoryview) or memoryview(body).nbytes <= APART:
        return [wire.encode(frame)]
    body = memoryview(body).cast("B")  # TypeError when it is not contiguous
    around = wire.encode([*frame[:2], None, *frame[3:]])
    nil = 1 + sum(len(msgpack.packb(each)) for each in frame[:2])
    parts: list[Buffer] = [b"%b%c%b" % (around[:nil], BIN32, body.nbytes.to_bytes(4, "big")), body]
    if tail := around[nil + 1 :]:
        parts.append(tail)
    size = sum(map(len, parts))
    if size > wire.MAX_MESSAGE:
        raise LimitExceeded("size of a message in bytes", size, wire.MAX_MESSAGE)
    return parts
