"""A machine is not ended for a successor that would not be started, and whoever ordered it is told so in time."""

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import attrs
import pytest
import trio
from tests.cp.simulation.paged import MIB
from tests.cp.simulation.shelves import SHELVES, TOPOLOGY, Reading, ask, generations, said, shelves, states
from trio.testing import MockClock

from retinue.cp.death import Cause, Trouble
from retinue.cp.incarnation import START_LIMIT
from retinue.cp.life import GRACE
from retinue.cp.pager.admission import FIRST
from retinue.cp.replacement import ROOM_PATIENCE
from retinue.pipes import Rejected
from retinue.svm import Machine
from retinue.testing import SimulatedSystem, open_system

SMALL: Final = 2


@asynccontextmanager
async def held(
    *busy: str, size: int = SMALL, topology: str = TOPOLOGY, chained: Any = None
) -> AsyncIterator[tuple[SimulatedSystem, Reading]]:
    """Nobody is started: HALL has nearly all that there is, so that nobody is ended for it either."""
    async with shelves(size=size, topology=topology, chained=chained) as (system, reading):
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
        assert refused.value.text.startswith(
            "A goes on as it is, for nobody could say when it is ready again after its end: "
        )
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


async def test_what_a_machine_shares_makes_no_room_when_it_ends(autojump_clock: MockClock) -> None:
    """The others have it then: only what is its own becomes free, and its segments."""
    async with held("A", size=20) as (system, reading):
        pager, life = system.control_program.pager, system.control_program.lives["A"]
        record = pager.census.records["A", 1]
        assert (pager.census.total, pager.why_not_again(life, life.entry)) == (98 * MIB, "")
        record.storage = attrs.evolve(record.storage, private=MIB)
        assert "98.0 MiB of 100.0 MiB are resident" in pager.why_not_again(life, life.entry)
        record.storage, record.segments = attrs.evolve(record.storage, resident=16 * MIB), 4 * MIB
        assert (pager.census.total, pager.why_not_again(life, life.entry)) == (98 * MIB, "")
        await reading.all_answered()


@pytest.mark.parametrize("verb", ["replace", "restart"])
async def test_machine_that_starts_is_not_ended_either(verb: str, autojump_clock: MockClock) -> None:
    begin = trio.Event()

    async def slow(vm: Machine[None]) -> None:
        await begin.wait()

        async def answer(message: Any) -> int:
            return int(message.body[0])

        await vm.serve(answer)

    async with held("B", chained=slow) as (system, reading):
        assert (system["B"].state, system["B"].generation) == ("STARTING", 1)
        with pytest.raises(Rejected) as refused:
            await order(system, verb, "B")
        assert (refused.value.code, refused.value.text[:21]) == ("no-room", "B goes on as it is, f")
        begin.set()
        await reading.all_answered()
        reading.check()
        assert (states(system), system["B"].generation) == ("-B--", 1)


@pytest.mark.parametrize("verb", ["replace", "restart"])
async def test_of_who_ends_already_nobody_says_that_it_goes_on(verb: str, autojump_clock: MockClock) -> None:
    async with held("A") as (system, reading):
        again = trio.Event()
        again.set()
        system.control_program.lives["A"].start_again(Trouble(Cause.ASKED, "asked to start again"), again)
        begun = trio.current_time()
        with pytest.raises(Rejected) as refused:
            await order(system, verb, "A")
        assert trio.current_time() - begun == pytest.approx(GRACE + ROOM_PATIENCE, abs=1)
        assert refused.value.code == "no-room"
        assert refused.value.text.startswith("A has no process, and is started as soon as there is room: ")
        system["HALL"].pages.give_up(50 * MIB)
        await reading.all_answered()
        reading.check()
        assert (states(system), generations(system)["A"]) == ("A---", 2)


