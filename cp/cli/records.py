"""One record of ``*LOG`` as lines for people: ``SHOP | message``."""

import re
import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from retinue.cp.cli.output import DIM, RED, YELLOW, Paint, cells, neutral_lines, neutralise

# RFC 5424 section 6.2.1. From `notice` on the severity is not worth a word on the line.
SEVERITIES: Final = ("emergency", "alert", "critical", "error", "warning", "notice", "info", "debug")
WARNING: Final = 4
DEBUG: Final = 7
CONTROL_PROGRAM: Final = "retinue.cp"
# How times are shown: as for people here, as ISO 8601 with the local offset or in UTC, as seconds since the epoch.
TIMES: Final = ("local", "iso", "utc", "epoch", "none")
# A trace id is shown by its first characters, which are enough to ask for it.
_TRACE: Final = re.compile("[0-9a-f]{32}")
_TRACE_SHOWN: Final = 8
# A name longer than this does not push the messages of all others to the right.
NAME_MAX: Final = 20


class RecordFormat:
    """Turns records into lines. `names` are the machines whose names shall stand in one column."""

    def __init__(
        self, names: Iterable[str] = (), *, paint: Paint | None = None, times: bool = False, style: str = "local"
    ) -> None:
        self._paint = paint or Paint(False)
        self._style = style if times else "none"
        self._width = min(NAME_MAX, max((cells(name) for name in names), default=0))

    def lines(self, record: Mapping[str, Any]) -> list[str]:
        """The lines of one record: a line for each line of its message, each with the machine's name before it.

        So a message with a newline in it cannot pass for the record of another machine, nor for the line of a gap,
        which has no name before it.
        """
        paint = self._paint
        when = "" if self._style == "none" else paint(_CLOCKS[self._style](record.get("time")), DIM) + " "
        if is_gap(record):
            return [when + paint(gap_line(record), YELLOW)]
        name = neutralise(_text(record.get("machine")) or "?")
        severity = record.get("severity")
        severity = severity if isinstance(severity, int) and 0 <= severity <= DEBUG else DEBUG - 1
        self._width = min(NAME_MAX, max(self._width, cells(name)))
        prefix = when + paint.machine(name, name + " " * (self._width - cells(name)) + " |") + " "
        codes = (RED,) if severity < WARNING else (YELLOW,) if severity == WARNING else ()
        if severity == DEBUG:
            codes = (DIM,)
        first, *rest = neutral_lines(_text(record.get("message")))
        if severity <= WARNING:
            first = f"{SEVERITIES[severity]}: {first}"
        # The control program's own records say in words what their fields say to programs.
        fields = None if record.get("logger") == CONTROL_PROGRAM else record.get("fields")
        lines = [paint(line, *codes) if line else line for line in (first, *rest)]
        if isinstance(fields, Mapping) and fields:
            short, long = _split(fields)
            if short:
                lines[0] += paint(f"  {' '.join(short)}", DIM)
            lines += [paint(line, DIM) for line in long]
        return [prefix + line for line in lines]


def tells_event(record: Mapping[str, Any]) -> bool:
    """Whether the record is the control program's own about a change of state, which is an event as well."""
    fields = record.get("fields")
    return record.get("logger") == CONTROL_PROGRAM and isinstance(fields, Mapping) and "event" in fields


def is_gap(record: Mapping[str, Any]) -> bool:
    """Whether the record is the control program's own about others that are missing in its place."""
    fields = record.get("fields")
    return record.get("logger") == CONTROL_PROGRAM and isinstance(fields, Mapping) and "lost" in fields


def gap_line(record: Mapping[str, Any]) -> str:
    """The line of a record that is a gap: how many lines of whom, and why."""
    count, cause = record["fields"]["lost"], record["fields"].get("cause")
    lines = f"{count} line{'' if count == 1 else 's'}" if isinstance(count, int) else "some lines"
    why = f": {neutralise(_text(cause))}" if cause else ""
    return f"-- {lines} of {neutralise(_text(record.get('machine')) or '?')} lost{why} --"


def lost_line(count: Any) -> str:
    """The line that stands in the place of records that were lost."""
    return f"-- {count if isinstance(count, int) else 'some'} line{'' if count == 1 else 's'} lost --"


def _split(fields: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Fields as ``key=value`` behind the message; those of several lines (a traceback) as lines below it."""
    short, long = [], []
    for key, value in fields.items():
        text = _text(value)
        if "\n" in text:
            long += [f"  {line}" for line in neutral_lines(text)]
        else:
            text = neutralise(text)
            if key == "trace" and _TRACE.fullmatch(text):
                text = text[:_TRACE_SHOWN]
            short.append(
                f"{neutralise(str(key))}={text!r}" if " " in text or not text else f"{neutralise(str(key))}={text}"
            )
    return short, long


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    return value.decode(errors="backslashreplace") if isinstance(value, bytes) else str(value)


def _clock(seconds: Any) -> str:
    """Local time to the millisecond, as in ``Nov 21 09:01:02.123``."""
    if not isinstance(seconds, int | float):
        return "--- -- --:--:--.---"
    try:
        moment = time.localtime(seconds)
    except (OverflowError, OSError, ValueError):
        return "--- -- --:--:--.---"
    return f"{time.strftime('%b %d %H:%M:%S', moment)}.{int(seconds % 1 * 1000):03d}"


def _iso(seconds: Any, zone: Any = None) -> str:
    """``2026-11-21T09:01:02.123+01:00``."""
    try:
        return datetime.fromtimestamp(seconds, UTC).astimezone(zone).isoformat(timespec="milliseconds")
    except (TypeError, OverflowError, OSError, ValueError):
        return "----------T--:--:--.---"


def _utc(seconds: Any) -> str:
    """``2026-11-21T08:01:02.123Z``."""
    return _iso(seconds, UTC).removesuffix("+00:00") + "Z"


def _epoch(seconds: Any) -> str:
    """``1795255012.661``."""
    return f"{seconds:.3f}" if isinstance(seconds, int | float) else "-"


_CLOCKS: Final = {"local": _clock, "iso": _iso, "utc": _utc, "epoch": _epoch}
