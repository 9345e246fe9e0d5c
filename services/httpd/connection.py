"""One HTTP/1.1 connection: request after request, each answered before the next is looked at.

It takes a client and a ``forward`` callable and knows neither paths nor machines.
"""

import logging
from collections.abc import Awaitable, Callable
from typing import Final

import h11
import trio

from retinue.pipes import tracing
from retinue.services.httpd.client import Client
from retinue.services.httpd.config import Config
from retinue.services.httpd.errors import BadReply, ClientGone, HttpError
from retinue.services.httpd.exchange import GATHER, Exchange
from retinue.services.httpd.request import NOT_HTTP, Request, head_size, parse
from retinue.services.httpd.response import make_head, refusal

log: Final = logging.getLogger("retinue.httpd")
access: Final = logging.getLogger("retinue.httpd.access")

# What the access log says when the client left before it had its answer (nginx's word for it).
CLIENT_LEFT: Final = 499
# How long a client may go on sending after we said that we close: enough to read the response, see Client.linger.
LINGER: Final = 2.0
# RFC 9110, 9.2.2: to do these a second time does what the first time did.
IDEMPOTENT: Final = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"})
# What a client is told to wait before it tries again: the machine that it asks is here already.
RETRY_AFTER: Final = 1

DONE_ALREADY: Final = "The request may have been carried out: the server was restarted before it could answer."

Forward = Callable[[Exchange], Awaitable[None]]


