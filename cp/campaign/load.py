"""Requests to a system under a campaign: clients that keep their connections, and count every answer that they miss."""

import contextlib
import urllib.parse
from typing import Final

import attrs
import h11
import trio

# Seconds after which a request has no answer.
PATIENCE: Final = 30.0
# Seconds before a client that was refused a connection tries again.
AGAIN: Final = 0.05
READ: Final = 65536


@attrs.define
class Counts:
    """``answered`` with a status below 500, ``refused`` with one above; ``unanswered``: the connection ended before.

    ``connections`` is how many had to be made, ``longest`` how many seconds the slowest answer took.
    """

    answered: int = 0
    refused: int = 0
    unanswered: int = 0
    connections: int = 0
    longest: float = 0.0


class Load:
    """So many clients, each with a request at a time, ``rate`` of them a second between them."""

    def __init__(self, url: str, clients: int, rate: float) -> None:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme != "http" or not parts.hostname:
            raise ValueError(f"not the address of an HTTP server: {url!r}")
        self._host, self._port = parts.hostname, parts.port or 80
        self._target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._authority = parts.netloc
        self.clients = clients
        self._every = clients / rate
        self._over = False
        self.counts = Counts()

    async def run(self) -> None:
        """Until :meth:`finish`."""
        async with trio.open_nursery() as nursery:
            for number in range(self.clients):
                nursery.start_soon(self._client, number * self._every / self.clients)

    def finish(self) -> None:
        """Let every client end when it has its answer."""
        self._over = True

    def begin_anew(self) -> None:
        """Count from zero, and be ready to run again."""
        self._over, self.counts = False, Counts()

    async def _client(self, first: float) -> None:
        await trio.sleep(first)
        while not self._over:
            try:
                stream = await trio.open_tcp_stream(self._host, self._port)
            except OSError:
                # TCPIP itself is away; a connection that was never made has asked nothing.
                await trio.sleep(AGAIN)
                continue
            self.counts.connections += 1
            async with stream:
                await self._use(stream)

    async def _use(self, stream: trio.SocketStream) -> None:
        connection = h11.Connection(h11.CLIENT)
        due = trio.current_time()
        while not self._over:
            await trio.sleep_until(due)
            due = max(due + self._every, trio.current_time() - 1.0)
            begun = trio.current_time()
            status = 0
            with trio.move_on_after(PATIENCE):
                with contextlib.suppress(OSError, trio.BrokenResourceError, h11.RemoteProtocolError):
                    status = await self._request(stream, connection)
            self.counts.longest = max(self.counts.longest, trio.current_time() - begun)
            if not status:
                self.counts.unanswered += 1
                return
            if status >= 500:
                self.counts.refused += 1
            else:
                self.counts.answered += 1
            if connection.our_state is not h11.DONE or connection.their_state is not h11.DONE:
                return
            connection.start_next_cycle()

    async def _request(self, stream: trio.SocketStream, connection: h11.Connection) -> int:
        request = h11.Request(method="GET", target=self._target, headers=[("Host", self._authority)])
        await stream.send_all((connection.send(request) or b"") + (connection.send(h11.EndOfMessage()) or b""))
        status = 0
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                connection.receive_data(await stream.receive_some(READ))
            elif isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.EndOfMessage):
                return status
            elif isinstance(event, h11.ConnectionClosed):
                return 0
