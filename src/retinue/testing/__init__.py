"""A topology as a unit test: the whole system in one process, on a virtual clock, with fakes and faults.

``async with open_system("shop.toml", fakes={...}) as system:`` starts the real control program over simulated machines,
each of which runs the real program with the real runtime. With pytest and pytest-trio installed there is the fixture
``retinue_system``. See ``docs/how-to/test-a-topology.md``.
"""

from retinue.testing.calls import Call as Call
from retinue.testing.fakes import Fake as Fake
from retinue.testing.machine import SimulatedMachine as SimulatedMachine
from retinue.testing.system import SimulatedSystem as SimulatedSystem
from retinue.testing.system import SystemFailed as SystemFailed
from retinue.testing.system import open_system as open_system

__all__ = ["Call", "Fake", "SimulatedMachine", "SimulatedSystem", "SystemFailed", "open_system"]
