"""The trace of a request follows it over paths, to those who can read it, and no further than it reaches."""

import contextvars
import os
from collections.abc import Iterator
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from tests.leaks import assert_none_left, descriptors
from tests.pipes.ends import bind, cut, said
from tests.pipes.test_path import open_ends

from retinue.pipes import Message, Rejected, new_trace, trace, tracing, wire
from retinue.pipes.bulk import Shelf
from retinue.pipes.message import close_all
from retinue.pipes.session import Session
from retinue.pipes.traces import is_trace
from retinue.pipes.wire import Frame, Kind

IDENT = "0af7651916cd43dd8448eb211c80319c"
OTHER = "f" * 32
TRACE = bytes.fromhex(IDENT)


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """Descriptors of messages are closed, whatever becomes of their traces."""
    before = descriptors()
    yield
    assert_none_left(before)


@pytest.fixture(params=["memory", "socket"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# -- the context -------------------------------------------------------------------------------------------------------


def test_tracing_lasts_for_a_block() -> None:
    """Blocks may be nested; in a block of none there is none."""
    assert trace() is None
    with tracing(IDENT):
        assert trace() == IDENT
        with tracing(OTHER):
            assert trace() == OTHER
        with tracing(None):
            assert trace() is None
        assert trace() == IDENT
        with pytest.raises(KeyError), tracing(OTHER):
            raise KeyError
        assert trace() == IDENT
    assert trace() is None


@pytest.mark.parametrize(
    "wrong", ["", "0" * 32, IDENT.upper(), IDENT[:-1], IDENT + "0", IDENT[:-1] + "g", IDENT + "\n"]
)
def test_tracing_takes_no_other_ids(wrong: str) -> None:
    """As W3C writes them, and never all zero."""
    assert not is_trace(wrong)
    with pytest.raises(ValueError, match="is no trace"), tracing(wrong):
        pass
    assert trace() is None


def test_new_traces_are_traces() -> None:
    """And no two are the same."""
    made = {new_trace() for _ in range(1000)}
    assert len(made) == 1000
    assert all(map(is_trace, made))


# -- who takes it ------------------------------------------------------------------------------------------------------


def test_tokens_of_this_revision_tell_it() -> None:
    """And those of the one before, and of peers of our own tests, tell the first one."""
    tokens = {wire.new_token() for _ in range(100)}
    assert len(tokens) == 100
    assert {wire.revision_of(token) for token in tokens} == {1}
    assert all(0 < token < 1 << 63 for token in tokens)


@given(st.integers(1, 1 << 62))
def test_tokens_of_ends_before_it_tell_nothing(token: int) -> None:
    """They had 62 random bits."""
    assert wire.revision_of(token) == 0


def session(*, older: bool = False, store: Any = None) -> Session:
    token = int.from_bytes(os.urandom(7), "big") + 1 if older else None
    return Session(8, keeps=True, token=token, close=close_all, store=store)


@pytest.mark.parametrize("older", [False, True])
def test_session_sends_traces_to_an_end_that_takes_them(older: bool) -> None:
    """Without one, and to an older end, a frame is what it always was."""
    one, other = session(), session(older=older)
    bind(one, other)
    first = os.dup(0)
    one.send("a", trace=TRACE)
    one.send("b", (first,), trace=TRACE)
    one.call("c", trace=TRACE)
    one.call("d", remaining=7, trace=TRACE)
    one.send("e")
    one.call("f", remaining=7)
    with_traces: list[Frame] = [
        [Kind.SEND, 1, "a", 0, TRACE],
        [Kind.SEND, 2, "b", 1, TRACE],
        [Kind.CALL, 3, "c", 0, TRACE],
        [Kind.CALL, 4, "d", 0, 7, TRACE],
    ]
    without: list[Frame] = [
        [Kind.SEND, 1, "a"],
        [Kind.SEND, 2, "b", 1],
        [Kind.CALL, 3, "c"],
        [Kind.CALL, 4, "d", 0, 7],
    ]
    plain: list[Frame] = [[Kind.SEND, 5, "e"], [Kind.CALL, 6, "f", 0, 7]]
    assert said(one) == [*(without if older else with_traces), *plain]
    # What it takes itself does not hang on what the other has said of itself.
    assert other.receive(with_traces[0]) is with_traces[0]
    one.end()


def test_what_goes_to_an_older_successor_goes_without() -> None:
    """Small messages, large ones, and such with descriptors; each is the same message as before."""
    shelf = Shelf()
    one, first, successor = (
        session(store=lambda frame: shelf.store([wire.encode(frame)])),
        session(),
        session(older=True),
    )
    bind(one, first)
    read, write = os.pipe()
    one.send("small", trace=TRACE)
    one.send("given", (read,), trace=TRACE)
    one.call("x" * 100_000, (write,), remaining=9, trace=TRACE)
    one.call("of nobody", remaining=9)
    cut(one, first)
    one.bind()
    successor.bind()
    for frame in said(successor):
        one.receive(frame)
    assert not one.traces
    packet = one.link.next_packet()
    assert packet is not None
    frames = wire.decoder().decode(packet.data)
    assert frames[0][0] == Kind.HELLO
    assert frames[1] == [Kind.SEND, 1, "small", 0]
    assert frames[2] == [Kind.SEND, 2, "given", 1]
    assert frames[3][0] == Kind.BULK
    assert frames[4] == [Kind.CALL, 4, "of nobody", 0, 9]
    assert packet.descriptors[::2] == (read, write)
    large = wire.decoder().decode_bulk(os.pread(packet.descriptors[1], frames[3][1], 0))
    assert large == [Kind.CALL, 3, "x" * 100_000, 1, 9]
    one.end()
    shelf.close()


def test_what_goes_to_a_successor_that_takes_traces_keeps_them() -> None:
    """It is the same frame."""
    one, first, successor = session(), session(), session()
    bind(one, first)
    one.call("asked", trace=TRACE)
    cut(one, first)
    learned, told = bind(one, successor)
    assert (learned, told) == ([], [[Kind.CALL, 1, "asked", 0, TRACE]])


# -- paths -------------------------------------------------------------------------------------------------------------


async def test_handler_runs_in_the_trace_of_its_message(kind: str) -> None:
    """One worker handles message after message: each in its own trace or in none, whatever became of the one before."""
    seen: list[tuple[Any, str | None, str | None]] = []

    async def handle(message: Message) -> str | None:
        seen.append((message.body, message.trace, trace()))
        if message.body == "no":
            raise Rejected("refused")
        await trio.lowlevel.checkpoint()
        return trace()

    async with open_ends(kind) as (one, other), trio.open_nursery() as nursery:
        with tracing(OTHER):
            nursery.start_soon(other.serve, handle)  # which does not make it the trace of everything
        assert await one.call("none") is None
        with tracing(IDENT):
            assert await one.call("call") == IDENT
            with pytest.raises(Rejected):
                await one.call("no")
            with trio.fail_after(60):
                assert (await one.call_reply("reply")).body == IDENT
            await one.send("send")
            one.send_nowait("nowait")
            await one.send_many(["many", "more"])
        assert await one.call("after") is None
        nursery.cancel_scope.cancel()
    traced = [(body, IDENT, IDENT) for body in ("call", "no", "reply", "send", "nowait", "many", "more")]
    assert sorted(seen) == sorted([("none", None, None), *traced, ("after", None, None)])


async def test_handlers_side_by_side_do_not_mix_traces(kind: str) -> None:
    """While they wait for each other."""
    idents = [new_trace() for _ in range(20)]
    arrived = 0
    all_there = trio.Event()

    async def handle(message: Message) -> str | None:
        nonlocal arrived
        arrived += 1
        if arrived == len(idents):
            all_there.set()
        await all_there.wait()
        return trace()

    answers: dict[str, str] = {}

    async def call(path: Any, ident: str) -> None:
        with tracing(ident):
            answers[ident] = await path.call(None)

    async with open_ends(kind, len(idents)) as (one, other), trio.open_nursery() as nursery:
        nursery.start_soon(other.serve, handle)
        async with trio.open_nursery() as calling:
            for ident in idents:
                calling.start_soon(call, one, ident)
        nursery.cancel_scope.cancel()
    assert answers == {ident: ident for ident in idents}


async def test_trace_goes_through_machine_after_machine(kind: str) -> None:
    """A handler that calls on: nobody has to hand it over."""

    async def last(message: Message) -> str | None:
        return message.trace

    async with (
        open_ends(kind) as (caller, middle),
        open_ends(kind) as (onward, end),
        trio.open_nursery() as nursery,
    ):

        async def pass_on(message: Message) -> Any:
            async def ask(*, task_status: trio.TaskStatus[Any]) -> None:
                task_status.started(await onward.call(message.body))

            return await nursery.start(ask)

        nursery.start_soon(middle.serve, pass_on)
        nursery.start_soon(end.serve, last)
        with tracing(IDENT):
            assert await caller.call("x") == IDENT
        assert await caller.call("x") is None
        nursery.cancel_scope.cancel()


async def test_large_messages_and_drafts_have_traces(kind: str) -> None:
    """Text, bytes, and bodies that were made in place, with a deadline and descriptors and without; again and again."""

    async def handle(message: Message) -> list[Any]:
        close_all(message.descriptors)
        return [len(message.body), message.trace, trace(), message.deadline < float("inf")]

    async with open_ends(kind) as (one, other), trio.open_nursery() as nursery:
        nursery.start_soon(other.serve, handle)
        for seconds in (float("inf"), 100):
            for _ in range(4):  # the same memory is used again, and mapped
                for body in ("x" * 100_000, b"x" * 100_000, one.draft(200_000), b"x" * 5000):
                    scope = trio.CancelScope(deadline=trio.current_time() + seconds, shield=True)
                    with scope, tracing(IDENT):
                        expected = [len(body), IDENT, IDENT, seconds == 100]
                        assert await one.call(body, descriptors=(0,)) == expected
                    assert (await one.call(b"x" * 100_000))[1:3] == [None, None]
        nursery.cancel_scope.cancel()


async def test_iterated_messages_tell_their_trace(kind: str) -> None:
    """Who takes messages one by one is in no trace unless it says so."""
    async with open_ends(kind) as (one, other), trio.open_nursery() as nursery:
        with tracing(IDENT):
            nursery.start_soon(one.call, "asked")
        message = await other.receive()
        assert (message.trace, trace()) == (IDENT, None)
        with tracing(message.trace):
            assert trace() == IDENT
        await message.reply()


async def test_handlers_see_other_variables_as_before(kind: str) -> None:
    """The context of a handler is that in which it was asked to serve, but for the trace."""
    who: contextvars.ContextVar[str] = contextvars.ContextVar("who", default="nobody")

    async def handle(message: Message) -> list[str | None]:
        return [who.get(), trace()]

    async with open_ends(kind) as (one, other), trio.open_nursery() as nursery:
        who.set("server")
        nursery.start_soon(other.serve, handle)
        who.set("caller")
        with tracing(IDENT):
            assert await one.call() == ["server", IDENT]
        nursery.cancel_scope.cancel()
