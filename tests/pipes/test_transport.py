"""Everything that carries packets passes one suite, and the suite finds what is broken."""

import array
import contextlib
import fcntl
import inspect
import os
import re
import socket
import struct
import subprocess
import sys
import termios
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Final

import pytest
import trio
import trio.testing

from retinue.pipes import (
    MemoryTransport,
    ProtocolViolation,
    SocketTransport,
    Transport,
    memory_pair,
    socket_pair,
    wire,
)
from retinue.pipes.testing import TransportSuite

Pair = tuple[Transport, Transport]
Packet = tuple[bytes | memoryview, list[int]]

ROOT: Final = Path(__file__).parents[2]


class TestSocket(TransportSuite):
    """SOCK_SEQPACKET between processes."""

    def pair(self) -> Pair:
        left, right = socket_pair()
        return SocketTransport(left), SocketTransport(right)


class TestMemory(TransportSuite):
    """Queues inside one process."""

    def pair(self) -> Pair:
        return memory_pair()


# -- a third transport: what an author of another one would write -----------------------------------------------------


class StreamTransport:
    """Packets over a SOCK_STREAM socket, each behind its length in four bytes."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        # A packet goes whole or not at all, so there must be room for two with what the kernel needs around them.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8 * wire.MAX_PACKET)
        self._room = sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        self._socket = sock
        self._bytes = bytearray()  # of a packet that has not come whole
        self._descriptors: list[int] = []
        self._too_many = False

    def send(self, packet: bytes, descriptors: Sequence[int] = ()) -> None:
        try:
            self._socket.send(b"", socket.MSG_NOSIGNAL)  # tells whether anybody is there, also when there is no room
            (unread,) = struct.unpack("i", fcntl.ioctl(self._socket, termios.TIOCOUTQ, bytes(4)))
            if unread + 2 * len(packet) + 4096 > self._room:
                raise BlockingIOError("no room for the whole packet")
            data = struct.pack(">I", len(packet)) + packet
            sent = socket.send_fds(self._socket, [data], list(descriptors), socket.MSG_NOSIGNAL)
            assert sent == len(data)
        except OSError as exc:
            if isinstance(exc, ConnectionResetError) or self._socket.fileno() < 0:
                raise BrokenPipeError(exc.errno, exc.strerror) from exc
            raise

    def receive(self) -> Packet:
        if not self._complete():
            return b"", []
        packet, self._bytes = bytes(self._bytes[4:]), bytearray()
        descriptors, self._descriptors = self._descriptors, []
        too_many, self._too_many = self._too_many, False
        if too_many or len(packet) > wire.MAX_PACKET:
            _close(descriptors)
            raise ProtocolViolation("a packet over the limits")
        return packet, descriptors

    def _complete(self) -> bool:
        """Whether there is a whole packet; False at the end. BlockingIOError when the rest of it has not come."""
        while True:
            have = len(self._bytes)
            want = 4 - have if have < 4 else 4 + struct.unpack_from(">I", self._bytes)[0] - have
            if want == 0:
                return True
            try:
                data, ancillary, flags, _ = self._socket.recvmsg(
                    min(want, 65536), socket.CMSG_SPACE(4 * wire.MAX_DESCRIPTORS), socket.MSG_CMSG_CLOEXEC
                )
            except ConnectionResetError:
                continue
            except BlockingIOError:
                raise
            except OSError:
                return False
            for _, _, numbers in ancillary:
                self._descriptors += array.array("i", numbers)
            self._too_many |= bool(flags & socket.MSG_CTRUNC)
            self._bytes += data
            if not data:
                return False

    async def wait_readable(self) -> None:
        await trio.lowlevel.checkpoint()
        while True:
            self._check_open()
            with contextlib.suppress(BlockingIOError):
                self._complete()
                return
            await trio.lowlevel.wait_readable(self._socket)

    async def wait_writable(self) -> None:
        self._check_open()
        await trio.lowlevel.wait_writable(self._socket)

    def _check_open(self) -> None:
        if self._socket.fileno() < 0:
            raise trio.ClosedResourceError("closed at this end")

    def close(self) -> None:
        if self._socket.fileno() < 0:
            return
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        if trio.lowlevel.in_trio_run():
            trio.lowlevel.notify_closing(self._socket)
        self._socket.close()
        _close(self._descriptors)
        self._descriptors = []


class TestStream(TransportSuite):
    """The suite asks for nothing that only our two can do."""

    def pair(self) -> Pair:
        left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        return StreamTransport(left), StreamTransport(right)


def _close(descriptors: Sequence[int]) -> None:
    for each in descriptors:
        os.close(each)


# -- broken ones: each is right but for one thing ---------------------------------------------------------------------


class Honest:
    """Passes everything on to a memory transport; what is wrong with a subclass stands in it alone."""

    def __init__(self, inner: MemoryTransport) -> None:
        self.inner = inner

    def send(self, packet: bytes, descriptors: Sequence[int] = ()) -> None:
        self.inner.send(packet, descriptors)

    def receive(self) -> Packet:
        return self.inner.receive()

    async def wait_readable(self) -> None:
        await self.inner.wait_readable()

    async def wait_writable(self) -> None:
        await self.inner.wait_writable()

    def close(self) -> None:
        self.inner.close()


class Gluing(Honest):
    """Gives all packets that wait as one."""

    def receive(self) -> Packet:
        packet, descriptors = self.inner.receive()
        with contextlib.suppress(BlockingIOError):
            while packet and (more := self.inner.receive())[0]:
                packet, descriptors = bytes(packet) + bytes(more[0]), descriptors + more[1]
        return packet, descriptors


class Cutting(Honest):
    """Carries no more than some of a large packet."""

    def send(self, packet: bytes, descriptors: Sequence[int] = ()) -> None:
        self.inner.send(packet[: wire.MAX_PACKET - 1], descriptors)


class Boundless(Honest):
    """Takes whatever it is given, and keeps it until the other end has room, which it may never have."""

    def __init__(self, inner: MemoryTransport) -> None:
        super().__init__(inner)
        self.kept: list[bytes] = []

    def send(self, packet: bytes, descriptors: Sequence[int] = ()) -> None:
        try:
            self.inner.send(packet, descriptors)
        except BlockingIOError:
            self.kept.append(packet)


class Giving(Honest):
    """Takes the sender's descriptors instead of copies."""

    def send(self, packet: bytes, descriptors: Sequence[int] = ()) -> None:
        self.inner.send(packet, descriptors)
        for each in descriptors:
            with open(os.devnull, "rb") as null:
                os.dup2(null.fileno(), each, inheritable=False)  # as good as closed, and safe in a test


