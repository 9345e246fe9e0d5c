"""Run a command that dies with whoever has started it: ``python leash.py PARENT WITHOUT[,WITHOUT...] COMMAND...``.

``PARENT`` is the pid of who starts it; however that process ends, the kernel then kills the command (prctl(2),
PR_SET_PDEATHSIG). ``WITHOUT`` is what a poorer host would not have, as in tests/cp/host/rungs.py; it may be empty.
"""

import ctypes
import os
import pathlib
import signal
import sys
from collections.abc import Iterable

_PR_SET_PDEATHSIG = 1


def leashed(command: Iterable[str], without: Iterable[str] = ()) -> list[str]:
    """The command, to be started by this process."""
    return [sys.executable, "-I", "-S", __file__, str(os.getpid()), ",".join(without), *command]


if __name__ == "__main__":
    parent, names, *rest = sys.argv[1:]
    if ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0) or os.getppid() != int(parent):
        sys.exit("its parent is gone")
    if names:
        sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))
        from tests.cp.host.rungs import take_away

        take_away(*names.split(","))
    os.execvp(rest[0], rest)
