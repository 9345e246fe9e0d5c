"""The way to an application: one path to each machine behind an edge, many requests on it at a time.

The shapes of the messages are in ``docs/reference/http-over-paths.md``. A machine at the other end is not trusted:
whatever it sends may spoil its own responses and nobody else's.
"""

import logging
from collections.abc import Callable
from itertools import count
from typing import Any, Final

import attrs
import trio

from retinue.pipes import AccessDenied, LimitExceeded, Message, Path, PathError, Rejected, tracing
from retinue.services.httpd.config import Config
from retinue.services.httpd.errors import BadReply, ClientGone, HttpError
from retinue.services.httpd.exchange import Exchange
from retinue.services.httpd.response import read_part, read_reply
from retinue.svm import ConnectRefused
from retinue.svm.fan import Fan

log: Final = logging.getLogger("retinue.httpd")

# What a client is told to wait before it tries a machine again that is not there now: a restart takes about that long.
RETRY_AFTER: Final = 1

GONE: Final = "The application's machine is gone."
NOT_THERE: Final = "The application is not available now."

Spread = Callable[[], Fan]

# Why a machine refused a request -> what the client gets. Any other code means the machine does not speak our protocol.
_REFUSALS: Final = {
    "app-error": 500,  # an ASGI application raised
    "failed": 500,  # a plain handler raised (Path.serve)
    "stopping": 503,
}


@attrs.define(eq=False)
class _Call:
    """One request that is with the application: what its machine may pull and push in the meantime."""

    exchange: Exchange
    scope: trio.CancelScope
    pulling: trio.CancelScope | None = None
    pushing: trio.CancelScope | None = None
    generation: int | None = None  # of the machine that has read or answered a part of it, see Gateway._left_over
    settled: trio.lowlevel.ParkingLot = attrs.field(factory=trio.lowlevel.ParkingLot)

    async def settle(self) -> None:
        """End what the machine has pulled or pushed and not waited for: nobody else may work on the exchange then."""
        with trio.CancelScope(shield=True):
            while self.pulling is not None or self.pushing is not None:
                for scope in (self.pulling, self.pushing):
                    if scope is not None:
                        scope.cancel()
                await self.settled.park()


