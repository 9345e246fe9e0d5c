"""What is printed: nothing a machine says can control the terminal, and everything fits its column."""

import io
import json

import pytest

from retinue.cp.cli.output import (
    Paint,
    cells,
    colour_wanted,
    duration,
    neutral_lines,
    neutralise,
    shorten,
    size,
    table,
    to_json,
    width,
)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain text, naïve café, 日本語, 🙂", "plain text, naïve café, 日本語, 🙂"),
        ("a\tb", "a\tb"),
        ("\x1b[2J\x1b]0;owned\x07", r"\x1b[2J\x1b]0;owned\x07"),
        ("good\rEVIL", r"good\x0dEVIL"),
        ("back\x08space \x7f", r"back\x08space \x7f"),
        ("\x9b31m C1 \x85", r"\x9b31m C1 \x85"),
        ("line\nbreak\x0b\x0c\u2028\u2029", r"line\x0abreak\x0b\x0c\u2028\u2029"),
        (
            "\u202eright-to-left\u202c \u2066isolated\u2069 \u061c",
            r"\u202eright-to-left\u202c \u2066isolated\u2069 \u061c",
        ),
        ("\0", r"\x00"),
        ("lone \ud800 surrogate \udcff", r"lone \ud800 surrogate \udcff"),
        ("[bold]markup[/bold] :smile:", "[bold]markup[/bold] :smile:"),
    ],
)
def test_control_characters_are_shown_and_have_no_effect(text: str, shown: str) -> None:
    assert neutralise(text) == shown
    shown.encode("utf-8")


def test_every_control_character_is_neutralised() -> None:
    for code in [*range(0x20), *range(0x7F, 0xA0)]:
        if chr(code) != "\t":
            assert chr(code) not in neutralise(chr(code)), hex(code)


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("", [""]),
        ("one", ["one"]),
        ("one\n", ["one"]),
        ("one\r\ntwo\n", ["one", "two"]),
        ("one\n\ntwo", ["one", "", "two"]),
        ("one\u2028two\x85three\x0bfour", [r"one\u2028two\x85three\x0bfour"]),
    ],
)
def test_only_a_newline_ends_a_line(text: str, lines: list[str]) -> None:
    assert neutral_lines(text) == lines


@pytest.mark.parametrize(
    ("stream", "environ", "wanted"),
    [
        (io.StringIO(), {}, False),
        (Terminal(), {}, True),
        (Terminal(), {"TERM": "dumb"}, False),
        (Terminal(), {"NO_COLOR": "1"}, False),
        (Terminal(), {"NO_COLOR": ""}, True),
        (io.StringIO(), {"FORCE_COLOR": "1"}, True),
        (Terminal(), {"FORCE_COLOR": "1", "NO_COLOR": "1"}, False),
    ],
)
def test_colour_is_for_terminals_unless_the_environment_says_otherwise(
    stream: io.StringIO, environ: dict[str, str], wanted: bool
) -> None:
    assert colour_wanted(stream, environ) is wanted


@pytest.mark.parametrize(("columns", "expected"), [("40", 40), ("0", None), ("-3", None), ("wide", None), ("", None)])
def test_columns_are_respected_and_a_pipe_has_none(columns: str, expected: int | None) -> None:
    assert width(io.StringIO(), {"COLUMNS": columns}) == expected


def test_machine_keeps_its_colour() -> None:
    paint = Paint(True)
    assert paint.machine("SHOP", "x") == paint.machine("SHOP", "x")
    assert paint.machine("SHOP", "x").endswith("mx\x1b[0m")
    assert Paint(False).machine("SHOP", "x") == "x"


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0B"),
        (1023, "1023B"),
        (1024, "1K"),
        (1536, "1.5K"),
        (34 * 1024**2 + 300_000, "34.3M"),
        (128 * 1024**2, "128M"),
        (1023 * 1024**2, "1023M"),
        (1024**3 - 1, "1G"),
        (3 * 1024**4 // 2, "1.5T"),
        (5000 * 1024**4, "5000T"),
    ],
)
def test_size_is_written_as_in_a_topology(count: int, text: str) -> None:
    assert size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-1, "0s"), (0.9, "0s"), (59.9, "59s"), (60, "1m00s"), (192, "3m12s"), (7500, "2h05m"), (356400, "4d03h")],
)
def test_duration_shows_two_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("text", "room", "short"), [("abcdef", 6, "abcdef"), ("abcdef", 4, "abc…"), ("日本語", 4, "日…"), ("ab", 0, "…")]
)
def test_shorten_counts_columns(text: str, room: int, short: str) -> None:
    assert shorten(text, room) == short


def test_cells_count_wide_and_combining_characters() -> None:
    assert (cells("abc"), cells("日本"), cells("e\u0301")) == (3, 4, 1)


def test_table_pads_and_cuts_the_last_column() -> None:
    rows = [["WEB", "7", "a long cause that does not fit"], ["DB", "12", ""]]
    lines = ["  ".join(line) for line in table(("NAME", "PID", "CAUSE"), rows, right=frozenset({1}), room=24)]
    assert lines == ["NAME  PID  CAUSE", "WEB     7  a long cause…", "DB     12  "]


def test_json_is_ascii_and_exact() -> None:
    value = {"text": "\x1b[2J é \x7f \u202e \ud800", "raw": b"\xff\x00a", "n": [1, None, True]}
    text = to_json(value, indent=None)
    assert text.isascii()
    assert not any(ord(char) < 32 or ord(char) == 127 for char in text)
    assert json.loads(text) == {**value, "raw": "\\xff\x00a"}
