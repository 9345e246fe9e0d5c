"""The connection engine over a memory stream: raw bytes in, raw bytes out."""

import logging
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
import trio.testing

from retinue.services.httpd.client import StreamClient
from retinue.services.httpd.config import Config
from retinue.services.httpd.connection import Connection
from retinue.services.httpd.errors import BadReply, HttpError
from retinue.services.httpd.exchange import Exchange
from retinue.services.httpd.response import Reply

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"

Stream = trio.StapledStream[Any, Any]


async def echo(exchange: Exchange) -> None:
    """Answers with the method, the path and the body."""
    body = exchange.body
    more = exchange.more_body
    while more:
        piece, more = await exchange.receive_body()
        body += piece
    text = f"{exchange.request.method} {exchange.request.path} ".encode() + body
    await exchange.respond(Reply(200, [(b"content-type", b"text/plain")], text))


class Client:
    """A client and the connection that serves it."""

    def __init__(self, nursery: trio.Nursery, forward: Callable[[Exchange], Awaitable[None]] = echo, **limits: Any):
        self.stream, server = trio.testing.memory_stream_pair()
        config = Config(routes={"/": "app"}, **limits)
        self.connection = Connection(StreamClient(server, config, ("1.2.3.4", 5), ("5.6.7.8", 80)), forward)
        self.ended = trio.Event()
        nursery.start_soon(self._serve, server)

    async def _serve(self, server: Stream) -> None:
        await self.connection.serve()
        await server.aclose()
        self.ended.set()

    async def send(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def until(self, end: bytes) -> bytes:
        """Everything up to and with ``end``, which must be the last that comes."""
        got = b""
        while not got.endswith(end):
            piece = await self.stream.receive_some()
            assert piece, got
            got += piece
        return got

    async def rest(self) -> bytes:
        """Everything up to the end of the connection."""
        return b"".join([piece async for piece in self.stream])

    async def talk(self, data: bytes) -> bytes:
        """Send, end the sending side, get everything."""
        with trio.fail_after(1000):
            await self.send(data)
            await self.stream.send_eof()
            return await self.rest()


def status_of(response: bytes) -> int:
    assert response.startswith(b"HTTP/1.1 "), response
    return int(response[9:12])


async def test_connection_answers_and_keeps_alive(nursery: trio.Nursery) -> None:
    client = Client(nursery)
    for _ in range(3):
        await client.send(GET)
        response = await client.until(b"GET / ")
        assert response.startswith(b"HTTP/1.1 200 OK\r\n")
        assert b"content-length: 6\r\n" in response
        assert b"date: " in response
        assert b"server: retinue\r\n" in response
        assert b"connection:" not in response.lower()
    await client.send(GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
    await client.stream.send_eof()
    assert b"connection: close" in (await client.rest()).lower()
    await client.ended.wait()
    assert not client.connection.aborted


async def test_connection_answers_one_byte_at_a_time(nursery: trio.Nursery) -> None:
    client = Client(nursery)
    for byte in b"\r\n" + GET:
        await client.send(bytes([byte]))
        await trio.testing.wait_all_tasks_blocked()
    assert status_of(await client.until(b"GET / ")) == 200


async def test_connection_answers_pipelined_requests_in_order(nursery: trio.Nursery) -> None:
    requests = b"".join(b"POST /%d HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nb%d" % (n, n) for n in range(5))
    chunked = (
        b"POST /c HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nT: 1\r\n\r\n"
    )
    response = await Client(nursery).talk(requests + chunked + GET)
    assert [part[part.index(b"\r\n\r\n") + 4 :] for part in response.split(b"HTTP/1.1 200 OK")[1:]] == [
        *(b"POST /%d b%d" % (n, n) for n in range(5)),
        b"POST /c abcde",
        b"GET / ",
    ]


async def test_connection_of_http_1_0_is_closed_after_one_response(nursery: trio.Nursery) -> None:
    response = await Client(nursery).talk(b"GET /x HTTP/1.0\r\n\r\n" + GET)
    assert response.endswith(b"GET /x ")
    assert response.count(b"HTTP/1.1 ") == 1


async def test_connection_sends_no_body_for_head(nursery: trio.Nursery) -> None:
    client = Client(nursery)
    await client.send(GET.replace(b"GET", b"HEAD"))
    response = await client.until(b"\r\n\r\n")
    assert b"content-length: 7\r\n" in response
    await client.send(GET)
    assert status_of(await client.until(b"GET / ")) == 200


async def test_connection_tells_a_waiting_client_to_continue(nursery: trio.Nursery) -> None:
    for length in (5, 200_000):  # gathered, and pulled by the application
        client = Client(nursery)
        await client.send(b"PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n" % length)
        assert await client.until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        await client.send(b"x" * length)
        assert status_of(await client.until(b"x" * length)) == 200
        await client.send(GET)
        assert status_of(await client.until(b"GET / ")) == 200


async def test_connection_that_refuses_an_expected_body_closes(nursery: trio.Nursery) -> None:
    async def refuse(exchange: Exchange) -> None:
        raise HttpError(404)

    client = Client(nursery, refuse)
    await client.send(b"PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 200000\r\n\r\n")
    await client.stream.send_eof()
    response = await client.rest()
    assert status_of(response) == 404
    assert b"connection: close" in response


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"\x16\x03\x01\x02\x00", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost", 400),
        (b"GET /" + b"x" * 9000, 414),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 40000, 431),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nabc", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n-3\r\nabc\r\n0\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n0\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nab", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1001\r\n\r\n", 413),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3e9\r\n" + b"x" * 1001, 413),
    ],
)
async def test_connection_refuses_and_closes(nursery: trio.Nursery, request_bytes: bytes, status: int) -> None:
    client = Client(nursery, max_body=1000)
    response = await client.talk(request_bytes)
    assert status_of(response) == status
    assert b"connection: close" in response
    assert response.count(b"HTTP/1.1 4") == 1
    assert b"%d " % status in response.partition(b"\r\n\r\n")[2]


