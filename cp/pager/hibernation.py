"""Machines that start on demand rest before their time when real storage is wanted and nothing more can be paged out.

Only who is idle rests: no message of it is in flight or waits, none has passed for a moment, it has no byte stream, it
has used no processor, and it has answered somebody since it was started, or has had a fair time for it. So whoever is
called gets its answer, however short storage is, and of two machines with room for one each answers before it rests.

They rest in the order in which pages are taken: the oldest-idle first, of equals the one that counts less, then the
larger; and who has something reserved after all others.
"""

import math
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Any, Final

import attrs
import trio

from retinue.cp.pager.census import Census, Key, Record
from retinue.cp.pager.policy import LEAST
from retinue.cp.rest import count_passed
from retinue.pipes import PathError

if TYPE_CHECKING:
    from retinue.cp.incarnation import Incarnation
    from retinue.cp.life import Life

__all__ = ["Hibernation"]

QUIET: Final = 0.5
"""Seconds for which no message has passed and no processor was used."""

FAIR: Final = 3.0
"""Seconds that a machine has, once it is ready, before it rests without having answered anything."""

AHEAD: Final = 3
"""Machines that are asked more than have to rest, so that it is known of the next ones since when nothing passes."""

PATIENCE: Final = 1.0
"""Seconds that a machine may take to say what has passed: one that is idle needs milliseconds."""


@attrs.define
class _Known:
    """What a process has said."""

    counts: tuple[int, ...] | None
    """Messages that have passed; None while some have no answer."""
    since: float
    """When it has said so first."""
    used: float
    """When it was used last, as far as can be told."""

    def quiet_for(self, now: float) -> float:
        """Seconds for which nothing has passed, for all that is known."""
        return now - self.since


@attrs.frozen
class _Candidate:
    life: "Life"
    process: "Incarnation"
    record: Record
    used: float

    @property
    def key(self) -> Key:
        return self.process.name, self.process.generation

    @property
    def gain(self) -> int:
        """What is free when it is gone."""
        return self.record.storage.private + self.record.segments

    @property
    def place(self) -> tuple[bool, int, int, int, str]:
        entry = self.life.entry
        return entry.reserve > 0, math.floor(self.used), entry.priority, -self.gain, entry.name


class Hibernation:
    """Of one system. ``put_out`` puts the segments of a process out of real storage. Sizes in bytes."""

    def __init__(self, census: Census, put_out: Callable[[Record], Awaitable[Any]]) -> None:
        self._census = census
        self._put_out = put_out
        self._known: dict[Key, _Known] = {}
        self._leaving: dict[Key, int] = {}
        self.pending = False
        """Somebody is idle who may rest in a moment."""

    @property
    def goes_on(self) -> bool:
        """Somebody is about to rest: then nothing is worse yet."""
        return self.pending or bool(self._leaving)

    async def make_room(self, lives: Iterable["Life"], wanted: int) -> None:
        """Let machines rest until so many bytes are free, or will be when they have ended."""
        self.pending = False
        if wanted <= 0:
            return
        candidates = sorted(self._candidates(lives), key=lambda each: each.place)
        self._known = {each.key: self._known[each.key] for each in candidates if each.key in self._known}
        wanted -= sum(self._leaving.values())
        ahead = AHEAD
        for each in candidates:
            if wanted > 0:
                if await self._is_idle(each) and await self._rests(each):
                    wanted -= each.gain
            elif ahead <= 0:
                break
            else:
                ahead -= 1
                if each.key not in self._known:
                    await self._is_idle(each)  # from now on it is known since when

    def ended(self, process: "Incarnation") -> None:
        """What it had is free."""
        self._leaving.pop((process.name, process.generation), None)

    def _candidates(self, lives: Iterable["Life"]) -> Iterable[_Candidate]:
        for life in lives:
            process = life.current
            if process is None or life.entry.start != "on-demand" or not life.may_rest(process):
                continue
            key = process.name, process.generation
            record = self._census.records.get(key)
            if record is None or key in self._leaving or process.pulse.asleep:
                continue
            used = max(process.ready_at or 0.0, record.ran)
            if (known := self._known.get(key)) is not None:
                used = max(used, known.used)
            candidate = _Candidate(life, process, record, used)
            if candidate.gain >= LEAST:
                yield candidate

    async def _is_idle(self, candidate: _Candidate) -> bool:
        """Whether nothing has passed for a moment, and what it was started for is done."""
        now, known = trio.current_time(), self._known.get(candidate.key)
        if known is None or known.counts is None or known.quiet_for(now) >= QUIET:
            counts = await self._ask(candidate)
            now = trio.current_time()
            if known is None or known.counts != counts:
                used = candidate.used if known is None else now
                known = self._known[candidate.key] = _Known(counts, now, used)
        if known.counts is None or not (any(known.counts) or candidate.process.ready_for >= FAIR):
            return False
        if known.quiet_for(now) < QUIET:
            self.pending = True
            return False
        return now - candidate.record.ran >= QUIET

    async def _rests(self, candidate: _Candidate) -> bool:
        known = self._known[candidate.key]
        if candidate.record.segments:
            # Else they would stay in real storage without anybody who has them.
            await self._put_out(candidate.record)
            if await self._ask(candidate) != known.counts:
                return False
        # Nothing happens between the answer and this: whoever calls from here on finds that it rests.
        text = f"rests: real storage was wanted, and nothing has passed for {trio.current_time() - known.used:.1f} s"
        self._leaving[candidate.key] = candidate.gain
        if not candidate.life.rest(candidate.process, text):
            del self._leaving[candidate.key]
            return False
        return True

    async def _ask(self, candidate: _Candidate) -> tuple[int, ...] | None:
        """What has passed; None while some has no answer, or it has byte streams, or it does not say."""
        before = self._census.cpu_time(candidate.record.machine)
        found: Any = None
        with trio.move_on_after(PATIENCE):
            try:
                found = await candidate.process.ask("meters")
            except PathError:
                return None
        candidate.record.pardon(before, self._census.cpu_time(candidate.record.machine))
        match found:
            case {"streams": 0}:
                return count_passed(found)
        return None
