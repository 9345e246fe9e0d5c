"""UNIX sockets of the host that a machine is connected to, as far as its ``host_sockets`` names them.

A machine opens no file and makes no UNIX socket that has a name: it asks here, and gets a descriptor.

``stream``: the connected socket itself. One of a stream can be connected to nothing else (connect(2) and a destination
of sendto(2) are EISCONN), so it leads where the topology says and nowhere else. The control program sees none of what
passes, and keeps no descriptor of it.

``datagram``: a path to the control program, which hands each message on as one datagram. Whoever holds a datagram
socket may send to any other one whose name it can say, and the abstract names of the host need no file: so no machine
gets one. While the other end has no room, messages wait: LIMIT byte strings of MAX_DATAGRAM, and no descriptor.
"""

import contextlib
import errno
import json
import os
import socket
import traceback
from collections import Counter
from collections.abc import Callable
from typing import Final, Protocol

import trio

from retinue.cp.directory import MachineEntry
from retinue.cp.directory.host_sockets import wrong_address
from retinue.cp.offences import Offences
from retinue.cp.syslog import CRITICAL, Syslog
from retinue.pipes import AccessDenied, Message, Path, Rejected, SocketTransport, socket_pair, wire
from retinue.pipes.message import close_all

__all__ = ["HostSockets"]

#: Datagram sockets of one machine at a time: each is two descriptors and three tasks in the control program.
MOST: Final = 16
#: Connections that are being made at a time: a path on a file system that does not answer holds up one of them.
CONNECTING: Final = 4
#: Seconds that making one may take.
PATIENCE: Final = 5.0
#: Messages on their way from the machine.
LIMIT: Final = 32
#: Bytes of a datagram: as many as UDP could carry.
MAX_DATAGRAM: Final = 65507
#: Bytes that the kernel takes for one who reads slowly (and doubles, or makes fewer): the longest datagram must fit.
SEND_BUFFER: Final = 256 * 1024

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

    @property
    def leaving(self) -> object:
        """What it was asked to end for, if it was."""


