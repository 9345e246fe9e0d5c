"""Where one machine stands, and what is wanted of it; whoever waits for it looks at what is, never at what was."""

from collections.abc import Callable
from enum import StrEnum

import trio

from retinue.cp.death import Death
from retinue.cp.directory import MachineEntry
from retinue.cp.errors import Misfit
from retinue.cp.incarnation import Incarnation
from retinue.cp.states import FINAL, State


class Wish(StrEnum):
    """What is wanted of a machine."""

    UP = "up"
    REST = "rest"  # to be started by the first who connects
    DOWN = "down"


class Standing:
    """What is so of a machine. Whoever changes it says :meth:`notice`."""

    def __init__(self, entry: MachineEntry) -> None:
        self.entry = entry
        self.name = entry.name
        self.state = State.DEFINED
        self.wish = Wish.REST if entry.start == "on-demand" else Wish.UP
        self.current: Incarnation | None = None
        self.restarts = 0
        self.cause: str | None = None  # why it last ended
        self.held = False
        """An operator has stopped it."""
        self._number = 0  # of the newest generation
        self._last: Incarnation | None = None
        self._leaving: list[Incarnation] = []  # those that were replaced and have not ended
        self._changed = trio.lowlevel.ParkingLot()

    # -- what it is ----------------------------------------------------------------------------------------------------

    @property
    def base(self) -> str:
        """The name by which others use it: that of the topology, also for one of several instances."""
        return self.entry.base or self.name

    @property
    def generation(self) -> int:
        """Of the process that new paths lead to; of the last one if there is none."""
        return self._number if self.current is None else self.current.generation

    @property
    def pid(self) -> int | None:
        """Of the present process."""
        return None if self.current is None else self.current.pid

    @property
    def seal(self) -> tuple[str, ...]:
        """The layers that the present process has."""
        return () if self.current is None else self.current.seal

    @property
    def born_at(self) -> float | None:
        """When the present process was made, by trio's clock."""
        return None if self.current is None else self.current.born_at

    @property
    def misfits(self) -> tuple[Misfit, ...]:
        """What its program found wrong with its config."""
        return () if self._last is None else self._last.misfits

    @property
    def ready(self) -> bool:
        """Whether paths can be made to it now."""
        return self.current is not None and self.current.ready

    @property
    def rests(self) -> bool:
        """It has no process, or one that is ending, and whoever waits for it starts one."""
        return self.wish is Wish.REST

    @property
    def hopeless(self) -> bool:
        """It is not ready, and nobody wants it to be."""
        return not self.ready and self.wish is Wish.DOWN

    # -- waiting -------------------------------------------------------------------------------------------------------

    def notice(self) -> None:
        """Something may have changed: whoever waits looks again."""
        self._changed.unpark_all()

    async def wait_until(self, condition: Callable[[], bool]) -> None:
        """Until something is so."""
        while not condition():
            await self._changed.park()

    @property
    def over(self) -> bool:
        """It has ended for good: it is not about to be started again, nor may an operator do that some time."""
        return self.state in FINAL and self.wish is Wish.DOWN and not self.held

    async def wait_gone(self) -> None:
        """Until it has ended, and every process of it."""
        await self.wait_until(lambda: self.state in FINAL and all(each.death is not None for each in self._leaving))

    async def wait_adopted(self) -> None:
        """Until the process that an earlier control program has left can be reached, or has ended."""
        await self.wait_until(lambda: self.current is None or self.current.reached or self.current.death is not None)

    async def wait_usable(self) -> bool:
        """Until it is ready, or it is plain that it will not be; which of the two."""
        await self.wait_until(lambda: self.ready or self.hopeless)
        return self.ready

    async def wait_end_of(self, incarnation: Incarnation) -> Death:
        """Until one of its processes has ended."""
        await self.wait_until(lambda: incarnation.death is not None)
        assert incarnation.death is not None
        return incarnation.death

    async def wait_for(self, condition: Callable[[State], bool]) -> State:
        """Until the present state fits."""
        await self.wait_until(lambda: condition(self.state))
        return self.state
