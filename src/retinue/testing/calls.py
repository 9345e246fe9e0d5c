"""What passes along the edges of a simulated system, as the messages and answers that they are."""

import os
from collections.abc import Sequence
from typing import Any

import attrs

from retinue.cp.relay import Direction, Listener
from retinue.pipes import wire
from retinue.pipes.wire import Frame, Kind

__all__ = ["Call", "Recorder"]


@attrs.define
class Call:
    """One message along an edge, and what became of it."""

    edge: str
    """Such as ``CALLER.greeter``."""
    body: Any
    one_way: bool = False
    """It was sent, and wants no reply."""
    back: bool = False
    """It came from the machine at the far end of the edge."""
    reply: Any = None
    """The body of the reply; None as long as there is none."""
    refused: str | None = None
    """The code with which it was refused."""
    answered: bool = False
    """There was a reply, or a refusal, or a one-way message has been received."""
    deliveries: int = 1
    """How often it was sent: once more to each successor of a machine that died with it."""


class Recorder:
    """Remembers the messages of one edge (``retinue.cp.switchboard.Tapper``)."""

    def __init__(self, edge: str) -> None:
        self.edge = edge
        self.calls: list[Call] = []
        self._open: dict[tuple[int, Direction, int], Call] = {}

    def listener(self, path: int) -> Listener:
        """What is shown the packets of one binding of a path."""
        decoders: dict[Direction, wire.Decoder] = {"->": wire.Decoder(), "<-": wire.Decoder()}

        def listen(direction: Direction, data: bytes, descriptors: Sequence[int]) -> None:
            given = list(descriptors)
            for frame in decoders[direction].decode(data):
                if frame[0] == Kind.BULK:
                    frame = wire.Decoder().decode_bulk(os.pread(given.pop(0), frame[1], 0))
                else:
                    del given[: wire.descriptors_of(frame)]
                self._take(path, direction, frame)

        return listen

    def forget(self, path: int) -> None:
        """The path has ended for good."""
        self._open = {key: call for key, call in self._open.items() if key[0] != path}

    def _take(self, path: int, direction: Direction, frame: Frame) -> None:
        across: Direction = "<-" if direction == "->" else "->"
        match frame:
            case [Kind.SEND | Kind.CALL as kind, ident, body, *_]:
                key = path, direction, ident
                if (known := self._open.get(key)) is not None:
                    known.deliveries += 1
                else:
                    call = self._open[key] = Call(self.edge, body, kind == Kind.SEND, direction == "<-")
                    self.calls.append(call)
            case [Kind.REPLY | Kind.REJECT as kind, ident, content, *_]:
                if (ended := self._open.get((path, across, ident))) is not None:
                    del self._open[path, across, ident]
                    ended.answered = True
                    if kind == Kind.REPLY:
                        ended.reply = content
                    else:
                        ended.refused = str(content)
            case [Kind.ACK, first, last]:
                for ident in range(first, last + 1):
                    if (received := self._open.get((path, across, ident))) is not None and received.one_way:
                        del self._open[path, across, ident]
                        received.answered = True
