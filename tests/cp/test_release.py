"""Paths that a process lets go of, for its successor to take them: at once, or when somebody wants something."""

import socket
from collections.abc import AsyncIterator
from functools import partial

import pytest
import trio
import trio.testing
from tests.boards import Bench, Keeping, Onlooker, Return, ended, open_board
from tests.leaks import assert_none_left, descriptors

from retinue.cp.circuit import LINGER, Circuit
from retinue.cp.joining import RETURN_LIMIT
from retinue.pipes import PathSevered, Rejected


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    async with open_board(keeping=Keeping()) as made:
        yield made


def replace(bench: Bench, text: str = "B was replaced") -> int:
    """B has a successor, and its process is told to let go of its paths."""
    bench.b.generation += 1
    return bench.board.release("B", bench.b.generation - 1, text)


async def test_path_goes_to_the_successor_when_it_is_let_go_of(bench: Bench) -> None:
    """Not before, and each for itself; new ones lead to the successor anyway."""
    with await bench.connect() as one, await bench.connect() as two:
        first, second = bench.b.idents
        assert replace(bench) == 2
        assert (ended(one), ended(two)) == (False, False)
        one.send(b"still there")
        assert bench.b.ends[0].recv(20) == b"still there"
        bench.b.let_go(first)
        async with Return(bench, "A", first) as end:
            assert bench.b.idents == [second, first]
            end.send(b"successor")
            assert bench.b.ends[-1].recv(20) == b"successor"
            assert not ended(two)
            assert bench.board.open_paths == 2
            # It is the successor's now, and not the other's.
            assert "no such path" in (await Return(bench, "B", first).refused())[1]
            assert (await Return(bench, "B", first, generation=2).refused())[0] == "violation"
            # What the first process has left at its end is cut with it.
            assert bench.board.died("B", 1, "B died: exit status 0") == 1
            assert (ended(one), ended(two), ended(end)) == (True, True, False)
            async with Return(bench, "A", second):
                assert bench.board.open_paths == 2


@pytest.mark.parametrize("stream", [False, True])
async def test_what_cannot_be_handed_on_is_lost_with_the_text(bench: Bench, stream: bool) -> None:
    """A byte stream, and a path that does not say keep."""
    with await bench.connect(on_restart="keep" if stream else "reconnect"):
        (ident,) = bench.b.idents
        replace(bench)
        bench.b.let_go(ident)
        assert await Return(bench, "A", ident, stream=stream).refused() == ("lost", "B was replaced")
        assert bench.board.open_paths == 0


async def test_what_was_let_go_of_was_not_lost_by_a_death(bench: Bench) -> None:
    """Who comes back late is told that its target was replaced."""
    with await bench.connect(on_restart="reconnect"):
        (ident,) = bench.b.idents
        replace(bench)
        bench.b.let_go(ident)
        await trio.testing.wait_all_tasks_blocked()
        assert bench.board.died("B", 1, "B died: exit status 0") == 0
        assert await Return(bench, "A", ident).refused() == ("lost", "B was replaced")


async def test_process_that_dies_before_it_has_let_go(bench: Bench) -> None:
    """Is one that has died: the successor gets the path, or the originator learns of the death."""
    for on_restart in "keep", "reconnect":
        with await bench.connect(on_restart=on_restart):
            generation, ident = bench.b.generation, bench.b.idents[-1]
            replace(bench)
            assert bench.board.died("B", generation, "B died: killed by SIGKILL") == 1
            asked = Return(bench, "A", ident)
            if on_restart == "keep":
                async with asked:
                    assert bench.b.idents[-1] == ident
                await trio.testing.wait_all_tasks_blocked()
            else:
                assert await asked.refused() == ("lost", "B died: killed by SIGKILL")


async def test_release_of_paths_that_wait_for_their_end(bench: Bench) -> None:
    """Whoever lost its end before goes to the successor at once."""
    with await bench.connect():
        (ident,) = bench.b.idents
        bench.b.let_go(ident)
        asked = Return(bench, "A", ident)
        await trio.testing.wait_all_tasks_blocked()
        assert not asked.done.is_set()
        replace(bench)
        async with asked:
            assert bench.b.idents == [ident]
            assert bench.board.open_paths == 1


