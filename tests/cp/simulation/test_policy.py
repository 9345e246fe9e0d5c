"""From any state that faults lead to, the declared state is reached again without an operator."""

import errno
import os
from contextlib import suppress
from typing import Any, Final

import pytest
import trio
from hypothesis import HealthCheck, Phase, note, settings
from hypothesis import strategies as st
from hypothesis.errors import InvalidArgument
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test
from tests.cp.simulation.driven import Driven

from retinue.cp.simulation.nucleus import MOST_FAILURES
from retinue.pipes import Message, Path, PathError
from retinue.svm import Machine
from retinue.testing import SimulatedMachine, SimulatedSystem, open_system

TOPOLOGY: Final = """\
[system]
name = "POLICY"

[machines.STORE]
program = "store"

[machines.COUNT]
program = "count"
uses.store = { to = "STORE", on_restart = "reconnect" }

[machines.SHOP]
program = "shop"
pause = "5s"
uses.store = "STORE"
uses.count = "COUNT"

[machines.FOLLOW]
program = "follow"
restart = "on-failure"
uses.count = { to = "COUNT", on_restart = "restart" }

[machines.FRONT]
program = "front"
uses.shop = { to = "SHOP", limit = 4 }
uses.back = { to = "FOLLOW", lazy = true }
"""
RICH: Final = """\
[system]
name = "RICH"

[machines.STORE]
program = "store"

[machines.COUNT]
program = "count"
instances = 2
uses.store = "STORE"

[machines.SHOP]
program = "shop"
grace = "3s"
watchdog = "20s"
uses.store = "STORE"
uses.count = "COUNT"

[machines.FOLLOW]
program = "follow"
start = "on-demand"
idle = "5s"
uses.count = "COUNT"

[machines.FRONT]
program = "front"
uses.shop = "SHOP"
uses.back = { to = "FOLLOW", lazy = true }

[groups.BACK]
members = ["STORE", "COUNT"]
strategy = "rest_for_one"
restarts = { most = 1000, within = "1s" }

[groups.ALL]
members = ["SHOP", "FRONT"]
strategy = "one_for_all"
restarts = { most = 1000, within = "1s" }
"""

MACHINES: Final = ("STORE", "COUNT", "SHOP", "FOLLOW", "FRONT")
EDGES: Final = (("COUNT", "store"), ("SHOP", "store"), ("SHOP", "count"), ("FOLLOW", "count"), ("FRONT", "shop"))
EDGES_LAZY: Final = (("FRONT", "back"),)

# Each takes a second; a release is tried with RETINUE_POLICY_EXAMPLES=1000.
EXAMPLES: Final = int(os.environ.get("RETINUE_POLICY_EXAMPLES", "6"))

# What a control program that is killed in this process has open, the collector closes; of a real one the kernel does.
pytestmark = pytest.mark.filterwarnings("ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning")

# Seconds after which everything is as declared, whatever was: a machine that was born hung is waited for (60 s), then
# comes its pause (10 s at most), and then those of who died because of it.
SETTLED: Final = 300.0


async def program(vm: Machine[None]) -> None:
    """Keeps a path along every edge, and asks there whatever it is told to; a path that has ended it opens again."""
    paths: dict[str, Path] = {}

    async def ask(edge: str) -> Any:
        if edge not in paths or paths[edge].severed is not None:
            paths[edge] = await vm.connect(edge)
        return await paths[edge].call(["ping"])

    async def answer(message: Message) -> Any:
        match message.body:
            case ["ping"]:
                return vm.name
            case ["ask", edge]:
                return await ask(edge)
        raise AssertionError(message.body)

    for edge in vm.edges:
        if edge != "back":
            with suppress(PathError):  # an operator has stopped the target
                await ask(edge)
    await vm.serve(answer)


machines = st.sampled_from(MACHINES)


