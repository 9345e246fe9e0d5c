"""The wire format: a packet is one or more whole frames, a frame is a msgpack array ``[kind, ...]``.

This module knows bytes and shapes, nothing of states or sockets. Every limit is a named constant here and is checked
when a frame is made and again when one is read; what arrives is untrusted until :func:`Decoder.decode` returned it.
The reference for writing a peer in another language is ``docs/reference/wire.md``.
"""

from collections.abc import Callable
from enum import IntEnum
from typing import Any, Final

import msgpack

from retinue.pipes.errors import LimitExceeded, ProtocolViolation

VERSION: Final = 1

# One packet must fit the default socket buffer (208 KiB) at least twice, so that both ends can work at once, and stay
# under glibc's mmap threshold (128 KiB), above which every receive would pay for a fresh mapping.
MAX_PACKET: Final = 64 * 1024
# A frame larger than a packet travels as a memfd. The bound is what one message may make the receiver allocate.
MAX_MESSAGE: Final = 64 * 1024 * 1024
# A chunk of a byte stream: leaves room for the frame's head within a packet.
MAX_CHUNK: Final = 60 * 1024
# Bytes of a stream that may be on their way in one direction: four chunks, more than the socket itself holds.
STREAM_WINDOW: Final = 4 * MAX_CHUNK
# Descriptors one packet may carry (the kernel allows 253): a message passes a few capabilities, not a table of them.
MAX_DESCRIPTORS: Final = 16
# Outstanding messages per direction: the default, and the most that IUCV's 16-bit field can say.
DEFAULT_LIMIT: Final = 64
MAX_LIMIT: Final = 65535
# Items in one array or map of a message. A frame in a packet cannot reach it; it bounds what a memfd can ask for.
MAX_ITEMS: Final = 1024 * 1024
# Reason texts are for people: longer ones are cut by the sender and refused by the receiver.
MAX_TEXT: Final = 4096


class Kind(IntEnum):
    """The first element of every frame."""

    HELLO = (
        0  # [0, version, limit]         first frame of each end; limit = what this end lets the other have outstanding
    )
    SEND = 1  # [1, id, body(, n)]           one-way message; n = descriptors that it takes from the packet
    CALL = 2  # [2, id, body(, n)]           two-way message
    REPLY = 3  # [3, id, body(, n)]          ends a call
    REJECT = 4  # [4, id, code, text, detail] ends a call, refused
    ACK = 5  # [5, id]                       ends a one-way message: the other program has received it
    PURGE = 6  # [6, id]                     the caller withdraws; the answer is still exactly one REPLY or REJECT
    SEVER = 7  # [7, code, text]             the last frame of a path
    STREAM = 8  # [8]                        from here on this end sends a byte stream
    DATA = 9  # [9, bytes]
    EOF = 10  # [10]                         this end sends no more bytes
    CREDIT = 11  # [11, n]                   the reader has taken n bytes out of the stream
    BULK = 12  # [12, size]                  with one descriptor: a sealed memfd of `size` bytes that holds one frame


Frame = list[Any]


def _is_id(value: Any) -> bool:
    return type(value) is int and 0 < value < 1 << 63


def _is_text(value: Any) -> bool:
    return type(value) is str and len(value) <= MAX_TEXT


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 < value <= MAX_DESCRIPTORS


def _message(frame: Frame) -> bool:
    return (len(frame) == 3 or (len(frame) == 4 and _is_count(frame[3]))) and _is_id(frame[1])


# The shape of each kind. A frame that does not fit its row is a violation; nothing later looks at types again.
_SHAPES: Final[dict[int, Callable[[Frame], bool]]] = {
    Kind.HELLO: lambda f: len(f) == 3 and type(f[1]) is int and type(f[2]) is int and 0 < f[2] <= MAX_LIMIT,
    Kind.SEND: _message,
    Kind.CALL: _message,
    Kind.REPLY: _message,
    Kind.REJECT: lambda f: len(f) == 5 and _is_id(f[1]) and _is_text(f[2]) and _is_text(f[3]),
    Kind.ACK: lambda f: len(f) == 2 and _is_id(f[1]),
    Kind.PURGE: lambda f: len(f) == 2 and _is_id(f[1]),
    Kind.SEVER: lambda f: len(f) == 3 and _is_text(f[1]) and _is_text(f[2]),
    Kind.STREAM: lambda f: len(f) == 1,
    Kind.DATA: lambda f: len(f) == 2 and type(f[1]) is bytes and 0 < len(f[1]) <= MAX_CHUNK,
    Kind.EOF: lambda f: len(f) == 1,
    Kind.CREDIT: lambda f: len(f) == 2 and type(f[1]) is int and 0 < f[1] <= STREAM_WINDOW,
    Kind.BULK: lambda f: len(f) == 2 and type(f[1]) is int and MAX_PACKET < f[1] <= MAX_MESSAGE,
}

