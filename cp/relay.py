"""A relay: carries the packets of one path through the control program while somebody looks at the path.

It stands between two socket pairs, hands every packet on as it came, with its descriptors, and shows each one to a
listener. It holds one packet in each direction and takes the next when that one is gone: a reader that is slow holds
its writer up as if the two were connected, and nothing is kept here.
"""

import array
import contextlib
import errno
import socket
from collections.abc import Callable, Sequence
from typing import Final, Literal

import trio

from retinue.pipes import wire
from retinue.pipes.message import close_all

# "->" from the originator of the path to its target, "<-" back.
Direction = Literal["->", "<-"]
# Sees a packet that was handed on: its bytes, and descriptors that are open for the length of the call.
Listener = Callable[[Direction, bytes, Sequence[int]], None]

# Packets in one direction before other tasks have their turn.
TURN: Final = 32
# Packets in one direction that are handed on at the end, without waiting: more than a socket holds.
LAST: Final = 512
# Seconds until a packet is tried again that the host had no room for.
AGAIN: Final = 0.02

# One descriptor more than a packet may carry, so that the receiver finds out, as it would without a relay.
_ROOM: Final = socket.CMSG_SPACE((wire.MAX_DESCRIPTORS + 1) * array.array("i").itemsize)
_RECEIVE_FLAGS: Final = int(socket.MSG_CMSG_CLOEXEC)
_SEND_FLAGS: Final = int(socket.MSG_NOSIGNAL)
# What send(2) says when the host is short of memory, or of descriptors on their way (unix(7)).
_SHORT: Final = frozenset({errno.ENOBUFS, errno.ENOMEM, errno.ETOOMANYREFS})
# Where every packet arrives, to be copied out at once: all relays run in one thread.
_buffer: Final = memoryview(bytearray(wire.MAX_PACKET + 1))


class Relay:
    """Carries packets between the control program's ends of two socket pairs, which it takes over.

    The end of one side, or of :meth:`run`, is the end of both. An error of the listener ends the listening, never the
    path: it is kept in ``failure``.
    """

    def __init__(self, origin: socket.socket, target: socket.socket, listener: Listener) -> None:
        self.failure: Exception | None = None
        self._listener: Listener | None = listener
        self._ends = (origin, target)
        for end in self._ends:
            end.setblocking(False)
        self._ways = (_Way(self, "->", origin, target), _Way(self, "<-", target, origin))

    async def run(self) -> None:
        """Carry until one side has ended or this is cancelled; then everything is closed. Raises nothing."""
        try:
            async with trio.open_nursery() as nursery:
                for way in self._ways:
                    nursery.start_soon(way.carry, nursery.cancel_scope)
        finally:
            self.cut()
            for end in self._ends:
                end.close()

    def cut(self) -> None:
        """End it from outside: both sides find the end behind what is on its way, and :meth:`run` returns."""
        # Messages would come again on the next binding; the last word of a path that was severed just now would not.
        for way in self._ways:
            way.carry_rest()
        for end in self._ends:
            with contextlib.suppress(OSError):  # the other end was first, or it is closed
                end.shutdown(socket.SHUT_RDWR)

    def show(self, direction: Direction, data: bytes, descriptors: Sequence[int]) -> None:
        """Show a packet to the listener."""
        if self._listener is not None:
            try:
                self._listener(direction, data, descriptors)
            except Exception as exc:
                self._listener, self.failure = None, exc


class _End(Exception):
    """The source has ended, or what it sent cannot be carried on."""


class _Way:
    """One direction."""

    def __init__(self, relay: Relay, direction: Direction, source: socket.socket, sink: socket.socket) -> None:
        self._relay = relay
        self._direction = direction
        self._source = source
        self._sink = sink
        self._gone = False  # nobody reads at the sink; its own last words may still be on their way
        self._stuck = False  # a packet was taken and waits for room

    async def carry(self, over: trio.CancelScope) -> None:
        """Until the source has ended, then ``over`` is cancelled."""
        try:
            while True:
                await trio.lowlevel.wait_readable(self._source)
                for _ in range(TURN):
                    try:
                        data, descriptors = self._receive()
                    except BlockingIOError:
                        break
                    try:
                        await self._deliver(data, descriptors)
                    finally:
                        close_all(descriptors)
        except _End:
            over.cancel()

    async def _deliver(self, data: bytes, descriptors: list[int]) -> None:
        self._stuck = True
        while True:
            try:
                self._send(data, descriptors)
                break
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self._sink)
            except OSError:
                await trio.sleep(AGAIN)
        self._stuck = False

    def carry_rest(self) -> None:
        """Hand on what is there, as far as there is room, without waiting."""
        if self._stuck:
            return
        with contextlib.suppress(OSError, _End):
            for _ in range(LAST):
                data, descriptors = self._receive()
                try:
                    self._send(data, descriptors)
                finally:
                    close_all(descriptors)

    def _receive(self) -> tuple[bytes, list[int]]:
        """The next packet. BlockingIOError when there is none now; an oversize one is cut to a byte too much."""
        while True:
            try:
                count, ancillary, flags, _ = self._source.recvmsg_into([_buffer], _ROOM, _RECEIVE_FLAGS)
                break
            except ConnectionResetError:
                continue  # told once when the other end closed with unread packets; what it had sent comes now
            except BlockingIOError:
                raise
            except OSError as exc:
                raise _End from exc
        descriptors: list[int] = []
        for _, _, data in ancillary:
            found = array.array("i")
            found.frombytes(data[: len(data) - len(data) % found.itemsize])
            descriptors += found
        if not count and not descriptors:
            raise _End
        if flags & socket.MSG_CTRUNC and len(descriptors) <= wire.MAX_DESCRIPTORS:
            # This process has no room for them. Cut here, the packet comes again on the next binding.
            close_all(descriptors)
            raise _End
        return bytes(_buffer[:count]), descriptors

    def _send(self, data: bytes, descriptors: list[int]) -> None:
        """Hand a packet on, or drop it when nobody reads. OSError when there is no room: BlockingIOError of the sink's,
        another of the host's.
        """
        if self._gone:
            return
        try:
            if descriptors:
                socket.send_fds(self._sink, [data], descriptors, _SEND_FLAGS)
            else:
                self._sink.send(data, _SEND_FLAGS)
        except BlockingIOError:
            raise
        except OSError as exc:
            if exc.errno in _SHORT:
                raise
            self._gone = True
        else:
            self._relay.show(self._direction, data, descriptors)
