"""The operator's socket: where ``*CP`` is reached from outside the system.

It is an AF_UNIX SOCK_SEQPACKET socket in the runtime folder, mode 0600. Both ends check who the other one is.
The address of a UNIX socket holds 107 bytes (unix(7)) and the folder's path may be longer, so both ends go
through a descriptor of the folder: ``/proc/self/fd/N/operator.sock``.
"""

import os
import pathlib
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import attrs

NAME = "operator.sock"
# Operators that may wait to be accepted. People and scripts, not traffic.
BACKLOG = 16
# How long a connecting operator waits for a place in that queue.
CONNECT_WAIT = 5.0

_UCRED = struct.Struct("3i")  # struct ucred: pid, uid, gid (unix(7), SO_PEERCRED)


class StrangePeer(PermissionError):
    """The process at the other end belongs to another user (and is not root's)."""

    def __init__(self, peer: "Peer") -> None:
        self.peer = peer
        super().__init__(
            f"the process {peer.pid} at the other end belongs to the user with id {peer.uid}, "
            f"not to {os.geteuid()} or root"
        )


@attrs.frozen
class Peer:
    """Who is at the other end: as the kernel recorded it when the connection was made."""

    pid: int
    uid: int
    gid: int


def listen_operator(folder: str | os.PathLike[str]) -> socket.socket:
    """A listening, non-blocking socket ``operator.sock`` in `folder`, mode 0600 from its first moment.

    A socket that an earlier control program left there is replaced: call it only as the owner of the system.
    Raises OSError if the folder is missing or not writable.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        # bind gives the file the mode of the socket's inode (net/unix/af_unix.c), so there is no moment in which
        # it is open to others, and the umask, which belongs to the whole process, stays as it is.
        os.fchmod(listener.fileno(), 0o600)
        with _address(folder) as address:
            with suppress(FileNotFoundError):
                os.unlink(address)
            listener.bind(address)
        listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


def take_listener(descriptor: int) -> socket.socket:
    """The listening socket of an earlier control program: who has connected meanwhile waits in it."""
    listener = socket.socket(fileno=descriptor)
    listener.setblocking(False)
    return listener


def connect_operator(folder: str | os.PathLike[str]) -> socket.socket:
    """A non-blocking socket connected to the control program of the system whose runtime folder this is.

    Raises FileNotFoundError or ConnectionRefusedError if nobody listens there, TimeoutError if nobody accepts,
    StrangePeer if the listener is neither ours nor root's.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    try:
        sock.settimeout(CONNECT_WAIT)
        with _address(folder) as address:
            sock.connect(address)
        check_peer(sock)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


def peer_of(sock: socket.socket) -> Peer:
    """Who is at the other end of a connected UNIX socket."""
    return Peer(*_UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)))


def check_peer(sock: socket.socket) -> Peer:
    """Raise StrangePeer unless the other end belongs to this user or to root."""
    peer = peer_of(sock)
    if peer.uid not in (os.geteuid(), 0):
        raise StrangePeer(peer)
    return peer


@contextmanager
def _address(folder: str | os.PathLike[str]) -> Iterator[str]:
    descriptor = os.open(pathlib.Path(folder), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}/{NAME}"
    finally:
        os.close(descriptor)
