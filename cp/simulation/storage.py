"""The storage of simulated machines: figures that a test sets, and a paging device that has as much room as it says."""

from typing import Final

import attrs

from retinue.cp.host.interface import Limit, PagingRefused, Storage

__all__ = ["PAGE", "Pages", "SimulatedStorage"]

PAGE: Final = 4096
"""Bytes of a page of it."""

Key = tuple[str, int]


@attrs.define
class Pages:
    """What one process of a machine has, in bytes. Tests change it as the program of a real one would."""

    resident: int = 0
    paged: int = 0
    reads: int = 0
    working: int | None = None
    """What it has used since somebody last asked; None: this host cannot say."""
    cpu: float = 0.0
    """Seconds of processor that it has used."""
    locked: int = 0
    """What cannot be taken from it, however often it is tried."""

    def grow(self, size: int) -> None:
        """Its program touches so much that it has not touched before."""
        self.resident += size

    def touch(self, size: int) -> int:
        """Its program uses what was paged out, at most so much: it is read back. Returns how much."""
        size = min(size, self.paged)
        self.paged -= size
        self.resident += size
        self.reads += -(-size // PAGE)
        return size

    def give_up(self, size: int) -> None:
        """Its program has no use any more for so much of what it has."""
        here = min(size, self.resident)
        self.resident -= here
        self.paged -= min(size - here, self.paged)


class SimulatedStorage:
    """That of all machines of a system. What lives has :class:`Pages`, and begins with what is said for its name."""

    def __init__(self) -> None:
        self.room = 0
        """Bytes that can be paged out altogether; 0: there is no paging device."""
        self.pressure: float | None = None
        self.at_birth: dict[str, int] = {}
        """Bytes that each process of a machine has at its birth; who is not in here has none."""
        self._pages: dict[Key, Pages] = {}

    def born(self, machine: str, generation: int) -> None:
        """A process begins."""
        self._pages[machine, generation] = Pages(self.at_birth.get(machine, 0))

    def ended(self, machine: str, generation: int) -> None:
        """A process has ended, and what it had is free."""
        self._pages.pop((machine, generation), None)

    def of(self, machine: str) -> Pages:
        """That of the newest process of a machine. KeyError when it has none."""
        found = [key for key in self._pages if key[0] == machine]
        if not found:
            raise KeyError(f"{machine} has no process")
        return self._pages[max(found)]

    @property
    def resident(self) -> int:
        """Bytes of all machines in real storage."""
        return sum(pages.resident for pages in self._pages.values())

    @property
    def paged(self) -> int:
        """Bytes of all machines on the paging device."""
        return sum(pages.paged for pages in self._pages.values())

    # -- for the host --------------------------------------------------------------------------------------------------

    def cpu_time(self, key: Key) -> float:
        """See Host.cpu_time."""
        pages = self._pages.get(key)
        return 0.0 if pages is None else pages.cpu

    def measure(self, key: Key) -> Storage | None:
        """See Host.measure."""
        if (pages := self._pages.get(key)) is None:
            return None
        return Storage(pages.resident, pages.resident, pages.paged, pages.reads)

    def working_set(self, key: Key) -> int | None:
        """See Host.working_set."""
        if (pages := self._pages.get(key)) is None or pages.working is None:
            return None
        return min(pages.working, pages.resident)

    def page_out(self, key: Key, most: int | None) -> int:
        """See Host.page_out."""
        if (pages := self._pages.get(key)) is None:
            raise PagingRefused(f"{key[0]} does not run")
        if not self.room:
            raise PagingRefused("there is no paging device")
        taken = max(min(pages.resident - pages.locked, self.room - self.paged), 0)
        if most is not None:
            taken = min(taken, most)
        pages.resident -= taken
        pages.paged += taken
        return taken

    def report(self) -> Limit:
        """See Host.paging_report."""
        if self.room:
            return Limit("paging", "simulated", enforced=True)
        return Limit("paging", "none", enforced=False, why="this simulation has no paging device")
