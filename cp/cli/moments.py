"""Moments as people write them: ``10m``, ``09:30``, ``2026-11-21T09:30``, ``yesterday``."""

import re
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, Final, TypeVar

import click

_Function = TypeVar("_Function", bound=Callable[..., Any])

_UNITS: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_AGO: Final = re.compile(r"-?((?:\d{1,9}(?:\.\d{1,6})?[smhdw] ?)+)(?:ago)?", re.ASCII)
_PART: Final = re.compile(r"([\d.]+)([smhdw])", re.ASCII)
_CLOCK: Final = re.compile(r"\d{1,2}:\d\d(:\d\d(\.\d+)?)?", re.ASCII)
_EPOCH: Final = re.compile(r"@(\d{1,11}(?:\.\d+)?)", re.ASCII)

FORMS: Final = "such as 10m, 1h30m, 09:30, today, yesterday, 2026-11-21, 2026-11-21T09:30 or @1795255012"


def moment(text: str, now: float) -> float:
    """Seconds since the epoch of a local time, or of so long before ``now``; ValueError when it is neither.

    A time of day without a day is the last one that there was.
    """
    text = text.strip().casefold()
    if text == "now":
        return now
    if ago := _AGO.fullmatch(text):
        return now - sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(ago[1]))
    if epoch := _EPOCH.fullmatch(text):
        return float(epoch[1])
    today = datetime.fromtimestamp(now).replace(hour=0, minute=0, second=0, microsecond=0)
    if text in ("today", "yesterday"):
        return (today - timedelta(days=text == "yesterday")).timestamp()
    of_day = bool(_CLOCK.fullmatch(text))
    if of_day:
        text = f"{today:%Y-%m-%d}T{'0' * (text[1] == ':')}{text}"
    try:
        found = datetime.fromisoformat(text.upper())
        if of_day and found.timestamp() > now:
            found -= timedelta(days=1)
        return found.timestamp()
    except (ValueError, OverflowError, OSError):
        raise ValueError(f"{text!r} is no time {FORMS}") from None


def _moment(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    try:
        return None if value is None else moment(value, time.time())
    except ValueError:
        raise click.BadParameter(f"{value!r} is no time {FORMS}", ctx, param) from None


def moment_option(name: str, what: str) -> Callable[[_Function], _Function]:
    """``--since TIME`` and the like."""
    return click.option(name, callback=_moment, metavar="TIME", help=what)
