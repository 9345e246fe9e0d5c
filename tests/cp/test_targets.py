"""Several machines behind one name: which of them a path leads to, and where it goes when that one is no more."""

import contextlib
import socket
from collections import Counter
from collections.abc import AsyncIterator

import pytest
import trio
import trio.testing
from tests.boards import Bench, Machine, Return, open_board

from retinue.cp import circuit
from retinue.cp.directory import Edge
from retinue.cp.targets import HOPE
from retinue.pipes import Rejected

NAMES = ("S@1", "S@2", "S@3")


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    async with open_board(*NAMES) as made:
        yield made


def shops(bench: Bench) -> list[Machine]:
    return [bench.machines[name] for name in NAMES]


def paths(bench: Bench) -> list[int]:
    return [len(shop.ends) for shop in shops(bench)]


async def test_path_leads_to_the_instance_with_the_fewest(bench: Bench) -> None:
    """Of those that are ready, and the longest ago among equals; who asks is told how many there are."""
    with contextlib.ExitStack() as stack:
        for _ in range(6):
            stack.enter_context(await bench.connect(to="S"))
        assert paths(bench) == [2, 2, 2]
        bench.machines["S@1"].ready = trio.Event()
        for _ in range(4):
            stack.enter_context(await bench.connect(to="S", wait=False))
        assert paths(bench) == [2, 4, 4]
        bench.machines["S@1"].ready.set()
        for _ in range(5):
            stack.enter_context(await bench.connect(to="S"))
        assert paths(bench) == [5, 5, 5]
        assert bench.board.paths_by_edge() == {"A.x": 15}
        assert bench.board.paths_to("S@2") == 5
        bench.machines["S@2"].let_go(bench.machines["S@2"].idents[0])
        await trio.testing.wait_all_tasks_blocked()
        made = await bench.board.connect("A", 1, Edge("x", "S"), wait=True)
        stack.enter_context(socket.socket(fileno=made.descriptor))
        assert made.instances == 3
        assert paths(bench) == [5, 5, 5]
        made = await bench.board.connect("A", 1, Edge("x", "B"), wait=True)
        stack.enter_context(socket.socket(fileno=made.descriptor))
        assert made.instances == 1


async def test_short_paths_take_turns(bench: Bench) -> None:
    """Although each finds all instances without any."""
    for _ in range(9):
        (await bench.connect(to="S")).close()
        await trio.testing.wait_all_tasks_blocked()
    assert paths(bench) == [3, 3, 3]


async def test_instances_at_rest_are_started_one_at_a_time(bench: Bench) -> None:
    """Nobody is woken while another one is ready; if none is, the one with the fewest paths; a certain one always."""
    first, second, third = shops(bench)
    for each in (second, third):
        each.rests = True
        each.ready = trio.Event()
    with contextlib.ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(await bench.connect(to="S"))
        assert paths(bench) == [3, 0, 0]
        assert not any(second.waited + third.waited)
        first.broken = "it is given up"
        async with trio.open_nursery() as nursery:

            async def connect() -> None:
                stack.enter_context(await bench.connect(to="S"))

            nursery.start_soon(connect)
            await trio.testing.wait_all_tasks_blocked()
            assert [any(each.waited) for each in (second, third)] == [True, False]
            second.rests = False
            second.ready.set()
        assert paths(bench) == [3, 1, 0]
        third.rests = False
        third.ready.set()
        stack.enter_context(await bench.connect(to="S", instance=3))
        assert any(third.waited)


