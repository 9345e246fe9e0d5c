"""Records that a system which has ended has left on the disk for the next one, as long as nobody has stored them.

They are read where the control program has put them (:mod:`retinue.cp.spilled`) and stay there. What there is is looked
up once, so that a system that is started meanwhile changes nothing but that files are gone.

A place is made of a run and of a record's number in it. So the names of the files say which are read for a page: each
once, as long as the pages follow each other, and none before it is its turn.
"""

import heapq
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

import msgpack
import trio

from retinue.cp.checking import checked_records
from retinue.cp.records import Record, weight
from retinue.cp.selection import Selection
from retinue.cp.spilled import FOLDER, NUMBER_BITS, Spilled, list_spilled, read_spilled
from retinue.cp.tape import Packed, record_of
from retinue.pipes import Rejected

# Records' places come after this one, and after those of all that are stored.
FIRST: Final = 2**61
# More runs have no places of their own.
MOST_RUNS: Final = FIRST >> NUMBER_BITS
# Records that are looked at between two looks at whether somebody has pressed Ctrl-C.
STEP: Final = 1_000
# About the bytes of records in one page.
ROOM: Final = 8 * 1024 * 1024

# Why something is not shown.
_ASIDE: Final = "set aside, because it could not be read"

Placed = tuple[int, Record]
# A file when it is its turn to be read, then its chunks; with what they are sorted by.
_Turns = Iterator[tuple[int, Spilled, Packed | None]]


