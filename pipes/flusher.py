"""What many tasks write in one turn of the loop leaves together: one task of the run that flushes for all of them."""

from typing import Final, Protocol

import outcome
import trio


class Flushable(Protocol):
    """Something that has gathered what it has to write."""

    def flush(self) -> None: ...


class Flusher:
    """Flushes in the next turn of the loop whatever was handed to :meth:`add` in this one."""

    __slots__ = ("_due", "_task")

    def __init__(self) -> None:
        self._due: list[Flushable] = []
        self._task: trio.lowlevel.Task | None = None

    def add(self, due: Flushable) -> None:
        """Flush it soon."""
        self._due.append(due)
        if self._task is not None:
            trio.lowlevel.reschedule(self._task, outcome.Value(None))
            self._task = None

    async def run(self) -> None:
        """Flush until the run ends."""
        while True:
            if not self._due:
                self._task = trio.lowlevel.current_task()
                await trio.lowlevel.wait_task_rescheduled(self._abort)
            due, self._due = self._due, []
            for each in due:
                each.flush()

    def _abort(self, _: object) -> trio.lowlevel.Abort:
        self._task = None
        return trio.lowlevel.Abort.SUCCEEDED


_flusher: Final[trio.lowlevel.RunVar[Flusher]] = trio.lowlevel.RunVar("retinue.pipes.flusher")


def flusher() -> Flusher:
    """The flusher of this trio run."""
    try:
        return _flusher.get()
    except LookupError:
        made = Flusher()
        _flusher.set(made)
        trio.lowlevel.spawn_system_task(made.run)
        return made
