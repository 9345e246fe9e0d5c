"""Paths outlive the control program: what a new one finds, and what those do who had lost an end meanwhile."""

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing
from tests.boards import Bench, Keeping, Onlooker, Return, ended, open_board
from tests.leaks import assert_none_left, descriptors, few_left

from retinue.cp.circuit import KEPT_FOR, LINGER, SPARE_FOR, SPARE_TURN
from retinue.cp.directory import Edge
from retinue.cp.joining import RETURN_LIMIT
from retinue.pipes import Path, PathSevered, Rejected, SocketTransport, Transport


@pytest.fixture
def keeping() -> Keeping:
    return Keeping()


@pytest.fixture
async def bench(keeping: Keeping) -> AsyncIterator[Bench]:
    async with open_board("S@1", "S@2", keeping=keeping) as made:
        yield made


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits for the other end does not wait long."""
    monkeypatch.setattr("retinue.cp.joining.RETURN_LIMIT", 0.05)
    assert RETURN_LIMIT == 2.0


# -- joined ------------------------------------------------------------------------------------------------------------


async def test_joined_path_goes_on(bench: Bench) -> None:
    """Before, while there is no control program, and after; the next one can cut it and sees its end."""
    with await bench.connect() as end:
        (ident,) = bench.b.idents
        for _ in range(3):
            await bench.end()
            end.send(b"nobody there")
            assert bench.b.ends[0].recv(20) == b"nobody there"
            await bench.begin()
            assert not ended(end)
            assert bench.board.open_paths == bench.board.paths_to("B") == 1
            assert bench.board.paths_by_edge() == {"A.x": 1}
            assert (await Return(bench, "A", ident).refused())[0] == "violation"
        assert bench.board.cut("A.x") == 1
        assert ended(end)
        async with bench.both_return(ident):
            await bench.replace()
            assert bench.board.open_paths == 1
        await trio.testing.wait_all_tasks_blocked()
        assert bench.board.open_paths == bench.board.paths_to("B") == 0


@contextlib.contextmanager
def holder_of(descriptor: int) -> Iterator[None]:
    """Another process that has a duplicate."""
    code = "print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=(descriptor,)
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield
        process.communicate(b"\n")


async def test_end_of_a_path_is_seen_although_another_process_holds_a_duplicate(bench: Bench) -> None:
    """When its originator closes it, and when its target shuts it down; also if nobody was there to see it."""
    for there in True, False:
        for who in "A", "B":
            origin_end = await bench.connect()
            circuit = bench.board._circuits.get(bench.b.idents[-1])
            assert circuit is not None
            assert circuit.held is not None
            held = circuit.held.fileno()
            with holder_of(held):
                if not there:
                    await bench.end()
                if who == "A":
                    origin_end.close()
                else:
                    bench.b.let_go(bench.b.idents[-1])
                if not there:
                    await bench.begin()
                await trio.testing.wait_all_tasks_blocked()
                assert bench.board.open_paths == 0
                if who == "A":
                    assert ended(bench.b.ends[-1])
                else:
                    assert ended(origin_end)
                    origin_end.close()


async def test_numbers_are_never_used_again(bench: Bench) -> None:
    """Not even of paths that nobody remembers: a machine may still ask for one."""
    for _ in range(3):
        (await bench.connect()).close()
        await trio.testing.wait_all_tasks_blocked()
        for circuit in bench.board._circuits:
            bench.board._circuits.forget(circuit)
    assert bench.keeping is not None
    highest = bench.b.idents[-1]
    for _ in range(3):
        await bench.replace()
        (await bench.connect()).close()
        assert bench.b.idents[-1] > highest
        highest = bench.b.idents[-1]


async def test_paths_of_others(bench: Bench) -> None:
    """An operator's goes on, one that the control program had for itself is over."""
    made = await bench.board.connect_operator("B")
    with socket.socket(fileno=made.descriptor) as operator:
        async with bench.board.open_to("*LOG", bench.b):
            assert bench.board.open_paths == 2
        await bench.replace()
        assert bench.board.open_paths == 1
        operator.send(b"hello")
        assert bench.b.ends[0].recv(10) == b"hello"
        assert await Return(bench, "B", bench.b.idents[1]).refused() == ("lost", "*LOG has ended the path")
    await trio.testing.wait_all_tasks_blocked()
    assert bench.board.open_paths == 0


# -- those that have lost an end ---------------------------------------------------------------------------------------


