"""The task that keeps the machines of a system within its real storage."""

import contextlib
import functools
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Final, Protocol

import trio

from retinue.cp.death import Cause, Trouble
from retinue.cp.host.interface import PagingRefused
from retinue.cp.pager.admission import Admission, Room
from retinue.cp.pager.census import Census, Key, Machine, Record
from retinue.cp.pager.growth import Growth
from retinue.cp.pager.hibernation import Hibernation
from retinue.cp.pager.overcommit import Overcommit, Step, victim
from retinue.cp.pager.pacing import AGAIN, Pacing
from retinue.cp.pager.policy import HIGH, LEAST, LOW, Figures, Take, plan, target
from retinue.cp.syslog import NOTICE, WARNING
from retinue.cp.watch import mebibytes
from retinue.cp.watchdog import BEATS
from retinue.pipes import PathError

if TYPE_CHECKING:
    from retinue.cp.directory import MachineEntry
    from retinue.cp.incarnation import Incarnation
    from retinue.cp.life import Life
    from retinue.cp.system import ControlProgram

__all__ = ["KEY", "Pager", "SegmentStore"]

EVERY: Final = 1.0
"""Seconds between two looks."""

SOONEST: Final = 0.02
"""The same while machines take storage faster than it can be looked at."""

SELDOM: Final = 4.0
"""The same while nobody runs and there is room."""

SHRINK: Final = 2.0
"""Seconds that a machine may take to give something back when it is asked to."""

GO_ON: Final = 3
"""Looks at which segments are put out, and that is not enough yet, before machines rest although more could be."""

AT_ONCE: Final = 8
"""Idle machines that are paged out at the same time."""

ITSELF: Final = 5.0
"""Seconds that a machine may take to page itself out on the control program's word."""

KEY: Final = "pager"
"""Under which it is kept who was ended."""


class SegmentStore(Protocol):
    """What the pager asks of :class:`retinue.cp.segments.Segments`."""

    def resident(self) -> dict[str, int]:
        """Bytes in real storage, by machine. May be called in a worker thread."""

    def granted(self) -> dict[str, int]:
        """Bytes of them in all, by machine."""

    async def evict(
        self, machine: str, most: int | None = None, still: Callable[[], AbstractContextManager[None]] = nullcontext
    ) -> int:
        """Put out at most so many bytes while the machine stands ``still``; returns how many it were."""

    async def lay_in(self, machine: str) -> None:
        """Have more ready to be put out, if there is need."""


