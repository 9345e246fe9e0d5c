"""What lies between a session and its descriptors: frames in order, kept until they were seen, sent again if not.

Every frame but HELLO and SEEN is counted, in each direction, from the start of a session. An end keeps what it has
written until the other says SEEN; when the descriptor is lost and both ends are given a new one, HELLO says how far
each has come, and the rest goes again. So nothing is lost and nothing comes twice, whatever happens to descriptors.
"""

from collections import deque
from collections.abc import Callable
from enum import Enum
from typing import Final, NamedTuple, Protocol

from retinue.pipes import wire
from retinue.pipes.errors import ProtocolViolation
from retinue.pipes.states import BINDINGS, Binding, Happening
from retinue.pipes.wire import Frame, Kind


class Slot(Protocol):
    """Where the contents of a large frame lie."""

    @property
    def descriptor(self) -> int: ...

    @property
    def size(self) -> int: ...

    def contents(self) -> bytes: ...

    def release(self) -> None: ...


Close = Callable[[tuple[int, ...]], None]


class Outgoing:
    """A frame that is more than its bytes: it has descriptors, or its contents lie in a memfd (``slot``).

    It is held by the link until the frame was seen, and by the session until the message has ended.
    """

    __slots__ = ("_close", "_holders", "data", "descriptors", "size", "slot")

    def __init__(
        self, data: bytes, descriptors: tuple[int, ...] = (), close: Close | None = None, slot: Slot | None = None
    ) -> None:
        self.data = data
        self.descriptors = descriptors
        self.slot = slot
        self._close = close
        self.size = len(data) + (slot.size if slot is not None else 0)
        self._holders = 1

    @property
    def carried(self) -> tuple[int, ...]:
        """The descriptors that go into the packet."""
        return self.descriptors if self.slot is None else (self.slot.descriptor, *self.descriptors)

    def contents(self) -> bytes:
        """The bytes of the frame itself."""
        return self.data if self.slot is None else self.slot.contents()

    def hold(self) -> None:
        """One more needs it."""
        self._holders += 1

    def drop(self) -> None:
        """One less needs it; after the last its descriptors are closed."""
        self._holders -= 1
        if self._holders == 0:
            if self._close is not None:
                self._close(self.descriptors)
            if self.slot is not None:
                self.slot.release()


Data = bytes | Outgoing


class Packet(NamedTuple):
    """What goes into one send."""

    data: bytes
    descriptors: tuple[int, ...]


class Greeting(Enum):
    """What the HELLO of the other end has shown."""

    FRESH = "fresh"  # the first of this session
    RESUMED = "resumed"  # the same two sessions as before
    SUCCESSOR = "successor"  # another process in the place of the one before


# Frames with descriptors that may be written and not seen: an end says SEEN at once for them, and one that does not
# shall not make this end keep them all.
MOST_CARRYING: Final = 16

_NONE: Final[deque[Data]] = deque(maxlen=0)


