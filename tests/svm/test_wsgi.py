"""The WSGI runtime inside a real machine object: PEP 3333, threads, what happens when either side fails."""

import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from typing import Any
from wsgiref.validate import validator

import pytest
import trio
import trio.testing
from tests.svm.test_asgi import Harness, call_body, harness
from tests.systems import wait_for

from retinue.pipes import Message, Path, Rejected, trace, tracing
from retinue.svm import asgi
from retinue.svm.wsgi import serve_wsgi

Start = Callable[..., Callable[[bytes], object]]
PLAIN = [("Content-Type", "text/plain")]


@asynccontextmanager
async def running(app: Any, threads: int = 8) -> AsyncIterator[Harness]:
    async with harness() as it, trio.open_nursery() as nursery:

        async def run() -> None:
            await serve_wsgi(it.machine, app, threads)
            it.ended.set()

        nursery.start_soon(run)
        await it.ready.wait()
        yield it
        it.machine.stop()


class Client:
    """A path on which what the application sends and asks for is noted, as HTTPD would take it."""

    def __init__(self, path: Path, pieces: Iterable[bytes | None] = ()) -> None:
        self.path = path
        self.sent: list[dict[str, Any]] = []
        self.pieces = list(pieces)
        self.takes = trio.Event()
        self.takes.set()

    async def answer(self, message: Message) -> Any:
        if message.body["type"] == "http.send":
            self.sent.append(message.body)
            await self.takes.wait()
            return None
        piece = self.pieces.pop(0)
        return {"disconnect": True} if piece is None else {"body": piece, "more_body": bool(self.pieces)}


@asynccontextmanager
async def client(it: Harness, *pieces: bytes | None) -> AsyncIterator[Client]:
    made = Client(await it.path(), pieces)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(made.path.serve, made.answer)
        yield made
        nursery.cancel_scope.cancel()


async def until(condition: Callable[[], object]) -> None:
    """Until what threads do has happened."""
    await trio.to_thread.run_sync(wait_for, condition)


def hello(environ: dict[str, Any], start_response: Start) -> list[bytes]:
    start_response("200 OK", [("X-A", "b"), *PLAIN])
    return [b"hello"]


async def test_wsgi_small_response_is_one_reply() -> None:
    """With a list of one piece, as most applications return it, nothing has to be streamed."""
    async with running(validator(hello)) as it:
        headers = [[b"X-A", b"b"], [b"Content-Type", b"text/plain"]]
        async with client(it) as one:
            reply = await one.path.call(call_body())
        # The validator hides that it is a list.
        assert [part["body"] for part in one.sent] == [b"hello"]
        assert reply == {"body": b""}
    async with running(hello) as it:
        assert await it.call() == {"status": 200, "headers": headers, "body": b"hello"}


async def test_wsgi_request_runs_in_the_trace_of_its_call() -> None:
    """In its thread, and in what its iteration does later; the next request of the same thread is in its own."""

    def app(environ: dict[str, Any], start_response: Start) -> Iterable[bytes]:
        start_response("200 OK", PLAIN)
        yield f"{trace()} ".encode()
        yield f"{trace()}".encode()

    async with running(app, threads=1) as it, client(it) as one:
        for ident in ("a" * 32, None, "b" * 32):
            with tracing(ident):
                await one.path.call(call_body())
        assert b"".join(part["body"] for part in one.sent).decode() == (
            f"{'a' * 32} {'a' * 32}None None{'b' * 32} {'b' * 32}"
        )


async def test_wsgi_environ_is_complete() -> None:
    """All of PEP 3333, and what is customary; a header cannot pass for another one."""
    environs: list[dict[str, Any]] = []

    def keep(environ: dict[str, Any], start_response: Start) -> list[bytes]:
        environs.append(dict(environ))
        return hello(environ, start_response)

    headers = [
        [b"host", b"a:1"],
        [b"content-type", b"text/x"],
        [b"content-length", b"3"],
        [b"x-forwarded-for", b"1.1.1.1"],
        [b"x_forwarded_for", b"6.6.6.6"],
        [b"proxy", b"http://evil"],
        [b"cookie", b"a=1"],
        [b"cookie", b"b=2"],
        [b"accept", b"x"],
        [b"accept", b"\xe9"],
    ]
    async with running(keep) as it:
        await it.call(
            method="POST", path="/é/\ufffd", raw_path=b"/%C3%A9/%FF", query_string=b"a=%41&\xc3", headers=headers
        )
        await it.call(client=None, server=None, scheme="https")
        machine = it.machine
    first, second = environs
    assert first.pop("wsgi.input").read() == b""
    first.pop("wsgi.errors")
    assert first == {
        "REQUEST_METHOD": "POST",
        "SCRIPT_NAME": "",
        "PATH_INFO": "/Ã©/ÿ",
        "QUERY_STRING": "a=%41&Ã",
        "CONTENT_TYPE": "text/x",
        "CONTENT_LENGTH": "3",
        "SERVER_NAME": "5.6.7.8",
        "SERVER_PORT": "80",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": "1.2.3.4",
        "REMOTE_PORT": "5",
        "HTTP_HOST": "a:1",
        "HTTP_X_FORWARDED_FOR": "1.1.1.1",
        "HTTP_COOKIE": "a=1; b=2",
        "HTTP_ACCEPT": "x,é",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input_terminated": True,
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
        "retinue.machine": machine,
        "retinue.redelivered": False,
    }
    assert (second["SERVER_NAME"], second["SERVER_PORT"]) == ("localhost", "443")
    assert "REMOTE_ADDR" not in second


