"""An unmodified Starlette application behind the whole chain in one process.

HTTP bytes -> connection -> gateway -> path -> ASGI runtime -> Starlette, and back.
"""

import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
import trio
import trio.testing
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route

from retinue.pipes import Path, memory_pair
from retinue.services.httpd.client import StreamClient
from retinue.services.httpd.config import Config
from retinue.services.httpd.connection import Connection
from retinue.services.httpd.gateway import Gateway
from retinue.svm import Machine
from retinue.svm.asgi import Runner
from retinue.svm.edge import Edge
from retinue.svm.fan import Fan
from retinue.svm.lifespan import Lifespan


class Shop:
    """The application, and what it has seen."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.written = 0
        self.background = trio.Event()
        self.hanging = trio.Event()
        self.left = trio.Event()
        self.app = Starlette(
            lifespan=self.lifespan,
            routes=[
                Route("/", self.home),
                Route("/sync", self.sync),
                Route("/stream", self.stream),
                Route("/endless", self.endless),
                Route("/upload", self.upload, methods=["POST"]),
                Route("/later", self.later),
                Route("/bug", self.bug),
                Route("/late-bug", self.late_bug),
                Route("/hang", self.hang),
                Route("/empty", self.empty),
                Mount("/mounted", routes=[Route("/{name}", self.mounted)]),
            ],
        )

    @asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[dict[str, str]]:
        self.events.append("up")
        yield {"db": "database"}
        self.events.append("down")

    async def home(self, request: Request) -> Response:
        assert request.client is not None
        return JSONResponse(
            {
                "db": request.state.db,
                "url": str(request.url),
                "client": request.client.host,
                "q": request.query_params["q"],
            }
        )

    def sync(self, request: Request) -> Response:
        return PlainTextResponse(str(threading.current_thread() is threading.main_thread()))

    async def stream(self, request: Request) -> Response:
        async def pieces() -> AsyncIterator[bytes]:
            for n in range(5):
                yield b"piece %d\n" % n
                await trio.lowlevel.checkpoint()

        return StreamingResponse(pieces(), media_type="text/plain")

    async def endless(self, request: Request) -> Response:
        shop = self

        class Pieces:  # no generator: Starlette does not close one when the client goes, and trio warns of that
            def __aiter__(self) -> "Pieces":
                return self

            async def __anext__(self) -> bytes:
                shop.written += 1
                return b"x" * 10_000

        return StreamingResponse(Pieces())

    async def upload(self, request: Request) -> Response:
        size = largest = 0
        async for piece in request.stream():
            size, largest = size + len(piece), max(largest, len(piece))
        return JSONResponse({"size": size, "pieces are small": largest < 300_000})

    async def later(self, request: Request) -> Response:
        async def work() -> None:
            await trio.testing.wait_all_tasks_blocked()
            self.background.set()

        return PlainTextResponse("at once", background=BackgroundTask(work))

    async def bug(self, request: Request) -> Response:
        raise RuntimeError("a bug in the shop")

    async def late_bug(self, request: Request) -> Response:
        async def pieces() -> AsyncIterator[bytes]:
            yield b"begun"
            raise RuntimeError("a bug in mid-sentence")

        return StreamingResponse(pieces())

    async def hang(self, request: Request) -> Response:
        self.hanging.set()
        try:
            await request.body()
            while not await request.is_disconnected():
                await trio.testing.wait_all_tasks_blocked()
        except ClientDisconnect:
            pass
        self.left.set()
        return PlainTextResponse("nobody hears this")

    async def empty(self, request: Request) -> Response:
        return Response(status_code=204)

    async def mounted(self, request: Request) -> Response:
        return PlainTextResponse(f"{request.path_params['name']} under {request.scope['root_path']}")


class Site:
    def __init__(self, nursery: trio.Nursery, shop: Shop, runner: Runner) -> None:
        self.shop = shop
        self.ended = trio.Event()  # a connection has ended
        self._nursery = nursery
        self._runner = runner
        self._config = Config(routes={"/": "app"})
        self._gateway = Gateway("app", self._spread, self._config, nursery)

    async def connect_instance(self, edge: str, instance: int | None) -> Path:
        ours, theirs = (Path(transport) for transport in memory_pair())
        await self._nursery.start(ours.run)
        await self._nursery.start(theirs.run)
        self._nursery.start_soon(self._runner.serve_path, theirs)
        return ours

    def _spread(self) -> Fan:
        return Fan(cast(Machine[Any], self), Edge("app", 64))

    def open(self, *, lockstep: bool = False) -> tuple[Any, Connection, Any]:
        """A client's stream, and the connection that serves it with its own stream."""
        ours, theirs = trio.testing.lockstep_stream_pair() if lockstep else trio.testing.memory_stream_pair()
        address = ("1.2.3.4", 5)
        client = StreamClient(theirs, self._config, address, ("5.6.7.8", 80))
        connection = Connection(client, self._gateway.forward)
        self._nursery.start_soon(self._serve, connection, theirs)
        return ours, connection, theirs

    async def _serve(self, connection: Connection, stream: Any) -> None:
        await connection.serve()
        await stream.aclose()
        self.ended.set()

    async def request(self, target: str, method: str = "GET", body: bytes | None = None, headers: str = "") -> Any:
        """(status, head, body) of one request on a connection of its own."""
        stream, _, _ = self.open()
        if body is not None:
            headers += f"Content-Length: {len(body)}\r\n"
        await stream.send_all(f"{method} {target} HTTP/1.1\r\nHost: shop\r\n{headers}\r\n".encode() + (body or b""))
        await stream.send_eof()
        response = b"".join([piece async for piece in stream])
        head, _, rest = response.partition(b"\r\n\r\n")
        return int(head[9:12]), head, rest