async def test_connection_goes_on_after_errors_of_the_application(nursery: trio.Nursery, caplog: Any) -> None:
    errors: list[Exception] = [HttpError(503, retry_after=1), BadReply("no"), KeyError("bug")]

    async def fail(exchange: Exchange) -> None:
        raise errors.pop(0)

    client = Client(nursery, fail)
    responses = []
    for status in (503, 502, 500):
        await client.send(GET)
        responses.append(await client.until(b".\n"))
        assert status_of(responses[-1]) == status
    assert b"retry-after: 1\r\n" in responses[0]
    assert "bad reply from the application: no" in caplog.text
    assert "KeyError" in caplog.text


async def test_connection_streams_with_back_pressure(nursery: trio.Nursery) -> None:
    written = 0

    async def stream(exchange: Exchange) -> None:
        nonlocal written
        await exchange.respond(Reply(200, [], b""), more=True)
        for _ in range(100):
            await exchange.send_body(b"x" * 1000, more=True)
            written += 1
        await exchange.send_body(b"end", more=False)

    ours, theirs = trio.testing.lockstep_stream_pair()
    connection = Connection(StreamClient(theirs, Config(routes={"/": "app"})), stream)
    nursery.start_soon(connection.serve)
    await ours.send_all(GET)
    got = await ours.receive_some()
    assert b"transfer-encoding: chunked" in got.lower()
    await trio.testing.wait_all_tasks_blocked()
    assert written == 0  # nobody reads: the application waits
    while not got.endswith(b"0\r\n\r\n"):
        got += await ours.receive_some()
    assert got.count(b"x" * 1000) == 100
    await ours.send_eof()


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
async def test_connection_never_completes_a_response_that_broke_off(nursery: trio.Nursery, version: bytes) -> None:
    async def die(exchange: Exchange) -> None:
        await exchange.respond(Reply(200, [], b"begun"), more=True)
        raise HttpError(502)

    client = Client(nursery, die)
    await client.send(GET.replace(b"1.1", version))
    response = await client.rest()
    assert b"begun" in response
    assert not response.endswith(b"0\r\n\r\n")
    await client.ended.wait()
    assert client.connection.aborted


async def test_connection_cuts_a_body_that_does_not_fit_its_length(nursery: trio.Nursery) -> None:
    async def lie(exchange: Exchange) -> None:
        await exchange.respond(Reply(200, [(b"content-length", b"10")], b"12345"), more=True)
        await exchange.send_body(b"678901", more=False)

    client = Client(nursery, lie)
    await client.send(GET)
    assert (await client.rest()).endswith(b"12345")
    await client.ended.wait()
    assert client.connection.aborted


async def test_connection_closes_when_the_body_is_not_wanted(nursery: trio.Nursery) -> None:
    async def early(exchange: Exchange) -> None:
        await exchange.respond(Reply(401, [], b"no"))

    client = Client(nursery, early)
    await client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n" + b"x" * 1000)
    response = await client.until(b"no")
    assert b"connection: close" in response
    await client.send(b"x" * 300_000)  # it is read and thrown away: the answer is not destroyed by a reset
    await client.stream.send_eof()
    assert await client.rest() == b""


