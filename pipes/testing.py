"""What every carrier of packets must do, as tests: for the author of a transport of their own.

Derive from :class:`TransportSuite` in a test module, say how a connected pair is made, and run pytest::

    from retinue.pipes.testing import TransportSuite

    class TestMyTransport(TransportSuite):
        def pair(self):
            return my_pair()

For tests only: it needs pytest and pytest-trio, which Retinue itself does not; no other module of Retinue imports it.
"""

import contextlib
import importlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Final

import trio
import trio.testing

from retinue.pipes import wire
from retinue.pipes.errors import ProtocolViolation
from retinue.pipes.transport import Transport

try:
    import pytest

    importlib.import_module("pytest_trio")  # pytest runs the checks that wait with it
except ImportError as exc:
    raise ImportError(
        f"retinue.pipes.testing needs pytest and pytest-trio ({exc.name} is missing): pip install 'retinue[test]'"
    ) from exc

Pair = tuple[Transport, Transport]

# A transport that takes more packets than this, unread, is called one without a bound.
MOST_PACKETS: Final = 1000
# Seconds in which a wait must end after what ends it.
PATIENCE: Final = 5


class TransportSuite:
    """The contract of :class:`~retinue.pipes.transport.Transport`, one check for each promise.

    Each check gets a fresh pair, and after each both ends are closed: a descriptor of this process that is then open
    and was not before is a failure, too. Only the two waits run under trio: everything else must work without it.
    """

    def pair(self) -> Pair:
        """Two new ends connected with each other, in this process. A subclass says how they are made."""
        raise NotImplementedError(f"{type(self).__name__} does not say how its pair() is made")

    @contextlib.contextmanager
    def opened(self) -> Iterator[Pair]:
        """A pair for the length of the block; AssertionError when something of it is open after that."""
        before = _descriptors()
        ends = self.pair()
        try:
            yield ends
        finally:
            for end in ends:
                end.close()
        left = _descriptors() - before
        assert not left, f"descriptors left open: {', '.join(sorted(left))}"

    @pytest.fixture
    def ends(self) -> Iterator[Pair]:
        """What each check works on."""
        with self.opened() as ends:
            yield ends

    # -- packets ----------------------------------------------------------------------------------------------------

    def test_packets_keep_their_boundaries(self, ends: Pair) -> None:
        """Packets arrive whole, one by one, in their order, in both directions."""
        one, other = ends
        packets = [b"a", b"bc", b"\x00" * 100]
        for packet in packets:
            one.send(packet)
            other.send(packet[::-1])
        assert [_received(other) for _ in packets] == packets, "they arrived otherwise than they were sent"
        assert [_received(one) for _ in packets] == [packet[::-1] for packet in packets], "in the other direction"

    def test_largest_packet_is_carried(self, ends: Pair) -> None:
        """MAX_PACKET bytes are one packet."""
        one, other = ends
        packet = os.urandom(wire.MAX_PACKET)
        one.send(packet)
        assert _received(other) == packet, "it did not arrive as it was sent"

    def test_larger_packet_is_a_violation_where_it_arrives(self, ends: Pair) -> None:
        """Whoever sent it, with whatever code: what came with it is closed, and the next packet is still there."""
        one, other = ends
        reader, writer = os.pipe()
        with os.fdopen(reader, "rb") as pipe:
            try:
                one.send(bytes(wire.MAX_PACKET + 1), (writer,))
            finally:
                os.close(writer)
            one.send(b"next")
            with pytest.raises(ProtocolViolation):
                other.receive()
            assert _at_end(pipe.fileno()), "the descriptor that came with it is still open"
        assert _received(other) == b"next"

    def test_receiving_nothing_would_block(self, ends: Pair) -> None:
        """Neither end ever waits in receive."""
        for end in ends:
            with pytest.raises(BlockingIOError):
                end.receive()

    def test_sending_too_much_would_block(self, ends: Pair) -> None:
        """There is a bound, it holds at least two of the largest packets, and nothing that was taken is lost."""
        one, other = ends
        packet = bytes(wire.MAX_PACKET)
        count = _fill(one, packet)
        assert count >= 2, "it does not hold two of the largest packets"
        for _ in range(count):
            assert _received(other) == packet, "a packet that was taken is lost or changed"
        with pytest.raises(BlockingIOError):
            other.receive()
        one.send(b"again")
        assert _received(other) == b"again"

    # -- descriptors ------------------------------------------------------------------------------------------------

    def test_descriptors_travel_as_copies(self, ends: Pair) -> None:
        """The sender keeps its own, the receiver gets its own, both are the same file, in the order of sending."""
        one, other = ends
        (reader, writer), (second, third) = os.pipe(), os.pipe()
        try:
            one.send(b"x", (writer, second))
            packet, descriptors = other.receive()
            try:
                assert bytes(packet) == b"x"
                assert len(descriptors) == 2, f"{len(descriptors)} of 2 descriptors came"
                assert not {writer, second} & set(descriptors), "the receiver was given the sender's own"
                os.write(writer, b"mine ")  # still the sender's
                os.write(descriptors[0], b"yours")
                assert os.read(reader, 10) == b"mine yours", "the first is not the same pipe"
                os.write(third, b"back")
                assert os.read(descriptors[1], 10) == b"back", "the second is not the same pipe"
            finally:
                for each in descriptors:
                    os.close(each)
        finally:
            for each in (reader, writer, second, third):
                os.close(each)

    def test_descriptors_are_closed_on_exec(self, ends: Pair) -> None:
        """What a machine was given does not leak into a program that it starts."""
        one, other = ends
        with open(os.devnull, "rb") as null:
            one.send(b"x", (null.fileno(),))
        _, descriptors = other.receive()
        try:
            assert not any(os.get_inheritable(each) for each in descriptors), "they are inherited"
        finally:
            for each in descriptors:
                os.close(each)

    def test_most_descriptors_are_carried_and_more_are_a_violation(self, ends: Pair) -> None:
        """MAX_DESCRIPTORS come with a packet; of too many, none is left open."""
        one, other = ends
        with open(os.devnull, "rb") as null:
            one.send(b"x", [null.fileno()] * wire.MAX_DESCRIPTORS)
            _, descriptors = other.receive()
            for each in descriptors:
                os.close(each)
            assert len(descriptors) == wire.MAX_DESCRIPTORS
        reader, writer = os.pipe()
        with os.fdopen(reader, "rb") as pipe:
            try:
                one.send(b"x", [writer] * (wire.MAX_DESCRIPTORS + 1))
            finally:
                os.close(writer)
            with pytest.raises(ProtocolViolation):
                other.receive()
            assert _at_end(pipe.fileno()), "one of them is still open"

    def test_descriptor_that_is_not_open_cannot_be_sent(self, ends: Pair) -> None:
        """An error of the sender's own: nothing is sent, nothing is copied, and the transport is not called broken."""
        one, other = ends
        with open(os.devnull, "rb") as null, pytest.raises(OSError, match=r"[Bb]ad file descriptor") as caught:
            one.send(b"x", (null.fileno(), 999_999))
        assert not isinstance(caught.value, BrokenPipeError | BlockingIOError)
        with pytest.raises(BlockingIOError):
            other.receive()

    # -- the end ----------------------------------------------------------------------------------------------------

    def test_what_was_sent_before_the_end_arrives(self, ends: Pair) -> None:
        """Then the end, as often as one asks; to close twice has no effect."""
        one, other = ends
        one.send(b"last")
        one.send(b"words")
        one.close()
        one.close()
        assert [_received(other) for _ in range(4)] == [b"last", b"words", b"", b""]

    def test_unread_packets_do_not_hide_what_the_other_had_sent(self, ends: Pair) -> None:
        """An end that closes with something unread (which resets a socket) does not take back what it had sent."""
        one, other = ends
        other.send(b"never read")
        one.send(b"sent before")
        one.close()
        assert [_received(other) for _ in range(2)] == [b"sent before", b""]

    def test_sending_to_a_closed_end_is_a_broken_pipe(self, ends: Pair) -> None:
        """Whichever end was closed, with descriptors and without."""
        one, other = ends
        other.close()
        for end in (one, other):
            with pytest.raises(BrokenPipeError):
                end.send(b"x")
            with open(os.devnull, "rb") as null, pytest.raises(BrokenPipeError):
                end.send(b"x", (null.fileno(),))

    def test_closed_end_receives_nothing(self, ends: Pair) -> None:
        """Not even what had arrived; the descriptors that came with it are gone, too."""
        one, other = ends
        reader, writer = os.pipe()
        with os.fdopen(reader, "rb") as pipe:
            try:
                one.send(b"x", (writer,))
            finally:
                os.close(writer)
            other.close()
            assert _received(other) == b""
            one.close()
            assert _at_end(pipe.fileno()), "a descriptor that nobody can receive is still open"

    # -- waiting ----------------------------------------------------------------------------------------------------

    @pytest.mark.trio
    async def test_waiting_ends_when_there_is_something(self, ends: Pair) -> None:
        """A reader sleeps until a packet comes, and not longer."""
        one, other = ends
        async with _asleep(other.wait_readable):
            one.send(b"x")
        assert _received(other) == b"x"

    @pytest.mark.trio
    async def test_waiting_to_send_ends_when_there_is_room(self, ends: Pair) -> None:
        """A writer sleeps while there is none, and then a packet can be sent."""
        one, other = ends
        packet = bytes(wire.MAX_PACKET)
        count = _fill(one, packet)
        async with _asleep(one.wait_writable):
            for _ in range(count):
                other.receive()
        one.send(packet)

    @pytest.mark.trio
    async def test_waiting_does_not_sleep_without_need(self, ends: Pair) -> None:
        """What is there or has room already is no reason to wait, nor is an end that has come."""
        one, other = ends
        with trio.fail_after(PATIENCE):
            await one.wait_writable()
            one.send(b"x")
            await other.wait_readable()
            assert _received(other) == b"x"
            one.close()
            await other.wait_readable()
            await other.wait_writable()

    @pytest.mark.trio
    async def test_waiting_ends_when_the_other_end_closes(self, ends: Pair) -> None:
        """In both directions: a full transport becomes a broken one."""
        one, other = ends
        _fill(one, bytes(wire.MAX_PACKET))
        async with _asleep(one.wait_readable, one.wait_writable):
            other.close()
        assert _received(one) == b""
        with pytest.raises(BrokenPipeError):
            one.send(b"x")

    @pytest.mark.trio
    async def test_waiting_on_an_end_closed_before_is_an_error(self, ends: Pair) -> None:
        """trio.ClosedResourceError, from either wait."""
        one, _ = ends
        one.close()
        for wait in (one.wait_readable, one.wait_writable):
            with trio.fail_after(PATIENCE), pytest.raises(trio.ClosedResourceError):
                await wait()

    @pytest.mark.trio
    async def test_waiting_on_an_end_closed_meanwhile_is_an_error(self, ends: Pair) -> None:
        """The same when it is closed by another task during the wait."""
        one, _ = ends
        _fill(one, bytes(wire.MAX_PACKET))

        async def refused(wait: Callable[[], Awaitable[None]]) -> None:
            with pytest.raises(trio.ClosedResourceError):
                await wait()

        async with _asleep(lambda: refused(one.wait_readable), lambda: refused(one.wait_writable)):
            one.close()


