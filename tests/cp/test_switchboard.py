"""Paths made, held and cut; the targets are played by the test."""

import errno
import os
import resource
import select
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest
import trio
import trio.testing
from tests.leaks import assert_none_left, descriptors

from retinue.cp.directory import Edge
from retinue.cp.switchboard import MAX_PATHS, Switchboard
from retinue.pipes import Path, PathSevered, Rejected, SocketTransport, open_path, wire


@pytest.fixture(autouse=True)
def _no_descriptor_leaks() -> Iterator[None]:
    before = descriptors()
    yield
    assert_none_left(before)


class Machine:
    """A Target that does as it is told."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.ready = trio.Event()
        self.ready.set()
        self.ends: list[socket.socket] = []
        self.offered: list[tuple[str, int]] = []
        self.waited: list[bool] = []
        self.during: Callable[[], Awaitable[None]] | None = None

    async def wait_ready(self, *, wait: bool) -> None:
        self.waited.append(wait)
        if not wait and not self.ready.is_set():
            raise Rejected("not-ready", f"{self.name} is STARTING")
        if not self.ready.is_set():  # as the real one: no checkpoint when there is nothing to wait for
            await self.ready.wait()

    async def offer(self, peer: str, limit: int, descriptor: int) -> None:
        self.offered.append((peer, limit))
        if self.during is not None:
            await self.during()
        self.ends.append(socket.socket(fileno=os.dup(descriptor)))

    def die(self) -> None:
        for end in self.ends:
            end.close()
        self.ends.clear()


class Bench:
    """A switchboard between A, B and the star services."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.nursery = nursery
        self.a, self.b = Machine("A"), Machine("B")
        self.served: list[tuple[str, Path]] = []
        self.board = Switchboard({"A": self.a, "B": self.b}, {"*CP": self.serve}, nursery)

    async def serve(self, machine: str, path: Path) -> None:
        self.served.append((machine, path))
        await path.serve(self.answer)

    async def answer(self, message: Any) -> Any:
        return message.body

    async def connect(self, origin: str = "A", to: str = "B", *, wait: bool = True) -> socket.socket:
        edge = Edge(name="x", to=to, limit=7, lazy=False)
        return socket.socket(fileno=await self.board.connect(origin, edge, wait=wait))


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            made = Bench(nursery)
            nursery.start_soon(made.board.watch)
            await trio.testing.wait_all_tasks_blocked()
            yield made
            made.a.die()
            made.b.die()
            nursery.cancel_scope.cancel()


def ended(end: socket.socket) -> bool:
    """Whether an end of a path sees the end of it."""
    poll = select.poll()
    poll.register(end, select.POLLRDHUP)
    return bool(poll.poll(0))


# -- connecting --------------------------------------------------------------------------------------------------------


async def test_path_joins_the_two_ends(bench: Bench) -> None:
    """The target learns who and how many; the control program is not on the way."""
    with await bench.connect() as end:
        assert bench.b.offered == [("A", 7)]
        assert bench.b.waited == [True]
        end.send(b"hello")
        assert bench.b.ends[0].recv(100) == b"hello"
        bench.b.ends[0].send(b"back")
        assert end.recv(100) == b"back"
        assert bench.board.open_paths == 1
        assert not end.get_inheritable()


async def test_connect_waits_for_the_target(bench: Bench) -> None:
    """As long as it takes; nothing is made before."""
    bench.b.ready = trio.Event()
    made: list[socket.socket] = []

    async def connect() -> None:
        made.append(await bench.connect())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(connect)
        await trio.testing.wait_all_tasks_blocked()
        assert (made, bench.board.open_paths) == ([], 0)
        bench.b.ready.set()
    made[0].close()


async def test_connect_without_waiting(bench: Bench) -> None:
    """Refused at once."""
    bench.b.ready = trio.Event()
    with pytest.raises(Rejected, match="B is STARTING") as caught:
        await bench.connect(wait=False)
    assert caught.value.code == "not-ready"


