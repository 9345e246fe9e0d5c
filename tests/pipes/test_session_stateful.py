"""Two sessions, a network that loses descriptors, processes that are replaced: nothing is lost, nothing comes twice.

Hypothesis drives both ends and the network between them in any order; a model knows what each program may expect and
is compared with both sessions after every step. ``RETINUE_EXAMPLES=10000`` makes a long run of it.
"""

import os
from collections import deque
from collections.abc import Iterator
from typing import Any, Final

import attrs
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from retinue.pipes import LimitExceeded, PathClosed, PathSevered, WrongMode, wire
from retinue.pipes.link import Greeting, Packet
from retinue.pipes.session import Session
from retinue.pipes.states import Binding, State
from retinue.pipes.wire import Frame, Kind

EXAMPLES: Final = int(os.environ.get("RETINUE_EXAMPLES", "60"))

# Too large for a packet: it travels in a memfd, here in a Slot.
LARGE: Final = bytes(wire.MAX_PACKET)
TRACE: Final = bytes(range(16))
# What a token says of an end that takes traces. Not every one does: some are of the time before there were any.
TAKES_TRACES: Final = 0x545201 << 40


class Shelf:
    """Where the contents of large frames lie, for one session; a slot is let go of exactly once."""

    def __init__(self) -> None:
        self.slots: list[ShelfSlot] = []
        self.closed = False  # nothing is written any more, and what is on its way stays as it was

    def store(self, frame: Frame) -> "ShelfSlot":
        slot = ShelfSlot(len(self.slots), frame)
        self.slots.append(slot)
        return slot

    def fetch(self, descriptor: int) -> Frame:
        slot = self.slots[descriptor]
        assert self.closed or not slot.released, "its contents may have been written over"
        return slot.frame

    @property
    def empty(self) -> bool:
        return all(slot.released for slot in self.slots)


@attrs.define
class ShelfSlot:
    descriptor: int
    frame: Frame
    released: bool = False
    size: int = wire.MAX_PACKET + 16

    def contents(self) -> bytes:
        return wire.encode(self.frame)

    def release(self) -> None:
        assert not self.released
        self.released = True


@attrs.define(eq=False)
class Sent:
    """A message as its sender's model knows it."""

    ident: int
    wants_reply: bool
    body: Any
    withdrawn: bool = False
    ended: str = ""  # how
    written_to: "list[End]" = attrs.field(factory=list)  # who may have been given it


class Pair:
    """Two connected descriptors: packets arrive in order, until it is cut or closed."""

    def __init__(self) -> None:
        self.towards: tuple[deque[Packet], deque[Packet]] = (deque(), deque())
        self.ends: list[End | None] = [None, None]
        self.cut = False
        self.closed = False

    def over(self, at: int) -> bool:
        """Whether an end reads nothing any more."""
        return self.cut or (self.closed and not self.towards[at])


class End:
    """A session, the program above it, and what the model knows of both."""

    def __init__(self, serial: int, limit: int, quiesced: bool) -> None:
        self.serial = serial
        self.shelf = Shelf()
        self.takes_traces = serial % 3 > 0
        token = (TAKES_TRACES if self.takes_traces else 0) + 1000 + serial
        self.session = Session(
            limit, f"end {serial}", keeps=True, store=self.shelf.store, token=token, quiesced=quiesced
        )
        self.pair: Pair | None = None
        self.peer: End | None = None  # whose HELLO came last
        self.unheard = False  # that other end had met this one before it did
        # Ours
        self.ours: dict[int, Sent] = {}
        self.live: dict[int, Sent] = {}
        self.waiting: deque[int] = deque()  # what a successor was not sent yet
        self.sent = self.received = self.redelivered = self.high_water = 0
        # Theirs
        self.theirs: dict[int, Kind] = {}  # not ended
        self.fast: deque[tuple[End, int, Kind]] = deque()  # the inbox of the program
        self.slow: deque[tuple[End, int, Kind]] = deque()
        self.taken: list[int] = []  # calls that the program has not answered
        self.due: dict[tuple[End, bool], list[int]] = {}  # what was written to it: by sender and lane, in order
        self.got: dict[tuple[End, bool], list[int]] = {}
        self.acknowledged: set[tuple[End, int]] = set()
        self.answers: dict[tuple[End, int], tuple[Kind, Any]] = {}
        # The stream
        self.bytes_out = self.bytes_in = self.credited = self.uncredited = 0
        self.eof_out = self.eof_in = False

    def __repr__(self) -> str:
        return f"<End {self.serial} {self.session.state.value} {self.session.link.binding.value}>"

    @property
    def severed(self) -> bool:
        return self.session.state is State.SEVERED

    @property
    def ended(self) -> bool:
        return self.session.link.binding is Binding.ENDED

    def conclude(self) -> None:
        """The path is over for this end: so is everything outstanding."""
        assert self.session.severed_by is not None
        for sent in self.live.values():
            assert not sent.ended
            sent.ended = "severed"
        self.live.clear()
        self.waiting.clear()
        self.theirs.clear()
        self.taken.clear()

    def end_message(self, ident: int, how: str) -> None:
        sent = self.live.pop(ident)
        assert not sent.ended
        assert ident not in self.waiting
        sent.ended = how

    def feed(self) -> None:
        """What a successor has room for is sent to it again."""
        while (
            self.waiting
            and not self.session.held
            and len(self.live) - len(self.waiting) < self.session.peer_limit
            and not self.severed
        ):
            self.redelivered += bool(self.live[self.waiting.popleft()].written_to)


