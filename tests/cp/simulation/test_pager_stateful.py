"""Growth, rest and deaths of the control program in any order: real storage is enough again each time."""

from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule
from tests.cp.simulation.driven import Driven, run_in_any_order
from tests.cp.simulation.killed import control_programs_are_killed
from tests.cp.simulation.paged import MIB, NAMES, paged

from retinue.testing import SimulatedSystem

pytestmark = control_programs_are_killed

names = st.sampled_from(NAMES)


class Storage(RuleBasedStateMachine):
    """Machines grow, shrink, run and rest in any order, on a device with some room; then it is looked at."""

    def __init__(self) -> None:
        super().__init__()
        self.run: Driven[SimulatedSystem] = Driven(lambda: paged(room=120))

    def do(self, what: Any) -> Any:
        async def doing(system: SimulatedSystem) -> Any:
            result = what(system)
            return await result if hasattr(result, "__await__") else result

        return self.run.do(doing)

    @rule(name=names, size=st.integers(1, 90), seconds=st.sampled_from([0, 1, 4, 20]))
    def grow(self, name: str, size: int, seconds: int) -> None:
        async def do(system: SimulatedSystem) -> None:
            if system[name].state == "READY":
                system[name].pages.grow(size * MIB)
                system[name].pages.cpu += 1
            if seconds:
                await system.jump(seconds)

        self.do(do)

    @rule(name=names, size=st.integers(1, 200))
    def give_up(self, name: str, size: int) -> None:
        def do(system: SimulatedSystem) -> None:
            if system[name].state == "READY":
                system[name].pages.give_up(size * MIB)

        self.do(do)

    @rule(name=names, size=st.integers(1, 60))
    def touch(self, name: str, size: int) -> None:
        def do(system: SimulatedSystem) -> None:
            if system[name].state == "READY":
                system[name].pages.touch(size * MIB)
                system[name].pages.cpu += 1

        self.do(do)

    @rule(name=names, size=st.sampled_from([0, 5, 30]))
    def lock(self, name: str, size: int) -> None:
        def do(system: SimulatedSystem) -> None:
            if system[name].state == "READY":
                system[name].pages.locked = size * MIB

        self.do(do)

    @rule()
    def kill_control_program(self) -> None:
        async def do(system: SimulatedSystem) -> None:
            await system.jump(2)
            system.kill_control_program()
            await system.wait_until(lambda: True)

        self.do(do)

    def teardown(self) -> None:
        try:
            self.do(self._settle)
        finally:
            self.run.close()

    async def _settle(self, system: SimulatedSystem) -> None:
        """All have room again; and whoever was ended counted least of those that had anything then."""
        await system.jump(120)
        assert system.nucleus.storage.resident <= 100 * MIB
        ended = {name: system.control_program.certificates.all(name) for name in NAMES}
        for name in NAMES:
            for certificate in ended[name]:
                assert certificate.cause == "no-room"
                assert certificate.next
        for name in NAMES:
            if system[name].state != "READY":
                assert system.control_program.pager.why_held(system.life(name))


def test_real_storage_is_enough_again_whatever_happened() -> None:
    """Within two minutes, with somebody ended for it or not."""
    run_in_any_order(Storage)
