"""Who reads the socket of a path: its pump, or a task that waits for what comes out of it."""

from collections.abc import Callable
from typing import Final

import trio

from retinue.pipes.message import Reply
from retinue.pipes.ticket import Ticket
from retinue.pipes.transport import SocketTransport, Transport
from retinue.pipes.watch import IGNORED, WATCHED, Watch, watch
from retinue.pipes.wire import Frame

Abort = Callable[[object], trio.lowlevel.Abort]

# The pump stays for so many waits at most before it lets others try again.
MOST_PATIENT: Final = 256
# An absence of the pump in which tasks have led so often has paid for its return.
WORTHWHILE: Final = 16


class Intake:
    """Exactly one task reads at any time: the pump, or a leader, or none while the watch looks out.

    A task that waits for a message saves a turn of the loop when it waits for the socket itself: it is woken once,
    where the pump would be woken first and then wake it. So the pump makes room (:attr:`vacant`) when others would
    lead, and each of them may :meth:`lead` as long as it waits. Between two leaders nobody reads; when something comes
    just then, the watch calls the pump back. Where that happens often the pump stays longer each time.
    """

    __slots__ = (
        "_descriptor", "_failure", "_led", "_lost", "_over", "_parked", "_patience", "_transport", "_wanted", "_watch",
        "vacant",
    )  # fmt: skip

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._over = False
        self._lost = False  # the transport has ended, which the pump has not seen to yet
        self._failure: BaseException | None = None  # what has ended the reading of a leader, and ends the pump's
        self._parked: trio.lowlevel.Task | None = None  # the pump, while it does not read
        self._watch: Watch | None = None  # of this run, when the transport has been added to it
        self._descriptor = -1
        self._wanted = 0  # how often somebody would have led since the pump reads
        self._led = 0  # how often somebody has since it does not
        self._patience = 0
        self.vacant = False  # the next task that waits may lead

    def _drain(self) -> bool:
        """Read what has come and do what it says. False when this transport brings no more."""
        raise NotImplementedError

    # -- the pump -----------------------------------------------------------------------------------------------------

    async def _wait_turn(self) -> None:
        """Until the pump has to read: at once, or when nobody leads and something has come, or the transport ended."""
        if self._wanted > self._patience and self._make_room():
            await trio.lowlevel.wait_task_rescheduled(self._abort)
            if self._failure is not None:
                raise self._failure
        else:
            await self._transport.wait_readable()

    def _make_room(self) -> bool:
        self._wanted = self._led = 0
        if type(self._transport) is not SocketTransport:  # one that is derived from it may have its own way to wait
            return False
        if self._watch is not None:
            self._watch.set(self._descriptor, WATCHED)
        else:
            self._descriptor = self._transport.fileno()
            try:
                found = watch()
                found.add(self._descriptor, self._call_pump)
            except OSError:  # there is no room for another descriptor
                self._patience = MOST_PATIENT
                return False
            self._watch = found
            self._transport.closing = self._on_closing
        self._parked = trio.lowlevel.current_task()
        self.vacant = True
        return True

    def _abort(self, _: object) -> trio.lowlevel.Abort:
        self._parked = None
        self.vacant = False
        return trio.lowlevel.Abort.SUCCEEDED

    def _call_pump(self) -> None:
        """Something has come and nobody leads."""
        if self.vacant:
            self._patience = 0 if self._led >= WORTHWHILE else min(2 * self._patience + 1, MOST_PATIENT)
            self._return_pump()

    def _return_pump(self) -> None:
        self.vacant = False
        if self._parked is not None:
            trio.lowlevel.reschedule(self._parked)
            self._parked = None

    def _on_closing(self) -> None:
        """The descriptor will be closed, by this path or by others; its number may be that of another one then."""
        if self._watch is not None:
            self._watch.remove(self._descriptor)
            self._watch = None
        if self._parked is not None and not self._over:
            self._failure = trio.ClosedResourceError("the transport was closed at this end")
        self._return_pump()

    # -- leaders ------------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        assert self._watch is not None
        self.vacant = False
        self._led += 1
        self._watch.set(self._descriptor, IGNORED)

    def _leave(self) -> None:
        if self._lost or self._failure is not None:
            self._return_pump()
        elif self._parked is not None and self._watch is not None:
            self.vacant = True
            self._watch.set(self._descriptor, WATCHED)

    def _drain_led(self) -> bool:
        """What goes wrong with the path is the pump's, also where another task reads."""
        try:
            return self._drain()
        except BaseException as exc:
            self._failure = exc
            return False

    def would_lead(self) -> None:
        """A task waits and another reads."""
        self._wanted += 1

    async def lead(self) -> None:
        """Wait until something has come, and do what it says, or the path has ended. Only while :attr:`vacant`."""
        self._begin()
        try:
            await trio.lowlevel.wait_readable(self._descriptor)
            self._drain_led()
        except trio.ClosedResourceError as exc:
            if not self._over:
                self._failure = exc
        finally:
            self._leave()

    async def _wait_end(self, ticket: Ticket) -> Frame | Reply | None:
        """Wait for the end of a message."""
        if self.vacant:
            return await self._lead_to_end(ticket)
        ended: Frame | Reply | None = await trio.lowlevel.wait_task_rescheduled(self._follow(ticket))
        return ended

    def _follow(self, ticket: Ticket) -> Abort:
        """The task will sleep until the message has ended, since another one reads."""
        self._wanted += 1
        ticket.task = trio.lowlevel.current_task()
        return ticket.abort

    async def _lead_to_end(self, ticket: Ticket) -> Frame | Reply | None:
        """Lead until the message has ended. Only while :attr:`vacant`."""
        self._begin()
        try:
            while True:
                await trio.lowlevel.wait_readable(self._descriptor)
                if not self._drain_led() or ticket.ended:
                    break
        except trio.ClosedResourceError as exc:
            if not self._over:
                self._failure = exc
        except BaseException:
            ticket.give_up(ticket.ident)
            raise
        finally:
            self._leave()
        if ticket.ended:
            return ticket.unwrap()
        ended: Frame | Reply | None = await trio.lowlevel.wait_task_rescheduled(self._follow(ticket))
        return ended
