"""A served path goes from one process to its successor: nothing is lost, comes twice or is redelivered."""

import random
from collections import Counter
from functools import partial

import pytest
import trio
import trio.testing

from retinue.pipes import (
    Message,
    Path,
    PathSevered,
    SocketTransport,
    State,
    Transport,
    WrongMode,
    memory_pair,
    open_path,
    socket_pair,
)

pytestmark = pytest.mark.usefixtures("no_descriptor_leaks")


def make_pair(kind: str) -> tuple[Transport, Transport]:
    if kind == "memory":
        return memory_pair()
    left, right = socket_pair()
    return SocketTransport(left), SocketTransport(right)


@pytest.fixture(params=["memory", "socket"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class Board:
    """What the control program does: the caller's end of a path that was let go is joined to a new server."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.ours, self.theirs = make_pair(kind)
        self.asked = trio.Event()

    async def rebind(self, _: Path) -> Transport:
        ours, self.theirs = make_pair(self.kind)
        self.asked.set()
        self.asked = trio.Event()
        return ours


async def test_path_without_messages_is_let_go_at_once(kind: str) -> None:
    """The other end asks for another descriptor, and its program sees nothing."""
    board = Board(kind)
    with trio.fail_after(10):
        async with open_path(board.ours, rebind=board.rebind) as path:
            async with open_path(board.theirs) as server:
                asked = board.asked
                await server.release()
                assert isinstance(server.severed, PathSevered)
                assert server.severed.code == "released"
                await asked.wait()
            async with open_path(board.theirs) as successor, trio.open_nursery() as nursery:
                nursery.start_soon(path.call, 1)
                message = await successor.receive()
                assert not message.redelivered
                await message.reply()
            assert path.meter.redelivered == 0


async def test_what_has_come_is_answered_first(kind: str) -> None:
    """Calls and one-way messages of both ends; what is asked after it waits for the successor."""
    board = Board(kind)
    answers: list[int] = []

    async def ask(number: int) -> None:
        answers.append(await path.call(number))

    with trio.fail_after(10):
        async with open_path(board.ours, rebind=board.rebind) as path, trio.open_nursery() as nursery:
            async with open_path(board.theirs) as server:
                nursery.start_soon(ask, 1)
                first = await server.receive()
                nursery.start_soon(path.send, "note")
                nursery.start_soon(server.call, "a question of the server's")
                question = await path.receive()
                await trio.testing.wait_all_tasks_blocked()
                nursery.start_soon(server.release)
                await trio.testing.wait_all_tasks_blocked()
                nursery.start_soon(ask, 2)
                await trio.testing.wait_all_tasks_blocked()
                assert not server.severed
                await first.reply(10)
                await trio.testing.wait_all_tasks_blocked()
                assert not server.severed
                note = await server.receive()
                assert note.body == "note"
                await trio.testing.wait_all_tasks_blocked()
                assert answers == [10]
                assert not server.severed
                await question.reply("an answer")
                await server.wait_severed()
            await trio.testing.wait_all_tasks_blocked()
            async with open_path(board.theirs) as successor:
                message = await successor.receive()
                assert message.body == 2
                assert not message.redelivered
                await message.reply(20)
                await trio.testing.wait_all_tasks_blocked()
            assert answers == [10, 20]
            path.sever()


async def test_byte_stream_cannot_be_released(kind: str) -> None:
    """Nor what becomes one while it is tried."""
    board = Board(kind)
    with trio.fail_after(10):
        async with open_path(board.ours, rebind=board.rebind) as path, open_path(board.theirs) as server:
            await path.wait_open()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(path.send, "a stream follows")
                message = server.next_message()
                while message is None:
                    await trio.testing.wait_all_tasks_blocked()
                    message = server.next_message()

                async def release() -> None:
                    with pytest.raises(WrongMode, match="byte stream"):
                        await server.release()

                nursery.start_soon(release)
                await trio.testing.wait_all_tasks_blocked()
                server.acknowledge(message)
                server.stream()
            with pytest.raises(WrongMode):
                await server.release()
            assert not server.severed


async def test_byte_stream_begins_at_the_successor(kind: str) -> None:
    """When its turn was asked for after the end that leaves had quiesced: nothing of it had been said."""
    board = Board(kind)
    with trio.fail_after(10):
        async with open_path(board.ours, rebind=board.rebind) as path, trio.open_nursery() as nursery:
            async with open_path(board.theirs) as server:
                await path.wait_open()
                await server.quiesce()
                stream = path.stream()
                assert not path.streams
                nursery.start_soon(stream.send_all, bytes(300_000))
                await trio.testing.wait_all_tasks_blocked()
                assert stream.path.session.window == 0
                await server.release()
            await trio.testing.wait_all_tasks_blocked()
            async with open_path(board.theirs) as successor:
                await successor.wait_stream()
                other = successor.stream()
                left = 300_000
                while left:
                    left -= len(await other.receive_some())
                assert path.streams
                await stream.send_eof()
                assert await other.receive_some() == b""


async def test_byte_stream_waits_for_resume(kind: str) -> None:
    """And its end with it."""
    board = Board(kind)
    with trio.fail_after(10):
        async with open_path(board.ours) as path, open_path(board.theirs) as server:
            await path.wait_open()
            await server.quiesce()
            stream = path.stream()
            await stream.send_eof()
            await trio.testing.wait_all_tasks_blocked()
            assert server.session.state is State.OPEN
            await server.resume()
            await server.wait_stream()
            assert await server.stream().receive_some() == b""


async def test_path_that_ends_while_it_is_released(kind: str) -> None:
    """Says why."""
    board = Board(kind)
    with trio.fail_after(10):
        async with open_path(board.ours) as path, open_path(board.theirs) as server, trio.open_nursery() as nursery:
            nursery.start_soon(partial(_ignore_end, path))
            await server.receive()

            async def release() -> None:
                with pytest.raises(PathSevered, match="enough"):
                    await server.release()

            nursery.start_soon(release)
            await trio.testing.wait_all_tasks_blocked()
            path.sever("enough", "it is enough")


async def _ignore_end(path: Path) -> None:
    with pytest.raises(Exception, match="closed"):
        await path.call("a question")


@pytest.mark.parametrize("seed", range(3))
async def test_thousands_of_calls_while_servers_change(kind: str, seed: int) -> None:
    """Every one is answered exactly once, by whichever server; none is redelivered."""
    calls, tasks, servers = 3000, 48, 20
    chance = random.Random(seed)
    board = Board(kind)
    handled: Counter[int] = Counter()
    answered: Counter[int] = Counter()
    noted: Counter[int] = Counter()
    by: Counter[int] = Counter()
    left = iter(range(calls))

    async def client(path: Path) -> None:
        for number in left:
            if number % 7 == 0:
                await path.send(number)
                answered[number] += 1
            else:
                answered[await path.call(number, priority=number % 5 == 0)] += 1
        done.append(1)

    done: list[int] = []

    async def serve(path: Path, which: int) -> None:
        async def handler(message: Message) -> int:
            assert not message.redelivered
            handled[message.body] += 1
            by[which] += 1
            if not message.wants_reply:
                noted[message.body] += 1
            for _ in range(chance.randrange(4)):
                await trio.lowlevel.checkpoint()
            return int(message.body)

        await path.serve(handler)

    with trio.fail_after(60):
        async with open_path(board.ours, limit=32, rebind=board.rebind) as path:
            async with trio.open_nursery() as nursery:
                for _ in range(tasks):
                    nursery.start_soon(client, path)
                which = 0
                while len(done) < tasks:
                    which += 1
                    async with open_path(board.theirs, limit=32) as server:
                        nursery.start_soon(serve, server, which)
                        begun = sum(handled.values())
                        while len(done) < tasks and (
                            which > servers or sum(handled.values()) < begun + chance.randrange(1, 2 * calls // servers)
                        ):
                            await trio.lowlevel.checkpoint()
                        asked = board.asked
                        await server.release()
                        await asked.wait()
            assert path.meter.redelivered == 0
    board.theirs.close()
    assert handled == answered == Counter(range(calls))
    assert noted == Counter(range(0, calls, 7))
    assert len(by) >= servers // 2


async def test_newest_messages_without_an_answer() -> None:
    """With their size, their age, and what is kept of them."""
    board = Board("socket")
    with trio.fail_after(10):
        async with open_path(board.ours, rebind=board.rebind) as path, open_path(board.theirs):
            assert path.unanswered(5) == []
            async with trio.open_nursery() as nursery:
                nursery.start_soon(path.call, "first")
                await trio.testing.wait_all_tasks_blocked()
                nursery.start_soon(path.send, "second")
                await trio.testing.wait_all_tasks_blocked()
                path.send_nowait("third")
                nursery.start_soon(path.call, bytes(100_000))
                await trio.testing.wait_all_tasks_blocked()
                large, third, second = path.unanswered(3)
                assert (large.id, large.kind.name, large.frame) == (4, "CALL", b"")
                assert large.size > 100_000
                assert large.age is not None
                assert large.age >= 0
                assert (third.id, third.age, b"third" in third.frame) == (3, None, True)
                assert (second.id, second.kind.name) == (2, "SEND")
                assert second.age is not None
                assert len(path.unanswered(5)) == 4
                nursery.cancel_scope.cancel()
