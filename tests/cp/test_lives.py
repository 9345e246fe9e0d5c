"""What happens to a machine while something else is happening to it, or to the control program."""

import mmap
import os
import pathlib
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from retinue.pipes import PathError, Rejected
from retinue.svm import Machine
from retinue.testing import SimulatedSystem, SystemFailed, open_system

Program = Callable[[Machine[Any]], Awaitable[None]]
SYSTEM = '[system]\nname = "TEST"\n'
PAIR = """\
[machines.CLIENT]
program = "client"
uses.server = "SERVER"
[machines.SERVER]
program = "server"
"""


async def ready(vm: Machine[Any]) -> None:
    """A program that is ready and waits for the end."""
    await vm.ready()
    await vm.stopping.wait()


async def lingers(vm: Machine[Any]) -> None:
    """The same, and needs a while to end."""
    await ready(vm)
    await trio.sleep(3)


async def echo(vm: Machine[Any]) -> None:
    """Answers with its name and what it is asked."""

    async def answer(message: Any) -> Any:
        return [vm.name, message.body]

    await vm.serve(answer)


async def fails(vm: Machine[Any]) -> None:
    """Never becomes ready."""
    raise RuntimeError("it does not work")


def machines(*names: str, more: str = "") -> str:
    """A topology of machines that do not use each other."""
    return SYSTEM + "".join(f'[machines.{name}]\nprogram = "fake"\n' for name in names) + more


def fakes(*names: str, program: Program = ready) -> dict[str, Any]:
    return dict.fromkeys(names, program)


async def next_control_program(system: SimulatedSystem) -> None:
    """Kill the control program, and wait until another one has taken over."""
    system.kill_control_program()
    await system.wait_until(lambda: True)


# -- wanted again ------------------------------------------------------------------------------------------------------


async def test_a_machine_that_is_started_while_it_stops_comes_up_again(autojump_clock: MockClock) -> None:
    text = machines("A", more="essential = true\n")
    async with open_system(text, fakes=fakes("A", program=lingers)) as system, trio.open_nursery() as nursery:
        nursery.start_soon(system["A"].stop)
        await system["A"].wait("STOPPING")
        await system["A"].start()
        assert (system["A"].state, system["A"].generation) == ("READY", 2)
        await system.jump(60)
        assert system["A"].state == "READY"
        nursery.cancel_scope.cancel()


async def test_a_machine_that_is_called_while_it_goes_to_rest_comes_up_again(autojump_clock: MockClock) -> None:
    async def slow_to_rest(vm: Machine[Any]) -> None:
        await echo(vm)
        await trio.sleep(5)

    go, answers = trio.Event(), list[Any]()

    async def client(vm: Machine[Any]) -> None:
        await vm.ready()
        for _ in range(2):
            async with _connected(vm) as path:
                answers.append(await path.call("there?"))
            await go.wait()
        await vm.stopping.wait()

    text = SYSTEM + PAIR + 'start = "on-demand"\nidle = "10s"\n'
    async with open_system(text, fakes={"CLIENT": client, "SERVER": slow_to_rest}) as system:
        await system["SERVER"].wait("STOPPING")
        go.set()
        await system["SERVER"].wait_ready(generation=2)
        await system["SERVER"].wait("DORMANT")
        assert answers == [["SERVER", "there?"]] * 2


class _connected:
    def __init__(self, vm: Machine[Any]) -> None:
        self._vm = vm

    async def __aenter__(self) -> Any:
        self._path = await self._vm.connect("server")
        return self._path

    async def __aexit__(self, *_: object) -> None:
        self._path.sever()


async def test_a_machine_that_is_stopped_and_started_while_its_successor_starts(autojump_clock: MockClock) -> None:
    async with open_system(machines("A"), fakes=fakes("A")) as system, trio.open_nursery() as nursery:
        refused: list[PathError] = []

        async def replace() -> None:
            try:
                await system["A"].replace()
            except PathError as exc:
                refused.append(exc)

        system["A"].next_start(slow=30)
        nursery.start_soon(replace)
        await system.jump(1)
        await system["A"].stop()
        await system["A"].start()
        await system.jump(100)
        assert system["A"].state == "READY"
        assert len(refused) == 1
        assert len(system.nucleus.machines) == 1
        assert not [key for key in system.nucleus.kept if key.startswith("birth/A/2")]


# -- groups ------------------------------------------------------------------------------------------------------------


