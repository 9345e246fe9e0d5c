"""The gateway over a memory path, with applications' machines of every kind at its other end, hostile ones included."""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, cast

import pytest
import trio
import trio.testing

from retinue.pipes import Message, Path, Rejected, memory_pair, trace
from retinue.pipes.traces import is_trace
from retinue.services.httpd.client import StreamClient
from retinue.services.httpd.config import Config
from retinue.services.httpd.connection import Connection
from retinue.services.httpd.gateway import Gateway
from retinue.svm import ConnectRefused, Machine
from retinue.svm.edge import Edge
from retinue.svm.fan import SOONEST, Fan

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = b"00-%s-00f067aa0ba902b7-00" % TRACE.encode()

Handler = Callable[[Message], Awaitable[Any]]


class Application:
    """The machine at the other end of the edge: it may be started, killed, and told what to answer."""

    def __init__(self, nursery: trio.Nursery, handler: Handler) -> None:
        self.handler = handler
        self.paths: list[Path] = []
        self.running = trio.Event()
        self.running.set()
        self.refuses = False
        self._nursery = nursery

    async def connect_instance(self, edge: str, instance: int | None) -> Path:
        assert (edge, instance) == ("app", None)
        if self.refuses:
            raise ConnectRefused(edge, "broken", "it is broken")
        await self.running.wait()
        ours, theirs = (Path(transport) for transport in memory_pair())
        await self._nursery.start(ours.run)
        await self._nursery.start(theirs.run)
        self.paths.append(theirs)
        self._nursery.start_soon(theirs.serve, self._handle)
        return ours

    async def _handle(self, message: Message) -> Any:
        return await self.handler(message)

    def die(self) -> None:
        self.running = trio.Event()
        for path in self.paths:
            path.sever("lost", "killed")


class Browser:
    """A client over a memory stream, its connection, and a gateway behind it."""

    def __init__(self, nursery: trio.Nursery, gateway: Gateway, config: Config) -> None:
        self.stream, server = trio.testing.memory_stream_pair()
        self.connection = Connection(StreamClient(server, config), gateway.forward)
        self._server = server
        nursery.start_soon(self._serve)

    async def _serve(self) -> None:
        await self.connection.serve()
        await self._server.aclose()

    async def get(self, request: bytes = GET) -> bytes:
        """Send, end, and get everything; fails the test instead of hanging."""
        await self.stream.send_all(request)
        await self.stream.send_eof()
        with trio.fail_after(500):
            return b"".join([piece async for piece in self.stream])


class Site:
    """A gateway with its application; :meth:`browser` makes clients."""

    def __init__(self, nursery: trio.Nursery, handler: Handler, **settings: Any) -> None:
        self.config = Config(routes={"/": "app"}, **settings)
        self.application = Application(nursery, handler)
        self.gateway = Gateway("app", self._spread, self.config, nursery)
        self._nursery = nursery

    def _spread(self) -> Fan:
        return Fan(cast(Machine[Any], self.application), Edge("app", 64))

    def browser(self) -> Browser:
        return Browser(self._nursery, self.gateway, self.config)

    async def get(self, request: bytes = GET) -> bytes:
        return await self.browser().get(request)


@asynccontextmanager
async def site(handler: Handler, **settings: Any) -> AsyncIterator[Site]:
    async with trio.open_nursery() as nursery:
        yield Site(nursery, handler, **settings)
        nursery.cancel_scope.cancel()


def status_of(response: bytes) -> int:
    assert response.startswith(b"HTTP/1.1 "), response
    return int(response[9:12])


async def hello(message: Message) -> Any:
    return {"status": 201, "headers": {"x-a": "b"}, "body": f"hello {message.body['scope']['path']}"}


async def test_gateway_serves_a_plain_handler() -> None:
    async with site(hello) as it:
        response = await it.get(GET.replace(b"/ ", b"/you "))
        assert status_of(response) == 201
        assert response.endswith(b"\r\n\r\nhello /you")
        assert b"x-a: b\r\n" in response


