"""What stands between the two ends of a path while somebody looks at it."""

import os
import random
import socket
import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing
from tests.leaks import assert_none_left, descriptors

from retinue.cp.relay import Direction, Relay
from retinue.pipes import ProtocolViolation, SocketTransport, socket_pair, wire


class Seen:
    """A listener that remembers."""

    def __init__(self) -> None:
        self.packets: list[tuple[Direction, bytes, int]] = []

    def __call__(self, direction: Direction, data: bytes, given: Sequence[int]) -> None:
        for each in given:
            os.fstat(each)  # open as long as this lasts
        self.packets.append((direction, data, len(given)))

    def of(self, direction: Direction) -> list[bytes]:
        return [data for way, data, _ in self.packets if way == direction]


class Between:
    """A running relay with the outer ends of its two pairs."""

    def __init__(self) -> None:
        self.origin, first = socket_pair()
        second, self.target = socket_pair()
        self.seen = Seen()
        self.relay = Relay(first, second, self.seen)
        self.over = trio.Event()
        self.scope = trio.CancelScope()

    async def run(self) -> None:
        with self.scope:
            await self.relay.run()
        self.over.set()


@asynccontextmanager
async def between() -> AsyncIterator[Between]:
    before = descriptors()
    made = Between()
    with trio.fail_after(20), made.origin, made.target:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(made.run)
            await trio.testing.wait_all_tasks_blocked()
            yield made
            made.scope.cancel()
    del made
    assert_none_left(before)


async def take(sock: socket.socket) -> bytes:
    """The next packet; empty at the end."""
    await trio.lowlevel.wait_readable(sock)
    return sock.recv(wire.MAX_PACKET + 10)


async def take_all(sock: socket.socket, count: int) -> list[bytes]:
    return [await take(sock) for _ in range(count)]


def fill(sock: socket.socket, data: bytes) -> int:
    """Write the packet until there is no room any more; returns how often."""
    count = 0
    while True:
        try:
            sock.send(data)
        except BlockingIOError:
            return count
        count += 1


async def test_packets_pass_both_ways_as_they_came() -> None:
    """With their boundaries, their order and every byte; the listener sees the same."""
    shuffled = random.Random(1)
    there = [shuffled.randbytes(size) for size in (1, 2, 100, 4096, wire.MAX_PACKET, 3)]
    back = [shuffled.randbytes(size) for size in (7, wire.MAX_PACKET, 1)]
    async with between() as it:
        async with trio.open_nursery() as nursery:
            got: dict[str, list[bytes]] = {}

            async def collect(name: str, sock: socket.socket, count: int) -> None:
                got[name] = await take_all(sock, count)

            nursery.start_soon(collect, "there", it.target, len(there))
            nursery.start_soon(collect, "back", it.origin, len(back))
            for end, packets in ((it.origin, there), (it.target, back)):
                for packet in packets:
                    await trio.lowlevel.wait_writable(end)
                    end.send(packet)
        assert got == {"there": there, "back": back}
        assert (it.seen.of("->"), it.seen.of("<-")) == (there, back)


async def test_descriptors_pass_and_none_stays() -> None:
    """The very same files arrive; the relay's own copies are closed."""
    async with between() as it:
        read_end, write_end = os.pipe()
        socket.send_fds(it.origin, [b"two"], [read_end, write_end])
        os.close(read_end)
        os.close(write_end)
        await trio.lowlevel.wait_readable(it.target)
        data, got, _, _ = socket.recv_fds(it.target, 100, 10)
        assert (data, len(got)) == (b"two", 2)
        assert it.seen.packets == [("->", b"two", 2)]
        os.write(got[1], b"through")
        os.close(got[1])
        # The end is seen only when no copy of the writing end is left anywhere.
        assert (os.read(got[0], 100), os.read(got[0], 100)) == (b"through", b"")
        os.close(got[0])


async def test_a_slow_reader_holds_its_writer_up_and_nobody_else() -> None:
    """No more is on its way than sockets hold and one packet in the relay, and in the end nothing is missing."""
    async with between() as it:
        packet = bytes(4096)
        total = 0
        while True:
            written = fill(it.origin, packet)
            total += written
            await trio.testing.wait_all_tasks_blocked()
            if not written:
                break
        held = len(it.seen.of("->"))
        assert total - held - 1 == fill_of_a_fresh_pair(packet) == held
        it.target.send(b"the other way is open")
        assert await take(it.origin) == b"the other way is open"
        assert await take_all(it.target, total) == [packet] * total
        assert len(it.seen.of("->")) == total


def fill_of_a_fresh_pair(packet: bytes) -> int:
    one, other = socket_pair()
    with one, other:
        return fill(one, packet)


