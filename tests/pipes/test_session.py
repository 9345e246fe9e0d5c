"""One end of a path as a table, and two of them talking."""

import ast
import inspect
import itertools
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from retinue.pipes import LimitExceeded, PathClosed, PathSevered, ProtocolViolation, WrongMode, session, wire
from retinue.pipes.session import (
    TABLE,
    Answered,
    Bytes,
    Command,
    Credited,
    Ended,
    Event,
    Incoming,
    Opened,
    Purged,
    Received,
    Refused,
    Session,
    State,
)
from retinue.pipes.wire import Kind

THEIR_CALL, THEIR_SEND, OUR_CALL, OUR_SEND = 1, 2, 1, 2


def said(end: Session, most: int = 1_000_000) -> list[list[Any]]:
    """Take what an end has to say, as frames."""
    decoder = wire.Decoder()
    return [frame for _ in range(min(most, len(end.outbox))) for frame in decoder.decode(end.outbox.popleft().data)]


def talk(one: Session, other: Session, at_once: int = 1_000_000) -> tuple[list[Event], list[Event]]:
    """Carry frames, so many at a time, until both are silent; returns the events of each."""
    events: tuple[list[Event], list[Event]] = ([], [])
    while one.outbox or other.outbox:
        for source, target, found in ((one, other, events[1]), (other, one, events[0])):
            for frame in said(source, at_once):
                if (event := target.receive(frame)) is not None:
                    found.append(event)
    return events


def opened(limit: int = 8, peer_limit: int = 8) -> tuple[Session, Session]:
    one, other = Session(limit, "one"), Session(peer_limit, "other")
    assert talk(one, other) == ([Opened(peer_limit)], [Opened(limit)])
    return one, other


# -- the table ---------------------------------------------------------------------------------------------------------


def in_state(state: State) -> Session:
    """A session that got there by what the other end and the program did; with messages of both where it can be."""
    end = Session(8, "x")
    end.outbox.clear()
    if state is State.OPENING:
        return end
    end.receive([Kind.HELLO, wire.VERSION, 8])
    if state in (State.ASKED, State.STREAM):
        end.stream()
    if state is not State.STREAM:
        end.receive([Kind.CALL, THEIR_CALL, None])
        end.receive([Kind.SEND, THEIR_SEND, None])
    if state in (State.OPEN, State.OFFERED, State.SEVERED):
        assert (end.call(None), end.send(None)) == (OUR_CALL, OUR_SEND)
    if state in (State.OFFERED, State.STREAM):
        end.receive([Kind.STREAM])
    if state in (State.ASKED, State.STREAM):
        end.send_bytes(b"some")
    if state is State.SEVERED:
        end.receive([Kind.SEVER, "why", "because"])
    assert end.state is state
    end.outbox.clear()
    return end


FRAMES: dict[Kind, list[Any]] = {
    Kind.HELLO: [Kind.HELLO, wire.VERSION, 8],
    Kind.SEND: [Kind.SEND, 3, None],
    Kind.CALL: [Kind.CALL, 3, None],
    Kind.REPLY: [Kind.REPLY, OUR_CALL, None],
    Kind.REJECT: [Kind.REJECT, OUR_CALL, "no", "", None],
    Kind.ACK: [Kind.ACK, OUR_SEND],
    Kind.PURGE: [Kind.PURGE, THEIR_CALL],
    Kind.SEVER: [Kind.SEVER, "closed", ""],
    Kind.STREAM: [Kind.STREAM],
    Kind.DATA: [Kind.DATA, b"x"],
    Kind.EOF: [Kind.EOF],
    Kind.CREDIT: [Kind.CREDIT, 4],
    Kind.BULK: [Kind.BULK, wire.MAX_PACKET + 1],
}

# Allowed by the table, but there is nothing it could be about: a stream begins when nothing of this end is outstanding.
NOTHING_TO_ANSWER = {
    (state, kind) for state in (State.ASKED, State.STREAM) for kind in (Kind.REPLY, Kind.REJECT, Kind.ACK)
} | {(State.STREAM, Kind.PURGE)}


