"""The watch: limits that the kernel does not keep by itself are looked at, and who is over one is ended.

Storage on a host without control groups, and disks with a size, which are folders. Whoever has not run since the last
look has not changed anything, so an idle machine costs one read a second.
"""

import contextlib
import functools
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, Literal, NoReturn

import attrs
import trio

from retinue.cp.directory import MachineEntry
from retinue.cp.host import measure
from retinue.cp.host.interface import Host, Limit, LimitFailed
from retinue.cp.outfit import Outfit
from retinue.cp.segments import Segments
from retinue.cp.syslog import NOTICE, WARNING, Syslog

if TYPE_CHECKING:
    from retinue.cp.life import Life

__all__ = ["EVERY", "Watch", "mebibytes"]

# Seconds between two looks at those that run.
EVERY: Final = 1.0
# A disk is not looked at again before this many times as long as the last look at it took: a twentieth of one processor
# is what the watch may have for it.
REST: Final = 20

MIB: Final = 1 << 20


def mebibytes(size: int) -> str:
    """``"64 MiB"`` for what is whole, ``"120.3 MiB"`` for what is not."""
    return f"{size // MIB} MiB" if size % MIB == 0 else f"{size / MIB:.1f} MiB"


@attrs.frozen
class Sized:
    """A disk with a size that a machine may write to; ``name`` is what its owner calls it."""

    owner: str
    disk: str
    folder: str
    size: int
    temporary: bool

    def named(self, machine: str) -> str:
        """In words to that machine."""
        return self.disk if machine == self.owner else f"{self.owner}.{self.disk}"

    def full(self, machine: str, used: int) -> str:
        """The cause of its end."""
        return f"disk {self.named(machine)} is full: {used / MIB:.1f} MiB of {mebibytes(self.size)}"


@attrs.define
class _Look:
    """What is known of one generation of a machine."""

    generation: int
    clock: measure.Clock
    family: list[bytes] = attrs.field(factory=list)
    """Of a native program: what it and its processes had used when it was last looked at."""
    peak: int = 0
    disks_after: float = 0.0
    """Its disks were looked at, and are not again before that time."""
    behind: bool = False
    """It has run since its disks were looked at."""
    written: int = 0
    """Bytes it had written to files when its disks were looked at."""


@attrs.frozen
class _Found:
    """That a machine is over a limit."""

    life: "Life"
    generation: int
    cause: str