async def test_both_come_back_when_the_control_program_was_on_the_way(bench: Bench) -> None:
    """It carried the packets for a tap and took the path with it; as it does when nobody has come back yet."""
    with await bench.connect() as end:
        (ident,) = bench.b.idents
        async with bench.board.tap("A.x", Onlooker()):
            async with bench.both_return(ident) as (left, right):
                kept_left, kept_right = left.dup(), right.dup()
            await bench.end()
        with kept_left, kept_right:
            assert (ended(kept_left), ended(kept_right)) == (True, True)
        await bench.begin()
        for lost in True, False:
            async with bench.both_return(ident) as (left, right):
                left.send(b"direct")
                assert right.recv(10) == b"direct"
                assert bench.board.open_paths == 1
            if lost:
                await bench.end()
                await bench.begin()
        assert ended(end)


async def test_ask_that_nobody_has_answered_is_asked_again(bench: Bench) -> None:
    """The originator had its end, and the target not."""
    with await bench.connect():
        (ident,) = bench.b.idents
        bench.board.cut("A.x")
        async with bench.both_return(ident) as (left, _):
            first = left.dup()
        await bench.replace()
        assert not ended(first)
        # Only once, and only for a target.
        assert (await Return(bench, "A", ident).refused())[0] == "violation"
        asked = Return(bench, "B", ident)
        await trio.testing.wait_all_tasks_blocked()
        assert ended(first)
        other = Return(bench, "A", ident)
        async with asked, other:
            assert bench.board.open_paths == 1
            assert (await Return(bench, "B", ident).refused())[0] == "violation"
        first.close()


@pytest.mark.usefixtures("short")
async def test_half_made_path_ends(bench: Bench) -> None:
    """The target had accepted it and the originator never got it, and connects again."""
    (await bench.connect()).close()  # with the control program, before it was told
    (ident,) = bench.b.idents
    await bench.replace()
    assert bench.board.open_paths == 0
    with await bench.connect() as end:
        assert await Return(bench, "B", ident).refused() == ("lost", "A did not come back to the path")
        assert not ended(end)
        assert bench.board.open_paths == 1


async def test_path_that_was_being_offered(bench: Bench) -> None:
    """Nobody may have it, and nobody asks for it: it is forgotten."""
    bench.b.during = trio.sleep_forever
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.connect)
        await trio.testing.wait_all_tasks_blocked()
        await bench.end()
        nursery.cancel_scope.cancel()
    await bench.begin()
    assert bench.board.open_paths == 0
    assert bench.keeping is not None
    assert len(bench.keeping.held) == 2
    (circuit,) = bench.board._circuits
    circuit.idle_since -= LINGER
    bench.board._circuits.sweep()
    assert list(bench.board._circuits) == []


@pytest.mark.usefixtures("short")
async def test_succession_that_was_interrupted(bench: Bench) -> None:
    """The successor had accepted the path, and comes back to it; or was never asked, and is asked then."""
    for accepted in True, False:
        with await bench.connect():
            ident = bench.b.idents[-1]
            bench.died(bench.b)
            if accepted:
                async with Return(bench, "A", ident):
                    pass
            else:
                bench.b.during = trio.sleep_forever
                Return(bench, "A", ident)
                await trio.testing.wait_all_tasks_blocked()
            await bench.end()
            bench.b.during = None
            bench.dead["B", bench.b.generation - 1] = "B died"
            await bench.begin()
            offers = len(bench.b.offered)
            origin = Return(bench, "A", ident)
            if accepted:
                target = Return(bench, "B", ident, generation=bench.b.generation)
                async with origin, target:
                    assert len(bench.b.offered) == offers
            else:
                async with origin as end:
                    assert len(bench.b.offered) == offers + 1
                    end.send(b"there")
                    assert bench.b.ends[-1].recv(10) == b"there"


async def test_deaths_that_nobody_has_seen(bench: Bench) -> None:
    """Of the target: its successor gets the path. Of the originator: the target is told. Of both: nothing is left."""
    with await bench.connect() as one, await bench.connect("B", "A") as two, await bench.connect("S@1", "S@2"):
        (first,), (second,) = bench.b.idents, bench.a.idents
        await bench.end()
        bench.b.die()
        bench.b.generation = 2
        bench.dead = {(name, 1): f"{name} died: killed by SIGKILL" for name in ("B", "S@1", "S@2")}
        await bench.begin()
        assert (ended(one), ended(two)) == (True, True)
        assert bench.board.open_paths == 0
        assert [circuit.ident for circuit in bench.board._circuits] == [first, second]
        async with Return(bench, "A", first):
            assert bench.b.idents == [first]
        assert await Return(bench, "A", second).refused() == ("lost", "B died: killed by SIGKILL")
        # Who tells of the deaths afterwards changes nothing.
        assert bench.board.died("B", 1, "B died: again") == 0


