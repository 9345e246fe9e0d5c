"""The sending half of a path: calls, one-way messages, and who waits for room."""

from collections.abc import Iterable
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final, cast

import attrs
import trio

from retinue.pipes import packet
from retinue.pipes.errors import PathClosed, WrongMode, fresh, rejection
from retinue.pipes.message import Reply, close_all, copy_all
from retinue.pipes.meter import Meter
from retinue.pipes.options import Options
from retinue.pipes.outbox import within
from retinue.pipes.overflow import Overflow, Waiters
from retinue.pipes.pump import Pump
from retinue.pipes.states import State
from retinue.pipes.ticket import Ticket
from retinue.pipes.traces import current
from retinue.pipes.transport import Transport
from retinue.pipes.wire import Frame, Kind

if TYPE_CHECKING:
    from retinue.pipes.path import Path


@attrs.frozen
class Unanswered:
    """A message of this end that has not ended. ``age`` is in seconds, None if nobody has noted when it was sent.

    ``frame`` are the bytes of its frame and ``size`` is their number, if they are kept; not those of a large message.
    """

    id: int
    kind: Kind
    size: int
    age: float | None
    frame: bytes


# Messages that send_many() hands over at once: the other end begins with them while this one goes on.
BATCH: Final = 64

_NEVER: Final = float("inf")