class HostSockets:
    """Of one running system; what is handed on runs in ``nursery``."""

    def __init__(self, offences: Offences, syslog: Syslog, nursery: trio.Nursery) -> None:
        self._offences = offences
        self._syslog = syslog
        self._nursery = nursery
        #: The places of those that are being made; one that was given up has its own until the host has answered.
        self.connecting: Final = trio.CapacityLimiter(CONNECTING)
        self._open: Counter[tuple[str, int]] = Counter()

    async def connect(self, holder: Holder, address: str, kind: str) -> int:
        """A descriptor for the machine's process, the caller's to close.

        AccessDenied unless its topology names the address; Rejected ``bad-kind``, ``bad-address``, ``exhausted``,
        ``stopping`` for one that was asked to end, or with an ``errno`` ``unreachable`` when the host says no and
        ``timeout`` when it says nothing.
        """
        if kind not in _KINDS:
            raise Rejected("bad-kind", f"a socket is of the kind {' or '.join(_KINDS)}")
        problem, _ = wrong_address(address)
        if problem:
            raise Rejected("bad-address", f"the address of a socket was asked for, {problem}")
        if address not in holder.entry.host_sockets:
            self._deny(holder, address)
        if holder.leaving is not None:
            raise Rejected("stopping", f"{holder.name} is ending")
        if kind == "stream":
            return (await self._dial(address, kind)).detach()
        return await self._relay(holder, address)

    async def _relay(self, holder: Holder, address: str) -> int:
        """The machine's end of a path whose messages are handed on as datagrams."""
        key = holder.name, holder.generation
        if self._open[key] >= MOST:
            raise Rejected("exhausted", f"{holder.name} has {MOST} datagram sockets, and no machine may have more")
        self._open[key] += 1
        try:
            sock = await self._dial(address, "datagram")
            try:
                ours, theirs = socket_pair()
            except OSError as exc:
                sock.close()
                raise _refusal(address, exc) from exc
        except BaseException:
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
        listed = ", ".join(json.dumps(each, ensure_ascii=False) for each in (*holder.entry.host_sockets, address))
        text = (
            f"{holder.name} may not be connected to the host's socket {address}; "
            f"to allow it, put  host_sockets = [{listed}]  under [machines.{declared}]"
        )
        self._offences.tell(holder.name, "host-socket", text)
        raise AccessDenied(text)

    async def _dial(self, address: str, kind: str) -> socket.socket:
        """Connected, and never waiting."""
        try:
            with trio.fail_after(PATIENCE):
                # The socket does not wait, but to look the path up may take as long as its file system likes.
                return await trio.to_thread.run_sync(
                    _connect, address, _KINDS[kind], abandon_on_cancel=True, limiter=self.connecting
                )
        except trio.TooSlowError:
            text = f"{address} was not connected within {PATIENCE:g} s: the host has not looked up the paths asked for"
            raise Rejected("timeout", text, {"errno": errno.ETIMEDOUT}) from None
        except OSError as exc:
            raise _refusal(address, exc) from exc
        except RuntimeError as exc:
            raise Rejected("exhausted", "the host has no room for a thread") from exc

    async def _hand_on(self, datagrams: "Datagrams", ended: Callable[[], None]) -> None:
        path = datagrams.path
        try:
            await datagrams.run()
        except Exception as exc:
            # A bug of ours. It must not end the system because a machine has found it.
            trace = "".join(traceback.format_exception(exc))
            self._syslog.write(CRITICAL, f"handing on datagrams failed, {path.name}:\n{trace}")
        finally:
            ended()
            if datagrams.broken_rule is not None:
                self._offences.tell_rule(path.peer, path.name, datagrams.broken_rule)

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
        self._turn = trio.StrictFIFOLock()
        self._gone = False  # it takes nothing more
        self._broken_rule: str | None = None

    @property
    def broken_rule(self) -> str | None:
        """The rule that the machine broke, if it has: one of the protocol, or of datagrams."""
        return self._broken_rule or self.path.broken_rule

    async def run(self) -> None:
        """To the end of the path."""
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(self.path.run)
                await self.path.serve(self._take)
                nursery.cancel_scope.cancel()
        finally:
            self.path.sever("lost", "the control program has given it up")  # no effect after another end
            self._sock.close()

    async def _take(self, message: Message) -> None:
        """Cancelled while it waits for room when the path has ended."""
        close_all(message.descriptors)
        untrusted = message.body
        if type(untrusted) is bytes:
            if len(untrusted) > MAX_DATAGRAM:
                self._break(f"a datagram has {MAX_DATAGRAM} bytes at most")
                return
        elif untrusted is not None or not message.wants_reply:
            self._break("a datagram is a message of bytes")
            return
        try:
            self._turn.acquire_nowait()  # so that what finds room goes at once, also at the end of the path
        except trio.WouldBlock:
            await self._turn.acquire()
        try:
            if untrusted is not None and not self._gone:
                await self._send(untrusted)
        except OSError as exc:
            self._gone = True
            self.path.sever("unreachable", _text(self._address, exc))
        finally:
            self._turn.release()

    def _break(self, rule: str) -> None:
        if self.path.severed is None:
            self._broken_rule = rule
            self.path.sever("violation", rule)

    async def _send(self, datagram: bytes) -> None:
        """Send one, as soon as there is room."""
        while True:
            try:
                self._sock.send(datagram)
                return
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self._sock)


def _connect(address: str, kind: socket.SocketKind) -> socket.socket:
    """In a thread. Nobody may wait for the socket any more: then it goes, and closes itself."""
    with contextlib.ExitStack() as stack:
        # Closed on exec, as all that Python makes.
        sock = stack.enter_context(socket.socket(socket.AF_UNIX, kind))
        sock.setblocking(False)
        if kind == socket.SOCK_DGRAM:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        sock.connect((f"\0{address[1:]}" if address.startswith("@") else address).encode())
        stack.pop_all()
        return sock


def _text(address: str, error: OSError) -> str:
    return f"{address}: {_WHY.get(error.errno or 0) or error.strerror or error}"


def _refusal(address: str, error: OSError) -> Rejected:
    if error.errno in _EXHAUSTED:
        return Rejected("exhausted", f"the host has no room for a connection: {os.strerror(error.errno or 0)}")
    return Rejected("unreachable", _text(address, error), {"errno": error.errno or 0})
