"""Recordings: what is written is read again, and damage is told with its place."""

import os
import pathlib
import stat
from typing import Any

import msgpack
import pytest

from retinue.cp.recording import BadRecording, Reader, Writer

HEAD: dict[str, Any] = {"time": 12.5, "path": 1, "direction": "->"}
ITEMS: list[dict[str, Any]] = [
    HEAD | {"kind": "call", "id": 1, "body": ["price", {"article": b"tea\xff", "n": None}]},
    HEAD | {"kind": "reply", "direction": "<-", "id": 1, "body": 2.5, "latency_us": 87},
    {"lost": 3},
    HEAD | {"kind": "send", "id": -1, "body": "x" * 100_000, "priority": True},
    HEAD | {"kind": "reject", "direction": "<-", "id": 2, "code": "no", "text": "", "detail": [[]]},
]


def write(file: pathlib.Path, items: list[Any]) -> None:
    with Writer(file, "SHOP", "WEB.app") as writer:
        writer.write(items)
        assert writer.count == len(items)


def test_what_is_written_is_read_again(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "a.tap"
    write(file, ITEMS)
    with Reader(file) as reader:
        assert (reader.header.system, reader.header.edge) == ("SHOP", "WEB.app")
        assert reader.header.time == pytest.approx(os.stat(file).st_mtime, abs=60)
        assert list(reader) == ITEMS


def test_a_recording_is_its_owners_alone_and_never_overwritten(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "a.tap"
    write(file, ITEMS)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    before = file.read_bytes()
    with pytest.raises(FileExistsError):
        Writer(file, "SHOP", "WEB.app")
    assert file.read_bytes() == before


def test_every_cut_is_told_with_the_place_of_the_item_that_lacks_something(tmp_path: pathlib.Path) -> None:
    """Cut anywhere but between two items, the rest before it is still given."""
    file = tmp_path / "a.tap"
    items = [item for item in ITEMS if item.get("kind") != "send"]
    write(file, items)
    whole = file.read_bytes()
    starts = [len(whole) - sum(len(msgpack.packb(item)) for item in items)]
    for item in items:
        starts.append(starts[-1] + len(msgpack.packb(item)))
    cut_file = tmp_path / "cut.tap"
    for end in range(starts[0] + 1, len(whole)):
        cut_file.write_bytes(whole[:end])
        with Reader(cut_file) as reader:
            if end in starts:
                list(reader)
                continue
            got: list[Any] = []
            with pytest.raises(BadRecording) as caught:
                got.extend(reader)
        start = max(offset for offset in starts if offset < end)
        assert caught.value.offset == start
        assert f"byte {start}: the last item is cut off: the file ends at byte {end}" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not a recording"),
        (b"{}", "not a recording"),
        (b"\x1f\x8b\x08\x00", "not a recording"),
        (b"\xc1", "not a recording"),
        (b"\x80", "not a recording"),
        (msgpack.packb({"format": "retinue-recording"})[:-3], "not a recording"),
        (
            msgpack.packb({"format": "retinue-recording", "version": 2}),
            "a recording of version 2; this is Retinue for 1",
        ),
        (msgpack.packb({"format": "retinue-recording", "version": 1}), "its header has no system"),
    ],
)
def test_a_foreign_file_is_refused(tmp_path: pathlib.Path, content: bytes, words: str) -> None:
    file = tmp_path / "foreign"
    file.write_bytes(content)
    with pytest.raises(BadRecording, match=words) as caught:
        Reader(file)
    assert str(caught.value).startswith(f"{file}: byte 0: ")


@pytest.mark.parametrize(
    ("item", "words"),
    [
        (5, "not a map"),
        ({"kind": "call"}, "without time, path and kind"),
        (HEAD, "without time, path and kind"),
        (HEAD | {"kind": "call", "id": "1"}, "id of an item is not int"),
        (HEAD | {"kind": "call", "id": True}, "id of an item is not int"),
        (HEAD | {"kind": "call"}, "a message without an id"),
        (HEAD | {"kind": "call", "id": 1, "direction": "<>"}, "without a direction"),
        (HEAD | {"kind": ["call"]}, "kind of an item is not str"),
        ({"lost": "many"}, "lost of an item is not int"),
        (msgpack.ExtType(5, b""), "not a map"),
    ],
)
def test_an_item_of_another_shape_is_told_with_its_place(tmp_path: pathlib.Path, item: Any, words: str) -> None:
    file = tmp_path / "a.tap"
    write(file, [ITEMS[0], item])
    place = file.stat().st_size - len(msgpack.packb(item))
    with Reader(file) as reader, pytest.raises(BadRecording, match=words) as caught:
        list(reader)
    assert caught.value.offset == place


def test_bytes_that_are_no_msgpack_are_told_with_their_place(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "a.tap"
    write(file, ITEMS)
    place = file.stat().st_size
    with file.open("ab") as stream:
        stream.write(b"\xc1\xc1")
    got: list[Any] = []
    with Reader(file) as reader, pytest.raises(BadRecording, match="a damaged item") as caught:
        got.extend(reader)
    assert (got, caught.value.offset) == (ITEMS, place)


def test_the_deepest_body_that_a_tap_shows_fits(tmp_path: pathlib.Path) -> None:
    from retinue.cp.tap import DEEPEST

    body: Any = 1
    for _ in range(DEEPEST):
        body = [body]
    file = tmp_path / "a.tap"
    write(file, [HEAD | {"kind": "call", "id": 1, "body": body}])
    with Reader(file) as reader:
        assert [each["body"] for each in reader] == [body]