@pytest.mark.parametrize("stalled", [False, True])
async def test_the_end_of_one_side_is_the_end_of_the_other_behind_its_last_words(stalled: bool) -> None:
    """Also when the other is slow to read them, and when the one has not read what was for it."""
    async with between() as it:
        it.target.send(b"for nobody")
        sent: list[bytes] = []
        while not sent or stalled:
            sent.append(struct.pack("q", len(sent)) + bytes(4096))
            try:
                it.origin.send(sent[-1])
            except BlockingIOError:
                sent.pop()
                before = len(it.seen.packets)
                await trio.testing.wait_all_tasks_blocked()
                if len(it.seen.packets) == before:
                    break
        it.origin.close()
        await trio.testing.wait_all_tasks_blocked()
        assert await take_all(it.target, len(sent)) == sent
        assert await take(it.target) == b""
        await it.over.wait()


async def test_last_words_of_a_side_that_does_not_read_any_more_pass() -> None:
    """The originator's packets then go nowhere, and do not end the other direction early."""
    async with between() as it:
        for number in range(10):
            it.target.send(b"%d" % number)
        it.origin.send(b"too late")
        it.target.close()
        assert await take_all(it.origin, 10) == [b"%d" % number for number in range(10)]
        assert await take(it.origin) == b""
        await it.over.wait()


async def test_cut_from_outside_ends_both_behind_what_is_on_its_way() -> None:
    async with between() as it:
        it.origin.send(b"one")
        it.relay.cut()
        assert await take_all(it.target, 2) == [b"one", b""]
        assert await take(it.origin) == b""
        await it.over.wait()


async def test_cancelled_it_hands_on_what_is_there_and_closes_everything() -> None:
    async with between() as it:
        it.origin.send(b"one")
        it.target.send(b"two")
        it.scope.cancel()
        await it.over.wait()
        assert await take_all(it.target, 2) == [b"one", b""]
        assert await take_all(it.origin, 2) == [b"two", b""]


async def test_cancelled_while_a_packet_waits_nothing_overtakes_it() -> None:
    """What arrives is a beginning of what was sent, without a gap; descriptors in between are closed."""
    async with between() as it:
        sent = 0
        while True:
            try:
                socket.send_fds(it.origin, [struct.pack("q", sent) + bytes(4096)], [0])
                sent += 1
            except BlockingIOError:
                before = len(it.seen.packets)
                await trio.testing.wait_all_tasks_blocked()
                if len(it.seen.packets) == before:
                    break
        # Room for one more packet of the relay, at the very moment of its end.
        first = await take(it.target)
        it.scope.cancel()
        await it.over.wait()
        numbers = [struct.unpack_from("q", first)[0]]
        while data := await take(it.target):
            numbers.append(struct.unpack_from("q", data)[0])
        assert numbers == list(range(len(numbers)))
        assert 1 < len(numbers) < sent


async def test_what_breaks_the_rules_breaks_them_at_the_receiver() -> None:
    """A packet that is too long or brings too many descriptors is refused there, as without a relay."""
    async with between() as it:
        transport = SocketTransport(it.target)
        it.origin.send(bytes(wire.MAX_PACKET + 1000))
        await transport.wait_readable()
        with pytest.raises(ProtocolViolation, match="a packet over"):
            transport.receive()
        for count in (wire.MAX_DESCRIPTORS + 1, 100):
            socket.send_fds(it.origin, [b"x"], [0] * count)
            await transport.wait_readable()
            with pytest.raises(ProtocolViolation, match="too many descriptors"):
                transport.receive()
        socket.send_fds(it.origin, [b"x"], [0] * wire.MAX_DESCRIPTORS)
        await transport.wait_readable()
        data, got = transport.receive()
        assert (bytes(data), len(got)) == (b"x", wire.MAX_DESCRIPTORS)
        for each in got:
            os.close(each)


async def test_an_error_of_the_listener_does_not_reach_the_path() -> None:
    async with between() as it:
        broken = ValueError("no such luck")

        def listener(direction: Direction, data: bytes, given: Sequence[int]) -> None:
            raise broken

        it.relay._listener = listener
        for number in range(3):
            it.origin.send(b"%d" % number)
        assert await take_all(it.target, 3) == [b"0", b"1", b"2"]
        assert it.relay.failure is broken


async def test_without_room_for_descriptors_the_path_is_cut_not_robbed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The packet is not handed on without them: its writer still has it for the next binding."""
    import resource

    async with between() as it:
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        it.origin.send(b"before")
        socket.send_fds(it.origin, [b"with two"], [0, 0])
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
        try:
            await it.over.wait()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert await take_all(it.target, 2) == [b"before", b""]
        assert await take(it.origin) == b""
