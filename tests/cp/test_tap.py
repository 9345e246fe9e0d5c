"""What a tap sees, and what it never lets out."""

import os
from collections.abc import Iterator
from typing import Any

import msgpack
import pytest
import trio
import trio.testing
from tests.leaks import assert_none_left, descriptors

from retinue.cp import tap as taps
from retinue.cp.redaction import REDACTED
from retinue.cp.relay import Direction
from retinue.cp.tap import DEEPEST, ROOM, SHOWN, Lost, Tap, TapFailed
from retinue.pipes import wire
from retinue.pipes.wire import Kind

Item = dict[str, Any]


@pytest.fixture(autouse=True)
def no_descriptor_stays() -> Iterator[None]:
    before = descriptors()
    yield
    assert_none_left(before)


def hello(token: int, known: int = 0, received: int = 0, again: int = 0, again_priority: int = 0) -> wire.Frame:
    return [Kind.HELLO, wire.VERSION, 64, token, known, received, again, again_priority, 0]


class Line:
    """One path under a tap."""

    def __init__(self, tap: Tap | None = None, path: int = 1) -> None:
        self.tap = tap or Tap(["password"])
        self.path = path
        self.bind()

    def bind(self) -> None:
        self._listener = self.tap.listener(self.path)

    def packet(self, direction: Direction, *frames: wire.Frame, given: tuple[int, ...] = ()) -> None:
        self.raw(direction, b"".join(wire.encode(frame) for frame in frames), given)

    def raw(self, direction: Direction, data: bytes, given: tuple[int, ...] = ()) -> None:
        self._listener(direction, data, given)

    def bulk(self, direction: Direction, frame: wire.Frame, *given: int) -> int:
        """A frame in a memfd; returns its size."""
        data = wire.encode(frame)
        descriptor = os.memfd_create("bulk", os.MFD_ALLOW_SEALING)
        os.write(descriptor, data)
        self.packet(direction, [Kind.BULK, len(data)], given=(descriptor, *given))
        # Whoever sent it may use it again at once.
        os.pwrite(descriptor, bytes(len(data)), 0)
        os.close(descriptor)
        return len(data)

    async def seen(self) -> list[Item]:
        """What there is to read now, without the times and the path."""
        items: list[Item] = []
        with trio.move_on_after(0.5) as patience:
            while self.tap._queue:
                read = await self.tap.read()
                items += [{"lost": read.count}] if isinstance(read, Lost) else read
        assert not patience.cancelled_caught
        for item in items:
            if "lost" not in item:
                assert item.pop("time") > 1e9
                assert item.pop("path") == self.path
                if "latency_us" in item:
                    assert 0 <= item.pop("latency_us") < 10_000_000
                    item["timed"] = True
        return items


async def test_messages_and_their_answers_are_decoded() -> None:
    """In both directions, with ids, latencies, lanes and reasons; what is for the two ends alone is left out."""
    line = Line()
    line.packet("->", hello(1))
    line.packet("<-", hello(2))
    line.packet("->", [Kind.CALL, 1, ["price", {"article": "tea"}]], [Kind.SEND, 2, b"\xff"], [Kind.SEND, 3, None])
    line.packet("<-", [Kind.SEEN, 3], [Kind.REPLY, 1, 2.5], [Kind.CALL, -1, "quick", 0 + 1, 5000])
    line.packet("<-", [Kind.ACK, 2, 3])
    line.packet("->", [Kind.REJECT, -1, "denied", "not today", [1]], [Kind.CALL, 4, 0], [Kind.PURGE, 4])
    line.packet("<-", [Kind.REJECT, 4, "purged", "", None], [Kind.SEVER, "closed", "done"])
    assert await line.seen() == [
        {"direction": "->", "kind": "call", "id": 1, "body": ["price", {"article": "tea"}]},
        {"direction": "->", "kind": "send", "id": 2, "body": b"\xff"},
        {"direction": "->", "kind": "send", "id": 3, "body": None},
        {"direction": "<-", "kind": "reply", "id": 1, "body": 2.5, "timed": True},
        {"direction": "<-", "kind": "call", "id": -1, "body": "quick", "descriptors": 1, "priority": True},
        {"direction": "<-", "kind": "ack", "id": 2, "last": 3, "timed": True},
        {
            "direction": "->",
            "kind": "reject",
            "id": -1,
            "code": "denied",
            "text": "not today",
            "detail": [1],
            "priority": True,
            "timed": True,
        },
        {"direction": "->", "kind": "call", "id": 4, "body": 0},
        {"direction": "->", "kind": "purge", "id": 4},
        {"direction": "<-", "kind": "reject", "id": 4, "code": "purged", "text": "", "detail": None, "timed": True},
        {"direction": "<-", "kind": "sever", "code": "closed", "text": "done"},
    ]