limits = st.integers(1, 4)
ends = st.integers(0, 1)
which = st.integers(0, 7)


class Conversation(RuleBasedStateMachine):
    """Both ends, the network and the model."""

    def __init__(self) -> None:
        super().__init__()
        self.ends: list[End] = []
        self.pair = Pair()
        self.serial = 0
        self.reached: set[State | Binding] = set()

    def fresh(self, limit: int, quiesced: bool) -> End:
        self.serial += 1
        return End(self.serial, limit, quiesced)

    @initialize(one=limits, other=limits, quiesced=st.booleans(), greeted=st.booleans())
    def begin(self, one: int, other: int, quiesced: bool, greeted: bool) -> None:
        self.ends = [self.fresh(one, quiesced), self.fresh(other, False)]
        self.look()
        if greeted:
            self.bind(0)
            self.bind(1)
            self.talk(False)

    def look(self) -> None:
        for end in self.ends:
            self.reached |= {end.session.state, end.session.link.binding}

    # -- the network --------------------------------------------------------------------------------------------------

    @rule(at=ends)
    def write(self, at: int) -> None:
        """Everything that an end has to say goes into its descriptor."""
        end = self.ends[at]
        end.session.settle()
        overtaken = False  # an ordinary message has gone for the first time
        while (packet := end.session.link.next_packet()) is not None:
            assert len(packet.data) <= wire.MAX_PACKET
            if end.pair is None:
                assert end.severed
                continue
            for frame in frames_of(packet, end.shelf):
                if frame[0] in (Kind.SEND, Kind.CALL):
                    receiver = end.pair.ends[1 - at]
                    assert receiver is not None
                    overtaken |= self.on_written(end, receiver, frame[1], overtaken)
                    assert wire.trace_of(frame) in ((None, TRACE) if receiver.takes_traces else (None,))
            if not end.pair.cut and not end.pair.closed:
                end.pair.towards[1 - at].append(packet)

    def on_written(self, end: End, receiver: End, ident: int, overtaken: bool) -> bool:
        sent = end.ours[ident]
        if receiver in sent.written_to:
            return False  # once more, on another binding
        for other in end.live.values():
            if (other.ident > 0) == (ident > 0) and abs(other.ident) < abs(ident):
                assert receiver in other.written_to, f"message {ident} overtakes {other.ident}"
        assert ident > 0 or not overtaken, "a priority message behind an ordinary one"
        sent.written_to.append(receiver)
        receiver.due.setdefault((end, ident < 0), []).append(ident)
        return ident > 0

    @rule(at=ends, count=st.integers(1, 3), prompt=st.booleans())
    def deliver(self, at: int, count: int, prompt: bool) -> None:
        """Some packets arrive at an end; ``prompt``: it says what it has seen."""
        end = self.ends[at]
        pair = end.pair
        if pair is None:
            return
        for _ in range(min(count, len(pair.towards[at]))):
            packet = pair.towards[at].popleft()
            sender = pair.ends[1 - at]
            assert sender is not None
            for frame in frames_of(packet, sender.shelf):
                self.on_frame(end, sender, frame)
                self.look()
            if not end.severed:
                end.session.link.note(len(packet.data), at_once=prompt or bool(packet.descriptors))

    @rule(prompt=st.booleans())
    def talk(self, prompt: bool) -> None:
        """Everything arrives, until both ends are silent; the programs do nothing."""
        for _ in range(20):
            for at in (0, 1):
                self.write(at)
            for at in (0, 1):
                self.deliver(at, 1000, prompt)
        assert all(end.pair is None or not end.pair.towards[at] for at, end in enumerate(self.ends))

    @precondition(lambda self: any(end.pair is self.pair for end in self.ends) and not self.pair.cut)
    @rule()
    def cut(self) -> None:
        """The descriptors are gone, with the packets on the way."""
        self.pair.cut = True
        for packets in self.pair.towards:
            packets.clear()

    @precondition(lambda self: any(end.pair and end.pair.over(at) for at, end in enumerate(self.ends)))
    @rule(first=ends)
    def notice(self, first: int) -> None:
        """An end finds that its descriptor has ended."""
        at = first if self.over(first) else 1 - first
        end = self.ends[at]
        end.pair = None
        if end.severed:
            self.close(at)
            return
        end.session.unbind()
        if self.ends[1 - at].severed:
            self.give_up(at)

    def over(self, at: int) -> bool:
        pair = self.ends[at].pair
        return pair is not None and pair.over(at)

    @precondition(lambda self: any(end.pair is None and not end.ended for end in self.ends))
    @rule(first=ends)
    def bind(self, first: int) -> None:
        """An end is given another descriptor, or told that there will be none."""
        at = first if self.ends[first].pair is None and not self.ends[first].ended else 1 - first
        end, other = self.ends[at], self.ends[1 - at]
        if end.severed:
            self.close(at)
        elif other.severed and (other.pair is not self.pair or self.pair.cut):
            self.give_up(at)
        else:
            if self.pair.cut or self.pair.ends[at] is not None:
                self.pair = Pair()
            end.pair = self.pair
            self.pair.ends[at] = end
            end.session.bind()
            self.look()
            self.write(at)

    def give_up(self, at: int) -> None:
        """The other end has severed, and its word did not come."""
        end = self.ends[at]
        end.session.lose()
        end.conclude()
        self.close(at)

    @precondition(lambda self: any(end.severed and not end.ended for end in self.ends))
    @rule(first=ends)
    def close_severed(self, first: int) -> None:
        """An end that is severed writes what is left and closes its descriptor."""
        self.close(first if self.ends[first].severed and not self.ends[first].ended else 1 - first)

    def close(self, at: int) -> None:
        end = self.ends[at]
        self.look()
        self.write(at)
        end.shelf.closed = True
        end.session.end()
        if end.pair is not None:
            end.pair.closed = True
            end.pair.towards[at].clear()
            end.pair = None
        if self.pair.ends[at] is None:
            self.pair.cut = True  # nobody will come to this end of it
        self.look()
        assert end.session.outstanding[0] == 0
        assert end.shelf.empty

    @precondition(lambda self: not any(end.severed for end in self.ends))
    @rule(at=ends, limit=limits, quiesced=st.booleans())
    def replace(self, at: int, limit: int, quiesced: bool) -> None:
        """The process of an end dies and another one takes its place."""
        end = self.ends[at]
        if end.pair is not None:
            end.pair.cut = True
            for packets in end.pair.towards:
                packets.clear()
        end.session.end()
        assert end.shelf.empty
        self.ends[at] = self.fresh(limit, quiesced)

    # -- frames -------------------------------------------------------------------------------------------------------

    def on_frame(self, end: End, sender: End, frame: Frame) -> None:
        session = end.session
        was_severed = end.severed
        was_still = session.still
        accepted = session.receive(frame)
        if was_severed:
            assert accepted is None
            return
        match frame:
            case [Kind.HELLO, _, _, _, known, *_]:
                end.unheard = end.peer is not sender and known == session.link.token
                self.on_hello(end, sender)
            case [Kind.SEND | Kind.CALL as kind, ident, body, *_]:
                assert not was_still
                self.on_message(end, sender, Kind(kind), ident, body)
            case [Kind.REPLY | Kind.REJECT as kind, ident, content, *_]:
                assert sender.answers.pop((end, ident)) == (Kind(kind), content)
                assert end.live[ident].wants_reply
                end.end_message(ident, "answered")
            case [Kind.ACK, first, last]:
                acknowledged = [
                    ident
                    for ident, sent in end.live.items()
                    if not sent.wants_reply and (ident > 0) == (first > 0) and abs(first) <= abs(ident) <= abs(last)
                ]
                assert acknowledged
                for ident in acknowledged:
                    assert (end, ident) in sender.acknowledged
                    end.end_message(ident, "received")
            case [Kind.PURGE, ident]:
                assert sender.ours[ident].withdrawn
                if accepted is not None:
                    assert end.theirs[ident] is Kind.CALL
                    end.theirs[ident] = Kind.PURGE
                else:
                    assert ident not in end.theirs
            case [Kind.DATA, data]:
                end.bytes_in += len(data)
                end.uncredited += len(data)
                assert end.bytes_in <= sender.bytes_out
            case [Kind.EOF]:
                assert sender.eof_out
                assert end.bytes_in == sender.bytes_out
                end.eof_in = True
            case [Kind.CREDIT, count]:
                end.credited += count
            case [Kind.SEVER, *_]:
                end.conclude()
        end.feed()

    def on_hello(self, end: End, sender: End) -> None:
        session = end.session
        before, end.peer = end.peer, sender
        if before is None:
            assert session.greeting is Greeting.FRESH
        elif before is sender:
            assert session.greeting is Greeting.RESUMED
        else:
            assert session.greeting is Greeting.SUCCESSOR
            end.theirs.clear()
            end.taken.clear()
            end.slow = deque(each for each in end.slow if each[2] is Kind.SEND)
            end.fast = deque(each for each in end.fast if each[2] is Kind.SEND)
            if end.severed:  # it was a byte stream
                assert isinstance(session.severed_by, PathSevered)
                assert session.severed_by.code == "lost"
                end.conclude()
                return
            end.waiting.clear()
            for ident in [ident for ident, sent in end.live.items() if sent.withdrawn]:
                end.end_message(ident, "withdrawn")
            end.waiting.extend(sorted((ident for ident in end.live if ident < 0), reverse=True))
            end.waiting.extend(sorted(ident for ident in end.live if ident > 0))
        assert session.peer_limit == min(session.limit, sender.session.limit)

    def on_message(self, end: End, sender: End, kind: Kind, ident: int, body: Any) -> None:
        sent = sender.ours[ident]
        assert sent.wants_reply is (kind is Kind.CALL)
        assert sent.body == body
        lane = (sender, ident < 0)
        got = end.got.setdefault(lane, [])
        got.append(ident)
        assert end.due[lane][: len(got)] == got, "not in order, or twice, or with a gap"
        marked = end.session.is_redelivery(ident)
        before = [each for each in sent.written_to if each is not end]
        assert marked or not before, f"message {ident} may have been given to {before}, and is not marked"
        # An end that did not hear of this one's first greetings cannot tell it from a predecessor.
        assert before or end.unheard or not marked, f"message {ident} is marked and was given to nobody"
        end.received += 1
        end.theirs[ident] = kind
        (end.fast if ident < 0 else end.slow).append((sender, ident, kind))

    # -- the programs -------------------------------------------------------------------------------------------------

    @rule(at=ends, wants_reply=st.booleans(), priority=st.booleans(), large=st.sampled_from([False, False, True]))
    def message(self, at: int, wants_reply: bool, priority: bool, large: bool) -> None:
        """A program sends or calls, if there is room."""
        end = self.ends[at]
        session = end.session
        ident = 1 + sum((each < 0) is priority for each in end.ours)
        ident = -ident if priority else ident
        body = LARGE if large else [end.serial, ident]
        say = session.call if wants_reply else session.send
        trace = TRACE if abs(ident) % 2 else None
        if session.room <= 0:
            with pytest.raises((LimitExceeded, WrongMode, PathSevered, PathClosed)):
                say(body, priority=priority, trace=trace)
            return
        assert say(body, priority=priority, trace=trace) == ident
        end.ours[ident] = end.live[ident] = Sent(ident, wants_reply, body)
        end.sent += 1
        end.high_water = max(end.high_water, len(end.live))

    @precondition(lambda self: any(end.fast or end.slow for end in self.ends))
    @rule(first=ends)
    def take(self, first: int) -> None:
        """A program takes the next message out of its inbox; a one-way message has then been received."""
        end = self.ends[first] if self.ends[first].fast or self.ends[first].slow else self.ends[1 - first]
        sender, ident, kind = (end.fast or end.slow).popleft()
        if end.severed or sender is not end.peer:
            return
        if kind is Kind.CALL:
            end.taken.append(ident)
        else:
            assert end.theirs.pop(ident) is Kind.SEND
            end.acknowledged.add((sender, ident))
            end.session.acknowledge(ident)

    @precondition(lambda self: any(end.taken for end in self.ends))
    @rule(first=ends, nth=which, refuse=st.booleans(), large=st.booleans())
    def answer(self, first: int, nth: int, refuse: bool, large: bool) -> None:
        """A program replies to a call or rejects it, also when it was withdrawn."""
        end = self.ends[first] if self.ends[first].taken else self.ends[1 - first]
        ident = end.taken.pop(nth % len(end.taken))
        peer = end.peer
        assert peer is not None
        withdrawn = end.theirs.pop(ident) is Kind.PURGE
        body = LARGE if large else [end.serial, ident]
        if refuse:
            end.session.reject(ident, "no", "", body)
            end.answers[peer, ident] = (Kind.REJECT, "no")
        else:
            assert end.session.reply(ident, body) is not withdrawn
            end.answers[peer, ident] = (Kind.REJECT, "purged") if withdrawn else (Kind.REPLY, body)
        with pytest.raises((WrongMode, PathSevered, PathClosed)):
            end.session.reply(ident, body)

    @precondition(lambda self: any(sent.wants_reply for end in self.ends for sent in end.live.values()))
    @rule(first=ends, nth=which)
    def purge(self, first: int, nth: int) -> None:
        """A program withdraws a call; a second time has no effect."""
        for end in (self.ends[first], self.ends[1 - first]):
            calls = [sent for sent in end.live.values() if sent.wants_reply]
            if calls:
                sent = calls[nth % len(calls)]
                end.session.purge(sent.ident)
                sent.withdrawn = True
                if sent.ident in end.waiting:
                    end.waiting.remove(sent.ident)
                    end.end_message(sent.ident, "withdrawn")
                return

    @rule(at=ends)
    def quiesce(self, at: int) -> None:
        """A program takes no messages for now."""
        if self.may_gate(at):
            self.ends[at].session.quiesce()

    @rule(at=ends)
    def resume(self, at: int) -> None:
        """It takes them again."""
        if self.may_gate(at):
            self.ends[at].session.resume()

    def may_gate(self, at: int) -> bool:
        return self.ends[at].session.state in (State.OPENING, State.OPEN)

    @rule(at=ends, rare=st.integers(0, 3))
    def sever(self, at: int, rare: int) -> None:
        """A program has had enough."""
        end = self.ends[at]
        if rare == 0 and not end.severed:
            end.session.sever("enough", "of it")
            assert isinstance(end.session.severed_by, PathClosed)
            end.conclude()

    @rule(at=ends)
    def stream(self, at: int) -> None:
        """A program turns its end into a byte stream, unless messages are outstanding."""
        end = self.ends[at]
        if end.session.state in (State.OPEN, State.OFFERED) and not end.live and not end.theirs:
            end.session.stream()
        else:
            with pytest.raises((WrongMode, PathSevered, PathClosed)):
                end.session.stream()

    @precondition(lambda self: any(end.session.state in (State.ASKED, State.STREAM) for end in self.ends))
    @rule(at=ends, size=st.sampled_from([1, 1000, wire.MAX_CHUNK]))
    def send_bytes(self, at: int, size: int) -> None:
        """A program writes into the stream, as far as the window allows."""
        end = self.ends[at]
        if end.session.state not in (State.ASKED, State.STREAM) or end.eof_out:
            with pytest.raises((WrongMode, PathSevered, PathClosed)):
                end.session.send_bytes(bytes(size))
        elif size > end.session.window:
            with pytest.raises(LimitExceeded):
                end.session.send_bytes(bytes(size))
        else:
            end.session.send_bytes(bytes(size))
            end.bytes_out += size

    @precondition(lambda self: any(end.session.state in (State.ASKED, State.STREAM) for end in self.ends))
    @rule(at=ends)
    def send_eof(self, at: int) -> None:
        """A program ends its direction of the stream; a second time has no effect."""
        end = self.ends[at]
        if end.session.state in (State.ASKED, State.STREAM):
            end.session.send_eof()
            end.eof_out = True

    @precondition(lambda self: any(end.uncredited for end in self.ends))
    @rule(at=ends, part=st.integers(1, 3))
    def credit(self, at: int, part: int) -> None:
        """A program has taken some bytes out of the stream."""
        end = self.ends[at]
        count = -(-end.uncredited // part)
        if end.session.state is State.STREAM and count:
            end.session.credit(count)
            end.uncredited -= count

    # -- the model ----------------------------------------------------------------------------------------------------

    @invariant()
    def everything_matches(self) -> None:
        self.look()
        for end in self.ends:
            session = end.session
            meter = session.meter
            assert (meter.sent, meter.received) == (end.sent, end.received)
            assert (meter.redelivered, meter.high_water) == (end.redelivered, end.high_water)
            assert all(sent.ended for ident, sent in end.ours.items() if ident not in end.live)
            if end.severed:
                assert session.room == 0
                assert session.severed_by is not None
                continue
            assert session.outstanding == (len(end.live), len(end.theirs))
            assert all(session.waits(ident) for ident in end.theirs)
            assert len(end.theirs) <= session.peer_limit <= session.limit
            room = session.peer_limit - len(end.live)
            assert session.room == (0 if session.state is not State.OPEN or session.held or end.waiting else room)
            if end.peer is not None:
                known = [sent for sent in end.live.values() if end.peer in sent.written_to]
                assert len(known) <= session.peer_limit
            window = 0 if session.turns_later else wire.STREAM_WINDOW - end.bytes_out + end.credited
            assert session.window == window

    def teardown(self) -> None:
        """Let everything arrive and be answered: nothing may be left over."""
        if not self.ends:
            return
        for _ in range(20):
            self.let_go_on()
            self.everything_matches()
        if any(end.severed for end in self.ends):
            assert all(end.ended for end in self.ends)
            return
        for end, other in zip(self.ends, reversed(self.ends), strict=True):
            session = end.session
            assert session.link.binding is Binding.BOUND
            assert not end.live
            assert session.outstanding == (0, 0)
            assert session.link.idle
            assert end.shelf.empty
            assert session.held is other.session.quiesced
            assert session.still is session.quiesced
            if session.state is State.STREAM:
                assert (end.bytes_in, end.eof_in) == (other.bytes_out, other.eof_out)
                assert session.window == wire.STREAM_WINDOW
            else:
                assert session.state is State.OPEN
                assert session.room == session.peer_limit

    def let_go_on(self) -> None:
        """Both programs do what is left for them to do."""
        for at, end in enumerate(self.ends):
            if self.over(at):
                self.notice(at)
            if end.pair is None and not end.ended:
                self.bind(at)
            if end.severed and not end.ended:
                self.close(at)
        self.talk(True)
        for at, end in enumerate(self.ends):
            self.resume(at)
            while end.fast or end.slow:
                self.take(at)
            while end.taken:
                self.answer(at, 0, False, False)
            if end.session.state is State.OFFERED and not end.live and not end.theirs:
                self.stream(at)
            self.credit(at, 1)
        self.talk(True)


def frames_of(packet: Packet, shelf: Shelf) -> Iterator[Frame]:
    """The frames of a packet, those in slots as if they had stood in it."""
    descriptors = deque(packet.descriptors)
    for frame in wire.decoder().decode(packet.data):
        yield shelf.fetch(descriptors.popleft()) if frame[0] == Kind.BULK else frame


TestConversation = Conversation.TestCase
TestConversation.settings = settings(max_examples=EXAMPLES, stateful_step_count=50, deadline=None, database=None)