async def test_a_group_is_given_up_while_one_of_it_is_started_again(autojump_clock: MockClock) -> None:
    group = '[groups.G]\nmembers = ["A", "B"]\nrestarts = { most = 1, within = "60s" }\n'
    programs = {"A": lingers, "B": ready, "C": ready}
    async with open_system(machines("A", "B", "C", more=group), fakes=programs) as system:
        system["B"].kill()
        await system["B"].wait_ready(generation=2)
        async with trio.open_nursery() as nursery:

            async def restart() -> None:
                with pytest.raises(PathError):
                    await system["A"].restart()

            # The budget is whole again then.
            nursery.start_soon(restart)
            await system["A"].wait("STOPPING")
            system["B"].kill()
            await system["B"].wait_ready(generation=3)
            system["B"].kill()
            await system["B"].wait("BROKEN")
            await system["A"].wait("BROKEN")
        assert system.nucleus.control_programs == 1
        await system.jump(60)
        assert system.states == {"A": "BROKEN", "B": "BROKEN", "C": "READY"}


async def test_a_group_is_given_up_while_a_successor_starts(autojump_clock: MockClock) -> None:
    group = '[groups.G]\nmembers = ["A", "B"]\nrestarts = { most = 1, within = "60s" }\n'
    async with open_system(machines("A", "B", "C", more=group), fakes=fakes("A", "B", "C")) as system:
        async with trio.open_nursery() as nursery:

            async def replace() -> None:
                with pytest.raises(PathError):
                    await system["A"].replace()

            system["A"].next_start(slow=5)
            nursery.start_soon(replace)
            await system.jump(1)
            for generation in (2, 3):
                system["B"].kill()
                await system["B"].wait("BROKEN", "READY", generation=generation if generation == 2 else 2)
        await system.jump(60)
        assert system.states == {"A": "BROKEN", "B": "BROKEN", "C": "READY"}
        assert len(system.nucleus.machines) == 1


async def test_a_group_is_started_again_while_a_successor_becomes_ready(autojump_clock: MockClock) -> None:
    group = '[groups.G]\nmembers = ["A", "B"]\nstrategy = "one_for_all"\n'
    async with open_system(machines("A", "B", more=group), fakes={"A": lingers, "B": ready}) as system:
        async with trio.open_nursery() as nursery:
            system["A"].next_start(slow=5)
            nursery.start_soon(system["A"].replace)
            await system.jump(4)
            system["B"].kill()
        await system.jump(60)
        assert system.states == {"A": "READY", "B": "READY"}
        assert len(system.nucleus.machines) == 2


# -- another control program -------------------------------------------------------------------------------------------


async def test_a_machine_on_demand_rests_also_under_another_control_program(autojump_clock: MockClock) -> None:
    async def client(vm: Machine[Any]) -> None:
        path = await vm.connect("server")
        await path.call(1)
        await ready(vm)

    text = SYSTEM + PAIR + 'start = "on-demand"\nidle = "10s"\n'
    async with open_system(text, fakes={"CLIENT": client, "SERVER": echo}, record=False) as system:
        assert system["SERVER"].state == "READY"
        await next_control_program(system)
        await system.jump(60)
        assert (system["SERVER"].state, system["SERVER"].generation) == ("DORMANT", 1)


async def test_a_machine_that_was_being_started_again_is(autojump_clock: MockClock) -> None:
    text = machines("A", "B", more='restart = "on-failure"\nrestarts = { most = 1, within = "60s" }\n')
    async with open_system(text, fakes=fakes("A", "B", program=lingers)) as system, trio.open_nursery() as nursery:

        async def restart() -> None:
            with pytest.raises(PathError):
                await system["B"].restart()

        nursery.start_soon(restart)
        await system["B"].wait("STOPPING")
        await next_control_program(system)
        await system["B"].wait_ready(generation=2)
        assert system["B"].state == "READY"
        certificate = system.control_program.certificates.latest("B")
        assert certificate is not None
        assert certificate.cause == "asked"
        nursery.cancel_scope.cancel()


async def test_a_hung_machine_is_ended_by_the_next_control_program(autojump_clock: MockClock) -> None:
    async with open_system(machines("A", more='watchdog = "10s"\n'), fakes=fakes("A")) as system:
        system["A"].freeze()
        await next_control_program(system)
        await system.jump(60)
        assert system["A"].generation == 2
        await system["A"].wait_ready()
        await system.jump(60)
        assert system["A"].generation == 2