# -- the request's body ------------------------------------------------------------------------------------------------


async def test_wsgi_input_streams_what_comes_in_pieces() -> None:
    """Read in every way; the validator finds nothing wrong with it."""

    def app(environ: dict[str, Any], start_response: Start) -> Iterator[bytes]:
        body = environ["wsgi.input"]
        got = [body.read(3), body.readline(), *body.readlines(1), *body, body.read(10)]
        start_response("200 OK", PLAIN)
        yield b"|".join(got)

    async with running(validator(app)) as it, client(it, b"", b"e\nthr", b"ee\nfour\nfi", b"ve") as one:
        await one.path.call(call_body(body=b"one\ntwo\nthre", more_body=True, method="POST"))
        assert one.sent[0]["body"] == b"one|\n|two\n|three\n|three\n|four\n|five|"


async def test_wsgi_input_of_a_client_that_leaves_is_an_error() -> None:
    """No application takes the part that came for the whole."""
    caught: list[BaseException] = []

    def app(environ: dict[str, Any], start_response: Start) -> list[bytes]:
        try:
            environ["wsgi.input"].read()
        except OSError as exc:
            caught.append(exc)
            raise
        return hello(environ, start_response)

    async with running(app) as it, client(it, b"two", None) as one:
        with pytest.raises(Rejected):
            await one.path.call(call_body(body=b"one", more_body=True))
    assert len(caught) == 1


# -- the response ------------------------------------------------------------------------------------------------------


async def test_wsgi_response_of_known_length_is_one_reply() -> None:
    """Also of an iterable whose length is not known: the whole is there when as much as was announced is."""

    def app(environ: dict[str, Any], start_response: Start) -> Iterator[bytes]:
        start_response("200 OK", [("Content-Length", "5")])
        yield b""
        yield b"hello"
        yield b""

    async with running(app) as it:
        reply = await it.call()
    assert reply == {"status": 200, "headers": [[b"Content-Length", b"5"]], "body": b"hello"}


async def test_wsgi_streamed_response_waits_for_the_client() -> None:
    """Each piece leaves at once, the next one is asked for when the client has it."""
    progress: list[int] = []

    def app(environ: dict[str, Any], start_response: Start) -> Iterator[bytes]:
        start_response("200 OK", PLAIN)
        for number in range(3):
            progress.append(number)
            yield b"%d" % number

    async with running(validator(app)) as it, client(it) as one, trio.open_nursery() as nursery:
        one.takes = trio.Event()
        replies: list[Any] = []

        async def call() -> None:
            replies.append(await one.path.call(call_body(7)))

        nursery.start_soon(call)
        await until(lambda: one.sent)
        await trio.testing.wait_all_tasks_blocked(0.02)
        assert progress == [0]
        one.takes.set()
        await until(lambda: replies)
        assert progress == [0, 1, 2]
    assert [part["body"] for part in one.sent] == [b"0", b"1", b"2"]
    assert "status" in one.sent[0]
    assert "status" not in one.sent[1]
    assert replies == [{"body": b""}]


async def test_wsgi_large_response_leaves_in_slices() -> None:
    """As an ASGI response does."""

    def app(environ: dict[str, Any], start_response: Start) -> list[bytes]:
        start_response("200 OK", PLAIN)
        return [b"x" * 1_000_000]

    async with running(app) as it, client(it) as one:
        assert await one.path.call(call_body()) == {"body": b""}
    assert [len(part["body"]) for part in one.sent] == [asgi.SLICE] * 3 + [1_000_000 - 3 * asgi.SLICE]


