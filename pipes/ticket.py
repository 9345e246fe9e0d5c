"""What a task waits for: the end of a message of its own."""

from typing import Any, NoReturn

import outcome
import trio

from retinue.pipes.message import Reply
from retinue.pipes.wire import Frame


class Ticket(outcome.Outcome[Any]):
    """The place of one waiting task, and what it will be woken with.

    It is handed to :func:`trio.lowlevel.reschedule` as it is: an object of its own for each result would cost a tenth
    of a call.
    """

    __slots__ = ("error", "frame", "since", "task")

    def __init__(self, since: float) -> None:
        self.task = trio.lowlevel.current_task()
        self.since = since
        self.frame: Frame | Reply | None = None
        self.error: Exception | None = None

    def wake(self, frame: Frame | Reply | None, error: Exception | None = None) -> None:
        """Let the task go on with the frame that ended its message, or with an error."""
        self.frame = frame
        self.error = error
        trio.lowlevel.reschedule(self.task, self)

    def unwrap(self) -> Frame | Reply | None:
        """Called by trio in the task."""
        if self.error is not None:
            raise self.error
        return self.frame

    def send(self, gen: Any) -> NoReturn:
        """Nobody waits for a ticket in this way."""
        raise NotImplementedError

    async def asend(self, agen: Any) -> NoReturn:
        """Nobody waits for a ticket in this way."""
        raise NotImplementedError
