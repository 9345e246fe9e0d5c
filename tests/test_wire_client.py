"""A peer written from the reference of the wire talks to the Python end, and to a running system.

The client waits in threads; all that it does there ends by itself when the socket is silent for LIMIT seconds.
"""

import ast
import contextlib
import math
import os
import pathlib
import re
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final, ParamSpec, TypeVar

import msgpack
import pytest
import trio
import trio.testing
from tests.leaks import assert_none_left, descriptors
from tests.systems import SERVER, Bench
from tests.wire_client import (
    ACK,
    CALL,
    CREDIT,
    DATA,
    EOF,
    PURGE,
    REJECT,
    REPLY,
    SEND,
    SEVER,
    STREAM,
    Client,
    Severed,
    Unbound,
)
from tests.wire_client_more import FullClient

from retinue.pipes import Message, Path, PathSevered, Rejected, SocketTransport, Transport, tracing
from retinue.pipes.states import State

LIMIT: Final = 20

P = ParamSpec("P")
T = TypeVar("T")


async def thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Let the client wait where it stops nobody else."""
    return await trio.to_thread.run_sync(lambda: function(*args, **kwargs))


async def until(condition: Callable[[], object]) -> None:
    """Let other tasks run until something is so that no event tells."""
    with trio.fail_after(LIMIT):
        while not condition():
            await trio.testing.wait_all_tasks_blocked(0.001)


class Line:
    """A path, a client, and the bindings under them."""

    def __init__(self) -> None:
        self.client = Client()
        self.sockets: list[socket.socket] = []
        self._transports: list[SocketTransport] = []
        self._come, self._coming = trio.open_memory_channel[Transport](8)

    def ours(self) -> SocketTransport:
        """The end for a path, of a new pair whose other end is the client's next."""
        left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        right.settimeout(LIMIT)
        self.sockets.append(right)
        self._transports.append(SocketTransport(left))
        return self._transports[-1]

    async def bind(self, client: Client | None = None) -> str:
        """Give the client, or another one in its place, the end that waits for it."""
        self.client = client or self.client
        return await thread(self.client.bind, self.sockets[-1])

    async def rebind(self, _: Path) -> Transport:
        """What the path asks when its descriptor has ended."""
        return await self._coming.receive()

    def cut(self) -> None:
        """End the binding under both."""
        self.sockets[-1].shutdown(socket.SHUT_RDWR)

    def offer(self) -> None:
        """Let the path have its next descriptor."""
        self._come.send_nowait(self.ours())

    def close(self) -> None:
        """Leave nothing open, whatever became of it."""
        for sock in self.sockets:
            sock.close()
        for transport in self._transports:
            transport.close()


@contextlib.asynccontextmanager
async def connected(*, client: Client | None = None, **more: Any) -> AsyncIterator[tuple[Path, Client, Line]]:
    """A running path and a client at its other end; nothing of them is open after the block."""
    line = Line()
    path = Path(line.ours(), name="it", **more, rebind=line.rebind)
    try:
        with trio.fail_after(2 * LIMIT):
            async with trio.open_nursery() as nursery:
                await nursery.start(path.run)
                assert await line.bind(client) == "fresh"
                yield path, line.client, line
                path.sever()
                nursery.cancel_scope.cancel()
    finally:
        line.close()


@pytest.fixture(autouse=True)
def _no_descriptor_is_left() -> Any:
    before = descriptors()
    yield
    assert_none_left(before)


