"""The inputs to begin with, made by hand: python -m tests.fuzz.seeds writes them to tests/fuzz/corpus."""

from typing import Final

import msgpack
from tests.fuzz import paths, sessions
from tests.fuzz.targets import TARGETS

from retinue.pipes import wire
from retinue.pipes.wire import Kind

Seeds = dict[str, bytes]

_FRAMES: Final[dict[str, list[object]]] = {
    "hello": [Kind.HELLO, wire.VERSION, 64, 77, 0, 0, 0, 0, 0],
    "hello-resumed": [Kind.HELLO, wire.VERSION, 64, 77, 1000, 3, 2, 1, 1],
    "hello-of-another-version": [Kind.HELLO, 3, {"what": ["ever"]}],
    "send": [Kind.SEND, 1, {"a": [1, -1, 2.5, None, True, "text", b"bytes"]}],
    "send-descriptors": [Kind.SEND, 2, None, 16],
    "call": [Kind.CALL, 3, ["list"]],
    "call-priority": [Kind.CALL, -1, "x" * 40],
    "call-deadline": [Kind.CALL, 4, b"", 0, wire.MAX_REMAINING],
    "send-trace": [Kind.SEND, 5, None, 0, bytes(range(16))],
    "call-trace": [Kind.CALL, 6, {"a": []}, 2, bytes(range(16))],
    "call-deadline-trace": [Kind.CALL, 7, b"x", 0, 250, bytes(range(16))],
    "hello-revision-1": [Kind.HELLO, wire.VERSION, 64, 0x545201 << 40 | 77, 0, 0, 0, 0, 0],
    "reply": [Kind.REPLY, 1, 1 << 63],
    "reply-descriptors": [Kind.REPLY, -1, None, 1],
    "reject": [Kind.REJECT, 1, "denied", "because", {"rule": 7}],
    "ack": [Kind.ACK, 1, 65535],
    "ack-priority": [Kind.ACK, -1, -4],
    "purge": [Kind.PURGE, 3],
    "sever": [Kind.SEVER, "closed", ""],
    "stream": [Kind.STREAM],
    "data": [Kind.DATA, b"bytes"],
    "eof": [Kind.EOF],
    "credit": [Kind.CREDIT, wire.STREAM_WINDOW],
    "bulk": [Kind.BULK, wire.MAX_MESSAGE],
    "seen": [Kind.SEEN, 64],
    "quiesce": [Kind.QUIESCE],
    "quiesced": [Kind.QUIESCED],
    "resume": [Kind.RESUME],
}


def wire_seeds() -> Seeds:
    """Every kind of frame, several in a packet, and what msgpack has that the wire has not."""
    send = msgpack.packb([Kind.SEND, 1, None])
    deep = {f"deep-{levels}": b"\x93\x01\x01" + b"\x91" * levels + b"\xc0" for levels in (255, 256, 600)}
    return {
        **{name: msgpack.packb(frame) for name, frame in _FRAMES.items()},
        **deep,
        "deep-in-another-version": b"\x95\x00\x63\xc0" + b"\x91" * 600 + b"\xc0\xc0",
        "many": b"".join(msgpack.packb(frame) for frame in _FRAMES.values()),
        "half-a-frame": send * 2 + send[:-1],
        "wide-numbers": b"\x93\xd3" + bytes(7) + b"\x01\xcf" + bytes(7) + b"\x05\xca\x7f\xc0\x00\x00",
        "wide-lengths": b"\xdd\x00\x00\x00\x03\x01\x02\xc6\x00\x00\x00\x01x",
        "large": b"\x93\x01\x01\xc5\x13\x88",
        "large-wide": b"\x93\x02\xcf" + bytes(7) + b"\x01\xc6\x00\x00\x13\x88",
        "large-priority": b"\x93\x03\xff\xc5\x13\x88",
        "large-descriptors": b"\x94\x01\x01\xc5\x13\x87",
        "extension": b"\x93\x01\x01\xd4\x05x",
        "timestamp": b"\x93\x01\x01\xd6\xff\x00\x00\x00\x01",
        "key-that-is-no-text": b"\x93\x01\x01\x81\x07\xc0",
        "claims-much": b"\x93\x01\x01\xdd\x00\x10\x00\x01\xc0",
    }