async def test_path_that_waits_for_a_successor_waits_on(bench: Bench) -> None:
    """Whatever the edge says is still known."""
    with await bench.connect(), await bench.connect(on_restart="reconnect"):
        kept, not_kept = bench.b.idents
        bench.b.ready = trio.Event()
        bench.died(bench.b, "B died: of boredom")
        Return(bench, "A", kept)
        await trio.testing.wait_all_tasks_blocked()
        bench.dead["B", 1] = "B died: of boredom"
        for _ in range(2):
            await bench.replace()
            assert await Return(bench, "A", not_kept).refused() == ("lost", "B died: of boredom")
            asked = Return(bench, "A", kept)
            await trio.testing.wait_all_tasks_blocked()
            assert not asked.done.is_set()
        bench.b.ready.set()
        async with asked:
            assert bench.board.open_paths == 1


async def test_process_that_lets_go_of_its_paths(bench: Bench) -> None:
    """The next control program knows that it was told to, whether it has done it or not."""
    with await bench.connect() as one, await bench.connect():
        first, second = bench.b.idents
        bench.b.generation = 2
        bench.board.release("B", 1, "B was replaced")
        await bench.end()
        bench.b.let_go(second)
        await bench.begin()
        assert not ended(one)
        async with Return(bench, "A", second):
            assert bench.b.idents == [first, second]
            bench.b.let_go(first)
            async with Return(bench, "A", first):
                assert bench.board.open_paths == 2
        bench.board.died("B", 1, "B died: exit status 0")
        assert bench.keeping is not None
        assert not [key for key in bench.keeping.held if "left" in key]


@pytest.mark.parametrize("told", [True, False])
async def test_path_to_a_sleeping_machine_sleeps_on(bench: Bench, told: bool) -> None:
    """If its originator was told before, or is now; and until it wants something."""
    with await bench.connect():
        (ident,) = bench.b.idents
        bench.board.sleep("B", 1, "B sleeps")
        bench.b.ready = trio.Event()
        bench.b.let_go(ident)
        if told:
            assert await Return(bench, "A", ident, wanted=False).refused() == ("asleep", "B sleeps")
            bench.board.died("B", 1, "B died: exit status 0")
        bench.dead["B", 1] = "B died: exit status 0"
        for _ in range(2):
            await bench.replace()
            assert await Return(bench, "A", ident, wanted=False).refused() == ("asleep", "B sleeps")
            circuit = bench.board._circuits.get(ident)
            assert circuit is not None
            circuit.idle_since -= LINGER
            bench.board._circuits.sweep()
        asked = Return(bench, "A", ident)
        await trio.testing.wait_all_tasks_blocked()
        bench.b.generation = 2
        bench.b.ready.set()
        async with asked:
            assert bench.b.idents == [ident]


async def test_instance_is_remembered(bench: Bench) -> None:
    """The path belongs to the one that it led to."""
    with await bench.connect(to="S"), await bench.connect(to="S"):
        second = bench.machines["S@2"]
        (ident,) = second.idents
        await bench.replace()
        assert [bench.board.paths_to(name) for name in ("S@1", "S@2")] == [1, 1]
        bench.died(second)
        async with Return(bench, "A", ident):
            assert second.idents == [ident]


async def test_what_cannot_be_read_is_a_lost_path(bench: Bench) -> None:
    """Another version may have written it: who has an end sees that it has ended, and nothing stays open."""
    assert bench.keeping is not None
    before = descriptors()
    notes: list[Any] = [
        {},
        {"path": 1, "from": ["A", 1], "to": ["B", 1], "edge": ["x", "B", 64, False, "keep", "block", "more"]},
        {"path": "?", "from": ["A", 1], "to": ["B", 1], "edge": ["x", "B", 64, False, "keep", "block"]},
        {"path": 1, "from": 1, "to": ["B", 1], "edge": ["x", "B", 64, False, "keep", "block"]},
    ]
    pairs = [socket.socketpair() for _ in notes]
    for number, (note, (_, theirs)) in enumerate(zip(notes, pairs, strict=True)):
        bench.keeping.keep(f"circuit/{number}", note, [theirs.fileno()])
    good = {"path": 1, "from": ["A", 1], "to": ["B", 1], "edge": ["x", "B", 64, False, "keep", "block"]}
    no_socket = os.memfd_create("no socket")
    bench.keeping.keep("circuit/9", good, [no_socket])
    os.close(no_socket)
    bench.keeping.keep("circuit/numbers", {"lost": 7}, ())
    bench.keeping.keep("circuit/left/B/x", {"text": "a", "asleep": False}, ())
    bench.keeping.keep("circuit/left/B/1", {}, ())
    bench.keeping.keep("circuit/what", good, ())
    bench.keeping.keep("life/B", {}, ())
    await bench.replace()
    assert list(bench.board._circuits) == []
    for ours, theirs in pairs:
        assert ended(ours)
        ours.close()
        theirs.close()
    assert not [key for key in bench.keeping.held if key.removeprefix("circuit/").isdecimal()]
    (await bench.connect()).close()
    bench.b.die()
    await bench.end()
    bench.keeping.close()
    await bench.begin()
    assert_none_left(before)


