"""Packets in and out for a session: one reading task for each path, writing where a verb is called, and rebinding.

A wake-up reads everything that has come. Writing never waits; what the socket cannot take at once is written by a task
of its own. When the descriptor ends without a word, whoever owns the path is asked for another one.
"""

import contextlib
import errno
import os
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Final

import trio

from retinue.pipes import bulk, packet, wire
from retinue.pipes.draft import Draft
from retinue.pipes.errors import PathSevered, ProtocolViolation
from retinue.pipes.flusher import flusher
from retinue.pipes.intake import Intake
from retinue.pipes.link import Packet, Slot
from retinue.pipes.message import close_all
from retinue.pipes.options import Options
from retinue.pipes.reader import Reader
from retinue.pipes.session import Session
from retinue.pipes.states import Binding, State
from retinue.pipes.transport import Transport

if TYPE_CHECKING:
    pass

# Frames (or packets) read before other tasks get a turn: a packet may hold twenty thousand.
DRAIN: Final = 256
# Each so many bytes of a packet count as a frame: what is not taken while it is warm costs twice.
DRAIN_BYTES: Final = 2048

# Seconds after which a packet with descriptors is tried again that the host has refused for the number of them.
CROWDED_PAUSE: Final = 0.02

# Packets of one frame and fewer bytes than this come alone.
SMALL: Final = 4096


