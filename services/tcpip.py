"""The machine that keeps the host's network: TCP connections in, paths out.

It listens where its config says and makes one path per TCP connection. The first message on the path says who is
calling (:func:`opening`); then both ends call ``stream()`` and bytes are relayed in both directions, with back-pressure
and half-close. It knows nothing of what the bytes mean.

====================  =============================================================================================
config.listen         ``{ "127.0.0.1:8080" = "web" }``: address -> local name of the edge that is connected for it
config.max_connections, backlog, patience, drain_time    see :class:`Config`
edges used            every edge that ``listen`` names
edges provided        none
====================  =============================================================================================

Who learns what, and when: ``docs/reference/tcpip.md``.
"""

import contextlib
import errno
import ipaddress
import logging
import os
import socket
import struct
from typing import Any, Final

import attrs
import trio

from retinue.pipes import Path, PathError
from retinue.svm import Machine

log: Final = logging.getLogger("retinue.tcpip")

# Bytes per read: a chunk of a path's stream is at most 60 KiB, so a larger read would leave a crumb behind.
READ_SIZE: Final = 60 * 1024
# How long accepting rests when the host has no descriptor or memory to spare: others must free one first.
ACCEPT_PAUSE: Final = 0.1
_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
# accept(2), "Error handling": errors of the new connection, not of the listener.
_CLIENT_FAULT: Final = frozenset(
    {
        errno.ECONNABORTED,
        errno.EPERM,
        errno.ENETDOWN,
        errno.EPROTO,
        errno.ENOPROTOOPT,
        errno.EHOSTDOWN,
        errno.ENONET,
        errno.EHOSTUNREACH,
        errno.EOPNOTSUPP,
        errno.ENETUNREACH,
    }
)
_CURES: Final = {
    errno.EADDRINUSE: "another program listens there; stop it or choose another port",
    errno.EACCES: "ports below net.ipv4.ip_unprivileged_port_start (1024) need root; choose a higher one",
    errno.EADDRNOTAVAIL: "this host has no such address; 0.0.0.0 and [::] mean all that it has",
    errno.EAFNOSUPPORT: "this host does not speak this address family",
}


class BadAddress(ValueError):
    """``config.listen`` names something that is not an address. Field: ``address``."""

    def __init__(self, address: str) -> None:
        self.address = address
        super().__init__(
            f"config.listen: {address!r} is not an address; write an IP address and a port (0-65535), "
            'such as "127.0.0.1:8080" or "[::1]:8080"'
        )


class ListenFailed(OSError):
    """The host did not let us listen on an address. Fields: ``address``, ``errno``, ``cure`` (text, may be empty)."""

    def __init__(self, address: str, number: int) -> None:
        self.address, self.cure = address, _CURES.get(number, "")
        text = f"cannot listen on {address}: {os.strerror(number)}"
        super().__init__(number, f"{text} ({self.cure})" if self.cure else text)

    def __str__(self) -> str:
        return str(self.strerror)


class UnknownEdge(ValueError):
    """``config.listen`` names an edge that this machine does not have. Fields: ``address``, ``edge``."""

    def __init__(self, address: str, edge: str, edges: tuple[str, ...]) -> None:
        self.address, self.edge = address, edge
        known = ", ".join(sorted(edges)) or "none"
        super().__init__(
            f"config.listen: {address!r} goes to {edge!r}, which is no edge of this machine (it has: {known}); "
            f'declare it: uses.{edge} = "NAME OF A MACHINE"'
        )


@attrs.frozen(kw_only=True)
class Config:
    """``listen`` is required; times are in seconds."""

    listen: dict[str, str] = attrs.field(validator=attrs.validators.min_len(1))
    # Connections that may be open at once; more wait in the kernel's backlog. Each costs a descriptor here and a path.
    max_connections: int = attrs.field(default=1024, validator=attrs.validators.ge(1))
    # Connections that the kernel completes and keeps for us; it cuts this to net.core.somaxconn.
    backlog: int = attrs.field(default=1024, validator=attrs.validators.ge(1))
    # How long a client waits for a machine that is starting or being restarted before its connection is closed.
    patience: float = attrs.field(default=5.0, validator=attrs.validators.gt(0))
    # How long connections that still owe an answer may go on when the system stops.
    drain_time: float = attrs.field(default=5.0, validator=attrs.validators.ge(0))


