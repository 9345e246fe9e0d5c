"""What else a path can do, on top of the small client: still from the reference alone, and nothing of ours.

Another process at the other end, priority messages, deadlines, traces, quiescing, and byte streams.
"""

import os
from typing import Any

from tests.wire_client import CALL, CREDIT, DATA, EOF, PURGE, REJECT, SEND, STREAM, Client

QUIESCE, QUIESCED, RESUME = range(14, 17)
STREAM_WINDOW = 245760
REVISION_1 = 0x545201 << 40


class FullClient(Client):
    """One end that can be handed on to a successor of the other, and speaks all kinds of frames."""

    def __init__(self, limit: int = 64, *, quiesced: bool = False, traces: bool = False) -> None:
        super().__init__(limit)
        if traces:
            self.token = REVISION_1 | int.from_bytes(os.urandom(5), "big")
        self.traces: dict[int, bytes] = {}  # of their messages
        self.began_quiesced = int(quiesced)
        self.quiesced = quiesced  # we take no messages
        self.held = False  # they take none
        self.unconfirmed = 0  # QUIESCE that was not answered
        self.unsent: list[int] = []  # messages that have not ended and that the successor has not been sent yet
        self.withdrawn: set[int] = set()  # calls of ours
        self.bytes, self.at_end, self.credit = b"", False, STREAM_WINDOW  # of their stream; room in ours

    # -- another process at the other end ---------------------------------------------------------------------------

    def _on_hello(self, limit: int, token: int, known: int, received: int, *more: int) -> None:
        if token != self.known or known != self.token:
            self.held = bool(more[2])
        successor = self.known not in (0, token)
        if successor:
            self._forget_predecessor()
        super()._on_hello(limit, token, known, received, *more)
        if successor:
            self.binding = "successor"
            if self.quiesced != self.began_quiesced:
                self.unconfirmed = int(self.quiesced)
                self.say(QUIESCE if self.quiesced else RESUME)

    def _forget_predecessor(self) -> None:
        self.known = self.seen = self.received = self.told = self.unconfirmed = 0
        self.kept.clear()
        self.purged.clear()
        self.inbox = [each for each in self.inbox if each.kind == SEND]
        for ident in self.withdrawn & self.out.keys():
            del self.out[ident]
            self.ended[ident] = [REJECT, ident, "purged", "", None], ()
        self.unsent = sorted(self.out, key=lambda each: (each > 0, abs(each)))

    def pump(self) -> None:
        super().pump()
        while self.unsent and not self.held and len(self.out) - len(self.unsent) < self.room:
            frame, descriptors = self.out[self.unsent.pop(0)]
            self.say(*frame, descriptors=descriptors)

    # -- the other frames -------------------------------------------------------------------------------------------

    def _on_frame(self, frame: list[Any], descriptors: list[int]) -> None:
        kind = frame[0]
        if kind == QUIESCE:
            self.held = True
            self.say(QUIESCED)
        elif kind == QUIESCED:
            self.unconfirmed -= 1
        elif kind == RESUME:
            self.held = False
        elif kind == DATA:
            self.bytes += frame[1]
        elif kind == EOF:
            self.at_end = True
        elif kind == CREDIT:
            self.credit += frame[1]
        elif kind != STREAM:
            if kind in (SEND, CALL) and len(frame) > 4 and type(frame[-1]) is bytes:
                self.traces[frame[1]] = frame.pop()
            super()._on_frame(frame, descriptors)
            if kind in (SEND, CALL) and frame[1] < 0:
                message = self.inbox.pop()
                self.inbox.insert(len([each for each in self.inbox if each.id < 0]), message)

    # -- what a program does ----------------------------------------------------------------------------------------

    def submit(
        self,
        kind: int,
        body: Any,
        *,
        descriptors: tuple[int, ...] = (),
        ms: int | None = None,
        priority: bool = False,
        trace: bytes | None = None,
    ) -> int:
        """Write a message, when they take one; returns its id. The descriptors must stay open until it has ended."""
        while self.held or len(self.out) >= self.room:
            self.pump()
        self.last[priority] += 1
        ident = -self.last[1] if priority else self.last[0]
        deadline = [] if ms is None else [ms]
        traces = [] if trace is None else [trace]
        self.say(kind, ident, body, len(descriptors), *deadline, *traces, descriptors=descriptors)
        self.out[ident] = self.kept[-1]  # what was just said
        return ident

    def withdraw(self, ident: int) -> None:
        """Purge a call of ours, which still ends, and no successor is asked again."""
        self.withdrawn.add(ident)
        self.say(PURGE, ident)

    def quiesce(self) -> None:
        """Take no messages; returns when they have sent their last one."""
        self.quiesced = True
        self.unconfirmed += 1
        self.say(QUIESCE)
        while self.unconfirmed:
            self.pump()

    def resume(self) -> None:
        """Take messages again."""
        self.quiesced = False
        self.say(RESUME)
