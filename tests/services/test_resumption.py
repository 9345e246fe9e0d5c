"""Clients' connections through TCPIP and HTTPD, which dies, is replaced, or takes other routes meanwhile."""

import logging
import random
import re
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio
import trio.testing
from tests.services.machines import Running, System, everything

from retinue.pipes import Message, PathError
from retinue.services import httpd, tcpip
from retinue.services.resumable import MOST_KEPT
from retinue.svm.errors import ConfigError
from retinue.svm.machine import Machine


@pytest.fixture(autouse=True)
def _log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "retinue")


class Application:
    """A machine that answers when it is told to, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.gate = trio.Event()
        self.gate.set()
        self.waits = trio.Event()

    async def main(self, vm: Machine[Any]) -> None:
        await vm.serve(self.handle)

    async def handle(self, message: Message) -> Any:
        scope = message.body["scope"]
        text = f"{scope['method']} {scope['path']}"
        body, more = message.body["body"], message.body["more_body"]
        self.asked.append(text)
        while more:
            piece = await message.path.call({"type": "http.receive", "id": message.body["id"]})
            body, more = body + piece["body"], piece["more_body"]
        if scope["path"] == "/long":
            part = {"type": "http.send", "id": message.body["id"]}
            await message.path.call({**part, "status": 200, "body": b"beginning "})
            self.waits.set()
            await self.gate.wait()
            return {"body": b"end"}
        self.waits.set()
        await self.gate.wait()
        if scope["path"] == "/large":
            return bytes(3_000_000)
        return f"{text} {len(body)}" if len(body) > 100 else f"{text} {body.decode()}"

    def hold(self) -> None:
        """Answer nothing until the gate is set."""
        self.gate, self.waits = trio.Event(), trio.Event()


class Site:
    """The three machines, of which HTTPD may be started as often as one likes."""

    def __init__(self, system: System, caplog: Any) -> None:
        self.system = system
        self.application = Application()
        self.httpd: Running | None = None
        self.browsers: list[Browser] = []
        self._caplog = caplog

    async def start(self, tcp: dict[str, Any] | None = None, **settings: Any) -> None:
        await self.system.start("APP", self.application.main)
        await self.start_httpd(**settings)
        config = tcpip.Config(listen={"127.0.0.1:0": "web"}, **(tcp or {}))
        await self.system.start("TCPIP", tcpip.main, config, web="HTTPD")

    async def start_httpd(self, **settings: Any) -> Running:
        config = httpd.Config(**{"routes": {"/": "app"}, **settings})
        self.httpd = await self.system.start("HTTPD", httpd.main, config, app="APP", other="OTHER")
        return self.httpd

    async def kill(self, **settings: Any) -> None:
        """HTTPD dies, and there is another one."""
        self.system.kill("HTTPD")
        await self.start_httpd(**settings)

    async def connect(self) -> "Browser":
        found = re.search(r"listening on 127\.0\.0\.1:(\d+) for the edge web", self._caplog.text)
        assert found is not None
        self.browsers.append(Browser(await trio.open_tcp_stream("127.0.0.1", int(found[1]))))
        return self.browsers[-1]


class Browser:
    """One connection of a client."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self._rest = b""

    async def send(self, path: str, method: str = "GET", body: bytes | None = None, headers: str = "") -> None:
        if body is not None:
            headers += f"Content-Length: {len(body)}\r\n"
        await self.stream.send_all(f"{method} {path} HTTP/1.1\r\nHost: a\r\n{headers}\r\n".encode() + (body or b""))

    async def receive(self) -> tuple[int, bytes]:
        """Status and body of the next response, and not a byte more."""
        while b"\r\n\r\n" not in self._rest:
            await self._more()
        head, _, self._rest = self._rest.partition(b"\r\n\r\n")
        found = re.search(rb"content-length: (\d+)", head)
        assert found is not None, head
        while len(self._rest) < int(found[1]):
            await self._more()
        body, self._rest = self._rest[: int(found[1])], self._rest[int(found[1]) :]
        return int(head[9:12]), body

    async def _more(self) -> None:
        piece = await self.stream.receive_some()
        assert piece, "the connection has ended"
        self._rest += piece

    async def ask(self, path: str, method: str = "GET", body: bytes | None = None) -> tuple[int, bytes]:
        await self.send(path, method, body)
        return await self.receive()


