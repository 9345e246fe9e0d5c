"""Bytes between a connection and a path, in both directions, with back-pressure and half-close."""

from collections.abc import Awaitable, Callable
from typing import Final

import trio

from retinue.pipes import Path

# Bytes per read: a chunk of a path's stream is at most 60 KiB, so a larger read would leave a crumb behind.
READ_SIZE: Final = 60 * 1024


async def _listens_on() -> bool:
    return False


class Relay:
    """Carries the bytes of one connection to one path and back, until both have ended or one of them broke.

    ``what`` the connection is called when the path is told that it broke. ``hung_up`` is asked when the connection has
    ended its side: whether it has ended the other one as well, so that nobody is there to read any more; it may raise
    BrokenResourceError to say that it was no end but a break.
    """

    def __init__(
        self,
        connection: trio.abc.HalfCloseableStream,
        path: Path,
        *,
        what: str = "connection",
        hung_up: Callable[[], Awaitable[bool]] = _listens_on,
    ) -> None:
        self.path = path
        self._connection = connection
        self._far = path.stream()
        self._what = what
        self._hung_up = hung_up
        self._scope = trio.CancelScope()
        self._inward_ended = self._outward_ended = False

    async def run(self) -> None:
        """Relay to the end; the path is severed then, and the connection closed."""
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._inward)
                    nursery.start_soon(self._outward)
            if self._inward_ended and self._outward_ended:
                await self.path.aclose()
        finally:
            self.path.sever("lost", f"the {self._what} is gone")  # no effect after an orderly end
            await trio.aclose_forcefully(self._connection)

    async def _inward(self) -> None:
        try:
            await _copy(self._connection, self._far)
            nobody_reads = self._outward_ended or await self._hung_up()
            await self._far.send_eof()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._scope.cancel()
            return
        self._inward_ended = True
        if nobody_reads or self._outward_ended:
            self._outward_ended = True
            self._scope.cancel()

    async def _outward(self) -> None:
        try:
            await _copy(self._far, self._connection)
            await self._connection.send_eof()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._scope.cancel()
            return
        self._outward_ended = True
        if not self._inward_ended:
            # The connection may go on answering for as long as it likes, and the path's other end listen.
            await self.path.wait_severed()
        self._scope.cancel()


async def _copy(source: trio.abc.ReceiveStream, target: trio.abc.SendStream) -> None:
    while data := await source.receive_some(READ_SIZE):
        await target.send_all(data)
