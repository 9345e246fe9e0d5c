"""Handlers at work: each message in a task as if of its own, for the price of a task only where a handler waits."""

import contextvars
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

import outcome
import trio

from retinue.pipes.errors import Rejected
from retinue.pipes.message import Message
from retinue.pipes.traces import current
from retinue.pipes.wire import trace_of

if TYPE_CHECKING:
    from retinue.pipes.path import Path

Handler = Callable[[Message], Awaitable[Any]]
Failed = Callable[[Message, Exception], None]

# Workers that are kept for the next burst; each costs some kilobytes.
MOST_IDLE: Final = 4


class Serving:
    """Runs one handler for the messages of one path.

    A worker is a task that takes message after message as long as the handler does not wait. Before each handler one
    more worker is made runnable when there are more messages: it goes on where the first one waits, and finds nothing
    to do otherwise. So handlers run side by side, and a burst of messages costs one task switch, not one each.
    """

    def __init__(self, path: "Path", handler: Handler, failed: Failed | None) -> None:
        self._path = path
        self._handler = handler
        self._failed = failed
        self._nursery: trio.Nursery | None = None
        self._context = contextvars.copy_context()
        self._context.run(current.set, None)  # whatever request has begun to serve the path: each message has its own
        self._idle: list[trio.lowlevel.Task] = []
        self._woken = False  # a worker is runnable and has not looked yet
        self._ending = False
        self._ended = trio.Event()

    async def run(self) -> None:
        """Serve until the path has ended and what came before its end has been begun."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self._ending = self._path.severed is not None
            self.wake()
            try:
                await self._ended.wait()
            finally:
                self._nursery = None  # nobody may be started in it any more
            nursery.cancel_scope.cancel()

    def end(self) -> None:
        """The path has ended."""
        self._ending = True
        self.wake()

    def wake(self) -> None:
        """Have one worker look for messages."""
        if self._woken or self._nursery is None:
            return
        self._woken = True
        if self._idle:
            trio.lowlevel.reschedule(self._idle.pop(), outcome.Value(None))
        else:
            # Not in that of whoever has read the message.
            self._context.run(self._nursery.start_soon, self._work)

    async def _work(self) -> None:
        path = self._path
        self._woken = False
        while True:
            with trio.CancelScope() as scope:
                while True:
                    message = path.next_message()
                    if message is not None:
                        if path.pending or self._ending:
                            self.wake()
                        if await self._handle(message, scope):
                            break
                    elif self._ending:
                        self._ended.set()
                        return
                    elif path.vacant:
                        await self._lead()
                    elif len(self._idle) >= MOST_IDLE:
                        return
                    else:
                        await self._rest()
                        self._woken = False

    async def _lead(self) -> None:
        self._woken = True  # this one looks when something has come
        try:
            await self._path.lead()
        finally:
            self._woken = False

    async def _rest(self) -> None:
        self._path.would_lead()
        task = trio.lowlevel.current_task()
        self._idle.append(task)

        def abort(_: object) -> trio.lowlevel.Abort:
            self._idle.remove(task)
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)

    async def _handle(self, message: Message, scope: trio.CancelScope) -> bool:
        """Run the handler; True when the scope is spent."""
        path = self._path
        wants_reply = message.wants_reply
        if wants_reply:
            if message.withdrawn:
                self._refuse(message, "purged")
                return False
            message.scope = scope
        frame = message.frame
        trace = trace_of(frame) if len(frame) > 4 else None  # mostly it is shorter
        if trace is not None:
            current.set(trace)
        try:
            try:
                result = await self._handler(message)
                if not wants_reply:
                    path.acknowledge(message)
                elif path.answers(message):
                    path.reply(message, result)
            except Rejected as exc:
                self._refuse(message, exc.code, exc.text, exc.detail)
        except Exception as exc:
            self._refuse(message, "failed", f"the handler raised {type(exc).__name__}")
            if self._failed is None:
                raise
            self._failed(message, exc)
        except BaseException:
            # Whoever serves may be cancelled while the path lives on: nobody must wait for an answer for ever.
            self._refuse(message, "purged" if message.withdrawn else "cancelled")
            raise
        finally:
            message.scope = None
            if trace is not None:
                current.set(None)
        return message.withdrawn

    def _refuse(self, message: Message, code: str, text: str = "", detail: Any = None) -> None:
        if not message.wants_reply:
            self._path.acknowledge(message)
        elif self._path.answers(message):
            self._path.reject(message, code, text, detail)
