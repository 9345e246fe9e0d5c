"""Machines that start on demand rest when real storage is wanted, before anybody else suffers, and no call is lost."""

import errno
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import attrs
import pytest
import trio
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test
from tests.cp.simulation.driven import Driven
from trio.testing import MockClock

from retinue.cp.pager.census import Census, Record
from retinue.cp.pager.hibernation import FAIR, LEAVES, PATIENCE, QUIET, Hibernation
from retinue.cp.pager.pacing import LONGEST, Pacing
from retinue.cp.pager.report import report
from retinue.pipes import Message, Path, Rejected
from retinue.svm import Machine
from retinue.testing import SimulatedSystem, open_system

MIB: Final = 1 << 20

pytestmark = [
    # What a control program that is killed in this process has open, the collector closes.
    pytest.mark.filterwarnings("ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning"),
]

SHELVES: Final = ("A", "B", "C", "D")
TOPOLOGY: Final = """\
[system]
name = "SHELVES"
storage = "100M"

[machines.HALL]
program = "hall"
priority = 50

[machines.READER]
program = "reader"
uses = { a = "A", b = "B", c = "C", d = "D" }
""" + "".join(
    f'[machines.{name}]\nprogram = "shelf"\nstart = "on-demand"\nidle = "1h"\npriority = 200\n' for name in SHELVES
)


@attrs.define
class Reading:
    """What READER is to ask, and what it got: each question is a number and the seconds that the answer takes."""

    questions: dict[str, int] = attrs.field(factory=dict)
    answers: dict[str, list[int]] = attrs.field(factory=lambda: {name: [] for name in SHELVES})
    shrunk: list[str] = attrs.field(factory=list)
    waiting: dict[str, int] = attrs.field(factory=lambda: dict.fromkeys(SHELVES, 0))
    touched: dict[str, float] = attrs.field(factory=lambda: dict.fromkeys(SHELVES, float("-inf")))
    highest: int = 0
    _asking: Any = None
    _answered: trio.lowlevel.ParkingLot = attrs.field(factory=trio.lowlevel.ParkingLot)

    async def reader(self, vm: Machine[None]) -> None:
        await vm.ready()
        async with trio.open_nursery() as nursery:
            self._asking = vm, nursery, {}
            await vm.stopping.wait()
            nursery.cancel_scope.cancel()

    def ask(self, name: str, seconds: float = 0.0) -> None:
        """Does not wait for the answer."""
        _, nursery, _ = self._asking
        self.questions[name] = self.questions.get(name, 0) + 1
        self.waiting[name] += 1
        self.touched[name] = trio.current_time()
        nursery.start_soon(self._ask, name, self.questions[name], seconds)

    async def _ask(self, name: str, number: int, seconds: float) -> None:
        vm, _, paths = self._asking
        if name not in paths:
            paths[name] = await vm.connect(name.lower())
        self.answers[name].append(await paths[name].call([number, seconds]))
        self.waiting[name] -= 1
        self.touched[name] = trio.current_time()
        self._answered.unpark_all()

    async def all_answered(self) -> None:
        with trio.fail_after(600):
            while any(self.waiting.values()):
                await self._answered.park()

    def check(self) -> None:
        """Every question had one answer, its own."""
        for name in SHELVES:
            assert sorted(self.answers[name]) == list(range(1, self.questions.get(name, 0) + 1)), name


@asynccontextmanager
async def shelves(
    size: int = 30, topology: str = TOPOLOGY, chained: Any = None
) -> AsyncIterator[tuple[SimulatedSystem, Reading]]:
    """Each shelf has so many MiB from its birth on, and nothing can be paged out."""
    reading = Reading()

    async def shelf(vm: Machine[None]) -> None:
        vm.on_shrink(lambda _: reading.shrunk.append(vm.name))
        reading.highest = max(reading.highest, system.nucleus.storage.resident)

        async def answer(message: Message) -> int:
            number, seconds = message.body
            await trio.sleep(seconds)
            return int(number)

        await vm.serve(answer)

    async def hall(vm: Machine[None]) -> None:
        vm.on_shrink(lambda _: reading.shrunk.append(vm.name))
        await vm.ready()
        await vm.stopping.wait()

    fakes: dict[str, Any] = {"HALL": hall, "READER": reading.reader} | dict.fromkeys(SHELVES, shelf)
    if chained is not None:
        fakes["B"] = chained
    async with open_system(topology, fakes=fakes, record=False) as system:
        system.nucleus.storage.at_birth = dict.fromkeys(SHELVES, size * MIB)
        await system.jump(2)
        yield system, reading


def said(system: SimulatedSystem, text: str) -> list[str]:
    return [record["message"] for record in system.records("CP") if text in record["message"]]


