"""Packets of a hostile peer, drawn from a script: frames of every kind, right, nearly right and broken."""

from collections.abc import Callable
from typing import Any, Final

import msgpack
from tests.fuzz.script import Script

from retinue.pipes import wire
from retinue.pipes.wire import Kind

# Frames of one packet at most: enough for every pair of kinds, and for more messages than the limits here.
MOST_FRAMES: Final = 8
_KINDS: Final = tuple(Kind)
# Tokens of the peer's sessions: another one is a successor.
PEER_TOKENS: Final = (77, 78, 79)


def draw_packet(script: Script, token: int) -> bytes:
    """One packet: of whole frames, of such with some bytes changed, or of any bytes. ``token`` is this end's."""
    how = script.byte()
    if how & 0xC0 == 0xC0:
        return script.take(script.byte())
    packet = b"".join(draw_frame(script, token) for _ in range(1 + how % MOST_FRAMES))
    return change(script, packet) if how & 0xC0 == 0x80 else packet


def change(script: Script, packet: bytes) -> bytes:
    """The packet with some bytes changed, cut off or put in."""
    changed = bytearray(packet)
    for _ in range(1 + script.byte() % 4):
        place = script.number() % (len(changed) + 1)
        match script.byte() % 4:
            case 0:
                changed[place : place + 1] = script.take(1)
            case 1:
                changed[place:place] = script.take(script.byte() % 8)
            case 2:
                del changed[place : place + 1 + script.byte()]
            case _:
                del changed[place:]
    return bytes(changed)


def draw_frame(script: Script, token: int) -> bytes:
    """One frame as bytes."""
    kind = script.pick(_KINDS)
    draw = _DRAW.get(kind)
    frame = [kind, *(draw(script, token) if draw is not None else [])]
    return bytes(msgpack.packb(frame))


def draw_body(script: Script) -> Any:
    """What a message may carry."""
    match script.byte() % 8:
        case 0:
            return None
        case 1:
            return script.signed()
        case 2:
            return script.take(script.byte())
        case 3:
            return script.take(script.byte()).decode("latin-1")
        case 4:
            return {"key": script.byte(), "": [True, -1.5, float("nan")]}
        case 5:
            deep: Any = None
            for _ in range(script.number() % 600):
                deep = [deep]
            return deep
        case 6:
            return bytes(script.number() % wire.MAX_CHUNK)
        case _:
            return [draw_body(script) for _ in range(script.byte() % 4)]


def _hello(script: Script, token: int) -> list[Any]:
    if (version := script.byte()) > 2:
        return [version, draw_body(script)]
    limit = script.pick((1, 2, 3, 4, 64, 65535, 0))
    peer = script.pick(PEER_TOKENS)
    known = script.pick((0, token, 1, peer))
    return [wire.VERSION, limit, peer, known, *(script.number() for _ in range(3)), script.byte() % 3]


_TRACE: Final = bytes(range(16))


def _message(script: Script, _: int) -> list[Any]:
    ident = script.signed()
    more = script.byte()
    # Mostly without: a script that has come to its end takes the smallest of everything.
    rest: list[Any] = ([], [], [], [more >> 4], [0, script.number()] if more % 5 == 4 else [])[more % 5]
    if more >= 230 and more % 5 in (2, 4):
        rest = [*(rest or [0]), script.pick((_TRACE, bytes(16), _TRACE[1:]))]
    return [ident, draw_body(script), *rest]


def _reject(script: Script, _: int) -> list[Any]:
    return [script.signed(), script.pick(("no", "denied", "purged", "x" * 5000)), "", draw_body(script)]


def _sever(script: Script, _: int) -> list[Any]:
    return [script.pick(("closed", "lost", "violation", "reset")), script.take(script.byte() % 8).decode("latin-1")]


_DRAW: Final[dict[Kind, Callable[[Script, int], list[Any]]]] = {
    Kind.HELLO: _hello,
    Kind.SEND: _message,
    Kind.CALL: _message,
    Kind.REPLY: _message,
    Kind.REJECT: _reject,
    Kind.ACK: lambda script, _: [script.signed(), script.signed()],
    Kind.PURGE: lambda script, _: [script.signed()],
    Kind.SEVER: _sever,
    Kind.DATA: lambda script, _: [bytes(1 + script.number() % (wire.MAX_CHUNK + 1))],
    Kind.CREDIT: lambda script, _: [script.number()],
    Kind.BULK: lambda script, _: [wire.MAX_PACKET + script.number()],
    Kind.SEEN: lambda script, _: [script.number()],
}
