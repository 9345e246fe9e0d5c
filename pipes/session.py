"""One end of a path as a state machine without I/O: commands and frames in, frames and events out.

The states and what may happen in each stand in :data:`TABLE`; a pair that is not there is a
:exc:`ProtocolViolation` when the peer did it and :exc:`WrongMode` when you did. The rule that keeps both ends in step:
**every message ends exactly once**, a one-way message by ACK, a call by one REPLY or REJECT, also when it was purged.
A message counts against the limit until then, at both ends alike.
"""

from collections import deque
from collections.abc import Callable
from enum import Enum
from typing import Any, Final, NamedTuple

from retinue.pipes import wire
from retinue.pipes.errors import LimitExceeded, PathClosed, PathSevered, ProtocolViolation, WrongMode
from retinue.pipes.wire import Frame, Kind


class State(Enum):
    """Where one end of a path stands."""

    OPENING = "opening"  # our HELLO is out, the other one has not come
    OPEN = "open"  # messages may pass
    ASKED = "asked"  # we have turned to a stream, the other end not yet
    OFFERED = "offered"  # the other end has turned to a stream, we not yet
    STREAM = "stream"  # bytes pass
    SEVERED = "severed"  # nothing passes any more


class Command(Enum):
    """What the program on this end asks for."""

    SEND = "send"
    CALL = "call"
    ANSWER = "answer"  # reply, reject or acknowledge
    PURGE = "purge"
    STREAM = "stream"
    BYTES = "bytes"  # send bytes or end of stream
    CREDIT = "credit"  # take bytes out of the stream
    SEVER = "sever"


_MESSAGES: Final = (Kind.SEND, Kind.CALL, Kind.PURGE)
_ANSWERS: Final = (Kind.REPLY, Kind.REJECT, Kind.ACK)
_BYTES: Final = (Kind.DATA, Kind.EOF)

Step = dict[tuple[State, Kind | Command], State]


def _stay(state: State, *inputs: Kind | Command) -> Step:
    return {(state, each): state for each in inputs}


# (state, frame from the peer or command of this end) -> next state
TABLE: Final[Step] = {
    (State.OPENING, Kind.HELLO): State.OPEN,
    **_stay(State.OPEN, *_MESSAGES, *_ANSWERS, Command.SEND, Command.CALL, Command.ANSWER, Command.PURGE),
    (State.OPEN, Command.STREAM): State.ASKED,
    (State.OPEN, Kind.STREAM): State.OFFERED,
    # We stream; what the peer sent as messages before it turned may still arrive and be answered.
    **_stay(
        State.ASKED, *_MESSAGES, *_ANSWERS, Command.ANSWER, Command.PURGE, Command.BYTES, Command.CREDIT, Kind.CREDIT
    ),
    (State.ASKED, Kind.STREAM): State.STREAM,
    # The peer streams; its bytes wait until we turn as well.
    **_stay(State.OFFERED, *_ANSWERS, *_BYTES, Kind.PURGE, Command.ANSWER, Command.PURGE),
    (State.OFFERED, Command.STREAM): State.STREAM,
    **_stay(State.STREAM, *_BYTES, *_ANSWERS, Kind.PURGE, Kind.CREDIT),
    **_stay(State.STREAM, Command.ANSWER, Command.PURGE, Command.BYTES, Command.CREDIT),
    **{(state, Kind.SEVER): State.SEVERED for state in State if state is not State.SEVERED},
    **{(state, Command.SEVER): State.SEVERED for state in State if state is not State.SEVERED},
}


class Opened(NamedTuple):
    """The other end has said HELLO: up to ``limit`` messages may be outstanding towards it."""

    limit: int


class Incoming(NamedTuple):
    """A message for this end's program."""

    id: int
    body: Any
    wants_reply: bool
    descriptors: int


class Answered(NamedTuple):
    """A call of this end ended with a reply."""

    id: int
    body: Any
    descriptors: int


class Refused(NamedTuple):
    """A call of this end was rejected (code ``purged`` when this end had withdrawn it)."""

    id: int
    code: str
    text: str
    detail: Any


class Received(NamedTuple):
    """A one-way message of this end has been received by the other program."""

    id: int


class Purged(NamedTuple):
    """The other end withdrew a call that this end's program has not answered yet."""

    id: int


