"""What is known of the machines while a system starts or stops: fed with events, read by the display.

Pure: no terminal and no clock of its own. :mod:`retinue.cp.cli.live` draws a board, plain output prints the lines
that :meth:`Board.apply` returns.
"""

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import attrs

from retinue.cp.cli.output import duration, neutralise

# Last lines of a machine that are shown when the start fails because of it.
LAST_LINES: Final = 10
# States in which a machine that should run does not.
TROUBLE: Final = frozenset({"ABEND", "WAITING", "BROKEN"})


@attrs.define
class MachineStatus:
    """A machine as the board knows it; `since` is when it entered its state, by the board's clock."""

    name: str
    state: str
    since: float
    cause: str | None = None
    told: bool = False  # an event has told its state: no listing knows better
    trouble: str | None = None  # why it died or broke, also when it is stopped by now


class Board:
    """The machines of one system, in the order of the topology, and the state of the system itself."""

    def __init__(self, system: str, names: Iterable[str], clock: Callable[[], float]) -> None:
        self.system = system
        self.state = "STARTING"
        self.failure: str | None = None
        self.exit_code: int | None = None
        self._clock = clock
        self._born = clock()
        self._system_told = False
        self.machines = {name: MachineStatus(name, "DEFINED", self._born) for name in names}
        self._last_lines: dict[str, deque[str]] = {}

    def prime(self, listing: Mapping[str, Any]) -> None:
        """Take the states of a `ps` reply for whatever no event has told of yet.

        Events and listing come on one path in order, so what an event has told is never older than the listing.
        """
        if not self._system_told and isinstance(listing.get("state"), str):
            self.state = listing["state"]
        for entry in listing.get("machines", ()):
            status = self._machine(str(entry.get("name")))
            if not status.told:
                status.state, status.cause = str(entry.get("state")), entry.get("cause")

    def catch_up(self, listing: Mapping[str, Any]) -> list[str]:
        """Take the states of a `ps` reply that is newer than the last event; returns a line for each that is news.

        Its causes are no news: that of a READY machine is the one of the end before.
        """
        lines = []
        for entry in listing.get("machines", ()):
            status = self._machine(str(entry.get("name")))
            if status.state != entry.get("state"):
                lines.append(self.apply({**entry, "machine": status.name}))
        return [line for line in lines if line is not None]

    def doubt(self) -> None:
        """Events may have been missed: the next listing knows better than those that have told so far."""
        self._system_told = False
        for status in self.machines.values():
            status.told = False

    def apply(self, event: Mapping[str, Any]) -> str | None:
        """Take in one event; returns the line that tells of it, None if there is nothing new in it."""
        name, state, cause = event.get("machine"), str(event.get("state")), event.get("cause")
        cause = None if cause is None else str(cause)
        if name is None:
            return self._apply_system(state, cause, event.get("exit_code"))
        status = self._machine(str(name))
        status.told = True
        if status.state == state and status.cause == cause:
            return None
        took = self._clock() - status.since
        status.state, status.cause, status.since = state, cause, self._clock()
        if state == "ABEND" or (state in TROUBLE and status.trouble is None):
            status.trouble = cause or state
        if state == "READY":
            return f"{neutralise(status.name)} is READY after {seconds(took)}"
        return f"{neutralise(status.name)} is {neutralise(state)}" + (f": {_brief(cause)}" if cause else "")

    def _apply_system(self, state: str, cause: str | None, exit_code: Any) -> str | None:
        self._system_told = True
        if state == "FAILED":
            self.failure = cause or "the control program gives no reason"
            self.exit_code = exit_code if isinstance(exit_code, int) and 0 < exit_code < 256 else None
        if state == self.state:
            return None
        self.state = state
        return f"{self.system} is {neutralise(state)}" + (f": {_brief(cause)}" if cause else "")

    def end(self) -> None:
        """The nucleus is gone, and every machine with it, whether or not the last events arrived."""
        for status in self.machines.values():
            if status.state not in TROUBLE:
                status.state, status.since = "STOPPED", self._clock()

    def keep_line(self, name: str, lines: Iterable[str]) -> None:
        """Remember log lines of a machine, for the case that the start fails because of it."""
        self._last_lines.setdefault(name, deque(maxlen=LAST_LINES)).extend(lines)

    def last_lines(self, name: str) -> list[str]:
        """The last lines that were remembered, oldest first; at most LAST_LINES."""
        return list(self._last_lines.get(name, ()))

    def troubled(self) -> list[MachineStatus]:
        """The machines that died or broke, whatever became of them since."""
        return [status for status in self.machines.values() if status.trouble is not None]

    def count(self, *states: str) -> int:
        """How many machines are in one of these states."""
        return sum(status.state in states for status in self.machines.values())

    def age(self, status: MachineStatus) -> float:
        """Seconds for which the machine has been in its state."""
        return self._clock() - status.since

    @property
    def elapsed(self) -> float:
        """Seconds since the board was made."""
        return self._clock() - self._born

    def _machine(self, name: str) -> MachineStatus:
        if name not in self.machines:
            self.machines[name] = MachineStatus(name, "DEFINED", self._clock())
        return self.machines[name]


def seconds(value: float) -> str:
    """A short time with the precision that matters: 0.04 s, 1.3 s, then as :func:`duration`."""
    return f"{value:.2f} s" if value < 1 else f"{value:.1f} s" if value < 60 else duration(value)


def _brief(cause: str) -> str:
    """A cause in one line: of several (a traceback, many mistakes) the first and the last, which say most."""
    first, *rest = cause.strip().splitlines() or [""]
    return neutralise(f"{first.rstrip()} … {rest[-1].strip()}" if rest else first)
