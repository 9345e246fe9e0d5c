"""Taking pages of machines out of real storage: by what means this host can do it, the best there is.

From outside by ``process_madvise``; from outside by the memory cgroup of the machine; by the machine itself, which is
told where its pages are (:mod:`retinue.svm.paging`); or not at all. All but the last need swap.

What is paged out stays in the host's swap cache as well until the host needs the room for something else: it is free
for others, and still fast to come back.
"""

import os
import re
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

import attrs

from retinue.cp.host import libc
from retinue.cp.host.cgroups import Group, Groups
from retinue.cp.host.errors import PagingRefused
from retinue.cp.host.figures import Figures, family, look
from retinue.cp.host.interface import Limit
from retinue.cp.host.kernel_files import read
from retinue.cp.host.ranges import Range, put_out, ranges
from retinue.cp.host.swap import Volume, VolumeFailed

__all__ = ["ITSELF", "NONE", "Paging", "pressure", "swap_free"]

ITSELF: Final = "the machine itself, on the control program's word"
NONE: Final = "segments only"

_FROM_OUTSIDE: Final = "process_madvise"
_RIGHT: Final = "CAP_SYS_NICE"
_CAP_SYS_NICE: Final = 23
_ROUNDS: Final = 64
"""Times that pages are looked for until enough have gone: those that others share stay where they are."""

_MOST_RANGES: Final = 4096
"""That a machine is told at once: they travel in one message."""

_NO_SCAN: Final = "the kernel cannot tell where pages are (before Linux 6.7)"

Key = tuple[str, int]


@attrs.frozen
class _Means:
    """What can be done on this host at this moment, and what is in the way of something better."""

    name: str
    why: str = ""
    cure: str = ""