async def test_traces_of_messages_are_shown() -> None:
    """Beside what they carry, small or large; secrets in it are hidden as ever, and latencies told."""
    line = Line()
    trace = bytes(range(16))
    line.packet("->", hello(wire.new_token()))
    line.packet("<-", hello(wire.new_token()))
    line.packet("->", [Kind.CALL, 1, {"password": "x"}, 0, 9, trace], [Kind.SEND, 2, None, 1, trace])
    line.packet("<-", [Kind.CALL, -1, "a", 0, trace], [Kind.REPLY, 1, None], [Kind.ACK, 2, 2])
    size = line.bulk("->", [Kind.CALL, 3, "y" * 70_000, 0, trace])
    about = {"trace": trace.hex()}
    assert await line.seen() == [
        {"direction": "->", "kind": "call", "id": 1, "body": {"password": REDACTED}, "redacted": 1, **about},
        {"direction": "->", "kind": "send", "id": 2, "body": None, "descriptors": 1, **about},
        {"direction": "<-", "kind": "call", "id": -1, "body": "a", "priority": True, **about},
        {"direction": "<-", "kind": "reply", "id": 1, "body": None, "timed": True},
        {"direction": "<-", "kind": "ack", "id": 2, "last": 2, "timed": True},
        {"direction": "->", "kind": "call", "id": 3, "body": "y" * 70_000, "bulk": size, **about},
    ]


async def test_a_peer_of_another_version_is_no_bug_of_ours() -> None:
    line = Line()
    line.packet("->", hello(1))
    line.raw("<-", msgpack.packb([Kind.HELLO, 99, "whatever"]))
    line.packet("->", [Kind.SEVER, "violation", ""])
    assert [item["kind"] for item in await line.seen()] == ["sever"]


async def test_a_byte_stream_is_counted_not_shown() -> None:
    """Nobody could find the secrets in it."""
    line = Line()
    line.packet("->", [Kind.STREAM])
    line.packet("<-", [Kind.STREAM], [Kind.DATA, b"Authorization: Basic"], [Kind.EOF])
    line.packet("->", [Kind.CREDIT, 20])
    assert await line.seen() == [
        {"direction": "->", "kind": "stream"},
        {"direction": "<-", "kind": "stream"},
        {"direction": "<-", "kind": "data", "bytes": 20},
        {"direction": "<-", "kind": "eof"},
    ]


async def test_secrets_do_not_leave() -> None:
    """In bodies, in details, in bulk; how many there were is told."""
    line = Line()
    secret = {"Password": "sesame", "user": "ali"}
    headers = [[b"authorization", b"sesame"], [b"host", b"x"]]
    line.packet("->", [Kind.CALL, 1, ["login", secret]], [Kind.SEND, 2, headers])
    line.packet("<-", [Kind.REJECT, 1, "no", "", secret])
    line.bulk("->", [Kind.SEND, 3, ["x" * 100_000, secret]])
    items = await line.seen()
    assert b"sesame" not in msgpack.packb(items)
    clean = {"Password": REDACTED, "user": "ali"}
    assert [(item.get("body", item.get("detail")), item["redacted"]) for item in items] == [
        (["login", clean], 1),
        ([[b"authorization", REDACTED], [b"host", b"x"]], 1),
        (clean, 1),
        (["x" * 100_000, clean], 1),
    ]


async def test_bulk_is_shown_up_to_a_size() -> None:
    """A larger one is told with its size, id and latency; descriptors are counted without the memfd."""
    line = Line()
    size = line.bulk("->", [Kind.CALL, 1, b"x" * 100_000])
    large = line.bulk("<-", [Kind.REPLY, 1, b"x" * SHOWN, 1], 0)
    assert await line.seen() == [
        {"direction": "->", "kind": "call", "id": 1, "body": b"x" * 100_000, "bulk": size},
        {
            "direction": "<-",
            "kind": "reply",
            "id": 1,
            "bulk": large,
            "omitted": f"more than {SHOWN} bytes",
            "descriptors": 1,
            "timed": True,
        },
    ]
    recording = Line(Tap(largest=taps.RECORDED))
    recording.bulk("->", [Kind.SEND, 1, b"x" * (SHOWN + 1)])
    (item,) = await recording.seen()
    assert len(item["body"]) == SHOWN + 1