@pytest.mark.parametrize(("state", "kind"), list(itertools.product(State, Kind)), ids=lambda value: value.name)
def test_every_frame_in_every_state(state: State, kind: Kind) -> None:
    """A frame leads where the table says; one that the table has not is a violation and changes nothing."""
    end = in_state(state)
    following = TABLE.get((state, kind))
    if state is State.SEVERED:
        assert end.receive(FRAMES[kind]) is None  # it crossed the end of the path
    elif following is None or (state, kind) in NOTHING_TO_ANSWER:
        with pytest.raises(ProtocolViolation) as caught:
            end.receive(FRAMES[kind])
        assert ("is not allowed while" in caught.value.rule) == (following is None)
        assert end.state is state
    else:
        end.receive(FRAMES[kind])
        assert end.state is following


COMMANDS: dict[Command, Callable[[Session], object]] = {
    Command.SEND: lambda end: end.send(None),
    Command.CALL: lambda end: end.call(None),
    Command.ANSWER: lambda end: end.reply(THEIR_CALL, None),
    Command.PURGE: lambda end: end.purge(OUR_CALL),
    Command.STREAM: lambda end: end.stream(),
    Command.BYTES: lambda end: end.send_bytes(b"x"),
    Command.CREDIT: lambda end: end.credit(1),
    Command.SEVER: lambda end: end.sever("closed"),
}


@pytest.mark.parametrize(("state", "command"), list(itertools.product(State, Command)), ids=lambda value: value.name)
def test_every_command_in_every_state(state: State, command: Command) -> None:
    """A command leads where the table says; one that the table has not says why and changes nothing."""
    end = in_state(state)
    following = TABLE.get((state, command))
    if command is Command.STREAM and following is not None:
        end = Session()
        end.receive(FRAMES[Kind.HELLO])
        if state is State.OFFERED:
            end.receive([Kind.STREAM])
        end.outbox.clear()
    if following is None:
        if command is not Command.SEVER and command is not Command.PURGE:  # which have no effect then
            with pytest.raises(PathSevered if state is State.SEVERED else WrongMode):
                COMMANDS[command](end)
        else:
            COMMANDS[command](end)
        assert end.state is state
        assert not end.outbox
    elif command is Command.ANSWER and state is State.STREAM:
        with pytest.raises(WrongMode, match="is not a call"):
            end.reply(THEIR_CALL, None)
    else:
        COMMANDS[command](end)
        assert end.state is following
        nothing_to_withdraw = command is Command.PURGE and state in (State.ASKED, State.STREAM)
        assert len(end.outbox) == (0 if nothing_to_withdraw else 1)


def test_every_state_can_be_reached_and_left() -> None:
    """The table has no island and no trap but the last state."""
    reached = {State.OPENING}
    while True:
        more = {following for (state, _), following in TABLE.items() if state in reached} - reached
        if not more:
            break
        reached |= more
    assert reached == set(State)
    assert {state for state, _ in TABLE} == set(State) - {State.SEVERED}


def test_protocol_is_without_io() -> None:
    """Session and wire import neither trio nor os nor socket: they can be run and proven anywhere."""
    for module in (session, wire):
        imported = {
            name.partition(".")[0]
            for node in ast.walk(ast.parse(inspect.getsource(module)))
            if isinstance(node, ast.Import | ast.ImportFrom)
            for name in (
                [node.module or ""] if isinstance(node, ast.ImportFrom) else [each.name for each in node.names]
            )
        }
        assert imported <= {"collections", "enum", "typing", "msgpack", "retinue"}


# -- messages ----------------------------------------------------------------------------------------------------------


def conversation(one: Session, other: Session, at_once: int) -> list[Event]:
    """Everything that messages do, once; returns what the first end learned."""
    for body in ("reply", "reject", "purge"):
        one.call(body)
    one.send("ack")
    learned, asked = talk(one, other, at_once)
    assert [event.body for event in asked if isinstance(event, Incoming)] == ["reply", "reject", "purge", "ack"]
    one.purge(3)
    more, purged = talk(one, other, at_once)
    assert purged == [Purged(3)]
    assert other.reply(1, "yes")
    other.reject(2, "no", "because", [1])
    assert not other.reply(3, "late")
    other.acknowledge(4)
    rest, nothing = talk(one, other, at_once)
    assert nothing == []
    return learned + more + rest


