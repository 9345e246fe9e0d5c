"""The states of one end of a path and what may happen in each, as two tables.

:data:`TABLE` is what the path is used for (messages or bytes) and :data:`BINDINGS` what is under it (a descriptor or
none); each end has one state of either. A pair that is not in a table is a violation when the peer did it and an error
of the program when that did. ``docs/reference/wire.md`` is drawn from both.
"""

from enum import Enum
from typing import Final

from retinue.pipes.wire import Kind


class State(Enum):
    """What one end of a path is used for."""

    OPENING = "opening"  # the other end has never said HELLO
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
    QUIESCE = "quiesce"  # or resume, or the answer to the other end's
    STREAM = "stream"
    BYTES = "bytes"  # send bytes or end of stream
    CREDIT = "credit"  # take bytes out of the stream
    SEVER = "sever"


_MESSAGES: Final = (Kind.SEND, Kind.CALL, Kind.PURGE)
_ANSWERS: Final = (Kind.REPLY, Kind.REJECT, Kind.ACK)
_GATE: Final = (Kind.QUIESCE, Kind.QUIESCED, Kind.RESUME)
_BYTES: Final = (Kind.DATA, Kind.EOF)

Step = dict[tuple[State, Kind | Command], State]


def _stay(state: State, *inputs: Kind | Command) -> Step:
    return {(state, each): state for each in inputs}


# (state, frame from the peer or command of this end) -> next state
TABLE: Final[Step] = {
    (State.OPENING, Kind.HELLO): State.OPEN,
    (State.OPENING, Command.QUIESCE): State.OPENING,
    **_stay(State.OPEN, *_MESSAGES, *_ANSWERS, *_GATE),
    **_stay(State.OPEN, Command.SEND, Command.CALL, Command.ANSWER, Command.PURGE, Command.QUIESCE),
    (State.OPEN, Command.STREAM): State.ASKED,
    (State.OPEN, Kind.STREAM): State.OFFERED,
    # We stream; what the peer sent as messages before it turned may still arrive and is answered.
    **_stay(State.ASKED, *_MESSAGES, *_GATE, Command.ANSWER, Command.BYTES),
    (State.ASKED, Kind.STREAM): State.STREAM,
    # The peer streams; its bytes wait until we turn as well. It still answers what we sent before we heard of it.
    **_stay(State.OFFERED, *_ANSWERS, *_BYTES, Kind.QUIESCED, Command.PURGE),
    (State.OFFERED, Command.STREAM): State.STREAM,
    **_stay(State.STREAM, *_BYTES, Kind.CREDIT, Kind.QUIESCED, Command.BYTES, Command.CREDIT),
    **{(state, Kind.SEVER): State.SEVERED for state in State if state is not State.SEVERED},
    **{(state, Command.SEVER): State.SEVERED for state in State if state is not State.SEVERED},
}


class Binding(Enum):
    """What is under one end of a path."""

    UNBOUND = "unbound"  # no descriptor, or one that has ended; messages wait
    GREETING = "greeting"  # our HELLO is out on a new descriptor, the other one has not come
    BOUND = "bound"  # frames pass
    ENDED = "ended"  # the path is severed: there will be no other


class Happening(Enum):
    """What may happen to a binding."""

    BIND = "bind"  # the control program (or whoever owns the path) gave this end a descriptor
    HELLO = "HELLO"  # the other end has greeted on it
    LOSE = "lose"  # the descriptor has ended without a SEVER
    END = "end"  # the path was severed by either end


BINDINGS: Final[dict[tuple[Binding, Happening], Binding]] = {
    (Binding.UNBOUND, Happening.BIND): Binding.GREETING,
    (Binding.GREETING, Happening.HELLO): Binding.BOUND,
    (Binding.GREETING, Happening.LOSE): Binding.UNBOUND,
    (Binding.BOUND, Happening.LOSE): Binding.UNBOUND,
    **{(binding, Happening.END): Binding.ENDED for binding in Binding if binding is not Binding.ENDED},
}
