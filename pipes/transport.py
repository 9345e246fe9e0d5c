"""What carries packets: a SOCK_SEQPACKET socket between processes, or a pair of queues inside one.

Both keep boundaries, carry descriptors and never wait in :meth:`~Transport.send` and :meth:`~Transport.receive`; both
pass ``tests/pipes/test_transport.py``.
"""

import array
import contextlib
import errno
import socket
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Protocol

import trio

from retinue.pipes import wire
from retinue.pipes.errors import ProtocolViolation
from retinue.pipes.message import close_all, copy_all

Packet = tuple[bytes | memoryview, list[int]]


class Transport(Protocol):
    """One end of a carrier of packets."""

    def send(self, packet: bytes, descriptors: Sequence[int] = ()) -> None:
        """Hand over one packet of 1 to MAX_PACKET bytes, with copies of the descriptors.

        BlockingIOError when there is no room now, BrokenPipeError when nobody can receive it any more or this end is
        closed, another OSError when the host cannot carry it (a descriptor that is not open, no memory).
        """

    def receive(self) -> Packet:
        """The next packet and its descriptors, which are now the caller's to close; ``(b"", [])`` at the end.

        The bytes are valid until the next receive in this thread. BlockingIOError when nothing is there now;
        :exc:`ProtocolViolation` for a packet over the limits.
        """

    def wait_readable(self) -> Awaitable[None]:
        """Until :meth:`receive` would not raise BlockingIOError. trio.ClosedResourceError when this end is closed."""

    def wait_writable(self) -> Awaitable[None]:
        """Until :meth:`send` would probably not raise BlockingIOError. ClosedResourceError likewise."""

    def close(self) -> None:
        """End it at both ends: what is on its way still arrives, then the end. A second time has no effect."""


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """A connected pair for :class:`SocketTransport`: SOCK_SEQPACKET, non-blocking, closed on exec."""
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in left, right:
        end.setblocking(False)
        # The kernel gives what its limit allows: by default twice what a socket has, six of the largest packets.
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    return left, right


class _Buffer(threading.local):
    """One fixed receive buffer for each thread: a fresh one of this size for each packet costs ten times more."""

    def __init__(self) -> None:
        # One byte more than allowed shows a packet that is too large.
        self.view = memoryview(bytearray(wire.MAX_PACKET + 1))
        # glibc gives the end of its heap back above 128 KiB, and would take a page fault for each page of each large
        # message. A block that was freed teaches it twice its size, 64 MiB at most (mallopt(3), M_MMAP_THRESHOLD); it
        # would learn from the messages themselves, but less. The zeros are never written, so no page is taken here.
        with contextlib.suppress(MemoryError):
            bytes((32 << 20) - (1 << 16))
        self.ancillary = socket.CMSG_SPACE(wire.MAX_DESCRIPTORS * array.array("i").itemsize)


_buffer = _Buffer()


# Plain numbers: to combine members of an enumeration for each packet costs as much as a system call.
_SEND_FLAGS: Final = int(socket.MSG_NOSIGNAL)
_RECEIVE_FLAGS: Final = int(socket.MSG_CMSG_CLOEXEC)
_FEWER: Final = int(socket.MSG_CTRUNC)
_CUT: Final = int(socket.MSG_TRUNC | socket.MSG_CTRUNC)

# What send(2) says when the other end is closed or was reset.
_GONE: Final = frozenset({errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN})


