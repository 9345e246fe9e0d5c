"""Control groups: what the kernel counts and bounds for each machine (cgroups(7)).

Version 1 and version 2 are used side by side, as this host has them: each controller is in one of the two. A running
system has one group below that of its control program, and in it each generation of a machine has one of its own::

    retinue-SHOP-4711-88123     system, pid of its owner, and when that was started (proc(5), starttime)
        HTTPD.1                 machine and generation

The owner is the nucleus, so that the groups outlive a control program, and the next one finds them.

Nothing outside that group is changed, with one exception: in version 2 a group has processes or divides among its
children, never both, so the system's own processes move to a child ``core`` for as long as it runs.
"""

import contextlib
import errno
import os
import re
import select
import signal
import time
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from retinue.cp.host.controllers import DELEGATE, Found, find
from retinue.cp.host.kernel_files import number, read, stat, table, write
from retinue.cp.host.seal.hygiene import TASKS

__all__ = ["Group", "Groups", "Used"]

PERIOD: Final = 100_000
"""Microseconds over which a cap is kept (sched-bwc in the kernel's documentation; the quota is at least 1,000)."""

EMPTY_SECONDS: Final = 2.0
"""How long processes that were killed may take to be gone at the end of the control program."""

DYING_SECONDS: Final = 0.2
"""How long groups of a dead system may be busy: its processes die, and are not listed any more a moment later."""

MOVE_TRIES: Final = 10

_NAME: Final = re.compile(r"retinue-.+-(\d+)-(\d+)")
_CORE: Final = "core"
_CORE_WEIGHT: Final = 1000
"""Of the nucleus, the control program and the saved systems, beside a machine's 100."""


class Used(NamedTuple):
    """What a group has counted."""

    peak: int
    """Bytes of real storage it has had at most, of every kind, swap included where that is counted; 0: unknown."""
    out_of_storage: bool
    """The kernel has killed a process of it at its limit."""


