"""Machines that start on demand rest before their time when real storage is wanted and nothing more can be paged out.

Only who is idle rests: no message of it is in flight or waits, none has passed for a moment, it has no byte stream, it
has used no processor, and it has answered somebody since it was started, or has had a fair time for it. So whoever is
called gets its answer, however short storage is, and of two machines with room for one each answers before it rests.

They rest in the order in which pages are taken: the oldest-idle first, of equals the one that counts less, then the
larger; and who has something reserved after all others.
"""

import contextlib
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
"""Seconds that all questions of one pass may take: a machine that is idle needs milliseconds for its answer."""

AT_ONCE: Final = 8
"""Machines that are asked, and rest, at the same time."""

SOON: Final = 0.1
"""Seconds after which the next ones are asked although not all have answered."""

LEAVES: Final = 5.0
"""Seconds for which one that is ending counts as good as gone; from then on others rest instead."""


@attrs.define
class _Known:
    """What a process has said."""

    counts: tuple[int, ...] | None
    """Messages that have passed; None while some have no answer."""
    since: float
    """When it has said so first."""
    used: float
    """When it was used last, as far as can be told."""
    answered: bool
    """It has had a message, and had answered all of them."""
    mute: bool = False
    """It did not say anything in time: others are asked before it."""

    def quiet_for(self, now: float) -> float:
        """Seconds for which nothing has passed, for all that is known."""
        return now - self.since


@attrs.frozen
class _Candidate:
    life: "Life"
    process: "Incarnation"
    record: Record
    used: float
    mute: bool

    @property
    def key(self) -> Key:
        return self.process.name, self.process.generation

    @property
    def gain(self) -> int:
        """What is free when it is gone."""
        return self.record.storage.private + self.record.segments

    @property
    def place(self) -> tuple[bool, bool, int, int, int, str]:
        entry = self.life.entry
        return self.mute, entry.reserve > 0, math.floor(self.used), entry.priority, -self.gain, entry.name


class Hibernation:
    """Of one system. ``put_out`` puts the segments of a process out of real storage. Sizes in bytes."""

    def __init__(self, census: Census, put_out: Callable[[Record], Awaitable[Any]]) -> None:
        self._census = census
        self._put_out = put_out
        self._known: dict[Key, _Known] = {}
        self._leaving: dict[Key, tuple[int, float]] = {}  # what they have, and until when it counts as free
        self._wanted = 0
        self._until = 0.0  # when the questions of this pass must be answered
        self.pending = False
        """Somebody is idle who may rest in a moment."""

    @property
    def goes_on(self) -> bool:
        """Somebody is about to rest: then nothing is worse yet."""
        return self.pending or self._coming > 0

    @property
    def _coming(self) -> int:
        """What is free in a moment."""
        now = trio.current_time()
        return sum(gain for gain, until in self._leaving.values() if now < until)

    async def make_room(self, lives: Iterable["Life"], wanted: int) -> None:
        """Let machines rest until so many bytes are free, or will be when they have ended."""
        self.pending = False
        if wanted <= 0:
            return
        candidates = sorted(self._candidates(lives), key=lambda each: each.place)
        self._known = {each.key: self._known[each.key] for each in candidates if each.key in self._known}
        self._wanted, self._until = wanted - self._coming, trio.current_time() + PATIENCE
        async with trio.open_nursery() as nursery:
            while candidates and self._wanted > 0:
                number = self._enough(candidates)
                with trio.move_on_after(SOON):
                    await self._try_all(nursery, candidates[:number])
                del candidates[:number]
        async with trio.open_nursery() as nursery:
            for each in candidates[:AHEAD]:
                if each.key not in self._known:
                    nursery.start_soon(self._is_idle, each)  # from now on it is known since when

    def _enough(self, candidates: list[_Candidate]) -> int:
        """How many of them have to rest so that there is room, if all can; those are asked at the same time."""
        left = self._wanted
        for number, each in enumerate(candidates[:AT_ONCE], 1):
            left -= each.gain
            if left <= 0:
                return number
        return min(len(candidates), AT_ONCE)

    async def _try_all(self, nursery: trio.Nursery, candidates: list[_Candidate]) -> None:
        """Let those rest who are idle, in tasks of the nursery. Returns when it is known of all."""
        left, known = len(candidates), trio.Event()

        async def try_one(each: _Candidate) -> None:
            nonlocal left
            if await self._is_idle(each) and self._wanted > 0:
                self._wanted -= each.gain
                if not await self._rests(each):
                    self._wanted += each.gain
            left -= 1
            if not left:
                known.set()

        for each in candidates:
            nursery.start_soon(try_one, each)
        await known.wait()

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
            candidate = _Candidate(life, process, record, used, known is not None and known.mute)
            if candidate.gain >= LEAST:
                yield candidate

    async def _is_idle(self, candidate: _Candidate) -> bool:
        """Whether nothing has passed for a moment, and what it was started for is done."""
        now, known = trio.current_time(), self._known.get(candidate.key)
        works = now - candidate.record.ran < QUIET
        if known is None or (not works and (known.counts is None or known.quiet_for(now) >= QUIET)):
            said = await self._ask(candidate)
            if said is None:
                return False
            now = said.since
            if known is None or known.counts != said.counts:
                said.used = candidate.used if known is None else now
                known = self._known[candidate.key] = said
            known.mute = said.mute
        if known.counts is None or not (known.answered or candidate.process.ready_for >= FAIR):
            return False
        if known.quiet_for(now) < QUIET:
            self.pending = True
            return False
        return not works

    async def _rests(self, candidate: _Candidate) -> bool:
        known = self._known[candidate.key]
        if candidate.record.segments:
            # Else they would stay in real storage without anybody who has them.
            await self._put_out(candidate.record)
            said = await self._ask(candidate)
            if said is None or said.counts != known.counts:
                return False
        # Nothing happens between the answer and this: whoever calls from here on finds that it rests.
        text = f"rests: real storage was wanted, and nothing has passed for {trio.current_time() - known.used:.1f} s"
        self._leaving[candidate.key] = candidate.gain, trio.current_time() + LEAVES
        if not candidate.life.rest(candidate.process, text):
            del self._leaving[candidate.key]
            return False
        return True

    async def _ask(self, candidate: _Candidate) -> _Known | None:
        """What it says; no counts if it has byte streams, too, or does not say. None: there is no time to ask it."""
        if trio.current_time() >= self._until:
            return None
        before = self._census.cpu_time(candidate.record.machine)
        found: Any = None
        with trio.move_on_at(self._until) as scope, contextlib.suppress(PathError):
            found = await candidate.process.ask("meters")
        candidate.record.pardon(before, self._census.cpu_time(candidate.record.machine))
        match found:
            case {"streams": 0}:
                counts = count_passed(found)
            case _:
                counts = None
        now = trio.current_time()
        return _Known(counts, now, now, _has_served(found), mute=scope.cancelled_caught)


def _has_served(untrusted: Any) -> bool:
    """Whether anybody has said anything to it."""
    match untrusted:
        case {"serves": dict(serves)}:
            return any(isinstance(meter, dict) and meter.get("received") for meter in serves.values())
    return False
