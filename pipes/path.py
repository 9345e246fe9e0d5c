"""The path as a program sees it: trio on one side, a :class:`~retinue.pipes.session.Session` on the other."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from retinue.pipes import wire
from retinue.pipes.draft import Draft
from retinue.pipes.errors import PathClosed, PathSevered, WrongMode
from retinue.pipes.link import Greeting
from retinue.pipes.options import OnDrop, Options, Rebind
from retinue.pipes.overflow import Overflow
from retinue.pipes.receiver import Receiver
from retinue.pipes.states import Binding, State
from retinue.pipes.stream import Chunks, PathStream
from retinue.pipes.transport import Transport
from retinue.pipes.wire import Frame, Kind


class Path(Receiver):
    """One end of a path: messages with answers, or (after :meth:`stream`) bytes.

    ``name`` is what this end calls the path, ``peer`` who is at the other end as far as this end may know (both only
    for texts and decisions, the wire knows neither), ``limit`` how many messages may be outstanding in each direction
    (the other end may lower it), ``largest`` how many bytes one of them may have: what a peer may make this end
    allocate is some fifty times that. ``overflow`` says what happens to a message for which there is no room,
    ``on_drop`` is called for each that is dropped. With ``rebind`` the path outlives its transport: when that ends
    without a word, ``rebind(path)`` returns another one, or raises :exc:`PathSevered`.
    """

    __slots__ = ("_quiescing", "_severed", "_turning", "chunks")

    def __init__(
        self,
        transport: Transport,
        *,
        name: str = "",
        peer: str = "",
        limit: int = wire.DEFAULT_LIMIT,
        largest: int = wire.MAX_MESSAGE,
        overflow: Overflow = "block",
        on_drop: OnDrop | None = None,
        rebind: Rebind | None = None,
        quiesced: bool = False,
    ) -> None:
        super().__init__(transport, Options(name, peer, limit, largest, overflow, on_drop, rebind, quiesced))
        self._quiescing: trio.lowlevel.ParkingLot | None = None
        self._severed: trio.Event | None = None
        self._turning: trio.lowlevel.ParkingLot | None = None  # who waits for the other end's greeting or stream
        self.chunks: Chunks | None = None  # of a byte stream

    def __repr__(self) -> str:
        return f"<Path {self.name or '-'} peer={self.peer or '-'} {self.session.state.value}>"

    # -- life -------------------------------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Pump the path until it is severed. Run it once, in a nursery, before anything else is awaited on the path."""
        try:
            if not self._over:
                self._bind()
            task_status.started()
            await self._pump()
        finally:
            self.sever()

    @property
    def severed(self) -> PathSevered | PathClosed | None:
        """Why the path has ended, or None while it has not."""
        return self.session.severed_by

    @property
    def broken_rule(self) -> str | None:
        """The rule that the peer broke, if this end has found that and ended the path.

        What the peer says of this end is no reason to say it of the peer.
        """
        why = self.severed
        if isinstance(why, PathSevered) and why.code == "violation" and self.session.ended_here:
            return why.text
        return None

    async def wait_severed(self) -> None:
        """Until the path has ended, whoever ended it."""
        if self._severed is None:
            self._severed = trio.Event()
            if self._over:
                self._severed.set()
        await self._severed.wait()

    async def wait_open(self) -> None:
        """Until the other end has greeted: before that the path cannot become a stream. Raises as :meth:`receive`."""
        await self._wait_while(State.OPENING)

    async def wait_stream(self) -> None:
        """Until the other end has turned the path to a stream, and sends no messages. Raises as :meth:`receive`."""
        await self._wait_while(State.OPENING, State.OPEN, State.ASKED)

    async def _wait_while(self, *states: State) -> None:
        await trio.lowlevel.checkpoint()
        while self.session.state in states:
            if self._turning is None:
                self._turning = trio.lowlevel.ParkingLot()
            await self._turning.park()
        self.check()

    def sever(self, code: str = "closed", text: str = "") -> None:
        """End the path now: the peer learns ``code`` and ``text``, everything outstanding at both ends is over."""
        if not self._over:
            self.session.sever(code, text, at_once=True)
            self.flush()
            self._end()

    async def aclose(self) -> None:
        """End the path after everything that was handed to it has been written."""
        try:
            # The last frame as well: cut off without it the end would look like a loss.
            self.session.sever("closed")
            self.flush()
            await self._wait_written()
            await trio.lowlevel.checkpoint()
        finally:
            self._end()

    async def wait_written(self) -> None:
        """Until everything that was handed over has been written, or the path has ended.

        As long as others with descriptors were not read, one with descriptors is not.
        """
        self.flush()
        await self._wait_written()
        await trio.lowlevel.checkpoint()

    def _end(self) -> None:
        if self._over:
            return
        self._close()
        self._end_outgoing()
        self._end_incoming()
        for lot in (self._quiescing, self._turning):
            if lot is not None:
                lot.unpark_all()
        if self._severed is not None:
            self._severed.set()
        if self.chunks is not None:
            self.chunks.wake_all()

    def _unbound(self) -> None:
        self._knocked = False

    async def _ask_rebind(self) -> Transport:
        assert self._rebind is not None
        return await self._rebind(self)

    def draft(self, size: int) -> Draft:
        """A body of so many bytes for one message of this path, to be made in place and then sent like bytes.

        From MAX_PACKET on this end does not copy it. Raises OSError when the host has no memory for it,
        :exc:`LimitExceeded` over MAX_MESSAGE, :exc:`PathSevered` or :exc:`PathClosed`.
        """
        self.check()
        return self._reserve(size)

    # -- quiet and bytes ----------------------------------------------------------------------------------------------

    async def quiesce(self) -> None:
        """Stop incoming messages without losing any; returns when the peer has confirmed that none follows.

        What has come already can still be received. The peer's sends and calls wait. Raises as :meth:`call`.
        """
        self.check()
        self.session.quiesce()
        self.flush()
        self.check()
        while not self.session.still and self.session.quiesced:
            if self._quiescing is None:
                self._quiescing = trio.lowlevel.ParkingLot()
            await self._quiescing.park()
            self.check()
        await trio.lowlevel.checkpoint_if_cancelled()

    async def resume(self) -> None:
        """Let messages come again."""
        self.check()
        self.session.resume()
        self.flush()
        if self._quiescing is not None:
            self._quiescing.unpark_all()
        await trio.lowlevel.checkpoint()

    async def release(self) -> None:
        """Leave the path to a successor of this end: let go of it as soon as no message of either end is outstanding.

        No more messages are taken; those that had been sent before the other end knew are. The other end is told no
        reason: with ``rebind`` it asks for another descriptor, and has nothing to send again. Raises as
        :meth:`call`, :exc:`WrongMode` for a byte stream, or what becomes one meanwhile: that cannot be left to anybody.
        """
        while True:
            await self.quiesce()
            while not self._over and self.session.state is State.OPEN and not self._ended_all():
                await self._wait_flush()
            self.check()
            if self.session.state is not State.OPEN:
                raise WrongMode(f"the path {self.name or '(unnamed)'} has become a byte stream: it cannot be released")
            if self.session.still:
                break
        self.let_go()

    def _ended_all(self) -> bool:
        return self.session.outstanding == (0, 0) and self._silent

    def let_go(self) -> None:
        """End this end now and say nothing: the other one takes its descriptor for lost. Outstanding messages are over.

        For this end the path is severed, with the code ``released``.
        """
        if not self._over:
            self.session.lose("released", "a successor goes on with it")
            self._end()

    @property
    def engaged(self) -> bool:
        """Whether a message of either end is outstanding.

        Without a descriptor also whether anything is :attr:`wanted`: else whoever sleeps at the other end may sleep on.
        """
        if self.session.link.binding is Binding.UNBOUND:
            return self.wanted or self.session.outstanding != (0, 0)
        return not self._ended_all()

    @property
    def streams(self) -> bool:
        """Whether bytes may pass, or may have passed. Not while the other end knows nothing of it."""
        return self.session.state in (State.ASKED, State.OFFERED, State.STREAM) and not self.session.turns_later

    @property
    def joined(self) -> bool:
        """Whether the other end is there: not before it has greeted, nor while another descriptor is waited for."""
        return self.session.link.binding is Binding.BOUND

    @property
    def held(self) -> bool:
        """Whether the peer has quiesced the path: messages of this end wait."""
        return self.session.held

    def stream(self) -> PathStream:
        """Turn the path into a byte stream with back-pressure and half-close; the other end does the same.

        :exc:`WrongMode` while messages are outstanding.
        """
        self.session.stream()
        if self.chunks is None:
            self.chunks = Chunks()
        if self._room is not None:
            self._room.wake_all()  # there will be none any more
        self.flush()
        return PathStream(self, self.chunks)

    # -- what the pump tells ------------------------------------------------------------------------------------------

    def _on_hello(self, frame: Frame, _: list[int]) -> None:
        if self.session.greeting is Greeting.SUCCESSOR:
            # Nobody waits for the answers to what the predecessor of the other end has asked.
            self._epoch += 1
            self._forget_calls()
            if self.pending > 2 * self.limit:
                self.session.give_up("overflow", "too many messages of its predecessors wait")
        if self.session.severed_by is not None:
            self.flush()
            self._end()
            return
        if self._turning is not None:
            self._turning.unpark_all()
        self._on_quiesced(frame, [])
        self._pass_room_on()
        self._pass_window_on()

    def _on_quiesced(self, _: Frame, __: list[int]) -> None:
        if self._quiescing is not None:
            self._quiescing.unpark_all()

    def _on_resume(self, _: Frame, __: list[int]) -> None:
        self._pass_room_on()
        self._pass_window_on()

    def _pass_window_on(self) -> None:
        """A byte stream whose beginning had to wait may have begun."""
        if self.chunks is not None:
            self.chunks.credit_came.unpark_all()

    def _on_stream(self, _: Frame, __: list[int]) -> None:
        if self.chunks is None:
            self.chunks = Chunks()
        self._pass_window_on()
        if self._room is not None:
            self._room.wake_all()  # there will be no room any more
        if self._turning is not None:
            self._turning.unpark_all()

    def _on_data(self, frame: Frame, _: list[int]) -> None:
        assert self.chunks is not None
        self.chunks.put(frame[1] if frame[0] == Kind.DATA else b"")

    def _on_credit(self, _: Frame, __: list[int]) -> None:
        assert self.chunks is not None
        self.chunks.credit_came.unpark_all()

    def _on_quiesce(self, _: Frame, __: list[int]) -> None:
        pass  # the session sends nothing; whoever wants to waits for room

    def _on_sever(self, _: Frame, __: list[int]) -> None:
        self._end()

    _ON_FRAME = {  # noqa: RUF012  # never changed
        Kind.SEND: Receiver._on_message,
        Kind.CALL: Receiver._on_message,
        Kind.REPLY: Receiver._on_answer,
        Kind.REJECT: Receiver._on_answer,
        Kind.HELLO: _on_hello,
        Kind.ACK: Receiver._on_ack,
        Kind.PURGE: Receiver._on_purge,
        Kind.SEVER: _on_sever,
        Kind.STREAM: _on_stream,
        Kind.DATA: _on_data,
        Kind.EOF: _on_data,
        Kind.CREDIT: _on_credit,
        Kind.QUIESCE: _on_quiesce,
        Kind.QUIESCED: _on_quiesced,
        Kind.RESUME: _on_resume,
    }


@asynccontextmanager
async def open_path(
    transport: Transport,
    *,
    name: str = "",
    peer: str = "",
    limit: int = wire.DEFAULT_LIMIT,
    largest: int = wire.MAX_MESSAGE,
    overflow: Overflow = "block",
    on_drop: OnDrop | None = None,
    rebind: Rebind | None = None,
    quiesced: bool = False,
) -> AsyncIterator[Path]:
    """A path over a transport for the length of the block, which runs its pump; severed at the end of the block."""
    path = Path(
        transport,
        name=name,
        peer=peer,
        limit=limit,
        largest=largest,
        overflow=overflow,
        on_drop=on_drop,
        rebind=rebind,
        quiesced=quiesced,
    )
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
