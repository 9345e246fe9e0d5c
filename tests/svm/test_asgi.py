"""The ASGI runtime inside a real machine object: lifespan, the order of events, what happens when either side fails."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing

from retinue.pipes import (
    Message,
    Path,
    PathSevered,
    Rejected,
    SocketTransport,
    memory_pair,
    open_path,
    socket_pair,
    trace,
    tracing,
)
from retinue.svm import asgi, lifespan
from retinue.svm.asgi import serve_asgi
from retinue.svm.errors import ClientDisconnected, LifespanFailed, WrongEvent
from retinue.svm.machine import Machine

SCOPE = {
    "method": "GET",
    "scheme": "http",
    "http_version": "1.1",
    "path": "/",
    "raw_path": b"/",
    "query_string": b"",
    "root_path": "",
    "headers": [[b"host", b"a"]],
    "client": ["1.2.3.4", 5],
    "server": ["5.6.7.8", 80],
}
START = {"type": "http.response.start", "status": 200, "headers": [(b"x-a", b"b")]}


def call_body(ident: int = 1, body: bytes = b"", more_body: bool = False, **scope: Any) -> dict[str, Any]:
    return {"type": "http", "id": ident, "scope": SCOPE | scope, "body": body, "more_body": more_body}


class Harness:
    """Runs an application as a machine would, and opens paths to it as HTTPD would."""

    def __init__(self, nursery: trio.Nursery, machine: Machine[None], ready: trio.Event) -> None:
        self.machine = machine
        self.ready = ready
        self.ended = trio.Event()
        self._nursery = nursery

    async def run(self, app: Any) -> None:
        await serve_asgi(self.machine, app)
        self.ended.set()

    async def path(self) -> Path:
        ours, theirs = socket_pair()
        await self.machine.offer("HTTPD", 64, theirs.detach())
        path = Path(SocketTransport(ours))
        await self._nursery.start(path.run)
        return path

    async def call(self, **scope: Any) -> Any:
        return await (await self.path()).call(call_body(**scope))


@asynccontextmanager
async def harness() -> AsyncIterator[Harness]:
    """A machine whose control path is answered by the test."""
    ours, theirs = memory_pair()
    ready = trio.Event()

    async def obey(message: Message) -> None:
        assert message.body == ["ready", {}]
        ready.set()

    async with open_path(ours) as control, open_path(theirs) as answering, trio.open_nursery() as nursery:
        nursery.start_soon(answering.serve, obey)
        machine: Machine[None] = Machine(name="APP", config=None, edges={}, disks={}, control=control, nursery=nursery)
        with trio.fail_after(20):
            yield Harness(nursery, machine, ready)
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def running(app: Any) -> AsyncIterator[Harness]:
    async with harness() as it, trio.open_nursery() as nursery:
        nursery.start_soon(it.run, app)
        await it.ready.wait()
        yield it
        it.machine.stop()


async def hello(scope: Any, receive: Any, send: Any) -> None:
    assert scope["type"] == "http"
    await send(START)
    await send({"type": "http.response.body", "body": b"hello"})


async def test_asgi_small_response_is_one_reply() -> None:
    async with running(hello) as it:
        assert await it.call() == {"status": 200, "headers": [[b"x-a", b"b"]], "body": b"hello"}


async def test_asgi_scope_is_complete() -> None:
    scopes: list[Any] = []

    async def keep(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            scopes.append(scope)
            await hello(scope, receive, send)

    async with running(keep) as it:
        await it.call(path="/é", raw_path=b"/%C3%A9")
    (scope,) = scopes
    assert scope.pop("extensions")["retinue"]["machine"].name
    assert scopes == [
        {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "method": "GET",
            "scheme": "http",
            "path": "/é",
            "raw_path": b"/%C3%A9",
            "query_string": b"",
            "root_path": "",
            "headers": [(b"host", b"a")],
            "client": ("1.2.3.4", 5),
            "server": ("5.6.7.8", 80),
            "state": {},
        }
    ]


# -- lifespan -------------------------------------------------------------------------------------------------------


async def test_asgi_request_runs_in_the_trace_of_its_call() -> None:
    """Each in its own, also what it begins, and what goes on after it; the lifespan in none."""
    seen: list[tuple[str, str | None]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append((scope.get("path", "lifespan"), trace()))
        await hello(scope, receive, send)
        await trio.lowlevel.checkpoint()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(note)

    async def note() -> None:
        seen.append(("task", trace()))

    async with running(app) as it:
        path = await it.path()
        for ident in ("a" * 32, "b" * 32):
            with tracing(ident):
                assert (await path.call(call_body()))["body"] == b"hello"
        assert (await path.call(call_body()))["body"] == b"hello"
    idents = ["a" * 32, "b" * 32, None]
    assert seen[0] == ("lifespan", None)
    assert [ident for name, ident in seen if name == "task"] == idents
    assert [ident for name, ident in seen if name == SCOPE["path"]] == idents


async def test_asgi_lifespan_comes_before_ready_and_after_the_last_request() -> None:
    order: list[str] = []
    started = trio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            order.append(scope["state"]["db"])
            scope["state"]["db"] = "a request's own copy"
            return await hello(scope, receive, send)
        assert scope["asgi"]["version"] == "3.0"
        assert await receive() == {"type": "lifespan.startup"}
        started.set()
        await trio.testing.wait_all_tasks_blocked()
        scope["state"]["db"] = "the database"
        order.append("up")
        await send({"type": "lifespan.startup.complete"})
        assert await receive() == {"type": "lifespan.shutdown"}
        order.append("down")
        await send({"type": "lifespan.shutdown.complete"})

    async with harness() as it, trio.open_nursery() as nursery:
        nursery.start_soon(it.run, app)
        await started.wait()
        assert not it.ready.is_set()
        await it.ready.wait()
        await it.call()
        await it.call()
        it.machine.stop()
        await it.ended.wait()
    assert order == ["up", "the database", "the database", "down"]


async def test_asgi_startup_that_fails_ends_the_machine_with_its_message() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no database"})
        raise OSError("no database")

    async with harness() as it:
        with pytest.raises(LifespanFailed, match="no database"):
            await it.run(app)
        assert not it.ready.is_set()


async def test_asgi_lifespan_may_be_unsupported_or_fail_later(caplog: Any) -> None:
    async def dies_later(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            return await hello(scope, receive, send)
        await receive()
        await send({"type": "lifespan.startup.complete"})
        raise KeyError("later")

    for app in (hello, dies_later):
        async with running(app) as it:
            assert (await it.call())["status"] == 200
    assert "the application's lifespan failed" in caplog.text


async def test_asgi_shutdown_is_bounded(autojump_clock: Any, caplog: Any) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await trio.sleep_forever()

    async with running(app):
        pass
    assert trio.current_time() == pytest.approx(lifespan.SHUTDOWN_TIME)
    assert "shutdown was not complete" in caplog.text


# -- receive and send -----------------------------------------------------------------------------------------------


async def test_asgi_receive_pulls_the_body_and_then_waits_for_the_end() -> None:
    events: list[Any] = []
    pieces = [b"two", b"three"]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        while True:
            events.append(await receive())
            if not events[-1]["more_body"]:
                break
        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                events.append(await receive())

            nursery.start_soon(watch)
            await trio.testing.wait_all_tasks_blocked()
            assert len(events) == 3
            await hello(scope, receive, send)
        events.append(await receive())

    async def httpd(message: Message) -> Any:
        assert message.body == {"type": "http.receive", "id": 7}
        return {"body": pieces.pop(0), "more_body": bool(pieces)}

    async with running(app) as it, trio.open_nursery() as nursery:
        path = await it.path()
        nursery.start_soon(path.serve, httpd)
        assert (await path.call(call_body(7, b"one", True)))["body"] == b"hello"
        path.sever()
    assert events == [
        {"type": "http.request", "body": b"one", "more_body": True},
        {"type": "http.request", "body": b"two", "more_body": True},
        {"type": "http.request", "body": b"three", "more_body": False},
        {"type": "http.disconnect"},
        {"type": "http.disconnect"},
    ]


async def test_asgi_streamed_response_waits_for_the_client() -> None:
    progress: list[int] = []
    pushed: list[Any] = []
    gate = trio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        for n in range(3):
            await send({"type": "http.response.body", "body": b"%d" % n, "more_body": True})
            progress.append(n)
        await send({"type": "http.response.body", "body": b"end"})

    async def httpd(message: Message) -> None:
        pushed.append(message.body)
        await gate.wait()

    async with running(app) as it, trio.open_nursery() as nursery:
        path = await it.path()
        nursery.start_soon(path.serve, httpd)
        replies: list[Any] = []

        async def call() -> None:
            replies.append(await path.call(call_body(7)))

        async with trio.open_nursery() as calling:
            calling.start_soon(call)
            while not pushed:
                await trio.testing.wait_all_tasks_blocked(0.001)
            assert progress == []
            gate.set()
        path.sever()
    assert pushed == [
        {"type": "http.send", "id": 7, "status": 200, "headers": [[b"x-a", b"b"]], "body": b"0"},
        {"type": "http.send", "id": 7, "body": b"1"},
        {"type": "http.send", "id": 7, "body": b"2"},
    ]
    assert replies == [{"body": b"end"}]


async def test_asgi_large_response_leaves_in_slices() -> None:
    sizes: list[int] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        await send({"type": "http.response.body", "body": bytearray(1_000_000)})

    async def httpd(message: Message) -> None:
        sizes.append(len(message.body["body"]))

    async with running(app) as it, trio.open_nursery() as nursery:
        path = await it.path()
        nursery.start_soon(path.serve, httpd)
        assert await path.call(call_body()) == {"body": b""}
        path.sever()
    assert sum(sizes) == 1_000_000
    assert max(sizes) == asgi.SLICE


@pytest.mark.parametrize("code", ["disconnected", "severed", "purged"])
async def test_asgi_send_raises_when_the_client_is_gone(code: str) -> None:
    caught: list[BaseException] = []
    ended = trio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        try:
            if code == "purged":
                assert await receive() == {"type": "http.request", "body": b"", "more_body": False}
                assert await receive() == {"type": "http.disconnect"}
            await send({"type": "http.response.body", "body": b"x", "more_body": True})
        except OSError as exc:
            caught.append(exc)
            raise
        finally:
            ended.set()

    async def httpd(message: Message) -> None:
        if code == "severed":
            message.path.sever()
        raise Rejected("disconnected")

    async with running(app) as it, trio.open_nursery() as nursery:
        path = await it.path()
        nursery.start_soon(path.serve, httpd)
        with trio.CancelScope() as scope:
            if code == "purged":
                nursery.start_soon(_cancel_when_blocked, scope)
            with pytest.raises((Rejected, PathSevered, Exception)):
                await path.call(call_body())
        await ended.wait()
        path.sever()
    assert [type(exc) for exc in caught] == [ClientDisconnected]


async def _cancel_when_blocked(scope: trio.CancelScope) -> None:
    await trio.testing.wait_all_tasks_blocked(0.01)
    scope.cancel()


@pytest.mark.parametrize(
    "events",
    [
        [{"type": "http.response.body"}],
        [START, START],
        [{"type": "http.response.start", "status": 101}],
        [{"type": "http.response.start", "status": "200"}],
        [{"type": "http.response.start", "status": 200, "headers": [("a", "b")]}],
        [START, {"type": "http.response.body", "body": "text"}],
        [{"type": "websocket.accept"}],
        [{}],
        [START, {"type": "http.response.body"}, {"type": "http.response.body"}],
    ],
)
async def test_asgi_event_that_does_not_fit_is_an_error_of_the_application(events: Any, caplog: Any) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            for event in events[:-1]:
                await send(event)
            with pytest.raises(WrongEvent):
                await send(events[-1])
            raise KeyError("so what")

    async with running(app) as it:
        if len(events) == 3:  # the response was complete before
            assert (await it.call())["status"] == 200
        else:
            with pytest.raises(Rejected) as caught:
                await it.call()
            assert caught.value.code == "app-error"
            assert "so what" not in str(caught.value)
    assert caplog.text.count("the application failed") == 1


async def test_asgi_return_without_a_response_is_an_error(caplog: Any) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await send(START)

    async with running(app) as it:
        with pytest.raises(Rejected, match="whole response"):
            await it.call()
    assert "without a whole response" in caplog.text


# -- callers that do not behave -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (None, "unknown-message"),
        ({"type": "websocket"}, "unknown-message"),
        ({"type": "http"}, "bad-message"),
        (call_body(ident="1"), "bad-message"),  # type: ignore[arg-type]
        (call_body(body="x"), "bad-message"),  # type: ignore[arg-type]
        (call_body(path=b"/"), "bad-message"),
        (call_body(raw_path="/"), "bad-message"),
        (call_body(headers=None), "bad-message"),
        (call_body(headers=[[b"a"]]), "bad-message"),
        (call_body(headers=[["a", "b"]]), "bad-message"),
        (call_body(client=["a"]), "bad-message"),
        (call_body(client="ab"), "bad-message"),
    ],
)
async def test_asgi_refuses_what_is_no_request(body: Any, code: str) -> None:
    async with running(hello) as it:
        path = await it.path()
        await path.send({"ignored": True})
        with pytest.raises(Rejected) as caught:
            await path.call(body)
        assert caught.value.code == code
        assert (await path.call(call_body()))["status"] == 200


# -- stopping -------------------------------------------------------------------------------------------------------


async def test_asgi_work_after_the_response_goes_on_and_is_waited_for() -> None:
    go = trio.Event()
    done: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await hello(scope, receive, send)
            await go.wait()
            done.append("after")

    async with harness() as it, trio.open_nursery() as nursery:
        nursery.start_soon(it.run, app)
        await it.ready.wait()
        path = await it.path()
        assert (await path.call(call_body()))["status"] == 200
        it.machine.stop()
        await trio.testing.wait_all_tasks_blocked(0.01)
        with pytest.raises(Rejected) as caught:
            await path.call(call_body())
        assert caught.value.code == "stopping"
        assert not it.ended.is_set()
        go.set()
        await it.ended.wait()
    assert done == ["after"]


async def test_asgi_request_that_never_ends_does_not_stop_the_stop(autojump_clock: Any, caplog: Any) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await trio.sleep_forever()

    caplog.set_level(logging.WARNING)
    left, right = memory_pair()
    async with open_path(left) as ours, open_path(right) as theirs, trio.open_nursery() as nursery:
        runner = asgi.Runner(app, {})
        nursery.start_soon(runner.serve_path, theirs)
        codes: list[str] = []

        async def call() -> None:
            try:
                await ours.call(call_body())
            except Rejected as exc:
                codes.append(exc.code)

        nursery.start_soon(call)
        await trio.testing.wait_all_tasks_blocked()
        await runner.finish()
        assert trio.current_time() == pytest.approx(asgi.DRAIN_TIME)
        nursery.cancel_scope.cancel()
    assert "1 requests were still running" in caplog.text
