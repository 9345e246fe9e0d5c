"""Systems under measurement: started and stopped by the command line, as users do it."""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Final

from benchmarks.processes import START_TIME, STOP_TIME, NotStarted

# `python -m` has no module to run here, and a venv's script need not be on the PATH.
_RETINUE: Final = (sys.executable, "-P", "-c", "from retinue.cp.cli import main; raise SystemExit(main())")


def retinue(state: pathlib.Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """The command, for the system whose state is in that folder."""
    return subprocess.run(
        [*_RETINUE, "--state", str(state), *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=START_TIME + STOP_TIME,
    )


@contextlib.contextmanager
def running(file: pathlib.Path, state: pathlib.Path) -> Iterator[int]:
    """The system of a topology file, up from the start to the end of the block: the process id of its nucleus.

    Its state is kept in the folder ``state``, the operator's socket is in ``state/run``. Raises :exc:`NotStarted`.
    """
    nucleus: int | None = None
    try:
        up = retinue(state, "up", "-d", str(file))
        if up.returncode != 0:
            raise NotStarted("retinue up", f"status {up.returncode}", up.stderr)
        nucleus = json.loads((state / "run" / "system.json").read_text("utf-8"))["nucleus_pid"]
        yield nucleus
    finally:
        _stop(state, nucleus)


def _stop(state: pathlib.Path, nucleus: int | None) -> None:
    with contextlib.suppress(subprocess.TimeoutExpired):
        if retinue(state, "down").returncode != 0:
            retinue(state, "down", "--force")
    # The whole system ends with its nucleus. The lock's file goes with it as well: still there means still running.
    if nucleus is not None and (state / "run" / "lock").exists():
        with contextlib.suppress(ProcessLookupError):
            os.kill(nucleus, signal.SIGKILL)