@asynccontextmanager
async def running() -> AsyncIterator[Site]:
    shop = Shop()
    state: dict[str, Any] = {}
    lifespan = Lifespan(shop.app, state)
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lifespan.run)
            assert await lifespan.startup()
            runner = Runner(shop.app, state)
            yield Site(nursery, shop, runner)
            await runner.finish()
            await lifespan.shutdown()
            nursery.cancel_scope.cancel()
    assert shop.events == ["up", "down"]


async def test_starlette_answers() -> None:
    async with running() as site:
        status, head, body = await site.request("/?q=a%20b")
        assert status == 200
        assert body == b'{"db":"database","url":"http://shop/?q=a%20b","client":"1.2.3.4","q":"a b"}'
        assert head.count(b"content-length") == 1
        assert b"date: " in head
        assert (await site.request("/nothing"))[0] == 404
        assert (await site.request("/", method="POST", body=b""))[0] == 405
        status, head, body = await site.request("/mounted/x")
        assert body == b"x under /mounted"


async def test_starlette_head_and_no_content() -> None:
    async with running() as site:
        status, head, body = await site.request("/mounted/x", method="HEAD")
        assert (status, body) == (200, b"")
        assert b"content-length: 16" in head
        status, head, body = await site.request("/empty")
        assert (status, body) == (204, b"")
        assert b"content-length" not in head


async def test_starlette_runs_plain_functions_in_a_thread() -> None:
    async with running() as site:
        assert (await site.request("/sync"))[2] == b"False"


async def test_starlette_streams() -> None:
    async with running() as site:
        status, head, body = await site.request("/stream")
        assert status == 200
        assert b"transfer-encoding: chunked" in head.lower()
        assert body == b"".join(b"8\r\npiece %d\n\r\n".replace(b"%d", b"%d" % n) for n in range(5)) + b"0\r\n\r\n"


async def test_starlette_streams_no_faster_than_the_client_reads() -> None:
    async with running() as site:
        stream, connection, _ = site.open(lockstep=True)
        await stream.send_all(b"GET /endless HTTP/1.1\r\nHost: shop\r\n\r\n")
        got = 0
        while got < 100_000:
            got += len(await stream.receive_some())
        await trio.testing.wait_all_tasks_blocked()
        assert site.shop.written <= got // 10_000 + 1
        await stream.aclose()
        await site.ended.wait()
        assert connection.aborted


async def test_starlette_receives_a_large_upload_in_pieces() -> None:
    async with running() as site:
        status, _, body = await site.request("/upload", method="POST", body=b"u" * 5_000_000)
        assert (status, body) == (200, b'{"size":5000000,"pieces are small":true}')


async def test_starlette_background_task_runs_after_the_response() -> None:
    async with running() as site:
        stream, _, _ = site.open()
        await stream.send_all(b"GET /later HTTP/1.1\r\nHost: shop\r\n\r\n")
        got = b""
        while not got.endswith(b"at once"):
            got += await stream.receive_some()
        assert not site.shop.background.is_set()
        await site.shop.background.wait()
        await stream.send_all(b"GET /sync HTTP/1.1\r\nHost: shop\r\n\r\n")
        assert (await stream.receive_some()).startswith(b"HTTP/1.1 200")
        await stream.send_eof()


async def test_starlette_exception_is_a_500_and_one_traceback(caplog: Any) -> None:
    async with running() as site:
        status, _, body = await site.request("/bug")
        assert status == 500
        assert b"a bug in the shop" not in body
        assert (await site.request("/stream"))[0] == 200
    assert caplog.text.count("RuntimeError: a bug in the shop") == 1


async def test_starlette_exception_in_the_middle_never_looks_complete() -> None:
    async with running() as site:
        _, head, body = await site.request("/late-bug")
        assert b"transfer-encoding: chunked" in head.lower()
        assert body == b"5\r\nbegun\r\n"


@pytest.mark.parametrize("with_body", [False, True])
async def test_starlette_learns_that_the_client_left(with_body: bool) -> None:
    async with running() as site:
        stream, connection, theirs = site.open()
        length = b"Content-Length: 1000000\r\n" if with_body else b""
        await stream.send_all(b"GET /hang HTTP/1.1\r\nHost: shop\r\n" + length + b"\r\n")
        await site.shop.hanging.wait()
        await theirs.receive_stream.aclose()  # what a reset does
        await site.shop.left.wait()
        assert connection.aborted
