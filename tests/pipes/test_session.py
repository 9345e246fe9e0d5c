"""One end of a path as its tables say, and two of them talking."""

import ast
import inspect
import itertools
from collections.abc import Callable

import pytest
from tests.pipes.ends import OUR_CALL, OUR_SEND, THEIR_CALL, THEIR_SEND, hello, opened, said, talk

from retinue.pipes import (
    LimitExceeded,
    PathClosed,
    PathSevered,
    ProtocolViolation,
    WrongMode,
    link,
    session,
    states,
    wire,
)
from retinue.pipes.link import Link
from retinue.pipes.session import Session
from retinue.pipes.states import BINDINGS, TABLE, Binding, Command, Happening, State
from retinue.pipes.wire import Frame, Kind

# -- the table ---------------------------------------------------------------------------------------------------------


def in_state(state: State, about: Kind | Command | None = None) -> Session:
    """A session that got there by what the other end and the program did, with what ``about`` needs."""
    end = Session(8, "x")
    end.bind()
    said(end)
    if state is State.OPENING:
        return end
    end.receive(hello())
    if about is Kind.QUIESCED:
        end.quiesce()
    if about is Kind.RESUME and state is not State.ASKED:
        end.receive([Kind.QUIESCE])
    turns = about in (Kind.STREAM, Command.STREAM)  # which it does when nothing of its own is outstanding
    if state in (State.OPEN, State.OFFERED, State.SEVERED) and not turns and about is not Kind.RESUME:
        assert (end.call(None), end.send(None)) == (OUR_CALL, OUR_SEND)
    if state in (State.ASKED, State.STREAM):
        end.stream()
    if about is Kind.RESUME and state is State.ASKED:  # before that the turn would wait
        end.receive([Kind.QUIESCE])
    if state in (State.OPEN, State.ASKED, State.SEVERED) and not turns:
        end.receive([Kind.CALL, THEIR_CALL, None])
        end.receive([Kind.SEND, THEIR_SEND, None])
    if state in (State.OFFERED, State.STREAM):
        end.receive([Kind.STREAM])
    if state in (State.ASKED, State.STREAM):
        end.send_bytes(b"some")
    if state is State.STREAM:
        end.receive([Kind.DATA, b"some"])
    if state is State.SEVERED:
        end.receive([Kind.SEVER, "why", "because"])
    assert end.state is state
    said(end)
    return end


FRAMES: dict[Kind, Frame] = {
    Kind.HELLO: hello(),
    Kind.SEND: [Kind.SEND, 3, None],
    Kind.CALL: [Kind.CALL, 3, None],
    Kind.REPLY: [Kind.REPLY, OUR_CALL, None],
    Kind.REJECT: [Kind.REJECT, OUR_CALL, "no", "", None],
    Kind.ACK: [Kind.ACK, OUR_SEND, OUR_SEND],
    Kind.PURGE: [Kind.PURGE, THEIR_CALL],
    Kind.SEVER: [Kind.SEVER, "closed", ""],
    Kind.STREAM: [Kind.STREAM],
    Kind.DATA: [Kind.DATA, b"x"],
    Kind.EOF: [Kind.EOF],
    Kind.CREDIT: [Kind.CREDIT, 4],
    Kind.BULK: [Kind.BULK, wire.MAX_PACKET + 1],
    Kind.QUIESCE: [Kind.QUIESCE],
    Kind.QUIESCED: [Kind.QUIESCED],
    Kind.RESUME: [Kind.RESUME],
}


@pytest.mark.parametrize(("state", "kind"), list(itertools.product(State, FRAMES)), ids=lambda value: value.name)
def test_every_frame_in_every_state(state: State, kind: Kind) -> None:
    """A frame leads where the table says; one that the table has not is a violation and changes nothing."""
    end = in_state(state, kind)
    following = TABLE.get((state, kind))
    if state is State.SEVERED:
        assert end.receive(FRAMES[kind]) is None  # it crossed the end of the path
        assert end.state is state
    elif following is None:
        with pytest.raises(ProtocolViolation, match="is not allowed while"):
            end.receive(FRAMES[kind])
        assert end.state is state
    else:
        assert end.receive(FRAMES[kind]) == FRAMES[kind]
        assert end.state is following


def test_frames_are_all_but_seen() -> None:
    """SEEN belongs to the binding: whenever there is one."""
    assert set(FRAMES) == set(Kind) - {Kind.SEEN}
    for state in set(State) - {State.OPENING, State.SEVERED}:
        assert in_state(state).receive([Kind.SEEN, 0]) is None
    with pytest.raises(ProtocolViolation, match="SEEN is not allowed while"):
        in_state(State.OPENING).receive([Kind.SEEN, 0])


