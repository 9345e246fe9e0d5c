"""A machine is not ended for a successor that would not be started, and whoever ordered it is told so in time."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import pytest
import trio
from tests.cp.simulation.paged import MIB
from tests.cp.simulation.shelves import SHELVES, TOPOLOGY, Reading, ask, generations, said, shelves, states
from trio.testing import MockClock

from retinue.cp.pager.admission import FIRST
from retinue.cp.replacement import ROOM_PATIENCE
from retinue.pipes import Rejected
from retinue.testing import SimulatedSystem

SMALL: Final = 2


@asynccontextmanager
async def held(*busy: str, size: int = SMALL) -> AsyncIterator[tuple[SimulatedSystem, Reading]]:
    """Nobody is started: HALL has nearly all that there is, so that nobody is ended for it either."""
    async with shelves(size=size) as (system, reading):
        for name in busy:
            reading.ask(name, 60)
        await system.jump(2)
        system["HALL"].pages.grow(130 * MIB)
        while not system.control_program.pager.overcommit.holds:
            await system.jump(0.5)
        system["HALL"].pages.give_up(system.nucleus.storage.resident - 98 * MIB)
        await system.jump(60 - 2 * ROOM_PATIENCE)
        assert system.control_program.pager.overcommit.holds
        assert [name for name in (*SHELVES, "HALL", "READER") if system.control_program.certificates.all(name)] == []
        yield system, reading


async def order(system: SimulatedSystem, verb: str, name: str) -> None:
    administration = system.control_program.administration
    await (administration.replace(name) if verb == "replace" else administration.restart(name))


@pytest.mark.parametrize("verb", ["replace", "restart"])
async def test_machine_goes_on_that_would_not_be_started_again(verb: str, autojump_clock: MockClock) -> None:
    """Refused at once, with the cause and the cure; its call is answered; and done when there is room."""
    async with held("A") as (system, reading):
        begun = trio.current_time()
        with pytest.raises(Rejected) as refused:
            await order(system, verb, "A")
        assert trio.current_time() == begun
        assert refused.value.code == "no-room"
        assert refused.value.text.startswith("A goes on as it is, for nobody would start it again when it has ended: ")
        assert "98.0 MiB of 100.0 MiB are resident" in refused.value.text
        assert "retinue ps --storage" in refused.value.text
        assert (states(system), generations(system)["A"]) == ("A---", 1)
        await reading.all_answered()
        reading.check()
        assert (states(system), generations(system)["A"], said(system, "A is STOPPING")) == ("A---", 1, [])
        system["HALL"].pages.give_up(50 * MIB)
        await system.jump(5)
        await order(system, verb, "A")
        assert (states(system), generations(system)["A"]) == ("A---", 2)


@pytest.mark.parametrize("verb", ["replace", "restart"])
async def test_machine_that_waits_for_room_goes_on_waiting(verb: str, autojump_clock: MockClock) -> None:
    """It was called, and whoever calls it gets the answer as soon as there is room; who ordered it is told before."""
    async with held() as (system, reading):
        reading.ask("B")
        await system.jump(1)
        begun = trio.current_time()
        with pytest.raises(Rejected) as refused:
            await order(system, verb, "B")
        assert trio.current_time() - begun == pytest.approx(ROOM_PATIENCE)
        assert refused.value.code == "no-room"
        assert refused.value.text.startswith("B has no process, and is started as soon as there is room: ")
        assert "98.0 MiB of 100.0 MiB are resident" in refused.value.text
        assert system["B"].state == "WAITING"
        assert said(system, "no room for two") == []
        system["HALL"].pages.give_up(50 * MIB)
        await reading.all_answered()
        reading.check()
        assert (states(system), generations(system)["B"]) == ("-B--", 1)


async def test_machine_whose_end_makes_room_is_replaced(autojump_clock: MockClock) -> None:
    """Without it there is so much that others are started, and so is its successor."""
    async with held("A", size=20) as (system, reading):
        await reading.all_answered()
        begun = trio.current_time()
        await order(system, "replace", "A")
        assert trio.current_time() - begun < ROOM_PATIENCE
        assert (states(system), generations(system)["A"]) == ("A---", 2)


async def ended(system: SimulatedSystem, reading: Reading) -> float:
    """Let HALL be ended for want of storage, while A and B are busy; returns when that was."""
    await ask(system, reading, "A", "B")
    system["HALL"].pages.grow(30 * MIB)
    for name in "AB":
        reading.ask(name, 30)
    await system.jump(2)
    system["HALL"].pages.grow(30 * MIB)
    await system["HALL"].wait("WAITING")
    return trio.current_time()


@pytest.mark.parametrize("verb", ["replace", "restart"])
async def test_who_is_wanted_by_an_operator_does_not_wait_for_having_been_ended(
    verb: str, autojump_clock: MockClock
) -> None:
    """There is room: it is started before its time."""
    async with shelves() as (system, reading):
        when = await ended(system, reading)
        await order(system, verb, "HALL")
        assert trio.current_time() - when < FIRST
        assert (system["HALL"].state, system["HALL"].generation) == ("READY", 2)
        await reading.all_answered()
        reading.check()


async def test_order_waits_for_those_who_rest(autojump_clock: MockClock) -> None:
    """There is no room for it yet, but somebody is idle."""
    async with shelves() as (system, reading):
        when = await ended(system, reading)
        while system.control_program.pager.overcommit.holds:
            await system.jump(0.1)
        reading.ask("C")
        while system.control_program.pager.census.total < 90 * MIB:
            await system.jump(0.1)
        assert trio.current_time() - when < FIRST
        assert (states(system), reading.answers["C"], system["HALL"].state) == ("ABC-", [1], "WAITING")
        await order(system, "replace", "HALL")
        assert (states(system), system["HALL"].state, system["HALL"].generation) == ("AB--", "READY", 2)
        await reading.all_answered()
        reading.check()


async def test_room_that_comes_in_time_is_no_refusal(autojump_clock: MockClock) -> None:
    """Somebody makes it while the order waits, and another order is not held up for longer than that."""
    async with held() as (system, reading):
        reading.ask("B")
        await system.jump(1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(order, system, "replace", "B")
            await system.jump(ROOM_PATIENCE - 5)
            system["HALL"].pages.give_up(50 * MIB)
        await reading.all_answered()
        assert (states(system), generations(system)["B"]) == ("-B--", 1)


async def test_cure_that_is_named_is_one(autojump_clock: MockClock) -> None:
    """The system is given more by the very file that has a machine replaced, and those that wait are started."""
    more = TOPOLOGY.replace('storage = "100M"', 'storage = "200M"')
    more = more.replace("[machines.A]\n", '[machines.A]\nsegments = "1M"\n')
    async with held("A") as (system, reading):
        reading.ask("B")
        await system.jump(1)
        done = await system.apply(more)
        assert [(each["machine"], each["how"], each["failed"]) for each in done["changed"]] == [
            (None, "system", None),
            ("A", "replace", None),
        ]
        await reading.all_answered()
        reading.check()
        assert (states(system), generations(system)) == ("AB--", {"A": 2, "B": 1, "C": 0, "D": 0})