class Inheritable(Honest):
    """Forgets the flag."""

    def receive(self) -> Packet:
        packet, descriptors = self.inner.receive()
        for each in descriptors:
            os.set_inheritable(each, True)
        return packet, descriptors


class Turning(Honest):
    """Gives descriptors in another order than they were sent."""

    def receive(self) -> Packet:
        packet, descriptors = self.inner.receive()
        return packet, descriptors[::-1]


class Modest(Honest):
    """Leaves out the descriptors that are too many, and says nothing."""

    def send(self, packet: bytes, descriptors: Sequence[int] = ()) -> None:
        self.inner.send(packet, descriptors[: wire.MAX_DESCRIPTORS])


class Lenient(Honest):
    """Gives the program what is over the limits."""

    def receive(self) -> Packet:
        try:
            return self.inner.receive()
        except ProtocolViolation:
            return bytes(wire.MAX_PACKET + 1), []


class Leaking(Honest):
    """Makes one copy of each descriptor too many."""

    left: ClassVar[list[int]] = []

    def send(self, packet: bytes, descriptors: Sequence[int] = ()) -> None:
        self.inner.send(packet, descriptors)
        self.left.extend(os.dup(each) for each in descriptors)


class Skipping(Honest):
    """Leaves out descriptors that are not open."""

    def send(self, packet: bytes, descriptors: Sequence[int] = ()) -> None:
        self.inner.send(packet, [each for each in descriptors if os.path.exists(f"/proc/self/fd/{each}")])


class Impatient(Honest):
    """Takes nothing for the end."""

    def receive(self) -> Packet:
        try:
            return self.inner.receive()
        except BlockingIOError:
            return b"", []


class Endless(Honest):
    """Says that nothing is there when nothing will ever come."""

    def receive(self) -> Packet:
        packet, descriptors = self.inner.receive()
        if not packet:
            raise BlockingIOError("nothing there")
        return packet, descriptors


class Silent(Honest):
    """Does not tell the sender that nobody is there."""

    def send(self, packet: bytes, descriptors: Sequence[int] = ()) -> None:
        with contextlib.suppress(BrokenPipeError):
            self.inner.send(packet, descriptors)


