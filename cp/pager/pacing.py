"""How fast machines begin where real storage is short: not faster than there is made room for them.

A program that has just begun may fill all the storage of its machine before anybody looks at it. So it counts with all
of it until it has been looked at when it was ready, or for a moment; who would have no room beside it waits, loaded.
Nobody waits for ever.
"""

from typing import TYPE_CHECKING, Final

import attrs

from retinue.cp.pager.policy import HIGH

if TYPE_CHECKING:
    from retinue.cp.life import Life
    from retinue.cp.pager.census import Census

__all__ = ["AGAIN", "Pacing"]

FILLING: Final = 2.0
"""Seconds for which a machine that does not become ready counts with all of its storage."""

LONGEST: Final = 5.0
"""Seconds without any beginning after which one begins though machines have all that there is."""

AGAIN: Final = 0.1
"""Seconds between two looks while a machine waits."""


@attrs.frozen
class _Young:
    life: "Life"
    since: float


class Pacing:
    """Of one system. Sizes in bytes, times in seconds, all on one clock."""

    def __init__(self, census: "Census") -> None:
        self._census = census
        self._young: list[_Young] = []
        self._last = float("-inf")

    def turn(self, life: "Life", now: float, asked: float, limit: int) -> bool:
        """Whether it is the turn of a machine, which waits since ``asked``; if so, it begins now."""
        more = [(young, self._more(young, now)) for young in self._young if young.life is not life]
        self._young = [young for young, size in more if size is not None]
        total = self._census.total
        short = total + sum(size or 0 for _, size in more) + self._left(life) > limit
        if short and (self._young or (total > limit * HIGH and now - max(asked, self._last) < LONGEST)):
            return False
        self._young.append(_Young(life, now))
        self._last = now
        return True

    def _more(self, young: _Young, now: float) -> int | None:
        """By how much it may grow before it is looked at; None if it is like all others by now."""
        process = young.life.current
        if process is None or now - young.since >= FILLING:
            return None
        record = self._census.records.get((process.name, process.generation))
        if record is not None and process.ready_at is not None and record.looked >= process.ready_at:
            return None
        return self._left(young.life)

    def _left(self, life: "Life") -> int:
        """What the present process of a machine does not have yet of what it may have."""
        process = life.current
        record = None if process is None else self._census.records.get((process.name, process.generation))
        return max(life.entry.storage - (0 if record is None else record.resident), 0)
