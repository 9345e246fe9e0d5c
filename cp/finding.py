"""Finding the records that somebody asks for: at the machine that keeps them, and in memory.

While that machine answers, memory adds what it has not stored yet; else memory is all there is. An answer is bounded in
number, in bytes and in the time it takes: it says from where to go on, and is asked for in pages.
"""

import contextlib
from typing import TYPE_CHECKING, Any, Final

import attrs
import trio

from retinue.cp.checking import checked_found, checked_names
from retinue.cp.records import Record, weight
from retinue.cp.selection import Place, Selection
from retinue.cp.tape import ENDLESS
from retinue.pipes import PathError

if TYPE_CHECKING:
    from retinue.cp.syslog import Syslog

# About the bytes of records in one answer: an eighth of what a message may have.
ANSWER_ROOM: Final = 8 * 1024 * 1024
# Seconds a query waits until everything written before it is stored. What is not by then is taken from memory.
SETTLE_LIMIT: Final = 1.0
# Seconds the machine that keeps records has for an answer before memory gives one.
QUERY_LIMIT: Final = 10.0
# Records of memory that are looked at between two turns of others, and for one answer.
STEP: Final = 1_000
LOOKED_AT: Final = 50_000

NOTICE: Final = 5


@attrs.frozen
class Found:
    """An answer: records, oldest first, and where the next page begins (None: there are no more)."""

    records: list[Record]
    more: Place | None
    kept: bool | None
    """Whether the machine that keeps records has answered; None if the topology names none."""
    end: Place
    """Everything before this place was there when it was asked for."""
    spilled: list[str]
    """Machines of which records wait on the disk to be stored, or were set aside there: some may be missing here."""

    def as_answer(self) -> dict[str, Any]:
        """As a message."""
        places = {"more": self.more and list(self.more), "end": list(self.end)}
        about = {"seq": self.end[1] - 1, "kept": self.kept, "spilled": self.spilled}
        return {"records": self.records, **about, **places}


async def find(syslog: "Syslog", wanted: Selection) -> Found:
    """One page of what is wanted: nothing that was written after the call."""
    end = syslog.run, syslog.last + 1
    if wanted.before is None:
        wanted = attrs.evolve(wanted, before=end)
    keeping = syslog.journal.keeping
    spill = syslog.journal.room.spill
    waiting = [*(spill.machines + spill.beside if spill is not None else ()), *syslog.keeper.aside]
    spilled = [name for name in dict.fromkeys(waiting) if wanted.machines is None or name in wanted.machines]
    if not wanted.count:
        return Found([], None, True if keeping else None, end, spilled)
    if keeping and (found := await _ask(syslog, wanted)) is not None:
        return Found(*found, True, end, spilled)
    return Found(*await _remembered(syslog, wanted), False if keeping else None, end, spilled)


async def logged(syslog: "Syslog") -> list[str]:
    """Names of machines of which there are records, also when they are no part of the system any more."""
    names = syslog.journal.machines
    if syslog.keeper.there:
        # One of an earlier release does not know the question.
        with trio.move_on_after(QUERY_LIMIT), contextlib.suppress(PathError):
            names += checked_names(await syslog.keeper.names())
    return [*dict.fromkeys(names)]


async def _ask(syslog: "Syslog", wanted: Selection) -> tuple[list[Record], Place | None] | None:
    """From the machine that keeps records, and from memory what that has not stored; None when it does not answer."""
    keeper = syslog.keeper
    if not keeper.there:
        return None
    with trio.move_on_after(QUERY_LIMIT):
        try:
            with trio.move_on_after(SETTLE_LIMIT):
                await keeper.settle()
            border = syslog.run, syslog.journal.stored
            # First what may be let go of as soon as it is stored.
            late, more = await _remembered(syslog, attrs.evolve(wanted, after=_later(wanted.after, border)))
            if not wanted.oldest and (more is not None or len(late) == wanted.count):
                return late, more or (border[0], border[1] + 1)
            room = wanted.count if wanted.oldest else wanted.count - len(late)
            stored = attrs.evolve(wanted, before=_earlier(wanted.before, (border[0], border[1] + 1)), count=room)
            early, rest = checked_found(await keeper.ask(stored.as_query()))
            if not wanted.oldest:
                return early + late, rest
            if rest is not None:
                return early, rest
            missing = wanted.count - len(early)
            if len(late) > missing:
                return early + late[:missing], _place(syslog, late[missing - 1]) if missing else border
            return early + late, more
        except PathError as exc:
            syslog.write(NOTICE, f"the syslog machine did not answer a query: {exc}")
    return None


def _place(syslog: "Syslog", record: Record) -> Place:
    return syslog.run, record["seq"]


def _earlier(place: Place | None, other: Place) -> Place:
    """The earlier one, where one of them is of this run."""
    return place if place is not None and (place[0] != other[0] or place[1] < other[1]) else other


def _later(place: Place | None, other: Place) -> Place:
    return place if place is not None and place[0] == other[0] and place[1] > other[1] else other


async def _remembered(syslog: "Syslog", wanted: Selection) -> tuple[list[Record], Place | None]:
    """What memory holds. Of other runs it holds nothing, and they all came before."""
    run = syslog.run
    after = wanted.after[1] if wanted.after is not None and wanted.after[0] == run else 0
    before = ENDLESS if wanted.before is None else wanted.before[1] if wanted.before[0] == run else 0
    before = min(before, syslog.last + 1)
    found: list[Record] = []
    room = ANSWER_ROOM
    for _ in range(LOOKED_AT // STEP):
        if before - after <= 1:
            return _in_order(found, wanted), None
        if wanted.oldest:
            page = [each for each in syslog.since(after, wanted.machines, most=STEP) if each["seq"] < before]
        else:
            page = [*reversed(syslog.recent(wanted.machines, STEP, after=after, before=before))]
        if not page:
            return _in_order(found, wanted), None
        for record in page:
            if wanted.takes(record):
                room -= weight(record)
                if len(found) == wanted.count or (found and room < 0):
                    return _in_order(found, wanted), (run, after if wanted.oldest else before)
                found.append(record)
            if wanted.oldest:
                after = record["seq"]
            else:
                before = record["seq"]
        await trio.lowlevel.checkpoint()
    return _in_order(found, wanted), (run, after if wanted.oldest else before)


def _in_order(found: list[Record], wanted: Selection) -> list[Record]:
    return found if wanted.oldest else found[::-1]
