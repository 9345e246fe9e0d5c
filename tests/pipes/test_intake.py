"""Who reads a path: a task that waits leads, others follow, and somebody always reads what comes."""

import contextlib
import contextvars
import gc
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing
from tests.leaks import assert_none_left, descriptors, few_left
from tests.pipes import ends
from tests.pipes.test_path_findings import facing_raw, no_other, until_frame
from tests.pipes.test_path_hostile import hello, make_pair, next_frames

from retinue.pipes import (
    Message,
    Path,
    PathClosed,
    PathSevered,
    Rejected,
    SocketTransport,
    Transport,
    open_path,
    socket_pair,
    wire,
)
from retinue.pipes.wire import Kind

Led = tuple[Path, Transport]


pytestmark = pytest.mark.usefixtures("no_descriptor_leaks")


async def until_call(transport: Transport, number: int) -> None:
    """Read up to the packet with this call."""
    while [Kind.CALL, number] not in [frame[:2] for frame in await next_frames(transport)]:
        pass


@asynccontextmanager
async def vacant_path(**options: Any) -> AsyncIterator[Led]:
    """A path whose next call leads, and the bare transport of its peer; call 1 has been answered."""
    async with facing_raw("socket", **options) as (path, peer):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(path.call, "room")
            await until_call(peer, 1)
            peer.send(wire.encode([Kind.REPLY, 1, None]))
        assert path.vacant
        yield path, peer


async def echo(message: Message) -> Any:
    return message.body


class Caller:
    """Calls that were begun one after the other, and how each has ended."""

    def __init__(self, path: Path, nursery: trio.Nursery) -> None:
        self.ended: dict[Any, Any] = {}
        self._path = path
        self._nursery = nursery

    async def begin(self, body: Any) -> trio.CancelScope:
        """Have a task call; returns when it waits, with the scope around the call."""
        scope = trio.CancelScope()
        self._nursery.start_soon(self._call, body, scope)
        await trio.testing.wait_all_tasks_blocked()
        return scope

    async def _call(self, body: Any, scope: trio.CancelScope) -> None:
        with scope:
            try:
                self.ended[body] = await self._path.call(body)
            except (Rejected, PathClosed, PathSevered) as exc:
                self.ended[body] = exc
        if scope.cancelled_caught:
            self.ended[body] = "cancelled"


async def test_leader_is_cancelled_while_others_wait() -> None:
    """Its call is withdrawn, and the others get their answers."""
    async with vacant_path() as (path, peer), trio.open_nursery() as nursery:
        calls = Caller(path, nursery)
        scope = await calls.begin("leader")
        assert not path.vacant
        await calls.begin("one")
        await calls.begin("two")
        scope.cancel()
        await until_frame(peer, [Kind.PURGE, 2])
        peer.send(wire.encode([Kind.REJECT, 2, "purged", "", None]))
        await trio.testing.wait_all_tasks_blocked()
        assert path.session.outstanding == (2, 0)
        peer.send(wire.encode([Kind.REPLY, 3, 1]) + wire.encode([Kind.REPLY, 4, 2]))
    assert calls.ended == {"leader": "cancelled", "one": 1, "two": 2}


async def test_answers_of_others_come_before_and_with_that_of_the_leader() -> None:
    """The leader hands them out and goes on until it has its own."""
    async with vacant_path() as (path, peer), trio.open_nursery() as nursery:
        calls = Caller(path, nursery)
        for body in ("leader", "one", "two", "last"):
            await calls.begin(body)
        peer.send(wire.encode([Kind.REPLY, 3, 1]))
        await trio.testing.wait_all_tasks_blocked()
        assert calls.ended == {"one": 1}
        assert not path.vacant
        peer.send(wire.encode([Kind.REPLY, 4, 2]) + wire.encode([Kind.REJECT, 2, "no", "", None]))
        await trio.testing.wait_all_tasks_blocked()
        assert calls.ended["two"] == 2
        assert isinstance(calls.ended["leader"], Rejected)
        peer.send(wire.encode([Kind.REPLY, 5, 3]))  # nobody leads
    assert calls.ended["last"] == 3


