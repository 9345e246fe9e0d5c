"""A tap: what somebody sees who looks at the messages of an edge.

Relays show it the packets of the edge's paths. It keeps them until its reader comes for them, up to a bound; what does
not fit is lost, and counted. Nothing it does makes a path wait, and nothing secret leaves it.

The frames are decoded twice: at once, because to know what was lost, repeated or answered takes every frame in its
order; and for the reader, because packets take little room and what they decode to may take a hundred times more.
"""

import fcntl
import os
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import attrs
import msgpack
import trio

from retinue.cp.errors import ControlProgramError
from retinue.cp.redaction import Redaction
from retinue.cp.relay import Direction, Listener
from retinue.cp.secrets import NO_SECRETS, Secrets
from retinue.cp.traffic import Note, Traffic
from retinue.pipes import ProtocolViolation, wire
from retinue.pipes.wire import Kind

# Bytes that wait for the reader.
ROOM: Final = 4 * 1024 * 1024
# What a frame costs there beside its bytes.
OVERHEAD: Final = 150
# Bytes of the largest bulk message whose body is shown, and of the largest that is recorded.
SHOWN: Final = 1024 * 1024
RECORDED: Final = ROOM
# Seconds in which packets gather to be read together: one by one they would cost several times as much.
GATHER: Final = 0.02
# Items of one batch, and bytes of packets in it: while they are decoded every path waits.
BATCH: Final = 64
BATCH_ROOM: Final = wire.MAX_PACKET
# Bulk messages over this size are decoded in a thread: a hostile one takes its time.
SLOW: Final = 128 * 1024
# Levels of a body that fit a message which itself has some.
DEEPEST: Final = wire.MAX_DEPTH - 16

Item = dict[str, Any]

# Frames that say nothing about messages.
_SILENT: Final = frozenset({Kind.HELLO, Kind.SEEN, Kind.CREDIT})


class TapFailed(ControlProgramError):
    """The tap could not see something; the path goes on."""


@attrs.frozen
class Lost:
    """Items that the reader was too slow for: they would stand here."""

    count: int


@attrs.define(eq=False)
class _Gap:
    count: int = 0


@attrs.define(eq=False)
class _Bulk:
    """A frame that came in a memfd: its size, how it begins, and all of it if it is small enough."""

    size: int
    head: wire.Frame
    contents: bytes | None


@attrs.define(eq=False)
class _Held:
    """A packet with what was noted about each frame of it (None: not to be shown) and its bulk frames."""

    time: float
    path: int
    direction: Direction
    data: bytes
    notes: list[Note | None]
    bulk: dict[int, _Bulk]
    descriptors: int
    weight: int