# -- scripts, as frames.py and the targets read them -------------------------------------------------------------------

_TEXT: Final = b"\x03\x02hi"  # a body
_LARGE: Final = 0x1C  # flags of a command: a body that travels in a memfd


def _packet(*frames: bytes) -> bytes:
    """The frames of one packet."""
    return bytes([len(frames) - 1]) + b"".join(frames)


def _hello(*, limit: int = 4, peer: int = 0, known: int = 0, received: int = 0, quiesced: int = 0) -> bytes:
    """HELLO: ``limit``, ``peer`` and ``known`` are places in the lists of frames.py."""
    return bytes([Kind.HELLO, 2, limit, peer, known, received, 0, 0, quiesced])


def _message(kind: Kind, ident: int, more: int = 0, body: bytes = _TEXT) -> bytes:
    return bytes([kind, ident & 0xFF, more]) + body


def _frame(kind: Kind, *arguments: int) -> bytes:
    return bytes([kind, *(each & 0xFF for each in arguments)])


def _in(*frames: bytes) -> bytes:
    """A packet comes to the session, which says what it has seen."""
    return b"\x00" + _packet(*frames) + b"\x01"


def _do(command: str, *arguments: int) -> bytes:
    """The program of the session does something."""
    return bytes([sessions.FIRST_COMMAND + list(sessions.COMMANDS).index(command), *arguments])


