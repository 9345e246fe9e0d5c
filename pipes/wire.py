"""The wire format: a packet is one or more whole frames, a frame is a msgpack array ``[kind, ...]``.

This module knows bytes and shapes, nothing of states or sockets. Every limit is a named constant here and is checked
when a frame is made and again when one is read; what arrives is untrusted until :func:`Decoder.decode` returned it.
The reference for writing a peer in another language is ``docs/reference/wire.md``.
"""

import secrets
import threading
from collections.abc import Callable
from enum import IntEnum
from typing import Any, Final

import msgpack

from retinue.pipes.errors import LimitExceeded, ProtocolViolation

VERSION: Final = 2

# One packet must fit the default socket buffer (208 KiB) at least twice, so that both ends can work at once, and stay
# under glibc's mmap threshold (128 KiB), above which every receive would pay for a fresh mapping. 64 KiB of body, the
# size that programs like best, go into it with a head and a little more.
MAX_PACKET: Final = 68 * 1024
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
# Levels of arrays and maps in a message, the frame's own included: what msgpack writes without an error.
MAX_DEPTH: Final = 256
# Reason texts are for people: longer ones are cut by the sender and refused by the receiver.
MAX_TEXT: Final = 4096
# An end says what it has seen after this many frames or bytes at the latest, so that the other can forget them.
SEEN_FRAMES: Final = 64
SEEN_BYTES: Final = 256 * 1024
# Bytes of frames that may be written and not seen. An honest peer stays below the socket's buffer and SEEN_BYTES.
MAX_UNSEEN: Final = 8 * 1024 * 1024
# Milliseconds a deadline may be away (a year); a later one is none.
MAX_REMAINING: Final = 366 * 24 * 3600 * 1000
# Bytes of the id of a trace (W3C Trace Context), which are not all zero.
TRACE_SIZE: Final = 16
NO_TRACE: Final = bytes(TRACE_SIZE)

# An end of version 2 severs a path on any other version, and greets before it has heard: what later revisions added is
# told by the token, of which version 2 only says that it is a number. Its upper bits name the revision; no end of the
# first one has a token like that.
REVISION: Final = 1
_TOKEN_MARK: Final = 0x5452
_MARK_SHIFT, _REVISION_SHIFT = 48, 40


class Kind(IntEnum):
    """The first element of every frame."""

    HELLO = 0  # [0, version, limit, token, known, received, again, again_priority, quiesced]
    SEND = 1  # [1, id, body(, n(, trace))]  one-way message; n = descriptors that it takes from the packet
    CALL = 2  # [2, id, body(, n(, ms)(, trace))] two-way; ms = milliseconds until nobody waits any more
    REPLY = 3  # [3, id, body(, n)]          ends a call
    REJECT = 4  # [4, id, code, text, detail] ends a call, refused
    ACK = 5  # [5, first, last]              ends one-way messages: the other program has received them
    PURGE = 6  # [6, id]                     the caller withdraws; the answer is still exactly one REPLY or REJECT
    SEVER = 7  # [7, code, text]             the last frame of a path
    STREAM = 8  # [8]                        from here on this end sends a byte stream
    DATA = 9  # [9, bytes]
    EOF = 10  # [10]                         this end sends no more bytes
    CREDIT = 11  # [11, n]                   the reader has taken n bytes out of the stream
    BULK = 12  # [12, size]                  with one descriptor: a memfd whose first `size` bytes are one frame
    SEEN = 13  # [13, count]                 this many frames have come in all: they need not be kept any more
    QUIESCE = 14  # [14]                     send no more messages for now
    QUIESCED = 15  # [15]                    no message follows until RESUME
    RESUME = 16  # [16]                      messages may come again


Frame = list[Any]


def _is_id(value: Any) -> bool:
    return type(value) is int and value != 0 and -(1 << 63) < value < 1 << 63


