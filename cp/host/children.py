"""Children of the nucleus: killing, reaping and naming what became of them. Standard library only."""

import contextlib
import os
import resource
import signal
from collections.abc import Iterator

__all__ = ["any_left", "describe", "host_pid", "kill", "kill_by_descriptor", "reaped"]


def describe(status: int) -> str:
    """A wait status as a verb phrase."""
    code = os.waitstatus_to_exitcode(status)
    return f"exited with status {code}" if code >= 0 else f"was killed by {signal.Signals(-code).name}"


def reaped() -> Iterator[tuple[int, int, resource.struct_rusage]]:
    """Every child that has ended, without waiting."""
    with contextlib.suppress(ChildProcessError):
        while (ended := os.wait4(-1, os.WNOHANG))[0]:
            yield ended


def any_left() -> bool:
    """True while there are any, alive or not yet reaped."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def kill(pid: int) -> None:
    """SIGKILL to a child that has not been reaped; 0 is nobody."""
    if pid:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


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