def session_seeds() -> Seeds:
    """Every state, messages of both sides, and a descriptor that is lost."""
    hello = _in(_hello())
    begin = b"\x05\x03" + hello  # keeps, bound, limit 64
    say, call, large = _do("say", 0) + _TEXT, _do("say", 1) + _TEXT, _do("say", _LARGE)
    flush = _do("flush")
    lost = flush + _do("lose") + _do("bind")
    resumed = _hello(known=1, received=1)
    stream = begin + _do("stream") + _in(_frame(Kind.STREAM))
    came = _in(_message(Kind.SEND, 1), _message(Kind.CALL, 2))
    traced = _in(*(_message(kind, kind, 232, b"\x00" + _TEXT) for kind in (Kind.SEND, Kind.CALL)))
    return {
        "nothing": b"",
        "messages": begin + came + _do("acknowledge", 0) + _do("answer", 0, 0) + _TEXT + flush,
        "received": begin + _in(_message(Kind.SEND, 1), _message(Kind.SEND, 2)) + _do("acknowledge", 0) * 2 + flush,
        "refused": begin + _in(_message(Kind.CALL, 1), _frame(Kind.PURGE, 1)) + _do("refuse", 0) + _TEXT + b"\x03",
        "answered": begin + call + say + flush + _in(_message(Kind.REPLY, 1), _frame(Kind.ACK, 2, 2)),
        "rejected": begin + call + _do("purge", 0) + flush + _in(_frame(Kind.REJECT, 1, 2, 0)),
        "priority": begin + _do("say", 3) + _TEXT + _in(_message(Kind.CALL, -1), _message(Kind.REPLY, -1)),
        "deadline": begin + _do("say", 0x21, 0) + b"\x09" + _in(_frame(Kind.CALL, 1, 4, 9, 0)),
        "traces": begin + traced + _do("answer", 0, 0) + _TEXT,
        "large": begin + large + flush + _in(_frame(Kind.SEEN, 1), _frame(Kind.ACK, 1, 1)),
        "large-answer": begin + _in(_message(Kind.CALL, 1)) + _do("answer", 0, _LARGE) + lost + _in(_hello(known=1)),
        "descriptors": begin + _do("say", 0x41) + _TEXT + b"\x03" + lost + _in(resumed),
        "without-keeping": b"\x04\x02" + hello + say + large + flush + _in(_frame(Kind.SEEN, 2)),
        "resumed": begin + say + call + lost + _in(resumed, _message(Kind.REPLY, 2)) + flush,
        "never-heard": begin + say + lost + hello + flush,
        "successor": (
            begin + say + call + _do("purge", 1) + lost + _in(_hello(peer=1, limit=0)) + flush
            + _in(_frame(Kind.ACK, 1, 1)) + flush
        ),
        "successor-answers": begin + call * 3 + lost + _in(_hello(peer=1, limit=0), _message(Kind.REPLY, 1)) + flush,
        "quiesced": begin + _do("quiesce") + flush + _in(_frame(Kind.QUIESCED)) + _do("resume"),
        "held": begin + _in(_frame(Kind.QUIESCE)) + say + _in(_frame(Kind.RESUME)) + say,
        "began-quiesced": b"\x07\x03" + _in(_hello(quiesced=1)) + _do("resume") + _in(_frame(Kind.RESUME)),
        "stream": (
            stream + _do("send_bytes", 9) + _in(_frame(Kind.DATA, 99), _frame(Kind.CREDIT, 9)) + _do("credit", 6)
        ),
        "stream-overrun": stream + _in(*[_frame(Kind.DATA, 255, 0, 0, 240, 0)] * 5),
        "stream-ended": (
            stream + _do("send_eof") + _in(_frame(Kind.DATA, 9), _frame(Kind.EOF)) + lost
            + _in(_hello(known=1, received=2))
        ),
        "stream-offered": begin + call + flush + _in(_frame(Kind.STREAM), _message(Kind.REPLY, 1)) + _do("stream"),
        "stream-and-successor": stream + lost + _in(_hello(peer=1)),
        "severed": begin + _in(_frame(Kind.SEVER, 0, 0)),
        "severs": begin + say + _do("end", 7),
        "severs-unbound": begin + say + flush + _do("lose") + _do("end", 7),
    }  # fmt: skip


def bulk_seeds() -> Seeds:
    """Each kind of contents, each kind of seals, and the same memfd more than once."""
    again = b"\x01\x02" * 4  # the same, with its whole length
    message = bytes([200, 0x55, 7, 1, 1, 0])
    seeds = {
        "hole": b"\x00\x01" + message + bytes([99, 3, 2]) + again,
        "filled-again": b"\x00\x00" + message + b"\x03\x02" + again + b"\x03\x14\x04abcd\x02" + again,
        "told-too-much": b"\x00\x00" + message + b"\x03\x00\xff\xff\xff\xff\xff",
    }
    for kind in range(8):
        for seals in (1, 3):
            content = bytes([200, 0x55, kind, 1, 1, 0, 0])
            seeds[f"contents-{kind}-seals-{seals}"] = b"\x00\x00" + content + bytes([seals, 2]) + again
    for seals in range(7):
        seeds[f"seals-{seals}"] = b"\x00\x00" + message + bytes([seals, 2]) + again
    for which in range(4):
        seeds[f"special-{which}"] = bytes([0, 0xE0 + which, 2]) + again
    return seeds


def _path_in(*frames: bytes, descriptors: int = 0) -> bytes:
    """A packet comes to the path, and everything runs."""
    return (b"\x09" if descriptors else b"\x01") + _packet(*frames) + bytes([descriptors] if descriptors else [])


def _path_do(step: str, *arguments: int) -> bytes:
    """The program of the path does something, and everything runs."""
    return bytes([paths.FIRST_STEP + 2 * list(paths.STEPS).index(step) + 1, *arguments])