class Paging:
    """Of the machines of one system. Every method may be called in a thread."""

    def __init__(
        self,
        pid_of: Callable[[Key], int],
        group_of: Callable[[Key], Group | None],
        groups: Groups | None,
        figures: Figures,
    ) -> None:
        """``pid_of`` tells the process of a machine of a generation, 0 if it has none; ``group_of`` its group."""
        self._pid_of = pid_of
        self._group_of = group_of
        self._groups = groups
        self._figures = figures
        self._hands: dict[int, int] = {}
        self._lock = threading.Lock()
        self._volume: Volume | None = None

    def page_out(self, key: Key, most: int | None) -> int:
        """See Host.page_out."""
        if not (pid := self._pid_of(key)):
            raise PagingRefused(f"{key[0]} does not run")
        means = self._means()
        group = self._group_of(key)
        with self._lock:
            pids = family(pid)
            before = _resident(pids)
            try:
                if means.name == _FROM_OUTSIDE:
                    for one in pids:
                        left = None if most is None else most - (before - _resident(pids))
                        if left is None or left > 0:
                            with suppress(ProcessLookupError, FileNotFoundError):  # it has ended
                                self._put_out(one, left)
                elif means.name in (NONE, ITSELF) or group is None:
                    raise PagingRefused(means.why or "it has no control group")
                elif why := group.reclaim(most if most is not None else before):
                    raise PagingRefused(why)
            except OSError as error:
                raise PagingRefused(f"{means.name}: {error.strerror}") from error
            finally:
                self._figures.changed(pids)
            return max(0, before - _resident(pids))

    def _put_out(self, pid: int, most: int | None) -> None:
        if most is None:
            put_out(pid, ranges(pid))
            return
        # Where it was left last time: so that it is not always the same pages.
        begin = hand = self._hands.pop(pid, 0)
        before, wrapped = _resident((pid,)), False
        for _ in range(_ROUNDS):
            left = most - (before - _resident((pid,)))
            if left <= 0:
                break
            where = ranges(pid, hand, left)
            if wrapped:
                where = [each for each in where if each[0] < begin]
            if where:
                put_out(pid, where)
                hand = where[-1][1]
            elif wrapped or not begin:
                break
            else:
                hand, wrapped = 0, True
        if len(self._hands) > 4096:
            self._hands.clear()
        self._hands[pid] = hand

    def own_ranges(self, key: Key, most: int | None) -> list[Range]:
        """See Host.own_ranges."""
        if not (pid := self._pid_of(key)) or not swap_free():
            return []
        try:
            begin = self._hands.pop(pid, 0) if most is not None else 0
            where = ranges(pid, begin, most) or ranges(pid, 0, most)
        except OSError:
            return []
        finally:
            self._figures.changed((pid,))
        del where[_MOST_RANGES:]
        if where and most is not None:
            self._hands[pid] = where[-1][1]
        return where

    def open_volume(self, path: str, size: int, *, adopt: bool) -> str:
        """See Host.open_volume; ``adopt`` says that an earlier control program may have opened it."""
        if os.geteuid() != 0:
            return "only root can have swap: the volume is a place for segments, and nothing else is paged out to it"
        volume = Volume(path, size)
        try:
            volume.open(adopt=adopt)
        except VolumeFailed as error:
            return str(error)
        self._volume = volume
        return ""

    def close_volume(self) -> None:
        """No volume any more. Where that fails the guard goes on (:mod:`retinue.cp.host.swap`)."""
        if self._volume is not None:
            with suppress(VolumeFailed):
                self._volume.close()

    def _means(self) -> _Means:
        if not swap_free():
            why = "there is no swap" if not _swap_total() else "the swap is full"
            cure = '[system] paging = { volume = "page.img", size = "1G" }, as root; or swap of the host'
            return _Means(NONE, why, cure)
        cannot = _lacks_scan()
        if not (why := _lacks_right() or cannot):
            return _Means(_FROM_OUTSIDE)
        right = f"run it as root, or with {_RIGHT} (systemd: AmbientCapabilities={_RIGHT})"
        cure = "a kernel from 6.7 on" if cannot else right
        if self._groups is not None and (version := self._groups.reclaims):
            return _Means(f"memory cgroup (version {version})", f"process_madvise: {why}", cure)
        if cannot:
            return _Means(NONE, f"{cannot}; no memory cgroup that can be reclaimed", cure)
        return _Means(ITSELF, f"process_madvise: {why}; no memory cgroup that can be reclaimed", cure)

    def report(self) -> Limit:
        """See Host.paging_report."""
        means = self._means()
        return Limit("paging", means.name, means.name not in (NONE, ITSELF), means.why, means.cure)


def _resident(pids: Sequence[int]) -> int:
    return sum(found.resident for pid in pids if (found := look(pid)) is not None)


def _lacks_right() -> str:
    """Why this process may not page out others; empty if it may."""
    if not libc.permitted_capabilities() >> _CAP_SYS_NICE & 1:
        return f"it needs {_RIGHT}"
    if read("/proc/self/uid_map").split() != ["0", "0", "4294967295"]:
        return f"it needs {_RIGHT} in the first user namespace"
    return ""


def _lacks_scan() -> str:
    """Why this kernel cannot tell where pages are; empty if it can."""
    try:
        ranges(os.getpid(), most=1)
    except PermissionError:  # this process is not dumpable, and not root's: but machines are
        numbers = [int(number) for number in re.findall(r"[0-9]+", os.uname().release)[:2]]
        return "" if numbers >= [6, 7] else _NO_SCAN
    except OSError:
        return _NO_SCAN
    return ""


def swap_free() -> int:
    """Bytes of the host's swap that are free."""
    return _meminfo("SwapFree")


def _swap_total() -> int:
    return _meminfo("SwapTotal")


def _meminfo(name: str) -> int:
    for line in read("/proc/meminfo").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return 0


def pressure() -> float | None:
    """See Host.pressure."""
    for line in read("/proc/pressure/memory").splitlines():
        words = dict(word.partition("=")[::2] for word in line.split()[1:])
        if line.startswith("some ") and "avg10" in words:
            return float(words["avg10"]) / 100
    return None
