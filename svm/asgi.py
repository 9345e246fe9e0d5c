"""Runs an unmodified ASGI 3 application inside a machine.

Requests come as ``http`` calls over paths (``docs/reference/http-over-paths.md``), usually from HTTPD. Each is run by a
task of its own: the response leaves when it is complete, the application may go on working after it. The application
runs under trio; whatever is built on anyio (Starlette, FastAPI) does so unchanged. One that knows where it runs finds
its machine, with disks and edges, in ``scope["extensions"]["retinue"]["machine"]``.

What a caller sends is ``untrusted_*`` until :func:`read_call` has returned: any machine with an edge may be the caller.
"""

from collections.abc import Mapping
from typing import Any, Final

import attrs
import trio

from retinue.pipes import Message, Path, PathError, Rejected, wire
from retinue.pipes.message import close_all
from retinue.pipes.traces import current
from retinue.svm.errors import ClientDisconnected, WrongEvent
from retinue.svm.lifespan import App, Event, Lifespan, Scope, log
from retinue.svm.machine import Machine

# Where an application that wants to know finds its machine: scope["extensions"]["retinue"]["machine"].
EXTENSION: Final = "retinue"

# Methods of requests that may be answered twice (RFC 9110, 9.2.1), as far as this end can tell: a predecessor of this
# machine had such a request and may have done all that it asks for.
SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})

# 2.4 is the version from which send() raises OSError when the client is gone.
VERSIONS: Final = {"version": "3.0", "spec_version": "2.4"}

# A body above this leaves in slices, each waiting for the client to take it; below, in one message with the head.
SLICE: Final = 256 * 1024
# How long requests, and what applications do after their responses, may go on when the machine stops, in seconds.
DRAIN_TIME: Final = 5.0

# The fields of a request's scope that the caller gives, and their types.
_TEXTS: Final = ("method", "scheme", "http_version", "path", "root_path")
_BYTES: Final = ("raw_path", "query_string")


async def serve_asgi(vm: Machine[Any], app: App) -> None:
    """Run the application as this machine's program: startup, ready, requests until the machine stops, shutdown.

    Raises :exc:`LifespanFailed` when the application says that it cannot start.
    """
    state: dict[str, Any] = {}
    extensions = {EXTENSION: {"machine": vm}}
    lifespan = Lifespan(app, state, extensions)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lifespan.run)
        if await lifespan.startup():
            try:
                await Runner(app, state, extensions).serve(vm)
            finally:
                with trio.CancelScope(shield=True):
                    await lifespan.shutdown()
        nursery.cancel_scope.cancel()
    if lifespan.failure is not None:
        raise lifespan.failure


@attrs.frozen
class HttpCall:
    """A request, checked: its ``scope`` without ``state``, and as much of its body as came with it."""

    id: int
    scope: Scope
    body: bytes
    more_body: bool


def read_call(untrusted: Any) -> HttpCall:
    """The request in an ``http`` call. Raises Rejected with the code ``unknown-message`` or ``bad-message``."""
    if type(untrusted) is not dict or untrusted.get("type") != "http":
        raise Rejected("unknown-message", "this machine answers messages of the type http")
    ident, fields = untrusted.get("id"), untrusted.get("scope")
    body, more_body = untrusted.get("body", b""), untrusted.get("more_body", False)
    if type(ident) is not int or type(fields) is not dict or type(body) is not bytes or type(more_body) is not bool:
        raise Rejected("bad-message", "an http call has id, scope, body and more_body")
    scope: Scope = {"type": "http", "asgi": dict(VERSIONS)}
    for name in _TEXTS:
        scope[name] = value = fields.get(name)
        if type(value) is not str:
            raise Rejected("bad-message", f"scope.{name} is not text")
    for name in _BYTES:
        scope[name] = value = fields.get(name)
        if type(value) is not bytes:
            raise Rejected("bad-message", f"scope.{name} is not bytes")
    headers: Any = fields.get("headers")
    try:
        scope["headers"] = [(name, value) for name, value in headers]
    except (TypeError, ValueError):
        raise Rejected("bad-message", "scope.headers is not a list of pairs") from None
    for name, value in scope["headers"]:
        if type(name) is not bytes or type(value) is not bytes:
            raise Rejected("bad-message", "a header is not a pair of bytes")
    for name in ("client", "server"):
        address = fields.get(name)
        if address is not None and (
            type(address) is not list or [type(each) for each in address] not in ([str, int], [str, type(None)])
        ):
            raise Rejected("bad-message", f"scope.{name} is not [host, port]")
        scope[name] = None if address is None else (address[0], address[1])
    return HttpCall(ident, scope, body, more_body)


