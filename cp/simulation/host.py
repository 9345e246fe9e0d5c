"""The host as one control program sees it, without any processes: see :class:`retinue.cp.host.interface.Host`."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import trio

from retinue.cp.host.errors import HostLost, LinkLimit
from retinue.cp.host.interface import (
    Birth,
    Born,
    Exit,
    HostEvent,
    Limit,
    Restored,
    SealLayer,
    SpareReady,
    Storage,
    Terminate,
)
from retinue.cp.host.link import DESCRIPTORS_MAX, NOTE_MAX, packed
from retinue.cp.simulation.process import nobody

if TYPE_CHECKING:
    from retinue.cp.simulation.nucleus import Nucleus

__all__ = ["WHY", "SimulatedHost"]

WHY = "simulated: machines are tasks of one process, and nothing is sealed or limited"


class SimulatedHost:
    """Implements :class:`retinue.cp.host.interface.Host` for one control program, and is dead when that is."""

    def __init__(self, nucleus: "Nucleus", restored: Restored) -> None:
        self._nucleus = nucleus
        self._restored = restored
        self._lost = False
        self._exits, self._exits_out = trio.open_memory_channel[Exit](math.inf)
        self._events, self._events_out = trio.open_memory_channel[HostEvent](math.inf)

    @property
    def restored(self) -> Restored:
        """See Host.restored."""
        return self._restored

    @property
    def exits(self) -> trio.MemoryReceiveChannel[Exit]:
        """See Host.exits."""
        return self._exits_out

    @property
    def events(self) -> trio.MemoryReceiveChannel[HostEvent]:
        """See Host.events."""
        return self._events_out

    async def spawn(self, birth: Birth, descriptors: Sequence[int]) -> Born:
        """See Host.spawn."""
        await trio.lowlevel.checkpoint()
        if self._lost:
            raise HostLost
        with nobody():
            return self._nucleus.spawn(birth, descriptors)

    def signal(self, machine: str, generation: int, number: int) -> None:
        """See Host.signal."""
        found = self._nucleus.machines.get((machine, generation))
        if found is not None and not self._lost:
            found.signal(number)

    def pid(self, machine: str, generation: int) -> int:
        """See Host.pid. Of numbers that no process has."""
        found = self._nucleus.machines.get((machine, generation))
        return 0 if found is None else found.pid

    def cpu_time(self, machine: str, generation: int) -> float | None:
        """See Host.cpu_time. Simulated machines take none, but for what a test says."""
        return self._nucleus.storage.cpu_time((machine, generation)) if self.pid(machine, generation) else None

    def end(self, how: str, text: str, exit_code: int) -> None:
        """See Host.end."""
        if not self._lost:
            self._nucleus.end_system(how, text, exit_code)

    def seal_report(self) -> list[SealLayer]:
        """See Host.seal_report. None: there is no layer of which it could be said that it is there or lacks."""
        return []

    def usage(self, machine: str, generation: int) -> int:
        """See Host.usage."""
        return 0

    def limits_report(self) -> list[Limit]:
        """See Host.limits_report. As if they were kept: a simulation shall not warn of itself in every log."""
        limits = ("storage", "share", "cpu", "tasks", "disk", "temporary disk")
        return [Limit(limit, "none", enforced=True, why="" if limit == "storage" else WHY) for limit in limits]

    # -- storage -------------------------------------------------------------------------------------------------------

    def measure(self, machines: Sequence[tuple[str, int]]) -> dict[tuple[str, int], Storage]:
        """See Host.measure. What a test has set: see :class:`~retinue.cp.simulation.storage.SimulatedStorage`."""
        measured = ((key, self._nucleus.storage.measure(key)) for key in machines)
        return {key: storage for key, storage in measured if storage is not None}

    def working_set(self, machine: str, generation: int) -> int | None:
        """See Host.working_set."""
        return self._nucleus.storage.working_set((machine, generation))

    def page_out(self, machine: str, generation: int, most: int | None = None) -> int:
        """See Host.page_out."""
        return self._nucleus.storage.page_out((machine, generation), most)

    def own_ranges(self, machine: str, generation: int, most: int | None = None) -> list[tuple[int, int]]:
        """See Host.own_ranges. A played machine pages out nothing by itself."""
        return []

    def paging_report(self) -> Limit:
        """See Host.paging_report."""
        return self._nucleus.storage.report()

    def open_volume(self, path: str, size: int) -> str:
        """See Host.open_volume. It has so much room, and no file."""
        self._nucleus.storage.room = size
        return ""

    def pressure(self) -> float | None:
        """See Host.pressure."""
        return self._nucleus.storage.pressure

    # -- what is kept for the next one ---------------------------------------------------------------------------------

    def keep(self, key: str, note: Mapping[str, Any], descriptors: Sequence[int] = ()) -> None:
        """See Host.keep."""
        if (size := len(packed({"key": key, "note": note}))) > NOTE_MAX:
            raise LinkLimit("bytes", size, NOTE_MAX)
        if len(descriptors) > DESCRIPTORS_MAX:
            raise LinkLimit("descriptors", len(descriptors), DESCRIPTORS_MAX)
        if not self._lost:
            self._nucleus.keep(key, note, descriptors)

    def drop(self, key: str) -> None:
        """See Host.drop."""
        if not self._lost:
            self._nucleus.drop(key)

    def buried(self, machine: str, generation: int) -> None:
        """See Host.buried."""
        if not self._lost:
            self._nucleus.unburied.pop((machine, generation), None)

    def spare(self) -> None:
        """See Host.spare. One that is made when it is needed is as good here."""
        if not self._lost:
            self._nucleus.came_up()
            self._events.send_nowait(SpareReady())

    def hand_over(self) -> None:
        """See Host.hand_over."""
        if not self._lost:
            self._nucleus.kill_control_program(died="")

    def set_limits(
        self,
        machine: str,
        generation: int,
        *,
        storage: int | None = None,
        share: int | None = None,
        cpu: float | None = None,
        largest_share: int = 0,
    ) -> str:
        """See Host.set_limits. They are as good as kept, but for less storage than it has."""
        if (found := self._nucleus.storage.measure((machine, generation))) is None:
            return "it does not run"
        if storage is not None and storage < found.private:
            return f"it has {found.private} bytes of private memory already"
        if storage is not None:
            self._nucleus.machines[machine, generation].storage = storage
        return ""

    # -- what the nucleus does with it ---------------------------------------------------------------------------------

    def tell(self, exit: Exit) -> None:
        """A machine has ended."""
        if not self._lost:
            self._exits.send_nowait(exit)

    def terminate(self) -> None:
        """Somebody has asked the system to end, as by SIGTERM."""
        if not self._lost:
            self._events.send_nowait(Terminate())

    def lose(self) -> None:
        """Its control program is gone."""
        if not self._lost:
            self._lost = True
            self._exits.close()
            self._events.close()
