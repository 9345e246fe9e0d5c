"""One record of ``*LOG`` as lines for people: ``SHOP | message``."""

import time
from collections.abc import Iterable, Mapping
from typing import Any, Final

from retinue.cp.cli.output import DIM, RED, YELLOW, Paint, cells, neutral_lines, neutralise

# RFC 5424 section 6.2.1. From `notice` on the severity is not worth a word on the line.
SEVERITIES: Final = ("emergency", "alert", "critical", "error", "warning", "notice", "info", "debug")
WARNING: Final = 4
DEBUG: Final = 7
CONTROL_PROGRAM: Final = "retinue.cp"
# A name longer than this does not push the messages of all others to the right.
NAME_MAX: Final = 20


class RecordFormat:
    """Turns records into lines. `names` are the machines whose names shall stand in one column."""

    def __init__(self, names: Iterable[str] = (), *, paint: Paint | None = None, times: bool = False) -> None:
        self._paint = paint or Paint(False)
        self._times = times
        self._width = min(NAME_MAX, max((cells(name) for name in names), default=0))

    def lines(self, record: Mapping[str, Any]) -> list[str]:
        """The lines of one record: a line for each line of its message, each with the machine's name before it.

        So a message with a newline in it cannot pass for the record of another machine.
        """
        paint = self._paint
        name = neutralise(_text(record.get("machine")) or "?")
        severity = record.get("severity")
        severity = severity if isinstance(severity, int) and 0 <= severity <= DEBUG else DEBUG - 1
        self._width = min(NAME_MAX, max(self._width, cells(name)))
        prefix = paint.machine(name, name + " " * (self._width - cells(name)) + " |") + " "
        if self._times:
            prefix = paint(_clock(record.get("time")), DIM) + " " + prefix
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
