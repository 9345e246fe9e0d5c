"""One conformance suite for everything that carries packets."""

import os
import socket
from collections.abc import Callable, Iterator

import pytest
import trio
import trio.testing
from tests.leaks import assert_none_left, descriptors

from retinue.pipes import ProtocolViolation, SocketTransport, Transport, memory_pair, socket_pair, wire

Pair = tuple[Transport, Transport]


def sockets() -> Pair:
    left, right = socket_pair()
    return SocketTransport(left), SocketTransport(right)


@pytest.fixture(params=[sockets, memory_pair], ids=["socket", "memory"])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    make: Callable[[], Pair] = request.param
    before = descriptors()
    one, other = make()
    yield one, other
    one.close()
    other.close()
    assert_none_left(before)


def fill(end: Transport, packet: bytes) -> int:
    """Send until there is no room; returns how many packets went."""
    for count in range(10_000):
        try:
            end.send(packet)
        except BlockingIOError:
            return count
    raise AssertionError("a transport without a bound")


def received(end: Transport) -> bytes:
    packet, descriptors = end.receive()
    assert descriptors == []
    return bytes(packet)


def test_packets_keep_their_boundaries(pair: Pair) -> None:
    """Packets arrive whole, one by one, in their order, in both directions."""
    one, other = pair
    packets = [b"a", b"bc", b"\x00" * 100]
    for packet in packets:
        one.send(packet)
        other.send(packet[::-1])
    assert [received(other) for _ in packets] == packets
    assert [received(one) for _ in packets] == [packet[::-1] for packet in packets]


def test_largest_packet_is_carried(pair: Pair) -> None:
    """MAX_PACKET bytes are one packet."""
    one, other = pair
    packet = os.urandom(wire.MAX_PACKET)
    one.send(packet)
    assert received(other) == packet


def test_larger_packet_is_a_violation_where_it_arrives(pair: Pair) -> None:
    """A peer may have another transport; what it carried with it is closed, the next packet is still there."""
    one, other = pair
    reader, writer = os.pipe()
    one.send(bytes(wire.MAX_PACKET + 1), (writer,))
    os.close(writer)
    one.send(b"next")
    with pytest.raises(ProtocolViolation, match="a packet over 65536 bytes"):
        other.receive()
    assert os.read(reader, 1) == b""
    os.close(reader)
    assert received(other) == b"next"


def test_receiving_nothing_would_block(pair: Pair) -> None:
    """Neither end ever waits in receive."""
    for end in pair:
        with pytest.raises(BlockingIOError):
            end.receive()


def test_sending_too_much_would_block(pair: Pair) -> None:
    """There is a bound, it holds at least two of the largest packets, and nothing that was taken is lost."""
    one, other = pair
    packet = bytes(wire.MAX_PACKET)
    count = fill(one, packet)
    assert count >= 2
    for _ in range(count):
        assert received(other) == packet
    with pytest.raises(BlockingIOError):
        other.receive()
    one.send(b"again")
    assert received(other) == b"again"


def test_descriptors_travel_as_copies(pair: Pair) -> None:
    """The sender keeps its own, the receiver gets its own, both are the same pipe."""
    one, other = pair
    reader, writer = os.pipe()
    one.send(b"x", (writer, writer))
    os.close(writer)
    packet, descriptors = other.receive()
    assert bytes(packet) == b"x"
    assert len(descriptors) == 2
    os.write(descriptors[0], b"hello")
    assert os.read(reader, 10) == b"hello"
    assert not any(os.get_inheritable(each) for each in descriptors)
    for each in descriptors:
        os.close(each)
    assert os.read(reader, 1) == b""
    os.close(reader)


def test_most_descriptors_are_carried_and_more_are_a_violation(pair: Pair) -> None:
    """Of too many, none is left open."""
    one, other = pair
    with open("/dev/null", "rb") as null:
        one.send(b"x", [null.fileno()] * wire.MAX_DESCRIPTORS)
        _, descriptors = other.receive()
        assert len(descriptors) == wire.MAX_DESCRIPTORS
        for each in descriptors:
            os.close(each)
        one.send(b"x", [null.fileno()] * (wire.MAX_DESCRIPTORS + 1))
        with pytest.raises(ProtocolViolation, match="too many descriptors"):
            other.receive()