@pytest.mark.parametrize("at_once", [1, 2, 100])
def test_messages_end_as_they_should(at_once: int) -> None:
    """A call by one answer, a one-way message by its ACK; the answer to a withdrawn call is its rejection.

    However many frames come at once.
    """
    one, other = opened()
    assert conversation(one, other, at_once) == [
        Answered(1, "yes", 0),
        Refused(2, "no", "because", [1]),
        Refused(3, "purged", "", None),
        Received(4),
    ]
    assert one.outstanding == other.outstanding == (0, 0)


def test_answers_may_come_in_any_order() -> None:
    """A slow message holds up no other."""
    one, other = opened()
    for _ in range(3):
        one.call(None)
    talk(one, other)
    for ident in (3, 1, 2):
        other.reply(ident, ident)
    assert talk(one, other)[0] == [Answered(3, 3, 0), Answered(1, 1, 0), Answered(2, 2, 0)]


def test_nothing_is_said_before_hello_but_sever() -> None:
    """An end that does not yet know the other's limit has no room."""
    end = Session()
    assert end.room == 0
    assert said(end) == [[Kind.HELLO, wire.VERSION, wire.DEFAULT_LIMIT]]
    end.sever("early")
    assert said(end) == [[Kind.SEVER, "early", ""]]


def test_other_version_is_a_violation() -> None:
    """Two ends that would misunderstand each other do not begin."""
    with pytest.raises(ProtocolViolation, match="speaks version 2, this one 1"):
        Session().receive([Kind.HELLO, 2, 8])


@pytest.mark.parametrize("limit", [0, -1, wire.MAX_LIMIT + 1])
def test_limit_has_its_bounds(limit: int) -> None:
    """A limit that cannot be said is refused at once."""
    with pytest.raises(LimitExceeded):
        Session(limit)


def test_limit_is_held_at_both_ends() -> None:
    """The sender refuses to exceed it; a peer that does so breaks the protocol."""
    one, other = opened(limit=8, peer_limit=2)
    one.call(1)
    one.send(2)
    assert one.room == 0
    for command in (one.call, one.send):
        with pytest.raises(LimitExceeded, match="outstanding messages"):
            command(3)
    talk(one, other)
    with pytest.raises(ProtocolViolation, match="more than 2 messages"):
        other.receive([Kind.CALL, 3, None])


def test_withdrawn_call_counts_until_it_is_answered() -> None:
    """A caller that withdraws makes no room by that, or it could have any number of handlers running."""
    one, other = opened(peer_limit=1)
    ident = one.call(1)
    one.purge(ident)
    assert one.room == 0
    talk(one, other)
    other.reply(ident, None)
    talk(one, other)
    assert one.room == 1


@pytest.mark.parametrize(
    ("frames", "rule"),
    [
        ([[Kind.CALL, 2, None]], "message 2 follows message 0"),
        ([[Kind.CALL, 1, None], [Kind.CALL, 1, None]], "message 1 follows message 1"),
        ([[Kind.SEND, 1, None], [Kind.PURGE, 1]], "PURGE of message 1, which is not a call"),
        ([[Kind.CALL, 1, None], [Kind.PURGE, 1], [Kind.PURGE, 1]], "PURGE of message 1"),
        ([[Kind.PURGE, 1]], "PURGE of message 1"),
        ([[Kind.ACK, 1]], "ACK for message 1"),  # it is our call
        ([[Kind.REPLY, 2, None]], "REPLY for message 2"),  # it is our one-way message
        ([[Kind.REJECT, 2, "", "", None]], "REJECT for message 2"),
        ([[Kind.REPLY, 3, None]], "REPLY for message 3"),  # there is none
        ([[Kind.REPLY, 1, None], [Kind.REPLY, 1, None]], "REPLY for message 1"),
        ([[Kind.ACK, 2], [Kind.ACK, 2]], "ACK for message 2"),
        ([[Kind.HELLO, 1, 8]], "HELLO is not allowed while the path is open"),
        ([[Kind.BULK, 70_000]], "BULK is not allowed while the path is open"),
    ],
)
def test_forged_message_is_a_violation(frames: list[list[Any]], rule: str) -> None:
    """Ids, answers and withdrawals are checked; the rule says what was wrong."""
    end, _ = opened()
    end.call(1)
    end.send(2)
    for frame in frames[:-1]:
        end.receive(frame)
    with pytest.raises(ProtocolViolation, match=rule):
        end.receive(frames[-1])