class Gateway:
    """Forwards exchanges over one edge, each to the machine behind it that has fewest of them.

    ``spread()`` is a fan over these machines, which connects again when a path was severed.
    """

    def __init__(self, edge: str, spread: Spread, config: Config, nursery: trio.Nursery) -> None:
        self.edge = edge
        self._spread = spread
        self._config = config
        self._nursery = nursery
        self._fan: Fan | None = None
        self._served: set[Path] = set()
        self._calls: dict[int, _Call] = {}
        self._ids = count(1)
        self._retired = False
        self._needless = trio.Event()

    def configure(self, config: Config) -> None:
        """Go by other figures from the next request on."""
        self._config = config

    def retire(self) -> None:
        """No request comes any more: close the paths when those that they have are answered."""
        self._retired = True
        self._close_if_idle()

    def _close_if_idle(self) -> None:
        if self._retired and not self._calls:
            self._needless.set()

    async def forward(self, exchange: Exchange) -> None:
        """Have the machine answer. Raises :exc:`HttpError` 500, 502, 503 or 504, :exc:`BadReply`, :exc:`ClientGone`."""
        ident = next(self._ids)
        call = self._calls[ident] = _Call(exchange, trio.CancelScope())
        try:
            fan = self._opened()
            with trio.move_on_after(self._config.patience) as scope:
                try:
                    rib = await fan.choose()
                except ConnectRefused as exc:
                    log.warning("edge %s: not available: %s", self.edge, exc)
                    raise HttpError(503, NOT_THERE, retry_after=RETRY_AFTER) from exc
            if scope.cancelled_caught:
                raise HttpError(503, NOT_THERE, retry_after=RETRY_AFTER)
            rib.busy += 1
            try:
                assert rib.path is not None
                await self._forward(ident, call, self._serving(rib.path))
            finally:
                rib.busy -= 1
                fan.settle(rib)
        finally:
            del self._calls[ident]
            self._close_if_idle()

    async def _forward(self, ident: int, call: _Call, path: Path) -> None:
        exchange = call.exchange
        # Not before the call is on its way: a deadline that it is made with travels along, and this one may be moved.
        self._nursery.start_soon(self._start_clock, call)
        try:
            with call.scope:
                untrusted_reply = await path.call(_request(ident, exchange))
        except Rejected as exc:
            raise self._refused(exc) from exc
        except LimitExceeded as exc:
            raise HttpError(502, "The request does not fit a message.") from exc
        except PathError as exc:
            raise HttpError(502, GONE) from exc
        finally:
            unfinished = call.pushing is not None
            if call.pulling is not None or unfinished:
                await call.settle()
        if call.scope.cancelled_caught:
            raise HttpError(504, "The application did not answer in time.")
        if self._left_over(call, path):
            raise HttpError(502, GONE)
        if unfinished:
            raise BadReply("a reply while a part of the response was still on its way")
        if exchange.status:
            await exchange.send_body(read_part(untrusted_reply).body, more=False)
        else:
            await exchange.respond(read_reply(untrusted_reply))

    async def _start_clock(self, call: _Call) -> None:
        if call.pulling is None and call.pushing is None:
            call.scope.deadline = trio.current_time() + self._config.answer_time

    def _refused(self, refusal: Rejected) -> HttpError:
        status = 502 if isinstance(refusal, AccessDenied) else _REFUSALS.get(refusal.code, 502)
        if status == 502:
            log.warning("edge %s: the machine refused a request: %s", self.edge, refusal)
        return HttpError(status, retry_after=RETRY_AFTER if status == 503 else None)

    # -- the paths --------------------------------------------------------------------------------------------------

    def _opened(self) -> Fan:
        if self._fan is None:
            self._fan = self._spread()
            with tracing(None):  # for every request
                self._nursery.start_soon(self._run, self._fan)
        return self._fan

    def _serving(self, path: Path) -> Path:
        if path not in self._served:
            self._served.add(path)
            with tracing(None):
                self._nursery.start_soon(self._serve, path)
        return path

    async def _run(self, fan: Fan) -> None:
        async with fan:
            await self._needless.wait()

    async def _serve(self, path: Path) -> None:
        """Do what the machine asks for while it answers, until the path has ended."""
        try:
            await path.serve(self._on_message)
            if not self._needless.is_set():
                log.warning("edge %s: path severed: %s", self.edge, path.severed)
        finally:
            self._served.discard(path)
            path.sever()

    def _left_over(self, call: _Call, path: Path) -> bool:
        """Whether a machine that is dead now has read a part of the request or answered a part of it.

        Its successor gets the request again, from its beginning, and cannot go on with either. Each time there is one,
        ``path`` has counted what was sent again: at least this call, which had no answer.
        """
        return call.generation is not None and call.generation != path.meter.redelivered

    # -- what the machine asks for while it answers ------------------------------------------------------------------

    async def _on_message(self, message: Message) -> Any:
        untrusted = message.body
        if type(untrusted) is not dict or type(untrusted.get("id")) is not int:
            raise Rejected("bad-message", "a map with type and id is expected")
        call = self._calls.get(untrusted["id"])
        if call is None or call.exchange.failure is not None:
            raise Rejected("disconnected", "this request is not open any more")
        if self._left_over(call, message.path):
            call.exchange.fail(HttpError(502, GONE))
            raise Rejected("disconnected", "a part of this request is lost")
        match untrusted.get("type"):
            case "http.receive":
                call.generation = message.path.meter.redelivered
                return await self._pull(call)
            case "http.send":
                call.generation = message.path.meter.redelivered
                return await self._push(call, untrusted)
            case _:
                raise Rejected("bad-message", "the types http.receive and http.send are known here")

    async def _pull(self, call: _Call) -> Any:
        if call.pulling is not None:
            raise Rejected("busy", "the request's body is being received already")
        try:
            with trio.CancelScope() as call.pulling:
                # Time that the client takes is not time that the application takes.
                call.scope.deadline = float("inf")
                body, more_body = await call.exchange.receive_body()
                return {"body": body, "more_body": more_body}
        except ClientGone:
            pass
        finally:
            if not call.exchange.status:
                call.scope.deadline = trio.current_time() + self._config.answer_time
            call.pulling = None
            call.settled.unpark_all()
        return {"disconnect": True}

    async def _push(self, call: _Call, untrusted: dict[str, Any]) -> None:
        exchange = call.exchange
        if call.pushing is not None:
            raise Rejected("busy", "a part of the response is being sent already")
        untrusted_part = {key: value for key, value in untrusted.items() if key not in ("type", "id")}
        try:
            with trio.CancelScope() as call.pushing:
                call.scope.deadline = float("inf")
                if exchange.status:
                    await exchange.send_body(read_part(untrusted_part).body, more=True)
                else:
                    await exchange.respond(read_reply(untrusted_part), more=True)
                return
        except BadReply as exc:
            exchange.fail(exc)
            raise Rejected("bad-response", exc.rule) from exc
        except ClientGone as exc:
            exchange.fail(exc)
        finally:
            call.pushing = None
            call.settled.unpark_all()
        raise Rejected("disconnected", "the client is gone")


def _request(ident: int, exchange: Exchange) -> dict[str, Any]:
    request, client = exchange.request, exchange.client
    return {
        "type": "http",
        "id": ident,
        "scope": {
            "method": request.method,
            "scheme": client.scheme,
            "http_version": request.http_version,
            "path": request.path,
            "raw_path": request.raw_path,
            "query_string": request.query,
            "root_path": "",
            "headers": request.headers,
            "client": client.address,
            "server": client.server,
        },
        "body": exchange.body,
        "more_body": exchange.more_body,
    }
