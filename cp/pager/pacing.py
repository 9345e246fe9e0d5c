"""How fast machines begin where real storage is short: not faster than there is made room for them.

A program that has just begun may fill all the storage of its machine before anybody looks at it. So it counts with all
of it until it has been looked at when it was ready, or for a moment; who would have no room beside it waits, loaded.
A machine that has rested counts with what it had then. One that starts on demand waits before it has a process at all:
others rest for it meanwhile. Nobody waits for ever.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import attrs

from retinue.cp.pager.policy import HIGH

if TYPE_CHECKING:
    from retinue.cp.life import Life
    from retinue.cp.pager.census import Census

__all__ = ["AGAIN", "Pacing"]

FILLING: Final = 2.0
"""Seconds from its birth on for which a machine that does not become ready counts with all of its storage."""

LONGEST: Final = 5.0
"""Seconds that a machine waits for room at most, and between two that begin without; a birth counts no longer, too."""

AGAIN: Final = 0.1
"""Seconds between two looks while a machine waits."""

UNKNOWN: Final = 0.25
"""The part of the limit, at most, for which there must be room before a machine is born of which nothing is known."""

MOST: Final = 0.5
"""The part of the limit that is made free for machines that wait, at most."""


@attrs.frozen
class _Young:
    life: "Life"
    since: float


class Pacing:
    """Of one system. Sizes in bytes, times in seconds, all on one clock."""

    def __init__(self, census: "Census", known: Callable[[str], int | None]) -> None:
        """``known`` tells what a machine had when it rested, None if it never has."""
        self._census = census
        self._known = known
        self._young: list[_Young] = []
        self._crowded = float("-inf")  # when somebody has begun last although there was no room
        self._wanted: dict[str, int] = {}  # by machines that wait to be born

    def admits(self, life: "Life", now: float, asked: float, limit: int) -> bool:
        """Whether a machine that starts on demand may be born, which waits since ``asked``; if so there is room."""
        had = self._known(life.name)
        need = int(min(life.entry.storage, limit * UNKNOWN)) if had is None else had
        short = self._census.total + self._coming(life, now) + need > limit
        if short and now - max(asked, self._crowded) < LONGEST:
            self.want(life, need)
            return False
        self._begins(life, now, crowded=short)
        return True

    def want(self, life: "Life", need: int) -> None:
        """It waits for so much."""
        self._wanted[life.name] = need

    def withdraw(self, life: "Life") -> bool:
        """It does not wait any more. Returns whether it did."""
        return self._wanted.pop(life.name, None) is not None

    def wanted(self, limit: int) -> int:
        """What is to be free for those that wait."""
        return min(sum(self._wanted.values()), int(limit * MOST))

    def waits(self, life: "Life") -> bool:
        """Whether it waits to be born."""
        return life.name in self._wanted

    def turn(self, life: "Life", now: float, asked: float, limit: int) -> bool:
        """Whether it is the turn of a machine, which waits since ``asked``; if so, it begins now."""
        if life.entry.start == "on-demand":
            return True  # it was admitted
        total = self._census.total
        short = total + self._coming(life, now) + self._left(life) > limit
        crowded = short and (bool(self._young) or total > limit * HIGH)
        if crowded and now - max(asked, self._crowded) < LONGEST:
            return False
        self._begins(life, now, crowded=crowded)
        return True

    def _begins(self, life: "Life", now: float, *, crowded: bool) -> None:
        self._young.append(_Young(life, now))
        if crowded:
            self._crowded = now

    def _coming(self, life: "Life", now: float) -> int:
        """By how much all others may grow that have just begun."""
        more = [(young, self._more(young, now)) for young in self._young if young.life is not life]
        self._young = [young for young, size in more if size is not None]
        return sum(size or 0 for _, size in more)

    def _more(self, young: _Young, now: float) -> int | None:
        """By how much it may grow before it is looked at; None if it is like all others by now."""
        process = young.life.current
        if process is None or now - young.since >= LONGEST:
            return None
        if process.born_at is not None and now - max(young.since, process.born_at) >= FILLING:
            return None
        record = self._census.records.get((process.name, process.generation))
        if record is not None and process.ready_at is not None and record.looked >= process.ready_at:
            return None
        return self._left(young.life)

    def _left(self, life: "Life") -> int:
        """What the present process of a machine does not have yet of what it may have, or had when it rested."""
        process, had = life.current, self._known(life.name)
        record = None if process is None else self._census.records.get((process.name, process.generation))
        most = life.entry.storage if had is None else had
        return max(most - (0 if record is None else record.resident), 0)