def test_withdrawal_that_crosses_the_answer_is_ignored() -> None:
    """Both were right when they spoke."""
    one, other = opened()
    ident = one.call(1)
    talk(one, other)
    other.reply(ident, "done")
    one.purge(ident)
    assert talk(one, other) == ([Answered(1, "done", 0)], [])
    one.purge(ident)
    assert not one.outbox


def test_second_answer_is_the_programs_mistake() -> None:
    """WrongMode at the end that makes it, not a violation at the other."""
    _, end = opened()
    end.receive([Kind.CALL, 1, None])
    end.receive([Kind.SEND, 2, None])
    end.reply(1, None)
    for wrong in (
        lambda: end.reply(1, None),
        lambda: end.reject(1, "x"),
        lambda: end.acknowledge(1),
        lambda: end.reply(2, None),
        lambda: end.reject(2, "x"),
        lambda: end.reply(99, None),
    ):
        with pytest.raises(WrongMode):
            wrong()
    end.acknowledge(2)
    assert end.outstanding == (0, 0)


def test_body_that_cannot_be_said_changes_nothing() -> None:
    """The id is not used up, the answer is still owed."""
    one, other = opened()
    with pytest.raises(TypeError):
        one.call(object())
    assert one.outstanding == (0, 0)
    ident = one.call(1)
    assert ident == 1
    talk(one, other)
    with pytest.raises(TypeError):
        other.reply(ident, {1: 2})
    with pytest.raises(LimitExceeded):
        other.reply(ident, None, tuple(range(wire.MAX_DESCRIPTORS + 1)))
    assert other.waits(ident)
    assert other.reply(ident, "well")
    assert talk(one, other)[0] == [Answered(1, "well", 0)]


def test_memfd_of_a_large_message_takes_the_place_of_a_descriptor() -> None:
    """The packet of a large message holds no more descriptors than any other."""
    one, _ = opened()
    with pytest.raises(LimitExceeded, match="large message"):
        one.call(bytes(wire.MAX_PACKET), tuple(range(wire.MAX_DESCRIPTORS)))
    one.call(bytes(wire.MAX_PACKET), tuple(range(wire.MAX_DESCRIPTORS - 1)))
    one.call(b"small", tuple(range(wire.MAX_DESCRIPTORS)))


# -- the end -----------------------------------------------------------------------------------------------------------


def test_sever_tells_the_reason() -> None:
    """The other end learns code and text; this one knows that it did it itself; both say so from then on."""
    one, other = opened()
    one.sever("maintenance", "back at nine")
    one.sever("again")
    assert talk(one, other)[1] == [Ended("maintenance", "back at nine")]
    assert isinstance(one.severed_by, PathClosed)
    assert isinstance(other.severed_by, PathSevered)
    assert (other.severed_by.code, other.severed_by.text) == ("maintenance", "back at nine")
    with pytest.raises(PathClosed):
        one.call(1)
    with pytest.raises(PathSevered):
        other.call(1)


def test_reasons_that_cross() -> None:
    """Each end keeps its own view of who was first."""
    one, other = opened()
    one.sever("a")
    other.sever("b")
    assert talk(one, other) == ([], [])
    assert isinstance(one.severed_by, PathClosed)
    assert isinstance(other.severed_by, PathClosed)


def test_giving_up_on_the_peer_keeps_the_first_reason() -> None:
    """What comes after the end does not rewrite why it ended."""
    one, other = opened()
    one.give_up("violation", "a rule")
    one.give_up("violation", "another rule")
    assert isinstance(one.severed_by, PathSevered)
    assert one.severed_by.text == "a rule"
    assert talk(one, other)[1] == [Ended("violation", "a rule")]


def test_losing_the_descriptor_is_an_end_too() -> None:
    """Once."""
    one, _ = opened()
    assert one.lose() == Ended("lost", "the other end is gone")
    assert one.lose() is None
    assert isinstance(one.severed_by, PathSevered)


@pytest.mark.parametrize("text", ["x" * 10_000, "caf\udce9", "\ud800" * 5_000])
def test_any_reason_can_be_told(text: str) -> None:
    """Severing and refusing never fail for their text."""
    one, other = opened()
    other.receive([Kind.CALL, 1, None])
    other.reject(1, text, text)
    other.sever(text, text)
    assert [frame[0] for frame in said(other)] == [Kind.REJECT, Kind.SEVER]
    assert one.state is State.OPEN


