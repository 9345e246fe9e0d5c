"""UNIX sockets of the host that a machine is connected to, as far as its ``host_sockets`` names them.

A machine opens no file and makes no UNIX socket that has a name: it asks here, and gets a descriptor.

``stream``: the connected socket itself. One of a stream can be connected to nothing else (connect(2) and a destination
of sendto(2) are EISCONN), so it leads where the topology says and nowhere else. The control program sees none of what
passes, and keeps no descriptor of it.

``datagram``: a path to the control program, which hands each message on as one datagram. Whoever holds a datagram
socket may send to any other one whose name it can say, and the abstract names of the host need no file: so no machine
gets one. The path has the usual bounds; while the other end has no room, messages wait.
"""

import contextlib
import errno
import os
import socket
from collections import Counter
from collections.abc import Callable
from typing import Final, Protocol

import trio

from retinue.cp.directory import MachineEntry
from retinue.cp.directory.host_sockets import wrong_address
from retinue.cp.offences import Offences
from retinue.pipes import AccessDenied, Path, Rejected, SocketTransport, socket_pair, wire
from retinue.pipes.message import close_all

__all__ = ["HostSockets"]

#: Datagram sockets of one machine at a time: each is two descriptors and three tasks in the control program.
MOST: Final = 16
#: Connections that are being made at a time: a path on a file system that does not answer holds up one of them.
CONNECTING: Final = 4
#: Messages on their way from the machine.
LIMIT: Final = 64

_KINDS: Final = {"stream": socket.SOCK_STREAM, "datagram": socket.SOCK_DGRAM}
_WHY: Final = {
    errno.ENOENT: "there is no such socket",
    errno.ECONNREFUSED: "nobody listens there",
    errno.EAGAIN: "more connections wait there than it takes",
    errno.EPROTOTYPE: "the socket there is of another kind",
    errno.EACCES: "the user that the system runs as may not write to it",
}
_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class Holder(Protocol):
    """A process of a machine."""

    @property
    def name(self) -> str: ...

    @property
    def generation(self) -> int: ...

    @property
    def entry(self) -> MachineEntry: ...


class HostSockets:
    """Of one running system; what is handed on runs in ``nursery``."""

    def __init__(self, offences: Offences, nursery: trio.Nursery) -> None:
        self._offences = offences
        self._nursery = nursery
        self._connecting = trio.CapacityLimiter(CONNECTING)
        self._open: Counter[tuple[str, int]] = Counter()

    async def connect(self, holder: Holder, address: str, kind: str) -> int:
        """A descriptor for the machine's process, the caller's to close.

        AccessDenied unless its topology names the address; Rejected ``bad-kind``, ``bad-address``, ``exhausted``, or
        ``unreachable`` with the ``errno`` when the host says no.
        """
        if kind not in _KINDS:
            raise Rejected("bad-kind", f"a socket is of the kind {' or '.join(_KINDS)}")
        problem, _ = wrong_address(address)
        if problem:
            raise Rejected("bad-address", f"the address of a socket was asked for, {problem}")
        if address not in holder.entry.host_sockets:
            self._deny(holder, address)
        key = holder.name, holder.generation
        if kind == "datagram":
            if self._open[key] >= MOST:
                raise Rejected("exhausted", f"{holder.name} has {MOST} datagram sockets, and no machine may have more")
            self._open[key] += 1
        try:
            sock = await self._dial(address, kind)
            if kind == "stream":
                return sock.detach()
            try:
                ours, theirs = socket_pair()
            except OSError as exc:
                sock.close()
                raise _refusal(address, exc) from exc
        except BaseException:
            if kind == "datagram":
                self._ended(key)
            raise
        path = Path(
            SocketTransport(ours),
            name=f"{holder.name} to {address}",
            peer=holder.name,
            limit=LIMIT,
            largest=wire.MAX_PACKET,
        )
        self._nursery.start_soon(self._hand_on, Datagrams(path, sock, address), lambda: self._ended(key))
        return theirs.detach()

    def _deny(self, holder: Holder, address: str) -> None:
        declared = holder.entry.declared
        listed = ", ".join(f'"{each}"' for each in (*holder.entry.host_sockets, address))
        text = (
            f"{holder.name} may not be connected to the host's socket {address}; "
            f"to allow it, put  host_sockets = [{listed}]  under [machines.{declared}]"
        )
        self._offences.tell(holder.name, "host-socket", text)
        raise AccessDenied(text)

    async def _dial(self, address: str, kind: str) -> socket.socket:
        """Connected, and never waiting."""
        with contextlib.ExitStack() as stack:
            try:
                # Closed on exec, as all that Python makes.
                sock = stack.enter_context(socket.socket(socket.AF_UNIX, _KINDS[kind]))
                sock.setblocking(False)
                name = f"\0{address[1:]}" if address.startswith("@") else address
                # The socket does not wait, but to look the path up may take as long as its file system likes.
                await trio.to_thread.run_sync(sock.connect, name, abandon_on_cancel=True, limiter=self._connecting)
            except OSError as exc:
                raise _refusal(address, exc) from exc
            stack.pop_all()
            return sock

    async def _hand_on(self, datagrams: "Datagrams", ended: Callable[[], None]) -> None:
        try:
            await datagrams.run()
        finally:
            ended()
            self._offences.tell_violation(datagrams.path.peer, datagrams.path)

    def _ended(self, key: tuple[str, int]) -> None:
        self._open[key] -= 1
        if not self._open[key]:
            del self._open[key]


