"""Datagrams between a connected UDP socket and a path: each is one message.

Nobody waits here: a datagram for which there is no room is dropped, as UDP may, and counted. A machine that reads
slowly holds at most WINDOW bytes of this one's storage.
"""

import errno
import logging
import os
import socket
from collections import deque
from typing import Final

import trio

from retinue.pipes import Path, PathError
from retinue.pipes.message import close_all
from retinue.services.tcpip.destination import Destination
from retinue.services.tcpip.tallies import Tallies

log: Final = logging.getLogger("retinue.tcpip")

# More than a UDP datagram can have (65,507 bytes over IPv4).
MAX_DATAGRAM: Final = 64 * 1024
# Bytes of datagrams that a machine may have left untaken: some more than its path allows of ordinary ones.
WINDOW: Final = 256 * 1024
# Datagrams read without looking at anything else: what comes in must not starve the other tasks.
BATCH: Final = 64
# A datagram that the kernel did not take: it has no room, or the datagram is too large for it.
_NOT_TAKEN: Final = frozenset({errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM, errno.EMSGSIZE})


class DatagramRelay:
    """Carries datagrams between a socket and a path until the path has ended, or nothing has come for ``idle_time``."""

    def __init__(
        self, sock: socket.socket, path: Path, destination: Destination, tallies: Tallies, *, idle_time: float
    ) -> None:
        self._sock = sock
        self._path = path
        self._destination = destination
        self._tallies = tallies
        self._idle_time = idle_time
        self._latest = trio.current_time()
        self._untaken: deque[int] = deque()  # the sizes of datagrams that the machine has not taken, oldest first
        self._untaken_bytes = 0

    async def run(self) -> None:
        """Relay to the end. The path is severed then; the socket is for the caller to close."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._inward)
            nursery.start_soon(self._watch)
            await self._outward()
            nursery.cancel_scope.cancel()

    async def _watch(self) -> None:
        while True:
            end = self._latest + self._idle_time
            if end <= trio.current_time():
                break
            await trio.sleep_until(end)
        self._path.sever("idle", f"no datagram for {self._idle_time:g} s")

    async def _outward(self) -> None:
        async for message in self._path:
            close_all(message.descriptors)
            if message.wants_reply or type(message.body) is not bytes:
                self._path.sever("refused", "a datagram is a one-way message of bytes")
                return
            self._latest = trio.current_time()
            try:
                # What would wait here for the kernel would fill this machine's storage.
                self._sock.send(message.body)
            except OSError as exc:
                self._failed(exc)

    async def _inward(self) -> None:
        try:
            while True:
                await trio.lowlevel.wait_readable(self._sock)
                for _ in range(BATCH):
                    try:
                        self._deliver(self._sock.recv(MAX_DATAGRAM))
                    except BlockingIOError:
                        break
                    except OSError as exc:
                        self._failed(exc)
        except PathError:  # _outward sees the same
            pass

    def _deliver(self, datagram: bytes) -> None:
        self._latest = trio.current_time()
        outstanding = self._path.meter.outstanding
        while len(self._untaken) > outstanding:
            self._untaken_bytes -= self._untaken.popleft()
        if self._untaken_bytes + len(datagram) > WINDOW:
            self._dropped("in")
            return
        try:
            self._path.send_nowait(datagram)
        except trio.WouldBlock:
            self._dropped("in")
        else:
            self._untaken.append(len(datagram))
            self._untaken_bytes += len(datagram)

    def _failed(self, error: OSError) -> None:
        """The kernel did not take a datagram, or the network has answered an earlier one with an error (ICMP)."""
        if error.errno in _NOT_TAKEN:
            self._dropped("out")
            return
        number = error.errno or 0
        try:
            # The machine learns it as it would from a connected socket of its own.
            self._path.send_nowait({"type": "udp.error", "errno": number, "text": os.strerror(number)})
        except (trio.WouldBlock, PathError):
            self._dropped("in")
        else:
            self._untaken.append(0)

    def _dropped(self, direction: str) -> None:
        machine, destination = self._path.peer, self._destination

        def tell(count: int) -> None:
            datagrams = "a datagram was" if count == 1 else f"{count} datagrams were"
            way = f"from {destination} to {machine}" if direction == "in" else f"from {machine} to {destination}"
            about = {"machine": machine, "destination": str(destination), "count": count, "direction": direction}
            log.warning("%s dropped %s: no room", datagrams, way, extra=about)

        self._tallies.happen(machine, f"drop {direction} {destination}", tell)