# How many descriptors a frame may claim: the fourth element of a message, one for BULK.
_CARRIES: Final = frozenset({Kind.SEND, Kind.CALL, Kind.REPLY})


def _no_extension(code: int, _: bytes) -> Any:
    raise ValueError(f"an extension type ({code})")


# What msgpack itself refuses, in the same words at both ends. Keys that are no text could be made to collide.
_BOUNDS: Final[dict[str, Any]] = {
    "max_array_len": MAX_ITEMS,
    "max_map_len": MAX_ITEMS,
    "max_ext_len": 0,
    "ext_hook": _no_extension,
    "strict_map_key": True,
}
# Types of values that are within the bounds whatever they hold.
_PLAIN: Final = frozenset({type(None), bool, int, float, str, bytes, memoryview})


def descriptors_of(frame: Frame) -> int:
    """How many of its packet's descriptors the frame takes (frames take them in order)."""
    kind = frame[0]
    if kind in _CARRIES:
        return frame[3] if len(frame) == 4 else 0
    return 1 if kind == Kind.BULK else 0


def encode(frame: Frame) -> bytes:
    """The bytes of a frame. :exc:`LimitExceeded` when it is over MAX_MESSAGE, TypeError for what cannot be said."""
    try:
        packed: bytes = msgpack.packb(frame)
        # What the receiver refuses would cost the path: a key that is no text, an extension, too many items.
        if not _PLAIN.issuperset(map(type, frame[2:])):
            msgpack.unpackb(packed, **_BOUNDS)
    except (ValueError, OverflowError) as exc:  # too deep, a lone surrogate, an integer over 64 bits
        raise TypeError(f"a message cannot carry this: {exc}") from exc
    if len(packed) > MAX_MESSAGE:
        raise LimitExceeded("size of a message in bytes", len(packed), MAX_MESSAGE)
    return packed


def clip(text: str) -> str:
    """A reason text cut to MAX_TEXT characters, visibly; what UTF-8 cannot say (a file name's bytes) is escaped."""
    if not text.isascii():
        text = text.encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…"


# After each packet: a nil, which is no frame.
_STOP: Final = b"\xc0"


def _check(untrusted_frame: Any) -> Frame:
    if type(untrusted_frame) is not list or not untrusted_frame:
        raise ProtocolViolation("a frame is not a filled array")
    kind = untrusted_frame[0]
    fits = _SHAPES.get(kind) if type(kind) is int else None
    if fits is None:
        raise ProtocolViolation(f"unknown kind of frame: {kind if type(kind) is int else type(kind).__name__}")
    if not fits(untrusted_frame):
        raise ProtocolViolation(f"malformed {Kind(kind).name} frame")
    return untrusted_frame


class Decoder:
    """Turns the packets of one peer into checked frames."""

    __slots__ = ("_unpacker",)

    def __init__(self) -> None:
        self._unpacker = self._fresh(MAX_PACKET + len(_STOP))

    @staticmethod
    def _fresh(size: int) -> msgpack.Unpacker:
        return msgpack.Unpacker(max_buffer_size=size, **_BOUNDS)

    def decode(self, untrusted_packet: bytes | memoryview) -> list[Frame]:
        """The frames of one packet, at most MAX_PACKET bytes.

        Raises :exc:`ProtocolViolation`, or MemoryError; after that the decoder is spent, as is the path.
        """
        unpacker = self._unpacker
        try:
            unpacker.feed(untrusted_packet)
            # msgpack does not tell whether it stopped inside an object; one that is not whole swallows what follows.
            unpacker.feed(_STOP)
            untrusted_frames = list(unpacker)
            if not untrusted_frames or untrusted_frames.pop() is not None:
                raise ProtocolViolation("a packet ends inside a frame")
            return [_check(frame) for frame in untrusted_frames]
        except (ProtocolViolation, MemoryError):
            raise
        except Exception as exc:  # msgpack raises its own, ValueError, UnicodeDecodeError, BufferFull, StackError
            raise ProtocolViolation(f"not msgpack: {type(exc).__name__}") from exc

    def decode_bulk(self, untrusted_bytes: bytes) -> Frame:
        """The one frame that came in a memfd; only messages and replies travel that way."""
        unpacker = self._fresh(len(untrusted_bytes))
        try:
            unpacker.feed(untrusted_bytes)
            frame = _check(unpacker.unpack())
        except (ProtocolViolation, MemoryError):
            raise
        except Exception as exc:
            raise ProtocolViolation(f"not msgpack: {type(exc).__name__}") from exc
        if unpacker.tell() != len(untrusted_bytes):
            raise ProtocolViolation("a bulk frame has something after it")
        if frame[0] not in _CARRIES and frame[0] != Kind.REJECT:
            raise ProtocolViolation(f"a {Kind(frame[0]).name} frame does not travel in bulk")
        return frame
