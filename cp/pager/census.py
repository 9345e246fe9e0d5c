"""What each machine has of storage, and since when it has not run: the figures that the pager goes by.

A machine has run when it has used processor time, but for a trifle: its heartbeat uses some, too. Everything here may
be called in a worker thread, one call at a time.
"""

from collections.abc import Mapping, Sequence
from typing import Final

import attrs

from retinue.cp.host.interface import Host, Storage
from retinue.cp.pager.policy import Figures
from retinue.cp.rates import processor_seconds

__all__ = ["Census", "Key", "Machine", "Record"]

TRIFLE: Final = 0.0001
"""Processor seconds per second that are no work."""

BEAT: Final = 0.001
"""Processor seconds that one beat of a heart may cost: three times what it does."""

BURST: Final = 0.0015
"""Processor seconds at a time that are none: some heartbeats, and the answer to a question of the control program."""

FORGIVEN: Final = 30.0
"""Seconds after which it is tried again to take what could not be taken."""

BACK: Final = 1 << 20
"""Bytes that come back before a machine which has not run is paged out once more."""

REFUSED: Final = 300.0
"""The same where nothing could be taken."""

WORKING: Final = 10.0
"""Seconds between two looks at the working set of a machine: each walks through all its pages."""

AT_ONCE: Final = 8
"""Machines whose working set is looked at in one pass."""

GROWTH: Final = 30.0
"""Seconds over which it is told by how much a machine has grown."""

Key = tuple[str, int]
"""A process: the name of its machine, and its generation."""


@attrs.frozen
class Machine:
    """One process of a machine, as the pager is told of it. Sizes in bytes, times in seconds."""

    name: str
    generation: int
    pid: int
    native: bool
    """It may let other processes work for it."""
    reserve: int
    priority: int
    idle_page_out: float
    beat: float = 0.0
    """Seconds between two beats of its heart; 0: it has none."""


@attrs.define
class Record:
    """What is known of one process."""

    machine: Machine
    storage: Storage
    segments: int = 0
    ran: float = 0.0
    """When it ran last, on the clock of whoever asks."""
    working: int | None = None
    writes: int = 0
    """Pages that were taken from it, over its life."""
    whole: bool = False
    """It was paged out for being idle and has not run since."""
    _cpu: float | None = None
    _credit: float = BURST
    _looked: float = 0.0
    _worked: float = float("-inf")
    _floor: int = 0
    _floor_until: float = float("-inf")
    _left: int | None = None
    _grown: list[tuple[float, int]] = attrs.field(factory=list)

    @property
    def looked(self) -> float:
        """When it was looked at last."""
        return self._looked

    @property
    def resident(self) -> int:
        """Pages and segments."""
        return self.storage.resident + self.segments

    def use(self, now: float, cpu: float | None) -> None:
        """It has used so many seconds of processor, over its life; None: nobody knows."""
        used = 0.0 if cpu is None or self._cpu is None else max(cpu - self._cpu, 0.0)
        beat = self.machine.beat
        free = TRIFLE + (BEAT / beat if beat else 0.0)
        self._credit = min(self._credit + (now - self._looked) * free, BURST) - used
        self._cpu, self._looked = cpu, now
        # Who was paged out whole has no heartbeat: whatever it uses is work.
        if self._credit < 0 or cpu is None or (self.whole and used > 0):
            self.ran, self._credit, self.whole = now, 0.0, False

    def pardon(self, before: float | None, after: float | None) -> None:
        """What it has used between the two was the answer to a question of the control program, and no work."""
        if self._cpu is not None and before is not None and after is not None:
            self._cpu += max(after - before, 0.0)

    def settle(self, cpu: float | None) -> None:
        """It was paged out whole, and what it has used until now was for that."""
        self._cpu, self._credit, self.whole, self._left = cpu, BURST, True, None

    def return_(self) -> None:
        """Its pages may have come back though it has not run: the paging device is gone, or somebody has read them."""
        has = self.storage.private + self.segments
        if not self.whole:
            return
        if self._left is None:
            self._left = has
        elif has > self._left + BACK:
            self.whole = False

    def grow(self, now: float, before: int) -> None:
        """It had so much at the last look."""
        self._grown = [(when, size) for when, size in self._grown if now - when < GROWTH]
        if self.resident > before:
            self._grown.append((now, self.resident - before))

    @property
    def grown(self) -> int:
        """Bytes by which it has grown lately."""
        return sum(size for _, size in self._grown)

    def tried(self, now: float, most: int, taken: int) -> None:
        """It was tried to take so much, and so much was: what is left of it stays for a while."""
        self.writes += -(-taken // 4096)
        if taken < most:
            # Where nothing at all can be taken it will not be otherwise soon, and to try disturbs the machine.
            until = now + (FORGIVEN if taken else REFUSED)
            # Segments can always be put out, though they may come back meanwhile.
            floor = min(self.resident - taken, self.storage.resident)
            self._floor, self._floor_until = max(floor, 0), until

    def figures(self, now: float) -> Figures:
        """For the policy."""
        machine = self.machine
        return Figures(
            name=machine.name,
            generation=machine.generation,
            resident=self.resident,
            idle=max(now - self.ran, 0.0),
            reserve=machine.reserve,
            priority=machine.priority,
            idle_page_out=machine.idle_page_out,
            working=self.working or 0,
            floor=self._floor if now < self._floor_until else 0,
            whole=self.whole,
        )


class Census:
    """Of all machines of a system that have a process."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self.records: dict[Key, Record] = {}
        self.looked = False

    @property
    def total(self) -> int:
        """Bytes of real storage that all of them had when they were last looked at."""
        return sum(record.resident for record in list(self.records.values()))

    def look(self, now: float, machines: Sequence[Machine], segments: Mapping[str, int]) -> None:
        """Look at all of them, and at the working set of some. ``segments``: bytes in real storage, by machine."""
        keys = [(machine.name, machine.generation) for machine in machines]
        measured = self._host.measure(keys) if keys else {}
        counted: set[str] = set()
        for machine in sorted(machines, key=lambda each: -each.generation):
            key = machine.name, machine.generation
            if (storage := measured.get(key)) is None:
                continue
            record = self.records.get(key)
            before = 0 if record is None else record.resident
            if record is None:
                record = self.records[key] = Record(machine, storage, ran=now)
            record.machine, record.storage = machine, storage
            # Of two generations the newer one is told to have them.
            record.segments = 0 if machine.name in counted else segments.get(machine.name, 0)
            counted.add(machine.name)
            record.use(now, self.cpu_time(machine))
            record.return_()
            record.grow(now, before)
        for key in self.records.keys() - measured.keys():
            del self.records[key]
        self.looked = True
        self._look_at_work(now)

    def cpu_time(self, machine: Machine) -> float | None:
        """Seconds of processor that it has used; of a native program with all its processes."""
        if machine.native and (used := processor_seconds(machine.pid)) is not None:
            return used
        return self._host.cpu_time(machine.name, machine.generation)

    def _look_at_work(self, now: float) -> None:
        """The working set is what was used between two looks; of who has not run there is nothing new to know."""
        due = [
            record
            for record in self.records.values()
            if now - record._worked >= WORKING and (record.ran > record._worked or record.working is None)
        ]
        for record in sorted(due, key=lambda record: record._worked)[:AT_ONCE]:
            record._worked = now
            found = self._host.working_set(record.machine.name, record.machine.generation)
            if found is not None:
                record.working = found

    def figures(self, now: float) -> list[Figures]:
        """For the policy."""
        return [record.figures(now) for record in self.records.values()]