async def test_a_pause_goes_on_under_another_control_program(autojump_clock: MockClock) -> None:
    text = machines("A", more='pause = { first = "20s", factor = 2, longest = "80s", jitter = 0, reset = "60s" }\n')
    async with open_system(text, fakes=fakes("A")) as system:
        system["A"].kill()
        await system["A"].wait_ready(generation=2)
        system["A"].kill()
        await system["A"].wait("WAITING")
        begun = trio.current_time()
        await system.jump(5)
        await next_control_program(system)
        assert system["A"].state == "WAITING"
        await system["A"].wait_ready(generation=3)
        assert round(trio.current_time() - begun) == 20
        system["A"].kill()
        begun = trio.current_time()
        await system["A"].wait_ready(generation=4)
        assert round(trio.current_time() - begun) == 40


async def test_a_machine_that_waits_can_be_started_under_another_control_program(autojump_clock: MockClock) -> None:
    text = machines("A", more='pause = { first = "20s", factor = 2, longest = "80s", jitter = 0, reset = "60s" }\n')
    async with open_system(text, fakes=fakes("A")) as system:
        system["A"].kill()
        await system["A"].wait_ready(generation=2)
        system["A"].kill()
        await system["A"].wait("WAITING")
        await next_control_program(system)
        begun = trio.current_time()
        await system["A"].start()
        assert trio.current_time() - begun < 1


@pytest.mark.parametrize("seconds", [1, 5.05])
async def test_a_generation_is_one_process(autojump_clock: MockClock, seconds: float) -> None:
    """The control program dies while a successor starts, or when it is just ready."""
    async with open_system(machines("A"), fakes=fakes("A")) as system:
        async with trio.open_nursery() as nursery:

            async def replace() -> None:
                with pytest.raises(PathError):
                    await system["A"].replace()

            system["A"].next_start(slow=5)
            nursery.start_soon(replace)
            await system.jump(1)
            if seconds > 1:
                await system.wait_until(lambda: "ready/A/2" in system.nucleus.kept)
            await next_control_program(system)
            nursery.cancel_scope.cancel()
        await system["A"].replace()
        await system.jump(30)
        assert (system["A"].state, system["A"].generation) == ("READY", 3)
        assert len(system.nucleus.machines) == 1
        assert system.nucleus.failures == 0
        assert system.nucleus.control_programs == 2


async def test_a_group_that_is_given_up_stays_so(autojump_clock: MockClock) -> None:
    text = machines("A", "B", more='[groups.G]\nmembers = ["A", "B"]\nrestarts = { most = 1, within = "60s" }\n')
    async with open_system(text, fakes={"A": lingers, "B": ready}) as system:
        system["B"].kill()
        await system["B"].wait_ready(generation=2)
        system["B"].kill()
        await system["A"].wait("STOPPING")
        await next_control_program(system)
        with pytest.raises(SystemFailed) as failure:
            await system.wait_until(lambda: False)
        assert failure.value.end.exit_code == 1
        assert "A, B" in failure.value.end.text


async def test_a_stopped_machine_stays_so_and_a_removed_one_leaves_nothing(autojump_clock: MockClock) -> None:
    async with open_system(machines("A", "B", "C"), fakes=fakes("A", "B", "C", program=lingers)) as system:
        await system["A"].stop()
        await next_control_program(system)
        await system.jump(60)
        assert system["A"].state == "STOPPED"
        async with trio.open_nursery() as nursery:

            async def apply() -> None:
                with pytest.raises(PathError):
                    await system.apply(machines("A", "B"))

            nursery.start_soon(apply)
            await system["C"].wait("STOPPING")
            await next_control_program(system)
            nursery.cancel_scope.cancel()
        await system.jump(60)
        assert system.states == {"A": "STOPPED", "B": "READY"}
        assert len(system.nucleus.machines) == 1
        assert [key for key in system.nucleus.kept if "/C" in key] == []


async def test_a_machine_says_more_than_can_be_kept(autojump_clock: MockClock, tmp_path: pathlib.Path) -> None:
    """The cause of a death may be as long as a message of the machine."""
    (tmp_path / "program.py").write_text(
        "import attrs\n\n@attrs.define\nclass Config:\n    pass\n\nasync def main(vm):\n    await vm.ready()\n"
    )
    config = "".join(f"{'k' * 800}{number} = 1\n" for number in range(100))
    file = tmp_path / "topology.toml"
    file.write_text(SYSTEM + '[machines.A]\nprogram = "program"\n[machines.A.config]\n' + config)
    with pytest.raises(SystemFailed) as failure:
        async with open_system(file):
            pass
    assert failure.value.end.how == "failed"
    assert failure.value.end.exit_code == 78


