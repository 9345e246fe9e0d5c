"""A word and a descriptor in one packet, over a socket that is no path: how an end is brought to who has lost a path.

A machine whose control path has ended waits for the parcel ``control`` on the socket of its log.
"""

import array
import contextlib
import socket
from typing import Final

import trio

from retinue.pipes.message import close_all

# The word with which a control program brings a machine the descriptor of its next control path.
CONTROL: Final = b"control"

# Words are short; of a longer packet it is seen that it is none.
_LONGEST: Final = 64
# One descriptor more than a parcel has shows a packet that is none.
_ROOM: Final = socket.CMSG_SPACE(2 * array.array("i").itemsize)
_SEND_FLAGS: Final = int(socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
_RECEIVE_FLAGS: Final = int(socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC)


def send_descriptor(sock: socket.socket, word: bytes, descriptor: int) -> None:
    """Send a parcel; the descriptor is copied. Never waits.

    BlockingIOError when there is no room now, another OSError when nobody can receive it any more.
    """
    socket.send_fds(sock, [word], [descriptor], _SEND_FLAGS)


async def receive_descriptor(sock: socket.socket, word: bytes) -> int:
    """Wait for the parcel with that word; its descriptor is then the caller's to close. Anything else is thrown away.

    EOFError when the socket has ended, OSError when this process has no room for the descriptor.
    """
    await trio.lowlevel.checkpoint()
    while True:
        try:
            data, ancillary, flags, _ = sock.recvmsg(_LONGEST, _ROOM, _RECEIVE_FLAGS)
        except BlockingIOError:
            await trio.lowlevel.wait_readable(sock)
            continue
        except ConnectionResetError:
            continue  # told once when the other end closed with unread packets
        descriptors = array.array("i")
        for level, kind, content in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                descriptors.frombytes(content[: len(content) - len(content) % descriptors.itemsize])
        if data == word and len(descriptors) == 1 and not flags & socket.MSG_CTRUNC:
            return descriptors[0]
        with contextlib.suppress(OSError):
            close_all(descriptors.tolist())
        if data == word and not descriptors:
            raise OSError(f"no room for the descriptor of the parcel {word.decode('ascii', 'replace')}")
        if not data and not descriptors:
            raise EOFError("nobody can send a parcel any more")