class Sender(Pump):
    """What :class:`~retinue.pipes.path.Path` does with messages of this end, from the verb to their end."""

    __slots__ = (
        "_acknowledged", "_calls", "_knocked", "_on_drop", "_overflow", "_room", "_sends", "limit", "name", "peer",
    )  # fmt: skip

    def __init__(self, transport: Transport, options: Options) -> None:
        super().__init__(transport, options)
        self.name = options.name
        self.peer = options.peer
        self.limit = options.limit
        self._overflow: Overflow = options.overflow
        self._on_drop = options.on_drop
        self._calls: dict[int, Ticket] = {}  # of tasks that wait for a reply, by message id
        self._sends: dict[int, Ticket] = {}  # of tasks that wait until a message was received
        self._room: Waiters | None = None
        self._knocked = False  # somebody has found no room since the last descriptor was lost
        self._acknowledged: trio.lowlevel.ParkingLot | None = None  # those who wait for many of them

    @property
    def meter(self) -> Meter:
        """What this end has counted."""
        meter = self.session.meter
        meter.outstanding = self.session.outstanding[0]
        return meter

    def _why(self) -> Exception:
        why = self.session.severed_by
        return PathClosed(self.name) if why is None else fresh(why)

    def check(self) -> None:
        """Raise why the path has ended, if it has."""
        if self.session.severed_by is not None:
            raise fresh(self.session.severed_by)

    def _end_outgoing(self) -> None:
        """Nothing is answered any more: tell everybody who waits for it."""
        for tickets in (self._calls, self._sends):
            for ticket in tickets.values():
                ticket.wake(None, self._why())
            tickets.clear()
        if self._room is not None:
            self._room.wake_all()
        if self._acknowledged is not None:
            self._acknowledged.unpark_all()

    # -- verbs --------------------------------------------------------------------------------------------------------

    async def call(self, body: Any = None, *, descriptors: tuple[int, ...] = (), priority: bool = False) -> Any:
        """Send a two-way message and wait for its reply; returns the reply's body.

        Waits first while there is no room for it. Cancelling withdraws the message: the peer's handler is cancelled.
        The time that the cancel scopes around the call leave travels with it. Raises :exc:`Rejected`
        (:exc:`AccessDenied` when policy forbids), :exc:`PathSevered`, :exc:`PathClosed`, :exc:`WrongMode`,
        :exc:`LimitExceeded`; TypeError for a body msgpack cannot say.
        """
        copies = copy_all(descriptors) if descriptors else ()
        if self.session.room <= 0 or self._room is not None:
            await self._wait_room_with(copies, priority)
        ticket = self._ask(body, copies, priority)
        reply: Any
        if self.vacant:
            reply = await self._lead_to_end(ticket)
        else:
            reply = await trio.lowlevel.wait_task_rescheduled(self._follow(ticket))
        if type(reply) is list:
            return reply[2]
        close_all(reply.descriptors)
        return reply.body

    async def call_reply(self, body: Any = None, *, descriptors: tuple[int, ...] = (), priority: bool = False) -> Reply:
        """Like :meth:`call`; returns the whole reply with its descriptors, which are the caller's to close."""
        copies = copy_all(descriptors) if descriptors else ()
        if self.session.room <= 0 or self._room is not None:
            await self._wait_room_with(copies, priority)
        reply: Any = await self._wait_end(self._ask(body, copies, priority))
        return Reply(reply[2]) if type(reply) is list else reply

    async def _wait_room_with(self, copies: tuple[int, ...], priority: bool) -> None:
        """The descriptors are copies made before: later the caller may have closed its own."""
        try:
            await self._wait_room(priority, False)
        except BaseException:
            close_all(copies)
            self._pass_room_on()
            raise

    def _ask(self, body: Any, copies: tuple[int, ...], priority: bool) -> Ticket:
        """Send a call; the caller's task then waits for what wakes the ticket."""
        try:
            left = trio.current_effective_deadline()
            remaining = None if left == _NEVER else int(max(0.0, left - trio.current_time()) * 1000)
            ident = self.session.call(body, copies, priority=priority, remaining=remaining, trace=current.get())
        except BaseException:
            close_all(copies)
            self._pass_room_on()
            raise
        since = perf_counter()
        if self._calls:
            self.flush_soon()
        else:
            self.flush()
            self.check()  # the flush may have found the path dead
        ticket = self._calls[ident] = Ticket(ident, since, self._withdraw)
        return ticket

    def _withdraw(self, ident: int) -> None:
        if self._calls.pop(ident, None) is not None:
            self.session.purge(ident)
            self.flush_soon()

    async def send(self, body: Any = None, *, descriptors: tuple[int, ...] = (), priority: bool = False) -> None:
        """Send a one-way message; returns when the peer's program has received it (or the edge's policy dropped it).

        The same waiting and errors as for :meth:`call`. Cancelled while it waits, the message may have arrived.
        """
        copies = copy_all(descriptors) if descriptors else ()
        try:
            if (self.session.room <= 0 or self._room is not None) and not await self._wait_room(priority, True):
                close_all(copies)
                return
            ident = self.session.send(body, copies, priority=priority, trace=current.get())
        except BaseException:
            close_all(copies)
            self._pass_room_on()
            raise
        if self.session.outstanding[0] == 1:
            self.flush()
        else:
            self.flush_soon()
        await self._wait_received(ident)

    async def _wait_received(self, ident: int) -> None:
        self.check()  # the flush may have found the path dead
        ticket = self._sends[ident] = Ticket(ident, perf_counter(), self._forget_send)
        await self._wait_end(ticket)

    def _forget_send(self, ident: int) -> None:
        self._sends.pop(ident, None)

    def send_nowait(self, body: Any = None, *, priority: bool = False) -> None:
        """Send a one-way message without waiting for anything; nobody learns whether it was received.

        Without room, and before the other end has greeted there is none: what the overflow policy says, but
        :exc:`trio.WouldBlock` for ``block``, and for ``sever`` as long as it has not. ``drop-oldest`` counts as
        ``drop-newest`` here, since nothing waits that could be dropped instead.
        """
        self.check()
        if self.session.room <= 0 or self._room is not None:
            if self.session.state not in (State.OPEN, State.OPENING):
                self.session.send(body)  # says what is wrong
            self._knock()
            if self._overflow == "block" or (self._overflow == "sever" and self.session.state is State.OPENING):
                raise trio.WouldBlock
            if self._overflow == "sever":
                self._sever_full()
            self._dropped()
            return
        self.session.send(body, priority=priority, trace=current.get())
        self.flush_soon()

    async def send_many(self, bodies: Iterable[Any]) -> int:
        """Send one-way messages in order, as many on their way as the limit allows, of large ones a few.

        Returns how many there were when the peer has received them all. They wait for room whatever the policy is.
        """
        session = self.session
        first = session.last_sent + 1
        last = first - 1
        count = 0
        trace = current.get()
        try:
            for body in bodies:
                if session.room <= 0 or self._room is not None:
                    self.flush()
                    await self._wait_room(False, False)
                last = session.send(body, trace=trace)
                count += 1
                if not count % BATCH or session.link.full:
                    self.flush()
                    # What waits here grows cold, and holds memory.
                    await self._wait_written(read=True)
        finally:
            self._pass_room_on()
            self.flush()
        while session.unreceived(first, last):
            if self._acknowledged is None:
                self._acknowledged = trio.lowlevel.ParkingLot()
            await self._acknowledged.park()
        self.check()
        await trio.lowlevel.checkpoint_if_cancelled()
        return count

    # -- room ---------------------------------------------------------------------------------------------------------

    async def _wait_room(self, priority: bool, may_drop: bool) -> bool:
        """Until a message may be sent: True. False when it ``may_drop`` and the policy has dropped it."""
        session = self.session
        self._knock()
        if session.state is State.OPEN and self._overflow != "block":
            if self._overflow == "sever":
                self._sever_full()
            if may_drop and self._overflow == "drop-newest":
                self._dropped()
                await trio.lowlevel.checkpoint()
                return False
        room = self._room = self._room or Waiters()
        may_drop = may_drop and self._overflow == "drop-oldest"
        woken = False
        while True:
            self.check()
            if session.state is not State.OPENING and session.state is not State.OPEN:
                raise WrongMode(f"a message on the path {self.name or '(unnamed)'} while it is {session.state.value}")
            if session.room > room.promised and (woken or not room.waiting):
                break
            if may_drop and room.droppable >= self.limit:
                room.drop_oldest()
                self._dropped()
            if not await room.wait(priority, may_drop):
                return False
            room.promised -= 1
            woken = True
        if room.idle:
            self._room = None
        return True

    def _knock(self) -> None:
        self._knocked = True
        if self._written is not None:
            self._written.unpark_all()

    @property
    def wanted(self) -> bool:
        """Whether this end has something to send, or would have if there was room."""
        return (
            self.session.wanted
            or self._knocked
            or self.session.state not in (State.OPENING, State.OPEN)
            or (self._room is not None and self._room.waiting > 0)
        )

    async def wait_wanted(self) -> None:
        """Until the path is :attr:`wanted`, while it has no descriptor; ``rebind`` may ask before it gets one."""
        await trio.lowlevel.checkpoint()
        while not self.wanted and not self._over:
            await self._wait_flush()

    def unanswered(self, most: int) -> list[Unanswered]:
        """The newest messages of this end that have not ended, at most so many, the latest first."""
        now = perf_counter()
        found = []
        for ident, kind, kept in self.session.newest(most):
            ticket = self._calls.get(ident) or self._sends.get(ident)
            size = len(kept) if isinstance(kept, bytes) else kept.size
            data = kept if isinstance(kept, bytes) else kept.data if kept.slot is None else b""
            found.append(Unanswered(ident, kind, size, None if ticket is None else now - ticket.since, data))
        return found

    def _pass_room_on(self) -> None:
        """Wake as many of those who wait for room as there is room for."""
        room = self._room
        if room is not None:
            for _ in range(self.session.room - room.promised):
                if not room.wake():
                    break
            if room.idle:
                self._room = None

    def _sever_full(self) -> None:
        self.session.give_up("overflow", f"more than {self.session.peer_limit} messages were outstanding")
        self.flush()
        self._end()
        self.check()

    def _dropped(self) -> None:
        self.session.meter.dropped += 1
        if self._on_drop is not None:
            self._on_drop(cast("Path", self))

    # -- what ends a message ------------------------------------------------------------------------------------------

    def _on_answer(self, frame: Frame, descriptors: list[int]) -> None:
        claimed: tuple[int, ...] = ()
        if len(frame) == 4:
            claimed = packet.claim(descriptors, frame[3])
        ticket = self._calls.pop(frame[1], None)
        if ticket is None:
            close_all(claimed)
        elif frame[0] == 4:
            ticket.wake(None, rejection(frame[2], frame[3], frame[4]))
        else:
            self.session.meter.answered(perf_counter() - ticket.since)
            ticket.wake(Reply(frame[2], claimed) if claimed else frame)
        if self._room is not None:
            self._pass_room_on()

    def _on_ack(self, frame: Frame, _: list[int]) -> None:
        if self._sends:
            _, first, last = frame
            for ident in within(self._sends, first, last):
                self._sends.pop(ident).wake(None)
        if self._acknowledged is not None:
            self._acknowledged.unpark_all()
        if self._room is not None:
            self._pass_room_on()