@pytest.fixture
async def site(caplog: Any) -> AsyncIterator[Site]:
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            made = Site(System(nursery, keeps=True), caplog)
            yield made
            nursery.cancel_scope.cancel()
    made.system.close()
    for browser in made.browsers:
        browser.stream.socket.close()


# -- deaths -----------------------------------------------------------------------------------------------------------


async def test_idle_connection_survives_deaths(site: Site) -> None:
    """It is nobody's business until the client says something."""
    await site.start()
    browser = await site.connect()
    assert await browser.ask("/1") == (200, b"GET /1 ")
    await site.kill()
    await site.kill()
    assert await browser.ask("/2") == (200, b"GET /2 ")
    await site.kill()
    assert await browser.ask("/3") == (200, b"GET /3 ")


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
async def test_request_under_way_is_done_again_where_that_does_no_harm(site: Site, method: str) -> None:
    """However often HTTPD dies, the client gets one answer."""
    await site.start()
    browser = await site.connect()
    site.application.hold()
    await browser.send("/1", method, b"body" if method == "PUT" else None)
    for _ in range(3):
        await site.application.waits.wait()
        site.application.waits = trio.Event()
        await site.kill()
    site.application.gate.set()
    assert await browser.receive() == (200, f"{method} /1 {'body' if method == 'PUT' else ''}".encode())
    assert await browser.ask("/2") == (200, b"GET /2 ")


@pytest.mark.parametrize("method", ["POST", "PATCH"])
async def test_request_that_may_have_been_carried_out_is_answered_and_not_done_again(site: Site, method: str) -> None:
    """503 with Retry-After; the connection goes on."""
    await site.start()
    browser = await site.connect()
    site.application.hold()
    await browser.send("/1", method, b"body")
    await browser.send("/2", method, b"body")
    await site.application.waits.wait()
    await site.kill()
    site.application.gate.set()
    assert (await browser.receive())[0] == 503
    # The one behind it had not been begun.
    assert await browser.receive() == (200, f"{method} /2 body".encode())
    assert await browser.ask("/3", method, b"body") == (200, f"{method} /3 body".encode())
    assert site.application.asked == [f"{method} /{number}" for number in (1, 2, 3)]


@pytest.mark.parametrize("cut_at", ["head", "body"])
async def test_request_that_was_not_whole_is_carried_out(site: Site, cut_at: str) -> None:
    """A short body goes to the application together with the head: before it is there nothing was begun."""
    await site.start()
    browser = await site.connect()
    whole = b"POST /1 HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n0123456789"
    first = 20 if cut_at == "head" else len(whole) - 5
    await browser.stream.send_all(whole[:first])
    await trio.testing.wait_all_tasks_blocked(0.05)
    await site.kill()
    await trio.testing.wait_all_tasks_blocked(0.05)
    await site.kill()
    await browser.stream.send_all(whole[first:])
    assert await browser.receive() == (200, b"POST /1 0123456789")
    assert site.application.asked == ["POST /1"]


async def test_pipelined_requests_are_answered_in_order_over_deaths(site: Site) -> None:
    await site.start()
    browser = await site.connect()
    count = 200
    for number in range(count):
        await browser.send(f"/{number}")
    for number in range(count):
        assert await browser.receive() == (200, f"GET /{number} ".encode())
        if number % 20 == 10:
            await site.kill()


@pytest.mark.parametrize("seed", range(3))
async def test_no_answer_is_lost_whenever_it_dies(site: Site, seed: int) -> None:
    """After any number of steps of the loop, again and again; and nothing is carried out twice that must not be."""
    await site.start()
    chance = random.Random(seed)
    statuses: Counter[tuple[str, int]] = Counter()

    async def ask_on(number: int) -> None:
        browser = await site.connect()
        for count in range(40):
            method, path = "POST" if count % 3 == 0 else "GET", f"/{number}/{count}"
            status, body = await browser.ask(path, method, b"body" if method == "POST" else None)
            statuses[method, status] += 1
            assert status == 503 or body == f"{method} {path} {'body' if method == 'POST' else ''}".encode()

    async with trio.open_nursery() as killing:

        async def kill_on() -> None:
            while True:
                for _ in range(chance.randrange(300)):
                    await trio.lowlevel.checkpoint()
                await site.kill()

        killing.start_soon(kill_on)
        async with trio.open_nursery() as asking:
            for number in range(6):
                asking.start_soon(ask_on, number)
        killing.cancel_scope.cancel()
    assert set(statuses) <= {("GET", 200), ("POST", 200), ("POST", 503)}
    done = Counter(text for text in site.application.asked if text.startswith("POST"))
    assert set(done.values()) == {1}


