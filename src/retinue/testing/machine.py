"""One machine of a simulated system, as a test sees it."""

import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from retinue.cp.simulation.faults import NONE, Flaws
from retinue.cp.simulation.storage import Pages
from retinue.cp.states import State
from retinue.pipes import Path

if TYPE_CHECKING:
    from retinue.testing.system import SimulatedSystem

__all__ = ["SimulatedMachine"]


class SimulatedMachine:
    """A machine by its name: what it is doing, what can be done to it. Made by ``system["NAME"]``."""

    def __init__(self, system: "SimulatedSystem", name: str) -> None:
        self.name = name
        self._system = system

    def __repr__(self) -> str:
        return f"<SimulatedMachine {self.name} {self.state}>"

    # -- what it is doing ----------------------------------------------------------------------------------------------

    @property
    def state(self) -> str:
        """Such as ``READY``, as ``retinue ps`` shows it."""
        return self._system.life(self.name).state.value

    @property
    def generation(self) -> int:
        """How many processes it has had."""
        return self._system.life(self.name).generation

    @property
    def cause(self) -> str | None:
        """Why its last process ended."""
        return self._system.life(self.name).cause

    async def wait(self, *states: str, generation: int = 0) -> str:
        """Until it is in one of these states, in this generation or a later one; returns the state."""
        wanted = set(map(State, states))
        await self._system.wait_until(lambda: self._fits(wanted, generation), self.name)
        return self.state

    async def wait_ready(self, *, generation: int = 0) -> None:
        """Until it is READY."""
        await self.wait("READY", generation=generation)

    def _fits(self, wanted: set[State], generation: int) -> bool:
        life = self._system.life(self.name)
        return life.state in wanted and life.generation >= generation

    @property
    def pages(self) -> Pages:
        """What its newest process has of storage, which a test may change. KeyError when it has none."""
        return self._system.nucleus.storage.of(self.name)

    # -- talking to it -------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Path]:
        """A path to it, as an operator has one, for the length of the block. Rejected when it takes none."""
        async with self._system.connect(self.name) as path:
            yield path

    async def call(self, body: Any) -> Any:
        """One call on a path of its own."""
        async with self.connect() as path:
            return await path.call(body)

    # -- operators -----------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """As ``retinue start``: until it is READY. Rejected when it will not be."""
        await self._system.ask(lambda cp: cp.administration.start(self.name))

    async def stop(self) -> None:
        """As ``retinue stop``: until it has ended."""
        await self._system.ask(lambda cp: cp.administration.stop(self.name))

    async def restart(self) -> None:
        """As ``retinue restart``: until it is READY again."""
        await self._system.ask(lambda cp: cp.administration.restart(self.name))

    async def replace(self) -> dict[str, Any]:
        """As ``retinue replace``: until a successor has its place. Rejected when that does not work."""
        return await self._system.ask(lambda cp: cp.administration.replace(self.name))

    async def set(self, **settings: Any) -> dict[str, Any]:
        """As ``retinue set``: settings as the topology has them, such as ``share=200``."""
        return await self._system.ask(lambda cp: cp.administration.set(self.name, settings))

    # -- what happens to it --------------------------------------------------------------------------------------------

    def kill(self) -> None:
        """As kill -9: its process is gone, and the control program learns of it. No effect when it has none."""
        if (process := self._process()) is not None:
            process.kill()

    def kill_for_storage(self) -> None:
        """As the kernel kills a process that has used up its storage."""
        if (process := self._process()) is not None:
            process.kill(out_of_storage=True)

    def exhaust(self) -> None:
        """Its program gets a MemoryError, where it waits."""
        if (process := self._process()) is not None:
            process.exhaust()

    def hang(self) -> None:
        """Its program blocks and never goes on. (Its heartbeat tells so.)"""
        if (process := self._process()) is not None:
            process.hang()

    def freeze(self) -> None:
        """As SIGSTOP: the whole process stands still."""
        if (process := self._process()) is not None:
            process.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """As SIGCONT; also for one that hangs."""
        if (process := self._process()) is not None:
            process.signal(signal.SIGCONT)

    def next_start(
        self,
        *,
        unborn: int = 0,
        slow: float = 0.0,
        hung: bool = False,
        lost_ready: bool = False,
        dies_before_ready: bool = False,
        dies_at: int = 0,
        out_of_storage: bool = False,
    ) -> None:
        """What goes wrong with its next process, once for each call of this.

        ``unborn``: it cannot be made, with that error number; ``slow``: it does nothing for so many seconds; ``hung``:
        it never does anything; ``lost_ready``: what its program says of being ready is not heard;
        ``dies_before_ready``; ``dies_at``: it is killed when it has received so many messages; ``out_of_storage``: its
        program gets a MemoryError at once.
        """
        flaws = Flaws(unborn, slow, hung, lost_ready, dies_before_ready, dies_at, out_of_storage)
        self._system.nucleus.faults.plan(self.name, *([] if flaws == NONE else [flaws]))

    def _process(self) -> Any:
        return self._system.nucleus.present(self.name)
