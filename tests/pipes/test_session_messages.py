"""Messages, lanes, acknowledgements and quiescing between two sessions."""

import os

import pytest
from tests.pipes.ends import ONE, bind, hello, opened, said, talk

from retinue.pipes import (
    LimitExceeded,
    ProtocolViolation,
    WrongMode,
    bulk,
    wire,
)
from retinue.pipes.message import close_all
from retinue.pipes.session import Session
from retinue.pipes.wire import Frame, Kind

# -- messages ----------------------------------------------------------------------------------------------------------


def conversation(one: Session, other: Session, at_once: int) -> list[Frame]:
    """Everything that messages do, once; returns what the first end learned."""
    for body in ("reply", "reject", "purge"):
        one.call(body)
    one.send("ack")
    learned, asked = talk(one, other, at_once)
    assert [frame[2] for frame in asked] == ["reply", "reject", "purge", "ack"]
    one.purge(3)
    more, purged = talk(one, other, at_once)
    assert purged == [[Kind.PURGE, 3]]
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
        [Kind.REPLY, 1, "yes"],
        [Kind.REJECT, 2, "no", "because", [1]],
        [Kind.REJECT, 3, "purged", "", None],
        [Kind.ACK, 4, 4],
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
    assert talk(one, other)[0] == [[Kind.REPLY, ident, ident] for ident in (3, 1, 2)]


def test_nothing_is_said_before_hello_but_sever() -> None:
    """An end that does not yet know the other's limit has no room."""
    end = Session(token=ONE)
    assert said(end) == []
    end.bind()
    assert end.room == 0
    assert said(end) == [[Kind.HELLO, wire.VERSION, wire.DEFAULT_LIMIT, ONE, 0, 0, 0, 0, 0]]
    end.sever("early")
    assert said(end) == [[Kind.SEVER, "early", ""]]


def test_other_version_is_a_violation() -> None:
    """Two ends that would misunderstand each other do not begin."""
    for frame in ([Kind.HELLO, 1, 8], [Kind.HELLO, 3, "something", "else"]):
        end = Session()
        end.bind()
        with pytest.raises(ProtocolViolation, match=f"speaks version {frame[1]}, this one 2"):
            end.receive(frame)


@pytest.mark.parametrize("limit", [0, -1, wire.MAX_LIMIT + 1])
def test_limit_has_its_bounds(limit: int) -> None:
    """A limit that cannot be said is refused at once."""
    with pytest.raises(LimitExceeded):
        Session(limit)


@pytest.mark.parametrize(("limit", "peer_limit"), [(8, 2), (2, 8), (2, 2)])
def test_limit_is_the_lower_of_both_at_both_ends(limit: int, peer_limit: int) -> None:
    """The sender refuses to exceed it; a peer that does so breaks the protocol. Both lanes count."""
    for end, peer in (opened(limit, peer_limit), reversed(opened(limit, peer_limit))):
        assert end.peer_limit == peer.peer_limit == 2
        end.call(1)
        end.send(2, priority=True)
        assert end.room == 0
        for command in (end.call, end.send):
            with pytest.raises(LimitExceeded, match="outstanding messages"):
                command(3)
        talk(end, peer)
        with pytest.raises(ProtocolViolation, match="more than 2 messages"):
            peer.receive([Kind.CALL, 3, None])


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
        ([[Kind.CALL, 1, None], [Kind.CALL, 1, None]], "message 1 follows message 1"),
        ([[Kind.CALL, 5, None], [Kind.SEND, 4, None]], "message 4 follows message 5"),
        ([[Kind.CALL, -1, None], [Kind.CALL, -1, None]], "message -1 follows message -1"),
        ([[Kind.CALL, -5, None], [Kind.SEND, -4, None]], "message -4 follows message -5"),
        ([[Kind.SEND, 1, None], [Kind.PURGE, 1]], "PURGE of message 1, which is not a call"),
        ([[Kind.CALL, 1, None], [Kind.PURGE, 1], [Kind.PURGE, 1]], "PURGE of message 1"),
        ([[Kind.PURGE, 1]], "PURGE of message 1"),
        ([[Kind.CALL, -1, None], [Kind.PURGE, -2]], "PURGE of message -2"),
        ([[Kind.ACK, 1, 1]], "ACK for messages 1 to 1"),  # it is our call
        ([[Kind.ACK, -1, -9]], "ACK for messages -1 to -9"),
        ([[Kind.REPLY, 2, None]], "REPLY for message 2"),  # it is our one-way message
        ([[Kind.REPLY, -1, None]], "REPLY for message -1"),  # in the other lane
        ([[Kind.REJECT, 2, "", "", None]], "REJECT for message 2"),
        ([[Kind.REPLY, 3, None]], "REPLY for message 3"),  # there is none
        ([[Kind.REPLY, 1, None], [Kind.REPLY, 1, None]], "REPLY for message 1"),
        ([[Kind.ACK, 2, 2], [Kind.ACK, 1, 3]], "ACK for messages 1 to 3"),
        ([[Kind.QUIESCE], [Kind.QUIESCE]], "QUIESCE twice"),
        ([[Kind.QUIESCED]], "QUIESCED without QUIESCE"),
        ([[Kind.RESUME]], "RESUME without QUIESCE"),
        ([[Kind.CALL, 1, None], [Kind.STREAM]], "STREAM while its messages are outstanding"),
        ([[Kind.SEEN, 3]], "SEEN of 3 frames, written were 2"),
        ([[Kind.SEEN, 2], [Kind.SEEN, 1]], "SEEN of 1 frames"),
        ([hello()], "HELLO is not allowed while the path is bound"),
        ([[Kind.BULK, 70_000]], "BULK is not allowed while the path is open"),
    ],
)
def test_forged_message_is_a_violation(frames: list[Frame], rule: str) -> None:
    """Ids, answers and withdrawals are checked; the rule says what was wrong."""
    end, _ = opened()
    end.call(1)
    end.send(2)
    said(end)
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
    assert talk(one, other) == ([[Kind.REPLY, 1, "done"]], [])
    one.purge(ident)
    assert said(one) == []


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
    with pytest.raises(LimitExceeded, match="descriptors of one message"):
        other.reply(ident, None, (0,) * (wire.MAX_DESCRIPTORS + 1))
    assert other.waits(ident)
    assert other.reply(ident, "well")
    assert talk(one, other)[0] == [[Kind.REPLY, 1, "well"]]


