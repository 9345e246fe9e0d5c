"""Machines that start on demand rest when real storage is wanted, before anybody else suffers, and no call is lost."""

import errno
import os
from typing import Any

import pytest
import trio
from tests.cp.simulation.killed import control_programs_are_killed
from tests.cp.simulation.paged import MIB
from tests.cp.simulation.shelves import CHAIN, TOPOLOGY, ask, generations, said, shelves, states
from trio.testing import MockClock

from retinue.cp.pager.census import Record
from retinue.cp.pager.hibernation import FAIR, LEAVES, PATIENCE, QUIET, Hibernation
from retinue.pipes import Message, Path
from retinue.svm import Machine

pytestmark = control_programs_are_killed

# -- who rests ---------------------------------------------------------------------------------------------------------


async def test_oldest_idle_machine_rests_for_one_that_is_called(autojump_clock: MockClock) -> None:
    """It says why, counts no restart, and comes back by being called: then the next one rests for it."""
    async with shelves() as (system, reading):
        await ask(system, reading, "A", "B", "C")
        assert states(system) == "ABC-"
        begun = trio.current_time()
        await ask(system, reading, "D", pause=0)
        assert trio.current_time() - begun < 3 * QUIET
        assert states(system) == "-BCD"
        assert system["A"].state == "DORMANT"
        certificate = system.control_program.certificates.latest("A")
        assert certificate is not None
        assert certificate.cause == "idle"
        assert certificate.text.startswith("rests: real storage was wanted, and nothing has passed for ")
        assert said(system, "A is STOPPING: rests: real storage was wanted")
        await ask(system, reading, "A")
        assert states(system) == "A-CD"
        assert generations(system) == {"A": 2, "B": 1, "C": 1, "D": 1}
        assert [life.restarts for life in system.control_program.lives.values()] == [0] * 6
        reading.check()
        assert reading.highest <= 100 * MIB
        assert (reading.shrunk, said(system, "over-committed")) == ([], [])


async def test_idle_machines_rest_before_anybody_is_asked_to_shrink(autojump_clock: MockClock) -> None:
    """Somebody else has grown. Who counts less than they do is not ended, nor even asked."""
    async with shelves() as (system, reading):
        await ask(system, reading, "A", "B", "C")
        system["HALL"].pages.grow(40 * MIB)
        await system.jump(60)
        assert states(system) == "--C-"
        assert (reading.shrunk, said(system, "over-committed")) == ([], [])
        assert system["HALL"].generation == 1
        system["HALL"].pages.grow(40 * MIB)
        await system.jump(60)
        assert states(system) == "----"
        assert (reading.shrunk, system["HALL"].generation) == ([], 1)


async def test_busy_machine_never_rests(autojump_clock: MockClock) -> None:
    """It was asked before all others, and has not answered; the next one rests instead."""
    async with shelves() as (system, reading):
        reading.ask("A", 30)
        await system.jump(5)
        reading.ask("B")
        reading.ask("C")
        await system.jump(2)
        reading.ask("D")
        await system.jump(3)
        assert states(system) in ("AB-D", "A-CD")
        await reading.all_answered()
        assert generations(system)["A"] == 1
        reading.check()


async def test_busy_machine_does_not_rest_for_having_been_asked_nothing_else(autojump_clock: MockClock) -> None:
    """Its answer takes longer than its ``idle`` time, though nothing passes meanwhile."""
    async with shelves(topology=TOPOLOGY.replace('"1h"', '"10s"')) as (system, reading):
        reading.ask("A", 100)
        await system.jump(60)
        assert states(system) == "A---"
        await reading.all_answered()
        assert not said(system, "A is STOPPING")
        await system.jump(30)
        assert states(system) == "----"
        assert said(system, "A is STOPPING: nobody has asked it anything for 10 s")


async def test_machine_that_computes_never_rests(autojump_clock: MockClock) -> None:
    """It has answered everybody, and works on."""
    async with shelves() as (system, reading):
        await ask(system, reading, "A", "B", "C")
        reading.ask("D")
        for _ in range(20):
            for name in "BC":
                system[name].pages.cpu += 0.1
            await system.jump(0.1)
        await reading.all_answered()
        assert states(system) == "-BCD"


