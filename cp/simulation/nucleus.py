"""What is below a control program and outlives it: machines, what is kept for its successor, the start of that."""

import errno
import json
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from types import ModuleType
from typing import Any, Final

import attrs
import trio

from retinue.cp.host.errors import SpawnFailed
from retinue.cp.host.interface import Birth, Born, Exit, Kept, Resident, Restored
from retinue.cp.simulation.faults import NONE, Faults
from retinue.cp.simulation.host import SimulatedHost
from retinue.cp.simulation.machine import SimulatedMachine
from retinue.cp.simulation.process import Process
from retinue.cp.simulation.scheduler import simulating
from retinue.cp.simulation.storage import SimulatedStorage

__all__ = ["End", "Nucleus", "open_nucleus"]

# The largest number that Linux ever gives to a process (PID_MAX_LIMIT): above it nobody is taken for somebody else.
PID_MAX: Final = 1 << 22
# Control programs in a row that may die before one has come up.
MOST_FAILURES: Final = 3

Key = tuple[str, int]
ControlProgram = Callable[[SimulatedHost], Awaitable[None]]


@attrs.frozen
class End:
    """How a system has ended, as ``end.json`` of a real one tells it."""

    how: str
    text: str
    exit_code: int


class Nucleus:
    """Of one simulated system. Made by :func:`open_nucleus`.

    ``modules`` are modules that machines find instead of their programs, by machine and by name.
    """

    def __init__(self, nursery: trio.Nursery, modules: Mapping[str, Mapping[str, ModuleType]]) -> None:
        self.faults = Faults()
        self.storage = SimulatedStorage()
        self.machines: dict[Key, SimulatedMachine] = {}
        self.kept: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {}
        self.unburied: dict[Key, Exit] = {}
        self.end: End | None = None
        self.control_programs = 0
        """How many there have been."""
        self._nursery = nursery
        self._modules = modules
        self._pids = PID_MAX
        self._cp: Process | None = None
        self._host: SimulatedHost | None = None
        self._died = ""
        self.failures = 0  # control programs in a row that have not come up

    # -- control programs ----------------------------------------------------------------------------------------------

    async def run(self, control_program: ControlProgram) -> End:
        """Run a control program, and another one whenever it dies, until one ends the system."""
        while self.end is None:
            self.control_programs += 1
            self._cp = Process(f"CP/{self.control_programs}")
            self._host = host = SimulatedHost(self, self._restored())
            self._died = "the control program returned and did not end the system"
            for exit in self.unburied.values():
                host.tell(exit)
            try:
                await self._cp.run(partial(control_program, host))
            finally:
                host.lose()
                self._host = self._cp = None
            self.failures += 1
            if self.failures >= MOST_FAILURES:
                self.end_system("cp-died", f"{MOST_FAILURES} control programs died one after another: {self._died}", 1)
            # In reality as well there is a moment in which there is none.
            await trio.lowlevel.checkpoint()
        return self.end

    def _restored(self) -> Restored:
        return Restored(
            first=self.control_programs == 1,
            died=self._died,
            residents={key: Resident(machine.pid, ()) for key, machine in self.machines.items()},
            kept={key: Kept(note, tuple(map(_copy, held))) for key, (note, held) in self.kept.items()},
        )

    def kill_control_program(self, died: str = "the control program was killed by SIGKILL") -> None:
        """As kill -9 of its process. Machines go on; what it has kept with the nucleus is there for the next one."""
        if self._cp is not None and self._host is not None:
            self._died = died
            self._host.lose()
            self._cp.kill()

    def came_up(self) -> None:
        """The control program says that it works."""
        self.failures = 0

    # -- machines ------------------------------------------------------------------------------------------------------

    def spawn(self, birth: Birth, descriptors: Sequence[int]) -> Born:
        """See Host.spawn."""
        flaws = self.faults.of_birth(birth.machine)
        if flaws.unborn:
            hint = "too many processes for this user (ulimit -u)" if flaws.unborn == errno.EAGAIN else ""
            raise SpawnFailed(birth.machine, "fork", flaws.unborn, hint)
        control, log = (socket.socket(fileno=_copy(each)) for each in descriptors)
        for end in (control, log):
            end.setblocking(False)
        self._pids += 1
        given = self._modules.get(birth.machine) or self._modules.get(birth.machine.partition("@")[0]) or {}
        machine = SimulatedMachine(birth, control, log, self._pids, flaws, self._exited, given)
        self.machines[birth.machine, birth.generation] = machine
        self.storage.born(birth.machine, birth.generation)
        self._nursery.start_soon(machine.run, name=machine.process.name)
        return Born(machine.pid, ())

    def _exited(self, machine: SimulatedMachine, exit: Exit) -> None:
        key = exit.machine, exit.generation
        del self.machines[key]
        self.storage.ended(*key)
        self.unburied[key] = exit
        if self._host is not None:
            self._host.tell(exit)

    def present(self, name: str) -> SimulatedMachine | None:
        """The newest process of a machine, or None."""
        found = [machine for (of, _), machine in self.machines.items() if of == name]
        return max(found, key=lambda machine: machine.birth.generation, default=None)

    def forgive(self) -> None:
        """Nothing goes wrong any more, but for what has."""
        self.faults.forget()
        for machine in self.machines.values():
            machine.flaws = NONE

    # -- what is kept --------------------------------------------------------------------------------------------------

    def keep(self, key: str, note: Mapping[str, Any], descriptors: Sequence[int]) -> None:
        """See Host.keep."""
        copies = tuple(map(_copy, descriptors))
        before = self.kept.get(key)
        self.kept[key] = json.loads(json.dumps(note)), copies  # as it comes back from the other side of a link
        _close(() if before is None else before[1])

    def drop(self, key: str) -> None:
        """See Host.drop."""
        if (held := self.kept.pop(key, None)) is not None:
            _close(held[1])

    # -- the end -------------------------------------------------------------------------------------------------------

    def end_system(self, how: str, text: str, exit_code: int) -> None:
        """See Host.end."""
        if self.end is None:
            self.end = End(how, text, exit_code)
            self.kill_machines()

    def kill_machines(self) -> None:
        """Nothing that was started goes on."""
        for machine in list(self.machines.values()):
            machine.kill()

    def close(self) -> None:
        """Everything ends, at once."""
        self.kill_control_program()
        self.kill_machines()
        for key in list(self.kept):
            self.drop(key)


@asynccontextmanager
async def open_nucleus(
    seed: int = 0, *, modules: Mapping[str, Mapping[str, ModuleType]] | None = None
) -> AsyncIterator[Nucleus]:
    """A nucleus whose machines end with the block. The same seed makes the same things happen in the same order."""
    with simulating(seed):
        async with trio.open_nursery() as nursery:
            nucleus = Nucleus(nursery, modules or {})
            try:
                yield nucleus
            finally:
                nucleus.close()


def _copy(descriptor: int) -> int:
    copy = os.dup(descriptor)
    os.set_inheritable(copy, False)
    return copy


def _close(descriptors: Iterable[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
