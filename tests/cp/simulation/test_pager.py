"""The pager on simulated machines whose storage the test sets: who loses pages, who is asked, who is ended."""

import itertools
import json
from typing import Final

import pytest
import trio
from tests.cp.simulation.killed import control_programs_are_killed
from tests.cp.simulation.paged import MIB, NAMES, TOPOLOGY, asked, paged, resident, said
from trio.testing import MockClock

from retinue.cp.pager.report import report
from retinue.pipes import Rejected

pytestmark = control_programs_are_killed

# -- paging ------------------------------------------------------------------------------------------------------------


async def test_machines_are_kept_within_the_storage_of_the_system(autojump_clock: MockClock) -> None:
    """What has not run for longest goes; what is reserved stays; everybody goes on."""
    async with paged(room=1000) as system:
        for name, size in (("HIGH", 60), ("MIDDLE", 30), ("LOW", 20)):
            system[name].pages.grow(size * MIB)
        await system.jump(10)
        for _ in range(20):
            system["MIDDLE"].pages.cpu += 1
            await system.jump(1)
            system["LOW"].pages.cpu += 1
        assert sum(resident(system).values()) <= 97
        system["LOW"].pages.grow(60 * MIB)
        await system.jump(5)
        assert sum(resident(system).values()) <= 97
        assert resident(system)["HIGH"] == 0
        assert resident(system)["MIDDLE"] >= 10
        assert set(system.states.values()) == {"READY"}
        assert said(system, "over-committed") == []


async def test_reserve_is_kept_while_others_have_anything(autojump_clock: MockClock) -> None:
    async with paged(room=1000) as system:
        for name, size in (("HIGH", 90), ("MIDDLE", 30), ("LOW", 90)):
            system[name].pages.grow(size * MIB)
        await system.jump(10)
        assert resident(system)["MIDDLE"] >= 10
        assert sum(resident(system).values()) <= 97


IDLE: Final = TOPOLOGY.replace('storage = "100M"', 'idle_page_out = "30s"').replace(
    'program = "low"', 'program = "low"\nidle_page_out = "off"'
)


