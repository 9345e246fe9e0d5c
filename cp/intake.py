"""The intake: where packets of a machine come out of the kernel, in shared memory.

recvmmsg(2) writes each packet and then, as the last thing, its length into memory that outlives the process. So a
packet is at every instant either in the machine's descriptor or in the intake, whenever the process is killed: between
the two there is only the kernel, which finishes what it has begun with a packet before it ends a process. (A page
fault on the way could be given up instead: the pages are touched before, and locked where that is allowed.)
"""

import ctypes
import errno
import fcntl
import mmap
import os
import select
import socket
import struct
import termios
from typing import Final

from retinue.pipes import wire

# Packets that one call takes: enough that its cost counts for nothing, few enough to be locked in memory.
SLOTS: Final = 32
# Bytes of the intake: a page for the kernel's tables, then the slots.
SIZE: Final = mmap.PAGESIZE + SLOTS * wire.MAX_PACKET

# struct mmsghdr and struct iovec (bits/socket.h), on every 64-bit Linux: name, its length, iovec, their number,
# control, its length, flags; the length of the packet.
_HEADER: Final = struct.Struct("@QI4xQQQQi4xI4x")
_VECTOR: Final = struct.Struct("@QQ")
# Their places in a header, in words of four bytes, and the words of one.
_FLAGS: Final = 48 // 4
_LENGTH: Final = 56 // 4
_STEP: Final = _HEADER.size // 4
# As plain numbers: an operation on the module's flags costs more than the rest of a packet.
_CUT: Final = int(socket.MSG_TRUNC)
_NOW: Final = int(socket.MSG_DONTWAIT)
# The length of a packet that has not come.
_NONE: Final = 0xFFFF_FFFF

# Called without giving up the interpreter's lock: it never waits.
_libc: Final = ctypes.PyDLL(None, use_errno=True)
_recvmmsg: Final = _libc.recvmmsg
_recvmmsg.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int, ctypes.c_void_p)
_mlock: Final = _libc.mlock
_mlock.argtypes = (ctypes.c_void_p, ctypes.c_size_t)

Packet = tuple[memoryview, bool]
"""What came, and whether the kernel had to cut it because it was longer than MAX_PACKET."""


class Intake:
    """SIZE bytes at ``offset`` of a mapping. Whoever adopts one asks :meth:`left` before the first :meth:`arm`."""

    def __init__(self, mapping: mmap.mmap, offset: int, *, lasting: bool) -> None:
        self._view = memoryview(mapping)[offset : offset + SIZE]
        self._words = self._view[: SLOTS * _HEADER.size].cast("I")
        anchor = ctypes.c_char.from_buffer(mapping, offset)
        self._address = ctypes.addressof(anchor)
        del anchor
        if lasting:
            _mlock(self._address, SIZE)  # best effort: without the right it is swapped like everything
            bytes(self._view[:: mmap.PAGESIZE])
        size = wire.MAX_PACKET
        starts = [mmap.PAGESIZE + slot * size for slot in range(SLOTS)]
        self._slots = [self._view[start : start + size] for start in starts]
        vectors = SLOTS * _HEADER.size
        for slot, start in enumerate(starts):
            _VECTOR.pack_into(self._view, vectors + slot * _VECTOR.size, self._address + start, size)
        places = (self._address + vectors + slot * _VECTOR.size for slot in range(SLOTS))
        self._empty = b"".join(_HEADER.pack(0, 0, place, 1, 0, 0, 0, _NONE) for place in places)
        self._used = SLOTS

    def left(self) -> list[tuple[bytes, bool]]:
        """The packets of the last call."""
        packets = []
        for slot in range(SLOTS):
            length = self._words[slot * _STEP + _LENGTH]
            if length > wire.MAX_PACKET:
                break
            packets.append((bytes(self._slots[slot][:length]), self._cut(slot)))
        return packets

    def _cut(self, slot: int) -> bool:
        return bool(self._words[slot * _STEP + _FLAGS] & _CUT)

    def arm(self) -> None:
        """Forget the packets of the last call."""
        size = self._used * _HEADER.size
        self._view[:size] = self._empty[:size]
        self._used = 0

    def receive(self, sock: socket.socket, most: int = SLOTS) -> list[Packet] | None:
        """Up to so many packets, which are good until :meth:`arm`; None when there is none now."""
        count = _recvmmsg(sock.fileno(), self._address, most, _NOW, None)
        if count < 0:
            number = ctypes.get_errno()
            if number == errno.EAGAIN:
                return None
            if number in (errno.ECONNRESET, errno.EINTR):  # the machine died with something unread: told once
                return []
            raise OSError(number, os.strerror(number))
        self._used = count
        slots, words = self._slots, self._words
        lengths = words[_LENGTH : count * _STEP : _STEP].tolist()
        flags = words[_FLAGS : count * _STEP : _STEP].tolist()
        return [(slot[:length], flag & _CUT != 0) for slot, length, flag in zip(slots, lengths, flags, strict=False)]

    def release(self) -> None:
        """Let go of the mapping."""
        for view in (*self._slots, self._words, self._view):
            view.release()


def ended(sock: socket.socket) -> bool:
    """Whether nobody can write any more and all was read; an empty read may also be an empty packet before others."""
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    if not any(event & (select.POLLHUP | select.POLLERR | select.POLLNVAL) for _, event in poll.poll(0)):
        return False
    # Of SOCK_SEQPACKET the kernel tells the bytes of all packets (unix(7), SIOCINQ).
    return fcntl.ioctl(sock, termios.FIONREAD, bytes(4)) == bytes(4)