async def test_connection_passes_a_large_body_piece_by_piece(nursery: trio.Nursery) -> None:
    largest = total = 0

    async def count(exchange: Exchange) -> None:
        nonlocal largest, total
        total, more = len(exchange.body), exchange.more_body
        while more:
            piece, more = await exchange.receive_body()
            largest, total = max(largest, len(piece)), total + len(piece)
        await exchange.respond(Reply(200, [], b"done"))

    client = Client(nursery, count)
    await client.send(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
    for _ in range(50):
        await client.send(b"10000\r\n" + b"x" * 65536 + b"\r\n")
    await client.send(b"0\r\n\r\n")
    assert status_of(await client.until(b"done")) == 200
    assert total == 50 * 65536
    assert largest <= 256 * 1024


# -- time -----------------------------------------------------------------------------------------------------------


async def test_connection_closes_when_idle(nursery: trio.Nursery, autojump_clock: Any) -> None:
    client = Client(nursery, idle_time=7)
    assert await client.rest() == b""
    assert trio.current_time() == pytest.approx(7)
    client = Client(nursery, idle_time=7)
    await client.send(GET)
    assert status_of(await client.rest()) == 200


async def test_connection_gives_up_on_a_slow_head(nursery: trio.Nursery, autojump_clock: Any) -> None:
    client = Client(nursery, head_time=5)

    async def drip() -> None:
        for byte in GET:
            await client.send(bytes([byte]))
            await trio.sleep(1)

    nursery.start_soon(drip)
    assert status_of(await client.until(b".\n")) == 408
    assert trio.current_time() == pytest.approx(5)
    nursery.cancel_scope.cancel()


async def test_connection_gives_up_on_a_silent_body(nursery: trio.Nursery, autojump_clock: Any) -> None:
    for length in (5, 500_000):
        client = Client(nursery, body_time=5)
        start = trio.current_time()
        await client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\nab" % length)
        assert status_of(await client.until(b".\n")) == 408
        assert trio.current_time() - start == pytest.approx(5)


async def test_connection_cuts_a_client_that_takes_nothing(nursery: trio.Nursery, autojump_clock: Any) -> None:
    ours, theirs = trio.testing.lockstep_stream_pair()
    connection = Connection(StreamClient(theirs, Config(routes={"/": "app"}, write_time=9)), echo)
    nursery.start_soon(ours.send_all, GET)
    await connection.serve()
    assert connection.aborted
    assert trio.current_time() == pytest.approx(9)


# -- clients that leave ---------------------------------------------------------------------------------------------


async def test_connection_cancels_the_call_of_a_client_that_is_gone(nursery: trio.Nursery, caplog: Any) -> None:
    caplog.set_level(logging.INFO)
    begun, cancelled = trio.Event(), trio.Event()

    async def hang(exchange: Exchange) -> None:
        begun.set()
        try:
            await trio.sleep_forever()
        finally:
            cancelled.set()

    ours, theirs = trio.testing.memory_stream_pair()
    connection = Connection(StreamClient(theirs, Config(routes={"/": "app"})), hang)
    nursery.start_soon(connection.serve)
    await ours.send_all(GET)
    await begun.wait()
    await theirs.receive_stream.aclose()  # what a reset does: the reader breaks
    with trio.fail_after(5):
        await cancelled.wait()
        await trio.testing.wait_all_tasks_blocked()
    assert connection.aborted
    assert '"GET / HTTP/1.1" 499 0' in caplog.text


async def test_connection_answers_a_half_closed_client_but_not_for_ever(
    nursery: trio.Nursery, autojump_clock: Any
) -> None:
    delay = 1.0

    async def slow(exchange: Exchange) -> None:
        await trio.sleep(delay)
        await exchange.respond(Reply(200, [], b"late"))

    assert (await Client(nursery, slow).talk(GET)).endswith(b"late")
    delay = 60.0
    start = trio.current_time()
    assert await Client(nursery, slow).talk(GET) == b""
    assert trio.current_time() - start < 10


# -- stopping -------------------------------------------------------------------------------------------------------


async def test_connection_stops_after_the_response_under_way(nursery: trio.Nursery) -> None:
    go = trio.Event()

    async def wait(exchange: Exchange) -> None:
        await go.wait()
        await exchange.respond(Reply(200, [], b"done"))

    idle, busy = Client(nursery, wait), Client(nursery, wait)
    await busy.send(GET + GET)
    await trio.testing.wait_all_tasks_blocked()
    idle.connection.stop()
    busy.connection.stop()
    assert await idle.rest() == b""
    go.set()
    response = await busy.rest()
    assert response.endswith(b"done")
    assert response.count(b"HTTP/1.1 200") == 1
    assert b"connection: close" in response
    nursery.cancel_scope.cancel()


async def test_access_log(nursery: trio.Nursery, caplog: Any) -> None:
    caplog.set_level(logging.INFO, "retinue.httpd.access")
    await Client(nursery).talk(b'GET /a"b HTTP/1.1\r\nHost: a\r\n\r\n\x01')
    first, second = (record.getMessage() for record in caplog.records)
    assert first.startswith('1.2.3.4 "GET /a\\x22b HTTP/1.1" 200 9 ')
    assert first.endswith("ms")
    assert second.startswith('1.2.3.4 "-" 400 ')
    caplog.clear()
    await Client(nursery, access_log=False).talk(GET)
    assert not caplog.records
