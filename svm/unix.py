"""UNIX sockets inside a machine: those that its native program listens at, and those that it connects to."""

import contextlib
import errno
import logging
import os
import select
import socket
from typing import Final

import trio

log: Final = logging.getLogger("retinue.exec")

# Seconds between two attempts to connect to a program that does not accept connections yet: from, and up to.
SOONEST: Final = 0.005
LATEST: Final = 0.1
# Connections of the program that wait to be accepted.
BACKLOG: Final = 128
# How long accepting rests when the machine has no descriptor or memory to spare: others must free one first.
ACCEPT_PAUSE: Final = 1.0
_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


async def dial(path: str, *, absent: bool = False) -> trio.SocketStream:
    """A connection to the socket at ``path``, as soon as its backlog has room.

    Raises OSError when nobody listens there; with ``absent`` waits for that, too. Both waits are polls, for the kernel
    has no event for either: a non-blocking connect to a full backlog fails with EAGAIN (unix(7)), and what a native
    program does until it listens nobody can know.
    """
    pause = SOONEST
    while True:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            sock.connect(path)
            return trio.SocketStream(trio.socket.from_stdlib_socket(sock))
        except BlockingIOError:
            sock.close()
        except (FileNotFoundError, ConnectionRefusedError):
            sock.close()
            if not absent:
                raise
        except BaseException:
            sock.close()
            raise
        await trio.sleep(pause)
        pause = min(2 * pause, LATEST)


def listen(path: str) -> trio.socket.SocketType:
    """A listening socket at ``path``, for this machine's user alone. Raises OSError."""
    remove(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    mask = os.umask(0o177)  # of a socket, too: what bind makes is 0777 without these bits (unix(7))
    try:
        listener.bind(path)
        listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        raise
    finally:
        os.umask(mask)
    return trio.socket.from_stdlib_socket(listener)


def remove(path: str) -> None:
    """Take away what an earlier generation has left there; a socket can be bound to no path that exists."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


async def accept(listener: trio.socket.SocketType) -> trio.SocketStream:
    """The next connection. Want of descriptors does not end it: it waits until others have freed one, with a record."""
    while True:
        try:
            sock, _ = await listener.accept()
        except OSError as exc:
            if exc.errno == errno.ECONNABORTED:
                continue
            if exc.errno not in _EXHAUSTED:
                raise
            log.warning("cannot accept connections of the program now: %s; they wait", exc.strerror)
            await trio.sleep(ACCEPT_PAUSE)
        else:
            return trio.SocketStream(sock)


def hung_up(connection: trio.SocketStream) -> bool:
    """Whether the other end has closed the connection, and not only ended its side of it."""
    poll = select.poll()
    poll.register(connection.socket.fileno(), 0)
    return any(events & (select.POLLHUP | select.POLLERR) for _, events in poll.poll(0))


def pair() -> tuple[trio.SocketStream, socket.socket]:
    """Two ends of a connection: one for this runtime, one for the program to inherit."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    return trio.SocketStream(trio.socket.from_stdlib_socket(ours)), theirs


async def wait_used(connection: trio.SocketStream) -> bool:
    """Until the first byte is there (True), or the end (False)."""
    await trio.lowlevel.wait_readable(connection.socket)
    return bool(await connection.socket.recv(1, socket.MSG_PEEK))