async def test_callers_wait_for_the_instance_that_is_being_started(
    bench: Bench, autojump_clock: trio.testing.MockClock
) -> None:
    """Only if that takes long is one more started, and one after the other."""
    for shop in shops(bench):
        shop.rests, shop.ready, shop.wakes = True, trio.Event(), True
    ends: list[socket.socket] = []

    async def connect() -> None:
        ends.append(await bench.connect(to="S"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(connect)
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(4):
            nursery.start_soon(connect)
        await trio.testing.wait_all_tasks_blocked()
        assert [shop.rests for shop in shops(bench)] == [False, True, True]
        await trio.sleep(HOPE - 1)
        assert [shop.rests for shop in shops(bench)] == [False, True, True]
        await trio.sleep(HOPE + 2)
        assert not bench.machines["S@2"].rests
        bench.machines["S@2"].ready.set()
    assert paths(bench) == [0, 5, 0]
    for end in ends:
        end.close()


async def test_next_instance_is_started_when_one_is_given_up(bench: Bench) -> None:
    """While one is left; then the reason of the first is told."""
    for shop in shops(bench):
        shop.rests, shop.ready, shop.wakes = True, trio.Event(), True
    async with trio.open_nursery() as nursery:

        async def connect() -> None:
            (await bench.connect(to="S")).close()

        async def in_vain() -> None:
            with pytest.raises(Rejected, match="is given up") as caught:
                await bench.connect(to="S")
            assert caught.value.code == "broken"

        nursery.start_soon(connect)
        for shop in shops(bench)[:2]:
            await trio.testing.wait_all_tasks_blocked()
            assert not shop.rests
            shop.broken = f"{shop.name} is given up"
            shop.ready.set()
        await trio.testing.wait_all_tasks_blocked()
        last = bench.machines["S@3"]
        assert not last.rests
        last.ready.set()
        await trio.testing.wait_all_tasks_blocked()
        assert len(last.offered) == 1
        last.rests, last.ready = True, trio.Event()
        nursery.start_soon(in_vain)
        await trio.testing.wait_all_tasks_blocked()
        last.broken = "S@3 is given up"
        last.ready.set()


async def test_certain_instance(bench: Bench) -> None:
    """Waited for alone; there is none but those; a machine that is alone is the first."""
    bench.machines["S@2"].ready = trio.Event()
    with pytest.raises(Rejected, match="S@2 is STARTING"):
        await bench.connect(to="S", instance=2, wait=False)
    for number in 1, 3, 3:
        (await bench.connect(to="S", instance=number)).close()
    (await bench.connect(to="S@3")).close()
    assert paths(bench) == [1, 0, 3]
    for to, number in ("S", 4), ("S", 0), ("S", -1), ("B", 2):
        with pytest.raises(Rejected, match=f"{to} has no instance {number}") as caught:
            await bench.connect(to=to, instance=number)
        assert caught.value.code == "unknown-instance"
    for base in "", "B":
        bench.b.base = base
        (await bench.connect(to="B", instance=1)).close()


async def test_first_of_all_that_becomes_ready_is_taken(bench: Bench) -> None:
    """Also one that is added meanwhile; when no one will be, the first one's reason is told."""
    for shop in shops(bench):
        shop.ready = trio.Event()
    taken: list[socket.socket] = []

    async def connect() -> None:
        taken.append(await bench.connect(to="S"))

    with pytest.raises(Rejected, match="S@1 is STARTING") as caught:
        await bench.connect(to="S", wait=False)
    assert caught.value.code == "not-ready"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connect)
        await trio.testing.wait_all_tasks_blocked()
        bench.machines["S@1"].broken = "S@1 is BROKEN: of grief"
        bench.machines["S@1"].ready.set()
        await trio.testing.wait_all_tasks_blocked()
        assert taken == []
        bench.machines["S@3"].ready.set()
    assert paths(bench) == [0, 0, 1]
    bench.machines["S@3"].ready = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connect)
        await trio.testing.wait_all_tasks_blocked()
        added = bench.machines["S@4"] = Machine("S@4")
        bench.board.add_target(added)
    assert added.idents
    added.broken = bench.machines["S@3"].broken = "it is BROKEN"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connect)
        await trio.testing.wait_all_tasks_blocked()
        for name in "S@2", "S@3":
            bench.machines[name].broken = "it is BROKEN"
            bench.machines[name].ready.set()
        nursery.cancel_scope.cancel()
    with pytest.raises(Rejected, match="S@1 is BROKEN: of grief") as caught:
        await bench.connect(to="S")
    assert caught.value.code == "broken"
    for end in taken:
        end.close()


async def test_path_stays_with_its_instance(bench: Bench) -> None:
    """A successor of that one is waited for although others are ready; only if there will be none do they get it."""
    with await bench.connect(to="S"):
        first, second, third = shops(bench)
        (ident,) = first.idents
        first.ready = trio.Event()
        bench.died(first)
        asked = Return(bench, "A", ident)
        await trio.testing.wait_all_tasks_blocked()
        assert not asked.done.is_set()
        first.ready.set()
        async with asked:
            assert first.idents == [ident]
            first.broken = "S@1 is BROKEN"
            bench.died(first)
            with await bench.connect(to="S"):  # S@2
                async with Return(bench, "A", ident):
                    assert (second.idents, third.idents) == ([ident + 1], [ident])
                    assert [bench.board.paths_to(shop.name) for shop in shops(bench)] == [0, 1, 1]
                    # It is that one's now.
                    assert bench.board.died("S@3", 1, "S@3 died") == 1
                    second.broken = third.broken = "they are BROKEN"
                    assert await Return(bench, "A", ident).refused() == ("lost", "S@1 is BROKEN")


async def test_instance_that_is_taken_away(bench: Bench) -> None:
    """Its paths go to others as it lets go of them; without others they are lost, as is an attempt to connect."""
    with await bench.connect(to="S"):
        first, second, _ = shops(bench)
        (ident,) = first.idents
        bench.board.remove_target("S@1")
        bench.board.remove_target("S@1")
        assert bench.board.release("S@1", 1, "S@1 is no more") == 1
        first.let_go(ident)
        async with Return(bench, "A", ident):
            assert second.idents == [ident]
        for name in NAMES:
            bench.board.remove_target(name)
        bench.board.died("S@2", 1, "S@2 died")
        assert await Return(bench, "A", ident).refused() == ("lost", "there is no machine S")
        with pytest.raises(Rejected, match="there is no machine S"):
            await bench.connect(to="S")


async def test_machine_that_becomes_several(bench: Bench) -> None:
    """While both are there all are chosen from; then its paths go to the instances."""
    bench.board.add_target(alone := Machine("S"))
    bench.machines["S"] = alone
    with await bench.connect(to="S"), contextlib.ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(await bench.connect(to="S"))
        assert Counter([*paths(bench), len(alone.ends)]) == {1: 4}
        (ident,) = alone.idents
        bench.board.remove_target("S")
        bench.board.release("S", 1, "S became three")
        alone.let_go(ident)
        async with Return(bench, "A", ident):
            assert sorted(paths(bench)) == [1, 1, 2]


async def test_instance_without_room_for_a_path(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The originator is told; its path is over, and counts nowhere."""
    monkeypatch.setattr(circuit, "MAX_TAKEN", 2)
    with await bench.connect(to="S"), await bench.connect(to="S"), await bench.connect(to="S"):
        first, _, _ = shops(bench)
        (ident,) = first.idents
        first.broken = "S@1 is BROKEN"
        bench.died(first)
        assert (await Return(bench, "A", ident).refused())[0] == "exhausted"
        assert [bench.board.paths_to(shop.name) for shop in shops(bench)] == [0, 1, 1]
