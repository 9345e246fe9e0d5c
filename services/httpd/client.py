"""The client at the other end of one connection: a bounded read-ahead, timed writing, and news of its leaving."""

from collections.abc import Callable
from typing import Final

import trio

from retinue.services.httpd.config import Config
from retinue.services.httpd.errors import ClientGone

READ_SIZE: Final = 64 * 1024
# Bytes read ahead of what is being worked on. Reading goes on while a request is answered, so that a client's leaving
# is noticed; this bounds what a client that pipelines may make us hold.
READ_AHEAD: Final = 64 * 1024
# A write is timed slice by slice: a slow client that takes something all the time is not a stuck one.
WRITE_SLICE: Final = 64 * 1024

Address = tuple[str, int]


class Client:
    """Bytes from and to one client, however they come and go: what :class:`StreamClient` and others have in common.

    ``address`` and ``server`` are both ends of the client's TCP connection as far as they are known. ``buffer`` holds
    what has come and is not taken; the owner may take out of it and says so by :meth:`took`. ``interrupt`` is called
    once when the client leaves while it is set. With ``resumable`` another process can go on with it.
    """

    resumable = False

    def __init__(
        self, config: Config, address: Address | None = None, server: Address | None = None, scheme: str = "http"
    ) -> None:
        self.address, self.server, self.scheme = address, server, scheme
        self.config = config
        self.buffer = bytearray()
        self.ended = False  # it sends no more, but may still be reading
        self.gone = False
        self.cut = False  # a write was begun and not finished: what the client has is not whole
        self.interrupt: Callable[[], None] | None = None
        self._arrived = trio.lowlevel.ParkingLot()
        self._writers = trio.lowlevel.ParkingLot()
        self._writing = False
        self._progress = 0

    # -- reading ----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Take what comes until nothing more will, and notice when the client leaves. Run it in a nursery."""
        raise NotImplementedError

    async def begin(self) -> bool:
        """Until work on what is in the buffer may begin: True. False after :meth:`wake`. Raises :exc:`ClientGone`."""
        return True

    def may_be_begun(self, needed: int) -> bool:
        """Whether somebody else may have begun the request whose head was taken; ``needed`` is what follows that."""
        return False

    def give_back(self) -> None:
        """Let somebody else have what is in the buffer, of which nothing was begun."""

    async def _watch_half_closed(self) -> None:
        """A client that closed its sending side gets what comes soon; when nothing comes for a while it counts as gone.

        A FIN does not say whether the client has only ended its side or left altogether.
        """
        while not self.gone:
            seen = self._progress
            await trio.sleep(self.config.half_closed_time)
            if seen == self._progress and self.interrupt is not None and not self._writing:
                self.lose()

    async def more(self, deadline: float) -> bool:
        """Until the buffer has grown, or somebody called :meth:`wake`: True. False when no more will come.

        Raises :exc:`ClientGone`, and :exc:`trio.TooSlowError` at the deadline.
        """
        had = len(self.buffer)
        if not self.ended and not self.gone:
            with trio.move_on_at(deadline) as scope:
                await self._wait()
            if scope.cancelled_caught:
                raise trio.TooSlowError
        if self.gone:
            raise ClientGone("the connection is gone")
        return not self.ended or len(self.buffer) > had

    async def _wait(self) -> None:
        await self._arrived.park()

    def wake(self) -> None:
        """Have whoever waits in :meth:`more` look again."""
        self._arrived.unpark_all()

    def take(self, count: int | None = None) -> bytes:
        """Take ``count`` bytes (everything by default) out of the buffer."""
        data = bytes(self.buffer if count is None else self.buffer[:count])
        del self.buffer[: len(data)]
        self.took()
        return data

    def took(self) -> None:
        """Say that something was taken out of the buffer: reading may go on."""

    def put_back(self, data: bytes) -> None:
        """Put what was taken too much back in front."""
        if data:
            self.buffer[:0] = data

    # -- writing ----------------------------------------------------------------------------------------------------

    async def write(self, data: bytes) -> None:
        """Write all of it. Raises :exc:`ClientGone` when the client is, or takes nothing for ``write_time``.

        Cancelled or failed in the middle, :attr:`cut` stays set: the connection must be cut off, not closed.
        """
        while self._writing:
            await self._writers.park()
        if self.gone:
            raise ClientGone("the connection is gone")
        self._writing = self.cut = True
        try:
            if len(data) <= WRITE_SLICE:
                await self._write_slice(data)
            else:
                view = memoryview(data)
                for start in range(0, len(data), WRITE_SLICE):
                    await self._write_slice(view[start : start + WRITE_SLICE])
            self.cut = False
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            self.lose()
            raise ClientGone("the connection is gone") from exc
        finally:
            self._writing = False
            self._writers.unpark()

    async def _write_slice(self, data: bytes | memoryview) -> None:
        with trio.move_on_after(self.config.write_time) as scope:
            await self._put(data)
        if scope.cancelled_caught:
            self.lose()
            raise ClientGone(f"the client took nothing for {self.config.write_time:g} s")
        self._progress += 1

    async def _put(self, data: bytes | memoryview) -> None:
        """Write it. Raises trio.BrokenResourceError or trio.ClosedResourceError."""
        raise NotImplementedError

    async def complete(self, data: bytes, rest: int, *, last: bool) -> None:
        """Write the end of a response, like :meth:`write`.

        It answers everything before the last ``rest`` bytes of the buffer; the ``last`` one ends this side afterwards.
        """
        if data:
            await self.write(data)

    # -- the end ----------------------------------------------------------------------------------------------------

    def lose(self) -> None:
        """The client is gone: wake and interrupt whoever works for it."""
        if self.gone:
            return
        self.gone = True
        self._arrived.unpark_all()
        if self.interrupt is not None:
            self.interrupt()

    async def linger(self, seconds: float) -> None:
        """Say that nothing more follows, then throw away what the client still sends until it has ended as well.

        A client that does not take what was written before is :attr:`cut`. Closing with unread bytes would make the
        kernel send RST, which may destroy a response that the client has not read yet (RFC 9112, 9.6).
        """
        raise NotImplementedError


class StreamClient(Client):
    """A client at the other end of a byte stream."""

    def __init__(
        self,
        stream: trio.abc.HalfCloseableStream,
        config: Config,
        address: Address | None = None,
        server: Address | None = None,
        scheme: str = "http",
    ) -> None:
        super().__init__(config, address, server, scheme)
        self._stream = stream
        self._room = trio.lowlevel.ParkingLot()

    async def run(self) -> None:
        receive, buffer = self._stream.receive_some, self.buffer
        try:
            while True:
                while len(buffer) >= READ_AHEAD:
                    await self._room.park()
                data = await receive(READ_SIZE)
                if not data:
                    break
                buffer += data
                self._arrived.unpark_all()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self.lose()
            return
        self.ended = True
        self._arrived.unpark_all()
        await self._watch_half_closed()

    def took(self) -> None:
        if len(self.buffer) < READ_AHEAD:
            self._room.unpark_all()

    async def _put(self, data: bytes | memoryview) -> None:
        await self._stream.send_all(data)

    async def linger(self, seconds: float) -> None:
        with trio.move_on_after(seconds):
            try:
                await self._stream.send_eof()
                while await self.more(float("inf")):
                    self.take()
            except (ClientGone, trio.BrokenResourceError, trio.ClosedResourceError):
                return