class Bytes(NamedTuple):
    """A chunk of the stream; empty at its end."""

    data: bytes


class Credited(NamedTuple):
    """The reader took bytes out: there is room for more."""


class Ended(NamedTuple):
    """The path is severed by the other end."""

    code: str
    text: str


Event = Opened | Incoming | Answered | Refused | Received | Purged | Bytes | Credited | Ended


class Outgoing(NamedTuple):
    """An encoded frame and the descriptors (as the caller gave them) that travel with it."""

    data: bytes
    descriptors: tuple[int, ...]


class Session:
    """The state of one end.

    ``limit`` is how many messages this end lets the other have outstanding; the other end's comes with its HELLO.
    Commands put encoded frames into :attr:`outbox`; :meth:`receive` takes one checked frame and returns its event.
    """

    __slots__ = (
        "_eof_in", "_eof_out", "_in", "_last_in", "_last_out", "_out", "_unread", "_window",
        "limit", "name", "outbox", "peer_limit", "severed_by", "state",
    )  # fmt: skip

    def __init__(self, limit: int = wire.DEFAULT_LIMIT, name: str = "") -> None:
        if not 0 < limit <= wire.MAX_LIMIT:
            raise LimitExceeded("limit of outstanding messages", limit, wire.MAX_LIMIT)
        self.name = name
        self.limit = limit
        self.peer_limit = 0
        self.state = State.OPENING
        self.severed_by: PathSevered | PathClosed | None = None
        self.outbox: deque[Outgoing] = deque()
        self._last_in = self._last_out = 0
        self._out: dict[int, Kind] = {}  # ours, not ended: SEND, CALL, or PURGE for a call that was withdrawn
        self._in: dict[int, Kind] = {}  # theirs, not ended, likewise
        self._window = wire.STREAM_WINDOW  # bytes we may still send
        self._unread = 0  # bytes of theirs that were not credited back
        self._eof_in = self._eof_out = False
        self._put([Kind.HELLO, wire.VERSION, limit])

    # -- what can be asked ------------------------------------------------------------------------------------------

    @property
    def room(self) -> int:
        """How many more messages may be sent now; 0 before HELLO and on a stream."""
        return self.peer_limit - len(self._out) if self.state is State.OPEN else 0

    @property
    def outstanding(self) -> tuple[int, int]:
        """Messages that have not ended: (ours, theirs)."""
        return len(self._out), len(self._in)

    @property
    def window(self) -> int:
        """Bytes that may be sent into the stream now."""
        return self._window

    # -- commands of this end ---------------------------------------------------------------------------------------

    def _step(self, command: Command) -> None:
        following = TABLE.get((self.state, command))
        if following is None:
            if self.severed_by is not None:
                raise self.severed_by
            raise WrongMode(f"{command.value} on the path {self.name or '(unnamed)'} while it is {self.state.value}")
        self.state = following

    def _put(self, frame: Frame, descriptors: tuple[int, ...] = ()) -> None:
        if len(descriptors) > wire.MAX_DESCRIPTORS:
            raise LimitExceeded("descriptors of one message", len(descriptors), wire.MAX_DESCRIPTORS)
        if descriptors:
            frame.append(len(descriptors))
        data = wire.encode(frame)
        if len(data) > wire.MAX_PACKET and len(descriptors) == wire.MAX_DESCRIPTORS:
            # Its memfd takes one place of the packet.
            raise LimitExceeded("descriptors of one large message", len(descriptors), wire.MAX_DESCRIPTORS - 1)
        self.outbox.append(Outgoing(data, descriptors))

    def _message(self, kind: Kind, body: Any, descriptors: tuple[int, ...]) -> int:
        self._step(Command.CALL if kind is Kind.CALL else Command.SEND)
        if len(self._out) >= self.peer_limit:
            raise LimitExceeded("outstanding messages", len(self._out) + 1, self.peer_limit)
        ident = self._last_out + 1
        self._put([kind, ident, body], descriptors)
        self._last_out = ident
        self._out[ident] = kind
        return ident

    def send(self, body: Any, descriptors: tuple[int, ...] = ()) -> int:
        """Queue a one-way message; returns its id. LimitExceeded when there is no :attr:`room`."""
        return self._message(Kind.SEND, body, descriptors)

    def call(self, body: Any, descriptors: tuple[int, ...] = ()) -> int:
        """Queue a call; returns its id. LimitExceeded when there is no :attr:`room`."""
        return self._message(Kind.CALL, body, descriptors)

    def purge(self, ident: int) -> None:
        """Withdraw a call. No effect when its answer has already come."""
        if self._out.get(ident) is Kind.CALL and self.state is not State.SEVERED:
            self._step(Command.PURGE)
            self._out[ident] = Kind.PURGE
            self._put([Kind.PURGE, ident])

    def reply(self, ident: int, body: Any, descriptors: tuple[int, ...] = ()) -> bool:
        """Answer a call. False when the caller had withdrawn it: then a rejection ``purged`` goes out instead."""
        self._step(Command.ANSWER)
        kind = self._in.get(ident)
        if kind is Kind.PURGE:
            self._finish(ident, [Kind.REJECT, ident, "purged", "", None])
            return False
        if kind is not Kind.CALL:
            raise WrongMode(f"message {ident} is not a call that waits for an answer")
        self._put([Kind.REPLY, ident, body], descriptors)
        del self._in[ident]
        return True

    def reject(self, ident: int, code: str, text: str = "", detail: Any = None) -> None:
        """Refuse a call."""
        self._step(Command.ANSWER)
        kind = self._in.get(ident)
        if kind is not Kind.CALL and kind is not Kind.PURGE:
            raise WrongMode(f"message {ident} is not a call that waits for an answer")
        self._finish(ident, [Kind.REJECT, ident, wire.clip(code), wire.clip(text), detail])

    def acknowledge(self, ident: int) -> None:
        """Say that a one-way message has been received by the program."""
        self._step(Command.ANSWER)
        if self._in.get(ident) is not Kind.SEND:
            raise WrongMode(f"message {ident} is not a one-way message that waits to be received")
        self._finish(ident, [Kind.ACK, ident])

    def _finish(self, ident: int, frame: Frame) -> None:
        self._put(frame)
        del self._in[ident]

    def stream(self) -> None:
        """Turn this end into a byte stream. WrongMode while messages are outstanding."""
        if self.state is not State.SEVERED and (self._out or self._in):
            raise WrongMode(
                f"the path {self.name or '(unnamed)'} has messages outstanding: stream() must wait for them"
            )
        self._step(Command.STREAM)
        self._put([Kind.STREAM])

    def send_bytes(self, data: bytes | memoryview) -> None:
        """Queue one chunk, at most MAX_CHUNK and at most :attr:`window` bytes."""
        self._step(Command.BYTES)
        if self._eof_out:
            raise WrongMode("the stream was ended at this end")
        if not 0 < len(data) <= min(wire.MAX_CHUNK, self._window):
            raise LimitExceeded("bytes of one chunk", len(data), min(wire.MAX_CHUNK, self._window))
        self._window -= len(data)
        self._put([Kind.DATA, data])

    def send_eof(self) -> None:
        """Say that no more bytes follow; a second time has no effect."""
        self._step(Command.BYTES)
        if not self._eof_out:
            self._eof_out = True
            self._put([Kind.EOF])

    def credit(self, count: int) -> None:
        """Give the peer room for ``count`` more bytes: the program has taken them."""
        self._step(Command.CREDIT)
        self._unread -= count
        self._put([Kind.CREDIT, count])

    def sever(self, code: str, text: str = "") -> None:
        """End the path from this end. Everything outstanding is over; a second time has no effect."""
        if self.state is not State.SEVERED:
            self._step(Command.SEVER)
            self._put([Kind.SEVER, wire.clip(code), wire.clip(text)])
            self.severed_by = PathClosed(self.name)

    def give_up(self, code: str, text: str) -> None:
        """End the path because of what the peer sent (``violation``: it broke the rule ``text``); it is told so."""
        if self.state is not State.SEVERED:
            self.sever(code, text)
            self.severed_by = PathSevered(code, text, self.name)

    def waits(self, ident: int) -> bool:
        """Whether the peer's message still waits for this end to answer or acknowledge it."""
        return ident in self._in

    def lose(self, code: str = "lost", text: str = "the other end is gone") -> Ended | None:
        """The descriptor under the path is gone. Returns the event, or None when the path had ended before."""
        if self.state is State.SEVERED:
            return None
        self.state = State.SEVERED
        self.severed_by = PathSevered(code, text, self.name)
        return Ended(code, text)

    # -- frames from the peer ---------------------------------------------------------------------------------------

    def receive(self, frame: Frame) -> Event | None:
        """Take one frame that :mod:`retinue.pipes.wire` has checked; returns what it means for this end.

        None for what concerns nobody any more. Raises :exc:`ProtocolViolation`.
        """
        state = self.state
        if state is State.SEVERED:
            return None  # it crossed our SEVER
        step = _STEPS[state].get(frame[0])
        if step is None:
            raise ProtocolViolation(f"{Kind(frame[0]).name} is not allowed while the path is {state.value}")
        self.state, action = step
        return action(self, frame) if action is not None else None

    def _on_hello(self, frame: Frame) -> Event:
        if frame[1] != wire.VERSION:
            raise ProtocolViolation(f"the other end speaks version {frame[1]}, this one {wire.VERSION}")
        self.peer_limit = frame[2]
        return Opened(frame[2])

    def _on_message(self, frame: Frame) -> Event:
        kind, ident = frame[0], frame[1]
        if ident != self._last_in + 1:
            raise ProtocolViolation(f"message {ident} follows message {self._last_in}")
        if len(self._in) >= self.limit:
            raise ProtocolViolation(f"more than {self.limit} messages outstanding")
        self._last_in = ident
        self._in[ident] = Kind(kind)
        return Incoming(ident, frame[2], kind == Kind.CALL, wire.descriptors_of(frame))

    def _on_answer(self, frame: Frame) -> Event | None:
        kind, ident = frame[0], frame[1]
        ours = self._out.pop(ident, None)
        if ours is None or (ours is Kind.SEND) != (kind == Kind.ACK):
            raise ProtocolViolation(f"{Kind(kind).name} for message {ident}, which does not wait for one")
        if kind == Kind.ACK:
            return Received(ident)
        if kind == Kind.REPLY:
            return Answered(ident, frame[2], wire.descriptors_of(frame))
        return Refused(ident, frame[2], frame[3], frame[4])

    def _on_purge(self, frame: Frame) -> Event | None:
        ident = frame[1]
        kind = self._in.get(ident)
        if kind is Kind.CALL:
            self._in[ident] = Kind.PURGE
            return Purged(ident)
        if kind is None and ident <= self._last_in:
            return None  # our answer crossed it
        raise ProtocolViolation(f"PURGE of message {ident}, which is not a call")

    def _on_data(self, frame: Frame) -> Event:
        data: bytes = frame[1]
        if self._eof_in:
            raise ProtocolViolation("DATA after EOF")
        self._unread += len(data)
        if self._unread > wire.STREAM_WINDOW:
            raise ProtocolViolation("more bytes than the window allows")
        return Bytes(data)

    def _on_eof(self, frame: Frame) -> Event | None:
        if self._eof_in:
            raise ProtocolViolation("EOF twice")
        self._eof_in = True
        return Bytes(b"")

    def _on_credit(self, frame: Frame) -> Event:
        self._window += frame[1]
        if self._window > wire.STREAM_WINDOW:
            raise ProtocolViolation("credit for more bytes than were sent")
        return Credited()

    def _on_sever(self, frame: Frame) -> Event:
        self.severed_by = PathSevered(frame[1], frame[2], self.name)
        return Ended(frame[1], frame[2])


_ACTIONS: Final[dict[Kind, Callable[[Session, Frame], Event | None]]] = {
    Kind.HELLO: Session._on_hello,
    Kind.SEND: Session._on_message,
    Kind.CALL: Session._on_message,
    Kind.REPLY: Session._on_answer,
    Kind.REJECT: Session._on_answer,
    Kind.ACK: Session._on_answer,
    Kind.PURGE: Session._on_purge,
    Kind.DATA: Session._on_data,
    Kind.EOF: Session._on_eof,
    Kind.CREDIT: Session._on_credit,
    Kind.SEVER: Session._on_sever,
}

# TABLE and _ACTIONS by state and number: hashing a pair of enumeration members costs more than all else in receive().
_STEPS: Final = {
    state: {
        int(each): (following, _ACTIONS.get(each))
        for (before, each), following in TABLE.items()
        if before is state and isinstance(each, Kind)
    }
    for state in State
}