class Policy(RuleBasedStateMachine):
    """Things go wrong, alone and together, at any moment; then they stop going wrong."""

    topology = TOPOLOGY

    def __init__(self) -> None:
        super().__init__()
        fakes = dict.fromkeys(MACHINES, program)
        self.run: Driven[SimulatedSystem] = Driven(lambda: open_system(self.topology, fakes=fakes, record=False))
        self.stopped: set[str] = set()

    def do(self, what: Any, *arguments: Any) -> Any:
        async def doing(system: SimulatedSystem) -> Any:
            result = what(system, *arguments)
            return await result if hasattr(result, "__await__") else result

        return self.run.do(doing)

    def one(self, system: SimulatedSystem, machine: str) -> SimulatedMachine:
        """The machine of that name, or one of its instances."""
        return system[system.topology.instances(machine)[-1]]

    # -- what goes wrong -----------------------------------------------------------------------------------------------

    @rule(machine=machines)
    def kill(self, machine: str) -> None:
        self.do(lambda system: self.one(system, machine).kill())

    @rule(machine=machines)
    def kill_for_storage(self, machine: str) -> None:
        self.do(lambda system: self.one(system, machine).kill_for_storage())

    @rule(machine=machines)
    def exhaust(self, machine: str) -> None:
        self.do(lambda system: self.one(system, machine).exhaust())

    @rule(machine=machines)
    def freeze(self, machine: str) -> None:
        self.do(lambda system: self.one(system, machine).freeze())

    @rule(machine=machines)
    def thaw(self, machine: str) -> None:
        self.do(lambda system: self.one(system, machine).thaw())

    @rule(machine=machines)
    def hang(self, machine: str) -> None:
        self.do(lambda system: self.one(system, machine).hang())

    @rule(machine=machines, seconds=st.sampled_from([0.5, 30.0, 90.0]))
    def slow_start(self, machine: str, seconds: float) -> None:
        self.do(lambda system: self.one(system, machine).next_start(slow=seconds))

    @rule(
        machine=machines,
        flaws=st.sampled_from(
            [
                {"unborn": errno.ENOMEM},
                {"unborn": errno.EAGAIN},
                {"hung": True},
                {"lost_ready": True},
                {"dies_before_ready": True},
                {"dies_at": 2},
                {"out_of_storage": True},
            ]
        ),
    )
    def flawed_start(self, machine: str, flaws: dict[str, Any]) -> None:
        self.do(lambda system: self.one(system, machine).next_start(**flaws))

    # -- what goes on --------------------------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([0.001, 0.05, 1.0, 20.0, 70.0]))
    def time_passes(self, seconds: float) -> None:
        self.do(lambda system: system.jump(seconds))

    @rule(edge=st.sampled_from(EDGES + EDGES_LAZY))
    def use(self, edge: tuple[str, str]) -> None:
        """Whoever uses an edge learns within its time what becomes of that; anything may."""

        async def ask(system: SimulatedSystem) -> None:
            with trio.move_on_after(5), suppress(PathError):
                await self.one(system, edge[0]).call(["ask", edge[1]])

        self.do(ask)

    # -- operators -----------------------------------------------------------------------------------------------------

    @rule(machine=machines)
    def stop(self, machine: str) -> None:
        self.do(lambda system: self.one(system, machine).stop())
        self.stopped.add(machine)

    @rule(machine=machines)
    def start(self, machine: str) -> None:
        async def ask(system: SimulatedSystem) -> None:
            with trio.move_on_after(30), suppress(PathError):
                await self.one(system, machine).start()

        self.stopped.discard(machine)
        self.do(ask)

    @rule(machine=machines, how=st.sampled_from(["restart", "replace"]))
    def renew(self, machine: str, how: str) -> None:
        """May be refused, and may take as long as the machine likes; nobody waits that long."""

        async def ask(system: SimulatedSystem) -> None:
            with trio.move_on_after(30), suppress(PathError):
                await getattr(self.one(system, machine), how)()

        if how == "restart":  # who has been stopped is replaced by the next start
            self.stopped.discard(machine)
        self.do(ask)

    # -- the control program -------------------------------------------------------------------------------------------

    @rule()
    def kill_control_program(self) -> None:
        self.do(self._kill_control_program)

    async def _kill_control_program(self, system: SimulatedSystem) -> None:
        if system.nucleus.failures + 1 >= MOST_FAILURES:
            await system.jump(2)  # three that never came up would end the system, and rightly so
        system.kill_control_program()
        await system.wait_until(lambda: True)

    # -- the end -------------------------------------------------------------------------------------------------------

    def teardown(self) -> None:
        """Nothing goes wrong any more, and time passes: everything is as declared, and every edge can be used."""
        said: list[str] = []
        try:
            self.do(self._settle, said)
        finally:
            for text in said:
                with suppress(InvalidArgument):  # not every test here is Hypothesis's
                    note(text)
            self.run.close()

    async def _settle(self, system: SimulatedSystem, said: list[str]) -> None:
        system.nucleus.forgive()
        names = [name for machine in MACHINES for name in system.topology.instances(machine)]
        stopped = {system.topology.instances(machine)[-1] for machine in self.stopped}
        for name in names:
            system[name].thaw()
        await system.jump(SETTLED)
        said += [record["message"] for record in system.records("CP")]
        resting = {entry.name for entry in system.topology.machines if entry.start == "on-demand"} - stopped
        for name in resting:
            assert system[name].state in ("READY", "DORMANT"), name
        states = {name: state for name, state in system.states.items() if name not in resting}
        assert states == {name: "STOPPED" if name in stopped else "READY" for name in names if name not in resting}
        for origin, edge in EDGES + EDGES_LAZY:
            entry = system.topology.machine(origin)
            (target,) = [each.to for each in entry.uses if each.name == edge]
            if not {origin, target} & self.stopped:
                for name in system.topology.instances(origin):
                    with trio.fail_after(5):
                        answer = await system[name].call(["ask", edge])
                    assert answer in system.topology.instances(target)


class RichPolicy(Policy):
    """The same with instances, groups, and a machine that is started on demand."""

    topology = RICH


@pytest.mark.parametrize("policy", [Policy, RichPolicy])
def test_declared_state_is_reached_again(policy: type[Policy]) -> None:
    """Kills, stops, hangs, flawed starts and slow ones, in any order and at any moment."""
    run_state_machine_as_test(
        policy,
        settings=settings(
            max_examples=EXAMPLES,
            phases=[Phase.explicit, Phase.reuse, Phase.generate],  # to make an example smaller takes minutes
            stateful_step_count=20,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.parametrize("machine", MACHINES)
def test_thirty_deaths_in_a_row_are_survived(machine: str) -> None:
    """However often one dies, it comes back, and nobody else dies of it who has not declared so."""
    policy = Policy()
    for _ in range(10):
        policy.kill(machine)
        policy.time_passes(1.0)
    policy.teardown()