Address = tuple[str, int]


def parse_address(text: str) -> Address:
    """``"127.0.0.1:8080"`` or ``"[::1]:80"`` as (host, port). Raises :exc:`BadAddress`; names are not looked up."""
    host, colon, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    try:
        address = ipaddress.ip_address(host[1:-1] if bracketed else host)
    except ValueError:
        raise BadAddress(text) from None
    fits = colon and port.isascii() and port.isdigit() and int(port) < 65536
    if not fits or bracketed != (address.version == 6):
        raise BadAddress(text)
    return str(address), int(port)


def format_address(address: Address) -> str:
    """The inverse of :func:`parse_address`."""
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def opening(client: Address, server: Address) -> dict[str, Any]:
    """The first message on every path: both addresses of the TCP connection, each ``[host, port]``."""
    return {"type": "tcp.open", "client": list(client), "server": list(server)}


async def open_listener(address: str, backlog: int) -> trio.socket.SocketType:
    """A listening socket. Raises :exc:`BadAddress` or :exc:`ListenFailed`."""
    host, port = parse_address(address)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = trio.socket.socket(family, socket.SOCK_STREAM)
    except OSError as exc:
        raise ListenFailed(address, exc.errno or 0) from exc
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:  # "[::]:80" and "0.0.0.0:80" are two addresses, as they read
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        await listener.bind((host, port))
        listener.listen(backlog)
    except OSError as exc:
        listener.close()
        raise ListenFailed(address, exc.errno or 0) from exc
    return listener


class Relay:
    """Carries the bytes of one TCP connection to one path and back until both have ended or one end broke."""

    def __init__(self, client: trio.SocketStream, path: Path) -> None:
        self.client = client
        self.path = path
        self._machine = path.stream()
        self._scope = trio.CancelScope()
        self._reading = trio.CancelScope()
        self._owed = False  # the last bytes came from the client: it is waiting for an answer
        self._finishing = False
        self._inward_ended = self._outward_ended = False

    async def run(self) -> None:
        """Relay to the end. The path is severed then; the socket is for the caller to close (:attr:`orderly`)."""
        with self._scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._inward)
                await self._outward()
        if self.orderly:
            await self.path.aclose()
        else:
            self.path.sever("lost", "the TCP connection is gone")

    @property
    def orderly(self) -> bool:
        """The machine has ended its side: what it sent is complete, and the client may be told so by a FIN."""
        return self._outward_ended

    def finish(self) -> None:
        """The system stops: nothing more is read from the client once it has the answer that it is owed."""
        self._finishing = True
        if not self._owed:
            self._reading.cancel()

    async def _inward(self) -> None:
        try:
            with self._reading:
                while data := await self.client.receive_some(READ_SIZE):
                    self._owed = True
                    await self._machine.send_all(data)
            await self._machine.send_eof()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._scope.cancel()
            return
        self._inward_ended = True
        if self._outward_ended:
            self._scope.cancel()

    async def _outward(self) -> None:
        try:
            while data := await self._machine.receive_some(READ_SIZE):
                await self.client.send_all(data)
                self._owed = False
                if self._finishing:
                    self._reading.cancel()
            await self.client.send_eof()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._scope.cancel()
            return
        self._outward_ended = True
        if not self._inward_ended:
            # The machine listens on, for as long as it likes.
            await self.path.wait_severed()
        self._scope.cancel()