async def test_what_comes_while_nobody_leads_is_read() -> None:
    """Nobody waits for it, and it was promised that it is there."""
    async with vacant_path() as (path, peer):
        peer.send(wire.encode([Kind.SEND, 1, "unasked"]))
        await trio.testing.wait_all_tasks_blocked()
        assert path.pending == 1
        peer.send(wire.encode([Kind.SEVER, "maintenance", ""]))
        await path.wait_severed()


async def test_pump_stays_where_others_rarely_lead() -> None:
    """Each time it was called back in vain it waits for more of them before it makes room again."""
    async with vacant_path() as (path, peer), trio.open_nursery() as nursery:
        calls = Caller(path, nursery)
        peer.send(wire.encode([Kind.SEND, 1, None]))
        await trio.testing.wait_all_tasks_blocked()
        for number, vacant in ((2, False), (3, True)):
            await calls.begin(number)
            peer.send(wire.encode([Kind.REPLY, number, None]))
            await trio.testing.wait_all_tasks_blocked()
            assert path.vacant is vacant


async def test_leader_that_is_cancelled_for_nothing() -> None:
    """A scope that was cancelled before the call withdraws it as well, and the path goes on."""
    async with vacant_path() as (path, peer), trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:
            scope.cancel()
            await path.call("late")
        assert scope.cancelled_caught
        assert path.vacant
        calls = Caller(path, nursery)
        await calls.begin("next")
        peer.send(wire.encode([Kind.REPLY, 3, "answer"]))
    assert calls.ended == {"next": "answer"}


@pytest.mark.parametrize("here", [True, False], ids=["here", "there"])
async def test_path_ends_under_a_leader(here: bool) -> None:
    """Leader and followers learn why, whichever end it was."""
    async with vacant_path() as (path, peer), trio.open_nursery() as nursery:
        calls = Caller(path, nursery)
        await calls.begin("leader")
        await calls.begin("follower")
        if here:
            path.sever("enough")
        else:
            peer.send(wire.encode([Kind.SEVER, "enough", ""]))
        await path.wait_severed()
    for each in calls.ended.values():
        assert isinstance(each, PathClosed if here else PathSevered)
    assert len(calls.ended) == 2


@pytest.mark.parametrize("leads", [True, False])
@pytest.mark.parametrize("keeps", [True, False])
async def test_transport_is_closed_by_others(leads: bool, keeps: bool) -> None:
    """It is the path's to close; who does it nevertheless ends the path, and no other that gets its number."""
    options = {"rebind": no_other} if keeps else {}
    async with vacant_path(**options) as (path, _), trio.open_nursery() as nursery:
        calls = Caller(path, nursery)
        if leads:
            await calls.begin("leader")
        number = path._transport.fileno()  # type: ignore[attr-defined]  # of a socket
        path._transport.close()
        left, right = socket_pair()
        assert left.fileno() == number
        await calls.begin("next")
        assert [type(each) for each in calls.ended.values()] == [PathClosed] * (1 + leads)
        assert isinstance(path.severed, PathClosed)
        left.close()
        right.close()


async def test_peer_breaks_a_rule_under_a_leader() -> None:
    """The path ends as it does when the pump finds it."""
    async with vacant_path() as (path, peer), trio.open_nursery() as nursery:
        calls = Caller(path, nursery)
        await calls.begin("leader")
        peer.send(b"\xc1")
        await path.wait_severed()
    assert path.broken_rule is not None
    assert isinstance(calls.ended["leader"], PathSevered)


async def test_descriptor_is_lost_under_a_leader() -> None:
    """The pump gets another one; the leader waits there for the answer, and somebody can lead again."""
    following, successor = make_pair("socket")

    async def rebind(_: Path) -> Transport:
        return following

    async with vacant_path(rebind=rebind) as (path, peer), trio.open_nursery() as nursery:
        calls = Caller(path, nursery)
        await calls.begin("leader")
        await calls.begin("follower")
        peer.close()
        successor.send(wire.encode(ends.hello()))
        await until_call(successor, 3)
        number = 3
        while not path.vacant:
            number += 1
            await calls.begin(number)
            successor.send(wire.encode([Kind.REPLY, number, number]))
            await trio.testing.wait_all_tasks_blocked()
        number += 1
        await calls.begin("new leader")
        assert not path.vacant
        successor.send(b"".join(wire.encode([Kind.REPLY, ident, ident]) for ident in (number, 3, 2)))
        await trio.testing.wait_all_tasks_blocked()
        assert (calls.ended["leader"], calls.ended["follower"], calls.ended["new leader"]) == (2, 3, number)
        path.sever()
    successor.close()


