"""UNIX sockets of the host, to which the control program connects a machine that asks for one (``host_sockets``)."""

import posixpath
import socket
from typing import Any, Final

import trio

from retinue.pipes import Path, Rejected, SocketTransport, tracing, wire
from retinue.svm.errors import BadDestination, OutsideFailed

# Messages on their way to the control program, which takes fewer.
LIMIT: Final = 64
# Bytes of an address: what the system has room for (unix(7)), without the byte that ends it or makes it abstract.
MAX_ADDRESS: Final = 107


def is_address(text: str) -> bool:
    """Whether a text is the address of a UNIX socket in its one spelling: ``/dev/log``, ``@name`` for an abstract one.

    A path is absolute and has no detours; all its characters can be shown.
    """
    try:
        fits = len(text.encode()) <= MAX_ADDRESS
    except UnicodeEncodeError:
        return False
    if not fits or not text.isprintable():
        return False
    if text.startswith("@"):
        return len(text) > 1
    return text.startswith("/") and text != "/" and "/" + posixpath.normpath(text).lstrip("/") == text


async def host_stream(control: Path, address: str) -> trio.SocketStream:
    """See :meth:`~retinue.svm.machine.Machine.host_stream`."""
    sock = await _ask(control, address, "stream")
    return trio.SocketStream(trio.socket.from_stdlib_socket(sock))


async def host_datagrams(control: Path, nursery: trio.Nursery, address: str) -> Path:
    """See :meth:`~retinue.svm.machine.Machine.host_datagrams`."""
    sock = await _ask(control, address, "datagram")
    path = Path(SocketTransport(sock), name=address, limit=LIMIT, largest=wire.MAX_PACKET)
    with tracing(None):
        await nursery.start(path.run)
    return path


async def _ask(control: Path, address: str, kind: str) -> socket.socket:
    try:
        with tracing(None):
            reply = await control.call_reply(["socket", {"address": address, "kind": kind}])
    except Rejected as exc:
        if exc.code in ("unreachable", "timeout"):
            raise OutsideFailed(exc.code, exc.text, _number(exc.detail)) from None
        if exc.code == "bad-address":
            raise BadDestination(exc.text) from None
        raise
    (descriptor,) = reply.descriptors
    sock = socket.socket(fileno=descriptor)
    sock.setblocking(False)
    return sock


def _number(detail: Any) -> int:
    number = detail.get("errno") if type(detail) is dict else 0
    return number if type(number) is int else 0