class Connection:
    """One client connection.

    ``forward(exchange)`` answers one request: it returns when the response is complete, or raises
    :exc:`~retinue.services.httpd.errors.HttpError` or :exc:`~retinue.services.httpd.errors.BadReply`.
    """

    def __init__(self, client: Client, forward: Forward) -> None:
        self.aborted = False
        self._client = client
        self._forward = forward
        self._config = client.config
        self._stopping = False
        self._leaving = False
        self._exchange: Exchange | None = None

    @property
    def resumable(self) -> bool:
        """Whether somebody else can go on with it."""
        return self._client.resumable

    async def serve(self) -> None:
        """Serve the connection to its end; the caller closes what is under it.

        :attr:`aborted` says how: True when what the client has may not be whole, so that it must see an error (RST),
        not an end (FIN).
        """
        client = self._client
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.run)
            try:
                while await self._serve_request():
                    pass
            except ClientGone:
                self.aborted = True
            if not self.aborted and not client.cut:
                await client.linger(LINGER)
            self.aborted = self.aborted or client.cut
            nursery.cancel_scope.cancel()

    def stop(self) -> None:
        """Serve no further request: close at once if idle, else after the response that is under way."""
        self._stopping = True
        self._client.wake()
        if self._exchange is not None:
            self._exchange.close = True

    def leave(self) -> None:
        """Leave the client to somebody else, who can go on with it, when the request under way is answered."""
        self._leaving = True
        self._client.wake()

    def configure(self, config: Config) -> None:
        """Go by other figures from the next request on."""
        self._config = self._client.config = config

    # -- one request ------------------------------------------------------------------------------------------------

    async def _serve_request(self) -> bool:
        """Read and answer one request; True when another may follow. Raises :exc:`ClientGone`."""
        conn = h11.Connection(h11.SERVER, self._config.max_head)
        started = trio.current_time()
        try:
            head = await self._read_head()
            if head is None:
                return False
            started = trio.current_time()
            request = parse(conn, head, self._config)
        except HttpError as error:
            if error.__cause__ is not None:
                log.debug("%s: refused: %s", self._peer, error.__cause__)
            return await self._refuse_head(conn, error, started)
        with tracing(request.trace):
            return await self._serve_parsed(conn, request, started)

    async def _serve_parsed(self, conn: h11.Connection, request: Request, started: float) -> bool:
        # Its application has been given a short body together with the head, and a long one after it.
        needed = request.length if request.length is not None and request.length <= GATHER else 0
        again = request.method not in IDEMPOTENT and self._client.may_be_begun(needed)
        self._exchange = exchange = Exchange(self._client, conn, request, self._config)
        exchange.close = self._stopping
        try:
            try:
                await self._answer(exchange, again)
            except HttpError as error:
                await self._refuse(exchange, error)
            except BadReply as exc:
                log.warning("%s %s: bad reply from the application: %s", request.method, request.path, exc.rule)
                await self._refuse(exchange, HttpError(502))
            except ClientGone:
                self._log(request, exchange.status if exchange.complete else CLIENT_LEFT, exchange.sent, started)
                raise
            except Exception:
                log.exception("%s %s: a fault in HTTPD", request.method, request.path)
                await self._refuse(exchange, HttpError(500))
        finally:
            self._exchange = None
        self._log(request, exchange.status, exchange.sent, started)
        if self.aborted or self._client.cut or self._stopping:
            return False
        return exchange.release()

    async def _answer(self, exchange: Exchange, again: bool) -> None:
        client = self._client
        with trio.CancelScope() as scope:
            exchange.on_failure = scope.cancel
            client.interrupt = lambda: exchange.fail(ClientGone("the client left"))
            try:
                await exchange.gather()
                if again:
                    raise HttpError(503, DONE_ALREADY, retry_after=RETRY_AFTER)
                await self._forward(exchange)
            except ClientGone:
                if exchange.failure is None:
                    raise  # else it says more: that the body was too large, or late
            finally:
                client.interrupt = None
        if exchange.complete:
            return
        if exchange.failure is not None:
            raise exchange.failure
        raise BadReply("the response is not complete")

    async def _refuse(self, exchange: Exchange, error: HttpError) -> None:
        """Answer with an error, or cut off a response that has begun: it must never look complete."""
        if exchange.status:
            if not exchange.complete:
                log.info("%s %s: response cut off: %s", exchange.request.method, exchange.request.path, error.text)
                self.aborted = True
            return
        await exchange.respond(refusal(error))

    async def _refuse_head(self, conn: h11.Connection, error: HttpError, started: float) -> bool:
        """Answer what is not a request."""
        head = make_head(refusal(error), "GET", more=False, close=True)
        body = refusal(error).body
        data = conn.send(head.event) + conn.send(h11.Data(data=body)) + conn.send(h11.EndOfMessage())
        await self._client.complete(data, 0, last=True)
        self._log(None, error.status, len(body), started)
        return False

    async def _read_head(self) -> bytes | None:
        """The next request's head; None when none follows. Raises HttpError (400, 408, 414, 431), ClientGone."""
        client, config = self._client, self._config
        buffer = client.buffer
        deadline = float("inf")
        while True:
            while buffer and buffer[0] in b"\r\n":  # RFC 9112, 2.2: empty lines before a request line are ignored
                del buffer[:1]
            if buffer:
                if not await client.begin():
                    continue
                size = head_size(buffer, config)
                if size:
                    return client.take(size)
                client.took()
                if self._leaving:
                    self._leaving = False
                    client.give_back()
                if deadline == float("inf"):
                    deadline = trio.current_time() + config.head_time
                try:
                    if not await client.more(deadline):
                        raise HttpError(400, NOT_HTTP)
                except trio.TooSlowError as exc:
                    raise HttpError(408, "The request's headers did not come in time.") from exc
            elif not await self._wait_idle():
                return None

    async def _wait_idle(self) -> bool:
        """Until there is something to look at; False when nothing will come, or it is time to close."""
        if self._stopping:
            return False
        try:
            return await self._client.more(trio.current_time() + self._config.idle_time)
        except trio.TooSlowError:
            return False
        except ClientGone:
            self.aborted = True  # between two requests: nothing was lost, and there is nobody to say goodbye to
            return False

    # -- the log ----------------------------------------------------------------------------------------------------

    @property
    def _peer(self) -> str:
        return self._client.address[0] if self._client.address else "-"

    def _log(self, request: Request | None, status: int, sent: int, started: float) -> None:
        if not self._config.access_log:
            return
        line = "-"
        if request is not None:
            target = request.target.decode("ascii").replace('"', "\\x22")
            line = f"{request.method} {target} HTTP/{request.http_version}"
        took = (trio.current_time() - started) * 1000
        access.info('%s "%s" %d %d %.1fms', self._peer, line, status, sent, took)