class Link:
    """The queues, counters and kept frames of one end.

    With ``keeps`` frames are kept for another binding; without, a lost descriptor is the end of the path.
    """

    __slots__ = (
        "_again", "_before", "_carrying", "_first", "_numbered", "_plain", "_shelved", "_unsaid_bytes", "_waiting",
        "_written", "_written_bytes", "binding", "held_back", "keeps", "ordinary", "peer", "received", "said", "seen",
        "token", "unsent", "urgent",
    )  # fmt: skip

    def __init__(self, keeps: bool = False, token: int | None = None) -> None:
        self.keeps = keeps
        self.token = token or wire.new_token()
        self.binding = Binding.UNBOUND
        self.peer = 0  # token of the other end's session, 0 before its first HELLO
        self.received = 0  # counted frames that have come
        self.said = 0  # how many of them were told by SEEN
        self.seen = 0  # counted frames of ours that the other end has told of
        self.ordinary: deque[Data] = deque()
        self.urgent: deque[Data] = _NONE  # a queue of its own when the first priority frame comes
        self._first: list[bytes] = []  # not counted, and before all others
        self._again: deque[Data] = _NONE  # written on an earlier binding and not seen
        self._written: deque[Data] = deque() if keeps else _NONE  # on this binding, and not seen
        self._written_bytes = 0
        self._numbered = 0  # counted frames written, seen or not
        self._before = 0  # the same before the last packet
        self.unsent = 0  # how many of them the socket has refused for now
        self._carrying = 0  # frames with descriptors that were written and not seen
        self.held_back = False  # the next frame has descriptors and waits until others were seen
        self._shelved: list[tuple[int, Outgoing]] = []  # without ``keeps``: memfds that were not read yet
        self._unsaid_bytes = 0
        self._waiting = 0  # bytes in the ordinary queue
        self._plain = True  # there is nothing but bytes in it

    # -- bindings -----------------------------------------------------------------------------------------------------

    def happen(self, happening: Happening) -> None:
        """Step the table of bindings. :exc:`ProtocolViolation` for what cannot happen now."""
        following = BINDINGS.get((self.binding, happening))
        if following is None:
            raise ProtocolViolation(f"{happening.value} is not allowed while the path is {self.binding.value}")
        self.binding = following

    def bind(self, hello: Frame) -> None:
        """There is a new descriptor: greet on it."""
        self.happen(Happening.BIND)
        self._first = [wire.encode(hello)]

    def lose(self) -> None:
        """The descriptor has ended; what was written and not seen will go again."""
        self.happen(Happening.LOSE)
        self._first = []
        self.unsent = self._carrying = 0
        self.held_back = False
        if self._written:
            self._written.extend(self._again)
            self._again, self._written = self._written, deque()
            self._written_bytes = 0

    def greet(self, frame: Frame) -> Greeting:
        """Take the other end's HELLO."""
        _, _, _, token, known, received, *_ = frame
        self.happen(Happening.HELLO)
        if self.peer == 0:
            self.peer = token
            return Greeting.FRESH
        if token != self.peer:
            self.peer = token
            self._restart()
            return Greeting.SUCCESSOR
        if known != self.token:
            # It lost its descriptor before it read our first HELLO: what it has received, it had from another.
            if self.seen or self.received:
                raise ProtocolViolation("HELLO of the same session knows another one than this")
            received = 0
        if not self.seen <= received <= self.seen + len(self._again):
            raise ProtocolViolation(f"HELLO tells of {received} frames of {self.seen + len(self._again)}")
        self._forget(self._again, received)
        self._numbered = received
        self._written_bytes = 0
        return Greeting.RESUMED

    def _restart(self) -> None:
        """Another session in the other's place: it has nothing of ours and we have nothing of it."""
        self.drop_all()
        self.received = self.said = self.seen = self._numbered = self._unsaid_bytes = self.unsent = 0

    def drop_all(self) -> None:
        """Forget every frame."""
        for queue in (self.ordinary, self.urgent, self._again, self._written):
            for frame in queue:
                if not isinstance(frame, bytes):
                    frame.drop()
            queue.clear()
        for _, outgoing in self._shelved:
            outgoing.drop()
        self._shelved.clear()
        self._waiting = self._written_bytes = self._carrying = 0
        self._plain = True
        self.held_back = False

    def end(self) -> None:
        """The path is over: nothing goes out any more."""
        if self.binding is not Binding.ENDED:
            self.happen(Happening.END)
        self._first = []
        self.drop_all()

    # -- outgoing -----------------------------------------------------------------------------------------------------

    def put(self, frame: Data, urgent: bool = False) -> None:
        """Queue a counted frame."""
        if urgent:
            if self.urgent is _NONE:
                self.urgent = deque()
            self.urgent.append(frame)
            return
        self.ordinary.append(frame)
        if isinstance(frame, bytes):
            self._waiting += len(frame)
        else:
            self._plain = False

    def put_first(self, frame: Frame) -> None:
        """Queue a frame that is not counted, before all others."""
        self._first.append(wire.encode(frame))

    @property
    def idle(self) -> bool:
        """Whether there is nothing to write now."""
        if self._first:
            return False
        return self.binding is not Binding.BOUND or not (self.ordinary or self.urgent or self._again)

    @property
    def carrying(self) -> bool:
        """Whether frames with descriptors were written and not seen."""
        return self._carrying > 0

    @property
    def backlog(self) -> int:
        """How many frames wait to be written."""
        return len(self.ordinary) + len(self.urgent)

    @property
    def full(self) -> bool:
        """Whether there is more than one packet to write, or a memfd that others could read meanwhile."""
        return self._waiting > wire.MAX_PACKET or not self._plain

    def unwritten(self) -> set[int]:
        """The identities (:func:`id`) of frames that were never written."""
        return {id(frame) for queue in (self.ordinary, self.urgent) for frame in queue}

    def next_packet(self) -> Packet | None:
        """Take as many frames as one packet holds; None when there is nothing to write now."""
        self._before = self._numbered
        ordinary = self.ordinary
        if self._first or self._again or self.urgent or not self._plain:
            return self._mixed_packet()
        if not ordinary or self.binding is not Binding.BOUND:
            return None
        if self._waiting > wire.MAX_PACKET:
            return self._full_packet()
        count = len(ordinary)
        data = ordinary[0] if count == 1 else b"".join(ordinary)  # type: ignore[arg-type]  # nothing but bytes
        if self.keeps:
            self._written.extend(ordinary)
            self._written_bytes += self._waiting
            if self._written_bytes > wire.MAX_UNSEEN:
                raise ProtocolViolation(f"more than {wire.MAX_UNSEEN} bytes were written without a SEEN")
        ordinary.clear()
        self._numbered += count
        self._waiting = 0
        return Packet(data, ())  # type: ignore[arg-type]

    def refused(self) -> None:
        """The socket has no room for the last packet, which will be tried again: nobody can have seen it."""
        self.unsent = self._numbered - self._before

    def _full_packet(self) -> Packet:
        ordinary = self.ordinary
        parts: list[bytes] = []
        size = 0
        while ordinary and isinstance(frame := ordinary[0], bytes) and size + len(frame) <= wire.MAX_PACKET:
            size += len(frame)
            parts.append(frame)
            self._note_written(frame)
            ordinary.popleft()
        self._waiting -= size
        return Packet(parts[0] if len(parts) == 1 else b"".join(parts), ())

    def _mixed_packet(self) -> Packet | None:
        parts = self._first
        size = sum(map(len, parts))
        descriptors: tuple[int, ...] = ()
        self._first = []
        self.held_back = False
        if self.binding is Binding.BOUND:
            for queue in (self._again, self.urgent, self.ordinary):
                while queue:
                    frame = queue[0]
                    data, carried = (frame, ()) if isinstance(frame, bytes) else (frame.data, frame.carried)
                    size += len(data)
                    if parts and (size > wire.MAX_PACKET or len(descriptors) + len(carried) > wire.MAX_DESCRIPTORS):
                        return Packet(b"".join(parts), descriptors)
                    if carried and self._carrying >= MOST_CARRYING:
                        self.held_back = True
                        return Packet(b"".join(parts), descriptors) if parts else None
                    parts.append(data)
                    descriptors += carried
                    queue.popleft()
                    if queue is self.ordinary and isinstance(frame, bytes):
                        self._waiting -= len(data)
                    self._note_written(frame)
            self._plain = True
        return Packet(b"".join(parts), descriptors) if parts else None

    def _note_written(self, frame: Data) -> None:
        self._numbered += 1
        if not isinstance(frame, bytes):
            self._carrying += 1
        if self.keeps:
            self._written.append(frame)
            self._written_bytes += len(frame) if isinstance(frame, bytes) else len(frame.data)
            if self._written_bytes > wire.MAX_UNSEEN:
                raise ProtocolViolation(f"more than {wire.MAX_UNSEEN} bytes were written without a SEEN")
        elif not isinstance(frame, bytes):
            self._shelved.append((self._numbered, frame))

    # -- incoming -----------------------------------------------------------------------------------------------------

    def note(self, size: int, *, at_once: bool = False) -> None:
        """Note the bytes of a packet that has come; SEEN is said after some, or at once."""
        self._unsaid_bytes += size
        if self.received != self.said and (
            at_once or self.received - self.said >= wire.SEEN_FRAMES or self._unsaid_bytes >= wire.SEEN_BYTES
        ):
            self.said = self.received
            self._unsaid_bytes = 0
            if self._first and self._first[-1][1] == Kind.SEEN:
                self._first.pop()  # not written yet, and the next one says it too
            self.put_first([Kind.SEEN, self.received])

    def on_seen(self, count: int) -> None:
        """The other end has told how many frames it has seen."""
        if not self.seen <= count <= self._numbered - self.unsent:
            raise ProtocolViolation(f"SEEN of {count} frames, written were {self._numbered - self.unsent}")
        if self.keeps:
            self._carrying -= self._forget(self._written, count)
        else:
            self.seen = count
            while self._shelved and self._shelved[0][0] <= count:
                self._shelved.pop(0)[1].drop()
                self._carrying -= 1

    def _forget(self, kept: deque[Data], count: int) -> int:
        """Let go of what was seen; returns how many frames had descriptors."""
        carried = 0
        for _ in range(count - self.seen):
            frame = kept.popleft()
            if isinstance(frame, bytes):
                self._written_bytes -= len(frame)
            else:
                self._written_bytes -= len(frame.data)
                frame.drop()
                carried += 1
        self.seen = count
        return carried