class Hasty(Honest):
    """Does not wait for a packet."""

    async def wait_readable(self) -> None:
        await trio.lowlevel.checkpoint()


class Deaf(Honest):
    """Sleeps on whatever comes."""

    async def wait_readable(self) -> None:
        await trio.sleep_forever()


class Stuck(Honest):
    """Sleeps on when there is room again."""

    async def wait_writable(self) -> None:
        await trio.sleep_forever()


class Careless(Honest):
    """Waiting on an end that was closed here is no error."""

    async def wait_readable(self) -> None:
        with contextlib.suppress(trio.ClosedResourceError):
            await self.inner.wait_readable()


ENDING: Final = {"test_what_was_sent_before_the_end_arrives", "test_unread_packets_do_not_hide_what_the_other_had_sent"}
CLOSED_HERE: Final = {
    "test_waiting_on_an_end_closed_before_is_an_error",
    "test_waiting_on_an_end_closed_meanwhile_is_an_error",
}
ROOM: Final = {
    "test_sending_too_much_would_block",
    "test_waiting_to_send_ends_when_there_is_room",
}
BROKEN: Final[dict[type[Honest], set[str]]] = {
    Gluing: {
        "test_packets_keep_their_boundaries",
        "test_sending_too_much_would_block",
        "test_what_was_sent_before_the_end_arrives",
        "test_waiting_to_send_ends_when_there_is_room",
    },
    Cutting: {
        "test_largest_packet_is_carried",
        "test_larger_packet_is_a_violation_where_it_arrives",
        "test_sending_too_much_would_block",
    },
    Boundless: {
        *ROOM,
        "test_waiting_ends_when_the_other_end_closes",
        "test_waiting_on_an_end_closed_meanwhile_is_an_error",
    },
    Giving: {"test_descriptors_travel_as_copies"},
    Inheritable: {"test_descriptors_are_closed_on_exec"},
    Turning: {"test_descriptors_travel_as_copies"},
    Modest: {"test_most_descriptors_are_carried_and_more_are_a_violation"},
    Lenient: {
        "test_larger_packet_is_a_violation_where_it_arrives",
        "test_most_descriptors_are_carried_and_more_are_a_violation",
    },
    Leaking: {
        "test_larger_packet_is_a_violation_where_it_arrives",
        "test_descriptors_travel_as_copies",
        "test_descriptors_are_closed_on_exec",
        "test_most_descriptors_are_carried_and_more_are_a_violation",
        "test_closed_end_receives_nothing",
    },
    Skipping: {"test_descriptor_that_is_not_open_cannot_be_sent"},
    Impatient: {
        "test_receiving_nothing_would_block",
        "test_sending_too_much_would_block",
        "test_descriptor_that_is_not_open_cannot_be_sent",
    },
    Endless: {*ENDING, "test_closed_end_receives_nothing", "test_waiting_ends_when_the_other_end_closes"},
    Silent: {"test_sending_to_a_closed_end_is_a_broken_pipe", "test_waiting_ends_when_the_other_end_closes"},
    Hasty: {
        "test_waiting_ends_when_there_is_something",
        "test_waiting_ends_when_the_other_end_closes",
        *CLOSED_HERE,
    },
    Deaf: {
        "test_waiting_ends_when_there_is_something",
        "test_waiting_does_not_sleep_without_need",
        "test_waiting_ends_when_the_other_end_closes",
        *CLOSED_HERE,
    },
    Stuck: {
        "test_waiting_to_send_ends_when_there_is_room",
        "test_waiting_does_not_sleep_without_need",
        "test_waiting_ends_when_the_other_end_closes",
        *CLOSED_HERE,
    },
    Careless: CLOSED_HERE,
}


def suite_of(kind: type[Honest]) -> type[TransportSuite]:
    class Suite(TransportSuite):
        def pair(self) -> Pair:
            one, other = memory_pair()
            return kind(one), kind(other)

    return Suite


def failures(suite: type[TransportSuite]) -> set[str]:
    """The checks of a suite that fail, each run as pytest would, but on a clock that does not wait for what hangs."""
    failed = set()
    for name, check in inspect.getmembers(suite, inspect.isfunction):
        if not name.startswith("test_"):
            continue
        try:
            with suite().opened() as ends:
                if inspect.iscoroutinefunction(check):
                    trio.run(check, suite(), ends, clock=trio.testing.MockClock(autojump_threshold=0.01))
                else:
                    check(suite(), ends)
        except (Exception, BaseExceptionGroup, pytest.fail.Exception):
            failed.add(name)
    return failed