def test_memfd_of_a_large_message_takes_the_place_of_a_descriptor() -> None:
    """The packet of a large message holds no more descriptors than any other."""
    shelf = bulk.Shelf()
    one = Session(8, store=lambda frame: shelf.store(bulk.split(frame)), close=close_all)
    one.bind()
    one.receive(hello())
    said(one)
    null = os.open(os.devnull, os.O_RDONLY)
    with pytest.raises(LimitExceeded, match="large message"):
        one.call(bytes(wire.MAX_PACKET), (null,) * wire.MAX_DESCRIPTORS)
    for body in (bytes(wire.MAX_PACKET), b"small"):
        count = wire.MAX_DESCRIPTORS - (body != b"small")
        one.call(body, tuple(os.dup(null) for _ in range(count)))
        packet = one.link.next_packet()
        assert packet is not None
        assert len(packet.descriptors) == wire.MAX_DESCRIPTORS
    one.end()
    shelf.close()
    os.close(null)


def test_large_message_needs_a_store() -> None:
    """An end that cannot make memfds refuses what only they can carry; nothing has changed."""
    one, _ = opened()
    with pytest.raises(LimitExceeded, match="size of a message"):
        one.call(bytes(wire.MAX_PACKET))
    assert one.outstanding == (0, 0)
    assert one.call(1) == 1


def test_deadline_of_a_call_travels_as_what_is_left() -> None:
    """In milliseconds, at least one, at most a year; the place of the descriptors' number is filled."""
    one, _ = opened()
    for remaining in (None, 250, 0, wire.MAX_REMAINING + 1):
        one.call("x", remaining=remaining)
    assert said(one) == [
        [Kind.CALL, 1, "x"],
        [Kind.CALL, 2, "x", 0, 250],
        [Kind.CALL, 3, "x", 0, 1],
        [Kind.CALL, 4, "x", 0, wire.MAX_REMAINING],
    ]


# -- lanes -------------------------------------------------------------------------------------------------------------


def test_priority_overtakes_what_is_not_written() -> None:
    """Each lane has its own numbers and keeps its order; answers follow the lane of their message."""
    one, other = opened()
    assert [one.call("a"), one.send("b"), one.call("c", priority=True), one.send("d", priority=True)] == [1, 2, -1, -2]
    assert one.last_sent == 2
    asked = talk(one, other)[1]
    assert asked == [[Kind.CALL, -1, "c"], [Kind.SEND, -2, "d"], [Kind.CALL, 1, "a"], [Kind.SEND, 2, "b"]]
    other.reply(1, "A")
    other.acknowledge(2)
    other.reply(-1, "C")
    other.acknowledge(-2)
    assert talk(one, other)[0] == [[Kind.REPLY, -1, "C"], [Kind.ACK, -2, -2], [Kind.REPLY, 1, "A"], [Kind.ACK, 2, 2]]
    assert one.outstanding == other.outstanding == (0, 0)
    assert one.room == 8


def test_what_is_written_is_not_overtaken() -> None:
    """A packet that was taken is gone."""
    one, _ = opened()
    one.send("a")
    assert said(one) == [[Kind.SEND, 1, "a"]]
    one.send("b", priority=True)
    assert said(one) == [[Kind.SEND, -1, "b"]]


def test_withdrawing_a_priority_call_is_as_fast() -> None:
    """And never faster than the call."""
    one, other = opened()
    one.send("slow")
    ident = one.call("fast", priority=True)
    one.purge(ident)
    assert [frame[:2] for frame in talk(one, other)[1]] == [[Kind.CALL, -1], [Kind.PURGE, -1], [Kind.SEND, 1]]
    assert not other.reply(ident, "late")
    assert talk(one, other)[0] == [[Kind.REJECT, -1, "purged", "", None]]


