"""What becomes of machines that die, rest, are replaced: the policy of the control program, on a virtual clock."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from retinue.pipes import Rejected
from retinue.svm import Machine
from retinue.testing import SimulatedSystem, open_system

Program = Callable[[Machine[Any]], Awaitable[None]]
SYSTEM = '[system]\nname = "TEST"\n'


async def ready(vm: Machine[Any]) -> None:
    """A program that is ready and waits for the end."""
    await vm.ready()
    await vm.stopping.wait()


async def echo(vm: Machine[Any]) -> None:
    """Answers with its name and what it is asked."""

    async def answer(message: Any) -> Any:
        return [vm.name, message.body]

    await vm.serve(answer)


def machines(*names: str, more: str = "") -> str:
    """A topology of machines that do not use each other."""
    return SYSTEM + "".join(f'[machines.{name}]\nprogram = "fake"\n' for name in names) + more


def fakes(*names: str, program: Program = ready) -> dict[str, Program]:
    return dict.fromkeys(names, program)


def generations(system: SimulatedSystem) -> dict[str, int]:
    return {name: system[name].generation for name in system.states}


# -- groups --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("strategy", "after"),
    [
        ("one_for_one", {"A": 1, "B": 2, "C": 1, "D": 1}),
        ("one_for_all", {"A": 2, "B": 2, "C": 2, "D": 1}),
        ("rest_for_one", {"A": 1, "B": 2, "C": 2, "D": 1}),
    ],
)
async def test_a_group_is_started_again_as_its_strategy_says(
    autojump_clock: MockClock, strategy: str, after: dict[str, int]
) -> None:
    group = f'[groups.G]\nmembers = ["A", "B", "C"]\nstrategy = "{strategy}"\n'
    async with open_system(machines("A", "B", "C", "D", more=group), fakes=fakes("A", "B", "C", "D")) as system:
        system["B"].kill()
        await system["B"].wait_ready(generation=2)
        await system.jump(30)
        assert generations(system) == after
        assert set(system.states.values()) == {"READY"}


async def test_nobody_starts_before_all_of_the_group_have_ended(autojump_clock: MockClock) -> None:
    group = '[groups.G]\nmembers = ["A", "B"]\nstrategy = "one_for_all"\n'
    slow: list[float] = []

    async def lingers(vm: Machine[Any]) -> None:
        await vm.ready()
        await vm.stopping.wait()
        await trio.sleep(5)
        slow.append(trio.current_time())

    begun: list[float] = []

    async def begins(vm: Machine[Any]) -> None:
        begun.append(trio.current_time())
        await ready(vm)

    async with open_system(machines("A", "B", more=group), fakes={"A": lingers, "B": begins}) as system:
        system["B"].kill()
        await system["B"].wait_ready(generation=2)
        await system["A"].wait_ready(generation=2)
        assert begun[1] >= slow[0]


async def test_a_group_whose_restarts_are_spent_is_given_up(autojump_clock: MockClock) -> None:
    group = '[groups.G]\nmembers = ["A", "B"]\nrestarts = { most = 2, within = "60s" }\n'
    async with open_system(machines("A", "B", "C", more=group), fakes=fakes("A", "B", "C")) as system:
        for number in range(1, 4):
            await system["A"].wait_ready(generation=number)
            system["A"].kill()
        await system["A"].wait("BROKEN")
        await system["B"].wait("BROKEN")
        assert system["C"].state == "READY"
        await system["A"].start()
        assert system["A"].state == "READY"


# -- budgets and pauses --------------------------------------------------------------------------------------------


async def test_a_machine_whose_restarts_are_spent_is_broken_and_an_operator_may_start_it(
    autojump_clock: MockClock,
) -> None:
    text = machines("B", "A", more='restarts = { most = 2, within = "60s" }\n')
    async with open_system(text, fakes=fakes("A", "B")) as system:
        for number in range(1, 4):
            await system["A"].wait_ready(generation=number)
            system["A"].kill()
        await system["A"].wait("BROKEN")
        with pytest.raises(Rejected, match="broken"):
            await system["A"].call("anybody?")
        await system["A"].start()
        system["A"].kill()
        await system["A"].wait_ready(generation=5)


async def test_old_restarts_do_not_count(autojump_clock: MockClock) -> None:
    text = machines("A", more='restarts = { most = 2, within = "60s" }\n')
    async with open_system(text, fakes=fakes("A")) as system:
        for number in range(1, 8):
            await system["A"].wait_ready(generation=number)
            await system.jump(61)
            system["A"].kill()
        await system["A"].wait_ready(generation=8)


async def test_the_first_restart_is_at_once_and_later_ones_after_pauses_that_grow(autojump_clock: MockClock) -> None:
    text = machines("A", more='pause = { first = "1s", factor = 2, longest = "8s", jitter = 0, reset = "60s" }\n')
    async with open_system(text, fakes=fakes("A")) as system:
        pauses = []
        for number in range(1, 7):
            await system["A"].wait_ready(generation=number)
            system["A"].kill()
            begun = trio.current_time()
            await system["A"].wait_ready(generation=number + 1)
            pauses.append(round(trio.current_time() - begun))
        assert pauses == [0, 1, 2, 4, 8, 8]
        await system.jump(61)
        system["A"].kill()
        begun = trio.current_time()
        await system["A"].wait_ready(generation=8)
        assert trio.current_time() - begun < 0.5


# -- essential machines --------------------------------------------------------------------------------------------


async def test_the_end_of_an_essential_machine_is_the_end_of_the_system(autojump_clock: MockClock) -> None:
    text = machines("A", "B", more='essential = true\nrestart = "never"\n')
    async with open_system(text, fakes=fakes("A", "B")) as system:
        system["B"].kill()
        end = await system.wait_end()
        assert (end.how, end.exit_code) == ("essential", 1)
        assert "B, which is essential, is broken" in end.text


# -- start on demand -----------------------------------------------------------------------------------------------

DEMAND = (
    SYSTEM
    + """\
