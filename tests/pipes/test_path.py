"""The trio face, over both transports."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing
from tests.leaks import assert_none_left, descriptors

from retinue.pipes import (
    AccessDenied,
    LimitExceeded,
    Message,
    Path,
    PathClosed,
    PathSevered,
    PathStream,
    Rejected,
    SocketTransport,
    Transport,
    WrongMode,
    memory_pair,
    open_path,
    socket_pair,
    wire,
)

Ends = tuple[Path, Path]


def make_pair(kind: str) -> tuple[Transport, Transport]:
    if kind == "memory":
        return memory_pair()
    left, right = socket_pair()
    return SocketTransport(left), SocketTransport(right)


@asynccontextmanager
async def open_ends(kind: str, limit: int = 4) -> AsyncIterator[Ends]:
    one, other = make_pair(kind)
    with trio.fail_after(20):
        async with open_path(one, name="one", limit=limit) as a, open_path(other, name="other", limit=limit) as b:
            yield a, b


@pytest.fixture(params=["memory", "socket"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def echo(message: Message) -> Any:
    return message.body


async def test_call_returns_the_reply(kind: str) -> None:
    """A call completes with what the peer's handler returned, for every kind of value."""
    values = [None, True, -1, 2**63, 1.5, "ä", b"\x00", [1, [2]], {"k": {"n": None}}]
    async with open_ends(kind) as (a, b), trio.open_nursery() as nursery:
        nursery.start_soon(b.serve, echo)
        for value in values:
            assert await a.call(value) == value
        nursery.cancel_scope.cancel()


async def test_calls_go_both_ways_at_once(kind: str) -> None:
    """Each end may call while it serves."""
    async with open_ends(kind) as (a, b), trio.open_nursery() as nursery:

        async def ask_back(message: Message) -> Any:
            return [message.body, await b.call(message.body)]

        nursery.start_soon(b.serve, ask_back)
        nursery.start_soon(a.serve, echo)
        assert await a.call(7) == [7, 7]
        nursery.cancel_scope.cancel()


async def test_send_completes_when_the_program_has_received_it(kind: str) -> None:
    """A one-way message is done at receive, not when it lies in a buffer."""
    async with open_ends(kind) as (a, b), trio.open_nursery() as nursery:
        done = trio.Event()

        async def sender() -> None:
            await a.send("x")
            done.set()

        nursery.start_soon(sender)
        while not b._inbox:
            await trio.lowlevel.checkpoint()
        assert not done.is_set()
        message = await b.receive()
        assert (message.body, message.wants_reply) == ("x", False)
        await done.wait()


async def test_rejection_has_code_text_and_detail(kind: str) -> None:
    """A refusal arrives with all its fields; the code denied is an AccessDenied; the path goes on."""

    async def refuse(message: Message) -> Any:
        if message.body == "policy":
            raise AccessDenied("no edge", {"line": 3})
        raise Rejected("busy", "come again", [1])

    async with open_ends(kind) as (a, b), trio.open_nursery() as nursery:
        nursery.start_soon(b.serve, refuse)
        with pytest.raises(Rejected) as rejected:
            await a.call("x")
        assert (rejected.value.code, rejected.value.text, rejected.value.detail) == ("busy", "come again", [1])
        with pytest.raises(AccessDenied) as denied:
            await a.call("policy")
        assert denied.value.detail == {"line": 3}
        assert a.severed is None
        nursery.cancel_scope.cancel()


async def test_limit_holds_callers_back(kind: str) -> None:
    """Never more than the peer's limit of messages are outstanding; the rest wait their turn and all are answered."""
    async with open_ends(kind, limit=3) as (a, b), trio.open_nursery() as nursery:
        running = peak = 0
        answers: list[int] = []

        async def slow(message: Message) -> Any:
            nonlocal running, peak
            running += 1
            peak = max(peak, running)
            for _ in range(20):
                await trio.lowlevel.checkpoint()
            running -= 1
            return message.body

        async def caller(number: int) -> None:
            answers.append(await a.call(number))

        nursery.start_soon(b.serve, slow)
        async with trio.open_nursery() as callers:
            for number in range(20):
                callers.start_soon(caller, number)
        assert sorted(answers) == list(range(20))
        assert peak == 3
        nursery.cancel_scope.cancel()


async def test_cancelled_call_cancels_the_handler(kind: str) -> None:
    """Structured concurrency crosses the path: a withdrawn call ends its handler and frees its place."""
    async with open_ends(kind, limit=1) as (a, b), trio.open_nursery() as nursery:
        started, cancelled = trio.Event(), trio.Event()

        async def handler(message: Message) -> Any:
            if message.body == "quick":
                return "answer"
            started.set()
            try:
                await trio.sleep_forever()
            finally:
                cancelled.set()

        nursery.start_soon(b.serve, handler)
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as inner:
                inner.start_soon(a.call, "slow")
                await started.wait()
                scope.cancel()
        await cancelled.wait()
        assert await a.call("quick") == "answer"
        assert a.session.outstanding == (0, 0)
        nursery.cancel_scope.cancel()


