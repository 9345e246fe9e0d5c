"""Arbitrary bytes as a packet and as the contents of a memfd: checked frames or a violation, and nothing is misread."""

from typing import Final

import msgpack

from retinue.pipes import ProtocolViolation, wire
from retinue.pipes.wire import Frame, Kind

# What a decoder must still take after anything: a greeting and a message in one packet.
_GOOD: Final[list[Frame]] = [[Kind.HELLO, wire.VERSION, 64, 7, 0, 0, 0, 0, 0], [Kind.SEND, 1, {"a": [b"b", None]}]]
_GOOD_PACKET: Final = b"".join(map(wire.encode, _GOOD))
_BODY: Final = bytes(5000)
# What travels in a memfd.
_BULK: Final = (Kind.SEND, Kind.CALL, Kind.REPLY, Kind.REJECT)


def wire_target(data: bytes) -> None:
    """The bytes are a packet, and the beginning of one with a large body, which the decoder takes in another way."""
    check_packet(data)
    check_packet(data + _BODY)


def check_packet(data: bytes) -> None:
    """Decode the bytes in every way there is, and what came out of it again."""
    fresh = frames_of(wire.Decoder(), data)
    # The decoder of the thread, which all its paths share: it has seen every input before this one.
    used = frames_of(wire.decoder(), memoryview(data))
    assert same(fresh, used), f"a used decoder says {used!r}, a fresh one {fresh!r}"
    assert frames_of(wire.decoder(), _GOOD_PACKET) == _GOOD, "something is left of the packet before"
    if fresh is not None:
        # The frames are all there is in the packet.
        assert len(data) <= wire.MAX_PACKET
        assert bool(fresh) is bool(data), f"{data!r} means nothing, and is no violation"
        for frame in fresh:
            check_frame(frame)
    check_bulk(data, fresh)


def frames_of(decoder: wire.Decoder, packet: bytes | memoryview) -> list[Frame] | None:
    """The frames of a packet; None for a violation."""
    try:
        return decoder.decode(packet)
    except ProtocolViolation:
        return None


def same(one: object, other: object) -> bool:
    """Whether two values are the same on the wire (a NaN is not equal to itself)."""
    return bool(msgpack.packb(one) == msgpack.packb(other))


def check_frame(frame: Frame) -> None:
    """A frame that was decoded has its shape, and says the same when it is encoded and decoded once more."""
    assert wire.check(frame) is frame
    assert 0 <= wire.descriptors_of(frame) <= wire.MAX_DESCRIPTORS
    # Of HELLO of another version nothing is known, but it is encoded to be counted like every other.
    encoded = wire.encode(frame)
    if len(encoded) <= wire.MAX_PACKET:  # a float of 32 bits takes 64 here
        (again,) = wire.Decoder().decode(encoded)
        assert same(again, frame), f"{frame!r} became {again!r}"
        assert wire.encode(again) == encoded


def check_bulk(data: bytes, frames: list[Frame] | None) -> None:
    """In a memfd the same bytes mean what they mean in a packet: one frame, of four kinds."""
    one = frames[0] if frames is not None and len(frames) == 1 else None
    try:
        frame = wire.Decoder().decode_bulk(data)
    except ProtocolViolation:
        assert one is None or one[0] not in _BULK, "good in a packet, and a violation in a memfd"
        return
    assert frame[0] in _BULK
    check_frame(frame)
    if len(data) <= wire.MAX_PACKET:
        assert same(one, frame), "good in a memfd, and something else in a packet"
