"""Runs an unmodified WSGI application (PEP 3333) inside a machine.

Requests come as ``http`` calls over paths, as for ASGI, and everything that is not WSGI is shared with
:mod:`retinue.svm.asgi`: :class:`Wsgi` is an ASGI application that runs a WSGI application in threads. At most
``threads`` requests run at a time; further ones wait, without a thread. What the application hands over leaves at once
and is waited for until the client has taken it.

A thread cannot be cancelled: a client that leaves stops the iteration at its next piece, and a machine that stops waits
for DRAIN_TIME and then ends, whatever its threads are doing.

An application that knows where it runs finds its machine, with its disks, in ``environ["retinue.machine"]``.
"""

import io
import logging
import re
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Final
from urllib.parse import unquote_to_bytes

import trio

from retinue.svm.asgi import EXTENSION, Runner
from retinue.svm.errors import ClientDisconnected
from retinue.svm.lifespan import Event, Receive, Scope, Send
from retinue.svm.machine import Machine

Environ = dict[str, Any]
ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]
Write = Callable[[bytes], object]
App = Callable[[Environ, Callable[..., Write]], Iterable[bytes]]

MACHINE: Final = "retinue.machine"
REDELIVERED: Final = "retinue.redelivered"

# Requests at a time, unless the topology says otherwise; each is a thread with a stack of a MiB.
THREADS: Final = 8

# Characters of a line for wsgi.errors that has no end yet: what a record holds.
MAX_LINE: Final = 32 * 1024

_STATUS: Final = re.compile(r"([2-5][0-9]{2})( |$)")
# Headers that CGI has variables of its own for, and one whose variable means something else (CVE-2016-5385).
_NOT_HTTP: Final = frozenset({"content-type", "content-length", "proxy"})

# What an application writes to wsgi.errors.
_errors: Final = logging.getLogger("wsgi.errors")


async def serve_wsgi(vm: Machine[Any], app: App, threads: int = THREADS) -> None:
    """Run the application as this machine's program: ready at once, requests until the machine stops."""
    await Runner(Wsgi(app, threads), {}, {EXTENSION: {"machine": vm}}).serve(vm)