[machines.CLIENT]
program = "client"
uses.server = "SERVER"
[machines.SERVER]
program = "server"
start = "on-demand"
idle = "10s"
"""
)


async def test_a_machine_on_demand_starts_when_it_is_called_and_rests_when_it_is_not(autojump_clock: MockClock) -> None:
    go = trio.Event()
    answers: list[Any] = []

    async def client(vm: Machine[Any]) -> None:
        await vm.ready()
        await go.wait()
        path = await vm.connect("server")
        for number in range(3):
            answers.append(await path.call(number))
            await trio.sleep(60)
        await vm.stopping.wait()

    async with open_system(DEMAND, fakes={"CLIENT": client, "SERVER": echo}) as system:
        await system.jump(100)
        assert system["SERVER"].state == "DORMANT"
        assert system["SERVER"].generation == 0
        go.set()
        for number in range(1, 4):
            await system["SERVER"].wait("READY", generation=number)
            await system["SERVER"].wait("DORMANT", generation=number)
        assert answers == [["SERVER", 0], ["SERVER", 1], ["SERVER", 2]]
        assert system["CLIENT"].generation == 1


# -- instances -----------------------------------------------------------------------------------------------------

INSTANCES = (
    SYSTEM
    + """\
[machines.CLIENT]
program = "client"
uses.server = "SERVER"
[machines.SERVER]
program = "server"
instances = 3
"""
)


async def test_paths_are_spread_over_instances(autojump_clock: MockClock) -> None:
    async def client(vm: Machine[Any]) -> None:
        found = set()
        for _ in range(6):
            path = await vm.connect("server")
            found.add((await path.call(None))[0])
        print(*sorted(found))
        await ready(vm)

    async with open_system(INSTANCES, fakes={"CLIENT": client, "SERVER": echo}) as system:
        assert system.printed("CLIENT") == ["SERVER@1 SERVER@2 SERVER@3"]
        system["SERVER@2"].kill()
        await system["SERVER@2"].wait_ready(generation=2)
        assert generations(system) == {"CLIENT": 1, "SERVER@1": 1, "SERVER@2": 2, "SERVER@3": 1}


async def test_a_fan_goes_on_while_an_instance_is_dead(autojump_clock: MockClock) -> None:
    answers: list[Any] = []

    async def client(vm: Machine[Any]) -> None:
        await vm.ready()
        async with vm.fan("server") as fan:
            while not vm.stopping.is_set():
                answers.append((await fan.call(None))[0])
                await trio.sleep(0.01)

    async with open_system(INSTANCES, fakes={"CLIENT": client, "SERVER": echo}) as system:
        await system.jump(1)
        before = len(answers)
        assert before > 50
        system["SERVER@1"].kill()
        await system.jump(1)
        assert len(answers) - before > 50


# -- replacing -----------------------------------------------------------------------------------------------------

PAIR = (
    SYSTEM
    + """\
