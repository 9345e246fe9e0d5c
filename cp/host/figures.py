"""What machines have of storage: a pass over all of them now and then, for the pager and for people (proc(5)).

To know what a process has to itself the kernel looks at each of its pages (``smaps_rollup``, some 0.3 ms for a small
machine), and what it counts by itself costs twenty times less: page faults, and pages in real storage. So a pass looks
closely at who has changed by much since it was last looked at, and at the others in turn, as time allows. Who reads in
files all the time, such as its segments, is looked at closely now and then only while nothing else of it changes. Of
many that are new at once some are looked at in each pass, and the others are taken to be like those that are known.
"""

import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Final

import attrs

from retinue.cp.host.interface import Storage
from retinue.cp.host.kernel_files import read_now, sizes, write
from retinue.cp.host.measure import processes, rollup

__all__ = ["BUDGET", "Figures", "look"]

BUDGET: Final = 0.04
"""Seconds of a pass for those who have changed by little, or not at all."""

MUCH: Final = 64
"""Pages by which one may have changed before it is looked at in any case: 256 KiB."""

FIRST: Final = 64
"""Processes of a pass that are looked at closely for the first time: of 500 at once it would take a second."""

OFTEN: Final = 0.25
"""Seconds after a close look in which it is no reason for another one that pages of files came or went."""

_KEEP: Final = 2
"""Passes that figures of a machine are remembered without being asked for."""

_PAGE: Final = os.sysconf("SC_PAGE_SIZE")

Key = tuple[str, int]


@attrs.define
class _Process:
    """What is known of one process."""

    started: bytes
    counted: tuple[int, int]
    """Page faults and resident pages when it was looked at."""
    found: Storage
    looked: float
    passed: int = 0
    anonymous: int | None = None
    """Pages when it was looked at."""
    guessed: bool = False
    """It has not been looked at yet."""


@attrs.frozen
class _Counts:
    started: bytes
    faults: int
    major: int
    pages: int


class Figures:
    """Of the machines of one system. Every method may be called in a thread."""

    def __init__(self, pid_of: Callable[[Key], int]) -> None:
        """``pid_of`` tells the process of a machine of a generation, 0 if it has none."""
        self._pid_of = pid_of
        self._known: dict[int, _Process] = {}
        self._marked: set[int] = set()
        self._again: set[int] = set()
        self._passes = 0
        self._lock = threading.Lock()

    def measure(self, machines: Iterable[Key]) -> dict[Key, Storage]:
        """See Host.measure."""
        with self._lock:
            self._passes += 1
            families = {key: family(pid) for key in machines if (pid := self._pid_of(key))}
            everybody = [(pid, _counts(pid)) for pids in families.values() for pid in pids]
            counts = {pid: counted for pid, counted in everybody if counted is not None}
            self._look_at(counts)
            self._known = {pid: one for pid, one in self._known.items() if self._passes - one.passed < _KEEP}
            self._marked &= self._known.keys()
            sums = {key: self._sum(pids, counts) for key, pids in families.items()}
            return {key: found for key, found in sums.items() if found is not None}

    def _look_at(self, counts: dict[int, _Counts]) -> None:
        must: list[int] = []
        may: list[int] = []
        first: list[int] = []
        for pid, now in counts.items():
            known = self._known.get(pid)
            if known is None or known.guessed or known.started != now.started:
                (must if pid in self._again else first).append(pid)
                continue
            known.passed = self._passes
            changed = abs(now.faults - known.counted[0]) + abs(now.pages - known.counted[1])
            if changed > MUCH and not _only_files(pid, known):
                must.append(pid)
            elif changed <= MUCH:
                may.append(pid)
        self._again.clear()
        first.sort(key=lambda pid: pid not in self._known)  # who is a zombie is not known, and keeps nobody waiting
        for pid in must + first[:FIRST]:
            self._look(pid, counts[pid])
        self._guess({pid: counts[pid] for pid in first[FIRST:]})
        may.sort(key=lambda pid: self._known[pid].looked)
        until = time.monotonic() + BUDGET
        for pid in may:
            if time.monotonic() >= until:
                break
            self._look(pid, counts[pid])

    def _look(self, pid: int, now: _Counts) -> None:
        if (found := look(pid)) is None:
            self._known.pop(pid, None)
        else:
            counted = now.faults, now.pages
            looked = time.monotonic()
            self._known[pid] = _Process(now.started, counted, found, looked, self._passes, _anonymous(pid))

    def _guess(self, counts: dict[int, _Counts]) -> None:
        """From what the kernel counts by itself, where each page counts whole: in proportion to those that are known,
        or all of it where nobody is."""
        looked = [one for one in self._known.values() if not one.guessed and one.anonymous] if counts else []
        whole = sum(one.anonymous or 0 for one in looked) * _PAGE
        resident = sum(one.found.resident for one in looked) / whole if whole else 1.0
        private = sum(one.found.private for one in looked) / whole if whole else 1.0
        for pid, now in counts.items():
            self._known.pop(pid, None)
            with suppress(OSError, KeyError):
                status = sizes(f"/proc/{pid}/status")
                has = status[b"RssAnon"] + status[b"RssShmem"]
                found = Storage(int(has * resident), int(has * private), status.get(b"VmSwap", 0), 0)
                self._known[pid] = _Process(
                    now.started, (now.faults, now.pages), found, 0.0, self._passes, guessed=True
                )

    def _sum(self, pids: Sequence[int], counts: dict[int, _Counts]) -> Storage | None:
        all_of = [(self._known[pid].found, counts[pid].major) for pid in pids if pid in self._known and pid in counts]
        if not all_of:
            return None
        return Storage(
            resident=sum(found.resident for found, _ in all_of),
            private=sum(found.private for found, _ in all_of),
            paged=sum(found.paged for found, _ in all_of),
            reads=sum(major for _, major in all_of),
        )

    def changed(self, pids: Iterable[int]) -> None:
        """What is known of them is old: they were paged out."""
        with self._lock:
            for pid in pids:
                self._known.pop(pid, None)
                self._again.add(pid)

    def working_set(self, key: Key) -> int | None:
        """See Host.working_set."""
        pids = family(self._pid_of(key)) if self._pid_of(key) else ()
        total, asked_before = 0, True
        for pid in pids:
            with suppress(OSError):
                total += rollup(pid).get(b"Referenced", 0)
                write(f"/proc/{pid}/clear_refs", "1")
                with self._lock:
                    asked_before = asked_before and pid in self._marked
                    self._marked.add(pid)
                continue
            asked_before = False
        return total if pids and asked_before else None


