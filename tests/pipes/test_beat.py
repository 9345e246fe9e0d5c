"""The packet of a heartbeat, and what is none."""

import math

import msgpack
import pytest

from retinue.pipes import ProtocolViolation, wire
from retinue.pipes.beat import HEAD, Beat, packet_of, read_beat


@pytest.mark.parametrize("beat", [Beat(0, 0.0, 0.0), Beat(2**62, 1e9, 3.25), Beat(17, 0.004, 61.0)])
def test_what_was_told_is_read(beat: Beat) -> None:
    """Also out of a buffer."""
    packet = packet_of(beat, msgpack.Packer())
    assert read_beat(packet) == read_beat(memoryview(packet)) == beat
    assert msgpack.unpackb(packet) == [1, 0, ["heartbeat", beat.turns, beat.cpu, beat.stuck]]


def test_heartbeat_is_no_frame_of_a_path() -> None:
    """Nobody can take one for a message, nor for a record."""
    with pytest.raises(ProtocolViolation):
        wire.Decoder().decode(packet_of(Beat(1, 1.0, 1.0), msgpack.Packer()))


@pytest.mark.parametrize(
    "packet",
    [
        b"",
        HEAD,
        b"text",
        wire.encode([1, 1, ["heartbeat", 1, 1.0, 1.0]]),
        HEAD + msgpack.packb(["heartbeat", 1, 1.0]),
        HEAD + msgpack.packb(["heartbeat", 1, 1.0, 1]),
        HEAD + msgpack.packb(["heartbeat", -1, 1.0, 1.0]),
        HEAD + msgpack.packb(["heartbeat", 1, math.nan, 1.0]),
        HEAD + msgpack.packb(["heartbeat", 1, 1.0, math.inf]),
        HEAD + msgpack.packb(["heartbeat", 1, 1.0, -1.0]),
        HEAD + msgpack.packb(["hearbeats", 1, 1.0, 1.0]),
        HEAD + msgpack.packb(["heartbeat", 1, 1.0, {}]),
        HEAD + msgpack.packb("heartbeat"),
        HEAD + msgpack.packb(["heartbeat", 1, 1.0, 1.0]) + b"\x01",
        HEAD + b"\xc1",
        HEAD + b"\xdd\xff\xff\xff\xff",
        HEAD + bytes(1000),
    ],
)
def test_anything_else_is_none(packet: bytes) -> None:
    """Whatever it is."""
    assert read_beat(packet) is None