class Pager:
    """Of one running system. It does nothing while the topology asks for nothing that it could do."""

    def __init__(self, cp: "ControlProgram", segments: SegmentStore | None = None) -> None:
        self._cp = cp
        self.segments = segments
        self.census = Census(cp.host)
        self.overcommit = Overcommit()
        self.admission = Admission(self._room, self._keep)
        self._pacing = Pacing(self.census, self.admission.sizes.get)
        self._hibernation = Hibernation(self.census, self._put_out)
        self._waited_until = float("-inf")  # somebody waits to be started
        self._looking = trio.Lock()
        self._changed = trio.Event()
        self._told: set[str] = set()
        self._stopped: set[Key] = set()  # processes that have ever stood still because of this
        self._total = 0  # bytes after the last pass
        self._passed = 0.0  # when it looked for it
        self._rate = 0.0  # by how many a second they grew before it
        self._growth = Growth()
        self._evicted = 0  # bytes of segments in the last pass
        self._short = 0  # passes after which there was not enough room

    # -- what is asked of it -------------------------------------------------------------------------------------------

    @property
    def limit(self) -> int | None:
        """Bytes of real storage that all machines together may have; None for no bound."""
        return self._cp.topology.system.storage

    @property
    def works(self) -> bool:
        """Whether the topology asks for anything that it does."""
        return self.limit is not None or any(self.idle_page_out(life) for life in self._cp.lives.values())

    def idle_page_out(self, life: "Life") -> float:
        """Seconds without running after which it is paged out; 0 for never."""
        own = life.entry.idle_page_out
        return (self._cp.topology.system.idle_page_out if own is None else own) or 0.0

    def redeclare(self) -> None:
        """The topology has changed."""
        self._changed.set()

    def _room(self) -> Room:
        return Room(self.census.total if self.census.looked else None, self.limit, self.overcommit.holds)

    def why_held(self, life: "Life") -> str:
        """Why a machine must not be started now; empty if it may be."""
        return self.admission.why_not(life.name, life.entry.reserve) if self.limit is not None else ""

    def why_not_again(self, life: "Life", entry: "MachineEntry") -> str:
        """Why a machine would not be ready again with this definition if it ended now, for want of real storage; empty
        if it would be, at once or in a moment. Its servers may be in want of it, too."""
        if self.limit is None:
            return ""
        # What it shares goes over to those that have it, too.
        mine = [record for (name, _), record in self.census.records.items() if name == life.name]
        freed = sum(record.storage.private + record.segments for record in mine)
        if why := self.admission.why_not(life.name, entry.reserve, freed):
            return why
        waited, seen = self._cp.supervision.servers_of(life, entry), {life.name}
        while waited:
            server = waited.pop()
            if server.ready or server.hopeless or server.name in seen:
                continue
            seen.add(server.name)
            if server.current is None and (why := self.admission.why_not(server.name, server.entry.reserve, freed)):
                return f"it needs {server.name}, which has no process: {why}"
            waited += self._cp.supervision.servers_of(server)
        return ""

    def admits(self, life: "Life", asked: float) -> bool:
        """Whether a machine may be born now, which wants to since ``asked``. If not, others rest if they can."""
        if self.limit is None:
            return True
        if self.why_held(life):
            self._pacing.want(life, self.admission.wants(life.name, life.entry.reserve))
            return False
        now, waited = trio.current_time(), self._pacing.waits(life)
        if life.entry.start != "on-demand" or self._pacing.admits(life, now, asked, self.limit):
            return True
        if not waited:
            self._changed.set()
        self._waited_until = now + EVERY
        return False

    def withdraw(self, life: "Life") -> None:
        """It does not wait to be born any more."""
        self._pacing.withdraw(life)

    def why_waits(self, life: "Life") -> str:
        """Why a machine that is wanted is not born yet; empty if it may be."""
        if (why := self.why_held(life)) or not self._pacing.waits(life):
            return why
        return f"it is started when others rest or have ended: {self._room().text}"

    def turn(self, life: "Life", asked: float) -> bool:
        """Whether it is the turn of a machine to run its program, for which it waits since ``asked``."""
        now = trio.current_time()
        if self.limit is None or self._pacing.turn(life, now, asked, self.limit):
            return True
        if now > self._waited_until:
            self._changed.set()
        self._waited_until = now + EVERY
        return False

    def rests(self, life: "Life", process: "Incarnation") -> None:
        """A process is about to end until its machine is needed again, which will then need as much as it has now."""
        if (record := self.census.records.get((process.name, process.generation))) is not None:
            self.admission.sizes[life.name] = record.storage.resident
        self._cp.nursery.start_soon(self._see_off, life, process)

    async def _see_off(self, life: "Life", process: "Incarnation") -> None:
        """What it had is free when it has ended, and not only when that is seen."""
        await life.wait_end_of(process)
        async with self._looking:
            self.census.records.pop((process.name, process.generation), None)
        self._hibernation.ended(process)
        self._let_go()

    def has_room(self, life: "Life") -> bool:
        """Whether there is room for a successor beside a machine, which will need as much as it does."""
        if self.limit is None:
            return True
        mine = sum(record.resident for (name, _), record in self.census.records.items() if name == life.name)
        return not self.overcommit.holds and self.census.total + mine <= self.limit

    # -- over the death of a control program ---------------------------------------------------------------------------

    def _keep(self) -> None:
        self._cp.host.keep(KEY, {"ended": self.admission.note(), "stopped": list(self._stopped)})

    def restore(self, note: Mapping[str, Any]) -> None:
        """Go on with what an earlier control program has noted. Figures are taken anew."""
        self._stopped = {(name, generation) for name, generation in note.get("stopped", ())}
        for key in self._stopped & self._cp.host.restored.residents.keys():
            self._cp.host.signal(*key, signal.SIGCONT)  # it may have been killed while that one stood still
        self.admission.restore(note.get("ended", {}))

    # -- the task ------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Look now and then, and do what has to be done."""
        while True:
            self._changed = trio.Event()
            if not self.works:
                self.overcommit = Overcommit()
                self._let_go()
                await self._changed.wait()
                continue
            try:
                await self.pass_()
            except OSError as exc:
                self._cannot("look at the machines", exc)
            with trio.move_on_after(self._wait()):
                await self._changed.wait()

    def _cannot(self, what: str, exc: OSError) -> None:
        """A host that is short of everything refuses descriptors, too: that must not end the control program."""
        self._tell_once(f"the pager could not {what}: {exc.strerror}")

    def _wait(self) -> float:
        """Seconds until the next look: few when the machines would have used up their room before it otherwise."""
        now, aim = trio.current_time(), self._aim()
        if aim is not None and self._rate > 0 and (soon := (aim - self._total) / self._rate / 2) < EVERY:
            return max(soon, SOONEST)
        if now <= self._waited_until:
            return AGAIN
        busy = any(figures.runs for figures in self.census.figures(now))
        return EVERY if busy or self.overcommit.step else SELDOM

    def _aim(self) -> int | None:
        """The limit, less what machines take while a pass goes on, which comes too late for it."""
        if self.limit is None:
            return None
        return min(self._growth.aim(self.limit), self.limit - self._pacing.wanted(self.limit))

    async def look(self) -> None:
        """Take the figures of every machine."""
        async with self._looking:
            self._stopped = {key for key in self._stopped if self._process(*key) is not None}
            machines = [self._machine(life, each) for life in self._cp.lives.values() for each in life.processes]
            await trio.to_thread.run_sync(self._look, trio.current_time(), machines, abandon_on_cancel=True)

    def _machine(self, life: "Life", process: "Incarnation") -> Machine:
        entry = life.entry
        return Machine(
            name=life.name,
            generation=process.generation,
            pid=process.pid or 0,
            native=entry.kind == "exec",
            reserve=entry.reserve,
            priority=entry.priority,
            idle_page_out=self.idle_page_out(life),
            beat=entry.watchdog / BEATS,
        )

    def _look(self, now: float, machines: list[Machine]) -> None:
        """In a thread."""
        segments = {} if self.segments is None else self.segments.resident()
        self.census.look(now, machines, segments)

    async def pass_(self) -> None:
        """Look, take what is too much, and go on as far as that does not help."""
        await self.look()
        now, limit = trio.current_time(), self.limit
        high = LOW if self.overcommit.holds else HIGH  # nobody is started before there is room down to there
        figures, grown = self.census.figures(now), self.census.total - self._total
        if self._passed:
            self._growth.note(now, grown)
        self._rate = max(grown / max(now - self._passed, SOONEST), self._rate / 2)
        segments, self._evicted = sum(record.segments for record in self.census.records.values()), 0
        taken = await self._take_all(plan(figures, self._aim(), self._cp.host.pressure(), high))
        total = self._total = max(self.census.total - taken, 0)
        # What they have grown by since is seen at the next look, and was in the time from this one on.
        self._passed = now
        if limit is not None:
            excess = total - target(total, limit - self._pacing.wanted(limit), high)
            self._short = self._short + 1 if excess > 0 else 0
            if taken >= LEAST and self._short <= GO_ON:
                excess -= max(segments - self._evicted, 0)  # which goes at the next looks
            await self._hibernation.make_room(self._cp.lives.values(), excess)
        step = self.overcommit.look(now, total, limit, more=taken >= LEAST or self._hibernation.goes_on)
        if step is not None and limit is not None:
            self._go_to(step, total, limit, figures)
        self._let_go()

    def _let_go(self) -> None:
        """Whoever waits for room, or for its turn, looks again."""
        for life in self._cp.lives.values():
            if life.current is None or not life.current.begun:
                life.notice()

    # -- taking pages --------------------------------------------------------------------------------------------------

    async def _take_all(self, takes: list[Take]) -> int:
        """Returns how many bytes were taken. Machines have to be told first, which takes a moment each."""
        total = 0
        places = trio.Semaphore(AT_ONCE)

        async def take_one(take: Take) -> None:
            nonlocal total
            taken = 0
            async with places:
                try:
                    taken = await self._take(take)
                except OSError as exc:  # not out of the nursery, where it would be one of a group
                    self._cannot(f"take pages from {take.name}", exc)
            total += taken

        async with trio.open_nursery() as nursery:
            for take in takes:
                nursery.start_soon(take_one, take)
        return total

    async def _take(self, take: Take) -> int:
        record = self.census.records.get((take.name, take.generation))
        process = self._process(take.name, take.generation)
        if record is None or process is None or process.leaving is not None:
            return 0  # it is about to give back all of it
        if take.why != "idle":
            taken = await self._take_from(record, take.most)
            if self.segments is not None and record.segments:
                self._cp.nursery.start_soon(self.segments.lay_in, take.name)
            return taken
        async with process.pulse.rest():
            taken = await self._take_from(record, take.most)
        if 2 * taken >= take.most:
            record.settle(self.census.cpu_time(record.machine))
        return taken

    async def _take_from(self, record: Record, most: int) -> int:
        taken = await self._put_out(record, most)
        if taken < most:
            taken += await self._page_out(record, most - taken)
        record.tried(trio.current_time(), most, taken)
        return taken

    async def _put_out(self, record: Record, most: int | None = None) -> int:
        """Segments of a machine, all if it is not said how much. Returns how many bytes are out."""
        if self.segments is None or not record.segments:
            return 0
        key = record.machine.name, record.machine.generation
        still = functools.partial(self._still, key)
        try:
            gone = await self.segments.evict(key[0], None if most is None else min(most, record.segments), still)
        except OSError as exc:
            self._cannot(f"put out segments of {key[0]}", exc)
            return 0
        self._evicted += gone
        return gone

    @contextmanager
    def _still(self, key: Key) -> Iterator[None]:
        """A process stands still for the length of the block, if it is this control program that lets it."""
        if key not in self._stopped:
            self._stopped.add(key)
            self._keep()  # the next control program has it go on, should this one be killed now
        self._cp.host.signal(*key, signal.SIGSTOP)
        try:
            yield
        finally:
            self._cp.host.signal(*key, signal.SIGCONT)

    async def _page_out(self, record: Record, most: int) -> int:
        machine, host = record.machine, self._cp.host
        try:
            return await trio.to_thread.run_sync(
                host.page_out, machine.name, machine.generation, most, abandon_on_cancel=True
            )
        except PagingRefused as exc:
            taken = await self._page_itself_out(machine, most)
            if not taken:
                self._tell_once(f"{machine.name} cannot be paged out: {exc}", of=str(exc))
            return taken

    async def _page_itself_out(self, machine: Machine, most: int) -> int:
        """By the machine's own runtime, which is told where its pages are. Returns how many bytes it were."""
        host = self._cp.host
        ranges = await trio.to_thread.run_sync(
            host.own_ranges, machine.name, machine.generation, most, abandon_on_cancel=True
        )
        process = self._process(machine.name, machine.generation)
        if not ranges or process is None:
            return 0
        with trio.move_on_after(ITSELF), contextlib.suppress(PathError):
            await process.ask("page-out", {"ranges": [list(each) for each in ranges]})
        key = machine.name, machine.generation
        found = await trio.to_thread.run_sync(host.measure, [key], abandon_on_cancel=True)
        before = self.census.records[key].storage.resident if key in self.census.records else 0
        return max(before - found[key].resident, 0) if key in found else 0

    def _process(self, name: str, generation: int) -> "Incarnation | None":
        life = self._cp.lives.get(name)
        found = [] if life is None else [each for each in life.processes if each.generation == generation]
        return found[0] if found else None

    def _tell_once(self, text: str, of: str = "") -> None:
        """``of``: what it is about, if it is the same for every machine."""
        if (about := of or text) not in self._told and len(self._told) < 1000:
            self._told.add(about)
            self._cp.syslog.write(WARNING, text)

    # -- when that is not enough ---------------------------------------------------------------------------------------

    def _go_to(self, step: Step, total: int, limit: int, figures: list[Figures]) -> None:
        have = f"{mebibytes(total)} of {mebibytes(limit)} are resident"
        why = f"real storage is over-committed: {have}, and nothing more can be paged out"
        match step:
            case Step.FITS:
                self._cp.syslog.write(NOTICE, f"there is room in real storage again: {have}")
            case Step.SHRINK:
                report = self._cp.host.paging_report()
                cure = "" if report.enforced or not report.why else f" ({report.mechanism}: {report.why})"
                self._cp.syslog.write(WARNING, f"{why}{cure}; the machines are asked to shrink")
                self._cp.nursery.start_soon(self._ask_to_shrink, total - limit, figures)
            case Step.HOLD:
                self._cp.syslog.write(WARNING, f"{why}; no machine is started before there is room")
            case Step.END:
                self._end_one(have, figures)

    async def _ask_to_shrink(self, wanted: int, figures: list[Figures]) -> None:
        """Who has little is left alone: to be asked costs it more than it could give back."""
        async with trio.open_nursery() as nursery:
            for each in figures:
                process = self._process(each.name, each.generation)
                if process is not None and process.ready and each.resident > max(LEAST, each.reserve):
                    nursery.start_soon(_shrink, process, min(wanted, each.resident))

    def _end_one(self, have: str, figures: list[Figures]) -> None:
        grown: dict[str, int] = {}
        for (name, _), record in self.census.records.items():
            grown[name] = grown.get(name, 0) + record.grown
        found = victim(figures, grown, self._cp.topology.system.syslog)
        process = None if found is None else self._process(found.name, found.generation)
        if found is None or process is None:
            return
        text = f"out of real storage: {have}, and nothing more can be paged out; "
        growth = f"grown by {mebibytes(found.grown)} lately"
        if found.wanted_by == found.name:
            text += f"it wanted more itself ({growth}), and nobody has a lower priority than {found.priority}"
        else:
            text += f"{found.wanted_by} wanted it ({growth}), and nobody has a lower priority than {found.priority}"
        self.admission.ended(found.name)
        process.kill(Trouble(Cause.NO_ROOM, text))


async def _shrink(process: "Incarnation", wanted: int) -> None:
    with trio.move_on_after(SHRINK), contextlib.suppress(PathError):
        await process.ask("shrink", {"bytes": wanted})
