"""The messages of one end until they have ended: what a session sends, keeps, and sends again to a successor."""

from collections import OrderedDict
from collections.abc import Callable, Collection
from itertools import islice
from typing import Any, Final

from retinue.pipes import wire
from retinue.pipes.draft import Draft
from retinue.pipes.errors import LimitExceeded, PathClosed, PathSevered, ProtocolViolation, WrongMode
from retinue.pipes.link import Close, Data, Link, Outgoing, Slot
from retinue.pipes.meter import Meter
from retinue.pipes.states import TABLE, Command, State
from retinue.pipes.wire import Frame, Kind

Store = Callable[[Frame], Slot]

# A longer body is not packed to find out that a packet is too small for it. (What fits must not travel in bulk.)
_LARGE: Final = wire.MAX_PACKET
_BINARY: Final = frozenset({bytes, bytearray, memoryview, Draft})


_NOTHING: Final[OrderedDict[int, None]] = OrderedDict()  # stays empty


class Outbox:
    """The sending half of a :class:`~retinue.pipes.session.Session`.

    ``limit`` is how many messages may be outstanding in each direction. ``store`` puts a frame that is too large for a
    packet into a memfd, ``close`` closes descriptors that nobody needs any more; without them there is neither.
    """

    __slots__ = (
        "_again", "_again_out", "_calls", "_close", "_last_out", "_last_out_urgent", "_lowest", "_sends", "_state",
        "_store", "_withdrawn", "held", "limit", "link", "meter", "name", "peer_limit", "room", "severed_by", "traces",
    )  # fmt: skip

    def __init__(self, limit: int, name: str, link: Link, store: Store | None, close: Close | None) -> None:
        if not 0 < limit <= wire.MAX_LIMIT:
            raise LimitExceeded("limit of outstanding messages", limit, wire.MAX_LIMIT)
        self.name = name
        self.limit = limit
        self.link = link
        self.meter = Meter()
        self.peer_limit = 0  # what both ends agree on, 0 before HELLO
        self.room = 0  # how many more messages may be sent now
        self.held = False  # the other end takes none
        self.traces = False  # the other end takes the traces of messages
        self.severed_by: PathSevered | PathClosed | None = None
        self._store = store
        self._close = close
        self._last_out = self._last_out_urgent = 0
        self._sends: dict[int, Data] = {}  # not ended, and what to send again if there may be a successor
        self._calls: dict[int, Data] = {}
        self._withdrawn: dict[int, None] = {}  # calls that were purged and have not ended
        self._again = _NOTHING  # those that wait to be sent to a successor, in order
        self._again_out = [0, 0]  # highest numbers that were written, by lane
        self._lowest = 0
        self._state = State.OPENING

    @property
    def state(self) -> State:
        """What this end is used for."""
        return self._state

    @property
    def last_sent(self) -> int:
        """The number of our last ordinary message, 0 when there was none."""
        return self._last_out

    def unreceived(self, first: int, last: int) -> bool:
        """Whether one of our ordinary one-way messages from ``first`` to ``last`` has not been received."""
        return first <= last and (last in self._sends or bool(within(self._sends, first, last)))

    @property
    def keeps_large(self) -> bool:
        """Whether one-way messages in memfds are kept for a successor, until they were received."""
        return any(type(data) is Outgoing and data.slot is not None for data in self._sends.values())

    @property
    def wanted(self) -> bool:
        """Whether a message of this end waits for its end, and has not been withdrawn."""
        return len(self._sends) + len(self._calls) > len(self._withdrawn)

    def newest(self, most: int) -> list[tuple[int, Kind, Data]]:
        """Our newest messages that have not ended, the latest number first, and what is kept of each (b"": nothing)."""
        found = [
            (ident, kind, ours[ident])
            for kind, ours in ((Kind.SEND, self._sends), (Kind.CALL, self._calls))
            for ident in islice(reversed(ours), most)
        ]
        return sorted(found, key=lambda each: -abs(each[0]))[:most]

    def _enter(self, state: State) -> None:
        self._state = state
        self._recount()

    def _step(self, command: Command) -> None:
        following = TABLE.get((self._state, command))
        if following is None:
            if self.severed_by is not None:
                raise self.severed_by
            raise WrongMode(f"{command.value} on the path {self.name or '(unnamed)'} while it is {self._state.value}")
        if following is not self._state:
            self._enter(following)

    # -- sending ------------------------------------------------------------------------------------------------------

    def _encode(self, frame: Frame, descriptors: tuple[int, ...] = ()) -> Data:
        """The frame as it will be queued; the descriptors are then its own."""
        if descriptors and (len(descriptors) > wire.MAX_DESCRIPTORS or self._close is None):
            most = wire.MAX_DESCRIPTORS if self._close is not None else 0
            raise LimitExceeded("descriptors of one message", len(descriptors), most)
        body = frame[-1] if frame[0] == Kind.REJECT else frame[2]
        if type(body) in _BINARY:
            if type(body) is Draft:
                return self._encode_draft(frame, descriptors)
            if len(body) > _LARGE:
                return self._shelve(frame, descriptors)
        data = wire.encode(frame)
        if len(data) > wire.MAX_PACKET:
            return self._shelve(frame, descriptors)
        return Outgoing(data, descriptors, self._close) if descriptors else data

    def _encode_draft(self, frame: Frame, descriptors: tuple[int, ...]) -> Data:
        draft = frame[2]
        if type(draft) is not Draft:
            raise TypeError("a draft is the body of a message, not the detail of a rejection")
        if draft.place is not None:
            return self._shelve(frame, descriptors)
        return self._encode([*frame[:2], draft.take(), *frame[3:]], descriptors)

    def _shelve(self, frame: Frame, descriptors: tuple[int, ...]) -> Outgoing:
        if len(descriptors) == wire.MAX_DESCRIPTORS:
            # Its memfd takes one place of the packet.
            raise LimitExceeded("descriptors of one large message", len(descriptors), wire.MAX_DESCRIPTORS - 1)
        if self._store is None:
            raise LimitExceeded("size of a message in bytes", len(wire.encode(frame)), wire.MAX_PACKET)
        slot = self._store(frame)
        return Outgoing(wire.encode([Kind.BULK, slot.size]), descriptors, self._close, slot)

    def _put(self, frame: Frame, urgent: bool = False) -> None:
        data = wire.encode(frame)
        self.meter.bytes_sent += len(data)
        self.link.put(data, urgent)

    def send(
        self, body: Any, descriptors: tuple[int, ...] = (), *, priority: bool = False, trace: bytes | None = None
    ) -> int:
        """Queue a one-way message; returns its id. LimitExceeded when there is no :attr:`room`.

        The descriptors are the session's from then on; they stay the caller's when this raises. A ``trace`` goes with
        the message if the other end takes any.
        """
        if self.room <= 0:
            self._refuse(Command.SEND)
        ident = self._last_out_urgent - 1 if priority else self._last_out + 1
        frame = [1, ident, body]
        if descriptors:
            frame.append(len(descriptors))
        if trace is not None and self.traces:
            _add_trace(frame, trace)
        data = self._encode(frame, descriptors)
        self._sends[ident] = data if self.link.keeps else b""
        self._sent(ident, data)
        return ident

    def call(
        self,
        body: Any,
        descriptors: tuple[int, ...] = (),
        *,
        priority: bool = False,
        remaining: int | None = None,
        trace: bytes | None = None,
    ) -> int:
        """Queue a call, which the caller gives up after ``remaining`` milliseconds; otherwise like :meth:`send`."""
        if self.room <= 0:
            self._refuse(Command.CALL)
        ident = self._last_out_urgent - 1 if priority else self._last_out + 1
        frame = [2, ident, body]
        if remaining is not None:
            frame += (len(descriptors), min(max(remaining, 1), wire.MAX_REMAINING))
        elif descriptors:
            frame.append(len(descriptors))
        if trace is not None and self.traces:
            _add_trace(frame, trace)
        data = self._encode(frame, descriptors)
        self._calls[ident] = data if self.link.keeps else b""
        self._sent(ident, data)
        return ident

    def _refuse(self, command: Command) -> None:
        self._step(command)
        if self.held:
            raise LimitExceeded("outstanding messages while the other end is quiesced", 1, 0)
        raise LimitExceeded("outstanding messages", len(self._sends) + len(self._calls) + 1, self.peer_limit)

    def _sent(self, ident: int, data: Data) -> None:
        urgent = ident < 0
        if urgent:
            self._last_out_urgent = ident
        else:
            self._last_out = ident
        meter = self.meter
        if isinstance(data, bytes):
            meter.bytes_sent += len(data)
        else:
            meter.bytes_sent += data.size
            if self.link.keeps:
                data.hold()
        meter.sent += 1
        self.link.put(data, urgent)
        self.room = room = self.room - 1
        if room < self._lowest:
            self._lowest = room
            meter.high_water = max(meter.high_water, self.peer_limit - room)

    def purge(self, ident: int) -> None:
        """Withdraw a call. No effect when its answer has already come."""
        if ident in self._calls and ident not in self._withdrawn and self._state is not State.SEVERED:
            self._step(Command.PURGE)
            if ident in self._again:  # the successor has never heard of it
                del self._again[ident]
                _drop(self._calls.pop(ident))
                self._feed()
                self._recount()
            else:
                self._withdrawn[ident] = None
                self._put([Kind.PURGE, ident], ident < 0)

    # -- ending -------------------------------------------------------------------------------------------------------

    def _on_answer(self, frame: Frame) -> Frame:
        ident = frame[1]
        if ident not in self._calls or (self._again and ident in self._again):
            raise ProtocolViolation(f"{Kind(frame[0]).name} for message {ident}, which does not wait for one")
        data = self._calls.pop(ident)
        if type(data) is not bytes:
            _drop(data)
        if self._withdrawn:
            self._withdrawn.pop(ident, None)
        if self._again:
            self._feed()
            self._recount()
        elif self._state is State.OPEN and not self.held:
            self.room += 1
        return frame

    def _on_ack(self, frame: Frame) -> Frame:
        _, first, last = frame
        sends = self._sends
        had = len(sends)
        if last in self._again:
            raise ProtocolViolation(f"ACK for messages {first} to {last}, which were not all sent")
        for ident in within(sends, first, last):
            if ident not in self._again:
                _drop(sends.pop(ident))
        if len(sends) == had:
            raise ProtocolViolation(f"ACK for messages {first} to {last}, none of which waits for one")
        self._feed()
        self._recount()
        return frame

    def end(self) -> None:
        """Nothing is written any more: let go of every frame."""
        self.link.end()
        for ours in (self._sends, self._calls):
            for frame in ours.values():
                _drop(frame)
            ours.clear()

    # -- other descriptors, other processes ---------------------------------------------------------------------------

    def unbind(self) -> None:
        """The descriptor was lost, but there will be another one."""
        unwritten = self.link.unwritten()
        for ours in (self._sends, self._calls):
            for ident, frame in ours.items():
                if id(frame) not in unwritten and ident not in self._again:
                    lane = 0 if ident > 0 else 1
                    self._again_out[lane] = max(self._again_out[lane], abs(ident))
        self.link.lose()

    def _offer_again(self) -> None:
        """A successor knows nothing: it will be sent everything that has not ended, when there is room."""
        for ident in self._withdrawn:
            _drop(self._calls.pop(ident))
        self._withdrawn.clear()
        if not self.traces:
            self._forget_traces()
        ours = [*self._sends, *self._calls]
        # In each lane the order of old; those of the fast lane first.
        self._again = OrderedDict.fromkeys(
            [*sorted((i for i in ours if i < 0), reverse=True), *sorted(i for i in ours if i > 0)]
        )
        self._feed()

    def _forget_traces(self) -> None:
        """The successor takes none: what goes to it again is written anew without."""
        for ours in (self._sends, self._calls):
            for ident, data in ours.items():
                frame = wire.decoder().decode_bulk(data if isinstance(data, bytes) else data.contents())
                if wire.trace_of(frame) is None:
                    continue
                if isinstance(data, bytes):
                    ours[ident] = self._encode(frame[:-1])
                else:
                    ours[ident] = self._encode(frame[:-1], data.descriptors)
                    data.descriptors = ()  # they are the new one's
                    data.drop()

    def _feed(self) -> None:
        """Send again what a successor has room for."""
        again = self._again
        while again and not self.held and len(self._sends) + len(self._calls) - len(again) < self.peer_limit:
            ident, _ = again.popitem(last=False)
            frame = self._sends.get(ident) or self._calls[ident]
            if not isinstance(frame, bytes):
                frame.hold()
            lane = 0 if ident > 0 else 1
            self.meter.redelivered += abs(ident) <= self._again_out[lane]
            self.meter.bytes_sent += len(frame) if isinstance(frame, bytes) else frame.size
            self.link.put(frame, ident < 0)

    def _recount(self) -> None:
        if self._state is State.OPEN and not self.held and not self._again:
            self.room = self.peer_limit - len(self._sends) - len(self._calls)
        else:
            self.room = 0


def within(idents: Collection[int], first: int, last: int) -> list[int]:
    """Which of the ids an ACK from ``first`` to ``last`` means, of one lane; their number does not make it slow."""
    if abs(last - first) < len(idents):
        return [
            ident
            for ident in range(first, last + 1 if first > 0 else last - 1, 1 if first > 0 else -1)
            if ident in idents
        ]
    low, high = (first, last) if first > 0 else (last, first)
    return [ident for ident in idents if low <= ident <= high]


def _add_trace(frame: Frame, trace: bytes) -> None:
    if len(frame) == 3:
        frame.append(0)
    frame.append(trace)


def _drop(frame: Data) -> None:
    if not isinstance(frame, bytes):
        frame.drop()