class Groups:
    """The groups of one running system.

    Making it makes the system's group for every controller that can be had, unless it is there, and removes empty
    groups of this user's systems whose owner is dead: it was killed, or they would not be there. :attr:`found` says
    what came of it; nothing is raised.

    :param owner: a process that lives as long as the system; the calling one if it is not given.
    """

    def __init__(self, system: str, found: Mapping[str, Found] | None = None, *, owner: int = 0) -> None:
        owner = owner or os.getpid()
        self._name = f"retinue-{system}-{owner}-{_started(owner)}"
        self.found = {name: self._outside(one) for name, one in (find() if found is None else found).items()}
        self._groups: set[Group] = set()
        second = [one for one in self.found.values() if one.version == 2]
        made = bool(second) and os.path.isdir(f"{self._folder(second[0])}/{_CORE}")
        # What was given on to the groups for the sake of an earlier control program is to be taken back by this one.
        self._divided = " ".join(f"-{one.controller}" for one in second) if made else ""
        for folder in {found.folder for found in self.found.values() if found.version}:
            _remove_dead(folder)
        self._make_second([found for found in self.found.values() if found.version == 2])
        for one in self.found.values():
            if one.version == 1:
                self._make_first(one)

    def _outside(self, found: Found) -> Found:
        """The group that the system was started in: a later control program is born in its child ``core``."""
        return found._replace(folder=found.folder.removesuffix(f"/{self._name}/{_CORE}"))

    def adopt(self) -> "dict[tuple[str, int], Group]":
        """The groups that are there, of machines of an earlier control program, by machine and generation."""
        names: set[str] = set()
        for folder in {self._folder(found) for found in self.found.values() if found.version}:
            with contextlib.suppress(OSError):
                names |= {entry.name for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False)}
        adopted = {}
        for machine, _, generation in (name.rpartition(".") for name in names):
            if machine and generation.isdecimal():
                adopted[machine, int(generation)] = self._group(machine, int(generation), there=True)
        return adopted

    def _group(self, machine: str, generation: int, *, there: bool) -> "Group":
        folders = {
            name: os.path.join(self._folder(found), f"{machine}.{generation}")
            for name, found in self.found.items()
            if found.version
        }
        if there:
            folders = {name: folder for name, folder in folders.items() if os.path.isdir(folder)}
        group = Group(folders, {name: self.found[name].version for name in folders})
        self._groups.add(group)
        return group

    def _folder(self, found: Found) -> str:
        return os.path.join(found.folder, self._name)

    def _make_first(self, found: Found) -> None:
        try:
            os.makedirs(self._folder(found), 0o755, exist_ok=True)
        except OSError as error:
            why = f"a group in {found.folder} cannot be made: {error.strerror}"
            self.found[found.controller] = Found(found.controller, 0, "", why, "ask whoever keeps the groups here")

    def _make_second(self, wanted: list[Found]) -> None:
        """Have the group of version 2 divide what is ``wanted`` among its children, and theirs again."""
        if not wanted:
            return
        own, folder = wanted[0].folder, self._folder(wanted[0])
        try:
            os.makedirs(folder, 0o755, exist_ok=True)
            self._divide(own, folder, [found.controller for found in wanted])
            write(f"{folder}/cgroup.subtree_control", " ".join(f"+{found.controller}" for found in wanted))
        except OSError as error:
            busy = error.errno == errno.EBUSY
            problem = "other processes than its own are in it" if busy else error.strerror
            for found in wanted:
                why = f"the group {own} cannot be divided: {problem}"
                self.found[found.controller] = Found(found.controller, 0, "", why, DELEGATE)
            self._undivide(own, folder)

    def _divide(self, own: str, folder: str, names: list[str]) -> None:
        lacking = [name for name in names if name not in read(f"{own}/cgroup.subtree_control").split()]
        if not lacking:
            return
        enable = " ".join(f"+{name}" for name in lacking)
        try:
            write(f"{own}/cgroup.subtree_control", enable)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            # It has processes. If they are all of this system, they can live in a child of it.
            self._divided = enable.replace("+", "-")
            self._move_core(own, folder)
            write(f"{own}/cgroup.subtree_control", enable)
            with contextlib.suppress(OSError):
                write(f"{folder}/{_CORE}/cpu.weight", str(_CORE_WEIGHT))

    def _move_core(self, own: str, folder: str) -> None:
        core = f"{folder}/{_CORE}"
        os.makedirs(core, 0o755, exist_ok=True)
        for _ in range(MOVE_TRIES):  # they may fork meanwhile
            inside = _pids(own)
            if not inside:
                return
            if inside - _family(inside):
                raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
            for pid in inside:
                with contextlib.suppress(ProcessLookupError):
                    write(f"{core}/cgroup.procs", str(pid))

    def _undivide(self, own: str, folder: str) -> None:
        """Everything back as it was. What cannot be goes with the group, whoever made that."""
        core = f"{folder}/{_CORE}"
        with contextlib.suppress(OSError):
            names = read(f"{folder}/cgroup.subtree_control").split()
            if names:
                write(f"{folder}/cgroup.subtree_control", " ".join(f"-{name}" for name in names))
            if self._divided:
                write(f"{own}/cgroup.subtree_control", self._divided)
        for pid in _pids(core):
            with contextlib.suppress(OSError):
                write(f"{own}/cgroup.procs", str(pid))
        for left in (core, folder):
            with contextlib.suppress(OSError):
                os.rmdir(left)

    def has(self, controller: str, file: str = "") -> bool:
        """Whether machines have groups of it, and in them a ``file`` with this name."""
        found = self.found.get(controller)
        if found is None or not found.version:
            return False
        # A group that divides has no files of what it divides, but the one that it is itself a part of has.
        return not file or os.path.exists(os.path.join(self._folder(found), file))

    @property
    def counts_swap(self) -> bool:
        """Whether the limit of storage is one of real storage and swap together."""
        return self.has("memory", "memory.memsw.limit_in_bytes")

    @property
    def reclaims(self) -> int:
        """The version of groups whose pages can be taken out of real storage by a word to the kernel; 0: none."""
        found = self.found.get("memory")
        version = 0 if found is None else found.version
        return version if self.has("memory", ("", "memory.force_empty", "memory.reclaim")[version]) else 0

    def make(
        self, machine: str, generation: int, *, storage: int, share: int, cpu: float, tasks: int = TASKS
    ) -> "Group":
        """The group of one generation of a machine, with its limits. What cannot be set is in its ``failed``."""
        group = self._group(machine, generation, there=False)
        group.limit(storage=storage, share=share, cpu=cpu, tasks=tasks)
        return group

    def remove(self, group: "Group") -> bool:
        """Remove a group. False if there are still processes in it, which are killed."""
        if group.remove():
            self._groups.discard(group)
            return True
        return False

    def close(self) -> None:
        """Kill whoever is left in the groups, and remove them all. Waits for the dead, but not for long."""
        give_up = time.monotonic() + EMPTY_SECONDS
        while left := [group for group in [*self._groups] if not self.remove(group)]:
            if time.monotonic() >= give_up:
                break
            _wait_for_the_dead({pid for group in left for pid in group.pids()}, give_up)
        for version, own, folder in {(one.version, one.folder, self._folder(one)) for one in self.found.values()}:
            if version == 2:
                self._undivide(own, folder)
            elif version == 1:
                with contextlib.suppress(OSError):
                    os.rmdir(folder)