class SocketTransport:
    """Packets over a connected SOCK_SEQPACKET socket, which it takes over."""

    __slots__ = ("_socket", "closing")

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._socket = sock
        self.closing: Callable[[], None] | None = None  # called before its descriptor is closed

    def send(self, packet: bytes, descriptors: Sequence[int] = ()) -> None:
        try:
            if descriptors:
                socket.send_fds(self._socket, [packet], list(descriptors), _SEND_FLAGS)
            else:
                self._socket.send(packet, _SEND_FLAGS)
        except OSError as exc:
            if exc.errno in _GONE or self._socket.fileno() < 0:
                raise BrokenPipeError(exc.errno, exc.strerror) from exc
            raise

    def receive(self) -> Packet:
        view = _buffer.view
        try:
            count, ancillary, flags, _ = self._socket.recvmsg_into([view], _buffer.ancillary, _RECEIVE_FLAGS)
        except ConnectionResetError:
            # Told once when the other end closed with unread packets (unix(7)); what it had sent is still queued.
            return self.receive()
        except BlockingIOError:
            raise
        except OSError:
            return b"", []
        descriptors = _descriptors(ancillary) if ancillary else []
        if flags & _FEWER and len(descriptors) < wire.MAX_DESCRIPTORS:
            # This process has no room for them. Nobody is to blame: it ends here, and may go on over another socket.
            close_all(descriptors)
            return b"", []
        if flags & _CUT or count > wire.MAX_PACKET:
            close_all(descriptors)
            raise ProtocolViolation(
                f"a packet over {wire.MAX_PACKET} bytes"
                if count > wire.MAX_PACKET
                else "too many descriptors in a packet"
            )
        return view[:count], descriptors

    def wait_readable(self) -> Awaitable[None]:
        self._check_open()
        return trio.lowlevel.wait_readable(self._socket)  # noqa: ASYNC105  # without a coroutine of our own

    def wait_writable(self) -> Awaitable[None]:
        self._check_open()
        return trio.lowlevel.wait_writable(self._socket)  # noqa: ASYNC105

    def fileno(self) -> int:
        """Its descriptor, -1 when it is closed."""
        return self._socket.fileno()

    def _check_open(self) -> None:
        if self._socket.fileno() < 0:
            raise trio.ClosedResourceError("the transport was closed at this end")

    def close(self) -> None:
        if self.closing is not None:
            self.closing()
        if self._socket.fileno() < 0:
            return
        # close(2) alone would not end it: the control program keeps a duplicate of one end.
        with contextlib.suppress(OSError):  # the other end was first
            self._socket.shutdown(socket.SHUT_RDWR)
        if trio.lowlevel.in_trio_run():
            trio.lowlevel.notify_closing(self._socket)
        self._socket.close()


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    found = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            found.frombytes(data[: len(data) - len(data) % found.itemsize])
    return found.tolist()


class _Channel:
    """One direction of a memory pair: as many packets as a socket of the default size holds of the largest."""

    CAPACITY = 4

    def __init__(self) -> None:
        self.packets: deque[tuple[bytes, tuple[int, ...]]] = deque()
        self.closed = False
        self.changed: list[trio.Event] = []

    def notify(self) -> None:
        waiting, self.changed = self.changed, []
        for event in waiting:
            event.set()

    async def change(self) -> None:
        event = trio.Event()
        self.changed.append(event)
        await event.wait()


class MemoryTransport:
    """One end of a pair inside one process, for tests and for simulation on a virtual clock."""

    __slots__ = ("_closed", "_in", "_out")

    def __init__(self, incoming: _Channel, outgoing: _Channel) -> None:
        self._in = incoming
        self._out = outgoing
        self._closed = False

    def send(self, packet: bytes, descriptors: Sequence[int] = ()) -> None:
        if self._out.closed:
            raise BrokenPipeError("the other end is closed")
        if len(self._out.packets) >= _Channel.CAPACITY:
            raise BlockingIOError("no room")
        self._out.packets.append((bytes(packet), copy_all(descriptors)))
        self._out.notify()

    def receive(self) -> Packet:
        if self._in.packets:
            packet, descriptors = self._in.packets.popleft()
            self._in.notify()
            if len(packet) > wire.MAX_PACKET or len(descriptors) > wire.MAX_DESCRIPTORS:
                close_all(descriptors)
                raise ProtocolViolation(f"a packet over {wire.MAX_PACKET} bytes or with too many descriptors")
            return packet, list(descriptors)
        if self._in.closed:
            return b"", []
        raise BlockingIOError("nothing there")

    async def wait_readable(self) -> None:
        await trio.lowlevel.checkpoint()
        while not self._in.packets and not self._in.closed:
            await self._in.change()
        self._check_open()

    async def wait_writable(self) -> None:
        await trio.lowlevel.checkpoint()
        while len(self._out.packets) >= _Channel.CAPACITY and not self._out.closed:
            await self._out.change()
        self._check_open()

    def _check_open(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("the transport was closed at this end")

    def close(self) -> None:
        self._closed = True
        # Nobody can receive them any more; of a socket the kernel closes them.
        while self._in.packets:
            close_all(self._in.packets.popleft()[1])
        for channel in (self._in, self._out):
            if not channel.closed:
                channel.closed = True
                channel.notify()


def memory_pair() -> tuple[MemoryTransport, MemoryTransport]:
    """Two connected ends inside this process."""
    one, other = _Channel(), _Channel()
    return MemoryTransport(one, other), MemoryTransport(other, one)
