"""Sessions for tests, and what carries frames between them."""

from retinue.pipes import (
    wire,
)
from retinue.pipes.link import Greeting
from retinue.pipes.message import close_all
from retinue.pipes.session import Session
from retinue.pipes.wire import Frame, Kind

THEIR_CALL, THEIR_SEND, OUR_CALL, OUR_SEND = 1, 2, 1, 2
ONE, OTHER, NEXT = 11, 22, 33  # tokens


def hello(token: int = OTHER, known: int = 0, received: int = 0, again: int = 0, quiesced: int = 0) -> Frame:
    """The greeting of an end with a limit of 8."""
    return [Kind.HELLO, wire.VERSION, 8, token, known, received, again, 0, quiesced]


def said(end: Session) -> list[Frame]:
    """Take what an end has to say now, as frames."""
    end.settle()
    frames: list[Frame] = []
    while (packet := end.link.next_packet()) is not None:
        frames += wire.decoder().decode(packet.data)
    return frames


def talk(one: Session, other: Session, at_once: int = 1_000_000) -> tuple[list[Frame], list[Frame]]:
    """Carry frames, so many at a time, until both are silent; returns what each end's program learned."""
    learned: tuple[list[Frame], list[Frame]] = ([], [])
    flying: tuple[list[Frame], list[Frame]] = (said(other), said(one))
    while flying[0] or flying[1]:
        for at, end in enumerate((one, other)):
            for frame in flying[at][:at_once]:
                if (accepted := end.receive(frame)) is not None:
                    learned[at].append(accepted)
            del flying[at][:at_once]
        flying[0].extend(said(other))
        flying[1].extend(said(one))
    return learned


def bind(one: Session, other: Session) -> tuple[list[Frame], list[Frame]]:
    """Two ends get a descriptor; returns what each learned but the greeting."""
    one.bind()
    other.bind()
    first, second = talk(one, other)
    assert first.pop(0)[0] == second.pop(0)[0] == Kind.HELLO
    return first, second


def opened(limit: int = 8, peer_limit: int = 8, *, keeps: bool = False) -> tuple[Session, Session]:
    one = Session(limit, "one", keeps=keeps, token=ONE, close=close_all)
    other = Session(peer_limit, "other", keeps=keeps, token=OTHER, close=close_all)
    assert bind(one, other) == ([], [])
    assert one.greeting is other.greeting is Greeting.FRESH
    return one, other


def cut(*ends: Session) -> None:
    """The descriptor is lost, with everything that was on its way."""
    for end in ends:
        said(end)
        end.unbind()