# -- the stream --------------------------------------------------------------------------------------------------------


def streams() -> tuple[Session, Session]:
    one, other = opened()
    one.stream()
    other.stream()
    talk(one, other)
    assert one.state is other.state is State.STREAM
    return one, other


def test_stream_waits_for_outstanding_messages() -> None:
    """A path is one thing at a time."""
    one, other = opened()
    one.call(1)
    talk(one, other)
    for end in (one, other):
        with pytest.raises(WrongMode, match="messages outstanding"):
            end.stream()
    other.reply(1, None)
    talk(one, other)
    one.stream()


def test_message_that_crosses_the_turn_is_answered() -> None:
    """Its sender could not know."""
    one, other = opened()
    one.stream()
    ident = other.call("crossing")
    assert talk(one, other)[0] == [Incoming(1, "crossing", True, 0)]
    with pytest.raises(WrongMode):
        other.stream()
    one.reply(ident, "answer")
    assert talk(one, other)[1] == [Answered(1, "answer", 0)]
    other.stream()
    talk(one, other)
    assert one.state is State.STREAM


def test_bytes_wait_for_room_and_credit_gives_it() -> None:
    """The window is what may be on its way; both ends count alike."""
    one, other = streams()
    assert one.window == wire.STREAM_WINDOW
    with pytest.raises(LimitExceeded):
        one.send_bytes(bytes(wire.MAX_CHUNK + 1))
    with pytest.raises(LimitExceeded):
        one.send_bytes(b"")
    while one.window:
        one.send_bytes(bytes(min(wire.MAX_CHUNK, one.window)))
    with pytest.raises(LimitExceeded):
        one.send_bytes(b"x")
    assert sum(len(event.data) for event in talk(one, other)[1] if isinstance(event, Bytes)) == wire.STREAM_WINDOW
    other.credit(10)
    assert talk(one, other)[0] == [Credited()]
    assert (one.window, other.window) == (10, wire.STREAM_WINDOW)


@pytest.mark.parametrize(
    ("frames", "rule"),
    [
        ([[Kind.EOF], [Kind.EOF]], "EOF twice"),
        ([[Kind.EOF], [Kind.DATA, b"x"]], "DATA after EOF"),
        ([[Kind.CREDIT, 1]], "credit for more bytes than were sent"),
        ([[Kind.DATA, bytes(wire.MAX_CHUNK)]] * 4 + [[Kind.DATA, b"x"]], "more bytes than the window"),
        ([[Kind.SEND, 1, None]], "SEND is not allowed while the path is stream"),
        ([[Kind.STREAM]], "STREAM is not allowed while the path is stream"),
    ],
)
def test_forged_stream_is_a_violation(frames: list[list[Any]], rule: str) -> None:
    """Window, end and mode are checked."""
    end, _ = streams()
    for frame in frames[:-1]:
        end.receive(frame)
    with pytest.raises(ProtocolViolation, match=rule):
        end.receive(frames[-1])


def test_stream_ends_in_each_direction() -> None:
    """An end of bytes is told once; the other direction goes on."""
    one, other = streams()
    one.send_eof()
    one.send_eof()
    assert talk(one, other)[1] == [Bytes(b"")]
    with pytest.raises(WrongMode):
        one.send_bytes(b"x")
    other.send_bytes(b"still")
    assert talk(one, other)[0] == [Bytes(b"still")]


# -- Hypothesis: two sessions, frames in flight ------------------------------------------------------------------------