# -- ranges of acknowledgements ----------------------------------------------------------------------------------------


def test_acknowledgements_in_a_row_are_one_frame() -> None:
    """Gathered until something is written, or until one comes that is not the next."""
    one, other = opened()
    for _ in range(5):
        one.send(None)
    talk(one, other)
    assert [other.acknowledge(ident) for ident in (1, 2, 3, 5)] == [1, 2, 3, 1]
    assert said(other) == [[Kind.ACK, 1, 3], [Kind.ACK, 5, 5]]
    assert other.outstanding == (0, 1)


def test_range_of_acknowledgements_passes_over_calls() -> None:
    """It ends every one-way message from first to last, in one lane, and needs one."""
    end, _ = opened()
    for priority in (False, True):
        end.send(1, priority=priority)
        end.call(2, priority=priority)
        end.send(3, priority=priority)
    assert end.unreceived(1, 3)
    assert end.receive([Kind.ACK, 1, 3]) == [Kind.ACK, 1, 3]
    assert end.outstanding == (4, 0)
    assert not end.unreceived(1, 3)
    end.receive([Kind.ACK, -1, -1])
    end.receive([Kind.ACK, -1, -60_000])  # the first is over, the third not
    assert end.outstanding == (2, 0)
    assert end.room == 6
    with pytest.raises(ProtocolViolation, match="ACK for messages 1 to 3"):
        end.receive([Kind.ACK, 1, 3])


# -- quiescing ---------------------------------------------------------------------------------------------------------


def test_quiesced_end_is_sent_nothing_until_it_resumes() -> None:
    """QUIESCED comes behind the last message; answers and withdrawals go on."""
    one, other = opened()
    first, second = other.call("before"), other.call("crossing")
    one.quiesce()
    one.quiesce()
    assert not one.still
    assert [frame[0] for frame in talk(one, other)[0]] == [Kind.CALL, Kind.CALL, Kind.QUIESCED]
    assert one.still
    assert other.held
    assert other.room == 0
    for command in (other.send, other.call):
        with pytest.raises(LimitExceeded, match="quiesced"):
            command("x")
    one.reply(first, "answer")
    other.purge(second)
    assert talk(one, other) == ([[Kind.PURGE, second]], [[Kind.REPLY, first, "answer"]])
    one.call("the other way is open")
    one.reject(second, "purged")
    talk(one, other)
    assert other.room == 0
    one.resume()
    one.resume()
    assert talk(one, other)[1] == [[Kind.RESUME]]
    assert (other.room, one.still) == (8, False)
    other.send("after", priority=True)
    assert talk(one, other)[0] == [[Kind.SEND, -1, "after"]]


def test_message_behind_quiesced_is_a_violation() -> None:
    """Before it, one is still right; and again after RESUME."""
    end, _ = opened()
    end.quiesce()
    end.receive([Kind.SEND, 1, None])
    end.receive([Kind.QUIESCED])
    for frame in ([Kind.SEND, 2, None], [Kind.CALL, -1, None]):
        with pytest.raises(ProtocolViolation, match="a message after QUIESCED"):
            end.receive(frame)
    end.resume()
    end.receive([Kind.SEND, 2, None])


def test_resuming_before_the_confirmation() -> None:
    """The late QUIESCED of the first time does not count for the second."""
    one, other = opened()
    one.quiesce()
    one.resume()
    one.quiesce()
    for frame in said(one):
        other.receive(frame)
    confirmations = said(other)
    assert confirmations == [[Kind.QUIESCED], [Kind.QUIESCED]]
    one.receive(confirmations[0])
    assert not one.still
    one.receive(confirmations[1])
    assert one.still


@pytest.mark.parametrize("at_first", [False, True])
def test_quiescing_before_the_other_end_has_come(at_first: bool) -> None:
    """HELLO says it of an end that began so, and then nothing has to be confirmed; otherwise it follows."""
    one, other = Session(quiesced=at_first), Session()
    if not at_first:
        one.quiesce()
    assert not one.still
    assert bind(one, other) == (([], []) if at_first else ([[Kind.QUIESCED]], [[Kind.QUIESCE]]))
    assert one.still
    assert (other.held, other.room) == (True, 0)
    one.resume()
    talk(one, other)
    assert other.room == wire.DEFAULT_LIMIT


@pytest.mark.parametrize("quiesced", [False, True])
def test_quiescing_between_the_greetings(quiesced: bool) -> None:
    """What HELLO said and is not so any more is put right behind it."""
    one, other = Session(quiesced=quiesced), Session()
    one.bind()
    first = said(one)
    if quiesced:
        one.resume()
    else:
        one.quiesce()
    other.bind()
    other.receive(first[0])
    assert other.held is quiesced
    learned = talk(one, other)
    assert learned[1] == [[Kind.RESUME if quiesced else Kind.QUIESCE]]
    assert other.held is not quiesced
    assert one.still is not quiesced