def path_seeds() -> Seeds:
    """A served path, one whose program does things itself, a stream; over both transports, with and without rebind."""
    hello, again, successor = _path_in(_hello()), _path_in(_hello(known=1)), _path_in(_hello(peer=1))
    calls = _path_in(*(_message(Kind.CALL, ident) for ident in (1, 2, 3, 4, 5, 6)))
    reply = _message(Kind.REPLY, 1)
    many = b"".join(_path_in(_message(Kind.CALL, ident, 0, b"\x06\xff\x00\x00\xea\x00")) for ident in range(1, 16))
    data = _frame(Kind.DATA, 255, 0, 0, 120, 0)
    read, cut, turn = _path_do("read"), _path_do("cut"), _path_do("turn")
    seeds: Seeds = {}
    for name, flags in (("memory", 0), ("socket", 1), ("rebind", 2), ("socket-rebind", 3)):
        served = bytes([flags, 3, 4]) + hello
        alone = bytes([flags | 8, 3, 4]) + hello
        seeds |= {
            f"{name}-served": served + calls + _path_in(_frame(Kind.PURGE, 4)) + read,
            f"{name}-received": alone + _path_do("receive") + calls + _path_in(_message(Kind.SEND, -1)) + read,
            f"{name}-congested": served + _path_do("read") + many + read + read,
            f"{name}-descriptors": (
                served + _path_in(_message(Kind.SEND, 1, 0x30), descriptors=3)
                + _path_in(_message(Kind.CALL, 2, 0x12), descriptors=2)
            ),
            f"{name}-large": served + b"\xa1\x00\x09\x01" + b"\xa1\x01\x09\x02" + read,
            f"{name}-too-large": served + b"\xa1\x00\xff\x00\x04\x10\x00\x01",
            f"{name}-calls": (
                alone + _path_do("call", 0x18, 1, 5) + _path_do("send", 0) + read
                + _path_in(reply, _frame(Kind.ACK, 2, 2)) + _path_do("send_many", 9) + _path_do("cancel", 0)
            ),
            f"{name}-takes": alone + calls + _path_do("take", 1) + _path_do("take", 0),
            f"{name}-cut": alone + _path_do("call", 0, 0) + cut + again + _path_in(reply),
            f"{name}-successor": served + calls + cut + successor,
            f"{name}-stream": (
                alone + turn + _path_in(_frame(Kind.STREAM), _frame(Kind.DATA, 9)) + turn + bytes([99])
                + _path_in(_frame(Kind.CREDIT, 255, 0, 0, 1, 0), _frame(Kind.EOF)) + turn + bytes([0])
            ),
            f"{name}-stream-cut": alone + turn + _path_in(_frame(Kind.STREAM), data, data) + turn + bytes([250]) + cut,
            f"{name}-gate": alone + _path_do("gate", 1) + _path_in(_frame(Kind.QUIESCED)) + _path_do("gate", 0),
            f"{name}-severed": served + calls + _path_in(_frame(Kind.SEVER, 0, 0)),
            f"{name}-closes": served + calls + _path_do("end", 0),
        }  # fmt: skip
    for number, overflow in enumerate(("block", "newest", "oldest", "sever")):
        full = bytes([8 | number << 4, 1, 0]) + _path_in(_hello(limit=0))
        more = _path_do("send", 0) * 5 + _path_do("send_nowait", 1, 0)
        seeds[f"overflow-{overflow}"] = full + more + _path_in(_frame(Kind.ACK, 1, 1))
    return seeds


SEEDS: Final = {
    "wire": wire_seeds,
    "session": session_seeds,
    "bulk": bulk_seeds,
    "path": path_seeds,
}


def main() -> None:
    """Write every input that is not there, or not as it should be."""
    for name, seeds in SEEDS.items():
        folder = TARGETS[name].corpus
        folder.mkdir(parents=True, exist_ok=True)
        for title, data in seeds().items():
            (folder / title).write_bytes(data)


if __name__ == "__main__":
    main()