async def test_handler_that_waits_hands_reading_over() -> None:
    """A worker leads while it has nothing to do, and not while its handler waits."""
    go = trio.Event()

    async def handler(message: Message) -> Any:
        if message.body == "wait":
            await go.wait()
        return message.body

    async with vacant_path() as (path, peer), trio.open_nursery() as nursery:
        nursery.start_soon(path.serve, handler)
        await trio.testing.wait_all_tasks_blocked()
        assert not path.vacant
        for number, body in enumerate(("at once", "wait", "again"), 1):
            peer.send(wire.encode([Kind.CALL, number, body]))
            if body != "wait":
                await until_frame(peer, [Kind.REPLY, number, body])
            await trio.testing.wait_all_tasks_blocked()
        peer.send(wire.encode([Kind.CALL, 4, "wait"]) + wire.encode([Kind.PURGE, 4]))
        await until_frame(peer, [Kind.REJECT, 4, "purged", "", None])
        go.set()
        await until_frame(peer, [Kind.REPLY, 2, "wait"])
        nursery.cancel_scope.cancel()


async def test_serving_is_cancelled_while_a_worker_leads() -> None:
    """The path lives on and is read."""
    async with vacant_path() as (path, peer):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(path.serve, echo)
            await trio.testing.wait_all_tasks_blocked()
            assert not path.vacant
            nursery.cancel_scope.cancel()
        peer.send(wire.encode([Kind.CALL, 1, None]))
        assert (await path.receive()).wants_reply


async def test_receiver_leads() -> None:
    """One that waits for a message gets it, and another that waits with it the next."""
    got: list[Any] = []

    async def take(path: Path) -> None:
        got.append((await path.receive()).body)

    async with vacant_path() as (path, peer), trio.open_nursery() as nursery:
        nursery.start_soon(take, path)
        nursery.start_soon(take, path)
        await trio.testing.wait_all_tasks_blocked()
        assert not path.vacant
        peer.send(wire.encode([Kind.SEND, 1, "a"]) + wire.encode([Kind.SEND, 2, "b"]))
    assert sorted(got) == ["a", "b"]


async def test_sender_that_waits_leads() -> None:
    """It is told that its message was received."""
    async with vacant_path() as (path, peer), trio.open_nursery() as nursery:
        nursery.start_soon(path.send, "news")
        await trio.testing.wait_all_tasks_blocked()
        assert not path.vacant
        peer.send(wire.encode([Kind.ACK, 2, 2]))
    assert path.session.outstanding == (0, 0)