class Group:
    """The group of one generation of a machine, in every hierarchy there is one."""

    def __init__(self, folders: Mapping[str, str], versions: Mapping[str, int]) -> None:
        self._folders = dict(folders)
        self._versions = versions
        self.failed: list[tuple[str, str]] = []
        """Limits that could not be set: ``storage``, ``share``, ``cpu`` or ``tasks``, and why."""

    @property
    def places(self) -> list[str]:
        """The folders, each one once: some hierarchies have several controllers."""
        return list(dict.fromkeys(self._folders.values()))

    @property
    def doors(self) -> tuple[str, ...]:
        """Files through which a process with one thread can enter by itself, by writing ``0`` to each.

        Only version 1 has them. To do so takes some 30 us; to be moved by another process takes until every processor
        has passed the scheduler, which is some 10 ms when none has been moved for a while.
        """
        first = dict.fromkeys(folder for name, folder in self._folders.items() if self._versions[name] == 1)
        return tuple(f"{folder}/tasks" for folder in first)

    def limit(self, *, storage: int, share: int, cpu: float, tasks: int) -> None:
        """Make the folders, and set the limits."""
        for name, folder in list(self._folders.items()):
            try:
                os.makedirs(folder, 0o755, exist_ok=True)
            except OSError as error:
                del self._folders[name]
                self.failed += [(limit, f"{error.filename}: {error.strerror}") for limit in _LIMITS[name]]
        self._set("storage", "memory", self._storage(storage))
        self._set("share", "cpu", self._share(share))
        self._set("cpu", "cpu", self._cap(cpu) if cpu else [])
        self._set("tasks", "pids", [("pids.max", str(tasks))])

    def change(self, *, storage: int | None = None, share: int | None = None, cpu: float | None = None) -> str:
        """Set other limits for who is in it; None: as it is. Returns why that cannot be, or an empty string."""
        if storage is not None and self._versions.get("memory") == 2 and storage < (used := self.usage()):
            return f"it has {used} bytes of real storage already"  # the kernel would kill it
        if storage is not None and "memory" in self._folders:
            settings = self._storage(storage)
            before = number(f"{self._folders['memory']}/{settings[0][0]}")
            # The limit with swap is never below the one without.
            self._set("storage", "memory", settings if storage < before else settings[::-1])
            if self.failed and before:
                first, self.failed = self.failed[:1], []
                self._set("storage", "memory", self._storage(before)[:: -1 if storage < before else 1])
                self.failed = first
        if share is not None:
            self._set("share", "cpu", self._share(share))
        if cpu is not None:
            self._set("cpu", "cpu", self._cap(cpu))
        why = "; ".join(text for _, text in self.failed)
        self.failed.clear()
        return why

    def _set(self, limit: str, controller: str, settings: Iterable[tuple[str, str]]) -> None:
        if (folder := self._folders.get(controller)) is None:
            return
        for file, value in settings:
            try:
                write(f"{folder}/{file}", value)
            except OSError as error:
                self.failed.append((limit, f"{folder}/{file}: {error.strerror}"))

    def _storage(self, storage: int) -> list[tuple[str, str]]:
        if self._versions.get("memory") == 2:
            # Its swap cannot be bounded together with the rest; whoever may swap is looked after by the watch.
            return [("memory.max", str(storage)), *self._if_there("memory", "memory.swap.max", str(storage)),
                    *self._if_there("memory", "memory.oom.group", "1")]  # fmt: skip
        both = self._if_there("memory", "memory.memsw.limit_in_bytes", str(storage))
        return [("memory.limit_in_bytes", str(storage)), *both]

    def _share(self, share: int) -> list[tuple[str, str]]:
        if self._versions.get("cpu") == 2:
            return [("cpu.weight", str(share))]
        return [("cpu.shares", str(max(2, share * 1024 // 100)))]

    def _cap(self, cpu: float) -> list[tuple[str, str]]:
        quota = max(1000, round(cpu * PERIOD)) if cpu else 0
        if self._versions.get("cpu") == 2:
            return [("cpu.max", f"{quota or 'max'} {PERIOD}")]
        return [("cpu.cfs_period_us", str(PERIOD)), ("cpu.cfs_quota_us", str(quota or -1))]

    def _if_there(self, controller: str, file: str, value: str) -> list[tuple[str, str]]:
        folder = self._folders.get(controller)
        return [(file, value)] if folder and os.path.exists(f"{folder}/{file}") else []

    def holds(self, pid: int) -> bool:
        """Whether a process is in all of it."""
        return all(pid in _pids(folder) for folder in self.places)

    def move(self, pid: int) -> None:
        """Move a process in. It may have ended. Slow (see :attr:`doors`): for a thread."""
        for folder in self.places:
            try:
                write(f"{folder}/cgroup.procs", str(pid))
            except ProcessLookupError:
                return
            except OSError as error:
                limits = [limit for name, place in self._folders.items() if place == folder for limit in _LIMITS[name]]
                self.failed += [(limit, f"{folder}/cgroup.procs: {error.strerror}") for limit in limits]

    def bounds(self, controller: str) -> bool:
        """Whether it is there for this controller."""
        return controller in self._folders

    def pids(self) -> set[int]:
        """Who is in it."""
        return {pid for folder in self.places for pid in _pids(folder)}

    def usage(self) -> int:
        """Bytes of storage that are charged to it now, swapped ones too where they are counted; 0: unknown."""
        folder = self._folders.get("memory")
        if folder is None:
            return 0
        if self._versions["memory"] == 2:
            return number(f"{folder}/memory.current") + number(f"{folder}/memory.swap.current")
        both = number(f"{folder}/memory.memsw.usage_in_bytes")
        return both or number(f"{folder}/memory.usage_in_bytes")

    def reclaim(self, most: int) -> str:
        """Have the kernel take so many bytes out of real storage, files first. Returns why it cannot, if so.

        Version 1 knows only all of it, and only of who has nothing to do it is all at once.
        """
        folder = self._folders.get("memory")
        if folder is None:
            return "it has no memory cgroup"
        if self._versions["memory"] == 1:
            if most < self.usage() // 2:
                return "a memory cgroup of version 1 is paged out whole or not at all"
            write(f"{folder}/memory.force_empty", "0")
            return ""
        try:
            try:
                write(f"{folder}/memory.reclaim", f"{most} swappiness=max")  # no files; Linux 6.15
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                write(f"{folder}/memory.reclaim", str(most))
        except BlockingIOError:
            pass  # it was less than that
        return ""

    def used(self) -> Used:
        """What it has counted."""
        folder = self._folders.get("memory")
        if folder is None:
            return Used(0, False)
        if self._versions["memory"] == 2:
            events = table(f"{folder}/memory.events")
            # Killed because the host had run out counts as well, but then the limit was not reached.
            return Used(number(f"{folder}/memory.peak"), events.get("oom_kill", 0) > 0 and events.get("oom", 0) > 0)
        peak = max(map(number, (f"{folder}/memory.max_usage_in_bytes", f"{folder}/memory.memsw.max_usage_in_bytes")))
        killed = table(f"{folder}/memory.oom_control").get("oom_kill", 0) > 0
        # Its failcnt stays 0 where swap is counted, too. A charge that did not fit any more is not in the peak.
        return Used(peak, killed and peak >= number(f"{folder}/memory.limit_in_bytes") * 15 // 16)

    def kill(self) -> None:
        """Kill everybody in it."""
        for folder in self.places:
            try:
                write(f"{folder}/cgroup.kill", "1")
            except OSError:  # version 1, or a kernel before 5.14
                for pid in _pids(folder):
                    _kill(pid, folder)

    def remove(self) -> bool:
        """Remove it; False, and everybody in it is killed, if there still is somebody."""
        for name, folder in list(self._folders.items()):
            try:
                os.rmdir(folder)
            except FileNotFoundError:
                pass
            except OSError:
                self.kill()
                return False
            del self._folders[name]
        return True


_LIMITS: Final = {"memory": ("storage",), "cpu": ("share", "cpu"), "pids": ("tasks",)}


def _remove_dead(folder: str) -> None:
    """Remove groups whose control program is no more. One with a process in it stays (rmdir(2), EBUSY)."""
    give_up = time.monotonic() + DYING_SECONDS  # for all of them together: those who are not dying stay
    with contextlib.suppress(OSError):
        for entry in [*os.scandir(folder)]:
            found = _NAME.fullmatch(entry.name)
            with contextlib.suppress(OSError):
                if found is None or entry.stat(follow_symlinks=False).st_uid != os.geteuid():
                    continue
                if _started(int(found[1])) != int(found[2]):
                    _remove_tree(entry.path, give_up)


def _remove_tree(folder: str, give_up: float) -> None:
    """Who dies with the owner may still be seen in it, or be there unseen: that is a matter of milliseconds."""
    for path in [*(entry.path for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False)), folder]:
        with contextlib.suppress(OSError):
            while True:
                try:
                    os.rmdir(path)
                    break
                except FileNotFoundError:
                    break  # another system that starts removes them as well
                except OSError as error:
                    if error.errno != errno.EBUSY or time.monotonic() >= give_up:
                        raise
                    _wait_for_the_dead(_pids(path), give_up)


def _family(inside: Iterable[int]) -> set[int]:
    """Those that belong to this system: the nucleus, everybody below it, and the command that has started it."""
    nucleus = os.getppid()
    found = {os.getpid(), nucleus, _parent(nucleus)}
    for pid in inside:
        line = [pid]
        while line[-1] > 1 and line[-1] not in found:
            line.append(_parent(line[-1]))
        # Through the command itself nobody else comes in: what it has started beside us is not ours.
        if line[-1] in (nucleus, os.getpid()):
            found |= set(line)
    return found


def _parent(pid: int) -> int:
    fields = stat(pid)
    return int(fields[1]) if fields else 0


def _started(pid: int) -> int:
    """When a process was started, in ticks since the host was; -1 if it is gone."""
    fields = stat(pid)
    return int(fields[19]) if fields else -1


def _pids(folder: str) -> set[int]:
    return set(map(int, read(f"{folder}/cgroup.procs").split())) - {0}


def _kill(pid: int, folder: str) -> None:
    """Kill a process of a group, and nobody who has got its number meanwhile."""
    with contextlib.suppress(OSError):
        pidfd = os.pidfd_open(pid)
        try:
            if pid in _pids(folder):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        finally:
            os.close(pidfd)


def _wait_for_the_dead(pids: Iterable[int], give_up: float) -> None:
    """Until some of them has ended, or for a moment if nobody is seen (who is dying is not listed any more)."""
    with contextlib.ExitStack() as stack:
        waiting = select.poll()
        for pid in pids:
            with contextlib.suppress(OSError):
                pidfd = os.pidfd_open(pid)
                stack.callback(os.close, pidfd)
                waiting.register(pidfd, select.POLLIN)
        waiting.poll(min(50.0, max(0.0, give_up - time.monotonic()) * 1000))