async def test_message_received_by_hand_learns_of_the_purge(kind: str) -> None:
    """Without serve the program sees purged, and its late answer goes nowhere without harm."""
    async with open_ends(kind) as (a, b), trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as inner:
                inner.start_soon(a.call, "x")
                message = await b.receive()
                scope.cancel()
        await message.purged.wait()
        await message.reply("late")
        nursery.start_soon(b.serve, echo)
        assert await a.call(1) == 1
        assert b.session.outstanding == (0, 0)
        nursery.cancel_scope.cancel()


async def test_sever_tells_the_other_end_why(kind: str) -> None:
    """Everything outstanding at both ends is over, and the reason arrives."""
    async with open_ends(kind) as (a, b), trio.open_nursery() as nursery:
        outcome: list[BaseException] = []

        async def caller() -> None:
            with pytest.raises(PathSevered) as caught:
                await a.call("x")
            outcome.append(caught.value)

        nursery.start_soon(caller)
        message = await b.receive()
        b.sever("maintenance", "back at nine")
        await a.wait_severed()
        await message.purged.wait()
        with pytest.raises(PathClosed):
            await b.receive()
        with pytest.raises(PathSevered) as caught:
            await a.send(1)
        assert (caught.value.code, caught.value.text) == ("maintenance", "back at nine")
    assert str(outcome[0]) == "the path one was severed (maintenance): back at nine"


async def test_lost_descriptor_is_told_at_once(kind: str) -> None:
    """An end that vanishes without a word is a path severed with the code lost."""
    one, other = make_pair(kind)
    with trio.fail_after(20):
        async with open_path(one) as a, trio.open_nursery() as nursery:
            other.close()
            await a.wait_severed()
            assert isinstance(a.severed, PathSevered)
            assert a.severed.code == "lost"
            nursery.cancel_scope.cancel()


async def test_a_large_message_travels_whole(kind: str) -> None:
    """What is larger than a packet goes by memfd, in both directions; none is left open when the path has ended."""
    before = descriptors()
    body = os.urandom(3_000_000)
    async with open_ends(kind) as (a, b), trio.open_nursery() as nursery:
        nursery.start_soon(b.serve, echo)
        for _ in range(3):
            assert await a.call(body) == body
        nursery.cancel_scope.cancel()
    assert_none_left(before)


async def test_messages_about_the_size_of_a_packet_arrive(kind: str) -> None:
    """The largest that goes into a packet, the smallest that does not, and every one between them."""
    head = len(wire.encode([wire.Kind.CALL, 1, bytes(wire.MAX_PACKET)])) - wire.MAX_PACKET
    async with open_ends(kind) as (a, b), trio.open_nursery() as nursery:
        nursery.start_soon(b.serve, echo)
        for size in (*range(wire.MAX_PACKET - head - 2, wire.MAX_PACKET + 3), *range(69_300, 69_632, 13)):
            for body in (b"x" * size, "x" * size):
                assert await a.call(body) == body
        nursery.cancel_scope.cancel()


async def test_descriptors_travel_with_a_message(kind: str) -> None:
    """A message and its reply may carry descriptors; what a program does not take is closed."""
    reader, writer = os.pipe()

    async def use(message: Message) -> Any:
        (descriptor,) = message.descriptors
        os.write(descriptor, b"hello")
        os.close(descriptor)
        await message.reply("done", descriptors=(reader,))

    async with open_ends(kind) as (a, b), trio.open_nursery() as nursery:
        nursery.start_soon(b.serve, use)
        reply = await a.call_reply("write", descriptors=(writer,))
        os.close(writer)
        (copy,) = reply.descriptors
        assert os.read(copy, 10) == b"hello"
        assert os.read(copy, 10) == b""  # no copy of the writing end is left anywhere
        os.close(copy)
        os.close(reader)
        nursery.cancel_scope.cancel()


async def test_limits_are_checked_when_sending(kind: str) -> None:
    """What the wire cannot carry is refused where it is passed, and nothing of it is sent."""
    async with open_ends(kind) as (a, b), trio.open_nursery() as nursery:
        nursery.start_soon(b.serve, echo)
        with pytest.raises(LimitExceeded, match="descriptors"):
            await a.call(1, descriptors=(0,) * (wire.MAX_DESCRIPTORS + 1))
        with pytest.raises(TypeError):
            await a.call(object())
        assert await a.call("still there") == "still there"
        nursery.cancel_scope.cancel()