async def test_who_has_something_reserved_rests_last(autojump_clock: MockClock) -> None:
    reserved = TOPOLOGY.replace("[machines.A]\n", '[machines.A]\nreserve = "10M"\n')
    async with shelves(topology=reserved) as (system, reading):
        await ask(system, reading, "A", "B", "C", "D")
        assert states(system) == "A-CD"
        await ask(system, reading, "B")
        assert states(system) == "AB-D"


async def test_of_equally_idle_machines_the_one_that_counts_less_rests(autojump_clock: MockClock) -> None:
    low = TOPOLOGY.replace("priority = 200\n[machines.C]", "priority = 150\n[machines.C]")
    assert low != TOPOLOGY
    async with shelves(topology=low) as (system, reading):
        await ask(system, reading, "A", "B", "C")
        for name in "ABC":
            system[name].pages.cpu += 1
        await system.jump(10)
        await ask(system, reading, "D")
        assert states(system) == "A-CD"


async def test_machine_whose_server_rests_may_rest_too(autojump_clock: MockClock) -> None:
    """The path that leads on has no other end meanwhile, and nothing is outstanding on it."""
    paths: list[Path] = []

    async def chained(vm: Machine[None]) -> None:
        path = await vm.connect("next")
        paths.append(path)

        async def answer(message: Message) -> Any:
            return await path.call([message.body[0], 0])

        await vm.serve(answer)

    async with shelves(size=30, topology=CHAIN, chained=chained) as (system, reading):
        await ask(system, reading, "B")
        assert states(system) == "-BC-"
        system["B"].pages.cpu += 1  # C is idle for longer
        await system.jump(10)
        system["HALL"].pages.grow(60 * MIB)
        await system.jump(30)
        assert states(system) == "-B--"
        assert not paths[0].joined
        system["HALL"].pages.grow(20 * MIB)
        await system.jump(30)
        assert states(system) == "----"
        assert (reading.shrunk, said(system, "over-committed")) == ([], [])
        system["HALL"].pages.give_up(80 * MIB)
        await ask(system, reading, "B")
        reading.check()


async def test_machines_that_say_nothing_hold_up_a_look_for_a_second_in_all(autojump_clock: MockClock) -> None:
    """All but one do not answer: that one rests, and soon."""
    async with shelves(size=20) as (system, reading):
        await ask(system, reading, "A", "B", "C", "D")
        for name in "ABC":
            system[name].freeze()

        async def no_segments(_: Record) -> None:
            return None

        cp = system.control_program
        await cp.pager.look()
        hibernation, begun = Hibernation(cp.pager.census, no_segments), trio.current_time()
        await hibernation.make_room(cp.lives.values(), 10 * MIB)
        assert trio.current_time() - begun <= PATIENCE
        await system.jump(QUIET)
        begun = trio.current_time()
        await hibernation.make_room(cp.lives.values(), 10 * MIB)
        assert trio.current_time() - begun <= PATIENCE
        assert system["D"].state != "READY"
        assert [system[name].state for name in "ABC"] == ["READY"] * 3


async def test_who_has_only_asked_others_has_a_fair_time(autojump_clock: MockClock) -> None:
    """It has talked to others when it began, and was not called by anybody yet."""

    async def chained(vm: Machine[None]) -> None:
        path = await vm.connect("next")
        assert await path.call([1, 0]) == 1

        async def answer(_: Message) -> None:
            return None

        await vm.serve(answer)

    async with shelves(size=60, topology=CHAIN, chained=chained) as (system, reading):
        system.nucleus.storage.at_birth = {"A": 30 * MIB, "B": 80 * MIB}
        await system["B"].start()
        begun = trio.current_time()
        reading.ask("A")
        await system.jump(FAIR - 0.5)
        assert system["B"].state == "READY"
        await reading.all_answered()
        assert trio.current_time() - begun < 2 * FAIR


