"""One end of a path in plain Python, from the reference of the wire alone: a socket and MessagePack, nothing of ours.

It waits in the calls of the socket (give it a timeout), does one thing at a time and trusts the other end: it shows
how little a client in another language needs, and that the reference is enough to write one.
"""

import array
import contextlib
import fcntl
import os
import secrets
import socket
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgpack

(
    HELLO,
    SEND,
    CALL,
    REPLY,
    REJECT,
    ACK,
    PURGE,
    SEVER,
    STREAM,
    DATA,
    EOF,
    CREDIT,
    BULK,
    SEEN,
    QUIESCE,
    QUIESCED,
    RESUME,
) = range(17)
MAX_PACKET = 69632


class Unbound(Exception):
    """The descriptor has ended without a SEVER: the path may go on with another one."""


class Severed(Exception):
    """The other end has said SEVER; its code and text."""


class Incoming(NamedTuple):
    """A message of the other end: ``kind`` is SEND or CALL, ``ms`` the time its caller waits or None."""

    kind: int
    id: int
    body: Any
    descriptors: list[int]
    ms: int | None
    redelivered: bool


class Client:
    """One end: :meth:`bind` gives it a descriptor, and another one when the first has ended."""

    def __init__(self, limit: int = 64, *, quiesced: bool = False) -> None:
        self.token = secrets.randbits(62) + 1
        self.known = 0  # the token of the other end
        self.limit = limit
        self.began_quiesced = self.quiesced = quiesced  # we take no messages
        self.held = False  # they take none
        self.unconfirmed = 0  # QUIESCE that was not answered
        self.kept: deque[tuple[list[Any], tuple[int, ...]]] = deque()  # counted frames that they may not have
        self.seen = 0  # how many of ours they have; the rest is kept
        self.received = self.told = self.unsaid = 0  # theirs: frames, frames we said SEEN for, bytes since then
        self.last = {1: 0, -1: 0}  # the highest id of each lane, by its sign
        self.again = {1: 0, -1: 0}  # of theirs: redelivered up to here
        self.out: dict[int, tuple[list[Any], tuple[int, ...]]] = {}  # our messages that have not ended
        self.unsent: deque[int] = deque()  # of these, what the successor has not been sent yet
        self.withdrawn: set[int] = set()  # calls of ours
        self.ended: dict[int, tuple[list[Any], list[int]]] = {}  # what ended them, until somebody asks
        self.inbox: deque[Incoming] = deque()
        self.purged: set[int] = set()  # of theirs
        self.bytes, self.at_end, self.credit = b"", False, 4 * 61440  # of their stream; room in ours

    # -- the descriptor under the path ------------------------------------------------------------------------------

    def bind(self, sock: socket.socket) -> str:
        """Exchange HELLO on a new descriptor and go on; says what it was: fresh, resumed or successor."""
        self.sock = sock
        again = (self.last[1], self.last[-1]) if self.known else (0, 0)
        self._write([HELLO, 2, self.limit, self.token, self.known, self.received, *again, int(self.began_quiesced)])
        frames, descriptors, _ = self._read()
        hello = frames.pop(0)
        if hello[0] == SEVER:
            raise Severed(*hello[1:])
        _, _, limit, token, known, received, again_ordinary, again_priority, quiesced = hello
        if token != self.known or known != self.token:  # one of us has not met the other: what it says holds now
            self.room, self.held = min(self.limit, limit), bool(quiesced)
            self.again = {1: again_ordinary, -1: again_priority}
        if token == self.known:
            how = "resumed"
            self._forget(received if known == self.token else 0)
            for frame, copies in self.kept:
                self._write(frame, copies)
        else:
            how = "successor" if self.known else "fresh"
            self.known, self.seen, self.received, self.told, self.unsaid = token, 0, 0, 0, 0
            self.inbox = deque(each for each in self.inbox if each.kind == SEND)
            self.kept.clear()
            for ident in self.withdrawn & self.out.keys():
                del self.out[ident]
                self.ended[ident] = [REJECT, ident, "purged", "", None], []
            self.unsent = deque(sorted(self.out, key=lambda each: (each > 0, abs(each))))
            if self.quiesced != self.began_quiesced:
                self.unconfirmed = int(self.quiesced)
                self.say(QUIESCE if self.quiesced else RESUME)
        self._take(frames, descriptors)
        return how

    def _forget(self, count: int) -> None:
        while self.seen < count:
            self.kept.popleft()
            self.seen += 1

    def _count(self, frame: list[Any], descriptors: Sequence[int] = ()) -> None:
        self.kept.append((frame, tuple(descriptors)))
        self._write(frame, descriptors)

    def _write(self, frame: list[Any], descriptors: Sequence[int] = ()) -> None:
        data = msgpack.packb(frame)
        with contextlib.suppress(ConnectionError):  # what they had sent may still be there; reading finds the end
            if len(data) <= MAX_PACKET:
                socket.send_fds(self.sock, [data], list(descriptors))
                return
            with open(os.memfd_create("bulk", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING), "wb", 0) as file:
                file.write(data)
                fcntl.fcntl(file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE)
                socket.send_fds(self.sock, [msgpack.packb([BULK, len(data)])], [file.fileno(), *descriptors])

    def _read(self) -> tuple[list[Any], list[int], int]:
        try:
            space = socket.CMSG_SPACE(64)
            data, ancillary, _, _ = self.sock.recvmsg(MAX_PACKET, space, socket.MSG_CMSG_CLOEXEC)
        except ConnectionError:
            data, ancillary = b"", []
        if not data:
            raise Unbound
        unpacker = msgpack.Unpacker()
        unpacker.feed(data)
        return list(unpacker), [each for _, _, numbers in ancillary for each in array.array("i", numbers)], len(data)

    def pump(self) -> None:
        """Take one packet of the other end. Raises Unbound, Severed, TimeoutError."""
        frames, descriptors, size = self._read()
        self.unsaid += size
        self._take(frames, descriptors)

    def _take(self, frames: list[Any], descriptors: list[int]) -> None:
        bulk = False
        for frame in frames:
            if frame[0] == SEEN:
                self._forget(frame[1])
                continue
            self.received += 1
            if frame[0] == BULK:
                bulk, memfd = True, descriptors.pop(0)
                frame = msgpack.unpackb(os.pread(memfd, frame[1], 0))
                os.close(memfd)
            self._on_frame(frame, descriptors)
        if bulk or self.received - self.told >= 64 or self.unsaid >= 262144:
            self.told, self.unsaid = self.received, 0
            self._write([SEEN, self.received])
        while self.unsent and not self.held and len(self.out) - len(self.unsent) < self.room:
            self._count(*self.out[self.unsent.popleft()])

    # -- what comes -------------------------------------------------------------------------------------------------

    def _on_frame(self, frame: list[Any], descriptors: list[int]) -> None:
        kind, ident = frame[0], frame[1] if len(frame) > 1 else 0
        count = frame[3] if kind in (SEND, CALL, REPLY) and len(frame) > 3 else 0
        taken, descriptors[:count] = descriptors[:count], []
        if kind in (SEND, CALL):
            again = abs(ident) <= self.again[1 if ident > 0 else -1]
            message = Incoming(kind, ident, frame[2], taken, frame[4] if len(frame) > 4 else None, again)
            ordinary = len([each for each in self.inbox if each.id < 0]) if ident < 0 else len(self.inbox)
            self.inbox.insert(ordinary, message)
        elif kind in (REPLY, REJECT):
            del self.out[ident]
            self.ended[ident] = frame, taken
        elif kind == ACK:
            for each in [each for each in self.out if min(frame[1:]) <= each <= max(frame[1:])]:
                if self.out[each][0][0] == SEND:
                    del self.out[each]
                    self.ended[each] = frame, []
        elif kind == PURGE:
            self.purged.add(ident)
        elif kind == QUIESCE:
            self.held = True
            self._count([QUIESCED])
        elif kind == RESUME:
            self.held = False
        elif kind == QUIESCED:
            self.unconfirmed -= 1
        elif kind == DATA:
            self.bytes += frame[1]
        elif kind == EOF:
            self.at_end = True
        elif kind == CREDIT:
            self.credit += ident
        elif kind == SEVER:
            raise Severed(*frame[1:])

    # -- what a program does ----------------------------------------------------------------------------------------

    def submit(
        self, kind: int, body: Any, *, descriptors: Sequence[int] = (), ms: int | None = None, priority: bool = False
    ) -> int:
        """Write a message, when they take one; returns its id. The descriptors must stay open until it has ended."""
        while self.held or len(self.out) >= self.room:
            self.pump()
        lane = -1 if priority else 1
        self.last[lane] += 1
        ident = lane * self.last[lane]
        more = [len(descriptors)] if ms is None else [len(descriptors), ms]
        self.out[ident] = [kind, ident, body, *(more if descriptors or ms else [])], tuple(descriptors)
        self._count(*self.out[ident])
        return ident

    def end_of(self, ident: int) -> tuple[list[Any], list[int]]:
        """Wait for the frame that ends a message of ours, with its descriptors."""
        while ident not in self.ended:
            self.pump()
        return self.ended.pop(ident)

    def call(self, body: Any, **more: Any) -> Any:
        """The reply's body, or the whole frame of a REJECT."""
        frame, _ = self.end_of(self.submit(CALL, body, **more))
        return frame[2] if frame[0] == REPLY else frame

    def send(self, body: Any, **more: Any) -> None:
        """Returns when it was acknowledged."""
        self.end_of(self.submit(SEND, body, **more))

    def next(self) -> Incoming:
        """Their next message; a call is to be answered by :meth:`say` with REPLY or REJECT, the other kind with ACK."""
        while not self.inbox:
            self.pump()
        return self.inbox.popleft()

    def say(self, *frame: Any, descriptors: Sequence[int] = ()) -> None:
        """Write any other frame: REPLY, REJECT, ACK, SEVER, STREAM, DATA, EOF, CREDIT."""
        self._count([*frame, len(descriptors)] if descriptors else list(frame), descriptors)

    def withdraw(self, ident: int) -> None:
        """Purge a call of ours, which still ends."""
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