async def test_a_journal_of_another_version_is_given_up_in_so_many_words(autojump_clock: MockClock) -> None:
    async with open_system(machines("A"), fakes={"A": ready}) as system:
        descriptor = os.memfd_create("journal")
        try:
            os.write(descriptor, b"another layout".ljust(mmap.PAGESIZE, b"."))
            system.nucleus.keep("journal", {}, [descriptor])
        finally:
            os.close(descriptor)
        system.kill_control_program()
        await system.wait_ready()
        await system.wait_record("a layout that this program does not know: records that were not stored are lost")
        assert system["A"].generation == 1


# -- orders ------------------------------------------------------------------------------------------------------------


async def test_an_order_for_who_cannot_start_does_not_hold_up_the_others(autojump_clock: MockClock) -> None:
    works = [True]

    async def server(vm: Machine[Any]) -> None:
        await (echo if works[0] else fails)(vm)

    async with open_system(SYSTEM + PAIR, fakes={"CLIENT": ready, "SERVER": server}, record=False) as system:
        works[0] = False
        system["SERVER"].kill()
        await system["SERVER"].wait("WAITING")
        for order in (system["CLIENT"].replace, system["CLIENT"].restart, system["SERVER"].restart):
            with trio.fail_after(400), pytest.raises(Rejected):
                await order()
        works[0] = True
        with trio.fail_after(400):
            await system["SERVER"].replace()
        await system.jump(100)
        assert system.states == {"CLIENT": "READY", "SERVER": "READY"}
        assert len(system.nucleus.machines) == 2


async def test_a_machine_that_does_not_come_up_when_it_is_added(autojump_clock: MockClock) -> None:
    async with open_system(machines("A"), fakes={"A": ready}) as system:
        folder = pathlib.Path(system.topology.path).parent
        (folder / "bad.py").write_text("async def main(vm):\n    raise RuntimeError('it does not work')\n")
        with trio.fail_after(300):
            done = await system.apply(machines("A", more='[machines.B]\nprogram = "bad"\n'))
        assert "it does not work" in str(done["changed"][0]["failed"])
        with trio.fail_after(300):
            await system.apply(machines("A"))
        assert system.states == {"A": "READY"}


@pytest.mark.parametrize("seconds", [0.5, 6, 11, 16])
async def test_a_topology_is_applied_by_the_next_control_program(autojump_clock: MockClock, seconds: float) -> None:
    names = ("A", "B", "C")
    before = machines("A", "B", "C", "D")
    after = "".join(f'[machines.{name}]\nprogram = "fake"\nuses.log = "*LOG"\n' for name in names)
    after = SYSTEM + after + '[machines.E]\nprogram = "fake"\n'
    async with open_system(before, fakes=fakes("A", "B", "C", "D", program=lingers)) as system:
        folder = pathlib.Path(system.topology.path).parent
        (folder / "fake.py").write_text("async def main(vm):\n    await vm.ready()\n    await vm.stopping.wait()\n")
        for name in names:
            system[name].next_start(slow=4)
        async with trio.open_nursery() as nursery:

            async def apply() -> None:
                with pytest.raises(PathError):
                    await system.apply(after)

            nursery.start_soon(apply)
            await system.jump(seconds)
            await next_control_program(system)
            nursery.cancel_scope.cancel()
        await system.jump(100)
        assert system.states == dict.fromkeys(("A", "B", "C", "E"), "READY")
        born = {machine.birth.machine: machine.birth.generation for machine in system.nucleus.machines.values()}
        assert all(born[name] >= 2 for name in names), born
        assert len(system.nucleus.machines) == 4
        before_again = system.control_program.lives["A"].generation
        await next_control_program(system)
        await system.jump(100)
        assert system["A"].generation == before_again


async def test_what_could_not_be_applied_is_not_forgotten(autojump_clock: MockClock) -> None:
    works = [True]

    async def sometimes(vm: Machine[Any]) -> None:
        await (ready if works[0] else fails)(vm)

    after = machines("A", "B", more='uses.log = "*LOG"\n')
    async with open_system(machines("A", "B"), fakes={"A": ready, "B": sometimes}) as system:
        works[0] = False
        done = await system.apply(after)
        assert done["changed"][0]["failed"]
        works[0] = True
        for _ in range(2):
            assert not system.life("B").entry.uses
            await system["A"].set(share=300)
            await system["B"].set(share=200)
            assert (system.life("A").entry.share, system.life("B").entry.share) == (300, 200)
            assert not system.life("B").entry.uses
            await next_control_program(system)
        assert [change.machine for change in system.control_program.administration.plan(str(system.topology.path))]
        assert (system.life("A").entry.share, system.life("B").entry.share) == (300, 200)
        done = await system.apply(after)
        assert not [each for each in done["changed"] if each["failed"]]
        assert system.life("B").entry.uses
        assert system["A"].generation == 1


