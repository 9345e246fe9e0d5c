"""One end of a path as a state machine without I/O: commands and frames in, frames and events out.

The states and what may happen in each stand in :mod:`retinue.pipes.states`; a pair that is not there is a
:exc:`ProtocolViolation` when the peer did it and :exc:`WrongMode` when you did. The rule that keeps both ends in step:
**every message ends exactly once**, a one-way message by ACK, a call by one REPLY or REJECT, also when it was purged.
A message counts against the limit until then, at both ends alike. The event of a frame is the frame itself, when
:meth:`Session.receive` gives it back: it has been checked and concerns this end's program.
"""

from collections.abc import Callable, Iterable
from typing import Any, Final

from retinue.pipes import wire
from retinue.pipes.errors import LimitExceeded, PathClosed, PathSevered, ProtocolViolation, WrongMode
from retinue.pipes.link import Close, Greeting, Link
from retinue.pipes.outbox import Outbox, Store
from retinue.pipes.states import TABLE, Binding, Command, State
from retinue.pipes.wire import Frame, Kind


class Session(Outbox):
    """The state of one end, which outlives the descriptors under it.

    ``limit`` is how many messages may be outstanding in each direction; the other end may lower it. Commands queue
    frames in :attr:`link`; :meth:`receive` takes one checked frame. ``store`` puts a frame that is too large for a
    packet into a memfd, ``close`` closes descriptors that nobody needs any more; without them messages are small and
    carry none. With ``keeps`` the path can be bound again after its descriptor was lost.
    """

    __slots__ = (
        "_ack_first", "_ack_last", "_began_quiesced", "_confirmations", "_credit", "_eof_in", "_eof_out", "_in",
        "_last_in", "_last_in_urgent", "_steps", "_unread", "_window", "ended_here", "greeting", "quiesced",
        "replayed", "turns_later",
    )  # fmt: skip

    def __init__(
        self,
        limit: int = wire.DEFAULT_LIMIT,
        name: str = "",
        *,
        keeps: bool = False,
        store: Store | None = None,
        close: Close | None = None,
        token: int | None = None,
        quiesced: bool = False,
    ) -> None:
        super().__init__(limit, name, Link(keeps, token), store, close)
        self.greeting: Greeting | None = None  # what the last HELLO has shown
        self.ended_here = False  # it was this end that severed
        self.quiesced = quiesced  # we take no messages for now
        self._began_quiesced = quiesced  # what every HELLO says; QUIESCE and RESUME are counted from there
        self._confirmations = 0  # QUIESCED of the other end that have not come
        self._last_in = self._last_in_urgent = 0
        self._in: dict[int, int] = {}  # theirs, not ended: SEND, CALL, or PURGE for a call that was withdrawn
        self.replayed = (0, 0)  # theirs up to here, in each lane, were sent to a predecessor of ours
        self._ack_first = self._ack_last = 0
        self._window = wire.STREAM_WINDOW  # bytes we may still send
        self._unread = 0  # bytes of theirs that were not credited back
        self._credit = 0  # bytes that were, and are not told yet
        self._eof_in = self._eof_out = False
        self.turns_later = False  # STREAM waits: the other end takes nothing new now, or is not there
        self._enter(State.OPENING)

    def _enter(self, state: State) -> None:
        super()._enter(state)
        self._steps = _STEPS[state]

    # -- what can be asked ------------------------------------------------------------------------------------------

    @property
    def outstanding(self) -> tuple[int, int]:
        """Messages that have not ended: (ours, theirs)."""
        return len(self._sends) + len(self._calls), len(self._in)

    @property
    def window(self) -> int:
        """Bytes that may be sent into the stream now."""
        return 0 if self.turns_later else self._window

    def waits(self, ident: int) -> bool:
        """Whether the peer's message still waits for this end to answer or acknowledge it."""
        return ident in self._in

    def is_redelivery(self, ident: int) -> bool:
        """Whether a message of the peer may have been given to a predecessor of this end."""
        return ident <= self.replayed[0] if ident > 0 else -ident <= self.replayed[1]

    # -- bindings ---------------------------------------------------------------------------------------------------

    def bind(self) -> None:
        """This end has a descriptor now, the first or another: greet on it."""
        link = self.link
        hello = [Kind.HELLO, wire.VERSION, self.limit, link.token, link.peer, link.received, *self._again_out]
        link.bind([*hello, int(self._began_quiesced)])

    def _on_hello(self, frame: Frame) -> None:
        if frame[1] != wire.VERSION:
            raise ProtocolViolation(f"the other end speaks version {frame[1]}, this one {wire.VERSION}")
        greeting = self.greeting = self.link.greet(frame)
        self.traces = wire.revision_of(frame[3]) >= 1
        if greeting is Greeting.RESUMED and frame[4] == self.link.token:
            self._turn()
            return  # both have met before
        self.peer_limit = self._lowest = min(self.limit, frame[2])
        # An end that has met nobody has sent nothing to a predecessor. One that has met this end, which did not hear
        # of it, may have: what it has sent to this end alone is marked as well.
        self.replayed = (frame[6], frame[7]) if frame[4] else (0, 0)
        self.held = bool(frame[8])
        if greeting is Greeting.RESUMED:
            self._turn()
            self._recount()
            return
        if greeting is Greeting.SUCCESSOR:
            self._forget_predecessor()
        elif self._state is State.OPENING:
            self._enter(State.OPEN)
        # For the other end it is open as long as STREAM waits.
        if self._state is State.OPEN or (self._state is State.ASKED and self.turns_later):
            self._confirmations = int(self.quiesced and not self._began_quiesced)
            if self.quiesced is not self._began_quiesced:
                self._put([Kind.QUIESCE if self.quiesced else Kind.RESUME], True)
        self._turn()
        self._recount()

    def _forget_predecessor(self) -> None:
        """The other end's successor knows nothing: forget what its predecessor asked, ask again what we did."""
        if self._state not in (State.OPENING, State.OPEN) and not (self._state is State.ASKED and self.turns_later):
            self.give_up("lost", "the other end was restarted, and a byte stream cannot go on")
            return
        self._in.clear()
        self._last_in = self._last_in_urgent = self._ack_first = self._ack_last = 0
        try:
            self._offer_again()
        except OSError as exc:  # a large message has to be copied
            self.give_up("no-storage", f"a message for the successor of the other end cannot be kept: {exc}")

    # -- commands of this end ---------------------------------------------------------------------------------------

    def reply(self, ident: int, body: Any, descriptors: tuple[int, ...] = ()) -> bool:
        """Answer a call. False when the caller had withdrawn it: then a rejection ``purged`` goes out instead.

        The descriptors are the session's only when this returns True.
        """
        if self._state is not State.OPEN:
            self._step(Command.ANSWER)
        kind = self._in.get(ident)
        if kind == Kind.PURGE:
            self._put([Kind.REJECT, ident, "purged", "", None], ident < 0)
            del self._in[ident]
            return False
        if kind != Kind.CALL:
            raise WrongMode(f"message {ident} is not a call that waits for an answer")
        data = self._encode([3, ident, body, len(descriptors)] if descriptors else [3, ident, body], descriptors)
        self.meter.bytes_sent += len(data) if isinstance(data, bytes) else data.size
        self.link.put(data, ident < 0)
        del self._in[ident]
        return True

    def reject(self, ident: int, code: str, text: str = "", detail: Any = None) -> None:
        """Refuse a call."""
        self._step(Command.ANSWER)
        kind = self._in.get(ident)
        if kind != Kind.CALL and kind != Kind.PURGE:
            raise WrongMode(f"message {ident} is not a call that waits for an answer")
        data = self._encode([Kind.REJECT, ident, wire.clip(code), wire.clip(text), detail])
        self.meter.bytes_sent += len(data) if isinstance(data, bytes) else data.size
        self.link.put(data, ident < 0)
        del self._in[ident]

    def acknowledge(self, ident: int) -> int:
        """Say that a one-way message has been received by the program; :meth:`settle` queues what was said.

        Returns how many acknowledgements are gathered.
        """
        if self._state is not State.OPEN:
            self._step(Command.ANSWER)
        if self._in.get(ident) != Kind.SEND:
            raise WrongMode(f"message {ident} is not a one-way message that waits to be received")
        return self.take(ident)

    def take(self, ident: int) -> int:
        """Like :meth:`acknowledge`, for what may have ended; returns how many acknowledgements are gathered."""
        if self._in.pop(ident, None) is None:
            return 0
        first = self._ack_first
        if first > 0 and ident == self._ack_last + 1 and ident - first < wire.MAX_LIMIT:
            self._ack_last = ident
            return ident - first + 1
        self.settle()
        self._ack_first = self._ack_last = ident
        return 1

    def settle(self) -> None:
        """Queue the acknowledgements and the credit that were gathered; do it before anything is written."""
        if self._ack_first:
            self._put([5, self._ack_first, self._ack_last], self._ack_first < 0)
            self._ack_first = self._ack_last = 0
        if self._credit:
            self._put([Kind.CREDIT, self._credit])
            self._credit = 0

    def quiesce(self) -> None:
        """Take no more messages for now; a second time has no effect."""
        self._step(Command.QUIESCE)
        if not self.quiesced:
            self.quiesced = True
            if self._state is State.OPEN:
                self._confirmations += 1
                self._put([Kind.QUIESCE], True)

    def resume(self) -> None:
        """Take messages again; a second time has no effect."""
        self._step(Command.QUIESCE)
        if self.quiesced:
            self.quiesced = False
            if self._state is State.OPEN:
                self._put([Kind.RESUME], True)

    @property
    def still(self) -> bool:
        """Whether this end is quiesced and the other has confirmed that nothing follows."""
        return self.quiesced and self._state is not State.OPENING and self._confirmations == 0

    def stream(self) -> None:
        """Turn this end into a byte stream. WrongMode while messages are outstanding."""
        if self._state is not State.SEVERED and (self._sends or self._calls or self._in):
            raise WrongMode(
                f"the path {self.name or '(unnamed)'} has messages outstanding: stream() must wait for them"
            )
        self._step(Command.STREAM)
        self.settle()
        # An end that quiesces may be about to leave the path to a successor, who cannot go on with half a stream.
        self.turns_later = self._state is State.ASKED and (self.held or self.link.binding is not Binding.BOUND)
        if not self.turns_later:
            self._put([Kind.STREAM])

    def _turn(self) -> None:
        """Say STREAM, if it waits and need not any more."""
        if self.turns_later and (not self.held or self._state is State.STREAM):
            self.turns_later = False
            self._put([Kind.STREAM])
            if self._eof_out:
                self._put([Kind.EOF])

    def send_bytes(self, data: bytes | memoryview) -> None:
        """Queue one chunk, at most MAX_CHUNK and at most :attr:`window` bytes."""
        self._step(Command.BYTES)
        if self._eof_out:
            raise WrongMode("the stream was ended at this end")
        if not 0 < len(data) <= min(wire.MAX_CHUNK, self.window):
            raise LimitExceeded("bytes of one chunk", len(data), min(wire.MAX_CHUNK, self.window))
        self._window -= len(data)
        self._put([Kind.DATA, data])

    def send_eof(self) -> None:
        """Say that no more bytes follow; a second time has no effect."""
        self._step(Command.BYTES)
        if not self._eof_out:
            self._eof_out = True
            if not self.turns_later:
                self._put([Kind.EOF])

    def credit(self, count: int) -> None:
        """Give the peer room for ``count`` more bytes: the program has taken them."""
        self._step(Command.CREDIT)
        self._unread -= count
        self._credit += count

    def sever(self, code: str, text: str = "", *, at_once: bool = False) -> None:
        """End the path from this end. Everything outstanding is over; a second time has no effect.

        The frame goes behind what is queued; with ``at_once`` not behind what has to wait until others were seen.
        """
        if self._state is not State.SEVERED:
            self.settle()
            self._step(Command.SEVER)
            frame = [Kind.SEVER, wire.clip(code), wire.clip(text)]
            if self.link.binding is Binding.BOUND and not (at_once and self.link.held_back):
                self.link.put(wire.encode(frame))
            else:
                self.link.put_first(frame)
            self.severed_by = PathClosed(self.name)
            self.ended_here = True

    def give_up(self, code: str, text: str) -> None:
        """End the path because of what the peer did (``violation``: it broke the rule ``text``); it is told so."""
        if self._state is not State.SEVERED:
            self.sever(code, text, at_once=True)
            self.severed_by = PathSevered(code, text, self.name)

    def lose(self, code: str = "lost", text: str = "the other end is gone") -> None:
        """There is no descriptor under the path and there will be none. No effect when it had ended before."""
        if self._state is not State.SEVERED:
            self._enter(State.SEVERED)
            self.severed_by = PathSevered(code, text, self.name)

    # -- frames from the peer ---------------------------------------------------------------------------------------

    def receive(self, frame: Frame) -> Frame | None:
        """Take one frame that :mod:`retinue.pipes.wire` has checked; returns it when it concerns this end's program.

        None for what concerns nobody any more. Raises :exc:`ProtocolViolation`.
        """
        step = self._steps.get(frame[0])
        if step is None:
            return self._receive_unusual(frame)
        link = self.link
        if link.binding is not Binding.BOUND and frame[0] != Kind.SEVER:
            raise ProtocolViolation(f"{Kind(frame[0]).name} before HELLO")
        link.received += 1
        following, action = step
        if following is not None:
            self._enter(following)
        return action(self, frame) if action is not None else frame

    def _receive_unusual(self, frame: Frame) -> Frame | None:
        if frame[0] == Kind.SEEN and self.link.binding is Binding.BOUND:
            self.link.on_seen(frame[1])  # also after our SEVER: what goes before it may wait for this
            return None
        if self._state is State.SEVERED:
            return None  # it crossed our SEVER
        if frame[0] == Kind.HELLO:
            self._on_hello(frame)
            return frame
        raise ProtocolViolation(f"{Kind(frame[0]).name} is not allowed while the path is {self._state.value}")

    def _on_message(self, frame: Frame) -> Frame:
        ident: int = frame[1]
        if ident > 0:
            if ident <= self._last_in:
                raise ProtocolViolation(f"message {ident} follows message {self._last_in}")
        elif ident >= self._last_in_urgent:
            raise ProtocolViolation(f"message {ident} follows message {self._last_in_urgent}")
        if len(self._in) >= self.peer_limit:
            raise ProtocolViolation(f"more than {self.peer_limit} messages outstanding")
        if self.quiesced and self._confirmations == 0:
            raise ProtocolViolation("a message after QUIESCED")
        if ident > 0:
            self._last_in = ident
        else:
            self._last_in_urgent = ident
        self._in[ident] = frame[0]
        self.meter.received += 1
        return frame

    def _on_purge(self, frame: Frame) -> Frame | None:
        ident = frame[1]
        kind = self._in.get(ident)
        if kind == Kind.CALL:
            self._in[ident] = Kind.PURGE
            return frame
        if kind is None and (ident <= self._last_in if ident > 0 else ident >= self._last_in_urgent):
            return None  # our answer crossed it
        raise ProtocolViolation(f"PURGE of message {ident}, which is not a call")

    def _on_quiesce(self, frame: Frame) -> Frame:
        if self.held:
            raise ProtocolViolation("QUIESCE twice")
        self.held = True
        self._recount()
        # Behind the last message that was queued; in the fast lane nothing can follow any more.
        self._put([Kind.QUIESCED])
        return frame

    def _on_quiesced(self, frame: Frame) -> Frame:
        if self._confirmations == 0:
            raise ProtocolViolation("QUIESCED without QUIESCE")
        self._confirmations -= 1
        return frame

    def _on_resume(self, frame: Frame) -> Frame:
        if not self.held:
            raise ProtocolViolation("RESUME without QUIESCE")
        self.held = False
        self._feed()
        self._turn()
        self._recount()
        return frame

    def _on_stream(self, frame: Frame) -> Frame:
        if self._in:
            raise ProtocolViolation("STREAM while its messages are outstanding")
        self._turn()
        return frame

    def _on_data(self, frame: Frame) -> Frame:
        data: bytes = frame[1]
        if self._eof_in:
            raise ProtocolViolation("DATA after EOF")
        self._unread += len(data)
        if self._unread > wire.STREAM_WINDOW:
            raise ProtocolViolation("more bytes than the window allows")
        return frame

    def _on_eof(self, frame: Frame) -> Frame:
        if self._eof_in:
            raise ProtocolViolation("EOF twice")
        self._eof_in = True
        return frame

    def _on_credit(self, frame: Frame) -> Frame:
        self._window += frame[1]
        if self._window > wire.STREAM_WINDOW:
            raise ProtocolViolation("credit for more bytes than were sent")
        return frame

    def _on_sever(self, frame: Frame) -> Frame:
        self.severed_by = PathSevered(frame[1], frame[2], self.name)
        return frame


