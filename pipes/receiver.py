"""The receiving half of a path: messages of the peer, who waits for them, and how they are answered."""

from collections import deque
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, Final, cast

import trio

from retinue.pipes import packet
from retinue.pipes.errors import PathClosed, PathSevered
from retinue.pipes.message import Claimed, Message, close_all, copy_all
from retinue.pipes.options import Options
from retinue.pipes.sender import Sender
from retinue.pipes.serving import Failed, Handler, Serving
from retinue.pipes.states import State
from retinue.pipes.transport import Transport
from retinue.pipes.wire import Frame

if TYPE_CHECKING:
    from retinue.pipes.path import Path

_NO_MESSAGES: Final[deque[Message]] = deque(maxlen=0)


class Receiver(Sender):
    """What :class:`~retinue.pipes.path.Path` does with messages of the peer, from their frame to their answer."""

    __slots__ = ("_epoch", "_fast", "_inbox", "_pending", "_receivers", "_serving")

    def __init__(self, transport: Transport, options: Options) -> None:
        super().__init__(transport, options)
        self._epoch = 0  # counts the sessions at the other end
        self._inbox: deque[Message] = _NO_MESSAGES  # queues of their own when the first message comes
        self._fast: deque[Message] = _NO_MESSAGES  # those with priority
        self._receivers: trio.lowlevel.ParkingLot | None = None
        self._serving: Serving | None = None
        self._pending: dict[int, Message] = {}  # the peer's calls that are not answered

    # -- verbs --------------------------------------------------------------------------------------------------------

    async def receive(self) -> Message:
        """The next message of the peer; a one-way message is thereby received, a call must be answered.

        Raises :exc:`PathSevered` or :exc:`PathClosed` when the path has ended.
        """
        message = self.next_message()
        while message is None:
            if not self._due:
                self.flush()
            self.check()
            if self.vacant:
                await self.lead()
            else:
                self.would_lead()
                if self._receivers is None:
                    self._receivers = trio.lowlevel.ParkingLot()
                await self._receivers.park()
            message = self.next_message()
        if not message.wants_reply:
            self.acknowledge(message)
        return message

    def next_message(self) -> Message | None:
        """The next message, not yet received; None when there is none."""
        if self._fast:
            return self._fast.popleft()
        return self._inbox.popleft() if self._inbox else None

    @property
    def pending(self) -> int:
        """How many messages have come and were not taken."""
        return len(self._inbox) + len(self._fast)

    def __aiter__(self) -> AsyncIterator[Message]:
        """Message after message until the path has ended, whoever ended it."""
        return self

    async def __anext__(self) -> Message:
        # The ordinary case without the two coroutines of the other.
        if self._inbox and not self._fast:
            message = self._inbox.popleft()
            if not message.wants_reply:
                self.acknowledge(message)
            return message
        try:
            return await self.receive()
        except (PathSevered, PathClosed):
            raise StopAsyncIteration from None

    async def serve(self, handler: Handler, *, failed: Failed | None = None) -> None:
        """Run ``handler(message)`` for every message, as many at a time as there are, until the path has ended.

        What the handler returns is the reply. Raising :exc:`Rejected` refuses the message; any other exception refuses
        it with the code ``failed`` and ends serve with that exception, or is passed to ``failed`` instead (so does a
        result that cannot be sent). A call that the peer withdraws cancels its handler, and so does the end of the
        path; what is cancelled in another way is refused with the code ``cancelled``. The deadline of a call is for the
        handler to look at: only the caller knows whether it has given itself more time since.
        A one-way message counts as received when its handler has returned, so at most ``limit`` handlers run at a time.
        """
        serving = Serving(cast("Path", self), handler, failed)
        self._serving = serving
        try:
            await serving.run()
        finally:
            self._serving = None

    def acknowledge(self, message: Message) -> None:
        """Say that a one-way message was received. No effect a second time."""
        if message.epoch == self._epoch and not self._over:
            gathered = self.session.take(message.id)
            # All those of one turn of the loop go together, and the sender never waits longer for one.
            if gathered and not self._due:
                self.flush_soon()

    def answers(self, message: Message) -> bool:
        """Whether a call of the peer still waits for an answer of this end."""
        return message.epoch == self._epoch and self.session.waits(message.id)

    def reply(self, message: Message, body: Any, descriptors: tuple[int, ...] = ()) -> None:
        """:meth:`Message.reply` without a checkpoint."""
        session = self.session
        if session.state is State.SEVERED or message.epoch != self._epoch:
            return
        ident = message.id
        if descriptors:
            copies = copy_all(descriptors)
            delivered = False
            try:
                delivered = session.reply(ident, body, copies)
            finally:
                if not delivered:
                    close_all(copies)
        else:
            session.reply(ident, body)
        self._pending.pop(ident, None)
        self._flush_answer()

    def reject(self, message: Message, code: str, text: str = "", detail: Any = None) -> None:
        """:meth:`Message.reject` without a checkpoint."""
        if self.session.state is State.SEVERED or message.epoch != self._epoch:
            return
        self.session.reject(message.id, code, text, detail)
        self._pending.pop(message.id, None)
        self._flush_answer()

    def _flush_answer(self) -> None:
        if self._pending:
            self.flush_soon()
        else:
            self.flush()

    # -- what the pump tells ------------------------------------------------------------------------------------------

    def _on_message(self, frame: Frame, descriptors: list[int]) -> None:
        claimed = None
        if len(frame) > 3:
            if frame[3]:
                claimed = Claimed(packet.claim(descriptors, frame[3]))
            if len(frame) > 4 and type(frame[4]) is int:
                frame[4] = trio.current_time() + frame[4] / 1000
        message = Message(self, frame, self._epoch, self.session.replayed, claimed)  # type: ignore[arg-type]  # a Path
        if frame[0] == 2:
            self._pending[frame[1]] = message
        if frame[1] > 0:
            if self._inbox is _NO_MESSAGES:
                self._inbox = deque()
            self._inbox.append(message)
        else:
            if self._fast is _NO_MESSAGES:
                self._fast = deque()
            self._fast.append(message)

    def _on_purge(self, frame: Frame, _: list[int]) -> None:
        self._pending[frame[1]].withdraw()

    def _on_packet_done(self) -> None:
        if self._inbox or self._fast:
            if self._serving is not None:
                self._serving.wake()
            elif self._receivers is not None:
                self._receivers.unpark(count=self.pending)

    # -- what ends them -----------------------------------------------------------------------------------------------

    def _end_incoming(self) -> None:
        """Nothing comes any more: what has come can be received unless this end has ended the path."""
        self._forget_calls()
        if self.session.ended_here:
            self._inbox.clear()
            self._fast.clear()
        if self._serving is not None:
            self._serving.end()
        if self._receivers is not None:
            self._receivers.unpark_all()

    def _forget_calls(self) -> None:
        """Nobody waits for the answers to the peer's calls any more. Its one-way messages were sent, and stay."""
        for message in self._pending.values():
            message.withdraw()
        self._pending.clear()
        for inbox in (self._inbox, self._fast):
            if inbox:
                kept = [message for message in inbox if not message.wants_reply]
                inbox.clear()
                inbox.extend(kept)