class Gate:
    """All listeners of the machine and the connections that came in through them."""

    def __init__(self, vm: Machine[Config], nursery: trio.Nursery) -> None:
        self.vm = vm
        self.config = vm.config
        self._nursery = nursery
        self._room = trio.Semaphore(vm.config.max_connections)
        self._relays: set[Relay] = set()
        self._finishing = False
        self._exhausted = False

    async def accept_all(self, listener: trio.socket.SocketType, edge: str) -> None:
        """Accept for ever. What goes wrong with one connection, or for want of descriptors, never ends it."""
        while True:
            await self._room.acquire()
            try:
                sock, _ = await listener.accept()
            except OSError as exc:
                self._room.release()
                if exc.errno in _CLIENT_FAULT:
                    continue
                if exc.errno not in _EXHAUSTED:
                    raise
                if not self._exhausted:  # once for each time of want, not ten times a second
                    log.warning("cannot accept connections now: %s; clients wait", exc.strerror)
                self._exhausted = True
                await trio.sleep(ACCEPT_PAUSE)
            except BaseException:
                self._room.release()
                raise
            else:
                self._exhausted = False
                self._nursery.start_soon(self._serve, sock, edge)

    def finish(self) -> None:
        """Let the connections end: at once those that owe no answer."""
        self._finishing = True
        for relay in self._relays:
            relay.finish()

    async def _serve(self, sock: trio.socket.SocketType, edge: str) -> None:
        orderly = False
        try:
            client = trio.SocketStream(sock)  # sets TCP_NODELAY
            peer, here = sock.getpeername()[:2], sock.getsockname()[:2]
            path = await self._connect(edge, peer, here)
            if path is not None:
                relay = Relay(client, path)
                self._relays.add(relay)
                if self._finishing:
                    relay.finish()
                try:
                    await relay.run()
                finally:
                    self._relays.discard(relay)
                    path.sever("lost", "the TCP connection was cut off")  # no effect after an orderly end
                orderly = relay.orderly
                log.debug("%s: closed%s", format_address(peer), "" if orderly else ", cut off")
        except (OSError, PathError) as exc:  # gone before the first byte: the client, or the machine
            log.debug("connection lost before it began: %s", exc)
        finally:
            if not orderly:
                # RST instead of FIN: nobody may take what was cut off for the whole (socket(7), SO_LINGER).
                with contextlib.suppress(OSError):
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.close()
            self._room.release()

    async def _connect(self, edge: str, peer: Address, here: Address) -> Path | None:
        text = f"no answer within {self.config.patience:g} s"
        path: Path | None = None
        with trio.move_on_after(self.config.patience):
            try:
                path = await self.vm.connect(edge)
                await path.send(opening(peer, here))
                log.debug("%s: connected to the edge %s", format_address(peer), edge)
                return path
            except PathError as exc:
                text = str(exc)
        if path is not None:
            path.sever("lost", "not accepted in time")
        log.warning("%s: connection closed, the edge %s is not available: %s", format_address(peer), edge, text)
        return None


async def main(vm: Machine[Config]) -> None:
    """Bind everything, say ready, accept until told to stop, let connections finish for ``drain_time``."""
    config = vm.config
    for address, edge in config.listen.items():
        if edge not in vm.edges:
            raise UnknownEdge(address, edge, vm.edges)
    listeners = []
    try:
        for address, edge in config.listen.items():
            listener = await open_listener(address, config.backlog)
            listeners.append((listener, edge))
            log.info("listening on %s for the edge %s", format_address(listener.getsockname()[:2]), edge)
        async with trio.open_nursery() as connections:
            gate = Gate(vm, connections)
            async with trio.open_nursery() as accepting:
                for listener, edge in listeners:
                    accepting.start_soon(gate.accept_all, listener, edge)
                await vm.ready()
                await vm.stopping.wait()
                accepting.cancel_scope.cancel()
            for listener, _ in listeners:
                listener.close()
            gate.finish()
            connections.cancel_scope.deadline = trio.current_time() + config.drain_time
    finally:
        for listener, _ in listeners:
            listener.close()