_Action = Callable[[Session, Frame], Frame | None]

_ACTIONS: Final[dict[Kind, _Action]] = {
    Kind.SEND: Session._on_message,
    Kind.CALL: Session._on_message,
    Kind.REPLY: Session._on_answer,
    Kind.REJECT: Session._on_answer,
    Kind.ACK: Session._on_ack,
    Kind.PURGE: Session._on_purge,
    Kind.QUIESCE: Session._on_quiesce,
    Kind.QUIESCED: Session._on_quiesced,
    Kind.RESUME: Session._on_resume,
    Kind.STREAM: Session._on_stream,
    Kind.DATA: Session._on_data,
    Kind.EOF: Session._on_eof,
    Kind.CREDIT: Session._on_credit,
    Kind.SEVER: Session._on_sever,
}


def _steps(state: State) -> dict[int, tuple[State | None, _Action | None]]:
    """TABLE's rows of one state by the frame's number; None for a step that stays."""
    rows: Iterable[tuple[Kind, State]] = (
        (each, following) for (before, each), following in TABLE.items() if before is state and isinstance(each, Kind)
    )
    return {
        int(each): (None if following is state else following, _ACTIONS.get(each))
        for each, following in rows
        if each is not Kind.HELLO
    }


# Hashing a pair of enumeration members would cost more than all else in receive().
_STEPS: Final = {state: _steps(state) for state in State}
