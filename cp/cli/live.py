"""The live display of a starting or stopping system on a terminal, and its plain twin for everything else."""

import os
import sys
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

from retinue.cp.cli.board import TROUBLE, Board, MachineStatus, seconds
from retinue.cp.cli.output import cells, colour_wanted, is_terminal, neutralise, say, tell, width

if TYPE_CHECKING:
    from rich.text import Text

# How often the live display is drawn: often enough for a spinner to turn.
REFRESH = 0.1


class Display(Protocol):
    """Where progress is shown and, at the same time, log lines are printed."""

    holds_records: bool

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
    def event(self, line: str) -> None:
        """Something changed on the board; `line` tells it."""

    def record(self, line: str) -> None:
        """Print one log line."""

    def draw(self) -> None:
        """Called every REFRESH seconds."""


def display(board: Board) -> Display:
    """A live display if standard error is a terminal that can move its cursor, else plain lines."""
    if is_terminal(sys.stderr) and os.environ.get("TERM") not in {"dumb", None, ""}:
        return LiveDisplay(board)
    return PlainDisplay()


class PlainDisplay:
    """Progress as lines on standard error, log lines on standard output."""

    holds_records = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def event(self, line: str) -> None:
        tell(line)

    def record(self, line: str) -> None:
        say(line)

    def draw(self) -> None:
        return None


class LiveDisplay:
    """The machines as a table on standard error that changes in place; log lines scroll by above it."""

    holds_records = True

    def __init__(self, board: Board) -> None:
        from rich.console import Console
        from rich.live import Live

        self._board = board
        # no_color: rich knows NO_COLOR itself, but not our rule that an empty one means nothing.
        self._console = Console(
            file=sys.stderr, width=width(sys.stderr), no_color=not colour_wanted(sys.stderr), highlight=False
        )
        self._live = Live(
            console=self._console,
            get_renderable=lambda: picture(board, self._console.width),
            auto_refresh=False,  # no thread: the caller's loop draws
            redirect_stdout=False,
            redirect_stderr=False,
            vertical_overflow="ellipsis",
        )
        self._shared = is_terminal(sys.stdout)

    def __enter__(self) -> Self:
        self._live.start(refresh=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):  # the terminal is gone: what has to be done goes on
            self._live.stop()

    def event(self, line: str) -> None:
        self.draw()

    def record(self, line: str) -> None:
        if not self._shared:
            say(line)
            return
        from rich.text import Text

        # The line is coloured and neutralised already; only escape sequences of our own are in it.
        self._console.print(Text.from_ansi(line), soft_wrap=True)

    def draw(self) -> None:
        with suppress(OSError):
            self._live.refresh()


def picture(board: Board, room: int) -> "Text":
    """The board in at most `room` columns: a mark, the name, the state, how long, and the cause of trouble."""
    from rich.text import Text

    statuses = list(board.machines.values())
    names = [neutralise(status.name) for status in statuses]
    column = max(map(cells, names), default=0)
    lines = []
    for status, name in zip(statuses, names, strict=True):
        mark, style = _mark(status, board.age(status))
        line = Text(no_wrap=True)
        line.append(f"{mark} ", style)
        line.append(name + " " * (column - cells(name)) + "  ")
        line.append(f"{neutralise(status.state):<8}", style)
        if status.state in {"STARTING", "STOPPING", "WAITING"}:
            line.append(f"  {seconds(board.age(status))}", "dim")
        if status.state in TROUBLE and status.cause:
            line.append(f"  {neutralise(status.cause)}", "red")
        line.rstrip()
        line.truncate(room, overflow="ellipsis")
        lines.append(line)
    return Text("\n").join(lines)


_SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"


def _mark(status: MachineStatus, age: float) -> tuple[str, str]:
    if status.state in {"STARTING", "STOPPING"}:
        return _SPINNER[int(age / REFRESH) % len(_SPINNER)], "cyan"
    if status.state == "READY":
        return "●", "green"
    if status.state in TROUBLE:
        return "✗", "red"
    return "○", "dim"
