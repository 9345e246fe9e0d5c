"""Sessions whose descriptors are lost, and successors of sessions."""

import os

import pytest
from tests.pipes.ends import NEXT, ONE, OTHER, bind, cut, hello, opened, said, talk

from retinue.pipes import (
    LimitExceeded,
    PathSevered,
    ProtocolViolation,
    WrongMode,
    wire,
)
from retinue.pipes.link import Greeting
from retinue.pipes.session import Session
from retinue.pipes.wire import Frame, Kind

# -- counting ----------------------------------------------------------------------------------------------------------


def test_seen_is_said_after_frames_or_bytes() -> None:
    """HELLO and SEEN themselves are not counted; what was said is not said again."""
    _, end = opened(limit=200, peer_limit=200)
    end.link.note(20)
    assert said(end) == []
    for number in range(1, wire.SEEN_FRAMES + 1):
        assert said(end) == []
        end.receive([Kind.SEND, number, None])
        end.receive([Kind.SEEN, 0])
        end.link.note(10)
    assert said(end) == [[Kind.SEEN, wire.SEEN_FRAMES]]
    end.receive([Kind.SEND, 100, None])
    end.link.note(wire.SEEN_BYTES - 1)
    assert said(end) == []
    end.link.note(1)
    assert said(end) == [[Kind.SEEN, wire.SEEN_FRAMES + 1]]
    end.link.note(10, at_once=True)
    assert said(end) == []
    end.receive([Kind.SEND, 101, None])
    end.link.note(10, at_once=True)
    assert said(end) == [[Kind.SEEN, wire.SEEN_FRAMES + 2]]


def is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


@pytest.mark.parametrize("frames", [[[Kind.SEEN, 1], [Kind.ACK, 1, 1]], [[Kind.ACK, 1, 1], [Kind.SEEN, 1]]])
def test_descriptors_are_kept_until_seen_and_ended(frames: list[Frame]) -> None:
    """They may have to go again, to the same end or to its successor."""
    end, _ = opened(keeps=True)
    descriptor = os.open(os.devnull, os.O_RDONLY)
    end.send("x", (descriptor,))
    packet = end.link.next_packet()
    assert packet is not None
    assert packet.descriptors == (descriptor,)
    assert wire.decoder().decode(packet.data) == [[Kind.SEND, 1, "x", 1]]
    for frame in frames:
        assert is_open(descriptor)
        end.receive(frame)
    assert not is_open(descriptor)


def test_end_of_the_path_closes_what_was_kept() -> None:
    """Written or not."""
    end, _ = opened(keeps=True)
    descriptors = [os.open(os.devnull, os.O_RDONLY) for _ in range(2)]
    end.send(1, (descriptors[0],))
    assert end.link.next_packet() is not None
    end.call(2, (descriptors[1],))
    end.sever("closed")
    end.end()
    end.end()
    assert [is_open(each) for each in descriptors] == [False, False]
    assert said(end) == []