@pytest.mark.parametrize(
    ("verb", "detail"),
    [
        ("replace", {"replaced": {"WEB@1": {"from": 1, "to": 2, "overlap": False}}}),
        ("restart", {"restarted": ["WEB@1"]}),
    ],
)
async def test_refusal_tells_of_the_instances_that_came_before(
    verb: str, detail: dict[str, Any], autojump_clock: MockClock
) -> None:
    births: Counter[str] = Counter()

    async def web(vm: Machine[None]) -> None:
        births[vm.name] += 1
        if (vm.name, births[vm.name]) == ("WEB@2", 2):
            raise ValueError("no more")
        await vm.ready()
        await vm.stopping.wait()

    text = '[system]\nname = "SITE"\n\n[machines.WEB]\nprogram = "web"\ninstances = 3\nreplace = "stop-first"\n'
    async with open_system(text, fakes={"WEB": web}, record=False) as system:
        with pytest.raises(Rejected) as refused:
            await order(system, verb, "WEB")
        assert refused.value.code == ("not-replaced" if verb == "replace" else "not-ready")
        assert refused.value.text.endswith(f" ({next(iter(detail))} before it: WEB@1)")
        assert refused.value.detail == detail
        assert (system["WEB@1"].generation, system["WEB@3"].generation) == (2, 1)
        births["WEB@2"] = 1
        with pytest.raises(Rejected) as first:
            await order(system, verb, "WEB@2")
        assert (first.value.code, first.value.detail) == (refused.value.code, None)


async def test_config_is_not_taken_by_who_keeps_its_limits(autojump_clock: MockClock) -> None:
    """It would have to be replaced for the smaller storage, and there is no room for that."""
    taken: list[str] = []

    async def shop(vm: Machine[Any]) -> None:
        async def take(config: Any) -> None:
            if config.colour == "green":
                raise Rejected("not-mine", "any other one")
            taken.append(config.colour)

        taken.append(vm.config.colour)
        vm.on_reload(take)
        await vm.ready()
        await vm.stopping.wait()

    async def hall(vm: Machine[None]) -> None:
        await vm.ready()
        await vm.stopping.wait()

    text = """\
[system]
name = "STREET"
storage = "1000M"

[machines.HALL]
program = "hall"

[machines.SHOP]
program = "shop"
config.colour = "red"
"""
    async with open_system(text, fakes={"SHOP": shop, "HALL": hall}, record=False) as system:
        system["SHOP"].pages.grow(40 * MIB)
        system["HALL"].pages.grow(1100 * MIB)
        while not system.control_program.pager.overcommit.holds:
            await system.jump(0.5)
        system["HALL"].pages.give_up(150 * MIB)
        await system.jump(5)
        life, cp = system.control_program.lives["SHOP"], system.control_program
        before = life.entry
        blue = text.replace("red", "blue")
        (done,) = (await system.apply(blue + 'storage = "32M"\n'))["changed"]
        assert (done["kind"], done["how"]) == ("reload", None)
        assert done["failed"].startswith("SHOP goes on as it is, ")
        assert (taken, life.entry, list(cp.administration.held)) == (["red"], before, ["SHOP"])
        (done,) = (await system.apply(text.replace("red", "green") + 'storage = "64M"\n'))["changed"]
        assert done["failed"].startswith("SHOP goes on as it is, ")
        assert system.nucleus.machines["SHOP", 1].storage == before.storage == 128 * MIB
        (done,) = (await system.apply(blue + 'storage = "64M"\n'))["changed"]
        assert system.nucleus.machines["SHOP", 1].storage == life.entry.storage == 64 * MIB
        assert (done["how"], done["failed"], taken) == ("reload", None, ["red", "blue"])
        assert (life.entry.config, life.generation) == ({"colour": "blue"}, 1)


def without(text: str, name: str) -> str:
    """A topology less one machine."""
    return "[machines.".join(each for each in text.split("[machines.") if not each.startswith(f"{name}]"))


SEGMENTS: Final = TOPOLOGY.replace("[machines.A]\n", '[machines.A]\nsegments = "1M"\n')


async def test_removals_of_an_apply_make_room_for_its_replacements(autojump_clock: MockClock) -> None:
    async with held("A") as (system, reading):
        done = (await system.apply(without(SEGMENTS, "HALL")))["changed"]
        assert [(each["machine"], each["how"], each["failed"]) for each in done] == [
            ("A", "replace", None),
            ("HALL", "remove", None),
        ]
        await reading.all_answered()
        reading.check()
        cp = system.control_program
        assert (generations(system)["A"], cp.lives["A"].entry.segments, cp.administration.held) == (2, MIB, {})


async def test_machine_that_is_added_waits_for_room_and_its_order_does_not(autojump_clock: MockClock) -> None:
    unused = TOPOLOGY.replace(', d = "D"', "")
    fewer = without(unused, "D")
    async with held("A", topology=unused) as (system, reading):
        await system.apply(fewer)
        begun = trio.current_time()
        (done,) = (await system.apply(fewer + '[machines.D]\nprogram = "shelf"\n'))["changed"]
        assert trio.current_time() - begun == pytest.approx(ROOM_PATIENCE)
        assert done["failed"].startswith("D has no process, and is started as soon as there is room: ")
        assert system["D"].state == "WAITING"
        system["HALL"].pages.give_up(50 * MIB)
        await system["D"].wait("READY")
        await reading.all_answered()


