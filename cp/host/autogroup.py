"""Shares of the processors where there are no control groups: each session's weight in the scheduler (sched(7)).

Every machine leads a session of its own, and with the autogroup feature the scheduler first divides among sessions. The
weight of one is set by a nice value from 0 to 19 in /proc/PID/autogroup, also without privilege; each step is a factor
of 1.25. Where autogroup is off, or does not count because the processes are in a group that the ``cpu`` controller
manages, the nice value of the process does the same, but that can only be raised.
"""

import contextlib
import math
import os
from typing import Final, NoReturn

import trio

__all__ = ["LOWEST", "Shares", "available", "steps"]

LOWEST: Final = 19
"""The nice value of the least weight, 1/87 of that of 0 (sched_prio_to_weight in the kernel)."""

AGAIN: Final = 0.11
"""Seconds after which the kernel takes the next value from an unprivileged user: it takes ten a second from all."""

TRIES: Final = 600
"""How often it is tried: as many machines as that may be waiting at the same time."""

_WEIGHT: Final = (1024, 820, 655, 526, 423, 335, 272, 215, 172, 137, 110, 87, 70, 56, 45, 36, 29, 23, 18, 15)
"""What the kernel counts for a nice value of 0, 1, ..., 19."""


def steps(share: int, largest: int) -> int:
    """The nice value that gives ``share`` its weight beside machines whose nice value is 0 for the ``largest``."""
    if share >= largest:
        return 0
    wanted = math.log(_WEIGHT[0] * share / largest)
    return min(range(LOWEST + 1), key=lambda nice: abs(math.log(_WEIGHT[nice]) - wanted))


def available(cpu_group: str) -> str:
    """Why the weights of sessions do not count for processes in this group, or an empty string.

    :param cpu_group: the group which the ``cpu`` controller has for them, as it calls it; ``"/"`` is that of everybody.
    """
    try:
        with open("/proc/sys/kernel/sched_autogroup_enabled") as file:
            if file.read().strip() != "1":
                return "autogroup is off (sysctl kernel.sched_autogroup_enabled=1)"
    except OSError:
        return "this kernel has no autogroup"
    if cpu_group != "/":
        return f"autogroup does not count in {cpu_group}, which the cpu controller manages"
    return ""


class Shares:
    """Gives machines their weights, one after the other.

    ``sessions``: by the nice value of their sessions, otherwise by their own.
    """

    def __init__(self, *, sessions: bool) -> None:
        self.sessions = sessions
        self._wanted, self._next = trio.open_memory_channel[tuple[int, int, int]](math.inf)

    def give(self, pid: int, share: int, largest: int) -> None:
        """Have the process of a machine get its share, soon. The largest one has nothing to get."""
        if pid and (nice := steps(share, largest)):
            self._wanted.send_nowait((pid, nice, 0))

    async def run(self) -> NoReturn:
        """Task: set the values."""
        async for pid, nice, tried in self._next:
            try:
                done = self._set(pid, nice)
            except OSError:
                continue  # it is gone
            if not done and tried < TRIES:
                self._wanted.send_nowait((pid, nice, tried + 1))
                await trio.sleep(AGAIN)
        raise AssertionError("the channel is never closed")

    def _set(self, pid: int, nice: int) -> bool:
        """False: not yet. OSError: it is gone."""
        if not self.sessions:
            # The one thread it was born with: those that it makes have what their maker has.
            os.setpriority(os.PRIO_PROCESS, pid, nice)
            return True
        if not _leads_session(pid):
            return False  # what it would get now were its parent's
        descriptor = os.open(f"/proc/{pid}/autogroup", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, str(nice).encode())
        except BlockingIOError:
            return False
        finally:
            os.close(descriptor)
        return True


def _leads_session(pid: int) -> bool:
    with open(f"/proc/{pid}/stat", errors="surrogateescape") as file:
        fields = file.read().rpartition(")")[2].split()
    return int(fields[3]) == pid


def managed_group() -> str:
    """The group which the ``cpu`` controller has for this process; ``"/"`` where it has none but that of everybody."""
    second = ""
    with contextlib.suppress(OSError), open("/proc/self/cgroup") as file:
        for line in file:
            _, names, path = line.rstrip("\n").split(":", 2)
            if "cpu" in names.split(","):
                return path
            if not names:
                second = path
    # Version 2: the nearest group that has a weight. That of everybody has none.
    folder = second.strip("/")
    for mount in ("/sys/fs/cgroup", "/sys/fs/cgroup/unified"):
        while folder:
            if os.path.exists(f"{mount}/{folder}/cpu.weight"):
                return f"/{folder}"
            folder = folder.rpartition("/")[0]
        folder = second.strip("/")
    return "/"
