"""Machines begin no faster than there is room for them, and nobody waits for it for ever."""

from typing import Final

import pytest
import trio
from tests.cp.simulation import paged
from tests.cp.simulation.killed import control_programs_are_killed
from tests.cp.simulation.paged import MIB
from tests.cp.simulation.shelves import SHELVES, ask, generations, said, shelves, states
from trio.testing import MockClock

from retinue.cp.pager.census import Census
from retinue.cp.pager.hibernation import QUIET
from retinue.cp.pager.pacing import LONGEST, Pacing
from retinue.cp.pager.report import report
from retinue.pipes import Rejected
from retinue.svm import Machine
from retinue.testing import open_system

pytestmark = control_programs_are_killed

# -- calls that wait ---------------------------------------------------------------------------------------------------


async def test_calls_of_sleepers_are_answered_as_fast_as_others_rest(autojump_clock: MockClock) -> None:
    """What each needs is known from its last rest: none waits for a look of the pager."""
    async with shelves(size=20) as (system, reading):
        await ask(system, reading, "A", "B", "C", "D")
        system["HALL"].pages.grow(40 * MIB)
        await system.jump(20)
        assert states(system) == "--CD"
        for _ in range(6):
            for names in ("AB", "CD"):
                begun = trio.current_time()
                for name in names:
                    reading.ask(name)
                await reading.all_answered()
                assert trio.current_time() - begun < 3 * QUIET
        reading.check()
        assert reading.highest <= 100 * MIB
        assert (reading.shrunk, said(system, "over-committed")) == ([], [])


async def test_where_all_are_busy_a_call_does_not_wait_for_ever(autojump_clock: MockClock) -> None:
    """Its machine begins after a while, answers, and rests: nobody is ended for it."""
    async with shelves() as (system, reading):
        for name in "ABC":
            reading.ask(name, 100)
        await system.jump(5)
        reading.ask("D")
        await system.jump(LONGEST - 1)
        assert states(system) == "ABC-"
        told = {machine["name"]: machine for machine in (await report(system.control_program))["machines"]}
        assert told["D"]["held"].startswith("it is started when others rest or have ended: 90.0 MiB of 100.0")
        await system.jump(2)
        assert reading.answers["D"] == [1]
        await system.jump(20)
        assert states(system) == "ABC-"
        await reading.all_answered()
        assert generations(system) == dict.fromkeys(SHELVES, 1)
        reading.check()


async def test_where_all_are_busy_for_long_the_ordinary_steps_follow(autojump_clock: MockClock) -> None:
    """The machines are asked, then one is ended; what it was asked is asked again, and nobody's call is lost."""
    async with shelves() as (system, reading):
        for name in SHELVES:
            reading.ask(name, 40)
        await system.jump(25)
        assert sorted(reading.shrunk) == list(SHELVES)
        assert [text.rpartition("; ")[2] for text in said(system, "over-committed")] == [
            "the machines are asked to shrink",
            "no machine is started before there is room",
        ]
        ended = [name for name in SHELVES if system.control_program.certificates.all(name)]
        assert len(ended) == 1
        await reading.all_answered()
        reading.check()


async def test_a_call_that_is_withdrawn_wants_no_room(autojump_clock: MockClock) -> None:
    """Its machine is stopped by an operator before it was born."""
    async with shelves() as (system, reading):
        for name in "ABC":
            reading.ask(name, 20)
        await system.jump(5)
        async with trio.open_nursery() as nursery:

            async def start() -> None:
                with pytest.raises(Rejected, match="D is "):
                    await system["D"].start()

            nursery.start_soon(start)
            await system.jump(1)
            assert system.control_program.pager.why_waits(system.life("D"))
            await system["D"].stop()
        assert not system.control_program.pager.why_waits(system.life("D"))
        await reading.all_answered()
        await system.jump(30)
        assert states(system) == "ABC-"


async def test_small_machines_that_begin_all_the_time_do_not_keep_a_big_one_waiting(autojump_clock: MockClock) -> None:
    """They have room, and it has none: it begins after a while all the same."""
    async with shelves() as (system, reading):
        system.nucleus.storage.at_birth = {"A": 40 * MIB, "B": 40 * MIB, "C": 5 * MIB, "D": 15 * MIB}
        await ask(system, reading, "C")
        for name in "AB":
            reading.ask(name, 60)
        await system.jump(1)
        begun, births = trio.current_time(), generations(system)["C"]
        reading.ask("D")
        while not reading.answers["D"]:
            reading.ask("C")
            await system.jump(1.5)
            assert trio.current_time() - begun < LONGEST + 3
        assert generations(system)["C"] - births >= 2
        await reading.all_answered()
        assert reading.shrunk == []