class Tap:
    """One reader's view of an edge: :meth:`listener` for each path and binding, :meth:`read` for the reader."""

    def __init__(self, secret: Iterable[str] = (), *, secrets: Secrets = NO_SECRETS, largest: int = SHOWN) -> None:
        self._redaction = Redaction(secret, secrets)
        self._largest = largest
        self._paths: dict[int, Traffic] = {}
        self._queue: deque[_Held | _Gap | Item] = deque()
        self._weight = 0
        self._came = trio.Event()
        self._failure: Exception | None = None
        self._decoder = wire.Decoder()

    # -- what the paths show -------------------------------------------------------------------------------------------

    def listener(self, path: int) -> Listener:
        """What a relay shall show the packets of the path to; for each binding of a path another one."""
        traffic = self._paths.setdefault(path, Traffic())
        traffic.rebind()
        decoders: dict[Direction, wire.Decoder] = {"->": wire.Decoder(), "<-": wire.Decoder()}

        def listen(direction: Direction, data: bytes, descriptors: Sequence[int]) -> None:
            decoder = decoders.get(direction)
            if decoder is None:
                return
            try:
                self._take(path, traffic, decoder, direction, data, descriptors)
            except (ProtocolViolation, MemoryError) as exc:
                # Its receiver finds out as well, and severs the path.
                del decoders[direction]
                text = exc.rule if isinstance(exc, ProtocolViolation) else "it needs too much storage"
                self._add(_head(time.time(), path, direction, "unreadable") | {"text": text}, 0, 1)
            except Exception as exc:
                decoders.clear()
                self._failure = exc
                self._came.set()

        return listen

    def forget(self, path: int) -> None:
        """The path has ended for good."""
        self._paths.pop(path, None)

    def _take(
        self,
        path: int,
        traffic: Traffic,
        decoder: wire.Decoder,
        direction: Direction,
        data: bytes,
        descriptors: Sequence[int],
    ) -> None:
        now = time.perf_counter()
        notes: list[Note | None] = []
        bulk: dict[int, _Bulk] = {}
        given = list(descriptors)
        weight = len(data)
        for number, frame in enumerate(decoder.decode(data)):
            if frame[0] == Kind.BULK:
                room = min(self._largest, ROOM - self._weight - weight)
                bulk[number] = fetched = _fetch(given.pop(0) if given else -1, frame[1], room, self._largest)
                weight += len(fetched.contents or b"")
                frame = fetched.head
            else:
                del given[: wire.descriptors_of(frame)]
            note = traffic.note(direction, frame, now)
            notes.append(None if frame[0] in _SILENT else note)
        shown = sum(note is not None for note in notes)
        if shown:
            weight += OVERHEAD * len(notes)
            held = _Held(time.time(), path, direction, data, notes, bulk, len(descriptors), weight)
            fits = all(each.contents is not None or each.size > self._largest for each in bulk.values())
            self._add(held, weight if fits else ROOM + 1, shown)

    def _add(self, held: _Held | Item, weight: int, items: int) -> None:
        if self._weight + weight > ROOM:
            if not (self._queue and isinstance(self._queue[-1], _Gap)):
                self._queue.append(_Gap())
            gap = self._queue[-1]
            assert isinstance(gap, _Gap)
            gap.count += items
        else:
            self._queue.append(held)
            self._weight += weight
        self._came.set()

    # -- what the reader gets ------------------------------------------------------------------------------------------

    async def read(self) -> list[Item] | Lost:
        """What comes next, at least one item; waits for it. Only one task may read. :exc:`TapFailed` is a bug.

        An item is a map with ``time`` (seconds since the epoch), ``path`` (number), ``direction`` and ``kind``; the
        other keys are those of docs/reference/recording.md.
        """
        items: list[Item] = []
        while not items:  # a packet of frames that repeat others may be all there is
            while not self._queue:
                if self._failure is not None:
                    raise TapFailed from self._failure
                self._came = trio.Event()
                await self._came.wait()
            if len(self._queue) < BATCH:
                await trio.sleep(GATHER)
            if isinstance(self._queue[0], _Gap):
                gap = self._queue.popleft()
                assert isinstance(gap, _Gap)
                return Lost(gap.count)
            room = BATCH_ROOM
            while self._queue and room > 0 and len(items) < BATCH:
                held = self._queue[0]
                if isinstance(held, _Gap):
                    break
                self._queue.popleft()
                if isinstance(held, dict):
                    items.append(held)
                    continue
                self._weight -= held.weight
                room -= held.weight
                if any(each.size > SLOW for each in held.bulk.values()):
                    items += await trio.to_thread.run_sync(list, self._items(held))
                else:
                    items += self._items(held)
        return items

    def _items(self, held: _Held) -> Iterator[Item]:
        frames = self._decoder.decode(held.data)
        for number, (frame, note) in enumerate(zip(frames, held.notes, strict=True)):
            if note is not None:
                bulk = held.bulk.get(number)
                yield self._item(held, note, frame, bulk)

    def _item(self, held: _Held, note: Note, frame: wire.Frame, bulk: _Bulk | None) -> Item:
        more: Item = {}
        if bulk is not None:
            more["bulk"] = bulk.size
            frame = bulk.head
            if bulk.contents is None:
                more["omitted"] = f"more than {self._largest} bytes"
                if held.descriptors > 1:
                    more["descriptors"] = held.descriptors - 1
            else:
                try:
                    frame = wire.Decoder().decode_bulk(bulk.contents)
                except (ProtocolViolation, MemoryError) as exc:
                    more["omitted"] = f"it cannot be read: {exc}"
        item = _head(held.time, held.path, held.direction, Kind(frame[0]).name.lower())
        match frame:
            case [Kind.SEND | Kind.CALL | Kind.REPLY, ident, body, *_] if "omitted" not in more:
                item["id"] = ident
                item |= self._clean("body", body)
                if taken := wire.descriptors_of(frame):
                    item["descriptors"] = taken
                if (trace := wire.trace_of(frame)) is not None:
                    item["trace"] = trace.hex()
            case [Kind.REJECT, ident, code, text, detail] if "omitted" not in more:
                item |= {"id": ident, "code": self._redaction.text(code), "text": self._redaction.text(text)}
                item |= self._clean("detail", detail)
            case [Kind.SEND | Kind.CALL | Kind.REPLY | Kind.REJECT | Kind.PURGE, ident, *_]:
                item["id"] = ident
            case [Kind.ACK, first, last]:
                item |= {"id": first, "last": last}
            case [Kind.SEVER, code, text]:
                item |= {"code": self._redaction.text(code), "text": self._redaction.text(text)}
            case [Kind.DATA, data]:
                item["bytes"] = len(data)
        if item.get("id", 0) < 0:
            item["priority"] = True
        if note.redelivered:
            item["redelivered"] = True
        if note.latency is not None:
            item["latency_us"] = int(note.latency * 1e6)
        return item | more

    def _clean(self, key: str, body: Any) -> Item:
        found = self._redaction.apply(body)
        if found.depth > DEEPEST:
            return {"omitted": f"more than {DEEPEST} levels deep"}
        return {key: found.value, "redacted": found.count} if found.count else {key: found.value}


def _head(when: float, path: int, direction: Direction, kind: str) -> Item:
    return {"time": when, "path": path, "direction": direction, "kind": kind}


def _fetch(untrusted_descriptor: int, size: int, room: int, largest: int) -> _Bulk:
    """The beginning of a bulk frame, and all of it if it fits.

    Raises :exc:`ProtocolViolation`. It is read at once: its sender may write the next one into the same memfd.
    """
    try:
        # Only a memfd answers this, and only a memfd is known to answer a read at once.
        fcntl.fcntl(untrusted_descriptor, fcntl.F_GET_SEALS)
        wanted = size if size <= min(room, largest) else 64
        contents = os.pread(untrusted_descriptor, wanted, 0)
    except (OSError, ValueError):
        raise ProtocolViolation("a bulk descriptor that cannot be read") from None
    if len(contents) != wanted:
        raise ProtocolViolation("a bulk descriptor that is shorter than announced")
    unpacker = msgpack.Unpacker(max_buffer_size=64)
    unpacker.feed(contents[:64])
    try:
        unpacker.read_array_header()
        head = [unpacker.unpack(), unpacker.unpack()]
    except Exception as exc:  # msgpack raises its own, ValueError, UnicodeDecodeError and more
        raise ProtocolViolation("a bulk frame that cannot be read") from exc
    if head[0] not in (Kind.SEND, Kind.CALL, Kind.REPLY, Kind.REJECT) or type(head[1]) is not int:
        raise ProtocolViolation("a bulk frame that is no message")
    return _Bulk(size, head, contents if len(contents) == size else None)
