"""The application machine: an ordinary Starlette application. It runs under any ASGI server.

``/guests`` keeps a guest book, in a machine on the machine's own disk. ``/escape`` tries three things that a sealed
machine cannot do and tells what became of each.
"""

import os
import pathlib
import signal
import socket

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse
from starlette.routing import Route

PAGE = """<!doctype html>
<title>A small shop</title>
<h1>A small shop</h1>
<p>This page came through three sealed machines that can talk only through pipes.</p>
<ul>
<li><a href="/hello/you">a greeting</a> from this application
<li><a href="/count">a counter</a> in another machine, without a framework
<li><a href="/escape">three attempts to break out</a> of this one
</ul>
"""


async def front(request: Request) -> HTMLResponse:
    return HTMLResponse(PAGE)


async def hello(request: Request) -> PlainTextResponse:
    return PlainTextResponse(f"hello, {request.path_params['name']}\n")


def guestbook(request: Request) -> pathlib.Path:
    """A file on the machine's own disk; outside a machine, where there is no such thing, beside this module."""
    inside = request.scope.get("extensions", {}).get("retinue")
    folder = inside["machine"].disk("a") if inside else pathlib.Path(__file__).parent
    return pathlib.Path(folder, "guestbook.txt")


async def sign(request: Request) -> PlainTextResponse:
    with guestbook(request).open("ab") as book:
        book.write(await request.body() + b"\n")
    return PlainTextResponse("thank you\n", status_code=201)


async def read(request: Request) -> PlainTextResponse:
    book = guestbook(request)
    return PlainTextResponse(book.read_bytes() if book.exists() else b"nobody yet\n")


def open_a_socket() -> None:
    socket.create_connection(("127.0.0.1", 8080), timeout=1)


def read_a_file() -> None:
    pathlib.Path("/etc/passwd").read_text()


def signal_a_machine() -> None:
    for pid in range(2, 100_000):
        try:
            os.kill(pid, signal.SIGTERM)
        except ProcessLookupError:
            continue
        return
    raise ProcessLookupError("there is no other process")


async def escape(request: Request) -> JSONResponse:
    attempts = {
        "open a TCP socket": open_a_socket,
        "read /etc/passwd": read_a_file,
        "signal another machine": signal_a_machine,
    }
    results = {}
    for name, attempt in attempts.items():
        try:
            attempt()
        except OSError as exc:
            results[name] = f"refused: {type(exc).__name__}: {exc.strerror or exc}"
        else:
            results[name] = "it succeeded"
    return JSONResponse(results)


app = Starlette(
    routes=[
        Route("/", front),
        Route("/hello/{name}", hello),
        Route("/guests", sign, methods=["POST"]),
        Route("/guests", read),
        Route("/escape", escape),
    ]
)