async def test_wsgi_write_callable() -> None:
    """What is written comes before what is returned."""

    def app(environ: dict[str, Any], start_response: Start) -> list[bytes]:
        write = start_response("200 OK", PLAIN)
        write(b"one")
        write(b"two")
        return [b"three"]

    async with running(validator(app)) as it, client(it) as one:
        reply = await one.path.call(call_body())
    assert b"".join(part["body"] for part in one.sent) + reply["body"] == b"onetwothree"


async def test_wsgi_head_has_the_head_and_no_body() -> None:
    """A generator is asked for no more than its headers, and closed."""
    said: list[str] = []

    def app(environ: dict[str, Any], start_response: Start) -> Iterator[bytes]:
        try:
            start_response("200 OK", [("Content-Length", "1000000")])
            yield b"x" * 500_000
            said.append("asked for more")
        finally:
            said.append("closed")

    async with running(app) as it:
        reply = await it.call(method="HEAD")
    assert reply == {"status": 200, "headers": [[b"Content-Length", b"1000000"]], "body": b""}
    assert said == ["closed"]


async def test_wsgi_empty_response_has_its_head() -> None:
    """It leaves at the end, for until then it might have changed."""

    def app(environ: dict[str, Any], start_response: Start) -> Iterator[bytes]:
        start_response("204 No Content", [])
        return iter(())

    async with running(validator(app)) as it:
        assert await it.call() == {"status": 204, "headers": [], "body": b""}


async def test_wsgi_head_can_be_replaced_until_it_has_left() -> None:
    """With exc_info; afterwards it raises what went wrong."""

    def fails(environ: dict[str, Any], start_response: Start) -> Iterator[bytes]:
        import sys

        start_response("200 OK", PLAIN)
        if environ["PATH_INFO"] == "/late":
            yield b"begun"
        try:
            raise KeyError("lost")
        except KeyError:
            start_response("500 Oh", [("X-Oh", "yes"), *PLAIN], sys.exc_info())
            yield b"sorry"

    async with running(validator(fails)) as it, client(it) as one:
        await one.path.call(call_body())
        assert one.sent[0]["status"] == 500
        assert one.sent[0]["headers"][0] == [b"X-Oh", b"yes"]
        with pytest.raises(Rejected, match="KeyError"):
            await one.path.call(call_body(2, raw_path=b"/late"))


# -- applications that fail --------------------------------------------------------------------------------------------


def _twice(environ: dict[str, Any], start_response: Start) -> list[bytes]:
    start_response("200 OK", PLAIN)
    start_response("200 OK", PLAIN)
    return []


def _never(environ: dict[str, Any], start_response: Start) -> list[bytes]:
    return [b"x"]


def _text(environ: dict[str, Any], start_response: Start) -> list[Any]:
    start_response("200 OK", PLAIN)
    return ["text"]


def _too_long(environ: dict[str, Any], start_response: Start) -> list[bytes]:
    start_response("200 OK", [("Content-Length", "1")])
    return [b"xx"]


def _status(environ: dict[str, Any], start_response: Start) -> list[bytes]:
    start_response("101 Switching Protocols", [])
    return []


def _header(environ: dict[str, Any], start_response: Start) -> list[bytes]:
    start_response("200 OK", [("X", b"bytes")])
    return []


def _nothing(environ: dict[str, Any], start_response: Start) -> None:
    start_response("200 OK", PLAIN)


@pytest.mark.parametrize(
    ("app", "text"),
    [
        (_twice, "start_response was called a second time"),
        (_never, "start_response was not called"),
        (_text, "a piece of the body is str"),
        (_too_long, "longer than its Content-Length"),
        (_status, "the status is '101 Switching Protocols'"),
        (_header, "the header 'X' is not a pair of str"),
        (_nothing, "NoneType"),
    ],
)
async def test_wsgi_application_that_breaks_the_rules(app: Any, text: str, caplog: pytest.LogCaptureFixture) -> None:
    """Its request fails, once in the log, with the traceback; the client learns nothing."""
    async with running(app) as it:
        with pytest.raises(Rejected) as caught:
            await it.call()
    assert caught.value.code == "app-error"
    assert text not in str(caught.value)
    assert text in caplog.text
    assert caplog.text.count("the application failed") == 1
    assert "Traceback" in caplog.text