async def test_target_that_refuses(bench: Bench) -> None:
    """Its reason arrives, nothing stays open."""

    async def refuse() -> None:
        raise Rejected("not-listening", "it never listens")

    bench.b.during = refuse
    before = descriptors()
    with pytest.raises(Rejected, match="it never listens"):
        await bench.connect()
    assert bench.board.open_paths == 0
    assert_none_left(before)


async def test_target_that_dies_while_it_is_asked(bench: Bench) -> None:
    """With waiting its successor is asked, without it the connection is refused."""
    deaths = 3

    async def die() -> None:
        nonlocal deaths
        if deaths:
            deaths -= 1
            raise PathSevered("lost")

    bench.b.during = die
    (await bench.connect()).close()
    assert len(bench.b.offered) == 4
    deaths = 1
    with pytest.raises(Rejected, match="B died while it was asked") as caught:
        await bench.connect(wait=False)
    assert caught.value.code == "not-ready"


async def test_target_that_seems_ready_and_cannot_be_asked_stops_nobody_else(bench: Bench) -> None:
    """Other tasks get their turns, so that somebody can bury it."""
    dead = True

    async def gone() -> None:
        if dead:
            raise PathSevered("lost")

    async def bury() -> None:
        nonlocal dead
        await trio.lowlevel.checkpoint()
        dead = False

    bench.b.during = gone
    bench.nursery.start_soon(bury)
    (await bench.connect()).close()


async def test_connect_that_is_cancelled_leaves_nothing(bench: Bench) -> None:
    """While it waits for the target's answer."""
    bench.b.during = trio.sleep_forever
    before = descriptors()
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bench.connect)
            await trio.testing.wait_all_tasks_blocked()
            assert bench.board.open_paths == 1
            scope.cancel()
    assert bench.board.open_paths == 0
    assert_none_left(before)


async def test_target_that_raises_something_else(bench: Bench) -> None:
    """A bug of ours passes through; what was made is undone."""

    async def bug() -> None:
        raise ZeroDivisionError

    bench.b.during = bug
    before = descriptors()
    with pytest.raises(ZeroDivisionError):
        await bench.connect()
    assert bench.board.open_paths == 0
    assert_none_left(before)