async def test_no_descriptor_left_to_keep_one(bench: Bench) -> None:
    """Nobody gets an end of a path that could not be kept: who connects, and who comes back."""
    with await bench.connect() as end:
        (ident,) = bench.b.idents
        end.shutdown(socket.SHUT_RDWR)
        one = Return(bench, "A", ident)
        await trio.testing.wait_all_tasks_blocked()
        before = descriptors()
        with few_left(2), pytest.raises(Rejected, match="exhausted"):
            await bench.connect()
        with few_left(3):
            other = Return(bench, "B", ident)
            assert (await one.refused())[0] == (await other.refused())[0] == "exhausted"
        assert bench.board.open_paths == 0
        assert_none_left(before)


# -- star services -----------------------------------------------------------------------------------------------------


class Star:
    """A machine's path to a star service, that is bound again as a machine does it."""

    def __init__(self, bench: Bench, ident: int, descriptor: int) -> None:
        self._bench = bench
        self.ident = ident
        self.asked = 0
        self.path = Path(SocketTransport(socket.socket(fileno=descriptor)), rebind=self._rebind)

    async def _rebind(self, _: Path) -> Transport:
        self.asked += 1
        await self._bench.there.wait()
        try:
            descriptor = await self._bench.board.rebind("A", 1, self.ident, stream=False)
        except Rejected as exc:
            raise PathSevered(exc.code, exc.text) from None
        return SocketTransport(socket.socket(fileno=descriptor))


@contextlib.asynccontextmanager
async def star(bench: Bench) -> AsyncIterator[Star]:
    made = await bench.board.connect("A", 1, Edge("cp", "*CP", limit=7), wait=True)
    assert made.instances == 1
    async with trio.open_nursery() as nursery:
        one = Star(bench, made.ident, made.descriptor)
        await nursery.start(one.path.run)
        yield one
        one.path.sever()
        nursery.cancel_scope.cancel()


async def test_path_to_a_star_service_is_served_by_the_next_control_program(bench: Bench) -> None:
    """What had no answer is asked of it; and what passed is counted by each."""
    async with star(bench) as one:
        assert await one.path.call("before") == "before"
        assert bench.board.star_meter("A.cp").received == 1
        for number in range(1, 4):
            await bench.end()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(one.path.call, "meanwhile")
                await trio.testing.wait_all_tasks_blocked()
                await bench.begin()
            assert await one.path.call("after") == "after"
            assert one.asked == number
            assert bench.board.star_meter("A.cp").received == 2
            assert bench.board.paths_by_edge() == {"A.cp": 1}
            # Nobody else may ask for it, and its machine not while it has it.
            assert (await Return(bench, "A", one.ident).refused())[0] == "violation"
            assert (await Return(bench, "A", one.ident, generation=2).refused())[0] == "lost"
            assert (await Return(bench, "B", one.ident).refused())[0] == "lost"
        with await bench.connect() as end:
            assert bench.b.idents[-1] > one.ident
            assert not ended(end)
    await trio.testing.wait_all_tasks_blocked()
    assert (await Return(bench, "A", one.ident).refused())[0] == "lost"
    assert bench.board._circuits.opened["A"] == 0


async def test_star_path_that_ended_while_nobody_was_there(bench: Bench) -> None:
    """It counts for nobody, and is forgotten; at once if its machine is dead."""
    async with star(bench) as one:
        await bench.end()
        one.path.sever()
        await bench.begin()
        assert bench.board._circuits.opened["A"] == 0
        (circuit,) = bench.board._circuits
        bench.board.died("A", 1, "A died")
        assert list(bench.board._circuits) == []
        await bench.end()
        bench.dead["A", 1] = "A died"
        await bench.begin()
        assert list(bench.board._circuits) == []
        assert circuit.ident == one.ident