COMMANDS: dict[Command, Callable[[Session], object]] = {
    Command.SEND: lambda end: end.send(None),
    Command.CALL: lambda end: end.call(None),
    Command.ANSWER: lambda end: end.reply(THEIR_CALL, None),
    Command.PURGE: lambda end: end.purge(OUR_CALL),
    Command.QUIESCE: lambda end: end.quiesce(),
    Command.STREAM: lambda end: end.stream(),
    Command.BYTES: lambda end: end.send_bytes(b"x"),
    Command.CREDIT: lambda end: end.credit(1),
    Command.SEVER: lambda end: end.sever("closed"),
}


@pytest.mark.parametrize(("state", "command"), list(itertools.product(State, Command)), ids=lambda value: value.name)
def test_every_command_in_every_state(state: State, command: Command) -> None:
    """A command leads where the table says; one that the table has not says why and changes nothing."""
    end = in_state(state, command)
    following = TABLE.get((state, command))
    if following is not None:
        COMMANDS[command](end)
        assert end.state is following
        waits_for_hello = state is State.OPENING and command is Command.QUIESCE
        assert len(said(end)) == (0 if waits_for_hello else 1)
    else:
        if command in (Command.SEVER, Command.PURGE):  # which have no effect then
            COMMANDS[command](end)
        else:
            with pytest.raises(PathSevered if state is State.SEVERED else WrongMode):
                COMMANDS[command](end)
        assert end.state is state
        assert said(end) == []


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


@pytest.mark.parametrize(("binding", "happening"), list(itertools.product(Binding, Happening)))
def test_everything_that_may_happen_to_every_binding(binding: Binding, happening: Happening) -> None:
    """What the table has leads where it says, all else is refused and changes nothing."""
    ways: dict[Binding, list[Happening]] = {
        Binding.UNBOUND: [],
        Binding.GREETING: [Happening.BIND],
        Binding.BOUND: [Happening.BIND, Happening.HELLO],
        Binding.ENDED: [Happening.END],
    }
    under = Link()
    for each in ways[binding]:
        under.happen(each)
    assert under.binding is binding
    following = BINDINGS.get((binding, happening))
    if following is None:
        with pytest.raises(ProtocolViolation, match=f"{happening.value} is not allowed while the path is"):
            under.happen(happening)
        assert under.binding is binding
    else:
        under.happen(happening)
        assert under.binding is following


def test_protocol_is_without_io() -> None:
    """Session, link, states and wire import neither trio nor os nor socket: they can be run and proven anywhere."""
    for module in (session, link, states, wire):
        imported = {
            name.partition(".")[0]
            for node in ast.walk(ast.parse(inspect.getsource(module)))
            if isinstance(node, ast.Import | ast.ImportFrom)
            for name in (
                [node.module or ""] if isinstance(node, ast.ImportFrom) else [each.name for each in node.names]
            )
        }
        assert imported <= {"collections", "enum", "msgpack", "retinue", "secrets", "threading", "typing"}


# -- the end -----------------------------------------------------------------------------------------------------------


def test_sever_tells_the_reason() -> None:
    """The other end learns code and text; this one knows that it did it itself; both say so from then on."""
    one, other = opened()
    one.sever("maintenance", "back at nine")
    one.sever("again")
    assert talk(one, other)[1] == [[Kind.SEVER, "maintenance", "back at nine"]]
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
    assert talk(one, other)[1] == [[Kind.SEVER, "violation", "a rule"]]


def test_losing_the_descriptor_is_an_end_too() -> None:
    """Once."""
    one, _ = opened()
    one.lose()
    one.lose("other", "reason")
    assert isinstance(one.severed_by, PathSevered)
    assert (one.severed_by.code, one.severed_by.text) == ("lost", "the other end is gone")
    assert one.state is State.SEVERED
    assert one.room == 0


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
    assert talk(one, other)[0] == [[Kind.CALL, 1, "crossing"]]
    with pytest.raises(WrongMode):
        other.stream()
    one.reply(ident, "answer")
    assert talk(one, other)[1] == [[Kind.REPLY, 1, "answer"]]
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
    assert sum(len(frame[1]) for frame in talk(one, other)[1]) == wire.STREAM_WINDOW
    other.credit(10)
    assert talk(one, other)[0] == [[Kind.CREDIT, 10]]
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
def test_forged_stream_is_a_violation(frames: list[Frame], rule: str) -> None:
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
    assert talk(one, other)[1] == [[Kind.EOF]]
    with pytest.raises(WrongMode):
        one.send_bytes(b"x")
    other.send_bytes(b"still")
    assert talk(one, other)[0] == [[Kind.DATA, b"still"]]
