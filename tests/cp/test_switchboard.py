"""Paths made, held and cut; the targets are played by the test."""

import errno
import os
import socket
from collections.abc import AsyncIterator
from functools import partial

import pytest
import trio
import trio.testing
from tests.boards import Bench, Onlooker, Return, ended, open_board, receive
from tests.leaks import assert_none_left, descriptors, few_left

from retinue.cp.circuit import LINGER, MAX_PATHS, Circuit
from retinue.cp.directory.model import OnRestart
from retinue.cp.joining import MOST_REJOINS, RETURN_LIMIT
from retinue.pipes import Path, PathSevered, Rejected, SocketTransport, open_path, wire


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    async with open_board() as made:
        yield made


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
    with few_left():
        for to in ("B", "*CP"):
            with pytest.raises(Rejected, match=os.strerror(errno.EMFILE)) as caught:
                await bench.connect(to=to)
            assert caught.value.code == "exhausted"
        with pytest.raises(Rejected, match=os.strerror(errno.EMFILE)):
            async with bench.board.open_to("*LOG", bench.b):
                pass
    (await bench.connect()).close()


async def test_machine_has_a_limit_of_paths(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """To machines and to star services together; a path that ends makes room."""
    monkeypatch.setattr("retinue.cp.circuit.MAX_PATHS", 3)
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
        assert bench.died(bench.b) == 1
        assert ended(end)
        assert bench.board.died("B", 1, "it died") == 0


async def test_death_cuts_what_a_machine_has_opened_and_what_was_opened_to_it(bench: Bench) -> None:
    """And nothing else, and nothing of another generation."""
    with (
        await bench.connect("A", "B") as one,
        await bench.connect("B", "A") as two,
        await bench.connect("A", "A") as three,
    ):
        assert bench.board.died("B", 2, "it died") == 0
        assert bench.board.died("B", 1, "it died") == 2
        assert (ended(one), ended(two), ended(three)) == (True, True, False)
        assert bench.board.open_paths == 1


async def test_path_that_is_cut_while_it_is_offered(bench: Bench) -> None:
    """The originator gets an end that is at its end."""

    async def cut() -> None:
        bench.board.died("B", 1, "it died")

    offer = bench.b.offer

    async def offer_then_cut(circuit: Circuit, descriptor: int) -> None:
        await offer(circuit, descriptor)
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
        assert len(set(bench.b.idents)) == 100
        assert bench.board.open_paths == 100
        for number, end in enumerate(ends):
            end.send(str(number).encode())
        assert [end.recv(10) for end in bench.b.ends] == [str(number).encode() for number in range(100)]
        for end in ends[::2]:
            end.close()
        await trio.testing.wait_all_tasks_blocked()
        assert bench.board.open_paths == 50
        bench.board.died("A", 1, "it died")
        for end in ends[1::2]:
            end.close()
        bench.b.die()
    assert bench.board.open_paths == 0
    assert_none_left(before)


# -- connecting again --------------------------------------------------------------------------------------------------


async def test_both_come_back_to_a_path_that_was_cut(bench: Bench) -> None:
    """Whoever is first; as often as it happens; the control program can cut it again."""
    with await bench.connect() as end:
        (ident,) = bench.b.idents
        for first, second in ("A", "B"), ("B", "A"), ("A", "B"):
            assert bench.board.cut("A.x") == 1
            assert ended(end)
            assert bench.board.open_paths == 0
            one = Return(bench, first, ident)
            await trio.testing.wait_all_tasks_blocked()
            assert not one.done.is_set()
            other = Return(bench, second, ident)
            async with one as left, other as right:
                assert bench.board.open_paths == 1
                assert bench.board.paths_by_edge() == {"A.x": 1}
                left.send(b"hello")
                assert right.recv(100) == b"hello"
                end.close()
                end = left.dup()
                bench.b.ends.append(right.dup())
        end.close()


async def test_path_that_both_have_closed_is_nobodys(bench: Bench) -> None:
    """It counts no more, but for a while it is known in case it was cut by accident; then it is forgotten."""
    (await bench.connect()).close()
    await trio.testing.wait_all_tasks_blocked()
    assert bench.board.open_paths == 0
    (ident,) = bench.b.idents
    async with bench.both_return(ident):
        assert bench.board.open_paths == 1
    await trio.testing.wait_all_tasks_blocked()
    circuits = bench.board._circuits
    assert circuits.get(ident) is not None
    circuits.sweep()
    circuit = circuits.get(ident)
    assert circuit is not None
    circuit.idle_since -= LINGER
    circuits.sweep()
    assert circuits.get(ident) is None
    assert "no such path" in (await Return(bench, "A", ident).refused())[1]


async def test_paths_that_nobody_asks_for_are_bounded(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that opens and closes paths without end makes the control program forget the oldest of its own."""
    other = await bench.connect("B", "A")
    other.close()
    monkeypatch.setattr("retinue.cp.circuit.MAX_PATHS", 3)
    for _ in range(10):
        (await bench.connect()).close()
        await trio.testing.wait_all_tasks_blocked()
    known = [circuit.ident for circuit in bench.board._circuits]
    assert known == [*bench.a.idents, *bench.b.idents[-3:]]


@pytest.mark.parametrize("asker", ["A", "B"])
async def test_other_end_that_does_not_come_back(bench: Bench, asker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its process lives: it has a while for it, then the path is lost for both."""
    monkeypatch.setattr("retinue.cp.joining.RETURN_LIMIT", 0.05)
    assert RETURN_LIMIT == 2.0
    (await bench.connect()).close()
    await trio.testing.wait_all_tasks_blocked()
    (ident,) = bench.b.idents
    other = "B" if asker == "A" else "A"
    why = ("lost", f"{other} did not come back to the path")
    assert await Return(bench, asker, ident).refused() == why
    assert await Return(bench, other, ident).refused() == why
    assert bench.board.open_paths == 0


async def test_successor_takes_the_place_of_a_dead_target(bench: Bench) -> None:
    """With keep: the originator waits for it, however long it takes, and more than one death."""
    with await bench.connect():
        (ident,) = bench.b.idents
        bench.b.ready = trio.Event()
        assert bench.died(bench.b) == 1
        asked = Return(bench, "A", ident)
        await trio.testing.wait_all_tasks_blocked()
        assert not asked.done.is_set()
        deaths = 2

        async def die() -> None:
            nonlocal deaths
            if deaths:
                deaths -= 1
                bench.died(bench.b)
                raise PathSevered("lost")

        bench.b.during = die
        bench.b.ready.set()
        async with asked as end:
            assert bench.b.idents == [ident]
            assert bench.b.offered == [("A", 7)] * 4
            end.send(b"again")
            assert bench.b.ends[-1].recv(100) == b"again"
            assert bench.board.open_paths == 1
            # The successor may ask for it like its predecessor, which may not.
            assert "no such path" in (await Return(bench, "B", ident, generation=1).refused())[1]
            assert bench.board.cut("A.x") == 1
            async with bench.both_return(ident, generation=4):
                assert bench.board.open_paths == 1


async def test_target_that_dies_while_the_originator_waits_for_it(bench: Bench) -> None:
    """The originator saw the end first: it is told of the death, or gets the successor."""
    for on_restart in "keep", "reconnect":
        with await bench.connect(on_restart=on_restart) as end:
            end.shutdown(socket.SHUT_RDWR)
            await trio.testing.wait_all_tasks_blocked()
            asked = Return(bench, "A", bench.b.idents[-1])
            await trio.testing.wait_all_tasks_blocked()
            bench.died(bench.b, "B died: of boredom")
            if on_restart == "keep":
                async with asked:
                    assert bench.board.open_paths == 1
            else:
                assert await asked.refused() == ("lost", "B died: of boredom")


@pytest.mark.parametrize(
    ("on_restart", "stream"), [("reconnect", False), ("restart", False), ("keep", True), ("reconnect", True)]
)
async def test_death_of_the_target_ends_what_is_not_kept(bench: Bench, on_restart: OnRestart, stream: bool) -> None:
    """With the cause, at once; a byte stream in each case."""
    with await bench.connect(on_restart=on_restart):
        (ident,) = bench.b.idents
        bench.died(bench.b, "B died: killed by SIGKILL")
        asked = Return(bench, "A", ident, stream=stream)
        assert await asked.refused() == ("lost", "B died: killed by SIGKILL")
        assert bench.board.open_paths == 0


@pytest.mark.parametrize("code", ["broken", "not-listening"])
async def test_no_successor_is_to_come(bench: Bench, code: str) -> None:
    """The originator learns why: what the machine's state says, or what the successor says itself."""
    with await bench.connect():
        (ident,) = bench.b.idents
        bench.b.ready = trio.Event()
        bench.died(bench.b)
        asked = Return(bench, "A", ident)
        await trio.testing.wait_all_tasks_blocked()

        async def refuse() -> None:
            raise Rejected(code, "B is deaf")

        if code == "broken":
            bench.b.broken = "B is BROKEN: killed by SIGKILL"
        else:
            bench.b.during = refuse
        bench.b.ready.set()
        expected = ("lost", "B is BROKEN: killed by SIGKILL") if code == "broken" else (code, "B is deaf")
        assert await asked.refused() == expected
        assert bench.board.open_paths == 0


async def test_death_of_the_originator_is_told_to_the_target(bench: Bench) -> None:
    """Before it asks, and while it waits; after both have died nothing is known."""
    for early in True, False:
        with await bench.connect() as end:
            ident = bench.b.idents[-1]
            end.shutdown(socket.SHUT_RDWR)
            await trio.testing.wait_all_tasks_blocked()
            if early:
                bench.board.died("A", 1, "A died: exit status 3")
            asked = Return(bench, "B", ident)
            if not early:
                await trio.testing.wait_all_tasks_blocked()
                assert not asked.done.is_set()
                bench.board.died("A", 1, "A died: exit status 3")
            assert await asked.refused() == ("lost", "A died: exit status 3")
    bench.died(bench.b)
    assert list(bench.board._circuits) == []


async def test_hostile_asks_are_refused_and_hurt_nobody(bench: Bench) -> None:
    """Numbers that are unknown or another's, a path that lives, a second ask: the paths of others stay as they are."""
    with await bench.connect() as end:
        (ident,) = bench.b.idents
        nothing = {("lost", f"the control program knows no such path of {name}") for name in "AB"}
        for machine, generation, number in (
            *(("A", 1, number) for number in (0, -1, ident + 1, 2**63, 2**200)),
            ("A", 2, ident),
            ("A", 0, ident),
            ("B", 2, ident),
        ):
            assert await Return(bench, machine, number, generation=generation).refused() in nothing
        stranger = await Return(bench, "C", ident).refused()
        assert stranger == ("lost", "the control program knows no such path of C")
        for machine in "A", "B":
            assert (await Return(bench, machine, ident).refused())[0] == "violation"
        assert not ended(end)
        end.send(b"x")
        assert bench.b.ends[0].recv(1) == b"x"
        bench.board.cut("A.x")
        first = Return(bench, "A", ident)
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(100):
            assert (await Return(bench, "A", ident).refused())[0] == "violation"
        second = Return(bench, "B", ident)
        async with first, second:
            assert bench.board.open_paths == 1


async def test_path_that_is_cut_all_the_time_is_ended(bench: Bench) -> None:
    """An end that hangs up as soon as it has come back costs the other one its work."""
    with await bench.connect() as end:
        (ident,) = bench.b.idents
        end.shutdown(socket.SHUT_RDWR)
        for _ in range(MOST_REJOINS):
            async with bench.both_return(ident) as (left, _):
                left.shutdown(socket.SHUT_RDWR)
        one, other = Return(bench, "A", ident), Return(bench, "B", ident)
        assert (await one.refused())[0] == (await other.refused())[0] == "violation"
        assert bench.board.open_paths == 0


async def test_asker_that_goes_away_leaves_nothing(bench: Bench) -> None:
    """While it waits for the other end or for a successor, and in the moment both have come."""
    before = descriptors()
    with await bench.connect() as end:
        (ident,) = bench.b.idents
        end.shutdown(socket.SHUT_RDWR)
        for machine in "A", "B":
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(partial(bench.board.rebind, machine, 1, ident, stream=False))
                    await trio.testing.wait_all_tasks_blocked()
                    scope.cancel()
        for _ in range(10):
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(partial(bench.board.rebind, "A", 1, ident, stream=False))
                    await trio.testing.wait_all_tasks_blocked()
                    scope.cancel()
                    other = Return(bench, "B", ident)
            if (await other.outcome()) is not None:
                async with other as right:
                    assert right.recv(1) == b""
        await trio.testing.wait_all_tasks_blocked()
        bench.b.ready = trio.Event()
        bench.died(bench.b)
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(partial(bench.board.rebind, "A", 1, ident, stream=False))
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()
        assert bench.board.open_paths == 0
        bench.board.died("A", 1, "A died")
        assert list(bench.board._circuits) == []
    assert_none_left(before)


async def test_target_cannot_come_back_while_its_successor_is_asked(bench: Bench) -> None:
    """The originator waits for one offer; a cut in the middle of it makes both come back."""
    with await bench.connect():
        (ident,) = bench.b.idents
        bench.died(bench.b)
        hold = trio.Event()
        bench.b.during = hold.wait
        asked = Return(bench, "A", ident)
        await trio.testing.wait_all_tasks_blocked()
        bench.board.cut("A.x")
        early = Return(bench, "B", ident, generation=2)
        await trio.testing.wait_all_tasks_blocked()
        assert not early.done.is_set()
        hold.set()
        async with asked as end:
            assert ended(end)
            late = Return(bench, "A", ident)
            async with late as left, early as right:
                left.send(b"there")
                assert right.recv(10) == b"there"


async def test_no_descriptors_left_to_come_back(bench: Bench) -> None:
    """Both learn so, and the path has ended."""
    with await bench.connect() as end:
        (ident,) = bench.b.idents
        end.shutdown(socket.SHUT_RDWR)
        one = Return(bench, "A", ident)
        await trio.testing.wait_all_tasks_blocked()
        with few_left(2):
            other = Return(bench, "B", ident)
            assert (await one.refused())[0] == (await other.refused())[0] == "exhausted"
        assert bench.board.open_paths == 0


async def test_path_of_the_control_programs_own_does_not_come_back(bench: Bench) -> None:
    """Whoever had the other end is told so."""
    async with bench.board.open_to("*LOG", bench.b):
        (ident,) = bench.b.idents
    await trio.testing.wait_all_tasks_blocked()
    assert await Return(bench, "B", ident).refused() == ("lost", "*LOG has ended the path")


# -- looking on --------------------------------------------------------------------------------------------------------


async def test_tap_shows_the_packets_of_an_edge(bench: Bench) -> None:
    """Of paths that are open and of new ones, as long as it is there; paths of other edges stay as they are."""
    looking, other = Onlooker(), await bench.connect("B", "A")
    with await bench.connect() as old, other:
        (ident,) = bench.b.idents
        async with bench.board.tap("A.x", looking):
            assert ended(old)
            assert not ended(other)
            async with bench.both_return(ident) as (left, right):
                left.send(b"one")
                assert await receive(right) == b"one"
                right.send(b"two")
                assert await receive(left) == b"two"
                with await bench.connect() as new:
                    new.send(b"three")
                    assert await receive(bench.b.ends[-1]) == b"three"
                    # The last packets before an end arrive, and so does the end.
                    left.send(b"four")
                    left.shutdown(socket.SHUT_RDWR)
                    assert await receive(right) == b"four"
                    assert await receive(right) == b""
                    await trio.testing.wait_all_tasks_blocked()
                    bench.b.ends[-1].send(b"five")
                    last = bench.b.idents[-1]
                    assert looking.seen == [
                        *((ident, "->", b"one"), (ident, "<-", b"two")),
                        *((last, "->", b"three"), (ident, "->", b"four")),
                    ]
                    assert bench.died(bench.b) == 2
                    assert await receive(new) == b"five"
                    assert await receive(new) == b""
            bench.board.died("A", 1, "A died")
            assert looking.forgotten == [ident, last]
    assert bench.board.open_paths == 0


async def test_path_is_direct_again_when_nobody_looks_on(bench: Bench) -> None:
    """As often as somebody comes and goes, and with more than one at a time."""
    one, two = Onlooker(), Onlooker()
    before = descriptors()
    with await bench.connect() as end:
        (ident,) = bench.b.idents

        async def say(text: bytes) -> None:
            async with bench.both_return(ident) as (left, right):
                left.send(text)
                assert await receive(right) == text

        for _ in range(3):
            async with bench.board.tap("A.x", one):
                await say(b"one")
                async with bench.board.tap("A.x", two):
                    await say(b"both")
                await say(b"one")
            await say(b"none")
        assert ended(end)
    assert [data for _, _, data in one.seen] == [b"one", b"both", b"one"] * 3
    assert [data for _, _, data in two.seen] == [b"both"] * 3
    await trio.testing.wait_all_tasks_blocked()
    bench.b.die()
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