def _received(end: Transport) -> bytes:
    packet, descriptors = end.receive()
    assert descriptors == [], "descriptors came with a packet that had none"
    return bytes(packet)


def _fill(end: Transport, packet: bytes) -> int:
    """Send until there is no room; returns how many packets went."""
    for count in range(MOST_PACKETS):
        try:
            end.send(packet)
        except BlockingIOError:
            return count
    raise AssertionError(f"a transport without a bound: it took {MOST_PACKETS} packets unread")


def _at_end(reader: int) -> bool:
    """Whether nobody holds the writing end of a pipe any more."""
    os.set_blocking(reader, False)
    try:
        return os.read(reader, 1) == b""
    except BlockingIOError:
        return False


def _descriptors() -> frozenset[str]:
    """Every open descriptor of this process with what it is."""
    found = set()
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the one that lists them
            found.add(f"{number} {os.readlink(f'/proc/self/fd/{number}')}")
    return frozenset(found)


@contextlib.asynccontextmanager
async def _asleep(*waits: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    """Tasks that must sleep in these waits when the block begins, and must have ended soon after its end."""
    over: list[int] = []

    async def wait_once(number: int) -> None:
        await waits[number]()
        over.append(number)

    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            for number in range(len(waits)):
                nursery.start_soon(wait_once, number)
            await trio.testing.wait_all_tasks_blocked()
            assert over == [], "a wait ended although nothing had happened"
            yield
