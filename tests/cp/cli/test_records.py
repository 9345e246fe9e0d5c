"""A record of *LOG as lines for people."""

from typing import Any

import pytest

from retinue.cp.cli.output import Paint
from retinue.cp.cli.records import RecordFormat, lost_line


def record(message: Any = "hello", machine: Any = "SHOP", severity: Any = 6, **fields: Any) -> dict[str, Any]:
    return {"machine": machine, "severity": severity, "message": message, "fields": fields, "time": 0.5}


@pytest.mark.parametrize(
    ("given", "lines"),
    [
        (record(), ["SHOP  | hello"]),
        (record(machine="HTTPD"), ["HTTPD | hello"]),
        (record(severity=4), ["SHOP  | warning: hello"]),
        (record(severity=0), ["SHOP  | emergency: hello"]),
        (record(severity=7), ["SHOP  | hello"]),
        (record(severity=99), ["SHOP  | hello"]),
        (record(severity="?"), ["SHOP  | hello"]),
        (record("one\ntwo\n"), ["SHOP  | one", "SHOP  | two"]),
        (record("x\nHTTPD | forged"), ["SHOP  | x", "SHOP  | HTTPD | forged"]),
        (record("x\r\x1b[1AHTTPD | forged"), [r"SHOP  | x\x0d\x1b[1AHTTPD | forged"]),
        (record("[red]no markup[/red]"), ["SHOP  | [red]no markup[/red]"]),
        (record(status=200, path="/a b", empty=""), ["SHOP  | hello  status=200 path='/a b' empty=''"]),
        (record(**{"k\x1b": "v\x1b"}), [r"SHOP  | hello  k\x1b=v\x1b"]),
        (record(trace="Traceback:\n  line"), ["SHOP  | hello", "SHOP  |   Traceback:", "SHOP  |     line"]),
        (record(b"raw \xff"), [r"SHOP  | raw \xff"]),
        (record(machine="\x1b[2J"), [r"\x1b[2J | hello"]),
        (record(None, machine=None), ["?     | "]),
        ({}, ["?     | "]),
    ],
)
def test_record_becomes_lines_with_the_name_before_each(given: dict[str, Any], lines: list[str]) -> None:
    assert RecordFormat(["SHOP", "HTTPD"]).lines(given) == lines


def test_a_new_long_name_widens_the_column_up_to_a_limit() -> None:
    form = RecordFormat(["A"])
    assert form.lines(record(machine="LONGER")) == ["LONGER | hello"]
    assert form.lines(record(machine="A")) == ["A      | hello"]
    assert form.lines(record(machine="N" * 50)) == ["N" * 50 + " | hello"]
    assert form.lines(record(machine="A")) == ["A" + " " * 19 + " | hello"]


def test_colour_is_around_the_text_and_never_inside_it() -> None:
    (line,) = RecordFormat(["SHOP"], paint=Paint(True)).lines(record("bad\x1b[0m", severity=3))
    name, text = line.split(" |\x1b[0m ")
    assert name.endswith("mSHOP")
    assert text == "\x1b[31merror: bad\\x1b[0m\x1b[0m"


@pytest.mark.parametrize(
    ("when", "clock"),
    [
        (1_000_000_000.9876, "Sep 09 01:46:40.987"),
        (None, "--- -- --:--:--.---"),
        (float("nan"), "--- -- --:--:--.---"),
        (float("inf"), "--- -- --:--:--.---"),
        (1e300, "--- -- --:--:--.---"),
    ],
)
def test_times_are_local_to_the_millisecond(when: float | None, clock: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    monkeypatch.setenv("TZ", "UTC0")
    time.tzset()
    try:
        (line,) = RecordFormat(["SHOP"], times=True).lines({**record(), "time": when})
    finally:
        monkeypatch.undo()
        time.tzset()
    assert line == f"{clock} SHOP | hello"


@pytest.mark.parametrize(
    ("count", "line"), [(755, "-- 755 lines lost --"), (1, "-- 1 line lost --"), (None, "-- some lines lost --")]
)
def test_a_gap_shows_its_count(count: int | None, line: str) -> None:
    assert lost_line(count) == line
