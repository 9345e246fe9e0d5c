"""What a review of the trio face has found, and stays found: writing, waiting, and the death of the other end."""

import errno
import os
import stat
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
import trio
import trio.testing
from tests.pipes.test_path_hostile import HELLO, all_frames, hello, make_pair, next_frames, null_device

from retinue.pipes import Message, Path, PathSevered, Transport, WrongMode, link, open_path, wire
from retinue.pipes.states import State
from retinue.pipes.wire import Kind

pytestmark = pytest.mark.usefixtures("no_descriptor_leaks")


@pytest.fixture(params=["memory", "socket"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def no_other(_: Path) -> Transport:
    """A rebind that never gets another transport."""
    raise PathSevered("gone", "there is no other")


@asynccontextmanager
async def facing_raw(kind: str, greeting: bytes = HELLO, **options: Any) -> AsyncIterator[tuple[Path, Transport]]:
    """A path that was greeted, and the bare transport of its peer."""
    ours, theirs = make_pair(kind)
    with trio.fail_after(10):
        try:
            async with open_path(ours, name="ours", **options) as path:
                theirs.send(greeting)
                while path.session.state is State.OPENING:
                    await trio.lowlevel.checkpoint()
                yield path, theirs
        finally:
            theirs.close()


@asynccontextmanager
async def facing_path(kind: str, limit: int = 64) -> AsyncIterator[tuple[Path, Path]]:
    """Two paths that have greeted each other."""
    ours, theirs = make_pair(kind)
    with trio.fail_after(10):
        async with open_path(ours, name="a") as a, open_path(theirs, name="b", limit=limit) as b:
            while a.session.state is State.OPENING or b.session.state is State.OPENING:
                await trio.lowlevel.checkpoint()
            yield a, b


async def until_frame(transport: Transport, wanted: Sequence[Any]) -> None:
    """Read up to the packet with this frame."""
    while list(wanted) not in await next_frames(transport):
        pass


# -- a packet that was refused -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rebind", [None, no_other], ids=["plain", "rebind"])
async def test_seen_of_a_packet_that_was_refused_is_a_violation(kind: str, rebind: Any) -> None:
    """Else its descriptors were closed before it is written, and their numbers would mean something else by then."""

    async def answer(message: Message) -> None:
        reader, writer = os.pipe()
        os.close(writer)
        try:
            await message.reply(b"x" * 50_000, descriptors=(reader,))
        finally:
            os.close(reader)

    foreign: list[int] = []
    async with facing_raw(kind, rebind=rebind) as (path, peer), trio.open_nursery() as nursery:
        nursery.start_soon(path.serve, answer)
        calls = 0
        while not path._congested:
            peer.send(wire.encode([Kind.SEEN, calls]) + wire.encode([Kind.CALL, calls + 1, None]))
            calls += 1
            await trio.testing.wait_all_tasks_blocked()
        assert path._packet is not None
        (refused,) = path._packet.descriptors
        peer.send(wire.encode([Kind.SEEN, calls]))
        await trio.testing.wait_all_tasks_blocked()
        while not foreign or foreign[-1] < refused:
            foreign.append(os.open(os.devnull, os.O_RDONLY))
        with suppress(BlockingIOError):
            while received := peer.receive()[1]:
                while received:
                    assert stat.S_ISFIFO(os.fstat(received[-1]).st_mode)
                    os.close(received.pop())
                await trio.testing.wait_all_tasks_blocked()
        for each in foreign:
            os.close(each)
        assert isinstance(path.severed, PathSevered)
        assert (path.severed.code, path.severed.text) == (
            "violation",
            f"SEEN of {calls} frames, written were {calls - 1}",
        )
        nursery.cancel_scope.cancel()


# -- a flush that ends the path ----------------------------------------------------------------------------------------


class Failing:
    """A transport over which the host carries nothing any more, once it is told so."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self.fails = False
        self.receive = transport.receive
        self.wait_readable = transport.wait_readable
        self.wait_writable = transport.wait_writable
        self.close = transport.close

    def send(self, packet: bytes, descriptors: Sequence[int] = ()) -> None:
        if self.fails:
            raise OSError(errno.ENOMEM, "no memory for it")
        self._transport.send(packet, descriptors)


@asynccontextmanager
async def failing(kind: str) -> AsyncIterator[Path]:
    """A path whose next write ends it."""
    ours, theirs = make_pair(kind)
    transport = Failing(ours)
    with trio.fail_after(5):
        async with open_path(transport) as path, open_path(theirs):
            while path.session.state is State.OPENING:
                await trio.lowlevel.checkpoint()
            transport.fails = True
            yield path


@pytest.mark.parametrize("cancelled", [False, True])
@pytest.mark.parametrize(
    "verb",
    [
        lambda path: path.call("x"),
        lambda path: path.call_reply("x"),
        lambda path: path.send("x"),
        lambda path: path.send_many(["x"]),
        lambda path: path.quiesce(),
    ],
    ids=["call", "call_reply", "send", "send_many", "quiesce"],
)
async def test_verb_whose_own_flush_ends_the_path_raises(
    kind: str, verb: Callable[[Path], Awaitable[Any]], cancelled: bool
) -> None:
    """Once, and the task that made it is not woken for what it has not waited for."""
    async with failing(kind) as path:
        raised = 0
        with trio.CancelScope() as scope:
            if cancelled:
                scope.cancel()
            with pytest.raises(PathSevered, match="no memory for it"):
                await verb(path)
            raised += 1
            for _ in range(3):
                await trio.lowlevel.checkpoint()
        assert scope.cancelled_caught is cancelled
        assert raised == 1
        assert path.session.outstanding[0] == 0


# -- byte streams ------------------------------------------------------------------------------------------------------

MANY = 6000  # more packets than a socket of any size holds, two megabytes for it and half a kilobyte for each


async def test_stream_of_small_chunks_to_a_slow_reader_is_no_violation(kind: str) -> None:
    """Bytes have their own bound; a reader that is slow and writes is still one that keeps to it."""
    async with facing_raw(kind, hello(8), limit=8) as (path, peer):
        peer.send(wire.encode([Kind.STREAM]))
        stream = path.stream()
        for _ in range(MANY):
            await stream.send_all(b"x")
        assert path.session.link.backlog > wire.most_unread(8)
        peer.send(wire.encode([Kind.DATA, b"hello"]))
        assert await stream.receive_some() == b"hello"
        assert path.severed is None
        got = b""
        while len(got) < MANY:
            got += b"".join(frame[1] for frame in await next_frames(peer) if frame[0] == Kind.DATA)
        assert got == b"x" * MANY


async def test_credit_for_a_slow_reader_is_one_frame(kind: str) -> None:
    """While nothing can be written it is gathered."""
    async with facing_raw(kind) as (path, peer):
        peer.send(wire.encode([Kind.STREAM]))
        stream = path.stream()
        for _ in range(MANY):
            await stream.send_all(b"x")
        assert path._congested
        taken = 0
        for _ in range(8):
            peer.send(wire.encode([Kind.DATA, b"y" * wire.MAX_CHUNK]))
            taken += len(await stream.receive_some())
            if taken == wire.STREAM_WINDOW:
                break
        assert path._congested
        credits: list[int] = []
        while not credits:
            credits = [frame[1] for frame in await next_frames(peer) if frame[0] == Kind.CREDIT]
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(BlockingIOError):
            peer.receive()
        assert credits == [taken]


async def test_turning_to_a_stream_tells_those_who_wait_for_room(kind: str) -> None:
    """There will be none any more, whichever end turned."""
    async with facing_path(kind) as (a, b), trio.open_nursery() as nursery:
        await b.quiesce()
        told = 0

        async def use(verb: Callable[[], Awaitable[Any]]) -> None:
            nonlocal told
            with pytest.raises(WrongMode):
                await verb()
            told += 1

        nursery.start_soon(use, a.call)
        nursery.start_soon(use, a.send)
        nursery.start_soon(use, lambda: a.send_many([1]))
        await trio.testing.wait_all_tasks_blocked()
        assert (a.held, told) == (True, 0)
        a.stream()
        await trio.testing.wait_all_tasks_blocked()
        assert told == 3
        assert a.severed is None


# -- who waits for the end of which message ----------------------------------------------------------------------------


async def test_send_many_leaves_the_end_of_other_messages_alone(kind: str) -> None:
    """Of none, of some while another is on its way, and of some between which another goes."""
    async with facing_path(kind, limit=4) as (a, b), trio.open_nursery() as nursery:
        release = trio.Event()
        done: list[str] = []

        async def handler(message: Message) -> None:
            if message.body == "slow":
                await release.wait()

        async def send() -> None:
            await a.send("slow")
            done.append("send")

        async def send_many(count: int) -> None:
            assert await a.send_many(["quick"] * count) == count
            done.append("send_many")

        nursery.start_soon(b.serve, handler)
        nursery.start_soon(send)
        await trio.testing.wait_all_tasks_blocked()
        for count in (0, 1, 20):
            await send_many(count)
        assert done == ["send_many"] * 3
        release.set()
        while len(done) < 4:
            await trio.lowlevel.checkpoint()
        assert done[-1] == "send"

        release = trio.Event()
        nursery.start_soon(send_many, 20)
        nursery.start_soon(send)
        await trio.testing.wait_all_tasks_blocked()
        release.set()
        while len(done) < 6:
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("by", ["serve", "loop"])
async def test_acknowledgement_does_not_wait_for_the_next_handler(kind: str, by: str) -> None:
    """Whoever sent a one-way message learns at once that it was received, whatever came behind it."""
    release = trio.Event()

    async def handler(message: Message) -> None:
        if message.wants_reply:
            await release.wait()
            await message.reply("late")

    async def loop(path: Path) -> None:
        async for message in path:
            await handler(message)

    async with facing_raw(kind) as (path, peer), trio.open_nursery() as nursery:
        if by == "serve":
            nursery.start_soon(path.serve, handler)
        else:
            nursery.start_soon(loop, path)
        await trio.testing.wait_all_tasks_blocked()
        peer.send(wire.encode([Kind.SEND, 1, None]) + wire.encode([Kind.CALL, 2, None]))
        await until_frame(peer, [Kind.ACK, 1, 1])
        release.set()
        await until_frame(peer, [Kind.REPLY, 2, "late"])
        nursery.cancel_scope.cancel()


SEND = wire.encode([Kind.SEND, 1, None])
SEVER = wire.encode([Kind.SEVER, "closed", ""])


@pytest.mark.parametrize("packets", [[SEND, SEVER], [SEND + SEVER]], ids=["begun", "not begun"])
async def test_serve_ends_though_the_last_handler_waits(kind: str, packets: list[bytes]) -> None:
    """The end of the path cancels it, also when it had to begin after the end."""
    happened = []

    async def handler(_: Message) -> None:
        happened.append("begun")
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            happened.append("cancelled")
            raise

    async with facing_raw(kind) as (path, peer), trio.open_nursery() as nursery:
        nursery.start_soon(path.serve, handler)
        for packet in packets:
            await trio.testing.wait_all_tasks_blocked()
            peer.send(packet)
    assert happened == ["begun", "cancelled"]


# -- a peer that reads and does not say so -----------------------------------------------------------------------------


def carrying(frames: list[list[Any]]) -> int:
    """How many of the frames brought a descriptor."""
    return sum(map(wire.descriptors_of, frames))


@pytest.mark.parametrize("what", ["descriptors", "memfds"])
@pytest.mark.parametrize("rebind", [None, no_other], ids=["plain", "rebind"])
async def test_frames_with_descriptors_wait_until_others_were_seen(kind: str, what: str, rebind: Any) -> None:
    """A peer that never says SEEN makes this end keep some of them, not all; one that says it gets the next."""

    async def answer(message: Message) -> Any:
        if what == "memfds":
            return bytes(wire.MAX_PACKET + 1)
        with null_device() as null:
            await message.reply(descriptors=(null,))
        return None

    most = link.MOST_CARRYING
    async with facing_raw(kind, rebind=rebind) as (path, peer), trio.open_nursery() as nursery:
        nursery.start_soon(path.serve, answer)
        for number in range(1, 2 * most + 2):
            peer.send(wire.encode([Kind.CALL, number, None]))
            await trio.testing.wait_all_tasks_blocked()
        for seen in (0, most, 2 * most):
            if seen:
                peer.send(wire.encode([Kind.SEEN, seen]))
            got = 0
            while got < min(most, 2 * most + 1 - seen):
                got += carrying(await next_frames(peer))
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(BlockingIOError):
                peer.receive()
            assert got == min(most, 2 * most + 1 - seen)
        assert path.severed is None
        nursery.cancel_scope.cancel()


async def test_severing_tells_a_peer_that_does_not_say_seen(kind: str) -> None:
    """What waits until it says so is no reason not to tell it."""
    async with facing_raw(kind) as (path, peer):
        for _ in range(link.MOST_CARRYING + 1):
            path.send_nowait(bytes(wire.MAX_PACKET + 1))
        await trio.testing.wait_all_tasks_blocked()
        assert path.session.link.held_back
        path.sever("enough")
        await until_frame(peer, [Kind.SEVER, "enough", ""])
        await path.wait_severed()


@pytest.mark.parametrize("when", ["at once", "while some wait"])
async def test_closing_writes_everything_to_a_peer_that_says_seen(kind: str, when: str) -> None:
    """Also what has to wait until other frames were seen, and the end behind it."""
    count = 2 * link.MOST_CARRYING + 1
    got = 0
    ours, theirs = make_pair(kind)
    with trio.fail_after(1):
        async with open_path(ours) as a, open_path(theirs) as b, trio.open_nursery() as nursery:
            while a.session.state is State.OPENING:
                await trio.lowlevel.checkpoint()
            for _ in range(count):
                a.send_nowait(bytes(wire.MAX_PACKET + 1))
            if when != "at once":
                a.flush()
            nursery.start_soon(a.aclose)
            async for _ in b:
                got += 1
            nursery.cancel_scope.cancel()
    assert isinstance(b.severed, PathSevered)
    assert (b.severed.code, got) == ("closed", count)


async def test_peer_that_says_nothing_of_many_bytes_is_told(kind: str) -> None:
    """It is this end that ends the path, and the peer learns why."""
    async with facing_raw(kind, hello(1000), limit=1000, rebind=no_other) as (path, peer):
        frames: list[list[Any]] = []
        while path.severed is None:
            path.send_nowait(b"x" * 60_000)
            path.flush()
            frames += await next_frames(peer)
        frames += await all_frames(peer)
        text = f"more than {wire.MAX_UNSEEN} bytes were written without a SEEN"
        assert frames[-1] == [Kind.SEVER, "violation", text]
        assert isinstance(path.severed, PathSevered)
        assert (path.severed.code, path.severed.text) == ("violation", text)
        assert path.session.ended_here


# -- descriptors of nothing --------------------------------------------------------------------------------------------


async def test_descriptors_without_bytes_are_a_violation(kind: str) -> None:
    """They are not the end either, and they are closed."""
    async with facing_raw(kind, rebind=no_other) as (path, peer):
        reader, writer = os.pipe()
        peer.send(b"", (writer, writer))
        os.close(writer)
        await path.wait_severed()
        os.set_blocking(reader, False)
        assert os.read(reader, 1) == b""
        os.close(reader)
        assert isinstance(path.severed, PathSevered)
        assert (path.severed.code, path.severed.text) == ("violation", "descriptors without a frame")
        assert (await all_frames(peer))[-1] == [Kind.SEVER, "violation", "descriptors without a frame"]