async def test_failing_handler_refuses_and_ends_serve(kind: str) -> None:
    """A bug in a handler is told to the caller as a refusal and to the server as the bug itself."""

    async def broken(message: Message) -> Any:
        raise KeyError("x")

    async with open_ends(kind) as (a, b), trio.open_nursery() as nursery:

        async def server() -> None:
            with pytest.raises(ExceptionGroup) as caught:
                await b.serve(broken)
            assert caught.group_contains(KeyError)

        nursery.start_soon(server)
        with pytest.raises(Rejected, match="KeyError"):
            await a.call("x")


async def test_a_crowd_of_one_way_messages_arrives_in_order(kind: str) -> None:
    """Back-pressure of limit and socket loses and reorders nothing."""
    got: list[int] = []
    async with open_ends(kind, limit=500) as (a, b), trio.open_nursery() as nursery:

        async def collect() -> None:
            async for message in b:
                got.append(message.body[0])

        async with trio.open_nursery() as senders:
            nursery.start_soon(collect)
            for number in range(500):
                senders.start_soon(a.send, [number, b"x" * 5000])
                await trio.lowlevel.checkpoint()
        a.sever()
    assert got == list(range(500))


async def test_hostile_packet_severs_and_nothing_else(kind: str) -> None:
    """A malformed peer gets its path severed with the rule it broke; the reader lives."""
    one, other = make_pair(kind)
    with trio.fail_after(20):
        async with open_path(one) as a:
            other.send(b"\xc1garbage")
            await a.wait_severed()
            assert isinstance(a.severed, PathSevered)
            assert a.severed.code == "violation"
    other.close()


# -- the stream -----------------------------------------------------------------------------------------------------


async def stream_pair(kind: str, nursery: trio.Nursery) -> tuple[PathStream, PathStream]:
    one, other = make_pair(kind)
    a, b = Path(one, name="a"), Path(other, name="b")
    await nursery.start(a.run)
    await nursery.start(b.run)
    while not (a.session.peer_limit and b.session.peer_limit):
        await trio.lowlevel.checkpoint()
    return a.stream(), b.stream()


async def test_stream_passes_trios_conformance_suite(kind: str) -> None:
    """A path as a stream behaves as trio's own streams do."""
    async with trio.open_nursery() as nursery:

        async def make() -> tuple[PathStream, PathStream]:
            return await stream_pair(kind, nursery)

        async def clogged() -> tuple[PathStream, PathStream]:
            a, b = await stream_pair(kind, nursery)
            for stream in (a, b):
                await stream.send_all(b"x" * stream.path.session.window)
            return a, b

        with trio.fail_after(4):
            await trio.testing.check_two_way_stream(make, clogged)
            await trio.testing.check_half_closeable_stream(make, clogged)
        nursery.cancel_scope.cancel()


async def test_stream_carries_megabytes_both_ways(kind: str) -> None:
    """Window and credit neither lose a byte nor stop."""
    data = os.urandom(2_500_000)

    async def pour(stream: PathStream) -> None:
        await stream.send_all(data)
        await stream.send_eof()

    async def drink(stream: PathStream) -> None:
        got = bytearray()
        async for chunk in stream:
            got += chunk
        assert got == data

    async with trio.open_nursery() as outer:
        with trio.fail_after(30):
            a, b = await stream_pair(kind, outer)
            async with trio.open_nursery() as nursery:
                for stream in (a, b):
                    nursery.start_soon(pour, stream)
                    nursery.start_soon(drink, stream)
        outer.cancel_scope.cancel()


async def test_stream_refuses_messages_and_outstanding_ones(kind: str) -> None:
    """One path is one thing at a time."""
    async with open_ends(kind) as (a, b), trio.open_nursery() as nursery:
        nursery.start_soon(a.call, "waits")
        await b.receive()
        with pytest.raises(WrongMode):
            b.stream()
        nursery.cancel_scope.cancel()
    async with open_ends(kind) as (a, b):
        while not a.session.peer_limit:
            await trio.lowlevel.checkpoint()
        a.stream()
        with pytest.raises(WrongMode):
            await a.call("x")


async def test_aborted_stream_is_an_error_at_the_other_end(kind: str) -> None:
    """A reset is not an end of file."""
    async with trio.open_nursery() as nursery:
        a, b = await stream_pair(kind, nursery)
        await a.send_all(b"some")
        a.abort("client vanished")
        with trio.fail_after(5):
            assert await b.receive_some() == b"some"
            with pytest.raises(trio.BrokenResourceError):
                await b.receive_some()
