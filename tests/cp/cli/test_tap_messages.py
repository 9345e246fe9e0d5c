"""What a tap shows, as lines and as JSON."""

import json
import time
from typing import Any

import pytest

from retinue.cp.cli.messages import BODY_MAX, ItemFormat, body_text, interval, item_json
from retinue.cp.cli.output import Paint
from retinue.cp.tap import DEEPEST

Item = dict[str, Any]

NOON = time.mktime((2026, 11, 21, 12, 0, 0, 0, 0, -1)) + 0.25
HEAD: Item = {"time": NOON, "path": 7, "direction": "->"}


def line(item: Item, *, room: int | None = None, colour: bool = False) -> str:
    return ItemFormat(paint=Paint(colour), room=room).line(HEAD | item)


@pytest.mark.parametrize(
    ("item", "shown"),
    [
        (
            {"kind": "call", "id": 1, "body": ["price", {"article": "tee"}]},
            '->  call           1           ["price", {"article": "tee"}]',
        ),
        (
            {"kind": "reply", "direction": "<-", "id": 1, "body": None, "latency_us": 870},
            "<-  reply          1    870µs  null",
        ),
        (
            {"kind": "send", "id": -3, "body": b"a\xff", "priority": True},
            '->  send          -3           "a\\\\xff"  (priority)',
        ),
        (
            {"kind": "reject", "id": 2, "code": "no", "text": "why", "detail": [1], "latency_us": 1_500_000},
            "->  reject         2     1.5s  no: why  [1]",
        ),
        ({"kind": "ack", "id": 2, "last": 9, "latency_us": 12_345}, "->  ack         2..9   12.3ms"),
        ({"kind": "ack", "id": 2, "last": 2}, "->  ack            2"),
        ({"kind": "purge", "id": 2}, "->  purge          2"),
        ({"kind": "sever", "code": "closed", "text": ""}, "->  sever                      closed"),
        ({"kind": "data", "bytes": 4096}, "->  data                       4K of a byte stream"),
        (
            {"kind": "call", "id": 2, "bulk": 3 << 20, "omitted": "more than 9 bytes", "descriptors": 2},
            "->  call           2           (more than 9 bytes: not shown)  (3M, 2 descriptors)",
        ),
        (
            {"kind": "call", "id": 2, "body": 1, "redelivered": True, "descriptors": 1},
            "->  call           2           1  (redelivered, 1 descriptor)",
        ),
    ],
)  # fmt: skip
def test_an_item_is_one_line(item: Item, shown: str) -> None:
    assert line(item) == f"12:00:00.250000     7  {shown}"


def test_what_was_lost_is_a_line_too() -> None:
    assert ItemFormat(paint=Paint(False)).line({"lost": 12}) == "-- 12 lost: this command was too slow for them --"
    assert json.loads(item_json({"lost": 12})) == {"lost": 12}


def test_the_head_stands_above_the_columns() -> None:
    head = ItemFormat(paint=Paint(False)).head()
    shown = line({"kind": "reply", "id": 123456, "latency_us": 999, "body": "x"})
    assert head.index("MESSAGE") == shown.index('"x"')
    assert head.index("KIND") == shown.index("reply")
    assert head.index("ID") + 2 == shown.index("123456") + 6


def test_a_hostile_machine_does_not_control_the_terminal() -> None:
    """Not by its bodies, its keys, its reasons, nor by what it calls a kind."""
    evil = "\x1b[2J\r\n\x9b\u202e\x7f"
    for item in (
        {"kind": "call", "id": 1, "body": {evil: [evil, evil.encode()]}},
        {"kind": "call", "id": 1, "body": {b"\x1b\xff": 0}},
        {"kind": "reject", "id": 1, "code": evil, "text": evil, "detail": evil},
        {"kind": "sever", "code": evil, "text": evil},
        {"kind": evil, "text": evil, "id": evil[0:0]},
        {"kind": "send", "id": 1, "omitted": evil},
    ):
        for text in (line(item), item_json(HEAD | item)):
            assert not any(char < " " or "\x7f" <= char <= "\x9f" or char in "\u202e" for char in text)
        assert json.loads(item_json(HEAD | item))["kind"] == item["kind"]


def test_lines_fit_the_screen() -> None:
    """The message is cut, what is remarkable about it is not."""
    item: Item = {"kind": "call", "id": 1, "body": "x" * 500, "redelivered": True}
    cut = line(item, room=100)
    assert len(cut) == 100
    assert cut.endswith("xxx…  (redelivered)")
    assert len(line(item | {"body": "x" * 100_000})) < BODY_MAX + 200


def test_colours_say_what_is_wrong() -> None:
    assert "\x1b[31m" in line({"kind": "reject", "id": 1, "code": "no"}, colour=True)
    assert "\x1b[31m" not in line({"kind": "reply", "id": 1, "body": 1}, colour=True)
    assert "\x1b" not in line({"kind": "reject", "id": 1, "code": "no"})


def test_json_says_what_a_path_carries_and_json_does_not() -> None:
    body: Any = {b"k\xff": [b"\x00", float("nan"), float("-inf"), 2**63], "z": "\x7fé"}
    text = item_json(HEAD | {"kind": "call", "id": 1, "body": body})
    assert text.isascii()
    assert json.loads(text, parse_constant=pytest.fail)["body"] == {
        "k\\xff": ["\x00", "nan", "-inf", 2**63],
        "z": "\x7fé",
    }


def test_the_deepest_body_can_be_shown() -> None:
    deep: Any = "bottom"
    for level in range(DEEPEST):
        deep = {"x": deep} if level % 2 else [deep]
    assert json.loads(item_json({"body": deep}))["body"] == deep
    assert "bottom" in body_text(deep)


@pytest.mark.parametrize(
    ("microseconds", "text"),
    [(0, "0µs"), (999, "999µs"), (1000, "1.0ms"), (99_949, "99.9ms"), (99_951, "100ms"), (999_400, "999ms"),
     (999_600, "1.0s"), (61_000_000, "61.0s"), (3_600_000_000, "3600s")],
)  # fmt: skip
def test_intervals(microseconds: int, text: str) -> None:
    assert interval(microseconds) == text