class Datagrams:
    """Hands on what comes on a path: a message of bytes is a datagram. Takes both over.

    A call is answered when everything before it (and its own datagram, if it has bytes) is in the hands of whoever
    reads the socket: ``nil`` asks for just that. The path ends ``unreachable`` when that one has gone.
    """

    def __init__(self, path: Path, sock: socket.socket, address: str) -> None:
        self.path = path
        self._sock = sock
        self._address = address
        self._waiting: trio.CancelScope | None = None

    async def run(self) -> None:
        """To the end of the path."""
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(self.path.run)
                nursery.start_soon(self._watch)
                await self._serve()
                nursery.cancel_scope.cancel()
        finally:
            self.path.sever("lost", "the control program has given it up")  # no effect after another end
            self._sock.close()

    async def _serve(self) -> None:
        async for message in self.path:
            close_all(message.descriptors)
            untrusted = message.body
            if type(untrusted) is bytes:
                try:
                    if not await self._send(untrusted):
                        return
                except OSError as exc:
                    self.path.sever("unreachable", _text(self._address, exc))
                    return
            elif untrusted is not None or not message.wants_reply:
                self.path.sever("violation", "a datagram is a message of bytes")
                return
            if message.wants_reply:
                self.path.reply(message, None)

    async def _send(self, datagram: bytes) -> bool:
        """Send one, as soon as there is room; False: the path has ended before there was."""
        while True:
            try:
                self._sock.send(datagram)
                return True
            except BlockingIOError:
                if self.path.severed is not None:
                    return False
                with trio.CancelScope() as self._waiting:
                    await trio.lowlevel.wait_writable(self._sock)
                self._waiting = None

    async def _watch(self) -> None:
        await self.path.wait_severed()
        if self._waiting is not None:
            self._waiting.cancel()


def _text(address: str, error: OSError) -> str:
    return f"{address}: {_WHY.get(error.errno or 0) or error.strerror or error}"


def _refusal(address: str, error: OSError) -> Rejected:
    if error.errno in _EXHAUSTED:
        return Rejected("exhausted", f"the host has no room for a connection: {os.strerror(error.errno or 0)}")
    return Rejected("unreachable", _text(address, error), {"errno": error.errno or 0})