class Wsgi:
    """A WSGI application as an ASGI one, for requests alone (no lifespan). ``threads`` of them run at a time."""

    def __init__(self, app: App, threads: int = THREADS) -> None:
        self._app = app
        self._turns = trio.CapacityLimiter(threads)
        self._threads = trio.CapacityLimiter(threads)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request. Raises what the application raised, ClientDisconnected (an OSError)."""
        async with self._turns:
            event = await receive()
            if event["type"] != "http.request":
                return  # the client left while the request waited for its turn
            response = Response(self._app, make_environ(scope, Body(event, receive)), send)
            # Abandoned when the machine ends, and only then: nobody waits longer for the thread than for a task.
            await trio.to_thread.run_sync(response.run, limiter=self._threads, abandon_on_cancel=True)


def make_environ(scope: Scope, body: "Body") -> Environ:
    """The environ of PEP 3333 for a request, with what is customary beside it (REMOTE_ADDR, wsgi.input_terminated)."""
    # The bytes of the path, whatever they are, each as one character.
    path = unquote_to_bytes(scope["raw_path"] or scope["path"]).decode("latin-1")
    root = scope["root_path"].encode("utf-8", "replace").decode("latin-1")
    name, port = scope["server"] or ("localhost", None)
    environ: Environ = {
        "REQUEST_METHOD": scope["method"],
        "SCRIPT_NAME": root,
        "PATH_INFO": path.removeprefix(root),
        "QUERY_STRING": scope["query_string"].decode("latin-1"),
        "SERVER_NAME": name,
        "SERVER_PORT": str(port or (443 if scope["scheme"] == "https" else 80)),
        "SERVER_PROTOCOL": f"HTTP/{scope['http_version']}",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": scope["scheme"],
        "wsgi.input": io.BufferedReader(body) if body.more else io.BytesIO(body.piece),
        "wsgi.input_terminated": True,
        "wsgi.errors": Errors(),
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }
    if scope["client"] is not None:
        environ["REMOTE_ADDR"], environ["REMOTE_PORT"] = scope["client"][0], str(scope["client"][1] or "")
    for raw_name, raw_value in scope["headers"]:
        header, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
        if header in ("content-type", "content-length"):
            environ[header.upper().replace("-", "_")] = value
        # With an underscore in its name a header would pass for the one with a hyphen, which a proxy has set.
        if header in _NOT_HTTP or "_" in header:
            continue
        variable = "HTTP_" + header.upper().replace("-", "_")
        joint = "; " if header == "cookie" else ","
        environ[variable] = f"{environ[variable]}{joint}{value}" if variable in environ else value
    inside = scope["extensions"].get(EXTENSION, {})
    if "machine" in inside:
        environ[MACHINE] = inside["machine"]
    environ[REDELIVERED] = inside.get("redelivered", False)
    return environ


class Body(io.RawIOBase):
    """The body of a request, read in a thread and fetched piece by piece; OSError when the client is gone."""

    def __init__(self, first: Event, receive: Receive) -> None:
        self.piece: bytes = first["body"]
        self.more: bool = first["more_body"]
        self._receive = receive

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self.piece and self.more:
            event = trio.from_thread.run(self._receive)
            if event["type"] != "http.request":
                raise ClientDisconnected("the client left in the middle of its request")
            self.piece, self.more = event["body"], event["more_body"]
        part, self.piece = self.piece[: len(buffer)], self.piece[len(buffer) :]
        buffer[: len(part)] = part
        return len(part)


class Errors(io.TextIOBase):
    """``wsgi.errors`` of one request: whole lines become records, those that are written together one record."""

    def __init__(self) -> None:
        self._text = ""

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        lines, newline, rest = (self._text + text).rpartition("\n")
        if len(rest) > MAX_LINE:
            lines, newline, rest = lines + newline + rest, "\n", ""
        self._text = rest
        if newline:
            _errors.warning("%s", lines)
        return len(text)

    def flush(self) -> None:
        if self._text:
            _errors.warning("%s", self._text)
            self._text = ""


class Response:
    """One request in its thread: the application is called, and what it says is sent."""

    def __init__(self, app: App, environ: Environ, send: Send) -> None:
        self._app = app
        self._environ = environ
        self._send = send
        self._head: Event | None = None
        self._begun = False  # the head is on its way
        self._complete = False
        self._left: int | None = None  # bytes that the application has announced and not given
        self._bodiless = environ["REQUEST_METHOD"] == "HEAD"

    def run(self) -> None:
        """The whole request. Raises what the application raises, OSError when the client is gone."""
        result: Iterable[bytes] = ()
        try:
            result = self._app(self._environ, self.start_response)
            self._send_all(result)
        finally:
            try:
                if hasattr(result, "close"):
                    result.close()
            finally:
                self._environ["wsgi.errors"].flush()

    def start_response(self, status: str, headers: list[tuple[str, str]], exc_info: ExcInfo | None = None) -> Write:
        """PEP 3333's. Raises RuntimeError for a second call without ``exc_info``, TypeError, ValueError."""
        if exc_info is not None:
            try:
                if self._begun and exc_info[1] is not None:
                    raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = None  # or it would keep its own frame alive
        elif self._head is not None:
            raise RuntimeError("start_response was called a second time, without exc_info")
        if not isinstance(status, str):
            raise TypeError(f"the status is {type(status).__name__}, not str")
        found = _STATUS.match(status)
        if found is None:
            raise ValueError(f"the status is {status!r}, not three digits from 200 to 599 and a reason")
        pairs = []
        length = None
        for name, value in headers:
            if not isinstance(name, str) or not isinstance(value, str):
                raise TypeError(f"the header {name!r} is not a pair of str")
            pairs.append((name.encode("latin-1"), value.encode("latin-1")))
            if name.lower() == "content-length":
                length = int(value)
        self._head = {"type": "http.response.start", "status": int(found[1]), "headers": pairs}
        self._left = length
        return self._write

    def _write(self, data: bytes) -> None:
        """What start_response returns."""
        self._give(data, last=False)

    def _send_all(self, result: Iterable[bytes]) -> None:
        alone = isinstance(result, list | tuple) and len(result) == 1
        for piece in result:
            if self._bodiless and self._head is not None:
                break  # a generator has said its headers now, and its body would go nowhere
            self._give(piece, last=alone)
        if not self._complete:
            self._hand_over(b"", last=True)

    def _give(self, piece: bytes, *, last: bool) -> None:
        if not isinstance(piece, bytes):
            raise TypeError(f"a piece of the body is {type(piece).__name__}, not bytes")
        if not piece:
            return  # the head waits for the first byte, or for the end
        if self._bodiless:
            piece = b""
        elif self._left is not None:
            if len(piece) > self._left:
                raise ValueError("the body is longer than its Content-Length")
            self._left -= len(piece)
            # All that was announced: the response is whole now, not when the application returns.
            last = last or self._left == 0
        self._hand_over(piece, last=last)

    def _hand_over(self, piece: bytes, *, last: bool) -> None:
        if self._head is None:
            raise RuntimeError("start_response was not called before the body")
        events: list[Event] = [] if self._begun else [self._head]
        events.append({"type": "http.response.body", "body": piece, "more_body": not last})
        self._begun = True
        trio.from_thread.run(self._post, events)
        self._complete = last

    async def _post(self, events: list[Event]) -> None:
        for event in events:
            await self._send(event)
