"""Listening sockets, and what keeps the host from giving us one."""

import errno
import os
import socket
from typing import Final

import trio

from retinue.services.tcpip.address import parse_address

_CURES: Final = {
    errno.EADDRINUSE: "another program listens there; stop it or choose another port",
    errno.EACCES: "ports below net.ipv4.ip_unprivileged_port_start (1024) need root; choose a higher one",
    errno.EADDRNOTAVAIL: "this host has no such address; 0.0.0.0 and [::] mean all that it has",
    errno.EAFNOSUPPORT: "this host does not speak this address family",
}


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


async def open_listener(address: str, backlog: int) -> trio.socket.SocketType:
    """A listening socket. Raises :exc:`~retinue.services.tcpip.address.BadAddress` or :exc:`ListenFailed`."""
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