async def test_a_body_too_deep_to_be_handed_on_is_left_out() -> None:
    line = Line()
    deep: Any = 0
    for _ in range(DEEPEST):
        deep = [deep]
    line.packet("->", [Kind.SEND, 1, deep], [Kind.SEND, 2, [deep]])
    items = await line.seen()
    assert items[0]["body"] == deep
    assert items[1] == {"direction": "->", "kind": "send", "id": 2, "omitted": f"more than {DEEPEST} levels deep"}
    wire.encode([Kind.SEND, 1, ["messages", {"items": items}]])  # and so is on its way to the reader


async def test_frames_that_are_repeated_on_the_next_binding_are_seen_once() -> None:
    """The two ends say where each goes on; what had arrived at the tap but not at the end comes again."""
    line = Line()
    line.packet("->", hello(1))
    line.packet("<-", hello(2))
    line.packet("->", *([Kind.SEND, ident, ident] for ident in (1, 2, 3)))
    line.packet("<-", [Kind.ACK, 1, 1], [Kind.CALL, 1, "x"])
    line.bind()
    line.packet("->", hello(1, known=2, received=1))
    line.packet("<-", hello(2, known=1, received=1))
    line.packet("->", *([Kind.SEND, ident, ident] for ident in (2, 3, 4)))
    line.packet("<-", [Kind.CALL, 1, "x"], [Kind.CALL, 2, "y"], [Kind.ACK, 2, 4])
    shown = [(item["direction"], item["kind"], item["id"]) for item in await line.seen()]
    assert shown == [
        *(("->", "send", ident) for ident in (1, 2, 3)),
        ("<-", "ack", 1),
        ("<-", "call", 1),
        ("->", "send", 4),
        ("<-", "call", 2),
        ("<-", "ack", 2),
    ]


async def test_a_tap_that_comes_in_later_sees_what_is_resent_for_the_first_time() -> None:
    line = Line()
    line.packet("<-", hello(2, known=1, received=70))
    line.packet("->", hello(1, known=2, received=30, again=71))
    line.packet("->", [Kind.SEND, 71, "x"])
    line.packet("<-", [Kind.ACK, 69, 70])
    line.bind()
    line.packet("->", hello(1, known=2, received=31, again=71))
    line.packet("<-", hello(2, known=1, received=70))
    line.packet("->", [Kind.SEND, 71, "x"], [Kind.SEND, 72, "x"])
    items = await line.seen()
    assert [(item["kind"], item["id"]) for item in items] == [("send", 71), ("ack", 69), ("send", 72)]
    # What one end may have been given twice is said in case the other has a successor. It has none.
    assert not any("redelivered" in item for item in items)


async def test_what_a_successor_is_given_again_is_marked() -> None:
    """And is no repetition; the latency counts from the first time."""
    line = Line()
    line.packet("->", hello(1))
    line.packet("<-", hello(2))
    line.packet("->", [Kind.CALL, 1, "x"], [Kind.CALL, 2, "y"], [Kind.SEND, -1, "p"])
    line.packet("<-", [Kind.CALL, 1, "of the dead"])
    line.bind()
    line.packet("->", hello(1, known=2, received=1, again=2, again_priority=1))
    line.packet("<-", hello(3))
    line.packet("->", [Kind.CALL, 2, "y"], [Kind.SEND, -1, "p"], [Kind.SEND, -2, "p"], [Kind.CALL, 3, "z"])
    line.packet("<-", [Kind.REPLY, 2, 0], [Kind.CALL, 1, "new"])
    line.packet("->", [Kind.REPLY, 1, 0])
    items = (await line.seen())[4:]
    assert [(item["kind"], item["id"], item.get("redelivered", False)) for item in items] == [
        ("call", 2, True),
        ("send", -1, True),
        ("send", -2, False),
        ("call", 3, False),
        ("reply", 2, False),
        ("call", 1, False),
        ("reply", 1, False),
    ]
    assert items[4]["timed"]


async def test_paths_are_told_apart() -> None:
    tap = Tap()
    one, other = Line(tap, 7), Line(tap, 8)
    one.packet("->", [Kind.CALL, 1, "a"])
    other.packet("<-", [Kind.REPLY, 1, "b"])
    items = await tap.read()
    assert not isinstance(items, Lost)
    assert [(item["path"], item.get("latency_us")) for item in items] == [(7, None), (8, None)]
    tap.forget(7)
    assert tap._paths.keys() == {8}


