"""What a task waits for: the end of a message of its own."""

from collections.abc import Callable
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

    __slots__ = ("ended", "error", "frame", "give_up", "ident", "since", "task")

    def __init__(self, ident: int, since: float, give_up: Callable[[int], None]) -> None:
        self.task: trio.lowlevel.Task | None = None  # which is woken; none while it looks at :attr:`ended` by itself
        self.ended = False
        self.ident = ident
        self.since = since
        self.give_up = give_up  # called with the message's number when the task is cancelled
        self.frame: Frame | Reply | None = None
        self.error: Exception | None = None

    def wake(self, frame: Frame | Reply | None, error: Exception | None = None) -> None:
        """Let the task go on with the frame that ended its message, or with an error."""
        self.frame = frame
        self.error = error
        self.ended = True
        if self.task is not None:
            trio.lowlevel.reschedule(self.task, self)

    def abort(self, _: object) -> trio.lowlevel.Abort:
        """For :func:`trio.lowlevel.wait_task_rescheduled`: nobody waits any more."""
        self.give_up(self.ident)
        return trio.lowlevel.Abort.SUCCEEDED

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