async def test_half_closed_client_gets_its_answer_and_the_end(site: Site) -> None:
    await site.start(half_closed_time=20)
    browser = await site.connect()
    site.application.hold()
    await browser.send("/1")
    await browser.stream.send_eof()
    await site.application.waits.wait()
    await site.kill(half_closed_time=20)
    site.application.gate.set()
    assert await browser.receive() == (200, b"GET /1 ")
    assert await everything(browser.stream) == b""


async def test_half_closed_client_of_a_slow_application_is_given_up(site: Site) -> None:
    """As with a stream: whoever has ended its side may have left."""
    await site.start(half_closed_time=0.05)
    browser = await site.connect()
    site.application.hold()
    await browser.send("/1")
    await site.application.waits.wait()
    await browser.stream.send_eof()
    with pytest.raises(trio.BrokenResourceError):
        await browser.stream.receive_some()


async def test_upload_within_what_is_kept_is_done_again(site: Site) -> None:
    await site.start()
    browser = await site.connect()
    size = MOST_KEPT - 1000
    await browser.send("/1", "PUT", headers=f"Content-Length: {size}\r\n")
    await browser.stream.send_all(bytes(size - 1))
    await trio.testing.wait_all_tasks_blocked(0.05)
    await site.kill()
    await browser.stream.send_all(b"\0")
    assert await browser.receive() == (200, f"PUT /1 {size}".encode())


@pytest.mark.parametrize("why", ["response", "upload"])
async def test_connection_that_nobody_can_go_on_with_is_reset(site: Site, caplog: Any, why: str) -> None:
    """A part of the response is with the client, or too much of the request was not kept."""
    await site.start()
    browser = await site.connect()
    site.application.hold()
    if why == "response":
        await browser.send("/long")
        while b"beginning " not in await browser.stream.receive_some():
            pass
    else:
        await browser.send("/1", "PUT", headers=f"Content-Length: {2 * MOST_KEPT}\r\n")
        await browser.stream.send_all(bytes(MOST_KEPT + 100_000))
        await trio.testing.wait_all_tasks_blocked(0.05)
    await site.kill()
    with pytest.raises(trio.BrokenResourceError):
        await everything(browser.stream)
    assert "a connection is lost with the machine that answered it" in caplog.text
    browser = await site.connect()
    site.application.gate.set()
    assert await browser.ask("/2") == (200, b"GET /2 ")


async def test_connection_survives_after_a_long_response_and_a_large_upload(site: Site) -> None:
    """What could not be resumed is answered; from then on it can be again."""
    await site.start()
    browser = await site.connect()
    size = 2_000_000
    async with trio.open_nursery() as nursery:
        nursery.start_soon(browser.send, "/1", "PUT", bytes(size))
        assert await browser.receive() == (200, f"PUT /1 {size}".encode())
    status, body = await browser.ask("/large")
    assert (status, len(body)) == (200, 3_000_000)
    await site.kill()
    assert await browser.ask("/2") == (200, b"GET /2 ")


async def test_without_anything_kept_no_connection_survives(site: Site) -> None:
    """TCPIP makes no offer, and HTTPD takes a stream."""
    await site.start({"max_kept": 0})
    browser = await site.connect()
    assert await browser.ask("/1") == (200, b"GET /1 ")
    await site.kill()
    with pytest.raises(trio.BrokenResourceError):
        await browser.ask("/2")