async def test_machine_has_its_turn_though_others_begin_all_the_time(autojump_clock: MockClock) -> None:
    async with shelves() as (system, reading):
        reading.ask("A")
        await reading.all_answered()
        cp, hall, young = system.control_program, system.life("HALL"), system.life("D")
        assert young.current is None
        young.current = system.life("A").current
        try:
            pacing, limit, begun = Pacing(Census(cp.host), lambda _: None), 200 * MIB, trio.current_time()
            turns = []
            for now in range(int(LONGEST) + 2):
                assert pacing.admits(young, begun + now, begun + now, limit)
                turns.append(pacing.turn(hall, begun + now, begun, limit))
        finally:
            young.current = None
        assert turns == [False] * int(LONGEST) + [True, False]


async def test_starts_are_held_no_longer_than_anybody_can_make_room(autojump_clock: MockClock) -> None:
    """One was ended, and the others have little less than there is: when they are idle they rest, and it comes back."""
    async with shelves(size=32) as (system, reading):
        system["HALL"].pages.grow(10 * MIB)
        for name in "ABC":
            reading.ask(name, 60)
        await system["HALL"].wait("WAITING")
        await system.jump(5)
        assert system.nucleus.storage.resident == 96 * MIB
        assert system.control_program.pager.overcommit.holds
        await reading.all_answered()
        await system.jump(20)
        assert said(system, "there is room in real storage again")
        assert (system["HALL"].state, system["HALL"].generation) == ("READY", 2)
        reading.check()


# -- starts ------------------------------------------------------------------------------------------------------------

FILLING = """\
[system]
name = "PAGED"
storage = "100M"

[machines.IDLER]
program = "idler"

[machines.STUCK]
program = "stuck"
start = "on-demand"
"""
TABLES: Final = tuple(f"TABLE{letter}" for letter in "ABCDEFGH")
FILLING += "".join(f'[machines.{name}]\nprogram = "table"\nstorage = "60M"\nstart = "on-demand"\n' for name in TABLES)


async def test_machines_begin_no_faster_than_there_is_made_room_for_them(autojump_clock: MockClock) -> None:
    """Each fills a part of its storage at once, all together more than there is; one that hangs holds up nobody."""
    highest = 0

    async def table(vm: Machine[None]) -> None:
        nonlocal highest
        storage = system.nucleus.storage
        storage.of(vm.name).grow(30 * MIB)
        highest = max(highest, storage.resident)
        await vm.ready()
        await vm.stopping.wait()

    async def stuck(_: Machine[None]) -> None:
        await trio.sleep_forever()

    fakes = {"IDLER": paged.program, "STUCK": stuck} | dict.fromkeys(TABLES, table)
    async with open_system(FILLING, fakes=fakes, record=False) as system:
        system.nucleus.storage.room = 1000 * MIB
        await system.jump(5)
        cp = system.control_program
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cp.administration.start, "STUCK")
            await system.jump(1)
            begun = trio.current_time()
            async with trio.open_nursery() as starts:
                for name in TABLES:
                    starts.start_soon(cp.administration.start, name)
            assert trio.current_time() - begun < 20
            nursery.cancel_scope.cancel()
        assert highest <= 130 * MIB
        await system.jump(5)
        assert system.nucleus.storage.resident <= 97 * MIB
        assert paged.said(system, "over-committed") == []


async def test_what_cannot_be_paged_out_holds_up_nobody_for_ever(autojump_clock: MockClock) -> None:
    """All that there is, and no more, is in real storage and stays there: then one begins after another."""
    fakes = dict.fromkeys(("IDLER", "STUCK", *TABLES), paged.program)
    async with open_system(FILLING, fakes=fakes, record=False) as system:
        system["IDLER"].pages.grow(99 * MIB)
        await system.jump(5)
        begun = trio.current_time()
        await system.control_program.administration.start("TABLEA")
        assert 4 < trio.current_time() - begun < 10