[machines.CLIENT]
program = "client"
uses.server = "SERVER"
[machines.SERVER]
program = "server"
"""
)


class Caller:
    """A program that calls without a pause and counts; every call must be answered once, by one who got it once."""

    def __init__(self) -> None:
        self.answers: list[Any] = []
        self.errors: list[Exception] = []

    async def main(self, vm: Machine[Any]) -> None:
        await vm.ready()
        path = await vm.connect("server")
        while not vm.stopping.is_set():
            try:
                self.answers.append(await path.call(len(self.answers)))
            except Exception as exc:
                self.errors.append(exc)
                return
            await trio.sleep(0.001)


def handled(seen: list[Any]) -> Program:
    async def main(vm: Machine[Any]) -> None:
        async def answer(message: Any) -> Any:
            seen.append((message.body, message.redelivered))
            await trio.sleep(0.002)
            return message.body

        await vm.serve(answer)

    return main


@pytest.mark.parametrize("replace", ["overlap", "stop-first"])
async def test_no_message_is_lost_or_repeated_when_a_machine_is_replaced(
    autojump_clock: MockClock, replace: str
) -> None:
    caller, seen = Caller(), list[Any]()
    text = PAIR + f'replace = "{replace}"\n'
    async with open_system(text, fakes={"CLIENT": caller.main, "SERVER": handled(seen)}, record=False) as system:
        for _ in range(20):
            await system.jump(0.05)
            await system["SERVER"].replace()
        await system.jump(0.1)
        assert generations(system) == {"CLIENT": 1, "SERVER": 21}
        assert caller.errors == []
    assert caller.answers == list(range(len(caller.answers)))
    assert len(caller.answers) > 300
    assert [again for _, again in seen if again] == []
    assert len({number for number, _ in seen}) == len(seen)


@pytest.mark.parametrize("replace", ["overlap", "stop-first"])
async def test_a_successor_that_does_not_become_ready_changes_nothing(autojump_clock: MockClock, replace: str) -> None:
    caller, works = Caller(), [True]

    async def server(vm: Machine[Any]) -> None:
        if not works[0]:
            raise RuntimeError("this version does not work")
        await echo(vm)

    text = PAIR + f'replace = "{replace}"\n'
    async with open_system(text, fakes={"CLIENT": caller.main, "SERVER": server}, record=False) as system:
        await system.jump(0.1)
        works[0] = False
        if replace == "stop-first":
            system["SERVER"].next_start()  # nothing: the fake decides

        async def mend() -> None:
            await system.wait_record("this version does not work")
            works[0] = True

        async with trio.open_nursery() as nursery:
            nursery.start_soon(mend)
            with pytest.raises(Rejected, match="did not become ready") as refused:
                await system["SERVER"].replace()
        assert refused.value.code == "not-replaced"
        await system.jump(0.1)
        assert system["SERVER"].state == "READY"
        assert system["SERVER"].generation == (1 if replace == "overlap" else 3)
        assert caller.errors == []


# -- changing ------------------------------------------------------------------------------------------------------


async def test_apply_touches_only_what_has_changed(autojump_clock: MockClock) -> None:
    before = machines("A", "B", "C", more="share = 100\n")
    async with open_system(before, fakes=fakes("A", "B", "C")) as system:
        after = machines("A", "B", more="storage = '64M'\n[machines.D]\nprogram = 'there'\n")
        waits = "async def main(vm):\n    await vm.ready()\n    await vm.stopping.wait()\n"
        (system.topology.folder / "there.py").write_text(waits)
        done = await system.apply(after)
        found = {(each["kind"], each["machine"]): each["failed"] for each in done["changed"]}
        assert found == {("set", "B"): None, ("add", "D"): None, ("remove", "C"): None}
        assert generations(system) == {"A": 1, "B": 1, "D": 1}
        assert (await system.apply(after))["changed"] == []


async def test_settings_change_in_place_and_last_until_a_file_is_applied(autojump_clock: MockClock) -> None:
    async with open_system(machines("A"), fakes=fakes("A")) as system:
        await system["A"].set(share=300, watchdog="5s")
        assert (system.life("A").entry.share, system.life("A").entry.watchdog) == (300, 5.0)
        with pytest.raises(Rejected, match="impossible"):
            await system["A"].set(program="other")
        with pytest.raises(Rejected, match="bad-topology"):
            await system["A"].set(shair=300)
        system.kill_control_program()
        await system.wait_until(lambda: system.life("A").ready)
        assert system.life("A").entry.share == 300
        assert system["A"].generation == 1
        await system.apply(machines("A"))
        assert system.life("A").entry.share == 100


# -- hung machines -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["hang", "freeze"])
async def test_a_machine_that_makes_no_progress_is_ended(autojump_clock: MockClock, how: str) -> None:
    async with open_system(machines("A", more='watchdog = "10s"\n'), fakes=fakes("A")) as system:
        await system.jump(100)
        assert system["A"].generation == 1  # an idle one is not hung
        getattr(system["A"], how)()
        await system["A"].wait_ready(generation=2)
        certificate = system.control_program.certificates.latest("A")
        assert certificate is not None
        assert certificate.cause == "watchdog"


# -- the end -------------------------------------------------------------------------------------------------------


async def test_who_is_used_ends_after_its_users(autojump_clock: MockClock) -> None:
    ended: list[str] = []

    async def lingers(vm: Machine[Any]) -> None:
        await vm.ready()
        await vm.stopping.wait()
        await trio.sleep(1)
        ended.append(vm.name)

    text = SYSTEM + '[machines.A]\nprogram = "a"\nuses.b = "B"\n[machines.B]\nprogram = "b"\nuses.c = "C"\n'
    text += '[machines.C]\nprogram = "c"\n'
    async with open_system(text, fakes=fakes("A", "B", "C", program=lingers)) as system:
        await system.stop()
    assert ended == ["A", "B", "C"]