class Runner:
    """Runs an application for the requests that come over any number of paths."""

    def __init__(self, app: App, state: dict[str, Any], extensions: Mapping[str, Any] | None = None) -> None:
        self._app = app
        self._state = state
        self._extensions = extensions or {}
        self._stopping = False
        self._busy = 0
        self._idle = trio.Event()

    async def serve(self, vm: Machine[Any]) -> None:
        """Say ready, accept paths until the machine stops, then let what is running finish for DRAIN_TIME."""
        async with trio.open_nursery() as nursery:
            incoming = vm.listen()
            await vm.ready()
            async for path in incoming:
                nursery.start_soon(self.serve_path, path)
            deadline = trio.current_time() + DRAIN_TIME
            with trio.move_on_at(deadline):
                await vm.drained()  # requests that came before their senders knew of it are answered, too
            await self.finish(deadline)
            nursery.cancel_scope.cancel()

    async def serve_path(self, path: Path) -> None:
        """Answer the requests of one path until it is severed; what they began may go on."""
        async with trio.open_nursery() as nursery:
            async for message in path:
                close_all(message.descriptors)
                if not message.wants_reply:
                    continue
                if self._stopping:
                    path.reject(message, "stopping", "the machine is stopping")
                    continue
                self._busy += 1
                nursery.start_soon(self._run, message, nursery)

    async def finish(self, deadline: float | None = None) -> None:
        """Take no more requests, and wait until the application is idle, or the deadline: in DRAIN_TIME unless told."""
        self._stopping = True
        with trio.move_on_at(trio.current_time() + DRAIN_TIME if deadline is None else deadline) as scope:
            while self._busy:
                self._idle = trio.Event()
                await self._idle.wait()
        if scope.cancelled_caught:
            log.warning("%d requests were still running %g s after the stop", self._busy, DRAIN_TIME)

    async def _run(self, message: Message, nursery: trio.Nursery) -> None:
        current.set(wire.trace_of(message.frame))  # for this task, which is the request's
        try:
            try:
                call = read_call(message.body)
            except Rejected as exc:
                message.path.reject(message, exc.code, exc.text)
                return
            call.scope["state"] = self._state.copy()
            call.scope["extensions"] = extensions = dict(self._extensions)
            if message.redelivered:
                if call.scope["method"] not in SAFE:
                    message.path.reject(message, "interrupted", "the machine died while it had this request")
                    return
                extensions[EXTENSION] = {**extensions.get(EXTENSION, {}), "redelivered": True}
            await self._run_app(Cycle(message, call, nursery), call.scope)
        finally:
            self._busy -= 1
            if not self._busy:
                self._idle.set()

    async def _run_app(self, cycle: "Cycle", scope: Scope) -> None:
        try:
            await self._app(scope, cycle.receive, cycle.send)
        except Exception as exc:
            if cycle.disconnected:
                log.info("%s %s: the client left: %r", scope["method"], scope["path"], exc)
            else:
                log.exception("%s %s: the application failed", scope["method"], scope["path"])
            cycle.refuse("app-error", f"the application raised {type(exc).__name__}")
        else:
            if not cycle.complete and not cycle.disconnected:
                log.error("%s %s: the application returned without a whole response", scope["method"], scope["path"])
            cycle.refuse("app-error", "the application returned without a whole response")
        finally:
            cycle.refuse("stopping", "the machine is stopping")


