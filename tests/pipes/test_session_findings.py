"""What a review of sessions, the wire and transports has found, and stays found: hostile frames without a path."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, Final

import pytest
from tests.pipes.ends import NEXT, ONE, OTHER, hello, opened, said

from retinue.pipes import ProtocolViolation, link, wire
from retinue.pipes.message import close_all
from retinue.pipes.session import Session
from retinue.pipes.states import State
from retinue.pipes.wire import Kind

# How many times as long something may take that is not slower: far more than noise, far less than what was found.
GENEROUS: Final = 20
# Four times the work of four times as many is linear, sixteen times is quadratic.
LINEAR: Final = 10


def shortest(work: Callable[[], object], prepare: Callable[[], object] = lambda: None, times: int = 3) -> float:
    """Processor seconds of the shortest of some runs."""
    found = []
    for _ in range(times):
        prepare()
        since = time.process_time()
        work()
        found.append(time.process_time() - since)
    return min(found)


# -- what packets cost -------------------------------------------------------------------------------------------------

NESTED: Final = b"\x93\x01\x01\x90"  # [SEND, 1, []]
PLAIN: Final = b"\x93\x01\x01\xc0"  # [SEND, 1, nil]


def test_many_nested_frames_cost_little_more_than_plain_ones() -> None:
    """The depth of values is asked once a packet, not once a frame of it."""
    count = wire.MAX_PACKET // len(NESTED)
    assert count == 17_408
    decode = wire.Decoder().decode
    assert len(decode(NESTED * count)) == count
    nested = shortest(lambda: decode(NESTED * count))
    plain = shortest(lambda: decode(PLAIN * count))
    assert nested < GENEROUS * plain
    assert nested < LINEAR * shortest(lambda: decode(NESTED * (count // 4)))


def test_depth_is_found_in_any_frame_of_a_packet() -> None:
    """Asking once does not mean asking the first."""
    deep = b"\x93\x01\x01" + b"\x91" * wire.MAX_DEPTH + b"\xc0"
    for packet in (deep, NESTED * 100 + deep, deep + NESTED * 100):
        with pytest.raises(ProtocolViolation, match="levels"):
            wire.Decoder().decode(packet)
    assert len(wire.Decoder().decode(NESTED * 300)) == 300


BODY: Final[list[Any]] = [[1.5, 1 << 40], b"bytes", None, {"": []}]
CALL: Final = wire.encode([Kind.CALL, 300, BODY, 0, 1000])


@pytest.mark.parametrize("before", [b"", CALL], ids=["alone", "behind another"])
def test_packet_that_is_an_unfinished_frame(before: bytes) -> None:
    """Wherever it is cut the violation says so, and the decoder takes the next packet."""
    decoder = wire.Decoder()
    for cut in range(1, len(CALL)):
        with pytest.raises(ProtocolViolation) as caught:
            decoder.decode(before + CALL[:cut])
        assert caught.value.rule == "a packet ends inside a frame"
        assert decoder.decode(CALL) == [[Kind.CALL, 300, BODY, 0, 1000]]


# -- what acknowledgements cost ----------------------------------------------------------------------------------------


def sent(count: int) -> Session:
    """An end with so many one-way messages outstanding, all of them written."""
    end = Session(wire.MAX_LIMIT, keeps=True, token=ONE, close=close_all)
    end.bind()
    end.receive([Kind.HELLO, wire.VERSION, wire.MAX_LIMIT, OTHER, 0, 0, 0, 0, 0])
    for _ in range(count):
        end.send(None)
    said(end)
    return end


@pytest.mark.parametrize("width", [1000, wire.MAX_LIMIT])
def test_wide_acknowledgement_costs_what_it_ends(width: int) -> None:
    """Not what it says: seven bytes of the peer are no work for 65,535."""
    rounds = 50
    end = sent(4)

    def acknowledge(width: int) -> None:
        for _ in range(rounds):
            first = end.send(None)
            end.receive([Kind.ACK, first, first + width])

    narrow = shortest(lambda: acknowledge(0))
    assert shortest(lambda: acknowledge(width)) < GENEROUS * narrow
    assert end.outstanding == (4, 0)


def waiting_for_successor(count: int) -> Session:
    """An end with so many messages that wait until a successor of the other, which takes one at a time, has room."""
    end = sent(count)
    end.unbind()
    end.bind()
    end.receive([Kind.HELLO, wire.VERSION, 1, NEXT, 0, 0, 0, 0, 0])
    said(end)
    return end


def test_acknowledgement_while_many_wait_for_a_successor_is_not_quadratic() -> None:
    """Neither when it names those that wait, nor when they are taken one by one."""
    with pytest.raises(ProtocolViolation, match="not all sent"):
        waiting_for_successor(5).receive([Kind.ACK, 1, 5])

    def cost(count: int) -> float:
        ends = [waiting_for_successor(count) for _ in range(3)]
        taken = iter(ends)

        def one_by_one() -> None:
            end = next(taken)
            for ident in range(1, count + 1):
                end.receive([Kind.ACK, ident, ident])
                said(end)

        spent = shortest(one_by_one)
        assert all(end.outstanding == (0, 0) for end in ends)
        return spent

    assert cost(12_000) < LINEAR * cost(3_000)


def test_acknowledgement_beyond_all_numbers_ends_nothing_that_waits() -> None:
    """It names what was sent, and more: only what was sent ends."""
    end = waiting_for_successor(5)
    end.receive([Kind.ACK, 1, 60_000])
    assert end.outstanding == (4, 0)


def test_lost_descriptor_while_many_wait_for_a_successor_is_not_quadratic() -> None:
    """Nor when the next descriptor is lost."""

    def cost(count: int) -> float:
        end = waiting_for_successor(count)

        def bind() -> None:
            end.bind()
            end.receive([Kind.HELLO, wire.VERSION, 1, NEXT, ONE, end.link.seen, 0, 0, 0])

        spent = shortest(end.unbind, lambda: None if end.link.binding.value == "bound" else bind())
        assert end.outstanding == (count, 0)
        return spent

    assert cost(12_000) < LINEAR * cost(3_000)


# -- frames that are gathered ------------------------------------------------------------------------------------------


def test_seen_that_waits_is_replaced_by_the_next() -> None:
    """However long nothing can be written, one of them waits, the last."""
    _, end = opened(limit=200, peer_limit=200)
    for number in range(1, 101):
        end.receive([Kind.SEND, number, None])
        end.link.note(10, at_once=True)
    assert said(end) == [[Kind.SEEN, 100]]


def test_greeting_that_waits_is_not_replaced_by_seen() -> None:
    """What may be replaced is a SEEN and nothing else."""
    end = Session(8, token=ONE)
    end.bind()
    end.receive(hello())
    end.receive([Kind.SEND, 1, None])
    end.link.note(10, at_once=True)
    end.receive([Kind.SEND, 2, None])
    end.link.note(10, at_once=True)
    greeting, seen = said(end)
    assert (greeting[0], seen) == (Kind.HELLO, [Kind.SEEN, 2])


def test_credit_is_gathered_until_something_is_written() -> None:
    """One frame for all the bytes that the program has taken."""
    one, other = opened()
    for end, peer in ((one, other), (other, one)):
        end.stream()
        for frame in said(end):
            peer.receive(frame)
    assert one.state is other.state is State.STREAM
    for _ in range(10):
        one.receive([Kind.DATA, b"x" * 100])
        one.credit(100)
    assert said(one) == [[Kind.CREDIT, 1000]]
    assert said(one) == []


# -- frames that cannot have been seen ---------------------------------------------------------------------------------


@pytest.mark.parametrize("keeps", [False, True])
def test_packet_that_was_refused_cannot_have_been_seen(keeps: bool) -> None:
    """It was assembled, but nobody can have read it; once the socket has taken it, it can."""
    end, _ = opened(keeps=keeps)
    end.send(1)
    end.send(2)
    assert end.link.next_packet() is not None
    end.send(3)
    assert end.link.next_packet() is not None
    end.link.refused()
    end.receive([Kind.SEEN, 2])
    with pytest.raises(ProtocolViolation, match="SEEN of 3 frames, written were 2"):
        end.receive([Kind.SEEN, 3])
    end.link.unsent = 0
    end.receive([Kind.SEEN, 3])


def test_frames_with_descriptors_that_go_again_are_counted_once() -> None:
    """As many as may be unseen were written when the descriptor was lost: on the next they all go again."""
    end, _ = opened(limit=64, peer_limit=64, keeps=True)
    for _ in range(link.MOST_CARRYING + 1):
        end.send(None, (os.open(os.devnull, os.O_RDONLY),))
    for token in (OTHER, OTHER, NEXT):
        assert len([frame for frame in said(end) if frame[0] == Kind.SEND]) == link.MOST_CARRYING
        assert end.link.held_back
        end.unbind()
        end.bind()
        end.receive([Kind.HELLO, wire.VERSION, 64, token, ONE if token == OTHER else 0, 0, 0, 0, 0])
    assert len([frame for frame in said(end) if frame[0] == Kind.SEND]) == link.MOST_CARRYING
    end.end()


# -- a process without room for descriptors ----------------------------------------------------------------------------

FULL_PROCESS: Final = """
import os, resource, socket
from retinue.pipes import SocketTransport, socket_pair

ours, theirs = socket_pair()
null = os.open(os.devnull, os.O_RDONLY)
socket.send_fds(theirs, [b"packet"], [null] * 3)
free = os.dup(null)
os.close(free)
resource.setrlimit(resource.RLIMIT_NOFILE, (free + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
data, descriptors = SocketTransport(ours).receive()
print(bytes(data), descriptors, os.dup(null) == free)
ours.close()
theirs.close()
"""


def test_packet_cut_because_this_process_is_full_is_not_the_peers_violation() -> None:
    """Three descriptors come and one fits: it is closed, and the transport has ended as if it were lost."""
    command = [sys.executable, "-W", "error", "-c", FULL_PROCESS]
    run = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert (run.stdout, run.stderr) == ("b'' [] True\n", "")
