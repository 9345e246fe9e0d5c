"""Records that a system which has ended has left on the disk for the next one, as long as nobody has stored them.

They are read where the control program has put them (:mod:`retinue.cp.spill`) and stay there.
"""

import os
import pathlib
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Final

import msgpack
import trio

from retinue.cp.records import Record
from retinue.cp.selection import Selection
from retinue.cp.spill import Spill
from retinue.cp.tape import record_of

# A record's place is the first of these and how many are before it: it comes after all that are stored.
FIRST: Final = 2**61
# Records that are looked at between two looks at whether somebody has pressed Ctrl-C.
STEP: Final = 1_000

Placed = tuple[int, Record]


class Waiting:
    """What waits below a state folder. Nothing of it is stored, until :meth:`border` says so."""

    def __init__(self, state: pathlib.Path) -> None:
        self._folder = state / "spill"
        self._stored: Mapping[str, int] = {}
        self._going_on: tuple[int, Iterator[Placed]] | None = None

    @property
    def runs(self) -> list[str]:
        """The runs that have left some, in their order. What was set aside waits for something else."""
        try:
            with os.scandir(self._folder) as entries:
                found = [(each.stat().st_mtime, each.name) for each in entries if "." not in each.name]
        except OSError:
            return []
        return [name for _, name in sorted(found)]

    def border(self, stored: Mapping[str, int]) -> bool:
        """From now on these are the numbers up to which runs are stored; whether there is anything more."""
        self._stored = stored
        return next(self._placed(), None) is not None

    def _placed(self) -> Iterator[Placed]:
        place = FIRST
        for run in self.runs:
            stored = self._stored.get(run, 0)
            for chunk in Spill(self._folder, run).packed(stored):
                for seq, body in enumerate(msgpack.unpackb(chunk.blob, strict_map_key=False), chunk.first):
                    if seq > stored:
                        yield place, record_of(seq, chunk.machine, chunk.generation, body)
                        place += 1

    async def oldest(self, wanted: Selection, after: int, count: int) -> tuple[list[Record], int | None]:
        """The first ``count`` after a place, and the place from where to go on; None at the end."""
        found: list[Record] = []
        known, self._going_on = self._going_on, None
        placed = known[1] if known is not None and known[0] == after else self._placed()
        for place, record in placed:
            if place > after and wanted.takes(record):
                found.append(record)
                if len(found) == count:
                    self._going_on = place, placed
                    return found, place
            if place % STEP == 0:
                await trio.lowlevel.checkpoint()
        return found, None

    async def newest(self, wanted: Selection, before: int, count: int) -> tuple[list[Record], int | None]:
        """The last ``count`` before a place, oldest first, and their first place; None when those are all."""
        found: deque[Placed] = deque(maxlen=count)
        for place, record in self._placed():
            if place >= before:
                break
            if wanted.takes(record):
                found.append((place, record))
            if place % STEP == 0:
                await trio.lowlevel.checkpoint()
        return [record for _, record in found], found[0][0] if len(found) == count else None
