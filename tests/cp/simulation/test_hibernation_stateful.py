"""Calls, growth and deaths of the control program in any order, where not all machines have room."""

from collections.abc import Callable
from typing import Any, Final

import trio
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule
from tests.cp.simulation.driven import Driven, run_in_any_order
from tests.cp.simulation.killed import control_programs_are_killed
from tests.cp.simulation.paged import MIB
from tests.cp.simulation.shelves import SHELVES, Reading, shelves

from retinue.cp.pager.hibernation import FAIR
from retinue.testing import SimulatedSystem

pytestmark = control_programs_are_killed

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
    run_in_any_order(Readings)