async def test_idle_machine_is_paged_out_whole_and_comes_back_by_use(autojump_clock: MockClock) -> None:
    """One that says ``off`` stays; what is reserved stays; a machine that is paged out is READY."""
    async with paged(IDLE, room=1000) as system:
        for name in NAMES:
            system[name].pages.grow(20 * MIB)
        await system.jump(25)
        system["HIGH"].pages.cpu += 1
        await system.jump(20)
        assert resident(system) == {"HIGH": 20, "MIDDLE": 10, "LOW": 20}
        await system.jump(30)
        assert resident(system) == {"HIGH": 0, "MIDDLE": 10, "LOW": 20}
        told = await report(system.control_program)
        machines = {machine["name"]: machine for machine in told["machines"]}
        assert [machines[name]["paged_out"] for name in NAMES] == [True, True, False]
        assert (machines["HIGH"]["state"], machines["HIGH"]["writes"]) == ("READY", 20 * MIB // 4096)
        pages = system["HIGH"].pages
        assert pages.touch(5 * MIB) == 5 * MIB
        pages.cpu += 1
        await system.jump(10)
        told = await report(system.control_program)
        machines = {machine["name"]: machine for machine in told["machines"]}
        assert not machines["HIGH"]["paged_out"]
        assert resident(system)["HIGH"] == 5
        await system.jump(40)
        assert resident(system)["HIGH"] == 0


async def test_pages_that_came_back_by_themselves_are_taken_again(autojump_clock: MockClock) -> None:
    """As when somebody switches a swap off: the machine has not run, and is as idle as before."""
    async with paged(IDLE, room=1000) as system:
        system["HIGH"].pages.grow(20 * MIB)
        await system.jump(40)
        assert resident(system)["HIGH"] == 0
        system["HIGH"].pages.touch(20 * MIB)
        await system.jump(10)
        assert resident(system)["HIGH"] == 0


async def test_machine_that_is_paged_out_is_not_asked_for_its_meters(autojump_clock: MockClock) -> None:
    """Whoever looks at the system does not wake it."""
    async with paged(IDLE, room=1000) as system:
        life = system.life("HIGH")
        known = await life.meters()
        await system.jump(40)
        system["HIGH"].pages.grow(20 * MIB)
        await system.jump(40)
        assert life.current is not None
        assert life.current.pulse.asleep
        system["HIGH"].freeze()
        assert await life.meters() == known
        system["HIGH"].thaw()
        system["HIGH"].pages.cpu += 1
        assert not life.current.pulse.asleep
        assert await life.meters() == known


async def test_hang_that_begins_while_it_is_paged_out_is_found(autojump_clock: MockClock) -> None:
    """It had said that its heart rests, was called, and stands still since."""
    async with paged(IDLE, room=1000) as system:
        process = system.life("HIGH").current
        assert process is not None
        await system.jump(5)
        async with process.pulse.rest():
            system["HIGH"].pages.cpu += 0.001
            system["HIGH"].freeze()
        await system.jump(3 * process.entry.watchdog)
        assert said(system, "HIGH is hung")


async def test_heartbeats_are_no_work(autojump_clock: MockClock) -> None:
    """A trifle of processor time now and then does not keep a machine from being idle."""
    async with paged(IDLE, room=1000) as system:
        system["HIGH"].pages.grow(20 * MIB)
        for _ in range(6):
            await system.jump(10)
            system["HIGH"].pages.cpu += 0.0004
        assert resident(system)["HIGH"] == 0


async def test_nothing_is_looked_at_when_nothing_is_asked_for(autojump_clock: MockClock) -> None:
    """Without a limit, and without an idle time, machines keep what they have; ``set`` begins it."""
    plain = TOPOLOGY.replace('storage = "100M"\n', "")
    async with paged(plain, room=1000) as system:
        system["LOW"].pages.grow(500 * MIB)
        await system.jump(1000)
        assert resident(system)["LOW"] == 500
        assert not system.control_program.pager.works
        await system["LOW"].set(idle_page_out="5s")
        await system.jump(15)
        assert resident(system)["LOW"] == 0
        await system["LOW"].set(idle_page_out="off", priority=7, reserve="1M")
        assert not system.control_program.pager.works
        assert system.life("LOW").entry.priority == 7


async def test_host_that_cannot_page_out_is_told_of_once_for_each_machine(autojump_clock: MockClock) -> None:
    async with paged(IDLE) as system:
        system["HIGH"].pages.grow(20 * MIB)
        await system.jump(200)
        assert said(system, "cannot be paged out") == ["HIGH cannot be paged out: there is no paging device"]
        assert resident(system)["HIGH"] == 20


async def test_under_pressure_machines_that_rest_give_a_part(autojump_clock: MockClock) -> None:
    async with paged(room=1000) as system:
        system["HIGH"].pages.grow(40 * MIB)
        system["LOW"].pages.grow(40 * MIB)
        await system.jump(20)
        assert resident(system)["HIGH"] == 40
        system.nucleus.storage.pressure = 0.5
        system["LOW"].pages.cpu += 1
        await system.jump(6)
        assert 20 < resident(system)["HIGH"] < 40
        system.nucleus.storage.pressure = 0.0


# -- over-commit -------------------------------------------------------------------------------------------------------


async def test_machine_of_lowest_priority_is_ended_last_of_all_with_a_certificate(
    autojump_clock: MockClock,
) -> None:
    """First everybody is asked, then nobody is started, then one is ended; never a neighbour of higher priority."""
    async with paged() as system:
        for name, size in (("HIGH", 30), ("MIDDLE", 30), ("LOW", 30)):
            system[name].pages.grow(size * MIB)
        await system.jump(60)
        system["HIGH"].pages.grow(30 * MIB)
        await system["LOW"].wait("ABEND", "WAITING", generation=1)
        assert asked == {name: [20 * MIB] for name in NAMES}
        records = [record["message"] for record in system.records("CP")]
        order = [at for at, text in enumerate(records) if "over-committed" in text]
        assert len(order) == 2
        assert "asked to shrink" in records[order[0]]
        assert "no machine is started" in records[order[1]]
        certificate = system.control_program.certificates.latest("LOW")
        assert certificate is not None
        assert certificate.cause == "no-room"
        assert "HIGH wanted it (grown by 30 MiB lately)" in certificate.text
        assert "120 MiB of 100 MiB" in certificate.text
        assert certificate.next[0] == "it is started again when there is room"
        await system["LOW"].wait_ready(generation=2)
        assert [system[name].generation for name in NAMES] == [1, 1, 2]


async def test_machine_that_shrinks_is_not_ended(autojump_clock: MockClock) -> None:
    """What a program gives back when it is asked is as good as paging."""
    async with paged() as system:
        system["HIGH"].pages.grow(50 * MIB)
        system["LOW"].pages.grow(60 * MIB)
        await system.wait_until(lambda: bool(asked.get("LOW")))
        system["LOW"].pages.give_up(asked["LOW"][0] + 10 * MIB)
        await system.jump(60)
        assert [system[name].generation for name in NAMES] == [1, 1, 1]
        assert len(said(system, "there is room in real storage again")) == 1
        assert len(asked["LOW"]) == 1


async def test_nobody_is_started_while_there_is_no_room(autojump_clock: MockClock) -> None:
    """An operator is refused with the reason; what ends is started again when there is room."""
    async with paged() as system:
        await system["MIDDLE"].stop()
        system["HIGH"].pages.grow(120 * MIB)
        await system.wait_record("no machine is started")
        with pytest.raises(
            Rejected, match=r"MIDDLE is not started: no room in real storage: 120\.0 MiB of 100\.0"
        ) as info:
            await system["MIDDLE"].start()
        assert info.value.code == "no-room"
        system["HIGH"].pages.give_up(80 * MIB)
        await system.wait_record("there is room in real storage again")
        await system["MIDDLE"].start()
        assert system["MIDDLE"].state == "READY"


async def test_who_was_ended_waits_also_over_the_death_of_the_control_program(
    autojump_clock: MockClock,
) -> None:
    async with paged() as system:
        storage = system.nucleus.storage
        system["HIGH"].pages.grow(94 * MIB)
        system["LOW"].pages.grow(20 * MIB)
        await system["LOW"].wait("WAITING")
        await system.jump(30)
        assert system["LOW"].state == "WAITING"
        told = {machine["name"]: machine for machine in (await report(system.control_program))["machines"]}
        assert "there is no room for it yet: 94.0 MiB of 100.0 MiB are resident" in told["LOW"]["held"]
        system.kill_control_program()
        await system.jump(30)
        assert system["LOW"].state == "WAITING"
        system["HIGH"].pages.give_up(50 * MIB)
        await system["LOW"].wait_ready(generation=2)
        assert storage.resident <= 100 * MIB


async def test_who_leaks_waits_longer_each_time_and_nobody_else_suffers(autojump_clock: MockClock) -> None:
    async with paged() as system:
        system["HIGH"].pages.grow(40 * MIB)
        ends = []
        for generation in range(1, 5):
            await system["LOW"].wait_ready(generation=generation)
            system["LOW"].pages.grow(90 * MIB)
            begun = trio.current_time()
            await system["LOW"].wait("ABEND", "WAITING", "STARTING", "READY", generation=generation)
            await system["LOW"].wait_ready(generation=generation + 1)
            ends.append(trio.current_time() - begun)
        assert [later > before for before, later in itertools.pairwise(ends)] == [True] * 3
        assert [system[name].generation for name in ("HIGH", "MIDDLE")] == [1, 1]


async def test_system_can_be_stopped_while_machines_wait_for_room(autojump_clock: MockClock) -> None:
    async with paged() as system:
        system["HIGH"].pages.grow(94 * MIB)
        system["LOW"].pages.grow(20 * MIB)
        await system["LOW"].wait("WAITING")
        end = await system.stop()
        assert (end.how, end.exit_code) == ("down", 0)


async def test_on_demand_machine_is_held_when_it_is_called(autojump_clock: MockClock) -> None:
    """Who calls it waits; when there is room, it is answered."""
    demand = TOPOLOGY.replace('program = "low"', 'program = "low"\nstart = "on-demand"')
    async with paged(demand) as system:
        system["HIGH"].pages.grow(120 * MIB)
        await system.wait_record("no machine is started")
        answers: list[str] = []

        async def call() -> None:
            answers.append(await system["LOW"].call("name"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(call)
            await system["LOW"].wait("WAITING")
            await system.jump(2)
            assert answers == []
            system["HIGH"].pages.give_up(80 * MIB)
        assert answers == ["LOW"]


async def test_group_of_an_ended_machine_is_left_alone(autojump_clock: MockClock) -> None:
    """That real storage is short is no fault of the machine: no budget is spent, no strategy applied."""
    group = (
        '\n[groups.ALL]\nmembers = ["HIGH", "LOW"]\nstrategy = "one_for_all"\nrestarts = { most = 0, within = "1h" }\n'
    )
    async with paged(TOPOLOGY + group) as system:
        system["HIGH"].pages.grow(60 * MIB)
        system["LOW"].pages.grow(60 * MIB)
        await system["LOW"].wait_ready(generation=2)
        assert system["HIGH"].generation == 1


async def test_report_has_everything_indicate_tells(autojump_clock: MockClock) -> None:
    async with paged(room=1000) as system:
        system["HIGH"].pages.grow(40 * MIB)
        system["HIGH"].pages.working = 12 * MIB
        system["LOW"].pages.grow(80 * MIB)
        await system.jump(30)
        system["LOW"].pages.touch(4096 * 3)
        told = await report(system.control_program)
        assert json.loads(json.dumps(told)) == told
        assert told["storage"] == 100 * MIB
        assert told["totals"]["defined"] == 3 * 128 * MIB
        assert told["totals"]["instantiated"] == 120 * MIB
        assert told["totals"]["resident"] + told["totals"]["paged"] == 120 * MIB
        assert told["totals"]["reads"] == 3
        assert told["totals"]["writes"] * 4096 >= 20 * MIB
        assert told["overcommit"] == {"defined": 3.84, "instantiated": 1.2}
        assert told["paging"]["mechanism"] == "simulated"
        high = told["machines"][0]
        assert (high["name"], high["working"], high["priority"], high["held"]) == ("HIGH", 12 * MIB, 200, None)