def generations(system: SimulatedSystem) -> dict[str, int]:
    return {name: system[name].generation for name in SHELVES}


def states(system: SimulatedSystem) -> str:
    """A capital for each shelf that is awake."""
    return "".join(name if system[name].state == "READY" else "-" for name in SHELVES)


async def ask(system: SimulatedSystem, reading: Reading, *names: str, pause: float = 2.0) -> None:
    """One after the other, each when the one before was answered."""
    for name in names:
        reading.ask(name)
        await reading.all_answered()
        await system.jump(pause)


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


CHAIN: Final = TOPOLOGY.replace("[machines.B]\n", '[machines.B]\nuses.next = "C"\n').replace(
    "priority = 50", "priority = 500"
)


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


# -- anything ----------------------------------------------------------------------------------------------------------

EXAMPLES: Final = int(os.environ.get("RETINUE_PAGER_EXAMPLES", "8"))
LONG: Final = 2 * FAIR
names = st.sampled_from(SHELVES)
seconds = st.sampled_from([0.0, 0.3, 1.0, 6.0, 20.0])


class Readings(RuleBasedStateMachine):
    """Calls that take any time, growth of somebody else, deaths of the control program, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.run: Driven[tuple[SimulatedSystem, Reading]] = Driven(shelves)

    def do(self, what: Callable[[SimulatedSystem, Reading], Any], pause: float) -> None:
        async def doing(opened: tuple[SimulatedSystem, Reading]) -> None:
            system, reading = opened
            now = trio.current_time()
            idle = {
                name: system[name].generation
                for name in SHELVES
                if system[name].state == "READY" and not reading.waiting[name] and now - reading.touched[name] > LONG
            }
            ended = self._ended(system)
            what(system, reading)
            if pause:
                await system.jump(pause)
            if self._ended(system) > ended:
                for name, generation in idle.items():
                    rests = system[name].state != "READY" or system[name].generation != generation
                    assert rests or reading.touched[name] >= now, f"{name} could rest, and somebody was ended"

        self.run.do(doing)

    @staticmethod
    def _ended(system: SimulatedSystem) -> int:
        every = (*SHELVES, "HALL", "READER")
        return sum(len(system.control_program.certificates.all(name)) for name in every if name not in SHELVES) + sum(
            certificate.cause == "no-room"
            for name in SHELVES
            for certificate in system.control_program.certificates.all(name)
        )

    @rule(name=names, takes=seconds, pause=seconds)
    def ask(self, name: str, takes: float, pause: float) -> None:
        self.do(lambda _, reading: reading.ask(name, takes), pause)

    @rule(size=st.integers(1, 40), pause=seconds)
    def grow(self, size: int, pause: float) -> None:
        def do(system: SimulatedSystem, _: Reading) -> None:
            if system["HALL"].state == "READY":
                system["HALL"].pages.grow(size * MIB)

        self.do(do, pause)

    @rule(size=st.integers(1, 80), pause=seconds)
    def give_up(self, size: int, pause: float) -> None:
        def do(system: SimulatedSystem, _: Reading) -> None:
            if system["HALL"].state == "READY":
                system["HALL"].pages.give_up(size * MIB)

        self.do(do, pause)

    @rule(name=names)
    def work(self, name: str) -> None:
        def do(system: SimulatedSystem, _: Reading) -> None:
            if system[name].state == "READY":
                system[name].pages.cpu += 1

        self.do(do, 1.0)

    @rule()
    def kill_control_program(self) -> None:
        async def kill(opened: tuple[SimulatedSystem, Reading]) -> None:
            system, _ = opened
            await system.jump(2)
            system.kill_control_program()
            await system.wait_until(lambda: True)

        self.run.do(kill)

    def teardown(self) -> None:
        try:
            self.run.do(self._settle)
        finally:
            self.run.close()

    async def _settle(self, opened: tuple[SimulatedSystem, Reading]) -> None:
        """Every call is answered, once there is room for one machine; and all have room again."""
        system, reading = opened
        if system["HALL"].state == "READY":
            system["HALL"].pages.give_up(200 * MIB)
        await reading.all_answered()
        reading.check()
        await system.jump(120)
        assert system.nucleus.storage.resident <= 100 * MIB
        assert system["READER"].generation == 1


def test_no_call_is_lost_and_idle_machines_rest_before_anybody_is_ended() -> None:
    """Whatever happens."""
    run_state_machine_as_test(
        Readings,
        settings=settings(
            max_examples=EXAMPLES,
            phases=[Phase.explicit, Phase.reuse, Phase.generate],
            stateful_step_count=15,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