class Talk(RuleBasedStateMachine):
    """Two ends do anything they may in any order; the frames between them are delivered one by one, at any time."""

    @initialize(limits=st.tuples(st.integers(1, 4), st.integers(1, 4)))
    def begin(self, limits: tuple[int, int]) -> None:
        self.ends = [Session(limit) for limit in limits]
        self.flying: list[list[list[Any]]] = [[], []]  # frames on their way to each end
        self.sent: list[dict[int, bool]] = [{}, {}]  # of each end: message -> whether it is a call
        self.over: list[dict[int, int]] = [{}, {}]  # of each end: message -> how often it has ended
        self.known: list[list[int]] = [[], []]  # messages that each end has got and not ended: calls > 0, sends < 0
        self.withdrawn: list[set[int]] = [set(), set()]
        self.ended = [False, False]

    def launch(self, at: int) -> None:
        self.flying[1 - at] += said(self.ends[at])

    def take(self, at: int, frame: list[Any]) -> None:
        match self.ends[at].receive(frame):
            case Incoming(ident, _, wants_reply, _):
                self.known[at].append(ident if wants_reply else -ident)
            case Answered(ident, body, _):
                assert self.sent[at][ident]
                assert body == ident
                self.over[at][ident] += 1
            case Refused(ident, code, _, _):
                assert self.sent[at][ident]
                assert code == "no" or ident in self.withdrawn[at]
                self.over[at][ident] += 1
            case Received(ident):
                assert not self.sent[at][ident]
                self.over[at][ident] += 1
            case Purged(ident):
                assert ident in self.known[at]
                assert ident in self.withdrawn[1 - at]
            case Ended():
                self.ended[at] = True

    @rule(at=st.integers(0, 1), kind=st.sampled_from(["call", "send"]))
    def message(self, at: int, kind: str) -> None:
        end = self.ends[at]
        if end.room > 0:
            ident = end.call("x") if kind == "call" else end.send("x")
            assert ident == len(self.sent[at]) + 1
            self.sent[at][ident] = kind == "call"
            self.over[at][ident] = 0
            self.launch(at)
        elif end.state is State.OPEN:
            with pytest.raises(LimitExceeded):
                end.call("x")

    @rule(at=st.integers(0, 1), count=st.integers(1, 5))
    def some_arrive(self, at: int, count: int) -> None:
        self.deliver(at, count)

    def deliver(self, at: int, count: int) -> None:
        self.launch(1 - at)
        for _ in range(min(count, len(self.flying[at]))):
            self.take(at, self.flying[at].pop(0))

    @rule(at=st.integers(0, 1), which=st.integers(0, 7), answer=st.booleans())
    def one_is_ended(self, at: int, which: int, answer: bool) -> None:
        self.end_message(at, which, answer)

    def end_message(self, at: int, which: int, answer: bool) -> None:
        end = self.ends[at]
        if end.state is State.OPEN and self.known[at]:
            ident = self.known[at].pop(which % len(self.known[at]))
            if ident < 0:
                end.acknowledge(-ident)
            elif answer:
                end.reply(ident, ident)
            else:
                end.reject(ident, "no")
            self.launch(at)

    @rule(at=st.integers(0, 1), which=st.integers(0, 7))
    def withdraw(self, at: int, which: int) -> None:
        calls = [ident for ident, is_call in self.sent[at].items() if is_call]
        if calls:
            ident = calls[which % len(calls)]
            if not self.over[at][ident]:
                self.withdrawn[at].add(ident)
            self.ends[at].purge(ident)
            self.launch(at)

    @precondition(lambda self: any(end.outstanding != (0, 0) for end in self.ends))
    @rule(at=st.integers(0, 1), rare=st.integers(0, 9))
    def sever(self, at: int, rare: int) -> None:
        if rare == 0:
            self.ends[at].sever("enough")
            self.launch(at)

    @invariant()
    def limits_hold(self) -> None:
        if not hasattr(self, "ends"):
            return
        for at, end in enumerate(self.ends):
            ours, theirs = end.outstanding
            assert theirs <= end.limit
            assert ours <= self.ends[1 - at].limit
            assert all(times <= 1 for times in self.over[at].values())

    def teardown(self) -> None:
        """Let everything arrive and be answered: nothing may be left over."""
        if not hasattr(self, "ends"):
            return
        for _ in range(6):
            for at in (0, 1):
                self.deliver(at, 10_000)
                while self.ends[at].state is State.OPEN and self.known[at]:
                    self.end_message(at, 0, True)
        if all(end.state is State.OPEN for end in self.ends):
            for at, end in enumerate(self.ends):
                assert end.outstanding == (0, 0)
                assert all(times == 1 for times in self.over[at].values())
        else:
            assert {end.state for end in self.ends} == {State.SEVERED}


TestTalk = Talk.TestCase
TestTalk.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)