class Closing:
    """An iterable that notes when it is closed."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self.pieces = iter(pieces)
        self.closed = threading.Event()

    def __iter__(self) -> Iterator[bytes]:
        return self.pieces

    def close(self) -> None:
        self.closed.set()


@pytest.mark.parametrize("ending", ["well", "badly", "disconnected", "gone"])
async def test_wsgi_close_is_always_called(ending: str, caplog: pytest.LogCaptureFixture) -> None:
    """However the iteration ends; a client that has gone stops it."""
    taken: list[int] = []

    def pieces() -> Iterator[bytes]:
        for number in range(1000 if ending in ("gone", "disconnected") else 3):
            taken.append(number)
            yield b"x"
        if ending == "badly":
            raise KeyError("so what")

    result = Closing(pieces())

    def app(environ: dict[str, Any], start_response: Start) -> Any:
        start_response("200 OK", PLAIN)
        return result

    class Leaving(Client):
        async def answer(self, message: Message) -> Any:
            if len(self.sent) == 5 and ending == "disconnected":
                raise Rejected("disconnected")
            if len(self.sent) == 5 and ending == "gone":
                scope.cancel()
            return await super().answer(message)

    caplog.set_level(logging.INFO)
    async with running(app) as it, trio.open_nursery() as nursery:
        one = Leaving(await it.path())
        nursery.start_soon(one.path.serve, one.answer)
        with trio.CancelScope() as scope:
            if ending == "well":
                await one.path.call(call_body())
            else:
                with pytest.raises(Rejected):
                    await one.path.call(call_body())
        assert await trio.to_thread.run_sync(result.closed.wait, 10)
        one.path.sever()
    assert len(taken) < 10
    assert ("so what" in caplog.text) == (ending == "badly")
    assert ("the client left" in caplog.text) == (ending in ("gone", "disconnected"))


async def test_wsgi_errors_go_to_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """What is written together is one record; a line without its end comes with the end of the request."""

    def app(environ: dict[str, Any], start_response: Start) -> list[bytes]:
        errors = environ["wsgi.errors"]
        errors.write("one\ntwo\nth")
        errors.writelines(["ree\n"])
        print("four", file=errors)
        errors.flush()
        errors.write("five")
        return hello(environ, start_response)

    async with running(app) as it:
        await it.call()
    assert [record.getMessage() for record in caplog.records if record.name == "wsgi.errors"] == [
        "one\ntwo",
        "three",
        "four",
        "five",
    ]


# -- threads -----------------------------------------------------------------------------------------------------------


class Gate:
    """An application whose requests wait until they are let go."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.inside = self.most = 0
        self.seen: list[str] = []
        self.open = threading.Event()

    def __call__(self, environ: dict[str, Any], start_response: Start) -> list[bytes]:
        with self.lock:
            self.seen.append(environ["PATH_INFO"])
            self.inside += 1
            self.most = max(self.most, self.inside)
        self.open.wait(20)
        with self.lock:
            self.inside -= 1
        return hello(environ, start_response)


async def test_wsgi_runs_no_more_requests_than_it_has_threads() -> None:
    """Further ones wait, and one whose client leaves meanwhile is never begun."""
    gate = Gate()
    async with running(gate, threads=3) as it, trio.open_nursery() as nursery:
        path = await it.path()
        for number in range(3):
            nursery.start_soon(path.call, call_body(number))
        await until(lambda: gate.inside == 3)
        for number in range(3, 6):
            nursery.start_soon(path.call, call_body(number))
        with trio.move_on_after(0.05):
            await path.call(call_body(99, raw_path=b"/left"))
        assert gate.inside == 3
        gate.open.set()
    assert gate.most == 3
    assert gate.seen == ["/"] * 6


async def test_wsgi_stop_lets_what_runs_finish() -> None:
    """And refuses what comes after."""
    gate = Gate()
    async with running(gate) as it, trio.open_nursery() as nursery:
        path = await it.path()
        replies: list[Any] = []

        async def call() -> None:
            replies.append(await path.call(call_body()))

        nursery.start_soon(call)
        await until(lambda: gate.inside == 1)
        it.machine.stop()
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(Rejected) as caught:
            await path.call(call_body(2))
        assert caught.value.code == "stopping"
        assert not it.ended.is_set()
        gate.open.set()
        await it.ended.wait()
    assert replies[0]["body"] == b"hello"


async def test_wsgi_stop_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    """A thread cannot be cancelled; the machine ends without it."""
    monkeypatch.setattr(asgi, "DRAIN_TIME", 0.1)
    gate = Gate()
    async with running(gate) as it, trio.open_nursery() as nursery:
        path = await it.path()

        async def call() -> None:
            with pytest.raises(Rejected, match="stopping"):
                await path.call(call_body())

        nursery.start_soon(call)
        await until(lambda: gate.inside == 1)
        it.machine.stop()
        await it.ended.wait()
        assert gate.inside == 1
    gate.open.set()
    assert "1 requests were still running" in caplog.text