async def test_gateway_hands_over_the_whole_request() -> None:
    bodies: list[Any] = []

    async def keep(message: Message) -> Any:
        bodies.append(message.body)
        return "ok"

    async with site(keep) as it:
        head = b"POST /a%20b?c HTTP/1.1\r\nHost: h\r\nTraceparent: " + PARENT + b"\r\nContent-Length: 3\r\n\r\n"
        await it.get(head + b"xyz")
    assert bodies == [
        {
            "type": "http",
            "id": 1,
            "scope": {
                "method": "POST",
                "scheme": "http",
                "http_version": "1.1",
                "path": "/a b",
                "raw_path": b"/a%20b",
                "query_string": b"c",
                "root_path": "",
                "headers": [[b"host", b"h"], [b"traceparent", PARENT], [b"content-length", b"3"]],
                "client": None,
                "server": None,
            },
            "body": b"xyz",
            "more_body": False,
        }
    ]


async def test_gateway_passes_the_trace_of_each_request_on(caplog: pytest.LogCaptureFixture) -> None:
    """Over the one path, in the message and in the header, and it logs in it; what serves all requests is in none."""
    seen: list[tuple[str | None, bytes]] = []
    logged: list[tuple[str, str | None]] = []

    class Note(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            logged.append((record.name, trace()))

    async def keep(message: Message) -> Any:
        seen.append((message.trace, dict(message.body["scope"]["headers"])[b"traceparent"]))
        return trace()

    handler = Note()
    with caplog.at_level(logging.INFO, "retinue.httpd"):
        logging.getLogger("retinue.httpd").addHandler(handler)
        try:
            async with site(keep) as it:
                given = b"GET / HTTP/1.1\r\nHost: h\r\nTraceparent: " + PARENT + b"\r\n\r\n"
                assert (await it.get(given)).endswith(TRACE.encode())
                made = (await it.get()).rpartition(b"\r\n")[2].decode()
                it.application.die()
                await trio.testing.wait_all_tasks_blocked()
        finally:
            logging.getLogger("retinue.httpd").removeHandler(handler)
    assert is_trace(made)
    assert made != TRACE
    assert [ident for ident, _ in seen] == [TRACE, made]
    assert [value.split(b"-")[1].decode() for _, value in seen] == [TRACE, made]
    assert logged == [("retinue.httpd.access", TRACE), ("retinue.httpd.access", made), ("retinue.httpd", None)]


async def test_gateway_multiplexes_over_one_path() -> None:
    arrived = 0
    all_here = trio.Event()

    async def gather(message: Message) -> Any:
        nonlocal arrived
        arrived += 1
        if arrived == 20:
            all_here.set()
        await all_here.wait()
        return message.body["scope"]["path"]

    async with site(gather) as it:
        responses: dict[int, bytes] = {}

        async def get(n: int) -> None:
            responses[n] = await it.get(GET.replace(b"/ ", b"/%d " % n))

        async with trio.open_nursery() as nursery:
            for n in range(20):
                nursery.start_soon(get, n)
        assert all(response.endswith(b"\r\n\r\n/%d" % n) for n, response in responses.items())
        assert len(it.application.paths) == 1


async def test_gateway_lets_a_plain_handler_pull_a_large_body() -> None:
    async def pull(message: Message) -> Any:
        size, more = len(message.body["body"]), message.body["more_body"]
        while more:
            piece = await message.path.call({"type": "http.receive", "id": message.body["id"]})
            size, more = size + len(piece["body"]), piece["more_body"]
        assert await message.path.call({"type": "http.receive", "id": message.body["id"]}) == {
            "body": b"",
            "more_body": False,
        }
        return str(size)

    async with site(pull) as it:
        head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n"
        assert (await it.get(head + b"x" * 1_000_000)).endswith(b"\r\n\r\n1000000")


@pytest.mark.parametrize(
    ("code", "status"), [("app-error", 500), ("failed", 500), ("stopping", 503), ("denied", 502), ("what", 502)]
)
async def test_gateway_translates_refusals(code: str, status: int) -> None:
    async def refuse(message: Message) -> Any:
        raise Rejected(code, "secret reason")

    async with site(refuse) as it:
        response = await it.get()
        assert status_of(response) == status
        assert b"secret" not in response
        assert (b"retry-after: " in response) == (status == 503)


# -- machines that are not there ------------------------------------------------------------------------------------


async def test_gateway_answers_502_to_what_a_dead_machine_had() -> None:
    begun = trio.Event()

    async def hang(message: Message) -> Any:
        begun.set()
        await trio.sleep_forever()

    async with site(hang) as it:
        async with trio.open_nursery() as nursery:

            async def check() -> None:
                assert status_of(await it.get()) == 502

            nursery.start_soon(check)
            await begun.wait()
            it.application.die()
        it.application.running.set()
        it.application.handler = hello
        assert status_of(await it.get()) == 201
        assert len(it.application.paths) == 2


async def test_gateway_waits_for_a_machine_and_then_answers_503(autojump_clock: Any) -> None:
    async with site(hello, patience=3, half_closed_time=10) as it:
        assert status_of(await it.get()) == 201
        it.application.die()
        start = trio.current_time()
        response = await it.get()
        assert status_of(response) == 503
        assert b"retry-after: 1\r\n" in response
        assert 3 <= trio.current_time() - start < 3.5

        async with trio.open_nursery() as nursery:

            async def check() -> None:
                assert status_of(await it.get()) == 201

            nursery.start_soon(check)
            nursery.start_soon(check)
            await trio.sleep(1)
            it.application.running.set()
        assert len(it.application.paths) == 2  # both waited for the same attempt


async def test_gateway_spreads_requests_over_the_machines_behind_an_edge() -> None:
    """Each to the one that has fewest; what a machine pulls meanwhile comes over its own path."""
    asked = [0, 0]
    full = trio.Event()

    def counting(index: int) -> Handler:
        async def handle(message: Message) -> Any:
            asked[index] += 1
            if sum(asked) == 6:
                full.set()
            await full.wait()
            piece = await message.path.call({"type": "http.receive", "id": message.body["id"]})
            return f"{index} {len(piece['body'])}"

        return handle

    async with trio.open_nursery() as nursery:
        machines = [Application(nursery, counting(index)) for index in range(2)]

        class Behind:
            async def connect_instance(self, edge: str, instance: int | None) -> Path:
                assert instance is not None
                return await machines[instance - 1].connect_instance(edge, None)

        config = Config(routes={"/": "app"})
        spread = partial(Fan, cast(Machine[Any], Behind()), Edge("app", 64, instances=2))
        gateway = Gateway("app", spread, config, nursery)
        async with trio.open_nursery() as asking:
            for _ in range(6):
                asking.start_soon(Browser(nursery, gateway, config).get)
        assert asked == [3, 3]
        nursery.cancel_scope.cancel()


async def test_gateway_answers_503_at_once_for_a_broken_machine(autojump_clock: Any) -> None:
    async with site(hello) as it:
        it.application.refuses = True
        with trio.fail_after(1):
            assert status_of(await it.get()) == 503
        it.application.refuses = False
        await trio.sleep(SOONEST)  # it is asked again after a pause
        assert status_of(await it.get()) == 201


async def test_gateway_answers_504_to_a_late_machine_and_withdraws(autojump_clock: Any) -> None:
    withdrawn = trio.Event()

    async def hang(message: Message) -> Any:
        try:
            await trio.sleep_forever()
        finally:
            withdrawn.set()

    async with site(hang, answer_time=5) as it:
        browser = it.browser()
        await browser.stream.send_all(GET)
        got = bytes(await browser.stream.receive_some())
        assert status_of(got) == 504
        assert trio.current_time() == pytest.approx(5)
        await withdrawn.wait()


async def test_gateway_does_not_blame_the_machine_for_a_slow_client(autojump_clock: Any) -> None:
    async def pull(message: Message) -> Any:
        more = True
        while more:
            more = (await message.path.call({"type": "http.receive", "id": message.body["id"]}))["more_body"]
        return "got it"

    async with site(pull, answer_time=5, body_time=100) as it:
        browser = it.browser()
        await browser.stream.send_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n")
        for _ in range(10):
            await trio.sleep(2)
            await browser.stream.send_all(b"x" * 10_000)
        assert status_of(bytes(await browser.stream.receive_some())) == 200


# -- machines that do not behave ------------------------------------------------------------------------------------


def push(message: Message, **fields: Any) -> Awaitable[Any]:
    return message.path.call({"type": "http.send", "id": message.body["id"], **fields})


async def two_replies(message: Message) -> Any:
    await push(message, status=200, body=b"part")
    return {"status": 200, "body": b"whole"}


async def too_long(message: Message) -> Any:
    await push(message, status=200, headers={"content-length": "3"}, body=b"part")


async def too_short(message: Message) -> Any:
    await push(message, status=200, headers={"content-length": "30"}, body=b"part")


async def no_status(message: Message) -> Any:
    await push(message, status=200, body=b"part")
    await push(message, status=200, body=b"again")


async def hurry(message: Message) -> Any:
    """Replies while a part is still on its way to a client that does not read."""
    message.path.session.call({"type": "http.send", "id": message.body["id"], "status": 200, "body": b"x" * 500_000})
    message.path.flush()
    await trio.testing.wait_all_tasks_blocked()
    return {"body": b""}


async def body_with_204(message: Message) -> Any:
    await push(message, status=204, body=b"")
    await push(message, body=b"x")


@pytest.mark.parametrize("handler", [two_replies, too_long, too_short, no_status, body_with_204])
async def test_gateway_cuts_off_a_response_that_goes_wrong(handler: Handler, caplog: Any) -> None:
    async def run(message: Message) -> Any:
        try:
            return await handler(message)
        except Rejected as exc:
            codes.append(exc.code)
            raise

    codes: list[str] = []
    async with site(run) as it:
        browser = it.browser()
        response = await browser.get()
        assert not response.endswith(b"0\r\n\r\n")
        assert browser.connection.aborted or status_of(response) == 502
        assert "bad reply from the application" in caplog.text
        it.application.handler = hello
        assert status_of(await it.get()) == 201
    assert codes in ([], ["bad-response"])


async def test_gateway_refuses_a_reply_that_overtakes_its_parts(caplog: Any) -> None:
    async with site(hurry) as it:
        ours, theirs = trio.testing.lockstep_stream_pair()
        connection = Connection(StreamClient(theirs, it.config), it.gateway.forward)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connection.serve)
            await ours.send_all(GET)
        assert connection.aborted
        assert "still on its way" in caplog.text


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("x", "bad-message"),
        ({"type": "http.send"}, "bad-message"),
        ({"type": "http.receive", "id": "1"}, "bad-message"),
        ({"type": "http.what", "id": 1}, "bad-message"),
        ({"type": "http.receive", "id": 77}, "disconnected"),
        ({"type": "http.send", "id": 77, "body": b""}, "disconnected"),
        ({"type": "http.send", "id": 1, "status": 99}, "bad-response"),
    ],
)
async def test_gateway_refuses_messages_that_make_no_sense(body: Any, code: str) -> None:
    async def nonsense(message: Message) -> Any:
        with pytest.raises(Rejected) as caught:
            await message.path.call(body)
        assert caught.value.code == code
        return "fine"

    async with site(nonsense) as it:
        assert status_of(await it.get()) == (502 if code == "bad-response" else 200)
        it.application.handler = hello
        assert status_of(await it.get()) == 201


async def test_gateway_lets_one_task_of_a_machine_push_or_pull_at_a_time() -> None:
    codes: list[str] = []

    async def twice(message: Message) -> Any:
        async def receive() -> None:
            try:
                await message.path.call({"type": "http.receive", "id": message.body["id"]})
            except Rejected as exc:
                codes.append(exc.code)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            nursery.start_soon(receive)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        return "ok"

    async with site(twice) as it:
        browser = it.browser()
        await browser.stream.send_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n")
        assert status_of(bytes(await browser.stream.receive_some())) == 200
    assert codes == ["busy"]


async def test_gateway_withdraws_the_call_of_a_client_that_is_gone() -> None:
    begun, withdrawn = trio.Event(), trio.Event()

    async def hang(message: Message) -> Any:
        begun.set()
        try:
            await trio.sleep_forever()
        finally:
            withdrawn.set()

    async with site(hang) as it:
        browser = it.browser()
        await browser.stream.send_all(GET)
        await begun.wait()
        await browser._server.receive_stream.aclose()
        with trio.fail_after(5):
            await withdrawn.wait()
