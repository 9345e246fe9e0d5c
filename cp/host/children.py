"""Children of the nucleus: starting, killing, reaping and naming what became of them. Standard library only."""

import contextlib
import functools
import os
import resource
import signal
import time
from collections.abc import Iterator, Mapping
from typing import Any

from retinue.cp.host import libc, process
from retinue.cp.host.link import Link, link_pair
from retinue.cp.host.loop import Hear, Loop

__all__ = ["Child", "Children", "describe", "exit_report", "give_way", "host_pid", "kill_by_descriptor", "reaped"]


CAP_SYS_NICE = 23  # linux/capability.h


class Child:
    """A process that was started here and is spoken with."""

    def __init__(self, link: Link, pid: int) -> None:
        self.link = link
        self.pids = [pid]
        """Not reaped yet. While two are, the second goes on for the first, and waits for its end."""
        self.broken = ""
        """Why it was killed, if what it said was the reason."""

    def send(self, message: dict[str, Any], descriptors: list[int] | None = None) -> None:
        """Say something, and take the descriptors out of the list. :raises LinkLimit:"""
        taken = list(descriptors or ())
        if descriptors:
            descriptors.clear()
        with contextlib.suppress(OSError):  # it is dead, and its end will be reaped
            self.link.post(message, taken)


class Children:
    """Those of one process, which hears them in its loop."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._all: list[Child] = []

    @staticmethod
    def start(told: dict[str, Any], inherited: dict[str, int], environment: Mapping[str, str]) -> tuple[Link, int]:
        """Start a process with a link; ``inherited``: its descriptors by their names, -1 for none. :raises OSError:"""
        ours, theirs = link_pair()
        with theirs:
            inherited = {**inherited, "link": theirs.fileno()}
            given = [descriptor for descriptor in inherited.values() if descriptor >= 0]
            try:
                return Link(ours), process.start({**told, **inherited}, inherit=given, environment=environment)
            except OSError:
                ours.close()
                raise

    def add(self, child: Child, hear: Hear) -> None:
        """Hear a child that was started."""
        self._all.append(child)
        self._loop.add(child.link, hear, functools.partial(self.kill, child))

    def kill(self, child: Child, why: str = "") -> None:
        """Hear no more of a child, and have it end if it does not by itself."""
        child.broken = child.broken or (f"spoke out of turn: {why}" if why else "")
        self._loop.remove(child.link)
        for pid in child.pids:
            _kill(pid)

    def reap(self) -> Iterator[tuple[Child | None, int, int, resource.struct_rusage]]:
        """Every process that has ended, with the child that it was the last of; what that said last has been heard."""
        for pid, status, usage in reaped():
            child = next((child for child in self._all if pid in child.pids), None)
            if child is not None:
                child.pids.remove(pid)
                while self._loop.hear(child.link):
                    pass
                if child.pids:
                    child.send({"verb": "go"})
                    continue
                self._all.remove(child)
                self._loop.remove(child.link)
                child.link.close()
                child.broken = child.broken or describe(status)
            yield child, pid, status, usage

    def bury(self, patient: Child | None, leaves: float, gone: float) -> str:
        """Kill and reap everybody. Returns what could not be, in words, or an empty string.

        :param patient: one that may end by itself for ``leaves`` seconds, or until a signal says to end.
        :param gone: seconds that the killed may take.
        """
        for child in self._all:
            self._loop.remove(child.link)
            if child is not patient:
                self.kill(child)
        now = time.monotonic()
        leaves, gone = now + leaves, now + leaves + gone
        while True:
            for pid, _, _ in reaped():
                for child in self._all:
                    child.pids = [other for other in child.pids if other != pid]
            if not _any_left():
                return ""
            if (now := time.monotonic()) >= gone:
                return "some of its processes cannot be killed"
            if now >= leaves:
                for child in self._all:
                    self.kill(child)
            signals = self._loop.turn((leaves if now < leaves else gone) - now)
            if signal.SIGTERM in signals or signal.SIGINT in signals:
                leaves = now


def describe(status: int) -> str:
    """A wait status as a verb phrase."""
    code = os.waitstatus_to_exitcode(status)
    return f"exited with status {code}" if code >= 0 else f"was killed by {signal.Signals(-code).name}"


def reaped() -> Iterator[tuple[int, int, resource.struct_rusage]]:
    """Every child that has ended, without waiting."""
    with contextlib.suppress(ChildProcessError):
        while (ended := os.wait4(-1, os.WNOHANG))[0]:
            yield ended


def exit_report(
    key: tuple[str, int], status: int, usage: resource.struct_rusage | None = None, ended: str | None = None
) -> dict[str, Any]:
    """The message that the machine and generation of ``key`` have ended; without a usage nobody knows it."""
    used = (0.0, 0.0, 0) if usage is None else (usage.ru_utime, usage.ru_stime, usage.ru_maxrss)
    report = {"event": "exit", "machine": key[0], "generation": key[1], "status": status, "ended": ended}
    return report | dict(zip(("user_s", "system_s", "peak_kib"), used, strict=True))


def _any_left() -> bool:
    """True while there are any, alive or not yet reaped."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def _kill(pid: int) -> None:
    """SIGKILL to a child that has not been reaped; 0 is nobody."""
    if pid:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def give_way(pid: int, *, yes: bool) -> None:
    """Have a process run only when others of its session do not, or as everybody, where the former can be taken back.

    Back needs CAP_SYS_NICE, or a limit that lets a process have the nice value of 0 (sched(7)).
    """
    if libc.permitted_capabilities() >> CAP_SYS_NICE & 1 or resource.getrlimit(resource.RLIMIT_NICE)[0] >= 20:
        with contextlib.suppress(OSError):  # it has ended
            os.sched_setscheduler(pid, os.SCHED_IDLE if yes else os.SCHED_OTHER, os.sched_param(0))


def kill_by_descriptor(pidfd: int) -> None:
    """SIGKILL to a process that may have ended already."""
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)


def host_pid(pidfd: int) -> int:
    """The pid of a process in the nucleus' own PID namespace; 0 if it has been reaped."""
    with open(f"/proc/self/fdinfo/{pidfd}") as info:
        for line in info:
            if line.startswith("Pid:"):
                return max(0, int(line.split()[1]))
    return 0
