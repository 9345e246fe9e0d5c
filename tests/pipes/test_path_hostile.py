"""The trio face against peers that forge, flood, vanish and never read; and under storms of its own programs."""

import contextlib
import fcntl
import os
import random
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing
from tests.leaks import assert_none_left, descriptors

from retinue.pipes import (
    Message,
    Path,
    PathClosed,
    PathError,
    PathSevered,
    Rejected,
    SocketTransport,
    Transport,
    WrongMode,
    memory_pair,
    open_path,
    socket_pair,
    wire,
)
from retinue.pipes.wire import Kind


def hello(limit: int = 64, version: int = wire.VERSION) -> bytes:
    """The greeting of a session that has never met another one."""
    return wire.encode([Kind.HELLO, version, limit, 77, 0, 0, 0, 0, 0])


HELLO = hello()


pytestmark = pytest.mark.usefixtures("no_descriptor_leaks")


NEVER_OPEN = 999_999


@contextlib.contextmanager
def null_device() -> Iterator[int]:
    descriptor = os.open("/dev/null", os.O_RDONLY)
    yield descriptor
    os.close(descriptor)


@pytest.fixture(params=["memory", "socket"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def make_pair(kind: str) -> tuple[Transport, Transport]:
    if kind == "memory":
        return memory_pair()
    left, right = socket_pair()
    return SocketTransport(left), SocketTransport(right)


@asynccontextmanager
async def attacked(kind: str = "socket", **options: Any) -> AsyncIterator[tuple[Path, Transport]]:
    """A path that serves as an echo, and the bare transport of its peer."""
    ours, theirs = make_pair(kind)
    with trio.fail_after(20):
        async with open_path(ours, name="ours", **options) as path, trio.open_nursery() as nursery:
            nursery.start_soon(path.serve, echo)
            try:
                yield path, theirs
            finally:
                theirs.close()
                nursery.cancel_scope.cancel()


async def echo(message: Message) -> Any:
    return message.body


async def next_frames(transport: Transport) -> list[list[Any]]:
    """The frames of the next packet; empty at the end."""
    while True:
        try:
            packet, descriptors = transport.receive()
        except BlockingIOError:
            await transport.wait_readable()
            continue
        for each in descriptors:
            os.close(each)
        return wire.Decoder().decode(packet)


async def all_frames(transport: Transport) -> list[list[Any]]:
    """Every frame to the end."""
    frames: list[list[Any]] = []
    while more := await next_frames(transport):
        frames += more
    return frames


# -- forgers -----------------------------------------------------------------------------------------------------------

VIOLATIONS: list[tuple[str, bytes]] = [
    ("not msgpack", b"\xc1"),
    ("not HELLO first", wire.encode([Kind.CALL, 1, None])),
    ("HELLO twice", HELLO * 2),
    ("ids that go back", HELLO + wire.encode([Kind.CALL, 2, None]) + wire.encode([Kind.CALL, 1, None])),
    ("an answer to nothing", HELLO + wire.encode([Kind.REPLY, 1, None])),
    ("a purge of nothing", HELLO + wire.encode([Kind.PURGE, 1])),
    ("half a frame", HELLO + wire.encode([Kind.CALL, 1, "x" * 100])[:-1]),
    ("descriptors that did not come", HELLO + wire.encode([Kind.CALL, 1, None, 3])),
    ("bulk that did not come", HELLO + wire.encode([Kind.BULK, 100_000])),
    ("bytes before the turn", HELLO + wire.encode([Kind.DATA, b"x"])),
    ("another version", hello(version=1)),
    ("more messages than the limit", HELLO + b"".join(wire.encode([Kind.SEND, n, None]) for n in range(1, 102))),
]


@pytest.mark.parametrize(("what", "packet"), VIOLATIONS, ids=[what for what, _ in VIOLATIONS])
async def test_violation_severs_and_is_told(kind: str, what: str, packet: bytes) -> None:
    """The forger is told the rule it broke, the program learns it too, and nothing else happens."""
    async with attacked(kind, limit=100) as (path, peer):
        peer.send(packet)
        await path.wait_severed()
        assert isinstance(path.severed, PathSevered)
        assert path.severed.code == "violation"
        last = (await all_frames(peer))[-1]
        assert last == [Kind.SEVER, "violation", path.severed.text]


async def test_descriptors_of_a_violation_are_closed(kind: str) -> None:
    """Claimed or not, in the inbox or not: with the path go all descriptors that came over it."""
    ours, peer = make_pair(kind)
    reader, writer = os.pipe()
    with trio.fail_after(10):
        async with open_path(ours) as path:
            peer.send(HELLO + wire.encode([Kind.SEND, 1, None, 2]), (writer,) * 5)  # three that nobody claims
            peer.send(wire.encode([Kind.CALL, 2, None, 1]) + b"\xc1", (writer,) * 2)
            os.close(writer)
            await path.wait_severed()
            assert os.read(reader, 1) == b""
    os.close(reader)
    peer.close()


async def test_descriptors_that_the_program_never_looks_at_are_closed(kind: str) -> None:
    """A server that expects none cannot be filled up with them."""
    reader, writer = os.pipe()
    async with attacked(kind) as (_, peer):
        peer.send(HELLO)
        for number in range(1, 50):
            peer.send(wire.encode([Kind.CALL, number, "x", 2]), (writer, writer))
            while not any(frame[0] == Kind.REPLY for frame in await next_frames(peer)):
                pass
        os.close(writer)
        os.set_blocking(reader, False)
        assert os.read(reader, 1) == b""
    os.close(reader)


async def test_hostile_bulk_is_a_violation(kind: str) -> None:
    """Not a memfd, not sealed, not of that size, not a message: the path ends, the descriptor is closed."""
    unsealed = os.memfd_create("x", os.MFD_ALLOW_SEALING)
    os.truncate(unsealed, 100_000)
    sealed = os.memfd_create("x", os.MFD_ALLOW_SEALING)
    os.truncate(sealed, 100_000)
    fcntl.fcntl(sealed, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE)
    null = os.open("/dev/null", os.O_RDONLY)
    for descriptor, size, rule in (
        (null, 100_000, "not a memfd"),
        (unsealed, 100_000, "not sealed"),
        (sealed, 100_001, "shorter"),
        (sealed, 100_000, "not a filled array"),
    ):
        async with attacked(kind) as (path, peer):
            peer.send(HELLO + wire.encode([Kind.BULK, size]), (descriptor,))
            await path.wait_severed()
            assert rule in str(path.severed)
    for descriptor in (unsealed, sealed, null):
        os.close(descriptor)


async def test_message_larger_than_an_end_takes_is_a_violation(kind: str) -> None:
    """An end that expects short messages does not allocate for long ones."""
    async with attacked(kind, largest=100_000) as (path, peer), open_path(peer) as other:
        assert await other.call(b"x" * 90_000) == b"x" * 90_000
        with pytest.raises(PathSevered, match="100000"):
            await other.call(b"x" * 100_000)
        assert path.severed


async def test_random_and_mutated_packets_never_crash_the_reader() -> None:
    """Whatever arrives, the path serves on or is severed; the seed is fixed."""
    rng = random.Random(1)
    honest = [
        HELLO + wire.encode([Kind.CALL, 1, {"a": [1, 2]}]),
        HELLO + wire.encode([Kind.SEND, 1, "x"]) + wire.encode([Kind.CALL, 2, "y"]) + wire.encode([Kind.PURGE, 2]),
        HELLO + wire.encode([Kind.STREAM]) + wire.encode([Kind.DATA, b"z" * 50]) + wire.encode([Kind.EOF]),
        HELLO + wire.encode([Kind.SEVER, "closed", ""]),
    ]
    with null_device() as null:
        for round_ in range(150):
            async with attacked() as (path, peer):
                if round_ % 3 == 0:
                    packet = rng.randbytes(rng.randrange(1, 200))
                else:
                    changed = bytearray(rng.choice(honest))
                    for _ in range(rng.randrange(1, 4)):
                        changed[rng.randrange(len(changed))] = rng.randrange(256)
                    packet = bytes(changed)
                peer.send(packet, [null] * rng.randrange(3))
                with contextlib.suppress(BrokenPipeError):
                    peer.send(packet)
                await trio.testing.wait_all_tasks_blocked()
                assert path.severed is None or isinstance(path.severed, PathSevered)


async def test_empty_packet_is_the_end(kind: str) -> None:
    """A receive cannot tell it from a closed descriptor, and need not."""
    async with attacked(kind) as (path, peer):
        peer.send(b"")
        await path.wait_severed()
        assert isinstance(path.severed, PathSevered)
        assert path.severed.code == "lost"


async def test_body_nested_as_deep_as_the_wire_takes_it_harms_nobody(kind: str) -> None:
    """It is received, and can be sent on."""
    async with attacked(kind) as (path, peer):
        depth = wire.MAX_DEPTH - 2  # and the frame, and the innermost
        peer.send(HELLO + b"\x93\x02\x01" + b"\x91" * depth + b"\x90" + wire.encode([Kind.CALL, 2, "fine"]))
        frames: list[list[Any]] = []
        while not any(frame[:2] == [Kind.REPLY, 2] for frame in frames):
            frames += await next_frames(peer)
        assert path.severed is None


# -- flooders, and those who never read --------------------------------------------------------------------------------


async def test_peer_that_never_reads_holds_up_nobody_else(kind: str) -> None:
    """Its answers wait, at most as many as it may have outstanding; leaving it takes no time."""
    async with attacked(kind, limit=32) as (path, peer):
        peer.send(HELLO)
        for number in range(1, 33):
            while True:
                try:
                    peer.send(wire.encode([Kind.CALL, number, b"x" * 60_000]))
                    break
                except BlockingIOError:
                    await peer.wait_writable()
        await trio.testing.wait_all_tasks_blocked()
        assert len(path.session.link.ordinary) <= 32
        assert path.session.outstanding[1] == 0
        path.sever("enough")
        assert path.severed


@pytest.mark.parametrize(
    "asks",
    [
        lambda number: [[Kind.CALL, number, b"x" * 5000]],
        lambda _: [[Kind.QUIESCE], [Kind.RESUME]],
    ],
    ids=["calls", "quiescing"],
)
async def test_peer_that_asks_and_never_reads_is_severed(kind: str, asks: Callable[[int], list[list[Any]]]) -> None:
    """What is written for it is no more than its limit allows one who keeps to it."""
    limit = 16
    async with attacked(kind, limit=limit) as (path, peer):
        peer.send(HELLO)
        for number in range(1, 100_000):
            try:
                peer.send(b"".join(wire.encode(frame) for frame in asks(number)))
            except BlockingIOError:
                pass
            except BrokenPipeError:
                break
            await trio.testing.wait_all_tasks_blocked()
            assert path.session.link.backlog <= wire.most_unread(limit) + 2
            if path.severed is not None:
                break
        assert isinstance(path.severed, PathSevered)
        assert (path.severed.code, path.severed.text) == ("violation", "it asks, and does not read what is answered")


async def test_closing_waits_for_a_slow_reader_and_can_be_cancelled() -> None:
    """aclose writes everything, or is cut short by its caller."""
    async with attacked() as (path, peer):
        peer.send(HELLO)
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(20):
            path.session.send(b"x" * 60_000)
        path.flush()
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(path.aclose)
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()
        await path.wait_severed()


async def test_flood_of_small_frames_leaves_turns_to_others() -> None:
    """A packet may hold twenty thousand frames; between packets everybody gets a turn."""
    turns = 0
    async with attacked() as (_, peer), trio.open_nursery() as nursery:

        async def count_turns() -> None:
            nonlocal turns
            while True:
                turns += 1
                await trio.lowlevel.checkpoint()

        peer.send(HELLO + wire.encode([Kind.CALL, 1, None]))
        while not any(frame[0] == Kind.REPLY for frame in await next_frames(peer)):
            pass
        purges = wire.encode([Kind.PURGE, 1]) * 20_000
        for _ in range(3):
            peer.send(purges)
        nursery.start_soon(count_turns)
        await trio.lowlevel.checkpoint()
        for _ in range(10):
            await trio.lowlevel.checkpoint()
        assert turns >= 3
        nursery.cancel_scope.cancel()


# -- ends at every moment ----------------------------------------------------------------------------------------------


async def test_severing_while_something_waits_to_be_written(kind: str) -> None:
    """The writer task may not even have begun."""
    for pause in range(3):
        ours, peer = make_pair(kind)
        with trio.fail_after(10):
            async with open_path(ours) as path:
                peer.send(HELLO)
                await trio.testing.wait_all_tasks_blocked()
                for _ in range(20):
                    path.session.send(b"x" * 60_000)
                path.flush()
                for _ in range(pause):
                    await trio.lowlevel.checkpoint()
                path.sever()
        peer.close()


async def test_last_words_reach_a_slow_reader(kind: str) -> None:
    """An orderly close is one however full the socket is: the bytes, then the end, and no loss."""
    ours, theirs = make_pair(kind)
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            one, other = Path(ours), Path(theirs)
            await nursery.start(one.run)
            await nursery.start(other.run)
            while not (one.session.peer_limit and other.session.peer_limit):
                await trio.lowlevel.checkpoint()
            writer, reader = one.stream(), other.stream()
            data = os.urandom(wire.STREAM_WINDOW)
            await writer.send_all(data)
            await writer.aclose()
            got = bytearray()
            async for chunk in reader:
                got += chunk
            assert got == data
            nursery.cancel_scope.cancel()


async def test_path_severed_before_it_runs(kind: str) -> None:
    """Its run returns at once."""
    ours, peer = make_pair(kind)
    path = Path(ours)
    path.sever()
    with trio.fail_after(5):
        await path.run()
        await path.aclose()
        with pytest.raises(PathClosed):
            await path.call(1)
        with pytest.raises(PathClosed):
            await path.receive()
    peer.close()


async def test_peer_that_dies_with_everything_outstanding(kind: str) -> None:
    """Every caller, sender and receiver learns it at once."""
    async with attacked(kind) as (path, peer):
        peer.send(hello(3))
        ended = 0

        async def use(verb: Any) -> None:
            nonlocal ended
            with pytest.raises(PathSevered, match="lost"):
                await verb("x")
            ended += 1

        async with trio.open_nursery() as nursery:
            for _ in range(5):  # more than the limit: some wait for room
                nursery.start_soon(use, path.call)
                nursery.start_soon(use, path.send)
            await trio.testing.wait_all_tasks_blocked()
            peer.close()
        assert ended == 10


async def test_peer_that_turns_to_a_stream_ends_waiting_callers_one_by_one(kind: str) -> None:
    """What waits for room on a path that carries no messages any more is told so."""
    ours, peer = make_pair(kind)
    with trio.fail_after(10):
        async with open_path(ours) as path, trio.open_nursery() as nursery:
            peer.send(hello(1))
            wrong = 0

            async def call() -> None:
                nonlocal wrong
                try:
                    await path.call("x")
                except WrongMode:
                    wrong += 1

            for _ in range(6):
                nursery.start_soon(call)
            await trio.testing.wait_all_tasks_blocked()
            peer.send(wire.encode([Kind.STREAM]) + wire.encode([Kind.REPLY, 1, None]))
            while wrong < 5:
                await trio.lowlevel.checkpoint()
    peer.close()


# -- storms --------------------------------------------------------------------------------------------------------


async def test_failed_call_passes_its_turn_on(kind: str) -> None:
    """A caller that waited for room and then cannot use it leaves it to the next."""
    ours, theirs = make_pair(kind)
    with trio.fail_after(10):
        async with open_path(ours) as a, open_path(theirs, limit=1) as b, trio.open_nursery() as nursery:
            answers = []

            async def call(body: Any) -> None:
                try:
                    answers.append(await a.call(body))
                except TypeError:
                    answers.append("mistake")

            nursery.start_soon(call, 1)
            first = await b.receive()
            for body in (object(), 2):
                nursery.start_soon(call, body)
                await trio.testing.wait_all_tasks_blocked()
            await first.reply(1)
            await (await b.receive()).reply(2)
            while len(answers) < 3:
                await trio.lowlevel.checkpoint()
            assert sorted(answers, key=str) == [1, 2, "mistake"]


async def test_storm_of_cancellations_loses_no_message_and_no_place(kind: str) -> None:
    """After any number of withdrawn calls every place is free again and nothing is outstanding."""
    rng = random.Random(2)
    ours, theirs = make_pair(kind)
    with trio.fail_after(20):
        async with open_path(ours) as a, open_path(theirs, limit=5) as b, trio.open_nursery() as nursery:

            async def handler(message: Message) -> Any:
                for _ in range(message.body):
                    await trio.lowlevel.checkpoint()
                return message.body

            async def impatient() -> None:
                for _ in range(20):
                    patience, work = rng.randrange(12), rng.randrange(12)
                    with trio.CancelScope() as scope:
                        async with trio.open_nursery() as inner:
                            inner.start_soon(call, work)
                            for _ in range(patience):
                                await trio.lowlevel.checkpoint()
                            scope.cancel()

            async def call(work: int) -> None:
                assert await a.call(work) == work

            nursery.start_soon(b.serve, handler)
            async with trio.open_nursery() as callers:
                for _ in range(10):
                    callers.start_soon(impatient)
            assert await a.call(1) == 1
            while a.session.outstanding != (0, 0) or b.session.outstanding != (0, 0):
                await trio.lowlevel.checkpoint()
            assert a.session.room == 5
            nursery.cancel_scope.cancel()


async def test_server_that_is_cancelled_leaves_no_caller_waiting(kind: str) -> None:
    """The path lives on, somebody else may serve it; what was being handled is refused."""
    ours, theirs = make_pair(kind)
    with trio.fail_after(10):
        async with open_path(ours) as a, open_path(theirs) as b, trio.open_nursery() as nursery:
            refused = trio.Event()

            async def call() -> None:
                with pytest.raises(Rejected, match="cancelled"):
                    await a.call("x")
                refused.set()

            started = trio.Event()

            async def handler(_: Message) -> None:
                started.set()
                await trio.sleep_forever()

            nursery.start_soon(call)
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as inner:
                    inner.start_soon(b.serve, handler)
                    await started.wait()
                    scope.cancel()
            await refused.wait()
            nursery.start_soon(b.serve, echo)
            assert await a.call("again") == "again"
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("result", [{1: 2}, object(), "\ud800", [2**64]], ids=["key", "object", "text", "number"])
async def test_result_that_cannot_be_sent_is_the_handlers_failure(kind: str, result: Any) -> None:
    """With ``failed`` the server is told and serves on; the caller is refused."""
    ours, theirs = make_pair(kind)
    told: list[Exception] = []
    with trio.fail_after(10):
        async with open_path(ours) as a, open_path(theirs) as b, trio.open_nursery() as nursery:

            async def handler(message: Message) -> Any:
                if message.body == "reject":
                    raise Rejected("no", "because", result)
                return result if message.body == "bad" else "good"

            async def serve() -> None:
                await b.serve(handler, failed=lambda _, exc: told.append(exc))

            nursery.start_soon(serve)
            for body in ("bad", "reject"):
                with pytest.raises(Rejected) as caught:
                    await a.call(body)
                assert caught.value.code == "failed"
            assert await a.call("good") == "good"
            assert [type(exc) for exc in told] == [TypeError, TypeError]
            nursery.cancel_scope.cancel()


async def test_many_paths_at_once(kind: str) -> None:
    """A hundred paths in one process, all of them busy, none mixed up, nothing left."""
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            ends = []
            for _ in range(100):
                ours, theirs = make_pair(kind)
                a, b = Path(ours), Path(theirs)
                await nursery.start(a.run)
                await nursery.start(b.run)
                nursery.start_soon(b.serve, echo)
                ends.append(a)

            async def use(number: int, path: Path) -> None:
                for step in range(5):
                    assert await path.call([number, step]) == [number, step]

            async with trio.open_nursery() as callers:
                for number, path in enumerate(ends):
                    callers.start_soon(use, number, path)
            for path in ends:
                path.sever()
            nursery.cancel_scope.cancel()


async def test_descriptors_that_cannot_be_copied_are_an_error_of_the_caller(kind: str) -> None:
    """Nothing is sent, no copy is left, the path goes on."""
    async with attacked(kind) as (path, peer), open_path(peer) as other:
        with null_device() as null:
            before = descriptors()
            with pytest.raises(OSError, match=r"[Bb]ad file descriptor"):
                await other.call(1, descriptors=(null, null, NEVER_OPEN))
            assert_none_left(before)
        assert await other.call(2) == 2
        assert path.severed is None


async def test_large_message_with_many_descriptors(kind: str) -> None:
    """The memfd takes one of the places; the rest arrive in order, and so with the reply."""
    ours, theirs = make_pair(kind)
    with trio.fail_after(10):
        async with open_path(ours) as a, open_path(theirs) as b, trio.open_nursery() as nursery:
            body = bytes(100_000)

            async def call(numbers: tuple[int, ...]) -> None:
                reply = await a.call_reply(body, descriptors=numbers)
                assert reply.body == body
                assert len(reply.descriptors) == 1
                os.close(reply.descriptors[0])

            with null_device() as null:
                with pytest.raises(PathError, match="descriptors of one large message"):
                    await a.call(body, descriptors=(null,) * wire.MAX_DESCRIPTORS)
                nursery.start_soon(call, (null,) * (wire.MAX_DESCRIPTORS - 1))
                message = await b.receive()
            assert len(message.descriptors) == wire.MAX_DESCRIPTORS - 1
            await message.reply(body, descriptors=message.descriptors[:1])
            for each in message.descriptors:
                os.close(each)
