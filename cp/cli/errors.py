"""What the ``retinue`` command tells when it cannot do what it was asked, cut by exit code.

Each error builds its own sentence and, where there is one, its own cure; the command prints ``retinue: sentence`` and
the cure indented below it. Nothing here is raised across a path.
"""

import pathlib
from collections.abc import Iterable, Sequence
from typing import Final

OK: Final = 0
FAILED: Final = 1
USAGE: Final = 2
NO_SYSTEM: Final = 69
BUG: Final = 70
CANNOT_CREATE: Final = 73
RUNS_ALREADY: Final = 75
DENIED: Final = 77
WRONG_TOPOLOGY: Final = 78
INTERRUPTED: Final = 130
BROKEN_PIPE: Final = 141


class CommandError(Exception):
    """Root: ``code`` is the exit code, ``cure`` what would help (None: nothing known; lines stay lines)."""

    code: int = FAILED

    def __init__(self, problem: str, cure: str | None = None) -> None:
        self.problem, self.cure = problem, cure
        super().__init__(problem)


class SystemFailed(CommandError):
    """The system did not start, or ended badly. `code` is what the control program says, else 1."""

    def __init__(self, system: str, what: str, reason: str, code: int = FAILED, cure: str | None = None) -> None:
        self.system, self.what, self.reason, self.code = system, what, reason, code
        super().__init__(f"{system} {what}: {reason}" if reason else f"{system} {what}", cure)


class Interrupted(CommandError):
    """Ctrl-C or a signal ended the command before it had done what it was asked."""

    code = INTERRUPTED


class NoSystem(CommandError):
    """No system is running, or not the one that was named."""

    code = NO_SYSTEM

    def __init__(
        self, name: str | None, running: Sequence[str], looked_in: pathlib.Path, last: str | None = None
    ) -> None:
        self.name, self.running, self.looked_in = name, tuple(running), looked_in
        if name is None:
            problem = "no system is running"
            cure = f"start one: retinue up FILE   (looked in {looked_in})"
        else:
            problem = f"no system {name} is running"
            cure = (
                f"running: {', '.join(self.running)}{did_you_mean(name, self.running)}"
                if self.running
                else f"no other system is running either   (looked in {looked_in})"
            )
        super().__init__(problem, f"{last}\n{cure}" if last else cure)


class SystemGone(CommandError):
    """The system ended while the command was talking to it."""

    code = NO_SYSTEM

    def __init__(self, system: str, reason: str = "") -> None:
        self.system = system
        super().__init__(f"{system} has ended" + (f": {reason}" if reason else ""))


class PathLost(SystemGone):
    """The system runs, but the path to its control program has ended: that died, or cut us off for being too slow."""

    code = FAILED

    def __init__(self, system: str, asked: str, cure: str = "look what has become of it: retinue ps") -> None:
        self.system = system
        problem = (
            f"the control program of {system} was lost when it was asked {asked}; whether it was done is not known"
        )
        CommandError.__init__(self, problem, cure)


class SeveralSystems(CommandError):
    """Several systems run and none was named."""

    code = USAGE

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        super().__init__(
            f"several systems are running: {', '.join(names)}",
            f"choose one: --system {names[0]}   (or set RETINUE_SYSTEM)",
        )


class RunsAlready(CommandError):
    """`up` of a system that runs."""

    code = RUNS_ALREADY

    def __init__(self, problem: str, system: str, state: pathlib.Path | None) -> None:
        selection = f"--state {state}" if state is not None else f"--system {system}"
        super().__init__(problem, f"stop it first: retinue down {selection}")


class BeingStarted(CommandError):
    """Another `up` is at work in the same place."""

    code = RUNS_ALREADY

    def __init__(self, problem: str) -> None:
        super().__init__(problem, "look what it does: retinue ps   then try again")


class NoAnswer(CommandError):
    """The system runs (its nucleus lives), but its control program does not answer."""

    def __init__(self, system: str, nucleus_pid: int | None, why: str) -> None:
        self.system, self.nucleus_pid = system, nucleus_pid
        pid = f" (nucleus pid {nucleus_pid})" if nucleus_pid else ""
        super().__init__(
            f"{system} is running{pid}, but its control program does not answer: {why}",
            f"if this lasts: retinue down --force --system {system}",
        )


class Denied(CommandError):
    """The other end is not ours to talk to, or forbids it."""

    code = DENIED


class CannotCreate(CommandError):
    """A folder or file could not be created."""

    code = CANNOT_CREATE


class UnknownMachine(CommandError):
    """The system has no machine of that name."""

    code = USAGE

    def __init__(self, name: str, system: str, machines: Iterable[str]) -> None:
        self.name, self.machines = name, tuple(machines)
        super().__init__(
            f"{system} has no machine {name}{did_you_mean(name, self.machines)}",
            f"there are: {', '.join(self.machines)}" if self.machines else None,
        )


class UnknownEdge(CommandError):
    """The system has no edge of that name, or it is none that can be tapped (`why` tells)."""

    code = USAGE

    def __init__(self, name: str, system: str, why: str, edges: Iterable[str]) -> None:
        self.name, self.edges = name, tuple(edges)
        super().__init__(
            f"{system}: {why}{did_you_mean(name, self.edges)}",
            f"there are: {', '.join(self.edges)}" if self.edges else None,
        )


class TopologyWrong(CommandError):
    """The topology file is missing, unreadable or wrong; `listing` shows every error with file and line."""

    code = WRONG_TOPOLOGY

    def __init__(self, problem: str, cure: str | None = None, listing: Sequence[str] = ()) -> None:
        self.listing = tuple(listing)
        super().__init__(problem, cure)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``; did you mean X?`` if one of the known words is near to `word` (case does not count), else nothing."""
    import difflib

    by_folded = {each.casefold(): each for each in known}
    near = difflib.get_close_matches(word.casefold(), by_folded, n=1)
    return f"; did you mean {by_folded[near[0]]}?" if near else ""
