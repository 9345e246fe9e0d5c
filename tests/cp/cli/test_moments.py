"""Moments as people write them."""

import time
from collections.abc import Iterator
from datetime import datetime

import pytest

from retinue.cp.cli.moments import moment


@pytest.fixture(autouse=True)
def _berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An hour from UTC in winter."""
    monkeypatch.setenv("TZ", "CET-1")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


# 2026-11-22 08:30:00 UTC, which is 09:30 there.
NOW = 1795336200.0


@pytest.mark.parametrize(
    ("text", "then"),
    [
        ("now", "2026-11-22T09:30:00"),
        ("10m", "2026-11-22T09:20:00"),
        ("-10m", "2026-11-22T09:20:00"),
        ("1h30m", "2026-11-22T08:00:00"),
        ("1h 30m ago", "2026-11-22T08:00:00"),
        ("1.5H", "2026-11-22T08:00:00"),
        ("2w", "2026-11-08T09:30:00"),
        ("today", "2026-11-22T00:00:00"),
        ("Yesterday", "2026-11-21T00:00:00"),
        ("9:15", "2026-11-22T09:15:00"),
        ("09:15:30.5", "2026-11-22T09:15:30.5"),
        ("23:50", "2026-11-21T23:50:00"),
        ("2026-11-21", "2026-11-21T00:00:00"),
        ("2026-11-21T10:00", "2026-11-21T10:00:00"),
        ("2026-11-21 10:00:30", "2026-11-21T10:00:30"),
        ("2026-11-21T10:00Z", "2026-11-21T11:00:00"),
        ("2026-11-21T10:00:00+05:00", "2026-11-21T06:00:00"),
        ("@1795336200", "2026-11-22T09:30:00"),
    ],
)
def test_moment_is_understood(text: str, then: str) -> None:
    """Local, and a time of day is the last one there was."""
    found = datetime.fromtimestamp(moment(text, NOW))
    assert found == datetime.fromisoformat(f"{then:0<21}" if "." in then else then)


@pytest.mark.parametrize(
    "text", ["", " ", "m", "10", "10x", "25:00", "tomorrow", "2026-13-01", "@x", "1e9s", "ago", "9" * 20 + "s", "٣m"]
)
def test_what_is_no_moment_is_told_with_examples(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no time such as 10m, 1h30m, 09:30, today"):
        moment(text, NOW)
