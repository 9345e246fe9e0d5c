"""One request and its response, over one HTTP connection.

This is what a gateway sees: it pulls the body with :meth:`Exchange.receive_body` and answers with
:meth:`Exchange.respond` and :meth:`Exchange.send_body`. All waiting for the client happens in here, so whoever is slow
or gone, only this one exchange learns of it.
"""

from collections.abc import Callable
from typing import Final

import h11
import trio

from retinue.services.httpd.client import Client
from retinue.services.httpd.config import Config
from retinue.services.httpd.errors import BadReply, ClientGone, HttpError
from retinue.services.httpd.request import NOT_HTTP, Request
from retinue.services.httpd.response import Reply, make_head

# A body up to this size is gathered before the application hears of the request, and travels within the call: one round
# trip, a slow client occupies nobody but itself, and a machine that just answers calls never has to pull.
GATHER: Final = 64 * 1024
# Bytes of a larger body handed over at a time, at most about twice this.
PIECE: Final = 64 * 1024


class Exchange:
    """A request that is being answered.

    ``body`` and ``more_body`` are what travels within the call: the whole body, or its beginning.
    ``status`` is that of the response, 0 before it has begun; ``sent`` counts the bytes of its body.
    """

    def __init__(self, client: Client, conn: h11.Connection, request: Request, config: Config) -> None:
        self.client = client
        self.request = request
        self.body = b""
        self.status = 0
        self.sent = 0
        self.complete = False
        self.close = False  # the response says that the connection will be closed
        self.failure: Exception | None = None
        self.on_failure: Callable[[], None] | None = None
        self._conn = conn
        self._config = config
        self._received = 0
        self._body_complete = False
        self._bodiless = False

    @property
    def more_body(self) -> bool:
        """Whether there is more of the request's body to be pulled."""
        return not self._body_complete

    def fail(self, error: Exception) -> None:
        """End the exchange from aside: whoever works on it is cancelled, the connection deals with ``error``."""
        if self.failure is None and not self.complete:
            self.failure = error
            if self.on_failure is not None:
                self.on_failure()

    # -- the request's body -----------------------------------------------------------------------------------------

    async def gather(self) -> None:
        """Fill :attr:`body`: all of a small body, of a larger one what is there. Raises HttpError, ClientGone."""
        length = self.request.length
        if length is None or length > GATHER:
            if length is not None and length > self._config.max_body:
                raise self._too_large()
            self.body = await self._pull(wait=False)
            return
        if length > self._config.max_body:
            raise self._too_large()
        if length and self.request.expects_continue:
            await self._continue()
        parts = []
        while not self._body_complete:
            parts.append(await self._pull(wait=True))
        self.body = b"".join(parts)

    async def receive_body(self) -> tuple[bytes, bool]:
        """The next piece of the body, and whether more follows.

        Raises :exc:`ClientGone` when no more will come; the exchange has failed then.
        """
        if self._body_complete:
            return b"", False
        try:
            await self._continue()
            piece = await self._pull(wait=True)
        except HttpError as exc:
            self.fail(exc)
            raise ClientGone(exc.text) from exc
        return piece, not self._body_complete

    async def _continue(self) -> None:
        """Tell a client that waits for it to go on; one that has already begun does not wait."""
        conn = self._conn
        if conn.they_are_waiting_for_100_continue and not self.client.buffer:
            event = h11.InformationalResponse(status_code=100, headers=[], reason=b"Continue")
            await self.client.write(conn.send(event))

    async def _pull(self, *, wait: bool) -> bytes:
        """What has come of the body, at least one byte if it waits and the body is not at its end."""
        conn, client = self._conn, self.client
        parts: list[bytes] = []
        size = 0
        while size < PIECE:
            try:
                event = conn.next_event()
            except h11.RemoteProtocolError as exc:
                raise HttpError(400, NOT_HTTP) from exc
            if type(event) is h11.Data:
                parts.append(bytes(event.data))
                size += len(event.data)
                self._received += len(event.data)
                if self._received > self._config.max_body:
                    raise self._too_large()
            elif type(event) is h11.EndOfMessage:
                self._body_complete = True
                break
            elif client.buffer:
                conn.receive_data(client.take())
            elif parts or not wait:
                break
            else:
                try:
                    if not await client.more(trio.current_time() + self._config.body_time):
                        conn.receive_data(b"")  # the body breaks off: h11 says so
                except trio.TooSlowError as exc:
                    raise HttpError(408, "The request's body did not come in time.") from exc
        return b"".join(parts)

    def _too_large(self) -> HttpError:
        return HttpError(413, f"The request's body is larger than {self._config.max_body} bytes.")

    # -- the response -----------------------------------------------------------------------------------------------

    async def respond(self, reply: Reply, *, more: bool = False) -> None:
        """Begin the response, and unless ``more`` follows complete it; returns when the client's side has taken it.

        Raises :exc:`BadReply` before anything was written, :exc:`ClientGone`.
        """
        conn = self._conn
        if self.status:
            raise BadReply("a second response to one request")
        # A client that has not sent its whole body yet would have to be read on and on: rather close.
        close = self.close or (not more and not self._body_complete) or conn.they_are_waiting_for_100_continue
        head = make_head(reply, self.request.method, more=more, close=close)
        self.close, self._bodiless = head.close, head.bodiless
        self.status = reply.status
        data = conn.send(head.event)
        await self._send(data, reply.body, more)

    async def send_body(self, body: bytes, *, more: bool) -> None:
        """Send the next part of the body, or the last one.

        Raises :exc:`BadReply` when it does not fit the head (the response cannot be completed then), :exc:`ClientGone`.
        """
        if not self.status or self.complete:
            raise BadReply("a part of a response that has not begun" if not self.status else "a part after the end")
        await self._send(b"", body, more)

    async def _send(self, data: bytes, body: bytes, more: bool) -> None:
        conn = self._conn
        try:
            if body and not self._bodiless:
                data += conn.send(h11.Data(data=body))
                self.sent += len(body)
            elif body and self.status in (204, 304):
                raise BadReply(f"a response with status {self.status} has a body")
            if not more:
                data += conn.send(h11.EndOfMessage())
        except h11.LocalProtocolError as exc:
            raise BadReply("the body has another length than content-length says") from exc
        if not more:
            rest = conn.trailing_data[0] if self._reusable else b""
            await self.client.complete(data, len(rest) + len(self.client.buffer), last=not self._reusable)
            self.complete = True
        elif data:
            await self.client.write(data)

    # -- afterwards -------------------------------------------------------------------------------------------------

    @property
    def _reusable(self) -> bool:
        return self._conn.our_state is h11.DONE and self._conn.their_state is h11.DONE

    def release(self) -> bool:
        """Whether the connection can serve another request; gives back what was read beyond this one."""
        if not self._reusable:
            return False
        self.client.put_back(self._conn.trailing_data[0])
        return True
