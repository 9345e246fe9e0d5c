"""The path as a program sees it: trio on one side, a :class:`~retinue.pipes.session.Session` on the other.

A path is read by one task, its pump (:meth:`Path.run`), which drains everything that has come at each wake-up. Writing
happens where the verb is called and never waits; what the socket cannot take at once is written by a task of its own.
"""

import os
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import outcome
import trio

from retinue.pipes import bulk, packet, wire
from retinue.pipes.errors import PathClosed, PathSevered, ProtocolViolation, Rejected, fresh, rejection
from retinue.pipes.message import Message, Reply, close_all, copy_all
from retinue.pipes.session import (
    Answered,
    Bytes,
    Credited,
    Ended,
    Event,
    Incoming,
    Opened,
    Purged,
    Received,
    Refused,
    Session,
    State,
)
from retinue.pipes.stream import PathStream
from retinue.pipes.transport import Transport

# Frames (or packets) read before other tasks get a turn: a packet may hold twenty thousand.
DRAIN: Final = 256

Handler = Callable[[Message], Awaitable[Any]]
Failed = Callable[[Message, Exception], None]


class Path:
    """One end of a path: messages with answers, or (after :meth:`stream`) bytes.

    ``name`` is what this end calls the path, ``peer`` who is at the other end as far as this end may know (both only
    for texts and decisions, the wire knows neither), ``limit`` how many messages the peer may have outstanding here,
    ``largest`` how many bytes one of them may have: what a peer may make this end allocate is some fifty times that.
    """

    def __init__(
        self,
        transport: Transport,
        *,
        name: str = "",
        peer: str = "",
        limit: int = wire.DEFAULT_LIMIT,
        largest: int = wire.MAX_MESSAGE,
    ) -> None:
        self.name = name
        self.peer = peer
        self.limit = limit
        self.session = Session(limit, name)
        self._largest = largest
        self._transport = transport
        self._decoder = wire.Decoder()
        self._nursery: trio.Nursery | None = None
        self._ended = trio.Event()
        self._congested = False
        self._packet: tuple[bytes, tuple[int, ...]] | None = None  # assembled, refused by the socket for now
        self._written = trio.lowlevel.ParkingLot()
        self._waiting: dict[int, trio.lowlevel.Task] = {}  # calls and sends of this end, by message id
        self._room = trio.lowlevel.ParkingLot()
        self._inbox: deque[Message] = deque()
        self._receivers = trio.lowlevel.ParkingLot()
        self._pending: dict[int, Message] = {}  # the peer's calls that are not answered
        self._scopes: dict[int, trio.CancelScope] = {}  # handlers of those calls
        # Read and waited for by PathStream.
        self.chunks: deque[bytes] = deque()
        self.chunk_came = trio.lowlevel.ParkingLot()
        self.credit_came = trio.lowlevel.ParkingLot()

    def __repr__(self) -> str:
        return f"<Path {self.name or '-'} peer={self.peer or '-'} {self.session.state.value}>"

    # -- life -------------------------------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Pump the path until it is severed. Run it once, in a nursery, before anything else is awaited on the path."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                self.flush()
                task_status.started()
                await self._pump()
                nursery.cancel_scope.cancel()
        finally:
            self._nursery = None
            self.sever()

    @property
    def severed(self) -> PathSevered | PathClosed | None:
        """Why the path has ended, or None while it has not."""
        return self.session.severed_by

    async def wait_severed(self) -> None:
        """Until the path has ended, whoever ended it."""
        await self._ended.wait()

    def sever(self, code: str = "closed", text: str = "") -> None:
        """End the path now: the peer learns ``code`` and ``text``, everything outstanding at both ends is over."""
        self.session.sever(code, text)
        self.flush()
        self._end()

    async def aclose(self) -> None:
        """End the path after everything that was handed to it has been written."""
        try:
            # The last frame as well: cut off without it the end would look like a loss.
            self.session.sever("closed")
            self.flush()
            while self._congested and not self._ended.is_set():
                await self._written.park()
            await trio.lowlevel.checkpoint()
        finally:
            self._end()

    def _end(self) -> None:
        """Wake everybody; the session is severed already and says why."""
        if self._ended.is_set():
            return
        self._ended.set()
        self._transport.close()
        error = self.session.severed_by or PathClosed(self.name)
        waiting, self._waiting = self._waiting, {}
        for task in waiting.values():
            trio.lowlevel.reschedule(task, outcome.Error(fresh(error)))
        for message in self._inbox:
            close_all(message.descriptors)
        self._inbox.clear()
        for message in self._pending.values():
            message.purged.set()
        self._pending.clear()
        for scope in self._scopes.values():
            scope.cancel()
        for frame in self.session.outbox:
            close_all(frame.descriptors)
        self.session.outbox.clear()
        if self._packet is not None:
            close_all(self._packet[1])
            self._packet = None
        for lot in (self._room, self._receivers, self._written, self.chunk_came, self.credit_came):
            lot.unpark_all()

    def check(self) -> None:
        """Raise why the path has ended, if it has."""
        if self.session.severed_by is not None:
            raise fresh(self.session.severed_by)

    # -- outgoing ---------------------------------------------------------------------------------------------------

    async def call(self, body: Any = None, *, descriptors: tuple[int, ...] = ()) -> Any:
        """Send a two-way message and wait for its reply; returns the reply's body.

        Waits first while ``limit`` messages of this end are outstanding. Cancelling withdraws the message: the peer's
        handler is cancelled. Raises :exc:`Rejected` (:exc:`AccessDenied` when policy forbids), :exc:`PathSevered`,
        :exc:`PathClosed`, :exc:`WrongMode`, :exc:`LimitExceeded`; TypeError for a body msgpack cannot say.
        """
        reply = await self.call_reply(body, descriptors=descriptors)
        close_all(reply.descriptors)
        return reply.body

    async def call_reply(self, body: Any = None, *, descriptors: tuple[int, ...] = ()) -> Reply:
        """Like :meth:`call`; returns the whole reply with its descriptors, which are the caller's to close."""
        reply: Reply = await self._wait_end(await self._submit(self.session.call, body, descriptors))
        return reply

    async def send(self, body: Any = None, *, descriptors: tuple[int, ...] = ()) -> None:
        """Send a one-way message; returns when the peer's program has received it.

        The same waiting and errors as for :meth:`call`. Cancelled while it waits, the message may have arrived.
        """
        await self._wait_end(await self._submit(self.session.send, body, descriptors))

    async def _submit(
        self, command: Callable[[Any, tuple[int, ...]], int], body: Any, descriptors: tuple[int, ...]
    ) -> int:
        # Copies, and before any wait: later the caller may have closed its own, and their numbers mean something else.
        copies = copy_all(descriptors) if descriptors else ()
        try:
            session = self.session
            while session.state is State.OPENING or (session.state is State.OPEN and session.room <= 0):
                await self._room.park()
            self.check()
            ident = command(body, copies)
        except BaseException:
            close_all(copies)
            self._room.unpark()  # the place it may have been woken for is the next one's
            raise
        self.flush()
        return ident

    async def _wait_end(self, ident: int) -> Any:
        self.check()  # the flush may have found the path dead
        self._waiting[ident] = trio.lowlevel.current_task()

        def abort(_: Callable[[], None]) -> trio.lowlevel.Abort:
            self._waiting.pop(ident, None)
            self.session.purge(ident)
            self.flush()
            return trio.lowlevel.Abort.SUCCEEDED

        return await trio.lowlevel.wait_task_rescheduled(abort)

    def _wake(self, ident: int, result: outcome.Outcome[Any]) -> bool:
        self._room.unpark()
        task = self._waiting.pop(ident, None)
        if task is None:
            return False
        trio.lowlevel.reschedule(task, result)
        return True

    # -- incoming ---------------------------------------------------------------------------------------------------

    async def receive(self) -> Message:
        """The next message of the peer; a one-way message is thereby received, a call must be answered.

        Raises :exc:`PathSevered` or :exc:`PathClosed` when the path has ended.
        """
        message = await self._take()
        if not message.wants_reply:
            self._acknowledge(message)
        return message

    async def _take(self) -> Message:
        while not self._inbox:
            self.check()
            await self._receivers.park()
        return self._inbox.popleft()

    def __aiter__(self) -> AsyncIterator[Message]:
        """Message after message until the path has ended, whoever ended it."""
        return self

    async def __anext__(self) -> Message:
        try:
            return await self.receive()
        except (PathSevered, PathClosed):
            raise StopAsyncIteration from None

    async def serve(self, handler: Handler, *, failed: Failed | None = None) -> None:
        """Run ``handler(message)`` for every message, each in its own task, until the path has ended.

        What the handler returns is the reply. Raising :exc:`Rejected` refuses the message; any other exception refuses
        it with the code ``failed`` and ends serve with that exception, or is passed to ``failed`` instead (so does a
        result that cannot be sent). A call that the peer withdraws cancels its handler, and so does the end of the
        path; what is cancelled in another way is refused with the code ``cancelled``. A one-way message counts as
        received when its handler has returned, so at most ``limit`` handlers run at a time.
        """
        async with trio.open_nursery() as nursery:
            try:
                while True:
                    nursery.start_soon(self._handle, handler, failed, await self._take())
            except (PathSevered, PathClosed):
                nursery.cancel_scope.cancel()

    async def _handle(self, handler: Handler, failed: Failed | None, message: Message) -> None:
        with trio.CancelScope() as scope:
            self._scopes[message.id] = scope
            if message.purged.is_set():
                scope.cancel()
            try:
                try:
                    result = await handler(message)
                except Rejected as exc:
                    self._refuse(message, exc.code, exc.text, exc.detail)
                else:
                    self._answer(message, result)
            except Exception as exc:
                self._refuse(message, "failed", f"the handler raised {type(exc).__name__}")
                if failed is None:
                    raise
                failed(message, exc)
            finally:
                del self._scopes[message.id]
                # Whoever serves may be cancelled while the path lives on: nobody must wait for an answer for ever.
                self._refuse(message, "purged" if message.purged.is_set() else "cancelled")

    def _answer(self, message: Message, result: Any) -> None:
        if not message.wants_reply:
            self._acknowledge(message)
        elif self.session.waits(message.id):
            self.reply(message, result)

    def _refuse(self, message: Message, code: str, text: str = "", detail: Any = None) -> None:
        if not message.wants_reply:
            self._acknowledge(message)
        elif self.session.waits(message.id):
            self.reject(message, code, text, detail)

    def _acknowledge(self, message: Message) -> None:
        if self.session.state is not State.SEVERED and self.session.waits(message.id):
            self.session.acknowledge(message.id)
            self.flush()

    def reply(self, message: Message, body: Any, descriptors: tuple[int, ...] = ()) -> None:
        """:meth:`Message.reply` without a checkpoint."""
        if self.session.state is State.SEVERED:
            return
        copies = copy_all(descriptors) if descriptors else ()
        delivered = False
        try:
            delivered = self.session.reply(message.id, body, copies)
        finally:
            if not delivered:
                close_all(copies)
        self._pending.pop(message.id, None)
        self.flush()

    def reject(self, message: Message, code: str, text: str = "", detail: Any = None) -> None:
        """:meth:`Message.reject` without a checkpoint."""
        if self.session.state is State.SEVERED:
            return
        self.session.reject(message.id, code, text, detail)
        self._pending.pop(message.id, None)
        self.flush()

    def stream(self) -> PathStream:
        """Turn the path into a byte stream with back-pressure and half-close; the other end does the same.

        :exc:`WrongMode` while messages are outstanding.
        """
        self.session.stream()
        self.flush()
        return PathStream(self)

    # -- the pump ---------------------------------------------------------------------------------------------------

    async def _pump(self) -> None:
        transport = self._transport
        while not self._ended.is_set():
            try:
                await transport.wait_readable()
            except trio.ClosedResourceError:
                return
            turn = DRAIN
            while turn > 0:
                try:
                    data, descriptors = transport.receive()
                except BlockingIOError:
                    break
                except ProtocolViolation as exc:
                    self._give_up("violation", exc.rule)
                    return
                if not data and not descriptors:
                    self.session.lose()
                    self._end()
                    return
                turn -= max(1, self._on_packet(data, descriptors))
                if self._ended.is_set():
                    return

    def _on_packet(self, untrusted_packet: bytes | memoryview, descriptors: list[int]) -> int:
        """Do what the frames of a packet say; returns how many there were."""
        session = self.session
        frames: list[wire.Frame] = []
        try:
            frames = self._decoder.decode(untrusted_packet)
            for frame in frames:
                if self._ended.is_set():
                    break
                if frame[0] == wire.Kind.BULK:
                    if frame[1] > self._largest:
                        raise ProtocolViolation(f"a message of {frame[1]} bytes, this end takes {self._largest}")
                    (descriptor,) = packet.claim(descriptors, 1)
                    try:
                        data = bulk.fetch(descriptor, frame[1])
                    finally:
                        os.close(descriptor)
                    frame = self._decoder.decode_bulk(data)
                event = session.receive(frame)
                if event is not None:
                    self._on_event(event, descriptors)
        except ProtocolViolation as exc:
            self._give_up("violation", exc.rule)
        except MemoryError:
            self._give_up("no-storage", "a message was too large for the storage of its receiver")
        finally:
            close_all(descriptors)  # what no frame has claimed
        return len(frames)

    def _give_up(self, code: str, text: str) -> None:
        self.session.give_up(code, text)
        self.flush()
        self._end()

    def _on_event(self, event: Event, descriptors: list[int]) -> None:
        match event:
            case Incoming():
                claimed = packet.claim(descriptors, event.descriptors)
                message = Message(self, event.id, event.body, event.wants_reply, claimed)
                if event.wants_reply:
                    self._pending[event.id] = message
                self._inbox.append(message)
                self._receivers.unpark()
            case Answered():
                claimed = packet.claim(descriptors, event.descriptors)
                if not self._wake(event.id, outcome.Value(Reply(event.body, claimed))):
                    close_all(claimed)
            case Received():
                self._wake(event.id, outcome.Value(None))
            case Refused():
                self._wake(event.id, outcome.Error(rejection(event.code, event.text, event.detail)))
            case Purged():
                self._pending[event.id].purged.set()
                if (scope := self._scopes.get(event.id)) is not None:
                    scope.cancel()
            case Bytes():
                self.chunks.append(event.data)
                self.chunk_came.unpark_all()
            case Credited():
                self.credit_came.unpark_all()
            case Opened():
                self._room.unpark(count=event.limit)
            case Ended():
                self._end()

    # -- writing ----------------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Write what the session has to say, as far as the socket takes it; the rest follows by itself."""
        outbox = self.session.outbox
        while not self._congested and (outbox or self._packet is not None):
            try:
                data, descriptors = self._packet or packet.assemble(outbox)
            except OSError as exc:
                self.session.lose("lost", f"no memory or descriptors for a large message: {exc.strerror}")
                self._end()
                return
            try:
                self._transport.send(data, descriptors)
            except BlockingIOError:
                self._packet = data, descriptors
                if self._nursery is not None:
                    self._congested = True
                    self._nursery.start_soon(self._write_on)
                return
            except BrokenPipeError:
                # Nobody reads. What they wrote before may still be there: the pump finds the end.
                pass
            except OSError as exc:
                self._packet = None
                close_all(descriptors)
                self.session.lose("lost", f"the host does not carry a packet: {exc.strerror}")
                self._end()
                return
            self._packet = None
            close_all(descriptors)

    async def _write_on(self) -> None:
        try:
            await self._transport.wait_writable()
        except trio.ClosedResourceError:
            return
        self._congested = False
        self.flush()
        if not self._congested:
            self._written.unpark_all()


@asynccontextmanager
async def open_path(
    transport: Transport,
    *,
    name: str = "",
    peer: str = "",
    limit: int = wire.DEFAULT_LIMIT,
    largest: int = wire.MAX_MESSAGE,
) -> AsyncIterator[Path]:
    """A path over a transport for the length of the block, which runs its pump; severed at the end of the block."""
    path = Path(transport, name=name, peer=peer, limit=limit, largest=largest)
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(path.run)
            try:
                yield path
            finally:
                path.sever()
    except BaseExceptionGroup as group:
        # The pump raises nothing of its own: what is in the group came out of the block, and leaves it as it was.
        if len(group.exceptions) == 1:
            raise group.exceptions[0] from None
        raise
