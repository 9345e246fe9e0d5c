"""A heartbeat: what a machine's second thread says of its first, in one packet on the descriptor of its log.

The packet looks like a ``SEND`` frame with the id 0, which no message and no record has.
"""

import math
from typing import Final

import attrs
import msgpack

# What each begins with: an array of three, SEND, 0.
HEAD: Final = b"\x93\x01\x00"
_WORD: Final = "heartbeat"
# Bytes of the longest: the head, an array of four with its word, and three numbers of 9 bytes each.
_LONGEST: Final = len(HEAD) + 1 + 1 + len(_WORD) + 3 * 9


@attrs.frozen
class Beat:
    """``turns`` is how often the machine's loop has answered, ``cpu`` its processor time in seconds, and ``stuck`` for
    how many seconds it has not answered.
    """

    turns: int
    cpu: float
    stuck: float


def packet_of(beat: Beat, packer: msgpack.Packer) -> bytes:
    """The packet of a heartbeat."""
    return HEAD + bytes(packer.pack([_WORD, beat.turns, beat.cpu, beat.stuck]))


def read_beat(untrusted_packet: bytes | memoryview) -> Beat | None:
    """The heartbeat in a packet, or None when it is something else."""
    if len(untrusted_packet) > _LONGEST or bytes(untrusted_packet[: len(HEAD)]) != HEAD:
        return None
    try:
        body = msgpack.unpackb(untrusted_packet[len(HEAD) :], max_array_len=4, max_map_len=0, max_ext_len=0)
    except ValueError:
        return None
    match body:
        case ["heartbeat", int(turns), float(cpu), float(stuck)] if type(turns) is int and 0 <= turns < 2**63:
            sound = all(math.isfinite(each) and each >= 0 for each in (cpu, stuck))
            return Beat(turns, cpu, stuck) if sound else None
    return None