def test_too_much_that_was_not_seen_is_a_violation() -> None:
    """An end that never says SEEN would make the other keep everything."""
    end = Session(wire.MAX_LIMIT, keeps=True)
    end.bind()
    end.receive([Kind.HELLO, wire.VERSION, wire.MAX_LIMIT, OTHER, 0, 0, 0, 0, 0])
    said(end)
    body = bytes(wire.MAX_UNSEEN // 128)
    for _ in range(127):
        end.send(body)
        said(end)
    end.receive([Kind.SEEN, 2])
    for _ in range(2):
        end.send(body)
        said(end)
    end.send(body)
    with pytest.raises(ProtocolViolation, match="without a SEEN"):
        said(end)


# -- other descriptors -------------------------------------------------------------------------------------------------


def test_resumed_path_has_lost_nothing() -> None:
    """What was on its way goes again, what has come does not; nothing above notices."""
    one, other = opened(keeps=True)
    one.call("arrives")
    for frame in said(one):
        other.receive(frame)
    one.call("is lost")
    one.send("is lost too", priority=True)
    other.reply(1, "lost answer")
    cut(one, other)
    one.send("waits")
    assert said(one) == []
    learned = bind(one, other)
    assert one.greeting is other.greeting is Greeting.RESUMED
    assert learned == (
        [[Kind.REPLY, 1, "lost answer"]],
        [[Kind.SEND, -1, "is lost too"], [Kind.CALL, 2, "is lost"], [Kind.SEND, 3, "waits"]],
    )
    assert not other.is_redelivery(2)
    assert one.meter.redelivered == 0


def test_path_is_resumed_again_and_again() -> None:
    """Also when the descriptor is lost before the greetings were read, or half of what goes again was."""
    one, other = opened(keeps=True)
    for number in range(6):
        one.send(number)
    got: list[Frame] = []
    cut(one, other)
    for _ in range(3):
        one.bind()
        other.bind()
        cut(one, other)
    for arrived in range(1, 4):
        one.bind()
        other.bind()
        (greeting,), (answer,) = said(one), said(other)
        one.receive(answer)
        other.receive(greeting)
        for frame in said(one)[:arrived]:
            got.append(frame)
            other.receive(frame)
        if arrived == 2:  # and the other end says so
            other.link.note(1, at_once=True)
            (seen,) = said(other)
            one.receive(seen)
        cut(one, other)
    assert got == [[Kind.SEND, number + 1, number] for number in range(6)]
    assert bind(one, other) == ([], [])
    for number in range(1, 7):
        other.acknowledge(number)
    talk(one, other)
    assert one.outstanding == other.outstanding == (0, 0)


def test_stream_is_resumed() -> None:
    """Bytes and credit go on where they were."""
    one, other = opened(keeps=True)
    one.stream()
    other.stream()
    talk(one, other)
    one.send_bytes(b"lost")
    cut(one, other)
    one.send_bytes(b"waits")
    assert bind(one, other)[1] == [[Kind.DATA, b"lost"], [Kind.DATA, b"waits"]]
    other.credit(9)
    talk(one, other)
    assert one.window == wire.STREAM_WINDOW


def test_quiescing_is_resumed() -> None:
    """What HELLO says about it means nothing then: the frames tell."""
    one, other = opened(keeps=True)
    one.quiesce()
    cut(one, other)
    learned = bind(one, other)
    assert learned == ([[Kind.QUIESCED]], [[Kind.QUIESCE]])
    assert one.still
    cut(one, other)
    one.resume()
    assert bind(one, other)[1] == [[Kind.RESUME]]
    assert other.room == 8


def test_nothing_is_taken_before_hello_on_another_descriptor() -> None:
    """A frame of before would be counted twice."""
    one, other = opened(keeps=True)
    cut(one, other)
    one.bind()
    for frame in ([Kind.SEND, 1, None], [Kind.QUIESCE]):
        with pytest.raises(ProtocolViolation, match="before HELLO"):
            one.receive(frame)
    with pytest.raises(ProtocolViolation, match="SEEN is not allowed"):
        one.receive([Kind.SEEN, 0])
    assert one.receive([Kind.SEVER, "closed", ""]) == [Kind.SEVER, "closed", ""]


@pytest.mark.parametrize(
    ("greeting", "rule"),
    [
        (hello(OTHER, NEXT, 2), "knows another one than this"),
        (hello(OTHER, ONE, 0), "HELLO tells of 0 frames of 3"),  # one was seen
        (hello(OTHER, ONE, 4), "HELLO tells of 4 frames of 3"),
    ],
)
def test_forged_resumption_is_a_violation(greeting: Frame, rule: str) -> None:
    """It would lose something, or tell of what never was."""
    one, _ = opened(keeps=True)
    for number in range(3):
        one.send(number)
    said(one)
    one.receive([Kind.SEEN, 1])
    one.unbind()
    one.bind()
    with pytest.raises(ProtocolViolation, match=rule):
        one.receive(greeting)


# -- successors --------------------------------------------------------------------------------------------------------


def succeed(survivor: Session, limit: int = 8, *, quiesced: bool = False, token: int = NEXT) -> Session:
    """Another process in the place of the other end, bound to the survivor; nothing is carried yet."""
    cut(survivor)
    other = Session(limit, "successor", keeps=True, token=token, quiesced=quiesced)
    survivor.bind()
    other.bind()
    return other


def test_successor_is_sent_what_has_not_ended() -> None:
    """Each lane in its order, the ids of old; what the predecessor may have had is marked, what it had not is not."""
    one, before = opened(keeps=True)
    one.send("over")
    one.send("given")
    one.call("given too")
    one.call("given in haste", priority=True)
    talk(one, before)
    before.acknowledge(1)
    talk(one, before)
    one.send("written")
    said(one)
    one.unbind()
    one.call("not written")
    one.call("nor this", priority=True)
    one.bind()
    after = Session(8, "successor", keeps=True, token=NEXT)
    after.bind()
    learned = talk(one, after)[1]
    assert learned == [
        [Kind.HELLO, wire.VERSION, 8, ONE, OTHER, 1, 4, 1, 0],
        [Kind.CALL, -1, "given in haste"],
        [Kind.CALL, -2, "nor this"],
        [Kind.SEND, 2, "given"],
        [Kind.CALL, 3, "given too"],
        [Kind.SEND, 4, "written"],
        [Kind.CALL, 5, "not written"],
    ]
    assert (one.greeting, after.greeting) == (Greeting.SUCCESSOR, Greeting.FRESH)
    assert [after.is_redelivery(ident) for ident in (2, 3, 4, 5, -1, -2)] == [True, True, True, False, True, False]
    assert one.meter.redelivered == 4
    assert one.room == 2
    after.reply(-1, "done")
    after.acknowledge(2)
    assert talk(one, after)[0] == [[Kind.REPLY, -1, "done"], [Kind.ACK, 2, 2]]
    assert one.send("new") == 6
    talk(one, after)
    assert not after.is_redelivery(6)


def test_predecessors_messages_are_forgotten() -> None:
    """No answer to them is sent; the successor's own begin at 1 again, as do both counts."""
    one, before = opened(keeps=True)
    before.call("x")
    before.send("y")
    before.send("z", priority=True)
    talk(one, before)
    one.acknowledge(2)
    after = succeed(one)
    assert [frame[0] for frame in talk(one, after)[1]] == [Kind.HELLO]
    assert one.outstanding == (0, 0)
    with pytest.raises(WrongMode):
        one.reply(1, None)
    with pytest.raises(WrongMode):
        one.acknowledge(-1)
    assert after.call("new") == 1
    talk(one, after)
    assert one.waits(1)
    assert not one.is_redelivery(1)
    one.link.note(1, at_once=True)
    assert [Kind.SEEN, 1] in said(one)


def test_withdrawn_calls_do_not_go_to_a_successor() -> None:
    """Nobody waits for them."""
    one, before = opened(keeps=True)
    one.purge(one.call("withdrawn"))
    one.call("wanted")
    talk(one, before)
    after = succeed(one)
    assert [frame[:2] for frame in talk(one, after)[1]] == [[Kind.HELLO, wire.VERSION], [Kind.CALL, 2]]
    assert one.outstanding == (1, 0)
    assert one.room == 7


def test_successor_with_a_lower_limit_is_sent_the_rest_later() -> None:
    """New messages wait behind the old ones."""
    one, before = opened(keeps=True)
    for number in range(1, 4):
        one.call(number)
    talk(one, before)
    after = succeed(one, limit=1)
    talk(one, after)
    assert one.room == 0
    for number in range(1, 4):
        assert after.outstanding == (0, 1)
        with pytest.raises(LimitExceeded):
            one.send("new")
        after.reply(number, None)
        assert talk(one, after)[0] == [[Kind.REPLY, number, None]]
    assert one.room == 1
    assert one.meter.redelivered == 3


def test_quiesced_successor_is_sent_nothing_until_it_resumes() -> None:
    """It comes up first."""
    one, before = opened(keeps=True)
    one.call("a")
    talk(one, before)
    withdrawn = one.call("b")
    after = succeed(one, quiesced=True)
    assert [frame[0] for frame in talk(one, after)[1]] == [Kind.HELLO]
    one.purge(withdrawn)  # of which the successor never hears
    after.resume()
    talk(one, after)
    assert after.outstanding == (0, 1)
    assert one.outstanding == (1, 0)
    assert one.room == 7
    assert after.is_redelivery(1)


def test_survivors_quiescing_is_told_to_a_successor() -> None:
    """HELLO tells how it began, and a frame behind it that this has changed."""
    one, _ = opened(keeps=True)
    one.quiesce()
    after = succeed(one)
    assert [frame[0] for frame in talk(one, after)[1]] == [Kind.HELLO, Kind.QUIESCE]
    assert one.still
    assert after.held
    later = succeed(one, token=NEXT + 1)
    one.resume()
    assert [frame[0] for frame in talk(one, later)[1]] == [Kind.HELLO]
    assert later.room == 8


@pytest.mark.parametrize("turned", ["here", "there", "both"])
def test_stream_does_not_go_on_with_a_successor(turned: str) -> None:
    """Nobody knows which bytes the predecessor had read."""
    one, before = opened(keeps=True)
    if turned != "there":
        one.stream()
    if turned != "here":
        before.stream()
    talk(one, before)
    after = succeed(one)
    talk(one, after)
    for end in (one, after):
        assert isinstance(end.severed_by, PathSevered)
        assert end.severed_by.code == "lost"


def test_successor_is_told_of_the_quiet_before_a_stream() -> None:
    """Until STREAM is said it is a path of messages to the successor; who waits for the confirmation gets it."""
    one, before = opened(keeps=True)
    cut(one, before)
    one.quiesce()
    one.stream()
    after = Session(8, "successor", keeps=True, token=NEXT)
    one.bind()
    after.bind()
    learned = talk(one, after)[1]
    assert [frame[0] for frame in learned] == [Kind.HELLO, Kind.QUIESCE, Kind.STREAM]
    assert after.held
    assert one.still


def test_descriptors_go_again_to_a_successor() -> None:
    """As long as their message has not ended."""
    one, before = opened(keeps=True)
    descriptor = os.open(os.devnull, os.O_RDONLY)
    one.call("x", (descriptor,))
    talk(one, before)
    one.receive([Kind.SEEN, 1])
    after = succeed(one)
    for frame in said(after):
        one.receive(frame)
    packet = one.link.next_packet()
    assert packet is not None
    assert packet.descriptors == (descriptor,)
    one.receive([Kind.REPLY, 1, None])
    one.receive([Kind.SEEN, 1])
    assert not is_open(descriptor)


def test_first_greeting_of_a_path_marks_nothing() -> None:
    """Only an end that has a predecessor can be given something again."""
    end = Session(token=ONE)
    end.bind()
    end.receive(hello(OTHER, NEXT, again=3))
    assert [end.is_redelivery(ident) for ident in (1, 3, 4, -1)] == [True, True, False, False]


def test_other_end_that_never_got_the_first_greeting_is_resumed() -> None:
    """It knows nobody yet: everything goes again, from the first frame."""
    one, other = Session(8, keeps=True, token=ONE), Session(8, keeps=True, token=OTHER)
    one.bind()
    other.bind()
    for frame in said(other):
        one.receive(frame)
    one.send("lost")
    cut(one, other)
    learned = bind(one, other)
    assert learned == ([], [[Kind.SEND, 1, "lost"]])
    assert other.is_redelivery(1)  # it cannot tell this end from a successor of the one that was met


def test_quiescing_that_the_other_end_learns_by_its_first_greeting_only() -> None:
    """The same, when the frame that was lost is QUIESCE."""
    one, other = Session(8, keeps=True, token=ONE), Session(8, keeps=True, token=OTHER)
    one.bind()
    other.bind()
    for frame in said(other):
        one.receive(frame)
    one.quiesce()
    cut(one, other)
    bind(one, other)
    assert one.still
    assert other.held


def test_again_means_nothing_to_an_end_without_predecessor() -> None:
    """Known 0: nobody was before it."""
    end = Session(token=ONE)
    end.bind()
    end.receive(hello(OTHER, 0, again=3))
    assert not end.is_redelivery(1)


def test_withdrawing_the_last_call_that_waits_for_a_successor_makes_no_room() -> None:
    """It was over the lower limit: there is still no room, and another message would be a violation."""
    one, before = opened(keeps=True)
    one.call(1)
    waiting = one.call(2)
    talk(one, before)
    after = succeed(one, limit=1)
    talk(one, after)
    one.purge(waiting)
    assert one.outstanding == (1, 0)
    assert one.room == 0
