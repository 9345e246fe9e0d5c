"""One end of a path in plain Python, from the reference of the wire alone: a socket and MessagePack, nothing of ours.

It waits in the calls of the socket (give it a timeout), does one thing at a time and trusts the other end: it shows
how little a client in another language needs, and that the reference is enough to write one. It speaks with one process
at the other end, in ordinary messages; :mod:`tests.wire_client_more` has the rest of the page.
"""

import contextlib
import fcntl
import io
import os
import socket
from typing import Any, NamedTuple

import msgpack

HELLO, SEND, CALL, REPLY, REJECT, ACK, PURGE, SEVER, STREAM, DATA, EOF, CREDIT, BULK, SEEN = range(14)
MAX_PACKET = 69632

Packet = tuple[Any, tuple[int, ...]]  # a frame with its descriptors


class Unbound(Exception):
    """The descriptor has ended without a SEVER: the path may go on with another one."""


class Severed(Exception):
    """The path is over; the code and the text that say why."""


class Incoming(NamedTuple):
    """A message of the other end: ``kind`` is SEND or CALL, ``ms`` the time its caller waits or None."""

    kind: int
    id: int
    body: Any
    descriptors: tuple[int, ...]
    ms: int | None
    redelivered: bool


class Client:
    """One end: :meth:`bind` gives it a descriptor, and another one when the first has ended."""

    def __init__(self, limit: int = 64) -> None:
        self.token, self.known = int.from_bytes(os.urandom(7), "big") + 1, 0  # ours and theirs; 0: not met yet
        self.limit = self.room = limit  # ours, and the smaller one of both
        self.last, self.again = [0, 0], [0, 0]  # highest ids, ordinary and priority: ours, and theirs redelivered
        self.began_quiesced = 0
        self.seen = self.received = self.told = 0  # how many they have of ours, we of theirs, and we have said so
        self.kept: list[Packet] = []  # our counted frames behind those that they have seen
        self.out, self.ended = dict[int, Packet](), dict[int, Packet]()  # our messages; what ended them, until asked
        self.inbox, self.purged = list[Incoming](), set[int]()  # messages of theirs; calls that they have withdrawn

    # -- the descriptor under the path ------------------------------------------------------------------------------

    def bind(self, sock: socket.socket) -> str:
        """Exchange HELLO on a new descriptor and go on; says whether the binding is fresh or resumed."""
        self.sock = sock
        self._write((HELLO, 2, self.limit, self.token, self.known, self.received, *self.last, self.began_quiesced))
        self.pump()
        return self.binding

    def _on_hello(self, limit: int, token: int, known: int, received: int, *more: int) -> None:
        if self.known not in (0, token):
            raise Severed("lost", "another process is there, which knows nothing of this path")
        self.binding = "resumed" if self.known else "fresh"
        if not self.known or known != self.token:  # one of us has not met the other: what it says holds now
            self.room, self.again = min(self.limit, limit), [*more[:2]]
        self.known = token
        self._on_frame([SEEN, received if known == self.token else 0], [])
        for frame, descriptors in self.kept:
            self._write(frame, descriptors)

    def _write(self, frame: tuple[Any, ...], descriptors: tuple[int, ...] = ()) -> None:
        data = msgpack.packb(frame)
        if len(data) <= MAX_PACKET:
            with contextlib.suppress(ConnectionError):  # what they had sent may still be there; reading finds the end
                socket.send_fds(self.sock, [data], descriptors)
        else:
            with open(os.memfd_create("bulk", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING), "wb", 0) as file:
                file.write(data)
                fcntl.fcntl(file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE)
                self._write((BULK, len(data)), (file.fileno(), *descriptors))

    def pump(self) -> None:
        """Take one packet of the other end. Raises Unbound, Severed, TimeoutError."""
        try:
            data, descriptors, _, _ = socket.recv_fds(self.sock, MAX_PACKET, 16)
        except ConnectionResetError:  # said once, before what is still there: they have not read all of ours
            return self.pump()
        if not data:
            raise Unbound
        for frame in msgpack.Unpacker(io.BytesIO(data)):
            self.received += 0 if frame[0] in (HELLO, SEEN) else 1
            if frame[0] == BULK:
                with open(descriptors.pop(0), "rb") as file:
                    frame = msgpack.unpackb(os.pread(file.fileno(), frame[1], 0))
            self._on_frame(frame, descriptors)
        if self.received > self.told:  # we could wait until SEEN is due
            self.told = self.received
            self._write((SEEN, self.received))

    def _on_frame(self, frame: list[Any], descriptors: list[int]) -> None:
        kind, ident, body, count, ms = [*frame[:5], None, None, None, None][:5]
        taken = tuple(descriptors.pop(0) for _ in range(count or 0)) if kind in (SEND, CALL, REPLY) else ()
        if kind == HELLO:
            self._on_hello(*frame[2:])
        elif kind == SEEN:
            del self.kept[: ident - self.seen]
            self.seen = ident
        elif kind in (SEND, CALL):
            self.inbox.append(Incoming(kind, ident, body, taken, ms, abs(ident) <= self.again[ident < 0]))
        elif kind in (REPLY, REJECT):
            del self.out[ident]
            self.ended[ident] = frame, taken
        elif kind == ACK:
            for each in range(min(ident, body), max(ident, body) + 1):
                if each in self.out and self.out[each][0][0] == SEND:
                    del self.out[each]
                    self.ended[each] = frame, ()
        elif kind == PURGE:
            self.purged.add(ident)
        else:
            raise Severed(ident, body) if kind == SEVER else NotImplementedError(frame)

    # -- what a program does ----------------------------------------------------------------------------------------

    def say(self, *frame: Any, descriptors: tuple[int, ...] = ()) -> None:
        """Write any counted frame, as REPLY or ACK; its descriptors must stay open until they have SEEN it."""
        self.kept.append((frame, descriptors))
        self._write(frame, descriptors)

    def submit(self, kind: int, body: Any, *, descriptors: tuple[int, ...] = ()) -> int:
        """Write a message, when they take one; returns its id."""
        while len(self.out) >= self.room:
            self.pump()
        self.last[0] += 1
        self.say(kind, self.last[0], body, len(descriptors), descriptors=descriptors)
        self.out[self.last[0]] = self.kept[-1]  # what was just said
        return self.last[0]

    def end_of(self, ident: int) -> Packet:
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
        return self.inbox.pop(0)