def test_descriptor_that_is_not_open_cannot_be_sent(pair: Pair) -> None:
    """An error of the sender's own: nothing is sent, nothing is copied, and the transport is not called broken."""
    one, other = pair
    with open("/dev/null", "rb") as null, pytest.raises(OSError, match=r"[Bb]ad file descriptor") as caught:
        one.send(b"x", (null.fileno(), 999_999))
    assert not isinstance(caught.value, BrokenPipeError | BlockingIOError)
    with pytest.raises(BlockingIOError):
        other.receive()


def test_what_was_sent_before_the_end_arrives(pair: Pair) -> None:
    """Then the end, as often as one asks."""
    one, other = pair
    one.send(b"last")
    one.send(b"words")
    one.close()
    one.close()
    assert [received(other) for _ in range(4)] == [b"last", b"words", b"", b""]


def test_unread_packets_do_not_hide_what_the_other_had_sent(pair: Pair) -> None:
    """Closing with something unread resets a socket; what this end had sent is still there."""
    one, other = pair
    other.send(b"never read")
    one.send(b"sent before")
    one.close()
    assert [received(other) for _ in range(2)] == [b"sent before", b""]


def test_sending_to_a_closed_end_is_a_broken_pipe(pair: Pair) -> None:
    """Also in this end's own hand."""
    one, other = pair
    other.close()
    for end in (one, other):
        with pytest.raises(BrokenPipeError):
            end.send(b"x")
        with open("/dev/null", "rb") as null, pytest.raises(BrokenPipeError):
            end.send(b"x", (null.fileno(),))


def test_closed_end_receives_nothing(pair: Pair) -> None:
    """Not even what had arrived; the descriptors that came with it are gone, too."""
    one, other = pair
    reader, writer = os.pipe()
    one.send(b"x", (writer,))
    os.close(writer)
    other.close()
    assert received(other) == b""
    one.close()
    assert os.read(reader, 1) == b""  # nobody holds the other end of the pipe
    os.close(reader)


async def test_waiting_ends_when_there_is_something(pair: Pair) -> None:
    """A reader sleeps until a packet comes."""
    one, other = pair
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(other.wait_readable)
            await trio.testing.wait_all_tasks_blocked()
            one.send(b"x")
    assert received(other) == b"x"


async def test_waiting_to_send_ends_when_there_is_room(pair: Pair) -> None:
    """A writer sleeps until a packet was taken out."""
    one, other = pair
    packet = bytes(wire.MAX_PACKET)
    count = fill(one, packet)
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.wait_writable)
            await trio.testing.wait_all_tasks_blocked()
            for _ in range(count):
                other.receive()
    one.send(b"x")


async def test_waiting_ends_when_the_other_end_closes(pair: Pair) -> None:
    """In both directions: a full transport becomes a broken one."""
    one, other = pair
    fill(one, bytes(wire.MAX_PACKET))
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.wait_readable)
            nursery.start_soon(one.wait_writable)
            await trio.testing.wait_all_tasks_blocked()
            other.close()
    assert received(one) == b""
    with pytest.raises(BrokenPipeError):
        one.send(b"x")


@pytest.mark.parametrize("early", [True, False], ids=["before", "while"])
async def test_waiting_on_an_end_closed_here_is_an_error(pair: Pair, early: bool) -> None:
    """Whether it was closed before the wait or during it."""
    one, other = pair
    fill(one, bytes(wire.MAX_PACKET))

    async def wait(which: Callable[[], object]) -> None:
        with pytest.raises(trio.ClosedResourceError):
            await which()  # type: ignore[misc]

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            if early:
                one.close()
            nursery.start_soon(wait, one.wait_readable)
            nursery.start_soon(wait, one.wait_writable)
            await trio.testing.wait_all_tasks_blocked()
            one.close()
    other.close()


def test_end_reaches_the_other_although_somebody_holds_a_duplicate() -> None:
    """The control program keeps a duplicate of one end; closing is by shutdown."""
    left, right = socket_pair()
    with right.dup() as held, left.dup():
        one, other = SocketTransport(left), SocketTransport(right)
        other.close()
        assert received(one) == b""
        one.close()
        assert held.recv(1) == b""


def test_socket_pair_is_as_promised() -> None:
    """Packets, no waiting, not inherited."""
    for each in socket_pair():
        with each:
            assert each.type == socket.SOCK_SEQPACKET
            assert not each.getblocking()
            assert not each.get_inheritable()