class Waiting:
    """What waits below a state folder. Nothing of it is stored, until :meth:`border` says so."""

    def __init__(self, state: pathlib.Path) -> None:
        self._state = state
        listing = list_spilled(state)
        self._failed = listing.failed
        self._aside = [each for each in listing.files if each.is_aside]
        self._files: dict[str, dict[str, list[Spilled]]] = {}
        for each in listing.files:
            if not each.is_aside:
                self._files.setdefault(each.run, {}).setdefault(each.machine, []).append(each)
        # A folder changes whenever something is stored, and a machine says itself what time it is in its records.
        written = {run: min(each.written for each in _all(files)) for run, files in self._files.items()}
        self.runs: Final = sorted(written, key=lambda run: (written[run], run))[-MOST_RUNS:]
        """The runs that have left some, in their order. What was set aside waits for something else."""
        self._stored: Mapping[str, int] = {}
        self._going_on: tuple[object, Iterator[Placed]] | None = None
        self._asked: frozenset[str] | None = None
        self._unread: dict[tuple[Spilled, int], tuple[int, str]] = {}  # from a number on
        self.gone = False
        """Whether something that was there is not any more."""

    @property
    def machines(self) -> list[str]:
        """Those of which there is something, also if it was set aside."""
        waiting = {each for files in self._files.values() for each in files}
        return sorted(waiting.union(each.machine for each in self._aside))

    def border(self, stored: Mapping[str, int]) -> bool:
        """From now on these are the numbers up to which runs are stored; whether there is anything more."""
        self._stored = stored
        return any(each.file.last > stored.get(run, 0) for run in self.runs for each in _all(self._files[run]))

    async def oldest(self, wanted: Selection, after: int, count: int) -> tuple[list[Record], int | None]:
        """The first ``count`` after a place, and the place from where to go on; None at the end."""
        return await self._page(wanted, after, count, back=False)

    async def newest(self, wanted: Selection, before: int, count: int) -> tuple[list[Record], int | None]:
        """The last ``count`` before a place, oldest first, and their first place; None when those are all."""
        found, more = await self._page(wanted, before, count, back=True)
        return found[::-1], more

    async def _page(self, wanted: Selection, start: int, count: int, *, back: bool) -> tuple[list[Record], int | None]:
        self._asked = wanted.machines
        if count < 1:
            return [], None
        known, self._going_on = self._going_on, None
        if known is not None and known[0] == (back, start, wanted.machines):
            placed = known[1]
        else:
            placed = self._placed(wanted.machines, start, back=back)
        found: list[Record] = []
        room = ROOM
        for number, (place, record) in enumerate(placed, 1):
            if (place < start if back else place > start) and wanted.takes(record):
                found.append(record)
                room -= weight(record)
                if len(found) == count or room <= 0:
                    self._going_on = (back, place, wanted.machines), placed
                    return found, place
            if number % STEP == 0:
                await trio.lowlevel.checkpoint()
        return found, None

    # -- reading ---------------------------------------------------------------------------------------------------

    def _placed(self, machines: frozenset[str] | None, start: int, *, back: bool) -> Iterator[Placed]:
        """What waits on one side of a place, one after the other from there."""
        for index in range(len(self.runs))[:: -1 if back else 1]:
            run = self.runs[index]
            base = FIRST + (index << NUMBER_BITS)
            low, high = self._stored.get(run, 0), 1 << NUMBER_BITS
            low, high = (low, min(high, start - base)) if back else (max(low, start - base), high)
            whose = [each for name, each in self._files[run].items() if machines is None or name in machines]
            files = [[each for each in of if each.file.last > low and each.file.first < high] for of in whose]
            for each, chunk in _merged([self._turns(of, back=back) for of in files]):
                if chunk.last > low and chunk.first < high:
                    for record in self._records(each, chunk)[:: -1 if back else 1]:
                        if low < record["seq"] < high:
                            yield base + record["seq"], record

    def _turns(self, files: list[Spilled], *, back: bool) -> _Turns:
        """The files of a machine and their chunks, each file before it is read."""
        step = -1 if back else 1
        for each in files[::step]:
            yield -each.file.last if back else each.file.first, each, None
            for chunk in self._read(each)[::step]:
                yield -chunk.last if back else chunk.first, each, chunk

    def _read(self, each: Spilled) -> list[Packed]:
        try:
            return read_spilled(self._state, each)
        except FileNotFoundError:
            self.gone = True
        except (OSError, ValueError) as exc:
            self._unread[each, each.file.first] = each.file.most(self._stored.get(each.run, 0)), _reason(exc)
        return []

    def _records(self, each: Spilled, chunk: Packed) -> list[Record]:
        """Those of a chunk that are records."""
        bodies = enumerate(msgpack.unpackb(chunk.blob, strict_map_key=False), chunk.first)
        records = [record_of(seq, each.machine, chunk.generation, body) for seq, body in bodies]
        try:
            return checked_records({"records": records})
        except Rejected:
            found = [record for record in records if _is_record(record)]
        self._unread[each, chunk.first] = len(records) - len(found), "it is no record"
        return found

    # -- what is missing -------------------------------------------------------------------------------------------

    def left_out(self) -> list[str]:
        """What waits of the machines that were asked for, and could not be shown."""
        groups: dict[tuple[str, str], list[tuple[int, Spilled]]] = {}
        for (each, _), (count, why) in self._unread.items():
            groups.setdefault((each.machine, why), []).append((count, each))
        for each in self._aside:
            groups.setdefault((each.machine, _ASIDE), []).append((each.file.most(), each))
        told = []
        for (machine, why), found in sorted(groups.items(), key=lambda group: group[0]):
            if self._asked is None or machine in self._asked:
                count = sum(count for count, _ in found)
                lines = f"{count} line{'' if count == 1 else 's'}"
                told.append(f"{lines} of {machine} not shown ({why}): {self._where([each for _, each in found])}")
        return told + [f"what waits in {path} is not shown ({_reason(exc)})" for path, exc in self._failed]

    def _where(self, found: list[Spilled]) -> str:
        first, *more = dict.fromkeys(self._state.joinpath(FOLDER, *each.where) for each in found)
        return f"{first} and {len(more)} more" if more else f"{first}"


def _all(files: Mapping[str, list[Spilled]]) -> Iterator[Spilled]:
    return (each for found in files.values() for each in found)


def _merged(turns: Iterable[_Turns]) -> Iterator[tuple[Spilled, Packed]]:
    """The chunks of all machines as their numbers sort them."""
    heap: list[tuple[int, int, Spilled, Packed | None]] = []
    all_turns = [*turns]

    def go_on(index: int) -> None:
        following = next(all_turns[index], None)
        if following is not None:
            key, each, chunk = following
            heapq.heappush(heap, (key, index, each, chunk))

    for index in range(len(all_turns)):
        go_on(index)
    while heap:
        _, index, each, chunk = heapq.heappop(heap)
        if chunk is not None:
            yield each, chunk
        go_on(index)


def _is_record(untrusted: Record) -> bool:
    try:
        return bool(checked_records({"records": [untrusted]}))
    except Rejected:
        return False


def _reason(why: Exception) -> str:
    return (why.strerror if isinstance(why, OSError) else None) or str(why)