def test_what_is_broken_is_told_from_what_is_not() -> None:
    """The wrapper that the broken ones are made of is not broken itself."""
    assert failures(suite_of(Honest)) == set()


@pytest.mark.parametrize("kind", BROKEN, ids=lambda kind: kind.__name__)
def test_broken_transport_fails_exactly_what_it_breaks(kind: type[Honest]) -> None:
    """No check passes what it is there to find, and none fails for what is the matter of another."""
    try:
        assert failures(suite_of(kind)) == BROKEN[kind]
    finally:
        _close(Leaking.left)
        Leaking.left.clear()


def test_every_check_of_the_suite_finds_something() -> None:
    """A check that no broken transport fails would be no check."""
    checks = {name for name in vars(TransportSuite) if name.startswith("test_")}
    assert checks - set().union(*BROKEN.values()) == set()


# -- the suite as others get it ---------------------------------------------------------------------------------------


def test_page_of_the_suite_shows_what_works(tmp_path: Path) -> None:
    """The example of the reference is a test module that passes where nothing of ours is configured."""
    page = (ROOT / "docs" / "reference" / "transports.md").read_text()
    (example,) = re.findall(r"^```python\n(# test_\w+\.py\n.*?)^```$", page, re.MULTILINE | re.DOTALL)
    (tmp_path / "test_mine.py").write_text(example)
    done = run_python("-m", "pytest", "-q", "-p", "no:cacheprovider", f"--rootdir={tmp_path}", str(tmp_path))
    checks = len([name for name in vars(TransportSuite) if name.startswith("test_")])
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{checks} passed in" in done.stdout


def test_page_of_the_suite_names_every_check() -> None:
    """One line of the reference for each check, with its name, and no other."""
    page = (ROOT / "docs" / "reference" / "transports.md").read_text()
    named = re.findall(r"^\| `(test_\w+)` \|", page, re.MULTILINE)
    assert named == [name for name in vars(TransportSuite) if name.startswith("test_")]


def test_programs_do_not_need_pytest() -> None:
    """retinue.pipes does not import the suite; the suite says what it misses."""
    code = (
        "import sys; sys.modules['pytest'] = None\n"
        "import retinue.pipes, retinue.svm\n"
        "try:\n    import retinue.pipes.testing\n"
        "except ImportError as exc:\n    print(exc)"
    )
    done = run_python("-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("retinue.pipes.testing needs pytest and pytest-trio (pytest is missing)")


def test_pair_must_be_said() -> None:
    """A suite that does not say how its pair is made fails with its own name."""

    class Empty(TransportSuite):
        pass

    with pytest.raises(NotImplementedError, match="Empty does not say how"), Empty().opened():
        pass


def run_python(*args: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, *args], capture_output=True, text=True, timeout=60, check=False, cwd="/")


# -- what is of our sockets alone -------------------------------------------------------------------------------------


def test_end_reaches_the_other_although_somebody_holds_a_duplicate() -> None:
    """The control program keeps a duplicate of one end; closing is by shutdown."""
    left, right = socket_pair()
    with right.dup() as held, left.dup():
        one, other = SocketTransport(left), SocketTransport(right)
        other.close()
        assert one.receive() == (b"", [])
        one.close()
        assert held.recv(1) == b""


def test_holder_of_a_duplicate_can_end_it() -> None:
    """The control program cuts a path by shutdown of its duplicate: both ends see the end, after what was sent."""
    left, right = socket_pair()
    one, other = SocketTransport(left), SocketTransport(right)
    with right.dup() as held:
        one.send(b"on its way")
        held.shutdown(socket.SHUT_RDWR)
        assert bytes(other.receive()[0]) == b"on its way"
        for end in (one, other):
            assert end.receive() == (b"", [])
            with pytest.raises(BrokenPipeError):
                end.send(b"x")
    one.close()
    other.close()


def test_socket_pair_is_as_promised() -> None:
    """Packets, no waiting, not inherited."""
    for each in socket_pair():
        with each:
            assert each.type == socket.SOCK_SEQPACKET
            assert not each.getblocking()
            assert not each.get_inheritable()
