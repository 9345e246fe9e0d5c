"""The link: one JSON object per packet, with descriptors, over an ``AF_UNIX`` ``SOCK_SEQPACKET`` socket.

It joins CP and nucleus, and nucleus and saved systems. Standard library only. Nothing here blocks but
:func:`send_now`; the caller waits for the socket in its own way (poll in the nucleus, trio in the CP).
"""

import array
import collections
import errno
import json
import os
import select
import socket
from collections.abc import Sequence
from typing import Any, TypeVar

from retinue.cp.host.errors import LinkError, LinkLimit

__all__ = [
    "AT_ONCE",
    "CROWDED_SECONDS",
    "DESCRIPTORS_MAX",
    "LENT_MAX",
    "MESSAGE_MAX",
    "NOTE_MAX",
    "QUEUE_MAX",
    "TEXT_MAX",
    "Link",
    "descriptor_list",
    "field",
    "link_pair",
    "packed",
    "send_now",
]

MESSAGE_MAX = 64 * 1024
"""Bytes of one message: a birth with some dozens of paths of PATH_MAX (4096) fits; a receive buffer stays small."""

NOTE_MAX = MESSAGE_MAX - 256
"""Bytes of key and note of what is kept for the next control program: they travel in messages of two kinds."""

DESCRIPTORS_MAX = 4
"""Descriptors with one message: a birth brings two, a report at most one, what is kept as many as that."""

QUEUE_MAX = 4096
"""Messages waiting for a peer that does not read: every machine of a large system born and buried at once. More is a
peer that is stuck, which is treated as one that is gone."""

AT_ONCE = 128
"""Messages on one link before others have their turn."""

CROWDED_SECONDS = 0.005
"""After which a crowded link is tried again."""

LENT_MAX = 64
"""Descriptors with one message that hands over what is kept: as many as that travel as fast as one."""

TEXT_MAX = 4096
"""Bytes of a text (a traceback, a reason) inside a message: longer ones lose their beginning."""

T = TypeVar("T")


