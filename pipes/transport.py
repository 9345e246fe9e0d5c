"""What carries packets: a SOCK_SEQPACKET socket between processes, or a pair of queues inside one.

Both keep boundaries, carry descriptors and never wait in :meth:`~Transport.send` and :meth:`~Transport.receive`; both
pass ``tests/pipes/test_transport.py``.
"""

import array
import contextlib
import os
import socket
import threading
from collections import deque
from collections.abc import Sequence
from typing import Any, Protocol

import trio

from retinue.pipes import wire
from retinue.pipes.errors import ProtocolViolation

Packet = tuple[bytes | memoryview, list[int]]


class Transport(Protocol):
    """One end of a carrier of packets."""

    def send(self, packet: bytes, descriptors: Sequence[int] = ()) -> None:
        """Hand over one packet of 1 to MAX_PACKET bytes, with copies of the descriptors.

        BlockingIOError when there is no room now, BrokenPipeError when nobody can receive it any more.
        """

    def receive(self) -> Packet:
        """The next packet and its descriptors, which are now the caller's to close; ``(b"", [])`` at the end.

        The bytes are valid until the next receive in this thread. BlockingIOError when nothing is there now;
        :exc:`ProtocolViolation` for a packet over the limits.
        """

    async def wait_readable(self) -> None:
        """Until :meth:`receive` would not raise BlockingIOError."""

    async def wait_writable(self) -> None:
        """Until :meth:`send` would probably not raise BlockingIOError."""

    def close(self) -> None:
        """End it at both ends: what is on its way still arrives, then the end. A second time has no effect."""


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """A connected pair for :class:`SocketTransport`: SOCK_SEQPACKET, non-blocking, closed on exec."""
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    left.setblocking(False)
    right.setblocking(False)
    return left, right


class _Buffer(threading.local):
    """One fixed receive buffer for each thread: a fresh one of this size for each packet costs ten times more."""

    def __init__(self) -> None:
        # One byte more than allowed shows a packet that is too large.
        self.view = memoryview(bytearray(wire.MAX_PACKET + 1))
        self.ancillary = socket.CMSG_SPACE(wire.MAX_DESCRIPTORS * array.array("i").itemsize)


_buffer = _Buffer()


class SocketTransport:
    """Packets over a connected SOCK_SEQPACKET socket, which it takes over."""

    __slots__ = ("_socket",)

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._socket = sock

    def send(self, packet: bytes, descriptors: Sequence[int] = ()) -> None:
        try:
            if descriptors:
                socket.send_fds(self._socket, [packet], list(descriptors), socket.MSG_NOSIGNAL)
            else:
                self._socket.send(packet, socket.MSG_NOSIGNAL)
        except (BlockingIOError, BrokenPipeError):
            raise
        except OSError as exc:  # closed at this end, reset by the other
            raise BrokenPipeError(exc.errno, exc.strerror) from exc

    def receive(self) -> Packet:
        view = _buffer.view
        try:
            count, ancillary, flags, _ = self._socket.recvmsg_into([view], _buffer.ancillary, socket.MSG_CMSG_CLOEXEC)
        except ConnectionResetError:
            # Told once when the other end closed with unread packets (unix(7)); what it had sent is still queued.
            return self.receive()
        except BlockingIOError:
            raise
        except OSError:
            return b"", []
        descriptors = _descriptors(ancillary) if ancillary else []
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC) or count > wire.MAX_PACKET:
            for each in descriptors:
                os.close(each)
            raise ProtocolViolation(
                f"a packet over {wire.MAX_PACKET} bytes"
                if count > wire.MAX_PACKET
                else "too many descriptors in a packet"
            )
        return view[:count], descriptors

    async def wait_readable(self) -> None:
        await trio.lowlevel.wait_readable(self._socket)

    async def wait_writable(self) -> None:
        await trio.lowlevel.wait_writable(self._socket)

    def close(self) -> None:
        if self._socket.fileno() < 0:
            return
        # close(2) alone would not end it: the control program keeps a duplicate of one end.
        with contextlib.suppress(OSError):  # the other end was first
            self._socket.shutdown(socket.SHUT_RDWR)
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
        self.packets: deque[tuple[bytes, list[int]]] = deque()
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

    __slots__ = ("_in", "_out")

    def __init__(self, incoming: Any, outgoing: Any) -> None:
        self._in: _Channel = incoming
        self._out: _Channel = outgoing

    def send(self, packet: bytes, descriptors: Sequence[int] = ()) -> None:
        if self._out.closed:
            raise BrokenPipeError("the other end is closed")
        if len(self._out.packets) >= _Channel.CAPACITY:
            raise BlockingIOError("no room")
        self._out.packets.append((bytes(packet), [os.dup(each) for each in descriptors]))
        self._out.notify()

    def receive(self) -> Packet:
        if self._in.packets:
            packet, descriptors = self._in.packets.popleft()
            self._in.notify()
            if len(packet) > wire.MAX_PACKET or len(descriptors) > wire.MAX_DESCRIPTORS:
                for each in descriptors:
                    os.close(each)
                raise ProtocolViolation(f"a packet over {wire.MAX_PACKET} bytes or with too many descriptors")
            return packet, descriptors
        if self._in.closed:
            return b"", []
        raise BlockingIOError("nothing there")

    async def wait_readable(self) -> None:
        await trio.lowlevel.checkpoint()
        while not self._in.packets and not self._in.closed:
            await self._in.change()

    async def wait_writable(self) -> None:
        await trio.lowlevel.checkpoint()
        while len(self._out.packets) >= _Channel.CAPACITY and not self._out.closed:
            await self._out.change()

    def close(self) -> None:
        for channel in (self._in, self._out):
            if not channel.closed:
                channel.closed = True
                channel.notify()


def memory_pair() -> tuple[MemoryTransport, MemoryTransport]:
    """Two connected ends inside this process."""
    one, other = _Channel(), _Channel()
    return MemoryTransport(one, other), MemoryTransport(other, one)