def _is_number(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def _is_text(value: Any) -> bool:
    return type(value) is str and len(value) <= MAX_TEXT


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= MAX_DESCRIPTORS


def _message(frame: Frame) -> bool:
    return (len(frame) == 3 or (len(frame) == 4 and _is_count(frame[3]))) and _is_id(frame[1])


def _is_trace(value: Any) -> bool:
    return type(value) is bytes and len(value) == TRACE_SIZE and value != NO_TRACE


def _send(frame: Frame) -> bool:
    if len(frame) != 5:
        return _message(frame)
    return _is_id(frame[1]) and _is_count(frame[3]) and _is_trace(frame[4])


def _call(frame: Frame) -> bool:
    if len(frame) < 5:
        return _message(frame)
    if len(frame) > 6 or not _is_id(frame[1]) or not _is_count(frame[3]):
        return False
    ms = frame[4]
    if len(frame) == 5 and type(ms) is bytes:
        return _is_trace(ms)
    return type(ms) is int and 0 < ms <= MAX_REMAINING and (len(frame) == 5 or _is_trace(frame[5]))


def _hello(frame: Frame) -> bool:
    # Of another version nothing but its number is known.
    if len(frame) < 2 or type(frame[1]) is not int:
        return False
    if frame[1] != VERSION:
        return True
    if len(frame) != 9 or not all(map(_is_number, frame[2:])):
        return False
    return bool(0 < frame[2] <= MAX_LIMIT and frame[3] > 0 and frame[8] <= 1)


def _ack(frame: Frame) -> bool:
    if len(frame) != 3 or not _is_id(frame[1]) or not _is_id(frame[2]):
        return False
    first: int = frame[1]
    last: int = frame[2]
    return (first > 0) == (last > 0) and 0 <= abs(last) - abs(first) <= MAX_LIMIT


def _bare(frame: Frame) -> bool:
    return len(frame) == 1


# The shape of each kind. A frame that does not fit its row is a violation; nothing later looks at types again.
_SHAPES: Final[dict[int, Callable[[Frame], bool]]] = {
    Kind.HELLO: _hello,
    Kind.SEND: _send,
    Kind.CALL: _call,
    Kind.REPLY: _message,
    Kind.REJECT: lambda f: len(f) == 5 and _is_id(f[1]) and _is_text(f[2]) and _is_text(f[3]),
    Kind.ACK: _ack,
    Kind.PURGE: lambda f: len(f) == 2 and _is_id(f[1]),
    Kind.SEVER: lambda f: len(f) == 3 and _is_text(f[1]) and _is_text(f[2]),
    Kind.STREAM: _bare,
    Kind.DATA: lambda f: len(f) == 2 and type(f[1]) is bytes and 0 < len(f[1]) <= MAX_CHUNK,
    Kind.EOF: _bare,
    Kind.CREDIT: lambda f: len(f) == 2 and type(f[1]) is int and 0 < f[1] <= STREAM_WINDOW,
    Kind.BULK: lambda f: len(f) == 2 and type(f[1]) is int and MAX_PACKET < f[1] <= MAX_MESSAGE,
    Kind.SEEN: lambda f: len(f) == 2 and _is_number(f[1]),
    Kind.QUIESCE: _bare,
    Kind.QUIESCED: _bare,
    Kind.RESUME: _bare,
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
_FIRST_NO_ID: Final = 1 << 63
# Kinds that most frames are of: [kind, id, body].
_PLAIN_MESSAGES: Final = frozenset({1, 2, 3})
# Binary bodies over this size are copied past msgpack.
_LARGE: Final = 4096
# Bytes that follow the first of an unsigned integer.
_INTEGERS: Final = {0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8}
# Types of values that are within the bounds whatever they hold.
_PLAIN: Final = frozenset({type(None), bool, int, float, str, bytes, memoryview})


def most_unread(limit: int, *, stream: bool = False) -> int:
    """How many frames may wait for an end that reads nothing and keeps to the limit: one that has more does not.

    Messages of this end and the withdrawals of them, answers and acknowledgements for those of the other: ``limit`` of
    each, and some frames about the path itself. In a byte stream each byte may be a frame.
    """
    return 4 * limit + 64 + (STREAM_WINDOW if stream else 0)


def descriptors_of(frame: Frame) -> int:
    """How many of its packet's descriptors the frame takes (frames take them in order)."""
    kind = frame[0]
    if kind in _CARRIES:
        return frame[3] if len(frame) > 3 else 0
    return 1 if kind == Kind.BULK else 0


def trace_of(frame: Frame) -> bytes | None:
    """The trace of a checked SEND or CALL."""
    return frame[-1] if len(frame) > 4 and type(frame[-1]) is bytes else None


def new_token() -> int:
    """A random token for a session of this revision."""
    return _TOKEN_MARK << _MARK_SHIFT | REVISION << _REVISION_SHIFT | secrets.randbits(_REVISION_SHIFT)


def revision_of(token: int) -> int:
    """What the session with this token speaks beside version 2: from 1 on it takes traces."""
    return token >> _REVISION_SHIFT & 0xFF if token >> _MARK_SHIFT == _TOKEN_MARK else 0


def _packer() -> msgpack.Packer:
    return msgpack.Packer(buf_size=4096)


class _Codec(threading.local):
    """One packer and one decoder for each thread: their buffers are larger than everything else a path has."""

    def __init__(self) -> None:
        self.packer = _packer()
        self.decoder = Decoder()


def _join(packer: msgpack.Packer, frame: Frame) -> bytes:
    """The bytes of [kind, id, binary], copied once: msgpack copies them twice."""
    body: bytes = frame[2]
    size = len(body)
    head: bytes = packer.pack([frame[0], frame[1], b""])[:-2]
    length = b"\xc5" + size.to_bytes(2, "big") if size < 1 << 16 else b"\xc6" + size.to_bytes(4, "big")
    return b"".join((head, length, body))


def _split(untrusted_packet: bytes | memoryview) -> Frame | None:
    """The frame of a packet that is one [kind, id, binary] and nothing else; None if it may be anything else."""
    if untrusted_packet[0] != 0x93 or untrusted_packet[1] not in _PLAIN_MESSAGES:
        return None
    begin = 3 + _INTEGERS.get(untrusted_packet[2], 0)
    ident = int.from_bytes(untrusted_packet[3:begin], "big") if begin > 3 else untrusted_packet[2]
    width = 2 if untrusted_packet[begin] == 0xC5 else 4 if untrusted_packet[begin] == 0xC6 else 0
    body = begin + 1 + width
    if not width or int.from_bytes(untrusted_packet[begin + 1 : body], "big") != len(untrusted_packet) - body:
        return None
    if not 0 < ident < _FIRST_NO_ID or (begin == 3 and ident > 0x7F):
        return None
    return [untrusted_packet[1], ident, bytes(untrusted_packet[body:])]


def encode(frame: Frame) -> bytes:
    """The bytes of a frame. :exc:`LimitExceeded` when it is over MAX_MESSAGE, TypeError for what cannot be said."""
    codec = _codec
    packed: bytes
    try:
        if len(frame) == 3 and type(frame[2]) is bytes and _LARGE < len(frame[2]) <= MAX_MESSAGE:
            packed = _join(codec.packer, frame)
        else:
            packed = codec.packer.pack(frame)
        # What the receiver refuses would cost the path: a key that is no text, an extension, too many items.
        if len(frame) > 2 and type(frame[-1 if len(frame) == 5 and frame[0] == 4 else 2]) not in _PLAIN:
            received = msgpack.unpackb(packed, **_BOUNDS)
            if _may_be_deep(packed) and _deep(received):
                raise ValueError(_TOO_DEEP)
    except (ValueError, OverflowError) as exc:  # too deep, a lone surrogate, an integer over 64 bits
        raise TypeError(f"a message cannot carry this: {exc}") from exc
    if len(packed) > MAX_PACKET:
        codec.packer = _packer()  # its buffer has grown and would stay so
        if len(packed) > MAX_MESSAGE:
            raise LimitExceeded("size of a message in bytes", len(packed), MAX_MESSAGE)
    return packed


def decoder() -> "Decoder":
    """The decoder of this thread."""
    return _codec.decoder


def clip(text: str) -> str:
    """A reason text cut to MAX_TEXT characters, visibly; what UTF-8 cannot say (a file name's bytes) is escaped."""
    if not text.isascii():
        text = text.encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…"


# After each packet: a nil, which is no frame.
_STOP: Final = b"\xc0"


def check(untrusted_frame: Any) -> Frame:
    """The frame, when it has the shape of its kind. :exc:`ProtocolViolation` otherwise."""
    if type(untrusted_frame) is not list or not untrusted_frame:
        raise ProtocolViolation("a frame is not a filled array")
    kind = untrusted_frame[0]
    fits = _SHAPES.get(kind) if type(kind) is int else None
    if fits is None:
        raise ProtocolViolation(f"unknown kind of frame: {kind if type(kind) is int else type(kind).__name__}")
    if not fits(untrusted_frame):
        raise ProtocolViolation(f"malformed {Kind(kind).name} frame")
    return untrusted_frame


_TOO_DEEP: Final = f"more than {MAX_DEPTH} levels of arrays and maps"
# The first bytes of everything that is not an array or a map.
_NO_CONTAINERS: Final = bytes({*range(256)} - {*range(0x80, 0xA0), *range(0xDC, 0xE0)})


def _may_be_deep(packed: bytes | memoryview) -> bool:
    """Whether so many bytes could begin a level that there may be more than MAX_DEPTH of them."""
    return len(packed) > MAX_DEPTH and len(bytes(packed).translate(None, _NO_CONTAINERS)) > MAX_DEPTH


def _deep(value: Any) -> bool:
    """Whether a value has more than MAX_DEPTH levels of arrays and maps."""
    level = [value]
    for _ in range(MAX_DEPTH):
        inner = [each for outer in level for each in (outer.values() if type(outer) is dict else outer)]
        level = [each for each in inner if type(each) is list or type(each) is dict]
        if not level:
            return False
    return True


class Decoder:
    """Turns packets into checked frames. It keeps nothing from one packet to the next."""

    __slots__ = ("_unpacker",)

    def __init__(self) -> None:
        self._forget()

    def _forget(self) -> None:
        """Begin with a fresh unpacker: nothing of a packet that was refused is left."""
        self._unpacker = self._unpacker_of(MAX_PACKET + len(_STOP))

    @staticmethod
    def _unpacker_of(size: int) -> msgpack.Unpacker:
        return msgpack.Unpacker(max_buffer_size=size, **_BOUNDS)

    def decode(self, untrusted_packet: bytes | memoryview) -> list[Frame]:
        """The frames of one packet, at most MAX_PACKET bytes. Raises :exc:`ProtocolViolation`, or MemoryError."""
        unpacker = self._unpacker
        try:
            if _LARGE < len(untrusted_packet) <= MAX_PACKET and (frame := _split(untrusted_packet)) is not None:
                return [frame]
            unpacker.feed(untrusted_packet)
            untrusted_frames: list[Any] = list(unpacker)
            # msgpack does not tell whether it has stopped inside an object; one that is not whole takes the nil.
            unpacker.feed(_STOP)
            if list(unpacker) != [None]:
                raise ProtocolViolation("a packet ends inside a frame")
            nested = False
            for frame in untrusted_frames:
                # The ordinary message is looked at here: it must be as cheap as can be.
                if (
                    type(frame) is list
                    and len(frame) == 3
                    and (kind := frame[0]) in _PLAIN_MESSAGES
                    and type(kind) is int
                    and type(frame[1]) is int
                    and 0 < frame[1] < _FIRST_NO_ID
                ):
                    if type(frame[2]) not in _PLAIN:
                        nested = True
                    continue
                check(frame)
                nested = True
            # Every frame is itself a list: what is asked is whether one of them has more than plain values in it.
            if nested and _may_be_deep(untrusted_packet) and any(map(_deep, untrusted_frames)):
                raise ProtocolViolation(_TOO_DEEP)
            return untrusted_frames
        except (ProtocolViolation, MemoryError):
            self._forget()
            raise
        except Exception as exc:  # msgpack raises its own, ValueError, UnicodeDecodeError, BufferFull, StackError
            self._forget()
            raise ProtocolViolation(f"not msgpack: {type(exc).__name__}") from exc

    def decode_bulk(self, untrusted_bytes: bytes) -> Frame:
        """The one frame that came in a memfd; only messages and answers travel that way."""
        unpacker = self._unpacker_of(len(untrusted_bytes))
        try:
            unpacker.feed(untrusted_bytes)
            frame = check(unpacker.unpack())
        except (ProtocolViolation, MemoryError):
            raise
        except Exception as exc:
            raise ProtocolViolation(f"not msgpack: {type(exc).__name__}") from exc
        if unpacker.tell() != len(untrusted_bytes):
            raise ProtocolViolation("a bulk frame has something after it")
        check_bulk(frame)
        if _may_be_deep(untrusted_bytes) and _deep(frame):
            raise ProtocolViolation(_TOO_DEEP)
        return frame


def check_bulk(frame: Frame) -> None:
    """The frame is of a kind that travels in a memfd. :exc:`ProtocolViolation` otherwise."""
    if frame[0] not in _CARRIES and frame[0] != Kind.REJECT:
        raise ProtocolViolation(f"a {Kind(frame[0]).name} frame does not travel in bulk")


_codec = _Codec()
