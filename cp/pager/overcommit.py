"""What is done when all machines together have more than the system's real storage and nothing can be paged any more.

First every machine is asked to shrink, then nobody is started, then the machine of lowest priority is ended; in this
order, with time between for each to have its effect. Pure policy, on a clock that is given.

As long as something is taken nothing is worse yet; but not for ever. Where machines have more than there is directly
after each look, half a minute long, they have it back as fast as it is taken, and the rest is too little: that is the
same as if nothing could be taken. It is not when they are within the limit after any look: who works in more than there
is, and has it read back all the time, is slow, which is what paging is for. Nor is it while they come nearer to it, as
on a slow device after the limit was lowered.
"""

from collections.abc import Iterable
from enum import IntEnum
from typing import Final

from attrs import frozen

from retinue.cp.pager.policy import LOW, Figures

__all__ = ["Overcommit", "Step", "Victim", "victim"]

SHRINK: Final = 3.0
"""Seconds that machines have to give something back before starts are held."""

HOLD: Final = 5.0
"""Seconds after that before a machine is ended, and between two ends: what has been said must have its effect."""

VAIN: Final = 30.0
"""Seconds over the limit after every look, after which it does not count any more that something is taken."""

PROGRESS: Final = 0.01
"""The part of the limit by which they have less, so that the time begins anew."""

LOOKS: Final = 10
"""Looks that there must have been in that time."""


class Step(IntEnum):
    """How far it has gone."""

    FITS = 0  # everything that must be resident has room
    SHRINK = 1  # machines have been asked to give something back
    HOLD = 2  # and nobody is started
    END = 3  # and machines are ended, one after another


@frozen
class Victim:
    """Who is to be ended, and who has wanted the storage."""

    name: str
    generation: int
    priority: int
    wanted_by: str
    grown: int
    """Bytes by which whoever wanted it has grown."""


class Overcommit:
    """How far it has gone in one system."""

    def __init__(self) -> None:
        self.step = Step.FITS
        self._since = 0.0
        self._over: float | None = None  # since when it was over the limit after every look, and has not come nearer
        self._had = 0  # bytes that all had then
        self._looks = 0  # since then

    def look(self, now: float, total: int, limit: int | None, *, more: bool) -> Step | None:
        """The step to take now; None for nothing.

        :param total: bytes that all machines have now, after what could be taken has been.
        :param more: something was taken at this look, or more can be: then paging goes on, and nothing is worse yet.
        """
        if limit is None or total <= limit:
            self._over = None
        elif self._over is None or total <= self._had - limit * PROGRESS:
            self._over, self._had, self._looks = now, total, 0
        else:
            self._looks += 1
        more = more and (self._over is None or now - self._over < VAIN or self._looks < LOOKS)
        if limit is None or total <= limit * LOW or (total <= limit and self.step is Step.FITS):
            changed, self.step = self.step is not Step.FITS, Step.FITS
            return Step.FITS if changed else None
        if total <= limit or more:
            # There is no more than may be: nobody is ended for it, nor is anybody started who would need more.
            self._since = now
            return None
        if self.step is Step.FITS:
            return self._turn(Step.SHRINK, now)
        if self.step is Step.SHRINK:
            return self._turn(Step.HOLD, now) if now - self._since >= SHRINK else None
        if now - self._since < HOLD:
            return None
        return self._turn(Step.END, now)

    def _turn(self, step: Step, now: float) -> Step:
        self.step, self._since = step, now
        return step

    @property
    def holds(self) -> bool:
        """Whether nobody is started now."""
        return self.step >= Step.HOLD


def victim(machines: Iterable[Figures], grown: dict[str, int], keeper: str | None = None) -> Victim | None:
    """Who is to be ended: the lowest priority; of equals never the one that keeps the records if there is another one,
    and first the one that has wanted the storage itself. None if nobody has anything.

    :param grown: bytes by which machines have grown lately.
    """
    having = [machine for machine in machines if machine.resident > 0]
    if not having:
        return None
    wanting = max(having, key=lambda machine: (grown.get(machine.name, 0), machine.resident, machine.name))

    def place(machine: Figures) -> tuple[int, bool, bool, int, str]:
        return machine.priority, machine.name == keeper, machine is not wanting, -machine.resident, machine.name

    ended = min(having, key=place)
    return Victim(ended.name, ended.generation, ended.priority, wanting.name, grown.get(wanting.name, 0))