def link_pair() -> tuple[socket.socket, socket.socket]:
    """Both ends of a new link, closed on exec."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def descriptor_list(descriptors: Sequence[int]) -> list[int]:
    """Duplicates of ``descriptors``, for :meth:`Link.post` to take over."""
    copies: list[int] = []
    try:
        for descriptor in descriptors:
            copies.append(os.dup(descriptor))
    except OSError:
        close_all(copies)
        raise
    return copies


def close_all(descriptors: Sequence[int]) -> None:
    """Close each of ``descriptors``."""
    for descriptor in descriptors:
        os.close(descriptor)


def packed(message: dict[str, Any] | list[Any], most: int = MESSAGE_MAX) -> bytes:
    """A message as it travels. :raises LinkLimit: it has more than ``most`` bytes."""
    packet = json.dumps(message, separators=(",", ":")).encode()
    if len(packet) > most:
        raise LinkLimit("bytes", len(packet), most)
    return packet


def field(message: dict[str, Any], name: str, kind: type[T]) -> T:
    """A field of a received message, checked to be exactly of ``kind``; raises LinkError."""
    value = message.get(name)
    if type(value) is not kind:
        raise LinkError(f"field {name!r} should be of type {kind.__name__}")
    return value


def clipped(text: str) -> str:
    """The end of ``text``, no longer than TEXT_MAX: of a traceback the last lines say what happened."""
    return text if len(text) <= TEXT_MAX else "..." + text[3 - TEXT_MAX :]


class Link:
    """One end. Messages leave in the order of :meth:`post`.

    :ivar longest: how many messages may wait.
    :ivar crowded: too many descriptors of this user are on their way (unix(7), ETOOMANYREFS), so that messages wait
        although the socket is writable. They come off as the peers read, which nothing tells: look again soon.
    """

    def __init__(self, sock: socket.socket, *, longest: int = QUEUE_MAX, most: int = DESCRIPTORS_MAX) -> None:
        """``most``: descriptors that may come with one message."""
        sock.setblocking(False)
        self.longest = longest
        self.crowded = False
        self._most = most
        self._socket = sock
        self._queue: collections.deque[tuple[bytes, list[int], bool]] = collections.deque()

    def fileno(self) -> int:
        return self._socket.fileno()

    @property
    def lends(self) -> bool:
        """True while messages with descriptors that are not the link's own wait."""
        return any(not owned for _, _, owned in self._queue)

    @property
    def waiting(self) -> bool:
        """True while messages wait for the socket to become writable."""
        return bool(self._queue)

    def post(self, message: dict[str, Any], descriptors: Sequence[int] = ()) -> None:
        """Queue a message and send what the socket takes.

        The descriptors belong to the link from here on and are closed once sent (also when this raises).

        :raises LinkLimit: the message is too large, or the peer has stopped reading.
        :raises ConnectionError: the other end is gone.
        """
        owned = list(descriptors)
        try:
            packet = packed(message)
            if len(owned) > DESCRIPTORS_MAX:
                raise LinkLimit("descriptors", len(owned), DESCRIPTORS_MAX)
            if len(self._queue) >= self.longest:
                raise LinkLimit("queue", len(self._queue) + 1, self.longest)
        except BaseException:
            close_all(owned)
            raise
        self._queue.append((packet, owned, True))
        self.flush()

    def lend(self, packet: bytes, descriptors: list[int]) -> None:
        """Queue a packed message with descriptors that stay the caller's, who closes none while the link :attr:`lends`.

        It leaves with the next :meth:`flush`. There is no limit: the caller knows how many there are.
        """
        self._queue.append((packet, descriptors, False))

    def flush(self) -> None:
        """Send what the socket takes now. :raises ConnectionError: the other end is gone."""
        self.crowded = False
        for _ in range(min(len(self._queue), AT_ONCE)):
            packet, descriptors, owned = self._queue[0]
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
            try:
                self._socket.sendmsg([packet], rights)
            except BlockingIOError:
                return
            except OSError as error:
                self.crowded = error.errno == errno.ETOOMANYREFS
                if self.crowded:
                    return
                raise
            self._queue.popleft()
            if owned:
                close_all(descriptors)

    def receive(self) -> tuple[dict[str, Any], list[int]] | None:
        """The next message and its descriptors, which then belong to the caller; None when the other end is gone.

        :raises BlockingIOError: there is none now.
        :raises LinkError: it is malformed, or over a limit. The link should then be closed.
        """
        try:
            # One byte more than allowed, so that a longer packet is seen as such even before MSG_TRUNC is looked at.
            room = socket.CMSG_SPACE(self._most * array.array("i").itemsize)
            packet, ancillary, flags, _ = self._socket.recvmsg(MESSAGE_MAX + 1, room, socket.MSG_CMSG_CLOEXEC)
        except ConnectionResetError:
            return None
        received = array.array("i")
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                received.frombytes(data[: len(data) - len(data) % received.itemsize])
        descriptors = received.tolist()
        if not packet and not descriptors:
            return None
        try:
            if flags & socket.MSG_CTRUNC:
                raise LinkLimit("descriptors", self._most + 1, self._most)
            if flags & socket.MSG_TRUNC or len(packet) > MESSAGE_MAX:
                raise LinkLimit("bytes", len(packet), MESSAGE_MAX)
            try:
                message = json.loads(packet)
            except (ValueError, RecursionError) as error:
                raise LinkError("not JSON") from error
            if type(message) is not dict:
                raise LinkError("not an object")
        except BaseException:
            close_all(descriptors)
            raise
        return message, descriptors

    def close(self) -> None:
        """Close this end; what was queued is dropped."""
        for _, descriptors, owned in self._queue:
            if owned:
                close_all(descriptors)
        self._queue.clear()
        self._socket.close()


def send_now(link: Link, message: dict[str, Any], descriptors: Sequence[int] = ()) -> None:
    """Post and wait until it has left: for a saved system, which is a plain blocking program."""
    link.post(message, descriptors)
    while link.waiting:
        poll = select.poll()
        poll.register(link.fileno(), 0 if link.crowded else select.POLLOUT)
        poll.poll(CROWDED_SECONDS * 1000 if link.crowded else None)
        link.flush()
