"""What goes on along one path, as far as its frames tell somebody who only looks on.

A path that is bound again repeats the frames that did not arrive (docs/reference/wire.md): counting them as its two
ends do tells which were seen already. And the time between a message and its answer is how long it took.
"""

from typing import Any, Final, NamedTuple

import attrs

from retinue.cp.relay import Direction
from retinue.pipes import wire
from retinue.pipes.wire import Kind

BACK: Final[dict[Direction, Direction]] = {"->": "<-", "<-": "->"}
# Messages of one kind and direction whose answer is awaited: what an honest path may have outstanding.
NOTED: Final = wire.MAX_LIMIT


@attrs.frozen
class Note:
    """What a frame alone does not tell. ``latency`` in seconds: from the message to this answer."""

    redelivered: bool = False
    latency: float | None = None


_PLAIN: Final = Note()


class _Hello(NamedTuple):
    kind: int
    version: int
    limit: int
    token: int
    known: int
    received: int
    again: int
    again_priority: int
    quiesced: int


class _Side:
    """What is known about one direction."""

    def __init__(self) -> None:
        self.hello: _Hello | None = None  # of this binding
        self.token = 0  # of the session
        self.number = 0  # of the latest counted frame
        self.seen = 0  # the highest number there was
        self.again = (0, 0)  # ids up to which messages are redelivered: ordinary, priority
        self.calls: dict[int, float] = {}  # when they passed, by id
        self.sends: dict[int, float] = {}


class Traffic:
    """One path, over all its bindings."""

    def __init__(self) -> None:
        self._sides: dict[Direction, _Side] = {"->": _Side(), "<-": _Side()}
        self._counting = False  # both ends have said on this binding where they go on

    def rebind(self) -> None:
        """The path is bound again: each end begins with a HELLO."""
        self._counting = False
        for side in self._sides.values():
            side.hello = None

    def note(self, direction: Direction, frame: wire.Frame, now: float) -> Note | None:
        """Take note of a frame, of a bulk message at least its kind and id; None if it only repeats another."""
        side, back = self._sides[direction], self._sides[BACK[direction]]
        kind = frame[0]
        if kind == Kind.HELLO:
            if frame[1] != wire.VERSION:  # its receiver severs the path
                return _PLAIN
            side.hello = _Hello(*frame)
            if back.hello is not None:
                self._bind(side, side.hello, back, back.hello)
            return _PLAIN
        if kind == Kind.SEEN:
            return _PLAIN
        if self._counting:
            side.number += 1
            if side.number <= side.seen:
                return None
            side.seen = side.number
        since: float | None = None
        if kind == Kind.CALL or kind == Kind.SEND:
            ident: int = frame[1]
            awaited = side.calls if kind == Kind.CALL else side.sends
            if len(awaited) < NOTED:
                awaited.setdefault(ident, now)
            if abs(ident) <= side.again[ident < 0]:
                return Note(redelivered=True)
        elif kind == Kind.REPLY or kind == Kind.REJECT:
            since = back.calls.pop(frame[1], None)
        elif kind == Kind.ACK:
            since = _end(back.sends, frame[1], frame[2])
        return _PLAIN if since is None else Note(latency=now - since)

    def _bind(self, one: _Side, hello: _Hello, other: _Side, answer: _Hello) -> None:
        """Both ends have said HELLO."""
        resumed = hello.known == answer.token and answer.known == hello.token
        known = one.token == hello.token and other.token == answer.token
        for side, ours, theirs in ((one, hello, answer), (other, answer, hello)):
            if not resumed:
                side.number = side.seen = 0
                side.again = (ours.again, ours.again_priority)
            else:  # what its HELLO calls again is for a successor
                side.number = theirs.received
                side.seen = max(side.seen, theirs.received) if known else theirs.received
                side.again = side.again if known else (0, 0)
            if side.token != ours.token:  # its predecessor's messages are forgotten
                side.calls.clear()
                side.sends.clear()
            side.token = ours.token
        self._counting = True


def _end(sends: dict[int, float], first: int, last: int) -> float | None:
    """Forget the one-way messages of this range of ids (of one sign); returns the earliest time among them."""
    low, high = min(first, last), max(first, last)
    if high - low < len(sends):
        ended: list[Any] = [sends.pop(each) for each in range(low, high + 1) if each in sends]
    else:
        ended = [sends.pop(each) for each in list(sends) if low <= each <= high]
    return min(ended, default=None)