async def test_cut_while_a_process_lets_go(bench: Bench) -> None:
    """It gets its end back for what it has to finish, and the path is handed on after that."""
    with await bench.connect():
        (ident,) = bench.b.idents
        replace(bench)
        origin_end: socket.socket | None = None
        for first, second in ("A", "B"), ("B", "A"):
            assert bench.board.cut("A.x") == 1
            one = Return(bench, first, ident)
            await trio.testing.wait_all_tasks_blocked()
            assert not one.done.is_set()
            other = Return(bench, second, ident)
            left, right = (one, other) if first == "A" else (other, one)
            async with left as ours, right as theirs:
                ours.send(b"finish it")
                assert theirs.recv(20) == b"finish it"
                bench.b.ends[0].close()
                bench.b.ends[0] = theirs.dup()
                if origin_end is not None:
                    origin_end.close()
                origin_end = ours.dup()
            assert not ended(origin_end)
        assert len(bench.b.offered) == 1
        bench.b.let_go(ident)
        async with Return(bench, "A", ident):
            assert bench.b.idents == [ident]
            assert len(bench.b.offered) == 2
        assert origin_end is not None
        origin_end.close()


async def test_tap_that_begins_when_the_path_is_let_go_of(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process does not come for its end, or withdraws its wish: the successor gets the path."""
    monkeypatch.setattr("retinue.cp.joining.RETURN_LIMIT", 0.05)
    assert RETURN_LIMIT == 2.0
    for withdraws in False, True:
        with await bench.connect():
            generation, ident = bench.b.generation, bench.b.idents[-1]
            replace(bench)
            async with bench.board.tap("A.x", Onlooker()):
                if withdraws:
                    with trio.CancelScope() as scope:
                        async with trio.open_nursery() as nursery:
                            ask = partial(bench.board.rebind, "B", generation, ident, stream=False)
                            nursery.start_soon(ask)
                            await trio.testing.wait_all_tasks_blocked()
                            monkeypatch.setattr("retinue.cp.joining.RETURN_LIMIT", 30)
                            scope.cancel()
                async with Return(bench, "A", ident):
                    assert bench.b.idents[-1] == ident
                    assert bench.b.idents.count(ident) == 2


async def test_successor_that_dies_during_the_hand_over(bench: Bench) -> None:
    """The one after it is asked."""
    with await bench.connect():
        (ident,) = bench.b.idents
        replace(bench)
        bench.b.let_go(ident)

        async def die() -> None:
            bench.b.during = None
            bench.died(bench.b, "B died: young")
            raise PathSevered("lost")

        bench.b.during = die
        async with Return(bench, "A", ident) as end:
            assert bench.b.offered == [("A", 7)] * 3
            assert bench.b.generation == 3
            end.send(b"third")
            assert bench.b.ends[-1].recv(10) == b"third"
            # And one that dies when it has the path.
            bench.died(bench.b, "B died: later")
            async with Return(bench, "A", ident):
                assert len(bench.b.offered) == 4


async def test_originator_that_dies_during_the_hand_over(bench: Bench) -> None:
    """Before it has come for the path, and while its successor is asked; nothing is left."""
    before = descriptors()
    for early in True, False:
        end = await bench.connect()
        generation, ident = bench.b.generation, bench.b.idents[-1]
        replace(bench)
        if early:
            end.close()
            bench.board.died("A", 1, "A died: exit status 3")
            assert await Return(bench, "B", ident, generation=generation).refused() == (
                "lost",
                "A died: exit status 3",
            )
        else:
            bench.b.let_go(ident)
            end.close()
            bench.b.during = trio.sleep_forever
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(partial(bench.board.rebind, "A", 1, ident, stream=False))
                    await trio.testing.wait_all_tasks_blocked()
                    scope.cancel()
            bench.b.during = None
            bench.board.died("A", 1, "A died: exit status 3")
        assert bench.board.open_paths == 0
        bench.board.died("B", generation, "B died: exit status 0")
    bench.b.die()
    assert bench.keeping is not None
    bench.keeping.close()
    assert_none_left(before)


async def test_successor_that_is_replaced_itself(bench: Bench) -> None:
    """Whatever either lets go of leads to the present process."""
    with await bench.connect():
        (first,) = bench.b.idents
        replace(bench)
        with await bench.connect():
            second = bench.b.idents[1]
            replace(bench)
            for ident in first, second:
                bench.b.let_go(ident)
                async with Return(bench, "A", ident):
                    assert "no such path" in (await Return(bench, "B", ident, generation=1).refused())[1]
                    assert "no such path" in (await Return(bench, "B", ident, generation=2).refused())[1]
                    assert (await Return(bench, "B", ident, generation=3).refused())[0] == "violation"


@pytest.mark.parametrize("again", [False, True])
async def test_offer_that_a_stopping_process_refuses_is_made_to_its_successor(bench: Bench, again: bool) -> None:
    """One that came when it had just been told to let go; without release the refusal stands."""

    async def refuse() -> None:
        raise Rejected("stopping", "B is stopping")

    offer = bench.b.offer

    async def stop(circuit: Circuit, descriptor: int) -> None:
        bench.b.offer = offer  # type: ignore[method-assign]
        bench.b.during = refuse
        replace(bench)
        try:
            await offer(circuit, descriptor)
        finally:
            bench.b.during = None

    if not again:
        bench.b.offer = stop  # type: ignore[method-assign]
        with await bench.connect():
            assert len(bench.b.idents) == 2
            bench.b.during = refuse
            with pytest.raises(Rejected, match="B is stopping"):
                await bench.connect()
    else:
        with await bench.connect():
            (ident,) = bench.b.idents
            bench.died(bench.b)
            bench.b.offer = stop  # type: ignore[method-assign]
            async with Return(bench, "A", ident):
                assert bench.b.idents == [ident] * 2
                assert bench.board.open_paths == 1


async def test_process_that_asks_for_a_path_while_its_successor_is_offered_it(bench: Bench) -> None:
    """It had been offered the path, and died: the path is not its any more, whoever learns of it first."""
    with await bench.connect():
        (ident,) = bench.b.idents
        bench.died(bench.b)
        release = trio.Event()

        async def offer_and_die() -> None:
            await release.wait()
            bench.b.during = None
            bench.b.generation = 3
            raise PathSevered("lost")

        bench.b.during = offer_and_die
        origin = Return(bench, "A", ident)
        await trio.testing.wait_all_tasks_blocked()
        bench.board.cut("A.x")
        stranger = Return(bench, "B", ident, generation=2)
        await trio.testing.wait_all_tasks_blocked()
        release.set()
        async with origin as end:
            assert (await stranger.refused())[0] == "lost"
            assert bench.board.died("B", 2, "B died") == 0
            assert not ended(end)


async def test_target_that_dies_while_it_waits_for_its_end(bench: Bench) -> None:
    """It is told so, if it can still hear, and gets nothing of what its successor gets."""
    with await bench.connect():
        (ident,) = bench.b.idents
        bench.board.cut("A.x")
        waiting = Return(bench, "B", ident)
        await trio.testing.wait_all_tasks_blocked()
        bench.died(bench.b, "B died: of boredom")
        assert await waiting.refused() == ("lost", "B died: of boredom")
        async with Return(bench, "A", ident):
            assert bench.b.idents == [ident]


# -- sleep -------------------------------------------------------------------------------------------------------------


def lie_down(bench: Bench) -> None:
    """B is to sleep: it is not ready until somebody waits for it, and then it has another process."""
    bench.board.sleep("B", bench.b.generation, "B sleeps")
    bench.b.ready = trio.Event()


def wake(bench: Bench) -> None:
    bench.b.generation += 1
    bench.b.ready.set()


async def test_path_to_a_sleeping_machine_waits_until_something_is_wanted(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As long as it takes, also after the death of its target's process; it counts for nobody meanwhile."""
    with await bench.connect():
        (ident,) = bench.b.idents
        lie_down(bench)
        bench.b.let_go(ident)
        for _ in range(2):
            assert await Return(bench, "A", ident, wanted=False).refused() == ("asleep", "B sleeps")
        waited = list(bench.b.waited)
        assert bench.board.died("B", 1, "B died: exit status 0") == 0
        assert await Return(bench, "A", ident, wanted=False).refused() == ("asleep", "B sleeps")
        assert bench.b.waited == waited  # which is what would have started it
        assert bench.board.paths_to("B") == bench.board.open_paths == 0
        circuit = bench.board._circuits.get(ident)
        assert circuit is not None
        circuit.idle_since -= 1000 * LINGER
        bench.board._circuits.sweep()
        asked = Return(bench, "A", ident)
        await trio.testing.wait_all_tasks_blocked()
        assert not asked.done.is_set()
        wake(bench)
        async with asked as end:
            end.send(b"good morning")
            assert bench.b.ends[-1].recv(20) == b"good morning"
            # It is a path like any other again.
            bench.died(bench.b)
            async with Return(bench, "A", ident, wanted=False):
                assert bench.board.open_paths == 1


async def test_two_paths_wake_a_machine_at_once(bench: Bench) -> None:
    """Both lead to the same process; a third one sleeps on."""
    with await bench.connect(), await bench.connect(), await bench.connect():
        idents = list(bench.b.idents)
        lie_down(bench)
        for ident in idents:
            bench.b.let_go(ident)
            assert (await Return(bench, "A", ident, wanted=False).refused())[0] == "asleep"
        bench.board.died("B", 1, "B died: exit status 0")
        asked = [Return(bench, "A", ident) for ident in idents[:2]]
        await trio.testing.wait_all_tasks_blocked()
        wake(bench)
        async with asked[0], asked[1]:
            assert sorted(bench.b.idents) == idents[:2]
            assert bench.board.open_paths == 2
            assert (await Return(bench, "A", idents[2], wanted=False).refused())[0] == "asleep"


async def test_path_that_is_wanted_while_the_machine_lies_down(bench: Bench) -> None:
    """Its process may not be dead yet, and one that dies with work in hand was not asleep."""
    with await bench.connect(), await bench.connect():
        one, two = bench.b.idents
        lie_down(bench)
        bench.b.let_go(one)
        asked = Return(bench, "A", one)
        await trio.testing.wait_all_tasks_blocked()
        assert not asked.done.is_set()
        assert bench.board.died("B", 1, "B died: killed by SIGKILL") == 1
        late = Return(bench, "A", two)
        await trio.testing.wait_all_tasks_blocked()
        wake(bench)
        async with asked, late:
            assert sorted(bench.b.idents[-2:]) == [one, two]


async def test_paths_to_sleeping_machines_are_bounded(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control program does not learn of those that are closed meanwhile; the originator may open others."""
    monkeypatch.setattr("retinue.cp.circuit.MAX_PATHS", 3)
    idents = []
    for generation in range(1, 7):
        with await bench.connect():
            idents.append(bench.b.idents[-1])
            lie_down(bench)
            bench.b.let_go(idents[-1])
            assert (await Return(bench, "A", idents[-1], wanted=False).refused())[0] == "asleep"
            bench.board.died("B", generation, "B died: exit status 0")
            wake(bench)
    assert [circuit.ident for circuit in bench.board._circuits] == idents[-3:]
    bench.board.died("A", 1, "A died")
    assert list(bench.board._circuits) == []


async def test_sleep_and_the_death_of_the_originator(bench: Bench) -> None:
    """Nobody is left who knows the path."""
    with await bench.connect():
        (ident,) = bench.b.idents
        lie_down(bench)
        bench.b.let_go(ident)
        assert (await Return(bench, "A", ident, wanted=False).refused())[0] == "asleep"
    bench.board.died("A", 1, "A died")
    assert list(bench.board._circuits) == []