STREET: Final = '[system]\nname = "STREET"\nstorage = "100M"\n\n[machines.SHOP]\nprogram = "shop"\n'
STREET_HALL: Final = '[machines.HALL]\nprogram = "hall"\npriority = 200\n'
STREET_MORE: Final = '[machines.MORE]\nprogram = "more"\npriority = 50\n'


@pytest.mark.parametrize("removed", [True, False])
async def test_machine_that_is_added_and_ended_before_it_is_ready(removed: bool, autojump_clock: MockClock) -> None:
    """For want of room; it is tried again when that is there that another one had, which is to be removed."""
    slow = trio.Event()

    async def stay(vm: Machine[None]) -> None:
        if vm.name == "MORE" and slow.is_set() and "HALL" in system.control_program.lives:
            await trio.sleep_forever()
        await vm.ready()
        await vm.stopping.wait()

    fakes = dict.fromkeys(("SHOP", "HALL", "MORE"), stay)
    async with open_system(STREET + STREET_HALL + STREET_MORE, fakes=fakes, record=False) as system:
        cp = system.control_program
        await system.apply(STREET + STREET_HALL)
        slow.set()
        system["HALL"].pages.grow(85 * MIB)
        system.nucleus.storage.at_birth = {"MORE": 40 * MIB}
        await system.jump(2)
        begun = trio.current_time()
        done = (await system.apply(STREET + ("" if removed else STREET_HALL) + STREET_MORE))["changed"]
        assert trio.current_time() - begun < START_LIMIT
        assert [each.cause for each in cp.certificates.all("MORE")] == ["no-room", "asked"]
        more = next(each for each in done if each["machine"] == "MORE")
        if removed:
            assert [(each["machine"], each["failed"]) for each in done] == [("MORE", None), ("HALL", None)]
            assert (system["MORE"].state, system["MORE"].generation) == ("READY", 2)
        else:
            begins = "MORE has no process, and is started as soon as there is room: out of real storage: "
            assert more["failed"].startswith(begins)


async def test_machine_that_waits_for_room_is_started_with_what_was_applied(autojump_clock: MockClock) -> None:
    """Nothing was ended for it, so there is nothing to go back to."""
    async with held() as (system, reading):
        reading.ask("A")
        await system.jump(1)
        (done,) = (await system.apply(SEGMENTS))["changed"]
        assert done["failed"].startswith("A has no process, and is started as soon as there is room: ")
        assert done["failed"].endswith("; it has its new definition then")
        cp = system.control_program
        assert (cp.lives["A"].entry.segments, cp.topology.entries["A"].segments) == (MIB, MIB)
        assert cp.administration.held == {}
        system["HALL"].pages.give_up(50 * MIB)
        await reading.all_answered()
        reading.check()
        current = cp.lives["A"].current
        assert current is not None
        assert (current.entry.segments, current.generation) == (MIB, 1)


@pytest.mark.parametrize("verb", ["replace", "restart"])
async def test_machine_goes_on_whose_server_waits_for_room(verb: str, autojump_clock: MockClock) -> None:
    """It could be started at once, and would wait for HALL then."""
    topology = TOPOLOGY.replace("[machines.HALL]\n", '[machines.HALL]\nreserve = "60M"\n')
    topology = topology.replace('uses = { a = "A"', 'replace = "stop-first"\nuses = { hall = "HALL", a = "A"')
    async with shelves(topology=topology) as (system, reading):
        await ended(system, reading)
        while system.control_program.pager.overcommit.holds:
            await system.jump(0.1)
        await system.jump(FIRST)
        begun = trio.current_time()
        with pytest.raises(Rejected) as refused:
            await order(system, verb, "READER")
        assert (refused.value.code, trio.current_time()) == ("no-room", begun)
        assert refused.value.text.startswith("READER goes on as it is, ")
        assert ": it needs HALL, which has no process: " in refused.value.text
        assert (system["READER"].state, system["READER"].generation) == ("READY", 1)
        await reading.all_answered()
        reading.check()
        await system["HALL"].wait("READY")
        await order(system, verb, "READER")
        assert (system["READER"].state, system["READER"].generation) == ("READY", 2)