async def test_client_that_leaves_meanwhile_is_forgotten(site: Site) -> None:
    await site.start()
    browser = await site.connect()
    site.application.hold()
    await browser.send("/1")
    await site.application.waits.wait()
    site.system.kill("HTTPD")
    await browser.stream.aclose()
    site.application.waits = trio.Event()
    await site.start_httpd()
    other = await site.connect()
    site.application.gate.set()
    assert await other.ask("/2") == (200, b"GET /2 ")


async def test_successor_closes_an_idle_connection_in_order(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retinue.services.httpd.service.OPENING_TIME", 0.1)
    await site.start()
    browser = await site.connect()
    assert await browser.ask("/1") == (200, b"GET /1 ")
    site.system.kill("HTTPD")
    await site.start_httpd(idle_time=0.3)
    with trio.fail_after(20):
        assert await everything(browser.stream) == b""


async def test_client_that_reads_nothing_makes_the_application_wait(site: Site) -> None:
    """And gets all of it when it reads."""
    sent = 0

    async def pour(message: Message) -> Any:
        nonlocal sent
        part = {"type": "http.send", "id": message.body["id"]}
        await message.path.call({**part, "status": 200, "headers": {"content-length": "20000000"}, "body": b""})
        while sent < 20_000_000:
            await message.path.call({**part, "body": bytes(100_000)})
            sent += 100_000
        return {}

    site.application.handle = pour  # type: ignore[method-assign]
    await site.start()
    browser = await site.connect()
    await browser.send("/")
    await trio.testing.wait_all_tasks_blocked(0.1)
    assert sent < 20_000_000
    status, body = await browser.receive()
    assert (status, len(body)) == (200, 20_000_000)


async def test_client_may_send_while_it_is_answered(site: Site) -> None:
    """Body and response pass each other, without either waiting for the end of the other."""

    async def echo(message: Message) -> Any:
        part = {"type": "http.send", "id": message.body["id"]}
        piece = message.body
        await message.path.call({**part, "status": 200, "headers": {"content-length": "300000"}, "body": piece["body"]})
        while piece["more_body"]:
            piece = await message.path.call({"type": "http.receive", "id": message.body["id"]})
            await message.path.call({**part, "body": piece["body"]})
        return {}

    site.application.handle = echo  # type: ignore[method-assign]
    await site.start()
    browser = await site.connect()
    await browser.send("/", "PUT", headers="Transfer-Encoding: chunked\r\n")
    for _ in range(3):
        await browser.stream.send_all(b"186a0\r\n" + bytes(100_000) + b"\r\n")
        await trio.testing.wait_all_tasks_blocked(0.01)
    await browser.stream.send_all(b"0\r\n\r\n")
    status, body = await browser.receive()
    assert (status, len(body)) == (200, 300_000)


# -- replacements -----------------------------------------------------------------------------------------------------


async def test_replacement_is_not_noticed(site: Site) -> None:
    """Idle, in the middle of a head, and under way: each is answered, over the same connection."""
    await site.start()
    idle, typing, busy = [await site.connect() for _ in range(3)]
    assert await idle.ask("/1") == (200, b"GET /1 ")
    await typing.stream.send_all(b"POST /2 HTTP/1.1\r\nHo")
    site.application.hold()
    await busy.send("/3", "POST", b"body")
    await site.application.waits.wait()
    await trio.testing.wait_all_tasks_blocked(0.05)
    before = site.httpd
    assert before is not None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(before.machine.drain)
        await before.machine.draining.wait()
        await site.start_httpd()
        await typing.stream.send_all(b"st: a\r\nContent-Length: 4\r\n\r\nbody")
        await idle.send("/4")
        site.application.gate.set()
    assert await busy.receive() == (200, b"POST /3 body")
    assert await typing.receive() == (200, b"POST /2 body")
    assert await idle.receive() == (200, b"GET /4 ")
    assert await busy.ask("/5") == (200, b"GET /5 ")
    await before.ended.wait()
    assert sorted(site.application.asked) == ["GET /1", "GET /4", "GET /5", "POST /2", "POST /3"]


async def test_large_upload_and_long_response_end_where_they_began(site: Site) -> None:
    """The predecessor goes on with both until they are done."""
    await site.start()
    upload, download = await site.connect(), await site.connect()
    site.application.hold()
    size = 2_000_000
    await upload.send("/1", "POST", headers=f"Content-Length: {size}\r\n")
    await upload.stream.send_all(bytes(100_000))
    await download.send("/long")
    await trio.testing.wait_all_tasks_blocked(0.05)
    before = site.httpd
    assert before is not None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(before.machine.drain)
        await before.machine.draining.wait()
        await site.start_httpd()
        await upload.stream.send_all(bytes(size - 100_000))
        site.application.gate.set()
    assert await upload.receive() == (200, f"POST /1 {size}".encode())
    while b"0\r\n\r\n" not in (piece := bytes(await download.stream.receive_some())):
        assert piece
    await before.ended.wait()
    assert sorted(site.application.asked) == ["GET /long", "POST /1"]
    assert await upload.ask("/2") == (200, b"GET /2 ")


# -- other routes -----------------------------------------------------------------------------------------------------


async def test_open_connections_use_new_routes_from_the_next_request_on(site: Site) -> None:
    """What is under way goes on; the old edge's path is closed when nobody needs it any more."""

    async def other(vm: Machine[Any]) -> None:
        async def handle(message: Message) -> Any:
            return "other"

        await vm.serve(handle)

    await site.start()
    await site.system.start("OTHER", other)
    browser, busy = await site.connect(), await site.connect()
    assert await browser.ask("/1") == (200, b"GET /1 ")
    site.application.hold()
    await busy.send("/2")
    await site.application.waits.wait()
    assert site.httpd is not None
    await site.httpd.machine.reload(httpd.Config(routes={"/": "other"}))
    assert await browser.ask("/3") == (200, b"other")
    site.application.gate.set()
    assert await busy.receive() == (200, b"GET /2 ")
    assert await busy.ask("/4") == (200, b"other")


async def test_routes_that_are_none_leave_the_old_ones_in_effect(site: Site) -> None:
    await site.start()
    browser = await site.connect()
    assert site.httpd is not None
    with pytest.raises(ConfigError, match=r"uses\.nowhere"):
        await site.httpd.machine.reload(httpd.Config(routes={"/": "nowhere"}))
    assert await browser.ask("/1") == (200, b"GET /1 ")


# -- who does not keep to it ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        {"type": "tcp.read", "at": 7},
        {"type": "tcp.write", "data": "text", "end": False},
        {"type": "tcp.write", "data": b"before any question", "end": False},
        {"type": "tcp.dance"},
        "dance",
    ],
)
async def test_server_that_makes_no_sense_is_refused(site: Site, body: Any) -> None:
    """And harms nobody but its own clients."""
    refused = trio.Event()

    async def strange(vm: Machine[Any]) -> None:
        incoming = vm.listen()
        await vm.ready()
        async for path in incoming:
            assert (await path.receive()).body["resumable"] is True
            path.send_nowait({"type": "tcp.resumable"})
            with pytest.raises(PathError, match=r"violation|unknown-message|answered"):
                await path.call(body)
            refused.set()
            path.sever()

    await site.system.start("HTTPD", strange)
    await site.system.start("TCPIP", tcpip.main, tcpip.Config(listen={"127.0.0.1:0": "web"}), web="HTTPD")
    browser = await site.connect()
    await refused.wait()
    with pytest.raises((trio.BrokenResourceError, AssertionError)):
        await browser.ask("/")


async def test_caller_that_is_not_tcpip_is_refused(site: Site, caplog: Any) -> None:
    """A question of somebody who does not know what was asked before, and one that is none."""

    async def intrude(vm: Machine[Any]) -> None:
        for body in ({"type": "tcp.ask", "at": 0, "data": b"", "end": False}, {"type": "hello"}, "hello"):
            path = await vm.connect("web")
            async with trio.open_nursery() as nursery:

                async def call(path: Any = path, body: Any = body) -> None:
                    with pytest.raises(Exception, match="severed"):
                        await path.call(body)

                nursery.start_soon(call)
                if type(body) is dict and body["type"] == "tcp.ask":
                    message = await path.receive()
                    path.reply(message, {"at": 0, "data": b"", "given": 1, "end": False})
        await vm.ready()

    await site.start()
    await site.system.start("INTRUDER", intrude, web="HTTPD")
    assert caplog.text.count("INTRUDER: ") >= 3