async def test_no_descriptors_left(bench: Bench) -> None:
    """Refused as exhausted, for machines, for star services and for the control program's own paths."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    try:
        for to in ("B", "*CP"):
            with pytest.raises(Rejected, match=os.strerror(errno.EMFILE)) as caught:
                await bench.connect(to=to)
            assert caught.value.code == "exhausted"
        with pytest.raises(Rejected, match=os.strerror(errno.EMFILE)):
            async with bench.board.open_to("*LOG", bench.b):
                pass
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    (await bench.connect()).close()


async def test_machine_has_a_limit_of_paths(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """To machines and to star services together; a path that ends makes room."""
    monkeypatch.setattr("retinue.cp.switchboard.MAX_PATHS", 3)
    assert MAX_PATHS > 3
    ends = [await bench.connect(), await bench.connect(to="*CP"), await bench.connect()]
    for to in ("B", "*CP"):
        with pytest.raises(Rejected, match="A has 3 paths open") as caught:
            await bench.connect(to=to)
        assert caught.value.code == "exhausted"
    (await bench.connect(origin="B", to="A")).close()
    for end in ends:
        end.close()
        await trio.testing.wait_all_tasks_blocked()
        (await bench.connect()).close()
        await trio.testing.wait_all_tasks_blocked()
        (await bench.connect(to="*CP")).close()
        await trio.testing.wait_all_tasks_blocked()


# -- cutting -----------------------------------------------------------------------------------------------------------


async def test_path_is_let_go_when_the_origin_closes(bench: Bench) -> None:
    """At once, and the target sees the end."""
    with await bench.connect():
        pass
    await trio.testing.wait_all_tasks_blocked()
    assert bench.board.open_paths == 0
    assert bench.b.ends[0].recv(1) == b""


async def test_path_is_let_go_when_the_target_shuts_it_down(bench: Bench) -> None:
    """A path closes by shutdown, since duplicates may live on."""
    with await bench.connect() as end:
        SocketTransport(bench.b.ends.pop()).close()
        await trio.testing.wait_all_tasks_blocked()
        assert bench.board.open_paths == 0
        assert ended(end)


async def test_death_of_a_target_is_not_seen_by_its_descriptor(bench: Bench) -> None:
    """The duplicate keeps it open: whoever buries the machine severs its paths."""
    with await bench.connect() as end:
        bench.b.die()
        await trio.testing.wait_all_tasks_blocked()
        assert not ended(end)
        assert bench.board.sever("B") == 1
        assert ended(end)
        assert bench.board.sever("B") == 0


async def test_sever_cuts_what_a_machine_has_opened_and_what_was_opened_to_it(bench: Bench) -> None:
    """And nothing else."""
    with (
        await bench.connect("A", "B") as one,
        await bench.connect("B", "A") as two,
        await bench.connect("A", "A") as three,
    ):
        assert bench.board.sever("B") == 2
        assert (ended(one), ended(two), ended(three)) == (True, True, False)
        assert bench.board.open_paths == 1


async def test_path_that_is_cut_while_it_is_offered(bench: Bench) -> None:
    """The originator gets an end that is at its end."""

    async def cut() -> None:
        bench.board.sever("B")

    offer = bench.b.offer

    async def offer_then_cut(peer: str, limit: int, descriptor: int) -> None:
        await offer(peer, limit, descriptor)
        await cut()

    bench.b.offer = offer_then_cut  # type: ignore[method-assign]
    with await bench.connect() as end:
        assert ended(end)
    assert bench.board.open_paths == 0


async def test_many_paths_come_and_go(bench: Bench) -> None:
    """Descriptors are used again and nothing is mixed up."""
    before = descriptors()
    for _ in range(5):
        ends = [await bench.connect() for _ in range(100)]
        assert bench.board.open_paths == 100
        for number, end in enumerate(ends):
            end.send(str(number).encode())
        assert [end.recv(10) for end in bench.b.ends] == [str(number).encode() for number in range(100)]
        for end in ends[::2]:
            end.close()
        await trio.testing.wait_all_tasks_blocked()
        assert bench.board.open_paths == 50
        bench.board.sever("A")
        for end in ends[1::2]:
            end.close()
        bench.b.die()
    assert bench.board.open_paths == 0
    assert_none_left(before)


# -- star services and own paths ---------------------------------------------------------------------------------------


async def test_star_service_is_a_path_like_any_other(bench: Bench) -> None:
    """With the machine's name as its peer."""
    async with open_path(SocketTransport(await bench.connect(to="*CP"))) as path:
        assert await path.call("x") == "x"
        ((machine, served),) = bench.served
        assert (machine, served.peer, served.limit) == ("A", "A", 7)
    await served.wait_severed()


async def test_star_service_takes_short_requests_only(bench: Bench) -> None:
    """What a machine sends there costs the control program its memory."""
    async with open_path(SocketTransport(await bench.connect(to="*CP"))) as path:
        assert await path.call(b"x" * 60_000) == b"x" * 60_000
        with pytest.raises(PathSevered, match="violation"):
            await path.call(b"x" * (wire.MAX_PACKET + 1))


async def test_path_of_the_control_programs_own(bench: Bench) -> None:
    """For the length of a block."""
    async with bench.board.open_to("*LOG", bench.b) as path:
        assert bench.b.offered == [("*LOG", wire.DEFAULT_LIMIT)]
        other = Path(SocketTransport(bench.b.ends.pop()))
        await bench.nursery.start(other.run)
        bench.nursery.start_soon(other.serve, bench.answer)
        assert await path.call(1) == 1
    await other.wait_severed()
    await trio.testing.wait_all_tasks_blocked()
    assert bench.board.open_paths == 0