async def test_machine_that_does_not_end_counts_as_gone_for_a_moment_only(autojump_clock: MockClock) -> None:
    """Then another one rests instead, before anybody is asked to shrink."""

    async def stays(vm: Machine[None]) -> None:
        await vm.serve(_number)
        await trio.sleep_forever()

    slow = TOPOLOGY.replace("[machines.B]\n", '[machines.B]\ngrace = "60s"\n')
    async with shelves(topology=slow, chained=stays) as (system, reading):
        await ask(system, reading, "B", "A")
        system["HALL"].pages.grow(50 * MIB)
        await system.jump(LEAVES - 1)
        assert (system["A"].state, system["B"].state) == ("READY", "STOPPING")
        await system.jump(5)
        assert (system["A"].state, system["B"].state) == ("DORMANT", "STOPPING")
        assert (reading.shrunk, said(system, "over-committed")) == ([], [])


async def _number(message: Message) -> int:
    return int(message.body[0])


async def test_host_that_refuses_descriptors_does_not_end_the_control_program(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is short of everything when pages are to be taken: that is told once, and tried again."""
    async with shelves() as (system, _):
        tried: list[str] = []

        def refuse(machine: str, generation: int, most: int | None = None) -> int:
            tried.append(machine)
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

        system.nucleus.storage.room = 1000 * MIB
        cp = system.control_program
        monkeypatch.setattr(cp.host, "page_out", refuse)
        system["HALL"].pages.grow(99 * MIB)
        await system.jump(10)
        assert len(tried) > 1
        assert said(system, "Too many open files") == ["the pager could not take pages from HALL: Too many open files"]
        monkeypatch.undo()
        await system.jump(60)
        assert system.nucleus.storage.resident <= 97 * MIB
        assert system.control_program is cp


# -- no ping-pong ------------------------------------------------------------------------------------------------------


async def test_machines_with_room_for_one_take_turns_and_each_answers(autojump_clock: MockClock) -> None:
    """Nobody is started in vain, and nobody starves."""
    async with shelves(size=60) as (system, reading):
        await ask(system, reading, "A", "B")
        reading.highest, begun = 0, trio.current_time()
        for _ in range(20):
            await ask(system, reading, "A", "B", pause=0)
        assert trio.current_time() - begun < 40 * 3 * QUIET
        assert generations(system) == {"A": 21, "B": 21, "C": 0, "D": 0}
        reading.check()
        assert reading.highest <= 100 * MIB
        assert reading.shrunk == []


async def test_machine_that_is_asked_all_the_time_stays(autojump_clock: MockClock) -> None:
    """It does not rest for one that is asked now and then, which has its answers all the same."""
    async with shelves(size=60) as (system, reading):
        for number in range(600):
            reading.ask("A")
            if number % 200 == 100:
                reading.ask("B")
            await system.jump(0.1)
        await reading.all_answered()
        reading.check()
        assert generations(system) == {"A": 1, "B": 3, "C": 0, "D": 0}
        assert reading.shrunk == []


async def test_machine_that_was_started_and_not_asked_has_a_fair_time(autojump_clock: MockClock) -> None:
    """An operator has started it: it rests, but not at once."""
    async with shelves(size=60) as (system, reading):
        await ask(system, reading, "B")
        await system["A"].start()
        begun = trio.current_time()
        await system["B"].wait("DORMANT")
        reading.ask("B")
        await system.jump(begun + FAIR - 0.5 - trio.current_time())
        assert states(system) == "A---"
        await reading.all_answered()
        assert states(system) == "-B--"
        assert reading.highest <= 120 * MIB


async def test_who_was_ended_comes_back_when_others_rest(autojump_clock: MockClock) -> None:
    """It waits for room, as everybody who was ended, and those who are idle make it."""
    async with shelves() as (system, reading):
        await ask(system, reading, "A", "B")
        system["HALL"].pages.grow(30 * MIB)
        for name in "AB":
            reading.ask(name, 30)
        await system.jump(2)
        system["HALL"].pages.grow(30 * MIB)
        await system["HALL"].wait("WAITING")
        reading.ask("C")
        await reading.all_answered()
        system.nucleus.storage.at_birth["HALL"] = 5 * MIB
        await system.jump(30)
        assert (system["HALL"].state, system["HALL"].generation) == ("READY", 2)
        reading.check()