class Cycle:
    """One request as the application sees it: its ``receive`` and ``send``. Bodies are fetched in ``nursery``."""

    __slots__ = (
        "_call", "_done", "_event", "_headers", "_lost", "_message", "_more", "_nursery", "_pulling", "_status",
        "_streaming", "complete",
    )  # fmt: skip

    def __init__(self, message: Message, call: HttpCall, nursery: trio.Nursery) -> None:
        self.complete = False
        self._message = message
        self._call = call
        self._nursery = nursery
        self._event: Event | None = {"type": "http.request", "body": call.body, "more_body": call.more_body}
        self._more = call.more_body
        self._pulling: trio.Event | None = None
        self._lost = False
        self._status: int | None = None
        self._headers: list[tuple[bytes, bytes]] = []
        self._streaming = False
        self._done = trio.Event()

    @property
    def disconnected(self) -> bool:
        """Whether the client, or the machine that speaks for it, was gone before the response was complete."""
        return not self.complete and (self._lost or self._message.purged.is_set())

    def refuse(self, code: str, text: str) -> None:
        """Answer the call with a refusal, unless it is answered."""
        if not self.complete:
            self._message.path.reject(self._message, code, text)
            self._finish()

    def _finish(self) -> None:
        self.complete = True
        self._done.set()

    # -- receive ----------------------------------------------------------------------------------------------------

    async def receive(self) -> Event:
        """The next event: ``http.request`` with a piece of the body, or ``http.disconnect``.

        What is known already comes without a checkpoint: frameworks ask for it in a cancelled scope so as not to wait.
        """
        while not self.complete and not self.disconnected:
            if (event := self._event) is not None:
                self._event = None
                return event
            if not self._more:
                await self._wait_end()
            else:
                await self._pull()
        return {"type": "http.disconnect"}

    async def _pull(self) -> None:
        """Until a piece of the body has come. It is fetched aside: a receive that is cancelled must not lose it."""
        if self._pulling is None:
            self._pulling = trio.Event()
            self._nursery.start_soon(self._fetch, self._pulling)
        await self._pulling.wait()

    async def _fetch(self, done: trio.Event) -> None:
        try:
            untrusted = await self._message.path.call({"type": "http.receive", "id": self._call.id})
        except PathError:
            untrusted = None
        if type(untrusted) is dict and type(untrusted.get("body")) is bytes:
            self._more = untrusted.get("more_body") is True
            self._event = {"type": "http.request", "body": untrusted["body"], "more_body": self._more}
        else:
            self._lost = True
        self._pulling = None
        done.set()

    async def _wait_end(self) -> None:
        """Until the response is complete or the client is gone."""
        async with trio.open_nursery() as nursery:

            async def watch(event: trio.Event) -> None:
                await event.wait()
                nursery.cancel_scope.cancel()

            nursery.start_soon(watch, self._done)
            nursery.start_soon(watch, self._message.purged)

    # -- send -------------------------------------------------------------------------------------------------------

    async def send(self, event: Event) -> None:
        """Take ``http.response.start``, then ``http.response.body`` events; a streamed body waits for the client.

        Raises :exc:`ClientDisconnected` (an OSError) when nobody gets the response, :exc:`WrongEvent`.
        """
        kind = event.get("type")
        if self.complete:
            raise WrongEvent(f"{kind!r} after the end of the response")
        if self.disconnected:
            raise ClientDisconnected("the client is gone")
        if kind == "http.response.start":
            if self._status is not None:
                raise WrongEvent("a second http.response.start")
            self._status, self._headers = _read_start(event)
            await trio.lowlevel.checkpoint()
        elif kind == "http.response.body":
            if self._status is None:
                raise WrongEvent("http.response.body before http.response.start")
            body = event.get("body", b"")
            if type(body) is not bytes:
                if not isinstance(body, bytes | bytearray | memoryview):
                    raise WrongEvent(f"the body of a response is {type(body).__name__}, not bytes")
                body = bytes(body)
            await self._send_body(body, bool(event.get("more_body", False)))
        else:
            raise WrongEvent(f"unknown ASGI event {kind!r}")

    async def _send_body(self, body: bytes, more_body: bool) -> None:
        if more_body or len(body) > SLICE:
            # An empty first part still makes the head leave now: an event stream begins that way.
            for start in range(0, len(body), SLICE) or (0,):
                await self._push(body[start : start + SLICE])
            body = b""
        if more_body:
            return
        reply: dict[str, Any] = {"body": body}
        if not self._streaming:
            reply["status"], reply["headers"] = self._status, self._headers
        self._message.path.reply(self._message, reply)
        self._finish()
        await trio.lowlevel.checkpoint()

    async def _push(self, body: bytes) -> None:
        part: dict[str, Any] = {"type": "http.send", "id": self._call.id, "body": body}
        if not self._streaming:
            part["status"], part["headers"] = self._status, self._headers
            self._streaming = True
        elif not body:
            return
        try:
            await self._message.path.call(part)
        except Rejected as exc:
            if exc.code != "disconnected":
                raise WrongEvent(f"the response was refused: {exc}") from exc
            self._lost = True
            raise ClientDisconnected("the client is gone") from exc
        except PathError as exc:
            self._lost = True
            raise ClientDisconnected("the way to the client is gone") from exc


def _read_start(event: Event) -> tuple[int, list[tuple[bytes, bytes]]]:
    status = event.get("status")
    if not isinstance(status, int) or not 200 <= status <= 599:
        raise WrongEvent(f"the status of a response is {status!r}, not a number from 200 to 599")
    headers = []
    for name, value in event.get("headers", ()):
        if not isinstance(name, bytes) or not isinstance(value, bytes):
            raise WrongEvent(f"the header {name!r} is not a pair of bytes")
        headers.append((name, value))
    return int(status), headers
