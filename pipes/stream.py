"""A path as a raw byte stream: trio's own stream interface, so that whatever speaks to a socket speaks to a path."""

import operator
from collections import deque
from typing import TYPE_CHECKING, Final

import trio

from retinue.pipes import wire
from retinue.pipes.errors import PathSevered
from retinue.pipes.states import State

if TYPE_CHECKING:
    from retinue.pipes.path import Path

# Bytes taken out before the writer is given room again: few credits for many bytes, and the window never runs dry.
_CREDIT_STEP: Final = wire.STREAM_WINDOW // 4


class Chunks:
    """What a path has received of a byte stream and not handed out; an empty chunk is the end."""

    __slots__ = ("_queue", "came", "credit_came")

    def __init__(self) -> None:
        self._queue: deque[bytes] = deque()
        self.came = trio.lowlevel.ParkingLot()
        self.credit_came = trio.lowlevel.ParkingLot()

    def __bool__(self) -> bool:
        return bool(self._queue)

    def put(self, chunk: bytes) -> None:
        """Add a chunk and wake whoever waits for one."""
        self._queue.append(chunk)
        self.came.unpark_all()

    def take(self) -> bytes:
        """The oldest chunk."""
        return self._queue.popleft()

    def wake_all(self) -> None:
        """The path has ended: have everybody look."""
        self.came.unpark_all()
        self.credit_came.unpark_all()


class PathStream(trio.abc.HalfCloseableStream):
    """Bytes over a path.

    At most STREAM_WINDOW bytes are on their way in one direction; a writer waits for the reader. When the path is
    severed in any way but an orderly close, both directions raise :exc:`trio.BrokenResourceError`.
    """

    def __init__(self, path: "Path", chunks: Chunks) -> None:
        self.path = path
        self._chunks = chunks
        self._rest = memoryview(b"")
        self._at_end = False
        self._uncredited = 0
        self._send_conflict = _Conflict("another task is sending on this stream")
        self._receive_conflict = _Conflict("another task is receiving from this stream")
        self._ended_here = False
        self._closed_here = False

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send all bytes, waiting for room. BrokenResourceError when the other end is gone."""
        with self._send_conflict:
            await trio.lowlevel.checkpoint()
            self._check_open()
            if self._ended_here:
                raise trio.ClosedResourceError("the stream was ended at this end")
            rest = memoryview(data).cast("B")
            session = self.path.session
            while rest:
                room = min(session.window, wire.MAX_CHUNK)
                if room == 0:
                    await self._chunks.credit_came.park()
                    self._check_open()
                    continue
                session.send_bytes(bytes(rest[:room]))
                rest = rest[room:]
                self.path.flush()
                self._check_open()

    async def wait_send_all_might_not_block(self) -> None:
        """Until there is room for at least one byte, or the stream has ended."""
        with self._send_conflict:
            await trio.lowlevel.checkpoint()
            self._check_closed()
            while self.path.session.window == 0 and self.path.severed is None:
                await self._chunks.credit_came.park()
                self._check_closed()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """The next bytes, as soon as there is one; ``b""`` at the end. BrokenResourceError when it was cut off."""
        if max_bytes is not None and operator.index(max_bytes) < 1:
            raise ValueError("max_bytes must be >= 1")
        with self._receive_conflict:
            chunks = self._chunks
            if self._rest or self._at_end or chunks or self.path.severed is not None:
                await trio.lowlevel.checkpoint()  # else to park is one
            self._check_closed()
            while not self._rest and not self._at_end:
                if chunks:
                    chunk = chunks.take()
                    self._at_end = not chunk
                    self._rest = memoryview(chunk)
                elif self.path.severed is not None:
                    self._check_broken()
                    return b""
                else:
                    await chunks.came.park()
                    self._check_closed()
            data = bytes(self._rest if max_bytes is None else self._rest[:max_bytes])
            self._rest = self._rest[len(data) :]
            self._take(len(data))
            return data

    def _take(self, count: int) -> None:
        self._uncredited += count
        if self._uncredited >= _CREDIT_STEP and self.path.session.state is State.STREAM:
            self.path.session.credit(self._uncredited)
            self._uncredited = 0
            self.path.flush()

    async def send_eof(self) -> None:
        """Say that no more bytes follow; receiving goes on. A second time has no effect."""
        with self._send_conflict:
            await trio.lowlevel.checkpoint()
            if self._ended_here and not self._closed_here:
                return
            self._check_open()
            self._ended_here = True
            self.path.session.send_eof()
            self.path.flush()

    async def aclose(self) -> None:
        """Close both directions after what was sent has been written."""
        self._closed_here = True
        await self.path.aclose()

    def abort(self, text: str = "") -> None:
        """Cut the stream off: the other end gets an error, not an end."""
        self._closed_here = True
        self.path.sever("reset", text)

    def _check_closed(self) -> None:
        if self._closed_here:
            raise trio.ClosedResourceError("the stream was closed at this end")

    def _check_broken(self) -> None:
        why = self.path.severed
        if isinstance(why, PathSevered) and why.code == "closed":
            return
        raise trio.BrokenResourceError(str(why)) from why

    def _check_open(self) -> None:
        self._check_closed()
        if (why := self.path.severed) is not None:
            raise trio.BrokenResourceError(str(why)) from why


class _Conflict:
    """Lets one task through at a time, with an error for the second (trio's streams promise that)."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._held = False

    def __enter__(self) -> None:
        if self._held:
            raise trio.BusyResourceError(self._text)
        self._held = True

    def __exit__(self, *exc: object) -> None:
        self._held = False