async def test_settings_hold_for_the_process_that_runs(autojump_clock: MockClock) -> None:
    async def stubborn(vm: Machine[Any]) -> None:
        await ready(vm)
        await trio.sleep(300)

    async with open_system(machines("A", "B"), fakes={"A": stubborn, "B": ready}) as system:
        await system["A"].set(grace="30s")
        await system["B"].set(watchdog="5s")
        system["B"].freeze()
        begun = trio.current_time()
        await system["B"].wait_ready(generation=2)
        assert trio.current_time() - begun < 15
        begun = trio.current_time()
        await system["A"].stop()
        assert round(trio.current_time() - begun) == 30


async def test_a_machine_can_be_told_to_rest_and_not_to(autojump_clock: MockClock) -> None:
    text = SYSTEM + PAIR + 'start = "on-demand"\n'
    async with open_system(text, fakes={"CLIENT": ready, "SERVER": echo}, record=False) as system:
        await system["SERVER"].set(idle="100s")
        await system["SERVER"].start()
        await system.jump(60)
        assert system["SERVER"].state == "READY"
        await system["SERVER"].set(start="on-demand", idle="5s")
        await system.jump(30)
        assert system["SERVER"].state == "DORMANT"


async def test_nothing_is_started_when_the_system_ends(autojump_clock: MockClock) -> None:
    async with open_system(machines("A", "B"), fakes={"A": lingers, "B": ready}) as system:
        await system["B"].stop()
        system.control_program.stop("down", "the test ends it")
        await system.wait_until(lambda: system.control_program.state == "STOPPING")
        for order in (system["B"].start, system["B"].restart, system["B"].replace):
            with pytest.raises(Rejected, match="stopping"):
                await order()
        assert (await system.wait_end()).how == "down"


async def test_the_time_to_end_is_known_to_the_next_control_program(autojump_clock: MockClock) -> None:
    async def stubborn(vm: Machine[Any]) -> None:
        await ready(vm)
        await trio.sleep(300)

    async with open_system(machines("A", "B"), fakes={"A": stubborn, "B": stubborn}) as system:
        begun = trio.current_time()
        system.control_program.grace = 50.0
        system.control_program.stop("down", "the test ends it")
        await system["A"].wait("STOPPING")
        await next_control_program(system)
        end = await system.wait_end()
        assert end.how == "down"
        assert trio.current_time() - begun > 45


async def test_a_fan_spreads_over_instances_that_are_added(autojump_clock: MockClock) -> None:
    async def client(vm: Machine[Any]) -> None:
        await vm.ready()
        async with vm.fan("server") as fan:
            while not vm.stopping.is_set():
                answers.append((await fan.call(None))[0])
                await trio.sleep(0.01)

    answers: list[Any] = []
    text = SYSTEM + PAIR + "instances = 2\n"
    async with open_system(text, fakes={"CLIENT": client, "SERVER": echo}, record=False) as system:
        await system.jump(1)
        await system.apply(text.replace("instances = 2", "instances = 3"))
        await system.jump(1)
        assert set(answers[-30:]) == {"SERVER@1", "SERVER@2", "SERVER@3"}
        await system.apply(text.replace("instances = 2", "instances = 1"))
        await system.jump(1)
        assert set(answers[-30:]) == {"SERVER"}


async def test_a_system_ends_although_a_machine_waits_to_be_called(autojump_clock: MockClock) -> None:
    async def once(vm: Machine[Any]) -> None:
        await vm.ready()
        await trio.sleep(5)

    text = SYSTEM + PAIR + 'start = "on-demand"\n'
    text = text.replace('program = "client"\n', 'program = "client"\nrestart = "never"\n')
    async with open_system(text, fakes={"CLIENT": once, "SERVER": echo}) as system:
        with trio.fail_after(100):
            end = await system.wait_end()
        assert end.exit_code == 0


@pytest.mark.parametrize("order", ["restart", "replace"])
async def test_only_machine_of_a_system_may_be_started_again(autojump_clock: MockClock, order: str) -> None:
    """It has no process for a moment, which is not the end of the system."""
    text = machines("A", more='replace = "stop-first"\n')
    async with open_system(text, fakes=fakes("A", program=lingers)) as system:
        for generation in range(2, 12):  # who is first to look at it is chance
            await (system["A"].restart() if order == "restart" else system["A"].replace())
            await system.jump(60)
            assert (system["A"].state, system["A"].generation) == ("READY", generation)