class Pump(Intake):
    """Carries the frames of one session over its present transport."""

    __slots__ = (
        "__weakref__", "_congested", "_due", "_largest", "_packet", "_reader", "_rebind", "_rebinding", "_shelf",
        "_written", "session",
    )  # fmt: skip

    def __init__(self, transport: Transport, options: Options) -> None:
        super().__init__(transport)
        self.session = Session(
            options.limit,
            options.name,
            keeps=options.rebind is not None,
            store=self._store,
            close=close_all,
            quiesced=options.quiesced,
        )
        self._largest = options.largest
        self._rebind = options.rebind
        self._rebinding: trio.CancelScope | None = None
        self._shelf: bulk.Shelf | None = None
        self._reader: Reader | None = None
        self._congested = False
        self._due = False  # the flusher will flush
        self._packet: Packet | None = None  # assembled, refused by the socket for now
        self._written: trio.lowlevel.ParkingLot | None = None

    # -- what a path does with it -------------------------------------------------------------------------------------

    # What is done with frames that the session has accepted, by kind, and with what descriptors of a packet are left.
    _ON_FRAME: ClassVar[Mapping[int, Callable[[Any, wire.Frame, list[int]], None]]]

    def _on_packet_done(self) -> None:
        """All frames of a packet were told."""

    def _end(self) -> None:
        """The session is severed and says why: wake everybody and call :meth:`_close`."""
        raise NotImplementedError

    def _unbound(self) -> None:
        """The descriptor was lost, and another one will be asked for."""

    def _ask_rebind(self) -> Awaitable[Transport]:
        raise NotImplementedError

    # -- life ---------------------------------------------------------------------------------------------------------

    def _bind(self) -> None:
        self.session.bind()
        self.flush()

    def _close(self) -> None:
        self._over = True
        self._transport.close()
        self.session.end()
        self._packet = None
        if self._shelf is not None:
            self._shelf.close()
        if self._reader is not None:
            self._reader.close()
        if self._rebinding is not None:
            self._rebinding.cancel()
        if self._written is not None:
            self._written.unpark_all()

    async def _pump(self) -> None:
        while not self._over:
            try:
                await self._wait_turn()
            except trio.ClosedResourceError:
                return
            if not self._over and (self._lost or not self._drain()) and not await self._get_other():
                return

    def _drain(self) -> bool:
        transport = self._transport
        turn = DRAIN
        while turn > 0:
            try:
                data, descriptors = transport.receive()
            except BlockingIOError:
                return True
            except ProtocolViolation as exc:
                self._give_up("violation", exc.rule)
                return False
            if not data:
                if descriptors:
                    close_all(descriptors)
                    self._give_up("violation", "descriptors without a frame")
                self._lost = True
                return False
            size = len(data)
            frames = self._on_packet(data, descriptors)
            if self._over:
                return False
            # A call or an answer: nothing follows, most likely, and to be told so costs as much as it. Where one
            # acknowledgement is, others are: to read each in a turn of its own costs far more than it.
            if size < SMALL and frames == 1 and data[1] != _ACK:
                return True
            turn -= max(1, frames, size // DRAIN_BYTES)
        return True

    async def _get_other(self) -> bool:
        """The transport has ended without a SEVER: get another one, if there will be one."""
        session = self.session
        if self._over or session.state is State.SEVERED:
            self._end()  # it was this end that closed it, or closes it just now
            return False
        if self._rebind is None:
            session.lose()
            self._end()
            return False
        self._transport.close()
        self._packet = None
        self._congested = False
        session.unbind()
        self._unbound()
        transport: Transport | None = None
        with trio.CancelScope() as self._rebinding:
            try:
                transport = await self._ask_rebind()
            except PathSevered as exc:
                session.lose(exc.code, exc.text)
        self._rebinding = None
        if transport is None or self._over:
            if transport is not None:
                transport.close()
            self._end()
            return False
        self._transport = transport
        self._lost = False
        self._wanted = 0
        self._bind()
        if self._written is not None:
            self._written.unpark_all()
        return True

    # -- reading ------------------------------------------------------------------------------------------------------

    def _on_packet(self, untrusted_packet: bytes | memoryview, descriptors: list[int]) -> int:
        """Do what the frames of a packet say; returns how many there were."""
        session = self.session
        meter = session.meter
        size = len(untrusted_packet)
        at_once = bool(descriptors)
        frames: list[wire.Frame] = []
        try:
            frames = wire.decoder().decode(untrusted_packet)
            receive, told = session.receive, self._ON_FRAME
            for frame in frames:
                if frame[0] in _UNUSUAL:
                    if frame[0] == wire.Kind.BULK:
                        size += frame[1]
                        frame = self._fetch(frame, descriptors)
                    else:
                        size -= len(wire.encode(frame))  # it is not metered
                accepted = receive(frame)
                if accepted is not None:
                    told[accepted[0]](self, accepted, descriptors)
                    if self._over:
                        break
        except ProtocolViolation as exc:
            self._give_up("violation", exc.rule)
        except MemoryError:
            self._give_up("no-storage", "a message was too large for the storage of its receiver")
        finally:
            if descriptors:
                close_all(descriptors)  # what no frame has claimed
        meter.bytes_received += size
        if not self._over:
            session.link.note(size, at_once=at_once)
            self._on_packet_done()
            if not session.link.idle:
                self.flush()
            elif self._written:
                self._written.unpark_all()
            link = session.link
            if (self._congested or link.held_back) and link.backlog > wire.most_unread(
                session.limit, stream=session.state is not State.OPEN
            ):
                self._give_up("violation", "it asks, and does not read what is answered")
        return len(frames)

    def _fetch(self, frame: wire.Frame, descriptors: list[int]) -> wire.Frame:
        if frame[1] > self._largest:
            raise ProtocolViolation(f"a message of {frame[1]} bytes, this end takes {self._largest}")
        if self._reader is None:
            self._reader = Reader()
        (descriptor,) = packet.claim(descriptors, 1)
        try:
            return self._reader.fetch(descriptor, frame[1])
        finally:
            os.close(descriptor)

    def _give_up(self, code: str, text: str) -> None:
        if not self._over:
            self.session.give_up(code, text)
            self.flush()
            self._end()

    # -- writing ------------------------------------------------------------------------------------------------------

    def _store(self, frame: wire.Frame) -> Slot:
        shelf = self._shelf = self._shelf or bulk.Shelf()
        return shelf.finish(frame) if type(frame[2]) is Draft else shelf.store(bulk.split(frame))

    def _reserve(self, size: int) -> Draft:
        self._shelf = self._shelf or bulk.Shelf()
        return self._shelf.reserve(size)

    def flush_soon(self) -> None:
        """Write in the next turn of the loop, together with what others say in this one."""
        if not self._due:
            self._due = True
            flusher().add(self)

    def flush(self) -> None:
        """Write what the session has to say, as far as the socket takes it; the rest follows by itself."""
        self._due = False
        session = self.session
        link = session.link
        if not self._congested:
            session.settle()
        while not self._congested and not self._over:
            try:
                if self._packet is None and (assembled := link.next_packet()) is not None:
                    self._packet = assembled
            except ProtocolViolation as exc:
                session.give_up("violation", exc.rule)
                with contextlib.suppress(OSError):  # its own packet: the link takes nothing more
                    self._transport.send(wire.encode([wire.Kind.SEVER, "violation", wire.clip(exc.rule)]))
                self._end()
                return
            if self._packet is None:
                break
            try:
                self._transport.send(*self._packet)
            except BlockingIOError:
                self._congested = True
                link.refused()
                trio.lowlevel.spawn_system_task(self._write_on, self._transport)
                return
            except BrokenPipeError:
                # Nobody reads. What they wrote before may still be there: the pump finds the end, and another one.
                self._congested = True
                link.refused()
                return
            except OSError as exc:
                if exc.errno == errno.ETOOMANYREFS:
                    self._congested = True
                    link.refused()
                    trio.lowlevel.spawn_system_task(self._write_later, self._transport)
                    return
                session.lose("lost", f"the host does not carry a packet: {exc.strerror}")
                self._end()
                return
            self._packet = None
            link.unsent = 0
            if link.idle:
                break
        else:
            return
        if self._written and not link.held_back:
            self._written.unpark_all()

    async def _write_on(self, transport: Transport) -> None:
        try:
            await transport.wait_writable()
        except trio.ClosedResourceError:
            return
        if transport is not self._transport:
            return  # it has another one by now
        self._congested = False
        self.flush()

    async def _write_later(self, transport: Transport) -> None:
        """Processes of this user have too many descriptors on their way (unix(7)), and no event tells when not."""
        await trio.sleep(CROWDED_PAUSE)
        if transport is self._transport and not self._over:
            self._congested = False
            self.flush()

    async def _wait_written(self, *, read: bool = False) -> None:
        """Until everything that was handed over has been written, or the path has ended.

        With ``read`` also until the other end has read so much of it that another large message finds a memfd. (Those
        of calls that are kept for a successor are not waited for: their answers may need what is written next.)
        """
        session = self.session
        link = session.link
        while not self._over and (
            self._congested
            or link.held_back
            or (read and self._shelf is not None and self._shelf.crowded and (link.carrying or session.keeps_large))
        ):
            await self._wait_flush()

    async def _wait_flush(self) -> None:
        """Until something was written, or there was an occasion to, or a packet has come, or the path has ended."""
        if self._written is None:
            self._written = trio.lowlevel.ParkingLot()
        await self._written.park()

    @property
    def _silent(self) -> bool:
        """Whether everything that was handed over has been written, on a binding whose other end has greeted."""
        link = self.session.link
        return (
            link.binding is Binding.BOUND
            and self._packet is None
            and not (self._due or self._congested or link.held_back)
            and link.idle
        )


_ACK: Final = int(wire.Kind.ACK)
_UNUSUAL: Final = frozenset({wire.Kind.HELLO, wire.Kind.SEEN, wire.Kind.SEVER, wire.Kind.BULK})