class Gathering(SocketTransport):
    """Takes packets in pairs from the socket: the second is there though nothing is in the socket any more."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        self._second: Any = None

    def receive(self) -> Any:
        if self._second is not None:
            second, self._second = self._second, None
            return second
        packet, descriptors = super().receive()
        first = bytes(packet), descriptors
        with contextlib.suppress(BlockingIOError):
            packet, descriptors = super().receive()
            self._second = bytes(packet), descriptors
        return first

    async def wait_readable(self) -> None:
        if self._second is None:
            await super().wait_readable()
        else:
            await trio.lowlevel.checkpoint()


async def test_transport_that_waits_in_its_own_way_is_asked() -> None:
    """Who waits for the socket instead would not see what the transport holds."""
    left, right = socket_pair()
    with right, trio.fail_after(10):
        async with open_path(Gathering(left)) as path, trio.open_nursery() as nursery:
            right.send(hello())
            await path.wait_open()
            calls = Caller(path, nursery)
            for number in (1, 3):
                await calls.begin(number)
                await calls.begin(number + 1)
                right.send(wire.encode([Kind.REPLY, number + 1, None]))
                right.send(wire.encode([Kind.REPLY, number, None]))
                await trio.testing.wait_all_tasks_blocked()
                assert len(calls.ended) == number + 1


async def test_two_paths_in_one_task() -> None:
    """It leads now the one, now the other."""
    pairs = make_pair("socket"), make_pair("socket")
    with trio.fail_after(10):
        async with (
            open_path(pairs[0][0]) as a,
            open_path(pairs[0][1]) as b,
            open_path(pairs[1][0]) as c,
            open_path(pairs[1][1]) as d,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(b.serve, echo)
            nursery.start_soon(d.serve, echo)
            for number in range(100):
                assert await a.call(number) == number
                assert await c.call(-number) == -number
            assert a.vacant
            assert c.vacant
            nursery.cancel_scope.cancel()


async def test_call_inside_a_handler_of_the_same_path() -> None:
    """Whoever leads at either end hands out the messages of the other tasks."""
    one, other = make_pair("socket")
    with trio.fail_after(10):
        async with open_path(one) as a, open_path(other) as b, trio.open_nursery() as nursery:

            async def ask_back(message: Message) -> Any:
                return [message.body, await b.call(message.body)]

            nursery.start_soon(b.serve, ask_back)
            nursery.start_soon(a.serve, echo)
            for number in range(100):
                assert await a.call(number) == [number, number]

            async def many(first: int) -> None:
                for number in range(first, first + 50):
                    assert await a.call(number) == [number, number]

            async with trio.open_nursery() as callers:
                for first in range(10):
                    callers.start_soon(many, first)
            nursery.cancel_scope.cancel()


_who: contextvars.ContextVar[str] = contextvars.ContextVar("who", default="nobody")


async def test_handler_has_the_context_of_who_serves() -> None:
    """Also when the message was read by a caller that is somebody else."""
    seen: list[str] = []

    async def handler(_: Message) -> None:
        seen.append(_who.get())
        await trio.lowlevel.checkpoint()

    async with vacant_path() as (path, peer), trio.open_nursery() as nursery:
        calls = Caller(path, nursery)
        token = _who.set("caller")
        await calls.begin("leader")
        _who.reset(token)
        nursery.start_soon(path.serve, handler)
        await trio.testing.wait_all_tasks_blocked()
        peer.send(b"".join(wire.encode([Kind.SEND, number, None]) for number in (1, 2, 3)))
        await trio.testing.wait_all_tasks_blocked()
        assert seen == ["nobody"] * 3
        peer.send(wire.encode([Kind.REPLY, 2, None]))
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()


class Breaking(Path):
    """A path with an error of its own in it."""

    def _on_packet_done(self) -> None:
        if self.session.outstanding[0] == 0 and self.session.last_sent == 3:
            raise RuntimeError("broken")


async def test_error_in_a_leader_is_that_of_the_pump() -> None:
    """Who runs the path is told what was wrong, not who happened to read."""
    ours, peer = make_pair("socket")
    ended: dict[Any, Any] = {}

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            path = Breaking(ours)
            await nursery.start(path.run)
            peer.send(hello())
            calls = Caller(path, nursery)
            calls.ended = ended
            await calls.begin(1)
            peer.send(wire.encode([Kind.REPLY, 1, "one"]))
            await trio.testing.wait_all_tasks_blocked()
            assert path.vacant
            await calls.begin(2)
            await calls.begin(3)
            peer.send(wire.encode([Kind.REPLY, 3, "three"]) + wire.encode([Kind.REPLY, 2, "two"]))

    with trio.fail_after(10), pytest.raises(ExceptionGroup) as caught:
        await main()
    peer.close()
    assert [str(each) for each in caught.value.exceptions] == ["broken"]
    assert ended == {1: "one", 2: "two", 3: "three"}


@pytest.mark.parametrize("how", ["at its end", "by an error"])
def test_nothing_is_left_of_a_run(how: str) -> None:
    """A process may fork afterwards: what watches would be shared with the child. Nothing need be collected first."""

    async def main() -> None:
        async with vacant_path() as (path, _):
            assert path.vacant
            if how == "by an error":
                raise KeyError(how)

    gc.disable()
    try:
        before = descriptors()
        for _ in range(2):
            with contextlib.suppress(KeyError):
                trio.run(main)
            assert_none_left(before)
    finally:
        gc.enable()


async def test_without_room_for_a_descriptor_the_pump_reads() -> None:
    """What saves time is not worth a path."""
    async with facing_raw("socket") as (path, peer), trio.open_nursery() as nursery:
        calls = Caller(path, nursery)
        with few_left():
            await calls.begin("call")
            peer.send(wire.encode([Kind.REPLY, 1, "answer"]))
            await trio.testing.wait_all_tasks_blocked()
        assert not path.vacant
    assert calls.ended == {"call": "answer"}
