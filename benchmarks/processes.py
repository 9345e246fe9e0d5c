"""Other people's programs under measurement: started in a process group of their own, and ended whatever happens."""

import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import time
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NoReturn

import attrs

# How long a server may take until it answers, and until it has ended after it was asked to.
START_TIME: Final = 20.0
STOP_TIME: Final = 10.0

_TICK: Final = 1 / os.sysconf("SC_CLK_TCK")


class NotStarted(RuntimeError):
    """A program did not come up. Fields: ``program``, ``output`` (what it wrote, cut)."""

    def __init__(self, program: str, problem: str, output: str) -> None:
        self.program, self.output = program, output[-2000:]
        super().__init__(f"{program}: {problem}\n{self.output}".rstrip())


def free_port() -> int:
    """A TCP port of the loopback interface that nobody has just now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


@contextlib.contextmanager
def running(
    command: Sequence[str], answers: Callable[[], bool], folder: pathlib.Path
) -> Iterator["subprocess.Popen[bytes]"]:
    """A program, from when it ``answers`` to the end of the block; its folder keeps what it writes.

    It and its children end with the block, also when that fails. Raises :exc:`NotStarted`.
    """
    program = os.path.basename(command[0])
    output = folder / f"output-{time.monotonic_ns()}"
    with output.open("wb") as file:
        process = subprocess.Popen(
            command, cwd=folder, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
        )
    try:
        deadline = time.monotonic() + START_TIME
        while not answers():
            if process.poll() is not None:
                raise NotStarted(program, f"ended with status {process.returncode}", output.read_text("utf-8"))
            if time.monotonic() > deadline:
                raise NotStarted(program, f"no answer within {START_TIME:g} s", output.read_text("utf-8"))
            time.sleep(0.05)
        yield process
    finally:
        stop(process)


def stop(process: "subprocess.Popen[bytes]") -> None:
    """End the process group that the process leads: ask, wait, kill."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(STOP_TIME)
    with contextlib.suppress(ProcessLookupError):  # what the leader left behind, and the leader if it would not go
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def end_on_signals() -> None:
    """Make SIGTERM and SIGHUP leave through every ``finally``, so that nothing that was started outlives us."""

    def leave(number: int, frame: types.FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGHUP, leave)


# -- what proc(5) knows of a process -------------------------------------------------------------------------------


def descendants(root: int) -> dict[int, str]:
    """The process and everything below it: pid -> its name."""
    names: dict[int, str] = {}
    children: dict[int, list[int]] = {}
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                pid, name, fields = int(entry.name), *_stat(int(entry.name))
                names[pid] = name
                children.setdefault(int(fields[1]), []).append(pid)
    found: dict[int, str] = {}
    waiting = [root]
    while waiting:
        pid = waiting.pop()
        if pid in names:
            found[pid] = names[pid]
            waiting += children.get(pid, [])
    return found


def cpu_time(pid: int) -> float:
    """Seconds of CPU, user and system, that a process has used itself; 0 when it is gone."""
    try:
        _, fields = _stat(pid)
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) * _TICK


def _stat(pid: int) -> tuple[str, list[str]]:
    """The name, and the fields after it: state, parent, ... The name may hold spaces and parentheses."""
    text = pathlib.Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
    start, end = text.index("("), text.rindex(")")
    return text[start + 1 : end], text[end + 2 :].split()


@attrs.frozen
class Storage:
    """Real storage that a process keeps, in KiB, shared pages in proportion (proc(5), smaps_rollup).

    ``anonymous`` is what it has written: that of ``all`` which can leak. The rest are pages of files, and how much of
    them is charged to a process changes whenever some other program that maps the same file comes or goes.
    ``private`` are the pages that no other process has.
    """

    all: int
    anonymous: int
    private: int


def storage(pid: int) -> Storage | None:
    """What the process keeps now; None when it is gone or not ours to look at."""
    found = {}
    try:
        for line in pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
            name, _, value = line.partition(":")
            found[name] = int(value.split()[0])
    except OSError:
        return None
    if "Pss" not in found:
        return None
    return Storage(found["Pss"], found["Pss_Anon"], found["Private_Clean"] + found["Private_Dirty"])