def family(pid: int) -> Sequence[int]:
    """The processes of a machine: one, but for native programs."""
    # Whoever has any has them from its first thread (svm/child.py), which also adopts the orphans.
    try:
        return processes(pid) if read_now(f"/proc/{pid}/task/{pid}/children") else (pid,)
    except OSError:
        return (pid,)


def look(pid: int) -> Storage | None:
    """What one process has; ``reads`` is 0. None when it is gone or may not be looked at.

    Some 0.3 ms for a process of 20 MiB. Where only root may look closer (a process that is not dumpable), what it
    shares with others counts whole, and as its own.
    """
    with suppress(OSError):
        if found := rollup(pid):
            anonymous, shared = found.get(b"Pss_Anon", 0), found.get(b"Pss_Shmem", 0)
            resident = anonymous + shared
            # Files have to be taken off: changed pages of segments, and clean ones of code that nobody else runs.
            changed = max(0, found.get(b"Pss_Dirty", 0) - resident)
            clean = max(0, found.get(b"Private_Clean", 0) - max(0, found.get(b"Pss_File", 0) - changed))
            private = max(0, found.get(b"Private_Dirty", 0) - changed + clean)
            # At least two processes have a shared page: what is missing in the proportion is at least their part.
            private = min(resident, max(private, resident - found.get(b"Anonymous", 0) + found.get(b"Pss_Anon", 0)))
            paged, whole = found.get(b"SwapPss", 0), found.get(b"Swap", 0)
            if whole > paged:  # of shared memory nobody counts proportions
                paged += max(0, whole - sizes(f"/proc/{pid}/status").get(b"VmSwap", 0))
            return Storage(resident, private, paged, 0)
    with suppress(OSError):
        status = sizes(f"/proc/{pid}/status")
        if b"RssAnon" in status:
            resident = status[b"RssAnon"] + status.get(b"RssShmem", 0)
            return Storage(resident, resident, status.get(b"VmSwap", 0), 0)
    return None


def _only_files(pid: int, known: _Process) -> bool:
    """Whether a process that has just been looked at has changed by pages of files alone, as with a segment."""
    if time.monotonic() - known.looked >= OFTEN or known.anonymous is None:
        return False
    return (now := _anonymous(pid)) is not None and abs(now - known.anonymous) <= MUCH


def _anonymous(pid: int) -> int | None:
    """Pages that are of no file, shared memory among them; None for a process that is gone."""
    with suppress(OSError, KeyError):
        status = sizes(f"/proc/{pid}/status")
        return (status[b"RssAnon"] + status[b"RssShmem"]) // _PAGE
    return None


def _counts(pid: int) -> _Counts | None:
    """What the kernel counts by itself; None for a process that is gone."""
    try:
        fields = read_now(f"/proc/{pid}/stat").rpartition(b")")[2].split(maxsplit=23)
        minor, major = int(fields[7]), int(fields[9])
        return _Counts(fields[19], minor + major, major, int(fields[21]))
    except (OSError, IndexError):
        return None