class Watch:
    """Of one running system."""

    def __init__(
        self,
        lives: Mapping[str, "Life"],
        outfit: Outfit,
        host: Host,
        syslog: Syslog,
        segments: Segments,
    ) -> None:
        self._lives = lives
        self._segments = segments
        self._outfit = outfit
        self._host = host
        self._syslog = syslog
        self._looks: dict[str, _Look] = {}
        self._told: set[tuple[str, ...]] = set()

    @functools.cached_property
    def _limits(self) -> dict[str, Limit]:
        return {limit.limit: limit for limit in self._host.limits_report()}

    # -- what is not enforced ------------------------------------------------------------------------------------------

    def tell(self) -> None:
        """One record for each limit that the topology asks for and the kernel does not keep."""
        for limit in self._limits.values():
            if not limit.enforced and (about := self._asked(limit.limit)):
                # A disk is watched everywhere: nothing is wrong with this host.
                severity = NOTICE if limit.limit == "disk" else WARNING
                self._syslog.write(severity, _sentence(limit, about))

    def _asked(self, limit: str) -> str:
        entries = [life.entry for life in self._lives.values()]
        match limit:
            case "share":
                names = [entry.name for entry in entries if entry.share != 100]
            case "cpu":
                names = [entry.name for entry in entries if entry.cpu]
            case "disk":
                names = [entry.name for entry in entries if any(d.size and not d.temporary for d in entry.disks)]
            case "temporary disk":
                names = [entry.name for entry in entries if any(disk.temporary for disk in entry.disks)]
            case _:
                return "every machine"
        return ", ".join(names)

    def failed(self, event: LimitFailed) -> None:
        """One record for each limit of a machine that could not be set."""
        if (event.machine, event.limit) not in self._told:
            self._told.add((event.machine, event.limit))
            text = f"{event.machine} runs without the limit {event.limit}: {event.why}"
            self._syslog.write(WARNING, text, fields={"of": event.machine, "limit": event.limit})

    # -- disks before a start -----------------------------------------------------------------------------------------

    async def full(self, entry: MachineEntry) -> str | None:
        """Why a machine must not be started: a disk that it writes to is over its size; and what to do about it."""
        for disk in self._sized(entry):
            if disk.temporary:
                continue  # it is emptied now
            with contextlib.suppress(OSError):
                found = await trio.to_thread.run_sync(measure.folder_size, disk.folder, abandon_on_cancel=True)
                if found.size > disk.size:
                    cure = f"remove files in {disk.folder}, or raise the size of disks.{disk.disk} of {disk.owner}"
                    return f"{disk.full(entry.name, found.size)}; {cure}"
        return None

    def _sized(self, entry: MachineEntry) -> list[Sized]:
        own = [(entry.name, disk) for disk in entry.disks]
        linked = [
            (link.machine, disk)
            for link in entry.links
            if link.mode == "rw"
            for disk in self._lives[link.machine].entry.disks
            if disk.name == link.disk
        ]
        mounted = self._limits["temporary disk"].enforced
        return [
            Sized(owner, disk.name, self._outfit.disks.folder(owner, disk.name), disk.size, disk.temporary)
            for owner, disk in [*own, *linked]
            if disk.size and not (disk.temporary and mounted)
        ]

    # -- while they run ----------------------------------------------------------------------------------------------

    @property
    def _storage(self) -> Literal["kept", "charged", "measured"]:
        """By the kernel; counted by the kernel, and compared here; measured here."""
        limit = self._limits["storage"]
        if not limit.enforced:
            return "measured"
        return "charged" if limit.why else "kept"

    async def run(self) -> NoReturn:
        """Task: look, once a second."""
        how = self._storage
        while True:
            await trio.sleep(EVERY)
            running = [life for life in self._lives.values() if life.pid and (how != "kept" or self._sized(life.entry))]
            for name in self._looks.keys() - {life.name for life in running}:
                self._looks.pop(name).clock.close()
            active = [life for life in running if self._runs(life)]
            if active:
                # In a thread: to look at every page of a large machine takes a while.
                for found in await trio.to_thread.run_sync(self._measure, active, how, abandon_on_cancel=True):
                    if found.life.pid and found.life.generation == found.generation:
                        found.life.overrun(found.cause)

    def _runs(self, life: "Life") -> bool:
        """Whether it has run since the last look, or has disks that must be looked at because it had."""
        assert life.pid is not None
        look = self._looks.get(life.name)
        if look is None or look.generation != life.generation:
            if look is not None:
                look.clock.close()
                del self._looks[life.name]
            try:
                look = self._looks[life.name] = _Look(life.generation, measure.Clock(life.pid))
            except OSError:
                return False  # its end is on its way here
        try:
            moved = look.clock.moved()
        except OSError:
            return False
        if life.entry.kind == "exec":  # it may let others work
            before, look.family = look.family, measure.activity(measure.processes(life.pid))
            moved = look.family != before
        look.behind = look.behind or moved
        return moved or (look.behind and time.monotonic() >= look.disks_after)

    def _measure(self, lives: list["Life"], how: str) -> list[_Found]:
        """In a thread: those that are over a limit."""
        found = []
        full: dict[Sized, int] = {}
        writers: dict[Sized, list[tuple[bool, _Found]]] = {}
        for life in lives:
            look, pid = self._looks.get(life.name), life.pid
            if look is None or not pid:
                continue
            pids = measure.processes(pid) if life.entry.kind == "exec" else [pid]
            if cause := self._over_storage(life, look, pids, how):
                found.append(_Found(life, look.generation, cause))
            elif time.monotonic() >= look.disks_after and (disks := self._sized(life.entry)):
                wrote = self._look_at_disks(look, pids, disks, full)
                for disk in disks:
                    if disk in full:
                        text = disk.full(life.name, full[disk])
                        writers.setdefault(disk, []).append((wrote, _Found(life, look.generation, text)))
        for candidates in writers.values():
            # Not everybody who may write to it has; but space can be taken without writing, by fallocate(2).
            nobody = not any(wrote for wrote, _ in candidates)
            found += [each for wrote, each in candidates if wrote or nobody]
        return found

    def _over_storage(self, life: "Life", look: _Look, pids: list[int], how: str) -> str | None:
        if how == "kept":
            return None
        if how == "measured":
            used = measure.storage(pids, self._segments.files(life.name))
        else:
            used = self._host.usage(life.name, look.generation)
            if used > life.entry.storage:  # of its segments the kernel takes back what it needs
                used -= self._segments.resident().get(life.name, 0)
        look.peak = max(look.peak, used)
        if used <= life.entry.storage:
            return None
        limit = mebibytes(life.entry.storage)
        return f"out of storage: it used {used / MIB:.1f} MiB of {limit} (peak {look.peak / MIB:.1f} MiB)"

    def _look_at_disks(self, look: _Look, pids: list[int], disks: list[Sized], full: dict[Sized, int]) -> bool:
        """Put those that are over their size into ``full``. Returns whether the machine has written anything."""
        begun = time.monotonic()
        before, look.written = look.written, measure.written(pids)
        look.behind = False
        for disk in disks:
            with contextlib.suppress(OSError):
                found = measure.folder_size(disk.folder, pids)
                if not found.whole and ("whole", disk.folder) not in self._told:
                    self._told.add(("whole", disk.folder))
                    why = "it has too many files, or folders that are too deep or closed"
                    text = f"disk {disk.owner}.{disk.disk} is not counted whole: {why}"
                    trio.from_thread.run_sync(self._syslog.write, WARNING, text)
                if found.size > disk.size:
                    full[disk] = found.size
        now = time.monotonic()
        look.disks_after = now + REST * (now - begun)
        return look.written > before


def _sentence(limit: Limit, about: str) -> str:
    what = {"disk": "the size of disks", "temporary disk": "the size of temporary disks"}.get(limit.limit, limit.limit)
    kept = "is not enforced" if limit.mechanism == "none" else f"is not enforced but {limit.mechanism}"
    why = f": {limit.why}" if limit.why else ""
    return f"{what} ({about}) {kept}{why}" + (f"; to have it: {limit.cure}" if limit.cure else "")