async def test_a_bug_ends_the_tap_not_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """The listener raises nothing; the reader is told, behind what was seen before."""
    line = Line()
    line.packet("->", [Kind.SEND, 1, 0])
    monkeypatch.setattr(taps, "_fetch", None)
    for _ in range(2):
        line.packet("->", [Kind.BULK, 200_000])
    assert len(await line.seen()) == 1
    with pytest.raises(TapFailed):
        await line.tap.read()


async def test_what_the_reader_is_too_slow_for_is_counted_where_it_is_missing() -> None:
    """Exactly, frame by frame; what is held stays bounded; the answers' latencies go on being right."""
    line = Line()
    body = b"x" * 1000
    ident = 0
    while not line.tap._queue or not isinstance(line.tap._queue[-1], taps._Gap):
        ident += 1
        line.packet("->", [Kind.CALL, ident, body])
        assert line.tap._weight <= ROOM
    for _ in range(10):
        line.packet("->", [Kind.CALL, ident + 1, body], [Kind.CALL, ident + 2, body])
        line.packet("<-", [Kind.SEEN, 1])
        ident += 2
    line.packet("<-", [Kind.REPLY, 1, body])
    held = ident - 21
    assert ROOM / 1300 < held < ROOM / 1000
    first = await line.seen()
    assert [item.get("id") for item in first] == [*range(1, held + 1), None]
    assert first[-1] == {"lost": 22}
    line.packet("<-", [Kind.REPLY, ident, 0])
    assert await line.seen() == [{"direction": "<-", "kind": "reply", "id": ident, "body": 0, "timed": True}]
    assert line.tap._weight == 0


async def test_a_bulk_message_that_finds_no_room_is_one_that_is_lost() -> None:
    line = Line(Tap(largest=taps.RECORDED))
    for ident in (1, 2, 3):
        line.bulk("->", [Kind.SEND, ident, b"x" * (ROOM // 2)])
    line.packet("->", [Kind.SEND, 4, 0])
    assert [item.get("id", item) for item in await line.seen()] == [1, {"lost": 2}, 4]


async def test_the_reader_waits_for_something_to_read() -> None:
    line = Line()
    got: list[Any] = []

    async def read() -> None:
        got.append(await line.tap.read())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        line.packet("->", [Kind.SEEN, 1])
        await trio.testing.wait_all_tasks_blocked()
        assert got == []
        line.packet("->", [Kind.SEND, 1, 0])
    assert [item["id"] for item in got[0]] == [1]


@pytest.mark.parametrize(
    "packet",
    [
        b"\xc1",
        b"x",
        b"\x93\x01",
        msgpack.packb([99]),
        msgpack.packb([Kind.HELLO]),
        msgpack.packb([Kind.SEND, 0, 0]),
        msgpack.packb([Kind.BULK, 200_000]),
    ],
)
async def test_what_cannot_be_read_is_said_once(packet: bytes) -> None:
    """It is its receiver that severs the path; the other direction may still say something."""
    line = Line()
    for _ in range(3):
        line.raw("->", packet)
    line.packet("<-", [Kind.SEVER, "violation", ""])
    items = await line.seen()
    assert [(item["direction"], item["kind"]) for item in items] == [("->", "unreadable"), ("<-", "sever")]
    assert items[0]["text"]


async def test_a_bulk_frame_may_be_anything() -> None:
    """No memfd, an empty one, one that ends early, or what is no message: said, and nothing more."""
    read_end, write_end = os.pipe()
    try:
        for content in (None, b"", b"\x93", b"\x93\x01\x01", wire.encode([Kind.SEVER, "x", "x" * 100]), b"\xc1" * 100):
            line = Line()
            descriptor = os.memfd_create("x") if content is not None else read_end
            try:
                if content is not None:
                    os.write(descriptor, content)
                line.packet("->", [Kind.BULK, 200_000], given=(descriptor,))
            finally:
                if content is not None:
                    os.close(descriptor)
            (item,) = await line.seen()
            assert (item["kind"], "body" in item) == ("unreadable", False)
    finally:
        os.close(read_end)
        os.close(write_end)


async def test_a_bulk_frame_that_only_begins_well_is_left_out() -> None:
    line = Line()
    descriptor = os.memfd_create("x")
    os.write(descriptor, b"\x93\x01\x07" + b"\xc1" * 100_000)
    line.packet("->", [Kind.BULK, 100_003], given=(descriptor,))
    os.close(descriptor)
    (item,) = await line.seen()
    assert (item["kind"], item["id"], "body" in item) == ("send", 7, False)
    assert item["omitted"].startswith("it cannot be read: ")