async def test_byte_stream_to_a_star_service_is_lost(bench: Bench) -> None:
    """Nobody knows what of it was read."""
    async with star(bench) as one:
        await bench.end()
        bench.there = trio.Event()
        await bench.begin()
        assert (await Return(bench, "A", one.ident, stream=True).refused())[0] == "lost"
        assert list(bench.board._circuits) == []


# -- what it costs -----------------------------------------------------------------------------------------------------


async def test_path_costs_one_message(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as others come: its key is theirs then. When none come, nothing is kept after a while."""
    assert bench.keeping is not None
    assert (KEPT_FOR, SPARE_FOR) == (10.0, 2.0)
    monkeypatch.setattr("retinue.cp.circuit.KEPT_FOR", 0.0)
    for _ in range(50):
        (await bench.connect()).close()
        bench.b.die()
        await trio.testing.wait_all_tasks_blocked()
    assert bench.keeping.said == ["keep"] * 51  # of which one says which numbers are used
    assert len(bench.keeping.held) <= 3
    monkeypatch.setattr("retinue.cp.circuit.SPARE_FOR", 0.0)
    bench.board._circuits.sweep()
    assert list(bench.keeping.held) == ["circuit/numbers"]
    assert bench.keeping.said[51:] == ["drop"] * (len(bench.keeping.said) - 51)


async def test_path_that_is_kept_no_more_is_kept_again_when_somebody_asks(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under its own key as long as there is something of it there; no other path suffers."""
    assert bench.keeping is not None
    monkeypatch.setattr("retinue.cp.circuit.KEPT_FOR", 0.0)
    for spare_for in 2.0, 0.0:
        monkeypatch.setattr("retinue.cp.circuit.SPARE_FOR", spare_for)
        (await bench.connect()).close()
        ident = bench.b.idents[-1]
        await trio.testing.wait_all_tasks_blocked()
        bench.board._circuits.sweep()
        with await bench.connect() as end:
            async with bench.both_return(ident):
                await bench.replace()
                assert bench.board.open_paths == 2
                notes = [each.note for each in hand_out(bench.keeping) if "path" in each.note]
                assert sorted(note["path"] for note in notes) == [ident, ident + 1]
            assert not ended(end)
        await trio.testing.wait_all_tasks_blocked()
        bench.b.die()
        for circuit in bench.board._circuits:
            bench.board._circuits.forget(circuit)
        monkeypatch.setattr("retinue.cp.circuit.SPARE_FOR", 0.0)
        bench.board._circuits.sweep()


def hand_out(keeping: Keeping) -> list[Any]:
    """What is kept, without its descriptors."""
    found = list(keeping.hand_out().values())
    for each in found:
        for descriptor in each.descriptors:
            os.close(descriptor)
    return found


async def test_keys_are_given_up_a_few_at_a_time(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who keeps them may be slower than a machine with many paths dies."""
    assert bench.keeping is not None
    assert SPARE_TURN == 256
    monkeypatch.setattr("retinue.cp.circuit.SPARE_TURN", 3)
    monkeypatch.setattr("retinue.cp.circuit.SPARE_FOR", 0.0)
    for _ in range(8):
        (await bench.connect()).close()
    bench.died(bench.b)
    bench.board.died("A", 1, "A died")
    assert list(bench.board._circuits) == []
    assert "drop" not in bench.keeping.said
    left = []
    for _ in range(4):
        left.append(len(bench.keeping.held))
        bench.board._circuits.sweep()
    assert left == [9, 6, 3, 1]


# -- leaving -----------------------------------------------------------------------------------------------------------


async def test_control_program_that_leaves_says_nothing_any_more(bench: Bench) -> None:
    """Who asks it waits for the next one; what is cancelled in it does not end a path."""
    assert bench.keeping is not None
    with await bench.connect() as end:
        (ident,) = bench.b.idents
        bench.board.leave()
        said = len(bench.keeping.said)
        for ask in (
            partial(bench.connect),
            partial(bench.connect, to="*CP"),
            partial(bench.board.rebind, "A", 1, ident, stream=False),
            partial(bench.board.connect_operator, "B"),
        ):
            with trio.move_on_after(0.01) as scope:
                await ask()
            assert scope.cancelled_caught
        bench.board.died("B", 1, "it died")
        assert len(bench.keeping.said) == said
        assert not ended(end)
        await bench.replace()
        assert bench.board.open_paths == 1
