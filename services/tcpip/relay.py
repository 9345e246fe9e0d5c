"""Bytes between a TCP connection and a path, in both directions, with back-pressure and half-close."""

import contextlib
import socket
import struct
from typing import Protocol

import trio

from retinue.pipes import Path
from retinue.svm.relay import READ_SIZE


class Relay:
    """Carries the bytes of one TCP connection to one path and back until both have ended or one end broke.

    One side asks and the other answers: of a connection that came in (``outbound`` false) the TCP side asks, of one
    that a machine has asked for the machine. It matters only for :meth:`finish`.
    """

    def __init__(self, connection: trio.SocketStream, path: Path, *, outbound: bool = False) -> None:
        self.path = path
        self._connection = connection
        self._machine = path.stream()
        self._asker: trio.abc.HalfCloseableStream = self._machine if outbound else connection
        self._scope = trio.CancelScope()
        self._reading: trio.CancelScope | None = None  # a read from the asker
        self._owed = False  # the last bytes came from the asker, which is waiting for an answer
        self._finishing = False
        self._inward_ended = self._outward_ended = False

    async def run(self) -> None:
        """Relay to the end. The path is severed then; the socket is for the caller to close (:attr:`orderly`)."""
        with self._scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._inward)
                await self._outward()
        if self._inward_ended and self._outward_ended:
            await self.path.aclose()
        else:
            self.path.sever("lost", "the TCP connection is gone")

    @property
    def orderly(self) -> bool:
        """The machine has ended its side: what it sent is complete, and the other end may be told so by a FIN."""
        return self._outward_ended

    def finish(self) -> None:
        """The system stops: nothing more is read from the asker once it has the answer that it is owed."""
        self._finishing = True
        self._stop_asking()

    async def _inward(self) -> None:
        if await self._copy(self._connection, self._machine):
            self._inward_ended = True
            if self._outward_ended:
                self._scope.cancel()

    async def _outward(self) -> None:
        if await self._copy(self._machine, self._connection):
            self._outward_ended = True
            if not self._inward_ended:
                # The machine listens on, for as long as it likes.
                await self.path.wait_severed()
            self._scope.cancel()

    async def _copy(self, source: trio.abc.HalfCloseableStream, target: trio.abc.HalfCloseableStream) -> bool:
        """One direction, to its end. False, and the other direction is cut off, when one of the two broke."""
        asking = source is self._asker
        try:
            while data := await (self._read_asker() if asking else source.receive_some(READ_SIZE)):
                if asking:
                    self._owed = True
                    await target.send_all(data)
                else:
                    await target.send_all(data)
                    self._owed = False
                    self._stop_asking()
            await target.send_eof()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._scope.cancel()
            return False
        return True

    async def _read_asker(self) -> bytes | bytearray:
        """What the asker sends next; the end, too, when it may ask no more. What was read is always passed on."""
        if self._finishing and not self._owed:
            return b""
        with trio.CancelScope() as self._reading:
            return await self._asker.receive_some(READ_SIZE)
        return b""

    def _stop_asking(self) -> None:
        if self._finishing and not self._owed and self._reading is not None:
            self._reading.cancel()


class Carrier(Protocol):
    """What carries one TCP connection over one path."""

    @property
    def path(self) -> Path: ...

    @property
    def orderly(self) -> bool:
        """The machine has ended its side: what it sent is complete, and the other end may be told so by a FIN."""

    async def run(self) -> None:
        """Carry it to the end."""

    def finish(self) -> None:
        """The system stops: nothing more is taken from the asker once it has the answer that it is owed."""


class Relays:
    """The connections that are carried, so that a stop can reach them."""

    def __init__(self) -> None:
        self._running: set[Carrier] = set()
        self._finishing = False

    async def run(self, relay: Carrier) -> None:
        """:meth:`Carrier.run`, to be told of a stop; the path has ended afterwards in any case."""
        self._running.add(relay)
        if self._finishing:
            relay.finish()
        try:
            await relay.run()
        finally:
            self._running.discard(relay)
            relay.path.sever("lost", "the TCP connection was cut off")  # no effect after an orderly end

    def finish(self) -> None:
        """Let the connections end: at once those that owe no answer."""
        self._finishing = True
        for relay in self._running:
            relay.finish()


def hang_up(sock: trio.socket.SocketType, *, orderly: bool) -> None:
    """Close a connection; with RST unless ``orderly``, so that nobody takes what was cut off for the whole."""
    if not orderly:
        with contextlib.suppress(OSError):  # socket(7), SO_LINGER
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()
