"""Whom to take how many pages from; pure policy, on figures of one moment.

Oldest-idle first; what is reserved last; within each of the two a machine that runs after all that do not.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Final

from attrs import field, frozen

__all__ = ["HIGH", "LOW", "PRESSED", "Figures", "Take", "plan", "target"]

HIGH: Final = 0.97
"""The part of the system's storage from which on pages are taken: before it is used up, not only then."""

LOW: Final = 0.94
"""The part to which they are taken, so that it is not done again at once."""

PRESSED: Final = 0.10
"""The part of the time in which tasks wait for storage (PSI) from which on the host is under pressure."""

STEP: Final = 0.05
"""The part of what machines that do not run have, which is taken at one look under pressure alone."""

QUIET: Final = 2.0
"""Seconds without running after which a machine does not run; the time between two looks is less."""

LEAST: Final = 64 * 1024
"""Bytes below which it is not worth the call."""


@frozen
class Figures:
    """One machine. Sizes in bytes, times in seconds."""

    name: str
    generation: int
    resident: int
    """In real storage: its pages and its segments."""
    idle: float = 0.0
    """Since it ran last; 0 for one that runs."""
    reserve: int = 0
    priority: int = 100
    idle_page_out: float = 0.0
    """0: never."""
    working: int = 0
    """What it has used lately."""
    floor: int = 0
    """What could not be taken when it was tried."""
    whole: bool = field(default=False)
    """It was paged out for being idle, and has not run since."""

    @property
    def runs(self) -> bool:
        """Whether it has run just now."""
        return self.idle < QUIET

    def above(self, kept: int) -> int:
        """What can be taken so that so much is kept."""
        return max(self.resident - max(kept, self.floor), 0)


@frozen
class Take:
    """So many bytes are to be taken from a machine; ``why`` is ``idle``, ``limit`` or ``pressure``."""

    name: str
    generation: int
    most: int
    why: str


def target(total: int, limit: int | None, high: float = HIGH) -> int:
    """The bytes that all machines together should have afterwards; from the part ``high`` on pages are taken."""
    if limit is None or total <= limit * high:
        return total
    return int(limit * LOW)


def plan(
    machines: Sequence[Figures], limit: int | None, pressure: float | None = None, high: float = HIGH
) -> list[Take]:
    """What to take from whom, in this order; at most one :class:`Take` for each machine.

    :param limit: bytes of real storage that all of them together may have; None for no bound.
    :param pressure: the part of the time in which tasks waited for storage, 0 to 1; None if nobody knows. Without a
        limit, and without a machine that is to be paged out when idle, nothing is taken: that is the kernel's business.
    :param high: as for :func:`target`.
    """
    taken: dict[tuple[str, int], int] = {}
    why: dict[tuple[str, int], str] = {}

    def take(machine: Figures, most: int, reason: str) -> None:
        key = machine.name, machine.generation
        if most > 0:
            taken[key] = taken.get(key, 0) + most
            why.setdefault(key, reason)

    def left(machine: Figures, kept: int) -> int:
        return max(machine.above(kept) - taken.get((machine.name, machine.generation), 0), 0)

    for machine in machines:
        due = machine.idle_page_out and machine.idle >= machine.idle_page_out
        if due and not machine.whole and machine.above(machine.reserve) >= LEAST:
            take(machine, machine.above(machine.reserve), "idle")

    total = sum(machine.resident for machine in machines)
    excess = total - sum(taken.values()) - target(total, limit, high)
    if limit is not None:
        for stage in _stages(machines):
            if excess <= 0:
                break
            lefts = [left(machine, kept) for machine, kept in stage]
            most = min(sum(lefts), excess)
            for (machine, _), much in zip(stage, lefts, strict=True):
                take(machine, math.ceil(much * most / sum(lefts)) if much else 0, "limit")
            excess -= most
        if pressure is not None and pressure >= PRESSED:
            resting = [machine for machine in _oldest(machines) if not machine.runs]
            step = int(sum(machine.resident for machine in resting) * STEP)
            step -= sum(taken.values())
            for machine in resting:
                most = max(min(left(machine, machine.reserve), step), 0)
                take(machine, most, "pressure")
                step -= most
    order = {(machine.name, machine.generation): place for place, machine in enumerate(_oldest(machines))}
    return [Take(*key, taken[key], why[key]) for key in sorted(taken, key=order.__getitem__)]


def _stages(machines: Sequence[Figures]) -> Iterable[list[tuple[Figures, int]]]:
    """Machines with what each may keep, again and again, until nobody keeps anything.

    Those of one stage lose in proportion to what they have: one alone, but for machines that run and count alike. To
    take all from one of those would have it read everything back at once, at the cost of the others. A machine that
    runs loses first what it has not used lately.
    """
    oldest = _oldest(machines)
    resting = [machine for machine in oldest if not machine.runs]
    running = [machine for machine in oldest if machine.runs]
    alike = [[each for each in running if each.priority == one] for one in sorted({each.priority for each in running})]
    yield from ([(machine, machine.reserve)] for machine in resting)
    yield from ([(machine, max(machine.reserve, machine.working)) for machine in group] for group in alike)
    yield from ([(machine, machine.reserve) for machine in group] for group in alike)
    yield from ([(machine, 0)] for machine in resting)
    yield from ([(machine, 0) for machine in group] for group in alike)


def _oldest(machines: Sequence[Figures]) -> list[Figures]:
    """Those that have not run for the longest time first; of two that run the one that counts less, then the larger."""

    def place(machine: Figures) -> tuple[float, int, int, str]:
        return -math.floor(machine.idle), machine.priority, -machine.resident, machine.name

    return sorted(machines, key=place)