def test_client_imports_nothing_of_ours() -> None:
    """It could be carried to another house: the standard library and MessagePack."""

    def imported(file: str) -> set[str]:
        names = set()
        for node in ast.walk(ast.parse(pathlib.Path(__file__).with_name(file).read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names.add(f"{node.module}")
        return names

    plain = {"contextlib", "fcntl", "io", "os", "socket", "typing"}
    assert imported("wire_client.py") == plain | {"msgpack"}
    assert imported("wire_client_more.py") == {"os", "typing", "tests.wire_client"}


# -- messages ---------------------------------------------------------------------------------------------------------


async def echo(message: Message) -> Any:
    if message.body == "no":
        raise Rejected("refused", "as asked", [1])
    return message.body


@contextlib.asynccontextmanager
async def serving(path: Path, handler: Callable[[Message], Awaitable[Any]] = echo) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(path.serve, handler)
        yield
        nursery.cancel_scope.cancel()


async def test_client_calls_and_is_answered() -> None:
    """Replies and refusals, with every kind of value."""
    async with connected() as (path, client, _), serving(path):
        for body in (None, True, -1, 1 << 63, 1.5, "text", b"bytes", [1, [2]], {"a": {"b": None}}):
            assert await thread(client.call, body) == body
        assert await thread(client.call, "no") == [REJECT, 10, "refused", "as asked", [1]]


async def test_client_is_called_and_answers() -> None:
    """The other direction, likewise."""
    async with connected() as (path, client, _):

        def answer() -> None:
            message = client.next()
            assert message[:3] == (CALL, 1, "hello")
            client.say(REPLY, message.id, "good day")
            message = client.next()
            client.say(REJECT, message.id, "busy", "come again", None)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(thread, answer)
            assert await path.call("hello") == "good day"
            with pytest.raises(Rejected, match="busy: come again"):
                await path.call("hello?")


async def test_one_way_messages_end_when_they_are_received() -> None:
    """In both directions; one ACK may end several, and passes over a call between them."""
    async with connected() as (path, client, _):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(thread, client.send, "to you")
            assert (await path.receive()).body == "to you"

        async with trio.open_nursery() as nursery:
            ended: list[int] = []

            async def send(number: int) -> None:
                await path.send(number)
                ended.append(number)

            for number in range(1, 4):
                nursery.start_soon(send, number)
                await trio.testing.wait_all_tasks_blocked()
                if number == 2:
                    nursery.start_soon(path.call, "between")
                    await trio.testing.wait_all_tasks_blocked()
            messages = [await thread(client.next) for _ in range(4)]
            assert [each.body for each in messages] == [1, 2, "between", 3]
            assert [each.kind for each in messages] == [SEND, SEND, CALL, SEND]
            client.say(ACK, 1, 4)
            await until(lambda: len(ended) == 3)
            assert path.session.state is State.OPEN
            client.say(REPLY, 3, None)


async def test_limit_is_the_smaller_of_the_two() -> None:
    """Ours of 64 and the client's of 2: the third call waits in either direction."""
    async with connected(client=Client(limit=2)) as (path, client, _):
        assert client.room == 2
        async with trio.open_nursery() as nursery:
            for number in range(3):
                nursery.start_soon(path.call, number)
            await trio.testing.wait_all_tasks_blocked()
            messages = [await thread(client.next) for _ in range(2)]
            assert path.meter.outstanding == 2
            for message in messages:
                client.say(REPLY, message.id, None)
            client.say(REPLY, (await thread(client.next)).id, None)


async def test_priority_messages_have_their_own_numbers_and_overtake() -> None:
    """What waits in the path's inbox is overtaken, an earlier priority message is not."""
    client = FullClient()
    async with connected(client=client) as (path, _, _):
        sent = [client.submit(CALL, body, priority=body < 0) for body in (1, 2, -1, -2, 3)]
        assert sent == [1, 2, -1, -2, 3]
        client.submit(CALL, "last")
        taken: list[Message] = []
        while not taken or taken[-1].body != "last":
            await trio.testing.wait_all_tasks_blocked()
            taken.append(await path.receive())
        assert [message.body for message in taken] == [-1, -2, 1, 2, 3, "last"]
        assert [message.priority for message in taken] == [True, True, False, False, False, False]
        for message in taken:
            await message.reply(message.body)
        assert (await thread(client.end_of, -2))[0] == [REPLY, -2, -2]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(path.send, "ordinary")
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(lambda: path.send("quick", priority=True))
            await trio.testing.wait_all_tasks_blocked()
            for _ in range(2):
                came = await thread(client.next)
                assert came.id == {"ordinary": 1, "quick": -1}[came.body]
                client.say(ACK, came.id, came.id)


async def test_withdrawn_calls_still_end() -> None:
    """PURGE in both directions; each is answered by REJECT purged."""
    async with connected() as (path, client, _):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(path.call, "never mind")
            message = await thread(client.next)
            nursery.cancel_scope.cancel()
        while message.id not in client.purged:
            await thread(client.pump)
        assert path.meter.outstanding == 1
        client.say(REJECT, message.id, "purged", "", None)

        cancelled = trio.Event()

        async def linger(_: Message) -> None:
            try:
                await trio.sleep_forever()
            finally:
                cancelled.set()

        async with serving(path, linger):
            ident = client.submit(CALL, "linger")
            await trio.testing.wait_all_tasks_blocked()
            client.say(PURGE, ident)
            await cancelled.wait()
            assert (await thread(client.end_of, ident))[0][:3] == [REJECT, ident, "purged"]
        assert path.meter.outstanding == 0


async def test_deadline_travels_as_what_is_left() -> None:
    """Milliseconds from our scopes, and trio's time from the client's milliseconds."""
    client = FullClient()
    async with connected(client=client) as (path, _, _):
        async with trio.open_nursery() as nursery:

            async def call() -> None:
                with trio.fail_after(30):
                    await path.call("soon")

            nursery.start_soon(call)
            message = await thread(client.next)
            assert message.ms is not None
            assert 20_000 < message.ms <= 30_000
            client.say(REPLY, message.id, None)
        ident = client.submit(CALL, "soon", ms=5000)
        received = await path.receive()
        assert 0 < received.deadline - trio.current_time() <= 5
        await received.reply()
        assert (await thread(client.end_of, ident))[0] == [REPLY, ident, None]

        for seconds, ms in ((math.inf, None), (1e9, 366 * 24 * 3600 * 1000)):
            async with trio.open_nursery() as nursery:
                # A shield keeps the deadline of the whole test out.
                nursery.cancel_scope.shield = True
                nursery.cancel_scope.deadline = trio.current_time() + seconds
                nursery.start_soon(path.call, "at last")
                message = await thread(client.next)
                assert message.ms == ms
                client.say(REPLY, message.id, None)


async def test_traces_travel_to_who_takes_them_alone() -> None:
    """Both ways between ends of revision 1, with a deadline and without; one of revision 0 is never sent any."""
    ident = "0af7651916cd43dd8448eb211c80319c"
    trace = bytes.fromhex(ident)

    async def call(path: Path, body: Any) -> None:
        with trio.CancelScope(shield=True), tracing(ident):
            await path.call(body)

    client = FullClient(traces=True)
    async with connected(client=client) as (path, _, _):
        for body in ("plain", "x" * 100_000, b"x" * 100_000):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(call, path, body)
                message = await thread(client.next)
                assert (message.body, message.ms, client.traces.pop(message.id)) == (body, None, trace)
                client.say(REPLY, message.id, None)
        async with trio.open_nursery() as nursery:
            with tracing(ident):
                nursery.start_soon(path.call, "soon")  # the whole test has a deadline
            message = await thread(client.next)
            assert message.ms is not None
            assert client.traces.pop(message.id) == trace
            client.say(REPLY, message.id, None)
            nursery.start_soon(path.call, "of nobody")
            message = await thread(client.next)
            assert message.id not in client.traces
            client.say(REPLY, message.id, None)
        cases: tuple[dict[str, Any], ...] = ({"trace": trace}, {"ms": 5000, "trace": trace}, {"ms": 5000}, {})
        for more in cases:
            client.submit(CALL, None, **more)
            received = await path.receive()
            assert received.trace == (ident if "trace" in more else None)
            assert (received.deadline < math.inf) is ("ms" in more)
            await received.reply()

    older = FullClient()
    async with connected(client=older) as (path, _, _), trio.open_nursery() as nursery:
        nursery.start_soon(call, path, "to an older end")
        message = await thread(older.next)
        assert older.traces == {}
        older.say(REPLY, message.id, None)


async def test_quiesced_end_gets_no_messages_and_loses_none() -> None:
    """Either end may ask; the confirmation comes behind the last message."""
    client = FullClient()
    async with connected(client=client) as (path, _, _):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(thread, client.pump)
            await path.quiesce()
        assert client.held
        async with trio.open_nursery() as nursery:
            nursery.start_soon(thread, client.send, "held back")
            await trio.testing.wait_all_tasks_blocked()
            assert path.meter.received == 0
            await path.resume()
            assert (await path.receive()).body == "held back"

        await thread(client.quiesce)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(path.send, "held back here")
            await trio.testing.wait_all_tasks_blocked()
            assert path.meter.sent == 0
            client.resume()
            message = await thread(client.next)
            assert message.body == "held back here"
            client.say(ACK, message.id, message.id)


async def test_large_messages_travel_in_memfds() -> None:
    """Both directions, several times, with a descriptor beside them, and SEEN is said at once."""
    async with connected() as (path, client, _), serving(path):
        for size in (70_000, 70_001, 3_000_000, 70_000):
            body = os.urandom(size)
            assert await thread(client.call, body) == body
        assert client.seen == client.received == 4
        assert client.told == 4
        assert not client.kept


async def test_descriptors_travel_both_ways() -> None:
    """With a message, with a reply, and with a large one."""
    reader, writer = os.pipe()

    async def write(message: Message) -> Any:
        (given,) = message.descriptors
        os.write(given, b"hello")
        os.close(given)
        return len(message.body)

    async with connected() as (path, client, _), serving(path, write):
        assert await thread(client.call, "x", descriptors=(writer,)) == 1
        assert await thread(client.call, "x" * 100_000, descriptors=(writer,)) == 100_000
        assert os.read(reader, 20) == b"hellohello"

        def answer() -> None:
            message = client.next()
            os.write(message.descriptors[0], b"again")
            os.close(message.descriptors[0])
            client.say(REPLY, message.id, "here", 1, descriptors=(reader,))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(thread, answer)
            reply = await path.call_reply("take", descriptors=(writer,))
        assert reply.body == "here"
        assert os.read(reply.descriptors[0], 20) == b"again"
        os.close(reply.descriptors[0])
    os.close(reader)
    os.close(writer)


async def test_seen_is_said_and_heard() -> None:
    """Of some hundred messages neither end keeps more than the last ones."""
    async with connected() as (path, client, _), serving(path):

        def many() -> None:
            for number in range(300):
                assert client.call(number) == number

        await thread(many)
        assert client.received == 300
        assert client.told >= 256
        assert 300 - 64 < client.seen <= 300
        assert len(client.kept) == 300 - client.seen


async def test_path_becomes_a_byte_stream() -> None:
    """Bytes with credit, more than the window of them; then the end of each direction."""
    client = FullClient()
    async with connected(client=client) as (path, _, _):
        client.say(STREAM)
        client.say(DATA, b"early")
        await until(lambda: path.session.state is State.OFFERED)
        stream = path.stream()

        def take(count: int) -> bytes:
            while len(client.bytes) < count and not client.at_end:
                credited = len(client.bytes)
                client.pump()
                if len(client.bytes) > credited:
                    client.say(CREDIT, len(client.bytes) - credited)
            return client.bytes

        async with trio.open_nursery() as nursery:
            sent = os.urandom(600_000)
            nursery.start_soon(stream.send_all, sent)
            assert await thread(take, len(sent)) == sent
        client.say(EOF)
        received = b""
        while chunk := await stream.receive_some():
            received += chunk
        assert received == b"early"
        await stream.send_eof()
        await thread(take, 1 << 30)
        assert client.at_end


async def test_either_end_severs_with_a_reason() -> None:
    """The frame that says so arrives before the end of the descriptor."""
    async with connected() as (path, client, _):
        client.say(SEVER, "enough", "for today")
        await path.wait_severed()
        assert isinstance(path.severed, PathSevered)
        assert (path.severed.code, path.severed.text) == ("enough", "for today")
    async with connected() as (path, client, _):
        path.sever("busy", "no time")
        with pytest.raises(Severed) as caught:
            await thread(client.pump)
        assert caught.value.args == ("busy", "no time")
        with pytest.raises(Unbound):
            await thread(client.pump)


def test_last_words_come_after_a_reset() -> None:
    """An end that closes its socket with something unread resets the other one, which reads on."""
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with left, right:
        client = Client()
        left.send(msgpack.packb([0, 2, 64, 1, 0, 0, 0, 0, 0]))
        assert client.bind(right) == "fresh"
        left.send(msgpack.packb([SEVER, "closed", "in order"]))
        left.close()
        with pytest.raises(Severed) as caught:
            client.pump()
        assert caught.value.args == ("closed", "in order")
        with pytest.raises(Unbound):
            client.pump()


# -- bindings ---------------------------------------------------------------------------------------------------------


async def test_cut_path_goes_on_over_the_next_descriptor() -> None:
    """What was on its way in either direction, or asked for meanwhile, arrives once and in order; nobody notices."""
    async with connected() as (path, client, line), trio.open_nursery() as nursery:
        replies: dict[str, Any] = {}

        async def call(body: str) -> None:
            replies[body] = await path.call(body)

        sent = [client.submit(CALL, number) for number in range(3)]
        nursery.start_soon(call, "before")
        await trio.testing.wait_all_tasks_blocked()
        line.cut()
        nursery.start_soon(call, "between")
        await trio.testing.wait_all_tasks_blocked()
        line.offer()
        assert await line.bind() == "resumed"
        got = [await path.receive() for _ in range(3)]
        assert [each.body for each in got] == [0, 1, 2]
        assert not any(each.redelivered for each in got)
        for each in got:
            await each.reply(each.body)
        for ident in sent:
            assert (await thread(client.end_of, ident))[0] == [REPLY, ident, ident - 1]
        for body in ("before", "between"):
            message = await thread(client.next)
            assert (message.body, message.redelivered) == (body, False)
            client.say(REPLY, message.id, body.upper())
        await until(lambda: len(replies) == 2)
        assert replies == {"before": "BEFORE", "between": "BETWEEN"}
        assert path.meter.redelivered == 0


async def test_cut_after_cut_loses_and_doubles_nothing() -> None:
    """A hundred messages in each direction, ten bindings, some of them cut before any HELLO was read."""
    async with connected() as (path, client, line):
        handled: list[int] = []

        async def note(message: Message) -> Any:
            handled.append(message.body)
            return message.body

        def ask(start: int) -> list[int]:
            return [client.submit(CALL, number) for number in range(start, start + 10)]

        idents: list[int] = []
        async with serving(path, note):
            for turn in range(10):
                idents += await thread(ask, 10 * turn)
                line.cut()
                line.offer()
                if turn % 3 == 0:
                    line.cut()  # the path has said HELLO to nobody
                    line.offer()
                assert await line.bind() == "resumed"
            for ident in idents:
                assert (await thread(client.end_of, ident))[0] == [REPLY, ident, ident - 1]
        assert handled == list(range(100))


async def test_hello_says_what_seen_did_not() -> None:
    """What the client has received without a SEEN is not written again over the next descriptor."""
    async with connected() as (path, client, line), serving(path):
        client.told = 1 << 62

        def many() -> None:
            for number in range(100):
                assert client.call(number) == number

        for turn in (1, 2):
            await thread(many)
            assert client.received == 100 * turn
            line.cut()
            line.offer()
            assert await line.bind() == "resumed"
        assert await thread(client.call, "once") == "once"
        assert client.received == 201


def greet(client: Client, sock: socket.socket) -> None:
    """Say the client's HELLO and read nothing: what is lost when a descriptor ends early."""
    client.sock = sock
    client._write((0, 2, 64, client.token, client.known, 0, 0, 0, 0))


@pytest.mark.parametrize("known", [0, 12345], ids=["new", "survivor"])
async def test_first_hello_that_only_the_path_has_read_is_no_harm(known: int) -> None:
    """The path knows the client, which knows nobody or another: what the path had written goes again."""
    line = Line()
    line.client = FullClient()
    line.client.known = known
    path = Path(line.ours(), name="it", rebind=line.rebind)
    try:
        with trio.fail_after(LIMIT):
            async with trio.open_nursery() as nursery:
                await nursery.start(path.run)
                greet(line.client, line.sockets[-1])
                nursery.start_soon(path.send, "hello")
                await until(lambda: path.meter.sent > 0)
                line.cut()
                line.offer()
                assert await line.bind() == ("successor" if known else "fresh")
                message = await thread(line.client.next)
                assert (message.id, message.body) == (1, "hello")
                line.client.say(ACK, 1, 1)
                await until(lambda: path.meter.outstanding == 0)
                path.sever()
                nursery.cancel_scope.cancel()
    finally:
        line.close()


async def test_hello_of_a_successor_that_it_alone_has_said_is_no_harm() -> None:
    """The path has met the successor, which has not heard so: once more it is told what there is of before."""
    async with connected() as (path, client, line), trio.open_nursery() as nursery:
        nursery.start_soon(path.send, "still there?")
        await thread(client.next)
        line.cut()
        line.offer()
        after = Client()
        greet(after, line.sockets[-1])
        await until(lambda: path.meter.redelivered == 1)
        line.cut()
        line.offer()
        assert await line.bind(after) == "fresh"
        message = await thread(after.next)
        assert (message.id, message.body, message.redelivered) == (1, "still there?", True)
        after.say(ACK, 1, 1)


async def test_hello_of_a_path_that_only_its_successor_has_read_is_no_harm() -> None:
    """The other way round: the client has met the new path, which has not heard so, and then they meet again."""
    new = Line()
    after = Path(new.ours(), name="after", rebind=new.rebind)
    try:
        client = FullClient()
        async with connected(client=client) as (_, _, line):
            call = client.submit(CALL, "still there?")
            line.cut()
            async with trio.open_nursery() as nursery:
                await nursery.start(after.run)
                new.sockets[-1].shutdown(socket.SHUT_WR)  # nothing that the client says arrives
                assert await new.bind(client) == "successor"
                new.offer()
                assert await new.bind() == "resumed"
                message = await after.receive()
                assert (message.body, message.redelivered) == ("still there?", True)
                await message.reply("yes")
                assert (await thread(client.end_of, call))[0] == [REPLY, call, "yes"]
                after.sever()
                nursery.cancel_scope.cancel()
    finally:
        new.close()


async def test_successor_gets_what_had_not_ended() -> None:
    """Another client in the place of the first: old ids, priority first, marked redelivered; new ones are not."""
    async with connected() as (path, client, line), trio.open_nursery() as nursery:
        replies: dict[str, Any] = {}

        async def call(body: str, priority: bool = False) -> None:
            replies[body] = await path.call(body, priority=priority)

        for body, priority in (("first", False), ("second", False), ("urgent", True)):
            nursery.start_soon(call, body, priority)
            await trio.testing.wait_all_tasks_blocked()
        while len(client.inbox) < 3:
            await thread(client.pump)
        client.say(REPLY, 1, "done")
        await until(lambda: "first" in replies)
        unanswered = client.submit(CALL, "of the dead")
        message = await path.receive()
        line.cut()
        await trio.testing.wait_all_tasks_blocked()
        assert message.body == "of the dead"
        line.offer()
        after = Client()
        assert await line.bind(after) == "fresh"
        assert after.again == [2, 1]
        await message.purged.wait()
        await message.reply("to nobody")
        nursery.start_soon(call, "third")
        messages = [await thread(after.next) for _ in range(3)]
        assert [each[1:3] for each in messages] == [(-1, "urgent"), (2, "second"), (3, "third")]
        assert [each.redelivered for each in messages] == [True, True, False]
        for each in messages:
            after.say(REPLY, each.id, "done")
        await until(lambda: len(replies) == 4)
        assert path.meter.redelivered == 2
        async with serving(path):
            assert unanswered == 1
            assert await thread(after.call, "from 1 again") == "from 1 again"


async def test_client_outlives_the_path_at_its_other_end() -> None:
    """Another path in the place of the first is the successor: it takes the client's messages as redelivered."""
    client = FullClient()
    async with connected(client=client) as (_, _, line):
        call = client.submit(CALL, "still there?")
        client.submit(SEND, "by the way")
        client.submit(CALL, "at once", priority=True)
        client.withdraw(client.submit(CALL, "never mind"))
        line.cut()
        after = Path(line.ours(), name="after")
        async with trio.open_nursery() as nursery:
            await nursery.start(after.run)
            assert await line.bind() == "successor"
            again = [await after.receive() for _ in range(3)]
            assert [each.body for each in again] == ["at once", "still there?", "by the way"]
            assert all(each.redelivered for each in again)
            await again[0].reply()
            await again[1].reply("yes")
            assert (await thread(client.end_of, call))[0] == [REPLY, call, "yes"]
            client.submit(SEND, "new")
            assert not (await after.receive()).redelivered
            after.sever()
            nursery.cancel_scope.cancel()


async def test_quiesced_successor_is_sent_nothing_before_it_resumes() -> None:
    """Its HELLO says so."""
    async with connected() as (path, client, line), trio.open_nursery() as nursery:
        nursery.start_soon(path.send, "wait")
        await thread(client.next)
        line.cut()
        line.offer()
        after = FullClient(quiesced=True)
        await line.bind(after)
        await trio.testing.wait_all_tasks_blocked()
        line.sockets[-1].setblocking(False)
        with pytest.raises(BlockingIOError):
            line.sockets[-1].recv(1, socket.MSG_PEEK)
        line.sockets[-1].settimeout(LIMIT)
        after.resume()
        message = await thread(after.next)
        assert (message.body, message.redelivered) == ("wait", True)
        after.say(ACK, 1, 1)


async def test_stream_goes_on_over_the_next_descriptor() -> None:
    """Bytes are counted frames, too."""
    client = FullClient()
    async with connected(client=client) as (path, _, line):
        client.say(STREAM)
        client.say(DATA, b"one ")
        await until(lambda: path.session.state is State.OFFERED)
        stream = path.stream()
        await stream.send_all(b"uno ")
        client.say(DATA, b"two ")
        line.cut()
        client.say(DATA, b"three")
        await stream.send_all(b"due")
        line.offer()
        assert await line.bind() == "resumed"
        client.say(EOF)
        received = b""
        while chunk := await stream.receive_some():
            received += chunk
        assert received == b"one two three"
        while len(client.bytes) < 7:
            await thread(client.pump)
        assert client.bytes == b"uno due"


async def test_path_without_another_descriptor_is_lost() -> None:
    """As at the operator's socket."""
    line = Line()
    path = Path(line.ours())
    with trio.fail_after(LIMIT):
        async with trio.open_nursery() as nursery:
            await nursery.start(path.run)
            await line.bind()
            line.cut()
            await path.wait_severed()
    assert isinstance(path.severed, PathSevered)
    assert path.severed.code == "lost"
    line.sockets[-1].close()


# -- a running system -------------------------------------------------------------------------------------------------


def test_client_asks_a_running_system(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over the operator's socket: calls, a refusal, and events that come as messages until the system has ended.

    So does the peer that the reference shows, which is run as it stands there.
    """
    bench.write(server=SERVER)
    bench.up()
    monkeypatch.chdir(bench.runtime / bench.name)  # the whole path may be too long for a socket
    address = "operator.sock"
    page = (pathlib.Path(__file__).parents[1] / "docs" / "reference" / "wire.md").read_text()
    (script,) = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    done = subprocess.run([sys.executable, "-c", script, address], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    kind, ident, body = ast.literal_eval(done.stdout)
    assert (kind, ident, body["system"]) == (REPLY, 1, bench.name)

    client = Client()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.settimeout(60)
        sock.connect(address)
        assert client.bind(sock) == "fresh"
        assert client.call(["status", {}])["system"] == bench.name
        assert client.call(["nonsense", {}])[2] == "unknown-verb"
        assert [each["name"] for each in client.call(["ps", {}])["machines"]] == ["SERVER"]
        client.call(["follow", {"records": False, "events": True}])
        assert client.call(["down", {}]) is None
        states = []
        while (message := client.next()).body[0] != "end":
            assert message.body[0] == "event"
            states.append((message.body[1]["machine"], message.body[1]["state"]))
            client.say(ACK, message.id, message.id)
        assert ("SERVER", "STOPPED") in states
        client.say(ACK, message.id, message.id)
        with contextlib.suppress(Severed, Unbound):
            while True:
                client.pump()
